// SPDX-License-Identifier: Apache-2.0
//! The S-expression reader takes any bytes: a tree, or errors that can be drawn.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obuild_specs::{diagnostic, sexp::Tree};

fuzz_target!(|data: &[u8]| match Tree::read(data) {
    Ok(tree) => {
        let root = tree.root();
        assert!(root.span().end <= data.len());
        root.children()
            .for_each(|child| assert!(child.span().start >= root.span().start));
    }
    Err(errors) => {
        assert!(!errors.is_empty());
        assert!(errors.iter().all(|error| error.span.end <= data.len()));
        diagnostic::render(&errors, "fuzz", data, false);
        diagnostic::to_json(&errors, "fuzz", data);
    }
});

// SPDX-License-Identifier: Apache-2.0
//! Any bytes as an opam file: no panic, no overflow of the stack, places inside of the text; and what has no mistakes has none if read as
//! part of a longer text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obuild_opam::{MAX_ERRORS, parse, sources};

fuzz_target!(|text: &[u8]| {
    let parsed = parse(text);
    sources(&parsed);
    assert!(parsed.errors.len() <= MAX_ERRORS);
    for error in &parsed.errors {
        assert!(error.span.start <= error.span.end && error.span.end <= text.len());
        if let Some((span, _)) = error.related {
            assert!(span.start <= span.end && span.end <= text.len());
        }
    }
    if parsed.errors.is_empty() {
        let longer = [text, b"\nend: 1\n"].concat();
        let again = parse(&longer);
        assert!(again.errors.is_empty());
        assert_eq!(again.items.len(), parsed.items.len() + 1);
    }
});

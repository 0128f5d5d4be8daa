// SPDX-License-Identifier: Apache-2.0
//! What can be read can be formatted, means the same afterwards, and then stays as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obuild_specs::sexp::{Item, Tree, format};

fn meaning<'t>(tree: &'t Tree<'_>) -> Vec<Option<Vec<u8>>> {
    // Lists are told apart from their ends, so that the sequence is the tree.
    let mut found = Vec::new();
    let mut waiting: Vec<Option<Item<'t>>> = vec![Some(tree.root())];
    while let Some(item) = waiting.pop() {
        let Some(item) = item else {
            found.push(None);
            continue;
        };
        match item.atom() {
            Some(value) => found.push(Some(value.into_owned())),
            None => {
                found.push(None);
                let children: Vec<_> = item.children().map(Some).collect();
                waiting.push(None);
                waiting.extend(children.into_iter().rev());
            }
        }
    }
    found
}

fuzz_target!(|data: &[u8]| {
    let Ok(tree) = Tree::read(data) else { return };
    let once = format(data).expect("a readable text");
    let again = Tree::read(&once).expect("a formatted text");
    assert!(meaning(&tree) == meaning(&again));
    assert!(format(&once).expect("a formatted text") == once);
});

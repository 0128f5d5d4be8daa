// SPDX-License-Identifier: Apache-2.0
//! What no file may do: use up the stack, the memory or the time.
//!
//! Time is counted in bytes that the lexer reads, so that these tests depend on no clock.

use super::super::parser::Parser;
use super::super::{parse, sources};

/// Texts that grow with `n`, each of which some careless parser needs more than linear time, stack or memory for.
fn texts(n: usize) -> Vec<String> {
    vec![
        "a: [\n".repeat(n),
        "a {\n".repeat(n),
        "a { ".repeat(n),
        "a: \"\n".repeat(n),
        "a: \"\"\"\n".repeat(n),
        format!("a: \"\"\"\n{}", "b: \"\\\"\"\"\n".repeat(n)),
        "a: (*\n".repeat(n),
        format!("a: (*\n{}", "b: (* *) (*\n".repeat(n)),
        "(*".repeat(n),
        format!("a: [\n{}", "b { c\n".repeat(n)),
        format!("a: [\n{}", "b {\n".repeat(n)),
        format!("a: [\n{}", "b \"c\" { d }\n".repeat(n)),
        format!("a: {}", "1-".repeat(n)),
        format!("a: {}", "1_".repeat(n)),
        format!("a: [{}]", "a:1 ".repeat(n)),
        format!("a: [{}]", "1-1-".repeat(n)),
        format!("a: {}b", "a+_".repeat(n)),
        format!("a: {}", "!".repeat(n)),
        format!("a: {}", "(".repeat(n)),
        format!("a: b{}", "{c}".repeat(n)),
        format!("a: b{}", " & b".repeat(n)),
        format!("a: b{}", " | b & c".repeat(n)),
        format!("a: [{}]", "= b ".repeat(n)),
        format!("a: \"{}\"", "\\\n ".repeat(n)),
        format!("a: \"{}\"", "\\q".repeat(n)),
        format!("url {{ checksum: [{}] }}", "\"md5=0\" ".repeat(n)),
        "url { src: \"a\" src: \"b\" }\n".repeat(n),
        "}".repeat(n),
        "; ".repeat(n),
        ";\n".repeat(n),
        "\u{feff}".repeat(n),
        "opam-version: \"2.1\"\n".repeat(n),
    ]
}

#[test]
fn work_is_linear_in_the_length() {
    for (few, many) in texts(2_000).into_iter().zip(texts(20_000)) {
        for text in [&few, &many] {
            sources(&parse(text.as_bytes()));
            let work = Parser::new(text.as_bytes()).work();
            // Once, and what may be read again, and the rest of a word that is looked at for its letters.
            assert!(
                work <= 8 * text.len() + 64,
                "{work} bytes looked at of {} like {:?}",
                text.len(),
                text.get(..30)
            );
        }
    }
}

/// The deepest tree that there can be: it is walked over and dropped recursively.
#[test]
fn the_deepest_tree_fits_into_a_small_stack() {
    let level = "[a & !(b | c {".repeat(40);
    let text = format!("a: {level}\nb: x{}", "{}".repeat(150));
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let thread = small.spawn(move || {
        for text in texts(5_000).into_iter().chain([text]) {
            let parsed = parse(text.as_bytes());
            sources(&parsed.clone());
            super::items(&parsed.items);
        }
    });
    thread.expect("a thread").join().expect("no panic");
}

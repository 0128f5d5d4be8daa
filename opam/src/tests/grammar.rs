// SPDX-License-Identifier: Apache-2.0
//! Every construct of the format.

use super::super::tree::{Kind, Span};
use super::super::{Item, parse};
use super::{tree, value};
use std::borrow::Cow;

#[test]
fn items() {
    assert_eq!(tree(""), "");
    assert_eq!(tree(" # nothing\n"), "");
    assert_eq!(tree("a: 1 b: 2\nc:3"), "a: 1; b: 2; c: 3");
    assert_eq!(tree("a:\n\n  \"x\""), "a: \"x\"");
    assert_eq!(tree("url { src: \"u\" }"), "url { src: \"u\"; }");
    assert_eq!(
        tree("extra-source \"a b\" {\n src: \"u\" mirrors: [] } d: true"),
        "extra-source \"a b\" { src: \"u\"; mirrors: []; }; d: <true>"
    );
    assert_eq!(
        tree("a { b { } c \"\"\"n\"\"\" { } }"),
        "a { b { }; c \"n\" { }; }"
    );
    assert_eq!(tree("url\n{\nsrc\n:\n\"u\"\n}\n"), "url { src: \"u\"; }");
    // Repeated fields are no mistake of syntax.
    assert_eq!(tree("x-a: [] x-a: []"), "x-a: []; x-a: []");
    // A value ends where the next item begins.
    assert_eq!(tree("a: b c: d e { }"), "a: b; c: d; e { }");
    assert_eq!(tree("a: b {c} d: e"), "a: b{c}; d: e");
    // What stands for true is no name of a value, but a name may begin so.
    assert_eq!(
        value("[true false true-x falsey]"),
        "[<true> <false> true-x falsey]"
    );
}

#[test]
fn identifiers() {
    for name in [
        "a", "A9", "_a", "-a", "9a", "-5a", "a-b_c", "a:b", "a-1:b_2", "a:-b", "a:9b", "_:a",
        "_+a:b", "a+b:c", "a+_:c", "a+_", "_+_", "_+_+a", "a+b+c:d",
    ] {
        assert_eq!(value(name), name);
    }
    // The longest that there is, and no more: the colon of a field belongs to no name.
    assert_eq!(tree("a: b c:d:\"e\""), "a: b; c:d: \"e\"");
    assert_eq!(tree("a:1b:2"), "a:1b: 2");
    assert_eq!(tree("a:1"), "a: 1");
    assert_eq!(value("[a+_1]"), "[a+_ 1]");
    assert_eq!(value("[a b-1 -1 1-1 1-a]"), "[a b-1 -1 1 -1 1-a]");
}

#[test]
fn numbers() {
    assert_eq!(value("[0 42 -7 1_000 1_ 007 -0]"), "[0 42 -7 1000 1 7 0]");
    assert_eq!(value("4611686018427387903"), "4611686018427387903");
    assert_eq!(value("[1-2-3]"), "[1 -2 -3]");
}

/// Returns the bytes of a string, and whether they are borrowed from the text.
fn string(text: &str) -> (Vec<u8>, bool) {
    let text = format!("x: {text}");
    let parsed = parse(text.as_bytes());
    assert_eq!(parsed.errors, [], "{text}");
    match &parsed.items[..] {
        [Item::Field(field)] => match &field.value.kind {
            Kind::String(Cow::Borrowed(bytes)) => (bytes.to_vec(), true),
            Kind::String(Cow::Owned(bytes)) => (bytes.clone(), false),
            other => panic!("{text}: {other:?}"),
        },
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn strings() {
    let verbatim: [(&str, &[u8]); 9] = [
        (r#""""#, b""),
        ("\"plain # (* { text\"", b"plain # (* { text"),
        ("\"over\ntwo lines\"", b"over\ntwo lines"),
        ("\"a\rb\"", b"a\rb"),
        ("\"\u{e9}\u{4e16}\"", "\u{e9}\u{4e16}".as_bytes()),
        ("\"\"\"\"\"\"", b""),
        ("\"\"\"a \"b\" \"\"c\"\"\"", b"a \"b\" \"\"c"),
        ("\"\"\"\n# (* x: [\n\"\"\"", b"\n# (* x: [\n"),
        ("\"\"\"\"\"a\"\"\"", b"\"\"a"),
    ];
    for (text, wanted) in verbatim {
        assert_eq!(string(text), (wanted.to_vec(), true), "{text}");
    }
}

#[test]
fn escapes() {
    let resolved: [(&str, &[u8]); 10] = [
        (r#""\\ \" \' \n \r \t \b \ .""#, b"\\ \" ' \n \r \t \x08  ."),
        (r#""\065\000\255""#, b"A\x00\xff"),
        (r#""\x41\xfF""#, b"A\xff"),
        ("\"over\r\ntwo\r\n\"", b"over\ntwo\n"),
        ("\"sha256=\\\n   \t 00\"", b"sha256=00"),
        ("\"a\\\r\n  b\"", b"ab"),
        ("\"a \\\n\n b\"", b"a \n b"),
        ("\"\"\"a \\\"\"\"\"", b"a \""),
        ("\"\"\"a\\\"\"\"b\"\"\"", b"a\"\"\"b"),
        ("\"\"\"\n\\\n  a\\n\"\"\"", b"\na\n"),
    ];
    for (text, wanted) in resolved {
        assert_eq!(string(text), (wanted.to_vec(), false), "{text}");
    }
}

#[test]
fn comments() {
    assert_eq!(tree("# x: \"\n a: # \"[{\n 1 #"), "a: 1");
    assert_eq!(
        tree("(* one (* \" two *) \n *) a (**) : [(* ] *) 1 (* # *) 2]"),
        "a: [1 2]"
    );
    assert_eq!(tree("(***) a: 1 (*(**)**)"), "a: 1");
    assert_eq!(value("(* c *) (a)"), "(a)");
    assert_eq!(
        value("\"# no comment (* neither *)\""),
        "\"# no comment (* neither *)\""
    );
    assert_eq!(tree("a: 1\r\n# c\r\nb: 2\r\n"), "a: 1; b: 2");
}

#[test]
fn operators() {
    assert_eq!(value("a = b"), "<= a b>");
    for operator in ["=", "!=", "<", ">", "<=", ">="] {
        assert_eq!(value(&format!("a{operator}1")), format!("<{operator} a 1>"));
        assert_eq!(
            value(&format!("\"p\" {{{operator} \"1\"}}")),
            format!("\"p\"{{<{operator} \"1\">}}")
        );
    }
    assert_eq!(value("a ~ \"1\""), "<>= a \"1\">");
    for operator in ["+=", "=+", "=+=", ":=", "=:"] {
        assert_eq!(
            value(&format!("[[A {operator} \"b\"]]")),
            format!("[[<{operator} A \"b\">]]")
        );
    }
    assert_eq!(value("!a"), "<not a>");
    assert_eq!(value("?!? a:b"), "<defined <not <defined a:b>>>");
}

#[test]
fn precedences() {
    assert_eq!(value("a | b & c | d"), "<or a <and b c> d>");
    assert_eq!(value("a & b & c"), "<and a b c>");
    assert_eq!(value("(a | b) & c"), "<and (<or a b>) c>");
    // A comparison binds closest, then a condition, then a prefix.
    assert_eq!(value("!a = b & c"), "<and <not <= a b>> c>");
    assert_eq!(value("!a {b} | c"), "<or <not a{b}> c>");
    assert_eq!(value("a = b {c}"), "<= a b>{c}");
    assert_eq!(value("= a {c}"), "<= a>{c}");
    assert_eq!(value("a & b {c}"), "<and a b{c}>");
    assert_eq!(value("a {b} {c} {}"), "a{b}{c}{}");
    assert_eq!(value("[a] {b}"), "[a]{b}");
    assert_eq!(value("(a) {b}"), "(a){b}");
    // In a list a comparison without left side begins anew.
    assert_eq!(value("[a = b = c]"), "[<= a b> <= c>]");
    assert_eq!(value("[a b | c !d]"), "[a <or b c> <not d>]");
    assert_eq!(value("(a b)"), "(a b)");
    assert_eq!(
        value(r#"["ocaml" {>= "4.08" & < "5" & !with-x | ?d & (e | f)} [] ["a" {b}] {c}]"#),
        r#"["ocaml"{<or <and <>= "4.08"> << "5"> <not with-x>> <and <defined d> (<or e f>)>>} [] ["a"{b}]{c}]"#
    );
}

#[test]
fn spans_are_of_the_text() {
    let text = "a: [\"x\" {b & !c}]\nurl \"n\" { src: \"\\n\" }";
    let parsed = parse(text.as_bytes());
    let at = |span: Span| &text[span.range()];
    let [Item::Field(field), Item::Block(block)] = &parsed.items[..] else {
        panic!("{parsed:?}");
    };
    assert_eq!(at(field.name.span), "a");
    assert_eq!(at(field.value.span), "[\"x\" {b & !c}]");
    let [option] = field.value.elements() else {
        panic!("{parsed:?}");
    };
    assert_eq!(at(option.span), "\"x\" {b & !c}");
    let Kind::Option(inner, conditions) = &option.kind else {
        panic!("{parsed:?}");
    };
    assert_eq!(at(inner.span), "\"x\"");
    assert_eq!(at(conditions[0].span), "b & !c");
    assert_eq!(at(block.span), "url \"n\" { src: \"\\n\" }");
    assert_eq!(
        block.name.as_ref().map(|(_, span)| at(*span)),
        Some("\"n\"")
    );
    let src = block.fields("src").next().expect("a field");
    assert_eq!(at(src.value.span), "\"\\n\"");
}

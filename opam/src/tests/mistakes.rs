// SPDX-License-Identifier: Apache-2.0
//! Every mistake: what is said of it, and what is left.

use super::super::{MAX_DEPTH, MAX_ERRORS, parse};
use super::wrong;

/// Asserts what is left of `text`, and that exactly these mistakes are in it.
#[track_caller]
fn check(text: &str, left: &str, mistakes: &[&str]) {
    assert_eq!(
        wrong(text),
        (
            left.to_owned(),
            mistakes.iter().map(|&text| text.to_owned()).collect()
        )
    );
}

#[test]
fn characters() {
    check(
        "a: 4.14\nb: 1",
        "a: 4; b: 1",
        &["1:5: `.` begins nothing: versions are written in quotes"],
    );
    check("a: ;\nb: 1", "b: 1", &["1:4: `;` begins nothing"]);
    check("a: \u{e9}\nb: 1", "b: 1", &["1:4: `\u{e9}` begins nothing"]);
    check(
        "\u{feff}a: 1",
        "a: 1",
        &["1:1: a byte order mark: opam files have none"],
    );
    check("a: \x01", "", &["1:4: the control character U+0001"]);
    check(
        "a: 1\rb: 2\n",
        "a: 1; b: 2",
        &["1:5: a carriage return without a line feed behind it"],
    );
    check(
        "a: -\nb: 1",
        "b: 1",
        &["1:4: `-` is neither a number nor a name"],
    );
    check(
        "a: _1\nb: 1",
        "b: 1",
        &["1:4: `_1` is neither a number nor a name"],
    );
    check("a: x =:= y", "a: x", &["1:6: `=:=` is no operator"]);
    check(
        "a: 4611686018427387904",
        "",
        &["1:4: a number of more than 63 bits"],
    );
    let parsed = parse(b"a: \xff\n");
    assert_eq!(
        parsed.errors[0].to_string(),
        "line 1, column 4: the byte 0xff, which is no text"
    );
}

#[test]
fn strings_and_comments() {
    // A wrong escape costs nothing but itself.
    check(
        r#"a: "x\q\300y" b: 1"#,
        r#"a: "x\\q\\300y"; b: 1"#,
        &[
            "1:6: `\\q` is no escape; a backslash itself is written `\\\\`",
            "1:8: `\\300` is beyond `\\255`",
        ],
    );
    check(
        r#"a: "\x4""#,
        r#"a: "\\x4""#,
        &["1:5: `\\x` is no escape; a backslash itself is written `\\\\`"],
    );
    check(
        "a: 1\nb: \"x\nc: 2",
        "a: 1; c: 2",
        &["2:4: this string is not closed: `\"` is missing"],
    );
    check(
        "b: \"\"\"x\"\nc: 2",
        "c: 2",
        &["1:4: this string is not closed: `\"\"\"` is missing"],
    );
    check(
        "b: \"x\\",
        "",
        &["1:4: this string is not closed: `\"` is missing"],
    );
    check(
        "a: 1 (* (* *)\nb: 2",
        "a: 1",
        &["1:6: this comment is not closed: `*)` is missing"],
    );
}

#[test]
fn items() {
    check(
        "a 1\nb: 2",
        "b: 2",
        &["1:3: a number where `:` or the `{` of a section should stand"],
    );
    check(
        "a \"b\"\nb: 2",
        "b: 2",
        &["2:1: the name `b` where the `{` of a section should stand"],
    );
    check(
        "a: 1 2\nb: 2",
        "a: 1; b: 2",
        &["1:6: a number where a field (`name: value`) or a section should begin"],
    );
    check(
        "} a: 1 ] b: 2",
        "a: 1; b: 2",
        &[
            "1:1: `}` where none of its kind is open",
            "1:8: `]` where none of its kind is open",
        ],
    );
    check(
        "a:",
        "",
        &["1:3: the end of the file where a value should stand"],
    );
    check(
        "a: b =\n",
        "",
        &["2:1: the end of the file where a value should stand"],
    );
    check(
        "a: b & | c\nd: 1",
        "d: 1",
        &["1:8: `|` where a value should stand"],
    );
}

#[test]
fn brackets() {
    check(
        "a: [ 1 )\nb: 2",
        "b: 2",
        &["1:8: `)` where a value or `]` should stand"],
    );
    check(
        "a: [ b {c ]\nd: 2",
        "d: 2",
        &["1:11: `]` where a value or `}` should stand"],
    );
    check(
        "a: [ \"x\"\nb: 2\nc: 3",
        "b: 2; c: 3",
        &["1:4: this `[` is not closed: `]` is missing"],
    );
    // What was taken for a condition was a section.
    check(
        "a: [ x {y} {z\nurl {\n  src: \"u\"\n}\n",
        "url { src: \"u\"; }",
        &["1:12: this `{` is not closed: `}` is missing"],
    );
    check(
        "a: (1 2",
        "",
        &["1:8: the end of the file where a value or `)` should stand"],
    );
}

#[test]
fn sections() {
    check(
        "url {\n src: \"u\"\n",
        "url { src: \"u\"; }",
        &["1:5: this `{` is not closed: `}` is missing"],
    );
    // A field that is wrong costs that field only.
    check(
        "url {\n  checksum: [ \"x\" \n  src: \"u\"\n}\na: 1",
        "url { src: \"u\"; }; a: 1",
        &["2:13: this `[` is not closed: `]` is missing"],
    );
    check(
        "url {\n  src: ?\n}\na: 1",
        "url { }; a: 1",
        &["3:1: `}` where a value should stand"],
    );
    // A section that is not closed takes in what follows, up to where it makes no sense.
    check(
        "url {\n  src: \"u\"\n  checksum:\nextra-source \"x\" {\n  src: \"v\"\n}\na: 1",
        "url { src: \"u\"; checksum: extra-source; src: \"v\"; }; a: 1",
        &["4:14: a string where a field (`name: value`) or a section should begin"],
    );
    check(
        "url {\n  src: \"u\"\n  x: [\nextra-source \"x\" {\n  src: \"v\"\n}\na: 1",
        "url { src: \"u\"; }; extra-source \"x\" { src: \"v\"; }; a: 1",
        &["3:6: this `[` is not closed: `]` is missing"],
    );
}

#[test]
fn the_version_of_the_format_comes_first() {
    check(
        "opam-version: \"2.1\" a: 1",
        "opam-version: \"2.1\"; a: 1",
        &[],
    );
    check(
        "a: 1 opam-version: \"2.0\"",
        "a: 1; opam-version: \"2.0\"",
        &[],
    );
    check(
        "opam-version: \"2.0\" opam-version: \"1.2\"",
        "opam-version: \"2.0\"; opam-version: \"1.2\"",
        &[],
    );
    check(
        "a: 1\nopam-version: \"2.1\"",
        "a: 1; opam-version: \"2.1\"",
        &["2:1: `opam-version` above 2.0 must be the first field"],
    );
    check(
        "opam-version: \"2.1\" opam-version: \"2.0\"",
        "opam-version: \"2.1\"; opam-version: \"2.0\"",
        &["1:21: `opam-version` above 2.0 is given once only"],
    );
}

#[test]
fn depth_is_bounded_and_costs_the_field_only() {
    let nested = |levels: usize| format!("a: {}1{}\nb: 2", "[".repeat(levels), "]".repeat(levels));
    assert_eq!(wrong(&nested(MAX_DEPTH)).1, [""; 0]);
    let message = format!(
        "1:{}: more than {MAX_DEPTH} levels are nested here",
        MAX_DEPTH + 4
    );
    check(&nested(MAX_DEPTH + 1), "b: 2", &[&message]);
    check(
        &format!("a: {}1\nb: 2", "!".repeat(MAX_DEPTH + 1)),
        "b: 2",
        &[&message],
    );
    let sections = wrong(&format!("{}\nb: 2", "a{".repeat(MAX_DEPTH + 1)));
    assert!(sections.1[0].contains("is not closed"), "{sections:?}");
    let (left, mistakes) = wrong(&format!("a: b{}\nc: 2", "{}".repeat(MAX_DEPTH + 2)));
    assert_eq!((left.as_str(), mistakes.len()), ("c: 2", 1));
}

#[test]
fn the_number_of_mistakes_is_bounded() {
    assert_eq!(
        parse("a: ;\n".repeat(1000).as_bytes()).errors.len(),
        MAX_ERRORS
    );
    assert_eq!(
        parse(format!("a: \"{}\"", "\\q".repeat(1000)).as_bytes())
            .errors
            .len(),
        MAX_ERRORS
    );
}

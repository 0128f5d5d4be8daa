// SPDX-License-Identifier: Apache-2.0
//! Tests of what is taken from a tree.

use super::super::{Section, Sources, parse, sources};

const A: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Returns the sources of a text without mistakes of syntax.
fn read(text: &str) -> Sources {
    let parsed = parse(text.as_bytes());
    assert_eq!(parsed.errors, [], "{text}");
    sources(&parsed)
}

/// Returns the checksums of the only source, and the kinds of its problems with what they mark.
fn one(text: &str) -> (Vec<String>, Vec<(&'static str, String)>) {
    let read = read(text);
    let [source] = &read.sources[..] else {
        panic!("{text}: {read:?}");
    };
    let problems = source.problems.iter().chain(&read.problems);
    (
        source.checksums.iter().map(ToString::to_string).collect(),
        problems
            .map(|problem| (problem.kind.code(), text[problem.span.range()].to_owned()))
            .collect(),
    )
}

fn url(rest: &str) -> String {
    format!("url {{ src: \"https://a/b\" {rest} }}")
}

#[test]
fn everything_is_taken() {
    let text = format!(
        "url {{ archive: \"https://a/b\" mirrors: \"https://c/d\" checksum: [\"sha256={A}\" \"{}\"] }}\n\
         extra-source \"x/y\" {{ src: \"https://e\" mirrors: [\"f:g\" \"h:i\"] checksum: \"sha512={A}{A}\" }}",
        &A[..32]
    );
    let read = read(&text);
    assert!(read.available && read.problems.is_empty());
    let [first, second] = &read.sources[..] else {
        panic!("{read:?}");
    };
    assert_eq!(
        (first.section.to_string(), first.url.to_string()),
        ("url".into(), "https://a/b".into())
    );
    assert_eq!(first.mirrors, ["https://c/d"]);
    // A digest alone is md5. The order is kept: clients ask for the first.
    assert_eq!(first.checksums[0].to_string(), format!("sha256={A}"));
    assert_eq!(first.checksums[1].to_string(), format!("md5={}", &A[..32]));
    assert_eq!(second.section, Section::Extra("x/y".into()));
    assert_eq!(second.mirrors, ["f:g", "h:i"]);
    assert_eq!(second.checksums[0].to_string(), format!("sha512={A}{A}"));
    assert!(first.problems.is_empty() && second.problems.is_empty());
}

#[test]
fn a_bad_checksum_does_not_take_the_good_ones_with_it() {
    let text = url(&format!(
        "checksum: [\"sha1=00\" \"sha256={A}\" \"sha512={A}\" \"md5=zz\" 7 \"sha256={A}\"]"
    ));
    let (checksums, problems) = one(&text);
    assert_eq!(checksums, [format!("sha256={A}")]);
    let codes: Vec<_> = problems
        .iter()
        .map(|(code, marked)| (*code, &marked[..marked.len().min(8)]))
        .collect();
    assert_eq!(
        codes,
        [
            ("unknown-checksum", "\"sha1=00"),
            ("checksum-length", "\"sha512="),
            ("checksum-length", "\"md5=zz\""),
            ("wrong-type", "7"),
        ]
    );
}

#[test]
fn weak_missing_and_conflicting_checksums_are_reported() {
    let src = || "\"https://a/b\"".to_owned();
    assert_eq!(one(&url("")).1, [("no-checksum", src())]);
    assert_eq!(one(&url("checksum: []")).1, [("no-checksum", src())]);
    assert_eq!(
        one(&url(&format!("checksum: \"md5={}\"", &A[..32]))).1,
        [("only-md5", src())]
    );
    let other = "1".repeat(64);
    let (checksums, problems) = one(&url(&format!(
        "checksum: [\"sha256={A}\" \"sha256={other}\"]"
    )));
    assert_eq!(
        checksums.len(),
        2,
        "both are needed, so that nothing can match"
    );
    assert_eq!(
        problems,
        [("conflicting-checksums", format!("\"sha256={other}\""))]
    );
}

#[test]
fn version_control_is_recognised() {
    for url in [
        "git+https://a/b.git#c",
        "git://a/b",
        "hg+http://a",
        "darcs+file:///a",
        "git+ssh://a",
        "hg://a",
    ] {
        let (_, problems) = one(&format!("url {{ src: \"{url}\" }}"));
        assert_eq!(problems, [("version-control", format!("\"{url}\""))]);
        let (checksums, problems) = one(&format!(
            "url {{ src: \"{url}\" checksum: \"sha256={A}\" }}"
        ));
        assert_eq!(checksums.len(), 1);
        assert_eq!(
            problems,
            [("version-control-checksum", format!("\"{url}\""))]
        );
    }
    for url in [
        "https://a/b.git",
        "gitlab+x://a",
        "github://a",
        "https://git/",
        "file:///a.hg",
    ] {
        assert_eq!(
            one(&format!("url {{ src: \"{url}\" }}")).1[0].0,
            "no-checksum"
        );
    }
}

#[test]
fn sections_that_name_no_source() {
    let codes = |text: &str| {
        let read = read(text);
        assert_eq!(read.sources, []);
        read.problems
            .iter()
            .map(|problem| problem.kind.code())
            .collect::<Vec<_>>()
    };
    assert_eq!(codes("url { }"), ["no-url"]);
    assert_eq!(codes("url { src: [\"a\"] }"), ["wrong-type"]);
    assert_eq!(codes("extra-source { src: \"a\" }"), ["no-name"]);
    assert_eq!(codes("a { src: \"a\" } src: \"b\""), [""; 0]);
}

#[test]
fn what_is_there_twice_counts_once() {
    let (_, problems) = one(&format!(
        "url {{ src: \"a:b\" src: \"c\" checksum: \"sha256={A}\" }} url {{ src: \"d\" }}"
    ));
    assert_eq!(
        problems,
        [
            ("repeated-field", "src".to_owned()),
            ("second-url", "url".to_owned())
        ]
    );
}

#[test]
fn names_and_urls_that_lead_elsewhere() {
    for name in [
        "../x",
        "/etc/passwd",
        "a/../../b",
        "",
        "a//b",
        ".",
        "a\\000",
    ] {
        let (_, problems) = one(&format!(
            "extra-source \"{name}\" {{ src: \"a:b\" checksum: \"sha256={A}\" }}"
        ));
        assert_eq!(problems[0].0, "bad-name", "{name}");
    }
    for bad in ["", "a b", "a\\nb", "a\\000"] {
        let (_, problems) = one(&format!(
            "url {{ src: \"{bad}\" checksum: \"sha256={A}\" }}"
        ));
        assert_eq!(problems[0].0, "bad-url", "{bad}");
    }
}

#[test]
fn only_false_makes_a_package_unavailable() {
    for (value, available) in [
        ("false", false),
        ("[false]", false),
        ("true", true),
        ("[]", true),
        ("[false false]", true),
        ("[false] {x}", true),
        ("!true", true),
        ("os = \"false\"", true),
    ] {
        assert_eq!(
            read(&format!("available: {value}")).available,
            available,
            "{value}"
        );
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The parser over all of opam-repository, against what OCaml's own parser (opam-file-format) says of it.
//!
//! The data is other people's files, and no part of this project: `OBUILD_TEST_OPAM_DATA` names its
//! directory. Where there is none, these tests do not apply; that every construct of the format is read as it should be is tested in
//! `src/opam/tests.rs` everywhere.

use bstr::ByteSlice;
use obuild_opam::tree::{Kind, PrefixOp, RelationOp};
use obuild_opam::{Item, Parsed, Section, Value, parse, sources};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

fn unpacked(path: &Path) -> impl Read + use<> {
    zstd::Decoder::new(fs_err::File::open(path).expect("the data is there")).expect("zstd data")
}

/// Returns every opam file by its path.
fn files(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut tar = tar::Archive::new(unpacked(&data.join("tree-2026-08-22-97014be6.tar.zst")));
    for entry in tar.entries().expect("a tar") {
        let mut entry = entry.expect("a tar");
        let path = entry.path().expect("a path").to_string_lossy().into_owned();
        let path = path.trim_start_matches("./").to_owned();
        if path.ends_with("/opam") {
            let mut text = Vec::new();
            entry.read_to_end(&mut text).expect("a tar");
            files.insert(path, text);
        }
    }
    assert_eq!(files.len(), 18_793, "all files of the repository");
    files
}

fn data() -> Option<PathBuf> {
    obuild_fixtures::opam_data()
}

#[test]
fn the_trees_are_those_of_the_ocaml_parser() {
    let Some(data) = data() else { return };
    let files = files(&data);
    let golden = BufReader::new(unpacked(&data.join("golden/ast-2026-08-22.jsonl.zst")));
    let mut compared = 0;
    for line in golden.lines() {
        let expected: Json = serde_json::from_str(&line.expect("text")).expect("JSON");
        let path = expected["f"].as_str().expect("a path");
        let parsed = parse(&files[path]);
        assert_eq!(parsed.errors, [], "{path}");
        let found: Vec<Json> = parsed.items.iter().map(item).collect();
        assert_eq!(Json::Array(found), expected["items"], "{path}");
        compared += 1;
    }
    assert_eq!(compared, files.len());
}

#[test]
fn the_sources_are_those_that_the_ocaml_parser_finds() {
    let Some(data) = data() else { return };
    let golden = BufReader::new(unpacked(
        &data.join("golden/golden-urls-2026-08-22.tsv.zst"),
    ));
    let mut expected: Vec<String> = golden
        .lines()
        .skip(1)
        .map(|line| line.expect("text"))
        .collect();
    let mut found = Vec::new();
    let mut unsure = Vec::new();
    for (path, text) in &files(&data) {
        let parsed = parse(text);
        let read = sources(&parsed);
        assert_eq!(read.problems, [], "{path}");
        for source in read.sources {
            let (section, name) = match &source.section {
                Section::Url => ("url", ""),
                Section::Extra(name) => ("extra-source", name.to_str().expect("text")),
            };
            let key = if uses_archive(&parsed, &source.section) {
                "archive"
            } else {
                "src"
            };
            let mirrors: Vec<String> = source.mirrors.iter().map(ToString::to_string).collect();
            let checksums: Vec<String> = source.checksums.iter().map(ToString::to_string).collect();
            found.push(format!(
                "{path}\t{section}\t{name}\t{key}\t{}\t{}\t{}\t{}",
                source.url,
                mirrors.join(" "),
                checksums.join(" "),
                i32::from(!read.available)
            ));
            let codes = source.problems.iter().map(|problem| problem.kind.code());
            unsure.extend(codes.map(|code| format!("{code} {}", source.is_vcs())));
        }
    }
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let count = |code: &str| unsure.iter().filter(|problem| *problem == code).count();
    // As counted with the OCaml parser: 19 without checksum, 4 of which are of a version control system.
    assert_eq!(unsure.len(), 21);
    assert_eq!(count("no-checksum false"), 15);
    assert_eq!(count("version-control true"), 4);
    assert_eq!(count("only-md5 false"), 2);
}

/// Every real file that is awkward, cut off here and there, and with a byte left out there: never a panic, and never a loop.
#[test]
fn damaged_real_files_are_survived() {
    let Some(data) = data() else { return };
    let mut names = 0;
    for entry in fs_err::read_dir(data.join("hard")).expect("the data is there") {
        let text = fs_err::read(entry.expect("an entry").path()).expect("a file");
        assert_eq!(parse(&text).errors, []);
        names += 1;
        for at in (0..text.len()).step_by(61) {
            sources(&parse(&text[..at]));
            let mut damaged = text.clone();
            damaged.remove(at);
            sources(&parse(&damaged));
        }
    }
    assert!(names >= 21);
}

fn uses_archive(parsed: &Parsed<'_>, section: &Section) -> bool {
    parsed.items.iter().any(|item| match item {
        Item::Block(block) if block.kind.text == "url" && *section == Section::Url => {
            block.fields("archive").next().is_some()
        }
        _ => false,
    })
}

fn text(bytes: &[u8]) -> &str {
    bytes.to_str().expect("text")
}

fn item(item: &Item<'_>) -> Json {
    match item {
        Item::Field(field) => json!({"k": text(field.name.text), "v": value(&field.value)}),
        Item::Block(block) => json!({
            "sec": text(block.kind.text),
            "name": block.name.as_ref().map(|(name, _)| text(name)),
            "items": block.items.iter().map(self::item).collect::<Vec<_>>(),
        }),
    }
}

fn all(values: &[Value<'_>]) -> Vec<Json> {
    values.iter().map(value).collect()
}

/// The OCaml parser's operators take two operands.
fn folded(operator: &str, operands: &[Value<'_>]) -> Json {
    let mut operands = operands.iter().map(value);
    let first = operands.next().expect("two operands at least");
    operands.fold(first, |left, right| json!({operator: [left, right]}))
}

fn value(value: &Value<'_>) -> Json {
    let one = self::value;
    match &value.kind {
        Kind::String(string) => json!({"s": text(string)}),
        Kind::Ident(name) => json!({"i": text(name)}),
        Kind::Int(number) => json!(number),
        Kind::Bool(truth) => json!(truth),
        Kind::List(values) => Json::Array(all(values)),
        Kind::Group(values) => json!({"g": all(values)}),
        Kind::Option(inner, conditions) => json!({"o": one(inner), "c": all(conditions)}),
        Kind::And(operands) => folded("and", operands),
        Kind::Or(operands) => folded("or", operands),
        Kind::Prefix(PrefixOp::Not, inner) => json!({"not": one(inner)}),
        Kind::Prefix(PrefixOp::Defined, inner) => json!({"def": one(inner)}),
        Kind::Relation(operator, sides) => json!({"rel": all(&**sides), "op": relation(*operator)}),
        Kind::Compare(operator, inner) => json!({"prel": one(inner), "op": relation(*operator)}),
        Kind::Env(_, sides) => json!({"env": all(&**sides)}),
    }
}

fn relation(operator: RelationOp) -> &'static str {
    match operator {
        RelationOp::Equal => "=",
        RelationOp::NotEqual => "!=",
        RelationOp::Less => "<",
        RelationOp::LessEqual => "<=",
        RelationOp::Greater => ">",
        RelationOp::GreaterEqual => ">=",
    }
}

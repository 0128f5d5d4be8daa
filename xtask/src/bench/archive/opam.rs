// SPDX-License-Identifier: Apache-2.0
//! The opam file parser against OCaml's own (opam-file-format), over all files of opam-repository.
//!
//! Both read one file that holds all of them, so that only parsing is compared. How long the whole command takes that looks through a
//! checkout, reading included, stands beside it.

use crate::bench::Arena;
use crate::bench::builder::DEADLINE;
use crate::bench::measure::Meter;
use crate::bench::table::{Row, Table};
use crate::cmd::Cmd;
use crate::packages::{self, Sign};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const OURS: &str = "obuild's parser";
const OCAML: &str = "opam-file-format (OCaml)";
const CHECK: &str = "obuild archive check, whole command";

/// What the issue asks for.
const LIMIT: Duration = Duration::from_millis(600);

/// Does with OCaml's parser what `opam/examples/opam_pack.rs` does with ours.
const PROGRAM: &str = r#"
let () =
  let pack = open_in_bin Sys.argv.(1) in
  let files = ref 0 and items = ref 0 and mistakes = ref 0 in
  (try
     while true do
       let length = int_of_string (input_line pack) in
       let text = really_input_string pack length in
       incr files;
       match OpamParser.FullPos.string text "opam" with
       | file -> items := !items + List.length file.OpamParserTypes.FullPos.file_contents
       | exception _ -> incr mistakes
     done
   with End_of_file -> ());
  Printf.printf "%d files, %d items, %d mistakes\n" !files !items !mistakes
"#;

pub(super) fn run(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let row = |label: &str, note: &str| Row {
        label: label.to_owned(),
        samples: Vec::new(),
        note: note.to_owned(),
    };
    let mut table = Table {
        title: "all opam files of opam-repository (18,793, 26 MB), parsed".to_owned(),
        per: 1,
        rows: Vec::new(),
    };
    let Some(data) = workspace::opam_data() else {
        let note = "no data: OBUILD_TEST_OPAM_DATA names its directory";
        table.rows.push(row(OURS, note));
        return Ok(table);
    };
    packages::ensure(&[
        (Sign::Program("tar"), "tar"),
        (Sign::Program("zstd"), "zstd"),
    ])?;
    let directory = arena.inputs.join("opam");
    let tree = directory.join("tree");
    fs_err::create_dir_all(&tree)?;
    Cmd::new("tar")
        .args(["--zstd", "-xf"])
        .arg(data.join("tree-2026-08-22-97014be6.tar.zst"))
        .arg("-C")
        .arg(&tree)
        .run()
        .context("unpack the repository")?;
    let pack = pack(&tree, &directory)?;
    Cmd::cargo()
        .args([
            "build",
            "--release",
            "-p",
            "obuild-opam",
            "--example",
            "opam_pack",
        ])
        .run()?;
    let release = workspace::target().join("release");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut contestants = vec![(
        OURS,
        vec![text(&release.join("examples/opam_pack")), text(&pack)],
    )];
    match ocaml(&directory) {
        Ok(program) => contestants.push((OCAML, vec![text(&program), text(&pack)])),
        Err(error) => {
            eprintln!("SKIPPED {OCAML}: {error:#}");
            let note = "not there (`--install`); 840 ms on a 2-core VM, 2026-08";
            table.rows.push(row(OCAML, note));
        }
    }
    // Both find the same, or the comparison means nothing.
    let mut answers = Vec::new();
    for (_, command) in &contestants {
        answers.push(Cmd::new(&command[0]).args(&command[1..]).output()?);
    }
    ensure!(
        answers
            .iter()
            .all(|answer| answer == &answers[0] && answer.starts_with("18793 files")),
        "the parsers disagree: {answers:?}"
    );
    let check = ["archive", "check", &text(&tree)].map(str::to_owned);
    contestants.push((
        CHECK,
        [vec![text(&release.join("obuild"))], check.to_vec()].concat(),
    ));
    let mut rows: Vec<Row> = contestants
        .iter()
        .map(|(label, _)| row(label, ""))
        .collect();
    for _ in 0..arena.runs {
        for (row, (_, command)) in rows.iter_mut().zip(&contestants) {
            row.samples.push(meter.run(command, &[], DEADLINE)?);
        }
    }
    rows.append(&mut table.rows);
    table.rows = rows;
    Ok(table)
}

/// Writes all opam files below `tree` into one, each behind a line with its length.
fn pack(tree: &Path, directory: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    let mut left = vec![tree.join("packages")];
    while let Some(directory) = left.pop() {
        for entry in fs_err::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else if entry.file_name() == "opam" {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let mut text = String::new();
    for file in files {
        let file = fs_err::read_to_string(file)?;
        write!(text, "{}\n{file}", file.len()).expect("a string takes everything");
    }
    let path = directory.join("opam.pack");
    fs_err::write(&path, text)?;
    Ok(path)
}

/// Builds the program with OCaml's parser.
fn ocaml(directory: &Path) -> Result<PathBuf> {
    let source = directory.join("parse.ml");
    fs_err::write(&source, PROGRAM)?;
    let program = directory.join("parse");
    Cmd::new("ocamlfind")
        .args(["ocamlopt", "-package", "opam-file-format", "-linkpkg", "-o"])
        .arg(&program)
        .arg(&source)
        .run()
        .context("build it (packages ocaml-findlib, libopam-file-format-ocaml-dev)")?;
    Ok(program)
}

pub(super) fn verdicts(table: &Table) -> Vec<String> {
    let word = |met: bool| if met { "met" } else { "MISSED" };
    let Some(ours) = table.row(OURS).and_then(Row::cpu) else {
        return vec!["not measured: parsing of opam-repository".to_owned()];
    };
    let mut verdicts = vec![format!(
        "{}: parsing of opam-repository: {:.0} ms of processor time (under {:.0})",
        word(ours < LIMIT),
        ours.as_secs_f64() * 1e3,
        LIMIT.as_secs_f64() * 1e3
    )];
    if let Some(theirs) = table.row(OCAML).and_then(Row::cpu) {
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        let limit = 0.84 / 0.6;
        verdicts.push(format!(
            "{}: {ratio:.1} × less than OCaml's parser (at least {limit:.1})",
            word(ratio >= limit)
        ));
    }
    verdicts
}

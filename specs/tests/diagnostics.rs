// SPDX-License-Identifier: Apache-2.0
//! Every mistake that can be made in a spec, and what a person is then told.
//!
//! The expected texts stand in `diagnostics.txt`: for each case the source between `=== ` lines, then what is drawn.
//! `BLESS=1` writes the file anew; read the difference before keeping it.

use obuild_specs::{Spec, diagnostic};

/// Sources of one mistake each, or of several that should be told at once.
const SOURCES: &[&str] = &[
    // The reader.
    "",
    "; only a comment\n",
    "((from x)\n (run (shell \"a\"))",
    "((from x)\n (run (shell \"a\")\n (run (shell \"b\")))\n",
    "((from x)))",
    "(from x)\n(run (shell \"a\"))\n",
    "((from x) (run (shell \"a)))",
    "((from x) #| note (run (shell \"a\")))",
    "((from x) #| a #| b |# (run (shell \"a\")))",
    "((from x) #| it\"s |#)",
    "((from x) (comment \"\\256 \\1x \\xg0\"))",
    "((from x) (comment a#|b|#))",
    "((from x) |# )",
    "((from x)\r (comment a))",
    "((from x) #;)",
    "((from x)) #;",
    // Specs and their items.
    "spec",
    "()",
    "((run (shell \"a\")) (env A b))",
    "((run (shell \"a\")) (from x))",
    "((from x) (from y))",
    "((from x) (build b ((from y))))",
    "((from))",
    "((from x y))",
    "((from (x)))",
    "((from \"\"))",
    "((from \"\\255\"))",
    "((build b) (from x))",
    "((build (b) ((from y))) (from x))",
    "((build b (from y)) (from x))",
    "((build b spec) (from x))",
    "((from x) run)",
    "((from x) ())",
    "((from x) ((run (shell \"a\"))))",
    "((from x) (rnu (shell \"a\")))",
    "((from x) (Run (shell \"a\")))",
    "((from x) (entrypoint a))",
    "((from x) (\"a long and \\\"odd\\\" name that goes on for more than sixty characters or so\"))",
    // Operations.
    "((from x) (comment))",
    "((from x) (comment two words))",
    "((from x) (comment (list)))",
    "((from x) (workdir))",
    "((from x) (workdir \"a\\000b\"))",
    "((from x) (shell bash (-c)))",
    "((from x) (env A))",
    "((from x) (env A b c))",
    "((from x) (env A=b c))",
    "((from x) (env \"\" c))",
    "((from x) (user))",
    "((from x) (user (uid 1)))",
    "((from x) (user (gid 1)))",
    "((from x) (user (gid 1) (uid 1)))",
    "((from x) (user (uid one) (gid -1)))",
    "((from x) (user (uid 4294967295) (gid 0x)))",
    "((from x) (user (uid 1) (gid 1) (name a)))",
    "((from x) (user (name \"\")))",
    "((from x) (user bob))",
    "((from x) (user (nam bob)))",
    "((from x) (run))",
    "((from x) (run make))",
    "((from x) (run (shell make all)))",
    "((from x) (run (shell)))",
    "((from x) (run (shel \"make\")))",
    "((from x) (run (shell \"a\") (shell \"b\")))",
    "((from x) (run ((shell) \"a\") (shell \"b\")))",
    "((from x) (run (tmpfs /tmp) (shell \"b\")))",
    "((from x) (run (network bridge) (shell \"a\")))",
    "((from x) (run (network host extra) (shell \"a\")))",
    "((from x) (run (network (host)) (shell \"a\")))",
    "((from x) (run (cache c) (shell \"a\")))",
    "((from x) (run (cache (c)) (shell \"a\")))",
    "((from x) (run (cache ((c (target /c)))) (shell \"a\")))",
    "((from x) (run (cache (c (taget /c))) (shell \"a\")))",
    "((from x) (run (cache (c (target))) (shell \"a\")))",
    "((from x) (run (cache (c (target \"\"))) (shell \"a\")))",
    "((from x) (run (cache (c (target /c) (buildkit_options (sharing locked)))) (shell \"a\")))",
    "((from x) (run (cache (c (target /c) (buildkit_options shared))) (shell \"a\")))",
    "((from x) (run (secrets (s)) (shell \"a\")))",
    "((from x) (copy))",
    "((from x) (copy (src a)))",
    "((from x) (copy (dst a)))",
    "((from x) (copy (src) (dst /a)))",
    "((from x) (copy (src a b) (dst /a)))",
    "((from x) (copy (src ../a b/../c ..d) (dst /a/)))",
    "((from x) (copy (src (a)) (dst /a)))",
    "((from x) (copy (from dev) (src a) (dst /a)))",
    "((from x) (copy (from contxt) (src a) (dst /a)))",
    "((from x) (copy (from (build)) (src a) (dst /a)))",
    "((from x) (copy (from (stage dev)) (src a) (dst /a)))",
    "((from x) (copy (form context) (src a) (dst /a)))",
    // Scope.
    "((from x) (copy (from (build dev)) (src a) (dst /a)))",
    "((build dev ((from y))) (from x) (copy (from (build dve)) (src a) (dst /a)))",
    "((build dev ((from y))) (build run ((from y))) (from x) (copy (from (build other)) (src a) (dst /a)))",
    "((build a ((from y) (copy (from (build b)) (src a) (dst /a)))) (build b ((from y))) (from x))",
    "((build a ((build in ((from y))) (from y))) (from x) (copy (from (build in)) (src a) (dst /a)))",
    "((build a ((from y) (copy (from (build a)) (src a) (dst /a)))) (from x))",
    // Several at once.
    "((from x)\n (rnu (shell \"a\"))\n (run (network bridge) (shel \"b\"))\n (copy (src a ../b) (dst /c)))\n",
];

#[test]
fn every_mistake_is_told_with_its_place() {
    let mut drawn = String::new();
    for source in SOURCES {
        let errors = Spec::parse(source.as_bytes()).expect_err(source);
        assert!(!errors.is_empty(), "{source}");
        let text = diagnostic::render(&errors, "a.sexp", source.as_bytes(), false);
        drawn.extend(["=== ", &format!("{source:?}"), "\n", &text, "\n"]);
        let json = diagnostic::to_json(&errors, "a.sexp", source.as_bytes());
        assert_eq!(json.as_array().map(Vec::len), Some(errors.len()));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/diagnostics.txt");
    if std::env::var_os("BLESS").is_some() {
        fs_err::write(path, &drawn).expect("the expected texts can be written");
    }
    let expected = fs_err::read_to_string(path).expect("the expected texts exist");
    for (drawn, expected) in drawn.split("=== ").zip(expected.split("=== ")) {
        assert_eq!(drawn, expected);
    }
    assert_eq!(drawn.len(), expected.len());
}

#[test]
fn the_number_of_errors_is_bounded() {
    let source = format!("((from x) {})", "(oops) ".repeat(100_000));
    let errors = Spec::parse(source.as_bytes()).expect_err("no such operation");
    assert_eq!(errors.len(), diagnostic::MAX_DIAGNOSTICS);
}

#[test]
fn sound_specs_can_be_remarked_on() {
    let source = "((build a ((from x)))\n (build b ((from x)))\n (build a ((from x)))\n (from x)\n (copy (from (build a)) (src y) (dst /y)))\n";
    let spec = Spec::parse(source.as_bytes()).expect("a sound spec");
    let warnings = obuild_specs::spec::warnings(&spec);
    assert_eq!(
        diagnostic::render(&warnings, "a.sexp", source.as_bytes(), false),
        "\
warning: nothing copies from build a
 --> a.sexp:1:9
  |
1 | ((build a ((from x)))
  |         ^
  |
  = note: it will not be run

warning: nothing copies from build b
 --> a.sexp:2:9
  |
2 |  (build b ((from x)))
  |         ^
  |
  = note: it will not be run

warning: a second build named a hides the first
 --> a.sexp:3:9
  |
3 |  (build a ((from x)))
  |         ^
  |
note: the first is here
 --> a.sexp:1:9
  |
1 | ((build a ((from x)))
  |         ^
"
    );
}

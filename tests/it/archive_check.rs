// SPDX-License-Identifier: Apache-2.0
//! `obuild archive check`.

use crate::harness::World;
use serde_json::Value;

#[test]
fn a_repository_is_checked() {
    let Some(world) = World::new() else { return };
    let package = |name: &str, digest: &str| {
        world.write(
            &format!("repo/packages/{name}/{name}.1/opam"),
            format!(
                "opam-version: \"2.0\"\nurl {{\n  src: \"https://example.org/x.tar.gz\"\n  checksum: \"sha256={}\"\n}}\n",
                digest.repeat(64)
            ),
        );
    };
    package("a", "0");
    package("b", "0");
    assert_eq!(
        world.ok(&["archive", "check", "repo"]),
        "2 files, 0 errors, 0 warnings"
    );

    package("c", "1");
    world.write(
        "repo/packages/d/d.1/opam",
        "depends: [\"ocaml\"\nurl {\n  src: \"git+https://example.org/x\"\n}\n",
    );
    let ran = world.run(&["archive", "check", "repo"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert_eq!(ran.stdout.trim(), "4 files, 2 errors, 1 warning");
    for wanted in [
        "error: another sha256 digest is declared of the same URL elsewhere\n --> repo/packages/c/c.1/opam:3:8",
        "in repo/packages/a/a.1/opam: sha256=0000",
        "--> repo/packages/d/d.1/opam:1:10",
        "warning: a version control repository is no archive",
    ] {
        assert!(ran.stderr.contains(wanted), "{wanted}: {}", ran.stderr);
    }

    let ran = world.run(&["archive", "check", "--format", "json", "repo"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["files"], 4);
    assert_eq!(report["errors"], 2);
    let codes: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["code"].as_str().unwrap())
        .collect();
    assert_eq!(codes, ["conflicting-sources", "syntax", "version-control"]);
}

#[test]
fn single_files_and_what_is_not_there() {
    let Some(world) = World::new() else { return };
    world.write("x.opam", "synopsis: \"fine\"\n");
    world.ok(&["archive", "check", "x.opam"]);
    world.write("empty/readme", "");
    for path in ["missing", "empty"] {
        let ran = world.run(&["archive", "check", path]);
        assert_eq!(ran.status, 2, "{ran:#?}");
        assert!(ran.stderr.contains(path), "{ran:#?}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! `obuild archive deploy` and `image`: from a merge to an image in a real registry, of which others read what they should.

use crate::archive_sync::{Mirror, sum};
use obuild_fixtures::{Registry, registry};
use serde_json::Value;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn deploy(mirror: &Mirror, name: &str, then: &str) -> (i32, Value) {
    let arguments = [
        "deploy", "repo", "--to", "out", "--push", name, "--then", then, "--format", "json",
    ];
    let ran = mirror.run(&arguments);
    let report = serde_json::from_str(&ran.stdout);
    (
        ran.status,
        report.unwrap_or_else(|_| Value::from(ran.stderr)),
    )
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn a_merge_goes_live_with_what_is_new_and_only_once() {
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let name = format!("{host}/it/archive-{}:live", since.as_nanos());
    let mirror = Mirror::new();
    mirror.package("a", &vec![b'a'; 300_000]);
    mirror.commit();
    let log = mirror.path("log");
    let then = format!("echo $OBUILD_IMAGE >> {}", log.display());
    let (status, report) = deploy(&mirror, &name, &then);
    assert_eq!(status, 0, "{report:#}");
    assert!(number(&report["image"]["pushed"][0]["sent_bytes"]) > 300_000);
    let (status, again) = deploy(&mirror, &name, &then);
    assert_eq!(status, 0, "{again:#}");
    assert_eq!(again["image"]["pushed"][0]["skipped"], true);
    assert_eq!(again["command"]["ran"], false);

    let data = vec![b'b'; 100_000];
    mirror.package("b", &data);
    mirror.commit();
    // The command fails: the image is there all the same, and the next deployment runs the command alone.
    let (status, failed) = deploy(&mirror, &name, "exit 3");
    assert_eq!(status, 1, "{failed:#}");
    let (status, report) = deploy(&mirror, &name, &then);
    assert_eq!(status, 0, "{report:#}");
    assert_eq!(report["image"]["pushed"][0]["skipped"], true);
    assert_eq!(report["command"]["ran"], true);
    let told = fs_err::read_to_string(&log).unwrap();
    let digest = report["image"]["digest"].as_str().unwrap();
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.ends_with(&format!("@{digest}\n")), "{told}");

    // A third archive: sent is little more than that.
    mirror.package("c", &vec![b'c'; 50_000]);
    mirror.commit();
    let (_, report) = deploy(&mirror, &name, &then);
    let sent = number(&report["image"]["pushed"][0]["sent_bytes"]);
    assert!(sent < 50_000 + 64 * 1024, "{report:#}");

    // Others read the image, and find the archive under every name.
    let layout = mirror.path("layout");
    let run = |command: &mut Command| {
        let output = command.output().expect("it is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--src-tls-verify=false"])
        .arg(format!("docker://{name}"))
        .arg(format!("oci:{}:x", layout.display())));
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:x", layout.display()))
        .arg(mirror.path("bundle")));
    for kind in ["md5", "sha256", "sha512"] {
        let digest = sum(kind, &data);
        let path = format!("bundle/srv/cache/{kind}/{}/{digest}", &digest[..2]);
        assert_eq!(fs_err::read(mirror.path(&path)).unwrap(), data, "{path}");
    }
    let index = fs_err::read(mirror.path("bundle/srv/index.tar.gz")).unwrap();
    assert_eq!(
        index,
        fs_err::read(mirror.path("out/index.tar.gz")).unwrap()
    );
}

#[test]
fn an_image_that_nobody_gets_and_a_directory_that_is_no_archive_are_usage_errors() {
    let mirror = Mirror::new();
    assert_eq!(mirror.run(&["image", "nowhere", "--dry-run"]).status, 2);
    mirror.package("a", b"a");
    mirror.commit();
    assert_eq!(mirror.run(&["sync", "repo", "--to", "out"]).status, 0);
    assert_eq!(mirror.run(&["image", "out"]).status, 2);
    assert_eq!(mirror.run(&["deploy", "repo", "--to", "out"]).status, 2);
    let plan = mirror.run(&["image", "out", "--dry-run"]);
    assert!(plan.stdout.contains("1 new archive,"), "{plan:#?}");
}

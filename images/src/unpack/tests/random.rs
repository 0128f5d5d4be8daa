// SPDX-License-Identifier: Apache-2.0
//! Archives made by chance.
//!
//! If the unpacking were wrong, these could harm the machine that they run on, as root. So they run in a process whose
//! file systems are all read-only but for a temporary one.

use super::{Builder, listing, target, text};
use crate::unpack::tree::open_root;
use crate::unpack::{Whiteouts, unpack};
use obuild_fixtures::{root, skip};
use proptest::prelude::*;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

/// Names that collide, climb, hide and escape.
fn nasty_name() -> impl Strategy<Value = Vec<u8>> {
    let component = prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c", "l", "m"]).prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::sample::select(vec!["..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", ".wh.l", "outside", "proc"])
            .prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::collection::vec(1_u8.., 1..6),
    ];
    prop::collection::vec(component, 1..6).prop_map(|components| components.join(&b'/'))
}

fn nasty_entry() -> impl Strategy<Value = (u8, Vec<u8>, Vec<u8>, Vec<u8>, u32)> {
    let escape = prop::sample::select(vec![
        "..",
        "/",
        "../outside",
        "../../outside/victim",
        "/outside",
        ".",
        "a",
        "l",
        "/proc/self/root",
        "/proc/self/cwd",
        "@",
    ]);
    let link = prop_oneof![
        escape.prop_map(|link| link.as_bytes().to_vec()),
        nasty_name()
    ];
    let flag = prop::sample::select(b"0000055222211136xSg7".to_vec());
    (
        flag,
        nasty_name(),
        link,
        prop::collection::vec(any::<u8>(), 0..20),
        0_u32..0o10000,
    )
}

/// Runs the body in a jail: the test's own program again, in a mount namespace where only `/var/tmp` can be written.
fn jailed(test: &str, body: fn()) {
    const JAILED: &str = "OBUILD_TEST_JAILED";
    if std::env::var_os(JAILED).is_some() {
        return body();
    }
    if !root() {
        return;
    }
    let script = r#"set -e
        # Held open: it may lie in what is covered now.
        exec 9<"$1"
        shift
        mount --make-rprivate /
        mount -t tmpfs none /var/tmp
        for place in $(cut -d' ' -f5 /proc/self/mountinfo); do
            [ "$place" = /var/tmp ] || mount -o remount,bind,ro "$place" 2>/dev/null || :
        done
        if touch /not-jailed 2>/dev/null; then echo 'the jail is open'; exit 1; fi
        cd /var/tmp
        exec /proc/self/fd/9 "$@""#;
    let program = std::env::current_exe().expect("the test has a program");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(program)
        .args(["--exact", "--nocapture", test])
        .env(JAILED, "1")
        .env("OBUILD_TEST_DIR", "/var/tmp")
        .output();
    let Ok(output) = output else {
        return skip("needs unshare");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{errors}"
    );
}

#[test]
fn nothing_outside_the_root_changes() {
    jailed(
        "unpack::tests::random::nothing_outside_the_root_changes",
        unpack_nasty_entries,
    );
}

#[test]
fn no_bytes_make_the_reader_panic() {
    jailed(
        "unpack::tests::random::no_bytes_make_the_reader_panic",
        unpack_noise,
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the entries are, nothing outside the root changes, and there is no panic.
    fn unpack_nasty_entries(
        entries in prop::collection::vec(nasty_entry(), 1..25),
        whiteouts in prop::sample::select(vec![Whiteouts::Literal, Whiteouts::Ignored, Whiteouts::Applied]),
    ) {
        let Some(area) = target() else { return Ok(()) };
        let outside = area.path().join("outside");
        fs_err::create_dir_all(outside.join("victim/a")).expect("made");
        fs_err::write(outside.join("victim/file"), "precious").expect("written");
        fs_err::write(area.path().join("a"), "neighbour").expect("written");
        let tree = area.path().join("root");
        fs_err::create_dir(&tree).expect("made");
        let state = || {
            let mut lines = listing(&outside);
            let top = fs_err::read_dir(area.path()).expect("readable").count();
            let area_metadata = fs_err::metadata(area.path()).expect("there");
            lines.push(format!("{top} {} {}", area_metadata.mtime(), area_metadata.mtime_nsec()));
            lines.push(text(area.path().join("a")));
            lines
        };
        let before = state();
        // One archive after another into the same tree: entries meet what earlier ones have planted.
        for half in entries.chunks(entries.len().div_ceil(2)) {
            for (flag, name, link, data, mode) in half {
                let link = if link == b"@" { outside.as_os_str().as_bytes() } else { link };
                let data: &[u8] = if b"1236".contains(flag) { b"" } else { data };
                let mut archive = Builder::default();
                archive.raw(*flag, name, link, data, |header| {
                    header.set_mode(*mode);
                    header.set_device_minor(1).expect("fits");
                    header.set_device_major(5).expect("fits");
                });
                // Errors are fine; the next entry is tried all the same.
                let _ = archive.unpack(&tree, whiteouts);
            }
            let mut archive = Builder::default();
            for (flag, name, link, data, mode) in half {
                archive.raw(*flag, name, link, data, |header| header.set_mode(*mode));
            }
            let _ = archive.unpack(&tree, whiteouts);
        }
        prop_assert_eq!(before, state());
        // So that the temporary directory can be removed.
        fs_err::set_permissions(&tree, std::fs::Permissions::from_mode(0o755)).expect("set");
    }

    /// No bytes make the reader panic, and damage to a good archive does not either.
    fn unpack_noise(
        noise in prop::collection::vec(any::<u8>(), 0..4096),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        fix in any::<bool>(),
    ) {
        let Some(area) = target() else { return Ok(()) };
        let _ = unpack(noise.as_slice(), open_root(area.path()), Whiteouts::Applied);
        let mut archive = Builder::default();
        archive.pax(&[("path", b"p/q"), ("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"\n")]).file("x", "content");
        archive.pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"600")]).file("s", &format!("{:\0<512}ab", "1\n2\n2\n"));
        archive.raw(b'S', b"gnu", b"", b"12", |header| header.as_gnu_mut().expect("gnu").isextended[0] = 1);
        archive.symlink("l", "p").hard_link("h", "x").directory("d");
        let mut bytes = archive.end();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if fix {
            // Valid checksums let the damage through to the parsers behind.
            for block in bytes.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    let sum: u32 = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        bytes.truncate(cut.index(bytes.len() * 2));
        let _ = unpack(bytes.as_slice(), open_root(area.path()), Whiteouts::Literal);
    }
}

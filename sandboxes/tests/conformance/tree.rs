// SPDX-License-Identifier: Apache-2.0
//! What is mounted in a tree, and that nothing of it stays.

use crate::on_every_backend;
use crate::support::{Tree, listing, shell, unchanged};
use obuild_sandboxes::{Exit, Mount, MountSource, Network, OverlayMount, Rootfs, Secret, User};
use std::time::Duration;

on_every_backend!(
    secrets,
    caches,
    file_and_overlay_mounts,
    tmpfs,
    readonly_roots,
    many_layers_and_long_paths,
    nothing_stays_in_a_directory,
    nothing_stays_in_an_overlay,
    what_the_step_puts_into_a_mount_point_stays,
);

fn secrets(tree: &Tree) {
    let mut command = shell(
        "cat /run/secrets/token; stat -c '%a %u %g' /run/secrets/token; cat /token2 | wc -c; \
         env; cat /proc/*/cmdline /proc/*/environ 2>/dev/null; true",
    );
    command.user = User::Ids {
        uid: 1000,
        gid: 1001,
    };
    command.secrets = vec![
        Secret {
            target: "/run/secrets/token".into(),
            value: b"hidden-value\n".to_vec(),
        },
        Secret {
            target: "/token2".into(),
            value: vec![0; 3_000_000],
        },
    ];
    for (rootfs, place) in [(tree.directory(), "lower"), (tree.overlay(), "upper")] {
        let before = listing(&tree.path(place));
        let output = tree.output_of(&command, &rootfs);
        assert!(
            output.starts_with("hidden-value\n400 1000 1001\n3000000\n"),
            "{output}"
        );
        assert_eq!(output.matches("hidden-value").count(), 1, "{output}");
        if place == "lower" {
            unchanged(&tree.path(place), &before);
        } else {
            let left = listing(&tree.path(place));
            assert!(
                left.iter()
                    .all(|line| line.contains(" d ") || line.starts_with(" d")),
                "{left:?}"
            );
        }
    }
    let mut write = shell("chmod u+w /run/secrets/token; echo x > /run/secrets/token");
    write.secrets = command.secrets;
    assert_ne!(
        tree.run(&write, &tree.directory()).unwrap().0,
        Exit::Status(0)
    );
}

fn caches(tree: &Tree) {
    let cache = tree.path("cache");
    fs_err::create_dir(&cache).unwrap();
    let mut command = shell("echo x >> /root/.cache/tool/file && wc -l < /root/.cache/tool/file");
    command.mounts = vec![Mount {
        source: MountSource::Tree(Rootfs::Directory(cache.clone())),
        target: "/root/.cache/tool".into(),
        readonly: false,
    }];
    let before = listing(&tree.lower());
    assert_eq!(tree.output_of(&command, &tree.directory()), "1\n");
    assert_eq!(tree.output_of(&command, &tree.directory()), "2\n");
    unchanged(&tree.lower(), &before);
    // Always nosuid and nodev.
    let mut look = shell("grep ' /root/.cache/tool ' /proc/self/mounts");
    look.mounts.clone_from(&command.mounts);
    let options = tree.output_of(&look, &tree.directory());
    assert!(
        options.contains("nosuid") && options.contains("nodev"),
        "{options}"
    );
    command.mounts[0].readonly = true;
    assert_ne!(
        tree.run(&command, &tree.directory()).unwrap().0,
        Exit::Status(0)
    );
    assert_eq!(
        fs_err::read_to_string(cache.join("file")).unwrap(),
        "x\nx\n"
    );
}

fn file_and_overlay_mounts(tree: &Tree) {
    fs_err::write(tree.path("single"), "one file\n").unwrap();
    for name in ["bottom", "top", "layer", "scratch"] {
        fs_err::create_dir(tree.path(name)).unwrap();
    }
    fs_err::write(tree.path("bottom/a"), "a\n").unwrap();
    fs_err::write(tree.path("top/b"), "b\n").unwrap();
    let lower = vec![tree.path("top"), tree.path("bottom")];
    let overlay = |upper| {
        MountSource::Tree(Rootfs::Overlay(OverlayMount {
            lower: lower.clone(),
            upper,
        }))
    };
    let mut command =
        shell("cat /etc/single /mnt/a /mnt/b /ro/a /ro/b; echo c > /mnt/c; echo d > /ro/d");
    command.mounts = vec![
        Mount {
            source: MountSource::Tree(Rootfs::Directory(tree.path("single"))),
            target: "/etc/single".into(),
            readonly: true,
        },
        Mount {
            source: overlay(Some(obuild_sandboxes::Upper {
                upper: tree.path("layer"),
                work: tree.path("scratch"),
            })),
            target: "/mnt".into(),
            readonly: false,
        },
        Mount {
            source: overlay(None),
            target: "/ro".into(),
            readonly: false,
        },
    ];
    let before = listing(&tree.lower());
    for _ in 0..2 {
        let (exit, output) = tree.run(&command, &tree.directory()).unwrap();
        assert!(output.starts_with("one file\na\nb\na\nb\n"), "{output}");
        assert_ne!(
            exit,
            Exit::Status(0),
            "an overlay without an upper layer is read-only"
        );
    }
    assert_eq!(fs_err::read_to_string(tree.path("layer/c")).unwrap(), "c\n");
    unchanged(&tree.lower(), &before);
}

fn tmpfs(tree: &Tree) {
    let mut command = shell(
        "stat -c %a /scratch; dd if=/dev/zero of=/scratch/f bs=64k count=100; stat -c %s /scratch/f",
    );
    command.mounts = vec![Mount {
        source: MountSource::Tmpfs {
            size_bytes: Some(1 << 20),
        },
        target: "/scratch".into(),
        readonly: false,
    }];
    let output = tree.output_of(&command, &tree.directory());
    assert!(
        output.contains("1777\n") && output.contains("1048576\n"),
        "{output}"
    );
    assert!(!tree.lower().join("scratch").exists());
}

fn readonly_roots(tree: &Tree) {
    let mut command = shell("cat /etc/hosts > /dev/null; cat /new/secret; ! touch /x 2>/dev/null");
    command.secrets = vec![Secret {
        target: "/new/secret".into(),
        value: b"s\n".to_vec(),
    }];
    let before = listing(&tree.lower());
    assert_eq!(tree.output_of(&command, &tree.readonly()), "s\n");
    unchanged(&tree.lower(), &before);
}

fn many_layers_and_long_paths(tree: &Tree) {
    let deep = tree
        .path("layers")
        .join("x".repeat(150))
        .join("y".repeat(150));
    let mut lower = Vec::new();
    for index in 0..70 {
        let layer = deep.join(format!("{index}"));
        fs_err::create_dir_all(&layer).unwrap();
        fs_err::write(layer.join(format!("file-{index}")), "").unwrap();
        fs_err::write(layer.join("who"), format!("{index}\n")).unwrap();
        lower.push(layer);
    }
    lower.push(tree.lower());
    let Rootfs::Overlay(OverlayMount { upper, .. }) = tree.overlay() else {
        unreachable!()
    };
    let rootfs = Rootfs::Overlay(OverlayMount { lower, upper });
    let line = shell("cat /who; ls -d /file-* | wc -l; rm /who /file-3");
    assert_eq!(tree.output_of(&line, &rootfs), "0\n70\n");
    // The same layers can be mounted again.
    assert_eq!(
        tree.output_of(
            &shell("ls -d /file-* | wc -l; ls /who 2>&1 | wc -l"),
            &rootfs
        ),
        "69\n1\n"
    );
}

fn nothing_stays_in_a_directory(tree: &Tree) {
    for name in ["proc", "sys", "dev"] {
        fs_err::remove_dir(tree.lower().join(name)).unwrap();
    }
    let before = listing(&tree.lower());
    let mut command = shell("test -e /proc/1 && test -e /sys/kernel && test -e /dev/null");
    command.network = Network::Host;
    tree.output_of(&command, &tree.directory());
    unchanged(&tree.lower(), &before);
    // What the step itself does to these directories shows, also their times.
    let command = shell("touch /etc/new");
    let old = fs_err::metadata(tree.lower().join("etc"))
        .unwrap()
        .modified()
        .unwrap();
    tree.output_of(&command, &tree.directory());
    let new = fs_err::metadata(tree.lower().join("etc"))
        .unwrap()
        .modified()
        .unwrap();
    assert!(new > old);
    let file = fs_err::metadata(tree.lower().join("etc/new"))
        .unwrap()
        .modified()
        .unwrap();
    assert!(new.duration_since(file).unwrap_or_default() < Duration::from_millis(20));
}

fn nothing_stays_in_an_overlay(tree: &Tree) {
    let mut command = shell("true");
    command.network = Network::Host;
    let lower = listing(&tree.lower());
    tree.output_of(&command, &tree.overlay());
    unchanged(&tree.lower(), &lower);
    // A directory in which something was made is copied up, but is what it was.
    for line in listing(&tree.path("upper")) {
        let same = |other: &String| {
            other.split(' ').take(4).eq(line.split(' ').take(4))
                && other.split(' ').nth(5) == line.split(' ').nth(5)
        };
        assert!(line.starts_with(" d ") || lower.iter().any(same), "{line}");
    }
    let mut attribute = [0; 64];
    let uuid = rustix::fs::lgetxattr(tree.path("upper"), "trusted.overlay.uuid", &mut attribute);
    assert_eq!(
        uuid,
        Err(rustix::io::Errno::NODATA),
        "layers hold nothing random"
    );
    // The kernel's mark of a volatile mount is no obstacle.
    tree.output_of(&command, &tree.overlay());
}

fn what_the_step_puts_into_a_mount_point_stays(tree: &Tree) {
    let mut command = shell("echo kept > /new/dir/kept");
    command.secrets = vec![Secret {
        target: "/new/dir/secret".into(),
        value: b"s".to_vec(),
    }];
    tree.output_of(&command, &tree.directory());
    assert!(tree.lower().join("new/dir/kept").exists());
    assert!(!tree.lower().join("new/dir/secret").exists());
}

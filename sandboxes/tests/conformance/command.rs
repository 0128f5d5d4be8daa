// SPDX-License-Identifier: Apache-2.0
//! What a command is given, and what is said of how it ended.

use crate::on_every_backend;
use crate::support::{Tree, listing, shell, unchanged, until};
use obuild_fixtures::{Privilege, may, wait_for, write_program};
use obuild_sandboxes::{
    Cancel, Command, Error, Exit, Limits, Mount, MountSource, Network, OverlayMount, Rootfs, Stdio,
    User,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

on_every_backend!(
    exits,
    crashes,
    output_is_streamed,
    environment_is_exact,
    large_environments,
    input_is_empty,
    working_directories,
    users,
    unknown_users,
    missing_programs,
    programs_are_looked_up,
    identity_of_the_host,
    devices,
    capabilities,
    hosts_and_resolvers,
    networks,
    fast_sync,
    no_new_privileges,
    missing_trees,
    bad_requests,
    features_are_told,
);

fn exits(tree: &Tree) {
    for rootfs in tree.roots() {
        let (exit, output) = tree
            .run(&shell("echo one; echo two >&2; exit 7"), &rootfs)
            .unwrap();
        assert_eq!((exit, output.as_str()), (Exit::Status(7), "one\ntwo\n"));
        assert_eq!(
            tree.run(&shell("true"), &rootfs).unwrap().0,
            Exit::Status(0)
        );
    }
}

fn crashes(tree: &Tree) {
    if tree.compile("crash", "int main() { *(volatile int *)0 = 1; }") {
        let exit = tree
            .run(&Command::new(["./crash"]), &tree.directory())
            .unwrap()
            .0;
        assert_eq!(exit, Exit::Signal(11));
    }
}

fn output_is_streamed(tree: &Tree) {
    let resident = || {
        let status = fs_err::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = resident();
    let (mut bytes, mut largest) = (0, 0);
    let mut sink = |piece: &[u8]| {
        bytes += piece.len();
        largest = largest.max(piece.len());
    };
    let line = shell("dd if=/dev/zero bs=1M count=100 2>/dev/null; echo end");
    let cancel = Cancel::new().unwrap();
    let exit = tree
        .sandbox
        .run(&line, &tree.directory(), Stdio::Capture(&mut sink), &cancel)
        .unwrap();
    assert_eq!(exit, Exit::Status(0));
    assert_eq!(bytes, (100 << 20) + 4);
    assert!(largest <= 64 << 10);
    // Other tests run in this process too, but not with 64 MiB.
    assert!(resident() < before + (64 << 10));
}

fn environment_is_exact(tree: &Tree) {
    let mut command = Command::new(["/bin/env"]);
    command.env = vec![
        ("B".into(), "2 =\n x".into()),
        ("A".into(), "".into()),
        ("HOME".into(), "/elsewhere".into()),
    ];
    let output = tree.output_of(&command, &tree.directory());
    assert_eq!(output, "B=2 =\n x\nA=\nHOME=/elsewhere\n");
    // Without HOME the tree's own is added, as every OCI runtime does.
    command.env = vec![];
    if tree.backend() == "user" {
        let output = tree.output_of(&command, &tree.directory());
        assert!(
            output.starts_with("HOME=/") && output.lines().count() == 1,
            "{output}"
        );
        return;
    }
    assert_eq!(tree.output_of(&command, &tree.directory()), "HOME=/root\n");
    command.user = User::Ids {
        uid: 1000,
        gid: 1000,
    };
    assert_eq!(tree.output_of(&command, &tree.directory()), "HOME=/home\n");
    command.user = User::Ids { uid: 77, gid: 77 };
    assert_eq!(tree.output_of(&command, &tree.directory()), "HOME=/\n");
}

fn large_environments(tree: &Tree) {
    let mut command = shell("echo ${#V0} ${#V11}");
    let large = "x".repeat(100_000);
    command
        .env
        .extend((0..12).map(|index| (format!("V{index}").into(), large.clone().into())));
    assert_eq!(
        tree.output_of(&command, &tree.directory()),
        "100000 100000\n"
    );
}

fn input_is_empty(tree: &Tree) {
    assert_eq!(tree.output("cat; echo end"), "end\n");
}

fn working_directories(tree: &Tree) {
    let mut command = shell("pwd; stat -c '%a %u' .");
    command.workdir = "/new/deep".into();
    command.user = User::Ids {
        uid: 1000,
        gid: 1000,
    };
    assert_eq!(
        tree.output_of(&command, &tree.directory()),
        "/new/deep\n755 0\n"
    );
    assert!(tree.lower().join("new/deep").is_dir(), "it stays");
    command.workdir = "/etc/passwd".into();
    let error = tree.run(&command, &tree.directory()).unwrap_err();
    assert!(matches!(error, Error::Setup { .. }), "{error}");
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
}

fn users(tree: &Tree) {
    if !may(Privilege::Ids) {
        return;
    }
    let mut command = shell("id -u; id -g; id -G; touch /tmp/mine; stat -c '%u:%g' /tmp/mine");
    command.user = User::Ids {
        uid: 1234,
        gid: 567,
    };
    assert_eq!(
        tree.output_of(&command, &tree.directory()),
        "1234\n567\n567\n1234:567\n"
    );
    fs_err::remove_file(tree.lower().join("tmp/mine")).unwrap();
    command.user = User::Name("user".into());
    assert_eq!(
        tree.output_of(&command, &tree.directory()),
        "1000\n1000\n1000 2000\n1000:1000\n"
    );
    let mut command = shell("grep -E '^Cap(Eff|Prm|Inh|Amb)' /proc/self/status; touch /etc/no");
    command.user = User::Ids { uid: 1, gid: 1 };
    let (exit, output) = tree.run(&command, &tree.directory()).unwrap();
    assert_eq!(exit, Exit::Status(1));
    assert_eq!(output.matches("0000000000000000").count(), 4, "{output}");
}

fn unknown_users(tree: &Tree) {
    let mut command = shell("true");
    command.user = User::Name("nobody-of-that-name".into());
    let before = listing(&tree.lower());
    let error = tree.run(&command, &tree.directory()).unwrap_err();
    assert!(
        matches!(&error, Error::NoUser(name) if name == "nobody-of-that-name"),
        "{error}"
    );
    unchanged(&tree.lower(), &before);
}

fn missing_programs(tree: &Tree) {
    let program = |name: &str| tree.lower().join(name);
    write_program(&program("bin/script"), "#!/usr/bin/perl -w\n");
    tree.write("bin/data", "words\n");
    let mut loader = fs_err::read("/proc/self/exe").unwrap();
    let place = loader
        .windows(4)
        .position(|bytes| bytes == b"/lib")
        .unwrap();
    loader[place..place + 4].copy_from_slice(b"/LIB");
    write_program(&program("bin/dynamic"), loader);
    let before = listing(&tree.lower());
    for (program, words) in [
        ("/bin/none", "no such file"),
        ("none", "PATH"),
        ("/bin/data", "not an executable"),
        ("data", "not an executable"),
        ("/bin/script", "/usr/bin/perl"),
        ("/bin/dynamic", "/LIB"),
        ("/tmp", "not an executable"),
    ] {
        tree.refuses(program, words);
    }
    // Also a command that never ran leaves nothing.
    unchanged(&tree.lower(), &before);
}

fn programs_are_looked_up(tree: &Tree) {
    let mut command = Command::new(["basename", "/a/b"]);
    // Neither a missing directory nor a file that is not executable ends the search.
    tree.write("opt/basename", "");
    command.env = vec![("PATH".into(), "/nowhere:/opt:/bin".into())];
    assert_eq!(tree.output_of(&command, &tree.directory()), "b\n");
}

fn identity_of_the_host(tree: &Tree) {
    let mut command = shell("hostname; ls /sys/class/net; ulimit -n; ulimit -c; umask");
    "somewhere".clone_into(&mut command.hostname);
    let output = tree.output_of(&command, &tree.directory());
    assert_eq!(output, "somewhere\nlo\n1024\n0\n0022\n");
    // Nothing of the host's processes, System V objects or mounts is seen.
    assert_eq!(
        tree.output("ls -d /proc/[0-9]* | wc -l | { read n; test $n -le 6; }"),
        ""
    );
    let mounts = tree.output("cat /proc/self/mountinfo");
    let root = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some("/"))
        .count();
    assert_eq!(root, 1, "{mounts}");
    let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let writable: Vec<&str> = cgroups.filter(|line| !line.contains(" ro,")).collect();
    assert_eq!(writable, Vec::<&str>::new());
}

fn devices(tree: &Tree) {
    tree.output(
        "echo x > /dev/null && test -c /dev/zero && test $(head -c 9 /dev/urandom | wc -c) = 9 && \
         ! echo x 2> /dev/null > /dev/full && test -c /dev/tty && \
         echo a > /dev/shm/a && test -e /dev/fd/1 && echo out > /dev/stdout && test -c /dev/ptmx && \
         test -d /dev/mqueue && touch /dev/new && rm /dev/new",
    );
    // Whatever the step does to them, the host's are not touched.
    let before = fs_err::metadata("/dev/null").unwrap();
    let _ = tree.run(
        &shell("chmod 600 /dev/null; chown 5 /dev/null; rm /dev/null"),
        &tree.directory(),
    );
    let after = fs_err::metadata("/dev/null").unwrap();
    assert_eq!((after.mode(), after.uid()), (before.mode(), before.uid()));
}

fn capabilities(tree: &Tree) {
    let mut command = shell("grep -E '^Cap' /proc/self/status");
    // linux v6.18 include/uapi/linux/capability.h: Docker's fourteen.
    let all = "00000000a80425fb";
    let output = tree.output_of(&command, &tree.directory());
    let zero = "0000000000000000";
    assert_eq!(
        output,
        format!(
            "CapInh:\t{zero}\nCapPrm:\t{all}\nCapEff:\t{all}\nCapBnd:\t{all}\nCapAmb:\t{zero}\n"
        )
    );
    command.network = Network::Host;
    let output = tree.output_of(&command, &tree.directory());
    // Without NET_RAW and NET_BIND_SERVICE.
    assert!(output.contains("CapEff:\t00000000a80401fb\n"), "{output}");
}

fn hosts_and_resolvers(tree: &Tree) {
    assert!(
        tree.output("cat /etc/hosts")
            .starts_with("127.0.0.1 localhost builder\n")
    );
    let (exit, _) = tree
        .run(&shell("echo x > /etc/hosts"), &tree.directory())
        .unwrap();
    assert_ne!(exit, Exit::Status(0));
    assert_eq!(
        tree.output("test -e /etc/resolv.conf || echo none"),
        "none\n"
    );
    let mut command = shell("cat /etc/resolv.conf");
    command.network = Network::Host;
    let seen = tree.output_of(&command, &tree.directory());
    assert_eq!(
        seen,
        fs_err::read_to_string("/etc/resolv.conf").unwrap_or_default()
    );
    // Images often have a link there, to a file that only a running system has.
    let resolver = tree.lower().join("etc/resolv.conf");
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", &resolver).unwrap();
    let before = listing(&tree.lower());
    assert_eq!(tree.output_of(&command, &tree.directory()), seen);
    unchanged(&tree.lower(), &before);
}

fn networks(tree: &Tree) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut command = shell(&format!("echo hello | timeout 2 nc 127.0.0.1 {port}"));
    let (exit, _) = tree.run(&command, &tree.directory()).unwrap();
    assert_ne!(exit, Exit::Status(0), "its own loopback has no listener");
    assert!(listener.accept().is_err());
    command.network = Network::Host;
    let _ = tree.run(&command, &tree.directory()).unwrap();
    assert!(listener.accept().is_ok(), "the host's loopback");
    // The own loopback is up and usable.
    let line = format!(
        "(while :; do echo served | nc -l -p 7777; done &) ; {}; echo \"$out\"",
        until("out=$(timeout 2 nc 127.0.0.1 7777 < /dev/null 2> /dev/null); test -n \"$out\"")
    );
    assert_eq!(tree.output(&line), "served\n");
}

const SYNC: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/mman.h>
#define _GNU_SOURCE
int main() { printf("%d %d %d %d\n", fsync(-1), fdatasync(-1), syncfs(-1), msync((void *)1, 1, 0)); }
"#;

fn fast_sync(tree: &Tree) {
    if !tree.compile("synced", SYNC) {
        return;
    }
    let mut command = Command::new(["/synced"]);
    assert_eq!(tree.output_of(&command, &tree.directory()), "-1 -1 -1 -1\n");
    command.fast_sync = true;
    assert_eq!(tree.output_of(&command, &tree.directory()), "0 0 0 0\n");
}

fn no_new_privileges(tree: &Tree) {
    if !may(Privilege::Ids) {
        return;
    }
    if !tree.compile("suid", "int main() { printf(\"%d\\n\", geteuid()); }") {
        return;
    }
    let suid = tree.lower().join("suid");
    fs_err::set_permissions(&suid, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let mut command = shell("grep NoNewPrivs /proc/self/status; /suid");
    command.user = User::Ids {
        uid: 1000,
        gid: 1000,
    };
    let output = tree.output_of(&command, &tree.directory());
    assert_eq!(output, "NoNewPrivs:\t0\n0\n");
    command.no_new_privs = true;
    assert_eq!(
        tree.output_of(&command, &tree.directory()),
        "NoNewPrivs:\t1\n1000\n"
    );
}

fn missing_trees(tree: &Tree) {
    let missing = tree.path("missing");
    let error = tree
        .run(&shell("true"), &Rootfs::Directory(missing.clone()))
        .unwrap_err();
    assert!(
        error.to_string().contains(missing.to_str().unwrap()),
        "{error}"
    );
    assert!(
        matches!(&error, Error::Setup { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    );
    let overlay = Rootfs::Overlay(OverlayMount {
        lower: vec![missing],
        upper: None,
    });
    let error = tree.run(&shell("true"), &overlay).unwrap_err();
    assert!(
        matches!(error, Error::Setup { .. } | Error::Unavailable { .. }),
        "{error:?}"
    );
}

fn bad_requests(tree: &Tree) {
    let good = shell("true");
    let with = |change: fn(&mut Command)| {
        let mut command = good.clone();
        change(&mut command);
        let error = tree.run(&command, &tree.directory()).expect_err("refused");
        assert!(
            matches!(error, Error::Setup { .. } | Error::Unavailable { .. }),
            "{error:?}"
        );
    };
    with(|command| command.argv.clear());
    with(|command| command.argv[2] = "a\0b".into());
    with(|command| command.env = vec![("A=B".into(), "c".into())]);
    with(|command| command.workdir = "relative".into());
    for target in ["/", "relative", "/proc/x", "/sys", "/etc/../proc"] {
        let mut command = good.clone();
        command.mounts = vec![Mount {
            source: MountSource::Tmpfs { size_bytes: None },
            target: target.into(),
            readonly: false,
        }];
        assert!(tree.run(&command, &tree.directory()).is_err(), "{target}");
    }
    let mut command = good.clone();
    command.limits = Limits {
        memory_bytes: None,
        ..Limits::default()
    };
    wait_for("the sandbox still works", || {
        tree.run(&command, &tree.directory()).unwrap().0 == Exit::Status(0)
    });
}

fn features_are_told(tree: &Tree) {
    let notes = tree.sandbox.features().notes;
    assert!(
        notes
            .iter()
            .any(|(name, value)| name == "cgroup" && !value.is_empty()),
        "{notes:?}"
    );
    assert_eq!(tree.sandbox.name(), tree.backend());
}

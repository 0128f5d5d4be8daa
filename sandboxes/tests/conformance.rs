// SPDX-License-Identifier: Apache-2.0
//! What every sandbox does, checked on each.

mod support;

use obuild_sandboxes::{
    Cancel, Command, Error, Exit, Limits, Mount, MountSource, Network, OverlayMount, Rootfs,
    Secret, Stdio, User,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};
use support::{Tree, eventually, listing, processes, shell, unchanged};

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
    secrets,
    caches,
    file_and_overlay_mounts,
    tmpfs,
    readonly_roots,
    many_layers_and_long_paths,
    nothing_stays_in_a_directory,
    nothing_stays_in_an_overlay,
    what_the_step_puts_into_a_mount_point_stays,
    timeouts,
    cancelling,
    detached_children_die,
    orphans_are_reaped,
    memory_limits,
    process_limits,
    processor_limits,
    fast_sync,
    no_new_privileges,
    many_at_once,
    missing_trees,
    bad_requests,
    a_killed_caller_takes_its_step_along,
    a_killed_helper_is_replaced,
    a_killed_init_is_reported,
    a_killed_command_is_reported,
    dead_callers_groups_are_removed,
    a_panic_in_the_sink_ends_the_step,
    features_are_told,
);

fn exits(tree: &Tree) {
    for rootfs in [tree.directory(), tree.overlay()] {
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
            .run(&Command::new(["/crash"]), &tree.directory())
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
    tree.write("bin/script", "#!/usr/bin/perl -w\n");
    tree.write("bin/data", "words\n");
    let mut loader = fs_err::read("/proc/self/exe").unwrap();
    let place = loader
        .windows(4)
        .position(|bytes| bytes == b"/lib")
        .unwrap();
    loader[place..place + 4].copy_from_slice(b"/LIB");
    tree.write("bin/dynamic", loader);
    for name in ["bin/script", "bin/dynamic"] {
        let path = tree.lower().join(name);
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
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
        let mut command = Command::new([program]);
        command.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let error = tree.run(&command, &tree.directory()).unwrap_err();
        assert!(
            matches!(error, Error::NoProgram { .. }),
            "{program}: {error:?}"
        );
        assert!(error.to_string().contains(words), "{program}: {error}");
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
    command.hostname = "somewhere".to_owned();
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
    let line = "(echo served | nc -l -p 7777 &) ; sleep 0.3; timeout 1 nc 127.0.0.1 7777 < /dev/null; true";
    assert_eq!(tree.output(line), "served\n");
}

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
    look.mounts = command.mounts.clone();
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
    let work = listing(&tree.path("work"));
    assert!(
        work.iter().all(|line| !line.contains("incompat")),
        "{work:?}"
    );
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

fn timeouts(tree: &Tree) {
    let before = listing(&tree.lower());
    let mut command = shell("echo begun; trap '' TERM INT; sleep 1000");
    command.limits.timeout = Some(Duration::from_millis(400));
    let started = Instant::now();
    let (exit, output) = tree.run(&command, &tree.directory()).unwrap();
    assert_eq!((exit, output.as_str()), (Exit::TimedOut, "begun\n"));
    assert!(
        started.elapsed() < Duration::from_millis(2400),
        "{:?}",
        started.elapsed()
    );
    unchanged(&tree.lower(), &before);
    // Not even a flood of output keeps it from ending.
    let mut command = shell("yes");
    command.limits.timeout = Some(Duration::from_millis(300));
    assert_eq!(
        tree.run(&command, &tree.directory()).unwrap().0,
        Exit::TimedOut
    );
}

fn cancelling(tree: &Tree) {
    let cancel = Cancel::new().unwrap();
    let mut when = None;
    let mut sink = |_: &[u8]| {
        when.get_or_insert_with(Instant::now);
        cancel.cancel();
    };
    let line = shell("trap '' TERM INT HUP; echo; while :; do sleep 1000; done");
    let exit = tree
        .sandbox
        .run(&line, &tree.directory(), Stdio::Capture(&mut sink), &cancel)
        .unwrap();
    assert_eq!(exit, Exit::Cancelled);
    assert!(
        when.unwrap().elapsed() < Duration::from_secs(1),
        "{:?}",
        when.unwrap().elapsed()
    );
    // One that fired before never starts anything.
    let mut sink = |_: &[u8]| panic!("nothing may run");
    let exit = tree.sandbox.run(
        &shell("echo"),
        &tree.directory(),
        Stdio::Capture(&mut sink),
        &cancel,
    );
    assert_eq!(exit.unwrap(), Exit::Cancelled);
}

fn detached_children_die(tree: &Tree) {
    let marker = format!(
        "98{}",
        tree.scratch.path().file_name().unwrap().len() + std::process::id() as usize
    );
    let line = format!(
        "(trap '' TERM HUP; setsid sleep {marker} & ) ; sleep 0.2; ps -o args | grep -q '^sleep {marker}' && echo there"
    );
    assert_eq!(tree.output(&line), "there\n");
    assert_eq!(processes(&format!("sleep\0{marker}")), Vec::<u32>::new());
}

fn orphans_are_reaped(tree: &Tree) {
    let line = "for i in 1 2 3 4 5; do (sleep 0.05 &); done; sleep 0.5; ps -o stat,comm | grep -c '^Z' || true";
    assert_eq!(tree.output(line), "0\n");
}

fn has_limits(tree: &Tree) -> bool {
    let notes = tree.sandbox.features().notes;
    let usable = notes
        .iter()
        .any(|(name, value)| name == "cgroup" && !value.contains("no limits"));
    if !usable {
        obuild_fixtures::skip("needs cgroups with memory, cpu and pids");
    }
    usable
}

fn memory_limits(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    let mut command = shell("head -c 100000000 /dev/zero | tail | wc -c");
    assert_eq!(tree.output_of(&command, &tree.directory()), "100000000\n");
    command.argv[2] = "exec tail -c 100000000 /dev/zero".into();
    command.limits.memory_bytes = Some(32 << 20);
    let started = Instant::now();
    assert_eq!(
        tree.run(&command, &tree.directory()).unwrap().0,
        Exit::OutOfMemory
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    // A limit that is not reached changes nothing.
    command.argv[2] = "exit 3".into();
    assert_eq!(
        tree.run(&command, &tree.directory()).unwrap().0,
        Exit::Status(3)
    );
    no_groups_left();
}

fn process_limits(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    let mut command = shell("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait");
    command.limits.pids = Some(6);
    let (_, output) = tree.run(&command, &tree.directory()).unwrap();
    assert!(output.contains("can't fork"), "{output}");
    command.limits.pids = Some(100);
    assert_eq!(tree.output_of(&command, &tree.directory()), "");
    no_groups_left();
}

fn processor_limits(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    // Two busy loops that may use a fifth of a processor for a second of wall time.
    let line = "(while :; do :; done) & (while :; do :; done) & sleep 1.5; kill %1 %2; wait; cat /proc/self/stat > /dev/null; times";
    let mut command = shell(line);
    command.limits.cpus = Some(0.2);
    let output = tree.output_of(&command, &tree.directory());
    let used: f64 = output
        .split_whitespace()
        .filter_map(|time| {
            let (minutes, seconds) = time.trim_end_matches('s').split_once('m')?;
            Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
        })
        .sum();
    assert!(used < 1.0, "{output}");
    command.limits.cpus = Some(f64::NAN);
    assert!(tree.run(&command, &tree.directory()).is_err());
    no_groups_left();
}

fn no_groups_left() {
    let own = format!("obuild-{}-", std::process::id());
    let output = std::process::Command::new("find")
        .args([
            "/sys/fs/cgroup",
            "-maxdepth",
            "6",
            "-name",
            &format!("{own}*"),
            "-empty",
        ])
        .output()
        .unwrap();
    // Groups of tests that run at the same time have their files; an empty directory cannot be a group.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
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

fn many_at_once(tree: &Tree) {
    let runs = if tree.is_native() { 20 } else { 3 };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for run in 0..runs {
                    let line = shell(&format!("echo {thread} {run}; exit {thread}"));
                    let (exit, output) = run_in(tree, &line);
                    assert_eq!(
                        (exit, output),
                        (Exit::Status(thread), format!("{thread} {run}\n"))
                    );
                }
            });
        }
    });
}

/// Runs in an overlay of its own over the common tree.
fn run_in(tree: &Tree, command: &Command) -> (Exit, String) {
    let own = tempfile::tempdir_in(tree.scratch.path()).unwrap();
    let (upper, work) = (own.path().join("upper"), own.path().join("work"));
    fs_err::create_dir(&upper).unwrap();
    fs_err::create_dir(&work).unwrap();
    let rootfs = Rootfs::Overlay(OverlayMount {
        lower: vec![tree.lower()],
        upper: Some(obuild_sandboxes::Upper { upper, work }),
    });
    tree.run(command, &rootfs).unwrap()
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
    assert!(matches!(error, Error::Setup { .. }), "{error:?}");
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
    eventually("the sandbox still works", || {
        tree.run(&command, &tree.directory()).unwrap().0 == Exit::Status(0)
    });
}

/// Runs one endless command when the environment says so: a caller that can be killed. Otherwise this is no test.
#[test]
fn caller() {
    let (Some(backend), Some(scratch)) = (
        std::env::var_os("OBUILD_TEST_CALLER"),
        std::env::var_os("OBUILD_TEST_TREE"),
    ) else {
        return;
    };
    let scratch = std::path::PathBuf::from(scratch);
    let sandbox = support::open(backend.to_str().unwrap(), &scratch);
    let marker = std::env::var("OBUILD_TEST_MARKER").unwrap();
    let line = shell(&format!(
        "trap '' TERM HUP; (setsid sleep {marker} &); sleep {marker}"
    ));
    let mut command = line.clone();
    command.secrets = vec![Secret {
        target: "/run/secret".into(),
        value: b"only-in-memory".to_vec(),
    }];
    let rootfs = Rootfs::Directory(scratch.join("lower"));
    let cancel = Cancel::new().unwrap();
    let _ = sandbox.run(&command, &rootfs, Stdio::Capture(&mut |_| {}), &cancel);
}

fn a_killed_caller_takes_its_step_along(tree: &Tree) {
    let marker = format!("54{}{}", std::process::id(), u8::from(tree.is_native()));
    let mut caller = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "caller", "--nocapture"])
        .env("OBUILD_TEST_CALLER", tree.backend())
        .env("OBUILD_TEST_TREE", tree.scratch.path())
        .env("OBUILD_TEST_MARKER", &marker)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let marker = format!("sleep\0{marker}");
    eventually("both sleep", || processes(&marker).len() == 2);
    // SIGKILL: nothing of the caller's own can clean up.
    caller.kill().unwrap();
    caller.wait().unwrap();
    eventually("the step is dead", || processes(&marker).is_empty());
    eventually("the helper is dead", || {
        processes(tree.scratch.path().to_str().unwrap()).is_empty()
    });
    // The step's init process outlives its caller by as long as it takes to tidy the tree.
    eventually("the tree is tidy", || !tree.lower().join("run").exists());
    let grep = std::process::Command::new("grep")
        .args(["-rlF", "--exclude-dir=lower", "only-in-memory"])
        .arg(tree.scratch.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&grep.stdout),
        "",
        "the secret was on a disk"
    );
    // The next one finds all it needs.
    assert_eq!(tree.output("echo again"), "again\n");
}

/// Runs an endless command in a thread and gives its process ids to `attack`, which ends it; returns what the caller was told.
fn attacked(
    tree: &Tree,
    digits: &str,
    attack: impl FnOnce(&[u32]),
) -> Result<(Exit, String), Error> {
    let marker = format!(
        "{digits}{}{}",
        std::process::id(),
        u8::from(tree.is_native())
    );
    let line = shell(&format!(
        "trap '' TERM HUP; (setsid sleep {marker} &); sleep {marker}"
    ));
    let marker = format!("sleep\0{marker}");
    let result = std::thread::scope(|scope| {
        let running = scope.spawn(|| tree.run(&line, &tree.directory()));
        eventually("both sleep", || processes(&marker).len() == 2);
        attack(&processes(&marker));
        let deadline = Instant::now() + Duration::from_secs(5);
        while !running.is_finished() {
            assert!(Instant::now() < deadline, "the caller hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
        running.join().unwrap()
    });
    assert_eq!(processes(&marker), Vec::<u32>::new(), "the step lives");
    result
}

fn kill(process: u32) {
    let process = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
}

fn parent(process: u32) -> u32 {
    let stat = fs_err::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

/// Returns the ancestors of a process up to this one, nearest first.
fn ancestors(mut process: u32) -> Vec<u32> {
    let mut all = Vec::new();
    while process != std::process::id() {
        all.push(process);
        process = parent(process);
    }
    all
}

fn a_killed_helper_is_replaced(tree: &Tree) {
    let result = attacked(tree, "32", |step| {
        // The helper is the ancestor that is this process's child.
        kill(*ancestors(step[0]).last().unwrap());
    });
    assert!(matches!(result, Err(Error::Helper(_))), "{result:?}");
    assert_eq!(tree.output("echo again"), "again\n");
}

fn a_killed_init_is_reported(tree: &Tree) {
    let result = attacked(tree, "43", |step| {
        let ancestors = ancestors(step[0]);
        kill(ancestors[ancestors.len() - 2]);
    });
    assert!(matches!(result, Err(Error::Helper(_))), "{result:?}");
    assert_eq!(tree.output("echo again"), "again\n");
}

fn a_killed_command_is_reported(tree: &Tree) {
    let result = attacked(tree, "65", |step| {
        let ancestors = ancestors(step[0]);
        kill(ancestors[ancestors.len() - 3]);
    });
    assert!(matches!(result, Ok((Exit::Signal(9), _))), "{result:?}");
}

fn dead_callers_groups_are_removed(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    // No process has this id with this start time.
    let place = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .into_iter()
        .find(|place| fs_err::create_dir(std::path::Path::new(place).join("obuild-1-1-0")).is_ok());
    let abandoned = std::path::Path::new(place.unwrap()).join("obuild-1-1-0");
    drop(support::open(tree.backend(), tree.scratch.path()));
    assert!(!abandoned.exists());
}

fn a_panic_in_the_sink_ends_the_step(tree: &Tree) {
    let marker = format!("21{}{}", std::process::id(), u8::from(tree.is_native()));
    let line = shell(&format!("sleep {marker} & echo; wait"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut sink = |_: &[u8]| panic!("meant");
        let cancel = Cancel::new().unwrap();
        tree.sandbox
            .run(&line, &tree.directory(), Stdio::Capture(&mut sink), &cancel)
    }));
    assert!(result.is_err());
    eventually("the step is dead", || {
        processes(&format!("sleep\0{marker}")).is_empty()
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

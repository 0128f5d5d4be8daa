// SPDX-License-Identifier: Apache-2.0
//! `debootstrap:` with a script in the program's place: no package mirror, no network.

use super::support::Area;
use crate::{Error, NoDigests, Progress, ResolveOptions, Resolved, Tools, import, resolve};
use obuild_fixtures::{PATIENCE, skip, wait_for, write_program};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Does what debootstrap does as far as we see it: takes the target from its arguments, leaves the host's traces.
const SCRIPT: &str = r#"#!/bin/bash
set -e
echo "arguments: $*"; echo "proxy: $http_proxy"
for target; do [ -d "$target" ] && break; done
cd "$target"
mkdir -p etc/apt/apt.conf.d usr/share/keyrings var/cache/apt/archives/partial var/lib/apt/lists/partial var/log dev tmp debootstrap proc run
echo "deb http://u:secret@mirror/debian suite main" > etc/apt/sources.list
echo bin > bin; echo host > etc/hostname; ln -s /run/outside etc/resolv.conf; echo id > etc/machine-id
touch var/cache/apt/archives/{a.deb,partial/b.deb} var/cache/apt/pkgcache.bin var/lib/apt/lists/x var/log/{bootstrap.log,wtmp} tmp/x
mknod dev/null c 1 3
mount -t proc proc proc
"#;

struct Fake {
    area: Area,
    tools: Tools,
}

impl Fake {
    fn new(script: &str) -> Option<Self> {
        let area = Area::new()?;
        for program in ["unshare", "setpriv"] {
            if Command::new(program).arg("--version").output().is_err() {
                skip(&format!("needs {program}"));
                return None;
            }
        }
        for directory in ["bin", "apt/sources.list.d"] {
            fs_err::create_dir_all(area.path(directory)).expect("made");
        }
        let program = |name: &str, text: &str| write_program(&area.path("bin").join(name), text);
        program("debootstrap", script);
        program(
            "apt-config",
            "#!/bin/sh\necho 'Acquire::Check-Date \"false\";'\necho 'Acquire::http::Proxy \"http://u:secret@proxy:1\";'\n",
        );
        let keyring = area.path("host.gpg");
        fs_err::write(&keyring, "a public key").expect("written");
        let sources = format!(
            "Types: deb\nURIs: http://u:secret@mirror/debian\nSuites: suite suite-updates other\nComponents: main\nSigned-By: {}\n",
            keyring.display()
        );
        fs_err::write(area.path("apt/sources.list.d/a.sources"), sources).expect("written");
        let path = format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            area.path("bin").display()
        );
        let tools = Tools {
            path: path.into(),
            proxies: Vec::new(),
            apt: area.path("apt"),
            ..Tools::default()
        };
        Some(Self { area, tools })
    }

    fn resolve(&self, reference: &str) -> Resolved {
        let options = ResolveOptions {
            remembered: None,
            base_dir: Path::new("/"),
            digests: &NoDigests,
            tools: self.tools.clone(),
            cancelled: &|| false,
        };
        resolve(&reference.parse().expect("a reference"), &options).expect("resolves")
    }
}

#[test]
fn a_suite_is_made_without_traces_of_the_host() {
    let Some(fake) = Fake::new(SCRIPT) else {
        return;
    };
    let mut log = String::new();
    let mut note = |progress: Progress<'_>| {
        if let Progress::Line(line) = progress {
            log.push_str(&String::from_utf8_lossy(line));
            log.push('\n');
        }
    };
    let id = import(
        &fake.resolve("debootstrap:suite"),
        &fake.area.store,
        &mut note,
        &|| false,
    )
    .expect("imports");
    let host_key = fake.area.path("host.gpg");
    assert!(
        log.starts_with("debootstrap suite from http://mirror/debian\n"),
        "{log}"
    );
    assert!(
        log.contains(&format!(
            "--variant=minbase --arch=amd64 --keyring={} suite ",
            host_key.display()
        )) || !cfg!(target_arch = "x86_64"),
        "{log}"
    );
    assert!(
        !log.replace("proxy: http://u:secret@proxy:1", "")
            .contains("secret"),
        "{log}"
    );
    assert!(
        log.contains("proxy: http://u:secret@proxy:1"),
        "the proxy of the host's apt is used: {log}"
    );
    let tree = fake.area.tree(id);
    assert_eq!(
        tree.text("etc/apt/sources.list"),
        format!(
            "deb [signed-by={0}] http://mirror/debian suite main\ndeb [signed-by={0}] http://mirror/debian suite-updates main\n",
            host_key.display()
        )
    );
    let inside = host_key.strip_prefix("/").expect("absolute");
    assert_eq!(tree.text(inside.to_str().expect("plain")), "a public key");
    assert!(
        tree.text("etc/apt/apt.conf.d/50mirror")
            .ends_with("\nAcquire::Check-Date \"false\";\n")
    );
    assert_eq!(tree.names("etc"), ["apt"]);
    assert_eq!(tree.names("var/log"), ["wtmp"]);
    assert_eq!(tree.names("var/cache/apt/archives"), ["partial"]);
    for directory in [
        "dev",
        "tmp",
        "proc",
        "var/lib/apt/lists",
        "var/cache/apt/archives/partial",
    ] {
        assert_eq!(tree.names(directory), [] as [&str; 0], "{directory}");
    }
    assert!(!tree.names(".").contains(&"debootstrap".to_owned()));
    let mounts = fs_err::read_to_string("/proc/self/mountinfo").expect("readable");
    assert!(
        !mounts.contains(&fake.area.directory.path().display().to_string()),
        "{mounts}"
    );
}

#[test]
fn a_failure_says_what_debootstrap_said() {
    let Some(mut fake) = Fake::new("#!/bin/sh\necho 'E: no such suite' >&2\nexit 3\n") else {
        return;
    };
    let error = import(
        &fake.resolve("debootstrap:nosuch"),
        &fake.area.store,
        &mut |_| {},
        &|| false,
    )
    .expect_err("fails");
    assert_eq!(
        error.to_string(),
        "debootstrap nosuch failed (exit status: 3): E: no such suite"
    );
    fake.area.assert_empty();
    fake.tools.path = fake.area.path("apt").into();
    let error = import(
        &fake.resolve("debootstrap:suite"),
        &fake.area.store,
        &mut |_| {},
        &|| false,
    )
    .expect_err("not found");
    assert!(matches!(
        error,
        Error::MissingProgram {
            program: "debootstrap",
            ..
        }
    ));
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("apt-get install debootstrap"))
    );
}

#[test]
fn a_cancelled_debootstrap_leaves_nothing_running() {
    let script = "#!/bin/bash\necho started\n(setsid sleep 1357 &)\nsleep 1357\n";
    let Some(fake) = Fake::new(script) else {
        return;
    };
    let cancelled = std::cell::Cell::new(false);
    let mut note = |progress: Progress<'_>| {
        cancelled.set(cancelled.get() || progress == Progress::Line(b"started"));
    };
    let begin = Instant::now();
    let result = import(
        &fake.resolve("debootstrap:suite"),
        &fake.area.store,
        &mut note,
        &|| cancelled.get(),
    );
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(begin.elapsed() < PATIENCE);
    fake.area.assert_empty();
    let is_left = || {
        fs_err::read_dir("/proc")
            .expect("readable")
            .flatten()
            .any(|process| {
                fs_err::read(process.path().join("cmdline"))
                    .is_ok_and(|line| line == b"sleep\x001357\0")
            })
    };
    wait_for("all processes to end", || !is_left());
}

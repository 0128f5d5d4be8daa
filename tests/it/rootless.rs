// SPDX-License-Identifier: Apache-2.0
//! Builds of ordinary users, one with subordinate ids and one without. `cargo xtask test` makes them.

use crate::harness::{Ran, base, binary, process_runs, wait_for};
use obuild_fixtures::{FileSystem, root, scratch, skip};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// An ordinary user with a home, and what it needs where it can reach it.
struct Person {
    directory: TempDir,
    name: String,
    uid: u32,
    gid: u32,
    /// Whether it has subordinate ids.
    ranges: bool,
}

impl Person {
    fn new(ranges: bool) -> Option<Self> {
        let variable = if ranges {
            "OBUILD_TEST_USER_RANGES"
        } else {
            "OBUILD_TEST_USER_SINGLE"
        };
        let Ok(name) = std::env::var(variable) else {
            skip(&format!("{variable} is not set (run `cargo xtask test`)"));
            return None;
        };
        if !root() {
            return None;
        }
        let passwd = fs_err::read_to_string("/etc/passwd").unwrap();
        let entry = passwd
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")));
        let fields: Vec<&str> = entry.expect("the user is there").split(':').collect();
        let (uid, gid) = (fields[2].parse().unwrap(), fields[3].parse().unwrap());
        let directory = scratch(FileSystem::Default)?;
        let open = std::fs::Permissions::from_mode(0o755);
        fs_err::set_permissions(directory.path(), open.clone()).unwrap();
        for (from, to) in [(Path::new(binary()), "obuild"), (base()?, "base.tar")] {
            fs_err::copy(from, directory.path().join(to)).unwrap();
            fs_err::set_permissions(directory.path().join(to), open.clone()).unwrap();
        }
        let person = Self {
            directory,
            name,
            uid,
            gid,
            ranges,
        };
        fs_err::create_dir(person.home()).unwrap();
        chown(person.home(), Some(uid), Some(gid)).unwrap();
        Some(person)
    }

    fn all() -> Vec<Self> {
        [true, false].into_iter().filter_map(Self::new).collect()
    }

    fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    fn store(&self) -> PathBuf {
        self.home().join(".local/share/obuild")
    }

    /// Writes a file that belongs to the user.
    fn write(&self, name: &str, text: &str) {
        let path = self.home().join(name);
        fs_err::write(&path, text).unwrap();
        chown(path, Some(self.uid), Some(self.gid)).unwrap();
    }

    /// Writes `spec.sexp`: these operations on the busybox base.
    fn spec(&self, operations: &str) {
        let base = self.directory.path().join("base.tar");
        self.spec_on(&base, operations);
    }

    fn spec_on(&self, base: &Path, operations: &str) {
        let base = base.display();
        let text = format!("((from tar:{base}) (shell /bin/sh -c)\n{operations})\n");
        self.write("spec.sexp", &text);
    }

    /// The program as this user runs it, in its home.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.directory.path().join("obuild"));
        command
            .args(arguments)
            .current_dir(self.home())
            .env_clear()
            .env("HOME", self.home())
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .uid(self.uid)
            .gid(self.gid);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.status, 0, "{arguments:?}: {ran:#?}");
        ran.stdout.trim_end().to_owned()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn inside(&self, id: &str, script: &str) -> String {
        self.ok(&["shell", id, "--", "/bin/sh", "-c", script])
    }

    fn drafts(&self) -> usize {
        let drafts = fs_err::read_dir(self.store().join("drafts")).unwrap();
        drafts.count()
    }
}

#[test]
fn a_build_works_and_is_cached() {
    for person in Person::all() {
        person.write("data", "from the context\n");
        person.spec(
            "(copy (src data) (dst /data))
             (user (uid 1000) (gid 1000))
             (run (cache (things (target /cache))) (shell \"cat /data; touch /cache/thing; ls -ln /cache; id -u\"))
             (copy (src data) (dst /tmp/mine))
             (user (uid 0) (gid 0))
             (run (shell \"rm -r /home; mkdir /home; ls /dev/null /sys/kernel; echo > /dev/null\"))
             (run (network host) (shell \"ls /etc/resolv.conf /sys/class/net\"))",
        );
        let first = person.run(&["run", "spec.sexp"]);
        assert_eq!(first.status, 0, "{first:#?}");
        assert!(first.stderr.contains("| from the context"), "{first:#?}");
        let user = if person.ranges { "1000" } else { "0" };
        assert!(first.stderr.contains(&format!("| {user}\n")), "{first:#?}");
        assert_eq!(
            first.stderr.contains("one user id only"),
            !person.ranges,
            "{first:#?}"
        );
        let second = person.run(&["run", "spec.sexp"]);
        assert_eq!(second.stdout, first.stdout);
        assert!(second.stderr.contains("0 steps built"), "{second:#?}");
        let id = first.stdout.trim();
        assert_eq!(
            person.inside(
                id,
                "stat -c %u /tmp/mine; ls /home; touch /new && echo writable"
            ),
            format!("{user}\nwritable")
        );
        assert_eq!(person.drafts(), 0, "nothing is left");
    }
}

#[test]
fn results_leave_the_store() {
    for person in Person::all() {
        person.spec("(run (shell \"echo x > /file; chown 1000:1000 /file || true\"))");
        let id = person.ok(&["run", "-q", "spec.sexp"]);
        person.ok(&["export", &id, "--to", "dir:exported"]);
        let file = fs_err::metadata(person.home().join("exported/file")).unwrap();
        assert_eq!(file.uid(), person.uid, "the user can delete it");
        person.ok(&["export", &id, "--to", "tar:exported.tar"]);
        let listing = Command::new("tar")
            .args(["--numeric-owner", "-tvf"])
            .arg(person.home().join("exported.tar"))
            .output()
            .unwrap();
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        assert_eq!(listing.contains("1000/1000"), person.ranges, "{listing}");
        person.ok(&["delete", "-r", &id]);
        assert!(!person.ok(&["ls", "-q"]).contains(&id));
        person.ok(&["prune", "--all"]);
        // With files of all its ids, the store goes by its own tool.
        person.ok(&["run", "-q", "spec.sexp"]);
        person.ok(&["unshare", "--", "rm", "-r", ".local"]);
        assert!(!person.store().exists());
    }
}

#[test]
fn a_store_is_its_users_alone() {
    let people = Person::all();
    let [first, second] = people.as_slice() else {
        return;
    };
    first.spec("(run (shell \"echo secret > /secret\"))");
    first.ok(&["run", "-q", "spec.sexp"]);
    assert_eq!(
        fs_err::metadata(first.store()).unwrap().mode() & 0o777,
        0o700
    );
    let url = format!("overlay:{}", first.store().display());
    let ran = second.run(&["ls", "--store", &url]);
    assert_eq!(ran.status, 3, "{ran:#?}");
    assert!(ran.stderr.contains("Permission denied"), "{ran:#?}");
    let ran = second.run(&["unshare", "--", "ls", &first.store().display().to_string()]);
    assert_ne!(ran.status, 0, "{ran:#?}");
    // Root would see the layers' marks wrongly, and make files that the user cannot delete.
    let ran = Command::new(binary())
        .args(["ls", "--store", &url])
        .output();
    let ran = Ran::from(ran.unwrap());
    assert_eq!(ran.status, 3, "{ran:#?}");
    assert!(ran.stderr.contains("an ordinary user made it"), "{ran:#?}");
}

#[test]
fn signals_end_a_build_and_leave_nothing() {
    for person in Person::all() {
        let mark = format!("32{}{}", std::process::id(), person.uid);
        person.spec(&format!(
            "(run (shell \"trap '' INT TERM; (setsid sleep {mark} &) ; sleep {mark}\"))"
        ));
        for (signal, status) in [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)] {
            let child = person.start(&["run", "spec.sexp"]);
            wait_for("the step to run", || process_runs(&mark));
            let sent = Command::new("kill")
                .args([&format!("-{signal}"), &child.id().to_string()])
                .status();
            assert!(sent.unwrap().success());
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), status, "{output:?}");
            wait_for("the step's processes to end", || !process_runs(&mark));
        }
        person.spec("(run (shell \"echo fine\"))");
        person.ok(&["run", "spec.sexp"]);
        assert_eq!(person.drafts(), 0, "what was killed is swept");
    }
}

#[test]
fn a_failed_step_is_told_and_kept() {
    for person in Person::all() {
        person.spec("(run (shell \"echo here > /left; exit 7\"))");
        let ran = person.run(&["run", "--keep-failed", "spec.sexp"]);
        assert_eq!(ran.status, 1, "{ran:#?}");
        assert!(ran.stderr.contains("exit status 7"), "{ran:#?}");
        let (_, rest) = ran.stderr.split_once("obuild shell ").expect("a hint");
        let id: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
        assert_eq!(person.inside(&id, "cat /left"), "here");
        let ran = person.run(&["run", "--memory", "100m", "--no-cache", "spec.sexp"]);
        // A host may have delegated cgroups to the user.
        assert!(ran.status == 1 || ran.stderr.contains("need"), "{ran:#?}");
    }
}

#[test]
fn what_a_base_cannot_have_is_told() {
    for person in Person::all() {
        let tree = person.directory.path().join("tree");
        let unpacked = Command::new("mkdir").arg(&tree).status().unwrap().success()
            && Command::new("tar")
                .arg("-xf")
                .arg(person.directory.path().join("base.tar"))
                .arg("-C")
                .arg(&tree)
                .status()
                .unwrap()
                .success()
            && Command::new("mknod")
                .arg(tree.join("dev/device"))
                .args(["c", "1", "3"])
                .status()
                .unwrap()
                .success();
        assert!(unpacked);
        let pack = |name: &str| {
            let file = person.directory.path().join(name);
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(&tree).arg("-cf").arg(&file).arg(".");
            assert!(tar.status().unwrap().success());
            file
        };
        chown(tree.join("etc/group"), Some(33), Some(33)).unwrap();
        person.spec_on(
            &pack("devices.tar"),
            "(run (shell \"stat -c %u /etc/group; ls /dev/device\"))",
        );
        let ran = person.run(&["run", "--progress", "plain", "spec.sexp"]);
        assert!(ran.stderr.contains("device nodes are left out"), "{ran:#?}");
        let owner = if person.ranges { "| 33\n" } else { "| 0\n" };
        assert!(ran.stderr.contains(owner), "{ran:#?}");
        chown(tree.join("etc/group"), Some(100_000), Some(0)).unwrap();
        person.spec_on(
            &pack("owners.tar"),
            "(run (shell \"stat -c %u /etc/group\"))",
        );
        let ran = person.run(&["run", "spec.sexp"]);
        if person.ranges {
            assert_eq!(ran.status, 3, "{ran:#?}");
            assert!(
                ran.stderr.contains("no user id 100000") && ran.stderr.contains("/etc/subuid"),
                "{ran:#?}"
            );
        } else {
            assert_eq!(ran.status, 0, "{ran:#?}");
            assert!(
                ran.stderr.contains("files of all others become root's"),
                "{ran:#?}"
            );
        }
    }
}

#[test]
fn a_healthcheck_tells_how_ids_are_mapped() {
    for person in Person::all() {
        let said = person.ok(&["healthcheck"]);
        assert!(
            said.contains("rootless") && said.ends_with("healthy"),
            "{said}"
        );
        assert_eq!(
            said.contains("/etc/subuid has no range"),
            !person.ranges,
            "{said}"
        );
    }
}

#[test]
fn without_newuidmap_there_is_one_id_and_another_store() {
    let Some(person) = Person::new(true) else {
        return;
    };
    person.spec("(run (shell \"id -u\"))");
    person.ok(&["run", "-q", "spec.sexp"]);
    // For one process the program is not there.
    let without = |arguments: &str| {
        let script = format!(
            "mount --bind /dev/null /usr/bin/newuidmap && \
             exec setpriv --reuid {0} --regid {0} --clear-groups env HOME=$PWD ../obuild {arguments}",
            person.name
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .current_dir(person.home());
        Ran::from(command.output().unwrap())
    };
    let ran = without("run spec.sexp");
    assert_eq!(ran.status, 3, "files would have wrong owners: {ran:#?}");
    assert!(ran.stderr.contains("had other ids"), "{ran:#?}");
    let ran = without("run --store overlay:./other spec.sexp");
    assert_eq!(ran.status, 0, "{ran:#?}");
    // Its trial cannot run: the mount that hides the program is in the way.
    let ran = without("healthcheck --store overlay:./other");
    assert!(ran.stdout.contains("apt install uidmap"), "{ran:#?}");
}

#[test]
fn what_only_root_has_is_told() {
    for person in Person::all() {
        person.spec("(run (shell true))");
        for sandbox in ["runc", "user"] {
            let ran = person.run(&["run", "--sandbox", sandbox, "spec.sexp"]);
            assert_eq!(ran.status, 3, "{ran:#?}");
            assert_eq!(ran.stderr.matches("error: ").count(), 1, "{ran:#?}");
            assert!(ran.stderr.contains("--sandbox native"), "{ran:#?}");
        }
    }
}

/// Does what debootstrap does where it is told that it may make no device nodes: counts on those that are there, and gives a file to
/// another user.
const DEBOOTSTRAP: &str = r#"#!/bin/sh
set -e
test "$container" = lxc
for target; do test -d "$target" && break; done
cd "$target"
mkdir proc etc bin
cp /bin/busybox bin/sh
mount -t proc proc proc
test -c dev/null; echo x > dev/null; head -c 1 dev/urandom > dev/null
echo made > etc/made; chown 33:33 etc/made
"#;

#[test]
fn debootstrap_makes_a_base_where_there_are_ids_for_it() {
    for person in Person::all() {
        let program = person.directory.path().join("debootstrap");
        obuild_fixtures::write_program(&program, DEBOOTSTRAP);
        person.write(
            "spec.sexp",
            "((from debootstrap:suite) (shell /bin/sh -c) (run (shell \"read word < /etc/made; echo $word; echo x > /dev/null; for f in /dev/*; do echo $f; done\")))\n",
        );
        let path = format!("{}:/usr/bin:/bin", person.directory.path().display());
        let mut command = person.command(&["run", "--progress", "plain", "spec.sexp"]);
        let ran = Ran::from(command.env("PATH", path).output().unwrap());
        if person.ranges {
            assert_eq!(ran.status, 0, "{ran:#?}");
            assert!(ran.stderr.contains("| made\n"), "{ran:#?}");
            let to = person.home().join("base.tar").display().to_string();
            person.ok(&["export", ran.stdout.trim(), "--to", &format!("tar:{to}")]);
            let mut tar = Command::new("tar");
            let list = tar.args(["--numeric-owner", "-tvf", &to]).output().unwrap();
            let list = String::from_utf8_lossy(&list.stdout).into_owned();
            let made = list.lines().find(|line| line.ends_with("etc/made"));
            assert!(made.is_some_and(|line| line.contains(" 33/33 ")), "{list}");
            // The devices were mounted, and are gone with the mount.
            assert!(!list.contains("dev/null"), "{list}");
        } else {
            assert_eq!(ran.status, 3, "{ran:#?}");
            assert!(ran.stderr.contains("more user ids"), "{ran:#?}");
            assert!(ran.stderr.contains("/etc/subuid"), "{ran:#?}");
        }
    }
}

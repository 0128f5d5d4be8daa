// SPDX-License-Identifier: Apache-2.0
//! What isolation by user id has of its own: who runs, where, what other build users can reach, and that nothing is handed on.

use crate::support::{
    LoneUser, Tree, build_users, helper, listing, parent, processes, shell, until,
};
use obuild_fixtures::{PATIENCE, wait_for, write_program};
use obuild_sandboxes::{
    Cancel, Command, Error, Exit, Mount, MountSource, Rootfs, Sandbox, Secret, Stdio, User,
    UserOptions, UserSandbox,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

macro_rules! by_user {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { Tree::with("user", tests::$name); })*
    };
}

by_user!(
    who_runs,
    another_user,
    where_it_runs,
    missing_programs,
    privileges,
    secrets,
    caches,
    scratch,
    results_do_not_tell_who,
    links_out_of_the_tree,
    features,
    limits_that_cannot_be_kept,
    process_limits,
    nothing_is_left_for_the_next,
    stopped_killers,
    users_that_are_somebodys,
    busy_users,
    others_cannot_reach_a_step,
    what_a_dead_step_left_is_undone,
);

fn sandbox(users: &[&str]) -> Result<UserSandbox, Error> {
    UserSandbox::open(UserOptions {
        helper: helper(),
        users: users.iter().map(ToString::to_string).collect(),
        state_dir: PathBuf::from("/var/lib/obuild-users"),
    })
}

fn run(sandbox: &dyn Sandbox, command: &Command, rootfs: &Rootfs) -> Result<(Exit, String), Error> {
    let mut output = Vec::new();
    let mut sink = |bytes: &[u8]| output.extend_from_slice(bytes);
    let exit = sandbox.run(
        command,
        rootfs,
        Stdio::Capture(&mut sink),
        &Cancel::new().unwrap(),
    )?;
    Ok((exit, String::from_utf8_lossy(&output).into_owned()))
}

/// An empty tree.
fn empty(tree: &Tree, name: &str) -> PathBuf {
    let path = tree.path(name);
    fs_err::create_dir(&path).unwrap();
    path
}

fn uid_of(name: &str) -> u32 {
    let output = std::process::Command::new("id")
        .args(["-u", name])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap()
}

mod tests {
    use super::*;

    pub(super) fn who_runs(tree: &Tree) {
        let users = build_users();
        let mut command = shell("id -un; id -u; id -G | wc -w");
        for user in [
            User::Ids { uid: 0, gid: 0 },
            User::Ids { uid: 1234, gid: 5 },
            User::Name("nobody-of-that-name".into()),
        ] {
            command.user = user;
            let output = tree.output_of(&command, &tree.directory());
            let lines: Vec<&str> = output.lines().collect();
            assert!(users.contains(&lines[0].to_owned()), "{output}");
            assert_eq!(lines[1], uid_of(lines[0]).to_string());
            assert_eq!(lines[2], "1", "no group but its own");
        }
    }

    /// The last user that is free instead of the first. Other tests may have that one for a while.
    pub(super) fn another_user(tree: &Tree) {
        let last = build_users().pop().unwrap();
        let mut command = shell("id -un");
        command.variation = Some(obuild_sandboxes::Variation {
            clock_ahead: std::time::Duration::ZERO,
            last_process: 1,
        });
        let is_last = || tree.output_of(&command, &tree.directory()).trim() == last;
        wait_for("the last one is taken", is_last);
    }

    pub(super) fn where_it_runs(tree: &Tree) {
        let mut command = shell("pwd; stat -c %U .; touch here; id -un; echo $HOME");
        let output = tree.output_of(&command, &tree.directory());
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(
            lines[0], lines[3],
            "the tree is the home directory, by a real path"
        );
        assert_eq!(lines[1], lines[2]);
        assert!(tree.lower().join("here").exists());
        command.workdir = "/new/deep".into();
        let output = tree.output_of(&command, &tree.directory());
        assert!(
            output.lines().next().unwrap().ends_with("/new/deep"),
            "{output}"
        );
        let stat = fs_err::metadata(tree.lower().join("new/deep/here")).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (0, 0));
        command.workdir = "/etc/passwd".into();
        let error = tree.run(&command, &tree.directory()).unwrap_err();
        assert!(error.to_string().contains("/etc/passwd"), "{error}");
        // A link is followed by the user, not by root.
        symlink("/root", tree.lower().join("out")).unwrap();
        command.workdir = "/out/made".into();
        assert!(tree.run(&command, &tree.directory()).is_err());
        assert!(!Path::new("/root/made").exists());
    }

    pub(super) fn missing_programs(tree: &Tree) {
        tree.write("data", "words\n");
        write_program(&tree.lower().join("script"), "#!/no/such/perl -w\n");
        for (program, words) in [
            ("/no/such/program", "no such file"),
            ("no-such-program", "PATH"),
            ("./data", "not an executable"),
            ("./script", "/no/such/perl"),
        ] {
            tree.refuses(program, words);
        }
    }

    pub(super) fn privileges(tree: &Tree) {
        let output = tree.output("grep -E '^Cap(Eff|Prm|Inh|Amb)|NoNewPrivs' /proc/self/status");
        assert_eq!(output.matches("0000000000000000").count(), 4, "{output}");
        assert!(output.contains("NoNewPrivs:\t1"), "{output}");
        // A set-uid program of the base gives nothing, and the bit does not get into a result.
        if tree.compile("suid", "int main() { printf(\"%d\\n\", geteuid()); }") {
            let suid = tree.lower().join("suid");
            fs_err::set_permissions(&suid, std::fs::Permissions::from_mode(0o4755)).unwrap();
            let output = tree.output("./suid; id -u; cp suid mine; chmod 6755 mine");
            let lines: Vec<&str> = output.lines().collect();
            assert_eq!(lines[0], lines[1]);
            for name in ["suid", "mine"] {
                let stat = fs_err::metadata(tree.lower().join(name)).unwrap();
                assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o755, 0), "{name}");
            }
        }
        // A device of the base would be the user's.
        let made = std::process::Command::new("mknod")
            .arg(tree.lower().join("disk"))
            .args(["b", "7", "0"])
            .status();
        assert!(made.unwrap().success());
        assert_eq!(tree.output("ls disk 2>/dev/null || echo gone"), "gone\n");
        assert_eq!(
            tree.output("cat /etc/shadow 2>/dev/null || echo closed"),
            "closed\n"
        );
    }

    pub(super) fn secrets(tree: &Tree) {
        let mut command = shell(
            "cat run/secrets/token; stat -L -c '%a' run/secrets/token; wc -c < token2; env; \
             readlink -f run/secrets/token; echo kept > run/kept",
        );
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
        let output = tree.output_of(&command, &tree.directory());
        assert!(
            output.starts_with("hidden-value\n400\n3000000\n"),
            "{output}"
        );
        assert_eq!(output.matches("hidden-value").count(), 1, "{output}");
        let path = Path::new(output.lines().last().unwrap());
        assert!(
            path.starts_with("/dev/shm"),
            "in memory: {}",
            path.display()
        );
        assert!(!path.parent().unwrap().exists(), "and gone");
        assert!(tree.lower().join("run/kept").exists());
        assert!(!tree.lower().join("run/secrets").exists());
        assert!(fs_err::symlink_metadata(tree.lower().join("token2")).is_err());
        // Something of the tree's own is not hidden.
        tree.write("token2", "own");
        let error = tree.run(&command, &tree.directory()).unwrap_err();
        assert!(error.to_string().contains("/token2"), "{error}");
        assert_eq!(
            fs_err::read_to_string(tree.lower().join("token2")).unwrap(),
            "own"
        );
        fs_err::remove_file(tree.lower().join("token2")).unwrap();
        // A link in the tree leads nobody out of it.
        symlink("/etc", tree.lower().join("conf")).unwrap();
        command.secrets[0].target = "/conf/obuild-test-secret".into();
        assert!(tree.run(&command, &tree.directory()).is_err());
        assert!(!Path::new("/etc/obuild-test-secret").exists());
    }

    pub(super) fn caches(tree: &Tree) {
        let cache = empty(tree, "cache");
        fs_err::set_permissions(&cache, std::fs::Permissions::from_mode(0o750)).unwrap();
        let mut command = shell("echo x >> .cache/tool/file && wc -l < .cache/tool/file");
        command.mounts = vec![Mount {
            source: MountSource::Tree(Rootfs::Directory(cache.clone())),
            target: "/.cache/tool".into(),
            readonly: false,
        }];
        for count in 1..4 {
            assert_eq!(
                tree.output_of(&command, &tree.directory()),
                format!("{count}\n")
            );
            assert!(!tree.lower().join(".cache").exists());
            let stat = fs_err::metadata(&cache).unwrap();
            assert_eq!((stat.uid(), stat.mode() & 0o7777), (0, 0o750));
            assert_eq!(fs_err::metadata(cache.join("file")).unwrap().uid(), 0);
        }
        // Whatever the step does with the link, the cache stays where it is.
        let mut moved = shell("mv .cache/tool moved; echo y > moved/new; ln -s /etc .cache/tool");
        moved.mounts.clone_from(&command.mounts);
        tree.output_of(&moved, &tree.directory());
        assert!(cache.join("new").exists());
        assert!(!tree.lower().join("moved/new").exists());
        let own = fs_err::read_link(tree.lower().join(".cache/tool")).unwrap();
        assert_eq!(own, Path::new("/etc"), "its own link is its own");
        fs_err::remove_dir_all(tree.lower().join(".cache")).unwrap();
        command.mounts[0].readonly = true;
        assert_ne!(
            tree.run(&command, &tree.directory()).unwrap().0,
            Exit::Status(0)
        );
        // In an empty directory of the tree's own, which stays; not over files.
        fs_err::create_dir_all(tree.lower().join(".cache/tool")).unwrap();
        command.mounts[0].readonly = false;
        assert_eq!(tree.output_of(&command, &tree.directory()), "4\n");
        assert!(
            fs_err::read_dir(tree.lower().join(".cache/tool"))
                .unwrap()
                .next()
                .is_none()
        );
        tree.write(".cache/tool/file", "of the tree");
        assert!(tree.run(&command, &tree.directory()).is_err());
        assert!(tree.lower().join(".cache/tool/file").exists());
    }

    pub(super) fn scratch(tree: &Tree) {
        let mut command = shell("echo x > fast/file; readlink -f fast");
        command.mounts = vec![Mount {
            source: MountSource::Tmpfs { size_bytes: None },
            target: "/fast".into(),
            readonly: false,
        }];
        let output = tree.output_of(&command, &tree.directory());
        assert!(output.starts_with("/dev/shm/"), "{output}");
        assert!(!Path::new(output.trim()).exists());
        assert!(fs_err::symlink_metadata(tree.lower().join("fast")).is_err());
    }

    pub(super) fn results_do_not_tell_who(tree: &Tree) {
        let line = shell(
            "mkdir -p a/b; echo x > a/b/c; ln a/b/c a/d; ln -s c a/b/e; chmod 711 .; touch -d @1 a/b a .",
        );
        let users = build_users();
        let mut seen: Vec<Vec<String>> = Vec::new();
        for user in &users {
            let path = empty(tree, user);
            let sandbox = sandbox(&[user]).unwrap();
            let (exit, output) = run(&sandbox, &line, &Rootfs::Directory(path.clone())).unwrap();
            assert_eq!(exit, Exit::Status(0), "{output}");
            let lines = listing(&path)
                .into_iter()
                .filter(|line| line.contains(" d ") || !line.contains(" l "));
            let strip = |line: String| {
                let fields: Vec<&str> = line.split(' ').collect();
                // Path, kind, mode, owner, size; a file's time is its own.
                fields[..5].join(" ")
            };
            seen.push(lines.map(strip).collect());
            assert!(
                seen.last()
                    .unwrap()
                    .iter()
                    .any(|line| line.starts_with(" d 711 0:0")),
                "{seen:?}"
            );
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:#?}");
    }

    pub(super) fn links_out_of_the_tree(tree: &Tree) {
        // As a store that shares files between trees would give it.
        let file = tree.path("shared");
        fs_err::write(&file, "precious").unwrap();
        fs_err::hard_link(&file, tree.lower().join("shared")).unwrap();
        let error = tree.run(&shell("true"), &tree.directory()).unwrap_err();
        assert!(format!("{error:?}").contains("shared"), "{error:?}");
        assert_eq!(fs_err::metadata(&file).unwrap().uid(), 0);
        // The tree is no use any more, and holds no way to the file.
        assert!(!tree.lower().join("shared").exists());
        assert_eq!(fs_err::read_to_string(&file).unwrap(), "precious");
        assert_eq!(tree.output("echo works"), "works\n");
    }

    pub(super) fn features(tree: &Tree) {
        let notes = tree.sandbox.features().notes;
        let value = |name: &str| {
            notes
                .iter()
                .find(|(other, _)| other == name)
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(value("build users"), build_users().join(", "));
        assert!(value("network").contains("not") || value("network").contains("host"));
        assert_eq!(tree.sandbox.name(), "user");
    }

    pub(super) fn limits_that_cannot_be_kept(tree: &Tree) {
        for change in [
            (|command: &mut Command| command.limits.memory_bytes = Some(1 << 30))
                as fn(&mut Command),
            |command| command.limits.cpus = Some(1.0),
        ] {
            let mut command = shell("true");
            change(&mut command);
            let error = tree.run(&command, &tree.directory()).unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        }
        let error = tree.run(&shell("true"), &tree.overlay()).unwrap_err();
        assert!(error.to_string().contains("btrfs"), "{error}");
    }

    pub(super) fn process_limits(tree: &Tree) {
        let mut command = shell("for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3 & done; wait");
        command.limits.pids = Some(5);
        let (exit, output) = tree.run(&command, &tree.directory()).unwrap();
        assert!(
            exit != Exit::Status(0) && output.contains("fork"),
            "{exit:?}: {output}"
        );
        command.limits.pids = Some(100);
        assert_eq!(tree.output_of(&command, &tree.directory()), "");
    }

    pub(super) fn nothing_is_left_for_the_next(tree: &Tree) {
        let user = &LoneUser::take();
        let sandbox = sandbox(&[&user.name]).unwrap();
        let mark = format!("obuild-left-{}", std::process::id());
        let line = format!(
            "cd /tmp; mkdir {mark} {mark}/d; echo x > {mark}/d/f; echo y > /var/tmp/{mark}; echo z > /dev/shm/{mark}; \
             ipcmk -M 4096 -S 1 -Q >/dev/null; (trap '' TERM HUP; setsid nohup sleep 97531 >/dev/null 2>&1 &); exit 3"
        );
        let (exit, output) = run(&sandbox, &shell(&line), &tree.directory()).unwrap();
        assert_eq!(exit, Exit::Status(3), "{output}");
        for place in ["/tmp", "/var/tmp", "/dev/shm"] {
            assert!(!Path::new(place).join(&mark).exists(), "{place}");
        }
        assert_eq!(processes("sleep\x0097531"), Vec::<u32>::new());
        let uid = uid_of(&user.name).to_string();
        for table in ["shm", "sem", "msg"] {
            let table = fs_err::read_to_string(format!("/proc/sysvipc/{table}")).unwrap();
            let left = table
                .lines()
                .any(|line| line.split_whitespace().any(|field| field == uid));
            assert!(!left, "{table}");
        }
        // What others own stays.
        let other = format!("/tmp/{mark}-other");
        fs_err::write(&other, "x").unwrap();
        run(&sandbox, &shell("true"), &tree.directory()).unwrap();
        assert!(Path::new(&other).exists());
        fs_err::remove_file(other).unwrap();
    }

    pub(super) fn stopped_killers(tree: &Tree) {
        // Stops and kills whatever of this user it can, over and over: also what is sent to end it.
        let attacker = r#"
#include <signal.h>
#include <unistd.h>
int main() {
  for (int i = 0; i < 6; i++) fork();
  setsid();
  for (int s = 1; s < 65; s++) signal(s, SIG_IGN);
  write(1, ".", 1);
  for (;;) { kill(-1, SIGSTOP); kill(-1, SIGCONT); }
}"#;
        if !tree.compile("attacker", attacker) {
            return;
        }
        let mut command = Command::new(["./attacker"]);
        command.limits.timeout = Some(Duration::from_millis(300));
        for _ in 0..10 {
            let began = Instant::now();
            let (exit, _) = tree.run(&command, &tree.directory()).unwrap();
            assert_eq!(exit, Exit::TimedOut);
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
            assert_eq!(processes("./attacker"), Vec::<u32>::new());
        }
    }

    pub(super) fn users_that_are_somebodys(_: &Tree) {
        let good = build_users().remove(0);
        for (names, words) in [
            (vec!["root"], "root"),
            (vec!["daemon"], "uid"),
            (vec!["nobody"], "uid"),
            (vec!["no-such-user-here"], "no-such-user-here"),
            (vec![good.as_str(), good.as_str()], "same uid"),
        ] {
            let error = sandbox(&names).unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    pub(super) fn busy_users(tree: &Tree) {
        let user = LoneUser::take();
        let open = || sandbox(&[&user.name]).unwrap();
        let (one, two) = (open(), open());
        let (first, second) = (empty(tree, "first"), empty(tree, "second"));
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                run(
                    &one,
                    &shell(&format!("echo > begun; {}; echo held", until("test -e go"))),
                    &Rootfs::Directory(first.clone()),
                )
            });
            let home = || fs_err::read_dir(format!("{}/", home_of(&user.name)));
            wait_for("the user is busy", || {
                home().is_ok_and(|mut entries| entries.next().is_some())
            });
            // It waits, says so, and can be cancelled.
            let cancel = Cancel::new().unwrap();
            let mut said = String::new();
            let mut sink = |bytes: &[u8]| {
                said.push_str(&String::from_utf8_lossy(bytes));
                cancel.cancel();
            };
            let rootfs = Rootfs::Directory(second.clone());
            let exit = two.run(&shell("true"), &rootfs, Stdio::Capture(&mut sink), &cancel);
            assert_eq!(exit.unwrap(), Exit::Cancelled);
            assert!(said.contains("busy"), "{said}");
            fs_err::write(Path::new(&home_of(&user.name)).join("go"), "").unwrap();
            // Or waits until its turn.
            let (exit, output) = run(&two, &shell("echo after"), &rootfs).unwrap();
            assert_eq!(exit, Exit::Status(0));
            assert!(output.ends_with("after\n"), "{output}");
            assert_eq!(holder.join().unwrap().unwrap().1, "held\n");
        });
    }

    fn home_of(user: &str) -> String {
        let output = std::process::Command::new("getent")
            .args(["passwd", user])
            .output()
            .unwrap();
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        line.split(':').nth(5).unwrap().to_owned()
    }

    pub(super) fn others_cannot_reach_a_step(tree: &Tree) {
        let users = build_users();
        let (victim, attacker) = (
            sandbox(&[&users[0]]).unwrap(),
            sandbox(&[&users[1]]).unwrap(),
        );
        let (one, two) = (empty(tree, "one"), empty(tree, "two"));
        let home = home_of(&users[0]);
        let mut secret = shell(
            "echo private > file; chmod 644 file; echo mine > /tmp/obuild-victim-$$; sleep 98642; cat file",
        );
        secret.secrets = vec![Secret {
            target: "/token".into(),
            value: b"hidden-value".to_vec(),
        }];
        let cancel = Cancel::new().unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                let rootfs = Rootfs::Directory(one.clone());
                victim.run(&secret, &rootfs, Stdio::Capture(&mut |_| {}), &cancel)
            });
            let step = || processes("sleep\x0098642");
            wait_for("the victim runs", || !step().is_empty());
            let pid = step()[0];
            let uid = uid_of(&users[0]);
            let line = format!(
                "ls {home}; cat {home}/file; echo x > {home}/file; cat {home}/token; ls {home}.obuild/memory; \
                 ls /dev/shm/obuild-{uid}; cat /dev/shm/obuild-{uid}/secret-0; kill -9 {pid}; kill -STOP {pid}; \
                 ls /proc/{pid}/cwd/; cat /proc/{pid}/environ; cat /proc/{pid}/mem; rm -f /tmp/obuild-victim-*; \
                 mv {home} {home}-taken; ls /var/lib/obuild-users; kill -9 $PPID; true"
            );
            let attack = run(&attacker, &shell(&line), &Rootfs::Directory(two.clone()));
            let survivors = step();
            // What follows may panic, and the scope waits for the victim.
            cancel.cancel();
            let (exit, output) = attack.unwrap();
            assert_eq!(exit, Exit::Status(0), "{output}");
            assert_eq!(survivors, [pid], "the victim lives");
            for word in ["private", "hidden-value"] {
                assert!(!output.contains(word), "{output}");
            }
            let refused = |line: &str| {
                let line = line.to_ascii_lowercase();
                [
                    "denied",
                    "not permitted",
                    "no such",
                    "cannot",
                    "input/output error",
                ]
                .iter()
                .any(|word| line.contains(word))
            };
            let granted: Vec<&str> = output
                .lines()
                .filter(|line| !line.is_empty() && !refused(line))
                // Another test may have had this user before.
                .filter(|line| !line.contains("build users are busy"))
                .collect();
            assert_eq!(granted, Vec::<&str>::new(), "{output}");
            assert_eq!(running.join().unwrap().unwrap(), Exit::Cancelled);
        });
        assert_eq!(
            fs_err::read_to_string(one.join("file")).unwrap(),
            "private\n"
        );
    }

    pub(super) fn what_a_dead_step_left_is_undone(tree: &Tree) {
        // Everything of ours dies at once, so that nobody can tidy up: the next step of that user does.
        let user = LoneUser::take();
        let path = empty(tree, "dead");
        let home = home_of(&user.name);
        let mut caller = std::process::Command::new(std::env::current_exe().unwrap());
        let mut caller = caller
            .args(["--exact", "users::endless", "--nocapture"])
            .env("OBUILD_TEST_ENDLESS", &user.name)
            .env("OBUILD_TEST_TREE", &path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_for("it runs", || Path::new(&home).join("begun").exists());
        wait_for("it sleeps", || !processes("sleep\x0086420").is_empty());
        let sleeper = processes("sleep\x0086420")[0];
        let supervisor = parent(sleeper);
        // Stopped first and killed from the last one on, so that none sees another's end: when the caller ends, the kernel continues those of the helper's
        // process group, which is an orphan then (setpgid(2)).
        let all = [supervisor, parent(supervisor), caller.id()];
        assert_eq!(parent(all[1]), all[2]);
        for signal in ["-STOP", "-KILL"] {
            let mut kill = std::process::Command::new("kill");
            assert!(
                kill.arg(signal)
                    .args(all.map(|pid| pid.to_string()))
                    .status()
                    .unwrap()
                    .success()
            );
        }
        caller.wait().unwrap();
        assert!(
            Path::new(&home).join("begun").exists(),
            "nobody has tidied up"
        );
        let output = run(
            &sandbox(&[&user.name]).unwrap(),
            &shell("ls -A; pwd"),
            &Rootfs::Directory(empty(tree, "next")),
        );
        assert_eq!(output.unwrap().1, format!("{home}\n"));
        assert_eq!(processes("sleep\x0086420"), Vec::<u32>::new());
        assert!(path.join("begun").exists(), "back where it was");
        assert!(!Path::new(&home).exists());
    }
}

/// Runs one endless command when the environment says so: a caller that can be killed. Otherwise this is no test.
#[test]
fn endless() {
    let (Ok(user), Ok(path)) = (
        std::env::var("OBUILD_TEST_ENDLESS"),
        std::env::var("OBUILD_TEST_TREE"),
    ) else {
        return;
    };
    let command = shell("echo > begun; exec sleep 86420");
    let _ = run(
        &sandbox(&[&user]).unwrap(),
        &command,
        &Rootfs::Directory(path.into()),
    );
}

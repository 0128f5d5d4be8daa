// SPDX-License-Identifier: Apache-2.0
//! When a step ends, and that all of it ends then, whoever was killed.

use crate::on_every_backend;
use crate::support::{Tree, listing, parent, processes, shell, unchanged, until};
use obuild_fixtures::{PATIENCE, wait_for};
use obuild_sandboxes::{Cancel, Command, Error, Exit, OverlayMount, Rootfs, Secret, Stdio};
use std::time::{Duration, Instant};

on_every_backend!(
    timeouts,
    cancelling,
    detached_children_die,
    orphans_are_reaped,
    many_at_once,
    a_killed_caller_takes_its_step_along,
    a_killed_helper_is_replaced,
    a_killed_init_is_reported,
    a_killed_command_is_reported,
    a_panic_in_the_sink_ends_the_step,
    terminals,
);

fn timeouts(tree: &Tree) {
    let before = listing(&tree.lower());
    let mut command = shell("echo begun; trap '' TERM INT; sleep 1000");
    // On a busy machine a short time may be over before the command has begun.
    for seconds in [0.4, 2.0, 10.0, 50.0] {
        let timeout = Duration::from_secs_f64(seconds);
        command.limits.timeout = Some(timeout);
        let started = Instant::now();
        let (exit, output) = tree.run(&command, &tree.directory()).unwrap();
        let took = started.elapsed();
        assert_eq!(exit, Exit::TimedOut);
        assert!(took < timeout + PATIENCE, "{took:?}");
        if output == "begun\n" && took < timeout + Duration::from_millis(500) {
            unchanged(&tree.lower(), &before);
            break;
        }
        assert!(seconds < 50.0, "it ended after {took:?} with {output:?}");
    }
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
        when.unwrap().elapsed() < PATIENCE,
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
    let marker = format!("98{}{}", std::process::id(), tree.number());
    let line = format!(
        "(trap '' TERM HUP; setsid sleep {marker} & ) ; {}; echo there",
        until(&format!("ps -o args | grep -q '^sleep {marker}'"))
    );
    assert_eq!(tree.output(&line), "there\n");
    assert_eq!(processes(&format!("sleep\0{marker}")), Vec::<u32>::new());
}

fn orphans_are_reaped(tree: &Tree) {
    let line = format!(
        "for i in 1 2 3 4 5; do (sleep 0.05 &); done; sleep 0.5; {}; echo reaped",
        until("! ps -o stat,comm | grep -E '^Z|sleep' > /dev/null")
    );
    assert_eq!(tree.output(&line), "reaped\n");
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

/// Runs in an overlay of its own over the common tree, or where there are none, in a tree of its own.
fn run_in(tree: &Tree, command: &Command) -> (Exit, String) {
    let own = tempfile::tempdir_in(tree.scratch.path()).unwrap();
    let (upper, work) = (own.path().join("upper"), own.path().join("work"));
    fs_err::create_dir(&upper).unwrap();
    fs_err::create_dir(&work).unwrap();
    let rootfs = if tree.backend() == "user" {
        Rootfs::Directory(upper)
    } else {
        Rootfs::Overlay(OverlayMount {
            lower: vec![tree.lower()],
            upper: Some(obuild_sandboxes::Upper { upper, work }),
        })
    };
    let (exit, output) = tree.run(command, &rootfs).unwrap();
    // More may want a build user than there are.
    let own = output
        .split_inclusive('\n')
        .filter(|line| !line.contains("build users are busy"));
    (exit, own.collect())
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
    let sandbox = crate::support::open(backend.to_str().unwrap(), &scratch);
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
    let marker = format!("54{}{}", std::process::id(), tree.number());
    let mut caller = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::caller", "--nocapture"])
        .env("OBUILD_TEST_CALLER", tree.backend())
        .env("OBUILD_TEST_TREE", tree.scratch.path())
        .env("OBUILD_TEST_MARKER", &marker)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let marker = format!("sleep\0{marker}");
    wait_for("both sleep", || processes(&marker).len() == 2);
    // SIGKILL: nothing of the caller's own can clean up.
    caller.kill().unwrap();
    caller.wait().unwrap();
    wait_for("the step is dead", || processes(&marker).is_empty());
    wait_for("the helper is dead", || {
        processes(tree.scratch.path().to_str().unwrap()).is_empty()
    });
    // The step's init process outlives its caller by as long as it takes to tidy the tree.
    wait_for("the tree is tidy", || {
        // With a build user the tree itself is elsewhere until then.
        tree.lower().exists() && !tree.lower().join("run").exists()
    });
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

/// Runs an interactive shell on this process's own streams when the environment says so. Otherwise this is no test.
#[test]
fn interactive() {
    let (Some(backend), Some(scratch)) = (
        std::env::var_os("OBUILD_TEST_SHELL"),
        std::env::var_os("OBUILD_TEST_TREE"),
    ) else {
        return;
    };
    let scratch = std::path::PathBuf::from(scratch);
    let sandbox = crate::support::open(backend.to_str().unwrap(), &scratch);
    let mut command = Command::new(["/bin/sh", "-i"]);
    command.env = vec![
        ("PATH".into(), "/bin".into()),
        ("PS1".into(), "ready> ".into()),
    ];
    let rootfs = Rootfs::Directory(scratch.join("lower"));
    let exit = sandbox.run(&command, &rootfs, Stdio::Inherit, &Cancel::new().unwrap());
    println!("it ended with {exit:?}");
}

fn terminals(tree: &Tree) {
    use std::io::{Read, Write};
    if std::process::Command::new("script")
        .arg("--version")
        .output()
        .is_err()
    {
        return obuild_fixtures::skip("needs script (package bsdutils)");
    }
    let test = std::env::current_exe().unwrap();
    // script(1) gives the caller a terminal to be interactive on.
    let mut script = std::process::Command::new("script")
        .arg("-qefc")
        .arg(format!(
            "stty rows 33 cols 77; {} --exact life::interactive --nocapture; stty -a",
            test.display()
        ))
        .arg("/dev/null")
        .env("OBUILD_TEST_SHELL", tree.backend())
        .env("OBUILD_TEST_TREE", tree.scratch.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keyboard, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let seen = std::sync::Mutex::new(String::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                seen.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        let shows = |text: &str| {
            wait_for(text, || {
                let seen = seen.lock().unwrap();
                assert!(!seen.contains("job control turned off"), "{seen}");
                seen.contains(text)
            });
        };
        shows("ready> ");
        // The answers are not in the questions, which are echoed.
        keyboard
            .write_all(b"stty size; test -t 0 && test -t 1 && test -t 2 && echo a-$((40+2))-tty\n")
            .unwrap();
        shows("33 77");
        shows("a-42-tty");
        keyboard
            .write_all(b"echo b-$((1+1)); sleep 1000\n")
            .unwrap();
        shows("b-2");
        std::thread::sleep(Duration::from_millis(200));
        // Ctrl-C ends what runs in the shell, and neither the shell nor the caller.
        keyboard.write_all(b"\x03").unwrap();
        keyboard.write_all(b"echo c-$((1+2)); exit 5\n").unwrap();
        shows("c-3");
        shows("it ended with Ok(Status(5))");
        // The caller's terminal is as it was: it echoes and makes lines.
        shows(" icanon");
        shows(" echo ");
        drop(keyboard);
    });
    assert!(script.wait().unwrap().success());
}

/// Runs an endless command in a thread and gives its process ids to `attack`, which ends it; returns what the caller was told.
fn attacked(
    tree: &Tree,
    digits: &str,
    attack: impl FnOnce(&[u32]),
) -> Result<(Exit, String), Error> {
    let marker = format!("{digits}{}{}", std::process::id(), tree.number());
    let line = shell(&format!(
        "trap '' TERM HUP; (setsid sleep {marker} &); sleep {marker}"
    ));
    let marker = format!("sleep\0{marker}");
    let result = std::thread::scope(|scope| {
        let running = scope.spawn(|| tree.run(&line, &tree.directory()));
        wait_for("both sleep", || processes(&marker).len() == 2);
        attack(&processes(&marker));
        wait_for("the caller", || running.is_finished());
        running.join().unwrap()
    });
    assert_eq!(processes(&marker), Vec::<u32>::new(), "the step lives");
    result
}

fn kill(process: u32) {
    let process = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
}

/// Returns the ancestors of a process up to this one, nearest first; in a container, up to its first process.
fn ancestors(mut process: u32) -> Vec<u32> {
    let mut all = Vec::new();
    while process != std::process::id() {
        let name = fs_err::read_to_string(format!("/proc/{process}/comm")).unwrap();
        if name.starts_with("containerd-shim") {
            break;
        }
        assert!(process > 1, "a step is below its caller or in a container");
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
        // The detached one has no other ancestors than all steps have. The other has too if the shell became it, and is older then.
        let lines = step.iter().map(|process| ancestors(*process));
        let ancestors = lines
            .min_by_key(|line| std::cmp::Reverse(line.len()))
            .unwrap();
        kill(ancestors[ancestors.len() - 3]);
    });
    assert!(matches!(result, Ok((Exit::Signal(9), _))), "{result:?}");
}

fn a_panic_in_the_sink_ends_the_step(tree: &Tree) {
    let marker = format!("21{}{}", std::process::id(), tree.number());
    let line = shell(&format!("sleep {marker} & echo; wait"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut sink = |_: &[u8]| panic!("meant");
        let cancel = Cancel::new().unwrap();
        tree.sandbox
            .run(&line, &tree.directory(), Stdio::Capture(&mut sink), &cancel)
    }));
    assert!(result.is_err());
    wait_for("the step is dead", || {
        processes(&format!("sleep\0{marker}")).is_empty()
    });
}

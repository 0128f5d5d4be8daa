// SPDX-License-Identifier: Apache-2.0
//! What a step costs: runs `true` many times in a busybox tree and prints wall and processor time a run.
//!
//! `cargo run --release -p obuild-sandboxes --example bench -- [RUNS] [RUNC] [USER]` as root, on a machine that does nothing else. With a second
//! argument the OCI runtime of that path is measured too, with a third the user sandbox with that build user.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use obuild_fixtures::{FileSystem, busybox_root, scratch};
use obuild_sandboxes::{
    Cancel, Command, HelperCommand, Native, NativeOptions, Network, OverlayMount, Rootfs, Runc,
    RuncOptions, Sandbox, Stdio, Upper, UserOptions, UserSandbox,
};
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    // The user sandbox's helper gets one more argument.
    if first.as_deref().is_some_and(|first| first == "helper") {
        return obuild_sandboxes::helper::main();
    }
    let runs = first
        .and_then(|runs| runs.to_str()?.parse().ok())
        .unwrap_or(500);
    let Some(directory) = scratch(FileSystem::Default) else {
        return ExitCode::FAILURE;
    };
    let path = |name: &str| directory.path().join(name);
    for name in ["lower", "upper", "work"] {
        fs_err::create_dir(path(name)).expect("a directory");
    }
    if !busybox_root(&path("lower")) {
        return ExitCode::FAILURE;
    }
    // As most images have them. Where they are missing, making and removing them costs what the file system takes.
    for name in ["lower/etc/hosts", "lower/etc/resolv.conf"] {
        fs_err::write(path(name), "").expect("a file");
    }
    let helper = HelperCommand {
        program: "/proc/self/exe".into(),
        args: vec!["helper".into()],
    };
    let native = Native::open(NativeOptions {
        helper: helper.clone(),
    })
    .expect("the native sandbox opens");
    native.prepare().expect("the helper starts");
    let overlay = Rootfs::Overlay(OverlayMount {
        lower: vec![path("lower")],
        upper: Some(Upper {
            upper: path("upper"),
            work: path("work"),
        }),
    });
    let directory = Rootfs::Directory(path("lower"));
    println!("median ms, min ms, cpu ms a run of `true` ({runs} runs)");
    // What the machine takes without any sandbox: the figures of a noisy machine are to be read against it.
    report("no sandbox", runs, || {
        let status = std::process::Command::new("/bin/busybox")
            .arg("true")
            .status();
        status.expect("busybox runs");
    });
    for (name, rootfs, network) in [
        ("directory, own network", &directory, Network::None),
        ("directory, host network", &directory, Network::Host),
        ("overlay, own network", &overlay, Network::None),
        ("overlay, host network", &overlay, Network::Host),
    ] {
        measure(&format!("native, {name}"), &native, rootfs, network, runs);
    }
    let (runtime, user) = (args.next(), args.next());
    if let Some(user) = user.and_then(|user| user.into_string().ok()) {
        let options = UserOptions {
            helper: helper.clone(),
            users: vec![user],
            state_dir: "/var/lib/obuild-users".into(),
        };
        let sandbox = UserSandbox::open(options).expect("the build user can be used");
        fs_err::create_dir(path("empty")).expect("a directory");
        fs_err::create_dir(path("many")).expect("a directory");
        for number in 0..1000 {
            fs_err::write(path(&format!("many/{number}")), "").expect("a file");
        }
        for (name, tree) in [("empty home", "empty"), ("home of 1000 files", "many")] {
            let mut command = Command::new(["/bin/busybox", "true"]);
            command.network = Network::Host;
            let tree = Rootfs::Directory(path(tree));
            run_often(&format!("user, {name}"), &sandbox, &tree, &command, runs);
        }
    }
    if let Some(runtime) = runtime.filter(|runtime| !runtime.is_empty()) {
        let options = RuncOptions {
            helper,
            runtime: runtime.into(),
            state_dir: path("state"),
        };
        let sandbox = Runc::open(options).expect("the runtime is there");
        measure(
            "runtime, overlay, own network",
            &sandbox,
            &overlay,
            Network::None,
            runs.min(50),
        );
    }
    ExitCode::SUCCESS
}

fn measure(name: &str, sandbox: &dyn Sandbox, rootfs: &Rootfs, network: Network, runs: u32) {
    let mut command = Command::new(["/bin/true"]);
    command.network = network;
    run_often(name, sandbox, rootfs, &command, runs);
}

fn run_often(name: &str, sandbox: &dyn Sandbox, rootfs: &Rootfs, command: &Command, runs: u32) {
    let cancel = Cancel::new().expect("a cancellation");
    report(name, runs, || {
        sandbox
            .run(command, rootfs, Stdio::Capture(&mut |_| {}), &cancel)
            .expect("it runs");
    });
}

fn report(name: &str, runs: u32, mut once: impl FnMut()) {
    for _ in 0..20 {
        once();
    }
    let before = processor_time();
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let started = Instant::now();
            once();
            started.elapsed()
        })
        .collect();
    let processor = (processor_time() - before) / f64::from(runs);
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{name}: {:.2} {:.2} {processor:.2}",
        ms(times[times.len() / 2]),
        ms(times[0])
    );
}

/// Returns the processor time, in ms, of this process and of its children with all theirs, also of the running helper.
fn processor_time() -> f64 {
    let mut ticks = 0;
    for process in children(std::process::id()) {
        ticks += process;
    }
    // The kernel's USER_HZ is 100 on all machines that we know.
    f64::from(ticks) * 10.0
}

/// Returns the processor ticks of a process and its living children, with what their dead children used: `proc_pid_stat(5)`.
fn children(process: u32) -> Vec<u32> {
    let mut all = Vec::new();
    if let Ok(stat) = fs_err::read_to_string(format!("/proc/{process}/stat"))
        && let Some((_, fields)) = stat.rsplit_once(')')
    {
        let fields: Vec<u32> = fields
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        all.push(fields[11..=14].iter().sum());
    }
    let list = fs_err::read_to_string(format!("/proc/{process}/task/{process}/children"));
    for child in list.unwrap_or_default().split_whitespace() {
        all.extend(children(child.parse().unwrap_or(0)));
    }
    all
}

// SPDX-License-Identifier: Apache-2.0
//! The clean-up process undoes what its task left, and leaves alone what the task has undone itself.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

#[test]
fn what_a_dead_task_leaves_is_taken_down() {
    let scratch = std::env::temp_dir().join(format!("xtask-reaper-{}", std::process::id()));
    let left = scratch.join("left");
    let kept = scratch.join("kept");
    fs_err::create_dir_all(left.join("below")).expect("a directory can be made");
    fs_err::create_dir_all(&kept).expect("a directory can be made");
    let mut sleeper = Command::new("sleep")
        .arg("600")
        .process_group(0)
        .spawn()
        .expect("sleep starts");
    let mut reaper = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("__reaper")
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("xtask starts");
    let mut pipe = reaper.stdin.take().expect("a pipe");
    let kept_shown = kept.display();
    write!(
        pipe,
        "+group {}\n+remove {}\n+remove {kept_shown}\n-remove {kept_shown}\n",
        sleeper.id(),
        left.display(),
    )
    .expect("it listens");
    // The task dies: its end of the pipe closes. The sleeper is ours, so reap it while the other waits for it.
    drop(pipe);
    let ended = sleeper.wait().expect("sleep ends");
    assert!(!ended.success(), "sleep was killed: {ended}");
    assert!(reaper.wait().expect("it ends").success());
    assert!(!left.exists());
    assert!(kept.exists());
    fs_err::remove_dir_all(scratch).expect("the directory can be removed");
}

#[test]
fn without_a_task_all_are_listed() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .output()
        .expect("xtask starts");
    let text = String::from_utf8_lossy(&output.stdout);
    for task in [
        "demo", "test", "examples", "lint", "docs", "bench", "fuzz", "bless",
    ] {
        assert!(
            text.contains(&format!("\n  {task}")),
            "{task} is missing in:\n{text}"
        );
    }
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("nonsense")
        .output()
        .expect("xtask starts");
    assert!(!output.status.success());
}

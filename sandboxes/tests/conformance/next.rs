// SPDX-License-Identifier: Apache-2.0
//! That a step finds everything as the first one did, whatever the steps before it have done.

use crate::support::{Tree, parent, processes, shell};
use crate::{on_every_backend, on_namespaces};
use obuild_fixtures::{in_user_namespace, wait_for};
use obuild_sandboxes::{Exit, Network, User};

mod apart {
    use super::*;

    on_namespaces!(
        processes_begin_again,
        dev_is_as_it_was,
        nothing_of_a_step_is_there_for_the_next,
        a_step_cannot_change_what_the_next_inherits,
        connections_that_linger_stay_behind,
        one_that_waits_can_be_killed,
        none_waits_on_the_hosts_network,
        many_steps_take_no_more_memory,
    );
}

on_every_backend!(steps_of_all_ends_follow_each_other);

fn processes_begin_again(tree: &Tree) {
    if tree.backend() == "runc" {
        // The runtime's own processes have some of the first numbers, now more, now less.
        return;
    }
    let line = "echo $$; sh -c 'echo $$; true'; cat /proc/sys/kernel/ns_last_pid";
    let first = tree.output(line);
    for _ in 0..3 {
        tree.output("for i in 1 2 3 4 5 6 7 8 9; do (true); done");
        assert_eq!(tree.output(line), first);
    }
}

fn nothing_of_a_step_is_there_for_the_next(tree: &Tree) {
    let left = r#"
#include <fcntl.h>
#include <mqueue.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
int main() {
  shmget(77, 4096, IPC_CREAT | 0600);
  semget(77, 1, IPC_CREAT | 0600);
  msgget(77, IPC_CREAT | 0600);
  mq_open("/left", O_CREAT | O_RDWR, 0600, 0);
  int s = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un a = { AF_UNIX, "\0left" };
  bind(s, (struct sockaddr *)&a, sizeof a);
  listen(s, 1);
  if (fork() == 0) { setsid(); if (fork() == 0) for (;;) pause(); }
  return 0;
}"#;
    if !tree.compile("left", left) {
        return;
    }
    let look = "cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg /proc/net/unix | wc -l; \
                ls -A /dev /dev/shm /dev/mqueue /tmp; cat /proc/[0-9]*/comm | grep -cx left; cat /proc/self/mountinfo | wc -l; hostname; \
                ls -l /proc/self/ns/user | cut -d'>' -f2; stat -c '%a %u' /proc/1 /dev /dev/null";
    let first = tree.output(look);
    for _ in 0..2 {
        tree.output(
            "/left; echo x > /dev/shm/x; mkdir /dev/d; ln -s x /dev/l; rm -f /dev/fd; chmod 700 /dev; chmod 600 /dev/mqueue",
        );
        assert_eq!(tree.output(look), first);
    }
}

/// Whatever root may do to `/dev`, one at a time.
const CHANGES: &[&str] = &[
    "echo x > /dev/x",
    "mkdir /dev/shm/x",
    "echo x > /dev/shm/x; rm /dev/shm/x",
    "rm /dev/fd; ln -s /etc /dev/fd",
    "rm /dev/stdin; echo x > /dev/y",
    "mv /dev/stdin /dev/z",
    "mv /dev/stdin /dev/z; mv /dev/z /dev/stdin",
    "ln /dev/fd /dev/other",
    "chown -h 7:7 /dev/stdout",
    "touch -h -d @7 /dev/stderr",
    "touch -d @7 /dev",
    "chmod 700 /dev",
    "chown 7 /dev/shm",
    "chmod 755 /dev/shm",
    "chown 7 /dev/pts",
    "chmod 700 /dev/pts",
    "chmod 600 /dev/pts/ptmx",
    "chgrp 7 /dev/pts/ptmx",
    "chmod 700 /proc",
    "chown 7 /proc",
    "/attribute /dev",
    "/attribute /dev/shm",
];

fn dev_is_as_it_was(tree: &Tree) {
    let attribute = r#"
#include <stdio.h>
#include <sys/xattr.h>
int main(int n, char **v) {
  char names[100] = "";
  if (n > 2) { printf("%zd %s\n", listxattr(v[1], names, sizeof names), names); return 0; }
  return setxattr(v[1], "user.left", "x", 1, 0);
}"#;
    if !tree.compile("attribute", attribute) {
        return;
    }
    // Not when: that differs from step to step, and may. Nor the numbers of devices and inodes.
    let look = "for f in /dev /dev/* /dev/shm/* /dev/pts/*; do stat -c '%n %N %a %u %g %h %s %t %T' $f; done; \
                stat -c '%n %a %u %g' /proc; for d in /dev /dev/shm; do /attribute $d names; done; for f in /dev/* /dev/shm; do test $(stat -c %Y $f) -gt 100 || echo $f is old; done";
    let first = tree.output(look);
    assert!(first.contains("/dev/stdin"), "{first}");
    for change in CHANGES {
        let line = shell(change);
        let (exit, said) = tree.run(&line, &tree.directory()).unwrap();
        // Extended attributes of users came to tmpfs with Linux 6.6. In a user namespace not all of it is allowed.
        if !change.starts_with('/') && !in_user_namespace() {
            assert_eq!(exit, Exit::Status(0), "{change}: {said}");
        }
        assert_eq!(tree.output(look), first, "after {change}");
    }
}

/// Things that root may do to another process of root's without any capability.
const ATTACKS: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
static int put(const char *path, const char *text) {
  int f = open(path, O_WRONLY);
  return f >= 0 && write(f, text, strlen(text)) > 0;
}
int main(int n, char **v) {
  int attack = atoi(v[1]), done = 0;
  struct rlimit none = { 0, 0 }, few = { 9, 9 };
  struct sched_param p = { 0 };
  union sigval value = { 7 };
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  switch (attack) {
    case 0: done = !setpriority(PRIO_PROCESS, 1, 11); break;
    case 1: done = !sched_setscheduler(1, SCHED_IDLE, &p); break;
    case 2: done = !sched_setaffinity(1, sizeof one, &one); break;
    case 3: done = !syscall(SYS_ioprio_set, 1, 1, (3 << 13) | 0); break;
    case 4: done = put("/proc/1/oom_score_adj", "700"); break;
    case 5: done = put("/proc/1/coredump_filter", "0"); break;
    case 6: done = put("/proc/1/autogroup", "5"); break;
    case 7: done = put("/proc/1/timerslack_ns", "999999"); break;
    case 8: done = !sigqueue(1, SIGCHLD, value) && !kill(1, SIGTERM) && !kill(1, SIGSTOP); break;
    default: done = !syscall(SYS_prlimit64, 1, attack - 9, attack - 9 == RLIMIT_NOFILE ? &few : &none, 0); break;
  }
  printf(done ? "done\n" : "refused\n");
  return 0;
}"#;

/// How many there are: the limits are the last.
const ATTACKS_IN_ALL: u32 = 9 + 16;

const REPORT: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
static void show(const char *path) {
  char text[200];
  FILE *f = fopen(path, "r");
  // The name of an autogroup is a number that grows.
  if (f && fgets(text, sizeof text, f)) { char *nice = strstr(text, " nice"); printf("%s", nice ? nice : text); }
}
int main() {
  struct rlimit l;
  cpu_set_t set;
  for (int i = 0; i < 16; i++) { getrlimit(i, &l); printf("%lu %lu\n", l.rlim_cur, l.rlim_max); }
  sched_getaffinity(0, sizeof set, &set);
  printf("nice %d policy %d processors %d io %ld slack %d\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0), CPU_COUNT(&set),
         syscall(SYS_ioprio_get, 1, 0), prctl(PR_GET_TIMERSLACK));
  show("/proc/self/oom_score_adj");
  show("/proc/self/coredump_filter");
  show("/proc/self/autogroup");
  return 0;
}"#;

fn a_step_cannot_change_what_the_next_inherits(tree: &Tree) {
    if !tree.compile("attack", ATTACKS) || !tree.compile("report", REPORT) {
        return;
    }
    let first = tree.output("/report");
    let mut done = 0;
    for attack in 0..ATTACKS_IN_ALL {
        let line = shell(&format!("/attack {attack}"));
        // Some end the step itself.
        let said = tree.run(&line, &tree.directory());
        done += u32::from(said.is_ok_and(|(_, said)| said == "done\n"));
        assert_eq!(tree.output("/report"), first, "after attack {attack}");
    }
    // Else nothing was tested.
    assert!(
        !tree.is_native() || done >= ATTACKS_IN_ALL / 2,
        "{done} done"
    );
}

fn connections_that_linger_stay_behind(tree: &Tree) {
    // Who closes first keeps the port for a minute: tcp(7), SO_REUSEADDR in socket(7).
    let source = r"
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
int main() {
  struct sockaddr_in a = { AF_INET, htons(7777), { htonl(INADDR_LOOPBACK) } };
  int listener = socket(AF_INET, SOCK_STREAM, 0), there = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&a, sizeof a)) return errno;
  listen(listener, 1);
  if (connect(there, (struct sockaddr *)&a, sizeof a)) return errno;
  close(accept(listener, 0, 0));
  close(there);
  return 0;
}";
    if !tree.compile("linger", source) {
        return;
    }
    for _ in 0..3 {
        tree.output("/linger");
    }
    // The test tests something: in one step the port stays taken.
    let (exit, _) = tree
        .run(&shell("/linger; /linger"), &tree.directory())
        .unwrap();
    assert_eq!(exit, Exit::Status(98));
}

fn kill(process: u32) {
    let process = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
}

/// Runs a step and returns its init process.
fn init(tree: &Tree, network: Network) -> u32 {
    let marker = format!("17{}{}", std::process::id(), tree.number());
    let mut command = shell(&format!("sleep {marker}; true"));
    command.network = network;
    std::thread::scope(|scope| {
        let running = scope.spawn(|| tree.output_of(&command, &tree.directory()));
        let marker = format!("sleep\0{marker}");
        wait_for("it sleeps", || !processes(&marker).is_empty());
        let sleeping = processes(&marker)[0];
        let init = parent(parent(sleeping));
        kill(sleeping);
        running.join().unwrap();
        init
    })
}

/// Returns whether process 1 of a step waits for another step here.
fn waits(tree: &Tree) -> bool {
    tree.is_native() && obuild_rootless::current().is_none()
}

fn one_that_waits_can_be_killed(tree: &Tree) {
    if !waits(tree) {
        return;
    }
    let first = init(tree, Network::None);
    // The mark of a kept process: it is there when its step is over.
    assert!(alive(first), "it was not kept");
    assert_eq!(init(tree, Network::None), first, "it served once only");
    kill(first);
    wait_for("it is gone", || !alive(first));
    assert_eq!(tree.output("echo again"), "again\n");
}

/// There a step could hand its `/proc` and `/dev` to one beside it, which would have the next one's.
fn none_waits_on_the_hosts_network(tree: &Tree) {
    let first = init(tree, Network::Host);
    wait_for("it is gone", || !alive(first));
}

fn alive(process: u32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

fn many_steps_take_no_more_memory(tree: &Tree) {
    if !waits(tree) {
        return;
    }
    let resident = |process: u32| -> u64 {
        let status = fs_err::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    let process = init(tree, Network::None);
    let mut command = shell("true");
    command.env = vec![("LONG".into(), "x".repeat(4000).into())];
    let run = |count| {
        for _ in 0..count {
            tree.output_of(&command, &tree.overlay());
        }
    };
    run(10);
    let before = resident(process);
    run(150);
    let after = resident(process);
    // A page more or less is chance; a kilobyte left behind by each step would be 150.
    assert!(after < before + 100, "{before} kB, then {after} kB");
}

fn steps_of_all_ends_follow_each_other(tree: &Tree) {
    for round in 0..3 {
        assert_eq!(tree.output("echo $((1 + 1))"), "2\n");
        let run = |line| tree.run(&shell(line), &tree.directory()).unwrap();
        assert_eq!(run("exit 7").0, Exit::Status(7));
        assert_eq!(run("sh -c 'kill -9 $$'; exit $?").0, Exit::Status(137));
        tree.refuses("/no/such/program", "/no/such/program");
        let mut command = shell("true");
        command.user = User::Name(format!("nobody-{round}").into());
        if tree.backend() != "user" {
            assert!(tree.run(&command, &tree.directory()).is_err());
        }
        let (exit, output) = run("head -c 300000 /dev/zero | tr '\\0' x");
        assert_eq!((exit, output.len()), (Exit::Status(0), 300_000));
    }
}

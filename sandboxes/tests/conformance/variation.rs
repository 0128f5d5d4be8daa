// SPDX-License-Identifier: Apache-2.0
//! Surroundings other than usual, which the native sandbox alone can make: everybody in the step sees them, and all else is as ever.

use crate::support::{Tree, shell};
use obuild_fixtures::{PATIENCE, Privilege, may};
use obuild_sandboxes::{Cancel, Command, Exit, Stdio, User, Variation};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const AHEAD: Duration = Duration::from_hours(400 * 24);

/// Asks for the time in every way, and waits for times in every way, in threads and children too. Waiting takes a fifth of a second each time.
const CLOCKS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static long long ms(clockid_t id) { struct timespec t; clock_gettime(id, &t); return t.tv_sec * 1000LL + t.tv_nsec / 1000000; }
static struct timespec in(clockid_t id) { struct timespec t; clock_gettime(id, &t); t.tv_nsec += 200000000; t.tv_sec += t.tv_nsec / 1000000000; t.tv_nsec %= 1000000000; return t; }
static long long began;
static void waited(const char *what) {
  long long took = ms(CLOCK_MONOTONIC) - began;
  if (took < 150 || took > 5000) printf("%s took %lld ms\n", what, took);
  began = ms(CLOCK_MONOTONIC);
}
static void *thread(void *text) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); printf("%s %ld\n", (char *)text, (long)t.tv_sec); fflush(stdout); return 0; }
int main() {
  struct timeval v; time_t t; struct timespec c;
  gettimeofday(&v, 0); printf("gettimeofday %ld\n", (long)v.tv_sec);
  printf("time %ld\n", (long)time(&t)); printf("same %d\n", t - time(0) <= 0);
  syscall(SYS_clock_gettime, CLOCK_REALTIME_COARSE, &c); printf("coarse %ld\n", (long)c.tv_sec);
  long bad = syscall(SYS_clock_gettime, CLOCK_REALTIME, (void *)1); printf("bad %ld %d\n", bad, errno == EFAULT);
  fflush(stdout);
  pthread_t p; pthread_create(&p, 0, thread, "thread"); pthread_join(p, 0);
  if (fork() == 0) { thread("child"); _exit(0); } wait(0);
  if (vfork() == 0) { execl("/bin/date", "date", "+exec %s", (char *)0); _exit(1); } wait(0);
  began = ms(CLOCK_MONOTONIC);
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER; pthread_cond_t k = PTHREAD_COND_INITIALIZER;
  c = in(CLOCK_REALTIME); pthread_mutex_lock(&m); if (pthread_cond_timedwait(&k, &m, &c) != ETIMEDOUT) puts("no timeout"); waited("condition");
  sem_t s; sem_init(&s, 0, 0); c = in(CLOCK_REALTIME); sem_timedwait(&s, &c); waited("semaphore");
  c = in(CLOCK_REALTIME); clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &c, 0); waited("sleep");
  c = in(CLOCK_MONOTONIC); clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &c, 0); waited("monotonic sleep");
  int fd = timerfd_create(CLOCK_REALTIME, 0); struct itimerspec i = { { 0, 0 }, in(CLOCK_REALTIME) }; long long n;
  timerfd_settime(fd, TFD_TIMER_ABSTIME, &i, 0); read(fd, &n, 8); waited("timer file");
  sigset_t set; sigemptyset(&set); sigaddset(&set, SIGRTMIN); sigprocmask(SIG_BLOCK, &set, 0);
  struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN }; timer_t id; siginfo_t info;
  timer_create(CLOCK_REALTIME, &e, &id); i.it_value = in(CLOCK_REALTIME);
  timer_settime(id, TIMER_ABSTIME, &i, 0); sigwaitinfo(&set, &info); waited("timer");
  struct mq_attr a = { .mq_maxmsg = 1, .mq_msgsize = 8 }; mqd_t q = mq_open("/q", O_CREAT | O_RDWR, 0600, &a); char b[8];
  c = in(CLOCK_REALTIME); if (mq_timedreceive(q, b, 8, 0, &c) != -1) puts("a message"); waited("queue");
  pid_t stopped = fork(); int status;
  if (stopped == 0) { raise(SIGSTOP); _exit(7); }
  waitpid(stopped, &status, WUNTRACED); if (!WIFSTOPPED(status)) puts("not stopped");
  usleep(100000); if (waitpid(stopped, &status, WNOHANG) != 0) puts("did not stay stopped");
  kill(stopped, SIGCONT); waitpid(stopped, &status, 0); if (WEXITSTATUS(status) != 7) puts("not continued");
}
"#;

fn varied(mut command: Command) -> Command {
    command.variation = Some(Variation {
        clock_ahead: AHEAD,
        last_process: 4711,
    });
    command
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

#[test]
fn all_of_a_step_sees_another_time_and_waits_as_long_as_ever() {
    Tree::with("native", |tree| {
        if !cfg!(target_arch = "x86_64") || !tree.compile("clocks", CLOCKS) {
            return;
        }
        let before = seconds() + AHEAD.as_secs();
        for command in [
            Command::new(["/clocks"]),
            shell("date '+shell %s'; exec /clocks"),
        ] {
            for fast_sync in [false, true] {
                let mut command = varied(command.clone());
                command.fast_sync = fast_sync;
                let output = tree.output_of(&command, &tree.overlay());
                let mut told = 0;
                for line in output.lines() {
                    match line.split_once(' ') {
                        Some(("same" | "bad", _)) => {
                            assert!(matches!(line, "same 1" | "bad -1 1"), "{output}");
                        }
                        Some((_, time)) => {
                            let time: u64 = time.parse().expect(&output);
                            assert!((before..before + 60).contains(&time), "{line}");
                            told += 1;
                        }
                        None => panic!("{output}"),
                    }
                }
                assert!(told >= 6, "{output}");
            }
        }
        // And nobody else does.
        let usual = tree.output("date +%s; uname -r; echo $$");
        let usual: Vec<&str> = usual.lines().collect();
        assert!(usual[0].parse::<u64>().unwrap() < before - 1000);
        let other = tree.output_of(
            &varied(shell("date +%s; uname -r; echo $$")),
            &tree.directory(),
        );
        let other: Vec<&str> = other.lines().collect();
        assert_ne!((usual[1], usual[2]), (other[1], other[2]));
        assert_ne!(usual[1], other[1]);
    });
}

#[test]
fn a_varied_step_ends_and_fails_as_others_do() {
    Tree::with("native", |tree| {
        let run = |line: &str| tree.run(&varied(shell(line)), &tree.directory()).unwrap();
        assert_eq!(run("exit 7").0, Exit::Status(7));
        assert_eq!(run("kill -9 $$").0, Exit::Signal(9));
        assert_eq!(run("kill -ABRT $$").0, Exit::Signal(6));
        assert_eq!(run("(sleep 1000 &) ; echo out").1, "out\n");
        // The usual filter holds.
        assert_ne!(run("mount -t tmpfs none /tmp").0, Exit::Status(0));
        let error = tree
            .run(&varied(Command::new(["/missing"])), &tree.directory())
            .unwrap_err();
        assert!(error.to_string().contains("/missing"), "{error}");
        // Set-uid programs work although they are traced: the tracer may do all that they may.
        if may(Privilege::Ids) && tree.compile("suid", "int main() { return geteuid(); }") {
            let suid = tree.lower().join("suid");
            fs_err::set_permissions(&suid, std::fs::Permissions::from_mode(0o4755)).unwrap();
            let mut command = varied(Command::new(["/suid"]));
            command.user = User::Ids {
                uid: 1000,
                gid: 1000,
            };
            let exit = tree.run(&command, &tree.directory()).unwrap().0;
            assert_eq!(exit, Exit::Status(0));
        }
        let cancel = Cancel::new().unwrap();
        let stop = cancel.clone();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            stop.cancel();
        });
        let began = Instant::now();
        let exit = tree
            .sandbox
            .run(
                &varied(shell("sleep 1000 & while :; do date; done")),
                &tree.directory(),
                Stdio::Capture(&mut |_: &[u8]| {}),
                &cancel,
            )
            .unwrap();
        stopper.join().unwrap();
        assert_eq!(exit, Exit::Cancelled);
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    });
}

#[test]
fn other_sandboxes_refuse_what_they_cannot_vary() {
    Tree::with("runc", |tree| {
        let error = tree
            .run(&varied(shell("true")), &tree.directory())
            .unwrap_err();
        assert!(error.to_string().contains("native"), "{error}");
    });
}

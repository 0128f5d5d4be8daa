// SPDX-License-Identifier: Apache-2.0
//! Which system calls a step may not make, with their numbers on the machines we know.
//!
//! The choice is that of the field's container default (Docker's and containerd's profile without extra capabilities): what it
//! refuses, we refuse, but for calls that no kernel we run on has any more. Numbers: linux v6.18 `arch/x86/entry/syscalls/syscall_{64,32}.tbl`, `scripts/syscall.tbl`,
//! `arch/arm/tools/syscall.tbl`.

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Refused with `EPERM`.
    Deny,
    /// Answered with `ENOSYS`, so that libc falls back to an older call whose arguments can be judged.
    Missing,
    /// Refused with `EPERM` when the lower half of argument `argument` has a bit of `mask`, unless it also has one of `unless`.
    DenyBits {
        argument: u8,
        mask: u32,
        unless: u32,
    },
    /// Refused with `EPERM` when the lower half of argument `argument` is one of `values`.
    DenyValues {
        argument: u8,
        values: &'static [u32],
    },
    /// Answered with success and not done, when the step asked for fast sync.
    Skip,
}

/// A call with its numbers: x86-64, i386, arm64, arm.
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
    pub(crate) numbers: [Option<u32>; 4],
}

/// The first number that none of the tables knows. Newer calls are answered with `ENOSYS`, as an older kernel would.
pub(crate) const UNKNOWN_FROM: u32 = 470;

// linux v6.18 include/uapi/linux/sched.h: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. The time namespace has no bit in clone(2).
const NEW_NAMESPACES: u32 = 0x7e02_0000;

// linux v6.18 include/uapi/linux/personality.h PER_CLEAR_ON_SETID: the flags that the kernel itself clears for setuid programs.
// All bits set is the question for the current value.
const WEAK_PERSONALITIES: u32 = 0x0040_0000 | 0x0004_0000 | 0x0020_0000 | 0x0010_0000;

// linux v6.18 include/uapi/asm-generic/ioctls.h TIOCSTI, include/uapi/linux/tiocl.h's TIOCLINUX: both type into a terminal.
const TYPE_INTO_TERMINAL: &[u32] = &[0x5412, 0x541c];

// linux v6.18 include/linux/socket.h AF_VSOCK: reaches the hypervisor's side, and no network namespace confines it.
const VSOCK: &[u32] = &[40];

const fn number(value: i32) -> Option<u32> {
    if value < 0 {
        None
    } else {
        Some(value.cast_unsigned())
    }
}

const fn call(
    name: &'static str,
    action: Action,
    x86_64: i32,
    i386: i32,
    arm64: i32,
    arm: i32,
) -> Call {
    let numbers = [number(x86_64), number(i386), number(arm64), number(arm)];
    Call {
        name,
        action,
        numbers,
    }
}

const fn deny(name: &'static str, x86_64: i32, i386: i32, arm64: i32, arm: i32) -> Call {
    call(name, Action::Deny, x86_64, i386, arm64, arm)
}

const fn skip(name: &'static str, x86_64: i32, i386: i32, arm64: i32, arm: i32) -> Call {
    call(name, Action::Skip, x86_64, i386, arm64, arm)
}

/// All calls that are not simply allowed.
#[rustfmt::skip]
pub(crate) const CALLS: &[Call] = &[
    call("clone", Action::DenyBits { argument: 0, mask: NEW_NAMESPACES, unless: 0 }, 56, 120, 220, 120),
    call("clone3", Action::Missing, 435, 435, 435, 435),
    call("ioctl", Action::DenyValues { argument: 1, values: TYPE_INTO_TERMINAL }, 16, 54, 29, 54),
    call("personality", Action::DenyBits { argument: 0, mask: WEAK_PERSONALITIES, unless: 0x8000_0000 }, 135, 136, 92, 136),
    call("socket", Action::DenyValues { argument: 0, values: VSOCK }, 41, 359, 198, 281),
    skip("fdatasync", 75, 148, 83, 148),
    skip("fsync", 74, 118, 82, 118),
    skip("msync", 26, 144, 227, 144),
    skip("sync", 162, 36, 81, 36),
    skip("sync_file_range", 277, 314, 84, -1),
    skip("sync_file_range2", -1, -1, -1, 341),
    skip("syncfs", 306, 344, 267, 373),
    deny("acct", 163, 51, 89, 51),
    deny("add_key", 248, 286, 217, 309),
    deny("bpf", 321, 357, 280, 386),
    deny("clock_settime", 227, 264, 112, 262),
    deny("clock_settime64", -1, 404, -1, 404),
    deny("delete_module", 176, 129, 106, 129),
    deny("fanotify_init", 300, 338, 262, 367),
    deny("finit_module", 313, 350, 273, 379),
    deny("fsconfig", 431, 431, 431, 431),
    deny("fsmount", 432, 432, 432, 432),
    deny("fsopen", 430, 430, 430, 430),
    deny("fspick", 433, 433, 433, 433),
    deny("get_mempolicy", 239, 275, 236, 320),
    deny("init_module", 175, 128, 105, 128),
    deny("io_uring_enter", 426, 426, 426, 426),
    deny("io_uring_register", 427, 427, 427, 427),
    deny("io_uring_setup", 425, 425, 425, 425),
    deny("ioperm", 173, 101, -1, -1),
    deny("iopl", 172, 110, -1, -1),
    deny("kcmp", 312, 349, 272, 378),
    deny("kexec_file_load", 320, -1, 294, 401),
    deny("kexec_load", 246, 283, 104, 347),
    deny("keyctl", 250, 288, 219, 311),
    deny("listmount", 458, 458, 458, 458),
    deny("lookup_dcookie", 212, 253, 18, 249),
    deny("mbind", 237, 274, 235, 319),
    deny("migrate_pages", 256, 294, 238, 400),
    deny("mount", 165, 21, 40, 21),
    deny("mount_setattr", 442, 442, 442, 442),
    deny("move_mount", 429, 429, 429, 429),
    deny("move_pages", 279, 317, 239, 344),
    deny("open_by_handle_at", 304, 342, 265, 371),
    deny("open_tree", 428, 428, 428, 428),
    deny("open_tree_attr", 467, 467, 467, 467),
    deny("perf_event_open", 298, 336, 241, 364),
    deny("pidfd_getfd", 438, 438, 438, 438),
    deny("pivot_root", 155, 217, 41, 218),
    deny("quotactl", 179, 131, 60, 131),
    deny("quotactl_fd", 443, 443, 443, 443),
    deny("reboot", 169, 88, 142, 88),
    deny("request_key", 249, 287, 218, 310),
    deny("set_mempolicy", 238, 276, 237, 321),
    deny("set_mempolicy_home_node", 450, 450, 450, 450),
    deny("setdomainname", 171, 121, 162, 121),
    deny("sethostname", 170, 74, 161, 74),
    deny("setns", 308, 346, 268, 375),
    deny("settimeofday", 164, 79, 170, 79),
    deny("statmount", 457, 457, 457, 457),
    deny("stime", -1, 25, -1, -1),
    deny("swapoff", 168, 115, 225, 115),
    deny("swapon", 167, 87, 224, 87),
    deny("sysfs", 139, 135, -1, 135),
    deny("syslog", 103, 103, 116, 103),
    deny("umount", -1, 22, -1, -1),
    deny("umount2", 166, 52, 39, 52),
    deny("unshare", 272, 310, 97, 337),
    deny("uselib", 134, 86, -1, 86),
    deny("userfaultfd", 323, 374, 282, 388),
    deny("ustat", 136, 62, -1, 62),
    deny("vhangup", 153, 111, 58, 111),
    deny("vm86", -1, 166, -1, -1),
    deny("vm86old", -1, 113, -1, -1),
];

/// A call of x86-64 programs that tells the wall clock's time, or takes one to wait for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Timed {
    pub(crate) number: u32,
    /// When it does; `None` is always.
    pub(crate) when: Option<When>,
}

/// Which arguments: those whose lower half has a bit of `mask` or is one of `values`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct When {
    pub(crate) argument: u8,
    pub(crate) mask: u32,
    pub(crate) values: &'static [u32],
}

#[cfg(target_arch = "x86_64")]
const fn timed(number: i64, argument: u8, mask: u32, values: &'static [u32]) -> Timed {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "numbers of calls are small"
    )]
    let number = number as u32;
    let when = Some(When {
        argument,
        mask,
        values,
    });
    Timed { number, when }
}

#[cfg(target_arch = "x86_64")]
const fn telling(number: i64) -> Timed {
    let number = timed(number, 0, 0, &[]).number;
    Timed { number, when: None }
}

/// What `helper/clock.rs` answers for programs that are to see another time.
///
/// linux v6.18 include/uapi/linux/time.h: the clocks `REALTIME`, `REALTIME_COARSE`, `REALTIME_ALARM` and `TAI`; `TIMER_ABSTIME` and `TFD_TIMER_ABSTIME`.
/// include/uapi/linux/futex.h: the flag `FUTEX_CLOCK_REALTIME`, and `FUTEX_LOCK_PI`, plain and private, which has that clock anyway.
#[cfg(target_arch = "x86_64")]
pub(crate) const TIMED: &[Timed] = &[
    telling(libc::SYS_time),
    telling(libc::SYS_gettimeofday),
    telling(libc::SYS_uname),
    timed(libc::SYS_clock_gettime, 0, 0, &[0, 5, 8, 11]),
    timed(libc::SYS_futex, 1, 0x100, &[6, 0x86]),
    timed(libc::SYS_clock_nanosleep, 1, 1, &[]),
    timed(libc::SYS_timer_settime, 1, 1, &[]),
    timed(libc::SYS_timerfd_settime, 1, 1, &[]),
    telling(libc::SYS_mq_timedsend),
    telling(libc::SYS_mq_timedreceive),
];
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const TIMED: &[Timed] = &[];

// SPDX-License-Identifier: Apache-2.0
//! The filter, run by a small interpreter over every call number and compared with the table.

use super::*;

fn run(program: &Program, audit: u32, number: u32, arguments: [u32; 6]) -> u32 {
    let mut accumulator = 0;
    let mut place = 0;
    for _ in 0..program.len() {
        let step = program[place];
        place += 1;
        let code = u32::from(step.code);
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        if code == libc::BPF_RET | libc::BPF_K {
            return step.k;
        } else if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
            accumulator = match step.k {
                0 => number,
                4 => audit,
                offset => arguments[((offset - 16) / 8) as usize],
            };
        } else if code == libc::BPF_JMP | libc::BPF_JA {
            place += step.k as usize;
        } else if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K {
            place += jump(accumulator == step.k);
        } else if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K {
            place += jump(accumulator >= step.k);
        } else if code == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K {
            place += jump(accumulator & step.k != 0);
        } else {
            panic!("unknown instruction {code:#x}");
        }
    }
    panic!("the program does not end");
}

#[test]
fn every_number_gets_the_tables_answer() {
    for fast_sync in [false, true] {
        let program = program(fast_sync, false);
        for machine in MACHINES {
            for number in 0..UNKNOWN_FROM + 200 {
                let known = CALLS
                    .iter()
                    .find(|call| call.numbers[machine.column] == Some(number));
                let expected = match known.map(|call| call.action) {
                    _ if number >= UNKNOWN_FROM => refuse(libc::ENOSYS),
                    Some(Action::Deny) => refuse(libc::EPERM),
                    Some(Action::Missing) => refuse(libc::ENOSYS),
                    Some(Action::Skip) if fast_sync => ERRNO,
                    _ => ALLOW,
                };
                let answer = run(&program, machine.audit, number, [0; 6]);
                assert_eq!(answer, expected, "call {number} of {:#x}", machine.audit);
            }
        }
    }
}

#[test]
fn arguments_are_judged() {
    let program = program(false, false);
    let answer = |name: &str, argument: usize, value: u32| {
        let call = CALLS
            .iter()
            .find(|call| call.name == name)
            .expect("in the table");
        let machine = MACHINES[0];
        let number = call.numbers[machine.column].expect("exists on this machine");
        let mut arguments = [0; 6];
        arguments[argument] = value;
        run(&program, machine.audit, number, arguments)
    };
    let denied = refuse(libc::EPERM);
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        assert_eq!(answer("clone", 0, flag.cast_unsigned() | 0x11), denied);
    }
    assert_eq!(answer("clone", 0, 0x0100_0011), ALLOW);
    assert_eq!(answer("ioctl", 1, 0x5412), denied);
    assert_eq!(answer("ioctl", 1, 0x541c), denied);
    assert_eq!(answer("ioctl", 1, 0x5413), ALLOW);
    assert_eq!(answer("socket", 0, 40), denied);
    assert_eq!(answer("socket", 0, 2), ALLOW);
    assert_eq!(answer("personality", 0, 0x0040_0000), denied);
    assert_eq!(answer("personality", 0, 0xffff_ffff), ALLOW);
    assert_eq!(answer("personality", 0, 8), ALLOW);
}

#[test]
fn foreign_conventions_are_refused() {
    let program = program(false, false);
    // AUDIT_ARCH_S390.
    assert_eq!(run(&program, 22, 1, [0; 6]), KILL);
    // x32 marks its calls with bit 30.
    assert_eq!(
        run(&program, MACHINES[0].audit, 0x4000_0001, [0; 6]),
        refuse(libc::ENOSYS)
    );
}

#[test]
fn the_other_machines_tables_are_sorted_too() {
    for machine in [&X86_64, &I386, &ARM64, &ARM] {
        let ranges = ranges(machine, true, true);
        assert!(ranges.is_sorted_by(|left, right| left.0 < right.0));
        let mut numbers: Vec<_> = CALLS
            .iter()
            .filter_map(|call| call.numbers[machine.column])
            .collect();
        numbers.sort_unstable();
        let before = numbers.len();
        numbers.dedup();
        assert_eq!(before, numbers.len(), "a number is there twice");
    }
}

#[test]
fn the_program_is_short() {
    assert!(
        program(true, false).len() < 260,
        "{} instructions",
        program(true, false).len()
    );
}

#[test]
fn numbers_are_libcs() {
    let ours = |name: &str| {
        let call = CALLS
            .iter()
            .find(|call| call.name == name)
            .expect("in the table");
        i64::from(call.numbers[MACHINES[0].column].expect("exists here"))
    };
    for (name, number) in [
        ("acct", libc::SYS_acct),
        ("add_key", libc::SYS_add_key),
        ("bpf", libc::SYS_bpf),
        ("clock_settime", libc::SYS_clock_settime),
        ("clone", libc::SYS_clone),
        ("delete_module", libc::SYS_delete_module),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("fsync", libc::SYS_fsync),
        ("fdatasync", libc::SYS_fdatasync),
        ("finit_module", libc::SYS_finit_module),
        ("init_module", libc::SYS_init_module),
        ("ioctl", libc::SYS_ioctl),
        ("kexec_load", libc::SYS_kexec_load),
        ("keyctl", libc::SYS_keyctl),
        ("mount", libc::SYS_mount),
        ("msync", libc::SYS_msync),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("personality", libc::SYS_personality),
        ("pivot_root", libc::SYS_pivot_root),
        ("quotactl", libc::SYS_quotactl),
        ("reboot", libc::SYS_reboot),
        ("request_key", libc::SYS_request_key),
        ("sethostname", libc::SYS_sethostname),
        ("setns", libc::SYS_setns),
        ("settimeofday", libc::SYS_settimeofday),
        ("socket", libc::SYS_socket),
        ("swapon", libc::SYS_swapon),
        ("sync", libc::SYS_sync),
        ("sync_file_range", libc::SYS_sync_file_range),
        ("syncfs", libc::SYS_syncfs),
        ("syslog", libc::SYS_syslog),
        ("umount2", libc::SYS_umount2),
        ("unshare", libc::SYS_unshare),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("vhangup", libc::SYS_vhangup),
    ] {
        assert_eq!(ours(name), number, "{name}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_of_the_wall_clock_stop_where_they_shall_and_all_else_is_as_ever() {
    for fast_sync in [false, true] {
        let (usual, timed) = (program(fast_sync, false), program(fast_sync, true));
        for machine in MACHINES {
            for number in 0..UNKNOWN_FROM + 200 {
                let arguments = [1, 0, 0, 0, 0, 0];
                let answers = |program| run(program, machine.audit, number, arguments);
                let stops = machine.column == X86_64.column
                    && TIMED
                        .iter()
                        .any(|call| call.number == number && call.when.is_none());
                let expected = if stops { TRACE } else { answers(&usual) };
                assert_eq!(answers(&timed), expected, "call {number}");
            }
        }
        let answer = |number: i64, arguments: [u32; 6]| {
            run(
                &timed,
                X86_64.audit,
                u32::try_from(number).expect("numbers are small"),
                arguments,
            )
        };
        let clock = |id: i32| answer(libc::SYS_clock_gettime, [id.cast_unsigned(), 0, 0, 0, 0, 0]);
        assert_eq!(clock(libc::CLOCK_REALTIME), TRACE);
        assert_eq!(clock(libc::CLOCK_REALTIME_COARSE), TRACE);
        assert_eq!(clock(libc::CLOCK_MONOTONIC), ALLOW);
        assert_eq!(clock(libc::CLOCK_BOOTTIME), ALLOW);
        let futex =
            |operation: i32| answer(libc::SYS_futex, [0, operation.cast_unsigned(), 0, 0, 0, 0]);
        assert_eq!(
            futex(libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME),
            TRACE
        );
        assert_eq!(futex(libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG), TRACE);
        assert_eq!(futex(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG), ALLOW);
        assert_eq!(futex(libc::FUTEX_WAKE), ALLOW);
        let absolute = libc::TIMER_ABSTIME.cast_unsigned();
        assert_eq!(
            answer(libc::SYS_timerfd_settime, [3, absolute, 0, 0, 0, 0]),
            TRACE
        );
        assert_eq!(answer(libc::SYS_timerfd_settime, [3, 0, 0, 0, 0, 0]), ALLOW);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The system call filter of a step, as a BPF program.
//!
//! Each machine's calls form a sorted list of ranges, and the program is a binary search over it: about seven comparisons a call, and
//! about 200 instructions in all. The kernel checks and compiles the program for every step, so its length is start-up time: a list of
//! 780 comparisons cost 0.4 ms (busybox `true`, median of many runs, 2-core VM, 2026-11).
//!
//! Programs for 32-bit x86 and arm are filtered alike on the 64-bit machines that can run them. Any other calling convention kills.

mod table;

pub(crate) use table::{Action, CALLS};

use table::{TIMED, Timed, UNKNOWN_FROM};

/// A BPF program that `seccomp(2)` takes.
pub(crate) type Program = Vec<libc::sock_filter>;

/// A machine whose calls we know, with its column in the table.
struct Machine {
    /// `AUDIT_ARCH_*` of linux v6.18 `include/uapi/linux/audit.h`.
    audit: u32,
    column: usize,
}

const X86_64: Machine = Machine {
    audit: 0xc000_003e,
    column: 0,
};
const I386: Machine = Machine {
    audit: 0x4000_0003,
    column: 1,
};
const ARM64: Machine = Machine {
    audit: 0xc000_00b7,
    column: 2,
};
const ARM: Machine = Machine {
    audit: 0x4000_0028,
    column: 3,
};

// linux v6.18 arch/arm/include/uapi/asm/unistd.h __ARM_NR_BASE: cache flushes and thread pointers, which every program makes.
const ARM_PRIVATE_FROM: u32 = 0x000f_0000;

/// This machine with the 32-bit one whose programs it can run.
const MACHINES: [&Machine; 2] = if cfg!(target_arch = "x86_64") {
    [&X86_64, &I386]
} else {
    [&ARM64, &ARM]
};
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the filter's numbers are known for x86-64 and arm64 only");

/// What a call number leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Return(u32),
    Check(Action),
    Trace(&'static Timed),
}

// linux v6.18 include/uapi/linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL: u32 = 0x8000_0000;
const TRACE: u32 = 0x7ff0_0000;

const fn refuse(errno: i32) -> u32 {
    ERRNO | errno.cast_unsigned()
}

/// Returns the filter for this machine; with `timed`, calls that tell or take the wall clock's time stop for the tracer.
pub(crate) fn program(fast_sync: bool, timed: bool) -> Program {
    let mut code = Code::default();
    let kill = code.emit(ret(KILL));
    // Written from its end, since a jump can only lead forward: the last machine first.
    let mut next = kill;
    for machine in MACHINES.into_iter().rev() {
        let ranges = ranges(machine, fast_sync, timed);
        let search = code.search(&ranges);
        let load = code.emit_before(search, load_word(0));
        next = code.branch(jump_equal(machine.audit), load, next);
    }
    code.emit_before(next, load_word(4));
    code.finish()
}

/// Returns the start of each range of call numbers with its verdict, the first at 0.
fn ranges(machine: &Machine, fast_sync: bool, timed: bool) -> Vec<(u32, Verdict)> {
    let mut special: Vec<(u32, Verdict)> = CALLS
        .iter()
        .filter_map(|call| {
            let verdict = match call.action {
                Action::Deny => Verdict::Return(refuse(libc::EPERM)),
                Action::Missing => Verdict::Return(refuse(libc::ENOSYS)),
                Action::Skip if fast_sync => Verdict::Return(refuse(0)),
                Action::Skip => Verdict::Allow,
                check => Verdict::Check(check),
            };
            Some((call.numbers[machine.column]?, verdict))
        })
        .collect();
    if timed && machine.column == X86_64.column {
        special.extend(TIMED.iter().map(|call| (call.number, Verdict::Trace(call))));
    }
    special.sort_by_key(|&(number, _)| number);
    let mut ranges = vec![(0, Verdict::Allow)];
    let mut push = |start: u32, verdict: Verdict| match ranges.last_mut() {
        Some(last) if last.0 == start => last.1 = verdict,
        Some(last) if last.1 == verdict => {}
        _ => ranges.push((start, verdict)),
    };
    for (number, verdict) in special {
        push(number, verdict);
        push(number + 1, Verdict::Allow);
    }
    push(UNKNOWN_FROM, Verdict::Return(refuse(libc::ENOSYS)));
    if machine.column == ARM.column {
        push(ARM_PRIVATE_FROM, Verdict::Allow);
    }
    // A range that was overwritten may now equal the one before it.
    ranges.dedup_by_key(|range| range.1);
    ranges
}

/// A place in the program, counted from its end.
type Label = usize;

/// A program under construction, last instruction first.
#[derive(Default)]
struct Code {
    reversed: Program,
    returns: Vec<(u32, Label)>,
}

impl Code {
    fn emit(&mut self, instruction: libc::sock_filter) -> Label {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// Emits an instruction that is followed by `next`.
    fn emit_before(&mut self, next: Label, instruction: libc::sock_filter) -> Label {
        if self.reversed.len() - 1 != next {
            self.emit_jump(next);
        }
        self.emit(instruction)
    }

    fn emit_jump(&mut self, target: Label) -> Label {
        let distance = u32::try_from(self.reversed.len() - target - 1).unwrap_or(u32::MAX);
        self.emit(instruction(libc::BPF_JMP | libc::BPF_JA, distance))
    }

    /// Emits a conditional jump. Its two distances have eight bits; farther targets get an unconditional jump in between.
    fn branch(&mut self, test: libc::sock_filter, yes: Label, no: Label) -> Label {
        let (mut yes, mut no) = (yes, no);
        loop {
            let here = self.reversed.len();
            let (far_yes, far_no) = (here - yes - 1, here - no - 1);
            match (u8::try_from(far_yes), u8::try_from(far_no)) {
                (Ok(jt), Ok(jf)) => return self.emit(libc::sock_filter { jt, jf, ..test }),
                (Err(_), _) => yes = self.emit_jump(yes),
                (Ok(_), Err(_)) => no = self.emit_jump(no),
            }
        }
    }

    /// Returns the place of a return instruction, shared when there already is one.
    fn returning(&mut self, value: u32) -> Label {
        if let Some(&(_, label)) = self.returns.iter().find(|known| known.0 == value) {
            return label;
        }
        let label = self.emit(ret(value));
        self.returns.push((value, label));
        label
    }

    fn search(&mut self, ranges: &[(u32, Verdict)]) -> Label {
        match ranges {
            [] => self.returning(ALLOW),
            [(_, verdict)] => self.verdict(*verdict),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let yes = self.search(high);
                let no = self.search(low);
                let test = instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, high[0].0);
                self.branch(test, yes, no)
            }
        }
    }

    fn verdict(&mut self, verdict: Verdict) -> Label {
        match verdict {
            Verdict::Allow => self.returning(ALLOW),
            Verdict::Return(value) => self.returning(value),
            Verdict::Check(Action::DenyBits {
                argument,
                mask,
                unless,
            }) => {
                let (allow, deny) = (self.returning(ALLOW), self.returning(refuse(libc::EPERM)));
                let mut test = self.branch(jump_set(mask), deny, allow);
                if unless != 0 {
                    test = self.branch(jump_set(unless), allow, test);
                }
                self.emit_before(test, load_argument(argument))
            }
            Verdict::Check(Action::DenyValues { argument, values }) => {
                let (allow, deny) = (self.returning(ALLOW), self.returning(refuse(libc::EPERM)));
                let mut next = allow;
                for &value in values {
                    next = self.branch(jump_equal(value), deny, next);
                }
                self.emit_before(next, load_argument(argument))
            }
            Verdict::Check(Action::Deny | Action::Missing | Action::Skip) => {
                self.returning(refuse(libc::EPERM))
            }
            Verdict::Trace(Timed { when: None, .. }) => self.returning(TRACE),
            Verdict::Trace(Timed {
                when: Some(when), ..
            }) => {
                let (allow, trace) = (self.returning(ALLOW), self.returning(TRACE));
                let mut next = allow;
                if when.mask != 0 {
                    next = self.branch(jump_set(when.mask), trace, next);
                }
                for &value in when.values {
                    next = self.branch(jump_equal(value), trace, next);
                }
                self.emit_before(next, load_argument(when.argument))
            }
        }
    }

    fn finish(mut self) -> Program {
        self.reversed.reverse();
        self.reversed
    }
}

fn instruction(code: u32, k: u32) -> libc::sock_filter {
    // All BPF codes are below 256.
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn ret(value: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, value)
}

fn jump_equal(value: u32) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
}

fn jump_set(bits: u32) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bits)
}

// linux v6.18 include/uapi/linux/seccomp.h struct seccomp_data: nr, arch, instruction pointer, six 64-bit arguments.
fn load_word(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

/// Loads the lower half of an argument: all machines here are little-endian.
fn load_argument(argument: u8) -> libc::sock_filter {
    load_word(16 + 8 * u32::from(argument))
}

#[cfg(test)]
mod tests;

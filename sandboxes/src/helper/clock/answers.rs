// SPDX-License-Identifier: Apache-2.0
//! What the stopped calls of x86-64 programs get, and how the kernel's library is hidden from them.

use crate::sys::{self, Registers};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use rustix::process::Pid;
use std::io::{self, IoSlice, IoSliceMut};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time before which no wall clock is and no other clock will be: thirty years after its start.
const WALL_CLOCK_SECONDS: u64 = 1_000_000_000;

/// Below the stack pointer a program may use so much: System V ABI for x86-64, 3.2.2.
const RED_ZONE: u64 = 128;

/// What is struck from the auxiliary vector, and what is there instead: getauxval(3), `elf.h`.
const AT_SYSINFO_EHDR: u64 = 33;
const AT_IGNORE: u64 = 1;

/// Answers a call, or moves the time that it waits for.
pub(super) fn answer(pid: Pid, ahead: Duration) -> io::Result<()> {
    let mut registers = sys::registers(pid)?;
    let call = registers.orig_rax.cast_signed();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        + ahead;
    let seconds = now.as_secs();
    let result = match call {
        libc::SYS_clock_gettime => {
            let time = [seconds, now.subsec_nanos().into()];
            put(pid, registers.rsi, &bytes(&time))
        }
        libc::SYS_gettimeofday => {
            let time = [seconds, now.subsec_micros().into()];
            put_unless_null(pid, registers.rdi, &bytes(&time))
                // The time zone, which Linux does not have.
                .and_then(|()| put_unless_null(pid, registers.rsi, &[0; 8]))
        }
        libc::SYS_time => put_unless_null(pid, registers.rdi, &seconds.to_ne_bytes()),
        libc::SYS_uname => put(pid, registers.rdi, &other_kernel()),
        _ => return earlier(pid, ahead, &mut registers),
    };
    // ptrace(2), PTRACE_EVENT_SECCOMP; seccomp(2), SECCOMP_RET_TRACE: there is no call -1, so none is made.
    registers.orig_rax = u64::MAX;
    registers.rax = match result {
        Ok(()) if call == libc::SYS_time => seconds,
        Ok(()) => 0,
        Err(_) => i64::from(-libc::EFAULT).cast_unsigned(),
    };
    sys::set_registers(pid, &registers)
}

/// Makes a call that waits until some time wait until the host's clock says so.
///
/// The time is written anew, below what the program's stack holds: the original is the program's, which may use it again.
fn earlier(pid: Pid, ahead: Duration, registers: &mut Registers) -> io::Result<()> {
    // Where the time is in what the argument points to, and how much that is.
    let (argument, offset, length) = match registers.orig_rax.cast_signed() {
        libc::SYS_futex => (&mut registers.r10, 0, 16),
        libc::SYS_clock_nanosleep => (&mut registers.rdx, 0, 16),
        libc::SYS_timer_settime | libc::SYS_timerfd_settime => (&mut registers.rdx, 16, 32),
        libc::SYS_mq_timedsend | libc::SYS_mq_timedreceive => (&mut registers.r8, 0, 16),
        _ => return Ok(()),
    };
    let place = registers.rsp.wrapping_sub(RED_ZONE + 64) & !15;
    // A call that is made again after a stop has been seen to already.
    if *argument == 0 || *argument == place {
        return Ok(());
    }
    let mut request = vec![0; length];
    read(pid, *argument, &mut request)?;
    let seconds = word(&request, offset);
    if !(WALL_CLOCK_SECONDS..u64::MAX / 2).contains(&seconds) {
        return Ok(());
    }
    let seconds = seconds.saturating_sub(ahead.as_secs());
    request[offset..offset + 8].copy_from_slice(&seconds.to_ne_bytes());
    put(pid, place, &request)?;
    *argument = place;
    sys::set_registers(pid, registers)
}

/// Strikes the kernel's library from the auxiliary vector of a program that is about to begin.
pub(super) fn hide_library(pid: Pid) -> io::Result<()> {
    let registers = sys::registers(pid)?;
    // linux v6.18 arch/x86/include/asm/segment.h: the code segment of 64-bit programs, with the user's privilege.
    if registers.cs != 0x33 {
        return Ok(());
    }
    // System V ABI for x86-64, 3.4.1: the number of arguments, these, 0, the environment, 0, pairs of type and value up to type 0.
    let mut stack = Words {
        pid,
        next: registers.rsp,
        chunk: Vec::new(),
    };
    let arguments = stack.take()?;
    for _ in 0..=arguments {
        stack.take()?;
    }
    while stack.take()? != 0 {}
    loop {
        let place = stack.next;
        match stack.take()? {
            0 => return Ok(()),
            AT_SYSINFO_EHDR => return put(pid, place, &AT_IGNORE.to_ne_bytes()),
            _ => stack.take()?,
        };
    }
}

/// The words of a tracee's memory from some place on.
struct Words {
    pid: Pid,
    next: u64,
    chunk: Vec<u8>,
}

impl Words {
    fn take(&mut self) -> io::Result<u64> {
        if self.chunk.is_empty() {
            // No chunk reaches over the end of a page, and so over that of the stack.
            let length = 4096 - self.next % 4096;
            self.chunk.resize(usize::try_from(length).unwrap_or(8), 0);
            read(self.pid, self.next, &mut self.chunk)?;
        }
        let found = word(&self.chunk, 0);
        self.chunk.drain(..8);
        self.next += 8;
        Ok(found)
    }
}

/// uname(2), but of a kernel of another release, as on another machine.
fn other_kernel() -> Vec<u8> {
    let uname = rustix::system::uname();
    let release = format!("{}-elsewhere", uname.release().to_string_lossy());
    let fields = [
        uname.sysname().to_bytes(),
        uname.nodename().to_bytes(),
        release.as_bytes(),
        b"#1 SMP another build",
        uname.machine().to_bytes(),
        uname.domainname().to_bytes(),
    ];
    // linux v6.18 include/uapi/linux/utsname.h: __NEW_UTS_LEN and the zero byte at the end.
    let mut found = Vec::with_capacity(fields.len() * 65);
    for field in fields {
        let end = found.len() + 65;
        found.extend(&field[..field.len().min(64)]);
        found.resize(end, 0);
    }
    found
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_ne_bytes(word)
}

fn bytes(words: &[u64; 2]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn put(pid: Pid, place: u64, bytes: &[u8]) -> io::Result<()> {
    let remote = [remote(place, bytes.len())?];
    whole(
        process_vm_writev(tracee(pid), &[IoSlice::new(bytes)], &remote)?,
        bytes.len(),
    )
}

fn remote(place: u64, len: usize) -> io::Result<RemoteIoVec> {
    let base = usize::try_from(place).map_err(io::Error::other)?;
    Ok(RemoteIoVec { base, len })
}

fn tracee(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get())
}

/// Some of it was there, and the rest is no memory of the program.
fn whole(done: usize, wanted: usize) -> io::Result<()> {
    if done < wanted {
        return Err(rustix::io::Errno::FAULT.into());
    }
    Ok(())
}

fn put_unless_null(pid: Pid, place: u64, bytes: &[u8]) -> io::Result<()> {
    if place == 0 {
        return Ok(());
    }
    put(pid, place, bytes)
}

fn read(pid: Pid, place: u64, into: &mut [u8]) -> io::Result<()> {
    let remote = [remote(place, into.len())?];
    let length = into.len();
    whole(
        process_vm_readv(tracee(pid), &mut [IoSliceMut::new(into)], &remote)?,
        length,
    )
}

// SPDX-License-Identifier: Apache-2.0
//! A terminal between the caller's and an interactive command's.
//!
//! The command gets a pseudo-terminal of its own, as its controlling one: job control works, Ctrl-C goes to the command and not to the
//! caller, and whatever the command does to its terminal (also typing into it, `TIOCSTI`) does not reach the caller's.

use crate::sandbox::Error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize, isatty};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The caller's side of a pseudo-terminal.
pub(crate) struct Terminal {
    master: OwnedFd,
    path: PathBuf,
    /// The caller's standard input with the mode to be restored, if it is a terminal.
    keyboard: Option<(OwnedFd, Termios)>,
    /// The caller's terminal.
    screen: OwnedFd,
    size: Option<Winsize>,
    /// What was typed and the command has not taken yet.
    typed: Vec<u8>,
    over: bool,
}

impl Terminal {
    /// Returns the three streams for a command; those that are terminals are replaced by a new one.
    pub(crate) fn open() -> Result<(Option<Self>, Vec<OwnedFd>), Error> {
        Self::try_open().map_err(|error| Error::Setup {
            action: "give the command the standard streams".to_owned(),
            source: error.into(),
        })
    }

    fn try_open() -> rustix::io::Result<(Option<Self>, Vec<OwnedFd>)> {
        let streams = [
            rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?,
            rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?,
            rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?,
        ];
        let Some(screen) = [1, 2, 0]
            .into_iter()
            .find(|&stream| isatty(&streams[stream]))
        else {
            return Ok((None, streams.into()));
        };
        let screen = rustix::io::fcntl_dupfd_cloexec(&streams[screen], 3)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let path = rustix::pty::ptsname(&master, Vec::new())?;
        let path = PathBuf::from(OsStr::from_bytes(path.as_bytes()));
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::termios::tcsetattr(
            &slave,
            OptionalActions::Now,
            &rustix::termios::tcgetattr(&screen)?,
        )?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let keyboard = if isatty(&streams[0]) {
            let keyboard = rustix::io::fcntl_dupfd_cloexec(&streams[0], 3)?;
            let before = rustix::termios::tcgetattr(&keyboard)?;
            let mut raw = before.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(&keyboard, OptionalActions::Drain, &raw)?;
            Some((keyboard, before))
        } else {
            None
        };
        let mut terminal = Self {
            master,
            path,
            keyboard,
            screen,
            size: None,
            typed: Vec::new(),
            over: false,
        };
        terminal.follow_size();
        let mut replaced = Vec::new();
        for stream in streams {
            replaced.push(if isatty(&stream) {
                rustix::io::fcntl_dupfd_cloexec(&slave, 3)?
            } else {
                stream
            });
        }
        Ok((Some(terminal), replaced))
    }

    /// Returns the path of the command's side.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn waited(&self) -> Vec<PollFd<'_>> {
        let mut waited = Vec::new();
        if !self.over {
            let mut events = PollFlags::IN;
            events.set(PollFlags::OUT, !self.typed.is_empty());
            waited.push(PollFd::new(&self.master, events));
        }
        if let (Some((keyboard, _)), true) = (&self.keyboard, self.typed.is_empty()) {
            waited.push(PollFd::new(keyboard, PollFlags::IN));
        }
        waited
    }

    /// Passes on what was typed and what the command wrote.
    pub(crate) fn pass(&mut self) {
        self.follow_size();
        self.take_typed();
        if !self.typed.is_empty() && !self.over {
            match rustix::io::write(&self.master, &self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => self.over = true,
            }
        }
        let mut buffer = [0; 4096];
        // A command that writes without end must not keep us from the keyboard.
        for _ in 0..16 {
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(length) if length > 0 => self.show(&buffer[..length]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                // EIO: nobody has the other side open any more.
                _ => {
                    self.over = true;
                    break;
                }
            }
        }
    }

    fn take_typed(&mut self) {
        let Some((keyboard, _)) = &self.keyboard else {
            return;
        };
        if !self.typed.is_empty() {
            return;
        }
        let mut waited = [PollFd::new(keyboard, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut waited, Some(&now)).is_ok_and(|ready| ready > 0) {
            let mut buffer = [0; 4096];
            match rustix::io::read(keyboard, &mut buffer) {
                Ok(length) if length > 0 => self.typed.extend_from_slice(&buffer[..length]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // The caller's terminal hung up.
                _ => self.restore(),
            }
        }
    }

    fn show(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::io::write(&self.screen, bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let mut waited = [PollFd::new(&self.screen, PollFlags::OUT)];
                    let _ = poll(&mut waited, None);
                }
                Err(_) => return,
            }
        }
    }

    fn follow_size(&mut self) {
        let now = rustix::termios::tcgetwinsize(self.screen.as_fd()).ok();
        let same = |a: &Winsize, b: &Winsize| (a.ws_row, a.ws_col) == (b.ws_row, b.ws_col);
        if let Some(now) = now
            && self.size.is_none_or(|known| !same(&known, &now))
        {
            // Tells the command by SIGWINCH.
            let _ = rustix::termios::tcsetwinsize(&self.master, now);
            self.size = Some(now);
        }
    }

    fn restore(&mut self) {
        if let Some((keyboard, before)) = self.keyboard.take() {
            let _ = rustix::termios::tcsetattr(&keyboard, OptionalActions::Drain, &before);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

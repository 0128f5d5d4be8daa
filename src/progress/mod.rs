// SPDX-License-Identifier: Apache-2.0
//! Shows a build's events: live on a terminal, as prefixed lines, as JSON, or not at all.

mod json;
mod plain;
mod tty;

use crate::cli::{ProgressKind, When};
use crate::values::{counted, one_line, time};
use obuild_engine::Event;
use std::io::{IsTerminal, stderr};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// One way of showing events.
trait Display: Send {
    /// Takes an event.
    fn event(&mut self, event: &Event);
    /// Writes what it has kept; called when no event waits.
    fn flush(&mut self) {}
    /// Refreshes what changes with time.
    fn tick(&mut self) {}
    /// Leaves the screen as it should stay.
    fn finish(&mut self) {}
}

/// Returns whether standard error gets colours (<https://no-color.org>, and no dumb terminal).
pub(crate) fn colour(when: When) -> bool {
    match when {
        When::Always => true,
        When::Never => false,
        When::Auto => {
            stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    }
}

/// Decides what `auto` means here.
pub(crate) fn choose(kind: ProgressKind) -> ProgressKind {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match kind {
        ProgressKind::Auto if stderr().is_terminal() && !dumb => ProgressKind::Tty,
        ProgressKind::Auto => ProgressKind::Plain,
        kind => kind,
    }
}

/// Shows events until their sender is gone.
pub(crate) fn show(
    kind: ProgressKind,
    colour: bool,
    mut events: Receiver<Event>,
) -> JoinHandle<()> {
    let mut display: Box<dyn Display> = match kind {
        ProgressKind::Auto | ProgressKind::Plain => Box::new(plain::Plain::new(colour)),
        ProgressKind::Tty => Box::new(tty::Tty::new(colour)),
        ProgressKind::Json => Box::new(json::Json::default()),
        ProgressKind::Quiet => Box::new(Quiet),
    };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        display.event(&event);
                        if events.is_empty() {
                            display.flush();
                        }
                    }
                    None => break,
                },
                _ = ticks.tick() => display.tick(),
            }
        }
        display.finish();
    })
}

struct Quiet;

impl Display for Quiet {
    fn event(&mut self, _: &Event) {}
}

/// Splits a step's output into lines; a last line without an end is kept for the next piece.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

/// A line longer than this is shown in pieces.
const LONGEST: usize = 16 * 1024;

impl Lines {
    fn push(&mut self, data: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() > LONGEST {
                self.flush(&mut line);
            }
        }
    }

    fn flush(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.rest.is_empty() {
            let text = self.rest.strip_suffix(b"\n").unwrap_or(&self.rest);
            line(text.strip_suffix(b"\r").unwrap_or(text));
            self.rest.clear();
        }
    }
}

/// Where a step stands: `[dev]` for one of a nested build, and its heading on one line.
fn title(build: &[String], heading: &str) -> String {
    let heading = one_line(heading);
    if build.is_empty() {
        heading
    } else {
        format!("[{}] {heading}", build.join("/"))
    }
}

/// A finished build in one line.
fn summary(built: usize, cached: usize, fetched: usize, duration: Duration) -> String {
    let fetched = match fetched {
        0 => String::new(),
        fetched => format!("{fetched} fetched, "),
    };
    let (built, time) = (counted(built, "step"), time(duration));
    format!("{built} built, {fetched}{cached} cached, in {time}")
}

#[cfg(test)]
mod tests {
    use super::Lines;

    #[test]
    fn lines_are_whole_wherever_pieces_end() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for piece in ["a", "b\r\nc\n\nd", "e"] {
            lines.push(piece.as_bytes(), |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        lines.flush(|line| seen.push(String::from_utf8_lossy(line).into_owned()));
        assert_eq!(seen, ["ab", "c", "", "de"]);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The live view: finished steps scroll up as one line each, running ones stand below with their time and last lines.

use super::{Display, Lines, summary, title};
use crate::values::{size, time};
use obuild_engine::{Event, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Write, stderr};
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthChar;

/// Lines of output kept for each running step; a failed step shows them all.
const KEPT: usize = 30;
/// Lines of output shown below a running step.
const SHOWN: usize = 6;

pub(super) struct Tty {
    colour: bool,
    began: Instant,
    total: usize,
    finished: usize,
    running: BTreeMap<usize, Running>,
    /// Lines of the live part that are on the screen now.
    drawn: usize,
    dirty: bool,
}

struct Running {
    title: String,
    began: Instant,
    lines: Lines,
    last: VecDeque<String>,
    progress: Option<(u64, Option<u64>)>,
    shared: bool,
}

impl Tty {
    pub(super) fn new(colour: bool) -> Self {
        Self {
            colour,
            began: Instant::now(),
            total: 0,
            finished: 0,
            running: BTreeMap::new(),
            drawn: 0,
            dirty: false,
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Writes lines above the live part, for ever.
    fn scroll(&mut self, lines: &[String]) {
        let mut out = self.erase();
        for line in lines {
            out.push_str(line);
            out.push('\n');
        }
        write(&out);
        self.dirty = true;
    }

    fn erase(&mut self) -> String {
        let drawn = std::mem::take(&mut self.drawn);
        if drawn == 0 {
            String::new()
        } else {
            format!("\x1b[{drawn}A\r\x1b[J")
        }
    }

    fn draw(&mut self) {
        let (width, height) = screen();
        let mut lines = Vec::new();
        // However many steps run, the live part must fit the screen, or erasing it would not reach its top.
        let room = height.saturating_sub(3).max(1);
        let each = (room / self.running.len().max(1)).clamp(1, SHOWN + 1);
        for running in self.running.values().take(room) {
            let mut right = time(rounded(running.began.elapsed()));
            if let Some((done, total)) = running.progress {
                right = match total {
                    Some(total) => format!("{} / {}  {right}", size(done), size(total)),
                    None => format!("{}  {right}", size(done)),
                };
            }
            if running.shared {
                right = format!("(another obuild)  {right}");
            }
            let left = fit(
                &running.title,
                width.saturating_sub(right.chars().count() + 5),
            );
            let pad = width.saturating_sub(columns(&left) + right.chars().count() + 4);
            lines.push(format!(
                "{} {left}{:pad$} {}",
                self.paint("1;34", "=>"),
                "",
                self.paint("2", &right)
            ));
            let skip = running.last.len().saturating_sub(each - 1);
            for line in running.last.iter().skip(skip) {
                lines.push(self.paint("2", &format!("   {}", fit(line, width.saturating_sub(4)))));
            }
        }
        let status = format!(
            "{} of {} steps, {}",
            self.finished,
            self.total,
            time(rounded(self.began.elapsed()))
        );
        lines.push(self.paint("1", &fit(&status, width.saturating_sub(1))));
        let mut out = self.erase();
        for line in &lines {
            out.push_str(line);
            out.push('\n');
        }
        self.drawn = lines.len();
        write(&out);
        self.dirty = false;
    }
}

fn write(text: &str) {
    // Nobody reads standard error any more: the build goes on.
    let _ = stderr().write_all(text.as_bytes());
}

/// Whole tenths below a minute, so that the numbers do not flicker.
fn rounded(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis() / 100 * 100).unwrap_or(u64::MAX))
        .max(Duration::from_secs(1).min(duration))
}

fn screen() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(stderr()) {
        Ok(size) if size.ws_col > 0 => (usize::from(size.ws_col), usize::from(size.ws_row.max(4))),
        _ => (80, 24),
    }
}

fn columns(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Cuts text to a number of columns; control characters (a step may print any) are dropped.
fn fit(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars().filter(|c| !c.is_control()) {
        let w = c.width().unwrap_or(0);
        if used + w > width.saturating_sub(1) && columns(text) > width {
            out.push('…');
            break;
        }
        used += w;
        out.push(c);
    }
    out
}

/// Drops escape sequences (colours, cursor moves) from a line, and what a carriage return has overwritten.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text
        .rsplit('\r')
        .find(|part| !part.is_empty())
        .unwrap_or("");
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            match chars.next() {
                // ECMA-48: a control sequence ends with a character from @ to ~.
                Some('[') => drop(chars.by_ref().find(|c| ('@'..='~').contains(c))),
                // A title or a link ends with BEL or ESC \.
                Some(']') => drop(chars.by_ref().find(|c| matches!(c, '\x07' | '\\'))),
                _ => {}
            }
        } else if c == '\t' {
            out.push_str("    ");
        } else if !c.is_control() {
            out.push(c);
        }
    }
    out
}

impl Display for Tty {
    fn event(&mut self, event: &Event) {
        match event {
            Event::BuildStarted { steps } => self.total = *steps,
            Event::StepStarted {
                step,
                build,
                heading,
                ..
            } => {
                self.running.insert(
                    *step,
                    Running {
                        title: title(build, heading),
                        began: Instant::now(),
                        lines: Lines::default(),
                        last: VecDeque::new(),
                        progress: None,
                        shared: false,
                    },
                );
            }
            Event::StepShared { step } => {
                if let Some(running) = self.running.get_mut(step) {
                    running.shared = true;
                }
            }
            Event::StepOutput { step, data } => {
                if let Some(running) = self.running.get_mut(step) {
                    let last = &mut running.last;
                    running.lines.push(data, |line| keep(last, line));
                }
            }
            Event::StepProgress {
                step,
                done_bytes,
                total_bytes,
            } => {
                if let Some(running) = self.running.get_mut(step) {
                    running.progress = Some((*done_bytes, *total_bytes));
                }
            }
            Event::StepFinished {
                step,
                outcome,
                duration,
                ..
            } => {
                self.finished += 1;
                if let Some(running) = self.running.remove(step) {
                    let (width, _) = screen();
                    let how = match outcome {
                        Outcome::Cached => "cached".to_owned(),
                        Outcome::Built => time(*duration),
                        Outcome::Fetched => format!("fetched, {}", time(*duration)),
                        Outcome::Shared => format!("shared, {}", time(*duration)),
                    };
                    let left = fit(&running.title, width.saturating_sub(how.len() + 5));
                    let pad = width.saturating_sub(columns(&left) + how.len() + 4);
                    let line = format!(
                        "{} {left}{:pad$} {}",
                        self.paint("32", "ok"),
                        "",
                        self.paint("2", &how)
                    );
                    self.scroll(&[line]);
                }
            }
            Event::StepFailed { step, error, .. } => {
                if let Some(mut running) = self.running.remove(step) {
                    let last = &mut running.last;
                    running.lines.flush(|line| keep(last, line));
                    let (width, _) = screen();
                    let mut lines = vec![format!(
                        "{} {}",
                        self.paint("1;31", "failed"),
                        running.title
                    )];
                    lines.extend(running.last.iter().map(|line| format!("   {line}")));
                    lines.push(format!(
                        "   {}",
                        self.paint("31", &fit(error, width.saturating_sub(4)))
                    ));
                    self.scroll(&lines);
                }
            }
            Event::Warning { message } => {
                let line = format!("{}: {message}", self.paint("33", "warning"));
                self.scroll(&[line]);
            }
            Event::BuildFinished {
                built,
                cached,
                fetched,
                duration,
                ..
            } => {
                self.running.clear();
                self.scroll(&[summary(*built, *cached, *fetched, *duration)]);
            }
            _ => {}
        }
    }

    fn tick(&mut self) {
        if !self.running.is_empty() || self.dirty {
            self.draw();
        }
    }

    fn finish(&mut self) {
        let out = self.erase();
        write(&out);
    }
}

fn keep(last: &mut VecDeque<String>, line: &[u8]) {
    if last.len() == KEPT {
        last.pop_front();
    }
    last.push_back(clean(line));
}

#[cfg(test)]
mod tests {
    use super::{clean, fit};

    #[test]
    fn what_a_step_prints_cannot_move_the_cursor() {
        assert_eq!(clean(b"\x1b[31mred\x1b[0m \x1b[2Jx\tY"), "red x    Y");
        assert_eq!(clean(b"10%\r20%\r"), "20%");
        assert_eq!(clean(b"\x1b]0;title\x07x"), "x");
    }

    #[test]
    fn lines_are_cut_to_the_screen() {
        assert_eq!(fit("short", 10), "short");
        assert_eq!(fit("a long heading", 7), "a long…");
        assert_eq!(fit("日本語テキスト", 7), "日本語…");
    }
}

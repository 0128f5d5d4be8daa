// SPDX-License-Identifier: Apache-2.0
//! Every event as a line, each prefixed by its step's number: for logs and pipes.

use super::{Display, Lines, summary, title};
use crate::values::{size, time};
use obuild_engine::{Event, Outcome};
use std::collections::HashMap;
use std::io::{Write, stderr};
use std::time::Instant;

/// So much is kept before it is written.
const BUFFER_BYTES: usize = 64 * 1024;

pub(super) struct Plain {
    colour: bool,
    /// What is to be written at the next flush.
    text: Vec<u8>,
    lines: HashMap<usize, Lines>,
    told: HashMap<usize, Instant>,
}

impl Plain {
    pub(super) fn new(colour: bool) -> Self {
        Self {
            colour,
            text: Vec::new(),
            lines: HashMap::new(),
            told: HashMap::new(),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(&mut self, step: usize, code: &str, text: &str) {
        let text = if code.is_empty() {
            text.to_owned()
        } else {
            self.paint(code, text)
        };
        self.text
            .extend_from_slice(format!("#{step} {text}\n").as_bytes());
    }

    fn end(&mut self, step: usize) {
        if let Some(mut lines) = self.lines.remove(&step) {
            lines.flush(|line| output(&mut self.text, step, line));
        }
        self.told.remove(&step);
    }
}

fn output(text: &mut Vec<u8>, step: usize, line: &[u8]) {
    text.extend_from_slice(format!("#{step} | ").as_bytes());
    text.extend_from_slice(line);
    text.push(b'\n');
}

impl Display for Plain {
    fn event(&mut self, event: &Event) {
        match event {
            Event::StepStarted {
                step,
                build,
                heading,
                preamble,
                ..
            } => {
                for earlier in preamble {
                    self.line(*step, "2", &title(build, earlier));
                }
                self.line(*step, "1;34", &title(build, heading));
            }
            Event::StepShared { step } => {
                self.line(
                    *step,
                    "33",
                    "another obuild is running this step; following it",
                );
            }
            Event::StepOutput { step, data } => {
                self.lines
                    .entry(*step)
                    .or_default()
                    .push(data, |line| output(&mut self.text, *step, line));
            }
            Event::StepProgress {
                step,
                done_bytes,
                total_bytes,
            } => {
                // Every five seconds is enough for a log.
                let due = self
                    .told
                    .get(step)
                    .is_none_or(|told| told.elapsed().as_secs() >= 5);
                if due {
                    self.told.insert(*step, Instant::now());
                    let total = total_bytes
                        .map(|total| format!(" of {}", size(total)))
                        .unwrap_or_default();
                    self.line(*step, "2", &format!("{}{total}", size(*done_bytes)));
                }
            }
            Event::StepFinished {
                step,
                id,
                outcome,
                duration,
            } => {
                self.end(*step);
                let how = match outcome {
                    Outcome::Cached => "cached".to_owned(),
                    Outcome::Built => format!("done in {}", time(*duration)),
                    Outcome::Fetched => format!("fetched in {}", time(*duration)),
                    Outcome::Shared => format!("shared with another build, {}", time(*duration)),
                };
                self.line(*step, "32", &format!("{how}: {}", &id[..12]));
            }
            Event::StepFailed {
                step,
                error,
                duration,
                ..
            } => {
                self.end(*step);
                self.line(
                    *step,
                    "31",
                    &format!("failed after {}: {error}", time(*duration)),
                );
            }
            Event::Warning { message } => {
                let line = format!("{}: {message}\n", self.paint("33", "warning"));
                self.text.extend_from_slice(line.as_bytes());
            }
            Event::BuildFinished {
                built,
                cached,
                fetched,
                duration,
                ..
            } => {
                let line = format!("{}\n", summary(*built, *cached, *fetched, *duration));
                self.text.extend_from_slice(line.as_bytes());
            }
            _ => {}
        }
        if self.text.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        // Nobody reads standard error any more: the build goes on.
        let _ = stderr().write_all(&self.text);
        self.text.clear();
    }

    fn finish(&mut self) {
        let open: Vec<usize> = self.lines.keys().copied().collect();
        for step in open {
            self.end(step);
        }
        self.flush();
    }
}

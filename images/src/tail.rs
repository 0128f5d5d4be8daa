// SPDX-License-Identifier: Apache-2.0
//! The end of a program's output, for its error message.

use std::collections::VecDeque;

/// Lines that are kept.
const LINES: usize = 3;

/// The last lines that were pushed.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    /// Adds a line unless it is blank.
    pub(crate) fn push(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line).trim().to_owned();
        if line.is_empty() {
            return;
        }
        if self.0.len() == LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// Returns the lines, oldest first.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}

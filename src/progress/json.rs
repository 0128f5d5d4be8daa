// SPDX-License-Identifier: Apache-2.0
//! One JSON object a line, on standard error. The objects are documented in `docs/src/events.md`.

use super::Display;
use obuild_engine::Event;
use std::io::{Write, stderr};

/// So much is kept before it is written.
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct Json {
    /// What is to be written at the next flush.
    text: Vec<u8>,
}

impl Display for Json {
    fn event(&mut self, event: &Event) {
        // Writing to memory cannot fail, and every event has a JSON form.
        let _ = serde_json::to_writer(&mut self.text, event);
        self.text.push(b'\n');
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
        self.flush();
    }
}

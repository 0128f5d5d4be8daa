// SPDX-License-Identifier: Apache-2.0
//! One JSON object a line, on standard error. The objects are documented in `docs/src/events.md`.

use super::Display;
use obuild_engine::Event;
use std::io::{Write, stderr};

pub(super) struct Json;

impl Display for Json {
    fn event(&mut self, event: &Event) {
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        // Nobody reads standard error any more: the build goes on.
        let _ = stderr().write_all(&line);
    }
}

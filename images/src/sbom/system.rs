// SPDX-License-Identifier: Apache-2.0
//! Which operating system a tree is: os-release(5).

use super::files::Files;
use super::paragraphs::text;
use super::{SbomError, System};
use bstr::ByteSlice;

/// The longest file that is taken for one; real ones have a few hundred bytes.
const LONGEST: u64 = 64 << 10;

pub(super) fn read(files: &Files<'_>) -> Result<Option<System>, SbomError> {
    // The order is os-release(5)'s.
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if let Some(content) = files.document(path.as_bytes(), LONGEST)? {
            return Ok(parse(&content));
        }
    }
    Ok(None)
}

fn parse(content: &[u8]) -> Option<System> {
    let value = |name: &str| {
        let mut lines = content.lines().filter_map(|line| line.split_once_str("="));
        // A later line wins, as in the shell.
        let (_, value) = lines.rfind(|(found, _)| found.trim_ascii() == name.as_bytes())?;
        let value = unquote(&text(value.trim_ascii()));
        (!value.is_empty()).then_some(value)
    };
    Some(System {
        id: value("ID")?,
        version: value("VERSION_ID"),
        name: value("PRETTY_NAME").or_else(|| value("NAME")),
    })
}

/// Takes away the shell's quotes.
fn unquote(value: &str) -> String {
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    let Some(inner) = inner else {
        return value.to_owned();
    };
    if value.starts_with('\'') {
        return inner.to_owned();
    }
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        plain.extend(match character {
            '\\' => characters.next(),
            other => Some(other),
        });
    }
    plain
}

impl System {
    /// Returns the `distro` qualifier of package URLs, as vulnerability scanners expect it: `debian-12`.
    pub(super) fn distribution(&self) -> String {
        match &self.version {
            Some(version) => format!("{}-{version}", self.id),
            None => self.id.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_the_shells() {
        let system =
            parse(b"# x\nNAME='A \"B\"'\nID=old\nID=debian\nVERSION_ID=\"1\\\"2\"\n\xff=\n");
        let system = system.expect("it has an ID");
        assert_eq!(system.distribution(), "debian-1\"2");
        assert_eq!(system.name.as_deref(), Some("A \"B\""));
        assert_eq!(parse(b"NAME=x\n"), None);
        assert_eq!(unquote("\""), "\"");
        assert_eq!(unquote("\"a\\"), "\"a\\");
    }
}

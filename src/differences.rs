// SPDX-License-Identifier: Apache-2.0
//! Differences of trees as people and programs read them.

use bstr::{BStr, ByteSlice};
use obuild_images::tree::ChangeKind;
use obuild_images::{Aspect, Difference, Piece};
use serde_json::{Value, json};
use std::fmt::Write as _;

fn letter(kind: ChangeKind) -> char {
    match kind {
        ChangeKind::Added => 'A',
        ChangeKind::Changed => 'C',
        ChangeKind::Deleted => 'D',
    }
}

/// Returns lines: a letter and the path as `docker diff` has them, and below what differs.
pub(crate) fn text(difference: &Difference) -> String {
    let mut text = format!(
        "{} /{}\n",
        letter(difference.kind),
        shown(difference.path.as_bstr())
    );
    // Writing to a string cannot fail.
    for aspect in &difference.aspects {
        let _ = match aspect {
            Aspect::Kind(was, now) => writeln!(text, "    kind: {was} → {now}"),
            Aspect::Mode(was, now) => writeln!(text, "    mode: {was:04o} → {now:04o}"),
            Aspect::Owner(was, now) => {
                writeln!(text, "    owner: {}:{} → {}:{}", was.0, was.1, now.0, now.1)
            }
            Aspect::Time(was, now) => writeln!(text, "    time: {} → {}", time(*was), time(*now)),
            Aspect::Attributes(names) => {
                let names: Vec<String> = names.iter().map(|name| shown(name.as_bstr())).collect();
                writeln!(text, "    attributes: {}", names.join(", "))
            }
            Aspect::Target(was, now) => writeln!(
                text,
                "    target: {} → {}",
                shown(was.as_bstr()),
                shown(now.as_bstr())
            ),
            Aspect::Device(was, now) => writeln!(
                text,
                "    device: {}:{} → {}:{}",
                was.0, was.1, now.0, now.1
            ),
            Aspect::Links => writeln!(text, "    hard links"),
            Aspect::Content(piece) => {
                self::piece(&mut text, piece);
                Ok(())
            }
        };
    }
    text
}

fn piece(text: &mut String, piece: &Piece) {
    match piece {
        Piece::Lines(first, was, now) => {
            let _ = writeln!(text, "    line {first}:");
            for (sign, lines) in [('-', was), ('+', now)] {
                for line in lines {
                    let _ = writeln!(text, "      {sign}{}", shown(line.as_bstr()));
                }
            }
        }
        Piece::Members(members) => {
            for member in members {
                let name = shown(member.name.as_bstr());
                let _ = writeln!(text, "    member {name}: {}", member.what);
            }
        }
        Piece::Bytes {
            offset,
            was,
            now,
            sizes,
        } => {
            if sizes.0 != sizes.1 {
                let _ = writeln!(text, "    size: {} → {}", sizes.0, sizes.1);
            }
            let _ = writeln!(text, "    byte {offset}: {} → {}", bytes(was), bytes(now));
        }
    }
}

fn bytes(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "(end)".to_owned();
    }
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

/// A name or a line without what would move a terminal's cursor.
fn shown(text: &BStr) -> String {
    let mut shown = String::new();
    for (start, end, c) in text.char_indices() {
        if c == char::REPLACEMENT_CHARACTER || c.is_control() && c != '\t' {
            for byte in text[start..end].as_bytes() {
                let _ = write!(shown, "\\x{byte:02x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// Returns the same as JSON. Bytes that are not UTF-8 are escaped as in the text.
pub(crate) fn json(difference: &Difference) -> Value {
    let pair = |was: String, now: String| json!({"was": was, "now": now});
    let mut value = json!({
        "path": format!("/{}", shown(difference.path.as_bstr())),
        "kind": match difference.kind {
            ChangeKind::Added => "added",
            ChangeKind::Changed => "changed",
            ChangeKind::Deleted => "deleted",
        },
    });
    for aspect in &difference.aspects {
        let (name, found) = match aspect {
            Aspect::Kind(was, now) => ("type", pair((*was).to_owned(), (*now).to_owned())),
            Aspect::Mode(was, now) => ("mode", pair(format!("{was:04o}"), format!("{now:04o}"))),
            Aspect::Owner(was, now) => (
                "owner",
                pair(
                    format!("{}:{}", was.0, was.1),
                    format!("{}:{}", now.0, now.1),
                ),
            ),
            Aspect::Time(was, now) => ("time", pair(time(*was), time(*now))),
            Aspect::Attributes(names) => (
                "attributes",
                names.iter().map(|name| shown(name.as_bstr())).collect(),
            ),
            Aspect::Target(was, now) => {
                ("target", pair(shown(was.as_bstr()), shown(now.as_bstr())))
            }
            Aspect::Device(was, now) => (
                "device",
                pair(
                    format!("{}:{}", was.0, was.1),
                    format!("{}:{}", now.0, now.1),
                ),
            ),
            Aspect::Links => ("hard_links", true.into()),
            Aspect::Content(piece) => ("content", content(piece)),
        };
        value[name] = found;
    }
    value
}

fn content(piece: &Piece) -> Value {
    let lines = |lines: &[bstr::BString]| -> Vec<String> {
        lines.iter().map(|line| shown(line.as_bstr())).collect()
    };
    match piece {
        Piece::Lines(first, was, now) => {
            json!({"line": first, "was": lines(was), "now": lines(now)})
        }
        Piece::Members(members) => {
            let member = |member: &obuild_images::Member| json!({"name": shown(member.name.as_bstr()), "what": member.what});
            json!({"members": members.iter().map(member).collect::<Vec<_>>()})
        }
        Piece::Bytes {
            offset,
            was,
            now,
            sizes,
        } => {
            json!({"offset": offset, "was": bytes(was), "now": bytes(now), "sizes": [sizes.0, sizes.1]})
        }
    }
}

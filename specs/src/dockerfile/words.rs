// SPDX-License-Identifier: Apache-2.0
//! Quoting for Dockerfiles: words that the builder expands, JSON, mount options, source patterns.
//!
//! Facts from BuildKit 0.32 `frontend/dockerfile` (`shell/lex.go`, `parser/line_parsers.go`,
//! `instructions/bflag.go`) and Go's `path/filepath.Match`.

use bstr::ByteSlice;

/// Returns `text` as one word of an instruction whose words are expanded: in double quotes unless it is plain.
pub(super) fn word(text: &str, escape: char) -> String {
    if is_plain(text) {
        text.to_owned()
    } else {
        quoted(text, escape)
    }
}

/// Returns `text` in double quotes, with nothing in it to be expanded.
pub(super) fn quoted(text: &str, escape: char) -> String {
    format!(
        "\"{}\"",
        escaped(text, escape, |character| matches!(character, '"' | '$'))
    )
}

/// Tells whether `text` stands for itself in any instruction.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_./:@%+,=-".contains(&byte))
}

/// Returns a JSON array as instructions take it.
pub(super) fn json(words: &[String]) -> String {
    let words: Vec<String> = words
        .iter()
        .map(|word| serde_json::Value::from(word.as_str()).to_string())
        .collect();
    format!("[{}]", words.join(", "))
}

/// Returns the sources and the destination of a copy: plain, or as a JSON array where a word is not.
pub(super) fn paths(words: &[String], escape: char) -> String {
    if words.iter().all(|word| is_plain(word)) {
        return words.join(" ");
    }
    // The elements of the array are expanded all the same.
    let expandable = |character| matches!(character, '"' | '\'' | '$');
    json(
        &words
            .iter()
            .map(|word| escaped(word, escape, expandable))
            .collect::<Vec<_>>(),
    )
}

/// Returns a pattern that matches `path` alone.
pub(super) fn literal_pattern(path: &str) -> String {
    let mut pattern = String::new();
    for character in path.chars() {
        match character {
            '*' | '?' | '[' => pattern.extend(['[', character, ']']),
            '\\' => pattern.push_str("\\\\"),
            character => pattern.push(character),
        }
    }
    pattern
}

/// Returns a value of `--mount`: a CSV record of `name=value`, fit to stand in a flag.
pub(super) fn mount(options: &[(String, String)], escape: char) -> String {
    let fields: Vec<String> = options
        .iter()
        .map(|(name, value)| {
            // Values are expanded only if they hold a `$`, and only then does the escape character escape.
            let value = if value.contains('$') {
                escaped(value, escape, |character| {
                    matches!(character, '"' | '\'' | '$')
                })
            } else {
                value.clone()
            };
            let field = format!("{name}={value}");
            if field.contains(['"', ',', '\n', '\r']) || field.starts_with(' ') {
                format!("\"{}\"", field.replace('"', "\"\""))
            } else {
                field
            }
        })
        .collect();
    flag(&fields.join(","))
}

/// Returns the value of a flag with what would end it escaped; flags take a backslash whatever the escape is.
pub(super) fn flag(value: &str) -> String {
    escaped(value, '\\', |character| {
        matches!(character, '"' | '\'') || character.is_whitespace()
    })
}

fn escaped(text: &str, escape: char, special: impl Fn(char) -> bool) -> String {
    let mut result = String::with_capacity(text.len() + 2);
    for character in text.chars() {
        if character == escape || special(character) {
            result.push(escape);
        }
        result.push(character);
    }
    result
}

/// Returns bytes as text, and whether they were not.
pub(super) fn text(bytes: &[u8]) -> (String, bool) {
    let text = bytes.to_str_lossy();
    let lossy = matches!(text, std::borrow::Cow::Owned(_));
    (text.into_owned(), lossy)
}

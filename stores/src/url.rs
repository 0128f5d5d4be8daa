// SPDX-License-Identifier: Apache-2.0
//! The text that names a store, `KIND:/PATH`, and the choice of a kind when nobody named one.

use crate::{Error, Kind, StoreUrl, tree};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

impl Kind {
    /// All kinds, the default first.
    pub const ALL: [Self; 3] = [Self::Overlay, Self::Btrfs, Self::Docker];

    /// Returns the word that begins its URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Btrfs => "btrfs",
            Self::Docker => "docker",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.kind, self.path.display())
    }
}

impl FromStr for StoreUrl {
    type Err = Error;

    /// Parses `KIND:/ABSOLUTE/PATH`.
    fn from_str(url: &str) -> Result<Self, Error> {
        let bad = |reason: String| Error::BadUrl {
            url: url.to_owned(),
            reason,
        };
        let Some((name, path)) = url.split_once(':') else {
            return Err(bad(format!("a store is written {}", forms())));
        };
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else {
            let hint =
                nearest(name).map_or(String::new(), |near| format!(", did you mean {near}?"));
            return Err(bad(format!(
                "there is no kind {name:?}{hint} A store is written {}",
                forms()
            )));
        };
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(bad(format!(
                "the path must be absolute, for example {name}:/var/lib/obuild"
            )));
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(bad("the path holds a NUL character".to_owned()));
        }
        Ok(Self {
            kind,
            path: path.to_owned(),
        })
    }
}

/// Returns the store to use at `path` when nobody chose a kind: btrfs where `path`, or the nearest directory
/// above it that is there, is on btrfs, else overlay.
pub fn best(path: &Path) -> StoreUrl {
    let on_btrfs = path
        .ancestors()
        .find_map(|ancestor| rustix::fs::statfs(ancestor).ok())
        .is_some_and(|statfs| tree::is_btrfs(&statfs));
    StoreUrl {
        kind: if on_btrfs { Kind::Btrfs } else { Kind::Overlay },
        path: path.to_owned(),
    }
}

/// Lists how a URL may look.
fn forms() -> String {
    Kind::ALL.map(|kind| format!("{kind}:/PATH")).join(" or ")
}

/// Returns the kind that a mistyped `name` most likely means.
fn nearest(name: &str) -> Option<Kind> {
    Kind::ALL
        .into_iter()
        .map(|kind| (distance(name, kind.name()), kind))
        .filter(|(distance, _)| *distance <= 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, kind)| kind)
}

/// Counts the single-character edits between two words (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.chars().take(32).enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, to) in right.iter().enumerate() {
            let above = row[column + 1];
            row[column + 1] = (diagonal + usize::from(from != *to))
                .min(above + 1)
                .min(row[column] + 1);
            diagonal = above;
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_reads_back_as_written() {
        for text in ["overlay:/var/lib/obuild", "btrfs:/", "overlay:/a:b c"] {
            assert_eq!(text.parse::<StoreUrl>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_urls_say_what_would_be_right() {
        let reason = |text: &str| text.parse::<StoreUrl>().unwrap_err().to_string();
        assert!(reason("/var/lib").contains("overlay:/PATH or btrfs:/PATH"));
        assert!(reason("overlayfs:/x").contains("did you mean overlay?"));
        assert!(reason("zebra:/x").contains("there is no kind \"zebra\" A store"));
        assert!(reason("btrfs:x").contains("absolute, for example btrfs:/"));
        assert!(reason("btrfs:").contains("absolute"));
        assert!(reason("").contains("overlay:/PATH"));
    }

    #[test]
    fn the_best_kind_is_found_from_the_nearest_directory() {
        assert_eq!(best(Path::new("/proc/nowhere/at/all")).kind, Kind::Overlay);
    }
}

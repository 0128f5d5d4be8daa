// SPDX-License-Identifier: Apache-2.0
//! The text that names a store, `KIND:/PATH`, and the choice of a kind when nobody named one.

use crate::{Error, Kind, RsyncMode, StoreUrl, tree};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

impl Kind {
    /// All kinds, the default first.
    pub const ALL: [Self; 6] = [
        Self::Overlay,
        Self::Btrfs,
        Self::Zfs,
        Self::Xfs,
        Self::Rsync,
        Self::Docker,
    ];

    /// Returns the word that begins its URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
            Self::Rsync => "rsync",
            Self::Zfs => "zfs",
            Self::Docker => "docker",
        }
    }

    /// Returns how its URLs look.
    fn form(self) -> String {
        match self {
            Self::Zfs => "zfs:POOL/DATASET".to_owned(),
            _ => format!("{self}:/PATH"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl RsyncMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Copy, Self::Hardlink, Self::HardlinkUnsafe];

    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Hardlink => "hardlink",
            Self::HardlinkUnsafe => "hardlink-unsafe",
        }
    }
}

impl fmt::Display for RsyncMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for RsyncMode {
    type Err = String;

    /// Parses the word; OBuilder writes `hardlink_unsafe`.
    fn from_str(text: &str) -> Result<Self, String> {
        let word = text.replace('_', "-");
        let found = Self::ALL.into_iter().find(|mode| mode.name() == word);
        found.ok_or_else(|| {
            format!("{text:?} is no rsync mode; there are copy, hardlink and hardlink-unsafe")
        })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.kind, self.path.display())
    }
}

impl FromStr for StoreUrl {
    type Err = Error;

    /// Parses `KIND:/ABSOLUTE/PATH` or `zfs:POOL/DATASET`.
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
        if kind == Kind::Zfs {
            check_dataset(path).map_err(bad)?;
            return Ok(Self {
                kind,
                path: path.into(),
            });
        }
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
/// above it that is there, is on btrfs, else overlay. In a user namespace it is overlay too: an ordinary user may delete no subvolumes
/// unless the file system is mounted for that.
pub fn best(path: &Path) -> StoreUrl {
    let on_btrfs = path
        .ancestors()
        .find_map(|ancestor| rustix::fs::statfs(ancestor).ok())
        .is_some_and(|statfs| tree::is_btrfs(&statfs))
        && obuild_rootless::current().is_none();
    StoreUrl {
        kind: if on_btrfs { Kind::Btrfs } else { Kind::Overlay },
        path: path.to_owned(),
    }
}

/// Lists how a URL may look.
fn forms() -> String {
    Kind::ALL.map(Kind::form).join(" or ")
}

/// Longer names of datasets leave no room below them for those of trees and snapshots: ZFS takes 255 bytes for all
/// (`ZFS_MAX_DATASET_NAME_LEN`, OpenZFS include/sys/fs/zfs.h).
const LONGEST_DATASET: usize = 120;

/// Checks the name of a dataset by the rules of `zfs(8)`; returns what is wrong with it.
fn check_dataset(name: &str) -> Result<(), String> {
    let like = "for example zfs:tank/obuild";
    if name.starts_with('/') {
        return Err(format!(
            "a dataset is named by its pool, not by where it is mounted, {like}"
        ));
    }
    if !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Err(format!("the name of a pool begins with a letter, {like}"));
    }
    if name.split('/').any(|part| ["", ".", ".."].contains(&part)) {
        return Err(format!("a part of the dataset's name is missing, {like}"));
    }
    let odd = |c: &char| !c.is_ascii_alphanumeric() && !"-_.:/".contains(*c);
    if let Some(odd) = name.chars().find(odd) {
        return Err(format!("the name of a dataset cannot hold {odd:?}, {like}"));
    }
    if name.len() > LONGEST_DATASET {
        return Err(format!(
            "the name of the dataset is longer than {LONGEST_DATASET} characters"
        ));
    }
    Ok(())
}

/// Returns the kind that a mistyped `name` most likely means.
fn nearest(name: &str) -> Option<Kind> {
    Kind::ALL
        .into_iter()
        .map(|kind| (distance(name, kind.name()), kind))
        .filter(|(distance, kind)| *distance <= 3 && *distance < kind.name().len())
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
        for text in [
            "overlay:/var/lib/obuild",
            "btrfs:/",
            "overlay:/a:b c",
            "zfs:tank",
            "zfs:tank/ci/obuild-2_x.y:z",
        ] {
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
        assert!(reason("").contains("or zfs:POOL/DATASET"));
        assert!(reason("zsf:x").contains("did you mean zfs?"));
        assert!(reason("zfs:/tank/x").contains("not by where it is mounted"));
        assert!(reason("zfs:").contains("begins with a letter, for example zfs:tank"));
        assert!(reason("zfs:-o").contains("begins with a letter"));
        assert!(reason("zfs:tank//x").contains("is missing"));
        assert!(reason("zfs:tank/..").contains("is missing"));
        assert!(reason("zfs:tank@x").contains("cannot hold '@'"));
        assert!(reason(&format!("zfs:{}", "x".repeat(200))).contains("longer than"));
    }

    #[test]
    fn modes_read_back_as_written() {
        for mode in RsyncMode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert_eq!("hardlink_unsafe".parse(), Ok(RsyncMode::HardlinkUnsafe));
        assert!("link".parse::<RsyncMode>().is_err());
    }

    #[test]
    fn the_best_kind_is_found_from_the_nearest_directory() {
        assert_eq!(best(Path::new("/proc/nowhere/at/all")).kind, Kind::Overlay);
    }
}

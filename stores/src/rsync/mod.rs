// SPDX-License-Identifier: Apache-2.0
//! The rsync kind: whole trees on any file system, with no help from it. It has the name and the modes of OBuilder's store
//! (614c8ac `lib/rsync_store.ml`).
//!
//! A draft is a full copy in every mode: through a hard link a step would write into the parent. What the modes differ in
//! comes at the commit, when files that are still the same as the parent's become links to it. That is always done here
//! and not by `rsync --link-dest`, which makes one file of two that the tree keeps apart, if the parent has one.
//!
//! The copy too is made here unless a program is named (`docs/decisions/0006-rsync-without-rsync.md`).

mod program;

use crate::place::Place;
use crate::store::RsyncMode;
use crate::tree::{self, Compare, Sharing};
use crate::trees::{self, Layers, Trees};
use crate::{Error, Kind, Options, Rootfs, SnapshotId, StoreUrl, sys};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

/// The rsync kind.
pub(crate) struct Rsync {
    url: String,
    /// What was asked for, then what the store has.
    mode: Option<RsyncMode>,
    program: Option<PathBuf>,
}

impl Rsync {
    pub(crate) fn new(url: &StoreUrl, options: &Options) -> Self {
        Self {
            url: url.to_string(),
            mode: options.rsync_mode,
            program: options.rsync_program.clone(),
        }
    }

    fn wrong(&self, reason: String) -> Error {
        Error::RsyncMode {
            url: self.url.clone(),
            reason,
        }
    }
}

impl Trees for Rsync {
    fn kind(&self) -> Kind {
        Kind::Rsync
    }

    fn settle(&mut self, recorded: Option<&str>) -> Result<String, Error> {
        let mode = match (recorded, self.mode) {
            (None, Some(mode)) => mode,
            (None, None) => {
                return Err(self.wrong(
                    "a new store needs one: hardlink (unchanged files take no room), hardlink-unsafe (the same, \
                     trusting sizes and times) or copy (every result complete in itself)"
                        .to_owned(),
                ));
            }
            (Some(text), asked) => {
                let Some(Ok(mode)) = text.trim_end().strip_prefix("mode ").map(str::parse) else {
                    return Err(self.wrong(
                        "the store's file obuild-store is damaged: its second line must be \"mode hardlink\", \
                         \"mode hardlink-unsafe\" or \"mode copy\""
                            .to_owned(),
                    ));
                };
                if let Some(asked) = asked.filter(|asked| *asked != mode) {
                    return Err(self.wrong(format!(
                        "the store was made with mode {mode}, not {asked}: leave the mode away, or name another directory"
                    )));
                }
                mode
            }
        };
        self.mode = Some(mode);
        Ok(format!("mode {mode}\n"))
    }

    fn probe(&self, place: &Place) -> Result<(), Error> {
        if sys::is_root() {
            return Ok(());
        }
        Err(Error::Unsuitable {
            path: place.path(""),
            kind: Kind::Rsync.name(),
            reason: "giving files away needs root: run it as root".to_owned(),
        })
    }

    fn layers(&self) -> Option<Layers> {
        None
    }

    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error> {
        match (&self.program, below.first()) {
            (Some(program), Some(source)) => program::copy(program, place, source, slot),
            _ => trees::create_copy(place, slot, below),
        }
    }

    fn finish(
        &self,
        place: &Place,
        slot: &str,
        parent: Option<&str>,
        _id: Option<SnapshotId>,
    ) -> Result<(), Error> {
        let compare = match self.mode {
            Some(RsyncMode::Hardlink) => Compare::Content,
            Some(RsyncMode::HardlinkUnsafe) => Compare::Times,
            Some(RsyncMode::Copy) | None => return Ok(()),
        };
        let Some(parent) = parent else {
            return Ok(());
        };
        let open = |name: &str| {
            place
                .open_directory(name)
                .map_err(|errno| place.error("open", name, errno))
        };
        let name = format!("{slot}/fs");
        tree::link_same(open(&name)?.as_fd(), open(parent)?.as_fd(), compare)
            .map_err(|errno| place.error("link what is unchanged in", &name, errno))
    }

    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error> {
        trees::destroy(place, name, None)
    }

    fn size(&self, place: &Place, name: &str, parent: Option<&str>) -> Result<u64, Error> {
        let parent = parent.filter(|_| self.mode != Some(RsyncMode::Copy));
        trees::size(place, name, parent.map(|parent| (parent, Sharing::Links)))
    }
}

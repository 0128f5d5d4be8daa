// SPDX-License-Identifier: Apache-2.0
//! Resolving base images, with the digests of large files remembered in the database.

use crate::{Engine, Error, blocking};
use obuild_images::{Digest, FileDigests, FileStamp, Reference, ResolveOptions, Resolved, Tools};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

impl Engine {
    /// Finds out what a base image is, without unpacking it. Relative paths are relative to `base_dir`.
    pub async fn resolve(
        self: &Arc<Self>,
        reference: &str,
        base_dir: &Path,
        tools: Tools,
        cancel: &CancellationToken,
    ) -> Result<Resolved, Error> {
        let wrong = |source| Error::Base {
            reference: reference.to_owned(),
            source: Box::new(source),
        };
        let parsed: Reference = reference.parse().map_err(wrong)?;
        let files = files_of(&parsed, base_dir);
        // What a tag means is one thing for each platform.
        let tag = match &parsed {
            Reference::Registry(image) => Some(match &tools.platform {
                Some(platform) => format!("image {image} {platform}"),
                None => format!("image {image}"),
            }),
            _ => None,
        };
        let remembered = match &tag {
            Some(tag) => self.database().await?.memo(tag).await?,
            None => None,
        };
        let remembered =
            remembered.and_then(|text| Digest::parse(&String::from_utf8(text).ok()?).ok());
        let known = match &files {
            Some(files) => self.database().await?.memo(files).await?,
            None => None,
        };
        let digests = Remembered::parse(&known.unwrap_or_default());
        let quick = digests.answers(&parsed, base_dir);
        let (base_dir, token) = (PathBuf::from(base_dir), cancel.clone());
        let work = move || {
            let options = ResolveOptions {
                base_dir: &base_dir,
                digests: &digests,
                tools,
                remembered,
                cancelled: &|| token.is_cancelled(),
            };
            let resolved = obuild_images::resolve(&parsed, &options);
            Ok((resolved, digests))
        };
        // A thread takes longer to start than it takes to look at a file.
        let (resolved, digests) = if quick {
            work()?
        } else {
            blocking(work).await?
        };
        let resolved = match resolved {
            Err(obuild_images::Error::Cancelled) => return Err(Error::Cancelled),
            resolved => resolved.map_err(wrong)?,
        };
        if let (Some(tag), Some(manifest)) = (&tag, resolved.manifest)
            && remembered != Some(manifest)
        {
            self.database()
                .await?
                .set_memo(tag, manifest.to_string().as_bytes())
                .await?;
        }
        if let (Some(files), Some(content)) = (files, digests.changed()) {
            self.database()
                .await?
                .set_memo(&files, content.as_bytes())
                .await?;
        }
        Ok(resolved)
    }
}

/// Returns under which name the digests of a base's files are remembered, if it has any: one for all specs that name it, wherever they are.
fn files_of(base: &Reference, base_dir: &Path) -> Option<String> {
    let (Reference::Tar(path) | Reference::Directory(path)) = base else {
        return None;
    };
    let path = base_dir.join(path);
    // One that is not there is told of later.
    let path = fs_err::canonicalize(&path).unwrap_or(path);
    Some(format!("base {}", path.display()))
}

/// Digests of files by their stamps; one line each in the database.
struct Remembered {
    known: HashMap<FileStamp, [u8; 32]>,
    /// What was asked for or learnt in this run: only that is kept.
    seen: Mutex<HashMap<FileStamp, [u8; 32]>>,
}

impl Remembered {
    /// A line that cannot be read is forgotten.
    fn parse(content: &[u8]) -> Self {
        let known = String::from_utf8_lossy(content)
            .lines()
            .filter_map(line)
            .collect();
        Self {
            known,
            seen: Mutex::default(),
        }
    }

    /// Returns whether a base can be resolved without reading it.
    fn answers(&self, base: &Reference, base_dir: &Path) -> bool {
        match base {
            Reference::Scratch => true,
            Reference::Tar(path) => fs_err::metadata(base_dir.join(path))
                .is_ok_and(|file| self.known.contains_key(&FileStamp::of(&file))),
            _ => false,
        }
    }

    /// Returns the text to keep, if it differs from what was read.
    fn changed(&self) -> Option<String> {
        let seen = self.seen.lock().expect("no holder of this lock panics");
        if seen
            .iter()
            .all(|(stamp, digest)| self.known.get(stamp) == Some(digest))
        {
            return None;
        }
        let mut text = String::new();
        for (stamp, digest) in seen.iter() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{} {} {} {} {} {} {} {}",
                stamp.device,
                stamp.inode,
                stamp.size,
                stamp.mtime.0,
                stamp.mtime.1,
                stamp.ctime.0,
                stamp.ctime.1,
                hex::encode(digest)
            );
        }
        Some(text)
    }
}

fn line(line: &str) -> Option<(FileStamp, [u8; 32])> {
    let mut fields = line.split(' ');
    let stamp = FileStamp {
        device: fields.next()?.parse().ok()?,
        inode: fields.next()?.parse().ok()?,
        size: fields.next()?.parse().ok()?,
        mtime: (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?),
        ctime: (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?),
    };
    let mut digest = [0; 32];
    hex::decode_to_slice(fields.next()?, &mut digest).ok()?;
    Some((stamp, digest))
}

impl FileDigests for Remembered {
    fn get(&self, stamp: &FileStamp) -> Option<[u8; 32]> {
        let digest = *self.known.get(stamp)?;
        self.put(stamp, digest);
        Some(digest)
    }

    fn put(&self, stamp: &FileStamp, digest: [u8; 32]) {
        self.seen
            .lock()
            .expect("no holder of this lock panics")
            .insert(*stamp, digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_one_wherever_the_spec_is() {
        let place = tempfile::tempdir().unwrap();
        let [bases, specs] = ["bases", "specs"].map(|name| place.path().join(name));
        for directory in [&bases, &specs] {
            fs_err::create_dir(directory).unwrap();
        }
        for file in ["a.tar", "b.tar"] {
            fs_err::write(bases.join(file), "").unwrap();
        }
        let name = |base: &str, place: &Path| files_of(&base.parse().unwrap(), place);
        let one = name("tar:a.tar", &bases);
        assert!(one.is_some());
        assert_eq!(one, name("tar:../bases/a.tar", &specs));
        assert_eq!(one, name(&format!("tar:{}/a.tar", bases.display()), &specs));
        assert_ne!(one, name("tar:b.tar", &bases));
        assert_ne!(one, name("tar:a.tar", &specs));
        assert_eq!(name("debian:12", &bases), None);
    }

    #[test]
    fn digests_are_kept_by_all_of_the_stamp() {
        let stamp = FileStamp {
            device: 1,
            inode: 2,
            size: 3,
            mtime: (4, 5),
            ctime: (-6, 7),
        };
        let first = Remembered::parse(b"");
        assert_eq!(first.get(&stamp), None);
        first.put(&stamp, [9; 32]);
        let text = first.changed().expect("it has learnt something");
        let second = Remembered::parse(text.as_bytes());
        assert_eq!(second.get(&stamp), Some([9; 32]));
        assert_eq!(second.get(&FileStamp { size: 4, ..stamp }), None);
        assert_eq!(second.changed(), None);
        assert_eq!(Remembered::parse(b"garbage\n1 2 3\n").known.len(), 0);
    }
}

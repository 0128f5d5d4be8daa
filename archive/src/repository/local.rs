// SPDX-License-Identifier: Apache-2.0
//! What of a git repository can be read without git: objects that are packed or loose, here and in alternates, and refs that are files
//! (gitrepository-layout(5)).
//!
//! Starting git costs more than all else that a merge costs, and one git reads with one processor. What is not found here is asked of git, so
//! that nothing depends on this: not on work trees' `.git` files, SHA-256 names, refs in tables, or what there will be.

use super::ahead::Ahead;
use super::cat_file::Kind;
use super::packs::{Id, Inflate, LARGEST, Pack, Reader, Unknown};
use sha1::{Digest as _, Sha1};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many repositories may borrow from one another, and how many refs may name one another: git's own limits (object-file.c,
/// `link_alt_odb_entry`; refs-internal.h, `SYMREF_MAXDEPTH`).
const DEPTH: usize = 5;

/// The largest file of refs that is read.
const REFS_BYTES: u64 = 64 << 20;

/// An object: what it is, and its bytes.
pub(super) type Object = (Kind, Vec<u8>);

/// A repository's own files.
#[derive(Debug)]
pub(super) struct Local {
    directory: PathBuf,
    /// Where loose objects are.
    loose: Vec<PathBuf>,
    packs: Arc<[Pack]>,
    /// The pack that had the last object: the next is mostly there too.
    last: AtomicUsize,
    reader: Reader,
}

/// Where an object is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In a pack, by its number, at an offset.
    Packed(usize, u64),
    /// In a file of its own.
    Loose(PathBuf),
}

impl Local {
    /// Opens a repository; nothing if it has another form.
    pub(super) fn open(directory: &Path) -> Option<Self> {
        let own = directory.join("objects");
        if !own.is_dir() || directory.join("commondir").exists() {
            return None;
        }
        let mut loose = vec![own];
        let mut next = 0;
        while let Some(objects) = loose.get(next).cloned() {
            next += 1;
            for other in alternates(&objects)? {
                if loose.len() > DEPTH {
                    return None;
                }
                if !loose.contains(&other) {
                    loose.push(other);
                }
            }
        }
        let mut packs = Vec::new();
        for objects in &loose {
            for entry in fs_err::read_dir(objects.join("pack")).into_iter().flatten() {
                let path = entry.ok()?.path();
                if path.extension().is_some_and(|extension| extension == "idx") {
                    packs.extend(Pack::open(&path));
                }
            }
        }
        Some(Self {
            directory: directory.to_owned(),
            loose,
            packs: packs.into(),
            last: AtomicUsize::new(0),
            reader: Reader::new(),
        })
    }

    /// Returns where an object is; nothing if git is to be asked.
    pub(super) fn find(&self, id: &[u8]) -> Option<Place> {
        let id: &Id = id.try_into().ok()?;
        let last = self.last.load(Ordering::Relaxed);
        let numbers = (last..self.packs.len()).chain(0..last);
        for number in numbers {
            if let Some(offset) = self.packs[number].find(id) {
                self.last.store(number, Ordering::Relaxed);
                return Some(Place::Packed(number, offset));
            }
        }
        let digits = hex::encode(id);
        let name = Path::new(&digits[..2]).join(&digits[2..]);
        let mut places = self.loose.iter().map(|objects| objects.join(&name));
        places.find(|path| path.is_file()).map(Place::Loose)
    }

    /// Reads the object of this name. What is damaged has another name.
    pub(super) fn read(&mut self, place: &Place, id: &[u8]) -> Result<Object, Unknown> {
        read_object(&self.packs, &mut self.reader, place, id)
    }

    /// Returns threads that read what is wanted later.
    pub(super) fn ahead(&self) -> Ahead {
        Ahead::start(&self.packs)
    }

    /// Returns the commit that a name means, following tags; nothing if git is to be asked.
    pub(super) fn commit(&mut self, name: &str) -> Option<Id> {
        let mut id = self.name(name)?;
        for _ in 0..DEPTH {
            let place = self.find(&id)?;
            let (kind, content) = self.read(&place, &id).ok()?;
            match kind {
                Kind::Commit => return Some(id),
                Kind::Tag => id = object_id(content.strip_prefix(b"object ")?.get(..40)?)?,
                Kind::Blob | Kind::Tree => return None,
            }
        }
        None
    }

    fn name(&self, name: &str) -> Option<Id> {
        if let Some(id) = object_id(name.as_bytes()) {
            return Some(id);
        }
        let mut name = name.to_owned();
        for _ in 0..DEPTH {
            let Some(text) = read(&self.directory.join(&name), 1024) else {
                return self.packed_ref(&name);
            };
            let text = std::str::from_utf8(&text).ok()?.trim_end();
            let Some(other) = text.strip_prefix("ref: ") else {
                return object_id(text.as_bytes());
            };
            let is_inside =
                other.starts_with("refs/") && !other.split('/').any(|part| part == "..");
            name = is_inside.then(|| other.to_owned())?;
        }
        None
    }

    /// Looks into the file of all refs that have none of their own: `id SP name` a line.
    fn packed_ref(&self, name: &str) -> Option<Id> {
        let file = read(&self.directory.join("packed-refs"), REFS_BYTES)?;
        file.split(|byte| *byte == b'\n').find_map(|line| {
            let (id, rest) = line.split_at_checked(40)?;
            (rest.strip_prefix(b" ")? == name.as_bytes()).then(|| object_id(id))?
        })
    }
}

/// Reads the object of this name. What is damaged has another name.
pub(super) fn read_object(
    packs: &[Pack],
    reader: &mut Reader,
    place: &Place,
    id: &[u8],
) -> Result<Object, Unknown> {
    let (kind, content) = match place {
        Place::Packed(number, offset) => reader.read(packs, *number, *offset)?,
        Place::Loose(path) => {
            let file = read(path, LARGEST as u64).ok_or(Unknown)?;
            Inflate::new().loose(&file).ok_or(Unknown)?
        }
    };
    let mut hash = Sha1::new_with_prefix(format!("{} {}\0", kind.name(), content.len()));
    hash.update(&content);
    let is_right = hash.finalize().as_slice() == id;
    is_right.then_some((kind, content)).ok_or(Unknown)
}

fn object_id(digits: &[u8]) -> Option<Id> {
    let mut id = Id::default();
    hex::decode_to_slice(digits, &mut id).ok().map(|()| id)
}

/// Reads a plain file of at most so many bytes.
fn read(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let is_fit = fs_err::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= limit);
    is_fit.then(|| fs_err::read(path).ok()).flatten()
}

/// Returns the other places that the objects may be in; nothing if they are written in a way that is not known here.
fn alternates(objects: &Path) -> Option<Vec<PathBuf>> {
    let path = objects.join("info/alternates");
    let text = match fs_err::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(Vec::new()),
        Err(_) => return None,
    };
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    // What stands in quotes has escapes in it.
    lines
        .map(|line| (!line.starts_with('"')).then(|| objects.join(line)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{commit_all, git};
    use super::*;
    use std::fmt::Write as _;
    use tempfile::TempDir;

    /// Makes a repository whose objects are packed as deltas, loose, and borrowed.
    fn repository(directory: &Path) -> PathBuf {
        let old = directory.join("old");
        let new = directory.join("new");
        git(directory, &["init", "-q", "old"], b"");
        let mut text = String::new();
        for turn in 0..30 {
            for line in 0..200 {
                writeln!(text, "{turn} {line} {}", line * turn % 97).expect("room");
            }
            fs_err::write(old.join("large"), &text).expect("written");
            fs_err::write(old.join(format!("small{turn}")), format!("{turn}")).expect("written");
            fs_err::write(
                old.join("noise"),
                noise(turn, if turn == 0 { 100_000 } else { 3_000 }),
            )
            .expect("written");
            commit_all(&old);
        }
        git(&old, &["tag", "-a", "-m", "x", "v1"], b"");
        git(&old, &["gc", "-q", "--aggressive", "--prune=now"], b"");
        let borrow = ["clone", "-q", "--shared", "old", "new"];
        git(directory, &borrow, b"");
        fs_err::write(new.join("loose"), &text[..text.len() / 2]).expect("written");
        commit_all(&new);
        new.join(".git")
    }

    /// Bytes that cannot be compressed.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed + 1;
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    /// Returns the names of all objects.
    fn all(directory: &Path) -> Vec<String> {
        let format = "--batch-check=%(objectname)";
        let arguments = ["cat-file", "--batch-all-objects", "--unordered", format];
        let printed = git(directory, &arguments, b"");
        printed.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_object_is_what_git_says_it_is() {
        let world = TempDir::new().expect("a directory");
        let directory = repository(world.path());
        let mut local = Local::open(&directory).expect("known");
        assert_eq!((local.packs.len(), local.loose.len()), (1, 2));
        let names = all(&directory);
        assert!(names.len() > 120, "{}", names.len());
        let (mut packed, mut loose) = (0, 0);
        for name in &names {
            let place = local.find(&hex::decode(name).expect("digits"));
            let place = place.expect("found");
            match &place {
                Place::Packed(..) => packed += 1,
                Place::Loose(_) => loose += 1,
            }
            let id = hex::decode(name).expect("digits");
            local.read(&place, &id).expect("read");
        }
        assert!(packed > 100 && loose >= 3, "{packed} {loose}");
        let ids: Vec<Vec<u8>> = names
            .iter()
            .map(|name| hex::decode(name).expect("digits"))
            .collect();
        let places: Vec<Place> = ids
            .iter()
            .map(|id| local.find(id).expect("found"))
            .collect();
        let mut ahead = local.ahead();
        // Twice, the second time before the first is taken; and something that is not there.
        let wanted = || places.iter().cloned().zip(ids.iter().cloned());
        ahead.read(wanted());
        ahead.read(wanted().chain([(Place::Loose("none".into()), vec![0; 20])]));
        let mut read = 0;
        for (place, id) in places.iter().zip(&ids).chain(places.iter().zip(&ids)) {
            // Large ones may have had no room.
            if let Some(object) = ahead.next() {
                assert!(Some(object) == local.read(place, id).ok());
                read += 1;
            }
        }
        assert!(read > names.len(), "{read}");
        assert!(ahead.next().is_none());
        assert!(local.find(&[7; 20]).is_none());
        assert!(local.find(&[7; 32]).is_none());
        for (name, revision) in [("HEAD", "HEAD"), ("refs/tags/v1", "v1^{commit}")] {
            let commit = local.commit(name).map(hex::encode);
            let commit = commit.expect(name);
            assert_eq!(commit, git(&directory, &["rev-parse", revision], b""));
        }
        let tag = git(&directory, &["rev-parse", "v1"], b"");
        assert!(local.commit(&tag).is_some_and(|id| hex::encode(id) != tag));
        assert_eq!(local.commit("refs/heads/../../../etc/passwd"), None);
        assert_eq!(local.commit("refs/heads/none"), None);
    }

    #[test]
    fn what_is_damaged_is_never_taken_for_what_it_was() {
        let world = TempDir::new().expect("a directory");
        let directory = repository(world.path());
        let names: Vec<Vec<u8>> = (all(&directory).iter())
            .map(|name| hex::decode(name).expect("digits"))
            .collect();
        let packs = world.path().join("old/.git/objects/pack");
        let entries = fs_err::read_dir(&packs).expect("listed");
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("listed").path()).collect();
        files.retain(|path| {
            path.extension()
                .is_some_and(|end| end == "pack" || end == "idx")
        });
        assert_eq!(files.len(), 2);
        let read = |local: &mut Local| {
            let places: Vec<_> = names.iter().map(|name| local.find(name)).collect();
            let read = |(place, name): (Option<Place>, &Vec<u8>)| local.read(&place?, name).ok();
            places.into_iter().zip(&names).map(read).collect::<Vec<_>>()
        };
        let right = read(&mut Local::open(&directory).expect("known"));
        for path in files {
            let content = fs_err::read(&path).expect("read");
            fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .expect("made writable");
            for turn in 0..24 {
                let mut damaged = content.clone();
                let at = content.len() / 24 * turn;
                damaged[at] ^= 0x55;
                if turn % 4 == 3 {
                    damaged.truncate(at);
                }
                fs_err::write(&path, &damaged).expect("written");
                let Some(mut local) = Local::open(&directory) else {
                    continue;
                };
                let now = read(&mut local);
                let differing =
                    |(now, right): (&Option<_>, &Option<_>)| now.is_some() && now != right;
                assert!(!now.iter().zip(&right).any(differing), "byte {at}");
            }
            fs_err::write(&path, &content).expect("written");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! From one state of the repository to the next: from nothing, or by what changed. Both give the same bytes.
//!
//! A piece is compressed anew if a file in it changed, or if something within the 16 KiB before it did, which it is primed with.

use super::deflate::{PRIMING, Pool, Segment, compress};
use super::split::starts_segment;
use super::state::{Piece, State, Store, Table};
use super::{Error, tar};
use crate::repository::{Change, Commit, Repository, Skipped};
use bstr::BString;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) files: usize,
    pub(super) segments: usize,
    pub(super) raw_bytes: u64,
    pub(super) bytes: u64,
    pub(super) skipped: Vec<Skipped>,
}

impl Work {
    fn count(&mut self, segment: &Segment) {
        self.segments += 1;
        self.raw_bytes += segment.raw_bytes;
        self.bytes += segment.bytes;
    }
}

/// A piece of the new tar.
enum Slot {
    /// As it was: its number in the old table.
    Old(usize),
    /// Made now.
    New { first: BString, raw: Arc<[u8]> },
}

/// Makes everything anew, in files of a new generation.
pub(super) fn from_nothing(
    state: &State,
    generation: u64,
    repository: &mut Repository,
    commit: &Commit,
) -> Result<(Table, Work), Error> {
    let store = state.store(generation, true)?;
    let mut table = Table::new(generation, commit.clone());
    let mut work = Work::default();
    let mut firsts = Vec::new();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let segments = std::thread::scope(|scope| {
        let mut pool = Pool::start(scope, threads.min(16));
        let mut before = Vec::new();
        let (mut first, mut raw) = (BString::default(), Vec::new());
        let mut close = |table: &mut Table, first: &BString, raw: &mut Vec<u8>| {
            if raw.is_empty() {
                return Ok(());
            }
            let at = store.add_raw(table, raw)?;
            firsts.push((first.clone(), at));
            let raw = std::mem::take(raw);
            let window = window(&before, &raw);
            pool.give(std::mem::replace(&mut before, window), raw)
        };
        let skipped = repository.changes(None, commit, &mut |change: Change| {
            let Some(content) = change.content else {
                return Ok(());
            };
            work.files += 1;
            match change.path.as_slice() {
                b"repo" => table.repo = Some(content),
                b"version" => table.version = Some(content),
                path => {
                    if starts_segment(path) {
                        close(&mut table, &first, &mut raw)?;
                    }
                    if raw.is_empty() {
                        first = change.path.clone();
                    }
                    tar::append(&mut raw, path, &content, change.executable);
                }
            }
            Ok::<(), Error>(())
        })?;
        close(&mut table, &first, &mut raw)?;
        work.skipped = skipped;
        pool.finish()
    })?;
    for ((first, raw_at), (segment, deflated)) in firsts.into_iter().zip(segments) {
        work.count(&segment);
        let piece = piece(&store, &mut table, first, raw_at, segment, &deflated)?;
        table.pieces.push(piece);
    }
    Ok((table, work))
}

/// Returns the last 16 KiB of what stands before the next piece.
fn window(before: &[u8], raw: &[u8]) -> Vec<u8> {
    if raw.len() >= PRIMING {
        return raw[raw.len() - PRIMING..].to_vec();
    }
    let older = &before[before.len().saturating_sub(PRIMING - raw.len())..];
    [older, raw].concat()
}

fn piece(
    store: &Store,
    table: &mut Table,
    first: BString,
    raw_at: u64,
    segment: Segment,
    deflated: &[u8],
) -> Result<Piece, Error> {
    Ok(Piece {
        first,
        raw_at,
        deflated_at: store.add_deflated(table, deflated)?,
        deflated_crc: zlib_rs::crc32::crc32(0, deflated),
        segment,
    })
}

/// Makes the next table from the last by what changed.
pub(super) fn by_changes(
    state: &State,
    old: &Table,
    repository: &mut Repository,
    commit: &Commit,
) -> Result<(Table, Work), Error> {
    let mut work = Work::default();
    let mut table = old.without_pieces();
    table.commit = commit.clone();
    let mut changes = Vec::new();
    work.skipped = repository.changes(Some(&old.commit), commit, &mut |change: Change| {
        work.files += 1;
        match change.path.as_slice() {
            b"repo" => table.repo = change.content,
            b"version" => table.version = change.content,
            _ => changes.push(change),
        }
        Ok::<(), Error>(())
    })?;
    if changes.is_empty() {
        table.pieces.clone_from(&old.pieces);
        return Ok((table, work));
    }
    let store = state.store(old.generation, false)?;
    let slots = Edit {
        old,
        store: &store,
        slots: Vec::new(),
    }
    .apply(changes)?;
    table.pieces = recompress(old, &store, &slots, &mut table, &mut work)?;
    if !table.is_sparse() {
        return Ok((table, work));
    }
    Ok((compact(state, &store, &table)?, work))
}

/// The new tar while it is put together.
struct Edit<'a> {
    old: &'a Table,
    store: &'a Store,
    slots: Vec<Slot>,
}

impl Edit<'_> {
    fn apply(mut self, changes: Vec<Change>) -> Result<Vec<Slot>, Error> {
        let pieces = &self.old.pieces;
        let mut touched: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
        for change in changes {
            // What comes before the first piece belongs to it.
            let number = pieces.partition_point(|piece| piece.first <= change.path);
            touched
                .entry(number.saturating_sub(1))
                .or_default()
                .push(change);
        }
        for number in 0..pieces.len().max(1) {
            match touched.remove(&number) {
                None => self.slots.push(Slot::Old(number)),
                Some(changes) => self.change(number, changes)?,
            }
        }
        Ok(self.slots)
    }

    /// Puts the files of a piece, with their changes, behind what is there.
    fn change(&mut self, number: usize, changes: Vec<Change>) -> Result<(), Error> {
        let raw = match self.old.pieces.get(number) {
            Some(piece) => self.store.raw(piece)?,
            None => Vec::new(),
        };
        let entries = tar::entries(&raw).ok_or_else(|| self.store.damaged())?;
        let mut files: BTreeMap<BString, Vec<u8>> = entries
            .into_iter()
            .map(|entry| (entry.path, raw[entry.range].to_vec()))
            .collect();
        for change in changes {
            match change.content {
                Some(content) => {
                    let mut entry = Vec::new();
                    tar::append(&mut entry, &change.path, &content, change.executable);
                    files.insert(change.path, entry);
                }
                None => {
                    files.remove(&change.path);
                }
            }
        }
        let (mut first, mut raw) = (BString::default(), Vec::new());
        for (path, entry) in files {
            if starts_segment(&path) {
                self.push(std::mem::take(&mut first), &mut raw)?;
            }
            if raw.is_empty() {
                first = path;
            }
            raw.extend_from_slice(&entry);
        }
        self.push(first, &mut raw)
    }

    /// Adds a piece, or, if its first file starts none, joins it to the one before.
    fn push(&mut self, first: BString, raw: &mut Vec<u8>) -> Result<(), Error> {
        if raw.is_empty() {
            return Ok(());
        }
        let own = std::mem::take(raw);
        let before = match self.slots.pop() {
            Some(before) if !starts_segment(&first) => before,
            other => {
                self.slots.extend(other);
                let raw = own.into();
                self.slots.push(Slot::New { first, raw });
                return Ok(());
            }
        };
        let (first, before): (_, Arc<[u8]>) = match before {
            Slot::New { first, raw } => (first, raw),
            Slot::Old(number) => {
                let piece = &self.old.pieces[number];
                (piece.first.clone(), self.store.raw(piece)?.into())
            }
        };
        let raw = [&before[..], &own].concat().into();
        self.slots.push(Slot::New { first, raw });
        Ok(())
    }
}

/// Makes the pieces of the new table: those that stand where they stood, behind what stood there, are as they were.
fn recompress(
    old: &Table,
    store: &Store,
    slots: &[Slot],
    table: &mut Table,
    work: &mut Work,
) -> Result<Vec<Piece>, Error> {
    let mut pieces = Vec::with_capacity(slots.len());
    let mut raws = Raws {
        old,
        store,
        slots,
        read: BTreeMap::new(),
    };
    // How many bytes before this slot are what they were, and whether these are all bytes before it.
    let (mut same, mut all) = (0, true);
    for (place, slot) in slots.iter().enumerate() {
        let follows = |number: usize| match place.checked_sub(1).map(|before| &slots[before]) {
            None => number == 0,
            Some(Slot::Old(before)) => before + 1 == number,
            Some(Slot::New { .. }) => false,
        };
        let known = match slot {
            Slot::Old(number) => Some((&old.pieces[*number], follows(*number))),
            Slot::New { .. } => None,
        };
        match known {
            Some((piece, true)) if all || same >= PRIMING as u64 => pieces.push(piece.clone()),
            _ => {
                let raw = raws.get(place)?;
                let before = raws.window(place)?;
                let (segment, deflated) = compress(&before, &raw)?;
                work.count(&segment);
                let (first, raw_at) = match slot {
                    Slot::Old(number) => {
                        let piece = &old.pieces[*number];
                        (piece.first.clone(), piece.raw_at)
                    }
                    Slot::New { first, raw } => (first.clone(), store.add_raw(table, raw)?),
                };
                pieces.push(piece(store, table, first, raw_at, segment, &deflated)?);
            }
        }
        match known {
            Some((piece, true)) => same += piece.segment.raw_bytes,
            Some((piece, false)) => (same, all) = (piece.segment.raw_bytes, false),
            None => (same, all) = (0, false),
        }
    }
    Ok(pieces)
}

/// The bytes of the new tar, read as they are needed.
struct Raws<'a> {
    old: &'a Table,
    store: &'a Store,
    slots: &'a [Slot],
    read: BTreeMap<usize, Arc<[u8]>>,
}

impl Raws<'_> {
    fn get(&mut self, place: usize) -> Result<Arc<[u8]>, Error> {
        let number = match &self.slots[place] {
            Slot::New { raw, .. } => return Ok(Arc::clone(raw)),
            Slot::Old(number) => *number,
        };
        if let Some(raw) = self.read.get(&number) {
            return Ok(Arc::clone(raw));
        }
        let raw: Arc<[u8]> = self.store.raw(&self.old.pieces[number])?.into();
        self.read.insert(number, Arc::clone(&raw));
        Ok(raw)
    }

    /// Returns the 16 KiB before a slot.
    fn window(&mut self, place: usize) -> Result<Vec<u8>, Error> {
        let mut parts = Vec::new();
        let mut missing = PRIMING;
        for before in (0..place).rev() {
            if missing == 0 {
                break;
            }
            let raw = self.get(before)?;
            let length = raw.len().min(missing);
            parts.push(raw[raw.len() - length..].to_vec());
            missing -= length;
        }
        parts.reverse();
        Ok(parts.concat())
    }
}

/// Copies what is in use into files of the next generation.
fn compact(state: &State, store: &Store, table: &Table) -> Result<Table, Error> {
    let mut compacted = table.clone();
    compacted.generation += 1;
    (compacted.raw_end, compacted.deflated_end) = (0, 0);
    let fresh = state.store(compacted.generation, true)?;
    for number in 0..table.pieces.len() {
        let piece = &table.pieces[number];
        let mut deflated = Vec::new();
        store.deflated(std::slice::from_ref(piece), &mut |_, bytes| {
            deflated.extend_from_slice(bytes);
            Ok::<(), Error>(())
        })?;
        let raw_at = fresh.add_raw(&mut compacted, &store.raw(piece)?)?;
        let deflated_at = fresh.add_deflated(&mut compacted, &deflated)?;
        let copied = &mut compacted.pieces[number];
        (copied.raw_at, copied.deflated_at) = (raw_at, deflated_at);
    }
    Ok(compacted)
}

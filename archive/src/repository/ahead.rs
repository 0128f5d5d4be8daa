// SPDX-License-Identifier: Apache-2.0
//! Reads objects before they are wanted, with all processors, while the caller is still at what came before.

use super::local::{Object, Place, read_object};
use super::packs::{Pack, Reader};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// How many threads there are at most: each remembers some megabytes.
const THREADS: usize = 4;

/// How many objects one thread reads at a time, and how many bytes they may have together.
const JOB: usize = 128;
const JOB_BYTES: usize = 512 << 10;

/// Where an object is, and its name.
pub(super) type Wanted = (Place, Vec<u8>);

/// What was read of a job; nothing for what had no room, or git is to be asked for.
type Objects = Vec<Option<Object>>;

/// Objects to be read, and where to send them.
type Job = (Vec<Wanted>, SyncSender<Objects>);

/// Threads that read. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Ahead {
    jobs: Sender<Job>,
    /// What was given and not yet taken, in its order.
    given: VecDeque<Receiver<Objects>>,
    ready: VecDeque<Option<Object>>,
}

impl Ahead {
    /// Starts the threads.
    pub(super) fn start(packs: &Arc<[Pack]>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (jobs, waiting) = channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads.min(THREADS) {
            let (waiting, packs) = (Arc::clone(&waiting), Arc::clone(packs));
            std::thread::spawn(move || work(&waiting, &packs));
        }
        Self {
            jobs,
            given: VecDeque::new(),
            ready: VecDeque::new(),
        }
    }

    /// Has objects read; each is then taken with [`Ahead::next`].
    pub(super) fn read(&mut self, mut wanted: impl Iterator<Item = Wanted>) {
        loop {
            let job: Vec<Wanted> = wanted.by_ref().take(JOB).collect();
            if job.is_empty() {
                return;
            }
            let (done, objects) = sync_channel(1);
            // Should the threads be gone, nothing comes, and everything is read when it is wanted.
            let _ = self.jobs.send((job, done));
            self.given.push_back(objects);
        }
    }

    /// Takes the next object; nothing if it was not read.
    pub(super) fn next(&mut self) -> Option<Object> {
        if self.ready.is_empty() {
            let objects = self.given.pop_front()?.recv();
            self.ready = objects.unwrap_or_default().into();
        }
        self.ready.pop_front()?
    }
}

fn work(waiting: &Mutex<Receiver<Job>>, packs: &[Pack]) {
    let mut reader = Reader::new();
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok((wanted, done)) = job else {
            return;
        };
        let mut room = JOB_BYTES;
        let read = |(place, id): &Wanted| {
            let object = (room > 0).then(|| read_object(packs, &mut reader, place, id));
            let object = object?.ok()?;
            room = room.saturating_sub(object.1.len());
            Some(object)
        };
        // Nobody may want them any more.
        let _ = done.send(wanted.iter().map(read).collect());
    }
}

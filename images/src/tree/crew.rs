// SPDX-License-Identifier: Apache-2.0
//! One thread that walks a tree and a few that work on what it finds.
//!
//! The queue between them is short, so that memory and open descriptors stay bounded; when it is full, the walker
//! does the work itself. Threads start only when there is enough to do.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Scope};

/// Units that wait at most.
const QUEUE: usize = 8;

/// Units that wait before another thread is worth its start (about 0.1 ms).
const WORTH_A_THREAD: usize = 2;

/// Threads at most, the walker included. Creating files is limited by the kernel's locks on directories: a second thread
/// gains 10–30 %, more gain little (measured on ext4, xfs and btrfs, 2-core VM, 2026-11).
const THREADS: usize = 4;

struct Queue<U, E> {
    units: VecDeque<U>,
    running: usize,
    closed: bool,
    error: Option<E>,
}

struct Shared<U, E> {
    queue: Mutex<Queue<U, E>>,
    changed: Condvar,
}

impl<U, E> Shared<U, E> {
    fn lock(&self) -> MutexGuard<'_, Queue<U, E>> {
        // A panic elsewhere is passed on when the threads are joined; the queue itself is always whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a unit as no longer running, also when the work panics.
struct Running<'a, U, E>(&'a Shared<U, E>);

impl<U, E> Drop for Running<'_, U, E> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.changed.notify_all();
    }
}

/// Closes the queue, also when the walker panics, so that the threads end.
struct Close<'a, U, E>(&'a Shared<U, E>);

impl<U, E> Drop for Close<'_, U, E> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// What the walker hands its work to.
pub(crate) struct Foreman<'scope, 'env, U, W, E> {
    shared: &'env Shared<U, E>,
    work: &'env (dyn Fn(&mut W, U) -> Result<(), E> + Sync),
    /// The walker's own tools.
    pub(crate) hand: W,
    make_hand: &'env (dyn Fn() -> W + Sync),
    scope: &'scope Scope<'scope, 'env>,
    threads: Vec<thread::ScopedJoinHandle<'scope, W>>,
}

/// Runs `walk`, which submits units; each is done by `work` with the tools of its thread, made by `make_hand`.
///
/// Returns the walk's result and the tools of all threads, after all units are done.
///
/// # Errors
///
/// The first error of the walk or of any unit; units not yet begun are then dropped.
pub(crate) fn run<'outer, U, W, E, R>(
    make_hand: &'outer (dyn Fn() -> W + Sync),
    work: &'outer (dyn Fn(&mut W, U) -> Result<(), E> + Sync),
    walk: impl FnOnce(&mut Foreman<'_, '_, U, W, E>) -> Result<R, E>,
) -> Result<(R, Vec<W>), E>
where
    U: Send,
    W: Send,
    E: Send,
{
    let shared = Shared {
        queue: Mutex::new(Queue {
            units: VecDeque::with_capacity(QUEUE),
            running: 0,
            closed: false,
            error: None,
        }),
        changed: Condvar::new(),
    };
    let (result, hands) = thread::scope(|scope| {
        let close = Close(&shared);
        let mut foreman = Foreman {
            shared: &shared,
            work,
            hand: make_hand(),
            make_hand,
            scope,
            threads: Vec::new(),
        };
        let result = walk(&mut foreman).and_then(|result| foreman.drain().map(|()| result));
        if result.is_err() {
            shared.lock().units.clear();
        }
        drop(close);
        let mut hands = vec![foreman.hand];
        for thread in foreman.threads {
            match thread.join() {
                Ok(hand) => hands.push(hand),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (result, hands)
    });
    Ok((result?, hands))
}

impl<'env, U: Send + 'env, W: Send + 'env, E: Send + 'env> Foreman<'_, 'env, U, W, E> {
    /// Gives a unit to whoever has time, or does it now if nobody has.
    ///
    /// # Errors
    ///
    /// The error of any unit so far.
    pub(crate) fn submit(&mut self, unit: U) -> Result<(), E> {
        let waiting = {
            let mut queue = self.shared.lock();
            if let Some(error) = queue.error.take() {
                return Err(error);
            }
            if queue.units.len() >= QUEUE {
                drop(queue);
                return (self.work)(&mut self.hand, unit);
            }
            queue.units.push_back(unit);
            queue.units.len()
        };
        if waiting >= WORTH_A_THREAD && self.threads.len() + 1 < threads() {
            let (shared, work, make_hand) = (self.shared, self.work, self.make_hand);
            let labour = move || labour(shared, work, make_hand());
            let thread = thread::Builder::new().name("tree".into());
            // Where there can be no more threads, the walker does all the work.
            if let Ok(thread) = thread.spawn_scoped(self.scope, labour) {
                self.threads.push(thread);
            }
        }
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Does a unit now.
    ///
    /// # Errors
    ///
    /// The error of any unit so far.
    pub(crate) fn work_here(&mut self, unit: U) -> Result<(), E> {
        if let Some(error) = self.shared.lock().error.take() {
            return Err(error);
        }
        (self.work)(&mut self.hand, unit)
    }

    /// Waits until every unit is done, helping.
    ///
    /// # Errors
    ///
    /// The error of any unit so far.
    pub(crate) fn drain(&mut self) -> Result<(), E> {
        let mut queue = self.shared.lock();
        loop {
            if let Some(error) = queue.error.take() {
                return Err(error);
            }
            if let Some(unit) = queue.units.pop_front() {
                drop(queue);
                (self.work)(&mut self.hand, unit)?;
                queue = self.shared.lock();
            } else if queue.running == 0 {
                return Ok(());
            } else {
                queue = self
                    .shared
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Does units until there will be no more.
fn labour<U, W, E>(
    shared: &Shared<U, E>,
    work: &(dyn Fn(&mut W, U) -> Result<(), E> + Sync),
    mut hand: W,
) -> W {
    let mut queue = shared.lock();
    loop {
        if let Some(unit) = queue.units.pop_front() {
            queue.running += 1;
            drop(queue);
            let running = Running(shared);
            let result = work(&mut hand, unit);
            if let Err(error) = result {
                let mut queue = shared.lock();
                queue.error.get_or_insert(error);
                queue.units.clear();
            }
            drop(running);
            queue = shared.lock();
        } else if queue.closed {
            return hand;
        } else {
            queue = shared
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Returns how many threads to use. Asking the system reads several files, so it is done once.
fn threads() -> usize {
    static THREADS_HERE: OnceLock<usize> = OnceLock::new();
    *THREADS_HERE
        .get_or_init(|| thread::available_parallelism().map_or(1, |n| n.get().min(THREADS)))
}

// SPDX-License-Identifier: Apache-2.0
//! Threads that work on a tree together, a directory at a time.
//!
//! What waits is a stack: the directory that was met last is done first, so that as few as a plain descent would meet wait,
//! and few descriptors are open. Threads start only when there is enough to do.

use rustix::io::{Errno, Result};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// Threads at most: making files is work of the kernel, whose locks leave little for more of them to do.
const THREADS: usize = 8;

/// Tasks that wait before another thread is worth its start (about 0.1 ms).
const WORTH_A_THREAD: usize = 4;

struct Pile<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: Vec<T>,
    /// Tasks that somebody is at.
    running: usize,
    error: Option<Errno>,
}

impl<T> Pile<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic elsewhere is passed on when the threads are joined; the state itself is always whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a task, waiting until there is one. `None` when all are done or one has failed.
    fn take(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.error.is_some() {
                return None;
            }
            if let Some(task) = state.waiting.pop() {
                state.running += 1;
                return Some(task);
            }
            if state.running == 0 {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does tasks until there are no more. `more` is told after each how many wait.
    fn labour(&self, work: Work<'_, T>, mut more: impl FnMut(usize)) {
        while let Some(task) = self.take() {
            let mut done = Done {
                pile: self,
                found: Vec::new(),
                error: None,
            };
            done.error = work(task, &mut done.found).err();
            drop(done);
            more(self.lock().waiting.len());
        }
    }
}

/// Ends a task, also when the work panics.
struct Done<'a, T> {
    pile: &'a Pile<T>,
    found: Vec<T>,
    error: Option<Errno>,
}

impl<T> Drop for Done<'_, T> {
    fn drop(&mut self) {
        let mut state = self.pile.lock();
        state.running -= 1;
        state.waiting.append(&mut self.found);
        if state.error.is_none() {
            state.error = self.error;
        }
        let wake = state.waiting.len() > 1
            || state.error.is_some()
            || (state.running == 0 && state.waiting.is_empty());
        drop(state);
        if wake {
            self.pile.changed.notify_all();
        }
    }
}

/// Does a task and collects those that it found.
type Work<'a, T> = &'a (dyn Fn(T, &mut Vec<T>) -> Result<()> + Sync);

/// Does the task `first` and all that come of it.
///
/// Returns the first error; tasks not yet begun are then dropped.
pub(super) fn run<T: Send>(first: T, work: Work<'_, T>) -> Result<()> {
    let pile = Pile {
        state: Mutex::new(State {
            waiting: vec![first],
            running: 0,
            error: None,
        }),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        let mut helpers = 1;
        pile.labour(work, |waiting| {
            if waiting >= WORTH_A_THREAD && helpers < threads() {
                let labour = || pile.labour(work, |_| {});
                // Where there can be no more threads, this one does all the work.
                if thread::Builder::new()
                    .name("tree".to_owned())
                    .spawn_scoped(scope, labour)
                    .is_ok()
                {
                    helpers += 1;
                }
            }
        });
    });
    let error = pile.lock().error;
    error.map_or(Ok(()), Err)
}

/// Returns how many threads to use. Asking the system reads several files, so it is done once.
fn threads() -> usize {
    static THREADS_HERE: OnceLock<usize> = OnceLock::new();
    *THREADS_HERE
        .get_or_init(|| thread::available_parallelism().map_or(1, |n| n.get().min(THREADS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_task_is_done_once() {
        let done = AtomicUsize::new(0);
        run(12, &|depth, found| {
            done.fetch_add(1, Ordering::Relaxed);
            if depth > 0 {
                found.extend([depth - 1, depth - 1]);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(done.into_inner(), (1 << 13) - 1);
    }

    #[test]
    fn an_error_ends_the_work() {
        let result = run(0_u64, &|number, found| {
            found.extend([number + 1, number + 1]);
            if number == 50 { Err(Errno::IO) } else { Ok(()) }
        });
        assert_eq!(result, Err(Errno::IO));
    }
}

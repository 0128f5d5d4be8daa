// SPDX-License-Identifier: Apache-2.0
//! Snapshots as a forest, and work done on all of it: parents first, independent chains at once.

use crate::Error;
use obuild_stores::SnapshotId;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Snapshots and what stands on them.
#[derive(Debug, Default)]
pub(crate) struct Forest {
    children: HashMap<SnapshotId, Vec<SnapshotId>>,
    /// Those whose parent is not in the forest.
    roots: Vec<SnapshotId>,
}

impl Forest {
    /// Makes it of snapshots with their parents.
    pub(crate) fn new(snapshots: &[(SnapshotId, Option<SnapshotId>)]) -> Self {
        let there: HashSet<SnapshotId> = snapshots.iter().map(|(id, _)| *id).collect();
        let mut forest = Self::default();
        for (id, parent) in snapshots {
            match parent.filter(|parent| there.contains(parent)) {
                Some(parent) => forest.children.entry(parent).or_default().push(*id),
                None => forest.roots.push(*id),
            }
        }
        forest.roots.sort_unstable();
        for children in forest.children.values_mut() {
            children.sort_unstable();
        }
        forest
    }

    /// Returns what stands on a snapshot, that snapshot first and parents before children.
    pub(crate) fn descendants(&self, id: SnapshotId) -> Vec<SnapshotId> {
        let mut found = vec![id];
        let mut next = 0;
        while next < found.len() {
            found.extend(self.children.get(&found[next]).into_iter().flatten());
            next += 1;
        }
        found
    }

    /// Returns every snapshot, parents before children.
    pub(crate) fn in_order(&self) -> Vec<SnapshotId> {
        let mut found = self.roots.clone();
        let mut next = 0;
        while next < found.len() {
            found.extend(self.children.get(&found[next]).into_iter().flatten());
            next += 1;
        }
        found
    }

    /// Returns the number of snapshots in the longest chain.
    pub(crate) fn depth(&self) -> usize {
        let mut deepest = 0;
        let mut stack: Vec<(SnapshotId, usize)> = self.roots.iter().map(|id| (*id, 1)).collect();
        while let Some((id, depth)) = stack.pop() {
            deepest = deepest.max(depth);
            let children = self.children.get(&id).into_iter().flatten();
            stack.extend(children.map(|child| (*child, depth + 1)));
        }
        deepest
    }

    /// Calls `work` for every snapshot, from `threads` threads, with what it returned for the parent; nothing for a root. Where it
    /// returns `None`, what stands on the snapshot is left out. Chains are followed to their ends before others are begun, so that few
    /// results are held at a time.
    ///
    /// # Errors
    ///
    /// The first error; what was not begun is not.
    pub(crate) fn each<T: Send + Sync>(
        &self,
        threads: usize,
        work: Work<'_, T>,
    ) -> Result<(), Error> {
        let shared = Shared {
            queue: Mutex::new(Queue {
                waiting: self.roots.iter().rev().map(|id| (*id, None)).collect(),
                running: 0,
                error: None,
            }),
            changed: Condvar::new(),
        };
        let labour = || {
            while let Some((id, parent)) = shared.next() {
                let running = Running(&shared);
                let result = work(id, parent.as_deref());
                drop(parent);
                let mut queue = held(&shared.queue);
                match result {
                    Ok(Some(made)) => {
                        let made = Arc::new(made);
                        let children = self.children.get(&id).into_iter().flatten();
                        let children = children.map(|child| (*child, Some(Arc::clone(&made))));
                        queue.waiting.extend(children);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        queue.waiting.clear();
                        queue.error.get_or_insert(error);
                    }
                }
                drop(queue);
                drop(running);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // Where there can be no more threads, one does all the work.
                let _ = std::thread::Builder::new()
                    .name("store".into())
                    .spawn_scoped(scope, labour);
            }
            labour();
        });
        let queue = shared
            .queue
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        queue.error.map_or(Ok(()), Err)
    }
}

/// What is done for each snapshot, with what was made for its parent.
pub(crate) type Work<'a, T> =
    &'a (dyn Fn(SnapshotId, Option<&T>) -> Result<Option<T>, Error> + Sync);

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
}

struct Queue<T> {
    /// Taken from the end.
    waiting: Vec<Waiting<T>>,
    running: usize,
    error: Option<Error>,
}

/// A snapshot, and what was made for its parent.
type Waiting<T> = (SnapshotId, Option<Arc<T>>);

impl<T> Shared<T> {
    /// Waits for the next snapshot; nothing when there will be no more.
    fn next(&self) -> Option<Waiting<T>> {
        let mut queue = held(&self.queue);
        loop {
            if let Some(next) = queue.waiting.pop() {
                queue.running += 1;
                return Some(next);
            }
            if queue.running == 0 {
                return None;
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Marks a snapshot as no longer worked on, also when the work panics.
struct Running<'a, T>(&'a Shared<T>);

impl<T> Drop for Running<'_, T> {
    fn drop(&mut self) {
        held(&self.0.queue).running -= 1;
        self.0.changed.notify_all();
    }
}

/// Locks what several threads add to. A panic elsewhere is passed on when they are joined.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> SnapshotId {
        SnapshotId::from_digest([byte; 32])
    }

    #[test]
    fn parents_come_first_and_their_results_reach_the_children() {
        // 1 ─ 2 ─ 3, 1 ─ 4, and 6 whose parent 5 is missing.
        let forest = Forest::new(&[
            (id(3), Some(id(2))),
            (id(1), None),
            (id(2), Some(id(1))),
            (id(4), Some(id(1))),
            (id(6), Some(id(5))),
        ]);
        assert_eq!(forest.depth(), 3);
        assert_eq!(forest.descendants(id(1)), [id(1), id(2), id(4), id(3)]);
        for threads in [1, 4] {
            let seen = Mutex::new(Vec::new());
            let depth = |id: SnapshotId, parent: Option<&usize>| {
                let depth = parent.map_or(1, |depth| depth + 1);
                seen.lock().unwrap().push((id, depth));
                Ok((id != SnapshotId::from_digest([2; 32])).then_some(depth))
            };
            forest.each(threads, &depth).unwrap();
            let mut seen = seen.into_inner().unwrap();
            seen.sort();
            // Nothing stands on 2, which gave no result.
            assert_eq!(seen, [(id(1), 1), (id(2), 2), (id(4), 2), (id(6), 1)]);
        }
        let wrong = |_, _: Option<&()>| Err(Error::Cancelled);
        assert!(matches!(forest.each(2, &wrong), Err(Error::Cancelled)));
    }
}

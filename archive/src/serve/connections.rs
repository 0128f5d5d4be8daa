// SPDX-License-Identifier: Apache-2.0
//! The table of all connections: how many there are, which are idle, and when the patience with each ends.
//!
//! A connection's own task only writes down what it is doing, in one atomic word. A sweep twice a second ends those whose time is
//! up, so that a request costs no timer; and when the table is full, idle ones make room, first those of the address that has most.

use super::metrics::Metrics;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// The bit of a state that says that the connection is idle.
const IDLE: u64 = 1;
/// The bit of a state that says that nothing has come in yet; such a connection is idle, too.
const FRESH: u64 = 2;
/// How far the time is shifted to make room for the bits.
const SHIFT: u32 = 2;
/// What a fresh connection still has when the server stops: its request may be on its way.
const LAST_CALL: Duration = Duration::from_secs(1);
/// The state of a connection that is being ended: no request is begun on it.
const ENDED: u64 = u64::MAX;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) per_address: Option<usize>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    began: Instant,
    inner: Mutex<Inner>,
    open: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    slots: HashMap<u64, Arc<Slot>>,
    addresses: HashMap<IpAddr, usize>,
}

/// A connection's line in the table.
#[derive(Debug)]
pub(super) struct Slot {
    address: IpAddr,
    /// Milliseconds since the table was made when its time is up, shifted by [`SHIFT`], and whether it is [`IDLE`] and [`FRESH`].
    state: AtomicU64,
    task: OnceLock<AbortHandle>,
}

/// Takes a connection off the table when it is dropped, however its task ends.
#[derive(Debug)]
pub(super) struct Ticket {
    table: Arc<Table>,
    id: u64,
    slot: Arc<Slot>,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            began: Instant::now(),
            inner: Mutex::default(),
            open: AtomicU64::new(0),
        })
    }

    /// Returns how many connections are open.
    pub(super) fn open(&self) -> usize {
        usize::try_from(self.open.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// Enters a new connection, whose first request has to be there in `patience`; `None` when there is no room for it.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        patience: Duration,
        metrics: &Metrics,
    ) -> Option<Ticket> {
        let address = client(address);
        let mut inner = self.lock();
        let of_address = inner.addresses.get(&address).copied().unwrap_or(0);
        if self
            .limits
            .per_address
            .is_some_and(|limit| of_address >= limit)
            || (inner.slots.len() >= self.limits.connections
                && !inner.make_room(self.limits.connections, metrics))
        {
            Metrics::add(&metrics.refused, 1);
            return None;
        }
        let slot = Arc::new(Slot {
            address,
            state: AtomicU64::new(self.deadline(patience) << SHIFT | FRESH | IDLE),
            task: OnceLock::new(),
        });
        let id = inner.next;
        inner.next += 1;
        inner.slots.insert(id, Arc::clone(&slot));
        *inner.addresses.entry(address).or_default() += 1;
        self.open.store(inner.slots.len() as u64, Ordering::Relaxed);
        Some(Ticket {
            table: Arc::clone(self),
            id,
            slot,
        })
    }

    /// Ends the connections whose time is up.
    pub(super) fn sweep(&self, metrics: &Metrics) {
        let now = self.deadline(Duration::ZERO);
        let inner = self.lock();
        for slot in inner.slots.values() {
            let state = slot.state.load(Ordering::Relaxed);
            if state >> SHIFT < now && slot.end(state) && state & IDLE == 0 {
                Metrics::add(&metrics.timed_out, 1);
            }
        }
    }

    /// Ends the connections that are idle, all or (for room) some; returns whether there were any.
    pub(super) fn end_idle(&self, metrics: &Metrics) -> bool {
        self.lock().make_room(self.limits.connections, metrics)
    }

    /// Ends every idle connection, the fresh ones a little later, or every one at once.
    pub(super) fn end(&self, busy_too: bool) {
        let last_call = self.deadline(LAST_CALL) << SHIFT | FRESH | IDLE;
        for slot in self.lock().slots.values() {
            let state = slot.state.load(Ordering::Relaxed);
            if !busy_too && state & FRESH != 0 && state != ENDED {
                // Fails only when it is not fresh any more.
                let _ = slot.change(state, last_call);
            } else if busy_too || state & IDLE != 0 {
                slot.end(state);
            }
        }
    }

    fn deadline(&self, patience: Duration) -> u64 {
        let at = self.began.elapsed() + patience;
        u64::try_from(at.as_millis()).unwrap_or(u64::MAX >> (SHIFT + 1))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Ends a sixty-fourth of the connections, at least one, so that a flood of new ones does not look through the table each time: of those that are
    /// idle first the ones of the address with most connections, and of these the ones that are idle for longest.
    fn make_room(&mut self, limit: usize, metrics: &Metrics) -> bool {
        let mut idle: Vec<_> = self
            .slots
            .iter()
            .filter_map(|(id, slot)| {
                let state = slot.state.load(Ordering::Relaxed);
                let of_address = self.addresses.get(&slot.address).copied().unwrap_or(0);
                (state & IDLE != 0 && state != ENDED)
                    .then_some(((usize::MAX - of_address, state), *id))
            })
            .collect();
        let count = (limit / 64).clamp(1, idle.len().max(1));
        if idle.len() > count {
            idle.select_nth_unstable(count);
            idle.truncate(count);
        }
        let mut ended = 0;
        for ((_, state), id) in idle {
            let gone = self.slots.get(&id).is_some_and(|slot| slot.end(state));
            if gone {
                // Its room is free at once; its task takes a moment to go.
                self.remove(id);
                ended += 1;
            }
        }
        Metrics::add(&metrics.evicted, ended);
        ended > 0
    }

    fn remove(&mut self, id: u64) {
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        if let Some(count) = self.addresses.get_mut(&slot.address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&slot.address);
            }
        }
    }
}

impl Slot {
    /// Changes the state if it still is `old`.
    fn change(&self, old: u64, new: u64) -> bool {
        self.state
            .compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Ends the connection unless it has done something since `state` was read.
    fn end(&self, state: u64) -> bool {
        let ended = state != ENDED && self.change(state, ENDED);
        if ended && let Some(task) = self.task.get() {
            task.abort();
        }
        ended
    }
}

impl Ticket {
    /// Says by which task the connection is served.
    pub(super) fn served_by(&self, task: AbortHandle) {
        // Ended before it began: the sweep had no task to end.
        if self.slot.state.load(Ordering::Relaxed) == ENDED {
            task.abort();
        }
        // Set once: a connection has one task.
        let _ = self.slot.task.set(task);
    }

    /// Says that nothing goes on, and for how long that may last.
    pub(super) fn idle(&self, patience: Duration) {
        self.set(self.table.deadline(patience) << SHIFT | IDLE);
    }

    /// Says that something goes on, and for how long it may without another word.
    pub(super) fn busy(&self, patience: Duration) {
        self.set(self.table.deadline(patience) << SHIFT);
    }

    /// Says that a request has begun to come in; `false` when the connection is being ended.
    pub(super) fn begin(&self, patience: Duration) -> bool {
        self.busy(patience);
        self.slot.state.load(Ordering::Relaxed) != ENDED
    }

    fn set(&self, new: u64) {
        let old = self.slot.state.load(Ordering::Relaxed);
        if old != ENDED {
            // Fails only when it is being ended, and then the task has no need to know.
            let _ = self.slot.change(old, new);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        inner.remove(self.id);
        let open = inner.slots.len() as u64;
        self.table.open.store(open, Ordering::Relaxed);
    }
}

/// Who counts as one client: an address, and of IPv6 the network that one customer has (RFC 6177: at least a /64).
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !(u128::MAX >> 64);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::{Limits, Table, Ticket};
    use crate::serve::metrics::Metrics;
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    const LONG: Duration = Duration::from_mins(1);

    fn table(connections: usize, per_address: Option<usize>) -> (Arc<Table>, Metrics) {
        let limits = Limits {
            connections,
            per_address,
        };
        (Table::new(limits), Metrics::default())
    }

    fn enter(table: &Arc<Table>, metrics: &Metrics, address: &str) -> Option<Ticket> {
        let address: IpAddr = address.parse().unwrap();
        let ticket = table.enter(address, LONG, metrics)?;
        ticket.busy(LONG);
        Some(ticket)
    }

    #[test]
    fn a_full_table_makes_room_fairly() {
        let (table, metrics) = table(4, None);
        let modest = enter(&table, &metrics, "10.0.0.1").unwrap();
        modest.idle(LONG);
        let greedy: Vec<_> = (0..3)
            .map(|_| enter(&table, &metrics, "10.0.0.2").unwrap())
            .collect();
        assert!(
            enter(&table, &metrics, "10.0.0.3").is_some_and(|_| true),
            "the idle one goes"
        );
        assert!(!modest.begin(LONG), "it is over");
        let (table, metrics) = self::table(4, None);
        let modest = enter(&table, &metrics, "10.0.0.1").unwrap();
        modest.idle(LONG);
        drop(greedy);
        let greedy: Vec<_> = (0..3)
            .map(|n| {
                let ticket = enter(&table, &metrics, "10.0.0.2").unwrap();
                ticket.idle(LONG + Duration::from_secs(n));
                ticket
            })
            .collect();
        let _new = enter(&table, &metrics, "10.0.0.3").expect("room");
        assert!(modest.begin(LONG), "not the one of the modest");
        assert!(!greedy[0].begin(LONG), "but the longest idle of the greedy");
        assert!(greedy[1].begin(LONG) && greedy[2].begin(LONG));
        assert!(
            enter(&table, &metrics, "10.0.0.3").is_none(),
            "nothing is idle"
        );
        assert_eq!(metrics.evicted.load(Ordering::Relaxed), 1);
        assert_eq!(metrics.refused.load(Ordering::Relaxed), 1);
        drop(modest);
        assert!(enter(&table, &metrics, "10.0.0.3").is_some());
    }

    #[test]
    fn an_address_has_its_limit_and_a_v6_customer_is_one() {
        let (table, metrics) = table(10, Some(2));
        let _one = enter(&table, &metrics, "2001:db8::1").unwrap();
        let two = enter(&table, &metrics, "2001:db8::ffff:2").unwrap();
        assert!(enter(&table, &metrics, "2001:db8::3").is_none());
        assert!(enter(&table, &metrics, "2001:db8:0:1::3").is_some());
        drop(two);
        assert!(enter(&table, &metrics, "2001:db8::3").is_some());
        assert_eq!(table.open(), 1);
    }

    #[test]
    fn the_sweep_ends_what_had_its_time() {
        let (table, metrics) = table(10, None);
        let late = enter(&table, &metrics, "::1").unwrap();
        let fine = enter(&table, &metrics, "::1").unwrap();
        late.busy(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(3));
        table.sweep(&metrics);
        assert!(!late.begin(LONG) && fine.begin(LONG));
        assert_eq!(metrics.timed_out.load(Ordering::Relaxed), 1);
    }
}

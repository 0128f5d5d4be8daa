// SPDX-License-Identifier: Apache-2.0
//! The time of day as responses and logs have it, written once a second for each worker.

use super::conditions::written;
use std::cell::{Cell, RefCell};
use std::time::SystemTime;

/// Returns the seconds since 1970.
pub(super) fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The current second, written.
pub(super) struct Clock {
    second: Cell<u64>,
    http: RefCell<String>,
    log: RefCell<String>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            second: Cell::new(u64::MAX),
            http: RefCell::default(),
            log: RefCell::default(),
        }
    }

    /// Gives the value of a `Date` field.
    pub(super) fn http<T>(&self, with: impl FnOnce(&str) -> T) -> T {
        self.refresh();
        with(&self.http.borrow())
    }

    /// Gives the time as access logs have it: `21/Nov/2026:07:00:00 +0000`.
    pub(super) fn log<T>(&self, with: impl FnOnce(&str) -> T) -> T {
        self.refresh();
        with(&self.log.borrow())
    }

    fn refresh(&self) {
        let second = seconds();
        if self.second.replace(second) == second {
            return;
        }
        let http = written(second).unwrap_or_default();
        // `Sat, 21 Nov 2026 07:00:00 GMT`, in another order.
        let mut words = http.split([' ', ',']).filter(|word| !word.is_empty());
        let mut word = || words.next().unwrap_or_default();
        let (_, day, month, year, time) = (word(), word(), word(), word(), word());
        *self.log.borrow_mut() = format!("{day}/{month}/{year}:{time} +0000");
        *self.http.borrow_mut() = http;
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn both_forms_say_the_same() {
        let clock = Clock::new();
        let http = clock.http(str::to_owned);
        let log = clock.log(str::to_owned);
        assert_eq!(http.len(), 29);
        assert_eq!(log.len(), 26);
        assert_eq!(log[..2], http[5..7]);
        assert_eq!(log[7..11], http[12..16]);
    }
}

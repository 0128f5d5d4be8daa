// SPDX-License-Identifier: Apache-2.0
//! Which layers of a grown stack to squash, and the squashing.

use super::Shared;
use crate::Error;
use crate::tree::{self, Whiteouts};
use std::os::fd::OwnedFd;

/// Returns how many layers from the top to squash, given how many entries each layer has: half of them at least, and
/// so many more that each layer left has at least twice the entries of the new one. So a file is linked anew a number of times
/// that grows with the logarithm of what the stack holds.
pub(super) fn crowd(entries: &[u64]) -> usize {
    // Half at least, or the next layer would be too many again.
    let mut count = entries.len() / 2 + 1;
    let mut sum: u64 = entries.iter().take(count).sum();
    while let Some(next) = entries.get(count)
        && sum * 2 > *next
    {
        sum += next;
        count += 1;
    }
    count.min(entries.len())
}

impl Shared {
    pub(super) fn open_layer(&self, name: &str) -> Result<OwnedFd, Error> {
        self.place
            .open_directory(name)
            .map_err(|errno| self.place.error("open", name, errno))
    }

    /// Returns how many entries a layer has.
    pub(super) fn count(&self, layer: &str) -> Result<u64, Error> {
        tree::count(self.open_layer(layer)?)
            .map_err(|errno| self.place.error("count", layer, errno))
    }

    /// Squashes `layers` into the new directory `target`, which will lie on the layers `below`; both topmost first.
    /// Returns how many entries it has.
    pub(super) fn squash(
        &self,
        layers: &[String],
        below: &[String],
        target: &str,
    ) -> Result<u64, Error> {
        self.place.make_directory(target, 0o755)?;
        let whiteouts = if below.is_empty() {
            Whiteouts::Drop
        } else {
            Whiteouts::Keep
        };
        for layer in layers.iter().rev() {
            tree::merge(self.open_layer(layer)?, self.open_layer(target)?, whiteouts)
                .map_err(|errno| self.place.error("squash", layer, errno))?;
        }
        if whiteouts == Whiteouts::Keep {
            let below: Result<Vec<OwnedFd>, Error> =
                below.iter().map(|layer| self.open_layer(layer)).collect();
            tree::prune_whiteouts(self.open_layer(target)?, below?)
                .map_err(|errno| self.place.error("squash", target, errno))?;
        }
        self.count(target)
    }
}

#[cfg(test)]
mod tests {
    use super::crowd;

    #[test]
    fn small_layers_are_squashed_and_large_ones_left_alone() {
        assert_eq!(crowd(&[2; 17]), 17);
        let mut entries = [2; 17];
        entries[16] = 100_000;
        assert_eq!(crowd(&entries), 16);
        entries[15] = 60_000;
        assert_eq!(crowd(&entries), 15);
        entries[3] = 60_000;
        assert_eq!(crowd(&entries), 17);
        assert_eq!(crowd(&[5]), 1);
        assert_eq!(crowd(&[1, 1_000_000, 3_000_000]), 2);
    }
}

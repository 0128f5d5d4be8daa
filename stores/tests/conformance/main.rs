// SPDX-License-Identifier: Apache-2.0
//! One suite that every kind of store must pass: what [`obuild_stores::Store`] promises, one test a promise.
//!
//! Tests that need another process start this program again and have it play a [`role`](processes).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod caches;
mod copies;
mod durability;
mod full_disk;
mod layers;
mod processes;
mod snapshots;
mod subject;
mod trees;
mod upkeep;
mod zfs;

/// Runs test functions against `all` kinds of store, or against the `persistent` ones: all but the one for tests.
macro_rules! suite {
    (all: $($test:ident)*) => {
        crate::suite!(@ memory MEMORY $($test)*);
        crate::suite!(persistent: $($test)*);
    };
    (persistent: $($test:ident)*) => {
        crate::suite!(@ overlay OVERLAY $($test)*);
        crate::suite!(@ overlay_on_xfs OVERLAY_ON_XFS $($test)*);
        crate::suite!(@ overlay_on_btrfs OVERLAY_ON_BTRFS $($test)*);
        crate::suite!(@ btrfs BTRFS $($test)*);
        crate::suite!(@ xfs XFS $($test)*);
        crate::suite!(@ xfs_on_btrfs XFS_ON_BTRFS $($test)*);
        crate::suite!(@ rsync_copy RSYNC_COPY $($test)*);
        crate::suite!(@ rsync_hardlink RSYNC_HARDLINK $($test)*);
        crate::suite!(@ rsync_hardlink_unsafe RSYNC_HARDLINK_UNSAFE $($test)*);
        crate::suite!(@ rsync_hardlink_by_program RSYNC_HARDLINK_BY_PROGRAM $($test)*);
        crate::suite!(@ zfs ZFS $($test)*);
        #[cfg(feature = "docker")]
        crate::suite!(@ docker DOCKER $($test)*);
    };
    (@ $module:ident $subject:ident $($test:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    if let Some(fixture) = crate::subject::$subject.fixture() {
                        super::$test(&fixture);
                        fixture.finish();
                    }
                }
            )*
        }
    };
}
pub(crate) use suite;

// SPDX-License-Identifier: Apache-2.0
//! Where the tar is cut into segments: a file starts one if its path says so. What is added, changed or removed elsewhere
//! moves no cut, and the same files are cut alike whatever way led to them.

/// One file in so many starts a segment. A file takes 2.1 kB of the tar in opam-repository, so a segment has 50 kB.
///
/// 792 segments and 3.69 MB in all; a merge compresses 197 kB in the median, 240 kB in the mean, to 19 and 23 kB (200 merges, 2026-07 to
/// 2026-08). With one in 16 what a merge compresses is a third less, but the list of the parts a half longer, and from nothing takes a tenth longer.
const ONE_IN: u64 = 24;

/// Returns whether the file starts a segment.
pub(super) fn starts_segment(path: &[u8]) -> bool {
    // FNV-1a with a mixing step behind it (splitmix64), because its low bits alone follow the last byte.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in path {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)).is_multiple_of(ONE_IN)
}

// SPDX-License-Identifier: Apache-2.0
//! Names of snapshots that are not simply a step's id.

use obuild_specs::StepId;
use obuild_stores::SnapshotId;
use sha2::{Digest, Sha256};

/// Returns the snapshot that holds a step's result unless `--no-cache` has run the step again.
pub(crate) fn snapshot(step: StepId) -> SnapshotId {
    SnapshotId::from_digest(*step.as_bytes())
}

/// Returns the snapshot that keeps what a failed step left (`--keep-failed`).
pub(crate) fn failed(id: SnapshotId) -> SnapshotId {
    derived(b"obuild failed step 1\0", id.as_bytes(), &[])
}

/// Returns the snapshot for a new run of a step whose result is there (`--no-cache`).
pub(crate) fn again(step: StepId, nonce: &[u8; 16]) -> SnapshotId {
    derived(b"obuild step run again 1\0", step.as_bytes(), nonce)
}

/// Returns the snapshot for a result of a cache, where the step's name belongs to another result. `content` says what it is.
pub(crate) fn fetched(id: SnapshotId, content: &[u8; 32]) -> SnapshotId {
    derived(b"obuild fetched step 1\0", id.as_bytes(), content)
}

fn derived(domain: &[u8], id: &[u8; 32], nonce: &[u8]) -> SnapshotId {
    let mut hash = Sha256::new();
    hash.update(domain);
    hash.update(id);
    hash.update(nonce);
    SnapshotId::from_digest(hash.finalize().into())
}

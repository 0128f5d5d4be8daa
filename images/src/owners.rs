// SPDX-License-Identifier: Apache-2.0
//! What becomes of owners and devices where an ordinary user, in a user namespace, makes a tree: not every id exists there, and devices
//! cannot be made at all. What is lost is told once.

use bstr::BStr;
use std::io;
use std::sync::Once;

/// Returns the owner to give to something that belongs to `uid` and `gid` in an archive.
///
/// # Errors
///
/// When the user namespace has more than one id, but not these: a tree with wrong owners would be kept under a right id.
pub(crate) fn allowed(uid: u32, gid: u32) -> io::Result<(u32, u32)> {
    static TOLD: Once = Once::new();
    let owner = obuild_rootless::owner(uid, gid)?;
    if owner != (uid, gid) {
        TOLD.call_once(|| {
            tracing::warn!("there is one user id only here: files of all others become root's");
        });
    }
    Ok(owner)
}

/// Returns the owner to give to the copy of a file of the host. In a user namespace files of users that it does not have seem to belong
/// to nobody; they become root's.
pub(crate) fn copied(uid: u32, gid: u32) -> io::Result<(u32, u32)> {
    // linux v6.18 include/linux/highuid.h DEFAULT_OVERFLOWUID.
    const NOBODY: u32 = 65534;
    if obuild_rootless::current().is_none() {
        return Ok((uid, gid));
    }
    let known = |id| if id == NOBODY { 0 } else { id };
    allowed(known(uid), known(gid))
}

/// Returns the owner of an exported file. What an ordinary user exports is its own: it could not even delete what belongs to ids that
/// only its user namespace has.
pub(crate) fn exported(uid: u32, gid: u32) -> (u32, u32) {
    if obuild_rootless::current().is_none() {
        (uid, gid)
    } else {
        (0, 0)
    }
}

/// Returns whether devices are left out, as `name` will be.
pub(crate) fn without_devices(name: &[u8]) -> bool {
    static TOLD: Once = Once::new();
    if obuild_rootless::current().is_none() {
        return false;
    }
    TOLD.call_once(|| {
        let name = BStr::new(name);
        tracing::warn!(
            "device nodes are left out, as only root can make them: {name} is the first"
        );
    });
    true
}

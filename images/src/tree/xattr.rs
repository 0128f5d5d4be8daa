// SPDX-License-Identifier: Apache-2.0
//! Extended attributes of open files, and of links through `/proc/self/fd`.

use bstr::BString;
use rustix::buffer::spare_capacity;
use rustix::fs::{
    XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, lgetxattr, llistxattr,
    lremovexattr, lsetxattr,
};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Name and value, sorted by name.
pub(crate) type Attributes = Vec<(BString, BString)>;

/// What has extended attributes.
#[derive(Clone, Copy)]
pub(crate) enum Owner<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// Something that is not opened (a link, a device), by its directory and name. There is no `lgetxattrat` before Linux 6.13, so it
    /// goes through `/proc/self/fd`.
    Named(BorrowedFd<'a>, &'a [u8]),
}

fn proc_path(directory: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Returns the attributes whose names `wanted` accepts; none where the file system has no attributes.
pub(crate) fn read(owner: Owner<'_>, wanted: impl Fn(&[u8]) -> bool) -> Result<Attributes, Errno> {
    let path = match owner {
        Owner::Open(_) => Vec::new(),
        Owner::Named(directory, name) => proc_path(directory, name),
    };
    let mut list = Vec::with_capacity(256);
    let listed = grow(&mut list, |buffer| match owner {
        Owner::Open(fd) => flistxattr(fd, spare_capacity(buffer)),
        Owner::Named(..) => llistxattr(&*path, spare_capacity(buffer)),
    });
    match listed {
        Ok(()) => {}
        // Without /proc, or for a kind of file or file system that has none, there is nothing to be read.
        Err(Errno::OPNOTSUPP | Errno::NOENT | Errno::LOOP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut attributes = Vec::new();
    for name in list.split(|&byte| byte == 0) {
        if name.is_empty() || !wanted(name) {
            continue;
        }
        let mut value = Vec::with_capacity(128);
        let got = grow(&mut value, |buffer| match owner {
            Owner::Open(fd) => fgetxattr(fd, name, spare_capacity(buffer)),
            Owner::Named(..) => lgetxattr(&*path, name, spare_capacity(buffer)),
        });
        match got {
            Ok(()) => attributes.push((BString::from(name), BString::from(value))),
            // Removed meanwhile, or listed but not readable by this caller.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    attributes.sort();
    Ok(attributes)
}

/// Calls `fill` with a larger and larger buffer until the answer fits. The kernel's limit is 64 KiB (`XATTR_SIZE_MAX`).
fn grow(
    buffer: &mut Vec<u8>,
    mut fill: impl FnMut(&mut Vec<u8>) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    loop {
        buffer.clear();
        match fill(buffer) {
            Ok(_) => return Ok(()),
            Err(Errno::RANGE) if buffer.capacity() < 1 << 20 => {
                buffer.reserve(buffer.capacity() * 4);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sets attributes.
pub(crate) fn write(owner: Owner<'_>, attributes: &[(BString, BString)]) -> Result<(), Errno> {
    for (name, value) in attributes {
        match owner {
            Owner::Open(fd) => fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?,
            Owner::Named(directory, file) => lsetxattr(
                proc_path(directory, file),
                name.as_slice(),
                value,
                XattrFlags::empty(),
            )?,
        }
    }
    Ok(())
}

/// Removes an attribute.
pub(crate) fn remove(owner: Owner<'_>, name: &[u8]) -> Result<(), Errno> {
    match owner {
        Owner::Open(fd) => fremovexattr(fd, name),
        Owner::Named(directory, file) => lremovexattr(proc_path(directory, file), name),
    }
}

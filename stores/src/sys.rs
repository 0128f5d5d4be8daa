// SPDX-License-Identifier: Apache-2.0
//! The system calls that rustix does not wrap: btrfs ioctls, and a thread with a mount namespace of its own.
//!
//! Structures and numbers: linux v6.1 include/uapi/linux, `btrfs.h` and `btrfs_tree.h`.
#![expect(unsafe_code, reason = "ioctl(2) and unshare(2) have no safe wrapper")]

use rustix::fd::AsFd;
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// `BTRFS_SUBVOL_NAME_MAX` + 1.
const NAME_BYTES: usize = 4040;
/// `BTRFS_SUBVOL_SPEC_BY_ID`.
const SPEC_BY_ID: u64 = 1 << 4;
/// `BTRFS_ROOT_TREE_OBJECTID`: the tree of trees.
pub(crate) const ROOT_TREE: u64 = 1;
/// `BTRFS_ROOT_REF_KEY`: from a subvolume to one that is in it.
pub(crate) const ROOT_REF: u32 = 156;
/// `BTRFS_EXTENT_DATA_KEY`: a piece of a file.
pub(crate) const EXTENT_DATA: u32 = 108;

/// `BTRFS_INODE_ITEM_KEY`.
pub(crate) const INODE_ITEM: u32 = 1;

/// `struct btrfs_ioctl_vol_args_v2`, 4096 bytes.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    /// A union in C: the name, or the id of a subvolume in the first eight bytes.
    name: [u8; NAME_BYTES],
}

/// `struct btrfs_ioctl_search_key`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SearchKey {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused_more: [u64; 4],
}

const SEARCH_BUFFER: usize = 64 * 1024;

/// `struct btrfs_ioctl_search_args_v2` with its buffer.
#[repr(C)]
struct SearchArguments {
    key: SearchKey,
    buf_size: u64,
    buffer: [u8; SEARCH_BUFFER],
}

/// `struct btrfs_ioctl_get_subvol_info_args`, of which only the beginning of the ids is named.
#[repr(C)]
struct SubvolumeInfo {
    treeid: u64,
    name: [u8; 256],
    parent_id: u64,
    dirid: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    ctransid: u64,
    otransid: u64,
    stransid: u64,
    rtransid: u64,
    times: [[u64; 2]; 4],
    reserved: [u64; 8],
}

/// `struct btrfs_ioctl_ino_path_args`.
#[repr(C)]
struct PathArguments {
    inum: u64,
    size: u64,
    reserved: [u64; 4],
    fspath: u64,
}

/// The kernel fills no more (linux fs/btrfs/ioctl.c, `btrfs_ioctl_ino_to_path`).
const PATH_BUFFER: usize = 4096;

/// `struct btrfs_data_container` with the room for its values: offsets of strings, counted from the first value.
#[repr(C)]
struct PathContainer {
    bytes_left: u32,
    bytes_missing: u32,
    elem_cnt: u32,
    elem_missed: u32,
    values: [u64; PATH_BUFFER / 8 - 2],
}

/// `_IOW(0x94, number, size)` and its kin: direction 1 writes to the kernel, 2 reads (include/uapi/asm-generic/ioctl.h).
const fn request(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    #[expect(clippy::cast_possible_truncation, reason = "the sizes are below 2^14")]
    let size = size as u32;
    ((direction << 30) | (size << 16) | (0x94 << 8) | number) as libc::Ioctl
}

const SNAP_CREATE_V2: libc::Ioctl = request(1, 23, size_of::<VolumeArguments>());
const SUBVOL_CREATE_V2: libc::Ioctl = request(1, 24, size_of::<VolumeArguments>());
const SNAP_DESTROY_V2: libc::Ioctl = request(1, 63, size_of::<VolumeArguments>());
// The size in the number is that of the structure without its flexible buffer.
const TREE_SEARCH_V2: libc::Ioctl = request(3, 17, size_of::<SearchKey>() + 8);
const INO_PATHS: libc::Ioctl = request(3, 35, size_of::<PathArguments>());
const GET_SUBVOL_INFO: libc::Ioctl = request(2, 60, size_of::<SubvolumeInfo>());

const _: () = assert!(size_of::<VolumeArguments>() == 4096);
const _: () = assert!(size_of::<SearchKey>() == 104);
const _: () = assert!(size_of::<PathArguments>() == 56);
const _: () = assert!(size_of::<PathContainer>() == PATH_BUFFER);
const _: () = assert!(size_of::<SubvolumeInfo>() == 504);

impl VolumeArguments {
    fn new(name: &CStr) -> io::Result<Box<Self>> {
        let mut arguments = Box::new(Self {
            fd: 0,
            transid: 0,
            flags: 0,
            unused: [0; 4],
            name: [0; NAME_BYTES],
        });
        let bytes = name.to_bytes_with_nul();
        let slot = arguments
            .name
            .get_mut(..bytes.len())
            .ok_or(io::Error::from(io::ErrorKind::InvalidFilename))?;
        slot.copy_from_slice(bytes);
        Ok(arguments)
    }

    fn call(&mut self, directory: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: the three requests take a pointer to a `btrfs_ioctl_vol_args_v2`, which `Self` mirrors; the kernel
        // reads it and writes only `transid`; the descriptor is borrowed for the call.
        let result =
            unsafe { libc::ioctl(directory.as_raw_fd(), request, std::ptr::from_mut(self)) };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// Creates an empty subvolume `name` in `directory`.
pub(crate) fn create_subvolume(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    VolumeArguments::new(name)?.call(directory, SUBVOL_CREATE_V2)
}

/// Creates `name` in `directory` as a writable snapshot of the subvolume `source`.
pub(crate) fn create_snapshot(
    source: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<()> {
    let mut arguments = VolumeArguments::new(name)?;
    arguments.fd = i64::from(source.as_raw_fd());
    arguments.call(directory, SNAP_CREATE_V2)
}

/// Destroys the subvolume `name` in `directory`. It must hold no other subvolume.
pub(crate) fn destroy_subvolume(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    VolumeArguments::new(name)?.call(directory, SNAP_DESTROY_V2)
}

/// Destroys the subvolume with this id, wherever below the mount of `directory` it is.
pub(crate) fn destroy_subvolume_by_id(directory: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut arguments = VolumeArguments::new(c"")?;
    arguments.flags = SPEC_BY_ID;
    arguments.name[..8].copy_from_slice(&id.to_ne_bytes());
    arguments.call(directory, SNAP_DESTROY_V2)
}

/// Returns the id of the subvolume that `directory` is in, and the transaction that created it.
pub(crate) fn subvolume_info(directory: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut info = SubvolumeInfo {
        treeid: 0,
        name: [0; 256],
        parent_id: 0,
        dirid: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        parent_uuid: [0; 16],
        received_uuid: [0; 16],
        ctransid: 0,
        otransid: 0,
        stransid: 0,
        rtransid: 0,
        times: [[0; 2]; 4],
        reserved: [0; 8],
    };
    // SAFETY: the request fills a `btrfs_ioctl_get_subvol_info_args`, which `SubvolumeInfo` mirrors in size and
    // layout (asserted above); every bit pattern is valid for its integers.
    let result = unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            GET_SUBVOL_INFO,
            std::ptr::from_mut(&mut info),
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.treeid, info.otransid))
}

/// One item of a btrfs tree.
pub(crate) struct Item<'a> {
    pub(crate) objectid: u64,
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) data: &'a [u8],
}

/// What to look for in a btrfs tree.
pub(crate) struct Search {
    /// 0 is the tree of the subvolume that the descriptor is in.
    pub(crate) tree: u64,
    /// Smallest and largest object.
    pub(crate) objects: (u64, u64),
    /// The kind of item.
    pub(crate) kind: u32,
    /// Skips whole leaves that are older than this transaction; younger leaves hold older items too.
    pub(crate) since: u64,
}

/// Calls `found` with each item of `search.kind`, in the order of the tree.
#[expect(clippy::large_stack_arrays, reason = "it goes into its box at once")]
pub(crate) fn search_tree(
    directory: BorrowedFd<'_>,
    search: &Search,
    mut found: impl FnMut(&Item<'_>),
) -> io::Result<()> {
    let mut arguments = Box::new(SearchArguments {
        key: SearchKey {
            tree_id: search.tree,
            min_objectid: search.objects.0,
            max_objectid: search.objects.1,
            max_offset: u64::MAX,
            min_transid: search.since,
            max_transid: u64::MAX,
            min_type: search.kind,
            max_type: search.kind,
            ..SearchKey::default()
        },
        buf_size: SEARCH_BUFFER as u64,
        buffer: [0; SEARCH_BUFFER],
    });
    loop {
        arguments.key.nr_items = u32::MAX;
        // SAFETY: the request takes a `btrfs_ioctl_search_args_v2`, which `SearchArguments` mirrors, followed by
        // `buf_size` bytes that the kernel may fill; both are inside the box.
        let result = unsafe {
            libc::ioctl(
                directory.as_raw_fd(),
                TREE_SEARCH_V2,
                std::ptr::from_mut(&mut *arguments),
            )
        };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        let mut rest = &arguments.buffer[..];
        let mut last = None;
        for _ in 0..arguments.key.nr_items {
            // struct btrfs_ioctl_search_header: transid, objectid, offset (u64), type, len (u32).
            let Some((header, after)) = rest.split_at_checked(32) else {
                break;
            };
            let word = |at: usize| {
                u64::from_ne_bytes(header[at..at + 8].try_into().expect("eight bytes were cut"))
            };
            let half = |at: usize| {
                u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes were cut"))
            };
            let Some((data, after)) = after.split_at_checked(half(28) as usize) else {
                break;
            };
            rest = after;
            let item = Item {
                objectid: word(8),
                kind: half(24),
                offset: word(16),
                data,
            };
            last = Some((item.objectid, item.kind, item.offset));
            // Keys between the bounds are compared as one number, so other kinds come too.
            if item.kind == search.kind {
                found(&item);
            }
        }
        // Go on behind the last key: it is one number, (objectid, type, offset).
        let Some((objectid, kind, offset)) = last else {
            return Ok(());
        };
        let key = &mut arguments.key;
        (key.min_objectid, key.min_type, key.min_offset) = match (offset, kind) {
            (u64::MAX, u32::MAX) if objectid == u64::MAX => return Ok(()),
            (u64::MAX, u32::MAX) => (objectid + 1, 0, 0),
            (u64::MAX, _) => (objectid, kind + 1, 0),
            _ => (objectid, kind, offset + 1),
        };
    }
}

/// Adds all paths that an inode has in the subvolume of `directory`. Returns whether there was room for all.
pub(crate) fn paths_of(
    directory: BorrowedFd<'_>,
    inode: u64,
    paths: &mut Vec<Vec<u8>>,
) -> io::Result<bool> {
    let mut container = Box::new(PathContainer {
        bytes_left: 0,
        bytes_missing: 0,
        elem_cnt: 0,
        elem_missed: 0,
        values: [0; PATH_BUFFER / 8 - 2],
    });
    let mut arguments = PathArguments {
        inum: inode,
        size: PATH_BUFFER as u64,
        reserved: [0; 4],
        fspath: std::ptr::from_mut(&mut *container) as u64,
    };
    // SAFETY: the request takes a `btrfs_ioctl_ino_path_args`, which `PathArguments` mirrors; it names the container and its size,
    // and the kernel writes nothing outside of that. Every bit pattern is valid for its integers.
    let result = unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            INO_PATHS,
            std::ptr::from_mut(&mut arguments),
        )
    };
    if result == -1 {
        let error = io::Error::last_os_error();
        // It has gone.
        return if error.kind() == io::ErrorKind::NotFound {
            Ok(true)
        } else {
            Err(error)
        };
    }
    if container.elem_missed > 0 || container.bytes_missing > 0 {
        return Ok(false);
    }
    let bytes: Vec<u8> = container
        .values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    for value in container.values.iter().take(container.elem_cnt as usize) {
        let text = usize::try_from(*value)
            .ok()
            .and_then(|start| bytes.get(start..))
            .and_then(|text| text.split(|byte| *byte == 0).next());
        match text {
            Some(path) if !path.is_empty() => paths.push(path.to_vec()),
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// `struct fiemap` (linux include/uapi/linux/fiemap.h) with room for extents.
#[repr(C)]
struct ExtentMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [ExtentItem; 64],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ExtentItem {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`, the number that x86 and ARM have for it; the size is that of the structure without its extents.
const FIEMAP: libc::Ioctl = 0xc020_660b;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;
/// `FIEMAP_EXTENT_UNKNOWN`, `_DELALLOC`, `_DATA_INLINE`: it has no place of its own on the disk (yet).
const NOWHERE: u32 = 0x2 | 0x4 | 0x200;

const _: () = assert!(size_of::<ExtentItem>() == 56);

/// Returns where a file's extents are on the disk, as start and length in bytes, and how many bytes have no place of their
/// own.
pub(crate) fn extents(file: BorrowedFd<'_>) -> io::Result<(Vec<(u64, u64)>, u64)> {
    let mut found = (Vec::new(), 0);
    let mut start = 0;
    loop {
        let mut map = ExtentMap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: 64,
            reserved: 0,
            extents: [ExtentItem::default(); 64],
        };
        // SAFETY: the request takes a `struct fiemap`, which `ExtentMap` mirrors, followed by `extent_count` extents that the
        // kernel may fill; all are inside `map`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, std::ptr::from_mut(&mut map)) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        let extents = &map.extents[..(map.mapped_extents as usize).min(64)];
        let Some(last) = extents.last() else {
            return Ok(found);
        };
        for extent in extents {
            if extent.flags & NOWHERE == 0 {
                found.0.push((extent.physical, extent.length));
            } else {
                found.1 += extent.length;
            }
        }
        start = last.logical.saturating_add(last.length.max(1));
        if last.flags & LAST != 0 || start == u64::MAX {
            return Ok(found);
        }
    }
}

/// Has the kernel kill the command when the thread that starts it ends, and so when the process does.
pub(crate) fn die_with_parent(command: &mut Command) {
    let work = || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes one system call, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(work) };
}

/// Runs `work` on a thread that has a private copy of the mount namespace, which ends with it.
pub(crate) fn in_own_mount_namespace<T: Send>(
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the flags concern only this fresh thread, which owns nothing yet: its root, working directory
            // and mount namespace stop being shared; memory and descriptors stay as they are.
            if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } == -1 {
                return Err(io::Error::last_os_error());
            }
            // Else the mounts made here would spread to the host.
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Returns whether the process may do what only root may.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `BTRFS_FIRST_FREE_OBJECTID`: the inode number of every subvolume's top directory.
pub(crate) const SUBVOLUME_TOP: u64 = 256;

/// Returns the device and inode numbers behind a descriptor.
pub(crate) fn identity(descriptor: impl AsFd) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(descriptor)?;
    Ok((stat.st_dev, stat.st_ino))
}

// SPDX-License-Identifier: Apache-2.0
//! Mounts by descriptor: made detached, then attached to an open directory or file, so that no path is looked up twice and no symbolic
//! link in a tree leads anywhere else. Linux 5.12 or newer.

use crate::sandbox::{OverlayMount, Upper};
use crate::sys;
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What a mount forbids.
#[derive(Clone, Copy)]
pub(crate) struct Attributes(MountAttrFlags);

impl Attributes {
    /// A root tree. Device nodes that a step makes must not open the host's devices. Access times would make every read a write
    /// into the snapshot (btrfs pays for that most).
    pub(crate) const ROOT: Self =
        Self(MountAttrFlags::MOUNT_ATTR_NODEV.union(MountAttrFlags::MOUNT_ATTR_NOATIME));
    /// A place for data.
    pub(crate) const DATA: Self =
        Self(MountAttrFlags::MOUNT_ATTR_NODEV.union(MountAttrFlags::MOUNT_ATTR_NOSUID));
    /// A place for data that nobody runs.
    pub(crate) const NO_EXEC: Self = Self(Self::DATA.0.union(MountAttrFlags::MOUNT_ATTR_NOEXEC));
    /// Device nodes.
    pub(crate) const DEVICES: Self =
        Self(MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC));

    /// The same, and read-only.
    pub(crate) const fn readonly(self) -> Self {
        Self(self.0.union(MountAttrFlags::MOUNT_ATTR_RDONLY))
    }

    /// The same, read-only if `readonly`.
    pub(crate) const fn readonly_if(self, readonly: bool) -> Self {
        if readonly { self.readonly() } else { self }
    }

    /// Gives a mount these attributes.
    pub(crate) fn set(self, mount: BorrowedFd<'_>) -> io::Result<()> {
        let times = MountAttrFlags::MOUNT_ATTR_NOATIME;
        // What a user namespace has of the host's mounts keeps its kind of access time: mount_namespaces(7).
        let with = if obuild_rootless::current().is_some() {
            self.0 - times
        } else {
            self.0
        };
        // mount_setattr(2): changing the kind of access time needs the whole field cleared.
        let clear = if with.contains(times) {
            MountAttrFlags::MOUNT_ATTR__ATIME
        } else {
            MountAttrFlags::empty()
        };
        sys::mount_setattr(mount, with.bits().into(), clear.bits().into())
    }
}

/// Attaches a detached mount on top of `target`.
pub(crate) fn attach(mount: &OwnedFd, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags).map_err(io::Error::from)
}

/// Attaches a mount on top of what `directory` has under this name, which must not be a symbolic link.
pub(crate) fn attach_at(mount: &OwnedFd, directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", directory, name, flags).map_err(io::Error::from)
}

/// Returns a detached mount of what is at `path` below `at`, without the mounts below that. Symbolic links are followed.
pub(crate) fn bind(at: BorrowedFd<'_>, path: &[u8], with: Attributes) -> io::Result<OwnedFd> {
    let mount = copy(at, path)?;
    with.set(mount.as_fd())?;
    Ok(mount)
}

/// As [`bind`], forbidding what the mount at that place forbids.
pub(crate) fn copy(at: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(at, OsStr::from_bytes(path), flags).map_err(io::Error::from)
}

/// As [`copy`], with everything that is mounted below it, all of it with these attributes.
pub(crate) fn bind_all(at: BorrowedFd<'_>, with: Attributes) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(at, "", flags)?;
    sys::mount_setattr_below(mount.as_fd(), with.0.bits().into())?;
    Ok(mount)
}

/// Returns a detached mount of a new file system of this kind.
pub(crate) fn file_system(
    kind: &str,
    options: &[(&str, &str)],
    with: Attributes,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", kind)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        with.0,
    )?)
}

// Layers have to work in any mount and after any move, so nothing may be written that ties them together.
// linux v6.18 Documentation/filesystems/overlayfs.rst.
const PORTABLE: &[(&str, &str)] = &[
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
    // Else the kernel gives every upper layer a random number.
    ("uuid", "off"),
];

/// Returns a detached mount of an overlay. The kernel does not sync it when it goes: whoever keeps the upper layer does.
///
/// `place` returns a directory of a tmpfs in the mount namespace of the process, for kernels that need one to mount on.
pub(crate) fn overlay<'a>(
    recipe: &OverlayMount,
    with: Attributes,
    place: impl FnOnce() -> Result<BorrowedFd<'a>, Failure>,
) -> Result<OwnedFd, Failure> {
    let action = |why: &str| {
        let top = recipe.upper.as_ref().map(|upper| &upper.upper);
        let top = top.or(recipe.lower.first()).map(|path| path.display());
        let top = top.map_or_else(String::new, |path| format!(" at {path}"));
        format!(
            "mount the overlay of {} layers{top}{why}",
            recipe.lower.len()
        )
    };
    let plain = || action("");
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).trying(plain)?;
    let explained = |error| Err::<(), _>(error).trying(|| action(&said(context.as_fd())));
    let mut held = Vec::new();
    for (index, lower) in recipe.lower.iter().enumerate() {
        let name =
            short(lower, &mut held).trying(|| format!("open the layer {}", lower.display()))?;
        match rustix::mount::fsconfig_set_string(&context, "lowerdir+", name.as_os_str()) {
            // Before Linux 6.7 layers cannot be given one by one.
            Err(Errno::INVAL) if index == 0 => {
                return overlay_at_once(recipe, with, place()?).trying(plain);
            }
            result => result.or_else(explained)?,
        }
    }
    if let Some(upper) = &recipe.upper {
        for (key, path) in [("upperdir", &upper.upper), ("workdir", &upper.work)] {
            let name =
                short(path, &mut held).trying(|| format!("open the layer {}", path.display()))?;
            rustix::mount::fsconfig_set_string(&context, key, name.as_os_str())
                .or_else(explained)?;
        }
        allow_again(upper);
        rustix::mount::fsconfig_set_flag(&context, "volatile").or_else(explained)?;
    }
    for (key, value) in PORTABLE {
        rustix::mount::fsconfig_set_string(&context, *key, *value).or_else(explained)?;
    }
    if obuild_rootless::current().is_some() {
        // In a user namespace nobody may set the trusted attributes that marks are kept in else.
        rustix::mount::fsconfig_set_flag(&context, "userxattr").or_else(explained)?;
    }
    rustix::mount::fsconfig_create(&context).or_else(explained)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, with.0).trying(plain)
}

/// Takes away the mark that a volatile overlay leaves in its work directory: the kernel refuses to mount the same layers again while
/// it is there. linux v6.18 Documentation/filesystems/overlayfs.rst "Volatile mount".
fn allow_again(upper: &Upper) {
    let mark = upper.work.join("work/incompat/volatile");
    if rustix::fs::unlink(mark.join("dirty")).is_ok() {
        // If this fails, the mount says so.
        let _ = rustix::fs::rmdir(mark);
    }
}

/// Returns whether this kernel takes overlay layers one by one (Linux 6.7).
pub(crate) fn overlay_appends() -> bool {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
    context
        .is_ok_and(|context| rustix::mount::fsconfig_set_string(&context, "lowerdir+", "/").is_ok())
}

/// As [`overlay`], with mount(2) and all layers in one option of at most a page. The mount is attached to a place of its own first, as
/// mount(2) knows no detached ones, and then copied from there.
fn overlay_at_once(
    recipe: &OverlayMount,
    with: Attributes,
    place: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let mut held = Vec::new();
    let mut options = Vec::new();
    for lower in &recipe.lower {
        let separator: &[u8] = if options.is_empty() {
            b"lowerdir="
        } else {
            b":"
        };
        options.extend_from_slice(separator);
        options.extend_from_slice(descriptor_path(lower, &mut held)?.as_bytes());
    }
    if let Some(upper) = &recipe.upper {
        allow_again(upper);
        for (key, path) in [("upperdir", &upper.upper), ("workdir", &upper.work)] {
            options.extend_from_slice(format!(",{key}=").as_bytes());
            options.extend_from_slice(descriptor_path(path, &mut held)?.as_bytes());
        }
        options.extend_from_slice(b",volatile");
    }
    for (key, value) in PORTABLE {
        options.extend_from_slice(format!(",{key}={value}").as_bytes());
    }
    if obuild_rootless::current().is_some() {
        options.extend_from_slice(b",userxattr");
    }
    if options.len() >= 4096 {
        let reason = format!(
            "{} overlay layers are too many before Linux 6.7",
            recipe.lower.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    // Mounts of one step may stack there: the topmost is the last.
    match rustix::fs::mkdirat(place, "overlay", Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let path = format!("/proc/self/fd/{}/overlay", place.as_raw_fd());
    rustix::mount::mount(
        "overlay",
        path.as_str(),
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    bind(place, b"overlay", with)
}

/// Returns a path for fsconfig(2), which takes at most 255 bytes. `held` keeps what the path needs.
fn short(path: &Path, held: &mut Vec<OwnedFd>) -> io::Result<std::ffi::OsString> {
    if path.as_os_str().len() < 256 {
        return Ok(path.as_os_str().to_owned());
    }
    descriptor_path(path, held).map(Into::into)
}

fn descriptor_path(path: &Path, held: &mut Vec<OwnedFd>) -> io::Result<String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let descriptor = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    held.push(descriptor);
    Ok(name)
}

/// Returns what the kernel wrote about a failed configuration.
fn said(context: BorrowedFd<'_>) -> String {
    let mut text = [0_u8; 512];
    match rustix::io::read(context, &mut text) {
        Ok(length) if length > 0 => {
            format!(
                " (the kernel: {})",
                String::from_utf8_lossy(&text[..length]).trim()
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels before 6.7 take this way; newer ones can go it too.
    #[test]
    fn layers_can_be_given_at_once() {
        if !obuild_fixtures::root() {
            return;
        }
        let Some(scratch) = obuild_fixtures::scratch(obuild_fixtures::FileSystem::Default) else {
            return;
        };
        let path = |name: &str| scratch.path().join(name);
        for name in ["top, with: signs", "bottom", "upper", "work", "place"] {
            fs_err::create_dir(path(name)).expect("a directory");
        }
        fs_err::write(path("top, with: signs/a"), "top").expect("a file");
        fs_err::write(path("bottom/a"), "bottom").expect("a file");
        fs_err::write(path("bottom/b"), "bottom").expect("a file");
        let recipe = OverlayMount {
            lower: vec![path("top, with: signs"), path("bottom")],
            upper: Some(Upper {
                upper: path("upper"),
                work: path("work"),
            }),
        };
        let place = path("place");
        // A mount namespace belongs to a thread.
        let in_a_thread = std::thread::spawn(move || {
            sys::unshare(rustix::thread::UnshareFlags::NEWNS).expect("a mount namespace");
            let open = |path: &Path| {
                rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .expect("opened")
            };
            sys::keep_mounts(open(Path::new("/")).as_fd()).expect("kept");
            let tmpfs =
                file_system("tmpfs", &[("mode", "755")], Attributes::DATA).expect("a tmpfs");
            attach(&tmpfs, open(&place).as_fd()).expect("attached");
            let at_once =
                overlay_at_once(&recipe, Attributes::ROOT, tmpfs.as_fd()).expect("mounted");
            let read = |name: &str| {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&at_once, name, flags, Mode::empty()).expect("there");
                std::io::read_to_string(std::fs::File::from(file)).expect("read")
            };
            assert_eq!((read("a").as_str(), read("b").as_str()), ("top", "bottom"));
            let many = OverlayMount {
                lower: vec![recipe.lower[1].clone(); 300],
                upper: None,
            };
            let error =
                overlay_at_once(&many, Attributes::ROOT, tmpfs.as_fd()).expect_err("too many");
            assert!(error.to_string().contains("6.7"), "{error}");
        });
        in_a_thread.join().expect("no failure");
    }
}

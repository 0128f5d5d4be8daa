// SPDX-License-Identifier: Apache-2.0
//! Opening a tree: a directory as it is, an overlay recipe as a mount that is attached nowhere.
//!
//! The calls are those of the mount API of Linux 5.2 (`fsopen(2)`, `fsconfig(2)`, `fsmount(2)`); the options are those of
//! Linux `Documentation/filesystems/overlayfs.rst`. Kernels before 6.5 lack `lowerdir+`, and their `fsconfig` cuts
//! strings at 256 bytes; there the overlay is mounted by `mount(2)` in a mount namespace that lives as long as the
//! call, and its mount is cloned out of it.

use crate::{Error, OverlayMount, Rootfs, Upper, sys};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Options that keep every layer independent of the place and the order in which it was made: no index, no
/// metadata-only copies and no redirects, each of which would store references to other layers inside a layer.
const PORTABLE: [(&str, &str); 3] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
];

/// `fsconfig(2)` takes strings of up to 255 bytes (linux fs/fsopen.c, `strndup_user(_value, 256)`).
const LONGEST_VALUE: usize = 255;

impl Rootfs {
    /// Opens the tree: returns an `O_PATH` descriptor of its top directory.
    ///
    /// For [`Rootfs::Overlay`] it is a fresh mount that is attached nowhere. It can be used with the `*at` calls, or
    /// attached with `move_mount(2)`, and is gone when the descriptor is closed and it was not attached. Read the
    /// directory through `openat(fd, ".")`. A writable recipe can be opened again and again,
    /// but not twice at the same time.
    ///
    /// A writable overlay is mounted `volatile`: what is written reaches the disk with [`Store::sync`](crate::Store::sync),
    /// not before.
    pub fn open(&self) -> Result<OwnedFd, Error> {
        match self {
            Self::Directory(path) => open_path(path),
            Self::Dataset(dataset) => dataset.open(),
            Self::Overlay(recipe) if recipe.upper.is_none() && recipe.lower.len() == 1 => {
                // The kernel refuses an overlay of one read-only layer; the layer alone is the same tree.
                open_path(&recipe.lower[0])
            }
            Self::Overlay(recipe) => match mount(recipe) {
                Err(Failure::NoLowerdirPlus) => mount_by_string(recipe),
                Err(Failure::Failed(error)) => Err(error),
                Ok(descriptor) => Ok(descriptor),
            },
        }
    }

    /// Opens the directory that receives what is written to an overlay. `None` for a tree that is no overlay, or is read-only.
    pub fn open_upper(&self) -> Result<Option<OwnedFd>, Error> {
        match self {
            Self::Overlay(OverlayMount {
                upper: Some(upper), ..
            }) => open_path(&upper.upper).map(Some),
            _ => Ok(None),
        }
    }
}

/// Why [`mount`] gave nothing.
enum Failure {
    /// The kernel is older than 6.5.
    NoLowerdirPlus,
    /// It cannot work.
    Failed(Error),
}

fn open_path(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| Error::io("open", path, errno))
}

/// Mounts the recipe with the options of Linux 6.5 and later.
fn mount(recipe: &OverlayMount) -> Result<OwnedFd, Failure> {
    let blamed = blamed(recipe);
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Failure::Failed(Error::io("mount an overlay for", blamed, errno)))?;
    let fail = |errno: Errno| {
        Failure::Failed(Error::Io {
            action: "mount an overlay for",
            path: blamed.to_owned(),
            source: explain(&context, errno),
        })
    };
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    let mut held = Vec::new();
    let mut set_path = |key: &str, path: &Path| {
        if path.as_os_str().len() <= LONGEST_VALUE {
            return rustix::mount::fsconfig_set_string(&context, key, path);
        }
        let (descriptor, short) = shorten(path)?;
        held.push(descriptor);
        set(key, &short)
    };
    set("source", "obuild").map_err(fail)?;
    for (index, lower) in recipe.lower.iter().enumerate() {
        match set_path("lowerdir+", lower) {
            Ok(()) => {}
            Err(Errno::INVAL) if index == 0 && lower.is_dir() => {
                return Err(Failure::NoLowerdirPlus);
            }
            Err(errno) => {
                return Err(Failure::Failed(Error::Io {
                    action: "mount the layer",
                    path: lower.clone(),
                    source: explain(&context, errno),
                }));
            }
        }
    }
    if let Some(upper) = &recipe.upper {
        allow_again(upper);
        set_path("upperdir", &upper.upper).map_err(fail)?;
        set_path("workdir", &upper.work).map_err(fail)?;
        rustix::mount::fsconfig_set_flag(&context, "volatile").map_err(fail)?;
    }
    for (key, value) in PORTABLE {
        set(key, value).map_err(fail)?;
    }
    if obuild_rootless::current().is_some() {
        rustix::mount::fsconfig_set_flag(&context, "userxattr").map_err(fail)?;
    }
    rustix::mount::fsconfig_create(&context).map_err(fail)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOATIME;
    if recipe.upper.is_none() {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(fail)
}

/// Mounts the recipe on kernels before 6.5: by `mount(2)`, whose option string may be a page long, so each
/// directory is named by a short path through `/proc/self/fd`.
fn mount_by_string(recipe: &OverlayMount) -> Result<OwnedFd, Error> {
    let path = blamed(recipe);
    // The layers are opened inside the namespace too: overlay takes only layers of the namespace it is mounted in.
    sys::in_own_mount_namespace(|| {
        let mut held = Vec::new();
        let mut short = |path: &Path| {
            let (descriptor, short) = shorten(path)?;
            held.push(descriptor);
            rustix::io::Result::Ok(short)
        };
        let mut options = String::from("lowerdir=");
        for (index, lower) in recipe.lower.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            options += separator;
            options += &short(lower)?;
        }
        let mut flags = MountFlags::NOATIME;
        if let Some(upper) = &recipe.upper {
            allow_again(upper);
            let (upper, work) = (short(&upper.upper)?, short(&upper.work)?);
            for text in [",upperdir=", &upper, ",workdir=", &work, ",volatile"] {
                options += text;
            }
        } else {
            flags |= MountFlags::RDONLY;
        }
        for (key, value) in PORTABLE {
            for text in [",", key, "=", value] {
                options += text;
            }
        }
        if obuild_rootless::current().is_some() {
            options += ",userxattr";
        }
        let options = CString::new(options).expect("descriptor numbers hold no NUL");
        rustix::mount::mount("obuild", path, "overlay", flags, options.as_c_str())?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(rustix::mount::open_tree(rustix::fs::CWD, path, clone)?)
    })
    .map_err(|source| Error::io("mount an overlay for", path, source))
}

/// Takes away the mark by which the kernel knows a layer that was mounted `volatile` before. It stands for what a crash
/// may have torn; but a tree being made does not survive one, and its next mount may follow.
fn allow_again(upper: &Upper) {
    let mark = upper.work.join("work/incompat/volatile");
    if rustix::fs::unlink(mark.join("dirty")).is_ok() {
        // If this fails, the mount says so.
        let _ = rustix::fs::rmdir(mark);
    }
}

/// Opens `path` and returns a short path that leads to it as long as the descriptor is open.
fn shorten(path: &Path) -> rustix::io::Result<(OwnedFd, String)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
    let short = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    Ok((descriptor, short))
}

/// Returns the directory to name in an error: where writes would go, else the topmost layer.
fn blamed(recipe: &OverlayMount) -> &PathBuf {
    recipe
        .upper
        .as_ref()
        .map_or(&recipe.lower[0], |upper| &upper.upper)
}

/// Adds to `errno` what the kernel wrote into the context's message log (`fsopen(2)`: one message a read, `e`, `w`
/// or `i` first). The kind of the error stays the kernel's.
fn explain(context: &OwnedFd, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    let messages = messages(context);
    if messages.is_empty() {
        return error;
    }
    io::Error::new(error.kind(), format!("{}: {error}", messages.join("; ")))
}

fn messages(context: &OwnedFd) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    // The log holds eight messages; the bound is against a kernel that never says ENODATA.
    for _ in 0..16 {
        let Ok(count) = rustix::io::read(context, &mut buffer) else {
            break;
        };
        let text = String::from_utf8_lossy(&buffer[..count]);
        let text = text.trim();
        if let Some(message) = text.strip_prefix("e ").or_else(|| text.strip_prefix("w ")) {
            messages.push(message.to_owned());
        }
        if count == 0 {
            break;
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, Mode};
    use tempfile::TempDir;

    /// Makes two layers, the upper of which hides the file `hidden`, and room for a third.
    fn layers(below: &str) -> Option<(TempDir, OverlayMount)> {
        let directory = obuild_fixtures::root()
            .then(|| obuild_fixtures::scratch(obuild_fixtures::FileSystem::Default))
            .flatten()?;
        let path = |name: &str| directory.path().join(below).join(name);
        for name in ["bottom", "top", "upper", "work"] {
            fs_err::create_dir_all(path(name)).unwrap();
        }
        fs_err::write(path("bottom/seen"), "seen").unwrap();
        fs_err::write(path("bottom/hidden"), "").unwrap();
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, path("top/hidden"), kind, Mode::empty(), 0).unwrap();
        let lower = vec![path("top"), path("bottom")];
        let upper = Some(Upper {
            upper: path("upper"),
            work: path("work"),
        });
        Some((
            directory,
            OverlayMount {
                lower,
                upper,
                points: None,
            },
        ))
    }

    fn has(tree: &OwnedFd, name: &str) -> bool {
        rustix::fs::statat(tree, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Checks that the mount shows the layers, takes a file if it should, and is attached nowhere.
    fn check(tree: &OwnedFd, writable: bool) {
        assert!(has(tree, "seen") && !has(tree, "hidden"));
        let made = rustix::fs::mkdirat(tree, "made", Mode::RWXU);
        assert_eq!(made, if writable { Ok(()) } else { Err(Errno::ROFS) });
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = |line: &str| line.contains(" - overlay ") && line.contains("obuild-test");
        assert!(!mounts.lines().any(ours), "{mounts}");
    }

    #[test]
    fn a_recipe_opens_in_all_ways() {
        let Some((_directory, mut recipe)) = layers("") else {
            return;
        };
        check(&Rootfs::Overlay(recipe.clone()).open().unwrap(), true);
        let upper = recipe.upper.take().unwrap();
        check(&Rootfs::Overlay(recipe.clone()).open().unwrap(), false);
        check(&mount_by_string(&recipe).unwrap(), false);
        fs_err::remove_dir(upper.upper.join("made")).unwrap();
        recipe.upper = Some(upper);
        check(&mount_by_string(&recipe).unwrap(), true);
        // Again, though the kernel's mark of a volatile mount is there.
        assert!(has(&mount_by_string(&recipe).unwrap(), "made"));
        assert!(has(
            &Rootfs::Overlay(recipe.clone()).open().unwrap(),
            "made"
        ));
        recipe.lower.remove(0);
        recipe.upper = None;
        assert!(has(&Rootfs::Overlay(recipe).open().unwrap(), "hidden"));
    }

    #[test]
    fn long_paths_and_many_layers_open() {
        let name = "long-name/".repeat(40);
        let Some((directory, mut recipe)) = layers(&name) else {
            return;
        };
        check(&Rootfs::Overlay(recipe.clone()).open().unwrap(), true);
        recipe.upper = None;
        for number in 0..70 {
            let layer = directory.path().join(&name).join(format!("layer-{number}"));
            fs_err::create_dir(&layer).unwrap();
            recipe.lower.insert(0, layer);
        }
        check(&Rootfs::Overlay(recipe.clone()).open().unwrap(), false);
        check(&mount_by_string(&recipe).unwrap(), false);
    }

    #[test]
    fn a_missing_layer_is_named() {
        let Some((_directory, mut recipe)) = layers("") else {
            return;
        };
        recipe.lower.push("/nowhere/at/all".into());
        for error in [
            mount_by_string(&recipe).unwrap_err(),
            Rootfs::Overlay(recipe).open().unwrap_err(),
        ] {
            let Error::Io { source, .. } = &error else {
                panic!("{error}")
            };
            assert_eq!(source.kind(), io::ErrorKind::NotFound, "{error}");
        }
    }
}

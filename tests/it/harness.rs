// SPDX-License-Identifier: Apache-2.0
//! A scratch store, a base image made of busybox, and the binary.

use obuild_fixtures::{FileSystem, busybox_root, root, scratch, skip};
pub(crate) use obuild_fixtures::{PATIENCE, wait_for};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use tempfile::TempDir;

/// One test's world: removed at its end.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) store: String,
}

/// What a run of the binary gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary's path.
pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_obuild")
}

impl World {
    /// An overlay store on the default file system.
    pub(crate) fn new() -> Option<Self> {
        Self::on(FileSystem::Default, "overlay")
    }

    /// A store of a kind on a file system.
    pub(crate) fn on(file_system: FileSystem, kind: &str) -> Option<Self> {
        if !root() {
            return None;
        }
        base()?;
        let directory = scratch(file_system)?;
        let store = format!("{kind}:{}", directory.path().join("store").display());
        Some(Self { directory, store })
    }

    /// Every store that this machine can have.
    pub(crate) fn all() -> Vec<Self> {
        let kinds = [
            (FileSystem::Default, "overlay"),
            (FileSystem::Xfs, "overlay"),
            (FileSystem::Btrfs, "btrfs"),
            (FileSystem::Xfs, "xfs"),
            (FileSystem::Default, "rsync"),
        ];
        kinds
            .into_iter()
            .filter_map(|(file_system, kind)| Self::on(file_system, kind))
            .collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of the context.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().expect("a file has a directory")).unwrap();
        fs_err::write(&path, text).unwrap();
        path
    }

    /// Writes `spec.sexp`: these operations on the busybox base.
    pub(crate) fn spec(&self, operations: &str) -> PathBuf {
        self.write("spec.sexp", spec_text(operations))
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env("OBUILD_STORE", &self.store)
            .env("OBUILD_CONFIG", self.config())
            .env_remove("OBUILD_PROGRESS")
            .env_remove("DOCKER_HOST")
            .stdin(Stdio::null());
        command
    }

    /// A configuration that says only what a new rsync store needs, so that the machine's own does not matter.
    fn config(&self) -> PathBuf {
        let path = self.path("config.toml");
        if !path.exists() {
            fs_err::write(&path, "rsync-mode = \"hardlink\"\n").unwrap();
        }
        path
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().expect("the binary runs"))
    }

    /// Runs and expects success; returns standard output without its line end.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.status, 0, "{arguments:?}: {ran:#?}");
        ran.stdout.trim_end().to_owned()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs")
    }

    /// Builds `spec.sexp` with these operations and returns the result's id.
    pub(crate) fn build(&self, operations: &str) -> String {
        self.spec(operations);
        self.ok(&["run", "spec.sexp"])
    }

    /// Returns what a command prints in a step's result.
    pub(crate) fn inside(&self, id: &str, script: &str) -> String {
        self.ok(&["shell", id, "--", "/bin/sh", "-c", script])
    }

    /// Fails if the store has drafts, or the host mounts or processes, that a build left behind.
    pub(crate) fn assert_clean(&self) {
        let place = self.directory.path().display().to_string();
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&place), "something is mounted:\n{mounts}");
        let drafts: Vec<_> = std::iter::once("drafts")
            .flat_map(|name| {
                fs_err::read_dir(self.path("store").join(name))
                    .into_iter()
                    .flatten()
            })
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .collect();
        assert_eq!(drafts, Vec::<String>::new(), "drafts are left");
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The text of a spec with these operations on the busybox base.
pub(crate) fn spec_text(operations: &str) -> String {
    format!("({} (shell /bin/sh -c)\n{operations})\n", from())
}

/// `(from …)` of the busybox base.
pub(crate) fn from() -> String {
    format!(
        "(from tar:{})",
        base().expect("checked when the world was made").display()
    )
}

/// A root file system as a tar, made once below `target` and used by all tests; `None` after a loud skip.
pub(crate) fn base() -> Option<&'static Path> {
    static BASE: OnceLock<Option<PathBuf>> = OnceLock::new();
    BASE.get_or_init(|| {
        // To be renamed when what `busybox_root` makes changes.
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox-1.tar");
        if file.exists() {
            return Some(file);
        }
        let directory = scratch(FileSystem::Default)?;
        let tree = directory.path().join("tree");
        fs_err::create_dir(&tree).unwrap();
        if !busybox_root(&tree) {
            return None;
        }
        let unfinished = file.with_extension(std::process::id().to_string());
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&unfinished)
            .arg(".");
        assert!(tar.status().unwrap().success());
        fs_err::rename(&unfinished, &file).unwrap();
        Some(file)
    })
    .as_deref()
}

/// Returns a port of loopback that nobody has, and that the kernel gives to nobody who does not name it (ip(7), `ip_local_port_range`).
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
}

/// Returns whether a process with this text in its command line runs.
pub(crate) fn process_runs(text: &str) -> bool {
    fs_err::read_dir("/proc").unwrap().flatten().any(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
            && fs_err::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
            && entry.file_name().to_str() != Some(&std::process::id().to_string())
    })
}

/// Returns whether a process has this as its working directory, as all of a build's have that are outside of a step.
pub(crate) fn works_in(directory: &Path) -> bool {
    fs_err::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs_err::read_link(entry.path().join("cwd")).is_ok_and(|place| place == directory)
    })
}

/// A file system of 64 MB on a loop device; unmounted when dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one as `disk` in a directory; `None` after a loud skip.
    pub(crate) fn mount(directory: &Path) -> Option<Self> {
        let image = directory.join("disk.img");
        fs_err::File::create(&image)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let place = directory.join("disk");
        fs_err::create_dir(&place).unwrap();
        let run =
            |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        if !run(Command::new("mkfs.ext4").arg("-q").arg(&image))
            || !run(Command::new("mount")
                .arg("-o")
                .arg("loop")
                .arg(&image)
                .arg(&place))
        {
            skip("needs mkfs.ext4 and loop devices");
            return None;
        }
        Some(Self(place))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Fills it up to so many KiB; returns the file that does.
    pub(crate) fn fill(&self, room_kib: u64) -> PathBuf {
        use std::io::Write as _;
        let path = self.0.join("fill");
        let mut file = fs_err::File::create(&path).unwrap();
        for size in [1 << 20, 4096] {
            let zeros = vec![0; size];
            while file.write_all(&zeros).is_ok() {}
        }
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(room_kib << 10)).unwrap();
        // Else the room is there only some seconds later.
        file.sync_all().unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A lazy unmount always works; the loop device goes with it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

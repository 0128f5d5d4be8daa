// SPDX-License-Identifier: Apache-2.0
//! Makes a minimal Debian, or a derivative, with debootstrap(8) and the package mirror that the host itself uses.
//!
//! debootstrap mounts /proc and /sys in its target and runs package scripts there. It gets a mount and a process namespace of its own
//! (unshare(1)), so that when it ends, or is killed, or we are, nothing of it is left running or mounted.
//! Afterwards what belongs to the host or to the hour is removed; the mirror stays set up, without credentials.

use crate::Error;
use crate::apt::{AptSettings, AptSource, pick_settings, read_sources, without_credentials};
use crate::architecture::debian_name;
use crate::resolve::Tools;
use crate::tail::Tail;
use crate::unpack::tree::{Tree, children, remove};
use obuild_stores::Rootfs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// How often a silent debootstrap is interrupted to ask for a cancellation: a tenth of a second.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Files and directories' contents that debootstrap leaves and that are the host's or the hour's.
const LEFTOVERS: [(&str, What); 17] = [
    ("debootstrap", What::Itself),
    ("dev", What::Content),
    ("etc/hostname", What::Itself),
    ("etc/machine-id", What::Itself),
    ("etc/resolv.conf", What::Itself),
    ("etc/apt/sources.list", What::Itself),
    ("var/cache/apt/archives", What::Suffix(b".deb")),
    ("var/cache/apt/archives/partial", What::Content),
    ("var/cache/apt", What::Suffix(b".bin")),
    ("var/cache/debconf", What::Suffix(b"-old")),
    ("var/cache/ldconfig/aux-cache", What::Itself),
    ("var/lib/apt/lists", What::Content),
    ("var/lib/dbus/machine-id", What::Itself),
    ("var/lib/dpkg", What::Suffix(b"-old")),
    ("var/log/apt", What::Content),
    ("var/log", What::Suffix(b".log")),
    ("tmp", What::Content),
];

/// Shows the host's devices in the tree that is the first argument, and goes on as the others say. In a user namespace nobody may make any;
/// debootstrap makes only those that are not there (1.0.128 functions, `mknod_if_needed`). They are gone with the mount namespace.
const WITH_DEVICES: &str = r#"set -e
target=$1; shift
mkdir -p "$target/dev"
for name in null zero full random urandom tty; do
  : >> "$target/dev/$name"
  mount --bind "/dev/$name" "$target/dev/$name"
done
exec "$@""#;

#[derive(Clone, Copy)]
enum What {
    Itself,
    Content,
    Suffix(&'static [u8]),
}

/// Fills the tree with the suite's minimal system. Every line of output goes to `line`.
pub(crate) fn debootstrap(
    suite: &str,
    architecture: &str,
    tools: &Tools,
    rootfs: &Rootfs,
    line: &mut dyn FnMut(&[u8]),
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let Rootfs::Directory(target) = rootfs else {
        return Err(Error::Debootstrap {
            suite: suite.to_owned(),
            status: "not started".into(),
            last_lines: vec!["the store's new trees are no plain directories".into()],
        });
    };
    let program = tools.find("debootstrap", "debootstrap")?;
    let unshare = tools.find("unshare", "util-linux")?;
    let setpriv = tools.find("setpriv", "util-linux")?;
    if !rustix::process::geteuid().is_root() {
        return Err(Error::io(
            "run debootstrap in",
            target,
            std::io::Error::from(Errno::ACCESS),
        ));
    }
    let mapping = obuild_rootless::current();
    if mapping.is_some_and(obuild_rootless::Mapping::is_single) {
        return Err(Error::DebootstrapIds {
            suite: suite.to_owned(),
        });
    }
    let sources = read_sources(&tools.apt)?;
    let settings = tools.apt_settings();
    let mirror = sources.iter().find(|source| source.suite == suite);

    let mut command = Command::new(setpriv);
    // If this thread dies, unshare is killed; if unshare dies, the first process of the namespace is, and with it all others.
    command.args(["--pdeathsig", "KILL", "--"]).arg(unshare);
    command.args([
        "--mount",
        "--pid",
        "--ipc",
        "--fork",
        "--kill-child=KILL",
        "--",
    ]);
    if mapping.is_some() {
        let script = ["-c", WITH_DEVICES, "sh"];
        command.arg("/bin/sh").args(script).arg(target);
    }
    command.arg(program);
    command
        .arg("--variant=minbase")
        .arg(format!("--arch={}", debian_name(architecture)));
    if let Some(source) = mirror {
        if let Some(keyring) = source.keyring().filter(|path| path.exists()) {
            command.arg(format!("--keyring={}", keyring.display()));
        }
        if source.option("trusted") == Some("yes") {
            command.arg("--no-check-gpg");
        }
    }
    command.arg(suite).arg(target);
    if let Some(source) = mirror {
        command.arg(&source.uri);
    }
    command
        .env_clear()
        .env("PATH", &tools.path)
        .env("LC_ALL", "C")
        .env("HOME", "/root")
        .env("TMPDIR", "/tmp");
    if mapping.is_some() {
        // It does not try then whether device nodes can be made: debootstrap 1.0.128 functions, check_sane_mount.
        command.env("container", "lxc");
    }
    command.envs(environment(&settings, &tools.proxies));

    line(announce(suite, mirror).as_bytes());
    let mut tail = Tail::default();
    let mut note = |text: &[u8]| {
        // The mirror's URL may hold a password, and debootstrap prints it.
        let text = mirror.map_or_else(|| text.to_vec(), |source| conceal(text, &source.uri));
        tail.push(&text);
        line(&text);
    };
    let status = run(command, &mut note, cancelled)?;
    if !status.success() {
        return Err(Error::Debootstrap {
            suite: suite.to_owned(),
            status: status.to_string(),
            last_lines: tail.into_lines(),
        });
    }
    finish(target, suite, &sources, &settings)
}

impl Tools {
    /// Looks a program up in the search path.
    fn find(&self, program: &'static str, package: &'static str) -> Result<PathBuf, Error> {
        std::env::split_paths(&self.path)
            .map(|directory| directory.join(program))
            .find(|path| path.is_absolute() && is_executable(path))
            .ok_or(Error::MissingProgram { program, package })
    }

    /// Asks apt for its settings; a host without apt has none.
    fn apt_settings(&self) -> AptSettings {
        let Ok(program) = self.find("apt-config", "apt") else {
            return AptSettings::default();
        };
        let mut command = Command::new(program);
        command
            .arg("dump")
            .env_clear()
            .env("PATH", &self.path)
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => {
                pick_settings(&String::from_utf8_lossy(&output.stdout))
            }
            _ => AptSettings::default(),
        }
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs_err::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The proxies that the caller names, else those of apt: debootstrap fetches with wget(1), which knows only variables.
fn environment(
    settings: &AptSettings,
    proxies: &[(OsString, OsString)],
) -> Vec<(OsString, OsString)> {
    let mut environment = proxies.to_vec();
    for (name, value) in [
        ("http_proxy", &settings.http_proxy),
        ("https_proxy", &settings.https_proxy),
    ] {
        let set = proxies
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name));
        if let (false, Some(value)) = (
            set,
            value.as_ref().filter(|value| value.as_str() != "DIRECT"),
        ) {
            environment.push((name.into(), value.into()));
        }
    }
    environment
}

fn announce(suite: &str, mirror: Option<&AptSource>) -> String {
    match mirror {
        Some(source) => format!(
            "debootstrap {suite} from {}",
            without_credentials(&source.uri)
        ),
        None => format!(
            "debootstrap {suite} from its default mirror (the host's apt has none for this suite)"
        ),
    }
}

fn conceal(text: &[u8], uri: &str) -> Vec<u8> {
    use bstr::ByteSlice;
    let plain = without_credentials(uri);
    if plain == uri {
        text.to_vec()
    } else {
        text.replace(uri.as_bytes(), plain.as_bytes())
    }
}

/// Kills its process group when it goes out of scope before the child is reaped.
struct Group {
    child: Child,
    reaped: bool,
}

impl Group {
    fn kill(&self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs the command to its end in a process group of its own; its output, both streams, goes to `note` line by line.
fn run(
    mut command: Command,
    note: &mut dyn FnMut(&[u8]),
    cancelled: &dyn Fn() -> bool,
) -> Result<ExitStatus, Error> {
    let program = PathBuf::from(command.get_program());
    let failed = |action, source: std::io::Error| Error::io(action, &program, source);
    let (output, input) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed("make a pipe for", error.into()))?;
    let second = input
        .try_clone()
        .map_err(|error| failed("make a pipe for", error))?;
    command
        .stdin(Stdio::null())
        .stdout(input)
        .stderr(second)
        .process_group(0)
        .current_dir("/");
    let child = command.spawn().map_err(|error| failed("start", error))?;
    let mut group = Group {
        child,
        reaped: false,
    };
    // The command holds our ends of the pipe, which would keep it open.
    drop(command);
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 << 10];
    loop {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        match poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&TICK)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(failed("read the output of", error.into())),
        }
        match rustix::io::read(&output, &mut buffer) {
            Ok(0) => break,
            Ok(length) => lines.push(&buffer[..length], note),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed("read the output of", error.into())),
        }
    }
    lines.finish(note);
    group.wait().map_err(|error| failed("wait for", error))
}

/// Cuts a stream into lines; a very long one is cut into pieces.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8], note: &mut dyn FnMut(&[u8])) {
        for &byte in bytes {
            if byte == b'\n' || self.0.len() >= 16 << 10 {
                note(&self.0);
                self.0.clear();
            }
            if byte != b'\n' {
                self.0.push(byte);
            }
        }
    }

    fn finish(&mut self, note: &mut dyn FnMut(&[u8])) {
        if !self.0.is_empty() {
            note(&std::mem::take(&mut self.0));
        }
    }
}

/// Removes the leftovers and sets apt up.
fn finish(
    target: &Path,
    suite: &str,
    sources: &[AptSource],
    settings: &AptSettings,
) -> Result<(), Error> {
    let failed = |source: Errno| Error::io("clean up", target, source);
    let tree = Tree::new(open_directory(target)?).map_err(failed)?;
    let default = original_sources(&tree);
    for (path, what) in LEFTOVERS {
        let mut names: Vec<&[u8]> = path.as_bytes().split(|&byte| byte == b'/').collect();
        let itself = names[names.len() - 1];
        if matches!(what, What::Itself) {
            names.pop();
        }
        // Links are followed inside the tree only: /etc/resolv.conf may well point to /run.
        let directory = match tree.find(&names) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(failed(error)),
        };
        match what {
            What::Itself => remove(rustix::fd::AsFd::as_fd(&directory), itself).map_err(failed)?,
            What::Content | What::Suffix(_) => {
                for child in children(rustix::fd::AsFd::as_fd(&directory)).map_err(failed)? {
                    if matches!(what, What::Suffix(suffix) if !child.ends_with(suffix)) {
                        continue;
                    }
                    remove(rustix::fd::AsFd::as_fd(&directory), &child).map_err(failed)?;
                }
            }
        }
    }
    let lines = sources_list(suite, sources, default);
    for keyring in sources
        .iter()
        .filter(|source| belongs(source, suite))
        .filter_map(AptSource::keyring)
    {
        copy_keyring(&tree, &keyring)?;
    }
    write_file(&tree, &[b"etc", b"apt"], b"sources.list", lines.as_bytes()).map_err(failed)?;
    if !settings.lines.is_empty() {
        let text = format!(
            "// The way to the mirror, as on the host that made this base.\n{}\n",
            settings.lines.join("\n")
        );
        write_file(
            &tree,
            &[b"etc", b"apt", b"apt.conf.d"],
            b"50mirror",
            text.as_bytes(),
        )
        .map_err(failed)?;
    }
    Ok(())
}

/// Returns whether a source holds packages of the suite: itself, or its updates.
fn belongs(source: &AptSource, suite: &str) -> bool {
    let rest = source.suite.strip_prefix(suite);
    rest.is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
}

/// The host's sources for the suite, else what debootstrap has written.
fn sources_list(suite: &str, sources: &[AptSource], default: Option<Vec<u8>>) -> String {
    let mut text = String::new();
    for source in sources.iter().filter(|source| belongs(source, suite)) {
        text.push_str(&source.line());
        text.push('\n');
    }
    if text.is_empty() {
        return default.map_or_else(String::new, |bytes| {
            String::from_utf8_lossy(&bytes).into_owned()
        });
    }
    text
}

fn original_sources(tree: &Tree) -> Option<Vec<u8>> {
    let directory = tree.find(&[b"etc", b"apt"]).ok()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&directory, "sources.list", flags, Mode::empty()).ok()?);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).ok()?;
    Some(bytes)
}

/// Copies a public keyring that a source names, unless the tree has its own.
fn copy_keyring(tree: &Tree, path: &Path) -> Result<(), Error> {
    let failed = |source: Errno| Error::io("copy", path, source);
    let mut names: Vec<&[u8]> = path.iter().skip(1).map(OsStr::as_encoded_bytes).collect();
    let Some(name) = names.pop() else {
        return Ok(());
    };
    if names.iter().chain([&name]).any(|name| *name == b"..") || !path.exists() {
        return Ok(());
    }
    if let Ok(directory) = tree.find(&names)
        && rustix::fs::statat(&directory, name, AtFlags::empty()).is_ok()
    {
        return Ok(());
    }
    let bytes = fs_err::read(path).map_err(|source| Error::io("read", path, source))?;
    write_file(tree, &names, name, &bytes).map_err(failed)
}

/// Writes a file of root's, 0644, in a directory that is made if it is missing.
fn write_file(tree: &Tree, directory: &[&[u8]], name: &[u8], bytes: &[u8]) -> Result<(), Errno> {
    let directory = tree.follow(directory)?;
    match unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = openat(&directory, name, flags, mode)?;
    rustix::fs::fchmod(&file, mode)?;
    File::from(file)
        .write_all(bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|source| Error::io("open", path, source))
}

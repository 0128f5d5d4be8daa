// SPDX-License-Identifier: Apache-2.0
//! An archive's directory, servers of it, and clients: what the tests of `obuild archive serve` share.

use crate::harness::binary;
use obuild_fixtures::{FileSystem, scratch, skip};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// An archive, whose content is `foo`.
pub(crate) const DIGEST: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

/// An archive's directory, and servers of it.
pub(crate) struct World {
    pub(crate) directory: TempDir,
}

pub(crate) struct Server {
    pub(crate) child: Child,
    /// Where it listens, in the order of the options.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl World {
    /// `None` after a loud skip.
    pub(crate) fn new() -> Option<Self> {
        for program in ["curl", "openssl"] {
            if Command::new(program).arg("version").output().is_err() {
                skip(&format!("needs {program}"));
                return None;
            }
        }
        let world = Self {
            directory: scratch(FileSystem::Default)?,
        };
        world.write("served/repo", b"opam-version: \"2.0\"\n");
        world.write("served/index.tar.gz", &vec![7; 200_000]);
        world.write("served/packages/a/a.1/opam", b"opam-version: \"2.0\"\n");
        world.write(&format!("served/cache/sha256/2c/{DIGEST}"), b"foo");
        world.write("served/.obuild/secret", b"TOP-SECRET");
        world.write("secret", b"TOP-SECRET");
        world.write("legacy/1.2.2/urls.txt", b"legacy");
        world.write("legacy/1.2.2/index.html", b"<title>1.2.2</title>");
        Some(world)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, content).unwrap();
    }

    /// A large file that takes no room.
    pub(crate) fn write_large(&self, name: &str, bytes: u64) {
        self.write(name, b"");
        let file = fs_err::OpenOptions::new().write(true).open(self.path(name));
        file.unwrap().set_len(bytes).unwrap();
    }

    pub(crate) fn serve(&self, options: &[&str]) -> Server {
        Server::start(self.command(options))
    }

    pub(crate) fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["archive", "serve", "served"])
            .args(options)
            .current_dir(self.directory.path());
        if !options.iter().any(|option| option.starts_with("--listen")) {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command
    }

    /// Makes a certificate for `localhost` and its key, as these files.
    pub(crate) fn certificate(&self, name: &str, place: &str) {
        let subject = format!("/CN={name}");
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args([
                "-nodes",
                "-days",
                "2",
                "-addext",
                "subjectAltName=DNS:localhost",
                // One that is an authority, too, would be refused as a server's.
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ])
            .args([
                "-subj",
                &subject,
                "-keyout",
                &format!("{place}.key"),
                "-out",
            ])
            .arg(format!("{place}.crt"))
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
}

impl Server {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut addresses = Vec::new();
        let mut expected = command
            .get_args()
            .filter(|argument| argument.to_string_lossy().starts_with("--listen"))
            .count()
            .max(1);
        while expected > 0 {
            let line = lines.next().expect("it says where it listens").unwrap();
            let address = line
                .strip_prefix("listening on ")
                .unwrap_or_else(|| panic!("{line}"));
            addresses.push(address.rsplit_once('/').unwrap().1.parse().unwrap());
            expected -= 1;
        }
        // Somebody has to read what else it says.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        Self { child, addresses }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses[0])
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[0]).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// Sends bytes and returns everything that comes until the server closes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may have had enough before the end.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = curl(&[&self.url("/metrics")]).1;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.unwrap_or_else(|| panic!("{name} in {text}"));
        value.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    pub(crate) fn peak_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs_err::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn curl_output(arguments: &[&str]) -> Output {
    Command::new("curl")
        .args(["-sS", "--max-time", "20", "--path-as-is"])
        .args(arguments)
        .output()
        .unwrap()
}

/// Returns header, its names in lower case, and body.
pub(crate) fn curl(arguments: &[&str]) -> (String, String) {
    let mut all = vec!["-D", "-"];
    all.extend(arguments);
    let output = curl_output(&all);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("a header");
    let head: Vec<_> = head
        .lines()
        .map(|line| match line.split_once(": ") {
            Some((name, value)) => format!("{}: {value}", name.to_ascii_lowercase()),
            None => line.to_owned(),
        })
        .collect();
    (head.join("\n"), body.to_owned())
}

pub(crate) fn status(head: &str) -> &str {
    head.split_whitespace().nth(1).unwrap()
}

pub(crate) fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("{name} in {head}")).trim()
}

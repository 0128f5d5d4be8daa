// SPDX-License-Identifier: Apache-2.0
//! The registries that tests and benchmarks use: Debian's `docker-registry`, on ports of their own, for as long as the task runs.

use crate::cmd::{Background, Cmd};
use anyhow::{Result, bail};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a registry may take to answer.
const START: Duration = Duration::from_secs(20);

/// A running registry; it ends when this is dropped.
pub(crate) struct Registry {
    host: String,
    _process: Background,
}

/// What a registry asks of its clients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Open,
    /// The user `obuild` with the password `secret`.
    Password,
    /// That they trust its certificate's authority.
    Tls,
}

impl Registry {
    /// Starts a registry that keeps everything below `directory`.
    pub(crate) fn start(directory: &Path, access: Access) -> Result<Self> {
        fs_err::create_dir_all(directory)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let place = directory.display();
        let mut http = format!("{{addr: \"127.0.0.1:{port}\"}}");
        let mut more = String::new();
        let mut name = "127.0.0.1";
        match access {
            Access::Open => {}
            Access::Password => {
                let users = Cmd::new("htpasswd")
                    .args(["-Bbn", "obuild", "secret"])
                    .output()?;
                fs_err::write(directory.join("users"), users)?;
                more = format!("auth: {{htpasswd: {{realm: tests, path: \"{place}/users\"}}}}\n");
            }
            Access::Tls => {
                certify(directory)?;
                // The certificate's name; by its number the registry is reached too.
                name = "localhost";
                http = format!(
                    "{{addr: \"127.0.0.1:{port}\", tls: {{certificate: \"{place}/cert.pem\", key: \"{place}/key.pem\"}}}}"
                );
            }
        }
        let config = directory.join("config.yml");
        fs_err::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: \"{place}/data\"}}}}\nhttp: {http}\n{more}"
            ),
        )?;
        let log = directory.join("log");
        let command = Cmd::new("docker-registry").arg("serve").arg(&config);
        let mut process = Background::start(command, &log)?;
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if began.elapsed() > START || !process.is_running() {
                let log = fs_err::read_to_string(&log).unwrap_or_default();
                bail!("docker-registry does not listen: {}", log.trim());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            host: format!("{name}:{port}"),
            _process: process,
        })
    }

    /// Returns its host and port.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

/// Returns the authority's certificate in a registry's directory, alone in a directory as skopeo's `--dest-cert-dir` wants it.
pub(crate) fn authority(directory: &Path) -> PathBuf {
    directory.join("trusted/ca.crt")
}

/// Makes an authority, and a certificate by it for this machine.
fn certify(directory: &Path) -> Result<()> {
    let authority = authority(directory);
    fs_err::create_dir_all(directory.join("trusted"))?;
    fs_err::write(
        directory.join("names"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    )?;
    let path = |name: &str| directory.join(name).display().to_string();
    let authority = authority.display().to_string();
    // openssl-req(1), openssl-x509(1).
    let request = ["req", "-newkey", "rsa:2048", "-nodes"];
    let steps = [
        [
            &request[..],
            &[
                "-x509",
                "-days",
                "2",
                "-subj",
                "/CN=obuild tests",
                "-keyout",
                &path("ca.key"),
                "-out",
                &authority,
            ],
        ]
        .concat(),
        [
            &request[..],
            &[
                "-subj",
                "/CN=localhost",
                "-keyout",
                &path("key.pem"),
                "-out",
                &path("request.pem"),
            ],
        ]
        .concat(),
        vec!["x509", "-req", "-days", "2", "-CAcreateserial"],
    ]
    .map(|step| step.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let [own, requested, mut signed] = steps;
    signed.extend(
        [
            ("-in", path("request.pem")),
            ("-CA", authority),
            ("-CAkey", path("ca.key")),
            ("-extfile", path("names")),
            ("-out", path("cert.pem")),
        ]
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value]),
    );
    for step in [own, requested, signed] {
        Cmd::new("openssl").args(&step).quiet().output()?;
    }
    Ok(())
}

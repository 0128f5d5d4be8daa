// SPDX-License-Identifier: Apache-2.0
//! Servers that misbehave on purpose, and a proxy that cuts connections.

use super::support::{Area, Layout};
use crate::registry::{Client, ClientOptions};
use crate::{
    Digest, Error, NoDigests, Progress, Pull, ResolveOptions, Resolved, Tools, import, resolve,
};
use obuild_fixtures::PATIENCE;
use obuild_stores::SnapshotId;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A request, as a server saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// What `Content-Length` says, if not the truth.
    pub(super) length: Option<u64>,
    /// The body is sent again and again, in chunks.
    pub(super) endless: bool,
    /// The connection stays open in silence.
    pub(super) hold: bool,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            length: None,
            endless: false,
            hold: false,
        }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A server of one's own making; each connection has one request.
pub(super) struct Server {
    pub(super) host: String,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub(super) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let host = listener.local_addr().expect("it listens").to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stopped, noted, answer) = (Arc::clone(&stop), Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &noted, &*answer));
            }
        });
        Self { host, seen, stop }
    }

    /// Returns the requests so far.
    pub(super) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, which looks at the flag.
        let _ = TcpStream::connect(&self.host);
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second descriptor"));
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            return;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut words = lines[0].split(' ').map(str::to_owned);
    let headers: HashMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok());
    let _ = std::io::copy(&mut reader.take(length.unwrap_or(0)), &mut std::io::sink());
    let request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        headers,
    };
    seen.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.extend([name.as_str(), ": ", value, "\r\n"]);
    }
    if reply.endless {
        head += "Transfer-Encoding: chunked\r\n\r\n";
        let chunk = [
            format!("{:x}\r\n", reply.body.len()).as_bytes(),
            &reply.body,
            b"\r\n",
        ]
        .concat();
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(&chunk).is_ok() {}
        return;
    }
    let length = reply.length.unwrap_or(reply.body.len() as u64);
    head.extend(["Content-Length: ", &length.to_string(), "\r\n\r\n"]);
    let _ = stream.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(&reply.body);
    }
    if reply.hold {
        // Until the other side has had enough.
        let _ = stream.read(&mut [0]);
    }
}

/// The answers of a registry that has one image, `x:1`, out of a layout.
pub(super) fn registry_of(
    layout: &Layout,
    descriptor: &Value,
) -> impl Fn(&Request) -> Reply + Send + Sync + use<> {
    let directory = layout.path.join("blobs/sha256");
    let digest = descriptor["digest"].as_str().expect("a digest").to_owned();
    let media_type = descriptor["mediaType"].as_str().expect("a type").to_owned();
    move |request| {
        let name = request.path.rsplit('/').next().unwrap_or_default();
        let name = if name == "1" { &digest } else { name };
        let Some(hex) = name.strip_prefix("sha256:") else {
            return Reply::new(
                404,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            );
        };
        let Ok(bytes) = fs_err::read(directory.join(hex)) else {
            return Reply::new(404, "");
        };
        let start = request.header("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        });
        let reply = match start {
            Some(start) if start < bytes.len() => Reply::new(206, &bytes[start..]).with(
                "Content-Range",
                format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
            ),
            _ => Reply::new(200, bytes),
        };
        let reply = reply.with("Docker-Content-Digest", name);
        if request.path.contains("/manifests/") {
            reply.with("Content-Type", media_type.clone())
        } else {
            reply
        }
    }
}

/// Which way bytes go that a proxy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the server.
    Down,
    /// To the server.
    Up,
}

/// Passes connections on, and cuts them.
pub(super) struct Proxy {
    pub(super) host: String,
    passed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// Cuts the connection that carries the byte of this number, counted over all connections; once, or each time so many have passed.
    pub(super) fn start(server: &str, way: Way, after: u64, again: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let host = listener.local_addr().expect("it listens").to_string();
        let passed = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicU64::new(after));
        let proxy = Self {
            host,
            passed: Arc::clone(&passed),
            stop: Arc::clone(&stop),
        };
        let server = server.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(upstream) = TcpStream::connect(&server) else {
                    continue;
                };
                for (from, to, own) in [
                    (client.try_clone(), upstream.try_clone(), Way::Up),
                    (upstream.try_clone(), client.try_clone(), Way::Down),
                ] {
                    let (Ok(from), Ok(to)) = (from, to) else {
                        continue;
                    };
                    let (passed, next) = (Arc::clone(&passed), Arc::clone(&next));
                    std::thread::spawn(move || {
                        let counted = (own == way).then_some((&*passed, &*next));
                        pass(from, to, counted, again.then_some(after));
                    });
                }
            }
        });
        proxy
    }

    /// Returns how many bytes have gone the counted way.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.host);
    }
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    counted: Option<(&AtomicU64, &AtomicU64)>,
    again: Option<u64>,
) {
    let mut buffer = vec![0; 4096];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        if let Some((passed, next)) = counted {
            let before = passed.fetch_add(length as u64, Ordering::SeqCst);
            let limit = next.load(Ordering::SeqCst);
            if before + length as u64 > limit {
                let last = usize::try_from(limit.saturating_sub(before)).unwrap_or(0);
                let _ = to.write_all(&buffer[..last.min(length)]);
                let following = again.map_or(u64::MAX, |again| before + length as u64 + again);
                next.store(following, Ordering::SeqCst);
                break;
            }
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A client with its blobs in the area, and what it resolves and imports.
pub(super) struct Puller<'a> {
    pub(super) area: &'a Area,
    pub(super) client: Arc<Client>,
    pub(super) pull: Pull,
    pub(super) remembered: Option<Digest>,
}

impl<'a> Puller<'a> {
    pub(super) fn new(area: &'a Area) -> Self {
        Self::with(area, |_| {})
    }

    pub(super) fn with(area: &'a Area, change: impl FnOnce(&mut ClientOptions)) -> Self {
        let mut options = ClientOptions::new(area.path("images"));
        options.timeout = PATIENCE;
        change(&mut options);
        Self {
            area,
            client: Arc::new(Client::new(options)),
            pull: Pull::Missing,
            remembered: None,
        }
    }

    pub(super) fn resolve(&self, reference: &str) -> Result<Resolved, Error> {
        let options = ResolveOptions {
            remembered: self.remembered,
            base_dir: self.area.directory.path(),
            digests: &NoDigests,
            tools: Tools {
                registry: Some(Arc::clone(&self.client)),
                pull: self.pull,
                ..Tools::default()
            },
            cancelled: &|| false,
        };
        resolve(&reference.parse()?, &options)
    }

    pub(super) fn import(&self, reference: &str) -> Result<SnapshotId, Error> {
        let resolved = self.resolve(reference)?;
        import(
            &resolved,
            &self.area.store,
            &mut |_: Progress<'_>| {},
            &|| false,
        )
    }

    /// Returns the sizes of what is kept of blobs that are not whole.
    pub(super) fn partial(&self) -> Vec<u64> {
        let Ok(entries) = fs_err::read_dir(self.area.path("images/partial")) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect()
    }
}

/// Returns bytes that do not compress, always the same.
pub(super) fn noise(length: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + u8::try_from(state % 95).expect("small"))
    };
    (0..length).map(|_| next()).collect()
}

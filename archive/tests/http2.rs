// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 as it is on the wire: what the server answers to clients that keep to the rules, and to those that do not.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests panic like the tests themselves"
)]

use obuild_archive::serve::{Listener, Options, Patience, Server};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// The flags of a request without a body: the stream ends, and the header too.
const WHOLE: u8 = 0x5;

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// Why a stream or a connection ends.
    fn code(&self) -> u8 {
        assert!(matches!(self.kind, RST_STREAM | GOAWAY), "{self:?}");
        self.payload[if self.kind == GOAWAY { 7 } else { 3 }]
    }
}

/// Serves a directory until it is dropped.
struct Served {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs_err::write(directory.path().join("repo"), "opam-version: \"2.0\"\n").unwrap();
        fs_err::create_dir(directory.path().join("packages")).unwrap();
        fs_err::write(directory.path().join("packages/large"), vec![7; 300_000]).unwrap();
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), false, false).unwrap();
        let address = listener.address();
        let options = Options {
            directory: directory.path().to_owned(),
            legacy: None,
            workers: 1,
            max_connections: 100,
            max_per_address: None,
            access_log: None,
            tls: None,
            hook_secret: None,
            poll: None,
            patience: Patience {
                stop: Duration::from_secs(1),
                ..Patience::default()
            },
        };
        let server = Server::start(options, vec![listener], None).unwrap();
        let (stop, stopping) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .unwrap()
                .block_on(server.run(async { drop(stopping.await) }))
                .unwrap();
        });
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
            _directory: directory,
        }
    }

    /// Connects, and says what every client says first.
    fn connect(&self) -> Client {
        let mut client = self.open();
        client.0.write_all(PREFACE).unwrap();
        client.send(SETTINGS, 0, 0, &[]);
        assert_eq!(client.frame().kind, SETTINGS);
        assert_eq!((client.frame().kind, client.sync()), (SETTINGS, Vec::new()));
        client
    }

    fn open(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Client(TcpStream);

impl Client {
    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        // A server that has had enough closes.
        let _ = self.0.write_all(&frame);
    }

    fn frame(&mut self) -> Frame {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).unwrap();
        let mut payload =
            vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        self.0.read_exact(&mut payload).unwrap();
        Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        }
    }

    /// Returns what came before the answers to some pings: what the server has to say it says between them.
    fn sync(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for _ in 0..6 {
            self.send(PING, 0, 0, b"pingpong");
            loop {
                let frame = self.frame();
                if frame.kind == PING {
                    assert_eq!((frame.flags, &frame.payload[..]), (1, &b"pingpong"[..]));
                    break;
                }
                frames.push(frame);
            }
        }
        frames
    }

    fn get(&mut self, stream: u32, path: &str) {
        self.send(HEADERS, WHOLE, stream, &block("GET", path));
    }

    fn widen(&mut self, stream: u32, more: u32) {
        self.send(WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
    }
}

/// Does something wrong.
type Act<'a> = &'a dyn Fn(&mut Client);

/// A request's header: no table, no Huffman code.
fn block(method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
    ] {
        block.extend_from_slice(&[0, u8::try_from(name.len()).unwrap()]);
        block.extend_from_slice(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value.as_bytes());
    }
    block
}

fn lengths(frames: &[Frame], stream: u32) -> usize {
    let data = frames
        .iter()
        .filter(|frame| (frame.kind, frame.stream) == (DATA, stream));
    data.map(|frame| frame.payload.len()).sum()
}

#[test]
fn answers_keep_to_the_windows() {
    let served = Served::new();
    let mut client = served.connect();
    client.get(1, "/packages/large");
    client.get(3, "/packages/large");
    let frames = client.sync();
    assert_eq!(
        frames.iter().filter(|frame| frame.kind == HEADERS).count(),
        2
    );
    // All streams together, until the window is widened (RFC 9113 §6.9.2).
    let (one, two) = (lengths(&frames, 1), lengths(&frames, 3));
    assert_eq!(one + two, 65_535);
    client.widen(0, 1 << 30);
    let frames = client.sync();
    assert_eq!(
        (one + lengths(&frames, 1), two + lengths(&frames, 3)),
        (65_535, 65_535)
    );
    // A smaller first window counts for streams that are there, too, and may leave less than nothing.
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]);
    client.widen(1, 65_525 + 5);
    let frames = client.sync();
    assert_eq!((lengths(&frames, 1), lengths(&frames, 3)), (5, 0));
    client.widen(1, 300_000);
    client.widen(3, 400_000);
    let frames = client.sync();
    assert_eq!(
        (lengths(&frames, 1), lengths(&frames, 3)),
        (300_000 - 65_540, 300_000 - 65_535)
    );
    assert_eq!(
        frames
            .iter()
            .filter(|frame| frame.kind == DATA && frame.flags == 1)
            .count(),
        2
    );
    // One byte at a time.
    client.get(5, "/repo");
    assert_eq!(lengths(&client.sync(), 5), 10);
    for _ in 0..9 {
        client.widen(5, 1);
        assert_eq!(lengths(&client.sync(), 5), 1);
    }
    client.widen(5, 1000);
    let last = client.sync();
    assert_eq!((lengths(&last, 5), last[0].flags), (1, 1));
}

#[test]
fn headers_come_in_pieces_and_bodies_that_nobody_reads_are_let_go() {
    let served = Served::new();
    let mut client = served.connect();
    let header = block("GET", "/repo");
    client.send(HEADERS, 0x1, 1, &header[..3]);
    client.send(CONTINUATION, 0, 1, &header[3..20]);
    client.send(CONTINUATION, 0x4, 1, &header[20..]);
    assert_eq!(lengths(&client.sync(), 1), 20);
    // With padding and a priority.
    let mut padded = vec![4, 0, 0, 0, 0, 15];
    padded.extend_from_slice(&header);
    padded.extend_from_slice(&[0; 4]);
    client.send(HEADERS, WHOLE | 0x8 | 0x20, 3, &padded);
    assert_eq!(lengths(&client.sync(), 3), 20);
    client.send(HEADERS, 0x4, 5, &block("POST", "/repo"));
    let frames = client.sync();
    assert_eq!((frames.len(), frames[1].flags), (2, 1));
    // What it sent before it knew is taken, and frames of which nothing is known are passed over.
    for _ in 0..20 {
        client.send(DATA, 0, 5, &[0; 16_000]);
        client.send(0xfe, 0xff, 9, &[0; 5000]);
    }
    let frames = client.sync();
    assert!(frames.iter().all(|frame| frame.kind == WINDOW_UPDATE));
    client.get(7, "/repo");
    assert_eq!(lengths(&client.sync(), 7), 20);
}

#[test]
fn a_stream_that_is_wrong_costs_only_itself() {
    let served = Served::new();
    let mut client = served.connect();
    let mut next = 1;
    let mut upper = block("GET", "/repo");
    upper.extend_from_slice(b"\x00\x01A\x01b");
    let mut split = block("GET", "/repo");
    split.extend_from_slice(b"\x00\x0auser-agent\x03a\nb");
    let mut late = block("GET", "/repo");
    late.extend_from_slice(b"\x00\x01a\x01b\x00\x07:scheme\x01x");
    for wrong in [
        &upper,
        &split,
        &late,
        &block("GET", ""),
        &block("GET", "/a b"),
        &vec![0x82],
    ] {
        client.send(HEADERS, WHOLE, next, wrong);
        let frames = client.sync();
        assert_eq!(
            (frames.len(), frames[0].stream, frames[0].code()),
            (1, next, 1)
        );
        next += 2;
    }
    // More at once than was agreed on: refused, to be asked for again.
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for _ in 0..101 {
        client.get(next, "/repo");
        next += 2;
    }
    let frames = client.sync();
    let refused = frames.last().unwrap();
    assert_eq!(
        (refused.kind, refused.stream, refused.code()),
        (RST_STREAM, next - 2, 7)
    );
    client.widen(next - 4, 0);
    let frames = client.sync();
    assert_eq!((frames[0].stream, frames[0].code()), (next - 4, 1));
    let mut long = block("GET", "/repo");
    for _ in 0..17 {
        // 466 bytes.
        long.extend_from_slice(b"\x00\x01a\x7f\xd3\x02");
        long.resize(long.len() + 466, b'x');
    }
    client.send(RST_STREAM, 0, next - 6, &[0; 4]);
    client.send(HEADERS, 0x1, next, &long[..5000]);
    client.send(CONTINUATION, 0x4, next, &long[5000..]);
    let frames = client.sync();
    assert_eq!((frames.len(), frames[0].kind), (1, HEADERS));
    assert!(frames[0].payload.windows(3).any(|status| status == b"431"));
}

#[test]
fn a_connection_that_is_wrong_is_told_why_and_ended() {
    let served = Served::new();
    let wrong: [(&str, u8, Act<'_>); 16] = [
        ("an even stream", 1, &|client| client.get(2, "/repo")),
        ("no stream", 1, &|client| client.get(0, "/repo")),
        ("a stream of none", 1, &|client| {
            client.send(PING, 0, 1, &[0; 8]);
        }),
        ("a short ping", 6, &|client| {
            client.send(PING, 0, 0, &[0; 7]);
        }),
        ("odd settings", 6, &|client| {
            client.send(SETTINGS, 0, 0, &[0; 5]);
        }),
        ("a huge window", 3, &|client| {
            client.send(SETTINGS, 0, 0, &[0, 4, 0xff, 0, 0, 0]);
        }),
        ("an overflow", 3, &|client| client.widen(0, 0x7fff_ffff)),
        ("no more", 1, &|client| client.widen(0, 0)),
        ("an idle stream", 1, &|client| client.widen(7, 1)),
        ("data for nothing", 1, &|client| {
            client.send(DATA, 0, 1, &[1]);
        }),
        ("too large a frame", 6, &|client| {
            client.send(DATA, 0, 1, &vec![0; 16_385]);
        }),
        ("a promise", 1, &|client| client.send(5, 4, 1, &[0; 9])),
        ("no header before", 1, &|client| {
            client.send(CONTINUATION, 4, 1, &[0x82]);
        }),
        ("something in between", 1, &|client| {
            client.send(HEADERS, 0, 1, &[0x82]);
            client.send(PING, 0, 0, &[0; 8]);
        }),
        ("no header at all", 9, &|client| {
            client.send(HEADERS, WHOLE, 1, &[0xff; 9]);
        }),
        ("an endless header", 11, &|client| {
            client.send(HEADERS, 0, 1, &[0x82]);
            for _ in 0..10 {
                client.send(CONTINUATION, 0, 1, &[0x82; 1000]);
            }
        }),
    ];
    for (what, code, act) in wrong {
        let mut client = served.connect();
        act(&mut client);
        let last = client.frame();
        assert_eq!((last.kind, last.code()), (GOAWAY, code), "{what}");
        let mut rest = Vec::new();
        // Reset, if it had not read all.
        let _ = client.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{what}: {rest:?}");
    }
    // Asking and calling back without end (CVE-2023-44487).
    let mut client = served.connect();
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for stream in (1..4001).step_by(2) {
        client.get(stream, "/packages/large");
        client.send(RST_STREAM, 0, stream, &[0; 4]);
    }
    let end = loop {
        let frame = client.frame();
        if frame.kind == GOAWAY {
            break frame;
        }
    };
    assert_eq!(end.code(), 11);
}

#[test]
fn whatever_comes_the_next_client_is_served() {
    let served = Served::new();
    let mut seed = 1_u64;
    for _ in 0..300 {
        let mut client = served.open();
        let mut bytes = PREFACE.to_vec();
        for _ in 0..6 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = seed.to_be_bytes();
            let length = random[0] % 60;
            bytes.extend_from_slice(&[
                0,
                0,
                length,
                random[1] % 11,
                random[2],
                0,
                0,
                0,
                random[3] % 4,
            ]);
            bytes.extend(
                (0..length).map(|at| random[usize::from(at) % 8].rotate_left(u32::from(at))),
            );
        }
        let _ = client.0.write_all(&bytes);
        let _ = client.0.shutdown(Shutdown::Write);
        let _ = client.0.read_to_end(&mut Vec::new());
    }
    let mut client = served.connect();
    client.get(1, "/repo");
    assert_eq!(lengths(&client.sync(), 1), 20);
}

// SPDX-License-Identifier: Apache-2.0
//! `obuild archive serve` with real clients: curl in both protocols, raw sockets for what curl would not send.

use crate::harness::{PATIENCE, binary, wait_for};
use crate::serving::{DIGEST, Server, World, curl, curl_output, field, status};
use obuild_fixtures::skip;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn files_in_both_protocols() {
    let Some(world) = World::new() else { return };
    let server = world.serve(&["--legacy", "legacy"]);
    for protocol in ["--http1.1", "--http1.0", "--http2-prior-knowledge"] {
        let get = |path: &str, options: &[&str]| {
            let url = server.url(path);
            let mut arguments = vec![protocol, url.as_str()];
            arguments.extend(options);
            curl(&arguments)
        };
        let archive = format!("/cache/sha256/2c/{DIGEST}");
        let (head, body) = get(&archive, &[]);
        assert_eq!((status(&head), body.as_str()), ("200", "foo"));
        assert_eq!(field(&head, "etag"), format!("\"{DIGEST}\""));
        assert!(
            field(&head, "cache-control").contains("immutable"),
            "{head}"
        );
        assert_eq!(field(&head, "content-type"), "application/octet-stream");

        let (head, body) = get("/index.tar.gz", &[]);
        assert_eq!(body.len(), 200_000);
        assert_eq!(field(&head, "content-type"), "application/gzip");
        assert!(!head.contains("content-encoding"), "{head}");
        let (tag, date) = (field(&head, "etag"), field(&head, "last-modified"));
        let only_head = get("/index.tar.gz", &["-I", "-o", "/dev/null"]).0;
        assert_eq!(field(&only_head, "content-length"), "200000");

        let with = |fields: &[&str]| {
            let fields: Vec<_> = fields.iter().flat_map(|field| ["-H", field]).collect();
            get("/index.tar.gz", &fields)
        };
        let (head, body) = with(&[&format!("If-None-Match: {tag}")]);
        assert_eq!((status(&head), body.as_str()), ("304", ""));
        assert_eq!(
            status(&with(&[&format!("If-Modified-Since: {date}")]).0),
            "304"
        );
        let (head, body) = with(&["Range: bytes=-10"]);
        assert_eq!((status(&head), body.len()), ("206", 10));
        assert_eq!(field(&head, "content-range"), "bytes 199990-199999/200000");
        let (head, body) = with(&["Range: bytes=5-", "If-Range: \"other\""]);
        assert_eq!((status(&head), body.len()), ("200", 200_000));
        let (head, _) = with(&["Range: bytes=200000-"]);
        assert_eq!(
            (status(&head), field(&head, "content-range")),
            ("416", "bytes */200000")
        );
        let bomb = format!("Range: bytes={}0-", "0-,".repeat(1000));
        assert_eq!(with(&[&bomb]).1.len(), 200_000, "once");

        assert_eq!(get("/1.2.2/urls.txt", &[]).1, "legacy");
        assert_eq!(get("/1.2.2/", &[]).1, "<title>1.2.2</title>");
        assert_eq!(field(&get("/1.2.2", &[]).0, "location"), "/1.2.2/");
        assert_eq!(status(&get("/packages/a/a.1/opam?x=y", &[]).0), "200");
        assert_eq!(status(&get("/nothing", &[]).0), "404");
        let (head, _) = get("/repo", &["-X", "DELETE"]);
        assert_eq!((status(&head), field(&head, "allow")), ("405", "GET, HEAD"));
        assert_eq!(get("/healthz", &[]).1, "ok\n");
    }
    // An index that was replaced is there at the latest a second later.
    world.write("new", b"another index");
    fs_err::rename(world.path("new"), world.path("served/index.tar.gz")).unwrap();
    wait_for("the new index", || {
        curl(&[&server.url("/index.tar.gz")]).1 == "another index"
    });
}

#[test]
fn nothing_leads_out_of_the_directory() {
    let Some(world) = World::new() else { return };
    std::os::unix::fs::symlink(world.path("secret"), world.path("served/packages/link")).unwrap();
    let server = world.serve(&["--legacy", "legacy"]);
    let up = [
        "..",
        "%2e%2e",
        "%2E.",
        ".%2e",
        "..%2f..",
        "..%5c",
        "%252e%252e",
        "%c0%ae%c0%ae",
        ".obuild",
    ];
    let starts = [
        "/",
        "//",
        "/packages/",
        "/cache/",
        "/1.2.2/",
        "/packages/a/%2e/",
        "http://x/",
    ];
    let ends = [
        "secret",
        "/secret",
        "%2fsecret",
        "/./secret",
        "/secret%00",
        "/secret?x",
        "/secret#x",
        "/secret/",
    ];
    let mut paths = vec![
        "/packages/link".to_owned(),
        format!("{}", world.path("secret").display()),
        format!("/{}", world.path("secret").display()),
        "/proc/self/environ".to_owned(),
        "/.obuild/secret".to_owned(),
        "/cache/.obuild/secret".to_owned(),
        "/cache/../.obuild/secret".to_owned(),
    ];
    for start in starts {
        for middle in up {
            for end in ends {
                paths.push(format!("{start}{middle}/{middle}{end}"));
                paths.push(format!("{start}{middle}{end}"));
            }
        }
    }
    // One connection for all: none of them breaks it.
    let mut requests = String::new();
    for path in &paths {
        for piece in ["GET ", path, " HTTP/1.1\r\nhost: x\r\n\r\n"] {
            requests += piece;
        }
    }
    requests += "GET /repo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut stream = server.connect();
    let mut sender = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.write_all(requests.as_bytes()));
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    sending.join().unwrap().unwrap();
    assert!(!answers.contains("TOP-SECRET"), "{answers}");
    let statuses: Vec<_> = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3])
        .collect();
    assert_eq!(statuses.len(), paths.len() + 1);
    for (path, status) in paths.iter().zip(&statuses) {
        assert!(["400", "404"].contains(status), "{path}: {status}");
    }
    assert_eq!(statuses.last(), Some(&"200"));
}

#[test]
fn what_is_no_request_is_refused_and_others_are_served() {
    let Some(world) = World::new() else { return };
    let server = world.serve(&[]);
    let huge = format!(
        "GET /repo HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    let many = format!(
        "GET /repo HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(500)
    );
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(5000));
    let cases: [(&[u8], &str); 9] = [
        (huge.as_bytes(), "431"),
        (many.as_bytes(), "431"),
        (long.as_bytes(), "414"),
        (b"\x16\x03\x01\x02\x00\x01\x00\n\n", "400"),
        (b"GET /repo HTTP/1.1\r\n\r\n", "400"),
        (b"GET /repo HTTP/9.9\r\nhost: x\r\n\r\n", "505"),
        (b"POST /repo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "411"),
        (b"POST /hooks/update HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc", "405"),
        (b"GET /repo HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\n\r\nGET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "200"),
    ];
    for (request, expected) in cases {
        let answer = server.raw(request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{shown}: {answer}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1,
            "{shown}: one answer, then closed"
        );
    }
    // Garbage on HTTP/2.
    let answer =
        server.raw(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 500]].concat());
    assert!(!answer.starts_with("HTTP/1.1"), "{answer}");
    assert_eq!(curl(&[&server.url("/repo")]).1, "opam-version: \"2.0\"\n");
}

#[test]
fn slow_clients_are_cut_off_and_idle_ones_make_room() {
    let Some(world) = World::new() else { return };
    let server = world.serve(&["--header-timeout", "5s", "--max-connections", "64"]);
    let began = Instant::now();
    let mut slow: Vec<_> = (0..60).map(|_| server.connect()).collect();
    let mut closed = vec![false; slow.len()];
    // A byte each now and then: each comes before a patience counted from the last byte would end.
    while closed.iter().any(|closed| !closed) {
        assert!(
            began.elapsed() < PATIENCE,
            "{closed:?} after {:?}",
            began.elapsed()
        );
        for (stream, closed) in slow.iter_mut().zip(&mut closed) {
            stream.set_nonblocking(true).unwrap();
            let gone = stream.write(b"G").is_err()
                || matches!(stream.read(&mut [0; 9]), Ok(0))
                || matches!(stream.peek(&mut [0; 9]), Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
            *closed |= gone;
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(
            curl(&[&server.url("/healthz")]).1,
            "ok\n",
            "others are served"
        );
    }
    assert_eq!(server.metric("obuild_connections_timed_out_total"), 60);
    // More idle connections than there is room for: each new one is served.
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut stream = server.connect();
        stream
            .write_all(b"GET /repo HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        idle.push(stream);
    }
    assert!(server.metric("obuild_connections_evicted_total") >= 136);
    assert!(server.metric("obuild_connections_open") <= 64);
}

#[test]
fn few_descriptors_are_enough() {
    let Some(world) = World::new() else { return };
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -n 100; exec \"$0\" archive serve served --listen 127.0.0.1:0",
        ])
        .arg(binary())
        .current_dir(world.directory.path());
    let server = Server::start(command);
    let mut streams = Vec::new();
    for number in 0..150 {
        let mut stream = server.connect();
        let path = if number % 2 == 0 {
            "index.tar.gz"
        } else {
            "repo"
        };
        let request = format!("GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut answer = [0; 15];
        // Those that find no room are closed.
        if stream.write_all(request.as_bytes()).is_ok() && stream.read_exact(&mut answer).is_ok() {
            assert!(answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.1 503"));
        }
        streams.push(stream);
    }
    drop(streams);
    wait_for("room", || curl(&[&server.url("/repo")]).0.contains(" 200"));
}

#[test]
fn a_thousand_clients_of_a_large_file_take_little_memory() {
    let Some(world) = World::new() else { return };
    world.write_large("served/packages/large", 1 << 30);
    let server = world.serve(&["--max-connections", "2000"]);
    let request = b"GET /packages/large HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let mut stream = server.connect();
        stream.write_all(request).unwrap();
        clients.push(stream);
    }
    let mut buffer = vec![0; 64 << 10];
    for stream in &mut clients {
        stream.read_exact(&mut buffer).unwrap();
        assert!(buffer.starts_with(b"HTTP/1.1 200 OK"));
    }
    assert_eq!(server.metric("obuild_connections_open"), 1001);
    let peak = server.peak_kib();
    assert!(peak < 50 << 10, "{peak} KiB");
}

#[test]
fn it_ends_when_the_requests_at_hand_are_done() {
    let Some(world) = World::new() else { return };
    let bytes = 64 << 20;
    world.write_large("served/packages/large", bytes);
    let mut server = world.serve(&["--access-log", "access.log"]);
    let mut idle = server.connect();
    let mut stream = server.connect();
    stream
        .write_all(b"GET /packages/large HTTP/1.1\r\nhost: x\r\nuser-agent: a\"b\r\n\r\n")
        .unwrap();
    let mut first = [0; 1000];
    stream.read_exact(&mut first).unwrap();
    server.signal("TERM");
    assert_eq!(
        idle.read(&mut [0; 1]).unwrap_or(0),
        0,
        "idle ones are closed"
    );
    wait_for("no new connections", || {
        TcpStream::connect(server.addresses[0]).is_err()
    });
    let rest = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    let head = first
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert_eq!(rest + 1000, bytes + head as u64, "all of it");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let log = fs_err::read_to_string(world.path("access.log")).unwrap();
    let line = format!("\"GET /packages/large HTTP/1.1\" 200 {bytes} \"-\" \"a\\x22b\"");
    assert!(log.contains(&line), "{log}");
}

#[test]
fn a_new_server_takes_over_without_a_failed_request() {
    let Some(world) = World::new() else { return };
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // As a service manager passes it: number 3, and its own process id, which `exec` keeps.
    let start = || {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" archive serve served",
            ])
            .arg(binary())
            .stdin(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()))
            .current_dir(world.directory.path());
        Server::start(command)
    };
    let mut server = start();
    assert_eq!(server.addresses, [address]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let answered = std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut stream = TcpStream::connect(address).unwrap();
                stream
                    .write_all(b"GET /repo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    .unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.ends_with("opam-version: \"2.0\"\n"), "{answer}");
                count += 1;
            }
            count
        });
        for _ in 0..3 {
            let next = start();
            server.signal("TERM");
            assert_eq!(server.child.wait().unwrap().code(), Some(0));
            server = next;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        clients.join().unwrap()
    });
    assert!(answered > 3, "{answered}");
}

#[test]
fn tls_with_a_certificate_that_changes() {
    let Some(world) = World::new() else { return };
    world.certificate("one", "served");
    world.certificate("two", "next");
    let server = world.serve(&[
        "--listen-tls",
        "127.0.0.1:0",
        "--tls-certificate",
        "served.crt",
        "--tls-key",
        "served.key",
    ]);
    let port = server.addresses[0].port();
    let first = world.path("served.crt");
    fs_err::copy(&first, world.path("first.crt")).unwrap();
    let get = |authority: &str, protocol: &str| {
        let authority = world.path(authority).display().to_string();
        let resolve = format!("localhost:{port}:127.0.0.1");
        let url = format!("https://localhost:{port}/index.tar.gz");
        let format = "%{http_version} %{size_download}";
        let output = curl_output(&[
            "--cacert",
            &authority,
            "--resolve",
            &resolve,
            protocol,
            "-o",
            "/dev/null",
            "-w",
            format,
            &url,
        ]);
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(get("first.crt", "--http1.1").as_deref(), Some("1.1 200000"));
    assert_eq!(get("first.crt", "--http2").as_deref(), Some("2 200000"));
    assert_eq!(get("next.crt", "--http2"), None);
    // Half of the new pair: the old one stays.
    fs_err::copy(world.path("next.crt"), &first).unwrap();
    server.signal("HUP");
    assert_eq!(get("first.crt", "--http2").as_deref(), Some("2 200000"));
    fs_err::copy(world.path("next.key"), world.path("served.key")).unwrap();
    wait_for("the new certificate", || {
        get("next.crt", "--http2").is_some()
    });
    assert_eq!(get("first.crt", "--http2"), None);
}

#[test]
fn signed_hooks_set_updates_off() {
    let Some(world) = World::new() else { return };
    world.write("hook-secret", b"It's a Secret to Everybody\n");
    let server = world.serve(&[
        "--hook-secret-file",
        "hook-secret",
        "--update",
        "echo $OBUILD_CAUSE >> causes; test ! -e fail",
        "--poll",
        "1h",
    ]);
    let causes = || fs_err::read_to_string(world.path("causes")).unwrap_or_default();
    wait_for("the update at the start", || causes() == "poll\n");
    let post = |body: &str, signature: &str, event: &str, protocol: &str| {
        let signature = format!("X-Hub-Signature-256: {signature}");
        let event = format!("X-GitHub-Event: {event}");
        let url = server.url("/hooks/update");
        let head = curl(&[
            "-H",
            &signature,
            "-H",
            &event,
            protocol,
            "--data-binary",
            body,
            &url,
        ])
        .0;
        status(&head).to_owned()
    };
    // The example of GitHub's documentation, "Validating webhook deliveries".
    let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let body = "Hello, World!";
    assert_eq!(post("Hello, World?", good, "push", "--http1.1"), "403");
    assert_eq!(post(body, "sha256=00", "push", "--http1.1"), "403");
    assert_eq!(post(body, "", "push", "--http2-prior-knowledge"), "403");
    assert_eq!(post(body, good, "ping", "--http1.1"), "200");
    assert_eq!(causes(), "poll\n", "none of these is a reason");
    assert_eq!(post(body, good, "push", "--http1.1"), "202");
    wait_for("the update's end", || {
        server.metric("obuild_updates_total") == 2
    });
    assert_eq!(causes(), "poll\nhook\n");
    world.write("fail", b"");
    assert_eq!(post(body, good, "push", "--http2-prior-knowledge"), "202");
    wait_for("an update that fails", || {
        server.metric("obuild_updates_failed_total") == 1
    });
    assert_eq!(server.metric("obuild_updates_total"), 3);
    let (head, _) = curl(&[&server.url("/hooks/update")]);
    assert_eq!((status(&head), field(&head, "allow")), ("405", "POST"));
    assert!(
        curl(&[&server.url("/status")])
            .1
            .contains("the update ended with exit status: 1")
    );
}

/// Makes a repository with one package; returns its archive's SHA-256 and where the archive is.
fn repository(world: &World) -> (&'static str, PathBuf) {
    world.write("upstream/new.tgz", b"bar");
    let digest = "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9";
    let source = world.path("upstream/new.tgz");
    let opam = format!(
        "opam-version: \"2.0\"\nurl {{\n  src: \"file://{}\"\n  checksum: \"sha256={digest}\"\n}}\n",
        source.display()
    );
    world.write("repository/repo", b"opam-version: \"2.0\"\n");
    world.write("repository/packages/new/new.1/opam", opam.as_bytes());
    (digest, source)
}

#[test]
fn it_syncs_from_a_repository_and_serves_what_came() {
    let Some(world) = World::new() else { return };
    let (digest, _) = repository(&world);
    let server = world.serve(&["--sync", "repository", "--poll", "1h"]);
    let url = server.url(&format!("/cache/sha256/fc/{digest}"));
    wait_for("the archive", || curl(&[&url]).1 == "bar");
    let page = || curl(&[&server.url("/status")]).1;
    wait_for("the sync on the page", || page().contains("Last syncs"));
    wait_for("the end of the update", || {
        server.metric("obuild_updates_total") == 1
    });
    assert_eq!(server.metric("obuild_updates_failed_total"), 0);
    wait_for("the index", || {
        let output = curl_output(&[&server.url("/index.tar.gz")]);
        output.stdout.starts_with(&[0x1f, 0x8b])
    });
}

#[test]
fn mirrors_are_chained() {
    let Some(world) = World::new() else { return };
    let (digest, source) = repository(&world);
    let first = world.serve(&["--sync", "repository", "--poll", "1h"]);
    let archive = format!("/cache/sha256/fc/{digest}");
    wait_for("the first", || curl(&[&first.url(&archive)]).1 == "bar");
    // From here on only a mirror has it.
    fs_err::remove_file(source).unwrap();
    let after = |mirror: &Server, name: &str| {
        let update = format!(
            "{} archive sync repository --to {name} --upstream-cache {}",
            binary(),
            mirror.url("/cache")
        );
        fs_err::create_dir(world.path(name)).unwrap();
        let mut command = Command::new(binary());
        command
            .args(["archive", "serve", name, "--listen", "127.0.0.1:0"])
            .args(["--update", &update, "--poll", "1h"])
            .current_dir(world.directory.path());
        let next = Server::start(command);
        wait_for(name, || curl(&[&next.url(&archive)]).1 == "bar");
        next
    };
    let second = after(&first, "second");
    drop(first);
    after(&second, "third");
}

#[test]
fn thousands_of_idle_connections_are_no_burden() {
    let Some(world) = World::new() else { return };
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    if limit.maximum.is_some_and(|maximum| maximum < 10_000) {
        skip("needs 10000 descriptors");
        return;
    }
    let server = world.serve(&[]);
    // Half have said nothing yet, half have had an answer.
    let idle: Vec<_> = (0..3000)
        .map(|number| {
            let mut stream = server.connect();
            if number % 2 == 0 {
                stream
                    .write_all(b"GET /repo HTTP/1.1\r\nhost: x\r\n\r\n")
                    .unwrap();
                stream.read_exact(&mut [0; 100]).unwrap();
            }
            stream
        })
        .collect();
    assert_eq!(curl(&[&server.url("/healthz")]).1, "ok\n");
    wait_for("the last question's connection to be gone", || {
        server.metric("obuild_connections_open") == 3001
    });
    let peak = server.peak_kib();
    assert!(peak < 50 << 10, "{peak} KiB");
    drop(idle);
}

#[test]
fn the_page_is_html_and_nothing_in_it_is_a_package_s() {
    let Some(world) = World::new() else { return };
    let evil = "</code><script>alert(1)</script>\\u202e\\u0007&\\\"'";
    let attempt = format!("{{\"url\":\"https://x/{evil}\",\"reason\":\"{evil}\"}}");
    let state = format!(
        "{{\"format\":1,\"repository\":\"{evil}\",\"revision\":\"{evil}\",\"commit\":\"{}\",\"index\":\"\",\"table\":null,
        \"packages\":18793,\"archives\":11495,\"recheck\":false,
        \"failures\":{{\"md5=00\":{{\"kind\":\"mismatch\",\"attempts\":[{attempt}],\"packages\":[\"packages/a/{evil}/opam\"],
          \"since\":1700000000,\"tried\":1700000000,\"times\":3,\"next\":1700000000}}}},
        \"unnamed\":{{}},\"skipped\":[[\"{evil}\",\"{evil}\"]],
        \"syncs\":[{{\"started\":1700000000,\"milliseconds\":1234,\"from\":null,\"to\":\"{evil}\",\"packages_read\":1,
          \"packages_removed\":2,\"fetched\":3,\"fetched_bytes\":4,\"failed\":5}}]}}",
        "0123456789".repeat(4)
    );
    world.write("served/.obuild/state.json", state.as_bytes());
    let server = world.serve(&[]);
    let mut page = String::new();
    wait_for("the state", || {
        page = curl(&[&server.url("/status")]).1;
        page.contains("Missing archives")
    });
    assert!(
        page.contains("18\u{202f}793") && page.contains("0123456789012345"),
        "{page}"
    );
    assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\u{7}'));
    assert!(curl(&[&server.url("/")]).1.contains("Missing archives"));
    let (head, json) = curl(&[&server.url("/status.json")]);
    assert_eq!(field(&head, "content-type"), "application/json");
    assert!(json.contains("\"kind\":\"mismatch\""), "{json}");
    world.write("page.html", page.as_bytes());
    if Command::new("tidy").arg("-version").output().is_err() {
        skip("needs tidy");
        return;
    }
    let checked = Command::new("tidy")
        .args(["-quiet", "-errors", "-utf8"])
        .arg(Path::new("page.html"))
        .current_dir(world.directory.path())
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}

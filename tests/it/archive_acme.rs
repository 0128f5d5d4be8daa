// SPDX-License-Identifier: Apache-2.0
//! Certificates that `obuild archive serve` orders: from pebble, the ACME server that Let's Encrypt tests clients with, which checks every signature,
//! nonce and proof; and from servers that are no authorities.

use crate::harness::{PATIENCE, free_port, wait_for};
use crate::serving::{Server, World, curl, curl_output, status};
use obuild_fixtures::server::{Behaviour, Server as Upstream};
use obuild_fixtures::skip;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A certificate authority, with a name service by which all names are this machine.
struct Pebble {
    processes: [Child; 2],
    management: u16,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Makes the world and the authority's own certificate, which servers trust by `SSL_CERT_FILE`. `None` after a loud skip.
fn world() -> Option<World> {
    if Command::new("pebble").arg("-help").output().is_err() {
        skip("needs pebble");
        return None;
    }
    let world = World::new()?;
    world.certificate("pebble", "pebble");
    Some(world)
}

impl Pebble {
    /// Starts one that looks for proofs at these ports of this machine.
    fn start(world: &World, port: u16, http: u16, tls: u16) -> Self {
        let management = free_port();
        let configuration = format!(
            r#"{{"pebble": {{"listenAddress": "127.0.0.1:{port}", "managementListenAddress": "127.0.0.1:{management}",
            "certificate": "pebble.crt", "privateKey": "pebble.key", "httpPort": {http}, "tlsPort": {tls},
            "domainBlocklist": ["blocked.example.org"], "certificateValidityPeriod": 24}}}}"#
        );
        world.write("pebble.json", configuration.as_bytes());
        let names = format!("127.0.0.1:{}", free_port());
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program)
                .args(arguments)
                // No pauses. Of the good nonces it refuses one in a hundred: at the third in a row a client gives up.
                .env("PEBBLE_VA_NOSLEEP", "1")
                .env("PEBBLE_WFE_NONCEREJECT", "1")
                .env("PEBBLE_AUTHZREUSE", "0")
                .current_dir(world.directory.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let off = ["-http01", "", "-https01", "", "-tlsalpn01", ""];
        let ports = ["-dns01", &names, "-defaultIPv6", "", "-management", ""];
        let processes = [
            run("pebble-challtestsrv", &[&off[..], &ports].concat()),
            run("pebble", &["-config", "pebble.json", "-dnsserver", &names]),
        ];
        let pebble = Self {
            processes,
            management,
        };
        let url = format!("https://127.0.0.1:{port}/dir");
        wait_for("pebble", || {
            curl_output(&["-k", &url]).status.success() && pebble.root().is_some()
        });
        pebble
    }

    /// Returns the certificate that its certificates are below, which is another one each time it is started.
    fn root(&self) -> Option<String> {
        let url = format!("https://127.0.0.1:{}/roots/0", self.management);
        let output = curl_output(&["-k", &url]);
        let text = String::from_utf8(output.stdout).ok()?;
        text.contains("BEGIN CERTIFICATE").then_some(text)
    }
}

fn serve(world: &World, options: &[&str], directory: &str) -> Server {
    let orders = ["--acme-agree-terms", "--acme-directory", directory];
    let mut command = world.command(&[options, &orders].concat());
    command.env("SSL_CERT_FILE", world.path("pebble.crt"));
    Server::start(command)
}

/// Gets a path over TLS from a server that has a certificate below `root` for `name`.
fn get(world: &World, root: &str, name: &str, port: u16, path: &str) -> Option<String> {
    world.write("root.crt", root.as_bytes());
    let root = world.path("root.crt").display().to_string();
    let resolve = format!("{name}:{port}:127.0.0.1");
    let url = format!("https://{name}:{port}{path}");
    let output = curl_output(&["--cacert", &root, "--resolve", &resolve, &url]);
    let is_good = output.status.success();
    is_good.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// Returns the files of the authorities.
fn kept(world: &World) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for authority in fs_err::read_dir(world.path("served/.obuild/acme")).unwrap() {
        for file in fs_err::read_dir(authority.unwrap().path()).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    files
}

const EXPIRY: &str = "obuild_tls_certificate_expiry_timestamp_seconds ";
const NEXT: &str = "obuild_acme_next_order_timestamp_seconds ";
const ORDERS: &str = "obuild_acme_orders_total ";
const FAILED: &str = "obuild_acme_orders_failed_total ";

#[test]
fn a_certificate_is_ordered_renewed_and_ordered_again_when_the_authority_has_lost_us() {
    let Some(world) = world() else { return };
    let port = free_port();
    let listen = ["--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"];
    let names = [
        "--acme",
        "Mirror.example.org",
        "--acme",
        "opam.example.org",
        "--acme-contact",
        "root@example.org",
    ];
    let directory = format!("https://localhost:{port}/dir");
    let server = serve(&world, &[&listen[..], &names].concat(), &directory);
    let [http, tls] = [0, 1].map(|number| server.addresses[number].port());
    // Nobody is there yet: it serves, and says when it tries again.
    wait_for("the failure", || server.metric(FAILED) == 1);
    assert!((40..=60).contains(&(server.metric(NEXT) - now())));
    assert_eq!(server.metric(EXPIRY), 0);
    assert_eq!(curl(&[&server.url("/repo")]).1, "opam-version: \"2.0\"\n");
    let page = curl(&[&server.url("/status")]).1;
    assert!(page.contains("none yet") && page.contains("No new certificate"));

    let pebble = Pebble::start(&world, port, http, tls);
    server.signal("HUP");
    wait_for("the certificate", || {
        // An order that fails is not tried again while we wait.
        let page = || curl(&[&server.url("/status")]).1;
        assert!(server.metric(FAILED) == 1, "{}", page());
        server.metric(EXPIRY) > 0
    });
    let (first, root) = (server.metric(EXPIRY), pebble.root().unwrap());
    for name in ["mirror.example.org", "opam.example.org"] {
        let got = get(&world, &root, name, tls, "/repo");
        assert_eq!(got.as_deref(), Some("opam-version: \"2.0\"\n"), "{name}");
    }
    assert!(get(&world, &root, "other.example.org", tls, "/repo").is_none());
    let page = curl(&[&server.url("/status")]).1;
    assert!(page.contains("Certificate ends") && !page.contains("No new certificate"));
    let files = kept(&world);
    assert_eq!(files.len(), 2, "{files:?}");
    for file in files {
        let mode = fs_err::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        let below = file.strip_prefix(world.path("served")).unwrap();
        let url = server.url(&format!("/{}", below.display()));
        assert_eq!(status(&curl(&[&url]).0), "404");
    }
    let proof = server.url("/.well-known/acme-challenge/x");
    assert_eq!(status(&curl(&[&proof]).0), "404");

    // Another that knows nothing of our account; two thirds of the 24 seconds later it is asked.
    drop(pebble);
    let pebble = Pebble::start(&world, port, http, tls);
    wait_for("the renewal", || {
        server.signal("HUP");
        std::thread::sleep(Duration::from_millis(500));
        server.metric(EXPIRY) > first
    });
    let root = pebble.root().unwrap();
    assert!(get(&world, &root, "mirror.example.org", tls, "/repo").is_some());
    assert_eq!(server.metric(FAILED), 1, "only before there was anyone");
    // It is kept: the next server has it at once.
    drop((pebble, server));
    let server = serve(&world, &[&listen[..], &names].concat(), &directory);
    assert!(server.metric(EXPIRY) > first);
}

#[test]
fn a_name_is_proved_over_tls_and_one_that_is_not_ours_gets_no_certificate() {
    let Some(world) = world() else { return };
    let port = free_port();
    let directory = format!("https://localhost:{port}/dir");
    let start = |name: &str, options: &[&str]| {
        let listen = ["--listen-tls", "127.0.0.1:0", "--acme", name];
        serve(&world, &[&listen[..], options].concat(), &directory)
    };
    let server = start("alpn.example.org", &[]);
    let tls = server.addresses[0].port();
    // Where it looks for proofs over HTTP is nobody.
    let pebble = Pebble::start(&world, port, free_port(), tls);
    server.signal("HUP");
    let root = pebble.root().unwrap();
    wait_for("the certificate", || {
        get(&world, &root, "alpn.example.org", tls, "/repo").is_some()
    });
    // Two that listen elsewhere than where proofs are looked for, and one whose name is refused.
    for (name, options, reason) in [
        (
            "http.example.org",
            &["--listen", "127.0.0.1:0"][..],
            "http.example.org is ours",
        ),
        (
            "tls.example.org",
            &["--listen", "127.0.0.1:0", "--acme-challenge", "tls-alpn-01"],
            "tls.example.org is ours",
        ),
        (
            "blocked.example.org",
            &["--listen", "127.0.0.1:0"],
            "rejectedIdentifier",
        ),
    ] {
        let mut server = start(name, options);
        // Where it listens without TLS is said first.
        server.addresses.sort_by_key(|address| {
            curl_output(&["-f", &format!("http://{address}/healthz")])
                .status
                .code()
        });
        wait_for(name, || server.metric(FAILED) == 1);
        let page = curl(&[&server.url("/status")]).1;
        assert!(page.contains(reason), "{page}");
    }
}

#[test]
fn no_authority_holds_the_server_up() {
    let Some(world) = world() else { return };
    let upstream = Upstream::start();
    // A directory that leads to where anybody could listen.
    let directory = r#"{"newNonce": "http://198.51.100.1/nonce", "newAccount": "http://198.51.100.1/account", "newOrder": "http://198.51.100.1/order"}"#;
    upstream.put("/dir", directory.as_bytes());
    upstream.behave(
        "/dir",
        [
            Behaviour::Status(429, Some("7200".to_owned())),
            Behaviour::Html,
            Behaviour::Endless,
            Behaviour::Cut(20),
            Behaviour::Good,
            Behaviour::Stall(10),
        ],
    );
    let listen = [
        "--listen",
        "127.0.0.1:0",
        "--listen-tls",
        "127.0.0.1:0",
        "--acme",
        "a.example",
    ];
    let mut server = serve(&world, &listen, &upstream.url("/dir"));
    let reasons = ["429", "JSON", "does not end", "body", "not https"];
    for (number, reason) in reasons.iter().enumerate() {
        let count = number as u64 + 1;
        wait_for(reason, || server.metric(FAILED) == count);
        let page = curl(&[&server.url("/status")]).1;
        assert!(page.contains(reason), "{reason}: {page}");
        let pause = server.metric(NEXT) - now();
        // Twice as long each time, but for what it asked for itself.
        let expected = if number == 0 { 7200 } else { 60 << number };
        assert!(
            (expected - 30..=expected).contains(&pause),
            "{pause} {expected}"
        );
        server.signal("HUP");
    }
    // The sixth answer does not come to its end: all goes on, and the end does not wait for it.
    wait_for("the question", || upstream.hits("/dir") == 6);
    assert_eq!(curl(&[&server.url("/repo")]).1, "opam-version: \"2.0\"\n");
    assert_eq!(server.metric(ORDERS), 5);
    let began = Instant::now();
    server.signal("TERM");
    assert!(server.child.wait().unwrap().success());
    assert!(began.elapsed() < PATIENCE);
}

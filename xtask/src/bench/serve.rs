// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench serve`: `obuild archive serve` and Debian's nginx, with the same files, the same load generators (`wrk`; `h2load` for HTTP/2 over TLS)
//! and taking turns.
//!
//! nginx has Debian's configuration (`/etc/nginx/nginx.conf` of bookworm: a worker a processor, sendfile, `tcp_nopush`, an access log), but for the number of
//! connections a worker may have, which is too small for a thousand, and of requests a connection may have over TLS. Both write access logs, and both run as they would on a server.

use super::machine;
use crate::cmd::{Background, Cmd};
use crate::filesystems::Scratch;
use crate::packages::{self, Need, Sign};
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

/// What the benchmark uses.
const NEEDS: &[Need] = &[
    (Sign::Program("nginx"), "nginx-light"),
    (Sign::Program("wrk"), "wrk"),
    (Sign::Program("h2load"), "nghttp2-client"),
    (Sign::Program("openssl"), "openssl"),
];

/// How long each load lasts.
const SECONDS: u32 = 4;

/// One kind of load.
struct Load {
    name: &'static str,
    file: &'static str,
    bytes: u64,
    connections: u32,
    /// Requests at once on each, over TLS and HTTP/2; without, there is one, and neither.
    streams: Option<u32>,
    /// What counts: bytes, else requests a second.
    throughput: bool,
}

const LOADS: [Load; 10] = [
    Load {
        name: "3 KB, 64 connections",
        file: "small",
        bytes: 3 << 10,
        connections: 64,
        streams: None,
        throughput: false,
    },
    Load {
        name: "3 KB, 1,000 connections",
        file: "small",
        bytes: 3 << 10,
        connections: 1000,
        streams: None,
        throughput: false,
    },
    Load {
        name: "100 KB, 64 connections",
        file: "medium",
        bytes: 100 << 10,
        connections: 64,
        streams: None,
        throughput: false,
    },
    Load {
        name: "100 MB, 8 connections",
        file: "large",
        bytes: 100 << 20,
        connections: 8,
        streams: None,
        throughput: true,
    },
    Load {
        name: "HTTP/2: 3 KB, 64 connections, 10 streams",
        file: "small",
        bytes: 3 << 10,
        connections: 64,
        streams: Some(10),
        throughput: false,
    },
    Load {
        name: "HTTP/2: 3 KB, 1,000 connections",
        file: "small",
        bytes: 3 << 10,
        connections: 1000,
        streams: Some(1),
        throughput: false,
    },
    Load {
        name: "HTTP/2: 3 KB, 1,000 connections, 10 streams",
        file: "small",
        bytes: 3 << 10,
        connections: 1000,
        streams: Some(10),
        throughput: false,
    },
    Load {
        name: "HTTP/2: 100 KB, 1,000 connections",
        file: "medium",
        bytes: 100 << 10,
        connections: 1000,
        streams: Some(1),
        throughput: false,
    },
    Load {
        name: "HTTP/2: 100 KB, 64 connections",
        file: "medium",
        bytes: 100 << 10,
        connections: 64,
        streams: Some(1),
        throughput: false,
    },
    Load {
        name: "HTTP/2: 100 MB, 8 connections",
        file: "large",
        bytes: 100 << 20,
        connections: 8,
        streams: Some(1),
        throughput: true,
    },
];

/// A server that is measured.
struct Contestant {
    name: &'static str,
    port: u16,
    /// Where it speaks TLS.
    tls_port: u16,
    process: Background,
}

/// Runs the task: `[--runs N]`.
pub(super) fn run(arguments: &[String]) -> Result<()> {
    let runs: usize = match arguments {
        [] => 3,
        [option, value] if option == "--runs" => value.parse().context("--runs needs a number")?,
        _ => bail!("usage: cargo xtask bench serve [--runs N]"),
    };
    anyhow::ensure!(runs > 0, "--runs must be at least 1");
    packages::ensure(NEEDS)?;
    Cmd::cargo()
        .args(["build", "--release", "--package", "obuild"])
        .run()?;
    let scratch = Scratch::create(Path::new("/var/tmp"))?;
    let directory = scratch.directory("serve")?;
    let served = directory.join("served");
    fs_err::create_dir_all(served.join("packages"))?;
    for load in &LOADS {
        write_noise(&served.join("packages").join(load.file), load.bytes)?;
    }
    make_certificate(&directory)?;
    let contestants = [start_obuild(&directory)?, start_nginx(&directory)?];

    let mut text = format!(
        "# obuild archive serve and nginx\n\n{}\n",
        machine::describe(&directory)
    );
    writeln!(
        text,
        "- each figure: the median of {runs} runs of {SECONDS} s, taking turns; {}\n",
        machine::load()
    )?;
    writeln!(text, "| load | obuild | nginx | ratio |\n|---|---|---|---|")?;
    let mut verdicts = String::new();
    for load in &LOADS {
        let mut samples: [Vec<f64>; 2] = Default::default();
        for _ in 0..runs {
            for (contestant, samples) in contestants.iter().zip(&mut samples) {
                samples.push(measure(contestant, load)?);
            }
        }
        let [ours, theirs] = samples.map(median);
        let ratio = ours / theirs;
        let show = |value: f64| {
            if load.throughput {
                format!("{:.0} MB/s", value / 1e6)
            } else {
                format!("{value:.0} requests/s")
            }
        };
        writeln!(
            text,
            "| {} | {} | {} | {ratio:.2} |",
            load.name,
            show(ours),
            show(theirs)
        )?;
        let met = if ratio >= 0.8 { "met" } else { "MISSED" };
        writeln!(
            verdicts,
            "- {}: at least 0.8 of nginx: {met} ({ratio:.2})",
            load.name
        )?;
    }
    let [ours, theirs] = [&contestants[0], &contestants[1]].map(peak_kib);
    let (ours, theirs) = (ours?, theirs?);
    writeln!(
        text,
        "| peak memory | {ours} KiB | {theirs} KiB (its processes together) | |"
    )?;
    let met = if ours < 50 << 10 { "met" } else { "MISSED" };
    writeln!(
        verdicts,
        "- under 50 MB of memory after all of this: {met} ({ours} KiB)"
    )?;
    write!(text, "\n{verdicts}")?;
    println!("{text}");
    drop(contestants);
    let target = workspace::target().join("bench");
    fs_err::create_dir_all(&target)?;
    let file = target.join("serve.md");
    fs_err::write(&file, text)?;
    println!("written to {}", file.display());
    scratch.close()
}

fn make_certificate(directory: &Path) -> Result<()> {
    Cmd::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(directory.join("tls.key"))
        .arg("-out")
        .arg(directory.join("tls.crt"))
        .output()?;
    Ok(())
}

fn start_obuild(directory: &Path) -> Result<Contestant> {
    let (port, tls_port) = (free_port()?, free_port()?);
    let command = Cmd::new(workspace::target().join("release/obuild"))
        .args(["archive", "serve"])
        .arg(directory.join("served"))
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--listen-tls")
        .arg(format!("127.0.0.1:{tls_port}"))
        .arg("--tls-certificate")
        .arg(directory.join("tls.crt"))
        .arg("--tls-key")
        .arg(directory.join("tls.key"))
        .arg("--access-log")
        .arg(directory.join("obuild-access.log"));
    start("obuild", [port, tls_port], command, directory)
}

fn start_nginx(directory: &Path) -> Result<Contestant> {
    let (port, tls_port) = (free_port()?, free_port()?);
    let place = directory.display();
    let configuration = directory.join("nginx.conf");
    fs_err::write(
        &configuration,
        format!(
            "daemon off; worker_processes auto; pid {place}/nginx.pid; error_log {place}/nginx-error.log;
user root;
events {{ worker_connections 2048; }}
http {{
  sendfile on; tcp_nopush on; types_hash_max_size 2048;
  include /etc/nginx/mime.types; default_type application/octet-stream;
  access_log {place}/nginx-access.log; gzip on;
  server {{ listen 127.0.0.1:{port}; root {place}/served; }}
  server {{
    listen 127.0.0.1:{tls_port} ssl http2; root {place}/served; keepalive_requests 100000000;
    ssl_certificate {place}/tls.crt; ssl_certificate_key {place}/tls.key;
  }}
}}
"
        ),
    )?;
    let command = Cmd::new("nginx").arg("-c").arg(&configuration);
    start("nginx", [port, tls_port], command, directory)
}

fn start(
    name: &'static str,
    [port, tls_port]: [u16; 2],
    command: Cmd,
    directory: &Path,
) -> Result<Contestant> {
    let process = Background::start(command, &directory.join(format!("{name}.log")))?;
    for _ in 0..500 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(Contestant {
                name,
                port,
                tls_port,
                process,
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{name} does not listen");
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Runs one load; returns requests or bytes a second.
fn measure(contestant: &Contestant, load: &Load) -> Result<f64> {
    match load.streams {
        None => measure_http1(contestant, load),
        Some(streams) => measure_http2(contestant, load, streams),
    }
}

fn measure_http2(contestant: &Contestant, load: &Load, streams: u32) -> Result<f64> {
    let url = format!(
        "https://127.0.0.1:{}/packages/{}",
        contestant.tls_port, load.file
    );
    let output = Cmd::new("h2load")
        .args(["-t1", "--warm-up-time=1", &format!("-D{SECONDS}")])
        .arg(format!("-c{}", load.connections))
        .arg(format!("-m{streams}"))
        .arg(url)
        .deadline(Duration::from_mins(1))
        .output()?;
    let is_good = output.contains("Application protocol: h2") && output.contains(" 0 failed, ");
    if !is_good {
        bail!("{} answers wrongly:\n{output}", contestant.name);
    }
    parse_h2load(&output, load.throughput)
        .with_context(|| format!("read h2load's output:\n{output}"))
}

/// Reads `finished in 4.00s, 17341.00 req/s, 52.32MB/s`: the bytes or the requests a second.
fn parse_h2load(output: &str, throughput: bool) -> Option<f64> {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix("finished in "))?;
    let mut figures = line.split(", ").skip(1);
    let requests = figures.next()?.strip_suffix(" req/s")?;
    if throughput {
        return amount(figures.next()?.strip_suffix("/s")?);
    }
    requests.parse().ok()
}

fn measure_http1(contestant: &Contestant, load: &Load) -> Result<f64> {
    let url = format!(
        "http://127.0.0.1:{}/packages/{}",
        contestant.port, load.file
    );
    let output = Cmd::new("wrk")
        .args([
            "-t1",
            &format!("-c{}", load.connections),
            &format!("-d{SECONDS}s"),
            &url,
        ])
        .deadline(Duration::from_mins(1))
        .output()?;
    if output.contains("Non-2xx") {
        bail!("{} answers wrongly:\n{output}", contestant.name);
    }
    let value = |name: &str| {
        let line = output
            .lines()
            .find_map(|line| line.trim().strip_prefix(name));
        line.and_then(amount)
            .with_context(|| format!("read wrk's output:\n{output}"))
    };
    if load.throughput {
        value("Transfer/sec:")
    } else {
        value("Requests/sec:")
    }
}

/// Reads a number as wrk writes it: with a binary unit or none.
fn amount(text: &str) -> Option<f64> {
    let text = text.trim();
    let units = [
        ("KB", 1024.0),
        ("MB", 1024.0 * 1024.0),
        ("GB", 1024.0 * 1024.0 * 1024.0),
        ("B", 1.0),
    ];
    let (digits, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .unwrap_or((text, 1.0));
    Some(digits.parse::<f64>().ok()? * factor)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Returns the peak memory of a server's processes, added up.
fn peak_kib(contestant: &Contestant) -> Result<u64> {
    let main = contestant.process.id();
    let children = fs_err::read_to_string(format!("/proc/{main}/task/{main}/children"))?;
    let mut sum = 0;
    for pid in
        std::iter::once(main.to_string()).chain(children.split_whitespace().map(str::to_owned))
    {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let digits = line.and_then(|line| line.split_whitespace().next());
        sum += digits
            .and_then(|digits| digits.parse::<u64>().ok())
            .context("read VmHWM")?;
    }
    Ok(sum)
}

/// Writes a file that does not compress, and keeps it in the page cache.
fn write_noise(path: &Path, bytes: u64) -> Result<()> {
    let mut noise = std::io::Read::take(fs_err::File::open("/dev/urandom")?, bytes);
    std::io::copy(&mut noise, &mut fs_err::File::create(path)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{amount, median, parse_h2load};

    #[test]
    fn figures_are_read() {
        assert_eq!(amount("  1.50KB"), Some(1536.0));
        assert_eq!(amount("20.00B"), Some(20.0));
        assert_eq!(amount(" 18837.71"), Some(18837.71));
        assert_eq!(amount("x"), None);
        let output = "Application protocol: h2\n\nfinished in 4.00s, 17341.50 req/s, 2.00MB/s\nrequests: 1 total";
        assert_eq!(parse_h2load(output, false), Some(17341.5));
        assert_eq!(parse_h2load(output, true), Some(2_097_152.0));
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}

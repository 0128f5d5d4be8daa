// SPDX-License-Identifier: Apache-2.0
//! The scenarios of images: a layer of a small change, and its way into a registry.

use super::Arena;
use super::builder::{DEADLINE, Publish};
use super::measure::Meter;
use super::scenarios::{at_most, is_ours, ours, row, settle, word};
use super::table::Table;
use crate::cmd::{Background, Cmd};
use crate::workspace;
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Files in the large tree: so many directories of so many.
const DIRECTORIES: u32 = 100;
const FILES: u32 = 1000;
/// Files of the archive, and the bytes of each.
const ARCHIVE: u32 = 1000;
const FILE_BYTES: usize = 100_000;
/// How many bytes more than the file itself may go over the wire.
const ROOM: u64 = 4096;

pub(super) fn layer(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let mut rows = Vec::new();
    let mut stores = vec![("overlay", arena.inputs.join("layer"))];
    stores.extend(arena.btrfs.iter().map(|path| ("btrfs", path.join("layer"))));
    let program = workspace::target().join("release/obuild");
    for (kind, path) in stores {
        let store = format!("{kind}:{}", path.display());
        let layout = arena.inputs.join(format!("layout-{kind}"));
        let spec = arena.inputs.join("layer.spec");
        let output = format!("type=oci,dest={}", layout.display());
        let build = |change: &str| -> Result<String> {
            let fill = format!(
                "for d in $(seq {DIRECTORIES}); do mkdir -p /t/$d; cd /t/$d; seq {FILES} | split -a 3 -l 1; done"
            );
            let text = format!(
                "((from tar:{}) (shell /bin/sh -c) (run (shell {fill:?})) (run (shell {change:?})))\n",
                arena.base.display()
            );
            fs_err::write(&spec, text)?;
            let built = Cmd::new(&program)
                .quiet()
                .args(["run", "-q", "--store", &store])
                .arg(&spec)
                .output()?;
            Ok(built.trim().to_owned())
        };
        let export = |id: &str| -> Vec<String> {
            let words = ["export", id, "--store", &store, "-o", &output];
            let program = program.display().to_string();
            std::iter::once(program)
                .chain(words.map(str::to_owned))
                .collect()
        };
        // The large layers are there from then on.
        meter.run(&export(&build("true")?), &[], DEADLINE)?;
        let mut found = row(&format!("obuild {kind}"), None);
        for run in 0..arena.runs {
            let id = build(&format!("echo {run} > /t/50/xaaa"))?;
            settle();
            found.samples.push(meter.run(&export(&id), &[], DEADLINE)?);
        }
        rows.push(found);
    }
    Ok(Table {
        title: "one changed file in a tree of 100,000, as an image: the whole command".to_owned(),
        per: 1,
        rows,
    })
}

pub(super) fn layer_verdicts(table: &Table) -> Vec<String> {
    let wall = |label: &str| table.row(label).and_then(super::table::Row::wall);
    vec![
        at_most("layer on overlay", wall("obuild overlay"), 20.0),
        at_most("layer on btrfs", wall("obuild btrfs"), 50.0),
    ]
}

pub(super) fn archive_push(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let context = arena.inputs.join("archive");
    fs_err::create_dir_all(context.join("files"))?;
    let mut random = fs_err::File::open("/dev/urandom")?;
    let mut bytes = vec![0; FILE_BYTES];
    let mut fresh = |path: PathBuf| -> Result<()> {
        random.read_exact(&mut bytes)?;
        Ok(fs_err::write(path, &bytes)?)
    };
    for file in 0..ARCHIVE {
        fresh(context.join(format!("files/{file}")))?;
    }
    let server = Server::start(&arena.inputs.join("registry"))?;
    let mut rows: Vec<_> = arena
        .builders
        .iter()
        .map(|builder| row(&builder.label(), None))
        .collect();
    let mut sent: Vec<Vec<u64>> = vec![Vec::new(); rows.len()];
    // The first fills the registry.
    for run in 0..=arena.runs {
        fresh(context.join("new"))?;
        for (place, builder) in arena.builders.iter_mut().enumerate() {
            if !rows[place].note.is_empty() {
                continue;
            }
            let job = Publish {
                context: context.clone(),
                name: format!("{}/archive-{place}:latest", server.address),
            };
            settle();
            let before = server.sent.load(Ordering::Relaxed);
            match builder.publish(meter, &job) {
                Ok(Some(sample)) if run > 0 => {
                    eprintln!("{}: {:.1?}", rows[place].label, sample.wall);
                    rows[place].samples.push(sample);
                    sent[place].push(server.sent.load(Ordering::Relaxed) - before);
                }
                Ok(_) => {}
                Err(error) if is_ours(&rows[place].label) => return Err(error),
                Err(error) => rows[place].note = format!("failed: {error:#}"),
            }
        }
    }
    for (row, sent) in rows.iter_mut().zip(&mut sent) {
        sent.sort_unstable();
        if let Some(median) = sent.get(sent.len() / 2) {
            row.note = format!("{median} bytes sent");
        }
    }
    rows.retain(|row| !row.samples.is_empty() || !row.note.is_empty());
    Ok(Table {
        title: format!(
            "a file of {FILE_BYTES} bytes added to an image of {ARCHIVE} such, built and pushed"
        ),
        per: 1,
        rows,
    })
}

pub(super) fn archive_push_verdicts(table: &Table) -> Vec<String> {
    let row = ours(table);
    let sent = row.and_then(|row| row.note.split(' ').next()?.parse::<u64>().ok());
    let limit = FILE_BYTES as u64 + ROOM;
    vec![
        at_most(
            "build and push",
            row.and_then(super::table::Row::wall),
            150.0,
        ),
        match sent {
            Some(sent) => format!(
                "{}: {sent} bytes sent (at most {limit})",
                word(sent <= limit)
            ),
            None => "not measured: bytes sent".to_owned(),
        },
    ]
}

/// A registry behind a door that counts what goes in.
pub(super) struct Server {
    pub(super) address: String,
    pub(super) sent: Arc<AtomicU64>,
    _registry: Background,
}

impl Server {
    pub(super) fn start(directory: &Path) -> Result<Self> {
        anyhow::ensure!(
            workspace::find_program("docker-registry").is_some(),
            "docker-registry is not installed (--install does)"
        );
        fs_err::create_dir_all(directory.join("data"))?;
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let file = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            directory.join("data").display()
        );
        fs_err::write(&file, text)?;
        let command = Cmd::new("docker-registry").arg("serve").arg(&file);
        let mut registry = Background::start(command, &directory.join("log"))?;
        let mut attempts = 0;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            attempts += 1;
            anyhow::ensure!(
                attempts < 100 && registry.is_running(),
                "docker-registry does not come up"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let door = TcpListener::bind("127.0.0.1:0")?;
        let address = door.local_addr()?.to_string();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        std::thread::Builder::new()
            .name("door".to_owned())
            .spawn(move || {
                for stream in door.incoming().flatten() {
                    let counter = Arc::clone(&counter);
                    std::thread::spawn(move || carry(&stream, port, &counter));
                }
            })
            .context("start a thread")?;
        Ok(Self {
            address,
            sent,
            _registry: registry,
        })
    }
}

/// Carries one connection to the registry and back; it ends when both sides have ended.
fn carry(client: &TcpStream, port: u16, sent: &AtomicU64) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
        return;
    };
    let pass = |mut from: &TcpStream, mut to: &TcpStream, counter: Option<&AtomicU64>| {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer) {
            if let Some(counter) = counter {
                counter.fetch_add(count as u64, Ordering::Relaxed);
            }
            if count == 0 || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Write).ok();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| pass(client, &server, Some(sent)));
        pass(&server, client, None);
    });
}

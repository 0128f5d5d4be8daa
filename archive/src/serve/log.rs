// SPDX-License-Identifier: Apache-2.0
//! The access log. Workers collect lines and hand them over in blocks to one thread that writes; when that cannot keep up, lines are lost and
//! counted, and no client waits.

use super::Error;
use super::clock::Clock;
use super::metrics::Metrics;
use super::request::{Request, Version};
use fs_err::File;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

/// A block of lines is handed over when it has this size, and each second.
const BLOCK_BYTES: usize = 32 << 10;
/// Blocks that may wait for the writer.
const WAITING: usize = 32;

/// Where the access log goes and how it looks.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// A file, opened anew by [`Handle::reload`](super::Handle::reload); `None` is standard output.
    pub file: Option<PathBuf>,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the access log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Apache's combined format.
    Combined,
    /// One JSON object a line.
    Json,
}

/// The thread that writes.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) format: LogFormat,
    sender: SyncSender<Message>,
}

#[derive(Debug)]
enum Message {
    Lines(Vec<u8>),
    Reopen,
    Flush(SyncSender<()>),
}

impl Writer {
    pub(super) fn start(log: &AccessLog) -> Result<Self, Error> {
        let output = Output::open(log.file.as_deref())?;
        let (sender, receiver) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(output, &receiver))
            .map_err(Error::Thread)?;
        Ok(Self {
            format: log.format,
            sender,
        })
    }

    /// Opens the file anew, as after a rotation.
    pub(super) fn reopen(&self) {
        // A writer that is gone has nothing to open.
        let _ = self.sender.try_send(Message::Reopen);
    }

    /// Waits until all is written that was handed over.
    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.sender.send(Message::Flush(done)).is_ok() {
            // A disk that hangs must not keep us from stopping.
            let _ = wait.recv_timeout(std::time::Duration::from_secs(5));
        }
    }
}

enum Output {
    Stdout,
    File(PathBuf, File),
}

impl Output {
    fn open(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self::Stdout);
        };
        let file = fs_err::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(Error::File)?;
        Ok(Self::File(path.to_owned(), file))
    }
}

fn write(mut output: Output, receiver: &Receiver<Message>) {
    let mut failing = false;
    for message in receiver {
        match message {
            Message::Lines(lines) => {
                let result = match &mut output {
                    Output::Stdout => std::io::stdout().write_all(&lines),
                    Output::File(_, file) => file.write_all(&lines),
                };
                match result {
                    Err(ref error) if !failing => {
                        tracing::error!(%error, "cannot write the access log");
                    }
                    _ => {}
                }
                failing = result.is_err();
            }
            Message::Reopen => {
                if let Output::File(path, _) = &output {
                    match Output::open(Some(path)) {
                        Ok(anew) => output = anew,
                        Err(error) => tracing::error!(%error, "cannot open the access log anew"),
                    }
                }
            }
            // Nobody waits any more: fine.
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

/// What is logged of a request, kept until its answer is sent.
pub(super) struct Record {
    target: String,
    verb: String,
    version: Version,
    referer: Option<String>,
    agent: Option<String>,
    began: Instant,
}

impl Record {
    pub(super) fn new(verb: &str, version: Version, request: &Request<'_>) -> Self {
        let text = |field: Option<&[u8]>| {
            field.map(|field| String::from_utf8_lossy(&field[..field.len().min(1024)]).into_owned())
        };
        Self {
            target: request.target.to_owned(),
            verb: verb.to_owned(),
            version,
            referer: text(request.fields.referer),
            agent: text(request.fields.user_agent),
            began: Instant::now(),
        }
    }
}

/// One worker's lines.
pub(super) struct Lines {
    writer: Writer,
    block: RefCell<Vec<u8>>,
}

impl Lines {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            block: RefCell::default(),
        }
    }

    /// Adds a line.
    pub(super) fn add(
        &self,
        metrics: &Metrics,
        clock: &Clock,
        peer: IpAddr,
        record: &Record,
        status: u16,
        bytes: u64,
    ) {
        let mut line = String::with_capacity(256);
        // Writing to a string cannot fail, nor can text become JSON.
        let _ = match self.writer.format {
            LogFormat::Combined => clock.log(|now| {
                write!(
                    line,
                    "{peer} - - [{now}] \"{} {} {}\" {status} {bytes} \"{}\" \"{}\"",
                    Escaped(&record.verb),
                    Escaped(&record.target),
                    record.version.name(),
                    Escaped(record.referer.as_deref().unwrap_or("-")),
                    Escaped(record.agent.as_deref().unwrap_or("-")),
                )
            }),
            LogFormat::Json => {
                let object = serde_json::json!({
                    "time": super::clock::seconds(),
                    "peer": peer,
                    "method": record.verb,
                    "target": record.target,
                    "protocol": record.version.name(),
                    "status": status,
                    "bytes": bytes,
                    "microseconds": u64::try_from(record.began.elapsed().as_micros()).unwrap_or(u64::MAX),
                    "referer": record.referer,
                    "agent": record.agent,
                });
                write!(line, "{object}")
            }
        };
        line.push('\n');
        let mut block = self.block.borrow_mut();
        block.extend_from_slice(line.as_bytes());
        if block.len() >= BLOCK_BYTES {
            drop(block);
            self.hand_over(metrics);
        }
    }

    /// Hands over what was collected.
    pub(super) fn hand_over(&self, metrics: &Metrics) {
        let block = self.block.take();
        if block.is_empty() {
            return;
        }
        if let Err(error) = self.writer.sender.try_send(Message::Lines(block)) {
            let (std::sync::mpsc::TrySendError::Full(Message::Lines(lines))
            | std::sync::mpsc::TrySendError::Disconnected(Message::Lines(lines))) = error
            else {
                return;
            };
            let count = String::from_utf8_lossy(&lines).lines().count();
            Metrics::add(&metrics.log_lines_lost, count as u64);
        }
    }
}

/// Text of a client inside quotes: what could end them, or drive a terminal, is escaped as nginx does (`\x22`).
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for char in self.0.chars() {
            match char {
                '"' | '\\' => write!(formatter, "\\x{:02x}", u32::from(char))?,
                ' '..='~' => formatter.write_char(char)?,
                char => {
                    let mut bytes = [0; 4];
                    for byte in char.encode_utf8(&mut bytes).bytes() {
                        write!(formatter, "\\x{byte:02x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Escaped;

    #[test]
    fn nothing_breaks_out_of_a_line() {
        assert_eq!(
            Escaped("a\" \\ \x1b[2J\né~").to_string(),
            "a\\x22 \\x5c \\x1b[2J\\x0a\\xc3\\xa9~"
        );
    }
}

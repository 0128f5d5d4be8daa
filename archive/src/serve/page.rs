// SPDX-License-Identifier: Apache-2.0
//! The page for people: what is served, what is missing and what happened lately. Without scripts, in the reader's own colours, and with
//! everything from outside escaped.

use super::Shared;
use super::clock::seconds;
use super::conditions::written;
use super::files::Found;
use super::place::Kind;
use super::worker::Worker;
use crate::state::{Missing, Status, SyncRecord};
use std::fmt::{self, Display, Write as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2129; --dim: #5b6472; --line: #d9dee6; --paper: #fff; --soft: #f5f7fa; --accent: #b45309; --good: #15803d; --bad: #b91c1c }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #9aa4b2; --line: #323a46; --paper: #14181f; --soft: #1c222b; --accent: #f2a65a; --good: #4ade80; --bad: #f87171 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; letter-spacing: -.01em } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem }
p, li { overflow-wrap: anywhere } p { margin: .4rem 0 } .dim, small { color: var(--dim) } .good { color: var(--good) } .bad { color: var(--bad) }
code, pre { font: .875em/1.5 ui-monospace, monospace } pre { background: var(--soft); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere }
.facts { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0 }
.facts li { background: var(--soft); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; font-size: 1.1rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.facts small { display: block; font-size: .85rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .9rem }
th { text-align: left; color: var(--dim); font-weight: 500 } th, td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top } td time { white-space: nowrap } .cards td { overflow-wrap: anywhere } details { max-width: 40rem; overflow-wrap: anywhere }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } a { color: var(--accent) }
@media (max-width: 40rem) { .cards thead { display: none } .cards tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line) } .cards td { display: block; padding: .1rem 0; border: 0 } .cards td[data-name]::before { content: attr(data-name) \" \"; color: var(--dim) } }
";

/// Rows of a table beyond which it is only said how many more there are: the page stays one for people.
const ROWS: usize = 200;

/// Renders the page.
pub(super) fn render(worker: &Worker) -> String {
    let mut page = String::with_capacity(16 << 10);
    // Writing to a string cannot fail.
    let _ = write_page(&mut page, worker);
    page
}

fn write_page(page: &mut String, worker: &Worker) -> fmt::Result {
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>opam archive</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
<header>\n<h1>opam archive</h1>\n<p class=\"dim\">Package index and sources for opam. To use this server:</p>\n\
<pre>opam repository set-url default https://THIS-SERVER</pre>\n</header>\n<main>\n"
    )?;
    write_archive(page, worker)?;
    write_updates(page, worker)?;
    write_server(page, worker)?;
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(())
}

/// What is served, as the last sync left it.
fn write_archive(page: &mut String, worker: &Worker) -> fmt::Result {
    let reading = worker.shared.standing.current();
    let status = reading.as_ref().map(|reading| &reading.status);
    page.push_str("<section>\n");
    if let Some(status) = status.filter(|status| !status.repository.is_empty()) {
        write!(
            page,
            "<p>Made from <code>{}</code>",
            Escaped(&status.repository)
        )?;
        if let Some(revision) = &status.revision {
            write!(page, ", <code>{}</code>", Escaped(revision))?;
        }
        if let Some(commit) = &status.commit {
            write!(page, " at commit <code>{}</code>", Escaped(commit))?;
        }
        if let Some(checked) = status.checked {
            write!(page, ", last looked at {}", Ago(checked))?;
        }
        page.push_str(".</p>\n");
    }
    page.push_str("<ul class=\"facts\">\n");
    if let Some(status) = status {
        write_fact(page, "Packages", Grouped(status.packages))?;
        write_fact(page, "Archives", Grouped(status.archives))?;
        write_fact(page, "Size", Size(status.bytes))?;
        let missing = status.missing.len() as u64;
        let class = if missing == 0 { "good" } else { "bad" };
        write_fact(page, "Missing", Classed(class, Grouped(missing)))?;
    }
    let now = Instant::now();
    let root = [&worker.shared.root];
    if let Found::File(index) = worker.files.find(&root, "index.tar.gz", &Kind::Index, now) {
        write_fact(page, "Index", Size(index.size))?;
        write_fact(page, "Index made", Ago(index.modified))?;
    } else {
        write_fact(page, "Index", Classed("bad", "none yet"))?;
    }
    page.push_str("</ul>\n</section>\n");
    if let Some(status) = status {
        write_missing(page, &status.missing)?;
        write_syncs(page, &status.syncs)?;
        write_notes(page, status)?;
    }
    Ok(())
}

fn write_missing(page: &mut String, missing: &[Missing]) -> fmt::Result {
    if missing.is_empty() {
        return Ok(());
    }
    page.push_str("<section>\n<h2>Missing archives</h2>\n<table class=\"cards\">\n<thead><tr><th>Package</th><th>Since</th><th>Why</th><th>Next try</th></tr></thead>\n<tbody>\n");
    for archive in missing.iter().take(ROWS) {
        page.push_str("<tr><td>");
        let shown = 3;
        for (number, package) in archive.packages.iter().take(shown).enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(page, "{comma}{}", Escaped(package))?;
        }
        if archive.packages.len() > shown {
            write!(
                page,
                " <small>and {} more</small>",
                archive.packages.len() - shown
            )?;
        }
        write!(
            page,
            "</td><td data-name=\"since\">{}</td><td><details><summary>{}</summary>",
            Ago(archive.since),
            Escaped(archive.kind)
        )?;
        for attempt in &archive.attempts {
            write!(
                page,
                "<p><code>{}</code><br>{}</p>",
                Escaped(&attempt.url),
                Escaped(&attempt.reason)
            )?;
        }
        for checksum in &archive.checksums {
            write!(
                page,
                "<p><small><code>{}</code></small></p>",
                Escaped(checksum)
            )?;
        }
        writeln!(
            page,
            "</details></td><td data-name=\"next try\">{}</td></tr>",
            Ago(archive.next)
        )?;
    }
    page.push_str("</tbody>\n</table>\n");
    write_more(page, missing.len())?;
    page.push_str("</section>\n");
    Ok(())
}

fn write_syncs(page: &mut String, syncs: &[SyncRecord]) -> fmt::Result {
    if syncs.is_empty() {
        return Ok(());
    }
    page.push_str("<section>\n<h2>Last syncs</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>Begun</th><th>To commit</th><th class=\"number\">Packages read</th><th class=\"number\">Removed</th><th class=\"number\">Archives fetched</th><th class=\"number\">Failed</th><th class=\"number\">Took</th></tr></thead>\n<tbody>\n");
    for sync in syncs.iter().take(20) {
        let commit = sync.to.get(..12).unwrap_or(&sync.to);
        let bytes = match sync.fetched {
            0 => String::new(),
            _ => format!(" <small>{}</small>", Size(sync.fetched_bytes)),
        };
        writeln!(
            page,
            "<tr><td>{}</td><td><code>{}</code></td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
            Ago(sync.started),
            Escaped(commit),
            Grouped(sync.packages_read),
            Grouped(sync.packages_removed),
            Grouped(sync.fetched),
            bytes,
            Classed(
                if sync.failed > 0 { "bad" } else { "dim" },
                Grouped(sync.failed)
            ),
            Took(Duration::from_millis(sync.milliseconds))
        )?;
    }
    page.push_str("</tbody>\n</table></div>\n</section>\n");
    Ok(())
}

/// What is wrong with opam files, and what of the repository is not passed on.
fn write_notes(page: &mut String, status: &Status) -> fmt::Result {
    let count = status.notes.len() + status.skipped.len();
    if count == 0 {
        return Ok(());
    }
    write!(
        page,
        "<section>\n<h2>Remarks on the repository</h2>\n<details><summary>Remarks: {}</summary>\n<ul>\n",
        Grouped(count as u64)
    )?;
    for (path, reason) in status.skipped.iter().take(ROWS) {
        writeln!(
            page,
            "<li><code>{}</code>: {}</li>",
            Escaped(path),
            Escaped(reason)
        )?;
    }
    for note in status.notes.iter().take(ROWS) {
        writeln!(
            page,
            "<li><code>{}:{}</code>: {}</li>",
            Escaped(&note.path),
            note.line,
            Escaped(&note.message)
        )?;
    }
    page.push_str("</ul>\n");
    write_more(page, status.notes.len().max(status.skipped.len()))?;
    page.push_str("</details>\n</section>\n");
    Ok(())
}

fn write_more(page: &mut String, count: usize) -> fmt::Result {
    if count <= ROWS {
        return Ok(());
    }
    writeln!(
        page,
        "<p class=\"dim\">{} more are in <a href=\"/status.json\">status.json</a>.</p>",
        Grouped((count - ROWS) as u64)
    )
}

/// What this server itself set off.
fn write_updates(page: &mut String, worker: &Worker) -> fmt::Result {
    let updates = &worker.shared.updates;
    let history = updates.history();
    if history.is_empty() && !updates.running() {
        return Ok(());
    }
    page.push_str("<section>\n<h2>Updates</h2>\n");
    if updates.running() {
        page.push_str("<p class=\"good\">An update is running.</p>\n");
    }
    page.push_str("<div class=\"scroll\"><table>\n<thead><tr><th>Begun</th><th>By</th><th class=\"number\">Took</th><th>Result</th></tr></thead>\n<tbody>\n");
    for ran in &history {
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=\"number\">{}</td>",
            Ago(ran.began),
            ran.cause,
            Took(ran.took)
        )?;
        match &ran.error {
            None => page.push_str("<td class=\"good\">done</td></tr>\n"),
            Some(error) => writeln!(page, "<td class=\"bad\">{}</td></tr>", Escaped(error))?,
        }
    }
    page.push_str("</tbody>\n</table></div>\n</section>\n");
    Ok(())
}

fn write_server(page: &mut String, worker: &Worker) -> fmt::Result {
    let shared = &worker.shared;
    let metrics = &shared.metrics;
    page.push_str("<section>\n<h2>Server</h2>\n<ul class=\"facts\">\n");
    write_fact(page, "Running since", Ago(shared.started))?;
    write_fact(page, "Requests", Grouped(metrics.requests()))?;
    let sent = metrics.sent_bytes.load(Ordering::Relaxed);
    write_fact(page, "Sent", Size(sent))?;
    write_fact(page, "Connections", Grouped(shared.table.open() as u64))?;
    write_certificate(page, shared)?;
    writeln!(
        page,
        "<p class=\"dim\">obuild {} · <a href=\"/metrics\">metrics</a></p>\n</section>",
        env!("CARGO_PKG_VERSION")
    )
}

/// Until when the certificate is good, and why there is no newer one.
fn write_certificate(page: &mut String, shared: &Shared) -> fmt::Result {
    if let Some(tls) = &shared.tls {
        match tls.expiry() {
            Some(until) => {
                let class = if until > seconds() { "good" } else { "bad" };
                write_fact(page, "Certificate ends", Classed(class, Ago(until)))?;
            }
            None => write_fact(page, "Certificate", Classed("bad", "none yet"))?,
        }
    }
    page.push_str("</ul>\n");
    if let Some(acme) = &shared.acme
        && let Some(failure) = acme.failure()
    {
        writeln!(
            page,
            "<p><span class=\"bad\">No new certificate came:</span> {}. Next try {}.</p>",
            Escaped(&failure),
            Ago(acme.next())
        )?;
    }
    Ok(())
}

fn write_fact(page: &mut String, name: &str, value: impl Display) -> fmt::Result {
    writeln!(page, "<li><small>{}</small>{value}</li>", Escaped(name))
}

/// A value in a colour.
struct Classed<T>(&'static str, T);

impl<T: Display> Display for Classed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "<span class=\"{}\">{}</span>", self.0, self.1)
    }
}

/// Text in HTML, inside and outside of attributes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                // Not allowed in a document; of the others, marks that turn the direction of text around hide what it says.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    formatter.write_char('\u{fffd}')?;
                }
                char if char.is_control() && char != '\n' && char != '\t' => {
                    formatter.write_char('\u{fffd}')?;
                }
                char => formatter.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// A time in seconds since 1970, as people say it; exactly when the pointer rests on it.
struct Ago(u64);

impl Display for Ago {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Sat, 21 Nov 2026 07:00:00 GMT`
        let exact = written(self.0).unwrap_or_default();
        let now = seconds();
        write!(formatter, "<time title=\"{exact}\">")?;
        let (distance, tail) = if self.0 > now {
            formatter.write_str("in ")?;
            (self.0 - now, "")
        } else {
            (now - self.0, " ago")
        };
        let (count, unit) = match distance {
            0..60 => (distance, "second"),
            60..3600 => (distance / 60, "minute"),
            3600..172_800 => (distance / 3600, "hour"),
            _ => (distance / 86_400, "day"),
        };
        let plural = if count == 1 { "" } else { "s" };
        write!(formatter, "{count} {unit}{plural}{tail}</time>")
    }
}

struct Took(Duration);

impl Display for Took {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(formatter, "{} ms", self.0.as_millis()),
            1..60 => write!(formatter, "{:.1} s", self.0.as_secs_f32()),
            60..3600 => write!(formatter, "{} min {} s", seconds / 60, seconds % 60),
            _ => write!(formatter, "{} h {} min", seconds / 3600, seconds / 60 % 60),
        }
    }
}

/// A number with its digits in groups of three.
struct Grouped(u64);

impl Display for Grouped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                formatter.write_char('\u{202f}')?;
            }
            formatter.write_char(digit)?;
        }
        Ok(())
    }
}

struct Size(u64);

impl Display for Size {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KB", "MB", "GB", "TB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < units.len() {
            value /= 1000.0;
            unit += 1;
        }
        let digits = usize::from(unit > 0 && value < 99.5);
        write!(formatter, "{value:.digits$} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::{Ago, Escaped, Grouped, Size, Took};
    use crate::serve::clock::seconds;
    use std::time::Duration;

    #[test]
    fn nothing_from_outside_is_markup() {
        assert_eq!(
            Escaped("<a href='x\">&\u{202e}\u{7}").to_string(),
            "&lt;a href=&#39;x&quot;&gt;&amp;\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(Grouped(1_234_567).to_string(), "1\u{202f}234\u{202f}567");
        assert_eq!(Grouped(999).to_string(), "999");
        assert_eq!(Size(999).to_string(), "999 B");
        assert_eq!(Size(25_300_000_000).to_string(), "25.3 GB");
        assert_eq!(Size(999_999).to_string(), "1.0 MB");
        assert_eq!(Took(Duration::from_secs(3700)).to_string(), "1 h 1 min");
        assert!(Ago(seconds() - 120).to_string().contains(">2 minutes ago<"));
        assert!(Ago(seconds() + 7300).to_string().contains(">in 2 hours<"));
    }
}

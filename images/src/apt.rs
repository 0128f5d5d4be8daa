// SPDX-License-Identifier: Apache-2.0
//! Where the host gets its packages from: sources.list(5), both formats, and the settings of apt.conf(5) that belong to it.

use crate::Error;
use std::path::{Path, PathBuf};

/// Options of a source that decide whether its mirror is accepted (sources.list(5)).
const OPTIONS: [&str; 5] = [
    "signed-by",
    "trusted",
    "check-valid-until",
    "check-date",
    "allow-insecure",
];

/// One place that packages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AptSource {
    /// The mirror; may hold credentials.
    pub(crate) uri: String,
    /// `bookworm`, `bookworm-updates`, …
    pub(crate) suite: String,
    /// `main`, `contrib`, …
    pub(crate) components: Vec<String>,
    /// Those of [`OPTIONS`] that are set.
    pub(crate) options: Vec<(String, String)>,
}

impl AptSource {
    /// Returns the value of an option.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the keyring that the source is signed by, if it is a file that gpgv reads.
    pub(crate) fn keyring(&self) -> Option<PathBuf> {
        let path = Path::new(self.option("signed-by")?);
        let readable =
            path.is_absolute() && path.extension().is_some_and(|extension| extension == "gpg");
        readable.then(|| path.to_owned())
    }

    /// Returns the source as a line of sources.list(5), without credentials.
    pub(crate) fn line(&self) -> String {
        let options: Vec<String> = self
            .options
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let options = if options.is_empty() {
            String::new()
        } else {
            format!("[{}] ", options.join(" "))
        };
        format!(
            "deb {options}{} {} {}",
            without_credentials(&self.uri),
            self.suite,
            self.components.join(" ")
        )
    }
}

/// Reads all enabled binary sources of an apt configuration directory.
///
/// What does not parse is left out, as no reader but apt itself knows everything that may stand there.
pub(crate) fn read_sources(apt: &Path) -> Result<Vec<AptSource>, Error> {
    let mut sources = Vec::new();
    if let Some(text) = read(&apt.join("sources.list"))? {
        parse_list(&text, &mut sources);
    }
    let directory = apt.join("sources.list.d");
    let mut files: Vec<PathBuf> = match fs_err::read_dir(&directory) {
        Ok(entries) => entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect(),
        Err(_) => Vec::new(),
    };
    files.sort();
    for file in files {
        let parse = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => parse_list,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        if let Some(text) = read(&file)? {
            parse(&text, &mut sources);
        }
    }
    Ok(sources)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs_err::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// Parses the one-line format: `deb [option=value …] URI SUITE COMPONENT…`.
fn parse_list(text: &str, sources: &mut Vec<AptSource>) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(line) = line
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t', '[']))
        else {
            continue;
        };
        let line = line.trim_start();
        let (options, rest) = match line.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some(split) => split,
                None => continue,
            },
            None => ("", line),
        };
        let options = options
            .split_whitespace()
            .filter_map(|option| option.split_once('='));
        let options = wanted(options.map(|(name, value)| (name.to_lowercase(), value.to_owned())));
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            add(
                sources,
                uri,
                suite,
                words.map(str::to_owned).collect(),
                options,
            );
        }
    }
}

/// Parses stanzas of fields.
fn parse_deb822(text: &str, sources: &mut Vec<AptSource>) {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            take_stanza(&fields, sources);
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
}

fn take_stanza(fields: &[(String, String)], sources: &mut Vec<AptSource>) {
    let field = |name: &str| {
        fields
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value.as_str())
    };
    let disabled = ["no", "false", "0", "off", "without", "disable"]
        .contains(&field("enabled").to_lowercase().as_str());
    if disabled || !field("types").split_whitespace().any(|kind| kind == "deb") {
        return;
    }
    let components: Vec<String> = field("components")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    // A key block inside the field has several lines; it does not fit a line of sources.list.
    let options = fields
        .iter()
        .filter(|(_, value)| !value.contains(char::is_whitespace));
    let options = wanted(options.map(|(name, value)| (name.clone(), value.clone())));
    for uri in field("uris").split_whitespace() {
        for suite in field("suites").split_whitespace() {
            add(sources, uri, suite, components.clone(), options.clone());
        }
    }
}

fn wanted(options: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    options
        .filter(|(name, value)| OPTIONS.contains(&name.as_str()) && !value.is_empty())
        .collect()
}

fn add(
    sources: &mut Vec<AptSource>,
    uri: &str,
    suite: &str,
    components: Vec<String>,
    options: Vec<(String, String)>,
) {
    // A suite that ends in a slash is a plain directory, nothing to bootstrap from.
    let usable = !suite.ends_with('/') && !components.is_empty() && uri.contains(":/");
    let source = AptSource {
        uri: uri.to_owned(),
        suite: suite.to_owned(),
        components,
        options,
    };
    if usable && !sources.contains(&source) {
        sources.push(source);
    }
}

/// Returns a URL without `user:password@`.
pub(crate) fn without_credentials(url: &str) -> String {
    if let Some((scheme, rest)) = url.split_once("://") {
        let end = rest.find('/').unwrap_or(rest.len());
        if let Some(at) = rest[..end].rfind('@') {
            return format!("{scheme}://{}", &rest[at + 1..]);
        }
    }
    url.to_owned()
}

/// Settings of the host's apt that a tree needs to reach the same mirror, from the output of `apt-config dump`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AptSettings {
    /// Lines for a file in `apt.conf.d`; without credentials.
    pub(crate) lines: Vec<String>,
    /// The proxy for HTTP; may hold credentials.
    pub(crate) http_proxy: Option<String>,
    /// The proxy for HTTPS; may hold credentials.
    pub(crate) https_proxy: Option<String>,
}

/// Picks what belongs to the way to the mirror; everything else, all credentials among it, stays on the host.
pub(crate) fn pick_settings(dump: &str) -> AptSettings {
    let mut settings = AptSettings::default();
    for line in dump.lines() {
        let Some((name, value)) = line.trim_end().split_once(' ') else {
            continue;
        };
        let Some(value) = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix("\";"))
        else {
            continue;
        };
        if value.is_empty() || value.contains('"') {
            continue;
        }
        match name.to_lowercase().as_str() {
            "acquire::check-valid-until" | "acquire::check-date" | "acquire::max-futuretime" => {}
            "acquire::http::proxy" => settings.http_proxy = Some(value.to_owned()),
            "acquire::https::proxy" => settings.https_proxy = Some(value.to_owned()),
            _ => continue,
        }
        // A proxy that wants a password is of no use without it, and passwords do not go into snapshots.
        if without_credentials(value) == value {
            settings.lines.push(format!("{name} \"{value}\";"));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::{parse_deb822, parse_list, pick_settings, without_credentials};

    #[test]
    fn both_formats_are_read() {
        let mut list = Vec::new();
        parse_list(
            "# deb http://no x main\n\
             deb-src http://no x main\n\
             deb [arch=amd64 signed-by=/k.gpg trusted=yes] http://u:p@m/debian bookworm main contrib # note\n\
             deb http://m/debian bookworm-updates main\n\
             deb http://m/flat ./\n\
             deb [broken http://m x main\n",
            &mut list,
        );
        assert_eq!(list.len(), 2);
        assert_eq!(
            list[0].line(),
            "deb [signed-by=/k.gpg trusted=yes] http://m/debian bookworm main contrib"
        );
        assert_eq!(list[0].keyring().as_deref(), Some("/k.gpg".as_ref()));
        assert_eq!(list[1].line(), "deb http://m/debian bookworm-updates main");

        let mut stanzas = Vec::new();
        parse_deb822(
            "Types: deb deb-src\n# remark\nURIs: http://a/d http://b/d\nSuites: x x-updates\nComponents: main\n\
             Signed-By:\n -----BEGIN PGP\n .\n abc\n\n\nTypes: deb\nEnabled: no\nURIs: http://c\nSuites: x\nComponents: main\n\n\
             Types: deb-src\nURIs: http://c\nSuites: x\nComponents: main",
            &mut stanzas,
        );
        let lines: Vec<String> = stanzas.iter().map(super::AptSource::line).collect();
        assert_eq!(
            lines,
            [
                "deb http://a/d x main",
                "deb http://a/d x-updates main",
                "deb http://b/d x main",
                "deb http://b/d x-updates main"
            ]
        );
    }

    #[test]
    fn credentials_stay_on_the_host() {
        assert_eq!(without_credentials("http://u:p@h/x@y"), "http://h/x@y");
        assert_eq!(without_credentials("http://h/x@y"), "http://h/x@y");
        let settings = pick_settings(
            "Acquire \"\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::http::Proxy \"http://u:p@proxy:1/\";\n\
             Acquire::https::Proxy \"http://proxy:2/\";\nAcquire::https::SslKey \"/key\";\nDPkg::Post-Invoke:: \"x\";\n",
        );
        assert_eq!(
            settings.lines,
            [
                "Acquire::Check-Valid-Until \"false\";",
                "Acquire::https::Proxy \"http://proxy:2/\";"
            ]
        );
        assert_eq!(settings.http_proxy.as_deref(), Some("http://u:p@proxy:1/"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Reads archives of images as `docker save` writes them: github.com/moby/moby, image/spec/v1.2.md, "Combined Image JSON + Filesystem
//! Changeset Format". Layers are used where they lie in the archive; they are not copied out first.

use crate::Error;
use crate::digest::Digest;
use crate::layout::{Image, Layer, MAX_DOCUMENT, Part, read_configuration};
use crate::registry::{Client, ImageName};
use crate::stream::decoder;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tar::EntryType;

/// Entries of an archive; images have a handful for each layer.
const MAX_ENTRIES: usize = 100_000;
/// Links that lead to links.
const MAX_LINKS: usize = 8;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Where an entry's content is.
enum Place {
    Bytes { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// Returns the archive itself, or what it is when it is not compressed, in a file without a name.
pub(crate) fn expand(
    file: File,
    path: &Path,
    client: Option<&Arc<Client>>,
    cancelled: &dyn Fn() -> bool,
) -> Result<File, Error> {
    let read = |source| Error::io("read", path, source);
    let copy = file.try_clone().map_err(read)?;
    let Some(mut content) = decoder(copy).map_err(read)? else {
        return Ok(file);
    };
    let client = client.ok_or_else(|| bad(path, "it is compressed"))?;
    let mut plain = client.scratch()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        match content.read(&mut buffer) {
            Ok(0) => return Ok(plain),
            Ok(length) => plain
                .write_all(&buffer[..length])
                .map_err(|source| Error::io("decompress", path, source))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read(error)),
        }
    }
}

/// Finds an image in an archive that is not compressed: by its name, by its number after `@`, or the only one.
pub(crate) fn read_archive(file: File, path: &Path, wanted: Option<&str>) -> Result<Image, Error> {
    let archive = Archive {
        entries: entries(&file, path)?,
        file: Arc::new(file),
        path,
    };
    let items: Vec<Item> = archive.json("manifest.json")?;
    let item = choose(&items, path, wanted)?;
    let (diff_ids, config) = read_configuration(path, &archive.document(&item.config)?)?;
    if diff_ids.len() != item.layers.len() {
        return Err(bad(
            path,
            "its manifest and its configuration have different layers",
        ));
    }
    let layer = |(name, diff_id): (&String, &String)| {
        let (offset, size) = archive.find(name)?;
        Ok(Layer {
            path: path.to_owned(),
            part: Some(Part {
                file: Arc::clone(&archive.file),
                offset,
            }),
            digest: None,
            size,
            diff_id: Digest::parse(diff_id).map_err(|reason| bad(path, reason))?,
            media_type: String::new(),
        })
    };
    let layers = item.layers.iter().zip(&diff_ids).map(layer);
    Ok(Image {
        layers: layers.collect::<Result<_, Error>>()?,
        config,
    })
}

fn choose<'i>(items: &'i [Item], path: &Path, wanted: Option<&str>) -> Result<&'i Item, Error> {
    let tags = || -> Vec<String> {
        let tags = items
            .iter()
            .flat_map(|item| item.repo_tags.iter().flatten());
        tags.cloned().collect()
    };
    let none = |tag: &str| Error::NoSuchTag {
        layout: path.to_owned(),
        tag: tag.to_owned(),
        tags: tags(),
    };
    match (wanted, items) {
        (None, [one]) => Ok(one),
        (None, []) => Err(bad(path, "it holds no images")),
        (None, several) => Err(Error::Ambiguous {
            layout: path.to_owned(),
            count: several.len(),
            tags: tags(),
        }),
        (Some(wanted), items) => {
            if let Some(index) = wanted.strip_prefix('@') {
                let index = index.parse::<usize>().ok();
                return index
                    .and_then(|index| items.get(index))
                    .ok_or_else(|| none(wanted));
            }
            let name = wanted.parse::<ImageName>().ok();
            let has = |item: &&Item, fits: &dyn Fn(&ImageName) -> bool| {
                let mut tags = item.repo_tags.iter().flatten();
                tags.any(|tag| tag.parse().is_ok_and(|tag| fits(&tag)))
            };
            let named = items
                .iter()
                .find(|item| has(item, &|tag| Some(tag) == name.as_ref()));
            // A tag alone will do where only one image has it.
            let mut tagged = items
                .iter()
                .filter(|item| has(item, &|tag| tag.tag() == Some(wanted)));
            let tagged = tagged.next().filter(|_| tagged.next().is_none());
            named.or(tagged).ok_or_else(|| none(wanted))
        }
    }
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::BadImage {
        layout: path.to_owned(),
        reason: reason.into(),
    }
}

struct Archive<'a> {
    file: Arc<File>,
    path: &'a Path,
    entries: HashMap<Vec<u8>, Place>,
}

/// Lists what is in the archive, without reading any content.
fn entries(file: &File, path: &Path) -> Result<HashMap<Vec<u8>, Place>, Error> {
    let damaged = |error: io::Error| bad(path, format!("it is no archive of images ({error})"));
    let mut entries = HashMap::new();
    // Whoever has written it stands at its end.
    let mut start = file;
    start.rewind().map_err(damaged)?;
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let place = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => Place::Bytes {
                offset: entry.raw_file_position(),
                size: entry.size(),
            },
            EntryType::Link | EntryType::Symlink => {
                let Some(target) = entry.link_name_bytes() else {
                    continue;
                };
                let hard = entry.header().entry_type() == EntryType::Link;
                let own = entry.path_bytes();
                // A hard link names its target from the archive's top.
                let from: &[u8] = if hard { b"" } else { parent(&own) };
                Place::Link(clean(&[from, b"/", &target].concat()))
            }
            _ => continue,
        };
        if entries.len() == MAX_ENTRIES {
            return Err(bad(path, format!("it has more than {MAX_ENTRIES} entries")));
        }
        entries.insert(clean(&entry.path_bytes()), place);
    }
    Ok(entries)
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|&byte| byte == b'/')
        .map_or(b"", |slash| &path[..slash])
}

/// Takes `.`, `..` and double slashes out of a path; it stays below the archive's top.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

impl Archive<'_> {
    fn find(&self, name: &str) -> Result<(u64, u64), Error> {
        let mut name_now = clean(name.as_bytes());
        for _ in 0..MAX_LINKS {
            match self.entries.get(&name_now) {
                Some(Place::Bytes { offset, size }) => return Ok((*offset, *size)),
                Some(Place::Link(target)) => name_now.clone_from(target),
                None => break,
            }
        }
        Err(bad(self.path, format!("it lacks {name:?}")))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let (offset, size) = self.find(name)?;
        let length = usize::try_from(size).ok().filter(|_| size <= MAX_DOCUMENT);
        let too_large = || bad(self.path, format!("{name} is larger than 4 MiB"));
        let mut bytes = vec![0; length.ok_or_else(too_large)?];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|source| Error::io("read", self.path, source))?;
        Ok(bytes)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        serde_json::from_slice(&self.document(name)?).map_err(|source| Error::Json {
            path: self.path.to_owned(),
            what: "archive of images",
            source,
        })
    }
}

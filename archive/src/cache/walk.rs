// SPDX-License-Identifier: Apache-2.0
//! What is in the cache: each file with all its names.

use super::{Cache, CacheError, FileId};
use crate::{Algorithm, Checksum};
use fs_err as fs;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;

/// A file in the cache.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) size: u64,
    /// Its names, the strongest first.
    pub(crate) names: Vec<Checksum>,
}

/// What is in the cache.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) files: Vec<Entry>,
    /// Symbolic links that lead nowhere.
    pub(crate) dangling: Vec<Checksum>,
}

impl Cache {
    /// Lists the cache. What has no place in the layout is left out: it is not ours.
    pub(crate) fn walk(&self) -> Result<Contents, CacheError> {
        let mut contents = Contents::default();
        let mut places: HashMap<FileId, usize> = HashMap::new();
        for algorithm in Algorithm::ALL.into_iter().rev() {
            let prefixes = match fs::read_dir(self.directory.join(algorithm.name())) {
                Ok(prefixes) => prefixes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(CacheError::Directory(error)),
            };
            for prefix in prefixes {
                let prefix = prefix.map_err(CacheError::Directory)?;
                let names = match fs::read_dir(prefix.path()) {
                    Ok(names) => names,
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => continue,
                    Err(error) => return Err(CacheError::Directory(error)),
                };
                for name in names {
                    let name = name.map_err(CacheError::Directory)?;
                    let Some(checksum) = name
                        .file_name()
                        .to_str()
                        .and_then(|digest| Checksum::new(algorithm, digest).ok())
                        .filter(|checksum| self.path(checksum) == name.path())
                    else {
                        continue;
                    };
                    let metadata = match fs::metadata(name.path()) {
                        Ok(metadata) if metadata.is_file() => metadata,
                        Ok(_) => continue,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            contents.dangling.push(checksum);
                            continue;
                        }
                        Err(error) => return Err(CacheError::Read(error)),
                    };
                    let id = FileId::of(&metadata);
                    let place = *places.entry(id).or_insert_with(|| {
                        contents.files.push(Entry {
                            size: metadata.size(),
                            names: Vec::new(),
                        });
                        contents.files.len() - 1
                    });
                    contents.files[place].names.push(checksum);
                }
            }
        }
        Ok(contents)
    }
}

// SPDX-License-Identifier: Apache-2.0
//! From the table to what is to be fetched.

use crate::Checksum;
use crate::cache::Cache;
use crate::state::{Failure, State, Table};
use std::collections::{HashMap, HashSet};

/// An archive that is wanted: everything that is declared with the same checksums.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Its name in the list of failures.
    pub(super) key: String,
    /// What it must match, the strongest first.
    pub(super) checksums: Vec<Checksum>,
    /// Where to fetch it from, in order.
    pub(super) urls: Vec<String>,
    /// The opam files that declare it.
    pub(super) packages: Vec<String>,
}

/// What is to be fetched.
pub(super) struct Jobs {
    /// What is not there.
    pub(super) missing: Vec<Job>,
    /// How many were looked at and are there.
    pub(super) present: u64,
    /// The names of everything that is declared.
    pub(super) declared: HashSet<String>,
}

impl Jobs {
    /// Takes from the table what `wanted` says yes to, given an opam file and the failure of one of its archives, and that is not there.
    pub(super) fn choose(
        cache: &Cache,
        table: &Table,
        state: &State,
        wanted: impl Fn(&str, Option<&Failure>) -> bool,
    ) -> Self {
        let mut jobs: HashMap<String, (Job, bool)> = HashMap::new();
        for (path, package) in &table.packages {
            for source in &package.sources {
                let key = source.key();
                let wanted = wanted(path, state.failures.get(&key));
                let (job, is_wanted) = jobs.entry(key).or_insert_with_key(|key| {
                    let job = Job {
                        key: key.clone(),
                        checksums: source.checksums.clone(),
                        urls: Vec::new(),
                        packages: Vec::new(),
                    };
                    (job, false)
                });
                *is_wanted |= wanted;
                for url in std::iter::once(&source.url).chain(&source.mirrors) {
                    if !job.urls.contains(url) {
                        job.urls.push(url.clone());
                    }
                }
                if job.packages.last() != Some(path) {
                    job.packages.push(path.clone());
                }
            }
        }
        let mut found = Self {
            missing: Vec::new(),
            present: 0,
            declared: HashSet::new(),
        };
        for (key, (job, wanted)) in jobs {
            found.declared.insert(key);
            if !wanted {
                continue;
            }
            if cache.has_all(&job.checksums) {
                found.present += 1;
            } else {
                found.missing.push(job);
            }
        }
        // The same order each time.
        found
            .missing
            .sort_by(|one, other| one.packages.cmp(&other.packages));
        found
    }
}

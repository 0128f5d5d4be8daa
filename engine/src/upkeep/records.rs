// SPDX-License-Identifier: Apache-2.0
//! What upkeep asks of the database.

use super::Recorded;
use crate::database::{Database, id_list, milliseconds};
use crate::{Error, StepRecord};
use obuild_stores::SnapshotId;
use sqlx::{Connection, Row};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// A snapshot with the digests of its tree and its log.
pub(crate) type Digests = (SnapshotId, [u8; 32], Vec<u8>);

impl Database {
    /// Returns all recorded digests.
    pub(crate) async fn digests(&self) -> Result<HashMap<SnapshotId, Recorded>, Error> {
        let rows = sqlx::query("SELECT id, tree, log, recorded FROM digests")
            .fetch_all(&mut *self.connection.lock().await)
            .await
            .map_err(|e| self.fail(e))?;
        let mut digests = HashMap::new();
        for row in rows {
            let id: String = row.try_get(0).map_err(|e| self.fail(e))?;
            let tree: Vec<u8> = row.try_get(1).map_err(|e| self.fail(e))?;
            let log: Vec<u8> = row.try_get(2).map_err(|e| self.fail(e))?;
            let at: i64 = row.try_get(3).map_err(|e| self.fail(e))?;
            // A row that does not parse is of no use and no harm.
            if let (Ok(id), Ok(tree)) = (id.parse(), tree.try_into()) {
                digests.insert(id, Recorded { tree, log, at });
            }
        }
        Ok(digests)
    }

    /// Records digests.
    pub(crate) async fn set_digests(&self, digests: &[Digests]) -> Result<(), Error> {
        let now = milliseconds(SystemTime::now());
        let mut connection = self.connection.lock().await;
        let mut transaction = connection.begin().await.map_err(|e| self.fail(e))?;
        for (id, tree, log) in digests {
            sqlx::query(
                "INSERT OR REPLACE INTO digests(id, tree, log, recorded) VALUES(?, ?, ?, ?)",
            )
            .bind(id.to_string())
            .bind(tree.as_slice())
            .bind(log.as_slice())
            .bind(now)
            .execute(&mut *transaction)
            .await
            .map_err(|e| self.fail(e))?;
        }
        transaction.commit().await.map_err(|e| self.fail(e))
    }

    /// Corrects the parents of recorded steps.
    pub(crate) async fn set_parents(
        &self,
        parents: &[(SnapshotId, Option<SnapshotId>)],
    ) -> Result<(), Error> {
        let mut connection = self.connection.lock().await;
        let mut transaction = connection.begin().await.map_err(|e| self.fail(e))?;
        for (id, parent) in parents {
            sqlx::query("UPDATE steps SET parent = ? WHERE id = ?")
                .bind(parent.map(|id| id.to_string()))
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(|e| self.fail(e))?;
        }
        transaction.commit().await.map_err(|e| self.fail(e))
    }

    /// Adds steps that are not recorded, with their own times; those that are stay as they are.
    pub(crate) async fn adopt(&self, steps: &[StepRecord]) -> Result<(), Error> {
        let known = self.steps().await?;
        let new: Vec<StepRecord> = steps
            .iter()
            .filter(|step| !known.contains_key(&step.id))
            .cloned()
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        self.record(&new).await
    }

    /// Returns what `SQLite` finds wrong in the file; nothing if it is sound.
    pub(crate) async fn quick_check(&self) -> Result<Option<String>, Error> {
        let answer = sqlx::query("PRAGMA quick_check(3)")
            .fetch_all(&mut *self.connection.lock().await)
            .await;
        let rows = match answer {
            Ok(rows) => rows,
            Err(error) if crate::database::is_damaged(&error) => {
                return Ok(Some(error.to_string()));
            }
            Err(error) => return Err(self.fail(error)),
        };
        let mut found = Vec::new();
        for row in rows {
            let line: String = row.try_get(0).map_err(|e| self.fail(e))?;
            if line != "ok" {
                found.push(line);
            }
        }
        Ok((!found.is_empty()).then(|| found.join("; ")))
    }

    /// Puts the file aside and begins a new one with what can still be read of the old. Returns where the old one is.
    ///
    /// Another process that has the old file open goes on writing to that; what it adds is found missing by the next check.
    pub(crate) async fn rebuild(&self) -> Result<PathBuf, Error> {
        let steps = self.steps().await.unwrap_or_default();
        let overrides = self.overrides().await.unwrap_or_default();
        let digests = self.digests().await.unwrap_or_default();
        let aside = self.replace().await?;
        let steps: Vec<StepRecord> = steps.into_values().collect();
        self.record(&steps).await?;
        self.add_overrides(&overrides.into_iter().collect::<Vec<_>>())
            .await?;
        let digests: Vec<Digests> = digests
            .into_iter()
            .map(|(id, recorded)| (id, recorded.tree, recorded.log))
            .collect();
        self.set_digests(&digests).await?;
        Ok(aside)
    }

    /// Adds which snapshots stand for steps that were run again, where nothing else does.
    pub(crate) async fn add_overrides(
        &self,
        overrides: &[(SnapshotId, SnapshotId)],
    ) -> Result<(), Error> {
        let mut connection = self.connection.lock().await;
        let mut transaction = connection.begin().await.map_err(|e| self.fail(e))?;
        for (step, id) in overrides {
            sqlx::query("INSERT OR IGNORE INTO overrides(step, id) VALUES(?, ?)")
                .bind(step.to_string())
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(|e| self.fail(e))?;
        }
        transaction.commit().await.map_err(|e| self.fail(e))
    }

    /// Copies what is remembered to another database: digests of files on the host, and of files in these snapshots.
    pub(crate) async fn copy_memories(&self, to: &Self, ids: &[SnapshotId]) -> Result<(), Error> {
        let memos = sqlx::query("SELECT name, content, used FROM memos WHERE name <> ?")
            .bind(super::check::LAST)
            .fetch_all(&mut *self.connection.lock().await)
            .await
            .map_err(|e| self.fail(e))?;
        let trees = sqlx::query(
            "SELECT source, request, digest FROM tree_digests WHERE source IN (SELECT value FROM json_each(?))",
        )
        .bind(id_list(ids))
        .fetch_all(&mut *self.connection.lock().await)
        .await
        .map_err(|e| self.fail(e))?;
        let mut connection = to.connection.lock().await;
        let mut transaction = connection.begin().await.map_err(|e| to.fail(e))?;
        for row in memos {
            let get = || {
                Ok::<(String, Vec<u8>, i64), sqlx::Error>((
                    row.try_get(0)?,
                    row.try_get(1)?,
                    row.try_get(2)?,
                ))
            };
            let (name, content, used) = get().map_err(|e| self.fail(e))?;
            sqlx::query("INSERT OR IGNORE INTO memos(name, content, used) VALUES(?, ?, ?)")
                .bind(name)
                .bind(content)
                .bind(used)
                .execute(&mut *transaction)
                .await
                .map_err(|e| to.fail(e))?;
        }
        for row in trees {
            let get = || {
                Ok::<(String, Vec<u8>, Vec<u8>), sqlx::Error>((
                    row.try_get(0)?,
                    row.try_get(1)?,
                    row.try_get(2)?,
                ))
            };
            let (source, request, digest) = get().map_err(|e| self.fail(e))?;
            sqlx::query(
                "INSERT OR IGNORE INTO tree_digests(source, request, digest) VALUES(?, ?, ?)",
            )
            .bind(source)
            .bind(request)
            .bind(digest)
            .execute(&mut *transaction)
            .await
            .map_err(|e| to.fail(e))?;
        }
        transaction.commit().await.map_err(|e| to.fail(e))
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The store's bookkeeping in `SQLite`: steps, their last use, remembered digests.
//!
//! Deleting the file loses no snapshot: a step's result is the snapshot in the store, and what stands here can be
//! missing. Writes of a build are batched (see [`Database::record`]) so that no step waits for them.

use crate::{Error, StepRecord};
use obuild_stores::SnapshotId;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Mutex;

/// The schema's version, in `PRAGMA user_version`.
const VERSION: i64 = 4;

/// How long to wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS steps(
  id TEXT PRIMARY KEY,           -- the snapshot's id
  step TEXT NOT NULL,            -- the step's id; differs from `id` for a result of --no-cache or a failed step
  parent TEXT,
  kind TEXT NOT NULL,            -- base, layer (of a base), run, copy, failed
  heading TEXT NOT NULL,
  created INTEGER NOT NULL,      -- milliseconds since 1970
  used INTEGER NOT NULL,
  duration INTEGER NOT NULL,     -- milliseconds
  size INTEGER,                  -- bytes beyond the parent; null until somebody asks
  config TEXT                    -- of what ran a command: its surroundings, as an image's configuration in JSON
) STRICT;
CREATE INDEX IF NOT EXISTS steps_used ON steps(used);
CREATE TABLE IF NOT EXISTS overrides(
  step TEXT PRIMARY KEY,         -- a step that --no-cache has run again,
  id TEXT NOT NULL               -- and the snapshot that holds its newest result
) STRICT;
CREATE TABLE IF NOT EXISTS tree_digests(
  source TEXT NOT NULL,          -- a snapshot,
  request BLOB NOT NULL,         -- what was copied from it (digest of the sources and exclusions),
  digest BLOB NOT NULL,          -- and the digest of those files
  PRIMARY KEY(source, request)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told_digests(
  source TEXT NOT NULL,          -- the same of a snapshot that is not here: as a cache has it
  request BLOB NOT NULL,
  digest BLOB NOT NULL,
  PRIMARY KEY(source, request)
) STRICT;
CREATE TABLE IF NOT EXISTS memos(
  name TEXT PRIMARY KEY,         -- a directory or file of the host
  content BLOB NOT NULL,         -- remembered digests
  used INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS digests(
  id TEXT PRIMARY KEY,           -- a snapshot,
  tree BLOB NOT NULL,            -- what `Listing::digest` said of its tree,
  log BLOB NOT NULL,             -- the SHA-256 of its log, empty if there was none,
  recorded INTEGER NOT NULL      -- and when that was, in milliseconds since 1970
) STRICT;
";

/// The kind of an image's layers below its uppermost, which is the image.
pub(crate) const LAYER: &str = "layer";

/// So many digests that caches have told are remembered: a hundred bytes each.
const TOLD_DIGESTS: i64 = 10_000;

/// What version 2 lacked.
const ADD_CONFIG: &str = "ALTER TABLE steps ADD COLUMN config TEXT";

/// The database of one store.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    pub(crate) connection: Mutex<SqliteConnection>,
    file: std::sync::Mutex<File>,
}

/// What is known of the file.
#[derive(Debug)]
struct File {
    /// Which it was when it was opened: device and inode.
    identity: Option<(u64, u64)>,
    /// Where a damaged one was put.
    aside: Option<PathBuf>,
}

/// Returns milliseconds since 1970.
pub(crate) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_milliseconds(value: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

fn int(value: u128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Database {
    /// Opens or creates the database; one that is damaged is put aside and a new one begun.
    pub(crate) async fn open(path: &Path) -> Result<Self, Error> {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        let opened = loop {
            match Self::try_open(path).await {
                // Two processes make the file at once: the change to WAL does not wait for the other by itself.
                Err(Error::Database { source, .. })
                    if is_busy(&source) && Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                opened => break opened,
            }
        };
        match opened {
            Err(Error::Database { source, .. }) if is_damaged(&source) => {
                let aside = put_aside(path);
                let opened = Self::try_open(path).await?;
                opened.file().aside = Some(aside);
                Ok(opened)
            }
            other => other,
        }
    }

    async fn try_open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Database {
            path: path.to_owned(),
            source,
        };
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit may be lost by a power cut, never torn (sqlite.org/wal.html); `sync` follows at a build's end.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            // The next process to open the file reads all of a log that is left (sqlite.org/walformat.html, recovery).
            .pragma("wal_autocheckpoint", "64")
            .disable_statement_logging()
            .connect()
            .await
            .map_err(fail)?;
        let found: i64 = sqlx::query("PRAGMA user_version")
            .fetch_one(&mut connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(fail)?;
        if found > VERSION {
            return Err(Error::NewerDatabase {
                path: path.to_owned(),
                found,
                known: VERSION,
            });
        }
        if found < VERSION {
            Self::migrate(&mut connection).await.map_err(fail)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file: std::sync::Mutex::new(File {
                identity: identity(path),
                aside: None,
            }),
            connection: Mutex::new(connection),
        })
    }

    /// Makes what is not there, in one transaction: another process may be at it too.
    async fn migrate(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
        let columns =
            sqlx::query("SELECT COUNT(*) FROM pragma_table_info('steps') WHERE name = 'config'")
                .fetch_one(&mut *transaction)
                .await?;
        if columns.try_get::<i64, _>(0)? == 0 {
            sqlx::raw_sql(ADD_CONFIG).execute(&mut *transaction).await?;
        }
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "PRAGMA user_version = {VERSION}"
        )))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }

    /// Begins an empty file, after the old one was put aside. Returns where that is.
    pub(crate) async fn replace(&self) -> Result<PathBuf, Error> {
        let mut connection = self.connection.lock().await;
        let aside = self.set_aside().unwrap_or_else(|| self.path.clone());
        *connection = Self::try_open(&self.path).await?.connection.into_inner();
        self.file().identity = identity(&self.path);
        Ok(aside)
    }

    fn file(&self) -> std::sync::MutexGuard<'_, File> {
        self.file.lock().expect("no holder of this lock panics")
    }

    /// Returns where a damaged file was put, if one was since the database was opened.
    pub(crate) fn aside(&self) -> Option<PathBuf> {
        self.file().aside.clone()
    }

    /// Puts the file aside, unless another process has done so. Returns where it is, if this one has.
    fn set_aside(&self) -> Option<PathBuf> {
        let mut file = self.file();
        if file.identity.is_some() && identity(&self.path) == file.identity {
            file.aside = Some(put_aside(&self.path));
        }
        file.aside.clone()
    }

    pub(crate) fn fail(&self, source: sqlx::Error) -> Error {
        // Damage may show late.
        if is_damaged(&source) {
            self.set_aside();
        }
        Error::Database {
            path: self.path.clone(),
            source,
        }
    }

    /// Adds the steps of a batch in one transaction.
    pub(crate) async fn record(&self, steps: &[StepRecord]) -> Result<(), Error> {
        let mut connection = self.connection.lock().await;
        let mut transaction = connection.begin().await.map_err(|e| self.fail(e))?;
        // What was recorded of an earlier snapshot of the same id is not of this one.
        let ids: Vec<SnapshotId> = steps.iter().map(|step| step.id).collect();
        sqlx::query("DELETE FROM digests WHERE id IN (SELECT value FROM json_each(?))")
            .bind(id_list(&ids))
            .execute(&mut *transaction)
            .await
            .map_err(|e| self.fail(e))?;
        // The layer of one image may be another image, and known as that.
        let (layers, others): (Vec<&StepRecord>, _) =
            steps.iter().partition(|step| step.kind == LAYER);
        for (rows, known) in [(layers, "IGNORE"), (others, "REPLACE")] {
            // All at once: each statement goes to another thread and back.
            let insert = format!(
                "INSERT OR {known} INTO steps(id, step, parent, kind, heading, created, used, duration, config) \
                 SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8 \
                 FROM json_each(?)",
            );
            if !rows.is_empty() {
                sqlx::query(sqlx::AssertSqlSafe(insert))
                    .bind(rows.into_iter().map(row).collect::<Value>().to_string())
                    .execute(&mut *transaction)
                    .await
                    .map_err(|e| self.fail(e))?;
            }
        }
        for step in steps {
            if step.id.as_bytes() != step.step.as_bytes() && step.kind != "failed" {
                sqlx::query("INSERT OR REPLACE INTO overrides(step, id) VALUES(?, ?)")
                    .bind(step.step.to_string())
                    .bind(step.id.to_string())
                    .execute(&mut *transaction)
                    .await
                    .map_err(|e| self.fail(e))?;
            }
        }
        transaction.commit().await.map_err(|e| self.fail(e))?;
        self.settle(&mut connection).await;
        Ok(())
    }

    /// Brings what was written from the log into the file and empties the log, unless another process is reading: the next to open the file reads all
    /// of a log that is there (sqlite.org/walformat.html, recovery), and that is mostly a build that finds everything cached.
    async fn settle(&self, connection: &mut SqliteConnection) {
        let wait = format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis());
        for statement in [
            "PRAGMA busy_timeout = 0",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            &wait,
        ] {
            let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()));
            if let Err(error) = done.execute(&mut *connection).await {
                // What was written is in the log.
                tracing::debug!(%error, "the database's log stays as it is");
            }
        }
    }

    /// Returns every recorded step by its snapshot.
    pub(crate) async fn steps(&self) -> Result<HashMap<SnapshotId, StepRecord>, Error> {
        let rows = sqlx::query(
            "SELECT id, step, parent, kind, heading, created, used, duration, size, config FROM steps",
        )
        .fetch_all(&mut *self.connection.lock().await)
        .await
        .map_err(|e| self.fail(e))?;
        rows.iter()
            .map(|row| self.step(row).map(|step| (step.id, step)))
            .collect()
    }

    fn step(&self, row: &SqliteRow) -> Result<StepRecord, Error> {
        let get = || -> Result<StepRecord, sqlx::Error> {
            let id = |text: String| {
                text.parse::<SnapshotId>()
                    .map_err(|e| sqlx::Error::Decode(Box::new(e)))
            };
            Ok(StepRecord {
                id: id(row.try_get(0)?)?,
                step: row
                    .try_get::<String, _>(1)?
                    .parse()
                    .map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
                parent: row.try_get::<Option<String>, _>(2)?.map(id).transpose()?,
                kind: row.try_get(3)?,
                heading: row.try_get(4)?,
                created: from_milliseconds(row.try_get(5)?),
                used: from_milliseconds(row.try_get(6)?),
                duration: Duration::from_millis(
                    u64::try_from(row.try_get::<i64, _>(7)?).unwrap_or(0),
                ),
                size_bytes: row
                    .try_get::<Option<i64>, _>(8)?
                    .and_then(|size| u64::try_from(size).ok()),
                config: row.try_get(9)?,
            })
        };
        get().map_err(|e| self.fail(e))
    }

    /// Returns what these snapshots were in the spec, as far as that is recorded.
    pub(crate) async fn headings(
        &self,
        ids: &[SnapshotId],
    ) -> Result<HashMap<SnapshotId, String>, Error> {
        let rows = sqlx::query(
            "SELECT id, heading FROM steps WHERE id IN (SELECT value FROM json_each(?))",
        )
        .bind(id_list(ids))
        .fetch_all(&mut *self.connection.lock().await)
        .await
        .map_err(|e| self.fail(e))?;
        let mut headings = HashMap::new();
        for row in rows {
            let id: String = row.try_get(0).map_err(|e| self.fail(e))?;
            if let Ok(id) = id.parse() {
                headings.insert(id, row.try_get(1).map_err(|e| self.fail(e))?);
            }
        }
        Ok(headings)
    }

    /// Returns what the command saw around it that made this snapshot, or the last before it in its chain, as far as that is recorded.
    pub(crate) async fn config(&self, id: SnapshotId) -> Result<Option<String>, Error> {
        let row = sqlx::query(
            "WITH RECURSIVE chain(id, parent, config, depth) AS (\
             SELECT id, parent, config, 0 FROM steps WHERE id = ? UNION ALL \
             SELECT steps.id, steps.parent, steps.config, depth + 1 FROM steps, chain \
             WHERE steps.id = chain.parent AND chain.config IS NULL AND depth < 100000) \
             SELECT config FROM chain WHERE config IS NOT NULL",
        )
        .bind(id.to_string())
        .fetch_optional(&mut *self.connection.lock().await)
        .await
        .map_err(|e| self.fail(e))?;
        row.map(|row| row.try_get(0).map_err(|e| self.fail(e)))
            .transpose()
    }

    /// Remembers the sizes of snapshots.
    pub(crate) async fn set_sizes(&self, sizes: &[(SnapshotId, u64)]) -> Result<(), Error> {
        let mut connection = self.connection.lock().await;
        let mut transaction = connection.begin().await.map_err(|e| self.fail(e))?;
        for (id, size) in sizes {
            sqlx::query("UPDATE steps SET size = ? WHERE id = ?")
                .bind(int(u128::from(*size)))
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await
                .map_err(|e| self.fail(e))?;
        }
        transaction.commit().await.map_err(|e| self.fail(e))
    }

    /// Forgets removed snapshots.
    pub(crate) async fn forget(&self, ids: &[SnapshotId]) -> Result<(), Error> {
        match self.try_forget(ids).await {
            // Put aside, with the rows that were to go: what they told of is removed already, and that went well.
            Err(Error::Database { source, .. }) if is_damaged(&source) => Ok(()),
            done => done,
        }
    }

    async fn try_forget(&self, ids: &[SnapshotId]) -> Result<(), Error> {
        let list = id_list(ids);
        let mut connection = self.connection.lock().await;
        let mut transaction = connection.begin().await.map_err(|e| self.fail(e))?;
        for statement in [
            "DELETE FROM steps WHERE id IN (SELECT value FROM json_each(?))",
            "DELETE FROM overrides WHERE id IN (SELECT value FROM json_each(?))",
            "DELETE FROM digests WHERE id IN (SELECT value FROM json_each(?))",
            "DELETE FROM tree_digests WHERE source IN (SELECT value FROM json_each(?))",
        ] {
            sqlx::query(statement)
                .bind(&list)
                .execute(&mut *transaction)
                .await
                .map_err(|e| self.fail(e))?;
        }
        transaction.commit().await.map_err(|e| self.fail(e))
    }

    /// Returns which snapshots stand for steps that `--no-cache` has run again.
    pub(crate) async fn overrides(&self) -> Result<HashMap<SnapshotId, SnapshotId>, Error> {
        let rows = sqlx::query("SELECT step, id FROM overrides")
            .fetch_all(&mut *self.connection.lock().await)
            .await
            .map_err(|e| self.fail(e))?;
        let mut overrides = HashMap::new();
        for row in rows {
            let step: String = row.try_get(0).map_err(|e| self.fail(e))?;
            let id: String = row.try_get(1).map_err(|e| self.fail(e))?;
            // A row that does not parse is of no use and no harm.
            if let (Ok(step), Ok(id)) = (step.parse(), id.parse()) {
                overrides.insert(step, id);
            }
        }
        Ok(overrides)
    }

    /// Returns the remembered digest of files of a snapshot.
    pub(crate) async fn tree_digest(
        &self,
        source: SnapshotId,
        request: [u8; 32],
    ) -> Result<Option<[u8; 32]>, Error> {
        let row = sqlx::query("SELECT digest FROM tree_digests WHERE source = ? AND request = ?")
            .bind(source.to_string())
            .bind(request.as_slice())
            .fetch_optional(&mut *self.connection.lock().await)
            .await
            .map_err(|e| self.fail(e))?;
        let Some(row) = row else { return Ok(None) };
        let digest: Vec<u8> = row.try_get(0).map_err(|e| self.fail(e))?;
        Ok(digest.try_into().ok())
    }

    /// Remembers the digest of files of a snapshot, which is for ever.
    pub(crate) async fn set_tree_digest(
        &self,
        source: SnapshotId,
        request: [u8; 32],
        digest: [u8; 32],
    ) -> Result<(), Error> {
        let mut connection = self.connection.lock().await;
        for statement in [
            "INSERT OR REPLACE INTO tree_digests(source, request, digest) VALUES(?1, ?2, ?3)",
            // What was found wins over what was told.
            "DELETE FROM told_digests WHERE source = ?1 AND request = ?2",
        ] {
            sqlx::query(statement)
                .bind(source.to_string())
                .bind(request.as_slice())
                .bind(digest.as_slice())
                .execute(&mut *connection)
                .await
                .map_err(|e| self.fail(e))?;
        }
        Ok(())
    }

    /// Returns the digest of files of a snapshot, as a cache has told it.
    pub(crate) async fn told_digest(
        &self,
        source: SnapshotId,
        request: [u8; 32],
    ) -> Result<Option<[u8; 32]>, Error> {
        let row = sqlx::query("SELECT digest FROM told_digests WHERE source = ? AND request = ?")
            .bind(source.to_string())
            .bind(request.as_slice())
            .fetch_optional(&mut *self.connection.lock().await)
            .await
            .map_err(|e| self.fail(e))?;
        let Some(row) = row else { return Ok(None) };
        let digest: Vec<u8> = row.try_get(0).map_err(|e| self.fail(e))?;
        Ok(digest.try_into().ok())
    }

    /// Remembers what a cache has told of a snapshot's files, and forgets what was told longest ago if it is too much.
    pub(crate) async fn set_told_digest(
        &self,
        source: SnapshotId,
        request: [u8; 32],
        digest: [u8; 32],
    ) -> Result<(), Error> {
        let mut connection = self.connection.lock().await;
        sqlx::query("INSERT OR REPLACE INTO told_digests(source, request, digest) VALUES(?, ?, ?)")
            .bind(source.to_string())
            .bind(request.as_slice())
            .bind(digest.as_slice())
            .execute(&mut *connection)
            .await
            .map_err(|e| self.fail(e))?;
        sqlx::query(
            "DELETE FROM told_digests WHERE rowid <= (SELECT max(rowid) FROM told_digests) - ?",
        )
        .bind(TOLD_DIGESTS)
        .execute(&mut *connection)
        .await
        .map_err(|e| self.fail(e))?;
        Ok(())
    }

    /// Returns what was remembered under a name.
    pub(crate) async fn memo(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let row = sqlx::query("SELECT content FROM memos WHERE name = ?")
            .bind(name)
            .fetch_optional(&mut *self.connection.lock().await)
            .await
            .map_err(|e| self.fail(e))?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(|e| self.fail(e))
    }

    /// Remembers something under a name.
    pub(crate) async fn set_memo(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        sqlx::query("INSERT OR REPLACE INTO memos(name, content, used) VALUES(?, ?, ?)")
            .bind(name)
            .bind(content)
            .bind(milliseconds(SystemTime::now()))
            .execute(&mut *self.connection.lock().await)
            .await
            .map_err(|e| self.fail(e))?;
        Ok(())
    }

    /// Notes that the steps were used now. What was noted within the last minute stays: a build that finds everything
    /// cached need not write. If `target` was, all that it stands on was with it, and need not be looked at.
    pub(crate) async fn touch(
        &self,
        ids: &[SnapshotId],
        target: Option<SnapshotId>,
    ) -> Result<(), Error> {
        let list = id_list(ids);
        let now = milliseconds(SystemTime::now());
        let mut connection = self.connection.lock().await;
        let due = "id IN (SELECT value FROM json_each(?)) AND used < ?";
        // To look costs less than to find out in a transaction that there is nothing to write.
        let looked_at = target.map_or_else(|| list.clone(), |target| id_list(&[target]));
        let found = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT 1 FROM steps WHERE {due} LIMIT 1"
        )))
        .bind(looked_at)
        .bind(now - 60_000)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|e| self.fail(e))?;
        if found.is_none() {
            return Ok(());
        }
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE steps SET used = ? WHERE {due}"
        )))
        .bind(now)
        .bind(&list)
        .bind(now - 60_000)
        .execute(&mut *connection)
        .await
        .map_err(|e| self.fail(e))?;
        self.settle(&mut connection).await;
        Ok(())
    }
}

/// Gives a damaged database another name, so that the next to open it begins a new one. Returns that name.
fn put_aside(path: &Path) -> PathBuf {
    let aside = path.with_extension(format!("damaged-{}", milliseconds(SystemTime::now())));
    tracing::warn!(path = %path.display(), aside = %aside.display(), "the database is damaged; starting a new one");
    for suffix in ["", "-wal", "-shm"] {
        let with = |base: &Path| {
            let mut name = base.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        // A missing -wal or -shm is the normal case.
        let _ = fs_err::rename(with(path), with(&aside));
    }
    aside
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs_err::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Writes a step as a JSON array, in the order of the columns in [`Database::record`].
fn row(step: &StepRecord) -> Value {
    serde_json::json!([
        step.id.to_string(),
        step.step.to_string(),
        step.parent.map(|id| id.to_string()),
        step.kind,
        step.heading,
        milliseconds(step.created),
        milliseconds(step.used),
        int(step.duration.as_millis()),
        step.config,
    ])
}

/// Writes ids as a JSON array, for `json_each`.
pub(crate) fn id_list(ids: &[SnapshotId]) -> String {
    let ids: serde_json::Value = ids.iter().map(ToString::to_string).collect();
    ids.to_string()
}

/// Returns whether another process holds the file (`SQLITE_BUSY` 5, `SQLITE_LOCKED` 6).
fn is_busy(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(5 | 6))
}

/// Returns whether the file is no usable database (`SQLITE_CORRUPT` 11, `SQLITE_NOTADB` 26).
pub(crate) fn is_damaged(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(11 | 26))
}

/// Returns `SQLite`'s primary result code.
fn code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_older_file_gets_what_it_lacks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("obuild.db");
        let mut old = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .connect()
            .await
            .unwrap();
        let id = "ab".repeat(32);
        // As version 2 made it.
        let made = format!(
            "CREATE TABLE steps(id TEXT PRIMARY KEY, step TEXT NOT NULL, parent TEXT, kind TEXT NOT NULL, heading TEXT NOT NULL, \
             created INTEGER NOT NULL, used INTEGER NOT NULL, duration INTEGER NOT NULL, size INTEGER) STRICT; \
             INSERT INTO steps VALUES('{id}', '{id}', NULL, 'run', 'a step', 1, 2, 3, NULL); PRAGMA user_version = 2;"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(made))
            .execute(&mut old)
            .await
            .unwrap();
        old.close().await.unwrap();
        // The second time there is nothing to do.
        for _ in 0..2 {
            let database = Database::open(&path).await.unwrap();
            let steps = database.steps().await.unwrap();
            assert_eq!(steps.len(), 1);
            assert_eq!(steps.values().next().unwrap().heading, "a step");
            let id = id.parse().unwrap();
            assert_eq!(database.config(id).await.unwrap(), None);
            database
                .set_told_digest(id, [1; 32], [2; 32])
                .await
                .unwrap();
            let told = database.told_digest(id, [1; 32]).await.unwrap();
            assert_eq!(told, Some([2; 32]));
            // What is found wins over what was told.
            database
                .set_tree_digest(id, [1; 32], [3; 32])
                .await
                .unwrap();
            assert_eq!(database.told_digest(id, [1; 32]).await.unwrap(), None);
            assert_eq!(database.aside(), None);
        }
    }
}

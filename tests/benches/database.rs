//! The databases that are measured: a folder on disk, one with tidelog and one without, and copies of a backlog.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, SqlxSqliteConnector, TransactionTrait};
use sqlx::{
    ConnectOptions as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tempfile::TempDir;
use tidelog::{Connection, Library, LibraryBuilder, id::LibraryId};

use crate::{
    Failure, args,
    entry::{Entry, TABLE, Walk, synced},
};

/// Rows of one transaction of a backlog.
const TRANSACTION: usize = 1000;
/// Rows of one `insert_many` in it; SQLite takes at most 32,766 values in one statement.
const STATEMENT: usize = 500;
/// The seed of a backlog's rows.
const BACKLOG_SEED: u64 = 1;

/// A folder for one group of measures, beside the bench itself, so on a disk; it goes with the value.
pub(crate) fn folder() -> Result<TempDir, Failure> {
    Ok(tempfile::Builder::new().prefix("tidelog-bench-").tempdir_in(args::target_dir()?)?)
}

/// The baseline: SeaORM without tidelog, set up as tidelog sets its connections up. One connection, which is its best
/// for a single writer: more would read anew what another one wrote.
pub(crate) async fn plain(path: &Path) -> Result<DatabaseConnection, Failure> {
    let db = pool(1, options(path)).await?;
    db.execute_unprepared(TABLE).await?;
    Ok(db)
}

/// SeaORM without tidelog over a database that is there, to read from: with two connections, since one is still on its
/// way back into the pool when the next query wants it, each with a page cache of so many KiB.
pub(crate) async fn plain_readers(path: &Path, cache_kib: u32) -> Result<DatabaseConnection, Failure> {
    pool(2, options(path).pragma("cache_size", format!("-{cache_kib}"))).await
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(true)
        .pragma("recursive_triggers", "ON")
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging()
}

async fn pool(connections: u32, options: SqliteConnectOptions) -> Result<DatabaseConnection, Failure> {
    let pool = SqlitePoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_with(options)
        .await?;
    Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool))
}

/// A database with tidelog, its library opened and not started.
pub(crate) async fn open(path: &Path, entrance: Entrance) -> Result<(Connection, Library), Failure> {
    open_set(path, entrance, |builder| builder).await
}

/// [`open`] with more settings.
pub(crate) async fn open_set(
    path: &Path,
    entrance: Entrance,
    set: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
) -> Result<(Connection, Library), Failure> {
    let is_new = !path.exists();
    let db = tidelog::connect(&format!("sqlite://{}?mode=rwc", path.display())).await?;
    if is_new {
        db.execute_unprepared(TABLE).await?;
    }
    // Who leads is the measure's business.
    let builder = set(Library::builder(&db).hands_over(false)).model::<synced::Entity>();
    let builder = match entrance {
        Entrance::Create(id) => builder.create(id),
        Entrance::Join(id) => builder.join(id),
    };
    let library = builder.open().await?;
    Ok((db, library))
}

/// How a library is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entrance {
    Create(LibraryId),
    Join(LibraryId),
}

/// A leader's database with rows that nobody has sealed yet, to be copied for each round.
pub(crate) struct Backlog {
    pub(crate) library: LibraryId,
    pub(crate) path: PathBuf,
    pub(crate) rows: usize,
}

impl Backlog {
    /// Writes it, with the node stopped.
    pub(crate) async fn write(folder: &Path, rows: usize) -> Result<Self, Failure> {
        eprintln!("writing a backlog of {rows} rows …");
        let (library, path) = (LibraryId::random(), folder.join("backlog.db"));
        let (db, open) = open(&path, Entrance::Create(library)).await?;
        let mut walk = Walk::new(BACKLOG_SEED);
        let mut left = rows;
        while left > 0 {
            let transaction = db.begin().await?;
            let now = walk.rows(left.min(TRANSACTION));
            for part in now.chunks(STATEMENT) {
                let models = part.iter().map(synced::ActiveModel::whole);
                synced::Entity::insert_many(models).exec_without_returning(&transaction).await?;
            }
            transaction.commit().await?;
            left -= now.len();
        }
        open.shutdown().await;
        db.close().await?;
        Ok(Self { library, path, rows })
    }

    /// A copy of a database that nobody has open, without what the last opening left beside it.
    pub(crate) fn copy(&self, to: &Path) -> Result<(), Failure> {
        copy(&self.path, to)
    }
}

/// Copies a closed database, its write-ahead log emptied into it first.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let source = rusqlite::Connection::open(from)?;
    source.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(source);
    remove(to)?;
    fs::copy(from, to)?;
    // What is still to be written to the disk would be written while the next measure runs.
    fs::File::open(to)?.sync_all()?;
    Ok(())
}

/// Removes a database and what SQLite and tidelog keep beside it.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    for suffix in ["", "-wal", "-shm", "-sync"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("removing `{}`: {error}", name.display()).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// A connection of the bench's own that only looks.
pub(crate) fn observer(path: &Path) -> Result<rusqlite::Connection, Failure> {
    let observer = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    observer.busy_timeout(Duration::from_secs(5))?;
    Ok(observer)
}

/// How often somebody who waits for rows looks, and how long at most.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits on a thread of its own until a table holds this many entries, and says when it did.
pub(crate) async fn holds(path: &Path, rows: usize) -> Result<Instant, Failure> {
    let observer = observer(path)?;
    tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The last row number is found at once and tells when counting, which reads the whole key, is worth it:
            // nothing is deleted here.
            let last: Option<usize> =
                observer.prepare_cached("SELECT max(rowid) FROM entries")?.query_row([], |row| row.get(0))?;
            if last.unwrap_or(0) >= rows {
                let count: usize = observer
                    .prepare_cached("SELECT count(*) FROM entries")?
                    .query_row([], |row| row.get(0))?;
                if count >= rows {
                    return Ok(Instant::now());
                }
            }
            if Instant::now() >= deadline {
                let seconds = PATIENCE.as_secs();
                return Err(format!("{} of {rows} rows after {seconds} s", last.unwrap_or(0)).into());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    })
    .await?
}

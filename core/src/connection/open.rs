//! Opening a database so that tidelog can follow it: what every pooled connection is set to, and what is
//! refused.
//!
//! [`connect`](crate::connect) makes two pools over one file: a small one that writes, whose page caches stay
//! warm (a commit empties those of all other connections), and one that reads. [`Connection::wrap`] takes the
//! pool that the application already has, changes its options and replaces the connections made before.
//!
//! It does not create sync tables, and it asks nothing of the schema.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseConnectionType, DbBackend, DbErr, SqlxSqliteConnector,
    Statement,
};
use sqlx::{
    ConnectOptions as _, Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Connection, Inner, direct::Direct};
use crate::gate::WriteGate;

/// Pages in the write-ahead log at which a commit copies it into the database: 16 MiB of 4 KiB each.
const CHECKPOINT_PAGES: &str = "4000";

/// The oldest SQLite that is safe here: it fixes a corruption of the write-ahead log.
const OLDEST_SQLITE: (u32, u32, u32) = (3, 51, 3);

/// Connections that write: one for single statements, taken out for good, one for transactions at work and one on
/// its way back into the pool, which takes the driver about 50 µs. More would not help, since only one writes at a
/// time, and each has to read anew what another one
/// committed.
const WRITERS: u32 = 3;

/// How long [`Connection::wrap`] waits for connections in use to come back, and how often it looks.
const WRAP_PATIENCE: Duration = Duration::from_secs(1);
const WRAP_LOOKS_EVERY: Duration = Duration::from_millis(2);

/// What survives a power failure. A crash of the process alone loses nothing either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// `synchronous = NORMAL`: the last commits may be lost, the database stays whole. tidelog stands that.
    #[default]
    Normal,
    /// `synchronous = FULL`: every commit is on the disk before it returns.
    Full,
}

/// How [`connect_with`](crate::connect_with) opens a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// As SeaORM takes it: `sqlite://path/to/file.db?mode=rwc`.
    pub url: String,
    /// Connections that read, beside those that write. At least 1.
    pub readers: u32,
    /// What survives a power failure.
    pub durability: Durability,
    /// How long SQLite waits for the write lock when another process, or a connection that does not queue at
    /// the gate, holds it.
    pub busy_timeout: Duration,
    /// How long a write waits for its turn at the gate before it goes on without one.
    pub gate_patience: Duration,
    /// How long a statement waits for a free connection.
    pub acquire_timeout: Duration,
    /// Whether sqlx logs every statement, at debug level.
    pub statement_logging: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            url: String::new(),
            readers: 4,
            durability: Durability::default(),
            busy_timeout: Duration::from_secs(5),
            gate_patience: Duration::from_secs(10),
            acquire_timeout: Duration::from_secs(30),
            statement_logging: false,
        }
    }
}

impl ConnectOptions {
    /// The defaults for a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

impl From<&str> for ConnectOptions {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

/// Why a database was not opened. Nothing in it was changed but, where it says so, its journal mode.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The text is no URL of a SQLite database.
    #[error(
        "`{url}` does not name a database: {reason}; nothing was opened. \
         Write `sqlite://path/to/file.db?mode=rwc`"
    )]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another database than SQLite.
    #[error(
        "tidelog cannot follow a {found} database yet, SQLite only; nothing was opened or changed. \
         Use `sqlite://path/to/file.db?mode=rwc`; `Connection::wrap` takes a SeaORM connection made by sqlx"
    )]
    Backend {
        /// What it is.
        found: String,
    },
    /// A database in memory: each connection would have its own, or readers would block writers.
    #[error(
        "`{database}` is kept in memory, where the application and the sync engine cannot both open it \
         with a write-ahead log; nothing was changed. Use a file in a temporary folder, such as \
         `sqlite:///tmp/name.db?mode=rwc` (the crate `tempfile` makes and removes one)"
    )]
    InMemory {
        /// The URL or the file name.
        database: String,
    },
    /// The SQLite that is linked is too old.
    #[error(
        "the linked SQLite is {found}, which can corrupt a write-ahead log; 3.51.3 or later is needed, \
         and nothing was written. Let libsqlite3-sys build its bundled SQLite (its feature `bundled`)"
    )]
    SqliteTooOld {
        /// Its version.
        found: String,
    },
    /// The file's system cannot share memory between connections, as network shares cannot.
    #[error(
        "`{}` cannot have a write-ahead log: SQLite keeps its journal mode `{mode}`; nothing was changed. \
         Keep the database on a local disk, and close other programs that have it open", .path.display()
    )]
    NoWriteAheadLog {
        /// The database.
        path: PathBuf,
        /// The journal mode it kept.
        mode: String,
    },
    /// A connection to be wrapped has connections in use, which would go on with other settings.
    #[error(
        "{count} pooled connection(s) of `{}` are in use and were made with other settings; \
         the pool is as it was. Wrap it before the first transaction or stream, or finish those first", .path.display()
    )]
    InUse {
        /// How many.
        count: usize,
        /// The database.
        path: PathBuf,
    },
    /// SQLite or the pool failed.
    #[error(
        "`{database}` could not be opened: {source}; no data was changed. \
         Check that the folder exists and may be written to, and that the file is a SQLite database"
    )]
    Open {
        /// The URL or the file name.
        database: String,
        /// What they said.
        source: DbErr,
    },
}

pub(super) async fn open(options: ConnectOptions) -> Result<Connection, ConnectError> {
    let sqlite = sqlite_options(&options)?;
    let failed = |source| ConnectError::Open { database: options.url.clone(), source };
    let pool = |connections: u32| {
        SqlitePoolOptions::new()
            .max_connections(connections.max(1))
            .acquire_timeout(options.acquire_timeout)
            // A file does not hang up, so there is nothing to test and nothing to renew.
            .test_before_acquire(false)
            .max_lifetime(None)
            .idle_timeout(None)
    };
    let writer = pool(WRITERS).connect_with(sqlite.clone()).await.map_err(|e| failed(connection_error(e)))?;
    let writer = SqlxSqliteConnector::from_sqlx_sqlite_pool(writer);
    let path = match examine(&writer, &options.url).await {
        Ok(path) => path,
        Err(error) => {
            // The refusal is what matters; a pool that cannot close goes with its last handle.
            let _ = writer.close().await;
            return Err(error);
        }
    };
    let plain = SqlxSqliteConnector::from_sqlx_sqlite_pool(pool(options.readers).connect_lazy_with(sqlite));
    let taken =
        writer.get_sqlite_connection_pool().acquire().await.map_err(|e| failed(connection_error(e)))?;
    let direct = Some(Direct::new(taken));
    Ok(Connection { inner: Arc::new(Inner::new(plain, writer, direct, path, options.gate_patience)) })
}

pub(super) async fn wrap(db: DatabaseConnection) -> Result<Connection, ConnectError> {
    if !matches!(db.inner, DatabaseConnectionType::SqlxSqlitePoolConnection(_)) {
        return Err(ConnectError::Backend { found: format!("{:?}", db.inner) });
    }
    let defaults = ConnectOptions::default();
    let pool = db.get_sqlite_connection_pool();
    let former = pool.connect_options();
    let name = former.get_filename().display().to_string();
    if is_memory_name(&name) {
        return Err(ConnectError::InMemory { database: name });
    }
    let changed = with_settings((*former).clone(), defaults.durability, defaults.busy_timeout);
    pool.set_connect_options(changed);
    let outcome = match replace_connections(pool, former.get_filename()).await {
        Ok(()) => examine(&db, &name).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(path) => {
            let inner = Inner::new(db.clone(), db, None, path, defaults.gate_patience);
            Ok(Connection { inner: Arc::new(inner) })
        }
        Err(error) => {
            pool.set_connect_options((*former).clone());
            Err(error)
        }
    }
}

/// Closes the connections that were made before the options changed, waiting a little for those that are just
/// on their way back into the pool.
async fn replace_connections(pool: &SqlitePool, path: &Path) -> Result<(), ConnectError> {
    let failed = |e| ConnectError::Open { database: path.display().to_string(), source: connection_error(e) };
    let deadline = Instant::now() + WRAP_PATIENCE;
    loop {
        let mut idle = Vec::new();
        while let Some(connection) = pool.try_acquire() {
            idle.push(connection);
        }
        let mut renewed = Vec::new();
        for mut connection in idle {
            // A pool that keeps a minimum of connections makes new ones meanwhile, which have the settings.
            let row =
                sqlx::query("PRAGMA recursive_triggers").fetch_one(&mut *connection).await.map_err(failed)?;
            if row.try_get::<i64, _>(0).map_err(failed)? == 1 {
                renewed.push(connection);
            } else {
                connection.close().await.map_err(failed)?;
            }
        }
        let in_use = (pool.size() as usize).saturating_sub(renewed.len());
        drop(renewed);
        if in_use == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(ConnectError::InUse { count: in_use, path: path.to_owned() });
        }
        tokio::time::sleep(WRAP_LOOKS_EVERY).await;
    }
}

fn sqlite_options(options: &ConnectOptions) -> Result<SqliteConnectOptions, ConnectError> {
    let url = options.url.trim();
    let refuse = |reason: &str| ConnectError::Url { url: url.to_owned(), reason: reason.to_owned() };
    let Some(rest) = url.strip_prefix("sqlite:") else {
        return Err(match url.split_once(':') {
            Some((scheme @ ("postgres" | "postgresql" | "mysql" | "mariadb"), _)) => {
                ConnectError::Backend { found: scheme.to_owned() }
            }
            _ => refuse("it does not begin with `sqlite:`"),
        });
    };
    let (file, query) = rest.split_once('?').unwrap_or((rest, ""));
    let file = file.trim_start_matches("//");
    if is_memory_name(file) || query.split('&').any(|p| p == "mode=memory" || p == "vfs=memdb") {
        return Err(ConnectError::InMemory { database: url.to_owned() });
    }
    if file.is_empty() {
        return Err(refuse(
            "the path is empty, for which SQLite makes a database that is gone when it is closed",
        ));
    }
    let parsed = SqliteConnectOptions::from_str(url).map_err(|e| refuse(&e.to_string()))?;
    let parsed = match options.statement_logging {
        true => parsed,
        false => parsed.disable_statement_logging(),
    };
    Ok(with_settings(parsed, options.durability, options.busy_timeout))
}

/// What every connection is set to, whoever made the pool.
fn with_settings(
    options: SqliteConnectOptions,
    durability: Durability,
    busy_timeout: Duration,
) -> SqliteConnectOptions {
    options
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match durability {
            Durability::Normal => SqliteSynchronous::Normal,
            Durability::Full => SqliteSynchronous::Full,
        })
        .busy_timeout(busy_timeout)
        .foreign_keys(true)
        // Without it `REPLACE` over a second unique key deletes rows that no trigger sees.
        .pragma("recursive_triggers", "ON")
        .pragma("temp_store", "MEMORY")
        // The outbox writes the same pages again and again: a longer log writes them into the file once.
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
}

/// Names that SQLite does not take for a file: `:memory:`, what sqlx makes of it, and other URIs.
fn is_memory_name(name: &str) -> bool {
    name.starts_with(':') || name.starts_with("file:sqlx-in-memory") || name.starts_with("file::memory:")
}

/// Looks at the database through a connection that has the settings, and returns its file.
async fn examine(db: &DatabaseConnection, database: &str) -> Result<PathBuf, ConnectError> {
    let failed = |source| ConnectError::Open { database: database.to_owned(), source };
    let row = db
        .query_one_raw(Statement::from_string(
            DbBackend::Sqlite,
            "SELECT sqlite_version(), (SELECT file FROM pragma_database_list WHERE name = 'main'), \
             (SELECT journal_mode FROM pragma_journal_mode)",
        ))
        .await
        .map_err(failed)?
        .ok_or_else(|| failed(DbErr::RecordNotFound("SQLite did not answer".to_owned())))?;
    check_version(&row.try_get_by::<String, _>(0).map_err(failed)?)?;
    let file = row.try_get_by::<Option<String>, _>(1).map_err(failed)?.unwrap_or_default();
    let mode = row.try_get_by::<String, _>(2).map_err(failed)?;
    if file.is_empty() || mode == "memory" {
        return Err(ConnectError::InMemory { database: database.to_owned() });
    }
    let path = PathBuf::from(file);
    if mode != "wal" {
        return Err(ConnectError::NoWriteAheadLog { path, mode });
    }
    Ok(path.canonicalize().unwrap_or(path))
}

fn check_version(found: &str) -> Result<(), ConnectError> {
    let mut parts = found.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    if (part(), part(), part()) < OLDEST_SQLITE {
        return Err(ConnectError::SqliteTooOld { found: found.to_owned() });
    }
    Ok(())
}

fn connection_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(sea_orm::RuntimeErr::SqlxError(Arc::new(error)))
}

impl Inner {
    fn new(
        plain: DatabaseConnection,
        writer: DatabaseConnection,
        direct: Option<Direct>,
        path: PathBuf,
        patience: Duration,
    ) -> Self {
        let gate = WriteGate::of(&path);
        Self { plain, writer, direct, gate, path, patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_the_fix_are_refused() {
        assert!(check_version("3.51.3").is_ok());
        assert!(check_version("3.52.0").is_ok());
        assert!(check_version("4.0").is_ok());
        for old in ["3.51.2", "3.45.1", "3", "", "unknown"] {
            let error = check_version(old).expect_err(old).to_string();
            assert!(error.contains(old) && error.contains("3.51.3"), "{error}");
        }
    }
}

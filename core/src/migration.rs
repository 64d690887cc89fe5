//! Makes a database that was there before ready to be synced: integer keys become UUIDs.
//!
//! Two devices that count up their keys both give a new row the next number, so a synced record needs a key that no
//! other device gives: a UUID. [`integer_keys_to_uuids`] changes the keys of an existing SQLite file, and every
//! reference to them, in one transaction:
//!
//! 1. It takes the file for itself and looks at everything that could go wrong, before it writes anything.
//! 2. It copies the file, byte for byte, to `DATABASE.before-uuid-keys`.
//! 3. It makes the tables again, types changed and rows converted; indexes, constraints, triggers and views stay.
//! 4. It compares the rows with those before, checks foreign keys, integrity and schema, and only then commits.
//!
//! Whatever is in doubt is rolled back, and the file is byte for byte what it was. A process that is killed leaves the
//! old database, or the new one; SQLite sees to that when the file is next opened.
//!
//! ```
//! use tidelog::migration::{IntegerKeys, integer_keys_to_uuids};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("notes.sqlite");
//! let db = rusqlite::Connection::open(&file)?;
//! db.execute_batch(
//!     "CREATE TABLE notebooks (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL);
//!      CREATE TABLE notes (id INTEGER PRIMARY KEY, notebook_id INTEGER REFERENCES notebooks (id), text TEXT);
//!      INSERT INTO notebooks (name) VALUES ('travel');
//!      INSERT INTO notes (notebook_id, text) VALUES (1, 'pack'), (NULL, 'call');",
//! )?;
//! drop(db); // nobody may have the file open meanwhile
//!
//! // The same on every device that has a copy of this database, and another for any other database.
//! let namespace = uuid::uuid!("0198c0de-5a5a-7000-8000-0000000000aa");
//! let report = integer_keys_to_uuids(&file, &IntegerKeys::new(namespace).table("notebooks").table("notes"))?;
//! assert_eq!(report.rows, [("notebooks".to_owned(), 1), ("notes".to_owned(), 2)]);
//! assert_eq!(report.references[0].rewritten, 1);
//! assert!(report.backup.ends_with("notes.sqlite.before-uuid-keys"));
//!
//! let db = rusqlite::Connection::open(&file)?;
//! let texts = "SELECT n.text FROM notes n JOIN notebooks b ON b.id = n.notebook_id WHERE length(b.id) = 16";
//! assert_eq!(db.query_row(texts, [], |row| row.get::<_, String>(0))?, "pack");
//! # Ok(())
//! # }
//! ```
//!
//! # The same record, the same key
//!
//! The UUID of a row follows from the namespace, the table's name and the old key ([`uuid_for`]), and from nothing
//! else. So two devices that each migrate their copy of one database give the same record the same key, and a backup
//! that is migrated again gets the same keys again. Therefore the namespace must be the same for copies of one
//! database, and different for databases in which the same number means different records: those that each began
//! empty on its own device, or that went on counting after they were copied. UUIDs sort as the integers did, and
//! before the UUIDv7 keys of rows that are written later.
//!
//! # What it leaves out
//!
//! It does not read what the application's own code, its views and its triggers *do* with keys; [`Report::to_review`]
//! names the views and triggers to look at. Constraints, generated columns and indexes that calculate with a key are
//! refused, as are full-text tables over a converted one or fed by its triggers. The file is not packed: it holds free
//! pages of about the size of the old tables, which SQLite uses again, or `VACUUM` returns. On Windows a file of more
//! than 1 GiB cannot be copied while SQLite has it locked, and is refused.

mod backup;
mod change;
mod check;
mod error;
mod fingerprint;
mod key;
mod plan;
mod references;
mod rewrite;
mod schema;
mod token;
mod validate;

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use uuid::Uuid;

use crate::{capture::quote, library};
use backup::Backup;
pub use error::KeysError;
use fingerprint::{Fingerprint, When};
pub use key::uuid_for;
use plan::Plan;

/// How long another connection may take to finish what it is in before the migration gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Page cache in KiB. What a change touches beyond that goes to the disk before the commit, behind a journal.
const CACHE_KIB: i64 = 16 * 1024;

/// Which keys are to become UUIDs.
#[derive(Clone)]
pub struct IntegerKeys {
    namespace: Uuid,
    tables: Vec<String>,
    references: Vec<(String, String, String)>,
    tell: Arc<dyn Fn(Step<'_>) + Send + Sync>,
}

impl IntegerKeys {
    /// Begins with no table. Give copies of one database the same namespace, and any other database another: the
    /// [front page](self) says why.
    pub fn new(namespace: Uuid) -> Self {
        Self { namespace, tables: Vec::new(), references: Vec::new(), tell: Arc::new(|_| ()) }
    }

    /// Names a table whose `INTEGER PRIMARY KEY` becomes a UUID. Declared foreign keys to it are found by themselves.
    #[must_use]
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.tables.push(name.into());
        self
    }

    /// Names a column that holds keys of `parent` without a declared foreign key. `parent` must be named by
    /// [`table`](Self::table) too.
    #[must_use]
    pub fn reference(
        mut self,
        table: impl Into<String>,
        column: impl Into<String>,
        parent: impl Into<String>,
    ) -> Self {
        self.references.push((table.into(), column.into(), parent.into()));
        self
    }

    /// Is called at the beginning of every step, on the thread of the migration.
    #[must_use]
    pub fn progress(mut self, tell: impl Fn(Step<'_>) + Send + Sync + 'static) -> Self {
        self.tell = Arc::new(tell);
        self
    }
}

impl fmt::Debug for IntegerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntegerKeys")
            .field("namespace", &self.namespace)
            .field("tables", &self.tables)
            .field("references", &self.references)
            .finish_non_exhaustive()
    }
}

/// What the migration begins to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step<'a> {
    /// Looks for what could go wrong; reads every row.
    Checking,
    /// Copies the file.
    Copying,
    /// Makes a table again.
    Rewriting {
        /// Table.
        table: &'a str,
        /// How many are done.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// Compares the database with what it was; reads every row.
    Validating,
    /// Makes it last. Only a failing disk can come between now.
    Committing,
}

/// What the migration did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Tables that were rewritten, with their rows.
    pub rows: Vec<(String, u64)>,
    /// References that were rewritten.
    pub references: Vec<Rewritten>,
    /// Views and triggers that mention a converted column. They were kept as they are, and they compile; whether they
    /// calculate with a key, only the application's author knows.
    pub to_review: Vec<String>,
    /// The copy of the database as it was. Delete it when you no longer need it.
    pub backup: PathBuf,
    /// How long it took.
    pub took: Duration,
}

/// A column that refers to converted keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rewritten {
    /// Its table.
    pub table: String,
    /// Its name.
    pub column: String,
    /// Table to which it refers.
    pub parent: String,
    /// How many rows have a reference in it.
    pub rewritten: u64,
}

/// Makes the integer keys of these tables UUIDs, and all references to them, as the [front page](self) says.
///
/// Run it before the application opens the database, in its next release, whose models have `Uuid` where they had
/// integers. It needs free space of about three times the file, and blocks until it is done: in an asynchronous
/// program, call it before the runtime starts or within `spawn_blocking`.
///
/// Where the database has a write-ahead log, what is committed there is first moved into the file, as closing the last
/// connection does; "as it was" means the file after that. The journal mode stays.
///
/// # Errors
/// [`KeysError`] says what is in the way, on which table and row. The database is as it was then, and the backup of
/// this run is gone.
pub fn integer_keys_to_uuids(database: impl AsRef<Path>, keys: &IntegerKeys) -> Result<Report, KeysError> {
    let began = Instant::now();
    let no_file = |_| KeysError::NoFile { path: database.as_ref().to_owned() };
    let path = database.as_ref().canonicalize().map_err(no_file)?;
    if keys.tables.is_empty() {
        return Err(KeysError::NoTable);
    }
    let mut taken = Taken::take(&path)?;
    match convert(&mut taken, &path, keys) {
        Ok(report) => {
            // The connection's end does the same, but says nothing of errors; here they do not matter either.
            let _ = taken.conn.query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            Ok(Report { took: began.elapsed(), ..report })
        }
        Err(error) => {
            if !taken.conn.is_autocommit() {
                // What it leaves undone shows below, when the file is compared with its copy.
                let _ = taken.conn.execute_batch("ROLLBACK");
            }
            Err(taken.backup.undo(error, &path))
        }
    }
}

/// A database that nobody else can read or write.
///
/// The order matters. On Unix, closing *any* handle of a file lets go of all locks that the process has on it: so the
/// backup opens the file when SQLite has it alone, and closes it when SQLite no longer needs its locks.
struct Taken {
    conn: Connection,
    backup: Backup,
    _lock: File,
}

impl Taken {
    fn take(path: &Path) -> Result<Self, KeysError> {
        let lock = library::lock(path)?;
        let conn = take(path)?;
        Ok(Self { backup: Backup::of(path)?, conn, _lock: lock })
    }
}

/// Opens the database and keeps everybody else out of it.
fn take(path: &Path) -> Result<Connection, KeysError> {
    let refused = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            KeysError::InUse { path: path.to_owned() }
        }
        _ => KeysError::Database { what: format!("opening {}", path.display()), source },
    };
    let access = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, access).map_err(refused)?;
    conn.busy_timeout(LOCK_PATIENCE).map_err(refused)?;
    // In a write-ahead log only the exclusive mode keeps readers out.
    conn.query_row("PRAGMA main.locking_mode = EXCLUSIVE", [], |_| Ok(())).map_err(refused)?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB).map_err(refused)?;
    conn.execute_batch(
        "PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON; PRAGMA synchronous = FULL",
    )
    .map_err(refused)?;
    let is_busy = conn.query_row("PRAGMA main.wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    if is_busy.map_err(refused)? {
        return Err(KeysError::InUse { path: path.to_owned() });
    }
    conn.execute_batch("BEGIN EXCLUSIVE").map_err(refused)?;
    Ok(conn)
}

/// All of it, within the transaction that is open, commit included.
fn convert(taken: &mut Taken, path: &Path, keys: &IntegerKeys) -> Result<Report, KeysError> {
    let Taken { conn, backup, .. } = taken;
    let tell = &*keys.tell;
    tell(Step::Checking);
    refuse_library(conn, path)?;
    let plan = Plan::make(conn, keys)?;
    check::before(conn, path, &plan)?;
    backup.refuse_other()?;
    let before = Fingerprint::take(conn, &plan, When::Before)?;

    tell(Step::Copying);
    backup.write()?;
    change::make(conn, &plan, tell)?;

    tell(Step::Validating);
    validate::after(conn, &plan, &before)?;
    let report = report(conn, &plan, &before, backup)?;

    backup.place()?;
    tell(Step::Committing);
    conn.execute_batch("COMMIT").map_err(KeysError::during("the commit"))?;
    Ok(report)
}

/// Keys that other devices know can no longer be changed.
fn refuse_library(conn: &Connection, path: &Path) -> Result<(), KeysError> {
    let reading = || KeysError::during("looking whether the database is in a library");
    if !schema::exists(conn, "sync_replica").map_err(reading())? {
        return Ok(());
    }
    let is_in_library =
        conn.prepare("SELECT 1 FROM main.sync_replica").and_then(|mut statement| statement.exists([]));
    if is_in_library.map_err(reading())? {
        return Err(KeysError::InLibrary { path: path.to_owned() });
    }
    Ok(())
}

fn report(
    conn: &Connection,
    plan: &Plan,
    before: &Fingerprint,
    backup: &Backup,
) -> Result<Report, KeysError> {
    let mut references = Vec::new();
    for rebuild in &plan.rebuilds {
        let table = &rebuild.table.name;
        for converted in rebuild.references() {
            let sql = format!("SELECT count({}) FROM main.{}", quote(&converted.column), quote(table));
            let rewritten = conn.query_row(&sql, [], |row| row.get(0));
            references.push(Rewritten {
                table: table.clone(),
                column: converted.column.clone(),
                parent: converted.target.clone(),
                rewritten: rewritten.map_err(KeysError::during("counting references"))?,
            });
        }
    }
    let rows = plan.rebuilds.iter().map(|rebuild| &rebuild.table.name);
    Ok(Report {
        rows: rows.map(|table| (table.clone(), before.rows(table))).collect(),
        references,
        to_review: plan.to_review(),
        backup: backup.path.clone(),
        took: Duration::ZERO,
    })
}

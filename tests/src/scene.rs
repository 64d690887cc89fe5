//! A leader and a follower over schemas of a scenario's own, and a look at their files past SeaORM.
//!
//! `tidelog::testing::pair` makes its tables from the entities. Scenarios about collations, cascades, migrations and
//! values that no Rust type holds write the schema as SQL, close and reopen devices, and compare what SQLite stores:
//! that is what a [`Scene`] is for.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sea_orm::{ConnectionTrait, TransactionTrait};
use tempfile::TempDir;
use tidelog::{
    Connection, Error, Library, LibraryBuilder, Status, connect,
    id::{DeviceId, LibraryId},
    transport::MemoryNetwork,
};

/// How long a scenario waits for what must come, before it fails and tells how things stand.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Names the models of a library.
pub type Register = fn(LibraryBuilder) -> LibraryBuilder;

/// One device: its database, and the library over it.
pub struct Device {
    /// The application's connection.
    pub db: Connection,
    /// The open library.
    pub library: Library,
    file: PathBuf,
    id: DeviceId,
}

/// A leader and a follower, their databases in a temporary folder that goes with the scene.
pub struct Scene {
    /// Leads.
    pub leader: Device,
    /// Follows.
    pub follower: Device,
    /// The library of both.
    pub id: LibraryId,
    /// What both are plugged into.
    pub network: MemoryNetwork,
    folder: TempDir,
}

impl Scene {
    /// Sets up a leader and a follower over the tables of `schema`, both started.
    pub async fn set(schema: &str, register: Register) -> Self {
        let scene = Self::unstarted(schema, register).await;
        scene.start().await;
        scene
    }

    /// Sets up both, open but not started: triggers record, nothing is sealed yet.
    pub async fn unstarted(schema: &str, register: Register) -> Self {
        let (folder, network, id) = (tempfile::tempdir().unwrap(), MemoryNetwork::new(), LibraryId::random());
        let leader = Device::new(folder.path(), 1, schema, |b| register(b).create(id)).await;
        let follower = Device::new(folder.path(), 2, schema, |b| register(b).join(id)).await;
        Self { leader, follower, id, network, folder }
    }

    /// Starts both.
    pub async fn start(&self) {
        self.leader.start(&self.network).await;
        self.follower.start(&self.network).await;
    }

    /// A further follower, started; it comes late to the library.
    pub async fn join(&self, number: u8, schema: &str, register: Register) -> Device {
        let device = Device::new(self.folder.path(), number, schema, |b| register(b).join(self.id)).await;
        device.start(&self.network).await;
        device
    }

    /// Waits until what is committed on the leader now is on the follower.
    pub async fn level(&self) {
        self.leader.library.barrier().await.unwrap();
        self.follower.reached(&self.leader).await;
    }

    /// The follower goes offline; both write; it comes back, and both are level.
    pub async fn apart(mut self, register: Register, on_leader: &[&str], on_follower: &[&str]) -> Self {
        let closed = self.follower.close().await;
        for sql in on_leader {
            self.leader.sql(sql).await;
        }
        self.leader.library.barrier().await.unwrap();
        let db = closed.connect().await;
        for sql in on_follower {
            db.execute_unprepared(sql).await.unwrap();
        }
        db.close().await.unwrap();
        self.follower = closed.reopen(register).await.unwrap();
        self.follower.start(&self.network).await;
        self.follower.library.barrier().await.unwrap();
        self
    }

    /// Levels both and asserts that these columns hold the same bits on both.
    pub async fn assert_level(&self, table: &str, columns: &str) {
        self.level().await;
        assert_eq!(self.leader.dump(table, columns), self.follower.dump(table, columns), "table `{table}`");
    }
}

impl Device {
    /// Makes a database with the tables of `schema` and opens a library on it.
    pub async fn new(
        folder: &Path,
        number: u8,
        schema: &str,
        builder: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
    ) -> Self {
        let file = folder.join(format!("device{number}.sqlite"));
        let db = open_file(&file).await;
        db.execute_unprepared(schema).await.unwrap();
        let library = builder(Library::builder(&db).hands_over(false)).open().await.unwrap();
        Self { db, library, file, id: DeviceId([number; 32]) }
    }

    /// Starts the library as this device.
    pub async fn start(&self, network: &MemoryNetwork) {
        self.library.start(Arc::new(network.plug(self.id))).await.unwrap();
    }

    /// Shuts the library and the connections down and returns the file.
    pub async fn close(self) -> Closed {
        self.library.shutdown().await;
        self.db.close().await.unwrap();
        Closed { file: self.file, id: self.id }
    }

    /// Goes offline and writes there: each of these in a transaction of its own.
    pub async fn away(self, writes: &[&str]) -> Closed {
        let closed = self.close().await;
        let db = closed.connect().await;
        for sql in writes {
            let transaction = db.begin().await.unwrap();
            transaction.execute_unprepared(sql).await.unwrap();
            transaction.commit().await.unwrap();
        }
        db.close().await.unwrap();
        closed
    }

    /// [`Library::barrier`], with an end.
    pub async fn level(&self) {
        let level = tokio::time::timeout(WAIT_MAX, self.library.barrier()).await;
        level.unwrap_or_else(|_| panic!("not level: {:?}", self.library.status().borrow())).unwrap();
    }

    /// The database file as a connection sees it that knows nothing of tidelog.
    pub fn file(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.file).unwrap()
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Runs statements of the application.
    pub async fn sql(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.unwrap();
    }

    /// See [`dump`].
    pub fn dump(&self, table: &str, columns: &str) -> Vec<String> {
        dump(&self.file(), table, columns)
    }

    /// The entries of the log, without terms and members: `update note n1 [title]`, `insert note n2`, `delete note n3`.
    /// The fields stand there where they are not all.
    pub fn log(&self) -> Vec<String> {
        log(&self.file())
    }

    /// Rows that a seal has yet to take.
    pub fn outbox(&self) -> i64 {
        number(&self.file(), "SELECT count(*) FROM sync_outbox WHERE kind <> 0")
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, what: &str, wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.library.status();
        let found = tokio::time::timeout(WAIT_MAX, status.wait_for(wanted)).await;
        match found {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("not {what} after {WAIT_MAX:?}: {:?}", self.library.status().borrow()),
        }
    }

    /// Waits until this device's log reaches the top of the other's.
    pub async fn reached(&self, other: &Self) {
        let top = other.library.position().await.unwrap();
        self.until("level", |status| status.position.seq >= top.seq).await;
    }
}

/// A device whose library is shut down.
pub struct Closed {
    file: PathBuf,
    id: DeviceId,
}

impl Closed {
    /// A database that somebody else made, for device `number`.
    pub fn of(file: PathBuf, number: u8) -> Self {
        Self { file, id: DeviceId([number; 32]) }
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// A connection of the application, with no library open.
    pub async fn connect(&self) -> Connection {
        open_file(&self.file).await
    }

    /// The database file as a connection sees it that knows nothing of tidelog.
    pub fn file(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.file).unwrap()
    }

    /// Opens the library again, starts it and waits until it is level with the leader, each knowing what the other wrote
    /// meanwhile.
    pub async fn back(
        &self,
        network: &MemoryNetwork,
        register: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
    ) -> Device {
        let device = self.reopen(register).await.unwrap();
        device.start(network).await;
        device.level().await;
        device
    }

    /// Opens the library again, with these models.
    ///
    /// # Errors
    /// Why it could not be opened.
    pub async fn reopen(
        &self,
        register: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
    ) -> Result<Device, Error> {
        let db = self.connect().await;
        let library = register(Library::builder(&db).hands_over(false)).existing().open().await?;
        Ok(Device { db, library, file: self.file.clone(), id: self.id })
    }
}

async fn open_file(file: &Path) -> Connection {
    connect(&format!("sqlite://{}?mode=rwc", file.display())).await.unwrap()
}

/// What SQLite stores in these columns, class and bits, sorted: `text:68656c6c6f integer:1 real:3ff0000000000000`.
pub fn dump(file: &rusqlite::Connection, table: &str, columns: &str) -> Vec<String> {
    let mut statement = file.prepare(&format!("SELECT {columns} FROM {table}")).unwrap();
    let count = statement.column_count();
    let mut rows: Vec<String> = statement
        .query_map([], |row| {
            let mut line = String::new();
            for i in 0..count {
                line.push_str(if i > 0 { " " } else { "" });
                line.push_str(&stored(row.get_ref(i)?));
            }
            Ok(line)
        })
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    rows.sort();
    rows
}

/// A value's storage class and bits.
pub fn stored(value: rusqlite::types::ValueRef<'_>) -> String {
    use rusqlite::types::ValueRef;
    let hex = |class: &str, bytes: &[u8]| {
        bytes.iter().fold(format!("{class}:"), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
    };
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(i) => format!("integer:{i}"),
        ValueRef::Real(r) => format!("real:{:016x}", r.to_bits()),
        ValueRef::Text(bytes) => hex("text", bytes),
        ValueRef::Blob(bytes) => hex("blob", bytes),
    }
}

/// The log, every column of its entries but the image before, which is for local use: the same on every device.
pub fn entries(file: &rusqlite::Connection) -> Vec<String> {
    let columns =
        "printf('%09d', seq), kind, n, stamp, rank, at, record, existed, fields, data, change, mark, actor";
    dump(file, "sync_entry", columns)
}

/// See [`Device::log`].
pub fn log(file: &rusqlite::Connection) -> Vec<String> {
    let sql = "SELECT kind || ' ' || model || ' ' || record || coalesce(' ' || replace(changed_fields, '\"', ''), '')
        FROM sync_log WHERE model IS NOT NULL ORDER BY seq";
    let mut statement = file.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// The integer that a statement yields.
pub fn number(file: &rusqlite::Connection, sql: &str) -> i64 {
    file.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// The text that a statement yields.
pub fn text(file: &rusqlite::Connection, sql: &str) -> String {
    file.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Asserts that a text says all of these.
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

//! Devices for scenarios: a leader and followers with real SQLite files, over the memory network or over QUIC, that
//! can be stopped or dropped at any moment and opened again from the same file.
//!
//! What a scenario compares is read by plain rusqlite, from tables and log, by code that shares nothing with tidelog.
//! A wait is for a condition and has an end; where it ends, the text says how everybody stands.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, TransactionTrait};
use tempfile::TempDir;
use tidelog::{
    Connection, Library, LibraryBuilder,
    id::{DeviceId, LibraryId, Position, Seq},
    status::{Link, Status},
    transport::{MemoryNetwork, MemoryTransport, SharedTransport, Transport},
};
use tidelog_transport::{Identity, Peer, Quic, QuicOptions};

use crate::small::{SYNCED, TABLES, item, person, team};

/// No condition of a scenario takes this long unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Waits for the future, but not for ever.
#[track_caller]
pub fn soon<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let at = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{what}: not within {PATIENCE:?} ({at})"),
        }
    }
}

/// Waits until `attempt` gives something; asks again and again meanwhile.
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails with the whole text if one of the parts is not in it.
#[track_caller]
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

/// A folder with the databases of one library's devices, and the network between them.
pub struct Site {
    /// The library.
    pub id: LibraryId,
    /// Where the databases are.
    pub folder: TempDir,
    /// What devices that are started without another transport are plugged into.
    pub network: MemoryNetwork,
}

/// The device id that the memory network has for a number.
pub fn device(number: u8) -> DeviceId {
    DeviceId([number; 32])
}

impl Site {
    /// An empty folder and a network of its own.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self { id: LibraryId::random(), folder: tempfile::tempdir().unwrap(), network: MemoryNetwork::new() }
    }

    /// Where a device's database is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.sqlite"))
    }

    /// Device 1, open and not started: it created the library, or goes on with it.
    pub async fn open_leader(&self) -> Device {
        let id = self.id;
        Device::open(&self.path("leader"), |library| library.create(id)).await.unwrap()
    }

    /// Device `number`, open and not started.
    pub async fn open_follower(&self, number: u8) -> Device {
        let id = self.id;
        let path = self.path(&format!("follower-{number}"));
        Device::open(&path, |library| library.join(id)).await.unwrap()
    }

    /// Device 1, started.
    pub async fn leader(&self) -> Device {
        self.open_leader().await.plug(&self.network, 1).await
    }

    /// Device `number` (not 1), started.
    pub async fn follower(&self, number: u8) -> Device {
        self.open_follower(number).await.plug(&self.network, number).await
    }
}

/// One device: a database, its library, and the transport it is started on.
pub struct Device {
    /// The database.
    pub path: PathBuf,
    /// What the application reads and writes through.
    pub db: Connection,
    /// The open library.
    pub library: Library,
    memory: Option<Arc<MemoryTransport>>,
    quic: Option<Arc<Quic>>,
}

/// Opens the application's connection, and makes the tables if they are not there.
pub async fn connect(path: &Path) -> Connection {
    let db = tidelog::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    for table in TABLES {
        db.execute_unprepared(&table.replacen("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1))
            .await
            .unwrap();
    }
    db
}

/// A builder with the models of [`small`](crate::small).
pub fn builder(db: &Connection) -> LibraryBuilder {
    // Who leads is the scenario's business.
    Library::builder(db)
        .hands_over(false)
        .model::<item::Entity>()
        .model::<team::Entity>()
        .model::<person::Entity>()
}

impl Device {
    /// Opens a database and the library on it, by `enter`.
    ///
    /// # Errors
    /// What the library says. One that is still being given up by a device that was dropped is waited for.
    pub async fn open(
        path: &Path,
        enter: impl Fn(LibraryBuilder) -> LibraryBuilder,
    ) -> Result<Self, tidelog::Error> {
        let db = connect(path).await;
        let library = enter(builder(&db)).open().await?;
        Ok(Self { path: path.to_owned(), db, library, memory: None, quic: None })
    }

    /// Starts on the memory network.
    pub async fn plug(mut self, network: &MemoryNetwork, number: u8) -> Self {
        let transport = Arc::new(network.plug(device(number)));
        self.memory = Some(Arc::clone(&transport));
        self.library.start(transport).await.unwrap();
        self
    }

    /// Starts over QUIC.
    pub async fn start_on(mut self, quic: Arc<Quic>) -> Self {
        self.quic = Some(Arc::clone(&quic));
        self.library.start(quic as SharedTransport).await.unwrap();
        self
    }

    /// Ends the device in good order.
    pub async fn stop(self) {
        soon("the shutdown", self.library.shutdown()).await;
        if let Some(quic) = &self.quic {
            quic.close().await;
        }
        self.db.close().await.unwrap();
    }

    /// Drops everything as it is, and waits until another may open the database.
    pub async fn give_up(self) {
        let mut lock = self.path.clone().into_os_string();
        lock.push("-sync");
        drop(self);
        let lock = std::fs::File::options().write(true).open(lock).unwrap();
        eventually("the lock of a dropped library is free", async || lock.try_lock().ok()).await;
    }

    /// Runs statements in one transaction.
    pub async fn write(&self, statements: &[&str]) {
        let tx = self.db.begin().await.unwrap();
        for statement in statements {
            tx.execute_unprepared(statement).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.library.status().borrow().clone()
    }

    /// Waits for a status.
    #[track_caller]
    pub fn shows(&self, what: &str, condition: impl FnMut(&Status) -> bool) -> impl Future<Output = Status> {
        let at = std::panic::Location::caller();
        let mut status = self.library.status();
        async move {
            let found = tokio::time::timeout(PATIENCE, status.wait_for(condition)).await;
            if let Ok(found) = found {
                return found.unwrap().clone();
            }
            drop(found);
            panic!("{what}: not within {PATIENCE:?} ({at}): {:?}", status.borrow())
        }
    }

    /// Waits until the link has stopped, and says why it has.
    pub async fn stopped(&self) -> String {
        let status = self.shows("the link stops", |s| matches!(s.link, Link::Stopped { .. })).await;
        match status.link {
            Link::Stopped { reason } => reason,
            _ => unreachable!("the condition was met"),
        }
    }

    /// Seals what is committed here and says where the log then reaches. For leaders.
    pub async fn sealed(&self) -> Position {
        soon("the leader's barrier", self.library.barrier()).await.unwrap();
        self.library.position().await.unwrap()
    }

    /// Waits until the log here reaches `top`.
    pub async fn reaches(&self, top: Seq) {
        self.shows(&format!("entry {top}"), |s| s.position.seq >= top).await;
    }

    /// What the database holds now.
    pub fn dump(&self) -> Dump {
        Dump::of(&self.path)
    }
}

/// Waits until the followers hold what the leader has committed, and checks that tables and logs are equal.
#[track_caller]
pub fn level(leader: &Device, followers: &[&Device]) -> impl Future<Output = Dump> {
    let at = std::panic::Location::caller();
    async move {
        let top = leader.sealed().await;
        for follower in followers {
            follower.reaches(top.seq).await;
        }
        // A follower that came just now is being made a member, so logs may still grow while they are read.
        for follower in followers {
            let (there, here) = eventually(&format!("logs of one length ({at})"), async || {
                let (there, here) = (leader.dump(), follower.dump());
                (there.entries.len() == here.entries.len()).then_some((there, here))
            })
            .await;
            there.assert_equals(&here, &format!("{} ({at})", follower.path.display()));
        }
        leader.dump()
    }
}

/// What is the same on every device that holds the same position: synced columns, entries, groups, terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    /// The rows of the synced tables, each with its table's name.
    pub rows: Vec<String>,
    /// The log: every column of its entries but the image before, which is for local use.
    pub entries: Vec<String>,
    /// Groups and leadership history.
    pub groups: Vec<String>,
    /// The leadership history.
    pub terms: Vec<String>,
}

impl Dump {
    /// Reads a database, in one snapshot, without tidelog.
    pub fn of(path: &Path) -> Self {
        let mut conn = reader(path);
        let tx = conn.transaction().unwrap();
        let mut rows = Vec::new();
        for (table, columns) in SYNCED {
            let list = columns.iter().map(|c| format!("quote({c})")).collect::<Vec<_>>().join(", ");
            rows.extend(
                lines(&tx, &format!("SELECT {list} FROM {table} ORDER BY id"))
                    .into_iter()
                    .map(|row| format!("{table}: {row}")),
            );
        }
        let entries = lines(
            &tx,
            "SELECT seq, kind, n, stamp, rank, at, (SELECT name FROM sync_model m WHERE m.id = e.model), record,
                existed, fields, data, change, mark, actor FROM sync_entry e ORDER BY seq",
        );
        let groups = lines(
            &tx,
            "SELECT first, last, (SELECT origin || ' of ' || device FROM sync_origin o WHERE o.id = g.origin),
                first_n, tag, base_term, base_seq, seen FROM sync_group g ORDER BY first",
        );
        let terms = lines(&tx, "SELECT first, number, leader, counter, nonce FROM sync_term ORDER BY first");
        Self { rows, entries, groups, terms }
    }

    /// Fails with the first line that differs.
    #[track_caller]
    pub fn assert_equals(&self, other: &Self, whose: &str) {
        for (what, mine, theirs) in [
            ("rows", &self.rows, &other.rows),
            ("entries", &self.entries, &other.entries),
            ("groups", &self.groups, &other.groups),
            ("terms", &self.terms, &other.terms),
        ] {
            if let Some(i) = (0..mine.len().max(theirs.len())).find(|&i| mine.get(i) != theirs.get(i)) {
                let (count, of) = (mine.len(), theirs.len());
                let (mine, theirs) = (mine.get(i), theirs.get(i));
                let (a, b) = (mine.map_or("", |line| line), theirs.map_or("", |line| line));
                let at = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
                let around =
                    |line: &str| -> String { line.chars().skip(at.saturating_sub(200)).take(400).collect() };
                panic!(
                    "{what} differ from {whose} in line {i} of {count} and {of}, at byte {at} of {} and {}:\n{}\n{}",
                    a.len(),
                    b.len(),
                    around(a),
                    around(b)
                );
            }
        }
    }
}

/// A read-only connection of somebody who knows nothing of tidelog.
pub fn reader(path: &Path) -> rusqlite::Connection {
    let conn =
        rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn
}

/// A writable one, for tampering with a closed database.
pub fn tamper(path: &Path, sql: &str) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn.execute_batch(sql).unwrap();
}

/// One number out of a database.
pub fn number(path: &Path, sql: &str) -> i64 {
    reader(path).query_row(sql, [], |row| row.get(0)).unwrap()
}

/// The rows of a query as text, in SQLite's own notation.
pub fn lines(conn: &rusqlite::Connection, sql: &str) -> Vec<String> {
    let mut statement = conn.prepare(sql).unwrap();
    let count = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values = (0..count).map(|i| match row.get_ref(i)? {
            rusqlite::types::ValueRef::Null => Ok("NULL".to_owned()),
            rusqlite::types::ValueRef::Integer(i) => Ok(i.to_string()),
            rusqlite::types::ValueRef::Real(r) => Ok(format!("{r:?}")),
            rusqlite::types::ValueRef::Text(t) => Ok(String::from_utf8_lossy(t).into_owned()),
            rusqlite::types::ValueRef::Blob(b) => Ok(format!("{b:?}")),
        });
        Ok(values.collect::<rusqlite::Result<Vec<_>>>()?.join(" | "))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// The address at which a test's endpoint listens: loopback, any free port.
pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An endpoint on loopback with a fresh key, that knows these peers.
pub async fn quic(peers: Vec<Peer>) -> Arc<Quic> {
    quic_as(Identity::generate().unwrap(), LOOPBACK, peers).await
}

/// An endpoint on loopback.
pub async fn quic_as(identity: Identity, listen: SocketAddr, peers: Vec<Peer>) -> Arc<Quic> {
    Arc::new(Quic::bind(identity, QuicOptions { listen, peers, ..QuicOptions::default() }).await.unwrap())
}

/// So many endpoints on loopback that know each other.
pub async fn quic_among(count: usize) -> Vec<Arc<Quic>> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(quic(vec![]).await);
    }
    for one in &all {
        for other in all.iter().filter(|other| other.device() != one.device()) {
            one.add_peer(other.device(), Some(other.local_addr().unwrap()));
        }
    }
    all
}

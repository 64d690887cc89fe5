//! A simulated device: its database, the application that writes there, the replica that syncs it, and how both end.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use rusqlite::{Connection, config::DbConfig};
use tidelog::{
    Error, Library,
    id::{DeviceId, LibraryId},
    model::ModelDescriptor,
    testing::replica::{Crash, Identity, Memory, Replica},
    world::World,
};

use super::{
    mirror::{self, Rows},
    workload::{self, Transaction},
};
use crate::dice::Dice;

/// The time when a simulation begins, ms since 1970.
pub const BEGIN: i64 = 1_700_000_000_000;

/// Databases that all simulated devices begin with: the library is made, and nothing has happened in it.
pub struct Templates {
    folder: PathBuf,
    _kept: tempfile::TempDir,
    models: Vec<ModelDescriptor>,
}

/// Where databases live that need not survive the machine.
pub fn folder() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    let made = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    made.expect("a temporary folder can be made")
}

impl Templates {
    /// Makes the databases, through the library as an application opens it.
    ///
    /// # Panics
    /// If that fails.
    pub fn make() -> Self {
        let kept = folder();
        let id = LibraryId(uuid::Uuid::from_u128(0x5157));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        for name in ["founder", "joiner"] {
            let file = kept.path().join(name);
            let conn = Connection::open(&file).expect("a database can be made");
            // Small pages: a commit copies fewer bytes.
            conn.execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = WAL;")
                .expect("settings are taken");
            workload::create_tables(&conn).expect("the schema is sound");
            drop(conn);
            runtime.block_on(async {
                let url = format!("sqlite://{}", file.display());
                let db = tidelog::connect(&url).await.expect("the database can be opened");
                let builder = workload::register(Library::builder(&db));
                let builder = if name == "founder" { builder.create(id) } else { builder.join(id) };
                let library = builder.open().await.expect("the library can be opened");
                library.shutdown().await;
                drop(library);
                db.close().await.expect("the database can be closed");
            });
            let conn = Connection::open(&file).expect("the database can be opened");
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody is there");
        }
        Self { folder: kept.path().to_owned(), _kept: kept, models: workload::models() }
    }
}

/// The clock and the randomness of one device.
pub struct DeviceWorld {
    /// The simulation's time, ms since its beginning.
    time: Arc<AtomicI64>,
    /// How far this device's clock is ahead.
    ahead: AtomicI64,
    dice: AtomicU64,
}

impl World for DeviceWorld {
    fn now(&self) -> i64 {
        BEGIN + self.time.load(Ordering::Relaxed) + self.ahead.load(Ordering::Relaxed)
    }

    fn random(&self) -> u64 {
        let mut dice = Dice(self.dice.load(Ordering::Relaxed));
        let random = dice.roll(u64::MAX);
        self.dice.store(dice.0, Ordering::Relaxed);
        random
    }
}

/// How a step of a device ended.
pub enum Ended<T> {
    /// In good order.
    Done(T),
    /// It was cut off: the device is down.
    Crashed(Crash),
}

/// A simulated device.
pub struct Device {
    /// Its database.
    pub path: PathBuf,
    /// Its key.
    pub id: DeviceId,
    /// The replica; `None` while the device is down.
    pub replica: Option<Replica>,
    /// The application's connection, and what checks read by.
    pub app: Option<Connection>,
    identity: Identity,
    world: Arc<DeviceWorld>,
    /// What of the write-ahead log a power failure leaves, as of its end, while it is down.
    survives: Option<(u64, u64)>,
    /// A copy that was made of the database, and what the process then had in memory.
    backup: Option<Memory>,
    /// It is to begin with this in its memory.
    open_with: Option<Memory>,
}

impl Device {
    /// A fresh device: number 0 founds the library.
    pub fn new(
        folder: &Path,
        templates: &Templates,
        number: usize,
        count: usize,
        seed: u64,
        time: &Arc<AtomicI64>,
    ) -> Self {
        let path = folder.join(format!("d{number}"));
        let template = if number == 0 { "founder" } else { "joiner" };
        fs::copy(templates.folder.join(template), &path).expect("there is room for a database");
        let world = Arc::new(DeviceWorld {
            time: Arc::clone(time),
            ahead: AtomicI64::new(0),
            dice: AtomicU64::new(seed.wrapping_mul(31).wrapping_add(number as u64 * 7919)),
        });
        let all: Vec<DeviceId> = (0..count).map(Self::key).collect();
        let id = all[number];
        let identity = Identity {
            device: id,
            peers: all.iter().copied().filter(|d| *d != id).collect(),
            precedence: all.iter().zip(1..).map(|(d, rank)| (*d, rank)).collect::<BTreeMap<_, u8>>(),
            models: templates.models.clone(),
            world: Arc::clone(&world) as Arc<dyn World>,
        };
        Self {
            path,
            id,
            replica: None,
            app: None,
            identity,
            world,
            survives: None,
            backup: None,
            open_with: None,
        }
    }

    /// The key of the device with this number.
    pub fn key(number: usize) -> DeviceId {
        DeviceId([number as u8 + 1; 32])
    }

    /// Sets the clock forward or back.
    pub fn shift_clock(&self, by: i64) {
        self.world.ahead.fetch_add(by, Ordering::Relaxed);
    }

    /// Opens the database, and starts.
    ///
    /// # Errors
    /// The replica's.
    pub fn open(&mut self) -> Result<Ended<()>, Error> {
        let (path, identity) = (self.path.clone(), self.identity.clone());
        if self.app.is_none() {
            self.app = Some(connect(&path).map_err(|e| database("opening", e))?);
        }
        let opened = cut_off(|| Replica::open(&path, identity))?;
        Ok(match opened {
            Ended::Done(mut replica) => {
                if let Some(memory) = self.open_with.take() {
                    replica.remember(memory);
                }
                self.survives = None;
                self.replica = Some(replica);
                Ended::Done(())
            }
            Ended::Crashed(crash) => {
                self.crash();
                Ended::Crashed(crash)
            }
        })
    }

    /// Has the replica do something.
    ///
    /// # Errors
    /// The step's.
    pub fn step<T>(
        &mut self,
        step: impl FnOnce(&mut Replica) -> Result<T, Error>,
    ) -> Result<Option<Ended<T>>, Error> {
        let Some(replica) = &mut self.replica else { return Ok(None) };
        let ended = cut_off(|| step(replica))?;
        if let Ended::Crashed(_) = ended {
            self.crash();
        }
        Ok(Some(ended))
    }

    /// The process ends, wherever it is.
    pub fn crash(&mut self) {
        if let Some(mut replica) = self.replica.take() {
            self.survives = Some(replica.survives());
        }
        self.app = None;
    }

    /// The machine loses power: what was not synced may be gone, from some commit on.
    ///
    /// # Errors
    /// The file system's, as text.
    pub fn lose_power(&mut self, choice: u64) -> Result<bool, String> {
        self.crash();
        let Some((synced, written)) = self.survives.take() else { return Ok(false) };
        let left = synced + choice % (written - synced + 1);
        let cut = |e: std::io::Error| format!("cutting the write-ahead log: {e}");
        let log = fs::File::options().write(true).open(with_suffix(&self.path, "-wal")).map_err(cut)?;
        log.set_len(left).map_err(cut)?;
        let _ = fs::remove_file(with_suffix(&self.path, "-shm"));
        Ok(left < written)
    }

    /// Who has captured rows that are not sealed, in a database that nobody syncs just now.
    ///
    /// # Errors
    /// The database's.
    pub fn outbox(&self) -> Result<Vec<String>, Error> {
        let read = || mirror::outbox(&connect(&self.path)?);
        read().map_err(|e| database("reading", e))
    }

    /// The tables, also while it is down.
    ///
    /// # Errors
    /// The database's.
    pub fn tables(&self) -> rusqlite::Result<Rows> {
        match &self.app {
            Some(app) => mirror::tables(app),
            None => mirror::tables(&connect(&self.path)?),
        }
    }

    /// Copies the database, of which all is sealed.
    ///
    /// # Errors
    /// The file system's, as text.
    pub fn back_up(&mut self) -> Result<(), String> {
        let Some(replica) = &self.replica else { return Ok(()) };
        self.backup = Some(replica.memory());
        copy(&self.path, &self.backup_path())
    }

    /// Makes the database what it was when it was last copied, if it was. With its memory: as if the whole machine had been
    /// set back; it is up again then.
    ///
    /// # Errors
    /// The file system's, as text.
    pub fn restore(&mut self, with_memory: bool) -> Result<bool, String> {
        let Some(memory) = self.backup else { return Ok(false) };
        self.crash();
        self.survives = None;
        copy(&self.backup_path(), &self.path)?;
        if with_memory {
            self.open_with = Some(memory);
        }
        Ok(true)
    }

    /// Makes the database a copy of another device's, of which all is sealed.
    ///
    /// # Errors
    /// The file system's, as text.
    pub fn become_copy_of(&mut self, other: &Self) -> Result<(), String> {
        self.crash();
        self.survives = None;
        copy(&other.path, &self.path)
    }

    fn backup_path(&self) -> PathBuf {
        with_suffix(&self.path, ".backup")
    }

    /// Commits a transaction of the application, or nothing of it. The tables before it and after each of its
    /// statements; `None` if the database did not take it.
    ///
    /// # Errors
    /// What is no fault of the transaction.
    pub fn write(&mut self, actor: &str, transaction: &Transaction) -> rusqlite::Result<Option<Vec<Rows>>> {
        let clock = self.world.now();
        let Some(app) = &mut self.app else { return Ok(None) };
        let mark = if transaction.atomic { format!("'m{actor}'") } else { "NULL".to_owned() };
        let mut images = vec![mirror::tables(app)?];
        app.execute_batch("BEGIN IMMEDIATE")?;
        app.execute_batch(&format!("UPDATE sync_ctl SET clock = {clock}, actor = '{actor}', mark = {mark}"))?;
        for statement in &transaction.statements {
            if app.execute_batch(statement).is_err() {
                app.execute_batch("ROLLBACK")?;
                return Ok(None);
            }
            images.push(mirror::tables(app)?);
        }
        app.execute_batch("UPDATE sync_ctl SET actor = NULL, mark = NULL")?;
        // What is left to be checked at the end may not hold.
        if app.execute_batch("COMMIT").is_err() {
            app.execute_batch("ROLLBACK")?;
            return Ok(None);
        }
        Ok(Some(images))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Copies a database while nobody writes there.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    for suffix in ["", "-wal"] {
        let (from, to) = (with_suffix(from, suffix), with_suffix(to, suffix));
        let copied = match from.exists() {
            true => fs::copy(from, to).map(drop),
            false if to.exists() => fs::remove_file(to),
            false => Ok(()),
        };
        copied.map_err(|e| format!("copying a database: {e}"))?;
    }
    // What it says is of the file that was there.
    let _ = fs::remove_file(with_suffix(to, "-shm"));
    Ok(())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let app = Connection::open(path)?;
    app.execute_batch(
        "PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON; PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY;",
    )?;
    app.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    app.set_prepared_statement_cache_capacity(128);
    Ok(app)
}

/// An error of the application's connection, as one of the library's.
pub fn database(what: &'static str, source: rusqlite::Error) -> Error {
    Error::Database { what, source }
}

fn cut_off<T>(step: impl FnOnce() -> Result<T, Error>) -> Result<Ended<T>, Error> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(done) => done.map(Ended::Done),
        Err(cause) => match cause.downcast::<Crash>() {
            Ok(crash) => Ok(Ended::Crashed(*crash)),
            Err(other) => resume_unwind(other),
        },
    }
}

//! One database as the engine sees it: its own rusqlite connection, the registered models, and transactions.
//!
//! Every step of the protocol is a function over a [`Tx`]: it reads, decides and writes inside one IMMEDIATE
//! transaction, so that a crash leaves either all of it or nothing. All state lives in the database; what is kept
//! beside it ([`Minted`]) is what a new opening makes anew anyway.
//!
//! The connection has foreign keys off for life: rows arrive in the order of the log, not of their references.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, config::DbConfig, params, params_from_iter};

use crate::{
    agreed::Agreed,
    announce,
    capture::{self, quote},
    checkpoint::Checkpointer,
    entry::Shape,
    error::Error,
    id::{DeviceId, LibraryId, Origin, OriginSeq, Position, Seq, Term},
    inject::{self, Place},
    layout::Numbers,
    log::{read_run, term_at},
    model::{ModelDescriptor, Recorder},
    reassign::Grant,
    references::References,
    sql::{Bound, read_value},
    tree::Tree,
    value::{self, Value},
    world::World,
};

/// Lowest SQLite that is safe: it fixes a corruption of the write-ahead log.
pub(crate) const SQLITE_NEEDED: (&str, i32) = ("3.51.3", 3_051_003);
/// How long the engine waits for another process that writes.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Page cache of the engine's connection, in KiB.
const CACHE_KIB: i64 = 4 * 1024;
/// Prepared statements kept at hand.
const STATEMENTS: usize = 64;

/// A registered model and the statements that write its rows.
pub(crate) struct Model {
    pub(crate) descriptor: ModelDescriptor,
    pub(crate) recorder: Recorder,
    pub(crate) shape: Arc<Shape>,
    pub(crate) sql: RowSql,
    /// What each field holds in a row that was captured where, or when, the model did not have it.
    pub(crate) fills: Vec<Value>,
    /// The table's foreign keys, its own and those of others to it.
    pub(crate) references: References,
    /// Where its rows form a forest.
    pub(crate) tree: Option<Tree>,
}

/// Statements over one table, parameters in the order of the model's fields (insert, upsert) or of its key (the others).
pub(crate) struct RowSql {
    /// For records that are new, the usual case in a backlog; a little cheaper than an upsert.
    pub(crate) insert: String,
    pub(crate) upsert: String,
    pub(crate) delete: String,
    pub(crate) select: String,
    /// Reads the local columns, `None` where there are none.
    pub(crate) select_local: Option<String>,
    /// Writes them back: local values, then the key.
    pub(crate) update_local: Option<String>,
}

impl Model {
    /// The record's row as the table has it; `key` in the order of the model's.
    pub(crate) fn row(&self, conn: &Connection, key: &[Value]) -> Result<Option<Vec<Value>>, Error> {
        let count = self.shape.fields.len();
        let read = |row: &Row<'_>| (0..count).map(|i| Ok(read_value(row.get_ref(i)?))).collect();
        let key = params_from_iter(key.iter().map(Bound));
        Ok(conn.prepare_cached(&self.sql.select)?.query_row(key, read).optional()?)
    }

    /// Whether the table has the record.
    pub(crate) fn holds(&self, conn: &Connection, key: &[Value]) -> Result<bool, Error> {
        Ok(conn.prepare_cached(&self.sql.select)?.exists(params_from_iter(key.iter().map(Bound)))?)
    }

    pub(crate) fn new(descriptor: ModelDescriptor, recorder: Recorder) -> Self {
        let shape = Shape::of(&descriptor).shared();
        let sql = RowSql::of(&descriptor);
        let fills = descriptor.fields.iter().map(|f| f.default.clone().unwrap_or_default()).collect();
        let tree = Tree::of(&descriptor);
        Self { descriptor, recorder, shape, sql, fills, references: References::default(), tree }
    }

    /// Looks in the table for what the model does not say: the column's constant default, or, where NULL may not be,
    /// the type's zero. The same on every device with that schema, so that a row means the same everywhere.
    fn look_up_fills(&mut self, conn: &Connection) -> Result<(), Error> {
        let mut statement =
            conn.prepare("SELECT dflt_value, \"notnull\" FROM pragma_table_info(?1) WHERE name = ?2")?;
        for (field, fill) in self.descriptor.fields.iter().zip(&mut self.fills) {
            if field.default.is_some() {
                continue;
            }
            let column = statement.query_row([&self.descriptor.table, &field.name], |row| {
                Ok((row.get::<_, Option<String>>(0)?, row.get::<_, bool>(1)?))
            });
            let Some((default, not_null)) = column.optional()? else { continue };
            let constant =
                default.filter(|d| !d.contains('(') && !d.to_ascii_uppercase().starts_with("CURRENT_"));
            *fill = match constant {
                Some(constant) => {
                    let value = |row: &Row<'_>| Ok(read_value(row.get_ref(0)?));
                    conn.query_row(&format!("SELECT {constant}"), [], value)?
                }
                None => Value::Null,
            };
            if not_null && *fill == Value::Null {
                *fill = value::from_sea(&value::zero_sea(&field.kind));
            }
        }
        Ok(())
    }
}

impl RowSql {
    fn of(model: &ModelDescriptor) -> Self {
        let table = quote(&model.table);
        let fields: Vec<String> = model.field_names().map(quote).collect();
        let key: Vec<&String> = model.key.iter().map(|&i| &fields[i]).collect();
        let places =
            |from: usize, n: usize| (from..from + n).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ");
        let matches = |from: usize| {
            key.iter()
                .enumerate()
                .map(|(i, k)| format!("{k} IS ?{}", i + from))
                .collect::<Vec<_>>()
                .join(" AND ")
        };
        let set: Vec<String> =
            fields.iter().filter(|f| !key.contains(f)).map(|f| format!("{f} = excluded.{f}")).collect();
        let on_conflict = if set.is_empty() {
            "DO NOTHING".to_owned()
        } else {
            format!("DO UPDATE SET {}", set.join(", "))
        };
        let key_list = key.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ");
        let local: Vec<String> = model.local.iter().map(|f| quote(f)).collect();
        let insert =
            format!("INSERT INTO {table} ({}) VALUES ({})", fields.join(", "), places(1, fields.len()));
        Self {
            upsert: format!("{insert} ON CONFLICT ({key_list}) {on_conflict}"),
            insert,
            delete: format!("DELETE FROM {table} WHERE {}", matches(1)),
            select: format!("SELECT {} FROM {table} WHERE {}", fields.join(", "), matches(1)),
            select_local: (!local.is_empty())
                .then(|| format!("SELECT {} FROM {table} WHERE {}", local.join(", "), matches(1))),
            update_local: (!local.is_empty()).then(|| {
                let set: Vec<String> =
                    local.iter().enumerate().map(|(i, f)| format!("{f} = ?{}", i + 1)).collect();
                format!("UPDATE {table} SET {} WHERE {}", set.join(", "), matches(local.len() + 1))
            }),
        }
    }
}

/// What the value columns of an outbox row mean.
pub(crate) struct Captured {
    pub(crate) shape: Arc<Shape>,
    /// Index of the registered model, if it still is one.
    pub(crate) model: Option<usize>,
}

/// The origin of this opening, minted at its first seal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Minted {
    /// Row of `sync_origin`.
    pub(crate) row: i64,
    pub(crate) origin: Origin,
    /// Number of the next change.
    pub(crate) next: OriginSeq,
    /// Tag of the last one; 0 before the first.
    pub(crate) tag: u64,
}

/// Who this replica is and what it has seen, as its database says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Replica {
    pub(crate) library: LibraryId,
    pub(crate) device: Option<DeviceId>,
    pub(crate) founder: bool,
    pub(crate) max_seen: Term,
    pub(crate) lead: Option<Term>,
    /// The lead that it gave away last.
    pub(crate) granted: Option<Grant>,
    pub(crate) floor: Seq,
    pub(crate) clock: u64,
    /// Position of the last entry of the log.
    pub(crate) top: Position,
    /// Whether changes wait for the log.
    pub(crate) has_pending: bool,
}

impl Replica {
    /// Whether this device appends to the log now (rule T: re-checked in every leader step).
    pub(crate) fn is_leader(&self) -> bool {
        self.lead == Some(self.max_seen)
    }
}

/// The engine's connection and what belongs to it.
pub(crate) struct Store {
    conn: Connection,
    path: PathBuf,
    wal: Option<File>,
    checkpointer: Checkpointer,
    models: Vec<Model>,
    captured: HashMap<i64, Captured>,
    minted: Option<Minted>,
    agreed: Option<Agreed>,
    /// The application has triggers of its own on synced tables: they run when rows are applied, and ours are told
    /// to look away by `sync_ctl`. Otherwise triggers are off on this connection.
    foreign_triggers: bool,
    schema_version: i64,
    follows_schema: bool,
    numbers: Numbers,
    /// A transaction was begun ahead.
    begun: bool,
    world: Arc<dyn World>,
    #[cfg(feature = "testing")]
    synced: u64,
}

/// One transaction of the engine.
pub(crate) struct Tx<'s> {
    pub(crate) conn: &'s Connection,
    pub(crate) models: &'s [Model],
    pub(crate) captured: &'s HashMap<i64, Captured>,
    pub(crate) minted: &'s mut Option<Minted>,
    pub(crate) agreed: &'s mut Option<Agreed>,
    pub(crate) foreign_triggers: bool,
    pub(crate) numbers: &'s Numbers,
    pub(crate) world: &'s dyn World,
}

impl Store {
    /// Opens the engine's connection and installs shapes and triggers for the models.
    pub(crate) fn open(
        path: &Path,
        models: Vec<(ModelDescriptor, Recorder)>,
        world: Arc<dyn World>,
    ) -> Result<Self, Error> {
        let conn = connect(path, false)?;
        let checkpointer = Checkpointer::start(path, &conn)?;
        let mut store = Self {
            checkpointer,
            conn,
            path: path.to_owned(),
            wal: None,
            models: models.iter().map(|(d, r)| Model::new(d.clone(), *r)).collect(),
            captured: HashMap::new(),
            minted: None,
            agreed: None,
            foreign_triggers: false,
            schema_version: 0,
            follows_schema: false,
            numbers: Numbers::default(),
            begun: false,
            world,
            #[cfg(feature = "testing")]
            synced: 0,
        };
        store.install()?;
        Ok(store)
    }

    /// Makes shapes and triggers what the models say now. Called at open and when the schema has changed.
    pub(crate) fn install(&mut self) -> Result<(), Error> {
        let models: Vec<_> = self.models.iter().map(|m| (m.descriptor.clone(), m.recorder)).collect();
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
        self.conn.flush_prepared_statement_cache();
        self.in_transaction(|tx| capture::install(tx.conn, &models))?;
        let tables: Vec<&str> = self.models.iter().map(|m| m.descriptor.table.as_str()).collect();
        self.foreign_triggers = capture::has_foreign_triggers(&self.conn, &tables)?;
        self.foreign_triggers |= inject::is_off(inject::Safeguard::Suppression);
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, self.foreign_triggers)?;
        self.load_captured()?;
        for model in &mut self.models {
            model.look_up_fills(&self.conn)?;
            let key: Vec<&str> = model.shape.key.iter().map(|&i| model.shape.fields[i].as_str()).collect();
            model.references = References::of(&self.conn, &model.descriptor.table, &key)?;
        }
        self.schema_version = self.read_schema_version()?;
        Ok(())
    }

    /// From now on a transaction that finds the schema changed behind our back installs again first.
    pub(crate) fn follow_schema(&mut self) {
        self.follows_schema = true;
    }

    /// Whether somebody has changed the schema that is to be followed.
    pub(crate) fn has_other_schema(&self) -> Result<bool, Error> {
        Ok(self.follows_schema && self.read_schema_version()? != self.schema_version)
    }

    fn read_schema_version(&self) -> Result<i64, Error> {
        Ok(self.conn.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?)
    }

    /// Changes with every commit of another connection.
    pub(crate) fn data_version(&self) -> Result<i64, Error> {
        Ok(self.conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
    }

    fn load_captured(&mut self) -> Result<(), Error> {
        let rows: Vec<(i64, String, String, String)> = self
            .conn
            .prepare("SELECT id, model, fields, key FROM sync_shape")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
            .collect::<Result<_, _>>()?;
        self.captured.clear();
        for (id, model, fields, key) in rows {
            let fields = capture::names_from_json(&fields)?;
            let key = capture::names_from_json(&key)?
                .iter()
                .map(|k| fields.iter().position(|f| f == k))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    Error::Damaged(format!("shape {id} of model `{model}` has a key that is no field"))
                })?;
            let index = self.models.iter().position(|m| m.descriptor.id == model);
            let registered =
                index.map(|i| &self.models[i].shape).filter(|s| s.fields == fields && s.key == key);
            let shape = match registered {
                Some(shape) => Arc::clone(shape),
                None => {
                    let uuids = vec![false; fields.len()];
                    Shape { model, fields, key, uuids }.shared()
                }
            };
            self.captured.insert(id, Captured { shape, model: index });
        }
        Ok(())
    }

    /// Runs a step in one IMMEDIATE transaction: all of it happens, or nothing.
    ///
    /// # Errors
    /// The step's; before it, that the schema was changed and no longer carries the models.
    pub(crate) fn transaction<T, S>(&mut self, step: S) -> Result<T, Error>
    where
        S: FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    {
        // Looked at where it cannot change any more, and costs no transaction of its own.
        self.begin()?;
        if self.has_other_schema()? {
            self.roll_back();
            self.install()?;
            self.in_transaction(announce::announce_suspects)?;
            self.begin()?;
        }
        self.finish(step)
    }

    /// Runs a step in one transaction in which the database enforces its foreign keys, cascades along them and captures
    /// what comes of that.
    pub(crate) fn enforcing<T>(
        &mut self,
        step: impl FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let done = self.transaction(|tx| {
            tx.enforce(true)?;
            step(tx)
        });
        enforce(&self.conn, false, self.foreign_triggers)?;
        done
    }

    fn in_transaction<T, S>(&mut self, step: S) -> Result<T, Error>
    where
        S: FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    {
        self.begin()?;
        self.finish(step)
    }

    /// Begins a transaction, unless somebody else writes just now. Whether it has; it is the next transaction's.
    pub(crate) fn begin_now(&mut self) -> Result<bool, Error> {
        self.conn.busy_timeout(Duration::ZERO)?;
        let begun = self.conn.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([]));
        self.conn.busy_timeout(BUSY_TIMEOUT)?;
        self.begun = begun.is_ok();
        Ok(self.begun)
    }

    /// Whether nothing waits to be sealed or sequenced: then a step is about what it brings, and nothing else.
    pub(crate) fn is_at_rest(&self) -> Result<bool, Error> {
        let sql = "SELECT NOT EXISTS (SELECT 1 FROM sync_outbox) AND NOT EXISTS (SELECT 1 FROM sync_pending)";
        Ok(self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// Takes back a transaction that was begun ahead and is not needed.
    pub(crate) fn give_up_begun(&mut self) {
        if std::mem::take(&mut self.begun) {
            self.roll_back();
        }
    }

    fn begin(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.begun) {
            return Ok(());
        }
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(())
    }

    fn roll_back(&self) {
        if !self.conn.is_autocommit() {
            // The error that matters is the step's; a rollback that fails too ends with the connection.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }

    /// Runs the step in the transaction that is open, and ends it.
    fn finish<T, S>(&mut self, step: S) -> Result<T, Error>
    where
        S: FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    {
        let name = std::any::type_name::<S>();
        inject::tell_step(Some(name));
        let minted = self.minted;
        let mut tx = Tx {
            conn: &self.conn,
            models: &self.models,
            captured: &self.captured,
            minted: &mut self.minted,
            agreed: &mut self.agreed,
            foreign_triggers: self.foreign_triggers,
            numbers: &self.numbers,
            world: &*self.world,
        };
        let done = step(&mut tx).and_then(|value| {
            inject::crash_point(name, Place::BeforeCommit);
            self.conn.prepare_cached("COMMIT")?.execute([])?;
            inject::crash_point(name, Place::AfterCommit);
            self.checkpointer.after_commit(&self.conn);
            Ok(value)
        });
        if done.is_err() {
            self.minted = minted;
            self.numbers.forget();
            self.roll_back();
        }
        inject::tell_step(None);
        done
    }

    /// [`sync_log`] of this database.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        if self.wal.is_none() {
            self.wal = Some(open_log(&self.path)?);
        }
        let Some(wal) = &self.wal else { return Ok(()) };
        wal.sync_data().map_err(|e| log_error("syncing", &self.path, e))?;
        #[cfg(feature = "testing")]
        {
            self.synced = wal.metadata().map_err(|e| log_error("looking at", &self.path, e))?.len();
        }
        inject::crash_point("sync", Place::AfterSync);
        Ok(())
    }

    /// Bytes of the write-ahead log that a power failure leaves, as [`Store::sync`] was last called.
    #[cfg(feature = "testing")]
    pub(crate) fn synced(&mut self) -> &mut u64 {
        &mut self.synced
    }

    #[cfg(feature = "testing")]
    pub(crate) fn minted(&self) -> Option<Minted> {
        self.minted
    }

    #[cfg(feature = "testing")]
    pub(crate) fn set_minted(&mut self, minted: Option<Minted>) {
        self.minted = minted;
    }

    /// Whether nothing waits to be sealed.
    pub(crate) fn is_outbox_empty(&self) -> Result<bool, Error> {
        Ok(!self.conn.prepare_cached("SELECT 1 FROM sync_outbox LIMIT 1")?.exists([])?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn models(&self) -> &[Model] {
        &self.models
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.conn
    }
}

/// A connection of the engine: for its steps, or read-only for serving the log.
pub(crate) fn connect(path: &Path, read_only: bool) -> Result<Connection, Error> {
    if rusqlite::version_number() < SQLITE_NEEDED.1 {
        return Err(Error::SqliteVersion { found: rusqlite::version().to_owned(), needed: SQLITE_NEEDED.0 });
    }
    let access = if read_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
    let opening = |source| Error::Database { what: "opening the database", source };
    let conn =
        Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(opening)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    if !read_only {
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    }
    conn.execute_batch(
        "PRAGMA foreign_keys = OFF; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;",
    )?;
    if !read_only {
        // A batch's pages stay in memory until it commits, instead of spilling into the log before.
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    }
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

/// Makes every commit to the database so far survive a power failure (rule D). Takes no lock: writers go on.
pub(crate) fn sync_log(path: &Path) -> Result<(), Error> {
    open_log(path)?.sync_data().map_err(|e| log_error("syncing", path, e))
}

fn open_log(path: &Path) -> Result<File, Error> {
    File::open(wal_path(path)).map_err(|e| log_error("opening", path, e))
}

fn log_error(what: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { what, path: wal_path(path), source }
}

fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// Refuses an entrance that will not do before triggers or anything else is touched.
pub(crate) fn check_entrance<'t>(
    path: &Path,
    entrance: crate::term::Entrance,
    tables: impl IntoIterator<Item = &'t str>,
) -> Result<(), Error> {
    use crate::term::Entrance::{Create, Existing, Join};
    let conn = connect(path, true)?;
    let found = replica(&conn)?;
    match (entrance, found) {
        (Existing, None) => Err(Error::NoLibrary),
        (Create(wanted) | Join(wanted), Some(found)) if found.library != wanted => {
            Err(Error::OtherLibrary { found: found.library, wanted })
        }
        (Create(library), Some(found)) if !found.founder => Err(Error::Joined { library }),
        (Join(library), None) => crate::term::refuse_unrelated_rows(&conn, tables, library),
        _ => Ok(()),
    }
}

/// Reads the replica's own row and where its log stands, in one look; `None` before the database is in a library.
pub(crate) fn replica(conn: &Connection) -> Result<Option<Replica>, Error> {
    conn.prepare_cached(
        "SELECT r.library, r.device, r.founder, r.max_seen, r.lead, r.floor,
            max(r.clock, coalesce((SELECT clock FROM sync_group ORDER BY first DESC LIMIT 1), 0)),
            EXISTS (SELECT 1 FROM sync_pending), coalesce((SELECT max(seq) FROM sync_entry), 0),
            t.first, t.number, t.leader, t.counter, t.nonce, r.granted
         FROM sync_replica r LEFT JOIN sync_term t ON t.first = (SELECT max(first) FROM sync_term)
         WHERE r.id = 1",
    )?
    .query_row([], |row| Ok(read_replica(row)))
    .optional()?
    .transpose()
}

fn read_replica(row: &Row<'_>) -> Result<Replica, Error> {
    let damaged = |what: &str, text: &str| Error::Damaged(format!("`{text}` is no {what}"));
    let term = |text: &String| Term::from_text(text).ok_or_else(|| damaged("term", text));
    let (library, device): (String, Option<String>) = (row.get(0)?, row.get(1)?);
    let (max_seen, lead): (String, Option<String>) = (row.get(3)?, row.get(4)?);
    Ok(Replica {
        library: LibraryId(library.parse().map_err(|_| damaged("library id", &library))?),
        device: match device {
            Some(text) => Some(DeviceId::parse(&text).ok_or_else(|| damaged("device id", &text))?),
            None => None,
        },
        founder: row.get(2)?,
        max_seen: term(&max_seen)?,
        lead: lead.as_ref().map(term).transpose()?,
        granted: match row.get::<_, Option<String>>(14)? {
            Some(text) => Some(Grant::from_text(&text).ok_or_else(|| damaged("grant", &text))?),
            None => None,
        },
        floor: Seq(row.get(5)?),
        clock: row.get(6)?,
        has_pending: row.get(7)?,
        top: match row.get(8)? {
            0 => Position::EMPTY,
            seq => Position { term: read_run(row, 9)?.term, seq: Seq(seq) },
        },
    })
}

/// What the capture triggers make of a write: `sync_ctl.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is the application's.
    Capture = 0,
    /// Nothing.
    Off = 1,
    /// The database made it along a foreign key.
    Derived = 2,
}

/// Unlike the pragma it holds within a transaction too.
fn enforce(conn: &Connection, foreign_keys: bool, triggers: bool) -> Result<(), Error> {
    // Statements are prepared anew after a change, and none is made where it is so already.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, foreign_keys)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, triggers)?;
    Ok(())
}

impl Tx<'_> {
    /// Has the database enforce its foreign keys from here on, and captures what comes of that; or not any more.
    pub(crate) fn enforce(&self, enforces: bool) -> Result<(), Error> {
        let cascades = || self.models.iter().any(|model| model.references.cascade());
        enforce(self.conn, enforces, self.foreign_triggers || (enforces && cascades()))
    }

    /// Says what the rest of the transaction's writes are.
    pub(crate) fn set_mode(&self, mode: Mode) -> Result<(), Error> {
        self.conn.prepare_cached("UPDATE sync_ctl SET mode = ?1 WHERE id = 1")?.execute([mode as u8])?;
        Ok(())
    }

    /// The replica's own row.
    pub(crate) fn replica(&self) -> Result<Replica, Error> {
        replica(self.conn)?.ok_or(Error::NoLibrary)
    }

    /// Writes the terms of the replica's own row.
    pub(crate) fn set_terms(&self, max_seen: Term, lead: Option<Term>) -> Result<(), Error> {
        self.conn
            .prepare_cached("UPDATE sync_replica SET max_seen = ?1, lead = ?2 WHERE id = 1")?
            .execute(params![max_seen.to_text(), lead.map(Term::to_text)])?;
        Ok(())
    }

    /// Writes down to whom the lead goes.
    pub(crate) fn set_granted(&self, granted: Option<Grant>) -> Result<(), Error> {
        self.conn
            .prepare_cached("UPDATE sync_replica SET granted = ?1 WHERE id = 1")?
            .execute([granted.map(Grant::to_text)])?;
        Ok(())
    }

    /// Raises the hybrid logical clock, where no group is appended that would carry it.
    pub(crate) fn set_clock(&self, clock: u64) -> Result<(), Error> {
        self.conn
            .prepare_cached("UPDATE sync_replica SET clock = ?1 WHERE id = 1 AND clock < ?1")?
            .execute([clock])?;
        Ok(())
    }

    /// The origin of this opening; minted now if this is its first seal (rule O).
    pub(crate) fn origin(&mut self, device: DeviceId) -> Result<Minted, Error> {
        if let Some(minted) = *self.minted {
            return Ok(minted);
        }
        let origin = Origin(self.world.uuid());
        let row = origin_row(self.conn, origin, device)?;
        let minted = Minted { row, origin, next: OriginSeq(1), tag: 0 };
        *self.minted = Some(minted);
        Ok(minted)
    }
}

/// The row of an origin in `sync_origin`, made if there is none.
pub(crate) fn origin_row(conn: &Connection, origin: Origin, device: DeviceId) -> Result<i64, Error> {
    if let Some(row) = origin_of(conn, origin)? {
        return Ok(row);
    }
    conn.prepare_cached("INSERT INTO sync_origin (origin, device) VALUES (?1, ?2)")?
        .execute(params![origin.to_string(), device.to_string()])?;
    Ok(conn.last_insert_rowid())
}

/// The row of an origin in `sync_origin`, if there is one.
pub(crate) fn origin_of(conn: &Connection, origin: Origin) -> Result<Option<i64>, Error> {
    Ok(conn
        .prepare_cached("SELECT id FROM sync_origin WHERE origin = ?1")?
        .query_row([origin.to_string()], |row| row.get(0))
        .optional()?)
}

/// Position of the last entry of the log.
pub(crate) fn top(conn: &Connection) -> Result<Position, Error> {
    let seq: Option<u64> =
        conn.prepare_cached("SELECT max(seq) FROM sync_entry")?.query_row([], |row| row.get(0))?;
    match seq {
        None => Ok(Position::EMPTY),
        Some(seq) => Ok(Position { term: term_at(conn, Seq(seq))?, seq: Seq(seq) }),
    }
}

//! The application's connection: what it is set to, how writers take turns, and what its scopes tell the
//! triggers.
//!
//! Everything runs on SQLite files in temporary folders, with the sync tables and a trigger of the test's own
//! where one is needed, so that these tests say what the connection promises without the rest of tidelog.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use sea_orm::{
    AccessMode, ActiveModelTrait, ConnectionTrait, Database, DbBackend, DbErr, EntityTrait, PaginatorTrait,
    QueryFilter, Set, Statement, StreamTrait, TransactionError, TransactionTrait,
};
use sea_orm_migration::MigratorTrait;
use tempfile::TempDir;
use tidelog::{
    ConnectError, ConnectOptions, Connection, Durability, Transaction, WriteGate, connect, connect_with,
    force_record,
};
use tidelog_migration::SyncMigrator;

/// A note, keyed by a text; `parent` is a foreign key to itself.
#[expect(unreachable_pub, reason = "as an application writes its entities")]
mod note {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "note")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub body: String,
        pub size: Option<i64>,
        pub parent: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}

    impl tidelog::model::Syncable for Model {
        const SYNC_ID: &'static str = "note";
    }
}

struct Fixture {
    db: Connection,
    url: String,
    _folder: TempDir,
}

fn new_url() -> (String, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("app.db").display());
    (url, folder)
}

async fn bare() -> Fixture {
    let (url, folder) = new_url();
    let db = connect(&url).await.unwrap();
    Fixture { db, url, _folder: folder }
}

/// A database with the table `note`.
async fn with_notes() -> Fixture {
    let fixture = bare().await;
    fixture
        .db
        .execute_unprepared(
            "CREATE TABLE note (id TEXT PRIMARY KEY, body TEXT NOT NULL, size INTEGER,
                parent TEXT REFERENCES note (id))",
        )
        .await
        .unwrap();
    fixture
}

/// A database with the table `note`, the sync tables, and a trigger that records inserted notes.
async fn captured() -> Fixture {
    let fixture = with_notes().await;
    SyncMigrator::up(fixture.db.plain(), None).await.unwrap();
    for sql in [
        r#"INSERT INTO sync_shape (model, table_name, fields, key, recorder, current)
            VALUES ('note', 'note', '["id","body","size","parent"]', '["id"]', 'trigger', 1)"#,
        "CREATE TRIGGER note_recorded AFTER INSERT ON note WHEN (SELECT mode <> 1 FROM sync_ctl) BEGIN
            INSERT INTO sync_outbox (shape, kind, mode, mark, actor, v0, v1, v2, v3)
                SELECT 1, 1, mode, mark, actor, NEW.id, NEW.body, NEW.size, NEW.parent FROM sync_ctl;
         END",
    ] {
        fixture.db.execute_unprepared(sql).await.unwrap();
    }
    fixture
}

fn note(id: &str) -> note::ActiveModel {
    note::ActiveModel {
        id: Set(id.to_owned()),
        body: Set("text".to_owned()),
        size: Set(None),
        parent: Set(None),
    }
}

async fn integer<C: ConnectionTrait>(db: &C, sql: &str) -> i64 {
    let row = db.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.unwrap().unwrap();
    row.try_get_by::<Option<i64>, _>(0).unwrap().unwrap_or(-1)
}

async fn text<C: ConnectionTrait>(db: &C, sql: &str) -> Option<String> {
    let row = db.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.unwrap().unwrap();
    row.try_get_by(0).unwrap()
}

async fn mode<C: ConnectionTrait>(db: &C) -> i64 {
    integer(db, "SELECT mode FROM sync_ctl").await
}

fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{error}` should say `{part}`");
    }
}

// ---- settings ----

const PRAGMAS: [(&str, &str); 6] = [
    ("journal_mode", "wal"),
    ("busy_timeout", "5000"),
    ("foreign_keys", "1"),
    ("recursive_triggers", "1"),
    ("temp_store", "2"),
    ("synchronous", "1"),
];

async fn pragma(connection: &mut sqlx::SqliteConnection, name: &str) -> String {
    use sqlx::Row;
    let sql = format!("PRAGMA {name}");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await.unwrap();
    row.try_get::<String, _>(0).or_else(|_| row.try_get::<i64, _>(0).map(|n| n.to_string())).unwrap()
}

/// Holds `count` connections of the plain pool at once and looks at each.
async fn check_pool(db: &Connection, count: usize) {
    let pool = db.plain().get_sqlite_connection_pool();
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(pool.acquire().await.unwrap());
    }
    for connection in &mut held {
        for (name, expected) in PRAGMAS {
            assert_eq!(pragma(connection, name).await, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn every_connection_has_the_settings() {
    let fixture = bare().await;
    check_pool(&fixture.db, 4).await;
    // The one that writes is seen from within a transaction.
    let txn = fixture.db.begin().await.unwrap();
    for (name, expected) in &PRAGMAS[1..] {
        let sql = match *name {
            "busy_timeout" => "SELECT timeout FROM pragma_busy_timeout".to_owned(),
            name => format!("SELECT {name} FROM pragma_{name}"),
        };
        assert_eq!(integer(&txn, &sql).await.to_string(), *expected, "{name}");
    }
    txn.rollback().await.unwrap();
}

#[tokio::test]
async fn full_durability_is_one_setting_away() {
    let (url, _folder) = new_url();
    let options = ConnectOptions { durability: Durability::Full, ..ConnectOptions::new(url) };
    let db = connect_with(options).await.unwrap();
    let txn = db.begin().await.unwrap();
    assert_eq!(integer(&txn, "SELECT synchronous FROM pragma_synchronous").await, 2);
}

#[tokio::test]
async fn a_database_in_memory_is_refused() {
    let refused = [
        "sqlite::memory:",
        "sqlite://:memory:",
        "sqlite://name?mode=memory",
        "sqlite:///name?vfs=memdb",
        "sqlite://file::memory:",
    ];
    for url in refused {
        let error = connect(url).await.unwrap_err();
        assert!(matches!(error, ConnectError::InMemory { .. }), "{url}: {error}");
        assert_names(&error.to_string(), &[url, "memory", "nothing was changed", "temporary folder"]);
    }
    let wrapped = Database::connect("sqlite::memory:").await.unwrap();
    let error = Connection::wrap(wrapped).await.unwrap_err();
    assert!(matches!(error, ConnectError::InMemory { .. }), "{error}");
}

#[tokio::test]
async fn what_is_no_sqlite_file_is_refused() {
    let error = connect("sqlite://").await.unwrap_err().to_string();
    assert_names(&error, &["sqlite://", "path is empty", "nothing was opened", "mode=rwc"]);
    let error = connect("postgres://localhost/app").await.unwrap_err();
    assert!(matches!(&error, ConnectError::Backend { found } if found == "postgres"), "{error}");
    assert_names(&error.to_string(), &["postgres", "SQLite only", "nothing was opened or changed"]);
    let error = connect("app.db").await.unwrap_err();
    assert!(matches!(error, ConnectError::Url { .. }), "{error}");
    let error = connect("sqlite:///no/such/folder/app.db?mode=rwc").await.unwrap_err();
    assert_names(
        &error.to_string(),
        &["/no/such/folder/app.db", "could not be opened", "no data was changed"],
    );
    let error = Connection::wrap(sea_orm::DatabaseConnection::default()).await.unwrap_err();
    assert_names(&error.to_string(), &["Disconnected", "nothing was opened or changed"]);
}

// ---- wrapping ----

async fn application_pool(url: &str) -> sea_orm::DatabaseConnection {
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(3).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

#[tokio::test]
async fn wrapping_replaces_the_connections_made_before() {
    let (url, _folder) = new_url();
    let own = application_pool(&url).await;
    let two = (own.begin().await.unwrap(), own.begin().await.unwrap());
    drop(two);
    let db = Connection::wrap(own).await.unwrap();
    check_pool(&db, 3).await;
}

#[tokio::test]
async fn wrapping_is_refused_while_an_old_connection_is_in_use() {
    let (url, _folder) = new_url();
    let own = application_pool(&url).await;
    let open = own.begin().await.unwrap();
    let error = Connection::wrap(own.clone()).await.unwrap_err();
    assert!(matches!(error, ConnectError::InUse { count: 1, .. }), "{error}");
    assert_names(&error.to_string(), &["1 pooled connection", "app.db", "as it was", "finish those first"]);
    open.rollback().await.unwrap();
    let db = Connection::wrap(own).await.unwrap();
    check_pool(&db, 3).await;
}

#[tokio::test]
async fn a_wrapped_pool_of_one_connection_works() {
    let (url, _folder) = new_url();
    let own = Database::connect(&url).await.unwrap();
    let db = Connection::wrap(own).await.unwrap();
    db.execute_unprepared("CREATE TABLE t (a)").await.unwrap();
    let txn = db.begin().await.unwrap();
    txn.execute_unprepared("INSERT INTO t VALUES (1)").await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(integer(&db, "SELECT count(*) FROM t").await, 1);
}

// ---- turns ----

async fn increment(db: &Connection) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    let n = integer(&txn, "SELECT n FROM counter").await;
    tokio::task::yield_now().await;
    txn.execute_raw(Statement::from_sql_and_values(
        DbBackend::Sqlite,
        "UPDATE counter SET n = ?",
        [(n + 1).into()],
    ))
    .await?;
    txn.commit().await
}

async fn with_counter() -> Fixture {
    let fixture = bare().await;
    fixture.db.execute_unprepared("CREATE TABLE counter (n INTEGER)").await.unwrap();
    fixture.db.execute_unprepared("INSERT INTO counter VALUES (0)").await.unwrap();
    fixture
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contending_transactions_that_read_and_write_all_succeed() {
    let fixture = with_counter().await;
    // Half of them through a second connection to the same file, which shares the gate.
    let second = connect(&fixture.url).await.unwrap();
    assert!(Arc::ptr_eq(fixture.db.gate(), second.gate()));
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let db = if task % 2 == 0 { fixture.db.clone() } else { second.clone() };
            tokio::spawn(async move {
                for _ in 0..50 {
                    increment(&db).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(integer(&fixture.db, "SELECT n FROM counter").await, 400);
}

#[tokio::test]
async fn a_transaction_begins_immediate_and_a_read_only_one_does_not() {
    let fixture = with_counter().await;
    let impatient =
        ConnectOptions { busy_timeout: Duration::ZERO, ..ConnectOptions::new(fixture.url.clone()) };
    let other = connect_with(impatient).await.unwrap();

    let txn = fixture.db.begin().await.unwrap();
    let error = other.plain().execute_unprepared("UPDATE counter SET n = 1").await.unwrap_err();
    assert_names(&error.to_string(), &["locked"]);
    // Reading goes on meanwhile, also in a transaction.
    let reading = other.begin_with_config(None, Some(AccessMode::ReadOnly)).await.unwrap();
    assert_eq!(integer(&reading, "SELECT n FROM counter").await, 0);
    txn.rollback().await.unwrap();
    other.execute_unprepared("UPDATE counter SET n = 2").await.unwrap();
    assert_eq!(integer(&reading, "SELECT n FROM counter").await, 0, "its snapshot is older");

    let error = reading.execute_unprepared("UPDATE counter SET n = 3").await.unwrap_err().to_string();
    assert_names(&error, &["UPDATE counter", "not run", "read-only"]);
}

#[tokio::test]
async fn turns_are_given_first_come_first_served() {
    let folder = tempfile::tempdir().unwrap();
    let gate = WriteGate::of(folder.path());
    let first = gate.acquire(Duration::ZERO).await.unwrap();
    let (order, served) = mpsc::channel();
    let mut waiting = Vec::new();
    for n in 0..20 {
        let (gate, order) = (Arc::clone(&gate), order.clone());
        waiting.push(tokio::spawn(async move {
            let _turn = gate.acquire(Duration::from_secs(60)).await.unwrap();
            order.send(n).unwrap();
        }));
        // On this single-threaded runtime the task runs until it waits.
        tokio::task::yield_now().await;
    }
    drop(first);
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(served.try_iter().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_turn_ends_with_the_transaction_however_it_ends() {
    const SOON: Duration = Duration::from_secs(60);
    let fixture = with_counter().await;
    let (db, gate) = (&fixture.db, fixture.db.gate());
    let begin = async || {
        let txn = db.begin().await.unwrap();
        txn.execute_unprepared("UPDATE counter SET n = n + 1").await.unwrap();
        assert!(gate.try_acquire().is_none(), "held while the transaction is open");
        txn
    };

    begin().await.commit().await.unwrap();
    assert!(gate.try_acquire().is_some(), "commit");
    begin().await.rollback().await.unwrap();
    assert!(gate.try_acquire().is_some(), "rollback");

    let other = connect_with(ConnectOptions { busy_timeout: Duration::ZERO, ..fixture.url.as_str().into() });
    let other = other.await.unwrap();
    for _ in 0..20 {
        drop(begin().await);
        let _turn = gate.acquire(SOON).await.expect("drop");
        // The rollback is done by then: SQLite's lock is free too.
        other.plain().execute_unprepared("UPDATE counter SET n = n").await.unwrap();
    }

    let task = {
        let db = db.clone();
        tokio::spawn(async move {
            let _txn = db.begin().await.unwrap();
            panic!("in the middle of a transaction");
        })
    };
    assert!(task.await.unwrap_err().is_panic());
    assert!(gate.acquire(SOON).await.is_some(), "panic");
    assert_eq!(integer(db, "SELECT n FROM counter").await, 1, "only the commit counts");

    let failed = db.execute_unprepared("INSERT INTO no_such_table VALUES (1)").await;
    assert!(failed.is_err() && gate.try_acquire().is_some(), "failed statement");
}

#[tokio::test]
async fn when_patience_runs_out_sqlite_decides() {
    let (url, _folder) = new_url();
    let options = ConnectOptions {
        gate_patience: Duration::from_millis(20),
        busy_timeout: Duration::from_millis(20),
        ..ConnectOptions::new(url)
    };
    let db = connect_with(options).await.unwrap();
    db.execute_unprepared("CREATE TABLE t (a)").await.unwrap();
    let holder = db.begin().await.unwrap();
    for error in [
        db.execute_unprepared("INSERT INTO t VALUES (1)").await.unwrap_err(),
        db.begin().await.map(drop).unwrap_err(),
    ] {
        assert_names(&error.to_string(), &["database is locked"]);
    }
    holder.rollback().await.unwrap();

    // Somebody who keeps the gate but not the database holds nobody up for ever.
    let _turn = db.gate().try_acquire().unwrap();
    db.execute_unprepared("INSERT INTO t VALUES (2)").await.unwrap();
    assert_eq!(integer(&db, "SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn reading_does_not_wait_for_a_writer() {
    let fixture = with_counter().await;
    let _turn = fixture.db.gate().try_acquire().unwrap();
    assert_eq!(integer(&fixture.db, "SELECT n FROM counter").await, 0);
    assert_eq!(integer(&fixture.db, "PRAGMA user_version").await, 0);
    let rows = fixture
        .db
        .stream_raw(Statement::from_string(DbBackend::Sqlite, "WITH a AS (SELECT 1) SELECT * FROM a"))
        .await
        .unwrap();
    assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap().len(), 1);
}

#[test]
fn a_thread_without_a_runtime_is_woken_when_the_turn_ends() {
    let folder = tempfile::tempdir().unwrap();
    let gate = WriteGate::of(folder.path());
    let mut waits = Vec::new();
    for _ in 0..20 {
        let held = gate.acquire_blocking(Duration::ZERO).unwrap();
        let (at_the_gate, arrived) = mpsc::channel();
        let other = {
            let gate = Arc::clone(&gate);
            std::thread::spawn(move || {
                at_the_gate.send(()).unwrap();
                let turn = gate.acquire_blocking(Duration::from_secs(60));
                (turn.is_some(), Instant::now())
            })
        };
        arrived.recv().unwrap();
        let released = Instant::now();
        drop(held);
        let (served, at) = other.join().unwrap();
        assert!(served);
        waits.push(at.saturating_duration_since(released));
    }
    waits.sort();
    assert!(waits[10] < Duration::from_millis(20), "woken, not polled: {waits:?}");

    let _held = gate.acquire_blocking(Duration::ZERO).unwrap();
    let started = Instant::now();
    assert!(gate.acquire_blocking(Duration::from_millis(30)).is_none());
    assert!(started.elapsed() >= Duration::from_millis(30));
}

#[tokio::test]
async fn commits_are_announced_while_somebody_listens() {
    let fixture = with_counter().await;
    let (db, gate) = (&fixture.db, fixture.db.gate());
    let calls = Arc::new(AtomicUsize::new(0));
    let listener = {
        let (calls, free) = (Arc::clone(&calls), Arc::clone(gate));
        gate.on_commit(Arc::new(move || {
            assert!(free.try_acquire().is_some(), "the listener finds the gate free");
            calls.fetch_add(1, Ordering::SeqCst);
        }))
    };
    let heard = || calls.load(Ordering::SeqCst);

    db.execute_unprepared("UPDATE counter SET n = 1").await.unwrap();
    assert_eq!(heard(), 1, "a statement");
    increment(db).await.unwrap();
    assert_eq!(heard(), 2, "a transaction");
    let returning = Statement::from_string(DbBackend::Sqlite, "UPDATE counter SET n = 7 RETURNING n");
    assert!(db.query_one_raw(returning.clone()).await.unwrap().is_some());
    assert_eq!(heard(), 3, "RETURNING");
    drop(db.stream_raw(returning).await.unwrap());
    assert_eq!(heard(), 4, "a stream that writes");

    let before = gate.commits();
    integer(db, "SELECT n FROM counter").await;
    db.begin().await.unwrap().commit().await.unwrap();
    increment_and_roll_back(db).await;
    assert!(db.execute_unprepared("INSERT INTO no_such_table VALUES (1)").await.is_err());
    assert_eq!((heard(), gate.commits()), (4, before), "nothing was written");

    drop(listener);
    db.execute_unprepared("UPDATE counter SET n = 1").await.unwrap();
    assert_eq!((heard(), gate.commits()), (4, before + 1));
}

async fn increment_and_roll_back(db: &Connection) {
    let txn = db.begin().await.unwrap();
    txn.execute_unprepared("UPDATE counter SET n = n + 1").await.unwrap();
    txn.rollback().await.unwrap();
}

// ---- SeaORM as before ----

#[tokio::test]
async fn models_are_saved_found_and_streamed() {
    let fixture = with_notes().await;
    let db = &fixture.db;
    note("a").insert(db).await.unwrap();
    note::Entity::insert_many([note("b"), note("c")]).exec(db).await.unwrap();
    db.transaction::<_, _, DbErr>(|txn| {
        Box::pin(async move {
            note("d").insert(txn).await?;
            let streamed = note::Entity::find().stream(txn).await?.try_collect::<Vec<_>>().await?;
            assert_eq!(streamed.len(), 4);
            Ok(())
        })
    })
    .await
    .unwrap();
    let streamed: Vec<_> = note::Entity::find().stream(db).await.unwrap().try_collect().await.unwrap();
    assert_eq!(streamed.len(), 4);
    assert_eq!(note::Entity::find().count(db).await.unwrap(), 4);
    db.clone().close().await.unwrap();
    assert!(note::Entity::find().count(db).await.is_err(), "closed for all clones");
}

#[tokio::test]
async fn a_statement_that_fails_at_its_end_is_an_error() {
    let fixture = bare().await;
    let db = &fixture.db;
    db.execute_unprepared(
        "CREATE TABLE node (id INTEGER PRIMARY KEY,
            parent INTEGER REFERENCES node (id) DEFERRABLE INITIALLY DEFERRED)",
    )
    .await
    .unwrap();
    let orphan = Statement::from_string(DbBackend::Sqlite, "INSERT INTO node VALUES (1, 99) RETURNING id");
    // The driver reads one row and drops what comes behind it: a row is returned that is not there.
    assert!(db.plain().query_one_raw(orphan.clone()).await.unwrap().is_some());
    assert_eq!(integer(db, "SELECT count(*) FROM node").await, 0);

    let error = db.query_one_raw(orphan).await.unwrap_err();
    assert_names(&error.to_string(), &["FOREIGN KEY"]);
}

#[tokio::test]
async fn nested_transactions_are_savepoints() {
    let fixture = with_notes().await;
    let outer = fixture.db.begin().await.unwrap();
    note("outer").insert(&outer).await.unwrap();

    let kept = outer.begin().await.unwrap();
    note("kept").insert(&kept).await.unwrap();
    kept.commit().await.unwrap();
    let undone = outer.begin().await.unwrap();
    note("undone").insert(&undone).await.unwrap();
    undone.rollback().await.unwrap();
    let dropped = outer.begin().await.unwrap();
    note("dropped").insert(&dropped).await.unwrap();
    drop(dropped);
    assert!(fixture.db.gate().try_acquire().is_none(), "the turn is the outer one's");

    let failed: Result<(), _> = outer
        .transaction(|txn| {
            Box::pin(async move {
                note("failed").insert(txn).await?;
                Err(DbErr::Custom("changed my mind".to_owned()))
            })
        })
        .await;
    assert!(matches!(failed, Err(TransactionError::Transaction(_))));
    outer.commit().await.unwrap();

    let mut ids: Vec<_> =
        note::Entity::find().all(&fixture.db).await.unwrap().into_iter().map(|n| n.id).collect();
    ids.sort();
    assert_eq!(ids, ["kept", "outer"]);
}

#[tokio::test]
async fn a_number_that_sqlite_cannot_store_is_refused() {
    use sea_orm::sea_query::Expr;
    let fixture = with_notes().await;
    let db = &fixture.db;
    note("a").insert(db).await.unwrap();
    let resize = |size: u64| note::Entity::update_many().col_expr(note::Column::Size, Expr::value(size));

    let error = resize(u64::MAX).exec(db).await.unwrap_err().to_string();
    assert_names(&error, &["18446744073709551615", "UPDATE \"note\"", "nothing was written", "text"]);
    let found = note::Entity::find().filter(Expr::cust_with_values("size < ?", [u64::MAX])).all(db).await;
    assert_names(&found.unwrap_err().to_string(), &["18446744073709551615"]);

    let txn = db.begin().await.unwrap();
    assert!(resize(i64::MAX as u64 + 1).exec(&txn).await.is_err());
    resize(i64::MAX as u64).exec(&txn).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(integer(db, "SELECT size FROM note").await, i64::MAX);
}

#[tokio::test]
async fn a_transaction_by_hand_is_refused_on_a_pool() {
    let fixture = bare().await;
    let error = fixture.db.execute_unprepared("BEGIN IMMEDIATE").await.unwrap_err().to_string();
    assert_names(&error, &["BEGIN IMMEDIATE", "not run", "begin()"]);
    fixture.db.execute_unprepared("BEGIN; CREATE TABLE t (a); COMMIT").await.unwrap();
}

// ---- scopes ----

type Outcome<T> = Result<T, TransactionError<DbErr>>;

#[tokio::test]
async fn without_sync_nothing_is_recorded_and_nobody_else_sees_it() {
    let fixture = captured().await;
    let db = fixture.db.clone();
    let outside = db.clone();
    db.transaction_with_no_sync::<_, _, DbErr>(|txn| {
        Box::pin(async move {
            assert_eq!(mode(txn).await, 1);
            assert_eq!(mode(&outside).await, 0, "invisible to others");
            note("quiet").insert(txn).await?;
            Ok(())
        })
    })
    .await
    .unwrap();
    assert_eq!(mode(&db).await, 0);
    note("loud").insert(&db).await.unwrap();
    assert_eq!(note::Entity::find().count(&db).await.unwrap(), 2);
    assert_eq!(text(&db, "SELECT group_concat(v0) FROM sync_outbox").await.unwrap(), "loud");

    let failed: Outcome<()> = db
        .transaction_with_no_sync(|txn| {
            Box::pin(async move {
                note("undone").insert(txn).await?;
                Err(DbErr::Custom("changed my mind".to_owned()))
            })
        })
        .await;
    assert!(failed.is_err());
    assert_eq!(mode(&db).await, 0, "undone by the rollback");
    assert_eq!(note::Entity::find().count(&db).await.unwrap(), 2);
}

async fn quiet_part(txn: &Transaction, id: &'static str, fails: bool) -> Outcome<()> {
    txn.transaction_with_no_sync(move |inner| {
        Box::pin(async move {
            assert_eq!(mode(inner).await, 1);
            note(id).insert(inner).await?;
            if fails { Err(DbErr::Custom("changed my mind".to_owned())) } else { Ok(()) }
        })
    })
    .await
}

#[tokio::test]
async fn a_part_of_a_transaction_may_go_without_sync() {
    let fixture = captured().await;
    let txn = fixture.db.begin().await.unwrap();
    note("first").insert(&txn).await.unwrap();
    quiet_part(&txn, "quiet", false).await.unwrap();
    assert_eq!(mode(&txn).await, 0, "restored");
    assert!(quiet_part(&txn, "undone", true).await.is_err());
    assert_eq!(mode(&txn).await, 0, "restored by the inner rollback");
    note("last").insert(&txn).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(text(&fixture.db, "SELECT group_concat(v0) FROM sync_outbox").await.unwrap(), "first,last");

    // Within itself, the outer one's word holds until its own end.
    fixture
        .db
        .transaction_with_no_sync::<_, _, TransactionError<DbErr>>(|txn| {
            Box::pin(async move {
                quiet_part(txn, "inner", false).await?;
                assert_eq!(mode(txn).await, 1);
                assert!(quiet_part(txn, "undone", true).await.is_err());
                assert_eq!(mode(txn).await, 1);
                Ok(())
            })
        })
        .await
        .unwrap();
    assert_eq!(mode(&fixture.db).await, 0);
}

#[tokio::test]
async fn atomic_changes_share_a_mark_and_an_actor_has_a_name() {
    let fixture = captured().await;
    let db = &fixture.db;
    db.atomic::<_, _, TransactionError<DbErr>>(|txn| {
        Box::pin(async move {
            note("a").insert(txn).await?;
            // An inner one joins.
            txn.atomic::<_, _, DbErr>(|inner| Box::pin(async move { note("b").insert(inner).await })).await?;
            note("c").insert(txn).await?;
            Ok(())
        })
    })
    .await
    .unwrap();
    db.with_actor::<_, _, DbErr>("Ada", |txn| Box::pin(async move { note("d").insert(txn).await }))
        .await
        .unwrap();
    note("e").insert(db).await.unwrap();

    let marks =
        "SELECT count(DISTINCT mark) FROM sync_outbox WHERE v0 IN ('a', 'b', 'c') AND mark IS NOT NULL";
    assert_eq!(integer(db, marks).await, 1);
    assert_eq!(integer(db, "SELECT count(mark) FROM sync_outbox").await, 3);
    let mark = text(db, "SELECT max(mark) FROM sync_outbox").await.unwrap();
    assert!(uuid::Uuid::parse_str(&mark).is_ok(), "{mark}");
    assert_eq!(text(db, "SELECT group_concat(v0 || actor) FROM sync_outbox").await.unwrap(), "dAda");
    assert_eq!(text(db, "SELECT coalesce(mark, actor) FROM sync_ctl").await, None, "restored");
}

#[tokio::test]
async fn scopes_need_the_sync_tables() {
    let fixture = with_notes().await;
    let outcome: Outcome<()> =
        fixture.db.transaction_with_no_sync(|_| Box::pin(async { panic!("must not run") })).await;
    let error = outcome.unwrap_err().to_string();
    assert_names(&error, &["sync tables", "nothing was run or written", "Open a library"]);
    assert!(fixture.db.gate().acquire(Duration::from_secs(60)).await.is_some());
}

// ---- cuts ----

#[tokio::test]
async fn cut_markers_stand_between_transactions() {
    let fixture = captured().await;
    let db = &fixture.db;
    let markers = "SELECT count(*) FROM sync_outbox WHERE kind = 0";
    for n in 0..30 {
        let txn = db.begin().await.unwrap();
        let notes = (0..100).map(|i| note(&format!("{n:02}-{i:03}")));
        note::Entity::insert_many(notes).exec(&txn).await.unwrap();
        assert_eq!(integer(&txn, "SELECT kind FROM sync_outbox ORDER BY id DESC LIMIT 1").await, 1);
        txn.commit().await.unwrap();
    }
    assert_eq!(integer(db, markers).await, 3, "one after every 1000 rows");
    let torn = "SELECT count(*) FROM sync_outbox cut
        JOIN sync_outbox before ON before.id = cut.id - 1
        LEFT JOIN sync_outbox after ON after.id = cut.id + 1
        WHERE cut.kind = 0 AND substr(before.v0, 1, 2) = substr(after.v0, 1, 2)";
    assert_eq!(integer(db, torn).await, 0);

    // One transaction of many rows has its marker behind it; statements count as transactions do.
    db.execute_unprepared("DELETE FROM sync_outbox").await.unwrap();
    note::Entity::insert_many((0..2500).map(|i| note(&format!("big-{i}")))).exec(db).await.unwrap();
    assert_eq!(integer(db, markers).await, 1);
    assert_eq!(integer(db, "SELECT kind FROM sync_outbox ORDER BY id DESC LIMIT 1").await, 0);
}

#[tokio::test]
async fn cuts_are_nobodys_business() {
    // Without sync tables, and over an empty outbox, large writes go through and leave nothing.
    let fixture = with_notes().await;
    let large = |prefix: &'static str| {
        note::Entity::insert_many((0..1500).map(move |i| note(&format!("{prefix}-{i}"))))
    };
    large("none").exec(&fixture.db).await.unwrap();
    SyncMigrator::up(fixture.db.plain(), None).await.unwrap();
    large("empty").exec(&fixture.db).await.unwrap();
    assert_eq!(integer(&fixture.db, "SELECT count(*) FROM sync_outbox").await, 0);
}

// ---- force_record ----

#[tokio::test]
async fn a_row_that_did_not_change_can_be_recorded() {
    let fixture = captured().await;
    let db = &fixture.db;
    let saved = note::ActiveModel { size: Set(Some(7)), ..note("a") }.insert(db).await.unwrap();
    db.execute_unprepared("DELETE FROM sync_outbox").await.unwrap();

    force_record(db, &saved).await.unwrap();
    db.with_actor::<_, _, DbErr>("Ada", move |txn| Box::pin(async move { force_record(txn, &saved).await }))
        .await
        .unwrap();
    let recorded = "SELECT group_concat(kind || v0 || v1 || v2 || coalesce(actor, '-')) FROM sync_outbox \
        WHERE shape = 1 AND mode = 0 AND v3 IS NULL AND at > 1700000000000";
    assert_eq!(text(db, recorded).await.unwrap(), "4atext7-,4atext7Ada");
}

#[tokio::test]
async fn a_record_that_cannot_be_forced_says_why() {
    let fixture = captured().await;
    let db = &fixture.db;
    let saved = note("here").insert(db).await.unwrap();
    let gone = note::Model { id: "gone".to_owned(), ..saved.clone() };

    let error = force_record(db, &gone).await.unwrap_err().to_string();
    assert_names(&error, &["`note`", "no row with the key", "gone", "nothing was written", "Save the row"]);
    let error = {
        let saved = saved.clone();
        let outcome: Outcome<()> = db
            .transaction_with_no_sync(move |txn| Box::pin(async move { force_record(txn, &saved).await }))
            .await;
        outcome.unwrap_err().to_string()
    };
    assert_names(&error, &["`note`", "capture is off", "nothing was written", "outside"]);
    db.execute_unprepared("UPDATE sync_shape SET current = 0").await.unwrap();
    let error = force_record(db, &saved).await.unwrap_err().to_string();
    assert_names(&error, &["`note`", "not opened in a library", "nothing was written", ".model::<E>()"]);

    let without = with_notes().await;
    let error = force_record(&without.db, &saved).await.unwrap_err().to_string();
    assert_names(&error, &["`note`", "sync_outbox", "nothing was written", "library"]);
}

//! Taking back a tail, chunk by chunk, with a restart behind each.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use sea_orm::ConnectionTrait;
use sea_orm_migration::MigratorTrait;

use super::*;
use crate::{
    engine::Driver,
    gate::WriteGate,
    id::{DeviceId, Incarnation, LibraryId},
    library,
    model::{ModelDescriptor, Recorder},
    sequence,
    store::Store,
    term::{self, Entrance},
    world::Machine,
};

#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod note {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, tidelog_macros::Syncable)]
    #[sea_orm(table_name = "notes")]
    #[sync(crate = "crate", merge = "fields")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub text: String,
        #[sync(merge = "sum")]
        pub count: i64,
        #[sync(local)]
        pub open: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const DEVICE: DeviceId = DeviceId([7; 32]);
const OTHER: Term =
    Term { number: 2, leader: DeviceId([9; 32]), incarnation: Incarnation { counter: 1, nonce: 0 } };

async fn make(path: &Path) {
    let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    let table = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL, count INTEGER NOT NULL, open INTEGER)";
    db.execute_unprepared(table).await.unwrap();
    tidelog_migration::SyncMigrator::up(db.plain(), None).await.unwrap();
    db.close().await.unwrap();
}

fn open(path: &Path) -> Driver {
    let model = ModelDescriptor::of::<note::Model>().unwrap();
    let store = Store::open(path, vec![(model, Recorder::Trigger)], Arc::new(Machine)).unwrap();
    Driver::new(store, WriteGate::of(path), Arc::new(library::lock(path).unwrap())).0
}

/// Rows of a query, as text.
fn lines(conn: &rusqlite::Connection, sql: &str) -> Vec<String> {
    let mut statement = conn.prepare(sql).unwrap();
    let count = statement.column_count();
    let rows = statement.query_map([], |row| {
        (0..count).map(|i| Ok(format!("{:?}", row.get_ref(i)?))).collect::<rusqlite::Result<Vec<_>>>()
    });
    rows.unwrap().map(|row| row.unwrap().join(" ")).collect()
}

const NOTES: &str = "SELECT * FROM notes ORDER BY id";
/// What entries tell, wherever they stand.
const TOLD: &str =
    "SELECT kind, n, stamp, coalesce(rank, stamp), at, model, record, existed, layout, fields, data, change,
        decides FROM sync_entry WHERE kind < 3 ORDER BY seq";

fn top(driver: &Driver) -> Position {
    crate::store::top(driver.store.connection()).unwrap()
}

#[tokio::test]
async fn a_tail_goes_back_in_chunks_and_is_the_same_log_again_whoever_stops_behind_which() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    make(&path).await;
    let mut driver = open(&path);
    driver
        .transaction(|tx| {
            term::enter(tx, Entrance::Create(LibraryId(uuid::Uuid::from_u128(5))))?;
            term::start(tx, DEVICE, &BTreeMap::new())
        })
        .unwrap();
    let application = rusqlite::Connection::open(&path).unwrap();
    let write = |driver: &mut Driver, sql: &str| {
        application.execute_batch(sql).unwrap();
        driver.transaction(seal::seal_all).unwrap();
    };
    write(&mut driver, "INSERT INTO notes VALUES ('kept', 'before', 1, 1), ('gone', 'before', 1, 1)");
    let common = top(&driver);
    let many = |from: u64, count: u64| {
        let rows: Vec<String> =
            (from..from + count).map(|i| format!("('n{i}', 'text {i}', {i}, {i})")).collect();
        format!("INSERT INTO notes VALUES {}", rows.join(", "))
    };
    for i in 0..40 {
        write(
            &mut driver,
            &format!("UPDATE notes SET text = 'text {i}', count = count + {i} WHERE id = 'kept'"),
        );
    }
    write(&mut driver, &many(0, CHUNK + 500));
    write(&mut driver, "DELETE FROM notes WHERE id = 'gone'");
    for i in 0..30 {
        write(&mut driver, &many(10_000 + 100 * i, 100));
        write(&mut driver, &format!("UPDATE notes SET count = count + 1 WHERE id = 'n{i}'"));
    }
    write(&mut driver, "INSERT INTO notes VALUES ('gone', 'again', 2, 2); DELETE FROM notes WHERE id = 'n7'");
    let (notes, told) = (lines(&application, NOTES), lines(&application, TOLD));

    // It follows from now on, and seals this into pending first.
    driver.transaction(|tx| tx.set_terms(OTHER, None)).unwrap();
    write(&mut driver, "UPDATE notes SET text = 'pending', open = 9 WHERE id = 'kept'");
    let shown = lines(&application, NOTES);
    let mut chunks = 0;
    loop {
        let mut unwinding = Unwinding::new(OTHER, common.seq, top(&driver));
        let unwound = driver.transaction(|tx| unwinding.chunk(tx)).unwrap();
        assert_eq!(lines(&application, NOTES), shown, "the tables show what they showed, chunk by chunk");
        let held = "SELECT count(*) FROM (SELECT n FROM sync_entry WHERE kind < 3 UNION ALL SELECT n FROM sync_pending)";
        let held: usize = application.query_row(held, [], |row| row.get(0)).unwrap();
        assert_eq!(held, told.len() + 1, "nothing is lost or there twice");
        chunks += 1;
        if unwound == Unwound::Done {
            break;
        }
        assert_eq!(unwound, Unwound::More);
        // As after a crash: what it remembered is gone.
        drop(driver);
        driver = open(&path);
    }
    assert!(chunks > 3, "{chunks} chunks");
    assert_eq!(top(&driver), common);
    let beyond = "SELECT count(*) FROM sync_pending WHERE base_seq > 4";
    let beyond: u64 = application.query_row(beyond, [], |row| row.get(0)).unwrap();
    assert_eq!(beyond, 0, "the base of all is in what stays");

    // Leading again, over the same prefix: the log is what it was, with one change more.
    let again = Term { number: 3, leader: DEVICE, ..OTHER };
    driver.transaction(|tx| tx.set_terms(again, Some(again))).unwrap();
    sequence::own(&mut driver).unwrap();
    let mut told_again = lines(&application, TOLD);
    assert!(told_again.pop().unwrap().contains("Text"), "the one that was pending");
    assert_eq!(told_again, told);
    assert_eq!(lines(&application, NOTES), shown);
    assert_eq!(lines(&application, "SELECT * FROM sync_pending"), Vec::<String>::new());
    assert_ne!(shown, notes);
}

#[tokio::test]
async fn nothing_is_taken_back_below_the_floor_for_an_old_term_or_over_a_log_that_has_moved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    make(&path).await;
    let mut driver = open(&path);
    driver
        .transaction(|tx| {
            term::enter(tx, Entrance::Create(LibraryId(uuid::Uuid::from_u128(5))))?;
            term::start(tx, DEVICE, &BTreeMap::new())
        })
        .unwrap();
    let application = rusqlite::Connection::open(&path).unwrap();
    application.execute_batch("INSERT INTO notes VALUES ('a', 'text', 1, 1)").unwrap();
    driver.transaction(seal::seal_all).unwrap();
    let now = top(&driver);
    let mut to = |lead: Term, common: u64, from: Position| {
        let mut unwinding = Unwinding::new(lead, Seq(common), from);
        driver.transaction(|tx| unwinding.chunk(tx)).unwrap()
    };
    assert_eq!(to(OTHER, 1, now), Unwound::Stale(now.term), "it leads");
    application.execute_batch("UPDATE sync_replica SET lead = NULL").unwrap();
    assert_eq!(to(Term::ZERO, 1, now), Unwound::Stale(now.term));
    assert_eq!(to(OTHER, 1, Position { seq: Seq(now.seq.0 - 1), ..now }), Unwound::Moved);
    application.execute_batch("UPDATE sync_replica SET floor = 2").unwrap();
    assert_eq!(to(OTHER, 1, now), Unwound::BelowFloor);
    assert_eq!(top(&driver), now);
}

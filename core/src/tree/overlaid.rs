//! A follower's own move beside the leader's: a tree stays one while the leader has yet to answer.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{collections::BTreeMap, sync::Arc};

use sea_orm::ConnectionTrait;
use sea_orm_migration::MigratorTrait;

use crate::{
    apply::{self, Applied, Arrived, Rows},
    entry::{Batch, Body, Change, Entry, EntryKind, Group, Shape},
    id::{DeviceId, Incarnation, LibraryId, Origin, OriginSeq, Position, Seq, Term},
    model::{ModelDescriptor, Recorder},
    seal,
    store::Store,
    term::{self, Entrance},
    value::Value,
    world::Machine,
};

#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod folder {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, tidelog_macros::Syncable)]
    #[sea_orm(table_name = "folders")]
    #[sync(crate = "crate", tree = "parent", merge = "fields")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub parent: Option<String>,
        #[sync(local)]
        pub open: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const LEADER: DeviceId = DeviceId([1; 32]);
const TERM: Term = Term { number: 1, leader: LEADER, incarnation: Incarnation { counter: 1, nonce: 1 } };

/// A batch of the leader: each folder into its parent.
fn batch(after: Position, put: &[(&str, Option<&str>)]) -> Arrived {
    let (id, parent) = ("id".to_owned(), "parent".to_owned());
    let (fields, uuids) = (vec![id, parent], vec![false; 2]);
    let shape = Arc::new(Shape { model: "folders".into(), fields, key: vec![0], uuids });
    let text = |text: &str| Value::Text(text.into());
    let entries = put.iter().zip(after.seq.0 + 1..).map(|((id, parent), seq)| {
        let row = vec![text(id), parent.map_or(Value::Null, text)];
        let change = Change {
            record: shape.record_id(&row),
            shape: Arc::clone(&shape),
            kind: EntryKind::Upsert,
            existed: after.seq > Seq(1),
            fields: (after.seq > Seq(1)).then(|| [1].into_iter().collect()),
            row,
            before: None,
            stamp: seq,
            rank: None,
            at: 1,
            mark: None,
            actor: None,
            decides: None,
            outcome: None,
        };
        Entry { seq: Seq(seq), term: TERM, n: Some(OriginSeq(seq)), body: Body::Change(change) }
    });
    let (first, last) = (after.seq.0 + 1, after.seq.0 + put.len() as u64);
    let group = Group {
        origin: Origin(uuid::Uuid::from_u128(4)),
        device: LEADER,
        tag: first,
        base: after,
        prev: 0,
        was: None,
        seen: Vec::new(),
        first_n: OriginSeq(first),
        last_n: OriginSeq(last),
        first: Seq(first),
        last: Seq(last),
    };
    Arrived::of(Batch { after, entries: entries.collect(), groups: vec![group] })
}

#[tokio::test]
async fn a_move_that_meets_the_leaders_steps_out_until_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    let table = "CREATE TABLE folders (id TEXT NOT NULL PRIMARY KEY, parent TEXT, open INTEGER)";
    db.execute_unprepared(table).await.unwrap();
    tidelog_migration::SyncMigrator::up(db.plain(), None).await.unwrap();
    db.close().await.unwrap();
    let model = ModelDescriptor::of::<folder::Model>().unwrap();
    let mut store = Store::open(&path, vec![(model, Recorder::Trigger)], Arc::new(Machine)).unwrap();
    let join = Entrance::Join(LibraryId(uuid::Uuid::from_u128(5)));
    store.transaction(|tx| term::enter(tx, join)).unwrap();
    store.transaction(|tx| term::start(tx, DeviceId([2; 32]), &BTreeMap::new())).unwrap();
    let start = Body::TermStart { stamp: 1, at: 1 };
    let start = Entry { seq: Seq(1), term: TERM, n: None, body: start };
    let start = Batch { after: Position::EMPTY, entries: vec![start], groups: Vec::new() };
    let mut start = Arrived::of(start);
    store.transaction(|tx| apply::apply(tx, TERM, &mut start, &[], Rows::AsTheyCome, None)).unwrap();
    let mut pull = |after: Position, put: &[(&str, Option<&str>)]| {
        let mut arrived = batch(after, put);
        let applied = store
            .transaction(|tx| apply::apply(tx, TERM, &mut arrived, &[], Rows::AsTheyCome, None))
            .unwrap();
        let Applied::To(position) = applied else { panic!("{applied:?}") };
        store.transaction(seal::seal_all).unwrap();
        position
    };
    let application = rusqlite::Connection::open(&path).unwrap();
    let ask = |sql: &str| -> String { application.query_row(sql, [], |row| row.get(0)).unwrap() };
    let shown = || {
        ask("SELECT group_concat(id || coalesce(' in ' || parent, '') || ' ' || open, ', ')
            FROM (SELECT * FROM folders ORDER BY id)")
    };
    let top = pull(Position { term: TERM, seq: Seq(1) }, &[("a", None), ("b", None), ("c", None)]);
    application
        .execute_batch("UPDATE folders SET open = 1; UPDATE folders SET parent = 'b' WHERE id IN ('a', 'c')")
        .unwrap();
    // Not in each other's way: what is pending stays to be seen.
    let top = pull(top, &[("b", Some("d")), ("a", None)]);
    assert_eq!(shown(), "a in b 1, b in d 1, c in b 1");
    pull(top, &[("b", Some("a"))]);
    assert_eq!(shown(), "a 1, b in a 1, c in b 1");
    let states =
        "SELECT group_concat(record || ' ' || state, ', ') FROM (SELECT * FROM sync_pending ORDER BY record)";
    assert_eq!(ask(states), "a blocked, c waiting");
}

//! The overlay against what is written anew: whatever comes, the table shows the log with what is pending laid over.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use sea_orm::ConnectionTrait;
use sea_orm_migration::MigratorTrait;

use super::*;
use crate::{
    apply::{Applied, Arrived, Images, Rows, apply},
    entry::{Batch, Body, Entry, Group},
    id::{DeviceId, Incarnation, LibraryId, Origin, OriginSeq, Position, Seq, Term},
    model::{ModelDescriptor, Recorder},
    pending::PushedUpTo,
    seal,
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
        pub rank: i64,
        #[sync(merge = "sum")]
        pub count: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const LEADER: DeviceId = DeviceId([1; 32]);
const LEAD: Term = Term { number: 1, leader: LEADER, incarnation: Incarnation { counter: 1, nonce: 0 } };

/// A follower, and the leader's log as far as it has it.
struct Follower {
    store: Store,
    application: rusqlite::Connection,
    top: Seq,
}

impl Follower {
    async fn open(folder: &std::path::Path) -> Self {
        let path = folder.join("db");
        let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        let table = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL, rank INTEGER NOT NULL, count INTEGER NOT NULL)";
        db.execute_unprepared(table).await.unwrap();
        tidelog_migration::SyncMigrator::up(db.plain(), None).await.unwrap();
        db.close().await.unwrap();
        let model = ModelDescriptor::of::<note::Model>().unwrap();
        let mut store = Store::open(&path, vec![(model, Recorder::Trigger)], Arc::new(Machine)).unwrap();
        let library = LibraryId(uuid::Uuid::from_u128(5));
        store.transaction(|tx| term::enter(tx, Entrance::Join(library))).unwrap();
        store.transaction(|tx| term::start(tx, DeviceId([2; 32]), &BTreeMap::new())).unwrap();
        let application = rusqlite::Connection::open(&path).unwrap();
        Self { store, application, top: Seq(0) }
    }

    fn write(&mut self, sql: &str) {
        self.application.execute_batch(sql).unwrap();
        self.store.transaction(seal::seal_all).unwrap();
    }

    /// Applies the leader's changes as one batch.
    fn take(&mut self, changes: Vec<Change>) {
        self.take_as(group(self.top, changes.len()), changes);
    }

    fn take_as(&mut self, group: Group, changes: Vec<Change>) {
        let last = group.last;
        let mut arrived = arrived(group, changes);
        let applied = self.store.transaction(|tx| apply(tx, LEAD, &mut arrived, &[], Rows::AsTheyCome, None));
        assert_eq!(applied.unwrap(), Applied::To(Position { term: LEAD, seq: last }));
        self.top = last;
    }

    /// Applies batches, groups with their changes, as a follower does: in one transaction, or one by one.
    fn take_all(&mut self, batches: Vec<(Group, Vec<Change>)>, together: bool) {
        let last = batches.last().map_or(self.top, |(group, _)| group.last);
        if !together {
            return batches.into_iter().for_each(|(group, changes)| self.take_as(group, changes));
        }
        let applied = self.store.transaction(|tx| {
            let mut images = Images::default();
            for (group, changes) in batches {
                let top = Position { term: LEAD, seq: group.last };
                let mut arrived = arrived(group, changes);
                let applied = apply(tx, LEAD, &mut arrived, &[], Rows::AtTheEnd(&mut images), None)?;
                assert_eq!(applied, Applied::To(top));
            }
            images.write(tx)
        });
        applied.unwrap();
        self.top = last;
    }

    /// The group of this follower that is pending first, as the leader answers it behind `log`: see [`answer`].
    fn own(&mut self, top: Seq, log: &mut Logged, whole: bool) -> Option<(Group, Vec<Change>)> {
        let push = self.store.transaction(|tx| pending::read(tx.conn, &PushedUpTo::NOTHING)).unwrap()?;
        let Batch { mut groups, entries, .. } = push.batch;
        let mut group = groups.remove(0);
        let count = group.count();
        (group.first, group.last) = (top.next(), Seq(top.0 + count));
        let entries = entries.into_iter().take(usize::try_from(count).unwrap());
        let changes = entries.map(|entry| {
            let Body::Change(mut change) = entry.body else { panic!("another entry is pending") };
            answer(&mut change, log, whole);
            change
        });
        Some((group, changes.collect()))
    }

    /// What the table shows once all records are written anew.
    fn anew(&mut self) -> Vec<String> {
        let records: Vec<Change> = (0..3)
            .map(|record| {
                let mut key = change(&self.store, "", 0, 0, None);
                let id = format!("n{record}");
                key.record = id.as_str().into();
                key.row[0] = Value::Text(id.into());
                key_of(&key)
            })
            .collect();
        self.store.transaction(|tx| rewrite(tx, &records)).unwrap();
        self.notes()
    }

    fn is_hidden(&mut self, change: &Change) -> bool {
        let hidden = self.store.transaction(|tx| Ok(Overlay::default().layers(tx, change)?.hide(tx, change)));
        hidden.unwrap()
    }

    fn note(&self) -> String {
        let sql = "SELECT text || ' ' || rank || ' ' || count FROM notes";
        self.application.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn notes(&self) -> Vec<String> {
        let sql = "SELECT id || ' ' || text || ' ' || rank || ' ' || count FROM notes ORDER BY id";
        let mut statement = self.application.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}

/// What a leader makes of a change behind a log, which then has it: field by field, or all of its row.
fn answer(change: &mut Change, log: &mut Logged, whole: bool) {
    let stands = &mut log[record_of(change)];
    let [_, Value::Text(text), Value::Integer(rank), Value::Integer(count)] = &change.row[..] else {
        *stands = None;
        return;
    };
    let made = (String::from_utf8(text.to_vec()).unwrap(), *rank, *count);
    let (after, fields) = match stands.take() {
        None => (made, None),
        Some(log) if whole => {
            let differs = [log.0 != made.0, log.1 != made.1, log.2 != made.2];
            let fields = change.fields.as_ref().map(|fields| {
                (1..)
                    .zip(differs)
                    .filter(|(f, differs)| *differs || fields.contains(f))
                    .map(|(f, _)| f)
                    .collect()
            });
            (made, fields)
        }
        Some(log) => {
            let wrote = |field: u16| change.fields.as_ref().is_none_or(|fields| fields.contains(&field));
            let count = match change.before.as_deref() {
                _ if !wrote(3) => log.2,
                Some([.., Value::Integer(before)]) if change.existed => log.2 + made.2 - before,
                _ => made.2,
            };
            let (text, rank) = (if wrote(1) { made.0 } else { log.0 }, if wrote(2) { made.1 } else { log.1 });
            ((text, rank, count), change.fields.clone())
        }
    };
    let row = vec![
        change.row[0].clone(),
        Value::Text(after.0.clone().into()),
        Value::Integer(after.1),
        Value::Integer(after.2),
    ];
    *stands = Some(after);
    if row != change.row || fields != change.fields {
        let effect = resolve::Effect::Row { row, fields: fields.map(crate::entry::Fields::into_vec) };
        change.outcome = Some(Box::new(crate::entry::Outcome { effect, dropped: Vec::new(), refused: None }));
    }
}

fn record_of(change: &Change) -> usize {
    change.record.to_string()[1..].parse().unwrap()
}

/// Dice of any number of sides that fall alike for a seed (xorshift64, Marsaglia 2003).
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed + 1);
    move |sides| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % sides
    }
}

/// Batches of the leader's changes behind `top`, each a group.
fn groups(mut top: Seq, batches: Vec<Vec<Change>>) -> Vec<(Group, Vec<Change>)> {
    let next = |changes: Vec<Change>| {
        let group = group(top, changes.len());
        top = group.last;
        (group, changes)
    };
    batches.into_iter().map(next).collect()
}

/// The leader's next group, of so many changes.
fn group(top: Seq, count: usize) -> Group {
    let (first, last) = (top.next(), Seq(top.0 + count as u64));
    Group {
        origin: Origin(uuid::Uuid::from_u128(9)),
        device: LEADER,
        tag: first.0,
        base: Position::EMPTY,
        prev: 0,
        was: None,
        seen: Vec::new(),
        first_n: OriginSeq(first.0),
        last_n: OriginSeq(last.0),
        first,
        last,
    }
}

fn arrived(group: Group, changes: Vec<Change>) -> Arrived {
    let after = match group.first {
        Seq(1) => Position::EMPTY,
        first => Position { term: LEAD, seq: Seq(first.0 - 1) },
    };
    let entries = (0..).zip(changes).map(|(i, change)| Entry {
        seq: Seq(group.first.0 + i),
        term: LEAD,
        n: Some(OriginSeq(group.first_n.0 + i)),
        body: Body::Change(change),
    });
    Arrived::of(Batch { after, entries: entries.collect(), groups: vec![group] })
}

/// What the log has of three records.
type Logged = [Option<(String, i64, i64)>; 3];

/// What somebody else does to three records, in batches: as the leader's log would tell it.
fn random_batches(store: &Store, mut dice: impl FnMut(u64) -> u64) -> Vec<Vec<Change>> {
    let mut rows = Logged::default();
    (0..4).map(|batch| random_batch(store, batch, &mut rows, &mut dice)).collect()
}

fn random_batch(
    store: &Store,
    batch: usize,
    rows: &mut Logged,
    mut dice: impl FnMut(u64) -> u64,
) -> Vec<Change> {
    let mut changes = Vec::new();
    {
        for i in 0..=dice(4) {
            let record = usize::try_from(dice(3)).unwrap();
            let (text, rank, count) = rows[record].clone().unwrap_or_default();
            let was_there = rows[record].is_some();
            let delete = was_there && dice(4) == 0;
            let field = if was_there && !delete { Some(1 + dice(3) as u16) } else { None };
            let next = match field {
                Some(1) => (format!("theirs {batch}.{i}"), rank, count),
                Some(2) => (text, rank + 1, count),
                Some(_) => (text, rank, count + 10),
                None => (format!("new {batch}.{i}"), 0, 0),
            };
            let mut change = change(store, &next.0, next.1, next.2, Some(field.into_iter().collect()));
            let key = format!("n{record}");
            change.record = key.as_str().into();
            change.row[0] = Value::Text(key.into());
            change.existed = was_there;
            if field.is_none() {
                change.fields = None;
            }
            if was_there && dice(5) == 0 {
                // It came too late, and left things as they were.
                change.outcome = Some(Box::new(crate::entry::Outcome::nothing()));
            } else {
                rows[record] = (!delete).then_some(next);
            }
            if delete {
                change.kind = EntryKind::Delete;
                change.row[1..].fill(Value::Null);
            }
            changes.push(change);
        }
    }
    changes
}

fn change(store: &Store, text: &str, rank: i64, count: i64, fields: Option<Vec<u16>>) -> Change {
    let row =
        vec![Value::Text(b"n".into()), Value::Text(text.into()), Value::Integer(rank), Value::Integer(count)];
    Change {
        shape: Arc::clone(&store.models()[0].shape),
        record: "n".into(),
        kind: EntryKind::Upsert,
        existed: fields.is_some(),
        fields: fields.map(Into::into),
        row,
        before: None,
        stamp: 1,
        rank: None,
        at: 1,
        mark: None,
        actor: None,
        decides: None,
        outcome: None,
    }
}

#[tokio::test]
async fn what_is_written_under_a_pending_change_shows_when_that_goes_and_beside_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut follower = Follower::open(folder.path()).await;
    let of = |follower: &Follower, text: &str, rank, count, fields: &[u16]| {
        change(&follower.store, text, rank, count, Some(fields.to_vec()))
    };
    let inserted = change(&follower.store, "first", 0, 0, None);
    follower.take(vec![inserted]);
    follower.write("UPDATE notes SET text = 'mine', count = count + 1");

    let under = of(&follower, "theirs", 0, 0, &[1]);
    assert!(follower.is_hidden(&under));
    follower.take(vec![under]);
    assert_eq!(follower.note(), "mine 0 1");

    let beside = of(&follower, "theirs", 7, 0, &[2]);
    assert!(!follower.is_hidden(&beside));
    // The second replaces the first one's image, and is not alone with what is pending.
    let both = vec![beside, of(&follower, "again", 7, 0, &[1])];
    follower.take(both);
    assert_eq!(follower.note(), "mine 7 1");

    let added = of(&follower, "again", 7, 10, &[3]);
    assert!(!follower.is_hidden(&added), "what adds up does not hide what it adds to");
    follower.take(vec![added]);
    assert_eq!(follower.note(), "mine 7 11");

    let push = follower.store.transaction(|tx| pending::read(tx.conn, &PushedUpTo::NOTHING));
    let Batch { mut groups, mut entries, .. } = push.unwrap().unwrap().batch;
    let mut group = groups.remove(0);
    (group.first, group.last) = (follower.top.next(), follower.top.next());
    let Body::Change(mut own) = entries.remove(0).body else { panic!("another entry is pending") };
    own.outcome = Some(Box::new(crate::entry::Outcome {
        effect: resolve::Effect::None,
        dropped: Vec::new(),
        refused: Some("not this time".into()),
    }));
    follower.take_as(group, vec![own]);
    assert_eq!(follower.note(), "again 7 10", "the log's own, once nothing is pending");
}

#[tokio::test]
async fn batches_in_one_transaction_leave_what_they_leave_one_by_one() {
    for seed in 0..24 {
        let mut dice = dice(seed);
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut single = Follower::open(folders[0].path()).await;
        let mut together = Follower::open(folders[1].path()).await;
        let mut batches = random_batches(&single.store, &mut dice);
        let before = batches.split_off(2);
        let (before, after) = (batches, before);
        for follower in [&mut single, &mut together] {
            for batch in &before {
                follower.take(batch.clone());
            }
        }
        let writes = [
            "UPDATE notes SET text = 'mine' WHERE id = 'n0'",
            "UPDATE notes SET count = count + 1 WHERE id <> 'n2'",
            "DELETE FROM notes WHERE id = 'n2'",
            "INSERT OR IGNORE INTO notes VALUES ('n1', 'mine', 5, 5)",
        ];
        for write in writes {
            if dice(2) == 0 {
                single.write(write);
                together.write(write);
            }
        }
        assert_eq!(single.notes(), together.notes());
        for batch in &after {
            single.take(batch.clone());
        }
        together.take_all(groups(together.top, after), true);
        assert_eq!(single.notes(), together.notes(), "seed {seed}");
    }
}

#[tokio::test]
async fn whatever_comes_back_the_table_shows_the_log_with_what_is_pending_laid_over() {
    let mut came_back_as_made = 0;
    for seed in 0..40 {
        let mut dice = dice(seed);
        let folder = tempfile::tempdir().unwrap();
        let mut follower = Follower::open(folder.path()).await;
        let mut log = Logged::default();
        let writes = [
            "UPDATE notes SET text = 'mine ' || rank WHERE id = 'n0'",
            "UPDATE notes SET count = count + 1 WHERE id <> 'n2'",
            "UPDATE notes SET rank = rank + 7 WHERE id = 'n1'",
            "DELETE FROM notes WHERE id = 'n2'",
            "INSERT OR IGNORE INTO notes VALUES ('n1', 'mine', 5, 5)",
        ];
        for round in 0..12 {
            for write in writes {
                if dice(3) == 0 {
                    follower.write(write);
                }
            }
            let mut batches = Vec::new();
            let mut top = follower.top;
            if dice(2) == 0 {
                let changes = random_batch(&follower.store, round, &mut log, &mut dice);
                let group = group(top, changes.len());
                top = group.last;
                batches.push((group, changes));
            }
            let whole = dice(3) == 0;
            if dice(3) > 0
                && let Some(own) = follower.own(top, &mut log, whole)
            {
                came_back_as_made += own.1.iter().filter(|change| change.outcome.is_none()).count();
                batches.push(own);
            }
            let together = dice(2) == 0;
            follower.take_all(batches, together);
            let shows = follower.notes();
            assert_eq!(shows, follower.anew(), "seed {seed}, together: {together}");
        }
    }
    assert!(came_back_as_made > 200, "only {came_back_as_made} changes came back as they were made");
}

#[tokio::test]
async fn what_comes_back_as_it_was_made_is_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut follower = Follower::open(folder.path()).await;
    let mut inserted = change(&follower.store, "first", 0, 0, None);
    inserted.record = "n0".into();
    inserted.row[0] = Value::Text(b"n0".into());
    let mut log = [Some(("first".to_owned(), 0, 0)), None, None];
    follower.take(vec![inserted]);
    let written = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&written);
    follower
        .store
        .connection()
        .update_hook(Some(move |_, _: &str, table: &str, _| {
            counts.fetch_add(u64::from(table == "notes"), Ordering::Relaxed);
        }))
        .unwrap();
    for (together, writes) in [(false, 0), (true, 0)] {
        follower.write(&format!("UPDATE notes SET text = 'mine, together: {together}', rank = rank + 1"));
        let own = follower.own(follower.top, &mut log, false).unwrap();
        follower.take_all(vec![own], together);
        assert_eq!(written.load(Ordering::Relaxed), writes, "together: {together}");
    }
    // Somebody else's stands beside it: that is written.
    follower.write("UPDATE notes SET text = 'mine again'");
    let mut beside = change(&follower.store, "mine, together: true", 9, 0, Some(vec![2]));
    beside.record = "n0".into();
    beside.row[0] = Value::Text(b"n0".into());
    log[0] = Some(("mine, together: true".to_owned(), 9, 0));
    let group = group(follower.top, 1);
    let own = follower.own(group.last, &mut log, false).unwrap();
    follower.take_all(vec![(group, vec![beside]), own], true);
    assert_eq!((written.load(Ordering::Relaxed), follower.note()), (1, "mine again 9 0".to_owned()));
}

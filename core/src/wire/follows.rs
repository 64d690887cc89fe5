//! Rows that follow from the one before: of an update whose record has an earlier change in the batch, only the changed
//! values travel, where the rest is what that one left.
//!
//! The sender compares, so nothing is assumed of where a change comes from; a row that does not follow travels whole, and
//! so does the first of each record. The receiver needs nothing but the batch: what it has of the record may be another
//! state of it, and looking that up would cost more than the bytes do.

use std::{collections::HashMap, sync::Arc};

use crate::{
    entry::{Body, Entry, EntryKind, Shape},
    record::RecordId,
    row_text::Parts,
    value::Value,
};

/// Bytes of values that a batch may repeat by not sending them: more than it holds. Rows are counted whole when a batch is
/// filled ([`entry_size`](crate::log::entry_size)), so one that was made for sending is below.
const REPEATED_MAX: usize = 4 << 20;

/// The last row that the batch has of each record.
pub(super) struct Rows<'b> {
    /// Of each record, the last change with a row.
    last: HashMap<Record<'b>, u16, foldhash::fast::RandomState>,
    /// Of each change, the row, if it has one.
    rows: Vec<Option<Row<'b>>>,
}

type Record<'b> = (*const Shape, &'b RecordId);

/// A row after an upsert: as its values, or as the log's text of it.
#[derive(Clone, Copy)]
pub(super) enum Row<'b> {
    Values(&'b [Value]),
    Text(Parts<'b>),
}

impl<'b> Rows<'b> {
    /// Of a batch of so many entries.
    pub(super) fn of(entries: usize) -> Self {
        let last = HashMap::with_capacity_and_hasher(entries, foldhash::fast::RandomState::default());
        Self { last, rows: Vec::with_capacity(entries) }
    }

    /// How many changes before the next one of the batch, which this is, the one is whose row its own follows; zero if there is
    /// none. `fields` are the changed ones.
    pub(super) fn follows(
        &mut self,
        (shape, record): (&Arc<Shape>, &'b RecordId),
        fields: Option<&[u16]>,
        row: Option<Row<'b>>,
    ) -> u16 {
        let index = self.rows.len();
        self.rows.push(row);
        // Far above what a batch holds.
        let (Some(row), Ok(index)) = (row, u16::try_from(index)) else { return 0 };
        let at = self.last.insert((Arc::as_ptr(shape), record), index);
        let before = at.and_then(|at| Some((at, self.rows[usize::from(at)]?)));
        match (before, fields) {
            (Some((at, before)), Some(fields)) if row.is_told(before, fields) => index - at,
            _ => 0,
        }
    }
}

impl Row<'_> {
    /// Whether the changed fields and the row before say all of this one. Of a text and values they may, and are not asked.
    fn is_told(self, before: Self, fields: &[u16]) -> bool {
        // Few fields: looking through them is quicker than marking them.
        let is_changed = |i: usize| fields.iter().any(|&field| usize::from(field) == i);
        match (before, self) {
            (Self::Values(before), Self::Values(row)) => {
                (0..row.len()).all(|i| before[i] == row[i] || is_changed(i))
            }
            (Self::Text(before), Self::Text(row)) => {
                let mut values = before.iter().zip(row.iter()).enumerate();
                values.all(|(i, (before, value))| before == value || is_changed(i))
            }
            _ => false,
        }
    }
}

/// The rows of a batch that is being read.
#[derive(Default)]
pub(super) struct Read {
    /// For each change, where its entry is.
    places: Vec<usize>,
    repeated: usize,
}

impl Read {
    /// To be called with the place of each change's entry, in order.
    pub(super) fn is_at(&mut self, place: usize) {
        self.places.push(place);
    }

    /// The row of the change that is so many before the next.
    pub(super) fn before(
        &mut self,
        entries: &[Entry],
        distance: u16,
        shape: &Arc<Shape>,
    ) -> Result<Vec<Value>, &'static str> {
        let index = self.places.len().checked_sub(usize::from(distance));
        let place = index.and_then(|index| self.places.get(index));
        let Some(Body::Change(before)) = place.and_then(|&place| entries.get(place)).map(|entry| &entry.body)
        else {
            return Err("a row follows one that is not there");
        };
        if !Arc::ptr_eq(&before.shape, shape) || before.kind != EntryKind::Upsert {
            return Err("a row follows one of something else");
        }
        // A large row that thousands follow would be much memory.
        self.repeated += before.row.iter().map(|value| value.size() + 4).sum::<usize>();
        if self.repeated > REPEATED_MAX {
            return Err("rows that follow others are over the limit");
        }
        Ok(before.row.clone())
    }
}

#[cfg(test)]
mod tests {
    use sea_orm_migration::MigratorTrait;

    use super::*;
    use crate::{
        entry::{Batch, Change, Group, Outcome},
        id::{DeviceId, Incarnation, Origin, OriginSeq, Position, Seq, Term},
        log::{self, Appender, KeptBody, LogReader, ROW_MAX, entry_size},
        resolve::{Dropped, Effect, Loser},
        store::{self, Store, Tx},
        wire::{Message, columns::Columns},
        world::Machine,
    };

    const FIELDS: [&str; 6] = ["id", "name", "size", "ratio", "raw", "note"];

    fn shapes() -> [Arc<Shape>; 2] {
        let shape = |model: &str, key: Vec<usize>| {
            let fields = FIELDS.map(String::from).to_vec();
            let uuids = (0..FIELDS.len()).map(|i| key == [i]).collect();
            Shape { model: model.into(), fields, key, uuids }.shared()
        };
        [shape("file", vec![0]), shape("tag", vec![0, 1])]
    }

    fn change(shape: &Arc<Shape>, row: Vec<Value>, fields: Option<Vec<u16>>) -> Change {
        Change {
            shape: Arc::clone(shape),
            record: shape.record_id(&row),
            kind: EntryKind::Upsert,
            existed: fields.is_some(),
            fields: fields.map(Into::into),
            row,
            before: None,
            stamp: 1,
            rank: None,
            at: 2,
            mark: None,
            actor: None,
            decides: None,
            outcome: None,
        }
    }

    fn batch(changes: Vec<Change>) -> Batch {
        let incarnation = Incarnation { counter: 1, nonce: 5 };
        let term = Term { number: 1, leader: DeviceId([3; 32]), incarnation };
        let last = changes.len() as u64;
        let group = Group {
            origin: Origin(uuid::Uuid::from_u128(9)),
            device: DeviceId([3; 32]),
            tag: 7,
            base: Position::EMPTY,
            prev: 0,
            was: None,
            seen: Vec::new(),
            first_n: OriginSeq(1),
            last_n: OriginSeq(last),
            first: Seq(1),
            last: Seq(last),
        };
        let entry =
            |(i, change)| Entry { seq: Seq(i), term, n: Some(OriginSeq(i)), body: Body::Change(change) };
        let entries = (1..).zip(changes).map(entry).collect();
        Batch { after: Position::EMPTY, entries, groups: vec![group] }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }

        fn value(&mut self) -> Value {
            // Most rows hold nothing that their texts escape.
            match self.below(20).saturating_sub(15) {
                0 if self.below(3) == 0 => Value::Null,
                0 if self.below(2) == 0 => Value::Integer(self.below(3) as i64 - 1),
                0 => Value::Text(vec![b'a'; self.below(4) as usize].into()),
                1 => Value::Real(if self.below(2) == 0 { 0.0 } else { -0.0 }),
                2 => Value::Text([0xff, b'"'].into()),
                3 => Value::Text(vec![b'b'; 100].into()),
                _ => Value::Blob(vec![0xff; self.below(4) as usize].into()),
            }
        }

        /// Changes to a few records of two models: updates that follow from the row before and some that do not, inserts,
        /// deletions, outcomes.
        fn changes(&mut self) -> Vec<Change> {
            let shapes = shapes();
            let mut rows: Vec<(usize, Vec<Value>)> = Vec::new();
            for i in 0..6u8 {
                let mut row: Vec<Value> = (0..FIELDS.len()).map(|_| self.value()).collect();
                let shape = usize::from(i % 2);
                row[0] = if shape == 0 { Value::Blob([i; 16].into()) } else { Value::Integer(i.into()) };
                row[1] = Value::Text(b"t".into());
                rows.push((shape, row));
            }
            (0..1 + self.below(40))
                .map(|_| {
                    let at = self.below(rows.len() as u64) as usize;
                    let shape = &shapes[rows[at].0];
                    let row = &mut rows[at].1;
                    let free = [2u16, 3, 4, 5];
                    let fields: Vec<u16> = free.into_iter().filter(|_| self.below(3) == 0).collect();
                    for &field in &fields {
                        row[usize::from(field)] = self.value();
                    }
                    if self.below(6) == 0 {
                        // Somebody else's value, which the changed fields do not tell.
                        row[2] = self.value();
                    }
                    let whole = self.below(5) == 0;
                    let mut change = change(shape, row.clone(), (!whole).then_some(fields));
                    match self.below(6) {
                        0 => {
                            change.kind = EntryKind::Delete;
                            let is_key = |i| shape.key.contains(&i);
                            (0..FIELDS.len())
                                .filter(|&i| !is_key(i))
                                .for_each(|i| change.row[i] = Value::Null);
                        }
                        1 => {
                            let dropped = vec![Dropped { field: Some(2), loser: Loser::Remote, open: true }];
                            let mut stands = change.row.clone();
                            stands[5] = self.value();
                            let effect = Effect::Row { row: stands, fields: Some(vec![5]) };
                            let old: Vec<Value> =
                                change.fields.iter().flatten().map(|_| Value::Integer(4)).collect();
                            change.set_old_values(old);
                            let outcome = Outcome { effect, dropped, refused: None };
                            change.outcome = Some(Box::new(outcome));
                        }
                        _ => {}
                    }
                    change
                })
                .collect()
        }
    }

    #[test]
    fn whatever_rows_do_they_arrive_as_they_were() {
        let mut followed = 0;
        for seed in 0..500 {
            let batch = batch(Random(seed).changes());
            let columns = Columns::of(&batch);
            followed += columns.follows.iter().filter(|distance| **distance > 0).count();
            let arrived = columns.into_batch().expect("builds");
            assert_eq!(arrived, batch, "seed {seed}");
        }
        assert!(followed > 1000, "only {followed} rows followed");
    }

    #[tokio::test]
    async fn what_the_log_has_is_packed_as_the_values_that_it_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.db");
        let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.expect("opens");
        tidelog_migration::SyncMigrator::up(db.plain(), None).await.expect("migrates");
        db.close().await.expect("closes");
        let mut store = Store::open(&path, Vec::new(), Arc::new(Machine)).expect("opens");
        let (mut plain, mut followed, mut whole) = (0, 0, Vec::new());
        for seed in 0..200 {
            let mut batch = batch(Random(seed).changes());
            let top = whole.last().map_or(Position::EMPTY, |batch: &Batch| Position {
                term: batch.entries[0].term,
                seq: batch.last(),
            });
            batch.after = top;
            batch.entries.iter_mut().for_each(|entry| entry.seq.0 += top.seq.0);
            let group = &mut batch.groups[0];
            (group.first.0, group.last.0) = (group.first.0 + top.seq.0, group.last.0 + top.seq.0);
            let append = |tx: &mut Tx<'_>| {
                let row = store::origin_row(tx.conn, batch.groups[0].origin, batch.groups[0].device)?;
                log::push_group(tx.conn, &batch.groups[0], row, 0)?;
                let mut appender = Appender::new(tx, top)?;
                batch.entries.iter().try_for_each(|entry| appender.push(entry))
            };
            store.transaction(append).expect("appends");
            let conn = store.connection();
            let excerpt = LogReader::default().excerpt(conn, top.seq, batch.last()).expect("reads");
            plain += excerpt.entries().filter(|(_, entry)| matches!(entry.body, KeptBody::Plain(_))).count();
            let columns = Columns::of_excerpt(&excerpt).expect("packs");
            followed += columns.follows.iter().filter(|distance| **distance > 0).count();
            assert_eq!(columns.into_batch().expect("builds"), batch, "seed {seed}, packed");
            assert_eq!(excerpt.into_batch().expect("reads"), batch, "seed {seed}");
            whole.push(batch);
        }
        assert!(plain > 1000 && followed > 300, "only {plain} were plain and {followed} followed");
        let all =
            LogReader::default().excerpt(store.connection(), Seq(0), Seq(u64::MAX >> 2)).expect("reads");
        let entries: Vec<Entry> = whole.into_iter().flat_map(|batch| batch.entries).collect();
        assert_eq!(Columns::of_excerpt(&all).expect("packs").into_batch().expect("builds").entries, entries);
    }

    #[test]
    fn damage_is_an_error_or_another_batch_but_never_a_panic() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let mut columns = Columns::of(&batch(random.changes()));
            let at = random.below(columns.follows.len() as u64) as usize;
            columns.follows[at] = random.below(1 << 16) as u16;
            let _ = columns.into_batch();
            let bytes = Message::push(Term::ZERO, Position::EMPTY, &batch(random.changes())).encode();
            for _ in 0..50 {
                let mut damaged = bytes.clone();
                let at = random.below(bytes.len() as u64) as usize;
                damaged[at] = random.below(256) as u8;
                if let Ok(Message::Push { batch, .. }) = Message::decode(&damaged) {
                    let _ = batch.into_batch();
                }
            }
        }
    }

    /// A row, and an update of one of its fields.
    fn two() -> Vec<Change> {
        let row: Vec<Value> = (0..6).map(Value::Integer).collect();
        let mut second = row.clone();
        second[2] = Value::Integer(99);
        let shape = &shapes()[0];
        vec![change(shape, row, None), change(shape, second, Some(vec![2]))]
    }

    #[test]
    fn a_row_that_follows_nothing_is_refused() {
        let refusal = |changes: Vec<Change>, tamper: fn(&mut Columns)| {
            let mut columns = Columns::of(&batch(changes));
            tamper(&mut columns);
            columns.into_batch().expect_err("refused").to_string()
        };
        assert_eq!(Columns::of(&batch(two())).follows, [0, 1]);
        for tamper in [(|c| c.follows[1] = 2) as fn(&mut Columns), |c| c.follows[1] = u16::MAX] {
            let text = refusal(two(), tamper);
            assert!(text.contains("follows one that is not there"), "{text}");
        }
        let text = refusal(two(), |c| c.follows[0] = 1);
        assert!(text.contains("all of it changed"), "{text}");
        let text = refusal(two(), |c| c.follows.truncate(1));
        assert!(text.contains("differ in number"), "{text}");
        let other = change(&shapes()[1], (0..6).map(Value::Integer).collect(), None);
        let mut changes = two();
        changes.insert(1, other);
        let text = refusal(changes, |c| c.follows[2] = 1);
        assert!(text.contains("something else"), "{text}");
        let text = refusal(two(), |c| c.follows[1] = 0);
        assert!(text.contains("ends before its rows"), "{text}");
    }

    #[test]
    fn a_large_row_that_many_follow_is_refused_before_it_is_copied() {
        let mut row: Vec<Value> = (0..6).map(Value::Integer).collect();
        row[4] = Value::Blob(vec![7; ROW_MAX].into());
        let shape = &shapes()[0];
        let mut changes = vec![change(shape, row.clone(), None)];
        // Three may follow it, the fourth is too much: thousands could be told in a few bytes each.
        changes.resize_with(5, || change(shape, row.clone(), Some(vec![2])));
        let text = Columns::of(&batch(changes)).into_batch().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("over the limit"), "{text}");
    }

    #[test]
    fn what_follows_takes_little_and_is_counted_as_if_it_were_whole() {
        let mut row: Vec<Value> = (0..6).map(Value::Integer).collect();
        row[5] = Value::Text(vec![b'x'; 300].into());
        let shape = &shapes()[0];
        let update = |i| {
            let mut row = row.clone();
            row[2] = Value::Integer(i);
            change(shape, row, Some(vec![2]))
        };
        let batch = batch((0..1000).map(update).collect());
        let message = Message::entries(Term::ZERO, Seq(0), Position::EMPTY, &batch);
        let taken = postcard::to_extend(&message, Vec::new()).expect("encodes").len();
        let counted: usize = batch.entries.iter().map(|entry| entry_size(&entry.body)).sum();
        assert!(taken < 20_000, "{taken} bytes");
        assert!(counted > 300_000, "{counted} counted");
    }
}

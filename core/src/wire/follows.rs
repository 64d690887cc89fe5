//! Rows that follow from the one before: of an update whose record has an earlier change in the batch, only the changed
//! values travel, where the rest is what that one left.
//!
//! The sender compares, so nothing is assumed of where a change comes from; a row that does not follow travels whole, and
//! so does the first of each record. The receiver needs nothing but the batch: what it has of the record may be another
//! state of it, and looking that up would cost more than the bytes do.

use std::{collections::HashMap, sync::Arc};

use crate::{
    entry::{Body, Change, Entry, EntryKind, Shape},
    record::RecordId,
    value::Value,
};

/// Bytes of values that a batch may repeat by not sending them: more than it holds. Rows are counted whole when a batch is
/// filled ([`entry_size`](crate::log::entry_size)), so one that was made for sending is below.
const REPEATED_MAX: usize = 4 << 20;

/// The last row that the batch has of each record.
pub(super) struct Rows<'b>(HashMap<Record<'b>, (u16, &'b Change), foldhash::fast::RandomState>);

type Record<'b> = (*const Shape, &'b RecordId);

impl<'b> Rows<'b> {
    /// Of a batch of so many entries.
    pub(super) fn of(entries: usize) -> Self {
        Self(HashMap::with_capacity_and_hasher(entries, foldhash::fast::RandomState::default()))
    }

    /// How many changes before this one, the batch's `index`th, the one is whose row its own follows; zero if there is
    /// none.
    pub(super) fn follows(&mut self, index: usize, change: &'b Change) -> u16 {
        // Far above what a batch holds.
        let Ok(index) = u16::try_from(index) else { return 0 };
        if change.kind != EntryKind::Upsert {
            return 0;
        }
        let record = (Arc::as_ptr(&change.shape), &change.record);
        let before = self.0.insert(record, (index, change));
        match before {
            Some((at, before)) if is_told(before, change) => index - at,
            _ => 0,
        }
    }
}

/// Whether the changed fields and the row before say all of the change's row.
fn is_told(before: &Change, change: &Change) -> bool {
    let Some(fields) = &change.fields else { return false };
    // Few fields: looking through them is quicker than marking them.
    let is_same = |(i, value): (usize, &Value)| {
        before.row[i] == *value || fields.iter().any(|&field| usize::from(field) == i)
    };
    change.row.iter().enumerate().all(is_same)
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
    use super::*;
    use crate::{
        entry::{Batch, Group, Outcome},
        id::{DeviceId, Incarnation, Origin, OriginSeq, Position, Seq, Term},
        log::{ROW_MAX, entry_size},
        resolve::{Dropped, Effect, Loser},
        wire::{Message, columns::Columns},
    };

    const FIELDS: [&str; 6] = ["id", "name", "size", "ratio", "raw", "note"];

    fn shapes() -> [Arc<Shape>; 2] {
        let shape = |model: &str, key: Vec<usize>| {
            let fields = FIELDS.map(String::from).to_vec();
            Arc::new(Shape { model: model.into(), fields, key, uuids: vec![false; FIELDS.len()] })
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
            match self.below(5) {
                0 => Value::Null,
                1 => Value::Integer(self.below(3) as i64),
                2 => Value::Real(if self.below(2) == 0 { 0.0 } else { -0.0 }),
                3 => Value::Text(vec![b'a'; self.below(4) as usize].into()),
                _ => Value::Blob(vec![0xff; self.below(4) as usize].into()),
            }
        }

        /// Changes to a few records of two models: updates that follow from the row before and some that do not, inserts,
        /// deletions, outcomes.
        fn changes(&mut self) -> Vec<Change> {
            let shapes = shapes();
            let mut rows: Vec<(usize, Vec<Value>)> = Vec::new();
            for i in 0..6 {
                let mut row: Vec<Value> = (0..FIELDS.len()).map(|_| self.value()).collect();
                (row[0], row[1]) = (Value::Integer(i), Value::Text(b"t".into()));
                rows.push((i as usize % 2, row));
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
        let counted: usize = batch.entries.iter().map(entry_size).sum();
        assert!(taken < 20_000, "{taken} bytes");
        assert!(counted > 300_000, "{counted} counted");
    }
}

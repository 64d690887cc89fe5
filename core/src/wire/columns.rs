//! A batch of entries, column by column.
//!
//! Deletions carry the values of their key only, upserts the whole row, or the changed values where it follows from one
//! before it ([`follows`]). Of a row's record id nothing is sent: it follows from the key. Reading checks that every count fits every other before anything is built, and that what
//! the log relies on holds: numbers leave room to count on, terms do not fall, groups are whole or one is in part.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Unreadable, follows, outcomes, outcomes::OutcomeHead};
use crate::{
    entry::{Batch, Body, Change, Decision, Entry, EntryKind, Fields, Group, Seen, Shape},
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    life,
    log::BATCH_ENTRIES,
};

mod column;
mod packing;

use column::Piece;
pub(super) use column::{Column, Reader};

/// Largest number or stamp that is taken from a peer: half of what SQLite keeps, so that counting on from it never
/// overflows.
const NUMBER_MAX: u64 = 1 << 62;

/// Index of a change, its mark, its actor, and what it decides.
type Note = (u32, Option<String>, Option<String>, Option<Decision>);

/// [`Batch`] as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Columns {
    after: Position,
    /// Runs of entries of one term.
    terms: Vec<(u32, Term)>,
    groups: Vec<GroupHead>,
    kinds: Piece,
    /// Seqs of the entries that carry a number, as runs: (entries without one, entries with one).
    numbered: Vec<(u32, u32)>,
    /// Each less the one before it.
    stamps: Vec<i64>,
    ats: Vec<i64>,
    shapes: Vec<ShapeHead>,
    /// For each change, which shape.
    shape_of: Vec<u16>,
    existed: Piece,
    /// Distinct sets of changed fields; for each change an index into it plus one, or zero for all fields.
    field_sets: Vec<Vec<u16>>,
    fields_of: Vec<u32>,
    /// For each change, how many changes before it the one is from whose row and the changed values its own follows; zero
    /// where it is sent whole.
    pub(super) follows: Vec<u16>,
    /// With the precedence of their roles.
    members: Vec<(DeviceId, u8)>,
    /// Marks, actors and decisions, sparse.
    notes: Vec<Note>,
    /// Changes that rank by another stamp than theirs, sparse: (index of the change, by how much it is behind).
    ranks: Vec<(u32, u64)>,
    /// For each shape, its rows column by column.
    rows: Vec<Vec<Column>>,
    /// Changes that carry what their changed fields held before.
    with_old: Vec<u32>,
    /// Changes that came to something else than their author made of the record.
    outcomes: Vec<OutcomeHead>,
    /// Values of `with_old`, then of `outcomes`, in order.
    spare: Column,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct GroupHead {
    origin: Origin,
    device: DeviceId,
    tag: u64,
    base: Position,
    prev: u64,
    was: Option<(Origin, OriginSeq)>,
    seen: Vec<Seen>,
    first_n: OriginSeq,
    last_n: OriginSeq,
    first: Seq,
    last: Seq,
    /// Number of the first change of it that is in this batch, which may be a part.
    next_n: OriginSeq,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ShapeHead {
    model: String,
    fields: Vec<String>,
    key: Vec<u16>,
    /// Indices of the fields that hold UUIDs.
    uuids: Vec<u16>,
}

impl Columns {
    /// Builds the batch again.
    ///
    /// # Errors
    /// [`Unreadable`], when the columns contradict each other.
    pub(crate) fn into_batch(self) -> Result<Batch, Unreadable> {
        let bad = |what: &str| Unreadable(format!("entries: {what}"));
        let count = self.kinds.0.len();
        if count > BATCH_ENTRIES {
            return Err(Unreadable(format!("entries: {count} are over the limit of {BATCH_ENTRIES}")));
        }
        if self.after.seq.0 > NUMBER_MAX {
            return Err(bad("their position is over the limit"));
        }
        if self.stamps.len() != count || self.ats.len() != count {
            return Err(bad("their columns differ in length"));
        }
        let changes = self.shape_of.len();
        if self.existed.0.len() != changes
            || self.fields_of.len() != changes
            || self.follows.len() != changes
            || self.rows.len() != self.shapes.len()
        {
            return Err(bad("their changes differ in number"));
        }
        let shapes: Vec<Arc<Shape>> = self
            .shapes
            .into_iter()
            .map(|s| s.into_shape().map(Shape::shared))
            .collect::<Option<_>>()
            .ok_or_else(|| bad("a key is not among its fields"))?;
        if self.rows.iter().zip(&shapes).any(|(columns, shape)| columns.len() != shape.fields.len()) {
            return Err(bad("a shape has other columns than fields"));
        }
        let mut readers: Vec<Vec<Reader<'_>>> =
            self.rows.iter().map(|columns| columns.iter().map(Column::reader).collect()).collect();
        check_terms(&self.terms, self.after.term).map_err(bad)?;
        let mut terms = self.terms.iter().flat_map(|(run, term)| std::iter::repeat_n(*term, *run as usize));
        let mut numbered = self.numbered.iter().flat_map(|(without, with)| {
            std::iter::repeat_n(false, *without as usize).chain(std::iter::repeat_n(true, *with as usize))
        });
        let mut next_n: Vec<u64> = self.groups.iter().map(|head| head.next_n.0).collect();
        let groups: Vec<Group> = self.groups.into_iter().map(GroupHead::into_group).collect();
        check_groups(&groups, self.after.seq, Seq(self.after.seq.0 + count as u64)).map_err(bad)?;
        let mut members = self.members.into_iter();
        let mut notes = self.notes.into_iter().peekable();
        let mut ranks = self.ranks.into_iter().peekable();
        let mut entries = Vec::with_capacity(count);
        let mut rows = follows::Read::default();
        let (mut stamp, mut at, mut change) = (0u64, 0i64, 0usize);
        let mut group = 0usize;
        for (i, kind) in self.kinds.0.iter().enumerate() {
            let seq = Seq(self.after.seq.0 + 1 + i as u64);
            let term = terms.next().ok_or_else(|| bad("an entry has no term"))?;
            stamp = stamp.wrapping_add(self.stamps[i] as u64);
            if stamp > NUMBER_MAX {
                return Err(bad("a stamp is over the limit"));
            }
            at = at.wrapping_add(self.ats[i]);
            while groups.get(group).is_some_and(|g| g.last < seq) {
                group += 1;
            }
            let head = groups.get(group).filter(|g| g.first <= seq);
            let n = match (numbered.next(), head) {
                (Some(true), Some(head)) => {
                    let n = next_n[group];
                    if n < head.first_n.0 || n > head.last_n.0 {
                        return Err(bad("a change's number is not in its group"));
                    }
                    next_n[group] += 1;
                    Some(OriginSeq(n))
                }
                (Some(false), None) => None,
                (Some(true), None) => return Err(bad("a change is in no group")),
                // What a cascade made has no number of its own.
                (Some(false), Some(_)) if is_change(*kind) => None,
                (Some(false), Some(_)) => return Err(bad("an entry of a group has no number")),
                (None, _) => return Err(bad("an entry has neither number nor none")),
            };
            let body = match EntryKind::from_i64(i64::from(*kind)).ok_or_else(|| bad("a kind is unknown"))? {
                EntryKind::TermStart => Body::TermStart { stamp, at },
                EntryKind::Member => {
                    let (device, role) = members.next().ok_or_else(|| bad("a member has no device"))?;
                    Body::Member { device, role, stamp, at }
                }
                kind @ (EntryKind::Noop | EntryKind::Upsert | EntryKind::Delete) => {
                    let shape_index =
                        usize::from(*self.shape_of.get(change).ok_or_else(|| bad("a change has no shape"))?);
                    let shape =
                        shapes.get(shape_index).ok_or_else(|| bad("a change has an unknown shape"))?;
                    let fields = match self.fields_of[change] as usize {
                        0 => None,
                        set => {
                            let set = self
                                .field_sets
                                .get(set - 1)
                                .ok_or_else(|| bad("a set of fields is missing"))?;
                            // Checked before it is copied: one long set for every change would be much memory.
                            if set.len() > shape.fields.len()
                                || set.iter().any(|f| usize::from(*f) >= shape.fields.len())
                            {
                                return Err(bad("a changed field does not exist"));
                            }
                            Some(Fields::from_slice(set))
                        }
                    };
                    let readers = &mut readers[shape_index];
                    let ends = || bad("a column ends before its rows");
                    let row = match (self.follows[change], &fields) {
                        (0, _) => {
                            let mut row = Vec::with_capacity(readers.len());
                            row.extend(readers.iter_mut().map_while(Reader::next));
                            if row.len() < readers.len() {
                                return Err(ends());
                            }
                            row
                        }
                        (distance, Some(fields)) => {
                            let mut row = rows.before(&entries, distance, shape).map_err(bad)?;
                            for field in fields.iter().map(|&f| usize::from(f)) {
                                row[field] = readers[field].next().ok_or_else(ends)?;
                            }
                            row
                        }
                        (_, None) => return Err(bad("a row follows another, and all of it changed")),
                    };
                    rows.is_at(i);
                    let (mark, actor, decides) = match notes.next_if(|(index, ..)| *index as usize == change)
                    {
                        Some((_, mark, actor, decides)) => (mark, actor, decides),
                        None => (None, None, None),
                    };
                    if kind == EntryKind::Noop && decides.is_none() {
                        return Err(bad("a change does nothing"));
                    }
                    let rank = match ranks.next_if(|(index, _)| *index as usize == change) {
                        Some((_, behind)) => Some(
                            stamp.checked_sub(behind).ok_or_else(|| bad("a change ranks before all time"))?,
                        ),
                        None => None,
                    };
                    let existed = self.existed.0[change] != 0;
                    change += 1;
                    Body::Change(Change {
                        record: shape.record_id(&row),
                        shape: Arc::clone(shape),
                        kind,
                        existed,
                        fields,
                        row,
                        before: None,
                        stamp,
                        rank,
                        at,
                        mark,
                        actor,
                        decides,
                        outcome: None,
                    })
                }
            };
            entries.push(Entry { seq, term, n, body });
        }
        for (head, next_n) in groups.iter().zip(&next_n) {
            if head.last <= Seq(self.after.seq.0 + count as u64) && *next_n != head.last_n.0 + 1 {
                return Err(bad("a group has other numbers than it says"));
            }
        }
        let mut spare = self.spare.reader();
        outcomes::take(&mut entries, &self.with_old, self.outcomes, &mut spare).map_err(bad)?;
        let left_over = !spare.is_empty()
            || terms.next().is_some()
            || numbered.next().is_some()
            || members.next().is_some()
            || notes.next().is_some()
            || ranks.next().is_some()
            || change != changes
            || readers.iter().flatten().any(|r| !r.is_empty());
        if left_over {
            return Err(bad("values are left over"));
        }
        Ok(Batch { after: self.after, entries, groups })
    }
}

fn is_change(kind: u8) -> bool {
    [EntryKind::Noop, EntryKind::Upsert, EntryKind::Delete].map(|kind| kind as u8).contains(&kind)
}

/// Whether the terms of entries behind one of `before` are what a log can have.
fn check_terms(runs: &[(u32, Term)], mut before: Term) -> Result<(), &'static str> {
    for (_, term) in runs {
        if *term < before {
            return Err("their terms fall");
        }
        if term.number > NUMBER_MAX || term.incarnation.counter > NUMBER_MAX {
            return Err("a term is over the limit");
        }
        before = *term;
    }
    Ok(())
}

/// Whether groups are sound for entries after `after` up to `last`: in order, in the batch, whole; or a single one,
/// of which the batch is a part.
fn check_groups(groups: &[Group], after: Seq, last: Seq) -> Result<(), &'static str> {
    let mut before = Seq(0);
    for group in groups {
        if group.first <= before || group.last < group.first {
            return Err("their groups are out of order");
        }
        before = group.last;
        if group.first > last || group.last <= after {
            return Err("a group has no entry among them");
        }
        let seen = group.seen.iter().map(|seen| seen.n.0).max().unwrap_or(0);
        let was = group.was.map_or(0, |(_, first)| first.0);
        let largest = group.last.0.max(group.last_n.0).max(group.base.seq.0).max(seen).max(was);
        if group.first_n.0 == 0 || group.last_n < group.first_n || largest > NUMBER_MAX {
            return Err("a group's numbers are over the limits");
        }
        if group.was.is_some_and(|(origin, _)| group.origin != life::other_origin(origin, group.tag)) {
            return Err("a group goes by an origin that does not follow from what it was sealed as");
        }
        let part = group.first <= after || group.last > last;
        if part && (groups.len() > 1 || group.first > Seq(after.0 + 1)) {
            return Err("a part of a group comes with something else");
        }
    }
    Ok(())
}

impl ShapeHead {
    fn of(shape: &Shape) -> Self {
        Self {
            model: shape.model.clone(),
            fields: shape.fields.clone(),
            key: shape.key.iter().map(|&i| u16::try_from(i).unwrap_or(u16::MAX)).collect(),
            uuids: (0..).zip(&shape.uuids).filter(|(_, is_uuid)| **is_uuid).map(|(i, _)| i).collect(),
        }
    }

    fn into_shape(self) -> Option<Shape> {
        let key: Vec<usize> = self.key.into_iter().map(usize::from).collect();
        let sound =
            !key.is_empty() && key.len() <= self.fields.len() && key.iter().all(|&i| i < self.fields.len());
        let mut uuids = vec![false; self.fields.len()];
        for index in self.uuids {
            if let Some(is_uuid) = uuids.get_mut(usize::from(index)) {
                *is_uuid = true;
            }
        }
        sound.then_some(Shape { model: self.model, fields: self.fields, key, uuids })
    }
}

impl GroupHead {
    fn of(group: &Group) -> Self {
        let Group { origin, device, tag, base, prev, was, seen, first_n, last_n, first, last } =
            group.clone();
        Self { origin, device, tag, base, prev, was, seen, first_n, last_n, first, last, next_n: first_n }
    }

    fn into_group(self) -> Group {
        let Self { origin, device, tag, base, prev, was, seen, first_n, last_n, first, last, next_n: _ } =
            self;
        Group { origin, device, tag, base, prev, was, seen, first_n, last_n, first, last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        entry::Outcome,
        id::Incarnation,
        log::{entry_size, group_size},
        resolve::{Dropped, Effect, Loser},
        value::Value,
        wire::{Message, UNPACKED_MAX},
    };

    fn term(number: u64) -> Term {
        Term { number, leader: DeviceId([3; 32]), incarnation: Incarnation { counter: 1, nonce: 5 } }
    }

    fn group(first: u64, last: u64, first_n: u64) -> Group {
        Group {
            origin: Origin(uuid::Uuid::from_u128(9)),
            device: DeviceId([3; 32]),
            tag: u64::MAX,
            base: Position::EMPTY,
            prev: u64::MAX,
            was: None,
            seen: vec![Seen { origin: Origin(uuid::Uuid::from_u128(8)), n: OriginSeq(4), tag: 7 }],
            first_n: OriginSeq(first_n),
            last_n: OriginSeq(first_n + last - first),
            first: Seq(first),
            last: Seq(last),
        }
    }

    /// The change with an outcome, and with what its changed fields held before.
    fn came_to(body: Body, outcome: Outcome) -> Body {
        let Body::Change(mut change) = body else { return body };
        let count = change.fields.as_ref().map_or(0, |fields| fields.len());
        change.set_old_values(vec![Value::Null; count]);
        Body::Change(Change { outcome: Some(Box::new(outcome)), ..change })
    }

    fn sample() -> Batch {
        let wide = Arc::new(Shape {
            model: "entry".into(),
            fields: ["id", "name", "size", "ratio", "raw"].map(String::from).to_vec(),
            key: vec![0],
            uuids: vec![true, false, false, false, false],
        });
        let tag = Arc::new(Shape {
            model: "entry_tag".into(),
            fields: vec!["e".into(), "t".into()],
            key: vec![0, 1],
            uuids: vec![false; 2],
        });
        let change = |shape: &Arc<Shape>,
                      kind,
                      fields: Option<Vec<u16>>,
                      row: Vec<Value>,
                      stamp,
                      mark: Option<&str>| {
            Body::Change(Change {
                shape: Arc::clone(shape),
                record: shape.record_id(&row),
                kind,
                existed: fields.is_some(),
                fields: fields.map(Into::into),
                row,
                before: None,
                stamp,
                rank: mark.map(|_| stamp - 1),
                at: 1_700_000_000_000 - stamp as i64,
                mark: mark.map(String::from),
                actor: mark.map(|m| format!("by {m}")),
                decides: None,
                outcome: None,
            })
        };
        let text = |t: &str| Value::Text(t.into());
        let row = |i: u8| {
            vec![
                Value::Blob([i; 16].into()),
                text("näme"),
                Value::Integer(i64::MIN + i64::from(i)),
                Value::Real(f64::NEG_INFINITY),
                Value::Text([0xff].into()),
            ]
        };
        let mut gone = vec![Value::Null; 5];
        gone[0] = Value::Blob([1; 16].into());
        let refused = Outcome { effect: Effect::None, dropped: vec![], refused: Some("no owner".into()) };
        let dropped = |field, loser, open| Dropped { field, loser, open };
        let lost = Outcome {
            effect: Effect::None,
            dropped: vec![dropped(Some(1), Loser::Remote, true), dropped(Some(2), Loser::Both, false)],
            refused: None,
        };
        let mut stands = row(3);
        stands[4] = text("the log's");
        let merged = Outcome {
            effect: Effect::Row { row: stands, fields: Some(vec![1]) },
            dropped: vec![dropped(None, Loser::Local, false)],
            refused: None,
        };
        let bodies = [
            (None, Body::TermStart { stamp: 50, at: -7 }),
            (Some(1), Body::Member { device: DeviceId([7; 32]), role: 200, stamp: 60, at: 0 }),
            (Some(2), change(&wide, EntryKind::Upsert, None, row(1), 70, None)),
            (Some(3), change(&tag, EntryKind::Upsert, None, vec![text("a"), text("b")], 71, Some("m"))),
            (Some(4), change(&wide, EntryKind::Upsert, Some(vec![1, 3]), row(1), NUMBER_MAX, None)),
            (Some(5), change(&wide, EntryKind::Delete, Some(vec![]), gone.clone(), 3, Some("n"))),
            (Some(6), came_to(change(&wide, EntryKind::Delete, None, gone, 4, None), refused)),
            (Some(7), came_to(change(&wide, EntryKind::Upsert, Some(vec![1, 2]), row(2), 5, None), lost)),
            (Some(8), came_to(change(&wide, EntryKind::Upsert, Some(vec![1, 3]), row(3), 6, None), merged)),
        ];
        let entries = bodies
            .into_iter()
            .enumerate()
            .map(|(i, (n, body))| Entry {
                seq: Seq(11 + i as u64),
                term: term(if i == 0 { 4 } else { 5 }),
                n: n.map(OriginSeq),
                body,
            })
            .collect();
        let after = Position { term: term(4), seq: Seq(10) };
        Batch { after, entries, groups: vec![group(12, 12, 1), group(13, 19, 2)] }
    }

    #[test]
    fn a_batch_survives_the_wire() {
        let batch = sample();
        let message = Message::entries(term(5), Seq(0), Position::EMPTY, &batch);
        let Message::Entries { batch: columns, .. } = Message::decode(&message.encode()).expect("reads")
        else {
            panic!("another message came back")
        };
        assert_eq!(columns.into_batch().expect("builds"), batch);
    }

    #[test]
    fn nothing_takes_more_bytes_than_were_counted_for_it() {
        let count = 200u16;
        let shape = Arc::new(Shape {
            model: "wide".into(),
            fields: (0..count).map(|i| format!("field {i}")).collect(),
            key: vec![0],
            uuids: vec![false; usize::from(count)],
        });
        let values = [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Real(-0.0),
            Value::Text("".into()),
            Value::Blob([7; 300].into()),
        ];
        // With as much beside the values as can be, and with nothing.
        for (value, much) in values.iter().flat_map(|value| [(value, true), (value, false)]) {
            let mut batch = Batch { after: Position::EMPTY, entries: Vec::new(), groups: Vec::new() };
            for i in 0..count {
                // Every one a group of its own, with another set of changed fields.
                let change = Change {
                    record: "".into(),
                    shape: Arc::clone(&shape),
                    kind: EntryKind::Upsert,
                    existed: true,
                    fields: much.then(|| (0..count).filter(|field| *field != i).collect()),
                    row: vec![value.clone(); usize::from(count)],
                    before: None,
                    stamp: if i % 2 == 0 { NUMBER_MAX } else { 0 },
                    rank: much.then_some(0),
                    at: if i % 2 == 0 { i64::MAX } else { 0 },
                    mark: much.then(|| "m".into()),
                    actor: much.then(|| "a".into()),
                    decides: None,
                    outcome: None,
                };
                let (seq, n) = (Seq(u64::from(i) + 1), Some(OriginSeq(1)));
                batch.entries.push(Entry { seq, term: term(NUMBER_MAX), n, body: Body::Change(change) });
                let origin = Origin(uuid::Uuid::from_u128(8));
                let seen = vec![
                    Seen { origin, n: OriginSeq(NUMBER_MAX), tag: u64::MAX };
                    if much { usize::from(i) } else { 0 }
                ];
                let base = Position { term: term(NUMBER_MAX), seq: Seq(NUMBER_MAX) };
                batch.groups.push(Group { seen, base, ..group(seq.0, seq.0, NUMBER_MAX) });
            }
            let counted: usize = batch.entries.iter().map(|entry| entry_size(&entry.body)).sum::<usize>()
                + batch.groups.iter().map(group_size).sum::<usize>();
            // What a shape is called stands once in a message.
            let names: usize = shape.fields.iter().map(|name| name.len() + 8).sum();
            let message = Message::entries(term(1), Seq(0), Position::EMPTY, &batch);
            let taken = postcard::to_extend(&message, Vec::new()).expect("encodes").len();
            assert!(taken <= counted + names + 512, "{value:?}: {taken} bytes, {counted} counted");
        }
    }

    #[test]
    fn a_part_of_a_group_keeps_its_numbers() {
        let mut batch = sample();
        batch.entries.drain(..4);
        batch.groups.remove(0);
        batch.after = Position { term: term(5), seq: Seq(14) };
        assert_eq!(Columns::of(&batch).into_batch().expect("builds"), batch);
    }

    /// What reading says of a sample that was tampered with.
    fn refusal(tamper: impl FnOnce(&mut Columns)) -> String {
        let mut columns = Columns::of(&sample());
        tamper(&mut columns);
        columns.into_batch().expect_err("refused").to_string()
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        let text = refusal(|c| c.after.seq = Seq(u64::MAX));
        assert!(
            text.contains("position is over the limit") && text.contains("nothing of it was used"),
            "{text}"
        );
        let text = refusal(|c| c.groups[1].first_n = OriginSeq(u64::MAX));
        assert!(text.contains("numbers are over the limits"), "{text}");
        let text = refusal(|c| c.groups[1].last = Seq(u64::MAX));
        assert!(text.contains("limit") || text.contains("part of a group"), "{text}");
        let text = refusal(|c| c.groups[1].seen[0].n = OriginSeq(u64::MAX));
        assert!(text.contains("limit"), "{text}");
        let text = refusal(|c| c.groups[1].was = Some((c.groups[1].origin, OriginSeq(u64::MAX))));
        assert!(text.contains("limit"), "{text}");
        let text = refusal(|c| c.groups[1].was = Some((c.groups[1].origin, OriginSeq(1))));
        assert!(text.contains("does not follow from what it was sealed as"), "{text}");
        let text = refusal(|c| c.stamps[0] = -1);
        assert!(text.contains("a stamp is over the limit"), "{text}");
        let text = refusal(|c| c.ranks[0].1 = u64::MAX);
        assert!(text.contains("a change ranks before all time"), "{text}");
        let text = refusal(|c| c.ranks.push((u32::MAX, 0)));
        assert!(text.contains("left over"), "{text}");
        let text = refusal(|c| c.terms[1].1.number = u64::MAX);
        assert!(text.contains("a term is over the limit"), "{text}");
    }

    #[test]
    fn groups_that_do_not_fit_their_entries_are_refused() {
        for (tamper, says) in [
            (
                Box::new(|c: &mut Columns| c.groups.swap(0, 1)) as Box<dyn FnOnce(&mut Columns)>,
                "out of order",
            ),
            (Box::new(|c| c.groups[0].first = Seq(14)), "out of order"),
            (Box::new(|c| c.groups[0] = GroupHead::of(&group(1, 3, 1))), "no entry among them"),
            (Box::new(|c| c.groups[1].last = Seq(20)), "a part of a group comes with something else"),
            (Box::new(|c| drop(c.groups.remove(0))), "a change is in no group"),
            (Box::new(|c| c.groups[0].first = Seq(11)), "has no number"),
            (Box::new(|c| c.terms.swap(0, 1)), ""),
            (Box::new(|c| c.terms[0].1 = term(6)), "terms fall"),
            (Box::new(|c| c.field_sets[0] = vec![0; 100_000]), "field does not exist"),
        ] {
            let text = refusal(tamper);
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn more_entries_than_a_batch_holds_are_refused_before_they_are_built() {
        let text = refusal(|c| c.kinds.0 = vec![3; BATCH_ENTRIES + 1]);
        assert!(text.contains("8193 are over the limit of 8192"), "{text}");
    }

    #[test]
    fn a_shape_of_many_fields_and_many_marks_is_read_in_no_time() {
        let began = std::time::Instant::now();
        refusal(|c| {
            c.shapes[0].fields = vec![String::new(); 300_000];
            c.shapes[0].uuids = vec![0; 1_000_000];
        });
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    #[test]
    fn damage_at_any_byte_is_an_error_or_another_message_but_never_a_panic() {
        let bytes = Message::entries(term(5), Seq(0), Position::EMPTY, &sample()).encode();
        for i in 0..bytes.len() {
            for flip in [1u8, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[i] ^= flip;
                if let Ok(Message::Entries { batch, .. }) = Message::decode(&damaged) {
                    let _ = batch.into_batch();
                }
            }
            if let Ok(Message::Entries { batch, .. }) = Message::decode(&bytes[..i]) {
                let _ = batch.into_batch();
            }
        }
    }

    #[test]
    fn lengths_are_checked_before_memory_is_taken() {
        let mut bomb = vec![1u8];
        bomb.extend_from_slice(&u32::MAX.to_be_bytes());
        bomb.extend_from_slice(&[0; 100]);
        let error = Message::decode(&bomb).expect_err("refused").to_string();
        assert!(error.contains("over the limit") && error.contains(&UNPACKED_MAX.to_string()), "{error}");
        bomb[1..5].copy_from_slice(&1_000_000u32.to_be_bytes());
        let error = Message::decode(&bomb).expect_err("refused").to_string();
        assert!(error.contains("ratio") && error.contains("nothing of it was used"), "{error}");
    }
}

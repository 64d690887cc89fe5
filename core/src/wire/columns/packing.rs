//! Making columns of entries: of a batch, or of what the log has, without making values of it first.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        follows::{Row, Rows},
        outcomes::OutcomeHead,
    },
    Column, Columns, GroupHead, Piece, ShapeHead,
};
use crate::{
    entry::{Batch, Body, Change, EntryKind, Group, Shape},
    error::Error,
    id::{OriginSeq, Position, Seq, Term},
    log::{Excerpt, Kept, KeptBody, PlainChange},
    record::RecordId,
    row_text::Parts,
};

impl Columns {
    /// Turns a batch into columns.
    pub(crate) fn of(batch: &Batch) -> Self {
        Self::with_old_values(batch, |change| change.outcome.is_some())
    }

    /// Turns pushed changes into columns: each with what its changed fields held before.
    pub(crate) fn of_push(batch: &Batch) -> Self {
        Self::with_old_values(batch, |_| true)
    }

    fn with_old_values(batch: &Batch, of: impl Fn(&Change) -> bool) -> Self {
        let numbers = batch.entries.iter().map(|entry| (entry.seq, entry.n));
        let mut packer = Packer::new(batch.after, heads(&batch.groups, numbers), batch.entries.len());
        for entry in &batch.entries {
            packer.push(entry.term, entry.n, &entry.body, &of);
        }
        packer.finish()
    }

    /// Turns what the log has into columns, as [`Columns::of`] turns the batch that it says.
    ///
    /// # Errors
    /// [`Error::Damaged`], where a row holds what its field cannot hold.
    pub(crate) fn of_excerpt(excerpt: &Excerpt) -> Result<Self, Error> {
        let numbers = excerpt.entries().map(|(_, entry)| (entry.seq, entry.n));
        let mut packer = Packer::new(excerpt.after, heads(&excerpt.groups, numbers), excerpt.len());
        for (term, Kept { n, body, .. }) in excerpt.entries() {
            match body {
                KeptBody::Plain(change) => packer.push_plain(term, *n, excerpt, change)?,
                KeptBody::Other(body) => packer.push(term, *n, body, |change| change.outcome.is_some()),
            }
        }
        Ok(packer.finish())
    }
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Columns in the making.
struct Packer<'b> {
    columns: Columns,
    /// Entries that there will be.
    count: usize,
    shapes: Map<*const Shape, u16>,
    sets: Map<&'b [u16], u32>,
    rows: Rows<'b>,
    /// The row of the entry before, where it is a text and was sent whole.
    before: Option<(*const Shape, Parts<'b>)>,
    /// Of the entry before.
    stamp: u64,
    at: i64,
    /// The values in which rows that stand differ from what their authors made: behind the old values.
    differing: Column,
}

impl<'b> Packer<'b> {
    fn new(after: Position, groups: Vec<GroupHead>, count: usize) -> Self {
        let columns = Columns {
            after,
            terms: Vec::new(),
            groups,
            kinds: Piece(Vec::with_capacity(count)),
            numbered: Vec::new(),
            stamps: Vec::with_capacity(count),
            ats: Vec::with_capacity(count),
            shapes: Vec::new(),
            shape_of: Vec::with_capacity(count),
            existed: Piece(Vec::with_capacity(count)),
            field_sets: Vec::new(),
            fields_of: Vec::with_capacity(count),
            follows: Vec::with_capacity(count),
            members: Vec::new(),
            notes: Vec::new(),
            ranks: Vec::new(),
            rows: Vec::new(),
            with_old: Vec::new(),
            outcomes: Vec::new(),
            spare: Column::default(),
        };
        Self {
            columns,
            count,
            shapes: Map::default(),
            sets: Map::default(),
            rows: Rows::of(count),
            before: None,
            stamp: 0,
            at: 0,
            differing: Column::default(),
        }
    }

    /// What every entry has.
    fn push_head(&mut self, term: Term, n: Option<OriginSeq>, kind: EntryKind, (stamp, at): (u64, i64)) {
        let columns = &mut self.columns;
        match columns.terms.last_mut() {
            Some((run, last)) if *last == term => *run += 1,
            _ => columns.terms.push((1, term)),
        }
        match columns.numbered.last_mut() {
            Some((_, with)) if n.is_some() => *with += 1,
            Some((without, 0)) => *without += 1,
            _ => columns.numbered.push(if n.is_some() { (0, 1) } else { (1, 0) }),
        }
        columns.kinds.0.push(kind as u8);
        columns.stamps.push(stamp.wrapping_sub(self.stamp) as i64);
        columns.ats.push(at.wrapping_sub(self.at));
        (self.stamp, self.at) = (stamp, at);
    }

    /// An entry; with what its changed fields held before, where that is asked for.
    fn push(&mut self, term: Term, n: Option<OriginSeq>, body: &'b Body, with_old: impl Fn(&Change) -> bool) {
        self.push_head(term, n, kind_sent(body), (body.stamp(), body.at()));
        self.before = None;
        match body {
            Body::TermStart { .. } => {}
            Body::Member { device, role, .. } => self.columns.members.push((*device, *role)),
            Body::Change(change) => {
                let columns = &mut self.columns;
                let index = u32::try_from(columns.shape_of.len()).unwrap_or(u32::MAX);
                if let Some(old) = change.old_values().filter(|_| with_old(change)) {
                    columns.with_old.push(index);
                    old.for_each(|value| columns.spare.push(value));
                }
                if let Some(outcome) = &change.outcome {
                    let head = OutcomeHead::of(index, change, outcome);
                    head.differing(change).for_each(|value| self.differing.push(value));
                    columns.outcomes.push(head);
                }
                if change.mark.is_some() || change.actor.is_some() || change.decides.is_some() {
                    let (mark, actor) = (change.mark.clone(), change.actor.clone());
                    columns.notes.push((index, mark, actor, change.decides));
                }
                if let Some(rank) = change.rank {
                    columns.ranks.push((index, change.stamp.saturating_sub(rank)));
                }
                let (columns, changed) = self.push_change(
                    &change.shape,
                    Changed {
                        record: &change.record,
                        kind: change.kind,
                        existed: change.existed,
                        fields: change.fields.as_deref(),
                        row: Row::Values(&change.row),
                    },
                );
                match changed {
                    Some(fields) => {
                        fields.iter().map(|&f| usize::from(f)).for_each(|f| columns[f].push(&change.row[f]));
                    }
                    None => {
                        columns.iter_mut().zip(&change.row).for_each(|(column, value)| column.push(value))
                    }
                }
            }
        }
    }

    /// An entry of which the row is a text.
    fn push_plain(
        &mut self,
        term: Term,
        n: Option<OriginSeq>,
        excerpt: &'b Excerpt,
        change: &'b PlainChange,
    ) -> Result<(), Error> {
        self.push_head(term, n, EntryKind::Upsert, (change.stamp, change.at));
        let (shape, row) = (excerpt.shape(change), excerpt.row(change));
        let said = shape.said_key(&change.record);
        // Of a text that stands in the row before, the value need not be known.
        let before = self.before.take().filter(|(of, _)| *of == Arc::as_ptr(shape)).map(|(_, row)| row);
        let (columns, changed) = self.push_change(
            shape,
            Changed {
                record: &change.record,
                kind: EntryKind::Upsert,
                existed: change.existed,
                fields: change.fields.as_deref(),
                row: Row::Text(row),
            },
        );
        let push = |column: &mut Column, field: usize, text: &[u8], is_same: bool| -> Result<(), Error> {
            match (text, said) {
                (b"null", Some((key, uuid))) if key == field => column.push_uuid(uuid),
                (b"null", _) => column.push_null(),
                _ if is_same && column.push_same() => {}
                _ => {
                    let value = row.read(field, shape.uuids[field]);
                    column.push_plain(value.map_err(|e| shape.damaged(&e))?);
                }
            }
            Ok(())
        };
        if let Some(fields) = changed {
            return fields
                .iter()
                .map(|&field| usize::from(field))
                .try_for_each(|field| push(&mut columns[field], field, row.get(field).as_bytes(), false));
        }
        let mut earlier = before.map(|before| before.iter());
        for (field, (column, text)) in columns.iter_mut().zip(row.iter()).enumerate() {
            let is_same = earlier.as_mut().is_some_and(|earlier| earlier.next() == Some(text));
            push(column, field, text, is_same)?;
        }
        self.before = Some((Arc::as_ptr(shape), row));
        Ok(())
    }

    /// What every change has but its values. Returns the columns for those, and of which fields they are sent; `None` of all.
    fn push_change(&mut self, shape: &Arc<Shape>, change: Changed<'b>) -> (&mut [Column], Option<&'b [u16]>) {
        let columns = &mut self.columns;
        let place = *self.shapes.entry(Arc::as_ptr(shape)).or_insert_with(|| {
            columns.shapes.push(ShapeHead::of(shape));
            columns.rows.push(shape.fields.iter().map(|_| Column::for_rows(self.count)).collect());
            u16::try_from(columns.shapes.len() - 1).unwrap_or(u16::MAX)
        });
        let set = change.fields.map_or(0, |fields| {
            *self.sets.entry(fields).or_insert_with(|| {
                columns.field_sets.push(fields.to_vec());
                u32::try_from(columns.field_sets.len()).unwrap_or(u32::MAX)
            })
        });
        let row = Some(change.row).filter(|_| change.kind == EntryKind::Upsert);
        let follows = self.rows.follows((shape, change.record), change.fields, row);
        columns.shape_of.push(place);
        columns.fields_of.push(set);
        columns.follows.push(follows);
        columns.existed.0.push(u8::from(change.existed));
        (&mut columns.rows[usize::from(place)], change.fields.filter(|_| follows > 0))
    }

    fn finish(mut self) -> Columns {
        self.columns.spare.append(self.differing);
        self.columns
    }
}

/// What is packed alike of every change.
struct Changed<'b> {
    record: &'b RecordId,
    kind: EntryKind,
    existed: bool,
    fields: Option<&'b [u16]>,
    row: Row<'b>,
}

/// The groups' heads, each with the first number that is among the entries.
fn heads(groups: &[Group], mut numbers: impl Iterator<Item = (Seq, Option<OriginSeq>)>) -> Vec<GroupHead> {
    let mut heads: Vec<GroupHead> = groups.iter().map(GroupHead::of).collect();
    if let Some(first) = heads.first_mut() {
        // Only the first can have begun before.
        let within =
            |(seq, n): (Seq, Option<OriginSeq>)| n.filter(|_| seq >= first.first && seq <= first.last);
        first.next_n = numbers.find_map(within).unwrap_or(OriginSeq(first.last_n.0 + 1));
    }
    heads
}

/// A change travels as its author made it, with its outcome beside it.
fn kind_sent(body: &Body) -> EntryKind {
    match body {
        Body::Change(change) => change.kind,
        other => other.kind(),
    }
}

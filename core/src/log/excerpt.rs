//! Reading the log for other devices, and for whoever wants entries of it again.
//!
//! A leader reads each entry for each follower, and hands most of them on as they are. An [`Excerpt`] therefore keeps the rows
//! of plain changes as the texts that the log has of them: to be packed, or made values of ([`Excerpt::into_batch`]).

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, types::ValueRef};

use super::{BATCH_BYTES, BATCH_ENTRIES, entry_size, group_size, member_of, read_run, term_at};
use crate::{
    entry::{Batch, Body, Change, Entry, EntryKind, Fields, Group, Run, Seen, Shape},
    error::Error,
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    inject,
    layout::Layouts,
    life, outcome, pending,
    record::RecordId,
    row_text::{self, Parts},
};

/// Part of the log: whole groups in order, or one part of a group that is larger than a batch.
pub(crate) struct Excerpt {
    /// The position just before the first entry.
    pub(crate) after: Position,
    /// Entries, contiguous.
    entries: Vec<Kept>,
    /// The runs that they and some behind them are of.
    runs: Vec<Run>,
    /// Groups that have entries here, in order.
    pub(crate) groups: Vec<Group>,
    /// With the numbers of their layouts.
    shapes: Vec<(i64, Arc<Shape>)>,
    /// Rows of plain changes, one behind the other, and where in its row each value ends.
    text: String,
    ends: Vec<u32>,
}

/// An entry as the log keeps it.
pub(crate) struct Kept {
    pub(crate) seq: Seq,
    /// Number within the group's origin.
    pub(crate) n: Option<OriginSeq>,
    pub(crate) body: KeptBody,
}

/// What stands in a slot of the log.
pub(crate) enum KeptBody {
    Plain(PlainChange),
    Other(Box<Body>),
}

/// An upsert that came to what its author made of the record, with nothing beside it and nothing in its row escaped.
pub(crate) struct PlainChange {
    pub(crate) record: RecordId,
    pub(crate) existed: bool,
    pub(crate) fields: Option<Fields>,
    pub(crate) stamp: u64,
    pub(crate) at: i64,
    shape: usize,
    /// Where its row begins and ends in the text, and its first value in the list of ends.
    row: (usize, usize, usize),
}

impl Excerpt {
    /// Seq of the last entry; that before the first where there is none.
    pub(crate) fn last(&self) -> Seq {
        self.entries.last().map_or(self.after.seq, |entry| entry.seq)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries, each with its term.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Term, &Kept)> {
        let mut terms = Terms { term: self.after.term, runs: &self.runs };
        self.entries.iter().map(move |entry| (terms.at(entry.seq), entry))
    }

    pub(crate) fn shape(&self, change: &PlainChange) -> &Arc<Shape> {
        &self.shapes[change.shape].1
    }

    /// The row of a change, in which its key is `null` if the record's id says it ([`Shape::said_key`]).
    pub(crate) fn row(&self, change: &PlainChange) -> Parts<'_> {
        let (begin, end, first) = change.row;
        let count = self.shape(change).fields.len();
        Parts::of(&self.text[begin..end], &self.ends[first..first + count])
    }

    /// Makes values of the rows.
    ///
    /// # Errors
    /// [`Error::Damaged`], where one is not what its field can hold.
    pub(crate) fn into_batch(mut self) -> Result<Batch, Error> {
        let kept = std::mem::take(&mut self.entries);
        let mut entries = Vec::with_capacity(kept.len());
        let mut terms = Terms { term: self.after.term, runs: &self.runs };
        for Kept { seq, n, body } in kept {
            let body = match body {
                KeptBody::Other(body) => *body,
                KeptBody::Plain(plain) => Body::Change(self.change(plain)?),
            };
            entries.push(Entry { seq, term: terms.at(seq), n, body });
        }
        Ok(Batch { after: self.after, entries, groups: self.groups })
    }

    fn change(&self, plain: PlainChange) -> Result<Change, Error> {
        let shape = Arc::clone(self.shape(&plain));
        let row = shape.row_of(&plain.record, self.row(&plain))?;
        let PlainChange { record, existed, fields, stamp, at, .. } = plain;
        Ok(Change {
            shape,
            record,
            kind: EntryKind::Upsert,
            existed,
            fields,
            row,
            before: None,
            stamp,
            rank: None,
            at,
            mark: None,
            actor: None,
            decides: None,
            outcome: None,
        })
    }

    /// At least the bytes that an entry takes in a message ([`entry_size`]).
    fn size(&self, body: &KeptBody) -> usize {
        match body {
            KeptBody::Other(body) => entry_size(body),
            KeptBody::Plain(plain) => {
                let fields = plain.fields.as_ref().map_or(0, |fields| 3 * (fields.len() + 1));
                let (row, uuids) = (self.row(plain), &self.shape(plain).uuids);
                // What the record's id says instead of the row is counted with the rest.
                super::ENTRY_BYTES + row.size(uuids) + 16 + 4 * row.len() + fields
            }
        }
    }

    fn shape_of(&mut self, layouts: &mut Layouts, conn: &Connection, layout: i64) -> Result<usize, Error> {
        if let Some(met) = self.shapes.iter().rposition(|(number, _)| *number == layout) {
            return Ok(met);
        }
        self.shapes.push((layout, Arc::clone(layouts.get(conn, layout)?)));
        Ok(self.shapes.len() - 1)
    }

    /// Puts a row to the others, if nothing in it is escaped, and says where it is.
    fn keep_row(&mut self, shape: usize, text: &str) -> Option<(usize, usize, usize)> {
        let (begin, first) = (self.text.len(), self.ends.len());
        if !row_text::split(text, self.shapes[shape].1.fields.len(), &mut self.ends) {
            return None;
        }
        self.text.push_str(text);
        Some((begin, self.text.len(), first))
    }
}

/// The terms of entries in order.
struct Terms<'r> {
    /// That of the entry before.
    term: Term,
    /// The runs from there on.
    runs: &'r [Run],
}

impl Terms<'_> {
    fn at(&mut self, seq: Seq) -> Term {
        while let Some((run, rest)) = self.runs.split_first().filter(|(run, _)| run.first <= seq) {
            (self.term, self.runs) = (run.term, rest);
        }
        self.term
    }
}

/// Reads the log.
#[derive(Default)]
pub(crate) struct LogReader {
    layouts: Layouts,
}

/// Columns of `sync_entry`, in this order.
const COLUMNS: &str =
    "seq, kind, n, stamp, at, layout, record, existed, fields, data, mark, actor, change, decides, rank";

/// Places among [`COLUMNS`].
mod at {
    pub(super) const SEQ: usize = 0;
    pub(super) const KIND: usize = 1;
    pub(super) const N: usize = 2;
    pub(super) const STAMP: usize = 3;
    pub(super) const AT: usize = 4;
    pub(super) const LAYOUT: usize = 5;
    pub(super) const RECORD: usize = 6;
    pub(super) const EXISTED: usize = 7;
    pub(super) const FIELDS: usize = 8;
    pub(super) const DATA: usize = 9;
    pub(super) const MARK: usize = 10;
    pub(super) const ACTOR: usize = 11;
    pub(super) const CHANGE: usize = 12;
    pub(super) const DECIDES: usize = 13;
    pub(super) const RANK: usize = 14;
}

impl LogReader {
    /// The entries after `after` up to `until`: whole groups up to the size of a batch, or one part of a group
    /// that is larger, which may be a single row. Empty if there are none.
    pub(crate) fn read(&mut self, conn: &Connection, after: Seq, until: Seq) -> Result<Batch, Error> {
        self.excerpt(conn, after, until)?.into_batch()
    }

    /// [`LogReader::read`], without making values of plain rows.
    pub(crate) fn excerpt(&mut self, conn: &Connection, after: Seq, until: Seq) -> Result<Excerpt, Error> {
        let position = match after.0 {
            0 => Position::EMPTY,
            _ => Position { term: term_at(conn, after)?, seq: after },
        };
        let room = until.0.saturating_sub(after.0).min(BATCH_ENTRIES as u64) as usize;
        let mut excerpt = Excerpt {
            after: position,
            entries: Vec::with_capacity(room),
            runs: runs_from(conn, after)?,
            groups: Vec::new(),
            shapes: Vec::new(),
            text: String::new(),
            ends: Vec::new(),
        };
        let mut groups = GroupCursor::at(conn, after)?;
        // In the middle of a group: go on to its end and no further.
        let until = groups.current.as_ref().filter(|g| g.first <= after).map_or(until, |g| until.min(g.last));
        let mut size = 0;
        let mut whole = 0;
        let mut statement = conn.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM sync_entry WHERE seq > ?1 AND seq <= ?2 ORDER BY seq"
        ))?;
        let mut rows = statement.query([after.0, until.0])?;
        while let Some(row) = rows.next()? {
            let seq = Seq(row.get(at::SEQ)?);
            let kind = kind_of(row, seq)?;
            let group = match kind {
                EntryKind::TermStart => None,
                _ => groups.seek(conn, seq)?,
            };
            // What would be read of it would have to be read again.
            if whole > 0 && group.is_some_and(|g| g.last.0 > position.seq.0 + inject::batch_entries() as u64)
            {
                break;
            }
            let begins = group.filter(|g| g.first == seq).map_or(0, group_size);
            let whole_group = group.is_none_or(|g| g.last == seq);
            let body = self.keep(&mut excerpt, conn, row, seq, kind)?;
            let entry_size = excerpt.size(&body) + begins;
            if size + entry_size > BATCH_BYTES && !excerpt.entries.is_empty() {
                break;
            }
            size += entry_size;
            let n = row.get::<_, Option<u64>>(at::N)?.map(OriginSeq);
            excerpt.entries.push(Kept { seq, n, body });
            if whole_group {
                whole = excerpt.entries.len();
            }
            if excerpt.entries.len() >= inject::batch_entries() {
                break;
            }
        }
        drop(rows);
        // Whole groups if there are any; otherwise what there is, a part of one group.
        if whole > 0 {
            excerpt.entries.truncate(whole);
        }
        let last = excerpt.last();
        excerpt.groups = groups.passed;
        excerpt.groups.retain(|g| g.first <= last);
        Ok(excerpt)
    }

    /// The entry at `seq` with its group; `None` if there is no such change.
    pub(crate) fn change(&mut self, conn: &Connection, seq: Seq) -> Result<Option<(Entry, Group)>, Error> {
        let mut batch = self.read(conn, Seq(seq.0.saturating_sub(1)), seq)?;
        let entry = batch.entries.pop().filter(|entry| matches!(entry.body, Body::Change(_)));
        Ok(entry.zip(batch.groups.pop()))
    }

    fn keep(
        &mut self,
        excerpt: &mut Excerpt,
        conn: &Connection,
        row: &Row<'_>,
        seq: Seq,
        kind: EntryKind,
    ) -> Result<KeptBody, Error> {
        let (stamp, at) = (row.get::<_, u64>(at::STAMP)?, row.get(at::AT)?);
        let data = match row.get_ref(at::DATA)? {
            ValueRef::Text(text) => {
                std::str::from_utf8(text).map_err(|_| Error::Damaged(format!("entry {seq} is not UTF-8")))?
            }
            _ => "",
        };
        let body = match kind {
            EntryKind::TermStart => Body::TermStart { stamp, at },
            EntryKind::Member => {
                let (device, role) = member_of(data)
                    .ok_or_else(|| Error::Damaged(format!("entry {seq} names no device with its role")))?;
                Body::Member { device, role, stamp, at }
            }
            EntryKind::Noop | EntryKind::Upsert | EntryKind::Delete => {
                let shape = excerpt.shape_of(&mut self.layouts, conn, row.get(at::LAYOUT)?)?;
                let record = RecordId::read(row.get_ref(at::RECORD)?)?;
                let existed = row.get(at::EXISTED)?;
                let fields = self.layouts.fields(&excerpt.shapes[shape].1, row.get_ref(at::FIELDS)?)?;
                if kind == EntryKind::Upsert
                    && has_nothing_beside(row)?
                    && let Some(row) = excerpt.keep_row(shape, data)
                {
                    let plain = PlainChange { record, existed, fields, stamp, at, shape, row };
                    return Ok(KeptBody::Plain(plain));
                }
                let shape = Arc::clone(&excerpt.shapes[shape].1);
                let values = shape.read_row(kind, &record, data)?;
                let change = Change {
                    shape,
                    record,
                    kind,
                    existed,
                    fields,
                    row: values,
                    before: None,
                    stamp,
                    rank: row.get(at::RANK)?,
                    at,
                    mark: row.get(at::MARK)?,
                    actor: row.get(at::ACTOR)?,
                    decides: pending::read_decision(row.get(at::DECIDES)?)?,
                    outcome: None,
                };
                Body::Change(match row.get_ref(at::CHANGE)? {
                    ValueRef::Text(text) => {
                        outcome::from_json(&String::from_utf8_lossy(text), &mut self.layouts, change)?
                    }
                    _ => change,
                })
            }
        };
        Ok(KeptBody::Other(Box::new(body)))
    }
}

fn kind_of(row: &Row<'_>, seq: Seq) -> Result<EntryKind, Error> {
    let kind: i64 = row.get(at::KIND)?;
    EntryKind::from_i64(kind).ok_or_else(|| Error::Damaged(format!("entry {seq} is of kind {kind}")))
}

/// Whether a change has neither mark, actor, outcome, decision nor a rank of its own.
fn has_nothing_beside(row: &Row<'_>) -> Result<bool, Error> {
    for column in [at::MARK, at::ACTOR, at::CHANGE, at::DECIDES, at::RANK] {
        if row.get_ref(column)? != ValueRef::Null {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The runs of the log that reach beyond `after`, ascending.
fn runs_from(conn: &Connection, after: Seq) -> Result<Vec<Run>, Error> {
    conn.prepare_cached(
        "SELECT first, number, leader, counter, nonce FROM sync_term
         WHERE first > ?1 OR first = (SELECT max(first) FROM sync_term WHERE first <= ?1) ORDER BY first",
    )?
    .query_map([after.0], |row| Ok(read_run(row, 0)))?
    .map(|run| run?)
    .collect()
}

/// Walks the groups beside the entries.
struct GroupCursor {
    current: Option<Group>,
    passed: Vec<Group>,
}

impl GroupCursor {
    /// At the group that `after` is in the middle of, if it is in one.
    fn at(conn: &Connection, after: Seq) -> Result<Self, Error> {
        let inside = read_groups(conn, "g.first <= ?1 AND g.last > ?1", after)?;
        Ok(Self { passed: inside.iter().cloned().collect(), current: inside })
    }

    /// The group of the change at `seq`.
    fn seek(&mut self, conn: &Connection, seq: Seq) -> Result<Option<&Group>, Error> {
        if self.current.as_ref().is_none_or(|g| g.last < seq) {
            self.current = read_groups(conn, "g.first <= ?1 AND g.last >= ?1", seq)?;
            self.passed.extend(self.current.clone());
        }
        Ok(self.current.as_ref())
    }
}

fn read_groups(conn: &Connection, which: &str, seq: Seq) -> Result<Option<Group>, Error> {
    let damaged = |what: &str| Error::Damaged(format!("the group at entry {seq} has a damaged {what}"));
    let sql = format!(
        "SELECT o.origin, o.device, g.tag, g.base_term, g.base_seq, g.seen, g.first_n, g.last_n, g.first, g.last, g.prev, g.was
         FROM sync_group g JOIN sync_origin o ON o.id = g.origin WHERE {which} ORDER BY g.first DESC LIMIT 1"
    );
    let read = |r: &Row<'_>| -> Result<Group, Error> {
        let text = |column: usize| r.get::<_, String>(column);
        Ok(Group {
            origin: Origin(text(0)?.parse().map_err(|_| damaged("origin"))?),
            device: DeviceId::parse(&text(1)?).ok_or_else(|| damaged("device"))?,
            tag: r.get::<_, i64>(2)? as u64,
            base: Position {
                term: Term::from_text(&text(3)?).ok_or_else(|| damaged("base"))?,
                seq: Seq(r.get(4)?),
            },
            prev: r.get::<_, i64>(10)? as u64,
            was: life::read_was(r.get::<_, Option<String>>(11)?.as_deref())?,
            seen: Seen::from_json(&text(5)?).ok_or_else(|| damaged("list of what was seen"))?,
            first_n: OriginSeq(r.get(6)?),
            last_n: OriginSeq(r.get(7)?),
            first: Seq(r.get(8)?),
            last: Seq(r.get(9)?),
        })
    };
    conn.prepare_cached(&sql)?.query_row([seq.0], |r| Ok(read(r))).optional()?.transpose()
}

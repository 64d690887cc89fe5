//! The log's rows: appending entries and reading them back.
//!
//! A row of `sync_entry` holds what differs from entry to entry; terms and groups stand in `sync_term` and
//! `sync_group` by the first seq of their run. Rows are JSON for people (`value.rs` says how), and everything that
//! is served to another device is read from here, never from the tables.

use std::sync::Arc;

use once_cell::sync::Lazy;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use crate::{
    entry::{Body, Change, Decision, Entry, EntryKind, Group, Run, Seen, Shape},
    error::Error,
    id::{DeviceId, Incarnation, Origin, OriginSeq, Position, Seq, Term},
    layout::{LogRow, LogRows, Numbered, Numbers},
    life,
    store::Tx,
    value::{self, Value},
};

mod excerpt;

pub(crate) use excerpt::{Excerpt, Kept, KeptBody, LogReader, PlainChange};

/// A batch is closed before the row that would take it over this many bytes (or at this many entries): about 50 ms of
/// applying. A larger row goes in a batch of its own.
pub(crate) const BATCH_BYTES: usize = 5 << 19;
/// See [`BATCH_BYTES`].
pub(crate) const BATCH_ENTRIES: usize = 8192;
/// Largest row that is sealed, in bytes; a larger one is quarantined. A change that met another carries three: what its
/// author made, what that replaced, and what stands. They stay below [`UNPACKED_MAX`](crate::wire::UNPACKED_MAX).
pub(crate) const ROW_MAX: usize = 5 << 18;

/// What an entry takes in a message beside what it says.
const ENTRY_BYTES: usize = 48;

/// What neighbours in the log mostly have in common: kind, model, whether the record was there before, layout.
type Bound = (i64, i64, bool, i64);

/// Plain changes that one statement appends at once: it begins, opens the log and its indexes and ends once for all of them.
pub(crate) const CHUNK: usize = 16;

/// Parameters of [`INSERT_CHUNK`]: first what the changes have in common, then of each what it has for itself.
const COMMON: usize = 4;
const OF_EACH: usize = 6;

/// `OR FAIL`, since SQLite would otherwise keep every page as it was, to undo part of the statement. Whoever appends gives the
/// transaction up when it fails.
static INSERT_CHUNK: Lazy<String> = Lazy::new(|| {
    let row = |i: usize| {
        let own = (1 + COMMON + OF_EACH * i..).take(OF_EACH).map(|parameter| format!(", ?{parameter}"));
        format!("(?1, ?2, ?3, ?4{})", own.collect::<String>())
    };
    let rows: Vec<String> = (0..CHUNK).map(row).collect();
    let columns = "kind, model, existed, layout, n, stamp, at, record, data, fields";
    format!("INSERT OR FAIL INTO sync_entry ({columns}) VALUES {}", rows.join(", "))
});

/// Appends entries in order, with its statements prepared.
pub(crate) struct Appender<'c> {
    conn: &'c Connection,
    insert: CachedStatement<'c>,
    /// For most: no old row, no mark, no rank of its own.
    insert_plain: CachedStatement<'c>,
    /// What it is bound to already: the same for most rows.
    bound: Option<Bound>,
    /// For many of those, and what it is bound to. Prepared when there are as many.
    insert_chunk: Option<(CachedStatement<'c>, Option<Bound>)>,
    earlier: CachedStatement<'c>,
    numbers: &'c Numbers,
    /// Those of the shape before: most rows have the same.
    last: Option<(Arc<Shape>, Numbered)>,
    term: Option<Term>,
    /// The last number that this has written.
    last_seq: Option<Seq>,
    row: LogRows,
}

impl<'c> Appender<'c> {
    /// Ready to append behind the log's present top.
    pub(crate) fn new(tx: &Tx<'c>, top: Position) -> Result<Self, Error> {
        let conn = tx.conn;
        Ok(Self {
            conn,
            numbers: tx.numbers,
            insert: conn.prepare_cached(
                "INSERT INTO sync_entry
                 (seq, kind, n, stamp, at, model, record, existed, layout, data, fields, before, mark, actor, change,
                    decides, rank)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            )?,
            insert_plain: conn.prepare_cached(
                "INSERT INTO sync_entry (kind, model, existed, layout, seq, n, stamp, at, record, data, fields)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?,
            bound: None,
            insert_chunk: None,
            earlier: conn
                .prepare_cached("SELECT 1 FROM sync_entry WHERE model = ?1 AND record = ?2 LIMIT 1")?,
            last: None,
            term: (top.seq > Seq(0)).then_some(top.term),
            last_seq: None,
            row: LogRows::default(),
        })
    }

    /// Appends one entry.
    pub(crate) fn push(&mut self, entry: &Entry) -> Result<(), Error> {
        match &entry.body {
            Body::TermStart { .. } => self.push_plain(entry, None),
            Body::Member { device, role, .. } => {
                self.push_plain(entry, Some(format!(r#"{{"device":"{device}","role":{role}}}"#)))?;
                self.conn
                    .prepare_cached(
                        "INSERT INTO sync_device (device, member, role) VALUES (?1, ?2, ?3)
                         ON CONFLICT (device) DO UPDATE SET member = coalesce(member, excluded.member),
                            role = excluded.role",
                    )?
                    .execute(params![device.to_string(), entry.seq.0, role])?;
                Ok(())
            }
            Body::Change(change) => self.push_change(entry, change, None, change.before.as_deref()),
        }
    }

    /// Notes a term that begins here, with whatever entry.
    fn push_term(&mut self, entry: &Entry) -> Result<(), Error> {
        if self.term == Some(entry.term) {
            return Ok(());
        }
        let Term { number, leader, incarnation: Incarnation { counter, nonce } } = entry.term;
        self.conn
            .prepare_cached(
                "INSERT INTO sync_term (first, number, leader, counter, nonce) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![entry.seq.0, number, leader.to_string(), counter, nonce as i64])?;
        self.term = Some(entry.term);
        Ok(())
    }

    fn push_plain(&mut self, entry: &Entry, data: Option<String>) -> Result<(), Error> {
        self.push_term(entry)?;
        let (kind, n) = (entry.body.kind() as i64, entry.n.map(|n| n.0));
        let number = self.number(entry.seq);
        self.conn
            .prepare_cached(
                "INSERT INTO sync_entry (seq, kind, n, stamp, at, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![number, kind, n, entry.body.stamp(), entry.body.at(), data])?;
        self.note_written(entry.seq)
    }

    /// What an entry's number is bound to: nothing where it follows on the last one written, behind which SQLite counts on by
    /// itself. Told the number, it would look first whether there is such a row.
    fn number(&self, seq: Seq) -> Option<u64> {
        let counts_on = self.last_seq.is_some_and(|last| last.next() == seq);
        (!counts_on).then_some(seq.0)
    }

    fn note_written(&mut self, seq: Seq) -> Result<(), Error> {
        let number = self.conn.last_insert_rowid();
        if u64::try_from(number) != Ok(seq.0) {
            return Err(Error::Damaged(format!("entry {seq} would have become the log's {number}th")));
        }
        self.last_seq = Some(seq);
        Ok(())
    }

    /// Appends a change, whose row may be worked out. `image` is the record's row here before it, if that is known; it is kept
    /// where no earlier entry of the record says it.
    pub(crate) fn push_change(
        &mut self,
        entry: &Entry,
        change: &Change,
        row: Option<LogRow<'_>>,
        image: Option<&[Value]>,
    ) -> Result<(), Error> {
        self.push_term(entry)?;
        let Numbered { model, layout } = self.numbers(&change.shape)?;
        let (number, kind, n) = (self.number(entry.seq), change.effect() as i64, entry.n.map(|n| n.0));
        let before = match image {
            Some(image) if change.existed && !self.has_earlier(change)? => {
                let mut text = String::new();
                change.shape.write_row(EntryKind::Upsert, &change.record, image, &mut text);
                Some(text)
            }
            _ => None,
        };
        let plain = before.is_none() && has_nothing_beside(change);
        let row = match row {
            Some(row) => row,
            None => self.row.set(change),
        };
        if plain {
            let insert = &mut self.insert_plain;
            let common = (kind, model, change.existed, layout);
            if self.bound != Some(common) {
                insert.raw_bind_parameter(1, kind)?;
                insert.raw_bind_parameter(2, model)?;
                insert.raw_bind_parameter(3, change.existed)?;
                insert.raw_bind_parameter(4, layout)?;
                self.bound = Some(common);
            }
            insert.raw_bind_parameter(5, number)?;
            insert.raw_bind_parameter(6, n)?;
            insert.raw_bind_parameter(7, change.stamp)?;
            insert.raw_bind_parameter(8, change.at)?;
            insert.raw_bind_parameter(9, &change.record)?;
            insert.raw_bind_parameter(10, row.text)?;
            insert.raw_bind_parameter(11, row.fields)?;
            insert.raw_execute()?;
            return self.note_written(entry.seq);
        }
        self.insert.execute(params![
            number,
            kind,
            n,
            change.stamp,
            change.at,
            model,
            change.record,
            change.existed,
            layout,
            row.text,
            row.fields,
            before,
            change.mark,
            change.actor,
            row.authored,
            change.decides.map(Decision::to_text),
            change.rank
        ])?;
        self.note_written(entry.seq)
    }

    /// Appends so many changes as one statement takes ([`CHUNK`]), if that is how many there are and they are alike: plain, of
    /// one shape, and no record's row is to be kept beside them. `rows` has what the log keeps of them, from `first` on. Whether
    /// it did.
    pub(crate) fn push_alike(
        &mut self,
        entries: &[Entry],
        rows: &LogRows,
        first: usize,
    ) -> Result<bool, Error> {
        let (Some(head), Some(last)) = (entries.first(), entries.last()) else { return Ok(false) };
        if entries.len() != CHUNK || self.number(head.seq).is_some() || self.term != Some(head.term) {
            return Ok(false);
        }
        let Some((shape, kind, existed)) = alike(entries) else { return Ok(false) };
        let Numbered { model, layout } = self.numbers(shape)?;
        let (insert, bound) = match &mut self.insert_chunk {
            Some(prepared) => prepared,
            none => none.insert((self.conn.prepare_cached(&INSERT_CHUNK)?, None)),
        };
        let common = (kind as i64, model, existed, layout);
        if *bound != Some(common) {
            insert.raw_bind_parameter(1, kind as i64)?;
            insert.raw_bind_parameter(2, model)?;
            insert.raw_bind_parameter(3, existed)?;
            insert.raw_bind_parameter(4, layout)?;
            *bound = Some(common);
        }
        for (i, entry) in entries.iter().enumerate() {
            let Body::Change(change) = &entry.body else { continue };
            let (own, row) = (1 + COMMON + OF_EACH * i, rows.get(first + i));
            insert.raw_bind_parameter(own, entry.n.map(|n| n.0))?;
            insert.raw_bind_parameter(own + 1, change.stamp)?;
            insert.raw_bind_parameter(own + 2, change.at)?;
            insert.raw_bind_parameter(own + 3, &change.record)?;
            insert.raw_bind_parameter(own + 4, row.text)?;
            insert.raw_bind_parameter(own + 5, row.fields)?;
        }
        insert.raw_execute()?;
        self.note_written(last.seq)?;
        Ok(true)
    }

    /// Whether the log holds an entry of the record already.
    pub(crate) fn has_earlier(&mut self, change: &Change) -> Result<bool, Error> {
        let Numbered { model, .. } = self.numbers(&change.shape)?;
        Ok(self.earlier.exists(params![model, change.record])?)
    }

    fn numbers(&mut self, shape: &Arc<Shape>) -> Result<Numbered, Error> {
        if let Some((last, numbers)) = &self.last
            && Arc::ptr_eq(last, shape)
        {
            return Ok(*numbers);
        }
        let numbers = self.numbers.of(self.conn, shape)?;
        self.last = Some((Arc::clone(shape), numbers));
        Ok(numbers)
    }
}

/// A change that has neither mark, actor, decision, outcome nor a rank of its own.
fn plain(entry: &Entry) -> Option<&Change> {
    match &entry.body {
        Body::Change(change) if has_nothing_beside(change) => Some(change),
        _ => None,
    }
}

/// See [`plain`].
fn has_nothing_beside(change: &Change) -> bool {
    change.mark.is_none()
        && change.actor.is_none()
        && change.decides.is_none()
        && change.rank.is_none()
        && change.outcome.is_none()
}

/// The shape of changes of one term that differ in nothing but their records and values, what they do, and whether their
/// records were there before; `None` of others.
fn alike(entries: &[Entry]) -> Option<(&Arc<Shape>, EntryKind, bool)> {
    let (first, term) = (plain(entries.first()?)?, entries.first()?.term);
    let is_alike = |entry: &Entry| {
        let is_like = |change: &Change| {
            Arc::ptr_eq(&change.shape, &first.shape)
                && (change.kind, change.existed) == (first.kind, first.existed)
        };
        entry.term == term && plain(entry).is_some_and(is_like)
    };
    entries.iter().all(is_alike).then_some((&first.shape, first.kind, first.existed))
}

/// Writes the row that the entries of a group share, and this device's hybrid logical clock with it: no lower than it was,
/// nor than any ranking stamp of the group.
pub(crate) fn push_group(conn: &Connection, group: &Group, origin_row: i64, clock: u64) -> Result<(), Error> {
    conn.prepare_cached(
        "INSERT INTO sync_group (first, last, origin, first_n, last_n, tag, base_term, base_seq, seen, clock,
            prev, was)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        group.first.0,
        group.last.0,
        origin_row,
        group.first_n.0,
        group.last_n.0,
        group.tag as i64,
        group.base.term.to_text(),
        group.base.seq.0,
        Seen::to_json(&group.seen),
        clock,
        group.prev as i64,
        life::was_text(group.was)
    ])?;
    Ok(())
}

/// Says where a group ends that was begun without knowing it.
pub(crate) fn close_group(conn: &Connection, first: Seq, last: Seq, clock: u64) -> Result<(), Error> {
    conn.prepare_cached("UPDATE sync_group SET last = ?2, clock = ?3 WHERE first = ?1")?
        .execute(params![first.0, last.0, clock])?;
    Ok(())
}

/// The first number of an origin, from `first` to `last`, under which the log holds a change with another tag. Below the
/// floor nothing is left to compare with.
pub(crate) fn other_tag(
    conn: &Connection,
    origin_row: i64,
    first: OriginSeq,
    last: OriginSeq,
    tag: u64,
) -> Result<Option<OriginSeq>, Error> {
    let n: Option<u64> = conn
        .prepare_cached(
            "SELECT max(first_n, ?2) FROM sync_group WHERE origin = ?1 AND last_n >= ?2 AND first_n <= ?3 AND tag <> ?4
             ORDER BY last_n LIMIT 1",
        )?
        .query_row(params![origin_row, first.0, last.0, tag as i64], |row| row.get(0))
        .optional()?;
    Ok(n.map(OriginSeq))
}

/// Whose change an entry is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed {
    /// The first and the last entry of its group, of which all this holds.
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    pub(crate) origin: Origin,
    pub(crate) device: DeviceId,
    /// Precedence of the device's role, as the log says it now.
    pub(crate) role: u8,
    /// Of its group.
    pub(crate) last_n: OriginSeq,
    pub(crate) tag: u64,
}

/// Whose change the entry at `seq` is; `None` for one that is in no group.
pub(crate) fn sealed(conn: &Connection, seq: Seq) -> Result<Option<Sealed>, Error> {
    let row: Option<(String, String, u8, u64, i64, u64, u64)> = conn
        .prepare_cached(
            "SELECT o.origin, o.device,
                coalesce((SELECT d.role FROM sync_device d WHERE d.device = o.device), 0), g.last_n, g.tag, g.first, g.last
             FROM sync_group g JOIN sync_origin o ON o.id = g.origin
             WHERE g.first <= ?1 ORDER BY g.first DESC LIMIT 1",
        )?
        .query_row([seq.0], |row| {
            let (last_n, tag, first) = (row.get(3)?, row.get(4)?, row.get(5)?);
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, last_n, tag, first, row.get(6)?))
        })
        .optional()?;
    let Some((origin, device, role, last_n, tag, first, last)) = row else { return Ok(None) };
    let damaged = |what: &str, text: &str| Error::Damaged(format!("`{text}` is no {what}"));
    Ok(Some(Sealed {
        first: Seq(first),
        last: Seq(last),
        origin: Origin(origin.parse().map_err(|_| damaged("origin", &origin))?),
        device: DeviceId::parse(&device).ok_or_else(|| damaged("device id", &device))?,
        role,
        last_n: OriginSeq(last_n),
        tag: tag as u64,
    }))
}

/// Whose entries are, with the groups kept at hand that were met last: neighbours are mostly of the same.
#[derive(Default)]
pub(crate) struct Authors(Vec<Sealed>);

/// See [`Authors`].
const AUTHORS_MAX: usize = 16;

impl Authors {
    /// [`sealed`], by what is at hand if it is.
    pub(crate) fn at(&mut self, conn: &Connection, seq: Seq) -> Result<Option<Sealed>, Error> {
        if let Some(met) = self.0.iter().rev().find(|group| group.first <= seq && seq <= group.last) {
            return Ok(Some(*met));
        }
        let Some(sealed) = sealed(conn, seq)? else { return Ok(None) };
        if self.0.len() >= AUTHORS_MAX {
            self.0.remove(0);
        }
        self.0.push(sealed);
        Ok(Some(sealed))
    }
}

/// What the log holds last of an origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newest {
    /// Its number, which the vector says.
    pub(crate) n: OriginSeq,
    /// Its tag, unless it is compacted.
    pub(crate) tag: Option<u64>,
}

/// What the log holds last of an origin; number 0 where that is nothing.
pub(crate) fn newest(conn: &Connection, origin_row: i64) -> Result<Newest, Error> {
    let (floor, n, tag): (u64, Option<u64>, Option<i64>) = conn
        .prepare_cached(
            "SELECT o.floor_n,
                (SELECT last_n FROM sync_group WHERE origin = o.id ORDER BY last_n DESC LIMIT 1),
                (SELECT tag FROM sync_group WHERE origin = o.id ORDER BY last_n DESC LIMIT 1)
             FROM sync_origin o WHERE o.id = ?1",
        )?
        .query_row([origin_row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(match n {
        Some(n) if n >= floor => Newest { n: OriginSeq(n), tag: tag.map(|tag| tag as u64) },
        _ => Newest { n: OriginSeq(floor), tag: None },
    })
}

/// The tag of the change under a number of an origin; `None` where the log has none, or not any more.
pub(crate) fn tag_at(conn: &Connection, origin_row: i64, n: OriginSeq) -> Result<Option<u64>, Error> {
    let tag: Option<i64> = conn
        .prepare_cached(
            "SELECT tag FROM sync_group WHERE origin = ?1 AND last_n >= ?2 AND first_n <= ?2 ORDER BY last_n LIMIT 1",
        )?
        .query_row(params![origin_row, n.0], |row| row.get(0))
        .optional()?;
    Ok(tag.map(|tag| tag as u64))
}

/// The leadership history: every run of the log, ascending.
pub(crate) fn runs(conn: &Connection) -> Result<Vec<Run>, Error> {
    conn.prepare_cached("SELECT first, number, leader, counter, nonce FROM sync_term ORDER BY first")?
        .query_map([], |row| Ok(read_run(row, 0)))?
        .map(|run| run?)
        .collect()
}

/// The term of the entry at `seq`.
pub(crate) fn term_at(conn: &Connection, seq: Seq) -> Result<Term, Error> {
    conn.prepare_cached(
        "SELECT first, number, leader, counter, nonce FROM sync_term WHERE first <= ?1 ORDER BY first DESC LIMIT 1",
    )?
    .query_row([seq.0], |row| Ok(read_run(row, 0)))
    .optional()?
    .unwrap_or_else(|| Err(Error::Damaged(format!("entry {seq} has no term"))))
    .map(|run| run.term)
}

/// The last seq up to which this log is the one that held `position`, of a log with the same beginnings: terms only rise
/// along a log, and where two logs have the same one they are the same.
pub(crate) fn last_common(conn: &Connection, position: Position) -> Result<Seq, Error> {
    let top: u64 = conn.query_row("SELECT coalesce(max(seq), 0) FROM sync_entry", [], |row| row.get(0))?;
    let mut end = Seq(top);
    for run in runs(conn)?.iter().rev() {
        if run.term <= position.term {
            return Ok(if run.term == position.term { end.min(position.seq) } else { end });
        }
        end = Seq(run.first.0.saturating_sub(1));
    }
    Ok(Seq(0))
}

/// Reads the columns of `sync_term`, the first of which is `at`.
pub(crate) fn read_run(row: &Row<'_>, at: usize) -> Result<Run, Error> {
    let leader: String = row.get(at + 2)?;
    Ok(Run {
        first: Seq(row.get(at)?),
        term: Term {
            number: row.get(at + 1)?,
            leader: DeviceId::parse(&leader)
                .ok_or_else(|| Error::Damaged(format!("`{leader}` is no device id")))?,
            incarnation: Incarnation { counter: row.get(at + 3)?, nonce: row.get::<_, i64>(at + 4)? as u64 },
        },
    })
}

/// The device that became a member and the precedence of its role, of what a row of the log keeps.
pub(crate) fn member_of(data: &str) -> Option<(DeviceId, u8)> {
    match value::row_from_json(data).ok()?.as_slice() {
        [(device, Value::Text(text)), (role, Value::Integer(number))]
            if device == "device" && role == "role" =>
        {
            Some((DeviceId::parse(std::str::from_utf8(text).ok()?)?, u8::try_from(*number).ok()?))
        }
        _ => None,
    }
}

/// At least the bytes that an entry takes in a message before it is packed. Counted here with room, so that a batch of
/// [`BATCH_BYTES`] can always be read: many small columns take more than their values.
pub(crate) fn entry_size(body: &Body) -> usize {
    let Body::Change(change) = body else { return ENTRY_BYTES + 32 };
    let note = |text: &Option<String>| text.as_ref().map_or(0, |text| text.len() + 12);
    let fields = change.fields.as_ref().map_or(0, |fields| 3 * (fields.len() + 1));
    let row: usize = change.row.iter().map(|value| value.size() + 4).sum();
    let outcome = change.outcome.as_ref().map_or(0, |outcome| {
        let after: usize = change.row_after().iter().map(|value| value.size() + 8).sum();
        let old: usize = change.old_values().into_iter().flatten().map(|value| value.size() + 8).sum();
        32 + after + old + 8 * outcome.dropped.len() + outcome.refused.as_ref().map_or(0, String::len)
    });
    let decides = if change.decides.is_some() { 24 } else { 0 };
    let rank = change.rank.map_or(0, |_| 16);
    ENTRY_BYTES + rank + row + fields + note(&change.mark) + note(&change.actor) + decides + outcome
}

/// The same of what the entries of a group share.
pub(crate) fn group_size(group: &Group) -> usize {
    240 + 40 * group.seen.len()
}

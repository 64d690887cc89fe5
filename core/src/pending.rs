//! Pending: this device's sealed changes that the log does not show yet, as `sync_pending` keeps them.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{
    entry::{Batch, Body, Change, Decision, Entry, EntryKind, Group, Seen, Shape},
    error::Error,
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    inject,
    layout::Layouts,
    life,
    log::{self, BATCH_BYTES, entry_size, group_size},
    record::RecordId,
    seal,
    value::Value,
};

/// Pending changes behind an id, in order, with what their groups share.
pub(crate) const BY_ID: &str = "SELECT p.id, p.origin AS origin_row, o.origin, o.device, p.n, p.tag, p.base_term,
    p.base_seq, p.seen, p.group_last, p.stamp, p.rank, p.at, p.kind, p.record, p.existed, p.layout, p.fields, p.data,
    p.before, p.mark, p.actor, p.decides, p.prev, p.was
    FROM sync_pending p JOIN sync_origin o ON o.id = p.origin WHERE p.id > ?1 ORDER BY p.id";

/// Where the columns of [`BY_ID`] stand that every change has of its own: found by name, they would take as long as their
/// values.
mod at {
    pub(super) const ID: usize = 0;
    pub(super) const N: usize = 4;
    pub(super) const STAMP: usize = 10;
    pub(super) const RANK: usize = 11;
    pub(super) const AT: usize = 12;
    pub(super) const KIND: usize = 13;
    pub(super) const RECORD: usize = 14;
    pub(super) const EXISTED: usize = 15;
    pub(super) const LAYOUT: usize = 16;
    pub(super) const FIELDS: usize = 17;
    pub(super) const DATA: usize = 18;
    pub(super) const BEFORE: usize = 19;
    pub(super) const MARK: usize = 20;
    pub(super) const ACTOR: usize = 21;
    pub(super) const DECIDES: usize = 22;
}

/// The first and the last id of what is pending.
pub(crate) const ENDS: &str = "SELECT (SELECT min(id) FROM sync_pending), (SELECT max(id) FROM sync_pending)";

/// Pending changes as they are pushed: whole groups, or a part of one that is larger than a batch.
#[derive(Debug)]
pub(crate) struct Push {
    /// Their seqs count from 1: they say what belongs to which group, and nothing of any log.
    pub(crate) batch: Batch,
    /// Id of the last.
    pub(crate) last_id: i64,
}

impl Push {
    /// What the next push goes on with, where this is not the last part of its group.
    pub(crate) fn open(&self) -> Option<Group> {
        self.batch.groups.last().filter(|_| self.batch.is_open()).cloned()
    }

    /// How many changes of that group have been pushed.
    fn sent(&self) -> Seq {
        self.batch.last()
    }
}

/// Where a push begins: behind the one before it.
#[derive(Clone, Debug)]
pub(crate) struct PushedUpTo {
    /// Id of the last change.
    pub(crate) id: i64,
    /// The group that is not pushed whole, and how many of its changes are.
    open: Option<(Group, Seq)>,
}

impl PushedUpTo {
    /// Nothing was pushed.
    pub(crate) const NOTHING: Self = Self { id: i64::MIN, open: None };

    pub(crate) fn after(push: &Push) -> Self {
        Self { id: push.last_id, open: push.open().map(|group| (group, push.sent())) }
    }
}

/// The pending changes behind those, up to the size of a batch; `None` if there are none.
pub(crate) fn read(conn: &Connection, after: &PushedUpTo) -> Result<Option<Push>, Error> {
    let mut layouts = Layouts::default();
    let mut batch = Batch { after: Position::EMPTY, entries: Vec::new(), groups: Vec::new() };
    let mut open = after.open.as_ref();
    if let Some((group, sent)) = open {
        batch.after.seq = *sent;
        batch.groups.push(group.clone());
    }
    let mut size = batch.groups.first().map_or(0, group_size);
    let mut ids = Vec::new();
    // Up to where groups are whole.
    let mut whole = 0;
    let mut statement = conn.prepare_cached(BY_ID)?;
    let mut rows = statement.query([after.id])?;
    while let Some(row) = rows.next()? {
        let n = OriginSeq(row.get(at::N)?);
        if let Some((group, sent)) = open
            && ids.is_empty()
            && !is_change_of(row, group, sent.next())?
        {
            // The group that was begun is in the log by now, from elsewhere: what is pending behind it begins anew.
            open = None;
            batch.groups.clear();
            (batch.after.seq, size) = (Seq(0), 0);
        }
        let seq = batch.last().next();
        let goes_on = batch.groups.last().is_some_and(|open| seq <= open.last);
        if !goes_on {
            if open.is_some() {
                break;
            }
            let group = read_group(conn, row, seq)?;
            // What would be read of it would have to be read again.
            if whole > 0 && group.last.0 > inject::batch_entries() as u64 {
                break;
            }
            size += group_size(&group);
            batch.groups.push(group);
        }
        let body = read_body(conn, &mut layouts, row)?;
        let old: usize = match &body {
            Body::Change(change) => change.old_values().into_iter().flatten().map(|v| v.size() + 8).sum(),
            _ => 0,
        };
        let entry = Entry { seq, term: Term::ZERO, n: Some(n), body };
        size += entry_size(&entry.body) + old;
        if !batch.entries.is_empty() && (size > BATCH_BYTES || batch.entries.len() >= inject::batch_entries())
        {
            break;
        }
        batch.entries.push(entry);
        ids.push(row.get::<_, i64>(at::ID)?);
        if batch.groups.last().is_some_and(|group| group.last == seq) {
            whole = batch.entries.len();
        }
    }
    if whole > 0 {
        batch.entries.truncate(whole);
        ids.truncate(whole);
    }
    let last = batch.last();
    batch.groups.retain(|group| group.first <= last);
    Ok(ids.last().map(|&last_id| Push { batch, last_id }))
}

/// Whether a pending change is the one that stands at this seq of a push of the group.
fn is_change_of(row: &Row<'_>, group: &Group, seq: Seq) -> Result<bool, Error> {
    let (origin, n, tag): (String, u64, i64) = (row.get("origin")?, row.get(at::N)?, row.get("tag")?);
    let expected = group.first_n.0 + (seq.0 - group.first.0);
    Ok(origin == group.origin.to_string() && tag as u64 == group.tag && n == expected)
}

/// The origins that have pending changes: from one to the next by the index, however many changes each has.
const ORIGINS: &str = "WITH RECURSIVE o (origin) AS (
        SELECT min(origin) FROM sync_pending
        UNION ALL
        SELECT (SELECT min(origin) FROM sync_pending WHERE origin > o.origin) FROM o WHERE o.origin IS NOT NULL)
    SELECT origin FROM o WHERE origin IS NOT NULL";

/// Of each origin in pending the last change, by what it was sealed as: what the author of the next one has seen beside its
/// log. Of its `own` origin it has seen all that is before it.
pub(crate) fn seen(conn: &Connection, own: i64) -> Result<Vec<Seen>, Error> {
    let (mut seen, mut passed) = (Vec::new(), HashSet::new());
    for row in origins(conn)?.into_iter().filter(|row| *row != own) {
        let (origin, n, tag, was, prev): (String, u64, i64, Option<String>, i64) = conn
            .prepare_cached(
                "SELECT o.origin, p.n, p.tag, p.was, p.prev FROM sync_pending p JOIN sync_origin o ON o.id = p.origin
                 WHERE p.origin = ?1 ORDER BY p.n DESC LIMIT 1",
            )?
            .query_row([row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
        let origin = origin.parse().map_err(|_| Error::Damaged(format!("`{origin}` is no origin")))?;
        let (last, before) =
            life::sealed_as(Origin(origin), OriginSeq(n), tag as u64, was.as_deref(), prev as u64)?;
        passed.extend(before);
        seen.push(last);
    }
    // What a listed one follows on is seen with it.
    seen.retain(|last| !passed.contains(last));
    Ok(seen)
}

/// The origins that have something pending, as rows of `sync_origin`.
pub(crate) fn origins(conn: &Connection) -> Result<Vec<i64>, Error> {
    let mut statement = conn.prepare_cached(ORIGINS)?;
    let origins = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(origins)
}

/// Whether anything is pending.
pub(crate) fn is_any(conn: &Connection) -> Result<bool, Error> {
    Ok(conn.prepare_cached("SELECT 1 FROM sync_pending LIMIT 1")?.exists([])?)
}

/// How many changes are pending.
pub(crate) fn count(conn: &Connection) -> Result<usize, Error> {
    Ok(conn.prepare_cached("SELECT count(*) FROM sync_pending")?.query_row([], |row| row.get(0))?)
}

/// Whether the row of a pending change had to leave its table.
pub(crate) fn is_any_blocked(conn: &Connection) -> Result<bool, Error> {
    Ok(conn.prepare_cached("SELECT 1 FROM sync_pending WHERE state = 'blocked' LIMIT 1")?.exists([])?)
}

/// Whether what is pending first is of this group.
pub(crate) fn is_next(conn: &Connection, origin_row: i64, tag: u64) -> Result<bool, Error> {
    let sql = "SELECT origin = ?1 AND tag = ?2 FROM sync_pending ORDER BY id LIMIT 1";
    let first =
        conn.prepare_cached(sql)?.query_row(params![origin_row, tag as i64], |row| row.get(0)).optional()?;
    Ok(first.unwrap_or(false))
}

/// Settles what the log shows now: the changes of a group up to this number, none of which has a higher stamp. How many
/// there were.
pub(crate) fn settle(
    conn: &Connection,
    origin_row: i64,
    last_n: OriginSeq,
    tag: u64,
    stamp: u64,
) -> Result<usize, Error> {
    // A change is kept under its stamp, so that those that were made later are not even looked at.
    Ok(conn
        .prepare_cached("DELETE FROM sync_pending WHERE id <= ?4 AND origin = ?1 AND n <= ?2 AND tag = ?3")?
        .execute(params![origin_row, last_n.0, tag as i64, stamp])?)
}

/// The first pending change of an origin in whose place, as the log shows now, that has another life.
pub(crate) fn overtaken(conn: &Connection, origin_row: i64, group: &Group) -> Result<Option<Seen>, Error> {
    let first: Option<(u64, i64)> = conn
        .prepare_cached(
            "SELECT n, tag FROM sync_pending WHERE origin = ?1 AND n <= ?2 AND tag <> ?3 ORDER BY n LIMIT 1",
        )?
        .query_row(params![origin_row, group.last_n.0, group.tag as i64], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(first.map(|(n, tag)| Seen { origin: group.origin, n: OriginSeq(n), tag: tag as u64 }))
}

/// What a change shares with its group, of which it is the first that is pending, at `first`.
pub(crate) fn read_group(conn: &Connection, row: &Row<'_>, first: Seq) -> Result<Group, Error> {
    let damaged = |what: &str| Error::Damaged(format!("a pending change has a damaged {what}"));
    let text = |column: &str| row.get::<_, String>(column);
    let first_n = OriginSeq(row.get("n")?);
    let (tag, was) = (row.get::<_, i64>("tag")?, row.get::<_, Option<String>>("was")?);
    let is_first = row.get::<_, u64>("group_last")? > 0;
    let last_n = match row.get("group_last")? {
        // What came before it in its group is pending no more.
        0 => conn
            .prepare_cached("SELECT max(n) FROM sync_pending WHERE origin = ?1 AND tag = ?2")?
            .query_row(params![row.get::<_, i64>("origin_row")?, tag], |row| row.get(0))?,
        last_n => last_n,
    };
    let last_n = OriginSeq(last_n).max(first_n);
    Ok(Group {
        origin: Origin(text("origin")?.parse().map_err(|_| damaged("origin"))?),
        device: DeviceId::parse(&text("device")?).ok_or_else(|| damaged("device"))?,
        tag: tag as u64,
        prev: if is_first { row.get::<_, i64>("prev")? } else { tag } as u64,
        was: life::read_was(was.as_deref())?,
        base: Position {
            term: Term::from_text(&text("base_term")?).ok_or_else(|| damaged("base"))?,
            seq: Seq(row.get("base_seq")?),
        },
        seen: Seen::from_json(&text("seen")?).ok_or_else(|| damaged("list of what was seen"))?,
        first_n,
        last_n,
        first,
        last: Seq(first.0 + (last_n.0 - first_n.0)),
    })
}

/// What a person decided, of the column that says it.
pub(crate) fn read_decision(text: Option<String>) -> Result<Option<Decision>, Error> {
    let damaged = |text: &String| Error::Damaged(format!("`{text}` is no decision"));
    text.map(|text| Decision::from_text(&text).ok_or_else(|| damaged(&text))).transpose()
}

/// Whether this device has made the decision, and the log does not show it yet.
pub(crate) fn is_deciding(conn: &Connection, decision: Decision) -> Result<bool, Error> {
    let mut statement = conn.prepare_cached("SELECT 1 FROM sync_pending WHERE decides = ?1")?;
    Ok(statement.exists([decision.to_text()])?)
}

/// What is pending: a change as its author sealed it, or a membership that was in a log before.
fn read_body(conn: &Connection, layouts: &mut Layouts, row: &Row<'_>) -> Result<Body, Error> {
    if !is_change(row)? {
        let data: String = row.get(at::DATA)?;
        let (device, role) = log::member_of(&data).ok_or_else(|| {
            Error::Damaged(format!("`{data}` is pending and names no device with its role"))
        })?;
        return Ok(Body::Member { device, role, stamp: row.get(at::STAMP)?, at: row.get(at::AT)? });
    }
    read_change(conn, layouts, row).map(Body::Change)
}

/// Whether what is pending is about a record.
pub(crate) fn is_change(row: &Row<'_>) -> Result<bool, Error> {
    Ok(row.get::<_, i64>(at::KIND)? != EntryKind::Member as i64)
}

/// How a pending change keeps what was before it: an update what the fields that it changed held, for the rest is in its
/// row; anything else the whole row.
pub(crate) fn before_text(change: &Change) -> Option<String> {
    let Some(old) = change.old_values().filter(|_| change.kind == EntryKind::Upsert) else {
        return change.before.as_ref().map(|row| seal::row_text(change, EntryKind::Upsert, row));
    };
    let mut text = String::from(OLD);
    change.shape.write_values(change.fields.as_deref().unwrap_or_default(), old, &mut text);
    text.push('}');
    Some(text)
}

const OLD: &str = "{\"old\":";

/// Reads [`before_text`] back: the whole row before a change to `row` that changed these fields.
pub(crate) fn read_before(
    (shape, record): (&Shape, &RecordId),
    text: &str,
    row: &[Value],
    fields: Option<&[u16]>,
) -> Result<Vec<Value>, Error> {
    let Some(old) = text.strip_prefix(OLD).and_then(|old| old.strip_suffix('}')) else {
        return shape.read_row(EntryKind::Upsert, record, text);
    };
    let damaged = |e: String| Error::Damaged(format!("old values of model `{}`: {e}", shape.model));
    let fields = fields.unwrap_or_default();
    let mut before = row.to_vec();
    for (&field, value) in fields.iter().zip(shape.read_values(fields, old).map_err(damaged)?) {
        before[usize::from(field)] = value;
    }
    Ok(before)
}

/// A change as its author sealed it.
pub(crate) fn read_change(conn: &Connection, layouts: &mut Layouts, row: &Row<'_>) -> Result<Change, Error> {
    let kind: i64 = row.get(at::KIND)?;
    let kind = EntryKind::from_i64(kind)
        .ok_or_else(|| Error::Damaged(format!("a pending change is of kind {kind}")))?;
    let data: String = row.get(at::DATA)?;
    let shape = Arc::clone(layouts.get(conn, row.get(at::LAYOUT)?)?);
    let record = RecordId::read(row.get_ref(at::RECORD)?)?;
    let values = shape.read_row(kind, &record, &data)?;
    let fields = layouts.fields(&shape, row.get_ref(at::FIELDS)?)?;
    let before = match row.get::<_, Option<String>>(at::BEFORE)? {
        Some(before) => Some(read_before((&shape, &record), &before, &values, fields.as_deref())?),
        None => None,
    };
    Ok(Change {
        shape,
        record,
        kind,
        existed: row.get(at::EXISTED)?,
        fields,
        row: values,
        before,
        stamp: row.get(at::STAMP)?,
        rank: row.get(at::RANK)?,
        at: row.get(at::AT)?,
        mark: row.get(at::MARK)?,
        actor: row.get(at::ACTOR)?,
        decides: read_decision(row.get(at::DECIDES)?)?,
        outcome: None,
    })
}

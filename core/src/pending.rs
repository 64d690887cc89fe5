//! Pending: this device's sealed changes that the log does not show yet, as `sync_pending` keeps them.

use std::sync::Arc;

use rusqlite::{Connection, Row};

use crate::{
    entry::{Batch, Body, Change, Decision, Entry, EntryKind, Group},
    error::Error,
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    layout::{Layouts, read_record},
    log::{self, BATCH_BYTES, BATCH_ENTRIES, entry_size, group_size},
    store::Model,
};

macro_rules! pending_where {
    ($condition:literal) => {
        concat!(
            "SELECT p.id, p.origin AS origin_row, o.origin, o.device, p.n, p.tag, p.base_term, p.base_seq, p.seen,
                p.stamp, p.at, p.kind, p.record, p.existed, p.layout, p.fields, p.data, p.before, p.mark, p.actor, p.decides
             FROM sync_pending p JOIN sync_origin o ON o.id = p.origin WHERE ",
            $condition,
            " ORDER BY p.id"
        )
    };
}

/// Pending changes behind an id, in order, with what their groups share.
pub(crate) const BY_ID: &str = pending_where!("p.id > ?1");

/// Those of a record, named by its model's name and its id.
pub(crate) const BY_RECORD: &str =
    pending_where!("p.model = (SELECT id FROM sync_model WHERE name = ?1) AND p.record = ?2");

/// The first and the last id of what is pending.
pub(crate) const ENDS: &str = "SELECT (SELECT min(id) FROM sync_pending), (SELECT max(id) FROM sync_pending)";

/// Pending changes as they are pushed.
#[derive(Debug)]
pub(crate) struct Push {
    /// Their seqs count from 1: they say what belongs to which group, and nothing of any log.
    pub(crate) batch: Batch,
    /// Id of the last.
    pub(crate) last_id: i64,
}

/// The pending changes behind an id, up to the size of a batch; `None` if there are none. A group that does not fit in
/// goes in parts.
pub(crate) fn read(conn: &Connection, models: &[Model], after: i64) -> Result<Option<Push>, Error> {
    let mut layouts = Layouts::new(models);
    let mut batch = Batch { after: Position::EMPTY, entries: Vec::new(), groups: Vec::new() };
    let (mut last_id, mut size) = (after, 0);
    let mut statement = conn.prepare_cached(BY_ID)?;
    let mut rows = statement.query([after])?;
    while let Some(row) = rows.next()? {
        let seq = batch.last().next();
        let group = read_group(row, seq)?;
        let change = read_change(conn, &mut layouts, row)?;
        let n = group.first_n;
        let entry = Entry { seq, term: Term::ZERO, n: Some(n), body: Body::Change(change) };
        let goes_on = batch.groups.last().is_some_and(|open| {
            open.origin == group.origin && open.tag == group.tag && open.last_n.0 + 1 == n.0
        });
        size += entry_size(&entry) + if goes_on { 0 } else { group_size(&group) };
        if !batch.entries.is_empty() && (size > BATCH_BYTES || batch.entries.len() >= BATCH_ENTRIES) {
            break;
        }
        match batch.groups.last_mut().filter(|_| goes_on) {
            Some(open) => (open.last, open.last_n) = (seq, n),
            None => batch.groups.push(group),
        }
        batch.entries.push(entry);
        last_id = row.get("id")?;
    }
    Ok((!batch.entries.is_empty()).then_some(Push { batch, last_id }))
}

/// What a change shares with its group, of which it is the first, at `first`.
pub(crate) fn read_group(row: &Row<'_>, first: Seq) -> Result<Group, Error> {
    let damaged = |what: &str| Error::Damaged(format!("a pending change has a damaged {what}"));
    let text = |column: &str| row.get::<_, String>(column);
    let first_n = OriginSeq(row.get("n")?);
    Ok(Group {
        origin: Origin(text("origin")?.parse().map_err(|_| damaged("origin"))?),
        device: DeviceId::parse(&text("device")?).ok_or_else(|| damaged("device"))?,
        tag: row.get::<_, i64>("tag")? as u64,
        base: Position {
            term: Term::from_text(&text("base_term")?).ok_or_else(|| damaged("base"))?,
            seq: Seq(row.get("base_seq")?),
        },
        seen: serde_json::from_str(&text("seen")?).map_err(|_| damaged("list of what was seen"))?,
        first_n,
        last_n: first_n,
        first,
        last: first,
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

/// A change as its author sealed it.
pub(crate) fn read_change(
    conn: &Connection,
    layouts: &mut Layouts<'_>,
    row: &Row<'_>,
) -> Result<Change, Error> {
    let kind: i64 = row.get("kind")?;
    let kind = EntryKind::from_i64(kind)
        .ok_or_else(|| Error::Damaged(format!("a pending change is of kind {kind}")))?;
    let data: String = row.get("data")?;
    let shape = Arc::clone(layouts.get(conn, row.get("layout")?)?);
    let values = shape.read_row(kind, &data)?;
    let fields = match row.get::<_, Option<String>>("fields")? {
        Some(names) => Some(log::changed_fields(&shape, names.as_bytes())?),
        None => None,
    };
    let before = match row.get::<_, Option<String>>("before")? {
        Some(before) => Some(shape.read_row(EntryKind::Upsert, &before)?),
        None => None,
    };
    Ok(Change {
        shape,
        record: read_record(row.get_ref("record")?)?,
        kind,
        existed: row.get("existed")?,
        fields,
        row: values,
        before,
        stamp: row.get("stamp")?,
        at: row.get("at")?,
        mark: row.get("mark")?,
        actor: row.get("actor")?,
        decides: read_decision(row.get("decides")?)?,
        outcome: None,
    })
}

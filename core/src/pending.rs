//! Pending: this device's sealed changes that the log does not show yet, as `sync_pending` keeps them.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, Row, params};

use crate::{
    entry::{Batch, Body, Change, Decision, Entry, EntryKind, Group},
    error::Error,
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    layout::{Layouts, read_record},
    log::{self, BATCH_BYTES, BATCH_ENTRIES, entry_size, group_size},
    store::{Model, Tx},
};

macro_rules! pending_where {
    ($condition:literal) => {
        concat!(
            "SELECT p.id, p.origin AS origin_row, o.origin, o.device, p.n, p.tag, p.base_term, p.base_seq, p.seen,
                p.stamp, p.rank, p.at, p.kind, p.record, p.existed, p.layout, p.fields, p.data, p.before, p.mark, p.actor,
                p.decides
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

/// Drops a change that the log keeps as a dead letter.
pub(crate) fn forget(tx: &Tx<'_>, origin: Origin, n: OriginSeq, tag: u64) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "DELETE FROM sync_pending WHERE n = ?2 AND tag = ?3
                AND origin = (SELECT id FROM sync_origin WHERE origin = ?1)",
        )?
        .execute(params![origin.to_string(), n.0, tag as i64])?;
    Ok(())
}

/// Gives pending changes of this device other names, from number `n` of `origin` on, where the log has others under their
/// numbers (rule Q): a fresh origin, and tags of their own. What their authors had seen of each other holds on, since
/// they stay in order in one origin. How many there were.
pub(crate) fn rename(tx: &mut Tx<'_>, origin: Origin, n: OriginSeq) -> Result<u64, Error> {
    let Some(device) = tx.replica()?.device else { return Ok(0) };
    let moved: Vec<Renamed> = tx
        .conn
        .prepare(
            "SELECT p.id, p.tag, o.origin, p.n, p.seen FROM sync_pending p JOIN sync_origin o ON o.id = p.origin
             WHERE o.device = ?1 AND p.id >= (
                SELECT min(q.id) FROM sync_pending q JOIN sync_origin m ON m.id = q.origin
                WHERE m.origin = ?2 AND m.device = ?1 AND q.n >= ?3)
             ORDER BY p.id",
        )?
        .query_map(params![device.to_string(), origin.to_string(), n.0], |row| {
            let (id, tag, n) = (row.get(0)?, row.get(1)?, row.get(3)?);
            Ok(Renamed { id, tag, origin: row.get(2)?, n, seen: row.get(4)? })
        })?
        .collect::<Result<_, _>>()?;
    if moved.is_empty() {
        return Ok(0);
    }
    // Under the old names the log may hold what their author has not seen.
    let mut given_up: HashMap<&str, u64> = HashMap::new();
    for change in &moved {
        given_up.entry(&change.origin).or_insert(change.n);
    }
    // The next seal goes on with the fresh one.
    *tx.minted = None;
    let mut minted = tx.origin(device)?;
    let mut tags: Option<(i64, u64)> = None;
    for change in &moved {
        let tag = match tags {
            Some((old, new)) if old == change.tag => new,
            _ => tx.world.random(),
        };
        tags = Some((change.tag, tag));
        let mut seen: Vec<(Origin, OriginSeq)> = serde_json::from_str(&change.seen)
            .map_err(|_| Error::Damaged("a pending change has a damaged list of what was seen".into()))?;
        for (origin, upto) in &mut seen {
            if let Some(first) = given_up.get(origin.to_string().as_str()) {
                upto.0 = upto.0.min(first.saturating_sub(1));
            }
        }
        seen.retain(|(_, upto)| upto.0 > 0);
        tx.conn
            .prepare_cached("UPDATE sync_pending SET origin = ?2, n = ?3, tag = ?4, seen = ?5 WHERE id = ?1")?
            .execute(params![change.id, minted.row, minted.next.0, tag as i64, log::seen_json(&seen)])?;
        minted.next = OriginSeq(minted.next.0 + 1);
    }
    *tx.minted = Some(minted);
    Ok(moved.len() as u64)
}

/// A change that gets another name.
struct Renamed {
    id: i64,
    tag: i64,
    origin: String,
    n: u64,
    seen: String,
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
        rank: row.get("rank")?,
        at: row.get("at")?,
        mark: row.get("mark")?,
        actor: row.get("actor")?,
        decides: read_decision(row.get("decides")?)?,
        outcome: None,
    })
}

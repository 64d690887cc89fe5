//! Overlay: a follower's table shows the log's rows with the device's own pending changes laid over them, so that what
//! its user wrote does not flicker while the leader has yet to see it.
//!
//! A pending change whose row does not fit beside what the leader holds, as when both gave the same unique value, leaves
//! its table: the record shows what the log says, the change stays pending, marked as blocked, and the leader answers it.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{params, params_from_iter};

use crate::{
    apply::{Writer, is_constraint},
    entry::{Change, EntryKind},
    error::Error,
    layout::{Layouts, RecordId, last_logged},
    pending, resolve,
    sql::Bound,
    store::Tx,
    value::Value,
};

/// The entry's image with this device's pending changes of the record laid over it, in their order; `None` if there are
/// none.
pub(crate) fn overlaid(tx: &Tx<'_>, change: &Change) -> Result<Option<Change>, Error> {
    let mut layouts = Layouts::new(tx.models);
    let mut image = None;
    let mut statement = tx.conn.prepare_cached(pending::BY_RECORD)?;
    let mut rows = statement.query(params![change.shape.model, RecordId(&change.record)])?;
    while let Some(row) = rows.next()? {
        let pending = pending::read_change(tx.conn, &mut layouts, row)?;
        lay(tx, &pending, image.get_or_insert_with(|| image_of(change)));
    }
    Ok(image)
}

/// Lays one change over an image.
fn lay(tx: &Tx<'_>, pending: &Change, image: &mut Change) {
    if pending.kind == EntryKind::Noop {
        return;
    }
    let model = tx.models.iter().find(|m| m.descriptor.id == pending.shape.model);
    // Over a record that is gone the whole row stands, until the leader has decided.
    let whole = image.kind == EntryKind::Delete || pending.kind == EntryKind::Delete;
    image.kind = pending.kind;
    for (i, name) in pending.shape.fields.iter().enumerate() {
        let changed = |fields: &Vec<u16>| fields.iter().any(|&f| usize::from(f) == i);
        let Some(at) = image.shape.fields.iter().position(|f| f == name) else { continue };
        if !whole && !pending.fields.as_ref().is_none_or(changed) {
            continue;
        }
        let field = model.and_then(|m| m.descriptor.fields.iter().find(|f| f.name == *name));
        let base = pending.before.as_ref().map(|before| &before[i]);
        let reduced = field
            .and_then(|f| f.reducer)
            .filter(|_| !whole && pending.existed)
            .and_then(|reducer| resolve::reduce(reducer, base, &image.row[at], &pending.row[i]));
        image.row[at] = reduced.unwrap_or_else(|| pending.row[i].clone());
    }
}

/// What the entry leaves of the record, as a change that came to just that.
fn image_of(change: &Change) -> Change {
    let (kind, row) = (change.effect(), change.row_after().to_vec());
    Change { kind, row, outcome: None, ..change.clone() }
}

/// What the log has of the change's record now, as a change that came to just that.
pub(crate) fn logged(tx: &Tx<'_>, change: &Change) -> Result<Change, Error> {
    let number = tx.numbers.of(tx.conn, &change.shape)?.model;
    let mut layouts = Layouts::new(tx.models);
    let said = last_logged(tx.conn, &mut layouts, number, &change.record)?;
    Ok(match said.and_then(|said| Some((said.shape, said.row?))) {
        Some((shape, row)) => {
            Change { shape, row, kind: EntryKind::Upsert, fields: None, outcome: None, ..change.clone() }
        }
        None => Change { kind: EntryKind::Delete, fields: None, outcome: None, ..change.clone() },
    })
}

/// The first pending change of each record that has any.
pub(crate) fn pending_records(tx: &Tx<'_>) -> Result<Vec<Change>, Error> {
    let mut layouts = Layouts::new(tx.models);
    let mut seen = HashSet::new();
    let mut changes = Vec::new();
    let mut statement = tx.conn.prepare_cached(pending::BY_ID)?;
    let mut rows = statement.query([i64::MIN])?;
    while let Some(row) = rows.next()? {
        let change = pending::read_change(tx.conn, &mut layouts, row)?;
        if seen.insert((Arc::clone(&change.shape), change.record.clone())) {
            changes.push(change);
        }
    }
    Ok(changes)
}

/// Takes out of the tables what is pending here and refers to rows that the leader has deleted, and what refers to that in
/// its turn: blocked, until the leader answers it. A follower's tables satisfy their foreign keys meanwhile.
pub(crate) fn step_out_orphans(tx: &Tx<'_>) -> Result<(), Error> {
    let mut records = children(tx)?;
    loop {
        let before = records.len();
        let mut left = Vec::with_capacity(before);
        for (index, key, record) in records {
            let model = &tx.models[index];
            if model.references.refers_to_nothing(tx.conn, &key)?.is_none() {
                left.push((index, key, record));
                continue;
            }
            tx.conn.prepare_cached(&model.sql.delete)?.execute(params_from_iter(key.iter().map(Bound)))?;
            set_state(tx, model.descriptor.id, &record, "blocked")?;
        }
        if left.len() == before {
            return Ok(());
        }
        records = left;
    }
}

/// The records of models with references that have pending upserts: model, key, id.
fn children(tx: &Tx<'_>) -> Result<Vec<(usize, Vec<Value>, String)>, Error> {
    let mut layouts = Layouts::new(tx.models);
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut statement = tx.conn.prepare_cached(pending::BY_ID)?;
    let mut rows = statement.query([i64::MIN])?;
    while let Some(row) = rows.next()? {
        let change = pending::read_change(tx.conn, &mut layouts, row)?;
        let model = tx.models.iter().position(|m| m.descriptor.id == change.shape.model);
        let Some(model) = model.filter(|&m| tx.models[m].references.has_any()) else { continue };
        if change.kind == EntryKind::Upsert && seen.insert((model, change.record.clone())) {
            found.push((model, change.key_in(&tx.models[model].shape), change.record));
        }
    }
    Ok(found)
}

fn set_state(tx: &Tx<'_>, model: &str, record: &str, state: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE sync_pending SET state = ?3 WHERE record = ?2 AND state <> ?3
                AND model = (SELECT id FROM sync_model WHERE name = ?1)",
        )?
        .execute(params![model, RecordId(record), state])?;
    Ok(())
}

/// Brings records that stepped out back: as the log has them, and then, one after the other, with what is pending. What
/// does not fit stays as the log has it, blocked.
pub(crate) fn lay_over(tx: &Tx<'_>, records: &[Change]) -> Result<(), Error> {
    for record in records {
        if let Some(mut writer) = Writer::new(tx, &record.shape)? {
            writer.replace(&logged(tx, record)?)?;
        }
    }
    for record in records {
        let Some(mut writer) = Writer::new(tx, &record.shape)? else { continue };
        // Settled by the batch: nothing is pending any more.
        let Some(overlaid) = overlaid(tx, &logged(tx, record)?)? else { continue };
        tx.conn.prepare_cached("SAVEPOINT laid_over")?.execute([])?;
        let fits = match writer.replace(&overlaid) {
            Ok(()) => true,
            Err(error) if is_constraint(&error) => false,
            Err(error) => return Err(error),
        };
        if !fits {
            tx.conn.prepare_cached("ROLLBACK TO laid_over")?.execute([])?;
        }
        tx.conn.prepare_cached("RELEASE laid_over")?.execute([])?;
        let state = if fits { "waiting" } else { "blocked" };
        set_state(tx, &record.shape.model, &record.record, state)?;
    }
    Ok(())
}

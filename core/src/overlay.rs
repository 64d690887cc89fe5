//! Overlay: a follower's table shows the log's rows with the device's own pending changes laid over them, so that what
//! its user wrote does not flicker while the leader has yet to see it.
//!
//! A pending change whose row does not fit beside what the leader holds, as when both gave the same unique value, leaves
//! its table: the record shows what the log says, the change stays pending, marked as blocked, and the leader answers it.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{params, params_from_iter, types::ValueRef};

use crate::{
    apply::{Writer, is_constraint},
    entry::{Change, EntryKind, Shape},
    error::Error,
    layout::{Layouts, RecordId, last_logged},
    log::changed_fields,
    pending, resolve,
    sql::Bound,
    store::Tx,
    value::Value,
};

/// The entry's image with this device's pending changes of the record laid over it, in their order; `None` if there are
/// none.
pub(crate) fn overlaid(tx: &Tx<'_>, change: &Change) -> Result<Option<Change>, Error> {
    Overlay::new(tx).layers(tx, change)?.over(tx, change)
}

/// Reads what lies over records, and what is below.
pub(crate) struct Overlay<'m> {
    layouts: Layouts<'m>,
}

/// This device's pending changes of one record, in their order.
#[derive(Default)]
pub(crate) struct Layers(Vec<Layer>);

/// One of them, its values as they are kept: most are never looked at.
struct Layer {
    shape: Arc<Shape>,
    kind: EntryKind,
    existed: bool,
    fields: Option<Vec<u16>>,
    data: String,
    before: Option<String>,
    /// Its row had to leave the table.
    blocked: bool,
}

const OVER: &str = "SELECT kind, layout, existed, fields, data, before, state = 'blocked' FROM sync_pending
    WHERE model = ?1 AND record = ?2 AND kind IN (1, 2) ORDER BY id";

impl<'m> Overlay<'m> {
    pub(crate) fn new(tx: &Tx<'m>) -> Self {
        Self { layouts: Layouts::new(tx.models) }
    }

    /// What is pending of the change's record.
    pub(crate) fn layers(&mut self, tx: &Tx<'_>, change: &Change) -> Result<Layers, Error> {
        let number = tx.numbers.of(tx.conn, &change.shape)?.model;
        let mut layers = Vec::new();
        let mut statement = tx.conn.prepare_cached(OVER)?;
        let mut rows = statement.query(params![number, RecordId(&change.record)])?;
        while let Some(row) = rows.next()? {
            let kind = if row.get::<_, i64>(0)? == 2 { EntryKind::Delete } else { EntryKind::Upsert };
            let shape = Arc::clone(self.layouts.get(tx.conn, row.get(1)?)?);
            let fields = match row.get_ref(3)? {
                ValueRef::Text(names) => Some(changed_fields(&shape, names)?),
                _ => None,
            };
            let (existed, blocked) = (row.get(2)?, row.get(6)?);
            let (data, before) = (row.get(4)?, row.get(5)?);
            layers.push(Layer { shape, kind, existed, fields, data, before, blocked });
        }
        Ok(Layers(layers))
    }

    /// What the log has of the change's record now, as a change that came to just that.
    pub(crate) fn logged(&mut self, tx: &Tx<'_>, change: &Change) -> Result<Change, Error> {
        let number = tx.numbers.of(tx.conn, &change.shape)?.model;
        let said = last_logged(tx.conn, &mut self.layouts, number, &change.record)?;
        Ok(match said.and_then(|said| Some((said.shape, said.row?))) {
            Some((shape, row)) => image(change, shape, EntryKind::Upsert, row),
            None => image(change, Arc::clone(&change.shape), EntryKind::Delete, change.row.clone()),
        })
    }
}

impl Layers {
    /// Whether the table shows the record after the entry as it did before: what the entry wrote lies under what is
    /// pending. To be asked where the table shows what the log said just before it, with these laid over.
    pub(crate) fn hide(&self, tx: &Tx<'_>, change: &Change) -> bool {
        let Some(written) = &change.fields else { return false };
        if self.0.is_empty()
            || change.kind != EntryKind::Upsert
            || !change.existed
            // What came to something else than its author made of it may have stood in the table as he did.
            || change.outcome.is_some()
            || self.0.iter().any(|l| l.blocked || l.kind != EntryKind::Upsert || *l.shape != *change.shape)
        {
            return false;
        }
        let model = tx.models.iter().find(|m| m.descriptor.id == change.shape.model);
        written.iter().all(|field| {
            let name = &change.shape.fields[usize::from(*field)];
            let own = model.and_then(|m| m.descriptor.fields.iter().find(|f| f.name == *name));
            own.is_some_and(|own| own.reducer.is_none()) && self.0.iter().any(|layer| layer.lays(*field))
        })
    }

    /// The entry's image with these laid over it; `None` if there are none.
    pub(crate) fn over(&self, tx: &Tx<'_>, change: &Change) -> Result<Option<Change>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let row = change.row_after().to_vec();
        let mut image = image(change, Arc::clone(&change.shape), change.effect(), row);
        for layer in &self.0 {
            layer.lay(tx, &mut image)?;
        }
        Ok(Some(image))
    }
}

impl Layer {
    fn lays(&self, field: u16) -> bool {
        self.fields.as_ref().is_none_or(|fields| fields.contains(&field))
    }

    fn lay(&self, tx: &Tx<'_>, image: &mut Change) -> Result<(), Error> {
        let row = self.shape.read_row(self.kind, &self.data)?;
        let before = match &self.before {
            Some(before) => Some(self.shape.read_row(EntryKind::Upsert, before)?),
            None => None,
        };
        let model = tx.models.iter().find(|m| m.descriptor.id == self.shape.model);
        // Over a record that is gone the whole row stands, until the leader has decided.
        let whole = image.kind == EntryKind::Delete || self.kind == EntryKind::Delete;
        image.kind = self.kind;
        for ((i, name), value) in self.shape.fields.iter().enumerate().zip(row) {
            let Some(at) = image.shape.fields.iter().position(|f| f == name) else { continue };
            if !whole && !u16::try_from(i).is_ok_and(|field| self.lays(field)) {
                continue;
            }
            let field = model.and_then(|m| m.descriptor.fields.iter().find(|f| f.name == *name));
            let base = before.as_ref().map(|before| &before[i]);
            let reduced = field
                .and_then(|f| f.reducer)
                .filter(|_| !whole && self.existed)
                .and_then(|reducer| resolve::reduce(reducer, base, &image.row[at], &value));
            image.row[at] = reduced.unwrap_or(value);
        }
        Ok(())
    }
}

/// A change that came to just this row of the change's record.
fn image(change: &Change, shape: Arc<Shape>, kind: EntryKind, row: Vec<Value>) -> Change {
    Change {
        shape,
        record: change.record.clone(),
        kind,
        existed: change.existed,
        fields: None,
        row,
        before: None,
        stamp: change.stamp,
        rank: change.rank,
        at: change.at,
        mark: None,
        actor: None,
        decides: None,
        outcome: None,
    }
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
    let mut overlay = Overlay::new(tx);
    for record in records {
        if let Some(mut writer) = Writer::new(tx, &record.shape)? {
            writer.replace(&overlay.logged(tx, record)?)?;
        }
    }
    for record in records {
        let Some(mut writer) = Writer::new(tx, &record.shape)? else { continue };
        // Settled by the batch: nothing is pending any more.
        let layers = overlay.layers(tx, record)?;
        let Some(overlaid) = layers.over(tx, &overlay.logged(tx, record)?)? else { continue };
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

//! Overlay: a follower's table shows the log's rows with the device's own pending changes laid over them, so that what
//! its user wrote does not flicker while the leader has yet to see it.
//!
//! A pending change whose row does not fit beside what the leader holds, as when both gave the same unique value, or moved
//! two rows of a tree below each other, leaves its table: the record shows what the log says, the change stays pending, marked
//! as blocked, and the leader answers it.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{params, params_from_iter};

use crate::{
    apply::{LocalValues, Writer, is_constraint, put_back, step_out},
    capture,
    entry::{Change, EntryKind, Fields, Shape},
    error::Error,
    layout::{Layouts, last_logged},
    pending,
    record::RecordId,
    resolve,
    sql::Bound,
    store::{Mode, Tx},
    tree,
    value::Value,
};

/// The entry's image with this device's pending changes of the record laid over it, in their order; `None` if there are
/// none.
pub(crate) fn overlaid(tx: &Tx<'_>, change: &Change) -> Result<Option<Change>, Error> {
    Overlay::default().layers(tx, change)?.over(tx, change)
}

/// Reads what lies over records, and what is below.
#[derive(Default)]
pub(crate) struct Overlay {
    layouts: Layouts,
}

/// This device's pending changes of one record, in their order.
#[derive(Default)]
pub(crate) struct Layers(Vec<Layer>);

/// One of them. Its values are read when they are needed: most are never looked at.
struct Layer {
    id: i64,
    shape: Arc<Shape>,
    kind: EntryKind,
    existed: bool,
    fields: Option<Fields>,
    /// Its row had to leave the table.
    blocked: bool,
}

const OVER: &str = "SELECT id, kind, layout, existed, fields, state = 'blocked' FROM sync_pending
    WHERE model = ?1 AND record = ?2 AND kind IN (1, 2) ORDER BY id";
const VALUES: &str = "SELECT data, before FROM sync_pending WHERE id = ?1";

impl Overlay {
    /// What is pending of the change's record.
    pub(crate) fn layers(&mut self, tx: &Tx<'_>, change: &Change) -> Result<Layers, Error> {
        let number = tx.numbers.of(tx.conn, &change.shape)?.model;
        let mut layers = Vec::new();
        let mut statement = tx.conn.prepare_cached(OVER)?;
        let mut rows = statement.query(params![number, change.record])?;
        while let Some(row) = rows.next()? {
            let kind = if row.get::<_, i64>(1)? == 2 { EntryKind::Delete } else { EntryKind::Upsert };
            let shape = Arc::clone(self.layouts.get(tx.conn, row.get(2)?)?);
            let fields = self.layouts.fields(&shape, row.get_ref(4)?)?;
            let (id, existed, blocked) = (row.get(0)?, row.get(3)?, row.get(5)?);
            layers.push(Layer { id, shape, kind, existed, fields, blocked });
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
            || self.0.iter().any(|l| l.blocked || l.kind != EntryKind::Upsert || l.shape != change.shape)
        {
            return false;
        }
        !adds_up(tx, change) && written.iter().all(|field| self.0.iter().any(|layer| layer.lays(*field)))
    }

    /// Whether the record's row had to leave its table: whether it fits now has to be tried.
    pub(crate) fn are_blocked(&self) -> bool {
        self.0.iter().any(|layer| layer.blocked)
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
        let (data, old): (String, Option<String>) =
            tx.conn.prepare_cached(VALUES)?.query_row([self.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let row = self.shape.read_row(self.kind, &image.record, &data)?;
        let model = tx.models.iter().find(|m| m.descriptor.id == self.shape.model);
        // Over a record that is gone the whole row stands, until the leader has decided.
        let whole = image.kind == EntryKind::Delete || self.kind == EntryKind::Delete;
        // Only what adds up asks for what was before.
        let reduces =
            !whole && model.is_some_and(|m| m.descriptor.fields.iter().any(|f| f.reducer.is_some()));
        let before = match &old {
            Some(before) if reduces => Some(pending::read_before(
                (&self.shape, &image.record),
                before,
                &row,
                self.fields.as_deref(),
            )?),
            _ => None,
        };
        image.kind = self.kind;
        for ((i, name), value) in self.shape.fields.iter().enumerate().zip(row) {
            let Some(at) = image.shape.fields.iter().position(|f| f == name) else { continue };
            if !whole && !u16::try_from(i).is_ok_and(|field| self.lays(field)) {
                continue;
            }
            let field = model.and_then(|m| m.descriptor.fields.iter().find(|f| f.name == *name));
            let base = before.as_ref().map(|before| &before[i]);
            // Where nobody else has written it, it is what its author made of it.
            let is_met = !whole && self.existed && base != Some(&image.row[at]);
            let reduced = field
                .and_then(|f| f.reducer)
                .filter(|_| is_met)
                .and_then(|reducer| resolve::reduce(reducer, base, &image.row[at], &value));
            image.row[at] = reduced.unwrap_or(value);
        }
        Ok(())
    }
}

/// Whether the change adds to something that it wrote: then what it comes to depends on what it is laid over.
pub(crate) fn adds_up(tx: &Tx<'_>, change: &Change) -> bool {
    let model = tx.models.iter().find(|m| m.descriptor.id == change.shape.model);
    let adds = |name: &String| {
        model.is_some_and(|m| m.descriptor.fields.iter().any(|f| f.name == *name && f.reducer.is_some()))
    };
    change.existed
        && match &change.fields {
            Some(fields) => fields.iter().any(|&f| adds(&change.shape.fields[usize::from(f)])),
            None => change.shape.fields.iter().any(adds),
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

/// The change as far as it names its record.
pub(crate) fn key_of(change: &Change) -> Change {
    let mut row = vec![Value::Null; change.row.len()];
    change.shape.key.iter().for_each(|&i| row[i] = change.row[i].clone());
    image(change, Arc::clone(&change.shape), EntryKind::Delete, row)
}

/// The records that have pending changes, each named by one that did nothing but that.
pub(crate) fn pending_records(tx: &Tx<'_>) -> Result<Vec<Change>, Error> {
    let mut layouts = Layouts::default();
    let mut seen = HashSet::new();
    let mut changes = Vec::new();
    let mut statement = tx.conn.prepare_cached(pending::BY_ID)?;
    let mut rows = statement.query([i64::MIN])?;
    while let Some(row) = rows.next()? {
        if !pending::is_change(row)? {
            continue;
        }
        let change = pending::read_change(tx.conn, &mut layouts, row)?;
        if seen.insert((Arc::clone(&change.shape), change.record.clone())) {
            changes.push(key_of(&change));
        }
    }
    Ok(changes)
}

/// Whether pending changes of other records than these lie over rows of the log that keep others from being what they like:
/// by a foreign key, a unique value, a tree, or a trigger of the application.
pub(crate) fn others_bind(tx: &Tx<'_>, records: &[Change]) -> Result<bool, Error> {
    let of: HashSet<(&str, &RecordId)> =
        records.iter().map(|record| (record.shape.model.as_str(), &record.record)).collect();
    let mut lying_over = tx.conn.prepare_cached(
        "SELECT p.record FROM sync_pending p WHERE p.model = (SELECT id FROM sync_model WHERE name = ?1)
            AND EXISTS (SELECT 1 FROM sync_entry e WHERE e.model = p.model AND e.record = p.record)",
    )?;
    for model in tx.models {
        let binds = tx.foreign_triggers
            || model.references.bind()
            || model.tree.is_some()
            || capture::has_unique_values(tx.conn, &model.descriptor.table)?;
        if !binds {
            continue;
        }
        let id = model.descriptor.id;
        let mut rows = lying_over.query([id])?;
        while let Some(row) = rows.next()? {
            if !of.contains(&(id, &RecordId::read(row.get_ref(0)?)?)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Takes what is pending here and refers to rows that the leader has deleted back to what the log has of it, and what refers
/// to that in its turn: blocked, until the leader answers it. A follower's tables satisfy their foreign keys meanwhile. Whether
/// there was any: what the log has may refer to what was deleted here ([`bring_back_parents`]).
pub(crate) fn step_out_orphans(tx: &Tx<'_>) -> Result<bool, Error> {
    if !tx.models.iter().any(|model| model.references.has_any()) {
        return Ok(false);
    }
    let mut records = children(tx)?;
    let all = records.len();
    loop {
        let before = records.len();
        let mut left = Vec::with_capacity(before);
        for (index, key, change) in records {
            let model = &tx.models[index];
            if model.references.refers_to_nothing(tx.conn, &key)?.is_none() {
                left.push((index, key, change));
                continue;
            }
            set_state(tx, model.descriptor.id, &change.record, "blocked")?;
            if !as_logged(tx, &change)? {
                let key = params_from_iter(key.iter().map(Bound));
                tx.conn.prepare_cached(&model.sql.delete)?.execute(key)?;
            }
        }
        if left.len() == before {
            return Ok(before < all);
        }
        records = left;
    }
}

/// Brings records back whose deletion is pending here and to which rows refer that the log has: blocked, until the leader
/// answers it. What else is pending makes room where it is in the way.
pub(crate) fn bring_back_parents(tx: &Tx<'_>) -> Result<(), Error> {
    let mut held = HashSet::new();
    loop {
        let before = held.len();
        held.extend(bring_back(tx)?);
        if held.len() == before {
            return Ok(());
        }
        make_room(tx, &held)?;
        step_out_orphans(tx)?;
    }
}

/// A record: model, id.
type Named = (String, RecordId);

fn name_of(change: &Change) -> Named {
    (change.shape.model.clone(), change.record.clone())
}

/// Brings back what is missed, unless something else that is pending is in the way: those.
fn bring_back(tx: &Tx<'_>) -> Result<Vec<Named>, Error> {
    let mut records = pending_records(tx)?;
    loop {
        let before = records.len();
        let (mut left, mut hindered) = (Vec::with_capacity(before), Vec::new());
        for change in records {
            let Some(model) = tx.models.iter().find(|m| m.descriptor.id == change.shape.model) else {
                continue;
            };
            let key = change.key_in(&model.shape);
            let is_missed =
                !model.holds(tx.conn, &key)? && model.references.is_referred_to(tx.conn, &key)?.is_some();
            if is_missed && as_logged(tx, &change)? {
                set_state(tx, model.descriptor.id, &change.record, "blocked")?;
                continue;
            }
            if is_missed {
                hindered.push(name_of(&change));
            }
            left.push(change);
        }
        if left.len() == before {
            return Ok(hindered);
        }
        records = left;
    }
}

/// Writes all that is pending anew, but these records as the log has them, blocked: what was in their way is blocked then.
fn make_room(tx: &Tx<'_>, held: &HashSet<Named>) -> Result<(), Error> {
    let (held, others): (Vec<_>, Vec<_>) =
        pending_records(tx)?.into_iter().partition(|record| held.contains(&name_of(record)));
    let mut kept = LocalValues::new();
    for record in held.iter().chain(&others) {
        step_out(tx, record, &mut kept)?;
    }
    write_logged(tx, &held)?;
    for record in &held {
        set_state(tx, &record.shape.model, &record.record, "blocked")?;
    }
    lay_over(tx, &others)?;
    put_back(tx, kept)
}

/// Writes the record as the log has it, unless something else that is pending is in the way. Whether it did.
fn as_logged(tx: &Tx<'_>, change: &Change) -> Result<bool, Error> {
    let Some(mut writer) = Writer::new(tx, &change.shape)? else { return Ok(true) };
    match writer.replace(&Overlay::default().logged(tx, change)?) {
        Err(error) if is_constraint(&error) => Ok(false),
        written => written.map(|()| true),
    }
}

/// The records of models with references that have pending upserts: model, key, a change.
fn children(tx: &Tx<'_>) -> Result<Vec<(usize, Vec<Value>, Change)>, Error> {
    let mut layouts = Layouts::default();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut statement = tx.conn.prepare_cached(pending::BY_ID)?;
    let mut rows = statement.query([i64::MIN])?;
    while let Some(row) = rows.next()? {
        if !pending::is_change(row)? {
            continue;
        }
        let change = pending::read_change(tx.conn, &mut layouts, row)?;
        let model = tx.models.iter().position(|m| m.descriptor.id == change.shape.model);
        let Some(model) = model.filter(|&m| tx.models[m].references.has_any()) else { continue };
        if change.kind == EntryKind::Upsert && seen.insert((model, change.record.clone())) {
            found.push((model, change.key_in(&tx.models[model].shape), key_of(&change)));
        }
    }
    Ok(found)
}

fn set_state(tx: &Tx<'_>, model: &str, record: &RecordId, state: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE sync_pending SET state = ?3 WHERE record = ?2 AND state <> ?3
                AND model = (SELECT id FROM sync_model WHERE name = ?1)",
        )?
        .execute(params![model, record, state])?;
    Ok(())
}

/// Writes records anew: as the log has them, with what is pending laid over. What else is pending makes room where it is in
/// the way.
pub(crate) fn rewrite(tx: &Tx<'_>, records: &[Change]) -> Result<(), Error> {
    if tx.foreign_triggers {
        tx.set_mode(Mode::Off)?;
    }
    tx.conn.execute_batch("SAVEPOINT rewritten")?;
    let any_blocked = match write_anew(tx, records) {
        Err(error) if is_constraint(&error) => {
            tx.conn.execute_batch("ROLLBACK TO rewritten")?;
            let mut all = pending_records(tx)?;
            let pending: HashSet<Named> = all.iter().map(name_of).collect();
            let is_other = |r: &&Change| !pending.contains(&name_of(r));
            all.extend(records.iter().filter(is_other).cloned());
            write_anew(tx, &all)?
        }
        written => written?,
    };
    tx.conn.execute_batch("RELEASE rewritten")?;
    make_sound(tx, records, any_blocked)?;
    if tx.foreign_triggers {
        tx.set_mode(Mode::Capture)?;
    }
    Ok(())
}

/// After records were written with what is pending: sees to it that no row refers to nothing.
fn make_sound(tx: &Tx<'_>, records: &[Change], any_blocked: bool) -> Result<(), Error> {
    if any_blocked || leave_unsound(tx, records)? {
        step_out_orphans(tx)?;
        bring_back_parents(tx)?;
    }
    Ok(())
}

/// Whether one of the records refers to nothing, or is gone and others refer to it.
fn leave_unsound(tx: &Tx<'_>, records: &[Change]) -> Result<bool, Error> {
    for record in records {
        let Some(model) = tx.models.iter().find(|m| m.descriptor.id == record.shape.model) else { continue };
        let key = record.key_in(&model.shape);
        let unsound = match model.holds(tx.conn, &key)? {
            true => model.references.refers_to_nothing(tx.conn, &key)?,
            false => model.references.is_referred_to(tx.conn, &key)?,
        };
        if unsound.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether anything was blocked before or is now.
fn write_anew(tx: &Tx<'_>, records: &[Change]) -> Result<bool, Error> {
    let mut kept = LocalValues::new();
    for record in records {
        step_out(tx, record, &mut kept)?;
    }
    let any = lay_over(tx, records)?;
    put_back(tx, kept)?;
    Ok(any)
}

/// Writes records as the log has them, without what is pending of them: what is local of their rows, for [`come_back`].
pub(crate) fn step_aside(tx: &Tx<'_>, records: &[Change]) -> Result<LocalValues, Error> {
    let mut kept = LocalValues::new();
    if tx.foreign_triggers {
        tx.set_mode(Mode::Off)?;
    }
    for record in records {
        step_out(tx, record, &mut kept)?;
    }
    write_logged(tx, records)?;
    if tx.foreign_triggers {
        tx.set_mode(Mode::Capture)?;
    }
    Ok(kept)
}

/// Writes records with what is pending of them, after [`step_aside`].
pub(crate) fn come_back(tx: &mut Tx<'_>, records: &[Change], kept: LocalValues) -> Result<(), Error> {
    if tx.foreign_triggers {
        tx.set_mode(Mode::Off)?;
    }
    let any_blocked = lay_over(tx, records)?;
    put_back(tx, kept)?;
    // With nothing pending, the tables are the log.
    if pending::is_any(tx.conn)? {
        make_sound(tx, records, any_blocked)?;
    }
    if tx.foreign_triggers {
        tx.set_mode(Mode::Capture)?;
    }
    Ok(())
}

fn write_logged(tx: &Tx<'_>, records: &[Change]) -> Result<(), Error> {
    let mut overlay = Overlay::default();
    for record in records {
        if let Some(mut writer) = Writer::new(tx, &record.shape)? {
            writer.replace(&overlay.logged(tx, record)?)?;
        }
    }
    Ok(())
}

/// Brings records that stepped out back: as the log has them, and then, one after the other, with what is pending. What
/// does not fit stays as the log has it, blocked. Whether anything was blocked before or is now: that may refer to nothing.
pub(crate) fn lay_over(tx: &Tx<'_>, records: &[Change]) -> Result<bool, Error> {
    write_logged(tx, records)?;
    let mut any_blocked = false;
    let mut overlay = Overlay::default();
    for record in records {
        let Some(mut writer) = Writer::new(tx, &record.shape)? else { continue };
        // Settled by the batch: nothing is pending any more.
        let layers = overlay.layers(tx, record)?;
        let Some(overlaid) = layers.over(tx, &overlay.logged(tx, record)?)? else { continue };
        let fits = fits(tx, &mut writer, record, &overlaid)?;
        any_blocked |= !fits || layers.are_blocked();
        let state = if fits { "waiting" } else { "blocked" };
        set_state(tx, &record.shape.model, &record.record, state)?;
    }
    Ok(any_blocked)
}

/// Writes the record like this, if it can be.
fn fits(tx: &Tx<'_>, writer: &mut Writer<'_>, record: &Change, overlaid: &Change) -> Result<bool, Error> {
    // A statement that fails leaves nothing behind, but for triggers that say otherwise. That a tree has a circle is seen
    // afterwards.
    if !tree::has(tx, record) && !tx.foreign_triggers {
        return match writer.replace(overlaid) {
            Err(error) if is_constraint(&error) => Ok(false),
            written => written.map(|()| true),
        };
    }
    tx.conn.prepare_cached("SAVEPOINT laid_over")?.execute([])?;
    let parent = tree::parent(tx, record)?;
    let fits = match writer.replace(overlaid) {
        Ok(()) => !tree::closes_circle(tx, record, parent.as_ref())?,
        Err(error) if is_constraint(&error) => false,
        Err(error) => return Err(error),
    };
    if !fits {
        tx.conn.prepare_cached("ROLLBACK TO laid_over")?.execute([])?;
    }
    tx.conn.prepare_cached("RELEASE laid_over")?.execute([])?;
    Ok(fits)
}

#[cfg(test)]
mod tests;

//! Overlay: a follower's table shows the log's rows with the device's own pending changes laid over them, so that what
//! its user wrote does not flicker while the leader has yet to see it.
//!
//! A pending change whose row does not fit beside what the leader holds, as when both gave the same unique value, or moved
//! two rows of a tree below each other, leaves its table: the record shows what the log says, the change stays pending, marked
//! as blocked, and the leader answers it.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{params, params_from_iter, types::ValueRef};

use crate::{
    apply::{LocalValues, Writer, is_constraint, put_back, step_out},
    entry::{Change, EntryKind, Shape},
    error::Error,
    layout::{Layouts, RecordId, last_logged},
    log::changed_fields,
    pending, resolve,
    sql::Bound,
    store::{Mode, Tx},
    tree,
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
        let row = self.shape.read_row(self.kind, &self.data)?;
        let model = tx.models.iter().find(|m| m.descriptor.id == self.shape.model);
        // Over a record that is gone the whole row stands, until the leader has decided.
        let whole = image.kind == EntryKind::Delete || self.kind == EntryKind::Delete;
        // Only what adds up asks for what was before.
        let reduces =
            !whole && model.is_some_and(|m| m.descriptor.fields.iter().any(|f| f.reducer.is_some()));
        let before = match &self.before {
            Some(before) if reduces => {
                Some(pending::read_before(&self.shape, before, &row, self.fields.as_deref())?)
            }
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

/// The change as far as it names its record.
pub(crate) fn key_of(change: &Change) -> Change {
    let mut row = vec![Value::Null; change.row.len()];
    change.shape.key.iter().for_each(|&i| row[i] = change.row[i].clone());
    image(change, Arc::clone(&change.shape), EntryKind::Delete, row)
}

/// The records that have pending changes, each named by one that did nothing but that.
pub(crate) fn pending_records(tx: &Tx<'_>) -> Result<Vec<Change>, Error> {
    let mut layouts = Layouts::new(tx.models);
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

/// Takes what is pending here and refers to rows that the leader has deleted back to what the log has of it, and what refers
/// to that in its turn: blocked, until the leader answers it. A follower's tables satisfy their foreign keys meanwhile.
pub(crate) fn step_out_orphans(tx: &Tx<'_>) -> Result<(), Error> {
    if !tx.models.iter().any(|model| model.references.has_any()) {
        return Ok(());
    }
    let mut records = children(tx)?;
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
            return Ok(());
        }
        records = left;
    }
}

/// Brings records back whose deletion is pending here and to which rows refer that the log has: blocked, until the leader
/// answers it.
pub(crate) fn bring_back_parents(tx: &Tx<'_>) -> Result<(), Error> {
    let mut records = pending_records(tx)?;
    loop {
        let before = records.len();
        let mut left = Vec::with_capacity(before);
        for change in records {
            let Some(model) = tx.models.iter().find(|m| m.descriptor.id == change.shape.model) else {
                continue;
            };
            let key = change.key_in(&model.shape);
            let is_missed =
                !model.holds(tx.conn, &key)? && model.references.is_referred_to(tx.conn, &key)?.is_some();
            if is_missed && as_logged(tx, &change)? {
                set_state(tx, model.descriptor.id, &change.record, "blocked")?;
            } else {
                left.push(change);
            }
        }
        if left.len() == before {
            return Ok(());
        }
        records = left;
    }
}

/// Writes the record as the log has it, unless something else that is pending is in the way. Whether it did.
fn as_logged(tx: &Tx<'_>, change: &Change) -> Result<bool, Error> {
    let Some(mut writer) = Writer::new(tx, &change.shape)? else { return Ok(true) };
    match writer.replace(&Overlay::new(tx).logged(tx, change)?) {
        Err(error) if is_constraint(&error) => Ok(false),
        written => written.map(|()| true),
    }
}

/// The records of models with references that have pending upserts: model, key, a change.
fn children(tx: &Tx<'_>) -> Result<Vec<(usize, Vec<Value>, Change)>, Error> {
    let mut layouts = Layouts::new(tx.models);
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

fn set_state(tx: &Tx<'_>, model: &str, record: &str, state: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE sync_pending SET state = ?3 WHERE record = ?2 AND state <> ?3
                AND model = (SELECT id FROM sync_model WHERE name = ?1)",
        )?
        .execute(params![model, RecordId(record), state])?;
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
            let pending: HashSet<(String, String)> =
                all.iter().map(|p| (p.shape.model.clone(), p.record.clone())).collect();
            let is_other = |r: &&Change| !pending.contains(&(r.shape.model.clone(), r.record.clone()));
            all.extend(records.iter().filter(is_other).cloned());
            write_anew(tx, &all)?
        }
        written => written?,
    };
    tx.conn.execute_batch("RELEASE rewritten")?;
    if any_blocked || leave_unsound(tx, records)? {
        step_out_orphans(tx)?;
        bring_back_parents(tx)?;
    }
    if tx.foreign_triggers {
        tx.set_mode(Mode::Capture)?;
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
    if any_blocked {
        step_out_orphans(tx)?;
    }
    if tx.foreign_triggers {
        tx.set_mode(Mode::Capture)?;
    }
    Ok(())
}

fn write_logged(tx: &Tx<'_>, records: &[Change]) -> Result<(), Error> {
    let mut overlay = Overlay::new(tx);
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
    let mut overlay = Overlay::new(tx);
    for record in records {
        let Some(mut writer) = Writer::new(tx, &record.shape)? else { continue };
        // Settled by the batch: nothing is pending any more.
        let layers = overlay.layers(tx, record)?;
        let Some(overlaid) = layers.over(tx, &overlay.logged(tx, record)?)? else { continue };
        tx.conn.prepare_cached("SAVEPOINT laid_over")?.execute([])?;
        let parent = tree::parent(tx, record)?;
        let fits = match writer.replace(&overlaid) {
            Ok(()) => !tree::closes_circle(tx, record, parent.as_ref())?,
            Err(error) if is_constraint(&error) => false,
            Err(error) => return Err(error),
        };
        any_blocked |= !fits || layers.are_blocked();
        if !fits {
            tx.conn.prepare_cached("ROLLBACK TO laid_over")?.execute([])?;
        }
        tx.conn.prepare_cached("RELEASE laid_over")?.execute([])?;
        let state = if fits { "waiting" } else { "blocked" };
        set_state(tx, &record.shape.model, &record.record, state)?;
    }
    Ok(any_blocked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

    use std::collections::BTreeMap;

    use sea_orm::ConnectionTrait;
    use sea_orm_migration::MigratorTrait;

    use super::*;
    use crate::{
        apply::{Applied, Arrived, Images, Rows, apply},
        entry::{Batch, Body, Entry, Group},
        id::{DeviceId, Incarnation, LibraryId, Origin, OriginSeq, Position, Seq, Term},
        model::{ModelDescriptor, Recorder},
        pending::PushedUpTo,
        seal,
        store::Store,
        term::{self, Entrance},
        world::Machine,
    };

    #[allow(unreachable_pub, reason = "SeaORM has entities public")]
    mod note {
        use sea_orm::entity::prelude::*;

        #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, tidelog_macros::Syncable)]
        #[sea_orm(table_name = "notes")]
        #[sync(crate = "crate", merge = "fields")]
        pub struct Model {
            #[sea_orm(primary_key, auto_increment = false)]
            pub id: String,
            pub text: String,
            pub rank: i64,
            #[sync(merge = "sum")]
            pub count: i64,
        }

        #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
        pub enum Relation {}
    }

    const LEADER: DeviceId = DeviceId([1; 32]);
    const LEAD: Term = Term { number: 1, leader: LEADER, incarnation: Incarnation { counter: 1, nonce: 0 } };

    /// A follower, and the leader's log as far as it has it.
    struct Follower {
        store: Store,
        application: rusqlite::Connection,
        top: Seq,
    }

    impl Follower {
        async fn open(folder: &std::path::Path) -> Self {
            let path = folder.join("db");
            let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
            let table = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL, rank INTEGER NOT NULL, count INTEGER NOT NULL)";
            db.execute_unprepared(table).await.unwrap();
            tidelog_migration::SyncMigrator::up(db.plain(), None).await.unwrap();
            db.close().await.unwrap();
            let model = ModelDescriptor::of::<note::Model>().unwrap();
            let mut store = Store::open(&path, vec![(model, Recorder::Trigger)], Arc::new(Machine)).unwrap();
            let library = LibraryId(uuid::Uuid::from_u128(5));
            store.transaction(|tx| term::enter(tx, Entrance::Join(library))).unwrap();
            store.transaction(|tx| term::start(tx, DeviceId([2; 32]), &BTreeMap::new())).unwrap();
            let application = rusqlite::Connection::open(&path).unwrap();
            Self { store, application, top: Seq(0) }
        }

        fn write(&mut self, sql: &str) {
            self.application.execute_batch(sql).unwrap();
            self.store.transaction(seal::seal_all).unwrap();
        }

        /// Applies the leader's changes as one batch.
        fn take(&mut self, changes: Vec<Change>) {
            self.take_as(group(self.top, changes.len()), changes);
        }

        /// Applies batches of the leader's changes in one transaction.
        fn take_together(&mut self, batches: &[Vec<Change>]) {
            let mut top = self.top;
            let applied = self.store.transaction(|tx| {
                let mut images = Images::default();
                for changes in batches {
                    let group = group(top, changes.len());
                    top = group.last;
                    let mut arrived = arrived(group, changes.clone());
                    let applied = apply(tx, LEAD, &mut arrived, &[], Rows::AtTheEnd(&mut images), None)?;
                    assert_eq!(applied, Applied::To(Position { term: LEAD, seq: top }));
                }
                images.write(tx)
            });
            applied.unwrap();
            self.top = top;
        }

        fn take_as(&mut self, group: Group, changes: Vec<Change>) {
            let last = group.last;
            let mut arrived = arrived(group, changes);
            let applied =
                self.store.transaction(|tx| apply(tx, LEAD, &mut arrived, &[], Rows::AsTheyCome, None));
            assert_eq!(applied.unwrap(), Applied::To(Position { term: LEAD, seq: last }));
            self.top = last;
        }

        fn is_hidden(&mut self, change: &Change) -> bool {
            let hidden =
                self.store.transaction(|tx| Ok(Overlay::new(tx).layers(tx, change)?.hide(tx, change)));
            hidden.unwrap()
        }

        fn note(&self) -> String {
            let sql = "SELECT text || ' ' || rank || ' ' || count FROM notes";
            self.application.query_row(sql, [], |row| row.get(0)).unwrap()
        }

        fn notes(&self) -> Vec<String> {
            let sql = "SELECT id || ' ' || text || ' ' || rank || ' ' || count FROM notes ORDER BY id";
            let mut statement = self.application.prepare(sql).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        }
    }

    /// The leader's next group, of so many changes.
    fn group(top: Seq, count: usize) -> Group {
        let (first, last) = (top.next(), Seq(top.0 + count as u64));
        Group {
            origin: Origin(uuid::Uuid::from_u128(9)),
            device: LEADER,
            tag: first.0,
            base: Position::EMPTY,
            prev: 0,
            was: None,
            seen: Vec::new(),
            first_n: OriginSeq(first.0),
            last_n: OriginSeq(last.0),
            first,
            last,
        }
    }

    fn arrived(group: Group, changes: Vec<Change>) -> Arrived {
        let after = match group.first {
            Seq(1) => Position::EMPTY,
            first => Position { term: LEAD, seq: Seq(first.0 - 1) },
        };
        let entries = (0..).zip(changes).map(|(i, change)| Entry {
            seq: Seq(group.first.0 + i),
            term: LEAD,
            n: Some(OriginSeq(group.first_n.0 + i)),
            body: Body::Change(change),
        });
        Arrived::of(Batch { after, entries: entries.collect(), groups: vec![group] })
    }

    /// What somebody else does to three records, in batches: as the leader's log would tell it.
    fn random_batches(store: &Store, mut dice: impl FnMut(u64) -> u64) -> Vec<Vec<Change>> {
        let mut rows: [Option<(String, i64, i64)>; 3] = Default::default();
        let mut batches = Vec::new();
        for batch in 0..4 {
            let mut changes = Vec::new();
            for i in 0..=dice(4) {
                let record = usize::try_from(dice(3)).unwrap();
                let (text, rank, count) = rows[record].clone().unwrap_or_default();
                let was_there = rows[record].is_some();
                let delete = was_there && dice(4) == 0;
                let field = if was_there && !delete { Some(1 + dice(3) as u16) } else { None };
                let next = match field {
                    Some(1) => (format!("theirs {batch}.{i}"), rank, count),
                    Some(2) => (text, rank + 1, count),
                    Some(_) => (text, rank, count + 10),
                    None => (format!("new {batch}.{i}"), 0, 0),
                };
                let mut change =
                    change(store, &next.0, next.1, next.2, Some(field.into_iter().collect::<Vec<_>>()));
                change.record = format!("n{record}");
                change.row[0] = Value::Text(change.record.as_str().into());
                change.existed = was_there;
                if field.is_none() {
                    change.fields = None;
                }
                if was_there && dice(5) == 0 {
                    // It came too late, and left things as they were.
                    change.outcome = Some(Box::new(crate::entry::Outcome::nothing()));
                } else {
                    rows[record] = (!delete).then_some(next);
                }
                if delete {
                    change.kind = EntryKind::Delete;
                    change.row[1..].fill(Value::Null);
                }
                changes.push(change);
            }
            batches.push(changes);
        }
        batches
    }

    fn change(store: &Store, text: &str, rank: i64, count: i64, fields: Option<Vec<u16>>) -> Change {
        let row = vec![
            Value::Text(b"n".into()),
            Value::Text(text.into()),
            Value::Integer(rank),
            Value::Integer(count),
        ];
        Change {
            shape: Arc::clone(&store.models()[0].shape),
            record: "n".into(),
            kind: EntryKind::Upsert,
            existed: fields.is_some(),
            fields,
            row,
            before: None,
            stamp: 1,
            rank: None,
            at: 1,
            mark: None,
            actor: None,
            decides: None,
            outcome: None,
        }
    }

    #[tokio::test]
    async fn what_is_written_under_a_pending_change_shows_when_that_goes_and_beside_it_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut follower = Follower::open(folder.path()).await;
        let of = |follower: &Follower, text: &str, rank, count, fields: &[u16]| {
            change(&follower.store, text, rank, count, Some(fields.to_vec()))
        };
        let inserted = change(&follower.store, "first", 0, 0, None);
        follower.take(vec![inserted]);
        follower.write("UPDATE notes SET text = 'mine', count = count + 1");

        let under = of(&follower, "theirs", 0, 0, &[1]);
        assert!(follower.is_hidden(&under));
        follower.take(vec![under]);
        assert_eq!(follower.note(), "mine 0 1");

        let beside = of(&follower, "theirs", 7, 0, &[2]);
        assert!(!follower.is_hidden(&beside));
        // The second replaces the first one's image, and is not alone with what is pending.
        let both = vec![beside, of(&follower, "again", 7, 0, &[1])];
        follower.take(both);
        assert_eq!(follower.note(), "mine 7 1");

        let added = of(&follower, "again", 7, 10, &[3]);
        assert!(!follower.is_hidden(&added), "what adds up does not hide what it adds to");
        follower.take(vec![added]);
        assert_eq!(follower.note(), "mine 7 11");

        let push = follower.store.transaction(|tx| pending::read(tx.conn, tx.models, &PushedUpTo::NOTHING));
        let Batch { mut groups, mut entries, .. } = push.unwrap().unwrap().batch;
        let mut group = groups.remove(0);
        (group.first, group.last) = (follower.top.next(), follower.top.next());
        let Body::Change(mut own) = entries.remove(0).body else { panic!("another entry is pending") };
        own.outcome = Some(Box::new(crate::entry::Outcome {
            effect: resolve::Effect::None,
            dropped: Vec::new(),
            refused: Some("not this time".into()),
        }));
        follower.take_as(group, vec![own]);
        assert_eq!(follower.note(), "again 7 10", "the log's own, once nothing is pending");
    }

    #[tokio::test]
    async fn batches_in_one_transaction_leave_what_they_leave_one_by_one() {
        for seed in 0..24 {
            let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed + 1);
            let mut dice = |sides: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) % sides
            };
            let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let mut single = Follower::open(folders[0].path()).await;
            let mut together = Follower::open(folders[1].path()).await;
            let mut batches = random_batches(&single.store, &mut dice);
            let before = batches.split_off(2);
            let (before, after) = (batches, before);
            for follower in [&mut single, &mut together] {
                for batch in &before {
                    follower.take(batch.clone());
                }
            }
            let writes = [
                "UPDATE notes SET text = 'mine' WHERE id = 'n0'",
                "UPDATE notes SET count = count + 1 WHERE id <> 'n2'",
                "DELETE FROM notes WHERE id = 'n2'",
                "INSERT OR IGNORE INTO notes VALUES ('n1', 'mine', 5, 5)",
            ];
            for write in writes {
                if dice(2) == 0 {
                    single.write(write);
                    together.write(write);
                }
            }
            assert_eq!(single.notes(), together.notes());
            for batch in &after {
                single.take(batch.clone());
            }
            together.take_together(&after);
            assert_eq!(single.notes(), together.notes(), "seed {seed}");
        }
    }
}

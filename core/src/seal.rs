//! Seal: captured rows become changes (rule C).
//!
//! One seal takes the outbox up to a cut, so that it holds whole transactions: either everything there is, or, where
//! more than [`SEAL_ROWS`] rows wait, everything before the last marker within them. It folds the rows of each record
//! into one change, works out which fields changed, stamps and numbers the changes, and hands them on: on the leader
//! straight to the log, elsewhere to `sync_pending`. All changes of one seal are one group.
//!
//! A group too large to fold at once is folded window by window ([`FOLD_ROWS`], [`FOLD_BYTES`]): memory is bounded,
//! the group stays one.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use uuid::Uuid;

use crate::{
    adopt::{self, KIND_ADOPT},
    announce,
    apply::{Writer, is_constraint},
    entry::{Batch, Body, Change, Decision, Entry, EntryKind, Fields, Group, Outcome, Seen},
    error::Error,
    id::{DeviceId, OriginSeq, Position, Seq, Term},
    layout::{Layouts, Numbered, last_logged},
    log::{self, Appender, Authors, BATCH_BYTES, BATCH_ENTRIES, ROW_MAX, entry_size},
    model::Policy,
    park::{self, Identity},
    pending,
    record::RecordId,
    resolve::{self, Rules},
    sql::{Bound, read_value},
    store::{Captured, Minted, Mode, Model, Replica, Tx},
    value::{Value, row_to_json},
    wire::Message,
    world::tick,
};

/// Rows that one seal takes, unless one transaction has more: some 20 ms of holding the database's one writer, and of
/// entries that fit into one batch.
pub(crate) const SEAL_ROWS: i64 = 4096;
/// Rows folded at once in a larger group.
const FOLD_ROWS: usize = 32_768;
/// Bytes of values folded at once.
const FOLD_BYTES: usize = 8 << 20;

/// How long, in ms, a deletion that a hook spoke of before it was made may keep the sealer waiting: longer than a
/// statement waits for its turn and for the database. Then it is taken for one that failed.
const DELETION_WAITS: i64 = 60_000;

/// Position of the fixed columns before the values in `sync_outbox`.
const VALUES_AT: usize = 7;

/// What a seal of a leader appended, where it is no more than one batch: it can be sent as it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fresh {
    pub(crate) lead: Term,
    pub(crate) floor: Seq,
    pub(crate) batch: Batch,
}

impl Fresh {
    /// Where the log reaches with it.
    pub(crate) fn top(&self) -> Position {
        Position { term: self.lead, seq: self.batch.last() }
    }

    /// The message that brings it to whoever has all before it.
    pub(crate) fn message(&self) -> Vec<u8> {
        Message::entries(self.lead, self.floor, self.top(), &self.batch).encode()
    }
}

/// What a seal did.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sealed {
    /// Rows taken from the outbox.
    pub(crate) rows: u64,
    /// Changes made of them.
    pub(crate) changes: u64,
    /// Whether rows are left in the outbox.
    pub(crate) more: bool,
    /// What was appended, where that is one batch; nothing where it went to pending.
    pub(crate) fresh: Option<Fresh>,
}

/// Seals once: on the leader into the log, unless something is pending there; elsewhere into pending.
pub(crate) fn seal(tx: &mut Tx<'_>) -> Result<Sealed, Error> {
    let Some(Cut { first, until, more }) = cut(tx.conn)? else { return Ok(Sealed::default()) };
    let replica = tx.replica()?;
    let mut sink = Sink::new(tx, &replica)?;
    let mut rows_taken = 0;
    let announced;
    {
        let mut statement = tx.conn.prepare_cached("SELECT * FROM sync_outbox WHERE id <= ?1 ORDER BY id")?;
        let mut rows = statement.query([until])?;
        let mut fold = Fold::for_rows(until - first + 1);
        while let Some(row) = rows.next()? {
            rows_taken += 1;
            fold.take(tx, row)?;
            if fold.rows >= FOLD_ROWS || fold.bytes >= FOLD_BYTES {
                sink.drain(tx, &mut fold)?;
            }
        }
        sink.drain(tx, &mut fold)?;
        announced = fold.announced;
    }
    let (changes, fresh) = sink.finish(tx, &replica)?;
    for id in &announced {
        tx.conn
            .prepare_cached(
                "UPDATE sync_outbox SET id = (SELECT max(id) + 1 FROM sync_outbox) WHERE id = ?1",
            )?
            .execute([id])?;
    }
    if more || !announced.is_empty() {
        tx.conn.prepare_cached("DELETE FROM sync_outbox WHERE id <= ?1")?.execute([until])?;
    } else {
        // Without a WHERE, SQLite drops the pages instead of the rows.
        tx.conn.prepare_cached("DELETE FROM sync_outbox")?.execute([])?;
    }
    Ok(Sealed { rows: rows_taken, changes, more, fresh })
}

/// Changes that were never in the outbox, which is empty, sealed as they are made, as a group of their own.
pub(crate) struct Made<'c> {
    sink: Sink<'c>,
    replica: Replica,
}

impl<'c> Made<'c> {
    pub(crate) fn begin(tx: &mut Tx<'c>) -> Result<Self, Error> {
        let replica = tx.replica()?;
        Ok(Self { sink: Sink::new(tx, &replica)?, replica })
    }

    /// Why the log has it as refused, where it does.
    pub(crate) fn put(&mut self, tx: &Tx<'_>, change: Change) -> Result<Option<String>, Error> {
        self.sink.put(tx, change)?;
        Ok(self.sink.refused.take())
    }

    pub(crate) fn finish(self, tx: &mut Tx<'_>) -> Result<(), Error> {
        self.sink.finish(tx, &self.replica).map(|_| ())
    }
}

/// Seals until the outbox is empty.
pub(crate) fn seal_all(tx: &mut Tx<'_>) -> Result<Sealed, Error> {
    let mut total = Sealed::default();
    loop {
        let sealed = seal(tx)?;
        total.rows += sealed.rows;
        total.changes += sealed.changes;
        if !sealed.more {
            return Ok(total);
        }
    }
}

/// The first and the last row of the outbox, each found at its end of the table: asked for together they would be a scan.
pub(crate) const OUTBOX_ENDS: &str =
    "SELECT (SELECT min(id) FROM sync_outbox), (SELECT max(id) FROM sync_outbox)";

/// What of the outbox is sealed at once.
struct Cut {
    first: i64,
    until: i64,
    /// Whether rows are left behind it.
    more: bool,
}

/// How much of the outbox to seal; `None` if it is empty.
fn cut(conn: &Connection) -> Result<Option<Cut>, Error> {
    let ends: (Option<i64>, Option<i64>) =
        conn.prepare_cached(OUTBOX_ENDS)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)) = ends else { return Ok(None) };
    if last - first < SEAL_ROWS {
        return Ok(Some(Cut { first, until: last, more: false }));
    }
    let marker = |sql: &str| -> Result<Option<i64>, Error> {
        Ok(conn.prepare_cached(sql)?.query_row([first + SEAL_ROWS], |row| row.get(0)).optional()?)
    };
    let within = marker("SELECT id FROM sync_outbox WHERE id <= ?1 AND kind = 0 ORDER BY id DESC LIMIT 1")?;
    let cut = match within {
        Some(id) => Some(id),
        None => marker("SELECT id FROM sync_outbox WHERE id > ?1 AND kind = 0 ORDER BY id LIMIT 1")?,
    };
    let until = cut.unwrap_or(last);
    Ok(Some(Cut { first, until, more: until < last }))
}

/// The captured rows of each record, folded.
#[derive(Default)]
struct Fold {
    records: Vec<Folded>,
    index: HashMap<(i64, RecordId), usize, foldhash::fast::RandomState>,
    rows: usize,
    bytes: usize,
    /// Rows of the outbox whose deletion is yet to come: they wait for the next seal.
    announced: Vec<i64>,
}

struct Folded {
    shape: i64,
    record: RecordId,
    /// Whether the record existed before the first of its rows; `None` where only a hook saw it.
    existed: Option<bool>,
    before: Option<Vec<Value>>,
    now: Option<Vec<Value>>,
    /// All fields count as changed.
    whole: bool,
    /// Nothing is known of it but that it was there when it was adopted.
    adopted: bool,
    at: i64,
    mark: Option<String>,
    actor: Option<String>,
}

impl Fold {
    /// With room for so many rows.
    fn for_rows(rows: i64) -> Self {
        let room = usize::try_from(rows).unwrap_or(0).min(FOLD_ROWS);
        Self {
            records: Vec::with_capacity(room),
            index: HashMap::with_capacity_and_hasher(room, foldhash::fast::RandomState::default()),
            ..Self::default()
        }
    }

    /// What was folded, in order. Takes it.
    fn drain(&mut self) -> impl Iterator<Item = Folded> {
        self.index.clear();
        (self.rows, self.bytes) = (0, 0);
        self.records.drain(..)
    }

    fn take(&mut self, tx: &Tx<'_>, row: &Row<'_>) -> Result<(), Error> {
        let kind: i64 = row.get(2)?;
        if kind == 0 {
            return Ok(());
        }
        let shape: i64 = row.get(1)?;
        let captured = tx.captured.get(&shape).ok_or_else(|| {
            Error::Damaged(format!("the outbox has a row of shape {shape}, which is not known"))
        })?;
        let fields = captured.shape.fields.len();
        let new = |row: &Row<'_>| read_values(row, VALUES_AT, fields);
        let old = |row: &Row<'_>| read_values(row, VALUES_AT + 1, fields);
        self.rows += 1;
        let (existed, before, now, whole) = match kind {
            1 => (Some(false), None, Some(new(row)?), false),
            2 => (Some(true), Some(old(row)?), Some(new(row)?), false),
            3 => (Some(true), Some(old(row)?), None, false),
            4 => {
                let now = new(row)?;
                (Some(true), Some(now.clone()), Some(now), true)
            }
            5 => (None, None, Some(new(row)?), false),
            KIND_ADOPT => (Some(false), None, Some(new(row)?), true),
            6 => {
                let before = old(row)?;
                // The hook spoke before the deletion: it may be yet to come, or have failed.
                if still_there(tx, captured, &before)? {
                    let at: i64 = row.get(4)?;
                    if tx.world.now() - at < DELETION_WAITS {
                        self.announced.push(row.get(0)?);
                    }
                    return Ok(());
                }
                (Some(true), Some(before), None, false)
            }
            _ => return Err(Error::Damaged(format!("the outbox has a row of kind {kind}"))),
        };
        let image = now.as_ref().or(before.as_ref());
        let record = image.map_or_else(|| "".into(), |image| captured.shape.record_id(image));
        self.bytes +=
            image.map_or(0, |image| image.iter().map(Value::size).sum::<usize>() + 32 * image.len());
        let (at, mark, actor): (i64, Option<String>, Option<String>) =
            (row.get(4)?, row.get(5)?, row.get(6)?);
        let (mark, actor) = (mark.map(named), actor.map(shortened));
        let key = (shape, record);
        if let Some(folded) = self.index.get(&key).map(|&i| &mut self.records[i])
            && folded.mark == mark
        {
            // Deleted and there again: another row under the same key, so every field is new.
            folded.whole |= whole || (folded.now.is_none() && now.is_some());
            folded.now = now;
            folded.adopted &= kind == KIND_ADOPT;
            folded.at = at;
            folded.actor = actor.or(folded.actor.take());
            return Ok(());
        }
        if kind == KIND_ADOPT && is_known(tx, captured, &key.1)? {
            return Ok(());
        }
        let (record, adopted) = (key.1.clone(), kind == KIND_ADOPT);
        self.index.insert(key, self.records.len());
        self.records.push(Folded { shape, record, existed, before, now, whole, adopted, at, mark, actor });
        Ok(())
    }
}

fn read_values(row: &Row<'_>, from: usize, count: usize) -> Result<Vec<Value>, Error> {
    let mut values = Vec::with_capacity(count);
    for i in 0..count {
        values.push(read_value(row.get_ref(from + 2 * i)?));
    }
    Ok(values)
}

fn still_there(tx: &Tx<'_>, captured: &Captured, row: &[Value]) -> Result<bool, Error> {
    let Some(model) = captured.model.map(|i| &tx.models[i]) else { return Ok(false) };
    let key = captured.shape.key.iter().map(|&i| Bound(&row[i]));
    Ok(tx.conn.prepare_cached(&model.sql.select)?.exists(params_from_iter(key))?)
}

/// Whether the log or pending says something of the record already, which is then no older than an adopted row.
fn is_known(tx: &Tx<'_>, captured: &Captured, record: &RecordId) -> Result<bool, Error> {
    let model = tx.numbers.of(tx.conn, &captured.shape)?.model;
    let says = |sql: &str| -> Result<bool, Error> {
        Ok(tx.conn.prepare_cached(sql)?.exists(params![model, record])?)
    };
    Ok(says("SELECT 1 FROM sync_entry WHERE model = ?1 AND record = ?2 LIMIT 1")?
        || says("SELECT 1 FROM sync_pending WHERE model = ?1 AND record = ?2 LIMIT 1")?)
}

/// Changes whose author has seen nothing of the log, though this device has it: they go to pending, as a group of
/// their own.
pub(crate) struct Unseen<'c> {
    sink: Sink<'c>,
    replica: Replica,
}

impl<'c> Unseen<'c> {
    pub(crate) fn begin(tx: &mut Tx<'c>) -> Result<Self, Error> {
        let replica = tx.replica()?;
        let sink = Sink::new(tx, &replica)?;
        Ok(Self { sink: Sink { to: Target::Pending, base: Position::EMPTY, ..sink }, replica })
    }

    /// Takes a change of a registered model, unless it stays on this device; whether it did.
    pub(crate) fn put(&mut self, tx: &Tx<'_>, model: &Model, change: Change) -> Result<bool, Error> {
        let index = tx.models.iter().position(|m| m.descriptor.id == model.descriptor.id);
        let captured = Captured { shape: Arc::clone(&change.shape), model: index };
        match self.sink.kept_or(tx, &captured, change)? {
            Some(change) => self.sink.put(tx, change).map(|()| true),
            None => Ok(false),
        }
    }

    pub(crate) fn finish(self, tx: &mut Tx<'_>) -> Result<(), Error> {
        self.sink.finish(tx, &self.replica).map(|_| ())
    }
}

/// Where the changes of one seal go.
struct Sink<'c> {
    to: Target<'c>,
    minted: Minted,
    device: DeviceId,
    term: Term,
    base: Position,
    tag: u64,
    seen: Vec<Seen>,
    /// The base's term and what was seen, as every pending change of the seal has them.
    texts: (String, String),
    clock: u64,
    changes: u64,
    /// Stamp of the first.
    first: u64,
    withheld: u64,
    /// Why the last change that was refused here was.
    refused: Option<String>,
    /// What went to the log, up to the size of a batch; nothing once it is more.
    fresh: Option<Vec<Entry>>,
    fresh_bytes: usize,
}

enum Target<'c> {
    Log(Appender<'c>),
    Pending,
}

impl<'c> Sink<'c> {
    fn new(tx: &mut Tx<'c>, replica: &Replica) -> Result<Self, Error> {
        let device =
            replica.device.ok_or_else(|| Error::Damaged("a replica without a device seals".into()))?;
        let base = replica.top;
        let minted = tx.origin(device)?;
        // What is pending on a leader goes first: it has yet to be sequenced.
        let to = match replica.is_leader() && !replica.has_pending {
            true => Target::Log(Appender::new(tx, base)?),
            false => Target::Pending,
        };
        let seen = if replica.has_pending { pending::seen(tx.conn, minted.row)? } else { Vec::new() };
        let (term, tag) = (replica.max_seen, tx.world.random());
        Ok(Self {
            to,
            minted,
            device,
            term,
            base,
            tag,
            texts: (base.term.to_text(), Seen::to_json(&seen)),
            seen,
            clock: replica.clock,
            changes: 0,
            first: 0,
            withheld: 0,
            refused: None,
            fresh: Some(Vec::new()),
            fresh_bytes: 0,
        })
    }

    fn drain(&mut self, tx: &Tx<'_>, fold: &mut Fold) -> Result<(), Error> {
        for folded in fold.drain() {
            let captured = tx.captured.get(&folded.shape);
            if let Some(captured) = captured
                && let Some(change) = self.decide(tx, captured, folded)?
            {
                self.put(tx, change)?;
            }
        }
        Ok(())
    }

    /// Makes a change of what was folded; `None` where there is nothing to tell.
    fn decide(&mut self, tx: &Tx<'_>, captured: &Captured, folded: Folded) -> Result<Option<Change>, Error> {
        match change_of(tx, captured, folded)? {
            Some(change) => self.kept_or(tx, captured, change),
            None => Ok(None),
        }
    }

    /// The change, unless it stays on this device.
    fn kept_or(
        &mut self,
        tx: &Tx<'_>,
        captured: &Captured,
        mut change: Change,
    ) -> Result<Option<Change>, Error> {
        match admit(tx, captured, &mut change) {
            Ok(()) => Ok(Some(change)),
            Err(Kept::Withheld) => {
                self.withheld += 1;
                Ok(None)
            }
            Err(Kept::Quarantined(reason)) => {
                quarantine(tx.conn, &change, &reason)?;
                Ok(None)
            }
        }
    }

    fn put(&mut self, tx: &Tx<'_>, mut change: Change) -> Result<(), Error> {
        let now = tx.world.now();
        self.clock = tick(self.clock, change.at.min(now));
        change.stamp = self.clock;
        let n = OriginSeq(self.minted.next.0 + self.changes);
        self.changes += 1;
        if self.changes == 1 {
            self.first = change.stamp;
        }
        match &mut self.to {
            Target::Log(appender) => {
                change.rank_at(now);
                refuse_foreign(tx, &mut change, self.device)?;
                self.refused = change.outcome.as_ref().and_then(|outcome| outcome.refused.clone());
                let seq = Seq(self.base.seq.0 + self.changes);
                let mut entry = Entry { seq, term: self.term, n: Some(n), body: Body::Change(change) };
                appender.push(&entry)?;
                if let Body::Change(change) = &entry.body
                    && park::concerns(change)
                {
                    let identity = Identity { origin: self.minted.origin, n, tag: self.tag };
                    park::park(tx, &mut Authors::default(), identity, self.device, seq, change)?;
                }
                self.fresh_bytes += entry_size(&entry.body);
                match &mut self.fresh {
                    Some(fresh) if fresh.len() < BATCH_ENTRIES && self.fresh_bytes <= BATCH_BYTES => {
                        if let Body::Change(change) = &mut entry.body
                            && change.outcome.is_none()
                        {
                            change.before = None;
                        }
                        fresh.push(entry);
                    }
                    fresh => *fresh = None,
                }
                Ok(())
            }
            Target::Pending => self.put_pending(tx, n, &change),
        }
    }

    fn put_pending(&self, tx: &Tx<'_>, n: OriginSeq, change: &Change) -> Result<(), Error> {
        let fields = change.fields.as_ref().map(|fields| change.shape.field_names(fields));
        let Numbered { model, layout } = tx.numbers.of(tx.conn, &change.shape)?;
        let priority = tx
            .models
            .iter()
            .find(|m| m.descriptor.id == change.shape.model)
            .map_or(1, |m| m.descriptor.options.priority as i64);
        tx.conn
            .prepare_cached(
                "INSERT INTO sync_pending (origin, n, tag, base_term, base_seq, seen, group_last, stamp, at, kind,
                    model, record, existed, layout, fields, data, before, mark, actor, priority, id, decides, rank, prev)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?7, ?20, ?21,
                    ?22)",
            )?
            .execute(params![
                self.minted.row,
                n.0,
                self.tag as i64,
                self.texts.0,
                self.base.seq.0,
                self.texts.1,
                change.stamp,
                change.at,
                change.kind as i64,
                model,
                change.record,
                change.existed,
                layout,
                fields,
                row_text(change, change.kind, &change.row),
                pending::before_text(change),
                change.mark,
                change.actor,
                priority,
                change.decides.map(Decision::to_text),
                change.rank,
                self.minted.tag as i64
            ])?;
        Ok(())
    }

    fn finish(self, tx: &mut Tx<'_>, replica: &Replica) -> Result<(u64, Option<Fresh>), Error> {
        let mut fresh = None;
        add_withheld(tx, self.withheld)?;
        if self.changes == 0 {
            return Ok((0, None));
        }
        let last_n = OriginSeq(self.minted.next.0 + self.changes - 1);
        match self.to {
            Target::Log(_) => {
                let device = replica.device.unwrap_or(replica.max_seen.leader);
                let group = Group {
                    origin: self.minted.origin,
                    device,
                    tag: self.tag,
                    base: self.base,
                    prev: self.minted.tag,
                    was: None,
                    seen: self.seen,
                    first_n: self.minted.next,
                    last_n,
                    first: self.base.seq.next(),
                    last: Seq(self.base.seq.0 + self.changes),
                };
                log::push_group(tx.conn, &group, self.minted.row, self.clock)?;
                fresh = self.fresh.map(|entries| Fresh {
                    lead: self.term,
                    floor: replica.floor,
                    batch: Batch { after: self.base, entries, groups: vec![group] },
                });
            }
            Target::Pending => {
                tx.conn
                    .prepare_cached("UPDATE sync_pending SET group_last = ?2 WHERE id = ?1")?
                    .execute(params![self.first, last_n.0])?;
                tx.set_clock(self.clock)?;
            }
        }
        *tx.minted = Some(Minted { next: OriginSeq(last_n.0 + 1), tag: self.tag, ..self.minted });
        Ok((self.changes, fresh))
    }
}

/// What the folded rows of a record come to; `None` where that is nothing.
fn change_of(tx: &Tx<'_>, captured: &Captured, folded: Folded) -> Result<Option<Change>, Error> {
    let Folded { record, existed, mut before, now, whole, adopted, at, mark, actor, .. } = folded;
    let shape = &captured.shape;
    let existed = match existed {
        Some(existed) => existed,
        None => {
            before = announce::last_known(tx, shape, &record)?;
            before.is_some()
        }
    };
    let (kind, row, fields) = match (existed, now) {
        (false, None) => return Ok(None),
        (_, Some(now)) => {
            let fields = match &before {
                Some(before) if existed && !whole => {
                    let changed = (0..now.len()).filter(|&i| now[i] != before[i]);
                    let changed: Fields = changed.filter_map(|i| u16::try_from(i).ok()).collect();
                    if changed.is_empty() {
                        return Ok(None);
                    }
                    Some(changed)
                }
                _ => None,
            };
            (EntryKind::Upsert, now, fields)
        }
        (true, None) => {
            let key = shape.key.iter();
            let mut row = vec![Value::Null; shape.fields.len()];
            if let Some(before) = &before {
                key.for_each(|&i| row[i] = before[i].clone());
            }
            (EntryKind::Delete, row, None)
        }
    };
    Ok(Some(Change {
        shape: shape.clone(),
        record,
        kind,
        existed,
        fields,
        row,
        before,
        stamp: 0,
        rank: adopted.then(|| adopt::rank(at)),
        at,
        mark,
        actor,
        decides: None,
        outcome: None,
    }))
}

/// The changes that cascades of this database made of the one that was just applied to `record`, which is not among them.
/// Takes them out of the outbox.
pub(crate) fn derived(tx: &Tx<'_>, model: &str, record: &RecordId) -> Result<Vec<Change>, Error> {
    let mut fold = Fold::default();
    {
        let mut statement = tx.conn.prepare_cached("SELECT * FROM sync_outbox ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            fold.take(tx, row)?;
        }
    }
    if fold.rows == 0 {
        return Ok(Vec::new());
    }
    tx.conn.prepare_cached("DELETE FROM sync_outbox")?.execute([])?;
    let (mut changes, mut withheld) = (Vec::new(), 0);
    for folded in fold.drain() {
        let Some(captured) = tx.captured.get(&folded.shape) else { continue };
        if captured.shape.model == model && folded.record == *record {
            continue;
        }
        let Some(mut change) = change_of(tx, captured, folded)? else { continue };
        // What stays on this device stays here whoever changed it.
        match admit(tx, captured, &mut change) {
            Ok(()) => changes.push(change),
            Err(Kept::Withheld) => withheld += 1,
            Err(Kept::Quarantined(reason)) => quarantine(tx.conn, &change, &reason)?,
        }
    }
    add_withheld(tx, withheld)?;
    Ok(changes)
}

/// A leader's own change to a record that another device owns is refused like anybody else's: it has no effect, and the
/// table is as it was. Its values are in its entry.
fn refuse_foreign(tx: &Tx<'_>, change: &mut Change, device: DeviceId) -> Result<(), Error> {
    if change.outcome.is_some() || change.kind == EntryKind::Noop {
        // What is kept for another was never written here, and who only decides writes nothing.
        return Ok(());
    }
    let is_owned =
        |m: &&Model| matches!(m.descriptor.options.policy, Policy::Owner(_)) && m.shape == change.shape;
    let Some(model) = tx.models.iter().find(is_owned) else { return Ok(()) };
    let stands = standing_row(tx, model, change)?;
    let row = stands.as_ref().unwrap_or(&change.row);
    let Err(refusal) = resolve::may_write(&Rules::of(&model.descriptor), row, device) else { return Ok(()) };
    let kind = if stands.is_some() { EntryKind::Upsert } else { EntryKind::Delete };
    let as_it_was = Change { kind, row: row.clone(), outcome: None, ..change.clone() };
    if let Some(mut writer) = Writer::new(tx, &change.shape)? {
        tx.set_mode(Mode::Off)?;
        let restored = writer.replace(&as_it_was);
        tx.set_mode(Mode::Capture)?;
        match restored {
            // What else it wrote has taken the place: what it did stands.
            Err(error) if is_constraint(&error) => return Ok(()),
            restored => restored?,
        }
    }
    change.outcome = Some(Box::new(Outcome::refused(refusal.to_string())));
    Ok(())
}

/// The record's row before the change, as the log has it: what its author saw may be of a change that was refused just
/// now. Of a record that the log does not know at all, what its author saw.
fn standing_row(tx: &Tx<'_>, model: &Model, change: &Change) -> Result<Option<Vec<Value>>, Error> {
    let number = tx.numbers.of(tx.conn, &change.shape)?.model;
    let mut known =
        tx.conn.prepare_cached("SELECT 1 FROM sync_entry WHERE model = ?1 AND record = ?2 LIMIT 1")?;
    if !known.exists(params![number, change.record])? {
        return Ok(change.before.clone());
    }
    let said = last_logged(tx.conn, &mut Layouts::default(), number, &change.record)?;
    Ok(said.as_ref().and_then(|said| said.row_as(&model.shape)).map(|row| {
        row.into_iter().zip(&model.fills).map(|(value, fill)| value.unwrap_or(fill).clone()).collect()
    }))
}

pub(crate) fn row_text(change: &Change, kind: EntryKind, row: &[Value]) -> String {
    let mut text = String::new();
    change.shape.write_row(kind, &change.record, row, &mut text);
    text
}

/// Bytes of a row's values, as [`ROW_MAX`] bounds them.
pub(crate) fn size(row: &[Value]) -> usize {
    row.iter().map(Value::size).sum()
}

/// Whether the change is for other devices and can be sent to them.
fn admit(tx: &Tx<'_>, captured: &Captured, change: &mut Change) -> Result<(), Kept> {
    let bytes = size(&change.row);
    if bytes > ROW_MAX {
        return Err(Kept::Quarantined(format!(
            "its row of {bytes} bytes is over the limit of {ROW_MAX} bytes for one row"
        )));
    }
    // What was kept here before, others may never have seen: then all of the row is sent.
    let mut was_kept = change.before.as_ref().is_some_and(|before| size(before) > ROW_MAX);
    let model = captured.model.map(|i| &tx.models[i]).filter(|model| model.shape == change.shape);
    if let Some((model, ask)) = model.and_then(|m| Some((m, m.descriptor.should_sync?))) {
        let ask = |row: &[Value]| ask(&model.descriptor, row);
        // A row that could not be read was quarantined, but an earlier one of the record may have been sent.
        let was = change.before.as_deref().map(ask);
        if change.kind == EntryKind::Delete {
            return if was == Some(Ok(false)) { Err(Kept::Withheld) } else { Ok(()) };
        }
        if !ask(&change.row).map_err(|e| Kept::Quarantined(format!("should_sync cannot read it: {e}")))? {
            return Err(Kept::Withheld);
        }
        was_kept |= was.is_some_and(|was| was != Ok(true));
    }
    if was_kept {
        change.fields = None;
    }
    Ok(())
}

/// Longest mark and actor that a change carries, in bytes. An application may say anything.
const NOTE_MAX: usize = 256;

/// An atomic mark that is too long goes by a name that is as much its own.
fn named(mark: String) -> String {
    if mark.len() <= NOTE_MAX {
        mark
    } else {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, mark.as_bytes()).to_string()
    }
}

/// As much of an actor's name as is kept.
fn shortened(mut actor: String) -> String {
    actor.truncate(actor.floor_char_boundary(NOTE_MAX));
    actor
}

/// Why a change stays here.
enum Kept {
    Withheld,
    Quarantined(String),
}

fn add_withheld(tx: &Tx<'_>, count: u64) -> Result<(), Error> {
    if count > 0 {
        tx.conn
            .prepare_cached("UPDATE sync_replica SET withheld = withheld + ?1 WHERE id = 1")?
            .execute([count])?;
    }
    Ok(())
}

fn quarantine(conn: &Connection, change: &Change, reason: &str) -> Result<(), Error> {
    let data = (size(&change.row) <= ROW_MAX)
        .then(|| row_to_json(change.shape.fields.iter().map(String::as_str), &change.row));
    tracing::warn!(
        model = change.shape.model,
        record = %change.record,
        reason,
        "a captured row stays on this device"
    );
    conn.prepare_cached(
        "INSERT INTO sync_quarantine (model, record, at, reason, data) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![change.shape.model, change.record.to_string(), change.at, reason, data])?;
    Ok(())
}

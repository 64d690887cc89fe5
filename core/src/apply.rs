//! Apply: entries that the leader sent go into this device's log and tables (rule A).
//!
//! One transaction for a batch, with the position in it, so that a crash leaves the batch applied or not begun. Every
//! entry is appended; of each record only the last image in the batch is written to its table. Rows are first written
//! as they come. Where that meets a constraint, as when two records swap a unique value, all touched rows step out of
//! their tables and the last images go in: what the leader held at the end of a group satisfies its constraints, so
//! this does too.
//!
//! A part of a group that is larger than a batch is kept packed in `sync_incoming` until the group is whole.

mod images;
mod writer;

use std::{
    collections::{HashMap, hash_map},
    hash::{Hash, Hasher},
    sync::Arc,
};

use rusqlite::{ErrorCode, OptionalExtension, params};

use self::images::{Own, Settles, lasting, write_images, write_part};
pub(crate) use self::{
    images::Images,
    writer::{LocalValues, Writer, Writers, put_back, step_out},
};
use crate::{
    entry::{Batch, Body, Change, Entry, EntryKind, Group, Shape},
    error::Error,
    id::{Position, Seq, Term},
    inject::{self, Safeguard},
    layout::LogRows,
    life,
    log::{self, Appender, Authors, CHUNK, LogReader},
    overlay,
    park::{self, Identity},
    pending,
    record::RecordId,
    seal,
    store::{Mode, Replica, Tx, origin_of, origin_row},
    tree,
    value::Value,
    wire::Message,
};

/// What applying a batch came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Applied {
    /// The log reaches to here now.
    To(Position),
    /// A part of a larger group was put aside; the log is as it was.
    Staged(Seq),
    /// The batch does not follow on this log: pull again from the top.
    OutOfOrder(Position),
    /// The sender leads a term that is over, or this device leads.
    Stale(Term),
    /// An entry that this log holds differs from the one that was sent.
    Differs(Seq),
    /// The sender does not keep to the protocol: what is wrong with the batch.
    Unsound(&'static str),
}

/// A batch with what can be worked out beside the writer: each row as the log keeps it, and which entries have others of
/// the same record beside them.
#[derive(Debug)]
pub(crate) struct Arrived {
    batch: Batch,
    last: Seq,
    rows: LogRows,
    company: Vec<Company>,
}

/// Other entries of the same record.
#[derive(Clone, Copy, Debug, Default)]
struct Company {
    /// There is one before in the batch.
    again: bool,
    /// There is a later one in the batch whose image replaces this one's.
    replaced: bool,
    /// Where the record's image is that an earlier batch of the transaction left ([`Images`]).
    image: Option<u32>,
}

impl Arrived {
    pub(crate) fn of(batch: Batch) -> Self {
        Self { rows: LogRows::of(&batch.entries), company: company(&batch), last: batch.last(), batch }
    }

    /// Whether there is more in it than the writes of a moment.
    pub(crate) fn is_large(&self) -> bool {
        self.batch.entries.len() > LARGE
    }

    /// Whether it is applied in a moment, which came as `message`: a few small changes, and not the last of a large group.
    pub(crate) fn is_small(&self, message: &[u8]) -> bool {
        let is_part = self.batch.groups.first().is_some_and(|group| group.first <= self.batch.after.seq);
        self.batch.entries.len() <= SMALL && message.len() <= SMALL_MESSAGE && !is_part
    }

    /// Seq of its last entry.
    pub(crate) fn last(&self) -> Seq {
        self.last
    }

    /// Whether most of it is about records that were there before: then batches behind it may well be about the same.
    pub(crate) fn is_of_known(&self) -> bool {
        let is_known = |entry: &&Entry| matches!(&entry.body, Body::Change(change) if change.existed);
        self.batch.entries.iter().filter(is_known).count() * 2 > self.batch.entries.len()
    }

    fn forget_first(&mut self, count: usize) {
        self.batch.entries.drain(..count);
        self.rows.forget_first(count);
        // Those before are in the log, and the first of each record may be among them.
        self.company.drain(..count);
    }
}

/// See [`Arrived::is_small`]: entries, and bytes as they travel.
const SMALL: usize = 16;
const SMALL_MESSAGE: usize = 16 << 10;
/// See [`Arrived::is_large`].
const LARGE: usize = 1000;

/// A record of a model, found by the record: of two models seldom one has the id of the other.
#[derive(PartialEq, Eq)]
struct Of<'b>(&'b str, &'b RecordId);

impl Hash for Of<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.1.hash(state);
    }
}

fn company(batch: &Batch) -> Vec<Company> {
    // Of each record the last entry with an effect.
    let mut last: HashMap<Of<'_>, Option<usize>, _> =
        HashMap::with_capacity_and_hasher(batch.entries.len(), foldhash::fast::RandomState::default());
    let mut company = vec![Company::default(); batch.entries.len()];
    for (i, entry) in batch.entries.iter().enumerate() {
        let Body::Change(change) = &entry.body else { continue };
        let effective = change.effect() != EntryKind::Noop;
        match last.entry(Of(&change.shape.model, &change.record)) {
            hash_map::Entry::Vacant(place) => {
                place.insert(effective.then_some(i));
            }
            hash_map::Entry::Occupied(mut place) => {
                company[i].again = true;
                if effective && let Some(earlier) = place.insert(Some(i)) {
                    company[earlier].replaced = true;
                }
            }
        }
    }
    company
}

/// How rows get into their tables.
pub(crate) enum Rows<'i> {
    /// One after the other.
    AsTheyCome,
    /// The last of each record at the end of the transaction, which other batches may be part of; the caller sees to it
    /// ([`Images::write`]). Where that cannot be, as they come.
    AtTheEnd(&'i mut Images),
    /// All touched rows and those with pending changes step out first: for what met a constraint the other way.
    StepOutFirst,
}

/// After images were written where something is pending: tries again what is blocked of their records, and sees to it that
/// no row refers to nothing, neither one that is pending to what was `deleted`, nor one that came, if it `brings_orphan`s, to
/// what was deleted here.
fn make_sound(tx: &Tx<'_>, blocked: &[Change], deleted: bool, brings_orphan: bool) -> Result<(), Error> {
    if !blocked.is_empty() {
        overlay::rewrite(tx, blocked)?;
        if tx.foreign_triggers {
            tx.set_mode(Mode::Off)?;
        }
    }
    let steps_out = (deleted || !blocked.is_empty()) && overlay::step_out_orphans(tx)?;
    if steps_out || brings_orphan || !blocked.is_empty() {
        overlay::bring_back_parents(tx)?;
    }
    Ok(())
}

/// Whether the change's record refers to a row that is not there.
fn refers_to_nothing(tx: &Tx<'_>, change: &Change) -> Result<bool, Error> {
    let model = tx.models.iter().find(|m| m.descriptor.id == change.shape.model);
    let Some(model) = model.filter(|m| m.references.has_any()) else { return Ok(false) };
    Ok(model.references.refers_to_nothing(tx.conn, &change.key_in(&model.shape))?.is_some())
}

/// Whether a record that came refers to nothing here: to what was deleted here, which the leader has yet to hear of.
fn brings_orphan(tx: &Tx<'_>, parts: Parts, arrived: &Arrived) -> Result<bool, Error> {
    let mut brings = false;
    if !tx.models.iter().any(|model| model.references.has_any()) {
        return Ok(false);
    }
    each_part(tx, parts, arrived, |tx, part| {
        for entry in &part.batch.entries {
            let Body::Change(change) = &entry.body else { continue };
            brings = brings || refers_to_nothing(tx, change)?;
        }
        Ok(())
    })?;
    Ok(brings)
}

/// Records touched by a batch, for events: model, record, kind.
pub(crate) type Touched = Vec<(Arc<Shape>, RecordId, EntryKind)>;

/// Applies a batch. `message` is what it came as, for putting a part aside. Where it fails with a constraint
/// ([`is_constraint`]) in another way, it is to be tried again with [`Rows::StepOutFirst`].
pub(crate) fn apply(
    tx: &mut Tx<'_>,
    lead: Term,
    arrived: &mut Arrived,
    message: &[u8],
    rows: Rows<'_>,
    touched: Option<&mut Touched>,
) -> Result<Applied, Error> {
    let replica = tx.replica()?;
    let is_old = lead < replica.max_seen && !inject::is_off(Safeguard::TermCheck);
    if is_old || replica.lead.is_some() {
        return Ok(Applied::Stale(replica.max_seen));
    }
    let batch = &arrived.batch;
    if batch.entries.last().is_some_and(|last| last.term > lead) {
        return Ok(Applied::Unsound("an entry is of a higher term than its leader's"));
    }
    if lead > replica.max_seen {
        tx.set_terms(lead, None)?;
    }
    let sealed = seal::seal_all(tx)?;
    let (top, has_pending) = (replica.top, replica.has_pending || sealed.changes > 0);
    let staged: Option<(Seq, Seq)> = tx
        .conn
        .prepare_cached("SELECT min(first), max(last) FROM sync_incoming HAVING count(*) > 0")?
        .query_row([], |row| Ok((Seq(row.get(0)?), Seq(row.get(1)?))))
        .optional()?;

    if batch.after.seq < top.seq {
        match skip_held(tx, arrived, top)? {
            Skip::Differs(seq) => return Ok(Applied::Differs(seq)),
            Skip::Parts => return Ok(Applied::OutOfOrder(top)),
            Skip::All => return Ok(Applied::To(top)),
            Skip::Some => {}
        }
    }
    let batch = &arrived.batch;
    let continues = staged.is_some_and(|(_, last)| batch.after.seq == last);
    if continues
        && !matches!(batch.groups.as_slice(), [group] if Some(group.first) == staged.map(|(first, _)| first))
    {
        return Ok(Applied::Unsound("a part of a group is followed by something else"));
    }
    if batch.after != top && !continues {
        return Ok(Applied::OutOfOrder(top));
    }
    if staged.is_some() && !continues {
        // Parts of a group that another leader, or another try, has sent anew.
        tx.conn.execute("DELETE FROM sync_incoming", [])?;
    }
    if batch.is_open() {
        let (first, last) = (batch.after.seq.next(), batch.last());
        tx.conn
            .prepare_cached("INSERT INTO sync_incoming (first, last, message) VALUES (?1, ?2, ?3)")?
            .execute(params![first.0, last.0, message])?;
        return Ok(Applied::Staged(last));
    }
    let parts = if continues { Parts::Staged } else { Parts::None };
    if tx.foreign_triggers && !inject::is_off(Safeguard::Suppression) {
        tx.set_mode(Mode::Off)?;
    }
    let step_out_first = matches!(rows, Rows::StepOutFirst);
    let mut later = None;
    if let Rows::AtTheEnd(images) = rows {
        // A tree is looked at with its rows in place, and the application's triggers see one row after the other.
        if parts == Parts::None && !(has_pending && has_tree(tx)) && !tx.foreign_triggers {
            images.find(arrived);
            later = Some(images);
        } else {
            images.write(tx)?;
        }
    }
    let as_they_come = !step_out_first && later.is_none();
    let Appended { position, own, blocked } = append(tx, replica, parts, arrived, as_they_come, has_pending)?;
    if let Some(images) = later {
        if let Some(touched) = touched {
            note(touched, arrived);
        }
        images.take(tx, arrived, &own, has_pending);
        if images.is_full() {
            images.write(tx)?;
        }
        return Ok(Applied::To(position));
    }
    let steps_out = step_out_first || (has_pending && shows_circle(tx, parts, arrived)?);
    if steps_out {
        write_stepping_out(tx, parts, arrived, has_pending)?;
    }
    if has_pending {
        let deleted = steps_out || parts == Parts::Staged || deletes(&arrived.batch);
        let brings_orphan = steps_out || brings_orphan(tx, parts, arrived)?;
        make_sound(tx, if steps_out { &[] } else { &blocked }, deleted, brings_orphan)?;
    }
    if tx.foreign_triggers {
        tx.set_mode(Mode::Capture)?;
    }
    if let Some(touched) = touched {
        each_part(tx, parts, arrived, |_, part| {
            note(touched, part);
            Ok(())
        })?;
    }
    if parts == Parts::Staged {
        tx.conn.execute("DELETE FROM sync_incoming", [])?;
    }
    Ok(Applied::To(position))
}

fn note(touched: &mut Touched, part: &Arrived) {
    touched.extend(part.batch.entries.iter().filter_map(|entry| match &entry.body {
        Body::Change(c) => Some((Arc::clone(&c.shape), c.record.clone(), c.effect())),
        _ => None,
    }));
}

fn has_tree(tx: &Tx<'_>) -> bool {
    tx.models.iter().any(|model| model.descriptor.options.tree.is_some())
}

enum Skip {
    /// Everything in the batch is in the log already.
    All,
    /// The batch now begins behind the log's top, or did not overlap.
    Some,
    /// An entry is another than the log's, and of the same term: one of the two was changed from outside.
    Differs(Seq),
    /// The logs part: the batch answers where this one stood before it went another way (rule P).
    Parts,
}

/// Takes out of the batch what the log holds, after checking that it is the same.
fn skip_held(tx: &Tx<'_>, arrived: &mut Arrived, top: Position) -> Result<Skip, Error> {
    let batch = &arrived.batch;
    let held = batch.entries.iter().take_while(|e| e.seq <= top.seq).count();
    let (mut entries, mut groups) = (batch.entries[..held].iter(), batch.groups.iter().peekable());
    let (mut at, until) = (batch.after.seq, top.seq.min(batch.last()));
    let mut reader = LogReader::default();
    // In as many pieces as this device cuts it into, which need not be the sender's.
    while at < until {
        let mine = reader.read(tx.conn, at, until)?;
        at = mine.last().max(at.next());
        for own in &mine.entries {
            match entries.next() {
                Some(entry) if entry == own => {}
                Some(entry) if entry.term != own.term => return Ok(Skip::Parts),
                _ => return Ok(Skip::Differs(own.seq)),
            }
        }
        for own in &mine.groups {
            // One that goes on in the next piece is named there again.
            if groups.peek().is_some_and(|group| *group != own) {
                return Ok(Skip::Differs(own.first));
            }
            groups.next_if(|group| group.last <= at);
        }
    }
    if let Some(entry) = entries.next() {
        return Ok(Skip::Differs(entry.seq));
    }
    if let Some(group) = groups.next_if(|group| group.last <= until) {
        return Ok(Skip::Differs(group.first));
    }
    arrived.forget_first(held);
    let batch = &mut arrived.batch;
    batch.groups.retain(|g| g.last > top.seq);
    batch.after = top;
    Ok(if batch.entries.is_empty() { Skip::All } else { Skip::Some })
}

#[derive(Clone, Copy, PartialEq)]
enum Parts {
    None,
    Staged,
}

/// Calls `each` with the staged parts of the group, if there are any, and then with the batch: one in memory at a
/// time.
fn each_part(
    tx: &Tx<'_>,
    parts: Parts,
    arrived: &Arrived,
    mut each: impl FnMut(&Tx<'_>, &Arrived) -> Result<(), Error>,
) -> Result<(), Error> {
    if parts == Parts::Staged {
        let mut statement = tx.conn.prepare_cached("SELECT message FROM sync_incoming ORDER BY first")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let message: Vec<u8> = row.get(0)?;
            let damaged = |e: crate::wire::Unreadable| Error::Damaged(format!("a part put aside: {e}"));
            let Message::Entries { batch, .. } = Message::decode(&message).map_err(damaged)? else {
                return Err(Error::Damaged("a part put aside is another message".into()));
            };
            each(tx, &Arrived::of(batch.into_batch().map_err(damaged)?))?;
        }
    }
    each(tx, arrived)
}

/// Of which of a part's entries the log may have to keep the row before, since it has none of their records so far.
fn firsts(appender: &mut Appender<'_>, part: &Arrived) -> Result<Vec<bool>, Error> {
    let mut is_first = |(entry, company): (&Entry, &Company)| match &entry.body {
        Body::Change(change) if change.existed && !company.again && company.image.is_none() => {
            Ok(!appender.has_earlier(change)?)
        }
        _ => Ok(false),
    };
    part.batch.entries.iter().zip(&part.company).map(&mut is_first).collect()
}

/// Appends every entry to the log, with the groups, the vector of origins and the clock. Where rows are written as they come,
/// each part's are behind its entries: a part is unpacked once.
fn append(
    tx: &mut Tx<'_>,
    Replica { top, device, mut clock, .. }: Replica,
    parts: Parts,
    arrived: &Arrived,
    as_they_come: bool,
    has_pending: bool,
) -> Result<Appended, Error> {
    let newest = arrived.batch.entries.iter().map(|entry| entry.body.stamp()).max().unwrap_or(0);
    clock = arrived.batch.entries.iter().filter_map(|e| e.body.ranking_stamp()).fold(clock, u64::max);
    let mut waiting = if has_pending { pending::origins(tx.conn)? } else { Vec::new() };
    let (mut own, mut blocked) = (Own::default(), Vec::new());
    // Of a record that a group in parts has several changes of, another part may have written one that stood below.
    let all_stand = parts == Parts::None && (waiting.is_empty() || !pending::is_any_blocked(tx.conn)?);
    // The groups stand before their entries do: what one of them wrote is looked up by it for the next.
    for group in &arrived.batch.groups {
        let row = origin_row(tx.conn, group.origin, group.device)?;
        log::push_group(tx.conn, group, row, clock)?;
        let mut settled = 0;
        // What is settled out of turn lay over what is pending before it, and now lies under it.
        let in_turn = all_stand && !waiting.is_empty() && pending::is_next(tx.conn, row, group.tag)?;
        if !waiting.is_empty() {
            settled = settle(tx, &mut waiting, row, group, newest)?;
        }
        if settled > 0 {
            let whole = in_turn && settled as u64 == group.count();
            own.0.push((group.first..=group.last, if whole { Settles::All } else { Settles::Some }));
        }
        if Some(group.device) == device && (settled as u64) <= group.last_n.0 - group.first_n.0 {
            rolled_back(tx, group)?;
        }
    }
    let mut position = top;
    let (mut appender, mut authors) = (Appender::new(tx, top)?, Authors::default());
    each_part(tx, parts, arrived, |tx, part| {
        let mut groups = part.batch.groups.iter().peekable();
        let firsts = firsts(&mut appender, part)?;
        let mut next = 0;
        while let Some(entry) = part.batch.entries.get(next) {
            let chunk = next..(next + CHUNK).min(part.batch.entries.len());
            let alike = &part.batch.entries[chunk.clone()];
            if !firsts[chunk.clone()].contains(&true) && appender.push_alike(alike, &part.rows, next)? {
                next = chunk.end;
                continue;
            }
            match &entry.body {
                Body::Change(change) => {
                    let image = if firsts[next] { row_in_table(tx, change)? } else { None };
                    appender.push_change(entry, change, Some(part.rows.get(next)), image.as_deref())?;
                    if park::concerns(change) {
                        while groups.next_if(|group| group.last < entry.seq).is_some() {}
                        let group = groups.peek().ok_or_else(|| in_no_group(entry))?;
                        park::park(
                            tx,
                            &mut authors,
                            Identity::of(group, entry.n),
                            group.device,
                            entry.seq,
                            change,
                        )?;
                    }
                }
                _ => appender.push(entry)?,
            }
            next += 1;
        }
        let stamps = part.batch.entries.iter().filter_map(|entry| entry.body.ranking_stamp());
        clock = stamps.fold(clock, u64::max);
        if let Some(last) = part.batch.entries.last() {
            position = Position { term: last.term, seq: last.seq };
        }
        if inject::is_off(Safeguard::OneTransaction) {
            tx.conn.execute_batch("COMMIT; BEGIN IMMEDIATE")?;
            inject::crash_point("apply, in two", inject::Place::AfterCommit);
        }
        if as_they_come {
            blocked.extend(write_part(tx, part, &own, has_pending)?);
        }
        Ok(())
    })?;
    if arrived.batch.groups.is_empty() || parts == Parts::Staged {
        tx.set_clock(clock)?;
    }
    Ok(Appended { position, own, blocked })
}

/// Settles what is pending of a group that the log shows now, by whichever of its names. What is pending of another life of
/// its origin goes by the other from now on. `waiting` are the origins that have something pending.
fn settle(
    tx: &mut Tx<'_>,
    waiting: &mut Vec<i64>,
    row: i64,
    group: &Group,
    newest: u64,
) -> Result<usize, Error> {
    let mut settled = 0;
    if waiting.contains(&row) {
        settled = pending::settle(tx.conn, row, group.last_n, group.tag, newest)?;
        if let Some(change) = pending::overtaken(tx.conn, row, group)? {
            life::rename(tx, change)?;
            *waiting = pending::origins(tx.conn)?;
        }
    }
    let (origin, last_n) = life::other_name(group);
    if let Some(other) = origin_of(tx.conn, origin)?.filter(|other| waiting.contains(other)) {
        settled += pending::settle(tx.conn, other, last_n, group.tag, newest)?;
    }
    Ok(settled)
}

/// What appending a batch came to.
struct Appended {
    /// The top of the log.
    position: Position,
    /// Entries that show what was pending here until now.
    own: Own,
    /// Records that were written as they come, of which something is blocked.
    blocked: Vec<Change>,
}

/// A change of this device came back from the log that the database does not know of: it is an older state of itself, or
/// a copy (rule O). Its numbers do not meet those of the other: each opening mints an origin.
fn rolled_back(tx: &mut Tx<'_>, group: &Group) -> Result<(), Error> {
    if tx.minted.is_some_and(|minted| minted.origin == group.sealed_as().0) {
        // Its memory is as old: what is sealed next may not number on from there.
        *tx.minted = None;
    }
    let first = tx
        .conn
        .prepare_cached("UPDATE sync_replica SET rolled_back = ?1 WHERE id = 1 AND rolled_back = 0")?
        .execute([group.last.0])?;
    if first == 1 {
        tracing::warn!(
            entry = %group.last,
            "the log holds changes that this device made and its database does not know: it was restored from an older \
             state, or copied. They are taken like everybody else's; nothing is lost"
        );
    } else {
        tx.conn
            .prepare_cached("UPDATE sync_replica SET rolled_back = ?1 WHERE id = 1")?
            .execute([group.last.0])?;
    }
    Ok(())
}

fn in_no_group(entry: &Entry) -> Error {
    Error::Damaged(format!("change {} of a batch is in no group", entry.seq))
}

/// The row as the table has it, where an entry is the first of its record in this log.
fn row_in_table(tx: &Tx<'_>, change: &Change) -> Result<Option<Vec<Value>>, Error> {
    let Some(model) = tx.models.iter().find(|m| m.shape == change.shape) else { return Ok(None) };
    model.row(tx.conn, &change.key_in(&model.shape))
}

/// Writes the last image of each record into the tables, from which all that are touched or pending stepped out.
fn write_stepping_out(
    tx: &mut Tx<'_>,
    parts: Parts,
    arrived: &Arrived,
    has_pending: bool,
) -> Result<(), Error> {
    let mut kept = LocalValues::new();
    let pending = if has_pending { overlay::pending_records(tx)? } else { Vec::new() };
    for change in &pending {
        step_out(tx, change, &mut kept)?;
    }
    each_part(tx, parts, arrived, |tx, part| step_out_all(tx, part, &mut kept))?;
    each_part(tx, parts, arrived, write_last).map_err(|error| explain(tx, error))?;
    overlay::lay_over(tx, &pending)?;
    put_back(tx, kept)
}

/// Whether it may take rows away: a change without effect may have stood in its table until now.
fn deletes(batch: &Batch) -> bool {
    let may = |entry: &Entry| matches!(entry.body.kind(), EntryKind::Delete | EntryKind::Noop);
    batch.entries.iter().any(may)
}

/// Whether what is pending here and what came make a circle of a tree: one of the two has to step out.
fn shows_circle(tx: &Tx<'_>, parts: Parts, arrived: &Arrived) -> Result<bool, Error> {
    let mut shows = false;
    if !has_tree(tx) {
        return Ok(false);
    }
    each_part(tx, parts, arrived, |tx, part| {
        for entry in &part.batch.entries {
            let Body::Change(change) = &entry.body else { continue };
            shows = shows || tree::is_in_circle(tx, change)?;
        }
        Ok(())
    })?;
    Ok(shows)
}

/// Whether a statement met a constraint of the database.
pub(crate) fn is_constraint(error: &Error) -> bool {
    matches!(error, Error::Database { source, .. }
        if source.sqlite_error_code() == Some(ErrorCode::ConstraintViolation))
}

/// A constraint that even the group's final images break is one that the leader's database does not have.
fn explain(tx: &Tx<'_>, error: Error) -> Error {
    match error {
        Error::Database { source, .. }
            if source.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) =>
        {
            let (model, table) = tx
                .models
                .iter()
                .find(|m| source.to_string().contains(&format!("{}.", m.descriptor.table)))
                .map_or(("?", "?"), |m| (m.descriptor.id, m.descriptor.table.as_str()));
            Error::Table {
                model: model.to_owned(),
                table: table.to_owned(),
                reason: format!(
                    "a row that the leader's database holds breaks a constraint of this one ({source})"
                ),
                remedy: "Bring both databases to the same schema, with tidelog::migrate".to_owned(),
            }
        }
        other => other,
    }
}

/// Takes all rows of a part out of their tables, keeping what is local.
fn step_out_all(tx: &Tx<'_>, part: &Arrived, kept: &mut LocalValues) -> Result<(), Error> {
    let mut writers = Writers::default();
    for (_, change, _) in lasting(tx, part) {
        if let Some(writer) = writers.of(tx, &change.shape)? {
            writer.step_out(tx, change, kept)?;
        }
    }
    Ok(())
}

/// Writes a part's images, but only where no later entry of the record is in the log: one that another part of the group
/// replaces may be in the way of a third record's.
fn write_last(tx: &Tx<'_>, part: &Arrived) -> Result<(), Error> {
    for (entry, change, company) in lasting(tx, part) {
        if !is_replaced(tx, entry.seq, change)? {
            write_images(tx, std::iter::once((change, company.again)), false)?;
        }
    }
    Ok(())
}

/// Whether the log has a later entry of the record.
fn is_replaced(tx: &Tx<'_>, seq: Seq, change: &Change) -> Result<bool, Error> {
    let mut later = tx.conn.prepare_cached(
        "SELECT 1 FROM sync_entry WHERE record = ?2 AND seq > ?3 AND kind IN (1, 2)
            AND model = (SELECT id FROM sync_model WHERE name = ?1) LIMIT 1",
    )?;
    Ok(later.exists(params![change.shape.model, change.record, seq.0])?)
}

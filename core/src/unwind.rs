//! Unwind: the tail of a log that parts from the leader's goes back into pending (rule U), so that nothing of it is lost:
//! the leader takes it like any other change, or a copy of it was there before and settles it.
//!
//! It goes from the top down, in chunks of whole groups, one transaction each. Every chunk leaves a shorter log that is as
//! sound as the longer one was, so where it stops, by a crash or otherwise, the next subscription finds the common prefix
//! anew. What a change had seen is not forgotten: a base in the tail becomes the common prefix, and what stood between the
//! two is listed in `seen`. All of pending gets that before anything is removed, so it is worked out once for each change,
//! however long the tail.
//!
//! What an entry was made of stands in its own columns in most cases, and is copied as it is; so is the row of a table,
//! which shows after the unwinding what it showed before, as a pending change instead of an entry. Only where an entry came
//! to something else than its author made of it is the row written anew.

use std::collections::{HashMap, HashSet};

use rusqlite::{
    OptionalExtension, Row, params,
    types::{ToSqlOutput, ValueRef},
};

use crate::{
    entry::{Body, Change, Decision, EntryKind, Seen},
    error::Error,
    id::{Origin, OriginSeq, Position, Seq, Term},
    inject::{self, Safeguard},
    layout::{Layouts, Numbered, logged_before},
    life,
    log::{self, LogReader},
    overlay, pending,
    record::RecordId,
    seal,
    store::{Replica, Tx},
};

/// Entries that one transaction takes back, unless one group has more; and pending changes whose base one looks at. Some
/// 50 ms of holding the database's one writer.
pub(crate) const CHUNK: u64 = 2048;

fn chunk() -> u64 {
    CHUNK.min(inject::batch_entries() as u64)
}

/// An unwinding under way. What it remembers from chunk to chunk makes it quick; all that counts is in the database.
#[derive(Clone, Debug)]
pub(crate) struct Unwinding {
    /// Whose log this one parts from,
    lead: Term,
    /// behind this entry.
    common: Seq,
    /// The top of the log as the leader was told of it, or as the last chunk left it.
    top: Position,
    /// Of pending changes up to this id the base is in what stays.
    mapped: i64,
}

/// What a chunk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwound {
    /// There is more to do.
    More,
    /// The log is a prefix of the leader's.
    Done,
    /// A higher term was seen, or this device leads: nothing was done.
    Stale(Term),
    /// The log is not what the leader was told of: nothing was done.
    Moved,
    /// What would have to go is compacted: nothing was done.
    BelowFloor,
}

impl Unwinding {
    /// `common` is what `lead`'s leader answered to `top`.
    pub(crate) fn new(lead: Term, common: Seq, top: Position) -> Self {
        Self { lead, common, top, mapped: i64::MIN }
    }

    /// Down to where it goes.
    pub(crate) fn common(&self) -> Seq {
        self.common
    }

    /// One chunk.
    pub(crate) fn chunk(&mut self, tx: &mut Tx<'_>) -> Result<Unwound, Error> {
        let replica = tx.replica()?;
        if self.lead < replica.max_seen || replica.lead.is_some() {
            return Ok(Unwound::Stale(replica.max_seen));
        }
        if self.lead > replica.max_seen {
            tx.set_terms(self.lead, None)?;
        }
        seal::seal_all(tx)?;
        if replica.top != self.top {
            return Ok(Unwound::Moved);
        }
        if replica.top.seq <= self.common {
            return Ok(Unwound::Done);
        }
        if let Some((first, _)) = group_across(tx, self.common)? {
            self.common = Seq(first - 1);
        }
        let Some(bottom) = bottom(tx, &replica, self.common)? else { return Ok(Unwound::BelowFloor) };
        if !self.map_bases(tx)? {
            return Ok(Unwound::More);
        }
        self.top = take_back(tx, &replica, bottom, self.common)?;
        Ok(if self.top.seq <= self.common { Unwound::Done } else { Unwound::More })
    }

    /// Gives pending changes whose base goes the common prefix for one. Whether that is true of all now.
    fn map_bases(&mut self, tx: &Tx<'_>) -> Result<bool, Error> {
        const WAITING: &str = "SELECT id, base_seq, seen FROM sync_pending WHERE id > ?1 AND base_seq > ?2
            ORDER BY id LIMIT ?3";
        let waiting: Vec<(i64, u64, String)> = tx
            .conn
            .prepare_cached(WAITING)?
            .query_map(params![self.mapped, self.common.0, chunk()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<Result<_, _>>()?;
        let mut mapping = Mapping::new(tx, self.common)?;
        for (id, base, seen) in &waiting {
            self.mapped = *id;
            if let Some(seen) = mapping.map(tx, None, Seq(*base), seen)? {
                tx.conn
                    .prepare_cached(
                        "UPDATE sync_pending SET base_term = ?2, base_seq = ?3, seen = ?4 WHERE id = ?1",
                    )?
                    .execute(params![id, mapping.base.0, mapping.base.1, seen])?;
            }
        }
        let all = (waiting.len() as u64) < chunk();
        if all {
            let last: Option<i64> = tx
                .conn
                .prepare_cached("SELECT max(id) FROM sync_pending")?
                .query_row([], |row| row.get(0))?;
            self.mapped = last.unwrap_or(self.mapped);
        }
        Ok(all)
    }
}

/// Down to where the next chunk goes: between groups, and not below the floor; `None` where it would have to.
fn bottom(tx: &Tx<'_>, replica: &Replica, common: Seq) -> Result<Option<Seq>, Error> {
    let top = replica.top.seq;
    let aim = common.max(Seq(top.0.saturating_sub(chunk())));
    let bottom = match group_across(tx, aim)? {
        Some((_, last)) if last < top.0 => Seq(last),
        Some((first, _)) => Seq(first - 1),
        None => aim,
    };
    Ok((bottom >= replica.floor).then_some(bottom))
}

/// The first and the last entry of the group that is whole only behind `seq`, if there is one.
fn group_across(tx: &Tx<'_>, seq: Seq) -> Result<Option<(u64, u64)>, Error> {
    let group: Option<(u64, u64)> = tx
        .conn
        .prepare_cached("SELECT first, last FROM sync_group WHERE first <= ?1 ORDER BY first DESC LIMIT 1")?
        .query_row([seq.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(group.filter(|(_, last)| *last > seq.0))
}

/// Takes the entries behind `bottom` out of the log. Where the log then ends.
fn take_back(tx: &mut Tx<'_>, replica: &Replica, bottom: Seq, common: Seq) -> Result<Position, Error> {
    let term = if bottom == Seq(0) { Term::ZERO } else { log::term_at(tx.conn, bottom)? };
    // It stands in the newest group otherwise, which goes.
    tx.set_clock(replica.clock)?;
    let mut back = Back::new(tx, replica, common)?;
    back.groups(tx, bottom)?;
    let Back { rewritten, members, .. } = back;
    forget_outcomes(tx, bottom)?;
    for sql in [
        "DELETE FROM sync_entry WHERE seq > ?1",
        "DELETE FROM sync_group WHERE first > ?1",
        "DELETE FROM sync_term WHERE first > ?1",
    ] {
        tx.conn.prepare_cached(sql)?.execute([bottom.0])?;
    }
    // Parts of groups that were put aside follow on what went.
    tx.conn.execute("DELETE FROM sync_incoming", [])?;
    for device in members {
        tell_member_by_log(tx, &device)?;
    }
    if !rewritten.is_empty() {
        overlay::rewrite(tx, &rewritten.into_values().collect::<Vec<_>>())?;
    }
    Ok(Position { term, seq: bottom })
}

/// What is being put back, last first.
struct Back {
    layouts: Layouts,
    reader: LogReader,
    mapping: Mapping,
    /// Id of the change that was put back last, or what is no lower than any can have.
    id: i64,
    /// Models' numbers with their priority, and the layout in which their tables are.
    models: HashMap<i64, (i64, i64)>,
    any_blocked: bool,
    /// A change of each record whose row is to be written anew.
    rewritten: HashMap<(i64, RecordId), Change>,
    /// Devices whose membership goes.
    members: Vec<String>,
}

/// What the changes of a group share, as pending has it.
struct Shared {
    origin: i64,
    tag: i64,
    prev: i64,
    was: Option<String>,
    base: (String, u64),
    seen: String,
    first_n: u64,
    last_n: u64,
}

impl Back {
    fn new(tx: &Tx<'_>, replica: &Replica, common: Seq) -> Result<Self, Error> {
        let first: Option<i64> =
            tx.conn.prepare_cached("SELECT min(id) FROM sync_pending")?.query_row([], |row| row.get(0))?;
        let clock = i64::try_from(replica.clock).unwrap_or(i64::MAX - 1);
        let mut models = HashMap::new();
        for model in tx.models {
            let Numbered { model: number, layout } = tx.numbers.of(tx.conn, &model.shape)?;
            models.insert(number, (model.descriptor.options.priority as i64, layout));
        }
        let blocked = pending::is_any_blocked(tx.conn)?;
        Ok(Self {
            layouts: Layouts::default(),
            reader: LogReader::default(),
            mapping: Mapping::new(tx, common)?,
            // What is sealed from now on has a higher stamp than the clock.
            id: first.unwrap_or(i64::MAX).min(clock + 1),
            models,
            any_blocked: blocked,
            rewritten: HashMap::new(),
            members: Vec::new(),
        })
    }

    /// Puts back every group behind `bottom`.
    fn groups(&mut self, tx: &Tx<'_>, bottom: Seq) -> Result<(), Error> {
        let mut statement = tx.conn.prepare_cached(
            "SELECT first, last, origin, tag, base_term, base_seq, seen, first_n, last_n, prev, was
             FROM sync_group
             WHERE first > ?1 ORDER BY first DESC",
        )?;
        let mut groups = statement.query([bottom.0])?;
        while let Some(group) = groups.next()? {
            let (first, last) = (Seq(group.get(0)?), Seq(group.get(1)?));
            let mut shared = Shared {
                origin: group.get(2)?,
                tag: group.get(3)?,
                prev: group.get(9)?,
                was: group.get(10)?,
                base: (group.get(4)?, group.get(5)?),
                seen: group.get(6)?,
                first_n: group.get(7)?,
                last_n: group.get(8)?,
            };
            let base = Seq(shared.base.1);
            if let Some(seen) = self.mapping.map(tx, Some(shared.origin), base, &shared.seen)? {
                shared.base.clone_from(&self.mapping.base);
                shared.seen = seen;
            }
            self.entries(tx, first, last, &shared)?;
        }
        Ok(())
    }

    fn entries(&mut self, tx: &Tx<'_>, first: Seq, last: Seq, group: &Shared) -> Result<(), Error> {
        let mut statement = tx.conn.prepare_cached(
            "SELECT seq, kind, n, model, record, layout, existed, fields, data, before, stamp, coalesce(rank, stamp), at,
                mark, actor, decides, change IS NOT NULL
             FROM sync_entry WHERE seq >= ?1 AND seq <= ?2 ORDER BY seq DESC",
        )?;
        let mut rows = statement.query(params![first.0, last.0])?;
        while let Some(row) = rows.next()? {
            self.entry(tx, row, group)?;
        }
        Ok(())
    }

    fn entry(&mut self, tx: &Tx<'_>, row: &Row<'_>, group: &Shared) -> Result<(), Error> {
        let seq = Seq(row.get(0)?);
        let (kind, n, data): (i64, Option<u64>, Option<String>) = (row.get(1)?, row.get(2)?, row.get(8)?);
        if kind == EntryKind::Member as i64 {
            let data = data.unwrap_or_default();
            self.members.push(log::member_of(&data).ok_or_else(|| damaged(seq, "member"))?.0.to_string());
            let what = Kept { kind, data: Some(data), ..Kept::default() };
            return self.put(tx, row, group, seq, &what);
        }
        let (model, layout): (i64, i64) = (row.get(3)?, row.get(5)?);
        let came_to_else: bool = row.get(16)?;
        if self.is_rewritten(tx, row, n.is_none() || came_to_else)? {
            let record = RecordId::read(row.get_ref(4)?)?;
            if !self.rewritten.contains_key(&(model, record.clone())) {
                let change = self.change(tx, seq)?;
                self.rewritten.insert((model, record), overlay::key_of(&change));
            }
        }
        if n.is_none() {
            // A cascade makes it anew, wherever the change stands that it came of.
            return Ok(());
        }
        let kept = if came_to_else {
            self.as_made(tx, seq)?
        } else {
            let before = self.before(tx, row, seq, kind, layout)?;
            Kept { kind, fields: row.get(7)?, data, before }
        };
        self.put(tx, row, group, seq, &kept)
    }

    /// Whether the row of the entry's record has to be written: its table does not show, as pending changes laid over
    /// what then stands, what it shows now.
    fn is_rewritten(&self, tx: &Tx<'_>, row: &Row<'_>, came_to_else: bool) -> Result<bool, Error> {
        let (model, layout): (i64, i64) = (row.get(3)?, row.get(5)?);
        let Some((_, own)) = self.models.get(&model) else { return Ok(false) };
        if came_to_else || *own != layout {
            return Ok(true);
        }
        if !self.any_blocked {
            return Ok(false);
        }
        let mut blocked = tx.conn.prepare_cached(
            "SELECT 1 FROM sync_pending WHERE model = ?1 AND record = ?2 AND state = 'blocked' LIMIT 1",
        )?;
        let record = RecordId::read(row.get_ref(4)?)?;
        Ok(blocked.exists(params![model, record])?)
    }

    fn change(&mut self, tx: &Tx<'_>, seq: Seq) -> Result<Change, Error> {
        match self.reader.change(tx.conn, seq)? {
            Some((entry, _)) => match entry.body {
                Body::Change(change) => Ok(change),
                _ => Err(damaged(seq, "change")),
            },
            None => Err(damaged(seq, "change")),
        }
    }

    /// What the author made of the record, where the entry came to something else.
    fn as_made(&mut self, tx: &Tx<'_>, seq: Seq) -> Result<Kept, Error> {
        let change = self.change(tx, seq)?;
        Ok(Kept {
            kind: change.kind as i64,
            fields: change.fields.as_ref().map(|fields| change.shape.field_names(fields)),
            data: Some(seal::row_text(&change, change.kind, &change.row)),
            before: pending::before_text(&change),
        })
    }

    /// The record's row before the entry, which came to what its author made of it: so it is what he saw.
    fn before(
        &mut self,
        tx: &Tx<'_>,
        row: &Row<'_>,
        seq: Seq,
        kind: i64,
        layout: i64,
    ) -> Result<Option<String>, Error> {
        let existed: Option<bool> = row.get(6)?;
        if existed != Some(true) || kind == EntryKind::Noop as i64 {
            return Ok(None);
        }
        if let Some(image) = row.get::<_, Option<String>>(9)? {
            return Ok(Some(image));
        }
        let model: i64 = row.get(3)?;
        let before: Option<(i64, i64, Option<String>)> = tx
            .conn
            .prepare_cached(
                "SELECT kind, layout, data FROM sync_entry WHERE model = ?1 AND record = ?2 AND kind IN (1, 2) AND seq < ?3
                 ORDER BY seq DESC LIMIT 1",
            )?
            .query_row(params![model, ToSqlOutput::Borrowed(row.get_ref(4)?), seq.0], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        match before {
            Some((1, said, data)) if said == layout => Ok(data),
            Some((1, ..)) => {
                let change = self.change(tx, seq)?;
                let said = logged_before(tx.conn, &mut self.layouts, &change, seq)?;
                let row = said.as_ref().and_then(|said| said.row_as(&change.shape));
                let row: Option<Vec<_>> =
                    row.map(|row| row.into_iter().map(|value| value.cloned().unwrap_or_default()).collect());
                Ok(row.map(|row| seal::row_text(&change, EntryKind::Upsert, &row)))
            }
            _ => Ok(None),
        }
    }

    /// Puts a change in front of all that is pending.
    fn put(
        &mut self,
        tx: &Tx<'_>,
        row: &Row<'_>,
        group: &Shared,
        seq: Seq,
        kept: &Kept,
    ) -> Result<(), Error> {
        if inject::is_off(Safeguard::TailRequeue) {
            return Ok(());
        }
        let n: u64 = row.get::<_, Option<u64>>(2)?.ok_or_else(|| damaged(seq, "number"))?;
        // No higher than its stamp: by that it is found when the log shows it again.
        self.id = (self.id - 1).min(row.get(10)?);
        let model: i64 = row.get::<_, Option<i64>>(3)?.unwrap_or_default();
        let priority = self.models.get(&model).map_or(1, |(priority, _)| *priority);
        let group_last = if n == group.first_n { group.last_n } else { 0 };
        let text = |column: usize| row.get::<_, Option<String>>(column);
        let number = |column: usize| row.get::<_, Option<i64>>(column).map(Option::unwrap_or_default);
        let record = ToSqlOutput::Borrowed(match row.get_ref(4)? {
            ValueRef::Null => ValueRef::Text(b""),
            record => record,
        });
        tx.conn
            .prepare_cached(
                "INSERT INTO sync_pending (id, origin, n, tag, base_term, base_seq, seen, group_last, stamp, rank, at,
                    kind, model, record, existed, layout, fields, data, before, mark, actor, decides, priority, prev,
                    was)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20,
                    ?21, ?22, ?23, ?24, ?25)",
            )?
            .execute(params![
                self.id,
                group.origin,
                n,
                group.tag,
                group.base.0,
                group.base.1,
                group.seen,
                group_last,
                number(10)?,
                number(11)?,
                number(12)?,
                kept.kind,
                model,
                record,
                number(6)?,
                number(5)?,
                kept.fields,
                kept.data,
                kept.before,
                text(13)?,
                text(14)?,
                text(15)?,
                priority,
                group.prev,
                group.was
            ])?;
        Ok(())
    }
}

/// A change as its author made it, in the columns that pending has for it.
#[derive(Default)]
struct Kept {
    kind: i64,
    fields: Option<String>,
    data: Option<String>,
    before: Option<String>,
}

/// Undoes what the entries behind `bottom` made of conflicts and dead letters.
fn forget_outcomes(tx: &Tx<'_>, bottom: Seq) -> Result<(), Error> {
    let deciding: Vec<String> = tx
        .conn
        .prepare_cached("SELECT decides FROM sync_entry WHERE seq > ?1 AND decides IS NOT NULL")?
        .query_map([bottom.0], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for text in deciding {
        let (sql, id) = match pending::read_decision(Some(text))? {
            Some(Decision::Resolves(id)) => {
                ("UPDATE sync_conflict SET decided = NULL WHERE id = ?1 AND decided > ?2", id)
            }
            Some(Decision::Retries(id) | Decision::Discards(id)) => {
                ("UPDATE sync_dead_letter SET decided = NULL WHERE id = ?1 AND decided > ?2", id)
            }
            _ => continue,
        };
        tx.conn.prepare_cached(sql)?.execute(params![id.as_bytes(), bottom.0])?;
    }
    // What waits in the tail gave up what waited of the same record before.
    tx.conn
        .prepare_cached(
            "UPDATE sync_conflict SET superseded = NULL WHERE superseded > ?1 AND seq IN (
                SELECT e.seq FROM sync_conflict c JOIN sync_entry t ON t.seq = c.seq
                    JOIN sync_entry e ON e.model = t.model AND e.record = t.record
                WHERE c.seq > ?1 AND c.open AND e.seq <= ?1)",
        )?
        .execute([bottom.0])?;
    tx.conn.prepare_cached("DELETE FROM sync_conflict WHERE seq > ?1")?.execute([bottom.0])?;
    tx.conn.prepare_cached("DELETE FROM sync_dead_letter WHERE seq > ?1")?.execute([bottom.0])?;
    Ok(())
}

/// Makes what is known of a device's membership what the log says of it.
fn tell_member_by_log(tx: &Tx<'_>, device: &str) -> Result<(), Error> {
    let said: Vec<(u64, u8)> = tx
        .conn
        .prepare_cached("SELECT seq, data ->> 'role' FROM sync_entry WHERE kind = 4 AND data ->> 'device' = ?1 ORDER BY seq")?
        .query_map([device], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let (first, role) = (said.first().map(|(seq, _)| *seq), said.last().map_or(0, |(_, role)| *role));
    tx.conn
        .prepare_cached("UPDATE sync_device SET member = ?2, role = ?3 WHERE device = ?1")?
        .execute(params![device, first, role])?;
    Ok(())
}

fn damaged(seq: Seq, what: &str) -> Error {
    Error::Damaged(format!("entry {seq} is a change without its {what}"))
}

/// What becomes of bases in the tail.
struct Mapping {
    common: Seq,
    /// The common prefix's position, as pending has it.
    base: (String, u64),
    /// Origins that have changes in the tail: row and name.
    origins: Vec<(i64, Origin)>,
    /// What stands between the common prefix and the base that was asked for last.
    last: Option<(Seq, Vec<Newest>)>,
}

/// The last change of an origin by what it was sealed as, and the row of that one, unless it goes by another.
type Newest = (Option<i64>, Seen);

impl Mapping {
    fn new(tx: &Tx<'_>, common: Seq) -> Result<Self, Error> {
        let term = if common == Seq(0) { Term::ZERO } else { log::term_at(tx.conn, common)? };
        let mut statement = tx.conn.prepare_cached(
            "SELECT o.id, o.origin FROM sync_origin o WHERE ?1 < (
                SELECT first FROM sync_group WHERE origin = o.id ORDER BY last_n DESC LIMIT 1)",
        )?;
        let rows = statement
            .query_map([common.0], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<Vec<(i64, String)>, _>>()?;
        let named = |(row, text): (i64, String)| match text.parse() {
            Ok(origin) => Ok((row, Origin(origin))),
            Err(_) => Err(Error::Damaged(format!("`{text}` is no origin"))),
        };
        let origins = rows.into_iter().map(named).collect::<Result<_, _>>()?;
        Ok(Self { common, base: (term.to_text(), common.0), origins, last: None })
    }

    /// What a change with this base has seen, once its base is the common prefix: what it lists, and what stood up to its
    /// base. `None` where the base stays. What is of its `own` origin it has seen anyway.
    fn map(&mut self, tx: &Tx<'_>, own: Option<i64>, base: Seq, seen: &str) -> Result<Option<String>, Error> {
        if base <= self.common {
            return Ok(None);
        }
        if self.last.as_ref().is_none_or(|(last, _)| *last != base) {
            self.last = Some((base, self.between(tx, base)?));
        }
        let mut seen = Seen::from_json(seen)
            .ok_or_else(|| Error::Damaged("a change has a damaged list of what was seen".into()))?;
        for (row, newest) in self.last.iter().flat_map(|(_, between)| between) {
            if row.is_some() && *row == own {
                continue;
            }
            let mut others = Vec::with_capacity(seen.len() + 1);
            for listed in seen {
                if !is_before(tx, *row, listed, *newest)? {
                    others.push(listed);
                }
            }
            seen = others;
            seen.push(*newest);
        }
        Ok(Some(Seen::to_json(&seen)))
    }

    /// Of each origin the last change between the common prefix and the base, by what it was sealed as.
    fn between(&self, tx: &Tx<'_>, base: Seq) -> Result<Vec<Newest>, Error> {
        let mut newest = tx.conn.prepare_cached(
            "SELECT last_n, tag, was, prev FROM sync_group WHERE origin = ?1 AND first <= ?2 AND first > ?3
             ORDER BY last_n DESC LIMIT 1",
        )?;
        let (mut between, mut passed) = (Vec::new(), HashSet::new());
        for (row, origin) in &self.origins {
            let last: Option<(u64, i64, Option<String>, i64)> = newest
                .query_row(params![row, base.0, self.common.0], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })
                .optional()?;
            let Some((n, tag, was, prev)) = last else { continue };
            let (newest, before) =
                life::sealed_as(*origin, OriginSeq(n), tag as u64, was.as_deref(), prev as u64)?;
            passed.extend(before);
            between.push((was.is_none().then_some(*row), newest));
        }
        between.retain(|(_, newest)| !passed.contains(newest));
        Ok(between)
    }
}

/// Whether what was seen of a change that the log has, in the row of its origin unless it goes by another, is all that was
/// seen of one that is listed. One that stands further on may be of another life.
fn is_before(tx: &Tx<'_>, row: Option<i64>, listed: Seen, newest: Seen) -> Result<bool, Error> {
    if listed.origin != newest.origin || listed.n > newest.n {
        return Ok(false);
    }
    Ok(match row {
        _ if listed.tag == newest.tag => true,
        Some(row) => log::tag_at(tx.conn, row, listed.n)? == Some(listed.tag),
        None => false,
    })
}

#[cfg(test)]
mod tests;

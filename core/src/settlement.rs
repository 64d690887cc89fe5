//! Settlements: what became of the changes that this device made.
//!
//! Every change gets an entry, whatever becomes of it, so the log itself is the durable stream of settlements: whoever
//! keeps the position of the last one it dealt with goes on from there, after a restart too. What a rejoin took back is told
//! again when the log shows it again: it may have come to something else.

use std::collections::VecDeque;

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    conflict::{self, ConflictId},
    dead_letter::{self, DeadLetterId},
    entry::{Body, Change, EntryKind},
    error::Error,
    id::{DeviceId, Position, Seq},
    layout::{Layouts, logged_before},
    library::Library,
    log::{self, LogReader},
    record::RecordId,
    resolve::{Effect, Loser},
    row::Row,
    store,
};

/// What became of a change.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It stands as its author made it. What it met may not: [`Library::why`](crate::Library::why) says so.
    Applied,
    /// It stands in part, or beside others' changes; the row says what the record is now.
    Merged {
        /// What of it, or of what was there, did not stand.
        conflicts: Vec<ConflictId>,
    },
    /// Others' changes stand instead.
    Superseded {
        /// What did not stand. Empty for a decision that somebody else had made before.
        conflicts: Vec<ConflictId>,
    },
    /// A person is to decide; what was there stands meanwhile.
    Conflict {
        /// What waits.
        conflicts: Vec<ConflictId>,
    },
    /// It was refused.
    Rejected {
        /// Where its values are.
        dead_letter: Option<DeadLetterId>,
        /// Why.
        reason: String,
    },
}

/// A change of this device that is in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement {
    /// Where its entry stands. Keep that of the last one that was dealt with, to go on from there.
    pub position: Position,
    /// Sync id of the model.
    pub model: String,
    /// Canonical id of the record.
    pub record: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The record as the log had it then; `None` if it was gone.
    pub row: Option<Row>,
}

/// What became of the change of the entry at `seq`.
pub(crate) fn outcome(conn: &Connection, seq: Seq, change: &Change) -> Result<Outcome, Error> {
    let Some(outcome) = &change.outcome else { return Ok(Outcome::Applied) };
    if let Some(reason) = &outcome.refused {
        let dead_letter = dead_letter::of_entry(conn, seq)?;
        return Ok(Outcome::Rejected { dead_letter, reason: reason.clone() });
    }
    let of_entry = if outcome.dropped.is_empty() { Vec::new() } else { conflict::of_entry(conn, seq)? };
    let is_open = of_entry.iter().any(|(_, open)| *open);
    let conflicts = of_entry.into_iter().map(|(id, _)| id).collect();
    let only_ours_lost = outcome.dropped.iter().all(|dropped| dropped.loser == Loser::Remote);
    Ok(match &outcome.effect {
        Effect::Row { row, .. } if *row == change.row => Outcome::Applied,
        Effect::Gone => Outcome::Applied,
        _ if is_open => Outcome::Conflict { conflicts },
        Effect::None if only_ours_lost => Outcome::Superseded { conflicts },
        _ => Outcome::Merged { conflicts },
    })
}

/// What the entry's change left of the record.
pub(crate) fn row_after(conn: &Connection, seq: Seq, change: &Change) -> Result<Option<Row>, Error> {
    Ok(match change.effect() {
        EntryKind::Upsert => Some(Row::in_shape(&change.shape, change.row_after(), None)),
        EntryKind::Delete => None,
        _ => {
            let said = logged_before(conn, &mut Layouts::default(), change, seq)?;
            said.and_then(|said| Some(Row::in_shape(&said.shape, said.row.as_deref()?, None)))
        }
    })
}

/// Settlements that are read at once.
const PAGE: usize = 256;

/// This device's settlements behind `after`, up to [`PAGE`]; and up to where the log was looked through. Where the log does not
/// hold that position any more, since it was unwound, from where it parts from the log that did.
pub(crate) fn read(
    conn: &Connection,
    device: DeviceId,
    after: Position,
) -> Result<(VecDeque<Settlement>, Position), Error> {
    let top = store::top(conn)?;
    let after = log::last_common(conn, after)?;
    let mut found = VecDeque::new();
    let mut groups = conn.prepare_cached(
        "SELECT g.first, g.last FROM sync_group g JOIN sync_origin o ON o.id = g.origin
         WHERE o.device = ?1 AND g.last > ?2
            AND g.first >= coalesce((SELECT max(first) FROM sync_group WHERE first <= ?2 + 1), 0) ORDER BY g.first",
    )?;
    let mut rows = groups.query(params![device.to_string(), after.0])?;
    while let Some(row) = rows.next()? {
        let (first, last): (u64, u64) = (row.get(0)?, row.get(1)?);
        let mut at = first.max(after.0 + 1);
        while at <= last {
            if found.len() >= PAGE {
                return Ok((found, Position { term: log::term_at(conn, Seq(at - 1))?, seq: Seq(at - 1) }));
            }
            if let Some(settlement) = of_entry(conn, Seq(at))? {
                found.push_back(settlement);
            }
            at += 1;
        }
    }
    Ok((found, top))
}

/// The settlement that the entry at `seq` is; `None` for what a cascade made, or for what is no change.
pub(crate) fn of_entry(conn: &Connection, seq: Seq) -> Result<Option<Settlement>, Error> {
    let Some((entry, _)) = LogReader::default().change(conn, seq)? else { return Ok(None) };
    let Body::Change(change) = entry.body else { return Ok(None) };
    // What a cascade made is nobody's, and what a leader keeps for others is not its own.
    if entry.n.is_none() {
        return Ok(None);
    }
    Ok(Some(Settlement {
        position: Position { term: entry.term, seq },
        model: change.shape.model.clone(),
        record: change.record.to_string(),
        outcome: outcome(conn, seq, &change)?,
        row: row_after(conn, seq, &change)?,
    }))
}

/// A change that waits for the log, as it goes by whatever it is named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// Its place in pending.
    pub(crate) id: i64,
    /// Its stamp.
    stamp: i64,
    /// Row of the origin in which it was sealed.
    origin: i64,
}

/// What is pending on a record here.
pub(crate) fn pending_on(conn: &Connection, model: &str, record: &str) -> Result<Vec<Waiting>, Error> {
    let waiting = conn
        .prepare_cached(
            "SELECT id, origin, stamp FROM sync_pending
             WHERE model = (SELECT id FROM sync_model WHERE name = ?1) AND record = ?2 ORDER BY id",
        )?
        .query_map(params![model, RecordId::from(record)], |row| {
            Ok(Waiting { id: row.get(0)?, origin: row.get(1)?, stamp: row.get(2)? })
        })?
        .collect::<Result<_, _>>()?;
    Ok(waiting)
}

/// What became of changes of a record that the log shows by now.
pub(crate) fn of_waiting(
    conn: &Connection,
    model: &str,
    record: &str,
    waiting: &[Waiting],
) -> Result<Vec<Settlement>, Error> {
    let (record, mut settled) = (RecordId::from(record), Vec::new());
    for waiting in waiting {
        // It may have been given another number meanwhile; device and stamp stay.
        let seq: Option<u64> = conn
            .prepare_cached(
                "SELECT e.seq FROM sync_entry e
                 WHERE e.model = (SELECT id FROM sync_model WHERE name = ?1) AND e.record = ?2
                    AND e.stamp = ?3 AND e.n IS NOT NULL
                    AND (SELECT o.device FROM sync_group g JOIN sync_origin o ON o.id = g.origin
                        WHERE g.first <= e.seq ORDER BY g.first DESC LIMIT 1)
                        = (SELECT device FROM sync_origin WHERE id = ?4)
                 ORDER BY e.seq LIMIT 1",
            )?
            .query_row(params![model, record, waiting.stamp, waiting.origin], |row| row.get(0))
            .optional()?;
        if let Some(seq) = seq {
            settled.extend(of_entry(conn, Seq(seq))?);
        }
    }
    Ok(settled)
}

/// The settlements of this device from some point of the log on: made by
/// [`Library::settlements`](crate::Library::settlements).
pub struct Settlements {
    library: Library,
    cursor: Position,
    ready: VecDeque<Settlement>,
}

impl Settlements {
    pub(crate) fn new(library: Library, after: Position) -> Self {
        Self { library, cursor: after, ready: VecDeque::new() }
    }

    /// The next one; waits until there is one.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a shutdown, and what the database says.
    pub async fn next(&mut self) -> Result<Settlement, Error> {
        let mut status = self.library.status();
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Ok(next);
            }
            let top = status.borrow_and_update().position;
            let device = status.borrow().device;
            if let Some(device) = device.filter(|_| top != self.cursor) {
                (self.ready, self.cursor) = self.library.read_settlements(device, self.cursor).await?;
                if !self.ready.is_empty() {
                    continue;
                }
            }
            status
                .changed()
                .await
                .map_err(|_| Error::Stopped { reason: "the library was shut down".into() })?;
        }
    }
}

//! Why: how a record came to be what it is, change by change.

use std::{collections::BTreeMap, fmt};

use chrono::DateTime;
use rusqlite::{Connection, params};

use crate::{
    entry::{Body, Decision, EntryKind},
    error::Error,
    id::{DeviceId, Seq},
    layout::{Layouts, logged_before},
    log::LogReader,
    model::Policy,
    record::RecordId,
    row::Row,
    settlement::{self, Outcome},
    status::ChangeKind,
    store::Model,
    value::Value,
};

/// Most changes that an explanation holds: the newest.
pub const CHANGES_MAX: usize = 200;

/// How a record came to be what it is. Its [`Display`](fmt::Display) is for a person to read.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// Sync id of the model.
    pub model: String,
    /// Canonical id of the record.
    pub record: String,
    /// The model's policy; `None` for a model that this release does not have.
    pub policy: Option<Policy>,
    /// The changes, oldest first.
    pub changes: Vec<Explained>,
    /// Whether there are more, older ones than [`CHANGES_MAX`].
    pub has_older: bool,
    /// The record as the log has it; `None` if it is gone or never was.
    pub row: Option<Row>,
    /// For each column of the row the entry that wrote its value, as far as `changes` reach.
    pub written_by: BTreeMap<String, Seq>,
    /// Changes of this device that the log does not show yet.
    pub pending: usize,
}

/// One change of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// Its entry.
    pub seq: Seq,
    /// Who made it; of what a cascade did, who made the change that it followed from.
    pub device: DeviceId,
    /// When, by that device's clock, ms since 1970.
    pub at: i64,
    /// Who did it, where the application said so.
    pub actor: Option<String>,
    /// What its author did; `None` where it only decided.
    pub kind: Option<ChangeKind>,
    /// Whether the record was there for its author before.
    pub existed: bool,
    /// Whether the database made it, along a foreign key.
    pub is_cascade: bool,
    /// Whether a person decided a conflict or a dead letter with it.
    pub is_decision: bool,
    /// The columns that it changed, with the values that they had and were given; all of the row where it was new.
    pub wrote: Vec<(String, Option<Value>, Value)>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Explains a record by the log.
pub(crate) fn explain(conn: &Connection, models: &[Model], model: &str, record: &str) -> Result<Why, Error> {
    let mut seqs: Vec<u64> = conn
        .prepare_cached(
            "SELECT seq FROM sync_entry WHERE model = (SELECT id FROM sync_model WHERE name = ?1) AND record = ?2
             ORDER BY seq DESC LIMIT ?3",
        )?
        .query_map(params![model, RecordId::from(record), CHANGES_MAX + 1], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let has_older = seqs.len() > CHANGES_MAX;
    seqs.truncate(CHANGES_MAX);
    let registered = models.iter().find(|m| m.descriptor.id == model);
    let mut why = Why {
        model: model.to_owned(),
        record: record.to_owned(),
        policy: registered.map(|m| m.descriptor.options.policy),
        changes: Vec::new(),
        has_older,
        row: None,
        written_by: BTreeMap::new(),
        pending: settlement::pending_on(conn, model, record)?.len(),
    };
    for seq in seqs.into_iter().rev().map(Seq) {
        why.take(conn, seq)?;
    }
    Ok(why)
}

impl Why {
    fn take(&mut self, conn: &Connection, seq: Seq) -> Result<(), Error> {
        let Some((entry, group)) = LogReader::default().change(conn, seq)? else { return Ok(()) };
        let Body::Change(change) = entry.body else { return Ok(()) };
        let before = match &change.before {
            Some(before) => Some(Row::in_shape(&change.shape, before, None)),
            None => {
                let said = logged_before(conn, &mut Layouts::default(), &change, seq)?;
                said.and_then(|said| Some(Row::in_shape(&said.shape, said.row.as_deref()?, None)))
            }
        };
        let wrote = match change.kind {
            EntryKind::Upsert => Row::in_shape(&change.shape, &change.row, change.fields.as_deref()),
            _ => Row::default(),
        };
        let old = |name: &str| before.as_ref().and_then(|before| before.get(name)).cloned();
        self.row = settlement::row_after(conn, seq, &change)?;
        match change.effect() {
            EntryKind::Upsert => {
                let written = Row::in_shape(&change.shape, change.row_after(), change.written());
                self.written_by.extend(written.iter().map(|(name, _)| (name.to_owned(), seq)));
            }
            EntryKind::Delete => self.written_by.clear(),
            _ => {}
        }
        self.changes.push(Explained {
            seq,
            device: group.device,
            at: change.at,
            actor: change.actor.clone(),
            kind: match change.kind {
                EntryKind::Upsert => Some(ChangeKind::Upsert),
                EntryKind::Delete => Some(ChangeKind::Delete),
                _ => None,
            },
            existed: change.existed,
            is_cascade: entry.n.is_none(),
            is_decision: matches!(
                change.decides,
                Some(Decision::Resolves(_) | Decision::Retries(_) | Decision::Discards(_))
            ),
            wrote: wrote.iter().map(|(name, new)| (name.to_owned(), old(name), new.clone())).collect(),
            outcome: settlement::outcome(conn, seq, &change)?,
        });
        Ok(())
    }
}

fn json(value: &Value) -> String {
    let mut out = String::new();
    value.write_json(&mut out);
    out
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.model, self.record)?;
        if let Some(policy) = self.policy {
            write!(f, ", by the policy {policy}")?;
        }
        writeln!(f)?;
        if self.has_older {
            writeln!(f, "  (older changes are left out)")?;
        }
        for change in &self.changes {
            writeln!(f, "  {change}")?;
        }
        match &self.row {
            Some(row) => {
                writeln!(f, "now:")?;
                for (name, value) in row.iter() {
                    write!(f, "  {name} = {}", json(value))?;
                    match self.written_by.get(name) {
                        Some(seq) => writeln!(f, ", by entry {seq}")?,
                        None => writeln!(f)?,
                    }
                }
            }
            None if self.changes.is_empty() => writeln!(f, "the log has never heard of it")?,
            None => writeln!(f, "now: it is gone")?,
        }
        if self.pending > 0 {
            writeln!(f, "{} changes of this device are not in the log yet", self.pending)?;
        }
        Ok(())
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::from_timestamp_millis(self.at).unwrap_or_default();
        write!(
            f,
            "entry {}, {}, device {}",
            self.seq,
            time.format("%Y-%m-%d %H:%M:%S%.3f"),
            self.device.short()
        )?;
        if let Some(actor) = &self.actor {
            write!(f, " ({actor})")?;
        }
        let what = match (self.kind, self.existed) {
            (Some(ChangeKind::Upsert), true) => "updated",
            (Some(ChangeKind::Upsert), false) => "inserted",
            (Some(ChangeKind::Delete), _) => "deleted",
            (None, _) => "decided",
        };
        write!(f, ": {what}")?;
        if self.is_cascade {
            write!(f, " by a cascade")?;
        }
        if self.is_decision && self.kind.is_some() {
            write!(f, " by a decision")?;
        }
        for (i, (name, old, new)) in self.wrote.iter().enumerate() {
            let comma = if i == 0 { " " } else { ", " };
            match old {
                Some(old) if old != new => write!(f, "{comma}{name} {} -> {}", json(old), json(new))?,
                _ => write!(f, "{comma}{name} = {}", json(new))?,
            }
        }
        match &self.outcome {
            Outcome::Applied => Ok(()),
            Outcome::Merged { .. } => write!(f, "; merged with what others wrote"),
            Outcome::Superseded { .. } => write!(f, "; does not stand, another change does"),
            Outcome::Conflict { .. } => write!(f, "; waits for somebody to decide"),
            Outcome::Rejected { reason, .. } => write!(f, "; refused: {reason}"),
        }
    }
}

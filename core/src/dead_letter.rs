//! Dead letters: changes that the leader refused, with all they hold.
//!
//! The record itself went back to what the log says. A dead letter waits until somebody tries it once more, changed or as
//! it was, or gives it up; either is a change, and is known on every device.
//!
//! Changes of one atomic scope were refused together, so each is a dead letter, and what is decided about one of them is
//! decided about all.

use std::fmt;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};
use uuid::Uuid;

use crate::{
    conflict::PAGE_MAX,
    entry::{Body, Change, Decision, EntryKind, Group},
    error::Error,
    id::{DeviceId, Seq},
    layout::{Layouts, logged_before},
    log::LogReader,
    pending,
    row::Row,
    status::ChangeKind,
    value::write_json_string,
};

/// Names a dead letter, on every device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId(pub Uuid);

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a dead letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterState {
    /// Somebody is to retry or to discard it.
    Open,
    /// It was tried once more, by the entry here. Where that was refused too, there is a dead letter of its own.
    Retried(Seq),
    /// It was given up, by the entry here.
    Discarded(Seq),
}

/// A change that was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Names it on every device.
    pub id: DeadLetterId,
    /// The entry that keeps it.
    pub seq: Seq,
    /// Sync id of the model.
    pub model: String,
    /// Canonical id of the record.
    pub record: String,
    /// Who made the change.
    pub device: DeviceId,
    /// When, by that device's clock, ms since 1970.
    pub at: i64,
    /// What it was to do. A decision that was to write nothing is shown as an upsert of no values.
    pub kind: ChangeKind,
    /// The columns that it changed; `None` for all.
    pub changed: Option<Vec<String>>,
    /// The whole row as its author made it; of a deletion, the key.
    pub values: Row,
    /// What the changed columns held before, as far as it is known.
    pub base: Row,
    /// What the leader had instead, when it was refused; `None` where the record was not there.
    pub standing: Option<Row>,
    /// Why it was refused.
    pub reason: String,
    /// How far it is.
    pub state: DeadLetterState,
    /// This device has decided, and the leader has yet to sequence that.
    pub being_decided: bool,
    /// The other dead letters of its [`atomic`](crate::Connection::atomic) scope that wait: they were refused with it and are
    /// decided with it. In the order of the log, at most [`PAGE_MAX`]; none of a change that stood for itself, nor where it is
    /// decided.
    pub together: Vec<DeadLetterId>,
}

impl DeadLetter {
    /// The dead letter as a JSON object, for keeping it or looking at it elsewhere. Rows are in the form of [`Row::to_json`].
    pub fn to_json(&self) -> String {
        let mut out = String::from("{");
        let text = |out: &mut String, name: &str, value: &str| {
            if out.len() > 1 {
                out.push(',');
            }
            write_json_string(name, out);
            out.push(':');
            write_json_string(value, out);
        };
        let raw = |out: &mut String, name: &str, value: &str| {
            out.push(',');
            write_json_string(name, out);
            out.push(':');
            out.push_str(value);
        };
        text(&mut out, "id", &self.id.to_string());
        raw(&mut out, "seq", &self.seq.to_string());
        text(&mut out, "model", &self.model);
        text(&mut out, "record", &self.record);
        text(&mut out, "device", &self.device.to_string());
        raw(&mut out, "at", &self.at.to_string());
        text(&mut out, "kind", if self.kind == ChangeKind::Delete { "delete" } else { "upsert" });
        let changed = self.changed.as_ref().map(|names| serde_json::json!(names).to_string());
        raw(&mut out, "changed", changed.as_deref().unwrap_or("null"));
        raw(&mut out, "values", &self.values.to_json());
        raw(&mut out, "base", &self.base.to_json());
        let standing = self.standing.as_ref().map(Row::to_json);
        raw(&mut out, "standing", standing.as_deref().unwrap_or("null"));
        text(&mut out, "reason", &self.reason);
        let state = match self.state {
            DeadLetterState::Open => "open",
            DeadLetterState::Retried(_) => "retried",
            DeadLetterState::Discarded(_) => "discarded",
        };
        text(&mut out, "state", state);
        let together: Vec<String> = self.together.iter().map(ToString::to_string).collect();
        raw(&mut out, "together", &serde_json::json!(together).to_string());
        out.push('}');
        out
    }
}

/// A dead letter, and the change that it keeps.
pub(crate) struct Found {
    pub(crate) letter: DeadLetter,
    pub(crate) change: Change,
    /// The atomic scope that it is of.
    pub(crate) scope: Option<Scope>,
}

/// An atomic scope in the log: the changes of a group that have the same mark.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scope {
    first: Seq,
    last: Seq,
    pub(crate) mark: String,
}

impl Scope {
    fn of(change: &Change, group: &Group) -> Option<Self> {
        Some(Self { first: group.first, last: group.last, mark: change.mark.clone()? })
    }

    /// Its dead letters behind `after` that wait, in the order of the log, at most so many.
    fn waiting(&self, conn: &Connection, after: Seq, limit: usize) -> Result<Vec<(Seq, Uuid)>, Error> {
        let after = after.0.max(self.first.0.saturating_sub(1));
        conn.prepare_cached(
            "SELECT d.seq, d.id FROM sync_dead_letter d CROSS JOIN sync_entry e ON e.seq = d.seq
             WHERE d.seq > ?1 AND d.seq <= ?2 AND d.decided IS NULL AND e.mark = ?3 ORDER BY d.seq LIMIT ?4",
        )?
        .query_map(params![after, self.last.0, self.mark, limit], |row| {
            Ok((Seq(row.get(0)?), Uuid::from_bytes(row.get(1)?)))
        })?
        .collect::<Result<_, _>>()
        .map_err(Error::from)
    }

    /// The first of its dead letters behind `after` that waits.
    pub(crate) fn next(&self, conn: &Connection, after: Seq) -> Result<Option<Found>, Error> {
        let next = self.waiting(conn, after, 1)?.pop();
        next.map(|(seq, id)| find(conn, (seq, id, None), None)).transpose()
    }
}

/// Who waits of the scope that was looked at last: its dead letters stand beside each other.
#[derive(Default)]
struct Scopes(Option<(Scope, Vec<DeadLetterId>)>);

impl Scopes {
    /// Who waits together with a dead letter of a scope.
    fn with(
        &mut self,
        conn: &Connection,
        scope: &Scope,
        id: DeadLetterId,
    ) -> Result<Vec<DeadLetterId>, Error> {
        if self.0.as_ref().is_none_or(|(last, _)| last != scope) {
            let waiting = scope.waiting(conn, Seq(0), PAGE_MAX + 1)?;
            self.0 = Some((scope.clone(), waiting.into_iter().map(|(_, id)| DeadLetterId(id)).collect()));
        }
        let waiting = self.0.iter().flat_map(|(_, waiting)| waiting).copied();
        Ok(waiting.filter(|other| *other != id).take(PAGE_MAX).collect())
    }
}

/// A dead letter by its id.
pub(crate) fn by_id(conn: &Connection, id: Uuid) -> Result<Option<Found>, Error> {
    let head = conn
        .prepare_cached(
            "SELECT seq, id, decided FROM sync_dead_letter WHERE id = ?1 ORDER BY decided IS NOT NULL, seq DESC LIMIT 1",
        )?
        .query_row([id.as_bytes()], head)
        .optional()?;
    head.map(|head| find(conn, head, Some(&mut Scopes::default()))).transpose()
}

/// The dead letter of the entry at `seq`.
pub(crate) fn at(conn: &Connection, seq: Seq) -> Result<Option<Found>, Error> {
    let head = conn
        .prepare_cached("SELECT seq, id, decided FROM sync_dead_letter WHERE seq = ?1")?
        .query_row([seq.0], head)
        .optional()?;
    head.map(|head| find(conn, head, None)).transpose()
}

/// Those that wait, oldest first, up to [`PAGE_MAX`].
pub(crate) fn open(conn: &Connection) -> Result<Vec<DeadLetter>, Error> {
    let sql = "SELECT seq, id, decided FROM sync_dead_letter WHERE decided IS NULL ORDER BY seq LIMIT ?1";
    page(conn, sql, params![PAGE_MAX])
}

/// All behind `after`, oldest first, up to [`PAGE_MAX`].
pub(crate) fn since(conn: &Connection, after: Seq) -> Result<Vec<DeadLetter>, Error> {
    let sql = "SELECT seq, id, decided FROM sync_dead_letter WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    page(conn, sql, params![after.0, PAGE_MAX])
}

type Head = (Seq, Uuid, Option<Seq>);

fn head(row: &SqlRow<'_>) -> rusqlite::Result<Head> {
    Ok((Seq(row.get(0)?), Uuid::from_bytes(row.get(1)?), row.get::<_, Option<u64>>(2)?.map(Seq)))
}

fn page(conn: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<DeadLetter>, Error> {
    let heads = conn.prepare_cached(sql)?.query_map(params, head)?.collect::<Result<Vec<_>, _>>()?;
    let mut scopes = Scopes::default();
    heads.into_iter().map(|head| Ok(find(conn, head, Some(&mut scopes))?.letter)).collect()
}

/// Who waits together with it is looked up where there are `scopes` for that.
fn find(conn: &Connection, (seq, id, decided): Head, scopes: Option<&mut Scopes>) -> Result<Found, Error> {
    let missing = || Error::Damaged(format!("dead letter {id} is of entry {seq}, which is none"));
    let (entry, group) = LogReader::default().change(conn, seq)?.ok_or_else(missing)?;
    let Body::Change(change) = entry.body else { return Err(missing()) };
    let named = |fields: &[u16]| {
        fields.iter().filter_map(|&f| change.shape.fields.get(usize::from(f)).cloned()).collect()
    };
    let said = logged_before(conn, &mut Layouts::default(), &change, seq)?;
    let key: Vec<u16> = change.shape.key.iter().filter_map(|&i| u16::try_from(i).ok()).collect();
    let is_upsert = change.kind == EntryKind::Upsert;
    let state = match decided {
        None => DeadLetterState::Open,
        Some(by) if was_discarded(conn, by)? => DeadLetterState::Discarded(by),
        Some(by) => DeadLetterState::Retried(by),
    };
    let scope = Scope::of(&change, &group);
    let together = match (&scope, scopes) {
        (Some(scope), Some(scopes)) if decided.is_none() => scopes.with(conn, scope, DeadLetterId(id))?,
        _ => Vec::new(),
    };
    let letter = DeadLetter {
        id: DeadLetterId(id),
        seq,
        model: change.shape.model.clone(),
        record: change.record.to_string(),
        device: group.device,
        at: change.at,
        kind: if change.kind == EntryKind::Delete { ChangeKind::Delete } else { ChangeKind::Upsert },
        changed: change.fields.as_deref().map(named),
        values: Row::in_shape(&change.shape, &change.row, (!is_upsert).then_some(&key)),
        base: match (&change.before, &change.fields) {
            (Some(before), Some(fields)) => Row::in_shape(&change.shape, before, Some(fields)),
            _ => Row::default(),
        },
        standing: said.and_then(|said| Some(Row::in_shape(&said.shape, said.row.as_deref()?, None))),
        reason: change.outcome.as_ref().and_then(|o| o.refused.clone()).unwrap_or_default(),
        state,
        being_decided: pending::is_deciding(conn, Decision::Retries(id))?
            || pending::is_deciding(conn, Decision::Discards(id))?,
        together,
    };
    Ok(Found { letter, change, scope })
}

fn was_discarded(conn: &Connection, seq: Seq) -> Result<bool, Error> {
    let decides: Option<String> = conn
        .prepare_cached("SELECT decides FROM sync_entry WHERE seq = ?1")?
        .query_row([seq.0], |row| row.get(0))
        .optional()?
        .flatten();
    Ok(matches!(decides.as_deref().and_then(Decision::from_text), Some(Decision::Discards(_))))
}

/// The id of the dead letter of the entry at `seq`, if there is one.
pub(crate) fn of_entry(conn: &Connection, seq: Seq) -> Result<Option<DeadLetterId>, Error> {
    let id: Option<[u8; 16]> = conn
        .prepare_cached("SELECT id FROM sync_dead_letter WHERE seq = ?1")?
        .query_row([seq.0], |row| row.get(0))
        .optional()?;
    Ok(id.map(|id| DeadLetterId(Uuid::from_bytes(id))))
}

//! Conflict records: what did not stand when two devices had written the same without seeing each other.
//!
//! The policy of the model decided already, on every device alike; the record says between what. Where the policy is
//! `manual`, what the log had stands meanwhile and a person is to decide. A person may also decide otherwise than the
//! policy did, at any time: resolving is a change like any other, and reaches every device.

use std::fmt;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};
use uuid::Uuid;

use crate::{
    entry::{Body, Change, Decision, EntryKind, Group},
    error::Error,
    id::{DeviceId, Seq},
    layout::{Layouts, logged_before},
    log::{Authors, LogReader},
    model::Policy,
    park::last_writer,
    pending,
    row::Row,
    store::Model,
};

/// Most records that one call of [`Library::conflicts`](crate::Library::conflicts),
/// [`Library::conflicts_since`](crate::Library::conflicts_since) or
/// [`Library::dead_letters`](crate::Library::dead_letters) gives.
pub const PAGE_MAX: usize = 1000;

/// Names a conflict record, on every device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConflictId(pub Uuid);

impl fmt::Display for ConflictId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the two that met.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    /// The whole row; `None` where the record was gone.
    pub row: Option<Row>,
    /// The entry that wrote it; `None` where the log does not reach back so far.
    pub seq: Option<Seq>,
    /// Who wrote it; `None` where the log does not reach back so far.
    pub device: Option<DeviceId>,
    /// When, by that device's clock, ms since 1970.
    pub at: Option<i64>,
}

/// Whose value stands by the decision of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// What the log had.
    Local,
    /// What the change brought.
    Remote,
    /// A third value, which the model's own function made of both.
    Merged,
}

/// How far a conflict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictState {
    /// The policy decided, and nobody has to.
    Auto,
    /// A person is to decide.
    Open,
    /// A person decided, with the entry here.
    Resolved(Seq),
    /// Whoever wrote the value that waited has written another, with the entry here.
    Superseded(Seq),
}

/// A conflict between what the log had (*local*) and a change that arrived (*remote*), over one field or over the record
/// being there.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// Names it on every device.
    pub id: ConflictId,
    /// The entry of the change that arrived.
    pub seq: Seq,
    /// Sync id of the model.
    pub model: String,
    /// Canonical id of the record.
    pub record: String,
    /// The column; `None` where it is about the record being there: one side deleted it.
    pub field: Option<String>,
    /// What the author of the change that arrived had before it, as far as it is known: of an update, the fields it changed.
    pub base: Row,
    /// What the log had; of one that waits, what it has now.
    pub local: Version,
    /// What the change brought.
    pub remote: Version,
    /// Whose value stands by the policy.
    pub winner: Winner,
    /// The model's policy; `None` for a model that this release does not have.
    pub policy: Option<Policy>,
    /// How far it is.
    pub state: ConflictState,
    /// This device has decided, and the leader has yet to sequence that.
    pub being_decided: bool,
}

/// How a person decides a conflict.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// What the log had stands; of a conflict that waits, what it has now.
    Local,
    /// What the change brought stands.
    Remote,
    /// These values stand, of the columns that the row holds; of a record that is gone, the whole row.
    Merged(Row),
}

/// Decides conflicts for an application, so that nobody has to be asked: given to
/// [`LibraryBuilder::resolver`](crate::LibraryBuilder::resolver).
///
/// It is asked on the device that has it, of every conflict that waits for a person, and again where the record has moved
/// before its answer was sequenced. Where several devices have one, the first to be sequenced stands.
///
/// An `async` closure of a [`Conflict`] is one.
#[async_trait::async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// How the conflict ends; `None` leaves it to a person. A panic does so too, and is told in the status.
    async fn resolve(&self, conflict: &Conflict) -> Option<Choice>;
}

#[async_trait::async_trait]
impl<F, A> Resolver for F
where
    F: Fn(Conflict) -> A + Send + Sync + 'static,
    A: Future<Output = Option<Choice>> + Send,
{
    async fn resolve(&self, conflict: &Conflict) -> Option<Choice> {
        self(conflict.clone()).await
    }
}

const COLUMNS: &str =
    "SELECT c.seq, c.field, c.id, c.loser, c.open, c.decided, c.superseded FROM sync_conflict c";

/// What a conflict record says, and the change that it is about.
pub(crate) struct Found {
    pub(crate) conflict: Conflict,
    pub(crate) change: Change,
}

/// A conflict by its id.
pub(crate) fn by_id(conn: &Connection, models: &[Model], id: Uuid) -> Result<Option<Found>, Error> {
    // The same loser may have met a second change: what is not decided comes first.
    let sql = format!(
        "{COLUMNS} WHERE c.id = ?1 ORDER BY c.decided IS NOT NULL, c.superseded IS NOT NULL, c.seq DESC LIMIT 1"
    );
    let head = conn.prepare_cached(&sql)?.query_row([id.as_bytes()], head).optional()?;
    head.map(|head| head.find(conn, models)).transpose()
}

/// The conflicts that wait for a person behind an entry and a field, oldest first, up to [`PAGE_MAX`].
pub(crate) fn open(
    conn: &Connection,
    models: &[Model],
    (seq, field): (Seq, &str),
) -> Result<Vec<Conflict>, Error> {
    let sql = format!(
        "{COLUMNS} WHERE c.open AND c.decided IS NULL AND c.superseded IS NULL AND (c.seq, c.field) > (?1, ?2)
         ORDER BY c.seq, c.field LIMIT ?3"
    );
    page(conn, models, &sql, params![seq.0, field, PAGE_MAX])
}

/// All conflicts behind `after`, oldest first, up to some [`PAGE_MAX`] and the rest of the last entry's.
pub(crate) fn since(conn: &Connection, models: &[Model], after: Seq) -> Result<Vec<Conflict>, Error> {
    let sql = format!(
        "{COLUMNS} WHERE c.seq > ?1 AND c.seq <= coalesce(
            (SELECT seq FROM sync_conflict WHERE seq > ?1 ORDER BY seq LIMIT 1 OFFSET ?2), 9223372036854775807)
         ORDER BY c.seq, c.field"
    );
    page(conn, models, &sql, params![after.0, PAGE_MAX - 1])
}

fn page(
    conn: &Connection,
    models: &[Model],
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<Conflict>, Error> {
    let heads = conn.prepare_cached(sql)?.query_map(params, head)?.collect::<Result<Vec<_>, _>>()?;
    heads.into_iter().map(|head| Ok(head.find(conn, models)?.conflict)).collect()
}

struct Head {
    seq: Seq,
    field: Option<String>,
    id: Uuid,
    loser: String,
    state: ConflictState,
}

fn head(row: &SqlRow<'_>) -> rusqlite::Result<Head> {
    let (decided, superseded): (Option<u64>, Option<u64>) = (row.get(5)?, row.get(6)?);
    let state = match (decided, superseded) {
        (Some(seq), _) => ConflictState::Resolved(Seq(seq)),
        (None, Some(seq)) => ConflictState::Superseded(Seq(seq)),
        _ if row.get(4)? => ConflictState::Open,
        _ => ConflictState::Auto,
    };
    Ok(Head {
        seq: Seq(row.get(0)?),
        field: Some(row.get::<_, String>(1)?).filter(|field| !field.is_empty()),
        id: Uuid::from_bytes(row.get(2)?),
        loser: row.get(3)?,
        state,
    })
}

impl Head {
    /// What the log says of it.
    fn find(self, conn: &Connection, models: &[Model]) -> Result<Found, Error> {
        let missing =
            || Error::Damaged(format!("conflict {} is of entry {}, which is none", self.id, self.seq));
        let (entry, group) = LogReader::default().change(conn, self.seq)?.ok_or_else(missing)?;
        let Body::Change(change) = entry.body else { return Err(missing()) };
        let base = match (&change.before, &change.fields) {
            (Some(before), Some(fields)) => Row::in_shape(&change.shape, before, Some(fields)),
            _ => Row::default(),
        };
        let model = models.iter().find(|m| m.descriptor.id == change.shape.model);
        let conflict = Conflict {
            id: ConflictId(self.id),
            seq: self.seq,
            model: change.shape.model.clone(),
            record: change.record.to_string(),
            base,
            local: local(conn, &change, self.seq, self.state, self.field.as_deref())?,
            remote: remote(&group, &change, self.seq),
            winner: match self.loser.as_str() {
                "local" => Winner::Remote,
                "remote" => Winner::Local,
                _ => Winner::Merged,
            },
            field: self.field,
            policy: model.map(|model| model.descriptor.options.policy),
            state: self.state,
            being_decided: pending::is_deciding(conn, Decision::Resolves(self.id))?,
        };
        Ok(Found { conflict, change })
    }
}

fn remote(group: &Group, change: &Change, seq: Seq) -> Version {
    let row = (change.kind == EntryKind::Upsert).then(|| Row::in_shape(&change.shape, &change.row, None));
    Version { row, seq: Some(seq), device: Some(group.device), at: Some(change.at) }
}

fn local(
    conn: &Connection,
    change: &Change,
    seq: Seq,
    state: ConflictState,
    field: Option<&str>,
) -> Result<Version, Error> {
    let mut layouts = Layouts::default();
    let (mut said, mut writer) = (None, None);
    if state == ConflictState::Open {
        // Whoever decides looks at what stands now.
        let end = Seq(i64::MAX as u64);
        said = logged_before(conn, &mut layouts, change, end)?;
        writer = last_writer(conn, &mut Authors::default(), change, end, field)?;
    }
    if said.is_none() {
        said = logged_before(conn, &mut layouts, change, seq)?;
        writer = last_writer(conn, &mut Authors::default(), change, seq, field)?;
    }
    let row = said.and_then(|said| Some(Row::in_shape(&said.shape, said.row.as_deref()?, None)));
    Ok(Version {
        row,
        seq: writer.as_ref().map(|w| w.seq),
        device: writer.as_ref().map(|w| w.device),
        at: writer.map(|w| w.at),
    })
}

/// The conflicts of the entry at `seq`: field, id, whether a person is to decide.
pub(crate) fn of_entry(conn: &Connection, seq: Seq) -> Result<Vec<(ConflictId, bool)>, Error> {
    let conflicts = conn
        .prepare_cached("SELECT id, open FROM sync_conflict WHERE seq = ?1 ORDER BY field")?
        .query_map([seq.0], |row| Ok((ConflictId(Uuid::from_bytes(row.get(0)?)), row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    Ok(conflicts)
}

//! Queue: what this device has changed and the leader's log does not show yet.

use rusqlite::{Connection, params};

use crate::{
    conflict::PAGE_MAX, entry::EntryKind, error::Error, layout::Layouts, model::Priority, pending, row::Row,
    status::ChangeKind, store::Model,
};

/// Whether a queued change stands in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuedState {
    /// Its row is as this device made it.
    Waiting,
    /// Its row had to leave the table, since what the leader has was in its way. The leader answers it all the same.
    Blocked,
}

/// A change of this device that waits for the leader.
#[derive(Clone, Debug, PartialEq)]
pub struct Queued {
    /// Its place in the queue. What comes back from a log that was another than the leader's stands before all else.
    pub place: i64,
    /// Sync id of the model.
    pub model: String,
    /// Canonical id of the record.
    pub record: String,
    /// What it does; `None` where it only decides a conflict or a dead letter.
    pub kind: Option<ChangeKind>,
    /// The columns that it changed, with their values; of a new record all, of a deletion the key.
    pub values: Row,
    /// When it was made, ms since 1970.
    pub at: i64,
    /// Who did it, where the application said so.
    pub actor: Option<String>,
    /// The model's priority.
    pub priority: Priority,
    /// Whether it stands in its table.
    pub state: QueuedState,
}

/// What is queued behind a place, in order, at most [`PAGE_MAX`].
pub(crate) fn read(conn: &Connection, models: &[Model], after: i64) -> Result<Vec<Queued>, Error> {
    let mut layouts = Layouts::default();
    let sql = format!("{} LIMIT ?2", pending::BY_ID);
    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params![after, PAGE_MAX])?;
    let mut queued = Vec::new();
    while let Some(row) = rows.next()? {
        if !pending::is_change(row)? {
            continue;
        }
        let place: i64 = row.get("id")?;
        let change = pending::read_change(conn, &mut layouts, row)?;
        let key: Vec<u16> = change.shape.key.iter().filter_map(|&i| u16::try_from(i).ok()).collect();
        let (kind, which) = match change.kind {
            EntryKind::Upsert => (Some(ChangeKind::Upsert), change.fields.as_deref()),
            EntryKind::Delete => (Some(ChangeKind::Delete), Some(key.as_slice())),
            _ => (None, Some([].as_slice())),
        };
        let model = models.iter().find(|m| m.descriptor.id == change.shape.model);
        queued.push(Queued {
            place,
            kind,
            values: Row::in_shape(&change.shape, &change.row, which),
            at: change.at,
            priority: model.map_or_else(Priority::default, |model| model.descriptor.options.priority),
            state: if is_blocked(conn, place)? { QueuedState::Blocked } else { QueuedState::Waiting },
            model: change.shape.model.clone(),
            record: change.record.to_string(),
            actor: change.actor,
        });
    }
    Ok(queued)
}

fn is_blocked(conn: &Connection, place: i64) -> Result<bool, Error> {
    let mut statement =
        conn.prepare_cached("SELECT 1 FROM sync_pending WHERE id = ?1 AND state = 'blocked'")?;
    Ok(statement.exists([place])?)
}

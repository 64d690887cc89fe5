//! Park: the tables of conflict records and of dead letters, which follow from the log.
//!
//! They hold no values. The entry that tells of a conflict or a refusal has them all; these tables say where it stands,
//! under an id, and whether somebody has decided since. Appending an entry writes them, on every device alike.
//!
//! An id is a hash of the losing change's identity and the record, so that it is the same wherever in a log its entry comes to stand.

use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::{
    entry::{Change, Decision, Group, Outcome},
    error::Error,
    id::{DeviceId, Origin, OriginSeq, Seq},
    log::{Authors, Sealed},
    record::RecordId,
    resolve::{Effect, Loser},
    store::Tx,
};

/// What a change is known by on all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) origin: Origin,
    pub(crate) n: OriginSeq,
    pub(crate) tag: u64,
}

const NAMESPACE: Uuid = Uuid::from_u128(0x0199_7a11_0000_7000_8000_0000_0000_0003);

impl Identity {
    /// Of a change of `group`; what a cascade made has no number of its own and counts as the group's last.
    pub(crate) fn of(group: &Group, n: Option<OriginSeq>) -> Self {
        Self { origin: group.origin, n: n.unwrap_or(group.last_n), tag: group.tag }
    }

    /// Id of the conflict record in which its value of a field, or without one the record's being there, lost. All that a
    /// cascade made counts as one change, so the record is part of it.
    pub(crate) fn conflict(&self, model: &str, record: &RecordId, field: Option<&str>) -> Uuid {
        self.hash(&["conflict", model, &record.to_string(), field.unwrap_or_default()])
    }

    /// Id of its dead letter.
    pub(crate) fn dead_letter(&self) -> Uuid {
        self.hash(&["dead letter"])
    }

    fn hash(&self, words: &[&str]) -> Uuid {
        let mut name = Vec::with_capacity(64);
        name.extend_from_slice(self.origin.0.as_bytes());
        name.extend_from_slice(&self.n.0.to_be_bytes());
        name.extend_from_slice(&self.tag.to_be_bytes());
        for word in words {
            name.extend_from_slice(&(word.len() as u64).to_be_bytes());
            name.extend_from_slice(word.as_bytes());
        }
        Uuid::new_v5(&NAMESPACE, &name)
    }
}

/// Whether an entry's change has anything to be parked.
pub(crate) fn concerns(change: &Change) -> bool {
    change.decides.is_some()
        || change.outcome.as_ref().is_some_and(|o| !o.dropped.is_empty() || o.refused.is_some())
}

/// Writes what the entry at `seq`, just appended, says of conflicts and refusals. The rows of the groups before it are
/// there. `device` made the change.
pub(crate) fn park(
    tx: &Tx<'_>,
    authors: &mut Authors,
    identity: Identity,
    device: DeviceId,
    seq: Seq,
    change: &Change,
) -> Result<(), Error> {
    if let Some(decision) = change.decides.filter(|&decision| stands(decision, change.outcome.as_deref())) {
        decided(tx, decision, seq)?;
    }
    let Some(outcome) = &change.outcome else { return Ok(()) };
    if outcome.refused.is_some() {
        tx.conn
            .prepare_cached("INSERT INTO sync_dead_letter (seq, id) VALUES (?1, ?2)")?
            .execute(params![seq.0, identity.dead_letter().as_bytes()])?;
    }
    for dropped in &outcome.dropped {
        let name = dropped.field.and_then(|f| change.shape.fields.get(usize::from(f))).map(String::as_str);
        let (loser, losing) = match dropped.loser {
            Loser::Local => {
                let writer = last_writer(tx.conn, authors, change, seq, name)?;
                ("local", writer.map(|writer| writer.identity))
            }
            Loser::Remote => ("remote", Some(identity)),
            Loser::Both => ("both", Some(identity)),
        };
        let id = losing.unwrap_or(identity).conflict(&change.shape.model, &change.record, name);
        if dropped.open {
            supersede(tx, device, change, seq, name)?;
        }
        tx.conn
            .prepare_cached(
                "INSERT INTO sync_conflict (seq, field, id, loser, open) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![seq.0, name.unwrap_or_default(), id.as_bytes(), loser, dropped.open])?;
    }
    Ok(())
}

/// Whether a decision stands. Of a conflict, not where it came too late or what it wrote was refused: that goes on
/// waiting. A dead letter ends with the first decision, whatever came of that: what is refused again has one of its own.
fn stands(decision: Decision, outcome: Option<&Outcome>) -> bool {
    match (decision, outcome) {
        (Decision::Resolves(_), Some(outcome)) => {
            outcome.refused.is_none() && (!outcome.dropped.is_empty() || outcome.effect != Effect::None)
        }
        _ => true,
    }
}

/// Ends what the entry at `seq` decides.
pub(crate) fn decided(tx: &Tx<'_>, decision: Decision, seq: Seq) -> Result<(), Error> {
    let (sql, id) = match decision {
        Decision::Resolves(id) => {
            ("UPDATE sync_conflict SET decided = ?2 WHERE id = ?1 AND decided IS NULL", id)
        }
        Decision::Retries(id) | Decision::Discards(id) => {
            ("UPDATE sync_dead_letter SET decided = ?2 WHERE id = ?1 AND decided IS NULL", id)
        }
    };
    tx.conn.prepare_cached(sql)?.execute(params![id.as_bytes(), seq.0])?;
    Ok(())
}

/// An author who writes a field again before anybody decided has given up what waits there.
fn supersede(
    tx: &Tx<'_>,
    device: DeviceId,
    change: &Change,
    seq: Seq,
    field: Option<&str>,
) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE sync_conflict SET superseded = ?1
             WHERE open AND decided IS NULL AND superseded IS NULL AND field = ?2 AND seq IN (
                SELECT e.seq FROM sync_entry e
                WHERE e.model = (SELECT id FROM sync_model WHERE name = ?3) AND e.record = ?4 AND e.seq < ?1
                    AND (SELECT o.device FROM sync_group g JOIN sync_origin o ON o.id = g.origin
                        WHERE g.first <= e.seq ORDER BY g.first DESC LIMIT 1) = ?5)",
        )?
        .execute(params![
            seq.0,
            field.unwrap_or_default(),
            change.shape.model,
            change.record,
            device.to_string()
        ])?;
    Ok(())
}

/// Who wrote last, and where.
#[derive(Clone, Debug)]
pub(crate) struct LastWriter {
    pub(crate) seq: Seq,
    pub(crate) identity: Identity,
    pub(crate) device: DeviceId,
    /// Wall clock, ms since 1970.
    pub(crate) at: i64,
}

/// Who wrote a field of the change's record last before `seq`, or without a field the record; `None` where the log does
/// not say. Whoever brought a record back that had been deleted wrote all of it.
pub(crate) fn last_writer(
    conn: &Connection,
    authors: &mut Authors,
    change: &Change,
    seq: Seq,
    field: Option<&str>,
) -> Result<Option<LastWriter>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT e.seq, e.n, e.at, e.kind, e.fields FROM sync_entry e
         WHERE e.model = (SELECT id FROM sync_model WHERE name = ?1) AND e.record = ?2 AND e.seq < ?3
            AND e.kind IN (1, 2) ORDER BY e.seq DESC",
    )?;
    let mut rows = statement.query(params![change.shape.model, change.record, seq.0])?;
    let mut after = None;
    while let Some(row) = rows.next()? {
        let (seq, n): (u64, Option<u64>) = (row.get(0)?, row.get(1)?);
        let entry = (Seq(seq), n.map(OriginSeq), row.get(2)?);
        let deletes = row.get::<_, i64>(3)? == 2;
        let names: Option<String> = row.get(4)?;
        let wrote = match (field, names) {
            (None, _) | (_, None) => true,
            (Some(field), Some(names)) => {
                deletes || crate::capture::names_from_json(&names)?.iter().any(|n| n == field)
            }
        };
        if wrote {
            let (seq, n, at) = after.filter(|_| deletes).unwrap_or(entry);
            return writer_at(conn, authors, seq, n, at);
        }
        after = Some(entry);
    }
    Ok(None)
}

fn writer_at(
    conn: &Connection,
    authors: &mut Authors,
    seq: Seq,
    n: Option<OriginSeq>,
    at: i64,
) -> Result<Option<LastWriter>, Error> {
    let Some(Sealed { origin, device, last_n, tag, .. }) = authors.at(conn, seq)? else { return Ok(None) };
    let identity = Identity { origin, n: n.unwrap_or(last_n), tag };
    Ok(Some(LastWriter { seq, identity, device, at }))
}

//! Agreed: whether the log has just what the author of a change had before him when he made it.
//!
//! A device that comes to lead with much that is pending made most of it upon the log that it leads: nobody else has written since,
//! and what it made before is in the log as it was made. Then its own database was once where the log is now. What its constraints let
//! pass then they would let pass over the rows of the log, so these need not be laid bare to judge by, for which all that is pending would
//! have to leave the tables.

use std::collections::BTreeMap;

use rusqlite::params;

use crate::{
    entry::{Batch, Group},
    error::Error,
    id::{Origin, OriginSeq, Seq, Term},
    pending,
    store::Tx,
};

/// What a leader knows of the end of its log: each entry is what its author made. It is kept so that no entry is looked at twice.
#[derive(Debug)]
pub(crate) struct Agreed {
    /// In which nothing of the log changes.
    lead: Term,
    /// Behind this entry.
    after: Seq,
    upto: Seq,
    /// Whose entries they are, up to which number.
    origins: BTreeMap<Origin, OriginSeq>,
}

/// An entry that came to something else than its author made, or that the leader's database made.
const OTHERWISE: &str = "SELECT 1 FROM sync_entry
    WHERE seq > ?1 AND seq <= ?2 AND kind < 3 AND (change IS NOT NULL OR n IS NULL) LIMIT 1";
const ORIGINS: &str = "SELECT o.origin, max(g.last_n) FROM sync_group g JOIN sync_origin o ON o.id = g.origin
    WHERE g.first > ?1 GROUP BY g.origin";

/// Whether what this batch was made upon is what the log has, for each of its groups. To be asked before anything of it is
/// appended.
pub(crate) fn is_upon_the_log(tx: &mut Tx<'_>, batch: &Batch) -> Result<bool, Error> {
    let known = tx.agreed.take();
    // What had to step out of the table was not there when others were made.
    let Some(after) = batch.groups.iter().map(|group| group.base.seq).min() else { return Ok(true) };
    if pending::is_any_blocked(tx.conn)? {
        return Ok(false);
    }
    let replica = tx.replica()?;
    let (lead, top) = (replica.max_seen, replica.top.seq);
    let mut agreed = known
        .filter(|known| known.lead == lead && known.after <= after && known.upto <= top)
        .unwrap_or_else(|| Agreed { lead, after, upto: after, origins: BTreeMap::new() });
    if tx.conn.prepare_cached(OTHERWISE)?.exists(params![agreed.upto.0, top.0])? {
        return Ok(false);
    }
    let mut statement = tx.conn.prepare_cached(ORIGINS)?;
    let mut rows = statement.query([agreed.upto.0])?;
    while let Some(row) = rows.next()? {
        let origin: String = row.get(0)?;
        let origin = origin.parse().map_err(|_| Error::Damaged(format!("`{origin}` is no origin")))?;
        agreed.origins.insert(Origin(origin), OriginSeq(row.get(1)?));
    }
    drop(rows);
    agreed.upto = top;
    let is = batch.groups.iter().all(|group| agreed.is_seen_by(group));
    *tx.agreed = Some(agreed);
    Ok(is)
}

impl Agreed {
    fn is_seen_by(&self, group: &Group) -> bool {
        self.origins.iter().all(|(origin, n)| {
            *origin == group.origin || group.seen.iter().any(|seen| seen.origin == *origin && seen.n >= *n)
        })
    }
}

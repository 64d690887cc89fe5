//! Pushed: what a follower sends of its pending changes, as the leader gets hold of it.
//!
//! A push is whole groups, or a part of one that is larger than a batch. Parts are put aside, each in a transaction of its
//! own, until the last is there: then the group is gone through part by part, so that what is in memory is bounded by the
//! batch and not by the group. Seqs in a push count from 1 within its groups and say nothing of any log.

use rusqlite::{OptionalExtension, params};

use crate::{
    entry::{Batch, Body, Entry, Group},
    error::Error,
    id::{DeviceId, OriginSeq},
    log::ROW_MAX,
    seal,
    store::Tx,
    term,
    wire::Message,
};

/// Most parts of one group that are put aside.
const PARTS_MAX: u64 = 4096;

/// A push that is all there.
pub(crate) struct Pushed<'p> {
    pub(crate) pusher: DeviceId,
    pub(crate) batch: &'p Batch,
}

/// What became of a push at first sight.
pub(crate) enum Arrival<'p> {
    /// It can be sequenced.
    Whole(Pushed<'p>),
    /// It is a part; the next is awaited.
    PutAside,
    /// It is nothing that a follower pushes.
    Unsound(&'static str),
}

impl<'p> Arrival<'p> {
    /// Takes in a push, which came as `message`.
    pub(crate) fn of(tx: &Tx<'_>, pusher: DeviceId, batch: &'p Batch, message: &[u8]) -> Result<Self, Error> {
        if let Some(why) = unsound(tx, pusher, batch)? {
            return Ok(Self::Unsound(why));
        }
        let device = pusher.to_string();
        let aside: Option<(u64, String, i64, u64)> = tx
            .conn
            .prepare_cached(
                "SELECT last, first_n || ' ' || last_n || ' ' || origin, tag,
                    (SELECT count(*) FROM sync_pushed WHERE device = ?1) FROM sync_pushed
                 WHERE device = ?1 ORDER BY first DESC LIMIT 1",
            )?
            .query_row([&device], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?;
        if let Some(group) = batch.groups.first().filter(|_| continues(batch)) {
            let follows = |(last, origin, tag, _): &(u64, String, i64, u64)| {
                let numbered = format!("{} {} {}", group.first_n, group.last_n, group.origin);
                *last == batch.after.seq.0 && *origin == numbered && *tag as u64 == group.tag
            };
            match &aside {
                Some(aside) if follows(aside) && aside.3 < PARTS_MAX => {}
                Some(aside) if follows(aside) => {
                    return Ok(Self::Unsound("its group has more parts than are put aside"));
                }
                _ => return Ok(Self::Unsound("a part of a group comes without the part before it")),
            }
        } else if aside.is_some() {
            // Another try begins anew.
            forget_parts(tx, pusher)?;
        }
        let Some(group) = batch.groups.first().filter(|_| batch.is_open()) else {
            return Ok(Self::Whole(Pushed { pusher, batch }));
        };
        tx.conn
            .prepare_cached(
                "INSERT INTO sync_pushed (device, first, last, origin, tag, message, first_n, last_n)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                device,
                batch.after.seq.0 + 1,
                batch.last().0,
                group.origin.to_string(),
                group.tag as i64,
                message,
                group.first_n.0,
                group.last_n.0
            ])?;
        Ok(Self::PutAside)
    }
}

/// Whether a push goes on with a group of which parts came before.
fn continues(batch: &Batch) -> bool {
    batch.groups.first().is_some_and(|group| group.first <= batch.after.seq)
}

fn forget_parts(tx: &Tx<'_>, pusher: DeviceId) -> Result<(), Error> {
    tx.conn.prepare_cached("DELETE FROM sync_pushed WHERE device = ?1")?.execute([pusher.to_string()])?;
    Ok(())
}

/// What is wrong with a push, whoever sent it; `None` if it can be looked at.
fn unsound(tx: &Tx<'_>, pusher: DeviceId, batch: &Batch) -> Result<Option<&'static str>, Error> {
    let is_sealed = |entry: &Entry| match &entry.body {
        Body::Change(change) => entry.n.is_some() && change.outcome.is_none(),
        Body::Member { .. } => entry.n.is_some(),
        Body::TermStart { .. } => false,
    };
    let is_too_large = |entry: &Entry| match &entry.body {
        Body::Change(change) => [Some(&change.row), change.before.as_ref()]
            .into_iter()
            .flatten()
            .any(|row| seal::size(row) > ROW_MAX),
        _ => false,
    };
    if !batch.entries.iter().all(is_sealed) {
        return Ok(Some("it holds what only a leader appends"));
    }
    if batch.entries.iter().any(is_too_large) {
        return Ok(Some("a row in it is over the limit"));
    }
    let mut groups = batch.groups.iter().peekable();
    for entry in &batch.entries {
        while groups.next_if(|group| group.last < entry.seq).is_some() {}
        let counts_on = |group: &&Group| {
            group.first <= entry.seq
                && entry.n.is_some_and(|n| n.0 == group.first_n.0 + (entry.seq.0 - group.first.0))
                && group.last.0 - group.first.0 == group.last_n.0 - group.first_n.0
        };
        if !groups.peek().is_some_and(counts_on) {
            return Ok(Some("its changes are not numbered one after the other"));
        }
    }
    let named = |device: DeviceId| {
        batch.entries.iter().any(|e| matches!(&e.body, Body::Member { device: d, .. } if *d == device))
    };
    // Who leads takes what is pending there, even where it was forced to lead by a log that has yet to name anybody.
    if tx.replica()?.device == Some(pusher) {
        return Ok(None);
    }
    for group in &batch.groups {
        // A member may carry what another one sealed, and its membership too.
        if !term::is_member(tx.conn, group.device)? && !named(group.device) {
            return Ok(Some("it holds changes of a device that is no member"));
        }
    }
    Ok(None)
}

impl Pushed<'_> {
    /// Calls `each` with every change of the group, or its member, and its number, in order, one part in memory at a time.
    pub(crate) fn each(
        &self,
        tx: &Tx<'_>,
        group: &Group,
        mut each: impl FnMut(OriginSeq, &Body) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if continues(self.batch) {
            let mut statement =
                tx.conn.prepare_cached("SELECT message FROM sync_pushed WHERE device = ?1 ORDER BY first")?;
            let mut rows = statement.query([self.pusher.to_string()])?;
            while let Some(row) = rows.next()? {
                let message: Vec<u8> = row.get(0)?;
                let damaged = |e: crate::wire::Unreadable| Error::Damaged(format!("a part put aside: {e}"));
                let Message::Push { batch, .. } = Message::decode(&message).map_err(damaged)? else {
                    return Err(Error::Damaged("a part put aside is another message".into()));
                };
                each_of(&batch.into_batch().map_err(damaged)?, group, &mut each)?;
            }
        }
        each_of(self.batch, group, &mut each)
    }

    /// Forgets the parts that were put aside.
    pub(crate) fn done(&self, tx: &Tx<'_>) -> Result<(), Error> {
        if continues(self.batch) { forget_parts(tx, self.pusher) } else { Ok(()) }
    }
}

fn each_of(
    batch: &Batch,
    group: &Group,
    each: &mut impl FnMut(OriginSeq, &Body) -> Result<(), Error>,
) -> Result<(), Error> {
    // Seqs count on from the batch's position, one for each entry.
    let begin = group.first.0.saturating_sub(batch.after.seq.0 + 1) as usize;
    let entries = batch.entries.iter().skip(begin).take_while(|entry| entry.seq <= group.last);
    for entry in entries {
        if let Some(n) = entry.n {
            each(n, &entry.body)?;
        }
    }
    Ok(())
}

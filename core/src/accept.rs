//! Accept: what a follower pushed goes into the log (rules S and Q). A leader step.
//!
//! Every change is decided against the log as it then is, its effect written to the tables, and one entry appended for
//! it, with those of what the database cascaded. A change that the database does not take, or that is not its author's
//! to make, has no effect; its entry keeps its values and says why. Changes of one atomic mark stand or fall together.
//!
//! Foreign keys are checked when the whole group is there, since its rows may refer to each other in a circle. A change
//! that then refers to nothing is refused, and the group is gone through once more without it.

use std::collections::HashMap;

use crate::{
    apply::{Writer, is_constraint},
    entry::{Batch, Body, Change, Decision, Entry, EntryKind, Group, Outcome},
    error::Error,
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    layout::Layouts,
    log::{self, Appender},
    park::{self, Identity},
    seal, standing,
    store::{Replica, Tx, origin_row},
    term,
    value::Value,
};

/// What accepting a push came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Accepted {
    /// All of it is in the log, which reaches to here.
    To(Position),
    /// The change before these is not in the log: nothing from it on was taken.
    Gap {
        /// Of the changes.
        origin: Origin,
        /// The number that would come next.
        expected: OriginSeq,
    },
    /// The pusher's position is not in this log: nothing was taken.
    Diverged,
    /// This device does not lead: nothing was taken.
    NotLeader(Term),
    /// What was pushed is nothing that a follower pushes: nothing was taken.
    Unsound(&'static str),
    /// The log holds another change under a number that was pushed: nothing from it on was taken.
    Forked {
        /// Of the changes.
        origin: Origin,
        /// Its number.
        n: OriginSeq,
    },
}

/// Sequences groups that `pusher` pushed, in their order. `position` is the top of the pusher's log. Their seqs say only
/// which entries belong to which group.
pub(crate) fn accept(
    tx: &mut Tx<'_>,
    pusher: DeviceId,
    position: Position,
    batch: &Batch,
) -> Result<Accepted, Error> {
    let replica = tx.replica()?;
    if !replica.is_leader() {
        return Ok(Accepted::NotLeader(replica.max_seen));
    }
    if let Some(why) = unsound(tx, batch)? {
        return Ok(Accepted::Unsound(why));
    }
    seal::seal_all(tx)?;
    if !term::holds(tx.conn, position)? {
        return Ok(Accepted::Diverged);
    }
    // What the database cascades from here on is part of what was pushed.
    tx.conn.prepare_cached("UPDATE sync_ctl SET mode = 2 WHERE id = 1")?.execute([])?;
    tx.conn.execute_batch("PRAGMA defer_foreign_keys = ON")?;
    let mut stopped = None;
    for group in &batch.groups {
        let changes: Vec<(OriginSeq, &Change)> = changes_of(batch, group).collect();
        match fresh_of(tx, group, &changes)? {
            Fresh::Changes { known, forked: None } => accept_group(tx, group, &changes[known..])?,
            // Who minted the origin gives what is pending there other numbers.
            Fresh::Changes { forked: Some(n), .. } if group.device == pusher => {
                stopped = Some(Accepted::Forked { origin: group.origin, n });
                break;
            }
            Fresh::Changes { known, forked: Some(_) } => {
                keep_forked(tx, group, &changes[..known])?;
                accept_group(tx, group, &changes[known..])?;
            }
            Fresh::Stopped(why) => {
                stopped = Some(why);
                break;
            }
        }
    }
    tx.conn.prepare_cached("UPDATE sync_ctl SET mode = 0 WHERE id = 1")?.execute([])?;
    match stopped {
        Some(why) => Ok(why),
        None => Ok(Accepted::To(tx.replica()?.top)),
    }
}

/// What is wrong with a push, whoever sent it; `None` if it can be looked at.
fn unsound(tx: &Tx<'_>, batch: &Batch) -> Result<Option<&'static str>, Error> {
    let is_sealed = |entry: &Entry| match &entry.body {
        Body::Change(change) => entry.n.is_some() && change.outcome.is_none(),
        _ => false,
    };
    if !batch.entries.iter().all(is_sealed) {
        return Ok(Some("it holds what only a leader appends"));
    }
    for group in &batch.groups {
        // A member may carry what another one sealed.
        if !term::is_member(tx.conn, group.device)? {
            return Ok(Some("it holds changes of a device that is no member"));
        }
    }
    Ok(None)
}

fn changes_of<'b>(batch: &'b Batch, group: &'b Group) -> impl Iterator<Item = (OriginSeq, &'b Change)> {
    // Seqs count on from the batch's position, one for each entry.
    let begin = (group.first.0.saturating_sub(batch.after.seq.0 + 1)) as usize;
    let count = (group.last.0 - group.first.0 + 1) as usize;
    batch.entries.iter().skip(begin).take(count).filter_map(|entry| match &entry.body {
        Body::Change(change) => Some((entry.n?, change)),
        _ => None,
    })
}

enum Fresh {
    /// All but the first ones.
    Changes {
        /// How many of the numbers the log has.
        known: usize,
        /// The first of them under which it has another change.
        forked: Option<OriginSeq>,
    },
    Stopped(Accepted),
}

/// Which of a group's changes the log does not have yet; decided before anything of it is appended.
fn fresh_of(tx: &Tx<'_>, group: &Group, changes: &[(OriginSeq, &Change)]) -> Result<Fresh, Error> {
    let row = origin_row(tx.conn, group.origin, group.device)?;
    let have = log::vector(tx.conn, row)?;
    let known = changes.iter().take_while(|(n, _)| *n <= have).count();
    let mut forked = None;
    for (n, _) in &changes[..known] {
        // Below the floor nothing is left to compare with.
        if log::tag_of(tx.conn, row, *n)?.is_some_and(|tag| tag != group.tag) {
            forked = Some(*n);
            break;
        }
    }
    let expected = OriginSeq(have.0 + 1);
    if changes.get(known).is_some_and(|(n, _)| *n != expected) {
        return Ok(Fresh::Stopped(Accepted::Gap { origin: group.origin, expected }));
    }
    Ok(Fresh::Changes { known, forked })
}

/// Keeps changes as dead letters, once each, whose numbers the log has for others: the device that carries them did not
/// mint their origin and cannot give them new ones.
fn keep_forked(tx: &mut Tx<'_>, group: &Group, changes: &[(OriginSeq, &Change)]) -> Result<(), Error> {
    let row = origin_row(tx.conn, group.origin, group.device)?;
    let mut kept = Vec::new();
    for (n, change) in changes {
        let is_other = log::tag_of(tx.conn, row, *n)?.is_some_and(|tag| tag != group.tag);
        let identity = Identity::of(group, Some(*n));
        if is_other && !park::is_kept(tx, identity)? {
            let decides = Decision::Keeps { origin: group.origin, n: *n, tag: group.tag };
            let reason = format!("the log holds another change {n} of origin {}", group.origin);
            let outcome = Some(Box::new(Outcome::refused(reason)));
            kept.push(Change { decides: Some(decides), outcome, ..(*change).clone() });
        }
    }
    if kept.is_empty() { Ok(()) } else { seal::seal_changes(tx, kept) }
}

/// Takes a group, going through it again for as long as that shows more that cannot be.
fn accept_group(tx: &mut Tx<'_>, group: &Group, changes: &[(OriginSeq, &Change)]) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut refused = Refused::new();
    loop {
        tx.conn.execute_batch("SAVEPOINT accepted")?;
        let pass = Pass::run(tx, group, changes, &refused)?;
        let found = pass.found_unsound(tx, changes, &refused)?;
        if found.is_empty() {
            tx.conn.execute_batch("RELEASE accepted")?;
            return Ok(());
        }
        tx.conn.execute_batch("ROLLBACK TO accepted; RELEASE accepted")?;
        // Numbers that were made on the way are gone with it.
        tx.numbers.forget();
        refused.extend(found);
    }
}

/// By index of the change: why it is refused.
type Refused = HashMap<usize, String>;

/// One way through a group.
struct Pass {
    /// Refused by the database on the way.
    refused: Refused,
    /// Changes that wrote or deleted their row.
    wrote: Vec<(usize, Change)>,
}

impl Pass {
    fn run(
        tx: &mut Tx<'_>,
        group: &Group,
        changes: &[(OriginSeq, &Change)],
        refused: &Refused,
    ) -> Result<Self, Error> {
        let Replica { max_seen: term, top, clock, .. } = tx.replica()?;
        let mut pass = Self { refused: Refused::new(), wrote: Vec::new() };
        let mut layouts = Layouts::new(tx.models);
        let (mut seq, mut clock) = (top.seq, clock);
        let now = tx.world.now();
        let (first_n, last_n) = (changes[0].0, changes[changes.len() - 1].0);
        // The group's row stands before its entries do: what one of them wrote is looked up by it for the next.
        let row = origin_row(tx.conn, group.origin, group.device)?;
        let open = Group { first_n, last_n, first: seq.next(), last: Seq(i64::MAX as u64), ..group.clone() };
        log::push_group(tx.conn, &open, row, clock)?;
        let mut appender = Appender::new(tx, top)?;
        for (i, (n, change)) in changes.iter().enumerate() {
            let mut change = (*change).clone();
            change.rank_at(now);
            let outcome = match refused.get(&i) {
                Some(reason) => Some(Outcome::refused(reason.clone())),
                None => standing::outcome(tx, &mut layouts, group, *n, &change)?,
            };
            change.outcome = outcome.map(Box::new);
            let derived = pass.write(tx, i, &mut change)?;
            clock = clock.max(change.ranking_stamp());
            seq = seq.next();
            let parked = park::concerns(&change).then(|| change.clone());
            appender.push(&Entry { seq, term, n: Some(*n), body: Body::Change(change) })?;
            if let Some(change) = parked {
                park::park(tx, Identity::of(group, Some(*n)), group.device, seq, &change)?;
            }
            for change in derived {
                seq = seq.next();
                appender.push(&Entry { seq, term, n: None, body: Body::Change(change) })?;
            }
        }
        log::close_group(tx.conn, open.first, seq, clock)?;
        Ok(pass)
    }

    /// Writes what the change comes to; what the database does not take is refused. What it cascaded.
    fn write(&mut self, tx: &Tx<'_>, i: usize, change: &mut Change) -> Result<Vec<Change>, Error> {
        if change.effect() == EntryKind::Noop {
            return Ok(Vec::new());
        }
        let Some(mut writer) = Writer::new(tx, &change.shape)? else { return Ok(Vec::new()) };
        tx.conn.prepare_cached("SAVEPOINT written")?.execute([])?;
        let written = writer.replace(change);
        match written {
            Ok(()) => tx.conn.prepare_cached("RELEASE written")?.execute([])?,
            Err(error) if is_constraint(&error) => {
                tx.conn.execute_batch("ROLLBACK TO written; RELEASE written")?;
                let reason = not_taken(&error);
                self.refused.insert(i, reason.clone());
                change.outcome = Some(Box::new(Outcome::refused(reason)));
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let derived = seal::derived(tx, &change.shape.model, &change.record)?
            .into_iter()
            .map(|derived| Change {
                stamp: change.stamp,
                rank: change.rank,
                actor: change.actor.clone(),
                ..derived
            })
            .collect();
        self.wrote.push((i, change.clone()));
        Ok(derived)
    }

    /// What this way through has shown that must be refused in the next: rows that refer to nothing, and what shares an
    /// atomic mark with a change that is refused.
    fn found_unsound(
        &self,
        tx: &Tx<'_>,
        changes: &[(OriginSeq, &Change)],
        refused: &Refused,
    ) -> Result<Refused, Error> {
        let mut found = Refused::new();
        for (i, change) in &self.wrote {
            if let Some(reason) = left_unsound(tx, change)? {
                found.insert(*i, reason);
            }
        }
        let all = |i: &usize| {
            found.get(i).or_else(|| self.refused.get(i)).or_else(|| refused.get(i)).map(String::as_str)
        };
        let mut marked: HashMap<&str, &str> = HashMap::new();
        for (i, (_, change)) in changes.iter().enumerate() {
            if let (Some(mark), Some(reason)) = (change.mark.as_deref(), all(&i)) {
                marked.entry(mark).or_insert(reason);
            }
        }
        let mut with_them = Refused::new();
        for (i, (_, change)) in changes.iter().enumerate() {
            if let Some(reason) = change.mark.as_deref().and_then(|mark| marked.get(mark))
                && all(&i).is_none()
            {
                with_them.insert(i, format!("a change that it stands or falls with was refused: {reason}"));
            }
        }
        found.extend(with_them);
        // Refused on the way alone is done with, unless others fall with it: then both must hold in the next pass.
        if !found.is_empty() {
            found.extend(self.refused.clone());
        }
        Ok(found)
    }
}

fn not_taken(error: &Error) -> String {
    match error {
        Error::Database { source, .. } => format!("the leader's database does not take it: {source}"),
        other => other.to_string(),
    }
}

/// Why what the change did to its record cannot stay, now that the whole group is there; `None` if it can.
fn left_unsound(tx: &Tx<'_>, change: &Change) -> Result<Option<String>, Error> {
    let Some(model) = tx.models.iter().find(|m| m.descriptor.id == change.shape.model) else {
        return Ok(None);
    };
    let key: Vec<Value> = change.shape.key.iter().map(|&i| change.row[i].clone()).collect();
    match change.effect() {
        EntryKind::Upsert => {
            let shape = &change.shape;
            let is_written = |column: &str| {
                let at = shape.fields.iter().position(|f| f.eq_ignore_ascii_case(column));
                let written =
                    |at| change.written().is_none_or(|fields| fields.iter().any(|&f| usize::from(f) == at));
                change.existed && at.is_some_and(written)
            };
            match model.references.refers_to_nothing(tx.conn, &key)? {
                Some(reason) => Ok(Some(reason)),
                None => model.references.was_referred_to(tx.conn, &key, is_written),
            }
        }
        EntryKind::Delete => model.references.is_referred_to(tx.conn, &key),
        _ => Ok(None),
    }
}

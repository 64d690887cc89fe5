//! Serving: what a device answers to those who follow it, or would like to (rules P, S and T). The loops that carry the
//! messages are in `node/serve.rs`; what a message comes to is decided here, each time by one step.

use std::collections::BTreeMap;

use rusqlite::Connection;
use tokio::sync::broadcast;

use crate::{
    accept::Accepted,
    engine::Driver,
    entry::{Batch, Body, Group, Run, common_prefix},
    error::Error,
    id::{DeviceId, Origin, Position, Seq, Term},
    leadership::Failover,
    log::{self, LogReader},
    reassign, sequence,
    status::AppliedChange,
    store::{self, Replica, Store, Tx},
    term,
    wire::{Message, PushStop},
};

/// Who asks to be served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) device: DeviceId,
    /// Whether it is a peer that was configured for the library.
    pub(crate) is_configured: bool,
}

/// A subscription, as far as the follower has told of its log.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    max_seen: Term,
    top: Position,
    /// The runs that matter, ascending.
    runs: Vec<Run>,
    /// They reach back to seq 1.
    complete: bool,
}

/// Why nothing is made of what a follower tells of its log.
pub(crate) const NO_HISTORY: &str = "its history is none that a log can have";

impl Subscription {
    /// What `Subscribe` says; `None` where no log can be like that.
    pub(crate) fn of(max_seen: Term, top: Position, runs: Vec<Run>, complete: bool) -> Option<Self> {
        let sound = ascend(&runs) && !(complete && runs.is_empty() != (top.seq == Seq(0)));
        sound.then_some(Self { max_seen, top, runs, complete })
    }

    /// Takes in the runs before those at hand, which were asked for; `None` where no log can be like that.
    pub(crate) fn with_older(self, older: Vec<Run>, complete: bool) -> Option<Self> {
        if older.is_empty() && !complete {
            return None;
        }
        // Only what lies before the runs at hand can tell more. The first of those stays, to say where the older ones
        // end.
        let mut runs = older;
        runs.extend(self.runs.first().copied());
        ascend(&runs).then_some(Self { runs, complete, ..self })
    }

    /// Whether one of its runs is of a term in this log, or there are no more to come.
    fn is_enough_for(&self, mine: &[Run]) -> bool {
        self.complete || self.runs.iter().any(|run| mine.iter().any(|m| m.term == run.term))
    }
}

/// Whether runs are what a log can have: from 1 on, each behind the one before it.
fn ascend(runs: &[Run]) -> bool {
    runs.first().is_none_or(|run| run.first > Seq(0)) && runs.is_sorted_by(|a, b| a.first < b.first)
}

/// How a subscription is answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// By entries, from here on.
    Serve(Served),
    /// By this message, after which the channel ends.
    With(Message),
    /// Older runs of the follower's history are needed first: `MoreHistory`.
    MoreHistory,
}

/// A follower that is served.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) peer: DeviceId,
    /// The term in which it is: all that is appended meanwhile is of it.
    pub(crate) lead: Term,
    pub(crate) floor: Seq,
    /// The log has this, and so has the follower: its slot.
    pub(crate) from: Position,
    /// The log's history when it began.
    runs: Vec<Run>,
}

impl Served {
    /// Whether a log that is durable up to `top` holds the position.
    pub(crate) fn holds(&self, top: Seq, position: Position) -> bool {
        if position.seq == Seq(0) {
            return position == Position::EMPTY;
        }
        let run = self.runs.iter().rev().find(|run| run.first <= position.seq);
        position.seq <= top && run.is_some_and(|run| run.term == position.term)
    }
}

/// Answers a subscription.
pub(crate) fn subscribe(
    driver: &mut Driver,
    peer: Peer,
    precedence: &BTreeMap<DeviceId, u8>,
    asked: &Subscription,
) -> Result<Answer, Error> {
    // Behind what is pending nobody is made a member.
    sequence::own_batch(driver)?;
    let standing = driver.transaction(|tx| {
        // Membership first: nobody unknown moves a term here.
        if peer.is_configured {
            term::admit(tx, &[peer.device], precedence)?;
        }
        if !term::is_member(tx.conn, peer.device)? {
            return Ok(None);
        }
        term::adopt(tx, asked.max_seen)?;
        tx.replica().map(Some)
    })?;
    driver.publish()?;
    let Some(replica) = standing else {
        let library = store::replica(driver.store.connection())?.ok_or(Error::NoLibrary)?.library;
        let reason = format!(
            "device {} is not a member of library {library}; nothing was changed. Add it as a peer at the leader first",
            peer.device
        );
        return Ok(Answer::With(Message::Refused { reason }));
    };
    // One that granted the lead goes on sending what it has, until somebody has taken it (rule H).
    if !replica.is_leader() && reassign::unanswered(&replica).is_none() {
        return Ok(Answer::With(not_leader(replica.max_seen)));
    }
    let (lead, floor, my_top) = (replica.max_seen, replica.floor, replica.top);
    let mine = log::runs(driver.store.connection())?;
    if !asked.is_enough_for(&mine) {
        return Ok(Answer::MoreHistory);
    }
    let top = asked.top;
    let common = common_prefix(&mine, my_top.seq, &asked.runs, top.seq);
    Ok(if common < floor && common < my_top.seq {
        Answer::With(Message::BelowFloor { lead, common, floor })
    } else if common < top.seq {
        Answer::With(Message::Diverged { lead, common, top, floor })
    } else {
        Answer::Serve(Served { peer: peer.device, lead, floor, from: top, runs: mine })
    })
}

/// Says who leads, as far as this device knows.
pub(crate) fn not_leader(max_seen: Term) -> Message {
    let leader = (max_seen > Term::ZERO).then_some(max_seen.leader);
    Message::NotLeader { max_seen, leader }
}

/// The next message of entries for a follower that has everything up to `after`, and where it then stands.
pub(crate) fn entries(
    conn: &Connection,
    served: (Term, Seq),
    after: Seq,
    until: Position,
) -> Result<(Message, Seq), Error> {
    let excerpt = LogReader::default().excerpt(conn, after, until.seq)?;
    let (lead, floor) = served;
    Ok((Message::excerpt(lead, floor, until, &excerpt)?, excerpt.last()))
}

/// What a follower pushed.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) max_seen: Term,
    pub(crate) position: Position,
    pub(crate) batch: Batch,
    /// What it came as, for putting a part aside.
    pub(crate) message: Vec<u8>,
}

/// Sequences what a follower pushed, makes it durable (rule D), and says what to answer. `changes` is told of what it changes
/// here.
pub(crate) fn take_push(
    driver: &mut Driver,
    pusher: DeviceId,
    lead: Term,
    push: Push,
    changes: &broadcast::Sender<AppliedChange>,
) -> Result<Message, Error> {
    let Push { max_seen, position, batch, message } = push;
    // Tables are as the log has them when others' changes are taken.
    sequence::own(driver)?;
    let before = store::top(driver.store.connection())?.seq;
    let origins: Option<Vec<Origin>> =
        (changes.receiver_count() > 0).then(|| batch.groups.iter().map(|group| group.origin).collect());
    let accepted = sequence::pushed(driver, pusher, max_seen, position, batch, &message)?;
    driver.tell()?;
    if let Some(origins) = origins {
        tell_changes(&driver.store, before, &origins, changes)?;
    }
    Ok(match accepted {
        Accepted::To(top) => Message::Pushed { lead, top },
        Accepted::Gap { origin, expected } => {
            Message::PushStopped { lead, why: PushStop::Gap { origin, expected } }
        }
        Accepted::Unsound(why) => {
            let reason = format!("what was pushed is not taken: {why}; nothing was changed");
            tracing::warn!(%pusher, reason, "refused");
            Message::Refused { reason }
        }
        Accepted::Diverged => Message::PushStopped { lead, why: PushStop::Diverged },
        Accepted::Forked { change } => Message::PushStopped { lead, why: PushStop::Forked { change } },
        Accepted::NotLeader(max_seen) => not_leader(max_seen),
    })
}

/// Tells of what these origins have in the log behind `before`: others were sealed here meanwhile.
fn tell_changes(
    store: &Store,
    before: Seq,
    origins: &[Origin],
    changes: &broadcast::Sender<AppliedChange>,
) -> Result<(), Error> {
    let top = store::top(store.connection())?.seq;
    let mut reader = LogReader::default();
    let mut after = before;
    while after < top {
        let batch = reader.read(store.connection(), after, top)?;
        for entry in &batch.entries {
            let group = &batch.groups[batch.groups.partition_point(|group| group.last < entry.seq)..];
            let is_of = |group: &&Group| group.first <= entry.seq && origins.contains(&group.origin);
            if let (Some(_), Body::Change(change)) = (group.first().filter(is_of), &entry.body)
                && let Some(change) = AppliedChange::of(&change.shape, &change.record, change.effect())
            {
                // Nobody listens any more: fine.
                let _ = changes.send(change);
            }
        }
        if batch.entries.is_empty() {
            return Ok(());
        }
        after = batch.last();
    }
    Ok(())
}

/// Up to where all members have what `own` leads, by what each has confirmed in its term.
pub(crate) fn stable(
    members: &[DeviceId],
    own: DeviceId,
    confirmed: impl Fn(DeviceId) -> Option<Seq>,
) -> Seq {
    let others = members.iter().filter(|member| **member != own);
    others.map(|member| confirmed(*member).unwrap_or(Seq(0))).min().unwrap_or(Seq(0))
}

/// Whether what a peer says of terms counts: it is a member, or the log has yet to name any and it is configured.
fn is_heard(tx: &Tx<'_>, peer: Peer) -> Result<bool, Error> {
    Ok(term::is_member(tx.conn, peer.device)? || (peer.is_configured && tx.replica()?.top.seq == Seq(0)))
}

/// Answers the question where this device stands; `unheard` is as [`Message::Standing`] has it.
pub(crate) fn inquire(
    driver: &mut Driver,
    peer: Peer,
    max_seen: Term,
    unheard: Option<u64>,
    failover: Option<Failover>,
) -> Result<Message, Error> {
    let heard = driver.transaction(|tx| {
        let heard = is_heard(tx, peer)?;
        if heard {
            term::adopt(tx, max_seen)?;
        }
        Ok(heard)
    })?;
    driver.publish()?;
    // Nothing is told that a crash could take back (rule D).
    driver.store.sync()?;
    let conn = driver.store.connection();
    let replica = store::replica(conn)?.ok_or(Error::NoLibrary)?;
    let role = replica.device.map_or(Ok(None), |device| term::role_of(conn, device))?;
    let priority = failover.and_then(|failover| failover.standing_of(role));
    Ok(match heard {
        true => Message::Standing {
            max_seen: replica.max_seen,
            top: replica.top,
            // Nobody else is to lead before its grant was answered.
            leads: replica.is_leader() || reassign::unanswered(&replica).is_some(),
            unheard,
            priority,
        },
        false => no_member(peer, &replica),
    })
}

/// Whether a device that asks this one to hand its lead over is heard; what it is answered otherwise. One that has granted its
/// lead already will know who leads.
pub(crate) fn may_reassign(
    driver: &mut Driver,
    peer: Peer,
    max_seen: Term,
) -> Result<Result<(), Message>, Error> {
    let is_member = driver.transaction(|tx| {
        let is_member = term::is_member(tx.conn, peer.device)?;
        if is_member {
            term::adopt(tx, max_seen)?;
        }
        Ok(is_member)
    })?;
    driver.publish()?;
    driver.store.sync()?;
    let replica = store::replica(driver.store.connection())?.ok_or(Error::NoLibrary)?;
    Ok(if !is_member {
        Err(no_member(peer, &replica))
    } else if replica.is_leader() || reassign::unanswered(&replica).is_some() {
        Ok(())
    } else {
        Err(not_leader(replica.max_seen))
    })
}

fn no_member(peer: Peer, replica: &Replica) -> Message {
    let reason =
        format!("device {} is not a member of library {}; nothing was changed", peer.device, replica.library);
    Message::Refused { reason }
}

/// A peer has told of a higher term: this device does not lead any more (rule T). Its channels end with that.
pub(crate) fn adopt(driver: &mut Driver, max_seen: Term) -> Result<(), Error> {
    driver.transaction(|tx| term::adopt(tx, max_seen))?;
    driver.publish()
}

/// Writes down what a follower confirmed, for people.
pub(crate) fn note(driver: &mut Driver, peer: DeviceId, position: Position) -> Result<(), Error> {
    driver.transaction(|tx| {
        // A position that is not in this log would mislead whoever reads it.
        if !term::holds(tx.conn, position)? || store::replica(tx.conn)?.is_none() {
            return Ok(());
        }
        let now = tx.world.now();
        term::note_position(tx, peer, position, now)
    })
}

//! Following: what a device makes of what its leader sends, and what it sends itself (rules P, S, A and T). The loops that
//! carry the messages are in `node/follow.rs`; what a message comes to is decided here, by steps.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::broadcast;

use crate::{
    apply::{self, Applied, Arrived, Images, Rows, Touched, is_constraint},
    engine::Driver,
    entry::{Run, Seen},
    error::Error,
    id::{DeviceId, Position, Seq, Term},
    life, log,
    pending::{self, PushedUpTo},
    status::AppliedChange,
    store, term,
    unwind::{Unwinding, Unwound},
    wire::{HISTORY_MAX, Message, PushStop, Unreadable},
};

/// How following somebody ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The other side does not lead; it may know who does.
    NotLeader(Option<DeviceId>),
    /// The channel broke or could not be opened, or the other side does not keep to the protocol.
    Lost(String),
    /// Waiting does not help.
    Stopped(String),
    /// The log here parts from the leader's: its tail goes back into pending before it is followed again.
    Diverged {
        unwinding: Unwinding,
        /// What the leader has compacted up to.
        floor: Seq,
    },
    /// What this device needs behind `common` is compacted there, up to `floor`.
    BelowFloor {
        /// The last entry that both logs have.
        common: Seq,
        /// See above.
        floor: Seq,
    },
}

/// What a message came to.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Nothing is left to do.
    Nothing,
    /// This is to be sent.
    Reply(Message),
    /// The leader's top, which answers the questions up to this number.
    Top { position: Position, stable: Seq, answers: u64 },
    /// Entries are in the log and the tables, which reach to here.
    Applied(Position),
    /// A part of a large group is put aside.
    Staged,
    /// The leader has what was pushed: to be told with [`Pushes::answered`].
    Pushed,
    /// This device may lead next: to be tried with [`reassign::take_grant`](crate::reassign::take_grant).
    Granted { lead: Term, number: u64, position: Position },
    /// The entries met a constraint as they came: the same is to be done once more, where it need not be quick.
    Again,
    /// It is over.
    End(End),
}

/// A device that is followed, on one channel.
#[derive(Clone, Debug)]
pub(crate) struct Following {
    pub(crate) peer: DeviceId,
    /// Its term, once that was found to be no lower than any that this device has seen.
    pub(crate) lead: Option<Term>,
    /// It has said where its log reaches, as only who serves this device does.
    is_serving: bool,
}

/// What was pushed on one channel.
#[derive(Clone, Debug)]
pub(crate) struct Pushes {
    upto: PushedUpTo,
    unanswered: usize,
}

/// A push, to be sent when the log is durable (rule D), and what is pushed then.
pub(crate) struct NextPush {
    pub(crate) message: Vec<u8>,
    upto: PushedUpTo,
}

/// Pushes that may wait for an answer: what the leader is busy with while a large group is applied here. They are kept by
/// neither side, but where the network has them.
const PUSHES_AHEAD: usize = 4;

impl Pushes {
    /// Nothing was pushed.
    pub(crate) const NONE: Self = Self { upto: PushedUpTo::NOTHING, unanswered: 0 };

    /// Whether there is something to be pushed, which is pending up to the id `last`, and the leader keeps up with answering.
    pub(crate) fn is_due(&self, last: i64) -> bool {
        self.upto.id < last && self.unanswered < PUSHES_AHEAD
    }

    /// Reads the next push: what is pending behind what was pushed; `None` where there is nothing.
    pub(crate) fn next(&self, conn: &Connection) -> Result<Option<NextPush>, Error> {
        // What is pending, the log before it, and the term, as they were at one time.
        let read = conn.unchecked_transaction()?;
        let Some(replica) = store::replica(&read)? else { return Ok(None) };
        let Some(push) = pending::read(&read, &self.upto)? else { return Ok(None) };
        let message = Message::push(replica.max_seen, replica.top, &push.batch).encode();
        Ok(Some(NextPush { message, upto: PushedUpTo::after(&push) }))
    }

    /// It goes out now: as this.
    pub(crate) fn sent(&mut self, push: NextPush) -> Vec<u8> {
        self.upto = push.upto;
        self.unanswered += 1;
        push.message
    }

    /// The leader has taken one; an end where there was none to take.
    pub(crate) fn answered(&mut self, leader: DeviceId) -> Option<End> {
        let Some(unanswered) = self.unanswered.checked_sub(1) else {
            tracing::warn!(peer = %leader, "a leader answers a push that was not made");
            return Some(End::Lost(format!("device {leader} does not keep to the protocol")));
        };
        self.unanswered = unanswered;
        None
    }
}

/// What begins a subscription.
pub(crate) struct Begun {
    pub(crate) subscribe: Message,
    /// Runs of the log that were not told of, ascending.
    pub(crate) older: Vec<Run>,
    pub(crate) top: Position,
}

/// Where this device stands, durably (rule D).
pub(crate) fn subscribe(driver: &mut Driver) -> Result<Begun, Error> {
    driver.store.sync()?;
    let conn = driver.store.connection();
    let replica = store::replica(conn)?.ok_or(Error::NoLibrary)?;
    // Parts that were put aside are sent again from the top: a new leader may have cut them otherwise.
    let mut older = log::runs(conn)?;
    let (history, complete) = newest(&mut older);
    let top = replica.top;
    let subscribe = Message::Subscribe { max_seen: replica.max_seen, top, history, complete };
    Ok(Begun { subscribe, older, top })
}

/// The answer to `MoreHistory`: the newest of the runs that were not told of, which it takes off.
pub(crate) fn more_history(older: &mut Vec<Run>) -> Message {
    let (runs, complete) = newest(older);
    Message::History { runs, complete }
}

/// The newest runs that one message holds, taken off the end, and whether that is all.
fn newest(runs: &mut Vec<Run>) -> (Vec<Run>, bool) {
    let newest = runs.split_off(runs.len().saturating_sub(HISTORY_MAX));
    (newest, runs.is_empty())
}

/// Takes a chunk of a tail that parts from the leader's log back into pending, and tells of it.
pub(crate) fn unwind(driver: &mut Driver, unwinding: &mut Unwinding) -> Result<Unwound, Error> {
    let unwound = driver.transaction(|tx| unwinding.chunk(tx))?;
    driver.tell()?;
    Ok(unwound)
}

/// A message from the leader, with what could be done about it beside the step.
pub(crate) enum Unpacked {
    Entries(Box<Received>),
    Other(Message),
}

/// Entries as they came, to be applied.
pub(crate) struct Received {
    lead: Term,
    pub(crate) top: Position,
    pub(crate) arrived: Arrived,
    message: Vec<u8>,
    /// They met a constraint as they came.
    step_out: bool,
    changes: broadcast::Sender<AppliedChange>,
}

impl Unpacked {
    /// Reads a message; `changes` is told of what its entries change.
    pub(crate) fn of(
        message: Vec<u8>,
        changes: &broadcast::Sender<AppliedChange>,
    ) -> Result<Self, Unreadable> {
        Ok(match Message::decode(&message)? {
            Message::Entries { lead, top, batch, .. } => {
                let arrived = Arrived::of(batch.into_batch()?);
                let changes = changes.clone();
                Self::Entries(Box::new(Received { lead, top, arrived, message, step_out: false, changes }))
            }
            other => Self::Other(other),
        })
    }
}

impl Received {
    /// The term in which they were sent.
    pub(crate) fn lead(&self) -> Term {
        self.lead
    }

    /// Whether the leader had more when it sent them.
    pub(crate) fn has_more_behind(&self) -> bool {
        self.arrived.last() < self.top.seq
    }

    /// Whether they are applied in a moment.
    pub(crate) fn is_small(&self) -> bool {
        !self.step_out && self.arrived.is_small(&self.message)
    }

    fn apply(&mut self, driver: &mut Driver) -> Result<Applied, Error> {
        let mut told = Told::new(&self.changes);
        let Self { lead, arrived, message, step_out, .. } = self;
        let applied = driver.transaction(|tx| {
            let rows = if *step_out { Rows::StepOutFirst } else { Rows::AsTheyCome };
            apply::apply(tx, *lead, arrived, message, rows, told.touched())
        })?;
        told.tell();
        if let Applied::To(_) = applied {
            driver.tell()?;
        }
        Ok(applied)
    }
}

/// What is told of applied changes once they are committed.
struct Told<'c> {
    changes: &'c broadcast::Sender<AppliedChange>,
    /// `None` where nobody listens.
    touched: Option<Touched>,
}

impl<'c> Told<'c> {
    fn new(changes: &'c broadcast::Sender<AppliedChange>) -> Self {
        Self { changes, touched: (changes.receiver_count() > 0).then(Touched::new) }
    }

    fn touched(&mut self) -> Option<&mut Touched> {
        self.touched.as_mut()
    }

    fn tell(self) {
        for (shape, record, kind) in self.touched.into_iter().flatten() {
            if let Some(change) = AppliedChange::of(&shape, &record, kind) {
                // Nobody listens any more: fine.
                let _ = self.changes.send(change);
            }
        }
    }
}

/// Batches that one transaction applies, and how long it goes on taking more: about as long as the engine holds the
/// database's one writer, and for as long as nobody in this process waits for it, up to a moment that others do not notice.
const TOGETHER_MAX: usize = 32;
const TOGETHER_FOR: Duration = Duration::from_millis(40);
const TOGETHER_ALONE: Duration = Duration::from_millis(200);

/// Whether a transaction that has lasted so long takes more batches.
fn has_time(taken: Duration, is_waited_for: bool) -> bool {
    taken < if is_waited_for { TOGETHER_FOR } else { TOGETHER_ALONE }
}

/// Says what is there behind what was taken; waits for it a little, until somebody waits for the writer.
type More<'m> = dyn FnMut(&dyn Fn() -> bool) -> Option<Box<Received>> + 'm;

/// What batches came to that were applied together.
struct Together {
    /// The last that was looked at.
    applied: Applied,
    /// Where the log reaches now, if that is further than before, and the leader's as the last of them told it.
    reached: Option<(Position, Position)>,
}

/// Applies what was received, and with it in one transaction what is there behind it. Where that met a constraint, nothing was
/// done, and the messages are given back.
fn apply_together(
    driver: &mut Driver,
    first: Box<Received>,
    more: &mut More<'_>,
) -> Result<Result<Together, Vec<Vec<u8>>>, Error> {
    let began = Instant::now();
    let changes = first.changes.clone();
    let mut told = Told::new(&changes);
    let mut taken = Vec::new();
    let mut received = first;
    let gate = driver.gate();
    let applied = driver.transaction(|tx| {
        let (mut images, mut reached) = (Images::default(), None);
        loop {
            let Received { lead, arrived, message, top, .. } = &mut *received;
            let applied =
                apply::apply(tx, *lead, arrived, message, Rows::AtTheEnd(&mut images), told.touched());
            // The one that met a constraint is given back with the others.
            taken.push(std::mem::take(message));
            let applied = applied?;
            if let Applied::To(position) = applied {
                reached = Some((position, *top));
            }
            let goes_on = matches!(applied, Applied::To(_) | Applied::Staged(_))
                && received.has_more_behind()
                && taken.len() < TOGETHER_MAX
                && has_time(began.elapsed(), gate.is_waited_for());
            match if goes_on { more(&|| gate.is_waited_for()) } else { None } {
                Some(next) => received = next,
                None => {
                    images.write(tx)?;
                    return Ok(Together { applied, reached });
                }
            }
        }
    });
    match applied {
        Ok(together) => {
            told.tell();
            if together.reached.is_some() {
                driver.tell()?;
            }
            Ok(Ok(together))
        }
        Err(error) if is_constraint(&error) => Ok(Err(taken)),
        Err(error) => Err(error),
    }
}

impl Following {
    pub(crate) fn of(peer: DeviceId) -> Self {
        Self { peer, lead: None, is_serving: false }
    }

    /// Whether it takes what is pushed, as far as is known. Which of two terms is the higher is decided where pushes are taken:
    /// they say what this device has seen.
    pub(crate) fn takes_pushes(&self) -> bool {
        self.is_serving || self.lead.is_some()
    }

    /// Why nothing is used of a message that names another leader than the device it came from; `None` if it is its
    /// own (rule P: who leads a term says so itself).
    fn foreign(&self, lead: Term) -> Option<Heard> {
        (lead.leader != self.peer).then(|| {
            tracing::warn!(peer = %self.peer, %lead, "a device sent what only another may");
            Heard::End(End::Lost(format!(
                "device {} does not keep to the protocol: it speaks for a term that device {} leads; nothing of it \
                 was used",
                self.peer, lead.leader
            )))
        })
    }

    /// Takes entries, and with them, in one transaction, what `more` says is there behind them from the same leader: of a
    /// record that several of them change, the table sees the last image only. With what that came to comes the leader's top,
    /// as the last of them told it.
    pub(crate) fn take_together(
        &mut self,
        driver: &mut Driver,
        first: Box<Received>,
        more: &mut More<'_>,
    ) -> Result<(Heard, Position), Error> {
        let (lead, mut top, changes) = (first.lead, first.top, first.changes.clone());
        if let Some(foreign) = self.foreign(lead) {
            return Ok((foreign, top));
        }
        let messages = match apply_together(driver, first, more)? {
            Ok(Together { applied, reached }) => {
                let applied = match (applied, reached) {
                    (Applied::Staged(_), Some((position, _))) => Applied::To(position),
                    (applied, _) => applied,
                };
                return Ok((self.came_to(lead, applied), reached.map_or(top, |(_, top)| top)));
            }
            Err(messages) => messages,
        };
        let mut heard = Heard::Nothing;
        for message in messages {
            let damaged = |e: Unreadable| Error::Damaged(format!("what was read before: {e}"));
            let Unpacked::Entries(mut received) = Unpacked::of(message, &changes).map_err(damaged)? else {
                continue;
            };
            top = received.top;
            heard = self.take_entries(driver, &mut received)?;
            if let Heard::Again = heard {
                heard = self.take_entries(driver, &mut received)?;
            }
            if let Heard::End(_) = heard {
                break;
            }
        }
        Ok((heard, top))
    }

    /// Takes entries.
    pub(crate) fn take_entries(
        &mut self,
        driver: &mut Driver,
        received: &mut Received,
    ) -> Result<Heard, Error> {
        if let Some(foreign) = self.foreign(received.lead) {
            return Ok(foreign);
        }
        let applied = match received.apply(driver) {
            Err(error) if is_constraint(&error) && !received.step_out => {
                received.step_out = true;
                return Ok(Heard::Again);
            }
            applied => applied?,
        };
        Ok(self.came_to(received.lead, applied))
    }

    fn came_to(&mut self, lead: Term, applied: Applied) -> Heard {
        let peer = self.peer;
        match applied {
            Applied::To(position) => {
                self.lead = Some(lead);
                Heard::Applied(position)
            }
            Applied::Staged(_) => {
                // The term was looked at: what is pending goes while the rest of a large group comes.
                self.lead = Some(lead);
                Heard::Staged
            }
            Applied::OutOfOrder(position) => Heard::End(End::Lost(format!(
                "what device {peer} sent does not follow on {position}; subscribing again"
            ))),
            Applied::Unsound(what) => Heard::End(End::Lost(format!(
                "device {peer} does not keep to the protocol: {what}; nothing of it was used"
            ))),
            Applied::Stale(seen) => Heard::End(End::NotLeader(Some(seen.leader))),
            Applied::Differs(seq) => Heard::End(End::Stopped(format!(
                "entry {seq} here differs from device {peer}'s; nothing was changed. One of the two databases was \
                 changed from outside or restored: keep a copy and let this device join anew"
            ))),
        }
    }

    /// What a message comes to for which nothing has to be looked up; `None` where it takes a step ([`Following::take`]).
    /// `older` are the runs that were not told of.
    pub(crate) fn take_at_once(&mut self, message: &Message, older: &mut Vec<Run>) -> Option<Heard> {
        self.is_serving |= matches!(message, Message::Top { lead, .. } if lead.leader == self.peer);
        match message {
            Message::Top { lead, position, stable, answers, .. } if self.lead == Some(*lead) => {
                Some(Heard::Top { position: *position, stable: *stable, answers: *answers })
            }
            Message::Pushed { lead, .. } if self.lead == Some(*lead) => Some(Heard::Pushed),
            Message::MoreHistory => Some(Heard::Reply(more_history(older))),
            Message::Refused { reason } => {
                tracing::warn!(peer = %self.peer, reason, "refused");
                Some(Heard::End(End::Lost(format!("device {} refused: {reason}", self.peer))))
            }
            _ => None,
        }
    }

    /// Takes any other message.
    pub(crate) fn take(&mut self, driver: &mut Driver, message: Message) -> Result<Heard, Error> {
        let peer = self.peer;
        if let Message::Top { lead, .. }
        | Message::Pushed { lead, .. }
        | Message::PushStopped { lead, .. }
        | Message::Diverged { lead, .. }
        | Message::Grant { lead, .. }
        | Message::BelowFloor { lead, .. } = &message
            && let Some(foreign) = self.foreign(*lead)
        {
            return Ok(foreign);
        }
        match message {
            Message::Top { lead, position, stable, answers, .. } => {
                Ok(self.adopt(driver, lead)?.unwrap_or(Heard::Top { position, stable, answers }))
            }
            Message::Pushed { lead, .. } => Ok(self.adopt(driver, lead)?.unwrap_or(Heard::Pushed)),
            Message::NotLeader { max_seen, leader } => {
                // Whoever may be asked for the leader's log may tell of a leader.
                driver.transaction(|tx| term::adopt(tx, max_seen))?;
                driver.tell()?;
                Ok(Heard::End(End::NotLeader(leader)))
            }
            Message::Grant { lead, number, position } => Ok(Heard::Granted { lead, number, position }),
            Message::PushStopped { why, .. } => Ok(Heard::End(self.push_stopped(driver, why)?)),
            Message::Diverged { lead, common, top, floor } => {
                Ok(Heard::End(End::Diverged { unwinding: Unwinding::new(lead, common, top), floor }))
            }
            Message::BelowFloor { common, floor, .. } => Ok(Heard::End(End::BelowFloor { common, floor })),
            other => {
                tracing::warn!(%peer, ?other, "a leader sent what only a follower may");
                Ok(Heard::End(End::Lost(format!("device {peer} does not keep to the protocol"))))
            }
        }
    }

    /// Adopts the leader's term; `None` if this device may follow it.
    fn adopt(&mut self, driver: &mut Driver, lead: Term) -> Result<Option<Heard>, Error> {
        let seen = driver.transaction(|tx| {
            term::adopt(tx, lead)?;
            Ok(tx.replica()?.max_seen)
        })?;
        driver.tell()?;
        if seen > lead {
            return Ok(Some(Heard::End(End::NotLeader(Some(seen.leader)))));
        }
        self.lead = Some(lead);
        Ok(None)
    }

    fn push_stopped(&self, driver: &mut Driver, why: PushStop) -> Result<End, Error> {
        let peer = self.peer;
        Ok(match why {
            // The next session begins with what is pending then.
            PushStop::Gap { origin, expected } => End::Lost(format!(
                "device {peer} lacks change {expected} of origin {origin}, which is not pending here; pulling first"
            )),
            PushStop::Diverged => {
                End::Lost(format!("device {peer} does not know the log here; subscribing again"))
            }
            PushStop::Forked { change } => {
                let renamed = driver.transaction(|tx| life::rename(tx, change))?;
                let Seen { origin, n, .. } = change;
                driver.publish()?;
                let text = format!(
                    "device {peer}'s log holds another life of origin {origin} than that of change {n}, which is pending \
                     here: the database in which it was sealed was restored or copied. {renamed} pending changes go by \
                     other names from now on; nothing is lost"
                );
                tracing::warn!("{text}");
                End::Lost(text)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_taken_together_for_longer_where_nobody_waits_and_never_without_end() {
        let moment = Duration::from_nanos(1);
        for (is_waited_for, most) in [(true, TOGETHER_FOR), (false, TOGETHER_ALONE)] {
            assert!(has_time(most - moment, is_waited_for));
            assert!(!has_time(most, is_waited_for));
        }
    }
}

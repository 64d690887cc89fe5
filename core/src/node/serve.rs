//! Serving followers: one task for each channel that a peer opened.
//!
//! A subscription sends entries as the log grows, never beyond what is durable here (rule D), and takes the
//! follower's confirmations meanwhile on a task of its own, so that neither waits for the other.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::Shared;
use crate::{
    accept::{self, Accepted},
    attempt::{self, Attempt},
    engine::{Driver, Pulse, Tail},
    entry::{Run, common_prefix},
    error::Error,
    id::{DeviceId, Position, Seq, Term},
    store, term,
    transport::{Channel, MessageReceiver, MessageSender, TransportError},
    wire::{Columns, Message, PushStop, Unreadable},
};

/// How long a peer that opened a channel may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How often a follower hears of the leader while the log does not grow.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Channels served at once; a peer that opens one more is refused.
const CHANNELS_MAX: usize = 64;
/// Questions of one follower that wait to be answered; its channel is not read until there is a place.
const ASKED_QUEUE: usize = 4;

/// Takes channels until the node stops.
pub(super) async fn accept(shared: Arc<Shared>, mut incoming: mpsc::Receiver<Channel>) {
    let mut channels = JoinSet::new();
    let mut number = 0u64;
    loop {
        let channel = tokio::select! {
            channel = incoming.recv() => channel,
            _ = channels.join_next(), if !channels.is_empty() => continue,
            () = shared.stopped() => None,
        };
        let Some(mut channel) = channel else { break };
        if channels.len() >= CHANNELS_MAX {
            let reason = format!("{CHANNELS_MAX} channels are being served already; try again later");
            refuse(&shared, channel.peer, channel.sender.as_mut(), reason).await;
            continue;
        }
        number += 1;
        let shared = Arc::clone(&shared);
        channels.spawn(async move {
            let peer = channel.peer;
            tokio::select! {
                done = serve(&shared, channel, number) => if let Err(error) = done {
                    tracing::warn!(library = %shared.library.id, %peer, %error, "a follower's channel ended");
                    shared.library.status.send_modify(|status| status.last_error = Some(error.to_string()));
                },
                () = shared.stopped() => {}
            }
            shared.set_slot(peer, number, None);
        });
    }
    channels.shutdown().await;
}

/// Tells the peer why it is not served, and the log here.
async fn refuse(shared: &Shared, peer: DeviceId, sender: &mut dyn MessageSender, reason: String) {
    tracing::warn!(library = %shared.library.id, %peer, reason, "refused; nothing was changed");
    // A peer that is gone already needs no answer.
    let _ = sender.send(Message::Refused { reason }.encode()).await;
}

/// Where this replica stands, for deciding how to answer.
struct Standing {
    max_seen: Term,
    leads: bool,
    floor: Seq,
    is_member: bool,
}

async fn serve(shared: &Arc<Shared>, channel: Channel, number: u64) -> Result<(), Error> {
    let Channel { peer, mut sender, mut receiver } = channel;
    let first = match timeout(FIRST_MESSAGE, receiver.receive()).await {
        Ok(Ok(Some(bytes))) => bytes,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => {
            let reason = format!("nothing was asked for within {} s", FIRST_MESSAGE.as_secs());
            refuse(shared, peer, sender.as_mut(), reason).await;
            return Ok(());
        }
    };
    let (max_seen, top, history, complete) = match Message::decode(&first) {
        Ok(Message::Subscribe { max_seen, top, history, complete }) => (max_seen, top, history, complete),
        Ok(_) => {
            refuse(shared, peer, sender.as_mut(), "a channel must begin with a subscription".into()).await;
            return Ok(());
        }
        Err(error) => {
            refuse(shared, peer, sender.as_mut(), error.to_string()).await;
            return Ok(());
        }
    };
    if !ascend(&history) || (complete && history.is_empty() != (top.seq == Seq(0))) {
        let reason = "its history is none that a log can have".to_owned();
        refuse(shared, peer, sender.as_mut(), reason).await;
        return Ok(());
    }
    let configured = shared.is_configured(peer);
    let precedence = Arc::clone(&shared.library.precedence);
    let standing = shared
        .library
        .engine
        .step(move |driver| {
            let standing = driver.transaction(|tx| {
                // Membership first: nobody unknown moves a term here.
                if configured {
                    term::admit(tx, &[peer], &precedence)?;
                }
                let is_member = term::is_member(tx.conn, peer)?;
                if is_member {
                    term::adopt(tx, max_seen)?;
                }
                let replica = tx.replica()?;
                Ok(Standing {
                    max_seen: replica.max_seen,
                    leads: replica.is_leader(),
                    floor: replica.floor,
                    is_member,
                })
            })?;
            driver.publish()?;
            Ok(standing)
        })
        .await?;
    if !standing.is_member {
        let reason = format!(
            "device {peer} is not a member of library {}; nothing was changed. Add it as a peer at the leader first",
            shared.library.id
        );
        refuse(shared, peer, sender.as_mut(), reason).await;
        return Ok(());
    }
    if !standing.leads {
        let leader = (standing.max_seen > Term::ZERO).then_some(standing.max_seen.leader);
        let message = Message::NotLeader { max_seen: standing.max_seen, leader };
        sender.send(message.encode()).await?;
        return Ok(());
    }
    let lead = standing.max_seen;
    let (runs, my_top) = shared.library.readers.history().await?;
    let theirs = their_history(peer, sender.as_mut(), receiver.as_mut(), history, complete, &runs).await?;
    let common = common_prefix(&runs, my_top.seq, &theirs, top.seq);
    let answer = if common < standing.floor && common < my_top.seq {
        Some(Message::BelowFloor { lead, common, floor: standing.floor })
    } else if common < top.seq {
        Some(Message::Diverged { lead, common, top })
    } else {
        None
    };
    if let Some(answer) = answer {
        tracing::warn!(library = %shared.library.id, %peer, %common, %top, "a follower's log is not a prefix of this one");
        sender.send(answer.encode()).await?;
        return Ok(());
    }
    shared.set_slot(peer, number, Some(top));
    let mut listener = JoinSet::new();
    let (tell, heard) = mpsc::channel(ASKED_QUEUE);
    listener.spawn(listen(Arc::clone(shared), Served { peer, number, lead, runs }, receiver, tell));
    subscription(shared, lead, standing.floor, common, sender, heard).await
}

/// Asks for older runs of the follower's history until one of its terms is known here, or it has no more.
async fn their_history(
    peer: DeviceId,
    sender: &mut dyn MessageSender,
    receiver: &mut dyn MessageReceiver,
    mut runs: Vec<Run>,
    mut complete: bool,
    mine: &[Run],
) -> Result<Vec<Run>, Error> {
    while !complete && !runs.iter().any(|run| mine.iter().any(|m| m.term == run.term)) {
        sender.send(Message::MoreHistory.encode()).await?;
        let answer = timeout(FIRST_MESSAGE, receiver.receive()).await;
        let Ok(Ok(Some(Ok(Message::History { runs: older, complete: all })))) =
            answer.map(|bytes| bytes.map(|bytes| bytes.as_deref().map(Message::decode)))
        else {
            return Err(no_history(peer));
        };
        if older.is_empty() && !all {
            return Err(no_history(peer));
        }
        // Only what lies before the runs at hand can tell more. The first of those stays, to say where the older
        // ones end.
        let end = runs.first().copied();
        runs = older;
        runs.extend(end);
        if !ascend(&runs) {
            return Err(no_history(peer));
        }
        complete = all;
    }
    Ok(runs)
}

fn no_history(peer: DeviceId) -> Error {
    let reason = "it did not send the history that it was asked for".into();
    TransportError::Broken { peer, reason }.into()
}

/// Whether runs are what a log can have: from 1 on, each behind the one before it.
fn ascend(runs: &[Run]) -> bool {
    runs.first().is_none_or(|run| run.first > Seq(0)) && runs.is_sorted_by(|a, b| a.first < b.first)
}

/// What the task that listens tells the one that sends.
enum Heard {
    Asked(u64),
    /// To be answered with this.
    Pushed(Message),
    Over(Result<(), Error>),
}

/// Sends entries from `cursor` on, until the channel ends or this device no longer leads.
async fn subscription(
    shared: &Arc<Shared>,
    lead: Term,
    floor: Seq,
    mut cursor: Seq,
    mut sender: Box<dyn MessageSender>,
    mut heard: mpsc::Receiver<Heard>,
) -> Result<(), Error> {
    let mut pulse: watch::Receiver<Pulse> = shared.library.engine.pulse();
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = pulse.borrow_and_update().clone();
        let Some(top) = now.top.filter(|_| now.leads) else {
            let message = Message::NotLeader { max_seen: lead, leader: None };
            sender.send(message.encode()).await?;
            return Ok(());
        };
        if cursor < top.seq {
            // What was just sealed is a message already, for whoever has all before it.
            let ready = now.tail.filter(|tail| tail.after == cursor && tail.last == top.seq);
            let (message, last) = match ready {
                Some(tail) => (ready_message(&tail).await?, tail.last),
                None => shared.library.readers.entries(lead, floor, cursor, top).await?,
            };
            if last <= cursor {
                return Err(Error::Damaged(format!(
                    "the log reaches to {top} but has no entry after {cursor}"
                )));
            }
            sender.send(message).await?;
            cursor = last;
            heartbeat.reset();
            while let Ok(heard) = heard.try_recv() {
                match heard {
                    Heard::Asked(number) => send_top(shared, lead, number, sender.as_mut()).await?,
                    Heard::Pushed(answer) => sender.send(answer.encode()).await?,
                    Heard::Over(end) => return end,
                }
            }
            continue;
        }
        tokio::select! {
            changed = pulse.changed() => if changed.is_err() { return Ok(()) },
            heard = heard.recv() => match heard {
                Some(Heard::Asked(number)) => send_top(shared, lead, number, sender.as_mut()).await?,
                Some(Heard::Pushed(answer)) => sender.send(answer.encode()).await?,
                Some(Heard::Over(end)) => return end,
                None => return Ok(()),
            },
            _ = heartbeat.tick() => send_top(shared, lead, 0, sender.as_mut()).await?,
        }
    }
}

/// The message of the newest entries; a large one is made where it keeps nobody waiting.
async fn ready_message(tail: &Arc<Tail>) -> Result<Vec<u8>, Error> {
    if tail.is_small() {
        return Ok(tail.message().to_vec());
    }
    let tail = Arc::clone(tail);
    let made = tokio::task::spawn_blocking(move || tail.message().to_vec());
    made.await.map_err(|e| Error::Stopped { reason: e.to_string() })
}

async fn send_top(
    shared: &Shared,
    lead: Term,
    answers: u64,
    sender: &mut dyn MessageSender,
) -> Result<(), Error> {
    let clock = shared.library.world.now();
    // As it is now: what was read before a question came does not answer it.
    let position = shared.library.engine.pulse().borrow().top.unwrap_or(Position::EMPTY);
    Ok(sender.send(Message::Top { lead, position, clock, answers }.encode()).await?)
}

/// A follower, and what decides whether it can stand where it says.
struct Served {
    peer: DeviceId,
    /// Of its channel.
    number: u64,
    /// The term in which it is served: all that is appended meanwhile is of it.
    lead: Term,
    /// The log's history when the subscription began.
    runs: Vec<Run>,
}

impl Served {
    /// Whether a log that is durable up to `top` holds the position.
    fn holds(&self, top: Seq, position: Position) -> bool {
        if position.seq == Seq(0) {
            return position == Position::EMPTY;
        }
        let run = self.runs.iter().rev().find(|run| run.first <= position.seq);
        position.seq <= top && run.is_some_and(|run| run.term == position.term)
    }
}

/// Takes what the follower says while entries are sent to it.
async fn listen(
    shared: Arc<Shared>,
    served: Served,
    mut receiver: Box<dyn MessageReceiver>,
    tell: mpsc::Sender<Heard>,
) {
    let Served { peer, number, lead, .. } = served;
    let pulse = shared.library.engine.pulse();
    let mut noted = None;
    let end = loop {
        let bytes = match receiver.receive().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error.into()),
        };
        match Message::decode(&bytes) {
            Ok(Message::Confirm { max_seen, position }) => {
                let top = pulse.borrow().top.unwrap_or(Position::EMPTY);
                if !served.holds(top.seq, position) {
                    tracing::warn!(
                        library = %shared.library.id, %peer, %position, %top,
                        "a follower confirmed what it cannot have; that is ignored and its channel is closed"
                    );
                    break Ok(());
                }
                if max_seen > lead
                    && let Err(error) = adopt(&shared, max_seen).await
                {
                    break Err(error);
                }
                shared.set_slot(peer, number, Some(position));
                if noted.is_none_or(|at: tokio::time::Instant| at.elapsed() >= NOTE_EVERY) {
                    noted = Some(tokio::time::Instant::now());
                    note(&shared, peer, position).await;
                }
            }
            Ok(Message::Push { max_seen, position, batch }) => {
                let answer = match take_push(&shared, peer, lead, max_seen, position, batch, bytes).await {
                    Ok(answer) => answer,
                    Err(error) => break Err(error),
                };
                if tell.send(Heard::Pushed(answer)).await.is_err() {
                    return;
                }
            }
            Ok(Message::Ask { number }) => {
                if tell.send(Heard::Asked(number)).await.is_err() {
                    return;
                }
            }
            Ok(other) => {
                tracing::warn!(%peer, ?other, "a follower sent what only a leader may; its channel is closed");
                break Ok(());
            }
            Err(error) => break Err(Error::Damaged(format!("what device {peer} sent: {error}"))),
        }
    };
    let _ = tell.send(Heard::Over(end)).await;
}

/// Sequences what a follower pushed, and makes it durable before it is answered (rule D).
async fn take_push(
    shared: &Shared,
    pusher: DeviceId,
    lead: Term,
    max_seen: Term,
    position: Position,
    batch: Columns,
    message: Vec<u8>,
) -> Result<Message, Error> {
    let damaged = |e: Unreadable| Error::Damaged(format!("what was pushed: {e}"));
    let batch = tokio::task::spawn_blocking(|| batch.into_batch())
        .await
        .map_err(|e| Error::Stopped { reason: e.to_string() })?
        .map_err(damaged)?;
    let step = move |driver: &mut Driver| {
        let mut rest = Some(batch);
        let mut accepted = Accepted::To(Position::EMPTY);
        while let (Some(batch), Accepted::To(_)) = (rest.take(), &accepted) {
            // A part is only put aside: what counts is what becomes of its group.
            let is_part = batch.is_open();
            let attempt = match is_part {
                true => Attempt::ALL,
                false => driver.transaction(|tx| attempt::begin(tx, pusher, batch.groups.len()))?,
            };
            let (now, later) = attempt::split(batch, attempt.groups);
            rest = later;
            let taken = driver.enforcing(|tx| {
                term::adopt(tx, max_seen)?;
                let accepted = accept::accept(tx, pusher, position, &now, &message, attempt.refuses)?;
                if !is_part {
                    attempt::done(tx, pusher)?;
                }
                Ok(accepted)
            });
            accepted = match taken {
                Err(error) if attempt::is_the_machines_fault(&error) => {
                    driver.transaction(|tx| attempt::done(tx, pusher))?;
                    return Err(error);
                }
                taken => taken?,
            };
        }
        driver.tell()?;
        Ok(accepted)
    };
    Ok(match shared.library.engine.step(step).await? {
        Accepted::To(top) => Message::Pushed { lead, top },
        Accepted::Gap { origin, expected } => {
            Message::PushStopped { lead, why: PushStop::Gap { origin, expected } }
        }
        Accepted::Unsound(why) => {
            let reason = format!("what was pushed is not taken: {why}; nothing was changed");
            tracing::warn!(library = %shared.library.id, reason, "refused");
            Message::Refused { reason }
        }
        Accepted::Diverged => Message::PushStopped { lead, why: PushStop::Diverged },
        Accepted::Forked { origin, n } => Message::PushStopped { lead, why: PushStop::Forked { origin, n } },
        Accepted::NotLeader(max_seen) => {
            let leader = (max_seen > Term::ZERO).then_some(max_seen.leader);
            Message::NotLeader { max_seen, leader }
        }
    })
}

/// A follower has heard of a higher term: this device does not lead any more (rule T). Its channels end with that.
async fn adopt(shared: &Shared, max_seen: Term) -> Result<(), Error> {
    let step = move |driver: &mut Driver| {
        driver.transaction(|tx| term::adopt(tx, max_seen))?;
        driver.publish()
    };
    shared.library.engine.step(step).await
}

/// How often a follower's position is written down, beside being kept in memory.
const NOTE_EVERY: Duration = Duration::from_secs(60);

async fn note(shared: &Shared, peer: DeviceId, position: Position) {
    let noted = shared.library.engine.step(move |driver| {
        driver.transaction(|tx| {
            // A position that is not in this log would mislead whoever reads it.
            if !term::holds(tx.conn, position)? || store::replica(tx.conn)?.is_none() {
                return Ok(());
            }
            let now = tx.world.now();
            term::note_position(tx, peer, position, now)
        })
    });
    if let Err(error) = noted.await {
        tracing::warn!(%peer, %error, "a follower's position was not written down");
    }
}

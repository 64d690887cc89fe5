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

use super::{Shared, ask_top, handover};
use crate::{
    engine::{Driver, Pulse, Tail},
    error::Error,
    id::{DeviceId, Position, Seq, Term},
    reassign::Grant,
    serving::{self, Answer, Peer, Push, Served, Subscription},
    status::Link,
    transport::{Channel, MessageReceiver, MessageSender, TransportError},
    wire::{Columns, Message, Unreadable},
};

/// How long a peer that opened a channel may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How often a follower hears of the leader while the log does not grow.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a leader may take to give a sign of life to a follower that is asked about it.
const SIGN_MAX: Duration = Duration::from_millis(150);
/// Channels served at once; a peer that opens one more is refused.
const CHANNELS_MAX: usize = 64;
/// Answers to pushes that wait to be sent: as many as a follower may push without one. Whoever pushes more is not read until
/// there is a place. Of questions the last is kept: waiting for a place for each, a leader whose entries wait to be read and a
/// follower whose push does would wait for each other.
const ANSWERS_QUEUE: usize = 4;

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
    let asked = match Message::decode(&first) {
        Ok(Message::Inquire { max_seen }) => {
            return answer_inquiry(shared, peer, max_seen, sender.as_mut()).await;
        }
        Ok(Message::Reassign { max_seen, to }) => {
            let asker = Peer { device: peer, is_configured: shared.is_configured(peer) };
            match handover::answer(shared, asker, max_seen, to).await {
                Ok(Message::Refused { reason }) => refuse(shared, peer, sender.as_mut(), reason).await,
                // Whoever asked may be gone, and what came of it is so all the same.
                Ok(answer) => drop(sender.send(answer.encode()).await),
                Err(error) => refuse(shared, peer, sender.as_mut(), error.to_string()).await,
            }
            return Ok(());
        }
        Ok(Message::Subscribe { max_seen, top, history, complete }) => {
            Subscription::of(max_seen, top, history, complete).ok_or_else(|| serving::NO_HISTORY.to_owned())
        }
        Ok(_) => Err("a channel must begin with a subscription".into()),
        Err(error) => Err(error.to_string()),
    };
    let mut asked = match asked {
        Ok(asked) => asked,
        Err(reason) => {
            refuse(shared, peer, sender.as_mut(), reason).await;
            return Ok(());
        }
    };
    let served = loop {
        let answer = answer(shared, peer, asked.clone()).await?;
        match answer {
            Answer::Serve(served) => break served,
            Answer::With(Message::Refused { reason }) => {
                refuse(shared, peer, sender.as_mut(), reason).await;
                return Ok(());
            }
            Answer::With(message) => {
                if !matches!(message, Message::NotLeader { .. }) {
                    tracing::warn!(library = %shared.library.id, %peer, ?message, "a follower's log is not a prefix of this one");
                }
                sender.send(message.encode()).await?;
                return Ok(());
            }
            Answer::MoreHistory => {
                sender.send(Message::MoreHistory.encode()).await?;
                let older = timeout(FIRST_MESSAGE, receiver.receive()).await;
                let Ok(Ok(Some(Ok(Message::History { runs, complete })))) =
                    older.map(|bytes| bytes.map(|bytes| bytes.as_deref().map(Message::decode)))
                else {
                    return Err(no_history(peer));
                };
                asked = asked.with_older(runs, complete).ok_or_else(|| no_history(peer))?;
            }
        }
    };
    shared.set_slot(peer, number, Some((served.lead, served.from)));
    let mut listener = JoinSet::new();
    let (tell, heard) = mpsc::channel(ANSWERS_QUEUE);
    let (ask, asked) = watch::channel(0);
    let (lead, floor, from) = (served.lead, served.floor, served.from.seq);
    let to = (peer, lead, floor);
    listener.spawn(listen(Arc::clone(shared), number, served, receiver, (tell, ask)));
    subscription(shared, to, from, sender, (heard, asked)).await
}

async fn answer_inquiry(
    shared: &Shared,
    device: DeviceId,
    max_seen: Term,
    sender: &mut dyn MessageSender,
) -> Result<(), Error> {
    let peer = Peer { device, is_configured: shared.is_configured(device) };
    ask_for_a_sign(shared).await;
    let unheard = shared.unheard().map(|unheard| u64::try_from(unheard.as_millis()).unwrap_or(u64::MAX));
    let failover = shared.library.failover;
    let step = move |driver: &mut Driver| serving::inquire(driver, peer, max_seen, unheard, failover);
    let answer = shared.library.engine.step(step).await?;
    Ok(sender.send(answer.encode()).await?)
}

/// Asks the leader that this device follows whether it is there, unless it was heard just now: between two heartbeats it may
/// have been silent for long, and who asks would take that for its end.
async fn ask_for_a_sign(shared: &Shared) {
    let follows = shared.library.status.borrow().link == Link::Online;
    if follows && shared.unheard().is_none_or(|unheard| unheard >= SIGN_MAX) {
        // Without an answer it is as silent as it is.
        let _ = timeout(SIGN_MAX, ask_top(&shared.library)).await;
    }
}

async fn answer(shared: &Shared, device: DeviceId, asked: Subscription) -> Result<Answer, Error> {
    let peer = Peer { device, is_configured: shared.is_configured(device) };
    let precedence = Arc::clone(&shared.library.precedence);
    shared.library.engine.step(move |driver| serving::subscribe(driver, peer, &precedence, &asked)).await
}

fn no_history(peer: DeviceId) -> Error {
    let reason = "it did not send the history that it was asked for".into();
    TransportError::Broken { peer, reason }.into()
}

/// What the task that listens tells the one that sends.
enum Heard {
    /// To be answered with this.
    Pushed(Message),
    Over(Result<(), Error>),
}

/// Sends entries from `cursor` on, until the channel ends or this device no longer leads.
async fn subscription(
    shared: &Arc<Shared>,
    (peer, lead, floor): (DeviceId, Term, Seq),
    mut cursor: Seq,
    mut sender: Box<dyn MessageSender>,
    (mut heard, mut asked): (mpsc::Receiver<Heard>, watch::Receiver<u64>),
) -> Result<(), Error> {
    let mut pulse: watch::Receiver<Pulse> = shared.library.engine.pulse();
    let mut granted = false;
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Who is behind learns at once whom he follows, and pushes while the first entries are read and packed.
    if pulse.borrow().serves() == Some(lead) {
        send_top(shared, lead, 0, sender.as_mut()).await?;
        heartbeat.reset();
    }
    loop {
        let now = pulse.borrow_and_update().clone();
        let Some(top) = now.top.filter(|_| now.serves() == Some(lead)) else {
            sender.send(serving::not_leader(now.max_seen).encode()).await?;
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
                    Heard::Pushed(answer) => sender.send(answer.encode()).await?,
                    Heard::Over(end) => return end,
                }
            }
            if asked.has_changed().unwrap_or(false) {
                let number = *asked.borrow_and_update();
                send_top(shared, lead, number, sender.as_mut()).await?;
            }
            continue;
        }
        if let Some(grant) = now.granted.filter(|grant| grant.to == peer && grant.position == top && !granted)
        {
            granted = true;
            let Grant { number, position, .. } = grant;
            sender.send(Message::Grant { lead, number, position }.encode()).await?;
        }
        tokio::select! {
            changed = pulse.changed() => if changed.is_err() { return Ok(()) },
            Ok(()) = asked.changed() => {
                let number = *asked.borrow_and_update();
                send_top(shared, lead, number, sender.as_mut()).await?;
            }
            heard = heard.recv() => match heard {
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
    let stable = shared.library.status.borrow().stable;
    Ok(sender.send(Message::Top { lead, position, stable, clock, answers }.encode()).await?)
}

/// Takes what the follower says while entries are sent to it.
async fn listen(
    shared: Arc<Shared>,
    number: u64,
    served: Served,
    mut receiver: Box<dyn MessageReceiver>,
    (tell, ask): (mpsc::Sender<Heard>, watch::Sender<u64>),
) {
    let Served { peer, lead, .. } = served;
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
                    && let Err(error) =
                        shared.library.engine.step(move |driver| serving::adopt(driver, max_seen)).await
                {
                    break Err(error);
                }
                shared.set_slot(peer, number, Some((lead, position)));
                if noted.is_none_or(|at: tokio::time::Instant| at.elapsed() >= NOTE_EVERY) {
                    noted = Some(tokio::time::Instant::now());
                    let note = move |driver: &mut Driver| serving::note(driver, peer, position);
                    if let Err(error) = shared.library.engine.step(note).await {
                        tracing::warn!(%peer, %error, "a follower's position was not written down");
                    }
                }
            }
            Ok(Message::Push { max_seen, position, batch }) => {
                let said = (max_seen, position);
                let answer = match take_push(&shared, (peer, number), lead, said, batch, bytes).await {
                    Ok(Some(answer)) => answer,
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                };
                if tell.send(Heard::Pushed(answer)).await.is_err() {
                    return;
                }
            }
            Ok(Message::Ask { number }) => {
                ask.send_replace(number);
            }
            Ok(other) => {
                tracing::warn!(%peer, ?other, "a follower sent what only a leader may; its channel is closed");
                break Ok(());
            }
            Err(error) => break Err(unreadable(peer, &error)),
        }
    };
    let _ = tell.send(Heard::Over(end)).await;
}

/// Unpacks what a follower pushed beside the engine, and has it sequenced; `None` where it has opened another channel since:
/// there it began anew, and what was still on its way here would come between the parts of a group.
async fn take_push(
    shared: &Arc<Shared>,
    (pusher, channel): (DeviceId, u64),
    lead: Term,
    (max_seen, position): (Term, Position),
    batch: Columns,
    message: Vec<u8>,
) -> Result<Option<Message>, Error> {
    let batch = tokio::task::spawn_blocking(|| batch.into_batch())
        .await
        .map_err(|e| Error::Stopped { reason: e.to_string() })?
        .map_err(|e| unreadable(pusher, &e))?;
    // What is pending here goes first; others have their turn in between.
    shared.library.engine.sequence_pending().await?;
    let push = Push { max_seen, position, batch, message };
    let serving = Arc::clone(shared);
    let step = move |driver: &mut Driver| {
        let takes = serving.is_newest(pusher, channel);
        takes.then(|| serving::take_push(driver, pusher, lead, push, &serving.library.changes)).transpose()
    };
    shared.library.engine.step(step).await
}

fn unreadable(peer: DeviceId, error: &Unreadable) -> Error {
    let reason = format!("what it sent is not used: {error}");
    TransportError::Broken { peer, reason }.into()
}

/// How often a follower's position is written down, beside being kept in memory.
const NOTE_EVERY: Duration = Duration::from_secs(60);

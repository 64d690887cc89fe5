//! Handing the lead over, here or on the device that leads: what a person asks for on any device is asked of the leader, which
//! hands over as if it had been asked on it, and says what came of it.
//!
//! Who asked may be gone by then: the handover goes on. A leader that is deposed meanwhile, or has granted its lead to
//! somebody else first, waits until it knows who leads instead, and says so.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Shared, inquire};
use crate::{
    engine::Driver,
    error::Error,
    id::{DeviceId, Position, Term},
    leadership::{CATCH_UP_MAX, NotHandedOver},
    reassign,
    serving::{self, Peer},
    transport::Channel,
    wire::Message,
};

/// How far a device may be behind when the lead is granted to it: it catches up while nobody sequences.
const CATCH_UP: u64 = 2048;
/// How long a device that does not follow is waited for: after a change of leader it may be on its way.
const FOLLOWS_MAX: Duration = Duration::from_secs(2);
/// How often a device that is said to lead may say that another does, until whoever asks gives up.
const REDIRECTS_MAX: u32 = 4;

/// Hands the lead over to `to`, if this device has it, and waits for what comes of it: the term in which `to` leads.
pub(crate) async fn hand_over(shared: &Shared, to: DeviceId) -> Result<Result<Term, NotHandedOver>, Error> {
    let engine = &shared.library.engine;
    let mut granted = None;
    if to != shared.transport.device() && engine.pulse().borrow().leads {
        let mut pulse = engine.pulse();
        let caught_up = tokio::select! {
            caught_up = has_caught_up(shared, to) => caught_up,
            // Who leads instead is told below.
            _ = pulse.wait_for(|pulse| !pulse.leads) => Ok(()),
        };
        if let Err(why) = caught_up {
            return Ok(Err(why));
        }
        granted = engine.step(move |driver| reassign::grant(driver, to)).await?;
    }
    let seen = decided(shared).await?;
    let failed = if granted.is_some() { NotHandedOver::NotTaken } else { NotHandedOver::Overtaken };
    Ok(if seen.leader == to { Ok(seen) } else { Err(failed) })
}

/// Waits until somebody has taken the lead that this device granted, or this device leads again; at once where it granted none.
/// The highest term then.
pub(crate) async fn decided(shared: &Shared) -> Result<Term, Error> {
    let mut pulse = shared.library.engine.pulse();
    match pulse.wait_for(|pulse| pulse.stopped || pulse.leads || pulse.granted.is_none()).await {
        Ok(pulse) if !pulse.stopped => Ok(pulse.max_seen),
        _ => Err(Error::Stopped { reason: "the library was shut down".into() }),
    }
}

/// Waits until a follower is near the top of the log; why it is not, otherwise.
async fn has_caught_up(shared: &Shared, device: DeviceId) -> Result<(), NotHandedOver> {
    let mut status = shared.library.status.subscribe();
    let confirmed = |s: &crate::Status| -> Option<Position> {
        s.followers.iter().find(|f| f.device == device).map(|f| f.confirmed)
    };
    if !matches!(timeout(FOLLOWS_MAX, status.wait_for(|s| confirmed(s).is_some())).await, Ok(Ok(_))) {
        return Err(NotHandedOver::NotFollowing);
    }
    let near = status
        .wait_for(|s| confirmed(s).is_none_or(|confirmed| confirmed.seq.0 + CATCH_UP >= s.position.seq.0));
    match timeout(CATCH_UP_MAX, near).await {
        Ok(Ok(status)) if confirmed(&status).is_some() => Ok(()),
        Ok(_) => Err(NotHandedOver::NotFollowing),
        Err(_) => Err(NotHandedOver::Behind),
    }
}

/// Answers a device that asks this one to hand its lead over to `to`.
pub(super) async fn answer(
    shared: &Shared,
    peer: Peer,
    max_seen: Term,
    to: DeviceId,
) -> Result<Message, Error> {
    let step = move |driver: &mut Driver| serving::may_reassign(driver, peer, max_seen);
    if let Err(refusal) = shared.library.engine.step(step).await? {
        return Ok(refusal);
    }
    let handed_over = match shared.reassigning.try_acquire() {
        Ok(_turn) => {
            tracing::info!(library = %shared.library.id, peer = %peer.device, %to, "asked to hand the lead over");
            hand_over(shared, to).await?
        }
        Err(_) => Err(NotHandedOver::Busy),
    };
    let max_seen = inquire::told_term(shared).await?;
    Ok(Message::Reassigned { max_seen, failed: handed_over.err() })
}

/// Makes `to` the leader by asking whoever leads, if somebody does. `None` where nobody that can be reached does.
pub(crate) async fn ask_leader(shared: &Arc<Shared>, to: DeviceId) -> Result<Option<Term>, Error> {
    for _ in 0..REDIRECTS_MAX {
        let Some(leader) = leader(shared).await else { return Ok(None) };
        if let Some(term) = ask(shared, leader, to).await? {
            return Ok(Some(term));
        }
        // It led when it was looked for, and does not any more.
    }
    let reason =
        format!("the leader was looked for {REDIRECTS_MAX} times, and was another each time it was asked");
    Err(not_led(shared, to, reason, "Try again"))
}

/// Who leads, as it says itself: the device that did when this one heard of it last, or another that can be reached.
async fn leader(shared: &Arc<Shared>) -> Option<DeviceId> {
    let led = shared.library.engine.pulse().borrow().max_seen;
    if led > Term::ZERO && led.leader != shared.transport.device() {
        let standing = inquire::inquire(shared, led.leader, inquire::ANSWER_MAX).await;
        if standing.is_ok_and(|standing| standing.leads) {
            return Some(led.leader);
        }
    }
    let answers = inquire::inquire_all(shared, inquire::ANSWER_MAX).await;
    let leading = answers.into_iter().filter_map(|(device, standing)| {
        let standing = standing.filter(|standing| standing.leads)?;
        Some((standing.max_seen, device))
    });
    leading.max().map(|(_, device)| device)
}

/// Asks the leader to hand over, and waits for what comes of it: the term in which `to` leads; `None` where it says that it
/// does not lead.
async fn ask(shared: &Shared, leader: DeviceId, to: DeviceId) -> Result<Option<Term>, Error> {
    let engine = &shared.library.engine;
    let max_seen = inquire::told_term(shared).await?;
    // As long as the leader may take for it, if it gives `to` as long as this device would.
    let patience = FOLLOWS_MAX + CATCH_UP_MAX + shared.library.grant_timeout + inquire::ANSWER_MAX;
    let asking = async {
        let opening = timeout(inquire::ANSWER_MAX, shared.transport.open(leader, shared.library.id));
        let no_answer = |patience: Duration| format!("no answer within {patience:?}");
        let opened = opening.await.map_err(|_| no_answer(inquire::ANSWER_MAX))?;
        let Channel { mut sender, mut receiver, .. } = opened.map_err(|e| e.to_string())?;
        sender.send(Message::Reassign { max_seen, to }.encode()).await.map_err(|e| e.to_string())?;
        let received = timeout(patience, receiver.receive()).await.map_err(|_| no_answer(patience))?;
        let answer = received.map_err(|e| e.to_string())?.ok_or("it ended the channel")?;
        Message::decode(&answer).map_err(|e| e.to_string())
    };
    let mut pulse = engine.pulse();
    let answer = tokio::select! {
        answer = asking => answer,
        // This device hears of it before the answer comes, which may be lost.
        Ok(pulse) = pulse.wait_for(|p| p.max_seen.leader == to && p.max_seen.number > max_seen.number) => {
            return Ok(Some(pulse.max_seen));
        }
    };
    match answer {
        Ok(Message::Reassigned { max_seen: seen, failed }) => {
            engine.step(move |driver| serving::adopt(driver, seen)).await?;
            match failed {
                None => Ok(Some(seen)),
                Some(failed) => Err(failed.error(shared.library.id, leader, to, seen.leader)),
            }
        }
        Ok(Message::NotLeader { max_seen: seen, .. }) => {
            engine.step(move |driver| serving::adopt(driver, seen)).await?;
            Ok(None)
        }
        Ok(Message::Refused { reason }) => {
            let reason = format!("device {leader}, which leads, refused: {reason}");
            Err(not_led(shared, to, reason, "Ask it on a device that is a member"))
        }
        Ok(other) => Err(unknown(shared, leader, to, &format!("it answered with something else: {other:?}"))),
        Err(reason) => Err(unknown(shared, leader, to, &reason)),
    }
}

/// The leader was asked, and what came of it is not known.
fn unknown(shared: &Shared, leader: DeviceId, to: DeviceId, reason: &str) -> Error {
    let reason = format!(
        "device {leader}, which leads, was asked to hand over and has not said what came of it: {reason}"
    );
    not_led(shared, to, reason, "It may do it all the same: see who leads, and ask again")
}

pub(crate) fn not_led(shared: &Shared, device: DeviceId, reason: String, remedy: &str) -> Error {
    Error::NotLed { device, library: shared.library.id, reason, remedy: remedy.to_owned() }
}

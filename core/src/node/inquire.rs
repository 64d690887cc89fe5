//! Asking other devices where they stand, and telling them so of the highest term that was seen here.
//!
//! A leader tells every device that it can reach and that does not follow it of its term, once in each: so a device that led
//! before, and only serves, learns of it, and one of two leaders learns of the other.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::Shared;
use crate::{
    engine::Driver,
    error::Error,
    id::{DeviceId, Position, Term},
    serving, store,
    transport::{Channel, TransportError},
    wire::Message,
};

/// How long a device that is asked may take.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Delay before a device that could not be told is tried again, and the longest between two tries.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Where a device stands, as it says itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) max_seen: Term,
    pub(crate) top: Position,
    pub(crate) leads: bool,
    /// For how long it has not heard of a leader; `None` if it never has.
    pub(crate) unheard: Option<Duration>,
    pub(crate) priority: Option<u8>,
}

/// Asks one device.
pub(super) async fn inquire(shared: &Shared, peer: DeviceId, patience: Duration) -> Result<Standing, Error> {
    let asked = timeout(patience, ask(shared, peer)).await;
    let reason = format!("no answer within {patience:?}");
    asked.unwrap_or_else(|_| Err(TransportError::Unreachable { peer, reason }.into()))
}

async fn ask(shared: &Shared, peer: DeviceId) -> Result<Standing, Error> {
    let Channel { mut sender, mut receiver, .. } = shared.transport.open(peer, shared.library.id).await?;
    let max_seen = told_term(shared).await?;
    sender.send(Message::Inquire { max_seen }.encode()).await?;
    let broken = |reason: String| TransportError::Broken { peer, reason };
    let answer = receiver.receive().await?.ok_or_else(|| broken("it did not answer".into()))?;
    match Message::decode(&answer) {
        Ok(Message::Standing { max_seen: seen, top, leads, unheard, priority }) => {
            if seen > max_seen {
                shared.library.engine.step(move |driver| serving::adopt(driver, seen)).await?;
            }
            Ok(Standing { max_seen: seen, top, leads, unheard: unheard.map(Duration::from_millis), priority })
        }
        Ok(Message::Refused { reason }) => Err(TransportError::Refused { peer, reason }.into()),
        Ok(other) => Err(broken(format!("it answered with something else: {other:?}")).into()),
        Err(error) => Err(broken(error.to_string()).into()),
    }
}

/// The highest term that was seen here, as it may be told of: durably (rule D).
pub(super) async fn told_term(shared: &Shared) -> Result<Term, Error> {
    let step = |driver: &mut Driver| {
        driver.store.sync()?;
        Ok(store::replica(driver.store.connection())?.map_or(Term::ZERO, |replica| replica.max_seen))
    };
    shared.library.engine.step(step).await
}

/// Asks all that may be reached, at the same time.
pub(crate) async fn inquire_all(
    shared: &Arc<Shared>,
    patience: Duration,
) -> Vec<(DeviceId, Option<Standing>)> {
    let mut asking = JoinSet::new();
    for peer in shared.reachable().await {
        let shared = Arc::clone(shared);
        asking.spawn(async move { (peer, inquire(&shared, peer, patience).await.ok()) });
    }
    asking.join_all().await
}

/// Tells the others, while this device leads, until all are told or the node stops.
pub(super) async fn tell_others(shared: Arc<Shared>) {
    let mut pulse = shared.library.engine.pulse();
    let telling = async {
        while let Ok(term) = pulse.wait_for(|pulse| pulse.leads).await.map(|pulse| pulse.max_seen) {
            tokio::select! {
                () = tell_all(&shared) => {}
                _ = async { pulse.clone().wait_for(|p| !p.leads || p.max_seen != term).await.map(drop) } => continue,
            }
            // Told all in this term.
            if pulse.wait_for(|p| !p.leads || p.max_seen != term).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = telling => {}
        () = shared.stopped() => {}
    }
}

async fn tell_all(shared: &Arc<Shared>) {
    let mut told = HashSet::new();
    let mut delay = AGAIN.0;
    loop {
        let followers: HashSet<DeviceId> =
            shared.library.status.borrow().followers.iter().map(|f| f.device).collect();
        let mut telling = JoinSet::new();
        for peer in shared.reachable().await {
            // Who follows has heard of it.
            if followers.contains(&peer) || told.contains(&peer) {
                continue;
            }
            let shared = Arc::clone(shared);
            telling.spawn(async move { (peer, inquire(&shared, peer, ANSWER_MAX).await.is_ok()) });
        }
        if telling.is_empty() {
            return;
        }
        let began = Instant::now();
        told.extend(telling.join_all().await.into_iter().filter(|(_, done)| *done).map(|(peer, _)| peer));
        tracing::debug!(library = %shared.library.id, told = told.len(), took = ?began.elapsed(), "told of the term");
        sleep(delay).await;
        delay = (delay * 2).min(AGAIN.1);
    }
}

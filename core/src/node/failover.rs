//! Taking over without a person, where the application allows it: a device that has not heard of a leader for long asks all
//! that it can reach who is to be the next ([`judge`]), waits a random moment, asks once more, and takes over if it is still
//! the one.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Shared, inquire};
use crate::{
    engine::Driver,
    error::Error,
    id::{DeviceId, Position},
    leadership::{Candidate, Failover, Verdict, judge},
    reassign, store, term,
};

/// How long a device that is asked may take: who is slower counts as out of reach.
const ASK_MAX: Duration = Duration::from_millis(400);
/// Longest random delay before a takeover: of two devices that do not see each other's answers one goes first mostly.
const DELAY_MAX: Duration = Duration::from_millis(200);
/// How long until all are asked again.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) async fn failover(shared: Arc<Shared>, failover: Failover) {
    tokio::select! {
        () = watch(&shared, failover) => {}
        () = shared.stopped() => {}
    }
}

async fn watch(shared: &Arc<Shared>, failover: Failover) {
    let mut pulse = shared.library.engine.pulse();
    let started = Instant::now();
    let unheard_for = || shared.unheard().unwrap_or_else(|| started.elapsed());
    while pulse.wait_for(|pulse| !pulse.leads).await.is_ok() {
        let unheard = unheard_for();
        // The first question may take a while, where the leader does not answer it any more.
        let Some(due) = unheard.checked_sub(failover.after.saturating_sub(ASK_MAX)) else {
            sleep(failover.after.saturating_sub(ASK_MAX).saturating_sub(unheard)).await;
            continue;
        };
        let asked = Instant::now();
        match verdict(shared, failover, unheard).await {
            Ok(Verdict::TakeOver) => {}
            Ok(other) => {
                tracing::debug!(library = %shared.library.id, ?other, ?unheard, "no leader is heard of");
                sleep(AGAIN).await;
                continue;
            }
            Err(_) => {
                sleep(AGAIN).await;
                continue;
            }
        }
        let early = ASK_MAX.saturating_sub(due).saturating_sub(asked.elapsed());
        sleep(early + random(shared, DELAY_MAX)).await;
        if shared.unheard().is_some_and(|unheard| unheard < failover.after) {
            continue;
        }
        match verdict(shared, failover, unheard_for()).await {
            Ok(Verdict::TakeOver) if !pulse.borrow().leads => {
                tracing::warn!(library = %shared.library.id, ?unheard, "no leader is heard of: taking over");
                let led = match shared.with_admission(reassign::take_over).await {
                    Ok(_) => shared.lead_on().await,
                    Err(error) => Err(error),
                };
                if let Err(error) = led {
                    tracing::warn!(library = %shared.library.id, %error, "taking over failed and will be tried again");
                    sleep(AGAIN).await;
                }
            }
            _ => sleep(AGAIN).await,
        }
    }
}

fn random(shared: &Shared, most: Duration) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(shared.library.world.random() % (most + 1))
}

async fn verdict(shared: &Arc<Shared>, failover: Failover, unheard: Duration) -> Result<Verdict, Error> {
    let answers = inquire::inquire_all(shared, ASK_MAX).await;
    let has_leader = |standing: &inquire::Standing| {
        standing.leads || standing.unheard.is_some_and(|unheard| unheard < failover.after)
    };
    let others: Vec<Candidate> = answers
        .iter()
        .filter_map(|(device, standing)| {
            let standing = standing.as_ref()?;
            Some(candidate(*device, standing.top, standing.priority, has_leader(standing)))
        })
        .collect();
    let step = |driver: &mut Driver| {
        let conn = driver.store.connection();
        let device = store::replica(conn)?.and_then(|replica| replica.device);
        let role = device.map_or(Ok(None), |device| term::role_of(conn, device))?;
        Ok((store::top(conn)?, role))
    };
    let (position, role) = shared.library.engine.step(step).await?;
    let priority = failover.standing_of(role);
    let own = candidate(shared.transport.device(), position, priority, false);
    Ok(judge(own, &others, failover.defers(unheard)))
}

fn candidate(device: DeviceId, position: Position, priority: Option<u8>, has_leader: bool) -> Candidate {
    Candidate { device, position, priority, has_leader }
}

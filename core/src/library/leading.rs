//! Who leads the library: asking, handing over, taking over.

use std::time::Duration;

use super::{Library, lock_node};
use crate::{
    error::Error,
    id::{DeviceId, Position, Seq, Term},
    leadership::{KnownDevice, PromotionReport, TakeOver, obstacles},
    log,
    node::{self, inquire},
    reassign, store, term,
};

/// How far a device may be behind when the lead is granted to it: it catches up while nobody sequences.
const CATCH_UP: u64 = 2048;
/// How long it is waited for to come that near.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);

impl Library {
    /// What taking over would leave behind, and whether it would be refused. Asks the devices that can be reached, for up to
    /// two seconds.
    ///
    /// # Errors
    /// [`Error::Stopped`] on a library that is not started, and what the database says.
    pub async fn promotion_report(&self) -> Result<PromotionReport, Error> {
        let shared = self.shared()?;
        let answers = inquire::inquire_all(&shared, inquire::ANSWER_MAX).await;
        let heard = shared.heard_top();
        self.inner
            .engine
            .step(move |driver| {
                let conn = driver.store.connection();
                let replica = store::replica(conn)?.ok_or(Error::NoLibrary)?;
                let device = replica.device.ok_or(Error::NoLibrary)?;
                let mut devices = term::known_devices(conn)?;
                for (peer, _) in &answers {
                    if !devices.iter().any(|known| known.device == *peer) {
                        let unknown = KnownDevice {
                            device: *peer,
                            answers: false,
                            leads: false,
                            position: None,
                            last_contact: None,
                        };
                        devices.push(unknown);
                    }
                }
                devices.retain(|known| known.device != device);
                for known in &mut devices {
                    if let Some((_, Some(standing))) = answers.iter().find(|(peer, _)| *peer == known.device)
                    {
                        (known.answers, known.leads) = (true, standing.leads);
                        known.position = Some(standing.top);
                    } else if let Some((leader, top)) = heard.filter(|(leader, _)| *leader == known.device) {
                        debug_assert_eq!(leader, known.device);
                        known.position = known.position.max(Some(top));
                    }
                }
                let furthest = devices.iter().filter_map(|known| known.position).map(|p| p.seq).max();
                let is_behind_itself =
                    driver.is_rolled_back()? && heard.is_none_or(|(_, top)| top > replica.top);
                let conn = driver.store.connection();
                Ok(PromotionReport {
                    device,
                    position: replica.top,
                    pending: conn.query_row("SELECT count(*) FROM sync_pending", [], |row| row.get(0))?,
                    max_seen: replica.max_seen,
                    left_behind: furthest.unwrap_or(Seq(0)).0.saturating_sub(replica.top.seq.0),
                    obstacles: obstacles(
                        replica.top,
                        term::is_member(conn, device)?,
                        is_behind_itself,
                        &devices,
                    ),
                    devices,
                })
            })
            .await
    }

    /// Makes this device the leader, where the one that was is gone: from here on it sequences, and its pending changes go
    /// into the log. The others follow it as soon as they hear of it. A leader that comes back finds that it was deposed,
    /// takes what only it had back as pending changes, and sends them: nothing is lost, and nothing takes effect twice.
    ///
    /// Where the leader is there, [`Library::hand_over`] on it is what is wanted.
    ///
    /// # Errors
    /// [`Error::NotLed`] where [`Library::promotion_report`] names an obstacle and it is not forced, or this device leads
    /// already; nothing is changed then. [`Error::Stopped`], and what the database says.
    pub async fn take_over(&self, options: TakeOver) -> Result<Term, Error> {
        let shared = self.shared()?;
        let refused = |reason: String, remedy: &str| Error::NotLed {
            device: shared.transport.device(),
            library: self.id(),
            reason,
            remedy: remedy.to_owned(),
        };
        if self.inner.engine.pulse().borrow().leads {
            return Err(refused("it leads already".into(), "Nothing need be done"));
        }
        if !options.force {
            let report = self.promotion_report().await?;
            if let Some(first) = report.obstacles.first() {
                let all: Vec<String> = report.obstacles.iter().map(ToString::to_string).collect();
                let remedy = format!("{}, or force it", first.remedy());
                return Err(refused(all.join("; "), &remedy));
            }
        }
        let term = shared.with_admission(reassign::take_over).await?;
        shared.lead_on().await?;
        tracing::warn!(library = %self.id(), %term, forced = options.force, "this device has taken the library over");
        self.shows_leading().await?;
        Ok(term)
    }

    /// Hands the lead over to a device that follows this one: writes go on everywhere meanwhile, and wait for the new leader
    /// for a moment. Whatever is lost on the way, a message or one of the two devices, one of them leads soon after without
    /// anybody's help.
    ///
    /// # Errors
    /// [`Error::NotLed`] where this device does not lead, `to` does not follow it or does not catch up, or did not take the
    /// lead in time: then this device leads again. [`Error::Stopped`], and what the database says.
    pub async fn hand_over(&self, to: DeviceId) -> Result<Term, Error> {
        let shared = self.shared()?;
        let refused = |reason: String, remedy: &str| Error::NotLed {
            device: to,
            library: self.id(),
            reason,
            remedy: remedy.to_owned(),
        };
        let mut pulse = self.inner.engine.pulse();
        if !pulse.borrow().leads {
            return Err(refused(
                "this device does not lead".into(),
                "Hand the lead over on the device that does",
            ));
        }
        if to == shared.transport.device() {
            return Err(refused("it leads already".into(), "Nothing need be done"));
        }
        self.has_caught_up(to).await.map_err(|reason| {
            refused(reason, "Let it connect and catch up, or hand the lead over to another device")
        })?;
        let granted = self.inner.engine.step(move |driver| reassign::grant(driver, to)).await?;
        let Some(grant) = granted else {
            return Err(refused("this device does not lead any more".into(), "Look who does"));
        };
        let number = grant.number;
        let decided = pulse.wait_for(|p| p.stopped || p.leads || p.max_seen.number >= number).await;
        let seen = match decided {
            Ok(pulse) if !pulse.stopped => pulse.max_seen,
            _ => return Err(Error::Stopped { reason: "the library was shut down".into() }),
        };
        if seen.leader != to {
            let reason = format!("it did not take it in time, and device {} leads now", seen.leader);
            return Err(refused(reason, "See whether it can be reached, and try again"));
        }
        Ok(seen)
    }

    /// Makes `device` the leader: hands over where this device leads, and takes over where it is this device itself and the
    /// leader is gone.
    ///
    /// # Errors
    /// Those of [`Library::hand_over`] and [`Library::take_over`].
    pub async fn reassign_leader(&self, device: DeviceId) -> Result<Term, Error> {
        let shared = self.shared()?;
        let (leads, max_seen) = {
            let pulse = self.inner.engine.pulse();
            let pulse = pulse.borrow();
            (pulse.leads, pulse.max_seen)
        };
        let own = shared.transport.device();
        match (leads, device == own) {
            (true, true) => Ok(max_seen),
            (true, false) => self.hand_over(device).await,
            (false, true) => self.take_over(TakeOver::UNLESS_REFUSED).await,
            (false, false) => Err(Error::NotLed {
                device,
                library: self.id(),
                reason: "this device does not lead, and another cannot be made to from here".into(),
                remedy: "Call it on the device that leads, or, where that is gone, on the one that is to"
                    .into(),
            }),
        }
    }

    /// Who has led, as the log here says: the terms of its entries, oldest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn terms(&self) -> Result<Vec<Term>, Error> {
        let runs = self.inner.readers.run(|conn, _| log::runs(conn)).await?;
        Ok(runs.into_iter().map(|run| run.term).collect())
    }

    /// Waits until a follower is near the top of the log; why it is not, otherwise.
    async fn has_caught_up(&self, device: DeviceId) -> Result<(), String> {
        let mut status = self.status();
        let confirmed =
            |s: &crate::Status| s.followers.iter().find(|f| f.device == device).map(|f| f.confirmed);
        if confirmed(&status.borrow()).is_none() {
            return Err("it does not follow this device now".into());
        }
        let near = status.wait_for(|s| {
            confirmed(s).is_none_or(|confirmed| confirmed.seq.0 + CATCH_UP >= s.position.seq.0)
        });
        let is_there = match tokio::time::timeout(CATCH_UP_MAX, near).await {
            Ok(Ok(status)) => confirmed(&status).is_some(),
            Ok(Err(_)) => false,
            Err(_) => {
                return Err(format!("it did not catch up within {} s", CATCH_UP_MAX.as_secs()));
            }
        };
        if is_there { Ok(()) } else { Err("it does not follow this device any more".into()) }
    }

    async fn shows_leading(&self) -> Result<(), Error> {
        let mut status = self.status();
        let leading = status.wait_for(|s| s.role == crate::Role::Leader).await;
        leading.map(drop).map_err(|_| Error::Stopped { reason: "the library was shut down".into() })
    }

    /// Waits until this device and `others` more have everything up to `seq` on their disks, as they said: on the leader,
    /// which is the one that knows. It waits as long as they do not come.
    ///
    /// # Errors
    /// [`Error::NotLed`] where this device does not lead, or leads no more; [`Error::Stopped`].
    pub async fn wait_replicated(&self, seq: Seq, others: usize) -> Result<(), Error> {
        let shared = self.shared()?;
        let mut status = self.status();
        let has = |p: Position| p.seq >= seq;
        let found = status
            .wait_for(|s| {
                s.role != crate::Role::Leader
                    || matches!(s.link, crate::Link::Idle | crate::Link::Stopped { .. })
                    || (has(s.position) && s.followers.iter().filter(|f| has(f.confirmed)).count() >= others)
            })
            .await
            .map_err(|_| Error::Stopped { reason: "the library was shut down".into() })?;
        if found.role == crate::Role::Leader && found.link == crate::Link::Leading {
            return Ok(());
        }
        Err(Error::NotLed {
            device: shared.transport.device(),
            library: self.id(),
            reason: "it does not know what others have: it does not lead".into(),
            remedy: "Ask on the device that leads".into(),
        })
    }

    fn shared(&self) -> Result<std::sync::Arc<node::Shared>, Error> {
        let stopped = || Error::Stopped { reason: "the library is not started".into() };
        lock_node(&self.inner.node).as_ref().map(node::Node::shared).ok_or_else(stopped)
    }
}

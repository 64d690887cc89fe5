//! Who leads the library: asking, handing over, taking over.

use super::{Library, lock_node};
use crate::{
    error::Error,
    id::{DeviceId, Position, Seq, Term},
    leadership::{KnownDevice, PromotionReport, TakeOver, obstacles},
    log,
    node::{self, handover, inquire},
    reassign, store, term,
};

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
        self.shows_leading(term).await?;
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
        let own = shared.transport.device();
        if !self.inner.engine.pulse().borrow().leads {
            let remedy = "Hand the lead over on the device that does, or ask it to by `reassign_leader`";
            return Err(handover::not_led(&shared, to, "this device does not lead".into(), remedy));
        }
        if to == own {
            return Err(handover::not_led(&shared, to, "it leads already".into(), "Nothing need be done"));
        }
        let handed_over = handover::hand_over(&shared, to).await?;
        let now = self.inner.engine.pulse().borrow().max_seen.leader;
        handed_over.map_err(|failed| failed.error(self.id(), own, to, now))
    }

    /// Makes `device` the leader, on whichever device it is called:
    ///
    /// - Where this device leads, it [hands over](Library::hand_over).
    /// - Where another leads, it is asked to hand over, and this waits until it has, or says why not. That takes as long as
    ///   `device` needs to catch up, up to 30 seconds, and to take the lead ([`LibraryBuilder::grant_timeout`]). A call that
    ///   is dropped takes nothing back.
    /// - Where nobody that can be reached leads, and `device` is this one, it [takes over](Library::take_over), unless
    ///   something stands against that.
    ///
    /// Where `device` leads already, that is told. The term is the one in which it leads.
    ///
    /// [`LibraryBuilder::grant_timeout`]: crate::LibraryBuilder::grant_timeout
    ///
    /// # Errors
    /// [`Error::NotLed`] with what the leader says, or where no leader can be reached and `device` is another: take over on
    /// that one then. Those of [`Library::hand_over`] and [`Library::take_over`].
    pub async fn reassign_leader(&self, device: DeviceId) -> Result<Term, Error> {
        let shared = self.shared()?;
        let own = shared.transport.device();
        // Where this device has just granted its lead, somebody else may lead in a moment.
        let max_seen = handover::decided(&shared).await?;
        let leads = self.inner.engine.pulse().borrow().leads;
        if leads {
            return if device == own { Ok(max_seen) } else { self.hand_over(device).await };
        }
        match handover::ask_leader(&shared, device).await? {
            Some(term) => {
                if device == own {
                    self.shows_leading(term).await?;
                }
                Ok(term)
            }
            None if device == own => self.take_over(TakeOver::UNLESS_REFUSED).await,
            None => {
                let reason =
                    "no device that leads can be reached from here, and another cannot be made to take over";
                let remedy = "Call it where the leader can be reached; if that is gone, call `take_over` on the device that is to lead";
                Err(handover::not_led(&shared, device, reason.into(), remedy))
            }
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

    /// Waits until the status shows that this device leads; or has led, where it was deposed in the next moment.
    async fn shows_leading(&self, term: Term) -> Result<(), Error> {
        let (mut status, mut pulse) = (self.status(), self.inner.engine.pulse());
        let stopped = || Error::Stopped { reason: "the library was shut down".into() };
        tokio::select! {
            leading = status.wait_for(|s| s.role == crate::Role::Leader) => leading.map(drop).map_err(|_| stopped()),
            over = pulse.wait_for(|p| p.stopped || p.max_seen > term) => match over {
                Ok(pulse) if !pulse.stopped => Ok(()),
                _ => Err(stopped()),
            },
        }
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

    pub(crate) fn shared(&self) -> Result<std::sync::Arc<node::Shared>, Error> {
        let stopped = || Error::Stopped { reason: "the library is not started".into() };
        lock_node(&self.inner.node).as_ref().map(node::Node::shared).ok_or_else(stopped)
    }
}

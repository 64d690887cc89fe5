//! Following: one subscription at a time with whoever leads.
//!
//! A session opens a channel, says where this device stands, and hands every batch to the engine's `apply`. The
//! channel is read and unpacked on a task of its own ([`incoming`](super::incoming)), a batch ahead of the one that is being applied. What was
//! applied is confirmed when it is durable, at most every [`CONFIRM_EVERY`].

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use rusqlite::Connection;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, sleep_until, timeout, timeout_at},
};

use super::{Shared, incoming::Incoming, is_a_copy, outgoing::Outgoing};
use crate::{
    engine::{Driver, Pulse},
    entry::Run,
    error::Error,
    following::{self, Begun, End, Following, Heard, NextPush, Pushes, Received, Unpacked},
    id::{DeviceId, Position, Seq, Term},
    reassign::{self, Admission, Grant},
    status::Link,
    store::{self, Model},
    term,
    transport::{Channel, TransportError},
    unwind::{Unwinding, Unwound},
    wire::Message,
};

/// Durable positions are confirmed at most this often.
const CONFIRM_EVERY: Duration = Duration::from_millis(10);
/// The same after a large batch, behind which more is likely: syncing beside the engine slows its writes.
const CONFIRM_CATCHING_UP: Duration = Duration::from_millis(200);
/// A leader that has not been heard of for this long is looked for again.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long opening a channel may take.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Devices that name each other as the leader are asked in turn this often without a pause.
const REDIRECTS_MAX: u32 = 4;
/// A leader is asked for a sign of life no more often than this.
const PROBE_MIN: Duration = Duration::from_millis(50);
/// Delay before the first new try, and the longest between two.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

type Questions = mpsc::Receiver<oneshot::Sender<Position>>;

/// Looks for the leader and follows it, until the node stops. On a leader it only waits.
pub(super) async fn follow(shared: Arc<Shared>, mut questions: Questions) {
    let mut pulse = shared.library.engine.pulse();
    let mut ended = shared.library.engine.pulse();
    // Stopped, or gone without a word.
    let ended = async move { drop(ended.wait_for(|pulse| pulse.stopped).await) };
    let following = async {
        // An error means that the engine has ended, which is told below.
        while pulse.wait_for(|pulse| !pulse.leads).await.is_ok() {
            if let Some(reason) = rounds(&shared, &mut questions).await {
                return reason;
            }
        }
        std::future::pending().await
    };
    let reason = tokio::select! {
        biased;
        () = shared.stopped() => return,
        () = ended => "the engine's thread has ended; open the library again".to_owned(),
        reason = following => reason,
    };
    show_stopped(&shared, reason);
    // Questions that wait stay where they are: who asked learns of the link.
    shared.stopped().await;
}

fn show_stopped(shared: &Shared, reason: String) {
    tracing::error!(library = %shared.library.id, reason, "sync has stopped");
    shared.library.status.send_modify(|status| {
        status.last_error = Some(reason.clone());
        status.link = Link::Stopped { reason };
        status.next_retry = None;
    });
}

/// Tries one peer after the other. Ends with a reason when a person has to act, and without when this device leads.
async fn rounds(shared: &Arc<Shared>, questions: &mut Questions) -> Option<String> {
    let mut backoff = retry();
    let mut hint = None;
    let mut pulse = shared.library.engine.pulse();
    // How often somebody was followed to who he said leads, without a pause.
    let mut redirects = 0;
    loop {
        let mut seen = pulse.borrow().max_seen;
        let mut tried = None;
        // Why, by the last that was tried; what broke with one says more than that another does not lead.
        let mut lost = "no peer is configured for this library: add one".to_owned();
        let mut broke = None;
        // It led, and does not know of it.
        let forgot = seen.leader == shared.transport.device() && pulse.borrow().granted.is_none();
        let mut redirected = false;
        for peer in candidates(shared, hint.take()).await {
            tried = Some(peer);
            let applied_before = shared.library.status.borrow().position;
            match session(shared, peer, questions).await {
                Ok(End::NotLeader(leader)) => {
                    lost = format!("device {peer} does not lead");
                    hint = leader.filter(|leader| *leader != peer && *leader != shared.transport.device());
                    redirected = hint.is_some();
                }
                Ok(End::Lost(reason)) => broke = Some(reason),
                Ok(End::Stopped(reason)) => return Some(reason),
                Ok(End::BelowFloor { common, floor }) => match outrank(shared, peer, common, floor).await {
                    Ok(reason) => return reason,
                    Err(error) => lost = error.to_string(),
                },
                Ok(End::Diverged { unwinding, floor }) => {
                    lost = format!("the log here parted from device {peer}'s, and its tail is pending again");
                    match rejoin(shared, peer, unwinding, floor).await {
                        Ok(reason @ Some(_)) => return reason,
                        Err(Error::Stopped { .. }) => return None,
                        Err(error) if error.may_pass() => lost = error.to_string(),
                        Err(error) => return Some(error.to_string()),
                        Ok(None) => {}
                    }
                    (hint, redirected) = (Some(peer), true);
                }
                Err(Error::Stopped { .. }) => return None,
                Err(error) if error.may_pass() => lost = error.to_string(),
                Err(error) => return Some(error.to_string()),
            }
            if shared.library.status.borrow().position != applied_before {
                backoff = retry();
                redirects = 0;
            }
            // Who is to be tried first is another one now.
            if redirected || pulse.borrow().max_seen != seen {
                break;
            }
        }
        let now = pulse.borrow_and_update().clone();
        if now.leads {
            return None;
        }
        // Somebody else has told of another leader meanwhile.
        redirected |= now.max_seen != seen && Some(now.max_seen.leader) != tried;
        seen = now.max_seen;
        if redirected && redirects < REDIRECTS_MAX {
            redirects += 1;
            continue;
        }
        redirects = 0;
        lost = broke.unwrap_or(lost);
        if forgot && seen > Term::ZERO {
            lost = format!(
                "this device led in term {seen}, and its database does not know of that: it is an older state of itself. \
                 Nobody leads. Let the device with the longest log take over; what is here alone is not lost by that"
            );
        }
        let delay = backoff.next().unwrap_or(RETRY.1);
        let next = shared.library.world.now() + i64::try_from(delay.as_millis()).unwrap_or(0);
        tracing::info!(library = %shared.library.id, reason = lost, ?delay, "offline; trying again");
        shared.library.status.send_modify(|status| {
            status.link = Link::Offline;
            // Of a copy that finds nobody a person has to know what it is.
            let copy_of = status.copy_of.filter(|_| shared.heard_top().is_none());
            status.last_error = Some(match copy_of {
                Some(before) => format!("{lost}. And {}", is_a_copy(before, shared.transport.device())),
                None => lost,
            });
            status.next_retry = Some(next);
        });
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            // Somebody has told of another leader.
            _ = pulse.wait_for(|pulse| pulse.leads || pulse.max_seen != seen) => {}
        }
        shared.library.status.send_modify(|status| {
            status.link = Link::Connecting;
            status.next_retry = None;
        });
    }
}

/// Takes the tail that parts from the leader's log back into pending, chunk by chunk, so that the application writes
/// meanwhile. A reason where a person has to act.
async fn rejoin(
    shared: &Shared,
    leader: DeviceId,
    mut unwinding: Unwinding,
    floor: Seq,
) -> Result<Option<String>, Error> {
    tracing::warn!(library = %shared.library.id, %leader, ?unwinding, "the log here parts from the leader's: rejoining");
    shared.library.status.send_modify(|status| {
        status.link = Link::Rejoining;
        status.leader = Some(leader);
    });
    shared.seal_backlog().await?;
    loop {
        let step = move |driver: &mut Driver| {
            let unwound = following::unwind(driver, &mut unwinding)?;
            Ok((unwound, unwinding))
        };
        let unwound;
        (unwound, unwinding) = shared.library.engine.step(step).await?;
        match unwound {
            Unwound::More => {}
            Unwound::Done | Unwound::Stale(_) | Unwound::Moved => return Ok(None),
            Unwound::BelowFloor => return outrank(shared, leader, unwinding.common(), floor).await,
        }
    }
}

/// Where what would have to be sent is compacted there, or what would have to be taken back is here (rule X): a leader that has compacted less follows this device,
/// which opens a higher term. Otherwise both logs have gone too far from each other, and a person decides which is to stand.
async fn outrank(
    shared: &Shared,
    leader: DeviceId,
    common: Seq,
    floor: Seq,
) -> Result<Option<String>, Error> {
    let step = move |driver: &mut Driver| {
        let conn = driver.store.connection();
        let replica = store::replica(conn)?.ok_or(Error::NoLibrary)?;
        let is_member = replica.device.map_or(Ok(false), |device| term::is_member(conn, device))?;
        Ok((replica.floor, is_member && !driver.is_rolled_back()?))
    };
    let (own, may_lead) = shared.library.engine.step(step).await?;
    if own <= common {
        return Ok(Some(format!(
            "device {leader} has compacted its log up to {floor}, and this device has it only up to {common}; nothing was \
             changed. Let this device join anew"
        )));
    }
    if floor <= common && may_lead {
        let term = shared.with_admission(reassign::take_over).await?;
        shared.lead_on().await?;
        tracing::warn!(library = %shared.library.id, %term, %leader, "this device leads instead of one whose log it cannot go back to");
        return Ok(None);
    }
    shared.library.status.send_modify(|status| status.split = Some(leader));
    Ok(Some(format!(
        "this library is split: the log here and device {leader}'s part after entry {common}, and what follows is compacted, \
         here up to {own} and there up to {floor}, so that neither can go back to it. Both keep everything, and nothing was \
         changed. Decide which of the two is to stand: force a takeover there, keep a copy of the other database, and let \
         that device join anew"
    )))
}

fn retry() -> backon::ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(RETRY.0)
        .with_max_delay(RETRY.1)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Whom to try, in order: who is said to lead, who led last, everybody else.
async fn candidates(shared: &Arc<Shared>, hint: Option<DeviceId>) -> Vec<DeviceId> {
    let (led, granted) = {
        let pulse = shared.library.engine.pulse();
        let pulse = pulse.borrow();
        (pulse.max_seen.leader, pulse.granted.map(|grant| grant.to))
    };
    let mut peers = shared.reachable().await;
    peers.sort_by_key(|peer| (Some(*peer) != hint, Some(*peer) != granted, *peer != led));
    peers
}

async fn session(shared: &Arc<Shared>, peer: DeviceId, questions: &mut Questions) -> Result<End, Error> {
    let mut pulse = shared.library.engine.pulse();
    let seen = pulse.borrow().max_seen;
    let opened = tokio::select! {
        opened = timeout(OPEN_MAX, shared.transport.open(peer, shared.library.id)) => opened.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", OPEN_MAX.as_secs());
            Err(TransportError::Unreachable { peer, reason })
        }),
        // Somebody has told of another leader: whoever is waited for here may never answer.
        _ = pulse.wait_for(|pulse| pulse.leads || pulse.max_seen != seen) => {
            return Ok(End::Lost(format!("device {peer} was not waited for: another term has begun")));
        }
    };
    let Channel { sender, receiver, .. } = match opened {
        Ok(channel) => channel,
        Err(error @ TransportError::Refused { .. }) => {
            tracing::warn!(library = %shared.library.id, %peer, %error, "refused");
            return Ok(End::Lost(error.to_string()));
        }
        Err(error) => return Ok(End::Lost(error.to_string())),
    };
    let Begun { subscribe, mut older, top } = shared.library.engine.step(following::subscribe).await?;
    let mut tasks = JoinSet::new();
    let mut outgoing = Outgoing::open(&mut tasks, peer, sender);
    let mut arriving = Arriving { count: receiver.arriving(), before: 0 };
    outgoing.send(&subscribe).await?;
    let incoming = Incoming::open(&mut tasks, receiver, shared.library.changes.clone());
    let mut session = Session {
        shared,
        following: Following::of(peer),
        outgoing,
        incoming,
        asked: Vec::new(),
        questions: 0,
        confirmed: top,
        applied: top,
        confirm_at: None,
        syncing: JoinSet::new(),
        pushes: Pushes::NONE,
        reading: JoinSet::new(),
        is_sealed: false,
    };
    // What this device asks and confirms says nothing of the leader: only what is heard counts.
    let silence = shared.library.failover.map_or(SILENCE_MAX, |failover| failover.after.min(SILENCE_MAX));
    let mut silent_at = Instant::now() + silence;
    // Who is to take over when nothing is heard asks before it is too long; all look whether something arrives.
    let mut probe = tokio::time::interval((silence / 3).max(PROBE_MIN));
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let confirm_at = session.confirm_at.unwrap_or_else(|| Instant::now() + SILENCE_MAX);
        tokio::select! {
            biased;
            message = timeout_at(silent_at, session.incoming.next()) => match message {
                Ok(Some(Ok(unpacked))) => {
                    let end = match unpacked {
                        Unpacked::Entries(received) => {
                            session.seal_backlog().await?;
                            session.take_entries(received).await?
                        }
                        Unpacked::Other(message) => session.take(message, &mut older).await?,
                    };
                    if let Some(end) = end {
                        return Ok(end);
                    }
                    if let Some(end) = session.is_over(&pulse) {
                        return Ok(end);
                    }
                    // What of it arrived counts once.
                    arriving.has_more();
                    silent_at = Instant::now() + silence;
                    if session.following.lead.is_some() {
                        shared.note_heard(peer, None);
                    }
                    // Where the next message is always there already, nothing below would ever have its turn.
                    session.catch_up(questions).await?;
                }
                Ok(Some(Err(reason))) => return Ok(End::Lost(format!("device {peer}: {reason}"))),
                Ok(None) => return Ok(End::Lost(format!("device {peer} ended the channel"))),
                Err(_) => return Ok(End::Lost(format!("nothing was heard of device {peer} for {silence:?}"))),
            },
            _ = probe.tick() => {
                // A large message takes its time where the network is slow, and whoever sends it is there.
                if arriving.has_more() {
                    silent_at = Instant::now() + silence;
                    if session.following.lead.is_some() {
                        shared.note_heard(peer, None);
                    }
                } else if session.probes() {
                    session.probe().await?;
                }
            }
            Some(question) = questions.recv() => session.ask(question, questions).await?,
            changed = pulse.changed() => match changed {
                Ok(()) => {
                    let pending = pulse.borrow_and_update().pending_ends;
                    if let Some(end) = session.is_over(&pulse) {
                        return Ok(end);
                    }
                    session.begin_pushing(pending);
                }
                Err(_) => return Ok(End::Lost("the engine has ended".to_owned())),
            },
            () = sleep_until(confirm_at), if session.confirm_at.is_some() => session.begin_confirming(),
            synced = session.syncing.join_next(), if !session.syncing.is_empty() => session.confirm(synced).await?,
            read = session.reading.join_next(), if !session.reading.is_empty() => session.push(read).await?,
        }
    }
}

/// What arrives of messages that are not whole yet.
struct Arriving {
    count: Option<Arc<AtomicU64>>,
    before: u64,
}

impl Arriving {
    /// Whether more has arrived since this was asked last.
    fn has_more(&mut self) -> bool {
        let Some(count) = &self.count else { return false };
        let before = std::mem::replace(&mut self.before, count.load(Ordering::Relaxed));
        self.before > before
    }
}

/// What reading a push has come to, on a task of its own.
type ReadPush = Result<Result<Option<NextPush>, Error>, JoinError>;

struct Session<'s> {
    shared: &'s Arc<Shared>,
    following: Following,
    outgoing: Outgoing,
    incoming: Incoming,
    /// Who waits for the leader's top.
    asked: Vec<(u64, oneshot::Sender<Position>)>,
    /// Number of the last question.
    questions: u64,
    confirmed: Position,
    applied: Position,
    confirm_at: Option<Instant>,
    /// Makes a position durable, beside the engine; one at a time.
    syncing: JoinSet<Result<Position, Error>>,
    pushes: Pushes,
    /// Reads what is to be pushed next, beside the engine; one at a time.
    reading: JoinSet<Result<Option<NextPush>, Error>>,
    /// What was captured before the session is pending.
    is_sealed: bool,
}

impl Session<'_> {
    /// What is late beside applying, where messages come without a pause.
    async fn catch_up(&mut self, questions: &mut Questions) -> Result<(), Error> {
        if let Ok(question) = questions.try_recv() {
            self.ask(question, questions).await?;
        }
        if self.confirm_at.is_some_and(|due| due <= Instant::now()) {
            self.begin_confirming();
        }
        if let Some(synced) = self.syncing.try_join_next() {
            self.confirm(Some(synced)).await?;
        }
        if let Some(read) = self.reading.try_join_next() {
            self.push(Some(read)).await?;
        }
        self.begin_pushing(self.pending_ends());
        Ok(())
    }

    /// How the session ends where somebody else has told of a higher term, or this device leads.
    fn is_over(&self, pulse: &watch::Receiver<Pulse>) -> Option<End> {
        let lead = self.following.lead?;
        let pulse = pulse.borrow();
        (pulse.leads || pulse.max_seen > lead).then(|| End::NotLeader(Some(pulse.max_seen.leader)))
    }

    /// The leader has all of its log here and appends nothing more: opens the term that it granted, and tells it.
    async fn take_grant(
        &mut self,
        lead: Term,
        number: u64,
        position: Position,
    ) -> Result<Option<End>, Error> {
        let grant = Grant { number, position, to: self.shared.transport.device() };
        let take = move |driver: &mut Driver, admission: Admission<'_>| {
            reassign::take_grant(driver, lead, grant, admission)
        };
        let Some(term) = self.shared.with_admission(take).await? else { return Ok(None) };
        tracing::info!(library = %self.shared.library.id, %term, from = %self.following.peer, "the lead was handed over to this device");
        let _ = self.outgoing.send_last(&Message::Confirm { max_seen: term, position }).await;
        self.shared.lead_on().await?;
        Ok(Some(End::NotLeader(None)))
    }

    /// Whether the leader is asked for a sign of life: more often than its heartbeat comes. Not while it has yet to take what it
    /// was asked before.
    fn probes(&self) -> bool {
        self.shared.library.failover.is_some() && self.following.lead.is_some() && self.outgoing.is_idle()
    }

    async fn probe(&mut self) -> Result<(), Error> {
        self.questions += 1;
        self.outgoing.send(&Message::Ask { number: self.questions }).await
    }

    /// Asks for the leader's top, once for all that wait.
    async fn ask(&mut self, first: oneshot::Sender<Position>, more: &mut Questions) -> Result<(), Error> {
        self.questions += 1;
        let number = self.questions;
        self.asked.push((number, first));
        while let Ok(question) = more.try_recv() {
            self.asked.push((number, question));
        }
        self.outgoing.send(&Message::Ask { number }).await
    }

    async fn take(&mut self, message: Message, older: &mut Vec<Run>) -> Result<Option<End>, Error> {
        let heard = match self.following.take_at_once(&message, older) {
            Some(heard) => heard,
            None => {
                self.begin_pushing(self.pending_ends());
                let mut following = self.following.clone();
                let take = move |driver: &mut Driver| Ok((following.take(driver, message)?, following));
                let shared = self.shared;
                let heard;
                (heard, self.following) = self.pushing(shared.library.engine.step(take)).await?;
                heard
            }
        };
        match heard {
            Heard::Top { position, stable, answers } => {
                self.shared.show_stable(stable.min(self.applied.seq));
                self.show(position);
                for (_, question) in self.asked.extract_if(.., |(number, _)| *number <= answers) {
                    let _ = question.send(position);
                }
            }
            Heard::Reply(message) => self.outgoing.send(&message).await?,
            Heard::Pushed => return Ok(self.pushes.answered(self.following.peer)),
            Heard::End(end) => return Ok(Some(end)),
            Heard::Granted { lead, number, position } => {
                return self.take_grant(lead, number, position).await;
            }
            Heard::Nothing | Heard::Applied(_) | Heard::Staged | Heard::Again => {}
        }
        Ok(None)
    }

    /// Has what is pending read that was not pushed on this channel yet, as far as the leader keeps up with answering.
    fn begin_pushing(&mut self, pending: Option<(i64, i64)>) {
        let Some((_, last)) = pending else { return };
        if !self.following.takes_pushes() || !self.pushes.is_due(last) || !self.reading.is_empty() {
            return;
        }
        let (shared, pushes) = (Arc::clone(self.shared), self.pushes.clone());
        self.reading.spawn(async move {
            let readers = &shared.library.readers;
            let path = readers.path().to_owned();
            let read = move |conn: &Connection, _: &[Model]| {
                let next = pushes.next(conn)?;
                if next.is_some() {
                    // What is told of is durable first (rule D).
                    store::sync_log(&path)?;
                }
                Ok(next)
            };
            readers.run(read).await
        });
    }

    /// Pushes what was read, and has the next read.
    async fn push(&mut self, read: Option<ReadPush>) -> Result<(), Error> {
        let Some(read) = read else { return Ok(()) };
        let Some(next) = read.map_err(|e| Error::Stopped { reason: e.to_string() })?? else { return Ok(()) };
        let message = self.pushes.sent(next);
        self.begin_pushing(self.pending_ends());
        self.outgoing.send_packed(message).await
    }

    /// Waits for a step of the engine, and pushes meanwhile.
    async fn pushing<T>(&mut self, step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut step = pin!(step);
        let mut pulse = self.shared.library.engine.pulse();
        loop {
            tokio::select! {
                biased;
                done = &mut step => return done,
                read = self.reading.join_next(), if !self.reading.is_empty() => self.push(read).await?,
                // Where the engine has ended, the step says so.
                Ok(()) = pulse.changed() => self.begin_pushing(self.pending_ends()),
            }
        }
    }

    async fn seal_backlog(&mut self) -> Result<(), Error> {
        if !self.is_sealed {
            let shared = self.shared;
            self.pushing(shared.seal_backlog()).await?;
            self.is_sealed = true;
        }
        Ok(())
    }

    fn pending_ends(&self) -> Option<(i64, i64)> {
        self.shared.library.engine.pulse().borrow().pending_ends
    }

    async fn take_entries(&mut self, received: Box<Received>) -> Result<Option<End>, Error> {
        let catching_up = received.arrived.is_large();
        let (heard, top) = if catching_up && received.has_more_behind() && received.arrived.is_of_known() {
            self.take_together(received).await?
        } else {
            let top = received.top;
            (self.take_one(received).await?, top)
        };
        match heard {
            Heard::Applied(position) => {
                self.applied = position;
                self.show(top);
                if self.confirm_at.is_none() {
                    let wait = if catching_up { CONFIRM_CATCHING_UP } else { CONFIRM_EVERY };
                    self.confirm_at = Some(Instant::now() + wait);
                }
            }
            Heard::End(end) => return Ok(Some(end)),
            _ => {}
        }
        Ok(None)
    }

    /// Takes entries with those that are there behind them: more of the same records is likely.
    async fn take_together(&mut self, first: Box<Received>) -> Result<(Heard, Position), Error> {
        let (mut following, lead) = (self.following.clone(), first.lead());
        let mut incoming = std::mem::replace(&mut self.incoming, Incoming::closed());
        let step = move |driver: &mut Driver| {
            let done = following
                .take_together(driver, first, &mut |has_to_end| incoming.entries_of(lead, has_to_end))?;
            Ok((done, following, incoming))
        };
        let done;
        let shared = self.shared;
        (done, self.following, self.incoming) = self.pushing(shared.library.engine.step(step)).await?;
        Ok(done)
    }

    async fn take_one(&mut self, mut received: Box<Received>) -> Result<Heard, Error> {
        let catching_up = received.arrived.is_large();
        let heard = loop {
            let mut following = self.following.clone();
            let small = received.is_small();
            let step = move |driver: &mut Driver| {
                let heard = following.take_entries(driver, &mut received)?;
                Ok((heard, received, following))
            };
            let shared = self.shared;
            let engine = &shared.library.engine;
            let done = match small {
                true => engine.short_step(step).await,
                false => self.pushing(engine.step(step)).await,
            }?;
            let heard;
            (heard, received, self.following) = done;
            if !matches!(heard, Heard::Again) {
                break heard;
            }
        };
        if catching_up {
            // Freeing what arrived is work too, and the next batch waits for neither.
            drop(tokio::task::spawn_blocking(move || drop(received)));
        }
        Ok(heard)
    }

    /// Shows that the subscription stands and how far behind this device is.
    fn show(&self, top: Position) {
        self.shared.note_heard(self.following.peer, Some(top));
        let now = self.shared.library.world.now();
        let leader = self.following.peer;
        let applied = self.applied;
        self.shared.library.status.send_modify(|status| {
            status.link = Link::Online;
            status.leader = Some(leader);
            status.position = applied;
            status.term = applied.term;
            status.behind = Some(top.seq.0.saturating_sub(applied.seq.0));
            status.last_success = Some(now);
            status.last_error = None;
        });
    }

    /// Makes what was applied durable (rule D), where nobody waits for it.
    fn begin_confirming(&mut self) {
        self.confirm_at = None;
        if self.applied != self.confirmed && self.syncing.is_empty() {
            let (path, position) = (self.shared.library.readers.path().to_owned(), self.applied);
            self.syncing.spawn_blocking(move || store::sync_log(&path).map(|()| position));
        }
    }

    /// Says what is durable.
    async fn confirm(
        &mut self,
        synced: Option<Result<Result<Position, Error>, JoinError>>,
    ) -> Result<(), Error> {
        let Some(synced) = synced else { return Ok(()) };
        self.confirmed = synced.map_err(|e| Error::Stopped { reason: e.to_string() })??;
        if self.applied != self.confirmed {
            self.confirm_at = Some(Instant::now() + CONFIRM_EVERY);
        }
        let (max_seen, position) = (self.following.lead.unwrap_or(Term::ZERO), self.confirmed);
        self.outgoing.send(&Message::Confirm { max_seen, position }).await
    }
}

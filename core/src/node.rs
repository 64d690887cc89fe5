//! The node: the asynchronous side of a started library.
//!
//! It owns the loops that wait: one takes the channels that peers open ([`serve`]), one follows the leader
//! ([`follow`]), one tells the application how things stand. None of them decides anything about the log: they carry
//! messages to the engine's steps and the steps' answers back.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::Connection;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    engine::{Driver, Pulse},
    error::Error,
    id::Seq,
    id::{DeviceId, Position, Term},
    leadership::REASSIGNMENTS_MAX,
    library::Inner,
    reassign::{self, Admission},
    serving,
    status::{Follower, Link, Role, Status},
    store::{self, Model},
    term::{self, Started},
    transport::SharedTransport,
};

mod decide;
mod failover;
mod follow;
pub(crate) mod handover;
mod incoming;
pub(crate) mod inquire;
mod outgoing;
mod reclaim;
mod serve;

#[cfg(test)]
mod astray;

/// Questions for the leader's top that may wait for the subscription to stand.
const QUESTIONS_QUEUE: usize = 16;

/// A started library's tasks.
pub(crate) struct Node {
    stop: watch::Sender<bool>,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    questions: mpsc::Sender<oneshot::Sender<Position>>,
}

/// What the tasks of a node share.
pub(crate) struct Shared {
    pub(crate) library: Arc<Inner>,
    pub(crate) transport: SharedTransport,
    /// What each follower confirmed in this term. Only in memory: a new term begins with none.
    pub(crate) slots: Mutex<HashMap<DeviceId, Slot>>,
    /// When a leader was last heard of, who it is, and the top of its log.
    heard: Mutex<Option<Heard>>,
    /// One for each request to hand over that is worked on.
    reassigning: Semaphore,
    pub(crate) stop: watch::Receiver<bool>,
}

#[derive(Clone, Copy)]
struct Heard {
    at: Instant,
    leader: DeviceId,
    top: Position,
}

/// What a follower confirmed, and on which of its channels: one that breaks late must not take the slot of the next.
pub(crate) struct Slot {
    channel: u64,
    lead: Term,
    confirmed: Position,
}

impl Shared {
    /// Whether the device is a peer that was configured for this library.
    fn is_configured(&self, device: DeviceId) -> bool {
        self.peers().contains(&device)
    }

    /// The peers configured for this library.
    fn peers(&self) -> Vec<DeviceId> {
        let all = self.transport.peers();
        match &self.library.peers {
            Some(named) => all.into_iter().filter(|d| named.contains(d)).collect(),
            None => all,
        }
    }

    /// The devices that may be reached: configured peers, and members of the library that the transport knows.
    pub(crate) async fn reachable(&self) -> Vec<DeviceId> {
        let mut peers = self.peers();
        let all = self.transport.peers();
        if peers.len() < all.len() {
            let members = self.library.engine.step(move |driver| {
                let conn = driver.store.connection();
                let mut members = Vec::new();
                for device in all {
                    if term::is_member(conn, device)? {
                        members.push(device);
                    }
                }
                Ok(members)
            });
            let others = members.await.unwrap_or_default().into_iter();
            let others: Vec<_> = others.filter(|device| !peers.contains(device)).collect();
            peers.extend(others);
        }
        peers
    }

    /// Runs a step that opens a term: it makes the configured peers members.
    pub(crate) async fn with_admission<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Driver, Admission<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (peers, precedence) = (self.peers(), Arc::clone(&self.library.precedence));
        let step =
            move |driver: &mut Driver| step(driver, Admission { peers: &peers, precedence: &precedence });
        self.library.engine.step(step).await
    }

    /// Sequences what is pending here and makes peers members, if this device leads.
    pub(crate) async fn lead_on(&self) -> Result<(), Error> {
        while !self.with_admission(reassign::lead_on).await? {}
        Ok(())
    }

    /// Seals what was captured while this device was not started, seal by seal: otherwise it would all be sealed within the
    /// first transaction that applies something. Not what the application adds meanwhile, which may never pause.
    pub(crate) async fn seal_backlog(&self) -> Result<(), Error> {
        let engine = &self.library.engine;
        let Some((_, until)) = engine.step(|driver| driver.outbox_ends()).await? else { return Ok(()) };
        let round = move |driver: &mut Driver| {
            let (more, _) = driver.round(true)?;
            Ok(more && driver.outbox_ends()?.is_some_and(|(first, _)| first <= until))
        };
        while engine.step(round).await? {}
        Ok(())
    }

    fn note_heard(&self, leader: DeviceId, top: Option<Position>) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let before = heard.filter(|heard| heard.leader == leader).map(|heard| heard.top);
        let top = top.or(before).unwrap_or(Position::EMPTY);
        *heard = Some(Heard { at: Instant::now(), leader, top });
    }

    /// For how long no leader was heard of; `None` if none ever was.
    pub(crate) fn unheard(&self) -> Option<Duration> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).map(|heard| heard.at.elapsed())
    }

    /// The leader that was heard of last, and the top of its log as it then said.
    pub(crate) fn heard_top(&self) -> Option<(DeviceId, Position)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).map(|heard| (heard.leader, heard.top))
    }

    /// Resolves when the node is to stop.
    async fn stopped(&self) {
        // An error means that the node itself is gone.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }

    /// Notes what a follower confirmed, and shows it.
    /// Whether the follower has opened no other channel since this one was served.
    fn is_newest(&self, device: DeviceId, channel: u64) -> bool {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&device).is_none_or(|slot| slot.channel <= channel)
    }

    fn set_slot(&self, device: DeviceId, channel: u64, confirmed: Option<(Term, Position)>) {
        let (lead, members) = {
            let pulse = self.library.engine.pulse();
            let pulse = pulse.borrow();
            (pulse.max_seen, Arc::clone(&pulse.members))
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = slots.get(&device).map_or(0, |slot| slot.channel);
        match confirmed {
            Some((lead, confirmed)) if channel >= newest => {
                slots.insert(device, Slot { channel, lead, confirmed });
            }
            None if channel == newest => drop(slots.remove(&device)),
            _ => return,
        }
        // In another term they begin anew.
        let of_term = |(_, slot): &(&DeviceId, &Slot)| slot.lead == lead;
        let stable = serving::stable(&members, self.transport.device(), |member| {
            slots.get(&member).filter(|slot| slot.lead == lead).map(|slot| slot.confirmed.seq)
        });
        let mut followers: Vec<_> = slots
            .iter()
            .filter(of_term)
            .map(|(device, slot)| Follower { device: *device, confirmed: slot.confirmed })
            .collect();
        drop(slots);
        followers.sort_by_key(|f| f.device);
        self.library.status.send_modify(|status| status.followers = followers);
        self.show_stable(stable);
    }

    /// Everything up to here is on all members' disks. It was so in a former term, too.
    fn show_stable(&self, stable: Seq) {
        self.library.status.send_if_modified(|status| {
            let rises = stable > status.stable;
            status.stable = status.stable.max(stable);
            rises
        });
    }
}

/// Starts the replica as `device`, with these members if it leads, and sealing. Whether more is pending than a leader takes
/// at once, so that it is to go on with [`Shared::lead_on`].
pub(crate) fn begin(
    driver: &mut Driver,
    device: DeviceId,
    peers: &[DeviceId],
    precedence: &BTreeMap<DeviceId, u8>,
) -> Result<(Started, bool), Error> {
    let started = driver.transaction(|tx| term::start(tx, device, precedence))?;
    driver.begin_sealing();
    let leads_on = !reassign::lead_on(driver, Admission { peers, precedence })?;
    Ok((started, leads_on))
}

/// What there is to be said of a database that was another device's.
fn is_a_copy(before: DeviceId, device: DeviceId) -> String {
    format!(
        "this database was used as device {before} before: it is a copy, and device {device} follows with it; nothing of it \
         is lost. If the other device is gone for good, let this one take over"
    )
}

/// Starts the tasks.
pub(crate) async fn start(library: Arc<Inner>, transport: SharedTransport) -> Result<Node, Error> {
    let device = transport.device();
    let (stop, stopping) = watch::channel(false);
    let (slots, heard) = (Mutex::default(), Mutex::default());
    let reassigning = Semaphore::new(REASSIGNMENTS_MAX);
    let shared = Arc::new(Shared { library, transport, slots, heard, reassigning, stop: stopping });
    let incoming = shared.transport.listen(shared.library.id)?;
    let peers = shared.peers();
    let precedence = Arc::clone(&shared.library.precedence);
    let begin = move |driver: &mut Driver| begin(driver, device, &peers, &precedence);
    let (started, leads_on) = shared.library.engine.step(begin).await?;
    if leads_on {
        shared.lead_on().await?;
    }
    let mut copy_of = None;
    match started {
        Started::Leading(term) => tracing::info!(library = %shared.library.id, %term, "leading"),
        Started::Following => tracing::info!(library = %shared.library.id, %device, "following"),
        Started::Copied { before } => copy_of = Some(before),
    }
    let last_error = copy_of.map(|before| is_a_copy(before, device));
    if let Some(text) = &last_error {
        tracing::warn!(library = %shared.library.id, "{text}");
    }
    let leads = matches!(started, Started::Leading(_));
    shared.library.status.send_modify(|status| {
        status.device = Some(device);
        status.role = if leads { Role::Leader } else { Role::Follower };
        status.link = if leads { Link::Leading } else { Link::Connecting };
        status.leader = leads.then_some(device);
        (status.copy_of, status.last_error) = (copy_of, last_error);
    });
    let (questions, asked) = mpsc::channel(QUESTIONS_QUEUE);
    let mut tasks = JoinSet::new();
    tasks.spawn(show_pulse(Arc::clone(&shared)));
    tasks.spawn(serve::accept(Arc::clone(&shared), incoming));
    if let Some(resolver) = shared.library.resolver.clone() {
        tasks.spawn(decide::decide(Arc::clone(&shared), resolver));
    }
    if let Some(failover) = shared.library.failover {
        tasks.spawn(failover::failover(Arc::clone(&shared), failover));
    }
    tasks.spawn(inquire::tell_others(Arc::clone(&shared)));
    tasks.spawn(reclaim::reclaim(Arc::clone(&shared)));
    tasks.spawn(follow::follow(Arc::clone(&shared), asked));
    Ok(Node { stop, shared, tasks, questions })
}

impl Node {
    /// Ends the tasks and waits for them.
    pub(crate) async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn questions(&self) -> mpsc::Sender<oneshot::Sender<Position>> {
        self.questions.clone()
    }
}

/// Asks the leader for its top, over the subscription; waits until there is one.
pub(crate) async fn ask_top(library: &Inner) -> Result<Position, Error> {
    let stopped = || Error::Stopped { reason: "the library is not started".into() };
    let questions = library.questions().ok_or_else(stopped)?;
    let mut status = library.status.subscribe();
    let ask = async {
        loop {
            let (reply, answer) = oneshot::channel();
            questions.send(reply).await.map_err(|_| stopped())?;
            // A subscription that breaks drops the questions it carried: ask the next one.
            if let Ok(top) = answer.await {
                return Ok(top);
            }
        }
    };
    let broken = async {
        match status
            .wait_for(|s| matches!(s.link, Link::Stopped { .. } | Link::Idle))
            .await
            .map(|s| s.clone())
        {
            Ok(status) => match status.link {
                Link::Stopped { reason } => {
                    Err(Error::LinkStopped { peer: status.leader.unwrap_or(Term::ZERO.leader), reason })
                }
                _ => Err(stopped()),
            },
            Err(_) => Err(stopped()),
        }
    };
    tokio::select! {
        top = ask => top,
        error = broken => error,
    }
}

/// Carries what the engine tells of itself into the status.
async fn show_pulse(shared: Arc<Shared>) {
    let mut pulse = shared.library.engine.pulse();
    let mut shown: Option<String> = None;
    loop {
        let now = pulse.borrow_and_update().clone();
        shared.library.status.send_if_modified(|status| {
            let before = status.clone();
            if let Some(top) = now.top {
                status.position = top;
                status.term = top.term;
            }
            show_counts(&now, status);
            if now.leads {
                status.behind = Some(0);
                if status.role != Role::Leader {
                    (status.role, status.leader, status.link) = (Role::Leader, status.device, Link::Leading);
                    (status.next_retry, status.last_error) = (None, None);
                }
            } else if status.role == Role::Leader {
                // Deposed: a follower has seen a higher term.
                status.role = Role::Follower;
                status.leader = None;
                status.behind = None;
                status.link = Link::Connecting;
            }
            if now.error.is_some() {
                status.last_error.clone_from(&now.error);
            } else if shown.is_some() && status.last_error == shown {
                status.last_error = None;
            }
            shown.clone_from(&now.error);
            *status != before
        });
        tokio::select! {
            changed = pulse.changed() => if changed.is_err() { return },
            () = shared.stopped() => return,
        }
        // Those who send what is new were woken too, and go first.
        tokio::task::yield_now().await;
    }
}

/// Carries what the engine has counted into the status.
pub(crate) fn show_counts(now: &Pulse, status: &mut Status) {
    (status.outbox, status.pending) = (now.outbox, now.pending);
    (status.quarantined, status.withheld) = (now.quarantined, now.withheld);
    (status.conflicts, status.dead_letters) = (now.waits.conflicts, now.waits.dead_letters);
    (status.blocked, status.rolled_back) = (now.waits.blocked, now.rolled_back);
}

/// Read-only connections for serving the log, beside the engine's own: a reader never waits for a writer.
pub(crate) struct Readers {
    path: PathBuf,
    models: Arc<Vec<Model>>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

/// Reading connections kept open while nobody reads.
const READERS_IDLE: usize = 4;

impl Readers {
    pub(crate) fn new(path: PathBuf, models: Vec<Model>) -> Self {
        Self { path, models: Arc::new(models), idle: Arc::default() }
    }

    /// Runs a read on a thread for blocking work.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection, &[Model]) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (path, models, idle) = (self.path.clone(), Arc::clone(&self.models), Arc::clone(&self.idle));
        let run = move || {
            let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let conn = match taken {
                Some(conn) => conn,
                None => store::connect(&path, true)?,
            };
            let done = read(&conn, &models)?;
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < READERS_IDLE {
                idle.push(conn);
            }
            Ok(done)
        };
        tokio::task::spawn_blocking(run).await.map_err(|e| Error::Stopped { reason: e.to_string() })?
    }

    /// The next message of entries for a follower that has everything up to `after`, and where it then stands.
    async fn entries(
        &self,
        lead: Term,
        floor: Seq,
        after: Seq,
        until: Position,
    ) -> Result<(Vec<u8>, Seq), Error> {
        self.run(move |conn, _| {
            let (message, last) = serving::entries(conn, (lead, floor), after, until)?;
            Ok((message.encode(), last))
        })
        .await
    }

    /// The database file.
    fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

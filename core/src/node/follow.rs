//! Following: one subscription at a time with whoever leads.
//!
//! A session opens a channel, says where this device stands, and hands every batch to the engine's `apply`. The
//! channel is read and unpacked on a task of its own, a batch ahead of the one that is being applied. What was
//! applied is confirmed when it is durable, at most every [`CONFIRM_EVERY`].

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::Shared;
use crate::{
    apply::{self, Applied, Arrived, Rows, Touched, is_constraint},
    engine::Driver,
    entry::{EntryKind, Run},
    error::Error,
    id::{DeviceId, Position, Term},
    log,
    pending::{self, PushedUpTo},
    status::{AppliedChange, ChangeKind, Link},
    store, term,
    transport::{Channel, MessageReceiver, MessageSender, TransportError},
    wire::{HISTORY_MAX, Message, PushStop, Unreadable},
};

/// Durable positions are confirmed at most this often.
const CONFIRM_EVERY: Duration = Duration::from_millis(10);
/// The same after a large batch, behind which more is likely: syncing beside the engine slows its writes.
const CONFIRM_CATCHING_UP: Duration = Duration::from_millis(200);
/// A leader that has not been heard of for this long is looked for again.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long opening a channel may take.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Batches unpacked ahead of the one that is applied: some 11 MiB each, beside those that are being packed and freed.
const AHEAD: usize = 1;
/// Pushes that may wait for an answer: what the leader is busy with while a large group is applied here. They are kept by
/// neither side, but where the network has them.
const PUSHES_AHEAD: usize = 4;
/// Delay before the first new try, and the longest between two.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

type Questions = mpsc::Receiver<oneshot::Sender<Position>>;

/// How a session ended.
enum End {
    /// The other side does not lead; it may know who does.
    NotLeader(Option<DeviceId>),
    /// The channel broke or could not be opened.
    Lost(String),
    /// Waiting does not help.
    Stopped(String),
}

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
    loop {
        let mut lost = "no peer is configured for this library: add one".to_owned();
        let mut redirected = false;
        for peer in candidates(shared, hint.take()).await {
            let applied_before = shared.library.status.borrow().position;
            match session(shared, peer, questions).await {
                Ok(End::NotLeader(leader)) => {
                    lost = format!("device {peer} does not lead");
                    hint = leader.filter(|leader| *leader != peer && shared.is_configured(*leader));
                    redirected = hint.is_some();
                }
                Ok(End::Lost(reason)) => lost = reason,
                Ok(End::Stopped(reason)) => return Some(reason),
                Err(Error::Stopped { .. }) => return None,
                Err(error) if error.may_pass() => lost = error.to_string(),
                Err(error) => return Some(error.to_string()),
            }
            if shared.library.status.borrow().position != applied_before {
                backoff = retry();
            }
            if redirected {
                break;
            }
        }
        if shared.library.engine.pulse().borrow().leads {
            return None;
        }
        let delay = backoff.next().unwrap_or(RETRY.1);
        let next = shared.library.world.now() + i64::try_from(delay.as_millis()).unwrap_or(0);
        tracing::info!(library = %shared.library.id, reason = lost, ?delay, "offline; trying again");
        shared.library.status.send_modify(|status| {
            status.link = Link::Offline;
            status.last_error = Some(lost);
            status.next_retry = Some(next);
        });
        tokio::time::sleep(delay).await;
        shared.library.status.send_modify(|status| {
            status.link = Link::Connecting;
            status.next_retry = None;
        });
    }
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
    let led = shared
        .library
        .engine
        .step(|driver| Ok(store::replica(driver.store.connection())?.map(|r| r.max_seen.leader)))
        .await
        .ok()
        .flatten();
    let mut peers = shared.peers();
    peers.sort_by_key(|peer| (Some(*peer) != hint, Some(*peer) != led));
    peers
}

async fn session(shared: &Arc<Shared>, peer: DeviceId, questions: &mut Questions) -> Result<End, Error> {
    let opened = match timeout(OPEN_MAX, shared.transport.open(peer, shared.library.id)).await {
        Ok(opened) => opened,
        Err(_) => Err(TransportError::Unreachable {
            peer,
            reason: format!("no answer within {} s", OPEN_MAX.as_secs()),
        }),
    };
    let Channel { mut sender, receiver, .. } = match opened {
        Ok(channel) => channel,
        Err(error @ TransportError::Refused { .. }) => {
            tracing::warn!(library = %shared.library.id, %peer, %error, "refused");
            return Ok(End::Lost(error.to_string()));
        }
        Err(error) => return Ok(End::Lost(error.to_string())),
    };
    let (max_seen, top, mut runs) = shared
        .library
        .engine
        .step(|driver| {
            driver.store.sync()?;
            let conn = driver.store.connection();
            let replica = store::replica(conn)?.ok_or(Error::NoLibrary)?;
            // Parts that were put aside are sent again from the top: a new leader may have cut them otherwise.
            Ok((replica.max_seen, store::top(conn)?, log::runs(conn)?))
        })
        .await?;
    let (history, complete) = newest(&mut runs);
    send(sender.as_mut(), &Message::Subscribe { max_seen, top, history, complete }).await?;

    let (unpacked, mut inbox) = mpsc::channel(AHEAD);
    let mut tasks = JoinSet::new();
    tasks.spawn(unpack(receiver, unpacked));
    let mut session = Session {
        shared,
        peer,
        sender,
        lead: None,
        asked: Vec::new(),
        questions: 0,
        confirmed: top,
        applied: top,
        confirm_at: None,
        syncing: JoinSet::new(),
        pushed: PushedUpTo::NOTHING,
        pushes: 0,
    };
    let mut pulse = shared.library.engine.pulse();
    // What this device asks and confirms says nothing of the leader: only what is heard counts.
    let mut silent_at = Instant::now() + SILENCE_MAX;
    loop {
        let confirm_at = session.confirm_at.unwrap_or_else(|| Instant::now() + SILENCE_MAX);
        tokio::select! {
            biased;
            message = timeout_at(silent_at, inbox.recv()) => match message {
                Ok(Some(Ok(unpacked))) => {
                    let end = match unpacked {
                        Unpacked::Entries { lead, top, arrived, message } => {
                            session.apply(lead, top, arrived, message).await?
                        }
                        Unpacked::Other(message) => session.take(message, &mut runs).await?,
                    };
                    if let Some(end) = end {
                        return Ok(end);
                    }
                    silent_at = Instant::now() + SILENCE_MAX;
                    // Where the next message is always there already, nothing below would ever have its turn.
                    session.catch_up(questions).await?;
                }
                Ok(Some(Err(reason))) => return Ok(End::Lost(format!("device {peer}: {reason}"))),
                Ok(None) => return Ok(End::Lost(format!("device {peer} ended the channel"))),
                Err(_) => return Ok(End::Lost(format!("nothing was heard of device {peer} for {} s", SILENCE_MAX.as_secs()))),
            },
            Some(question) = questions.recv() => session.ask(question, questions).await?,
            changed = pulse.changed() => match changed {
                Ok(()) => {
                    let pending = pulse.borrow_and_update().pending_ends;
                    session.push(pending).await?;
                }
                Err(_) => return Ok(End::Lost("the engine has ended".to_owned())),
            },
            () = sleep_until(confirm_at), if session.confirm_at.is_some() => session.begin_confirming(),
            synced = session.syncing.join_next(), if !session.syncing.is_empty() => session.confirm(synced).await?,
        }
    }
}

/// The newest runs that one message holds, taken off the end, and whether that is all.
fn newest(runs: &mut Vec<Run>) -> (Vec<Run>, bool) {
    let newest = runs.split_off(runs.len().saturating_sub(HISTORY_MAX));
    (newest, runs.is_empty())
}

async fn send(sender: &mut dyn MessageSender, message: &Message) -> Result<(), Error> {
    Ok(sender.send(message.encode()).await?)
}

/// A message with what could be done about it beside the session.
enum Unpacked {
    Entries { lead: Term, top: Position, arrived: Arrived, message: Vec<u8> },
    Other(Message),
}

/// Reads the channel and unpacks what comes, a little ahead of the session.
async fn unpack(mut receiver: Box<dyn MessageReceiver>, to: mpsc::Sender<Result<Unpacked, String>>) {
    loop {
        let received = receiver.receive().await;
        // A place first: what waits for one is small while it is packed.
        let Ok(place) = to.reserve().await else { return };
        let next = match received {
            Ok(Some(bytes)) => unpacked(bytes).map_err(|e| e.to_string()),
            Ok(None) => return,
            Err(error) => Err(error.to_string()),
        };
        let over = next.is_err();
        place.send(next);
        if over {
            return;
        }
    }
}

fn unpacked(message: Vec<u8>) -> Result<Unpacked, Unreadable> {
    Ok(match Message::decode(&message)? {
        Message::Entries { lead, top, batch, .. } => {
            Unpacked::Entries { lead, top, arrived: Arrived::of(batch.into_batch()?), message }
        }
        other => Unpacked::Other(other),
    })
}

/// Entries as they came, to be applied.
struct Received {
    lead: Term,
    arrived: Arrived,
    message: Vec<u8>,
    changes: broadcast::Sender<AppliedChange>,
}

impl Received {
    /// Applies them and tells of it; gives them back, for another try.
    fn apply(mut self, driver: &mut Driver, rows: Rows) -> (Result<Applied, Error>, Self) {
        let applied = self.try_apply(driver, rows);
        (applied, self)
    }

    fn try_apply(&mut self, driver: &mut Driver, rows: Rows) -> Result<Applied, Error> {
        let mut touched = Touched::new();
        let watched = self.changes.receiver_count() > 0;
        let Self { lead, arrived, message, .. } = self;
        let applied = driver.transaction(|tx| {
            apply::apply(tx, *lead, arrived, message, rows, watched.then_some(&mut touched))
        })?;
        for (shape, record, kind) in touched {
            let kind = match kind {
                EntryKind::Upsert => ChangeKind::Upsert,
                EntryKind::Delete => ChangeKind::Delete,
                _ => continue,
            };
            // Nobody listens any more: fine.
            let _ = self.changes.send(AppliedChange { model: shape.model.clone(), record, kind });
        }
        if let Applied::To(_) = applied {
            driver.tell()?;
        }
        Ok(applied)
    }
}

struct Session<'s> {
    shared: &'s Arc<Shared>,
    peer: DeviceId,
    sender: Box<dyn MessageSender>,
    /// The term that this session found to be no lower than any it has seen.
    lead: Option<Term>,
    /// Who waits for the leader's top.
    asked: Vec<(u64, oneshot::Sender<Position>)>,
    /// Number of the last question.
    questions: u64,
    confirmed: Position,
    applied: Position,
    confirm_at: Option<Instant>,
    /// Makes a position durable, beside the engine; one at a time.
    syncing: JoinSet<Result<Position, Error>>,
    /// What is pending and was pushed on this channel.
    pushed: PushedUpTo,
    /// Pushes that are not answered yet.
    pushes: usize,
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
        self.push(self.pending_ends()).await
    }

    /// Asks for the leader's top, once for all that wait.
    async fn ask(&mut self, first: oneshot::Sender<Position>, more: &mut Questions) -> Result<(), Error> {
        self.questions += 1;
        let number = self.questions;
        self.asked.push((number, first));
        while let Ok(question) = more.try_recv() {
            self.asked.push((number, question));
        }
        send(self.sender.as_mut(), &Message::Ask { number }).await
    }

    /// Why nothing is used of a message that names another leader than the device it came from; `None` if it is its
    /// own (rule P: who leads a term says so itself).
    fn foreign(&self, lead: Term) -> Option<End> {
        (lead.leader != self.peer).then(|| {
            tracing::warn!(peer = %self.peer, %lead, "a device sent what only another may");
            End::Lost(format!(
                "device {} does not keep to the protocol: it speaks for a term that device {} leads; nothing of it \
                 was used",
                self.peer, lead.leader
            ))
        })
    }

    async fn take(&mut self, message: Message, runs: &mut Vec<Run>) -> Result<Option<End>, Error> {
        if let Message::Top { lead, .. }
        | Message::Pushed { lead, .. }
        | Message::PushStopped { lead, .. }
        | Message::Diverged { lead, .. }
        | Message::BelowFloor { lead, .. } = &message
            && let Some(end) = self.foreign(*lead)
        {
            return Ok(Some(end));
        }
        match message {
            Message::Top { lead, position, answers, .. } => {
                if let Some(end) = self.adopt(lead).await? {
                    return Ok(Some(end));
                }
                self.show(lead, position);
                for (_, question) in self.asked.extract_if(.., |(number, _)| *number <= answers) {
                    let _ = question.send(position);
                }
            }
            Message::MoreHistory => {
                let (history, complete) = newest(runs);
                send(self.sender.as_mut(), &Message::History { runs: history, complete }).await?;
            }
            Message::NotLeader { leader, .. } => return Ok(Some(End::NotLeader(leader))),
            Message::Pushed { lead, .. } if self.pushes > 0 => {
                self.pushes -= 1;
                return self.adopt(lead).await;
            }
            Message::PushStopped { why, .. } => return self.push_stopped(why).await.map(Some),
            Message::Diverged { common, top, .. } => {
                return Ok(Some(End::Stopped(format!(
                    "the log here, up to {top}, parts from device {}'s after entry {common}; nothing was changed. \
                     This device wrote or followed another history: keep a copy of its database and let it join anew",
                    self.peer
                ))));
            }
            Message::BelowFloor { common, floor, .. } => {
                return Ok(Some(End::Stopped(format!(
                    "device {} has compacted its log up to {floor}, and this device has it only up to {common}; \
                     nothing was changed. Let this device join anew",
                    self.peer
                ))));
            }
            Message::Refused { reason } => {
                tracing::warn!(library = %self.shared.library.id, peer = %self.peer, reason, "refused");
                return Ok(Some(End::Lost(format!("device {} refused: {reason}", self.peer))));
            }
            other => {
                tracing::warn!(peer = %self.peer, ?other, "a leader sent what only a follower may");
                return Ok(Some(End::Lost(format!("device {} does not keep to the protocol", self.peer))));
            }
        }
        Ok(None)
    }

    /// Pushes what is pending and was not pushed on this channel yet, as far as the leader keeps up with answering.
    async fn push(&mut self, pending: Option<(i64, i64)>) -> Result<(), Error> {
        let Some((_, last)) = pending else { return Ok(()) };
        while let Some(max_seen) = self.lead
            && self.pushed.id < last
            && self.pushes < PUSHES_AHEAD
        {
            let after = self.pushed.clone();
            let step = move |driver: &mut Driver| {
                // What is told of is durable first (rule D).
                driver.store.sync()?;
                let conn = driver.store.connection();
                let Some(push) = pending::read(conn, driver.store.models(), &after)? else { return Ok(None) };
                Ok(Some((push, store::top(conn)?)))
            };
            let Some((push, position)) = self.shared.library.engine.step(step).await? else { return Ok(()) };
            self.pushed = PushedUpTo::after(&push);
            self.pushes += 1;
            send(self.sender.as_mut(), &Message::push(max_seen, position, &push.batch)).await?;
        }
        Ok(())
    }

    fn pending_ends(&self) -> Option<(i64, i64)> {
        self.shared.library.engine.pulse().borrow().pending_ends
    }

    async fn push_stopped(&mut self, why: PushStop) -> Result<End, Error> {
        let peer = self.peer;
        Ok(match why {
            // The next session begins with what is pending then.
            PushStop::Gap { origin, expected } => End::Lost(format!(
                "device {peer} lacks change {expected} of origin {origin}, which is not pending here; pulling first"
            )),
            PushStop::Diverged => {
                End::Lost(format!("device {peer} does not know the log here; subscribing again"))
            }
            PushStop::Forked { origin, n } => {
                let rename = move |driver: &mut Driver| {
                    let renamed = driver.transaction(|tx| pending::rename(tx, origin, n))?;
                    driver.publish()?;
                    Ok(renamed)
                };
                let renamed = self.shared.library.engine.step(rename).await?;
                let text = format!(
                    "device {peer}'s log holds another change {n} of origin {origin} than the one that is pending here: \
                     this database was restored or copied. {renamed} pending changes go by other names from now on; \
                     nothing is lost"
                );
                tracing::warn!(library = %self.shared.library.id, "{text}");
                End::Lost(text)
            }
        })
    }

    /// Adopts the leader's term; `None` if this device may follow it.
    async fn adopt(&mut self, lead: Term) -> Result<Option<End>, Error> {
        if self.lead == Some(lead) {
            return Ok(None);
        }
        let seen = self
            .shared
            .library
            .engine
            .step(move |driver| {
                driver.transaction(|tx| {
                    term::adopt(tx, lead)?;
                    Ok(tx.replica()?.max_seen)
                })
            })
            .await?;
        if seen > lead {
            return Ok(Some(End::NotLeader(Some(seen.leader))));
        }
        self.lead = Some(lead);
        Ok(None)
    }

    async fn apply(
        &mut self,
        lead: Term,
        top: Position,
        arrived: Arrived,
        message: Vec<u8>,
    ) -> Result<Option<End>, Error> {
        if let Some(end) = self.foreign(lead) {
            return Ok(Some(end));
        }
        let (catching_up, small) = (arrived.is_large(), arrived.is_small(&message));
        let engine = &self.shared.library.engine;
        let received = Received { lead, arrived, message, changes: self.shared.library.changes.clone() };
        let step = move |driver: &mut Driver| Ok(received.apply(driver, Rows::AsTheyCome));
        let done = if small { engine.short_step(step).await } else { engine.step(step).await }?;
        let (applied, received) = match done {
            (Err(error), received) if is_constraint(&error) => {
                engine.step(move |driver| Ok(received.apply(driver, Rows::StepOutFirst))).await?
            }
            done => done,
        };
        let (applied, arrived) = (applied?, received.arrived);
        if catching_up {
            // Freeing what arrived is work too, and the next batch waits for neither.
            drop(tokio::task::spawn_blocking(move || drop(arrived)));
        }
        match applied {
            Applied::To(position) => {
                self.applied = position;
                self.show(lead, top);
                self.lead = Some(lead);
                if self.confirm_at.is_none() {
                    let wait = if catching_up { CONFIRM_CATCHING_UP } else { CONFIRM_EVERY };
                    self.confirm_at = Some(Instant::now() + wait);
                }
                Ok(None)
            }
            Applied::Staged(_) => {
                // The term was looked at: what is pending goes while the rest of a large group comes.
                self.lead = Some(lead);
                Ok(None)
            }
            Applied::OutOfOrder(position) => Ok(Some(End::Lost(format!(
                "what device {} sent does not follow on {position}; subscribing again",
                self.peer
            )))),
            Applied::Unsound(what) => Ok(Some(End::Lost(format!(
                "device {} does not keep to the protocol: {what}; nothing of it was used",
                self.peer
            )))),
            Applied::Stale(seen) => Ok(Some(End::NotLeader(Some(seen.leader)))),
            Applied::Differs(seq) => Ok(Some(End::Stopped(format!(
                "entry {seq} here differs from device {}'s; nothing was changed. One of the two databases was changed \
                 from outside or restored: keep a copy and let this device join anew",
                self.peer
            )))),
        }
    }

    /// Shows that the subscription stands and how far behind this device is.
    fn show(&self, lead: Term, top: Position) {
        let now = self.shared.library.world.now();
        let applied = self.applied;
        self.shared.library.status.send_modify(|status| {
            status.link = Link::Online;
            status.leader = Some(lead.leader);
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
        let (max_seen, position) = (self.lead.unwrap_or(Term::ZERO), self.confirmed);
        send(self.sender.as_mut(), &Message::Confirm { max_seen, position }).await
    }
}

//! The engine: the one thread that steps one database.
//!
//! Its whole life is a loop of three things: run a step that somebody asked for, look whether the application has
//! committed, and if so seal. Commits of this process wake it; those of other processes are found by
//! `PRAGMA data_version` within [`LOOK_EVERY`]. After a seal it rests for a while proportional to how long it held the
//! database's one writer, so that a busy application keeps most of the time for itself; what has gathered meanwhile is
//! sealed together. An application that writes faster than that leaves a backlog in the outbox, which is sealed without
//! rest as soon as it pauses.
//!
//! Steps of a moment need not wake it: who asks runs them, while it rests ([`Engine::short_step`]). One at a time is at work
//! on the database either way.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use crate::{
    error::Error,
    gate::{Guard, WriteGate},
    id::{DeviceId, Position, Seq, Term},
    pending,
    reassign::{self, Grant},
    seal::{self, Fresh},
    sequence,
    store::{self, Replica, Store, Tx},
    term,
};

/// How often the engine looks for commits that nobody told it of.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the engine waits in this process's queue of writers before it relies on SQLite's own.
const PATIENCE: Duration = Duration::from_secs(5);
/// The engine rests for this many times as long as its seal held the writer.
const REST: u32 = 4;
/// The same after a seal that held it for longer than [`LONG`], which writers of many rows notice.
const REST_LONG: u32 = 8;
const LONG: Duration = Duration::from_millis(2);
/// After a failed seal, how long until the next.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Steps that may wait for the engine; whoever asks for one more waits for a place.
const STEPS_QUEUE: usize = 64;

/// Steps that are run before it is looked again whether a seal is due.
const STEPS_BEFORE_SEAL: usize = 8;

/// What the engine tells of itself.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    /// Top of the log, durable.
    pub(crate) top: Option<Position>,
    /// Whether this device leads.
    pub(crate) leads: bool,
    /// The highest term that this device has seen.
    pub(crate) max_seen: Term,
    /// The lead that it gave away, until that is answered.
    pub(crate) granted: Option<Grant>,
    /// The newest entries, ready to be sent, where they are one batch.
    pub(crate) tail: Option<Arc<Tail>>,
    /// Rows in the outbox that the last seal left.
    pub(crate) outbox: u64,
    /// Changes that the log does not show yet.
    pub(crate) pending: u64,
    /// Ids of the first and the last of them.
    pub(crate) pending_ends: Option<(i64, i64)>,
    /// Rows that cannot be sent.
    pub(crate) quarantined: u64,
    /// Changes that `should_sync` kept here.
    pub(crate) withheld: u64,
    /// Conflicts, dead letters and pending changes that wait for a person or are blocked.
    pub(crate) waits: Waits,
    /// Who is a member, this device too.
    pub(crate) members: Arc<[DeviceId]>,
    /// See [`Status::rolled_back`](crate::Status::rolled_back).
    pub(crate) rolled_back: Option<Seq>,
    /// Why the last seal failed, if it did.
    pub(crate) error: Option<String>,
    /// Set when the engine has stopped.
    pub(crate) stopped: bool,
}

impl Pulse {
    /// Before anything was told.
    fn none() -> Self {
        Self {
            top: None,
            leads: false,
            max_seen: Term::ZERO,
            granted: None,
            tail: None,
            outbox: 0,
            pending: 0,
            pending_ends: None,
            quarantined: 0,
            withheld: 0,
            waits: Waits { conflicts: 0, dead_letters: 0, blocked: 0 },
            rolled_back: None,
            error: None,
            stopped: false,
            members: Arc::from([]),
        }
    }

    /// Whether something is pending on this device while it leads.
    fn sequences(&self) -> bool {
        self.leads && self.pending_ends.is_some()
    }

    /// The term in which this device serves its log: as its leader, or having granted the lead to somebody who has yet to
    /// take it.
    pub(crate) fn serves(&self) -> Option<Term> {
        (self.leads || self.granted.is_some()).then_some(self.max_seen)
    }
}

/// What waits for somebody.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    pub(crate) conflicts: u64,
    pub(crate) dead_letters: u64,
    pub(crate) blocked: u64,
}

/// The newest entries as a message, made once for all followers that have everything before them.
#[derive(Debug)]
pub(crate) struct Tail {
    /// The message is for who stands here,
    pub(crate) after: Seq,
    /// and brings them here.
    pub(crate) last: Seq,
    message: Mutex<Making>,
}

#[derive(Debug)]
enum Making {
    Due(Fresh),
    Made(Arc<Vec<u8>>),
}

/// Making the message of this many entries is work for a thread of its own.
const TAIL_SMALL: u64 = 64;

impl Tail {
    fn new(fresh: Fresh) -> Self {
        Self {
            after: fresh.batch.after.seq,
            last: fresh.batch.last(),
            message: Mutex::new(Making::Due(fresh)),
        }
    }

    /// Whether its message is made in no time.
    pub(crate) fn is_small(&self) -> bool {
        self.last.0 - self.after.0 <= TAIL_SMALL
    }

    pub(crate) fn message(&self) -> Arc<Vec<u8>> {
        let mut making = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        match &*making {
            Making::Made(message) => Arc::clone(message),
            Making::Due(fresh) => {
                let message = Arc::new(fresh.message());
                *making = Making::Made(Arc::clone(&message));
                message
            }
        }
    }
}

type Step = Box<dyn FnOnce(&mut Driver) + Send>;

enum Command {
    Step(Step),
    Wake,
    Stop,
}

/// A handle to the engine; the engine stops when the last one is dropped.
pub(crate) struct Engine {
    commands: SyncSender<Command>,
    /// For whoever is at work on the database; nobody's any more when the engine has ended.
    driver: Arc<Mutex<Option<Driver>>>,
    waker: Waker,
    pulse: watch::Receiver<Pulse>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

/// Tells the engine that a commit is there or near. Costs next to nothing while it knows already.
#[derive(Clone)]
pub(crate) struct Waker {
    woken: Arc<AtomicBool>,
    commands: SyncSender<Command>,
}

impl Waker {
    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // A full queue means the engine is about to look anyway.
            let _ = self.commands.try_send(Command::Wake);
        }
    }
}

/// The engine's own side: what steps get.
pub(crate) struct Driver {
    pub(crate) store: Store,
    gate: Arc<WriteGate>,
    pulse: watch::Sender<Pulse>,
    /// Sealing begins when the replica knows which device it is.
    seals: bool,
    /// What is counted for the status has changed since it was last counted.
    counts_due: bool,
    counted: Instant,
    /// Makes a large seal durable.
    syncing: Option<thread::JoinHandle<()>>,
    /// A turn that was taken ahead of a transaction.
    turn: Option<Guard>,
    /// Keeps the database to this engine, until the thread has ended.
    _lock: Arc<File>,
}

impl Drop for Driver {
    /// However the thread ends, a panic included, those who wait learn of it.
    fn drop(&mut self) {
        self.await_syncing();
        self.pulse.send_modify(|pulse| pulse.stopped = true);
    }
}

impl Engine {
    /// Starts the thread.
    pub(crate) fn start(store: Store, gate: Arc<WriteGate>, lock: Arc<File>) -> Result<Self, Error> {
        let (commands, inbox) = mpsc::sync_channel(STEPS_QUEUE);
        let (driver, pulse) = Driver::new(store, gate, lock);
        let waker = Waker { woken: Arc::new(AtomicBool::new(false)), commands: commands.clone() };
        let woken = Arc::clone(&waker.woken);
        let driver = Arc::new(Mutex::new(Some(driver)));
        let shared = Arc::clone(&driver);
        let thread = thread::Builder::new()
            .name("tidelog".into())
            .spawn(move || run(&shared, &inbox, &woken))
            .map_err(|source| Error::File {
                what: "starting the engine's thread for",
                path: "tidelog".into(),
                source,
            })?;
        Ok(Self { commands, driver, waker, pulse, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(crate) fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.clone()
    }

    /// Runs a step on the engine's thread and waits for what it returns.
    pub(crate) async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Driver) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let stopped = || Error::Stopped { reason: "the library was shut down".into() };
        let (reply, answer) = oneshot::channel();
        let mut command = Command::Step(Box::new(move |driver: &mut Driver| {
            // Nobody may wait for the answer any more; the step has run all the same.
            let _ = reply.send(step(driver));
        }));
        loop {
            match self.commands.try_send(command) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err(stopped()),
                Err(TrySendError::Full(back)) => command = back,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        answer.await.map_err(|_| stopped())?
    }

    /// [`Engine::step`] for a step of a fraction of a millisecond in one transaction: where nobody is at work on the
    /// database, it is run on this thread, and no other need be woken. It never waits for anybody: not for the engine, a
    /// writer of this process, nor one of another, which are looked at first.
    pub(crate) async fn short_step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Driver) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let mut step = Some(step);
        if let Some(done) = self.try_here(&mut step) {
            return done;
        }
        match step {
            Some(step) => self.step(step).await,
            None => Err(Error::Stopped { reason: "a step was run and not answered".into() }),
        }
    }

    fn try_here<T>(
        &self,
        step: &mut Option<impl FnOnce(&mut Driver) -> Result<T, Error>>,
    ) -> Option<Result<T, Error>> {
        let mut held = self.driver.try_lock().ok()?;
        let driver = held.as_mut().filter(|_| step.is_some())?;
        if !driver.begin_here() {
            return None;
        }
        let step = step.take()?;
        let done = catch_unwind(AssertUnwindSafe(|| step(driver)));
        driver.end_here();
        Some(done.unwrap_or_else(|_| {
            // As it ends the engine's thread: nobody goes on with what a panic left.
            *held = None;
            Err(Error::Stopped { reason: "a step panicked".into() })
        }))
    }

    /// Has what is pending on a leader sequenced, a batch at a time, so that other steps have their turn.
    pub(crate) async fn sequence_pending(&self) -> Result<(), Error> {
        let is_due = || self.pulse.borrow().sequences();
        while is_due() && self.step(sequence::own_batch).await? {}
        Ok(())
    }

    /// Stops the engine behind the steps that wait, and waits for its thread to end.
    pub(crate) async fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let commands = self.commands.clone();
        let _ = tokio::task::spawn_blocking(move || {
            let _ = commands.send(Command::Stop);
            thread.map(thread::JoinHandle::join)
        })
        .await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // If the queue is full, the thread stops once it has emptied it and finds nobody at the other end.
        let _ = self.commands.try_send(Command::Stop);
    }
}

/// The engine's thread.
fn run(shared: &Mutex<Option<Driver>>, inbox: &Receiver<Command>, woken: &AtomicBool) {
    let _ending = Ending(shared);
    let mut seals = Seals { seen: None, dirty: true, not_before: Instant::now(), on: false };
    let (mut sequences, mut sequencing) = (Instant::now(), false);
    loop {
        let rest = seals.not_before.saturating_duration_since(Instant::now());
        let wait = if seals.dirty && seals.on { rest.min(LOOK_EVERY) } else { LOOK_EVERY };
        let wait = if sequencing { Duration::ZERO } else { wait };
        let command = match inbox.recv_timeout(wait) {
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
        };
        let mut driver = shared.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody's any more after a panic in a short step.
        let Some(driver) = driver.as_mut() else { break };
        let mut taken = 0;
        let mut next = command;
        while let Some(command) = next {
            match command {
                Command::Step(step) => step(driver),
                Command::Wake => {}
                Command::Stop => return,
            }
            // A seal takes longer than most steps: those that wait have their turn before it.
            taken += 1;
            next = if taken < STEPS_BEFORE_SEAL { inbox.try_recv().ok() } else { None };
        }
        driver.seal_if_due(&mut seals, woken);
        sequencing = driver.sequence_if_due(&mut sequences);
        driver.count_if_due();
    }
}

/// Takes the driver away when the thread ends, however it does.
struct Ending<'d>(&'d Mutex<Option<Driver>>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// When to seal.
struct Seals {
    seen: Option<i64>,
    /// Something may have been committed.
    dirty: bool,
    not_before: Instant,
    on: bool,
}

impl Driver {
    /// Drives a database, and what it tells of itself.
    pub(crate) fn new(store: Store, gate: Arc<WriteGate>, lock: Arc<File>) -> (Self, watch::Receiver<Pulse>) {
        let (sender, pulse) = watch::channel(Pulse::none());
        let driver = Self {
            store,
            gate,
            pulse: sender,
            seals: false,
            counts_due: false,
            counted: Instant::now(),
            syncing: None,
            turn: None,
            _lock: lock,
        };
        (driver, pulse)
    }

    fn seal_if_due(&mut self, seals: &mut Seals, woken: &AtomicBool) {
        seals.on = self.seals;
        seals.dirty |= woken.load(Ordering::Acquire);
        if !seals.dirty {
            match self.store.data_version() {
                Ok(version) => seals.dirty = seals.seen.replace(version) != Some(version),
                Err(error) => tracing::warn!(%error, "looking for commits failed"),
            }
        }
        if !seals.dirty || !self.seals || Instant::now() < seals.not_before {
            return;
        }
        let told = woken.swap(false, Ordering::AcqRel);
        let commits = self.gate.commits();
        (seals.dirty, seals.not_before) = match self.round(told) {
            Ok((more, held)) => {
                // A backlog that nobody adds to is sealed without a pause.
                let busy = self.gate.commits() != commits;
                let rest = held * if held > LONG { REST_LONG } else { REST };
                (more, Instant::now() + if more && !busy { Duration::ZERO } else { rest })
            }
            Err(error) => {
                tracing::warn!(%error, "a seal failed and will be tried again");
                self.pulse.send_modify(|pulse| pulse.error = Some(error.to_string()));
                (true, Instant::now() + RETRY_AFTER)
            }
        };
    }

    /// Takes a batch of what is pending on a leader, if there is anything. Whether there was.
    fn sequence_if_due(&mut self, not_before: &mut Instant) -> bool {
        let due = self.pulse.borrow().sequences();
        if !due || Instant::now() < *not_before {
            return false;
        }
        let done = sequence::own_batch(self).and_then(|_| self.publish_if_failed());
        if let Err(error) = done {
            tracing::warn!(%error, "what is pending was not sequenced, which will be tried again");
            self.pulse.send_modify(|pulse| pulse.error = Some(error.to_string()));
            *not_before = Instant::now() + RETRY_AFTER;
            return false;
        }
        true
    }

    /// One seal, made durable and told of. Whether more waits, and how long the writer was held. What nobody `told` of may be a commit of
    /// something else, a schema for one: a look as a reader takes the writer from nobody.
    pub(crate) fn round(&mut self, told: bool) -> Result<(bool, Duration), Error> {
        if !told && self.store.is_outbox_empty()? && !self.store.has_other_schema()? {
            self.publish_if_failed()?;
            return Ok((false, Duration::ZERO));
        }
        let guard = self.gate.acquire_blocking(PATIENCE);
        let began = Instant::now();
        let sealed = self.store.transaction(seal::seal);
        drop(guard);
        let (held, sealed) = (began.elapsed(), sealed?);
        if sealed.rows == 0 {
            self.publish_if_failed()?;
            return Ok((false, held));
        }
        let tail = sealed.fresh.map(|fresh| (fresh.top(), Arc::new(Tail::new(fresh))));
        match tail {
            Some((top, tail)) if tail.is_small() => self.tell_small(top, tail)?,
            tail if sealed.changes > 0 => self.tell_beside(tail.map(|(_, tail)| tail))?,
            _ => self.tell()?,
        }
        Ok((sealed.more, held))
    }

    /// Makes a small seal durable and tells of it, with its message.
    fn tell_small(&mut self, top: Position, tail: Arc<Tail>) -> Result<(), Error> {
        tail.message();
        self.store.sync()?;
        self.counts_due = true;
        self.pulse.send_modify(|pulse| {
            (pulse.top, pulse.leads, pulse.tail, pulse.error) = (Some(top), true, Some(tail), None);
        });
        Ok(())
    }

    /// Ids of the first and the last pending change, as last told.
    pub(crate) fn pending_ends(&self) -> Option<(i64, i64)> {
        self.pulse.borrow().pending_ends
    }

    /// Begins a transaction if that can be had without waiting, and what is done in it is only what is asked for; the next
    /// one of this driver is that.
    fn begin_here(&mut self) -> bool {
        let Some(turn) = self.gate.try_acquire() else { return false };
        if !self.store.begin_now().unwrap_or(false) {
            return false;
        }
        self.turn = Some(turn);
        let is_at_rest = self.store.is_at_rest().unwrap_or(false);
        if !is_at_rest {
            self.end_here();
        }
        is_at_rest
    }

    /// Gives back what [`Driver::begin_here`] took and nobody used.
    fn end_here(&mut self) {
        self.store.give_up_begun();
        self.turn = None;
    }

    /// Where the database's writers in this process queue.
    pub(crate) fn gate(&self) -> Arc<WriteGate> {
        Arc::clone(&self.gate)
    }

    fn turn(&mut self) -> Option<Guard> {
        self.turn.take().or_else(|| self.gate.acquire_blocking(PATIENCE))
    }

    /// Runs a step in a transaction, in turn with the application's writers.
    ///
    /// # Errors
    /// Those of [`Store::transaction`].
    pub(crate) fn transaction<T>(
        &mut self,
        step: impl FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _turn = self.turn();
        self.store.transaction(step)
    }

    /// [`Driver::transaction`] in which the database enforces its foreign keys.
    pub(crate) fn enforcing<T>(
        &mut self,
        step: impl FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _turn = self.turn();
        self.store.enforcing(step)
    }

    /// Ids of the first and the last row of the outbox.
    pub(crate) fn outbox_ends(&self) -> Result<Option<(u64, u64)>, Error> {
        let conn = self.store.connection();
        let ends: (Option<u64>, Option<u64>) =
            conn.prepare_cached(seal::OUTBOX_ENDS)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(ends.0.zip(ends.1))
    }

    /// Whether the database is known to be an older state of itself, or a copy.
    pub(crate) fn is_rolled_back(&self) -> Result<bool, Error> {
        let sql = "SELECT coalesce(max(rolled_back), 0) > 0 FROM sync_replica";
        Ok(self.store.connection().prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// From now on what the application commits is sealed.
    pub(crate) fn begin_sealing(&mut self) {
        self.seals = true;
        self.store.follow_schema();
    }

    /// Makes the log durable (rule D) on a leader, and tells where it reaches.
    pub(crate) fn tell(&mut self) -> Result<(), Error> {
        let conn = self.store.connection();
        let replica = store::replica(conn)?;
        let leads = replica.is_some_and(|r| r.is_leader());
        let top = replica.map_or(Position::EMPTY, |r| r.top);
        let ends = match replica {
            Some(replica) if replica.has_pending => {
                let ends: (Option<i64>, Option<i64>) =
                    conn.prepare_cached(pending::ENDS)?.query_row([], |r| Ok((r.get(0)?, r.get(1)?)))?;
                ends.0.zip(ends.1)
            }
            _ => None,
        };
        // Whoever is answered may learn of a term from what is told here: that is durable, too.
        let max_seen = replica.map_or(Term::ZERO, |r| r.max_seen);
        if leads || max_seen != self.pulse.borrow().max_seen {
            self.store.sync()?;
        }
        self.counts_due = true;
        self.pulse.send_modify(|pulse| {
            (pulse.top, pulse.leads, pulse.tail, pulse.error) = (Some(top), leads, None, None);
            pulse.max_seen = max_seen;
            pulse.granted = replica.and_then(|r| reassign::unanswered(&r));
            pulse.pending_ends = ends;
        });
        Ok(())
    }

    /// [`Driver::tell`] for a large seal: its log is made durable on a thread of its own while the next seal is at
    /// work. One at a time; the next waits for it.
    fn tell_beside(&mut self, tail: Option<Arc<Tail>>) -> Result<(), Error> {
        let conn = self.store.connection();
        let Some(Replica { top, .. }) = store::replica(conn)?.filter(Replica::is_leader) else {
            return self.tell();
        };
        self.counts_due = true;
        self.await_syncing();
        let (pulse, path) = (self.pulse.clone(), self.store.path().to_owned());
        let sync = move || {
            let synced = store::sync_log(&path);
            pulse.send_modify(|pulse| match synced {
                // Smaller seals behind this one may have told of more already.
                Ok(()) if pulse.leads && pulse.top.is_none_or(|told| told.seq < top.seq) => {
                    (pulse.top, pulse.tail, pulse.error) = (Some(top), tail, None);
                }
                Ok(()) => {}
                Err(error) => pulse.error = Some(error.to_string()),
            });
        };
        let started = thread::Builder::new().name("tidelog-sync".into()).spawn(sync);
        self.syncing = Some(started.map_err(|source| Error::File {
            what: "starting a thread for syncing",
            path: self.store.path().to_owned(),
            source,
        })?);
        Ok(())
    }

    fn await_syncing(&mut self) {
        if let Some(syncing) = self.syncing.take() {
            // A panic there left the log as it is; the next to tell makes it durable.
            let _ = syncing.join();
        }
    }

    /// [`Driver::tell`], and what the status counts.
    pub(crate) fn publish(&mut self) -> Result<(), Error> {
        self.tell()?;
        self.count()
    }

    /// After a seal that failed, says that it is over.
    fn publish_if_failed(&mut self) -> Result<(), Error> {
        let failed = self.pulse.borrow().error.is_some();
        if failed { self.publish() } else { Ok(()) }
    }

    /// Counts for the status, at most as often as it looks for commits.
    fn count_if_due(&mut self) {
        if self.counts_due
            && self.counted.elapsed() >= LOOK_EVERY
            && let Err(error) = self.count()
        {
            tracing::warn!(%error, "counting for the status failed");
        }
    }

    fn count(&mut self) -> Result<(), Error> {
        let conn = self.store.connection();
        let count =
            |sql: &str| -> Result<u64, Error> { Ok(conn.prepare_cached(sql)?.query_row([], |r| r.get(0))?) };
        let outbox = self.outbox_ends()?.map_or(0, |(first, last)| last - first + 1);
        let pending = count("SELECT count(*) FROM sync_pending")?;
        let quarantined = count("SELECT count(*) FROM sync_quarantine")?;
        let withheld = count("SELECT coalesce(max(withheld), 0) FROM sync_replica")?;
        let rolled_back = count("SELECT coalesce(max(rolled_back), 0) FROM sync_replica")?;
        let waits = Waits {
            conflicts: count(
                "SELECT count(*) FROM sync_conflict
                 WHERE open AND decided IS NULL AND superseded IS NULL",
            )?,
            dead_letters: count("SELECT count(*) FROM sync_dead_letter WHERE decided IS NULL")?,
            blocked: count("SELECT count(*) FROM sync_pending WHERE state = 'blocked'")?,
        };
        let members = term::members(conn)?;
        (self.counts_due, self.counted) = (false, Instant::now());
        self.pulse.send_modify(|pulse| {
            (pulse.outbox, pulse.pending) = (outbox, pending);
            (pulse.quarantined, pulse.withheld, pulse.waits) = (quarantined, withheld, waits);
            if *pulse.members != *members {
                pulse.members = members.into();
            }
            pulse.rolled_back = (rolled_back > 0).then_some(Seq(rolled_back));
        });
        Ok(())
    }
}

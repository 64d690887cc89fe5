//! The gate where the writers of one database in this process queue, so that none of them meets SQLite's own
//! busy handler, which sleeps between its tries and serves whoever wakes first.
//!
//! There is one gate per database file. The application's [`Connection`](crate::Connection) takes a turn for
//! every write and every transaction that may write, the engine for its own transactions; turns are given
//! first come, first served. A commit is announced to whoever registered with [`WriteGate::on_commit`], which
//! is how the sealer learns that there is something to seal.
//!
//! The gate is a courtesy, not a lock: correctness is SQLite's. Other processes and plain connections do not
//! queue here, and a writer whose patience ran out goes on without a turn and leaves the rest to SQLite's
//! busy timeout.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use once_cell::sync::Lazy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Gates of this process by canonical path. An entry whose gate is gone is replaced or swept at the next
/// look-up.
static GATES: Lazy<Mutex<HashMap<PathBuf, Weak<WriteGate>>>> = Lazy::new(Mutex::default);

type Callback = Arc<dyn Fn() + Send + Sync>;

/// Where the writers of one database in this process queue.
pub struct WriteGate {
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    commits: AtomicU64,
    uncut: AtomicU64,
    /// How many callbacks there are, so that a commit nobody waits for costs one load.
    listening: AtomicUsize,
    listeners: RwLock<Listeners>,
}

#[derive(Default)]
struct Listeners {
    next: u64,
    /// Shared, so that callbacks run without the lock.
    list: Arc<Vec<(u64, Callback)>>,
}

/// A turn at the gate, until it is dropped.
#[derive(Debug)]
#[must_use = "the turn ends when the guard is dropped"]
pub struct Guard {
    _permit: OwnedSemaphorePermit,
}

/// Somebody who waits for a turn, until it is dropped: his patience may end, or he.
struct Waits<'g>(&'g AtomicUsize);

impl<'g> Waits<'g> {
    fn at(gate: &'g WriteGate) -> Self {
        gate.waiting.fetch_add(1, Ordering::Relaxed);
        Self(&gate.waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A registration of [`WriteGate::on_commit`], until it is dropped.
#[must_use = "the callback is removed when the listener is dropped"]
pub struct CommitListener {
    gate: Arc<WriteGate>,
    id: u64,
}

impl WriteGate {
    /// The gate of the database file at `path`, the same for every name of the file that resolves to one
    /// path.
    pub fn of(path: &Path) -> Arc<Self> {
        let key = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(&key).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Self::new());
        gates.insert(key, Arc::downgrade(&gate));
        gate
    }

    fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(1)),
            waiting: AtomicUsize::new(0),
            commits: AtomicU64::new(0),
            uncut: AtomicU64::new(0),
            listening: AtomicUsize::new(0),
            listeners: RwLock::default(),
        }
    }

    /// Waits for a turn, behind everybody who came before. `None` when `patience` ran out: the caller goes on
    /// without a turn, and SQLite's busy timeout decides.
    pub async fn acquire(&self, patience: Duration) -> Option<Guard> {
        if let Some(guard) = self.try_acquire() {
            return Some(guard);
        }
        let _waits = Waits::at(self);
        let turn = Arc::clone(&self.turns).acquire_owned();
        let permit = tokio::time::timeout(patience, turn).await.ok()?.ok()?;
        Some(Guard { _permit: permit })
    }

    /// [`acquire`](Self::acquire) for a thread outside of any runtime. The thread sleeps until it is woken by
    /// the turn's end or its patience is over; it does not poll.
    pub fn acquire_blocking(&self, patience: Duration) -> Option<Guard> {
        if let Some(guard) = self.try_acquire() {
            return Some(guard);
        }
        let _waits = Waits::at(self);
        let deadline = Instant::now() + patience;
        let mut turn = pin!(Arc::clone(&self.turns).acquire_owned());
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(permit) = turn.as_mut().poll(&mut context) {
                return permit.ok().map(|permit| Guard { _permit: permit });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            thread::park_timeout(left);
        }
    }

    /// A turn if it can be had at once: nobody holds one and nobody waits.
    pub fn try_acquire(&self) -> Option<Guard> {
        let permit = Arc::clone(&self.turns).try_acquire_owned().ok()?;
        Some(Guard { _permit: permit })
    }

    /// Whether somebody waits for a turn.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Says that a transaction that wrote `rows` rows is committed, and calls whoever registered for that.
    pub fn note_commit(&self, rows: u64) {
        self.uncut.fetch_add(rows, Ordering::Relaxed);
        // After the commit and before the load below: a listener that registers in between sees the new
        // count.
        self.commits.fetch_add(1, Ordering::SeqCst);
        if self.listening.load(Ordering::SeqCst) == 0 {
            return;
        }
        let list = Arc::clone(&self.listeners.read().unwrap_or_else(PoisonError::into_inner).list);
        for (_, callback) in list.iter() {
            callback();
        }
    }

    /// How many commits were noted since the gate exists. It only grows.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// Calls `callback` after every noted commit, on the thread that noted it, until the listener is dropped
    /// (and once more at most, if a commit is being noted just then). It must be quick and must not block: a
    /// user's write waits for it.
    pub fn on_commit(self: &Arc<Self>, callback: Arc<dyn Fn() + Send + Sync>) -> CommitListener {
        let mut listeners = self.listeners.write().unwrap_or_else(PoisonError::into_inner);
        let id = listeners.next;
        listeners.next += 1;
        Arc::make_mut(&mut listeners.list).push((id, callback));
        self.listening.store(listeners.list.len(), Ordering::SeqCst);
        CommitListener { gate: Arc::clone(self), id }
    }

    /// Rows that were committed since the last cut marker, as far as connections counted them.
    pub(crate) fn uncut(&self) -> u64 {
        self.uncut.load(Ordering::Relaxed)
    }

    /// A cut marker is written, or cannot be: counts anew.
    pub(crate) fn start_counting_anew(&self) {
        self.uncut.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for WriteGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteGate")
            .field("free", &(self.turns.available_permits() > 0))
            .field("commits", &self.commits())
            .finish_non_exhaustive()
    }
}

impl Drop for CommitListener {
    fn drop(&mut self) {
        let mut listeners = self.gate.listeners.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut listeners.list).retain(|(id, _)| *id != self.id);
        self.gate.listening.store(listeners.list.len(), Ordering::SeqCst);
    }
}

impl fmt::Debug for CommitListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitListener").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

    use super::*;

    #[tokio::test]
    async fn it_is_waited_for_as_long_as_somebody_does_and_not_when_his_patience_or_he_has_ended() {
        let gate = Arc::new(WriteGate::new());
        let turn = gate.acquire(Duration::ZERO).await.unwrap();
        assert!(!gate.is_waited_for(), "who holds the turn does not wait");
        assert!(gate.acquire(Duration::ZERO).await.is_none() && !gate.is_waited_for());
        let mut given_up = Box::pin(gate.acquire(Duration::from_secs(60)));
        assert!(
            tokio::time::timeout(Duration::ZERO, given_up.as_mut()).await.is_err() && gate.is_waited_for()
        );
        drop(given_up);
        assert!(!gate.is_waited_for());
        let waits = Arc::clone(&gate);
        let waiting = thread::spawn(move || waits.acquire_blocking(Duration::from_secs(60)).is_some());
        while !gate.is_waited_for() {
            thread::yield_now();
        }
        drop(turn);
        assert!(waiting.join().unwrap() && !gate.is_waited_for());
    }
}

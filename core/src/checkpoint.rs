//! Checkpoints beside the engine: the write-ahead log is copied into the database by a thread of its own.
//!
//! SQLite would do it inside the commit that takes the log over its limit, and sync two files there; a batch that is
//! applied would wait for it nearly every time. The thread is told when the log has grown to [`SOFT_PAGES`]. If it
//! cannot keep up, since a checkpoint never finishes while others go on writing, the engine does one itself at
//! [`HARD_PAGES`], where nobody writes meanwhile, and the log begins anew: that bounds it.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use rusqlite::Connection;

use crate::{error::Error, store};

/// Pages in the write-ahead log from which on the thread is at work while batches come, once for as many again: 12 MiB of 4 KiB
/// each. What batch after batch writes anew is copied once for several of them.
const SOFT_PAGES: i32 = 3000;
/// The same while commits are of at most [`CALM_COMMIT`] pages: a log that begins anew sooner is written where the
/// file has room already, and syncing it does not have to wait for the file system to note that it grew.
const CALM_PAGES: i32 = 1000;
const CALM_COMMIT: i32 = 100;
/// Pages in the write-ahead log at which the engine waits for a checkpoint: 256 MiB.
const HARD_PAGES: i32 = 65_536;

const PASSIVE: &str = "PRAGMA wal_checkpoint(PASSIVE)";

thread_local! {
    /// What SQLite said at the last commit of this thread: pages in the log.
    static PAGES: Cell<i32> = const { Cell::new(0) };
}

/// The thread and the way to wake it. It ends when this is dropped.
pub(crate) struct Checkpointer {
    nudge: Option<SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    /// Pages in the log after the last commit.
    pages: Cell<i32>,
    /// The same when the thread was last told.
    told: Cell<i32>,
}

impl Checkpointer {
    /// Starts the thread, and takes automatic checkpoints off `conn`.
    pub(crate) fn start(path: &Path, conn: &Connection) -> Result<Self, Error> {
        conn.wal_hook(Some(|_, pages| {
            PAGES.set(pages);
            Ok(())
        }));
        // One nudge may wait while a checkpoint runs; more would say the same.
        let (nudge, nudges) = sync_channel(1);
        let path = path.to_owned();
        let thread = thread::Builder::new()
            .name("tidelog-wal".into())
            .spawn({
                let path = path.clone();
                move || run(path, &nudges)
            })
            .map_err(|source| Error::File { what: "starting the checkpoints of", path, source })?;
        Ok(Self { nudge: Some(nudge), thread: Some(thread), pages: Cell::new(0), told: Cell::new(0) })
    }

    /// To be called after each commit of `conn`.
    pub(crate) fn after_commit(&self, conn: &Connection) {
        let pages = PAGES.take();
        if pages == 0 {
            // Nothing was written.
            return;
        }
        let added = pages - self.pages.replace(pages);
        if added < 0 {
            // It has begun anew.
            self.told.set(0);
        }
        let is_due =
            if added <= CALM_COMMIT { pages >= CALM_PAGES } else { pages - self.told.get() >= SOFT_PAGES };
        if pages >= HARD_PAGES {
            checkpoint(conn);
        } else if is_due && let Some(nudge) = &self.nudge {
            self.told.set(pages);
            // Full: it knows already.
            let _ = nudge.try_send(());
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.nudge = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say; a panic there took nothing with it.
            let _ = thread.join();
        }
    }
}

fn run(path: PathBuf, nudges: &Receiver<()>) {
    let mut conn = None;
    while nudges.recv().is_ok() {
        if conn.is_none() {
            conn = store::connect(&path, false)
                .inspect_err(|e| tracing::warn!(%e, "no checkpoints beside the engine"))
                .ok();
        }
        if let Some(conn) = &conn {
            checkpoint(conn);
        }
    }
}

/// As far as readers allow; what is left is for the next.
fn checkpoint(conn: &Connection) {
    let done = conn.prepare_cached(PASSIVE).and_then(|mut statement| statement.query_row([], |_| Ok(())));
    if let Err(error) = done {
        tracing::debug!(%error, "a checkpoint was not made; the next commit asks again");
    }
}

//! Inject: what a test changes about steps from outside, where no message can reach. It ends the process between two
//! durable steps, as a crash would; it makes batches as small as can be; and it switches a safeguard off, to see that
//! the simulator notices. And it tells of each step while it is in its transaction, so that a process can be killed there.
//!
//! Each but the last is of the calling thread, on which a simulated replica runs its steps. Without the feature `testing`,
//! nothing of it is there: the functions are constants.

/// What the rules rely on, one at a time: a simulation in which one is off must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Safeguard {
    /// Entries of a term lower than one that was seen are not applied (rule T).
    TermCheck,
    /// A change that the log holds is not appended again (rule Q).
    DuplicateCheck,
    /// Log, rows and position move in one transaction (rule A).
    OneTransaction,
    /// A deletion is remembered and meets what its author had not seen (rule Q).
    Tombstone,
    /// What is applied is not captured as if this device had written it (design §4).
    Suppression,
    /// Entries that are unwound go back into pending (rule U).
    TailRequeue,
}

/// Where a step can be cut off, relative to something durable that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Everything is done and nothing committed.
    BeforeCommit,
    /// It is committed, and nobody has heard of it.
    AfterCommit,
    /// It is durable, and nobody has heard of it.
    AfterSync,
}

#[cfg(not(feature = "testing"))]
mod off {
    use super::{Place, Safeguard};

    pub(crate) const fn is_off(_: Safeguard) -> bool {
        false
    }

    pub(crate) const fn crash_point(_: &'static str, _: Place) {}

    pub(crate) const fn batch_entries() -> usize {
        crate::log::BATCH_ENTRIES
    }

    pub(crate) const fn tell_step(_: Option<&'static str>) {}
}

#[cfg(not(feature = "testing"))]
pub(crate) use off::{batch_entries, crash_point, is_off, tell_step};

#[cfg(feature = "testing")]
mod on {
    use std::{
        cell::{Cell, RefCell},
        panic::resume_unwind,
        sync::OnceLock,
    };

    use super::{Place, Safeguard};

    thread_local! {
        static OFF: Cell<Option<Safeguard>> = const { Cell::new(None) };
        static BATCH_ENTRIES: Cell<Option<usize>> = const { Cell::new(None) };
        /// Crash points yet to be passed.
        static CRASH_AFTER: Cell<Option<u32>> = const { Cell::new(None) };
        static PASSED: RefCell<Vec<(&'static str, Place)>> = const { RefCell::new(Vec::new()) };
    }

    /// What unwinds through a step that was cut off.
    #[derive(Clone, Copy, Debug)]
    pub struct Crash {
        /// The step, by the path of its function.
        pub step: &'static str,
        /// Where in it.
        pub place: Place,
    }

    /// Switches one safeguard off on this thread, or all on again.
    pub fn switch_off(safeguard: Option<Safeguard>) {
        OFF.set(safeguard);
    }

    /// Batches on this thread hold no more entries than this.
    pub fn limit_batches(entries: Option<usize>) {
        BATCH_ENTRIES.set(entries);
    }

    /// The next crash point but `after` that this thread comes to unwinds with [`Crash`]; with `None` none does.
    pub fn crash_after(after: Option<u32>) {
        CRASH_AFTER.set(after);
    }

    /// The crash points that this thread has passed since it was asked last.
    pub fn passed() -> Vec<(&'static str, Place)> {
        PASSED.take()
    }

    pub(crate) fn is_off(safeguard: Safeguard) -> bool {
        OFF.get() == Some(safeguard)
    }

    pub(crate) fn batch_entries() -> usize {
        BATCH_ENTRIES.get().unwrap_or(crate::log::BATCH_ENTRIES)
    }

    type Watcher = Box<dyn Fn(Option<&'static str>) + Send + Sync>;

    static WATCHER: OnceLock<Watcher> = OnceLock::new();

    /// From now on each step of this process is told of while it is in its transaction, by the path of its function, and
    /// `None` when that has ended. Once in a process; later watchers are told nothing.
    pub fn watch_steps(watcher: impl Fn(Option<&'static str>) + Send + Sync + 'static) {
        let _ = WATCHER.set(Box::new(watcher));
    }

    pub(crate) fn tell_step(step: Option<&'static str>) {
        if let Some(watcher) = WATCHER.get() {
            watcher(step);
        }
    }

    /// Crash points that are remembered until somebody asks.
    const PASSED_MAX: usize = 10_000;

    pub(crate) fn crash_point(step: &'static str, place: Place) {
        PASSED.with_borrow_mut(|passed| {
            if passed.len() < PASSED_MAX {
                passed.push((step, place));
            }
        });
        match CRASH_AFTER.get() {
            // No panic: nobody made a mistake, and nothing is to be printed.
            Some(0) => {
                CRASH_AFTER.set(None);
                resume_unwind(Box::new(Crash { step, place }));
            }
            Some(after) => CRASH_AFTER.set(Some(after - 1)),
            None => {}
        }
    }
}

#[cfg(feature = "testing")]
pub use on::{Crash, crash_after, limit_batches, passed, switch_off, watch_steps};
#[cfg(feature = "testing")]
pub(crate) use on::{batch_entries, crash_point, is_off, tell_step};

//! What the generated hooks tell the open libraries of this process: a record of yours was just written.
//!
//! A notice feeds local change events and lets the sealer know that a commit is near. It is a hint and no more: it is
//! sent before the transaction commits (which may yet roll back), and writes that pass SeaORM's hooks by send none.
//! Correctness never depends on one, so that a full queue may drop them and only say "look again".
//!
//! Every open library [`register`]s its models and owns one bounded queue; the [`Subscription`] takes it out of the
//! registry when it is dropped. While no library is open, a save costs one atomic read here.
//!
//! The registry also knows which models are recorded by hooks because an open library asked for it; what the model
//! itself says (`#[sync(capture = "hooks")]`) is not here but in its options.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crossbeam_queue::ArrayQueue;
use once_cell::sync::Lazy;

use crate::model::Recorder;

/// Notices a library keeps unless it asks for another number. The one after that is dropped, and the library is told
/// to look at everything again.
pub const CAPACITY: usize = 4096;

/// A record that was written through an `ActiveModel` in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// [`Syncable::SYNC_ID`](crate::Syncable::SYNC_ID) of its model.
    pub model: &'static str,
    /// Canonical text of its key, see [`ModelDescriptor::record_id`](crate::model::ModelDescriptor::record_id).
    pub record: String,
    /// What was done to it.
    pub kind: NoticeKind,
}

/// What a [`Notice`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoticeKind {
    /// The record was inserted.
    Inserted,
    /// The record was updated, perhaps to what it was before.
    Updated,
    /// The record was deleted, if it was there at all.
    Deleted,
}

/// Called after every notice, on the task that saves: it must return at once and may not block.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// One open library's place in the registry, until it is dropped.
pub struct Subscription {
    inbox: Arc<Inbox>,
}

struct Inbox {
    models: HashMap<&'static str, Recorder, foldhash::fast::RandomState>,
    queue: ArrayQueue<Notice>,
    overflowed: AtomicBool,
    wake: Wake,
}

/// Readers take a snapshot and hold no lock while they push and wake, so that a wake may end in any other call here.
static INBOXES: Lazy<RwLock<Arc<[Arc<Inbox>]>>> = Lazy::new(|| RwLock::new(Arc::from([])));

/// Number of subscriptions; lets a save with no library open pass without a lock.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Asks for the notices of `models`, at most `capacity` of them at a time (one, if it is zero). With each model comes
/// who records its changes in this library; [`Recorder::Hooks`] makes the generated hooks of the model record.
pub fn register(
    models: impl IntoIterator<Item = (&'static str, Recorder)>,
    capacity: usize,
    wake: Wake,
) -> Subscription {
    let inbox = Arc::new(Inbox {
        models: models.into_iter().collect(),
        queue: ArrayQueue::new(capacity.max(1)),
        overflowed: AtomicBool::new(false),
        wake,
    });
    change_inboxes(|list| list.push(Arc::clone(&inbox)));
    Subscription { inbox }
}

impl Subscription {
    /// The oldest notice that was not taken yet.
    pub fn pop(&self) -> Option<Notice> {
        self.inbox.queue.pop()
    }

    /// Whether notices were dropped since this was last asked: then any record of any model may have changed.
    pub fn take_overflowed(&self) -> bool {
        self.inbox.overflowed.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        change_inboxes(|list| list.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox)));
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("models", &self.inbox.models)
            .field("waiting", &self.inbox.queue.len())
            .finish_non_exhaustive()
    }
}

/// The open libraries of this process, as they were at one look. A save looks once.
pub struct Libraries(Option<Arc<[Arc<Inbox>]>>);

/// The libraries that are open now.
pub fn libraries() -> Libraries {
    let open = OPEN.load(Ordering::Acquire) > 0;
    Libraries(open.then(|| Arc::clone(&INBOXES.read().unwrap_or_else(PoisonError::into_inner))))
}

impl Libraries {
    /// Hands a notice to every one of them that registered the model. `record` is asked for the canonical text of the
    /// key where somebody has a place for it; where it cannot tell, they look at everything again.
    pub fn tell(&self, model: &'static str, kind: NoticeKind, record: impl Fn() -> Option<String>) {
        for inbox in self.of(model) {
            let is_kept = !inbox.queue.is_full()
                && record().is_some_and(|record| inbox.queue.push(Notice { model, record, kind }).is_ok());
            if !is_kept {
                inbox.overflowed.store(true, Ordering::Release);
            }
            (inbox.wake)();
        }
    }

    /// Whether one of them has the model recorded by its hooks instead of a trigger. Which database that library is of is
    /// not known here: the statement that records asks the database itself.
    pub fn record_by_hook(&self, model: &str) -> bool {
        self.of(model).any(|inbox| inbox.models.get(model) == Some(&Recorder::Hooks))
    }

    fn of(&self, model: &str) -> impl Iterator<Item = &Inbox> {
        let all = self.0.iter().flat_map(|list| list.iter());
        all.map(|inbox| &**inbox).filter(move |inbox| inbox.models.contains_key(model))
    }
}

impl fmt::Debug for Libraries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Libraries").field(&self.0.as_ref().map_or(0, |list| list.len())).finish()
    }
}

fn change_inboxes(change: impl FnOnce(&mut Vec<Arc<Inbox>>)) {
    let mut inboxes = INBOXES.write().unwrap_or_else(PoisonError::into_inner);
    let mut list = inboxes.to_vec();
    change(&mut list);
    OPEN.store(list.len(), Ordering::Release);
    *inboxes = list.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(notice: Notice) {
        libraries().tell(notice.model, notice.kind, || Some(notice.record.clone()));
    }

    fn records_by_hook(model: &str) -> bool {
        libraries().record_by_hook(model)
    }

    fn notice(model: &'static str, record: &str) -> Notice {
        Notice { model, record: record.into(), kind: NoticeKind::Inserted }
    }

    fn silent() -> Wake {
        Arc::new(|| {})
    }

    #[test]
    fn a_library_hears_of_its_own_models_until_it_is_closed() {
        let subscription = register([("hears_own", Recorder::Trigger)], 8, silent());
        publish(notice("hears_own", "a"));
        publish(notice("hears_other", "b"));
        assert_eq!(subscription.pop(), Some(notice("hears_own", "a")));
        assert_eq!(subscription.pop(), None);
        drop(subscription);
        libraries()
            .tell("hears_own", NoticeKind::Inserted, || panic!("nobody is there to be told of a record"));
    }

    #[test]
    fn every_library_that_registered_the_model_hears_and_is_woken() {
        let woken = Arc::new(AtomicUsize::new(0));
        let wake: Wake = {
            let woken = Arc::clone(&woken);
            Arc::new(move || {
                woken.fetch_add(1, Ordering::Relaxed);
            })
        };
        let libraries = [(); 2].map(|()| register([("woken", Recorder::Trigger)], 8, Arc::clone(&wake)));
        publish(notice("woken", "a"));
        assert!(libraries.iter().all(|library| library.pop() == Some(notice("woken", "a"))));
        assert_eq!(woken.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_full_queue_keeps_what_it_has_and_says_look_again_once() {
        let subscription = register([("full", Recorder::Trigger)], 2, silent());
        for record in ["a", "b", "c"] {
            publish(notice("full", record));
        }
        libraries().tell("full", NoticeKind::Deleted, || panic!("there is no place for it"));
        assert!(subscription.take_overflowed());
        assert!(!subscription.take_overflowed());
        assert_eq!(
            [subscription.pop(), subscription.pop()].map(|n| n.map(|n| n.record)),
            [Some("a".into()), Some("b".into())]
        );
        assert_eq!(subscription.pop(), None);
        libraries().tell("full", NoticeKind::Deleted, || None);
        assert!(subscription.take_overflowed(), "nobody can say which record");
        assert_eq!(subscription.pop(), None);
    }

    #[test]
    fn hooks_record_while_a_library_that_wants_it_is_open() {
        let by_trigger = register([("by_hook", Recorder::Trigger)], 2, silent());
        assert!(!records_by_hook("by_hook"));
        let by_hooks = register([("by_hook", Recorder::Hooks)], 2, silent());
        assert!(records_by_hook("by_hook"));
        drop(by_hooks);
        assert!(!records_by_hook("by_hook"));
        drop(by_trigger);
    }
}

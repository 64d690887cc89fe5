//! What a session hears from its leader, read and unpacked on a task of its own, a batch ahead of what is being applied.

use std::{
    collections::VecDeque,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore, broadcast,
        mpsc::{self, error::TryRecvError},
    },
    task::JoinSet,
};

use crate::{
    following::{Received, Unpacked},
    id::Term,
    status::AppliedChange,
    transport::MessageReceiver,
    wire::Message,
};

/// Batches unpacked ahead of the one that is applied: some 11 MiB each, beside those that are being packed and freed.
const AHEAD: usize = 1;
/// Bytes from which on a message takes one of their places, and is unpacked where that keeps no other task waiting.
const LARGE: usize = 16 << 10;
/// Messages that may wait to be taken, the small ones with them. Reading goes on when one was.
const WAITING_MAX: usize = 16;
/// A transaction that applies several batches waits for the next at most this long, while nobody else is to write: for it to
/// arrive and be unpacked.
const COMES_AT_ONCE: Duration = Duration::from_millis(20);
/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// What was unpacked, or why that cannot be.
pub(super) type Heard = Result<Unpacked, String>;
/// With the place that it takes until it is looked at.
type Waiting = (Heard, Option<OwnedSemaphorePermit>);

/// Messages from the leader, in their order.
pub(super) struct Incoming {
    waiting: mpsc::Receiver<Waiting>,
    /// Were looked at already.
    passed: VecDeque<Heard>,
}

impl Incoming {
    /// Receives on a task of its own, until the channel ends.
    pub(super) fn open(
        tasks: &mut JoinSet<()>,
        receiver: Box<dyn MessageReceiver>,
        changes: broadcast::Sender<AppliedChange>,
    ) -> Self {
        let (to, waiting) = mpsc::channel(WAITING_MAX);
        tasks.spawn(unpack(receiver, changes, to));
        Self { waiting, passed: VecDeque::new() }
    }

    /// One that nothing comes into.
    pub(super) fn closed() -> Self {
        Self { waiting: mpsc::channel(1).1, passed: VecDeque::new() }
    }

    /// The next message; `None` when the channel has ended.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        match self.passed.pop_front() {
            Some(next) => Some(next),
            None => self.waiting.recv().await.map(|(heard, _)| heard),
        }
    }

    /// The next entries, if they are there or come at once and were sent in this term. What only tells where the leader's log
    /// reaches is passed for them, and is next afterwards; anything else is not. To be asked on a thread that may wait, until it
    /// `has_to_end`.
    pub(super) fn entries_of(&mut self, lead: Term, has_to_end: &dyn Fn() -> bool) -> Option<Box<Received>> {
        let patience = Instant::now() + COMES_AT_ONCE;
        while self.passed.len() < WAITING_MAX && self.passed.back().is_none_or(is_top) {
            match self.waiting.try_recv() {
                Ok((Ok(Unpacked::Entries(received)), _)) if received.lead() == lead => return Some(received),
                Ok((other, _)) => self.passed.push_back(other),
                Err(TryRecvError::Empty) if !has_to_end() && Instant::now() < patience => {
                    thread::sleep(LOOK_EVERY);
                }
                Err(_) => return None,
            }
        }
        None
    }
}

fn is_top(heard: &Heard) -> bool {
    matches!(heard, Ok(Unpacked::Other(Message::Top { .. })))
}

fn unpacked(message: Vec<u8>, changes: &broadcast::Sender<AppliedChange>) -> Heard {
    Unpacked::of(message, changes).map_err(|e| e.to_string())
}

/// Reads the channel and unpacks what comes, a little ahead of the session.
async fn unpack(
    mut receiver: Box<dyn MessageReceiver>,
    changes: broadcast::Sender<AppliedChange>,
    to: mpsc::Sender<Waiting>,
) {
    let places = Arc::new(Semaphore::new(AHEAD));
    loop {
        let (heard, place) = match receiver.receive().await {
            Ok(Some(bytes)) if bytes.len() < LARGE => (unpacked(bytes, &changes), None),
            Ok(Some(bytes)) => {
                // A place first: what waits for one is small while it is packed.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                let changes = changes.clone();
                let heard = tokio::task::spawn_blocking(move || unpacked(bytes, &changes)).await;
                (heard.unwrap_or_else(|error| Err(error.to_string())), place)
            }
            Ok(None) => return,
            Err(error) => (Err(error.to_string()), None),
        };
        let over = heard.is_err();
        if to.send((heard, place)).await.is_err() || over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        entry::Batch,
        id::{DeviceId, Incarnation, Position, Seq},
    };

    fn term(number: u64) -> Term {
        Term { number, leader: DeviceId([1; 32]), incarnation: Incarnation { counter: 1, nonce: 1 } }
    }

    fn top(lead: Term) -> Message {
        Message::Top { lead, position: Position::EMPTY, stable: Seq(0), clock: 0, answers: 0 }
    }

    fn entries(lead: Term) -> Message {
        let batch = Batch { after: Position::EMPTY, entries: Vec::new(), groups: Vec::new() };
        Message::entries(lead, Seq(0), Position::EMPTY, &batch)
    }

    /// What comes where these messages wait.
    fn with(messages: &[Message]) -> Incoming {
        let (to, waiting) = mpsc::channel(messages.len().max(1));
        let (changes, _) = broadcast::channel(1);
        for message in messages {
            to.try_send((unpacked(message.encode(), &changes), None)).map_err(|e| e.to_string()).unwrap();
        }
        Incoming { waiting, passed: VecDeque::new() }
    }

    async fn rest(mut incoming: Incoming) -> Vec<&'static str> {
        let mut rest = Vec::new();
        while let Some(heard) = incoming.next().await {
            rest.push(match heard.unwrap() {
                Unpacked::Entries(_) => "entries",
                Unpacked::Other(Message::Top { .. }) => "top",
                Unpacked::Other(_) => "other",
            });
        }
        rest
    }

    #[tokio::test]
    async fn entries_are_found_behind_where_the_log_reaches_and_that_is_next_afterwards() {
        let lead = term(1);
        let mut incoming = with(&[top(lead), entries(lead), top(lead), entries(lead), entries(lead)]);
        assert!(incoming.entries_of(lead, &|| false).is_some());
        assert!(incoming.entries_of(lead, &|| false).is_some());
        assert_eq!(rest(incoming).await, ["top", "top", "entries"]);
    }

    #[tokio::test]
    async fn nothing_is_passed_for_entries_but_where_the_log_reaches() {
        let lead = term(1);
        let mut incoming = with(&[top(lead), Message::MoreHistory, entries(lead)]);
        assert!(incoming.entries_of(lead, &|| false).is_none());
        assert!(incoming.entries_of(lead, &|| false).is_none(), "what was passed comes first");
        assert_eq!(rest(incoming).await, ["top", "other", "entries"]);
    }

    #[tokio::test]
    async fn entries_of_another_term_are_left_where_they_are() {
        let (lead, other) = (term(2), term(1));
        let mut incoming = with(&[entries(other), entries(lead)]);
        assert!(incoming.entries_of(lead, &|| false).is_none());
        assert_eq!(rest(incoming).await, ["entries", "entries"]);
    }

    #[tokio::test]
    async fn what_may_come_is_not_waited_for_where_it_has_to_end() {
        let (_to, waiting) = mpsc::channel(1);
        let mut incoming = Incoming { waiting, passed: VecDeque::new() };
        let asked = std::cell::Cell::new(0);
        let has_to_end = || asked.replace(asked.get() + 1) == 2;
        assert!(incoming.entries_of(term(1), &has_to_end).is_none());
        // Fewer times only where the patience was over before.
        assert!((1..=3).contains(&asked.get()), "{} times", asked.get());
    }

    #[tokio::test]
    async fn no_more_is_passed_than_may_wait() {
        let lead = term(1);
        let mut messages: Vec<_> = (0..=WAITING_MAX).map(|_| top(lead)).collect();
        messages.push(entries(lead));
        let mut incoming = with(&messages);
        assert!(incoming.entries_of(lead, &|| false).is_none());
        assert_eq!(incoming.passed.len(), WAITING_MAX);
        assert_eq!(rest(incoming).await.len(), messages.len());
    }
}

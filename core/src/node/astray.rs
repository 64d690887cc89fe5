//! Peers that do not keep to the protocol: what they send is not used, is told in the status, and stops nobody else.
//!
//! The other side here is no node but the test itself, which sends what it likes.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{sync::Arc, time::Duration};

use sea_orm::ConnectionTrait;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::{
    Connection, Error, Library, Link, Role,
    entry::{Batch, Body, Change, Entry, EntryKind, Group, Run, Seen, Shape},
    id::{DeviceId, Incarnation, LibraryId, Origin, OriginSeq, Position, Seq, Term},
    status::Status,
    transport::{CHANNEL_QUEUE, Channel, MemoryNetwork, MemoryTransport, Transport},
    value::Value,
    wire::{Message, PushStop},
};

mod handover;
mod pushing;

#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod note {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, tidelog_macros::Syncable)]
    #[sea_orm(table_name = "notes")]
    #[sync(crate = "crate")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const NOTES: &str = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL)";
const PATIENCE: Duration = Duration::from_secs(20);
const LEADER: DeviceId = DeviceId([1; 32]);
const FOLLOWER: DeviceId = DeviceId([2; 32]);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// A real device and the test's own end of the network.
struct Bench {
    db: Connection,
    library: Library,
    /// The test's transport.
    mine: MemoryTransport,
    incoming: mpsc::Receiver<Channel>,
    network: MemoryNetwork,
    _folder: TempDir,
}

impl Bench {
    /// The real one follows; the test is device 1.
    async fn follower() -> Self {
        Self::new(FOLLOWER, LEADER).await
    }

    /// The real one leads; the test is device 2.
    async fn leader() -> Self {
        Self::new(LEADER, FOLLOWER).await
    }

    async fn new(real: DeviceId, mine: DeviceId) -> Self {
        let bench = Self::open(real, mine).await;
        bench.library.start(Arc::new(bench.network.plug(real))).await.unwrap();
        bench
    }

    /// The real one is to lead and not yet started.
    async fn stopped() -> Self {
        Self::open(LEADER, FOLLOWER).await
    }

    async fn open(real: DeviceId, mine: DeviceId) -> Self {
        Self::open_over(NOTES, real, mine).await
    }

    async fn open_over(table: &str, real: DeviceId, mine: DeviceId) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let network = MemoryNetwork::new();
        let id = LibraryId::random();
        let mine = network.plug(mine);
        let incoming = mine.listen(id).unwrap();
        let path = folder.path().join("db.sqlite");
        let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        db.execute_unprepared(table).await.unwrap();
        let builder = Library::builder(&db).model::<note::Entity>();
        let builder = if real == LEADER { builder.create(id) } else { builder.join(id) };
        let library = builder.open().await.unwrap();
        Self { db, library, mine, incoming, network, _folder: folder }
    }

    /// The real follower's next channel, after its subscription.
    async fn subscribed(&mut self) -> Channel {
        let mut channel = soon("a channel", self.incoming.recv()).await.unwrap();
        let first = soon("a subscription", channel.receiver.receive()).await.unwrap().unwrap();
        assert!(matches!(Message::decode(&first), Ok(Message::Subscribe { .. })));
        channel
    }

    /// A channel on which the real leader was subscribed to from the beginning of the log.
    async fn following(&self) -> Channel {
        let mut channel = soon("a channel", self.mine.open(LEADER, self.library.id())).await.unwrap();
        let (max_seen, top) = (Term::ZERO, Position::EMPTY);
        let subscribe = Message::Subscribe { max_seen, top, history: vec![], complete: true };
        channel.sender.send(subscribe.encode()).await.unwrap();
        channel
    }

    /// Sends the real follower one message on a fresh channel, and waits until its status has a text with this.
    async fn sends(&mut self, message: Vec<u8>, says: &[&str]) {
        let mut channel = self.subscribed().await;
        channel.sender.send(message).await.unwrap();
        let status =
            self.shows(|s| s.last_error.as_ref().is_some_and(|e| says.iter().all(|t| e.contains(t)))).await;
        assert!(!matches!(status.link, Link::Online), "{status:?}");
    }

    async fn shows(&self, condition: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.library.status();
        let found =
            tokio::time::timeout(PATIENCE, status.wait_for(condition)).await.map(|s| s.unwrap().clone());
        found.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {:?}", self.library.status().borrow()))
    }

    async fn notes(&self) -> usize {
        use sea_orm::EntityTrait;
        note::Entity::find().all(&self.db).await.unwrap().len()
    }
}

/// What comes over a channel until the other end is gone.
async fn rest(channel: &mut Channel) -> Vec<Message> {
    let mut messages = Vec::new();
    let all = async {
        while let Ok(Some(bytes)) = channel.receiver.receive().await {
            messages.push(Message::decode(&bytes).unwrap());
        }
    };
    soon("the end of the channel", all).await;
    messages
}

fn term(number: u64, counter: u64) -> Term {
    Term { number, leader: LEADER, incarnation: Incarnation { counter, nonce: 3 } }
}

/// A term start and one change, as a leader's first batch.
fn batch(text: &str) -> Batch {
    let shape = Arc::new(Shape {
        model: "notes".into(),
        fields: vec!["id".into(), "text".into()],
        key: vec![0],
        uuids: vec![false; 2],
    });
    let row = vec![Value::Text("a".into()), Value::Text(text.into())];
    let change = Change {
        record: shape.record_id(&row),
        shape,
        kind: EntryKind::Upsert,
        existed: false,
        fields: None,
        row,
        before: None,
        stamp: 8,
        rank: None,
        at: 8,
        mark: None,
        actor: None,
        decides: None,
        outcome: None,
    };
    let group = Group {
        origin: Origin(uuid::Uuid::from_u128(4)),
        device: LEADER,
        tag: 5,
        base: Position { term: term(1, 1), seq: Seq(1) },
        prev: 0,
        was: None,
        seen: Vec::new(),
        first_n: OriginSeq(1),
        last_n: OriginSeq(1),
        first: Seq(2),
        last: Seq(2),
    };
    let start = Entry { seq: Seq(1), term: term(1, 1), n: None, body: Body::TermStart { stamp: 7, at: 7 } };
    let change = Entry { seq: Seq(2), term: term(1, 1), n: Some(OriginSeq(1)), body: Body::Change(change) };
    Batch { after: Position::EMPTY, entries: vec![start, change], groups: vec![group] }
}

fn entries(lead: Term, batch: &Batch) -> Vec<u8> {
    Message::entries(lead, Seq(0), Position { term: lead, seq: batch.last() }, batch).encode()
}

#[tokio::test]
async fn a_follower_uses_nothing_of_what_it_cannot_read_and_goes_on_with_what_it_can() {
    let with = |change: fn(&mut Batch)| {
        let mut batch = batch("x");
        change(&mut batch);
        entries(term(1, 1), &batch)
    };
    let ahead = |batch: &mut Batch| {
        batch.after = Position { term: term(1, 1), seq: Seq(7) };
        (batch.entries[0].seq, batch.entries[1].seq) = (Seq(8), Seq(9));
        (batch.groups[0].first, batch.groups[0].last) = (Seq(9), Seq(9));
    };
    let mut cut = with(|_| {});
    cut.truncate(cut.len() - 3);
    let refused = Message::Refused { reason: "go away".into() }.encode();
    for (message, says) in [
        (vec![], ["cannot be read: it is empty", "nothing of it was used"]),
        (vec![9, 9, 9], ["form 9 is unknown", "nothing of it was used"]),
        (cut, ["cannot be read", "nothing of it was used"]),
        (
            with(|b| b.groups[0].first_n = OriginSeq(u64::MAX)),
            ["numbers are over the limits", "nothing of it was used"],
        ),
        (with(|b| b.after.seq = Seq(u64::MAX)), ["position is over the limit", "nothing of it was used"]),
        (with(|b| b.entries.swap(0, 1)), ["a change is in no group", "nothing of it was used"]),
        (with(|b| b.entries[1].term = term(4, 1)), ["higher term", "nothing of it was used"]),
        (with(ahead), ["does not follow on 0@0", "subscribing again"]),
        (Message::Ask { number: 1 }.encode(), ["does not keep to the protocol", ""]),
        (refused, ["refused: go away", ""]),
    ] {
        let mut bench = Bench::follower().await;
        bench.sends(message, &says).await;
        assert_eq!((bench.notes().await, bench.library.position().await.unwrap()), (0, Position::EMPTY));
        // Nothing of that is held against anybody.
        let mut channel = bench.subscribed().await;
        channel.sender.send(entries(term(1, 1), &batch("x"))).await.unwrap();
        let status = bench.shows(|s| s.position.seq == Seq(2) && s.link == Link::Online).await;
        assert_eq!((status.last_error, bench.notes().await), (None, 1));
    }
}

#[tokio::test]
async fn a_follower_takes_nothing_of_a_term_that_is_over() {
    let mut bench = Bench::follower().await;
    let mut channel = bench.subscribed().await;
    let top =
        Message::Top { lead: term(1, 2), position: Position::EMPTY, stable: Seq(0), clock: 0, answers: 0 };
    channel.sender.send(top.encode()).await.unwrap();
    bench.shows(|s| s.link == Link::Online).await;
    channel.sender.send(entries(term(1, 1), &batch("x"))).await.unwrap();
    bench
        .shows(|s| {
            s.link == Link::Offline && s.last_error.as_ref().is_some_and(|e| e.contains("does not lead"))
        })
        .await;
    let mut channel = bench.subscribed().await;
    let top = Message::Top {
        lead: term(1, 1),
        position: Position { term: term(1, 1), seq: Seq(9) },
        stable: Seq(9),
        clock: 0,
        answers: 0,
    };
    channel.sender.send(top.encode()).await.unwrap();
    let over = soon("the end of the channel", channel.receiver.receive()).await;
    assert!(matches!(over, Ok(None)), "its heartbeat is none either: {over:?}");
    assert_eq!((bench.notes().await, bench.library.position().await.unwrap()), (0, Position::EMPTY));
}

#[tokio::test]
async fn an_entry_that_differs_from_the_one_held_stops_the_link() {
    let mut bench = Bench::follower().await;
    let mut channel = bench.subscribed().await;
    for _ in 0..3 {
        // The same once more is no harm.
        channel.sender.send(entries(term(1, 1), &batch("x"))).await.unwrap();
    }
    bench.shows(|s| s.position.seq == Seq(2)).await;
    channel.sender.send(entries(term(1, 1), &batch("y"))).await.unwrap();
    let status = bench.shows(|s| matches!(s.link, Link::Stopped { .. })).await;
    let reason = status.last_error.unwrap();
    for part in ["entry 2 here differs", &LEADER.to_string(), "nothing was changed", "join anew"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let barrier = soon("a barrier", bench.library.barrier()).await.unwrap_err().to_string();
    assert!(barrier.contains("entry 2 here differs"), "{barrier}");
    assert_eq!(bench.notes().await, 1);
}

#[tokio::test]
async fn a_leader_speaks_for_no_other() {
    let other = Term { leader: DeviceId([9; 32]), ..term(7, 1) };
    let mut foreign = batch("x");
    foreign.entries.iter_mut().for_each(|entry| entry.term = other);
    for message in [
        entries(other, &foreign),
        entries(other, &batch("x")),
        Message::Top { lead: other, position: Position::EMPTY, stable: Seq(0), clock: 0, answers: 0 }
            .encode(),
        Message::Diverged { lead: other, common: Seq(0), top: Position::EMPTY, floor: Seq(0) }.encode(),
        Message::BelowFloor { lead: other, common: Seq(0), floor: Seq(9) }.encode(),
    ] {
        let mut bench = Bench::follower().await;
        let says = ["does not keep to the protocol", &other.leader.to_string(), "nothing of it was used"];
        bench.sends(message, &says).await;
        assert_eq!((bench.notes().await, bench.library.position().await.unwrap()), (0, Position::EMPTY));
        // Its term was not adopted: the lower one is still followed.
        let mut channel = bench.subscribed().await;
        channel.sender.send(entries(term(1, 1), &batch("x"))).await.unwrap();
        bench.shows(|s| s.position.seq == Seq(2) && s.link == Link::Online).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_stream_without_pause_keeps_neither_confirmations_nor_questions_nor_pushes_waiting() {
    let mut bench = Bench::follower().await;
    let Channel { mut sender, mut receiver, .. } = bench.subscribed().await;
    // The same over and over: the follower has always a next message.
    let same = entries(term(1, 1), &batch("x"));
    let flow = tokio::spawn(async move { while sender.send(same.clone()).await.is_ok() {} });
    bench.shows(|s| s.position.seq == Seq(2)).await;
    let library = bench.library.clone();
    let barrier = tokio::spawn(async move { library.barrier().await });
    // Its own change is what the barrier waits for, so the question is another's.
    let asking = bench.library.clone();
    let question = tokio::spawn(async move { crate::node::ask_top(&asking.inner).await });
    bench.db.execute_unprepared("INSERT INTO notes VALUES ('mine', 'text')").await.unwrap();
    let (mut confirmed, mut asked, mut pushed) = (false, false, false);
    let all = async {
        while !(confirmed && asked && pushed) {
            let message = receiver.receive().await.unwrap().unwrap();
            match Message::decode(&message).unwrap() {
                Message::Confirm { position, .. } => confirmed = position.seq == Seq(2),
                Message::Ask { .. } => asked = true,
                Message::Push { .. } => pushed = true,
                other => panic!("{other:?}"),
            }
        }
    };
    // Left to chance, they come too, within some ten seconds.
    tokio::time::timeout(Duration::from_secs(3), all).await.expect("a confirmation, a question, a push");
    assert!(!flow.is_finished(), "it did not pause");
    flow.abort();
    question.abort();
    barrier.abort();
}

#[tokio::test]
async fn a_heartbeat_that_was_on_its_way_answers_no_question() {
    let mut bench = Bench::follower().await;
    let mut channel = bench.subscribed().await;
    let library = bench.library.clone();
    let question = tokio::spawn(async move { crate::node::ask_top(&library.inner).await });
    let bytes = soon("a question", channel.receiver.receive()).await.unwrap().unwrap();
    let Message::Ask { number } = Message::decode(&bytes).unwrap() else { panic!("no question") };
    let lead = term(1, 1);
    let old = Message::Top { lead, position: Position::EMPTY, stable: Seq(0), clock: 0, answers: 0 };
    let position = Position { term: lead, seq: Seq(9) };
    let new = Message::Top { lead, position, stable: Seq(0), clock: 0, answers: number };
    for message in [old, new] {
        channel.sender.send(message.encode()).await.unwrap();
    }
    assert_eq!(soon("an answer", question).await.unwrap().unwrap(), position);
}

#[tokio::test]
async fn a_full_disk_is_waited_out() {
    let mut bench = Bench::follower().await;
    let mut channel = bench.subscribed().await;
    let pages = async |bench: &Bench, most: u32| {
        let limit = move |driver: &mut crate::engine::Driver| {
            Ok(driver.store.connection().pragma_update(None, "max_page_count", most)?)
        };
        bench.library.inner.engine.step(limit).await.unwrap();
    };
    // SQLite takes no limit below what there is.
    pages(&bench, 1).await;
    let large = entries(term(1, 1), &batch(&"x".repeat(500_000)));
    channel.sender.send(large.clone()).await.unwrap();
    let status = bench.shows(|s| s.link == Link::Offline && s.next_retry.is_some()).await;
    let error = status.last_error.unwrap();
    assert!(error.contains("full") && error.contains("rolled back"), "{error}");
    assert_eq!((bench.notes().await, bench.library.position().await.unwrap()), (0, Position::EMPTY));
    pages(&bench, 1_000_000).await;
    let mut channel = bench.subscribed().await;
    channel.sender.send(large).await.unwrap();
    let status = bench.shows(|s| s.position.seq == Seq(2) && s.link == Link::Online).await;
    assert_eq!((status.last_error, bench.notes().await), (None, 1));
}

#[tokio::test]
async fn of_two_starts_at_once_one_is_refused_and_one_that_fails_is_no_hindrance() {
    let bench = Bench::stopped().await;
    let network = &bench.network;
    let transport = |number: u8| Arc::new(network.plug(DeviceId([number; 32])));
    let taken = transport(5);
    let _listener = taken.listen(bench.library.id()).unwrap();
    let failed = bench.library.start(taken.clone()).await;
    assert!(matches!(failed, Err(Error::Transport(_))), "{failed:?}");
    let started = tokio::join!(bench.library.start(transport(1)), bench.library.start(transport(3)));
    assert!(matches!(started, (Ok(()), Err(Error::Started(_)))), "{started:?}");
    assert_eq!(bench.library.status().borrow().device, Some(LEADER));
    let again = bench.library.start(transport(4)).await;
    assert!(matches!(again, Err(Error::Started(_))), "{again:?}");
}

#[tokio::test]
async fn a_position_that_no_follower_can_have_is_not_believed() {
    let subscribe = Message::Subscribe {
        max_seen: Term::ZERO,
        top: Position::EMPTY,
        history: Vec::new(),
        complete: true,
    };
    let bench = Bench::leader().await;
    for wrong in [
        |top: Position| Position { seq: Seq(top.seq.0 + 1), ..top },
        |top: Position| Position { seq: Seq(u64::MAX), ..top },
        |top: Position| Position { term: term(1, 99), ..top },
        |top: Position| Position { seq: Seq(0), ..top },
    ] {
        let mut channel = soon("a channel", bench.mine.open(LEADER, bench.library.id())).await.unwrap();
        channel.sender.send(subscribe.encode()).await.unwrap();
        let (lead, top) = loop {
            let bytes = soon("entries", channel.receiver.receive()).await.unwrap().unwrap();
            match Message::decode(&bytes) {
                Ok(Message::Entries { lead, top, .. }) => break (lead, top),
                Ok(Message::Top { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        // What it can have is.
        channel.sender.send(Message::Confirm { max_seen: lead, position: top }.encode()).await.unwrap();
        bench.shows(|s| s.followers.iter().any(|f| f.confirmed == top)).await;
        let position = wrong(top);
        // Nothing else that comes with it counts either.
        channel.sender.send(Message::Confirm { max_seen: term(8, 1), position }.encode()).await.unwrap();
        rest(&mut channel).await;
        let status = bench.shows(|s| s.followers.is_empty()).await;
        assert_eq!((status.role, status.link), (Role::Leader, Link::Leading), "{position}");
    }
}

#[tokio::test]
async fn a_confirmation_tells_a_leader_of_a_higher_term() {
    let bench = Bench::leader().await;
    let mut channel = soon("a channel", bench.mine.open(LEADER, bench.library.id())).await.unwrap();
    let subscribe = Message::Subscribe {
        max_seen: Term::ZERO,
        top: Position::EMPTY,
        history: Vec::new(),
        complete: true,
    };
    channel.sender.send(subscribe.encode()).await.unwrap();
    let higher = Term { leader: FOLLOWER, ..term(2, 1) };
    let confirm = Message::Confirm { max_seen: higher, position: Position::EMPTY };
    channel.sender.send(confirm.encode()).await.unwrap();
    let messages = rest(&mut channel).await;
    assert!(matches!(messages.last(), Some(Message::NotLeader { .. })), "{messages:?}");
    bench.shows(|s| s.role == Role::Follower).await;
}

#[tokio::test]
async fn a_compacted_leader_stops_the_link_in_clear_words() {
    let mut bench = Bench::follower().await;
    let mut channel = bench.subscribed().await;
    let below = Message::BelowFloor { lead: term(1, 1), common: Seq(3), floor: Seq(70) };
    channel.sender.send(below.encode()).await.unwrap();
    let status = bench.shows(|s| matches!(s.link, Link::Stopped { .. })).await;
    let reason = status.last_error.unwrap();
    for part in [
        &LEADER.to_string(),
        "compacted its log up to 70",
        "only up to 3",
        "nothing was changed",
        "join anew",
    ] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
}

#[tokio::test]
async fn a_leader_answers_nonsense_with_a_refusal_and_leads_on() {
    let bench = Bench::leader().await;
    let run = |first| Run { first: Seq(first), term: term(9, 1) };
    let top = Position { term: term(9, 1), seq: Seq(u64::MAX) };
    let subscribe = |history: Vec<Run>, complete| {
        Message::Subscribe { max_seen: Term::ZERO, top, history, complete }.encode()
    };
    for (message, says) in [
        (vec![], "cannot be read"),
        (vec![1, 255, 255, 255, 255, 0], "over the limit"),
        (Message::Ask { number: 1 }.encode(), "must begin with a subscription"),
        (subscribe(vec![run(0)], true), "none that a log can have"),
        (subscribe(vec![run(5), run(5)], true), "none that a log can have"),
        (subscribe(vec![], true), "none that a log can have"),
    ] {
        let reply = ask(&bench, message).await;
        let Message::Refused { reason } = reply else { panic!("{reply:?}") };
        assert!(reason.contains(says), "{says}: {reason}");
    }
    // A log that says it is longer than any, with nothing in common.
    let reply = ask(&bench, subscribe(vec![run(1)], true)).await;
    assert!(matches!(reply, Message::Diverged { common: Seq(0), .. }), "{reply:?}");
    // One that is asked for more of its history and tells nothing.
    let mut channel = soon("a channel", bench.mine.open(LEADER, bench.library.id())).await.unwrap();
    channel.sender.send(subscribe(vec![run(7)], false)).await.unwrap();
    let more = soon("a question", channel.receiver.receive()).await.unwrap().unwrap();
    assert!(matches!(Message::decode(&more), Ok(Message::MoreHistory)));
    channel.sender.send(Message::History { runs: vec![run(8)], complete: false }.encode()).await.unwrap();
    assert!(matches!(soon("the end", channel.receiver.receive()).await, Ok(None)));
    let status = bench.shows(|s| s.last_error.as_ref().is_some_and(|e| e.contains("history"))).await;
    assert_eq!((status.role, status.link), (Role::Leader, Link::Leading));
}

#[tokio::test]
async fn a_follower_that_asks_and_pushes_before_it_reads_is_heard() {
    let bench = Bench::leader().await;
    let mut channel = bench.following().await;
    bench.shows(|s| s.followers.len() == 1).await;
    // More entries than have a place on the way to it: the leader waits until they are read.
    for i in 0..4 * CHANNEL_QUEUE {
        bench.db.execute_unprepared(&format!("INSERT INTO notes VALUES ('n{i}', 'text')")).await.unwrap();
        bench.library.barrier().await.unwrap();
    }
    for number in 1..=40 {
        soon("a place for a question", channel.sender.send(Message::Ask { number }.encode())).await.unwrap();
    }
    let push = Message::push(Term::ZERO, Position::EMPTY, &pushing::pushed(1, 7)).encode();
    channel.sender.send(push).await.unwrap();
    bench.shows(|s| s.position.seq.0 > 4 * CHANNEL_QUEUE as u64 + 2).await;
    // The last question is answered, and with it those before.
    loop {
        let bytes = soon("an answer", channel.receiver.receive()).await.unwrap().unwrap();
        if let Message::Top { answers: 40, .. } = Message::decode(&bytes).unwrap() {
            return;
        }
    }
}

#[tokio::test]
async fn pending_children_of_what_the_leader_deleted_step_out_until_it_answers() {
    let tree = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY,
        text TEXT NOT NULL REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)";
    let mut bench = Bench::open_over(tree, FOLLOWER, LEADER).await;
    bench.library.start(Arc::new(bench.network.plug(FOLLOWER))).await.unwrap();
    let mut channel = bench.subscribed().await;
    let lead = term(1, 1);
    channel.sender.send(entries(lead, &batch("a"))).await.unwrap();
    bench.shows(|status| status.position.seq == Seq(2)).await;
    bench.db.execute_unprepared("INSERT INTO notes VALUES ('c', 'a'), ('d', 'c'), ('e', 'e')").await.unwrap();
    let pushed = loop {
        let bytes = soon("a push", channel.receiver.receive()).await.unwrap().unwrap();
        if let Message::Push { batch, .. } = Message::decode(&bytes).unwrap() {
            break batch.into_batch().unwrap();
        }
    };
    // What the leader has done meanwhile comes before the answer.
    let Batch { entries: mut deletion, mut groups, .. } = batch("a");
    let mut deletion = deletion.remove(1);
    deletion.seq = Seq(3);
    deletion.n = Some(OriginSeq(2));
    if let Body::Change(change) = &mut deletion.body {
        (change.kind, change.existed, change.row[1]) = (EntryKind::Delete, true, Value::Null);
    }
    let group = &mut groups[0];
    (group.first, group.last, group.first_n, group.last_n) = (Seq(3), Seq(3), OriginSeq(2), OriginSeq(2));
    let after = Position { term: lead, seq: Seq(2) };
    channel.sender.send(entries(lead, &Batch { after, entries: vec![deletion], groups })).await.unwrap();
    let status = bench.shows(|status| status.blocked == 2).await;
    assert_eq!((status.pending, status.position.seq), (3, Seq(3)));
    assert_eq!(bench.notes().await, 1, "what refers to what is gone has stepped out, the other has not");
    let mut answer = pushed;
    for (i, entry) in answer.entries.iter_mut().enumerate() {
        (entry.seq, entry.term) = (Seq(4 + i as u64), lead);
        if let Body::Change(change) = &mut entry.body
            && change.record != "e".into()
        {
            change.outcome = Some(Box::new(crate::entry::Outcome::refused("its parent is gone".into())));
        }
    }
    answer.after = Position { term: lead, seq: Seq(3) };
    (answer.groups[0].first, answer.groups[0].last) = (Seq(4), Seq(6));
    channel.sender.send(entries(lead, &answer)).await.unwrap();
    let status = bench.shows(|status| status.blocked == 0 && status.pending == 0).await;
    assert_eq!(status.position.seq, Seq(6));
    assert_eq!(bench.notes().await, 1);
}

#[tokio::test]
async fn a_short_step_keeps_no_thread_waiting() {
    let bench = Bench::follower().await;
    let engine = &bench.library.inner.engine;
    let run = || engine.short_step(|driver| driver.transaction(|tx| Ok(tx.replica()?.top)));
    assert_eq!(soon("a step while all rest", run()).await.unwrap(), Position::EMPTY);
    // On the one thread of this runtime a writer could never end if the step waited for it here.
    let turn = bench.db.gate().try_acquire().unwrap();
    let began = std::time::Instant::now();
    let step = run();
    let writer = async {
        tokio::task::yield_now().await;
        drop(turn);
    };
    let (done, ()) = tokio::join!(soon("a step behind a writer", step), writer);
    assert_eq!(done.unwrap(), Position::EMPTY);
    assert!(began.elapsed() < Duration::from_secs(4), "nobody's patience ran out");
    // What a step leaves unused is given back.
    let unused = engine.short_step(|_| Ok(())).await;
    assert!(unused.is_ok() && bench.db.gate().try_acquire().is_some());
    bench.db.execute_unprepared("INSERT INTO notes VALUES ('a', 'b')").await.unwrap();
    let panicked = engine.short_step(|_| -> Result<(), Error> { panic!("as a bug would") }).await;
    assert!(matches!(panicked, Err(Error::Stopped { .. })));
    bench.shows(|status| matches!(status.link, Link::Stopped { .. })).await;
}

#[tokio::test]
async fn an_engine_that_has_ended_shows_in_the_status_of_leader_and_follower() {
    for bench in [Bench::leader().await, Bench::follower().await] {
        let step = bench.library.inner.engine.step(|_| -> Result<(), Error> { panic!("as a bug would") });
        assert!(matches!(soon("the step", step).await, Err(Error::Stopped { .. })));
        let status = bench.shows(|s| matches!(s.link, Link::Stopped { .. })).await;
        let reason = status.last_error.unwrap();
        assert!(
            reason.contains("the engine's thread has ended") && reason.contains("open the library again"),
            "{reason}"
        );
    }
}

async fn ask(bench: &Bench, message: Vec<u8>) -> Message {
    let mut channel = soon("a channel", bench.mine.open(LEADER, bench.library.id())).await.unwrap();
    channel.sender.send(message).await.unwrap();
    let reply = soon("a reply", channel.receiver.receive()).await.unwrap().unwrap();
    Message::decode(&reply).unwrap()
}

#[tokio::test]
async fn a_stranger_who_inquires_is_told_nothing_and_moves_no_term() {
    let bench = Bench::open_over(NOTES, LEADER, FOLLOWER).await;
    // Its peers are named, and this one is none of them.
    let path = bench.db.path().to_owned();
    let Bench { db, library, network, mine, .. } = &bench;
    let id = library.id();
    library.shutdown().await;
    let library =
        Library::builder(db).model::<note::Entity>().create(id).peer(DeviceId([9; 32])).open().await.unwrap();
    library.start(Arc::new(network.plug(LEADER))).await.unwrap();
    let mut channel = soon("a channel", mine.open(LEADER, id)).await.unwrap();
    channel.sender.send(Message::Inquire { max_seen: term(90, 1) }.encode()).await.unwrap();
    let messages = rest(&mut channel).await;
    let [Message::Refused { reason }] = messages.as_slice() else { panic!("{messages:?}") };
    assert!(reason.contains("not a member") && reason.contains("nothing was changed"), "{reason}");
    assert_eq!(library.status().borrow().role, Role::Leader);
    assert_eq!(library.position().await.unwrap().term.number, 1, "{}", path.display());
}

#[tokio::test]
async fn who_inquires_tells_of_a_higher_term_and_learns_where_this_device_stands() {
    let bench = Bench::leader().await;
    let ask = async |max_seen: Term| {
        let mut channel = soon("a channel", bench.mine.open(LEADER, bench.library.id())).await.unwrap();
        channel.sender.send(Message::Inquire { max_seen }.encode()).await.unwrap();
        rest(&mut channel).await.remove(0)
    };
    let top = bench.library.position().await.unwrap();
    let Message::Standing { max_seen, top: told, leads: true, .. } = ask(Term::ZERO).await else {
        panic!("it leads");
    };
    assert_eq!((max_seen, told), (top.term, top));
    let higher = Term { leader: FOLLOWER, ..term(7, 1) };
    let Message::Standing { max_seen, leads: false, .. } = ask(higher).await else {
        panic!("it leads no more")
    };
    assert_eq!(max_seen, higher);
    bench.shows(|s| s.role == Role::Follower).await;
}

#[tokio::test]
async fn a_grant_that_does_not_fit_opens_nothing() {
    let mut bench = Bench::follower().await;
    let lead = term(1, 1);
    // For another top; of a number that was seen.
    let position = Position { term: lead, seq: Seq(2) };
    let misfits = [(2, Position { seq: Seq(1), ..position }), (1, position)];
    for (behind, (number, position)) in (1u64..).zip(misfits) {
        let mut channel = bench.subscribed().await;
        channel.sender.send(entries(term(1, 1), &batch("x"))).await.unwrap();
        bench.shows(|s| s.position.seq == Seq(2) && s.link == Link::Online).await;
        channel.sender.send(Message::Grant { lead, number, position }.encode()).await.unwrap();
        // What comes behind it is looked at behind it.
        let top = Position { term: lead, seq: Seq(2 + behind) };
        let top = Message::Top { lead, position: top, stable: Seq(0), clock: 0, answers: 0 };
        channel.sender.send(top.encode()).await.unwrap();
        bench.shows(|s| s.behind == Some(behind)).await;
        drop(channel);
        assert_eq!(bench.library.status().borrow().role, Role::Follower);
        assert_eq!(bench.library.position().await.unwrap(), position_of_batch());
    }
    // One that fits does.
    let mut channel = bench.subscribed().await;
    channel.sender.send(Message::Grant { lead, number: 2, position }.encode()).await.unwrap();
    bench.shows(|s| s.role == Role::Leader).await;
    let top = bench.library.position().await.unwrap();
    assert_eq!((top.term.number, top.term.leader), (2, FOLLOWER));
}

fn position_of_batch() -> Position {
    Position { term: term(1, 1), seq: Seq(2) }
}

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
    entry::{Batch, Body, Change, Entry, EntryKind, Group, Run, Shape},
    id::{DeviceId, Incarnation, LibraryId, Origin, OriginSeq, Position, Seq, Term},
    status::Status,
    transport::{Channel, MemoryNetwork, MemoryTransport, Transport},
    value::Value,
    wire::Message,
};

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
    _network: MemoryNetwork,
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
        let folder = tempfile::tempdir().unwrap();
        let network = MemoryNetwork::new();
        let id = LibraryId::random();
        let mine = network.plug(mine);
        let incoming = mine.listen(id).unwrap();
        let path = folder.path().join("db.sqlite");
        let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        db.execute_unprepared("CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL)")
            .await
            .unwrap();
        let builder = Library::builder(&db).model::<note::Entity>();
        let builder = if real == LEADER { builder.create(id) } else { builder.join(id) };
        let library = builder.open().await.unwrap();
        library.start(Arc::new(network.plug(real))).await.unwrap();
        Self { db, library, mine, incoming, _network: network, _folder: folder }
    }

    /// The real follower's next channel, after its subscription.
    async fn subscribed(&mut self) -> Channel {
        let mut channel = soon("a channel", self.incoming.recv()).await.unwrap();
        let first = soon("a subscription", channel.receiver.receive()).await.unwrap().unwrap();
        assert!(matches!(Message::decode(&first), Ok(Message::Subscribe { .. })));
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
        at: 8,
        mark: None,
        actor: None,
    };
    let group = Group {
        origin: Origin(uuid::Uuid::from_u128(4)),
        device: LEADER,
        tag: 5,
        base: Position { term: term(1, 1), seq: Seq(1) },
        seen: Vec::new(),
        first_n: OriginSeq(1),
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
        (Message::Ask.encode(), ["does not keep to the protocol", ""]),
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
    let top = Message::Top { lead: term(1, 2), position: Position::EMPTY, clock: 0 };
    channel.sender.send(top.encode()).await.unwrap();
    bench.shows(|s| s.link == Link::Online).await;
    channel.sender.send(entries(term(1, 1), &batch("x"))).await.unwrap();
    bench
        .shows(|s| {
            s.link == Link::Offline && s.last_error.as_ref().is_some_and(|e| e.contains("does not lead"))
        })
        .await;
    let mut channel = bench.subscribed().await;
    let top =
        Message::Top { lead: term(1, 1), position: Position { term: term(1, 1), seq: Seq(9) }, clock: 0 };
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
        (Message::Ask.encode(), "must begin with a subscription"),
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

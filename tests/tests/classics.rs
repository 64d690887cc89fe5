//! The eight things that anybody asks of sync first, over real QUIC: each test is a promise, and reads like it.
//!
//! Every device has a key, an endpoint on loopback and a SQLite file. A device that goes offline is one whose library is
//! closed, dropped in the middle of what it does, or whose leader does not answer. No test waits for luck: every wait
//! is for a condition and has an end.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tidelog::{
    Link,
    conflict::{ConflictState, Winner},
    id::{DeviceId, LibraryId, Seq},
    transport::{Channel, MessageReceiver, MessageSender, SharedTransport, Transport, TransportError},
    value::Value,
};
use tidelog_tests::devices::{
    Device, Dump, LOOPBACK, Site, eventually, level, lines, number, quic, quic_as, reader, soon,
};
use tidelog_transport::{Identity, Peer, Quic};
use tokio::sync::{Semaphore, broadcast::error::TryRecvError, mpsc};

/// As many messages as a device has.
const UNBOUNDED: usize = Semaphore::MAX_PERMITS;

/// The devices of one library, and an endpoint for each that outlives its restarts.
struct Net {
    site: Site,
    leader: Arc<Quic>,
    followers: Mutex<HashMap<u8, Arc<Quic>>>,
}

impl Net {
    async fn new() -> Self {
        let site = Site::new();
        let leader = leaders_endpoint(&site).await;
        Self { site, leader, followers: Mutex::default() }
    }

    /// The leader's endpoint ends, and is at another address afterwards, which the followers are told.
    async fn moves(&mut self) {
        self.leader.close().await;
        self.leader = leaders_endpoint(&self.site).await;
        for endpoint in self.followers.lock().unwrap().values() {
            self.leader.add_peer(endpoint.device(), None);
            endpoint.add_peer(self.leader.device(), Some(self.leader.local_addr().unwrap()));
        }
    }

    /// The leader, online.
    async fn leader(&self) -> Device {
        let leader = self.site.open_leader().await;
        leader.library.start(Arc::clone(&self.leader) as SharedTransport).await.unwrap();
        leader
    }

    /// A follower, online.
    async fn follower(&self, number: u8) -> Device {
        let follower = self.offline(number).await;
        self.goes_online(&follower, number).await;
        follower
    }

    /// A follower as its user has it without a network: open, and not started.
    async fn offline(&self, number: u8) -> Device {
        self.site.open_follower(number).await
    }

    async fn goes_online(&self, follower: &Device, number: u8) {
        follower.library.start(self.endpoint(number).await as SharedTransport).await.unwrap();
    }

    /// A follower that gets, or sends, so many messages and no more.
    async fn throttled(&self, number: u8, receives: usize, sends: usize) -> Device {
        let follower = self.offline(number).await;
        let inner = self.endpoint(number).await as SharedTransport;
        let (receives, sends) = (Arc::new(Semaphore::new(receives)), Arc::new(Semaphore::new(sends)));
        follower.library.start(Arc::new(Throttled { inner, receives, sends })).await.unwrap();
        follower
    }

    async fn endpoint(&self, number: u8) -> Arc<Quic> {
        if let Some(known) = self.followers.lock().unwrap().get(&number) {
            return Arc::clone(known);
        }
        let leader = Peer { device: self.leader.device(), address: Some(self.leader.local_addr().unwrap()) };
        let endpoint = quic(vec![leader]).await;
        self.leader.add_peer(endpoint.device(), None);
        self.followers.lock().unwrap().insert(number, Arc::clone(&endpoint));
        endpoint
    }
}

async fn leaders_endpoint(site: &Site) -> Arc<Quic> {
    let key = Identity::load_or_create(site.folder.path().join("leader.key")).unwrap();
    quic_as(key, LOOPBACK, vec![]).await
}

/// Waits until the log has what the followers wrote, and checks that all hold the same.
async fn agree(leader: &Device, followers: &[&Device]) -> Dump {
    for follower in followers {
        soon("the follower's barrier", follower.library.barrier()).await.unwrap();
    }
    let dump = level(leader, followers).await;
    for device in followers {
        assert_eq!(number(&device.path, "SELECT count(*) FROM sync_pending"), 0, "nothing waits");
    }
    dump
}

/// One statement that inserts items `from..to`, each of which is called after its number.
fn insert(prefix: &str, from: usize, to: usize) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to})
         INSERT INTO items (id, name) SELECT printf('{prefix}%06d', i), '{prefix} ' || i FROM n"
    )
}

fn count(device: &Device) -> i64 {
    number(&device.path, "SELECT count(*) FROM items")
}

/// Records that the log has more than one entry of: where everything was inserted once, what was taken twice.
fn taken_twice(device: &Device) -> Vec<String> {
    let sql =
        "SELECT record FROM sync_entry WHERE record IS NOT NULL GROUP BY model, record HAVING count(*) > 1";
    lines(&reader(&device.path), sql)
}

fn name_of(device: &Device, id: &str) -> String {
    let sql = format!("SELECT name FROM items WHERE id = '{id}'");
    lines(&reader(&device.path), &sql).remove(0)
}

#[tokio::test]
async fn full_sync_a_new_device_gets_everything_there_is() {
    let net = Net::new().await;
    let leader = net.leader().await;
    leader
        .write(&[
            "INSERT INTO items (id, name, place, payload) VALUES ('root', 'root', 1, x'00ff')",
            "INSERT INTO items (id, parent_id, name) VALUES ('child', 'root', 'child')",
            "INSERT INTO teams VALUES ('t', 'team', 'p')",
            "INSERT INTO people VALUES ('p', 'person', 't')",
            &insert("i", 0, 3000),
        ])
        .await;
    leader
        .write(&[
            "UPDATE items SET name = 'renamed' WHERE id = 'root'",
            "DELETE FROM items WHERE id = 'i000007'",
        ])
        .await;
    leader.sealed().await;

    let follower = net.follower(2).await;
    let held = agree(&leader, &[&follower]).await;
    assert_eq!(held.rows.len(), 2 + 2 + 3000 - 1);
    assert_eq!(name_of(&follower, "root"), "renamed");
}

#[tokio::test]
async fn delta_a_device_that_comes_back_gets_what_it_has_not_and_nothing_else() {
    let net = Net::new().await;
    let (leader, follower) = (net.leader().await, net.follower(2).await);
    leader.write(&[&insert("i", 0, 5000)]).await;
    agree(&leader, &[&follower]).await;
    let received = async || net.endpoint(2).await.stats().bytes_received;
    let first_time = received().await;
    follower.stop().await;

    leader.write(&["UPDATE items SET name = 'renamed' WHERE id = 'i000042'"]).await;
    leader
        .write(&[
            "DELETE FROM items WHERE id = 'i000043'",
            "INSERT INTO items (id, name) VALUES ('new', 'new')",
        ])
        .await;
    leader.sealed().await;
    let follower = net.offline(2).await;
    let (mut changes, before) = (follower.library.changes(), received().await);
    net.goes_online(&follower, 2).await;
    agree(&leader, &[&follower]).await;

    let mut applied = Vec::new();
    while let Ok(change) = changes.try_recv() {
        applied.push(change.record);
    }
    applied.sort();
    assert_eq!(applied, ["i000042", "i000043", "new"]);
    assert!(matches!(changes.try_recv(), Err(TryRecvError::Empty)));
    let this_time = received().await - before;
    assert!(this_time * 4 < first_time, "{this_time} bytes for three changes, {first_time} for all");
}

#[tokio::test]
async fn conflict_both_devices_keep_the_later_change_and_both_know_the_other() {
    let net = Net::new().await;
    let (leader, follower) = (net.leader().await, net.follower(2).await);
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', 'draft'), ('b', 'draft')"]).await;
    agree(&leader, &[&follower]).await;
    follower.stop().await;

    let follower = net.offline(2).await;
    // The clock of the follower is behind when it writes `a`, not when it writes `b`.
    leader.write(&["UPDATE items SET name = 'by the leader'"]).await;
    leader.sealed().await;
    follower
        .write(&[
            "UPDATE sync_ctl SET clock = 1000",
            "UPDATE items SET name = 'by the follower' WHERE id = 'a'",
        ])
        .await;
    follower
        .write(&[
            "UPDATE sync_ctl SET clock = 4102444800000",
            "UPDATE items SET name = 'by the follower' WHERE id = 'b'",
        ])
        .await;
    assert_eq!(name_of(&follower, "a"), "by the follower", "until the leader knows of it");
    net.goes_online(&follower, 2).await;
    agree(&leader, &[&follower]).await;

    for device in [&leader, &follower] {
        assert_eq!(name_of(device, "a"), "by the leader");
        let conflicts = device.library.conflicts_since(Seq(0)).await.unwrap();
        let [over_a, over_b] = conflicts.as_slice() else { panic!("{conflicts:?}") };
        assert_eq!((over_a.record.as_str(), over_a.winner), ("a", Winner::Local));
        assert_eq!((over_b.record.as_str(), over_b.winner), ("b", Winner::Remote));
        for conflict in [over_a, over_b] {
            let name = |row: Option<&tidelog::Row>| row.and_then(|row| row.get("name")).cloned();
            let text = |text: &str| Some(Value::Text(text.into()));
            assert_eq!(name(conflict.local.row.as_ref()), text("by the leader"));
            assert_eq!(name(conflict.remote.row.as_ref()), text("by the follower"));
            assert_eq!(conflict.state, ConflictState::Auto, "nobody has to do anything");
        }
    }
}

#[tokio::test]
async fn offline_queue_what_is_written_without_a_network_is_there_at_once_and_in_the_log_later() {
    let net = Net::new().await;
    let leader = net.leader().await;
    let follower = net.follower(2).await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('shared', 'shared')"]).await;
    agree(&leader, &[&follower]).await;
    follower.stop().await;

    let follower = net.offline(2).await;
    for i in 0..50 {
        follower.write(&[&format!("INSERT INTO items (id, name) VALUES ('mine {i:02}', 'mine')")]).await;
    }
    assert_eq!(count(&follower), 51, "the application reads what it wrote");
    // It is closed and opened again before there is a network: the queue is in the file.
    follower.stop().await;
    let follower = net.offline(2).await;
    follower.write(&["UPDATE items SET name = 'by the follower' WHERE id = 'shared'"]).await;
    assert_eq!(count(&leader), 1);

    net.goes_online(&follower, 2).await;
    agree(&leader, &[&follower]).await;
    assert_eq!((count(&leader), name_of(&leader, "shared").as_str()), (51, "by the follower"));
    let records = "SELECT record FROM sync_log WHERE kind = 'insert' AND record LIKE 'mine %' ORDER BY seq";
    let in_order: Vec<String> = (0..50).map(|i| format!("mine {i:02}")).collect();
    assert_eq!(lines(&reader(&leader.path), records), in_order, "in the order in which they were made");
    follower.shows("nothing waits", |s| s.pending == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interruption_a_device_dropped_while_entries_stream_goes_on_from_where_it_was() {
    let net = Net::new().await;
    let leader = net.leader().await;
    for i in 0..20 {
        leader.write(&[&insert("i", i * 1000, (i + 1) * 1000)]).await;
        leader.sealed().await;
    }
    let all = 20_000;
    // A message holds some four of these transactions.
    let follower = net.throttled(2, 3, UNBOUNDED).await;
    eventually("some of it is here", async || (count(&follower) > 0).then_some(())).await;
    let had = count(&follower);
    assert!(had < all && had % 1000 == 0, "whole transactions only, and not all of them: {had}");
    follower.give_up().await;

    let follower = net.offline(2).await;
    let had = count(&follower);
    assert!(had > 0 && had < all, "what was here stays here: {had}");
    let mut changes = follower.library.changes();
    net.goes_online(&follower, 2).await;
    let held = agree(&leader, &[&follower]).await;
    assert_eq!(held.rows.len() as i64, all);
    let mut missed = 0;
    loop {
        match changes.try_recv() {
            Ok(_) => missed += 1,
            Err(TryRecvError::Lagged(more)) => missed += more as i64,
            Err(_) => break,
        }
    }
    assert_eq!(missed, all - had, "nothing came a second time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interruption_a_device_dropped_while_its_changes_stream_goes_on_and_nothing_is_taken_twice() {
    let net = Net::new().await;
    let leader = net.leader().await;
    let all = 10_000;
    let follower = net.offline(2).await;
    for i in 0..10 {
        follower.write(&[&insert("mine", i * 1000, (i + 1) * 1000)]).await;
    }
    follower.stop().await;

    // Few messages get out, and then the device is gone, before it heard what became of them all.
    let follower = net.throttled(2, UNBOUNDED, 3).await;
    eventually("the leader has some of it", async || (count(&leader) > 0).then_some(())).await;
    follower.give_up().await;
    let taken = count(&leader);
    assert!(taken < all, "not all of it: {taken}");

    let follower = net.follower(2).await;
    agree(&leader, &[&follower]).await;
    assert_eq!((count(&leader), count(&follower)), (all, all));
    assert_eq!(taken_twice(&leader), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interruption_a_leader_dropped_while_changes_stream_in_takes_the_rest_when_it_is_back() {
    let net = Net::new().await;
    let leader = net.leader().await;
    let all = 10_000;
    let follower = net.offline(2).await;
    for i in 0..10 {
        follower.write(&[&insert("mine", i * 1000, (i + 1) * 1000)]).await;
    }
    net.goes_online(&follower, 2).await;
    eventually("the leader has some of it", async || (count(&leader) > 0).then_some(())).await;
    leader.give_up().await;
    follower.shows("the leader is missed", |s| matches!(s.link, Link::Offline | Link::Connecting)).await;

    let leader = net.leader().await;
    agree(&leader, &[&follower]).await;
    assert_eq!((count(&leader), count(&follower)), (all, all));
    assert_eq!(taken_twice(&leader), Vec::<String>::new());
    assert!(leader.dump().terms.len() == 2, "the leader opened its term twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_set_twenty_thousand_rows_cross_in_both_directions_at_once() {
    let net = Net::new().await;
    let rows = 20_000;
    let leader = net.leader().await;
    let follower = net.offline(2).await;
    leader.write(&[&insert("theirs", 0, rows)]).await;
    follower.write(&[&insert("mine", 0, rows)]).await;
    net.goes_online(&follower, 2).await;
    let held = agree(&leader, &[&follower]).await;
    assert_eq!(held.rows.len(), 2 * rows);
    assert_eq!(taken_twice(&leader), Vec::<String>::new());
    let groups = "SELECT count(*) FROM sync_group WHERE last - first + 1 = 20000";
    assert!(number(&follower.path, groups) >= 1, "the leader's is one transaction on the follower too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_devices_three_followers_and_the_leader_write_at_once_and_end_alike() {
    let net = Net::new().await;
    let leader = net.leader().await;
    let [a, b, c] = [net.follower(2).await, net.follower(3).await, net.follower(4).await];
    leader.write(&["INSERT INTO items (id, name) VALUES ('shared', 'nobody')"]).await;
    agree(&leader, &[&a, &b, &c]).await;

    let busy = async |device: &Device, whose: &str| {
        for i in 0..40 {
            device
                .write(&[
                    &format!("INSERT INTO items (id, name) VALUES ('{whose} {i}', '{whose}')"),
                    &format!("UPDATE items SET name = '{whose} {i}' WHERE id = 'shared'"),
                ])
                .await;
        }
    };
    tokio::join!(busy(&leader, "leader"), busy(&a, "a"), busy(&b, "b"), busy(&c, "c"));
    let held = agree(&leader, &[&a, &b, &c]).await;
    assert_eq!(held.rows.len(), 1 + 4 * 40);
    assert_ne!(name_of(&c, "shared"), "nobody");
    let conflicts = leader.library.conflicts_since(Seq(0)).await.unwrap();
    for device in [&a, &b, &c] {
        assert_eq!(device.library.conflicts_since(Seq(0)).await.unwrap(), conflicts);
        assert_eq!(device.library.dead_letters().await.unwrap(), []);
    }
    // Folding before a seal is what a device may do to its own; every number of every origin is in the log once.
    let numbers = "SELECT count(*) - count(DISTINCT g.origin || ' ' || e.n) FROM sync_entry e
        JOIN sync_group g ON e.seq BETWEEN g.first AND g.last WHERE e.n IS NOT NULL";
    assert_eq!(number(&leader.path, numbers), 0);
}

#[tokio::test]
async fn retry_after_failure_a_leader_that_was_away_is_found_again_and_gets_everything_once() {
    let net = Net::new().await;
    let (leader, follower) = (net.leader().await, net.follower(2).await);
    follower.write(&["INSERT INTO items (id, name) VALUES ('before', 'x')"]).await;
    agree(&leader, &[&follower]).await;

    // The endpoint stays, the library behind it is gone: each try is refused.
    leader.stop().await;
    let mut tries = Vec::new();
    for i in 0..4 {
        follower.write(&[&format!("INSERT INTO items (id, name) VALUES ('while away {i}', 'x')")]).await;
        let known = tries.last().copied();
        let status = follower
            .shows("another try is planned", |s| {
                s.link == Link::Offline && s.next_retry.is_some() && s.next_retry != known
            })
            .await;
        assert!(status.last_error.is_some(), "it says why: {status:?}");
        tries.push(status.next_retry.unwrap());
    }
    let waits: Vec<i64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        waits[0] >= 100 && waits[1] >= 200 && waits[2] >= 400,
        "each wait is twice the one before: {waits:?}"
    );
    let status = follower.shows("what waits is counted", |s| s.pending == 4).await;
    assert_eq!(status.outbox, 0);

    let leader = net.leader().await;
    agree(&leader, &[&follower]).await;
    assert_eq!(count(&leader), 5);
    assert_eq!(taken_twice(&leader), Vec::<String>::new());
    let status =
        follower.shows("online, and nothing waits", |s| s.link == Link::Online && s.pending == 0).await;
    assert_eq!((status.last_error, status.next_retry), (None, None));

    // Nothing is appended for what is there already.
    let log = leader.dump().entries.len();
    follower.stop().await;
    let follower = net.follower(2).await;
    agree(&leader, &[&follower]).await;
    assert_eq!(leader.dump().entries.len(), log);
}

#[tokio::test]
async fn retry_after_failure_a_leader_that_comes_back_at_another_address_is_found_there() {
    let mut net = Net::new().await;
    let (leader, follower) = (net.leader().await, net.follower(2).await);
    leader.write(&["INSERT INTO items (id, name) VALUES ('before', 'x')"]).await;
    agree(&leader, &[&follower]).await;
    leader.stop().await;
    net.leader.close().await;
    follower.write(&["INSERT INTO items (id, name) VALUES ('while away', 'x')"]).await;
    follower.shows("the leader is missed", |s| s.link == Link::Offline && s.pending == 1).await;

    net.moves().await;
    let leader = net.leader().await;
    agree(&leader, &[&follower]).await;
    assert_eq!(count(&leader), 2);
    assert_eq!(taken_twice(&leader), Vec::<String>::new());
}

/// A transport that hands on so many messages in each direction.
struct Throttled {
    inner: SharedTransport,
    receives: Arc<Semaphore>,
    sends: Arc<Semaphore>,
}

struct ThrottledSender {
    inner: Box<dyn MessageSender>,
    sends: Arc<Semaphore>,
}

struct ThrottledReceiver {
    inner: Box<dyn MessageReceiver>,
    receives: Arc<Semaphore>,
}

#[async_trait]
impl Transport for Throttled {
    fn device(&self) -> DeviceId {
        self.inner.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let Channel { peer, sender, receiver } = self.inner.open(peer, library).await?;
        Ok(Channel {
            peer,
            sender: Box::new(ThrottledSender { inner: sender, sends: Arc::clone(&self.sends) }),
            receiver: Box::new(ThrottledReceiver { inner: receiver, receives: Arc::clone(&self.receives) }),
        })
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        self.inner.listen(library)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.inner.peers()
    }
}

#[async_trait]
impl MessageSender for ThrottledSender {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), TransportError> {
        self.sends.acquire().await.unwrap().forget();
        self.inner.send(message).await
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }
}

#[async_trait]
impl MessageReceiver for ThrottledReceiver {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        // Taken back where the wait is given up, so that no message is counted that did not come.
        let permit = self.receives.acquire().await.unwrap();
        let message = self.inner.receive().await?;
        permit.forget();
        Ok(message)
    }
}

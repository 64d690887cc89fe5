//! What is too large for one batch: transactions, backlogs, values.
//!
//! A transaction that travels in parts is applied at once: nobody on the follower ever sees some of it, whoever stops
//! between two parts. A backlog of many transactions arrives in whole ones.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{Channel, MessageReceiver, SharedTransport, Transport, TransportError},
};
use tidelog_tests::devices::{Device, Site, connect, device, eventually, level, number, reader, soon};
use tokio::sync::{Semaphore, mpsc};

/// Entries of the large transaction: some parts of a batch's size each.
const LARGE: usize = 100_000;

/// Writes one transaction of `LARGE` rows.
async fn write_large(leader: &Device) {
    let tx = leader.db.begin().await.unwrap();
    tx.execute_unprepared(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         INSERT INTO items (id, name) SELECT printf('i%06d', i), 'item ' || i FROM n",
        LARGE - 1
    ))
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn of_a_transaction_that_travels_in_parts_every_change_is_told() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    let mut changes = follower.library.changes();
    let row =
        |i| format!("INSERT INTO items (id, name, payload) VALUES ('i{i:03}', 'x', randomblob(500000))");
    let rows: Vec<String> = (0..20).map(row).collect();
    leader.write(&rows.iter().map(String::as_str).collect::<Vec<_>>()).await;
    level(&leader, &[&follower]).await;
    for i in 0..20 {
        let told = soon("an event", changes.recv()).await.unwrap();
        assert_eq!(told.record, format!("i{i:03}"));
    }
    assert!(changes.is_empty());
}

/// Somebody who reads the database all the time and notes each answer that differs from the one before.
struct Watcher {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<i64>>,
}

impl Watcher {
    fn of(path: &Path, sql: &'static str) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (conn, stop) = (reader(path), Arc::clone(&done));
        let thread = thread::spawn(move || {
            let mut seen = Vec::new();
            let mut statement = conn.prepare(sql).unwrap();
            loop {
                let last = stop.load(Ordering::Acquire);
                let now: i64 = statement.query_row([], |row| row.get(0)).unwrap();
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
                if last {
                    return seen;
                }
            }
        });
        Self { done, thread }
    }

    fn end(self) -> Vec<i64> {
        self.done.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// A transport whose channels hand on a message only when the test lets one through.
struct Doled {
    inner: SharedTransport,
    messages: Arc<Semaphore>,
}

struct DoledReceiver {
    inner: Box<dyn MessageReceiver>,
    messages: Arc<Semaphore>,
}

#[async_trait]
impl Transport for Doled {
    fn device(&self) -> DeviceId {
        self.inner.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let Channel { peer, sender, receiver } = self.inner.open(peer, library).await?;
        let receiver = Box::new(DoledReceiver { inner: receiver, messages: Arc::clone(&self.messages) });
        Ok(Channel { peer, sender, receiver })
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        self.inner.listen(library)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.inner.peers()
    }
}

#[async_trait]
impl MessageReceiver for DoledReceiver {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        self.messages.acquire().await.unwrap().forget();
        self.inner.receive().await
    }
}

/// A follower to whom `count` messages get through.
async fn doled(site: &Site, number: u8, count: usize) -> (Device, Arc<Semaphore>) {
    let messages = Arc::new(Semaphore::new(count));
    let transport =
        Doled { inner: Arc::new(site.network.plug(device(number))), messages: Arc::clone(&messages) };
    let follower = site.open_follower(number).await;
    follower.library.start(Arc::new(transport)).await.unwrap();
    (follower, messages)
}

fn parts(follower: &Device) -> i64 {
    number(&follower.path, "SELECT count(*) FROM sync_incoming")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_100_000_rows_is_seen_whole_or_not_at_all_whoever_restarts_between_its_parts() {
    let site = Site::new();
    let leader = site.leader().await;
    write_large(&leader).await;
    let top = leader.sealed().await;
    assert_eq!(
        number(&leader.path, "SELECT max(last - first) + 1 FROM sync_group"),
        LARGE as i64,
        "it is one group"
    );

    let (follower, messages) = doled(&site, 2, 6).await;
    let watcher = Watcher::of(&follower.path, "SELECT count(*) FROM items");
    eventually("some parts are put aside", async || (parts(&follower) >= 3).then_some(())).await;
    let largest = number(&follower.path, "SELECT max(length(message)) FROM sync_incoming");
    assert!(largest < 1 << 20, "a part is no larger than a batch: {largest} bytes");
    assert!(follower.status().position.seq < top.seq, "what is in part is not counted");
    drop(messages);

    // The follower stops between two parts; the parts are sent anew.
    follower.give_up().await;
    let (follower, messages) = doled(&site, 2, 6).await;
    eventually("some parts are put aside again", async || (parts(&follower) >= 3).then_some(())).await;
    // The leader stops between two parts.
    leader.stop().await;
    messages.add_permits(2);
    let leader = site.leader().await;
    assert_eq!(number(&follower.path, "SELECT count(*) FROM items"), 0);
    messages.add_permits(1000);
    let log = level(&leader, &[&follower]).await;
    assert_eq!(log.rows.len(), LARGE);
    assert_eq!(parts(&follower), 0);
    assert_eq!(watcher.end(), [0, LARGE as i64], "an independent reader saw nothing in between");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_many_transactions_arrives_in_whole_ones() {
    let site = Site::new();
    let leader = site.leader().await;
    // A pair in each transaction, one of each in a table of its own; both inserted, then both renamed.
    for i in 0..100 {
        let tx = leader.db.begin().await.unwrap();
        tx.execute_unprepared(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 249)
             INSERT INTO items (id, name) SELECT {i} || '.' || i, 'x' FROM n"
        ))
        .await
        .unwrap();
        tx.execute_unprepared(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 249)
             INSERT INTO teams (id, name) SELECT {i} || '.' || i, 'x' FROM n"
        ))
        .await
        .unwrap();
        tx.commit().await.unwrap();
    }
    let follower = site.open_follower(2).await;
    let torn = "SELECT (SELECT count(*) FROM items) - (SELECT count(*) FROM teams)
        + 1000000 * ((SELECT count(*) FROM items WHERE name = 'y') - (SELECT count(*) FROM teams WHERE name = 'y'))";
    let watcher = Watcher::of(&follower.path, torn);
    let follower = follower.plug(&site.network, 2).await;
    // And live, while the backlog goes out.
    for i in 0..30 {
        leader
            .write(&[
                &format!("UPDATE items SET name = 'y' WHERE id = '{i}.7'"),
                &format!("UPDATE teams SET name = 'y' WHERE id = '{i}.7'"),
            ])
            .await;
    }
    let log = level(&leader, &[&follower]).await;
    assert_eq!(log.rows.len(), 50_000);
    assert_eq!(watcher.end(), [0], "no reader saw half of a transaction");
    assert_eq!(number(&follower.path, "SELECT count(*) FROM items WHERE name = 'y'"), 30);
}

/// Rows of this many bytes travel, larger ones stay.
const ROW_MAX: usize = 5 << 18;

#[tokio::test]
async fn values_of_a_megabyte_travel_and_one_that_is_too_large_stays_visibly() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    // One group: most of its parts are a single row.
    leader
        .write(&[
            "INSERT INTO items (id, name, payload) VALUES ('small', '', NULL)",
            "INSERT INTO items (id, name, payload) VALUES ('random', '', randomblob(1250000))",
            "INSERT INTO items (id, name, payload) VALUES ('zero', '', zeroblob(1300000))",
            "INSERT INTO items (id, name, payload) VALUES ('text', hex(randomblob(640000)), NULL)",
            "INSERT INTO items (id, name, payload) VALUES ('half', '', randomblob(1200000))",
            "INSERT INTO items (id, name, payload) VALUES ('half too', '', randomblob(1200000))",
        ])
        .await;
    let log = level(&leader, &[&follower]).await;
    assert_eq!(log.rows.len(), 6);
    leader.write(&["UPDATE items SET payload = randomblob(1300000) WHERE id IN ('random', 'zero')"]).await;
    level(&leader, &[&follower]).await;
    let payloads = "SELECT sum(length(payload)) FROM items";
    assert_eq!(number(&follower.path, payloads), 2 * 1_300_000 + 2 * 1_200_000);
    // From the first entry, as one who comes later gets it.
    let late = site.follower(3).await;
    level(&leader, &[&late]).await;
    assert_eq!(parts(&late), 0);

    leader
        .write(&[&format!(
            "INSERT INTO items (id, name, payload) VALUES ('too large', '', zeroblob({}))",
            ROW_MAX + 1
        )])
        .await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('after it', '')"]).await;
    leader.sealed().await;
    let status = leader.shows("the quarantine", |s| s.quarantined == 1).await;
    follower.reaches(status.position.seq).await;
    assert_eq!(
        number(&follower.path, "SELECT count(*) FROM items WHERE id = 'after it'"),
        1,
        "it blocks nobody"
    );
    let reason: String = reader(&leader.path)
        .query_row("SELECT reason FROM sync_quarantine WHERE record = 'too large'", [], |row| row.get(0))
        .unwrap();
    assert!(reason.contains("over the limit of"), "{reason}");
    soon("a barrier", follower.library.barrier()).await.unwrap();
}

#[tokio::test]
async fn a_group_of_large_rows_travels_in_parts_that_hold_few() {
    let site = Site::new();
    let leader = site.leader().await;
    let insert =
        |i: i32| format!("INSERT INTO items (id, name, payload) VALUES ('{i}', '', randomblob(1200000))");
    leader
        .write(&(0..6).map(insert).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    leader.sealed().await;
    // Where the leader stands, what came before the group, and two of its parts.
    let (follower, messages) = doled(&site, 2, 4).await;
    eventually("two parts are put aside", async || (parts(&follower) == 2).then_some(())).await;
    let largest = number(&follower.path, "SELECT max(length(message)) FROM sync_incoming");
    assert!(largest < 5 << 19, "three rows would be more than a batch: {largest} bytes");
    messages.add_permits(100);
    level(&leader, &[&follower]).await;
    assert_eq!((number(&follower.path, "SELECT count(*) FROM items"), parts(&follower)), (6, 0));
}

#[tokio::test]
async fn a_follower_changes_the_largest_values_of_all() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader
        .write(&[
            "INSERT INTO items (id, name, payload) VALUES ('random', '', randomblob(1300000))",
            "INSERT INTO items (id, name, payload) VALUES ('text', hex(randomblob(650000)), NULL)",
        ])
        .await;
    level(&leader, &[&follower]).await;
    // Beside the new value travels the one that it replaces.
    follower.write(&["UPDATE items SET payload = randomblob(1300000) WHERE id = 'random'"]).await;
    follower.write(&["UPDATE items SET name = hex(randomblob(650000)) WHERE id = 'text'"]).await;
    soon("a barrier", follower.library.barrier()).await.unwrap();
    level(&leader, &[&follower]).await;
    assert_eq!(number(&follower.path, "SELECT count(*) FROM sync_pending"), 0);
}

#[tokio::test]
async fn a_cascade_over_a_row_that_is_too_large_leaves_it_where_it_is() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader
        .write(&["INSERT INTO teams VALUES ('t', 'team', NULL)", "INSERT INTO people VALUES ('p', 'p', 't')"])
        .await;
    level(&leader, &[&follower]).await;
    let large = format!("INSERT INTO teams VALUES ('u', hex(zeroblob({})), 'p')", ROW_MAX / 2 + 1);
    leader.write(&[&large]).await;
    leader.shows("the quarantine", |s| s.quarantined == 1).await;
    follower.write(&["DELETE FROM people WHERE id = 'p'"]).await;
    soon("a barrier", follower.library.barrier()).await.unwrap();
    assert_eq!(number(&leader.path, "SELECT count(*) FROM teams WHERE lead_id IS NULL"), 2);
    leader.shows("the quarantine", |s| s.quarantined == 2).await;
    assert_eq!(number(&follower.path, "SELECT count(*) FROM teams"), 1);
}

/// Many transactions over the same rows: written, their places handed round, deleted and there again.
const CHURN: [&[&str]; 8] = [
    &["UPDATE items SET name = name || ' one'"],
    // No order of the single rows satisfies their being unique.
    &["UPDATE items SET place = -1 - place", "UPDATE items SET place = (-place) % 3000"],
    &["UPDATE items SET name = name || ' two'"],
    &["DELETE FROM items WHERE id < 'i1500'"],
    &["INSERT INTO items (id, name, place)
       WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 1199)
       SELECT printf('i%04d', i), 'again ' || i, 5000 + i FROM n"],
    &["UPDATE items SET name = name || ' three', place = place + 10000"],
    &["UPDATE items SET place = place - 10000"],
    &["UPDATE items SET name = name || ' four'"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_rows_that_many_transactions_changed_meanwhile_a_follower_ends_with_the_last() {
    let site = Site::new();
    let leader = site.leader().await;
    leader
        .write(&["WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 2999)
                  INSERT INTO items (id, name, place) SELECT printf('i%04d', i), 'item ' || i, i FROM n"])
        .await;
    let (idle, busy) = (site.follower(2).await, site.follower(3).await);
    level(&leader, &[&idle, &busy]).await;
    idle.stop().await;
    busy.stop().await;
    for transaction in CHURN {
        leader.write(transaction).await;
        leader.sealed().await;
    }
    let offline = connect(&site.path("follower-3")).await;
    for statement in [
        "UPDATE items SET seen_here = 7",
        "UPDATE items SET payload = x'01' WHERE id BETWEEN 'i2000' AND 'i2099'",
        "DELETE FROM items WHERE id BETWEEN 'i1000' AND 'i1009'",
        "UPDATE items SET name = 'offline' WHERE id BETWEEN 'i0500' AND 'i0509'",
        "INSERT INTO items (id, name, place) VALUES ('new', 'in the way of another', 5500)",
    ] {
        offline.execute_unprepared(statement).await.unwrap();
    }
    offline.close().await.unwrap();
    let (idle, busy) = (site.follower(2).await, site.follower(3).await);
    soon("the offline follower's barrier", busy.library.barrier()).await.unwrap();
    level(&leader, &[&idle, &busy]).await;
    let kept = number(&busy.path, "SELECT count(*) FROM items WHERE seen_here = 7 AND id > 'i1499'");
    assert_eq!(kept, 1500, "what is local stays with rows that were never gone");
}

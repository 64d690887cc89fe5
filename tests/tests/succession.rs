//! Who leads next where the network and the machine do their worst: only one side of it works, who has the most never leads, or the
//! process is killed while it takes back its log.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Read,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tidelog::{
    Failover, LibraryBuilder, Link, Role, TakeOver,
    id::{DeviceId, LibraryId, Seq},
    transport::{
        Channel, MemoryTransport, MessageReceiver, MessageSender, SharedTransport, Transport, TransportError,
    },
    value::Value,
};
use tidelog_tests::devices::{
    Device, Dump, LOOPBACK, Site, device, eventually, level, number, quic_as, reader, soon,
};
use tidelog_transport::{Identity, Peer, Quic};
use tokio::sync::{mpsc, watch};

/// A network of which one way is broken: whatever one device sends never arrives here.
struct Deaf {
    inner: MemoryTransport,
    to: DeviceId,
    /// How often another was asked.
    asked: Arc<AtomicUsize>,
}

struct Silence;

#[async_trait]
impl MessageReceiver for Silence {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        std::future::pending().await
    }
}

#[async_trait]
impl Transport for Deaf {
    fn device(&self) -> DeviceId {
        self.inner.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let mut channel = self.inner.open(peer, library).await?;
        if peer == self.to {
            channel.receiver = Box::new(Silence);
        } else {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(channel)
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        self.inner.listen(library)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.inner.peers()
    }
}

#[tokio::test]
async fn who_alone_does_not_hear_the_leader_deposes_nobody_and_leads_when_it_is_gone() {
    let site = Site::new();
    let id = site.id;
    let leader = site.leader().await;
    let open = async |name: &str| {
        let failover = Failover::after(Duration::from_millis(600));
        Device::open(&site.path(name), |library| library.join(id).failover(failover)).await.unwrap()
    };
    let third = open("third").await.plug(&site.network, 3).await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', '')"]).await;
    let second = open("second").await.plug(&site.network, 2).await;
    level(&leader, &[&second, &third]).await;
    second.stop().await;
    let second = open("second").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let inner = site.network.plug(device(2));
    let deaf: SharedTransport = Arc::new(Deaf { inner, to: device(1), asked: Arc::clone(&asked) });
    second.library.start(deaf).await.unwrap();
    // It has found nobody for long, and asked again and again.
    eventually("it asks the third", async || (asked.load(Ordering::Relaxed) > 12).then_some(())).await;
    assert_eq!((second.status().role, leader.status().role), (Role::Follower, Role::Leader));
    let terms = "SELECT max(number) FROM sync_term";
    assert_eq!((number(&second.path, terms), number(&leader.path, terms)), (1, 1), "nobody was deposed");
    assert_eq!(third.status().link, Link::Online);

    leader.give_up().await;
    let (next, other) = eventually("one of the two leads", async || {
        let leads = |device: &Device| device.status().role == Role::Leader;
        match (leads(&second), leads(&third)) {
            (true, false) => Some((&second, &third)),
            (false, true) => Some((&third, &second)),
            _ => None,
        }
    })
    .await;
    other.write(&["INSERT INTO items (id, name) VALUES ('b', '')"]).await;
    soon("a barrier", other.library.barrier()).await.unwrap();
    level(next, &[other]).await;
}

/// Opens a device on a database of its own, or anew, with its own key and on a port that the system gives; it knows these.
async fn enter(
    folder: &Path,
    name: &str,
    peers: &[(&str, Option<SocketAddr>)],
    set: impl Fn(LibraryBuilder) -> LibraryBuilder,
) -> (Device, Arc<Quic>) {
    let peers = peers
        .iter()
        .map(|&(name, address)| Peer { device: key(folder, name).device_id(), address })
        .collect();
    let quic = quic_as(key(folder, name), LOOPBACK, peers).await;
    let device = Device::open(&folder.join(format!("{name}.sqlite")), set).await.unwrap();
    (device.start_on(Arc::clone(&quic)).await, quic)
}

#[tokio::test]
async fn what_only_a_device_has_that_never_leads_holds_nobody_up_for_ever_and_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, id) = (folder.path(), LibraryId::random());
    let failover = Failover::after(Duration::from_millis(700));
    let (old, quic) =
        enter(folder, "old", &[("desk", None), ("phone", None)], |library| library.create(id)).await;
    let to_old = Some(quic.local_addr().unwrap());
    let joins = |library: LibraryBuilder| library.join(id).failover(failover);
    let (desk, _) = enter(folder, "desk", &[("old", to_old)], joins).await;
    // Nothing lets this one take over by itself.
    let (phone, on_phone) =
        enter(folder, "phone", &[("old", to_old), ("desk", None)], |library| library.join(id)).await;
    old.write(&["INSERT INTO items (id, name) VALUES ('a', 'first')"]).await;
    level(&old, &[&desk, &phone]).await;
    desk.stop().await;

    old.write(&[
        "UPDATE items SET name = 'of the old' WHERE id = 'a'",
        "INSERT INTO items (id, name) VALUES ('b', '')",
    ])
    .await;
    phone.write(&["INSERT INTO items (id, name) VALUES ('c', '')"]).await;
    soon("a barrier", phone.library.barrier()).await.unwrap();
    let top = old.sealed().await;
    soon("a replica", old.library.wait_replicated(top.seq, 1)).await.unwrap();
    old.stop().await;
    phone.write(&["INSERT INTO items (id, name) VALUES ('d', '')"]).await;

    // It can reach nobody but the one that has more.
    let peers = [("phone", Some(on_phone.local_addr().unwrap())), ("old", None)];
    let (desk, on_desk) = enter(folder, "desk", &peers, joins).await;
    desk.write(&["UPDATE items SET name = 'of the desk' WHERE id = 'a'"]).await;
    desk.shows("it leads", |s| s.role == Role::Leader).await;
    let settled = async |others: &[&Device]| {
        for other in others {
            other.shows("it follows", |s| s.role == Role::Follower && s.link == Link::Online).await;
            soon("a barrier", other.library.barrier()).await.unwrap();
        }
        let dump = level(&desk, others).await;
        let conflicts = desk.library.conflicts_since(Seq(0)).await.unwrap();
        let names: Vec<_> = conflicts
            .into_iter()
            .flat_map(|conflict| [conflict.local, conflict.remote])
            .map(|version| version.row.and_then(|row| row.get("name").cloned()))
            .collect();
        let items: Vec<String> = dump.rows.into_iter().filter(|row| row.starts_with("items")).collect();
        (items.len(), names)
    };
    on_phone.add_peer(key(folder, "desk").device_id(), Some(on_desk.local_addr().unwrap()));
    let found = settled(&[&phone]).await;
    let both = ["of the desk", "of the old"].map(|name| Some(Value::Text(name.into())));
    assert_eq!(found, (4, both.to_vec()), "what was replicated, what was pending, and both that met");
    let terms: Vec<u64> = desk.library.terms().await.unwrap().iter().map(|term| term.number).collect();
    assert_eq!(terms, [1, 2], "nobody else has led meanwhile");

    // Who made them comes back, and each is there once.
    let peers = [("desk", Some(on_desk.local_addr().unwrap())), ("phone", None)];
    let (old, _) = enter(folder, "old", &peers, |library| library.existing()).await;
    assert_eq!(settled(&[&phone, &old]).await, found);
    for device in [&desk, &phone, &old] {
        let left = "SELECT (SELECT count(*) FROM sync_pending) + (SELECT count(*) FROM sync_outbox)";
        assert_eq!(number(&device.path, left), 0);
    }
}

/// A network in which one device vanishes at some moment, as if its machine had lost power: nothing more is heard of it,
/// nothing that is sent to it is ever taken, and who looks for it waits.
struct Vanishing {
    inner: MemoryTransport,
    gone: watch::Receiver<Option<DeviceId>>,
    /// How often it was looked for since.
    sought: Arc<AtomicUsize>,
}

struct Half<T> {
    inner: T,
    peer: DeviceId,
    gone: watch::Receiver<Option<DeviceId>>,
}

async fn unless_gone<T>(
    gone: &watch::Receiver<Option<DeviceId>>,
    peer: DeviceId,
    what: impl Future<Output = T>,
) -> T {
    let mut gone = gone.clone();
    let vanishes = async {
        if gone.wait_for(|gone| *gone == Some(peer)).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = vanishes => std::future::pending().await,
        done = what => done,
    }
}

#[async_trait]
impl MessageSender for Half<Box<dyn MessageSender>> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), TransportError> {
        unless_gone(&self.gone, self.peer, self.inner.send(message)).await
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }
}

#[async_trait]
impl MessageReceiver for Half<Box<dyn MessageReceiver>> {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        unless_gone(&self.gone, self.peer, self.inner.receive()).await
    }
}

#[async_trait]
impl Transport for Vanishing {
    fn device(&self) -> DeviceId {
        self.inner.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        if *self.gone.borrow() == Some(peer) {
            self.sought.fetch_add(1, Ordering::Relaxed);
        }
        let Channel { sender, receiver, .. } =
            unless_gone(&self.gone, peer, self.inner.open(peer, library)).await?;
        let gone = || self.gone.clone();
        let sender = Box::new(Half { inner: sender, peer, gone: gone() });
        let receiver = Box::new(Half { inner: receiver, peer, gone: gone() });
        Ok(Channel { peer, sender, receiver })
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        self.inner.listen(library)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.inner.peers()
    }
}

/// A leader that can vanish for the second, and a third.
struct Three {
    site: Site,
    leader: Device,
    second: Device,
    third: Device,
    gone: watch::Sender<Option<DeviceId>>,
    sought: Arc<AtomicUsize>,
}

impl Three {
    /// Both notice soon when they hear nothing of the leader, and the third is to lead next.
    async fn set() -> Self {
        let site = Site::new();
        let (id, failover) = (site.id, Failover::after(Duration::from_millis(600)));
        let leader = site.leader().await;
        let open = async |name: &str, failover: Failover| {
            Device::open(&site.path(name), |library| library.join(id).failover(failover)).await.unwrap()
        };
        let third = open("third", failover.priority(9)).await.plug(&site.network, 3).await;
        let second = open("second", failover).await;
        let (gone, sought) = (watch::Sender::new(None), Arc::new(AtomicUsize::new(0)));
        let inner = site.network.plug(device(2));
        let transport = Vanishing { inner, gone: gone.subscribe(), sought: Arc::clone(&sought) };
        second.library.start(Arc::new(transport)).await.unwrap();
        leader.write(&["INSERT INTO items (id, name) VALUES ('a', '')"]).await;
        level(&leader, &[&second, &third]).await;
        Self { site, leader, second, third, gone, sought }
    }
}

#[tokio::test]
async fn a_leader_that_vanishes_while_it_is_sent_to_is_missed_all_the_same() {
    let three = Three::set().await;
    three.gone.send_replace(Some(device(1)));
    for i in 0..20 {
        three.second.write(&[&format!("INSERT INTO items (id, name) VALUES ('s{i}', '')")]).await;
    }
    let status = three.second.shows("it misses the leader", |s| s.link != Link::Online).await;
    assert_eq!(status.role, Role::Follower, "the third hears the leader");
}

#[tokio::test]
async fn who_waits_for_a_leader_that_has_vanished_follows_the_next_at_once() {
    let Three { site, leader, second, third, gone, sought } = Three::set().await;
    gone.send_replace(Some(device(1)));
    eventually("it looks for the leader", async || (sought.load(Ordering::Relaxed) > 0).then_some(())).await;
    leader.give_up().await;
    third.shows("it leads", |s| s.role == Role::Leader).await;
    // Half as long as an opening may take.
    let follows = second.shows("it follows", |s| s.leader == Some(device(3)) && s.link == Link::Online);
    assert!(tokio::time::timeout(Duration::from_secs(5), follows).await.is_ok(), "{:?}", second.status());
    second.write(&["INSERT INTO items (id, name) VALUES ('b', '')"]).await;
    soon("a barrier", second.library.barrier()).await.unwrap();
    level(&third, &[&second]).await;
    drop(site);
}

/// A network over which each message arrives bit by bit.
struct Slow(MemoryTransport);

struct BitByBit {
    inner: Box<dyn MessageReceiver>,
    arrived: Arc<AtomicU64>,
    /// The message that is arriving, and how much of it is yet to come.
    coming: Option<(Vec<u8>, u32)>,
}

#[async_trait]
impl MessageReceiver for BitByBit {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        if self.coming.is_none() {
            self.coming = self.inner.receive().await?.map(|message| (message, 20));
        }
        while let Some((_, bits @ 1..)) = &mut self.coming {
            tokio::time::sleep(Duration::from_millis(50)).await;
            *bits -= 1;
            self.arrived.fetch_add(1, Ordering::Relaxed);
        }
        Ok(self.coming.take().map(|(message, _)| message))
    }

    fn arriving(&self) -> Option<Arc<AtomicU64>> {
        Some(Arc::clone(&self.arrived))
    }
}

#[async_trait]
impl Transport for Slow {
    fn device(&self) -> DeviceId {
        self.0.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let Channel { sender, receiver, .. } = self.0.open(peer, library).await?;
        let receiver = BitByBit { inner: receiver, arrived: Arc::default(), coming: None };
        Ok(Channel { peer, sender, receiver: Box::new(receiver) })
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        self.0.listen(library)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.0.peers()
    }
}

#[tokio::test]
async fn a_message_that_takes_longer_to_arrive_than_a_leader_may_be_silent_arrives() {
    let site = Site::new();
    let id = site.id;
    let leader = site.leader().await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', '')"]).await;
    // Half as long as a message takes.
    let failover = Failover::after(Duration::from_millis(500));
    let path = site.path("second");
    let second = Device::open(&path, |library| library.join(id).failover(failover)).await.unwrap();
    second.library.start(Arc::new(Slow(site.network.plug(device(2))))).await.unwrap();
    level(&leader, &[&second]).await;
    assert_eq!((second.status().role, leader.status().role), (Role::Follower, Role::Leader));
}

/// A process that dies with its parent, whatever becomes of it.
struct Part(Child);

impl Part {
    fn start(folder: &Path, leader: SocketAddr) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("TIDELOG_TEST_PLACE", folder)
            .env("TIDELOG_TEST_LEADER", leader.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Part {
    /// `kill -9`.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn key(folder: &Path, part: &str) -> Identity {
    Identity::load_or_create(folder.join(format!("{part}.key"))).unwrap()
}

/// Not a scenario of its own: the old leader, which is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(folder) = std::env::var_os("TIDELOG_TEST_PLACE") else { return };
    let folder = Path::new(&folder);
    let leader: SocketAddr = std::env::var("TIDELOG_TEST_LEADER").unwrap().parse().unwrap();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let peers = vec![Peer { device: key(folder, "new").device_id(), address: Some(leader) }];
    let quic = quic_as(key(folder, "old"), LOOPBACK, peers).await;
    let old = Device::open(&folder.join("old.sqlite"), |library| library.existing()).await.unwrap();
    let _old = old.start_on(quic).await;
    std::future::pending().await
}

/// Rows of the tail; some of the changes come in one large transaction, most by themselves.
const TAIL: usize = 12_000;

#[tokio::test]
async fn killed_wherever_it_is_in_taking_back_its_log_an_old_leader_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, id) = (folder.path(), LibraryId::random());
    let (old, new) = (path.join("old.sqlite"), path.join("new.sqlite"));
    let ids = (key(path, "old").device_id(), key(path, "new").device_id());
    // Level once, and then apart.
    let quic = quic_as(key(path, "old"), LOOPBACK, vec![Peer { device: ids.1, address: None }]).await;
    let address = quic.local_addr().unwrap();
    let leader = Device::open(&old, |library| library.create(id)).await.unwrap().start_on(quic).await;
    let quic =
        quic_as(key(path, "new"), LOOPBACK, vec![Peer { device: ids.0, address: Some(address) }]).await;
    let second = Device::open(&new, |library| library.join(id)).await.unwrap().start_on(quic).await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('kept', 'before')"]).await;
    level(&leader, &[&second]).await;
    second.stop().await;
    let many = |from: usize, count: usize| {
        format!(
            "WITH RECURSIVE n(k) AS (SELECT {from} UNION ALL SELECT k + 1 FROM n WHERE k + 1 < {from} + {count})
             INSERT INTO items (id, name) SELECT 'i' || k, k FROM n"
        )
    };
    leader.write(&[&many(0, 3000)]).await;
    for i in 0..30 {
        leader.write(&[&many(3000 + i * 300, 300)]).await;
        leader.write(&[&format!("UPDATE items SET name = '{i}' WHERE id = 'kept'")]).await;
        leader.sealed().await;
    }
    leader.stop().await;
    let quic = quic_as(key(path, "new"), LOOPBACK, vec![Peer { device: ids.0, address: None }]).await;
    let address = quic.local_addr().unwrap();
    let second = Device::open(&new, |library| library.existing()).await.unwrap().start_on(quic).await;
    soon("a takeover", second.library.take_over(TakeOver::FORCED)).await.unwrap();
    second.write(&["INSERT INTO items (id, name) VALUES ('n', 'of the new')"]).await;
    second.sealed().await;

    let held = "SELECT (SELECT count(*) FROM sync_entry WHERE n IS NOT NULL AND kind < 3)
        + (SELECT count(*) FROM sync_pending WHERE kind < 3)";
    let top = || number(&old, "SELECT max(seq) FROM sync_entry");
    let (all, mut kills) = (number(&old, held), 0);
    loop {
        let before = top();
        let part = Part::start(path, address);
        let is_back = eventually("it goes on", async || {
            let follows = number(&old, "SELECT count(*) FROM sync_term WHERE number = 2") > 0;
            (follows || top() < before).then_some(follows)
        })
        .await;
        if is_back {
            soon("all is sent", async {
                let settled = "SELECT count(*) FROM items";
                let both = async || (number(&new, settled) == number(&old, settled)).then_some(());
                eventually("as many rows", both).await;
                eventually("nothing is pending", async || {
                    (number(&old, "SELECT count(*) FROM sync_pending") == 0).then_some(())
                })
                .await;
                eventually("one length", async || {
                    (top() == number(&new, "SELECT max(seq) FROM sync_entry")).then_some(())
                })
                .await;
            })
            .await;
            drop(part);
            break;
        }
        drop(part);
        kills += 1;
        assert_eq!(number(&old, held), all, "after {kills} kills");
    }
    assert!(kills > 2, "it was killed {kills} times only");
    second.stop().await;
    Dump::of(&old).assert_equals(&Dump::of(&new), "the new leader");
    let conn = reader(&old);
    let rows: usize = conn.query_row("SELECT count(*) FROM items", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, TAIL + 2);
}

//! Three devices of which the followers can be cut off: what each of them writes meanwhile, nobody else has seen.
//!
//! A follower that is cut off goes on as it is, only no message reaches it or leaves it; so the order in which changes
//! reach the leader is the order in which a scenario lets the followers back. Time is the scenario's too: how late a
//! device's clock is decides who stands where clocks do, and neither the machine nor its load has a say in it.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tempfile::TempDir;
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{
        Channel, MemoryNetwork, MessageReceiver, MessageSender, SharedTransport, Transport, TransportError,
    },
    world::{Machine, World},
};
use tokio::sync::{mpsc, watch};

use crate::scene::{Device, Register, WAIT_MAX, number};

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Leads.
    Leader,
    /// Follows.
    A,
    /// Follows too.
    B,
}

impl Who {
    /// All three, the leader first.
    pub const ALL: [Self; 3] = [Self::Leader, Self::A, Self::B];

    /// Its id on the network.
    pub fn device(self) -> DeviceId {
        DeviceId([self as u8 + 1; 32])
    }
}

/// A leader and two followers.
pub struct Trio {
    devices: [Device; 3],
    valves: [watch::Sender<bool>; 3],
    clock: Arc<Clock>,
    _folder: TempDir,
    /// Without it no channel could be opened again.
    _network: MemoryNetwork,
}

impl Trio {
    /// Sets the three up over the tables of `schema`, all started and connected.
    pub async fn set(schema: &str, register: Register) -> Self {
        let (folder, network, id) = (tempfile::tempdir().unwrap(), MemoryNetwork::new(), LibraryId::random());
        let clock = Arc::new(Clock(AtomicI64::new(1000)));
        let (mut devices, mut valves) = (Vec::new(), Vec::new());
        for who in Who::ALL {
            let device = Device::new(folder.path(), who as u8 + 1, schema, |builder| {
                let builder = register(builder).world(Arc::clone(&clock) as Arc<dyn World>);
                if who == Who::Leader { builder.create(id) } else { builder.join(id) }
            })
            .await;
            let valve = watch::Sender::new(true);
            let transport = Valved { inner: Arc::new(network.plug(who.device())), valve: valve.subscribe() };
            device.library.start(Arc::new(transport)).await.unwrap();
            devices.push(device);
            valves.push(valve);
        }
        let (Ok(devices), Ok(valves)) = (devices.try_into(), valves.try_into()) else {
            unreachable!("there are three of each");
        };
        let trio = Self { devices, valves, clock, _folder: folder, _network: network };
        trio.level().await;
        trio
    }

    /// A device.
    pub fn device(&self, who: Who) -> &Device {
        &self.devices[who as usize]
    }

    /// From here on the machines' clocks show no less than this, ms since 1970.
    pub fn it_is(&self, at: i64) {
        self.clock.0.store(at, Ordering::Release);
    }

    /// Writes on a device, in one transaction, as of a time by its clock.
    pub async fn write(&self, who: Who, at: i64, statements: &[String]) {
        let tx = self.device(who).db.begin().await.unwrap();
        tx.execute_unprepared(&format!("UPDATE sync_ctl SET clock = {at}")).await.unwrap();
        for statement in statements {
            tx.execute_unprepared(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        tx.commit().await.unwrap();
    }

    /// Nothing reaches this follower or leaves it any more.
    pub fn cut_off(&self, who: Who) {
        self.valves[who as usize].send_replace(false);
    }

    /// The follower is back; waits until all it wrote is in the leader's log.
    pub async fn let_back(&self, who: Who) {
        self.valves[who as usize].send_replace(true);
        self.barrier(who).await;
    }

    /// Waits until what is committed on a device is in the log, and what the log holds is on the device.
    pub async fn barrier(&self, who: Who) {
        let device = self.device(who);
        match tokio::time::timeout(WAIT_MAX, device.library.barrier()).await {
            Ok(level) => level.unwrap(),
            Err(_) => panic!("{who:?} is not level: {:?}", device.library.status().borrow()),
        }
    }

    /// Waits until all three hold the same.
    pub async fn level(&self) {
        for who in [Who::A, Who::B, Who::Leader, Who::A, Who::B] {
            self.barrier(who).await;
        }
    }

    /// Asserts that these tables, the log, and what is known of conflicts and refused changes are the same on all three,
    /// bit for bit, and that nothing waits.
    pub fn assert_same(&self, tables: &[&str]) {
        let [leader, followers @ ..] = &self.devices;
        for table in tables.iter().chain(&["sync_log", "sync_conflict", "sync_dead_letter"]) {
            let there = leader.dump(table, "*");
            for follower in followers {
                assert_eq!(there, follower.dump(table, "*"), "table `{table}`");
            }
        }
        for device in &self.devices {
            assert_eq!(number(&device.file(), "SELECT count(*) FROM sync_pending"), 0);
            assert_eq!(device.outbox(), 0);
        }
    }
}

/// What time it is on all three; randomness is the machine's.
struct Clock(AtomicI64);

impl World for Clock {
    fn now(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    fn random(&self) -> u64 {
        Machine.random()
    }
}

/// A transport whose channels hold messages back while its valve is closed.
struct Valved {
    inner: SharedTransport,
    valve: watch::Receiver<bool>,
}

struct ValvedSender {
    inner: Box<dyn MessageSender>,
    valve: watch::Receiver<bool>,
}

struct ValvedReceiver {
    inner: Box<dyn MessageReceiver>,
    valve: watch::Receiver<bool>,
    /// Came while the valve was closed.
    held: Option<Vec<u8>>,
}

async fn opened(valve: &mut watch::Receiver<bool>) {
    // A scene that is gone holds nobody up.
    let _ = valve.wait_for(|open| *open).await;
}

#[async_trait]
impl Transport for Valved {
    fn device(&self) -> DeviceId {
        self.inner.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let mut valve = self.valve.clone();
        opened(&mut valve).await;
        let Channel { peer, sender, receiver } = self.inner.open(peer, library).await?;
        let sender = Box::new(ValvedSender { inner: sender, valve: valve.clone() });
        let receiver = Box::new(ValvedReceiver { inner: receiver, valve, held: None });
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
impl MessageSender for ValvedSender {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), TransportError> {
        opened(&mut self.valve).await;
        self.inner.send(message).await
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }
}

#[async_trait]
impl MessageReceiver for ValvedReceiver {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        if self.held.is_none() {
            self.held = self.inner.receive().await?;
        }
        if self.held.is_some() {
            opened(&mut self.valve).await;
        }
        Ok(self.held.take())
    }
}

//! Devices with real databases and real nodes, joined by real QUIC over a network and a clock that are simulated.
//!
//! Each device is a host of turmoil's, with a runtime and a clock of its own; all clocks go on together, a millisecond
//! at a time. Engines and databases work on threads of their own, in real time. So before each tick every engine is
//! waited for, until it has done what it was asked for: whatever a step takes, to the nodes it takes a tick or two, and no
//! timeout passes because a disk is slow. What the application writes takes no simulated time at all.
//!
//! The weather follows from a seed. In which tick an engine's answer falls does not, and keys are random: the same seed is
//! the same weather, not the same trace. That is what `tests/simulator.rs` is for.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use tempfile::TempDir;
use tidelog::{
    LibraryBuilder,
    id::{DeviceId, LibraryId, Seq},
    status::{AppliedChange, Link, Role, Status},
    transport::SharedTransport,
};
use tidelog_tests::devices::{Device, Dump, number};
use tidelog_transport::{Identity, Peer, Quic, QuicOptions};
use tokio::sync::{Notify, broadcast};
use turmoil::{Builder, Sim};

use crate::{
    shears::Shears,
    socket::{Socket, Weather},
};

/// How far the clock goes on at once.
const TICK: Duration = Duration::from_millis(1);
/// What a datagram takes to its destination: from, and to.
pub(crate) const LATENCY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(12));
/// No condition of a test takes this long by the simulated clock unless something is broken.
const PATIENCE: Duration = Duration::from_secs(240);
/// Datagrams that wait in front of a device; what comes beyond is lost.
const QUEUE: usize = 128;
const PORT: u16 = 4433;
const NAMES: [&str; 4] = ["ada", "bob", "cyd", "dot"];

type Job = Pin<Box<dyn Future<Output = ()>>>;

/// What a host is to do.
#[derive(Default)]
struct Jobs {
    queue: RefCell<VecDeque<Job>>,
    more: Notify,
}

impl Jobs {
    async fn work(self: Rc<Self>) -> turmoil::Result {
        loop {
            while let Some(job) = self.queue.borrow_mut().pop_front() {
                tokio::task::spawn_local(job);
            }
            self.more.notified().await;
        }
    }
}

/// A device.
pub(crate) struct Station {
    /// Its key's.
    pub(crate) id: DeviceId,
    /// What its datagrams go through.
    pub(crate) shears: Arc<Shears>,
    /// The database and the library.
    pub(crate) device: Device,
    changes: broadcast::Receiver<AppliedChange>,
    /// How often each record was told of as applied.
    pub(crate) applied: HashMap<String, usize>,
}

impl Station {
    /// Its status now.
    pub(crate) fn status(&self) -> Status {
        self.device.status()
    }

    /// Whether its subscription stands.
    pub(crate) fn is_online(&self) -> bool {
        self.status().link == Link::Online
    }

    fn note_changes(&mut self) {
        loop {
            match self.changes.try_recv() {
                Ok(change) => *self.applied.entry(change.record).or_default() += 1,
                Err(broadcast::error::TryRecvError::Lagged(missed)) => {
                    panic!("{missed} changes were not looked at")
                }
                Err(_) => return,
            }
        }
    }
}

impl Drop for Air {
    fn drop(&mut self) {
        // Connections to databases are closed on the runtime that they were opened on.
        let _app = self.app.enter();
        self.stations.clear();
    }
}

/// The network, the clock, and the devices.
pub(crate) struct Air {
    stations: Vec<Station>,
    sim: Sim<'static>,
    jobs: Vec<Rc<Jobs>>,
    /// What becomes of datagrams.
    pub(crate) weather: Arc<Mutex<Weather>>,
    app: tokio::runtime::Runtime,
    addresses: Vec<SocketAddr>,
    _folder: TempDir,
}

impl Air {
    /// So many devices with these settings, the first of which created the library and leads, all level.
    pub(crate) fn new(seed: u64, count: usize, settings: impl Fn(LibraryBuilder) -> LibraryBuilder) -> Self {
        let mut sim = Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(100_000))
            .min_message_latency(LATENCY.0)
            .max_message_latency(LATENCY.1)
            .udp_capacity(QUEUE)
            .build();
        let app = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let keys: Vec<PathBuf> =
            NAMES[..count].iter().map(|name| folder.path().join(format!("{name}.key"))).collect();
        let addresses: Vec<_> =
            NAMES[..count].iter().map(|name| SocketAddr::new(sim.lookup(*name), PORT)).collect();
        let peers: Vec<Peer> = keys
            .iter()
            .zip(&addresses)
            .map(|(key, address)| Peer {
                device: Identity::load_or_create(key).unwrap().device_id(),
                address: Some(*address),
            })
            .collect();
        let jobs: Vec<Rc<Jobs>> = (0..count).map(|_| Rc::default()).collect();
        for (name, jobs) in NAMES.iter().zip(&jobs) {
            let jobs = Rc::clone(jobs);
            sim.host(*name, move || Rc::clone(&jobs).work());
        }
        let weather = Arc::new(Mutex::new(Weather::new(seed)));
        let mut air = Self { stations: Vec::new(), sim, jobs, weather, app, addresses, _folder: folder };
        let library = LibraryId::random();
        for who in 0..count {
            let path = air._folder.path().join(format!("{}.sqlite", NAMES[who]));
            let enter = |builder| match settings(builder) {
                builder if who == 0 => builder.create(library),
                builder => builder.join(library),
            };
            let device = air.app.block_on(Device::open(&path, enter)).unwrap();
            let others: Vec<Peer> =
                peers.iter().filter(|peer| peer.address != Some(air.addresses[who])).cloned().collect();
            let (key, address, weather) = (keys[who].clone(), air.addresses[who], Arc::clone(&air.weather));
            let quic = air.on(who, async move {
                let identity = Identity::load_or_create(key).unwrap();
                let socket = Socket::bind(address, weather).await.unwrap();
                let options = QuicOptions { peers: others, ..QuicOptions::default() };
                Arc::new(Quic::bind_on(identity, options, socket).unwrap())
            });
            let shears = Arc::new(Shears::over(quic));
            let (library, transport) = (device.library.clone(), Arc::clone(&shears));
            air.on(who, async move { library.start(transport as SharedTransport).await.unwrap() });
            let (id, changes) = (peers[who].device, device.library.changes());
            air.stations.push(Station { id, shears, device, changes, applied: HashMap::new() });
        }
        air.level(0);
        air
    }

    /// A device.
    pub(crate) fn at(&self, who: usize) -> &Station {
        &self.stations[who]
    }

    /// How long it has been.
    pub(crate) fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Lets a device do something, and time pass until it is done.
    pub(crate) fn on<T: 'static>(&mut self, who: usize, job: impl Future<Output = T> + 'static) -> T {
        let done = Rc::new(Cell::new(None));
        let tell = Rc::clone(&done);
        self.begin(who, async move { tell.set(Some(job.await)) });
        let mut result = None;
        self.until("what a device was asked for", |_| {
            result = done.take();
            result.is_some()
        });
        result.unwrap()
    }

    /// Lets a device begin something.
    pub(crate) fn begin(&mut self, who: usize, job: impl Future<Output = ()> + 'static) {
        self.jobs[who].queue.borrow_mut().push_back(Box::pin(job));
        self.jobs[who].more.notify_one();
    }

    /// Lets time pass until it is so.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let began = self.now();
        while !condition(self) {
            assert!(self.now() - began < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", self.told());
            self.tick();
        }
    }

    /// Lets so much time pass, in which this stays so.
    #[track_caller]
    pub(crate) fn pass(&mut self, time: Duration, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let until = self.now() + time;
        while self.now() < until {
            assert!(holds(self), "{what}: not so any more\n{}", self.told());
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.sim.step().unwrap();
        let asked = self.stations.iter().map(|station| station.device.library.position());
        self.app.block_on(join_all(asked));
        for station in &mut self.stations {
            station.note_changes();
        }
    }

    /// Writes on a device, in one transaction.
    pub(crate) fn write(&self, who: usize, statements: &[String]) {
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        self.app.block_on(self.at(who).device.write(&statements));
    }

    /// Writes items on a device, so many, each of so many bytes that nothing makes smaller.
    pub(crate) fn write_items(&self, who: usize, name: &str, count: usize, size: usize) {
        let payload = |i| {
            format!(
                "INSERT INTO items (id, name, payload) VALUES ('{name}{i:05}', '{name}', randomblob({size}))"
            )
        };
        let statements: Vec<String> = (0..count).map(payload).collect();
        self.write(who, &statements);
    }

    /// Nothing goes between the two any more.
    pub(crate) fn cut(&self, a: usize, b: usize) {
        self.sim.partition(NAMES[a], NAMES[b]);
    }

    /// Nothing goes from the one to the other any more; it does the other way.
    pub(crate) fn cut_one_way(&self, from: usize, to: usize) {
        self.sim.partition_oneway(NAMES[from], NAMES[to]);
    }

    /// All goes between the two again.
    pub(crate) fn mend(&self, a: usize, b: usize) {
        self.sim.repair(NAMES[a], NAMES[b]);
    }

    /// What the line to a device carries, in bytes a second.
    pub(crate) fn narrow(&self, to: usize, rate: Option<f64>) {
        let (mut weather, ip) = (self.weather.lock().unwrap(), self.addresses[to].ip());
        match rate {
            Some(rate) => drop(weather.lines.insert(ip, rate)),
            None => drop(weather.lines.remove(&ip)),
        }
    }

    /// The one that leads, if exactly one does.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |who: &usize| self.at(*who).status().role == Role::Leader;
        let leading: Vec<usize> = (0..self.stations.len()).filter(leads).collect();
        (leading.len() == 1).then(|| leading[0])
    }

    /// What a datagram takes from now on, from and to.
    pub(crate) fn set_latency(&self, least: Duration, most: Duration) {
        assert_eq!(least, LATENCY.0, "turmoil cannot change the least");
        self.sim.set_max_message_latency(most);
    }

    /// Whether all hold what the log of the leader holds now, and nothing waits.
    pub(crate) fn is_level(&self, leader: usize) -> bool {
        let top = self.at(leader).status().position.seq;
        (0..self.stations.len()).all(|who| self.has(who, top))
    }

    /// Asserts that so many records whose ids begin so came to this device, each once: into its table, as told, and into the
    /// log.
    #[track_caller]
    pub(crate) fn assert_once(&self, who: usize, begins: &str, count: usize) {
        let told: Vec<_> =
            self.at(who).applied.iter().filter(|(record, _)| record.starts_with(begins)).collect();
        assert_eq!(told.len(), count, "{begins}: told of on {}: {told:?}", NAMES[who]);
        assert!(told.iter().all(|(_, times)| **times == 1), "{told:?}");
        let sql = format!("SELECT count(*) FROM sync_entry WHERE record LIKE '{begins}%'");
        assert_eq!(number(&self.at(who).device.path, &sql), count as i64);
    }

    /// Waits until what is committed on a device is in the log, and what the leader's log held is on the device; the log's end
    /// then.
    pub(crate) fn barrier(&mut self, who: usize) -> Seq {
        let library = self.at(who).device.library.clone();
        self.on(who, async move {
            library.barrier().await.unwrap();
            library.position().await.unwrap().seq
        })
    }

    /// Whether this device holds the log up to there, and nothing waits on it.
    pub(crate) fn has(&self, who: usize, top: Seq) -> bool {
        let status = self.at(who).status();
        status.position.seq >= top && status.pending == 0 && status.outbox == 0
    }

    /// Waits until all hold what each has committed, and checks that tables and logs are equal on all, line by line.
    #[track_caller]
    pub(crate) fn level(&mut self, leader: usize) -> Dump {
        let all: Vec<usize> = (0..self.stations.len()).collect();
        self.level_among(leader, &all)
    }

    /// [`Air::level`], of some.
    #[track_caller]
    pub(crate) fn level_among(&mut self, leader: usize, some: &[usize]) -> Dump {
        for who in some.iter().copied().filter(|who| *who != leader) {
            self.barrier(who);
        }
        let top = self.barrier(leader);
        self.until("all are level", |air| some.iter().all(|who| air.has(*who, top)));
        let there = self.at(leader).device.dump();
        let mut equal = false;
        for _ in 0..100 {
            // A device that came just now is being made a member, so logs may still grow while they are read.
            let (there, lengths) =
                (self.at(leader).device.dump(), |who: &usize| self.at(*who).device.dump().entries.len());
            equal = some.iter().all(|who| lengths(who) == there.entries.len());
            if equal {
                for who in some {
                    there.assert_equals(&self.at(*who).device.dump(), NAMES[*who]);
                }
                break;
            }
            self.pass(Duration::from_millis(20), "time passes", |_| true);
        }
        assert!(equal, "logs of one length\n{}", self.told());
        there
    }

    /// How everybody stands.
    pub(crate) fn told(&self) -> String {
        let tell = |(who, station): (usize, &Station)| format!("{}: {:#?}", NAMES[who], station.status());
        let all: Vec<String> = self.stations.iter().enumerate().map(tell).collect();
        format!("after {:?}\n{}", self.now(), all.join("\n"))
    }
}

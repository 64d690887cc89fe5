//! Who leads: how long nobody sequences while the lead is handed over, idle and under a writer; how long after its time a
//! device takes over by itself; how long an old leader takes that comes back with a tail that nobody had seen, and how much
//! memory, in a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sea_orm::EntityTrait;
use tidelog::{
    Failover, Link, Role, TakeOver,
    id::{DeviceId, LibraryId},
};

use crate::{
    Failure,
    args::Options,
    child::{Running, parent_spoke},
    database::{self, Entrance},
    devices::{self, Device, Pair},
    entry::{Entry, Row as File, Walk, synced},
    process,
    report::{Bar, Row},
    rounds::{median, percentile},
};

pub(crate) const NAMES: &[&str] = &[
    "handover/idle",
    "handover/loaded",
    "handover/failed writes",
    "takeover/by itself",
    "rejoin",
    "rejoin/memory",
];

/// Milliseconds without anybody who sequences.
const IDLE_MAX: f64 = 50.0;
const LOADED_MAX: f64 = 200.0;
const HANDOVERS: usize = 20;
/// Writes between two handovers under load.
const BETWEEN: u64 = 100;
/// Writes per second while the lead is handed over.
const WRITES: u64 = 1000;
/// Milliseconds behind the time after which a device takes over.
const LATE_MAX: f64 = 1000.0;
const FAILOVER: Duration = Duration::from_secs(1);
const TAKEOVERS: usize = 3;
/// Entries of the tail, and seconds until its device is level again.
const TAIL: usize = 10_000;
const REJOIN_MAX: f64 = 2.0;
const REJOINS: usize = 3;
/// The same for memory, and MiB above what the process had before its node started.
const LARGE_TAIL: usize = 500_000;
const MEMORY_MAX: f64 = 256.0;
/// Rows of one `insert_many`.
const MANY: usize = 1000;

/// What a child is told on its command line.
pub(crate) struct Child {
    folder: PathBuf,
    library: LibraryId,
    peer: DeviceId,
    leader: SocketAddr,
}

impl Child {
    pub(crate) fn parse(args: &[String]) -> Option<Self> {
        let [folder, library, peer, leader] = args else { return None };
        Some(Self {
            folder: folder.into(),
            library: LibraryId(library.parse().ok()?),
            peer: DeviceId::parse(peer)?,
            leader: leader.parse().ok()?,
        })
    }
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let mut row = |name: &str, unit, value: f64, most: f64| {
        rows.push(Row::new(name, unit, (value, None, None), Bar::ValueAtMost(most)));
    };
    if NAMES[..3].iter().any(|name| options.wants(name)) {
        eprintln!("handover …");
        let (idle, loaded, failed) = handovers(options).await?;
        row(NAMES[0], "ms", percentile(idle, 0.95), IDLE_MAX);
        row(NAMES[1], "ms", percentile(loaded, 0.95), LOADED_MAX);
        row(NAMES[2], "writes", failed as f64, 0.0);
    }
    if options.wants(NAMES[3]) {
        eprintln!("takeover …");
        row(NAMES[3], "ms late", median(takeovers().await?), LATE_MAX);
    }
    if options.wants(NAMES[4]) {
        let tail = options.scaled(TAIL);
        eprintln!("rejoin …");
        let mut taken = Vec::new();
        for _ in 0..REJOINS {
            taken.push(Parted::set(tail).await?.rejoin().await?);
        }
        row(NAMES[4], "s", median(taken), REJOIN_MAX * tail as f64 / TAIL as f64);
    }
    if options.wants(NAMES[5]) {
        let tail = options.scaled(LARGE_TAIL);
        eprintln!("rejoin/memory …");
        row(NAMES[5], "MiB", Parted::set(tail).await?.memory().await?, MEMORY_MAX);
    }
    Ok(rows)
}

/// Milliseconds of handovers there and back, without and with a writer on the leader, and how many writes failed.
async fn handovers(options: &Options) -> Result<(Vec<f64>, Vec<f64>, usize), Failure> {
    let folder = database::folder()?;
    let (pair, _) = pair_that_finds_itself(folder.path()).await?;
    let files = Walk::new(11).rows(options.scaled(1000));
    insert(&pair.leader, &files).await?;
    pair.level().await?;
    let mut idle = Vec::new();
    let devices = [&pair.leader, &pair.follower];
    for i in 0..HANDOVERS {
        idle.push(hand_over(devices[i % 2], devices[(i + 1) % 2]).await?);
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let db = pair.leader.db.clone();
    let (progress, mut reached) = tokio::sync::watch::channel(0u64);
    let writing = tokio::spawn(async move {
        let (mut failed, mut walk, mut written) = (0, Walk::new(12), 0u64);
        let began = Instant::now();
        while !*stopped.borrow() {
            let file = walk.rows(1);
            let row = file.iter().map(synced::ActiveModel::whole);
            if synced::Entity::insert_many(row).exec_without_returning(&db).await.is_err() {
                failed += 1;
            }
            written += 1;
            progress.send_replace(written);
            let due = began + Duration::from_micros(1_000_000 / WRITES * written);
            tokio::time::sleep_until(due.into()).await;
        }
        failed
    });
    let mut loaded = Vec::new();
    for i in 0..HANDOVERS {
        loaded.push(hand_over(devices[i % 2], devices[(i + 1) % 2]).await?);
        let before = *reached.borrow();
        reached.wait_for(|written| *written >= before + BETWEEN).await?;
    }
    stop.send(true)?;
    let failed = writing.await?;
    pair.close().await?;
    Ok((idle, loaded, failed))
}

/// From the call until the other leads, when it follows.
async fn hand_over(from: &Device, to: &Device) -> Result<f64, Failure> {
    let device = to.library.status().borrow().device.ok_or("it is not started")?;
    from.library
        .status()
        .wait_for(|s| s.role == Role::Leader && s.followers.iter().any(|f| f.device == device))
        .await?;
    let began = Instant::now();
    from.library.hand_over(device).await?;
    to.library.status().wait_for(|s| s.role == Role::Leader).await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// A pair of which either finds the other, and its library.
async fn pair_that_finds_itself(folder: &Path) -> Result<(Pair, LibraryId), Failure> {
    let library = LibraryId::random();
    let pair = Pair::open(folder, library).await?;
    pair.start().await?;
    Ok((pair, library))
}

/// Milliseconds from the time at which a device may take over until it has.
async fn takeovers() -> Result<Vec<f64>, Failure> {
    let mut late = Vec::new();
    for _ in 0..TAKEOVERS {
        let folder = database::folder()?;
        let folder = folder.path();
        let library = LibraryId::random();
        let keys = (devices::key(folder, "leader")?, devices::key(folder, "follower")?);
        let ids = (keys.0.device_id(), keys.1.device_id());
        let leader = Device::open(folder, "leader", Entrance::Create(library), keys.0, ids.1, None).await?;
        let address = Some(leader.quic.local_addr()?);
        let set = |builder: tidelog::LibraryBuilder| builder.failover(Failover::after(FAILOVER));
        let follower =
            Device::open_set(folder, "follower", Entrance::Join(library), keys.1, ids.0, address, set)
                .await?;
        let pair = Pair { leader, follower };
        pair.start().await?;
        insert(&pair.leader, &Walk::new(13).rows(100)).await?;
        pair.level().await?;
        let Pair { leader, follower } = pair;
        let gone = Instant::now();
        leader.quic.close().await;
        follower.library.status().wait_for(|s| s.role == Role::Leader).await?;
        late.push((gone.elapsed().saturating_sub(FAILOVER)).as_secs_f64() * 1e3);
        follower.close().await?;
        leader.close().await?;
    }
    Ok(late)
}

/// A device that led and wrote a tail that nobody had seen, closed; another leads.
struct Parted {
    folder: tempfile::TempDir,
    library: LibraryId,
    leads: Device,
    rows: usize,
}

impl Parted {
    async fn set(tail: usize) -> Result<Self, Failure> {
        let folder = database::folder()?;
        let (pair, library) = pair_that_finds_itself(folder.path()).await?;
        insert(&pair.leader, &Walk::new(14).rows(1000)).await?;
        pair.level().await?;
        pair.close().await?;
        let path = folder.path();
        let keys = (devices::key(path, "leader")?, devices::key(path, "follower")?);
        let ids = (keys.0.device_id(), keys.1.device_id());
        // Neither can be reached by the other.
        let old = Device::open(path, "leader", Entrance::Create(library), keys.0, ids.1, None).await?;
        old.start().await?;
        insert(&old, &Walk::new(15).rows(tail)).await?;
        old.library.barrier().await?;
        old.close().await?;
        let leads = Device::open(path, "follower", Entrance::Join(library), keys.1, ids.0, None).await?;
        leads.start().await?;
        leads.library.take_over(TakeOver::FORCED).await?;
        insert(&leads, &Walk::new(16).rows(10)).await?;
        leads.library.barrier().await?;
        Ok(Self { folder, library, leads, rows: 1010 + tail })
    }

    /// Seconds from the old leader's start until all it wrote is in the other's log, and it is level.
    async fn rejoin(self) -> Result<f64, Failure> {
        let folder = self.folder.path();
        let key = devices::key(folder, "leader")?;
        let peer = devices::key(folder, "follower")?.device_id();
        let address = Some(self.leads.quic.local_addr()?);
        let old = Device::open(folder, "leader", Entrance::Create(self.library), key, peer, address).await?;
        let began = Instant::now();
        old.start().await?;
        is_level(&old).await?;
        let seconds = began.elapsed().as_secs_f64();
        self.check(&old.path)?;
        old.close().await?;
        self.leads.close().await?;
        Ok(seconds)
    }

    /// MiB that the process of the old leader grows by.
    async fn memory(self) -> Result<f64, Failure> {
        let folder = self.folder.path().to_owned();
        let peer = devices::key(&folder, "follower")?.device_id();
        let address = self.leads.quic.local_addr()?;
        let args =
            [folder.display().to_string(), self.library.to_string(), peer.to_string(), address.to_string()];
        let growth = tokio::task::spawn_blocking(move || {
            let mut child = Running::start("rejoin", args.iter().map(String::as_str))?;
            let growth = child.line()?.parse()?;
            child.end()?;
            Ok::<f64, Failure>(growth)
        })
        .await??;
        self.check(&folder.join("leader.db"))?;
        self.leads.close().await?;
        Ok(growth)
    }

    /// All is there, on both.
    fn check(&self, old: &Path) -> Result<(), Failure> {
        for path in [old, &self.leads.path] {
            let rows: usize =
                database::observer(path)?.query_row("SELECT count(*) FROM entries", [], |row| row.get(0))?;
            if rows != self.rows {
                return Err(format!("{} has {rows} rows, of {}", path.display(), self.rows).into());
            }
        }
        Ok(())
    }
}

async fn insert(device: &Device, files: &[File]) -> Result<(), Failure> {
    for part in files.chunks(MANY) {
        synced::Entity::insert_many(part.iter().map(synced::ActiveModel::whole))
            .exec_without_returning(&device.db)
            .await?;
    }
    Ok(())
}

async fn is_level(device: &Device) -> Result<(), Failure> {
    device.library.status().wait_for(|s| s.role == Role::Follower && s.link == Link::Online).await?;
    Ok(device.library.barrier().await?)
}

/// The child's own life.
pub(crate) async fn child(child: Child) -> Result<(), Failure> {
    let Child { folder, library, peer, leader } = child;
    let key = devices::key(&folder, "leader")?;
    let device = Device::open(&folder, "leader", Entrance::Create(library), key, peer, Some(leader)).await?;
    let before = process::memory()?.now;
    device.start().await?;
    is_level(&device).await?;
    println!("{}", process::memory()?.peak.saturating_sub(before) as f64 / f64::from(1 << 20));
    parent_spoke().await?;
    device.close().await?;
    Ok(())
}

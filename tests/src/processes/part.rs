//! One of the processes: a device that syncs over QUIC, with an application that writes for as long as it may.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, TransactionTrait};
use tidelog::{Connection, Failover, Library, Link, status::Status, testing::watch_steps};
use tidelog_transport::Quic;

use super::{
    FOUNDER, NAMES, Place,
    load::{Filling, Work},
    oracle::{Line, Notes},
};
use crate::{
    devices::{LOOPBACK, quic_as},
    dice::Dice,
    sim::workload,
};

/// After how long without a leader a device takes over.
const FAILOVER: Duration = Duration::from_millis(700);
/// Longest pause between two transactions, in ms.
const PAUSE_MAX: u64 = 24;
/// Changes that may wait for the log while this process writes on and follows: what is left in the end has to be sequenced in time.
const PENDING_MAX: u64 = 400;
/// How often it looks where the others are, and whether it is to stop writing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a process tells people, unless `RUST_LOG` says otherwise.
const TOLD: &str = "warn,tidelog=info,tidelog::node::failover=debug";

/// Environment: which part is played.
pub(super) const PART: &str = "TIDELOG_PART";
/// Environment: the folder that all share.
pub(super) const PLACE: &str = "TIDELOG_PLACE";
/// Environment: how often this part was started before.
pub(super) const LIFE: &str = "TIDELOG_LIFE";
/// Environment: where to listen.
pub(super) const LISTEN: &str = "TIDELOG_LISTEN";

/// Plays the part that the environment names, until the process is killed; none, if it names none.
pub async fn play() {
    let Ok(name) = std::env::var(PART) else { return };
    let variable = |name: &str| std::env::var(name).unwrap();
    let (place, life) = (Place(variable(PLACE).into()), variable(LIFE));
    // It dies with its parent, whatever becomes of it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| TOLD.into()))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    say_steps(&place.step(&name));
    let quic = quic_as(place.key(&name), listen(), vec![]).await;
    // Renamed into its place, so that nobody reads half of it.
    std::fs::write(place.address(&name).with_extension("new"), quic.local_addr().unwrap().to_string())
        .unwrap();
    std::fs::rename(place.address(&name).with_extension("new"), place.address(&name)).unwrap();
    let mut others = Others { place: place.clone(), name: name.clone(), known: BTreeMap::new() };
    others.look(&quic);
    let url = format!("sqlite://{}", place.database(&name).display());
    let db = tidelog::connect(&url).await.unwrap();
    let builder = workload::register(Library::builder(&db)).failover(Failover::after(FAILOVER));
    let id = place.library();
    let builder = if name == FOUNDER { builder.create(id) } else { builder.join(id) };
    let library = builder.open().await.unwrap();
    library.start(Arc::clone(&quic) as tidelog::transport::SharedTransport).await.unwrap();
    let mut status = library.status();
    tokio::spawn(async move {
        if let Ok(now) = status.wait_for(|s| complaint(s).is_some()).await {
            eprintln!("needs help: {:?}: {:?}", complaint(&now), *now);
            std::process::exit(3);
        }
    });
    let writer = Writer { name, life, db, library, place };
    tokio::spawn(writer.write());
    loop {
        others.look(&quic);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What no process may come to, whoever is killed when.
fn complaint(status: &Status) -> Option<&'static str> {
    match &status.link {
        Link::Stopped { .. } => Some("its link has stopped"),
        _ if status.split.is_some() => Some("the library is split"),
        _ if status.rolled_back.is_some() => Some("it thinks that its database is an older state"),
        _ if status.quarantined > 0 => Some("rows are in quarantine"),
        _ => None,
    }
}

fn listen() -> SocketAddr {
    std::env::var(LISTEN).map_or(LOOPBACK, |address| address.parse().unwrap())
}

/// Bytes of what is said of the engine.
pub(super) const STEP_BYTES: usize = 160;

/// Says in a file which of the engine's steps is in its transaction. It is always as long, so that it is whole whenever the
/// process is killed.
fn say_steps(path: &Path) {
    let file = File::options().create(true).truncate(true).write(true).open(path).unwrap();
    // One at a time is at work on the database, though not always on the same thread.
    let file = Mutex::new(file);
    watch_steps(move |step| {
        let mut said = [b' '; STEP_BYTES];
        let step = step.unwrap_or_default().as_bytes();
        let length = step.len().min(STEP_BYTES);
        said[..length].copy_from_slice(&step[..length]);
        file.lock().unwrap().write_all_at(&said, 0).unwrap();
    });
}

/// Where the other processes listen: one that is started again has another port.
struct Others {
    place: Place,
    name: String,
    known: BTreeMap<&'static str, Option<SocketAddr>>,
}

impl Others {
    fn look(&mut self, quic: &Quic) {
        for other in NAMES.into_iter().filter(|other| *other != self.name) {
            let address = std::fs::read_to_string(self.place.address(other)).ok();
            let address = address.and_then(|text| text.parse().ok());
            if self.known.insert(other, address) != Some(address) {
                quic.add_peer(self.place.key(other).device_id(), address);
            }
        }
    }
}

struct Writer {
    name: String,
    life: String,
    db: Connection,
    library: Library,
    place: Place,
}

impl Writer {
    async fn write(self) {
        let notes = Arc::new(Mutex::new(Notes::open(&self.place.oracle(&self.name)).unwrap()));
        let seed = self.name.bytes().chain(self.life.bytes()).fold(7, |seed, b| seed * 31 + u64::from(b));
        let mut dice = Dice(seed);
        self.found().await;
        for n in 0_u64.. {
            while self.is_far_behind() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            if self.place.is_enough() {
                // The library goes on for as long as it is held.
                return std::future::pending().await;
            }
            let name = format!("{}{}.{n}", self.name, self.life);
            let work = Work::choose(n, &mut dice);
            self.transact(name, work, &mut dice, &notes).await;
            tokio::time::sleep(Duration::from_millis(dice.roll(PAUSE_MAX))).await;
        }
    }

    /// Whether the log does not keep up. Where nobody takes what is pending, writing goes on.
    fn is_far_behind(&self) -> bool {
        let status = self.library.status();
        let status = status.borrow();
        status.link == Link::Online && status.pending > PENDING_MAX
    }

    /// Makes what is there in the beginning, or waits until it is there.
    async fn found(&self) {
        let accounts = || async {
            let count = Statement::from_string(DbBackend::Sqlite, "SELECT count(*) FROM accounts");
            self.db.query_one_raw(count).await.unwrap().unwrap().try_get_by::<i64, _>(0).unwrap()
        };
        while accounts().await == 0 {
            if self.name == FOUNDER {
                let tx = self.db.begin().await.unwrap();
                tx.execute_unprepared(workload::FOUNDING).await.unwrap();
                tx.commit().await.unwrap();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn transact(&self, name: String, work: Work, dice: &mut Dice, notes: &Arc<Mutex<Notes>>) {
        let is_atomic = work.is_atomic(dice);
        let say = |line: &Line| notes.lock().unwrap().say(line).unwrap();
        let mut inner = Dice(dice.roll(u64::MAX));
        let (within, actor, device) = (Arc::clone(notes), name.clone(), self.name.clone());
        let written = self.db.with_actor(&name, |tx| {
            Box::pin(async move {
                within.lock().unwrap().say(&Line::Begun(actor.clone())).unwrap();
                let deed = if is_atomic {
                    let filled = tx.atomic(|tx| {
                        Box::pin(async move {
                            Filling::new(tx, &mut inner, &actor).fill(work, true, &device).await
                        })
                    });
                    filled.await.map_err(|error| DbErr::Custom(error.to_string()))?
                } else {
                    Filling::new(tx, &mut inner, &actor).fill(work, false, &device).await?
                };
                within.lock().unwrap().say(&Line::Commits(deed)).unwrap();
                Ok::<_, DbErr>(())
            })
        });
        match written.await {
            Ok(()) => say(&Line::Committed(name)),
            // It would refer to what is not there, or what is referred to would go.
            Err(error) if error.to_string().contains("constraint") => say(&Line::GivenUp(name)),
            Err(error) => panic!("{name}: the database did not take a local write: {error}"),
        }
    }
}

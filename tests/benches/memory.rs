//! How much memory a backlog takes at its peak, on either side: leader and follower are processes of their own, this
//! program started twice more.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tidelog::id::{DeviceId, LibraryId};

use crate::{
    Failure,
    args::Options,
    child::{Running, parent_spoke},
    database::{self, Backlog, Entrance},
    devices::{self, Device},
    process,
    report::{Bar, Row},
    rounds::median,
};

pub(crate) const NAMES: &[&str] = &["memory/leader", "memory/follower"];

const ROUNDS: usize = 3;
/// MiB above what the process had before its node started.
const GROWTH_MAX: f64 = 64.0;

/// What a child is told on its command line.
pub(crate) struct Child {
    folder: PathBuf,
    library: LibraryId,
    peer: DeviceId,
    rows: usize,
    /// Where the leader listens; the leader itself has none.
    leader: Option<SocketAddr>,
}

impl Child {
    pub(crate) fn parse(args: &[String]) -> Option<Self> {
        let [folder, library, peer, rows, leader @ ..] = args else { return None };
        Some(Self {
            folder: folder.into(),
            library: LibraryId(library.parse().ok()?),
            peer: DeviceId::parse(peer)?,
            rows: rows.parse().ok()?,
            leader: leader.first().map(|address| address.parse()).transpose().ok()?,
        })
    }
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let backlog = Backlog::write(folder.path(), options.rows).await?;
    let mut growths = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("memory, round {round} of {ROUNDS} …");
        let (folder, backlog) =
            (folder.path().to_owned(), (backlog.path.clone(), backlog.library, backlog.rows));
        // Pipes of children block; the runtime is not to.
        let (leader, follower) = tokio::task::spawn_blocking(move || round_of(&folder, &backlog)).await??;
        growths.0.push(leader);
        growths.1.push(follower);
    }
    let row = |name: &str, growths| {
        Row::new(name, "MiB", (median(growths), None, None), Bar::ValueAtMost(GROWTH_MAX))
    };
    Ok(vec![row("memory/leader", growths.0), row("memory/follower", growths.1)])
}

fn round_of(
    folder: &Path,
    (backlog, library, rows): &(PathBuf, LibraryId, usize),
) -> Result<(f64, f64), Failure> {
    database::copy(backlog, &folder.join("leader.db"))?;
    database::remove(&folder.join("follower.db"))?;
    let ids = (devices::key(folder, "leader")?.device_id(), devices::key(folder, "follower")?.device_id());
    let start = |peer: DeviceId, leader: Option<&str>| {
        let args = [folder.display().to_string(), library.to_string(), peer.to_string(), rows.to_string()];
        Running::start("backlog", args.iter().map(String::as_str).chain(leader))
    };
    let mut leader = start(ids.1, None)?;
    let address = leader.line()?;
    let mut follower = start(ids.0, Some(&address))?;
    let follower_growth = follower.line()?.parse()?;
    follower.end()?;
    leader.ask()?;
    let leader_growth = leader.line()?.parse()?;
    leader.end()?;
    Ok((leader_growth, follower_growth))
}

/// The child's own life.
pub(crate) async fn child(child: Child) -> Result<(), Failure> {
    let Child { folder, library, peer, rows, leader } = child;
    let (name, entrance) = match leader {
        None => ("leader", Entrance::Create(library)),
        Some(_) => ("follower", Entrance::Join(library)),
    };
    let key = devices::key(&folder, name)?;
    let device = Device::open(&folder, name, entrance, key, peer, leader).await?;
    let before = process::memory()?.now;
    device.start().await?;
    match leader {
        None => {
            println!("{}", device.quic.local_addr()?);
            parent_spoke().await?;
        }
        Some(_) => {
            database::holds(&device.path, rows).await?;
        }
    }
    let growth = process::memory()?.peak.saturating_sub(before) as f64 / f64::from(1 << 20);
    println!("{growth}");
    parent_spoke().await?;
    device.close().await?;
    Ok(())
}

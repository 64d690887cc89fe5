//! What changes cost that wait for the leader: memory and file of a device that made 10,000 of them and is offline. Each
//! renames a file, so that it keeps the row before it beside its own.
//!
//! Memory is that of a process which is opened with them, less what it takes without. Beside it stands what a process
//! grows by that makes them: pages that SQLite keeps on every connection, up to limits that more changes do not raise.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sea_orm::{ActiveModelTrait, EntityTrait, TransactionTrait};
use tidelog::{
    id::{DeviceId, LibraryId},
    status::Link,
};

use crate::{
    Failure,
    args::Options,
    child::{Running, parent_spoke},
    database::{self, Entrance},
    devices::{self, Device, Pair},
    entry::{Entry, Walk, synced},
    process,
    report::{Bar, Row},
    rounds::median,
};

pub(crate) const NAMES: &[&str] = &["pending/memory", "pending/made", "pending/file"];

const ROUNDS: usize = 3;
const CHANGES: usize = 10_000;
/// MiB above what the process takes when nothing is pending.
const MEMORY_MAX: f64 = 5.0;
/// MiB that the file has grown by when it is closed.
const FILE_MAX: f64 = 20.0;
/// Rows of one statement, changes of one transaction.
const MANY: usize = 1000;
const SEED: u64 = 8;

/// What the child is told on its command line.
pub(crate) struct Child {
    folder: PathBuf,
    library: LibraryId,
    peer: DeviceId,
    count: usize,
}

impl Child {
    pub(crate) fn parse(args: &[String]) -> Option<Self> {
        let [folder, library, peer, count] = args else { return None };
        Some(Self {
            folder: folder.into(),
            library: LibraryId(library.parse().ok()?),
            peer: DeviceId::parse(peer)?,
            count: count.parse().ok()?,
        })
    }
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let folder = folder.path().to_owned();
    let (library, count) = (LibraryId::random(), options.scaled(CHANGES));
    eprintln!("pending …");
    let pair = Pair::open(&folder, library).await?;
    pair.start().await?;
    for part in Walk::new(SEED).rows(count).chunks(MANY) {
        synced::Entity::insert_many(part.iter().map(synced::ActiveModel::whole))
            .exec_without_returning(&pair.leader.db)
            .await?;
    }
    pair.level().await?;
    pair.close().await?;
    let (follower, level) = (folder.join("follower.db"), folder.join("level.db"));
    database::copy(&follower, &level)?;
    let (mut memory, mut made, mut file) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        database::copy(&level, &follower)?;
        let folder = folder.clone();
        // Pipes of children block; the runtime is not to.
        let taken = tokio::task::spawn_blocking(move || {
            Ok::<_, Failure>((live(&folder, library, count)?, live(&folder, library, 0)?))
        });
        let (before, after) = taken.await??;
        memory.push(after.memory - before.memory);
        made.push(before.grown);
        let grown = fs::metadata(&follower)?.len().saturating_sub(fs::metadata(&level)?.len());
        file.push(mib(grown));
    }
    let scale = count as f64 / CHANGES as f64;
    let row = |name: &str, figures, bar| Row::new(name, "MiB", (median(figures), None, None), bar);
    Ok(vec![
        row(NAMES[0], memory, Bar::ValueAtMost(MEMORY_MAX * scale)),
        row(NAMES[1], made, Bar::None),
        row(NAMES[2], file, Bar::ValueAtMost(FILE_MAX * scale)),
    ])
}

/// Of a process that is opened and makes changes, in MiB.
struct Life {
    /// Its memory when it has found nobody.
    memory: f64,
    /// By how much that has grown when its changes are sealed.
    grown: f64,
}

fn live(folder: &Path, library: LibraryId, count: usize) -> Result<Life, Failure> {
    let peer = devices::key(folder, "leader")?.device_id();
    let args = [folder.display().to_string(), library.to_string(), peer.to_string(), count.to_string()];
    let mut child = Running::start("pending", args.iter().map(String::as_str))?;
    let life = Life { memory: child.line()?.parse()?, grown: child.line()?.parse()? };
    child.end()?;
    Ok(life)
}

/// The child's own life.
pub(crate) async fn child(child: Child) -> Result<(), Failure> {
    let Child { folder, library, peer, count } = child;
    let key = devices::key(&folder, "follower")?;
    let device = Device::open(&folder, "follower", Entrance::Join(library), key, peer, None).await?;
    device.start().await?;
    let mut status = device.library.status();
    status.wait_for(|status| status.link == Link::Offline).await?;
    let memory = process::memory()?.now;
    for part in Walk::new(SEED).rows(count).chunks(MANY) {
        let transaction = device.db.begin().await?;
        for file in part {
            let renamed = synced::ActiveModel::renamed(file, format!("renamed {}", file.name));
            renamed.update(&transaction).await?;
        }
        transaction.commit().await?;
    }
    let count = count as u64;
    status.wait_for(|status| status.pending >= count && status.outbox == 0).await?;
    println!("{}", mib(memory));
    println!("{}", mib(process::memory()?.now.saturating_sub(memory)));
    parent_spoke().await?;
    device.close().await?;
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

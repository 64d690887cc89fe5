//! A follower comes back: while it was away, every one of 5,000 rows was updated ten times on the leader. How long until
//! it is level again, and what of that went over the wire. Every entry travels: folding them would lose what each one did.

use std::{path::Path, time::Instant};

use sea_orm::{ActiveModelTrait, EntityTrait, TransactionTrait};
use tidelog::id::LibraryId;

use crate::{
    Failure,
    args::Options,
    database::{self, Entrance},
    devices::{self, Device, Pair},
    entry::{Entry, Row as File, Walk, synced},
    raw,
    report::{Bar, Row},
    rounds::{Rounds, median},
};

pub(crate) const NAMES: &[&str] = &["offline", "offline/wire"];

const ROUNDS: usize = 5;
const ROWS: usize = 5000;
/// Updates of each row.
const TIMES: usize = 10;
/// Seconds, in proportion.
const AT_MOST: f64 = 0.25;
/// Megabytes on the wire at full size.
const WIRE_MAX: f64 = 4.0;
/// Rows of one `insert_many`.
const MANY: usize = 1000;

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let folder = folder.path();
    let count = options.scaled(ROWS);
    // As many raw inserts as the follower has entries to take.
    let backlog = database::Backlog::write(folder, count * TIMES).await?;
    let rows = raw::Rows::read(&backlog.path)?;
    let raw_db = folder.join("raw.db");
    eprintln!("offline: updating {count} rows {TIMES} times …");
    let library = LibraryId::random();
    part(folder, library, count).await?;
    let databases = ["leader", "follower"].map(|name| folder.join(format!("{name}.db")));
    let parted = databases.clone().map(|path| path.with_extension("parted"));
    for (from, to) in databases.iter().zip(&parted) {
        database::copy(from, to)?;
    }
    eprintln!("offline …");
    let mut sent = Vec::new();
    let taken = Rounds::take(
        ROUNDS,
        async |_| {
            for (from, to) in parted.iter().zip(&databases) {
                database::copy(from, to)?;
            }
            let (seconds, bytes) = come_back(folder, library, count * TIMES).await?;
            sent.push(bytes as f64 / 1e6);
            Ok(seconds)
        },
        async |_| rows.speed(&raw_db),
    )
    .await?;
    let (value, raw, _) = taken.figures();
    let slower = raw::REFERENCE / raw.unwrap_or(f64::NAN);
    let scale = count as f64 / ROWS as f64;
    Ok(vec![
        Row::new("offline", "s", (value, None, None), Bar::InTime(AT_MOST * scale, slower)),
        Row::new("offline/wire", "MB", (median(sent), None, None), Bar::ValueAtMost(WIRE_MAX * scale)),
    ])
}

/// A leader and a follower that are level, and then the leader's updates, each pass over the rows sealed for itself.
async fn part(folder: &Path, library: LibraryId, count: usize) -> Result<(), Failure> {
    let pair = Pair::open(folder, library).await?;
    pair.start().await?;
    let files = Walk::new(6).rows(count);
    for part in files.chunks(MANY) {
        synced::Entity::insert_many(part.iter().map(synced::ActiveModel::whole))
            .exec_without_returning(&pair.leader.db)
            .await?;
    }
    pair.level().await?;
    let Pair { leader, follower } = pair;
    follower.close().await?;
    let mut walk = Walk::new(7);
    for pass in 0..TIMES {
        let transaction = leader.db.begin().await?;
        for (file, found) in files.iter().zip(walk.rows(count)) {
            update(pass, file, &found).update(&transaction).await?;
        }
        transaction.commit().await?;
        leader.library.barrier().await?;
    }
    leader.close().await?;
    Ok(())
}

/// What a file manager finds changed: now the name, now size and time, now the contents' hash.
fn update(pass: usize, file: &File, found: &File) -> synced::ActiveModel {
    match pass % 3 {
        0 => synced::ActiveModel::renamed(file, format!("{pass} {}", found.name)),
        1 => synced::ActiveModel::written(file, found, pass as i64),
        _ => synced::ActiveModel::hashed(file, found),
    }
}

/// Seconds from the follower's start until it is level, and bytes that the leader sent.
async fn come_back(folder: &Path, library: LibraryId, entries: usize) -> Result<(f64, u64), Failure> {
    let keys = (devices::key(folder, "leader")?, devices::key(folder, "follower")?);
    let ids = (keys.0.device_id(), keys.1.device_id());
    let leader = Device::open(folder, "leader", Entrance::Create(library), keys.0, ids.1, None).await?;
    let address = Some(leader.quic.local_addr()?);
    let follower = Device::open(folder, "follower", Entrance::Join(library), keys.1, ids.0, address).await?;
    leader.start().await?;
    leader.library.barrier().await?;
    let before = updates(&follower.path)?;
    let began = Instant::now();
    follower.start().await?;
    follower.library.barrier().await?;
    let seconds = began.elapsed().as_secs_f64();
    let came = updates(&follower.path)? - before;
    if came != entries {
        return Err(format!("{came} updates came, of {entries}").into());
    }
    follower.close().await?;
    Ok((seconds, leader.close().await?))
}

fn updates(path: &Path) -> Result<usize, Failure> {
    let file = database::observer(path)?;
    Ok(file.query_row("SELECT count(*) FROM sync_entry WHERE existed", [], |row| row.get(0))?)
}

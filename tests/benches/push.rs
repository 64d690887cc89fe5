//! Changes that a follower made offline: pushed, resolved against the same rows changed on the leader meanwhile, sequenced
//! and settled. Every one of them meets a change that its author had not seen.
//!
//! They were made in transactions of a thousand rows, as an application makes them; and once more all in one, which nobody
//! sees a part of before all of it is decided.

use std::{path::Path, time::Instant};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, sea_query::Expr};
use tidelog::id::LibraryId;

use crate::{
    Failure,
    args::Options,
    database::{self, Entrance},
    devices::{self, Device, Pair},
    entry::{Entry, Walk, synced},
    raw,
    report::{Bar, Row},
    rounds::Rounds,
};

pub(crate) const NAMES: &[&str] = &["push", "push/one transaction", "push/again", "push/again wire"];

const ROUNDS: usize = 3;
const ROWS: usize = 20_000;
/// Changes per second, in proportion.
const AT_LEAST: f64 = 20_000.0;
/// Kilobytes that a follower sends which has nothing to push: the handshake, where it stands, a question.
const AGAIN_MAX: f64 = 16.0;
/// Rows of one statement.
const MANY: usize = 1000;

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let folder = folder.path();
    let count = options.scaled(ROWS);
    let backlog = database::Backlog::write(folder, count).await?;
    let rows = raw::Rows::read(&backlog.path)?;
    let raw_db = folder.join("raw.db");
    eprintln!("push …");
    let (mut added, mut sent, mut figures) = (Vec::new(), Vec::new(), Vec::new());
    for (name, many, at_least) in
        [("push", MANY, Some(AT_LEAST)), ("push/one transaction", count.max(1), None)]
    {
        if !options.wants(name) {
            continue;
        }
        let taken = Rounds::take(
            ROUNDS,
            async |_| {
                let settled = settle(folder, count, many).await?;
                added.push(settled.added_again as f64);
                sent.push(settled.sent_again as f64 / 1e3);
                Ok(settled.speed)
            },
            async |_| rows.speed(&raw_db),
        )
        .await?;
        let (value, raw, ratio) = taken.figures();
        let factor = raw.unwrap_or(f64::NAN) / raw::REFERENCE;
        let bar = at_least.map_or(Bar::None, |least| Bar::InProportion(least, factor));
        figures.push(Row::new(name, "changes/s", (value, raw, ratio), bar));
    }
    let again = |name: &str, unit, figures: Vec<f64>, most| {
        let worst = figures.into_iter().fold(0.0, f64::max);
        Row::new(name, unit, (worst, None, None), Bar::ValueAtMost(most))
    };
    figures.push(again("push/again", "changes", added, 0.0));
    figures.push(again("push/again wire", "kB", sent, AGAIN_MAX));
    Ok(figures)
}

struct Settled {
    /// Changes per second from the follower's start until all of its changes are settled.
    speed: f64,
    /// What a second run of the follower adds to the log.
    added_again: usize,
    /// Bytes that the follower sends in it.
    sent_again: u64,
}

/// Both change every row, `many` in a transaction.
async fn settle(folder: &Path, count: usize, many: usize) -> Result<Settled, Failure> {
    let library = LibraryId::random();
    database::remove(&folder.join("leader.db"))?;
    let pair = Pair::open(folder, library).await?;
    pair.start().await?;
    let files = Walk::new(5).rows(count);
    for part in files.chunks(MANY) {
        synced::Entity::insert_many(part.iter().map(synced::ActiveModel::whole))
            .exec_without_returning(&pair.leader.db)
            .await?;
    }
    pair.level().await?;
    pair.close().await?;
    let keys = (devices::key(folder, "leader")?, devices::key(folder, "follower")?);
    let ids = (keys.0.device_id(), keys.1.device_id());
    let leader = Device::open(folder, "leader", Entrance::Create(library), keys.0, ids.1, None).await?;
    let address = Some(leader.quic.local_addr()?);
    let follower = Device::open(folder, "follower", Entrance::Join(library), keys.1, ids.0, address).await?;
    for part in files.chunks(many) {
        for (device, place) in [(&leader, "leader"), (&follower, "follower")] {
            synced::Entity::update_many()
                .col_expr(synced::Column::Name, Expr::cust(format!("name || ' on the {place}'")))
                .filter(synced::Column::Id.is_in(part.iter().map(|file| file.id)))
                .exec(&device.db)
                .await?;
        }
    }
    leader.start().await?;
    leader.library.barrier().await?;
    let began = Instant::now();
    follower.start().await?;
    follower.library.barrier().await?;
    let seconds = began.elapsed().as_secs_f64();
    let entries = changes(&leader.path)?;
    if entries != 2 * count {
        return Err(format!("{entries} changes are in the log, of {}", 2 * count).into());
    }
    follower.close().await?;
    let key = devices::key(folder, "follower")?;
    let follower = Device::open(folder, "follower", Entrance::Join(library), key, ids.0, address).await?;
    follower.start().await?;
    follower.library.barrier().await?;
    let sent_again = follower.close().await?;
    let added_again = changes(&leader.path)? - entries;
    leader.close().await?;
    Ok(Settled { speed: count as f64 / seconds, added_again, sent_again })
}

/// Changes in the log to records that were there before them.
fn changes(path: &Path) -> Result<usize, Failure> {
    let file = database::observer(path)?;
    Ok(file.query_row("SELECT count(*) FROM sync_entry WHERE existed", [], |row| row.get(0))?)
}

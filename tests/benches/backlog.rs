//! A backlog from one device to another over QUIC: from the start of both nodes until the follower's own count says
//! that it is there. Once from the leader's outbox, so with sealing and sequencing, and once from its finished log.

use std::time::Instant;

use crate::{
    Failure,
    args::Options,
    database::{self, Backlog},
    devices::Pair,
    raw,
    report::{Bar, Row},
    rounds::{Rounds, median},
};

pub(crate) const NAMES: &[&str] = &["backlog/outbox", "backlog/log", "backlog/wire"];

const ROUNDS: usize = 3;
/// Rows per second that the follower reaches, in proportion.
const FROM_OUTBOX: f64 = 80_000.0;
const FROM_LOG: f64 = 120_000.0;
/// Megabytes on the wire for a backlog of full size.
const WIRE_MAX: f64 = 22.0;

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let folder = folder.path();
    let backlog = Backlog::write(folder, options.rows).await?;
    let rows = raw::Rows::read(&backlog.path)?;
    let (raw_db, leader_db, finished) =
        (folder.join("raw.db"), folder.join("leader.db"), folder.join("finished.db"));
    let raw = async |_| rows.speed(&raw_db);
    let mut sent = Vec::new();
    let mut lines = Vec::new();
    if options.wants("backlog/outbox") || options.wants("backlog/wire") {
        eprintln!("backlog/outbox …");
        let taken = Rounds::take(
            ROUNDS,
            async |_| {
                backlog.copy(&leader_db)?;
                let (speed, bytes) = reach(folder, &backlog).await?;
                sent.push(bytes as f64 / 1e6);
                Ok(speed)
            },
            raw,
        )
        .await?;
        lines.push(line("backlog/outbox", &taken, FROM_OUTBOX));
        let wire = (median(sent.clone()), None, None);
        let scaled = WIRE_MAX * backlog.rows as f64 / Options::default().rows as f64;
        lines.push(Row::new("backlog/wire", "MB", wire, Bar::ValueAtMost(scaled)));
    }
    if options.wants("backlog/log") {
        eprintln!("backlog/log …");
        backlog.copy(&leader_db)?;
        let pair = Pair::open(folder, backlog.library).await?;
        pair.leader.start().await?;
        pair.leader.library.barrier().await?;
        pair.close().await?;
        database::copy(&leader_db, &finished)?;
        let taken = Rounds::take(
            ROUNDS,
            async |_| {
                database::copy(&finished, &leader_db)?;
                Ok(reach(folder, &backlog).await?.0)
            },
            raw,
        )
        .await?;
        lines.push(line("backlog/log", &taken, FROM_LOG));
    }
    Ok(lines)
}

fn line(name: &str, taken: &Rounds, bar: f64) -> Row {
    let (value, raw, ratio) = taken.figures();
    let factor = raw.unwrap_or(f64::NAN) / raw::REFERENCE;
    Row::new(name, "rows/s", (value, raw, ratio), Bar::InProportion(bar, factor))
}

/// Starts both on the leader's database. Rows per second until the follower has them all, and bytes sent.
async fn reach(folder: &std::path::Path, backlog: &Backlog) -> Result<(f64, u64), Failure> {
    let pair = Pair::open(folder, backlog.library).await?;
    let waiting = tokio::spawn({
        let path = pair.follower.path.clone();
        let rows = backlog.rows;
        async move { database::holds(&path, rows).await }
    });
    let began = Instant::now();
    pair.start().await?;
    let reached = waiting.await?.map_err(|error| pair.explain(&error))?;
    let seconds = reached.duration_since(began).as_secs_f64();
    Ok((backlog.rows as f64 / seconds, pair.close().await?))
}

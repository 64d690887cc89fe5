//! How soon a commit on the leader is seen in the follower's table, by a connection that is neither's, while writes come
//! at a steady pace; and what both devices cost while nothing happens.
//!
//! The clock starts when the application has its commit. What a durable commit costs here is measured between the
//! writes: rule D has the leader make one before it says anything.

use std::{
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use sea_orm::{ActiveModelTrait, prelude::Uuid};
use tidelog::id::LibraryId;

use crate::{
    Failure,
    args::Options,
    database,
    devices::Pair,
    entry::{Entry, Walk, synced},
    process,
    report::{Bar, Row},
    rounds::percentile,
};

pub(crate) const NAMES: &[&str] = &["latency/p50", "latency/p99", "latency/full_commit_p50", "idle_cpu"];

const WRITES: usize = 500;
/// Writes that only warm up.
const WARMUP: usize = 50;
const PACE: Duration = Duration::from_millis(10);
/// Milliseconds, where a durable commit takes at most [`QUICK_COMMIT`].
const P50_MAX: f64 = 0.6;
const QUICK_COMMIT: f64 = 0.2;
const P99_MAX: f64 = 3.0;
/// Between two looks of the watcher. There may be no more than two processors, and looking takes one of them from what
/// is measured: so it begins no sooner than anything can be there, which is a durable commit later.
const PAUSE: Duration = Duration::from_micros(30);
const QUIET: Duration = Duration::from_micros(250);
const SEEN_WITHIN: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(10);
/// Until connections, page caches and threads have come to rest.
const SETTLE: Duration = Duration::from_secs(1);
/// Percent of one processor.
const IDLE_MAX: f64 = 0.5;

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let folder = folder.path();
    let pair = Pair::open(folder, LibraryId::random()).await?;
    pair.start().await?;
    pair.level().await?;
    let mut rows = Vec::new();
    if options.wants("latency/p50")
        || options.wants("latency/p99")
        || options.wants("latency/full_commit_p50")
    {
        eprintln!("latency …");
        let (seen, commits) = paced_writes(folder, &pair, options.scaled(WRITES)).await?;
        let commit = percentile(commits, 0.5);
        let p50_max = P50_MAX + (commit - QUICK_COMMIT).max(0.0);
        let p50 = (percentile(seen.clone(), 0.5), None, None);
        let p99 = (percentile(seen, 0.99), None, None);
        rows.push(Row::new("latency/p50", "ms", p50, Bar::ValueAtMost(p50_max)));
        rows.push(Row::new("latency/p99", "ms", p99, Bar::ValueAtMost(P99_MAX)));
        rows.push(Row::new("latency/full_commit_p50", "ms", (commit, None, None), Bar::None));
    }
    if options.wants("idle_cpu") {
        eprintln!("idle_cpu …");
        tokio::time::sleep(SETTLE).await;
        let (began, before) = (Instant::now(), process::cpu_time()?);
        tokio::time::sleep(IDLE).await;
        let used = process::cpu_time()?.saturating_sub(before);
        let percent = used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
        rows.push(Row::new("idle_cpu", "%", (percent, None, None), Bar::ValueAtMost(IDLE_MAX)));
    }
    pair.close().await?;
    Ok(rows)
}

/// Milliseconds from each commit until it was seen, and those of durable commits to a file beside.
async fn paced_writes(folder: &Path, pair: &Pair, count: usize) -> Result<(Vec<f64>, Vec<f64>), Failure> {
    let (ask, asked) = mpsc::channel();
    let (answer, mut seen) = tokio::sync::mpsc::channel(1);
    let observer = database::observer(&pair.follower.path)?;
    let watcher = thread::spawn(move || watch(&observer, &asked, &answer));
    let durable = durable_database(&folder.join("durable.db"))?;
    let mut pace = tokio::time::interval(PACE);
    let (mut latencies, mut commits) = (Vec::new(), Vec::new());
    for (i, row) in Walk::new(4).rows(count + WARMUP).iter().enumerate() {
        pace.tick().await;
        synced::ActiveModel::whole(row).insert(&pair.leader.db).await?;
        let committed = Instant::now();
        ask.send((row.id, committed + QUIET))?;
        let at = seen.recv().await.ok_or("the watcher has ended")?;
        let at = at.map_err(|error| pair.explain(&error))?;
        let began = Instant::now();
        durable.prepare_cached("INSERT INTO commits (id) VALUES (?1)")?.execute([row.id.as_bytes()])?;
        if i >= WARMUP {
            commits.push(began.elapsed().as_secs_f64() * 1e3);
            latencies.push(at.saturating_duration_since(committed).as_secs_f64() * 1e3);
        }
    }
    drop(ask);
    let _ = watcher.join();
    Ok((latencies, commits))
}

/// Looks for the rows that it is asked for, one after the other, and says when it saw each.
fn watch(
    observer: &Connection,
    asked: &mpsc::Receiver<(Uuid, Instant)>,
    answer: &tokio::sync::mpsc::Sender<Result<Instant, Failure>>,
) {
    process::sleep_precisely();
    while let Ok((id, from)) = asked.recv() {
        thread::sleep(from.saturating_duration_since(Instant::now()));
        if answer.blocking_send(look_for(observer, id)).is_err() {
            return;
        }
    }
}

fn look_for(observer: &Connection, id: Uuid) -> Result<Instant, Failure> {
    let deadline = Instant::now() + SEEN_WITHIN;
    let mut statement = observer.prepare_cached("SELECT 1 FROM entries WHERE id = ?1")?;
    while Instant::now() < deadline {
        if statement.exists([id.as_bytes()])? {
            return Ok(Instant::now());
        }
        thread::sleep(PAUSE);
    }
    Err(format!("row {id} was not seen within {} s", SEEN_WITHIN.as_secs()).into())
}

fn durable_database(path: &Path) -> Result<Connection, Failure> {
    let db = Connection::open(path)?;
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    db.execute_batch("PRAGMA synchronous = FULL; CREATE TABLE commits (id BLOB)")?;
    Ok(db)
}

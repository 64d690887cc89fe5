//! What a busy writer keeps of its speed: single-row transactions without tidelog, with capture alone, and with a live
//! follower over QUIC in the same process; and how long after the last commit the follower has everything.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel};
use tidelog::id::LibraryId;

use crate::{
    Failure,
    args::Options,
    database::{self, Entrance},
    devices::Pair,
    entry::{Entry, Row, Walk, plain, synced},
    report::{self, Bar},
    rounds::{Rounds, median},
};

pub(crate) const NAMES: &[&str] = &["writer/without", "writer/capturing", "writer/level"];

const ROUNDS: usize = 3;
const COMMITS: usize = 20_000;
const OF_PLAIN: f64 = 0.55;
const OF_CAPTURING: f64 = 0.75;
/// Milliseconds until the follower is level.
const LEVEL_MAX: f64 = 25.0;

pub(crate) async fn run(options: &Options) -> Result<Vec<report::Row>, Failure> {
    let rows = Walk::new(3).rows(options.scaled(COMMITS));
    let (mut of_plain, mut of_capturing, mut level) = (Rounds::default(), Rounds::default(), Vec::new());
    for round in 0..=ROUNDS {
        eprintln!("writer, round {round} of {ROUNDS} …");
        let folder = database::folder()?;
        let folder = folder.path();
        let (without, capturing, live);
        if round % 2 == 0 {
            without = plain_speed(folder, &rows).await?;
            capturing = capturing_speed(folder, &rows).await?;
            live = live_speed(folder, &rows).await?;
        } else {
            live = live_speed(folder, &rows).await?;
            capturing = capturing_speed(folder, &rows).await?;
            without = plain_speed(folder, &rows).await?;
        }
        // The first round only warms up.
        if round > 0 {
            of_plain.push(live.0, without);
            of_capturing.push(live.0, capturing);
            level.push(live.1);
        }
    }
    Ok(vec![
        report::Row::new("writer/without", "commits/s", of_plain.figures(), Bar::RatioAtLeast(OF_PLAIN)),
        report::Row::new(
            "writer/capturing",
            "commits/s",
            of_capturing.figures(),
            Bar::RatioAtLeast(OF_CAPTURING),
        ),
        report::Row::new("writer/level", "ms", (median(level), None, None), Bar::ValueAtMost(LEVEL_MAX)),
    ])
}

async fn plain_speed(folder: &Path, rows: &[Row]) -> Result<f64, Failure> {
    let db = database::plain(&folder.join("plain.db")).await?;
    let took = save::<plain::ActiveModel, _>(&db, rows).await?;
    db.close().await?;
    Ok(per_second(rows, took))
}

async fn capturing_speed(folder: &Path, rows: &[Row]) -> Result<f64, Failure> {
    let (db, library) =
        database::open(&folder.join("capturing.db"), Entrance::Create(LibraryId::random())).await?;
    let took = save::<synced::ActiveModel, _>(&db, rows).await?;
    library.shutdown().await;
    db.close().await?;
    Ok(per_second(rows, took))
}

/// Commits per second with a live follower, and the milliseconds until that is level.
async fn live_speed(folder: &Path, rows: &[Row]) -> Result<(f64, f64), Failure> {
    let pair = Pair::open(folder, LibraryId::random()).await?;
    pair.start().await?;
    pair.level().await?;
    let took = save::<synced::ActiveModel, _>(&pair.leader.db, rows).await?;
    let last = Instant::now();
    let reached =
        database::holds(&pair.follower.path, rows.len()).await.map_err(|error| pair.explain(&error))?;
    pair.close().await?;
    Ok((per_second(rows, took), reached.duration_since(last).as_secs_f64() * 1e3))
}

async fn save<A, C>(db: &C, rows: &[Row]) -> Result<Duration, Failure>
where
    A: Entry,
    <A::Entity as EntityTrait>::Model: IntoActiveModel<A>,
    C: ConnectionTrait,
{
    let began = Instant::now();
    for row in rows {
        A::whole(row).insert(db).await?;
    }
    Ok(began.elapsed())
}

fn per_second(rows: &[Row], took: Duration) -> f64 {
    rows.len() as f64 / took.as_secs_f64()
}

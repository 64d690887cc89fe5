//! What capture adds to a save: the same writes through SeaORM with tidelog and without.
//!
//! Each way of writing is measured with the node stopped, where only the trigger and the hooks are at work, and with
//! it running as a leader, where the engine seals what was committed meanwhile. Before the baseline's turn the engine
//! has sealed everything, so that it does not work on the baseline's time.
//!
//! With the node stopped, caller and SQLite's thread share one processor: what is measured is the work of a save, which
//! capture adds to, and not how long one processor takes to wake another, which is twice as much and differs from run to
//! run by more than capture does. The processor time of the whole process is shown too.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel, TransactionSession, TransactionTrait};
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::MemoryNetwork,
};

use crate::{
    Failure,
    args::Options,
    database::{self, Entrance},
    entry::{Entry, Row, Walk, plain, synced},
    process,
    report::{self, Bar},
    rounds::Rounds,
};

pub(crate) const NAMES: &[&str] = &[
    "capture/transaction/stopped",
    "capture/transaction/cpu",
    "capture/transaction/running",
    "capture/autocommit/stopped",
    "capture/autocommit/cpu",
    "capture/autocommit/running",
    "capture/insert_many/stopped",
    "capture/insert_many/cpu",
    "capture/insert_many/running",
    "capture/update/stopped",
    "capture/update/cpu",
    "capture/update/running",
];

/// Many and short: what disturbs the machine then falls on measure and baseline alike.
const ROUNDS: usize = 15;
/// Rows of one `insert_many`.
const MANY: usize = 1000;

/// A way of writing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Inserts in one transaction.
    Transaction,
    /// Inserts, each its own transaction.
    Autocommit,
    /// `insert_many`, each its own transaction.
    InsertMany,
    /// Updates of one column in one transaction.
    Update,
}

const WAYS: [(&str, Way, usize, f64); 4] = [
    ("transaction", Way::Transaction, 5_000, 1.35),
    ("autocommit", Way::Autocommit, 2_000, 1.30),
    ("insert_many", Way::InsertMany, 10_000, 1.7),
    ("update", Way::Update, 5_000, 1.6),
];

pub(crate) async fn run(options: &Options) -> Result<Vec<report::Row>, Failure> {
    let mut rows = Vec::new();
    for (name, way, full, bar) in WAYS {
        for node in ["stopped", "running"] {
            let (measure, cpu) = (format!("capture/{name}/{node}"), format!("capture/{name}/cpu"));
            let running = node == "running";
            if !options.wants(&measure) && (running || !options.wants(&cpu)) {
                continue;
            }
            eprintln!("{measure} …");
            let folder = database::folder()?;
            let one = (!running).then(process::OneProcessor::share);
            let (took, used) = compare(folder.path(), way, options.scaled(full), running).await?;
            drop(one);
            rows.push(report::Row::new(measure, "µs/row", took.figures(), Bar::RatioAtMost(bar)));
            if !running {
                rows.push(report::Row::new(cpu, "cpu µs/row", used.figures(), Bar::None));
            }
        }
    }
    Ok(rows)
}

/// Time that both took, and that they used of the processor.
async fn compare(folder: &Path, way: Way, count: usize, running: bool) -> Result<(Rounds, Rounds), Failure> {
    let (db, library) =
        database::open(&folder.join("tidelog.db"), Entrance::Create(LibraryId::random())).await?;
    let plain = database::plain(&folder.join("plain.db")).await?;
    let network = MemoryNetwork::new();
    if running {
        library.start(Arc::new(network.plug(DeviceId([1; 32])))).await?;
    }
    let mut walk = Walk::new(2);
    let batches: Vec<Vec<Row>> = (0..=ROUNDS).map(|_| walk.rows(count)).collect();
    if way == Way::Update {
        write::<synced::ActiveModel, _>(&db, Way::InsertMany, &batches[0], 0).await?;
        write::<plain::ActiveModel, _>(&plain, Way::InsertMany, &batches[0], 0).await?;
        if running {
            library.barrier().await?;
        }
    }
    // Updates go over the same rows in every round.
    let batch = |round: usize| if way == Way::Update { &batches[0] } else { &batches[round] };
    let per_row = |took: Duration| took.as_secs_f64() * 1e6 / count as f64;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let took = Rounds::take(
        ROUNDS,
        async |round| {
            let before = process::cpu_time()?;
            let took = write::<synced::ActiveModel, _>(&db, way, batch(round), round).await?;
            with.push(per_row(process::cpu_time()? - before));
            if running {
                library.barrier().await?;
            }
            Ok(per_row(took))
        },
        async |round| {
            let before = process::cpu_time()?;
            let took = write::<plain::ActiveModel, _>(&plain, way, batch(round), round).await?;
            without.push(per_row(process::cpu_time()? - before));
            Ok(per_row(took))
        },
    )
    .await?;
    library.shutdown().await;
    db.close().await?;
    plain.close().await?;
    Ok((took, Rounds::of(with, without)))
}

/// Writes the rows, and says how long that took.
async fn write<A, C>(db: &C, way: Way, rows: &[Row], round: usize) -> Result<Duration, Failure>
where
    A: Entry,
    <A::Entity as EntityTrait>::Model: IntoActiveModel<A>,
    C: ConnectionTrait + TransactionTrait,
{
    let began = Instant::now();
    match way {
        Way::Transaction => {
            let transaction = db.begin().await?;
            for row in rows {
                A::whole(row).insert(&transaction).await?;
            }
            transaction.commit().await?;
        }
        Way::Autocommit => {
            for row in rows {
                A::whole(row).insert(db).await?;
            }
        }
        Way::InsertMany => {
            for part in rows.chunks(MANY) {
                <A::Entity as EntityTrait>::insert_many(part.iter().map(A::whole))
                    .exec_without_returning(db)
                    .await?;
            }
        }
        Way::Update => {
            let transaction = db.begin().await?;
            for (i, row) in rows.iter().enumerate() {
                A::renamed(row, format!("renamed_{round}_{i}.txt")).update(&transaction).await?;
            }
            transaction.commit().await?;
        }
    }
    Ok(began.elapsed())
}

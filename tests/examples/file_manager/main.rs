//! A file manager's core on three devices: the leader indexes a real directory, two followers hold the same.
//!
//! ```text
//! cargo run --release --example file_manager -- [DIR] [--keep] [--capture trigger|hooks] [--limit N] [--json]
//! ```
//!
//! It starts a leader and two followers on loopback QUIC with SQLite files in a temporary folder, indexes DIR
//! while the followers follow, tags, renames, moves and deletes some of it, and waits until all are level. Then both
//! followers go offline, all three edit the same and other things, and come back; it says who stands, and decides the
//! one conflict that waits for a person. Then the leader hands over, the next is gone and another takes over, and what
//! nobody had seen comes back. It shuts everything down, and compares what the files hold. The parts that know
//! nothing of sync are in `tests/src/file_manager`; what an application writes to embed tidelog is in `devices.rs`, what
//! it asks of conflicts in `apart.rs`, of who leads in `leading.rs`, and only there.

mod apart;
mod bars;
mod devices;
mod leading;

use std::{error::Error, io::Write, path::Path, process::ExitCode, time::Instant};

use tidelog_tests::file_manager::{
    args::{self, Args, Command, DEFAULT_DIR_LIMIT, HELP},
    digest, edit,
    fixture::Fixture,
    index::{self, IndexOptions},
    report::{DeviceReport, Report},
    walk::{Walk, WalkOptions},
};

use crate::{bars::Bars, devices::Ring};

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Command::MakeFixture(dir)) => make_fixture(&dir),
        Ok(Command::Run(args)) => match run(&args).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(e) => could_not(e.as_ref()),
        },
        Err(e) => could_not(&e),
    }
}

fn could_not(error: &dyn Error) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    eprintln!("{text}");
    ExitCode::from(2)
}

fn make_fixture(dir: &Path) -> ExitCode {
    match Fixture::write(dir) {
        Ok(fixture) => {
            println!("{}: {} files in {} folders", dir.display(), fixture.files, fixture.directories);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("`{}` cannot become the directory to try this on: {e}", dir.display());
            ExitCode::from(2)
        }
    }
}

/// The whole example. Says whether all devices ended equal.
async fn run(args: &Args) -> Result<bool, Box<dyn Error + Send + Sync>> {
    let (dir, limit) = match &args.dir {
        Some(dir) => (dir.clone(), args.limit.unwrap_or(WalkOptions::default().limit)),
        None => (args::default_dir(), args.limit.unwrap_or(DEFAULT_DIR_LIMIT)),
    };
    // Before anything else: a DIR that cannot be indexed is said while nothing has been made.
    let expected = Walk::count(&dir, limit)?;

    let folder = tempfile::Builder::new().prefix("tidelog-file-manager-").tempdir()?;
    let outcome = follow(args, &dir, limit, expected, folder.path()).await;
    let equal = outcome.as_ref().is_ok_and(|report| report.differences().is_empty());
    // A difference is worth a look, so the databases stay then too.
    if args.keep || (outcome.is_ok() && !equal) {
        eprintln!("The databases are in {}", folder.keep().display());
    }
    let report = outcome?;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{:#}", report.json())?
    } else {
        write!(out, "{report}")?
    }
    Ok(equal)
}

/// Indexes, edits and waits with three devices whose databases are in `folder`, and reports on them.
async fn follow(
    args: &Args,
    dir: &Path,
    limit: u64,
    expected: u64,
    folder: &Path,
) -> Result<Report, Box<dyn Error + Send + Sync>> {
    let bars = Bars::new();
    let mut phases = Phases::new();
    let mut ring = Ring::start(folder, args.capture).await?;
    phases.end("start");

    let watching = ring.watch(&bars);
    let options = IndexOptions {
        device_name: "leader".to_owned(),
        limit,
        hash_limit: args.hash_limit,
        writes: args.capture.writes(),
        ..IndexOptions::default()
    };
    let indexing = bars.add("indexing", expected);
    let db = &ring.leader.db;
    let indexed = index::index(db, dir, &options, |saved| indexing.set_position(saved)).await?;
    bars.end(&indexing, &format!("{} entries", indexed.entries));
    phases.end("indexing");

    let edited = edit::edit(db, indexed.location, args.capture.writes()).await?;
    bars.say(&format!(
        "edits: {} tagged, {} annotated, {} renamed, {} moved, {} deleted",
        edited.tagged, edited.annotated, edited.renamed, edited.moved, edited.deleted
    ));
    phases.end("edits");

    let level = ring.level().await;
    watching.end();
    let top = level?;
    bars.say(&format!("level at entry {top}"));
    phases.end("level");

    bars.say("both followers go offline; all three edit");
    let reunion = apart::apart(&mut ring, indexed.location).await?;
    bars.say("both followers are back, and all are level");
    phases.end("apart");

    bars.say("the lead goes from one to the other");
    let succession = leading::lead(&mut ring).await?;
    phases.end("leading");

    let closed = ring.shutdown().await?;
    phases.end("shutdown");
    let mut report = Report {
        directory: dir.display().to_string(),
        capture: args.capture.name().to_owned(),
        limited: indexed.limited.then_some(limit),
        skipped: indexed.skipped,
        skipped_named: indexed.skipped_named,
        reunion: Some(reunion),
        succession: Some(succession),
        ..Report::default()
    };
    for (name, path, bytes_sent) in closed {
        report.devices.push(examine(name, &path, bytes_sent)?);
    }
    phases.end("digests");
    report.phases = phases.ended;
    Ok(report)
}

/// Reads a closed database, by other code than wrote it.
fn examine(name: String, path: &Path, bytes_sent: u64) -> Result<DeviceReport, digest::DigestError> {
    let log_entries = digest::log_entries(path)?;
    Ok(DeviceReport { name, tables: digest::digest(path)?, log_entries, bytes_sent })
}

/// Seconds per phase.
struct Phases {
    began: Instant,
    ended: Vec<(&'static str, f64)>,
}

impl Phases {
    fn new() -> Self {
        Self { began: Instant::now(), ended: Vec::new() }
    }

    fn end(&mut self, name: &'static str) {
        self.ended.push((name, self.began.elapsed().as_secs_f64()));
        self.began = Instant::now();
    }
}

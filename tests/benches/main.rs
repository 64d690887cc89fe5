//! What tidelog costs and how fast it is, each measure beside its own baseline.
//!
//! `cargo bench -p tidelog-tests` runs all and prints one table; `-- --only NAME` those whose name contains NAME.
//! A measure and its baseline take turns, several rounds long, and the medians count: figures of a busy machine are
//! worth little alone and something in proportion. "In proportion" is said where a bar grows and shrinks with the
//! speed of raw prepared inserts here, measured in the same run, over [`raw::REFERENCE`].
//!
//! A missed bar is shown and is no failure, unless `--check` asks for that: on another machine it may mean the machine.

mod apply;
mod args;
mod backlog;
mod build;
mod capture;
mod child;
mod database;
mod devices;
mod entry;
mod integer_keys;
mod latency;
mod leadership;
mod memory;
mod offline;
mod pending;
mod process;
mod push;
mod raw;
mod report;
mod resolver;
mod rounds;
mod writer;

use std::process::ExitCode;

use crate::{args::Command, child::Child, report::Row};

/// Anything that keeps a measure from being taken.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Threads of the runtime that carries the node, its peers and the writers.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let command = match args::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("the runtime cannot be started: {error}");
                return ExitCode::from(2);
            }
        };
    let done = match command {
        Command::Help => {
            print!("{}", args::HELP);
            Ok(true)
        }
        Command::List => {
            GROUPS.iter().flat_map(|group| group.names).for_each(|name| println!("{name}"));
            Ok(true)
        }
        Command::Child(Child::Backlog(child)) => runtime.block_on(memory::child(child)).map(|()| true),
        Command::Child(Child::Rejoin(child)) => runtime.block_on(leadership::child(child)).map(|()| true),
        Command::Child(Child::Pending(child)) => runtime.block_on(pending::child(child)).map(|()| true),
        Command::Run(options) => runtime.block_on(run(options)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Measures that are taken together, because they share the work.
struct Group {
    names: &'static [&'static str],
    run: for<'o> fn(&'o args::Options) -> report::Measuring<'o>,
}

const GROUPS: &[Group] = &[
    Group { names: capture::NAMES, run: |options| Box::pin(capture::run(options)) },
    Group { names: apply::NAMES, run: |options| Box::pin(apply::run(options)) },
    Group { names: backlog::NAMES, run: |options| Box::pin(backlog::run(options)) },
    Group { names: writer::NAMES, run: |options| Box::pin(writer::run(options)) },
    Group { names: latency::NAMES, run: |options| Box::pin(latency::run(options)) },
    Group { names: push::NAMES, run: |options| Box::pin(push::run(options)) },
    Group { names: offline::NAMES, run: |options| Box::pin(offline::run(options)) },
    Group { names: pending::NAMES, run: |options| Box::pin(pending::run(options)) },
    Group { names: resolver::NAMES, run: |options| Box::pin(resolver::run(options)) },
    Group { names: memory::NAMES, run: |options| Box::pin(memory::run(options)) },
    Group { names: leadership::NAMES, run: |options| Box::pin(leadership::run(options)) },
    Group { names: integer_keys::NAMES, run: |options| Box::pin(integer_keys::run(options)) },
    Group { names: build::NAMES, run: |options| Box::pin(build::run(options)) },
];

/// Runs what was asked for. Whether every bar holds, as far as that is to be checked.
async fn run(options: args::Options) -> Result<bool, Failure> {
    if !GROUPS.iter().flat_map(|group| group.names).any(|name| options.wants(name)) {
        return Err(format!(
            "no measure has `{}` in its name; --list shows them all",
            options.only.as_deref().unwrap_or_default()
        )
        .into());
    }
    let mut rows: Vec<Row> = Vec::new();
    let mut failed = false;
    for group in GROUPS.iter().filter(|group| group.names.iter().any(|name| options.wants(name))) {
        match (group.run)(&options).await {
            Ok(taken) => rows.extend(taken.into_iter().filter(|row| options.wants(&row.measure))),
            // The others are worth having all the same.
            Err(error) => {
                failed = true;
                eprintln!("error: {} could not be measured: {error}", group.names.join(", "));
                let missing = group.names.iter().filter(|name| options.wants(name));
                rows.extend(missing.map(|name| Row::missing(name, "failed")));
            }
        }
    }
    report::print(&rows);
    let path = options.json_path()?;
    report::write_json(&rows, &path)?;
    eprintln!("written to {}", path.display());
    if failed {
        return Err("not everything could be measured".into());
    }
    Ok(!options.check || rows.iter().all(|row| row.holds != Some(false)))
}

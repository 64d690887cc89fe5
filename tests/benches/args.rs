//! The bench's command line, read by hand: a wrong one is an error that names it, before anything has run.

use std::path::PathBuf;

use crate::{Failure, child::Child};

pub(crate) const HELP: &str = "\
Measures tidelog against its baselines.

Usage: cargo bench -p tidelog-tests [-- OPTIONS]

  --only NAME   only measures whose name contains NAME (see --list)
  --list        print the names of all measures
  --rows N      rows of a backlog; the other measures shrink or grow with it (default: 200000)
  --json FILE   where to write the figures as JSON (default: bench.json in Cargo's target directory)
  --check       exit with 1 if a bar is missed
  --help        print this
";

/// Rows of a backlog at full size: what the bars are about.
const FULL: usize = 200_000;

pub(crate) enum Command {
    Help,
    List,
    Run(Options),
    /// A process whose memory is measured; started by the bench itself.
    Child(Child),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) only: Option<String>,
    /// Rows of a backlog.
    pub(crate) rows: usize,
    pub(crate) check: bool,
    json: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { only: None, rows: FULL, check: false, json: None }
    }
}

impl Options {
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only))
    }

    /// A number that is `full` at full size, scaled with the rows that were asked for.
    pub(crate) fn scaled(&self, full: usize) -> usize {
        (full * self.rows / FULL).max(full.min(100))
    }

    pub(crate) fn json_path(&self) -> Result<PathBuf, Failure> {
        match &self.json {
            Some(path) => Ok(path.clone()),
            None => Ok(target_dir()?.join("bench.json")),
        }
    }
}

/// Cargo's target directory: the bench itself is in it, under `PROFILE/deps`.
pub(crate) fn target_dir() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe()?;
    let dir =
        program.ancestors().nth(3).ok_or("the bench is not where Cargo puts it: name a file with --json")?;
    Ok(dir.to_owned())
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let wrong = |what: String| format!("{what}; nothing was run. See --help");
    let mut options = Options::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let mut value =
            || inline.clone().or_else(|| args.next()).ok_or_else(|| wrong(format!("{name} needs a value")));
        match name {
            "--only" => options.only = Some(value()?),
            "--json" => options.json = Some(value()?.into()),
            "--rows" => {
                let text = value()?;
                options.rows =
                    text.parse().ok().filter(|rows| *rows > 0).ok_or_else(|| {
                        wrong(format!("--rows takes a whole number from 1 on, not `{text}`"))
                    })?;
            }
            _ if inline.is_some() => {
                return Err(wrong(format!("`{arg}` is not an option that takes a value")));
            }
            "--help" | "-h" => return Ok(Command::Help),
            "--list" => return Ok(Command::List),
            "--check" => options.check = true,
            // Cargo says that it benches.
            "--bench" => {}
            "--child" => return Child::parse(args).map(Command::Child).map_err(wrong),
            _ => return Err(wrong(format!("`{arg}` is not an option"))),
        }
    }
    Ok(Command::Run(options))
}

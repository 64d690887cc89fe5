//! The example's command line, read by hand: seven flags do not earn a dependency.
//!
//! A wrong one is an error that names it and says what would be right; nothing has been done then.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::PathBuf,
};

use super::writes::Writes;

/// Printed by `--help`.
pub const HELP: &str = "\
Indexes a directory on one device and shows that two others follow.

Usage: file_manager [DIR] [OPTIONS]
       file_manager --make-fixture DIR

  DIR                     what to index; without it, one that every machine has, up to 20000 entries

  --keep                  keep the three databases, and print where they are
  --capture WHO           who records changes: `trigger` (default) or `hooks`, which sees what goes
                          through an ActiveModel, so that everything is then written row by row
  --limit N               end the walk after N entries (default: 200000 with a DIR)
  --hash-limit BYTES      hash the contents of files up to this size (default: 1048576)
  --json                  print the closing report as JSON
  --make-fixture DIR      only write a directory to try this on: some 600 files, a symlink loop, an
                          unreadable file, a name that is not Unicode
  --help                  print this

Exit code: 0 if all devices end equal, 1 if not, 2 if it could not be tried.
";

/// Entries after which the walk ends if neither DIR nor a limit is given: a matter of seconds.
pub const DEFAULT_DIR_LIMIT: u64 = 20_000;

/// What the example is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print [`HELP`].
    Help,
    /// Write a directory to try the example on.
    MakeFixture(PathBuf),
    /// The example itself.
    Run(Args),
}

/// Settings of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// What to index; none: [`default_dir`].
    pub dir: Option<PathBuf>,
    /// Keep the databases.
    pub keep: bool,
    /// Who records changes.
    pub capture: Capture,
    /// Entries after which the walk ends; none: the default.
    pub limit: Option<u64>,
    /// Largest file whose content is hashed, in bytes.
    pub hash_limit: u64,
    /// Print JSON.
    pub json: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            dir: None,
            keep: false,
            capture: Capture::Trigger,
            limit: None,
            hash_limit: 1 << 20,
            json: false,
        }
    }
}

/// Who records changes in the example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Generated triggers.
    Trigger,
    /// SeaORM's save and delete hooks.
    Hooks,
}

impl Capture {
    /// How an application must write so that its recorder sees everything.
    pub fn writes(self) -> Writes {
        match self {
            Self::Trigger => Writes::Bulk,
            Self::Hooks => Writes::OneByOne,
        }
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Hooks => "hooks",
        }
    }
}

/// A command line that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; nothing was done. See --help")]
pub struct UsageError {
    what: String,
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// [`UsageError`] for an unknown flag, a missing or bad value, or a second DIR.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut run = Args::default();
    let mut args = args.into_iter();
    let mut only_dirs = false;
    while let Some(arg) = args.next() {
        let text = arg.to_str().filter(|text| !only_dirs && text.starts_with('-')).map(str::to_owned);
        let Some(flag) = text else {
            take_dir(&mut run, arg)?;
            continue;
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (flag.as_str(), None),
        };
        let mut value = || inline.clone().or_else(|| args.next()).ok_or_else(|| needs_value(name));
        match name {
            "--capture" => run.capture = capture(&value()?)?,
            "--limit" => run.limit = Some(number(name, &value()?, 1)?),
            "--hash-limit" => run.hash_limit = number(name, &value()?, 0)?,
            "--make-fixture" => return Ok(Command::MakeFixture(value()?.into())),
            _ if inline.is_some() => {
                return Err(usage(format!("`{flag}` is not an option that takes a value")));
            }
            "--help" | "-h" => return Ok(Command::Help),
            "--keep" => run.keep = true,
            "--json" => run.json = true,
            "--" => only_dirs = true,
            _ => return Err(usage(format!("`{flag}` is not an option"))),
        }
    }
    Ok(Command::Run(run))
}

fn take_dir(run: &mut Args, dir: OsString) -> Result<(), UsageError> {
    if dir.is_empty() {
        return Err(usage("DIR is empty".to_owned()));
    }
    match run.dir.replace(dir.into()) {
        None => Ok(()),
        Some(first) => Err(usage(format!("one DIR at a time, and there is `{}` already", first.display()))),
    }
}

fn capture(value: &OsStr) -> Result<Capture, UsageError> {
    match value.to_str() {
        Some("trigger") => Ok(Capture::Trigger),
        Some("hooks") => Ok(Capture::Hooks),
        _ => Err(usage(format!("--capture is `trigger` or `hooks`, not `{}`", value.display()))),
    }
}

fn number(name: &str, value: &OsStr, least: u64) -> Result<u64, UsageError> {
    value.to_str().and_then(|text| text.parse().ok()).filter(|number| *number >= least).ok_or_else(|| {
        usage(format!("{name} takes a whole number from {least} on, not `{}`", value.display()))
    })
}

fn needs_value(name: &str) -> UsageError {
    usage(format!("{name} needs a value after it"))
}

fn usage(what: String) -> UsageError {
    UsageError { what }
}

/// A directory that every machine has: shared files of the system, or Cargo's own, or the temporary one.
pub fn default_dir() -> PathBuf {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_in_home = std::env::home_dir().map(|home| home.join(".cargo"));
    [Some(PathBuf::from("/usr/share")), cargo_home, cargo_in_home]
        .into_iter()
        .flatten()
        .find(|dir| fs::read_dir(dir).is_ok_and(|mut names| names.next().is_some()))
        .unwrap_or_else(std::env::temp_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<Command, String> {
        parse(line.iter().map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_and_a_directory_come_in_any_order() {
        assert_eq!(read(&[]), Ok(Command::Run(Args::default())));
        let expected = Args {
            dir: Some("music".into()),
            keep: true,
            capture: Capture::Hooks,
            limit: Some(7),
            hash_limit: 0,
            json: true,
        };
        for line in [
            ["--keep", "--capture", "hooks", "music", "--limit=7", "--json", "--hash-limit", "0"],
            ["--limit", "7", "--hash-limit=0", "--json", "--capture=hooks", "--keep", "--", "music"],
        ] {
            assert_eq!(read(&line), Ok(Command::Run(expected.clone())), "{line:?}");
        }
        assert_eq!(read(&["--make-fixture", "new"]), Ok(Command::MakeFixture("new".into())));
        assert_eq!(read(&["music", "--help"]), Ok(Command::Help));
        let dashed = Args { dir: Some("--keep".into()), ..Args::default() };
        assert_eq!(read(&["--", "--keep"]), Ok(Command::Run(dashed)));
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        for (line, what) in [
            (&["--kepp"][..], "`--kepp` is not an option"),
            (&["--capture", "both"], "--capture is `trigger` or `hooks`, not `both`"),
            (&["--capture"], "--capture needs a value after it"),
            (&["--limit", "-3"], "--limit takes a whole number from 1 on, not `-3`"),
            (&["--limit=0"], "--limit takes a whole number from 1 on, not `0`"),
            (&["--json=yes"], "`--json=yes` is not an option that takes a value"),
            (&["a", "b"], "one DIR at a time, and there is `a` already"),
            (&[""], "DIR is empty"),
        ] {
            assert_eq!(read(line), Err(format!("{what}; nothing was done. See --help")), "{line:?}");
        }
    }

    #[test]
    fn the_default_directory_is_there() {
        assert!(default_dir().is_dir());
    }
}

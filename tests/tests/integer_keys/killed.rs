//! Processes that are killed while they migrate.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use tidelog::migration::integer_keys_to_uuids;
use tidelog_tests::counted;

use crate::{Place, keys};

/// A process that migrates: this test binary once more, with only [`child`] to run. It is killed with the value.
pub(crate) struct Child(std::process::Child, Option<BufReader<ChildStdout>>);

impl Child {
    /// Migrates one table, or where it is empty a database of the trial. Stops before a step, or goes on to the end.
    pub(crate) fn start(file: &Path, table: &str, step: Option<u64>) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::child", "--nocapture"])
            .env("TIDELOG_TEST_FILE", file)
            .env("TIDELOG_TEST_TABLE", table)
            .env("TIDELOG_TEST_STEP", step.unwrap_or(u64::MAX).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap(), None)
    }

    /// Waits until it says that it is where it stops.
    pub(crate) fn reached(mut self) -> Self {
        let said = self.1.insert(BufReader::new(self.0.stdout.take().unwrap()));
        let is_there = said.lines().map_while(Result::ok).any(|line| line.ends_with("is there"));
        assert!(is_there, "the child ended without having been where it was to stop");
        self
    }

    /// Waits for its end.
    pub(crate) fn succeeds(mut self) -> bool {
        // Waiting closes it otherwise, and the child would take its parent for gone.
        let _stdin = self.0.stdin.take();
        self.0.wait().unwrap().success()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a scenario of its own: the process that is killed.
#[test]
fn child() {
    let Some(file) = std::env::var_os("TIDELOG_TEST_FILE") else { return };
    let stop: u64 = std::env::var("TIDELOG_TEST_STEP").unwrap().parse().unwrap();
    // A child whose parent is gone ends.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(1);
    });
    let step = AtomicU64::new(0);
    let asked = match std::env::var("TIDELOG_TEST_TABLE").unwrap().as_str() {
        "" => counted::keys(),
        table => keys(&[table]),
    };
    let keys = asked.progress(move |_| {
        if step.fetch_add(1, Ordering::Relaxed) == stop {
            println!("is there");
            std::io::stdout().flush().unwrap();
            loop {
                std::thread::park();
            }
        }
    });
    integer_keys_to_uuids(PathBuf::from(file), &keys).unwrap();
}

/// More than the migration's page cache holds, so that the change is in the file, behind a journal, before the commit.
const LARGE: &str =
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, after_id INTEGER REFERENCES notes (id), text TEXT);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
    INSERT INTO notes SELECT i, nullif(i - 1, 0), hex(zeroblob(300)) || i FROM n;";

#[test]
fn what_a_killed_process_wrote_before_its_commit_is_rolled_back_by_sqlite() {
    for journal in ["DELETE", "WAL"] {
        let place = Place::with(&format!("PRAGMA journal_mode = {journal}; {LARGE}"));
        let bytes = place.bytes();
        Child::start(&place.file, "notes", Some(4)).reached().kill();
        let written = if journal == "WAL" { place.beside("-wal") } else { place.beside("-journal") };
        assert!(written.metadata().unwrap().len() > 0, "{journal}: the change was on its way to the disk");
        assert!(journal == "WAL" || place.bytes().len() > bytes.len(), "{journal}: and in the file");
        recover(&place);
        assert!(place.bytes() == bytes, "{journal}: the file has changed");
        place.migrate(&keys(&["notes"]));
        assert_eq!(
            place.one::<i64>("SELECT count(*) FROM notes n JOIN notes b ON b.id = n.after_id"),
            39_999
        );
    }
}

/// Less than the cache holds: all of it is written during the commit.
const NOTES_IN_CACHE: i64 = 12_000;

/// How far a process has come, seen from outside.
struct Sign {
    name: &'static str,
    /// Of the place, and of the file's length before.
    is_seen: fn(&Place, u64) -> bool,
}

const SIGNS: [Sign; 5] = [
    Sign { name: "it copies", is_seen: |place, _| place.beside(".before-uuid-keys.unfinished").exists() },
    Sign { name: "it has written to a journal", is_seen: |place, _| place.journal() > 0 },
    Sign { name: "the backup is in its place", is_seen: |place, _| place.backup().exists() },
    Sign {
        name: "the file or its log grows",
        is_seen: |place, before| length(&place.file) > before || length(&place.beside("-wal")) > before / 2,
    },
    Sign { name: "the journal is gone", is_seen: |place, _| place.backup().exists() && place.journal() == 0 },
];

impl Place {
    /// Bytes in the rollback journal or the write-ahead log.
    fn journal(&self) -> u64 {
        length(&self.beside("-journal")).max(length(&self.beside("-wal")))
    }
}

fn length(file: &Path) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.len())
}

#[test]
fn killed_at_any_moment_a_database_is_the_old_one_or_the_new_one() {
    for Sign { name: sign, is_seen } in SIGNS {
        for journal in ["DELETE", "WAL"] {
            let large = LARGE.replace("40000", &NOTES_IN_CACHE.to_string());
            let place = Place::with(&format!("PRAGMA journal_mode = {journal}; {large}"));
            let bytes = place.bytes();
            let mut child = Child::start(&place.file, "notes", None);
            while !is_seen(&place, bytes.len() as u64) && child.0.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
            child.kill();
            recover(&place);
            let is_old = place.bytes() == bytes;
            assert!(
                is_old || fs::read(place.backup()).unwrap() == bytes,
                "{journal}, {sign}: there is a backup"
            );
            if is_old {
                place.migrate(&keys(&["notes"]));
            }
            let after = "SELECT count(*) FROM notes n JOIN notes b ON b.id = n.after_id AND length(n.id) = 16
                WHERE n.text = hex(zeroblob(300)) || n.rowid AND b.rowid = n.rowid - 1";
            assert_eq!(place.one::<i64>(after), NOTES_IN_CACHE - 1, "{journal}, {sign}");
        }
    }
}

/// Lets SQLite roll back what a killed process left.
pub(crate) fn recover(place: &Place) {
    let conn = place.open();
    assert_eq!(conn.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    conn.close().unwrap();
}

//! The baseline of everything that writes many rows: prepared inserts with rusqlite, values ready at hand. Page cache and
//! checkpoints are SQLite's defaults.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{Connection, params_from_iter, types::Value};

use crate::{
    Failure, database,
    entry::{COLUMNS, TABLE},
};

/// Raw inserts per second where the bars for whole backlogs were set.
pub(crate) const REFERENCE: f64 = 350_000.0;

/// Rows as they are stored.
pub(crate) struct Rows(Vec<Vec<Value>>);

impl Rows {
    /// All rows of a database, in the order in which they were written.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let source = database::observer(path)?;
        let mut statement = source.prepare("SELECT * FROM entries ORDER BY rowid")?;
        let rows = statement.query_map([], |row| (0..COLUMNS).map(|i| row.get(i)).collect())?;
        Ok(Self(rows.collect::<Result<_, _>>()?))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Inserts all into a new database, so many to a transaction. How long that took.
    pub(crate) fn insert(&self, path: &Path, transaction: usize) -> Result<Duration, Failure> {
        database::remove(path)?;
        let db = Connection::open(path)?;
        db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        db.execute_batch(
            "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY",
        )?;
        db.execute_batch(TABLE)?;
        let places = vec!["?"; COLUMNS].join(", ");
        let mut insert = db.prepare(&format!("INSERT INTO entries VALUES ({places})"))?;
        let began = Instant::now();
        for rows in self.0.chunks(transaction.max(1)) {
            db.execute_batch("BEGIN IMMEDIATE")?;
            for row in rows {
                insert.execute(params_from_iter(row))?;
            }
            db.execute_batch("COMMIT")?;
        }
        Ok(began.elapsed())
    }

    /// Rows per second, all in one transaction: the fastest that this machine does.
    pub(crate) fn speed(&self, path: &Path) -> Result<f64, Failure> {
        Ok(self.len() as f64 / self.insert(path, self.len())?.as_secs_f64())
    }
}

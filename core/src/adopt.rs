//! Adopt: rows that were in a table before it became syncable are captured, and travel like any other change.
//!
//! When a library is first opened with a model, `capture.rs` notes in `sync_adoption` that the model's table holds rows
//! which no trigger saw, and whether the log knows records of the model already. Both are settled before a library
//! starts, so that a started one has nothing to lose:
//!
//! - [`step`] puts the rows into the outbox, a batch at a time in the order of their keys, each batch in one transaction
//!   with the position that it reaches. What the application writes meanwhile is captured behind it, never before an
//!   older image. The seal leaves out what the log or pending says by then (`seal.rs`, kind 7).
//! - [`meet_log`], at the start, brings table and log together where other devices synced the model earlier: rows that are
//!   only in the log come into the table; records that both have and that differ become changes whose author has seen
//!   nothing of the log, so that the model's policy decides.
//!
//! A leader checks what is pushed to it reference by reference. So models are adopted parents first, and so are the rows
//! of a table that refers to itself. References in a circle between tables stay together only within a batch.

use std::{future::IntoFuture, pin::Pin, time::Duration};

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{
    capture::quote,
    error::Error,
    library::Library,
    row_text,
    store::{Model, Tx},
};

mod meet;
mod rows;

pub(crate) use meet::meet_log;
use rows::{Rows, foreign_keys};

/// Rows of the first batch, before it is known how long they take.
const BATCH_FIRST: u64 = 16;
/// Rows of a batch at most: two of them are one seal.
const BATCH_MAX: u64 = 2048;
/// How long a batch should hold the database's one writer. The next is made smaller or larger by how long this one did.
const HOLD: Duration = Duration::from_millis(20);

/// `sync_outbox.kind` of an adopted row.
pub(crate) const KIND_ADOPT: i64 = 7;

/// What an adopted row ranks by. When it was written, nobody knows: it gives way to everything that was captured as it
/// was written, whose stamps are some 2^57, and to what was adopted before it. `at` is when it was adopted, ms since 1970.
pub(crate) fn rank(at: i64) -> u64 {
    const LATEST: u64 = 1 << 42;
    LATEST.saturating_sub(at.max(0).unsigned_abs())
}

/// How far the adoption of one model is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdoptProgress {
    /// Sync id of the model.
    pub model: &'static str,
    /// Rows of its table that are done, those of earlier calls among them.
    pub done: u64,
    /// Rows that the table held when the model was first opened; no less than `done`.
    pub total: u64,
}

/// What [`Library::adopt`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adopted {
    /// Models whose adoption this call completed; 0 if all were adopted before.
    pub models: u64,
    /// Rows that this call captured.
    pub rows: u64,
}

/// A call of [`Library::adopt`]: `.await` it, with [`progress`](Self::progress) if somebody watches. Dropped while it runs,
/// it stops behind a batch, and the next call goes on there.
#[must_use = "nothing is adopted until it is awaited"]
pub struct Adopt {
    library: Library,
    tell: Box<dyn FnMut(AdoptProgress) + Send>,
}

impl Adopt {
    pub(crate) fn new(library: Library) -> Self {
        Self { library, tell: Box::new(|_| ()) }
    }

    /// Is told after every batch how far the adoption is. It is called on the task that awaits: let it be quick.
    pub fn progress(mut self, tell: impl FnMut(AdoptProgress) + Send + 'static) -> Self {
        self.tell = Box::new(tell);
        self
    }

    async fn run(mut self) -> Result<Adopted, Error> {
        let mut adopted = Adopted::default();
        let mut rows = BATCH_FIRST;
        loop {
            let inner = &self.library.inner;
            let (batch, left, held) = inner
                .engine
                .step(move |driver| {
                    let began = std::time::Instant::now();
                    let batch = driver.transaction(|tx| step(tx, rows))?;
                    let held = began.elapsed();
                    Ok((batch, unadopted(driver.store.connection())?, held))
                })
                .await?;
            inner.status.send_modify(|status| status.unadopted = left);
            let Some(batch) = batch else { return Ok(adopted) };
            adopted.rows += batch.rows;
            adopted.models += u64::from(batch.is_last);
            (self.tell)(batch.progress);
            rows = next_size(rows, held);
        }
    }
}

impl IntoFuture for Adopt {
    type Output = Result<Adopted, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

fn next_size(rows: u64, held: Duration) -> u64 {
    if held > HOLD {
        (rows / 2).max(1)
    } else if held < HOLD / 3 {
        (rows * 2).min(BATCH_MAX)
    } else {
        rows
    }
}

/// Notes, when a library is opened with a model that it was not open with before, what is to be settled. Runs in the
/// transaction that installs the model's triggers, so that every row is either found here or captured.
pub(crate) fn note_new_model(conn: &Connection, model: &str, table: &str) -> Result<(), Error> {
    let rows: u64 =
        conn.query_row(&format!("SELECT count(*) FROM {}", quote(table)), [], |row| row.get(0))?;
    let logged = conn
        .prepare(
            "SELECT 1 FROM sync_entry WHERE model = (SELECT id FROM sync_model WHERE name = ?1)
                AND record IS NOT NULL LIMIT 1",
        )?
        .exists([model])?;
    if rows > 0 || logged {
        conn.execute(
            "INSERT OR REPLACE INTO sync_adoption (model, total, adopted, logged) VALUES (?1, ?2, ?3, ?4)",
            params![model, rows, rows == 0, logged],
        )?;
    }
    Ok(())
}

/// Rows that are not adopted yet, of all models that are open now.
pub(crate) fn unadopted(conn: &Connection) -> Result<u64, Error> {
    let sql = format!("SELECT coalesce(sum(max(total - done, 1)), 0) FROM ({DUE})");
    Ok(conn.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)
}

/// Models that are open now and have rows to adopt.
const DUE: &str = "SELECT a.model, a.after, a.total, a.done, s.id AS shape
    FROM sync_adoption a JOIN sync_shape s ON s.model = a.model AND s.current = 1 WHERE a.adopted = 0";

struct Due {
    after: Option<String>,
    total: u64,
    done: u64,
    shape: i64,
}

fn due(conn: &Connection, model: &Model) -> Result<Option<Due>, Error> {
    let read = |row: &Row<'_>| {
        Ok(Due { after: row.get(1)?, total: row.get(2)?, done: row.get(3)?, shape: row.get(4)? })
    };
    Ok(conn
        .prepare_cached(&format!("{DUE} AND a.model = ?1"))?
        .query_row([model.descriptor.id], read)
        .optional()?)
}

/// Refuses a start that would leave rows behind; what was to be adopted and is gone by now is forgotten.
pub(crate) fn refuse_unadopted(tx: &mut Tx<'_>) -> Result<(), Error> {
    for model in tx.models {
        let Some(due) = due(tx.conn, model)? else { continue };
        let table = quote(&model.descriptor.table);
        if tx.conn.prepare(&format!("SELECT 1 FROM {table} LIMIT 1"))?.exists([])? {
            return Err(Error::NotAdopted {
                model: model.descriptor.id.to_owned(),
                table: model.descriptor.table.clone(),
                rows: due.total.saturating_sub(due.done).max(1),
                library: tx.replica()?.library,
            });
        }
        set_adopted(tx.conn, model, due.done)?;
    }
    Ok(())
}

/// What one batch did.
struct Stepped {
    progress: AdoptProgress,
    rows: u64,
    /// All rows of the model are captured.
    is_last: bool,
}

/// Captures the next rows, at most this many, of the first model that has any to adopt; `None` if none has.
fn step(tx: &mut Tx<'_>, limit: u64) -> Result<Option<Stepped>, Error> {
    for model in parents_first(tx)? {
        let Some(due) = due(tx.conn, model)? else { continue };
        let rows = Rows::of(tx.conn, model)?;
        if due.after.is_none() {
            rows.refuse_unnamed(tx.conn, model)?;
        }
        let after = due.after.as_deref().map(|after| rows.read_key(after)).transpose()?;
        let upto = rows.key_at(tx.conn, after.as_deref(), limit)?;
        let count = rows.capture(tx.conn, due.shape, after.as_deref(), upto.as_deref())?;
        // Whole transactions stand before it, and a seal need not take the next batch with this one.
        tx.conn.prepare_cached("INSERT INTO sync_outbox (kind) VALUES (0)")?.execute([])?;
        let done = due.done + count;
        match &upto {
            Some(key) => {
                let mut after = String::new();
                row_text::write(key.iter().map(|value| (value, false)), &mut after);
                tx.conn
                    .prepare_cached("UPDATE sync_adoption SET after = ?2, done = ?3 WHERE model = ?1")?
                    .execute(params![model.descriptor.id, after, done])?;
            }
            None => set_adopted(tx.conn, model, done)?,
        }
        let progress = AdoptProgress { model: model.descriptor.id, done, total: due.total.max(done) };
        return Ok(Some(Stepped { progress, rows: count, is_last: upto.is_none() }));
    }
    Ok(None)
}

fn set_adopted(conn: &Connection, model: &Model, done: u64) -> Result<(), Error> {
    conn.execute(
        "UPDATE sync_adoption SET adopted = 1, done = ?2 WHERE model = ?1",
        params![model.descriptor.id, done],
    )?;
    conn.execute("DELETE FROM sync_adoption WHERE model = ?1 AND NOT logged", [model.descriptor.id])?;
    Ok(())
}

/// The models in the order in which their rows refer to each other, and as `after` says; circles are cut somewhere.
fn parents_first<'m>(tx: &Tx<'m>) -> Result<Vec<&'m Model>, Error> {
    let mut parents = Vec::new();
    for model in tx.models {
        let tables: Vec<String> = foreign_keys(tx.conn, &model.descriptor.table)?
            .into_iter()
            .map(|foreign| foreign.table)
            .collect();
        let is_parent = |other: &Model| {
            model.descriptor.options.after.contains(&other.descriptor.id)
                || tables.iter().any(|table| table.eq_ignore_ascii_case(&other.descriptor.table))
        };
        parents.push((0..tx.models.len()).filter(|&i| is_parent(&tx.models[i])).collect::<Vec<_>>());
    }
    let mut order = Vec::new();
    let mut entered = vec![false; tx.models.len()];
    fn enter(i: usize, parents: &[Vec<usize>], entered: &mut [bool], order: &mut Vec<usize>) {
        if !std::mem::replace(&mut entered[i], true) {
            for &parent in &parents[i] {
                enter(parent, parents, entered, order);
            }
            order.push(i);
        }
    }
    for i in 0..tx.models.len() {
        enter(i, &parents, &mut entered, &mut order);
    }
    Ok(order.into_iter().map(|i| &tx.models[i]).collect())
}

//! The application's connection: SeaORM as before, with every write in its turn.
//!
//! A [`Connection`] implements `ConnectionTrait`, `TransactionTrait` and `StreamTrait`, so that it goes
//! wherever a SeaORM connection goes. It adds what a followed database needs: settings on every pooled
//! connection, transactions that begin IMMEDIATE (a deferred one that reads and then writes fails under
//! contention), one queue of writers ([`WriteGate`]), and a word to the sealer after each commit. Statements
//! that only read go past all that.
//!
//! Capture does not depend on any of it: the triggers record what a plain connection writes too, the sealer
//! then finds it a moment later. [`Connection::plain`] is at hand for what accepts nothing else.

mod cut;
mod direct;
mod force;
mod open;
mod scope;
mod statement;
mod stream;
mod transaction;

use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, IsolationLevel,
    QueryResult, SqliteTransactionMode, Statement, StreamTrait, TransactionError, TransactionOptions,
    TransactionTrait,
};

use self::{direct::Direct, statement::Kind};
pub use self::{
    force::force_record,
    open::{ConnectError, ConnectOptions, Durability},
    stream::RowStream,
    transaction::Transaction,
};
use crate::gate::{Guard, WriteGate};

/// Opens a SQLite database with tidelog's settings: `sqlite://path/to/file.db?mode=rwc`.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(url: &str) -> Result<Connection, ConnectError> {
    open::open(ConnectOptions::new(url)).await
}

/// [`connect`] with settings of one's own.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_with(options: ConnectOptions) -> Result<Connection, ConnectError> {
    open::open(options).await
}

/// A SeaORM connection whose writes tidelog can follow. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    /// Reads, and writes whose patience ran out; what the application sees as its plain connection.
    plain: DatabaseConnection,
    /// Writes that have a turn. The same as `plain` where the application's own pool is wrapped.
    writer: DatabaseConnection,
    /// Writes single statements that have a turn; none where the application's own pool is wrapped.
    direct: Option<Direct>,
    gate: Arc<WriteGate>,
    path: PathBuf,
    patience: Duration,
}

impl Connection {
    /// Takes over the pool of an application that connects by itself. Connections made before are closed,
    /// since they lack the settings; the pool's size and time limits stay as they are. Durability is `Normal`
    /// from then on.
    ///
    /// # Errors
    /// See [`ConnectError`]; [`InUse`](ConnectError::InUse) if connections made before do not come back
    /// within a second.
    pub async fn wrap(db: DatabaseConnection) -> Result<Self, ConnectError> {
        open::wrap(db).await
    }

    /// The SeaORM connection, for what accepts nothing else: migrations, `SchemaManager`, libraries. It has
    /// all settings; what it writes is captured, but does not queue at the gate, and its transactions begin
    /// deferred.
    pub fn plain(&self) -> &DatabaseConnection {
        &self.inner.plain
    }

    /// The database file, canonical.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Where the writers of this database queue.
    pub fn gate(&self) -> &Arc<WriteGate> {
        &self.inner.gate
    }

    /// Closes all pooled connections, of all clones, when their statements and transactions are done.
    ///
    /// # Errors
    /// What the driver says.
    pub async fn close(self) -> Result<(), DbErr> {
        if let Some(direct) = &self.inner.direct {
            direct.close().await?;
        }
        self.inner.plain.close_by_ref().await?;
        self.inner.writer.close_by_ref().await
    }

    /// Waits for a turn to write; without one, when patience ran out, the write goes its own way.
    async fn turn(&self) -> Turn<'_> {
        Turn { guard: self.inner.gate.acquire(self.inner.patience).await, connection: self }
    }

    /// What may run outside of a transaction, and how.
    fn admit(&self, sql: &str) -> Result<Kind, DbErr> {
        let kind = statement::kind(sql);
        if kind == Kind::TransactionControl {
            return Err(DbErr::Custom(format!(
                "`{}` was not run: on a pool, the statements behind it would run on other connections. \
                 Use `begin()` or `transaction(…)` of the connection",
                statement::shortened(sql)
            )));
        }
        Ok(kind)
    }

    async fn begin_in_turn(&self, options: TransactionOptions) -> Result<Transaction, DbErr> {
        // Isolation levels are not passed on: SQLite has one, the strictest, and SeaORM would only warn.
        let mut own = TransactionOptions::default();
        if options.access_mode == Some(AccessMode::ReadOnly) {
            own.sqlite_transaction_mode = Some(SqliteTransactionMode::Deferred);
            let inner = self.inner.plain.begin_with_options(own).await?;
            return Ok(Transaction::read_only(inner, self));
        }
        own.sqlite_transaction_mode = match options.sqlite_transaction_mode {
            Some(SqliteTransactionMode::Exclusive) => Some(SqliteTransactionMode::Exclusive),
            _ => Some(SqliteTransactionMode::Immediate),
        };
        let turn = self.turn().await;
        let inner = turn.database().begin_with_options(own).await?;
        Ok(Transaction::outermost(inner, self, turn.guard))
    }
}

/// A turn to write, or the decision to go on without one.
struct Turn<'a> {
    guard: Option<Guard>,
    connection: &'a Connection,
}

impl Turn<'_> {
    /// Where a transaction goes: only those who have a turn use the writing pool.
    fn database(&self) -> &DatabaseConnection {
        match self.guard {
            Some(_) => &self.connection.inner.writer,
            None => &self.connection.inner.plain,
        }
    }

    /// Where a single statement goes.
    fn direct(&self) -> Option<&Direct> {
        self.guard.as_ref().and(self.connection.inner.direct.as_ref())
    }

    async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self.direct() {
            Some(direct) => direct.execute(statement).await,
            None => self.database().execute_raw(statement).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match self.direct() {
            Some(direct) => direct.execute_unprepared(sql).await,
            None => self.database().execute_unprepared(sql).await,
        }
    }

    /// All rows, though one may be wanted: see [`Direct::query`].
    async fn query(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self.direct() {
            Some(direct) => direct.query(statement).await,
            None => self.database().query_all_raw(statement).await,
        }
    }
}

/// What follows a commit, in this order: a cut marker if one is due, the turn's end, the word to the sealer,
/// which then finds the gate free.
async fn committed(connection: &Connection, guard: Option<Guard>, rows: u64) {
    let inner = &*connection.inner;
    if guard.is_some() {
        cut::mark_if_due(inner, rows).await;
    }
    drop(guard);
    inner.gate.note_commit(rows);
}

/// Rows that a statement wrote, for the cuts. At least one: SQLite does not count what cascades and triggers
/// write.
fn rows_written(result: &ExecResult) -> u64 {
    result.rows_affected().max(1)
}

#[async_trait::async_trait]
impl ConnectionTrait for Connection {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Sqlite
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        statement::check_values(&statement)?;
        if self.admit(&statement.sql)? == Kind::Read {
            return self.inner.plain.execute_raw(statement).await;
        }
        let turn = self.turn().await;
        let result = turn.execute(statement).await?;
        committed(self, turn.guard, rows_written(&result)).await;
        Ok(result)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        if self.admit(sql)? == Kind::Read {
            return self.inner.plain.execute_unprepared(sql).await;
        }
        let turn = self.turn().await;
        let result = turn.execute_unprepared(sql).await?;
        committed(self, turn.guard, rows_written(&result)).await;
        Ok(result)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        statement::check_values(&statement)?;
        if self.admit(&statement.sql)? == Kind::Read {
            return self.inner.plain.query_one_raw(statement).await;
        }
        let turn = self.turn().await;
        let rows = turn.query(statement).await?;
        committed(self, turn.guard, rows.len().max(1) as u64).await;
        Ok(rows.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        statement::check_values(&statement)?;
        if self.admit(&statement.sql)? == Kind::Read {
            return self.inner.plain.query_all_raw(statement).await;
        }
        let turn = self.turn().await;
        let rows = turn.query(statement).await?;
        committed(self, turn.guard, rows.len().max(1) as u64).await;
        Ok(rows)
    }
}

impl StreamTrait for Connection {
    type Stream<'a> = RowStream<sea_orm::QueryStream>;

    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Sqlite
    }

    fn stream_raw<'a>(
        &'a self,
        statement: Statement,
    ) -> Pin<Box<dyn Future<Output = Result<Self::Stream<'a>, DbErr>> + 'a + Send>> {
        Box::pin(async move {
            statement::check_values(&statement)?;
            if self.admit(&statement.sql)? == Kind::Read {
                return Ok(RowStream::reading(self.inner.plain.stream_raw(statement).await?));
            }
            let turn = self.turn().await;
            let rows = turn.database().stream_raw(statement).await?;
            Ok(RowStream::writing(rows, turn.guard, Arc::clone(&self.inner.gate)))
        })
    }
}

#[async_trait::async_trait]
impl TransactionTrait for Connection {
    type Transaction = Transaction;

    async fn begin(&self) -> Result<Transaction, DbErr> {
        self.begin_in_turn(TransactionOptions::default()).await
    }

    async fn begin_with_config(
        &self,
        isolation_level: Option<IsolationLevel>,
        access_mode: Option<AccessMode>,
    ) -> Result<Transaction, DbErr> {
        self.begin_in_turn(TransactionOptions { isolation_level, access_mode, ..Default::default() }).await
    }

    async fn begin_with_options(&self, options: TransactionOptions) -> Result<Transaction, DbErr> {
        self.begin_in_turn(options).await
    }

    async fn transaction<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c Transaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        self.begin().await?.run(callback).await
    }

    async fn transaction_with_config<F, T, E>(
        &self,
        callback: F,
        isolation_level: Option<IsolationLevel>,
        access_mode: Option<AccessMode>,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c Transaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        self.begin_with_config(isolation_level, access_mode).await?.run(callback).await
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("path", &self.inner.path).field("gate", &self.inner.gate).finish()
    }
}

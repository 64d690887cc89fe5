//! A transaction that keeps its turn at the gate until it has ended.
//!
//! The outermost one holds the turn; a nested one is a savepoint in it and has nothing to do with the gate. A
//! transaction that was begun read-only has no turn either, and refuses to write.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, ExecResult, IsolationLevel,
    QueryResult, Statement, StreamTrait, TransactionError, TransactionOptions, TransactionSession,
    TransactionTrait,
};

use super::{
    Connection, committed, rows_written,
    statement::{self, Kind},
};
use crate::gate::Guard;

/// A transaction of a [`Connection`]; rolled back when it is dropped without
/// [`commit`](TransactionSession::commit).
pub struct Transaction {
    /// `None` only while it ends.
    inner: Option<DatabaseTransaction>,
    guard: Option<Guard>,
    connection: Connection,
    depth: Depth,
    /// Rows written so far, by the nested ones too; an upper bound, since savepoints that are rolled back
    /// count.
    rows: Arc<AtomicU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    Outermost,
    Nested,
    ReadOnly,
}

impl Transaction {
    pub(super) fn outermost(
        inner: DatabaseTransaction,
        connection: &Connection,
        guard: Option<Guard>,
    ) -> Self {
        Self::new(inner, connection.clone(), guard, Depth::Outermost, Arc::default())
    }

    pub(super) fn read_only(inner: DatabaseTransaction, connection: &Connection) -> Self {
        Self::new(inner, connection.clone(), None, Depth::ReadOnly, Arc::default())
    }

    fn new(
        inner: DatabaseTransaction,
        connection: Connection,
        guard: Option<Guard>,
        depth: Depth,
        rows: Arc<AtomicU64>,
    ) -> Self {
        Self { inner: Some(inner), guard, connection, depth, rows }
    }

    /// Commits; for a nested transaction, keeps what it did as a part of the outer one.
    ///
    /// # Errors
    /// What SQLite says; the transaction is then rolled back.
    pub async fn commit(mut self) -> Result<(), DbErr> {
        let Some(inner) = self.inner.take() else { return Ok(()) };
        let guard = self.guard.take();
        inner.commit().await?;
        let rows = self.rows.load(Ordering::Relaxed);
        if self.depth == Depth::Outermost && rows > 0 {
            committed(&self.connection, guard, rows).await;
        }
        Ok(())
    }

    /// Rolls back; for a nested transaction, to where it began.
    ///
    /// # Errors
    /// What SQLite says.
    pub async fn rollback(mut self) -> Result<(), DbErr> {
        let Some(inner) = self.inner.take() else { return Ok(()) };
        let _turn = self.guard.take();
        inner.rollback().await
    }

    /// Runs a callback and commits, or rolls back if it fails.
    pub(super) async fn run<F, T, E>(self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c Self) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        match callback(&self).await {
            Ok(value) => {
                self.commit().await?;
                Ok(value)
            }
            Err(error) => {
                self.rollback().await?;
                Err(TransactionError::Transaction(error))
            }
        }
    }

    fn inner(&self) -> &DatabaseTransaction {
        self.inner.as_ref().expect("taken only by what consumes the transaction")
    }

    /// What may run in this transaction.
    fn admit(&self, sql: &str) -> Result<Kind, DbErr> {
        let kind = statement::kind(sql);
        if kind != Kind::Read && self.depth == Depth::ReadOnly {
            return Err(DbErr::Custom(format!(
                "`{}` was not run: the transaction was begun read-only. \
                 Begin it without `AccessMode::ReadOnly`",
                statement::shortened(sql)
            )));
        }
        Ok(kind)
    }

    fn wrote(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    async fn nest(&self) -> Result<Self, DbErr> {
        let inner = self.inner().begin().await?;
        let depth = if self.depth == Depth::ReadOnly { Depth::ReadOnly } else { Depth::Nested };
        Ok(Self::new(inner, self.connection.clone(), None, depth, Arc::clone(&self.rows)))
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Sqlite
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        statement::check_values(&statement)?;
        let kind = self.admit(&statement.sql)?;
        let result = self.inner().execute_raw(statement).await?;
        if kind != Kind::Read {
            self.wrote(rows_written(&result));
        }
        Ok(result)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let kind = self.admit(sql)?;
        let result = self.inner().execute_unprepared(sql).await?;
        if kind != Kind::Read {
            self.wrote(rows_written(&result));
        }
        Ok(result)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        statement::check_values(&statement)?;
        let kind = self.admit(&statement.sql)?;
        // Unlike in `Connection`, the first row will do: nothing commits at this statement's end, and SQLite has
        // done all its work and checked all but deferred constraints before it returns a row.
        let row = self.inner().query_one_raw(statement).await?;
        if kind != Kind::Read {
            self.wrote(1);
        }
        Ok(row)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        statement::check_values(&statement)?;
        let kind = self.admit(&statement.sql)?;
        let rows = self.inner().query_all_raw(statement).await?;
        if kind != Kind::Read {
            self.wrote(rows.len().max(1) as u64);
        }
        Ok(rows)
    }
}

impl StreamTrait for Transaction {
    type Stream<'a> = sea_orm::TransactionStream<'a>;

    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Sqlite
    }

    fn stream_raw<'a>(
        &'a self,
        statement: Statement,
    ) -> Pin<Box<dyn Future<Output = Result<Self::Stream<'a>, DbErr>> + 'a + Send>> {
        Box::pin(async move {
            statement::check_values(&statement)?;
            if self.admit(&statement.sql)? != Kind::Read {
                // How many rows it will write is not known yet; one is enough to make the commit known.
                self.wrote(1);
            }
            self.inner().stream_raw(statement).await
        })
    }
}

#[async_trait::async_trait]
impl TransactionTrait for Transaction {
    type Transaction = Self;

    async fn begin(&self) -> Result<Self, DbErr> {
        self.nest().await
    }

    /// A savepoint has no settings of its own; the outermost transaction's hold.
    async fn begin_with_config(
        &self,
        _isolation_level: Option<IsolationLevel>,
        _access_mode: Option<AccessMode>,
    ) -> Result<Self, DbErr> {
        self.nest().await
    }

    /// A savepoint has no settings of its own; the outermost transaction's hold.
    async fn begin_with_options(&self, _options: TransactionOptions) -> Result<Self, DbErr> {
        self.nest().await
    }

    async fn transaction<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c Self) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        self.nest().await?.run(callback).await
    }

    async fn transaction_with_config<F, T, E>(
        &self,
        callback: F,
        _isolation_level: Option<IsolationLevel>,
        _access_mode: Option<AccessMode>,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> FnOnce(&'c Self) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        self.nest().await?.run(callback).await
    }
}

#[async_trait::async_trait]
impl TransactionSession for Transaction {
    async fn commit(self) -> Result<(), DbErr> {
        self.commit().await
    }

    async fn rollback(self) -> Result<(), DbErr> {
        self.rollback().await
    }
}

impl Drop for Transaction {
    /// SeaORM only queues the rollback of a dropped transaction. Where there is a runtime, the turn is kept
    /// until the rollback is done, so that the next writer does not run into it.
    fn drop(&mut self) {
        let (Some(inner), Some(guard)) = (self.inner.take(), self.guard.take()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = inner.rollback().await {
                    tracing::debug!(%error, "a dropped transaction was not rolled back in order");
                }
                drop(guard);
            });
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("depth", &self.depth)
            .field("turn", &self.guard.is_some())
            .finish()
    }
}

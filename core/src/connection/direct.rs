//! The connection that writes single statements: always at hand for whoever has the turn.
//!
//! A pool hands a connection out and takes it back for every statement, which costs more than the statement, and with
//! several of them each has to read anew what another one wrote. Since writers queue at the gate anyway, one
//! connection is taken out of the pool for good and used by whoever has the turn.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sea_orm::{DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use sqlx::{AssertSqlSafe, Executor, Sqlite, pool::PoolConnection};
use tokio::sync::Mutex;

/// A connection that is taken in turn.
pub(super) struct Direct {
    connection: Mutex<Option<PoolConnection<Sqlite>>>,
}

impl Direct {
    pub(super) fn new(connection: PoolConnection<Sqlite>) -> Self {
        Self { connection: Mutex::new(Some(connection)) }
    }

    /// Runs a statement to its end.
    pub(super) async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut connection = self.connection.lock().await;
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), values(statement.values));
        let connection = connection.as_deref_mut().ok_or_else(closed)?;
        query.execute(connection).await.map(ExecResult::from).map_err(exec_error)
    }

    /// Runs statements as they stand, to their end.
    pub(super) async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut connection = self.connection.lock().await;
        let connection = connection.as_deref_mut().ok_or_else(closed)?;
        connection.execute(AssertSqlSafe(sql)).await.map(ExecResult::from).map_err(exec_error)
    }

    /// Runs a statement to its end: the driver would drop what SQLite says behind the first row, where a statement of
    /// its own commits and deferred foreign keys are checked.
    pub(super) async fn query(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut connection = self.connection.lock().await;
        let query = sqlx::query_with(AssertSqlSafe(statement.sql), values(statement.values));
        let connection = connection.as_deref_mut().ok_or_else(closed)?;
        query.fetch(connection).map_ok(QueryResult::from).try_collect().await.map_err(query_error)
    }

    /// Closes the connection; later statements fail.
    pub(super) async fn close(&self) -> Result<(), DbErr> {
        match self.connection.lock().await.take() {
            Some(connection) => connection.close().await.map_err(exec_error),
            None => Ok(()),
        }
    }
}

fn values(values: Option<sea_orm::Values>) -> SqlxValues {
    SqlxValues(values.unwrap_or_else(|| sea_orm::Values(Vec::new())))
}

fn closed() -> DbErr {
    DbErr::Conn(RuntimeErr::Internal("the connection is closed; nothing was written. Connect again".into()))
}

fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

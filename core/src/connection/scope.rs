//! Transactions with a word to the triggers: do not record, record as one unit, record who did it.
//!
//! The word is a value in `sync_ctl`, changed inside the transaction and changed back before its end. Other
//! connections never see it, and a rollback undoes it like everything else. That is also why these can be
//! nested: each puts back what it found.

use std::{fmt, future::Future, pin::Pin};

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, TransactionError, TransactionTrait, Value};
use uuid::Uuid;

use super::{Connection, Transaction};

/// `sync_ctl.mode`: triggers record nothing.
const MODE_OFF: i64 = 1;

/// A column of `sync_ctl` that a scope sets.
#[derive(Clone, Copy)]
enum Column {
    Mode,
    Mark,
    Actor,
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Mark => "mark",
            Self::Actor => "actor",
        }
    }

    /// What the column held, as the value that puts it back.
    async fn read(self, txn: &Transaction) -> Result<Value, DbErr> {
        let sql = format!("SELECT {} FROM sync_ctl", self.name());
        let row = txn.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await;
        let row = row.map_err(|e| no_sync_tables(&e))?.ok_or_else(|| no_sync_tables(&"sync_ctl is empty"))?;
        Ok(match self {
            Self::Mode => row.try_get_by::<i64, _>(0)?.into(),
            Self::Mark | Self::Actor => row.try_get_by::<Option<String>, _>(0)?.into(),
        })
    }

    async fn write(self, txn: &Transaction, value: Value) -> Result<(), DbErr> {
        let sql = format!("UPDATE sync_ctl SET {} = ?", self.name());
        txn.execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, sql, [value])).await.map(|_| ())
    }
}

macro_rules! scopes {
    ($owner:ty, $where:literal) => {
        impl $owner {
            #[doc = concat!("Runs the callback in a transaction", $where, " whose writes are not captured, ")]
            /// so that they stay on this device. Commits if it returns `Ok`, rolls back otherwise.
            ///
            /// # Errors
            /// The callback's, the database's, or a [`DbErr::Custom`] if the sync tables are missing.
            pub async fn transaction_with_no_sync<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
            where
                F: for<'c> FnOnce(&'c Transaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>
                    + Send,
                T: Send,
                E: fmt::Display + fmt::Debug + Send,
            {
                scoped(self.begin().await?, Column::Mode, MODE_OFF.into(), callback).await
            }

            #[doc = concat!("Runs the callback in a transaction", $where, " whose changes stand or fall ")]
            /// together on every device: if one of them is rejected, all are, and they are tried again together
            /// ([`Library::retry`](crate::Library::retry)). Only what a leader itself writes to a record of another
            /// device, past the model's hooks, is refused alone. Inside another `atomic` it joins that one. Commits
            /// if it returns `Ok`, rolls back otherwise.
            ///
            /// # Errors
            /// The callback's, the database's, or a [`DbErr::Custom`] if the sync tables are missing.
            pub async fn atomic<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
            where
                F: for<'c> FnOnce(&'c Transaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>
                    + Send,
                T: Send,
                E: fmt::Display + fmt::Debug + Send,
            {
                let mark = Uuid::new_v4().hyphenated().to_string();
                scoped(self.begin().await?, Column::Mark, mark.into(), callback).await
            }

            #[doc = concat!("Runs the callback in a transaction", $where, " whose changes carry the name of ")]
            /// who made them: a user, a job. Commits if it returns `Ok`, rolls back otherwise.
            ///
            /// # Errors
            /// The callback's, the database's, or a [`DbErr::Custom`] if the sync tables are missing.
            pub async fn with_actor<F, T, E>(&self, name: &str, callback: F) -> Result<T, TransactionError<E>>
            where
                F: for<'c> FnOnce(&'c Transaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>
                    + Send,
                T: Send,
                E: fmt::Display + fmt::Debug + Send,
            {
                scoped(self.begin().await?, Column::Actor, name.into(), callback).await
            }
        }
    };
}

scopes!(Connection, " of its own");
scopes!(Transaction, " nested in this one");

async fn scoped<F, T, E>(
    txn: Transaction,
    column: Column,
    value: Value,
    callback: F,
) -> Result<T, TransactionError<E>>
where
    F: for<'c> FnOnce(&'c Transaction) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>> + Send,
    T: Send,
    E: fmt::Display + fmt::Debug + Send,
{
    let former = column.read(&txn).await?;
    // A mark within a mark would let the inner part stand where the outer one is rejected.
    let joins = matches!((column, &former), (Column::Mark, Value::String(Some(_))));
    if !joins {
        column.write(&txn, value).await?;
    }
    match callback(&txn).await {
        Ok(result) => {
            if !joins {
                column.write(&txn, former).await?;
            }
            txn.commit().await?;
            Ok(result)
        }
        Err(error) => {
            txn.rollback().await?;
            Err(TransactionError::Transaction(error))
        }
    }
}

fn no_sync_tables(error: &dyn fmt::Display) -> DbErr {
    DbErr::Custom(format!(
        "the sync tables are not in this database ({error}), so nothing was run or written. \
         Open a library on it first, or run the migrations of tidelog-migration"
    ))
}

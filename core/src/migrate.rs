//! An application's own migrations, run past the capture triggers.
//!
//! SQLite refuses to drop a column that a trigger names, and a table that is rebuilt loses its triggers. So the
//! triggers step aside while migrations run, and come back behind them where they still fit; the rest is made anew
//! when the library is next opened with the new models. What the migrations changed meanwhile is found by comparing
//! the tables with the log then (`announce.rs`).

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement, TransactionTrait};
use sea_orm_migration::MigratorTrait;

use crate::{capture, connection::Connection, error::Error, library};

/// Runs the application's migrations; does nothing where none is pending.
///
/// Close the library first: the engine and a migration cannot both have the schema.
///
/// # Errors
/// [`Error::Locked`] while a library has the database open. [`Error::SeaOrm`] says what a migration met; those before
/// it are done, and capture goes on either way.
pub async fn migrate<M: MigratorTrait>(db: &Connection) -> Result<(), Error> {
    let failed = |what: &'static str| move |source: DbErr| Error::SeaOrm { what, source };
    let plain = db.plain();
    if M::get_pending_migrations(plain).await.map_err(failed("looking for pending migrations"))?.is_empty() {
        return Ok(());
    }
    let _lock = library::lock(db.path())?;
    if !has_sync_tables(plain).await.map_err(failed("looking for the sync tables"))? {
        return M::up(plain, None).await.map_err(failed("a migration"));
    }
    let dropped = drop_triggers(plain).await.map_err(failed("taking the capture triggers off"))?;
    let migrated = M::up(plain, None).await.map_err(failed("a migration"));
    for table in dropped {
        if let Err(error) = restore(plain, &table).await {
            tracing::info!(table = table.name, %error, "its capture triggers no longer fit; they are made anew at the next open");
        }
    }
    migrated
}

async fn has_sync_tables(db: &DatabaseConnection) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'sync_shape'";
    Ok(db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await?.is_some())
}

/// A table and the capture triggers that it had.
struct Captured {
    name: String,
    triggers: Vec<String>,
}

/// Drops the capture triggers and notes that their tables are suspect, all in one transaction.
async fn drop_triggers(db: &DatabaseConnection) -> Result<Vec<Captured>, DbErr> {
    let txn = db.begin().await?;
    let rows =
        txn.query_all_raw(Statement::from_string(txn.get_database_backend(), capture::TRIGGERS)).await?;
    let mut tables: Vec<Captured> = Vec::new();
    txn.execute_unprepared(capture::SUSPECT_ALL).await?;
    for row in &rows {
        let [trigger, sql, table]: [String; 3] =
            [row.try_get_by_index(0)?, row.try_get_by_index(1)?, row.try_get_by_index(2)?];
        txn.execute_unprepared(&format!("DROP TRIGGER {}", capture::quote(&trigger))).await?;
        match tables.iter_mut().find(|known| known.name == table) {
            Some(known) => known.triggers.push(sql),
            None => tables.push(Captured { name: table, triggers: vec![sql] }),
        }
    }
    txn.commit().await?;
    Ok(tables)
}

/// Puts a table's triggers back, all or none. SQLite makes a trigger that names columns which are not there, and then
/// fails every write to its table: so it is asked to plan such writes.
async fn restore(db: &DatabaseConnection, table: &Captured) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    for sql in &table.triggers {
        txn.execute_unprepared(sql).await?;
    }
    let name = capture::quote(&table.name);
    let columns = "SELECT group_concat('\"' || replace(name, '\"', '\"\"') || '\" = NULL', ', ') FROM pragma_table_info(?)";
    let columns =
        Statement::from_sql_and_values(txn.get_database_backend(), columns, [table.name.clone().into()]);
    let set: String = match txn.query_one_raw(columns).await? {
        Some(row) => row.try_get_by_index(0)?,
        None => String::new(),
    };
    for write in [
        format!("EXPLAIN INSERT INTO {name} DEFAULT VALUES"),
        format!("EXPLAIN UPDATE {name} SET {set}"),
        format!("EXPLAIN DELETE FROM {name}"),
    ] {
        txn.query_all_raw(Statement::from_string(txn.get_database_backend(), write)).await?;
    }
    txn.commit().await
}

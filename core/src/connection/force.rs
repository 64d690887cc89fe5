//! Recording a row that did not change.

use std::fmt::Write;

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, EntityName, EntityTrait, IdenStatic, Iterable, ModelTrait,
    PrimaryKeyToColumn, Statement, Value,
};

use crate::model::Syncable;

/// `sync_outbox.kind` of a row that was recorded by request.
const KIND_FORCE: u8 = 4;

/// Captures the row of `model` as it is in the database now, though nothing changed it: other devices get all
/// its values again. `db` is a [`Connection`](crate::Connection), a [`Transaction`](crate::Transaction), or
/// any other connection to a database where the model is opened in a library.
///
/// # Errors
/// A [`DbErr::Custom`] that tells whether the row does not exist, the model is not opened here, capture is
/// off in this transaction, or the sync tables are missing; nothing is written then.
pub async fn force_record<M, C>(db: &C, model: &M) -> Result<(), DbErr>
where
    M: Syncable,
    C: ConnectionTrait,
{
    let table = <M::Entity as Default>::default().table_name().to_owned();
    let (condition, key) = key_of(model);

    let mut columns = String::new();
    let mut values = String::new();
    for (index, field) in M::sync_fields().into_iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(columns, ", v{index}");
        let _ = write!(values, ", t.{}", quoted(field));
    }
    let sql = format!(
        "INSERT INTO sync_outbox (shape, kind, mode, at, mark, actor{columns}) \
         SELECT s.id, {KIND_FORCE}, c.mode, coalesce(c.clock, CAST(unixepoch('subsec') * 1000 AS INTEGER)), \
             c.mark, c.actor{values} \
         FROM {} t, sync_ctl c, sync_shape s \
         WHERE {condition} AND c.mode <> 1 AND s.model = ? AND s.current = 1",
        quoted(&table)
    );
    let mut parameters = key.clone();
    parameters.push(M::SYNC_ID.into());
    let result = db
        .execute_raw(Statement::from_sql_and_values(DbBackend::Sqlite, sql, parameters))
        .await
        .map_err(|error| {
            refused::<M>(&format!("the database refused it: {error}"), "Open the model in a library first")
        })?;
    if result.rows_affected() > 0 {
        return Ok(());
    }
    Err(why_nothing::<M, C>(db, &table, &condition, key).await?)
}

/// The condition that finds the row by its primary key, and its values.
fn key_of<M: Syncable>(model: &M) -> (String, Vec<Value>) {
    let mut condition = String::new();
    let mut values = Vec::new();
    for key in <M::Entity as EntityTrait>::PrimaryKey::iter() {
        let column = key.into_column();
        let and = if condition.is_empty() { "" } else { " AND " };
        let _ = write!(condition, "{and}t.{} = ?", quoted(column.as_str()));
        values.push(ModelTrait::get(model, column));
    }
    (condition, values)
}

/// Says why no row was recorded.
async fn why_nothing<M, C>(db: &C, table: &str, condition: &str, key: Vec<Value>) -> Result<DbErr, DbErr>
where
    M: Syncable,
    C: ConnectionTrait,
{
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {} t WHERE {condition}), \
             EXISTS (SELECT 1 FROM sync_shape WHERE model = ? AND current = 1), \
             EXISTS (SELECT 1 FROM sync_ctl WHERE mode = 1)",
        quoted(table)
    );
    let named: Vec<String> = key.iter().map(|value| format!("{value}")).collect();
    let mut parameters = key;
    parameters.push(M::SYNC_ID.into());
    let row = db.query_one_raw(Statement::from_sql_and_values(DbBackend::Sqlite, sql, parameters)).await?;
    let Some(row) = row else { return Err(DbErr::RecordNotFound("SQLite did not answer".to_owned())) };
    let says = |index| row.try_get_by::<bool, usize>(index);
    Ok(if !says(1)? {
        refused::<M>(
            "the model is not opened in a library on this database",
            "Name it in the library's builder with `.model::<E>()`",
        )
    } else if !says(0)? {
        refused::<M>(
            &format!("table `{table}` has no row with the key {}", named.join(", ")),
            "Save the row first; its deletion is captured by itself",
        )
    } else if says(2)? {
        refused::<M>("capture is off inside `transaction_with_no_sync`", "Call it outside")
    } else {
        refused::<M>("the row or the model's shape changed meanwhile", "Try again")
    })
}

fn refused<M: Syncable>(reason: &str, remedy: &str) -> DbErr {
    DbErr::Custom(format!(
        "the record of `{}` was not recorded: {reason}; nothing was written. {remedy}",
        M::SYNC_ID
    ))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

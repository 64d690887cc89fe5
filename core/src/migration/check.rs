//! What is looked at in the rows before anything is changed, and again before the change is committed.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    error::KeysError,
    plan::{Plan, Rebuild},
    rewrite::Converted,
    schema::{self, Object},
    token::tokens,
};
use crate::capture::quote;

/// Refuses a database that the migration could not carry over to the last row.
pub(super) fn before(conn: &Connection, path: &Path, plan: &Plan) -> Result<(), KeysError> {
    if let Some(problem) = damage(conn)? {
        return Err(KeysError::Damaged { path: path.to_owned(), problem });
    }
    for rebuild in &plan.rebuilds {
        for converted in &rebuild.converted {
            refuse_wrong_type(conn, rebuild, converted)?;
        }
    }
    if let Some(orphan) = orphan(conn, plan)? {
        return Err(orphan);
    }
    // A foreign key says nothing of references that nobody declared, nor of one that is NULL in part.
    for rebuild in &plan.rebuilds {
        for converted in rebuild.references() {
            refuse_unmapped(conn, plan, rebuild, converted)?;
        }
    }
    for object in &plan.objects {
        if let Some(reason) = broken(conn, object)? {
            return Err(KeysError::Unsuitable {
                what: format!("{} `{}`", object.kind, object.name),
                reason: format!("it does not work as it is: {reason}"),
                remedy: "Correct or drop it",
            });
        }
    }
    Ok(())
}

/// The first thing that SQLite finds wrong with the file.
pub(super) fn damage(conn: &Connection) -> Result<Option<String>, KeysError> {
    let first: String = conn
        .query_row("PRAGMA main.integrity_check(1)", [], |row| row.get(0))
        .map_err(KeysError::during("checking the integrity of the database"))?;
    Ok((first != "ok").then_some(first))
}

fn refuse_wrong_type(conn: &Connection, rebuild: &Rebuild, converted: &Converted) -> Result<(), KeysError> {
    let table = &rebuild.table;
    let (name, column) = (quote(&table.name), quote(&converted.column));
    let sql = format!(
        "SELECT {}, typeof(t.{column}) FROM main.{name} AS t WHERE typeof(t.{column}) NOT IN ('integer', 'null') LIMIT 1",
        table.row_name("t")
    );
    let wrong = conn.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).optional();
    match wrong.map_err(KeysError::during(format!("looking for wrong types in table `{}`", table.name)))? {
        None => Ok(()),
        Some((row, found)) => Err(KeysError::WrongType {
            table: table.name.clone(),
            row,
            column: converted.column.clone(),
            found,
        }),
    }
}

/// The first row whose declared reference leads nowhere, anywhere in the database.
pub(super) fn orphan(conn: &Connection, plan: &Plan) -> Result<Option<KeysError>, KeysError> {
    let read = |row: &Row<'_>| {
        let (table, rowid): (String, Option<i64>) = (row.get(0)?, row.get(1)?);
        let foreign_keys =
            plan.tables.iter().find(|known| known.name == table).map(|known| &known.foreign_keys);
        let id: i64 = row.get(3)?;
        let columns = foreign_keys.and_then(|all| all.iter().find(|foreign_key| foreign_key.id == id));
        let columns = columns.map(|foreign_key| {
            foreign_key.columns.iter().map(|(from, _)| from.as_str()).collect::<Vec<_>>().join(", ")
        });
        Ok(KeysError::Orphan {
            table,
            row: rowid.map_or_else(|| "a row".to_owned(), |rowid| format!("row {rowid}")),
            column: columns.unwrap_or_default(),
            parent: row.get(2)?,
        })
    };
    conn.query_row("PRAGMA main.foreign_key_check", [], read)
        .optional()
        .map_err(KeysError::during("checking foreign keys"))
}

fn refuse_unmapped(
    conn: &Connection,
    plan: &Plan,
    rebuild: &Rebuild,
    converted: &Converted,
) -> Result<(), KeysError> {
    let table = &rebuild.table;
    let key = plan.rebuild_of(&converted.target).and_then(Rebuild::key).map_or("rowid", |key| &key.column);
    let sql = format!(
        "SELECT {row} FROM main.{table} AS t WHERE t.{column} IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM main.{target} AS p WHERE p.{key} = t.{column}) LIMIT 1",
        row = table.row_name("t"),
        table = quote(&table.name),
        column = quote(&converted.column),
        target = quote(&converted.target),
        key = quote(key),
    );
    let row = conn.query_row(&sql, [], |row| row.get(0)).optional();
    match row.map_err(KeysError::during(format!("looking for orphans in table `{}`", table.name)))? {
        None => Ok(()),
        Some(row) => Err(KeysError::Orphan {
            table: table.name.clone(),
            row,
            column: converted.column.clone(),
            parent: converted.target.clone(),
        }),
    }
}

/// Why a view or trigger does not work with the schema as it is: SQLite keeps those too, and fails what uses them.
pub(super) fn broken(conn: &Connection, object: &Object) -> Result<Option<String>, KeysError> {
    let sql = match object.kind.as_str() {
        "view" => format!("SELECT * FROM main.{}", quote(&object.name)),
        "trigger" => match firing(conn, object)? {
            Some(sql) => sql,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(conn.prepare(&sql).err().map(|error| error.to_string()))
}

/// A statement that would fire the trigger; it is prepared, never run.
fn firing(conn: &Connection, trigger: &Object) -> Result<Option<String>, KeysError> {
    let tokens = tokens(&trigger.sql);
    let table = quote(&trigger.table);
    // Behind CREATE TRIGGER and its name.
    let Some(event) = tokens.iter().skip(3).find(|token| token.is_one_of(&["INSERT", "UPDATE", "DELETE"]))
    else {
        return Ok(None);
    };
    if event.is_word("INSERT") {
        return Ok(Some(format!("INSERT INTO main.{table} DEFAULT VALUES")));
    }
    if event.is_word("DELETE") {
        return Ok(Some(format!("DELETE FROM main.{table}")));
    }
    let columns = schema::columns(conn, &trigger.table).map_err(KeysError::during("reading the schema"))?;
    let set: Vec<String> = columns
        .iter()
        .filter(|column| !column.is_generated)
        .map(|column| format!("{} = NULL", quote(&column.name)))
        .collect();
    Ok(Some(format!("UPDATE main.{table} SET {}", set.join(", "))))
}

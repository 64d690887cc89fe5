//! The change itself: every table with a converted column is made again under its own name, and its rows are copied
//! over inside SQLite, in their order, so that a value that nobody converts is never even decoded.
//!
//! SQLite's documentation has one make the new table under another name and rename it. That writes the name anew into
//! the table's text. Here the old table steps aside instead, with `legacy_alter_table` on and foreign keys off, so
//! that no other text follows it; then every text is what it was, but for the types.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    Step,
    error::KeysError,
    key::uuid_for,
    plan::{Plan, Rebuild},
    rewrite::Converted,
};
use crate::capture::quote;

/// Makes the change, in the transaction that is open.
pub(super) fn make(conn: &Connection, plan: &Plan, tell: &dyn Fn(Step<'_>)) -> Result<(), KeysError> {
    let analyzed = analyzed(conn, plan)?;
    for (i, target) in plan.targets.iter().enumerate() {
        map_keys(conn, plan, target, i)?;
    }
    for (number, rebuild) in plan.rebuilds.iter().enumerate() {
        tell(Step::Rewriting { table: &rebuild.table.name, number, of: plan.rebuilds.len() });
        let what = format!("rewriting table `{}`", rebuild.table.name);
        make_again(conn, plan, rebuild, number).map_err(KeysError::during(what))?;
    }
    // Only now, so that none fires meanwhile.
    for trigger in plan.objects.iter().filter(|object| object.kind == "trigger") {
        if plan.rebuild_of(&trigger.table).is_some() {
            let what = format!("putting trigger `{}` back", trigger.name);
            conn.execute_batch(&trigger.sql).map_err(KeysError::during(what))?;
        }
    }
    for table in analyzed {
        let what = format!("analyzing table `{table}` again");
        conn.execute_batch(&format!("ANALYZE main.{}", quote(&table))).map_err(KeysError::during(what))?;
    }
    Ok(())
}

/// Writes down which UUID each key of a table becomes.
fn map_keys(conn: &Connection, plan: &Plan, target: &str, number: usize) -> Result<(), KeysError> {
    let failed = || KeysError::during(format!("mapping the keys of table `{target}`"));
    let key = plan.rebuild_of(target).and_then(Rebuild::key).map_or("rowid", |key| &key.column);
    let (map, key, table) = (map_name(number), quote(key), quote(target));
    conn.execute_batch(&format!("CREATE TEMP TABLE {map} (old INTEGER PRIMARY KEY, new BLOB NOT NULL)"))
        .map_err(failed())?;
    let mut keys =
        conn.prepare(&format!("SELECT {key} FROM main.{table} ORDER BY {key}")).map_err(failed())?;
    let mut insert = conn.prepare(&format!("INSERT INTO temp.{map} VALUES (?1, ?2)")).map_err(failed())?;
    let mut rows = keys.query([]).map_err(failed())?;
    while let Some(row) = rows.next().map_err(failed())? {
        let old: i64 = row.get(0).map_err(failed())?;
        let new = uuid_for(plan.namespace, target, old);
        insert.execute(params![old, new.as_bytes()]).map_err(failed())?;
    }
    Ok(())
}

fn map_name(target: usize) -> String {
    format!("tidelog_uuid_keys_{target}")
}

fn make_again(conn: &Connection, plan: &Plan, rebuild: &Rebuild, number: usize) -> rusqlite::Result<()> {
    let name = quote(&rebuild.table.name);
    let aside = quote(&format!("tidelog_integer_keys_{number}"));
    let counted = counted(conn, &rebuild.table.name)?;
    conn.execute_batch(&format!("ALTER TABLE main.{name} RENAME TO {aside}"))?;
    conn.execute_batch(&rebuild.sql)?;
    conn.execute_batch(&copy(plan, rebuild, &aside))?;
    conn.execute_batch(&format!("DROP TABLE main.{aside}"))?;
    for index in plan.objects.iter().filter(|object| object.kind == "index") {
        if index.table == rebuild.table.name {
            conn.execute_batch(&index.sql)?;
        }
    }
    match counted.filter(|_| rebuild.key().is_none()) {
        // An integer key that stays goes on counting from where it was, deleted rows included.
        Some(counted) => set_count(conn, &rebuild.table.name, counted),
        None => Ok(()),
    }
}

/// Copies all rows, keys converted on the way. Rows keep their rowid, which is what the integer key was.
fn copy(plan: &Plan, rebuild: &Rebuild, aside: &str) -> String {
    let table = &rebuild.table;
    let (mut into, mut from) = (Vec::new(), Vec::new());
    for column in table.columns.iter().filter(|column| !column.is_generated) {
        let name = quote(&column.name);
        from.push(match rebuild.converted(&column.name) {
            Some(converted) => mapped(plan, converted),
            None => format!("o.{name}"),
        });
        into.push(name);
    }
    let has_alias_still = table.alias.is_some() && rebuild.key().is_none();
    let order = table.rowid().map(|rowid| format!(" ORDER BY o.{rowid}")).unwrap_or_default();
    if let (Some(old), Some(new), false) = (table.rowid(), table.hidden_rowid(), has_alias_still) {
        into.push(new.to_owned());
        from.push(format!("o.{old}"));
    }
    format!(
        "INSERT INTO main.{} ({}) SELECT {} FROM main.{aside} AS o{order}",
        quote(&table.name),
        into.join(", "),
        from.join(", ")
    )
}

fn mapped(plan: &Plan, converted: &Converted) -> String {
    let number = plan.targets.iter().position(|target| *target == converted.target).unwrap_or_default();
    format!("(SELECT m.new FROM temp.{} AS m WHERE m.old = o.{})", map_name(number), quote(&converted.column))
}

/// The count of an AUTOINCREMENT key.
pub(super) fn counted(conn: &Connection, table: &str) -> rusqlite::Result<Option<i64>> {
    if !conn.prepare_cached("SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence'")?.exists([])? {
        return Ok(None);
    }
    let sql = "SELECT seq FROM main.sqlite_sequence WHERE name = ?1";
    conn.prepare(sql)?.query_row([table], |row| row.get(0)).optional()
}

fn set_count(conn: &Connection, table: &str, count: i64) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM main.sqlite_sequence WHERE name = ?1", [table])?;
    conn.execute("INSERT INTO main.sqlite_sequence (name, seq) VALUES (?1, ?2)", params![table, count])?;
    Ok(())
}

/// The tables to be rebuilt of which the planner has statistics, which will not be true of them any more.
fn analyzed(conn: &Connection, plan: &Plan) -> Result<Vec<String>, KeysError> {
    let failed = || KeysError::during("reading the planner's statistics");
    let there = "SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_stat1'";
    if !conn.prepare(there).and_then(|mut statement| statement.exists([])).map_err(failed())? {
        return Ok(Vec::new());
    }
    let mut statement = conn.prepare("SELECT 1 FROM main.sqlite_stat1 WHERE tbl = ?1").map_err(failed())?;
    let mut found = Vec::new();
    for rebuild in &plan.rebuilds {
        if statement.exists([&rebuild.table.name]).map_err(failed())? {
            found.push(rebuild.table.name.clone());
        }
    }
    Ok(found)
}

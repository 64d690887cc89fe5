//! The recorders: what a database needs so that every committed write to a synced table stands in its outbox.
//!
//! A generated trigger copies the row's values as they are stored, with no affinity and no conversion, into the
//! value columns of `sync_outbox`: it cannot raise, it loses nothing, and it is part of the user's own transaction.
//! What the value columns mean is a [`Shape`], kept in `sync_shape`, so that rows captured before a schema change
//! are still understood behind it. For models recorded by hooks there is a shape and no trigger.
//!
//! Installing compares what is there with what the models say now and replaces only what differs.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};
use sea_orm::sea_query::ArrayType;

use crate::{
    adopt,
    entry::Shape,
    error::Error,
    model::{ModelDescriptor, Recorder},
    value,
};

/// Prefix of all that tidelog creates in an application's database.
const PREFIX: &str = "sync_";

/// Quotes an SQL identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A list as JSON, the form in which the sync tables keep names.
pub(crate) fn json_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let mut text = String::new();
    write_names(names, &mut text);
    text
}

/// Appends [`json_names`].
pub(crate) fn write_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>, out: &mut String) {
    out.push('[');
    for (i, name) in names.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        value::write_json_string(name.as_ref(), out);
    }
    out.push(']');
}

/// Reads [`json_names`] back.
pub(crate) fn names_from_json(json: &str) -> Result<Vec<String>, Error> {
    serde_json::from_str(json).map_err(|e| Error::Damaged(format!("`{json}` is not a list of names: {e}")))
}

/// Makes shapes and triggers what the models say now, and drops those of models that are no longer synced.
///
/// # Errors
/// [`Error::Table`] and [`Error::ForeignTrigger`] before anything is changed. Runs inside the caller's transaction.
pub(crate) fn install(conn: &Connection, models: &[(ModelDescriptor, Recorder)]) -> Result<(), Error> {
    for (model, _) in models {
        check_table(conn, model)?;
    }
    check_foreign_triggers(conn, models)?;
    widen_outbox(conn, models)?;

    let present: HashMap<String, String> = conn
        .prepare(TRIGGERS)?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut wanted: HashMap<String, String> = HashMap::new();
    for (model, recorder) in models {
        let suspect = is_suspect(conn, model, &present)?;
        let open = "SELECT 1 FROM sync_shape WHERE model = ?1 AND current = 1";
        let was_open = conn.prepare_cached(open)?.exists([model.id])?;
        let shape = current_shape(conn, model, *recorder)?;
        if !was_open {
            adopt::note_new_model(conn, model.id, &model.table)?;
        }
        if suspect {
            conn.execute("UPDATE sync_shape SET suspect = 1 WHERE id = ?1", [shape])?;
        }
        if *recorder == Recorder::Trigger {
            wanted.extend(triggers(model, shape));
        }
    }
    retire_others(conn, models)?;
    for name in present.keys().filter(|name| wanted.get(*name) != present.get(*name)) {
        conn.execute_batch(&format!("DROP TRIGGER {}", quote(name)))?;
    }
    for (name, sql) in &wanted {
        if present.get(name) != Some(sql) {
            conn.execute_batch(sql)?;
        }
    }
    Ok(())
}

/// Name, SQL and table of every capture trigger.
pub(crate) const TRIGGERS: &str = "SELECT name, sql, tbl_name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'sync\\_%' ESCAPE '\\'";

/// Notes that writes to the tables of these shapes may have gone uncaptured.
pub(crate) const SUSPECT_ALL: &str = "UPDATE sync_shape SET suspect = 1 WHERE current = 1";

/// Whether the model's table may hold what the log does not say: its triggers should be there and are not, as after
/// a table was rebuilt, a migration is noted to have run without them, or the model has other fields than before.
fn is_suspect(
    conn: &Connection,
    model: &ModelDescriptor,
    present: &HashMap<String, String>,
) -> Result<bool, Error> {
    let before: Option<(bool, bool, String)> = conn
        .prepare_cached(
            "SELECT recorder = 'trigger', suspect, fields FROM sync_shape WHERE model = ?1 AND current = 1",
        )?
        .query_row([model.id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let lost =
        || ["insert", "delete", "rekey"].iter().any(|what| !present.contains_key(&trigger_name(model, what)));
    Ok(before.is_some_and(|(by_trigger, suspect, fields)| {
        suspect || (by_trigger && lost()) || fields != json_names(model.field_names())
    }))
}

fn trigger_name(model: &ModelDescriptor, what: &str) -> String {
    format!("{PREFIX}{}_{what}", model.table)
}

/// Models that are no longer registered are no longer recorded.
fn retire_others(conn: &Connection, models: &[(ModelDescriptor, Recorder)]) -> Result<(), Error> {
    let ids = json_names(models.iter().map(|(m, _)| m.id));
    conn.execute(
        "UPDATE sync_shape SET current = 0 WHERE current = 1 AND model NOT IN (SELECT value FROM json_each(?1))",
        [ids],
    )?;
    Ok(())
}

fn current_shape(conn: &Connection, model: &ModelDescriptor, recorder: Recorder) -> Result<i64, Error> {
    let fields = json_names(model.field_names());
    let key = json_names(model.key.iter().map(|&i| &model.fields[i].name));
    let recorder = match recorder {
        Recorder::Trigger => "trigger",
        Recorder::Hooks => "hooks",
    };
    let known: Option<i64> = conn
        .prepare_cached(
            "SELECT id FROM sync_shape
             WHERE model = ?1 AND table_name = ?2 AND fields = ?3 AND key = ?4 AND recorder = ?5",
        )?
        .query_row(params![model.id, model.table, fields, key, recorder], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        conn.execute(
            "UPDATE sync_shape SET current = (id = ?1), suspect = (id = ?1 AND suspect) WHERE model = ?2",
            params![id, model.id],
        )?;
        return Ok(id);
    }
    conn.execute("UPDATE sync_shape SET current = 0, suspect = 0 WHERE model = ?1", [model.id])?;
    conn.execute(
        "INSERT INTO sync_shape (model, table_name, fields, key, recorder, current) VALUES (?1, ?2, ?3, ?4, ?5, 1)",
        params![model.id, model.table, fields, key, recorder],
    )?;
    Ok(conn.last_insert_rowid())
}

fn widen_outbox(conn: &Connection, models: &[(ModelDescriptor, Recorder)]) -> Result<(), Error> {
    let have: usize = conn.query_row(
        "SELECT count(*) FROM pragma_table_info('sync_outbox') WHERE name GLOB 'v[0-9]*'",
        [],
        |row| row.get(0),
    )?;
    let need = models.iter().map(|(m, _)| m.fields.len()).max().unwrap_or(0);
    for i in have..need {
        conn.execute_batch(&format!(
            "ALTER TABLE sync_outbox ADD COLUMN v{i}; ALTER TABLE sync_outbox ADD COLUMN o{i};"
        ))?;
    }
    Ok(())
}

/// The capture triggers of a model: name and SQL.
fn triggers(model: &ModelDescriptor, shape: i64) -> Vec<(String, String)> {
    let table = quote(&model.table);
    let fields: Vec<String> = model.field_names().map(quote).collect();
    let columns = |side: char| (0..fields.len()).map(|i| format!(", {side}{i}")).collect::<String>();
    let values = |side: &str| fields.iter().map(|f| format!(", {side}.{f}")).collect::<String>();
    // The context is read in the same statement that records: one look at one row.
    let record = |kind: u8, columns: &str, values: &str| {
        format!(
            "INSERT INTO sync_outbox (shape, kind, mode, at, mark, actor{columns}) \
             SELECT {shape}, {kind}, mode, coalesce(clock, CAST(unixepoch('subsec') * 1000 AS INTEGER)), mark, actor{values} \
             FROM sync_ctl WHERE id = 1 AND mode <> 1;"
        )
    };
    let (new, old) = ((columns('v'), values("NEW")), (columns('o'), values("OLD")));
    let insert = record(1, &new.0, &new.1);
    let update = record(2, &format!("{}{}", new.0, old.0), &format!("{}{}", new.1, old.1));
    let delete = record(3, &old.0, &old.1);

    // Values are compared as bytes: a column's own collation may call different texts equal. Where a column has no
    // affinity, 1 and 1.0 are different values that compare equal; their types tell them apart.
    let differs =
        |f: &String| format!("OLD.{f} IS NOT NEW.{f} COLLATE BINARY OR typeof(OLD.{f}) <> typeof(NEW.{f})");
    let key: Vec<&String> = model.key.iter().map(|&i| &fields[i]).collect();
    let key_differs = key.iter().map(|f| differs(f)).collect::<Vec<_>>().join(" OR ");
    let others: Vec<String> = fields.iter().filter(|f| !key.contains(f)).map(differs).collect();
    let of = fields.join(", ");

    let trigger = |what: &str, event: String, when: String, body: String| {
        let name = trigger_name(model, what);
        let sql = format!("CREATE TRIGGER {} AFTER {event} ON {table}{when} BEGIN {body} END", quote(&name));
        (name, sql)
    };
    let mut list = vec![
        trigger("insert", "INSERT".into(), String::new(), insert.clone()),
        trigger("delete", "DELETE".into(), String::new(), delete.clone()),
        // A changed key is another record: the old one went and the new one came, in this order.
        trigger(
            "rekey",
            format!("UPDATE OF {of}"),
            format!(" WHEN {key_differs}"),
            format!("{delete} {insert}"),
        ),
    ];
    if !others.is_empty() {
        let when = format!(" WHEN NOT ({key_differs}) AND ({})", others.join(" OR "));
        list.push(trigger("update", format!("UPDATE OF {of}"), when, update));
    }
    list
}

/// Checks that the table can carry the model.
fn check_table(conn: &Connection, model: &ModelDescriptor) -> Result<(), Error> {
    let bad = |reason: String, remedy: &str| Error::Table {
        model: model.id.to_owned(),
        table: model.table.clone(),
        reason,
        remedy: remedy.to_owned(),
    };
    let columns: HashMap<String, (bool, bool)> = conn
        .prepare("SELECT name, \"notnull\", dflt_value IS NOT NULL OR pk > 0 FROM pragma_table_info(?1)")?
        .query_map([&model.table], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?
        .collect::<Result<_, _>>()?;
    if columns.is_empty() {
        return Err(bad(
            "it does not exist".into(),
            "Run the application's migrations first, with tidelog::migrate",
        ));
    }
    if let Some(missing) =
        model.field_names().chain(model.local.iter().map(String::as_str)).find(|f| !columns.contains_key(*f))
    {
        return Err(bad(
            format!("it has no column `{missing}`"),
            "Run the application's migrations first, with tidelog::migrate",
        ));
    }
    if let Some(local) = model.local.iter().find(|f| columns.get(*f) == Some(&(true, false))) {
        return Err(bad(
            format!(
                "its local column `{local}` may not be NULL and has no default, so no row could come from another device"
            ),
            "Make the column nullable or give it a default",
        ));
    }
    let mut key: Vec<&str> = model.key.iter().map(|&i| model.fields[i].name.as_str()).collect();
    key.sort_unstable();
    if !unique_keys(conn, &model.table)?.contains(&key.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>()) {
        return Err(bad(
            format!("its key ({}) is neither the primary key nor unique in the database", key.join(", ")),
            "Create a unique index over it",
        ));
    }
    Ok(())
}

/// Whether rows of a table exclude each other by more than the primary key.
pub(crate) fn has_unique_values(conn: &Connection, table: &str) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM pragma_index_list(?1) WHERE \"unique\" AND origin <> 'pk'";
    Ok(conn.prepare_cached(sql)?.exists([table])?)
}

/// The sets of columns, each sorted, that are unique in a table.
fn unique_keys(conn: &Connection, table: &str) -> Result<Vec<Vec<String>>, Error> {
    let mut keys = Vec::new();
    let mut primary: Vec<String> = conn
        .prepare("SELECT name FROM pragma_table_info(?1) WHERE pk > 0")?
        .query_map([table], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    primary.sort_unstable();
    keys.push(primary);
    let indexes: Vec<String> = conn
        .prepare("SELECT name FROM pragma_index_list(?1) WHERE \"unique\" AND NOT partial")?
        .query_map([table], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for index in indexes {
        let mut columns: Vec<String> = conn
            .prepare("SELECT coalesce(name, '') FROM pragma_index_info(?1)")?
            .query_map([index], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        columns.sort_unstable();
        keys.push(columns);
    }
    Ok(keys)
}

/// Refuses an application's trigger on a synced table that writes synced tables: what it did travels as changes of
/// its own, and on every other device it would fire again.
fn check_foreign_triggers(conn: &Connection, models: &[(ModelDescriptor, Recorder)]) -> Result<(), Error> {
    for (name, table, sql) in foreign_triggers(conn)? {
        if !models.iter().any(|(m, _)| m.table.eq_ignore_ascii_case(&table))
            || sql.to_ascii_lowercase().contains("sync_ctl")
        {
            continue;
        }
        let written = written_tables(&sql);
        if let Some((model, _)) =
            models.iter().find(|(m, _)| written.iter().any(|w| m.table.eq_ignore_ascii_case(w)))
        {
            return Err(Error::ForeignTrigger { trigger: name, table: model.table.clone() });
        }
    }
    Ok(())
}

/// Whether the application has triggers of its own on any of the tables: then they must run when rows are applied.
pub(crate) fn has_foreign_triggers(conn: &Connection, tables: &[&str]) -> Result<bool, Error> {
    Ok(foreign_triggers(conn)?
        .iter()
        .any(|(_, table, _)| tables.iter().any(|t| t.eq_ignore_ascii_case(table))))
}

fn foreign_triggers(conn: &Connection) -> Result<Vec<(String, String, String)>, Error> {
    Ok(conn
        .prepare(
            "SELECT name, tbl_name, sql FROM sqlite_master
             WHERE type = 'trigger' AND name NOT LIKE 'sync\\_%' ESCAPE '\\'",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?)
}

/// The tables that a trigger's body names as the target of a write.
fn written_tables(sql: &str) -> Vec<String> {
    let words: Vec<String> = sql
        .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect();
    let is = |i: usize, word: &str| words.get(i).is_some_and(|w: &String| w.eq_ignore_ascii_case(word));
    let body = words.iter().position(|w| w.eq_ignore_ascii_case("begin")).unwrap_or(0);
    let mut tables = Vec::new();
    for i in body..words.len() {
        let target = if is(i, "into") {
            i + 1
        } else if is(i, "delete") && is(i + 1, "from") {
            i + 2
        } else if is(i, "update") && is(i + 1, "or") {
            i + 3
        } else if is(i, "update") && !is(i + 1, "set") {
            i + 1
        } else {
            continue;
        };
        tables.extend(words.get(target).cloned());
    }
    tables
}

impl Shape {
    /// The shape of a model's rows as they are captured now.
    pub(crate) fn of(model: &ModelDescriptor) -> Self {
        Self {
            model: model.id.to_owned(),
            fields: model.field_names().map(str::to_owned).collect(),
            key: model.key.clone(),
            uuids: model.fields.iter().map(|f| f.kind == ArrayType::Uuid).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_a_trigger_writes_are_found() {
        let sql = "CREATE TRIGGER x AFTER UPDATE OF name ON entry BEGIN
            INSERT OR IGNORE INTO \"audit\" VALUES (NEW.id);
            UPDATE OR REPLACE counters SET n = n + 1;
            UPDATE tags SET n = 1; DELETE FROM [old]; REPLACE INTO r VALUES (1);
            INSERT INTO up VALUES (1) ON CONFLICT DO UPDATE SET n = 2; END";
        assert_eq!(written_tables(sql), ["audit", "counters", "tags", "old", "r", "up"]);
    }
}

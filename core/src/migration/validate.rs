//! What must hold before the change is committed. Anything else is a doubt, and a doubt rolls everything back.

use rusqlite::Connection;

use super::{
    change, check,
    error::KeysError,
    fingerprint::{Fingerprint, When},
    plan::{Plan, Rebuild},
    rewrite,
    schema::{self, Table},
};

/// Compares the database with what it was.
pub(super) fn after(conn: &Connection, plan: &Plan, before: &Fingerprint) -> Result<(), KeysError> {
    let doubt = |doubt: String| Err(KeysError::Doubt { doubt });
    let fingerprint = Fingerprint::take(conn, plan, When::After)?;
    if let Some(difference) = before.differs(&fingerprint) {
        return doubt(difference);
    }
    if let Some(orphan) = check::orphan(conn, plan)? {
        return doubt(format!("a reference would lead nowhere ({orphan})"));
    }
    if let Some(problem) = check::damage(conn)? {
        return doubt(format!("the database would be damaged: {problem}"));
    }
    schema_is_as_planned(conn, plan)?;
    for object in &plan.objects {
        if let Some(reason) = check::broken(conn, object)? {
            return doubt(format!("{} `{}` would not work any more: {reason}", object.kind, object.name));
        }
    }
    counts_are_gone(conn, plan)
}

/// Every text is what it was, but for what was planned, and SQLite understands it as it was meant.
fn schema_is_as_planned(conn: &Connection, plan: &Plan) -> Result<(), KeysError> {
    let reading = || KeysError::during("reading the schema");
    let mut objects = schema::objects(conn).map_err(reading())?;
    objects.sort();
    let planned = plan.objects_after();
    if objects != planned {
        let odd = objects.iter().find(|object| !planned.contains(object));
        let odd = odd.or_else(|| planned.iter().find(|object| !objects.contains(object)));
        let odd = odd.map(|object| format!("{} `{}`", object.kind, object.name)).unwrap_or_default();
        return Err(KeysError::Doubt { doubt: format!("the schema of {odd} would not be what was planned") });
    }
    let tables = schema::tables(conn).map_err(reading())?;
    for before in &plan.tables {
        let expected = expected(before, plan.rebuild_of(&before.name));
        if !tables.contains(&expected) {
            let doubt = format!(
                "the columns or foreign keys of table `{}` would not be what was planned",
                before.name
            );
            return Err(KeysError::Doubt { doubt });
        }
    }
    Ok(())
}

/// What a table is to be.
fn expected(before: &Table, rebuild: Option<&Rebuild>) -> Table {
    let mut table = before.clone();
    let Some(rebuild) = rebuild else { return table };
    let uuid_type = rewrite::uuid_type(table.is_strict);
    table.sql.clone_from(&rebuild.sql);
    if rebuild.key().is_some() {
        table.alias = None;
    }
    for column in &mut table.columns {
        if let Some(converted) = rebuild.converted(&column.name) {
            uuid_type.clone_into(&mut column.declared);
            column.is_not_null |= converted.is_rowid;
        }
    }
    table
}

fn counts_are_gone(conn: &Connection, plan: &Plan) -> Result<(), KeysError> {
    for rebuild in plan.rebuilds.iter().filter(|rebuild| rebuild.key().is_some()) {
        let table = &rebuild.table.name;
        if change::counted(conn, table).map_err(KeysError::during("reading the counts of keys"))?.is_some() {
            return Err(KeysError::Doubt { doubt: format!("table `{table}` would still count its keys") });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::migration::IntegerKeys;

    const SCHEMA: &str = "
        CREATE TABLE tags (id INTEGER PRIMARY KEY AUTOINCREMENT, label TEXT);
        CREATE TABLE notes (
            id INTEGER PRIMARY KEY, tag_id INTEGER REFERENCES tags (id), text TEXT, size AS (length(text)) STORED);
        CREATE INDEX by_text ON notes (text);
        CREATE TABLE other (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
        CREATE VIEW texts AS SELECT text FROM notes;
        CREATE TRIGGER gone AFTER DELETE ON other BEGIN SELECT 1; END;
        INSERT INTO tags VALUES (1, 'a'), (2, 'b');
        INSERT INTO notes VALUES (1, 1, 'x'), (2, 2, 'y'), (3, NULL, 'z');
        INSERT INTO other VALUES ('k', 1), ('l', 2.5);";

    /// Makes the change, then does something to it, and validates.
    fn tampered(with: &str) -> Result<(), KeysError> {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON").unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        let keys = IntegerKeys::new(Uuid::nil()).table("tags").table("notes");
        let plan = Plan::make(&conn, &keys).unwrap();
        let before = Fingerprint::take(&conn, &plan, When::Before).unwrap();
        change::make(&conn, &plan, &|_| ()).unwrap();
        conn.execute_batch(with).unwrap();
        after(&conn, &plan, &before)
    }

    #[test]
    fn whatever_is_not_as_it_should_be_is_a_doubt() {
        tampered("").unwrap();
        for (with, doubt) in [
            ("DELETE FROM notes WHERE text = 'z'", "table `notes` had 3 rows and would have 2"),
            ("INSERT INTO other VALUES ('m', NULL)", "table `other` had 2 rows and would have 3"),
            (
                "UPDATE notes SET text = 'Y' WHERE text = 'y'",
                "the values of `text` in table `notes` would not be",
            ),
            (
                "UPDATE other SET value = 1.0 WHERE key = 'k'",
                "the values of `value` in table `other` would not be",
            ),
            (
                "UPDATE notes SET rowid = 9 WHERE text = 'z'",
                "the values of `rowid` in table `notes` would not be",
            ),
            (
                "UPDATE notes SET tag_id = (SELECT id FROM tags WHERE label = 'b') WHERE tag_id IS NOT NULL",
                "the values of `tag_id` in table `notes` would not be",
            ),
            ("UPDATE notes SET tag_id = NULL", "the values of `tag_id` in table `notes` would not be"),
            (
                "UPDATE notes SET tag_id = id",
                "`tag_id` in table `notes` would hold something that is no key of `tags`",
            ),
            (
                "UPDATE notes SET id = randomblob(16)",
                "`id` in table `notes` would hold something that is no key",
            ),
            (
                "UPDATE notes SET tag_id = 1",
                "`tag_id` in table `notes` would hold something that is no key of `tags`",
            ),
            ("DROP INDEX by_text", "the schema of index `by_text` would not be what was planned"),
            (
                "CREATE INDEX more ON notes (tag_id)",
                "the schema of index `more` would not be what was planned",
            ),
            ("DROP TRIGGER gone", "the schema of trigger `gone` would not be what was planned"),
            (
                "ALTER TABLE notes ADD COLUMN more",
                "the schema of table `notes` would not be what was planned",
            ),
            ("INSERT INTO sqlite_sequence VALUES ('tags', 2)", "table `tags` would still count its keys"),
        ] {
            let text = tampered(with).unwrap_err().to_string();
            assert!(text.starts_with(&format!("validation found that {doubt}")), "{with}: {text}");
            assert!(
                text.contains(
                    "; everything was rolled back, and the database is byte for byte as it was. Look"
                )
            );
        }
    }
}

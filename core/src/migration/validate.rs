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
    let uuid_type = if table.is_strict { rewrite::STRICT_UUID_TYPE } else { rewrite::UUID_TYPE };
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

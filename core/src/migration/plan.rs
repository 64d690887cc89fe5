//! What is to be done, worked out from the schema alone, before a row is looked at.
//!
//! A column is converted if the caller named its table and it is the table's integer key, if the caller named it as a
//! reference, or if a foreign key leads from it to a converted column, over however many tables. Every converted
//! column has one *target*: the table of whose keys it holds one. A table with a converted column is rebuilt.

use rusqlite::Connection;
use uuid::Uuid;

use super::{
    IntegerKeys,
    error::KeysError,
    references::{self, References},
    rewrite::{self, Converted},
    schema::{self, Object, Table},
    token::tokens,
};

/// What to do about what cannot be carried over.
const AGAIN: &str = "Drop it before the migration, and make it again afterwards in a way that fits UUIDs";

/// What is to be done.
pub(super) struct Plan {
    pub(super) namespace: Uuid,
    /// All tables that hold rows, as they are.
    pub(super) tables: Vec<Table>,
    /// Everything in the schema that has a text, as it is.
    pub(super) objects: Vec<Object>,
    pub(super) rebuilds: Vec<Rebuild>,
    /// Tables whose keys become UUIDs, none of them a reference to another's.
    pub(super) targets: Vec<String>,
}

/// A table that is made again.
pub(super) struct Rebuild {
    pub(super) table: Table,
    pub(super) converted: Vec<Converted>,
    /// The text of the table afterwards.
    pub(super) sql: String,
}

impl Plan {
    pub(super) fn make(conn: &Connection, keys: &IntegerKeys) -> Result<Self, KeysError> {
        let reading = || KeysError::during("reading the schema");
        let tables = schema::tables(conn).map_err(reading())?;
        let objects = schema::objects(conn).map_err(reading())?;
        if keys.tables.iter().all(|name| references::has_uuids(&tables, name)) {
            return Err(KeysError::AlreadyUuids);
        }
        let references = References::of(&tables, &objects, keys)?;
        let mut rebuilds = Vec::new();
        for (i, table) in tables.iter().enumerate() {
            let converted = references.converted_in(&tables, i)?;
            if !converted.is_empty() {
                rebuilds.push(Rebuild::of(table, converted, &objects)?);
            }
        }
        let is_own = |rebuild: &&Rebuild| rebuild.key().is_some_and(|key| key.target == rebuild.table.name);
        let targets = rebuilds.iter().filter(is_own).map(|rebuild| rebuild.table.name.clone()).collect();
        let plan = Self { namespace: keys.namespace, tables, objects, rebuilds, targets };
        plan.refuse_virtual_tables()?;
        Ok(plan)
    }

    pub(super) fn rebuild_of(&self, table: &str) -> Option<&Rebuild> {
        self.rebuilds.iter().find(|rebuild| rebuild.table.name == table)
    }

    /// What the schema is to be afterwards, ordered.
    pub(super) fn objects_after(&self) -> Vec<Object> {
        let after = |object: &Object| {
            let rebuild = self.rebuild_of(&object.name).filter(|_| object.kind == "table");
            let sql = rebuild.map_or(&object.sql, |rebuild| &rebuild.sql).clone();
            Object { sql, ..object.clone() }
        };
        let mut objects: Vec<Object> = self.objects.iter().map(after).collect();
        objects.sort();
        objects
    }

    /// Views and triggers in whose texts a converted column of one of their tables occurs.
    pub(super) fn to_review(&self) -> Vec<String> {
        let is_concerned = |object: &&Object| {
            let occurs = |name: &str| rewrite::mentions(&object.sql, name);
            matches!(object.kind.as_str(), "view" | "trigger")
                && self.rebuilds.iter().any(|rebuild| {
                    occurs(&rebuild.table.name) && rebuild.converted.iter().any(|c| occurs(&c.column))
                })
        };
        self.objects.iter().filter(is_concerned).map(|object| object.name.clone()).collect()
    }

    /// A full-text index finds the rows of its table by an integer, whether it reads that table or triggers feed it.
    fn refuse_virtual_tables(&self) -> Result<(), KeysError> {
        let is_virtual =
            |object: &&Object| tokens(&object.sql).get(1).is_some_and(|token| token.is_word("VIRTUAL"));
        for object in self.objects.iter().filter(is_virtual) {
            let occurs = |name: &str| rewrite::mentions(&object.sql, name);
            let over = self.rebuilds.iter().find(|rebuild| occurs(&rebuild.table.name));
            if let Some(rebuild) = over.or_else(|| self.feeds(object)) {
                return Err(KeysError::Unsuitable {
                    what: format!("virtual table `{}`", object.name),
                    reason: format!(
                        "it may find rows of table `{}` by their integer keys",
                        rebuild.table.name
                    ),
                    remedy: AGAIN,
                });
            }
        }
        Ok(())
    }

    /// A table with a trigger that mentions both a converted column and this virtual table.
    fn feeds(&self, fed: &Object) -> Option<&Rebuild> {
        self.objects.iter().filter(|object| object.kind == "trigger").find_map(|trigger| {
            let occurs = |name: &str| rewrite::mentions(&trigger.sql, name);
            let rebuild = self.rebuild_of(&trigger.table).filter(|_| occurs(&fed.name))?;
            rebuild.converted.iter().any(|converted| occurs(&converted.column)).then_some(rebuild)
        })
    }
}

impl Rebuild {
    fn of(table: &Table, converted: Vec<Converted>, objects: &[Object]) -> Result<Self, KeysError> {
        for converted in &converted {
            refuse_column(table, converted)?;
        }
        refuse_calculation(table, &converted, objects)?;
        if table.has_rowid && table.rowid().is_none()
            || table.alias.is_some() && table.hidden_rowid().is_none()
        {
            return Err(KeysError::Unsuitable {
                what: format!("table `{}`", table.name),
                reason: "its columns take all names of the rowid (rowid, _rowid_, oid)".into(),
                remedy: "Rename one of them",
            });
        }
        let uuid_type = rewrite::uuid_type(table.is_strict);
        let Some(sql) = rewrite::table(&table.sql, &converted, uuid_type) else {
            return Err(KeysError::Unsuitable {
                what: format!("table `{}`", table.name),
                reason: "the definition of its key or a reference cannot be found in its CREATE TABLE".into(),
                remedy: "Make the table again with a plain definition",
            });
        };
        Ok(Self { table: table.clone(), converted, sql })
    }

    /// Of whose keys a column holds one, if it is converted.
    pub(super) fn converted(&self, column: &str) -> Option<&Converted> {
        self.converted.iter().find(|converted| converted.column == column)
    }

    /// Those that hold keys of other rows.
    pub(super) fn references(&self) -> impl Iterator<Item = &Converted> {
        let is_own_key = |converted: &Converted| converted.is_rowid && converted.target == self.table.name;
        self.converted.iter().filter(move |converted| !is_own_key(converted))
    }

    /// The key, if it is converted.
    pub(super) fn key(&self) -> Option<&Converted> {
        self.converted.iter().find(|converted| converted.is_rowid)
    }
}

/// What calculates with a key or a reference would get something else of a UUID.
fn refuse_calculation(table: &Table, converted: &[Converted], objects: &[Object]) -> Result<(), KeysError> {
    let refused = |what: String, column: &str| KeysError::Unsuitable {
        what,
        reason: format!(
            "it calculates with `{column}`, and would get something else of a UUID; it may only ask whether the \
             column is NULL or equals another reference"
        ),
        remedy: AGAIN,
    };
    if let Some(column) = rewrite::table_calculates(&table.sql, converted) {
        let what = format!("a constraint or generated column of table `{}`", table.name);
        return Err(refused(what, column));
    }
    for index in objects.iter().filter(|object| object.kind == "index" && object.table == table.name) {
        if let Some(column) = rewrite::index_calculates(&index.sql, converted) {
            return Err(refused(format!("index `{}` of table `{}`", index.name, table.name), column));
        }
    }
    Ok(())
}

/// What a column can be that no UUID can be put into, or not by rewriting its rows.
fn refuse_column(table: &Table, converted: &Converted) -> Result<(), KeysError> {
    let refused = |reason: String, remedy| {
        Err(KeysError::Unsuitable { what: format!("table `{}`", table.name), reason, remedy })
    };
    let name = &converted.column;
    let Some(column) = table.column(name).map(|i| &table.columns[i]) else { return Ok(()) };
    if column.is_generated {
        return refused(
            format!("the reference `{name}` is a generated column"),
            "Make it a plain column, or drop it and its foreign key",
        );
    }
    match column.default.as_deref() {
        Some(default) if !default.eq_ignore_ascii_case("NULL") => refused(
            format!("the reference `{name}` has the default {default}, which would be no key any more"),
            "Take the default away",
        ),
        _ => Ok(()),
    }
}

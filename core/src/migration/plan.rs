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
    rewrite::{self, Converted},
    schema::{self, Object, Table},
    token::tokens,
};

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

/// A column, by the indexes of its table and of itself.
type Place = (usize, usize);

impl Plan {
    pub(super) fn make(conn: &Connection, keys: &IntegerKeys) -> Result<Self, KeysError> {
        let reading = || KeysError::during("reading the schema");
        let tables = schema::tables(conn).map_err(reading())?;
        let objects = schema::objects(conn).map_err(reading())?;
        if keys.tables.iter().all(|name| has_uuids(&tables, name)) {
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

    /// A full-text index over a table finds its rows by an integer.
    fn refuse_virtual_tables(&self) -> Result<(), KeysError> {
        for object in &self.objects {
            let is_virtual = tokens(&object.sql).get(1).is_some_and(|token| token.is_word("VIRTUAL"));
            let over = |rebuild: &&Rebuild| rewrite::mentions(&object.sql, &rebuild.table.name);
            if let Some(rebuild) = self.rebuilds.iter().filter(|_| is_virtual).find(over) {
                return Err(KeysError::Unsuitable {
                    what: format!("virtual table `{}`", object.name),
                    reason: format!(
                        "it mentions table `{}`, whose rows it may find by their integer keys",
                        rebuild.table.name
                    ),
                    remedy: "Drop it before the migration, and make it again afterwards in a way that fits UUIDs",
                });
            }
        }
        Ok(())
    }
}

impl Rebuild {
    fn of(table: &Table, converted: Vec<Converted>, objects: &[Object]) -> Result<Self, KeysError> {
        for converted in &converted {
            refuse_column(table, converted)?;
        }
        let refused = |what: String, column: &str| KeysError::Unsuitable {
            what,
            reason: format!(
                "it calculates with `{column}`, and would get something else of a UUID; it may only ask whether the \
                 column is NULL or equals another reference"
            ),
            remedy: "Drop it before the migration, and make it again afterwards in a way that fits UUIDs",
        };
        if let Some(column) = rewrite::table_calculates(&table.sql, &converted) {
            return Err(refused(
                format!("a constraint or generated column of table `{}`", table.name),
                column,
            ));
        }
        for index in objects.iter().filter(|object| object.kind == "index" && object.table == table.name) {
            if let Some(column) = rewrite::index_calculates(&index.sql, &converted) {
                return Err(refused(format!("index `{}` of table `{}`", index.name, table.name), column));
            }
        }
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

    /// The key, if it is converted.
    pub(super) fn key(&self) -> Option<&Converted> {
        self.converted.iter().find(|converted| converted.is_rowid)
    }
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

/// Which columns hold keys of which others.
struct References {
    /// Keys of the tables that were named.
    keys: Vec<Place>,
    /// From a column to the one it refers to.
    edges: Vec<(Place, Place)>,
    /// All columns that are to be converted.
    converted: Vec<Place>,
}

impl References {
    fn of(tables: &[Table], objects: &[Object], keys: &IntegerKeys) -> Result<Self, KeysError> {
        let mut found = Self { keys: Vec::new(), edges: declared(tables), converted: Vec::new() };
        for name in &keys.tables {
            found.keys.push(key_named(tables, objects, name)?);
        }
        for (table, column, parent) in &keys.references {
            found.edges.push(reference_named(tables, objects, &found.keys, (table, column, parent))?);
        }
        found.converted.clone_from(&found.keys);
        let mut looked_at = 0;
        while let Some(&to) = found.converted.get(looked_at) {
            for &(from, _) in found.edges.iter().filter(|(_, parent)| *parent == to) {
                if !found.converted.contains(&from) {
                    found.converted.push(from);
                }
            }
            looked_at += 1;
        }
        Ok(found)
    }

    fn converted_in(&self, tables: &[Table], table: usize) -> Result<Vec<Converted>, KeysError> {
        let mut columns: Vec<usize> =
            self.converted.iter().filter(|place| place.0 == table).map(|place| place.1).collect();
        columns.sort_unstable();
        columns
            .into_iter()
            .map(|column| {
                let target = self.target(tables, (table, column))?;
                let is_rowid = tables[table].alias == Some(column);
                let column = tables[table].columns[column].name.clone();
                Ok(Converted { column, target: tables[target].name.clone(), is_rowid })
            })
            .collect()
    }

    /// The table of whose keys a column holds one: where its references end.
    fn target(&self, tables: &[Table], from: Place) -> Result<usize, KeysError> {
        let refused = |reason| KeysError::Unsuitable {
            what: format!("table `{}`", tables[from.0].name),
            reason,
            remedy: "Let each column refer to one table only",
        };
        let name = &tables[from.0].columns[from.1].name;
        let (mut ends, mut way) = (Vec::new(), vec![from]);
        let mut looked_at = 0;
        while let Some(&place) = way.get(looked_at) {
            let parents = self.edges.iter().filter(|(child, parent)| {
                *child == place && *parent != place && self.converted.contains(parent)
            });
            let parents: Vec<Place> = parents.map(|(_, parent)| *parent).collect();
            if parents.is_empty() && !ends.contains(&place.0) {
                ends.push(place.0);
            }
            way.extend(parents.into_iter().filter(|parent| !way.contains(parent)).collect::<Vec<_>>());
            looked_at += 1;
        }
        match ends[..] {
            [target] => Ok(target),
            [] => Err(refused(format!("the references of `{name}` lead in a circle"))),
            [one, other, ..] => Err(refused(format!(
                "`{name}` refers to both `{}` and `{}`, and their keys become different UUIDs",
                tables[one].name, tables[other].name
            ))),
        }
    }
}

/// The edges that the foreign keys of all tables declare, column by column.
fn declared(tables: &[Table]) -> Vec<(Place, Place)> {
    let mut edges = Vec::new();
    for (child, table) in tables.iter().enumerate() {
        for foreign_key in &table.foreign_keys {
            let Some(parent) = place_of(tables, &foreign_key.parent) else { continue };
            let key = tables[parent].key();
            for (i, (from, to)) in foreign_key.columns.iter().enumerate() {
                let to = to.as_deref().or_else(|| key.get(i).map(|column| column.name.as_str()));
                let to = to.and_then(|to| tables[parent].column(to));
                if let (Some(from), Some(to)) = (table.column(from), to) {
                    edges.push(((child, from), (parent, to)));
                }
            }
        }
    }
    edges
}

fn place_of(tables: &[Table], name: &str) -> Option<usize> {
    tables.iter().position(|table| table.name.eq_ignore_ascii_case(name))
}

/// Whether the key of a table is what this migration makes of one.
fn has_uuids(tables: &[Table], name: &str) -> bool {
    let table = place_of(tables, name).map(|i| &tables[i]);
    table.is_some_and(|table| match table.key()[..] {
        [key] => key.declared == rewrite::uuid_type(table.is_strict),
        _ => false,
    })
}

fn table_named(tables: &[Table], objects: &[Object], name: &str) -> Result<usize, KeysError> {
    place_of(tables, name).ok_or_else(|| {
        let other = objects.iter().find(|object| {
            matches!(object.kind.as_str(), "table" | "view") && object.name.eq_ignore_ascii_case(name)
        });
        let reason = match other {
            Some(object) if object.kind == "view" => "it is a view, and has no rows of its own",
            Some(_) => "it is a virtual table, whose rows are kept by a module",
            None => "there is no such table",
        };
        KeysError::Unsuitable {
            what: format!("table `{name}`"),
            reason: reason.into(),
            remedy: "Name only tables that the application has made",
        }
    })
}

fn key_named(tables: &[Table], objects: &[Object], name: &str) -> Result<Place, KeysError> {
    let i = table_named(tables, objects, name)?;
    let table = &tables[i];
    let reason = match (table.alias, &table.key()[..]) {
        (Some(alias), _) => return Ok((i, alias)),
        (None, _) if !table.has_rowid => "it is a WITHOUT ROWID table, which has no counted keys".to_owned(),
        (None, []) => "it has no primary key".to_owned(),
        (None, [key]) => format!(
            "its key `{}` is declared `{}` and is no INTEGER PRIMARY KEY; it may have been migrated already",
            key.name, key.declared
        ),
        (None, _) => {
            "its primary key has several columns; those that refer to a named table are converted with it"
                .into()
        }
    };
    Err(KeysError::Unsuitable {
        what: format!("table `{}`", table.name),
        reason,
        remedy: "Name only tables with a single INTEGER PRIMARY KEY",
    })
}

fn reference_named(
    tables: &[Table],
    objects: &[Object],
    keys: &[Place],
    (table, column, parent): (&str, &str, &str),
) -> Result<(Place, Place), KeysError> {
    let child = table_named(tables, objects, table)?;
    let refused = |reason, remedy| KeysError::Unsuitable { what: format!("table `{table}`"), reason, remedy };
    let Some(from) = tables[child].column(column) else {
        return Err(refused(format!("it has no column `{column}`"), "Name a reference that is there"));
    };
    let parent = table_named(tables, objects, parent)?;
    match keys.iter().find(|key| key.0 == parent) {
        Some(&key) => Ok(((child, from), key)),
        None => Err(refused(
            format!("`{column}` is to refer to `{}`, whose keys were not named", tables[parent].name),
            "Name that table with `table` too",
        )),
    }
}

//! Which columns hold keys of which others, over however many tables.

use super::{
    IntegerKeys,
    error::KeysError,
    rewrite::{self, Converted},
    schema::{Object, Table},
};

/// A column, by the indexes of its table and of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    table: usize,
    column: usize,
}

/// Which columns hold keys of which others.
pub(super) struct References {
    /// Keys of the tables that were named.
    keys: Vec<Place>,
    /// From a column to the one it refers to.
    edges: Vec<(Place, Place)>,
    /// All columns that are to be converted.
    converted: Vec<Place>,
}

impl References {
    pub(super) fn of(tables: &[Table], objects: &[Object], keys: &IntegerKeys) -> Result<Self, KeysError> {
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

    pub(super) fn converted_in(&self, tables: &[Table], table: usize) -> Result<Vec<Converted>, KeysError> {
        let mut columns: Vec<usize> =
            self.converted.iter().filter(|place| place.table == table).map(|place| place.column).collect();
        columns.sort_unstable();
        columns
            .into_iter()
            .map(|column| {
                let target = self.target(tables, Place { table, column })?;
                let is_rowid = tables[table].alias == Some(column);
                let column = tables[table].columns[column].name.clone();
                Ok(Converted { column, target: tables[target].name.clone(), is_rowid })
            })
            .collect()
    }

    /// The table of whose keys a column holds one: where its references end.
    fn target(&self, tables: &[Table], from: Place) -> Result<usize, KeysError> {
        let refused = |reason| KeysError::Unsuitable {
            what: format!("table `{}`", tables[from.table].name),
            reason,
            remedy: "Let each column refer to one table only",
        };
        let name = &tables[from.table].columns[from.column].name;
        let (mut ends, mut way) = (Vec::new(), vec![from]);
        let mut looked_at = 0;
        while let Some(&place) = way.get(looked_at) {
            let parents = self.edges.iter().filter(|(child, parent)| {
                *child == place && *parent != place && self.converted.contains(parent)
            });
            let parents: Vec<Place> = parents.map(|(_, parent)| *parent).collect();
            if parents.is_empty() && !ends.contains(&place.table) {
                ends.push(place.table);
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
                    edges.push((Place { table: child, column: from }, Place { table: parent, column: to }));
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
pub(super) fn has_uuids(tables: &[Table], name: &str) -> bool {
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
        (Some(column), _) => return Ok(Place { table: i, column }),
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
    match keys.iter().find(|key| key.table == parent) {
        Some(&key) => Ok((Place { table: child, column: from }, key)),
        None => Err(refused(
            format!("`{column}` is to refer to `{}`, whose keys were not named", tables[parent].name),
            "Name that table with `table` too",
        )),
    }
}

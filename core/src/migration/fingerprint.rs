//! All rows of a database, condensed so that before and after can be compared: for each table their number, and for
//! each column a checksum over its values in the order of the rows. Keys that have become UUIDs count as the integers
//! that they were made of, so a database has the same fingerprint before and after, or something is wrong with it.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;
use rusqlite::{Connection, types::ValueRef};
use uuid::Uuid;

use super::{error::KeysError, key, plan::Plan, rewrite::Converted, schema::Table};
use crate::capture::quote;

/// What is in each table.
pub(super) struct Fingerprint(pub(super) Vec<Print>);

/// What is in one table.
pub(super) struct Print {
    pub(super) table: String,
    pub(super) rows: u64,
    /// Name and checksum; the rowid, where there is one, comes first.
    columns: Vec<(String, u64)>,
}

/// Whether keys are still integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

impl Fingerprint {
    /// Reads the whole database.
    pub(super) fn take(conn: &Connection, plan: &Plan, when: When) -> Result<Self, KeysError> {
        plan.tables
            .iter()
            .map(|table| Print::take(conn, plan, table, when))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What differs, in words.
    pub(super) fn differs(&self, after: &Self) -> Option<String> {
        self.0.iter().zip(&after.0).find_map(|(before, after)| before.differs(after))
    }

    pub(super) fn rows(&self, table: &str) -> u64 {
        self.0.iter().find(|print| print.table == table).map_or(0, |print| print.rows)
    }
}

impl Print {
    fn take(conn: &Connection, plan: &Plan, table: &Table, when: When) -> Result<Self, KeysError> {
        let columns = Columns::of(plan, table, when);
        let failed = || KeysError::during(format!("reading the rows of table `{}`", table.name));
        let mut statement = conn.prepare(&columns.sql).map_err(failed())?;
        let mut rows = statement.query([]).map_err(failed())?;
        let mut sums: Vec<_> = columns.names.iter().map(|_| FixedState::default().build_hasher()).collect();
        let mut count = 0;
        while let Some(row) = rows.next().map_err(failed())? {
            for (i, sum) in sums.iter_mut().enumerate() {
                let value = row.get_ref(i).map_err(failed())?;
                match columns.converted[i] {
                    Some(converted) => add_key(sum, value, plan.namespace, converted, &table.name)?,
                    None => add(sum, value),
                }
            }
            count += 1;
        }
        let sums = sums.iter().map(Hasher::finish);
        Ok(Self {
            table: table.name.clone(),
            rows: count,
            columns: columns.names.into_iter().zip(sums).collect(),
        })
    }

    fn differs(&self, after: &Self) -> Option<String> {
        let table = &self.table;
        if self.rows != after.rows {
            return Some(format!("table `{table}` had {} rows and would have {}", self.rows, after.rows));
        }
        let mut pairs = self.columns.iter().zip(&after.columns);
        let (column, _) = pairs.find_map(|(before, after)| (before != after).then_some(before))?;
        Some(format!("the values of `{column}` in table `{table}` would not be what they were"))
    }
}

/// How the rows of a table are read.
struct Columns<'p> {
    names: Vec<String>,
    /// For each, whether it holds UUIDs that were integers.
    converted: Vec<Option<&'p Converted>>,
    sql: String,
}

impl<'p> Columns<'p> {
    fn of(plan: &'p Plan, table: &Table, when: When) -> Self {
        let rebuild = plan.rebuild_of(&table.name).filter(|_| when == When::After);
        let mut names: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        let mut converted: Vec<Option<&Converted>> =
            names.iter().map(|name| rebuild.and_then(|rebuild| rebuild.converted(name))).collect();
        let mut selected: Vec<String> = names.iter().map(|name| quote(name)).collect();
        // The rowid stays what it was, under whatever name it can be had now.
        let is_alias_gone = rebuild.is_some_and(|rebuild| rebuild.key().is_some());
        let rowid = if is_alias_gone { table.hidden_rowid().map(str::to_owned) } else { table.rowid() };
        let order = match rowid {
            Some(rowid) => {
                names.insert(0, "rowid".into());
                converted.insert(0, None);
                selected.insert(0, rowid.clone());
                rowid
            }
            None => table.key().iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", "),
        };
        let sql = format!("SELECT {} FROM main.{} ORDER BY {order}", selected.join(", "), quote(&table.name));
        Self { names, converted, sql }
    }
}

/// Adds a UUID as the integer that it was.
fn add_key(
    sum: &mut impl Hasher,
    value: ValueRef<'_>,
    namespace: Uuid,
    converted: &Converted,
    table: &str,
) -> Result<(), KeysError> {
    let old = match value {
        ValueRef::Null => ValueRef::Null,
        ValueRef::Blob(uuid) => match key::key_of(namespace, &converted.target, uuid) {
            Some(old) => ValueRef::Integer(old),
            None => return Err(no_key(converted, table)),
        },
        _ => return Err(no_key(converted, table)),
    };
    add(sum, old);
    Ok(())
}

fn no_key(converted: &Converted, table: &str) -> KeysError {
    KeysError::Doubt {
        doubt: format!(
            "`{}` in table `{table}` would hold something that is no key of `{}`",
            converted.column, converted.target
        ),
    }
}

fn add(sum: &mut impl Hasher, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => sum.write_u8(0),
        ValueRef::Integer(integer) => {
            sum.write_u8(1);
            sum.write_i64(integer);
        }
        ValueRef::Real(real) => {
            sum.write_u8(2);
            sum.write_u64(real.to_bits());
        }
        ValueRef::Text(bytes) => add_bytes(sum, 3, bytes),
        ValueRef::Blob(bytes) => add_bytes(sum, 4, bytes),
    }
}

fn add_bytes(sum: &mut impl Hasher, kind: u8, bytes: &[u8]) {
    sum.write_u8(kind);
    sum.write_usize(bytes.len());
    sum.write(bytes);
}

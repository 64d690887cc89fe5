//! The schema as SQLite tells it: what is looked at before, and must be found again behind the change.

use rusqlite::{Connection, Row, params};

use crate::capture::quote;

/// A table that holds rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) sql: String,
    pub(super) is_strict: bool,
    pub(super) has_rowid: bool,
    pub(super) columns: Vec<Column>,
    pub(super) foreign_keys: Vec<ForeignKey>,
    /// Index of the column that is the rowid under another name: an INTEGER PRIMARY KEY.
    pub(super) alias: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) declared: String,
    pub(super) is_not_null: bool,
    pub(super) default: Option<String>,
    /// Place in the primary key, from 1; 0 where it is not in it.
    pub(super) key_place: i64,
    pub(super) is_generated: bool,
}

/// A declared foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForeignKey {
    pub(super) id: i64,
    pub(super) parent: String,
    /// Own column, and the parent's; `None` for the parent's primary key.
    pub(super) columns: Vec<(String, Option<String>)>,
    /// On update, on delete, match.
    pub(super) actions: [String; 3],
}

/// Something in the schema that has a text of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    /// "table", "index", "view" or "trigger".
    pub(super) kind: String,
    pub(super) name: String,
    /// Table or view that it belongs to.
    pub(super) table: String,
    pub(super) sql: String,
}

impl Table {
    /// Index of a column.
    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// A name under which the rowid can be had, quoted; `None` where there is no rowid, or columns took all its names.
    pub(super) fn rowid(&self) -> Option<String> {
        if let Some(alias) = self.alias {
            return Some(quote(&self.columns[alias].name));
        }
        self.hidden_rowid().map(str::to_owned)
    }

    /// The rowid's name where no column is the rowid.
    pub(super) fn hidden_rowid(&self) -> Option<&'static str> {
        let is_free = |name: &&str| self.has_rowid && self.column(name).is_none();
        ["rowid", "_rowid_", "oid"].into_iter().find(is_free)
    }

    /// The columns of the primary key, in its order.
    pub(super) fn key(&self) -> Vec<&Column> {
        let mut key: Vec<&Column> = self.columns.iter().filter(|column| column.key_place > 0).collect();
        key.sort_by_key(|column| column.key_place);
        key
    }

    /// An expression that says which row it is, for people.
    pub(super) fn row_name(&self, of: &str) -> String {
        match self.rowid() {
            Some(rowid) => format!("'row ' || {of}.{rowid}"),
            None => {
                let key: Vec<String> =
                    self.key().iter().map(|column| format!("quote({of}.{})", quote(&column.name))).collect();
                if key.is_empty() {
                    "'a row'".into()
                } else {
                    format!("'row ' || {}", key.join(" || ', ' || "))
                }
            }
        }
    }
}

/// All tables that hold rows, in the order in which they were made.
pub(super) fn tables(conn: &Connection) -> rusqlite::Result<Vec<Table>> {
    let listed = "SELECT l.name, s.sql, l.strict, l.wr FROM pragma_table_list AS l
        JOIN main.sqlite_schema AS s ON s.type = 'table' AND s.name = l.name
        WHERE l.schema = 'main' AND l.type IN ('table', 'shadow') AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
        ORDER BY s.rowid";
    let mut listed = conn.prepare(listed)?;
    let read = |row: &Row<'_>| {
        let name: String = row.get(0)?;
        let columns = columns(conn, &name)?;
        let has_rowid = !row.get::<_, bool>(3)?;
        Ok(Table {
            alias: if has_rowid { rowid_alias(conn, &name, &columns)? } else { None },
            foreign_keys: foreign_keys(conn, &name)?,
            columns,
            sql: row.get(1)?,
            is_strict: row.get(2)?,
            has_rowid,
            name,
        })
    };
    listed.query_map([], read)?.collect()
}

/// The columns of a table or view, without those that only queries of virtual tables have.
pub(super) fn columns(conn: &Connection, table: &str) -> rusqlite::Result<Vec<Column>> {
    let sql =
        "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1) WHERE hidden <> 1
        ORDER BY cid";
    let read = |row: &Row<'_>| {
        Ok(Column {
            name: row.get(0)?,
            declared: row.get(1)?,
            is_not_null: row.get(2)?,
            default: row.get(3)?,
            key_place: row.get(4)?,
            is_generated: row.get::<_, i64>(5)? > 1,
        })
    };
    conn.prepare_cached(sql)?.query_map([table], read)?.collect()
}

/// `INTEGER PRIMARY KEY`, and no index for it: `INTEGER PRIMARY KEY DESC` is no alias of the rowid.
fn rowid_alias(conn: &Connection, table: &str, columns: &[Column]) -> rusqlite::Result<Option<usize>> {
    let mut key = columns.iter().enumerate().filter(|(_, column)| column.key_place > 0);
    let (Some((i, column)), None) = (key.next(), key.next()) else { return Ok(None) };
    let has_index = "SELECT 1 FROM pragma_index_list(?1) WHERE origin = 'pk'";
    let is_alias = column.declared.eq_ignore_ascii_case("INTEGER")
        && !conn.prepare_cached(has_index)?.exists([table])?;
    Ok(is_alias.then_some(i))
}

fn foreign_keys(conn: &Connection, table: &str) -> rusqlite::Result<Vec<ForeignKey>> {
    let sql = "SELECT id, \"table\", \"from\", \"to\", on_update, on_delete, match
        FROM pragma_foreign_key_list(?1) ORDER BY id, seq";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([table])?;
    let mut found: Vec<ForeignKey> = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, pair) = (row.get(0)?, (row.get(2)?, row.get(3)?));
        match found.last_mut().filter(|last| last.id == id) {
            Some(last) => last.columns.push(pair),
            None => found.push(ForeignKey {
                id,
                parent: row.get(1)?,
                columns: vec![pair],
                actions: [row.get(4)?, row.get(5)?, row.get(6)?],
            }),
        }
    }
    Ok(found)
}

/// Everything that has a text, in the order in which it was made.
pub(super) fn objects(conn: &Connection) -> rusqlite::Result<Vec<Object>> {
    let sql = "SELECT type, name, tbl_name, sql FROM main.sqlite_schema
        WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid";
    let read = |row: &Row<'_>| {
        Ok(Object { kind: row.get(0)?, name: row.get(1)?, table: row.get(2)?, sql: row.get(3)? })
    };
    conn.prepare(sql)?.query_map([], read)?.collect()
}

/// Whether the main database has a table or view of this name.
pub(super) fn exists(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')";
    conn.prepare_cached(sql)?.exists(params![table])
}

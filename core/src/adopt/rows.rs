//! The rows of one table in the order of their keys: where a batch ends, and what captures it.

use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};

use super::KIND_ADOPT;
use crate::{
    capture::quote,
    error::Error,
    row_text,
    sql::{Bound, read_value},
    store::Model,
    value::Value,
};

/// How far up a tree a batch looks for parents that have later keys; what is above them goes in its own turn.
const DEPTH_MAX: u32 = 64;

/// The statements over the rows of one table, in the order of their keys.
pub(super) struct Rows {
    table: String,
    fields: Vec<String>,
    key: Vec<String>,
    /// Columns that refer to a row of the same table, and the column there.
    parents: Vec<(String, String)>,
}

impl Rows {
    pub(super) fn of(conn: &Connection, model: &Model) -> Result<Self, Error> {
        let name = |i: &usize| quote(&model.descriptor.fields[*i].name);
        let key: Vec<String> = model.descriptor.key.iter().map(name).collect();
        let parents = foreign_keys(conn, &model.descriptor.table)?
            .into_iter()
            .filter(|foreign| foreign.table.eq_ignore_ascii_case(&model.descriptor.table))
            .filter_map(|foreign| {
                // Without a column it refers to the primary key.
                let to =
                    foreign.to.map(|to| quote(&to)).or_else(|| (key.len() == 1).then(|| key[0].clone()))?;
                Some((quote(&foreign.from), to))
            })
            .collect();
        Ok(Self {
            table: quote(&model.descriptor.table),
            fields: model.descriptor.field_names().map(quote).collect(),
            key,
            parents,
        })
    }

    /// A record that has no name on other devices cannot be synced, and must not be left behind without a word.
    pub(super) fn refuse_unnamed(&self, conn: &Connection, model: &Model) -> Result<(), Error> {
        let is_null = self.key.iter().map(|k| format!("{k} IS NULL")).collect::<Vec<_>>().join(" OR ");
        let sql = format!("SELECT count(*) FROM {} WHERE {is_null}", self.table);
        let rows: u64 = conn.query_row(&sql, [], |row| row.get(0))?;
        if rows == 0 {
            return Ok(());
        }
        Err(Error::Table {
            model: model.descriptor.id.to_owned(),
            table: model.descriptor.table.clone(),
            reason: format!(
                "{rows} of its rows are NULL in the key ({}), so other devices could not name them",
                self.key.join(", ")
            ),
            remedy: "Fill the key in these rows, or delete them, and adopt again".to_owned(),
        })
    }

    pub(super) fn read_key(&self, json: &str) -> Result<Vec<Value>, Error> {
        row_text::read(json, &vec![false; self.key.len()])
            .map_err(|e| Error::Damaged(format!("the position `{json}` of an adoption: {e}")))
    }

    /// The key in the order of its bytes, whatever the columns' collations: `t."a" COLLATE BINARY, …`.
    fn sorted(&self, of: &str) -> String {
        self.key.iter().map(|k| format!("{of}.{k} COLLATE BINARY")).collect::<Vec<_>>().join(", ")
    }

    fn list(&self, of: &str) -> String {
        self.key.iter().map(|k| format!("{of}.{k}")).collect::<Vec<_>>().join(", ")
    }

    fn places(&self, from: usize) -> String {
        (from..from + self.key.len()).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ")
    }

    /// Condition of the rows behind `after` up to `upto`, whose values are parameters in this order.
    fn range(&self, after: Option<&[Value]>, upto: Option<&[Value]>) -> String {
        let (key, leading) = (self.sorted("t"), format!("t.{} COLLATE BINARY", self.key[0]));
        let first = after.map_or(1, |after| after.len() + 1);
        // Of a key of several columns SQLite searches its index for the first one only.
        let lower = after.map(|_| format!("{leading} >= ?1 AND ({key}) > ({})", self.places(1)));
        let upper = upto.map(|_| format!("{leading} <= ?{first} AND ({key}) <= ({})", self.places(first)));
        let bounds: Vec<String> = lower.into_iter().chain(upper).collect();
        if bounds.is_empty() { "TRUE".to_owned() } else { bounds.join(" AND ") }
    }

    /// The key of the row that many behind `after`; `None` if there are fewer.
    pub(super) fn key_at(
        &self,
        conn: &Connection,
        after: Option<&[Value]>,
        rows: u64,
    ) -> Result<Option<Vec<Value>>, Error> {
        let sql = format!(
            "SELECT {} FROM {} t WHERE {} ORDER BY {} LIMIT 1 OFFSET {}",
            self.list("t"),
            self.table,
            self.range(after, None),
            self.sorted("t"),
            rows.saturating_sub(1)
        );
        let key = |row: &Row<'_>| (0..self.key.len()).map(|i| Ok(read_value(row.get_ref(i)?))).collect();
        let values = after.unwrap_or_default().iter().map(Bound);
        Ok(conn.prepare(&sql)?.query_row(params_from_iter(values), key).optional()?)
    }

    /// Captures the rows behind `after` up to `upto`, parents first, those among them that have later keys. Returns the
    /// rows of the range.
    pub(super) fn capture(
        &self,
        conn: &Connection,
        shape: i64,
        after: Option<&[Value]>,
        upto: Option<&[Value]>,
    ) -> Result<u64, Error> {
        let bounds: Vec<Bound<'_>> =
            after.unwrap_or_default().iter().chain(upto.unwrap_or_default()).map(Bound).collect();
        let range = self.range(after, upto);
        if self.parents.is_empty() {
            let sql = format!("{} WHERE {range} ORDER BY {}", self.insert(shape, ""), self.sorted("t"));
            return Ok(conn.prepare(&sql)?.execute(params_from_iter(&bounds))? as u64);
        }
        conn.prepare(&self.insert_tree(shape, &range, after.is_some()))?
            .execute(params_from_iter(&bounds))?;
        let count = format!("SELECT count(*) FROM {} t WHERE {range}", self.table);
        Ok(conn.prepare(&count)?.query_row(params_from_iter(&bounds), |row| row.get(0))?)
    }

    /// `INSERT INTO sync_outbox … SELECT … FROM table t`. The clock is read on its own: a join could be planned the other
    /// way round, and sort.
    fn insert(&self, shape: i64, joined: &str) -> String {
        let places: String = (0..self.fields.len()).map(|i| format!(", v{i}")).collect();
        let values: String = self.fields.iter().map(|f| format!(", t.{f}")).collect();
        format!(
            "INSERT INTO sync_outbox (shape, kind, mode, at{places}) SELECT {shape}, {KIND_ADOPT}, 0,
                coalesce((SELECT clock FROM sync_ctl), CAST(unixepoch('subsec') * 1000 AS INTEGER)){values}
             FROM {joined}{} t",
            self.table
        )
    }

    /// [`Rows::insert`] of a range and of all above its rows that no earlier batch has taken: the higher, the earlier.
    /// SQLite is held to the order of the joins: begun from the table, each batch would go through all of it.
    fn insert_tree(&self, shape: i64, range: &str, has_after: bool) -> String {
        let names: Vec<String> = (0..self.key.len()).map(|i| format!("k{i}")).collect();
        let names = names.join(", ");
        let same = |row: &str| {
            let equal = self.key.iter().enumerate().map(|(i, k)| format!("{row}.{k} = up.k{i}"));
            equal.collect::<Vec<_>>().join(" AND ")
        };
        let refers: Vec<String> =
            self.parents.iter().map(|(from, to)| format!("p.{to} = c.{from}")).collect();
        let not_taken = if has_after {
            format!("AND ({}) > ({})", self.sorted("p"), self.places(1))
        } else {
            String::new()
        };
        format!(
            "WITH RECURSIVE up ({names}, depth) AS (
                SELECT {}, 0 FROM {table} t WHERE {range}
                UNION
                SELECT {}, up.depth + 1 FROM up CROSS JOIN {table} c ON {} CROSS JOIN {table} p ON {}
                WHERE up.depth < {DEPTH_MAX} {not_taken}
             ), tree AS (SELECT {names}, max(depth) AS depth FROM up GROUP BY {names})
             {} ON {} ORDER BY up.depth DESC",
            self.list("t"),
            self.list("p"),
            same("c"),
            refers.join(" OR "),
            self.insert(shape, "tree up CROSS JOIN "),
            same("t"),
            table = self.table,
        )
    }
}

/// A column that refers to another, alone.
pub(super) struct ForeignKey {
    pub(super) table: String,
    from: String,
    to: Option<String>,
}

pub(super) fn foreign_keys(conn: &Connection, table: &str) -> Result<Vec<ForeignKey>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT \"table\", min(\"from\"), min(\"to\") FROM pragma_foreign_key_list(?1) GROUP BY id HAVING count(*) = 1",
    )?;
    let keys = statement.query_map([table], |row| {
        Ok(ForeignKey { table: row.get(0)?, from: row.get(1)?, to: row.get(2)? })
    })?;
    Ok(keys.collect::<Result<_, _>>()?)
}

//! Foreign keys as the database has them, and questions about single rows: does it refer to a row that is not there, is
//! it referred to though it is gone. Asked by the leader, which checks a group's references when all of it is there.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params_from_iter};

use crate::{capture::quote, error::Error, sql::Bound, value::Value};

/// The questions about rows of one table, as SQL whose parameters are the values of the model's key.
#[derive(Debug, Default)]
pub(crate) struct References {
    /// A row of the record that refers to nothing.
    refers: Vec<Question>,
    /// A row of another table that refers to the record, which is gone.
    referred: Vec<Question>,
    /// What the table's rows refer to.
    parents: Vec<Parent>,
    /// The database deletes or changes rows of other tables along with one of this.
    cascades: bool,
}

/// What rows of a table refer to by some of their columns.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) from: Vec<String>,
    pub(crate) table: String,
    /// Columns there, in the order of `from`.
    pub(crate) to: Vec<String>,
}

#[derive(Debug)]
struct Question {
    sql: String,
    /// What is wrong if there is a row.
    says: String,
    /// Columns beside the key that it depends on: a write to one of them can take from others what they refer to.
    beside_key: Vec<String>,
}

struct ForeignKey {
    child: String,
    from: Vec<String>,
    parent: String,
    to: Vec<String>,
    /// What happens to the parent happens to the child, in some way.
    cascades: bool,
}

impl References {
    /// Of a table, the records of which are named by these columns.
    pub(crate) fn of(conn: &Connection, table: &str, key: &[&str]) -> Result<Self, Error> {
        let is = |name: &str| name.eq_ignore_ascii_case(table);
        let mut references = Self::default();
        for foreign in all(conn)? {
            if is(&foreign.child) {
                references.refers.push(foreign.refers(key));
                references.parents.push(Parent {
                    from: foreign.from.clone(),
                    table: foreign.parent.clone(),
                    to: foreign.to.clone(),
                });
            }
            if is(&foreign.parent) {
                references.referred.push(foreign.referred(key));
                references.cascades |= foreign.cascades;
            }
        }
        Ok(references)
    }

    /// What the table's rows refer to.
    pub(crate) fn parents(&self) -> &[Parent] {
        &self.parents
    }

    /// Whether the database deletes or changes rows of other tables along with one of this.
    pub(crate) fn cascade(&self) -> bool {
        self.cascades
    }

    /// Whether rows of the table refer to others, or others to them.
    pub(crate) fn bind(&self) -> bool {
        !self.refers.is_empty() || !self.referred.is_empty()
    }

    /// Whether rows of the table refer to others.
    pub(crate) fn has_any(&self) -> bool {
        !self.refers.is_empty()
    }

    /// Why the record's row, as it stands, does not satisfy its foreign keys; `None` if it does, or is gone.
    pub(crate) fn refers_to_nothing(
        &self,
        conn: &Connection,
        key: &[Value],
    ) -> Result<Option<String>, Error> {
        ask(conn, self.refers.iter(), key)
    }

    /// Why the record, which is gone, may not be; `None` if nothing refers to it, or it is there.
    pub(crate) fn is_referred_to(&self, conn: &Connection, key: &[Value]) -> Result<Option<String>, Error> {
        ask(conn, self.referred.iter(), key)
    }

    /// Why the record's columns of which `is_written` may not be what they are now: others refer to what they were.
    pub(crate) fn was_referred_to(
        &self,
        conn: &Connection,
        key: &[Value],
        is_written: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, Error> {
        let concerned = |question: &&Question| question.beside_key.iter().any(|column| is_written(column));
        ask(conn, self.referred.iter().filter(concerned), key)
    }

    /// Whether others refer to the record by columns beside its key of which one is written.
    pub(crate) fn are_beside_key(&self, is_written: impl Fn(&str) -> bool) -> bool {
        self.referred.iter().any(|question| question.beside_key.iter().any(|column| is_written(column)))
    }
}

fn ask<'q>(
    conn: &Connection,
    questions: impl Iterator<Item = &'q Question>,
    key: &[Value],
) -> Result<Option<String>, Error> {
    for question in questions {
        let mut statement = conn.prepare_cached(&question.sql)?;
        // A question that the key does not help with asks about the whole table.
        let params = key.iter().take(statement.parameter_count()).map(Bound);
        if statement.query_row(params_from_iter(params), |_| Ok(())).optional()?.is_some() {
            return Ok(Some(question.says.clone()));
        }
    }
    Ok(None)
}

impl ForeignKey {
    /// Rows of the child that refer to nothing, under a condition.
    fn dangling(&self, condition: &str) -> String {
        let pairs: Vec<(String, String)> =
            self.from.iter().zip(&self.to).map(|(from, to)| (quote(from), quote(to))).collect();
        let join = |each: &dyn Fn(&(String, String)) -> String| {
            pairs.iter().map(each).collect::<Vec<_>>().join(" AND ")
        };
        let given = join(&|(from, _)| format!("c.{from} IS NOT NULL"));
        let found = join(&|(from, to)| format!("p.{to} = c.{from}"));
        let (child, parent) = (quote(&self.child), quote(&self.parent));
        format!(
            "SELECT 1 FROM {child} c WHERE {condition}{given} AND NOT EXISTS (SELECT 1 FROM {parent} p WHERE {found})
             LIMIT 1"
        )
    }

    fn refers(&self, key: &[&str]) -> Question {
        let is_record = key.iter().enumerate().map(|(i, k)| format!("c.{} IS ?{} AND ", quote(k), i + 1));
        Question {
            sql: self.dangling(&is_record.collect::<String>()),
            says: format!(
                "its {} refers to a row of `{}` that is not there",
                self.from.join(", "),
                self.parent
            ),
            beside_key: Vec::new(),
        }
    }

    fn referred(&self, key: &[&str]) -> Question {
        let place = |to: &String| key.iter().position(|k| k.eq_ignore_ascii_case(to));
        let places: Option<Vec<usize>> = self.to.iter().map(place).collect();
        let to_record = places.map(|places| {
            let from = self.from.iter().zip(places);
            from.map(|(from, i)| format!("c.{} = ?{} AND ", quote(from), i + 1)).collect::<String>()
        });
        Question {
            sql: self.dangling(&to_record.unwrap_or_default()),
            says: format!("a row of `{}` still refers to it", self.child),
            beside_key: self.to.iter().filter(|to| place(to).is_none()).cloned().collect(),
        }
    }
}

/// Every foreign key of the database.
fn all(conn: &Connection) -> Result<Vec<ForeignKey>, Error> {
    let mut statement = conn.prepare(
        "SELECT m.name, f.id, f.\"table\", f.\"from\", f.\"to\",
            f.on_update NOT IN ('NO ACTION', 'RESTRICT') OR f.on_delete NOT IN ('NO ACTION', 'RESTRICT')
         FROM sqlite_master m, pragma_foreign_key_list(m.name) f
         WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq",
    )?;
    // By child and number: the parent, the columns, and those that they point to.
    type Found = (String, Vec<String>, Vec<Option<String>>, bool);
    let mut found: BTreeMap<(String, i64), Found> = BTreeMap::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key = found.entry((row.get(0)?, row.get(1)?)).or_default();
        key.0 = row.get(2)?;
        key.1.push(row.get(3)?);
        key.2.push(row.get(4)?);
        key.3 = row.get(5)?;
    }
    let with_names = found.into_iter().map(|((child, _), (parent, from, to, cascades))| {
        let to = match to.into_iter().collect::<Option<Vec<String>>>() {
            Some(to) => to,
            // Columns that are not named are those of the primary key.
            None => conn
                .prepare_cached("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk")?
                .query_map([&parent], |row| row.get(0))?
                .collect::<Result<_, _>>()?,
        };
        Ok(ForeignKey { child, from, parent, to, cascades })
    });
    with_names.collect()
}

//! Trees: a model that says `tree = "parent_id"` has rows that form a forest by that column. Two devices that move two
//! rows below each other would together make a circle of it, though neither did: no database refuses that, so the leader
//! does, when all of a group is there, for a group may well go through a circle and out of it again.
//!
//! Of each circle the last change that moved a row of it is refused; the others stand. Circles that were there before, which
//! only the leader's own application can have made, are nobody else's fault and refuse nothing.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    capture::quote,
    entry::{Change, EntryKind},
    error::Error,
    id::OriginSeq,
    model::{Field, ModelDescriptor},
    sql::{Bound, read_value},
    store::{Model, Tx},
    value::{self, Value},
};

/// Levels that a tree may have: what would come to lie deeper is refused.
pub(crate) const DEPTH_MAX: usize = 10_000;

/// The column by which a model's rows form a forest, and the questions about it.
#[derive(Debug)]
pub(crate) struct Tree {
    column: &'static str,
    /// The parent of the row with this key.
    parent: String,
    /// The row with this key and all above it, up to a number: the key of each, and that of the row above it, if there is one.
    above: String,
}

/// What is wrong with `column` as a tree's, in words that begin with it; `None` if nothing is.
pub(crate) fn mistake(column: &str, fields: &[Field], key: &[usize]) -> Option<String> {
    let Some(at) = fields.iter().position(|f| f.name == column) else {
        return Some("is not synced".to_owned());
    };
    let (parent, [key]) = (&fields[at], key) else {
        return Some("is one column, and the key has several".to_owned());
    };
    if at == *key {
        return Some("is the key itself".to_owned());
    }
    if parent.kind != fields[*key].kind {
        return Some(format!("holds {:?}, and the key is {:?}", parent.kind, fields[*key].kind));
    }
    (!parent.nullable).then(|| "may not be NULL, which is what a root has".to_owned())
}

/// Where the parents of a row lead.
#[derive(Debug, PartialEq)]
enum Above {
    /// To a root, or to a row that is not there, past these rows, the first among them.
    Out(Vec<Value>),
    /// Back to the row, past these.
    Back(Vec<Value>),
    /// Into a circle that the row is not in.
    Astray,
    /// Further than [`DEPTH_MAX`].
    TooFar,
}

impl Tree {
    /// Of a model that has one.
    pub(crate) fn of(model: &ModelDescriptor) -> Option<Self> {
        let [key] = model.key.as_slice() else { return None };
        Some(Self::over(&model.table, &model.fields[*key].name, model.options.tree?))
    }

    fn over(table: &str, key: &str, column: &'static str) -> Self {
        let (table, key, parent) = (quote(table), quote(key), quote(column));
        Self {
            column,
            parent: format!("SELECT {parent} FROM {table} WHERE {key} IS ?1"),
            // UNION, not UNION ALL: a circle further up ends the walk.
            above: format!(
                "WITH RECURSIVE above (id, parent) AS (
                    SELECT {key}, {parent} FROM {table} WHERE {key} IS ?1
                    UNION
                    SELECT t.{key}, t.{parent} FROM above a JOIN {table} t ON t.{key} = a.parent
                    LIMIT ?2
                 )
                 SELECT id, (SELECT t.{key} FROM {table} t WHERE t.{key} = above.parent) FROM above"
            ),
        }
    }

    fn parent(&self, conn: &Connection, key: &Value) -> Result<Option<Value>, Error> {
        Ok(conn
            .prepare_cached(&self.parent)?
            .query_row([Bound(key)], |row| Ok(read_value(row.get_ref(0)?)))
            .optional()?)
    }

    fn above(&self, conn: &Connection, key: &Value) -> Result<Above, Error> {
        let mut statement = conn.prepare_cached(&self.above)?;
        let mut rows = statement.query(params![Bound(key), DEPTH_MAX + 1])?;
        let mut passed = Vec::new();
        let mut next = Value::Null;
        while let Some(row) = rows.next()? {
            passed.push(read_value(row.get_ref(0)?));
            next = read_value(row.get_ref(1)?);
        }
        Ok(match next {
            _ if passed.len() > DEPTH_MAX => Above::TooFar,
            Value::Null => Above::Out(passed),
            next if passed.first() == Some(&next) => Above::Back(passed),
            _ => Above::Astray,
        })
    }

    fn makes_circle(&self) -> String {
        format!(
            "the record would be above itself in its tree: its parents, by `{}`, lead back to it",
            self.column
        )
    }

    fn is_too_deep(&self) -> String {
        format!("the record would be deeper than {DEPTH_MAX} levels below a root, by `{}`", self.column)
    }
}

/// A row that came below another one.
#[derive(Debug)]
struct Move {
    /// Number of the change.
    by: OriginSeq,
    /// Index of the model.
    model: usize,
    key: Value,
    parent: Value,
}

/// The moves of a group, in order.
#[derive(Debug, Default)]
pub(crate) struct Moves(Vec<Move>);

/// Whether the rows of the change's model form a tree.
pub(crate) fn has(tx: &Tx<'_>, change: &Change) -> bool {
    tree_of(tx, change).is_some()
}

/// What the record's row names as its parent now; `None` if it is not there, or its model has no tree.
pub(crate) fn parent(tx: &Tx<'_>, change: &Change) -> Result<Option<Value>, Error> {
    match tree_of(tx, change) {
        Some((_, tree, key)) => tree.parent(tx.conn, key),
        None => Ok(None),
    }
}

/// Whether the record's row, as it stands, is above itself.
pub(crate) fn is_in_circle(tx: &Tx<'_>, change: &Change) -> Result<bool, Error> {
    match tree_of(tx, change) {
        Some((_, tree, key)) => Ok(matches!(tree.above(tx.conn, key)?, Above::Back(_))),
        None => Ok(false),
    }
}

/// Whether what was just written put the record above itself. `before` is what [`parent`] said before it was written.
pub(crate) fn closes_circle(tx: &Tx<'_>, change: &Change, before: Option<&Value>) -> Result<bool, Error> {
    Ok(parent(tx, change)?.as_ref() != before && is_in_circle(tx, change)?)
}

/// The tree of the change's model, and the key of its record.
fn tree_of<'t>(tx: &Tx<'t>, change: &'t Change) -> Option<(usize, &'t Tree, &'t Value)> {
    let index = tx.models.iter().position(|m| m.descriptor.id == change.shape.model)?;
    let Model { tree, shape, .. } = &tx.models[index];
    let tree = tree.as_ref()?;
    let name = &shape.fields[*shape.key.first()?];
    let at = change.shape.fields.iter().position(|f| f == name)?;
    Some((index, tree, change.row.get(at)?))
}

impl Moves {
    /// Notes what a change that was just written moved, and what the database cascaded from it. `before` is what
    /// [`parent`] said before it was written.
    pub(crate) fn note(
        &mut self,
        tx: &Tx<'_>,
        by: OriginSeq,
        change: &Change,
        before: Option<&Value>,
        derived: &[Change],
    ) -> Result<(), Error> {
        let of_derived = derived.iter().filter(|change| change.effect() == EntryKind::Upsert);
        for (change, before) in std::iter::once((change, before)).chain(of_derived.map(|c| (c, None))) {
            let Some((model, tree, key)) = tree_of(tx, change) else { continue };
            let parent = tree.parent(tx.conn, key)?;
            if let Some(parent) = parent.filter(|parent| *parent != Value::Null && Some(parent) != before) {
                self.0.push(Move { by, model, key: key.clone(), parent });
            }
        }
        Ok(())
    }

    /// The changes that have to be refused for the forest to stay one, by number, each with the reason.
    pub(crate) fn found_unsound(&self, tx: &Tx<'_>) -> Result<HashMap<OriginSeq, String>, Error> {
        let mut refused = HashMap::new();
        // Rows whose circle is taken care of; how deep rows are of which it is known that they are in none.
        let mut in_circle: HashSet<(usize, String)> = HashSet::new();
        let mut depths: HashMap<(usize, String), usize> = HashMap::new();
        for Move { by, model, key, parent } in self.0.iter().rev() {
            let Some(tree) = &tx.models[*model].tree else { continue };
            let id = |key: &Value| (*model, value::record_id(std::iter::once(key)));
            let itself = id(key);
            if in_circle.contains(&itself) || depths.contains_key(&itself) {
                continue;
            }
            if let Some(depth) = depths.get(&id(parent)).filter(|depth| **depth < DEPTH_MAX) {
                let depth = depth + 1;
                depths.insert(itself, depth);
                continue;
            }
            match tree.above(tx.conn, key)? {
                Above::Out(passed) => {
                    let upwards = (1..=passed.len()).rev();
                    depths.extend(passed.iter().map(id).zip(upwards));
                }
                Above::Back(passed) => {
                    in_circle.extend(passed.iter().map(id));
                    refused.insert(*by, tree.makes_circle());
                }
                Above::TooFar => {
                    refused.insert(*by, tree.is_too_deep());
                }
                // Of that circle another one is refused, or it was there before.
                Above::Astray => {}
            }
        }
        Ok(refused)
    }
}

#[cfg(test)]
mod overlaid;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

    use super::*;

    fn text(value: &str) -> Value {
        Value::Text(value.into())
    }

    fn rows(sql: &str) -> (Connection, Tree) {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE \"a \"\"table\" (id TEXT PRIMARY KEY COLLATE NOCASE, \"in\" TEXT)")
            .unwrap();
        conn.execute_batch(&format!("INSERT INTO \"a \"\"table\" {sql}")).unwrap();
        (conn, Tree::over("a \"table", "id", "in"))
    }

    #[test]
    fn a_walk_upwards_ends_whatever_is_there() {
        let (conn, tree) = rows(
            "VALUES ('root', NULL), ('a', 'ROOT'), ('b', 'a'), ('orphan', 'nobody'), ('self', 'self'),
                ('x', 'z'), ('y', 'x'), ('z', 'y'), ('below x', 'x')",
        );
        let above = |key: &str| tree.above(&conn, &text(key)).unwrap();
        assert_eq!(above("b"), Above::Out(vec![text("b"), text("a"), text("root")]));
        assert_eq!(above("orphan"), Above::Out(vec![text("orphan")]));
        assert_eq!(above("not there"), Above::Out(vec![]));
        assert_eq!(above("self"), Above::Back(vec![text("self")]));
        assert_eq!(above("x"), Above::Back(vec![text("x"), text("z"), text("y")]));
        assert_eq!(above("below x"), Above::Astray);
        assert_eq!(tree.parent(&conn, &text("A")).unwrap(), Some(text("ROOT")));
        assert_eq!(tree.parent(&conn, &text("root")).unwrap(), Some(Value::Null));
        assert_eq!(tree.parent(&conn, &text("not there")).unwrap(), None);
    }

    #[test]
    fn a_walk_upwards_goes_only_so_far() {
        let chain = format!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {})
             SELECT 'n' || i, iif(i > 1, 'n' || (i - 1), NULL) FROM n",
            DEPTH_MAX + 1
        );
        let (conn, tree) = rows(&chain);
        let above = |n: usize| tree.above(&conn, &text(&format!("n{n}"))).unwrap();
        assert!(matches!(above(DEPTH_MAX), Above::Out(passed) if passed.len() == DEPTH_MAX));
        assert_eq!(above(DEPTH_MAX + 1), Above::TooFar);
    }

    #[test]
    fn what_is_no_tree_is_told() {
        use sea_orm::sea_query::ArrayType;
        let field = |name: &str, kind, nullable| Field {
            name: name.into(),
            kind,
            nullable,
            default: None,
            reducer: None,
        };
        let fields = [
            field("id", ArrayType::Uuid, false),
            field("in", ArrayType::Uuid, true),
            field("name", ArrayType::String, true),
            field("always", ArrayType::Uuid, false),
        ];
        let mistake = |column, key: &[usize]| mistake(column, &fields, key).unwrap_or_default();
        assert_eq!(mistake("in", &[0]), "");
        assert_eq!(mistake("id", &[0]), "is the key itself");
        assert_eq!(mistake("local", &[0]), "is not synced");
        assert_eq!(mistake("name", &[0]), "holds String, and the key is Uuid");
        assert_eq!(mistake("in", &[0, 2]), "is one column, and the key has several");
        assert!(mistake("always", &[0]).starts_with("may not be NULL"));
    }
}

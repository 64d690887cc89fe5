//! The texts of a table and its indexes: the types of some columns changed, and whether everything else still means
//! what it meant.
//!
//! A constraint, a generated column or an index may *calculate* with a key; of a UUID it would get something else, or
//! nothing. So an expression may ask of such a column only what a UUID answers alike: whether it is NULL, whether it
//! equals another reference to the same table, or what stands in its place where it is NULL. All else is refused.

use std::ops::Range;

use super::token::{Kind, Token, closing, parts, tokens};

/// The type that SeaORM's migrations give a UUID on SQLite. It holds the sixteen bytes as a blob.
const UUID_TYPE: &str = "uuid_text";
/// The same in a STRICT table, which knows no other types than SQLite's own.
const STRICT_UUID_TYPE: &str = "BLOB";

/// Words that end a column's type.
const CONSTRAINTS: [&str; 11] = [
    "CONSTRAINT",
    "PRIMARY",
    "NOT",
    "NULL",
    "UNIQUE",
    "CHECK",
    "DEFAULT",
    "COLLATE",
    "REFERENCES",
    "GENERATED",
    "AS",
];
/// Words that begin a constraint of the table, where a column's name would stand.
const TABLE_CONSTRAINTS: [&str; 5] = ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"];

/// A column that is to hold UUIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Converted {
    pub(super) column: String,
    /// Table of whose keys it holds one.
    pub(super) target: String,
    /// It was the rowid, so it was never NULL.
    pub(super) is_rowid: bool,
}

/// How a column that holds UUIDs is declared.
pub(super) fn uuid_type(is_strict: bool) -> &'static str {
    if is_strict { STRICT_UUID_TYPE } else { UUID_TYPE }
}

/// The text of a table with the types of these columns changed; `None` where a column cannot be found in it.
///
/// A column that was the rowid loses AUTOINCREMENT, which only integers can have, and gets NOT NULL, which SQLite
/// demands of no other primary key by itself. Every other byte stays.
pub(super) fn table(sql: &str, converted: &[Converted], uuid_type: &str) -> Option<String> {
    let tokens = tokens(sql);
    let body = body(&tokens)?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for converted in converted {
        let definition = parts(body).into_iter().find(|part| defines(part, &converted.column))?;
        edits.push(type_edit(definition, converted, uuid_type)?);
        if converted.is_rowid {
            let gone = body.iter().filter(|token| token.is_word("AUTOINCREMENT"));
            edits.extend(gone.map(|token| (with_blanks(sql, token.span()), String::new())));
        }
    }
    edits.sort_by_key(|(span, _)| span.start);
    let mut text = sql.to_owned();
    for (span, new) in edits.into_iter().rev() {
        text.replace_range(span, &new);
    }
    Some(text)
}

/// What stands in a table's outer brackets.
fn body<'t, 's>(tokens: &'t [Token<'s>]) -> Option<&'t [Token<'s>]> {
    let open = tokens.iter().position(|token| token.is_mark("("))?;
    tokens.get(open + 1..closing(tokens, open))
}

fn defines(part: &[Token<'_>], column: &str) -> bool {
    part.first().is_some_and(|first| !first.is_one_of(&TABLE_CONSTRAINTS) && first.is_name(column))
}

fn type_edit(part: &[Token<'_>], converted: &Converted, uuid_type: &str) -> Option<(Range<usize>, String)> {
    let name = part.first()?;
    let declared: Vec<&Token<'_>> =
        part[1..].iter().take_while(|token| !token.is_one_of(&CONSTRAINTS)).collect();
    let span = match (declared.first(), declared.last()) {
        (Some(first), Some(last)) => first.span().start..last.span().end,
        _ => name.span().end..name.span().end,
    };
    let blank = if span.is_empty() { " " } else { "" };
    let is_not_null = part.windows(2).any(|pair| pair[0].is_word("NOT") && pair[1].is_word("NULL"));
    let not_null = if converted.is_rowid && !is_not_null { " NOT NULL" } else { "" };
    Some((span, format!("{blank}{uuid_type}{not_null}")))
}

/// The span and the blanks before it.
fn with_blanks(sql: &str, span: Range<usize>) -> Range<usize> {
    sql[..span.start].trim_end().len()..span.end
}

/// The first converted column that an expression of the table calculates with.
pub(super) fn table_calculates<'c>(sql: &str, converted: &'c [Converted]) -> Option<&'c str> {
    let tokens = tokens(sql);
    let body = body(&tokens)?;
    let opens = body
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[0].is_one_of(&["CHECK", "AS"]) && pair[1].is_mark("("));
    opens
        .filter_map(|(i, _)| body.get(i + 2..closing(body, i + 1)))
        .find_map(|expression| calculates(expression, converted))
}

/// The first converted column that an expression of the index calculates with.
pub(super) fn index_calculates<'c>(sql: &str, converted: &'c [Converted]) -> Option<&'c str> {
    let tokens = tokens(sql);
    let open = tokens.iter().position(|token| token.is_mark("("))?;
    let close = closing(&tokens, open);
    let columns = parts(tokens.get(open + 1..close)?).into_iter();
    let condition = tokens.get(close + 2..).unwrap_or_default();
    columns
        .filter(|part| !is_plain_column(part))
        .chain([condition])
        .find_map(|expression| calculates(expression, converted))
}

/// A column of an index that is a column of the table, in whatever order and collation.
fn is_plain_column(part: &[Token<'_>]) -> bool {
    matches!(part.first(), Some(first) if matches!(first.kind, Kind::Word | Kind::Quoted))
        && part.get(1).is_none_or(|next| next.is_one_of(&["COLLATE", "ASC", "DESC"]))
}

/// The first converted column of which an expression asks more than a UUID can answer.
fn calculates<'c>(expression: &[Token<'_>], converted: &'c [Converted]) -> Option<&'c str> {
    let mut i = 0;
    while i < expression.len() {
        let rest = &expression[i..];
        let harmless = if begins(expression, i) { harmless(rest, converted) } else { None };
        if let Some(length) = harmless {
            i += length;
            continue;
        }
        if let Some(found) = column(rest.first(), converted) {
            return Some(&found.column);
        }
        i += 1;
    }
    None
}

/// Whether an operand of AND, OR or NOT, or a whole expression, begins here.
fn begins(expression: &[Token<'_>], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).map(|i| &expression[i]) else { return true };
    before.is_mark("(")
        || before.is_mark(",")
        || before.is_one_of(&["AND", "OR", "NOT", "WHEN", "THEN", "ELSE"])
}

/// Length of a question that a UUID answers as an integer does, and that is the whole operand.
fn harmless(rest: &[Token<'_>], converted: &[Converted]) -> Option<usize> {
    let length = stands_in(rest, converted)
        .or_else(|| asks_for_null(rest, converted))
        .or_else(|| compares_two(rest, converted))?;
    let ends = rest.get(length).is_none_or(|after| {
        after.is_mark(")")
            || after.is_mark(",")
            || after.is_one_of(&["AND", "OR", "WHEN", "THEN", "ELSE", "END", "COLLATE", "ASC", "DESC"])
    });
    ends.then_some(length)
}

/// `coalesce(column, constant)`: the usual way to make NULL take part in a unique index.
fn stands_in(rest: &[Token<'_>], converted: &[Converted]) -> Option<usize> {
    let [function, open, of, comma, constant, close, ..] = rest else { return None };
    let is_call = function.is_one_of(&["coalesce", "ifnull"]) && open.is_mark("(") && close.is_mark(")");
    let is_constant = matches!(constant.kind, Kind::Literal | Kind::Text);
    (is_call && column(Some(of), converted).is_some() && comma.is_mark(",") && is_constant).then_some(6)
}

fn asks_for_null(rest: &[Token<'_>], converted: &[Converted]) -> Option<usize> {
    column(rest.first(), converted)?;
    const FORMS: [&[&str]; 5] =
        [&["IS", "NULL"], &["IS", "NOT", "NULL"], &["NOT", "NULL"], &["ISNULL"], &["NOTNULL"]];
    let reads = |form: &&&[&str]| {
        form.iter().enumerate().all(|(i, word)| rest.get(i + 1).is_some_and(|token| token.is_word(word)))
    };
    FORMS.iter().find(reads).map(|form| form.len() + 1)
}

fn compares_two(rest: &[Token<'_>], converted: &[Converted]) -> Option<usize> {
    let one = column(rest.first(), converted)?;
    let operator = rest.get(1)?;
    let is_equality =
        ["=", "==", "<>", "!="].iter().any(|mark| operator.is_mark(mark)) || operator.is_word("IS");
    let other = column(rest.get(2), converted)?;
    (is_equality && one.target == other.target).then_some(3)
}

fn column<'c>(token: Option<&Token<'_>>, converted: &'c [Converted]) -> Option<&'c Converted> {
    let token = token.filter(|token| token.kind != Kind::Text)?;
    converted.iter().find(|converted| token.is_name(&converted.column))
}

/// Whether a text has this name in it, as a name or as a string.
pub(super) fn mentions(sql: &str, name: &str) -> bool {
    tokens(sql).iter().any(|token| token.is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(columns: &[(&str, &str)]) -> Vec<Converted> {
        columns
            .iter()
            .map(|(column, target)| Converted {
                column: (*column).into(),
                target: (*target).into(),
                is_rowid: *column == "id",
            })
            .collect()
    }

    #[test]
    fn only_types_change() {
        let keys = converted(&[("id", "dirs"), ("parent_id", "dirs"), ("bare", "dirs")]);
        for (before, after) in [
            (
                "CREATE TABLE dirs (\"id\" integer NOT NULL PRIMARY KEY AUTOINCREMENT, \"parent_id\" bigint(20) NULL,\n bare, x TEXT)",
                "CREATE TABLE dirs (\"id\" uuid_text NOT NULL PRIMARY KEY, \"parent_id\" uuid_text NULL,\n bare uuid_text, x TEXT)",
            ),
            (
                "CREATE TABLE dirs(id INTEGER, -- id INTEGER\n parent_id UNSIGNED BIG INT REFERENCES dirs ON DELETE CASCADE, bare REFERENCES dirs, PRIMARY KEY (id AUTOINCREMENT)) ",
                "CREATE TABLE dirs(id uuid_text NOT NULL, -- id INTEGER\n parent_id uuid_text REFERENCES dirs ON DELETE CASCADE, bare uuid_text REFERENCES dirs, PRIMARY KEY (id)) ",
            ),
            (
                "CREATE TABLE dirs([id] INTEGER CONSTRAINT \"the, key\" PRIMARY KEY, 'parent_id' INT DEFAULT NULL, bare INT CHECK (bare IS NULL))",
                "CREATE TABLE dirs([id] uuid_text NOT NULL CONSTRAINT \"the, key\" PRIMARY KEY, 'parent_id' uuid_text DEFAULT NULL, bare uuid_text CHECK (bare IS NULL))",
            ),
        ] {
            assert_eq!(table(before, &keys, UUID_TYPE).as_deref(), Some(after));
        }
        assert_eq!(table("CREATE TABLE dirs (id INTEGER PRIMARY KEY)", &keys, UUID_TYPE), None);
    }

    #[test]
    fn expressions_may_ask_for_null_and_equality_and_nothing_else() {
        let keys = converted(&[("id", "dirs"), ("parent_id", "dirs"), ("tag_id", "tags")]);
        for harmless in [
            "parent_id IS NULL",
            "name <> '' AND parent_id NOTNULL OR NOT tag_id IS NOT NULL",
            "parent_id <> id",
            "(parent_id IS NULL) = (tag_id IS NULL)",
            "coalesce(parent_id, 0)",
            "length(name) > 3 AND 'id' <> name",
            "CASE WHEN parent_id IS NULL THEN 1 ELSE 2 END > 0",
        ] {
            let sql = format!("CREATE TABLE t (a INT, CHECK ({harmless}))");
            assert_eq!(table_calculates(&sql, &keys), None, "{harmless}");
            assert_eq!(
                index_calculates(&format!("CREATE INDEX i ON t (a) WHERE {harmless}"), &keys),
                None,
                "{harmless}"
            );
        }
        for (refused, column) in [
            ("id > 0", "id"),
            ("a + parent_id IS NULL", "parent_id"),
            ("parent_id IS NULL + 1", "parent_id"),
            ("typeof(id) = 'integer'", "id"),
            ("parent_id <> tag_id", "parent_id"),
            ("parent_id = 5", "parent_id"),
            ("coalesce(parent_id, 0) + 1", "parent_id"),
            ("name = 'x' || \"ID\"", "id"),
            ("t.id IS NULL", "id"),
        ] {
            let sql = format!("CREATE TABLE t (a INT CHECK ({refused}))");
            assert_eq!(table_calculates(&sql, &keys), Some(column), "{refused}");
            assert_eq!(
                index_calculates(&format!("CREATE INDEX i ON t (a) WHERE {refused}"), &keys),
                Some(column)
            );
        }
        assert_eq!(table_calculates("CREATE TABLE t (id, b AS (id % 7) STORED)", &keys), Some("id"));
        assert_eq!(
            index_calculates("CREATE UNIQUE INDEX \"i (\" ON \"t\" (\"id\" DESC, tag_id)", &keys),
            None
        );
        assert_eq!(index_calculates("CREATE INDEX i ON t (id + 0)", &keys), Some("id"));
        assert_eq!(index_calculates("CREATE INDEX i ON t (coalesce(tag_id, 0), name)", &keys), None);
    }
}

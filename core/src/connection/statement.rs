//! What can be told of a statement before it runs: whether it only reads, and whether its values can be
//! stored.
//!
//! This is a look, not a parser. A statement that only reads but does not look so takes a turn at the gate
//! that it did not need; the other way round cannot happen, since nothing that begins with one of the reading
//! keywords writes.

use sea_orm::{DbErr, Statement, Value};

/// What a statement is, as far as its text shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Cannot change the database.
    Read,
    /// May change the database, or is not understood.
    Write,
    /// Begins, ends or nests a transaction, alone.
    TransactionControl,
}

const CONTROL: [&str; 6] = ["begin", "commit", "end", "rollback", "savepoint", "release"];
const WRITING: [&str; 4] = ["insert", "update", "delete", "replace"];
/// Endings of the pragmas that read with an argument in parentheses: `table_info(t)`, `index_list(t)`, ….
const READING_PRAGMAS: [&str; 3] = ["info", "list", "check"];

/// Reads off the first keyword what a text does.
pub(crate) fn kind(sql: &str) -> Kind {
    let sql = skip_blank(sql);
    let word_end = sql.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(sql.len());
    let (word, rest) = sql.split_at(word_end);
    if CONTROL.iter().any(|keyword| word.eq_ignore_ascii_case(keyword)) {
        return if is_alone(rest) { Kind::TransactionControl } else { Kind::Write };
    }
    let reads = match_keyword(word, rest);
    if reads && is_alone(rest) { Kind::Read } else { Kind::Write }
}

fn match_keyword(word: &str, rest: &str) -> bool {
    let is = |keyword: &str| word.eq_ignore_ascii_case(keyword);
    if is("select") || is("explain") || is("values") {
        return true;
    }
    if is("with") {
        return !words(rest).any(|w| WRITING.iter().any(|writing| w.eq_ignore_ascii_case(writing)));
    }
    if is("pragma") {
        if rest.contains('=') {
            return false;
        }
        return match rest.split_once('(') {
            None => true,
            Some((name, _)) => READING_PRAGMAS.iter().any(|ending| name.trim_end().ends_with(ending)),
        };
    }
    false
}

/// Whether no other statement follows. A `;` inside a literal counts as one: then it is taken for a write.
fn is_alone(rest: &str) -> bool {
    rest.find(';').is_none_or(|end| skip_blank(&rest[end..]).is_empty())
}

fn words(sql: &str) -> impl Iterator<Item = &str> {
    sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

/// Skips white space, stray semicolons and comments.
fn skip_blank(mut sql: &str) -> &str {
    loop {
        sql = sql.trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == '\u{feff}');
        if let Some(comment) = sql.strip_prefix("--") {
            sql = comment.find('\n').map_or("", |end| &comment[end..]);
        } else if let Some(comment) = sql.strip_prefix("/*") {
            sql = comment.find("*/").map_or("", |end| &comment[end + 2..]);
        } else {
            return sql;
        }
    }
}

/// Refuses what the driver would panic at.
///
/// # Errors
/// A `u64` above `i64::MAX`, which SQLite's integers cannot hold.
pub(crate) fn check_values(statement: &Statement) -> Result<(), DbErr> {
    let Some(values) = &statement.values else { return Ok(()) };
    for (index, value) in values.0.iter().enumerate() {
        if let Value::BigUnsigned(Some(number)) = value
            && i64::try_from(*number).is_err()
        {
            return Err(DbErr::Custom(format!(
                "the value {number} (parameter {} of `{}`) is above {}, the largest integer that \
                 SQLite stores; nothing was written. Keep such numbers as text or bytes, or as the i64 of the same bits",
                index + 1,
                shortened(&statement.sql),
                i64::MAX,
            )));
        }
    }
    Ok(())
}

/// At most 80 characters of a statement, for error texts.
pub(crate) fn shortened(sql: &str) -> String {
    const LONGEST: usize = 80;
    match sql.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &sql[..end]),
        None => sql.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_statements_are_told_from_others() {
        for sql in [
            "SELECT 1",
            "  select * from t;",
            "-- a comment\n/* another */ SELECT 1 ; -- the end",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "VALUES (1)",
            "PRAGMA data_version",
            "PRAGMA table_info(t)",
            "WITH a AS (SELECT 1) SELECT * FROM a",
        ] {
            assert_eq!(kind(sql), Kind::Read, "{sql}");
        }
        for sql in [
            "INSERT INTO t VALUES (1)",
            "insert into t default values returning id",
            "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a",
            "with a as (select 1)\nDELETE from t",
            "PRAGMA user_version = 3",
            "PRAGMA user_version(3)",
            "SELECT 1; DELETE FROM t",
            "BEGIN; DELETE FROM t; COMMIT",
            "CREATE TABLE t (a)",
            "",
            "selectx",
        ] {
            assert_eq!(kind(sql), Kind::Write, "{sql}");
        }
        for sql in ["BEGIN", "begin immediate;", "COMMIT", "savepoint a", "RELEASE a"] {
            assert_eq!(kind(sql), Kind::TransactionControl, "{sql}");
        }
    }

    #[test]
    fn only_numbers_that_fit_pass() {
        let with = |n: u64| {
            Statement::from_sql_and_values(sea_orm::DbBackend::Sqlite, "INSERT INTO t VALUES (?)", [n.into()])
        };
        assert!(check_values(&with(i64::MAX as u64)).is_ok());
        let error = check_values(&with(i64::MAX as u64 + 1)).expect_err("does not fit").to_string();
        assert!(error.contains("9223372036854775808") && error.contains("nothing was written"), "{error}");
    }
}

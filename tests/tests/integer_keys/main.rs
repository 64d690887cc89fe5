//! Integer keys become UUIDs: what a database keeps, what is refused, and that nothing is lost, killed or not.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

mod kept;
mod killed;
mod refused;
mod trial;

use std::{fs, path::PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;
use tidelog::migration::{IntegerKeys, Report, integer_keys_to_uuids};
use tidelog_tests::counted::{self, NAMESPACE};

/// Notes with tags, and a column that may refer to tags too.
pub(crate) const NOTES: &str = "CREATE TABLE tags (id INTEGER PRIMARY KEY);
    CREATE TABLE notes (id INTEGER PRIMARY KEY, tag_id INTEGER REFERENCES tags (id), seen INTEGER, text TEXT);
    INSERT INTO tags VALUES (1), (2);
    INSERT INTO notes VALUES (10, 1, 1, 'a'), (11, 2, NULL, 'b'), (12, NULL, 2, 'c');";

/// A file in a folder of its own.
pub(crate) struct Place {
    _folder: TempDir,
    pub(crate) file: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { file: folder.path().join("app.sqlite"), _folder: folder }
    }

    pub(crate) fn with(sql: &str) -> Self {
        let place = Self::new();
        place.run(sql);
        place
    }

    pub(crate) fn of_seed(seed: u64) -> Self {
        let place = Self::new();
        counted::make(&place.file, seed).unwrap();
        place
    }

    pub(crate) fn open(&self) -> Connection {
        Connection::open(&self.file).unwrap()
    }

    /// Runs statements with foreign keys off, so that they may do damage.
    pub(crate) fn run(&self, sql: &str) {
        let conn = self.open();
        conn.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF").unwrap();
        conn.execute_batch(sql).unwrap();
        conn.close().unwrap();
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.file).unwrap()
    }

    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.file.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    pub(crate) fn backup(&self) -> PathBuf {
        self.beside(".before-uuid-keys")
    }

    /// The names of all files there, the lock's aside.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.file.parent().unwrap()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "app.sqlite-sync");
        names.sort();
        names
    }

    /// Expects a refusal that leaves the file as it was and nothing beside it. Returns its text.
    pub(crate) fn refused(&self, keys: &IntegerKeys) -> String {
        let (bytes, files) = (self.bytes(), self.files());
        let error = integer_keys_to_uuids(&self.file, keys).unwrap_err();
        assert!(self.bytes() == bytes, "the file has changed: {error}");
        assert_eq!(self.files(), files, "{error}");
        error.to_string()
    }

    pub(crate) fn migrate(&self, keys: &IntegerKeys) -> Report {
        integer_keys_to_uuids(&self.file, keys).unwrap()
    }

    pub(crate) fn one<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.open().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

pub(crate) fn keys(tables: &[&str]) -> IntegerKeys {
    tables.iter().fold(IntegerKeys::new(NAMESPACE), |keys, table| keys.table(*table))
}

/// The schema's texts, in order of name; or without what the migration may change.
pub(crate) fn schema(conn: &Connection, database: &str, is_key_blind: bool) -> Vec<String> {
    let sql = format!(
        "SELECT sql FROM {database}.sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY type, name"
    );
    let texts = conn
        .prepare(&sql)
        .unwrap()
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    if !is_key_blind {
        return texts;
    }
    const CHANGED: [&str; 8] =
        ["uuid_text", "BIGINT(20)", "INTEGER", "integer", "INT", "BLOB", "AUTOINCREMENT", "NOT NULL"];
    let blind = |text: String| {
        let gone = CHANGED.iter().fold(text, |text, word| text.replace(word, ""));
        gone.chars().filter(|c| !c.is_whitespace()).collect()
    };
    texts.into_iter().map(blind).collect()
}

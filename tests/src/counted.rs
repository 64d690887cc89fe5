//! Databases whose keys count up, made from seeds: the same seed, the same file. They hold what a migration of keys can
//! stumble over: references to the own table and to none, composite keys, references through a join table, a key
//! that is a reference itself, columns that refer without a foreign key, strict tables, tables without rowid, gaps,
//! negative and huge keys, texts that are no UTF-8.

use std::path::Path;

use rusqlite::{Connection, params, types::Value};
use tidelog::migration::IntegerKeys;
use uuid::Uuid;

/// The namespace of all keys that are made of these databases.
pub const NAMESPACE: Uuid = Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0002);

/// The tables whose keys become UUIDs, and their keys.
pub const KEYS: [(&str, &str); 5] =
    [("users", "id"), ("folders", "id"), ("files", "id"), ("tags", "id"), ("profiles", "user_id")];

/// All references to those keys: table, column, parent. The last has no foreign key.
pub const REFERENCES: [(&str, &str, &str); 10] = [
    ("users", "invited_by", "users"),
    ("folders", "parent_id", "folders"),
    ("files", "folder_id", "folders"),
    ("files", "owner_id", "users"),
    ("file_tags", "file_id", "files"),
    ("file_tags", "tag_id", "tags"),
    ("remarks", "file_id", "files"),
    ("remarks", "tag_id", "tags"),
    ("profiles", "user_id", "users"),
    ("visits", "visited", "files"),
];

/// Every table, in the order in which it is filled.
pub const TABLES: [&str; 9] =
    ["users", "profiles", "folders", "files", "tags", "file_tags", "remarks", "visits", "settings"];

/// Rows of a table: the fewest and the most.
const ROWS: (u64, u64) = (100, 2000);
/// Pages in memory while a database is made; nothing of it is ever written twice.
const CACHE_KIB: i64 = 16 * 1024;

/// What the migration is asked for.
pub fn keys() -> IntegerKeys {
    KEYS.iter()
        .fold(IntegerKeys::new(NAMESPACE), |keys, (table, _)| keys.table(*table))
        .reference("visits", "visited", "files")
}

/// Numbers that follow from a seed (SplitMix64: Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed throws the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `sides`.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    fn maybe(&mut self, of: &[i64]) -> Option<i64> {
        (!of.is_empty() && !self.one_in(3)).then(|| *self.pick(of))
    }
}

/// Makes the database of a seed.
///
/// # Errors
/// SQLite's.
pub fn make(path: &Path, seed: u64) -> rusqlite::Result<()> {
    let mut dice = Dice::new(seed);
    let conn = Connection::open(path)?;
    let page_size = *dice.pick(&[1024, 4096, 4096, 8192]);
    let encoding = if dice.one_in(8) { "UTF-16le" } else { "UTF-8" };
    let journal = if dice.one_in(2) { "WAL" } else { "DELETE" };
    conn.execute_batch(&format!(
        "PRAGMA page_size = {page_size}; PRAGMA encoding = '{encoding}'; PRAGMA synchronous = OFF;
         PRAGMA cache_size = -{CACHE_KIB}; PRAGMA foreign_keys = ON; BEGIN"
    ))?;
    conn.execute_batch(&schema(&mut dice))?;
    Filler { conn: &conn, dice: &mut dice }.fill()?;
    conn.execute_batch(TRIGGERS)?;
    if dice.one_in(4) {
        conn.execute_batch("ANALYZE")?;
    }
    conn.execute_batch("COMMIT")?;
    conn.query_row(&format!("PRAGMA journal_mode = {journal}"), [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error)
}

/// The tables, as different people would write them.
fn schema(dice: &mut Dice) -> String {
    let counted = |dice: &mut Dice| match dice.below(3) {
        0 => "\"id\" integer NOT NULL PRIMARY KEY AUTOINCREMENT",
        1 => "id INTEGER PRIMARY KEY",
        _ => "[id] INTEGER CONSTRAINT the_key PRIMARY KEY ASC AUTOINCREMENT /* counted, from 1 */",
    };
    let strict = if dice.one_in(3) { "STRICT" } else { "" };
    let without_rowid = if dice.one_in(2) { "WITHOUT ROWID" } else { "" };
    let autoincrement = if dice.one_in(2) { " AUTOINCREMENT" } else { "" };
    let deferred = if dice.one_in(2) { "DEFERRABLE INITIALLY DEFERRED" } else { "" };
    format!(
        "CREATE TABLE users (
            {users}, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
            \"invited_by\" integer NULL, -- id of another, or of nobody
            FOREIGN KEY (invited_by) REFERENCES users (id) ON DELETE SET NULL ON UPDATE CASCADE {deferred});
         CREATE TABLE profiles (user_id INTEGER PRIMARY KEY REFERENCES users ON DELETE CASCADE, about TEXT DEFAULT 'id') {strict};
         CREATE TABLE folders (
            {folders}, parent_id INT REFERENCES folders (id) ON DELETE CASCADE CHECK (parent_id <> id),
            name TEXT NOT NULL, UNIQUE (parent_id, name));
         CREATE UNIQUE INDEX folders_at_the_top ON folders (name) WHERE parent_id IS NULL;
         CREATE TABLE `files` (
            {files}, `folder_id` BIGINT(20) NOT NULL REFERENCES folders (id) ON DELETE RESTRICT,
            owner_id REFERENCES users (id) ON DELETE SET DEFAULT, name, size REAL, content BLOB,
            length INTEGER GENERATED ALWAYS AS (length(content)) STORED, shown TEXT AS (name || '!') VIRTUAL,
            CHECK (size >= 0 AND (owner_id IS NULL OR folder_id NOT NULL)));
         CREATE INDEX files_in ON files (folder_id, name DESC);
         CREATE INDEX files_by_length ON files (length(name), owner_id) WHERE owner_id IS NOT NULL;
         CREATE UNIQUE INDEX tagged ON files (coalesce(owner_id, 0), id);
         CREATE TABLE tags (id INTEGER, label TEXT NOT NULL, PRIMARY KEY (\"id\"{autoincrement})) {strict};
         CREATE TABLE file_tags (
            file_id INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
            tag_id INTEGER NOT NULL REFERENCES tags (id) ON DELETE CASCADE,
            weight REAL, PRIMARY KEY (file_id, tag_id)) {without_rowid};
         CREATE TABLE remarks (
            id INTEGER PRIMARY KEY AUTOINCREMENT, file_id INTEGER, tag_id INTEGER, remark TEXT,
            FOREIGN KEY (file_id, tag_id) REFERENCES file_tags (file_id, tag_id) ON DELETE CASCADE);
         CREATE TABLE visits (at TEXT, visited INTEGER, rowid TEXT);
         CREATE TABLE settings (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
         CREATE VIEW titles AS SELECT f.id, f.name, u.name AS owner FROM files f LEFT JOIN users u ON u.id = f.owner_id;",
        users = counted(dice),
        folders = counted(dice),
        files = counted(dice),
    )
}

const TRIGGERS: &str = "
    CREATE TRIGGER visited AFTER INSERT ON files BEGIN
        INSERT INTO visits (at, visited) VALUES ('now', NEW.id);
    END;
    CREATE TRIGGER renamed INSTEAD OF UPDATE OF name ON titles BEGIN
        UPDATE files SET name = NEW.name WHERE id = OLD.id;
    END;";

/// Fills the tables.
struct Filler<'c> {
    conn: &'c Connection,
    dice: &'c mut Dice,
}

impl Filler<'_> {
    fn fill(&mut self) -> rusqlite::Result<()> {
        let users = self.tree("INSERT INTO users (id, invited_by, name) VALUES (?1, ?2, ?3)")?;
        let mut profiles = self.conn.prepare("INSERT INTO profiles (user_id, about) VALUES (?1, ?2)")?;
        for user in &users {
            profiles.execute(params![user, self.text()])?;
        }
        let folders = self.tree("INSERT INTO folders (id, parent_id, name) VALUES (?1, ?2, ?3)")?;
        let files = self.files(&folders, &users)?;
        let tags = self.keys();
        let mut insert = self.conn.prepare("INSERT INTO tags (id, label) VALUES (?1, ?2)")?;
        for tag in &tags {
            insert.execute(params![tag, self.text()])?;
        }
        self.pairs(&files, &tags)?;
        let mut visit = self.conn.prepare("INSERT INTO visits VALUES (?1, ?2, ?3)")?;
        for i in 0..self.rows() {
            visit.execute(params![i.to_string(), self.dice.maybe(&files), self.text()])?;
        }
        let mut set = self.conn.prepare("INSERT INTO settings VALUES (?1, ?2)")?;
        for i in 0..self.rows() {
            set.execute(params![i.to_string(), self.anything()])?;
        }
        // Gaps in what was counted, at the end too.
        self.conn.execute_batch(
            "UPDATE files SET name = CAST(x'80FFC328' AS TEXT) WHERE id % 41 = 3;
             DELETE FROM visits WHERE _rowid_ % 7 = 0 AND _rowid_ > 100;
             DELETE FROM remarks WHERE id % 5 = 0 AND id > 100 OR id = (SELECT max(id) FROM remarks)",
        )
    }

    /// How many rows a table gets: seldom many.
    fn rows(&mut self) -> u64 {
        let (fewest, most) = ROWS;
        let share = self.dice.below(1000).pow(3) / 1_000_000;
        fewest + (most - fewest) * share / 999
    }

    /// Keys as a table has them after some years: mostly counted up, with gaps, and a few that nobody expects.
    fn keys(&mut self) -> Vec<i64> {
        let mut next = match self.dice.below(6) {
            0 => -50,
            1 => 1 << 40,
            _ => 1,
        };
        let count = self.rows();
        let mut keys = Vec::new();
        for _ in 0..count {
            keys.push(next);
            next += 1 + if self.dice.one_in(5) { self.dice.below(9) as i64 } else { 0 };
        }
        if self.dice.one_in(10) {
            keys.extend([i64::MIN, i64::MAX]);
        }
        keys
    }

    /// Rows that refer to earlier rows of their own table, or to none.
    fn tree(&mut self, insert: &str) -> rusqlite::Result<Vec<i64>> {
        let keys = self.keys();
        let mut insert = self.conn.prepare(insert)?;
        for (i, key) in keys.iter().enumerate() {
            let parent = self.dice.maybe(&keys[..i]);
            insert.execute(params![key, parent, format!("{i} {}", self.text())])?;
        }
        Ok(keys)
    }

    fn files(&mut self, folders: &[i64], users: &[i64]) -> rusqlite::Result<Vec<i64>> {
        let files = self.keys();
        let insert = "INSERT INTO files (id, folder_id, owner_id, name, size, content) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let mut insert = self.conn.prepare(insert)?;
        for file in &files {
            let (folder, owner) = (*self.dice.pick(folders), self.dice.maybe(users));
            let size = self.dice.below(1 << 40) as f64 / 3.0;
            insert.execute(params![file, folder, owner, self.anything(), size, self.anything()])?;
        }
        Ok(files)
    }

    fn pairs(&mut self, files: &[i64], tags: &[i64]) -> rusqlite::Result<()> {
        let mut pair = self.conn.prepare("INSERT OR IGNORE INTO file_tags VALUES (?1, ?2, ?3)")?;
        let mut remark =
            self.conn.prepare("INSERT INTO remarks (file_id, tag_id, remark) VALUES (?1, ?2, ?3)")?;
        let mut left = self.rows();
        while left > 0 {
            let (file, tag) = (*self.dice.pick(files), *self.dice.pick(tags));
            left -= pair.execute(params![file, tag, self.dice.below(100) as f64 / 7.0])? as u64;
            // One that is NULL in part refers to no pair, but still to a file.
            let tag = if self.dice.one_in(4) { None } else { Some(tag) };
            remark.execute(params![file, tag, self.text()])?;
            remark.execute(params![None::<i64>, None::<i64>, "of nothing"])?;
        }
        Ok(())
    }

    fn text(&mut self) -> String {
        let words = ["id", "größer", "日本", "it's", "", "\0", "NULL", "a rather long text, as people write"];
        format!("{} {}", self.dice.pick(&words), self.dice.below(1 << 20))
    }

    /// A value of any type.
    fn anything(&mut self) -> Value {
        match self.dice.below(6) {
            0 => Value::Null,
            1 => Value::Integer(self.dice.below(u64::MAX).cast_signed()),
            2 => Value::Real(self.dice.below(1 << 50) as f64 / 1e7),
            3 => Value::Blob(self.dice.below(u64::MAX).to_le_bytes().repeat(2)),
            _ => Value::Text(self.text()),
        }
    }
}

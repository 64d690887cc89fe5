//! What a closed database holds, table by table: a row count and a SHA-256 of every synced value.
//!
//! This is the example's and the scenarios' witness, so it shares nothing with what it judges: it opens the
//! file itself, read-only, with plain rusqlite, takes the columns from SQLite rather than from the entities,
//! and knows which columns are local from its own list. Two digests are equal exactly if the tables hold the
//! same keys with the same storage class and the same bytes in every synced column: `1`, `1.0` and `'1'`
//! differ.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, types::ValueRef};
use sha2::{Digest, Sha256};

/// Sync id, table and local columns of each model, parents before children.
pub const MODELS: [(&str, &str, &[&str]); 8] = [
    ("device", "devices", &[]),
    ("volume", "volumes", &["mount_point", "is_online"]),
    ("location", "locations", &[]),
    ("content_identity", "content_identities", &[]),
    ("entry", "entries", &[]),
    ("tag", "tags", &[]),
    ("entry_tag", "entry_tags", &[]),
    ("user_metadata", "user_metadata", &[]),
];

/// What one table holds.
#[derive(Clone, PartialEq, Eq)]
pub struct TableDigest {
    /// Sync id of its model.
    pub model: String,
    /// Number of rows.
    pub rows: u64,
    /// SHA-256 over the names of the synced columns and all their values, in the order of the key.
    pub sha256: [u8; 32],
}

impl TableDigest {
    /// The first eight hexadecimal digits: enough for a person to compare.
    pub fn short(&self) -> String {
        self.sha256[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows, {}", self.model, self.rows, self.short())
    }
}

/// A database that could not be read; reading changes nothing.
#[derive(Debug, thiserror::Error)]
#[error("`{}` cannot be read for its digest: {what}: {source}. Nothing was changed; \
         check that the file is there and that it is the file manager's database", .path.display())]
pub struct DigestError {
    path: PathBuf,
    what: String,
    source: rusqlite::Error,
}

/// Digests all models of the file manager's database at `path`, in the order of [`MODELS`].
///
/// # Errors
/// [`DigestError`] if the file or a table is not there or cannot be read.
pub fn digest(path: &Path) -> Result<Vec<TableDigest>, DigestError> {
    let error = |what: String| {
        let path = path.to_owned();
        move |source| DigestError { path, what, source }
    };
    let db = open(path).map_err(error("opening it".to_owned()))?;
    let table = |&(model, table, local): &(&str, &str, &[&str])| {
        digest_table(&db, model, table, local).map_err(error(format!("table `{table}`")))
    };
    MODELS.iter().map(table).collect()
}

/// Entries in the log of the database at `path`.
///
/// # Errors
/// [`DigestError`] if the file or its log is not there or cannot be read.
pub fn log_entries(path: &Path) -> Result<u64, DigestError> {
    let error = |source| DigestError { path: path.to_owned(), what: "counting its log".to_owned(), source };
    let db = open(path).map_err(error)?;
    let count: i64 = db.query_row("SELECT count(*) FROM sync_log", [], |row| row.get(0)).map_err(error)?;
    Ok(count.cast_unsigned())
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
}

fn digest_table(
    db: &Connection,
    model: &str,
    table: &str,
    local: &[&str],
) -> Result<TableDigest, rusqlite::Error> {
    let (columns, key) = columns(db, table, local)?;
    let list = |names: &[String]| names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
    let mut hasher = Sha256::new();
    for column in &columns {
        add(&mut hasher, b'C', column.as_bytes());
    }
    let mut rows = 0;
    let sql = format!("SELECT {} FROM \"{table}\" ORDER BY {}", list(&columns), list(&key));
    let mut statement = db.prepare(&sql)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        rows += 1;
        for i in 0..columns.len() {
            match row.get_ref(i)? {
                ValueRef::Null => add(&mut hasher, b'N', b""),
                ValueRef::Integer(integer) => add(&mut hasher, b'I', &integer.to_be_bytes()),
                ValueRef::Real(real) => add(&mut hasher, b'R', &real.to_bits().to_be_bytes()),
                ValueRef::Text(text) => add(&mut hasher, b'T', text),
                ValueRef::Blob(blob) => add(&mut hasher, b'B', blob),
            }
        }
    }
    Ok(TableDigest { model: model.to_owned(), rows, sha256: hasher.finalize().into() })
}

/// Adds one value with its class and length, so that no two rows run together into the same bytes.
fn add(hasher: &mut Sha256, class: u8, bytes: &[u8]) {
    hasher.update([class]);
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

/// The synced columns by name, so that their order in the file does not matter, and the key's columns.
fn columns(db: &Connection, table: &str, local: &[&str]) -> rusqlite::Result<(Vec<String>, Vec<String>)> {
    let mut statement = db.prepare("SELECT name, pk FROM pragma_table_info(?1) ORDER BY name")?;
    let all: Vec<(String, i64)> =
        statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut key: Vec<_> = all.iter().filter(|(_, pk)| *pk > 0).collect();
    key.sort_by_key(|(_, pk)| *pk);
    let key = key.into_iter().map(|(name, _)| name.clone()).collect();
    let columns = all.iter().map(|(name, _)| name).filter(|name| !local.contains(&name.as_str()));
    Ok((columns.cloned().collect(), key))
}

//! Why integer keys were not made UUIDs.

use std::path::PathBuf;

/// Why [`integer_keys_to_uuids`](super::integer_keys_to_uuids) refused or gave up. Whatever it was, the database is as
/// it was before, except where [`KeysError::NotAsBefore`] says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// No such database file.
    #[error("there is no database file {}; nothing was changed. Name one that is there", path.display())]
    NoFile {
        /// What was named.
        path: PathBuf,
    },

    /// Somebody else has the database open.
    #[error(
        "database {} is in use by another connection; nothing was changed. Close the application's connections and \
         other programs that have it open, then run the migration again",
        path.display()
    )]
    InUse {
        /// Database file.
        path: PathBuf,
    },

    /// An engine has the database open, or its lock file cannot be used.
    #[error(transparent)]
    Locked(#[from] crate::Error),

    /// The database is in a library already.
    #[error(
        "database {} belongs to a library already, and other devices know its records by their present keys; nothing \
         was changed. Migrate a copy that was made before it joined",
        path.display()
    )]
    InLibrary {
        /// Database file.
        path: PathBuf,
    },

    /// No table was named.
    #[error("no table was named whose keys are to become UUIDs; nothing was changed. Name at least one")]
    NoTable,

    /// It was done before. An application that asks for the migration at every start goes on here.
    #[error(
        "the keys of all tables that were named are UUIDs already; nothing was changed. There is nothing to do"
    )]
    AlreadyUuids,

    /// Something in the schema cannot be carried over, or is not what was asked for.
    #[error("{what} stands in the way: {reason}; nothing was changed. {remedy}")]
    Unsuitable {
        /// Table, index, view or trigger, by name.
        what: String,
        /// What is the matter with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },

    /// SQLite finds the file damaged.
    #[error(
        "database {} is damaged: {problem}; nothing was changed. Repair it, or restore a backup, before migrating",
        path.display()
    )]
    Damaged {
        /// Database file.
        path: PathBuf,
        /// The first thing that SQLite found.
        problem: String,
    },

    /// A reference leads nowhere.
    #[error(
        "table `{table}`, {row}: `{column}` refers to a row of `{parent}` that is not there; nothing was changed. \
         Delete the row or mend the reference, then run the migration again"
    )]
    Orphan {
        /// Table that refers.
        table: String,
        /// Its row.
        row: String,
        /// Columns that refer.
        column: String,
        /// Table that is referred to.
        parent: String,
    },

    /// A key or a reference is no integer.
    #[error(
        "table `{table}`, {row}: `{column}` holds a value of type {found}, not an integer; nothing was changed. \
         Correct the value, then run the migration again"
    )]
    WrongType {
        /// Table.
        table: String,
        /// Its row.
        row: String,
        /// Column.
        column: String,
        /// SQLite's name for what it holds.
        found: String,
    },

    /// There is a copy of an earlier state where the copy of this one would go.
    #[error(
        "the backup {} is there already and is no copy of the database as it is now; nothing was changed. Move it \
         elsewhere, or delete it if nobody needs it",
        path.display()
    )]
    BackupExists {
        /// The backup.
        path: PathBuf,
    },

    /// What the migration made is not what it should have made.
    #[error(
        "validation found that {doubt}; everything was rolled back, and the database is byte for byte as it was. \
         Look at what the error names before trying again"
    )]
    Doubt {
        /// What is not as it should be.
        doubt: String,
    },

    /// SQLite refused.
    #[error("{what} failed: {source}; the database is as it was")]
    Database {
        /// What was being done.
        what: String,
        /// SQLite's words.
        source: rusqlite::Error,
    },

    /// The database or its backup could not be read or written.
    #[error("{what} {} failed: {source}; the database is as it was", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },

    /// The migration failed, and afterwards the file could not be shown to be what it was before.
    #[error(
        "{cause}. After that, {} could not be shown to be as it was. The backup {} is whole: open the database once, \
         so that SQLite can recover it, and if anything is wrong with it put the backup in its place",
        path.display(),
        backup.display()
    )]
    NotAsBefore {
        /// Database file.
        path: PathBuf,
        /// Its copy.
        backup: PathBuf,
        /// Why the migration failed.
        cause: Box<KeysError>,
    },
}

impl KeysError {
    /// Names what SQLite was asked to do.
    pub(super) fn during(what: impl Into<String>) -> impl FnOnce(rusqlite::Error) -> Self {
        let what = what.into();
        move |source| Self::Database { what, source }
    }
}

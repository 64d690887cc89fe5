//! What can go wrong while a library is opened or run, in words for the person who has to act on it.
//!
//! Every text says what failed, on what, whether anything changed, and what to do about it.

use std::path::PathBuf;

use crate::{
    id::{DeviceId, LibraryId},
    model::ModelError,
    transport::TransportError,
};

/// Why a library could not be opened, started, migrated or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model cannot be synced as declared.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// Two models share a sync id or a table.
    #[error(
        "the models `{first}` and `{second}` share the {what} `{name}`; nothing was changed. Give each its own"
    )]
    SharedName {
        /// Sync id of one.
        first: String,
        /// Sync id of the other.
        second: String,
        /// "sync id" or "table".
        what: &'static str,
        /// What they share.
        name: String,
    },

    /// A table does not fit the model that is to be synced.
    #[error("table `{table}` of model `{model}` cannot be synced: {reason}; nothing was changed. {remedy}")]
    Table {
        /// Sync id.
        model: String,
        /// Table.
        table: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },

    /// An application's own trigger would write synced tables a second time on every device.
    #[error(
        "trigger `{trigger}` writes the synced table `{table}`: its effects are synced already, and on every other \
         device it would write them again. Nothing was changed. Drop it, or add \
         `WHEN (SELECT mode FROM sync_ctl) = 0` to it"
    )]
    ForeignTrigger {
        /// Trigger.
        trigger: String,
        /// Table that it writes.
        table: String,
    },

    /// Another engine has this database open.
    #[error(
        "database {} is already open for sync, here or in another process; nothing was changed. Close the other \
         library first; other programs may read the database meanwhile",
        path.display()
    )]
    Locked {
        /// Database file.
        path: PathBuf,
    },

    /// The database belongs to another library.
    #[error(
        "this database belongs to library {found}, not to {wanted}; nothing was changed. Open it with its own id"
    )]
    OtherLibrary {
        /// What the database says.
        found: LibraryId,
        /// What was asked for.
        wanted: LibraryId,
    },

    /// `existing()` on a database that is in no library.
    #[error(
        "this database is in no library yet; nothing was changed. Open it with `create(id)` or `join(id)` first"
    )]
    NoLibrary,

    /// `create` on a library that has another history, or that was joined.
    #[error(
        "this database joined library {library} and cannot create it again; nothing was changed. \
         Open it with `existing()`"
    )]
    Joined {
        /// Library.
        library: LibraryId,
    },

    /// A device that wants to join holds rows that the library does not know.
    #[error(
        "table `{table}` holds {rows} rows that library {library} does not know, so this device cannot join with it; \
         nothing was changed. Join with an empty table; the rows that all are to get belong on the device that creates \
         the library, where `adopt()` takes them in. What only this device has goes to all once it is saved anew after joining"
    )]
    NotEmpty {
        /// Table.
        table: String,
        /// How many rows it holds.
        rows: u64,
        /// Library.
        library: LibraryId,
    },

    /// A library is to start, and a table holds rows from before it was synced.
    #[error(
        "table `{table}` of model `{model}` holds {rows} rows from before it was synced, which no other device would get, \
         so library {library} was not started; nothing was changed. Call `adopt()` on the library before `start`; \
         rows that are to stay on this device are kept there by `#[sync(should_sync = \"…\")]`"
    )]
    NotAdopted {
        /// Sync id.
        model: String,
        /// Table.
        table: String,
        /// How many rows, as counted when the library was first opened with the model.
        rows: u64,
        /// Library.
        library: LibraryId,
    },

    /// The engine's SQLite is too old to be safe.
    #[error(
        "SQLite {found} is linked, but tidelog needs {needed} or newer, which fixes a WAL corruption; nothing was changed. Update libsqlite3-sys"
    )]
    SqliteVersion {
        /// Version that is linked.
        found: String,
        /// Lowest version that will do.
        needed: &'static str,
    },

    /// `start` on a library that runs already.
    #[error(
        "library {0} is started already; nothing was changed. Shut it down before starting it on another transport"
    )]
    Started(LibraryId),

    /// A device did not become the leader.
    #[error("device {device} does not lead library {library}: {reason}; nothing was lost. {remedy}")]
    NotLed {
        /// Which one was to.
        device: DeviceId,
        /// Of which library.
        library: LibraryId,
        /// Why it does not.
        reason: String,
        /// What to do.
        remedy: String,
    },

    /// A person's decision on a conflict or a dead letter could not be made.
    #[error("{what} was not decided: {reason}; nothing was changed. {remedy}")]
    NotDecided {
        /// Which one.
        what: String,
        /// Why.
        reason: String,
        /// What to do.
        remedy: String,
    },

    /// The library was shut down, or its engine stopped.
    #[error(
        "the library's engine has stopped ({reason}); committed writes stay captured. Open the library again"
    )]
    Stopped {
        /// Why.
        reason: String,
    },

    /// The link to the leader stopped for a reason that waiting does not mend.
    #[error("sync with device {peer} has stopped: {reason}; this device's tables and log are as they were")]
    LinkStopped {
        /// Whom we followed.
        peer: DeviceId,
        /// Why.
        reason: String,
    },

    /// What the sync tables hold contradicts itself.
    #[error(
        "the sync tables are damaged: {0}; the step was rolled back. Restore a backup, or let the device join anew"
    )]
    Damaged(String),

    /// SQLite refused, on the engine's connection.
    #[error("{what} failed on the engine's connection: {source}; the step was rolled back")]
    Database {
        /// What the engine was doing.
        what: &'static str,
        /// SQLite's words.
        source: rusqlite::Error,
    },

    /// SeaORM refused.
    #[error("{what} failed: {source}; the statement was rolled back")]
    SeaOrm {
        /// What tidelog was doing.
        what: &'static str,
        /// SeaORM's words.
        source: sea_orm::DbErr,
    },

    /// A file beside the database could not be used.
    #[error("{what} {} failed: {source}; nothing was changed", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },

    /// The transport refused.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Self::Database { what: "a step of the protocol", source }
    }
}

impl Error {
    /// Whether the same may succeed later without anybody changing this library: the disk was full, a file could not
    /// be read, another connection was writing, a peer was gone. A constraint that a row breaks it breaks again.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Database { source, .. } => {
                source.sqlite_error_code() != Some(rusqlite::ErrorCode::ConstraintViolation)
            }
            Self::File { .. } | Self::SeaOrm { .. } | Self::Transport(_) => true,
            _ => false,
        }
    }
}

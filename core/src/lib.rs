//! Makes the database of a SeaORM application follow itself from device to device.
//!
//! A model that derives [`macro@Syncable`] is captured by a trigger, inside the transaction that writes it. A
//! [`Library`] is the unit of sync: one of its devices leads and puts every change into one log, the others follow
//! that log and hold the same rows. Nothing here asks the application to write in another way: it keeps its entities
//! and its queries, and opens its database with [`connect`] instead of `Database::connect`.
//!
//! ```
//! mod note {
//!     use sea_orm::entity::prelude::*;
//!     use tidelog::Syncable;
//!
//!     #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
//!     #[sea_orm(table_name = "notes")]
//!     pub struct Model {
//!         #[sea_orm(primary_key, auto_increment = false)]
//!         pub id: Uuid,
//!         pub text: String,
//!     }
//!
//!     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
//!     pub enum Relation {}
//! }
//!
//! use std::sync::Arc;
//!
//! use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, Set};
//! use tidelog::{Library, id::{DeviceId, LibraryId}, transport::MemoryNetwork};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let open = async |name: &str| -> Result<_, Box<dyn std::error::Error>> {
//!     let file = folder.path().join(name);
//!     let db = tidelog::connect(&format!("sqlite://{}?mode=rwc", file.display())).await?;
//!     // An application has migrations for this, and runs them with `tidelog::migrate`.
//!     db.execute_unprepared("CREATE TABLE notes (id BLOB PRIMARY KEY, text TEXT NOT NULL)").await?;
//!     Ok(db)
//! };
//! let (desk, lap) = (open("desktop.sqlite").await?, open("laptop.sqlite").await?);
//!
//! // Two devices in one process. Between machines the transport is `tidelog_transport::Quic`.
//! let network = MemoryNetwork::new();
//! let id = LibraryId::random();
//! let desktop = Library::builder(&desk).model::<note::Entity>().create(id).open().await?;
//! desktop.start(Arc::new(network.plug(DeviceId([1; 32])))).await?;
//! let laptop = Library::builder(&lap).model::<note::Entity>().join(id).open().await?;
//! laptop.start(Arc::new(network.plug(DeviceId([2; 32])))).await?;
//!
//! note::ActiveModel { text: Set("hello".into()), ..Default::default() }.save(&desk).await?;
//! desktop.barrier().await?; // what is committed here is in the log
//! laptop.barrier().await?; // and what is in the log is there
//! assert_eq!(note::Entity::find().all(&lap).await?[0].text, "hello");
//!
//! laptop.shutdown().await;
//! desktop.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to look
//!
//! | for | see |
//! |---|---|
//! | the attributes of the derive | [`macro@Syncable`] |
//! | the same without the derive: a trait by hand, an entity that one may not edit | [`trait@Syncable`], [`impl_syncable!`] |
//! | the application's connection, writes that stay here, writes that belong together | [`Connection`] |
//! | times of creation and change, deletions that can be undone | [`metadata`] |
//! | hooks of one's own beside tidelog's | [`Hooks`], [`behavior`] |
//! | migrations of the application | [`migrate`](fn@migrate) |
//! | a database that was there before: integer keys to UUIDs, its rows | [`migration`], [`Library::adopt`] |
//! | opening, joining, waiting, shutting down | [`Library`], [`LibraryBuilder`] |
//! | conflicts, refused changes, what became of a change, why a record is what it is | [`conflict`], [`dead_letter`], [`settlement`], [`why`](mod@why), [`queue`] |
//! | what a user interface shows | [`Status`], [`AppliedChange`] |
//! | two devices in an application's own tests | `testing`, with the feature of that name |
//! | another network | [`transport::Transport`] |
//!
//! # How it works
//!
//! A trigger copies the written row into an outbox. The engine, one thread with a SQLite connection of its own to the
//! same file, seals the outbox into changes, whole transactions at a time; on the leader they go straight into the
//! log. Followers subscribe to the log and apply it to their tables, with their position in the same transaction, so
//! that a crash anywhere resumes where it was. `docs/architecture.md` in the repository has the picture.
//!
//! # What it leaves out
//!
//! So far one device leads for good. What others write is pushed to it, decided by the model's policy ([`resolve`]) and
//! comes back in the log; what did not stand is kept, and can be decided otherwise. The log grows;
//! nothing is compacted. The database is a SQLite file: PostgreSQL
//! comes later, a database in memory never does. There is no quorum: a write is durable on the devices that have it.
//! This crate knows no network but the one in memory; QUIC is the crate `tidelog-transport`.

mod accept;
mod adopt;
mod agreed;
mod announce;
mod apply;
mod attempt;
pub mod behavior;
mod below;
mod bytes;
mod capture;
mod checkpoint;
pub mod conflict;
pub mod connection;
pub mod dead_letter;
mod decide;
mod engine;
mod entry;
mod error;
mod exchange;
mod following;
pub mod gate;
pub mod id;
mod inject;
mod layout;
pub mod leadership;
mod library;
mod life;
mod log;
pub mod metadata;
mod migrate;
pub mod migration;
pub mod model;
mod node;
pub mod notice;
mod outcome;
mod overlay;
mod park;
mod pending;
mod pushed;
pub mod queue;
mod reassign;
mod record;
mod references;
pub mod resolve;
pub mod row;
mod row_text;
mod seal;
mod sequence;
mod serving;
pub mod settlement;
mod sql;
mod standing;
pub mod status;
mod store;
mod term;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
mod tree;
mod unwind;
pub mod value;
pub mod why;
mod wire;
pub mod world;

pub use adopt::{Adopt, AdoptProgress, Adopted};
pub use behavior::Hooks;
pub use conflict::{Choice, Conflict, ConflictId, Resolver};
pub use connection::{
    ConnectError, ConnectOptions, Connection, Durability, Transaction, connect, connect_with, force_record,
};
pub use dead_letter::{DeadLetter, DeadLetterId};
pub use error::Error;
pub use gate::WriteGate;
pub use leadership::{Failover, KnownDevice, Obstacle, PromotionReport, TakeOver};
pub use library::{CHANGES_QUEUE, GRANT_TIMEOUT, Library, LibraryBuilder};
pub use metadata::{FindLive, SoftDelete};
pub use migrate::migrate;
pub use model::{Recorder, Syncable};
pub use row::Row;
pub use settlement::{Outcome, Settlement};
pub use status::{AppliedChange, ChangeKind, Follower, Link, Role, Status};
/// Derives [`trait@Syncable`] for the `Model` of a SeaORM entity, in the compact and in the `#[sea_orm::model]` format,
/// and with it the entity's `ActiveModelBehavior` (see [`behavior`]): SeaORM emits none, so remove the empty
/// `impl ActiveModelBehavior for ActiveModel {}` that it has you write.
///
/// ```
/// mod location {
///     use sea_orm::entity::prelude::*;
///     use tidelog::Syncable;
///
///     #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
///     #[sea_orm(table_name = "locations")]
///     #[sync(model = "location", merge = "fields", after = "device")]
///     pub struct Model {
///         #[sea_orm(primary_key, auto_increment = false)]
///         pub id: Uuid,
///         pub name: String,
///         #[sync(local)]
///         pub mount_point: Option<String>,
///         #[sync(merge = "max", default = 0)]
///         pub scanned_entries: i64,
///     }
///
///     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
///     pub enum Relation {}
/// }
/// # use tidelog::Syncable;
/// assert_eq!(location::Model::SYNC_ID, "location");
/// assert_eq!(location::Model::sync_fields(), ["id", "name", "scanned_entries"]);
/// ```
///
/// On the model, all optional:
///
/// | attribute | meaning |
/// |---|---|
/// | `model = "id"` | name of the model on every device, for good; else the table's name |
/// | `version = 2` | version of the model's schema; else 1 |
/// | `after = "device, volume"` | models whose rows are written first; may be repeated |
/// | `merge = "lww"` | who wins a conflict: `lww` (the default), `fields`, `leader_wins`, `origin_wins`, `role` (see [`LibraryBuilder::precedence`]), `manual` |
/// | `custom = "path"` | a function decides: `fn(Option<Model>, Model, Model) -> Model`, of base, local and remote |
/// | `owner = "column"` | only the device that the column names may write the record |
/// | `deletes = "delete_wins"` | deletion against update: `delete_wins` (the default), `update_wins`, `manual` |
/// | `priority = "normal"` | when changes are pushed: `critical`, `high`, `normal` (the default), `low` |
/// | `id = "column"` | unique UUID column that names the record where the key is an integer that the database counts up |
/// | `tree = "parent_id"` | the rows form a forest by this column, which holds the key of a row's parent, or NULL: a pushed change that would put a record above itself is refused |
/// | `should_sync = "path"` | `fn(&Model) -> bool`: whether a row is for other devices too |
/// | `hooks` | your own hooks beside tidelog's, see [`Hooks`] |
/// | `behavior = "own"` | no `ActiveModelBehavior`: you write it, with the calls that [`behavior`] shows |
/// | `capture = "hooks"` | the hooks record changes instead of a trigger, see [`Recorder`] |
/// | `crate = "path"` | where this crate is found, if it is not `::tidelog` |
///
/// On a field:
///
/// | attribute | meaning |
/// |---|---|
/// | `local` | never leaves this device, never overwritten by sync |
/// | `default = expression` | its value in rows from a device that does not know the column |
/// | `merge = "max"` | merges by itself, whatever the model's policy: `max`, `min`, `sum`, `union` |
/// | `created_at` | gets the time of the insert, see [`metadata`] |
/// | `updated_at` | gets the time of every save that changes the record |
/// | `soft_delete` | marks deleted records, which stay: [`SoftDelete`], [`FindLive`] |
///
/// What is written on a device itself is never refused there, and a `tree` does not change that: on the leader a circle that
/// the application wrote stands, and goes to everybody; on a follower it is refused when it is pushed, and the follower's row
/// goes back. An application that moves rows looks upwards first, in the transaction that moves them.
pub use tidelog_macros::Syncable;

/// What the derive's code needs to be found under a path that the application need not know.
#[doc(hidden)]
pub mod __private {
    pub use async_trait::async_trait;
    pub use sea_orm;

    pub use crate::behavior::column_name;
}

//! tidelog.
mod announce;
mod apply;
pub mod behavior;
mod capture;
pub mod connection;
mod engine;
mod entry;
mod error;
pub mod gate;
pub mod id;
mod library;
mod log;
mod migrate;
pub mod model;
mod node;
pub mod notice;
mod seal;
mod sequence;
pub mod status;
mod store;
mod term;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod value;
mod wire;
pub mod world;

pub use behavior::Hooks;
pub use connection::{
    ConnectError, ConnectOptions, Connection, Durability, Transaction, connect, connect_with, force_record,
};
pub use error::Error;
pub use gate::WriteGate;
pub use library::{CHANGES_QUEUE, Library, LibraryBuilder};
pub use migrate::migrate;
pub use model::{Recorder, Syncable};
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
/// | `merge = "lww"` | who wins a conflict: `lww` (the default), `fields`, `leader_wins`, `origin_wins`, `role`, `manual` |
/// | `custom = "path"` | a function decides: `fn(Option<Model>, Model, Model) -> Model`, of base, local and remote |
/// | `owner = "column"` | only the device that the column names may write the record |
/// | `deletes = "delete_wins"` | deletion against update: `delete_wins` (the default), `update_wins`, `manual` |
/// | `priority = "normal"` | when changes are pushed: `critical`, `high`, `normal` (the default), `low` |
/// | `id = "column"` | unique UUID column that names the record where the key is an integer that the database counts up |
/// | `should_sync = "path"` | `fn(&Model) -> bool`: whether a row is for other devices too |
/// | `hooks` | your own hooks beside tidelog's, see [`Hooks`] |
/// | `behavior = "own"` | no `ActiveModelBehavior`: you write it, with the calls that [`behavior`] shows |
/// | `capture = "hooks"` | the hooks record changes instead of a trigger, see [`Recorder`](model::Recorder) |
/// | `crate = "path"` | where this crate is found, if it is not `::tidelog` |
///
/// On a field:
///
/// | attribute | meaning |
/// |---|---|
/// | `local` | never leaves this device, never overwritten by sync |
/// | `default = expression` | its value in rows from a device that does not know the column |
/// | `merge = "max"` | merges by itself, whatever the model's policy: `max`, `min`, `sum`, `union` |
pub use tidelog_macros::Syncable;

/// What the derive's code needs to be found under a path that the application need not know.
#[doc(hidden)]
pub mod __private {
    pub use async_trait::async_trait;
    pub use sea_orm;

    pub use crate::behavior::column_name;
}

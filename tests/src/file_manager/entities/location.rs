//! A directory that the file manager watches: the root of a tree of entries.

use sea_orm::entity::prelude::*;
use tidelog::Syncable;

/// A directory that is indexed, with everything below it.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "locations")]
#[sync(model = "location", after = "device, volume", merge = "fields")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub volume_id: Uuid,
    pub device_id: Uuid,
    /// Absolute and without symlinks; unique on its device.
    pub path: String,
    pub name: String,
    pub created_at: DateTimeUtc,
    #[sync(merge = "max")]
    pub updated_at: DateTimeUtc,
    /// Entries that the last complete scan saved.
    pub scanned_entries: i64,
    #[sea_orm(belongs_to, from = "volume_id", to = "id")]
    pub volume: BelongsTo<super::volume::Entity>,
    #[sea_orm(belongs_to, from = "device_id", to = "id")]
    pub device: BelongsTo<super::device::Entity>,
}

//! A disk or partition. Where it is mounted is each device's own business: two columns are local.

use sea_orm::entity::prelude::*;
use tidelog::Syncable;

/// A disk or partition of a device.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "volumes")]
#[sync(model = "volume", after = "device")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub device_id: Uuid,
    pub name: String,
    /// Tells volumes apart when they are renamed or moved to another device.
    #[sea_orm(unique)]
    pub fingerprint: String,
    /// In bytes; none where the file system does not say.
    pub capacity: Option<i64>,
    /// Where it is mounted here. Local.
    #[sync(local)]
    pub mount_point: Option<String>,
    /// Whether it is mounted here now. Local; false in rows that came from elsewhere.
    #[sea_orm(default_value = false)]
    #[sync(local)]
    pub is_online: bool,
    #[sea_orm(belongs_to, from = "device_id", to = "id")]
    pub device: BelongsTo<super::device::Entity>,
    #[sea_orm(has_many)]
    pub locations: HasMany<super::location::Entity>,
}

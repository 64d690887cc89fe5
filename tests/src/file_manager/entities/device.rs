//! A machine that holds volumes.

use sea_orm::entity::prelude::*;
use tidelog::Syncable;

/// A machine that holds volumes.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "devices")]
#[sync(model = "device")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// What its owner calls it.
    pub name: String,
    /// `linux`, `macos`, `windows`, …
    pub os: String,
    #[sync(merge = "max")]
    pub last_seen: DateTimeUtc,
    #[sea_orm(has_many)]
    pub volumes: HasMany<super::volume::Entity>,
    #[sea_orm(has_many)]
    pub locations: HasMany<super::location::Entity>,
}

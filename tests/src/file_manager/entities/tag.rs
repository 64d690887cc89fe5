//! A label that a person sticks on entries. There are few, and people care: two that were changed alike wait for somebody
//! to decide.

use sea_orm::entity::prelude::*;
use tidelog::Syncable;

/// A label with a colour.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "tags")]
#[sync(model = "tag", merge = "manual")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(unique)]
    pub name: String,
    /// `#rrggbb`.
    pub color: String,
}

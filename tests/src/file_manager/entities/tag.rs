//! A label that a person sticks on entries.

use sea_orm::entity::prelude::*;

/// A label with a colour.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "tags")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(unique)]
    pub name: String,
    /// `#rrggbb`.
    pub color: String,
}

impl ActiveModelBehavior for ActiveModel {}

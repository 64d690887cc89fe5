//! What a person says about an entry. One to one, made when there is something to say. Compact
//! format. What somebody wrote anew is not lost to somebody else's deletion.

use sea_orm::entity::prelude::*;
use tidelog::Syncable;

/// A person's notes on an entry.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "user_metadata")]
#[sync(
    model = "user_metadata",
    after = "entry",
    merge = "fields",
    deletes = "update_wins",
    priority = "high"
)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(unique)]
    pub entry_id: Uuid,
    pub notes: Option<String>,
    pub favorite: bool,
    /// One to five.
    pub rating: Option<i32>,
    /// Whatever an extension of the file manager puts there.
    pub custom: Option<Json>,
    #[sync(merge = "max")]
    pub updated_at: DateTimeUtc,
}

/// What it is about.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(
        belongs_to = "super::entry::Entity",
        from = "Column::EntryId",
        to = "super::entry::Column::Id",
        on_delete = "Cascade"
    )]
    Entry,
}

impl Related<super::entry::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Entry.def()
    }
}

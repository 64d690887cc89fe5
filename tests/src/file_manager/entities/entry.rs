//! A file, directory or symlink. The widest and by far the longest table. Compact format.

use sea_orm::entity::prelude::*;
use tidelog::Syncable;

/// One name in one directory.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "entries")]
#[sync(model = "entry", after = "location, content_identity", merge = "fields")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub location_id: Uuid,
    /// The directory it is in; none for the location's own directory.
    pub parent_id: Option<Uuid>,
    /// For people: where the name is not Unicode, with replacement characters.
    pub name: String,
    /// The name as the file system has it, where `name` is not that.
    pub raw_name: Option<Vec<u8>>,
    /// Lower case, without the dot.
    pub extension: Option<String>,
    pub kind: Kind,
    /// In bytes; zero for everything but files.
    pub size: i64,
    /// The twelve mode bits of Unix; elsewhere 0o444 or 0o666.
    pub permissions: i32,
    pub is_hidden: bool,
    /// None where the file system does not keep it.
    pub created_at: Option<DateTimeUtc>,
    pub modified_at: Option<DateTimeUtc>,
    pub indexed_at: DateTimeUtc,
    /// What is in the file, where that was read: not for empty, large or unreadable files.
    pub content_id: Option<Uuid>,
    /// The file system's number for it, bit for bit (so it may be negative).
    pub inode: Option<i64>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "snake_case")]
pub enum Kind {
    Directory,
    File,
    /// Never followed.
    Symlink,
    /// A pipe, socket or device: never opened.
    Other,
}

/// What an entry refers to and who refers to it.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(
        belongs_to = "super::location::Entity",
        from = "Column::LocationId",
        to = "super::location::Column::Id",
        on_delete = "Cascade"
    )]
    Location,
    #[sea_orm(belongs_to = "Entity", from = "Column::ParentId", to = "Column::Id", on_delete = "Cascade")]
    Parent,
    #[sea_orm(
        belongs_to = "super::content_identity::Entity",
        from = "Column::ContentId",
        to = "super::content_identity::Column::Id",
        on_delete = "SetNull"
    )]
    Content,
    #[sea_orm(has_many = "super::entry_tag::Entity")]
    EntryTag,
    #[sea_orm(has_one = "super::user_metadata::Entity")]
    UserMetadata,
}

impl Related<super::location::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Location.def()
    }
}

impl Related<super::content_identity::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Content.def()
    }
}

impl Related<super::entry_tag::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::EntryTag.def()
    }
}

impl Related<super::user_metadata::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::UserMetadata.def()
    }
}

impl Related<super::tag::Entity> for Entity {
    fn to() -> RelationDef {
        super::entry_tag::Relation::Tag.def()
    }

    fn via() -> Option<RelationDef> {
        Some(super::entry_tag::Relation::Entry.def().rev())
    }
}

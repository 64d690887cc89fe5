//! What is in a file, once for all files that hold the same. Compact format.

use sea_orm::entity::prelude::*;
use tidelog::Syncable;
use uuid::uuid;

/// Namespace of the content ids. It may never change: two devices must name the same content alike.
pub const NAMESPACE: Uuid = uuid!("6f1c7c3e-7b0c-5a5e-9b1d-2f6a4d8e9c10");

/// A content that one or many files have.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "content_identities")]
#[sync(model = "content_identity")]
pub struct Model {
    /// [`id_of`] the hash: two devices that find the same content offline make the same record.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    /// SHA-256 in lower-case hexadecimal digits.
    #[sea_orm(unique)]
    pub hash: String,
    /// In bytes.
    pub size: i64,
    /// `image`, `text`, `audio`, … : the first half of `mime`, or `unknown`.
    pub kind: String,
    /// Judged by the extension of the file it was first seen in.
    pub mime: Option<String>,
    #[sync(merge = "min")]
    pub first_seen: DateTimeUtc,
}

/// The id of the content with this hash (hexadecimal digits).
pub fn id_of(hash: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, hash.as_bytes())
}

/// Who refers to a content.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(has_many = "super::entry::Entity")]
    Entry,
}

impl Related<super::entry::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Entry.def()
    }
}

//! A small schema with everything that can happen to a row: a folder, pages that go with it, pins that stay, and labels
//! whose key is made for them.
//!
//! `folders.name` compares without regard to case and `folders.note` keeps any storage class as it is; what was
//! `opened` is each device's own business. The schema is SQL, since entities cannot say all of that.

use tidelog::LibraryBuilder;

/// The tables.
pub const SCHEMA: &str = "
    CREATE TABLE folders (
        id TEXT PRIMARY KEY NOT NULL,
        name TEXT NOT NULL UNIQUE COLLATE NOCASE,
        note,
        opened INTEGER
    );
    CREATE TABLE pages (
        id TEXT PRIMARY KEY NOT NULL,
        folder TEXT NOT NULL REFERENCES folders (id) ON DELETE CASCADE ON UPDATE CASCADE,
        text TEXT
    );
    CREATE TABLE pins (
        id TEXT PRIMARY KEY NOT NULL,
        folder TEXT REFERENCES folders (id) ON DELETE SET NULL
    );
    CREATE TABLE labels (
        id uuid_text PRIMARY KEY NOT NULL,
        name TEXT NOT NULL
    );";

/// The synced columns of each table.
pub const TABLES: [(&str, &str); 4] = [
    ("folders", "id, name, note"),
    ("pages", "id, folder, text"),
    ("pins", "id, folder"),
    ("labels", "id, name"),
];

/// Registers the four models.
pub fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<folder::Entity>().model::<page::Entity>().model::<pin::Entity>().model::<label::Entity>()
}

/// A folder.
#[allow(missing_docs, reason = "the entity's generated items are SeaORM's")]
pub mod folder {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "folders")]
    #[sync(model = "folder")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub name: String,
        pub note: Option<String>,
        #[sync(local)]
        pub opened: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// A page: goes with its folder.
#[allow(missing_docs, reason = "the entity's generated items are SeaORM's")]
pub mod page {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "pages")]
    #[sync(model = "page", after = "folder")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub folder: String,
        pub text: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// A pin: stays when its folder goes.
#[allow(missing_docs, reason = "the entity's generated items are SeaORM's")]
pub mod pin {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "pins")]
    #[sync(model = "pin", after = "folder")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub folder: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// A label: the only one whose key is made by tidelog.
#[allow(missing_docs, reason = "the entity's generated items are SeaORM's")]
pub mod label {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "labels")]
    #[sync(model = "label")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

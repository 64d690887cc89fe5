//! Three small tables that hold what is hard about references: a tree in one table, two tables that refer to each
//! other, a unique column, a cascade, a column that stays on its device.
//!
//! Keys are text, so that scenarios can write them down. All references are checked at commit only, as an application
//! has it that inserts children before parents.

/// The statements that create the tables.
pub const TABLES: [&str; 3] = [
    "CREATE TABLE items (
        id TEXT NOT NULL PRIMARY KEY,
        parent_id TEXT REFERENCES items (id) ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
        name TEXT NOT NULL,
        place INTEGER UNIQUE,
        payload BLOB,
        seen_here INTEGER NOT NULL DEFAULT 0
    )",
    "CREATE TABLE teams (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        lead_id TEXT REFERENCES people (id) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED
    )",
    "CREATE TABLE people (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        team_id TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED
    )",
];

/// The synced columns of each table.
pub const SYNCED: [(&str, &[&str]); 3] = [
    ("items", &["id", "parent_id", "name", "place", "payload"]),
    ("teams", &["id", "name", "lead_id"]),
    ("people", &["id", "name", "team_id"]),
];

/// A node of a tree, at a place that no other has.
pub mod item {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    /// A row of `items`.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "items")]
    #[sync(model = "item")]
    pub struct Model {
        /// The key.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        /// The item that it is in.
        pub parent_id: Option<String>,
        /// What it is called.
        pub name: String,
        /// Where it is; no two are in one place.
        #[sea_orm(unique)]
        pub place: Option<i64>,
        /// Anything.
        pub payload: Option<Vec<u8>>,
        /// How often it was looked at on this device.
        #[sea_orm(default_value = 0)]
        #[sync(local)]
        pub seen_here: i64,
    }

    /// None that SeaORM needs to know of.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// A team, led by one of its people.
pub mod team {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    /// A row of `teams`.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "teams")]
    #[sync(model = "team")]
    pub struct Model {
        /// The key.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        /// What it is called.
        pub name: String,
        /// One of its people.
        pub lead_id: Option<String>,
    }

    /// None that SeaORM needs to know of.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// A person, in a team.
pub mod person {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    /// A row of `people`.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "people")]
    #[sync(model = "person")]
    pub struct Model {
        /// The key.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        /// What it is called.
        pub name: String,
        /// Where the person is.
        pub team_id: String,
    }

    /// None that SeaORM needs to know of.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

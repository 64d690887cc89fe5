//! A table of what only its owner writes.

/// The statement that creates the table.
pub const CLAIMS: &str = "CREATE TABLE claims (id TEXT NOT NULL PRIMARY KEY, owner TEXT, name TEXT NOT NULL)";

/// What only its owner writes.
pub mod claim {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    /// A row of `claims`.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "claims")]
    #[sync(model = "claim", owner = "owner")]
    pub struct Model {
        /// The key.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        /// The device that may write it; everybody where there is none.
        pub owner: Option<String>,
        /// What it is called.
        pub name: String,
    }

    /// None.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

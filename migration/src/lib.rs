//! The sync tables of tidelog, as `sea-orm-migration` migrations.
//!
//! tidelog runs them itself when a library is opened, under a table of its own ([`MIGRATION_TABLE`]), each in a
//! transaction. An application that wants every table of its database in one list places [`migrations`] in its
//! own migrator instead; opening then finds the tables there and leaves them alone.
//!
//! A released migration is frozen: a later change of a table is a new migration behind it. This crate imports
//! nothing of tidelog's, so that a migration means the same whichever release runs it.
//!
//! ```
//! use sea_orm_migration::prelude::*;
//!
//! struct AppMigrator;
//!
//! impl MigratorTrait for AppMigrator {
//!     fn migrations() -> Vec<Box<dyn MigrationTrait>> {
//!         let mut list = tidelog_migration::migrations();
//!         // … the application's own migrations behind them.
//!         # list.truncate(list.len());
//!         list
//!     }
//! }
//! assert!(!AppMigrator::migrations().is_empty());
//! ```

use sea_orm_migration::prelude::*;

mod m1_sync_tables;

/// Name of the table that remembers which of these migrations a database has seen.
pub const MIGRATION_TABLE: &str = "sync_migrations";

/// All migrations of the sync tables, oldest first.
pub fn migrations() -> Vec<Box<dyn MigrationTrait>> {
    vec![Box::new(m1_sync_tables::Migration)]
}

/// Runs [`migrations`] under [`MIGRATION_TABLE`].
pub struct SyncMigrator;

impl MigratorTrait for SyncMigrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        migrations()
    }

    fn migration_table_name() -> DynIden {
        Alias::new(MIGRATION_TABLE).into_iden()
    }
}

//! The application's own migrations: the eight tables with their foreign keys and unique constraints.
//!
//! Cascades are where a person expects them: a folder takes what is in it along, an entry its tags and
//! notes. Content outlives the files that had it. Local columns that may not be NULL have a default, since a
//! row that comes from another device does not bring them.

use sea_orm_migration::{prelude::*, schema};

/// The file manager's migrations.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Tables)]
    }
}

/// First migration: everything.
struct Tables;

impl MigrationName for Tables {
    fn name(&self) -> &str {
        "m0001_file_manager_tables"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Tables {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for mut table in tables().into_iter().rev() {
            if let Some(name) = table.take().get_table_name().cloned() {
                manager.drop_table(Table::drop().table(name).to_owned()).await?;
            }
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// Parents before children.
fn tables() -> Vec<TableCreateStatement> {
    vec![
        devices(),
        volumes(),
        locations(),
        content_identities(),
        entries(),
        tags(),
        entry_tags(),
        user_metadata(),
    ]
}

fn devices() -> TableCreateStatement {
    Table::create()
        .table("devices")
        .col(schema::pk_uuid("id"))
        .col(schema::text("name"))
        .col(schema::text("os"))
        .col(schema::timestamp_with_time_zone("last_seen"))
        .take()
}

fn volumes() -> TableCreateStatement {
    Table::create()
        .table("volumes")
        .col(schema::pk_uuid("id"))
        .col(schema::uuid("device_id"))
        .col(schema::text("name"))
        .col(schema::text_uniq("fingerprint"))
        .col(schema::big_integer_null("capacity"))
        .col(schema::text_null("mount_point"))
        .col(schema::boolean("is_online").default(false))
        .foreign_key(&mut reference("volumes", "device_id", "devices", ForeignKeyAction::Cascade))
        .take()
}

fn locations() -> TableCreateStatement {
    Table::create()
        .table("locations")
        .col(schema::pk_uuid("id"))
        .col(schema::uuid("volume_id"))
        .col(schema::uuid("device_id"))
        .col(schema::text("path"))
        .col(schema::text("name"))
        .col(schema::timestamp_with_time_zone("created_at"))
        .col(schema::timestamp_with_time_zone("updated_at"))
        .col(schema::big_integer("scanned_entries"))
        .foreign_key(&mut reference("locations", "volume_id", "volumes", ForeignKeyAction::Cascade))
        .foreign_key(&mut reference("locations", "device_id", "devices", ForeignKeyAction::Cascade))
        .take()
}

fn content_identities() -> TableCreateStatement {
    Table::create()
        .table("content_identities")
        .col(schema::pk_uuid("id"))
        .col(schema::text_uniq("hash"))
        .col(schema::big_integer("size"))
        .col(schema::text("kind"))
        .col(schema::text_null("mime"))
        .col(schema::timestamp_with_time_zone("first_seen"))
        .take()
}

fn entries() -> TableCreateStatement {
    Table::create()
        .table("entries")
        .col(schema::pk_uuid("id"))
        .col(schema::uuid("location_id"))
        .col(schema::uuid_null("parent_id"))
        .col(schema::text("name"))
        .col(schema::blob_null("raw_name"))
        .col(schema::text_null("extension"))
        .col(schema::text("kind"))
        .col(schema::big_integer("size"))
        .col(schema::integer("permissions"))
        .col(schema::boolean("is_hidden"))
        .col(schema::timestamp_with_time_zone_null("created_at"))
        .col(schema::timestamp_with_time_zone_null("modified_at"))
        .col(schema::timestamp_with_time_zone("indexed_at"))
        .col(schema::uuid_null("content_id"))
        .col(schema::big_integer_null("inode"))
        .foreign_key(&mut reference("entries", "location_id", "locations", ForeignKeyAction::Cascade))
        .foreign_key(&mut reference("entries", "parent_id", "entries", ForeignKeyAction::Cascade))
        .foreign_key(&mut reference("entries", "content_id", "content_identities", ForeignKeyAction::SetNull))
        .take()
}

fn tags() -> TableCreateStatement {
    Table::create()
        .table("tags")
        .col(schema::pk_uuid("id"))
        .col(schema::text_uniq("name"))
        .col(schema::text("color"))
        .take()
}

fn entry_tags() -> TableCreateStatement {
    Table::create()
        .table("entry_tags")
        .col(schema::uuid("entry_id"))
        .col(schema::uuid("tag_id"))
        .col(schema::timestamp_with_time_zone("created_at"))
        .primary_key(Index::create().col("entry_id").col("tag_id"))
        .foreign_key(&mut reference("entry_tags", "entry_id", "entries", ForeignKeyAction::Cascade))
        .foreign_key(&mut reference("entry_tags", "tag_id", "tags", ForeignKeyAction::Cascade))
        .take()
}

fn user_metadata() -> TableCreateStatement {
    Table::create()
        .table("user_metadata")
        .col(schema::pk_uuid("id"))
        .col(schema::uuid_uniq("entry_id"))
        .col(schema::text_null("notes"))
        .col(schema::boolean("favorite"))
        .col(schema::integer_null("rating"))
        .col(schema::json_null("custom"))
        .col(schema::timestamp_with_time_zone("updated_at"))
        .foreign_key(&mut reference("user_metadata", "entry_id", "entries", ForeignKeyAction::Cascade))
        .take()
}

fn reference(
    table: &'static str,
    column: &'static str,
    to: &'static str,
    on_delete: ForeignKeyAction,
) -> ForeignKeyCreateStatement {
    ForeignKey::create().from(table, column).to(to, "id").on_delete(on_delete).take()
}

fn indexes() -> Vec<IndexCreateStatement> {
    let index = |name: &'static str, table: &'static str, columns: &[&'static str]| {
        let mut index = Index::create().name(name).table(table).take();
        for column in columns {
            index.col(*column);
        }
        index
    };
    vec![
        index("locations_device_path", "locations", &["device_id", "path"]).unique().take(),
        // Two names that are not Unicode may look alike, so only the others are held to be unique.
        index("entries_parent_name", "entries", &["parent_id", "name"])
            .unique()
            .and_where(Expr::col("raw_name").is_null())
            .take(),
        // Not served by the partial one above: without it, each deletion reads the table to find children.
        index("entries_parent", "entries", &["parent_id"]),
        index("entries_location", "entries", &["location_id"]),
        index("entries_content", "entries", &["content_id"]),
        index("entry_tags_tag", "entry_tags", &["tag_id"]),
    ]
}

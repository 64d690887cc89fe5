//! A schema that changes: through `tidelog::migrate`, behind its back while the library is closed, and behind its back
//! while it is open. Nothing is lost, capture goes on, and what does not fit is refused in words.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, Set};
use sea_orm_migration::prelude::*;
use tidelog::{Library, LibraryBuilder, connect, id::LibraryId};
use tidelog_tests::scene::{Device, Register, Scene, assert_says, number};

/// An entity `items` with the given fields, as one release of the application has it.
macro_rules! release {
    ($name:ident, $register:ident, $($field:ident: $type:ty),+) => {
        mod $name {
            use sea_orm::entity::prelude::*;
            use tidelog::Syncable;

            #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
            #[sea_orm(table_name = "items")]
            #[sync(model = "item")]
            pub(super) struct Model {
                #[sea_orm(primary_key, auto_increment = false)]
                pub(super) id: String,
                $(pub(super) $field: $type),+
            }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub(super) enum Relation {}
        }

        fn $register(builder: LibraryBuilder) -> LibraryBuilder {
            builder.model::<$name::Entity>()
        }
    };
}

release!(item, register, name: String, size: Option<i64>);
release!(coloured, register_coloured, name: String, size: Option<i64>, colour: i64);
release!(sizeless, register_sizeless, name: String);
release!(titled, register_titled, title: String, size: Option<i64>);

const SCHEMA: &str = "CREATE TABLE items (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, size INTEGER)";
const ROWS: &str = "INSERT INTO items VALUES ('a', 'one', 1), ('b', 'two', 2), ('c', 'three', NULL)";

const ADD: &str = "ALTER TABLE items ADD COLUMN colour INTEGER NOT NULL DEFAULT 7";
const DROP: &str = "ALTER TABLE items DROP COLUMN size";
const RENAME: &str = "ALTER TABLE items RENAME COLUMN name TO title";
const REBUILD: &str = "
    CREATE TABLE items_new (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL CHECK (name <> ''), size INTEGER);
    INSERT INTO items_new SELECT id, name, size FROM items;
    DROP TABLE items;
    ALTER TABLE items_new RENAME TO items;";
const REBUILD_SIZELESS: &str = "
    CREATE TABLE items_new (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL);
    INSERT INTO items_new SELECT id, name FROM items;
    DROP TABLE items;
    ALTER TABLE items_new RENAME TO items;";
const DATA: &str = "
    UPDATE items SET name = upper(name) WHERE id = 'a';
    UPDATE items SET name = name WHERE id = 'b';
    DELETE FROM items WHERE id = 'c';
    INSERT INTO items VALUES ('d', 'four', 4);";

struct Step(&'static str, &'static str);

impl MigrationName for Step {
    fn name(&self) -> &str {
        self.0
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(self.1).await.map(|_| ())
    }
}

/// A migrator of the application with one migration.
macro_rules! migrators {
    ($($name:ident: $sql:expr;)+) => {
        $(struct $name;

        #[async_trait::async_trait]
        impl MigratorTrait for $name {
            fn migrations() -> Vec<Box<dyn MigrationTrait>> {
                vec![Box::new(Step(stringify!($name), $sql))]
            }
        })+
    };
}

migrators! {
    Add: ADD;
    Drop: DROP;
    Rename: RENAME;
    Rebuild: REBUILD;
    Data: DATA;
    Broken: "UPDATE items SET name = 'half'; UPDATE nowhere SET a = 1";
}

/// How a schema is changed while nobody has the library open.
enum How {
    Through(&'static str),
    Behind(&'static str),
}
use How::{Behind, Through};

async fn migrate(name: &str, db: &tidelog::Connection) {
    match name {
        "Add" => tidelog::migrate::<Add>(db).await.unwrap(),
        "Drop" => tidelog::migrate::<Drop>(db).await.unwrap(),
        "Rename" => tidelog::migrate::<Rename>(db).await.unwrap(),
        "Rebuild" => tidelog::migrate::<Rebuild>(db).await.unwrap(),
        "Data" => tidelog::migrate::<Data>(db).await.unwrap(),
        other => panic!("no migrator {other}"),
    }
}

/// Closes a device, changes its schema, and starts it with the models of another release.
async fn changed(
    device: Device,
    scene: &tidelog::transport::MemoryNetwork,
    how: &How,
    register: Register,
) -> Device {
    let closed = device.close().await;
    match how {
        Through(migrator) => {
            let db = closed.connect().await;
            migrate(migrator, &db).await;
            db.close().await.unwrap();
        }
        Behind(sql) => closed.file().execute_batch(sql).unwrap(),
    }
    let device = closed.reopen(register).await.unwrap();
    device.start(scene).await;
    device
}

/// Changes the schema of both devices and proves that both, and one that joins later, hold the same rows, whatever the
/// log said before in the fields of the former release. Returns the entries that the change cost.
async fn goes_on(how: How, new_schema: &str, register_new: Register, columns: &str) -> Vec<String> {
    let mut scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "*").await;
    let before = scene.leader.log().len();

    scene.follower = changed(scene.follower, &scene.network, &how, register_new).await;
    scene.leader = changed(scene.leader, &scene.network, &how, register_new).await;
    scene.assert_level("items", columns).await;
    let cost = scene.leader.log().split_off(before);

    // Capture goes on.
    let column = columns.split(", ").nth(1).unwrap();
    scene.leader.sql(&format!("UPDATE items SET {column} = 'changed' WHERE id = 'b'")).await;
    scene.leader.sql("DELETE FROM items WHERE id = 'a'").await;
    scene.assert_level("items", columns).await;
    let update = format!("update item b [{column}]");
    assert_eq!(scene.follower.log().split_off(before + cost.len()), [update.as_str(), "delete item a"]);

    let late = scene.join(3, new_schema, register_new).await;
    late.reached(&scene.leader).await;
    assert_eq!(late.dump("items", columns), scene.leader.dump("items", columns), "one that joins late");
    cost
}

const COLOURED: &str = "CREATE TABLE items (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, size INTEGER,
    colour INTEGER NOT NULL DEFAULT 7)";
const SIZELESS: &str = "CREATE TABLE items (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL)";
const TITLED: &str = "CREATE TABLE items (id TEXT PRIMARY KEY NOT NULL, title TEXT NOT NULL, size INTEGER)";
const NOTHING: [&str; 0] = [];

#[tokio::test]
async fn a_column_that_is_added_costs_no_entries() {
    for how in [Through("Add"), Behind(ADD)] {
        assert_eq!(goes_on(how, COLOURED, register_coloured, "id, name, size, colour").await, NOTHING);
    }
}

#[tokio::test]
async fn a_column_can_be_dropped() {
    for how in [Through("Drop"), Behind(REBUILD_SIZELESS)] {
        assert_eq!(goes_on(how, SIZELESS, register_sizeless, "id, name").await, NOTHING);
    }
}

#[tokio::test]
async fn a_renamed_column_is_told_under_its_new_name() {
    for how in [Through("Rename"), Behind(RENAME)] {
        let told = goes_on(how, TITLED, register_titled, "id, title, size").await;
        assert_eq!(told, ["update item a", "update item b", "update item c"]);
    }
}

#[tokio::test]
async fn a_table_can_be_rebuilt() {
    for how in [Through("Rebuild"), Behind(REBUILD)] {
        assert_eq!(goes_on(how, SCHEMA, register, "id, name, size").await, NOTHING);
    }
}

#[tokio::test]
async fn behind_our_back_sqlite_itself_keeps_a_captured_column() {
    let scene = Scene::set(SCHEMA, register).await;
    let error = scene.leader.file().execute_batch(DROP).unwrap_err().to_string();
    assert_says(&error, &["trigger sync_items_", "size"]);
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "*").await;
}

#[tokio::test]
async fn what_a_data_migration_changed_is_announced_and_reaches_the_follower() {
    for how in [Through("Data"), Behind(REBUILD)] {
        let mut scene = Scene::set(SCHEMA, register).await;
        scene.leader.sql(ROWS).await;
        scene.assert_level("items", "*").await;
        // Only the leader's data is migrated. A rebuilt table has no triggers: what is written then is a data
        // migration too.
        let closed = scene.leader.close().await;
        match how {
            Through(migrator) => migrate(migrator, &closed.connect().await).await,
            Behind(sql) => closed.file().execute_batch(&format!("{sql} {DATA}")).unwrap(),
        }
        scene.leader = closed.reopen(register).await.unwrap();
        scene.leader.start(&scene.network).await;
        scene.assert_level("items", "*").await;
        let told = scene.follower.log().split_off(3);
        assert_eq!(told, ["update item a", "insert item d", "delete item c"]);
    }
}

#[tokio::test]
async fn what_is_written_between_a_migration_and_the_next_opening_is_captured() {
    let mut scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "*").await;
    let closed = scene.leader.close().await;
    let db = closed.connect().await;
    migrate("Add", &db).await;
    db.execute_unprepared("UPDATE items SET name = 'x', colour = 9 WHERE id = 'a'").await.unwrap();
    db.execute_unprepared("UPDATE items SET colour = 8 WHERE id = 'b'").await.unwrap();
    db.close().await.unwrap();
    scene.leader = closed.reopen(register_coloured).await.unwrap();
    scene.leader.start(&scene.network).await;
    scene.follower = changed(scene.follower, &scene.network, &Through("Add"), register_coloured).await;
    scene.assert_level("items", "id, name, size, colour").await;
}

#[tokio::test]
async fn a_migration_that_fails_leaves_capture_on() {
    let mut scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "*").await;
    let closed = scene.leader.close().await;
    let db = closed.connect().await;
    let error = tidelog::migrate::<Broken>(&db).await.unwrap_err().to_string();
    assert_says(&error, &["migration", "nowhere"]);
    db.execute_unprepared("INSERT INTO items VALUES ('d', 'four', 4)").await.unwrap();
    db.close().await.unwrap();
    scene.leader = closed.reopen(register).await.unwrap();
    scene.leader.start(&scene.network).await;
    scene.assert_level("items", "*").await;
}

#[tokio::test]
async fn a_migration_is_refused_while_a_library_is_open() {
    let scene = Scene::set(SCHEMA, register).await;
    let error = tidelog::migrate::<Drop>(&scene.leader.db).await.unwrap_err().to_string();
    let path = scene.leader.path().display().to_string();
    assert_says(&error, &[&path, "already open for sync", "nothing was changed", "Close the other library"]);
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "id, name, size").await;
}

#[tokio::test]
async fn a_schema_that_no_longer_fits_an_open_library_is_told_and_nothing_is_lost() {
    let mut scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "*").await;
    let told = ["item", "`items`", "no column `size`", "nothing was changed", "tidelog::migrate"];

    // On the leader. What is written behind the change finds no trigger.
    scene.leader.file().execute_batch(REBUILD_SIZELESS).unwrap();
    let status = scene.leader.until("told", |status| status.last_error.is_some()).await;
    assert_says(&status.last_error.unwrap(), &told);
    let error = scene.leader.library.barrier().await.unwrap_err().to_string();
    assert_says(&error, &told);
    scene.leader.file().execute_batch("UPDATE items SET name = 'later' WHERE id = 'a'").unwrap();

    // On the follower, when the next entry comes.
    scene.follower.file().execute_batch(REBUILD_SIZELESS).unwrap();
    scene.leader = changed(scene.leader, &scene.network, &Behind("SELECT 1"), register_sizeless).await;
    let status = scene.follower.until(
        "told",
        |status| matches!(&status.link, tidelog::Link::Stopped { reason } if reason.contains("`size`")),
    );
    assert_says(&status.await.last_error.unwrap(), &told);
    scene.follower = changed(scene.follower, &scene.network, &Behind("SELECT 1"), register_sizeless).await;
    scene.assert_level("items", "id, name").await;
    assert_eq!(scene.follower.log().split_off(3), ["update item a"]);
}

#[tokio::test]
async fn a_schema_that_fits_again_is_taken_up_without_reopening() {
    let scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "*").await;
    scene.leader.file().execute_batch(REBUILD_SIZELESS).unwrap();
    scene.leader.until("told", |status| status.last_error.is_some()).await;
    scene.leader.file().execute_batch("ALTER TABLE items ADD COLUMN size INTEGER").unwrap();
    scene.leader.until("well again", |status| status.last_error.is_none()).await;
    scene.assert_level("items", "*").await;
    assert_eq!(scene.follower.log().split_off(3), ["update item a", "update item b"], "their sizes are gone");
}

#[tokio::test]
async fn a_table_rebuilt_under_an_open_library_is_captured_again() {
    let scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(ROWS).await;
    scene.assert_level("items", "*").await;
    scene.leader.file().execute_batch(&format!("{REBUILD} UPDATE items SET name = 'uncaptured'")).unwrap();
    scene.assert_level("items", "*").await;
    scene.leader.sql("UPDATE items SET name = 'captured' WHERE id = 'a'").await;
    scene.assert_level("items", "*").await;
    let told = scene.follower.log().split_off(3);
    assert_eq!(told, ["update item a", "update item b", "update item c", "update item a [name]"]);
}

#[tokio::test]
async fn sync_tables_in_the_applications_own_list_are_recognised() {
    struct Everything;
    #[async_trait::async_trait]
    impl MigratorTrait for Everything {
        fn migrations() -> Vec<Box<dyn MigrationTrait>> {
            let mut list = tidelog_migration::migrations();
            list.push(Box::new(Step("items", SCHEMA)));
            list
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.sqlite");
    let db = connect(&format!("sqlite://{}?mode=rwc", file.display())).await.unwrap();
    tidelog::migrate::<Everything>(&db).await.unwrap();
    let library = register(Library::builder(&db)).create(LibraryId::random()).open().await.unwrap();
    item::ActiveModel { id: Set("a".into()), name: Set("one".into()), size: Set(None) }
        .insert(&db)
        .await
        .unwrap();
    assert_eq!(item::Entity::find().all(&db).await.unwrap().len(), 1);
    let file = rusqlite::Connection::open(&file).unwrap();
    assert_eq!(number(&file, "SELECT count(*) FROM sync_outbox"), 1);
    assert_eq!(number(&file, "SELECT count(*) FROM sqlite_master WHERE name = 'sync_migrations'"), 0);
    library.shutdown().await;
    tidelog::migrate::<Everything>(&db).await.unwrap();
}

//! Tables and triggers that cannot be synced are refused when the library is opened: in words that name the object,
//! the reason and the way out, and with nothing changed. What can be synced beside them is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tidelog::{Library, connect, id::LibraryId};
use tidelog_tests::{
    cabinet::{SCHEMA, register},
    scene::{Scene, assert_says, dump},
};

/// Opens the cabinet over another schema and returns why it is refused. The schema is as it was then.
async fn refused(schema: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sqlite");
    let db = connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute_batch(schema).unwrap();
    let everything = "sqlite_master WHERE name NOT LIKE 'sync\\_%' ESCAPE '\\' AND tbl_name NOT LIKE 'sync\\_%' ESCAPE '\\'";
    let before = dump(&file, everything, "sql");
    let opened = register(Library::builder(&db)).create(LibraryId::random()).open().await;
    let error = opened.err().expect("it is refused").to_string();
    assert_eq!(dump(&file, everything, "sql"), before, "nothing was changed");
    let triggers = "sqlite_master WHERE type = 'trigger' AND name LIKE 'sync\\_%' ESCAPE '\\'";
    assert!(dump(&file, triggers, "name").is_empty(), "no capture trigger was made");
    assert!(dump(&file, "sync_replica", "*").is_empty(), "the database is in no library");
    // Nor is it locked.
    let again = register(Library::builder(&db)).create(LibraryId::random()).open().await;
    assert_eq!(again.err().expect("it is refused again").to_string(), error);
    error
}

#[tokio::test]
async fn a_table_that_cannot_be_synced_is_refused_clearly() {
    let folders =
        "CREATE TABLE folders (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL UNIQUE COLLATE NOCASE";
    for (from, to, parts) in [
        (
            "CREATE TABLE pins",
            "CREATE TABLE pinned",
            &["`pins`", "`pin`", "it does not exist", "tidelog::migrate"][..],
        ),
        (
            "        text TEXT\n",
            "        txt TEXT\n",
            &["`pages`", "`page`", "no column `text`", "tidelog::migrate"],
        ),
        (
            "opened INTEGER",
            "opened INTEGER NOT NULL",
            &["`folders`", "`folder`", "local column `opened`", "default"],
        ),
        (
            "id uuid_text PRIMARY KEY NOT NULL",
            "id uuid_text",
            &["`labels`", "`label`", "key (id)", "unique index"],
        ),
        (
            "    );\n    CREATE TABLE labels",
            "    );\n    CREATE TRIGGER chain AFTER DELETE ON pages BEGIN DELETE FROM pins; END;\n    CREATE TABLE labels",
            &["trigger `chain`", "synced table `pins`", "WHEN (SELECT mode FROM sync_ctl) = 0"],
        ),
    ] {
        assert!(SCHEMA.contains(from), "{from} {folders}");
        let error = refused(&SCHEMA.replace(from, to)).await;
        assert_says(&error, parts);
        assert_says(&error.to_lowercase(), &["nothing was changed"]);
    }
}

#[tokio::test]
async fn a_unique_index_will_do_for_a_key() {
    let schema = SCHEMA.replace("id uuid_text PRIMARY KEY NOT NULL", "id uuid_text NOT NULL");
    let scene = Scene::set(&format!("{schema} CREATE UNIQUE INDEX label_id ON labels (id);"), register).await;
    scene.leader.sql("INSERT INTO labels VALUES (randomblob(16), 'red')").await;
    scene.assert_level("labels", "*").await;
    assert_eq!(scene.follower.dump("labels", "*").len(), 1);
}

#[tokio::test]
async fn a_guarded_trigger_writes_on_the_device_of_the_user_only() {
    let trigger = "CREATE TRIGGER pinned AFTER INSERT ON folders WHEN (SELECT mode FROM sync_ctl) = 0 BEGIN
        INSERT INTO pins VALUES ('on ' || NEW.id, NEW.id); END;";
    let mut scene = Scene::set(SCHEMA, register).await;
    // It names `sync_ctl`, so it is made when that is there.
    scene.leader.sql(trigger).await;
    scene.follower.sql(trigger).await;
    let closed = scene.follower.close().await;
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.start(&scene.network).await;
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('a', 'one')").await;
    scene.assert_level("pins", "*").await;
    // In whatever order SQLite ran its trigger and ours.
    assert_eq!(scene.follower.log().len(), 2, "each once: {:?}", scene.follower.log());
    assert_eq!(scene.follower.outbox(), 0, "at the follower it did not fire");
    scene.leader.sql("DELETE FROM pins").await;
    scene.leader.sql("UPDATE folders SET note = 'x'").await;
    scene.assert_level("pins", "*").await;
    assert!(scene.follower.dump("pins", "*").is_empty());
}

#[tokio::test]
async fn a_trigger_that_keeps_a_table_of_its_own_fires_on_every_device() {
    let schema = format!(
        "{SCHEMA}
        CREATE TABLE search (page TEXT PRIMARY KEY, words TEXT);
        CREATE TRIGGER found AFTER INSERT ON pages BEGIN INSERT INTO search VALUES (NEW.id, lower(NEW.text)); END;
        CREATE TRIGGER changed AFTER UPDATE OF text ON pages BEGIN
            UPDATE search SET words = lower(NEW.text) WHERE page = NEW.id; END;
        CREATE TRIGGER forgotten AFTER DELETE ON pages BEGIN DELETE FROM search WHERE page = OLD.id; END;"
    );
    let scene = Scene::set(&schema, register).await;
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('f', 'folder')").await;
    for write in [
        "INSERT INTO pages VALUES ('a', 'f', 'ONE'), ('b', 'f', 'TWO'), ('c', 'f', 'THREE')",
        "UPDATE pages SET text = 'Four' WHERE id = 'a'",
        "DELETE FROM pages WHERE id = 'b'",
        "DELETE FROM folders",
    ] {
        scene.leader.sql(write).await;
        scene.assert_level("pages", "*").await;
        assert_eq!(scene.follower.dump("search", "*"), scene.leader.dump("search", "*"), "{write}");
        assert_eq!(scene.follower.outbox(), 0, "what was applied is not captured again");
    }
}

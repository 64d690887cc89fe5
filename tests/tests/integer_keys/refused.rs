//! What is refused before anything is changed, and what is rolled back.

use std::{fs, io::Write, time::Duration};

use rusqlite::Connection;
use tidelog::migration::{IntegerKeys, KeysError, Step, integer_keys_to_uuids};
use tidelog_tests::counted::NAMESPACE;

use crate::{NOTES, Place, keys, killed::Child};

#[test]
fn a_row_that_cannot_be_carried_over_is_named() {
    let seen = || keys(&["tags", "notes"]).reference("notes", "seen", "tags");
    for (damage, text) in [
        (
            "UPDATE notes SET tag_id = 7 WHERE id = 11",
            "table `notes`, row 11: `tag_id` refers to a row of `tags` that is not there; nothing was changed. Delete \
             the row or mend the reference, then run the migration again",
        ),
        (
            "UPDATE notes SET seen = 7 WHERE id = 12",
            "table `notes`, row 12: `seen` refers to a row of `tags` that is not there; nothing was changed. Delete \
             the row or mend the reference, then run the migration again",
        ),
        (
            "UPDATE notes SET tag_id = 'seven' WHERE id = 10",
            "table `notes`, row 10: `tag_id` holds a value of type text, not an integer; nothing was changed. Correct \
             the value, then run the migration again",
        ),
        (
            "UPDATE notes SET seen = x'00' WHERE id = 10",
            "table `notes`, row 10: `seen` holds a value of type blob, not an integer; nothing was changed. Correct \
             the value, then run the migration again",
        ),
    ] {
        let place = Place::with(NOTES);
        place.run(damage);
        assert_eq!(place.refused(&seen()), text);
    }
}

#[test]
fn a_schema_that_cannot_be_carried_over_is_named() {
    const NAMED: &str = "Name only tables with a single INTEGER PRIMARY KEY";
    const AGAIN: &str = "Drop it before the migration, and make it again afterwards in a way that fits UUIDs";
    for (more, asked, what, reason, remedy) in [
        (
            "",
            keys(&["gone"]),
            "table `gone`",
            "there is no such table",
            "Name only tables that the application has made",
        ),
        (
            "CREATE VIEW v AS SELECT 1",
            keys(&["v"]),
            "table `v`",
            "it is a view, and has no rows of its own",
            "Name only tables",
        ),
        (
            "CREATE VIRTUAL TABLE f USING fts5 (a)",
            keys(&["f"]),
            "table `f`",
            "it is a virtual table",
            "Name only tables",
        ),
        ("CREATE TABLE a (b)", keys(&["a"]), "table `a`", "it has no primary key", NAMED),
        (
            "CREATE TABLE a (id TEXT PRIMARY KEY)",
            keys(&["a"]),
            "table `a`",
            "its key `id` is declared `TEXT` and is no INTEGER PRIMARY KEY",
            NAMED,
        ),
        (
            "CREATE TABLE a (id INTEGER PRIMARY KEY DESC)",
            keys(&["a"]),
            "table `a`",
            "its key `id` is declared `INTEGER`",
            NAMED,
        ),
        (
            "CREATE TABLE a (id INTEGER PRIMARY KEY) WITHOUT ROWID",
            keys(&["a"]),
            "table `a`",
            "it is a WITHOUT ROWID table",
            NAMED,
        ),
        (
            "CREATE TABLE a (b, c, PRIMARY KEY (b, c))",
            keys(&["a"]),
            "table `a`",
            "its primary key has several columns",
            NAMED,
        ),
        (
            "",
            keys(&["tags"]).reference("notes", "sean", "tags"),
            "table `notes`",
            "it has no column `sean`",
            "Name a reference",
        ),
        (
            "",
            keys(&["tags"]).reference("notes", "seen", "notes"),
            "table `notes`",
            "`seen` is to refer to `notes`, whose keys were not named",
            "Name that table",
        ),
        (
            "CREATE TABLE a (id INTEGER PRIMARY KEY REFERENCES b); CREATE TABLE b (id INTEGER PRIMARY KEY REFERENCES a)",
            keys(&["a", "b"]),
            "table `a`",
            "the references of `id` lead in a circle",
            "Let each column",
        ),
        (
            "",
            keys(&["tags", "notes"]).reference("notes", "tag_id", "notes"),
            "table `notes`",
            "`tag_id` refers to both `tags` and `notes`",
            "Let each column",
        ),
        (
            "CREATE TABLE a (t INTEGER DEFAULT 0 REFERENCES tags)",
            keys(&["tags"]),
            "table `a`",
            "the reference `t` has the default 0",
            "Take the default away",
        ),
        (
            "CREATE TABLE a (b, t INTEGER AS (b) REFERENCES tags)",
            keys(&["tags"]),
            "table `a`",
            "the reference `t` is a generated column",
            "Make it a plain column",
        ),
        (
            "CREATE TABLE a (t INTEGER REFERENCES tags CHECK (t > 0))",
            keys(&["tags"]),
            "a constraint or generated column of table `a`",
            "it calculates with `t`",
            AGAIN,
        ),
        (
            "CREATE TABLE a (t INTEGER REFERENCES tags, b AS (t % 2))",
            keys(&["tags"]),
            "a constraint or generated column of table `a`",
            "it calculates with `t`",
            AGAIN,
        ),
        (
            "CREATE INDEX odd ON notes (seen, tag_id % 2)",
            keys(&["tags"]),
            "index `odd` of table `notes`",
            "it calculates with `tag_id`",
            AGAIN,
        ),
        (
            "CREATE INDEX odd ON notes (seen) WHERE tag_id > 5",
            keys(&["tags"]),
            "index `odd` of table `notes`",
            "it calculates with `tag_id`",
            AGAIN,
        ),
        (
            "CREATE VIRTUAL TABLE f USING fts5 (text, content='notes', content_rowid='id')",
            keys(&["notes"]),
            "virtual table `f`",
            "it may find rows of table `notes` by their integer keys",
            AGAIN,
        ),
        (
            "CREATE VIRTUAL TABLE f USING fts5 (text);
             CREATE TRIGGER t AFTER INSERT ON notes BEGIN INSERT INTO f (rowid, text) VALUES (NEW.id, NEW.text); END",
            keys(&["notes"]),
            "virtual table `f`",
            "it may find rows of table `notes` by their integer keys",
            AGAIN,
        ),
        (
            "CREATE VIEW v AS SELECT gone FROM tags",
            keys(&["tags"]),
            "view `v`",
            "it does not work as it is: no such column: gone",
            "Correct or drop it",
        ),
        (
            "CREATE TRIGGER t AFTER DELETE ON notes BEGIN DELETE FROM gone; END",
            keys(&["tags"]),
            "trigger `t`",
            "it does not work as it is: no such table: main.gone",
            "Correct or drop it",
        ),
    ] {
        let place = Place::with(NOTES);
        place.run(more);
        let text = place.refused(&asked);
        assert!(text.starts_with(&format!("{what} stands in the way: {reason}")), "{text}");
        assert!(text.contains(&format!("; nothing was changed. {remedy}")), "{text}");
    }
    let text = Place::with(NOTES).refused(&IntegerKeys::new(NAMESPACE));
    assert_eq!(
        text,
        "no table was named whose keys are to become UUIDs; nothing was changed. Name at least one"
    );
}

#[test]
fn a_database_that_somebody_has_open_is_left_alone() {
    // Not `refused`, which reads the file: that would take the other connection's locks away (see `Taken`).
    let in_use = |place: &Place| {
        let text = integer_keys_to_uuids(&place.file, &keys(&["tags"])).unwrap_err().to_string();
        let expected =
            "is in use by another connection; nothing was changed. Close the application's connections";
        assert!(text.contains(expected), "{text}");
    };
    let place = Place::with(NOTES);
    let bytes = place.bytes();
    let writer = place.open();
    writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO tags VALUES (3)").unwrap();
    in_use(&place);
    // The refusal must leave it its locks: another process would find them gone.
    assert!(!Child::start(&place.file, "tags", None).succeeds());
    writer.execute_batch("ROLLBACK").unwrap();
    drop(writer);
    let reader = place.open();
    reader.execute_batch("BEGIN; SELECT * FROM tags").unwrap();
    in_use(&place);
    drop(reader);
    assert!(place.bytes() == bytes);

    // With a write-ahead log even a connection that does nothing.
    place.run("PRAGMA journal_mode = WAL");
    let idle = place.open();
    assert_eq!(idle.query_row("SELECT count(*) FROM tags", [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    in_use(&place);
    drop(idle);
    place.migrate(&keys(&["tags", "notes"]));
}

#[test]
fn what_was_migrated_before_is_told_apart_from_what_cannot_be() {
    let place = Place::with(&format!("{NOTES} CREATE TABLE more (id INTEGER PRIMARY KEY)"));
    place.migrate(&keys(&["tags", "notes"]));
    let error = integer_keys_to_uuids(&place.file, &keys(&["notes", "tags"])).unwrap_err();
    assert!(matches!(error, KeysError::AlreadyUuids), "{error}");
    let text = place.refused(&keys(&["tags", "notes"]));
    assert_eq!(
        text,
        "the keys of all tables that were named are UUIDs already; nothing was changed. There is nothing to do"
    );
    let text = place.refused(&keys(&["more", "tags"]));
    assert!(
        text.contains("its key `id` is declared `uuid_text`") && text.contains("migrated already"),
        "{text}"
    );
}

#[test]
fn while_it_runs_nobody_else_reads_or_writes() {
    for journal in ["DELETE", "WAL"] {
        let place = Place::with(&format!("PRAGMA journal_mode = {journal}; {NOTES}"));
        let file = place.file.clone();
        let look = move |step: Step<'_>| {
            let other = Connection::open(&file).unwrap();
            other.busy_timeout(Duration::ZERO).unwrap();
            let read = other.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
            assert_eq!(
                read.unwrap_err().sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseBusy),
                "{journal}, {step:?}"
            );
        };
        place.migrate(&keys(&["tags", "notes"]).progress(look));
    }
}

#[tokio::test]
async fn a_library_that_is_open_or_ever_was_keeps_its_keys() {
    use tidelog::{Library, id::LibraryId};
    use tidelog_tests::small;
    let place = Place::new();
    let db = tidelog::connect(&format!("sqlite://{}?mode=rwc", place.file.display())).await.unwrap();
    for table in small::TABLES {
        sea_orm::ConnectionTrait::execute_unprepared(&db, table).await.unwrap();
    }
    let items = Library::builder(&db)
        .model::<small::item::Entity>()
        .create(LibraryId::random())
        .open()
        .await
        .unwrap();
    let migrate = || integer_keys_to_uuids(&place.file, &keys(&["items"])).unwrap_err().to_string();
    assert!(migrate().contains("is already open for sync, here or in another process; nothing was changed"));
    items.shutdown().await;
    assert!(migrate().contains("is in use by another connection; nothing was changed"));
    db.close().await.unwrap();
    drop(items);
    let text = migrate();
    assert!(
        text.contains("belongs to a library already")
            && text.contains("; nothing was changed. Migrate a copy"),
        "{text}"
    );
}

#[test]
fn what_is_no_database_is_refused() {
    let place = Place::new();
    let error = integer_keys_to_uuids(&place.file, &keys(&["tags"])).unwrap_err();
    assert!(matches!(error, KeysError::NoFile { .. }), "{error}");
    assert_eq!(place.files(), Vec::<String>::new());
    fs::write(&place.file, "a letter to somebody".repeat(100)).unwrap();
    let text = place.refused(&keys(&["tags"]));
    assert!(text.ends_with("file is not a database; the database is as it was"), "{text}");
}

#[test]
fn a_damaged_file_is_refused_in_the_words_of_sqlite() {
    let place = Place::with(NOTES);
    place.run(
        "CREATE INDEX by_text ON notes (text); PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX by_text ON notes (seen)' WHERE name = 'by_text'",
    );
    let text = place.refused(&keys(&["tags"]));
    assert!(
        text.contains(" is damaged: row 1 missing from index by_text; nothing was changed. Repair it"),
        "{text}"
    );
}

#[test]
fn an_earlier_backup_is_kept_and_one_of_the_same_database_replaced() {
    let place = Place::with(NOTES);
    fs::write(place.backup(), "precious").unwrap();
    let text = place.refused(&keys(&["tags"]));
    assert!(
        text.contains(
            "app.sqlite.before-uuid-keys is there already and is no copy of the database as it is now"
        ),
        "{text}"
    );
    assert!(text.contains("; nothing was changed. Move it elsewhere"), "{text}");
    assert_eq!(fs::read(place.backup()).unwrap(), b"precious");

    // As a run leaves them that is killed right before its commit, or while it copies.
    fs::copy(&place.file, place.backup()).unwrap();
    fs::write(place.beside(".before-uuid-keys.unfinished"), "half of").unwrap();
    let bytes = place.bytes();
    place.migrate(&keys(&["tags", "notes"]));
    assert!(fs::read(place.backup()).unwrap() == bytes);
    assert_eq!(place.files(), ["app.sqlite", "app.sqlite.before-uuid-keys"]);
}

#[cfg(unix)]
#[test]
fn the_backup_may_be_read_by_those_who_may_read_the_database() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::with(NOTES);
    fs::set_permissions(&place.file, fs::Permissions::from_mode(0o600)).unwrap();
    let report = place.migrate(&keys(&["tags", "notes"]));
    assert_eq!(fs::metadata(report.backup).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_fails_on_the_way_leaves_every_byte_as_it_was() {
    for journal in ["DELETE", "WAL"] {
        // The second table finds its place taken, when the first is rewritten already.
        let place = Place::with(&format!(
            "{NOTES} CREATE TABLE tidelog_integer_keys_1 (a); PRAGMA journal_mode = {journal}"
        ));
        let text = place.refused(&keys(&["tags", "notes"]));
        assert!(text.starts_with("rewriting table `notes` failed: there is already another table"), "{text}");
        assert!(text.ends_with("; the database is as it was"), "{text}");
    }
}

#[test]
fn where_a_rollback_cannot_be_shown_to_be_whole_the_backup_stays_and_is_named() {
    let place = Place::with(&format!("{NOTES} CREATE TABLE tidelog_integer_keys_1 (a)"));
    let bytes = place.bytes();
    let file = place.file.clone();
    // Somebody who heeds no locks writes into the file meanwhile.
    let meddle = move |step: Step<'_>| {
        if let Step::Rewriting { number: 1, .. } = step {
            fs::File::options().append(true).open(&file).unwrap().write_all(b"!").unwrap();
        }
    };
    let error = integer_keys_to_uuids(&place.file, &keys(&["tags", "notes"]).progress(meddle)).unwrap_err();
    let KeysError::NotAsBefore { backup, cause, .. } = &error else { panic!("{error}") };
    assert!(matches!(**cause, KeysError::Database { .. }), "{cause}");
    assert!(fs::read(backup).unwrap() == bytes);
    let text = error.to_string();
    assert!(text.contains("app.sqlite could not be shown to be as it was. The backup "), "{text}");
    assert!(text.ends_with("if anything is wrong with it put the backup in its place"), "{text}");
}

//! What a database keeps, and what it gets.

#![allow(unreachable_pub, reason = "the entity is written as an application writes it")]

use std::{
    fs,
    sync::{Arc, Mutex},
};

use rusqlite::Connection;
use tidelog::migration::{IntegerKeys, Step, uuid_for};
use tidelog_tests::counted::{self, KEYS, NAMESPACE};

use crate::{NOTES, Place, keys, schema};

#[test]
fn the_schema_keeps_every_text_but_the_types_of_keys_and_references() {
    let place = Place::with(
        "CREATE TABLE tags (\"id\" integer NOT NULL PRIMARY KEY AUTOINCREMENT, label TEXT COLLATE NOCASE UNIQUE);
         CREATE TABLE notes (
            id INTEGER PRIMARY KEY, -- counted
            tag_id INT REFERENCES tags (id) ON DELETE SET NULL ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
            after_id INTEGER REFERENCES notes, text TEXT NOT NULL DEFAULT 'id',
            words INTEGER AS (length(text)) STORED, CHECK (after_id IS NULL OR after_id <> id)) STRICT;
         CREATE UNIQUE INDEX first ON notes (tag_id) WHERE after_id IS NULL;
         CREATE INDEX \"by words\" ON notes (words DESC, lower(text));
         CREATE TABLE done (note_id INTEGER PRIMARY KEY REFERENCES notes (id));
         CREATE TABLE audit (note_id, what);
         CREATE VIEW open AS SELECT * FROM notes WHERE id NOT IN (SELECT note_id FROM done);
         CREATE TRIGGER noted AFTER UPDATE OF text ON notes BEGIN INSERT INTO audit VALUES (NEW.id, 'text'); END;
         INSERT INTO tags VALUES (3, 'home'), (9, 'work');
         INSERT INTO notes (id, tag_id, after_id, text) VALUES (1, 3, NULL, 'a'), (5, NULL, 1, 'bc'), (6, 9, NULL, '');
         INSERT INTO done VALUES (5);",
    );
    let mut expected = schema(&place.open(), "main", false);
    let report = place.migrate(&keys(&["tags", "NOTES"]));

    for text in &mut expected {
        for (before, after) in [
            ("\"id\" integer NOT NULL PRIMARY KEY AUTOINCREMENT", "\"id\" uuid_text NOT NULL PRIMARY KEY"),
            ("id INTEGER PRIMARY KEY, -- counted", "id BLOB NOT NULL PRIMARY KEY, -- counted"),
            ("tag_id INT REFERENCES", "tag_id BLOB REFERENCES"),
            ("after_id INTEGER REFERENCES", "after_id BLOB REFERENCES"),
            ("note_id INTEGER PRIMARY KEY REFERENCES", "note_id uuid_text NOT NULL PRIMARY KEY REFERENCES"),
        ] {
            *text = text.replace(before, after);
        }
    }
    assert_eq!(schema(&place.open(), "main", false), expected);
    assert_eq!(report.rows, [("tags".into(), 2), ("notes".into(), 3), ("done".into(), 1)]);
    let references: Vec<_> = report
        .references
        .iter()
        .map(|r| (r.table.as_str(), r.column.as_str(), r.parent.as_str(), r.rewritten))
        .collect();
    let rewritten =
        [("notes", "tag_id", "tags", 2), ("notes", "after_id", "notes", 1), ("done", "note_id", "notes", 1)];
    assert_eq!(references, rewritten);
    assert_eq!(report.to_review, ["open", "noted"], "what mentions a key, for the author to look at");
    assert_eq!(report.backup, place.backup().canonicalize().unwrap());

    // And all of it works.
    place.run("UPDATE notes SET text = 'x' WHERE words = 2");
    assert_eq!(place.one::<i64>("SELECT count(*) FROM open"), 2);
    assert_eq!(place.one::<Vec<u8>>("SELECT note_id FROM audit"), uuid_for(NAMESPACE, "notes", 5).as_bytes());
    let conn = place.open();
    conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    conn.execute("DELETE FROM tags WHERE label = 'HOME'", []).unwrap();
    assert_eq!(place.one::<i64>("SELECT count(*) FROM notes WHERE tag_id IS NULL"), 2, "ON DELETE SET NULL");
    assert!(conn.execute("INSERT INTO done VALUES (x'00')", []).is_err(), "foreign keys are enforced");
    assert!(
        conn.execute("INSERT INTO notes (text) VALUES ('')", []).is_err(),
        "nothing is counted up any more"
    );
}

#[test]
fn names_may_be_as_odd_as_sqlite_allows() {
    let place = Place::with(
        "CREATE TABLE \"my \"\"notes\"\", (all)\" (\"the id,\" INTEGER PRIMARY KEY, [in] INTEGER REFERENCES \"my \"\"notes\"\", (all)\");
         CREATE TABLE `order` (`primary` INTEGER REFERENCES [my \"notes\", (all)] (\"the id,\"), größe, 'check' INT);
         CREATE INDEX \"a.b\" ON `order` (größe, `primary`) WHERE `primary` NOTNULL;
         INSERT INTO \"my \"\"notes\"\", (all)\" VALUES (1, NULL), (2, 1);
         INSERT INTO `order` VALUES (2, 'x', 1), (NULL, 'y', 2);",
    );
    let report =
        place.migrate(&keys(&["MY \"Notes\", (all)"]).reference("order", "CHECK", "my \"notes\", (all)"));
    let rewritten: Vec<u64> = report.references.iter().map(|reference| reference.rewritten).collect();
    assert_eq!(rewritten, [1, 1, 2]);
    let joined = "SELECT count(*) FROM `order` o JOIN [my \"notes\", (all)] n ON n.\"the id,\" IN (o.\"primary\", o.\"check\")";
    assert_eq!(place.one::<i64>(joined), 3);
}

#[test]
fn an_integer_key_that_stays_goes_on_counting_where_it_was() {
    let place = Place::with(
        "CREATE TABLE tags (id INTEGER PRIMARY KEY AUTOINCREMENT);
         CREATE TABLE log (n INTEGER PRIMARY KEY AUTOINCREMENT, tag_id INTEGER REFERENCES tags);
         INSERT INTO tags VALUES (1), (7); INSERT INTO log VALUES (1, 7), (40, 7); DELETE FROM log WHERE n = 40;",
    );
    place.migrate(&keys(&["tags"]));
    assert_eq!(place.one::<String>("SELECT group_concat(name || ' ' || seq) FROM sqlite_sequence"), "log 40");
    place.run("INSERT INTO log (tag_id) SELECT tag_id FROM log");
    assert_eq!(place.one::<i64>("SELECT max(n) FROM log"), 41);
}

#[test]
fn copies_of_one_database_get_the_same_keys_and_other_databases_others() {
    let (desk, lap, stranger) = (Place::of_seed(3), Place::of_seed(3), Place::of_seed(3));
    desk.migrate(&counted::keys());
    // Meanwhile on the laptop rows went, and others moved.
    lap.run("DELETE FROM visits; DELETE FROM remarks; DELETE FROM file_tags; VACUUM");
    lap.migrate(&counted::keys());
    let others = KEYS.iter().fold(IntegerKeys::new(uuid::Uuid::nil()), |keys, (table, _)| keys.table(*table));
    stranger.migrate(&others.reference("visits", "visited", "files"));
    for (table, key) in KEYS {
        let all = format!("SELECT group_concat(hex({key}) ORDER BY rowid) FROM {table}");
        assert_eq!(desk.one::<String>(&all), lap.one::<String>(&all), "{table}");
        let shared = format!("SELECT count(*) FROM {table} WHERE {key} IN (SELECT {key} FROM other.{table})");
        let conn = desk.open();
        conn.execute("ATTACH ?1 AS other", [stranger.file.to_str().unwrap()]).unwrap();
        assert_eq!(conn.query_row(&shared, [], |row| row.get::<_, i64>(0)).unwrap(), 0, "{table}");
    }
}

mod note {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "notes")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub after_id: Option<Uuid>,
        pub text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

#[tokio::test]
async fn seaorm_finds_its_rows_by_uuid_and_a_new_row_comes_behind_them() {
    use sea_orm::{ActiveModelTrait, EntityTrait, QueryOrder, Set};
    let place = Place::with(
        "CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, after_id INTEGER REFERENCES notes (id), text TEXT NOT NULL);
         INSERT INTO notes VALUES (1, NULL, 'one'), (2, 1, 'two'), (4000000000, 2, 'far');",
    );
    place.migrate(&keys(&["notes"]));
    let db = tidelog::connect(&format!("sqlite://{}", place.file.display())).await.unwrap();
    let two = note::Entity::find_by_id(uuid_for(NAMESPACE, "notes", 2)).one(&db).await.unwrap().unwrap();
    assert_eq!((two.text.as_str(), two.after_id), ("two", Some(uuid_for(NAMESPACE, "notes", 1))));

    let text = "new".to_owned();
    let new = note::ActiveModel { text: Set(text), after_id: Set(Some(two.id)), ..Default::default() };
    new.save(&db).await.unwrap();
    let texts: Vec<String> = note::Entity::find()
        .order_by_asc(note::Column::Id)
        .all(&db)
        .await
        .unwrap()
        .into_iter()
        .map(|n| n.text)
        .collect();
    assert_eq!(texts, ["one", "two", "far", "new"]);
    db.close().await.unwrap();
}

#[test]
fn what_waits_in_the_write_ahead_log_is_migrated_too_and_the_journal_mode_stays() {
    let place =
        Place::with("PRAGMA journal_mode = WAL; CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)");
    let copy = Place::new();
    let conn = place.open();
    conn.execute_batch("INSERT INTO notes VALUES (1, 'in the log only')").unwrap();
    // As it is found after the application was killed.
    fs::copy(&place.file, &copy.file).unwrap();
    fs::copy(place.beside("-wal"), copy.beside("-wal")).unwrap();
    copy.migrate(&keys(&["notes"]));
    assert_eq!(copy.one::<String>("SELECT text FROM notes WHERE length(id) = 16"), "in the log only");
    assert_eq!(copy.one::<String>("PRAGMA journal_mode"), "wal");
    let backup = Connection::open(copy.backup()).unwrap();
    let text: String = backup.query_row("SELECT text FROM notes WHERE id = 1", [], |row| row.get(0)).unwrap();
    assert_eq!(text, "in the log only", "the backup has it too");
}

#[test]
fn progress_tells_each_step_in_its_turn() {
    let place = Place::with(NOTES);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = {
        let told = Arc::clone(&told);
        move |step: Step<'_>| told.lock().unwrap().push(format!("{step:?}"))
    };
    place.migrate(&keys(&["tags", "notes"]).progress(tell));
    let told = told.lock().unwrap();
    let rewriting =
        |table: &str, number: usize| format!("Rewriting {{ table: {table:?}, number: {number}, of: 2 }}");
    assert_eq!(
        *told,
        ["Checking", "Copying", &rewriting("tags", 0), &rewriting("notes", 1), "Validating", "Committing"]
    );
}

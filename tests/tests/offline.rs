//! Everyone writes, the leader decides: what a follower wrote, online or not, reaches the leader, is decided by the
//! model's policy against what its author had not seen, and comes back to everyone the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use sea_orm::{ConnectionTrait, TransactionTrait};
use tidelog::LibraryBuilder;
use tidelog_tests::{
    dice::Dice,
    scene::{Device, Scene, WAIT_MAX, number, text},
    small::{TABLES, item, person, team},
};

/// A note of which each field counts by itself, and whose count adds up.
#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod note {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "notes")]
    #[sync(model = "note", merge = "fields")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub title: String,
        pub body: String,
        #[sync(merge = "sum")]
        pub count: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const NOTES: &str = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, title TEXT NOT NULL, body TEXT NOT NULL, count INTEGER NOT NULL)";

fn schema() -> String {
    format!("{}; {NOTES}", TABLES.join("; "))
}

fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<item::Entity>().model::<team::Entity>().model::<person::Entity>().model::<note::Entity>()
}

/// A scene in which both hold what `before` wrote on the leader.
async fn scene(before: &str) -> Scene {
    let scene = Scene::set(&schema(), register).await;
    if !before.is_empty() {
        scene.leader.sql(before).await;
    }
    scene.level().await;
    scene
}

/// The follower goes offline; both write; it comes back, and both are level.
async fn apart(scene: Scene, on_leader: &[&str], on_follower: &[&str]) -> Scene {
    scene.apart(register, on_leader, on_follower).await
}

/// Every table says the same on both, satisfies its foreign keys, and nothing waits.
fn assert_agreed(scene: &Scene) {
    for (table, columns) in [
        ("items", "id, parent_id, name, place"),
        ("teams", "*"),
        ("people", "*"),
        ("notes", "*"),
        ("sync_log", "*"),
        ("sync_conflict", "*"),
        ("sync_dead_letter", "*"),
    ] {
        let both = (scene.leader.dump(table, columns), scene.follower.dump(table, columns));
        assert_eq!(both.0, both.1, "table `{table}`");
    }
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(number(&device.file(), "SELECT count(*) FROM pragma_foreign_key_check"), 0);
        assert_eq!(number(&device.file(), "SELECT count(*) FROM sync_pending"), 0);
        assert_eq!(device.outbox(), 0);
    }
}

fn notes(device: &Device) -> String {
    text(
        &device.file(),
        "SELECT coalesce(group_concat(id || ' ' || title || ' ' || body || ' ' || count, ', '), '')
         FROM (SELECT * FROM notes ORDER BY id)",
    )
}

/// What became of the last entry of a record: the object beside it, empty where it came as its author made it.
fn change_of(device: &Device, record: &str) -> String {
    let sql = format!(
        "SELECT coalesce(change, '') FROM sync_entry WHERE record = '{record}' ORDER BY seq DESC LIMIT 1"
    );
    text(&device.file(), &sql)
}

#[tokio::test]
async fn what_a_follower_writes_reaches_everybody() {
    let scene = scene("INSERT INTO notes VALUES ('n', 'title', 'body', 1)").await;
    let late = scene.join(3, &schema(), register).await;
    scene.follower.sql("INSERT INTO notes VALUES ('m', 'mine', '', 0)").await;
    scene.follower.sql("UPDATE notes SET title = 'changed' WHERE id = 'n'").await;
    scene.follower.sql("DELETE FROM notes WHERE id = 'm'").await;
    scene.follower.library.barrier().await.unwrap();
    assert_eq!(notes(&scene.leader), "n changed body 1");
    late.library.barrier().await.unwrap();
    assert_eq!(notes(&late), "n changed body 1");
    assert_agreed(&scene);
}

#[tokio::test]
async fn two_followers_write_and_end_with_the_same() {
    let scene = scene("INSERT INTO notes VALUES ('n', 'title', 'body', 10)").await;
    let other = scene.join(3, &schema(), register).await;
    other.reached(&scene.leader).await;
    for i in 0..20 {
        scene.follower.sql("UPDATE notes SET count = count + 1 WHERE id = 'n'").await;
        other.sql("UPDATE notes SET count = count + 100 WHERE id = 'n'").await;
        scene.leader.sql(&format!("INSERT INTO notes VALUES ('l{i}', '', '', 0)")).await;
        other.sql(&format!("INSERT INTO notes VALUES ('o{i}', '', '', 0)")).await;
    }
    for device in [&scene.follower, &other, &scene.leader, &scene.follower, &other] {
        device.library.barrier().await.unwrap();
    }
    assert_eq!(number(&scene.leader.file(), "SELECT count FROM notes WHERE id = 'n'"), 10 + 20 + 2000);
    assert_eq!(number(&scene.leader.file(), "SELECT count(*) FROM notes"), 41);
    assert_eq!(other.dump("notes", "*"), scene.leader.dump("notes", "*"));
    assert_agreed(&scene);
}

#[tokio::test]
async fn different_fields_merge_and_the_same_field_goes_to_the_later() {
    let scene = scene("INSERT INTO notes VALUES ('n', 'title', 'body', 10)").await;
    let scene = apart(
        scene,
        &["UPDATE notes SET title = 'leader', count = 11 WHERE id = 'n'"],
        &["UPDATE notes SET title = 'follower', body = 'new', count = 15 WHERE id = 'n'"],
    )
    .await;
    assert_eq!(notes(&scene.leader), "n follower new 16");
    let change = change_of(&scene.leader, "n");
    assert!(change.contains(r#""dropped":[{"field":"title","loser":"local"}]"#), "{change}");
    assert!(change.contains(r#""old":["title","body",10]"#), "{change}");
    assert_agreed(&scene);
}

#[tokio::test]
async fn the_later_change_of_a_record_stands_and_the_other_is_in_the_log() {
    let scene = scene("INSERT INTO items (id, name) VALUES ('a', 'first')").await;
    let scene = apart(
        scene,
        &["UPDATE items SET name = 'leader' WHERE id = 'a'"],
        &["UPDATE sync_ctl SET clock = 1000", "UPDATE items SET name = 'follower' WHERE id = 'a'"],
    )
    .await;
    assert_eq!(text(&scene.follower.file(), "SELECT name FROM items"), "leader", "its clock was behind");
    let change = change_of(&scene.follower, "a");
    assert!(change.contains(r#""dropped":[{"field":"name","loser":"remote"}]"#), "{change}");
    assert!(change.contains("follower"), "nothing saved is lost: {change}");
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_deletion_stands_over_an_update_it_had_not_seen_and_the_other_way_round() {
    let scene = scene("INSERT INTO items (id, name) VALUES ('a', 'first'), ('b', 'first')").await;
    let scene = apart(
        scene,
        &["DELETE FROM items WHERE id = 'a'", "UPDATE items SET name = 'leader' WHERE id = 'b'"],
        &["UPDATE items SET name = 'follower' WHERE id = 'a'", "DELETE FROM items WHERE id = 'b'"],
    )
    .await;
    assert_eq!(number(&scene.follower.file(), "SELECT count(*) FROM items"), 0);
    assert!(change_of(&scene.leader, "a").contains("follower"));
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_record_that_was_deleted_comes_back_only_when_somebody_who_knew_makes_it_again() {
    let scene = scene("INSERT INTO notes VALUES ('n', 'old', '', 0)").await;
    scene.leader.sql("DELETE FROM notes WHERE id = 'n'").await;
    scene.level().await;
    scene.follower.sql("INSERT INTO notes VALUES ('n', 'again', '', 0)").await;
    scene.follower.library.barrier().await.unwrap();
    assert_eq!(notes(&scene.leader), "n again  0");
    assert_agreed(&scene);
}

#[tokio::test]
async fn two_that_give_the_same_unique_value_agree_on_one_and_keep_the_other() {
    let scene = scene("").await;
    let scene = apart(
        scene,
        &["INSERT INTO items (id, name, place) VALUES ('l', 'leader', 1)"],
        &[
            "INSERT INTO items (id, name, place) VALUES ('f', 'follower', 1)",
            "INSERT INTO items (id, name, place) VALUES ('g', 'other', 2)",
        ],
    )
    .await;
    assert_eq!(
        text(&scene.follower.file(), "SELECT group_concat(id) FROM (SELECT id FROM items ORDER BY id)"),
        "g,l"
    );
    let change = change_of(&scene.follower, "f");
    assert!(change.contains("the leader's database does not take it: UNIQUE"), "{change}");
    assert!(change.contains("follower"), "{change}");
    assert_agreed(&scene);
}

/// Where the items are, and the names of those that are refused.
fn places(device: &Device) -> (String, String) {
    let places = "SELECT group_concat(id || place, ' ') FROM (SELECT id, place FROM items WHERE place IS NOT NULL ORDER BY id)";
    let refused =
        "SELECT coalesce(group_concat(record), '') FROM sync_dead_letter JOIN sync_entry USING (seq)";
    (text(&device.file(), places), text(&device.file(), refused))
}

#[tokio::test]
async fn unique_values_that_a_transaction_exchanges_reach_everyone_as_it_left_them() {
    let scene = scene(
        "INSERT INTO items (id, name, place) VALUES ('a', '', 1), ('b', '', 2), ('c', '', 3), ('d', '', 4), ('e', '', 5);
         INSERT INTO items (id, name, parent_id) VALUES ('child', '', 'a')",
    )
    .await;
    scene.leader.sql("UPDATE items SET seen_here = 7").await;
    let scene = apart(
        scene,
        &["UPDATE items SET name = 'leader' WHERE id = 'child'"],
        &[
            // A ring of three.
            "BEGIN; UPDATE items SET place = NULL WHERE id = 'a'; UPDATE items SET place = 1 WHERE id = 'b';
             UPDATE items SET place = 2 WHERE id = 'c'; UPDATE items SET place = 3 WHERE id = 'a'; COMMIT",
            // Each takes the place that the next has given up.
            "BEGIN; UPDATE items SET place = 9 WHERE id = 'e'; UPDATE items SET name = 'moved' WHERE id = 'd';
             UPDATE items SET place = 5 WHERE id = 'd'; INSERT INTO items (id, name, place) VALUES ('f', '', 4); COMMIT",
        ],
    )
    .await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(places(device), ("a3 b1 c2 d5 e9 f4".into(), String::new()));
    }
    let local = number(&scene.leader.file(), "SELECT sum(seen_here) FROM items");
    assert_eq!(local, 6 * 7, "what is local of rows that stepped aside, and the row that belongs to one");
    assert_agreed(&scene);
}

#[tokio::test]
async fn records_that_exchange_a_value_may_have_old_and_new_children() {
    let scene = scene(
        "INSERT INTO items (id, name, place) VALUES ('p', '', 1), ('q', '', 2);
         INSERT INTO items (id, name, parent_id) VALUES ('old', '', 'p'), ('older', '', 'p')",
    )
    .await;
    let changes = "BEGIN; INSERT INTO items (id, name, parent_id) VALUES ('new', '', 'p');
        UPDATE items SET place = NULL WHERE id = 'p'; UPDATE items SET place = 1 WHERE id = 'q';
        UPDATE items SET place = 2 WHERE id = 'p'; COMMIT";
    let scene = apart(scene, &[], &[changes]).await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(places(device), ("p2 q1".into(), String::new()));
        assert_eq!(number(&device.file(), "SELECT count(*) FROM items WHERE parent_id = 'p'"), 3);
    }
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_unique_value_passes_on_within_a_transaction_from_a_record_that_it_deletes() {
    let scene = scene("INSERT INTO notes VALUES ('a', 'one', '', 0), ('b', 'two', '', 0)").await;
    for device in [&scene.leader, &scene.follower] {
        device.sql("CREATE UNIQUE INDEX titled ON notes (title)").await;
    }
    let changes = "BEGIN; UPDATE notes SET body = 'kept' WHERE id = 'b'; DELETE FROM notes WHERE id = 'a';
        UPDATE notes SET title = 'one' WHERE id = 'b'; COMMIT";
    let scene = apart(scene, &[], &[changes]).await;
    assert_eq!(notes(&scene.leader), "b one kept 0");
    assert_eq!(number(&scene.leader.file(), "SELECT count(*) FROM sync_dead_letter"), 0);
    assert_agreed(&scene);
}

#[tokio::test]
async fn of_values_that_a_transaction_exchanges_only_those_are_refused_that_somebody_else_has() {
    let scene =
        scene("INSERT INTO items (id, name, place) VALUES ('a', '', 1), ('b', '', 2), ('c', '', 3)").await;
    let scene = apart(
        scene,
        &["INSERT INTO items (id, name, place) VALUES ('l', '', 9)"],
        &["BEGIN; UPDATE items SET place = 9 WHERE id = 'c'; UPDATE items SET place = NULL WHERE id = 'a';
           UPDATE items SET place = 1 WHERE id = 'b'; UPDATE items SET place = 2 WHERE id = 'a'; COMMIT"],
    )
    .await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(places(device), ("a2 b1 c3 l9".into(), "c".into()));
    }
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_child_whose_parent_was_deleted_is_refused_and_a_whole_family_is_not() {
    let scene = scene("INSERT INTO items (id, name) VALUES ('p', 'parent'), ('q', 'stays')").await;
    let scene = apart(
        scene,
        &["DELETE FROM items WHERE id = 'p'"],
        &[
            "INSERT INTO items (id, name, parent_id) VALUES ('c', 'child', 'p')",
            "INSERT INTO items (id, name, parent_id) VALUES ('d', 'child', 'q')",
            // A circle, each of which refers to the other.
            "BEGIN; INSERT INTO teams VALUES ('t', 'team', 'm'); INSERT INTO people VALUES ('m', 'person', 't'); COMMIT",
        ],
    )
    .await;
    assert_eq!(
        text(&scene.leader.file(), "SELECT group_concat(id) FROM (SELECT id FROM items ORDER BY id)"),
        "d,q"
    );
    let change = change_of(&scene.leader, "c");
    assert!(change.contains("refers to a row of `items` that is not there"), "{change}");
    assert_eq!(text(&scene.leader.file(), "SELECT lead_id FROM teams"), "m");
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_value_that_the_leader_still_refers_to_is_not_taken_away() {
    let scene = scene("INSERT INTO items (id, name, place) VALUES ('a', 'first', 1)").await;
    // A table of the leader's own, which is not synced, refers to what is no key.
    scene
        .leader
        .sql(
            "CREATE TABLE shelves (place INTEGER REFERENCES items (place) DEFERRABLE INITIALLY DEFERRED);
             INSERT INTO shelves VALUES (1)",
        )
        .await;
    let scene = apart(scene, &[], &["UPDATE items SET place = 2", "UPDATE items SET name = 'second'"]).await;
    assert_eq!(number(&scene.follower.file(), "SELECT place FROM items"), 1);
    let sql = "SELECT coalesce(change, '') FROM sync_entry WHERE record = 'a' AND kind = 0";
    let change = text(&scene.leader.file(), sql);
    assert!(change.contains("a row of `shelves` still refers to it"), "{change}");
    assert_agreed(&scene);
}

#[tokio::test]
async fn what_the_leaders_database_cascades_goes_with_the_deletion() {
    let scene = scene(
        "INSERT INTO items (id, name, parent_id) VALUES ('p', 'parent', NULL), ('c', 'child', 'p'), ('d', 'child', 'c')",
    )
    .await;
    let scene = apart(
        scene,
        &["INSERT INTO items (id, name, parent_id) VALUES ('e', 'new child', 'd')"],
        &["DELETE FROM items WHERE id = 'p'"],
    )
    .await;
    assert_eq!(number(&scene.follower.file(), "SELECT count(*) FROM items"), 0);
    assert_agreed(&scene);
}

/// A folder whose update wins over its deletion, and what is in it.
#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod folder {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "folders")]
    #[sync(model = "folder", deletes = "update_wins")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub parent_id: Option<String>,
        pub name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

#[tokio::test]
async fn what_was_in_a_record_stays_with_it() {
    let tables = "CREATE TABLE folders (id TEXT NOT NULL PRIMARY KEY,
        parent_id TEXT REFERENCES folders (id) ON DELETE CASCADE, name TEXT NOT NULL)";
    fn folders(builder: LibraryBuilder) -> LibraryBuilder {
        builder.model::<folder::Entity>()
    }
    let scene = Scene::set(tables, folders).await;
    let rows = "INSERT INTO folders VALUES ('a', NULL, 'old'), ('b', 'a', 'in a'), ('c', 'b', 'in b'), ('d', NULL, 'apart'),
        ('e', 'd', 'in d')";
    scene.leader.sql(rows).await;
    scene.level().await;
    let scene = scene
        .apart(
            folders,
            &["UPDATE folders SET name = 'kept' WHERE id = 'a'"],
            &["DELETE FROM folders WHERE id = 'a'", "DELETE FROM folders WHERE id = 'd'"],
        )
        .await;
    let left = "SELECT group_concat(id || ' ' || name) FROM (SELECT * FROM folders ORDER BY id)";
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(text(&device.file(), left), "a kept,b in a,c in b");
        assert_eq!(number(&device.file(), "SELECT count(*) FROM pragma_foreign_key_check"), 0);
        assert_eq!(
            device.library.conflicts_since(tidelog::id::Seq(0)).await.unwrap().len(),
            3,
            "each is on record"
        );
        assert_eq!(device.library.dead_letters().await.unwrap(), []);
    }
    assert_eq!(scene.leader.dump("sync_log", "*"), scene.follower.dump("sync_log", "*"));
}

#[tokio::test]
async fn what_an_application_says_of_a_change_is_bounded() {
    let scene = scene("").await;
    let said = "UPDATE sync_ctl SET actor = printf('%.*c', 5000000, 'a') || 'ä', mark = printf('%.*c', 5000000, 'm')";
    let scene =
        apart(scene, &[], &[said, "INSERT INTO notes VALUES ('a', '', '', 0), ('b', '', '', 0)"]).await;
    let lengths = "SELECT max(length(actor)) || ' ' || max(length(mark)) || ' ' || count(DISTINCT mark) FROM sync_entry";
    assert_eq!(text(&scene.leader.file(), lengths), "256 36 1");
    assert_agreed(&scene);
}

#[tokio::test]
async fn rows_as_large_as_they_may_be_meet_and_nothing_is_stuck() {
    let before =
        "INSERT INTO items (id, name, payload) VALUES ('a', '', randomblob(1300000)), ('b', '', NULL)";
    let update = "UPDATE items SET payload = randomblob(1300000)";
    let scene = apart(scene(before).await, &[update], &["UPDATE sync_ctl SET clock = 1000", update]).await;
    let conflicts = scene.follower.library.conflicts_since(tidelog::id::Seq(0)).await.unwrap();
    assert_eq!(conflicts.len(), 2);
    assert!(conflicts.iter().all(|c| c.remote.row.is_some() && c.local.row.is_some()));
    assert_agreed(&scene);
    let scene =
        apart(scene, &[update], &["DELETE FROM items", "INSERT INTO items (id, name) VALUES ('c', '')"])
            .await;
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_change_on_which_the_leader_fails_blocks_nobody_for_long() {
    let scene = scene("").await;
    // Takes the whole transaction back, not the row: nothing that can be answered row by row.
    scene
        .leader
        .sql(
            "CREATE TRIGGER poison BEFORE INSERT ON notes WHEN NEW.title = 'poison'
             BEGIN SELECT RAISE(ROLLBACK, 'as a bug would'); END",
        )
        .await;
    let mut scene = scene;
    let closed = scene.follower.close().await;
    // Each in a seal of its own, as over a long time offline.
    for (id, title) in [("a", "well"), ("b", "well"), ("c", "poison"), ("d", "well")] {
        let device = closed.reopen(register).await.unwrap();
        device.sql(&format!("INSERT INTO notes VALUES ('{id}', '{title}', '', 0)")).await;
        assert_eq!(device.library.settled("note", "nobody").await.unwrap(), []);
        drop(device.close().await);
    }
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.start(&scene.network).await;
    scene.follower.library.barrier().await.unwrap();
    assert_eq!(notes(&scene.follower), "a well  0, b well  0, d well  0");
    let letters = scene.leader.library.dead_letters().await.unwrap();
    assert_eq!(letters.iter().map(|l| l.record.as_str()).collect::<Vec<_>>(), ["c"]);
    assert!(letters[0].reason.contains("failed on it 3 times"), "{letters:?}");
    assert_eq!(number(&scene.leader.file(), "SELECT count(*) FROM sync_attempt"), 0);
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_transaction_larger_than_a_batch_is_taken_whole() {
    // Children come first: in parts of their own they would refer to nothing.
    let many = "WITH RECURSIVE k (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < 9000)
        INSERT INTO items (id, name, parent_id)
        SELECT printf('i%05d', i), 'many', CASE WHEN i < 9000 THEN printf('i%05d', i + 1) END FROM k";
    let scene = scene("").await;
    let scene = apart(scene, &[], &[many, "INSERT INTO notes VALUES ('n', 'after', '', 0)"]).await;
    assert_eq!(scene.follower.library.status().borrow().pending, 0, "the barrier has counted");
    assert_eq!(number(&scene.leader.file(), "SELECT count(*) FROM items"), 9000);
    let groups = "SELECT count(*) FROM sync_group WHERE last - first >= 8999";
    assert_eq!(number(&scene.leader.file(), groups), 1, "one group in the log");
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(number(&device.file(), "SELECT count(*) FROM sync_pushed"), 0, "no part is left");
    }
    assert_agreed(&scene);
}

#[tokio::test]
async fn a_second_coming_sends_nothing() {
    let scene = scene("INSERT INTO notes VALUES ('n', 'title', 'body', 1)").await;
    let scene =
        apart(scene, &[], &["UPDATE notes SET title = 'mine'", "INSERT INTO notes VALUES ('m', '', '', 0)"])
            .await;
    let entries = scene.leader.log();
    let scene = apart(scene, &[], &[]).await;
    assert_eq!(scene.leader.log(), entries);
    assert_agreed(&scene);
}

/// A write that a user might make, over few records, so that they meet. The database may refuse it.
fn a_write(dice: &mut Dice) -> String {
    let (a, b) = (dice.roll(6), dice.roll(6));
    match dice.roll(11) {
        0 => format!("INSERT INTO items (id, name, place) VALUES ('i{a}', 'new', {b})"),
        1 => format!("INSERT INTO items (id, name, parent_id) VALUES ('i{a}', 'child', 'i{b}')"),
        2 => format!("UPDATE items SET name = 'name {}' WHERE id = 'i{a}'", dice.roll(1000)),
        3 => format!("UPDATE items SET place = {b} WHERE id = 'i{a}'"),
        4 => format!("DELETE FROM items WHERE id = 'i{a}'"),
        5 => format!("UPDATE notes SET count = count + {b} WHERE id = 'n{a}'"),
        6 => format!("UPDATE notes SET title = 'title {}' WHERE id = 'n{a}'", dice.roll(1000)),
        7 => format!("UPDATE notes SET body = 'body {}' WHERE id = 'n{a}'", dice.roll(1000)),
        8 => format!("INSERT INTO notes VALUES ('n{a}', 'new', '', {b})"),
        9 => format!("DELETE FROM notes WHERE id = 'n{a}'"),
        _ => format!(
            "INSERT INTO teams VALUES ('t{a}', 'team', 'm{b}'); INSERT INTO people VALUES ('m{b}', 'person', 't{a}')"
        ),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_everybody_writes_all_end_with_the_same() {
    for seed in 1..=SEEDS {
        eprintln!("seed {seed}");
        let mut dice = Dice(seed);
        let mut scene =
            scene("INSERT INTO notes VALUES ('n0', 'title', 'body', 0), ('n1', 'title', 'body', 0)").await;
        let other = scene.join(3, &schema(), register).await;
        other.reached(&scene.leader).await;
        for _ in 0..60 {
            let writer = [&scene.leader, &scene.follower, &other][dice.roll(3) as usize];
            write_freely(&writer.db, &a_write(&mut dice)).await;
            if dice.roll(6) == 0 {
                decide_something(writer, &mut dice).await;
            }
            if dice.roll(12) == 0 {
                let writes: Vec<String> = (0..dice.roll(6)).map(|_| a_write(&mut dice)).collect();
                let closed = scene.follower.close().await;
                for sql in (0..dice.roll(6)).map(|_| a_write(&mut dice)).collect::<Vec<_>>() {
                    write_freely(&scene.leader.db, &sql).await;
                }
                let db = closed.connect().await;
                for sql in &writes {
                    write_freely(&db, sql).await;
                }
                db.close().await.unwrap();
                scene.follower = closed.reopen(register).await.unwrap();
                scene.follower.start(&scene.network).await;
            }
        }
        for device in [&scene.follower, &other, &scene.leader, &scene.follower, &other] {
            let level = tokio::time::timeout(WAIT_MAX, device.library.barrier()).await;
            let status = device.library.status().borrow().clone();
            level.unwrap_or_else(|_| panic!("seed {seed}: not level: {status:?}")).unwrap();
        }
        assert_agreed(&scene);
        for table in ["items", "teams", "people", "notes", "sync_log", "sync_conflict", "sync_dead_letter"] {
            let columns = if table == "items" { "id, parent_id, name, place" } else { "*" };
            assert_eq!(
                other.dump(table, columns),
                scene.leader.dump(table, columns),
                "table `{table}`, seed {seed}"
            );
        }
    }
}

/// What a person might decide of what did not stand, now and then. What cannot be decided is left.
async fn decide_something(device: &Device, dice: &mut Dice) {
    let library = &device.library;
    let conflicts = library.conflicts_since(tidelog::id::Seq(0)).await.unwrap();
    let letters = library.dead_letters().await.unwrap();
    let (conflict, letter) = (dice.roll(20) as usize, dice.roll(20) as usize);
    let decided = match (conflicts.get(conflict), letters.get(letter), dice.roll(2)) {
        (Some(conflict), _, 0) => {
            let choice = if dice.roll(2) == 0 { tidelog::Choice::Local } else { tidelog::Choice::Remote };
            library.resolve(conflict.id, choice).await
        }
        (_, Some(letter), _) if dice.roll(3) > 0 => library.retry(letter.id).await,
        (_, Some(letter), _) => library.discard(letter.id).await,
        _ => Ok(()),
    };
    match decided {
        Ok(()) | Err(tidelog::Error::NotDecided { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Walks that are taken.
const SEEDS: u64 = 20;

/// A write that the database may refuse.
async fn write_freely(db: &tidelog::Connection, sql: &str) {
    let transaction = db.begin().await.unwrap();
    for statement in sql.split("; ") {
        if transaction.execute_unprepared(statement).await.is_err() {
            transaction.rollback().await.unwrap();
            return;
        }
    }
    // What is checked at the end only may be refused there.
    let _ = transaction.commit().await;
}

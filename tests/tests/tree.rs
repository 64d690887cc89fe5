//! `tree = "parent_id"`: moves that together would make a circle are refused by the leader, whoever made them and in
//! whatever order they come, so that a tree is one on every device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use sea_orm::{ConnectionTrait, TransactionTrait};
use tidelog::LibraryBuilder;
use tidelog_tests::{
    apart::Together,
    dice::Dice,
    scene::{Device, assert_says, dump, entries, number, text},
};

/// A folder in a folder.
#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod folder {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "folders")]
    #[sync(model = "folder", tree = "parent_id", merge = "fields", deletes = "update_wins")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub parent_id: Option<String>,
        pub name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// No foreign key: a folder may outlive the one that it is in.
const SCHEMA: &str =
    "CREATE TABLE folders (id TEXT NOT NULL PRIMARY KEY, parent_id TEXT, name TEXT NOT NULL)";
/// With one that moves what was in a deleted folder to another.
const MOVING: &str = "CREATE TABLE folders (id TEXT NOT NULL PRIMARY KEY,
    parent_id TEXT DEFAULT 'lost' REFERENCES folders (id) ON DELETE SET DEFAULT, name TEXT NOT NULL)";

fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<folder::Entity>()
}

/// Three devices with the folders a to e, none in another.
async fn folders(schema: &str) -> Together {
    let before = "INSERT INTO folders VALUES ('a', NULL, ''), ('b', NULL, ''), ('c', NULL, ''), ('d', NULL, ''), ('e', NULL, '')";
    Together::set(schema, register, |builder| builder, before).await
}

fn put(folder: &str, into: &str) -> String {
    format!("UPDATE folders SET parent_id = '{into}' WHERE id = '{folder}'")
}

/// Which folder is in which: `a in b, c in a`.
fn tree(device: &Device) -> String {
    text(
        &device.file(),
        "SELECT coalesce(group_concat(id || ' in ' || parent_id, ', '), '')
         FROM (SELECT * FROM folders WHERE parent_id IS NOT NULL ORDER BY id)",
    )
}

/// How many folders are in themselves, over any number of others.
fn circles(device: &Device) -> i64 {
    let sql = "WITH RECURSIVE above (id, parent_id) AS (
            SELECT id, parent_id FROM folders
            UNION
            SELECT above.id, f.parent_id FROM above JOIN folders f ON f.id = above.parent_id
        ) SELECT count(*) FROM above WHERE id = parent_id";
    number(&device.file(), sql)
}

/// The records of refused changes, with the reason.
fn refused(device: &Device) -> Vec<(String, String)> {
    let file = device.file();
    let mut statement = file
        .prepare(
            "SELECT record, change ->> 'refused' FROM sync_entry WHERE change ->> 'refused' IS NOT NULL ORDER BY seq",
        )
        .unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
}

#[track_caller]
fn assert_refused(device: &Device, records: &[&str]) {
    let refused = refused(device);
    assert_eq!(refused.iter().map(|(record, _)| record.as_str()).collect::<Vec<_>>(), records);
    for (_, reason) in refused {
        assert!(reason.contains("lead back to it") && reason.contains("`parent_id`"), "{reason}");
    }
}

#[tokio::test]
async fn two_folders_that_two_devices_put_into_each_other_end_with_the_first() {
    for third_first in [false, true] {
        let apart = folders(SCHEMA).await.part([&[&put("a", "b")], &[&put("b", "a")]]).await;
        let together = apart.meet(third_first).await;
        together.agree_on("folders").await;
        let (stands, fell) = if third_first { ("b in a", "a") } else { ("a in b", "b") };
        assert_eq!(tree(&together.leader), stands);
        assert_refused(&together.followers[0], &[fell]);
        let values =
            text(&together.leader.file(), "SELECT group_concat(change) FROM sync_entry WHERE kind = 0");
        assert!(values.contains(r#""fields":["parent_id"]"#), "nothing saved is lost: {values}");
    }
}

#[tokio::test]
async fn a_refused_move_can_be_tried_again_once_nothing_is_in_its_way() {
    let together = folders(SCHEMA).await.part([&[&put("a", "b")], &[&put("b", "a")]]).await.meet(false).await;
    for device in [&together.leader, &together.followers[0]] {
        device.level().await;
        let letters = device.library.dead_letters().await.unwrap();
        let [letter] = letters.as_slice() else { panic!("{letters:?}") };
        let error = device.library.retry(letter.id).await.unwrap_err().to_string();
        assert_says(&error, &["above itself in its tree", "Move what it would be in first"]);
        assert_eq!(tree(device), "a in b");
    }
    together.leader.sql(&put("a", "c")).await;
    let letters = together.leader.library.dead_letters().await.unwrap();
    together.leader.library.retry(letters[0].id).await.unwrap();
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "a in c, b in a");
}

#[tokio::test]
async fn the_leaders_own_move_is_met_too() {
    let apart = folders(SCHEMA).await.part([&[&put("a", "b"), &put("c", "b")], &[]]).await;
    apart.leader.sql(&put("b", "a")).await;
    let together = apart.meet(false).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "b in a, c in b", "what has nothing to do with it stands");
    assert_refused(&together.leader, &["a"]);
}

#[tokio::test]
async fn a_circle_of_three_is_one_too() {
    for third_first in [false, true] {
        let apart = folders(SCHEMA).await.part([&[&put("a", "b")], &[&put("b", "c"), &put("d", "a")]]).await;
        apart.leader.sql(&put("c", "a")).await;
        let together = apart.meet(third_first).await;
        together.agree_on("folders").await;
        let (stands, fell) =
            if third_first { ("b in c, c in a, d in a", "a") } else { ("a in b, c in a, d in a", "b") };
        assert_eq!(tree(&together.leader), stands);
        assert_refused(&together.leader, &[fell]);
    }
}

#[tokio::test]
async fn of_a_group_that_makes_a_circle_the_last_move_is_refused() {
    let both = format!("{}; {}; {}", put("a", "b"), put("b", "a"), put("c", "b"));
    let together = folders(SCHEMA).await.part([&[&both], &[&put("d", "d")]]).await.meet(false).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "a in b, c in b");
    assert_refused(&together.leader, &["b", "d"]);
}

#[tokio::test]
async fn what_lies_below_a_circle_does_not_hide_it() {
    // The last that moves is in no circle itself, and walks into one.
    let all = format!("{}; {}; {}; {}", put("b", "a"), put("a", "b"), put("c", "a"), put("d", "c"));
    let together = folders(SCHEMA).await.part([&[&all], &[]]).await.meet(false).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "b in a, c in a, d in c");
    assert_refused(&together.leader, &["a"]);
}

#[tokio::test]
async fn a_group_may_go_through_a_circle_and_out_of_it() {
    let together = folders(SCHEMA).await;
    together.leader.sql(&put("b", "a")).await;
    together.agree_on("folders").await;
    // Turned over: for a moment each is in the other.
    let turned = format!("{}; UPDATE folders SET parent_id = NULL WHERE id = 'b'", put("a", "b"));
    let together = together.part([&[&turned], &[]]).await.meet(false).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "a in b");
    assert_refused(&together.leader, &[]);
}

#[tokio::test]
async fn an_atomic_move_falls_whole() {
    let mut together = folders(SCHEMA).await;
    let [second, third] = together.followers;
    let closed = second.close().await;
    together.leader.sql(&put("b", "a")).await;
    together.leader.level().await;
    let db = closed.connect().await;
    db.atomic::<_, _, sea_orm::DbErr>(|transaction| {
        Box::pin(async move {
            transaction.execute_unprepared(&put("a", "b")).await?;
            transaction.execute_unprepared(&put("d", "e")).await
        })
    })
    .await
    .unwrap();
    db.close().await.unwrap();
    let second = closed.back(&together.network, register).await;
    together.followers = [second, third];
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "b in a");
    let reasons = refused(&together.leader);
    assert_eq!(reasons.iter().map(|(record, _)| record.as_str()).collect::<Vec<_>>(), ["a", "d"]);
    assert!(reasons[1].1.contains("it stands or falls with"), "{reasons:?}");
}

#[tokio::test]
async fn a_folder_that_is_made_again_below_what_was_in_it_is_refused() {
    let again = ["DELETE FROM folders WHERE id = 'a'", "INSERT INTO folders VALUES ('a', 'b', 'again')"];
    let apart = folders(SCHEMA).await.part([&[&put("b", "a")], &again]).await;
    let together = apart.meet(false).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "b in a");
    assert_refused(&together.leader, &["a"]);
}

#[tokio::test]
async fn a_folder_that_comes_back_with_its_old_place_is_refused_where_that_is_a_circle() {
    let together = folders(SCHEMA).await;
    together.leader.sql(&put("a", "b")).await;
    together.agree_on("folders").await;
    // Whoever deleted it then put b into what was not there any more; a new name brings it back to where it was.
    let gone = ["DELETE FROM folders WHERE id = 'a'", &put("b", "a")];
    let apart = together.part([&gone, &["UPDATE folders SET name = 'new' WHERE id = 'a'"]]).await;
    let together = apart.meet(false).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "b in a");
    assert_eq!(number(&together.leader.file(), "SELECT count(*) FROM folders WHERE id = 'a'"), 0);
    assert_refused(&together.leader, &["a"]);
}

#[tokio::test]
async fn what_a_deletion_moves_makes_no_circle_either() {
    let together = folders(MOVING).await;
    together.leader.sql("INSERT INTO folders VALUES ('lost', NULL, '')").await;
    together.leader.sql(&put("b", "a")).await;
    together.agree_on("folders").await;
    // Whoever deletes a does not know that lost and found is in b: b would go to lost, in which it is.
    let apart = together.part([&["DELETE FROM folders WHERE id = 'a'"], &[&put("lost", "b")]]).await;
    let together = apart.meet(true).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "b in a, lost in b");
    // What its author's database moved, and the deletion, which would move it here.
    assert_refused(&together.leader, &["b", "a"]);
}

#[tokio::test]
async fn what_the_leaders_own_application_wrote_stands_and_hinders_nobody() {
    let together = folders(SCHEMA).await;
    together.leader.sql(&format!("{}; {}", put("a", "b"), put("b", "a"))).await;
    together.agree_on("folders").await;
    assert_eq!(circles(&together.followers[0]), 2, "nothing that was written is refused where it is written");
    let apart = together
        .part([&["UPDATE folders SET name = 'x' WHERE id = 'b'", &put("c", "b")], &[&put("a", "d")]])
        .await;
    let together = apart.meet(false).await;
    together.agree_on("folders").await;
    assert_eq!(tree(&together.leader), "a in d, b in a, c in b", "and whoever comes may mend it");
    assert_refused(&together.leader, &[]);
}

fn folder(dice: &mut Dice) -> String {
    char::from(b'a' + dice.roll(7) as u8).to_string()
}

/// A write that a careful application makes: what it moves does not come into itself, as far as it can see.
fn a_write(dice: &mut Dice) -> String {
    let (a, b) = (folder(dice), folder(dice));
    match dice.roll(8) {
        0 => format!("DELETE FROM folders WHERE id = '{a}'"),
        1 => format!("INSERT OR IGNORE INTO folders VALUES ('{a}', NULL, 'made')"),
        2 => format!("UPDATE folders SET name = 'name {}' WHERE id = '{a}'", dice.roll(100)),
        _ => format!(
            "UPDATE folders SET parent_id = '{b}' WHERE id = '{a}' AND id NOT IN (
                WITH RECURSIVE above (id) AS (
                    VALUES ('{b}') UNION SELECT parent_id FROM above JOIN folders USING (id) LIMIT 20
                ) SELECT id FROM above WHERE id IS NOT NULL)"
        ),
    }
}

/// Walks that are taken.
const SEEDS: u64 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_moved_by_whomever_all_end_with_the_same_tree() {
    let mut fell = 0;
    for seed in 1..=SEEDS {
        eprintln!("seed {seed}");
        let mut dice = Dice(seed);
        let mut together = folders(SCHEMA).await;
        for _ in 0..4 {
            for _ in 0..10 {
                let writer =
                    [&together.leader, &together.followers[0], &together.followers[1]][dice.roll(3) as usize];
                write(writer, &a_write(&mut dice)).await;
            }
            let writes: Vec<Vec<String>> =
                (0..2).map(|_| (0..dice.roll(6)).map(|_| a_write(&mut dice)).collect()).collect();
            let [first, second] = [&writes[0], &writes[1]].map(|w| w.iter().map(String::as_str).collect());
            let (first, second): (Vec<&str>, Vec<&str>) = (first, second);
            let apart = together.part([&first, &second]).await;
            for _ in 0..dice.roll(4) {
                write(&apart.leader, &a_write(&mut dice)).await;
            }
            together = apart.meet(dice.roll(2) == 0).await;
        }
        together.agree_on("folders").await;
        for device in [&together.leader, &together.followers[0], &together.followers[1]] {
            assert_eq!(circles(device), 0, "seed {seed}: {}", tree(device));
        }
        fell += refused(&together.leader).len();
    }
    assert!(fell > 0, "no walk met a circle");
}

async fn write(device: &Device, sql: &str) {
    let transaction = device.db.begin().await.unwrap();
    transaction.execute_unprepared(sql).await.unwrap();
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn a_large_push_of_a_deep_tree_is_one_tree() {
    let together = folders(SCHEMA).await;
    // Deepest first, and each in the one that comes after it.
    let chain = "INSERT INTO folders
        WITH RECURSIVE n (i) AS (SELECT 900 UNION ALL SELECT i - 1 FROM n WHERE i > 1)
        SELECT 'n' || i, iif(i > 1, 'n' || (i - 1), 'a'), '' FROM n";
    let apart = together.part([&[chain], &[&put("a", "b")]]).await;
    apart.leader.sql(&put("b", "c")).await;
    let together = apart.meet(true).await;
    together.agree_on("folders").await;
    assert_eq!(number(&together.leader.file(), "SELECT count(*) FROM folders"), 905);
    assert_refused(&together.leader, &[]);
    let follower = &together.followers[1];
    follower.sql(&put("c", "n900")).await;
    follower.level().await;
    assert_refused(&together.leader, &["c"]);
    assert_eq!(dump(&follower.file(), "folders", "*"), dump(&together.leader.file(), "folders", "*"));
    assert_eq!(entries(&follower.file()), entries(&together.leader.file()));
}

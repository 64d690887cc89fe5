//! Changes of one atomic scope stand or fall together, and so does what a person decides about them: who tries one of its dead
//! letters again tries all, the leader takes all or none once more, and who gives one up gives up all.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use sea_orm::{ConnectionTrait, DbErr};
use tidelog::{
    Connection, DeadLetter, LibraryBuilder, Row,
    conflict::PAGE_MAX,
    dead_letter::{DeadLetterId, DeadLetterState},
    id::DeviceId,
    model::ModelDescriptor,
    testing::replica::{Identity, Replica, crash_after},
    value::Value,
    world::Machine,
};
use tidelog_tests::{
    claims::{CLAIMS, claim},
    scene::{Device, Register, Scene, assert_says, number, text},
    small::{TABLES, item},
};

const REGISTER: Register = |builder: LibraryBuilder| builder.model::<item::Entity>().model::<claim::Entity>();

/// Runs statements as one atomic scope.
async fn atomically(db: &Connection, statements: &[&str]) {
    let statements: Vec<String> = statements.iter().map(|&sql| sql.to_owned()).collect();
    db.atomic::<_, (), DbErr>(move |transaction| {
        Box::pin(async move {
            for sql in &statements {
                transaction.execute_unprepared(sql).await?;
            }
            Ok(())
        })
    })
    .await
    .unwrap();
}

/// Both have `before`; then, both offline, the leader writes, and the follower does in one scope; both are level again.
async fn apart(before: &str, on_leader: &str, in_scope: &[&str]) -> Scene {
    let schema = format!("{}; {CLAIMS}", TABLES[0]);
    let mut scene = Scene::set(&schema, REGISTER).await;
    scene.leader.sql(before).await;
    scene.level().await;
    let closed = scene.follower.close().await;
    scene.leader.sql(on_leader).await;
    scene.leader.library.barrier().await.unwrap();
    let db = closed.connect().await;
    atomically(&db, in_scope).await;
    db.close().await.unwrap();
    scene.follower = closed.back(&scene.network, REGISTER).await;
    scene
}

/// A scope that moves one item to a place which the leader has given to another, and puts a second item beside it.
async fn refused() -> Scene {
    apart(
        "INSERT INTO items (id, name, place) VALUES ('a', 'first', 1)",
        "INSERT INTO items (id, name, place) VALUES ('l', 'leader', 2)",
        &[
            "UPDATE items SET place = 2, name = 'moved' WHERE id = 'a'",
            "INSERT INTO items (id, name) VALUES ('c', 'beside')",
        ],
    )
    .await
}

const WITHOUT_IT: &str = "a first 1,l leader 2";

fn items(device: &Device) -> String {
    let sql = "SELECT coalesce(group_concat(id || ' ' || name || coalesce(' ' || place, '')), '')
        FROM (SELECT * FROM items ORDER BY id)";
    text(&device.file(), sql)
}

/// The one dead letter of a record that waits.
async fn letter(device: &Device, record: &str) -> DeadLetter {
    let letters = device.library.dead_letters().await.unwrap();
    let of_it: Vec<_> = letters.iter().filter(|letter| letter.record == record).collect();
    assert_eq!(of_it.len(), 1, "{letters:?}");
    of_it[0].clone()
}

/// All is the same on both, and nothing waits for the leader.
async fn assert_agreed(scene: &Scene, shown: &str) {
    for device in [&scene.follower, &scene.leader, &scene.follower] {
        device.level().await;
    }
    for table in ["claims", "sync_log", "sync_dead_letter"] {
        assert_eq!(scene.leader.dump(table, "*"), scene.follower.dump(table, "*"), "table `{table}`");
    }
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(items(device), shown);
        assert_eq!(number(&device.file(), "SELECT count(*) FROM sync_pending"), 0);
    }
    let letters = scene.leader.library.dead_letters().await.unwrap();
    assert_eq!(letters, scene.follower.library.dead_letters().await.unwrap());
}

/// The state of a dead letter, on both devices the same.
async fn state(scene: &Scene, id: DeadLetterId) -> DeadLetterState {
    let there = scene.leader.library.dead_letter(id).await.unwrap().unwrap();
    let here = scene.follower.library.dead_letter(id).await.unwrap().unwrap();
    assert_eq!(there, here);
    assert_eq!(here.together, [], "who is decided waits with nobody");
    here.state
}

fn at_place(place: i64) -> Row {
    Row::from_iter([("place".to_owned(), Value::Integer(place))])
}

#[tokio::test]
async fn dead_letters_of_one_scope_name_each_other() {
    let scene = refused().await;
    assert_agreed(&scene, WITHOUT_IT).await;
    let (moved, beside) = (letter(&scene.follower, "a").await, letter(&scene.follower, "c").await);
    assert_eq!((&moved.together, &beside.together), (&vec![beside.id], &vec![moved.id]));
    assert_says(&moved.reason, &["UNIQUE"]);
    assert_says(&beside.reason, &["stands or falls with was refused", "UNIQUE"]);
    let json: serde_json::Value = serde_json::from_str(&moved.to_json()).unwrap();
    assert_eq!(json["together"], serde_json::json!([beside.id.to_string()]));
}

#[tokio::test]
async fn who_tries_one_again_tries_all_of_its_scope() {
    for follower_decides in [true, false] {
        let scene = refused().await;
        let decider = if follower_decides { &scene.follower } else { &scene.leader };
        let (moved, beside) = (letter(decider, "a").await, letter(decider, "c").await);
        let error = decider.library.retry(beside.id).await.unwrap_err().to_string();
        let named = (
            format!("dead letter {} was not decided", beside.id),
            format!("dead letter {} of item a", moved.id),
        );
        assert_says(
            &error,
            &[&named.0, &named.1, "stands or falls with it", "UNIQUE", "nothing was changed"],
        );
        assert_agreed(&scene, WITHOUT_IT).await;
        assert_eq!(letter(decider, "c").await, beside);

        scene.leader.sql("DELETE FROM items WHERE id = 'l'").await;
        scene.level().await;
        decider.library.retry(beside.id).await.unwrap();
        assert_agreed(&scene, "a moved 2,c beside").await;
        for letter in [moved, beside] {
            assert!(matches!(state(&scene, letter.id).await, DeadLetterState::Retried(_)));
        }
        let marks =
            "SELECT count(DISTINCT mark || ' ' || (SELECT max(first) FROM sync_group WHERE first <= seq))
            FROM sync_entry WHERE decides IS NOT NULL AND mark IS NOT NULL";
        assert_eq!(number(&scene.leader.file(), marks), 1, "one scope again");
    }
}

#[tokio::test]
async fn who_edits_one_takes_the_others_as_they_were() {
    for follower_decides in [true, false] {
        let scene = refused().await;
        let decider = if follower_decides { &scene.follower } else { &scene.leader };
        decider.library.retry_with(letter(decider, "a").await.id, at_place(3)).await.unwrap();
        assert_agreed(&scene, "a moved 3,c beside,l leader 2").await;
        assert_eq!(scene.leader.library.dead_letters().await.unwrap(), []);
    }
}

#[tokio::test]
async fn who_gives_one_up_gives_up_its_scope() {
    for follower_decides in [true, false] {
        let scene = refused().await;
        let decider = if follower_decides { &scene.follower } else { &scene.leader };
        let (moved, beside) = (letter(decider, "a").await, letter(decider, "c").await);
        decider.library.discard(beside.id).await.unwrap();
        assert_agreed(&scene, WITHOUT_IT).await;
        for id in [moved.id, beside.id] {
            assert!(matches!(state(&scene, id).await, DeadLetterState::Discarded(_)));
            let error = decider.library.retry(id).await.unwrap_err().to_string();
            assert_says(&error, &["decided already", "nothing was changed"]);
        }
    }
}

/// The follower goes offline, the leader does this meanwhile, and the follower tries the scope again with another place for the one
/// that clashed.
async fn retried_apart(mut scene: Scene, meanwhile: &str, place: i64) -> Scene {
    let moved = letter(&scene.follower, "a").await.id;
    let closed = scene.follower.close().await;
    scene.leader.sql(meanwhile).await;
    scene.leader.library.barrier().await.unwrap();
    scene.follower = closed.reopen(REGISTER).await.unwrap();
    scene.follower.library.retry_with(moved, at_place(place)).await.unwrap();
    scene
}

/// [`retried_apart`], and the follower comes back.
async fn retried_meanwhile(scene: Scene, meanwhile: &str, place: i64) -> Scene {
    let scene = retried_apart(scene, meanwhile, place).await;
    scene.follower.start(&scene.network).await;
    scene
}

/// The same of a scope with `c`, which shows at once and is decided with it.
async fn retried_offline(scene: Scene, meanwhile: &str, place: i64) -> Scene {
    let scene = retried_apart(scene, meanwhile, place).await;
    let shown = items(&scene.follower);
    assert!(
        shown.contains(&format!("moved {place}")) && shown.contains("c beside"),
        "it is here at once: {shown}"
    );
    let error = scene.follower.library.discard(letter(&scene.follower, "c").await.id).await.unwrap_err();
    assert_says(&error.to_string(), &["decided already"]);
    scene.follower.start(&scene.network).await;
    scene
}

#[tokio::test]
async fn what_is_refused_again_is_a_scope_again() {
    let scene = refused().await;
    let first = [letter(&scene.leader, "a").await.id, letter(&scene.leader, "c").await.id];
    let scene =
        retried_offline(scene, "INSERT INTO items (id, name, place) VALUES ('m', 'leader', 4)", 4).await;
    assert_agreed(&scene, "a first 1,l leader 2,m leader 4").await;
    for id in first {
        assert!(matches!(state(&scene, id).await, DeadLetterState::Retried(_)));
    }
    let (moved, beside) = (letter(&scene.leader, "a").await, letter(&scene.leader, "c").await);
    assert_eq!((&moved.together, &beside.together), (&vec![beside.id], &vec![moved.id]));
    assert_eq!(moved.values.get("place"), Some(&Value::Integer(4)));
    scene.leader.library.retry_with(moved.id, at_place(5)).await.unwrap();
    assert_agreed(&scene, "a moved 5,c beside,l leader 2,m leader 4").await;
    assert_eq!(scene.leader.library.dead_letters().await.unwrap(), []);
}

#[tokio::test]
async fn of_two_who_decide_about_a_scope_the_first_decides_all_of_it() {
    for first_retries in [true, false] {
        let mut scene = refused().await;
        let (moved, beside) = (letter(&scene.leader, "a").await.id, letter(&scene.leader, "c").await.id);
        let closed = scene.follower.close().await;
        if first_retries {
            scene.leader.library.retry_with(moved, at_place(7)).await.unwrap();
        } else {
            scene.leader.library.discard(beside).await.unwrap();
        }
        scene.leader.library.barrier().await.unwrap();
        scene.follower = closed.reopen(REGISTER).await.unwrap();
        scene.follower.library.retry_with(moved, at_place(3)).await.unwrap();
        scene.follower.start(&scene.network).await;
        assert_agreed(&scene, if first_retries { "a moved 7,c beside,l leader 2" } else { WITHOUT_IT }).await;
        assert_eq!(scene.leader.library.dead_letters().await.unwrap(), [], "the second says nothing new");
        for id in [moved, beside] {
            assert_eq!(matches!(state(&scene, id).await, DeadLetterState::Retried(_)), first_retries);
        }
    }
}

#[tokio::test]
async fn a_retry_that_comes_too_late_for_one_is_too_late_for_all_of_its_scope() {
    let mut scene = refused().await;
    let (moved, beside) = (letter(&scene.leader, "a").await.id, letter(&scene.leader, "c").await.id);
    let closed = scene.follower.close().await;
    // No library does this, which decides about all; a log may have it all the same.
    let unmark = "UPDATE sync_entry SET mark = NULL WHERE record = 'c'";
    let mark = "SELECT mark FROM sync_entry WHERE record = 'c'";
    let was = text(&scene.leader.file(), mark);
    scene.leader.sql(unmark).await;
    scene.leader.library.discard(beside).await.unwrap();
    scene
        .leader
        .sql(&format!("UPDATE sync_entry SET mark = '{was}' WHERE record = 'c' AND decides IS NULL"))
        .await;
    scene.leader.library.barrier().await.unwrap();
    scene.follower = closed.reopen(REGISTER).await.unwrap();
    scene.follower.library.retry_with(moved, at_place(3)).await.unwrap();
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene, WITHOUT_IT).await;
    assert!(matches!(state(&scene, beside).await, DeadLetterState::Discarded(_)));
    let again = letter(&scene.leader, "a").await;
    assert_ne!(again.id, moved);
    assert_says(&again.reason, &["tried again with was decided about before"]);
    assert_eq!(again.values.get("place"), Some(&Value::Integer(3)), "nothing saved is lost");
    scene.follower.library.retry(again.id).await.unwrap();
    assert_agreed(&scene, "a moved 3,l leader 2").await;
}

#[tokio::test]
async fn what_a_scope_exchanged_is_exchanged_when_it_is_tried_again() {
    for follower_decides in [true, false] {
        let scene = apart(
            "INSERT INTO items (id, name, place) VALUES ('a', 'first', 1), ('b', 'second', 2)",
            "INSERT INTO items (id, name, place) VALUES ('l', 'leader', 9)",
            &[
                "UPDATE items SET place = NULL, parent_id = 'b' WHERE id = 'a'",
                "UPDATE items SET place = 1 WHERE id = 'b'",
                "UPDATE items SET place = 2 WHERE id = 'a'",
                "INSERT INTO items (id, name, place) VALUES ('c', 'beside', 9)",
            ],
        )
        .await;
        assert_agreed(&scene, "a first 1,b second 2,l leader 9").await;
        let decider = if follower_decides { &scene.follower } else { &scene.leader };
        decider.sql("UPDATE items SET seen_here = 7").await;
        let error = decider.library.retry(letter(decider, "a").await.id).await.unwrap_err().to_string();
        assert_says(&error, &["of item c, which stands or falls with it", "UNIQUE", "nothing was changed"]);
        decider.library.retry_with(letter(decider, "c").await.id, at_place(8)).await.unwrap();
        assert_agreed(&scene, "a first 2,b second 1,c beside 8,l leader 9").await;
        assert_eq!(number(&decider.file(), "SELECT min(seen_here) FROM items WHERE id IN ('a', 'b')"), 7);
    }
}

/// A scope that deletes an item with what is in it, and takes a place that the leader has given away.
async fn deletes_and_clashes() -> Scene {
    apart(
        "INSERT INTO items (id, parent_id, name, place) VALUES ('a', NULL, 'first', 1), ('p', NULL, 'parent', NULL),
            ('q', 'p', 'child', NULL)",
        "INSERT INTO items (id, name, place) VALUES ('l', 'leader', 2)",
        &["DELETE FROM items WHERE id = 'p'", "UPDATE items SET place = 2, name = 'moved' WHERE id = 'a'"],
    )
    .await
}

#[tokio::test]
async fn what_went_along_with_a_deletion_goes_along_once_more() {
    let scene = deletes_and_clashes().await;
    let waiting = scene.leader.library.dead_letters().await.unwrap().len();
    assert_eq!(waiting, 3, "the child's deletion is of the scope too");
    let scene =
        retried_meanwhile(scene, "INSERT INTO items (id, name, place) VALUES ('m', 'leader', 4)", 4).await;
    assert_agreed(&scene, "a first 1,l leader 2,m leader 4,p parent,q child").await;
    let letters = scene.leader.library.dead_letters().await.unwrap();
    assert_eq!(letters.len(), waiting, "no more than before: {letters:?}");
    scene.follower.library.retry_with(letter(&scene.follower, "a").await.id, at_place(5)).await.unwrap();
    assert_agreed(&scene, "a moved 5,l leader 2,m leader 4").await;
    assert_eq!(scene.leader.library.dead_letters().await.unwrap(), []);
}

#[tokio::test]
async fn what_had_nothing_to_do_when_it_was_tried_is_done_the_next_time() {
    let scene = deletes_and_clashes().await;
    scene.leader.sql("DELETE FROM items WHERE id IN ('p', 'q')").await;
    scene.level().await;
    let again = "INSERT INTO items (id, name, place) VALUES ('m', 'leader', 4), ('p', 'parent', NULL)";
    let scene = retried_meanwhile(scene, again, 4).await;
    assert_agreed(&scene, "a first 1,l leader 2,m leader 4,p parent").await;
    scene.leader.library.retry_with(letter(&scene.leader, "a").await.id, at_place(5)).await.unwrap();
    assert_agreed(&scene, "a moved 5,l leader 2,m leader 4").await;
}

#[tokio::test]
async fn a_leader_that_may_not_write_one_of_a_scope_tries_none_of_it() {
    let mut scene = apart(
        "INSERT INTO claims VALUES ('k', NULL, 'name')",
        "INSERT INTO items (id, name, place) VALUES ('l', 'leader', 2)",
        &["SELECT 1"],
    )
    .await;
    let owner = scene.follower.library.status().borrow().device.unwrap();
    scene.follower.sql(&format!("UPDATE claims SET owner = '{owner}'")).await;
    scene.follower.level().await;
    scene.level().await;
    let closed = scene.follower.close().await;
    scene.leader.sql("INSERT INTO items (id, name, place) VALUES ('m', 'leader', 3)").await;
    let db = closed.connect().await;
    let statements =
        ["INSERT INTO items (id, name, place) VALUES ('a', 'mine', 3)", "UPDATE claims SET name = 'changed'"];
    atomically(&db, &statements).await;
    db.close().await.unwrap();
    scene.follower = closed.back(&scene.network, REGISTER).await;
    let (item, claim) = (letter(&scene.leader, "a").await, letter(&scene.leader, "k").await);
    let error = scene.leader.library.retry_with(item.id, at_place(4)).await.unwrap_err().to_string();
    assert_says(
        &error,
        &[&format!("dead letter {} of claim k", claim.id), "belongs to device", "nothing was changed"],
    );
    assert_agreed(&scene, "l leader 2,m leader 3").await;
    scene.follower.library.retry_with(item.id, at_place(4)).await.unwrap();
    assert_agreed(&scene, "a mine 4,l leader 2,m leader 3").await;
    assert_eq!(text(&scene.leader.file(), "SELECT name FROM claims"), "changed");
}

#[tokio::test]
async fn a_scope_falls_with_what_belongs_to_another_device() {
    let mut scene =
        apart("SELECT 1", "INSERT INTO items (id, name) VALUES ('l', 'leader')", &["SELECT 1"]).await;
    let owner = scene.leader.library.status().borrow().device.unwrap();
    scene.leader.sql(&format!("INSERT INTO claims VALUES ('k', '{owner}', 'name')")).await;
    scene.level().await;
    let closed = scene.follower.close().await;
    let db = closed.connect().await;
    let statements =
        ["INSERT INTO items (id, name) VALUES ('c', 'beside')", "UPDATE claims SET name = 'changed'"];
    atomically(&db, &statements).await;
    db.close().await.unwrap();
    scene.follower = closed.back(&scene.network, REGISTER).await;
    assert_agreed(&scene, "l leader").await;
    let (beside, claim) = (letter(&scene.follower, "c").await, letter(&scene.follower, "k").await);
    assert_eq!(beside.together, [claim.id]);
    assert_says(&beside.reason, &["stands or falls with was refused", "belongs to device"]);
    // Who owns the one may have both.
    scene.leader.library.retry(beside.id).await.unwrap();
    assert_agreed(&scene, "c beside,l leader").await;
    assert_eq!(text(&scene.follower.file(), "SELECT name FROM claims"), "changed");
}

#[tokio::test]
async fn a_scope_that_is_larger_than_a_batch_is_tried_again_whole() {
    const ROWS: i64 = 8_500;
    let many = format!(
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO items (id, name) SELECT 'n' || i, 'many' FROM n"
    );
    let mut scene = apart(
        "INSERT INTO items (id, name, place) VALUES ('a', 'first', 1)",
        "INSERT INTO items (id, name, place) VALUES ('l', 'leader', 2)",
        &["UPDATE items SET place = 2, name = 'moved' WHERE id = 'a'", &many],
    )
    .await;
    let count = |device: &Device| {
        number(&device.file(), "SELECT count(*) FROM items WHERE name IN ('many', 'moved')")
    };
    let waiting = |device: &Device| {
        number(&device.file(), "SELECT count(*) FROM sync_dead_letter WHERE decided IS NULL")
    };
    assert_eq!((count(&scene.leader), waiting(&scene.leader)), (0, ROWS + 1));
    let moved = letter(&scene.follower, "a").await;
    assert_eq!(moved.together.len(), PAGE_MAX, "no more than a page of them are named");
    let closed = scene.follower.close().await;
    scene.leader.sql("INSERT INTO items (id, name, place) VALUES ('m', 'leader', 4)").await;
    scene.leader.library.barrier().await.unwrap();
    scene.follower = closed.reopen(REGISTER).await.unwrap();
    scene.follower.library.retry_with(moved.id, at_place(4)).await.unwrap();
    assert_eq!(count(&scene.follower), ROWS + 1);
    scene.follower.start(&scene.network).await;
    scene.follower.level().await;
    scene.level().await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!((count(device), waiting(device)), (0, ROWS + 1), "all refused once more");
    }
    let moved = letter(&scene.leader, "a").await;
    scene.leader.library.retry_with(moved.id, at_place(5)).await.unwrap();
    scene.level().await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!((count(device), waiting(device)), (ROWS + 1, 0));
    }
}

/// The replica of a follower that is not open, whose steps are called one by one.
fn replica(path: &Path) -> Replica {
    let models =
        vec![ModelDescriptor::of::<item::Model>().unwrap(), ModelDescriptor::of::<claim::Model>().unwrap()];
    let identity = Identity {
        device: DeviceId([2; 32]),
        peers: Vec::new(),
        precedence: BTreeMap::new(),
        models,
        world: Arc::new(Machine),
    };
    Replica::open(path, identity).unwrap()
}

#[tokio::test]
async fn a_process_that_ends_within_a_decision_has_decided_all_of_a_scope_or_nothing() {
    for retries in [true, false] {
        let mut left = Vec::new();
        for point in 0..2 {
            let mut scene = refused().await;
            let moved = letter(&scene.follower, "a").await.id;
            let closed = scene.follower.close().await;
            let mut replica = replica(closed.path());
            crash_after(Some(point));
            let ended = catch_unwind(AssertUnwindSafe(|| match retries {
                true => replica.retry(moved, &at_place(3)),
                false => replica.discard(moved),
            }));
            crash_after(None);
            assert!(ended.is_err(), "it was cut off");
            drop(replica);
            let decided =
                number(&closed.file(), "SELECT count(*) FROM sync_pending WHERE decides IS NOT NULL");
            left.push(decided);
            scene.follower = closed.back(&scene.network, REGISTER).await;
            let all = decided == 2;
            let shown = if retries && all { "a moved 3,c beside,l leader 2" } else { WITHOUT_IT };
            assert_agreed(&scene, shown).await;
            assert_eq!(scene.leader.library.dead_letters().await.unwrap().len(), if all { 0 } else { 2 });
        }
        assert_eq!(left, [0, 2], "before its commit, and after it");
    }
}

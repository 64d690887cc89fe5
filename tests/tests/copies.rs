//! A database is restored from a backup, or copied: that is noticed, and harms nobody.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use tidelog::LibraryBuilder;
use tidelog_tests::{
    devices::tamper,
    scene::{Closed, Device, Scene, number, text},
    small::{TABLES, item, person, team},
};

fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<item::Entity>().model::<team::Entity>().model::<person::Entity>()
}

async fn scene() -> Scene {
    let scene = Scene::set(&TABLES.join("; "), register).await;
    scene.leader.sql("INSERT INTO items (id, name) VALUES ('a', 'first')").await;
    scene.level().await;
    scene
}

/// Copies a database that nobody has open.
fn copy(closed: &Closed, name: &str) -> PathBuf {
    let to = closed.path().with_file_name(name);
    tamper(closed.path(), "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(closed.path(), &to).unwrap();
    to
}

/// Writes and seals without a leader in reach: what is written is pending.
async fn write_offline(closed: &Closed, sql: &str) {
    let device = closed.reopen(register).await.unwrap();
    device.sql(sql).await;
    // Asking what is pending seals first.
    assert_eq!(device.library.settled("item", "nobody").await.unwrap(), []);
    drop(device.close().await);
}

fn names(device: &Device) -> String {
    let sql = "SELECT group_concat(id || ' ' || name) FROM (SELECT * FROM items ORDER BY id)";
    text(&device.file(), sql)
}

async fn assert_agreed(scene: &Scene) {
    for device in [&scene.follower, &scene.leader, &scene.follower] {
        device.library.barrier().await.unwrap();
    }
    for (table, columns) in
        [("items", "id, parent_id, name, place"), ("sync_log", "*"), ("sync_dead_letter", "*")]
    {
        assert_eq!(scene.leader.dump(table, columns), scene.follower.dump(table, columns), "table `{table}`");
    }
    assert_eq!(number(&scene.follower.file(), "SELECT count(*) FROM sync_pending"), 0);
}

fn restore(closed: &Closed, from: &Path) {
    for end in ["-wal", "-shm"] {
        let mut name = closed.path().as_os_str().to_owned();
        name.push(end);
        let _ = std::fs::remove_file(name);
    }
    std::fs::copy(from, closed.path()).unwrap();
}

#[tokio::test]
async fn a_restored_backup_pulls_what_it_forgot_and_says_so() {
    let mut scene = scene().await;
    scene.follower.sql("INSERT INTO items (id, name) VALUES ('b', 'before')").await;
    scene.follower.library.barrier().await.unwrap();
    let closed = scene.follower.close().await;
    let backup = copy(&closed, "backup");
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.start(&scene.network).await;
    scene.follower.sql("INSERT INTO items (id, name) VALUES ('c', 'after')").await;
    scene.follower.library.barrier().await.unwrap();
    assert_eq!(scene.follower.library.status().borrow().rolled_back, None);
    let closed = scene.follower.close().await;
    restore(&closed, &backup);
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.sql("INSERT INTO items (id, name) VALUES ('d', 'restored')").await;
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene).await;
    assert_eq!(names(&scene.follower), "a first,b before,c after,d restored");
    scene.follower.until("the restored database is noticed", |status| status.rolled_back.is_some()).await;
}

#[tokio::test]
async fn what_was_pending_in_a_backup_takes_effect_once() {
    let mut scene = scene().await;
    let closed = scene.follower.close().await;
    write_offline(&closed, "INSERT INTO items (id, name) VALUES ('b', 'pending')").await;
    let backup = copy(&closed, "backup");
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.start(&scene.network).await;
    scene.follower.library.barrier().await.unwrap();
    scene.leader.sql("UPDATE items SET name = 'changed since' WHERE id = 'b'").await;
    scene.level().await;
    let entries = scene.leader.log();
    let closed = scene.follower.close().await;
    restore(&closed, &backup);
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene).await;
    assert_eq!(scene.leader.log(), entries, "nothing was sent into the log twice");
    assert_eq!(names(&scene.follower), "a first,b changed since");
}

#[tokio::test]
async fn a_copy_under_another_key_brings_what_was_pending_and_the_original_too() {
    let mut scene = scene().await;
    let closed = scene.follower.close().await;
    write_offline(&closed, "INSERT INTO items (id, name) VALUES ('b', 'pending')").await;
    let file = copy(&closed, "copy");
    let twin = Closed::of(file, 3).reopen(register).await.unwrap();
    twin.start(&scene.network).await;
    twin.sql("INSERT INTO items (id, name) VALUES ('t', 'twin')").await;
    twin.library.barrier().await.unwrap();
    let copy_of = twin.library.status().borrow().copy_of;
    assert_eq!(copy_of, Some(tidelog::id::DeviceId([2; 32])), "it says whose database it has");
    let entries = scene.leader.log().len();
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene).await;
    assert_eq!(scene.follower.library.status().borrow().copy_of, None, "the original is none");
    assert_eq!(scene.leader.log().len(), entries);
    assert_eq!(names(&scene.follower), "a first,b pending,t twin");
}

/// Two copies of one database in which the same number came to name two changes, as when a file is restored under a
/// process that has it open: the second of them, closed.
async fn forked(scene: &mut Scene) -> PathBuf {
    let other = scene.join(9, &TABLES.join("; "), register).await;
    let closed = std::mem::replace(&mut scene.follower, other).close().await;
    write_offline(&closed, "INSERT INTO items (id, name) VALUES ('b', 'one'), ('c', 'one')").await;
    let file = copy(&closed, "twin");
    tamper(
        &file,
        "UPDATE sync_pending SET tag = tag + 1, data = replace(replace(replace(data, 'one', 'two'), '\"b\"', '\"x\"'), '\"c\"', '\"y\"'),
            record = replace(replace(record, 'b', 'x'), 'c', 'y');
         UPDATE sync_ctl SET mode = 1;
         UPDATE items SET id = 'x', name = 'two' WHERE id = 'b'; UPDATE items SET id = 'y', name = 'two' WHERE id = 'c';
         UPDATE sync_ctl SET mode = 0",
    );
    let first = closed.reopen(register).await.unwrap();
    first.start(&scene.network).await;
    first.library.barrier().await.unwrap();
    drop(first.close().await);
    file
}

#[tokio::test]
async fn who_minted_an_origin_gives_what_is_pending_other_numbers_where_the_log_has_others() {
    let mut scene = scene().await;
    let file = forked(&mut scene).await;
    let twin = Closed::of(file, 2).reopen(register).await.unwrap();
    twin.sql("UPDATE items SET name = 'three' WHERE id = 'x'").await;
    twin.start(&scene.network).await;
    let settled = twin.library.settled("item", "x").await.unwrap();
    let of: Vec<_> = settled.iter().map(|s| (s.record.as_str(), &s.outcome)).collect();
    assert_eq!(of, [("x", &tidelog::Outcome::Applied); 2], "each is told by whatever name it goes");
    twin.library.barrier().await.unwrap();
    assert_agreed(&scene).await;
    assert_eq!(names(&scene.follower), "a first,b one,c one,x three,y two");
    assert_eq!(scene.leader.library.dead_letters().await.unwrap(), []);
    assert!(twin.library.status().borrow().rolled_back.is_some());
}

#[tokio::test]
async fn what_another_carries_goes_by_another_name_too_where_the_log_has_others_under_its_numbers() {
    let mut scene = scene().await;
    let file = forked(&mut scene).await;
    let carried = copy(&Closed::of(file.clone(), 2), "carried");
    let carrier = Closed::of(file, 3).reopen(register).await.unwrap();
    carrier.start(&scene.network).await;
    carrier.library.barrier().await.unwrap();
    assert_eq!(number(&carrier.file(), "SELECT count(*) FROM sync_pending"), 0);
    assert_agreed(&scene).await;
    assert_eq!(names(&scene.follower), "a first,b one,c one,x two,y two");
    assert_eq!(scene.leader.library.dead_letters().await.unwrap(), []);
    // It is the same name whoever brings them.
    let entries = scene.leader.log();
    drop(carrier.close().await);
    let author = Closed::of(carried, 2).reopen(register).await.unwrap();
    author.start(&scene.network).await;
    author.library.barrier().await.unwrap();
    assert_eq!(number(&author.file(), "SELECT count(*) FROM sync_pending"), 0);
    assert_agreed(&scene).await;
    assert_eq!(scene.leader.log(), entries, "nothing was sent into the log twice");
    assert_eq!(names(&author), names(&scene.follower));
}

//! What stood in a log that was not to be: resolved, refused, cascaded, decided. It is taken back, pushed and resolved anew, by
//! all who had followed that log, and comes to the same on every device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tidelog::{Link, Role, TakeOver, id::Position, transport::MemoryNetwork};
use tidelog_tests::devices::{Device, Site, device, level, lines, number, reader, soon};

async fn reopen(site: &Site, name: &str, network: &MemoryNetwork, number: u8) -> Device {
    Device::open(&site.path(name), |library| library.existing()).await.unwrap().plug(network, number).await
}

async fn follows(device: &Device) {
    device.shows("it follows", |s| s.role == Role::Follower && s.link == Link::Online).await;
    soon("a barrier", device.library.barrier()).await.unwrap();
}

/// What is known of conflicts and refusals.
fn parked(device: &Device) -> Vec<String> {
    let conn = reader(&device.path);
    let mut all = lines(&conn, "SELECT * FROM sync_conflict ORDER BY seq, field");
    all.extend(lines(&conn, "SELECT * FROM sync_dead_letter ORDER BY seq"));
    all.extend(lines(
        &conn,
        "SELECT device, role, member FROM sync_device WHERE member IS NOT NULL ORDER BY device",
    ));
    all
}

const PENDING: &str = "SELECT count(*) FROM sync_pending";

#[tokio::test]
async fn what_two_devices_had_in_a_log_that_was_not_to_be_comes_to_the_same_on_all() {
    let site = Site::new();
    let [leader, second, third] = [site.leader().await, site.follower(2).await, site.follower(3).await];
    leader
        .write(&[
            "INSERT INTO items (id, name, place) VALUES ('p', 'parent', 1), ('q', 'other', 2), ('r', 'third', 3)",
            "INSERT INTO items (id, parent_id, name) VALUES ('c', 'p', 'child')",
            "UPDATE items SET seen_here = 5",
        ])
        .await;
    level(&leader, &[&second, &third]).await;
    for device in [leader, second, third] {
        device.stop().await;
    }

    // A world of the leader and the second device, which meet each other in it.
    let world = MemoryNetwork::new();
    let second = reopen(&site, "follower-2", &MemoryNetwork::new(), 2).await;
    second
        .write(&[
            "UPDATE sync_ctl SET clock = 1000",
            "UPDATE items SET name = 'the second''s' WHERE id = 'r'",
            "INSERT INTO items (id, name, place) VALUES ('taken', 'there', 9)",
            "INSERT INTO items (id, name) VALUES ('s', 'of the second')",
        ])
        .await;
    second.write(&["UPDATE sync_ctl SET clock = NULL", "DELETE FROM items WHERE id = 'p'"]).await;
    second.stop().await;
    let leader = reopen(&site, "leader", &world, 1).await;
    leader
        .write(&[
            "UPDATE items SET name = 'the leader''s' WHERE id = 'r'",
            "INSERT INTO items (id, name, place) VALUES ('first there', 'here', 9)",
            "INSERT INTO items (id, parent_id, name) VALUES ('unseen', 'p', 'a child nobody had seen')",
        ])
        .await;
    let second = reopen(&site, "follower-2", &world, 2).await;
    follows(&second).await;
    level(&leader, &[&second]).await;
    let letters = second.library.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1, "the place was taken");
    leader.write(&["UPDATE items SET place = NULL WHERE id = 'first there'"]).await;
    level(&leader, &[&second]).await;
    second.library.retry(letters[0].id).await.unwrap();
    follows(&second).await;
    let ninth = reopen_new(&site, &world).await;
    ninth.write(&["INSERT INTO items (id, name) VALUES ('n', 'of the ninth')"]).await;
    follows(&ninth).await;
    level(&leader, &[&second, &ninth]).await;
    let (rows, told) = (leader.dump().rows, parked(&leader));
    assert_eq!(told.len(), 6, "there is something to take back: {told:?}");
    for device in [leader, second, ninth] {
        device.stop().await;
    }

    // In the other world the third takes over.
    let third = reopen(&site, "follower-3", &site.network, 3).await;
    soon("a takeover", third.library.take_over(TakeOver::default())).await.unwrap();
    third
        .write(&[
            "UPDATE items SET name = 'the third''s' WHERE id = 'q'",
            "INSERT INTO items (id, name, place) VALUES ('t', 'of the third', 9)",
        ])
        .await;
    third.sealed().await;

    // One after the other comes over, each with what the others have too.
    let mut back = Vec::new();
    for (name, number) in [("follower-2", 2), ("follower-9", 9), ("leader", 1)] {
        let device = reopen(&site, name, &site.network, number).await;
        follows(&device).await;
        back.push(device);
    }
    let all: Vec<&Device> = back.iter().collect();
    level(&third, &all).await;
    for device in &back {
        assert_eq!(number(&device.path, PENDING), 0);
        assert_eq!(parked(device), parked(&third));
        let twice = "SELECT count(*) FROM (SELECT o.origin, e.n FROM sync_entry e
            JOIN sync_group g ON g.first = (SELECT max(first) FROM sync_group WHERE first <= e.seq)
            JOIN sync_origin o ON o.id = g.origin WHERE e.n IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1)";
        assert_eq!(number(&device.path, twice), 0, "everything took effect once");
        // What is local of a row that stayed is as it was.
        let local = i64::from(device.path.ends_with("leader.sqlite")) * 5;
        assert_eq!(number(&device.path, "SELECT seen_here FROM items WHERE id = 'q'"), local);
    }
    let names = lines(&reader(&third.path), "SELECT id || ' ' || name FROM items ORDER BY id");
    // All that had stood there stands, or is told of: the place went to who asked first in this log.
    for row in ["n of the ninth", "q the third's", "r the leader's", "s of the second", "t of the third"] {
        assert!(names.iter().any(|name| name == row), "{row}: {names:?}, and before {rows:?}");
    }
    assert!(!names.iter().any(|name| name.starts_with("p ")), "deleted stays deleted: {names:?}");
    let letters = third.library.dead_letters().await.unwrap();
    let kept: Vec<_> = letters.iter().map(|letter| letter.values.to_json()).collect();
    for id in ["taken", "first there"] {
        let is_there = names.iter().any(|name| name.starts_with(&format!("{id} ")));
        assert!(is_there || kept.iter().any(|values| values.contains(id)), "{id}: {names:?} {kept:?}");
    }
}

async fn reopen_new(site: &Site, network: &MemoryNetwork) -> Device {
    let id = site.id;
    let path = site.path("follower-9");
    Device::open(&path, |library| library.join(id)).await.unwrap().plug(network, 9).await
}

#[tokio::test]
async fn what_became_of_a_change_is_told_again_where_it_was_taken_back_and_only_there() {
    let site = Site::new();
    let (leader, second) = (site.leader().await, site.follower(2).await);
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', 'kept')"]).await;
    level(&leader, &[&second]).await;
    leader.stop().await;
    let alone = reopen(&site, "leader", &MemoryNetwork::new(), 1).await;
    for i in 0..30 {
        alone.write(&[&format!("INSERT INTO items (id, name) VALUES ('l{i}', 'taken back')")]).await;
        alone.sealed().await;
    }
    let mut settlements = alone.library.settlements(Position::EMPTY);
    let mut dealt_with = Vec::new();
    let mut position = Position::EMPTY;
    for _ in 0..21 {
        let next = soon("a settlement", settlements.next()).await.unwrap();
        (position, _) = (next.position, dealt_with.push(next.record));
    }
    alone.stop().await;
    soon("a takeover", second.library.take_over(TakeOver::default())).await.unwrap();
    second.write(&["INSERT INTO items (id, name) VALUES ('b', '')"]).await;
    second.sealed().await;
    let back = reopen(&site, "leader", &site.network, 1).await;
    follows(&back).await;
    let mut settlements = back.library.settlements(position);
    let mut again = Vec::new();
    for _ in 0..30 {
        again.push(soon("a settlement", settlements.next()).await.unwrap().record);
    }
    let all: Vec<String> = (0..30).map(|i| format!("l{i}")).collect();
    assert_eq!(again, all, "but not the one that was never taken back");
    assert_eq!(device(1), back.status().device.unwrap());
}

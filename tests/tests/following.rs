//! Followers hold the leader's tables and its log, whatever stops and starts between.
//!
//! - who joins when, and what is told meanwhile (status, events, barrier)
//! - stopping either side at any point: in good order, and dropped in the middle of it
//! - what is hard to apply: references in any order, keys and unique values that move, cascades, local columns

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use tidelog::{
    AppliedChange, CHANGES_QUEUE, ChangeKind, Error, Link, Role,
    id::{LibraryId, Term},
};
use tidelog_tests::devices::{
    Device, Dump, Site, assert_says, device, eventually, level, number, reader, soon,
};

/// One statement that inserts items `from..to`, named after their number.
fn insert(from: usize, to: usize) -> String {
    let rows: Vec<_> = (from..to).map(|i| format!("('i{i:06}', 'item {i}')")).collect();
    format!("INSERT INTO items (id, name) VALUES {}", rows.join(", "))
}

fn count(device: &Device) -> i64 {
    number(&device.path, "SELECT count(*) FROM items")
}

#[tokio::test]
async fn two_followers_one_of_them_late_hold_the_tables_and_the_log_of_the_leader() {
    let site = Site::new();
    let leader = site.leader().await;
    let early = site.follower(2).await;
    leader.write(&["INSERT INTO items (id, name, payload) VALUES ('a', 'first', x'00ff')"]).await;
    leader.write(&["UPDATE items SET name = 'renamed' WHERE id = 'a'", &insert(0, 50)]).await;
    level(&leader, &[&early]).await;
    leader.write(&["DELETE FROM items WHERE id < 'i000010'"]).await;

    let late = site.follower(3).await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('z', 'last')"]).await;
    let log = level(&leader, &[&early, &late]).await;
    assert_eq!(log.rows.len(), 41);
    assert!(log.rows[0].contains("i000010") && log.rows[40].contains("'z'"), "{:?}", log.rows);
    assert_eq!(log.terms.len(), 1, "one leader that never restarted");
}

#[tokio::test]
async fn a_library_can_be_written_before_anybody_is_started() {
    let site = Site::new();
    let leader = site.open_leader().await;
    let follower = site.follower(2).await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', 'before the start')"]).await;
    let leader = leader.plug(&site.network, 1).await;
    assert_eq!(level(&leader, &[&follower]).await.rows.len(), 1);
}

#[tokio::test]
async fn the_status_says_who_leads_how_far_everybody_is_and_what_the_link_does() {
    let site = Site::new();
    let leader = site.open_leader().await;
    assert_eq!(leader.status().link, Link::Idle);
    let leader = leader.plug(&site.network, 1).await;
    let follower = site.follower(2).await;
    leader.write(&[&insert(0, 10)]).await;
    level(&leader, &[&follower]).await;

    let status = leader.status();
    assert_eq!((status.role, &status.link, status.behind), (Role::Leader, &Link::Leading, Some(0)));
    assert_eq!((status.device, status.leader), (Some(device(1)), Some(device(1))));
    let top = leader.library.position().await.unwrap();
    assert_eq!((status.position, status.term), (top, top.term));
    leader
        .shows("the follower's confirmation", |s| {
            s.followers.iter().any(|f| f.device == device(2) && f.confirmed == top)
        })
        .await;

    let status = follower.shows("online and level", |s| s.link == Link::Online && s.behind == Some(0)).await;
    assert_eq!((status.role, status.position, status.term), (Role::Follower, top, top.term));
    assert_eq!((status.device, status.leader), (Some(device(2)), Some(device(1))));
    assert_eq!((status.last_error, status.next_retry), (None, None));
    assert!(status.last_success.is_some());

    leader.stop().await;
    let status = follower.shows("offline", |s| s.link == Link::Offline).await;
    assert!(status.next_retry.is_some() && status.last_error.is_some(), "{status:?}");
    assert_eq!(status.position, top, "what is here stays here");
}

#[tokio::test]
async fn applied_changes_are_told_with_model_record_and_kind_and_a_slow_listener_learns_that_it_is() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    let mut changes = follower.library.changes();
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', 'x')"]).await;
    level(&leader, &[&follower]).await;
    leader.write(&["UPDATE items SET name = 'y'"]).await;
    level(&leader, &[&follower]).await;
    leader.write(&["DELETE FROM items", "INSERT INTO teams (id, name) VALUES ('t', 'one')"]).await;
    level(&leader, &[&follower]).await;
    for (model, record, kind) in [
        ("item", "a", ChangeKind::Upsert),
        ("item", "a", ChangeKind::Upsert),
        ("item", "a", ChangeKind::Delete),
        ("team", "t", ChangeKind::Upsert),
    ] {
        let told = soon("an event", changes.recv()).await.unwrap();
        assert_eq!(told, AppliedChange { model: model.into(), record: record.into(), kind });
    }

    // On the leader the same is told of what followers push; of what is written there nothing is, on either side.
    let mut told_there = leader.library.changes();
    leader.write(&["INSERT INTO teams (id, name) VALUES ('u', 'two')"]).await;
    follower
        .write(&["INSERT INTO items (id, name) VALUES ('b', 'x')", "DELETE FROM teams WHERE id = 't'"])
        .await;
    soon("the follower's barrier", follower.library.barrier()).await.unwrap();
    let own = soon("an event", changes.recv()).await.unwrap();
    assert_eq!(own.record, "u");
    for (model, record, kind) in [("item", "b", ChangeKind::Upsert), ("team", "t", ChangeKind::Delete)] {
        let told = soon("an event", told_there.recv()).await.unwrap();
        assert_eq!(told, AppliedChange { model: model.into(), record: record.into(), kind });
    }
    assert!(told_there.is_empty(), "{told_there:?}");
    while changes.try_recv().is_ok() {}

    leader.write(&[&insert(0, CHANGES_QUEUE + 7)]).await;
    level(&leader, &[&follower]).await;
    let lagged = soon("an event", changes.recv()).await;
    assert!(matches!(lagged, Err(tokio::sync::broadcast::error::RecvError::Lagged(7))), "{lagged:?}");
    assert!(soon("the events that are kept", changes.recv()).await.is_ok());
}

#[tokio::test]
async fn a_barrier_waits_for_what_the_leader_has_now_and_fails_when_it_would_wait_for_ever() {
    let site = Site::new();
    let follower = site.follower(2).await;
    let waiting = tokio::spawn({
        let library = follower.library.clone();
        async move { library.barrier().await }
    });
    follower.shows("nobody there", |s| s.link == Link::Offline).await;
    assert!(!waiting.is_finished(), "it waits while the leader cannot be reached");
    let leader = site.leader().await;
    leader.write(&[&insert(0, 3000)]).await;
    soon("the barrier that waited", waiting).await.unwrap().unwrap();
    leader.sealed().await;
    soon("a barrier", follower.library.barrier()).await.unwrap();
    assert_eq!(count(&follower), 3000, "what was committed there before the barrier is here after it");

    leader.stop().await;
    follower.shows("offline", |s| s.link == Link::Offline).await;
    let waiting = tokio::spawn({
        let library = follower.library.clone();
        async move { library.barrier().await }
    });
    follower.library.shutdown().await;
    let error = soon("the barrier of a library that is shut down", waiting).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert_says(&error.to_string(), &["stopped", "committed writes stay captured", "Open the library again"]);
}

#[tokio::test]
async fn a_follower_that_stops_anywhere_goes_on_where_it_was() {
    let site = Site::new();
    let leader = site.leader().await;
    for clean in [true, false] {
        let end =
            async |follower: Device| if clean { follower.stop().await } else { follower.give_up().await };
        let base = if clean { 0 } else { 100_000 };
        // Before it was started.
        end(site.open_follower(2).await).await;
        // In the middle of a backlog of several batches.
        for chunk in 0..10 {
            let from = base + chunk * 3000;
            leader.write(&[&insert(from, from + 3000)]).await;
        }
        leader.sealed().await;
        let follower = site.follower(2).await;
        let before = follower.status().position.seq;
        follower.shows("the first batch", |s| s.position.seq > before).await;
        end(follower).await;
        // Between two batches, and once more at once.
        let follower = site.follower(2).await;
        level(&leader, &[&follower]).await;
        end(follower).await;
        end(site.follower(2).await).await;
        // While it follows live.
        let follower = site.follower(2).await;
        leader.write(&[&insert(base + 50_000, base + 50_010)]).await;
        level(&leader, &[&follower]).await;
        leader.write(&[&insert(base + 50_010, base + 50_020)]).await;
        end(follower).await;
        leader.write(&["UPDATE items SET name = 'again' WHERE id LIKE '%5'"]).await;
        let follower = site.follower(2).await;
        level(&leader, &[&follower]).await;
        end(follower).await;
    }
}

#[tokio::test]
async fn a_leader_that_stops_anywhere_goes_on_in_a_higher_incarnation() {
    let site = Site::new();
    let follower = site.follower(2).await;
    let other = site.follower(3).await;
    let mut offline = Some(site.follower(4).await);
    let mut written = 0;
    let mut terms: Vec<Term> = Vec::new();
    for clean in [true, false, true, false] {
        // What is written while the library is open and not started is captured and goes out later.
        let leader = site.open_leader().await;
        leader.write(&[&insert(written, written + 5)]).await;
        written += 5;
        let leader = leader.plug(&site.network, 1).await;
        leader.write(&[&insert(written, written + 4000)]).await;
        written += 4000;
        if let Some(follower) = offline.take() {
            level(&leader, &[&follower]).await;
            follower.stop().await;
        }
        level(&leader, &[&follower, &other]).await;
        terms.push(leader.status().term);
        // Live, in the middle of something.
        leader.write(&[&insert(written, written + 2000)]).await;
        written += 2000;
        if clean { leader.stop().await } else { leader.give_up().await }
    }
    let leader = site.leader().await;
    let offline = site.follower(4).await;
    let log = level(&leader, &[&follower, &other, &offline]).await;
    assert_eq!(log.rows.len(), written);
    assert!(terms.is_sorted_by(|a, b| a < b), "each opening is a higher term: {terms:?}");
    assert!(terms.iter().all(|t| t.number == 1 && t.leader == device(1)), "of one leadership: {terms:?}");
    let counters: Vec<_> = terms.iter().map(|t| t.incarnation.counter).collect();
    assert_eq!(counters, [1, 2, 3, 4]);
    assert_eq!(log.terms.len(), 5, "{:?}", log.terms);
    let starts = "SELECT count(*) FROM sync_term t JOIN sync_entry e ON e.seq = t.first AND e.kind = 3";
    assert_eq!(number(&follower.path, starts), 5, "each run of the history begins with a TermStart");
    let seen: String =
        reader(&other.path).query_row("SELECT max_seen FROM sync_replica", [], |row| row.get(0)).unwrap();
    assert!(seen.starts_with(&format!("1/{}/5/", device(1))), "the follower has adopted it: {seen}");
}

#[tokio::test]
async fn what_the_leader_commits_while_its_library_is_closed_goes_out_when_it_is_opened() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader.write(&[&insert(0, 3)]).await;
    level(&leader, &[&follower]).await;
    leader.stop().await;
    tidelog_tests::devices::tamper(
        &site.path("leader"),
        "UPDATE items SET name = 'by hand' WHERE id = 'i000001'",
    );
    let leader = site.leader().await;
    let log = level(&leader, &[&follower]).await;
    assert!(log.rows[1].contains("by hand"), "{:?}", log.rows);
}

#[tokio::test]
async fn children_may_come_before_their_parents_and_two_tables_may_refer_to_each_other() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader
        .write(&[
            "INSERT INTO items (id, parent_id, name) VALUES ('grandchild', 'child', 'c')",
            "INSERT INTO items (id, parent_id, name) VALUES ('child', 'root', 'b')",
            "INSERT INTO items (id, parent_id, name) VALUES ('itself', 'itself', 'i')",
            "INSERT INTO items (id, name) VALUES ('root', 'a')",
            "INSERT INTO teams (id, name, lead_id) VALUES ('t', 'one', 'p')",
            "INSERT INTO people (id, name, team_id) VALUES ('p', 'first', 't'), ('q', 'second', 't')",
        ])
        .await;
    level(&leader, &[&follower]).await;
    assert_sound(&follower);
    // The tree turned upside down.
    leader
        .write(&[
            "UPDATE items SET parent_id = 'grandchild' WHERE id = 'root'",
            "UPDATE items SET parent_id = NULL WHERE id = 'grandchild'",
            "UPDATE items SET parent_id = 'root' WHERE id = 'child'",
        ])
        .await;
    level(&leader, &[&follower]).await;
    assert_sound(&follower);
}

#[tokio::test]
async fn what_the_leaders_database_cascades_happens_on_the_follower_too() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader
        .write(&[
            "INSERT INTO items (id, parent_id, name) VALUES ('a', NULL, ''), ('a1', 'a', ''), ('a11', 'a1', ''), ('b', NULL, '')",
            "INSERT INTO teams (id, name) VALUES ('t', 'one'), ('u', 'two')",
            "INSERT INTO people (id, name, team_id) VALUES ('p', 'first', 't'), ('q', 'second', 'u')",
            "UPDATE teams SET lead_id = 'q'",
        ])
        .await;
    level(&leader, &[&follower]).await;
    leader.write(&["DELETE FROM items WHERE id = 'a'", "DELETE FROM teams WHERE id = 'u'"]).await;
    let log = level(&leader, &[&follower]).await;
    assert_sound(&follower);
    assert_eq!(
        log.rows,
        ["items: 'b' | NULL | '' | NULL | NULL", "teams: 't' | 'one' | NULL", "people: 'p' | 'first' | 't'"]
    );
}

#[tokio::test]
async fn a_changed_key_takes_its_children_along() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader
        .write(&["INSERT INTO items (id, parent_id, name, place) VALUES ('a', NULL, 'A', 1), ('b', 'a', 'B', 2), ('c', 'b', 'C', 3)"])
        .await;
    level(&leader, &[&follower]).await;
    leader.write(&["UPDATE items SET id = 'z' WHERE id = 'a'"]).await;
    leader
        .write(&[
            "UPDATE items SET id = 'tmp' WHERE id = 'b'",
            "UPDATE items SET id = 'b' WHERE id = 'c'",
            "UPDATE items SET id = 'c' WHERE id = 'tmp'",
        ])
        .await;
    let log = level(&leader, &[&follower]).await;
    assert_sound(&follower);
    assert_eq!(
        log.rows,
        [
            "items: 'b' | 'c' | 'C' | 3 | NULL",
            "items: 'c' | 'z' | 'B' | 2 | NULL",
            "items: 'z' | NULL | 'A' | 1 | NULL"
        ]
    );
}

#[tokio::test]
async fn unique_values_may_change_places_and_local_columns_stay_what_they_are() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader
        .write(&[
            "INSERT INTO items (id, name, place) VALUES ('a', '', 1), ('b', '', 2), ('c', '', 3), ('d', '', 4)",
            "UPDATE items SET seen_here = 70",
        ])
        .await;
    level(&leader, &[&follower]).await;
    let local = |device: &Device| number(&device.path, "SELECT coalesce(sum(seen_here), 0) FROM items");
    assert_eq!(local(&follower), 0, "a local column does not travel");
    follower.write(&["UPDATE items SET seen_here = 5 WHERE id <> 'c'"]).await;

    // A ring of three, one that goes, and one that comes for its place.
    leader
        .write(&[
            "UPDATE items SET place = NULL WHERE id = 'a'",
            "UPDATE items SET place = 1 WHERE id = 'b'",
            "UPDATE items SET place = 2 WHERE id = 'c'",
            "UPDATE items SET place = 3 WHERE id = 'a'",
            "DELETE FROM items WHERE id = 'd'",
            "INSERT INTO items (id, name, place) VALUES ('0', '', 4)",
        ])
        .await;
    level(&leader, &[&follower]).await;
    assert_eq!(local(&leader), 210);
    assert_eq!(local(&follower), 10, "nor is it overwritten, even where its row had to step out");
    assert_eq!(follower.status().outbox, 0);
}

#[tokio::test]
async fn unique_values_that_move_across_the_parts_of_one_large_transaction_find_their_places() {
    let site = Site::new();
    let (leader, follower) = (site.leader().await, site.follower(2).await);
    leader.write(&["INSERT INTO items (id, name, place) VALUES ('018f0000-0000-7000-8000-00000000000a', '', 1), ('018f0000-0000-7000-8000-00000000000B', '', 2)"]).await;
    level(&leader, &[&follower]).await;
    follower.write(&["UPDATE items SET seen_here = 9"]).await;
    // Two rows change places and, so much later that it travels in another part, change back: what the first part says
    // of one is in the way of what the last says of the other.
    leader
        .write(&[
            "UPDATE items SET place = NULL WHERE id = '018f0000-0000-7000-8000-00000000000B'",
            "UPDATE items SET place = 2 WHERE id = '018f0000-0000-7000-8000-00000000000a'",
            "UPDATE items SET place = 1 WHERE id = '018f0000-0000-7000-8000-00000000000B'",
            &insert(0, 40_000),
            "UPDATE items SET place = NULL WHERE id = '018f0000-0000-7000-8000-00000000000B'",
            "UPDATE items SET place = 1 WHERE id = '018f0000-0000-7000-8000-00000000000a'",
            "UPDATE items SET place = 2 WHERE id = '018f0000-0000-7000-8000-00000000000B'",
        ])
        .await;
    level(&leader, &[&follower]).await;
    assert_eq!(number(&follower.path, "SELECT sum(seen_here) FROM items"), 18);
}

#[tokio::test]
async fn two_libraries_led_by_different_devices_run_in_one_process_over_one_transport_each() {
    let folder = tempfile::tempdir().unwrap();
    let network = tidelog::transport::MemoryNetwork::new();
    let (one, two) =
        (std::sync::Arc::new(network.plug(device(1))), std::sync::Arc::new(network.plug(device(2))));
    let (red, blue) = (LibraryId::random(), LibraryId::random());
    let open = async |name: &str, id, leads| {
        let path = folder.path().join(name);
        Device::open(&path, |library| if leads { library.create(id) } else { library.join(id) })
            .await
            .unwrap()
    };
    let (red_1, red_2) = (open("red-1", red, true).await, open("red-2", red, false).await);
    let (blue_1, blue_2) = (open("blue-1", blue, false).await, open("blue-2", blue, true).await);
    for device in [&red_1, &blue_1] {
        device.library.start(one.clone()).await.unwrap();
    }
    for device in [&red_2, &blue_2] {
        device.library.start(two.clone()).await.unwrap();
    }
    red_1.write(&[&insert(0, 100)]).await;
    blue_2.write(&[&insert(50, 90)]).await;
    assert_eq!(level(&red_1, &[&red_2]).await.rows.len(), 100);
    assert_eq!(level(&blue_2, &[&blue_1]).await.rows.len(), 40);
    assert_eq!((red_1.status().role, blue_1.status().role), (Role::Leader, Role::Follower));
    // One ends, the other goes on.
    red_2.stop().await;
    blue_2.write(&[&insert(0, 10)]).await;
    assert_eq!(level(&blue_2, &[&blue_1]).await.rows.len(), 50);
}

#[tokio::test]
async fn a_library_that_is_dropped_ends_and_can_be_opened_again() {
    let site = Site::new();
    let leader = site.leader().await;
    let clone = leader.library.clone();
    leader.write(&[&insert(0, 3)]).await;
    drop(leader.library);
    assert!(
        matches!(Device::open(&site.path("leader"), |l| l.existing()).await, Err(Error::Locked { .. })),
        "a clone keeps it open"
    );
    drop(clone);
    let leader = eventually("the dropped library lets go", async || {
        Device::open(&site.path("leader"), |l| l.existing()).await.ok()
    })
    .await;
    let leader = leader.plug(&site.network, 1).await;
    let follower = site.follower(2).await;
    assert_eq!(level(&leader, &[&follower]).await.rows.len(), 3);
}

/// No row refers to one that is not there, and SQLite finds nothing amiss.
#[track_caller]
fn assert_sound(device: &Device) {
    let conn = reader(&device.path);
    assert_eq!(tidelog_tests::devices::lines(&conn, "PRAGMA foreign_key_check"), Vec::<String>::new());
    assert_eq!(tidelog_tests::devices::lines(&conn, "PRAGMA integrity_check"), ["ok"]);
    let _: Dump = device.dump();
}

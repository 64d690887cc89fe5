//! Who and what is refused, in which words, and that nothing has changed then.
//!
//! Wherever something is refused, the text names the object, says why, whether anything was changed, and what to do.
//! Peers that do not keep to the protocol are in `astray.rs`.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{path::Path, process::Command};

use sha2::{Digest, Sha256};
use tidelog::{
    Error, Link, Role,
    id::LibraryId,
    transport::{SharedTransport, Transport},
};
use tidelog_tests::devices::{
    Device, Dump, Site, assert_says, builder, connect, device, level, lines, quic, reader, soon, tamper,
};
use tidelog_transport::Peer;

/// A hash over everything in a database that is not the library's own bookkeeping.
fn hash_of_tables(path: &Path) -> String {
    let conn = reader(path);
    let mut hash = Sha256::new();
    for table in ["items", "teams", "people"] {
        for line in lines(&conn, &format!("SELECT * FROM {table} ORDER BY rowid")) {
            hash.update(line.as_bytes());
            hash.update(b"\n");
        }
    }
    format!("{:x}", hash.finalize())
}

fn log_length(device: &Device) -> usize {
    device.dump().entries.len()
}

fn last_error_has(parts: &'static [&'static str]) -> impl FnMut(&tidelog::Status) -> bool {
    move |status| status.last_error.as_ref().is_some_and(|text| parts.iter().all(|part| text.contains(part)))
}

#[tokio::test]
async fn over_quic_a_device_that_the_leader_does_not_know_is_refused() {
    let site = Site::new();
    let at_leader = quic(vec![]).await;
    let address = at_leader.local_addr().unwrap();
    let at_follower = quic(vec![Peer { device: at_leader.device(), address: Some(address) }]).await;
    let stranger = at_follower.device();
    let leader = site.open_leader().await.start_on(at_leader.clone()).await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', 'secret')"]).await;
    leader.sealed().await;
    let before = log_length(&leader);
    let follower = site.open_follower(2).await.start_on(at_follower).await;
    let status = follower.shows("refused", last_error_has(&["refused"])).await;
    let text = status.last_error.unwrap();
    assert_says(
        &text,
        &[&at_leader.device().to_string(), &stranger.to_string(), "nothing was changed", "as a peer there"],
    );
    assert!(matches!(status.link, Link::Offline | Link::Connecting), "it is not green: {:?}", status.link);
    assert_eq!((log_length(&follower), log_length(&leader)), (0, before));

    // Once it is a peer, it needs no restart.
    at_leader.add_peer(stranger, None);
    level(&leader, &[&follower]).await;
}

#[tokio::test]
async fn over_quic_a_peer_of_the_transport_that_is_not_named_for_the_library_is_refused() {
    let site = Site::new();
    let at_follower = quic(vec![]).await;
    let at_leader = quic(vec![Peer { device: at_follower.device(), address: None }]).await;
    at_follower.add_peer(at_leader.device(), Some(at_leader.local_addr().unwrap()));
    let other = device(9);
    let id = site.id;
    let leader = Device::open(&site.path("leader"), |library| library.create(id).peer(other)).await.unwrap();
    let leader = leader.start_on(at_leader).await;
    let follower = site.open_follower(2).await.start_on(at_follower.clone()).await;
    let status = follower.shows("refused", last_error_has(&["is not a member"])).await;
    assert_says(
        &status.last_error.unwrap(),
        &[
            "refused",
            &at_follower.device().to_string(),
            &id.to_string(),
            "nothing was changed",
            "Add it as a peer at the leader",
        ],
    );
    assert_eq!(log_length(&follower), 0);
    assert_eq!(log_length(&leader), 2, "a term start and the leader: nobody became a member");
}

#[tokio::test]
async fn over_quic_another_library_is_refused() {
    let site = Site::new();
    let at_follower = quic(vec![]).await;
    let at_leader = quic(vec![Peer { device: at_follower.device(), address: None }]).await;
    at_follower.add_peer(at_leader.device(), Some(at_leader.local_addr().unwrap()));
    let leader = site.open_leader().await.start_on(at_leader).await;
    let wrong = LibraryId::random();
    let follower = Device::open(&site.path("follower"), |library| library.join(wrong)).await.unwrap();
    let follower = follower.start_on(at_follower).await;
    let status = follower.shows("refused", last_error_has(&["refused"])).await;
    assert_says(&status.last_error.unwrap(), &[&wrong.to_string(), "nothing was changed"]);
    assert_eq!(log_length(&follower), 0);
    drop(leader);
}

#[tokio::test]
async fn a_device_with_rows_of_its_own_cannot_join_and_keeps_them_byte_for_byte() {
    let site = Site::new();
    let path = site.path("follower");
    let db = connect(&path).await;
    db.close().await.unwrap();
    tamper(&path, "INSERT INTO teams (id, name) VALUES ('t', x'00ff'), ('u', 1.5)");
    let before = hash_of_tables(&path);
    let id = site.id;
    let error = Device::open(&path, |library| library.join(id)).await.err().unwrap();
    assert!(matches!(error, Error::NotEmpty { rows: 2, .. }), "{error:?}");
    assert_says(
        &error.to_string(),
        &["`teams`", "2 rows", &id.to_string(), "nothing was changed", "Join with an empty table"],
    );
    assert_eq!(hash_of_tables(&path), before);
    let triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger'";
    assert_eq!(lines(&reader(&path), triggers), Vec::<String>::new(), "nor does anything watch them");
    assert_eq!(lines(&reader(&path), "SELECT * FROM sync_replica"), Vec::<String>::new());
    // The device that has the rows may create the library instead.
    Device::open(&path, |library| library.create(id)).await.unwrap();
}

#[tokio::test]
async fn a_database_stays_in_its_library_and_in_its_role() {
    let site = Site::new();
    let path = site.path("db");
    let (id, other) = (site.id, LibraryId::random());

    connect(&path).await;
    let error = Device::open(&path, |library| library.existing()).await.err().unwrap();
    assert!(matches!(error, Error::NoLibrary), "{error:?}");
    assert_says(
        &error.to_string(),
        &["this database", "in no library yet", "nothing was changed", "create(id)", "join(id)"],
    );

    Device::open(&path, |library| library.join(id)).await.unwrap().give_up().await;
    for (error, says) in [
        (Device::open(&path, |library| library.join(other)).await, "Open it with its own id"),
        (Device::open(&path, |library| library.create(other)).await, "Open it with its own id"),
    ] {
        let error = error.err().unwrap();
        assert!(matches!(error, Error::OtherLibrary { .. }), "{error:?}");
        assert_says(&error.to_string(), &[&id.to_string(), &other.to_string(), "nothing was changed", says]);
    }
    let error = Device::open(&path, |library| library.create(id)).await.err().unwrap();
    assert!(matches!(error, Error::Joined { .. }), "{error:?}");
    assert_says(&error.to_string(), &[&id.to_string(), "joined", "nothing was changed", "existing()"]);
    let device = Device::open(&path, |library| library.existing()).await.unwrap();
    assert_eq!((device.library.id(), device.status().role), (id, Role::Follower));
}

#[tokio::test]
async fn one_engine_for_one_database() {
    let site = Site::new();
    let leader = site.leader().await;
    let path = site.path("leader");
    let error = Device::open(&path, |library| library.existing()).await.err().unwrap();
    assert!(matches!(error, Error::Locked { .. }), "{error:?}");
    assert_says(
        &error.to_string(),
        &[&path.display().to_string(), "already open", "nothing was changed", "Close the other"],
    );

    // In another process: this test binary, run anew with only the test below.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "opened_by_another_process", "--nocapture", "--include-ignored"])
        .env("TIDELOG_TEST_OPEN", &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_says(&text, &["said: database", "already open", "in another process", "nothing was changed"]);

    let again = leader.library.start(std::sync::Arc::new(site.network.plug(device(5)))).await.unwrap_err();
    assert!(matches!(again, Error::Started(_)), "{again:?}");
    assert_says(
        &again.to_string(),
        &[&site.id.to_string(), "started already", "nothing was changed", "Shut it down"],
    );

    leader.stop().await;
    let again = site.leader().await;
    again.write(&["INSERT INTO items (id, name) VALUES ('a', '')"]).await;
    again.sealed().await;
}

/// Not a scenario of its own: the other process of the one above.
#[tokio::test]
async fn opened_by_another_process() {
    let Some(path) = std::env::var_os("TIDELOG_TEST_OPEN") else { return };
    let db = tidelog::connect(&format!("sqlite://{}", Path::new(&path).display())).await.unwrap();
    match builder(&db).existing().open().await {
        Ok(_) => println!("said: nothing"),
        Err(error) => println!("said: {error}"),
    }
}

#[tokio::test]
async fn one_transport_serves_a_library_once() {
    let site = Site::new();
    let transport: SharedTransport = std::sync::Arc::new(site.network.plug(device(1)));
    let leader = site.open_leader().await;
    leader.library.start(transport.clone()).await.unwrap();
    let copy = site.open_follower(2).await;
    let error = copy.library.start(transport).await.unwrap_err();
    assert_says(&error.to_string(), &[&site.id.to_string(), "already served", "stop the other node first"]);
    copy.plug(&site.network, 2).await;
}

#[tokio::test]
async fn a_copied_database_under_another_key_follows_and_says_so() {
    let site = Site::new();
    let leader = site.leader().await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', '')"]).await;
    leader.sealed().await;
    leader.stop().await;
    std::fs::copy(site.path("leader"), site.path("copy")).unwrap();

    let copy = Device::open(&site.path("copy"), |library| library.existing()).await.unwrap();
    let copy = copy.plug(&site.network, 7).await;
    let status = copy.status();
    assert_eq!((status.role, status.copy_of), (Role::Follower, Some(device(1))));
    assert_says(
        &status.last_error.unwrap(),
        &[
            &device(1).to_string(),
            &device(7).to_string(),
            "it is a copy",
            "nothing of it is lost",
            "take over",
        ],
    );
    // The original leads on, and the copy follows it.
    let leader = site.leader().await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('b', '')"]).await;
    level(&leader, &[&copy]).await;
    // What it is it goes on to say, and the text goes with the success.
    let status = copy.shows("it follows", |s| s.link == Link::Online).await;
    assert_eq!((status.copy_of, status.last_error), (Some(device(1)), None));
    assert_eq!(leader.status().copy_of, None);
    // From the next start on it is a device like all others.
    copy.stop().await;
    let again = Device::open(&site.path("copy"), |library| library.existing()).await.unwrap();
    let again = again.plug(&site.network, 7).await;
    assert_eq!(again.status().copy_of, None);
}

/// A leader's database and a copy of it, both of which went on by themselves: the original was opened `original`
/// times since, and leads; the copy was `copy` times, as the same leader cut off from the world.
async fn parted(site: &Site, original: usize, copy: usize) -> Device {
    let leader = site.leader().await;
    leader.write(&["INSERT INTO items (id, name) VALUES ('a', '')"]).await;
    leader.sealed().await;
    leader.stop().await;
    std::fs::copy(site.path("leader"), site.path("copy")).unwrap();
    let alone = tidelog::transport::MemoryNetwork::new();
    for i in 0..copy {
        let copy = Device::open(&site.path("copy"), |library| library.existing()).await.unwrap();
        let copy = copy.plug(&alone, 1).await;
        copy.write(&[&format!("INSERT INTO items (id, name) VALUES ('only here {i}', '')")]).await;
        copy.stop().await;
    }
    for _ in 1..original {
        site.leader().await.stop().await;
    }
    let leader = site.leader().await;
    for i in 0..5 {
        leader.write(&[&format!("INSERT INTO items (id, name) VALUES ('there {i}', '')")]).await;
        leader.sealed().await;
    }
    leader
}

#[tokio::test]
async fn a_log_that_parts_from_the_leaders_goes_back_to_where_they_part_and_what_it_held_is_pushed() {
    let site = Site::new();
    let leader = parted(&site, 2, 1).await;
    let copy = Device::open(&site.path("copy"), |library| library.existing()).await.unwrap();
    let copy = copy.plug(&site.network, 2).await;
    soon("a barrier", copy.library.barrier()).await.unwrap();
    let there = level(&leader, &[&copy]).await;
    let names: Vec<_> = there.rows.iter().filter(|row| row.contains("only here")).collect();
    assert_eq!((names.len(), there.rows.len()), (1, 7), "{:?}", there.rows);
    assert_eq!(leader.status().link, Link::Leading, "the leader goes on");
}

#[tokio::test]
async fn a_leader_that_hears_of_a_higher_term_steps_down_and_does_not_stay_green() {
    let site = Site::new();
    let leader = parted(&site, 1, 2).await;
    let before = Dump::of(&site.path("copy"));
    let copy = Device::open(&site.path("copy"), |library| library.existing()).await.unwrap();
    let copy = copy.plug(&site.network, 2).await;
    let status = leader.shows("it steps down", |s| s.role == Role::Follower && s.link == Link::Offline).await;
    assert_eq!((status.leader, status.behind), (None, None), "{status:?}");
    let status = copy.shows("it has no leader", last_error_has(&["does not lead"])).await;
    assert!(status.link != Link::Online, "{status:?}");
    before.assert_equals(&copy.dump(), "itself before");
}

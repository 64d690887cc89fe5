//! Who leads: a follower takes over where the leader is gone, the leader hands over, devices do it by themselves; whoever led
//! before comes back, and nothing that anybody wrote is lost or takes effect twice.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tidelog::{
    Error, Failover, LibraryBuilder, Link, Obstacle, Role, TakeOver,
    id::{DeviceId, Seq},
    transport::{MemoryNetwork, Transport},
};
use tidelog_tests::{
    devices::{Device, Site, assert_says, device, eventually, level, number, quic_among, soon, tamper},
    trio::{Trio, Who},
};

async fn open(site: &Site, name: &str, set: impl Fn(LibraryBuilder) -> LibraryBuilder) -> Device {
    Device::open(&site.path(name), set).await.unwrap()
}

fn insert(id: &str) -> String {
    format!("INSERT INTO items (id, name) VALUES ('{id}', 'by {id}')")
}

/// Waits until all are level with the leader, whoever has what, and compares them. How many items there are.
async fn settled(leader: &Device, others: &[&Device]) -> usize {
    for device in others {
        device.shows("it follows", |s| s.role == Role::Follower && s.link == Link::Online).await;
        soon("a barrier", device.library.barrier()).await.unwrap();
    }
    let dump = level(leader, others).await;
    for device in others {
        let left = "SELECT (SELECT count(*) FROM sync_pending) + (SELECT count(*) FROM sync_outbox)";
        assert_eq!(number(&device.path, left), 0);
    }
    dump.rows.iter().filter(|row| row.starts_with("items")).count()
}

/// A leader and two followers that all hold the item `a`.
async fn three(site: &Site) -> [Device; 3] {
    let leader = site.leader().await;
    let (second, third) = (site.follower(2).await, site.follower(3).await);
    leader.write(&[&insert("a")]).await;
    level(&leader, &[&second, &third]).await;
    [leader, second, third]
}

#[tokio::test]
async fn a_follower_takes_over_and_the_old_leader_comes_back_with_what_nobody_had_seen() {
    let site = Site::new();
    let [leader, second, third] = three(&site).await;
    leader.stop().await;
    // It goes on by itself: in its log, and in its table, is what the others have not.
    let alone =
        open(&site, "leader", |library| library.existing()).await.plug(&MemoryNetwork::new(), 1).await;
    for id in ["l1", "l2", "l3"] {
        alone.write(&[&insert(id)]).await;
        alone.sealed().await;
    }
    alone.write(&["UPDATE items SET name = 'the old leader''s' WHERE id = 'a'"]).await;
    alone.stop().await;

    second.write(&[&insert("s1")]).await;
    let report = soon("a report", second.library.promotion_report()).await.unwrap();
    assert_eq!((report.obstacles.as_slice(), report.left_behind), ([].as_slice(), 0));
    let term = soon("a takeover", second.library.take_over(TakeOver::default())).await.unwrap();
    assert_eq!((term.number, term.leader), (2, device(2)));
    assert_eq!(second.status().role, Role::Leader);
    second.write(&["UPDATE items SET place = 7 WHERE id = 'a'"]).await;
    third.write(&[&insert("t1")]).await;
    assert_eq!(settled(&second, &[&third]).await, 3);

    let back = site.leader().await;
    assert_eq!(settled(&second, &[&back, &third]).await, 6);
    assert_eq!(back.status().role, Role::Follower);
    // Both had written the item without having seen the other: one stands, and the other is told of.
    let conflicts = "SELECT count(*) FROM sync_conflict";
    assert_eq!((number(&back.path, conflicts), number(&second.path, conflicts)), (1, 1));
}

#[tokio::test]
async fn a_leader_that_only_serves_is_told_of_its_successor() {
    let site = Site::new();
    let [leader, second, third] = three(&site).await;
    let term = soon("a takeover", second.library.take_over(TakeOver::FORCED)).await.unwrap();
    leader.shows("it was deposed", |s| s.role == Role::Follower && s.leader == Some(device(2))).await;
    leader.write(&[&insert("b")]).await;
    assert_eq!(settled(&second, &[&leader, &third]).await, 2);
    assert_eq!(leader.status().term, term);
}

#[tokio::test]
async fn two_that_took_over_at_once_come_to_one_leader_and_keep_what_both_wrote() {
    let site = Site::new();
    let devices = three(&site).await;
    for device in devices {
        device.stop().await;
    }
    // Each half is a world of its own.
    let mut halves = Vec::new();
    for (name, number) in [("follower-2", 2), ("follower-3", 3)] {
        let half =
            open(&site, name, |library| library.existing()).await.plug(&MemoryNetwork::new(), number).await;
        let term = soon("a takeover", half.library.take_over(TakeOver::default())).await.unwrap();
        assert_eq!(term.number, 2);
        half.write(&[&insert(name), "UPDATE items SET name = 'twice' WHERE id = 'a'"]).await;
        half.sealed().await;
        halves.push(half);
    }
    for half in halves {
        half.stop().await;
    }
    let lower = open(&site, "follower-2", |library| library.existing()).await.plug(&site.network, 2).await;
    let higher = open(&site, "follower-3", |library| library.existing()).await.plug(&site.network, 3).await;
    lower.shows("the lower follows", |s| s.role == Role::Follower && s.leader == Some(device(3))).await;
    let first = site.leader().await;
    assert_eq!(settled(&higher, &[&lower, &first]).await, 3);
}

#[tokio::test]
async fn a_takeover_is_refused_for_an_empty_a_lagging_or_an_unneeded_device_unless_it_is_forced() {
    let site = Site::new();
    let [leader, second, third] = three(&site).await;
    let refusal = soon("a refusal", second.library.take_over(TakeOver::default())).await.unwrap_err();
    assert_says(
        &refusal.to_string(),
        &[
            &device(2).to_string(),
            "leads and can be reached",
            "Let that device hand over instead, as `reassign_leader` does, or force it",
        ],
    );
    let refusal = leader.library.take_over(TakeOver::default()).await.unwrap_err();
    assert_says(&refusal.to_string(), &["it leads already", "Nothing need be done"]);
    // It has missed what the third has.
    second.stop().await;
    leader.write(&[&insert("b")]).await;
    level(&leader, &[&third]).await;
    leader.stop().await;
    let second = site.follower(2).await;
    let before = second.dump();
    let refusal = soon("a refusal", second.library.take_over(TakeOver::default())).await.unwrap_err();
    assert_says(
        &refusal.to_string(),
        &["can be reached and its log reaches further", &device(3).to_string(), "Let that device take over"],
    );
    assert_eq!((before, second.status().role), (second.dump(), Role::Follower), "nothing was changed");
    let report = soon("a report", second.library.promotion_report()).await.unwrap();
    assert_eq!(report.left_behind, 1);
    assert!(
        report.obstacles.iter().any(|o| matches!(o, Obstacle::Behind { device: d, .. } if *d == device(3)))
    );
    let known: Vec<_> = report.devices.iter().map(|known| (known.device, known.answers)).collect();
    assert_eq!(known, [(device(1), false), (device(3), true)]);

    let empty =
        open(&site, "empty", |library| library.join(site.id)).await.plug(&MemoryNetwork::new(), 9).await;
    let refusal = soon("a refusal", empty.library.take_over(TakeOver::default())).await.unwrap_err();
    assert_says(
        &refusal.to_string(),
        &["its log is empty", "no member", "Let it follow a device that has the library"],
    );

    // Forced, it leads; what the third had beyond it comes back as its changes.
    soon("a takeover", second.library.take_over(TakeOver::FORCED)).await.unwrap();
    let leader = site.leader().await;
    assert_eq!(settled(&second, &[&third, &leader]).await, 2);
}

#[tokio::test]
async fn a_library_that_is_not_started_says_so() {
    let site = Site::new();
    let leader = site.open_leader().await;
    for error in [
        leader.library.take_over(TakeOver::FORCED).await.unwrap_err(),
        leader.library.hand_over(device(2)).await.unwrap_err(),
        leader.library.wait_replicated(Seq(1), 1).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
        assert_says(&error.to_string(), &["the library is not started"]);
    }
}

#[tokio::test]
async fn the_lead_goes_round_and_nobody_has_to_wait_with_writing() {
    let site = Site::new();
    let devices = three(&site).await;
    let mut leads = 0;
    for round in 0..6 {
        let next = (leads + 1 + round % 2) % 3;
        let writes = async {
            for i in 0..20 {
                for (d, device) in devices.iter().enumerate() {
                    device.write(&[&insert(&format!("{round}-{i}-{d}"))]).await;
                }
            }
        };
        let to = device(u8::try_from(next + 1).unwrap());
        let (term, ()) = tokio::join!(soon("a handover", devices[leads].library.hand_over(to)), writes);
        assert_eq!(term.unwrap().leader, to);
        leads = next;
        let others: Vec<&Device> = (0..3).filter(|&d| d != leads).map(|d| &devices[d]).collect();
        assert_eq!(settled(&devices[leads], &others).await, 1 + 60 * (round + 1));
    }
    assert_eq!(number(&devices[0].path, "SELECT count(DISTINCT number) FROM sync_term"), 7);
}

#[tokio::test]
async fn a_handover_is_refused_where_nobody_takes_it() {
    let site = Site::new();
    let [leader, second, third] = three(&site).await;
    for (from, to, says) in [
        (&leader, 1, "it leads already"),
        (&leader, 8, "it does not follow device"),
        (&second, 3, "this device does not lead"),
    ] {
        let error = soon("a refusal", from.library.hand_over(device(to))).await.unwrap_err();
        assert_says(&error.to_string(), &[says, &device(to).to_string(), "nothing was lost"]);
    }
    assert_eq!(leader.status().role, Role::Leader);
    soon("a handover", leader.library.reassign_leader(device(3))).await.unwrap();
    assert_eq!(settled(&third, &[&leader, &second]).await, 1);
}

/// Three devices over QUIC, the first of which leads, and their ids.
async fn three_over_quic(
    site: &Site,
    set: impl Fn(LibraryBuilder, usize, &[DeviceId]) -> LibraryBuilder,
) -> ([Device; 3], [DeviceId; 3]) {
    let endpoints = quic_among(3).await;
    let ids: Vec<DeviceId> = endpoints.iter().map(|quic| quic.device()).collect();
    let mut devices = Vec::new();
    for (n, endpoint) in endpoints.into_iter().enumerate() {
        let enter = |library: LibraryBuilder| match n {
            0 => set(library.create(site.id), n, &ids),
            _ => set(library.join(site.id), n, &ids),
        };
        devices.push(open(site, &format!("device-{n}"), enter).await.start_on(endpoint).await);
    }
    devices[0].write(&[&insert("a")]).await;
    let (leader, followers) = devices.split_first().unwrap();
    level(leader, &followers.iter().collect::<Vec<_>>()).await;
    (devices.try_into().ok().unwrap(), ids.try_into().unwrap())
}

#[tokio::test]
async fn any_device_makes_any_other_lead_by_asking_the_one_that_does() {
    let site = Site::new();
    let (devices, ids) = three_over_quic(&site, |library, _, _| library).await;
    // Who asks, and who is to lead: a third, itself, the leader by itself, one that leads already.
    for (round, (asks, to, leads)) in
        [(1, 2, 0), (0, 1, 2), (2, 2, 1), (2, 0, 2), (1, 0, 0), (0, 0, 0)].into_iter().enumerate()
    {
        let before = devices[leads].library.position().await.unwrap().term.number;
        let writes = async {
            for (d, device) in devices.iter().enumerate() {
                device.write(&[&insert(&format!("{round}-{d}"))]).await;
            }
        };
        let asked = devices[asks].library.reassign_leader(ids[to]);
        let (term, ()) = tokio::join!(soon("an answer", asked), writes);
        let term = term.unwrap();
        assert_eq!((term.number, term.leader), (before + u64::from(to != leads), ids[to]));
        assert_eq!(devices[to].library.reassign_leader(ids[to]).await.unwrap(), term, "it leads");
        let others: Vec<&Device> = (0..3).filter(|&d| d != to).map(|d| &devices[d]).collect();
        assert_eq!(settled(&devices[to], &others).await, 1 + 3 * (round + 1));
    }
}

#[tokio::test]
async fn what_keeps_the_leader_from_handing_over_is_told_to_whoever_asks() {
    let site = Site::new();
    let (devices, ids) = three_over_quic(&site, |library, _, _| library).await;
    let [leader, second, third] = &devices;
    let nobody = device(8);
    let error = soon("a refusal", second.library.reassign_leader(nobody)).await.unwrap_err();
    let says = [&nobody.to_string(), "it does not follow device", &ids[0].to_string(), "Let it connect"];
    assert_says(&error.to_string(), &says);
    assert_eq!(leader.status().role, Role::Leader);
    // Each wants to lead at the same time.
    let (first, other) = soon("both answers", async {
        tokio::join!(second.library.reassign_leader(ids[1]), third.library.reassign_leader(ids[2]))
    })
    .await;
    let mut opened = Vec::new();
    for (answer, own) in [(first, ids[1]), (other, ids[2])] {
        match answer {
            Ok(term) => {
                assert_eq!(term.leader, own);
                opened.push(term);
            }
            Err(error) => assert_says(&error.to_string(), &["leads now", "nothing was lost"]),
        }
    }
    let last = opened.into_iter().max().unwrap();
    let (next, others) =
        if last.leader == ids[1] { (second, [leader, third]) } else { (third, [leader, second]) };
    assert_eq!(settled(next, &others).await, 1);
    assert_eq!(next.status().term, last);
}

#[tokio::test]
async fn where_the_leader_is_gone_a_device_takes_over_itself_and_no_other_can_be_made_to() {
    let site = Site::new();
    let (devices, ids) = three_over_quic(&site, |library, _, _| library).await;
    let [leader, second, third] = devices;
    leader.stop().await;
    let error = soon("a refusal", second.library.reassign_leader(ids[2])).await.unwrap_err();
    assert_says(
        &error.to_string(),
        &[&ids[2].to_string(), "no device that leads can be reached", "call `take_over` on the device"],
    );
    assert_eq!((second.status().role, third.status().role), (Role::Follower, Role::Follower));
    let term = soon("a takeover", third.library.reassign_leader(ids[2])).await.unwrap();
    assert_eq!((term.number, term.leader), (2, ids[2]));
    assert_eq!(settled(&third, &[&second]).await, 1);
}

#[tokio::test]
async fn a_lead_that_nobody_takes_goes_back_and_who_hears_of_it_late_gives_way() {
    let schema = tidelog_tests::small::TABLES.join("; ");
    // The leader itself is told, and so is another that asked it.
    for asks in [Who::Leader, Who::B] {
        let trio = Trio::set(&schema, |library| {
            library
                .grant_timeout(Duration::from_millis(300))
                .model::<tidelog_tests::small::item::Entity>()
                .model::<tidelog_tests::small::team::Entity>()
                .model::<tidelog_tests::small::person::Entity>()
        })
        .await;
        let leader = trio.device(Who::Leader);
        trio.cut_off(Who::A);
        let asked = trio.device(asks).library.reassign_leader(Who::A.device());
        let error = soon("a refusal", asked).await.unwrap_err();
        let says = ["did not take it in time", &Who::Leader.device().to_string(), "leads now", "try again"];
        assert_says(&error.to_string(), &says);
        trio.write(Who::Leader, 2000, &[insert("l")]).await;
        trio.write(Who::A, 2000, &[insert("a")]).await;
        // Now the grant comes, and with it the news that it is too late.
        trio.let_back(Who::A).await;
        trio.level().await;
        let status = leader.library.status().borrow().clone();
        assert_eq!((status.role, status.term.number), (Role::Leader, 3));
        trio.assert_same(&["items"]);
        assert_eq!(number(leader.path(), "SELECT count(*) FROM items"), 2);
    }
}

#[tokio::test]
async fn a_leader_that_stopped_between_granting_and_being_answered_leads_again() {
    let site = Site::new();
    let [leader, second, third] = three(&site).await;
    leader.write(&[&insert("b")]).await;
    let top = leader.sealed().await;
    let path = leader.path.clone();
    level(&leader, &[&second, &third]).await;
    leader.stop().await;
    // As its database is where the machine failed just then.
    let term = &top.term;
    let term =
        format!("{}/{}/{}/{}", term.number, term.leader, term.incarnation.counter, term.incarnation.nonce);
    tamper(
        &path,
        &format!("UPDATE sync_replica SET lead = NULL, granted = '2/{}/{}/{term}'", device(2), top.seq),
    );
    let leader = site.leader().await;
    assert_eq!(leader.sealed().await.term.number, 3);
    assert_eq!(settled(&leader, &[&second, &third]).await, 2);
}

#[tokio::test]
async fn a_shutdown_hands_the_lead_to_who_has_most_of_the_log() {
    let site = Site::new();
    let id = site.id;
    let leader = open(&site, "leader", |library| library.create(id).hands_over(true)).await;
    let leader = leader.plug(&site.network, 1).await;
    let (second, third) = (site.follower(2).await, site.follower(3).await);
    leader.write(&[&insert("a")]).await;
    level(&leader, &[&second, &third]).await;
    leader.stop().await;
    let next = eventually("one of them leads", async || {
        [&second, &third].into_iter().find(|d| d.status().role == Role::Leader)
    })
    .await;
    let other = if std::ptr::eq(next, &second) { &third } else { &second };
    other.write(&[&insert("b")]).await;
    let leader = site.leader().await;
    assert_eq!(settled(next, &[other, &leader]).await, 2);
    assert_eq!(leader.status().role, Role::Follower);
}

#[tokio::test]
async fn where_it_is_allowed_one_takes_over_by_itself_and_the_longest_log_leads() {
    let site = Site::new();
    let id = site.id;
    let leader = site.leader().await;
    let mut followers = Vec::new();
    for (n, priority) in [(2, 1), (3, 9), (4, 0)] {
        let failover = Failover::after(Duration::from_millis(700)).priority(priority);
        let path = format!("follower-{n}");
        let follower = open(&site, &path, |library| library.join(id).failover(failover)).await;
        followers.push(follower.plug(&site.network, n).await);
    }
    leader.write(&[&insert("a")]).await;
    level(&leader, &followers.iter().collect::<Vec<_>>()).await;
    leader.give_up().await;
    // Of logs of one length, the one of the highest priority.
    followers[1].shows("it leads", |s| s.role == Role::Leader).await;
    followers[0].write(&[&insert("b")]).await;
    let [second, third, fourth] = <[Device; 3]>::try_from(followers).ok().unwrap();
    let back = site.leader().await;
    assert_eq!(settled(&third, &[&second, &fourth, &back]).await, 2);
    let terms = "SELECT group_concat(DISTINCT number) FROM (SELECT number FROM sync_term ORDER BY first)";
    let terms: String =
        tidelog_tests::devices::reader(&third.path).query_row(terms, [], |row| row.get(0)).unwrap();
    assert_eq!(terms, "1,2", "nobody else has led meanwhile");
}

#[tokio::test]
async fn a_device_of_a_lower_role_leaves_it_to_one_of_a_higher_whatever_its_priority() {
    let site = Site::new();
    // All have one setting but for the priority; the leader says who is what.
    let (devices, ids) = three_over_quic(&site, |library, n, ids| {
        let failover = Failover::after(Duration::from_millis(700)).priority([0, 0, 9][n]).for_roles(5);
        let library = library.failover(failover);
        if n == 0 { library.precedence(ids[1], 5).precedence(ids[2], 4) } else { library }
    })
    .await;
    let [leader, second, third] = devices;
    leader.stop().await;
    second.shows("it leads", |s| s.role == Role::Leader).await;
    third.write(&[&insert("b")]).await;
    assert_eq!(settled(&second, &[&third]).await, 2);
    let terms: Vec<(u64, DeviceId)> =
        second.library.terms().await.unwrap().iter().map(|term| (term.number, term.leader)).collect();
    assert_eq!(terms, [(1, ids[0]), (2, ids[1])], "nobody else has led meanwhile");
}

#[tokio::test]
async fn nobody_waits_for_a_replica_that_is_not_there_longer_than_he_wants() {
    let site = Site::new();
    let [leader, second, third] = three(&site).await;
    leader.write(&[&insert("b")]).await;
    let top = leader.sealed().await;
    soon("two replicas", leader.library.wait_replicated(top.seq, 2)).await.unwrap();
    leader.shows("it is stable", |s| s.stable >= top.seq).await;
    // Whoever asks for the leader's top is told.
    eventually("all know", async || {
        soon("a barrier", third.library.barrier()).await.unwrap();
        (third.status().stable >= top.seq).then_some(())
    })
    .await;
    second.stop().await;
    third.stop().await;
    leader.shows("nobody follows", |s| s.followers.is_empty()).await;
    leader.write(&[&insert("c")]).await;
    let top = leader.sealed().await;
    assert!(leader.status().stable < top.seq);
    let waited = leader.library.wait_replicated(top.seq, 1);
    assert!(tokio::time::timeout(Duration::from_millis(200), waited).await.is_err());
    let third = site.follower(3).await;
    soon("a replica", leader.library.wait_replicated(top.seq, 1)).await.unwrap();
    let error = third.library.wait_replicated(top.seq, 1).await.unwrap_err();
    assert_says(&error.to_string(), &["it does not lead", "Ask on the device that leads"]);
}

#[tokio::test]
async fn a_leader_restored_from_a_backup_says_so_and_follows_who_has_more() {
    let site = Site::new();
    let leader = site.leader().await;
    leader.write(&[&insert("a")]).await;
    leader.sealed().await;
    leader.stop().await;
    let backup = site.path("backup");
    tamper(&site.path("leader"), "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(site.path("leader"), &backup).unwrap();
    // It is opened more often than the backup will know.
    site.leader().await.stop().await;
    let (leader, second) = (site.leader().await, site.follower(2).await);
    leader.write(&[&insert("b")]).await;
    level(&leader, &[&second]).await;
    leader.stop().await;
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", site.path("leader").display()));
    }
    std::fs::copy(&backup, site.path("leader")).unwrap();

    let restored = site.leader().await;
    restored.write(&[&insert("r")]).await;
    let status = restored
        .shows("it says so", |s| {
            s.last_error.as_ref().is_some_and(|e| e.contains("an older state of itself"))
        })
        .await;
    assert_says(
        &status.last_error.unwrap(),
        &["Nobody leads", "Let the device with the longest log take over"],
    );
    assert_eq!(status.role, Role::Follower);
    soon("a takeover", second.library.take_over(TakeOver::default())).await.unwrap();
    assert_eq!(settled(&second, &[&restored]).await, 3);
    restored.shows("it knows", |s| s.rolled_back.is_some()).await;
}

/// Two logs that part behind entry 3; the copy leads a world of its own. Both have compacted up to these.
async fn parted_below(site: &Site, leaders: u64, others: u64) -> (Device, Device) {
    let [leader, second, third] = three(site).await;
    third.stop().await;
    second.stop().await;
    let alone =
        open(site, "follower-2", |library| library.existing()).await.plug(&MemoryNetwork::new(), 2).await;
    soon("a takeover", alone.library.take_over(TakeOver::FORCED)).await.unwrap();
    alone.write(&[&insert("s")]).await;
    alone.sealed().await;
    alone.stop().await;
    leader.write(&[&insert("l")]).await;
    let top = leader.sealed().await;
    assert!(leaders <= top.seq.0);
    leader.stop().await;
    tamper(&site.path("leader"), &format!("UPDATE sync_replica SET floor = {leaders}"));
    tamper(&site.path("follower-2"), &format!("UPDATE sync_replica SET floor = {others}"));
    let other = open(site, "follower-2", |library| library.existing()).await.plug(&site.network, 2).await;
    other.shows("it leads", |s| s.role == Role::Leader).await;
    (site.leader().await, other)
}

#[tokio::test]
async fn two_logs_that_were_both_compacted_behind_where_they_part_are_a_split_that_a_person_decides() {
    let site = Site::new();
    let (leader, other) = parted_below(&site, 6, 8).await;
    let low = leader.stopped().await;
    assert_says(
        &low,
        &[
            "this library is split",
            &device(2).to_string(),
            "nothing was changed",
            "force a takeover there",
            "join anew",
        ],
    );
    let status = leader.status();
    assert_eq!((status.split, status.role), (Some(device(2)), Role::Follower));
    assert_eq!(other.status().role, Role::Leader, "it goes on");
}

#[tokio::test]
async fn a_log_that_cannot_go_back_leads_where_the_other_can() {
    let site = Site::new();
    let (leader, other) = parted_below(&site, 6, 0).await;
    leader.shows("it leads", |s| s.role == Role::Leader && s.term.number == 3).await;
    // It could take back what it has; what it would need then is compacted.
    assert_says(&other.stopped().await, &["has compacted its log up to 6", "only up to 5", "join anew"]);
    assert_eq!(other.status().split, None);
}

fn wipe(path: &std::path::Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display()));
    }
}

#[tokio::test]
async fn a_follower_that_was_wiped_gets_everything_again_and_says_that_it_was() {
    let site = Site::new();
    let (leader, second) = (site.leader().await, site.follower(2).await);
    second.write(&[&insert("before")]).await;
    soon("a barrier", second.library.barrier()).await.unwrap();
    let path = second.path.clone();
    second.stop().await;
    wipe(&path);
    let second = site.follower(2).await;
    second.write(&[&insert("after")]).await;
    assert_eq!(settled(&leader, &[&second]).await, 2);
    second.shows("it knows", |s| s.rolled_back.is_some()).await;
}

/// It founds the library again, without knowing: whether its new term is the higher one is a matter of chance.
#[tokio::test]
async fn a_leader_that_was_wiped_and_founds_its_library_again_takes_nothing_from_anybody() {
    for restarts in [0, 2] {
        let site = Site::new();
        let (leader, second) = (site.leader().await, site.follower(2).await);
        for i in 0..20 {
            leader.write(&[&insert(&format!("l{i}"))]).await;
            second.write(&[&insert(&format!("s{i}"))]).await;
        }
        settled(&leader, &[&second]).await;
        let path = leader.path.clone();
        leader.stop().await;
        for _ in 0..restarts {
            let leader = site.leader().await;
            level(&leader, &[&second]).await;
            leader.stop().await;
        }
        wipe(&path);
        let leader = site.leader().await;
        leader.write(&[&insert("new")]).await;
        // Either it leads, and the other brings all it has; or it learns that it has led before, and nobody leads.
        let takes_over = eventually("they have met", async || {
            let (first, second) = (leader.status(), second.status());
            match (first.role, second.link) {
                (Role::Leader, Link::Online)
                    if second.leader == Some(device(1)) && !first.followers.is_empty() =>
                {
                    Some(false)
                }
                (Role::Follower, _) => Some(true),
                _ => None,
            }
        })
        .await;
        assert!(takes_over || restarts == 0, "who has led more often has the higher term");
        if takes_over {
            soon("a takeover", second.library.take_over(TakeOver::default())).await.unwrap();
            assert_eq!(settled(&second, &[&leader]).await, 41);
        } else {
            assert_eq!(settled(&leader, &[&second]).await, 41);
        }
    }
}

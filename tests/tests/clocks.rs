//! Clocks that are wrong: one that is far ahead ranks changes as of five minutes from now, by the leader's clock. Its
//! changes do not win for ever, nobody's clock follows it, and the log keeps what it said.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use tidelog::{
    LibraryBuilder,
    id::LibraryId,
    transport::MemoryNetwork,
    world::{Machine, World},
};
use tidelog_tests::{
    scene::{Device, entries, number, text},
    small::{TABLES, team},
};

/// When these tests are, in ms since 1970.
const NOW: i64 = 1_800_000_000_000;
const MINUTE: i64 = 60_000;
const YEAR: i64 = 365 * 24 * 60 * MINUTE;

/// A wall clock that is set by hand.
struct Wall(AtomicI64);

impl Wall {
    fn at(ms: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(ms)))
    }

    fn set(&self, ms: i64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl World for Wall {
    fn now(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn random(&self) -> u64 {
        Machine.random()
    }
}

fn register(wall: &Arc<Wall>) -> impl FnOnce(LibraryBuilder) -> LibraryBuilder + use<> {
    let wall = Arc::clone(wall);
    |builder| builder.model::<team::Entity>().world(wall)
}

/// A device whose clock, also for what is captured, is the wall's.
async fn device(
    folder: &tempfile::TempDir,
    number: u8,
    wall: &Arc<Wall>,
    enter: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
) -> Device {
    let register = register(wall);
    let device = Device::new(folder.path(), number, &TABLES.join(";"), |b| enter(register(b))).await;
    device.sql(&at(wall.now())).await;
    device
}

/// From now on captured rows are of this time.
fn at(ms: i64) -> String {
    format!("UPDATE sync_ctl SET clock = {ms}")
}

/// Milliseconds of a device's hybrid logical clock.
fn clock(device: &Device) -> i64 {
    let sql = "SELECT max(clock) >> 16 FROM (SELECT clock FROM sync_replica UNION ALL SELECT clock FROM sync_group)";
    number(&device.file(), sql)
}

/// Stamp and ranking stamp of the last entry of a record, in ms.
fn stamps(device: &Device, record: &str) -> (i64, i64) {
    let last = |column: &str| {
        let sql =
            format!("SELECT {column} >> 16 FROM sync_entry WHERE record = '{record}' ORDER BY seq DESC");
        number(&device.file(), &sql)
    };
    (last("stamp"), last("coalesce(rank, stamp)"))
}

fn teams(device: &Device) -> String {
    text(
        &device.file(),
        "SELECT group_concat(id || ' ' || name, ', ') FROM (SELECT * FROM teams ORDER BY id)",
    )
}

#[tokio::test]
async fn a_clock_a_year_ahead_neither_wins_for_ever_nor_takes_others_with_it() {
    let (folder, network, id) = (tempfile::tempdir().unwrap(), MemoryNetwork::new(), LibraryId::random());
    let (right, ahead) = (Wall::at(NOW), Wall::at(NOW + YEAR));
    let leader = device(&folder, 1, &right, |b| b.create(id)).await;
    let fast = device(&folder, 2, &ahead, |b| b.join(id)).await;
    let slow = device(&folder, 3, &right, |b| b.join(id)).await;
    for device in [&leader, &fast, &slow] {
        device.start(&network).await;
    }
    leader.sql("INSERT INTO teams (id, name) VALUES ('a', 'first'), ('b', 'first')").await;
    leader.level().await;
    for device in [&fast, &slow] {
        device.level().await;
    }
    let slow = slow
        .away(&[
            &at(NOW + MINUTE),
            "UPDATE teams SET name = 'a minute later' WHERE id = 'a'",
            &at(NOW + 10 * MINUTE),
            "UPDATE teams SET name = 'ten minutes later' WHERE id = 'b'",
        ])
        .await;
    fast.sql("UPDATE teams SET name = 'a year ahead'").await;
    fast.level().await;
    assert_eq!(stamps(&leader, "a"), (NOW + YEAR, NOW + 5 * MINUTE), "it is kept, and ranks less");
    assert_eq!(clock(&leader), NOW + 5 * MINUTE);

    right.set(NOW + 10 * MINUTE);
    let slow = slow.back(&network, register(&right)).await;
    assert_eq!(teams(&leader), "a a year ahead, b ten minutes later");
    fast.level().await;
    assert_eq!(clock(&slow), NOW + 10 * MINUTE, "not even by what it was sent");

    // Whoever comes later is told the same.
    let late = device(&folder, 4, &right, |b| b.join(id)).await;
    late.start(&network).await;
    late.level().await;
    assert!(clock(&late) <= NOW + 10 * MINUTE, "{}", clock(&late));
    for device in [&fast, &slow] {
        device.level().await;
    }
    for device in [&fast, &slow, &late] {
        assert_eq!(teams(device), teams(&leader));
        assert_eq!(entries(&device.file()), entries(&leader.file()));
    }
}

#[tokio::test]
async fn a_change_that_ranks_already_keeps_its_rank() {
    let (folder, network, id) = (tempfile::tempdir().unwrap(), MemoryNetwork::new(), LibraryId::random());
    let wall = Wall::at(NOW);
    let leader = device(&folder, 1, &wall, |b| b.create(id)).await;
    let follower = device(&folder, 2, &wall, |b| b.join(id)).await;
    for device in [&leader, &follower] {
        device.start(&network).await;
    }
    leader.sql("INSERT INTO teams (id, name) VALUES ('a', 'first'), ('b', 'first')").await;
    leader.level().await;
    follower.level().await;
    let closed = follower.away(&["UPDATE teams SET name = 'follower'"]).await;
    leader.sql("UPDATE teams SET name = 'leader'").await;
    leader.level().await;
    // Sealed where nobody is, and then as if a log had held them: one clamped, one as it was stamped.
    let alone = closed.reopen(register(&Wall::at(NOW + 2 * YEAR))).await.unwrap();
    alone.sql(&at(NOW + 2 * YEAR)).await;
    alone.sql("UPDATE teams SET lead_id = NULL, name = name || '!'").await;
    alone.start(&MemoryNetwork::new()).await;
    alone.until("sealed", |status| status.pending == 2).await;
    let closed = alone.close().await;
    let (low, high) = (12_345 << 16, (NOW + YEAR) << 16);
    closed.file().execute("UPDATE sync_pending SET rank = iif(record = 'a', ?1, ?2)", [low, high]).unwrap();
    let follower = closed.back(&network, register(&wall)).await;
    assert_eq!(stamps(&leader, "a").1, 12_345);
    assert_eq!(stamps(&leader, "b").1, NOW + YEAR, "as another leader had it");
    assert_eq!(teams(&leader), "a leader, b follower!");
    assert_eq!(entries(&follower.file()), entries(&leader.file()));
}

#[tokio::test]
async fn a_leader_whose_clock_was_ahead_ranks_its_own_changes_by_the_right_time() {
    let (folder, network, id) = (tempfile::tempdir().unwrap(), MemoryNetwork::new(), LibraryId::random());
    let wall = Wall::at(NOW + YEAR);
    let leader = device(&folder, 1, &wall, |b| b.create(id)).await;
    leader.start(&network).await;
    leader.sql("INSERT INTO teams (id, name) VALUES ('a', 'first')").await;
    leader.level().await;
    assert_eq!(stamps(&leader, "a"), (NOW + YEAR, NOW + YEAR));
    wall.set(NOW);
    leader.sql("UPDATE teams SET name = 'second'").await;
    leader.level().await;
    assert_eq!(stamps(&leader, "a"), (NOW + YEAR, NOW + 5 * MINUTE));
    let follower = device(&folder, 2, &wall, |b| b.join(id)).await;
    follower.start(&network).await;
    follower.level().await;
    assert_eq!(entries(&follower.file()), entries(&leader.file()));
}

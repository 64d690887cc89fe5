//! Leader and follower are processes of their own, over QUIC, and get killed while a writer writes.
//!
//! Each process is this test binary once more, with only the test [`child`] and told its part by the environment.
//! The writer notes each transaction outside of the database once it is committed: whatever is noted must be there in
//! the end, once, on both sides. What was committed and not noted, because the process died between the two, may be.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tidelog::id::LibraryId;
use tidelog_tests::devices::{Device, Dump, LOOPBACK, PATIENCE, eventually, lines, quic_as, reader};
use tidelog_transport::Identity;

/// How often somebody is killed.
const KILLS: usize = 8;

/// The folder that parent and children share, and what is where in it.
#[derive(Clone)]
struct Place(PathBuf);

impl Place {
    fn database(&self, part: &str) -> PathBuf {
        self.0.join(format!("{part}.sqlite"))
    }

    fn key(&self, part: &str) -> Identity {
        Identity::load_or_create(self.0.join(format!("{part}.key"))).unwrap()
    }

    /// The transactions that were noted.
    fn noted(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.0.join("noted")).unwrap_or_default();
        // The last line may lack its end if the process died while it wrote it.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn address(&self) -> Option<SocketAddr> {
        fs::read_to_string(self.0.join("address")).ok()?.parse().ok()
    }

    fn id(&self) -> LibraryId {
        LibraryId(fs::read_to_string(self.0.join("id")).unwrap().parse().unwrap())
    }
}

/// A child that dies with its parent, whatever becomes of it.
struct Part(Child);

impl Part {
    fn start(place: &Place, part: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("TIDELOG_TEST_PART", part)
            .env("TIDELOG_TEST_PLACE", &place.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// `kill -9`.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a scenario of its own: the processes that are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(part) = std::env::var("TIDELOG_TEST_PART") else { return };
    let place = Place(std::env::var_os("TIDELOG_TEST_PLACE").unwrap().into());
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    match part.as_str() {
        "leader" => lead(place).await,
        _ => follow(place).await,
    }
}

async fn lead(place: Place) {
    let quic = quic_as(place.key("leader"), LOOPBACK, vec![]).await;
    quic.add_peer(place.key("follower").device_id(), None);
    let id = place.id();
    let leader = Device::open(&place.database("leader"), |library| library.create(id)).await.unwrap();
    let leader = leader.start_on(quic.clone()).await;
    // Renamed into its place, so that nobody reads half of it.
    fs::write(place.0.join("address.new"), quic.local_addr().unwrap().to_string()).unwrap();
    fs::rename(place.0.join("address.new"), place.0.join("address")).unwrap();
    let mut notes = fs::File::options().create(true).append(true).open(place.0.join("noted")).unwrap();
    let last = place.noted().last().copied().unwrap_or(0);
    let written = "SELECT coalesce(max(CAST(name AS INTEGER)), 0) FROM teams";
    let mut i = last.max(tidelog_tests::devices::number(&place.database("leader"), written) as u64);
    while !place.0.join("enough").exists() {
        i += 1;
        let many = if i % 40 == 0 { 5000 } else { 1 };
        leader
            .write(&[
                &format!("INSERT INTO teams (id, name) VALUES ('t{i}', {i})"),
                &format!(
                    "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < {many})
                     INSERT INTO items (id, name) SELECT 'i{i}.' || k, {i} FROM n"
                ),
            ])
            .await;
        writeln!(notes, "{i}").unwrap();
    }
    std::future::pending().await
}

async fn follow(place: Place) {
    let quic = quic_as(place.key("follower"), LOOPBACK, vec![]).await;
    let leader = place.key("leader").device_id();
    let id = place.id();
    quic.add_peer(leader, place.address());
    let follower = Device::open(&place.database("follower"), |library| library.join(id)).await.unwrap();
    let _follower = follower.start_on(quic.clone()).await;
    let mut known = None;
    loop {
        // A leader that was started again listens elsewhere.
        let now = place.address();
        if now != known {
            quic.add_peer(leader, now);
            known = now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn top(path: &Path) -> i64 {
    tidelog_tests::devices::number(path, "SELECT coalesce(max(seq), 0) FROM sync_entry")
}

#[tokio::test]
async fn killed_at_any_point_leader_and_follower_go_on_and_lose_or_double_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place(folder.path().to_owned());
    fs::write(place.0.join("id"), LibraryId::random().to_string()).unwrap();
    // Made here, so that two children do not make them at once.
    assert_ne!(place.key("leader").device_id(), place.key("follower").device_id());
    let (mut leader, mut follower) = (Part::start(&place, "leader"), Part::start(&place, "follower"));
    for round in 0..KILLS {
        let more = place.noted().len() + 20 + usize::from(uuid::Uuid::new_v4().as_bytes()[0]) / 4;
        eventually("the writer gets on", async || (place.noted().len() > more).then_some(())).await;
        if round % 3 != 1 {
            leader.kill();
            leader = Part::start(&place, "leader");
        }
        if round % 3 != 0 {
            follower.kill();
            follower = Part::start(&place, "follower");
        }
    }
    let more = place.noted().len() + 20;
    eventually("the last leader writes too", async || (place.noted().len() > more).then_some(())).await;
    fs::write(place.0.join("enough"), "").unwrap();
    eventually(&format!("level within {PATIENCE:?}"), async || {
        let outbox = "SELECT count(*) FROM sync_outbox";
        let level = tidelog_tests::devices::number(&place.database("leader"), outbox) == 0
            && top(&place.database("follower")) == top(&place.database("leader"));
        level.then_some(())
    })
    .await;
    leader.kill();
    follower.kill();

    let there = Dump::of(&place.database("leader"));
    there.assert_equals(&Dump::of(&place.database("follower")), "the follower");
    assert!(there.terms.len() > KILLS / 2, "each leader opened its term: {:?}", there.terms);
    for part in ["leader", "follower"] {
        let conn = reader(&place.database(part));
        let teams: HashSet<String> = lines(&conn, "SELECT name FROM teams").into_iter().collect();
        let missing: Vec<_> = place.noted().into_iter().filter(|i| !teams.contains(&i.to_string())).collect();
        assert!(missing.is_empty(), "{part}: noted and not there: {missing:?}");
        let torn = "SELECT t.name FROM teams t WHERE (SELECT count(*) FROM items i WHERE i.name = t.name)
                <> iif(CAST(t.name AS INTEGER) % 40 = 0, 5000, 1)
            UNION ALL SELECT name FROM items WHERE name NOT IN (SELECT name FROM teams)";
        assert_eq!(lines(&conn, torn), Vec::<String>::new(), "{part}: whole transactions only");
        let twice = "SELECT record FROM sync_entry WHERE record IS NOT NULL GROUP BY model, record HAVING count(*) > 1";
        assert_eq!(lines(&conn, twice), Vec::<String>::new(), "{part}: each change is in the log once");
        assert_eq!(lines(&conn, "PRAGMA integrity_check"), ["ok"]);
    }
}

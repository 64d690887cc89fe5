//! Rows that were there before their table became syncable: nothing starts without them, `adopt()` takes them in, and
//! they meet what other devices say by the model's policy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::IntoFuture,
    io::Read,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use sea_orm::ConnectionTrait;
use tempfile::TempDir;
use tidelog::{
    AdoptProgress, Error, Library, LibraryBuilder, connect, id::LibraryId, transport::MemoryNetwork,
};
use tidelog_tests::{
    devices::eventually,
    scene::{Closed, Device, assert_says, number},
};

#[allow(unreachable_pub, reason = "the entities are written as an application writes them")]
mod models {
    /// An entity over a table with a text key; `$fields` beside it.
    macro_rules! entity {
        ($name:ident, $table:literal, [$($sync:tt)*], $($field:ident: $type:ty),+) => {
            pub mod $name {
                use sea_orm::entity::prelude::*;
                use tidelog::Syncable;

                #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
                #[sea_orm(table_name = $table)]
                #[sync($($sync)*)]
                pub struct Model {
                    #[sea_orm(primary_key, auto_increment = false)]
                    pub id: String,
                    $(pub $field: $type),+
                }

                impl Model {
                    #[allow(dead_code, reason = "one of the models asks")]
                    fn is_shared(&self) -> bool {
                        self.id != "secret"
                    }
                }

                #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
                pub enum Relation {}
            }
        };
    }
    entity!(note, "notes", [model = "note", should_sync = "Model::is_shared"], text: String);
    entity!(folder, "folders", [model = "folder"], parent: Option<String>, tag: String);
    pub mod pair {
        use sea_orm::entity::prelude::*;
        use tidelog::Syncable;

        #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
        #[sea_orm(table_name = "pairs")]
        pub struct Model {
            #[sea_orm(primary_key, auto_increment = false)]
            pub name: String,
            #[sea_orm(primary_key, auto_increment = false)]
            pub number: i64,
        }

        #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
        pub enum Relation {}
    }
    entity!(tag, "tags", [model = "tag", merge = "fields"], name: String, colour: Option<String>);
}
use models::{folder, note, pair, tag};

const SCHEMA: &str = "
    CREATE TABLE notes (id TEXT PRIMARY KEY, text TEXT NOT NULL);
    CREATE TABLE folders (id TEXT NOT NULL PRIMARY KEY, parent TEXT REFERENCES folders (id),
        tag TEXT NOT NULL REFERENCES tags (id));
    CREATE TABLE tags (id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, colour TEXT);";

fn notes(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<note::Entity>()
}

/// What a later release syncs.
fn all(builder: LibraryBuilder) -> LibraryBuilder {
    // Children first: the adoption finds the order by itself.
    builder.model::<folder::Entity>().model::<tag::Entity>().model::<note::Entity>()
}

struct Site {
    folder: TempDir,
    network: MemoryNetwork,
    id: LibraryId,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, network: MemoryNetwork::new(), id: LibraryId::random() }
    }

    /// Device 1, which creates the library over these rows. Not started.
    async fn creates(&self, rows: &str, register: fn(LibraryBuilder) -> LibraryBuilder) -> Device {
        let schema = format!("{SCHEMA}{rows}");
        Device::new(self.folder.path(), 1, &schema, |b| register(b).create(self.id)).await
    }

    /// A device that joins with empty tables of the models, started.
    async fn joins(&self, device: u8, rows: &str, register: fn(LibraryBuilder) -> LibraryBuilder) -> Device {
        let schema = format!("{SCHEMA}{rows}");
        let device = Device::new(self.folder.path(), device, &schema, |b| register(b).join(self.id)).await;
        device.start(&self.network).await;
        device
    }

    /// A leader and a follower of the first release, level; the follower has rows that only a later one syncs.
    async fn two(&self, at_leader: &str, at_follower: &str) -> (Closed, Closed) {
        let leader = self.creates(at_leader, notes).await;
        leader.start(&self.network).await;
        let follower = self.joins(2, at_follower, notes).await;
        leader.sql("INSERT INTO notes VALUES ('n', 'both')").await;
        leader.library.barrier().await.unwrap();
        follower.reached(&leader).await;
        (follower.close().await, leader.close().await)
    }

    /// The later release: opened, adopted, started.
    async fn upgraded(&self, closed: &Closed) -> Device {
        let device = closed.reopen(all).await.unwrap();
        device.library.adopt().await.unwrap();
        device.start(&self.network).await;
        device
    }
}

const MANY: i64 = 5000;
const MANY_NOTES: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
    INSERT INTO notes SELECT printf('n%05d', i), 'text ' || i FROM n;";

fn told() -> (Arc<Mutex<Vec<AdoptProgress>>>, impl FnMut(AdoptProgress) + Send) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    (told, move |progress| tell.lock().unwrap().push(progress))
}

#[tokio::test]
async fn a_library_does_not_start_over_rows_that_nobody_else_would_get() {
    let site = Site::new();
    let device = site.creates("INSERT INTO notes VALUES ('a', 'x'), ('b', 'y');", notes).await;
    assert_eq!(device.library.status().borrow().unadopted, 2);
    let error = device.library.start(Arc::new(site.network.plug(tidelog::id::DeviceId([1; 32])))).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::NotAdopted { rows: 2, .. }), "{error:?}");
    assert_says(
        &error.to_string(),
        &["`notes`", "`note`", "2 rows", "not started", "nothing was changed", "`adopt()`", "should_sync"],
    );

    let adopted = device.library.adopt().await.unwrap();
    assert_eq!((adopted.models, adopted.rows), (1, 2));
    assert_eq!(device.library.status().borrow().unadopted, 0);
    device.start(&site.network).await;
    let follower = site.joins(2, "", notes).await;
    device.library.barrier().await.unwrap();
    follower.reached(&device).await;
    assert_eq!(follower.log(), ["insert note a", "insert note b"]);
    assert_eq!(follower.dump("notes", "*"), device.dump("notes", "*"));
}

#[tokio::test]
async fn adopting_goes_in_batches_tells_how_far_it_is_and_does_nothing_twice() {
    let site = Site::new();
    let device = site.creates(MANY_NOTES, notes).await;
    let (told, tell) = told();
    let adopted = device.library.adopt().progress(tell).await.unwrap();
    assert_eq!((adopted.models, adopted.rows), (1, MANY as u64));
    {
        let told = told.lock().unwrap();
        assert!(told.len() > 5, "{} batches", told.len());
        assert!(told.iter().all(|p| (p.model, p.total) == ("note", MANY as u64)));
        assert!(told.windows(2).all(|two| two[0].done <= two[1].done));
        assert_eq!(told.last().unwrap().done, MANY as u64);
    }
    assert_eq!(device.outbox(), MANY);

    let again = device.library.adopt().await.unwrap();
    assert_eq!((again.models, again.rows), (0, 0), "and it says so");
    device.start(&site.network).await;
    let again = device.library.adopt().await.unwrap();
    assert_eq!((again.models, again.rows), (0, 0), "also while the library runs");
    device.library.barrier().await.unwrap();
    assert_eq!(device.log().len(), MANY as usize);
    assert_eq!(number(&device.file(), "SELECT count(*) FROM sync_adoption"), 0);

    let closed = device.close().await;
    let device = closed.reopen(notes).await.unwrap();
    assert_eq!(device.library.adopt().await.unwrap().models, 0, "and at the next start of the application");
}

#[tokio::test]
async fn a_call_that_was_broken_off_is_taken_up_where_it_was() {
    let site = Site::new();
    let device = site.creates(MANY_NOTES, notes).await;
    // Broken off behind the third batch, as by a process that is killed: nothing runs between two batches.
    let (broken, breaks) = tokio::sync::oneshot::channel();
    let (mut broken, mut batches) = (Some(broken), 0);
    let adopt = device.library.adopt().progress(move |_| {
        batches += 1;
        if batches == 3
            && let Some(broken) = broken.take()
        {
            let _ = broken.send(());
        }
    });
    tokio::select! {
        biased;
        _ = breaks => {}
        done = adopt => panic!("{done:?}"),
    }
    let closed = device.close().await;
    let before = number(&closed.file(), "SELECT done FROM sync_adoption");
    assert!((1..MANY).contains(&before), "{before}");
    assert_eq!(number(&closed.file(), "SELECT count(*) FROM sync_outbox WHERE kind = 7"), before);

    let device = closed.reopen(notes).await.unwrap();
    assert_eq!(device.library.status().borrow().unadopted, (MANY - before) as u64);
    let adopted = device.library.adopt().await.unwrap();
    assert_eq!(adopted.rows, (MANY - before) as u64, "what was done is not done again");
    device.start(&site.network).await;
    device.library.barrier().await.unwrap();
    let log = device.log();
    assert_eq!(log.len(), MANY as usize, "each once");
    assert_eq!(log.first().unwrap(), "insert note n00001");
}

/// Not a scenario of its own: the process that is killed while it adopts.
#[tokio::test]
async fn child() {
    let Ok(file) = std::env::var("TIDELOG_TEST_ADOPTS") else { return };
    let db = connect(&format!("sqlite://{file}")).await.unwrap();
    let library = notes(Library::builder(&db)).existing().open().await.unwrap();
    // Until its parent kills it, or is gone itself.
    let adopting = tokio::spawn(library.adopt().into_future());
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await.unwrap().unwrap();
    adopting.abort();
}

#[tokio::test]
async fn killed_at_any_point_it_goes_on_where_it_was() {
    const ROWS: i64 = 60_000;
    let site = Site::new();
    let rows = MANY_NOTES.replace("5000", &ROWS.to_string());
    let closed = site.creates(&rows, notes).await.close().await;
    let mut before = 0;
    while before < ROWS / 2 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env("TIDELOG_TEST_ADOPTS", closed.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let done = "SELECT coalesce(max(done), 60000) FROM sync_adoption";
        let more = before + 1 + i64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 40;
        eventually("the adoption gets on", async || (number(&closed.file(), done) > more).then_some(()))
            .await;
        child.kill().unwrap();
        child.wait().unwrap();
        before = number(&closed.file(), done);
        let captured = "SELECT count(DISTINCT v0) = count(*) AND count(*) = coalesce((SELECT done FROM sync_adoption), 60000)
            FROM sync_outbox WHERE kind = 7";
        assert_eq!(number(&closed.file(), captured), 1, "as many as it says, each once, at {before}");
    }
    let device = closed.reopen(notes).await.unwrap();
    assert_eq!(device.library.adopt().await.unwrap().rows as i64, ROWS - before);
    device.start(&site.network).await;
    device.library.barrier().await.unwrap();
    let once = "SELECT count(DISTINCT record) = 60000 AND count(record) = 60000 FROM sync_entry";
    assert_eq!(number(&device.file(), once), 1);
}

#[tokio::test]
async fn what_the_application_writes_meanwhile_stands_over_older_images() {
    let site = Site::new();
    let device = site.creates(MANY_NOTES, notes).await;
    // Before its turn, behind it, between batches.
    device.sql("UPDATE notes SET text = 'early' WHERE id IN ('n00001', 'n04000')").await;
    device.sql("DELETE FROM notes WHERE id = 'n00002'; INSERT INTO notes VALUES ('n00002b', 'new')").await;
    let writer = {
        let db = device.db.clone();
        tokio::spawn(async move {
            for i in (1..=5000).rev().step_by(7) {
                let sql = format!("UPDATE notes SET text = 'late {i}' WHERE id = 'n{i:05}'");
                db.execute_unprepared(&sql).await.unwrap();
            }
            db.execute_unprepared("DELETE FROM notes WHERE id = 'n04999'").await.unwrap();
        })
    };
    device.library.adopt().await.unwrap();
    writer.await.unwrap();
    device.start(&site.network).await;
    let follower = site.joins(2, "", notes).await;
    device.library.barrier().await.unwrap();
    follower.reached(&device).await;
    assert_eq!(follower.dump("notes", "*"), device.dump("notes", "*"));
    assert_eq!(number(&follower.file(), "SELECT count(*) FROM notes"), MANY - 1);
}

#[tokio::test]
async fn what_stays_here_stays_and_what_cannot_be_sent_is_quarantined() {
    let site = Site::new();
    let large = format!(
        "INSERT INTO notes VALUES ('a', 'x'), ('secret', 's'), ('bad', x'ff'), ('large', '{}');",
        "x".repeat(4 << 20)
    );
    let device = site.creates(&large, notes).await;
    assert_eq!(device.library.adopt().await.unwrap().rows, 4);
    device.start(&site.network).await;
    device.library.barrier().await.unwrap();
    device.until("counted", |s| s.withheld == 1 && s.quarantined == 2).await;
    assert_eq!(device.log(), ["insert note a"]);
}

#[tokio::test]
async fn a_row_without_a_key_is_told_of() {
    let site = Site::new();
    let device = site.creates("INSERT INTO notes VALUES ('a', 'x'), (NULL, 'nameless');", notes).await;
    let error = device.library.adopt().await.unwrap_err().to_string();
    assert_says(&error, &["`notes`", "1 of its rows are NULL in the key", "Fill the key"]);
    device.sql("DELETE FROM notes WHERE id IS NULL").await;
    assert_eq!(device.library.adopt().await.unwrap().rows, 1);
}

#[tokio::test]
async fn no_row_is_passed_over_whatever_orders_the_key() {
    let site = Site::new();
    // Sorted without regard to case by the table, and by their bytes by the adoption; two columns; no row ids.
    let rows = "CREATE TABLE pairs (name TEXT COLLATE NOCASE, number INTEGER, PRIMARY KEY (name, number)) WITHOUT ROWID;
        WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999)
        INSERT INTO pairs SELECT char(i % 2 * 32 + 65 + i % 26), i FROM n;";
    let device = site.creates(rows, |builder| builder.model::<pair::Entity>()).await;
    assert_eq!(device.library.adopt().await.unwrap().rows, 1000);
    let captured =
        "SELECT count(*) = 1000 AND count(DISTINCT v0 || v1) = 1000 FROM sync_outbox WHERE kind = 7";
    assert_eq!(number(&device.file(), captured), 1);
}

#[tokio::test]
async fn what_is_gone_need_not_be_adopted() {
    let site = Site::new();
    let device = site.creates("INSERT INTO notes VALUES ('a', 'x');", notes).await;
    device.sql("DELETE FROM notes").await;
    device.start(&site.network).await;
    device.until("nothing to adopt", |s| s.unadopted == 0).await;
}

#[tokio::test]
async fn a_follower_pushes_what_a_later_release_syncs() {
    let site = Site::new();
    // More than one seal of a tree whose parents have the later keys; a tag that all of it refers to.
    let tree = "INSERT INTO tags VALUES ('t', 'mine', 'red');
        WITH RECURSIVE n (i) AS (SELECT 6000 UNION ALL SELECT i - 1 FROM n WHERE i > 1)
        INSERT INTO folders SELECT printf('f%04d', i), iif(i <= 4500, printf('f%04d', i + 1500), NULL), 't' FROM n;";
    let (follower, leader) = site.two("", tree).await;
    let leader = site.upgraded(&leader).await;
    let follower = follower.reopen(all).await.unwrap();
    assert_eq!(follower.library.status().borrow().unadopted, 6001);
    let error = follower.library.start(Arc::new(site.network.plug(tidelog::id::DeviceId([2; 32])))).await;
    assert!(matches!(error, Err(Error::NotAdopted { .. })), "{error:?}");
    let adopted = follower.library.adopt().await.unwrap();
    assert_eq!((adopted.models, adopted.rows), (2, 6001));
    follower.start(&site.network).await;
    follower.library.barrier().await.unwrap();
    for table in ["folders", "tags", "notes"] {
        assert_eq!(leader.dump(table, "*"), follower.dump(table, "*"), "{table}");
    }
    assert_eq!(number(&leader.file(), "SELECT count(*) FROM folders"), 6000);
    let refused = "SELECT count(*) FROM sync_entry WHERE kind = 0";
    assert_eq!(number(&leader.file(), refused), 0, "parents came first");
}

/// In which order the later release comes to two devices.
#[derive(Clone, Copy, PartialEq)]
enum First {
    Leader,
    /// And the follower of the old release does not hear of it before it is upgraded too.
    LeaderUnheard,
    Follower,
}

/// Both had the records before. The order in which they are upgraded decides whose value stands, and nothing else.
async fn both_had_tags(first: First) {
    let site = Site::new();
    let at_leader =
        "INSERT INTO tags VALUES ('same', 's', 'grey'), ('l', 'leader', NULL), ('x', 'ours', 'blue');";
    let at_follower =
        "INSERT INTO tags VALUES ('same', 's', 'grey'), ('f', 'follower', NULL), ('x', 'theirs', 'blue');";
    let (follower, leader) = site.two(at_leader, at_follower).await;
    let (leader, follower) = if first != First::Follower {
        let leader = site.upgraded(&leader).await;
        leader.library.barrier().await.unwrap();
        let follower = if first == First::Leader {
            let old = follower.reopen(notes).await.unwrap();
            old.start(&site.network).await;
            old.reached(&leader).await;
            old.close().await
        } else {
            follower
        };
        (leader, site.upgraded(&follower).await)
    } else {
        // The leader keeps what it does not know, and reads it with the next release.
        let old = leader.reopen(notes).await.unwrap();
        old.start(&site.network).await;
        let follower = site.upgraded(&follower).await;
        follower.library.barrier().await.unwrap();
        (site.upgraded(&old.close().await).await, follower)
    };
    leader.library.barrier().await.unwrap();
    follower.library.barrier().await.unwrap();
    assert_eq!(leader.dump("tags", "*"), follower.dump("tags", "*"));
    let name = |id: &str| {
        let sql =
            format!("SELECT group_concat(name || ' ' || coalesce(colour, '-')) FROM tags WHERE id = '{id}'");
        tidelog_tests::scene::text(&leader.file(), &sql)
    };
    assert_eq!([name("same"), name("l"), name("f")], ["s grey", "leader -", "follower -"]);
    // The one that was adopted first; the other is on record.
    assert_eq!(name("x"), if first == First::Follower { "theirs blue" } else { "ours blue" });
    let log = leader.log();
    let entries = |id: &str| log.iter().filter(|line| line.contains(&format!("tag {id}"))).count();
    let same = if first == First::LeaderUnheard { 2 } else { 1 };
    assert_eq!([entries("same"), entries("l"), entries("f"), entries("x")], [same, 1, 1, 2], "{log:?}");
    let dropped = "SELECT count(*) FROM sync_entry WHERE change LIKE '%drop%'";
    assert_eq!(number(&leader.file(), dropped), 1, "the conflict is on record");

    // And capture goes on for both.
    follower.sql("UPDATE tags SET colour = 'green' WHERE id = 'l'").await;
    follower.library.barrier().await.unwrap();
    assert_eq!(name("l"), "leader green");
}

#[tokio::test]
async fn records_that_both_have_merge_by_policy_where_the_leader_is_upgraded_first() {
    both_had_tags(First::Leader).await;
    both_had_tags(First::LeaderUnheard).await;
}

#[tokio::test]
async fn records_that_both_have_merge_by_policy_where_the_follower_is_upgraded_first() {
    both_had_tags(First::Follower).await;
}

#[tokio::test]
async fn what_others_synced_before_this_release_comes_into_the_table() {
    let site = Site::new();
    let (follower, leader) =
        site.two("INSERT INTO tags VALUES ('a', 'one', NULL), ('b', 'two', NULL);", "").await;
    let leader = site.upgraded(&leader).await;
    // The follower of the old release keeps the entries.
    let old = follower.reopen(notes).await.unwrap();
    old.start(&site.network).await;
    leader.sql("DELETE FROM tags WHERE id = 'b'; UPDATE tags SET colour = 'red'").await;
    leader.library.barrier().await.unwrap();
    old.reached(&leader).await;
    assert_eq!(number(&old.file(), "SELECT count(*) FROM tags"), 0);
    let follower = old.close().await.reopen(all).await.unwrap();
    assert_eq!(follower.library.status().borrow().unadopted, 0);
    follower.start(&site.network).await;
    assert_eq!(follower.dump("tags", "*"), leader.dump("tags", "*"));
    assert_eq!(number(&follower.file(), "SELECT count(*) FROM sync_pending"), 0);
}

#[tokio::test]
async fn a_device_that_joins_with_rows_is_told_what_to_do() {
    let site = Site::new();
    let file = site.folder.path().join("other.sqlite");
    let db = connect(&format!("sqlite://{}?mode=rwc", file.display())).await.unwrap();
    db.execute_unprepared(&format!("{SCHEMA} INSERT INTO notes VALUES ('a', 'x')")).await.unwrap();
    let error = Library::builder(&db).model::<note::Entity>().join(site.id).open().await.err().unwrap();
    assert_says(
        &error.to_string(),
        &["`notes`", "1 rows", "nothing was changed", "empty table", "`adopt()`", "saved anew"],
    );
}

//! Sealing (rule C): what captured rows become in the log, what stays on the device, and that nothing but the rows
//! themselves decides it.
//!
//! Before a library is started its triggers record and nobody seals: what is written then is sealed together, which
//! makes folding plain to see.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use sea_orm::{ActiveModelTrait, ConnectionTrait, DbErr, EntityTrait, Set, TransactionTrait};
use tidelog::{LibraryBuilder, force_record};
use tidelog_tests::{
    cabinet::{SCHEMA, folder, page, register},
    scene::{Scene, assert_says, number, text},
};

/// What is in the log before each fold.
const BEFORE: &str = "
    INSERT INTO folders (id, name) VALUES ('f', 'folder');
    INSERT INTO pages (id, folder, text) VALUES ('p', 'f', 'old')";

/// Writes in one seal over what is in the log already, and returns what the log says of it.
async fn folded(writes: &[&str]) -> Vec<String> {
    let scene = sealed_before(writes).await;
    scene.assert_level("pages", "*").await;
    let log = scene.leader.log().split_off(2);
    assert_eq!(scene.follower.log().split_off(2), log);
    log
}

/// A scene over [`BEFORE`] whose leader was closed while `writes` were made, and is open again.
async fn sealed_before(writes: &[&str]) -> Scene {
    let mut scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(BEFORE).await;
    scene.level().await;
    let closed = scene.leader.close().await;
    let db = closed.connect().await;
    for write in writes {
        db.execute_unprepared(write).await.unwrap();
    }
    db.close().await.unwrap();
    scene.leader = closed.reopen(register).await.unwrap();
    scene.leader.start(&scene.network).await;
    scene
}

const UPDATE: &str = "UPDATE pages SET text = 'new' WHERE id = 'p'";
const AGAIN: &str = "UPDATE pages SET text = 'newer' WHERE id = 'p'";
const MOVE: &str = "UPDATE pages SET folder = 'g' WHERE id = 'p'";
const INSERT: &str = "INSERT INTO pages (id, folder, text) VALUES ('q', 'f', 'q')";

#[tokio::test]
async fn the_rows_of_one_record_fold_into_one_change() {
    let other = "INSERT INTO folders (id, name) VALUES ('g', 'other')";
    for (writes, logged) in [
        (&[UPDATE, AGAIN][..], &["update page p [text]"][..]),
        (&[other, UPDATE, MOVE], &["insert folder g", "update page p [folder,text]"]),
        (&[INSERT, "UPDATE pages SET text = 'x' WHERE id = 'q'"], &["insert page q"]),
        (&[INSERT, "DELETE FROM pages WHERE id = 'q'"], &[]),
        (
            &["DELETE FROM pages WHERE id = 'p'", "INSERT INTO pages VALUES ('p', 'f', 'reborn')"],
            &["update page p"],
        ),
        (
            &["DELETE FROM pages WHERE id = 'p'", "INSERT INTO pages VALUES ('p', 'f', 'old')"],
            &["update page p"],
        ),
        (&[UPDATE, "DELETE FROM pages WHERE id = 'p'"], &["delete page p"]),
        (&[UPDATE, "UPDATE pages SET text = 'old' WHERE id = 'p'"], &[]),
        (&["UPDATE pages SET id = 'z'", "UPDATE pages SET id = 'p'"], &["update page p"]),
        (&[INSERT, "DELETE FROM pages WHERE id = 'q'", INSERT], &["insert page q"]),
    ] {
        assert_eq!(folded(writes).await, logged, "{writes:?}");
    }
}

#[tokio::test]
async fn folding_never_crosses_an_atomic_mark() {
    let scene = Scene::unstarted(SCHEMA, register).await;
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('f', 'folder')").await;
    scene.leader.sql("INSERT INTO pages (id, folder, text) VALUES ('p', 'f', '0')").await;
    let db = &scene.leader.db;
    for round in [1, 2] {
        db.atomic::<_, (), DbErr>(|txn| {
            Box::pin(async move {
                txn.execute_unprepared(&format!("UPDATE pages SET text = '{round}'")).await?;
                // Within the mark it folds.
                txn.execute_unprepared(&format!("UPDATE pages SET text = '{round} again'")).await?;
                Ok(())
            })
        })
        .await
        .unwrap();
    }
    scene.leader.sql("UPDATE pages SET text = '3'").await;
    scene.leader.sql("UPDATE pages SET text = '4'").await;
    scene.start().await;
    scene.assert_level("pages", "*").await;
    let update = "update page p [text]";
    assert_eq!(scene.follower.log(), ["insert folder f", "insert page p", update, update, update]);
    let marks = "SELECT count(DISTINCT mark) FROM sync_entry WHERE record = 'p'";
    assert_eq!(number(&scene.follower.file(), marks), 2);
    let texts = "SELECT group_concat(data ->> 'text', ', ') FROM sync_log WHERE record = 'p'";
    assert_eq!(text(&scene.follower.file(), texts), "0, 1 again, 2 again, 4");
}

#[tokio::test]
async fn a_row_recorded_by_force_counts_as_changed_in_all_fields() {
    let scene = sealed_before(&[UPDATE]).await;
    scene.level().await;
    let page = page::Entity::find_by_id("p").one(&scene.leader.db).await.unwrap().unwrap();
    force_record(&scene.leader.db, &page).await.unwrap();
    scene.assert_level("pages", "*").await;
    assert_eq!(scene.follower.log().split_off(2), ["update page p [text]", "update page p"]);
}

#[tokio::test]
async fn an_actor_is_in_the_log_everywhere() {
    let scene = Scene::set(SCHEMA, register).await;
    let write = |sql: &'static str| {
        let db = scene.leader.db.clone();
        async move {
            db.with_actor::<_, (), DbErr>("ada", |txn| {
                Box::pin(async move { txn.execute_unprepared(sql).await.map(|_| ()) })
            })
            .await
            .unwrap();
        }
    };
    write("INSERT INTO folders (id, name) VALUES ('a', 'hers')").await;
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('b', 'nobody''s')").await;
    scene.level().await;
    let actors =
        "SELECT group_concat(record || ':' || coalesce(actor, '-')) FROM sync_log WHERE model = 'folder'";
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(text(&device.file(), actors), "a:ada,b:-");
    }
}

/// Groups of the log that have entries of pages: first and last seq, and their pages.
fn groups(scene: &Scene) -> Vec<(i64, i64)> {
    let file = scene.follower.file();
    let mut statement = file
        .prepare(
            "SELECT g.first, g.last FROM sync_group g
             WHERE EXISTS (SELECT 1 FROM sync_entry e WHERE e.seq BETWEEN g.first AND g.last AND e.kind IN (1, 2))
             ORDER BY 1",
        )
        .unwrap();
    statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_large_backlog_is_sealed_in_groups_that_never_tear_a_transaction() {
    const TRANSACTIONS: i64 = 60;
    const ROWS: i64 = 400;
    let scene = Scene::unstarted(SCHEMA, register).await;
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('f', 'folder')").await;
    for transaction in 0..TRANSACTIONS {
        let txn = scene.leader.db.begin().await.unwrap();
        for half in 0..2 {
            txn.execute_unprepared(&format!(
                "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {} - 1)
                 INSERT INTO pages SELECT {transaction} || '/{half}/' || i, 'f', {transaction} FROM n",
                ROWS / 2
            ))
            .await
            .unwrap();
        }
        txn.commit().await.unwrap();
    }
    scene.start().await;
    scene.assert_level("pages", "*").await;
    let groups = groups(&scene);
    assert!(groups.len() >= 3, "{groups:?}");
    assert!(groups.iter().all(|(first, last)| last - first < 2 * 8192), "{groups:?}");
    let file = scene.follower.file();
    for (first, last) in groups {
        let torn = format!(
            "SELECT count(*) FROM (SELECT data ->> 'text' FROM sync_log WHERE seq BETWEEN {first} AND {last}
                AND record <> 'f' GROUP BY 1 HAVING count(*) <> {ROWS})"
        );
        assert_eq!(number(&file, &torn), 0, "transactions that are not whole in {first}–{last}");
    }
}

#[tokio::test]
async fn one_transaction_is_one_group_however_large() {
    const ROWS: i64 = 40_000;
    let scene = Scene::set(SCHEMA, register).await;
    let txn = scene.leader.db.begin().await.unwrap();
    txn.execute_unprepared("INSERT INTO folders (id, name) VALUES ('f', 'folder')").await.unwrap();
    txn.execute_unprepared(&format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO pages SELECT i, 'f', 'text' FROM n"
    ))
    .await
    .unwrap();
    txn.commit().await.unwrap();
    scene.assert_level("pages", "*").await;
    let groups = groups(&scene);
    assert_eq!(groups.iter().map(|(first, last)| last - first + 1).collect::<Vec<_>>(), [ROWS + 1]);
}

/// Drafts stay on the device that writes them.
mod draft {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "drafts")]
    #[sync(model = "draft", should_sync = "Model::is_shared")]
    pub(super) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub(super) id: String,
        pub(super) shared: bool,
        pub(super) text: Option<String>,
        pub(super) more: Option<String>,
    }

    impl Model {
        fn is_shared(&self) -> bool {
            self.shared
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub(super) enum Relation {}
}

const DRAFTS: &str =
    "CREATE TABLE drafts (id TEXT PRIMARY KEY NOT NULL, shared boolean NOT NULL, text TEXT, more TEXT)";

fn register_drafts(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<draft::Entity>()
}

/// Writes a draft, levels, and returns what the follower has of it: id, shared, text, more.
async fn follower_has(scene: &Scene, sql: &str) -> Vec<String> {
    scene.leader.sql(sql).await;
    scene.level().await;
    let file = scene.follower.file();
    let mut statement = file
        .prepare("SELECT id || ' ' || shared || ' ' || coalesce(text, '-') || ' ' || coalesce(more, '-') FROM drafts")
        .unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn should_sync_withholds_and_releases_but_never_deletes_elsewhere() {
    let scene = Scene::set(DRAFTS, register_drafts).await;
    let withheld = || scene.leader.library.status().borrow().withheld;
    assert!(follower_has(&scene, "INSERT INTO drafts VALUES ('d', 0, 'one', 'm')").await.is_empty());
    scene.leader.until("withheld", |status| status.withheld == 1).await;
    assert_eq!(
        follower_has(&scene, "UPDATE drafts SET shared = 1").await,
        ["d 1 one m"],
        "from false to true the whole row goes"
    );
    assert_eq!(scene.follower.log(), ["update draft d"]);
    assert_eq!(follower_has(&scene, "UPDATE drafts SET text = 'two'").await, ["d 1 two m"]);
    assert_eq!(
        follower_has(&scene, "UPDATE drafts SET shared = 0").await,
        ["d 1 two m"],
        "it stays as it was"
    );
    assert_eq!(follower_has(&scene, "UPDATE drafts SET text = 'three'").await, ["d 1 two m"]);
    assert_eq!(follower_has(&scene, "UPDATE drafts SET more = 'n'").await, ["d 1 two m"]);
    assert_eq!(
        follower_has(&scene, "UPDATE drafts SET shared = 1").await,
        ["d 1 three n"],
        "with what was withheld meanwhile"
    );
    assert_eq!(follower_has(&scene, "UPDATE drafts SET shared = 0").await, ["d 1 three n"]);
    assert_eq!(
        follower_has(&scene, "DELETE FROM drafts").await,
        ["d 1 three n"],
        "and it never deletes elsewhere"
    );
    scene.leader.until("withheld", |status| status.withheld == 6).await;
    assert_eq!(withheld(), 6);
    assert_eq!(scene.leader.library.status().borrow().quarantined, 0);
}

#[tokio::test]
async fn a_row_that_should_sync_cannot_read_is_quarantined_until_it_is_repaired() {
    let scene = Scene::set(DRAFTS, register_drafts).await;
    let sql = "INSERT INTO drafts VALUES ('d', 'perhaps', 'one', 'm'), ('e', 1, 'fine', 'm')";
    assert_eq!(follower_has(&scene, sql).await, ["e 1 fine m"], "the rest goes on");
    scene.leader.until("quarantined", |status| status.quarantined == 1).await;
    let file = scene.leader.file();
    assert_eq!(number(&file, "SELECT count(*) FROM drafts"), 2, "the user's write succeeded");
    let reason = text(&file, "SELECT model || ' ' || record || ': ' || reason || data FROM sync_quarantine");
    assert_says(&reason, &["draft d", "should_sync cannot read it", "column `shared`", "\"perhaps\""]);

    let repaired = follower_has(&scene, "UPDATE drafts SET shared = 1 WHERE id = 'd'").await;
    assert_eq!(repaired, ["e 1 fine m", "d 1 one m"], "repaired, all of it goes");
    assert_eq!(scene.follower.log(), ["insert draft e", "update draft d"]);
    // A deletion needs no reading.
    scene.leader.sql("UPDATE drafts SET shared = x'00' WHERE id = 'd'").await;
    scene.level().await;
    assert_eq!(follower_has(&scene, "DELETE FROM drafts WHERE id = 'd'").await, ["e 1 fine m"]);
}

#[tokio::test]
async fn a_row_over_the_limit_is_quarantined_visibly_and_the_rest_goes_on() {
    const ROW_MAX: usize = 5 << 18;
    let scene = Scene::set(SCHEMA, register).await;
    let folder = |id: &str, size: usize| folder::ActiveModel {
        id: Set(id.into()),
        name: Set(id.into()),
        note: Set(Some("x".repeat(size - 2 * id.len()))),
        opened: Set(None),
    };
    folder("a", ROW_MAX + 1).insert(&scene.leader.db).await.unwrap();
    folder("b", ROW_MAX).insert(&scene.leader.db).await.unwrap();
    folder("c", 10).insert(&scene.leader.db).await.unwrap();
    scene.level().await;
    scene.leader.until("quarantined", |status| status.quarantined == 1).await;
    assert_eq!(scene.follower.log(), ["insert folder b", "insert folder c"]);
    assert_eq!(scene.follower.dump("folders", "id"), ["text:62", "text:63"]);
    assert_eq!(scene.leader.dump("folders", "id").len(), 3, "the user's write succeeded");
    let reason =
        text(&scene.leader.file(), "SELECT model || ' ' || record || ': ' || reason FROM sync_quarantine");
    assert_says(&reason, &["folder a", "1310721 bytes", "limit of 1310720 bytes"]);

    scene.leader.sql("UPDATE folders SET note = 'short' WHERE id = 'a'").await;
    scene.assert_level("folders", "id, name, note").await;
    assert_eq!(scene.follower.log().split_off(2), ["update folder a"], "all of it: nobody had it");
}

#[tokio::test]
async fn what_is_written_with_no_sync_stays_on_the_device() {
    let scene = Scene::set(SCHEMA, register).await;
    let db = &scene.leader.db;
    db.transaction_with_no_sync::<_, (), DbErr>(|txn| {
        Box::pin(async move {
            txn.execute_unprepared("INSERT INTO folders (id, name) VALUES ('mine', 'mine')").await?;
            let page = page::ActiveModel { id: Set("p".into()), folder: Set("mine".into()), text: Set(None) };
            page.insert(txn).await.map(|_| ())
        })
    })
    .await
    .unwrap();
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('ours', 'ours')").await;
    scene.level().await;
    assert_eq!(scene.follower.log(), ["insert folder ours"]);
    assert_eq!(scene.follower.dump("folders", "id"), ["text:6f757273"]);
    assert_eq!(scene.leader.dump("folders", "id").len(), 2);
    assert!(scene.follower.dump("pages", "id").is_empty());
    // What fails inside leaves capture on.
    let failed = db
        .transaction_with_no_sync::<_, (), DbErr>(|txn| {
            Box::pin(
                async move { txn.execute_unprepared("INSERT INTO nowhere VALUES (1)").await.map(|_| ()) },
            )
        })
        .await;
    assert!(failed.is_err());
    scene.leader.sql("UPDATE folders SET note = 'seen' WHERE id = 'ours'").await;
    scene.assert_level("folders WHERE id = 'ours'", "id, name, note").await;
}

#[tokio::test]
async fn a_commit_that_nobody_tells_of_is_found_within_a_moment() {
    let scene = Scene::set(SCHEMA, register).await;
    scene.level().await;
    let file = scene.leader.file();
    let mut slowest = Duration::ZERO;
    for i in 0..5 {
        let top = scene.follower.library.status().borrow().position;
        file.execute_batch(&format!("INSERT INTO folders (id, name) VALUES ('{i}', '{i}')")).unwrap();
        let committed = Instant::now();
        scene.follower.until("following", |status| status.position.seq > top.seq).await;
        slowest = slowest.max(committed.elapsed());
    }
    // 100 ms and what a busy machine takes.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    scene.assert_level("folders", "id").await;
}

/// Nobody takes the notices of this library: after the first [`tidelog::notice::CAPACITY`] all are dropped.
#[tokio::test]
async fn dropped_notices_lose_nothing() {
    const SAVES: usize = tidelog::notice::CAPACITY + 500;
    let scene = Scene::set(SCHEMA, register).await;
    let never =
        tidelog::notice::register([("folder", tidelog::Recorder::Trigger)], 1, std::sync::Arc::new(|| ()));
    let txn = scene.leader.db.begin().await.unwrap();
    for i in 0..SAVES {
        let folder = folder::ActiveModel {
            id: Set(i.to_string()),
            name: Set(i.to_string()),
            note: Set(None),
            opened: Set(None),
        };
        folder.insert(&txn).await.unwrap();
    }
    txn.commit().await.unwrap();
    assert!(never.take_overflowed(), "notices were sent, and dropped");
    scene.assert_level("folders", "id").await;
    assert_eq!(scene.follower.dump("folders", "id").len(), SAVES);
}

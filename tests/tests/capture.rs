//! Capture (P1): whatever wrote a synced row, what was committed is in the log and at the follower, and what was
//! rolled back is nowhere.
//!
//! [`Way`] is the list of all ways to write; each is tried with every way to end a transaction. Then come the writes
//! that are none, and a process that is killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, EntityTrait, NotSet, QueryFilter, Set, TransactionTrait,
    sea_query::Expr,
};
use tidelog::{LibraryBuilder, Link, Recorder, behavior, connect};
use tidelog_tests::{
    cabinet::{SCHEMA, TABLES, folder, label, page, register},
    scene::{Scene, assert_says, number},
};

/// What is there before each write: two folders, two pages in the first, a pin on it.
const BEFORE: &str = "
    INSERT INTO folders (id, name) VALUES ('a', 'one'), ('b', 'two');
    INSERT INTO pages (id, folder, text) VALUES ('p', 'a', 'first'), ('q', 'a', 'second');
    INSERT INTO pins (id, folder) VALUES ('pin', 'a');";

/// A way to write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Insert,
    Update,
    SaveNew,
    SaveKnown,
    Delete,
    InsertMany,
    UpdateMany,
    DeleteMany,
    /// Raw SQL, and the log that it makes.
    Sql(&'static str, &'static [&'static str]),
}

/// The ways that SeaORM's hooks see.
const BY_ACTIVE_MODEL: [Way; 5] = [Way::Insert, Way::Update, Way::SaveNew, Way::SaveKnown, Way::Delete];

const BY_STATEMENT: [Way; 3] = [Way::InsertMany, Way::UpdateMany, Way::DeleteMany];

const BY_SQL: [Way; 9] = [
    Way::Sql("INSERT INTO folders (id, name, opened) VALUES ('c', 'three', 7)", &["insert folder c"]),
    Way::Sql("UPDATE pages SET text = text || '!'", &["update page p [text]", "update page q [text]"]),
    Way::Sql("INSERT OR REPLACE INTO pages (id, folder, text) VALUES ('p', 'b', 'new')", &["update page p"]),
    Way::Sql(
        // Over a second unique key: the folder that had the name goes, and what hangs on it.
        "INSERT OR REPLACE INTO folders (id, name) VALUES ('c', 'ONE')",
        &["update pin pin [folder]", "delete page p", "delete page q", "delete folder a", "insert folder c"],
    ),
    Way::Sql(
        "INSERT INTO pages (id, folder, text) VALUES ('p', 'a', 'x'), ('r', 'a', 'y')
            ON CONFLICT (id) DO UPDATE SET text = 'upserted'",
        &["update page p [text]", "insert page r"],
    ),
    Way::Sql(
        "DELETE FROM folders WHERE id = 'a'",
        &["update pin pin [folder]", "delete page p", "delete page q", "delete folder a"],
    ),
    Way::Sql("UPDATE pages SET id = 'z' WHERE id = 'p'", &["delete page p", "insert page z"]),
    Way::Sql(
        "PRAGMA defer_foreign_keys = ON; DELETE FROM pins; UPDATE folders SET id = 'z' WHERE id = 'a'",
        &[
            "delete pin pin",
            "delete folder a",
            "insert folder z",
            "update page p [folder]",
            "update page q [folder]",
        ],
    ),
    Way::Sql("DELETE FROM pins", &["delete pin pin"]),
];

fn all_ways() -> impl Iterator<Item = Way> {
    BY_ACTIVE_MODEL.into_iter().chain(BY_STATEMENT).chain(BY_SQL)
}

fn page(id: &str, text: &str) -> page::ActiveModel {
    page::ActiveModel { id: Set(id.into()), folder: Set("a".into()), text: Set(Some(text.into())) }
}

impl Way {
    async fn write<C: ConnectionTrait>(self, db: &C) {
        match self {
            Self::Insert => drop(page("r", "new").insert(db).await.unwrap()),
            Self::Update => {
                let change =
                    page::ActiveModel { id: Set("p".into()), folder: NotSet, text: Set(Some("x".into())) };
                change.update(db).await.unwrap();
            }
            // With the key set, `save` is an update.
            Self::SaveKnown => drop(page("q", "saved").save(db).await.unwrap()),
            Self::SaveNew => {
                label::ActiveModel { name: Set("new".into()), ..Default::default() }.save(db).await.unwrap();
            }
            Self::Delete => {
                page("p", "").delete(db).await.unwrap();
            }
            Self::InsertMany => {
                page::Entity::insert_many([page("r", "1"), page("s", "2"), page("t", "3")])
                    .exec(db)
                    .await
                    .unwrap();
            }
            Self::UpdateMany => {
                page::Entity::update_many()
                    .col_expr(page::Column::Text, Expr::value("all"))
                    .filter(page::Column::Folder.eq("a"))
                    .exec(db)
                    .await
                    .unwrap();
            }
            Self::DeleteMany => {
                page::Entity::delete_many().filter(page::Column::Text.eq("second")).exec(db).await.unwrap();
            }
            Self::Sql(sql, _) => drop(db.execute_unprepared(sql).await.unwrap()),
        }
    }

    /// What the log says of it.
    fn logged(self) -> Vec<&'static str> {
        match self {
            Self::Insert => vec!["insert page r"],
            Self::Update => vec!["update page p [text]"],
            Self::SaveNew => vec!["insert label (its key)"],
            Self::SaveKnown => vec!["update page q [text]"],
            Self::Delete => vec!["delete page p"],
            Self::InsertMany => vec!["insert page r", "insert page s", "insert page t"],
            Self::UpdateMany => vec!["update page p [text]", "update page q [text]"],
            Self::DeleteMany => vec!["delete page q"],
            Self::Sql(_, logged) => logged.to_vec(),
        }
    }
}

/// How what was written ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Autocommit,
    Commit,
    Rollback,
    /// The savepoint is rolled back, what is around it is committed.
    SavepointRollback,
    /// The savepoint is kept, what is around it is committed.
    SavepointRelease,
    /// A transaction that nobody ends.
    Dropped,
}

const ENDINGS: [Ending; 6] = [
    Ending::Autocommit,
    Ending::Commit,
    Ending::Rollback,
    Ending::SavepointRollback,
    Ending::SavepointRelease,
    Ending::Dropped,
];

/// What the transaction around a savepoint writes.
const AROUND: &str = "INSERT INTO pins (id) VALUES ('around')";

impl Ending {
    /// Writes, ends, and returns what the log must say of it.
    async fn of(self, way: Way, db: &tidelog::Connection) -> Vec<&'static str> {
        match self {
            Self::Autocommit => way.write(db).await,
            Self::Commit => {
                let txn = db.begin().await.unwrap();
                way.write(&txn).await;
                txn.commit().await.unwrap();
            }
            Self::Rollback => {
                let txn = db.begin().await.unwrap();
                way.write(&txn).await;
                txn.rollback().await.unwrap();
                return Vec::new();
            }
            Self::SavepointRollback | Self::SavepointRelease => {
                let txn = db.begin().await.unwrap();
                let inner = txn.begin().await.unwrap();
                way.write(&inner).await;
                let keep = matches!(self, Self::SavepointRelease);
                if keep {
                    inner.commit().await.unwrap()
                } else {
                    inner.rollback().await.unwrap()
                }
                txn.execute_unprepared(AROUND).await.unwrap();
                txn.commit().await.unwrap();
                let mut logged = if keep { way.logged() } else { Vec::new() };
                logged.push("insert pin around");
                return logged;
            }
            Self::Dropped => {
                let txn = db.begin().await.unwrap();
                way.write(&txn).await;
                drop(txn);
                return Vec::new();
            }
        }
        way.logged()
    }
}

/// The log in an order that does not depend on the order in which SQLite runs a statement's cascades.
fn sorted<S: Into<String>>(log: impl IntoIterator<Item = S>) -> Vec<String> {
    let mut log: Vec<String> = log.into_iter().map(Into::into).collect();
    log.sort();
    log
}

/// A label's key is made anew each time.
fn without_label_key(line: String) -> String {
    let key = line.strip_prefix("insert label ").map(str::len);
    key.map_or(line, |_| "insert label (its key)".to_owned())
}

async fn assert_all_level(scene: &Scene, what: &str) {
    scene.level().await;
    for (table, columns) in TABLES {
        let (leader, follower) = (scene.leader.dump(table, columns), scene.follower.dump(table, columns));
        assert_eq!(leader, follower, "{what}: table `{table}`");
    }
}

async fn captured(way: Way, ending: Ending, register: fn(LibraryBuilder) -> LibraryBuilder) -> Vec<String> {
    let what = format!("{way:?}, {ending:?}");
    let scene = Scene::set(SCHEMA, register).await;
    for statement in BEFORE.trim().split(';').filter(|s| !s.trim().is_empty()) {
        scene.leader.sql(statement).await;
    }
    prime(&scene).await;
    let before = scene.leader.log().len();
    let logged = ending.of(way, &scene.leader.db).await;
    assert_all_level(&scene, &what).await;
    let log = scene.leader.log().split_off(before);
    assert_eq!(scene.follower.log().split_off(before), log, "{what}");
    let log: Vec<String> = log.into_iter().map(without_label_key).collect();
    assert_eq!(sorted(log.clone()), sorted(logged), "{what}");
    assert_eq!(scene.leader.outbox(), 0, "{what}");
    log
}

/// Brings what is there before to the follower, whoever records.
async fn prime(scene: &Scene) {
    scene.level().await;
    if scene.leader.log().is_empty() {
        for text in ["p", "q"] {
            let page = page::Entity::find_by_id(text).one(&scene.leader.db).await.unwrap().unwrap();
            tidelog::force_record(&scene.leader.db, &page).await.unwrap();
        }
        for id in ["a", "b"] {
            let folder = folder::Entity::find_by_id(id).one(&scene.leader.db).await.unwrap().unwrap();
            tidelog::force_record(&scene.leader.db, &folder).await.unwrap();
        }
        // Raw SQL is not recorded by hooks; the pin is no part of what an ActiveModel writes here.
        scene.leader.sql("DELETE FROM pins").await;
    }
    assert_all_level(scene, "before").await;
}

#[tokio::test]
async fn every_way_of_writing_is_captured_if_and_only_if_it_is_committed() {
    for way in all_ways() {
        for ending in ENDINGS {
            captured(way, ending, register).await;
        }
    }
}

#[tokio::test]
async fn hooks_record_what_active_models_write_as_the_trigger_does() {
    fn by_hooks(builder: LibraryBuilder) -> LibraryBuilder {
        register(builder).capture(Recorder::Hooks)
    }
    for way in BY_ACTIVE_MODEL {
        for ending in [Ending::Autocommit, Ending::Commit, Ending::Rollback, Ending::Dropped] {
            let by_trigger = captured(way, ending, register).await;
            assert_eq!(captured(way, ending, by_hooks).await, by_trigger, "{way:?}, {ending:?}");
        }
    }
}

/// On a bare connection the hook speaks before the deletion, in a transaction of its own, and a seal may come between.
#[tokio::test]
async fn a_deletion_that_a_hook_announced_is_captured_whenever_it_comes() {
    fn by_hooks(builder: LibraryBuilder) -> LibraryBuilder {
        register(builder).capture(Recorder::Hooks)
    }
    let scene = Scene::set(SCHEMA, by_hooks).await;
    let db = &scene.leader.db;
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('a', 'one')").await;
    page("p", "kept").insert(db).await.unwrap();
    page("q", "deleted").insert(db).await.unwrap();
    for id in ["p", "q"] {
        behavior::before_delete::<page::Model, _>(page(id, ""), db).await.unwrap();
    }
    scene.assert_level("pages", "*").await;
    assert_eq!(scene.follower.dump("pages", "id").len(), 2, "announced is not deleted");
    scene.leader.sql("DELETE FROM pages WHERE id = 'q'").await;
    scene.assert_level("pages", "*").await;
    assert_eq!(scene.follower.log(), ["insert page p", "insert page q", "delete page q"]);
}

#[tokio::test]
async fn what_a_connection_that_knows_nothing_of_tidelog_commits_is_captured() {
    for way in BY_SQL {
        let Way::Sql(sql, logged) = way else { continue };
        for (commit, end) in [
            (true, "COMMIT"),
            (false, "ROLLBACK"),
            (false, "ROLLBACK TO inner; RELEASE inner; COMMIT"),
            (true, "RELEASE inner; COMMIT"),
        ] {
            let scene = Scene::set(SCHEMA, register).await;
            scene.leader.sql(BEFORE).await;
            assert_all_level(&scene, "before").await;
            let before = scene.leader.log().len();
            let file = scene.leader.file();
            // What SQLite leaves off by default; the limit without it is told below.
            file.execute_batch("PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON").unwrap();
            file.execute_batch(&format!("BEGIN; SAVEPOINT inner; {sql}; {end}")).unwrap();
            assert_all_level(&scene, sql).await;
            let log = scene.leader.log().split_off(before);
            let logged = if commit { logged.to_vec() } else { Vec::new() };
            assert_eq!(sorted(log), sorted(logged), "{sql}; {end}");
        }
    }
}

/// Documented limit: SQLite itself tells no trigger of the row that `REPLACE` removes over a second unique key on a
/// connection without `recursive_triggers`. It is not silent: the follower, which still has that row, says so.
#[tokio::test]
async fn a_row_replaced_by_a_connection_without_recursive_triggers_stops_the_follower_visibly() {
    let scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql("INSERT INTO folders (id, name) VALUES ('a', 'one')").await;
    assert_all_level(&scene, "before").await;
    scene
        .leader
        .file()
        .execute_batch("INSERT OR REPLACE INTO folders (id, name) VALUES ('c', 'ONE')")
        .unwrap();
    let status = scene.follower.until("stopped", |status| matches!(status.link, Link::Stopped { .. })).await;
    let Link::Stopped { reason } = status.link else { unreachable!() };
    assert_says(&reason, &["folder", "folders.name", "breaks a constraint", "nothing was changed"]);
    assert_eq!(scene.follower.dump("folders", "id"), ["text:61"], "its table is as it was");
}

#[tokio::test]
async fn an_update_that_changes_nothing_synced_records_nothing() {
    let scene = Scene::unstarted(SCHEMA, register).await;
    scene.leader.sql(BEFORE).await;
    let before = scene.leader.outbox();
    for nothing in [
        "UPDATE pages SET text = text, folder = folder",
        "UPDATE folders SET opened = 5",
        "UPDATE folders SET name = 'one', opened = 6 WHERE id = 'a'",
        "INSERT INTO folders (id, name) VALUES ('a', 'x') ON CONFLICT (id) DO UPDATE SET name = name",
        "INSERT OR IGNORE INTO folders (id, name) VALUES ('a', 'x')",
        "DELETE FROM pages WHERE id = 'nowhere'",
    ] {
        scene.leader.sql(nothing).await;
        assert_eq!(scene.leader.outbox(), before, "{nothing}");
    }
    let update = page::ActiveModel { id: Set("p".into()), folder: NotSet, text: Set(Some("first".into())) };
    update.update(&scene.leader.db).await.unwrap();
    assert_eq!(scene.leader.outbox(), before, "an ActiveModel that says what is there");
    scene.leader.sql("UPDATE pages SET text = 'x' WHERE id = 'p'").await;
    assert_eq!(scene.leader.outbox(), before + 1, "and one that changes something is seen");
}

#[tokio::test]
async fn a_change_that_sqlite_calls_equal_is_a_change() {
    let scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql("INSERT INTO folders (id, name, note) VALUES ('a', 'one', 1)").await;
    assert_all_level(&scene, "before").await;
    for (change, column, stored) in [
        ("UPDATE folders SET name = 'ONE'", "name", "text:4f4e45"),
        ("UPDATE folders SET note = 1.0", "note", "real:3ff0000000000000"),
        ("UPDATE folders SET note = 1", "note", "integer:1"),
        ("UPDATE folders SET note = '1'", "note", "text:31"),
        ("UPDATE folders SET note = x'31'", "note", "blob:31"),
        ("UPDATE folders SET note = NULL", "note", "null"),
    ] {
        scene.leader.sql(change).await;
        assert_all_level(&scene, change).await;
        assert_eq!(scene.follower.dump("folders", column), [stored], "{change}");
    }
}

/// Names the database to the process that is to be killed.
const VICTIM: &str = "TIDELOG_TEST_VICTIM";

/// Not a test by itself: the body of the process that the two tests below kill. It writes, says how far it is, and
/// waits for its end.
#[tokio::test]
async fn the_process_that_is_killed() {
    let Ok(what) = std::env::var(VICTIM) else { return };
    let (ending, file) = what.split_once(':').unwrap();
    let db = connect(&format!("sqlite://{file}")).await.unwrap();
    let txn = db.begin().await.unwrap();
    page("killed", "x").insert(&txn).await.unwrap();
    txn.execute_unprepared("UPDATE pages SET text = 'killed' WHERE id = 'p'").await.unwrap();
    // An uncommitted transaction stays open, in a place where it is not dropped.
    let _open = match ending {
        "committed" => txn.commit().await.map(|()| None).unwrap(),
        _ => Some(txn),
    };
    println!("READY");
    std::future::pending::<()>().await;
}

/// Runs the process above until it is where it waits, and kills it (SIGKILL).
fn kill_when(ending: &str, file: &Path) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture"])
        .env(VICTIM, format!("{ending}:{}", file.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("READY")), "it ended before it was killed");
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[tokio::test]
async fn a_process_killed_between_statement_and_commit_leaves_nothing_half_there() {
    let scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(BEFORE).await;
    assert_all_level(&scene, "before").await;
    let before = scene.leader.log();
    kill_when("uncommitted", scene.leader.path());
    assert_all_level(&scene, "after").await;
    assert_eq!(scene.leader.log(), before);
    assert_eq!(number(&scene.leader.file(), "SELECT count(*) FROM pages WHERE id = 'killed'"), 0);
    // And the database is none the worse for it.
    page("alive", "x").insert(&scene.leader.db).await.unwrap();
    assert_all_level(&scene, "afterwards").await;
    assert_eq!(scene.follower.log().split_off(before.len()), ["insert page alive"]);
}

#[tokio::test]
async fn what_a_process_committed_before_it_was_killed_is_captured() {
    // Killed while another process has the library open, and while nobody has.
    let scene = Scene::set(SCHEMA, register).await;
    scene.leader.sql(BEFORE).await;
    assert_all_level(&scene, "before").await;
    let before = scene.leader.log().len();
    kill_when("committed", scene.leader.path());
    assert_all_level(&scene, "after").await;
    assert_eq!(scene.follower.log().split_off(before), ["insert page killed", "update page p [text]"]);

    scene.leader.sql("DELETE FROM pages WHERE id = 'killed'").await;
    scene.leader.sql("UPDATE pages SET text = 'alive'").await;
    assert_all_level(&scene, "between").await;
    let before = scene.leader.log().len();
    let Scene { leader, follower, network, .. } = scene;
    let closed = leader.close().await;
    kill_when("committed", closed.path());
    let leader = closed.reopen(register).await.unwrap();
    leader.start(&network).await;
    leader.library.barrier().await.unwrap();
    follower.reached(&leader).await;
    assert_eq!(follower.log().split_off(before), ["insert page killed", "update page p [text]"]);
    assert_eq!(follower.dump("pages", "*"), leader.dump("pages", "*"));
}

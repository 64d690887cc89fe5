//! Nothing saved is lost: what did not stand is in the conflict records or in the dead letters of every device, with all
//! its values, and a person may decide otherwise.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tidelog::{
    ChangeKind, Choice, Conflict, DeadLetter, LibraryBuilder, Outcome, Row, Settlement,
    conflict::{ConflictState, Winner},
    dead_letter::DeadLetterState,
    id::{Position, Seq},
    queue::QueuedState,
    value::Value,
};
use tidelog_tests::{
    claims::{CLAIMS, claim},
    scene::{Device, Scene, assert_says, number, text},
    small::{TABLES, item, person, team},
};

/// A page that nobody but a person may merge.
#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod page {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "pages")]
    #[sync(model = "page", merge = "manual", deletes = "manual")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub title: String,
        pub body: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const PAGES: &str =
    "CREATE TABLE pages (id TEXT NOT NULL PRIMARY KEY, title TEXT NOT NULL, body TEXT NOT NULL)";

fn schema() -> String {
    format!("{}; {PAGES}", TABLES.join("; "))
}

fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<item::Entity>().model::<team::Entity>().model::<person::Entity>().model::<page::Entity>()
}

async fn scene(before: &str) -> Scene {
    let scene = Scene::set(&schema(), register).await;
    scene.leader.sql(before).await;
    scene.level().await;
    scene
}

/// A page of which the leader and the follower each made something else, both offline.
async fn two_titles() -> Scene {
    scene("INSERT INTO pages VALUES ('p', 'title', 'body')")
        .await
        .apart(
            register,
            &["UPDATE pages SET title = 'leader' WHERE id = 'p'"],
            &["UPDATE pages SET title = 'follower' WHERE id = 'p'"],
        )
        .await
}

/// All that is the same on every device is the same here, and nothing waits.
async fn assert_agreed(scene: &Scene) {
    for device in [&scene.follower, &scene.leader, &scene.follower] {
        device.library.barrier().await.unwrap();
    }
    for table in ["pages", "teams", "people", "sync_log", "sync_conflict", "sync_dead_letter"] {
        assert_eq!(scene.leader.dump(table, "*"), scene.follower.dump(table, "*"), "table `{table}`");
    }
    let items = "id, parent_id, name, place";
    assert_eq!(scene.leader.dump("items", items), scene.follower.dump("items", items));
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(number(&device.file(), "SELECT count(*) FROM sync_pending"), 0);
        assert_eq!(number(&device.file(), "SELECT count(*) FROM pragma_foreign_key_check"), 0);
    }
}

async fn only_conflict(device: &Device) -> Conflict {
    let mut conflicts = device.library.conflicts().await.unwrap();
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    conflicts.remove(0)
}

async fn only_dead_letter(device: &Device) -> DeadLetter {
    let mut letters = device.library.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    letters.remove(0)
}

fn page(device: &Device) -> String {
    let sql = "SELECT coalesce((SELECT title || ' ' || body FROM pages WHERE id = 'p'), 'gone')";
    text(&device.file(), sql)
}

fn text_of<'r>(row: Option<&'r Row>, column: &str) -> Option<&'r Value> {
    row.and_then(|row| row.get(column))
}

fn value(text: &str) -> Value {
    Value::Text(text.into())
}

fn row(columns: &[(&str, &str)]) -> Row {
    columns.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect()
}

#[tokio::test]
async fn a_conflict_waits_on_every_device_with_all_that_was_written() {
    let scene = two_titles().await;
    let (there, here) = (only_conflict(&scene.leader).await, only_conflict(&scene.follower).await);
    assert_eq!(there, here);
    assert_eq!((here.model.as_str(), here.record.as_str()), ("page", "p"));
    assert_eq!((here.field.as_deref(), here.state), (Some("title"), ConflictState::Open));
    assert_eq!((here.base.get("title"), here.winner), (Some(&value("title")), Winner::Local));
    assert_eq!(text_of(here.local.row.as_ref(), "title"), Some(&value("leader")));
    assert_eq!(text_of(here.remote.row.as_ref(), "title"), Some(&value("follower")));
    let device = |device: &Device| device.library.status().borrow().device;
    assert_eq!((here.local.device, here.remote.device), (device(&scene.leader), device(&scene.follower)));
    assert!(here.local.at.is_some() && here.remote.at.is_some());
    for device in [&scene.leader, &scene.follower] {
        device.until("a conflict is counted", |status| status.conflicts == 1).await;
        assert_eq!(page(device), "leader body", "what the log had stands meanwhile");
    }
    assert_agreed(&scene).await;
}

#[tokio::test]
async fn a_person_on_either_device_says_local_remote_or_merged() {
    let merged = Choice::Merged(row(&[("title", "both"), ("body", "new")]));
    for (choice, stands) in
        [(Choice::Local, "leader body"), (Choice::Remote, "follower body"), (merged, "both new")]
    {
        for by_leader in [true, false] {
            let scene = two_titles().await;
            let device = if by_leader { &scene.leader } else { &scene.follower };
            let id = only_conflict(device).await.id;
            device.library.resolve(id, choice.clone()).await.unwrap();
            assert_eq!(page(device), stands, "{choice:?} is here at once");
            assert_agreed(&scene).await;
            for device in [&scene.leader, &scene.follower] {
                assert_eq!(page(device), stands, "{choice:?}");
                assert_eq!(device.library.conflicts().await.unwrap(), []);
                let resolved = device.library.conflict(id).await.unwrap().unwrap();
                assert!(matches!(resolved.state, ConflictState::Resolved(_)), "{resolved:?}");
                device.until("no conflict is counted", |status| status.conflicts == 0).await;
            }
        }
    }
}

/// Answers as an application might: it asks somebody, panics over what it cannot understand, leaves the rest.
fn with_resolver(builder: LibraryBuilder) -> LibraryBuilder {
    register(builder).resolver(async |conflict: Conflict| {
        tokio::task::yield_now().await;
        let title = text_of(conflict.remote.row.as_ref(), "title");
        assert_ne!(title, Some(&value("panic")), "not understood");
        (title != Some(&value("leave"))).then(|| Choice::Merged(row(&[("title", "resolved")])))
    })
}

#[tokio::test]
async fn an_applications_resolver_is_asked_and_may_leave_it_to_a_person() {
    let pages =
        "INSERT INTO pages VALUES ('p', 'title', 'body'), ('q', 'title', 'body'), ('r', 'title', 'body')";
    let mut scene = scene(pages)
        .await
        .apart(
            register,
            &["UPDATE pages SET title = 'leader'"],
            &[
                "UPDATE pages SET title = 'panic' WHERE id = 'q'",
                "UPDATE pages SET title = 'leave' WHERE id = 'r'",
                "UPDATE pages SET title = 'follower' WHERE id = 'p'",
            ],
        )
        .await;
    scene.follower = scene.follower.close().await.reopen(with_resolver).await.unwrap();
    scene.follower.start(&scene.network).await;
    scene.leader.until("two conflicts are left", |status| status.conflicts == 2).await;
    scene.follower.until("they are here", |status| status.conflicts == 2).await;
    assert_agreed(&scene).await;
    assert_eq!(page(&scene.leader), "resolved body");
    let left: Vec<_> = scene.leader.library.conflicts().await.unwrap();
    assert_eq!(left.iter().map(|c| c.record.as_str()).collect::<Vec<_>>(), ["q", "r"]);
}

#[tokio::test]
async fn a_model_is_taken_apart_and_put_together_for_merging() {
    let scene = two_titles().await;
    let conflict = only_conflict(&scene.follower).await;
    let mut theirs: page::Model = conflict.local.row.as_ref().unwrap().model().unwrap();
    let mine: page::Model = conflict.remote.row.as_ref().unwrap().model().unwrap();
    assert_eq!((theirs.title.as_str(), mine.title.as_str()), ("leader", "follower"));
    theirs.title = format!("{} and {}", theirs.title, mine.title);
    scene.follower.library.resolve(conflict.id, Choice::Merged(Row::of(&theirs).unwrap())).await.unwrap();
    assert_agreed(&scene).await;
    assert_eq!(page(&scene.leader), "leader and follower body");
}

#[tokio::test]
async fn a_decision_about_what_was_written_over_meanwhile_is_asked_for_again() {
    let mut scene = two_titles().await;
    let id = only_conflict(&scene.follower).await.id;
    // The follower decides offline, on what the leader has changed by then.
    let closed = scene.follower.close().await;
    scene.leader.sql("UPDATE pages SET title = 'moved' WHERE id = 'p'").await;
    scene.leader.library.barrier().await.unwrap();
    scene.follower = closed.reopen(register).await.unwrap();
    let decided = Choice::Merged(row(&[("title", "decided too early")]));
    scene.follower.library.resolve(id, decided).await.unwrap();
    assert_eq!(page(&scene.follower), "decided too early body");
    let waits = scene.follower.library.conflict(id).await.unwrap().unwrap();
    assert!(waits.being_decided);
    scene.follower.start(&scene.network).await;
    let settled = scene.follower.library.settled("page", "p").await.unwrap();
    let outcomes: Vec<&Outcome> = settled.iter().map(|s| &s.outcome).collect();
    assert_eq!(outcomes, [&Outcome::Superseded { conflicts: vec![] }]);
    assert_agreed(&scene).await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(page(device), "moved body");
        let again = only_conflict(device).await;
        assert_eq!((again.id, again.state, again.being_decided), (id, ConflictState::Open, false));
        assert_eq!(text_of(again.local.row.as_ref(), "title"), Some(&value("moved")), "what is there now");
    }
    let log = text(
        &scene.leader.file(),
        "SELECT group_concat(coalesce(change, '')) FROM sync_entry WHERE record = 'p'",
    );
    assert!(log.contains("decided too early"), "what was typed is not lost: {log}");
    scene.follower.library.resolve(id, Choice::Remote).await.unwrap();
    assert_agreed(&scene).await;
    assert_eq!(page(&scene.leader), "follower body");
}

#[tokio::test]
async fn what_a_person_leaves_as_it_is_is_what_the_log_has_by_then() {
    for (meanwhile, stands) in
        [("UPDATE pages SET title = 'moved' WHERE id = 'p'", "moved body"), ("DELETE FROM pages", "gone")]
    {
        let scene = two_titles().await;
        scene.leader.sql(meanwhile).await;
        scene.level().await;
        let id = only_conflict(&scene.follower).await.id;
        scene.follower.library.resolve(id, Choice::Local).await.unwrap();
        assert_agreed(&scene).await;
        assert_eq!(page(&scene.leader), stands);
        assert_eq!(scene.leader.library.conflicts().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_resolver_whose_answer_came_too_late_is_asked_again() {
    let mut scene = two_titles().await;
    let closed = scene.follower.close().await;
    scene.leader.sql("UPDATE pages SET title = 'moved' WHERE id = 'p'").await;
    scene.leader.library.barrier().await.unwrap();
    // It answers before anything is pulled.
    scene.follower = closed.reopen(with_resolver).await.unwrap();
    scene.follower.start(&scene.network).await;
    scene.leader.until("it is decided", |status| status.conflicts == 0).await;
    assert_agreed(&scene).await;
    assert_eq!(page(&scene.leader), "resolved body");
}

#[tokio::test]
async fn of_two_who_decide_the_first_stands() {
    let mut scene = two_titles().await;
    let id = only_conflict(&scene.follower).await.id;
    let closed = scene.follower.close().await;
    scene.leader.library.resolve(id, Choice::Local).await.unwrap();
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.library.resolve(id, Choice::Remote).await.unwrap();
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene).await;
    assert_eq!(page(&scene.follower), "leader body");
    assert_eq!(scene.follower.library.conflicts().await.unwrap(), []);
}

#[tokio::test]
async fn an_author_who_writes_again_has_one_conflict_with_the_newest() {
    let scene = scene("INSERT INTO pages VALUES ('p', 'title', 'body')")
        .await
        .apart(
            register,
            &["UPDATE pages SET title = 'leader' WHERE id = 'p'"],
            &["UPDATE pages SET title = 'first' WHERE id = 'p'"],
        )
        .await
        .apart(
            register,
            &["UPDATE pages SET title = 'leader again' WHERE id = 'p'"],
            &["UPDATE pages SET title = 'second' WHERE id = 'p'"],
        )
        .await;
    let conflict = only_conflict(&scene.leader).await;
    assert_eq!(text_of(conflict.remote.row.as_ref(), "title"), Some(&value("second")));
    let all = scene.follower.library.conflicts_since(Seq(0)).await.unwrap();
    let states: Vec<_> = all.iter().map(|c| c.state).collect();
    assert_eq!(states, [ConflictState::Superseded(conflict.seq), ConflictState::Open]);
    assert_agreed(&scene).await;
}

#[tokio::test]
async fn a_person_decides_whether_a_deletion_stands() {
    for (delete_first, choice, stands) in [
        (true, Choice::Local, "gone"),
        (true, Choice::Remote, "title mine"),
        (false, Choice::Local, "title mine"),
        (false, Choice::Remote, "gone"),
    ] {
        let (deletes, updates) =
            ("DELETE FROM pages WHERE id = 'p'", "UPDATE pages SET body = 'mine' WHERE id = 'p'");
        let (leader, follower) = if delete_first { (deletes, updates) } else { (updates, deletes) };
        let scene = scene("INSERT INTO pages VALUES ('p', 'title', 'body')")
            .await
            .apart(register, &[leader], &[follower])
            .await;
        let conflict = only_conflict(&scene.follower).await;
        assert_eq!(conflict.field, None, "it is about the record being there");
        assert_eq!(
            (conflict.local.row.is_none(), conflict.remote.row.is_none()),
            (delete_first, !delete_first)
        );
        scene.follower.library.resolve(conflict.id, choice.clone()).await.unwrap();
        assert_agreed(&scene).await;
        assert_eq!(page(&scene.leader), stands, "{choice:?}, deleted on the leader: {delete_first}");
    }
}

#[tokio::test]
async fn what_the_policy_decided_can_be_decided_otherwise() {
    // Items go to the later change; the follower's clock is behind.
    let scene = scene("INSERT INTO items (id, name) VALUES ('a', 'first')")
        .await
        .apart(
            register,
            &["UPDATE items SET name = 'leader' WHERE id = 'a'"],
            &["UPDATE sync_ctl SET clock = 1000", "UPDATE items SET name = 'follower' WHERE id = 'a'"],
        )
        .await;
    assert_eq!(scene.leader.library.conflicts().await.unwrap(), [], "nobody has to decide");
    let decided = scene.leader.library.conflicts_since(Seq(0)).await.unwrap();
    assert_eq!(decided.len(), 1, "{decided:?}");
    assert_eq!((decided[0].state, decided[0].winner), (ConflictState::Auto, Winner::Local));
    scene.leader.library.resolve(decided[0].id, Choice::Remote).await.unwrap();
    assert_agreed(&scene).await;
    assert_eq!(text(&scene.follower.file(), "SELECT name FROM items"), "follower");
}

/// A place that both took, which no two may; the follower's is refused.
async fn one_place() -> Scene {
    scene("INSERT INTO items (id, name, place) VALUES ('a', 'first', 1)")
        .await
        .apart(
            register,
            &["INSERT INTO items (id, name, place) VALUES ('l', 'leader', 2)"],
            &["UPDATE items SET place = 2, name = 'moved' WHERE id = 'a'"],
        )
        .await
}

#[tokio::test]
async fn a_refused_change_is_a_dead_letter_with_all_it_held() {
    let scene = one_place().await;
    let (there, here) = (only_dead_letter(&scene.leader).await, only_dead_letter(&scene.follower).await);
    assert_eq!(there, here);
    assert_eq!((here.model.as_str(), here.record.as_str()), ("item", "a"));
    assert_eq!(here.changed.as_deref(), Some(["name".to_owned(), "place".to_owned()].as_slice()));
    assert_eq!(
        (here.values.get("name"), here.base.get("name")),
        (Some(&value("moved")), Some(&value("first")))
    );
    assert_eq!(text_of(here.standing.as_ref(), "place"), Some(&Value::Integer(1)));
    assert_says(&here.reason, &["UNIQUE", "items.place"]);
    scene.follower.until("a dead letter is counted", |status| status.dead_letters == 1).await;
    assert_eq!(
        text(&scene.follower.file(), "SELECT name FROM items WHERE id = 'a'"),
        "first",
        "as the leader has it"
    );
    assert_agreed(&scene).await;
}

#[tokio::test]
async fn a_dead_letter_is_retried_once_what_was_in_its_way_is_gone() {
    let scene = one_place().await;
    let letter = only_dead_letter(&scene.follower).await;
    let error = scene.follower.library.retry(letter.id).await.unwrap_err().to_string();
    assert_says(&error, &[&format!("dead letter {}", letter.id), "UNIQUE", "nothing was changed", "first"]);
    scene.leader.sql("DELETE FROM items WHERE id = 'l'").await;
    scene.level().await;
    scene.follower.library.retry(letter.id).await.unwrap();
    assert_agreed(&scene).await;
    assert_eq!(number(&scene.leader.file(), "SELECT place FROM items WHERE name = 'moved'"), 2);
    assert_eq!(scene.leader.library.dead_letters().await.unwrap(), []);
    let retried = scene.leader.library.dead_letter(letter.id).await.unwrap().unwrap();
    assert!(matches!(retried.state, DeadLetterState::Retried(_)), "{retried:?}");
    let error = scene.follower.library.discard(letter.id).await.unwrap_err().to_string();
    assert_says(&error, &["decided already", "nothing was changed"]);
}

#[tokio::test]
async fn a_dead_letter_is_changed_and_retried() {
    let scene = one_place().await;
    let letter = only_dead_letter(&scene.leader).await;
    let unknown = scene.leader.library.retry_with(letter.id, row(&[("colour", "red")])).await.unwrap_err();
    assert_says(&unknown.to_string(), &["no synced column `colour`", "nothing was changed", "name"]);
    let edited = Row::from_iter([("place".to_owned(), Value::Integer(3))]);
    scene.leader.library.retry_with(letter.id, edited).await.unwrap();
    assert_agreed(&scene).await;
    let items =
        "SELECT group_concat(id || ' ' || name || ' ' || place) FROM (SELECT * FROM items ORDER BY id)";
    assert_eq!(text(&scene.follower.file(), items), "a moved 3,l leader 2");
    scene.follower.until("no dead letter is counted", |status| status.dead_letters == 0).await;
}

#[tokio::test]
async fn what_is_refused_again_is_a_dead_letter_in_the_others_place() {
    let mut scene = one_place().await;
    let first = only_dead_letter(&scene.follower).await;
    let closed = scene.follower.close().await;
    scene.leader.sql("INSERT INTO items (id, name, place) VALUES ('m', 'leader', 4)").await;
    scene.leader.library.barrier().await.unwrap();
    scene.follower = closed.reopen(register).await.unwrap();
    let edited = Row::from_iter([("place".to_owned(), Value::Integer(4))]);
    scene.follower.library.retry_with(first.id, edited).await.unwrap();
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene).await;
    let second = only_dead_letter(&scene.leader).await;
    assert_ne!(second.id, first.id);
    assert_eq!(second.values.get("place"), Some(&Value::Integer(4)));
}

#[tokio::test]
async fn a_dead_letter_is_given_up_and_all_are_exported() {
    let scene = one_place().await;
    let letter = only_dead_letter(&scene.follower).await;
    scene.follower.library.discard(letter.id).await.unwrap();
    assert_agreed(&scene).await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(device.library.dead_letters().await.unwrap(), []);
    }
    let file = scene.leader.path().with_extension("letters");
    assert_eq!(scene.leader.library.export_dead_letters(&file).await.unwrap(), 1);
    let line = std::fs::read_to_string(&file).unwrap();
    let exported: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    assert_eq!(exported["id"], letter.id.to_string());
    assert_eq!((&exported["values"]["name"], &exported["state"]), (&"moved".into(), &"discarded".into()));
    let again = scene.leader.library.export_dead_letters(&file).await.unwrap_err().to_string();
    assert_says(&again, &["exporting dead letters", "exists", "nothing was changed"]);
}

#[tokio::test]
async fn who_asks_is_told_what_became_of_a_change() {
    let scene =
        scene("INSERT INTO items (id, name, place) VALUES ('a', 'first', 1), ('b', 'first', 2)").await;
    scene.follower.sql("INSERT INTO items (id, name) VALUES ('n', 'new')").await;
    let settled = scene.follower.library.settled("item", "n").await.unwrap();
    assert!(
        matches!(settled.as_slice(), [Settlement { outcome: Outcome::Applied, row: Some(_), .. }]),
        "{settled:?}"
    );
    assert_eq!(scene.follower.library.settled("item", "n").await.unwrap(), [], "nothing is pending any more");
    assert_eq!(scene.follower.library.settled("item", "nobody").await.unwrap(), []);
    assert_agreed(&scene).await;
}

#[tokio::test]
async fn the_queue_shows_what_waits_for_the_leader() {
    let mut scene = scene("INSERT INTO items (id, name) VALUES ('a', 'first'), ('b', 'first')").await;
    let closed = scene.follower.close().await;
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.sql("UPDATE items SET name = 'mine' WHERE id = 'a'").await;
    scene.follower.sql("DELETE FROM items WHERE id = 'b'").await;
    assert_eq!(scene.follower.library.settled("item", "nobody").await.unwrap(), []);
    let queue = scene.follower.library.queue(i64::MIN).await.unwrap();
    let told: Vec<_> =
        queue.iter().map(|q| (q.record.as_str(), q.kind.unwrap(), q.values.to_json())).collect();
    assert_eq!(
        told,
        [
            ("a", ChangeKind::Upsert, r#"{"name":"mine"}"#.to_owned()),
            ("b", ChangeKind::Delete, r#"{"id":"b"}"#.to_owned())
        ]
    );
    assert!(queue.iter().all(|q| q.state == QueuedState::Waiting && q.model == "item"));
    assert_eq!(scene.follower.library.queue(queue[0].place).await.unwrap(), queue[1..]);
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene).await;
    assert_eq!(scene.follower.library.queue(i64::MIN).await.unwrap(), []);
}

#[tokio::test]
async fn settlements_are_told_once_and_in_order_whatever_restarts() {
    let mut scene = one_place().await;
    let mut settlements = scene.follower.library.settlements(Position::EMPTY);
    let refused = settlements.next().await.unwrap();
    let Outcome::Rejected { dead_letter, reason } = &refused.outcome else { panic!("{refused:?}") };
    assert_eq!(*dead_letter, Some(only_dead_letter(&scene.follower).await.id));
    assert_says(reason, &["UNIQUE"]);
    assert_eq!(text_of(refused.row.as_ref(), "name"), Some(&value("first")), "as the leader has it");
    scene.follower.sql("INSERT INTO items (id, name) VALUES ('n', 'new'), ('m', 'new')").await;
    scene.follower.library.barrier().await.unwrap();
    scene = scene
        .apart(
            register,
            &["UPDATE items SET name = 'leader'"],
            &["UPDATE sync_ctl SET clock = 1000", "UPDATE items SET name = 'x' WHERE id = 'n'"],
        )
        .await;
    let mut settlements = scene.follower.library.settlements(refused.position);
    let mut told = Vec::new();
    for _ in 0..3 {
        let next = settlements.next().await.unwrap();
        told.push((next.record, next.outcome));
    }
    assert_eq!(told[0], ("n".to_owned(), Outcome::Applied));
    assert_eq!(told[1], ("m".to_owned(), Outcome::Applied));
    assert!(
        matches!(&told[2], (record, Outcome::Superseded { conflicts }) if record == "n" && conflicts.len() == 1)
    );
    let mut later = scene.leader.library.settlements(Position::EMPTY);
    assert_eq!(
        later.next().await.unwrap().outcome,
        Outcome::Applied,
        "a leader's own changes settle at once"
    );
}

#[tokio::test]
async fn a_record_explains_itself() {
    let scene = two_titles().await;
    let id = only_conflict(&scene.follower).await.id;
    scene.follower.library.resolve(id, Choice::Remote).await.unwrap();
    assert_agreed(&scene).await;
    let why = scene.leader.library.why("page", "p").await.unwrap();
    assert_eq!(why, scene.follower.library.why("page", "p").await.unwrap(), "the same on every device");
    let told = why.to_string();
    assert_says(
        &told,
        &[
            "page p, by the policy manual",
            "inserted id = \"p\", title = \"title\", body = \"body\"",
            "updated title \"title\" -> \"leader\"\n",
            "updated title \"title\" -> \"follower\"; waits for somebody to decide",
            "updated by a decision title \"leader\" -> \"follower\"\n",
            "title = \"follower\", by entry ",
        ],
    );
    let nobody = scene.leader.library.why("page", "nobody").await.unwrap();
    assert_says(&nobody.to_string(), &["the log has never heard of it"]);
}

#[tokio::test]
async fn a_decision_that_the_database_refuses_at_its_end_says_so_too() {
    let scene = scene("INSERT INTO items (id, name) VALUES ('a', ''), ('p', ''), ('q', '')")
        .await
        .apart(
            register,
            &["UPDATE items SET parent_id = 'p' WHERE id = 'a'"],
            &["UPDATE sync_ctl SET clock = 1000", "UPDATE items SET parent_id = 'q' WHERE id = 'a'"],
        )
        .await;
    // What the other side referred to is gone, which is looked at when all is written.
    scene.leader.sql("DELETE FROM items WHERE id = 'q'").await;
    scene.level().await;
    let conflict = scene.leader.library.conflicts_since(Seq(0)).await.unwrap().remove(0);
    for device in [&scene.leader, &scene.follower] {
        let error = device.library.resolve(conflict.id, Choice::Remote).await.unwrap_err();
        assert!(matches!(error, tidelog::Error::NotDecided { .. }));
        let parts =
            [&format!("conflict {}", conflict.id), "FOREIGN KEY", "nothing was changed", "decide otherwise"];
        assert_says(&error.to_string(), &parts);
    }
    assert_agreed(&scene).await;
    assert_eq!(text(&scene.leader.file(), "SELECT parent_id FROM items WHERE id = 'a'"), "p");
}

#[tokio::test]
async fn a_decision_that_cannot_be_made_says_so() {
    let scene = two_titles().await;
    let conflict = only_conflict(&scene.leader).await;
    let library = &scene.leader.library;
    let cases = [
        (row(&[("colour", "red")]), "no synced column `colour`"),
        (row(&[("id", "q")]), "another record's, q"),
        (row(&[("title", &"x".repeat(4 << 20))]), "over the limit of 1310720 bytes"),
    ];
    for (row, reason) in cases {
        let error = library.resolve(conflict.id, Choice::Merged(row)).await.unwrap_err().to_string();
        assert_says(&error, &[&format!("conflict {}", conflict.id), reason, "nothing was changed"]);
    }
    let unknown = tidelog::ConflictId(tidelog::id::LibraryId::random().0);
    let error = library.resolve(unknown, Choice::Local).await.unwrap_err().to_string();
    assert_says(&error, &["knows no such conflict", "nothing was changed", "List them"]);
    library.resolve(conflict.id, Choice::Local).await.unwrap();
    let error = library.resolve(conflict.id, Choice::Remote).await.unwrap_err().to_string();
    assert_says(&error, &["decided already", "nothing was changed"]);
    assert_agreed(&scene).await;
}

#[tokio::test]
async fn conflicts_with_what_one_cascade_did_are_told_apart_and_decided_each_by_itself() {
    let mut scene = scene(
        "INSERT INTO teams VALUES ('t', 'team', NULL);
         INSERT INTO people VALUES ('p', 'p', 't'), ('q', 'q', 't');
         INSERT INTO teams VALUES ('u', 'u', 'p'), ('v', 'v', 'p')",
    )
    .await;
    let other = scene.join(3, &schema(), register).await;
    other.reached(&scene.leader).await;
    // Deleted where nothing cascades: the leader does both teams as part of one change.
    let away = other.close().await;
    away.file().execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM people WHERE id = 'p'").unwrap();
    let closed = scene.follower.close().await;
    drop(away.back(&scene.network, register).await);
    scene.follower = closed.reopen(register).await.unwrap();
    scene.follower.sql("UPDATE teams SET lead_id = 'q' WHERE id IN ('u', 'v')").await;
    scene.follower.start(&scene.network).await;
    assert_agreed(&scene).await;
    let conflicts = scene.leader.library.conflicts_since(Seq(0)).await.unwrap();
    let of: Vec<_> = conflicts.iter().map(|c| (c.record.as_str(), c.winner, c.state)).collect();
    let auto = ConflictState::Auto;
    assert_eq!(of, [("u", Winner::Remote, auto), ("v", Winner::Remote, auto)]);
    scene.leader.library.resolve(conflicts[0].id, Choice::Local).await.unwrap();
    assert_agreed(&scene).await;
    let leads = "SELECT group_concat(id || ' ' || coalesce(lead_id, 'nobody')) FROM teams WHERE id <> 't'";
    assert_eq!(text(&scene.follower.file(), leads), "u nobody,v q");
    let second = scene.follower.library.conflict(conflicts[1].id).await.unwrap().unwrap();
    assert_eq!((second.record.as_str(), second.state), ("v", ConflictState::Auto));
}

/// A number that others add to, at a place of its own.
#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod score {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "scores")]
    #[sync(model = "score", merge = "fields")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        #[sea_orm(unique)]
        pub place: i64,
        #[sync(merge = "sum")]
        pub count: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const SCORES: &str = "CREATE TABLE scores (id TEXT NOT NULL PRIMARY KEY, place INTEGER NOT NULL UNIQUE, count INTEGER NOT NULL)";

fn register_scores(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<score::Entity>()
}

#[tokio::test]
async fn what_a_refused_change_added_is_added_when_it_is_retried() {
    for (edited, count) in [(None, 25), (Some(7), 7)] {
        let scene = Scene::set(SCORES, register_scores).await;
        scene.leader.sql("INSERT INTO scores VALUES ('s', 1, 10)").await;
        scene.level().await;
        let scene = scene
            .apart(
                register_scores,
                &["INSERT INTO scores VALUES ('l', 2, 0)", "UPDATE scores SET count = 20 WHERE id = 's'"],
                &["UPDATE scores SET place = 2, count = 15 WHERE id = 's'"],
            )
            .await;
        let letter = only_dead_letter(&scene.follower).await;
        scene.leader.sql("DELETE FROM scores WHERE id = 'l'").await;
        scene.level().await;
        let edited: Row = edited.into_iter().map(|n| ("count".to_owned(), Value::Integer(n))).collect();
        scene.follower.library.retry_with(letter.id, edited).await.unwrap();
        scene.follower.level().await;
        assert_eq!(number(&scene.leader.file(), "SELECT count FROM scores WHERE place = 2"), count);
    }
}

#[tokio::test]
async fn a_deletion_that_is_retried_when_somebody_has_deleted_the_record_ends_its_dead_letter() {
    // Only the leader has a table that refers to the record.
    let scene = Scene::set(SCORES, register_scores).await;
    let holds = "CREATE TABLE holds (id TEXT PRIMARY KEY, score TEXT NOT NULL REFERENCES scores (id))";
    scene.leader.sql(&format!("{holds}; INSERT INTO scores VALUES ('s', 1, 1)")).await;
    scene.level().await;
    scene.leader.sql("INSERT INTO holds VALUES ('h', 's')").await;
    scene.follower.sql("DELETE FROM scores WHERE id = 's'").await;
    scene.follower.level().await;
    let letter = only_dead_letter(&scene.follower).await;
    let mut scene = scene;
    let closed = scene.follower.close().await;
    scene.leader.sql("DELETE FROM holds").await;
    scene.leader.sql("DELETE FROM scores").await;
    scene.leader.library.barrier().await.unwrap();
    scene.follower = closed.reopen(register_scores).await.unwrap();
    scene.follower.library.retry(letter.id).await.unwrap();
    scene.follower.start(&scene.network).await;
    scene.follower.level().await;
    for device in [&scene.leader, &scene.follower] {
        let letter = device.library.dead_letter(letter.id).await.unwrap().unwrap();
        assert!(matches!(letter.state, DeadLetterState::Retried(_)), "{letter:?}");
    }
}

/// What is said of a page, and goes with it.
#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod remark {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "remarks")]
    #[sync(model = "remark")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub page_id: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

#[tokio::test]
async fn a_decision_that_comes_too_late_takes_what_it_cascaded_with_it() {
    fn with_remarks(builder: LibraryBuilder) -> LibraryBuilder {
        builder.model::<page::Entity>().model::<remark::Entity>()
    }
    let remarks = "CREATE TABLE remarks (id TEXT NOT NULL PRIMARY KEY,
        page_id TEXT NOT NULL REFERENCES pages (id) ON DELETE CASCADE)";
    let scene = Scene::set(&format!("{PAGES}; {remarks}"), with_remarks).await;
    scene
        .leader
        .sql("INSERT INTO pages VALUES ('p', 'title', 'body'); INSERT INTO remarks VALUES ('r', 'p')")
        .await;
    scene.level().await;
    let mut scene = scene
        .apart(
            with_remarks,
            &["UPDATE pages SET title = 'leader' WHERE id = 'p'"],
            &["PRAGMA foreign_keys = OFF", "DELETE FROM pages WHERE id = 'p'"],
        )
        .await;
    let id = only_conflict(&scene.follower).await.id;
    let closed = scene.follower.close().await;
    scene.leader.library.resolve(id, Choice::Local).await.unwrap();
    scene.leader.library.barrier().await.unwrap();
    scene.follower = closed.reopen(with_remarks).await.unwrap();
    scene.follower.library.resolve(id, Choice::Remote).await.unwrap();
    assert_eq!(number(&scene.follower.file(), "SELECT count(*) FROM remarks"), 0, "it is here at once");
    scene.follower.start(&scene.network).await;
    scene.follower.level().await;
    for device in [&scene.leader, &scene.follower] {
        assert_eq!(page(device), "leader body");
        assert_eq!(number(&device.file(), "SELECT count(*) FROM remarks"), 1);
    }
}

#[tokio::test]
async fn who_may_not_write_a_record_decides_no_conflict_of_it() {
    fn with_claims(builder: LibraryBuilder) -> LibraryBuilder {
        builder.model::<claim::Entity>()
    }
    let scene = Scene::set(CLAIMS, with_claims).await;
    scene.leader.sql("INSERT INTO claims VALUES ('c', NULL, 'name')").await;
    scene.level().await;
    let scene = scene
        .apart(with_claims, &["UPDATE claims SET name = 'leader'"], &["UPDATE claims SET name = 'follower'"])
        .await;
    let id = scene.follower.library.conflicts_since(Seq(0)).await.unwrap()[0].id;
    let owner = scene.leader.library.status().borrow().device.unwrap();
    scene.leader.sql(&format!("UPDATE claims SET owner = '{owner}', name = 'mine'")).await;
    scene.level().await;
    let other = Choice::Merged(row(&[("name", "theirs")]));
    scene.follower.library.resolve(id, other).await.unwrap();
    scene.follower.level().await;
    assert_eq!(text(&scene.follower.file(), "SELECT name FROM claims"), "mine");
    assert_says(&only_dead_letter(&scene.leader).await.reason, &["belongs to device"]);
}

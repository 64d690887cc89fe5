//! A record that has an owner is written by its owner: everybody else is told at once by the hooks, and refused by the
//! leader where the hooks are passed by. The leader is no exception.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use sea_orm::{
    ActiveModelTrait, ConnectionTrait, EntityTrait, IntoActiveModel, ModelTrait, Set, TransactionTrait,
};
use tidelog::LibraryBuilder;
use tidelog_tests::{
    devices::tamper,
    scene::{Closed, Device, Scene, assert_says, number, text},
};

#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod sheet {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "sheets")]
    #[sync(model = "sheet", owner = "owner")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub owner: Option<String>,
        pub text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<sheet::Entity>()
}

async fn scene() -> Scene {
    Scene::set("CREATE TABLE sheets (id BLOB PRIMARY KEY NOT NULL, owner TEXT, text TEXT NOT NULL)", register)
        .await
}

fn device(device: &Device) -> String {
    device.library.status().borrow().device.unwrap().to_string()
}

async fn made_by(owner: &Device) -> sheet::Model {
    let made = sheet::ActiveModel {
        owner: Set(Some(device(owner))),
        text: Set("mine".into()),
        ..Default::default()
    };
    let made = made.insert(&owner.db).await.unwrap();
    owner.library.barrier().await.unwrap();
    made
}

async fn level(scene: &Scene) {
    scene.follower.library.barrier().await.unwrap();
    scene.level().await;
    assert_eq!(scene.leader.dump("sheets", "*"), scene.follower.dump("sheets", "*"));
}

#[tokio::test]
async fn who_does_not_own_a_record_is_told_at_once() {
    let scene = scene().await;
    let sheet = made_by(&scene.follower).await;
    level(&scene).await;
    let others = sheet::Entity::find_by_id(sheet.id).one(&scene.leader.db).await.unwrap().unwrap();
    let mut changed = others.clone().into_active_model();
    changed.text = Set("by the leader".into());
    for error in [
        changed.update(&scene.leader.db).await.unwrap_err().to_string(),
        others.delete(&scene.leader.db).await.unwrap_err().to_string(),
    ] {
        assert_says(
            &error,
            &["sheet", &device(&scene.follower), &device(&scene.leader), "nothing was written"],
        );
    }
    let in_anothers_name = sheet::ActiveModel {
        owner: Set(Some("somebody".into())),
        text: Set(String::new()),
        ..Default::default()
    };
    let error = in_anothers_name.insert(&scene.follower.db).await.unwrap_err().to_string();
    assert_says(&error, &["belongs to device somebody"]);
    // Nobody's is everybody's, until somebody takes it.
    let free = sheet::ActiveModel { owner: Set(None), text: Set("free".into()), ..Default::default() };
    let free = free.insert(&scene.leader.db).await.unwrap();
    level(&scene).await;
    let mut taken = free.into_active_model();
    taken.owner = Set(Some(device(&scene.follower)));
    taken.update(&scene.follower.db).await.unwrap();
    level(&scene).await;
    assert_eq!(number(&scene.leader.file(), "SELECT count(*) FROM sheets WHERE owner IS NOT NULL"), 2);
}

#[tokio::test]
async fn what_passes_the_hooks_by_is_refused_on_the_leader_too_and_kept() {
    let scene = scene().await;
    made_by(&scene.follower).await;
    level(&scene).await;
    scene.leader.sql("UPDATE sheets SET text = 'by the leader'").await;
    level(&scene).await;
    assert_eq!(text(&scene.leader.file(), "SELECT text FROM sheets"), "mine");
    scene.leader.sql("DELETE FROM sheets").await;
    level(&scene).await;
    assert_eq!(text(&scene.leader.file(), "SELECT text FROM sheets"), "mine");
    let letters = scene.follower.library.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 2);
    assert_says(&letters[0].reason, &["belongs to device", &device(&scene.follower)]);
    assert!(letters[0].values.to_json().contains("by the leader"));
    // Who gives a dead letter up writes nothing that could be refused.
    for letter in letters {
        scene.leader.library.discard(letter.id).await.unwrap();
    }
    level(&scene).await;
    assert_eq!(scene.follower.library.dead_letters().await.unwrap(), []);
}

#[tokio::test]
async fn of_two_lives_of_an_owners_change_one_stands_and_the_other_is_kept() {
    let schema = "CREATE TABLE sheets (id BLOB PRIMARY KEY NOT NULL, owner TEXT, text TEXT NOT NULL)";
    let mut scene = scene().await;
    made_by(&scene.follower).await;
    let other = scene.join(9, schema, register).await;
    let closed = std::mem::replace(&mut scene.follower, other).close().await;
    let owner = closed.reopen(register).await.unwrap();
    owner.sql("UPDATE sheets SET text = 'one'").await;
    // Asking what is pending seals first.
    assert_eq!(owner.library.settled("sheet", "nobody").await.unwrap(), []);
    let closed = owner.close().await;
    // Of the same number, another change.
    let file = closed.path().with_file_name("twin");
    tamper(closed.path(), "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(closed.path(), &file).unwrap();
    tamper(&file, "UPDATE sync_pending SET tag = tag + 1, data = replace(data, 'one', 'two')");
    let owner = closed.reopen(register).await.unwrap();
    owner.start(&scene.network).await;
    owner.sql("UPDATE sheets SET text = 'newer'").await;
    owner.library.barrier().await.unwrap();
    let carrier = Closed::of(file, 3).reopen(register).await.unwrap();
    carrier.start(&scene.network).await;
    carrier.library.barrier().await.unwrap();
    level(&scene).await;
    assert_eq!(text(&scene.leader.file(), "SELECT text FROM sheets"), "newer");
    assert_eq!(scene.leader.library.dead_letters().await.unwrap().len(), 0);
    let lost =
        "SELECT count(*) FROM sync_conflict c JOIN sync_entry e USING (seq) WHERE e.change LIKE '%two%'";
    assert_eq!(number(&scene.leader.file(), lost), 1);
}

#[tokio::test]
async fn several_changes_of_one_seal_to_a_record_of_another_leave_the_leader_with_what_the_log_has() {
    let scene = scene().await;
    made_by(&scene.follower).await;
    level(&scene).await;
    // Each mark makes a change of its own: the second one's author saw the first, which does not stand.
    let tx = scene.leader.db.begin().await.unwrap();
    for statement in [
        "UPDATE sheets SET owner = NULL, text = 'one'",
        "UPDATE sync_ctl SET mark = 'm'",
        "UPDATE sheets SET text = 'two'",
        "UPDATE sync_ctl SET mark = NULL",
    ] {
        tx.execute_unprepared(statement).await.unwrap();
    }
    tx.commit().await.unwrap();
    level(&scene).await;
    assert_eq!(text(&scene.leader.file(), "SELECT text FROM sheets"), "mine");
    assert_eq!(scene.follower.library.dead_letters().await.unwrap().len(), 2);
}

//! What a model keeps of its records' history: times that are filled by themselves, and deletions that are updates.

#![allow(unreachable_pub, reason = "the entities are written as an application writes them")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chrono::{DateTime, FixedOffset, Local, NaiveDateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DbErr, EntityTrait, IntoActiveModel, ModelTrait, PaginatorTrait,
    QueryFilter, Set, TransactionTrait, Unchanged, sea_query::Expr,
};
use tidelog::{
    FindLive, SoftDelete, Syncable,
    metadata::Metadata,
    model::{ModelDescriptor, SyncOptions},
    testing::{Pair, pair},
};
use uuid::Uuid;

mod note {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "notes")]
    #[sync(model = "note", merge = "fields")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub text: String,
        #[sync(local)]
        pub scroll: Option<i64>,
        #[sync(created_at)]
        pub created_at: DateTimeUtc,
        #[sea_orm(column_name = "changed")]
        #[sync(updated_at, merge = "max")]
        pub updated_at: DateTimeUtc,
        #[sync(soft_delete)]
        pub deleted_at: Option<DateTimeUtc>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// Other types; a flag; hooks of the application's own; times of this device alone.
mod task {
    use sea_orm::{Set, entity::prelude::*};
    use tidelog::Syncable;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "tasks")]
    #[sync(hooks)]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub title: String,
        #[sync(created_at)]
        pub created: i64,
        #[sync(local)]
        pub opened: Option<i64>,
        #[sync(local, updated_at)]
        pub touched: Option<DateTime>,
        #[sync(soft_delete)]
        pub gone: bool,
    }

    #[async_trait::async_trait]
    impl tidelog::Hooks for ActiveModel {
        async fn before_save<C: ConnectionTrait>(mut self, _db: &C, _insert: bool) -> Result<Self, DbErr> {
            if self.title.is_set() && self.title.as_ref().is_empty() {
                self.title = Set("untitled".into());
            }
            Ok(self)
        }
    }
}

/// A behavior of the application's own, with the call that the documentation shows.
mod event {
    use sea_orm::entity::prelude::*;
    use tidelog::{Syncable, behavior};

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "events")]
    #[sync(behavior = "own")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub title: String,
        #[sync(created_at)]
        pub created: Option<DateTimeWithTimeZone>,
        #[sync(updated_at)]
        pub updated: Option<DateTimeLocal>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    #[async_trait::async_trait]
    impl ActiveModelBehavior for ActiveModel {
        async fn before_save<C: ConnectionTrait>(self, db: &C, insert: bool) -> Result<Self, DbErr> {
            behavior::before_save::<Model, C>(self, db, insert).await
        }
    }
}

async fn notes() -> Pair {
    pair::<(note::Entity,)>().await.unwrap()
}

fn titled(text: &str) -> note::ActiveModel {
    note::ActiveModel { text: Set(text.into()), ..Default::default() }
}

/// A time long ago, for what must have moved on from it.
fn past() -> DateTime<Utc> {
    "2001-02-03T04:05:06.007Z".parse().unwrap()
}

/// The note as if it had been written long ago.
async fn aged(db: &tidelog::Connection, note: note::Model) -> note::Model {
    note::Entity::update_many()
        .col_expr(note::Column::CreatedAt, Expr::value(past()))
        .col_expr(note::Column::UpdatedAt, Expr::value(past()))
        .exec(db)
        .await
        .unwrap();
    note::Entity::find_by_id(note.id).one(db).await.unwrap().unwrap()
}

fn is_now(time: DateTime<Utc>) -> bool {
    (Utc::now() - time).abs() < TimeDelta::seconds(60)
}

#[tokio::test]
async fn an_insert_gets_its_time_to_the_millisecond_and_keeps_one_that_is_set() {
    let pair = notes().await;
    let db = &pair.leader.db;
    let note = titled("now").insert(db).await.unwrap();
    assert!(is_now(note.created_at), "{note:?}");
    assert_eq!(note.created_at, note.updated_at);
    assert_eq!(note.created_at.timestamp_subsec_nanos() % 1_000_000, 0);
    assert_eq!(note.deleted_at, None);
    let imported =
        note::ActiveModel { created_at: Set(past()), updated_at: Set(past()), ..titled("imported") };
    let imported = imported.save(db).await.unwrap();
    assert_eq!((imported.created_at.unwrap(), imported.updated_at.unwrap()), (past(), past()));
    pair.level().await.unwrap();
    let there = note::Entity::find().all(&pair.follower.db).await.unwrap();
    assert_eq!(there, note::Entity::find().all(db).await.unwrap(), "others get the times, and make none");
}

#[tokio::test]
async fn an_update_that_changes_something_others_see_gets_its_time() {
    let pair = notes().await;
    let db = &pair.leader.db;
    let note = titled("one").insert(db).await.unwrap();
    let old = aged(db, note).await;
    assert_eq!((old.created_at, old.updated_at), (past(), past()));

    let mut active = old.clone().into_active_model();
    active.text = Set("two".into());
    let new = active.update(db).await.unwrap();
    assert_eq!(new.created_at, past(), "it was created once");
    assert!(is_now(new.updated_at));

    let old = aged(db, new).await;
    let saved = old.clone().into_active_model().update(db).await.unwrap();
    assert_eq!(saved, old, "nothing was changed");
    let mut active = old.clone().into_active_model();
    active.scroll = Set(Some(7));
    assert_eq!(active.update(db).await.unwrap().updated_at, past(), "it stays on this device");
    let mut active = old.clone().into_active_model();
    active.text = Set("three".into());
    active.updated_at = Set(past() + TimeDelta::days(1));
    assert_eq!(active.update(db).await.unwrap().updated_at, past() + TimeDelta::days(1), "set by hand");
    let unread = note::ActiveModel { id: Unchanged(old.id), text: Set("four".into()), ..Default::default() };
    unread.update_without_returning(db).await.unwrap();
    let now = note::Entity::find_by_id(old.id).one(db).await.unwrap().unwrap();
    assert!(is_now(now.updated_at), "also of a row that was not read: {now:?}");
}

#[tokio::test]
async fn a_deletion_is_an_update_that_can_be_undone() {
    let pair = notes().await;
    let (db, there) = (&pair.leader.db, &pair.follower.db);
    let [kept, gone] = [titled("kept").insert(db).await.unwrap(), titled("gone").insert(db).await.unwrap()];
    let kept = aged(db, kept).await;
    let gone = note::Entity::find_by_id(gone.id).one(db).await.unwrap().unwrap();

    assert!(!gone.is_deleted());
    let gone = gone.soft_delete(db).await.unwrap();
    assert!(gone.is_deleted() && is_now(gone.deleted_at.unwrap()) && is_now(gone.updated_at), "{gone:?}");
    let again = gone.clone().soft_delete(db).await.unwrap();
    assert_eq!(again, gone, "deleted once");
    pair.level().await.unwrap();
    for db in [db, there] {
        assert_eq!(note::Entity::find().count(db).await.unwrap(), 2);
        let live = note::Entity::find_live().filter(note::Column::Text.contains("e")).all(db).await.unwrap();
        assert_eq!(live.iter().map(|n| n.id).collect::<Vec<_>>(), [kept.id], "it is a query like any other");
        let deleted = note::Entity::find_deleted().all(db).await.unwrap();
        assert_eq!(deleted.iter().map(|n| n.id).collect::<Vec<_>>(), [gone.id]);
    }

    // Elsewhere, and in a transaction that is rolled back first.
    let txn = there.begin().await.unwrap();
    gone.clone().restore(&txn).await.unwrap();
    txn.rollback().await.unwrap();
    assert_eq!(note::Entity::find_live().count(there).await.unwrap(), 1);
    let back = gone.restore(there).await.unwrap();
    assert_eq!((back.deleted_at, back.clone().restore(there).await.unwrap()), (None, back.clone()));
    pair.follower.library.barrier().await.unwrap();
    assert_eq!(note::Entity::find_live().count(db).await.unwrap(), 2);

    let row = back.clone();
    back.delete(there).await.unwrap();
    let error = row.soft_delete(there).await.unwrap_err();
    assert!(matches!(error, DbErr::RecordNotUpdated), "{error}");
}

#[tokio::test]
async fn a_deletion_and_an_edit_unseen_by_each_other_both_stand() {
    let pair = notes().await;
    let note = titled("one").insert(&pair.leader.db).await.unwrap();
    pair.level().await.unwrap();
    // The follower edits what it sees; the leader deletes before it has heard of that.
    pair.follower.library.shutdown().await;
    let mut edited = note.clone().into_active_model();
    edited.text = Set("edited".into());
    edited.update(&pair.follower.db).await.unwrap();
    note.soft_delete(&pair.leader.db).await.unwrap();
    let again =
        tidelog::Library::builder(&pair.follower.db).model::<note::Entity>().existing().open().await.unwrap();
    let device = tidelog::id::DeviceId([2; 32]);
    again.start(std::sync::Arc::new(pair.network.plug(device))).await.unwrap();
    again.barrier().await.unwrap();
    for db in [&pair.leader.db, &pair.follower.db] {
        let [note] = &note::Entity::find().all(db).await.unwrap()[..] else { panic!("one note") };
        assert!(note.is_deleted() && note.text == "edited", "{note:?}");
    }
}

#[tokio::test]
async fn flags_other_types_and_own_hooks() {
    let pair = pair::<(task::Entity, event::Entity)>().await.unwrap();
    let db = &pair.leader.db;
    let task =
        task::ActiveModel { title: Set(String::new()), ..Default::default() }.insert(db).await.unwrap();
    assert_eq!(task.title, "untitled", "own hooks run too");
    assert!(is_now(DateTime::from_timestamp_millis(task.created).unwrap()), "{task:?}");
    assert!(is_now(task.touched.unwrap().and_utc()));
    assert!(!task.gone, "live unless somebody says otherwise");
    let task = task.soft_delete(db).await.unwrap();
    assert!(task.gone && task.is_deleted());
    assert_eq!(task::Entity::find_deleted().count(db).await.unwrap(), 1);
    let task = task.restore(db).await.unwrap();
    assert_eq!((task.gone, task::Entity::find_live().count(db).await.unwrap()), (false, 1));
    let long_ago = NaiveDateTime::default();
    task::Entity::update_many()
        .col_expr(task::Column::Touched, Expr::value(long_ago))
        .exec(db)
        .await
        .unwrap();
    let mut active = task.into_active_model();
    active.opened = Set(Some(1));
    assert!(
        is_now(active.update(db).await.unwrap().touched.unwrap().and_utc()),
        "local times know local changes"
    );

    let event = event::ActiveModel { id: Set(Uuid::now_v7()), title: Set("e".into()), ..Default::default() };
    let event = event.insert(db).await.unwrap();
    let (created, updated): (DateTime<FixedOffset>, DateTime<Local>) =
        (event.created.unwrap(), event.updated.unwrap());
    assert!(is_now(created.to_utc()));
    assert_eq!(created, updated);
}

/// Options by hand are checked when a library is opened, as the compiler checks the derive's.
mod by_hand {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "by_hand")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub name: String,
        pub at: DateTimeUtc,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

thread_local! {
    static BY_HAND: std::cell::Cell<Metadata> = std::cell::Cell::new(Metadata::default());
}

impl Syncable for by_hand::Model {
    const SYNC_ID: &'static str = "by_hand";

    fn options() -> SyncOptions {
        SyncOptions { metadata: BY_HAND.get(), ..SyncOptions::default() }
    }
}

#[test]
fn options_by_hand_are_checked() {
    let none = Metadata::default();
    for (metadata, says) in [
        (Metadata { created_at: Some("name"), ..none }, ["column `name`", "point in time"]),
        (Metadata { updated_at: Some("id"), ..none }, ["column `id`", "point in time"]),
        (Metadata { soft_delete: Some("at"), ..none }, ["column `at`", "`bool` or an `Option`"]),
        (Metadata { soft_delete: Some("gone"), ..none }, ["column `gone`", "does not have"]),
    ] {
        BY_HAND.set(metadata);
        let error = ModelDescriptor::of::<by_hand::Model>().unwrap_err().to_string();
        tidelog_tests::scene::assert_says(&error, &says);
        tidelog_tests::scene::assert_says(&error, &["`by_hand`", "nothing was changed"]);
    }
    BY_HAND.set(Metadata { created_at: Some("at"), updated_at: Some("at"), ..none });
    assert!(ModelDescriptor::of::<by_hand::Model>().is_ok());
}

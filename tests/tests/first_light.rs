//! First light: what a leader saves appears on its followers.
#![allow(clippy::unwrap_used)]

use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DbBackend, EntityTrait, IntoActiveModel, ModelTrait, Set, Statement,
};
use tidelog::testing::pair;
use tidelog_tests::file_manager::entities::tag;
use uuid::Uuid;

#[tokio::test]
async fn a_model_saved_on_the_leader_appears_on_the_follower() {
    let pair = pair::<(tag::Entity,)>().await.unwrap();
    for name in ["red", "green", "blue"] {
        tag::ActiveModel { name: Set(name.into()), color: Set("#fff".into()), ..Default::default() }
            .save(&pair.leader.db)
            .await
            .unwrap();
    }
    pair.level().await.unwrap();
    let there = tag::Entity::find().all(&pair.leader.db).await.unwrap();
    let here = tag::Entity::find().all(&pair.follower.db).await.unwrap();
    assert_eq!(here.len(), 3);
    assert_eq!(here, there);
}

#[tokio::test]
async fn the_log_shows_a_person_whole_rows() {
    let pair = pair::<(tag::Entity,)>().await.unwrap();
    // What is not sealed yet is folded.
    let sealed = async || pair.leader.library.barrier().await.unwrap();
    let red = tag::ActiveModel { name: Set("red".into()), color: Set("#f00".into()), ..Default::default() };
    let red = red.insert(&pair.leader.db).await.unwrap();
    sealed().await;
    let id = red.id;
    let mut renamed = red.into_active_model();
    renamed.name = Set("crimson".into());
    let renamed = renamed.update(&pair.leader.db).await.unwrap();
    sealed().await;
    renamed.delete(&pair.leader.db).await.unwrap();
    pair.level().await.unwrap();
    let log = "SELECT kind, record, data FROM sync_log WHERE model = 'tag' ORDER BY seq";
    let log = Statement::from_string(DbBackend::Sqlite, log);
    for db in [&pair.leader.db, &pair.follower.db] {
        let shown: Vec<(String, Uuid, String)> = db
            .query_all_raw(log.clone())
            .await
            .unwrap()
            .iter()
            .map(|row| {
                let [kind, record, data] =
                    ["kind", "record", "data"].map(|c| row.try_get::<String>("", c).unwrap());
                (kind, record.parse().unwrap(), data)
            })
            .collect();
        let whole = |name: &str| format!(r##"{{"id":"{id}","name":"{name}","color":"#f00"}}"##);
        let expected = [
            ("insert", whole("red")),
            ("update", whole("crimson")),
            ("delete", format!(r#"{{"id":"{id}"}}"#)),
        ];
        assert_eq!(shown, expected.map(|(kind, data)| (kind.into(), id, data)));
    }
}

#[tokio::test]
async fn the_status_shows_what_a_barrier_waited_for() {
    let pair = pair::<(tag::Entity,)>().await.unwrap();
    for i in 0..50 {
        let tag = tag::ActiveModel {
            name: Set(format!("tag {i}")),
            color: Set("#fff".into()),
            ..Default::default()
        };
        tag.save(&pair.leader.db).await.unwrap();
        pair.leader.library.barrier().await.unwrap();
        let shown = pair.leader.library.status().borrow().position;
        assert_eq!(shown, pair.leader.library.position().await.unwrap(), "after {i}");
        pair.follower.library.barrier().await.unwrap();
        assert!(pair.follower.library.status().borrow().position >= shown, "after {i}");
    }
}

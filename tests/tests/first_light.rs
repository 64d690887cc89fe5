//! First light: what a leader saves appears on its followers.
#![allow(clippy::unwrap_used)]

use sea_orm::{ActiveModelTrait, EntityTrait, Set};
use tidelog::testing::pair;
use tidelog_tests::file_manager::entities::tag;

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

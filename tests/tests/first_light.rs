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

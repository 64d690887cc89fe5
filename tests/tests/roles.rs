//! `merge = "role"`: of two that had not seen each other, the change of the device with the higher precedence stands,
//! whoever comes first and whatever the clocks say. Who has which precedence the log says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tidelog::{LibraryBuilder, id::DeviceId};
use tidelog_tests::{
    apart::Together,
    scene::{Device, dump, number, text},
};

/// A plan that not everybody's word counts alike for.
#[allow(unreachable_pub, reason = "SeaORM has entities public")]
mod plan {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "plans")]
    #[sync(model = "plan", merge = "role")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

const SCHEMA: &str = "CREATE TABLE plans (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL)";
const LEADER: DeviceId = DeviceId([1; 32]);
const DESK: DeviceId = DeviceId([2; 32]);
const PHONE: DeviceId = DeviceId([3; 32]);

fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<plan::Entity>()
}

/// The leader says what the word of the desk, the phone and its own counts.
fn say(roles: [u8; 3]) -> impl FnOnce(LibraryBuilder) -> LibraryBuilder {
    move |builder| {
        let named = [DESK, PHONE, LEADER].into_iter().zip(roles);
        named.fold(builder, |builder, (device, role)| builder.precedence(device, role))
    }
}

/// A leader, the desk and the phone; all hold the plans a, b and c.
async fn plans(roles: [u8; 3]) -> Together {
    let before = "INSERT INTO plans VALUES ('a', 'first'), ('b', 'first'), ('c', 'first')";
    Together::set(SCHEMA, register, say(roles), before).await
}

fn said(device: &Device) -> String {
    text(
        &device.file(),
        "SELECT group_concat(id || ' ' || text, ', ') FROM (SELECT * FROM plans ORDER BY id)",
    )
}

fn members(device: &Device) -> i64 {
    number(&device.file(), "SELECT count(*) FROM sync_entry WHERE kind = 4")
}

#[tokio::test]
async fn the_device_with_the_higher_precedence_stands_in_each_order_of_arrival() {
    for phone_first in [true, false] {
        let desk = [
            "UPDATE plans SET text = 'desk' WHERE id <> 'c'",
            "UPDATE plans SET text = 'kept' WHERE id = 'c'",
        ];
        let phone = ["UPDATE plans SET text = 'phone' WHERE id <> 'c'", "DELETE FROM plans WHERE id = 'c'"];
        let apart = plans([10, 5, 7]).await.part([&desk, &phone]).await;
        apart.leader.sql("UPDATE plans SET text = 'leader' WHERE id = 'b'").await;
        let together = apart.meet(phone_first).await;
        together.agree_on("plans").await;
        assert_eq!(said(&together.leader), "a desk, b desk, c kept", "the phone first: {phone_first}");
        assert_eq!(members(&together.leader), 3, "each is made a member once, with its role");
    }
}

#[tokio::test]
async fn the_founder_has_a_role_too() {
    let update = ["UPDATE plans SET text = 'follower'"];
    let apart = plans([10, 5, 11]).await.part([&update, &update]).await;
    apart.leader.sql("UPDATE plans SET text = 'leader'").await;
    let together = apart.meet(false).await;
    together.agree_on("plans").await;
    assert_eq!(said(&together.leader), "a leader, b leader, c leader");
}

#[tokio::test]
async fn with_the_same_precedence_the_later_change_stands() {
    let desk = ["UPDATE sync_ctl SET clock = 5000", "UPDATE plans SET text = 'desk'"];
    let phone = ["UPDATE plans SET text = 'phone'"];
    for phone_first in [true, false] {
        let together = plans([9, 9, 9]).await.part([&desk, &phone]).await.meet(phone_first).await;
        together.agree_on("plans").await;
        assert_eq!(said(&together.leader), "a phone, b phone, c phone");
    }
}

#[tokio::test]
async fn another_role_is_another_entry_and_holds_after_restarts() {
    let apart = plans([10, 5, 7])
        .await
        .part([&["UPDATE plans SET text = 'desk'"], &["UPDATE plans SET text = 'phone'"]])
        .await;
    // Said otherwise while both are away; the rest stays what it was.
    let apart = apart.restart_leader(|builder| builder.precedence(PHONE, 11)).await;
    assert_eq!(members(&apart.leader), 4);
    // Nothing is said, and then the same again: nothing is added.
    let apart = apart.restart_leader(|builder| builder).await;
    let apart = apart.restart_leader(say([10, 11, 7])).await;
    let together = apart.meet(true).await;
    together.agree_on("plans").await;
    assert_eq!(said(&together.leader), "a phone, b phone, c phone");
    assert_eq!(members(&together.leader), 4);
    let phone = together.followers[1].file();
    assert_eq!(dump(&phone, "sync_device", "role"), ["integer:10", "integer:11", "integer:7"]);
    let sql = format!("SELECT group_concat(data) FROM sync_entry WHERE kind = 4 AND data LIKE '%{PHONE}%'");
    let entry = |role: u8| format!(r#"{{"device":"{PHONE}","role":{role}}}"#);
    assert_eq!(text(&phone, &sql), format!("{},{}", entry(5), entry(11)));
}

#[tokio::test]
async fn who_is_no_member_is_not_made_one_by_a_role_and_a_follower_says_nothing() {
    let apart = plans([10, 5, 7]).await.part([&[], &[]]).await;
    let apart = apart.restart_leader(|builder| builder.precedence(DeviceId([9; 32]), 99)).await;
    let mut together = apart.meet(false).await;
    let [desk, phone] = together.followers;
    let desk = desk.close().await.back(&together.network, |b| register(b).precedence(DESK, 200)).await;
    together.followers = [desk, phone];
    together.agree_on("plans").await;
    assert_eq!(members(&together.leader), 3);
}

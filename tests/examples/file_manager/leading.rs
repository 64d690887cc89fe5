//! The lead is handed over, then its device is gone and another takes over, then it comes back: what an application asks
//! tidelog for that.

use std::{collections::BTreeSet, error::Error, time::Instant};

use sea_orm::{ActiveModelTrait, ActiveValue::Set, EntityTrait};
use tidelog::{Link, Role, TakeOver, id::DeviceId};
use tidelog_tests::file_manager::{entities::tag, succession::Succession};
use uuid::Uuid;

use crate::devices::{Device, Ring};

type Failed = Box<dyn Error + Send + Sync>;

/// Changes that the leader makes when nobody sees it any more.
const UNSEEN: u64 = 25;

/// The whole of it, on devices that are level.
pub(crate) async fn lead(ring: &mut Ring) -> Result<Succession, Failed> {
    ring.introduce()?;
    let mut tags = BTreeSet::new();
    let Ring { leader, followers } = ring;
    let [first, second] = followers.as_mut_slice() else { return Err("there are two followers".into()) };

    let to = first.id().ok_or("it is not started")?;
    let began = Instant::now();
    let (handed_over, written) = tokio::join!(leader.library.hand_over(to), async {
        let mut written = Vec::new();
        for device in [&*leader, first, second] {
            written.push(label(device, "while it was handed over").await?);
        }
        Ok::<_, Failed>(written)
    });
    handed_over?;
    let seconds = began.elapsed().as_secs_f64();
    tags.extend(written?);
    let mut succession = Succession {
        handed_over: (leader.name.clone(), first.name.clone(), seconds),
        ..Succession::default()
    };
    for device in [&*leader, second, first, leader, second] {
        device.is_level().await?;
    }

    first.cut_off().await;
    for i in 0..UNSEEN {
        tags.insert(label(first, &format!("unseen {i}")).await?);
        first.is_level().await?;
    }
    first.go_offline().await?;

    let report = second.library.promotion_report().await?;
    if let Some(obstacle) = report.obstacles.first() {
        return Err(format!("{} should be fit to lead: {obstacle}", second.name).into());
    }
    // The report has asked everybody, and waited for the one that is gone.
    let began = Instant::now();
    second.library.take_over(TakeOver::FORCED).await?;
    succession.took_over = (second.name.clone(), first.name.clone(), began.elapsed().as_secs_f64());
    tags.insert(label(second, "leads now").await?);
    leader.is_level().await?;

    let began = Instant::now();
    first.come_back().await?;
    ring.introduce()?;
    let Ring { leader, followers } = ring;
    let [first, second] = followers.as_slice() else { return Err("there are two followers".into()) };
    let follows = |s: &tidelog::Status| s.role == Role::Follower && s.link == Link::Online;
    first.library.status().wait_for(follows).await?;
    first.is_level().await?;
    succession.came_back = (UNSEEN, began.elapsed().as_secs_f64());
    for device in [&*leader, second, first] {
        device.is_level().await?;
        let has: BTreeSet<Uuid> =
            tag::Entity::find().all(&device.db).await?.into_iter().map(|tag| tag.id).collect();
        let missing = tags.difference(&has).map(|tag| (device.name.clone(), tag.to_string()));
        succession.missing.extend(missing);
    }
    let name = |id: DeviceId| {
        let device = [&*leader, first, second].into_iter().find(|device| device.id() == Some(id));
        device.map_or_else(|| "nobody".to_owned(), |device| device.name.clone())
    };
    let terms = second.library.terms().await?;
    succession.terms = terms.into_iter().map(|term| (term.number, name(term.leader))).collect();
    succession.terms.dedup();
    Ok(succession)
}

/// Makes a tag. Its id.
async fn label(device: &Device, what: &str) -> Result<Uuid, Failed> {
    let tag = tag::ActiveModel {
        name: Set(format!("{}: {what}", device.name)),
        color: Set("#808080".to_owned()),
        ..Default::default()
    };
    Ok(tag.insert(&device.db).await?.id)
}

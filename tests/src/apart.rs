//! A leader and two followers that go away, write there unseen by the others, and come back in one order or the other:
//! what comes of that must be the same for all, and often for both orders.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use tempfile::TempDir;
use tidelog::{LibraryBuilder, id::LibraryId, transport::MemoryNetwork};

use crate::scene::{Closed, Device, Register, dump, entries};

/// Three devices that hold the same.
pub struct Together {
    /// Device 1.
    pub leader: Device,
    /// Devices 2 and 3.
    pub followers: [Device; 2],
    /// What all are plugged into.
    pub network: MemoryNetwork,
    register: Register,
    folder: TempDir,
}

/// The leader, and two that are away.
pub struct Apart {
    /// Goes on.
    pub leader: Device,
    /// Devices 2 and 3.
    pub away: [Closed; 2],
    network: MemoryNetwork,
    register: Register,
    folder: TempDir,
}

impl Together {
    /// Three devices over the tables of `schema` that hold what `before` wrote on the leader. `lead` is what the leader's
    /// builder says beside its models.
    pub async fn set(
        schema: &str,
        register: Register,
        lead: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
        before: &str,
    ) -> Self {
        let (folder, network, id) = (tempfile::tempdir().unwrap(), MemoryNetwork::new(), LibraryId::random());
        let leader = Device::new(folder.path(), 1, schema, |b| lead(register(b)).create(id)).await;
        leader.start(&network).await;
        leader.sql(before).await;
        leader.level().await;
        let second = Device::new(folder.path(), 2, schema, |b| register(b).join(id)).await;
        let third = Device::new(folder.path(), 3, schema, |b| register(b).join(id)).await;
        for follower in [&second, &third] {
            follower.start(&network).await;
            follower.level().await;
        }
        Self { leader, followers: [second, third], network, register, folder }
    }

    /// Both followers go away, and write there: each of the statements in a transaction of its own.
    pub async fn part(self, writes: [&[&str]; 2]) -> Apart {
        let Self { leader, followers: [second, third], network, register, folder } = self;
        let away = [second.away(writes[0]).await, third.away(writes[1]).await];
        Apart { leader, away, network, register, folder }
    }

    /// Waits until all are level, and checks that table, log and devices are the same on all, and that nothing waits.
    pub async fn agree_on(&self, table: &str) {
        self.leader.level().await;
        for follower in &self.followers {
            follower.level().await;
        }
        let leader = self.leader.file();
        for follower in &self.followers {
            let follower = follower.file();
            assert_eq!(dump(&follower, table, "*"), dump(&leader, table, "*"), "table `{table}`");
            assert_eq!(entries(&follower), entries(&leader), "the log");
            let devices = "device, role, member";
            assert_eq!(dump(&follower, "sync_device", devices), dump(&leader, "sync_device", devices));
            assert_eq!(dump(&follower, "sync_pending", "*"), [""; 0]);
        }
    }
}

impl Apart {
    /// Both come back, the one as soon as the leader has what the other wrote.
    pub async fn meet(self, third_first: bool) -> Together {
        let Self { leader, away: [second, third], network, register, folder } = self;
        let followers = if third_first {
            let third = third.back(&network, register).await;
            [second.back(&network, register).await, third]
        } else {
            let second = second.back(&network, register).await;
            [second, third.back(&network, register).await]
        };
        Together { leader, followers, network, register, folder }
    }

    /// The leader stops and starts again; its builder says `lead` beside its models.
    pub async fn restart_leader(self, lead: impl FnOnce(LibraryBuilder) -> LibraryBuilder) -> Self {
        let closed = self.leader.close().await;
        let leader = closed.reopen(|b| lead((self.register)(b))).await.unwrap();
        leader.start(&self.network).await;
        leader.level().await;
        Self { leader, ..self }
    }
}

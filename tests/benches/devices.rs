//! A leader and a follower over QUIC on loopback, opened and started apart.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tidelog::{
    Connection, Library, LibraryBuilder,
    id::{DeviceId, LibraryId},
};
use tidelog_transport::{Identity, Peer, Quic, QuicOptions};

use crate::{
    Failure,
    database::{self, Entrance},
};

/// How long two devices may take to become level before that is an error.
const LEVEL_MAX: Duration = Duration::from_secs(120);

/// One device; its key lies beside its database and is the same in every round.
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) db: Connection,
    pub(crate) library: Library,
    pub(crate) quic: Arc<Quic>,
}

pub(crate) struct Pair {
    pub(crate) leader: Device,
    pub(crate) follower: Device,
}

/// The key of a device in this folder.
pub(crate) fn key(folder: &Path, name: &str) -> Result<Identity, Failure> {
    Ok(Identity::load_or_create(folder.join(format!("{name}.key")))?)
}

impl Pair {
    /// Opens both, the follower with an empty database. The leader's is used as it is, if there is one.
    pub(crate) async fn open(folder: &Path, library: LibraryId) -> Result<Self, Failure> {
        let keys = (key(folder, "leader")?, key(folder, "follower")?);
        let ids = (keys.0.device_id(), keys.1.device_id());
        let leader = Device::open(folder, "leader", Entrance::Create(library), keys.0, ids.1, None).await?;
        database::remove(&folder.join("follower.db"))?;
        let address = leader.quic.local_addr()?;
        let follower =
            Device::open(folder, "follower", Entrance::Join(library), keys.1, ids.0, Some(address)).await?;
        Ok(Self { leader, follower })
    }

    pub(crate) async fn start(&self) -> Result<(), Failure> {
        self.leader.start().await?;
        self.follower.start().await
    }

    /// Waits until the follower has what is committed on the leader now.
    pub(crate) async fn level(&self) -> Result<(), Failure> {
        let level = async {
            self.leader.library.barrier().await?;
            self.follower.library.barrier().await
        };
        match tokio::time::timeout(LEVEL_MAX, level).await {
            Ok(level) => Ok(level?),
            Err(_) => Err(format!(
                "not level after {} s; leader: {:?}; follower: {:?}",
                LEVEL_MAX.as_secs(),
                *self.leader.library.status().borrow(),
                *self.follower.library.status().borrow()
            )
            .into()),
        }
    }

    /// How both stand, for an error.
    pub(crate) fn explain(&self, error: &Failure) -> Failure {
        format!(
            "{error}; leader: {:?}; follower: {:?}",
            *self.leader.library.status().borrow(),
            *self.follower.library.status().borrow()
        )
        .into()
    }

    /// Shuts both down. Bytes that the leader has sent.
    pub(crate) async fn close(self) -> Result<u64, Failure> {
        self.follower.close().await?;
        self.leader.close().await
    }
}

impl Device {
    pub(crate) async fn open(
        folder: &Path,
        name: &str,
        entrance: Entrance,
        key: Identity,
        peer: DeviceId,
        address: Option<SocketAddr>,
    ) -> Result<Self, Failure> {
        Self::open_set(folder, name, entrance, key, peer, address, |builder| builder).await
    }

    /// [`Device::open`] with more settings.
    pub(crate) async fn open_set(
        folder: &Path,
        name: &str,
        entrance: Entrance,
        key: Identity,
        peer: DeviceId,
        address: Option<SocketAddr>,
        set: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
    ) -> Result<Self, Failure> {
        let path = folder.join(format!("{name}.db"));
        let (db, library) = database::open_set(&path, entrance, set).await?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let peers = vec![Peer { device: peer, address }];
        let quic = Quic::bind(key, QuicOptions { listen, peers, ..QuicOptions::default() }).await?;
        Ok(Self { path, db, library, quic: Arc::new(quic) })
    }

    pub(crate) async fn start(&self) -> Result<(), Failure> {
        Ok(self.library.start(self.quic.clone()).await?)
    }

    /// Shuts it down. Bytes that it has sent.
    pub(crate) async fn close(self) -> Result<u64, Failure> {
        self.library.shutdown().await;
        let sent = self.quic.stats().bytes_sent;
        self.quic.close().await;
        self.db.close().await?;
        Ok(sent)
    }
}

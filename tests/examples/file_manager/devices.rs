//! A leader and two followers: what an application writes to embed tidelog.
//!
//! Each device has a key, a QUIC endpoint on loopback, and a SQLite file that it opens through
//! `tidelog::connect`. The leader creates the library and the followers join it; who may speak to whom is
//! told by hand, as a peer list.

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tidelog::{
    Connection, Library, LibraryBuilder, Role,
    id::{DeviceId, LibraryId, Seq},
    model::Recorder,
};
use tidelog_tests::file_manager::{
    args::Capture,
    entities::{content_identity, device, entry, entry_tag, location, tag, user_metadata, volume},
    migration::Migrator,
};
use tidelog_transport::{Identity, Peer, Quic, QuicOptions};
use tokio::task::JoinHandle;

use crate::bars::Bars;

/// How long a follower may have no news before the example gives up on it.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// One device of the ring.
pub(crate) struct Device {
    pub(crate) name: String,
    path: PathBuf,
    /// What the application reads and writes through.
    pub(crate) db: Connection,
    pub(crate) library: Library,
    /// None while it is offline.
    quic: Option<Arc<Quic>>,
    /// Where its key is, and whom it knows.
    key: PathBuf,
    peers: Vec<Peer>,
    capture: Capture,
    /// Bytes that went over connections that are closed.
    sent_before: u64,
}

/// Three devices with one library.
pub(crate) struct Ring {
    pub(crate) leader: Device,
    pub(crate) followers: Vec<Device>,
}

impl Ring {
    /// Starts the three with empty databases in `folder`.
    pub(crate) async fn start(folder: &Path, capture: Capture) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let id = LibraryId::random();
        let names = ["follower 1", "follower 2"];
        let key = |name: &str| folder.join(format!("{}.key", name.replace(' ', "-")));
        let mut follower_peers = Vec::new();
        for name in names {
            let device = Identity::load_or_create(key(name))?.device_id();
            follower_peers.push(Peer { device, address: None });
        }
        let leader =
            Device::open("leader", key("leader"), folder, follower_peers, capture, |l| l.create(id)).await?;
        let address = leader.quic.as_ref().map(|quic| quic.local_addr()).transpose()?;
        let device = Identity::load_or_create(key("leader"))?.device_id();
        let mut followers = Vec::new();
        for name in names {
            let peers = vec![Peer { device, address }];
            followers.push(Device::open(name, key(name), folder, peers, capture, |l| l.join(id)).await?);
        }
        Ok(Self { leader, followers })
    }

    /// Draws each follower's way to the leader's top until [`Watching::end`].
    pub(crate) fn watch(&self, bars: &Bars) -> Watching {
        let watch = |follower: &Device| {
            let bar = bars.add(&follower.name, 0);
            let (mut leader, mut follower) = (self.leader.library.status(), follower.library.status());
            let drawing = bar.clone();
            let task = tokio::spawn(async move {
                loop {
                    drawing.set_length(leader.borrow_and_update().position.seq.0);
                    drawing.set_position(follower.borrow_and_update().position.seq.0);
                    tokio::select! {
                        changed = leader.changed() => if changed.is_err() { break },
                        changed = follower.changed() => if changed.is_err() { break },
                    }
                }
            });
            (bar, task)
        };
        Watching(self.followers.iter().map(watch).collect())
    }

    /// Waits until every follower holds what the leader holds now, and says up to which entry that is.
    pub(crate) async fn level(&self) -> Result<Seq, Box<dyn Error + Send + Sync>> {
        self.leader.library.barrier().await?;
        let top = self.leader.library.status().borrow().position.seq;
        for follower in &self.followers {
            follower.reach(top).await?;
        }
        Ok(top)
    }

    /// Tells every device where the others are: any of them may lead.
    pub(crate) fn introduce(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let all = || std::iter::once(&self.leader).chain(&self.followers);
        for device in all() {
            let (Some(quic), Some(id)) = (&device.quic, device.id()) else { continue };
            let address = quic.local_addr()?;
            for other in all().filter(|other| other.name != device.name) {
                if let Some(theirs) = &other.quic {
                    theirs.add_peer(id, Some(address));
                }
            }
        }
        Ok(())
    }

    /// Shuts all down, who leads last. Name, database and bytes sent of each device, in the order in which they started.
    pub(crate) async fn shutdown(self) -> Result<Vec<(String, PathBuf, u64)>, Box<dyn Error + Send + Sync>> {
        let mut devices: Vec<_> = std::iter::once(self.leader).chain(self.followers).enumerate().collect();
        devices.sort_by_key(|(_, device)| device.library.status().borrow().role == Role::Leader);
        let mut closed = Vec::new();
        for (i, device) in devices {
            closed.push((i, device.shutdown().await?));
        }
        closed.sort_by_key(|(i, _)| *i);
        Ok(closed.into_iter().map(|(_, closed)| closed).collect())
    }
}

/// Bars that are being drawn.
pub(crate) struct Watching(Vec<(indicatif::ProgressBar, JoinHandle<()>)>);

impl Watching {
    pub(crate) fn end(self) {
        for (bar, task) in self.0 {
            task.abort();
            bar.finish();
        }
    }
}

impl Device {
    /// Opens the database, brings its tables about, opens the library on it and starts to sync.
    async fn open(
        name: &str,
        key: PathBuf,
        folder: &Path,
        peers: Vec<Peer>,
        capture: Capture,
        create_or_join: impl FnOnce(LibraryBuilder) -> LibraryBuilder,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let path = folder.join(format!("{}.db", name.replace(' ', "-")));
        let db = tidelog::connect(&format!("sqlite://{}?mode=rwc", path.display())).await?;
        tidelog::migrate::<Migrator>(&db).await?;
        let library = create_or_join(builder(&db, capture)).open().await?;
        let name = name.to_owned();
        let mut device = Self { name, path, db, library, quic: None, key, peers, capture, sent_before: 0 };
        device.come_back().await?;
        Ok(device)
    }

    /// Its id.
    pub(crate) fn id(&self) -> Option<DeviceId> {
        self.library.status().borrow().device
    }

    /// Ends the network; the application goes on with its database, and what it writes is recorded.
    pub(crate) async fn go_offline(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.library.shutdown().await;
        if let Some(quic) = self.quic.take() {
            self.sent_before += quic.stats().bytes_sent;
            quic.close().await;
        }
        self.library = builder(&self.db, self.capture).existing().open().await?;
        Ok(())
    }

    /// No message reaches it or leaves it any more; it goes on by itself, and learns nothing.
    pub(crate) async fn cut_off(&self) {
        if let Some(quic) = &self.quic {
            quic.close().await;
        }
    }

    /// Starts the network, with the key that the device has always had.
    pub(crate) async fn come_back(&mut self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = QuicOptions { listen, peers: self.peers.clone(), ..QuicOptions::default() };
        let quic = Arc::new(Quic::bind(Identity::load_or_create(&self.key)?, options).await?);
        self.library.start(quic.clone()).await?;
        self.quic = Some(quic);
        Ok(())
    }

    /// Waits until what is committed here is in the leader's log, and what that holds is here.
    pub(crate) async fn is_level(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        match tokio::time::timeout(STALLED_AFTER, self.library.barrier()).await {
            Ok(level) => Ok(level?),
            Err(_) => {
                let (seconds, status) = (STALLED_AFTER.as_secs(), self.library.status().borrow().clone());
                let why = status.last_error.unwrap_or_else(|| format!("{:?}", status.link));
                Err(format!("{} was not level after {seconds} seconds: {why}", self.name).into())
            }
        }
    }

    /// Waits until this device's log reaches `top`.
    async fn reach(&self, top: Seq) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut status = self.library.status();
        loop {
            let at = status.borrow_and_update().position.seq;
            if at >= top {
                return Ok(());
            }
            match tokio::time::timeout(STALLED_AFTER, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(format!("{} stopped at entry {at} of {top}", self.name).into()),
                Err(_) => {
                    let (seconds, status) = (STALLED_AFTER.as_secs(), status.borrow().clone());
                    return Err(format!(
                        "{} is at entry {at} of {top} and has had no news for {seconds} seconds: {status:?}",
                        self.name
                    )
                    .into());
                }
            }
        }
    }

    async fn shutdown(self) -> Result<(String, PathBuf, u64), Box<dyn Error + Send + Sync>> {
        self.library.shutdown().await;
        let mut sent = self.sent_before;
        if let Some(quic) = &self.quic {
            sent += quic.stats().bytes_sent;
            quic.close().await;
        }
        self.db.close().await?;
        Ok((self.name, self.path, sent))
    }
}

fn builder(db: &Connection, capture: Capture) -> LibraryBuilder {
    Library::builder(db)
        // Shutting down one after the other, they would hand the lead on, and their logs would not be compared as of one entry.
        .hands_over(false)
        .model::<device::Entity>()
        .model::<volume::Entity>()
        .model::<location::Entity>()
        .model::<content_identity::Entity>()
        .model::<entry::Entity>()
        .model::<tag::Entity>()
        .model::<entry_tag::Entity>()
        .model::<user_metadata::Entity>()
        .capture(match capture {
            Capture::Trigger => Recorder::Trigger,
            Capture::Hooks => Recorder::Hooks,
        })
}

//! The devices configured by hand, shared by everything that decides about them and changeable at any time.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{PoisonError, RwLock},
};

use tidelog::id::DeviceId;

/// A device that this one knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub device: DeviceId,
    /// Where it listens. `None`: it is not dialled, but may dial us.
    pub address: Option<SocketAddr>,
}

/// Who may connect, and where to find them.
#[derive(Debug, Default)]
pub(crate) struct Peers(RwLock<BTreeMap<DeviceId, Option<SocketAddr>>>);

impl Peers {
    pub(crate) fn new(peers: &[Peer]) -> Self {
        Self(RwLock::new(peers.iter().map(|peer| (peer.device, peer.address)).collect()))
    }

    pub(crate) fn add(&self, device: DeviceId, address: Option<SocketAddr>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(device, address);
    }

    pub(crate) fn remove(&self, device: DeviceId) -> bool {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&device).is_some()
    }

    pub(crate) fn contain(&self, device: DeviceId) -> bool {
        self.address(device).is_some()
    }

    /// `None` if the device is unknown, `Some(None)` if it is known without an address.
    pub(crate) fn address(&self, device: DeviceId) -> Option<Option<SocketAddr>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&device).copied()
    }

    pub(crate) fn devices(&self) -> Vec<DeviceId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

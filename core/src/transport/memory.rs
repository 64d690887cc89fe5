//! A network inside one process: the same messages and bounds as over QUIC, without sockets.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{
    CHANNEL_QUEUE, Channel, INCOMING_QUEUE, MESSAGE_MAX, MessageReceiver, MessageSender, Transport,
    TransportError,
};
use crate::id::{DeviceId, LibraryId};

type Listeners = HashMap<LibraryId, mpsc::Sender<Channel>>;

/// A switch that devices of one process plug into. Every device that is plugged in knows all the others.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    devices: Arc<Mutex<HashMap<DeviceId, Arc<Mutex<Listeners>>>>>,
}

impl MemoryNetwork {
    /// An empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// Plugs a device in, until its transport is dropped. A device that plugs in again replaces its former self.
    pub fn plug(&self, device: DeviceId) -> MemoryTransport {
        let listeners = Arc::default();
        lock(&self.devices).insert(device, Arc::clone(&listeners));
        MemoryTransport { device, listeners, network: Arc::downgrade(&self.devices) }
    }
}

/// One device's end of a [`MemoryNetwork`].
pub struct MemoryTransport {
    device: DeviceId,
    listeners: Arc<Mutex<Listeners>>,
    network: Weak<Mutex<HashMap<DeviceId, Arc<Mutex<Listeners>>>>>,
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        if let Some(network) = self.network.upgrade() {
            let mut devices = lock(&network);
            if devices.get(&self.device).is_some_and(|listeners| Arc::ptr_eq(listeners, &self.listeners)) {
                devices.remove(&self.device);
            }
        }
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn device(&self) -> DeviceId {
        self.device
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let unreachable =
            || TransportError::Unreachable { peer, reason: "it is not plugged into this network".into() };
        let network = self.network.upgrade().ok_or_else(unreachable)?;
        let listeners = lock(&network).get(&peer).cloned().ok_or_else(unreachable)?;
        let listener = lock(&listeners).get(&library).cloned().ok_or_else(|| TransportError::Refused {
            peer,
            reason: format!("library {library} is not served here"),
        })?;
        let (to_them, from_us) = mpsc::channel(CHANNEL_QUEUE);
        let (to_us, from_them) = mpsc::channel(CHANNEL_QUEUE);
        let theirs = channel(self.device, to_us, from_us);
        listener.try_send(theirs).map_err(|_| TransportError::Refused {
            peer,
            reason: format!("it has {INCOMING_QUEUE} channels waiting already"),
        })?;
        Ok(channel(peer, to_them, from_them))
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        let mut listeners = lock(&self.listeners);
        if listeners.get(&library).is_some_and(|sender| !sender.is_closed()) {
            return Err(TransportError::Taken(library));
        }
        let (sender, receiver) = mpsc::channel(INCOMING_QUEUE);
        listeners.insert(library, sender);
        Ok(receiver)
    }

    fn peers(&self) -> Vec<DeviceId> {
        let Some(network) = self.network.upgrade() else { return Vec::new() };
        let mut peers: Vec<_> = lock(&network).keys().copied().filter(|d| *d != self.device).collect();
        peers.sort_unstable();
        peers
    }
}

fn channel(peer: DeviceId, sender: mpsc::Sender<Vec<u8>>, receiver: mpsc::Receiver<Vec<u8>>) -> Channel {
    Channel {
        peer,
        sender: Box::new(MemorySender { peer, sender, sent: 0 }),
        receiver: Box::new(MemoryReceiver(receiver)),
    }
}

struct MemorySender {
    peer: DeviceId,
    sender: mpsc::Sender<Vec<u8>>,
    sent: u64,
}

#[async_trait]
impl MessageSender for MemorySender {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), TransportError> {
        if message.len() > MESSAGE_MAX {
            return Err(TransportError::TooLarge { size: message.len(), limit: MESSAGE_MAX });
        }
        self.sent += message.len() as u64;
        self.sender.send(message).await.map_err(|_| TransportError::Broken {
            peer: self.peer,
            reason: "the peer ended the channel".into(),
        })
    }

    fn bytes_sent(&self) -> u64 {
        self.sent
    }
}

struct MemoryReceiver(mpsc::Receiver<Vec<u8>>);

#[async_trait]
impl MessageReceiver for MemoryReceiver {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        Ok(self.0.recv().await)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way, so a poisoned one still holds sound data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

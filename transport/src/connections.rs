//! The live connections of one transport, by device: which one to use, which one has to go, and what was
//! sent on all of them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use quinn::{Connection, ConnectionStats};
use tidelog::id::DeviceId;

use crate::{codes::EndCode, limits::CONNECTIONS_PER_DEVICE, peers::Peers};

/// What a transport has sent and received since it was bound, on connections whose handshake succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuicStats {
    /// Bytes of UDP payload sent: frames, encryption, acknowledgements and repetitions included.
    pub bytes_sent: u64,
    /// Bytes of UDP payload received.
    pub bytes_received: u64,
    /// Connections that are open now. Two devices that dial each other at the same time have two.
    pub connections: usize,
    /// Connections that have ended since then.
    pub ended: usize,
}

impl QuicStats {
    fn add(&mut self, stats: &ConnectionStats) {
        self.bytes_sent += stats.udp_tx.bytes;
        self.bytes_received += stats.udp_rx.bytes;
    }
}

#[derive(Default)]
pub(crate) struct Connections(Mutex<Live>);

#[derive(Default)]
struct Live {
    /// Oldest first.
    by_device: HashMap<DeviceId, Vec<Entry>>,
    /// Of the connections that are gone.
    past: QuicStats,
}

struct Entry {
    connection: Connection,
    /// It did not answer: it keeps its channels, but new ones go elsewhere.
    suspect: bool,
}

impl Connections {
    /// Takes a connection in, unless its device is no longer a peer; then it is closed.
    pub(crate) fn register(&self, peers: &Peers, device: DeviceId, connection: &Connection) -> bool {
        let mut live = self.lock();
        // Under the lock: `remove` takes the device off the peers first, so one of the two sees the other.
        if !peers.contain(device) {
            connection.close(EndCode::Removed.into(), b"");
            return false;
        }
        let entries = live.by_device.entry(device).or_default();
        entries.push(Entry { connection: connection.clone(), suspect: false });
        let excess = entries.len().saturating_sub(CONNECTIONS_PER_DEVICE);
        for old in &entries[..excess] {
            old.connection.close(EndCode::Superseded.into(), b"");
        }
        true
    }

    /// The connection for new channels to this device.
    pub(crate) fn newest(&self, device: DeviceId) -> Option<Connection> {
        let live = self.lock();
        let usable = |entry: &&Entry| !entry.suspect && entry.connection.close_reason().is_none();
        live.by_device.get(&device)?.iter().rev().find(usable).map(|entry| entry.connection.clone())
    }

    /// No new channels on this connection: it did not answer.
    pub(crate) fn suspect(&self, device: DeviceId, connection: &Connection) {
        let mut live = self.lock();
        for entry in live.by_device.get_mut(&device).into_iter().flatten() {
            entry.suspect |= entry.connection.stable_id() == connection.stable_id();
        }
    }

    /// Forgets a connection that is gone, but not what it carried.
    pub(crate) fn retire(&self, device: DeviceId, connection: &Connection) {
        let mut live = self.lock();
        live.past.add(&connection.stats());
        live.past.ended += 1;
        if let Some(entries) = live.by_device.get_mut(&device) {
            entries.retain(|entry| entry.connection.stable_id() != connection.stable_id());
            if entries.is_empty() {
                live.by_device.remove(&device);
            }
        }
    }

    /// Cuts a device off at once.
    pub(crate) fn close(&self, device: DeviceId) {
        for entry in self.lock().by_device.get(&device).into_iter().flatten() {
            entry.connection.close(EndCode::Removed.into(), b"");
        }
    }

    pub(crate) fn stats(&self) -> QuicStats {
        let live = self.lock();
        let mut stats = live.past;
        for entry in live.by_device.values().flatten() {
            stats.add(&entry.connection.stats());
            stats.connections += usize::from(entry.connection.close_reason().is_none());
        }
        stats
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // Nothing under this lock can panic half-way, so a poisoned one still holds sound data.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

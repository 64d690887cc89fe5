//! What the core asks of a network, and the in-memory network that tests and one-process setups use.
//!
//! A transport knows devices, not what they say: it opens *channels* between two authenticated devices
//! for one library and carries whole messages in order. Who may speak about a library, and what the
//! messages mean, is decided by the node (`node.rs`). The QUIC transport is the crate `tidelog-transport`.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::id::{DeviceId, LibraryId};

mod memory;

pub use memory::{MemoryNetwork, MemoryTransport};

/// Largest frame on a wire, in bytes. A longer message travels as several frames.
pub const FRAME_MAX: usize = 1 << 20;
/// Largest message, in bytes: one batch at its bound and its header.
pub const MESSAGE_MAX: usize = 5 << 20;
/// Messages that wait on a channel before the sender has to wait.
pub const CHANNEL_QUEUE: usize = 4;
/// Channels that peers opened and the node has not taken yet; one more is refused.
pub const INCOMING_QUEUE: usize = 64;

/// Carries channels between devices.
///
/// Implementations authenticate both ends of every channel: [`Channel::peer`] is proven, not claimed.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// The device this transport speaks as.
    fn device(&self) -> DeviceId;

    /// Opens a channel to `peer` about `library`.
    ///
    /// # Errors
    /// [`TransportError::Refused`] if the peer answered and said no (unknown device, unknown library,
    /// other protocol version); the others if it could not be reached. Nothing changes in either case.
    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError>;

    /// Takes the channels that peers open about `library` from now on, until the receiver is dropped.
    ///
    /// A peer that asks for a library nobody listens for is refused by the transport.
    ///
    /// # Errors
    /// [`TransportError::Taken`] if somebody listens for this library already.
    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError>;

    /// The peers configured by hand: the devices that this one may connect to and accepts.
    fn peers(&self) -> Vec<DeviceId>;
}

/// An ordered, reliable, two-way stream of messages with one authenticated peer, about one library.
pub struct Channel {
    /// The device at the other end.
    pub peer: DeviceId,
    /// Towards the peer.
    pub sender: Box<dyn MessageSender>,
    /// From the peer.
    pub receiver: Box<dyn MessageReceiver>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The sending half of a [`Channel`]. Dropping it ends the channel for the peer.
#[async_trait]
pub trait MessageSender: Send {
    /// Sends one message of at most [`MESSAGE_MAX`] bytes; waits while the peer is slow.
    ///
    /// Not cancel safe: a future that is dropped half-way may leave the channel broken, never the peer
    /// with part of a message.
    ///
    /// # Errors
    /// [`TransportError::TooLarge`] without sending anything, or why the channel is gone.
    async fn send(&mut self, message: Vec<u8>) -> Result<(), TransportError>;

    /// Bytes put on the wire by this half so far, framing included.
    fn bytes_sent(&self) -> u64;
}

/// The receiving half of a [`Channel`].
#[async_trait]
pub trait MessageReceiver: Send {
    /// The next message, or `None` when the peer ended the channel in good order.
    ///
    /// Cancel safe: a future that is dropped loses nothing.
    ///
    /// # Errors
    /// Why the channel broke: a damaged or oversized frame is never handed on in part.
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError>;

    /// Counts the bytes that arrive while somebody receives, those of a message that is not whole yet included: where the
    /// network is slow, they are the peer's sign of life. `None` where messages arrive whole.
    fn arriving(&self) -> Option<Arc<AtomicU64>> {
        None
    }
}

/// Why a channel could not be opened or broke. Nothing in any database changed because of it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The device is not among the configured peers.
    #[error("device {0} is not a peer of this transport: nothing was sent; add it as a peer first")]
    UnknownPeer(DeviceId),
    /// The peer could not be reached; trying again later may help.
    #[error("device {peer} cannot be reached: {reason}; nothing was changed, it can be tried again later")]
    Unreachable {
        /// Whom we tried.
        peer: DeviceId,
        /// What the network said.
        reason: String,
    },
    /// The peer answered and said no.
    #[error("device {peer} refused: {reason}; nothing was changed")]
    Refused {
        /// Who refused.
        peer: DeviceId,
        /// Why, and what to do about it there or here.
        reason: String,
    },
    /// The channel ended in the middle of something.
    #[error(
        "the channel to device {peer} broke: {reason}; no part of a message was handed on, open a new channel"
    )]
    Broken {
        /// The other end.
        peer: DeviceId,
        /// What happened.
        reason: String,
    },
    /// A message or frame above its limit; it was not sent, or not accepted.
    #[error(
        "a message of {size} bytes is over the limit of {limit} bytes: nothing of it was handed on; send it in parts"
    )]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Two nodes of one process want the same library on one transport.
    #[error("library {0} is already served on this transport: stop the other node first")]
    Taken(LibraryId),
}

/// A transport that can be shared by several libraries of one process.
pub type SharedTransport = Arc<dyn Transport>;

//! Shears for channels: a transport that hands every channel on, and can break one off in the middle of a message, from
//! either side, while the connection stays. It counts what it is given to send, and can leave off reading.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{Channel, INCOMING_QUEUE, MessageReceiver, MessageSender, Transport, TransportError},
};
use tidelog_transport::Quic;
use tokio::sync::{Notify, mpsc, watch};

/// What is under way through the shears of one device.
pub(crate) struct Shears {
    /// The transport beneath.
    pub(crate) quic: Arc<Quic>,
    state: Arc<State>,
}

struct State {
    cut_receiving: Notify,
    cut_sending: Notify,
    cuts: AtomicUsize,
    sent: Mutex<HashMap<DeviceId, u64>>,
    reads: watch::Sender<bool>,
}

impl Shears {
    /// Shears that cut nothing yet.
    pub(crate) fn over(quic: Arc<Quic>) -> Self {
        let (cut_receiving, cut_sending, cuts) = (Notify::new(), Notify::new(), AtomicUsize::new(0));
        let state = State {
            cut_receiving,
            cut_sending,
            cuts,
            sent: Mutex::default(),
            reads: watch::Sender::new(true),
        };
        Self { quic, state: Arc::new(state) }
    }

    /// Breaks off what is being received now.
    pub(crate) fn cut_receiving(&self) {
        self.state.cut_receiving.notify_waiters();
    }

    /// Breaks off what is being sent now.
    pub(crate) fn cut_sending(&self) {
        self.state.cut_sending.notify_waiters();
    }

    /// How many channels were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Acquire)
    }

    /// Bytes of messages to a device that the transport beneath has taken.
    pub(crate) fn sent(&self, to: DeviceId) -> u64 {
        self.state.sent.lock().unwrap().get(&to).copied().unwrap_or(0)
    }

    /// Whether what arrives is read.
    pub(crate) fn read(&self, reads: bool) {
        self.state.reads.send_replace(reads);
    }
}

#[async_trait]
impl Transport for Shears {
    fn device(&self) -> DeviceId {
        self.quic.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let channel = self.quic.open(peer, library).await?;
        Ok(between(channel, &self.state))
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        let mut channels = self.quic.listen(library)?;
        let (hand_on, handed_on) = mpsc::channel(INCOMING_QUEUE);
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            while let Some(channel) = channels.recv().await {
                if hand_on.send(between(channel, &state)).await.is_err() {
                    return;
                }
            }
        });
        Ok(handed_on)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.quic.peers()
    }
}

fn between(channel: Channel, state: &Arc<State>) -> Channel {
    let Channel { peer, sender, receiver } = channel;
    let (here, there) = (Arc::clone(state), Arc::clone(state));
    Channel {
        peer,
        sender: Box::new(Half { peer, inner: Some(sender), state: here }),
        receiver: Box::new(Half { peer, inner: Some(receiver), state: there }),
    }
}

struct Half<T> {
    peer: DeviceId,
    /// Gone when it was cut.
    inner: Option<T>,
    state: Arc<State>,
}

impl<T> Half<T> {
    fn cut(&mut self) -> TransportError {
        if self.inner.take().is_some() {
            self.state.cuts.fetch_add(1, Ordering::AcqRel);
        }
        self.is_cut()
    }

    fn is_cut(&self) -> TransportError {
        TransportError::Broken { peer: self.peer, reason: "it was cut".into() }
    }
}

#[async_trait]
impl MessageSender for Half<Box<dyn MessageSender>> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), TransportError> {
        let state = Arc::clone(&self.state);
        let Some(inner) = &mut self.inner else { return Err(self.is_cut()) };
        let before = inner.bytes_sent();
        tokio::select! {
            biased;
            () = state.cut_sending.notified() => Err(self.cut()),
            sent = inner.send(message) => {
                *state.sent.lock().unwrap().entry(self.peer).or_default() += inner.bytes_sent() - before;
                sent
            }
        }
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.bytes_sent())
    }
}

#[async_trait]
impl MessageReceiver for Half<Box<dyn MessageReceiver>> {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        let state = Arc::clone(&self.state);
        let Some(inner) = &mut self.inner else { return Err(self.is_cut()) };
        // The sender of it is in the state.
        let _ = state.reads.subscribe().wait_for(|reads| *reads).await;
        tokio::select! {
            biased;
            () = state.cut_receiving.notified() => Err(self.cut()),
            received = inner.receive() => received,
        }
    }

    fn arriving(&self) -> Option<Arc<AtomicU64>> {
        self.inner.as_ref().and_then(|inner| inner.arriving())
    }
}

//! A channel over one bidirectional QUIC stream.
//!
//! The two halves are used apart, but a fault is the channel's: when the receiving half meets a damaged frame
//! it stops its stream with a code and leaves the code for the sending half, which then resets instead of
//! ending in good order. So the peer learns of it whether it sends or waits.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{Channel, MESSAGE_MAX, MessageReceiver, MessageSender, TransportError},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tracing::warn;

use crate::{
    codes::{EndCode, describe_code, describe_loss},
    frame::{Decoder, FrameError, Item, encode_message},
    limits::CLOSE_TIMEOUT,
};

/// What both halves of a channel know.
pub(crate) struct Link {
    pub(crate) peer: DeviceId,
    pub(crate) address: SocketAddr,
    pub(crate) library: LibraryId,
    pub(crate) lingering: Lingering,
    /// Why the receiving half broke the channel off, if it did.
    fault: OnceLock<EndCode>,
}

impl Link {
    pub(crate) fn new(
        peer: DeviceId,
        address: SocketAddr,
        library: LibraryId,
        lingering: Lingering,
    ) -> Arc<Self> {
        Arc::new(Self { peer, address, library, lingering, fault: OnceLock::new() })
    }

    fn broken(&self, reason: impl Into<String>) -> TransportError {
        TransportError::Broken { peer: self.peer, reason: reason.into() }
    }

    /// The peer ended a stream with this code; a reproach is logged, an ordinary end is not.
    fn ended_by_peer(&self, code: quinn::VarInt) -> TransportError {
        let reason = describe_code(code);
        if EndCode::parse(code).is_some_and(EndCode::is_fault) {
            warn!(peer = %self.peer, address = %self.address, library = %self.library,
                "the channel was broken off: {reason}");
        }
        self.broken(reason)
    }
}

/// The channel over an agreed stream.
pub(crate) fn channel(link: Arc<Link>, stream: SendStream, frames: FrameReader) -> Channel {
    Channel {
        peer: link.peer,
        sender: Box::new(Sender { stream: Some(stream), sent: 0, torn: false, link: Arc::clone(&link) }),
        receiver: Box::new(Receiver { frames, ended: None, link }),
    }
}

struct Sender {
    /// Taken when the half is dropped.
    stream: Option<SendStream>,
    sent: u64,
    /// Part of a message is out and the rest never will be.
    torn: bool,
    link: Arc<Link>,
}

#[async_trait]
impl MessageSender for Sender {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), TransportError> {
        if message.len() > MESSAGE_MAX {
            return Err(TransportError::TooLarge { size: message.len(), limit: MESSAGE_MAX });
        }
        let Some(stream) = &mut self.stream else { return Err(self.link.broken("it was ended here")) };
        if self.torn {
            return Err(self.link.broken("an earlier message was given up half-way"));
        }
        let (mut chunks, wire) = encode_message(message);
        self.torn = true;
        stream.write_all_chunks(&mut chunks).await.map_err(|error| match error {
            WriteError::Stopped(code) => self.link.ended_by_peer(code),
            WriteError::ConnectionLost(error) => self.link.broken(describe_loss(&error)),
            other => self.link.broken(other.to_string()),
        })?;
        self.torn = false;
        self.sent += wire;
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.sent
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        let code = self.link.fault.get().copied().or(self.torn.then_some(EndCode::Abandoned));
        // Both fail only when the stream is over already, and then there is nothing to end.
        match code {
            Some(code) => drop(stream.reset(code.into())),
            None if stream.finish().is_ok() => self.link.lingering.until_delivered(stream),
            None => {}
        }
    }
}

struct Receiver {
    frames: FrameReader,
    /// How the channel ended, once it has: the same answer ever after.
    ended: Option<Result<(), TransportError>>,
    link: Arc<Link>,
}

#[async_trait]
impl MessageReceiver for Receiver {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        if let Some(end) = &self.ended {
            return end.clone().map(|()| None);
        }
        let end = match self.frames.next().await {
            Ok(Some(Item::Message(message))) => return Ok(Some(message)),
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.break_off(ReadFault::Misplaced)),
            Err(fault) => Err(self.break_off(fault)),
        };
        self.ended = Some(end.clone());
        end.map(|()| None)
    }

    fn arriving(&self) -> Option<Arc<AtomicU64>> {
        Some(Arc::clone(&self.frames.arrived))
    }
}

impl Receiver {
    fn break_off(&mut self, fault: ReadFault) -> TransportError {
        let Link { peer, address, library, .. } = &*self.link;
        if let Some(code) = self.frames.stop_for(&fault) {
            self.link.fault.get_or_init(|| code);
            warn!(%peer, %address, %library, "broke the channel off: {fault}; nothing of it was handed on");
        }
        match fault {
            ReadFault::Stream(ReadError::Reset(code)) => self.link.ended_by_peer(code),
            ReadFault::Frame(FrameError::TooLarge { size, limit }) => {
                TransportError::TooLarge { size, limit }
            }
            other => self.link.broken(other.to_string()),
        }
    }
}

/// Why no item could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFault {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("a frame that has no place here")]
    Misplaced,
    #[error("half a frame, and the rest did not arrive within {} s", .0.as_secs_f32())]
    TooSlow(Duration),
    #[error("{}", describe_read(.0))]
    Stream(#[from] ReadError),
}

fn describe_read(error: &ReadError) -> String {
    match error {
        ReadError::Reset(code) => describe_code(*code),
        ReadError::ConnectionLost(error) => describe_loss(error),
        other => other.to_string(),
    }
}

/// Reads items off a stream. Cancel safe: all it knows is in itself.
pub(crate) struct FrameReader {
    stream: RecvStream,
    decoder: Decoder,
    /// Arrived and not decoded yet.
    chunk: Bytes,
    /// When the frame that has begun must be whole.
    deadline: Option<Instant>,
    frame_timeout: Duration,
    /// Bytes that have arrived.
    arrived: Arc<AtomicU64>,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream, frame_timeout: Duration) -> Self {
        let (decoder, chunk, arrived) = (Decoder::default(), Bytes::new(), Arc::default());
        Self { stream, decoder, chunk, deadline: None, frame_timeout, arrived }
    }

    /// The next item; `None` when the stream ended between two items.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, ReadFault> {
        loop {
            if let Some(item) = self.decode()? {
                return Ok(Some(item));
            }
            let chunk = match self.deadline {
                // What has arrived is read even when the deadline is past: whoever reads late is not punished.
                Some(deadline) => timeout_at(deadline, self.stream.read_chunk(usize::MAX, true))
                    .await
                    .map_err(|_| ReadFault::TooSlow(self.frame_timeout))?,
                None => self.stream.read_chunk(usize::MAX, true).await,
            };
            match chunk? {
                Some(chunk) => {
                    self.arrived.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
                    self.chunk = chunk.bytes;
                }
                None if self.decoder.inside() => return Err(FrameError::Truncated.into()),
                None => return Ok(None),
            }
        }
    }

    /// Tells the peer to stop sending, if the fault is the peer's; the code says why.
    pub(crate) fn stop_for(&mut self, fault: &ReadFault) -> Option<EndCode> {
        let code = match fault {
            ReadFault::Frame(FrameError::TooLarge { .. }) => EndCode::TooLarge,
            ReadFault::Frame(FrameError::Truncated) => EndCode::Truncated,
            ReadFault::Frame(_) | ReadFault::Misplaced => EndCode::Damaged,
            ReadFault::TooSlow(_) => EndCode::TooSlow,
            ReadFault::Stream(_) => return None,
        };
        // Fails only on a stream that has ended, as a truncated one has.
        let _ = self.stream.stop(code.into());
        Some(code)
    }

    fn decode(&mut self) -> Result<Option<Item>, FrameError> {
        while !self.chunk.is_empty() {
            let begun = self.decoder.begun();
            let mut rest = &self.chunk[..];
            let item = self.decoder.read(&mut rest)?;
            let taken = self.chunk.len() - rest.len();
            self.chunk.advance(taken);
            if item.is_some() {
                self.deadline = None;
                return Ok(item);
            }
            // What has arrived may be the end of one frame and the beginning of the next.
            if self.decoder.begun() != begun || self.decoder.between_frames() {
                self.deadline = Some(Instant::now() + self.frame_timeout);
            }
        }
        Ok(None)
    }
}

/// Counts the ended streams whose last bytes the peer has not confirmed yet, so that closing can wait.
#[derive(Clone)]
pub(crate) struct Lingering {
    count: watch::Sender<usize>,
    runtime: Handle,
}

impl Lingering {
    /// To be called on the runtime that the transport lives on.
    pub(crate) fn new() -> Self {
        Self { count: watch::Sender::new(0), runtime: Handle::current() }
    }

    fn until_delivered(&self, stream: SendStream) {
        self.count.send_modify(|count| *count += 1);
        let count = self.count.clone();
        self.runtime.spawn(async move {
            // A peer that neither confirms nor goes away is not waited for; QUIC goes on trying by itself.
            let _ = timeout(CLOSE_TIMEOUT, stream.stopped()).await;
            count.send_modify(|count| *count -= 1);
        });
    }

    /// Waits until everything is delivered, at most [`CLOSE_TIMEOUT`].
    pub(crate) async fn settled(&self) {
        let mut count = self.count.subscribe();
        // The sender is in `self`, so only the timeout can end the wait early.
        let _ = timeout(CLOSE_TIMEOUT, count.wait_for(|count| *count == 0)).await;
    }
}

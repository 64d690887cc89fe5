//! The QUIC transport between real endpoints on loopback.
//!
//! - `carried.rs`: messages, channels and connections when all goes well
//! - `refused.rs`: whom it refuses, and in which words on both sides
//! - `peers.rs`: peers that are removed, restarted and killed
//! - `bounds.rs`: what happens at each limit
//! - `damaged.rs`: a peer that breaks the rules of frames
//!
//! Nothing here waits for luck: every wait is for a condition and has an end.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::{
    future::Future,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tidelog::{
    id::LibraryId,
    transport::{Channel, Transport, TransportError},
};
use tidelog_transport::{Identity, Quic, QuicOptions};
use tokio::sync::mpsc;

mod bounds;
mod carried;
mod damaged;
mod peers;
mod raw;
mod refused;

/// No condition here takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Waits until `attempt` gives something.
async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn options() -> QuicOptions {
    QuicOptions { listen: LOOPBACK, ..QuicOptions::default() }
}

async fn bind(options: QuicOptions) -> Quic {
    Quic::bind(Identity::generate().unwrap(), options).await.unwrap()
}

fn introduce(dialler: &Quic, acceptor: &Quic) {
    dialler.add_peer(acceptor.device(), Some(acceptor.local_addr().unwrap()));
    acceptor.add_peer(dialler.device(), None);
}

/// A dialler and an acceptor: the dialler has the acceptor's address, not the other way round.
async fn pair() -> (Quic, Quic) {
    pair_with(options(), options()).await
}

async fn pair_with(dialler: QuicOptions, acceptor: QuicOptions) -> (Quic, Quic) {
    let (dialler, acceptor) = (bind(dialler).await, bind(acceptor).await);
    introduce(&dialler, &acceptor);
    (dialler, acceptor)
}

async fn open(from: &Quic, to: &Quic, library: LibraryId) -> Result<Channel, TransportError> {
    soon("open", from.open(to.device(), library)).await
}

async fn take(incoming: &mut mpsc::Receiver<Channel>) -> Channel {
    soon("an incoming channel", incoming.recv()).await.expect("the transport is open")
}

/// Both ends of a channel about a library of its own.
async fn joined(from: &Quic, to: &Quic) -> (Channel, Channel) {
    let library = LibraryId::random();
    let mut incoming = to.listen(library).unwrap();
    (open(from, to, library).await.unwrap(), take(&mut incoming).await)
}

async fn receive(channel: &mut Channel) -> Result<Option<Vec<u8>>, TransportError> {
    soon("a message", channel.receiver.receive()).await
}

async fn assert_carries(from: &mut Channel, to: &mut Channel) {
    from.sender.send(b"still here".to_vec()).await.unwrap();
    assert_eq!(receive(to).await.unwrap().as_deref(), Some(&b"still here"[..]));
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

/// The log of everything that runs on this test's thread while it exists.
struct Log {
    lines: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn capture() -> Self {
        let buffer = Buffer::default();
        let lines = Arc::clone(&buffer.0);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || buffer.clone())
            .finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    fn text(&self) -> String {
        String::from_utf8(self.lines.lock().unwrap().clone()).unwrap()
    }

    /// Waits for a line that has all these parts.
    async fn shows(&self, parts: &[&str]) {
        let start = Instant::now();
        while !self.text().lines().any(|line| parts.iter().all(|part| line.contains(part))) {
            assert!(start.elapsed() < PATIENCE, "no line with {parts:?} in:\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

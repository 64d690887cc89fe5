//! The transport itself: one UDP socket, through which this device dials and is dialled.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use quinn::{
    AsyncUdpSocket, Endpoint, EndpointConfig, IdleTimeout, Runtime, ServerConfig, TokioRuntime,
    TransportConfig, VarInt, crypto::rustls::QuicServerConfig,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::crypto::CryptoProvider;
use socket2::{Domain, Protocol, Socket, Type};
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{Channel, INCOMING_QUEUE, Transport, TransportError},
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::info;

use crate::{
    accept::accept_connections,
    channel::Lingering,
    codes::EndCode,
    connections::{Connections, QuicStats},
    dial::{self, Dialled},
    identity::Identity,
    limits::{
        ANSWER_TIMEOUT, CLOSE_TIMEOUT, CONNECTION_WINDOW, FRAME_TIMEOUT, HANDSHAKE_TIMEOUT,
        HANDSHAKES_PENDING, IDLE_TIMEOUT, INITIAL_RTT, KEEP_ALIVE, SEND_WINDOW, SLOT_TIMEOUT, SOCKET_BUFFER,
        STREAM_WINDOW, STREAMS_ALLOWED,
    },
    peers::{Peer, Peers},
    preface::Versions,
    tls::{KnownDevices, server_config},
};

/// Where a transport listens and whom it knows.
#[derive(Clone, Debug)]
pub struct QuicOptions {
    /// The UDP address to listen on and to dial from. Default `[::]:0`: every interface, IPv6 and IPv4, any
    /// free port; on a system without IPv6 it becomes `0.0.0.0:0`. Strangers can reach the port and get no
    /// further than the handshake; use a loopback address if nobody outside should even reach it.
    pub listen: SocketAddr,
    /// The devices that may connect and, where they have an address, be dialled. Default: none.
    pub peers: Vec<Peer>,
    /// The protocol versions to speak; only tests speak others than this build's.
    #[doc(hidden)]
    pub versions: Versions,
    /// How long to wait for what; only tests wait less.
    #[doc(hidden)]
    pub patience: Patience,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            peers: Vec::new(),
            versions: Versions::OURS,
            patience: Patience::default(),
        }
    }
}

/// The timeouts that tests shorten.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// See [`HANDSHAKE_TIMEOUT`].
    pub handshake: Duration,
    /// See [`FRAME_TIMEOUT`].
    pub frame: Duration,
    /// See [`ANSWER_TIMEOUT`].
    pub answer: Duration,
    /// See [`SLOT_TIMEOUT`].
    pub slot: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: HANDSHAKE_TIMEOUT,
            frame: FRAME_TIMEOUT,
            answer: ANSWER_TIMEOUT,
            slot: SLOT_TIMEOUT,
        }
    }
}

/// Why a transport could not be bound. Nothing listens and nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The socket could not be had.
    #[error(
        "cannot listen on UDP {address}: {source}; nothing was changed; choose another address or port, or stop the program that has it"
    )]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity does not make a TLS configuration.
    #[error("the device identity cannot be used for TLS: {0}; nothing was changed; load the identity again")]
    Tls(String),
}

/// Channels to other devices over QUIC. Shared by all libraries of a process as `Arc<Quic>`.
///
/// One connection per peer carries all channels, each on a stream of its own; it is dialled when the first
/// channel is opened and lives until it fails, the peer is removed or the transport closes. Who may connect
/// is in [`QuicOptions::peers`] and can change at any time. Dropping the transport closes it without waiting;
/// [`close`](Self::close) waits. Needs a tokio runtime with time and IO.
pub struct Quic {
    shared: Arc<Shared>,
}

/// What the tasks of one transport have in common.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) endpoint: Endpoint,
    pub(crate) server_config: ServerConfig,
    pub(crate) transport_config: Arc<TransportConfig>,
    pub(crate) versions: Versions,
    pub(crate) limits: Patience,
    pub(crate) peers: Arc<Peers>,
    pub(crate) connections: Connections,
    pub(crate) lingering: Lingering,
    listeners: Mutex<HashMap<LibraryId, mpsc::Sender<Channel>>>,
    /// The dials under way.
    dials: Mutex<HashMap<DeviceId, watch::Receiver<Option<Dialled>>>>,
}

impl Quic {
    /// Listens on the socket and lets the configured peers in. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`], with nothing left behind.
    pub async fn bind(identity: Identity, options: QuicOptions) -> Result<Self, BindError> {
        let socket = bind_socket(options.listen).and_then(|socket| TokioRuntime.wrap_udp_socket(socket));
        let socket = socket.map_err(|source| BindError::Listen { address: options.listen, source })?;
        Self::on(identity, options, socket)
    }

    /// [`Quic::bind`] on a socket of the caller's, such as one of a simulated network. What it listens on is the socket's
    /// affair. Time is tokio's, also where that is simulated.
    ///
    /// # Errors
    /// [`BindError`], with nothing left behind.
    #[cfg(feature = "testing")]
    pub fn bind_on(
        identity: Identity,
        options: QuicOptions,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Result<Self, BindError> {
        Self::on(identity, options, socket)
    }

    fn on(
        identity: Identity,
        options: QuicOptions,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Result<Self, BindError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let peers = Arc::new(Peers::new(&options.peers));
        let transport_config = Arc::new(transport_config());
        let tls = |error: &dyn std::error::Error| BindError::Tls(error.to_string());
        let nobody = Arc::new(KnownDevices::new(Arc::clone(&provider), Arc::clone(&peers)));
        let server_tls = server_config(&identity, nobody).map_err(|error| tls(&error))?;
        let server_tls = QuicServerConfig::try_from(server_tls).map_err(|error| tls(&error))?;
        let mut server_config = ServerConfig::with_crypto(Arc::new(server_tls));
        server_config.transport_config(Arc::clone(&transport_config)).max_incoming(HANDSHAKES_PENDING);
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(&identity),
            Some(server_config.clone()),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(|source| BindError::Listen { address: options.listen, source })?;
        let shared = Arc::new(Shared {
            identity,
            provider,
            endpoint,
            server_config,
            transport_config,
            versions: options.versions,
            limits: options.patience,
            peers,
            connections: Connections::default(),
            lingering: Lingering::new(),
            listeners: Mutex::default(),
            dials: Mutex::default(),
        });
        tokio::spawn(accept_connections(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Where it really listens: with the port that the system chose.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Lets a device connect from now on, and be dialled if it has an address. A device that is known already
    /// gets the new address for the next dial; its connections stay.
    pub fn add_peer(&self, device: DeviceId, address: Option<SocketAddr>) {
        self.shared.peers.add(device, address);
    }

    /// Forgets a device and cuts it off: its connections close at once and it cannot come back. Whether it
    /// was known.
    pub fn remove_peer(&self, device: DeviceId) -> bool {
        let known = self.shared.peers.remove(device);
        self.shared.connections.close(device);
        known
    }

    /// What went over the wire so far.
    pub fn stats(&self) -> QuicStats {
        self.shared.connections.stats()
    }

    /// Ends the transport in good order: waits until the peers have what was sent on channels that were
    /// dropped before, then closes every connection and tells the peers. Takes at most twice
    /// [`CLOSE_TIMEOUT`]. Channels that still exist break; the port is free once they are dropped, too.
    pub async fn close(&self) {
        self.shared.lingering.settled().await;
        self.shared.shut();
        // Peers that do not answer are not waited for.
        let _ = timeout(CLOSE_TIMEOUT, self.shared.endpoint.wait_idle()).await;
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.shared.shut();
    }
}

#[async_trait]
impl Transport for Quic {
    fn device(&self) -> DeviceId {
        self.shared.identity.device_id()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        dial::open(&self.shared, peer, library).await
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        let mut listeners = self.shared.listeners();
        if listeners.get(&library).is_some_and(|queue| !queue.is_closed()) {
            return Err(TransportError::Taken(library));
        }
        listeners.retain(|_, queue| !queue.is_closed());
        let (queue, channels) = mpsc::channel(INCOMING_QUEUE);
        listeners.insert(library, queue);
        Ok(channels)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.shared.peers.devices()
    }
}

impl Shared {
    pub(crate) fn listeners(&self) -> MutexGuard<'_, HashMap<LibraryId, mpsc::Sender<Channel>>> {
        lock(&self.listeners)
    }

    pub(crate) fn dials(&self) -> MutexGuard<'_, HashMap<DeviceId, watch::Receiver<Option<Dialled>>>> {
        lock(&self.dials)
    }

    fn shut(&self) {
        self.endpoint.close(EndCode::Closing.into(), b"");
        self.listeners().clear();
    }
}

/// An address as people know it: IPv4 on a socket for both shows up as an IPv6 one otherwise.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_ALLOWED.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32))));
    config
}

/// Connection ids and reset tokens come from the device key, so that a restarted device can tell its peers
/// at once that their old connections are gone, instead of leaving them to the idle timeout.
fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let secret = identity.derived_secret("stateless reset");
    let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
    let [a, b, c, d, e, f, g, h, ..] = identity.derived_secret("connection ids");
    let connection_ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_ids)));
    config
}

fn bind_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    match open_socket(address) {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            info!("no IPv6 here ({error}): listening on IPv4 only");
            open_socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        other => other,
    }
}

fn open_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    // As much as the system grants: with less a burst is lost in part, and the sender takes the way for a narrow one.
    for sized in [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)] {
        if let Err(error) = sized {
            tracing::debug!(%error, "the socket keeps the buffers that the system gives it");
        }
    }
    Ok(socket.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way, so a poisoned one still holds sound data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

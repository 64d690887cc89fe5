//! The side that dials: finding or making a connection to a peer, and asking for a channel on it.

use std::{net::SocketAddr, sync::Arc};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectError, Connection, ConnectionError, ReadError, WriteError};
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{Channel, TransportError},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{
    accept::attend,
    channel::{FrameReader, Link, ReadFault, channel},
    codes::{describe_code, describe_loss, is_access_denied, is_busy, is_impostor, is_other_application},
    frame::{Item, Kind, encode_control},
    identity::SERVER_NAME,
    limits::{DOUBT_AFTER, STREAMS_PER_CONNECTION},
    preface::{Preface, readable},
    quic::{Shared, plain},
    tls::{ExpectedDevice, client_config},
};

/// How one dial ends, for everybody who waits for it.
pub(crate) type Dialled = Result<Connection, TransportError>;

/// Opens a channel: on a connection that is there, and if that turns out to be dead, once on a fresh one.
pub(crate) async fn open(
    shared: &Arc<Shared>,
    peer: DeviceId,
    library: LibraryId,
) -> Result<Channel, TransportError> {
    if !shared.peers.contain(peer) {
        return Err(TransportError::UnknownPeer(peer));
    }
    if let Some(connection) = shared.connections.newest(peer) {
        let asked = tokio::select! {
            asked = ask(shared, &connection, peer, library) => asked,
            () = silence(&connection) => Err(AskError::Silent),
        };
        match asked {
            Err(AskError::Lost(error)) => {
                debug!(%peer, "dialling again: {}", describe_loss(&error));
            }
            Err(AskError::Silent) => debug!(%peer, "dialling again: the connection does not answer"),
            other => return other.map_err(|error| explain(shared, &connection, peer, library, error)),
        }
        shared.connections.suspect(peer, &connection);
    }
    let connection = match shared.connections.newest(peer) {
        Some(connection) => connection,
        None => dial_once(shared, peer).await?,
    };
    let asked = ask(shared, &connection, peer, library).await;
    asked.map_err(|error| explain(shared, &connection, peer, library, error))
}

/// Resolves when nothing has arrived on the connection for so long that there is hardly anybody at its other end: its process
/// was killed and listens elsewhere now, or the way there is broken.
async fn silence(connection: &Connection) {
    let arrived = || connection.stats().udp_rx.datagrams;
    let mut before = arrived();
    loop {
        sleep(DOUBT_AFTER.max(4 * connection.rtt())).await;
        let now = arrived();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Why a connection gave no channel.
enum AskError {
    /// The connection is gone.
    Lost(ConnectionError),
    /// No answer in time.
    Silent,
    /// All streams are in use.
    Full,
    /// The peer said no, in its own words.
    Refused(String),
    /// The stream broke or what came was no answer.
    Broken(String),
}

impl From<ConnectionError> for AskError {
    fn from(error: ConnectionError) -> Self {
        Self::Lost(error)
    }
}

impl From<WriteError> for AskError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Lost(error),
            WriteError::Stopped(code) => Self::Broken(describe_code(code)),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl From<ReadFault> for AskError {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Stream(ReadError::ConnectionLost(error)) => Self::Lost(error),
            other => Self::Broken(other.to_string()),
        }
    }
}

async fn ask(
    shared: &Shared,
    connection: &Connection,
    peer: DeviceId,
    library: LibraryId,
) -> Result<Channel, AskError> {
    let stream = timeout(shared.limits.slot, connection.open_bi()).await;
    let (mut send, receive) = stream.map_err(|_| AskError::Full)??;
    let preface = Preface { versions: shared.versions, library };
    let mut frames = FrameReader::new(receive, shared.limits.frame);
    let answer = timeout(shared.limits.answer, async {
        send.write_all(&encode_control(Kind::Preface, &preface.encode())).await?;
        Ok::<_, AskError>(frames.next().await?)
    });
    match answer.await.map_err(|_| AskError::Silent)?? {
        Some(Item::Accepted(version)) => {
            let version = version.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
            if !version.is_some_and(|version| shared.versions.contain(version)) {
                return Err(AskError::Broken("it chose a protocol version that was not offered".into()));
            }
            let link = Link::new(peer, plain(connection.remote_address()), library, shared.lingering.clone());
            Ok(channel(link, send, frames))
        }
        Some(Item::Refused(reason)) => Err(AskError::Refused(readable(&reason))),
        Some(_) => Err(AskError::Broken("its answer was none".into())),
        None => Err(AskError::Broken("it ended the channel without an answer".into())),
    }
}

fn explain(
    shared: &Shared,
    connection: &Connection,
    peer: DeviceId,
    library: LibraryId,
    error: AskError,
) -> TransportError {
    let address = plain(connection.remote_address());
    match error {
        AskError::Lost(error) => explain_loss(shared, peer, address, &error),
        AskError::Silent => TransportError::Unreachable {
            peer,
            reason: format!("{address} did not answer within {:?}", shared.limits.answer),
        },
        AskError::Full => TransportError::Unreachable {
            peer,
            reason: format!(
                "all {STREAMS_PER_CONNECTION} channels that may be open to it at once are in use, \
                 and none ended within {:?}; end one",
                shared.limits.slot
            ),
        },
        AskError::Refused(reason) => {
            warn!(%peer, %address, %library, "a channel was refused: {reason}; nothing was changed");
            TransportError::Refused { peer, reason }
        }
        AskError::Broken(reason) => {
            warn!(%peer, %address, %library, "a channel could not be opened: {reason}; nothing was changed");
            TransportError::Broken { peer, reason }
        }
    }
}

/// Dials, or waits for the dial that is under way: however many want a connection, one is made.
async fn dial_once(shared: &Arc<Shared>, peer: DeviceId) -> Dialled {
    let mut outcome = {
        let mut dials = shared.dials();
        match dials.get(&peer) {
            Some(running) => running.clone(),
            None => {
                let (tell, outcome) = watch::channel(None);
                dials.insert(peer, outcome.clone());
                // A task of its own: it comes to its end also when those who wait for it do not.
                tokio::spawn(run_dial(Arc::clone(shared), peer, tell));
                outcome
            }
        }
    };
    let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|dialled| dialled.clone());
    ended.unwrap_or_else(|| {
        Err(TransportError::Unreachable { peer, reason: "this transport is being shut down".into() })
    })
}

async fn run_dial(shared: Arc<Shared>, peer: DeviceId, tell: watch::Sender<Option<Dialled>>) {
    let dialled = dial(&shared, peer).await;
    if let Ok(connection) = &dialled {
        attend(&shared, peer, connection.clone());
    }
    // First out of the map: whoever comes from now on uses the new connection, or tries anew.
    shared.dials().remove(&peer);
    tell.send_replace(Some(dialled));
}

async fn dial(shared: &Shared, peer: DeviceId) -> Dialled {
    let address = match shared.peers.address(peer) {
        None => return Err(TransportError::UnknownPeer(peer)),
        Some(None) => {
            let reason =
                "it is not connected, and no address is configured to dial it: add one, or wait for it";
            return Err(TransportError::Unreachable { peer, reason: reason.into() });
        }
        Some(Some(address)) => address,
    };
    let verifier = Arc::new(ExpectedDevice::new(Arc::clone(&shared.provider), peer));
    let unreachable = |reason: String| TransportError::Unreachable { peer, reason };
    let tls =
        client_config(&shared.identity, Arc::clone(&verifier)).map_err(|e| unreachable(e.to_string()))?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| unreachable(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::clone(&shared.transport_config));
    let connecting =
        shared.endpoint.connect_with(config, address, SERVER_NAME).map_err(|error| match error {
            ConnectError::EndpointStopping => unreachable("this transport is closed".into()),
            other => unreachable(format!("{address}: {other}")),
        })?;
    match timeout(shared.limits.handshake, connecting).await {
        Ok(Ok(connection)) => {
            debug!(%peer, %address, "connected to a peer");
            Ok(connection)
        }
        Ok(Err(error)) => Err(match verifier.turned_away() {
            Some(found) => explain_other_device(peer, address, found),
            None => explain_loss(shared, peer, address, &error),
        }),
        Err(_) => {
            Err(unreachable(format!("nobody answered at {address} within {:?}", shared.limits.handshake)))
        }
    }
}

fn explain_other_device(peer: DeviceId, address: SocketAddr, found: DeviceId) -> TransportError {
    let reason = format!(
        "at {address} there is device {found}, not {peer}: correct the address, \
         or add {found} as a peer if you trust it"
    );
    warn!(%peer, %found, %address, "did not connect: {reason}; nothing was changed");
    TransportError::Refused { peer, reason }
}

/// What a lost connection means for whoever wanted a channel on it.
fn explain_loss(
    shared: &Shared,
    peer: DeviceId,
    address: SocketAddr,
    error: &ConnectionError,
) -> TransportError {
    let me = shared.identity.device_id();
    let refused = |reason: String| {
        warn!(%peer, %address, "refused by device {peer} at {address}: {reason}; nothing was changed");
        TransportError::Refused { peer, reason }
    };
    if is_access_denied(error) {
        return refused(format!("it does not know this device ({me}): add {me} as a peer there"));
    }
    if is_other_application(error) {
        return refused(format!("what listens at {address} does not speak tidelog: correct the address"));
    }
    if is_impostor(error) {
        return refused(format!(
            "what listens at {address} shows the certificate of {peer} and does not hold its key: \
             correct the address, and do not trust that one"
        ));
    }
    let reason = if is_busy(error) {
        format!("{address} has too many handshakes under way")
    } else {
        format!("{address}: {}", describe_loss(error))
    };
    TransportError::Unreachable { peer, reason }
}

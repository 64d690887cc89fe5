//! The side that is dialled: handshakes with whoever comes, then the channels that peers open.

use std::{net::SocketAddr, sync::Arc};

use quinn::{
    Connection, ConnectionError, Incoming, RecvStream, SendStream, crypto::rustls::QuicServerConfig,
};
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{Channel, INCOMING_QUEUE},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tracing::{debug, warn};

use crate::{
    channel::{FrameReader, Link, ReadFault, channel},
    codes::{describe_loss, is_access_denied},
    frame::{Item, Kind, encode_control},
    limits::HANDSHAKES_PENDING,
    preface::Preface,
    quic::{Shared, plain},
    tls::{KnownDevices, device_of_certificate, server_config},
};

/// Lets connections in until the endpoint is closed.
pub(crate) async fn accept_connections(shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_PENDING));
    while let Some(incoming) = shared.endpoint.accept().await {
        let address = plain(incoming.remote_address());
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            warn!(%address, "refused a connection: {HANDSHAKES_PENDING} handshakes are under way already");
            incoming.refuse();
            continue;
        };
        if places.available_permits() < HANDSHAKES_PENDING / 2 && incoming.may_retry() {
            // It comes back with a token that only the owner of the address can have received. The call
            // fails only for what may not be retried.
            let _ = incoming.retry();
            continue;
        }
        tokio::spawn(welcome(Arc::clone(&shared), incoming, address, place));
    }
}

async fn welcome(shared: Arc<Shared>, incoming: Incoming, address: SocketAddr, place: OwnedSemaphorePermit) {
    let verifier = Arc::new(KnownDevices::new(Arc::clone(&shared.provider), Arc::clone(&shared.peers)));
    let shaken =
        timeout(shared.limits.handshake, shake_hands(&shared, incoming, Arc::clone(&verifier))).await;
    drop(place);
    match shaken {
        Ok(Ok((connection, device))) => {
            debug!(peer = %device, %address, "a peer connected");
            attend(&shared, device, connection);
        }
        Ok(Err(reason)) => match verifier.turned_away() {
            Some(device) => warn!(%device, %address,
                "refused device {device} at {address}: it is not a peer of this device; nothing was changed; \
                 if it should be let in, add {device} as a peer here"),
            None => warn!(%address, "a handshake failed: {reason}; nothing was changed"),
        },
        Err(_) => {
            warn!(%address, "a handshake was given up after {:?}; nothing was changed", shared.limits.handshake)
        }
    }
}

async fn shake_hands(
    shared: &Shared,
    incoming: Incoming,
    verifier: Arc<KnownDevices>,
) -> Result<(Connection, DeviceId), String> {
    let tls = server_config(&shared.identity, verifier).map_err(|error| error.to_string())?;
    let mut config = shared.server_config.clone();
    config.crypto = Arc::new(QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?);
    let connecting = incoming.accept_with(Arc::new(config)).map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(|error| {
        if is_access_denied(&error) {
            let me = shared.identity.device_id();
            format!(
                "whoever dialled expects another device here than {me}: correct the address or the id there"
            )
        } else {
            describe_loss(&error)
        }
    })?;
    let device = proven_device(&connection).ok_or("it showed no certificate")?;
    Ok((connection, device))
}

/// The device at the other end, whose key the handshake has proven.
pub(crate) fn proven_device(connection: &Connection) -> Option<DeviceId> {
    let certificates =
        connection.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    device_of_certificate(certificates.first()?).ok()
}

/// Takes a connection in, whoever dialled it, and serves the channels that the peer opens on it.
pub(crate) fn attend(shared: &Arc<Shared>, device: DeviceId, connection: Connection) {
    if !shared.connections.register(&shared.peers, device, &connection) {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let lost = serve(&shared, device, &connection).await;
        debug!(peer = %device, address = %plain(connection.remote_address()),
            "a connection ended: {}", describe_loss(&lost));
        shared.connections.retire(device, &connection);
    });
}

/// Each stream has its own task; QUIC bounds their number.
async fn serve(shared: &Arc<Shared>, device: DeviceId, connection: &Connection) -> ConnectionError {
    loop {
        match connection.accept_bi().await {
            Ok((send, receive)) => {
                let address = plain(connection.remote_address());
                tokio::spawn(answer(Arc::clone(shared), device, address, send, receive));
            }
            Err(lost) => return lost,
        }
    }
}

/// Reads what the peer wants and either hands the channel to the library's node or says why not.
async fn answer(
    shared: Arc<Shared>,
    device: DeviceId,
    address: SocketAddr,
    mut send: SendStream,
    receive: RecvStream,
) {
    let mut frames = FrameReader::new(receive, shared.limits.frame);
    let preface = match timeout(shared.limits.frame, frames.next()).await {
        Ok(Ok(Some(Item::Preface(payload)))) => Preface::parse(&payload).ok_or(ReadFault::Misplaced),
        Ok(Ok(None)) => return,
        Ok(Ok(Some(_))) => Err(ReadFault::Misplaced),
        Ok(Err(fault)) => Err(fault),
        Err(_) => Err(ReadFault::TooSlow(shared.limits.frame)),
    };
    let preface = match preface {
        Ok(preface) => preface,
        Err(fault) => {
            warn!(peer = %device, %address, "refused a channel: {fault}; nothing was changed");
            if let Some(code) = frames.stop_for(&fault) {
                // Fails only when the peer has stopped listening, and then it need not be told.
                let _ = send.reset(code.into());
            }
            return;
        }
    };
    match place_for(&shared, device, preface) {
        Ok((version, place)) => {
            let accepted = encode_control(Kind::Accepted, &version.to_be_bytes());
            if let Err(error) = send.write_all(&accepted).await {
                debug!(peer = %device, %address, "a channel was given up by the peer: {error}");
                return;
            }
            let link = Link::new(device, address, preface.library, shared.lingering.clone());
            place.send(channel(link, send, frames));
        }
        Err(reason) => {
            warn!(peer = %device, %address, library = %preface.library,
                "refused a channel: {reason}; nothing was changed");
            let refused = encode_control(Kind::Refused, reason.as_bytes());
            // A peer that is gone before it hears the answer has no use for it.
            if send.write_all(&refused).await.is_ok() {
                let _ = send.finish();
            }
        }
    }
}

/// The version to speak and a place in the queue of the library's node, or the reason for a refusal, in
/// words that make sense on both sides.
fn place_for(
    shared: &Shared,
    device: DeviceId,
    preface: Preface,
) -> Result<(u16, mpsc::OwnedPermit<Channel>), String> {
    let ours = shared.versions;
    let version = ours.common(preface.versions).ok_or_else(|| {
        format!(
            "protocol versions do not overlap: device {} speaks {ours}, device {} speaks {}; \
             update tidelog on the one with the lower number",
            shared.identity.device_id().short(),
            device.short(),
            preface.versions,
        )
    })?;
    let place = queue_of(shared, preface.library)?;
    Ok((version, place))
}

fn queue_of(shared: &Shared, library: LibraryId) -> Result<mpsc::OwnedPermit<Channel>, String> {
    let me = shared.identity.device_id();
    let queue = shared.listeners().get(&library).cloned();
    let not_served =
        || format!("library {library} is not served by device {}: open and start it there", me.short());
    queue.ok_or_else(not_served)?.try_reserve_owned().map_err(|error| match error {
        mpsc::error::TrySendError::Closed(_) => not_served(),
        mpsc::error::TrySendError::Full(_) => {
            format!(
                "device {} has {INCOMING_QUEUE} channels waiting for library {library}: try again later",
                me.short()
            )
        }
    })
}

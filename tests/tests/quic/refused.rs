//! Whom the transport refuses, and in which words on both sides.

use std::time::{Duration, Instant};

use tidelog::{
    id::LibraryId,
    transport::{Transport, TransportError},
};
use tidelog_transport::{Identity, Patience, Quic, QuicOptions, Versions};

use crate::{
    LOOPBACK, Log, assert_carries, assert_says, bind, joined, open, options, pair, pair_with, raw::Raw, soon,
};

#[tokio::test]
async fn an_unknown_device_is_refused_with_a_reason_on_both_sides() {
    let log = Log::capture();
    let (dialler, acceptor) = (bind(options()).await, bind(options()).await);
    let there = acceptor.local_addr().unwrap();
    dialler.add_peer(acceptor.device(), Some(there));
    let library = LibraryId::random();
    let mut incoming = acceptor.listen(library).unwrap();
    let (me, other) = (dialler.device().to_string(), acceptor.device().to_string());
    // Several at once share the dial or make their own: the answer is the same.
    let (first, second) =
        tokio::join!(open(&dialler, &acceptor, library), open(&dialler, &acceptor, library));
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert!(matches!(error, TransportError::Refused { .. }), "{error}");
        let add = format!("add {me} as a peer there");
        assert_says(&error.to_string(), &[&other, "does not know this device", &add, "nothing was changed"]);
    }
    log.shows(&["WARN", "refused by device", &other, &there.to_string(), "does not know this device", &me])
        .await;
    let here = dialler.local_addr().unwrap().to_string();
    log.shows(&["WARN", "refused device", &me, &here, "nothing was changed", "as a peer here"]).await;
    assert!(incoming.try_recv().is_err(), "nothing reached the node");
    assert_eq!(acceptor.stats().connections, 0);

    acceptor.add_peer(dialler.device(), None);
    open(&dialler, &acceptor, library).await.expect("let in as soon as it is a peer");
}

#[tokio::test]
async fn another_device_at_the_address_is_refused_with_both_ids() {
    let log = Log::capture();
    let (dialler, acceptor) = pair().await;
    let address = acceptor.local_addr().unwrap();
    let expected = Identity::generate().unwrap().device_id();
    dialler.add_peer(expected, Some(address));
    let error = soon("open", dialler.open(expected, LibraryId::random())).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    let found = acceptor.device().to_string();
    let there = format!("at {address} there is device {found}, not {expected}");
    assert_says(&error.to_string(), &[&there, "correct the address", "nothing was changed"]);
    log.shows(&["WARN", "did not connect", &there]).await;
    log.shows(&["WARN", "expects another device here than", &found, "nothing was changed"]).await;
    assert_eq!((dialler.stats().connections, acceptor.stats().connections), (0, 0));
}

#[tokio::test]
async fn other_protocol_versions_are_refused_and_both_are_named() {
    let log = Log::capture();
    let newer = QuicOptions { versions: Versions { min: 2, max: 3 }, ..options() };
    let (dialler, acceptor) = pair_with(options(), newer).await;
    let library = LibraryId::random();
    let mut incoming = acceptor.listen(library).unwrap();
    let error = open(&dialler, &acceptor, library).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    let (me, other) = (dialler.device().short(), acceptor.device().short());
    let versions = format!("device {other} speaks 2 to 3, device {me} speaks 1");
    assert_says(
        &error.to_string(),
        &["protocol versions do not overlap", &versions, "update tidelog", "nothing was changed"],
    );
    log.shows(&["a channel was refused", &acceptor.device().to_string(), &versions]).await;
    log.shows(&["refused a channel", &dialler.device().to_string(), &versions]).await;
    assert!(incoming.try_recv().is_err(), "nothing reached the node");
}

#[tokio::test]
async fn a_newer_version_falls_back_to_the_common_one() {
    let newer = QuicOptions { versions: Versions { min: 1, max: 7 }, ..options() };
    let (dialler, acceptor) = pair_with(newer, options()).await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    assert_carries(&mut ours, &mut theirs).await;
}

#[tokio::test]
async fn a_library_that_is_not_served_is_refused() {
    let log = Log::capture();
    let (dialler, acceptor) = pair().await;
    let library = LibraryId::random();
    let not_served = format!("library {library} is not served by device {}", acceptor.device().short());
    for when in ["nobody listened yet", "the listener is gone"] {
        let error = open(&dialler, &acceptor, library).await.unwrap_err();
        assert!(matches!(error, TransportError::Refused { .. }), "{when}: {error}");
        assert_says(&error.to_string(), &[&not_served, "open and start it there", "nothing was changed"]);
        drop(acceptor.listen(library).unwrap());
    }
    log.shows(&["a channel was refused", &acceptor.device().to_string(), &not_served]).await;
    log.shows(&["refused a channel", &dialler.device().to_string(), &not_served]).await;
    assert_eq!(dialler.stats().connections, 1, "the connection is for all libraries and stays");
}

#[tokio::test]
async fn a_stranger_and_a_device_without_address_are_not_dialled() {
    let transport = bind(options()).await;
    let peer = Identity::generate().unwrap().device_id();
    let error = soon("open", transport.open(peer, LibraryId::random())).await.unwrap_err();
    assert!(matches!(error, TransportError::UnknownPeer(device) if device == peer));
    assert_says(&error.to_string(), &[&peer.to_string(), "nothing was sent", "add it as a peer"]);
    transport.add_peer(peer, None);
    assert_eq!(transport.peers(), [peer]);
    let error = soon("open", transport.open(peer, LibraryId::random())).await.unwrap_err().to_string();
    assert_says(&error, &[&peer.to_string(), "no address is configured", "add one", "nothing was changed"]);
}

#[tokio::test]
async fn nobody_at_the_address_is_an_error_in_time() {
    let silent = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let patience = Patience { handshake: Duration::from_millis(300), ..Patience::default() };
    let transport = bind(QuicOptions { patience, ..options() }).await;
    let peer = Identity::generate().unwrap().device_id();
    let address = silent.local_addr().unwrap();
    transport.add_peer(peer, Some(address));
    let start = Instant::now();
    let error = soon("open", transport.open(peer, LibraryId::random())).await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let nobody = format!("nobody answered at {address}");
    assert_says(
        &error.to_string(),
        &[&peer.to_string(), &nobody, "nothing was changed", "tried again later"],
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let first = bind(options()).await;
    let address = first.local_addr().unwrap();
    let identity = Identity::generate().unwrap();
    let error = Quic::bind(identity, QuicOptions { listen: address, ..options() }).await.err().unwrap();
    assert_says(
        &error.to_string(),
        &[&address.to_string(), "nothing was changed", "another address or port"],
    );
}

#[tokio::test]
async fn another_application_is_not_let_in() {
    let log = Log::capture();
    let (_, acceptor) = pair().await;
    let raw = Raw::speaking(b"h3");
    acceptor.add_peer(raw.device, None);
    raw.connect(&acceptor).await.expect_err("another protocol");
    log.shows(&["WARN", "a handshake failed", "nothing was changed"]).await;
}

#[tokio::test]
async fn another_application_at_the_address_is_refused() {
    let log = Log::capture();
    let dialler = bind(options()).await;
    let raw = Raw::speaking(b"h3");
    let address = raw.serve();
    dialler.add_peer(raw.device, Some(address));
    let error = soon("open", dialler.open(raw.device, LibraryId::random())).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    let no_tidelog = format!("what listens at {address} does not speak tidelog");
    let said = [&*raw.device.to_string(), &no_tidelog, "correct the address", "nothing was changed"];
    assert_says(&error.to_string(), &said);
    log.shows(&["WARN", "refused by device", &no_tidelog]).await;
}

/// The certificate of a peer is public: whoever shows it must also hold its key.
#[tokio::test]
async fn a_stolen_certificate_does_not_let_in() {
    let log = Log::capture();
    let (_, acceptor) = pair().await;
    let owner = Raw::new();
    acceptor.add_peer(owner.device, None);
    let thief = Raw::new().with_certificate_of(&owner);
    if let Ok(connection) = thief.connect(&acceptor).await {
        soon("the end of the connection", connection.closed()).await;
    }
    log.shows(&["WARN", "a handshake failed", "nothing was changed"]).await;
    assert_eq!(acceptor.stats().connections, 0);
}

#[tokio::test]
async fn a_stolen_certificate_is_not_believed_by_who_dials() {
    let log = Log::capture();
    let dialler = bind(options()).await;
    let owner = Raw::new();
    let thief = Raw::new().with_certificate_of(&owner);
    let address = thief.serve();
    dialler.add_peer(owner.device, Some(address));
    let error = soon("open", dialler.open(owner.device, LibraryId::random())).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    let shows = format!("what listens at {address} shows the certificate of {}", owner.device);
    assert_says(
        &error.to_string(),
        &[&shows, "does not hold its key", "correct the address", "nothing was changed"],
    );
    log.shows(&["WARN", "refused by device", &shows]).await;
    assert_eq!(dialler.stats().connections, 0);
}

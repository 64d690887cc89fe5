//! What happens at each limit.

use std::{net::SocketAddr, time::Duration};

use tidelog::{
    id::LibraryId,
    transport::{INCOMING_QUEUE, Transport, TransportError},
};
use tidelog_transport::{
    Patience, QuicOptions,
    limits::{CONNECTIONS_PER_DEVICE, HANDSHAKES_PENDING, STREAMS_PER_CONNECTION},
};
use tokio::net::UdpSocket;

use crate::{
    LOOPBACK, Log, assert_carries, assert_says, open, options, pair, pair_with, raw::Raw, soon, take, until,
};

#[tokio::test]
async fn channels_are_bounded_and_the_next_waits_for_one_to_end() {
    let patience = Patience { slot: Duration::from_millis(200), ..Patience::default() };
    let (dialler, acceptor) = pair_with(QuicOptions { patience, ..options() }, options()).await;
    let library = LibraryId::random();
    let mut incoming = acceptor.listen(library).unwrap();
    let mut channels = Vec::new();
    for _ in 0..STREAMS_PER_CONNECTION {
        channels.push((open(&dialler, &acceptor, library).await.unwrap(), take(&mut incoming).await));
    }
    // As many as are promised are usable however often they end, one at a time.
    for _ in 0..3 * STREAMS_PER_CONNECTION {
        drop(channels.remove(0));
        let ours = open(&dialler, &acceptor, library).await.expect("one has ended");
        channels.push((ours, take(&mut incoming).await));
    }
    let error = loop {
        match open(&dialler, &acceptor, library).await {
            Ok(ours) => channels.push((ours, take(&mut incoming).await)),
            Err(error) => break error,
        }
        assert!(channels.len() < 2 * STREAMS_PER_CONNECTION as usize, "no bound in sight");
    };
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    let all = format!("all {STREAMS_PER_CONNECTION} channels");
    assert_says(
        &error.to_string(),
        &[&acceptor.device().to_string(), &all, "in use", "end one", "nothing was changed"],
    );
    let (ours, theirs) = channels.last_mut().unwrap();
    assert_carries(ours, theirs).await;
}

#[tokio::test]
async fn channels_that_nobody_takes_are_refused_beyond_the_queue() {
    let log = Log::capture();
    let (dialler, acceptor) = pair().await;
    let library = LibraryId::random();
    let mut incoming = acceptor.listen(library).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..INCOMING_QUEUE / STREAMS_PER_CONNECTION as usize {
        let raw = Raw::new();
        acceptor.add_peer(raw.device, None);
        let connection = raw.connect(&acceptor).await.unwrap();
        for _ in 0..STREAMS_PER_CONNECTION {
            waiting.push(raw.channel_on(&connection, library).await);
        }
        waiting.last_mut().unwrap().keep(raw);
    }
    let error = open(&dialler, &acceptor, library).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    let full = format!("has {INCOMING_QUEUE} channels waiting for library {library}");
    assert_says(
        &error.to_string(),
        &[&acceptor.device().short(), &full, "try again later", "nothing was changed"],
    );
    log.shows(&["refused a channel", &dialler.device().to_string(), &full]).await;
    take(&mut incoming).await;
    open(&dialler, &acceptor, library).await.expect("one was taken");
}

#[tokio::test]
async fn a_device_has_two_connections_at_most_and_the_oldest_goes() {
    let (_, acceptor) = pair().await;
    let raw = Raw::new();
    acceptor.add_peer(raw.device, None);
    let library = LibraryId::random();
    let _incoming = acceptor.listen(library).unwrap();
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS_PER_DEVICE + 1 {
        // An answered channel on it: the acceptor has taken the connection in.
        channels.push(raw.channel(&acceptor, library).await);
    }
    let closed = soon("the oldest to go", channels[0].connection.closed()).await;
    assert!(
        matches!(&closed, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == 18_u32.into()),
        "{closed}"
    );
    assert!(channels[1..].iter().all(|channel| channel.connection.close_reason().is_none()));
    assert_eq!(acceptor.stats().connections, CONNECTIONS_PER_DEVICE);
}

/// Strangers behind a relay that forwards all they send, and of the answers only requests to prove their
/// address. So their handshakes begin, and never go on.
async fn stalled_strangers(acceptor: SocketAddr, count: usize) -> Raw {
    let relay = UdpSocket::bind(LOOPBACK).await.unwrap();
    let relay_address = relay.local_addr().unwrap();
    tokio::spawn(async move {
        let mut packet = vec![0; 65536];
        let mut strangers = None;
        while let Ok((length, from)) = relay.recv_from(&mut packet).await {
            // The form and type bits of a Retry packet.
            let is_retry = packet[0] & 0xf0 == 0xf0;
            if from != acceptor {
                strangers = Some(from);
                relay.send_to(&packet[..length], acceptor).await.unwrap();
            } else if let (true, Some(strangers)) = (is_retry, strangers) {
                relay.send_to(&packet[..length], strangers).await.unwrap();
            }
        }
    });
    let raw = Raw::new();
    raw.begin_handshakes(relay_address, count);
    raw
}

#[tokio::test]
async fn handshakes_that_stall_are_bounded_and_given_up() {
    let log = Log::capture();
    let patience = Patience { handshake: Duration::from_millis(1500), ..Patience::default() };
    let (dialler, acceptor) = pair_with(options(), QuicOptions { patience, ..options() }).await;
    let library = LibraryId::random();
    let _incoming = acceptor.listen(library).unwrap();
    let _strangers = stalled_strangers(acceptor.local_addr().unwrap(), HANDSHAKES_PENDING + 6).await;
    let full = format!("refused a connection: {HANDSHAKES_PENDING} handshakes are under way already");
    log.shows(&["WARN", &full]).await;
    // Refused while the places are taken, let in when the stalled ones are given up.
    until("a peer to be let in", async || match open(&dialler, &acceptor, library).await {
        Ok(channel) => Some(channel),
        Err(error) => {
            assert_says(
                &error.to_string(),
                &["too many handshakes under way", "nothing was changed", "again"],
            );
            None
        }
    })
    .await;
    log.shows(&["WARN", "a handshake was given up after 1.5s", "nothing was changed"]).await;
}

/// From half the places on, a dialler must prove its address, and those who cannot get no place.
#[tokio::test]
async fn forged_addresses_leave_places_for_real_ones() {
    let (dialler, acceptor) = pair().await;
    let library = LibraryId::random();
    let _incoming = acceptor.listen(library).unwrap();
    // A relay that lets nothing back: what a forged address amounts to.
    let relay = UdpSocket::bind(LOOPBACK).await.unwrap();
    let raw = Raw::new();
    raw.begin_handshakes(relay.local_addr().unwrap(), 2 * HANDSHAKES_PENDING);
    let to = acceptor.local_addr().unwrap();
    let mut packet = vec![0; 65536];
    let mut forwarded = 0;
    while forwarded < 2 * HANDSHAKES_PENDING {
        let (length, from) = soon("a packet", relay.recv_from(&mut packet)).await.unwrap();
        if from != to {
            relay.send_to(&packet[..length], to).await.unwrap();
            forwarded += 1;
        }
    }
    open(&dialler, &acceptor, library).await.expect("a device that can prove its address gets in");
}

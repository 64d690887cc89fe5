//! Messages, channels and connections when all goes well.

use std::{net::Ipv4Addr, sync::atomic::Ordering, time::Duration};

use tidelog::{
    id::LibraryId,
    transport::{FRAME_MAX, MESSAGE_MAX, Transport, TransportError},
};
use tidelog_transport::{QuicOptions, limits::CONNECTIONS_PER_DEVICE};

use crate::{assert_carries, assert_says, bind, joined, open, pair, receive, soon, take, until};

#[tokio::test]
async fn messages_of_every_size_go_both_ways_in_order() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    assert_eq!((ours.peer, theirs.peer), (acceptor.device(), dialler.device()));
    let sizes = [0, 1, FRAME_MAX - 5, FRAME_MAX - 4, 1 << 20, MESSAGE_MAX, 0];
    let message = |size: usize| (0..size).map(|i| (i / 509) as u8).collect::<Vec<u8>>();
    for swap in [false, true] {
        let (from, to) = if swap { (&mut theirs, &mut ours) } else { (&mut ours, &mut theirs) };
        let send = async {
            for size in sizes {
                from.sender.send(message(size)).await.unwrap();
            }
        };
        let receive = async {
            for size in sizes {
                let received = receive(to).await.unwrap().expect("a message");
                assert!(received == message(size), "{size} bytes came back as {}", received.len());
            }
        };
        tokio::join!(send, receive);
    }
    // A frame holds 64 KiB at the most.
    let frames: usize = sizes.iter().map(|size| size.div_ceil((64 << 10) - 5).max(1)).sum();
    let bytes = (sizes.iter().sum::<usize>() + 5 * frames) as u64;
    assert_eq!(ours.sender.bytes_sent(), bytes);
    // Behind the frame by which the channel began.
    assert!(theirs.receiver.arriving().unwrap().load(Ordering::Relaxed) >= bytes);
    drop(ours);
    assert_eq!(receive(&mut theirs).await.unwrap(), None, "the end of the channel");
    assert_eq!(receive(&mut theirs).await.unwrap(), None, "and it stays ended");
}

#[tokio::test]
async fn a_message_over_the_limit_is_not_sent_and_the_channel_lives() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    let error = ours.sender.send(vec![0; MESSAGE_MAX + 1]).await.unwrap_err();
    assert!(matches!(error, TransportError::TooLarge { size, limit } if size == limit + 1), "{error}");
    assert_says(
        &error.to_string(),
        &["5242881 bytes", "limit of 5242880", "nothing of it was handed on", "send it in parts"],
    );
    assert_eq!(ours.sender.bytes_sent(), 0);
    assert_carries(&mut ours, &mut theirs).await;
}

#[tokio::test]
async fn the_default_address_takes_ipv4_and_whatever_else_there_is() {
    let (dialler, acceptor) = (bind(QuicOptions::default()).await, bind(QuicOptions::default()).await);
    let port = acceptor.local_addr().unwrap().port();
    dialler.add_peer(acceptor.device(), Some((Ipv4Addr::LOCALHOST, port).into()));
    acceptor.add_peer(dialler.device(), None);
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    assert_carries(&mut ours, &mut theirs).await;
}

#[tokio::test]
async fn no_default_cryptography_of_the_process_is_needed_or_set() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    assert_carries(&mut ours, &mut theirs).await;
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
}

#[tokio::test]
async fn a_receive_that_is_given_up_loses_nothing() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    let message: Vec<u8> = (0..3 << 20).map(|i| (i / 509) as u8).collect();
    let sent = message.clone();
    let sending = tokio::spawn(async move {
        ours.sender.send(sent).await.unwrap();
        ours
    });
    let mut given_up = 0;
    let received = loop {
        tokio::select! {
            biased;
            received = theirs.receiver.receive() => break received.unwrap().unwrap(),
            () = tokio::task::yield_now() => given_up += 1,
        }
    };
    assert!(received == message);
    assert!(given_up > 2, "given up {given_up} times only");
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn a_send_that_is_given_up_breaks_the_channel_and_hands_on_no_part() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    // More than the stream takes while nobody reads.
    let sent = tokio::time::timeout(Duration::from_millis(50), ours.sender.send(vec![1; MESSAGE_MAX])).await;
    assert!(sent.is_err(), "the sender waits while the peer is slow");
    let error = soon("an error", ours.sender.send(vec![])).await.unwrap_err().to_string();
    assert_says(&error, &[&acceptor.device().to_string(), "given up half-way", "open a new channel"]);
    drop(ours);
    let error = receive(&mut theirs).await.unwrap_err().to_string();
    assert_says(&error, &["gave up in the middle of a message", "no part of a message was handed on"]);
}

#[tokio::test]
async fn several_libraries_share_one_transport_and_one_connection() {
    let (dialler, acceptor) = pair().await;
    let [first_library, second_library] = [LibraryId::random(), LibraryId::random()];
    let mut first_queue = acceptor.listen(first_library).unwrap();
    let mut second_queue = acceptor.listen(second_library).unwrap();
    let (first, second) =
        tokio::join!(open(&dialler, &acceptor, first_library), open(&dialler, &acceptor, second_library));
    let (mut first, mut second) = (first.unwrap(), second.unwrap());
    assert_carries(&mut first, &mut take(&mut first_queue).await).await;
    assert_carries(&mut second, &mut take(&mut second_queue).await).await;
    assert_eq!(dialler.stats().connections, 1, "two opens at once make one dial");

    // The acceptor has no address of the dialler and needs none: it uses the same connection.
    let library = LibraryId::random();
    let mut queue = dialler.listen(library).unwrap();
    let mut back = open(&acceptor, &dialler, library).await.unwrap();
    assert_carries(&mut back, &mut take(&mut queue).await).await;
    assert_eq!((dialler.stats().connections, acceptor.stats().connections), (1, 1));
}

#[tokio::test]
async fn a_library_has_one_listener_at_a_time() {
    let (_, acceptor) = pair().await;
    let library = LibraryId::random();
    let queue = acceptor.listen(library).unwrap();
    let error = acceptor.listen(library).unwrap_err().to_string();
    assert_says(&error, &[&library.to_string(), "already served", "stop the other node first"]);
    drop(queue);
    acceptor.listen(library).expect("free again once its receiver is dropped");
}

#[tokio::test]
async fn both_sides_may_dial_at_once() {
    let (a, b) = pair().await;
    b.add_peer(a.device(), Some(a.local_addr().unwrap()));
    let library = LibraryId::random();
    let (mut at_a, mut at_b) = (a.listen(library).unwrap(), b.listen(library).unwrap());
    let (from_a, from_b) = tokio::join!(open(&a, &b, library), open(&b, &a, library));
    let (mut from_a, mut from_b) = (from_a.unwrap(), from_b.unwrap());
    assert_carries(&mut from_a, &mut take(&mut at_b).await).await;
    assert_carries(&mut from_b, &mut take(&mut at_a).await).await;
    assert!(a.stats().connections <= CONNECTIONS_PER_DEVICE, "{:?}", a.stats());
}

#[tokio::test]
async fn statistics_count_what_is_on_the_wire_also_of_past_connections() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    ours.sender.send(vec![7; 1 << 20]).await.unwrap();
    receive(&mut theirs).await.unwrap();
    let sent = dialler.stats().bytes_sent;
    // On a busy machine, packets are lost and sent again.
    assert!((1 << 20..4 << 20).contains(&sent), "{sent} bytes for a megabyte");
    assert!(acceptor.stats().bytes_received >= 1 << 20, "{:?}", acceptor.stats());
    acceptor.remove_peer(dialler.device());
    until("the connection to go", async || (dialler.stats().connections == 0).then_some(())).await;
    assert!(dialler.stats().bytes_sent >= sent);
}

#[tokio::test]
async fn closing_delivers_what_was_sent_before() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    ours.sender.send(vec![9; 1 << 20]).await.unwrap();
    drop(ours);
    let received = async {
        assert_eq!(receive(&mut theirs).await.unwrap().map(|message| message.len()), Some(1 << 20));
        assert_eq!(receive(&mut theirs).await.unwrap(), None, "ended in good order, not broken");
    };
    tokio::join!(dialler.close(), received);
    let error = open(&dialler, &acceptor, LibraryId::random()).await.unwrap_err().to_string();
    assert_says(&error, &[&acceptor.device().to_string(), "this transport is closed", "nothing was changed"]);
}

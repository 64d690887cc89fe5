//! A peer that breaks the rules of frames: its channel breaks, on both sides, and no other does.

use std::time::Duration;

use tidelog::{
    id::LibraryId,
    transport::{FRAME_MAX, Transport, TransportError},
};
use tidelog_transport::{Patience, QuicOptions};

use crate::{
    Log, assert_carries, assert_says, joined, options, pair, pair_with,
    raw::{COMPLETE, MORE, Raw, RawChannel, frame, preface},
    soon, take,
};

/// What is sent, and what comes of it.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether the stream ends after it.
    ends: bool,
    /// What is said of it.
    said: &'static str,
    /// The code that the sender gets.
    code: u32,
}

fn cases() -> Vec<Case> {
    let case = |name, bytes, ends, said, code| Case { name, bytes, ends, said, code };
    let six_full_frames = frame(MORE, &vec![0; FRAME_MAX - 5]).repeat(6);
    vec![
        case("oversized length", vec![255, 255, 255, 255, COMPLETE], false, "over the limit of 1048576", 2),
        case("oversized message", six_full_frames, false, "over the limit of 5242880", 2),
        case("unknown kind", frame(77, b"?"), false, "a damaged frame: it is of unknown kind 77", 1),
        case("no kind", vec![0, 0, 0, 0, COMPLETE], false, "a damaged frame: it is empty", 1),
        case("a second preface", preface(LibraryId::random()), false, "no place here", 1),
        case("truncated header", vec![0, 0], true, "truncated frame", 3),
        case("truncated frame", frame(COMPLETE, b"half of it")[..9].to_vec(), true, "truncated frame", 3),
        case("truncated message", frame(MORE, b"half of it"), true, "truncated frame", 3),
        case("half a frame for ever", vec![0, 0, 0, 9, COMPLETE, 1], false, "half a frame", 4),
        case("half a message for ever", frame(MORE, b"half of it"), false, "half a frame", 4),
    ]
}

#[tokio::test]
async fn damaged_frames_break_their_channel_and_no_other() {
    let log = Log::capture();
    let patience = Patience { frame: Duration::from_millis(300), ..Patience::default() };
    let (dialler, acceptor) = pair_with(options(), QuicOptions { patience, ..options() }).await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    let raw = Raw::new();
    acceptor.add_peer(raw.device, None);
    let connection = raw.connect(&acceptor).await.unwrap();
    for Case { name, bytes, ends, said, code } in cases() {
        let library = LibraryId::random();
        let mut incoming = acceptor.listen(library).unwrap();
        let RawChannel { mut send, mut receive, .. } = raw.channel_on(&connection, library).await;
        let mut channel = take(&mut incoming).await;
        assert_eq!(channel.peer, raw.device);
        let sending = tokio::spawn(async move {
            // Fails half-way when the acceptor has read enough.
            let _ = send.write_all(&bytes).await;
            if ends {
                send.finish().unwrap();
            }
            send
        });
        let error = soon(name, channel.receiver.receive()).await.expect_err(name).to_string();
        assert_says(&error, &[said, "handed on"]);
        let again = channel.receiver.receive().await.expect_err(name).to_string();
        assert_eq!(again, error, "{name}: the channel stays broken");
        drop(channel);

        let reset = soon(name, receive.read(&mut [0; 9])).await;
        assert!(
            matches!(&reset, Err(quinn::ReadError::Reset(got)) if *got == code.into()),
            "{name}: {reset:?}"
        );
        let send = soon(name, sending).await.unwrap();
        if !ends {
            let stopped = soon(name, send.stopped()).await.unwrap();
            assert_eq!(stopped, Some(code.into()), "{name}");
        }
        log.shows(&["WARN", "broke the channel off", &raw.device.to_string(), &library.to_string(), said])
            .await;
        assert!(connection.close_reason().is_none(), "{name}: the connection stays");
        assert_carries(&mut ours, &mut theirs).await;
        assert_carries(&mut theirs, &mut ours).await;
    }
}

#[tokio::test]
async fn a_channel_that_the_peer_breaks_off_says_so_to_sender_and_receiver() {
    let log = Log::capture();
    let (_, acceptor) = pair().await;
    let raw = Raw::new();
    acceptor.add_peer(raw.device, None);
    let library = LibraryId::random();
    let mut incoming = acceptor.listen(library).unwrap();
    let RawChannel { connection: _connection, mut send, mut receive, .. } =
        raw.channel(&acceptor, library).await;
    let mut channel = take(&mut incoming).await;
    send.reset(1_u32.into()).unwrap();
    receive.stop(1_u32.into()).unwrap();
    let said = [&*raw.device.to_string(), "damaged frame from here", "open a new channel"];
    assert_says(&soon("the end", channel.receiver.receive()).await.unwrap_err().to_string(), &said);
    let error = loop {
        if let Err(error) = soon("the end", channel.sender.send(vec![0; 1000])).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(error, TransportError::Broken { .. }), "{error}");
    assert_says(&error.to_string(), &said);
    log.shows(&["WARN", "the channel was broken off", &raw.device.to_string(), "damaged frame"]).await;
}

#[tokio::test]
async fn a_channel_that_does_not_begin_as_it_should_is_broken_off_unseen() {
    let log = Log::capture();
    let patience = Patience { frame: Duration::from_millis(300), ..Patience::default() };
    let (_, acceptor) = pair_with(options(), QuicOptions { patience, ..options() }).await;
    let raw = Raw::new();
    acceptor.add_peer(raw.device, None);
    let library = LibraryId::random();
    let mut incoming = acceptor.listen(library).unwrap();
    let connection = raw.connect(&acceptor).await.unwrap();
    let mut no_magic = preface(library);
    no_magic[5] = b't';
    for (name, bytes, code) in [
        ("a message first", frame(COMPLETE, b"hello"), 1_u32),
        ("no magic", no_magic, 1),
        ("a short preface", frame(3, b"TIDE"), 1),
        ("a preface that is too long", frame(3, &[0; 1025]), 2),
        ("half a preface for ever", preface(library)[..9].to_vec(), 4),
    ] {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let reset = soon(name, receive.read(&mut [0; 9])).await;
        assert!(
            matches!(&reset, Err(quinn::ReadError::Reset(got)) if *got == code.into()),
            "{name}: {reset:?}"
        );
    }
    log.shows(&["WARN", "refused a channel", &raw.device.to_string(), "nothing was changed"]).await;
    assert!(incoming.try_recv().is_err(), "nothing reached the node");
    raw.channel_on(&connection, library).await;
    take(&mut incoming).await;
}

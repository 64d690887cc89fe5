//! Peers that are removed, restarted and killed.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{Transport, TransportError},
};
use tidelog_transport::{BindError, Identity, Peer, Quic, QuicOptions};

use crate::{
    LOOPBACK, PATIENCE, assert_carries, assert_says, bind, joined, open, options, pair, receive, soon, take,
    until,
};

#[tokio::test]
async fn a_peer_that_was_removed_is_cut_off_and_stays_out() {
    let (dialler, acceptor) = pair().await;
    let (mut ours, mut theirs) = joined(&dialler, &acceptor).await;
    assert_carries(&mut ours, &mut theirs).await;
    assert!(acceptor.remove_peer(dialler.device()));
    assert!(!acceptor.remove_peer(dialler.device()), "it is not known any more");
    let error = receive(&mut ours).await.unwrap_err();
    assert!(matches!(error, TransportError::Broken { .. }), "{error}");
    assert_says(&error.to_string(), &[&acceptor.device().to_string(), "removed this device from its peers"]);
    let again = receive(&mut ours).await.unwrap_err().to_string();
    assert_eq!(again, error.to_string(), "a broken channel stays broken");
    receive(&mut theirs).await.unwrap_err();
    let error = open(&dialler, &acceptor, LibraryId::random()).await.unwrap_err().to_string();
    assert_says(&error, &["refused", "does not know this device"]);
}

/// A device with its key in a file, so that it can come back.
async fn device(key: &Path, listen: SocketAddr, peer: DeviceId) -> Result<Quic, BindError> {
    let peers = vec![Peer { device: peer, address: None }];
    let identity = Identity::load_or_create(key).unwrap();
    Quic::bind(identity, QuicOptions { listen, peers, ..QuicOptions::default() }).await
}

/// The same device again, at the same address, as soon as its former self has let go of the port.
async fn restarted(key: &Path, address: SocketAddr, peer: DeviceId) -> Quic {
    until("the port to come free", async || device(key, address, peer).await.ok()).await
}

#[tokio::test]
async fn a_peer_that_restarts_on_its_port_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("device.key");
    let dialler = bind(options()).await;
    let first = device(&key, LOOPBACK, dialler.device()).await.unwrap();
    let address = first.local_addr().unwrap();
    dialler.add_peer(first.device(), Some(address));
    let (mut ours, theirs) = joined(&dialler, &first).await;
    drop(theirs);
    first.close().await;
    drop(first);
    let second = restarted(&key, address, dialler.device()).await;
    let (mut again, mut theirs) = joined(&dialler, &second).await;
    assert_carries(&mut again, &mut theirs).await;
    assert!(matches!(receive(&mut ours).await, Ok(None) | Err(_)), "the old channel is over");
}

/// Killed, it tells nobody: the dialler believes in the old connection until the new process disowns it.
#[tokio::test]
async fn a_peer_that_was_killed_is_found_again_without_waiting_for_the_idle_timeout() {
    found_again(true).await;
}

/// Where nobody disowns the old connection, its silence says enough: no answer is waited for that will not come.
#[tokio::test]
async fn a_peer_that_was_killed_and_listens_elsewhere_is_found_again_without_waiting_for_an_answer() {
    found_again(false).await;
}

async fn found_again(at_its_port: bool) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("device.key");
    let dialler = bind(options()).await;
    let me = dialler.device();
    // A runtime of its own is the process that gets killed.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let key_there = key.clone();
    let first = process.spawn(async move { device(&key_there, LOOPBACK, me).await }).await.unwrap().unwrap();
    let address = first.local_addr().unwrap();
    dialler.add_peer(first.device(), Some(address));
    let (mut ours, theirs) = joined(&dialler, &first).await;
    tokio::task::spawn_blocking(move || process.shutdown_timeout(PATIENCE)).await.unwrap();
    // With its tasks gone it can say nothing more; this only lets go of the port.
    drop((first, theirs));

    let second = restarted(&key, if at_its_port { address } else { LOOPBACK }, me).await;
    if !at_its_port {
        dialler.add_peer(second.device(), Some(second.local_addr().unwrap()));
    }
    let library = LibraryId::random();
    let mut incoming = second.listen(library).unwrap();
    let start = Instant::now();
    let mut again = open(&dialler, &second, library).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "found again after {:?} only", start.elapsed());
    assert_carries(&mut again, &mut take(&mut incoming).await).await;
    if !at_its_port {
        return;
    }
    let end = soon("the old channel to end", ours.receiver.receive()).await;
    assert!(matches!(end, Err(TransportError::Broken { .. })), "{end:?}");
}

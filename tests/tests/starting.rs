//! A library that is started over a long backlog: what was captured while nobody sealed is sealed before `start` returns,
//! whatever the application does meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use sea_orm::{ConnectionTrait, TransactionTrait};
use tidelog::{Error, Link, id::Seq, transport::SharedTransport};
use tidelog_tests::devices::{Device, Site, assert_says, device, eventually, number, soon};

/// Rows of one transaction: more than one seal takes.
const ROWS: usize = 5000;

/// One transaction.
fn many(prefix: &str) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO items (id, name) SELECT '{prefix}.' || i, 'x' FROM n"
    )
}

/// A follower that was never started, and wrote so many transactions; and its transport, over which nobody can be reached.
async fn behind(site: &Site, transactions: usize) -> (Device, SharedTransport) {
    let follower = site.open_follower(2).await;
    for i in 0..transactions {
        follower.write(&[&many(&format!("before{i}"))]).await;
    }
    (follower, Arc::new(site.network.plug(device(2))))
}

fn captured(device: &Device) -> usize {
    let sql =
        "SELECT (SELECT count(*) FROM sync_outbox WHERE kind > 0) + (SELECT count(*) FROM sync_pending)";
    usize::try_from(number(&device.path, sql)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_ends_though_the_application_goes_on_writing_without_a_pause() {
    let site = Site::new();
    let (follower, transport) = behind(&site, 3).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // Between two seals each of them has its turn: there is always more to seal than before.
    let writers: Vec<_> = (0..3)
        .map(|w| {
            let (db, stop, written) = (follower.db.clone(), Arc::clone(&stop), Arc::clone(&written));
            tokio::spawn(async move {
                for i in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    db.execute_unprepared(&many(&format!("{w}-{i}"))).await.unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("all write", async || (written.load(Ordering::Relaxed) > 3).then_some(())).await;
    let before = written.load(Ordering::Relaxed);
    soon("the start", follower.library.start(transport)).await.unwrap();
    assert!(written.load(Ordering::Relaxed) > before, "they went on writing");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    soon("the shutdown", follower.library.shutdown()).await;
    assert_eq!(captured(&follower), ROWS * (3 + written.load(Ordering::Relaxed)), "nothing is missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_still_seals_its_backlog_is_started_and_can_be_stopped() {
    let site = Site::new();
    let (follower, transport) = behind(&site, 12).await;
    let library = follower.library.clone();
    let starting = tokio::spawn(async move { library.start(transport).await });
    follower.shows("its tasks run", |s| s.link != Link::Idle).await;
    // Nobody seals while this one writes.
    let tx = follower.db.begin().await.unwrap();
    tx.execute_unprepared("INSERT INTO items (id, name) VALUES ('last', 'x')").await.unwrap();
    assert!(!starting.is_finished(), "there is more to seal");
    let error = follower.library.wait_replicated(Seq(1), 1).await.unwrap_err();
    assert_says(&error.to_string(), &["it does not lead"]);
    let library = follower.library.clone();
    let stopping = tokio::spawn(async move { library.shutdown().await });
    tx.commit().await.unwrap();
    soon("the shutdown", stopping).await.unwrap();
    let started = soon("the start", starting).await.unwrap();
    assert!(matches!(started, Ok(()) | Err(Error::Stopped { .. })), "{started:?}");
    let error = follower.library.wait_replicated(Seq(1), 1).await.unwrap_err();
    assert_says(&error.to_string(), &["the library is not started"]);
    assert_eq!(captured(&follower), ROWS * 12 + 1, "nothing is missing");
    assert_eq!(number(&follower.path, "SELECT count(*) FROM sync_outbox"), 0, "all is sealed");
    follower.db.close().await.unwrap();
    // Its database is free.
    site.follower(2).await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_given_up_leaves_the_library_stopped_and_the_next_goes_on() {
    let site = Site::new();
    let (follower, transport) = behind(&site, 12).await;
    let library = follower.library.clone();
    let starting = tokio::spawn(async move { library.start(transport).await });
    follower.shows("its tasks run", |s| s.link != Link::Idle).await;
    let tx = follower.db.begin().await.unwrap();
    tx.execute_unprepared("INSERT INTO items (id, name) VALUES ('last', 'x')").await.unwrap();
    starting.abort();
    assert!(starting.await.unwrap_err().is_cancelled());
    let error = follower.library.wait_replicated(Seq(1), 1).await.unwrap_err();
    assert_says(&error.to_string(), &["the library is not started"]);
    tx.commit().await.unwrap();
    let transport: SharedTransport = Arc::new(site.network.plug(device(2)));
    soon("another start", follower.library.start(transport)).await.unwrap();
    follower.library.shutdown().await;
    assert_eq!(captured(&follower), ROWS * 12 + 1, "nothing is missing");
}

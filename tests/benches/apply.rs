//! How fast a follower applies what it has received: messages of a leader are recorded once and then played to fresh
//! followers from memory, so that no leader and no network works at the same time.
//!
//! The baseline inserts the same rows into the same table, with transactions of the same size and without a log.
//! Beside the clock's figures stand those of the processor time that either one's thread used: others on the machine
//! hardly touch those.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use tidelog::{
    id::{DeviceId, LibraryId},
    transport::{
        Channel, INCOMING_QUEUE, MemoryNetwork, MemoryTransport, MessageReceiver, MessageSender, Transport,
        TransportError,
    },
};
use tokio::sync::mpsc;

use crate::{
    Failure,
    args::Options,
    database::{self, Backlog, Entrance},
    process, raw,
    report::{Bar, Row},
    rounds::Rounds,
};

pub(crate) const NAMES: &[&str] = &["apply", "apply/cpu"];

const ROUNDS: usize = 5;
const AT_LEAST: f64 = 0.45;
const LEADER: DeviceId = DeviceId([1; 32]);
const FOLLOWER: DeviceId = DeviceId([2; 32]);

type Messages = Arc<Mutex<Vec<Vec<u8>>>>;

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let folder = folder.path();
    let backlog = Backlog::write(folder, options.rows).await?;
    let rows = raw::Rows::read(&backlog.path)?;
    eprintln!("recording what the leader sends …");
    let messages = record(folder, &backlog).await?;
    // The first messages may be small; what counts is how many rows share a transaction on average.
    let transaction = rows.len().div_ceil(messages.len());
    eprintln!("apply, about {transaction} rows in a transaction …");
    let raw_db = folder.join("raw.db");
    let per_second = |seconds: f64| rows.len() as f64 / seconds;
    let (mut applying, mut inserting) = (Vec::new(), Vec::new());
    let taken = Rounds::take(
        ROUNDS,
        async |_| {
            let (took, used) = play(folder, &backlog, &messages).await?;
            applying.push(per_second(used));
            Ok(per_second(took))
        },
        async |_| {
            let before = process::cpu_time()?;
            let took = rows.insert(&raw_db, transaction)?;
            inserting.push(per_second(process::cpu_time()?.saturating_sub(before).as_secs_f64()));
            Ok(per_second(took.as_secs_f64()))
        },
    )
    .await?;
    let used = Rounds::of(applying, inserting);
    Ok(vec![
        Row::new("apply", "rows/s", taken.figures(), Bar::RatioAtLeast(AT_LEAST)),
        Row::new("apply/cpu", "rows/cpu s", used.figures(), Bar::None),
    ])
}

/// Lets a follower pull everything from the finished log of a leader, and keeps what the leader sent.
async fn record(folder: &Path, backlog: &Backlog) -> Result<Vec<Vec<u8>>, Failure> {
    let network = MemoryNetwork::new();
    let (leader_db, leader) = database::open(&backlog.path, Entrance::Create(backlog.library)).await?;
    leader.start(Arc::new(network.plug(LEADER))).await?;
    leader.barrier().await?;
    let path = folder.join("recorder.db");
    let (db, follower) = database::open(&path, Entrance::Join(backlog.library)).await?;
    let messages = Messages::default();
    follower.start(Arc::new(Recorder { inner: network.plug(FOLLOWER), messages: messages.clone() })).await?;
    database::holds(&path, backlog.rows).await?;
    follower.shutdown().await;
    leader.shutdown().await;
    db.close().await?;
    leader_db.close().await?;
    Ok(std::mem::take(&mut *messages.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// The name of the thread that applies.
const ENGINE: &str = "tidelog";

/// Plays the messages to a fresh follower. Seconds from its start until its table holds all rows, and those that its
/// engine used of a processor.
async fn play(folder: &Path, backlog: &Backlog, messages: &[Vec<u8>]) -> Result<(f64, f64), Failure> {
    let path = folder.join("follower.db");
    database::remove(&path)?;
    let (db, library) = database::open(&path, Entrance::Join(backlog.library)).await?;
    let waiting = tokio::spawn({
        let (path, rows) = (path.clone(), backlog.rows);
        async move { database::holds(&path, rows).await }
    });
    let player = Player { messages: Mutex::new(messages.to_vec()) };
    let engine = || process::cpu_time_of(|name| name == ENGINE);
    let (began, before) = (Instant::now(), engine()?);
    library.start(Arc::new(player)).await?;
    let reached = waiting.await?.map_err(|error| format!("{error}: {:?}", *library.status().borrow()))?;
    let used = engine()?.saturating_sub(before);
    library.shutdown().await;
    db.close().await?;
    Ok((reached.duration_since(began).as_secs_f64(), used.as_secs_f64()))
}

/// The in-memory transport with an ear on what comes in.
struct Recorder {
    inner: MemoryTransport,
    messages: Messages,
}

#[async_trait]
impl Transport for Recorder {
    fn device(&self) -> DeviceId {
        self.inner.device()
    }

    async fn open(&self, peer: DeviceId, library: LibraryId) -> Result<Channel, TransportError> {
        let Channel { peer, sender, receiver } = self.inner.open(peer, library).await?;
        let receiver = Box::new(RecordingReceiver { inner: receiver, messages: self.messages.clone() });
        Ok(Channel { peer, sender, receiver })
    }

    fn listen(&self, library: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        self.inner.listen(library)
    }

    fn peers(&self) -> Vec<DeviceId> {
        self.inner.peers()
    }
}

struct RecordingReceiver {
    inner: Box<dyn MessageReceiver>,
    messages: Messages,
}

#[async_trait]
impl MessageReceiver for RecordingReceiver {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        let message = self.inner.receive().await?;
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.extend(message.clone());
        Ok(message)
    }
}

/// A leader that says what another one has said, whatever it is asked.
struct Player {
    messages: Mutex<Vec<Vec<u8>>>,
}

#[async_trait]
impl Transport for Player {
    fn device(&self) -> DeviceId {
        FOLLOWER
    }

    async fn open(&self, peer: DeviceId, _: LibraryId) -> Result<Channel, TransportError> {
        let messages = std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner));
        let receiver = Box::new(PlayingReceiver(messages.into_iter()));
        Ok(Channel { peer, sender: Box::new(DeafSender), receiver })
    }

    fn listen(&self, _: LibraryId) -> Result<mpsc::Receiver<Channel>, TransportError> {
        // Nobody will come: the sending end is gone at once.
        Ok(mpsc::channel(INCOMING_QUEUE).1)
    }

    fn peers(&self) -> Vec<DeviceId> {
        vec![LEADER]
    }
}

struct PlayingReceiver(std::vec::IntoIter<Vec<u8>>);

#[async_trait]
impl MessageReceiver for PlayingReceiver {
    async fn receive(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        match self.0.next() {
            Some(message) => Ok(Some(message)),
            // The channel stands, and nothing more is said on it.
            None => std::future::pending().await,
        }
    }
}

struct DeafSender;

#[async_trait]
impl MessageSender for DeafSender {
    async fn send(&mut self, _: Vec<u8>) -> Result<(), TransportError> {
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        0
    }
}

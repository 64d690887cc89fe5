//! What a session says to its leader, sent beside it: while a leader takes nothing, be it busy or gone, the session hears
//! it, or misses it.

use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::follow::SILENCE_MAX;
use crate::{
    error::Error,
    id::DeviceId,
    transport::{MessageSender, TransportError},
    wire::Message,
};

/// Messages that may wait to be taken by the leader: pushes, and what is small beside them. The session waits with the next
/// for [`SILENCE_MAX`], and then looks for the leader anew.
const LEAVING_MAX: usize = 16;
/// How long the last message of a session may take to be sent.
const LAST_MAX: Duration = Duration::from_secs(1);

/// A message, and who is to be told that it is on its way.
type Leaving = (Vec<u8>, Option<oneshot::Sender<()>>);

/// Messages on their way to the leader.
pub(super) struct Outgoing {
    peer: DeviceId,
    leaving: mpsc::Sender<Leaving>,
}

impl Outgoing {
    /// Sends on a task of its own.
    pub(super) fn open(tasks: &mut JoinSet<()>, peer: DeviceId, sender: Box<dyn MessageSender>) -> Self {
        let (leaving, waiting) = mpsc::channel(LEAVING_MAX);
        tasks.spawn(send_on(sender, waiting));
        Self { peer, leaving }
    }

    pub(super) async fn send(&mut self, message: &Message) -> Result<(), Error> {
        self.queue(message.encode(), None).await
    }

    /// Sends what is packed already.
    pub(super) async fn send_packed(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.queue(message, None).await
    }

    /// Returns when the message is on its way, or cannot be sent in time: for the last of a session.
    pub(super) async fn send_last(&mut self, message: &Message) -> Result<(), Error> {
        let (sent, is_sent) = oneshot::channel();
        self.queue(message.encode(), Some(sent)).await?;
        // Lost on the way or not sent at all, it is told in other ways.
        let _ = timeout(LAST_MAX, is_sent).await;
        Ok(())
    }

    async fn queue(&mut self, message: Vec<u8>, sent: Option<oneshot::Sender<()>>) -> Result<(), Error> {
        let Self { peer, leaving } = self;
        let queued = timeout(SILENCE_MAX, leaving.send((message, sent))).await;
        let broken = |reason: String| TransportError::Broken { peer: *peer, reason };
        queued
            .map_err(|_| broken(format!("it has taken nothing for {} s", SILENCE_MAX.as_secs())))?
            .map_err(|_| broken("it takes nothing any more".to_owned()))?;
        Ok(())
    }

    /// Whether all that was to be sent is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.leaving.capacity() == self.leaving.max_capacity()
    }
}

/// Sends what is to be sent, until the channel breaks, which the receiving half tells of too.
async fn send_on(mut sender: Box<dyn MessageSender>, mut waiting: mpsc::Receiver<Leaving>) {
    while let Some((message, sent)) = waiting.recv().await {
        if let Err(error) = sender.send(message).await {
            tracing::debug!(%error, "sending to a leader has ended");
            return;
        }
        if let Some(sent) = sent {
            // Who waited may have given up.
            let _ = sent.send(());
        }
    }
}

//! Asking the leader to hand over, step by step: what `node/handover.rs` does, without its waiting.

use super::Replica;
use crate::{
    error::Error,
    id::{DeviceId, Term},
    leadership::{NotHandedOver, REASSIGNMENTS_MAX},
    serving::{self, Peer},
    testing::replica::Came,
    wire::Message,
};

/// A request to hand over that this replica works on.
pub(super) struct Request {
    by: DeviceId,
    to: DeviceId,
    /// The lead was granted for it.
    granted: bool,
}

impl Replica {
    /// Asks whoever leads to hand over to a device: what to send.
    ///
    /// # Errors
    /// The step's.
    pub fn reassign(&mut self, to: DeviceId) -> Result<Vec<u8>, Error> {
        self.driver.store.sync()?;
        Ok(Message::Reassign { max_seen: self.standing()?.max_seen, to }.encode())
    }

    pub(super) fn take_request(&mut self, by: DeviceId, max_seen: Term, to: DeviceId) -> Result<Came, Error> {
        let peer = Peer { device: by, is_configured: self.identity.peers.contains(&by) };
        if let Err(refusal) = serving::may_reassign(&mut self.driver, peer, max_seen)? {
            return Ok(reply(refusal));
        }
        let max_seen = self.standing()?.max_seen;
        let not = |why| Ok(reply(Message::Reassigned { max_seen, failed: Some(why) }));
        if self.requests.len() >= REASSIGNMENTS_MAX {
            return not(NotHandedOver::Busy);
        }
        let mut granted = false;
        if to != self.identity.device && self.standing()?.leads() {
            if !self.confirmed()?.contains_key(&to) {
                return not(NotHandedOver::NotFollowing);
            }
            granted = self.grant(to)?;
        }
        self.requests.push(Request { by, to, granted });
        Ok(Came::default())
    }

    /// What those are to be told who asked this replica to hand over, once it is known what came of it.
    ///
    /// # Errors
    /// The step's.
    pub fn reassigned(&mut self) -> Result<Vec<(DeviceId, Vec<u8>)>, Error> {
        let is_decided = {
            let pulse = self.pulse.borrow();
            pulse.leads || pulse.granted.is_none()
        };
        if self.requests.is_empty() || !is_decided {
            return Ok(Vec::new());
        }
        self.driver.store.sync()?;
        let max_seen = self.standing()?.max_seen;
        let answer = |Request { by, to, granted }: Request| {
            let why = if granted { NotHandedOver::NotTaken } else { NotHandedOver::Overtaken };
            let failed = (max_seen.leader != to).then_some(why);
            (by, Message::Reassigned { max_seen, failed }.encode())
        };
        Ok(std::mem::take(&mut self.requests).into_iter().map(answer).collect())
    }
}

fn reply(message: Message) -> Came {
    Came { replies: vec![message.encode()], ..Came::default() }
}

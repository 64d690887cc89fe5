//! What devices do with each other: single steps whose messages go their way in the network, and whole rounds.

use tidelog::{
    Error,
    testing::replica::{self, Came, Replica},
};

use super::{Broken, Device, Done, MESSAGES_MAX, Simulation, failed, network::Packet};

impl Simulation {
    /// Sends, and remembers what it shows.
    pub(super) fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) -> Done {
        let shown = &mut self.views[from].shown;
        *shown = (*shown).max(replica::shows(&bytes));
        let kind = replica::kind(&bytes);
        if kind == replica::UNREADABLE {
            return Err(Broken::new(
                "readable",
                format!("device {from} sends device {to} what cannot be read"),
            ));
        }
        self.counters.count(format!("sent: {kind}"));
        self.network.send(Packet { from, to, bytes });
        Ok(())
    }

    pub(super) fn leader_of(&mut self, of: usize) -> Done<usize> {
        self.wake(of)?;
        let Some(replica) = &self.devices[of].replica else { return Ok(0) };
        let leader = replica.standing().map_err(|e| failed(of, "looking", &e))?.max_seen.leader;
        let count = self.devices.len();
        Ok((0..count).find(|&d| Device::key(d) == leader).unwrap_or((of + 1) % count))
    }

    pub(super) fn subscribe(&mut self, of: usize, to: usize) -> Done {
        if of == to {
            return Ok(());
        }
        let leads = |replica: &mut Replica| Ok(replica.standing()?.leads());
        if self.step(of, leads)? != Some(false) {
            // Who leads follows nobody.
            return Ok(());
        }
        if let Some(bytes) = self.step(of, |replica| replica.subscribe(Device::key(to)))? {
            self.send(of, to, bytes)?;
        }
        self.observe(of)
    }

    /// Whether there was anything to send.
    pub(super) fn send_to_leader(
        &mut self,
        of: usize,
        step: impl FnOnce(&mut Replica) -> Result<Option<Vec<u8>>, Error>,
    ) -> Done<bool> {
        let Some(Some(leader)) = self.step(of, |replica| Ok(replica.leader()))? else { return Ok(false) };
        let to = usize::from(leader.0[0]) - 1;
        let bytes = self.step(of, step)?.flatten();
        let is_sent = bytes.is_some();
        if let Some(bytes) = bytes {
            self.send(of, to, bytes)?;
        }
        self.observe(of)?;
        Ok(is_sent)
    }

    /// Takes a chunk of what parts from the leader's log back into pending. Whether there is more.
    pub(super) fn unwind(&mut self, of: usize) -> Done<bool> {
        let (more, before) = (self.step(of, Replica::unwind)?, self.views[of].log.len());
        self.views[of].may_shorten = true;
        self.observe(of)?;
        self.views[of].may_shorten = self.devices[of].replica.is_none();
        if self.views[of].log.len() < before {
            self.counters.count("rejoin: with a tail");
        }
        Ok(more == Some(true))
    }

    /// All of it. Whether there was any.
    pub(super) fn unwind_all(&mut self, of: usize) -> Done<bool> {
        if self.step(of, |replica| Ok(replica.is_unwinding()))? != Some(true) {
            return Ok(false);
        }
        while self.unwind(of)? {}
        Ok(true)
    }

    /// Takes over, unless it leads already or has nothing of the library.
    pub(super) fn take_over(&mut self, of: usize) -> Done {
        let Some(standing) = self.step(of, |replica| replica.standing())? else { return Ok(()) };
        if standing.leads() || standing.top.seq.0 == 0 {
            return Ok(());
        }
        let term = self.step(of, Replica::take_over)?;
        self.observe(of)?;
        let Some(term) = term else { return Ok(()) };
        self.counters.count("lead: taken over");
        for other in 0..self.devices.len() {
            let leads = |replica: &Replica| {
                replica.standing().is_ok_and(|s| s.leads() && s.max_seen.number == term.number)
            };
            if other != of && self.devices[other].replica.as_ref().is_some_and(leads) {
                self.counters.count("lead: taken over by two");
            }
        }
        Ok(())
    }

    pub(super) fn serve(&mut self, of: usize, to: usize) -> Done {
        if of == to {
            return Ok(());
        }
        if let Some(Some(bytes)) = self.step(of, |replica| replica.serve(Device::key(to)))? {
            self.send(of, to, bytes)?;
        }
        self.observe(of)
    }

    pub(super) fn deliver(&mut self, packet: Packet) -> Done {
        let Packet { from, to, bytes } = packet;
        let kind = replica::kind(&bytes);
        if self.is_loud {
            println!("     {kind} from {from} to {to}");
        }
        let (lead, shown) = (replica::lead(&bytes), self.views[to].shown);
        let before = self.views[to].log.len();
        let came = self.step(to, |replica| replica.receive(Device::key(from), &bytes))?;
        // What it did stands before its replies show anything.
        self.observe(to)?;
        if let Some(Came { replies, ended, stopped }) = came {
            for reply in replies {
                self.send(to, from, reply)?;
            }
            if let Some(reason) = ended {
                self.counters.count(format!("ended by: {kind}"));
                if self.is_loud {
                    println!("     ended on {to}: {reason}");
                }
                if stopped {
                    return Err(Broken::new("level", format!("device {to} waits for a person: {reason}")));
                }
            }
        }
        if lead.is_some() && lead < shown && self.views[to].log.len() > before {
            let text = format!("device {to} took entries of {lead:?} and had shown {shown:?}");
            return Err(Broken::new("fencing", text));
        }
        self.answer_requests(to)
    }

    /// Follows, pulls, pushes, and pulls again; what is lost on the way is lost.
    pub(super) fn round(&mut self, of: usize, to: usize) -> Done {
        if of == to {
            self.step(of, Replica::seal)?;
            self.observe(of)?;
            return self.tell_others(of);
        }
        for _ in 0..2 {
            self.subscribe(of, to)?;
            self.exchange(of, to)?;
            if !self.unwind_all(of)? {
                break;
            }
        }
        self.step(of, Replica::seal)?;
        for _ in 0..MESSAGES_MAX {
            if !self.send_to_leader(of, Replica::push)? {
                break;
            }
            self.exchange(of, to)?;
        }
        self.send_to_leader(of, Replica::confirm)?;
        self.exchange(of, to)
    }

    /// Who leads tells the others.
    pub(super) fn tell_others(&mut self, of: usize) -> Done {
        for to in (0..self.devices.len()).filter(|to| *to != of) {
            if let Some(bytes) = self.step(of, Replica::inquire)? {
                self.send(of, to, bytes)?;
                self.exchange(of, to)?;
            }
        }
        Ok(())
    }

    /// Everything between two devices arrives, with what is sent because of it.
    pub(super) fn exchange(&mut self, one: usize, other: usize) -> Done {
        for _ in 0..MESSAGES_MAX {
            while let Some(packet) = self.network.take_between(one, other) {
                self.deliver(packet)?;
            }
            self.serve(one, other)?;
            self.serve(other, one)?;
            let Some(packet) = self.network.take_between(one, other) else { return Ok(()) };
            self.deliver(packet)?;
        }
        Ok(())
    }

    pub(super) fn hand_over(&mut self, of: usize, to: usize) -> Done {
        if of != to && self.step(of, |replica| replica.grant(Device::key(to)))? == Some(true) {
            self.counters.count("lead: granted");
        }
        self.observe(of)
    }

    pub(super) fn reclaim(&mut self, of: usize) -> Done {
        if self.step(of, Replica::reclaim)? == Some(true) {
            self.counters.count("lead: reclaimed");
        }
        self.observe(of)?;
        self.answer_requests(of)
    }

    /// Asks the device that this one takes for the leader to hand over; where it leads itself, it does.
    pub(super) fn reassign(&mut self, of: usize, to: usize) -> Done {
        let leader = self.leader_of(of)?;
        if leader == of {
            return self.hand_over(of, to);
        }
        if let Some(bytes) = self.step(of, |replica| replica.reassign(Device::key(to)))? {
            self.send(of, leader, bytes)?;
        }
        self.observe(of)
    }

    /// Tells those who asked a device to hand over what came of it, if it is known and the device is there.
    fn answer_requests(&mut self, of: usize) -> Done {
        if self.devices[of].replica.is_none() {
            return Ok(());
        }
        for (to, bytes) in self.step(of, Replica::reassigned)?.into_iter().flatten() {
            self.send(of, usize::from(to.0[0]) - 1, bytes)?;
        }
        Ok(())
    }
}

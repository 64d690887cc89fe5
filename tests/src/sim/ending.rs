//! How devices end: cut off between two durable steps, without power, or with a database that is another all at once.

use tidelog::testing::replica::{self, Replica, crash_after};

use super::{Broken, Device, Done, MESSAGES_MAX, Simulation, View, failed};

impl Simulation {
    /// Something that is cut off, and may lose power with it.
    pub(super) fn crash_in(&mut self, of: usize, choice: u64) -> Done {
        let what = choice / 9 % 9;
        let places = match what {
            // A round passes many places; what is confirmed at its end is to be cut off as often as what begins it.
            4..=5 => 36,
            // A single message, and a change of leader, pass few.
            3 | 6..=8 => 3,
            _ => 9,
        };
        crash_after(Some((choice / 81 % places) as u32));
        let is_other = !(choice / 243).is_multiple_of(2);
        let done = match what {
            0 => {
                let step = if is_other { Replica::rest } else { Replica::seal };
                self.step(of, step).map(drop).and_then(|()| self.observe(of))
            }
            1 if is_other => self.cut_off_referral(of, (choice / 81 % 2) as u32),
            1 => {
                self.devices[of].crash();
                self.wake(of)
            }
            2 if self.devices[of].replica.as_ref().is_some_and(Replica::is_unwinding) => {
                self.unwind(of).map(drop)
            }
            2 | 3 => match self.network.take_for(of) {
                Some(packet) => self.deliver(packet),
                None => Ok(()),
            },
            4 | 5 => self.leader_of(of).and_then(|to| self.round(of, to)),
            6 => self.take_over(of),
            7 if is_other => self.cut_off_request(of, (choice / 81 % places) as u32),
            7 => self.hand_over(of, (of + 1) % self.devices.len()),
            _ if is_other => self.cut_off_grant(of, (choice / 81 % places) as u32),
            _ => self.reclaim(of),
        };
        crash_after(None);
        done?;
        if self.devices[of].replica.is_none() && (choice / 2000).is_multiple_of(3) {
            return self.lose_power(of, choice / 6000);
        }
        self.wake(of)?;
        self.observe(of)
    }

    /// Hands over to the next device, which is cut off when the grant arrives.
    pub(super) fn cut_off_grant(&mut self, of: usize, after: u32) -> Done {
        crash_after(None);
        let to = (of + 1) % self.devices.len();
        self.round(to, of)?;
        self.hand_over(of, to)?;
        self.cut_off_at("grant", of, to, after)
    }

    /// Asks the leader to hand over to the next device, and cuts it off when that arrives.
    pub(super) fn cut_off_request(&mut self, of: usize, after: u32) -> Done {
        crash_after(None);
        let (leader, to) = (self.leader_of(of)?, (of + 1) % self.devices.len());
        if leader == of {
            crash_after(Some(after));
            return self.hand_over(of, to);
        }
        self.reassign(of, to)?;
        self.cut_off_at("reassign", of, leader, after)
    }

    /// Asks the next device to lead, which may say that it does not: cut off when that arrives.
    pub(super) fn cut_off_referral(&mut self, of: usize, after: u32) -> Done {
        crash_after(None);
        let to = (of + 1) % self.devices.len();
        self.subscribe(of, to)?;
        self.cut_off_at("not leader", to, of, after)
    }

    /// Everything between two devices arrives; with the first message of this kind something is cut off.
    pub(super) fn cut_off_at(&mut self, kind: &str, from: usize, to: usize, after: u32) -> Done {
        for _ in 0..MESSAGES_MAX {
            self.serve(from, to)?;
            let Some(packet) = self.network.take_between(from, to) else { return Ok(()) };
            if packet.to == to && replica::kind(&packet.bytes) == kind {
                crash_after(Some(after));
                return self.deliver(packet);
            }
            self.deliver(packet)?;
        }
        Ok(())
    }

    /// Makes a device's database an older state of itself, or another's.
    pub(super) fn replace(
        &mut self,
        of: usize,
        becomes: impl FnOnce(&mut [Device]) -> Result<bool, String>,
    ) -> Done {
        if !becomes(&mut self.devices).map_err(|text| Broken::new("step", text))? {
            return Ok(());
        }
        self.is_restored = true;
        let has = std::mem::take(&mut self.views[of].has);
        self.views[of] = View { may_lose: true, has, ..View::default() };
        self.oracle.authors[of].memory += 1;
        self.oracle.rewind(of, &[]);
        self.wake(of)
    }

    pub(super) fn lose_power(&mut self, of: usize, choice: u64) -> Done {
        self.wake(of)?;
        let lost = self.devices[of].lose_power(choice).map_err(|text| Broken::new("step", text))?;
        if lost {
            self.counters.count("power: commits were lost");
            self.views[of].may_lose = true;
            self.views[of].local = None;
            let outbox = self.devices[of].outbox().map_err(|e| failed(of, "losing power", &e))?;
            self.oracle.rewind(of, &outbox);
        }
        self.wake(of)
    }
}

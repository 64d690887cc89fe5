//! Healing: all is well again, the network is mended and every device runs. Within a bounded number of rounds all must become
//! level, and nothing that anybody had may be missing.

use tidelog::{id::Seq, testing::replica::Replica};

use super::{
    Broken, Done, ROUNDS_MAX, Simulation, View,
    check::sql,
    mirror::{self, Rows},
    oracle::Set,
    tell::{difference, record_name},
};

impl Simulation {
    /// All is well again: devices become level, and nothing that anybody had is missing.
    pub(super) fn heal(&mut self) -> Done {
        self.network.clear();
        self.network.mend();
        let count = self.devices.len();
        for d in 0..count {
            self.wake(d)?;
            self.step(d, Replica::seal)?;
            self.observe(d)?;
        }
        let mut wanted = Set::default();
        for view in &self.views {
            for id in view.has.iter() {
                wanted.insert(id);
            }
        }
        let mut rounds = 0;
        while !self.is_level()? {
            rounds += 1;
            if rounds > ROUNDS_MAX {
                return Err(Broken::new("level", self.how_all_stand()));
            }
            let leader = self.who_leads()?;
            for d in 0..count {
                self.round(d, leader)?;
            }
        }
        self.counters.add("healing: rounds", rounds as u64);
        self.check_all()?;
        self.check_lists()?;
        let first = &self.views[0];
        let missing = wanted.iter().find(|&id| !first.logged.contains(id));
        if let Some(id) = missing {
            let name = &self.oracle.changes[id].name;
            let text = format!("{} {} is in no log", name.0, record_name(&name.1));
            return Err(Broken::new("kept", text));
        }
        let mut tables: Vec<Rows> = Vec::new();
        for (of, device) in self.devices.iter().enumerate() {
            if let Some(app) = &device.app {
                tables.push(mirror::tables(app).map_err(sql(of))?);
            }
        }
        for (of, other) in tables.iter().enumerate() {
            if *other != tables[0] || *other != first.folded {
                let text = format!("devices 0 and {of}: {}", difference(other, &tables[0]));
                return Err(Broken::new("level", text));
            }
        }
        Ok(())
    }

    /// All devices list the same conflicts and dead letters.
    pub(super) fn check_lists(&mut self) -> Done {
        let mut lists = Vec::new();
        for of in 0..self.devices.len() {
            let list =
                |replica: &mut Replica| Ok((replica.conflicts_since(Seq(0))?, replica.dead_letters()?));
            lists.extend(self.step(of, list)?);
        }
        match lists.iter().position(|list| *list != lists[0]) {
            None => Ok(()),
            Some(of) => {
                let text = format!("device 0 lists {:?}, and device {of} {:?}", lists[0], lists[of]);
                Err(Broken::new("decisions", text))
            }
        }
    }

    /// Who leads the highest term that anybody has seen; where nobody does, the one with the longest log takes over.
    pub(super) fn who_leads(&mut self) -> Done<usize> {
        for _ in 0..=self.devices.len() {
            let mut standings = Vec::new();
            for d in 0..self.devices.len() {
                if let Some(standing) = self.step(d, |replica| replica.standing())? {
                    standings.push((standing, d));
                }
            }
            let highest = standings.iter().map(|(s, _)| s.max_seen).max();
            if let Some((_, d)) = standings.iter().find(|(s, _)| s.leads() && Some(s.max_seen) == highest) {
                return Ok(*d);
            }
            // Who leads a lower one has yet to hear of it.
            if let Some((_, d)) = standings.iter().find(|(s, _)| Some(s.max_seen) == highest) {
                self.tell_others(*d)?;
            }
            let longest = standings.iter().max_by_key(|(s, d)| (s.max_seen.number, s.top, *d));
            let Some((_, d)) = longest else { break };
            self.take_over(*d)?;
        }
        Err(Broken::new("level", self.how_all_stand()))
    }

    pub(super) fn is_level(&mut self) -> Done<bool> {
        let digest = |view: &View| view.log.last().map(|last| (last.seq, last.digest));
        let first = digest(&self.views[0]);
        let same = self.views.iter().all(|view| digest(view) == first && view.pending.is_empty());
        let waits = (0..self.devices.len()).any(|d| self.oracle.is_waiting(d));
        Ok(same && first.is_some() && !waits)
    }
}

//! Checks: what must hold, whatever happens. After every event of what it touched, of everything now and then, and at the
//! end, when everything was mended.
//!
//! | invariant | says |
//! |---|---|
//! | `order` | who holds the same position holds the same entry and the same before it; in a term only its device appends |
//! | `fencing` | nobody goes back behind a term that it has shown |
//! | `positions` | a log becomes shorter only where that is said |
//! | `stable` | what all had confirmed stays, and nobody takes more for that, unless a database was replaced |
//! | `captured` | a seal makes of what was committed what it must, and of nothing nothing |
//! | `once` | no change is twice in a log |
//! | `kept` | an entry holds its author's values; no step drops the last copy of a change |
//! | `conflicts` | there is a conflict where two had not seen each other, and nowhere else |
//! | `decisions` | a person's decision takes effect, or what it was about goes on waiting; all devices say the same of that |
//! | `deleted` | what was deleted comes back only knowingly |
//! | `fold` | the tables are the log's fold with what is pending laid over it |
//! | `atomic` | of an atomic scope all is refused or nothing, also where it is tried again |
//! | `tree` | no folder is above itself |
//! | `local` | a local column holds what the application here wrote, and nothing of it leaves |
//! | `references` | every foreign key refers to something |
//! | `totals` | what adds up adds up |
//! | `level` | once all is well, all devices become the same |
//! | `step` | no step fails |
//! | `readable` | what a device sends can be read |

use std::hash::Hasher;

use tidelog::{
    id::{DeviceId, Incarnation, Term},
    testing::replica::Replica,
};

use super::{
    Broken, Device, Done, Known, Simulation, failed,
    mirror::{self, Entry, Pending, Rows},
    oracle::{Change, Set},
    tell::{difference, record_name},
    workload::{FOLDER_PARENT, TABLES, TOTAL},
};

pub(super) fn sql(of: usize) -> impl Fn(rusqlite::Error) -> Broken {
    move |error| Broken::new("step", format!("reading device {of}: {error}"))
}

impl Simulation {
    /// Looks at a device after something has happened there.
    pub(super) fn observe(&mut self, of: usize) -> Done {
        let (Some(app), Some(_)) = (&self.devices[of].app, &self.devices[of].replica) else { return Ok(()) };
        let outbox = mirror::outbox(app).map_err(sql(of))?;
        let pending = mirror::pending(app).map_err(sql(of))?;
        let may_lose = std::mem::take(&mut self.views[of].may_lose);
        let may_shorten = std::mem::take(&mut self.views[of].may_shorten);
        self.cut_back(of, may_lose || may_shorten)?;
        let app = self.devices[of].app.as_ref().expect("it is up");
        let entries = mirror::entries(app, self.views[of].log.len() as u64).map_err(sql(of))?;
        self.check_seal(of, &outbox, &pending, &entries)?;
        self.take_decided(of, &pending, &entries)?;
        for entry in entries {
            self.take_entry(of, entry)?;
        }
        self.check_held(of, pending, may_lose)?;
        self.check_standing(of)?;
        self.check_references(of)?;
        if outbox.is_empty() {
            self.check_tables(of)?;
        }
        self.check_local(of)?;
        self.devices[of].step(Replica::checkpoint).map_err(|e| failed(of, "a checkpoint", &e))?;
        Ok(())
    }

    /// Forgets entries that the log does not hold any more.
    fn cut_back(&mut self, of: usize, may_shorten: bool) -> Done {
        let app = self.devices[of].app.as_ref().expect("it is up");
        let view = &mut self.views[of];
        let before = view.log.len();
        while let Some(last) = view.log.last() {
            if mirror::term_at(app, last.seq).map_err(sql(of))?.as_ref() == Some(&last.term) {
                break;
            }
            if self.stable.get(last.seq as usize - 1) == Some(&last.digest) && !self.is_restored {
                let text = format!("device {of} has lost entry {}, which all had confirmed", last.seq);
                return Err(Broken::new("stable", text));
            }
            view.log.pop();
            view.causes.pop();
        }
        if view.log.len() < before {
            if !may_shorten {
                let text = format!("device {of} had {before} entries and has {}", view.log.len());
                return Err(Broken::new("positions", text));
            }
            self.counters.count("log: became shorter");
            view.logged = Set::default();
            for (entry, cause) in view.log.iter().zip(&view.causes) {
                if entry.n.is_some()
                    && let Some(id) = *cause
                {
                    view.logged.insert(id);
                }
            }
            view.folded = mirror::fold(&view.log);
        }
        Ok(())
    }

    /// What was sealed is what was committed.
    fn check_seal(&mut self, of: usize, outbox: &[String], pending: &[Pending], entries: &[Entry]) -> Done {
        if !outbox.is_empty() {
            return Ok(());
        }
        if !self.oracle.is_waiting(of) {
            return Ok(());
        }
        for change in self.oracle.seal(of) {
            let name = &change.name;
            let is_it = |actor: &Option<String>, record: Option<&mirror::Record>| {
                actor.as_ref() == Some(&name.0) && record == Some(&name.1)
            };
            let in_pending = pending.iter().find(|p| is_it(&p.name, Some(&p.record))).map(|p| &p.authored);
            let in_entries = entries
                .iter()
                .find(|e| e.n.is_some() && is_it(&e.name, e.record.as_ref()))
                .map(|e| &e.authored);
            match in_pending.or(in_entries) {
                Some(sealed) if *sealed == change.authored => {}
                sealed => {
                    let text = format!(
                        "device {of} committed {:?} {} and sealed {sealed:?}, not {:?}",
                        name.0,
                        record_name(&name.1),
                        change.authored
                    );
                    return Err(Broken::new("captured", text));
                }
            }
            self.oracle.register(change);
        }
        Ok(())
    }

    fn take_entry(&mut self, of: usize, entry: Entry) -> Done {
        let view = &self.views[of];
        let before = view.log.last().map_or(String::new(), |last| last.term.clone());
        let here = format!("entry {} on device {of}, of term {}", entry.seq, entry.term);
        if entry.seq != view.log.len() as u64 + 1 {
            return Err(Broken::new("order", format!("{here} follows on {}", view.log.len())));
        }
        self.trace.write_u64(entry.digest);
        let key = (entry.term.clone(), entry.seq);
        let is_new = match self.entries.get(&key) {
            Some(known) if known.digest == entry.digest && known.before == before => false,
            Some(known) => {
                let text = format!(
                    "{here} is another elsewhere, or follows on {before} and not on {}",
                    known.before
                );
                return Err(Broken::new("order", text));
            }
            None => {
                if entry.term.split('/').nth(1) != Some(Device::key(of).to_string().as_str()) {
                    return Err(Broken::new("order", format!("{here} was appended by another device")));
                }
                if term_of(&entry.term) < self.views[of].shown {
                    let text = format!("{here} was appended after {:?} was shown", self.views[of].shown);
                    return Err(Broken::new("fencing", text));
                }
                self.entries.insert(key, Known { digest: entry.digest, before });
                true
            }
        };
        let cause = self.cause_of(of, &entry, &here)?;
        if is_new && let Some(id) = cause {
            self.check_decision(of, &entry, id, &here)?;
        }
        let view = &mut self.views[of];
        if entry.n.is_some()
            && let Some(id) = cause
            && !view.logged.insert(id)
        {
            let name = &self.oracle.changes[id].name;
            let text = format!("{here} is {} {} once more", name.0, record_name(&name.1));
            return Err(Broken::new("once", text));
        }
        if entry.device.as_deref() != Some(Device::key(of).to_string().as_str())
            && view.pending.iter().any(|p| Some(&p.record) == entry.record.as_ref())
        {
            self.counters.count("pending: under a pulled entry");
        }
        mirror::lay(&mut view.folded, &entry);
        if let (Some((_, id)), Some(None)) = (&entry.record, &entry.effect) {
            view.gone.insert(id.clone());
        }
        view.log.push(entry);
        view.causes.push(cause);
        Ok(())
    }

    /// The change behind an entry: its own, or the one whose cascade it is.
    fn cause_of(&self, of: usize, entry: &Entry, here: &str) -> Done<Option<usize>> {
        if entry.record.is_none() {
            return Ok(None);
        }
        if entry.n.is_none() {
            let view = &self.views[of];
            let of_group = view.log.last().is_some_and(|last| last.group == entry.group);
            return Ok(view.causes.last().copied().flatten().filter(|_| of_group));
        }
        let Some(id) = self.oracle.find(entry.name.as_ref(), entry.record.as_ref()) else {
            let text = format!("{here} is a change that nobody made: {entry:?}");
            return Err(Broken::new("captured", text));
        };
        Ok(Some(id))
    }

    /// What the leader made of a change.
    fn check_decision(&mut self, of: usize, entry: &Entry, id: usize, here: &str) -> Done {
        if entry.n.is_none() {
            self.counters.count("entry: derived");
            return Ok(());
        }
        let Change { name: (actor, record), authored, .. } = &self.oracle.changes[id];
        let name = format!("{actor} {}", record_name(record));
        if entry.authored != *authored {
            let text = format!("{here} holds of {name} {:?}, not {authored:?}", entry.authored);
            return Err(Broken::new("kept", text));
        }
        if entry.is_otherwise {
            self.counters.count("entry: of another life");
        }
        let is_conflict = !entry.conflicts.is_empty();
        // However often a rejoin brings it into a log.
        if self.counted.0.insert(id) {
            self.counters.count(if entry.decides.is_some() { "entry: decision" } else { "entry: change" });
        }
        let meets_others = self.check_verdict(of, entry, id, here)?;
        if entry.is_dead() {
            self.counters.count("entry: refused");
            return Ok(());
        }
        if is_conflict && entry.decides.is_none() && self.counted.1.insert(id) {
            self.counters.count("entry: conflict");
        }
        if !meets_others {
            return Ok(());
        }
        let view = &self.views[of];
        if self.oracle.resurrects(&view.log, &view.causes, entry, id) {
            return Err(Broken::new(
                "deleted",
                format!("{here}, {name}, brings back what it did not know was deleted"),
            ));
        }
        // What stays with a record whose deletion did not stand is no conflict of its own.
        let stays = entry.authored.row.is_none() && entry.effect.is_none() && is_conflict;
        match self.oracle.is_contested(&view.log, &view.causes, entry, id) {
            Some(contested) if contested != is_conflict && !stays => {
                let text = format!(
                    "{here}, {name}, {} a conflict, with {:?}; it is {entry:?}; the record before: {:?}",
                    if contested { "must have" } else { "may not have" },
                    entry.conflicts,
                    view.log.iter().filter(|e| e.record == entry.record).collect::<Vec<_>>(),
                );
                Err(Broken::new("conflicts", text))
            }
            _ => Ok(()),
        }
    }

    /// Nothing is dropped while nobody else has it.
    fn check_held(&mut self, of: usize, pending: Vec<Pending>, may_lose: bool) -> Done {
        let mut has = self.views[of].logged.clone();
        for change in &pending {
            let Some(id) = self.oracle.find(change.name.as_ref(), Some(&change.record)) else {
                let text = format!("device {of} has pending what nobody made: {change:?}");
                return Err(Broken::new("captured", text));
            };
            if has.contains(id) {
                let text = format!("device {of} has pending what its log shows: {change:?}");
                return Err(Broken::new("once", text));
            }
            if change.authored != self.oracle.changes[id].authored {
                return Err(Broken::new("kept", format!("device {of} has pending {change:?}")));
            }
            has.insert(id);
            if change.is_blocked {
                self.counters.count("pending: blocked");
            }
        }
        for id in self.views[of].has.iter() {
            let elsewhere = || (0..self.views.len()).any(|d| d != of && self.views[d].has.contains(id));
            if !has.contains(id) && !may_lose && !elsewhere() {
                let name = &self.oracle.changes[id].name;
                let text =
                    format!("device {of} has dropped {} {}, and nobody has it", name.0, record_name(&name.1));
                return Err(Broken::new("kept", text));
            }
        }
        let view = &mut self.views[of];
        view.has = has;
        view.pending = pending;
        Ok(())
    }

    fn check_standing(&mut self, of: usize) -> Done {
        let Some(replica) = &self.devices[of].replica else { return Ok(()) };
        let standing = replica.standing().map_err(|e| failed(of, "looking", &e))?;
        if Some(standing.max_seen) < self.views[of].shown {
            let text = format!(
                "device {of} has shown {:?} and is back at {}",
                self.views[of].shown, standing.max_seen
            );
            return Err(Broken::new("fencing", text));
        }
        self.trace.write(format!("{standing:?}").as_bytes());
        // Nobody has, of a term that is not its own.
        let confirmed = replica.confirmed().map_err(|e| failed(of, "looking", &e))?;
        let all = confirmed.len() + 1 == self.devices.len();
        let upto = confirmed.values().map(|position| position.seq.0).min().filter(|_| all).unwrap_or(0);
        let upto = (upto as usize).min(self.views[of].log.len());
        if upto > self.stable.len() {
            self.stable = self.views[of].log[..upto].iter().map(|entry| entry.digest).collect();
        }
        let told = self.devices[of].replica.as_ref().map_or(0, Replica::stable) as usize;
        let log = self.views[of].log.iter().map(|entry| entry.digest);
        if !self.is_restored && told > 0 {
            self.counters.count("stable: told");
            if told > self.stable.len() || !log.take(told).eq(self.stable[..told].iter().copied()) {
                let text = format!(
                    "device {of} takes all up to {told} for confirmed by all, and that is so up to {}",
                    self.stable.len()
                );
                return Err(Broken::new("stable", text));
            }
        }
        Ok(())
    }

    /// A local column holds what the application here wrote into it, for as long as the row is there.
    fn check_local(&mut self, of: usize) -> Done {
        let app = self.devices[of].app.as_ref().expect("it is up");
        let held = mirror::local(app).map_err(sql(of))?;
        let view = &mut self.views[of];
        let before = view.local.replace(held);
        let (Some(before), Some(held)) = (before, &view.local) else { return Ok(()) };
        for (id, value) in held {
            let due = before.get(id).copied().flatten();
            // A row that was gone meanwhile is another.
            if *value != due && !(value.is_none() && view.gone.contains(id)) {
                let text = format!("doc {id} on device {of} holds {value:?} in a local column, not {due:?}");
                return Err(Broken::new("local", text));
            }
        }
        if held.values().any(Option::is_some) {
            self.counters.count("local: kept");
        }
        Ok(())
    }

    /// Nothing of a local column is in the log or on its way there.
    fn check_local_stays(&self, of: usize) -> Done {
        let app = self.devices[of].app.as_ref().expect("it is up");
        let names = "SELECT EXISTS (SELECT 1 FROM sync_layout WHERE fields LIKE '%opened%')";
        let leaves: bool = app.query_row(names, [], |row| row.get(0)).map_err(sql(of))?;
        if leaves {
            return Err(Broken::new("local", format!("the log of device {of} knows a local column")));
        }
        Ok(())
    }

    fn check_references(&self, of: usize) -> Done {
        let app = self.devices[of].app.as_ref().expect("it is up");
        let mut statement = app.prepare_cached("PRAGMA foreign_key_check").map_err(sql(of))?;
        let mut wrong = statement.query([]).map_err(sql(of))?;
        if let Some(row) = wrong.next().map_err(sql(of))? {
            let name = |column| row.get::<_, String>(column).map_err(sql(of));
            let text = format!("device {of}: a row of {} refers to none of {}", name(0)?, name(2)?);
            return Err(Broken::new("references", text));
        }
        Ok(())
    }

    /// The tables are the fold of the log, with what is pending over it.
    fn check_tables(&mut self, of: usize) -> Done {
        let app = self.devices[of].app.as_ref().expect("it is up");
        let shown = mirror::tables(app).map_err(sql(of))?;
        let view = &self.views[of];
        let mut due = view.folded.clone();
        let mut records: Vec<_> = view.pending.iter().map(|p| &p.record).collect();
        records.sort_unstable();
        records.dedup();
        for record in records {
            let layers: Vec<&Pending> = view.pending.iter().filter(|p| p.record == *record).collect();
            let logged = view.folded.get(record);
            if layers.iter().any(|p| p.is_blocked) {
                // As the log has it, with what was written since; or gone where that would refer to nothing.
                let since: Vec<&Pending> = layers.iter().copied().filter(|p| !p.is_blocked).collect();
                let over = mirror::overlaid(&TABLES[record.0], logged, &since);
                match shown.get(record).filter(|row| Some(*row) == logged || Some(*row) == over.as_ref()) {
                    Some(row) => drop(due.insert(record.clone(), row.clone())),
                    None if shown.contains_key(record) => {}
                    None => drop(due.remove(record)),
                }
                continue;
            }
            match mirror::overlaid(&TABLES[record.0], logged, &layers) {
                Some(row) => drop(due.insert(record.clone(), row)),
                None => drop(due.remove(record)),
            }
        }
        if shown != due {
            return Err(Broken::new("fold", format!("device {of}: {}", difference(&shown, &due))));
        }
        check_tree(of, &shown)?;
        check_total(of, &shown, self.decided_sums(of))
    }

    /// Everything, everywhere.
    pub(super) fn check_all(&mut self) -> Done {
        for of in 0..self.devices.len() {
            let Some(app) = &self.devices[of].app else { continue };
            let log = mirror::entries(app, 0).map_err(sql(of))?;
            let view = &self.views[of];
            let differs = |(a, b): &(&Entry, &Entry)| a.digest != b.digest || a.conflicts != b.conflicts;
            let other = log.iter().zip(&view.log).find(differs);
            if other.is_some() || log.len() != view.log.len() {
                let text = format!("the log of device {of} was changed behind its top: {other:?}");
                return Err(Broken::new("order", text));
            }
            if mirror::fold(&log) != view.folded {
                return Err(Broken::new("fold", format!("the log of device {of} does not fold as it grew")));
            }
            let shown = mirror::tables(app).map_err(sql(of))?;
            check_total(of, &shown, self.decided_sums(of))?;
            self.check_sums(of)?;
            self.check_verdicts(of)?;
            self.check_local_stays(of)?;
        }
        Ok(())
    }

    /// What each account holds is what all transfers in the log come to, each once.
    fn check_sums(&self, of: usize) -> Done {
        let view = &self.views[of];
        let mut sums = std::collections::BTreeMap::new();
        for (entry, cause) in view.log.iter().zip(&view.causes) {
            let (Some(record), Some(id)) = (&entry.record, cause) else { continue };
            // A decision that came too late has none.
            let counts =
                entry.n.is_some() && !entry.is_dead() && (entry.decides.is_none() || entry.effect.is_some());
            if counts && TABLES[record.0].sum.is_some() {
                *sums.entry(record.clone()).or_insert(0) += self.oracle.added(*id);
            }
        }
        for (record, row) in &view.folded {
            let Some(column) = TABLES[record.0].sum else { continue };
            if sums.get(record) != Some(&row[column].int()) {
                let text = format!(
                    "{} on device {of} holds {:?}, not {:?}",
                    record_name(record),
                    row,
                    sums.get(record)
                );
                return Err(Broken::new("totals", text));
            }
        }
        Ok(())
    }
}

fn term_of(text: &str) -> Option<Term> {
    let mut parts = text.split('/');
    let (number, leader) = (parts.next()?.parse().ok()?, DeviceId::parse(parts.next()?)?);
    let (counter, nonce) = (parts.next()?.parse().ok()?, parts.next()?.parse::<i64>().ok()? as u64);
    Some(Term { number, leader, incarnation: Incarnation { counter, nonce } })
}

/// No folder is above itself.
fn check_tree(of: usize, shown: &Rows) -> Done {
    let parent = |record: &mirror::Record| match shown.get(record).map(|row| &row[FOLDER_PARENT]) {
        Some(mirror::Cell::Text(parent)) => Some((record.0, parent.clone())),
        _ => None,
    };
    for record in shown.keys().filter(|record| TABLES[record.0].name == "folders") {
        let mut above = parent(record);
        for _ in 0..shown.len() {
            let Some(at) = above else { break };
            if at == *record {
                return Err(Broken::new(
                    "tree",
                    format!("{} on device {of} is above itself", record_name(record)),
                ));
            }
            above = parent(&at);
        }
    }
    Ok(())
}

fn check_total(of: usize, shown: &Rows, decided: i64) -> Done {
    let accounts = shown.iter().filter(|(record, _)| TABLES[record.0].sum.is_some());
    let (count, total) = accounts.fold((0, 0), |(count, total), (record, row)| {
        (count + 1, total + TABLES[record.0].sum.map_or(0, |column| row[column].int()))
    });
    if count > 0 && total != TOTAL + decided {
        return Err(Broken::new("totals", format!("{count} accounts on device {of} hold {total}")));
    }
    Ok(())
}

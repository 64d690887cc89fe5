//! The oracle: what was committed on which device, and what stood in its database then. Kept outside all databases, from
//! what the application wrote and from nothing that tidelog says, it knows what a seal must make of it, whether two
//! changes had seen each other, and so where a conflict must be and where it may not.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    mirror::{Authored, Entry, Record, Row, Rows},
    workload::{Merge, TABLES},
};

/// A set of changes, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(Vec<u64>);

impl Set {
    /// Puts one in. Whether it was not there.
    pub fn insert(&mut self, id: usize) -> bool {
        if self.0.len() <= id / 64 {
            self.0.resize(id / 64 + 1, 0);
        }
        let is_new = !self.contains(id);
        self.0[id / 64] |= 1 << (id % 64);
        is_new
    }

    /// Whether one is in it.
    pub fn contains(&self, id: usize) -> bool {
        self.0.get(id / 64).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }

    /// All that are in it.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        let words = self.0.iter().enumerate();
        words.flat_map(|(at, word)| {
            (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| at * 64 + bit)
        })
    }
}

/// What names a change, wherever it is and by whatever number it goes there: the transaction and the record.
pub type Name = (String, Record);

/// A change as it must have been sealed.
#[derive(Clone, Debug)]
pub struct Change {
    /// See [`Name`].
    pub name: Name,
    /// Who made it: a device, and since when its memory reaches.
    pub author: (usize, u32),
    /// What was made of the record.
    pub authored: Authored,
    /// The row before it.
    pub before: Option<Row>,
    /// The changes that stood in its author's database.
    pub seen: Rc<Set>,
}

/// What one statement of the application did to one record.
#[derive(Clone, Debug)]
struct Wrote {
    actor: String,
    mark: Option<String>,
    record: Record,
    before: Option<Row>,
    after: Option<Row>,
    seen: Rc<Set>,
}

/// What is known of one device's application.
#[derive(Clone, Debug, Default)]
pub struct Author {
    /// Raised when the database becomes an older state of itself: what came later is forgotten.
    pub memory: u32,
    /// All that was committed, in order.
    wrote: Vec<Wrote>,
    /// How much of it was sealed.
    sealed: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    names: BTreeMap<Name, usize>,
    /// All changes that were sealed, by number.
    pub changes: Vec<Change>,
    /// By device.
    pub authors: Vec<Author>,
}

impl Oracle {
    /// Of so many devices, which know nothing.
    pub fn new(devices: usize) -> Self {
        Self { names: BTreeMap::new(), changes: Vec::new(), authors: vec![Author::default(); devices] }
    }

    /// Notes a transaction: the tables before it and after each statement.
    pub fn committed(&mut self, device: usize, actor: &str, atomic: bool, images: &[Rows], seen: Set) {
        let seen = Rc::new(seen);
        let mark = atomic.then(|| format!("m{actor}"));
        for pair in images.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            let records = before.keys().chain(after.keys().filter(|record| !before.contains_key(*record)));
            for record in records {
                let (before, after) = (before.get(record), after.get(record));
                if before != after {
                    self.authors[device].wrote.push(Wrote {
                        actor: actor.to_owned(),
                        mark: mark.clone(),
                        record: record.clone(),
                        before: before.cloned(),
                        after: after.cloned(),
                        seen: Rc::clone(&seen),
                    });
                }
            }
        }
    }

    /// Whether something is committed and not sealed.
    pub fn is_waiting(&self, device: usize) -> bool {
        self.authors[device].sealed < self.authors[device].wrote.len()
    }

    /// The database lost some commits or became an older state: these transactions are what waits in its outbox.
    pub fn rewind(&mut self, device: usize, outbox: &[String]) {
        let author = &mut self.authors[device];
        author.wrote.retain(|wrote| outbox.contains(&wrote.actor));
        author.sealed = 0;
    }

    /// All that is committed is sealed: the changes that this must have come to.
    pub fn seal(&mut self, device: usize) -> Vec<Change> {
        let author = &mut self.authors[device];
        let by = (device, author.memory);
        let mut runs: Vec<(Wrote, bool)> = Vec::new();
        for wrote in &author.wrote[author.sealed..] {
            // A later run of the record goes on with its mark, or another begins.
            match runs.iter_mut().rfind(|(run, _)| run.record == wrote.record) {
                Some((run, whole)) if run.mark == wrote.mark => {
                    *whole |= run.after.is_none() && wrote.after.is_some();
                    run.after.clone_from(&wrote.after);
                    run.actor.clone_from(&wrote.actor);
                    run.seen = Rc::clone(&wrote.seen);
                }
                _ => runs.push((wrote.clone(), false)),
            }
        }
        author.sealed = author.wrote.len();
        let change = |(run, whole): (Wrote, bool)| {
            let fields = match (&run.before, &run.after) {
                (None, None) => return None,
                (Some(before), Some(after)) if !whole => {
                    let changed: Vec<usize> = (0..after.len()).filter(|&i| before[i] != after[i]).collect();
                    if changed.is_empty() {
                        return None;
                    }
                    Some(changed)
                }
                _ => None,
            };
            Some(Change {
                name: (run.actor, run.record),
                author: by,
                authored: Authored { row: run.after, fields, is_nothing: false },
                before: run.before,
                seen: run.seen,
            })
        };
        runs.into_iter().filter_map(change).collect()
    }

    /// Gives a sealed change its number.
    pub fn register(&mut self, change: Change) -> usize {
        if let Some(&id) = self.names.get(&change.name) {
            // Sealed before, in a state that a power failure took.
            self.changes[id] = change;
            return id;
        }
        self.names.insert(change.name.clone(), self.changes.len());
        self.changes.push(change);
        self.changes.len() - 1
    }

    /// Number of the change with this name.
    pub fn find(&self, actor: Option<&String>, record: Option<&Record>) -> Option<usize> {
        self.names.get(&(actor?.clone(), record?.clone())).copied()
    }

    /// What a change has added to an account.
    pub fn added(&self, change: usize) -> i64 {
        let Change { name, authored, before, .. } = &self.changes[change];
        let (Some(column), Some(row)) = (TABLES[name.1.0].sum, &authored.row) else { return 0 };
        row[column].int() - before.as_ref().map_or(0, |before| before[column].int())
    }

    /// Whether the author of a change had seen another.
    pub fn had_seen(&self, change: usize, other: usize) -> bool {
        let (one, two) = (&self.changes[change], &self.changes[other]);
        // What it had written itself before, sealed or not.
        one.seen.contains(other) || (one.author == two.author && other < change)
    }

    /// Whether the change of an entry met one that its author had not seen, and that wanted something else, in the log
    /// before it. `None` where both would be right. `causes` are the changes behind the entries.
    pub fn is_contested(
        &self,
        log: &[Entry],
        causes: &[Option<usize>],
        entry: &Entry,
        change: usize,
    ) -> Option<bool> {
        let Some(record) = &entry.record else { return Some(false) };
        let table = &TABLES[record.0];
        let written = || {
            let entries = log.iter().zip(causes).rev();
            entries.filter(|(e, _)| e.record.as_ref() == Some(record) && e.effect.is_some())
        };
        let unseen = |cause: &Option<usize>| cause.is_none_or(|cause| !self.had_seen(change, cause));
        let Some((last, last_cause)) = written().next() else { return Some(false) };
        let authored = &self.changes[change].authored;
        let now = last.effect.as_ref().and_then(Option::as_ref);
        let (Some(row), Some(now)) = (&authored.row, now) else {
            // One of the two is a deletion.
            let is_about_presence = authored.row.is_some() || now.is_some();
            return Some(is_about_presence && unseen(last_cause));
        };
        let competes = |column: usize| !table.is_reduced(column);
        let writes = |entry: &Entry, column: usize| {
            matches!(entry.effect, Some(Some(_))) && entry.wrote.as_ref().is_none_or(|w| w.contains(&column))
        };
        let mine = |column: usize| authored.fields.as_ref().is_none_or(|fields| fields.contains(&column));
        let columns = 0..row.len();
        // Who decides about a conflict has looked at what he writes over; the rest of the record goes on.
        let resolves = entry.decides.as_ref().is_some_and(|decides| decides.starts_with("resolves"));
        if resolves || table.merge == Merge::Fields {
            let contested = |column: usize| {
                let writer = written().find(|(e, _)| writes(e, column));
                row[column] != now[column] && writer.is_some_and(|(_, cause)| unseen(cause))
            };
            return Some(columns.into_iter().any(|c| competes(c) && mine(c) && contested(c)));
        }
        if !columns.clone().any(|c| competes(c) && mine(c)) {
            return Some(false);
        }
        let differs = columns.clone().any(|c| competes(c) && row[c] != now[c]);
        let competitor = written().find(|(e, _)| columns.clone().any(|c| competes(c) && writes(e, c)));
        let contested = differs && competitor.is_some_and(|(_, cause)| unseen(cause));
        // Where all that it wrote itself is there already, nothing of it is lost with its row.
        let loses = columns.clone().any(|c| competes(c) && mine(c) && row[c] != now[c]);
        if contested && (table.merge == Merge::Custom || !loses) { None } else { Some(contested) }
    }

    /// Whether an entry brings back a record whose deletion its author had not seen, where deletions stand.
    pub fn resurrects(&self, log: &[Entry], causes: &[Option<usize>], entry: &Entry, change: usize) -> bool {
        let (Some(record), Some(Some(_))) = (&entry.record, &entry.effect) else { return false };
        let last = log
            .iter()
            .zip(causes)
            .rev()
            .find(|(e, _)| e.record.as_ref() == Some(record) && e.effect.is_some());
        TABLES[record.0].deletes_win
            && last.is_some_and(|(last, cause)| {
                last.effect == Some(None) && cause.is_none_or(|cause| !self.had_seen(change, cause))
            })
    }
}

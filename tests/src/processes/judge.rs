//! What all databases must hold in the end, by the oracle: every transaction that was committed, once, and none that was not.
//!
//! Databases are read by plain SQL, by code that shares nothing with tidelog ([`mirror`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use rusqlite::Connection;

use super::{
    NAMES, Place,
    load::JOURNAL,
    oracle::{Deed, Fate, Oracle, Value},
};
use crate::{
    devices::{lines, reader},
    sim::{
        mirror::{self, Cell, Entry, Row, Rows},
        workload::{TABLES, TOTAL, Table},
    },
};

/// What was there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Transactions that were committed.
    pub committed: usize,
    /// Transactions that were about to be, when their process was killed; and of these, those that are there.
    pub in_doubt: (usize, usize),
    /// Entries in the log.
    pub entries: usize,
    /// Entries of changes that others' won over, in part or altogether.
    pub conflicts: usize,
    /// Entries of changes that were refused.
    pub refused: usize,
    /// Terms that were opened.
    pub terms: usize,
    /// How many of them by takeovers.
    pub takeovers: u64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { committed, in_doubt, entries, conflicts, refused, terms, takeovers } = self;
        write!(
            f,
            "{committed} transactions and {} of {} that were in doubt, {entries} entries, {conflicts} conflicts, \
             {refused} refused; {terms} terms, {takeovers} takeovers",
            in_doubt.1, in_doubt.0
        )
    }
}

/// Fails if anything is lost, double, half, or not the same on all.
pub(super) fn judge(place: &Place, oracles: &[&Oracle]) -> Found {
    let all: Vec<Held> = NAMES.into_iter().map(|name| Held::of(place, name)).collect();
    for held in &all {
        held.is_sound();
        held.equals(&all[0]);
    }
    let mut found = all[0].compare(oracles);
    let terms = "SELECT count(*), max(number) - 1 FROM sync_term";
    let terms = all[0].conn.query_row(terms, [], |row| Ok((row.get(0)?, row.get(1)?)));
    (found.terms, found.takeovers) = terms.unwrap();
    for name in NAMES {
        let told = std::fs::read_to_string(place.told(name)).unwrap_or_default();
        for wrong in ["panicked", "damaged", "malformed", "corrupt", "not a database"] {
            let line = told.lines().find(|line| line.contains(wrong));
            assert_eq!(line, None, "{name} has said so");
        }
    }
    found
}

/// A database.
struct Held {
    name: &'static str,
    conn: Connection,
    log: Vec<Entry>,
    tables: Rows,
}

impl Held {
    fn of(place: &Place, name: &'static str) -> Self {
        let conn = reader(&place.database(name));
        let (log, tables) = (mirror::entries(&conn, 0).unwrap(), mirror::tables(&conn).unwrap());
        Self { name, conn, log, tables }
    }

    fn is_sound(&self) {
        let Self { name, conn, log, tables } = self;
        assert_eq!(lines(conn, "PRAGMA integrity_check"), ["ok"], "{name}");
        assert_eq!(lines(conn, "PRAGMA foreign_key_check"), [""; 0], "{name}");
        for empty in ["sync_outbox WHERE kind > 0", "sync_pending", "sync_quarantine", "sync_under"] {
            let exists = empty.split(' ').next().unwrap();
            let is_there = format!("SELECT 1 FROM sqlite_master WHERE name = '{exists}'");
            if !lines(conn, &is_there).is_empty() {
                let rows = lines(conn, &format!("SELECT * FROM {empty}"));
                assert_eq!(rows, [""; 0], "{name}: {exists} is empty");
            }
        }
        for (entry, seq) in log.iter().zip(1..) {
            assert_eq!(entry.seq, seq, "{name}: the log is contiguous");
        }
        let folded = mirror::fold(log);
        let differs =
            tables.keys().chain(folded.keys()).find(|record| tables.get(*record) != folded.get(*record));
        if let Some(record) = differs {
            let (is, due) = (tables.get(record), folded.get(record));
            panic!("{name}: {} {} is {is:?}, and by the log {due:?}", TABLES[record.0].name, record.1);
        }
        let balance = |row: &Row| row[2].int();
        let accounts: Vec<&Row> = tables.iter().filter(|(r, _)| r.0 == 0).map(|(_, row)| row).collect();
        assert_eq!(accounts.len(), 4, "{name}: accounts");
        assert_eq!(accounts.into_iter().map(balance).sum::<i64>(), TOTAL, "{name}: the bank's total");
    }

    fn equals(&self, other: &Self) {
        let whose = format!("{} and {}", self.name, other.name);
        let differs = |(a, b): &(&Entry, &Entry)| {
            a.digest != b.digest || a.conflicts != b.conflicts || a.letter != b.letter
        };
        let first = self.log.iter().zip(&other.log).find(differs);
        assert!(first.is_none(), "{whose}: the logs differ: {first:?}");
        assert_eq!(self.log.len(), other.log.len(), "{whose}: the logs' lengths");
        for table in TABLES {
            let columns = table.columns.iter().map(|c| format!("typeof({c}), quote({c})"));
            let columns = columns.collect::<Vec<_>>().join(", ");
            let sql = format!("SELECT {columns} FROM {} ORDER BY 2", table.name);
            let (here, there) = (lines(&self.conn, &sql), lines(&other.conn, &sql));
            let differs = here.iter().zip(&there).find(|(a, b)| a != b);
            assert_eq!(differs, None, "{whose}: {}", table.name);
            assert_eq!(here.len(), there.len(), "{whose}: rows of {}", table.name);
        }
    }

    /// The log is what the oracle says, and nothing else.
    fn compare(&self, oracles: &[&Oracle]) -> Found {
        let mut found = Found { entries: self.log.len(), ..Found::default() };
        let changes: Vec<&Entry> = self.log.iter().filter(|e| e.n.is_some() && e.record.is_some()).collect();
        let mut by_actor: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in &changes {
            found.conflicts += usize::from(!entry.conflicts.is_empty());
            found.refused += usize::from(entry.is_dead());
            match &entry.actor {
                Some(actor) => by_actor.entry(actor).or_default().push(entry),
                // What was there in the beginning.
                None => assert!(entry.seq < 10, "nobody has made {entry:?}"),
            }
        }
        let deeds: BTreeMap<&str, &(Deed, Fate)> =
            oracles.iter().flat_map(|o| &o.deeds).map(|(name, deed)| (name.as_str(), deed)).collect();
        for (actor, entries) in &by_actor {
            let fate = deeds.get(actor).map(|deed| deed.1);
            let never = fate.is_none_or(|fate| fate == Fate::GivenUp);
            assert!(!never, "{actor} was never committed, and the log has {entries:?}");
        }
        for (deed, fate) in deeds.values().copied() {
            let entries = by_actor.get(deed.name.as_str()).map_or(&[][..], Vec::as_slice);
            match fate {
                Fate::GivenUp => continue,
                Fate::InDoubt => {
                    found.in_doubt.0 += 1;
                    if entries.is_empty() {
                        continue;
                    }
                    found.in_doubt.1 += 1;
                }
                Fate::Committed => found.committed += 1,
            }
            is_whole(deed, entries);
        }
        self.accounts_are_what_was_transferred(deeds.values().map(|deed| &deed.0));
        found
    }

    /// Each transfer whose row is in the journal counts once, and no other does.
    fn accounts_are_what_was_transferred<'d>(&self, deeds: impl Iterator<Item = &'d Deed>) {
        let journal = Table::index(JOURNAL).unwrap();
        let mut balances: BTreeMap<&str, i64> = ["a0", "a1", "a2", "a3"].map(|id| (id, TOTAL / 4)).into();
        for deed in deeds {
            let Some((from, to, amount)) = &deed.transfer else { continue };
            if self.tables.contains_key(&(journal, deed.name.clone())) {
                *balances.get_mut(from.as_str()).unwrap() -= amount;
                *balances.get_mut(to.as_str()).unwrap() += amount;
            }
        }
        for (id, balance) in balances {
            let row = &self.tables[&(0, id.to_owned())];
            assert_eq!(row[2], Cell::Int(balance), "{}: what account {id} holds", self.name);
        }
    }
}

/// Each of a transaction's changes is in the log once, with its values, and stands, or is where what does not stand goes.
fn is_whole(deed: &Deed, entries: &[&Entry]) {
    let name = &deed.name;
    for wrote in &deed.wrote {
        let is_it = |entry: &&&Entry| {
            entry
                .record
                .as_ref()
                .is_some_and(|(table, id)| TABLES[*table].name == wrote.table && *id == wrote.record)
        };
        let found: Vec<&Entry> = entries.iter().filter(is_it).copied().collect();
        let [entry] = found[..] else {
            panic!("{name} wrote {wrote:?}, which the log has {} times, of {}", found.len(), entries.len());
        };
        let authored = &entry.authored;
        let is_kept = match &wrote.value {
            Value::Says(text) => {
                authored.row.as_ref().is_some_and(|row| row.contains(&Cell::Text(text.clone())))
            }
            Value::Gone => authored.row.is_none() && !authored.is_nothing,
            Value::Moved => authored.row.is_some(),
        };
        assert!(is_kept, "{name} wrote {wrote:?}, and the log has {entry:?}");
        let is_somewhere = entry.effect.is_some() || !entry.conflicts.is_empty() || entry.is_dead();
        // Deleting what is gone already comes to nothing.
        assert!(is_somewhere || wrote.value == Value::Gone, "{name}: {wrote:?} is nowhere: {entry:?}");
    }
    let dead: BTreeSet<bool> = entries.iter().map(|entry| entry.is_dead()).collect();
    let marks: BTreeSet<_> = entries.iter().map(|entry| &entry.mark).collect();
    assert!(dead.len() < 2 || marks.len() > 1 || marks.contains(&None), "{name} stands in part: {entries:?}");
}

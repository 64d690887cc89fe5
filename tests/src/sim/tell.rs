//! Telling: how all devices stand, and how rows differ, for who looks for a mistake.

use super::{
    Simulation, View,
    mirror::{Record, Rows, tables},
    workload::TABLES,
};

impl Simulation {
    /// Everything that is known of all devices, for who looks for a mistake.
    pub fn tell_all(&self) {
        for (d, view) in self.views.iter().enumerate() {
            println!("device {d}");
            if let Some(Ok(shown)) = self.devices[d].app.as_ref().map(tables) {
                println!("  shows {}", difference(&shown, &view.folded));
            }
            for entry in &view.log {
                let record = entry.record.as_ref().map(record_name);
                println!(
                    "  {} n {:?} {:?} {record:?} -> {:?} authored {:?} conflicts {:?} refused {:?}",
                    entry.seq,
                    entry.n,
                    entry.name,
                    entry.effect,
                    entry.authored,
                    entry.conflicts,
                    entry.refused
                );
            }
            for pending in &view.pending {
                println!("  pending {pending:?}");
            }
        }
        for (id, change) in self.oracle.changes.iter().enumerate() {
            println!(
                "change {id} {} {} before {:?}",
                change.name.0,
                record_name(&change.name.1),
                change.before
            );
        }
    }

    pub(super) fn how_all_stand(&self) -> String {
        let one = |(d, view): (usize, &View)| {
            let standing = self.devices[d].replica.as_ref().map(|replica| replica.standing());
            format!("device {d}: {standing:?}, {} entries, pending {:?}", view.log.len(), view.pending)
        };
        self.views.iter().enumerate().map(one).collect::<Vec<_>>().join("; ")
    }
}

pub(super) fn record_name(record: &Record) -> String {
    format!("{} {}", TABLES[record.0].name, record.1)
}

pub(super) fn difference(shown: &Rows, due: &Rows) -> String {
    let records = shown.keys().chain(due.keys().filter(|record| !shown.contains_key(*record)));
    records
        .filter(|record| shown.get(*record) != due.get(*record))
        .map(|r| format!("{} shows {:?} and is to be {:?}", record_name(r), shown.get(r), due.get(r)))
        .collect::<Vec<_>>()
        .join("; ")
}

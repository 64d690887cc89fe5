//! Verdicts: what a log comes to about conflicts and dead letters, told from its entries alone.
//!
//! A decision stands where what it decides about still waits, and where nobody whom its author had not seen has written the
//! same since; otherwise it has no effect, and what waited goes on waiting. What the database says of all conflicts and dead
//! letters is compared with what follows from that.

use std::collections::BTreeMap;

use super::{
    Broken, Done, Simulation,
    check::sql,
    mirror::{self, Entry},
    oracle::Oracle,
    tell::record_name,
    workload::TABLES,
};

/// A conflict record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Seq of the entry that lost, or won, something.
    pub seq: u64,
    /// The column, empty where it is about the record being there.
    pub field: String,
    /// Its id.
    pub id: String,
    /// The entry that decided.
    pub decided: Option<u64>,
    /// The entry that gave it up.
    pub superseded: Option<u64>,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Seq of the entry that was refused.
    pub seq: u64,
    /// Its id.
    pub id: String,
    /// The entry that decided.
    pub decided: Option<u64>,
}

/// What a person may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Of a conflict.
    Resolves,
    /// Of a dead letter.
    Retries,
    /// Of a dead letter.
    Discards,
}

/// What an entry decides, and the id of what it decides about.
pub fn decision(entry: &Entry) -> Option<(Verb, &str)> {
    let (word, id) = entry.decides.as_deref()?.split_once(' ')?;
    let verb = match word {
        "resolves" => Verb::Resolves,
        "retries" => Verb::Retries,
        _ => Verb::Discards,
    };
    Some((verb, id))
}

/// Whether a decision about a conflict ended it.
fn ended(entry: &Entry) -> bool {
    let did = !entry.has_outcome || entry.effect.is_some() || !entry.conflicts.is_empty();
    entry.refused.is_none() && did
}

/// All conflicts and dead letters of a log, in its order.
pub fn of(log: &[Entry]) -> (Vec<Verdict>, Vec<Letter>) {
    let (mut verdicts, mut letters): (Vec<Verdict>, Vec<Letter>) = (Vec::new(), Vec::new());
    // Of each verdict the record, if a person is to decide.
    let mut open = Vec::new();
    for entry in log {
        match decision(entry) {
            Some((Verb::Resolves, id)) if ended(entry) => {
                let waits = |v: &&mut Verdict| v.id == id && v.decided.is_none();
                verdicts.iter_mut().filter(waits).for_each(|v| v.decided = Some(entry.seq));
            }
            Some((Verb::Retries | Verb::Discards, id)) => {
                let waits = |l: &&mut Letter| l.id == id && l.decided.is_none();
                letters.iter_mut().filter(waits).for_each(|l| l.decided = Some(entry.seq));
            }
            _ => {}
        }
        if let Some(id) = &entry.letter {
            letters.push(Letter { seq: entry.seq, id: id.clone(), decided: None });
        }
        let before = verdicts.len();
        for lost in &entry.conflicts {
            let of = lost.open.then_some((&entry.record, &entry.device, lost.field.as_str()));
            // Who writes again has given up what waits of it.
            for (earlier, was) in verdicts[..before].iter_mut().zip(&open) {
                if of.is_some() && *was == of && earlier.decided.is_none() && earlier.superseded.is_none() {
                    earlier.superseded = Some(entry.seq);
                }
            }
            open.push(of);
            verdicts.push(Verdict {
                seq: entry.seq,
                field: lost.field.clone(),
                id: lost.id.clone(),
                decided: None,
                superseded: None,
            });
        }
    }
    (verdicts, letters)
}

/// How a decision about a conflict is counted that the log does not have.
const OF_NONE: &str = "decision: of no conflict here";

impl Oracle {
    /// Whether somebody whom the author of a change had not seen has written the field of its record, or the record.
    fn was_touched(
        &self,
        log: &[Entry],
        causes: &[Option<usize>],
        entry: &Entry,
        id: usize,
        field: &str,
    ) -> bool {
        let Some(record) = &entry.record else { return false };
        let column = TABLES[record.0].columns.iter().position(|column| *column == field);
        let touches = |e: &Entry| match (&e.effect, &e.wrote, column) {
            (None, ..) => false,
            (Some(Some(_)), Some(wrote), Some(column)) => wrote.contains(&column),
            _ => true,
        };
        log.iter().zip(causes).any(|(e, cause)| {
            e.record.as_ref() == Some(record)
                && touches(e)
                && cause.is_none_or(|cause| !self.had_seen(id, cause))
        })
    }
}

impl Simulation {
    /// What the leader made of a decision, or of what the database of who decided did along with one. Whether it is like any
    /// other change otherwise.
    pub(super) fn check_verdict(&mut self, of: usize, entry: &Entry, id: usize, here: &str) -> Done<bool> {
        let view = &self.views[of];
        let broken = |text: String| Err(Broken::new("decisions", format!("{here}, {text}: {entry:?}")));
        let Some((verb, about)) = decision(entry) else {
            // What a database did along with a decision stands behind it.
            let mut whole = view.log.iter().rev().take_while(|e| e.group == entry.group);
            let fell = whole
                .find(|e| e.decides.is_some())
                .is_some_and(|e| !e.authored.is_nothing && e.effect.is_none());
            return match &entry.effect {
                Some(_) if fell => broken("follows from a decision that has no effect".to_owned()),
                _ => Ok(!fell),
            };
        };
        let (verdicts, letters) = of_log(&view.log);
        let counted = match verb {
            Verb::Resolves => {
                let of_it = verdicts.iter().filter(|v| v.id == about);
                let waiting = of_it.clone().find(|v| v.decided.is_none());
                let touched = waiting
                    .is_some_and(|v| self.oracle.was_touched(&view.log, &view.causes, entry, id, &v.field));
                let is_due = waiting.is_some() && !touched;
                // To delete what is not there is nothing that could stand.
                let is_idle = entry.authored.row.is_none()
                    && !entry.authored.is_nothing
                    && entry.record.as_ref().is_some_and(|record| !view.folded.contains_key(record));
                let is_known = of_it.clone().next().is_some();
                let is_as_due = match entry.refused {
                    Some(_) => is_due,
                    None => is_idle || ended(entry) == is_due,
                };
                if is_known && !is_as_due {
                    return broken(format!("must {}end its conflict", if is_due { "" } else { "not " }));
                }
                match waiting {
                    _ if entry.refused.is_some() => "decision: refused",
                    Some(_) if ended(entry) => "decision: conflict decided",
                    Some(_) => "decision: presented again",
                    None if is_known => "decision: came second",
                    // The two met in another order: it is a change like others, and what was chosen is not lost.
                    None => OF_NONE,
                }
            }
            Verb::Retries | Verb::Discards => {
                let mut of_it = letters.iter().filter(|l| l.id == about);
                let is_due = of_it.clone().any(|l| l.decided.is_none());
                let is_anything =
                    entry.effect.is_some() || entry.letter.is_some() || !entry.conflicts.is_empty();
                if is_anything && (!is_due || verb == Verb::Discards) {
                    return broken("decides about a dead letter that does not wait".to_owned());
                }
                match (is_due, of_it.next()) {
                    (true, _) if verb == Verb::Retries => "decision: retried",
                    (true, _) => "decision: discarded",
                    (false, Some(_)) => "decision: came second",
                    (false, None) => "decision: of no dead letter here",
                }
            }
        };
        self.counters.count(counted);
        let ends = matches!(counted, "decision: conflict decided" | OF_NONE);
        if ends && entry.conflicts.is_empty() {
            self.check_taken(of, entry, here)?;
        }
        let takes_effect = ends || counted == "decision: retried";
        Ok(takes_effect && !entry.authored.is_nothing)
    }

    /// Behind a decision that stands, the record is as it says.
    fn check_taken(&self, of: usize, entry: &Entry, here: &str) -> Done {
        let Some(record) = entry.record.as_ref().filter(|_| !entry.authored.is_nothing) else {
            return Ok(());
        };
        let table = &TABLES[record.0];
        let before = self.views[of].folded.get(record);
        let stands = entry.effect.as_ref().map_or(before, Option::as_ref);
        let is_taken = match (&entry.authored.row, stands) {
            (None, stands) => stands.is_none(),
            (Some(row), Some(stands)) => (0..row.len()).all(|column| {
                table.is_reduced(column)
                    || entry.authored.fields.as_ref().is_some_and(|fields| !fields.contains(&column))
                    || row[column] == stands[column]
            }),
            _ => false,
        };
        if is_taken {
            return Ok(());
        }
        let text = format!("{here}, of {}, stands and is not taken: {entry:?}", record_name(record));
        Err(Broken::new("decisions", text))
    }

    /// What the database says of conflicts and dead letters is what its log comes to.
    pub(super) fn check_verdicts(&self, of: usize) -> Done {
        let Some(app) = &self.devices[of].app else { return Ok(()) };
        let said = mirror::verdicts(app).map_err(sql(of))?;
        let due = of_log(&self.views[of].log);
        if said == due {
            return self.check_scopes(of, &due.1);
        }
        let text = format!("device {of} says {said:?}, and by its log it is {due:?}");
        Err(Broken::new("decisions", text))
    }

    /// Of what was pushed as one atomic scope, or is tried again as one, all is refused or nothing, and no half of it came too
    /// late.
    fn check_scopes(&self, of: usize, letters: &[Letter]) -> Done {
        let mut scopes: BTreeMap<(u64, &str), Vec<&Entry>> = BTreeMap::new();
        for entry in &self.views[of].log {
            if let Some(mark) = &entry.mark
                && (entry.decides.is_some() || !is_leaders_own(entry))
            {
                scopes.entry((entry.group, mark)).or_default().push(entry);
            }
        }
        for scope in scopes.values() {
            let came_late = |entry: &&&Entry| {
                let ended = letters.iter().any(|letter| letter.decided == Some(entry.seq));
                entry.decides.is_some() && !ended
            };
            let (late, dead) =
                (scope.iter().filter(came_late).count(), scope.iter().filter(|e| e.is_dead()).count());
            if late + dead != 0 && late + dead != scope.len() {
                let text =
                    format!("on device {of}, of an atomic scope some stands and some does not: {scope:?}");
                return Err(Broken::new("atomic", text));
            }
        }
        Ok(())
    }
}

/// Whether who appended an entry had sealed it: then it went past what refuses changes of others.
fn is_leaders_own(entry: &Entry) -> bool {
    entry.device.as_deref().is_some_and(|device| entry.term.split('/').nth(1) == Some(device))
}

use self::of as of_log;

//! A person decides: about a conflict that a device shows, or a dead letter, at any time and on any device, offline too, and
//! cut off in the middle of it now and then.
//!
//! A decision has no actor by which the oracle could know it. Its group's tag, which is random and stays with it, names it.

use std::rc::Rc;

use tidelog::{
    Choice, Conflict, DeadLetter, Error, Row,
    conflict::ConflictState,
    dead_letter::DeadLetterState,
    id::Seq,
    testing::replica::{Replica, crash_after},
    value::Value,
};

use super::{
    Broken, Done, Simulation,
    check::sql,
    failed,
    mirror::{Cell, Entry, Pending, Record, Rows},
    oracle::{Change, Set},
    workload::{TABLES, Table},
};
use crate::dice::Dice;

/// What is asked of a device.
#[derive(Clone, Debug)]
enum Asked {
    Resolve(Conflict, Choice),
    /// With some of its values changed.
    Retry(DeadLetter, Row),
    Discard(DeadLetter),
}

/// A decision that was asked for, until the device was looked at.
#[derive(Debug)]
pub(super) struct Deciding {
    of: usize,
    /// What the changes say, and of which record, in order: of a dead letter, those of all that stand or fall with it.
    due: Vec<(String, Record)>,
    /// What the record must show then: a column's value, or by `None` that it is gone.
    shows: Option<Option<(usize, Cell)>>,
    before: Rows,
    after: Rows,
    seen: Rc<Set>,
    is_found: bool,
}

impl Asked {
    /// Chooses among what the device shows; mostly what came last, so that several decide about the same.
    fn choose(replica: &Replica, dice: &mut Dice, value: &str) -> Result<Option<Self>, Error> {
        let waits = |l: &DeadLetter| l.state == DeadLetterState::Open && !l.being_decided;
        let letters = replica.dead_letters()?.into_iter().filter(waits).collect();
        if dice.roll(2) == 0
            && let Some(letter) = pick(letters, dice)
        {
            let mut edited = Row::default();
            return Ok(Some(match dice.roll(5) {
                0 | 1 => Self::Retry(letter, edited),
                2 => {
                    edit(&mut edited, &letter.model, dice, value);
                    Self::Retry(letter, edited)
                }
                _ => Self::Discard(letter),
            }));
        }
        let mut conflicts = replica.conflicts()?;
        if conflicts.is_empty() || dice.roll(4) == 0 {
            // What the policy decided can be decided otherwise.
            conflicts = replica.conflicts_since(Seq(0))?;
        }
        let waits =
            |c: &Conflict| matches!(c.state, ConflictState::Auto | ConflictState::Open) && !c.being_decided;
        conflicts.retain(waits);
        let Some(conflict) = pick(conflicts, dice) else { return Ok(None) };
        let choice = match dice.roll(5) {
            0 | 1 => Choice::Local,
            2 | 3 => Choice::Remote,
            _ => {
                let mut row = conflict.remote.row.clone().filter(|_| dice.roll(2) == 0).unwrap_or_default();
                edit(&mut row, &conflict.model, dice, value);
                Choice::Merged(row)
            }
        };
        Ok(Some(Self::Resolve(conflict, choice)))
    }

    fn ask(&self, replica: &mut Replica) -> Result<(), Error> {
        match self {
            Self::Resolve(conflict, choice) => replica.resolve(conflict.id, choice),
            Self::Retry(letter, edited) => replica.retry(letter.id, edited),
            Self::Discard(letter) => replica.discard(letter.id),
        }
    }

    /// See [`Deciding::due`].
    fn due(&self, replica: &Replica) -> Result<Vec<(String, Record)>, Error> {
        let (verb, letter) = match self {
            Self::Resolve(conflict, _) => {
                let record = record_of(&conflict.model, &conflict.record);
                return Ok(vec![(format!("resolves {}", conflict.id), record)]);
            }
            Self::Retry(letter, _) => ("retries", letter),
            Self::Discard(letter) => ("discards", letter),
        };
        let letters = replica.dead_letters()?.into_iter();
        let with_it = letters
            .filter(|l| l.seq == letter.seq || l.together.contains(&letter.id) && l.state == letter.state);
        Ok(with_it.map(|l| (format!("{verb} {}", l.id), record_of(&l.model, &l.record))).collect())
    }

    /// See [`Deciding::shows`].
    fn shows(&self) -> Option<Option<(usize, Cell)>> {
        let Self::Resolve(conflict, choice) = self else { return None };
        let columns = TABLES[record_of(&conflict.model, &conflict.record).0].columns;
        let cell = |row: &Row, field: &str| {
            let column = columns.iter().position(|column| *column == field)?;
            row.get(field).map(|value| Some((column, cell_of(value))))
        };
        let version = match choice {
            Choice::Local => &conflict.local,
            Choice::Remote => &conflict.remote,
            Choice::Merged(row) => return row.iter().next().and_then(|(field, _)| cell(row, field)),
        };
        match &version.row {
            None => Some(None),
            // Of one that is gone here, it leaves things as they are.
            Some(_) if *choice == Choice::Local => None,
            Some(row) => cell(row, conflict.field.as_deref().unwrap_or("id")),
        }
    }
}

fn record_of(model: &str, record: &str) -> Record {
    (Table::index(model).unwrap_or(usize::MAX), record.to_owned())
}

fn cell_of(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::Integer(number) => Cell::Int(*number),
        Value::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        other => Cell::Text(format!("unexpected {other:?}")),
    }
}

fn pick<T>(mut from: Vec<T>, dice: &mut Dice) -> Option<T> {
    let back = if dice.roll(3) == 0 { dice.roll(from.len() as u64 + 1) as usize } else { 0 };
    let at = from.len().checked_sub(1 + back)?;
    Some(from.swap_remove(at))
}

/// Sets one of the columns that are only text.
fn edit(row: &mut Row, model: &str, dice: &mut Dice, value: &str) {
    const TEXTS: [&str; 8] = ["holder", "name", "note", "title", "body", "place", "x", "y"];
    let Some(table) = Table::index(model) else { return };
    let texts: Vec<_> = TABLES[table].columns.iter().filter(|column| TEXTS.contains(column)).collect();
    let column = texts[dice.roll(texts.len() as u64) as usize];
    row.set(column, Value::Text(value.into()));
}

impl Simulation {
    /// A person decides something on a device, if there is anything to decide there.
    pub(super) fn decide(&mut self, of: usize, choice: u64) -> Done {
        self.wake(of)?;
        let leads = |replica: &mut Replica| Ok(replica.standing()?.leads());
        if self.step(of, leads)? == Some(true) {
            // A leader refuses what others own when it seals.
            self.step(of, Replica::seal)?;
        }
        self.observe(of)?;
        let mut dice = Dice(choice);
        self.transactions += 1;
        let value = format!("p{}", self.transactions);
        let Some(replica) = &self.devices[of].replica else { return Ok(()) };
        let asked = Asked::choose(replica, &mut dice, &value).map_err(|e| failed(of, "listing", &e))?;
        let Some(asked) = asked else { return Ok(()) };
        let due = asked.due(replica).map_err(|e| failed(of, "listing", &e))?;
        if self.is_loud {
            println!("     on {of}: {asked:?}");
        }
        let before = self.devices[of].tables().map_err(sql(of))?;
        let seen = Rc::new(self.seen_on(of));
        // There are fewer dead letters than conflicts, and each way to decide is to be cut off often enough.
        let (share, places) = if let Asked::Resolve(..) = asked { (8, 3) } else { (3, 2) };
        if dice.roll(share) == 0 {
            crash_after(Some(dice.roll(places) as u32));
        }
        let asks = |replica: &mut Replica| match asked.ask(replica) {
            Err(Error::NotDecided { .. }) => Ok(false),
            asked => asked.map(|()| true),
        };
        let done = self.step(of, asks);
        crash_after(None);
        let done = done?;
        let after = self.devices[of].tables().map_err(sql(of))?;
        let has_changed = before != after;
        let is_of_several = due.len() > 1;
        self.deciding =
            Some(Deciding { of, due, shows: asked.shows(), before, after, seen, is_found: false });
        self.wake(of)?;
        self.observe(of)?;
        let is_found = self.deciding.take().is_some_and(|deciding| deciding.is_found);
        match done {
            Some(true) if is_of_several => self.counters.count("decision: made of a scope"),
            Some(true) => self.counters.count("decision: made"),
            Some(false) => self.counters.count("decision: not taken here"),
            None => {}
        }
        if done.is_some_and(|done| done != is_found) || has_changed && !is_found {
            let text = format!("device {of} says {done:?} of {asked:?}, and sealed it: {is_found}");
            return Err(Broken::new("decisions", text));
        }
        if done.is_none() && dice.roll(3) == 0 {
            return self.lose_power(of, dice.roll(1 << 40));
        }
        Ok(())
    }

    /// Finds what a device has made of the decision that it was asked for.
    pub(super) fn take_decided(&mut self, of: usize, pending: &[Pending], entries: &[Entry]) -> Done {
        let Some(deciding) = self.deciding.as_mut().filter(|d| d.of == of && !d.is_found) else {
            return Ok(());
        };
        let pending =
            pending.iter().map(|p| (p.name.as_ref(), &p.record, &p.authored, p.decides.as_ref(), false));
        let entries = entries.iter().filter(|e| e.n.is_some()).filter_map(|e| {
            Some((e.name.as_ref(), e.record.as_ref()?, &e.authored, e.decides.as_ref(), e.is_dead()))
        });
        let is_new =
            |(actor, record): (Option<&String>, &Record)| self.oracle.find(actor, Some(record)).is_none();
        let made: Vec<_> = pending.chain(entries).filter(|(a, r, ..)| is_new((*a, *r))).collect();
        let Some((Some(first), .., is_dead)) = made.first() else { return Ok(()) };
        let broken = |text: &str| Err(Broken::new("decisions", format!("device {of}, {text}: {made:?}")));
        // All of a group, which they are named by.
        let tag = |name: &str| name.split(" retries ").next().map(str::to_owned);
        if made.iter().any(|(a, ..)| a.and_then(|a| tag(a)) != tag(first)) {
            return broken("sealed more than it was asked for");
        }
        let decided = made.iter().filter_map(|(_, record, _, decides, _)| Some(((*decides)?, *record)));
        if made[0].3.is_none() || !decided.eq(deciding.due.iter().map(|(decides, record)| (decides, record)))
        {
            return broken("sealed something else than it was asked for");
        }
        let mut rows = deciding.before.clone();
        let by = (of, self.oracle.authors[of].memory);
        let mut changes = Vec::new();
        for (actor, record, authored, ..) in &made {
            let before = rows.get(*record).cloned();
            match &authored.row {
                Some(row) => drop(rows.insert((*record).clone(), row.clone())),
                None if authored.is_nothing => {}
                None => drop(rows.remove(*record)),
            }
            changes.extend(actor.map(|actor| Change {
                name: (actor.clone(), (*record).clone()),
                author: by,
                authored: (*authored).clone(),
                before,
                seen: Rc::clone(&deciding.seen),
            }));
        }
        if !is_dead {
            if rows != deciding.after {
                return broken("shows something else than it sealed");
            }
            let row = deciding.due.first().and_then(|(_, record)| deciding.after.get(record));
            let is_shown = match &deciding.shows {
                None => true,
                Some(None) => row.is_none(),
                Some(Some((column, cell))) => row.is_some_and(|row| row[*column] == *cell),
            };
            if !is_shown {
                return broken("does not show what was chosen");
            }
        }
        deciding.is_found = true;
        for change in changes {
            self.oracle.register(change);
        }
        Ok(())
    }

    /// What a person has added to accounts by decisions, as a device shows it: of a transfer that was refused
    /// each half is a dead letter, and what is decided of one is decided of both, but one may be changed on the way.
    pub(super) fn decided_sums(&self, of: usize) -> i64 {
        let view = &self.views[of];
        let logged = view
            .log
            .iter()
            .zip(&view.causes)
            .filter(|(e, _)| e.n.is_some() && e.decides.is_some() && e.effect.is_some());
        let logged = logged.filter_map(|(_, cause)| *cause);
        let pending = view.pending.iter().filter(|p| p.decides.is_some());
        let pending = pending.filter_map(|p| self.oracle.find(p.name.as_ref(), Some(&p.record)));
        logged.chain(pending).map(|id| self.oracle.added(id)).sum()
    }
}

//! What a person says of a dead letter. Changes of one atomic scope were refused together, and what is said of one of them is
//! said of all that wait: they are tried again in one transaction, as one atomic scope, of which the leader takes all or
//! none once more, or given up together. Where the database here does not take one of them, nothing is done.
//!
//! They are tried in the order of the log, one at a time, so that memory does not grow with the scope. Only where one meets a
//! unique value that another of them is about to give up, all are held, and their rows step out first ([`exchange`]).

use uuid::Uuid;

use super::{
    CHANGE_FIRST, MOVE_FIRST, Written, change_to, decides_only, merged, model_of, not_decided, not_taken,
    write,
};
use crate::{
    accept::Wrote,
    apply::Writers,
    dead_letter::{self, DeadLetter, DeadLetterState, Found, Scope},
    entry::{Change, Decision, EntryKind},
    error::Error,
    exchange::{self, SteppedOut},
    id::{OriginSeq, Seq},
    resolve,
    row::Row,
    seal::{self, Made},
    store::{Mode, Model, Tx},
    tree::Moves,
    value::Value,
};

/// Tries a dead letter once more, with these of its values changed, and all that stands or falls with it.
pub(crate) fn retry(tx: &mut Tx<'_>, id: Uuid, edited: &Row) -> Result<(), Error> {
    let mut letters = Letters::with(tx, id)?;
    tx.conn.execute_batch("PRAGMA defer_foreign_keys = ON; SAVEPOINT retried")?;
    let minted = *tx.minted;
    let mut tried = retry_in_order(tx, &mut letters, edited);
    if letters.scope.is_some() && tried.as_ref().is_err_and(exchange::is_taken) {
        tx.conn.execute_batch("ROLLBACK TO retried")?;
        tx.numbers.forget();
        *tx.minted = minted;
        tried = retry_exchanged(tx, &mut letters, edited);
    }
    tried.map_err(|error| letters.say(error))?;
    Ok(tx.conn.execute_batch("RELEASE retried")?)
}

/// Gives a dead letter up, and all that stands or falls with it. Their values stay in the log.
pub(crate) fn discard(tx: &mut Tx<'_>, id: Uuid) -> Result<(), Error> {
    let mut letters = Letters::with(tx, id)?;
    let at = tx.world.now();
    let mut made = Made::begin(tx)?;
    while let Some(Found { letter, change, .. }) = letters.next(tx).map_err(|error| letters.say(error))? {
        made.put(tx, decides_only(&change, Decision::Discards(letter.id.0), at))?;
    }
    made.finish(tx)
}

fn retry_in_order(tx: &mut Tx<'_>, letters: &mut Letters, edited: &Row) -> Result<(), Error> {
    let mut retried =
        Retried { made: Made::begin(tx)?, writers: Writers::default(), checks: Checks::default() };
    while let Some(found) = letters.next(tx)? {
        let change = letters.again(tx, &found, edited)?;
        retried.put(tx, letters, &found.letter, change)?;
    }
    retried.checks.check(tx, letters)?;
    retried.made.finish(tx)
}

/// The same with the rows out of their tables before they are written.
fn retry_exchanged(tx: &mut Tx<'_>, letters: &mut Letters, edited: &Row) -> Result<(), Error> {
    letters.after = Seq(0);
    let mut all = Vec::new();
    while let Some(found) = letters.next(tx)? {
        let change = letters.again(tx, &found, edited)?;
        all.push((found.letter, change));
    }
    let writes = all.iter().filter(|(_, change)| change.kind != EntryKind::Noop);
    let out = SteppedOut::of_changes(tx, writes.map(|(letter, change)| (number(letter.seq), change)))?;
    let mut retried =
        Retried { made: Made::begin(tx)?, writers: Writers::default(), checks: Checks::default() };
    for (letter, change) in all {
        letters.at = (letter.id.0, letter.model.clone(), letter.record.clone());
        out.enforce(tx, number(letter.seq))?;
        retried.put(tx, letters, &letter, change)?;
    }
    out.put_back(tx, &retried.checks.wrote.iter().map(|wrote| wrote.n).collect())?;
    tx.set_mode(Mode::Capture)?;
    retried.checks.check(tx, letters)?;
    retried.made.finish(tx)
}

/// What is asked about a dead letter's change goes by the letter's place in the log.
fn number(seq: Seq) -> OriginSeq {
    OriginSeq(seq.0)
}

/// The dead letters that are decided about together, one after the other.
struct Letters {
    /// The one that was named.
    named: Uuid,
    /// That one, where it stands for itself.
    alone: Option<Found>,
    scope: Option<Scope>,
    after: Seq,
    /// The one that is being decided about: id, model, record.
    at: (Uuid, String, String),
}

impl Letters {
    /// Those that wait with this one.
    fn with(tx: &mut Tx<'_>, id: Uuid) -> Result<Self, Error> {
        let what = || format!("dead letter {id}");
        seal::seal_all(tx)?;
        let mut found = dead_letter::by_id(tx.conn, id)?
            .ok_or_else(|| not_decided(what(), "this device knows no such dead letter", "List them again"))?;
        if !waits(&found.letter) {
            return Err(not_decided(what(), DECIDED, "List the dead letters again"));
        }
        let (scope, at) = (found.scope.take(), (id, String::new(), String::new()));
        let alone = scope.is_none().then_some(found);
        Ok(Self { named: id, alone, scope, after: Seq(0), at })
    }

    fn next(&mut self, tx: &Tx<'_>) -> Result<Option<Found>, Error> {
        let found = match &self.scope {
            Some(scope) => scope.next(tx.conn, self.after)?,
            None => self.alone.take(),
        };
        let Some(found) = found else { return Ok(None) };
        let letter = &found.letter;
        (self.after, self.at) = (letter.seq, (letter.id.0, letter.model.clone(), letter.record.clone()));
        if !waits(letter) {
            return Err(not_decided(String::new(), DECIDED, "List the dead letters again"));
        }
        Ok(Some(found))
    }

    /// The change that tries one of them once more, over the record as it is now.
    fn again(&self, tx: &Tx<'_>, found: &Found, edited: &Row) -> Result<Change, Error> {
        let id = found.letter.id.0;
        let model = model_of(tx, &found.change, "")?;
        let refused = meant(tx, found)?;
        let current = model.row(tx.conn, &refused.key_in(&model.shape))?;
        let target = match refused.kind {
            EntryKind::Delete => None,
            EntryKind::Upsert => {
                let Change { shape, row, fields, .. } = &refused;
                // Of an update, what it changed; the rest of the record has gone on.
                let mut values = Row::in_shape(shape, row, fields.as_deref().filter(|_| current.is_some()));
                if let Some(current) = &current {
                    reduce_into(&mut values, model, &refused, current);
                }
                let edited = edited.iter().filter(|_| id == self.named);
                edited.for_each(|(name, value)| values.set(name, value.clone()));
                merged(model, &refused.record, current.as_deref(), &values)
                    .map_err(|(reason, remedy)| not_decided(String::new(), &reason, &remedy))?
            }
            _ => current.clone(),
        };
        let change = change_to(model, &refused, current, target, Decision::Retries(id), tx.world.now());
        Ok(Change { mark: self.scope.as_ref().map(|scope| scope.mark.clone()), ..change })
    }

    /// An error, as one about what was named: of which of them it is, and why.
    fn say(&self, error: Error) -> Error {
        let what = format!("dead letter {}", self.named);
        let (at, model, record) = &self.at;
        match not_taken(&what, error) {
            Error::NotDecided { what, reason, remedy } if *at != self.named => {
                let reason = format!(
                    "of dead letter {at} of {model} {record}, which stands or falls with it: {reason}"
                );
                Error::NotDecided { what, reason, remedy }
            }
            said => said,
        }
    }
}

const DECIDED: &str = "it is decided already";

fn waits(letter: &DeadLetter) -> bool {
    letter.state == DeadLetterState::Open && !letter.being_decided
}

/// What a dead letter is to do. Of one that was tried before when there was nothing to do for it, and was refused with others, that
/// is what it was to do then.
fn meant(tx: &Tx<'_>, found: &Found) -> Result<Change, Error> {
    let (mut change, mut seq) = (found.change.clone(), found.letter.seq);
    while change.kind == EntryKind::Noop
        && let Some(Decision::Retries(earlier)) = change.decides
        && let Some(found) = dead_letter::by_id(tx.conn, earlier)?.filter(|found| found.letter.seq < seq)
    {
        (change, seq) = (found.change, found.letter.seq);
    }
    Ok(change)
}

/// Of an update's values those that have a reducer, as it would have come to them had it been taken: what it added is
/// added to what is there by now.
fn reduce_into(values: &mut Row, model: &Model, change: &Change, current: &[Value]) {
    let Some(before) = change.before.as_ref().filter(|_| change.existed) else { return };
    for (field, now) in model.descriptor.fields.iter().zip(current) {
        let base = change.shape.fields.iter().position(|f| *f == field.name).map(|i| &before[i]);
        if let (Some(reducer), Some(brought)) = (field.reducer, values.get(&field.name))
            && let Some(reduced) = resolve::reduce(reducer, base, now, brought)
        {
            values.set(&field.name, reduced);
        }
    }
}

/// What is tried again, as it is written and sealed.
struct Retried<'c> {
    made: Made<'c>,
    writers: Writers<'c>,
    checks: Checks,
}

impl<'c> Retried<'c> {
    fn put(
        &mut self,
        tx: &Tx<'c>,
        letters: &Letters,
        letter: &DeadLetter,
        change: Change,
    ) -> Result<(), Error> {
        let Written { before, derived } = write(tx, &mut self.writers, &change)?;
        self.checks.note(tx, number(letter.seq), &change, before.as_ref(), &derived)?;
        for change in std::iter::once(change).chain(derived) {
            // A leader that may not write a record has it refused at once: of a scope that would be half of it.
            if let Some(reason) = self.made.put(tx, change)?
                && letters.scope.is_some()
            {
                return Err(not_decided(
                    String::new(),
                    &reason,
                    "Decide where it may be written, or give it up",
                ));
            }
        }
        Ok(())
    }
}

/// What is asked once all is written: rows may refer to each other, and pass through what may not stay.
#[derive(Default)]
struct Checks {
    wrote: Vec<Wrote>,
    moves: Moves,
}

impl Checks {
    fn note(
        &mut self,
        tx: &Tx<'_>,
        n: OriginSeq,
        change: &Change,
        before: Option<&Value>,
        derived: &[Change],
    ) -> Result<(), Error> {
        if change.kind == EntryKind::Noop {
            return Ok(());
        }
        self.moves.note(tx, n, change, before, derived)?;
        for change in std::iter::once(change).chain(derived) {
            let model = tx.models.iter().position(|m| m.descriptor.id == change.shape.model);
            self.wrote.extend(model.map(|model| Wrote::of(tx, n, model, change)));
        }
        Ok(())
    }

    fn check(&self, tx: &Tx<'_>, letters: &mut Letters) -> Result<(), Error> {
        let moved = self.moves.found_unsound(tx)?.into_iter().min_by_key(|(n, _)| *n);
        let found = match moved {
            Some((n, reason)) => Some((n, reason, MOVE_FIRST)),
            None => self.left_unsound(tx)?,
        };
        let Some((n, reason, remedy)) = found else { return Ok(()) };
        if let Some(Found { letter, .. }) = dead_letter::at(tx.conn, Seq(n.0))? {
            letters.at = (letter.id.0, letter.model, letter.record);
        }
        Err(not_decided(String::new(), &reason, remedy))
    }

    fn left_unsound(&self, tx: &Tx<'_>) -> Result<Option<(OriginSeq, String, &'static str)>, Error> {
        for wrote in &self.wrote {
            if let Some(reason) = wrote.left_unsound(tx)? {
                return Ok(Some((wrote.n, reason, CHANGE_FIRST)));
            }
        }
        Ok(None)
    }
}

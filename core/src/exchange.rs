//! Exchange: rows of one pushed group, or of one atomic scope that a person tries again, that are in each other's way.
//!
//! A transaction may let two records exchange a unique value, or pass values on along a row of records. Its author's database saw
//! that step by step; the log has of each record what it came to. Written one after the other, the first would be refused for a
//! value that the next is about to give up. So where a group was refused for such a value, its rows step out together before they are
//! written.

use std::collections::HashSet;

use rusqlite::ffi;

use crate::{
    apply::{LocalValues, put_back, step_out},
    entry::{Body, Change, EntryKind, Group},
    error::Error,
    id::OriginSeq,
    pushed::Pushed,
    store::{Mode, Tx},
};

/// Rows that are out of their tables.
pub(crate) struct SteppedOut {
    /// The changes that are to write them.
    changes: HashSet<OriginSeq>,
    kept: LocalValues,
}

impl SteppedOut {
    /// Takes those rows of a group out of their tables that these `changes` of it write.
    pub(crate) fn of(
        tx: &Tx<'_>,
        pushed: &Pushed<'_>,
        group: &Group,
        changes: &HashSet<OriginSeq>,
    ) -> Result<Self, Error> {
        Self::taken(tx, |out| {
            pushed.each(tx, group, |n, body| match body {
                Body::Change(change) if changes.contains(&n) => out.take(tx, n, change),
                _ => Ok(()),
            })
        })
    }

    /// Takes the rows out of their tables that these changes, which have numbers of the caller's, write.
    pub(crate) fn of_changes<'a>(
        tx: &Tx<'_>,
        changes: impl IntoIterator<Item = (OriginSeq, &'a Change)>,
    ) -> Result<Self, Error> {
        Self::taken(tx, |out| changes.into_iter().try_for_each(|(n, change)| out.take(tx, n, change)))
    }

    fn taken(tx: &Tx<'_>, take: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<Self, Error> {
        let mut out = Self { changes: HashSet::new(), kept: LocalValues::new() };
        // Nothing follows from it: the rows come back within the same transaction.
        tx.set_mode(Mode::Off)?;
        tx.enforce(false)?;
        let taken = take(&mut out);
        tx.enforce(true)?;
        taken.map(|()| out)
    }

    fn take(&mut self, tx: &Tx<'_>, n: OriginSeq, change: &Change) -> Result<(), Error> {
        if can_step_out(tx, change) {
            step_out(tx, change, &mut self.kept)?;
            self.changes.insert(n);
        }
        Ok(())
    }

    /// Has the database look at the foreign keys of what is written from here on for this change, or not, where its row is out: the
    /// rows that refer to it were not counted when it went, and are not when it comes back. What all of it came to is looked at when
    /// it is there.
    pub(crate) fn enforce(&self, tx: &Tx<'_>, n: OriginSeq) -> Result<(), Error> {
        tx.enforce(!self.changes.contains(&n))
    }

    /// Gives the rows, which these changes have `written` again, back what is local of them.
    pub(crate) fn put_back(self, tx: &Tx<'_>, written: &HashSet<OriginSeq>) -> Result<(), Error> {
        // What a change comes to follows from the log, so it is what it was when it was found to write.
        if let Some(n) = self.changes.difference(written).next() {
            return Err(Error::Damaged(format!(
                "the row of change {n} left its table and did not come back"
            )));
        }
        tx.enforce(true)?;
        tx.set_mode(Mode::Off)?;
        put_back(tx, self.kept)
    }
}

/// Whether the row can leave its table without anything following from it: nothing does then along with its deletion, and along with a
/// change of what others refer to.
fn can_step_out(tx: &Tx<'_>, change: &Change) -> bool {
    let Some(model) = tx.models.iter().find(|m| m.descriptor.id == change.shape.model) else { return false };
    if !model.references.cascade() {
        return true;
    }
    let is_written = |column: &str| {
        let named = |i: usize| change.shape.fields.get(i).is_some_and(|f| f.eq_ignore_ascii_case(column));
        change.fields.as_ref().is_none_or(|fields| fields.iter().any(|&f| named(usize::from(f))))
    };
    change.kind == EntryKind::Upsert && !model.references.are_beside_key(is_written)
}

/// Whether the database refused a row for a value that another has.
pub(crate) fn is_taken(error: &Error) -> bool {
    let Error::Database { source: rusqlite::Error::SqliteFailure(failure, _), .. } = error else {
        return false;
    };
    matches!(failure.extended_code, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY)
}

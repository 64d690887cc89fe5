//! Attempts: one change on which the leader fails never blocks those behind it.
//!
//! Before a leader takes a push apart it notes that it tries; sequencing it removes the note. A note that is still there when
//! the next push comes was left by a failure or a crash: then half as many groups are tried at once, until the one that it
//! fails on is alone, and after [`ATTEMPTS_MAX`] failures on it alone its changes are refused without a look at them.
//! What the machine is to blame for, a full disk say, counts against nobody.

use rusqlite::{ErrorCode, OptionalExtension, params};

use crate::{
    entry::Batch,
    error::Error,
    id::{DeviceId, Position, Seq},
    store::Tx,
};

/// Failures on one group alone after which it is refused.
const ATTEMPTS_MAX: u32 = 3;

/// How a push is to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// So many of its groups at once.
    pub(crate) groups: usize,
    /// Without a look at what they hold.
    pub(crate) refuses: bool,
}

impl Attempt {
    /// Everything at once.
    pub(crate) const ALL: Self = Self { groups: usize::MAX, refuses: false };
}

/// Notes that a push of so many groups is tried. Its own transaction: it outlives what it announces.
pub(crate) fn begin(tx: &Tx<'_>, pusher: DeviceId, groups: usize) -> Result<Attempt, Error> {
    let device = pusher.to_string();
    let left: Option<(usize, u32)> = tx
        .conn
        .prepare_cached("SELECT groups, attempts FROM sync_attempt WHERE device = ?1")?
        .query_row([&device], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (attempt, failures) = next(left, groups);
    tx.conn
        .prepare_cached("INSERT OR REPLACE INTO sync_attempt (device, groups, attempts) VALUES (?1, ?2, ?3)")?
        .execute(params![device, attempt.groups, failures])?;
    Ok(attempt)
}

/// What to try after a failure on `left` (groups, times), of `groups` that are there; and which time that is.
fn next(left: Option<(usize, u32)>, groups: usize) -> (Attempt, u32) {
    let all_of = |groups| Attempt { groups, refuses: false };
    match left {
        None => (all_of(groups), 1),
        Some((failed, _)) if failed > 1 => (all_of((failed / 2).min(groups)), 1),
        Some((_, times)) if times < ATTEMPTS_MAX => (all_of(1), times + 1),
        Some((_, times)) => (Attempt { groups: 1, refuses: true }, times),
    }
}

/// The push was sequenced, or what kept it from that is not its own fault.
pub(crate) fn done(tx: &Tx<'_>, pusher: DeviceId) -> Result<(), Error> {
    tx.conn.prepare_cached("DELETE FROM sync_attempt WHERE device = ?1")?.execute([pusher.to_string()])?;
    Ok(())
}

/// Why changes are refused without a look at them.
pub(crate) fn reason() -> String {
    format!("the leader failed on it {ATTEMPTS_MAX} times")
}

/// Whether an error says nothing of what was pushed.
pub(crate) fn is_the_machines_fault(error: &Error) -> bool {
    use ErrorCode as E;
    match error {
        Error::Database { source, .. } => matches!(
            source.sqlite_error_code(),
            Some(
                E::DiskFull
                    | E::SystemIoFailure
                    | E::DatabaseBusy
                    | E::DatabaseLocked
                    | E::OutOfMemory
                    | E::CannotOpen
                    | E::ReadOnly
                    | E::PermissionDenied
                    | E::OperationInterrupted
                    | E::DatabaseCorrupt
                    | E::NotADatabase
            )
        ),
        Error::File { .. } | Error::Stopped { .. } => true,
        _ => false,
    }
}

/// Cuts a push behind its first groups; the rest is `None` where there is none.
pub(crate) fn split(mut batch: Batch, groups: usize) -> (Batch, Option<Batch>) {
    if groups >= batch.groups.len() {
        return (batch, None);
    }
    let rest = batch.groups.split_off(groups);
    let last = batch.groups.last().map_or(Seq(0), |group| group.last);
    let at = batch.entries.partition_point(|entry| entry.seq <= last);
    let entries = batch.entries.split_off(at);
    let after = Position { seq: last, ..batch.after };
    (batch, Some(Batch { after, entries, groups: rest }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_halved_and_then_counted_until_it_is_refused() {
        let all_of = |groups| Attempt { groups, refuses: false };
        assert_eq!(next(None, 9), (all_of(9), 1));
        assert_eq!(next(Some((9, 1)), 9), (all_of(4), 1));
        assert_eq!(next(Some((4, 1)), 9), (all_of(2), 1));
        assert_eq!(next(Some((2, 1)), 1), (all_of(1), 1), "never more than there are");
        assert_eq!(next(Some((1, 1)), 9), (all_of(1), 2));
        assert_eq!(next(Some((1, 2)), 9), (all_of(1), 3));
        assert_eq!(next(Some((1, 3)), 9), (Attempt { groups: 1, refuses: true }, 3));
    }
}

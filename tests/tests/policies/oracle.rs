//! What each policy promises, said once more and in other words than `resolve.rs` says it: not change by change, but of
//! all that was written about a record, from the definitions in `docs` and of the attribute.

use std::{collections::BTreeSet, fmt};

use tidelog::model::{DeletePolicy, Policy};

use crate::{
    Case, Does, FIELDS, Who,
    models::{Owner, Spec},
};

/// The three fields of a record.
pub(crate) type Row = [String; 3];

/// Place of a change among those that clocks rank. What its author had seen is always before it.
pub(crate) type Rank = (i64, u32);

/// What somebody saved.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) who: Who,
    pub(crate) rank: Rank,
    /// Whose changes its author had seen.
    pub(crate) saw: Vec<Who>,
    /// The record as its author left it; `None` if it was deleted.
    pub(crate) after: Option<Row>,
    /// Fields that it wrote.
    pub(crate) wrote: Vec<usize>,
}

/// All that was saved of a record, in the order in which it reached the log, and what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) changes: Vec<Change>,
    /// Changes of those who may not write the record.
    pub(crate) refused: Vec<Change>,
    /// The record at the end.
    pub(crate) row: Option<Row>,
}

/// Plays a case. The leader sees what is in the log when it writes; a follower sees the base only.
pub(crate) fn play(spec: &Spec, case: &Case, order: [Who; 3], wall: impl Fn(Who) -> i64) -> Story {
    let base = case.base();
    let mut story = Story { row: base.clone(), ..Story::default() };
    for (place, who) in order.into_iter().enumerate() {
        let is_leader = who == Who::Leader;
        let saw = if is_leader { order[..place].to_vec() } else { Vec::new() };
        let before = if is_leader { story.row.clone() } else { base.clone() };
        let does = case.does(who);
        let after = does.to(before.as_ref());
        if after == before {
            continue;
        }
        let seen = story.changes.iter().filter(|c| saw.contains(&c.who)).map(|c| c.rank).max();
        let rank = (wall(who), 0).max(seen.map_or((0, 0), |(wall, more)| (wall, more + 1)));
        let differs = |&f: &usize| before.as_ref().map(|b| &b[f]) != after.as_ref().map(|a| &a[f]);
        let wrote = (0..FIELDS.len()).filter(differs).collect();
        let change = Change { who, rank, saw, after, wrote };
        if may_write(spec, case, &story, who) {
            story.changes.push(change);
            story.row = stands(spec, base.as_ref(), &story.changes);
        } else if change.after.is_some() || story.row.is_some() {
            // To delete what is gone already asks for nothing.
            story.refused.push(change);
        }
    }
    story
}

/// Under `owner`: the record is its owner's; of one that is made, the first maker's.
fn may_write(spec: &Spec, case: &Case, story: &Story, who: Who) -> bool {
    match spec.owner {
        Owner::Nobody => true,
        Owner::Device(owner) if case.base().is_some() => who == owner,
        Owner::Device(_) => story.changes.is_empty(),
    }
}

/// The record after these changes.
fn stands(spec: &Spec, base: Option<&Row>, changes: &[Change]) -> Option<Row> {
    let deleted = changes.iter().any(|c| c.after.is_none());
    let alive: Vec<&Change> = match (spec.policy, spec.deletes) {
        // Their word counts for deletions too.
        (Policy::LeaderWins, _) => return log_has(changes.iter()).and_then(|c| c.after.clone()),
        (Policy::OriginWins, _) => return changes.last().and_then(|c| c.after.clone()),
        (_, DeletePolicy::DeleteWins) if deleted => return None,
        (_, DeletePolicy::Manual) if log_has(changes.iter()).is_some_and(|c| c.after.is_none()) => {
            return None;
        }
        // A deletion takes along what its author had seen, and nothing else.
        (_, DeletePolicy::UpdateWins) => {
            let spared = |c: &&Change| {
                !changes.iter().any(|other| other.after.is_none() && other.saw.contains(&c.who))
            };
            changes.iter().filter(|c| c.after.is_some()).filter(spared).collect()
        }
        _ => changes.iter().filter(|c| c.after.is_some()).collect(),
    };
    if alive.is_empty() {
        return base.filter(|_| !deleted).cloned();
    }
    match spec.policy {
        Policy::LastWriteWins | Policy::Role | Policy::Owner(_) => {
            alive.iter().max_by_key(|c| c.rank).and_then(|c| c.after.clone())
        }
        Policy::Manual => log_has(alive.into_iter()).and_then(|c| c.after.clone()),
        Policy::Fields => Some(by_field(base, |field| {
            let latest = alive.iter().filter(|c| c.wrote.contains(&field)).max_by_key(|c| c.rank);
            latest.map(|c| c.value(field).to_owned())
        })),
        Policy::Custom => Some(by_field(base, |field| {
            let values = heads(&alive, field);
            (!values.is_empty()).then(|| values.into_iter().collect::<Vec<_>>().join("+"))
        })),
        Policy::LeaderWins | Policy::OriginWins => unreachable!("they returned"),
    }
}

/// What stands where the log's word counts: the first change, or that of the last who had seen what was there.
fn log_has<'c>(changes: impl Iterator<Item = &'c Change>) -> Option<&'c Change> {
    changes.reduce(|there, next| if next.saw.is_empty() { there } else { next })
}

/// The values of a field that nobody wrote over knowingly.
fn heads<'c>(changes: &[&'c Change], field: usize) -> BTreeSet<&'c str> {
    let writers = changes.iter().filter(|c| c.wrote.contains(&field) && c.after.is_some());
    let is_seen =
        |c: &&&Change| changes.iter().any(|other| other.wrote.contains(&field) && other.saw.contains(&c.who));
    writers.filter(|c| !is_seen(c)).map(|c| c.value(field)).collect()
}

fn by_field(base: Option<&Row>, value: impl Fn(usize) -> Option<String>) -> Row {
    [0, 1, 2].map(|field| {
        value(field)
            .or_else(|| base.map(|base| base[field].clone()))
            .expect("written by whoever made the record")
    })
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, changes) in [("saved", &self.changes), ("refused", &self.refused)] {
            for Change { who, rank, saw, after, wrote } in changes {
                writeln!(f, "  {what} by {who:?} at {rank:?}, who saw {saw:?}: {after:?}, fields {wrote:?}")?;
            }
        }
        writeln!(f, "  to be: {:?}", self.row)
    }
}

impl Story {
    /// Whether a change came to the log that wants something else than one that its author had not seen.
    pub(crate) fn is_contested(&self, policy: Policy) -> bool {
        (1..=self.changes.len()).any(|count| {
            let all: Vec<&Change> = self.changes[..count].iter().collect();
            let deleted = all.iter().any(|c| c.after.is_none());
            if matches!(policy, Policy::Fields | Policy::Custom) && !deleted {
                return (0..FIELDS.len()).any(|field| heads(&all, field).len() > 1);
            }
            // There the record counts as one.
            let is_seen = |c: &&&Change| all.iter().any(|other| other.saw.contains(&c.who));
            let wanted: BTreeSet<_> = all.iter().filter(|c| !is_seen(c)).map(|c| &c.after).collect();
            wanted.len() > 1
        })
    }

    /// Who is later by the clocks when this device's change comes to what the log has of a field, or where the record
    /// counts as one of the record: the change, or whoever wrote that before.
    pub(crate) fn is_later(&self, who: Who, field: Option<usize>) -> bool {
        let before = self.changes.iter().take_while(|c| c.who != who);
        let writers =
            before.filter(|c| c.after.is_some() && field.is_none_or(|field| c.wrote.contains(&field)));
        self.of(who).map(|c| c.rank) > writers.map(|c| c.rank).max()
    }

    /// Whether somebody who had seen this change wrote over this field of it, or deleted the record.
    pub(crate) fn is_overwritten(&self, change: &Change, field: usize) -> bool {
        self.changes.iter().any(|other| {
            other.saw.contains(&change.who) && (other.after.is_none() || other.wrote.contains(&field))
        })
    }

    fn of(&self, who: Who) -> Option<&Change> {
        self.changes.iter().find(|c| c.who == who)
    }
}

impl Change {
    /// What it says of a field.
    pub(crate) fn value(&self, field: usize) -> &str {
        self.after.as_ref().map_or("", |row| &row[field])
    }
}

impl Does {
    /// What becomes of a record that is as `before`.
    fn to(self, before: Option<&Row>) -> Option<Row> {
        match (self, before) {
            (Self::Nothing, before) => before.cloned(),
            (Self::Delete, _) | (Self::Set(_), None) => None,
            (Self::Set(set), Some(before)) => {
                let mut row = before.clone();
                for &(field, value) in set {
                    row[field] = value.to_owned();
                }
                Some(row)
            }
            (Self::Create(row), _) => Some(row.map(str::to_owned)),
        }
    }
}

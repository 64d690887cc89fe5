//! Resolve: what becomes of a change that meets others which its author had not seen.
//!
//! [`resolve`] is a pure function of what the log holds and of the change: no clock, no IO, no randomness, so that any
//! leader decides alike, and so does the same leader when it sequences a change once more. What it is told of the log
//! is the record as it stands and who wrote it since the change's base; how long the log is does not matter.
//!
//! Whether an author had seen another change is a matter of what stood in its database, never of clocks: clocks only rank
//! those that had not seen each other.
//!
//! | policy | counts as one | who stands |
//! |---|---|---|
//! | `lww` | the record | the higher rank, with its whole row |
//! | `fields` | each field | the higher rank |
//! | `leader_wins`, `origin_wins` | the record | what the log has; the change that arrives |
//! | `role` | the record | the higher role, then the higher rank |
//! | `owner` | the record | only its owner writes; between changes of the owner as `lww` |
//! | `custom` | the record | what the model's function makes of both |
//! | `manual` | the record | what the log has, until a person decides |
//!
//! A field with a [`Reducer`] is never in conflict: both sides go into its value. Everything else that does not stand is
//! named in [`Resolution::dropped`]; that is what conflict records are made of.

use crate::{
    id::{DeviceId, Origin, OriginSeq},
    model::{AskMerge, DeletePolicy, ModelDescriptor, Policy, Reducer},
    value::Value,
};

mod reduce;

pub(crate) use reduce::reduce;

#[cfg(test)]
mod tests;

/// How a model's records merge.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'m> {
    /// Who wins.
    pub policy: Policy,
    /// What a deletion does to an update it had not seen.
    pub deletes: DeletePolicy,
    /// The model that `custom` and `owner` speak of.
    pub model: &'m ModelDescriptor,
}

impl<'m> Rules<'m> {
    /// What the model's options say.
    pub fn of(model: &'m ModelDescriptor) -> Self {
        Self { policy: model.options.policy, deletes: model.options.deletes, model }
    }

    fn reducer(&self, field: usize) -> Option<Reducer> {
        self.model.fields.get(field).and_then(|f| f.reducer)
    }
}

/// Who made a change, and where that ranks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// The ranking stamp: hybrid logical clock, clamped when the change was first sequenced.
    pub rank: u64,
    /// Where it was sealed. With `n` it decides between equal stamps.
    pub origin: Origin,
    /// Its number there.
    pub n: OriginSeq,
    /// The device that sealed it.
    pub device: DeviceId,
    /// Precedence of that device's role.
    pub role: u8,
}

impl Author {
    /// Whether its change is the higher of two that had not seen each other.
    fn outranks(&self, other: &Self, policy: Policy) -> bool {
        let role = |author: &Self| if policy == Policy::Role { author.role } else { 0 };
        (role(self), self.rank, self.origin, self.n) > (role(other), other.rank, other.origin, other.n)
    }
}

/// What an entry of the log did to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote<'a> {
    /// The record went.
    Nothing,
    /// All of its fields.
    All,
    /// These, by index.
    Fields(&'a [u16]),
}

/// An entry that had an effect on the record since the change's base.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Whose change it is.
    pub by: Author,
    /// Whether the author of the change that is to be resolved had seen it.
    pub seen: bool,
    /// What it did.
    pub wrote: Wrote<'a>,
}

/// What a change makes of its record.
#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    /// The record is to be gone.
    Delete,
    /// The record is to be as this row says.
    Upsert {
        /// The whole row as its author left it.
        row: &'a [Value],
        /// Indices of the changed fields; `None` for all.
        fields: Option<&'a [u16]>,
    },
}

/// A change as its author sealed it.
#[derive(Clone, Copy, Debug)]
pub struct Arriving<'a> {
    /// Whose it is.
    pub by: Author,
    /// Whether the record was there for its author before.
    pub existed: bool,
    /// What it does.
    pub action: Action<'a>,
    /// The row before it at its author, where it is known.
    pub before: Option<&'a [Value]>,
}

/// The record as the log has it when the change arrives.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// The row; `None` if the record is absent.
    pub row: Option<&'a [Value]>,
    /// Who wrote it since the change's base, in the order of the log.
    pub since: &'a [Written<'a>],
    /// The record is absent, nothing in the log says why, and it may have been deleted and forgotten since the change's
    /// base: that counts as a deletion which its author had not seen.
    pub may_be_forgotten: bool,
}

/// What an entry does to the record.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Nothing: the entry is there for the account.
    None,
    /// The record is gone.
    Gone,
    /// The record is as this row says.
    Row {
        /// The whole row.
        row: Vec<Value>,
        /// The fields that the change wrote; `None` for all.
        fields: Option<Vec<u16>>,
    },
}

/// Which of two values did not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loser {
    /// What the log had.
    Local,
    /// What the change brought.
    Remote,
    /// Both: a third value stands.
    Both,
}

/// A value, or a whole row, that did not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The field, by index; `None` where it is about the record being there.
    pub field: Option<u16>,
    /// Whose it was.
    pub loser: Loser,
    /// A person is to decide.
    pub open: bool,
}

/// What becomes of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    /// What its entry does to the record.
    pub effect: Effect,
    /// What did not stand.
    pub dropped: Vec<Dropped>,
}

/// Why a change is refused. It becomes a dead letter with all its values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The author may not write this record.
    #[error("the record belongs to device {owner}, and device {author} may not write it")]
    NotOwner {
        /// What the owner's column holds.
        owner: String,
        /// Who tried.
        author: DeviceId,
    },
    /// The model's own merge did not come to an end, or made what is not this record.
    #[error("the model's merge function failed: {0}")]
    Merge(String),
}

/// Decides what becomes of a change.
///
/// `change` and `standing` hold their rows in the order of the model's fields.
///
/// # Errors
/// [`Refusal`]: the change has no effect at all.
pub fn resolve(
    rules: &Rules<'_>,
    standing: &Standing<'_>,
    change: &Arriving<'_>,
) -> Result<Resolution, Refusal> {
    check_owner(rules, standing, change)?;
    match (change.action, standing.row) {
        (Action::Delete, None) => Ok(Resolution::without_conflict(Effect::None)),
        (Action::Delete, Some(_)) => Ok(resolve_deletion(rules, standing, change)),
        (Action::Upsert { row, fields }, None) => {
            Ok(resolve_upsert_of_absent(rules, standing, change, row, fields))
        }
        (Action::Upsert { row, fields }, Some(now)) => {
            Meeting { rules, since: standing.since, change, now, row, fields }.resolve()
        }
    }
}

impl Resolution {
    fn without_conflict(effect: Effect) -> Self {
        Self { effect, dropped: Vec::new() }
    }

    fn about_presence(effect: Effect, loser: Loser, open: bool) -> Self {
        Self { effect, dropped: vec![Dropped { field: None, loser, open }] }
    }
}

/// Under `owner`, the row that stands names who may write it; a new one names its author.
pub(crate) fn check_owner(
    rules: &Rules<'_>,
    standing: &Standing<'_>,
    change: &Arriving<'_>,
) -> Result<(), Refusal> {
    match (standing.row, change.action) {
        (Some(row), _) | (None, Action::Upsert { row, .. }) => may_write(rules, row, change.by.device),
        (None, Action::Delete) => Ok(()),
    }
}

/// Whether a device may write a record of which this is the row, by its owner where the model has one.
///
/// # Errors
/// [`Refusal::NotOwner`].
pub fn may_write(rules: &Rules<'_>, row: &[Value], author: DeviceId) -> Result<(), Refusal> {
    let Policy::Owner(column) = rules.policy else { return Ok(()) };
    let Some(index) = rules.model.fields.iter().position(|f| f.name == column) else { return Ok(()) };
    let owner = match row.get(index) {
        // Nobody's yet: anybody may.
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Blob(bytes)) if **bytes == author.0 => return Ok(()),
        Some(Value::Text(text)) if **text == *author.to_string().as_bytes() => return Ok(()),
        Some(Value::Text(text)) => String::from_utf8_lossy(text).into_owned(),
        Some(other) => {
            let mut json = String::new();
            other.write_json(&mut json);
            json
        }
    };
    Err(Refusal::NotOwner { owner, author })
}

/// The last entry that had an effect on the record, if the change's author had not seen it.
fn unseen_last<'w>(since: &'w [Written<'w>]) -> Option<&'w Written<'w>> {
    since.last().filter(|last| !last.seen)
}

/// A deletion of a record that is there: in conflict with a last writer it had not seen.
fn resolve_deletion(rules: &Rules<'_>, standing: &Standing<'_>, change: &Arriving<'_>) -> Resolution {
    let Some(last) = unseen_last(standing.since) else {
        return Resolution::without_conflict(Effect::Gone);
    };
    match word(rules, Arrives::Deletion, change, Some(&last.by)) {
        Word::Arriving => Resolution::about_presence(Effect::Gone, Loser::Local, false),
        Word::Log { asked } => Resolution::about_presence(Effect::None, Loser::Remote, asked),
    }
}

/// A write to a record that is absent: in conflict with a deletion it had not seen.
fn resolve_upsert_of_absent(
    rules: &Rules<'_>,
    standing: &Standing<'_>,
    change: &Arriving<'_>,
    row: &[Value],
    fields: Option<&[u16]>,
) -> Resolution {
    let written =
        |fields: Option<&[u16]>| Effect::Row { row: row.to_vec(), fields: fields.map(<[u16]>::to_vec) };
    let deletion = unseen_last(standing.since).map(|last| &last.by);
    if deletion.is_none() && !(standing.may_be_forgotten && change.existed) {
        return Resolution::without_conflict(written(None));
    }
    match word(rules, Arrives::Write, change, deletion) {
        // What its author did not touch came back with the record, and is nobody's newer word.
        Word::Arriving => {
            Resolution::about_presence(written(fields.filter(|_| change.existed)), Loser::Local, false)
        }
        Word::Log { asked } => Resolution::about_presence(Effect::None, Loser::Remote, asked),
    }
}

/// Which of a deletion and a write that meet is the one that arrives.
#[derive(Clone, Copy, PartialEq)]
enum Arrives {
    Deletion,
    Write,
}

/// Whose word stands on whether the record is there.
enum Word {
    Arriving,
    /// What the log has; a person may be `asked`.
    Log {
        asked: bool,
    },
}

fn word(rules: &Rules<'_>, arrives: Arrives, change: &Arriving<'_>, other: Option<&Author>) -> Word {
    let arriving = match (rules.policy, other) {
        // Where the policy says whose word counts, it counts for deletions too.
        (Policy::LeaderWins, _) => false,
        (Policy::OriginWins, _) => true,
        (Policy::Role, Some(other)) if change.by.role != other.role => change.by.role > other.role,
        _ => match rules.deletes {
            DeletePolicy::DeleteWins => arrives == Arrives::Deletion,
            DeletePolicy::UpdateWins => arrives == Arrives::Write,
            DeletePolicy::Manual => return Word::Log { asked: true },
        },
    };
    if arriving { Word::Arriving } else { Word::Log { asked: false } }
}

/// A write to a record that is there.
struct Meeting<'a> {
    rules: &'a Rules<'a>,
    since: &'a [Written<'a>],
    change: &'a Arriving<'a>,
    now: &'a [Value],
    row: &'a [Value],
    fields: Option<&'a [u16]>,
}

impl Meeting<'_> {
    fn resolve(&self) -> Result<Resolution, Refusal> {
        if self.rules.policy == Policy::Fields {
            return Ok(self.by_field());
        }
        if self.fields.is_some_and(|fields| fields.iter().all(|&f| self.is_reduced(usize::from(f)))) {
            // It adds to what is there, whoever wrote that.
            return Ok(self.keep(false));
        }
        let Some(last) = self.last_competitor() else { return Ok(self.take_all(Vec::new())) };
        if !self.differs() {
            // Both say the same: it stands under the higher rank, which a third is measured by.
            return Ok(if self.outranks(last) { self.take_all(Vec::new()) } else { self.keep(false) });
        }
        let arriving_stands = match self.rules.policy {
            Policy::Custom => return self.by_own_function(),
            Policy::LeaderWins => false,
            Policy::OriginWins => true,
            Policy::Manual => return Ok(self.keep(true)),
            Policy::LastWriteWins | Policy::Role | Policy::Owner(_) | Policy::Fields => self.outranks(last),
        };
        Ok(if arriving_stands { self.take_all(self.lost_here()) } else { self.keep(false) })
    }

    fn outranks(&self, other: &Written<'_>) -> bool {
        self.change.by.outranks(&other.by, self.rules.policy)
    }

    fn changes(&self, field: usize) -> bool {
        self.fields.is_none_or(|fields| fields.iter().any(|&f| usize::from(f) == field))
    }

    fn is_reduced(&self, field: usize) -> bool {
        self.rules.reducer(field).is_some()
    }

    /// Whether the two rows differ in what can be in conflict.
    fn differs(&self) -> bool {
        (0..self.now.len()).any(|i| !self.is_reduced(i) && self.now[i] != self.row[i])
    }

    /// The last who wrote more than reduced fields since the change's base, if the change's author had not seen it. A
    /// deletion that was overcome is not among them.
    fn last_competitor(&self) -> Option<&Written<'_>> {
        let competes = |written: &&Written<'_>| match written.wrote {
            Wrote::Nothing => false,
            Wrote::All => true,
            Wrote::Fields(fields) => fields.iter().any(|&f| !self.is_reduced(usize::from(f))),
        };
        self.since.iter().rev().find(competes).filter(|written| !written.seen)
    }

    /// Who wrote a field since the change's base, last first. A deletion that was overcome wrote none.
    fn writers(&self, field: usize) -> impl Iterator<Item = &Written<'_>> {
        self.since.iter().rev().filter(move |written| match written.wrote {
            Wrote::Nothing => false,
            Wrote::All => true,
            Wrote::Fields(fields) => fields.iter().any(|&f| usize::from(f) == field),
        })
    }

    /// The last writer of a field since the change's base, if the change's author had not seen it.
    fn unseen_writer(&self, field: usize) -> Option<&Written<'_>> {
        self.writers(field).next().filter(|written| !written.seen)
    }

    /// The value of a field with a reducer. What an unseen change put into it is in the log's value even where the author
    /// itself wrote it since.
    fn reduced(&self, field: usize, reducer: Reducer) -> Value {
        let (now, brought) = (&self.now[field], &self.row[field]);
        if !self.changes(field) {
            return now.clone();
        }
        let base = self.change.before.and_then(|before| before.get(field));
        let Some(other) = self.writers(field).find(|written| !written.seen) else {
            // What its author had put in before may have been refused: what this change itself put in counts.
            let differs =
                matches!(reducer, Reducer::Sum | Reducer::Union) && base.is_some_and(|base| base != now);
            let reduced = if differs { reduce(reducer, base, now, brought) } else { None };
            return reduced.unwrap_or_else(|| brought.clone());
        };
        reduce(reducer, base, now, brought).unwrap_or_else(|| {
            // What is not of the reducer's kind is a plain value.
            if self.outranks(other) { brought.clone() } else { now.clone() }
        })
    }

    /// Each field by itself: what the change did not touch stays as the log has it.
    fn by_field(&self) -> Resolution {
        let mut row = self.now.to_vec();
        let (mut written, mut dropped) = (Vec::new(), Vec::new());
        for (i, value) in row.iter_mut().enumerate() {
            if !self.changes(i) {
                continue;
            }
            let field = u16::try_from(i).unwrap_or(u16::MAX);
            if let Some(reducer) = self.rules.reducer(i) {
                *value = self.reduced(i, reducer);
                written.push(field);
                continue;
            }
            let other = self.unseen_writer(i);
            let stands = other.is_none_or(|other| self.outranks(other));
            if other.is_some() && self.now[i] != self.row[i] {
                let loser = if stands { Loser::Local } else { Loser::Remote };
                dropped.push(Dropped { field: Some(field), loser, open: false });
            }
            if stands {
                value.clone_from(&self.row[i]);
                written.push(field);
            }
        }
        let effect = if written.is_empty() {
            Effect::None
        } else if self.fields.is_none() && dropped.is_empty() {
            Effect::Row { row, fields: None }
        } else {
            Effect::Row { row, fields: Some(written) }
        };
        Resolution { effect, dropped }
    }

    /// The change's whole row stands, reducers apart. What it writes over, it writes: also what its author did not touch and
    /// the log has otherwise, since what the author had made of that before did not stand.
    fn take_all(&self, dropped: Vec<Dropped>) -> Resolution {
        let mut row = self.row.to_vec();
        self.reduce_into(&mut row);
        let written = |field: &u16| {
            let i = usize::from(*field);
            self.changes(i) || row[i] != self.now[i]
        };
        let all = 0..u16::try_from(row.len()).unwrap_or(u16::MAX);
        let fields = self.fields.map(|_| all.filter(written).collect());
        Resolution { effect: Effect::Row { row, fields }, dropped }
    }

    /// Every field in which the log's row goes.
    fn lost_here(&self) -> Vec<Dropped> {
        self.differing(Loser::Local, |_| true)
    }

    /// The log's row stands, reducers apart.
    fn keep(&self, open: bool) -> Resolution {
        let mut dropped = self.differing(Loser::Remote, |i| self.changes(i));
        dropped.iter_mut().for_each(|dropped| dropped.open = open);
        let reduced: Vec<u16> = (0..self.now.len())
            .filter(|&i| self.is_reduced(i) && self.changes(i))
            .filter_map(|i| u16::try_from(i).ok())
            .collect();
        if reduced.is_empty() {
            return Resolution { effect: Effect::None, dropped };
        }
        let mut row = self.now.to_vec();
        self.reduce_into(&mut row);
        Resolution { effect: Effect::Row { row, fields: Some(reduced) }, dropped }
    }

    fn reduce_into(&self, row: &mut [Value]) {
        for (i, value) in row.iter_mut().enumerate() {
            if let Some(reducer) = self.rules.reducer(i) {
                *value = self.reduced(i, reducer);
            }
        }
    }

    fn differing(&self, loser: Loser, counts: impl Fn(usize) -> bool) -> Vec<Dropped> {
        (0..self.now.len())
            .filter(|&i| !self.is_reduced(i) && self.now[i] != self.row[i] && counts(i))
            .filter_map(|i| u16::try_from(i).ok())
            .map(|field| Dropped { field: Some(field), loser, open: false })
            .collect()
    }

    /// What the model's own function makes of both.
    fn by_own_function(&self) -> Result<Resolution, Refusal> {
        let model = self.rules.model;
        let merge: AskMerge = model.merge.ok_or_else(|| Refusal::Merge("there is none".into()))?;
        let row = merge(model, self.change.before, self.now, self.row).map_err(Refusal::Merge)?;
        if model.record_id(&row) != model.record_id(self.now) {
            return Err(Refusal::Merge("it made another record of this one".into()));
        }
        let mut dropped = Vec::new();
        let mut written = Vec::new();
        for (i, merged) in row.iter().enumerate() {
            let Ok(field) = u16::try_from(i) else { break };
            let (local, remote) = (*merged != self.now[i], *merged != self.row[i] && self.changes(i));
            if *merged != self.now[i] {
                written.push(field);
            }
            let loser = match (local, remote) {
                (true, true) => Loser::Both,
                (true, false) if self.unseen_writer(i).is_some() => Loser::Local,
                (false, true) => Loser::Remote,
                _ => continue,
            };
            dropped.push(Dropped { field: Some(field), loser, open: false });
        }
        let effect =
            if written.is_empty() { Effect::None } else { Effect::Row { row, fields: Some(written) } };
        Ok(Resolution { effect, dropped })
    }
}

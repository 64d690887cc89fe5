//! Entries of the log and the changes they carry, in memory.
//!
//! An entry knows its model's fields by name, through the [`Shape`] it was sealed with: what another release of the
//! application sent can be kept and handed on without this one knowing every field.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use once_cell::sync::Lazy;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::{
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    record::RecordId,
    resolve::{Dropped, Effect},
    value::Value,
    world::clamp,
};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EntryKind {
    /// A change without effect that must be accounted for.
    Noop = 0,
    /// The record is as the row says.
    Upsert = 1,
    /// The record is gone.
    Delete = 2,
    /// The leader opened its term.
    TermStart = 3,
    /// A device became a member, or its role another.
    Member = 4,
}

impl EntryKind {
    pub(crate) fn from_i64(kind: i64) -> Option<Self> {
        Some(match kind {
            0 => Self::Noop,
            1 => Self::Upsert,
            2 => Self::Delete,
            3 => Self::TermStart,
            4 => Self::Member,
            _ => return None,
        })
    }
}

/// The fields of one model as its rows were sealed.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Sync id of the model.
    pub(crate) model: String,
    /// Field names, in order.
    pub(crate) fields: Vec<String>,
    /// Indices of the key among them.
    pub(crate) key: Vec<usize>,
    /// For each field whether its 16-byte BLOBs are UUIDs, which the log shows as such.
    pub(crate) uuids: Vec<bool>,
}

/// Shapes in use, so that equal ones are the same and one look tells. Beyond so many, new ones are kept by their users alone.
static SHARED: Lazy<Mutex<Vec<Weak<Shape>>>> = Lazy::new(Mutex::default);
const SHARED_MAX: usize = 256;

impl Shape {
    /// The one in use that is equal to it, which it becomes if there is none.
    pub(crate) fn shared(self) -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(met) = shared.iter().filter_map(Weak::upgrade).find(|met| **met == self) {
            return met;
        }
        let new = Arc::new(self);
        shared.retain(|met| met.strong_count() > 0);
        if shared.len() < SHARED_MAX {
            shared.push(Arc::downgrade(&new));
        }
        new
    }

    /// Whether the same columns name a record in both.
    pub(crate) fn has_key_of(&self, other: &Self) -> bool {
        let mine = self.key.iter().map(|&i| &self.fields[i]);
        mine.eq(other.key.iter().map(|&i| &other.fields[i]))
    }
}

/// Indices of changed fields: mostly few, which take no memory of their own.
pub(crate) type Fields = SmallVec<[u16; 8]>;

/// A change to a record, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// Fields that `row` and `fields` speak of.
    pub(crate) shape: Arc<Shape>,
    /// Canonical record id.
    pub(crate) record: RecordId,
    /// Upsert or Delete; Noop where it only decides.
    pub(crate) kind: EntryKind,
    /// Whether the record existed before.
    pub(crate) existed: bool,
    /// Indices of the changed fields; `None` for all.
    pub(crate) fields: Option<Fields>,
    /// The whole row after an upsert; the key's values, other fields NULL, for a deletion.
    pub(crate) row: Vec<Value>,
    /// The whole row before, where there was one and it is known.
    pub(crate) before: Option<Vec<Value>>,
    /// Hybrid logical clock when it was sealed.
    pub(crate) stamp: u64,
    /// What ranks it. In the log: where that is not its stamp. While it is pending: where it has been in a log before.
    pub(crate) rank: Option<u64>,
    /// Wall clock when it was captured, ms since 1970.
    pub(crate) at: i64,
    /// Atomic mark: changes of one mark stand or fall together.
    pub(crate) mark: Option<String>,
    /// Who did it, where the application said so.
    pub(crate) actor: Option<String>,
    /// What its author, a person, decided with it.
    pub(crate) decides: Option<Decision>,
    /// What became of it, where that is not what its author made of the record.
    pub(crate) outcome: Option<Box<Outcome>>,
}

impl Change {
    /// The key's values, in the order that another shape of the model has.
    pub(crate) fn key_in(&self, shape: &Shape) -> Vec<Value> {
        let value = |&i: &usize| {
            let at = self.shape.fields.iter().position(|f| *f == shape.fields[i]);
            at.map_or(Value::Null, |at| self.row[at].clone())
        };
        shape.key.iter().map(value).collect()
    }

    /// What ranks it among changes that had not seen each other.
    pub(crate) fn ranking_stamp(&self) -> u64 {
        self.rank.unwrap_or(self.stamp)
    }

    /// Gives it the ranking stamp that it keeps from its first sequencing on (rule Q), which is now unless it has one.
    pub(crate) fn rank_at(&mut self, now_ms: i64) {
        let rank = self.rank.unwrap_or_else(|| clamp(self.stamp, now_ms));
        self.rank = Some(rank).filter(|rank| *rank != self.stamp);
    }

    /// What its entry does to the record: Noop, Upsert or Delete.
    pub(crate) fn effect(&self) -> EntryKind {
        match self.outcome.as_ref().map(|outcome| &outcome.effect) {
            None => self.kind,
            Some(Effect::None) => EntryKind::Noop,
            Some(Effect::Gone) => EntryKind::Delete,
            Some(Effect::Row { .. }) => EntryKind::Upsert,
        }
    }

    /// The record's row after an upsert; otherwise a row of which only the key counts.
    pub(crate) fn row_after(&self) -> &[Value] {
        match self.outcome.as_ref().map(|outcome| &outcome.effect) {
            Some(Effect::Row { row, .. }) => row,
            _ => &self.row,
        }
    }

    /// Indices of the fields that its entry wrote; `None` for all.
    pub(crate) fn written(&self) -> Option<&[u16]> {
        match self.outcome.as_ref().map(|outcome| &outcome.effect) {
            Some(Effect::Row { fields, .. }) => fields.as_deref(),
            _ => self.fields.as_deref(),
        }
    }

    /// The values before it of the fields that it changed, where they are known.
    pub(crate) fn old_values(&self) -> Option<impl Iterator<Item = &Value>> {
        let (fields, before) = (self.fields.as_ref()?, self.before.as_ref()?);
        Some(fields.iter().filter_map(|&f| before.get(usize::from(f))))
    }

    /// Puts the row before it together again, of its own row and the values that it changed. Whether they fit.
    pub(crate) fn set_old_values(&mut self, old: impl IntoIterator<Item = Value>) -> bool {
        let Some(fields) = &self.fields else { return false };
        let mut before = self.row.clone();
        let mut count = 0;
        for (&field, value) in fields.iter().zip(old) {
            before[usize::from(field)] = value;
            count += 1;
        }
        let whole = count == fields.len();
        self.before = whole.then_some(before);
        whole
    }
}

/// What a change decides, beside what it does to its record: how a conflict or a dead letter ends, as a person said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Decision {
    /// A conflict ends with what the change makes of the record.
    Resolves(Uuid),
    /// A dead letter is tried once more: the change takes its place.
    Retries(Uuid),
    /// A dead letter is given up.
    Discards(Uuid),
}

/// A change by what it was sealed as, and all before it there: what an author had seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Where it was sealed.
    pub(crate) origin: Origin,
    /// Its number there.
    pub(crate) n: OriginSeq,
    /// What tells it from another of that number, should the origin have two lives.
    pub(crate) tag: u64,
}

impl Seen {
    /// The form in which the database keeps a list of them: of each origin, number and tag.
    pub(crate) fn to_json(seen: &[Self]) -> String {
        let all: Vec<_> = seen.iter().map(|seen| (seen.origin, seen.n, seen.tag)).collect();
        serde_json::json!(all).to_string()
    }

    /// Reads [`Seen::to_json`]. `None` of what is none.
    pub(crate) fn from_json(text: &str) -> Option<Vec<Self>> {
        serde_json::from_str(text).ok()
    }
}

impl Decision {
    /// As the sync tables keep it.
    pub(crate) fn to_text(self) -> String {
        match self {
            Self::Resolves(id) => format!("resolves {id}"),
            Self::Retries(id) => format!("retries {id}"),
            Self::Discards(id) => format!("discards {id}"),
        }
    }

    /// Reads [`Decision::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (word, id) = (words.next()?, words.next()?.parse().ok()?);
        let decision = match word {
            "resolves" => Self::Resolves(id),
            "retries" => Self::Retries(id),
            "discards" => Self::Discards(id),
            _ => return None,
        };
        words.next().is_none().then_some(decision)
    }
}

/// What became of a change that met others, or was refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// What its entry does to the record.
    pub(crate) effect: Effect,
    /// What did not stand.
    pub(crate) dropped: Vec<Dropped>,
    /// Why it was refused, if it was.
    pub(crate) refused: Option<String>,
}

/// What the changes of one seal share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Where it was sealed, and by which device.
    pub(crate) origin: Origin,
    /// Device that minted the origin.
    pub(crate) device: DeviceId,
    /// Random, to tell apart two histories that numbered alike.
    pub(crate) tag: u64,
    /// Top of the author's log when it sealed.
    pub(crate) base: Position,
    /// Tag of the change before its first, where it was sealed; 0 for the first of all.
    pub(crate) prev: u64,
    /// By what it was sealed as, where it goes by another origin: that one, and the number of its first change there.
    pub(crate) was: Option<(Origin, OriginSeq)>,
    /// Of what else was pending at the author when it sealed, by what that was sealed as: of each origin the last.
    pub(crate) seen: Vec<Seen>,
    /// Number of its first change within the origin.
    pub(crate) first_n: OriginSeq,
    /// Number of its last change. What cascades made of a change stands in the group and has no number.
    pub(crate) last_n: OriginSeq,
    /// Seqs of its first and last entry.
    pub(crate) first: Seq,
    /// See `first`.
    pub(crate) last: Seq,
}

impl Group {
    /// Where it was sealed, and the number of its first change there.
    pub(crate) fn sealed_as(&self) -> (Origin, OriginSeq) {
        self.was.unwrap_or((self.origin, self.first_n))
    }

    /// The change before it where it was sealed, if there is one.
    pub(crate) fn before(&self) -> Option<Seen> {
        let (origin, OriginSeq(first)) = self.sealed_as();
        (first > 1).then(|| Seen { origin, n: OriginSeq(first - 1), tag: self.prev })
    }

    /// How many changes it has.
    pub(crate) fn count(&self) -> u64 {
        self.last_n.0.saturating_sub(self.first_n.0) + 1
    }
}

/// One slot of the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) seq: Seq,
    pub(crate) term: Term,
    /// Number within the group's origin; `None` for entries that are no change.
    pub(crate) n: Option<OriginSeq>,
    pub(crate) body: Body,
}

/// What stands in a slot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    /// The leader opened its term.
    TermStart { stamp: u64, at: i64 },
    /// `device` became a member, or its role another. `role` is its precedence.
    Member { device: DeviceId, role: u8, stamp: u64, at: i64 },
    /// A change to a record.
    Change(Change),
}

impl Body {
    pub(crate) fn kind(&self) -> EntryKind {
        match self {
            Self::TermStart { .. } => EntryKind::TermStart,
            Self::Member { .. } => EntryKind::Member,
            Self::Change(change) => change.effect(),
        }
    }

    pub(crate) fn stamp(&self) -> u64 {
        match self {
            Self::TermStart { stamp, .. } | Self::Member { stamp, .. } => *stamp,
            Self::Change(change) => change.stamp,
        }
    }

    /// What ranks a change; what is none competes with nobody.
    pub(crate) fn ranking_stamp(&self) -> Option<u64> {
        match self {
            Self::TermStart { .. } | Self::Member { .. } => None,
            Self::Change(change) => Some(change.ranking_stamp()),
        }
    }

    pub(crate) fn at(&self) -> i64 {
        match self {
            Self::TermStart { at, .. } | Self::Member { at, .. } => *at,
            Self::Change(change) => change.at,
        }
    }
}

/// A run of entries of one term: a line of the leadership history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Its first seq.
    pub(crate) first: Seq,
    /// Its term.
    pub(crate) term: Term,
}

/// Whole groups in order, or one part of a group that is larger than a batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Batch {
    /// The position just before the first entry.
    pub(crate) after: Position,
    /// Entries, contiguous.
    pub(crate) entries: Vec<Entry>,
    /// Groups that have entries here, in order.
    pub(crate) groups: Vec<Group>,
}

impl Batch {
    /// Seq of the last entry; that before the first where there is none.
    pub(crate) fn last(&self) -> Seq {
        self.entries.last().map_or(self.after.seq, |entry| entry.seq)
    }

    /// Whether the last group goes on behind this batch, which then is a part of it.
    pub(crate) fn is_open(&self) -> bool {
        self.groups.last().is_some_and(|group| group.last > self.last())
    }
}

/// The last seq at which two logs carry the same term: by log matching, everything up to it is the same.
///
/// Histories are runs in ascending order with the top of each log. A term has one appender and is opened once, so
/// where both logs have a run of the same term the runs begin at the same seq, unless one side sent only its newest
/// runs; the overlap decides.
pub(crate) fn common_prefix(mine: &[Run], my_top: Seq, theirs: &[Run], their_top: Seq) -> Seq {
    let end = |runs: &[Run], i: usize, top: Seq| {
        runs.get(i + 1).map_or(top, |next| Seq(next.first.0.saturating_sub(1)))
    };
    for (i, run) in theirs.iter().enumerate().rev() {
        if let Some(j) = mine.iter().rposition(|m| m.term == run.term) {
            let last = end(theirs, i, their_top).min(end(mine, j, my_top));
            if last >= run.first.max(mine[j].first) {
                return last;
            }
        }
    }
    Seq(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Incarnation;

    fn run(first: u64, number: u64, counter: u64) -> Run {
        let incarnation = Incarnation { counter, nonce: 0 };
        Run { first: Seq(first), term: Term { number, leader: DeviceId([1; 32]), incarnation } }
    }

    #[test]
    fn the_common_prefix_is_the_last_seq_with_the_same_term() {
        let a = [run(1, 1, 1), run(10, 1, 2), run(20, 2, 1)];
        let prefix = |mine: &[Run], my_top, theirs: &[Run], their_top| {
            common_prefix(mine, Seq(my_top), theirs, Seq(their_top)).0
        };
        assert_eq!(prefix(&a, 30, &a, 30), 30, "the same log");
        assert_eq!(prefix(&a, 30, &a, 25), 25, "one is behind");
        assert_eq!(prefix(&a, 30, &a[..2], 19), 19, "one has not seen the last term");
        assert_eq!(prefix(&a, 30, &[], 0), 0, "an empty log is a prefix of every log");
        let fork = [run(1, 1, 1), run(10, 1, 2), run(15, 3, 1)];
        assert_eq!(prefix(&a, 30, &fork, 18), 14, "they part where the terms part");
        assert_eq!(prefix(&a, 30, &[run(1, 9, 1)], 5), 0, "nothing in common");
        assert_eq!(prefix(&a, 30, &a[1..], 30), 30, "only the newest runs were sent");
        assert_eq!(prefix(&a, 30, &[run(1, 1, 1), run(0, 9, 1)], 5), 0, "a first seq that no log has");
    }
}

//! What became of changes, beside the columns: few changes have any of it.

use serde::{Deserialize, Serialize};

use super::columns::Reader;
use crate::{
    entry::{Body, Change, Entry, EntryKind, Outcome},
    resolve::{Dropped, Effect, Loser},
    value::Value,
};

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OutcomeHead {
    /// Index of the change.
    change: u32,
    effect: EffectHead,
    /// Field plus one, or zero for the whole record; whose value it was; whether a person is to decide.
    dropped: Vec<(u16, Side, bool)>,
    refused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum EffectHead {
    None,
    Gone,
    /// The fields that it wrote, and those in which the row differs from its author's.
    Row {
        fields: Option<Vec<u16>>,
        differs: Vec<u16>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Side {
    Local,
    Remote,
    Both,
}

/// Longest reason for a refusal that is taken from a peer, in bytes.
const REFUSED_MAX: usize = 4096;

/// Gives changes back what they held before and what became of them.
pub(super) fn take(
    entries: &mut [Entry],
    with_old: &[u32],
    outcomes: Vec<OutcomeHead>,
    spare: &mut Reader<'_>,
) -> Result<(), &'static str> {
    if with_old.is_empty() && outcomes.is_empty() {
        return Ok(());
    }
    let mut changes: Vec<&mut Change> = entries
        .iter_mut()
        .filter_map(|entry| match &mut entry.body {
            Body::Change(change) => Some(change),
            _ => None,
        })
        .collect();
    let rises = |mut a: std::slice::Windows<'_, u32>| a.all(|pair| pair[0] < pair[1]);
    let of: Vec<u32> = outcomes.iter().map(|head| head.change).collect();
    if !rises(with_old.windows(2)) || !rises(of.windows(2)) {
        return Err("their outcomes are out of order");
    }
    for index in with_old {
        let change = changes.get_mut(*index as usize).ok_or("an old value is of no change")?;
        let count = change.fields.as_ref().map_or(0, |fields| fields.len());
        let old = (0..count).map(|_| spare.next()).collect::<Option<Vec<_>>>();
        let old = old.ok_or("an old value is missing")?;
        if !change.set_old_values(old) {
            return Err("a change of all fields has old values");
        }
    }
    for head in outcomes {
        let change = changes.get_mut(head.change as usize).ok_or("an outcome is of no change")?;
        let outcome = head.into_outcome(change, spare)?;
        change.outcome = Some(Box::new(outcome));
    }
    Ok(())
}

impl OutcomeHead {
    pub(super) fn of(index: u32, change: &Change, outcome: &Outcome) -> Self {
        let effect = match &outcome.effect {
            Effect::None => EffectHead::None,
            Effect::Gone => EffectHead::Gone,
            Effect::Row { row, fields } => {
                let differs = (0..).zip(row.iter().zip(&change.row));
                let differs = differs.filter(|(_, (after, own))| after != own).map(|(i, _)| i).collect();
                EffectHead::Row { fields: fields.clone(), differs }
            }
        };
        let side = |loser| match loser {
            Loser::Local => Side::Local,
            Loser::Remote => Side::Remote,
            Loser::Both => Side::Both,
        };
        let dropped = outcome.dropped.iter();
        let dropped =
            dropped.map(|d| (d.field.map_or(0, |f| f.saturating_add(1)), side(d.loser), d.open)).collect();
        Self { change: index, effect, dropped, refused: outcome.refused.clone() }
    }

    /// The values in which the row that stands differs from what its author made.
    pub(super) fn differing<'c>(&self, change: &'c Change) -> impl Iterator<Item = &'c Value> {
        let differs = match &self.effect {
            EffectHead::Row { differs, .. } => differs.as_slice(),
            EffectHead::None | EffectHead::Gone => &[],
        };
        differs.iter().filter_map(|&field| change.row_after().get(usize::from(field)))
    }

    fn into_outcome(self, change: &Change, spare: &mut Reader<'_>) -> Result<Outcome, &'static str> {
        let shape = &change.shape;
        let known = |fields: &[u16]| {
            fields.len() <= shape.fields.len() && fields.iter().all(|&field| shape.has_field(field))
        };
        let effect = match (self.effect, change.kind) {
            (EffectHead::None, _) => Effect::None,
            (EffectHead::Gone, EntryKind::Delete) => Effect::Gone,
            (EffectHead::Row { fields, differs }, EntryKind::Upsert) => {
                if !known(&differs) || !fields.as_deref().is_none_or(known) {
                    return Err("an outcome is of a field that does not exist");
                }
                let mut row = change.row.clone();
                for field in differs {
                    row[usize::from(field)] = spare.next().ok_or("a value of an outcome is missing")?;
                }
                if shape.record_id(&row) != change.record {
                    return Err("an outcome is another record's");
                }
                Effect::Row { row, fields }
            }
            _ => return Err("an outcome does not fit its change"),
        };
        if self.dropped.len() > shape.fields.len() + 1
            || self.dropped.iter().any(|(field, ..)| usize::from(*field) > shape.fields.len())
        {
            return Err("an outcome drops a field that does not exist");
        }
        if (1..self.dropped.len()).any(|i| self.dropped[..i].iter().any(|(f, ..)| *f == self.dropped[i].0)) {
            return Err("an outcome drops a field twice");
        }
        if self.refused.as_ref().is_some_and(|reason| reason.len() > REFUSED_MAX) {
            return Err("a refusal is over its limit");
        }
        let loser = |side| match side {
            Side::Local => Loser::Local,
            Side::Remote => Loser::Remote,
            Side::Both => Loser::Both,
        };
        let dropped = self
            .dropped
            .into_iter()
            .map(|(field, side, open)| Dropped { field: field.checked_sub(1), loser: loser(side), open })
            .collect();
        Ok(Outcome { effect, dropped, refused: self.refused })
    }
}

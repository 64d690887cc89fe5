//! What the log holds of a record, as the resolver asks for it: the row that stands, and who wrote it since a change's
//! base. Read by the index over the records; how long the log is does not matter.
//!
//! Roles, of both, are those that the log says when the later of the two is sequenced: a device that was given another one is
//! measured by that from then on, for what it wrote before too.

use std::{borrow::Cow, sync::Arc};

use rusqlite::{OptionalExtension, params};

use crate::{
    entry::{Change, Decision, EntryKind, Group, Outcome, Shape},
    error::Error,
    id::{OriginSeq, Seq},
    inject::{self, Safeguard},
    layout::{Layouts, last_logged, said_as},
    life::Sight,
    log::{Authors, Sealed},
    model::Policy,
    resolve::{self, Action, Arriving, Author, Dropped, Effect, Rules, Standing, Written, Wrote},
    store::{Model, Tx},
    term,
    value::Value,
};

/// Looks up what a group's changes meet. Neighbours often meet what the same group wrote.
#[derive(Default)]
pub(crate) struct Lookup {
    layouts: Layouts,
    authors: Authors,
    /// Whether the log has an entry of the record that was looked up last; whoever asks may have looked nothing up.
    pub(crate) has_entry: bool,
    /// Whether the change that was looked up last decides about what is decided already.
    pub(crate) is_late: bool,
}

impl Lookup {
    /// Decides what becomes of a change of `group`, its number `n`, against the log as it is. `None`: it comes to what its
    /// author made of the record.
    pub(crate) fn outcome(
        &mut self,
        tx: &Tx<'_>,
        group: &Group,
        n: OriginSeq,
        change: &Change,
        sight: &Sight,
    ) -> Result<Option<Outcome>, Error> {
        self.is_late = false;
        let Some(model) = tx.models.iter().find(|m| m.descriptor.id == change.shape.model) else {
            // A model that this release does not have is kept and handed on.
            return Ok(None);
        };
        let number = tx.numbers.of(tx.conn, &change.shape)?.model;
        let known = Known::read(tx, self, number, change, group, sight)?;
        if let Some(decision) = change.decides
            && known.is_too_late(tx, decision)?
        {
            self.is_late = true;
            return Ok(Some(Outcome::nothing()));
        }
        if change.kind == EntryKind::Noop {
            return Ok(None);
        }
        if !change.shape.has_key_of(&model.shape) {
            return Ok(Some(Outcome::refused(
                "it comes from a release in which its records have another key".into(),
            )));
        }
        let own_shape = model.shape == change.shape;
        let arriving_row = known.in_fields_of(model, &change.shape, &change.row);
        let before = change.before.as_ref().map(|before| known.in_fields_of(model, &change.shape, before));
        let fields = if own_shape { change.fields.clone() } else { Some(named_fields(model, change).into()) };
        let arriving = Arriving {
            by: author(tx, model, change, group, n)?,
            existed: change.existed,
            action: match change.kind {
                EntryKind::Delete => Action::Delete,
                _ => Action::Upsert { row: &arriving_row, fields: fields.as_deref() },
            },
            before: before.as_deref(),
        };
        let written = known.written();
        let standing =
            Standing { row: known.row.as_deref(), since: &written, may_be_forgotten: known.may_be_forgotten };
        let mut rules = Rules::of(&model.descriptor);
        if let Some(Decision::Resolves(_)) = change.decides {
            if let Err(refusal) = resolve::check_owner(&rules, &standing, &arriving) {
                return Ok(Some(Outcome::refused(refusal.to_string())));
            }
            // What is decided was looked at; the rest of the record goes on as it is.
            rules.policy = Policy::Fields;
        }
        let resolved = resolve::resolve(&rules, &standing, &arriving);
        Ok(match resolved {
            Err(refusal) => Some(Outcome::refused(refusal.to_string())),
            Ok(resolution) if own_shape && came_as_made(change, &resolution) => None,
            Ok(resolution) => Some(Outcome {
                effect: in_shape_of(change, model, resolution.effect),
                dropped: resolution
                    .dropped
                    .into_iter()
                    .filter_map(|d| dropped_in(change, model, d))
                    .collect(),
                refused: None,
            }),
        })
    }

    /// Whose change an entry is. One that a cascade made has no number of its own: it counts as its group's.
    fn writer(&mut self, tx: &Tx<'_>, seq: Seq, n: Option<u64>, rank: u64) -> Result<Author, Error> {
        let sealed = self.authors.at(tx.conn, seq)?;
        let Sealed { origin, device, role, last_n, .. } =
            sealed.ok_or_else(|| Error::Damaged(format!("entry {seq} is in no group")))?;
        Ok(Author { rank, origin, n: n.map_or(last_n, OriginSeq), device, role })
    }
}

/// What was dropped, with the field as the change's own shape has it; `None` for one that its author did not know of.
fn dropped_in(change: &Change, model: &Model, dropped: Dropped) -> Option<Dropped> {
    let Some(field) = dropped.field else { return Some(dropped) };
    let name = model.shape.fields.get(usize::from(field))?;
    let own = change.shape.fields.iter().position(|f| f == name)?;
    Some(Dropped { field: Some(u16::try_from(own).ok()?), ..dropped })
}

fn author(tx: &Tx<'_>, model: &Model, change: &Change, group: &Group, n: OriginSeq) -> Result<Author, Error> {
    // Not looked up where no role is asked for.
    let role = match model.descriptor.options.policy {
        Policy::Role => term::role_of(tx.conn, group.device)?.unwrap_or_default(),
        _ => 0,
    };
    Ok(Author { rank: change.ranking_stamp(), origin: group.origin, n, device: group.device, role })
}

fn came_as_made(change: &Change, resolution: &resolve::Resolution) -> bool {
    resolution.dropped.is_empty()
        && match (&resolution.effect, change.kind) {
            (Effect::Gone, EntryKind::Delete) => true,
            (Effect::Row { row, fields }, EntryKind::Upsert) => {
                *row == change.row && fields.as_deref() == change.fields.as_deref()
            }
            _ => false,
        }
}

impl Outcome {
    /// A change that has no effect, since it came too late.
    pub(crate) fn nothing() -> Self {
        Self { effect: Effect::None, dropped: Vec::new(), refused: None }
    }

    /// A change that has no effect, for this reason.
    pub(crate) fn refused(reason: String) -> Self {
        Self { effect: Effect::None, dropped: Vec::new(), refused: Some(reason) }
    }
}

/// Indices, in the model's fields, of what the change wrote.
fn named_fields(model: &Model, change: &Change) -> Vec<u16> {
    let wrote = |name: &String| {
        let at = change.shape.fields.iter().position(|f| f == name);
        let at = at.and_then(|at| u16::try_from(at).ok());
        at.is_some_and(|at| change.fields.as_ref().is_none_or(|fields| fields.contains(&at)))
    };
    (0..).zip(&model.shape.fields).filter(|(_, name)| wrote(name)).map(|(i, _)| i).collect()
}

/// The effect in the change's own fields: those that this release does not know stay as their author made them.
fn in_shape_of(change: &Change, model: &Model, effect: Effect) -> Effect {
    let Effect::Row { row, fields } = effect else { return effect };
    if model.shape == change.shape {
        return Effect::Row { row, fields };
    }
    let place = |name: &String| model.shape.fields.iter().position(|f| f == name);
    let values = change.shape.fields.iter().zip(&change.row);
    let row = values.map(|(name, own)| place(name).map_or_else(|| own.clone(), |i| row[i].clone())).collect();
    let fields = fields.map(|written| {
        let wrote = |(own, name): (u16, &String)| match place(name) {
            Some(i) => written.iter().any(|&f| usize::from(f) == i).then_some(own),
            // This release knows nothing of it: it is as its author left it.
            None => change.fields.as_ref().is_none_or(|fields| fields.contains(&own)).then_some(own),
        };
        (0..).zip(&change.shape.fields).filter_map(wrote).collect()
    });
    Effect::Row { row, fields }
}

/// The record in the log.
struct Known<'c> {
    row: Option<Vec<Value>>,
    since: Vec<(Author, bool, Did)>,
    may_be_forgotten: bool,
    change: &'c Change,
}

enum Did {
    Delete,
    All,
    Fields(Vec<u16>),
}

impl<'c> Known<'c> {
    fn read(
        tx: &Tx<'_>,
        lookup: &mut Lookup,
        number: i64,
        change: &'c Change,
        group: &Group,
        sight: &Sight,
    ) -> Result<Self, Error> {
        let model = tx.models.iter().find(|m| m.descriptor.id == change.shape.model);
        let shape = model.map_or(&change.shape, |m| &m.shape);
        let mut since = Vec::new();
        // The last of them says what stands.
        let mut last: Option<(i64, i64, String)> = None;
        let mut statement = tx.conn.prepare_cached(
            "SELECT seq, kind, n, coalesce(rank, stamp), layout, fields, data FROM sync_entry
             WHERE model = ?1 AND record = ?2 AND seq > ?3 AND kind IN (1, 2) ORDER BY seq",
        )?;
        let forgets = inject::is_off(Safeguard::Tombstone);
        let mut rows = statement.query(params![number, change.record, group.base.seq.0])?;
        while let Some(entry) = rows.next()? {
            let seq = Seq(entry.get(0)?);
            let (kind, layout): (i64, i64) = (entry.get(1)?, entry.get(4)?);
            if forgets && kind == 2 {
                continue;
            }
            let by = lookup.writer(tx, seq, entry.get::<_, Option<u64>>(2)?, entry.get(3)?)?;
            let did = if kind == 2 {
                Did::Delete
            } else {
                let layout = Arc::clone(lookup.layouts.get(tx.conn, layout)?);
                let fields = lookup.layouts.fields(&layout, entry.get_ref(5)?)?;
                fields.map_or(Did::All, |fields| Did::Fields(indices_in(shape, &layout, &fields)))
            };
            // Of its own origin all that is before it in the log: that is of its life. What a cascade did is seen by who has
            // seen what it came of, also within a group.
            let seen = by.origin == group.origin || sight.covers(by.origin, by.n);
            since.push((by, seen, did));
            last = Some((kind, layout, entry.get(6)?));
        }
        drop(rows);
        let said = match last {
            Some(last) => Some(said_as(tx.conn, &mut lookup.layouts, &change.record, last)?),
            None => last_logged(tx.conn, &mut lookup.layouts, number, &change.record)?,
        };
        lookup.has_entry = said.is_some();
        let fill = |i: usize| model.and_then(|m| m.fills.get(i)).cloned().unwrap_or_default();
        let row = match said {
            Some(said) if said.shape == *shape => said.row,
            Some(said) => said.row_as(shape).map(|row| {
                row.into_iter().enumerate().map(|(i, v)| v.cloned().unwrap_or_else(|| fill(i))).collect()
            }),
            None => None,
        };
        let has_tombstone = matches!(since.last(), Some((_, _, Did::Delete)));
        let may_be_forgotten = row.is_none() && !has_tombstone && group.base.seq.0 < gc_horizon(tx)?;
        Ok(Self { row, since, may_be_forgotten, change })
    }

    /// Whether a decision is about what is decided already, or about a conflict whose record was written since by somebody
    /// whose change the person had not seen: then it goes on waiting, and is shown as it is now. About a conflict that the log
    /// does not have, since the two met in another order, it is not: what was chosen is written like any other change.
    fn is_too_late(&self, tx: &Tx<'_>, decision: Decision) -> Result<bool, Error> {
        let id = match decision {
            Decision::Resolves(id) => id,
            Decision::Retries(id) | Decision::Discards(id) => {
                let waits = "SELECT 1 FROM sync_dead_letter WHERE id = ?1 AND decided IS NULL";
                return Ok(!tx.conn.prepare_cached(waits)?.exists([id.as_bytes()])?);
            }
        };
        let found: Option<(String, bool)> = tx
            .conn
            .prepare_cached(
                "SELECT field, decided IS NOT NULL FROM sync_conflict WHERE id = ?1 ORDER BY decided IS NOT NULL LIMIT 1",
            )?
            .query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let field = match found {
            None => return Ok(false),
            Some((_, true)) => return Ok(true),
            Some((field, false)) => field,
        };
        let model = tx.models.iter().find(|m| m.descriptor.id == self.change.shape.model);
        let at = model.and_then(|m| m.shape.fields.iter().position(|f| *f == field));
        let touches = |did: &Did| match (did, at) {
            (Did::Fields(fields), Some(at)) => fields.iter().any(|&f| usize::from(f) == at),
            _ => true,
        };
        Ok(self.since.iter().any(|(_, seen, did)| !seen && touches(did)))
    }

    fn written(&self) -> Vec<Written<'_>> {
        let wrote = |did| match did {
            &Did::Delete => Wrote::Nothing,
            &Did::All => Wrote::All,
            Did::Fields(fields) => Wrote::Fields(fields),
        };
        self.since.iter().map(|(by, seen, did)| Written { by: *by, seen: *seen, wrote: wrote(did) }).collect()
    }

    /// A row of the change in the model's fields: what its author's release did not have is what stands, or the fill.
    fn in_fields_of<'r>(&self, model: &Model, shape: &Arc<Shape>, row: &'r [Value]) -> Cow<'r, [Value]> {
        if model.shape == *shape || self.change.kind == EntryKind::Delete {
            return Cow::Borrowed(row);
        }
        let standing = self.row.as_ref().unwrap_or(&model.fills);
        let fields = model.shape.fields.iter().zip(standing);
        let value = |(name, stands): (&String, &Value)| match shape.fields.iter().position(|f| f == name) {
            Some(i) => row[i].clone(),
            None => stands.clone(),
        };
        fields.map(value).collect()
    }
}

fn indices_in(shape: &Arc<Shape>, layout: &Arc<Shape>, fields: &[u16]) -> Vec<u16> {
    if layout == shape {
        return fields.to_vec();
    }
    let name = |field: &u16| layout.fields.get(usize::from(*field));
    let place =
        |name: &String| shape.fields.iter().position(|f| f == name).and_then(|i| u16::try_from(i).ok());
    fields.iter().filter_map(name).filter_map(place).collect()
}

/// Below this seq deletions may be forgotten.
fn gc_horizon(tx: &Tx<'_>) -> Result<u64, Error> {
    let mut statement = tx.conn.prepare_cached("SELECT gc_horizon FROM sync_replica WHERE id = 1")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

//! Decide: what a person says of a conflict or of a dead letter becomes a change of this device.
//!
//! It is written to the table here at once, like any other write of the application, and goes the way of every change:
//! on the leader into the log, elsewhere into pending. The leader looks at it once more when it is sequenced: a conflict
//! that was decided or written over meanwhile is not decided twice.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    apply::Writers,
    conflict::{self, Choice, Conflict, ConflictState},
    engine::Driver,
    entry::{Change, Decision, EntryKind},
    error::Error,
    log::ROW_MAX,
    record::RecordId,
    row::Row,
    seal::{self, Made},
    store::{Mode, Model, Tx},
    tree,
    value::Value,
};

mod letters;

pub(crate) use letters::{discard, retry};

/// Makes a decision about `what`, in a transaction of its own in which the database enforces its foreign keys.
pub(crate) fn decide(
    driver: &mut Driver,
    what: &str,
    step: impl FnOnce(&mut Tx<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    driver.enforcing(step).map_err(|error| not_taken(what, error))?;
    driver.publish()
}

/// Decides a conflict.
pub(crate) fn resolve(tx: &mut Tx<'_>, id: Uuid, choice: &Choice) -> Result<(), Error> {
    let what = || format!("conflict {id}");
    seal::seal_all(tx)?;
    let found = conflict::by_id(tx.conn, tx.models, id)?
        .ok_or_else(|| not_decided(what(), "this device knows no such conflict", "List them again"))?;
    let Conflict { state, being_decided, field, .. } = &found.conflict;
    if *being_decided || !matches!(state, ConflictState::Auto | ConflictState::Open) {
        return Err(not_decided(what(), "it is decided already", "List the conflicts again"));
    }
    let model = model_of(tx, &found.change, &what())?;
    let current = model.row(tx.conn, &found.change.key_in(&model.shape))?;
    let target = match choice {
        Choice::Merged(row) => merged(model, &found.change.record, current.as_deref(), row)
            .map_err(|(reason, remedy)| not_decided(what(), &reason, &remedy))?,
        side => {
            let version = if *side == Choice::Local { &found.conflict.local } else { &found.conflict.remote };
            match (&version.row, field, &current) {
                (None, _, _) => None,
                // It was deleted here, and nothing is to be otherwise.
                (_, Some(_), None) if *side == Choice::Local && *state == ConflictState::Open => None,
                (Some(row), Some(field), Some(current)) => Some(with_field(model, current, row, field)),
                (Some(row), _, _) => Some(chosen(model, current.as_deref(), row)),
            }
        }
    };
    let change = change_to(model, &found.change, current, target, Decision::Resolves(id), tx.world.now());
    make(tx, change, what())
}

fn not_decided(what: String, reason: &str, remedy: &str) -> Error {
    Error::NotDecided { what, reason: reason.to_owned(), remedy: remedy.to_owned() }
}

fn model_of<'m>(tx: &Tx<'m>, change: &Change, what: &str) -> Result<&'m Model, Error> {
    tx.models.iter().find(|m| m.descriptor.id == change.shape.model).ok_or_else(|| {
        let reason = format!("its model `{}` is not registered here", change.shape.model);
        not_decided(
            what.to_owned(),
            &reason,
            "Register it with the library's builder, or decide on another device",
        )
    })
}

/// The row as it is, with one field of another.
fn with_field(model: &Model, current: &[Value], row: &Row, field: &str) -> Vec<Value> {
    let mut target = current.to_vec();
    if let (Some(i), Some(value)) = (model.shape.fields.iter().position(|f| f == field), row.get(field)) {
        target[i] = value.clone();
    }
    target
}

/// A whole row in the model's fields; what it does not hold is as it is, or the model's fill.
fn filled(model: &Model, current: Option<&[Value]>, row: &Row) -> Vec<Value> {
    let rest = current.unwrap_or(&model.fills);
    let value = |(name, rest): (&String, &Value)| row.get(name).unwrap_or(rest).clone();
    model.shape.fields.iter().zip(rest).map(value).collect()
}

/// A whole row that was chosen instead of another. What has a reducer was never in conflict: it is as it is.
fn chosen(model: &Model, current: Option<&[Value]>, row: &Row) -> Vec<Value> {
    let mut target = filled(model, current, row);
    for ((value, field), now) in
        target.iter_mut().zip(&model.descriptor.fields).zip(current.unwrap_or_default())
    {
        if field.reducer.is_some() {
            value.clone_from(now);
        }
    }
    target
}

type Refused = (String, String);

/// The row with the values that a person gave, after a look whether they can be meant.
fn merged(
    model: &Model,
    record: &RecordId,
    current: Option<&[Value]>,
    row: &Row,
) -> Result<Option<Vec<Value>>, Refused> {
    let fields = &model.shape.fields;
    if let Some((unknown, _)) = row.iter().find(|(name, _)| !fields.iter().any(|f| f == name)) {
        return Err((
            format!("model `{}` has no synced column `{unknown}`", model.descriptor.id),
            format!("Name some of: {}", fields.join(", ")),
        ));
    }
    let missing = fields.iter().find(|name| row.get(name).is_none());
    if let (None, Some(missing)) = (current, missing) {
        return Err((
            format!("the record is gone, and the row to put in its place has no `{missing}`"),
            "Give the whole row".to_owned(),
        ));
    }
    let target = filled(model, current, row);
    if model.shape.record_id(&target) != *record {
        return Err((
            format!("the row is another record's, {}", model.shape.record_id(&target)),
            "Leave the key as it is".to_owned(),
        ));
    }
    Ok(Some(target))
}

/// The change that makes `target` of `current`; one that only decides where they are the same.
fn change_to(
    model: &Model,
    found: &Change,
    current: Option<Vec<Value>>,
    target: Option<Vec<Value>>,
    decision: Decision,
    at: i64,
) -> Change {
    let base = decides_only(found, decision, at);
    let existed = current.is_some();
    match (current, target) {
        (current, target) if current == target => base,
        (current, None) => {
            let mut row = vec![Value::Null; model.shape.fields.len()];
            for (&i, value) in model.shape.key.iter().zip(found.key_in(&model.shape)) {
                row[i] = value;
            }
            let shape = Arc::clone(&model.shape);
            Change { shape, kind: EntryKind::Delete, existed, row, before: current, ..base }
        }
        (current, Some(row)) => {
            let differs = |before: &Vec<Value>| {
                let fields = (0..).zip(before.iter().zip(&row)).filter(|(_, (a, b))| a != b);
                fields.map(|(i, _)| i).collect()
            };
            let fields = current.as_ref().map(differs);
            let shape = Arc::clone(&model.shape);
            Change { shape, kind: EntryKind::Upsert, existed, fields, row, before: current, ..base }
        }
    }
}

/// A change that writes nothing.
fn decides_only(found: &Change, decision: Decision, at: i64) -> Change {
    let mut row = found.row.clone();
    for (i, value) in row.iter_mut().enumerate() {
        if !found.shape.key.contains(&i) {
            *value = Value::Null;
        }
    }
    Change {
        shape: Arc::clone(&found.shape),
        record: found.record.clone(),
        kind: EntryKind::Noop,
        existed: true,
        fields: None,
        row,
        before: None,
        stamp: 0,
        rank: None,
        at,
        mark: None,
        actor: None,
        decides: Some(decision),
        outcome: None,
    }
}

/// Writes the change to its table and seals it, with what the database cascades.
fn make(tx: &mut Tx<'_>, change: Change, what: String) -> Result<(), Error> {
    let mut made = Made::begin(tx)?;
    let Written { before, derived } =
        write(tx, &mut Writers::default(), &change).map_err(|error| not_taken(&what, error))?;
    if change.kind != EntryKind::Noop && tree::closes_circle(tx, &change, before.as_ref())? {
        return Err(not_decided(what, "the record would be above itself in its tree", MOVE_FIRST));
    }
    for change in std::iter::once(change).chain(derived) {
        made.put(tx, change)?;
    }
    made.finish(tx)
}

/// What the database did along with a change that was written.
#[derive(Default)]
struct Written {
    /// The record's parent before it, in a tree.
    before: Option<Value>,
    /// What it cascaded.
    derived: Vec<Change>,
}

/// Writes the change to its table. What the database does not take is its error; who asked says of either what was not decided
/// ([`not_taken`]).
fn write<'c>(tx: &Tx<'c>, writers: &mut Writers<'c>, change: &Change) -> Result<Written, Error> {
    let size = seal::size(&change.row);
    if size > ROW_MAX {
        let reason =
            format!("its row of {size} bytes would be over the limit of {ROW_MAX} bytes for one row");
        return Err(not_decided(String::new(), &reason, "Give smaller values"));
    }
    if change.kind == EntryKind::Noop {
        return Ok(Written::default());
    }
    let Some(writer) = writers.of(tx, &change.shape)? else { return Ok(Written::default()) };
    tx.set_mode(Mode::Derived)?;
    let before = tree::parent(tx, change)?;
    writer.replace(change)?;
    let derived = seal::derived(tx, &change.shape.model, &change.record)?;
    tx.set_mode(Mode::Capture)?;
    Ok(Written { before, derived })
}

/// What to do where a record would be above itself.
const MOVE_FIRST: &str = "Move what it would be in first, or decide otherwise";

/// Says what was not decided, also of a constraint, which may be met when all is written only.
fn not_taken(what: &str, error: Error) -> Error {
    match error {
        Error::Database { source, .. }
            if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
        {
            not_decided(
                what.to_owned(),
                &format!("the database here does not take it ({source})"),
                CHANGE_FIRST,
            )
        }
        Error::NotDecided { reason, remedy, .. } => not_decided(what.to_owned(), &reason, &remedy),
        other => other,
    }
}

/// What to do where the database does not take something.
const CHANGE_FIRST: &str = "Change what is in its way first, or decide otherwise";

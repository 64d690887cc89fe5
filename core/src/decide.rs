//! Decide: what a person says of a conflict or of a dead letter becomes a change of this device.
//!
//! It is written to the table here at once, like any other write of the application, and goes the way of every change:
//! on the leader into the log, elsewhere into pending. The leader looks at it once more when it is sequenced: a conflict
//! that was decided or written over meanwhile is not decided twice.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    apply::Writer,
    conflict::{self, Choice, Conflict, ConflictState},
    dead_letter::{self, DeadLetter, DeadLetterState},
    engine::Driver,
    entry::{Change, Decision, EntryKind},
    error::Error,
    log::ROW_MAX,
    record::RecordId,
    resolve,
    row::Row,
    seal,
    store::{Mode, Model, Tx},
    tree,
    value::Value,
};

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

/// Tries a dead letter once more, with these of its values changed.
pub(crate) fn retry(tx: &mut Tx<'_>, id: Uuid, edited: &Row) -> Result<(), Error> {
    let what = || format!("dead letter {id}");
    let found = waiting(tx, id, &what())?;
    let model = model_of(tx, &found.change, &what())?;
    let current = model.row(tx.conn, &found.change.key_in(&model.shape))?;
    let target = match found.change.kind {
        EntryKind::Delete => None,
        EntryKind::Upsert => {
            let Change { shape, row, fields, .. } = &found.change;
            // Of an update, what it changed; the rest of the record has gone on.
            let mut values = Row::in_shape(shape, row, fields.as_deref().filter(|_| current.is_some()));
            if let Some(current) = &current {
                reduce_into(&mut values, model, &found.change, current);
            }
            edited.iter().for_each(|(name, value)| values.set(name, value.clone()));
            merged(model, &found.change.record, current.as_deref(), &values)
                .map_err(|(reason, remedy)| not_decided(what(), &reason, &remedy))?
        }
        _ => current.clone(),
    };
    let change = change_to(model, &found.change, current, target, Decision::Retries(id), tx.world.now());
    make(tx, change, what())
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

/// Gives a dead letter up. Its values stay in the log.
pub(crate) fn discard(tx: &mut Tx<'_>, id: Uuid) -> Result<(), Error> {
    let what = || format!("dead letter {id}");
    let found = waiting(tx, id, &what())?;
    let at = tx.world.now();
    make(tx, decides_only(&found.change, Decision::Discards(id), at), what())
}

fn waiting(tx: &mut Tx<'_>, id: Uuid, what: &str) -> Result<dead_letter::Found, Error> {
    seal::seal_all(tx)?;
    let found = dead_letter::by_id(tx.conn, id)?.ok_or_else(|| {
        not_decided(what.to_owned(), "this device knows no such dead letter", "List them again")
    })?;
    let DeadLetter { state, being_decided, .. } = &found.letter;
    if *being_decided || *state != DeadLetterState::Open {
        return Err(not_decided(what.to_owned(), "it is decided already", "List the dead letters again"));
    }
    Ok(found)
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
    let mut changes = vec![change];
    let change = &changes[0];
    let size = seal::size(&change.row);
    if size > ROW_MAX {
        let reason =
            format!("its row of {size} bytes would be over the limit of {ROW_MAX} bytes for one row");
        return Err(not_decided(what, &reason, "Give smaller values"));
    }
    if change.kind != EntryKind::Noop
        && let Some(mut writer) = Writer::new(tx, &change.shape)?
    {
        tx.set_mode(Mode::Derived)?;
        let parent = tree::parent(tx, change)?;
        writer.replace(change).map_err(|error| not_taken(&what, error))?;
        if tree::closes_circle(tx, change, parent.as_ref())? {
            let remedy = "Move what it would be in first, or decide otherwise";
            return Err(not_decided(what, "the record would be above itself in its tree", remedy));
        }
        let derived = seal::derived(tx, &change.shape.model, &change.record)?;
        tx.set_mode(Mode::Capture)?;
        changes.extend(derived);
    }
    seal::seal_changes(tx, changes)
}

/// Says of a constraint, which may be met when all is written only, what was not decided.
fn not_taken(what: &str, error: Error) -> Error {
    match error {
        Error::Database { source, .. }
            if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
        {
            not_decided(
                what.to_owned(),
                &format!("the database here does not take it ({source})"),
                "Change what is in its way first, or decide otherwise",
            )
        }
        other => other,
    }
}

//! Below: what a device's database deleted along with a record whose deletion did not stand.
//!
//! A cascade is captured as deletions of their own, which the leader cannot tell from those that somebody meant. Where the
//! record that they belonged to stays, they would leave it without what was in it: so they stay too, and a conflict
//! record says so.

use std::collections::HashSet;

use crate::{
    entry::Change,
    error::Error,
    id::{OriginSeq, Seq},
    layout::{LastSaid, Layouts, logged_before},
    store::{Model, Tx},
    value::Value,
};

/// Which of the deletions `gone` were of rows that referred, in the log up to `before`, to one of the records that `stays`
/// although its deletion is in the same group.
pub(crate) fn found(
    tx: &Tx<'_>,
    before: Seq,
    stays: &[Change],
    gone: &[(OriginSeq, Change)],
) -> Result<Vec<OriginSeq>, Error> {
    let mut kept: HashSet<(usize, Vec<String>)> = HashSet::new();
    for change in stays {
        let Some((index, model)) = model_of(tx, change) else { continue };
        let key = change.key_in(&model.shape);
        if model.holds(tx.conn, &key)? {
            kept.insert((index, texts(&key)));
        }
    }
    let mut found = Vec::new();
    if kept.is_empty() {
        return Ok(found);
    }
    let mut layouts = Layouts::default();
    for (n, change) in gone {
        let Some((_, model)) = model_of(tx, change) else { continue };
        let Some(said) = logged_before(tx.conn, &mut layouts, change, before.next())? else { continue };
        if parents(tx, model, &said).any(|parent| kept.contains(&parent)) {
            found.push(*n);
        }
    }
    Ok(found)
}

fn model_of<'m>(tx: &Tx<'m>, change: &Change) -> Option<(usize, &'m Model)> {
    tx.models.iter().enumerate().find(|(_, model)| model.descriptor.id == change.shape.model)
}

/// Values as something that can be looked up.
fn texts(values: &[Value]) -> Vec<String> {
    let text = |value: &Value| {
        let mut text = String::new();
        value.write_json(&mut text);
        text
    };
    values.iter().map(text).collect()
}

/// The synced records that a row refers to by their keys.
fn parents<'p>(
    tx: &Tx<'p>,
    model: &'p Model,
    said: &'p LastSaid,
) -> impl Iterator<Item = (usize, Vec<String>)> + 'p {
    let models = tx.models;
    model.references.parents().iter().filter_map(move |parent| {
        let row = said.row.as_ref()?;
        let is_table = |m: &Model| m.descriptor.table.eq_ignore_ascii_case(&parent.table);
        let index = models.iter().position(is_table)?;
        let shape = &models[index].shape;
        let value = |&i: &usize| {
            let at = parent.to.iter().position(|to| to.eq_ignore_ascii_case(&shape.fields[i]))?;
            let field = said.shape.fields.iter().position(|f| f.eq_ignore_ascii_case(&parent.from[at]))?;
            row.get(field).cloned()
        };
        let key: Vec<Value> = shape.key.iter().map(value).collect::<Option<_>>()?;
        Some((index, texts(&key)))
    })
}

//! How a row stands in the log: a JSON array, and beside it the number of the layout that names its fields.
//!
//! A layout is a [`Shape`] kept in `sync_layout`. Rows of models that this release does not know, or knows otherwise,
//! are read by the layout they came with.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension, params, types::ValueRef};

use crate::{
    capture::{json_names, names_from_json, write_names},
    entry::{Body, Change, Entry, EntryKind, Fields, Shape},
    error::Error,
    id::Seq,
    outcome,
    record::RecordId,
    row_text::{self, Parts},
    value::Value,
};

/// What the log keeps of a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogRow<'t> {
    /// The row's text.
    pub(crate) text: &'t str,
    /// Names of the fields that it wrote; `None` for all.
    pub(crate) fields: Option<&'t str>,
    /// What its author made of the record, where the entry came to something else.
    pub(crate) authored: Option<&'t str>,
}

/// What the log keeps of changes, worked out beside the writer: one text for all of them, since rows come by the hundred
/// thousand.
#[derive(Debug, Default)]
pub(crate) struct LogRows {
    text: String,
    rows: Vec<Ends>,
}

/// Where a row begins in the text, and where its parts end. What is not there is empty.
#[derive(Clone, Copy, Debug)]
struct Ends {
    begin: usize,
    text: usize,
    fields: usize,
    authored: usize,
}

impl LogRows {
    /// Of the entries of a batch, in their order; of what is no change, nothing.
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let sizes = entries.iter().map(|entry| match &entry.body {
            Body::Change(change) => change.row.iter().map(Value::json_size).sum::<usize>() + 32,
            _ => 0,
        });
        let (text, rows) = (String::with_capacity(sizes.sum()), Vec::with_capacity(entries.len()));
        let mut all = Self { text, rows };
        for entry in entries {
            match &entry.body {
                Body::Change(change) => all.push(change),
                _ => all.end(all.text.len(), all.text.len(), all.text.len()),
            }
        }
        all
    }

    /// Of one change.
    pub(crate) fn set(&mut self, change: &Change) -> LogRow<'_> {
        self.text.clear();
        self.rows.clear();
        self.push(change);
        self.get(0)
    }

    fn push(&mut self, change: &Change) {
        let begin = self.text.len();
        change.shape.write_row(change.effect(), &change.record, change.row_after(), &mut self.text);
        let text = self.text.len();
        if let Some(fields) = change.written() {
            change.shape.write_field_names(fields, &mut self.text);
        }
        let fields = self.text.len();
        outcome::write_json(change, &mut self.text);
        self.end(begin, text, fields);
    }

    fn end(&mut self, begin: usize, text: usize, fields: usize) {
        self.rows.push(Ends { begin, text, fields, authored: self.text.len() });
    }

    /// That of the change so many behind the first.
    pub(crate) fn get(&self, index: usize) -> LogRow<'_> {
        let Ends { begin, text, fields, authored } = self.rows[index];
        let part = |from, to| Some(&self.text[from..to]).filter(|part| !part.is_empty());
        LogRow { text: &self.text[begin..text], fields: part(text, fields), authored: part(fields, authored) }
    }

    /// Forgets the first ones.
    pub(crate) fn forget_first(&mut self, count: usize) {
        self.rows.drain(..count);
    }
}

/// The number of a shape's layout, made if there is none.
fn layout_row(conn: &Connection, shape: &Shape) -> Result<i64, Error> {
    let fields = json_names(&shape.fields);
    let key = serde_json::json!(shape.key).to_string();
    let uuids: Vec<usize> = (0..shape.uuids.len()).filter(|&i| shape.uuids[i]).collect();
    let uuids = serde_json::json!(uuids).to_string();
    let known = conn
        .prepare_cached(
            "SELECT id FROM sync_layout WHERE model = ?1 AND fields = ?2 AND key = ?3 AND uuids = ?4",
        )?
        .query_row([&shape.model, &fields, &key, &uuids], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    conn.prepare_cached("INSERT INTO sync_layout (model, fields, key, uuids) VALUES (?1, ?2, ?3, ?4)")?
        .execute([&shape.model, &fields, &key, &uuids])?;
    Ok(conn.last_insert_rowid())
}

/// The numbers under which the log knows a shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbered {
    pub(crate) model: i64,
    pub(crate) layout: i64,
}

/// The numbers of the shapes that were met, as long as no transaction that made one is rolled back.
#[derive(Default)]
pub(crate) struct Numbers(RefCell<Vec<(Arc<Shape>, Numbered)>>);

/// Shapes whose numbers are kept at hand.
const NUMBERS_MAX: usize = 256;

impl Numbers {
    /// The numbers of a shape, made if there are none.
    pub(crate) fn of(&self, conn: &Connection, shape: &Arc<Shape>) -> Result<Numbered, Error> {
        if let Some(known) = self.known(shape) {
            return Ok(known);
        }
        let numbered = Numbered { model: model_row(conn, &shape.model)?, layout: layout_row(conn, shape)? };
        let mut known = self.0.borrow_mut();
        if known.len() >= NUMBERS_MAX {
            known.clear();
        }
        known.push((Arc::clone(shape), numbered));
        Ok(numbered)
    }

    /// By the shape itself, if it is one that was met, else by one like it.
    fn known(&self, shape: &Arc<Shape>) -> Option<Numbered> {
        let known = self.0.borrow();
        let itself = known.iter().find(|(met, _)| Arc::ptr_eq(met, shape));
        itself.or_else(|| known.iter().find(|(met, _)| met == shape)).map(|(_, numbered)| *numbered)
    }

    pub(crate) fn forget(&self) {
        self.0.borrow_mut().clear();
    }
}

/// The number of a model, made if there is none.
pub(crate) fn model_row(conn: &Connection, model: &str) -> Result<i64, Error> {
    let known = conn
        .prepare_cached("SELECT id FROM sync_model WHERE name = ?1")?
        .query_row([model], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    conn.prepare_cached("INSERT INTO sync_model (name) VALUES (?1)")?.execute([model])?;
    Ok(conn.last_insert_rowid())
}

/// The layouts that were met, by number.
#[derive(Default)]
pub(crate) struct Layouts {
    met: HashMap<i64, Arc<Shape>, foldhash::fast::RandomState>,
    /// Changed fields as they were written, the latest last: neighbours mostly changed the same.
    fields: Vec<(Arc<Shape>, Vec<u8>, Fields)>,
}

/// Lists of changed fields kept at hand.
const FIELDS_MAX: usize = 8;

impl Layouts {
    pub(crate) fn get(&mut self, conn: &Connection, layout: i64) -> Result<&Arc<Shape>, Error> {
        Ok(match self.met.entry(layout) {
            hash_map::Entry::Occupied(met) => met.into_mut(),
            hash_map::Entry::Vacant(place) => place.insert(load(conn, layout)?.shared()),
        })
    }

    /// Indices of the changed fields of a row of this shape, of the column that names them; `None` for all.
    pub(crate) fn fields(
        &mut self,
        shape: &Arc<Shape>,
        names: ValueRef<'_>,
    ) -> Result<Option<Fields>, Error> {
        let ValueRef::Text(names) = names else { return Ok(None) };
        let is_this =
            |(of, text, _): &&(Arc<Shape>, Vec<u8>, Fields)| text == names && Arc::ptr_eq(of, shape);
        if let Some((.., fields)) = self.fields.iter().rev().find(is_this) {
            return Ok(Some(fields.clone()));
        }
        let fields = shape.changed_fields(names)?;
        if self.fields.len() >= FIELDS_MAX {
            self.fields.remove(0);
        }
        self.fields.push((Arc::clone(shape), names.to_vec(), fields.clone()));
        Ok(Some(fields))
    }
}

fn load(conn: &Connection, layout: i64) -> Result<Shape, Error> {
    let damaged = || Error::Damaged(format!("layout {layout} is missing or damaged"));
    let row: Option<(String, String, String, String)> = conn
        .prepare_cached("SELECT model, fields, key, uuids FROM sync_layout WHERE id = ?1")?
        .query_row([layout], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let (model, fields, key, uuids) = row.ok_or_else(damaged)?;
    let fields = names_from_json(&fields)?;
    let key: Vec<usize> = serde_json::from_str(&key).map_err(|_| damaged())?;
    let marked: Vec<usize> = serde_json::from_str(&uuids).map_err(|_| damaged())?;
    if key.is_empty() || key.iter().any(|&i| i >= fields.len()) {
        return Err(damaged());
    }
    let uuids = (0..fields.len()).map(|i| marked.contains(&i)).collect();
    Ok(Shape { model, fields, key, uuids })
}

impl Shape {
    /// Appends the text of a row of this record; of its key only, where it is not one that stands after an upsert. A key that
    /// the record's id says is not said again: `null` stands in its place, which no UUID is.
    pub(crate) fn write_row(&self, kind: EntryKind, record: &RecordId, row: &[Value], out: &mut String) {
        let said = self.uuid_key().filter(|&key| record.is_uuid(&row[key]));
        let value = |i: usize| (if said == Some(i) { &Value::Null } else { &row[i] }, self.uuids[i]);
        if kind == EntryKind::Upsert {
            row_text::write((0..self.uuids.len()).map(value), out);
        } else {
            row_text::write(self.key.iter().copied().map(value), out);
        }
    }

    /// The field that is the key by itself, if it is one of UUIDs.
    fn uuid_key(&self) -> Option<usize> {
        match *self.key.as_slice() {
            [key] if self.uuids[key] => Some(key),
            _ => None,
        }
    }

    /// The names of changed fields, as the sync tables keep them; [`Layouts::fields`] reads them back.
    pub(crate) fn field_names(&self, fields: &[u16]) -> String {
        let mut names = String::with_capacity(32);
        self.write_field_names(fields, &mut names);
        names
    }

    /// Appends [`Shape::field_names`].
    pub(crate) fn write_field_names(&self, fields: &[u16], out: &mut String) {
        write_names(fields.iter().filter_map(|f| self.fields.get(usize::from(*f))), out);
    }

    fn changed_fields(&self, names: &[u8]) -> Result<Fields, Error> {
        let index = |name: &str| -> Result<u16, Error> {
            let at = self.fields.iter().position(|f| f == name).and_then(|i| u16::try_from(i).ok());
            at.ok_or_else(|| Error::Damaged(format!("changed field `{name}` is not in its row")))
        };
        names_from_json(&String::from_utf8_lossy(names))?.iter().map(|name| index(name)).collect()
    }

    /// Writes values of these fields, in their order, as [`Shape::write_row`] writes a row.
    pub(crate) fn write_values<'v>(
        &self,
        fields: &[u16],
        values: impl Iterator<Item = &'v Value>,
        out: &mut String,
    ) {
        row_text::write(values.zip(self.uuids_of(fields)), out);
    }

    /// Reads [`Shape::write_values`] back, or says what is wrong.
    pub(crate) fn read_values(&self, fields: &[u16], text: &str) -> Result<Vec<Value>, String> {
        row_text::read(text, &self.uuids_of(fields))
    }

    fn uuids_of(&self, fields: &[u16]) -> Vec<bool> {
        fields.iter().map(|&f| self.uuids.get(usize::from(f)).copied().unwrap_or(false)).collect()
    }

    /// Reads [`Shape::write_row`] back; where that wrote the key only, the other fields are NULL.
    pub(crate) fn read_row(
        &self,
        kind: EntryKind,
        record: &RecordId,
        text: &str,
    ) -> Result<Vec<Value>, Error> {
        let mut row;
        if kind == EntryKind::Upsert {
            row = row_text::read(text, &self.uuids).map_err(|e| self.damaged(&e))?;
        } else {
            let marked: Vec<bool> = self.key.iter().map(|&i| self.uuids[i]).collect();
            let key = row_text::read(text, &marked).map_err(|e| self.damaged(&e))?;
            row = vec![Value::Null; self.fields.len()];
            for (&i, value) in self.key.iter().zip(key) {
                row[i] = value;
            }
        }
        self.say_key(record, &mut row);
        Ok(row)
    }

    /// [`Shape::read_row`] of a row after an upsert whose text was taken apart.
    pub(crate) fn row_of(&self, record: &RecordId, parts: Parts<'_>) -> Result<Vec<Value>, Error> {
        let mut row = parts.values(&self.uuids).map_err(|e| self.damaged(&e))?;
        self.say_key(record, &mut row);
        Ok(row)
    }

    fn say_key(&self, record: &RecordId, row: &mut [Value]) {
        if let Some((key, uuid)) = self.said_key(record)
            && row[key] == Value::Null
        {
            row[key] = Value::Blob(uuid.into());
        }
    }

    /// The field, and its value, for which a row's text may have `null`, since the record's id says it.
    pub(crate) fn said_key<'r>(&self, record: &'r RecordId) -> Option<(usize, &'r [u8])> {
        self.uuid_key().zip(record.as_uuid())
    }

    /// Of a row's text that cannot be read.
    pub(crate) fn damaged(&self, what: &str) -> Error {
        Error::Damaged(format!("a row of model `{}`: {what}", self.model))
    }
}

/// What the log, or pending, last said of a record.
pub(crate) struct LastSaid {
    pub(crate) shape: Arc<Shape>,
    /// The row; `None` if it is gone.
    pub(crate) row: Option<Vec<Value>>,
}

/// What pending, else the log, last said of a record; `None` if neither knows it.
pub(crate) fn last_said(
    conn: &Connection,
    layouts: &mut Layouts,
    model: i64,
    record: &RecordId,
) -> Result<Option<LastSaid>, Error> {
    const PENDING: &str = "SELECT kind, layout, data FROM sync_pending
        WHERE model = ?1 AND record = ?2 AND kind IN (1, 2) ORDER BY id DESC LIMIT 1";
    match said(conn, layouts, PENDING, model, record)? {
        Some(said) => Ok(Some(said)),
        None => last_logged(conn, layouts, model, record),
    }
}

/// What the log last said of a record, pending aside; `None` if it does not know it.
pub(crate) fn last_logged(
    conn: &Connection,
    layouts: &mut Layouts,
    model: i64,
    record: &RecordId,
) -> Result<Option<LastSaid>, Error> {
    const LOG: &str = "SELECT kind, layout, data FROM sync_entry
        WHERE model = ?1 AND record = ?2 AND kind IN (1, 2) ORDER BY seq DESC LIMIT 1";
    said(conn, layouts, LOG, model, record)
}

/// What the log said of a record just before `seq`; `None` if it did not know it, other than by the image that its first
/// entry may have kept.
pub(crate) fn logged_before(
    conn: &Connection,
    layouts: &mut Layouts,
    change: &Change,
    seq: Seq,
) -> Result<Option<LastSaid>, Error> {
    const BEFORE: &str = "SELECT kind, layout, data FROM sync_entry
        WHERE model = ?1 AND record = ?2 AND kind IN (1, 2) AND seq < ?3 ORDER BY seq DESC LIMIT 1";
    const IMAGE: &str = "SELECT 1, layout, before FROM sync_entry
        WHERE model = ?1 AND record = ?2 AND seq = ?3 AND before IS NOT NULL";
    for sql in [BEFORE, IMAGE] {
        let model: Option<i64> = conn
            .prepare_cached("SELECT id FROM sync_model WHERE name = ?1")?
            .query_row([&change.shape.model], |row| row.get(0))
            .optional()?;
        let said: Option<(i64, i64, String)> = conn
            .prepare_cached(sql)?
            .query_row(params![model, change.record, seq.0], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()?;
        if let Some(said) = said {
            return said_as(conn, layouts, &change.record, said).map(Some);
        }
    }
    Ok(None)
}

fn said(
    conn: &Connection,
    layouts: &mut Layouts,
    sql: &str,
    model: i64,
    record: &RecordId,
) -> Result<Option<LastSaid>, Error> {
    let said: Option<(i64, i64, String)> = conn
        .prepare_cached(sql)?
        .query_row(params![model, record], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    said.map(|said| said_as(conn, layouts, record, said)).transpose()
}

/// What an entry or a pending change says of its record: kind, layout and row.
pub(crate) fn said_as(
    conn: &Connection,
    layouts: &mut Layouts,
    record: &RecordId,
    (kind, layout, data): (i64, i64, String),
) -> Result<LastSaid, Error> {
    let shape = Arc::clone(layouts.get(conn, layout)?);
    let row = match EntryKind::from_i64(kind) {
        Some(EntryKind::Upsert) => Some(shape.read_row(EntryKind::Upsert, record, &data)?),
        _ => None,
    };
    Ok(LastSaid { shape, row })
}

impl LastSaid {
    /// The row in the fields of another shape; a field that it does not have is `None`.
    pub(crate) fn row_as(&self, shape: &Shape) -> Option<Vec<Option<&Value>>> {
        let row = self.row.as_ref()?;
        let at = |field: &String| self.shape.fields.iter().position(|f| f == field).map(|i| &row[i]);
        Some(shape.fields.iter().map(at).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_back_as_it_was_and_says_its_key_once() {
        let text = "0190a1b2-0000-7000-8000-00000000000a";
        let uuid = || Value::Blob(uuid::Uuid::parse_str(text).expect("a UUID").into_bytes().into());
        let shape = |key: &[usize]| Shape {
            model: "file".into(),
            fields: ["id", "parent", "name"].map(String::from).to_vec(),
            key: key.to_vec(),
            uuids: vec![true, true, false],
        };
        let row = |id: Value, parent: Value| vec![id, parent, Value::Text("a".into())];
        let other = || Value::Blob([7; 16].into());
        // Whether its key is left out, where it is one that is left out.
        for (key, row, record, is_said) in [
            (&[0][..], row(uuid(), other()), text, true),
            (&[0], row(uuid(), Value::Null), text, true),
            // Another class than the record's, another record, and no UUID at all.
            (&[0], row(Value::Text(text.into()), other()), text, false),
            (&[0], row(other(), other()), text, false),
            (&[0], row(Value::Blob([1; 3].into()), other()), "x", false),
            (&[0], row(Value::Null, other()), "x", false),
            // Not one field, and none of UUIDs.
            (&[0, 1], row(uuid(), other()), "x", false),
            (&[2], row(uuid(), other()), "a", false),
        ] {
            let (shape, record) = (shape(key), RecordId::from(record));
            for kind in [EntryKind::Upsert, EntryKind::Delete] {
                let mut written = String::new();
                shape.write_row(kind, &record, &row, &mut written);
                assert_eq!(written.starts_with("[null") && row[0] != Value::Null, is_said, "{written}");
                let mut expected = row.clone();
                if kind == EntryKind::Delete {
                    let others = (0..row.len()).filter(|i| !key.contains(i));
                    others.for_each(|i| expected[i] = Value::Null);
                }
                assert_eq!(
                    shape.read_row(kind, &record, &written).expect("reads back"),
                    expected,
                    "{written}"
                );
            }
        }
    }
}

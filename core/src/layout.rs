//! How a row stands in the log: a JSON array, and beside it the number of the layout that names its fields.
//!
//! A layout is a [`Shape`] kept in `sync_layout`. Rows of models that this release does not know, or knows otherwise,
//! are read by the layout they came with.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use rusqlite::{
    Connection, OptionalExtension, ToSql, params,
    types::{ToSqlOutput, Value as SqlValue, ValueRef},
};
use uuid::Uuid;

use crate::{
    capture::{json_names, names_from_json},
    entry::{Change, EntryKind, Shape},
    error::Error,
    id::Seq,
    outcome,
    store::Model,
    value::{self, Value},
};

/// A canonical record id as the sync tables keep it: the 16 bytes of a UUID, any other text as it is.
pub(crate) struct RecordId<'r>(pub(crate) &'r str);

/// The bytes of the canonical text of a UUID. A text key may hold a UUID in other letters, which stays a text.
fn canonical_uuid(record: &str) -> Option<[u8; 16]> {
    let uuid = Uuid::try_parse(record).ok()?;
    let mut buffer = [0u8; uuid::fmt::Hyphenated::LENGTH];
    (uuid.hyphenated().encode_lower(&mut buffer) == record).then(|| uuid.into_bytes())
}

impl ToSql for RecordId<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match canonical_uuid(self.0) {
            Some(uuid) => ToSqlOutput::Owned(SqlValue::Blob(uuid.to_vec())),
            None => ToSqlOutput::Borrowed(ValueRef::Text(self.0.as_bytes())),
        })
    }
}

/// What the log keeps of a change, worked out beside the writer.
#[derive(Debug)]
pub(crate) struct LogRow {
    /// The row's text.
    pub(crate) text: String,
    /// Names of the fields that it wrote; `None` for all.
    pub(crate) fields: Option<String>,
    /// What its author made of the record, where the entry came to something else.
    pub(crate) authored: Option<String>,
    uuid: Option<[u8; 16]>,
}

impl LogRow {
    pub(crate) fn of(change: &Change) -> Self {
        let row = change.row_after();
        let mut text = String::with_capacity(row.iter().map(Value::json_size).sum::<usize>() + 2);
        change.shape.write_row(change.effect(), row, &mut text);
        let names = |fields: &[u16]| {
            json_names(fields.iter().filter_map(|f| change.shape.fields.get(usize::from(*f))))
        };
        Self {
            text,
            fields: change.written().map(names),
            authored: outcome::to_json(change),
            uuid: canonical_uuid(&change.record),
        }
    }

    /// The change's record id, as [`RecordId`] would have it.
    pub(crate) fn record<'r>(&'r self, change: &'r Change) -> ToSqlOutput<'r> {
        ToSqlOutput::Borrowed(match &self.uuid {
            Some(uuid) => ValueRef::Blob(uuid),
            None => ValueRef::Text(change.record.as_bytes()),
        })
    }
}

/// Reads what [`RecordId`] wrote.
pub(crate) fn read_record(value: ValueRef<'_>) -> Result<String, Error> {
    match value {
        ValueRef::Blob(bytes) => <[u8; 16]>::try_from(bytes).ok().map(value::uuid_text),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        _ => None,
    }
    .ok_or_else(|| Error::Damaged("a record id is neither a UUID nor a text".into()))
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
pub(crate) struct Numbers(RefCell<HashMap<Arc<Shape>, Numbered>>);

/// Shapes whose numbers are kept at hand.
const NUMBERS_MAX: usize = 1024;

impl Numbers {
    /// The numbers of a shape, made if there are none.
    pub(crate) fn of(&self, conn: &Connection, shape: &Arc<Shape>) -> Result<Numbered, Error> {
        if let Some(known) = self.0.borrow().get(shape) {
            return Ok(*known);
        }
        let numbered = Numbered { model: model_row(conn, &shape.model)?, layout: layout_row(conn, shape)? };
        let mut known = self.0.borrow_mut();
        if known.len() >= NUMBERS_MAX {
            known.clear();
        }
        known.insert(Arc::clone(shape), numbered);
        Ok(numbered)
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

/// The layouts that were met, by number. Registered models' shapes are shared.
pub(crate) struct Layouts<'m> {
    models: &'m [Model],
    met: HashMap<i64, Arc<Shape>>,
}

impl<'m> Layouts<'m> {
    pub(crate) fn new(models: &'m [Model]) -> Self {
        Self { models, met: HashMap::new() }
    }

    pub(crate) fn get(&mut self, conn: &Connection, layout: i64) -> Result<&Arc<Shape>, Error> {
        if !self.met.contains_key(&layout) {
            let shape = load(conn, layout)?;
            let registered = self.models.iter().map(|m| &m.shape).find(|s| ***s == shape);
            self.met.insert(layout, registered.map_or_else(|| Arc::new(shape), Arc::clone));
        }
        Ok(&self.met[&layout])
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
    /// Appends the text of a row; of its key only, where it is not one that stands after an upsert.
    pub(crate) fn write_row(&self, kind: EntryKind, row: &[Value], out: &mut String) {
        if kind == EntryKind::Upsert {
            value::write_array(row.iter().zip(self.uuids.iter().copied()), out);
        } else {
            value::write_array(self.key.iter().map(|&i| (&row[i], self.uuids[i])), out);
        }
    }

    /// Writes values of these fields, in their order, as [`Shape::write_row`] writes a row.
    pub(crate) fn write_values<'v>(
        &self,
        fields: &[u16],
        values: impl Iterator<Item = &'v Value>,
        out: &mut String,
    ) {
        value::write_array(values.zip(self.uuids_of(fields)), out);
    }

    /// Reads [`Shape::write_values`] back, or says what is wrong.
    pub(crate) fn read_values(&self, fields: &[u16], text: &str) -> Result<Vec<Value>, String> {
        value::read_array(text, &self.uuids_of(fields))
    }

    fn uuids_of(&self, fields: &[u16]) -> Vec<bool> {
        fields.iter().map(|&f| self.uuids.get(usize::from(f)).copied().unwrap_or(false)).collect()
    }

    /// Reads [`Shape::write_row`] back; where that wrote the key only, the other fields are NULL.
    pub(crate) fn read_row(&self, kind: EntryKind, text: &str) -> Result<Vec<Value>, Error> {
        let damaged = |e: String| Error::Damaged(format!("a row of model `{}`: {e}", self.model));
        if kind == EntryKind::Upsert {
            return value::read_array(text, &self.uuids).map_err(damaged);
        }
        let marked: Vec<bool> = self.key.iter().map(|&i| self.uuids[i]).collect();
        let key = value::read_array(text, &marked).map_err(damaged)?;
        let mut row = vec![Value::Null; self.fields.len()];
        for (&i, value) in self.key.iter().zip(key) {
            row[i] = value;
        }
        Ok(row)
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
    layouts: &mut Layouts<'_>,
    model: i64,
    record: &str,
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
    layouts: &mut Layouts<'_>,
    model: i64,
    record: &str,
) -> Result<Option<LastSaid>, Error> {
    const LOG: &str = "SELECT kind, layout, data FROM sync_entry
        WHERE model = ?1 AND record = ?2 AND kind IN (1, 2) ORDER BY seq DESC LIMIT 1";
    said(conn, layouts, LOG, model, record)
}

/// What the log said of a record just before `seq`; `None` if it did not know it, other than by the image that its first
/// entry may have kept.
pub(crate) fn logged_before(
    conn: &Connection,
    layouts: &mut Layouts<'_>,
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
            .query_row(params![model, RecordId(&change.record), seq.0], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?))
            })
            .optional()?;
        if let Some(said) = said {
            return said_as(conn, layouts, said).map(Some);
        }
    }
    Ok(None)
}

fn said(
    conn: &Connection,
    layouts: &mut Layouts<'_>,
    sql: &str,
    model: i64,
    record: &str,
) -> Result<Option<LastSaid>, Error> {
    let said: Option<(i64, i64, String)> = conn
        .prepare_cached(sql)?
        .query_row(params![model, RecordId(record)], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    said.map(|said| said_as(conn, layouts, said)).transpose()
}

/// What an entry or a pending change says of its record: kind, layout and row.
pub(crate) fn said_as(
    conn: &Connection,
    layouts: &mut Layouts<'_>,
    (kind, layout, data): (i64, i64, String),
) -> Result<LastSaid, Error> {
    let shape = Arc::clone(layouts.get(conn, layout)?);
    let row = match EntryKind::from_i64(kind) {
        Some(EntryKind::Upsert) => Some(shape.read_row(EntryKind::Upsert, &data)?),
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

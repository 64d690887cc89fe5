//! Record ids: what names a record within its model, on all devices alike.
//!
//! It follows from the record's key ([`value::record_id`]). Most keys are a UUID, so that is kept as its 16 bytes, in memory as
//! in the sync tables; any other id is its text.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use rusqlite::{
    ToSql,
    types::{ToSqlOutput, ValueRef},
};
use uuid::Uuid;

use crate::{entry::Shape, error::Error, value, value::Value};

/// The canonical id of a record.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RecordId(Id);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    Uuid([u8; 16]),
    /// Never the canonical text of a UUID.
    Text(Box<str>),
}

impl Hash for Id {
    /// In one piece: a batch looks its records up again and again.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Uuid(uuid) => state.write(uuid),
            Self::Text(text) => text.hash(state),
        }
    }
}

impl RecordId {
    /// Reads a column of the sync tables.
    pub(crate) fn read(column: ValueRef<'_>) -> Result<Self, Error> {
        match column {
            ValueRef::Blob(bytes) => <[u8; 16]>::try_from(bytes).ok().map(|uuid| Self(Id::Uuid(uuid))),
            ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().map(Self::from),
            _ => None,
        }
        .ok_or_else(|| Error::Damaged("a record id is neither a UUID nor a text".into()))
    }
}

impl RecordId {
    /// The bytes of a UUID, where it is one.
    pub(crate) fn as_uuid(&self) -> Option<&[u8]> {
        match &self.0 {
            Id::Uuid(uuid) => Some(uuid),
            Id::Text(_) => None,
        }
    }

    /// Whether the value is the UUID that it is, as bytes.
    pub(crate) fn is_uuid(&self, value: &Value) -> bool {
        matches!(value, Value::Blob(bytes) if self.as_uuid() == Some(bytes))
    }
}

impl Shape {
    /// The id of the record that a row of this shape is of.
    pub(crate) fn record_id(&self, row: &[Value]) -> RecordId {
        if let [key] = self.key.as_slice()
            && let Value::Blob(bytes) = &row[*key]
            && let Ok(uuid) = <[u8; 16]>::try_from(&**bytes)
        {
            return RecordId(Id::Uuid(uuid));
        }
        value::record_id(self.key.iter().map(|&i| &row[i])).as_str().into()
    }
}

impl From<&str> for RecordId {
    fn from(text: &str) -> Self {
        let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
        // A text key may hold a UUID in other letters, which stays a text.
        match Uuid::try_parse(text) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut buffer) == text => {
                Self(Id::Uuid(uuid.into_bytes()))
            }
            _ => Self(Id::Text(text.into())),
        }
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Id::Uuid(uuid) => Uuid::from_bytes(*uuid).fmt(f),
            Id::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ToSql for RecordId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match &self.0 {
            Id::Uuid(uuid) => ValueRef::Blob(uuid),
            Id::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_same_by_its_text_its_key_and_its_column() {
        let shape = |keys: usize| Shape {
            model: "note".into(),
            fields: vec!["a".into(), "b".into()],
            key: (0..keys).collect(),
            uuids: vec![false; 2],
        };
        let uuid = Value::Blob([0xab; 16].into());
        let text = |text: &str| Value::Text(text.into());
        let rows = [
            (shape(1), vec![uuid.clone(), Value::Null]),
            (shape(1), vec![text("plain"), Value::Null]),
            (shape(1), vec![text("ABABABAB-abab-abab-abab-abababababab"), Value::Null]),
            (shape(1), vec![Value::Integer(7), Value::Null]),
            (shape(1), vec![Value::Blob([1; 3].into()), Value::Null]),
            (shape(2), vec![uuid, text("b")]),
        ];
        for (shape, row) in rows {
            let id = shape.record_id(&row);
            let canonical = value::record_id(shape.key.iter().map(|&i| &row[i]));
            assert_eq!(id.to_string(), canonical);
            assert_eq!(id, RecordId::from(canonical.as_str()));
            let ToSqlOutput::Borrowed(column) = id.to_sql().expect("binds") else {
                panic!("{id} was copied")
            };
            assert_eq!(RecordId::read(column).expect("reads back"), id);
        }
        for bad in [ValueRef::Null, ValueRef::Integer(1), ValueRef::Blob(&[1, 2]), ValueRef::Text(&[0xff])] {
            let error = RecordId::read(bad).expect_err("no id").to_string();
            assert!(error.contains("neither a UUID nor a text"), "{error}");
        }
    }
}

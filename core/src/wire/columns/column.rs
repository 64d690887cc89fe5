//! The values of one field of many rows, as they travel.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{bytes::SHORT, row_text::Plain, value::Value};

/// The values of one field: a class for each row, and the classes' contents one after the other. What is as before, as most
/// fields of neighbours are, is not said again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::wire) struct Column {
    classes: Piece,
    integers: Vec<i64>,
    reals: Vec<u64>,
    lengths: Vec<u32>,
    bytes: Piece,
    /// While it is made: the class of the last value that is not NULL.
    #[serde(skip)]
    last: u8,
}

/// Bytes that travel in one piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::wire) struct Piece(pub(super) Vec<u8>);

impl Serialize for Piece {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl de::Visitor<'_> for Visit {
            type Value = Piece;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Piece, E> {
                Ok(Piece(bytes.to_vec()))
            }
        }
        d.deserialize_bytes(Visit)
    }
}

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
/// As the last one that is not NULL.
const SAME: u8 = 5;

/// Longest text or blob that is told by [`SAME`], in bytes: one that takes memory of its own, and that millions repeat in a byte
/// each, would be much of it.
const SAME_MAX: usize = SHORT;

impl Column {
    /// With room for so many values, as far as what they are does not matter.
    pub(super) fn for_rows(count: usize) -> Self {
        Self { classes: Piece(Vec::with_capacity(count)), ..Self::default() }
    }

    pub(in crate::wire) fn push(&mut self, value: &Value) {
        match value {
            Value::Null => self.push_null(),
            Value::Integer(i) => self.push_integer(*i),
            Value::Real(r) => self.push_real(r.to_bits()),
            Value::Text(bytes) => self.push_bytes(TEXT, bytes),
            Value::Blob(bytes) => self.push_bytes(BLOB, bytes),
        }
    }

    pub(super) fn push_plain(&mut self, value: Plain<'_>) {
        match value {
            Plain::Null => self.push_null(),
            Plain::Integer(i) => self.push_integer(i),
            Plain::Text(text) => self.push_bytes(TEXT, text.as_bytes()),
            Plain::Uuid(uuid) => self.push_uuid(&uuid),
        }
    }

    pub(super) fn push_uuid(&mut self, uuid: &[u8]) {
        self.push_bytes(BLOB, uuid);
    }

    /// The last value again, which is known to be that of the row before, unless it is a large one.
    pub(super) fn push_same(&mut self) -> bool {
        let is_short = match self.last {
            TEXT | BLOB => self.lengths.last().is_some_and(|&length| length as usize <= SAME_MAX),
            _ => true,
        };
        if is_short {
            self.classes.0.push(SAME);
        }
        is_short
    }

    pub(super) fn push_null(&mut self) {
        self.classes.0.push(NULL);
    }

    fn push_integer(&mut self, integer: i64) {
        let is_same = self.integers.last() == Some(&integer);
        if self.push_class(INTEGER, is_same) {
            self.integers.push(integer);
        }
    }

    fn push_real(&mut self, bits: u64) {
        let is_same = self.reals.last() == Some(&bits);
        if self.push_class(REAL, is_same) {
            self.reals.push(bits);
        }
    }

    fn push_bytes(&mut self, class: u8, bytes: &[u8]) {
        let is_same = bytes.len() <= SAME_MAX
            && self.lengths.last().is_some_and(|&length| length as usize == bytes.len())
            && self.bytes.0.ends_with(bytes);
        if self.push_class(class, is_same) {
            // An entry is far below 4 GiB: the sealer keeps larger ones out of the log.
            self.lengths.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            self.bytes.0.extend_from_slice(bytes);
        }
    }

    /// Whether the value is still to be told; `is_same` says that it is the last one of its kind of content.
    fn push_class(&mut self, class: u8, is_same: bool) -> bool {
        let is_told = !(is_same && self.last == class);
        self.classes.0.push(if is_told { class } else { SAME });
        self.last = class;
        is_told
    }

    /// Puts all of another behind it.
    pub(super) fn append(&mut self, mut other: Self) {
        self.classes.0.append(&mut other.classes.0);
        self.integers.append(&mut other.integers);
        self.reals.append(&mut other.reals);
        self.lengths.append(&mut other.lengths);
        self.bytes.0.append(&mut other.bytes.0);
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader {
            classes: self.classes.0.iter(),
            integers: self.integers.iter(),
            reals: self.reals.iter(),
            lengths: self.lengths.iter(),
            bytes: &self.bytes.0,
            last: Last::None,
        }
    }
}

pub(in crate::wire) struct Reader<'c> {
    classes: std::slice::Iter<'c, u8>,
    integers: std::slice::Iter<'c, i64>,
    reals: std::slice::Iter<'c, u64>,
    lengths: std::slice::Iter<'c, u32>,
    bytes: &'c [u8],
    last: Last<'c>,
}

/// The last value that is not NULL.
#[derive(Clone, Copy)]
enum Last<'c> {
    None,
    Integer(i64),
    Real(f64),
    Text(&'c [u8]),
    Blob(&'c [u8]),
}

impl<'c> Reader<'c> {
    /// `None` at the end, and of what is no value.
    #[inline]
    pub(in crate::wire) fn next(&mut self) -> Option<Value> {
        self.last = match *self.classes.next()? {
            NULL => return Some(Value::Null),
            INTEGER => Last::Integer(*self.integers.next()?),
            REAL => Last::Real(f64::from_bits(*self.reals.next()?)),
            TEXT => Last::Text(self.take()?),
            BLOB => Last::Blob(self.take()?),
            SAME => match self.last {
                Last::Text(bytes) | Last::Blob(bytes) if bytes.len() > SAME_MAX => return None,
                last => last,
            },
            _ => return None,
        };
        Some(match self.last {
            Last::None => return None,
            Last::Integer(i) => Value::Integer(i),
            Last::Real(r) => Value::Real(r),
            Last::Text(bytes) => Value::Text(bytes.into()),
            Last::Blob(bytes) => Value::Blob(bytes.into()),
        })
    }

    #[inline]
    fn take(&mut self) -> Option<&'c [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(*self.lengths.next()? as usize)?;
        self.bytes = rest;
        Some(taken)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.classes.len() == 0
            && self.integers.len() == 0
            && self.reals.len() == 0
            && self.lengths.len() == 0
            && self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(column: &Column) -> Vec<Option<Value>> {
        let mut reader = column.reader();
        let values: Vec<_> = std::iter::repeat_with(|| reader.next()).take(column.classes.0.len()).collect();
        assert!(reader.is_empty() || values.contains(&None));
        values
    }

    fn text(bytes: &[u8]) -> Value {
        Value::Text(bytes.into())
    }

    #[test]
    fn what_is_as_before_is_said_once_whatever_stands_between() {
        let values = [
            Value::Null,
            text(b"a"),
            Value::Null,
            text(b"a"),
            Value::Blob([b'a'].into()),
            text(b"a"),
            text(b"ba"),
            text(b"a"),
            Value::Integer(1),
            Value::Integer(1),
            Value::Real(0.0),
            Value::Real(-0.0),
            Value::Real(-0.0),
            text(b""),
            text(b""),
            Value::Integer(1),
        ];
        let (mut first, mut second) = (Column::default(), Column::default());
        values.iter().for_each(|value| first.push(value));
        assert_eq!(read(&first), values.clone().map(Some));
        assert_eq!(first.classes.0.iter().filter(|&&class| class == SAME).count(), 4);
        // Of another column nothing is repeated.
        values.iter().rev().for_each(|value| second.push(value));
        first.append(second);
        assert_eq!(
            read(&first),
            values.iter().chain(values.iter().rev()).cloned().map(Some).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_large_value_is_said_again_and_a_peer_that_repeats_one_is_refused() {
        let large = text(&[b'x'; SAME_MAX + 1]);
        let mut column = Column::default();
        column.push(&large);
        assert!(!column.push_same());
        column.push(&large);
        assert_eq!(column.classes.0, [TEXT, TEXT]);
        assert_eq!(read(&column), [Some(large.clone()), Some(large)]);
        column.classes.0[1] = SAME;
        assert_eq!(read(&column)[1], None);
        let nothing = Column { classes: Piece(vec![NULL, SAME]), ..Column::default() };
        assert_eq!(read(&nothing), [Some(Value::Null), None], "nothing was before it");
    }
}

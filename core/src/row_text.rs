//! The text of a row as the sync tables keep it: a JSON array of its values ([`value`](crate::value) says how each is written),
//! read to the values it says, or taken apart no further than where each of them stands. What is only handed on, as most of
//! what a leader sends, is not made values of.

use std::fmt;

use memchr::memchr2;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use uuid::Uuid;

use crate::value::{AnyValue, Value, write_escaped_text};

/// Appends a row. `is_uuid` names the fields whose 16-byte BLOBs stand as plain text; a text in such a field is escaped, so that
/// nothing is lost.
pub(crate) fn write<'v>(row: impl Iterator<Item = (&'v Value, bool)>, out: &mut String) {
    out.push('[');
    for (i, (value, is_uuid)) in row.enumerate() {
        if i > 0 {
            out.push(',');
        }
        match value {
            Value::Blob(bytes) if is_uuid && bytes.len() == 16 => {
                let mut uuid = [0u8; 16];
                uuid.copy_from_slice(bytes);
                let mut buffer = [0u8; uuid::fmt::Hyphenated::LENGTH];
                out.push('"');
                out.push_str(Uuid::from_bytes(uuid).hyphenated().encode_lower(&mut buffer));
                out.push('"');
            }
            Value::Text(bytes) if is_uuid => write_escaped_text(bytes, out),
            value => value.write_json(out),
        }
    }
    out.push(']');
}

/// Reads a row back that [`write`] wrote, given the same fields.
///
/// # Errors
/// A sentence about what in the text is not of that form, another number of values among it.
pub(crate) fn read(json: &str, is_uuid: &[bool]) -> Result<Vec<Value>, String> {
    match read_plain(json, is_uuid) {
        Some(row) => Ok(row),
        None => read_any(json, is_uuid),
    }
}

/// [`read`] of a row in which nothing is escaped, as most are; `None` where another look is needed.
fn read_plain(json: &str, is_uuid: &[bool]) -> Option<Vec<Value>> {
    let mut row = Vec::with_capacity(is_uuid.len());
    let mut rest = json.strip_prefix('[')?;
    for (i, &is_uuid) in is_uuid.iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix(',')?;
        }
        let (text, behind) = rest.split_at(end_of_plain(rest)?);
        row.push(Plain::read(text, is_uuid)?.into());
        rest = behind;
    }
    (rest == "]").then_some(row)
}

/// Where the value ends that the text begins with, if nothing in it is escaped.
fn end_of_plain(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    match bytes.first()? {
        b'"' => {
            let end = 1 + memchr2(b'"', b'\\', &bytes[1..])?;
            (bytes[end] == b'"').then_some(end + 1)
        }
        b'n' => Some("null".len()).filter(|_| bytes.starts_with(b"null")),
        _ => {
            let end = bytes.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'-');
            // That is no integer.
            end.filter(|&end| &bytes[..end] != b"-0")
        }
    }
}

/// Appends where each of so many values of a row ends, if nothing in the row is escaped and it has no fractions. The values
/// themselves are not looked at.
pub(crate) fn split(json: &str, count: usize, ends: &mut Vec<u32>) -> bool {
    let before = ends.len();
    let mut at = 0;
    let bytes = json.as_bytes();
    for i in 0..count {
        let opens = if i == 0 { b'[' } else { b',' };
        let end = Some(at).filter(|&at| bytes.get(at) == Some(&opens));
        let end = end.and_then(|at| Some(at + 1 + end_of_plain(&json[at + 1..])?));
        let Some(end) = end.and_then(|end| Some((end, u32::try_from(end).ok()?))) else { break };
        at = end.0;
        ends.push(end.1);
    }
    let is_whole = ends.len() - before == count && count > 0 && &bytes[at..] == b"]";
    if !is_whole {
        ends.truncate(before);
    }
    is_whole
}

/// A row's text, and where each value ends in it ([`split`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'t> {
    text: &'t str,
    ends: &'t [u32],
}

impl<'t> Parts<'t> {
    /// Of a text that was split so.
    pub(crate) fn of(text: &'t str, ends: &'t [u32]) -> Self {
        Self { text, ends }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of a value.
    pub(crate) fn get(&self, i: usize) -> &'t str {
        let before = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.text[before + 1..self.ends[i] as usize]
    }

    /// The texts of all values.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'t [u8]> {
        let text = self.text.as_bytes();
        self.ends.iter().scan(1, move |begin, &end| {
            let value = text.get(*begin..end as usize);
            *begin = end as usize + 1;
            value
        })
    }

    /// The values, given which fields are UUIDs.
    pub(crate) fn values(&self, is_uuid: &[bool]) -> Result<Vec<Value>, String> {
        (0..self.len()).map(|i| self.read(i, is_uuid[i]).map(Value::from)).collect()
    }

    /// Reads one value.
    ///
    /// # Errors
    /// A sentence, where it is none.
    pub(crate) fn read(&self, i: usize, is_uuid: bool) -> Result<Plain<'t>, String> {
        let text = self.get(i);
        Plain::read(text, is_uuid).ok_or_else(|| format!("`{text}` is no value of its field"))
    }

    /// Bytes of all values, as [`Value::size`] says.
    pub(crate) fn size(&self, is_uuid: &[bool]) -> usize {
        let size = |(text, &is_uuid): (&[u8], &bool)| match text {
            [b'"', ..] if is_uuid => 16,
            [b'"', text @ .., _] => text.len(),
            [b'n', ..] => 1,
            _ => 8,
        };
        self.iter().zip(is_uuid).map(size).sum()
    }
}

/// A value that is written without escaping anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain<'t> {
    Null,
    Integer(i64),
    Text(&'t str),
    Uuid([u8; 16]),
}

impl<'t> Plain<'t> {
    /// `None` of what is no such text.
    fn read(text: &'t str, is_uuid: bool) -> Option<Self> {
        if let Some(text) = text.strip_prefix('"') {
            let text = text.strip_suffix('"')?;
            if is_uuid {
                return Some(Self::Uuid(Uuid::try_parse(text).ok()?.into_bytes()));
            }
            let has_control = text.bytes().fold(false, |any, byte| any | (byte < 0x20));
            return (!has_control).then_some(Self::Text(text));
        }
        if text == "null" {
            return Some(Self::Null);
        }
        // No number begins with a zero but that one.
        let is_integer = text.trim_start_matches('-').strip_prefix('0').is_none_or(|more| more.is_empty());
        text.parse().ok().filter(|_| is_integer).map(Self::Integer)
    }
}

impl From<Plain<'_>> for Value {
    fn from(plain: Plain<'_>) -> Self {
        match plain {
            Plain::Null => Self::Null,
            Plain::Integer(i) => Self::Integer(i),
            Plain::Text(text) => Self::Text(text.into()),
            Plain::Uuid(uuid) => Self::Blob(uuid.into()),
        }
    }
}

/// [`read`] of any row.
fn read_any(json: &str, is_uuid: &[bool]) -> Result<Vec<Value>, String> {
    struct Row<'u>(&'u [bool]);
    impl<'de> Visitor<'de> for Row<'_> {
        type Value = Vec<Value>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a JSON array of {} values", self.0.len())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut row = Vec::with_capacity(self.0.len());
            for is_uuid in self.0 {
                let next = seq.next_element_seed(AnyValue { is_uuid: *is_uuid })?;
                row.push(next.ok_or_else(|| de::Error::invalid_length(row.len(), &self))?);
            }
            match seq.next_element::<de::IgnoredAny>()? {
                None => Ok(row),
                Some(_) => Err(de::Error::invalid_length(row.len() + 1, &self)),
            }
        }
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    let row = reader.deserialize_seq(Row(is_uuid)).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_stands_in_a_text_that_is_json_and_reads_back() {
        let text = |t: &str| Value::Text(t.into());
        let row = vec![
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Real(0.1 + 0.2),
            Value::Real(f64::NEG_INFINITY),
            text("a \"quoted\" \\ line\n\r\t\u{0}\u{1f}é☃😀"),
            text("01010101-0101-0101-0101-010101010101"),
            Value::Text([0xff, 0xfe, b'a'].into()),
            Value::Blob([0, 255].into()),
            Value::Blob([7; 16].into()),
        ];
        for is_uuid in [false, true] {
            let mut array = String::new();
            write(row.iter().map(|v| (v, is_uuid)), &mut array);
            serde_json::from_str::<serde_json::Value>(&array).expect("the array is JSON");
            let hints = vec![is_uuid; row.len()];
            assert_eq!(read(&array, &hints).expect("reads back"), row, "{array}");
            assert!(read(&array, &hints[1..]).is_err(), "another number of values");
        }
    }

    #[test]
    fn a_plain_array_is_read_as_any_other_and_what_is_no_array_is_an_error() {
        let uuid = "00000000-0000-0000-0000-000000000001";
        let mut texts: Vec<String> = [
            "[]",
            "[1,2]",
            "[1,2,3",
            "[1,2,3]]",
            "[1,2,3] ",
            "[01,2,3]",
            "[-0,2,3]",
            "[0,-1,10]",
            "[--1,2,3]",
            "[1-1,2,3]",
            "[1.0,2,3]",
            "[1e3,2,3]",
            "[9223372036854775807,-9223372036854775808,0]",
            "[9223372036854775808,2,3]",
            "[null,null,null]",
            "[nul,2,3]",
            "[null1,2,3]",
            "[ 1,2,3]",
            "[1 ,2,3]",
            "[1,,3]",
            "[\"a\",\"\",\"\u{e9}\"]",
            "[\"a\\n\",2,3]",
            "[\"a\nb\",2,3]",
            "[\"a,2,3]",
            "[true,2,3]",
            "[{\"$uuid\":\"x\"},2,3]",
            "[[1],2,3]",
            "1,2,3",
            "",
        ]
        .map(String::from)
        .to_vec();
        texts.push(format!(r#"["{uuid}",2,3]"#));
        for text in &texts {
            for is_uuid in [[false; 3], [true, false, false], [true; 3]] {
                let plain = read_plain(text, &is_uuid);
                let any = read_any(text, &is_uuid);
                assert!(plain.is_none() || plain == any.clone().ok(), "{text}: {plain:?}, {any:?}");
                assert_eq!(read(text, &is_uuid), any, "{text}");
                let mut ends = vec![9];
                if split(text, 3, &mut ends) {
                    let parts = Parts::of(text, &ends[1..]);
                    assert_eq!(parts.values(&is_uuid).ok(), any.clone().ok(), "{text}");
                    let size = any.map_or(0, |row| row.iter().map(Value::size).sum());
                    assert!(parts.size(&is_uuid) >= size, "{text}: {size}");
                } else {
                    assert_eq!(ends, [9], "{text}: nothing is left of what is not whole");
                    assert!(plain.is_none(), "{text}");
                }
            }
        }
        let is_plain = |text: &str| read_plain(text, &[true, false, false]).is_some();
        assert!(
            is_plain(&format!(r#"["{uuid}","a, b",-7]"#)) && is_plain("[null,0,10]"),
            "most need no second look"
        );
    }
}

//! Values as SQLite stores them, their readable JSON form, and their way to and from SeaORM's values.
//!
//! tidelog carries what is *stored*, never what a Rust type would make of it: five storage classes,
//! bit for bit. The log shows them as JSON that a person can read and that loses nothing:
//!
//! | stored | JSON |
//! |---|---|
//! | NULL, INTEGER, finite REAL, UTF-8 TEXT | `null`, `1`, `1.0`, `"text"` |
//! | BLOB of 16 bytes | `{"$uuid":"0190…"}` |
//! | any other BLOB | `{"$blob":"hex"}` |
//! | infinite REAL | `{"$real":"inf"}`, `{"$real":"-inf"}` |
//! | TEXT that is not UTF-8 | `{"$text":"hex"}` |
//!
//! A JSON column is text to SQLite and stays text here, byte for byte.

use std::fmt;

use sea_orm::sea_query::{ArrayType, Value as SeaValue};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use uuid::Uuid;

pub use crate::bytes::Bytes;

/// One stored value. Equality is bitwise: 1 and 1.0 differ, NaN equals itself.
#[derive(Clone, Debug, Default)]
pub enum Value {
    /// NULL.
    #[default]
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL. SQLite stores NaN as NULL and −0.0 as 0.0.
    Real(f64),
    /// TEXT: usually UTF-8, but SQLite does not insist.
    Text(Bytes),
    /// BLOB.
    Blob(Bytes),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Real(a), Self::Real(b)) => a.to_bits() == b.to_bits(),
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Value {}

impl Value {
    /// Bytes this value takes in memory beyond the enum itself, and about what it takes on a wire.
    pub fn size(&self) -> usize {
        match self {
            Self::Null => 1,
            Self::Integer(_) | Self::Real(_) => 8,
            Self::Text(bytes) | Self::Blob(bytes) => bytes.len(),
        }
    }

    /// About how long the JSON form is, with a comma: seldom less, so that a text made with room for it need not grow.
    pub(crate) fn json_size(&self) -> usize {
        match self {
            Self::Null => 5,
            Self::Integer(i) if (0..1_000_000).contains(i) => 7,
            Self::Integer(_) | Self::Real(_) => 21,
            Self::Text(bytes) => bytes.len() + 3,
            Self::Blob(bytes) if bytes.len() == 16 => 39,
            Self::Blob(bytes) => 2 * bytes.len() + 13,
        }
    }

    /// Appends the JSON form.
    pub fn write_json(&self, out: &mut String) {
        use fmt::Write;
        // Writing to a String cannot fail.
        let _ = match self {
            Self::Null => {
                out.push_str("null");
                Ok(())
            }
            Self::Integer(i) => {
                out.push_str(itoa::Buffer::new().format(*i));
                Ok(())
            }
            Self::Real(r) if r.is_finite() => {
                write_string_free_number(*r, out);
                Ok(())
            }
            Self::Real(r) => write!(out, r#"{{"$real":"{}"}}"#, if *r > 0.0 { "inf" } else { "-inf" }),
            Self::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => {
                    write_json_string(text, out);
                    Ok(())
                }
                Err(_) => {
                    write_escaped_text(bytes, out);
                    Ok(())
                }
            },
            Self::Blob(bytes) => match <[u8; 16]>::try_from(&**bytes) {
                Ok(uuid) => {
                    let mut buffer = [0u8; uuid::fmt::Hyphenated::LENGTH];
                    let text = Uuid::from_bytes(uuid).hyphenated().encode_lower(&mut buffer);
                    write!(out, r#"{{"$uuid":"{text}"}}"#)
                }
                Err(_) => {
                    out.push_str(r#"{"$blob":""#);
                    write_hex(bytes, out);
                    write!(out, r#""}}"#)
                }
            },
        };
    }
}

fn write_string_free_number(real: f64, out: &mut String) {
    // serde_json prints the shortest text that reads back as the same bits, always with a point or exponent.
    out.push_str(&serde_json::Number::from_f64(real).map(|n| n.to_string()).unwrap_or_default());
}

/// Appends `text` as a JSON string.
pub(crate) fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    // Looked at without stopping: many bytes at once, and mostly there is none.
    let needs = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if !text.bytes().fold(false, |any, byte| any | needs(byte)) {
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut clean = 0;
    for (i, byte) in text.bytes().enumerate() {
        if !needs(byte) {
            continue;
        }
        out.push_str(&text[clean..i]);
        clean = i + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            _ => out.push_str(&format!("\\u{byte:04x}")),
        }
    }
    out.push_str(&text[clean..]);
    out.push('"');
}

pub(crate) fn write_escaped_text(bytes: &[u8], out: &mut String) {
    out.push_str(r#"{"$text":""#);
    write_hex(bytes, out);
    out.push_str(r#""}"#);
}

fn write_hex(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(bytes.len() * 2);
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)] as char);
        out.push(DIGITS[usize::from(byte & 15)] as char);
    }
}

fn read_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()).collect()
}

/// Writes a row as a JSON object in the order of `names`.
pub fn row_to_json<'a>(names: impl Iterator<Item = &'a str>, row: &[Value]) -> String {
    let mut out = String::with_capacity(32 * row.len());
    out.push('{');
    for (i, (name, value)) in names.zip(row).enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_json_string(name, &mut out);
        out.push(':');
        value.write_json(&mut out);
    }
    out.push('}');
    out
}

/// Reads a row back that [`row_to_json`] wrote: every `(name, value)` in the order it was written.
///
/// # Errors
/// A sentence about what in the text is not of that form.
pub fn row_from_json(json: &str) -> Result<Vec<(String, Value)>, String> {
    struct Row;
    impl<'de> Visitor<'de> for Row {
        type Value = Vec<(String, Value)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object of column names and values")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut row = Vec::with_capacity(16);
            while let Some(name) = map.next_key::<String>()? {
                row.push((name, map.next_value_seed(AnyValue::default())?));
            }
            Ok(row)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    let row = reader.deserialize_map(Row).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    Ok(row)
}

/// Reads one value in its JSON form.
#[derive(Clone, Copy, Default)]
pub(crate) struct AnyValue {
    /// A text is a UUID.
    pub(crate) is_uuid: bool,
}

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a number, a string or one escaped form")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Integer(v))
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        i64::try_from(v).map(Value::Integer).map_err(|_| E::custom(format!("{v} is beyond a 64-bit INTEGER")))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Real(v))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        if self.is_uuid {
            let uuid = Uuid::try_parse(v).map_err(|_| E::custom(format!("`{v}` is no UUID")))?;
            return Ok(Value::Blob(uuid.as_bytes().into()));
        }
        Ok(Value::Text(v.into()))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let Some((form, text)) = map.next_entry::<String, String>()? else {
            return Err(de::Error::custom("an empty object is not a value"));
        };
        let bad = || de::Error::custom(format!("`{form}` does not hold `{text}`"));
        let value = match form.as_str() {
            "$uuid" => Value::Blob(Uuid::parse_str(&text).map_err(|_| bad())?.as_bytes().into()),
            "$blob" => Value::Blob(read_hex(&text).ok_or_else(bad)?.into()),
            "$text" => Value::Text(read_hex(&text).ok_or_else(bad)?.into()),
            "$real" if text == "inf" => Value::Real(f64::INFINITY),
            "$real" if text == "-inf" => Value::Real(f64::NEG_INFINITY),
            _ => return Err(bad()),
        };
        match map.next_key::<String>()? {
            None => Ok(value),
            Some(more) => Err(de::Error::custom(format!("`{more}` after an escaped form"))),
        }
    }
}

/// The canonical text of a UUID.
pub(crate) fn uuid_text(uuid: [u8; 16]) -> String {
    let mut buffer = [0u8; uuid::fmt::Hyphenated::LENGTH];
    let text: &str = Uuid::from_bytes(uuid).hyphenated().encode_lower(&mut buffer);
    text.to_owned()
}

/// The canonical text of a record's key: the hyphenated UUID, the key's own text, or for a composite key
/// the JSON array of its parts. Two rows have the same text only if they are the same record.
pub fn record_id<'a>(mut key: impl ExactSizeIterator<Item = &'a Value>) -> String {
    if key.len() == 1 {
        let Some(value) = key.next() else { return String::new() };
        match value {
            Value::Blob(bytes) if bytes.len() == 16 => {
                let mut uuid = [0u8; 16];
                uuid.copy_from_slice(bytes);
                return uuid_text(uuid);
            }
            // Text that reads as JSON, or as a UUID, would be taken for another class of key.
            Value::Text(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if !text.starts_with(['[', '"']) && Uuid::try_parse(text).is_err() => {
                    return text.to_owned();
                }
                _ => {}
            },
            _ => {}
        }
        return record_array([value].into_iter());
    }
    record_array(key)
}

fn record_array<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    let mut out = String::from("[");
    for (i, value) in values.enumerate() {
        if i > 0 {
            out.push(',');
        }
        match value {
            Value::Blob(bytes) if bytes.len() == 16 => {
                let mut uuid = [0u8; 16];
                uuid.copy_from_slice(bytes);
                write_json_string(&Uuid::from_bytes(uuid).to_string(), &mut out);
            }
            // A text that looks like a UUID keeps apart from the UUID by its escaped form.
            Value::Text(bytes) if std::str::from_utf8(bytes).is_ok_and(|t| Uuid::try_parse(t).is_ok()) => {
                write_escaped_text(bytes, &mut out);
            }
            other => other.write_json(&mut out),
        }
    }
    out.push(']');
    out
}

/// What SQLite would store for a SeaORM value that stands in a default. Types without a SQLite form are NULL.
pub fn from_sea(value: &SeaValue) -> Value {
    let int = |v: Option<i64>| v.map_or(Value::Null, Value::Integer);
    let text = |v: Option<String>| v.map_or(Value::Null, |t| Value::Text(t.into()));
    match value {
        SeaValue::Bool(v) => int(v.map(i64::from)),
        SeaValue::TinyInt(v) => int(v.map(i64::from)),
        SeaValue::SmallInt(v) => int(v.map(i64::from)),
        SeaValue::Int(v) => int(v.map(i64::from)),
        SeaValue::BigInt(v) => int(*v),
        SeaValue::TinyUnsigned(v) => int(v.map(i64::from)),
        SeaValue::SmallUnsigned(v) => int(v.map(i64::from)),
        SeaValue::Unsigned(v) => int(v.map(i64::from)),
        SeaValue::BigUnsigned(v) => int(v.and_then(|v| i64::try_from(v).ok())),
        SeaValue::Float(v) => v.map_or(Value::Null, |v| Value::Real(f64::from(v))),
        SeaValue::Double(v) => v.map_or(Value::Null, Value::Real),
        SeaValue::String(v) => text(v.as_ref().map(|s| s.to_string())),
        SeaValue::Char(v) => text(v.map(|c| c.to_string())),
        SeaValue::Bytes(v) => v.as_ref().map_or(Value::Null, |b| Value::Blob(b.as_slice().into())),
        SeaValue::Uuid(v) => v.as_ref().map_or(Value::Null, |u| Value::Blob(u.as_bytes().into())),
        SeaValue::Json(v) => text(v.as_ref().map(|j| j.to_string())),
        SeaValue::ChronoDate(v) => text(v.map(|d| d.format("%F").to_string())),
        SeaValue::ChronoTime(v) => text(v.map(|t| t.format("%T%.f").to_string())),
        SeaValue::ChronoDateTime(v) => text(v.map(|t| t.format("%F %T%.f").to_string())),
        SeaValue::ChronoDateTimeUtc(v) => text(v.map(|t| t.to_rfc3339())),
        SeaValue::ChronoDateTimeLocal(v) => text(v.map(|t| t.to_rfc3339())),
        SeaValue::ChronoDateTimeWithTimeZone(v) => text(v.map(|t| t.to_rfc3339())),
        _ => Value::Null,
    }
}

/// The SeaORM value of a stored one, for a column that SeaORM reads as `kind`.
///
/// # Errors
/// A sentence, where what is stored is not of that type.
pub fn to_sea(value: &Value, kind: &ArrayType) -> Result<SeaValue, String> {
    let misfit = || format!("{value:?} is not a {kind:?}");
    if *value == Value::Null {
        return Ok(null_sea(kind));
    }
    let int = || match value {
        Value::Integer(i) => Ok(*i),
        _ => Err(misfit()),
    };
    let text = || match value {
        Value::Text(bytes) => std::str::from_utf8(bytes).map_err(|_| misfit()),
        _ => Err(misfit()),
    };
    macro_rules! integer {
        ($variant:ident, $ty:ty) => {
            SeaValue::$variant(Some(<$ty>::try_from(int()?).map_err(|_| misfit())?))
        };
    }
    Ok(match kind {
        ArrayType::Bool => SeaValue::Bool(Some(int()? != 0)),
        ArrayType::TinyInt => integer!(TinyInt, i8),
        ArrayType::SmallInt => integer!(SmallInt, i16),
        ArrayType::Int => integer!(Int, i32),
        ArrayType::BigInt => SeaValue::BigInt(Some(int()?)),
        ArrayType::TinyUnsigned => integer!(TinyUnsigned, u8),
        ArrayType::SmallUnsigned => integer!(SmallUnsigned, u16),
        ArrayType::Unsigned => integer!(Unsigned, u32),
        ArrayType::BigUnsigned => integer!(BigUnsigned, u64),
        ArrayType::Float | ArrayType::Double => {
            let real = match value {
                Value::Real(r) => *r,
                Value::Integer(i) => *i as f64,
                _ => return Err(misfit()),
            };
            if *kind == ArrayType::Float {
                SeaValue::Float(Some(real as f32))
            } else {
                SeaValue::Double(Some(real))
            }
        }
        ArrayType::String => SeaValue::String(Some(text()?.to_owned())),
        ArrayType::Char => {
            let mut chars = text()?.chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => SeaValue::Char(Some(c)),
                _ => return Err(misfit()),
            }
        }
        ArrayType::Bytes => match value {
            Value::Blob(bytes) | Value::Text(bytes) => SeaValue::Bytes(Some(bytes.to_vec())),
            _ => return Err(misfit()),
        },
        ArrayType::Json => {
            SeaValue::Json(Some(Box::new(serde_json::from_str(text()?).map_err(|e| e.to_string())?)))
        }
        ArrayType::Uuid => match value {
            Value::Blob(bytes) => SeaValue::Uuid(Some(Uuid::from_slice(bytes).map_err(|_| misfit())?)),
            _ => SeaValue::Uuid(Some(Uuid::parse_str(text()?).map_err(|_| misfit())?)),
        },
        ArrayType::ChronoDate => SeaValue::ChronoDate(Some(text()?.parse().map_err(|_| misfit())?)),
        ArrayType::ChronoTime => SeaValue::ChronoTime(Some(text()?.parse().map_err(|_| misfit())?)),
        ArrayType::ChronoDateTime => {
            SeaValue::ChronoDateTime(Some(instant(text()?).ok_or_else(misfit)?.naive_utc()))
        }
        ArrayType::ChronoDateTimeUtc => {
            SeaValue::ChronoDateTimeUtc(Some(instant(text()?).ok_or_else(misfit)?.to_utc()))
        }
        ArrayType::ChronoDateTimeLocal => SeaValue::ChronoDateTimeLocal(Some(
            instant(text()?).ok_or_else(misfit)?.with_timezone(&chrono::Local),
        )),
        ArrayType::ChronoDateTimeWithTimeZone => {
            SeaValue::ChronoDateTimeWithTimeZone(Some(instant(text()?).ok_or_else(misfit)?))
        }
        other => return Err(format!("columns read as {other:?} cannot be given to Rust code of the model")),
    })
}

/// The point in time that a stored text names, in any of the forms sqlx writes.
fn instant(text: &str) -> Option<chrono::DateTime<chrono::FixedOffset>> {
    if let Ok(time) = chrono::DateTime::parse_from_rfc3339(text) {
        return Some(time);
    }
    ["%F %T%.f%:z", "%F %T%.f%#z"]
        .iter()
        .find_map(|f| chrono::DateTime::parse_from_str(text, f).ok())
        .or_else(|| {
            ["%F %T%.f", "%FT%T%.f", "%F %H:%M", "%FT%H:%M"]
                .iter()
                .find_map(|f| chrono::NaiveDateTime::parse_from_str(text, f).ok())
                .map(|naive| naive.and_utc().fixed_offset())
        })
}

/// NULL as a SeaORM value of that type.
pub(crate) fn null_sea(kind: &ArrayType) -> SeaValue {
    match kind {
        ArrayType::Bool => SeaValue::Bool(None),
        ArrayType::TinyInt => SeaValue::TinyInt(None),
        ArrayType::SmallInt => SeaValue::SmallInt(None),
        ArrayType::Int => SeaValue::Int(None),
        ArrayType::BigInt => SeaValue::BigInt(None),
        ArrayType::TinyUnsigned => SeaValue::TinyUnsigned(None),
        ArrayType::SmallUnsigned => SeaValue::SmallUnsigned(None),
        ArrayType::Unsigned => SeaValue::Unsigned(None),
        ArrayType::BigUnsigned => SeaValue::BigUnsigned(None),
        ArrayType::Float => SeaValue::Float(None),
        ArrayType::Double => SeaValue::Double(None),
        ArrayType::Char => SeaValue::Char(None),
        ArrayType::Bytes => SeaValue::Bytes(None),
        ArrayType::Json => SeaValue::Json(None),
        ArrayType::Uuid => SeaValue::Uuid(None),
        ArrayType::ChronoDate => SeaValue::ChronoDate(None),
        ArrayType::ChronoTime => SeaValue::ChronoTime(None),
        ArrayType::ChronoDateTime => SeaValue::ChronoDateTime(None),
        ArrayType::ChronoDateTimeUtc => SeaValue::ChronoDateTimeUtc(None),
        ArrayType::ChronoDateTimeLocal => SeaValue::ChronoDateTimeLocal(None),
        ArrayType::ChronoDateTimeWithTimeZone => SeaValue::ChronoDateTimeWithTimeZone(None),
        _ => SeaValue::String(None),
    }
}

/// A zero of that type: stands in for a local column that may not be NULL when a model is built for a question.
pub(crate) fn zero_sea(kind: &ArrayType) -> SeaValue {
    let epoch = chrono::DateTime::UNIX_EPOCH;
    match kind {
        ArrayType::Bytes => SeaValue::Bytes(Some(Vec::new())),
        ArrayType::Json => SeaValue::Json(Some(Box::new(serde_json::Value::Null))),
        ArrayType::Uuid => SeaValue::Uuid(Some(Uuid::nil())),
        ArrayType::Char => SeaValue::Char(Some('\0')),
        ArrayType::Float => SeaValue::Float(Some(0.0)),
        ArrayType::Double => SeaValue::Double(Some(0.0)),
        ArrayType::ChronoDate => SeaValue::ChronoDate(Some(epoch.date_naive())),
        ArrayType::ChronoTime => SeaValue::ChronoTime(Some(chrono::NaiveTime::MIN)),
        ArrayType::ChronoDateTime => SeaValue::ChronoDateTime(Some(epoch.naive_utc())),
        ArrayType::ChronoDateTimeUtc => SeaValue::ChronoDateTimeUtc(Some(epoch)),
        ArrayType::ChronoDateTimeLocal => {
            SeaValue::ChronoDateTimeLocal(Some(epoch.with_timezone(&chrono::Local)))
        }
        ArrayType::ChronoDateTimeWithTimeZone => {
            SeaValue::ChronoDateTimeWithTimeZone(Some(epoch.fixed_offset()))
        }
        ArrayType::String => SeaValue::String(Some(String::new())),
        number => to_sea(&Value::Integer(0), number).unwrap_or_else(|_| null_sea(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &str) -> Value {
        Value::Text(t.into())
    }

    #[test]
    fn every_storage_class_survives_the_json_form_bit_for_bit() {
        let row = vec![
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Real(0.1 + 0.2),
            Value::Real(1.0),
            Value::Real(f64::MIN_POSITIVE / 4.0),
            Value::Real(f64::MAX),
            Value::Real(f64::INFINITY),
            Value::Real(f64::NEG_INFINITY),
            text("a \"quoted\" \\ line\n\r\t\u{0}\u{1f}é☃😀"),
            Value::Text([0xff, 0xfe, b'a'].into()),
            Value::Blob([].into()),
            Value::Blob([0, 255].into()),
            Value::Blob([7; 16].into()),
        ];
        let names: Vec<String> = (0..row.len()).map(|i| format!("c{i}")).collect();
        let json = row_to_json(names.iter().map(String::as_str), &row);
        serde_json::from_str::<serde_json::Value>(&json).expect("the JSON form is JSON");
        let back = row_from_json(&json).expect("reads back");
        assert_eq!(back.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>(), names);
        assert_eq!(back.into_iter().map(|(_, v)| v).collect::<Vec<_>>(), row);
    }

    #[test]
    fn what_is_not_of_the_form_is_an_error_not_a_guess() {
        for bad in [
            r#"{"a":{}}"#,
            r#"{"a":{"$blob":"0"}}"#,
            r#"{"a":{"$other":"00"}}"#,
            r#"{"a":{"$blob":"00","b":"c"}}"#,
            r#"{"a":[1]}"#,
            r#"{"a":18446744073709551615}"#,
            r#"{"a":1"#,
            r#"{"a":1} x"#,
        ] {
            assert!(row_from_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn record_ids_are_canonical_and_keep_different_keys_apart() {
        let id = |values: &[Value]| record_id(values.iter());
        let uuid = Uuid::from_u128(1);
        let blob = Value::Blob(uuid.as_bytes().into());
        assert_eq!(id(std::slice::from_ref(&blob)), "00000000-0000-0000-0000-000000000001");
        assert_eq!(id(&[text("plain")]), "plain");
        assert_eq!(id(&[blob.clone(), Value::Integer(3)]), r#"["00000000-0000-0000-0000-000000000001",3]"#);
        let different = [
            id(std::slice::from_ref(&blob)),
            id(&[text(&uuid.to_string())]),
            id(&[text(&format!("[\"{uuid}\"]"))]),
            id(&[Value::Integer(1)]),
            id(&[text("1")]),
            id(&[Value::Real(1.0)]),
            id(&[Value::Null]),
        ];
        for (i, a) in different.iter().enumerate() {
            assert!(different.iter().skip(i + 1).all(|b| a != b), "{a} stands for two keys");
        }
    }

    #[test]
    fn stored_times_read_in_every_form_sqlx_writes() {
        for form in [
            "2026-01-02T03:04:05Z",
            "2026-01-02T03:04:05+00:00",
            "2026-01-02 03:04:05",
            "2026-01-02 04:04:05+01:00",
        ] {
            let sea = to_sea(&text(form), &ArrayType::ChronoDateTimeUtc).expect(form);
            let SeaValue::ChronoDateTimeUtc(Some(time)) = sea else { panic!("{form}: {sea:?}") };
            assert_eq!(time.timestamp(), 1_767_323_045, "{form}");
        }
    }
}

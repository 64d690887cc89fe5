//! How the log keeps a change that did not come to what its author made of the record: the row's `data` is what stands,
//! and beside it, in `change`, an object that a person can read holds what its author wrote, what that replaced, and
//! what of it did not stand.

use rusqlite::types::ValueRef;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    entry::{Change, EntryKind, Fields, Outcome, Shape},
    error::Error,
    layout::Layouts,
    resolve::{Dropped, Effect, Loser},
    value,
};

/// The object in `sync_entry.change`.
#[derive(Deserialize)]
struct Authored<'t> {
    kind: Kind,
    /// Names of the fields that its author changed; absent for all.
    #[serde(borrow, default)]
    fields: Option<&'t RawValue>,
    /// Its author's whole row, in the order of the layout.
    #[serde(borrow)]
    row: &'t RawValue,
    /// What the changed fields held before, where it is known.
    #[serde(borrow, default)]
    old: Option<&'t RawValue>,
    #[serde(default)]
    dropped: Vec<Lost>,
    #[serde(default)]
    refused: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Upsert,
    Delete,
    /// It only decided.
    None,
}

#[derive(Deserialize)]
struct Lost {
    /// Absent where it is about the record being there.
    #[serde(default)]
    field: Option<String>,
    loser: Side,
    #[serde(default)]
    open: bool,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    Local,
    Remote,
    Both,
}

/// Appends the text of `change`; nothing where the change came to what its author made of the record.
pub(crate) fn write_json(change: &Change, text: &mut String) {
    let Some(outcome) = &change.outcome else { return };
    let shape = &change.shape;
    let name = |f: &u16| shape.fields.get(usize::from(*f));
    let kind = match change.kind {
        EntryKind::Delete => "delete",
        EntryKind::Upsert => "upsert",
        _ => "none",
    };
    // By hand: a reader takes it apart as [`Authored`].
    text.push_str(r#"{"kind":""#);
    text.push_str(kind);
    text.push('"');
    if let Some(fields) = &change.fields {
        text.push_str(r#","fields":"#);
        shape.write_field_names(fields, text);
    }
    text.push_str(r#","row":"#);
    shape.write_row(change.kind, &change.record, &change.row, text);
    if let Some(old) = change.old_values() {
        text.push_str(r#","old":"#);
        shape.write_values(change.fields.as_deref().unwrap_or_default(), old, text);
    }
    for (i, dropped) in outcome.dropped.iter().enumerate() {
        text.push_str(if i == 0 { r#","dropped":[{"# } else { ",{" });
        if let Some(field) = dropped.field.as_ref().and_then(name) {
            text.push_str(r#""field":"#);
            value::write_json_string(field, text);
            text.push(',');
        }
        let loser = match dropped.loser {
            Loser::Local => "local",
            Loser::Remote => "remote",
            Loser::Both => "both",
        };
        let open = if dropped.open { r#","open":true"# } else { "" };
        text.push_str(&format!(r#""loser":"{loser}"{open}}}"#));
    }
    if !outcome.dropped.is_empty() {
        text.push(']');
    }
    if let Some(refused) = &outcome.refused {
        text.push_str(r#","refused":"#);
        value::write_json_string(refused, text);
    }
    text.push('}');
}

/// Makes of a change as the rest of its row tells it, which is what its entry did, the one that its author sealed.
pub(crate) fn from_json(text: &str, layouts: &mut Layouts, mut change: Change) -> Result<Change, Error> {
    let damaged = |what: String| Error::Damaged(format!("what an author wrote: {what}"));
    let authored: Authored<'_> = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
    let shape = change.shape.clone();
    let index = |name: &String| {
        let found = shape.fields.iter().position(|f| f == name).and_then(|i| u16::try_from(i).ok());
        found.ok_or_else(|| damaged(format!("its row has no field `{name}`")))
    };
    let effect = match change.kind {
        EntryKind::Upsert => Effect::Row {
            row: std::mem::take(&mut change.row),
            fields: change.fields.take().map(Fields::into_vec),
        },
        EntryKind::Delete => Effect::Gone,
        _ => Effect::None,
    };
    change.kind = match authored.kind {
        Kind::Upsert => EntryKind::Upsert,
        Kind::Delete => EntryKind::Delete,
        Kind::None => EntryKind::Noop,
    };
    change.row = shape.read_row(change.kind, &change.record, authored.row.get())?;
    change.fields = match authored.fields {
        Some(names) => layouts
            .fields(&shape, ValueRef::Text(names.get().as_bytes()))
            .map_err(|e| damaged(e.to_string()))?,
        None => None,
    };
    if let (Some(old), Some(fields)) = (&authored.old, &change.fields) {
        let old = shape.read_values(fields, old.get()).map_err(damaged)?;
        if !change.set_old_values(old) {
            return Err(damaged("there are fewer old values than changed fields".into()));
        }
    }
    let dropped = authored.dropped.into_iter().map(|lost| {
        let field = lost.field.as_ref().map(index).transpose()?;
        Ok(Dropped { field, loser: lost.loser.into(), open: lost.open })
    });
    let dropped = dropped.collect::<Result<_, Error>>()?;
    change.outcome = Some(Box::new(Outcome { effect, dropped, refused: authored.refused }));
    Ok(change)
}

impl From<Side> for Loser {
    fn from(side: Side) -> Self {
        match side {
            Side::Local => Self::Local,
            Side::Remote => Self::Remote,
            Side::Both => Self::Both,
        }
    }
}

impl Shape {
    /// Whether a field's index is one of its own.
    pub(crate) fn has_field(&self, field: u16) -> bool {
        usize::from(field) < self.fields.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

    use std::sync::Arc;

    use super::*;
    use crate::value::Value;

    fn shape() -> Arc<Shape> {
        Arc::new(Shape {
            model: "note".into(),
            fields: ["id", "text", "owner"].map(String::from).to_vec(),
            key: vec![0],
            uuids: vec![true, false, true],
        })
    }

    fn row(text: &str) -> Vec<Value> {
        vec![Value::Blob([1; 16].into()), Value::Text(text.into()), Value::Blob([2; 16].into())]
    }

    fn change(kind: EntryKind, fields: Option<Vec<u16>>, row: Vec<Value>, outcome: Outcome) -> Change {
        Change {
            shape: shape(),
            record: "01010101-0101-0101-0101-010101010101".into(),
            kind,
            existed: true,
            fields: fields.map(Into::into),
            row,
            before: None,
            stamp: 1,
            rank: None,
            at: 2,
            mark: None,
            actor: None,
            decides: None,
            outcome: Some(Box::new(outcome)),
        }
    }

    /// What the other columns of the row say of the change: what its entry did.
    fn as_the_rest_tells(change: &Change) -> Change {
        let kind = change.effect();
        let mut row = change.row_after().to_vec();
        if kind != EntryKind::Upsert {
            row[1..].fill(Value::Null);
        }
        let fields = change.written().map(<[u16]>::to_vec);
        Change { kind, row, fields: fields.map(Into::into), before: None, outcome: None, ..change.clone() }
    }

    #[test]
    fn what_an_author_wrote_is_read_back_beside_what_stands() {
        let lost = Dropped { field: Some(1), loser: Loser::Remote, open: true };
        let stands = Effect::Row { row: row("the log's"), fields: Some(vec![2]) };
        let refused = Some("the record belongs to another".to_owned());
        let mut merged = change(
            EntryKind::Upsert,
            Some(vec![1, 2]),
            row("mine"),
            Outcome { effect: stands, dropped: vec![lost], refused: None },
        );
        assert!(merged.set_old_values([Value::Text("before".into()), Value::Blob([9; 16].into())]));
        let mut key_only = row("");
        key_only[1..].fill(Value::Null);
        let changes = [
            merged,
            change(
                EntryKind::Upsert,
                None,
                row("new"),
                Outcome { effect: Effect::None, dropped: vec![], refused },
            ),
            change(
                EntryKind::Delete,
                None,
                key_only,
                Outcome {
                    effect: Effect::None,
                    dropped: vec![Dropped { field: None, loser: Loser::Remote, open: false }],
                    refused: None,
                },
            ),
        ];
        for change in changes {
            let mut text = String::new();
            write_json(&change, &mut text);
            assert_eq!(
                from_json(&text, &mut Layouts::default(), as_the_rest_tells(&change)).unwrap(),
                change,
                "{text}"
            );
        }
    }

    #[test]
    fn damage_is_an_error_that_says_where() {
        let effect = || Outcome { effect: Effect::None, dropped: vec![], refused: None };
        let told = |text: &str| {
            let change = as_the_rest_tells(&change(EntryKind::Upsert, Some(vec![1]), row("x"), effect()));
            from_json(text, &mut Layouts::default(), change).unwrap_err().to_string()
        };
        for text in [
            "",
            "[]",
            r#"{"kind":"other","row":[]}"#,
            r#"{"kind":"upsert","row":[1,2,3],"fields":["unknown"]}"#,
            r#"{"kind":"upsert","row":[1,2,3],"fields":["text","owner"],"old":[1]}"#,
        ] {
            let told = told(text);
            assert!(told.contains("what an author wrote"), "{text}: {told}");
        }
    }
}

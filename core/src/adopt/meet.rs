//! Table and log are brought together where other devices synced a model before it was opened here.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use crate::{
    apply::Writer,
    entry::{Change, EntryKind, Shape},
    error::Error,
    layout::Layouts,
    overlay,
    record::RecordId,
    seal,
    store::{Mode, Model, Tx},
    value::Value,
};

/// Brings table and log together for models of which the log held records before they were opened here. Part of the
/// start, before anything else is applied or accepted.
pub(crate) fn meet_log(tx: &mut Tx<'_>) -> Result<(), Error> {
    const MET: &str =
        "SELECT a.model FROM sync_adoption a JOIN sync_shape s ON s.model = a.model AND s.current = 1
        WHERE a.logged = 1 AND a.adopted = 1";
    let ids: Vec<String> =
        tx.conn.prepare(MET)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    if ids.is_empty() {
        return Ok(());
    }
    // What was captured is the log's business, or pending's, first.
    seal::seal_all(tx)?;
    let mut unseen = seal::Unseen::begin(tx)?;
    for model in tx.models.iter().filter(|m| ids.iter().any(|id| id == m.descriptor.id)) {
        meet_model(tx, model, &mut unseen)?;
    }
    unseen.finish(tx)?;
    for id in &ids {
        tx.conn.execute("DELETE FROM sync_adoption WHERE model = ?1", [id])?;
    }
    Ok(())
}

fn meet_model(tx: &Tx<'_>, model: &Model, unseen: &mut seal::Unseen<'_>) -> Result<(), Error> {
    let number = tx.numbers.of(tx.conn, &model.shape)?.model;
    let mut layouts = Layouts::default();
    let mut statement =
        tx.conn.prepare("SELECT DISTINCT record FROM sync_entry WHERE model = ?1 AND record IS NOT NULL")?;
    let mut records = statement.query([number])?;
    let (mut met, mut written) = (0u64, 0u64);
    while let Some(record) = records.next()? {
        let record = RecordId::read(record.get_ref(0)?)?;
        let Some(said) = last_entry(tx, &mut layouts, number, &record)? else { continue };
        let here = said.row_here(tx, model)?;
        match here {
            Some(row) if said.differs(model, &row) => {
                let at = tx.world.now();
                let rank = Some(super::rank(at));
                let own = Change { row, kind: EntryKind::Upsert, at, rank, ..said.change(&model.shape) };
                unseen.put(tx, model, own)?;
                met += 1;
            }
            None if said.kind == EntryKind::Upsert => {
                write(tx, model, &said.change(&said.shape))?;
                written += 1;
            }
            _ => {}
        }
    }
    tracing::info!(
        model = model.descriptor.id,
        written,
        met,
        "a model that other devices synced before is brought together with its table"
    );
    Ok(())
}

/// The last entry of a record that had an effect.
struct LastEntry {
    record: RecordId,
    kind: EntryKind,
    shape: Arc<Shape>,
    row: Vec<Value>,
}

fn last_entry(
    tx: &Tx<'_>,
    layouts: &mut Layouts,
    number: i64,
    record: &RecordId,
) -> Result<Option<LastEntry>, Error> {
    let found: Option<(i64, i64, String)> = tx
        .conn
        .prepare_cached(
            "SELECT kind, layout, data FROM sync_entry WHERE model = ?1 AND record = ?2 AND kind IN (1, 2)
             ORDER BY seq DESC LIMIT 1",
        )?
        .query_row(params![number, record], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    let Some((kind, layout, data)) = found else { return Ok(None) };
    let kind = if kind == EntryKind::Delete as i64 { EntryKind::Delete } else { EntryKind::Upsert };
    let shape = Arc::clone(layouts.get(tx.conn, layout)?);
    let row = shape.read_row(kind, record, &data)?;
    Ok(Some(LastEntry { record: record.clone(), kind, shape, row }))
}

impl LastEntry {
    /// The value of a field of the model; `None` where the entry's author did not have it.
    fn value(&self, field: &str) -> Option<&Value> {
        self.shape.fields.iter().position(|f| f == field).map(|i| &self.row[i])
    }

    /// The record's row as it stands in the table.
    fn row_here(&self, tx: &Tx<'_>, model: &Model) -> Result<Option<Vec<Value>>, Error> {
        let value = |&i: &usize| self.value(&model.shape.fields[i]).cloned().unwrap_or_default();
        let key: Vec<Value> = model.shape.key.iter().map(value).collect();
        model.row(tx.conn, &key)
    }

    fn differs(&self, model: &Model, here: &[Value]) -> bool {
        let said = |(field, here): (&String, &Value)| self.value(field).is_some_and(|said| said != here);
        self.kind == EntryKind::Delete || model.shape.fields.iter().zip(here).any(said)
    }

    /// A change of all fields of the record.
    fn change(&self, shape: &Arc<Shape>) -> Change {
        Change {
            shape: Arc::clone(shape),
            record: self.record.clone(),
            kind: self.kind,
            existed: false,
            fields: None,
            row: self.row.clone(),
            before: None,
            stamp: 0,
            rank: None,
            at: 0,
            mark: None,
            actor: None,
            decides: None,
            outcome: None,
        }
    }
}

/// Writes a record as the log has it, with what is pending of it laid over.
fn write(tx: &Tx<'_>, model: &Model, image: &Change) -> Result<(), Error> {
    let Some(mut writer) = Writer::new(tx, &image.shape)? else { return Ok(()) };
    let overlaid = overlay::overlaid(tx, image)?;
    if tx.foreign_triggers {
        tx.set_mode(Mode::Off)?;
    }
    let written = writer.replace(overlaid.as_ref().unwrap_or(image));
    if tx.foreign_triggers {
        tx.set_mode(Mode::Capture)?;
    }
    written.map_err(|error| match error {
        Error::Database { source, .. } => Error::Table {
            model: model.descriptor.id.to_owned(),
            table: model.descriptor.table.clone(),
            reason: format!(
                "record {} of the log does not fit beside the rows that are here ({source})",
                image.record
            ),
            remedy: "Change or delete the row here that is in its way, and start again".to_owned(),
        },
        other => other,
    })
}

//! Announce: finding the changes that no recorder saw.
//!
//! While an application migrates its schema the capture triggers are off, and a table that is rebuilt loses them.
//! Such a table is suspect: when its library is next opened every row is compared with what the log, or what is
//! pending, last said of its record; a field that it did not say counts as what every device fills it with. What differs
//! is put into the outbox as if it had just been written; a row that says what the log says costs no entry, so that
//! adding a column sends nothing. Fields that were never said are the leader's to tell: every device migrates alike, and
//! one of them is enough.

use std::collections::HashSet;

use crate::{
    capture::quote,
    entry::Shape,
    error::Error,
    layout::{Layouts, last_said, model_row},
    record::RecordId,
    seal,
    sql::{Bound, read_value},
    store::{Model, Tx},
    value::Value,
};

/// Announces what went uncaptured in suspect tables, and clears the suspicion.
pub(crate) fn announce_suspects(tx: &mut Tx<'_>) -> Result<(), Error> {
    let suspects: Vec<(i64, String)> = tx
        .conn
        .prepare("SELECT id, model FROM sync_shape WHERE suspect = 1 AND current = 1")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    if suspects.is_empty() {
        return Ok(());
    }
    // What was captured before is the log's business first.
    seal::seal_all(tx)?;
    for (shape, id) in suspects {
        if let Some(model) = tx.models.iter().find(|m| m.descriptor.id == id) {
            let found = announce(tx, model, shape)?;
            tracing::info!(
                model = id,
                found,
                "a table that was changed while no recorder saw it is compared"
            );
        }
        tx.conn.execute("UPDATE sync_shape SET suspect = 0 WHERE id = ?1", [shape])?;
    }
    Ok(())
}

fn announce(tx: &Tx<'_>, model: &Model, shape: i64) -> Result<u64, Error> {
    let shape_of = &model.shape;
    let fields: Vec<String> = shape_of.fields.iter().map(|f| quote(f)).collect();
    let places = |side: char| (0..fields.len()).map(|i| format!(", {side}{i}")).collect::<String>();
    let record_row = |kind: u8, side: char| {
        let values: String = (0..fields.len()).map(|i| format!(", ?{}", i + 1)).collect();
        format!(
            "INSERT INTO sync_outbox (shape, kind, mode, at{}) SELECT {shape}, {kind}, mode,
             coalesce(clock, CAST(unixepoch('subsec') * 1000 AS INTEGER)){values} FROM sync_ctl",
            places(side)
        )
    };
    let put = |kind: u8, side: char, row: &[Value]| -> Result<(), Error> {
        tx.conn
            .prepare_cached(&record_row(kind, side))?
            .execute(rusqlite::params_from_iter(row.iter().map(Bound)))?;
        Ok(())
    };
    let model_row = model_row(tx.conn, &shape_of.model)?;
    let mut layouts = Layouts::default();
    let leads = tx.replica()?.is_leader();
    let mut found = 0;
    let mut seen = HashSet::new();
    let mut select =
        tx.conn.prepare(&format!("SELECT {} FROM {}", fields.join(", "), quote(&model.descriptor.table)))?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let row =
            (0..fields.len()).map(|i| Ok(read_value(row.get_ref(i)?))).collect::<Result<Vec<_>, Error>>()?;
        let record = shape_of.record_id(&row);
        let said = last_said(tx.conn, &mut layouts, model_row, &record)?;
        let differs = match said.as_ref().and_then(|said| said.row_as(shape_of)) {
            None => Some(1),
            Some(said) => {
                let mut fields = said.iter().zip(&model.fills).zip(&row);
                fields.any(|((said, fill), v)| said.map_or(leads && fill != v, |said| said != v)).then_some(4)
            }
        };
        if let Some(kind) = differs {
            put(kind, 'v', &row)?;
            found += 1;
        }
        seen.insert(record);
    }
    let mut select = tx.conn.prepare("SELECT DISTINCT record FROM sync_entry WHERE model = ?1")?;
    let mut rows = select.query([model_row])?;
    while let Some(row) = rows.next()? {
        let record = RecordId::read(row.get_ref(0)?)?;
        if !seen.contains(&record)
            && let Some(row) = last_known(tx, shape_of, &record)?
        {
            put(3, 'o', &row)?;
            found += 1;
        }
    }
    Ok(found)
}

/// The record's last known row in the fields of a shape; a field that it did not have yet counts as NULL.
pub(crate) fn last_known(tx: &Tx<'_>, shape: &Shape, record: &RecordId) -> Result<Option<Vec<Value>>, Error> {
    let model = model_row(tx.conn, &shape.model)?;
    let said = last_said(tx.conn, &mut Layouts::default(), model, record)?;
    let row = said.as_ref().and_then(|said| said.row_as(shape));
    Ok(row.map(|row| row.into_iter().map(|v| v.cloned().unwrap_or_default()).collect()))
}

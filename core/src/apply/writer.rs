//! Writing rows into their tables, and taking them out for a while: what is local to this device stays with it.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{CachedStatement, OptionalExtension, params_from_iter};

use crate::{
    entry::{Change, EntryKind, Shape},
    error::Error,
    record::RecordId,
    sql::{Bound, bind, read_value},
    store::{Model, RowSql, Tx},
    value::Value,
};

/// Values of local columns of rows that stepped out, by model and record: key, values.
pub(crate) type LocalValues = HashMap<(usize, RecordId), (Vec<Value>, Vec<Value>)>;

/// Gives rows that stepped out and came back the values of their local columns.
pub(crate) fn put_back(tx: &Tx<'_>, kept: LocalValues) -> Result<(), Error> {
    for ((model, _), (key, values)) in kept {
        let sql = tx.models[model].sql.update_local.as_deref().unwrap_or_default();
        tx.conn.prepare_cached(sql)?.execute(params_from_iter(values.iter().chain(&key).map(Bound)))?;
    }
    Ok(())
}

/// Takes a record's row out of its table, keeping what is local.
pub(crate) fn step_out(tx: &Tx<'_>, change: &Change, kept: &mut LocalValues) -> Result<(), Error> {
    match Writer::new(tx, &change.shape)? {
        Some(mut writer) => writer.step_out(tx, change, kept),
        None => Ok(()),
    }
}

/// The writers of the shapes that were met.
#[derive(Default)]
pub(crate) struct Writers<'c>(Vec<(Arc<Shape>, Option<Writer<'c>>)>);

impl<'c> Writers<'c> {
    /// That of a shape; `None` for a model that this release does not have.
    pub(crate) fn of(&mut self, tx: &Tx<'c>, shape: &Arc<Shape>) -> Result<Option<&mut Writer<'c>>, Error> {
        let same = |(met, _): &(Arc<Shape>, _)| Arc::ptr_eq(met, shape);
        let met = self.0.iter().position(same).or_else(|| self.0.iter().position(|(met, _)| *met == *shape));
        let at = match met {
            Some(at) => at,
            None => {
                self.0.push((Arc::clone(shape), Writer::new(tx, shape)?));
                self.0.len() - 1
            }
        };
        Ok(self.0[at].1.as_mut())
    }
}

/// Writes rows of one shape into its table.
pub(crate) struct Writer<'c> {
    index: usize,
    model: &'c Model,
    insert: CachedStatement<'c>,
    upsert: CachedStatement<'c>,
    delete: CachedStatement<'c>,
    /// For each of the table's fields, where it is in the sent row; `None`: the model's fill.
    map: Option<Vec<Option<usize>>>,
    key: Vec<usize>,
}

impl<'c> Writer<'c> {
    /// `None` for a model that this release does not have.
    pub(crate) fn new(tx: &Tx<'c>, shape: &Arc<Shape>) -> Result<Option<Self>, Error> {
        let Some(index) = tx.models.iter().position(|m| m.descriptor.id == shape.model) else {
            return Ok(None);
        };
        let model = &tx.models[index];
        let RowSql { insert, upsert, delete, .. } = &model.sql;
        let map = (model.shape != *shape)
            .then(|| model.shape.fields.iter().map(|f| shape.fields.iter().position(|s| s == f)).collect());
        if !shape.has_key_of(&model.shape) {
            return Err(Error::Table {
                model: shape.model.clone(),
                table: model.descriptor.table.clone(),
                reason: "its rows come from a device where it has another key".to_owned(),
                remedy: "Bring both devices to the same release of the application".to_owned(),
            });
        }
        let key = shape.key.clone();
        let prepare = |sql: &'c str| tx.conn.prepare_cached(sql);
        let (insert, upsert, delete) = (prepare(insert)?, prepare(upsert)?, prepare(delete)?);
        Ok(Some(Self { index, model, insert, upsert, delete, map, key }))
    }

    /// Makes the record in the table what the change's entry leaves of it.
    pub(super) fn write(&mut self, change: &Change) -> Result<(), Error> {
        // A record that is here all the same meets a constraint, and the batch is written the other way.
        self.put(change, !change.existed && change.outcome.is_none())
    }

    /// [`Writer::write`], whatever is there.
    pub(crate) fn replace(&mut self, change: &Change) -> Result<(), Error> {
        self.put(change, false)
    }

    fn put(&mut self, change: &Change, is_new: bool) -> Result<(), Error> {
        if change.effect() == EntryKind::Delete {
            self.delete.execute(params_from_iter(self.key.iter().map(|&i| Bound(&change.row[i]))))?;
            return Ok(());
        }
        let statement = if is_new { &mut self.insert } else { &mut self.upsert };
        let row = change.row_after();
        match &self.map {
            None => {
                for (i, value) in row.iter().enumerate() {
                    statement.raw_bind_parameter(i + 1, Bound(value))?;
                }
            }
            Some(map) => {
                for (i, from) in map.iter().enumerate() {
                    let value = bind(from.map_or(&self.model.fills[i], |from| &row[from]));
                    statement.raw_bind_parameter(i + 1, rusqlite::types::ToSqlOutput::Borrowed(value))?;
                }
            }
        }
        statement.raw_execute()?;
        Ok(())
    }

    pub(super) fn step_out(
        &mut self,
        tx: &Tx<'_>,
        change: &Change,
        kept: &mut LocalValues,
    ) -> Result<(), Error> {
        let key: Vec<Value> = self.key.iter().map(|&i| change.row[i].clone()).collect();
        if let Some(select) = &self.model.sql.select_local {
            let count = self.model.descriptor.local.len();
            let local = tx
                .conn
                .prepare_cached(select)?
                .query_row(params_from_iter(key.iter().map(Bound)), |row| {
                    (0..count).map(|i| Ok(read_value(row.get_ref(i)?))).collect::<Result<Vec<_>, _>>()
                })
                .optional()?;
            if let Some(local) = local {
                kept.insert((self.index, change.record.clone()), (key.clone(), local));
            }
        }
        self.delete.execute(params_from_iter(key.iter().map(Bound)))?;
        Ok(())
    }
}

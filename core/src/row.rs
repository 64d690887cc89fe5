//! A row as an application looks at it: values by the names of the columns.

use std::fmt;

use sea_orm::{ActiveModelTrait, EntityTrait, IdenStatic, Iterable, ModelTrait, TryIntoModel};

use crate::{
    entry::Shape,
    model::{ModelDescriptor, ModelError, Syncable, build_model},
    value::{self, Value, row_to_json},
};

/// The synced columns of a record, or some of them, in the order of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row(Vec<(String, Value)>);

impl Row {
    /// The synced columns of a model.
    ///
    /// # Errors
    /// [`ModelError`], when the model cannot be synced as declared.
    pub fn of<M>(model: &M) -> Result<Self, ModelError>
    where
        M: Syncable,
        <M::Entity as EntityTrait>::ActiveModel: TryIntoModel<M>,
    {
        let descriptor = ModelDescriptor::of::<M>()?;
        let columns = <M::Entity as EntityTrait>::Column::iter();
        let value = |column: <M::Entity as EntityTrait>::Column| {
            (column.as_str().to_owned(), value::from_sea(&ModelTrait::get(model, column)))
        };
        let is_synced = |(name, _): &(String, Value)| descriptor.field_names().any(|field| field == name);
        Ok(Self(columns.map(value).filter(is_synced).collect()))
    }

    /// The row as the Rust model; columns that it does not hold are NULL, or their type's zero.
    ///
    /// # Errors
    /// A sentence: the row holds what the model cannot, or the model cannot be synced as declared.
    pub fn model<M>(&self) -> Result<M, String>
    where
        M: Syncable,
        <M::Entity as EntityTrait>::ActiveModel: TryIntoModel<M> + ActiveModelTrait<Entity = M::Entity>,
    {
        let mut descriptor = ModelDescriptor::of::<M>().map_err(|e| e.to_string())?;
        descriptor.fields.retain(|field| self.get(&field.name).is_some());
        let values: Vec<Value> =
            descriptor.field_names().filter_map(|name| self.get(name)).cloned().collect();
        build_model::<M>(&descriptor, &values)
    }

    /// A column's value; `None` if the row does not hold it.
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == column).map(|(_, value)| value)
    }

    /// Puts a column's value into the row.
    pub fn set(&mut self, column: &str, value: Value) {
        match self.0.iter_mut().find(|(name, _)| name == column) {
            Some((_, old)) => *old = value,
            None => self.0.push((column.to_owned(), value)),
        }
    }

    /// Columns and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Whether it holds no column.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The row as a JSON object, in the form of the log's `data`: what JSON cannot say is escaped, so that nothing is lost.
    pub fn to_json(&self) -> String {
        let values: Vec<Value> = self.0.iter().map(|(_, value)| value.clone()).collect();
        row_to_json(self.0.iter().map(|(name, _)| name.as_str()), &values)
    }

    /// Reads [`Row::to_json`].
    ///
    /// # Errors
    /// A sentence about what in the text is not of that form.
    pub fn from_json(json: &str) -> Result<Self, String> {
        value::row_from_json(json).map(Self)
    }

    /// Values in the fields of a shape; those that `which` names, or all.
    pub(crate) fn in_shape(shape: &Shape, values: &[Value], which: Option<&[u16]>) -> Self {
        let named = |i: usize| which.is_none_or(|which| which.iter().any(|&f| usize::from(f) == i));
        let fields = shape.fields.iter().zip(values).enumerate().filter(|(i, _)| named(*i));
        Self(fields.map(|(_, (name, value))| (name.clone(), value.clone())).collect())
    }
}

impl FromIterator<(String, Value)> for Row {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(columns: I) -> Self {
        let mut row = Self::default();
        columns.into_iter().for_each(|(name, value)| row.set(&name, value));
        row
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_json())
    }
}

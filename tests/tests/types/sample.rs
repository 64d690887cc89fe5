//! A model with a column of every type that SeaORM maps for SQLite. All but the key may be NULL.

#![allow(unreachable_pub, reason = "written as an application writes its entities")]

use sea_orm::{
    ColIdx, DbErr, QueryResult, TryGetError, TryGetable,
    entity::prelude::*,
    sea_query::{ArrayType, ColumnType, Nullable, Value, ValueType, ValueTypeErr},
};
use tidelog::Syncable;

/// An unsigned number of 64 bits that can be read back: SeaORM 2.0.4 writes `u64` to SQLite, but does not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text")]
pub enum Kind {
    #[sea_orm(string_value = "file")]
    File,
    #[sea_orm(string_value = "folder")]
    Folder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "i32", db_type = "Integer")]
pub enum Level {
    #[sea_orm(num_value = 0)]
    Low,
    #[sea_orm(num_value = 7)]
    High,
}

#[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
#[sea_orm(table_name = "samples")]
#[sync(model = "sample")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub a_bool: Option<bool>,
    pub an_i8: Option<i8>,
    pub an_i16: Option<i16>,
    pub an_i32: Option<i32>,
    pub an_i64: Option<i64>,
    pub a_u8: Option<u8>,
    pub a_u16: Option<u16>,
    pub a_u32: Option<u32>,
    pub a_size: Option<Size>,
    pub an_f32: Option<f32>,
    pub an_f64: Option<f64>,
    pub a_string: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub a_text: Option<String>,
    pub bytes: Option<Vec<u8>>,
    pub a_uuid: Option<Uuid>,
    pub a_json: Option<Json>,
    pub a_kind: Option<Kind>,
    pub a_level: Option<Level>,
    pub a_date: Option<Date>,
    pub a_time: Option<Time>,
    pub a_date_time: Option<DateTime>,
    pub an_instant: Option<DateTimeUtc>,
    pub a_zoned: Option<DateTimeWithTimeZone>,
    pub a_local: Option<DateTimeLocal>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl From<Size> for Value {
    fn from(size: Size) -> Self {
        Self::BigUnsigned(Some(size.0))
    }
}

impl Nullable for Size {
    fn null() -> Value {
        Value::BigUnsigned(None)
    }
}

impl ValueType for Size {
    fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
        if let Value::BigUnsigned(Some(size)) = value { Ok(Self(size)) } else { Err(ValueTypeErr) }
    }

    fn type_name() -> String {
        "Size".into()
    }

    fn array_type() -> ArrayType {
        ArrayType::BigUnsigned
    }

    fn column_type() -> ColumnType {
        ColumnType::BigUnsigned
    }
}

impl TryGetable for Size {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        let stored = i64::try_get_by(row, index)?;
        <u64 as TryFrom<i64>>::try_from(stored)
            .map(Self)
            .map_err(|e| TryGetError::DbErr(DbErr::Type(e.to_string())))
    }
}

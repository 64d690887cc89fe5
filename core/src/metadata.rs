//! What many models keep of a record: when it was created, when it was changed, whether it is deleted.
//!
//! A model asks for it field by field, and leaves out what it does not want:
//!
//! ```
//! mod note {
//!     use sea_orm::entity::prelude::*;
//!     use tidelog::Syncable;
//!
//!     #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
//!     #[sea_orm(table_name = "notes")]
//!     pub struct Model {
//!         #[sea_orm(primary_key, auto_increment = false)]
//!         pub id: Uuid,
//!         pub text: String,
//!         #[sync(created_at)]
//!         pub created_at: DateTimeUtc,
//!         #[sync(updated_at, merge = "max")]
//!         pub updated_at: DateTimeUtc,
//!         #[sync(soft_delete)]
//!         pub deleted_at: Option<DateTimeUtc>,
//!     }
//!
//!     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
//!     pub enum Relation {}
//! }
//! use sea_orm::{ActiveModelTrait, Set};
//! use tidelog::metadata::{FindLive, SoftDelete};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pair = tidelog::testing::pair::<(note::Entity,)>().await?;
//! let db = &pair.leader.db;
//! let note = note::ActiveModel { text: Set("hello".into()), ..Default::default() }.insert(db).await?;
//! assert_eq!(note.created_at, note.updated_at);
//!
//! let note = note.soft_delete(db).await?; // an update: it can be undone, and merges like any other
//! pair.level().await?;
//! let there = &pair.follower.db;
//! assert!(note::Entity::find_live().all(there).await?.is_empty());
//! assert_eq!(note::Entity::find_deleted().all(there).await?, [note.clone()]);
//! note.restore(db).await?;
//! # Ok(())
//! # }
//! ```
//!
//! | attribute | type of the field | filled |
//! |---|---|---|
//! | `created_at` | a [`Timestamp`] | at an insert, where it is not set |
//! | `updated_at` | a [`Timestamp`] | at an insert, where it is not set, and at an update that sets another synced column |
//! | `soft_delete` | `bool`, or `Option` of a timestamp | by [`SoftDelete`]; a `bool` is `false` at an insert, where it is not set |
//!
//! The time is this machine's clock, in UTC, to the millisecond. What the application sets itself stays as it is: an
//! import keeps its times.
//!
//! [`behavior::before_save`](crate::behavior::before_save) fills them, so that what passes SeaORM's hooks by passes this
//! by: `insert_many`, `update_many`, raw SQL. A model with `#[sync(behavior = "own")]` makes that call itself and needs no
//! other. Changes of other devices bring their own times. An update that sets only `#[sync(local)]` columns is no change of
//! the record, unless `updated_at` is local too. Deleting for good is what it always was: `delete`.

use async_trait::async_trait;
use chrono::{DateTime, FixedOffset, Local, NaiveDateTime, SubsecRound, Utc};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel, Iterable,
    ModelTrait, QueryFilter, Select,
    sea_query::{ArrayType, Value as SeaValue},
};

use crate::model::Syncable;

/// The columns that `#[sync(created_at)]`, `#[sync(updated_at)]` and `#[sync(soft_delete)]` name, see
/// [`crate::metadata`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Column with the time of the insert.
    pub created_at: Option<&'static str>,
    /// Column with the time of the last change.
    pub updated_at: Option<&'static str>,
    /// Column that says whether the record is deleted.
    pub soft_delete: Option<&'static str>,
}

impl Metadata {
    pub(crate) fn columns(&self) -> impl Iterator<Item = &&'static str> {
        self.created_at.iter().chain(&self.updated_at).chain(&self.soft_delete)
    }

    /// What a column of this type must be, for what it is named for; `None` if it is that, or not named.
    pub(crate) fn misfit(&self, column: &str, kind: &ArrayType, nullable: bool) -> Option<&'static str> {
        let holds_time = time_as(kind, now()).is_some();
        if self.soft_delete == Some(column) && *kind != ArrayType::Bool && !(holds_time && nullable) {
            return Some("a `bool` or an `Option` of a point in time");
        }
        let is_time = self.created_at == Some(column) || self.updated_at == Some(column);
        (is_time && !holds_time).then_some("a point in time, see tidelog::metadata::Timestamp")
    }
}

/// A type that holds a point in time: what `#[sync(created_at)]` and `#[sync(updated_at)]` fill. An `i64` counts
/// milliseconds since 1970, a date and time without a zone is in UTC. It may be implemented for a type of your own that
/// SeaORM stores as one of these.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot hold the time that tidelog fills in",
    label = "no point in time",
    note = "write `DateTimeUtc`, `DateTimeWithTimeZone`, `DateTime`, `i64` (ms since 1970), or an `Option` of one of them"
)]
pub trait Timestamp {}

impl Timestamp for DateTime<Utc> {}
impl Timestamp for DateTime<Local> {}
impl Timestamp for DateTime<FixedOffset> {}
impl Timestamp for NaiveDateTime {}
impl Timestamp for i64 {}
impl<T: Timestamp> Timestamp for Option<T> {}

/// A type that says whether a record is deleted: `bool`, or an `Option` of a [`Timestamp`], whose `None` is a live record.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot say whether a record is deleted",
    label = "neither `bool` nor an optional time",
    note = "write `Option<DateTimeUtc>`, another `Option` of a point in time, or `bool`"
)]
pub trait DeletedMark {}

impl DeletedMark for bool {}
impl<T: Timestamp> DeletedMark for Option<T> {}

type Active<M> = <<M as ModelTrait>::Entity as EntityTrait>::ActiveModel;
type Column<M> = <<M as ModelTrait>::Entity as EntityTrait>::Column;

/// A model with a `#[sync(soft_delete)]` field: a deletion is an update of it, so that the record stays, can be restored,
/// and meets the changes of others field by field where the model's policy is `fields`. Implemented by the derive.
#[async_trait]
pub trait SoftDelete: Syncable + IntoActiveModel<Active<Self>> + Send {
    /// Place of the field among the entity's columns.
    #[doc(hidden)]
    const SOFT_DELETE: usize;

    /// Whether the record is marked as deleted.
    fn is_deleted(&self) -> bool {
        !is_live(&self.get(soft_delete_column::<Self>()))
    }

    /// Marks the record as deleted, with the present time where the field holds one. One that is marked already is
    /// returned as it is, with nothing written.
    ///
    /// # Errors
    /// The database's, and those of your own hooks; nothing was written. [`DbErr::RecordNotUpdated`] where the row is
    /// gone.
    async fn soft_delete<C: ConnectionTrait>(self, db: &C) -> Result<Self, DbErr>
    where
        Self::Entity: EntityTrait<Model = Self>,
        Active<Self>: Send,
    {
        if self.is_deleted() { Ok(self) } else { set_deleted(self, db, true).await }
    }

    /// Takes the mark off again. A record that has none is returned as it is, with nothing written.
    ///
    /// # Errors
    /// As those of [`soft_delete`](Self::soft_delete).
    async fn restore<C: ConnectionTrait>(self, db: &C) -> Result<Self, DbErr>
    where
        Self::Entity: EntityTrait<Model = Self>,
        Active<Self>: Send,
    {
        if self.is_deleted() { set_deleted(self, db, false).await } else { Ok(self) }
    }
}

/// Queries that tell live records from those marked as deleted; for every entity whose model is [`SoftDelete`].
pub trait FindLive: EntityTrait {
    /// `find()` without the records marked as deleted.
    fn find_live() -> Select<Self>;
    /// `find()` of the records marked as deleted only.
    fn find_deleted() -> Select<Self>;
}

impl<E> FindLive for E
where
    E: EntityTrait,
    E::Model: SoftDelete,
{
    fn find_live() -> Select<Self> {
        Self::find().filter(live::<E::Model>())
    }

    fn find_deleted() -> Select<Self> {
        Self::find().filter(live::<E::Model>().not())
    }
}

/// Never NULL itself, so that its opposite is what it seems.
fn live<M: SoftDelete>() -> Condition {
    let column = soft_delete_column::<M>();
    let live = Condition::any().add(column.is_null());
    if M::get_value_type(column) == ArrayType::Bool { live.add(column.eq(false)) } else { live }
}

fn is_live(value: &SeaValue) -> bool {
    *value == SeaValue::Bool(Some(false)) || *value == value.as_null()
}

fn soft_delete_column<M: SoftDelete>() -> Column<M> {
    Column::<M>::iter().nth(M::SOFT_DELETE).expect("the derive counts the entity's own columns")
}

async fn set_deleted<M, C>(model: M, db: &C, deleted: bool) -> Result<M, DbErr>
where
    M: SoftDelete,
    M::Entity: EntityTrait<Model = M>,
    Active<M>: Send,
    C: ConnectionTrait,
{
    let column = soft_delete_column::<M>();
    let kind = M::get_value_type(column);
    let value = if kind == ArrayType::Bool {
        SeaValue::Bool(Some(deleted))
    } else if deleted {
        time_as(&kind, now())
            .ok_or_else(|| DbErr::Type(format!("{kind:?} is no point in time; nothing was written")))?
    } else {
        model.get(column).as_null()
    };
    let mut active = model.into_active_model();
    active.try_set(column, value)?;
    active.update(db).await
}

/// The machine's clock.
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(3)
}

/// A time as a column of this type has it; `None` for what holds no time.
pub(crate) fn time_as(kind: &ArrayType, now: DateTime<Utc>) -> Option<SeaValue> {
    Some(match kind {
        ArrayType::ChronoDateTimeUtc => now.into(),
        ArrayType::ChronoDateTimeLocal => now.with_timezone(&Local).into(),
        ArrayType::ChronoDateTimeWithTimeZone => now.fixed_offset().into(),
        ArrayType::ChronoDateTime => now.naive_utc().into(),
        ArrayType::BigInt => now.timestamp_millis().into(),
        _ => return None,
    })
}

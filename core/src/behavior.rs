//! What happens around SeaORM's save and delete of a synced model.
//!
//! `#[derive(Syncable)]` emits an `ActiveModelBehavior` whose four hooks call the four functions here. They fill a
//! UUID key that is not set, refuse at once what SQLite cannot store, tell the open libraries what was written
//! ([`crate::notice`]), and, for models that are [recorded by hooks](crate::model::Recorder::Hooks), copy the row into
//! the outbox.
//!
//! | on the model | who implements `ActiveModelBehavior` |
//! |---|---|
//! | nothing | the derive |
//! | `#[sync(hooks)]` | the derive; your own four hooks go into an impl of [`Hooks`] and are called around ours |
//! | `#[sync(behavior = "own")]` | you, with the calls below |
//!
//! With a behavior of your own, make the same calls as the derive does:
//!
//! ```
//! mod note {
//!     use sea_orm::entity::prelude::*;
//!     use tidelog::{Syncable, behavior};
//!
//!     #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
//!     #[sea_orm(table_name = "note")]
//!     #[sync(behavior = "own")]
//!     pub struct Model {
//!         #[sea_orm(primary_key, auto_increment = false)]
//!         pub id: Uuid,
//!         pub text: String,
//!     }
//!
//!     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
//!     pub enum Relation {}
//!
//!     #[async_trait::async_trait]
//!     impl ActiveModelBehavior for ActiveModel {
//!         async fn before_save<C: ConnectionTrait>(self, db: &C, insert: bool) -> Result<Self, DbErr> {
//!             behavior::before_save::<Model, C>(self, db, insert).await // last: nothing may change behind it
//!         }
//!         async fn after_save<C: ConnectionTrait>(model: Model, db: &C, insert: bool) -> Result<Model, DbErr> {
//!             behavior::after_save::<Model, C>(model, db, insert).await // first
//!         }
//!         async fn before_delete<C: ConnectionTrait>(self, db: &C) -> Result<Self, DbErr> {
//!             behavior::before_delete::<Model, C>(self, db).await // last: the row must still be there
//!         }
//!         async fn after_delete<C: ConnectionTrait>(self, db: &C) -> Result<Self, DbErr> {
//!             behavior::after_delete::<Model, C>(self, db).await // first
//!         }
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! Left out on purpose: SeaORM runs these hooks for `insert`, `update`, `save` and `delete` of an `ActiveModel` only.
//! `insert_many`, `update_many`, `Entity::delete_by_id`, raw SQL and cascades pass them by, and
//! `update_without_returning` runs `before_save` alone. On a bare connection they run outside the statement's
//! transaction. That is why the trigger is the recorder unless a model or a library says otherwise.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use once_cell::sync::Lazy;
use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityName, EntityTrait,
    IdenStatic, Iterable, PrimaryKeyToColumn, Statement, TryIntoModel,
    sea_query::{ArrayType, Value as SeaValue},
};
use uuid::Uuid;

use crate::{
    capture::quote,
    metadata,
    model::{ModelDescriptor, Policy, Recorder, Syncable},
    notice::{self, Libraries, NoticeKind},
    value,
};

/// Your own hooks beside tidelog's, for models with `#[sync(hooks)]`: the four of SeaORM's `ActiveModelBehavior`,
/// and `new`.
///
/// `before_…` run before tidelog's, so that it sees what you changed; `after_…` run after it. An error from `after_…`
/// reaches the caller, but the row is written: SeaORM undoes it only if the caller's transaction is rolled back.
///
/// ```
/// mod note {
///     use sea_orm::{Set, entity::prelude::*};
///     use tidelog::Syncable;
///
///     #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
///     #[sea_orm(table_name = "note")]
///     #[sync(hooks)]
///     pub struct Model {
///         #[sea_orm(primary_key, auto_increment = false)]
///         pub id: Uuid,
///         pub text: String,
///     }
///
///     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
///     pub enum Relation {}
///
///     #[async_trait::async_trait]
///     impl tidelog::Hooks for ActiveModel {
///         fn new() -> Self {
///             Self { text: Set("untitled".into()), ..ActiveModelTrait::default() }
///         }
///     }
/// }
/// # use sea_orm::ActiveModelBehavior;
/// assert_eq!(note::ActiveModel::new().text.unwrap(), "untitled");
/// ```
#[async_trait]
pub trait Hooks: ActiveModelTrait {
    /// A fresh `ActiveModel`. Leave the key unset: with the key set, `save` is an update.
    fn new() -> Self {
        <Self as ActiveModelTrait>::default()
    }

    /// Before an insert or update. An error ends it, with nothing written.
    async fn before_save<C>(self, _db: &C, _insert: bool) -> Result<Self, DbErr>
    where
        C: ConnectionTrait,
    {
        Ok(self)
    }

    /// After an insert or update.
    async fn after_save<C>(
        model: <Self::Entity as EntityTrait>::Model,
        _db: &C,
        _insert: bool,
    ) -> Result<<Self::Entity as EntityTrait>::Model, DbErr>
    where
        C: ConnectionTrait,
    {
        Ok(model)
    }

    /// Before a delete. An error ends it, with nothing deleted.
    async fn before_delete<C>(self, _db: &C) -> Result<Self, DbErr>
    where
        C: ConnectionTrait,
    {
        Ok(self)
    }

    /// After a delete.
    async fn after_delete<C>(self, _db: &C) -> Result<Self, DbErr>
    where
        C: ConnectionTrait,
    {
        Ok(self)
    }
}

/// The `ActiveModel` of a synced model.
type Active<M> = <<M as sea_orm::ModelTrait>::Entity as EntityTrait>::ActiveModel;
type Column<M> = <<M as sea_orm::ModelTrait>::Entity as EntityTrait>::Column;

/// The call for `before_save`: fills keys and [metadata](mod@crate::metadata), checks values.
///
/// On an insert, a primary key of one UUID column and the column of `#[sync(id = "…")]` get a UUIDv7 where they are
/// not set. It is done here and not in `ActiveModel::new`, because SeaORM's `save` takes a model whose key is set for
/// an update.
///
/// # Errors
/// [`DbErr::Custom`] for an unsigned number above `i64::MAX`, which SQLite cannot store, and for a record that belongs to
/// another device (`#[sync(owner = "…")]`). Nothing was written.
pub async fn before_save<M, C>(mut active: Active<M>, db: &C, insert: bool) -> Result<Active<M>, DbErr>
where
    M: Syncable,
    C: ConnectionTrait,
    Active<M>: TryIntoModel<M>,
{
    let plan = Plan::of::<M>();
    if insert {
        for column in plan.fills.iter().copied() {
            let missing = match active.get(column) {
                ActiveValue::NotSet => true,
                ActiveValue::Set(value) | ActiveValue::Unchanged(value) => value == SeaValue::Uuid(None),
            };
            if missing {
                active.try_set(column, SeaValue::Uuid(Some(Uuid::now_v7())))?;
            }
        }
    }
    plan.fill_metadata::<M>(&mut active, insert)?;
    for column in plan.unsigned.iter().copied() {
        if let ActiveValue::Set(SeaValue::BigUnsigned(Some(number)))
        | ActiveValue::Unchanged(SeaValue::BigUnsigned(Some(number))) = active.get(column)
            && i64::try_from(number).is_err()
        {
            return Err(DbErr::Custom(format!(
                "model `{}`: column `{}` is to hold {number}, but the largest integer that SQLite stores is {}; \
                 nothing was written. Use a smaller number, or keep it in a text or blob column",
                M::SYNC_ID,
                column.as_str(),
                i64::MAX
            )));
        }
    }
    refuse_foreign::<M, C>(&plan, &active, db).await?;
    Ok(active)
}

/// Whether this device may write a record that its model has an owner for: an error at once, where there would be a
/// refusal by the leader later. What passes the hooks by is refused there.
async fn refuse_foreign<M, C>(plan: &Plan<Column<M>>, active: &Active<M>, db: &C) -> Result<(), DbErr>
where
    M: Syncable,
    C: ConnectionTrait,
{
    let Some(owned) = &plan.owned else { return Ok(()) };
    let key: Option<Vec<SeaValue>> =
        plan.primary.iter().map(|column| active.get(*column).into_value()).collect();
    let named = match active.get(owned.column).into_value().map(|value| value::from_sea(&value)) {
        Some(value::Value::Text(text)) => Some(String::from_utf8_lossy(&text).into_owned()),
        Some(value::Value::Blob(bytes)) => Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
        _ => None,
    };
    // A key that the database is yet to make is no record's.
    let key = key.unwrap_or_else(|| vec![SeaValue::Bool(None); plan.primary.len()]);
    let asked = Statement::from_sql_and_values(DbBackend::Sqlite, &owned.sql, key);
    // Without a library there is nobody to ask whose this database is.
    let Ok(Some(row)) = db.query_one_raw(asked).await else { return Ok(()) };
    let (device, exists): (Option<String>, bool) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
    let owner = if exists { row.try_get_by_index(2)? } else { named };
    match (device, owner) {
        (Some(device), Some(owner)) if device != owner => Err(DbErr::Custom(format!(
            "model `{}`: the record belongs to device {owner}, and device {device} may not write it; nothing was \
             written. Let its owner change it",
            M::SYNC_ID
        ))),
        _ => Ok(()),
    }
}

/// The call for `after_save`: records where the hooks record, and sends a notice.
///
/// # Errors
/// The database's, where the outbox cannot be written: the row is, so that the caller's transaction should be rolled
/// back.
pub async fn after_save<M, C>(model: M, db: &C, insert: bool) -> Result<M, DbErr>
where
    M: Syncable,
    C: ConnectionTrait,
    Active<M>: TryIntoModel<M>,
{
    let plan = Plan::of::<M>();
    let libraries = notice::libraries();
    if let Some(recording) = plan.recording::<M>(&libraries) {
        let key = plan.primary.iter().map(|column| model.get(*column)).collect();
        record(db, &recording.save, key).await?;
    }
    let kind = if insert { NoticeKind::Inserted } else { NoticeKind::Updated };
    libraries.tell(M::SYNC_ID, kind, || plan.record_id(|column| Some(model.get(column))));
    Ok(model)
}

/// The call for `before_delete`: records the row that is about to go, where the hooks record.
///
/// # Errors
/// The database's, where the outbox cannot be written; [`DbErr::Custom`] for a record that belongs to another device.
/// Nothing was deleted.
pub async fn before_delete<M, C>(active: Active<M>, db: &C) -> Result<Active<M>, DbErr>
where
    M: Syncable,
    C: ConnectionTrait,
    Active<M>: TryIntoModel<M>,
{
    let plan = Plan::of::<M>();
    refuse_foreign::<M, C>(&plan, &active, db).await?;
    // A delete without its key fails in SeaORM, right behind this.
    if let Some(recording) = plan.recording::<M>(&notice::libraries())
        && let Some(key) = plan.primary.iter().map(|column| active.get(*column).into_value()).collect()
    {
        record(db, &recording.delete, key).await?;
    }
    Ok(active)
}

/// The call for `after_delete`: sends a notice.
///
/// # Errors
/// None of its own.
pub async fn after_delete<M, C>(active: Active<M>, _db: &C) -> Result<Active<M>, DbErr>
where
    M: Syncable,
    C: ConnectionTrait,
    Active<M>: TryIntoModel<M>,
{
    let plan = Plan::of::<M>();
    // Deleted by an integer key, it may be without the column that names the record on all devices.
    let record = || plan.record_id(|column| active.get(column).into_value());
    notice::libraries().tell(M::SYNC_ID, NoticeKind::Deleted, record);
    Ok(active)
}

/// What the hooks need to know of a model, worked out at its first save.
struct Plan<C> {
    primary: Vec<C>,
    /// Columns that name the record on all devices.
    names: Vec<C>,
    /// Columns that get a UUIDv7 on insert.
    fills: Vec<C>,
    unsigned: Vec<C>,
    created_at: Option<C>,
    updated_at: Option<C>,
    soft_delete: Option<C>,
    /// Where the model has an owner.
    owned: Option<Owned<C>>,
    /// Columns a write to which is a change of the record, as `updated_at` counts it.
    changing: Vec<C>,
    always_records: bool,
    /// None for a model that no library opens, see [`ModelDescriptor::of`]: the error belongs there, not into a save.
    recording: Option<Recording>,
}

struct Owned<C> {
    column: C,
    /// Asks which device this is, whether the record of a key is there, and whose it is.
    sql: String,
}

struct Recording {
    save: String,
    delete: String,
}

/// One plan per entity, for the life of the process; bounded by the number of models.
static PLANS: Lazy<RwLock<Plans>> = Lazy::new(RwLock::default);

type Plans = HashMap<TypeId, Arc<dyn Any + Send + Sync>, foldhash::fast::RandomState>;

impl<C: ColumnTrait> Plan<C> {
    fn of<M>() -> Arc<Self>
    where
        M: Syncable,
        M::Entity: EntityTrait<Column = C>,
        Active<M>: TryIntoModel<M>,
    {
        let entity = TypeId::of::<M::Entity>();
        let known = PLANS.read().unwrap_or_else(PoisonError::into_inner).get(&entity).cloned();
        if let Some(plan) = known.and_then(|plan| plan.downcast::<Self>().ok()) {
            return plan;
        }
        let plan = Arc::new(Self::read::<M>());
        let kept: Arc<dyn Any + Send + Sync> = Arc::<Self>::clone(&plan);
        PLANS.write().unwrap_or_else(PoisonError::into_inner).insert(entity, kept);
        plan
    }

    fn read<M>() -> Self
    where
        M: Syncable,
        M::Entity: EntityTrait<Column = C>,
        Active<M>: TryIntoModel<M>,
    {
        let options = M::options();
        let columns: Vec<C> = <M::Entity as EntityTrait>::Column::iter().collect();
        let primary: Vec<C> =
            <M::Entity as EntityTrait>::PrimaryKey::iter().map(PrimaryKeyToColumn::into_column).collect();
        let id = options.id.and_then(|id| columns.iter().copied().find(|column| column.as_str() == id));
        let is = |column: &C, kind| M::get_value_type(*column) == kind;
        let named = |name: Option<&str>| columns.iter().copied().find(|c| Some(c.as_str()) == name);
        let metadata = options.metadata;
        let is_local = |name: &str| options.local.contains(&name);
        let changes = |c: &C| {
            let name = c.as_str();
            metadata.updated_at.is_some_and(|own| own != name && (is_local(own) || !is_local(name)))
        };
        let single = (primary.len() == 1).then(|| primary.first().copied()).flatten();
        Self {
            names: id.map_or_else(|| primary.clone(), |id| vec![id]),
            fills: single.into_iter().chain(id).filter(|column| is(column, ArrayType::Uuid)).collect(),
            unsigned: columns.iter().copied().filter(|column| is(column, ArrayType::BigUnsigned)).collect(),
            created_at: named(metadata.created_at),
            updated_at: named(metadata.updated_at),
            soft_delete: named(metadata.soft_delete),
            owned: match options.policy {
                Policy::Owner(owner) => named(Some(owner)).map(|column| {
                    let table = <M::Entity as Default>::default().table_name().to_owned();
                    Owned { column, sql: ask_owner(&table, owner, &primary) }
                }),
                _ => None,
            },
            changing: columns.iter().copied().filter(changes).collect(),
            always_records: options.recorder == Recorder::Hooks,
            recording: ModelDescriptor::of::<M>().ok().map(|descriptor| {
                let primary: Vec<&str> = primary.iter().map(|column| column.as_str()).collect();
                Recording::new(&descriptor, &primary)
            }),
            primary,
        }
    }

    /// Fills what the model keeps of its record's history. What is set stays.
    fn fill_metadata<M>(&self, active: &mut Active<M>, insert: bool) -> Result<(), DbErr>
    where
        M: Syncable,
        M::Entity: EntityTrait<Column = C>,
    {
        if self.created_at.is_none() && self.updated_at.is_none() && self.soft_delete.is_none() {
            return Ok(());
        }
        let now = metadata::now();
        if insert {
            for column in self.created_at.into_iter().chain(self.updated_at) {
                if is_missing(&active.get(column)) {
                    set_time::<M>(active, column, now)?;
                }
            }
            if let Some(column) = self.soft_delete
                && active.is_not_set(column)
                && M::get_value_type(column) == ArrayType::Bool
            {
                active.try_set(column, false.into())?;
            }
            return Ok(());
        }
        let is_set = |column: C| matches!(active.get(column), ActiveValue::Set(_));
        match self.updated_at {
            Some(column) if !is_set(column) && self.changing.iter().copied().any(is_set) => {
                set_time::<M>(active, column, now)
            }
            _ => Ok(()),
        }
    }

    fn recording<M: Syncable>(&self, libraries: &Libraries) -> Option<&Recording> {
        self.recording.as_ref().filter(|_| self.always_records || libraries.record_by_hook(M::SYNC_ID))
    }

    /// The canonical text of a record's key; `None` where a column of it is not at hand.
    fn record_id(&self, value_of: impl Fn(C) -> Option<SeaValue>) -> Option<String> {
        let key: Option<Vec<_>> =
            self.names.iter().map(|column| Some(value::from_sea(&value_of(*column)?))).collect();
        key.map(|key| value::record_id(key.iter()))
    }
}

fn ask_owner<C: ColumnTrait>(table: &str, owner: &str, key: &[C]) -> String {
    let is_record: Vec<String> =
        key.iter().map(|column| format!("t.{} = ?", quote(column.as_str()))).collect();
    let owner = format!("t.{}", quote(owner));
    format!(
        "SELECT r.device, {} IS NOT NULL, CASE typeof({owner}) WHEN 'blob' THEN lower(hex({owner})) ELSE {owner} END
         FROM sync_replica r LEFT JOIN {} t ON {}",
        key.first().map_or_else(|| "NULL".to_owned(), |column| format!("t.{}", quote(column.as_str()))),
        quote(table),
        is_record.join(" AND ")
    )
}

fn is_missing(value: &ActiveValue<SeaValue>) -> bool {
    match value {
        ActiveValue::NotSet => true,
        ActiveValue::Set(value) | ActiveValue::Unchanged(value) => *value == value.as_null(),
    }
}

fn set_time<M: Syncable>(active: &mut Active<M>, column: Column<M>, now: DateTime<Utc>) -> Result<(), DbErr> {
    match metadata::time_as(&M::get_value_type(column), now) {
        Some(now) => active.try_set(column, now),
        // A library says so when it is opened; the save is not to fail for it.
        None => Ok(()),
    }
}

/// Kinds of outbox rows that only hooks write.
const SAVED_BY_HOOK: u8 = 5;
const DELETED_BY_HOOK: u8 = 6;

impl Recording {
    fn new(descriptor: &ModelDescriptor, primary: &[&str]) -> Self {
        Self {
            save: Self::statement(descriptor, primary, SAVED_BY_HOOK, 'v'),
            delete: Self::statement(descriptor, primary, DELETED_BY_HOOK, 'o'),
        }
    }

    /// Copies the row inside the database, so that what is recorded is what is stored, bit for bit. It copies nothing
    /// where this database's library has the model recorded by a trigger, or not at all, or with other columns.
    fn statement(descriptor: &ModelDescriptor, primary: &[&str], kind: u8, target: char) -> String {
        let targets: String = (0..descriptor.fields.len()).map(|i| format!(", {target}{i}")).collect();
        let sources: String =
            descriptor.field_names().map(|name| format!(", t.{}", quoted(name, '"'))).collect();
        let is_record: String =
            primary.iter().map(|name| format!("t.{} = ? AND ", quoted(name, '"'))).collect();
        let table = quoted(&descriptor.table, '"');
        let model = quoted(descriptor.id, '\'');
        let names: Vec<&str> = descriptor.field_names().collect();
        let fields = quoted(&serde_json::Value::from(names).to_string(), '\'');
        format!(
            "INSERT INTO sync_outbox (shape, kind, mode, at, mark, actor{targets}) \
             SELECT s.id, {kind}, c.mode, coalesce(c.clock, CAST(unixepoch('subsec') * 1000 AS INTEGER)), \
             c.mark, c.actor{sources} \
             FROM {table} t, sync_ctl c, sync_shape s \
             WHERE {is_record}c.mode <> 1 AND s.model = {model} AND s.current = 1 \
             AND s.recorder = 'hooks' AND s.fields = {fields}"
        )
    }
}

fn quoted(text: &str, quote: char) -> String {
    let doubled = text.replace(quote, &format!("{quote}{quote}"));
    format!("{quote}{doubled}{quote}")
}

async fn record<C: ConnectionTrait>(db: &C, sql: &str, key: Vec<SeaValue>) -> Result<(), DbErr> {
    if db.get_database_backend() != DbBackend::Sqlite {
        return Ok(());
    }
    let statement = Statement::from_sql_and_values(DbBackend::Sqlite, sql, key);
    match db.execute_raw(statement).await {
        Ok(_) => Ok(()),
        Err(error) if has_no_library(&error.to_string()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the statement failed because no library was ever opened on this database with this model: without the sync
/// tables, or with fewer value columns than the model has fields.
fn has_no_library(error: &str) -> bool {
    error.contains("no such table: sync_") || error.contains("table sync_outbox has no column named")
}

/// Name of the entity's column at that place. The derive's way to a name, so that it need not know SeaORM's rules.
#[doc(hidden)]
pub fn column_name<M: Syncable>(place: usize) -> &'static str {
    Column::<M>::iter().nth(place).map_or("", |column| column.as_str())
}

/// Implements [`Syncable`](crate::Syncable) for an entity that one may not edit, such as one that `sea-orm-cli`
/// generates anew: `impl_syncable!(Model, ActiveModel, "sync id")`, and if need be
/// [`SyncOptions`](crate::model::SyncOptions) as a fourth argument.
///
/// The entity keeps the `ActiveModelBehavior` that it has, so the hooks of this module are not called: a UUID key is
/// not filled, and changes are always recorded by the trigger.
///
/// ```
/// mod generated {
///     use sea_orm::entity::prelude::*;
///
///     #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
///     #[sea_orm(table_name = "tags")]
///     pub struct Model {
///         #[sea_orm(primary_key, auto_increment = false)]
///         pub id: Uuid,
///         pub name: String,
///     }
///
///     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
///     pub enum Relation {}
///
///     impl ActiveModelBehavior for ActiveModel {}
/// }
///
/// tidelog::impl_syncable!(generated::Model, generated::ActiveModel, "tag");
/// # use tidelog::Syncable;
/// assert_eq!(generated::Model::SYNC_ID, "tag");
/// ```
#[macro_export]
macro_rules! impl_syncable {
    ($model:ty, $active:ty, $id:expr $(,)?) => {
        $crate::impl_syncable!(
            $model,
            $active,
            $id,
            <$crate::model::SyncOptions as ::core::default::Default>::default()
        );
    };
    ($model:ty, $active:ty, $id:expr, $options:expr $(,)?) => {
        impl $crate::Syncable for $model {
            const SYNC_ID: &'static str = $id;

            fn options() -> $crate::model::SyncOptions {
                $crate::model::SyncOptions { recorder: $crate::model::Recorder::Trigger, ..$options }
            }
        }

        const _: fn() = || {
            fn belongs_to_the_model<A: $crate::__private::sea_orm::TryIntoModel<$model>>() {}
            belongs_to_the_model::<$active>();
        };
    };
}

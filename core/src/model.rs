//! What tidelog knows of a model: the [`Syncable`] trait that the derive implements, and the
//! [`ModelDescriptor`] that is read off it when a library is opened.
//!
//! The descriptor comes from SeaORM's own column metadata, never from serde: names, keys, types and
//! references are what the entity says. Options say what metadata cannot (policies, local fields).
//! The engine works with descriptors only; it never sees a Rust model but through the three function
//! pointers below.

use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use sea_orm::{
    ActiveModelTrait, ColumnTrait, EntityName, EntityTrait, IdenStatic, Iterable, ModelTrait,
    PrimaryKeyToColumn, PrimaryKeyTrait, RelationTrait, TryIntoModel,
    sea_query::{ArrayType, Value as SeaValue},
};

use crate::{
    metadata::Metadata,
    tree,
    value::{self, Value},
};

/// Who wins when two devices changed the same record unseen by each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// `lww`: the later change of the record, by hybrid logical clock.
    #[default]
    LastWriteWins,
    /// `fields`: the later change of each field; fields that do not overlap merge.
    Fields,
    /// `leader_wins`: what the log has.
    LeaderWins,
    /// `origin_wins`: the change that arrives.
    OriginWins,
    /// `role`: the change of the device with the higher [precedence](crate::LibraryBuilder::precedence), then the later.
    Role,
    /// `owner = "column"`: only the device that the column names may write the record.
    Owner(&'static str),
    /// `custom = "path"`: the model's own function, see [`Syncable::merge`].
    Custom,
    /// `manual`: the log's value stands, the other is parked until a person decides.
    Manual,
}

impl fmt::Display for Policy {
    /// As the attribute has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LastWriteWins => f.write_str("lww"),
            Self::Fields => f.write_str("fields"),
            Self::LeaderWins => f.write_str("leader_wins"),
            Self::OriginWins => f.write_str("origin_wins"),
            Self::Role => f.write_str("role"),
            Self::Owner(column) => write!(f, "owner = {column}"),
            Self::Custom => f.write_str("custom"),
            Self::Manual => f.write_str("manual"),
        }
    }
}

/// What happens when a deletion meets an update it had not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletePolicy {
    /// `delete_wins`.
    #[default]
    DeleteWins,
    /// `update_wins`.
    UpdateWins,
    /// `manual`.
    Manual,
}

/// How one field merges, whatever the model's policy says of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reducer {
    /// The larger value.
    Max,
    /// The smaller value.
    Min,
    /// Both deltas are added.
    Sum,
    /// JSON arrays merge as sets.
    Union,
}

/// When a change is pushed and how it is retried; never the order in which changes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Pushed when nothing else waits.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Pushed at once.
    High,
    /// Pushed at once, and shown apart in the status.
    Critical,
}

/// Which of the two recorders writes a model's changes into the outbox; exactly one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Recorder {
    /// A generated trigger, inside the statement that writes: complete and atomic.
    #[default]
    Trigger,
    /// SeaORM's save and delete hooks: sees what goes through an `ActiveModel`, nothing else.
    Hooks,
}

/// What the `#[sync(…)]` attributes of a model say, or a hand-written [`Syncable::options`].
#[derive(Clone, Debug, PartialEq)]
pub struct SyncOptions {
    /// Version of the model's schema, for devices that run different releases. From 1.
    pub version: u32,
    /// Sync ids of the models whose rows must be written before this one's.
    pub after: &'static [&'static str],
    /// Who wins a conflict.
    pub policy: Policy,
    /// What a deletion does to an update it had not seen.
    pub deletes: DeletePolicy,
    /// Who records changes.
    pub recorder: Recorder,
    /// When changes are pushed.
    pub priority: Priority,
    /// Column that names the record on all devices where the primary key is an integer of this device.
    pub id: Option<&'static str>,
    /// Column that names the row's parent, where the rows form a forest by it.
    pub tree: Option<&'static str>,
    /// Columns that never leave this device and are never overwritten.
    pub local: &'static [&'static str],
    /// Columns with a reducer of their own.
    pub reducers: &'static [(&'static str, Reducer)],
    /// What a column holds in a row that comes from a device that does not know the column.
    pub defaults: Vec<(&'static str, SeaValue)>,
    /// Columns that are filled with what is known of the record's history.
    pub metadata: Metadata,
    /// Whether [`Syncable::should_sync`] is to be asked; asking builds a model of every sealed row.
    pub asks_should_sync: bool,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            version: 1,
            after: &[],
            policy: Policy::default(),
            deletes: DeletePolicy::default(),
            recorder: Recorder::default(),
            priority: Priority::default(),
            id: None,
            tree: None,
            local: &[],
            reducers: &[],
            defaults: Vec::new(),
            metadata: Metadata::default(),
            asks_should_sync: false,
        }
    }
}

/// A SeaORM model whose rows follow their owner from device to device.
///
/// Usually derived: `#[derive(Syncable)]`. By hand, [`SYNC_ID`](Self::SYNC_ID) is all that is needed; for an
/// entity that one may not edit there is [`impl_syncable!`](crate::impl_syncable).
pub trait Syncable: ModelTrait + Sized {
    /// Name of the model on every device, for as long as the library lives. Not the table's name.
    const SYNC_ID: &'static str;

    /// What cannot be read off the entity.
    fn options() -> SyncOptions {
        SyncOptions::default()
    }

    /// Columns that are synced, whatever their order: all but the local ones. What is not among them is local.
    fn sync_fields() -> Vec<&'static str> {
        let local = Self::options().local;
        <Self::Entity as EntityTrait>::Column::iter()
            .map(|column| column.as_str())
            .filter(|name| !local.contains(name))
            .collect()
    }

    /// Whether this row is for other devices too. Asked at seal, if [`SyncOptions::asks_should_sync`].
    ///
    /// From `true` to `false` stops sending, from `false` to `true` sends the whole row; it never deletes
    /// anything elsewhere.
    fn should_sync(&self) -> bool {
        true
    }

    /// Merges two concurrent versions, under [`Policy::Custom`]. `local` is what the log has, `remote` the
    /// change that arrives, `base` what its author had seen. The same on every device: no clock, no IO.
    fn merge(_base: Option<Self>, _local: Self, remote: Self) -> Self {
        remote
    }
}

/// One synced or local column of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Column name, which is also the field's name in the log and on the wire.
    pub name: String,
    /// Rust type that SeaORM reads the column as.
    pub kind: ArrayType,
    /// Whether the column may be NULL.
    pub nullable: bool,
    /// Value in rows that come from a device that does not know the column.
    pub default: Option<Value>,
    /// Reducer of its own, if any.
    pub reducer: Option<Reducer>,
}

/// A foreign key that the entity declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Columns here.
    pub from: Vec<String>,
    /// Table they point to.
    pub table: String,
    /// Columns there.
    pub to: Vec<String>,
}

/// Asks [`Syncable::should_sync`] of a row given in the order of [`ModelDescriptor::fields`]. The error is a sentence:
/// the row holds what the Rust model cannot.
pub type AskShouldSync = fn(&ModelDescriptor, &[Value]) -> Result<bool, String>;

/// Asks [`Syncable::merge`] of rows in the order of [`ModelDescriptor::fields`]: base, local, remote. The error is a
/// sentence: a row holds what the Rust model cannot, or the function panicked.
pub type AskMerge = fn(&ModelDescriptor, Option<&[Value]>, &[Value], &[Value]) -> Result<Vec<Value>, String>;

/// Everything the engine knows of a model, without its Rust type.
#[derive(Clone, Debug)]
pub struct ModelDescriptor {
    /// [`Syncable::SYNC_ID`].
    pub id: &'static str,
    /// Table in this database.
    pub table: String,
    /// Synced columns in the entity's order. Never empty: the key is among them.
    pub fields: Vec<Field>,
    /// Indices into `fields` of the columns that name a record on all devices.
    pub key: Vec<usize>,
    /// Columns that stay on this device.
    pub local: Vec<String>,
    /// Foreign keys that the entity declares.
    pub references: Vec<Reference>,
    /// What the attributes say.
    pub options: SyncOptions,
    /// Asks [`Syncable::should_sync`] of a row given in the order of `fields`.
    pub should_sync: Option<AskShouldSync>,
    /// Asks [`Syncable::merge`], under [`Policy::Custom`].
    pub merge: Option<AskMerge>,
}

/// A model that cannot be synced as it is declared. Found when a library is opened, before anything changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model `{model}` cannot be synced: {reason}; nothing was changed. {remedy}")]
pub struct ModelError {
    /// Sync id.
    pub model: String,
    /// What is wrong.
    pub reason: String,
    /// What to write instead.
    pub remedy: String,
}

impl ModelDescriptor {
    /// Reads the descriptor off the entity's metadata.
    ///
    /// # Errors
    /// [`ModelError`] for what the compiler cannot see: no primary key, a local key column, an `id` or
    /// option that names no column.
    pub fn of<M>() -> Result<Self, ModelError>
    where
        M: Syncable,
        <M::Entity as EntityTrait>::ActiveModel: TryIntoModel<M>,
    {
        let options = M::options();
        let error = |reason: String, remedy: &str| ModelError {
            model: M::SYNC_ID.to_owned(),
            reason,
            remedy: remedy.to_owned(),
        };
        let columns: Vec<_> = <M::Entity as EntityTrait>::Column::iter().collect();
        let names: Vec<&'static str> = columns.iter().map(|c| c.as_str()).collect();
        let primary: Vec<&'static str> =
            <M::Entity as EntityTrait>::PrimaryKey::iter().map(|key| key.into_column().as_str()).collect();

        let named = options
            .local
            .iter()
            .chain(options.id.iter())
            .chain(options.metadata.columns())
            .chain(options.tree.iter())
            .chain(options.reducers.iter().map(|(name, _)| name))
            .chain(options.defaults.iter().map(|(name, _)| name));
        if let Some(unknown) = named.into_iter().find(|name| !names.contains(name)) {
            return Err(error(
                format!("its options name the column `{unknown}`, which the entity does not have"),
                &format!("Name one of: {}", names.join(", ")),
            ));
        }
        for column in &columns {
            let Some((name, default)) = options.defaults.iter().find(|(name, _)| *name == column.as_str())
            else {
                continue;
            };
            let (stored, kind) = (value::from_sea(default), M::get_value_type(*column));
            if !is_stored_as(&stored, &kind, column.def().is_null()) {
                return Err(error(
                    format!(
                        "its default of the column `{name}` is stored as {stored:?}, which is no {kind:?}"
                    ),
                    "Write a default of the field's own type",
                ));
            }
        }
        for column in &columns {
            let (name, kind) = (column.as_str(), M::get_value_type(*column));
            if let Some(must_be) = options.metadata.misfit(name, &kind, column.def().is_null()) {
                return Err(error(
                    format!("its options have the column `{name}` filled, whose type is {kind:?}"),
                    &format!("Make it {must_be}"),
                ));
            }
        }
        let key_names: Vec<&'static str> = match options.id {
            Some(id) => vec![id],
            None if <<M::Entity as EntityTrait>::PrimaryKey as PrimaryKeyTrait>::auto_increment() => {
                return Err(error(
                    "its primary key is an auto-increment integer, which two devices would hand out twice"
                        .into(),
                    "Use a UUID key, or name a unique UUID column with #[sync(id = \"…\")]",
                ));
            }
            None => primary.clone(),
        };
        if key_names.is_empty() {
            return Err(error("it has no primary key".into(), "Mark one with #[sea_orm(primary_key)]"));
        }
        // With `id = …` the integer key is this device's own business.
        let synced = M::sync_fields();
        if let Some(unknown) = synced.iter().find(|name| !names.contains(name)) {
            return Err(error(
                format!("its sync_fields name the column `{unknown}`, which the entity does not have"),
                &format!("Name one of: {}", names.join(", ")),
            ));
        }
        let is_local = |name: &str| {
            !synced.contains(&name)
                || options.local.contains(&name)
                || (options.id.is_some() && primary.contains(&name) && !key_names.contains(&name))
        };
        if let Some(bad) = key_names.iter().find(|name| is_local(name)) {
            return Err(error(
                format!("its key column `{bad}` is local, so other devices could not name the record"),
                "Remove #[sync(local)] from the key, or add the key to sync_fields",
            ));
        }

        let fields: Vec<Field> = columns
            .iter()
            .filter(|c| !is_local(c.as_str()))
            .map(|c| Field {
                name: c.as_str().to_owned(),
                kind: M::get_value_type(*c),
                nullable: c.def().is_null(),
                default: options
                    .defaults
                    .iter()
                    .find(|(name, _)| *name == c.as_str())
                    .map(|(_, v)| value::from_sea(v)),
                reducer: options.reducers.iter().find(|(name, _)| *name == c.as_str()).map(|(_, r)| *r),
            })
            .collect();
        let key: Vec<usize> =
            key_names.iter().filter_map(|name| fields.iter().position(|f| f.name == *name)).collect();
        if let Some((parent, mistake)) =
            options.tree.and_then(|p| Some((p, tree::mistake(p, &fields, &key)?)))
        {
            return Err(error(
                format!("the column `{parent}`, by which its rows form a tree, {mistake}"),
                "Name the column that holds the key of the row's parent, or NULL",
            ));
        }
        let references = <M::Entity as EntityTrait>::Relation::iter()
            .map(|relation| relation.def())
            .filter(|def| !def.is_owner)
            .map(|def| Reference {
                from: def.from_col.iter().map(|c| c.to_string()).collect(),
                table: def.to_tbl.sea_orm_table().to_string(),
                to: def.to_col.iter().map(|c| c.to_string()).collect(),
            })
            .collect();
        let local = names.iter().filter(|n| is_local(n)).map(|n| (*n).to_owned()).collect();
        let should_sync: Option<AskShouldSync> =
            if options.asks_should_sync { Some(ask_should_sync::<M>) } else { None };
        let merge: Option<AskMerge> =
            if options.policy == Policy::Custom { Some(ask_merge::<M>) } else { None };
        let table = <M::Entity as Default>::default().table_name().to_owned();
        Ok(Self { id: M::SYNC_ID, table, fields, key, local, references, options, should_sync, merge })
    }

    /// The names of the synced columns, in order.
    pub fn field_names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|f| f.name.as_str())
    }

    /// The one canonical text of the record that a row (in the order of `fields`) stands for:
    /// a hyphenated UUID, the key's text, or a JSON array for a composite key.
    pub fn record_id(&self, row: &[Value]) -> String {
        value::record_id(self.key.iter().map(|&i| &row[i]))
    }
}

/// Whether SQLite keeps a column that SeaORM reads as `kind` in the storage class of `value`.
fn is_stored_as(value: &Value, kind: &ArrayType, nullable: bool) -> bool {
    use ArrayType as A;
    match kind {
        _ if *value == Value::Null => nullable,
        A::Bool | A::TinyInt | A::SmallInt | A::Int | A::BigInt => matches!(value, Value::Integer(_)),
        A::TinyUnsigned | A::SmallUnsigned | A::Unsigned | A::BigUnsigned => {
            matches!(value, Value::Integer(_))
        }
        A::Float | A::Double => matches!(value, Value::Real(_) | Value::Integer(_)),
        A::String | A::Char | A::Json => matches!(value, Value::Text(_)),
        A::ChronoDate | A::ChronoTime | A::ChronoDateTime => matches!(value, Value::Text(_)),
        A::ChronoDateTimeUtc | A::ChronoDateTimeLocal | A::ChronoDateTimeWithTimeZone => {
            matches!(value, Value::Text(_))
        }
        A::Bytes | A::Uuid => matches!(value, Value::Blob(_)),
        _ => true,
    }
}

fn ask_should_sync<M>(descriptor: &ModelDescriptor, row: &[Value]) -> Result<bool, String>
where
    M: Syncable,
    <M::Entity as EntityTrait>::ActiveModel: TryIntoModel<M>,
{
    build_model::<M>(descriptor, row).map(|model| model.should_sync())
}

fn ask_merge<M>(
    descriptor: &ModelDescriptor,
    base: Option<&[Value]>,
    local: &[Value],
    remote: &[Value],
) -> Result<Vec<Value>, String>
where
    M: Syncable,
    <M::Entity as EntityTrait>::ActiveModel: TryIntoModel<M>,
{
    let build = |row: &[Value]| build_model::<M>(descriptor, row);
    let (base, local, remote) = (base.map(build).transpose()?, build(local)?, build(remote)?);
    // The models are moved in and are gone with a panic: nothing is left half changed.
    let merged = catch_unwind(AssertUnwindSafe(|| M::merge(base, local, remote))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("it panicked: {}", text.unwrap_or("with no text"))
    })?;
    let columns = <M::Entity as EntityTrait>::Column::iter();
    let by_name: HashMap<&str, _> = columns.map(|column| (column.as_str(), column)).collect();
    let value = |field: &Field| {
        let column = by_name.get(field.name.as_str()).ok_or_else(|| format!("no column `{}`", field.name))?;
        Ok(value::from_sea(&merged.get(*column)))
    };
    descriptor.fields.iter().map(value).collect()
}

/// Builds the Rust model of a row given in the order of the descriptor's fields; local columns are absent,
/// or their type's zero where they may not be NULL.
pub(crate) fn build_model<M>(descriptor: &ModelDescriptor, row: &[Value]) -> Result<M, String>
where
    M: Syncable,
    <M::Entity as EntityTrait>::ActiveModel: TryIntoModel<M>,
{
    let mut active = <<M::Entity as EntityTrait>::ActiveModel as ActiveModelTrait>::default();
    for column in <M::Entity as EntityTrait>::Column::iter() {
        let kind = M::get_value_type(column);
        let sea = match descriptor.fields.iter().position(|f| f.name == column.as_str()) {
            Some(i) => {
                value::to_sea(&row[i], &kind).map_err(|e| format!("column `{}`: {e}", column.as_str()))?
            }
            None if column.def().is_null() => value::null_sea(&kind),
            None => value::zero_sea(&kind),
        };
        active.try_set(column, sea).map_err(|e| format!("column `{}`: {e}", column.as_str()))?;
    }
    active.try_into_model().map_err(|e| e.to_string())
}

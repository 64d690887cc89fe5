//! What `#[derive(Syncable)]` makes of a model: the descriptor that the engine reads, and what happens around SeaORM's
//! save and delete. The engine itself takes no part here; the outbox is read as the sealer would find it.

#![allow(unreachable_pub, reason = "the entities are written as an application writes them")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, ConnectionTrait, Database, DatabaseConnection, DbBackend,
    EntityTrait, IntoActiveModel, ModelTrait, NotSet, PaginatorTrait, Schema, Set, Statement,
    TransactionTrait, sea_query::ArrayType,
};
use sea_orm_migration::MigratorTrait;
use tidelog::{
    Syncable,
    model::{DeletePolicy, ModelDescriptor, Policy, Priority, Recorder, Reducer, Reference},
    notice::{self, Notice, NoticeKind},
    value::Value,
};
use uuid::Uuid;

/// An unsigned number that can be read back: SeaORM writes `u64` to SQLite, but does not read it.
mod size {
    use sea_orm::{
        ColIdx, DbErr, QueryResult, TryGetError, TryGetable,
        sea_query::{ArrayType, ColumnType, Nullable, Value, ValueType, ValueTypeErr},
    };

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Size(pub u64);

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
            ColumnType::BigInteger
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
}
use size::Size;

/// The compact format, with everything that attributes can say.
mod location {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "locations")]
    #[sync(model = "location", version = 3, after = "device, volume", after = "tag", merge = "fields")]
    #[sync(deletes = "update_wins", priority = "high", should_sync = "Model::is_shared")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub device: String,
        #[sea_orm(column_name = "caption")]
        pub name: String,
        #[sync(local)]
        pub mount_point: Option<String>,
        #[sync(merge = "max", default = 7)]
        pub scanned_entries: i64,
        #[sync(merge = "union", default = "[]")]
        pub labels: String,
        #[sea_orm(ignore)]
        pub cache: Option<String>,
        #[sync(local)]
        pub r#type: i32,
        pub updated_at: Option<DateTimeUtc>,
    }

    impl Model {
        fn is_shared(&self) -> bool {
            self.name != "private"
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {
        #[sea_orm(
            belongs_to = "super::device::Entity",
            from = "Column::Device",
            to = "super::device::Column::Id"
        )]
        Device,
    }
}

/// A string key, nothing said.
mod device {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "device")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// The format with relations in the model: SeaORM generates a `ModelEx` and copies derives and attributes to it.
mod author {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "author")]
    #[sync(model = "writer", priority = "low")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: Uuid,
        pub name: String,
        #[sync(local)]
        pub note: Option<String>,
        #[sea_orm(has_many)]
        pub books: HasMany<super::book::Entity>,
    }
}

mod book {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "book")]
    #[sync(after = "writer")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub title: String,
        pub author_id: Uuid,
        #[sea_orm(belongs_to, from = "author_id", to = "id")]
        pub author: BelongsTo<super::author::Entity>,
    }
}

/// A composite key.
mod entry_tag {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "entry_tag")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub entry: Uuid,
        #[sea_orm(primary_key, auto_increment = false)]
        pub tag: i64,
        pub at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// A key that the database counts up, with a UUID beside it; recorded by its hooks.
mod counted {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "counted")]
    #[sync(id = "public", owner = "by", capture = "hooks")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
        #[sea_orm(unique, column_name = "public_id")]
        pub public: Uuid,
        pub by: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// Two versions merge by the model's own function; every path goes through another name of the crate.
mod merged {
    use sea_orm::entity::prelude::*;

    pub mod renamed {
        pub use tidelog;
    }

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, tidelog::Syncable)]
    #[sea_orm(table_name = "merged")]
    #[sync(custom = "longer", crate = "self::renamed::tidelog", deletes = "manual")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub text: String,
    }

    fn longer(base: Option<Model>, local: Model, remote: Model) -> Model {
        base.into_iter().chain([local, remote.clone()]).max_by_key(|m| m.text.len()).unwrap_or(remote)
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// All classes of stored values, recorded by hooks if the model or the library says so.
macro_rules! samples {
    ($module:ident, $table:literal, $($sync:tt)*) => {
        mod $module {
            use sea_orm::entity::prelude::*;
            use tidelog::Syncable;

            #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
            #[sea_orm(table_name = $table)]
            $($sync)*
            pub struct Model {
                #[sea_orm(primary_key, auto_increment = false)]
                pub id: Uuid,
                pub real: f64,
                pub text: String,
                pub blob: Vec<u8>,
                pub json: Option<Json>,
                #[sync(local)]
                pub mine: i32,
                pub flag: bool,
                pub size: super::Size,
                pub time: Option<DateTimeUtc>,
            }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}
        }
    };
}
samples!(sample, "it's \"sampled\"", #[sync(model = "it's a sample", capture = "hooks")]);
samples!(triggered, "triggered",);

/// The user's own hooks around ours.
mod hooked {
    use sea_orm::{Set, entity::prelude::*};
    use std::sync::Mutex;
    use tidelog::Syncable;

    pub static CALLS: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "hooked")]
    #[sync(hooks)]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub text: String,
        pub size: super::Size,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    fn call(text: String) {
        CALLS.lock().expect("no test panics while it holds this").push(text);
    }

    #[async_trait::async_trait]
    impl tidelog::Hooks for ActiveModel {
        fn new() -> Self {
            Self { text: Set("new".into()), ..ActiveModelTrait::default() }
        }

        async fn before_save<C: ConnectionTrait>(mut self, _db: &C, insert: bool) -> Result<Self, DbErr> {
            call(format!("before_save insert={insert} {} key_set={}", self.text.as_ref(), self.id.is_set()));
            if self.text.as_ref() == "twice the largest" {
                self.size = Set(super::Size(u64::MAX));
            }
            Ok(self)
        }

        async fn after_save<C: ConnectionTrait>(model: Model, _db: &C, insert: bool) -> Result<Model, DbErr> {
            call(format!("after_save insert={insert} {}", model.text));
            Ok(Model { text: format!("{}!", model.text), ..model })
        }

        async fn before_delete<C: ConnectionTrait>(self, _db: &C) -> Result<Self, DbErr> {
            call("before_delete".into());
            if self.text.as_ref() == "keep" { Err(DbErr::Custom("kept".into())) } else { Ok(self) }
        }

        async fn after_delete<C: ConnectionTrait>(self, _db: &C) -> Result<Self, DbErr> {
            call("after_delete".into());
            Ok(self)
        }
    }
}

/// A behavior of one's own, which makes none of our calls.
mod own {
    use sea_orm::{Set, entity::prelude::*};
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "own")]
    #[sync(behavior = "own")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {
        fn new() -> Self {
            Self { id: Set(Uuid::nil()), ..ActiveModelTrait::default() }
        }
    }
}

/// Entities without the derive.
mod generated {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "tags")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub name: String,
        pub seen: bool,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

mod by_hand {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "by_hand")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub name: String,
        pub seen: bool,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}

    impl tidelog::Syncable for Model {
        const SYNC_ID: &'static str = "hand";

        fn sync_fields() -> Vec<&'static str> {
            vec!["id", "name"]
        }
    }
}

tidelog::impl_syncable!(
    generated::Model,
    generated::ActiveModel,
    "tag",
    tidelog::model::SyncOptions { local: &["seen"], recorder: Recorder::Hooks, ..Default::default() }
);

struct Db {
    db: DatabaseConnection,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Db {
    type Target = DatabaseConnection;

    fn deref(&self) -> &DatabaseConnection {
        &self.db
    }
}

async fn open() -> Db {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("app.db").display());
    Db { db: Database::connect(url).await.expect("opens"), _folder: folder }
}

/// A database with the sync tables, where the model is recorded as a library would have it at open.
async fn open_with_shape<M>(recorder: &str) -> Db
where
    M: Syncable,
    <M::Entity as EntityTrait>::ActiveModel: sea_orm::TryIntoModel<M>,
{
    let db = open().await;
    create::<M::Entity>(&db).await;
    tidelog_migration::SyncMigrator::up(&*db, None).await.expect("the sync tables");
    let model = descriptor::<M>();
    let fields = serde_json::to_string(&model.field_names().collect::<Vec<_>>()).expect("names");
    // Older shapes beside it: only the current one counts.
    for (current, fields) in [(0, "[\"id\"]"), (1, &fields), (0, &fields)] {
        let values: [sea_orm::Value; 5] =
            [model.id.into(), model.table.as_str().into(), fields.into(), recorder.into(), current.into()];
        db.execute_raw(Statement::from_sql_and_values(
            DbBackend::Sqlite,
            "INSERT INTO sync_shape (model, table_name, fields, key, recorder, current) VALUES (?, ?, ?, '[]', ?, ?)",
            values,
        ))
        .await
        .expect("a shape");
    }
    db
}

async fn create<E: EntityTrait>(db: &DatabaseConnection) {
    let table = Schema::new(DbBackend::Sqlite).create_table_from_entity(E::default());
    db.execute(&table).await.expect("creates the table");
}

async fn outbox_kinds(db: &DatabaseConnection) -> Vec<i32> {
    let rows = db
        .query_all_raw(Statement::from_string(DbBackend::Sqlite, "SELECT kind FROM sync_outbox ORDER BY id"))
        .await
        .expect("reads the outbox");
    rows.iter().map(|row| row.try_get("", "kind").expect("a kind")).collect()
}

async fn number(db: &DatabaseConnection, sql: &str) -> i64 {
    let row = db.query_one_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.expect(sql);
    row.expect("a row").try_get_by_index(0).expect("a number")
}

fn descriptor<M>() -> ModelDescriptor
where
    M: Syncable,
    <M::Entity as EntityTrait>::ActiveModel: sea_orm::TryIntoModel<M>,
{
    ModelDescriptor::of::<M>().expect("a model that can be synced")
}

fn names(model: &ModelDescriptor) -> Vec<&str> {
    model.field_names().collect()
}

fn key(model: &ModelDescriptor) -> Vec<&str> {
    model.key.iter().map(|&i| model.fields[i].name.as_str()).collect()
}

#[test]
fn every_attribute_of_the_compact_format_reaches_the_descriptor() {
    let model = descriptor::<location::Model>();
    assert_eq!(model.id, "location");
    assert_eq!(model.table, "locations");
    assert_eq!(names(&model), ["id", "device", "caption", "scanned_entries", "labels", "updated_at"]);
    assert_eq!(key(&model), ["id"]);
    assert_eq!(model.local, ["mount_point", "type"]);
    assert_eq!(
        model.references,
        [Reference { from: vec!["device".into()], table: "device".into(), to: vec!["id".into()] }]
    );
    assert_eq!(model.fields[0].kind, ArrayType::Uuid);
    assert_eq!(
        model.fields.iter().map(|f| f.nullable).collect::<Vec<_>>(),
        [false, false, false, false, false, true]
    );
    assert_eq!(model.fields[3].default, Some(Value::Integer(7)));
    assert_eq!(model.fields[3].reducer, Some(Reducer::Max));
    assert_eq!(model.fields[4].default, Some(Value::Text(b"[]".into())));
    assert_eq!(model.fields[4].reducer, Some(Reducer::Union));

    let options = &model.options;
    assert_eq!(options.version, 3);
    assert_eq!(options.after, ["device", "volume", "tag"]);
    assert_eq!(options.policy, Policy::Fields);
    assert_eq!(options.deletes, DeletePolicy::UpdateWins);
    assert_eq!(options.priority, Priority::High);
    assert_eq!(options.recorder, Recorder::Trigger);
    assert_eq!(options.id, None);
}

#[test]
fn the_function_of_should_sync_is_asked_with_a_model_of_the_row() {
    let model = descriptor::<location::Model>();
    let ask = model.should_sync.expect("the model has one");
    let row = |name: &str| {
        vec![
            Value::Blob([1; 16].into()),
            Value::Text(b"laptop".into()),
            Value::Text(name.into()),
            Value::Integer(1),
            Value::Text(b"[]".into()),
            Value::Null,
        ]
    };
    assert_eq!(ask(&model, &row("photos")), Ok(true));
    assert_eq!(ask(&model, &row("private")), Ok(false));
}

#[test]
fn a_model_that_says_nothing_has_the_defaults() {
    let model = descriptor::<device::Model>();
    assert_eq!(model.id, "device");
    assert_eq!(model.options, tidelog::model::SyncOptions::default());
    assert_eq!((names(&model), key(&model)), (vec!["id", "name"], vec!["id"]));
    assert!(model.should_sync.is_none());
    assert_eq!(model.record_id(&[Value::Text(b"laptop".into()), Value::Null]), "laptop");
}

#[test]
fn the_format_with_relations_yields_one_descriptor_without_them() {
    let author = descriptor::<author::Model>();
    assert_eq!(author.id, "writer");
    assert_eq!(names(&author), ["id", "name"]);
    assert_eq!(author.local, ["note"]);
    assert_eq!(author.options.priority, Priority::Low);
    let book = descriptor::<book::Model>();
    assert_eq!(names(&book), ["id", "title", "author_id"]);
    assert_eq!(book.options.after, ["writer"]);
    assert_eq!(
        book.references,
        [Reference { from: vec!["author_id".into()], table: "author".into(), to: vec!["id".into()] }]
    );
}

#[test]
fn a_composite_key_names_the_record_as_an_array() {
    let model = descriptor::<entry_tag::Model>();
    assert_eq!(key(&model), ["entry", "tag"]);
    let row = [Value::Blob([0; 16].into()), Value::Integer(5), Value::Integer(0)];
    assert_eq!(model.record_id(&row), r#"["00000000-0000-0000-0000-000000000000",5]"#);
}

#[test]
fn with_an_id_column_the_counted_key_stays_on_the_device() {
    let model = descriptor::<counted::Model>();
    assert_eq!(model.options.id, Some("public_id"));
    assert_eq!(model.options.policy, Policy::Owner("by"));
    assert_eq!(model.options.recorder, Recorder::Hooks);
    assert_eq!((names(&model), key(&model)), (vec!["public_id", "by"], vec!["public_id"]));
    assert_eq!(model.local, ["id"]);
}

#[test]
fn a_function_of_the_model_merges_two_versions() {
    let model = descriptor::<merged::Model>();
    assert_eq!((model.options.policy, model.options.deletes), (Policy::Custom, DeletePolicy::Manual));
    let version = |text: &str| merged::Model { id: Uuid::nil(), text: text.into() };
    let merge = <merged::Model as Syncable>::merge;
    assert_eq!(merge(None, version("longer"), version("long")).text, "longer");
    assert_eq!(merge(Some(version("the base")), version("a"), version("b")).text, "the base");
}

#[test]
fn entities_without_the_derive_have_two_doors() {
    let macro_door = descriptor::<generated::Model>();
    assert_eq!(macro_door.id, "tag");
    assert_eq!(macro_door.local, ["seen"]);
    assert_eq!(macro_door.options.recorder, Recorder::Trigger, "there are no hooks that could record");
    let by_hand = descriptor::<by_hand::Model>();
    assert_eq!((by_hand.id, names(&by_hand)), ("hand", vec!["id", "name"]));
    assert_eq!(by_hand.local, ["seen"]);
}

/// What `ModelDescriptor::of` says of a model that is written by hand, where no derive looked.
#[test]
fn a_model_by_hand_that_cannot_be_synced_is_refused_clearly() {
    use tidelog::model::SyncOptions;

    fn refused<const CASE: u8>() -> String {
        ModelDescriptor::of::<Mistaken<CASE>>().expect_err("a mistake").to_string()
    }

    #[derive(Clone, Debug)]
    struct Mistaken<const CASE: u8>(device::Model);

    impl<const CASE: u8> ModelTrait for Mistaken<CASE> {
        type Entity = device::Entity;

        fn get(&self, column: device::Column) -> sea_orm::Value {
            self.0.get(column)
        }

        fn get_value_type(column: device::Column) -> ArrayType {
            device::Model::get_value_type(column)
        }

        fn try_set(&mut self, column: device::Column, value: sea_orm::Value) -> Result<(), sea_orm::DbErr> {
            self.0.try_set(column, value)
        }
    }

    impl<const CASE: u8> Syncable for Mistaken<CASE> {
        const SYNC_ID: &'static str = "mistaken";

        fn options() -> SyncOptions {
            let plain = SyncOptions::default();
            match CASE {
                0 => SyncOptions { local: &["nmae"], ..plain },
                1 => SyncOptions { local: &["id"], ..plain },
                2 => SyncOptions { defaults: vec![("name", 7.into())], ..plain },
                3 => SyncOptions { defaults: vec![("name", None::<String>.into())], ..plain },
                4 => SyncOptions { tree: Some("parent"), ..plain },
                5 => SyncOptions { tree: Some("name"), ..plain },
                _ => SyncOptions { defaults: vec![("nmae", "x".into())], ..plain },
            }
        }
    }

    impl<const CASE: u8> sea_orm::TryIntoModel<Mistaken<CASE>> for device::ActiveModel {
        fn try_into_model(self) -> Result<Mistaken<CASE>, sea_orm::DbErr> {
            Ok(Mistaken(self.try_into()?))
        }
    }

    for (error, parts) in [
        (refused::<0>(), ["`nmae`", "id, name"]),
        (refused::<1>(), ["`id` is local", "Remove #[sync(local)]"]),
        (refused::<2>(), ["`name` is stored as Integer(7), which is no String", "the field's own type"]),
        (refused::<3>(), ["`name` is stored as Null", "the field's own type"]),
        (refused::<4>(), ["`parent`", "id, name"]),
        (
            refused::<5>(),
            ["`name`, by which its rows form a tree, may not be NULL", "key of the row's parent"],
        ),
        (refused::<6>(), ["`nmae`", "id, name"]),
    ] {
        for part in parts.into_iter().chain(["model `mistaken`", "nothing was changed"]) {
            assert!(error.contains(part), "`{error}` does not say `{part}`");
        }
    }
}

#[tokio::test]
async fn a_uuid_key_is_filled_at_the_insert_and_not_before() {
    let db = open().await;
    create::<device::Entity>(&db).await;
    create::<location::Entity>(&db).await;
    device::ActiveModel { id: Set("laptop".into()), name: Set("L".into()) }
        .insert(&*db)
        .await
        .expect("inserts");
    let mut fresh = <location::ActiveModel as ActiveModelBehavior>::new();
    assert_eq!(fresh.id, NotSet, "with the key set, save() would be an update");
    fresh.device = Set("laptop".into());
    fresh.name = Set("photos".into());
    fresh.scanned_entries = Set(0);
    fresh.labels = Set("[]".into());
    fresh.r#type = Set(1);
    let saved = fresh.save(&*db).await.expect("save() of a fresh model inserts");
    assert_eq!(saved.id.as_ref().get_version_num(), 7);

    let chosen = Uuid::from_u128(9);
    let mut second = saved.clone().reset_all();
    second.id = Set(chosen);
    assert_eq!(second.insert(&*db).await.expect("inserts").id, chosen, "a key that is set stays");

    let mut again = saved.clone();
    again.name = Set("pictures".into());
    again.save(&*db).await.expect("updates");
    assert_eq!(location::Entity::find().count(&*db).await.expect("counts"), 2);
}

#[tokio::test]
async fn the_format_with_relations_saves_a_graph_with_filled_keys() {
    let db = open().await;
    create::<author::Entity>(&db).await;
    create::<book::Entity>(&db).await;
    let graph = author::ActiveModel::builder().set_name("A").set_note(None);
    let graph = graph.add_book(book::ActiveModel::builder().set_title("B"));
    let author = graph.save(&*db).await.expect("saves author and book");
    let book = book::Entity::find().one(&*db).await.expect("reads").expect("the book");
    assert_eq!(book.author_id, author.id.unwrap(), "the book has the key that its author got on the way");
    assert_eq!([book.id, book.author_id].map(|id| id.get_version_num()), [7, 7]);
    book.delete(&*db).await.expect("deletes");
}

#[tokio::test]
async fn composite_and_string_keys_are_left_to_the_application() {
    let db = open().await;
    create::<device::Entity>(&db).await;
    create::<entry_tag::Entity>(&db).await;
    let device = device::ActiveModel { id: Set("laptop".into()), name: Set("L".into()) };
    assert_eq!(device.insert(&*db).await.expect("inserts").id, "laptop");
    let tag = entry_tag::ActiveModel { entry: NotSet, tag: Set(1), at: Set(1) };
    tag.insert(&*db).await.expect_err("half a composite key is nobody's to guess");
}

#[tokio::test]
async fn an_id_column_is_filled_beside_the_counted_key() {
    let db = open().await;
    create::<counted::Entity>(&db).await;
    let row = counted::ActiveModel { by: Set("laptop".into()), ..Default::default() };
    let row = row.insert(&*db).await.expect("inserts");
    assert_eq!((row.id, row.public.get_version_num()), (1, 7));
    let mut row = row.into_active_model();
    row.by = Set("desktop".into());
    let public = row.public.clone().unwrap();
    assert_eq!(row.update(&*db).await.expect("updates").public, public);
}

#[tokio::test]
async fn a_number_that_sqlite_cannot_store_is_refused_clearly() {
    let db = open().await;
    create::<hooked::Entity>(&db).await;
    let insert = |size| {
        hooked::ActiveModel { size: Set(Size(size)), text: Set("size".into()), ..Default::default() }
            .insert(&*db)
    };
    let largest = i64::MAX as u64;
    assert_eq!(insert(largest).await.expect("the largest that fits").size, Size(largest));
    let error = insert(largest + 1).await.expect_err("does not fit").to_string();
    for part in [
        "`hooked`",
        "`size`",
        "9223372036854775808",
        "9223372036854775807",
        "nothing was written",
        "Use a smaller",
    ] {
        assert!(error.contains(part), "`{error}` does not say `{part}`");
    }
    let of_hook = hooked::ActiveModel {
        text: Set("twice the largest".into()),
        size: Set(Size(1)),
        ..Default::default()
    };
    let error = of_hook.insert(&*db).await.expect_err("what the user's hook put there is checked too");
    assert!(error.to_string().contains(&u64::MAX.to_string()), "{error}");
    assert_eq!(hooked::Entity::find().count(&*db).await.expect("counts"), 1);
}

#[tokio::test]
async fn the_users_hooks_run_around_ours() {
    let db = open().await;
    create::<hooked::Entity>(&db).await;
    let fresh = <hooked::ActiveModel as ActiveModelBehavior>::new();
    assert_eq!(fresh.text, Set("new".into()));
    let fresh = hooked::ActiveModel { size: Set(Size(1)), text: Set("order".into()), ..fresh };
    let saved = fresh.insert(&*db).await.expect("inserts");
    assert_eq!(saved.text, "order!", "what the user's hook returns is what the caller gets");
    let mut active = saved.into_active_model();
    active.text = Set("reorder".into());
    let saved = active.update(&*db).await.expect("updates");
    let kept = hooked::ActiveModel { text: Set("keep".into()), ..saved.clone().into_active_model() };
    assert_eq!(kept.delete(&*db).await.expect_err("the hook refuses").to_string(), "Custom Error: kept");
    assert_eq!(hooked::Entity::find().count(&*db).await.expect("counts"), 1);
    saved.into_active_model().delete(&*db).await.expect("deletes");
    let calls = hooked::CALLS.lock().expect("no test panics while it holds this").clone();
    // Another test of this process uses the same hooks, with other words.
    let calls: Vec<_> =
        calls.iter().filter(|call| call.contains("order") || call.contains("delete")).collect();
    assert_eq!(
        calls,
        [
            "before_save insert=true order key_set=false", // ours fills the key, behind the user's
            "after_save insert=true order",
            "before_save insert=false reorder key_set=false",
            "after_save insert=false reorder",
            "before_delete",
            "before_delete",
            "after_delete",
        ]
    );
}

#[tokio::test]
async fn a_behavior_of_ones_own_is_left_alone() {
    assert_eq!(<own::ActiveModel as ActiveModelBehavior>::new().id, Set(Uuid::nil()));
    assert_eq!(own::Model::SYNC_ID, "own");
}

fn a_sample(real: f64) -> sample::ActiveModel {
    sample::ActiveModel {
        id: NotSet,
        real: Set(real),
        text: Set("a \"quoted\" line\n\u{1f}é☃".into()),
        blob: Set(vec![0, 255, 0]),
        json: Set(Some(serde_json::json!({"b": 1.0, "a": [null, "ü"]}))),
        mine: Set(4),
        flag: Set(true),
        size: Set(Size(i64::MAX as u64)),
        time: Set(chrono::DateTime::from_timestamp(1, 500_000_000)),
    }
}

const SAMPLE_FIELDS: [&str; 8] = ["id", "real", "text", "blob", "json", "flag", "size", "time"];

/// Whether the outbox row holds, class and bits, what the table holds.
async fn is_bit_equal(db: &DatabaseConnection, outbox: &str, table: &str) -> bool {
    let same: String = SAMPLE_FIELDS
        .iter()
        .enumerate()
        .map(|(i, field)| {
            format!(" AND o.{outbox}{i} IS t.\"{field}\" AND typeof(o.{outbox}{i}) = typeof(t.\"{field}\")")
        })
        .collect();
    let sql = format!("SELECT count(*) FROM sync_outbox o, {table} t WHERE o.shape = 2{same}");
    number(db, &sql).await == 1
}

#[tokio::test]
async fn hooks_record_what_is_stored_bit_for_bit() {
    for real in [0.1 + 0.2, f64::MIN_POSITIVE / 4.0, f64::MAX, f64::NEG_INFINITY, -0.0, 1.0] {
        let db = open_with_shape::<sample::Model>("hooks").await;
        db.execute_unprepared("UPDATE sync_ctl SET clock = 77, mark = 'm', actor = 'a'")
            .await
            .expect("the context");
        a_sample(real).insert(&*db).await.expect("inserts");
        assert_eq!(outbox_kinds(&db).await, [5]);
        assert!(is_bit_equal(&db, "v", "\"it's \"\"sampled\"\"\"").await, "{real}");
        let context =
            "SELECT count(*) FROM sync_outbox WHERE mode = 0 AND at = 77 AND mark = 'm' AND actor = 'a'";
        assert_eq!(number(&db, context).await, 1);
    }
}

#[tokio::test]
async fn a_deletion_is_recorded_with_the_row_that_went_whatever_was_in_it() {
    let db = open_with_shape::<sample::Model>("hooks").await;
    let saved = a_sample(1.5).insert(&*db).await.expect("inserts");
    // What no Rust type of the model would read back.
    let raw = "UPDATE \"it's \"\"sampled\"\"\" SET text = x'ff00', flag = 2, real = 'text', json = '{', size = NULL";
    db.execute_unprepared(raw).await.expect_err("size may not be NULL");
    db.execute_unprepared(&raw.replace(", size = NULL", "")).await.expect("raw SQL is not checked");
    db.execute_unprepared("DELETE FROM sync_outbox").await.expect("empties the outbox");
    db.execute_unprepared("CREATE TABLE before AS SELECT * FROM \"it's \"\"sampled\"\"\"")
        .await
        .expect("a copy");
    let key_only = sample::ActiveModel { id: Set(saved.id), ..Default::default() };
    assert_eq!(key_only.delete(&*db).await.expect("deletes").rows_affected, 1);
    assert_eq!(outbox_kinds(&db).await, [6]);
    assert!(is_bit_equal(&db, "o", "before").await);
    // The wall clock, in ms since 1970, where no other is set.
    let now = chrono::Utc::now().timestamp_millis();
    assert!((now - number(&db, "SELECT at FROM sync_outbox").await).abs() < 60_000);

    let gone = sample::ActiveModel { id: Set(saved.id), ..Default::default() };
    assert_eq!(gone.delete(&*db).await.expect("deletes nothing").rows_affected, 0);
    assert_eq!(outbox_kinds(&db).await, [6], "what was not there is not recorded");
}

#[tokio::test]
async fn hooks_record_nothing_that_is_not_theirs() {
    let off = open_with_shape::<sample::Model>("hooks").await;
    off.execute_unprepared("UPDATE sync_ctl SET mode = 1").await.expect("capture off");
    a_sample(1.0).insert(&*off).await.expect("inserts");
    assert_eq!(outbox_kinds(&off).await, [0; 0], "capture is off");

    let derived = open_with_shape::<sample::Model>("hooks").await;
    derived.execute_unprepared("UPDATE sync_ctl SET mode = 2").await.expect("derived");
    a_sample(1.0).insert(&*derived).await.expect("inserts");
    assert_eq!(number(&derived, "SELECT mode FROM sync_outbox").await, 2);

    let by_trigger = open_with_shape::<sample::Model>("trigger").await;
    a_sample(1.0).insert(&*by_trigger).await.expect("inserts");
    assert_eq!(outbox_kinds(&by_trigger).await, [0; 0], "here the trigger records");

    let other_columns = open_with_shape::<sample::Model>("hooks").await;
    other_columns.execute_unprepared("UPDATE sync_shape SET fields = '[\"id\"]'").await.expect("a shape");
    a_sample(1.0).insert(&*other_columns).await.expect("inserts");
    assert_eq!(outbox_kinds(&other_columns).await, [0; 0], "values would be read as those of other columns");

    let rolled_back = open_with_shape::<sample::Model>("hooks").await;
    let transaction = rolled_back.begin().await.expect("begins");
    a_sample(1.0).insert(&transaction).await.expect("inserts");
    transaction.rollback().await.expect("rolls back");
    assert_eq!(outbox_kinds(&rolled_back).await, [0; 0]);
}

#[tokio::test]
async fn without_a_library_a_model_that_records_by_hooks_saves_and_deletes_all_the_same() {
    let db = open().await;
    create::<sample::Entity>(&db).await;
    let saved = a_sample(1.0).insert(&*db).await.expect("without the sync tables");
    saved.delete(&*db).await.expect("deletes");

    tidelog_migration::SyncMigrator::up(&*db, None).await.expect("the sync tables");
    db.execute_unprepared("ALTER TABLE sync_outbox DROP COLUMN v7").await.expect("a narrow outbox");
    a_sample(1.0).insert(&*db).await.expect("with an outbox that was never widened for the model");
}

#[tokio::test]
async fn a_library_can_have_a_model_recorded_by_its_hooks() {
    let db = open_with_shape::<triggered::Model>("hooks").await;
    let insert = || async {
        let sample::ActiveModel { real, text, blob, json, mine, flag, size, time, .. } = a_sample(1.0);
        triggered::ActiveModel { id: NotSet, real, text, blob, json, mine, flag, size, time }
            .insert(&*db)
            .await
    };
    insert().await.expect("inserts");
    assert_eq!(outbox_kinds(&db).await, [0; 0], "nobody asked for hooks");
    let library = notice::register([("triggered", Recorder::Hooks)], 8, Arc::new(|| {}));
    let saved = insert().await.expect("inserts");
    saved.delete(&*db).await.expect("deletes");
    assert_eq!(outbox_kinds(&db).await, [5, 6]);
    drop(library);
    insert().await.expect("inserts");
    assert_eq!(outbox_kinds(&db).await, [5, 6]);
}

#[tokio::test]
async fn the_key_of_this_device_finds_the_row_and_the_id_column_names_it() {
    let db = open_with_shape::<counted::Model>("hooks").await;
    let row = counted::ActiveModel { by: Set("laptop".into()), ..Default::default() };
    let row = row.insert(&*db).await.expect("inserts");
    let same = "SELECT count(*) FROM sync_outbox o JOIN counted t ON o.v0 = t.public_id AND o.v1 = t.by AND o.kind = 5";
    assert_eq!(number(&db, same).await, 1);
    counted::ActiveModel { id: Set(row.id), ..Default::default() }.delete(&*db).await.expect("deletes");
    assert_eq!(outbox_kinds(&db).await, [5, 6]);
}

#[tokio::test]
async fn an_open_library_hears_of_every_save_and_delete() {
    let db = open().await;
    create::<device::Entity>(&db).await;
    create::<entry_tag::Entity>(&db).await;
    let woken = Arc::new(AtomicUsize::new(0));
    let library = {
        let woken = Arc::clone(&woken);
        let models = [("device", Recorder::Trigger), ("entry_tag", Recorder::Trigger)];
        let wake = Arc::new(move || {
            woken.fetch_add(1, Ordering::Relaxed);
        });
        notice::register(models, 256, wake)
    };
    // Other tests of this process write devices and tags too, with other keys.
    let heard = Mutex::new(Vec::new());
    let take = |record: &str| {
        let mut heard = heard.lock().expect("one thread");
        heard.extend(std::iter::from_fn(|| library.pop()));
        heard.iter().filter(|n: &&Notice| n.record == record).map(|n| (n.model, n.kind)).collect::<Vec<_>>()
    };
    let row = device::ActiveModel { id: Set("heard".into()), name: Set("a".into()) };
    let mut row = row.insert(&*db).await.expect("inserts").into_active_model();
    row.name = Set("b".into());
    let row = row.update(&*db).await.expect("updates");
    row.delete(&*db).await.expect("deletes");
    assert_eq!(
        take("heard"),
        [("device", NoticeKind::Inserted), ("device", NoticeKind::Updated), ("device", NoticeKind::Deleted)]
    );
    let tag = entry_tag::ActiveModel { entry: Set(Uuid::nil()), tag: Set(4), at: Set(1) };
    tag.insert(&*db).await.expect("inserts");
    let record = r#"["00000000-0000-0000-0000-000000000000",4]"#;
    assert_eq!(take(record), [("entry_tag", NoticeKind::Inserted)]);
    assert!(woken.load(Ordering::Relaxed) >= 4);
    assert!(!library.take_overflowed());
}

#[tokio::test]
async fn a_library_that_cannot_be_told_which_record_is_told_to_look_again() {
    let db = open().await;
    create::<book::Entity>(&db).await;
    create::<author::Entity>(&db).await;
    create::<counted::Entity>(&db).await;
    let library =
        notice::register([("book", Recorder::Trigger), ("counted", Recorder::Trigger)], 1, Arc::new(|| {}));
    let author = author::ActiveModel { name: Set("A".into()), ..Default::default() };
    let author = author.insert(&*db).await.expect("inserts");
    for title in ["one", "two"] {
        let book =
            book::ActiveModel { title: Set(title.into()), author_id: Set(author.id), ..Default::default() };
        book.insert(&*db).await.expect("a full queue never fails a save");
    }
    assert!(library.take_overflowed(), "one of two notices found no place");
    assert!(library.pop().is_some());

    let row = counted::ActiveModel { by: Set("x".into()), ..Default::default() };
    let id = row.insert(&*db).await.expect("inserts").id;
    while library.pop().is_some() {}
    library.take_overflowed();
    counted::ActiveModel { id: Set(id), ..Default::default() }.delete(&*db).await.expect("deletes");
    assert!(library.take_overflowed(), "the record's name went with the row");
}

#[test]
fn the_hooks_can_be_awaited_on_any_thread() {
    fn is_send<T: Send>(_: T) {}
    let db = DatabaseConnection::default();
    let active = <device::ActiveModel as ActiveModelTrait>::default();
    is_send(<device::ActiveModel as ActiveModelBehavior>::before_save(active.clone(), &db, true));
    is_send(active.clone().insert(&db));
    is_send(active.delete(&db));
}

macro_rules! numbered {
    ($name:ident, $table:tt, [$($sync:tt)*]) => {
        #[allow(unreachable_pub, reason = "SeaORM has entities public")]
        mod $name {
            use sea_orm::entity::prelude::*;
            use tidelog::Syncable;

            #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
            #[sea_orm(table_name = $table)]
            #[sync($($sync)*)]
            pub struct Model {
                #[sea_orm(primary_key, auto_increment = false)]
                pub id: String,
                pub number: i64,
            }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}
        }
    };
}

numbered!(from_a_macro, "from_a_macro", [custom = "super::larger", should_sync = "super::is_even"]);

fn larger(
    _: Option<from_a_macro::Model>,
    local: from_a_macro::Model,
    remote: from_a_macro::Model,
) -> from_a_macro::Model {
    if remote.number > local.number { remote } else { local }
}

fn is_even(model: &from_a_macro::Model) -> bool {
    model.number % 2 == 0
}

#[test]
fn a_model_that_a_macro_writes_may_name_functions() {
    let model = |number: i64| from_a_macro::Model { id: "n".into(), number };
    assert_eq!(Syncable::merge(None, model(1), model(2)), model(2));
    assert!(Syncable::should_sync(&model(2)) && !Syncable::should_sync(&model(1)));
}

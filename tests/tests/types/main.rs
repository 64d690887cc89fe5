//! Types: every column type of `docs/types.md` arrives bit-equal to what SQLite stores, and so does whatever raw SQL
//! puts into a column that no Rust type would write there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use chrono::{DateTime, Local, NaiveDate, NaiveTime, Utc};
use sea_orm::{
    ActiveModelTrait, ActiveValue, ActiveValue::Set, ConnectionTrait, EntityTrait, IdenStatic, Iterable,
    Schema, sea_query::SqliteQueryBuilder,
};
use serde_json::json;
use tidelog::LibraryBuilder;
use tidelog_tests::scene::{Scene, assert_says, stored, text};

mod sample;
use sample::{ActiveModel, Column, Kind, Level, Size};

fn register(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<sample::Entity>()
}

/// The table as SeaORM makes it.
fn schema() -> String {
    let table = Schema::new(sea_orm::DbBackend::Sqlite).create_table_from_entity(sample::Entity);
    table.to_string(SqliteQueryBuilder)
}

async fn scene() -> Scene {
    Scene::set(&schema(), register).await
}

fn columns() -> impl Iterator<Item = &'static str> {
    Column::iter().map(|column| column.as_str())
}

fn date() -> NaiveDate {
    NaiveDate::from_ymd_opt(2024, 2, 29).unwrap()
}

fn time() -> NaiveTime {
    NaiveTime::from_hms_milli_opt(23, 59, 59, 500).unwrap()
}

fn instant() -> DateTime<Utc> {
    date().and_time(time()).and_utc()
}

/// The examples of `docs/types.md`, in its order behind the key.
fn examples() -> ActiveModel {
    ActiveModel {
        id: Set("examples".into()),
        a_bool: Set(Some(true)),
        an_i8: Set(Some(-8)),
        an_i16: Set(Some(-16)),
        an_i32: Set(Some(-32)),
        an_i64: Set(Some(i64::MIN)),
        a_u8: Set(Some(8)),
        a_u16: Set(Some(16)),
        a_u32: Set(Some(u32::MAX)),
        a_size: Set(Some(Size(i64::MAX as u64))),
        an_f32: Set(Some(0.1)),
        an_f64: Set(Some(0.1)),
        a_string: Set(Some("tide".into())),
        a_text: Set(Some("a\0b".into())),
        bytes: Set(Some(vec![0, 255])),
        a_uuid: Set(Some("67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap())),
        a_json: Set(Some(json!({"b": 1, "a": [2]}))),
        a_kind: Set(Some(Kind::Folder)),
        a_level: Set(Some(Level::High)),
        a_date: Set(Some(date())),
        a_time: Set(Some(NaiveTime::from_hms_nano_opt(23, 59, 59, 123_456_789).unwrap())),
        a_date_time: Set(Some(date().and_time(time()))),
        an_instant: Set(Some(instant())),
        a_zoned: Set(Some("2024-02-29T23:59:59.5+05:30".parse().unwrap())),
        a_local: Set(Some(instant().into())),
    }
}

/// Inserts on the leader and asserts that both files hold the same bits, and that SeaORM reads the same from both.
async fn arrives(scene: &Scene, sample: ActiveModel) -> sample::Model {
    let sample = sample.insert(&scene.leader.db).await.unwrap();
    scene.assert_level("samples", "*").await;
    let read = async |db| sample::Entity::find_by_id(sample.id.clone()).one(db).await.unwrap().unwrap();
    let (there, here) = (read(&scene.leader.db).await, read(&scene.follower.db).await);
    assert_eq!(here, there);
    here
}

#[tokio::test]
async fn the_table_of_types_in_the_docs_is_true() {
    let scene = scene().await;
    assert_eq!(arrives(&scene, examples()).await, sample::Model::try_from(examples()).unwrap());

    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/types.md")).unwrap();
    let documented: Vec<Vec<&str>> = docs
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    let file = scene.follower.file();
    let data: String = text(&file, "SELECT data FROM sync_log WHERE record = 'examples'");
    let names: Vec<&str> = columns().skip(1).collect();
    assert_eq!(documented.len(), names.len(), "a line for each type");
    for (line, name) in documented.iter().zip(names) {
        let &[rust, declared, class, logged] = line.as_slice() else { panic!("{line:?}") };
        let found = text(
            &file,
            &format!("SELECT lower(type) FROM pragma_table_info('samples') WHERE name = '{name}'"),
        );
        assert_eq!(found, declared, "{rust}");
        assert_eq!(text(&file, &format!("SELECT typeof({name}) FROM samples")), class, "{rust}");
        // The docs are written in Greenwich.
        let local = format!("\"{}\"", DateTime::<Local>::from(instant()).to_rfc3339());
        let logged = if name == "a_local" { &local } else { logged };
        assert!(data.contains(&format!("\"{name}\":{logged}")), "{rust}: {logged} is not in {data}");
    }
}

#[tokio::test]
async fn the_ends_of_every_range_arrive() {
    let scene = scene().await;
    let nothing = ActiveModel { id: Set("nothing".into()), ..Default::default() };
    arrives(&scene, nothing).await;

    arrives(
        &scene,
        ActiveModel {
            id: Set("low".into()),
            a_bool: Set(Some(false)),
            an_i8: Set(Some(i8::MIN)),
            an_i16: Set(Some(i16::MIN)),
            an_i32: Set(Some(i32::MIN)),
            an_i64: Set(Some(i64::MAX)),
            a_size: Set(Some(Size(0))),
            an_f32: Set(Some(f32::MIN_POSITIVE / 2.0)),
            an_f64: Set(Some(f64::from_bits(1))),
            a_string: Set(Some(String::new())),
            a_text: Set(Some("\u{0}\u{feff}\u{10ffff} \"quoted\" \\ \r\n".into())),
            bytes: Set(Some(Vec::new())),
            a_uuid: Set(Some(uuid::Uuid::nil())),
            a_json: Set(Some(json!(null))),
            a_kind: Set(Some(Kind::File)),
            a_level: Set(Some(Level::Low)),
            a_date: Set(Some(NaiveDate::from_ymd_opt(1, 1, 1).unwrap())),
            a_time: Set(Some(NaiveTime::MIN)),
            ..examples()
        },
    )
    .await;
    // 16 bytes that are no UUID's, and more bytes than that.
    for bytes in [vec![7; 16], vec![9; 100_000]] {
        let id = Set(format!("{} bytes", bytes.len()));
        arrives(&scene, ActiveModel { id, bytes: Set(Some(bytes)), ..Default::default() }).await;
    }
}

#[tokio::test]
async fn reals_arrive_as_sqlite_stores_them() {
    let scene = scene().await;
    let stored_as = [
        (f64::NAN, "null"),
        (f64::INFINITY, "real:7ff0000000000000"),
        (f64::NEG_INFINITY, "real:fff0000000000000"),
        (f64::MIN_POSITIVE / 4.0, "real:0004000000000000"),
        (f64::MAX, "real:7fefffffffffffff"),
        (0.1 + 0.2, "real:3fd3333333333334"),
        (1e300, "real:7e37e43c8800759c"),
        (1.0, "real:3ff0000000000000"),
        (-0.0, "real:0000000000000000"),
    ];
    for (i, (real, bits)) in stored_as.into_iter().enumerate() {
        let id = i.to_string();
        let sample = ActiveModel {
            id: Set(id.clone()),
            an_f64: Set(Some(real)),
            an_f32: Set(Some(real as f32)),
            ..Default::default()
        };
        sample.insert(&scene.leader.db).await.unwrap();
        scene.assert_level("samples", "*").await;
        assert_eq!(scene.follower.dump(&format!("samples WHERE id = '{id}'"), "an_f64"), [bits], "{real}");
    }
}

#[tokio::test]
async fn a_number_beyond_what_sqlite_stores_is_refused_clearly() {
    let scene = scene().await;
    let sample = ActiveModel { a_size: Set(Some(Size(1 << 63))), ..examples() };
    let error = sample.insert(&scene.leader.db).await.unwrap_err().to_string();
    assert_says(
        &error,
        &["`sample`", "`a_size`", "9223372036854775808", "nothing was written", "Use a smaller"],
    );
    assert!(scene.leader.dump("samples", "id").is_empty());
}

/// A value of each storage class, and some that fit no type.
const STORED: [&str; 18] = [
    "NULL",
    "0",
    "2",
    "-1",
    "9223372036854775807",
    "-9223372036854775808",
    "1.0",
    "2.5",
    "9e999",
    "-9e999",
    "4.9e-324",
    "''",
    "'text'",
    "'12'",
    "CAST(x'ff00fe41' AS TEXT)",
    "'{\"malformed\": '",
    "x''",
    "x'00112233445566778899aabbccddeeff'",
];

#[tokio::test]
async fn whatever_raw_sql_puts_into_a_column_is_accepted_and_arrives() {
    let scene = scene().await;
    let file = scene.leader.file();
    for column in columns().skip(1) {
        for (i, value) in STORED.iter().enumerate() {
            file.execute_batch(&format!(
                "INSERT INTO samples (id, {column}) VALUES ('{column} {i}', {value})"
            ))
            .unwrap();
        }
    }
    scene.assert_level("samples", "*").await;
    assert_eq!(scene.leader.library.status().borrow().quarantined, 0);
    // And as an update over what was there: each value moves on by one.
    let before = scene.follower.dump("samples", "*");
    for column in columns().skip(1) {
        for (i, value) in STORED.iter().cycle().skip(1).take(STORED.len()).enumerate() {
            file.execute_batch(&format!("UPDATE samples SET {column} = {value} WHERE id = '{column} {i}'"))
                .unwrap();
        }
    }
    scene.assert_level("samples", "*").await;
    assert_ne!(scene.follower.dump("samples", "*"), before);
    assert_eq!(scene.leader.library.status().borrow().quarantined, 0);
}

#[tokio::test]
async fn the_log_says_what_is_stored_bit_for_bit() {
    let scene = scene().await;
    let file = scene.leader.file();
    for (i, value) in STORED.iter().enumerate() {
        file.execute_batch(&format!("INSERT INTO samples (id, bytes) VALUES ('{i}', {value})")).unwrap();
    }
    scene.level().await;
    let kept: HashMap<String, String> = scene
        .follower
        .file()
        .prepare("SELECT record, data FROM sync_log WHERE model = 'sample'")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    for i in 0..STORED.len() {
        let row = tidelog::value::row_from_json(&kept[&i.to_string()]).unwrap();
        let (_, logged) = row.into_iter().find(|(name, _)| name == "bytes").unwrap();
        let table = file
            .query_row("SELECT bytes FROM samples WHERE id = ?1", [i.to_string()], |row| {
                Ok(stored(row.get_ref(0)?))
            })
            .unwrap();
        assert_eq!(as_stored(&logged), table);
    }
}

fn as_stored(value: &tidelog::value::Value) -> String {
    use rusqlite::types::ValueRef;
    use tidelog::value::Value;
    stored(match value {
        Value::Null => ValueRef::Null,
        Value::Integer(i) => ValueRef::Integer(*i),
        Value::Real(r) => ValueRef::Real(*r),
        Value::Text(bytes) => ValueRef::Text(bytes),
        Value::Blob(bytes) => ValueRef::Blob(bytes),
    })
}

#[tokio::test]
async fn json_stays_the_text_that_was_written() {
    let scene = scene().await;
    let json = r#"{ "b":1,"a" : [ 1.0, 1e2, 12345678901234567890 ],"b":2, "é":"\u00e9" } "#;
    scene
        .leader
        .db
        .execute_raw(sea_orm::Statement::from_sql_and_values(
            sea_orm::DbBackend::Sqlite,
            "INSERT INTO samples (id, a_json) VALUES ('json', ?)",
            [json.into()],
        ))
        .await
        .unwrap();
    scene.assert_level("samples", "*").await;
    assert_eq!(text(&scene.follower.file(), "SELECT a_json FROM samples"), json);
}

#[tokio::test]
async fn a_follower_keeps_what_its_own_schema_would_write_differently() {
    // A later device whose table has other affinities: values are as sent wherever SQLite lets them be.
    let scene = scene().await;
    let untyped = schema().replace("varchar", "blob").replace("json_text", "blob");
    let late = scene.join(3, &untyped, register).await;
    arrives(&scene, examples()).await;
    late.reached(&scene.leader).await;
    assert_eq!(late.dump("samples", "*"), scene.leader.dump("samples", "*"));
}

/// An `ActiveValue` that is not set stays what the database says, here NULL.
#[tokio::test]
async fn columns_that_are_not_set_travel_as_what_the_database_made_of_them() {
    let scene =
        Scene::set(&schema().replace("\"an_i32\" integer", "\"an_i32\" integer DEFAULT 5"), register).await;
    let sample = ActiveModel { id: Set("default".into()), an_i32: ActiveValue::NotSet, ..Default::default() };
    assert_eq!(arrives(&scene, sample).await.an_i32, Some(5));
}

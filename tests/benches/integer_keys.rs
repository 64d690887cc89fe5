//! Queries on a file manager's entries before and after their integer keys, and the references to their directory and
//! their location, have become UUIDs: by SeaORM, as an application asks them, and for the sake of the difference by
//! prepared statements, where there is nothing but SQLite.
//!
//! Both databases are open side by side and asked in turns for the same rows.

use std::{path::Path, time::Instant};

use rusqlite::{OptionalExtension, params};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect};
use tidelog::migration::{IntegerKeys, integer_keys_to_uuids, uuid_for};
use tidelog_tests::counted::{Dice, NAMESPACE};
use uuid::Uuid;

use crate::{
    Failure,
    args::Options,
    database,
    report::{Bar, Row},
    rounds::Rounds,
};

pub(crate) const NAMES: &[&str] = &[
    "integer_keys/by_key",
    "integer_keys/join",
    "integer_keys/range",
    "integer_keys/count",
    "integer_keys/all",
    "integer_keys/by_key_raw",
    "integer_keys/join_raw",
    "integer_keys/range_raw",
    "integer_keys/count_raw",
    "integer_keys/migration",
];

/// Entries, and how many of them are in one directory; the first of each is the next directory.
const ENTRIES: usize = 100_000;
const IN_DIRECTORY: usize = 20;
const LOCATIONS: u64 = 4;
/// Many short ones: what else a machine does is then in both of a pair, or in few of them.
const ROUNDS: usize = 60;
/// Queries of a round.
const QUERIES: usize = 100;
/// Rows of one page.
const PAGE: u64 = 50;
const SEED: u64 = 3;
/// Holds either database whole: what a query costs is measured, not what the file system does.
const CACHE_KIB: u32 = 128 * 1024;
/// What a query may cost more than before.
const RATIO_MAX: f64 = 1.1;

/// The tables as SeaORM's migrations write them.
const TABLES: &str = "
    CREATE TABLE locations (id integer NOT NULL PRIMARY KEY AUTOINCREMENT, name varchar NOT NULL);
    CREATE TABLE entries (
        id integer NOT NULL PRIMARY KEY AUTOINCREMENT,
        location_id integer NOT NULL,
        parent_id integer,
        name varchar NOT NULL,
        extension varchar,
        kind varchar NOT NULL,
        size integer NOT NULL,
        permissions integer NOT NULL,
        is_hidden boolean NOT NULL,
        created_at timestamp_with_timezone_text,
        modified_at timestamp_with_timezone_text,
        indexed_at timestamp_with_timezone_text NOT NULL,
        content_id uuid_text,
        inode integer,
        FOREIGN KEY (location_id) REFERENCES locations (id) ON DELETE CASCADE,
        FOREIGN KEY (parent_id) REFERENCES entries (id) ON DELETE CASCADE);
    CREATE INDEX entries_in_directory ON entries (parent_id);";

/// What a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Query {
    /// One row by its key.
    ByKey,
    /// What is in a directory, with the location beside each.
    Join,
    /// A page of rows in the order of keys.
    Range,
    /// How many are in a directory.
    Count,
}

const ALL: [(Query, &str); 4] =
    [(Query::ByKey, "by_key"), (Query::Join, "join"), (Query::Range, "range"), (Query::Count, "count")];

/// Entities of both tables, with such keys.
macro_rules! entities {
    ($module:ident, $key:ty) => {
        mod $module {
            pub(super) mod location {
                use sea_orm::entity::prelude::*;

                #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
                #[sea_orm(table_name = "locations")]
                pub(crate) struct Model {
                    #[sea_orm(primary_key, auto_increment = false)]
                    pub(crate) id: $key,
                    pub(crate) name: String,
                }

                #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
                pub(crate) enum Relation {}

                impl ActiveModelBehavior for ActiveModel {}
            }

            pub(super) mod entry {
                use sea_orm::entity::prelude::*;

                #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
                #[sea_orm(table_name = "entries")]
                pub(crate) struct Model {
                    #[sea_orm(primary_key, auto_increment = false)]
                    pub(crate) id: $key,
                    pub(crate) location_id: $key,
                    pub(crate) parent_id: Option<$key>,
                    pub(crate) name: String,
                    pub(crate) extension: Option<String>,
                    pub(crate) kind: String,
                    pub(crate) size: i64,
                    pub(crate) permissions: i32,
                    pub(crate) is_hidden: bool,
                    pub(crate) created_at: Option<DateTimeUtc>,
                    pub(crate) modified_at: Option<DateTimeUtc>,
                    pub(crate) indexed_at: DateTimeUtc,
                    pub(crate) content_id: Option<Uuid>,
                    pub(crate) inode: Option<i64>,
                }

                #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
                pub(crate) enum Relation {
                    #[sea_orm(
                        belongs_to = "super::location::Entity",
                        from = "Column::LocationId",
                        to = "super::location::Column::Id"
                    )]
                    Location,
                }

                impl Related<super::location::Entity> for Entity {
                    fn to() -> RelationDef {
                        Relation::Location.def()
                    }
                }

                impl ActiveModelBehavior for ActiveModel {}
            }

            /// Asks for each key, and counts the rows.
            pub(super) async fn ask(
                db: &sea_orm::DatabaseConnection,
                query: super::Query,
                keys: &[$key],
            ) -> Result<u64, super::Failure> {
                use super::*;
                let mut rows = 0;
                for &key in keys {
                    rows += match query {
                        Query::ByKey => u64::from(entry::Entity::find_by_id(key).one(db).await?.is_some()),
                        Query::Join => {
                            let entries = entry::Entity::find().find_also_related(location::Entity);
                            entries.filter(entry::Column::ParentId.eq(key)).all(db).await?.len() as u64
                        }
                        Query::Range => {
                            let entries = entry::Entity::find().filter(entry::Column::Id.gt(key));
                            entries.order_by_asc(entry::Column::Id).limit(PAGE).all(db).await?.len() as u64
                        }
                        Query::Count => {
                            entry::Entity::find().filter(entry::Column::ParentId.eq(key)).count(db).await?
                        }
                    };
                }
                Ok(rows)
            }
        }
    };
}

entities!(before, i64);
entities!(after, uuid::Uuid);

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let entries = options.scaled(ENTRIES);
    let [made, migrated, old, new] =
        ["made.db", "migrated.db", "integers.db", "uuids.db"].map(|name| folder.path().join(name));
    write(&made, entries)?;
    database::copy(&made, &migrated)?;
    eprintln!("integer_keys/migration …");
    let keys = IntegerKeys::new(NAMESPACE).table("locations").table("entries");
    let report = integer_keys_to_uuids(&migrated, &keys)?;
    // Both are read as a copy lays them out; how a file came to be can be felt in the reads of it.
    database::copy(&made, &old)?;
    database::copy(&migrated, &new)?;
    let mut rows = seaorm(&old, &new, entries).await?;
    rows.extend(prepared(&old, &new, entries).await?);
    let seconds = report.took.as_secs_f64();
    rows.push(Row::new("integer_keys/migration", "s", (seconds, None, None), Bar::None));
    Ok(rows)
}

/// Writes the database as it was before.
fn write(path: &Path, entries: usize) -> Result<(), Failure> {
    let mut db = rusqlite::Connection::open(path)?;
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    db.execute_batch(TABLES)?;
    let transaction = db.transaction()?;
    let mut dice = Dice::new(SEED);
    for location in 1..=LOCATIONS {
        let name = format!("Location {location}");
        transaction.execute("INSERT INTO locations VALUES (?1, ?2)", params![location, name])?;
    }
    let insert = "INSERT INTO entries VALUES (?1, ?2, ?3, ?4, 'txt', 'file', ?5, 420, 0, ?6, ?6, ?6, ?7, ?1)";
    let mut insert = transaction.prepare(insert)?;
    for entry in 1..=entries {
        let parent = (entry > IN_DIRECTORY).then(|| directory(entry / IN_DIRECTORY - 1));
        let (location, size, second) = (1 + dice.below(LOCATIONS), dice.below(1 << 32), dice.below(60));
        let (name, time) =
            (format!("summary_{entry:06}.txt"), format!("2026-01-01T00:00:{second:02}.5+00:00"));
        let content = uuid_for(NAMESPACE, "contents", size.cast_signed());
        insert.execute(params![entry, location, parent, name, size, time, content.as_bytes()])?;
    }
    drop(insert);
    transaction.commit()?;
    Ok(())
}

/// The key of a directory.
fn directory(number: usize) -> usize {
    number * IN_DIRECTORY + 1
}

/// The keys that a round asks for.
fn asked(query: Query, entries: usize, round: usize) -> Vec<i64> {
    let mut dice = Dice::new(round as u64);
    let mut below = |many: usize| dice.below(many.max(1) as u64) as usize;
    let mut key = || match query {
        Query::ByKey | Query::Range => 1 + below(entries),
        // The last directory is in none, and has none in it.
        Query::Join | Query::Count => directory(below(entries / IN_DIRECTORY - 1)),
    };
    (0..QUERIES).map(|_| key() as i64).collect()
}

/// What the same keys are now.
fn named(keys: &[i64]) -> Vec<Uuid> {
    keys.iter().map(|&key| uuid_for(NAMESPACE, "entries", key)).collect()
}

async fn seaorm(old: &Path, new: &Path, entries: usize) -> Result<Vec<Row>, Failure> {
    let old = database::plain_readers(old, CACHE_KIB).await?;
    let new = database::plain_readers(new, CACHE_KIB).await?;
    let mut lines = Vec::new();
    // What one query of each kind takes together, round by round.
    let (mut all_after, mut all_before) = (vec![0.0; ROUNDS + 1], vec![0.0; ROUNDS + 1]);
    for (query, name) in ALL {
        eprintln!("integer_keys/{name} …");
        let (mut rows_before, mut rows_after) = (0, 0);
        let taken = Rounds::take(
            ROUNDS,
            async |round| {
                let keys = named(&asked(query, entries, round));
                let began = Instant::now();
                rows_after += after::ask(&new, query, &keys).await?;
                all_after[round] += per_query(began);
                Ok(per_query(began))
            },
            async |round| {
                let keys = asked(query, entries, round);
                let began = Instant::now();
                rows_before += before::ask(&old, query, &keys).await?;
                all_before[round] += per_query(began);
                Ok(per_query(began))
            },
        )
        .await?;
        same_rows(rows_before, rows_after)?;
        let name = format!("integer_keys/{name}");
        lines.push(Row::new(name, "µs", taken.figures(), Bar::RatioAtMost(RATIO_MAX)));
    }
    let all = Rounds::of(all_after, all_before).figures();
    lines.push(Row::new("integer_keys/all", "µs", all, Bar::RatioAtMost(RATIO_MAX)));
    old.close().await?;
    new.close().await?;
    Ok(lines)
}

async fn prepared(old: &Path, new: &Path, entries: usize) -> Result<Vec<Row>, Failure> {
    let (old, new) = (database::observer(old)?, database::observer(new)?);
    for db in [&old, &new] {
        db.pragma_update(None, "cache_size", -i64::from(CACHE_KIB))?;
    }
    let mut lines = Vec::new();
    for (query, name) in ALL {
        let name = format!("integer_keys/{name}_raw");
        let (mut rows_before, mut rows_after) = (0, 0);
        let taken = Rounds::take(
            ROUNDS,
            async |round| {
                let keys: Vec<[u8; 16]> =
                    named(&asked(query, entries, round)).into_iter().map(Uuid::into_bytes).collect();
                let began = Instant::now();
                rows_after += ask_prepared(&new, query, &keys)?;
                Ok(per_query(began))
            },
            async |round| {
                let keys = asked(query, entries, round);
                let began = Instant::now();
                rows_before += ask_prepared(&old, query, &keys)?;
                Ok(per_query(began))
            },
        )
        .await?;
        same_rows(rows_before, rows_after)?;
        lines.push(Row::new(name, "µs", taken.figures(), Bar::None));
    }
    Ok(lines)
}

fn ask_prepared(
    db: &rusqlite::Connection,
    query: Query,
    keys: &[impl rusqlite::ToSql],
) -> Result<u64, Failure> {
    let mut statement = db.prepare(match query {
        Query::ByKey => "SELECT * FROM entries WHERE id = ?1",
        Query::Join => {
            "SELECT e.*, l.* FROM entries e LEFT JOIN locations l ON l.id = e.location_id WHERE e.parent_id = ?1"
        }
        Query::Range => "SELECT * FROM entries WHERE id > ?1 ORDER BY id LIMIT 50",
        Query::Count => "SELECT count(*) FROM entries WHERE parent_id = ?1",
    })?;
    let mut found = 0;
    for key in keys {
        if query == Query::Count {
            found += statement.query_row([key], |row| row.get::<_, u64>(0)).optional()?.unwrap_or(0);
            continue;
        }
        let mut rows = statement.query([key])?;
        while let Some(row) = rows.next()? {
            // The last column, so that the whole row is read.
            std::hint::black_box(row.get_ref(row.as_ref().column_count() - 1)?);
            found += 1;
        }
    }
    Ok(found)
}

fn per_query(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e6 / QUERIES as f64
}

/// A query that finds nothing is fast.
fn same_rows(before: u64, after: u64) -> Result<(), Failure> {
    if before == 0 || before != after {
        return Err(format!("{before} rows were found before the migration and {after} after it").into());
    }
    Ok(())
}

//! A thousand databases from seeds, one in ten of them damaged.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use rusqlite::Connection;
use tidelog::migration::integer_keys_to_uuids;
use tidelog_tests::counted::{self, Dice, KEYS, REFERENCES, TABLES};

use crate::{
    Place,
    killed::{Child, recover},
    schema,
};

/// Databases in the great trial, and every how many of them is damaged.
const DATABASES: u64 = 1000;
const DAMAGED_ONE_IN: u64 = 10;
/// Threads that work at it; half of the time they wait for the disk.
const THREADS: usize = 4;

/// Steps of the migration of a database of the trial: eight tables are rewritten.
const STEPS: u64 = 12;

/// What is wrong with a database of the trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    None,
    Orphan,
    WrongType,
    Killed,
}

impl Damage {
    fn of(seed: u64) -> Self {
        match (seed % DAMAGED_ONE_IN, seed / DAMAGED_ONE_IN % 3) {
            (0, 0) => Self::Orphan,
            (0, 1) => Self::WrongType,
            (0, _) => Self::Killed,
            _ => Self::None,
        }
    }
}

#[test]
fn of_a_thousand_databases_all_sound_ones_keep_every_row_and_the_damaged_ones_every_byte() {
    let (next, sound, damaged) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= DATABASES {
                return;
            }
            let place = Place::of_seed(seed);
            match Damage::of(seed) {
                Damage::None => keeps_every_row(&place, seed),
                Damage::Orphan => refuses_an_orphan(&place, seed),
                Damage::WrongType => refuses_a_wrong_type(&place, seed),
                Damage::Killed => outlives_a_kill(&place, seed),
            }
            let count = if Damage::of(seed) == Damage::None { &sound } else { &damaged };
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!((sound.into_inner(), damaged.into_inner()), (900, 100));
}

fn keeps_every_row(place: &Place, seed: u64) {
    let bytes = place.bytes();
    let report = integer_keys_to_uuids(&place.file, &counted::keys())
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert!(fs::read(&report.backup).unwrap() == bytes, "seed {seed}: the backup is the file as it was");
    compare(place, seed);
}

/// Compares database and backup with SQL, in a way that has nothing in common with the migration's own validation:
/// rows are matched by rowid, references by the row that they lead to.
fn compare(place: &Place, seed: u64) {
    let conn = place.open();
    conn.execute("ATTACH ?1 AS old", [place.backup().to_str().unwrap()]).unwrap();
    let one = |sql: &str| -> i64 {
        conn.query_row(sql, [], |row| row.get(0))
            .unwrap_or_else(|error| panic!("seed {seed}: {error} in {sql}"))
    };
    for table in TABLES {
        let count = |schema: &str| one(&format!("SELECT count(*) FROM {schema}.{table}"));
        assert_eq!(count("main"), count("old"), "seed {seed}: rows of {table}");
        if table != "settings" {
            assert!(count("old") >= 100, "seed {seed}: {table} is worth the trial");
        }
        assert_eq!(
            one(&differing_rows(&conn, table)),
            0,
            "seed {seed}: rows of {table} that are not what they were"
        );
    }
    assert_eq!(one("SELECT count(*) FROM pragma_foreign_key_check"), 0);
    if one("SELECT count(*) FROM old.sqlite_schema WHERE name = 'sqlite_stat1'") == 1 {
        // Its key has an index of its own now, which the planner must know of.
        let known =
            |schema: &str| one(&format!("SELECT count(*) FROM {schema}.sqlite_stat1 WHERE tbl = 'users'"));
        assert_eq!(known("main"), known("old") + 1, "seed {seed}: the planner's statistics");
    }
    for (table, column) in KEYS.into_iter().chain(REFERENCES.map(|(table, column, _)| (table, column))) {
        let other = format!(
            "SELECT count(*) FROM {table} WHERE {column} IS NOT NULL AND length(CAST({column} AS BLOB)) + (typeof({column}) = 'blob') <> 17"
        );
        assert_eq!(one(&other), 0, "seed {seed}: {table}.{column} holds UUIDs");
    }
    assert_eq!(schema(&conn, "main", true), schema(&conn, "old", true), "seed {seed}");
}

/// Counts the old rows that have no equal among the new ones.
fn differing_rows(conn: &Connection, table: &str) -> String {
    let columns = conn
        .prepare(&format!("SELECT name FROM pragma_table_xinfo('{table}')"))
        .unwrap()
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let same = |column: &String| {
        let reference = REFERENCES.iter().find(|known| known.0 == table && known.1 == column);
        let is_key = KEYS.iter().any(|known| known.0 == table && known.1 == column);
        match (reference, is_key) {
            (Some((.., parent)), _) => {
                format!("n.{column} IS (SELECT p.id FROM main.{parent} AS p WHERE p._rowid_ = o.{column})")
            }
            (None, true) => format!("n._rowid_ IS o.{column}"),
            (None, false) => format!("n.{column} IS o.{column} AND typeof(n.{column}) = typeof(o.{column})"),
        }
    };
    let all: Vec<String> = columns.iter().map(same).collect();
    let has_rowid = conn.prepare(&format!("SELECT _rowid_ FROM main.{table}")).is_ok();
    let row = match table {
        _ if has_rowid => "n._rowid_ = o._rowid_".to_owned(),
        "file_tags" => format!("{} AND {}", same(&"file_id".into()), same(&"tag_id".into())),
        _ => "n.key = o.key".to_owned(),
    };
    format!(
        "SELECT count(*) FROM old.{table} AS o WHERE NOT EXISTS (SELECT 1 FROM main.{table} AS n WHERE {row} AND {})",
        all.join(" AND ")
    )
}

fn refuses_an_orphan(place: &Place, seed: u64) {
    let mut dice = Dice::new(!seed);
    let (table, column, _) = REFERENCES[dice.below(REFERENCES.len() as u64) as usize];
    let gone = 5_000_000_000 + dice.below(1000);
    place.run(&format!(
        "UPDATE {table} SET {column} = {gone}
         WHERE {column} = (SELECT {column} FROM {table} WHERE {column} IS NOT NULL LIMIT 1)"
    ));
    let text = place.refused(&counted::keys());
    // A pair that is no more is missed by those that refer to the pair, and they may be found first.
    let named = |table: &str| text.starts_with(&format!("table `{table}`, "));
    assert!(
        named(table) || table == "file_tags" && named("remarks"),
        "seed {seed}, {table}.{column}: {text}"
    );
    assert!(text.contains("refers to a row of `"), "seed {seed}: {text}");
    assert!(
        text.contains("that is not there; nothing was changed. Delete the row or mend the reference"),
        "seed {seed}: {text}"
    );
}

fn refuses_a_wrong_type(place: &Place, seed: u64) {
    let mut dice = Dice::new(!seed);
    let columns = [
        ("users", "invited_by"),
        ("folders", "parent_id"),
        ("files", "owner_id"),
        ("remarks", "file_id"),
        ("visits", "visited"),
    ];
    let (table, column) = columns[dice.below(columns.len() as u64) as usize];
    let (value, found) = [("'seven'", "text"), ("1.5", "real"), ("x'0102'", "blob")][dice.below(3) as usize];
    place.run(&format!(
        "UPDATE {table} SET {column} = {value} WHERE _rowid_ = (SELECT max(_rowid_) FROM {table})"
    ));
    let text = place.refused(&counted::keys());
    let expected = format!(
        "`{column}` holds a value of type {found}, not an integer; nothing was changed. Correct the value"
    );
    assert!(
        text.starts_with(&format!("table `{table}`, row ")) && text.contains(&expected),
        "seed {seed}: {text}"
    );
}

/// A process that migrates the database is killed at one of its steps. The file, once SQLite has looked at it again, is
/// what it was, and the next run succeeds.
fn outlives_a_kill(place: &Place, seed: u64) {
    let bytes = place.bytes();
    Child::start(&place.file, "", Some(seed % STEPS)).reached().kill();
    recover(place);
    assert!(place.bytes() == bytes, "seed {seed}: the file has changed");
    keeps_every_row(place, seed);
    assert_eq!(place.files(), ["app.sqlite", "app.sqlite.before-uuid-keys"], "seed {seed}");
}

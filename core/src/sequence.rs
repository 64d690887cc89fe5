//! Sequence: pending changes of this device go into the log (rule Q, as far as a leader whose log nobody else wrote
//! needs it: its own changes meet no conflict).
//!
//! A device that leads seals straight into the log. What it sealed before it led, and what was put back into pending
//! when its log was unwound, comes first: when it opens its term and before each of its seals. Origin, number, tag,
//! base, seen and stamps stay what they were, so that the log is the same as if it had been written at once.

use crate::{
    entry::{Body, Entry, Group},
    error::Error,
    id::{OriginSeq, Seq},
    layout::Layouts,
    log::{self, Appender},
    park, pending,
    store::{Replica, Tx},
};

/// Moves everything that is pending into the log, in order. A leader step. How many entries that made.
pub(crate) fn sequence_pending(tx: &mut Tx<'_>) -> Result<u64, Error> {
    if !tx.conn.prepare_cached("SELECT 1 FROM sync_pending LIMIT 1")?.exists([])? {
        return Ok(0);
    }
    let Replica { max_seen: term, top: base, mut clock, .. } = tx.replica()?;
    let now = tx.world.now();
    let mut appender = Appender::new(tx, base)?;
    let mut layouts = Layouts::new(tx.models);
    let mut open: Option<Open> = None;
    let mut seq = base.seq;
    {
        let mut statement = tx.conn.prepare_cached(pending::BY_ID)?;
        let mut rows = statement.query([i64::MIN])?;
        while let Some(row) = rows.next()? {
            let (origin_row, n, tag): (i64, u64, i64) =
                (row.get("origin_row")?, row.get("n")?, row.get("tag")?);
            let expected = match &open {
                Some(open) if open.origin_row == origin_row => open.last_n.0,
                _ => log::vector(tx.conn, origin_row)?.0,
            };
            if n <= expected {
                // The log has it already.
                continue;
            }
            if n > expected + 1 {
                return Err(Error::Damaged(format!(
                    "change {n} of origin row {origin_row} is pending, and the one before it is neither pending nor \
                     in the log"
                )));
            }
            // Each seal has a tag of its own.
            if let Some(before) =
                open.take_if(|open| open.origin_row != origin_row || open.group.tag != tag as u64)
            {
                before.close(tx, seq, clock)?;
            }
            seq = seq.next();
            let mut change = pending::read_change(tx.conn, &mut layouts, row)?;
            change.rank_at(now);
            clock = clock.max(change.ranking_stamp());
            let open = match &mut open {
                Some(open) => open,
                None => {
                    let group = pending::read_group(tx.conn, row, seq)?;
                    open.insert(Open { origin_row, last_n: group.first_n, group })
                }
            };
            open.last_n = OriginSeq(n);
            let decides = change.decides;
            appender.push(&Entry { seq, term, n: Some(open.last_n), body: Body::Change(change) })?;
            if let Some(decision) = decides {
                park::decided(tx, decision, seq)?;
            }
        }
    }
    if let Some(last) = open {
        last.close(tx, seq, clock)?;
    }
    tx.conn.prepare_cached("DELETE FROM sync_pending")?.execute([])?;
    Ok(seq.0 - base.seq.0)
}

/// A group that is being written.
struct Open {
    origin_row: i64,
    last_n: OriginSeq,
    group: Group,
}

impl Open {
    fn close(mut self, tx: &Tx<'_>, last: Seq, clock: u64) -> Result<(), Error> {
        (self.group.last, self.group.last_n) = (last, self.last_n);
        log::push_group(tx.conn, &self.group, self.origin_row, clock)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use sea_orm::ConnectionTrait;
    use sea_orm_migration::MigratorTrait;

    use super::*;
    use crate::{
        id::{DeviceId, LibraryId},
        model::{ModelDescriptor, Recorder},
        seal,
        store::Store,
        term::{self, Entrance, Started},
        world::World,
    };

    #[allow(unreachable_pub, reason = "SeaORM has entities public")]
    mod note {
        use sea_orm::entity::prelude::*;

        #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, tidelog_macros::Syncable)]
        #[sea_orm(table_name = "notes")]
        #[sync(crate = "crate")]
        pub struct Model {
            #[sea_orm(primary_key, auto_increment = false)]
            pub id: String,
            pub text: String,
            pub rank: Option<i64>,
        }

        #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
        pub enum Relation {}
    }

    /// The same time and the same randomness in every run.
    struct Counted(AtomicU64);

    impl World for Counted {
        fn now(&self) -> i64 {
            1_700_000_000_000
        }
        fn random(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        }
    }

    const DEVICE: DeviceId = DeviceId([7; 32]);
    const SEALS: [&str; 4] = [
        "INSERT INTO notes VALUES ('a', 'one', 1), ('b', 'two', NULL), ('c', x'00', 3)",
        "BEGIN; UPDATE notes SET text = 'uno' WHERE id = 'a'; DELETE FROM notes WHERE id = 'b';
         UPDATE notes SET id = 'd' WHERE id = 'c'; COMMIT",
        "INSERT INTO notes VALUES ('b', 'back', 9); UPDATE sync_ctl SET actor = 'me'; UPDATE notes SET rank = 5",
        "DELETE FROM notes",
    ];

    /// A founder that leads, at a fixed time and with counted randomness.
    async fn leader(path: &Path) -> (Store, rusqlite::Connection) {
        let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        let table = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL, rank INTEGER)";
        db.execute_unprepared(table).await.unwrap();
        tidelog_migration::SyncMigrator::up(db.plain(), None).await.unwrap();
        db.close().await.unwrap();
        let model = ModelDescriptor::of::<note::Model>().unwrap();
        let world = Arc::new(Counted(AtomicU64::new(1)));
        let mut store = Store::open(path, vec![(model, Recorder::Trigger)], world).unwrap();
        let library = LibraryId(uuid::Uuid::from_u128(5));
        store.transaction(|tx| term::enter(tx, Entrance::Create(library))).unwrap();
        let started =
            store.transaction(|tx| term::start(tx, DEVICE, &std::collections::BTreeMap::new())).unwrap();
        assert!(matches!(started, Started::Leading(_)));
        let application = rusqlite::Connection::open(path).unwrap();
        application.execute_batch("UPDATE sync_ctl SET clock = 1700000000000").unwrap();
        (store, application)
    }

    fn log(conn: &rusqlite::Connection) -> Vec<String> {
        [
            "SELECT * FROM sync_entry ORDER BY seq",
            "SELECT first, last, origin, first_n, last_n, tag, base_term, base_seq, seen FROM sync_group ORDER BY first",
            "SELECT * FROM sync_origin",
            "SELECT * FROM sync_term",
            "SELECT max(r.clock, g.clock) FROM sync_replica r, sync_group g ORDER BY g.first DESC LIMIT 1",
        ]
        .into_iter()
        .flat_map(|sql| {
            let mut statement = conn.prepare(sql).unwrap();
            let count = statement.column_count();
            let rows = statement.query_map([], |row| {
                (0..count).map(|i| Ok(format!("{:?}", row.get_ref(i)?))).collect::<rusqlite::Result<Vec<_>>>()
            });
            rows.unwrap().map(|row| row.unwrap().join(" ")).collect::<Vec<_>>()
        })
        .collect()
    }

    fn set_leading(store: &mut Store, leads: bool) {
        let step = |tx: &mut Tx<'_>| {
            let max_seen = tx.replica()?.max_seen;
            tx.set_terms(max_seen, leads.then_some(max_seen))
        };
        store.transaction(step).unwrap();
    }

    /// What a seal shares with the others is where the log stood and what was pending: that is told of the author,
    /// so it differs by the way; everything else may not.
    fn without_circumstances(conn: &rusqlite::Connection) {
        conn.execute_batch("UPDATE sync_group SET base_term = '', base_seq = 0, seen = ''").unwrap();
    }

    #[tokio::test]
    async fn the_way_through_pending_gives_the_log_that_the_direct_way_gives() {
        let folder = tempfile::tempdir().unwrap();
        let (mut direct, application) = leader(&folder.path().join("direct")).await;
        for sql in SEALS {
            application.execute_batch(sql).unwrap();
            direct.transaction(seal::seal_all).unwrap();
        }
        let (mut detour, elsewhere) = leader(&folder.path().join("detour")).await;
        set_leading(&mut detour, false);
        for sql in SEALS {
            elsewhere.execute_batch(sql).unwrap();
            detour.transaction(seal::seal_all).unwrap();
        }
        let pending = |conn: &rusqlite::Connection| -> i64 {
            conn.query_row("SELECT count(*) FROM sync_pending", [], |row| row.get(0)).unwrap()
        };
        assert_eq!((pending(&application), pending(&elsewhere)), (0, 13));
        set_leading(&mut detour, true);
        let made = detour.transaction(sequence_pending).unwrap();
        assert_eq!((made, pending(&elsewhere)), (13, 0));
        without_circumstances(&application);
        without_circumstances(&elsewhere);
        assert_eq!(log(&application), log(&elsewhere));
    }

    #[tokio::test]
    async fn pending_goes_before_what_is_sealed_next_and_what_the_log_has_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, application) = leader(&folder.path().join("db")).await;
        set_leading(&mut store, false);
        application.execute_batch(SEALS[0]).unwrap();
        store.transaction(seal::seal_all).unwrap();
        application.execute_batch("CREATE TEMP TABLE kept AS SELECT * FROM sync_pending").unwrap();
        set_leading(&mut store, true);
        application.execute_batch(SEALS[1]).unwrap();
        store.transaction(seal::seal_all).unwrap();
        let records = |conn: &rusqlite::Connection| -> String {
            let sql = "SELECT group_concat(record, '') FROM (SELECT record FROM sync_entry WHERE record IS NOT NULL ORDER BY seq)";
            conn.query_row(sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(records(&application), "abcabcd", "in the order in which it was committed");
        // The same changes once more, as after a crash of a device that had sent them.
        application.execute_batch("INSERT INTO sync_pending SELECT * FROM kept").unwrap();
        assert_eq!(store.transaction(sequence_pending).unwrap(), 0);
        assert_eq!(records(&application), "abcabcd");
        // One that lacks its predecessor is not put anywhere.
        application
            .execute_batch("INSERT INTO sync_pending SELECT * FROM kept; UPDATE sync_pending SET n = n + 50")
            .unwrap();
        let error = store.transaction(sequence_pending).unwrap_err().to_string();
        assert!(error.contains("the one before it is neither pending nor in the log"), "{error}");
        assert!(error.contains("the step was rolled back"), "{error}");
    }
}

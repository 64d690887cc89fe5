//! Sequence: pending changes go into the log of the device that leads (rule Q), those that a follower pushed and those of
//! its own alike: what it sealed before it led, and what came back from a log that was unwound.
//!
//! Of what fails, half is tried next, until one change that it fails on is alone ([`attempt`]).
//!
//! What is pending here already stands in the tables, and there it would be in its own way: two records that exchanged a
//! unique value, say, could not be taken one after the other. So the rows that a batch is about are first written as the log
//! has them, and after the batch with what is still pending laid over, all in one transaction. Where that is not enough,
//! because others are in the way too, the batch is taken again with all of pending out of the tables; and at once like that
//! where what else is pending hides rows of the log by which the batch is to be judged ([`agreed`]). Once all of it is out, as many batches
//! follow in the same transaction as are worth that ([`worth`]): what that costs is in proportion to what is taken, not to its square.
//! Between two transactions the tables show what the users wrote.

use std::collections::HashSet;

use crate::{
    accept::{self, Accepted},
    agreed,
    attempt::{self, Attempt},
    engine::Driver,
    entry::{Batch, Body, Change, Seen},
    error::Error,
    id::{DeviceId, Position, Term},
    life, overlay,
    pending::{self, PushedUpTo},
    seal,
    store::{self, Replica, Tx, origin_row},
    term,
    wire::Message,
};

/// Takes what `pusher` pushed, which came as `message`; `position` is the top of its log.
pub(crate) fn pushed(
    driver: &mut Driver,
    pusher: DeviceId,
    max_seen: Term,
    position: Position,
    batch: Batch,
    message: &[u8],
) -> Result<Accepted, Error> {
    let groups = batch.groups.len();
    in_attempts(driver, pusher, batch, groups, |driver, now, attempt| {
        driver.enforcing(|tx| {
            term::adopt(tx, max_seen)?;
            let accepted = accept::accept(tx, pusher, position, now, message, attempt.refuses)?;
            if !now.is_open() {
                attempt::done(tx, pusher)?;
            }
            Ok(accepted)
        })
    })
}

/// Takes a batch with `take`: all of it, or, after a failure, so much of it that the change to blame is found. There are so many
/// `groups` that a transaction may take.
fn in_attempts(
    driver: &mut Driver,
    pusher: DeviceId,
    batch: Batch,
    groups: usize,
    mut take: impl FnMut(&mut Driver, &Batch, Attempt) -> Result<Accepted, Error>,
) -> Result<Accepted, Error> {
    let mut rest = Some(batch);
    let mut accepted = Accepted::To(Position::EMPTY);
    while let (Some(batch), Accepted::To(_)) = (rest.take(), &accepted) {
        // A part is only put aside: what counts is what becomes of its group.
        let attempt = match batch.is_open() {
            true => Attempt::ALL,
            false => driver.transaction(|tx| attempt::begin(tx, pusher, groups.max(batch.groups.len())))?,
        };
        let (now, later) = attempt::split(batch, attempt.groups);
        rest = later;
        accepted = match take(driver, &now, attempt) {
            Err(error) if attempt::is_the_machines_fault(&error) => {
                driver.transaction(|tx| attempt::done(tx, pusher))?;
                return Err(error);
            }
            taken => taken?,
        };
    }
    Ok(accepted)
}

/// Takes all that is pending here, if this device leads. Whether anything was.
pub(crate) fn own(driver: &mut Driver) -> Result<bool, Error> {
    let mut any = false;
    while own_batch(driver)? {
        any = true;
    }
    Ok(any)
}

/// Takes what is first in pending, one batch or one large group, if this device leads. Whether anything was there.
pub(crate) fn own_batch(driver: &mut Driver) -> Result<bool, Error> {
    let mut upto = PushedUpTo::NOTHING;
    loop {
        let conn = driver.store.connection();
        let Some(Replica { has_pending: true, top, max_seen, device: Some(device), .. }) =
            store::replica(conn)?.filter(Replica::is_leader)
        else {
            return Ok(false);
        };
        let Some(push) = pending::read(conn, &upto)? else { return Ok(false) };
        upto = PushedUpTo::after(&push);
        let is_open = push.batch.is_open();
        let message = Message::push(max_seen, top, &push.batch).encode();
        // No fewer than there are groups, and found without a look at them.
        let changes = pending::count(conn)?;
        let accepted = in_attempts(driver, device, push.batch, changes, |driver, now, attempt| {
            driver.transaction(|tx| take_own(tx, device, now, &message, attempt))
        })?;
        match accepted {
            Accepted::To(_) if is_open => {}
            Accepted::To(_) => {
                driver.tell()?;
                return Ok(true);
            }
            Accepted::Forked { change } => {
                let renamed = driver.transaction(|tx| life::rename(tx, change))?;
                let Seen { origin, n, .. } = change;
                tracing::warn!(%origin, %n, renamed, "the log holds others under the numbers of what is pending here");
                return Ok(true);
            }
            Accepted::NotLeader(_) => return Ok(false),
            other => {
                return Err(Error::Damaged(format!("a leader does not take its own changes: {other:?}")));
            }
        }
    }
}

fn take_own(
    tx: &mut Tx<'_>,
    device: DeviceId,
    batch: &Batch,
    message: &[u8],
    attempt: Attempt,
) -> Result<Accepted, Error> {
    let top = tx.replica()?.top;
    if batch.is_open() {
        return accept::accept(tx, device, top, batch, message, false);
    }
    // Behind what is pending, before anything stands in the tables otherwise.
    seal::seal_all(tx)?;
    let minted = *tx.minted;
    let goes_on = batch.groups.first().is_some_and(|group| group.first <= batch.after.seq);
    let records = records_of(batch);
    let is_bound = overlay::others_bind(tx, &records)?;
    let all_at_once = goes_on || is_bound && (tx.foreign_triggers || !agreed::is_upon_the_log(tx, batch)?);
    if !all_at_once {
        tx.conn.execute_batch("SAVEPOINT own")?;
        let taken = take_in_scope(tx, device, top, batch, message, attempt, &records, false);
        tx.enforce(false)?;
        match taken {
            Ok(Some(accepted)) => {
                tx.conn.execute_batch("RELEASE own")?;
                attempt::done(tx, device)?;
                return Ok(accepted);
            }
            Err(error) if !crate::apply::is_constraint(&error) => return Err(error),
            _ => {}
        }
        tx.conn.execute_batch("ROLLBACK TO own; RELEASE own")?;
        tx.numbers.forget();
        *tx.minted = minted;
    }
    // Under no savepoint: each within would take as long as all that was written since.
    let pending = overlay::pending_records(tx)?;
    let taken = take_in_scope(tx, device, top, batch, message, attempt, &pending, true);
    tx.enforce(false)?;
    let missed = || Error::Damaged("a leader's own changes were taken neither way".into());
    let accepted = taken?.ok_or_else(missed)?;
    attempt::done(tx, device)?;
    Ok(accepted)
}

/// How many changes are taken for so many records that stepped aside. Those that are left do so again: with half of them, twice
/// as many as there are step aside in the end, in as many transactions as they can be halved.
const fn worth(records: usize) -> usize {
    records.div_ceil(2)
}

/// Takes a batch of this device's own changes over rows that are as the log has them. `None` where one was refused, for
/// which others that are pending may be to blame, which are out of the way only if `everything` is. Then those behind it
/// are taken too, as long as they are [`worth`] it.
#[expect(clippy::too_many_arguments, reason = "one step, called twice")]
fn take_in_scope(
    tx: &mut Tx<'_>,
    device: DeviceId,
    top: Position,
    batch: &Batch,
    message: &[u8],
    attempt: Attempt,
    scope: &[Change],
    everything: bool,
) -> Result<Option<Accepted>, Error> {
    let kept = overlay::step_aside(tx, scope)?;
    tx.enforce(true)?;
    let mut accepted = accept::accept(tx, device, top, batch, message, attempt.refuses)?;
    let refused = "SELECT 1 FROM sync_dead_letter WHERE seq > ?1";
    if !everything && !attempt.refuses && tx.conn.prepare_cached(refused)?.exists([top.seq.0])? {
        return Ok(None);
    }
    settle(tx, batch, &accepted)?;
    if everything {
        let (mut groups, mut changes) = (batch.groups.len(), batch.entries.len());
        while let Accepted::To(top) = accepted
            && groups < attempt.groups
            && changes < worth(scope.len())
            && let Some(push) =
                pending::read(tx.conn, &PushedUpTo::NOTHING)?.filter(|push| !push.batch.is_open())
        {
            let (more, _) = attempt::split(push.batch, attempt.groups - groups);
            accepted = accept::accept(tx, device, top, &more, &[], attempt.refuses)?;
            settle(tx, &more, &accepted)?;
            groups += more.groups.len();
            changes += more.entries.len();
        }
    }
    tx.enforce(false)?;
    overlay::come_back(tx, scope, kept)?;
    Ok(Some(accepted))
}

/// What was taken is pending no more.
fn settle(tx: &Tx<'_>, batch: &Batch, accepted: &Accepted) -> Result<(), Error> {
    if let Accepted::To(_) = accepted {
        for group in &batch.groups {
            let row = origin_row(tx.conn, group.origin, group.device)?;
            pending::settle(tx.conn, row, group.last_n, group.tag, i64::MAX as u64)?;
        }
    }
    Ok(())
}

/// The records that a batch is about.
fn records_of(batch: &Batch) -> Vec<Change> {
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    for entry in &batch.entries {
        if let Body::Change(change) = &entry.body
            && seen.insert((change.shape.model.as_str(), &change.record))
        {
            records.push(overlay::key_of(change));
        }
    }
    records
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
        gate::WriteGate,
        id::LibraryId,
        library,
        model::{ModelDescriptor, Recorder},
        store::Store,
        term::{Entrance, Started},
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
            #[sync(local)]
            pub open: Option<i64>,
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
        "INSERT INTO notes VALUES ('a', 'one', 1, 7), ('b', 'two', NULL, 7), ('c', x'00', 3, 7)",
        "BEGIN; UPDATE notes SET text = 'uno' WHERE id = 'a'; DELETE FROM notes WHERE id = 'b';
         UPDATE notes SET id = 'd' WHERE id = 'c'; COMMIT",
        "INSERT INTO notes VALUES ('b', 'back', 9, 7); UPDATE sync_ctl SET actor = 'me'; UPDATE notes SET rank = 5",
        "DELETE FROM notes WHERE id <> 'd'",
    ];

    /// A founder that leads, at a fixed time and with counted randomness.
    async fn leader(path: &Path) -> (Driver, rusqlite::Connection) {
        let db = crate::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        let table = "CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL, rank INTEGER, open INTEGER);
            CREATE UNIQUE INDEX named ON notes (text)";
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
        let lock = Arc::new(library::lock(path).unwrap());
        (Driver::new(store, WriteGate::of(path), lock).0, application)
    }

    fn lines(conn: &rusqlite::Connection, sql: &str) -> Vec<String> {
        let mut statement = conn.prepare(sql).unwrap();
        let count = statement.column_count();
        let rows = statement.query_map([], |row| {
            (0..count).map(|i| Ok(format!("{:?}", row.get_ref(i)?))).collect::<rusqlite::Result<Vec<_>>>()
        });
        rows.unwrap().map(|row| row.unwrap().join(" ")).collect()
    }

    /// Log and tables. Tags are random, and what a seal shares with the others is where the log stood and what was pending:
    /// that is told of the author, so it differs by the way; everything else may not.
    fn all(conn: &rusqlite::Connection) -> Vec<String> {
        [
            "SELECT * FROM sync_entry ORDER BY seq",
            "SELECT first, last, origin, first_n, last_n FROM sync_group ORDER BY first",
            "SELECT id, device, floor_n FROM sync_origin",
            "SELECT first, number, leader, counter FROM sync_term",
            "SELECT * FROM notes ORDER BY id",
        ]
        .into_iter()
        .flat_map(|sql| lines(conn, sql))
        .collect()
    }

    fn set_leading(driver: &mut Driver, leads: bool) {
        let step = |tx: &mut Tx<'_>| {
            let max_seen = tx.replica()?.max_seen;
            tx.set_terms(max_seen, leads.then_some(max_seen))
        };
        driver.transaction(step).unwrap();
    }

    fn pending(conn: &rusqlite::Connection) -> i64 {
        conn.query_row("SELECT count(*) FROM sync_pending", [], |row| row.get(0)).unwrap()
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
        assert_eq!((pending(&application), pending(&elsewhere)), (0, 12));
        set_leading(&mut detour, true);
        assert!(own(&mut detour).unwrap());
        assert_eq!(pending(&elsewhere), 0);
        assert_eq!(all(&application), all(&elsewhere));
        assert!(!own(&mut detour).unwrap(), "nothing is left");
    }

    #[tokio::test]
    async fn what_is_sealed_while_something_is_pending_goes_behind_it_and_what_the_log_has_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (mut driver, application) = leader(&folder.path().join("db")).await;
        set_leading(&mut driver, false);
        application.execute_batch(SEALS[0]).unwrap();
        driver.transaction(seal::seal_all).unwrap();
        application.execute_batch("CREATE TEMP TABLE kept AS SELECT * FROM sync_pending").unwrap();
        set_leading(&mut driver, true);
        application.execute_batch(SEALS[1]).unwrap();
        assert_eq!(driver.transaction(seal::seal_all).unwrap().fresh, None);
        assert_eq!(pending(&application), 7);
        own(&mut driver).unwrap();
        let records = |conn: &rusqlite::Connection| -> String {
            let sql = "SELECT group_concat(record, '') FROM (SELECT record FROM sync_entry WHERE record IS NOT NULL ORDER BY seq)";
            conn.query_row(sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(records(&application), "abcabcd", "in the order in which it was committed");
        // The same changes once more, as after a crash of a device that had sent them.
        application.execute_batch("INSERT INTO sync_pending SELECT * FROM kept").unwrap();
        assert!(own(&mut driver).unwrap());
        assert_eq!((records(&application).as_str(), pending(&application)), ("abcabcd", 0));
        // One that lacks its predecessor is not put anywhere.
        application
            .execute_batch("INSERT INTO sync_pending SELECT * FROM kept; UPDATE sync_pending SET n = n + 50")
            .unwrap();
        let error = own(&mut driver).unwrap_err().to_string();
        assert!(error.contains("Gap") && error.contains("the sync tables are damaged"), "{error}");
        assert_eq!(
            (records(&application).as_str(), pending(&application)),
            ("abcabcd", 3),
            "nothing is lost"
        );
    }

    #[tokio::test]
    async fn what_exchanged_a_unique_value_while_it_was_pending_is_taken_and_keeps_what_is_local() {
        let folder = tempfile::tempdir().unwrap();
        let (mut driver, application) = leader(&folder.path().join("db")).await;
        set_leading(&mut driver, false);
        for sql in [
            "INSERT INTO notes VALUES ('a', 'x', 1, 5), ('b', 'y', 2, 6)",
            "UPDATE notes SET text = 'z' WHERE id = 'a'",
            "UPDATE notes SET text = 'x' WHERE id = 'b'",
            "UPDATE notes SET text = 'y' WHERE id = 'a'",
        ] {
            application.execute_batch(sql).unwrap();
            driver.transaction(seal::seal_all).unwrap();
        }
        set_leading(&mut driver, true);
        own(&mut driver).unwrap();
        let rows = lines(&application, "SELECT id || text || open FROM notes ORDER BY id");
        assert_eq!(
            rows,
            [r#"Text("ay5")"#, r#"Text("bx6")"#].map(|s| {
                let inner: Vec<String> = s
                    .trim_start_matches("Text(\"")
                    .trim_end_matches("\")")
                    .bytes()
                    .map(|b| b.to_string())
                    .collect();
                format!("Text([{}])", inner.join(", "))
            })
        );
        assert_eq!(lines(&application, "SELECT * FROM sync_dead_letter"), Vec::<String>::new());
        assert_eq!(pending(&application), 0);
    }

    /// A leader that has a change of each of `count` rows pending, four a group; in batches of 16. Made upon what the log has, and
    /// to values that nobody had; or when the log was empty, and to those that the four before have given up.
    #[cfg(feature = "testing")]
    async fn with_pending(path: &Path, count: usize, upon_the_log: bool) -> (Driver, rusqlite::Connection) {
        let (mut driver, application) = leader(path).await;
        let rows = format!(
            "WITH RECURSIVE i (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM i LIMIT {count})
             INSERT INTO notes SELECT printf('%05d', i), 'value ' || i, 1, 7 FROM i"
        );
        application.execute_batch(&rows).unwrap();
        driver.transaction(seal::seal_all).unwrap();
        set_leading(&mut driver, false);
        // The next origin has seen the rows by the log only.
        driver.store.set_minted(None);
        for first in (0..count).step_by(4) {
            let text = match (upon_the_log, first) {
                (true, _) | (_, 0) => "'free ' || id",
                _ => "'value ' || (id - 4)",
            };
            let update = format!(
                "UPDATE notes SET text = {text} WHERE id BETWEEN printf('%05d', {first}) AND printf('%05d', {first} + 3)"
            );
            application.execute_batch(&update).unwrap();
            driver.transaction(seal::seal_all).unwrap();
        }
        if !upon_the_log {
            let base = "UPDATE sync_pending SET base_seq = 0, base_term = ?1";
            application.execute(base, [crate::id::Term::ZERO.to_text()]).unwrap();
        }
        set_leading(&mut driver, true);
        crate::inject::limit_batches(Some(16));
        (driver, application)
    }

    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn much_that_is_pending_over_unique_values_is_halved_by_each_transaction_and_shown_all_the_while() {
        let folder = tempfile::tempdir().unwrap();
        let (mut driver, application) = with_pending(&folder.path().join("db"), 800, false).await;
        assert_eq!(
            taken(&mut driver, &application),
            [800, 400, 192, 96, 48, 16, 0],
            "half, in whole batches"
        );
    }

    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn what_nobody_else_has_written_upon_since_is_taken_batch_by_batch() {
        let folder = tempfile::tempdir().unwrap();
        let (mut driver, application) = with_pending(&folder.path().join("db"), 160, true).await;
        let batches: Vec<i64> = (0..=10).rev().map(|left| left * 16).collect();
        assert_eq!(taken(&mut driver, &application), batches);
    }

    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn what_came_to_something_else_or_had_to_step_out_is_judged_by_all_rows_of_the_log() {
        for tampers in [
            "UPDATE sync_pending SET state = 'blocked' WHERE id = (SELECT max(id) FROM sync_pending)",
            "UPDATE sync_entry SET change = '{}' WHERE seq = (SELECT max(seq) FROM sync_entry)",
            "UPDATE sync_entry SET n = NULL WHERE seq = (SELECT max(seq) FROM sync_entry)",
            "SELECT 1",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (mut driver, application) = with_pending(&folder.path().join("db"), 160, true).await;
            assert!(own_batch(&mut driver).unwrap());
            assert_eq!(pending(&application), 144);
            application.execute_batch(tampers).unwrap();
            assert!(own_batch(&mut driver).unwrap());
            crate::inject::limit_batches(None);
            let expected = if tampers == "SELECT 1" { 128 } else { 64 };
            assert_eq!(pending(&application), expected, "{tampers}");
        }
    }

    /// How much is left after each transaction, until nothing is; the rows are there all the while, and nothing is refused.
    #[cfg(feature = "testing")]
    fn taken(driver: &mut Driver, application: &rusqlite::Connection) -> Vec<i64> {
        let shown = || lines(application, "SELECT * FROM notes ORDER BY id");
        let (rows, mut left) = (shown(), vec![pending(application)]);
        while own_batch(driver).unwrap() {
            left.push(pending(application));
            assert_eq!(shown(), rows, "with {left:?} pending");
        }
        crate::inject::limit_batches(None);
        assert_eq!(lines(application, "SELECT * FROM sync_dead_letter"), Vec::<String>::new());
        left
    }

    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn after_a_failure_a_transaction_takes_half_of_the_groups_that_it_failed_on() {
        let folder = tempfile::tempdir().unwrap();
        let (mut driver, application) = with_pending(&folder.path().join("db"), 400, false).await;
        // As a transaction that was cut off leaves it.
        let note = "INSERT INTO sync_attempt (device, groups, attempts) VALUES (?1, ?2, 1)";
        let mut left = Vec::new();
        for groups in [14, 3] {
            application.execute(note, rusqlite::params![DEVICE.to_string(), groups]).unwrap();
            let before = pending(&application);
            assert!(own_batch(&mut driver).unwrap());
            left.push((before, pending(&application)));
        }
        crate::inject::limit_batches(None);
        // Seven groups of four; then one, and on its own what is left of its batch and as much as is worth it.
        assert_eq!(left, [(400, 372), (372, 180)]);
    }
}

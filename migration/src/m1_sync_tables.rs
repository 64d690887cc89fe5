//! The first shape of the sync tables.
//!
//! `sync_entry` keeps the log thriftily: what is the same for a run of entries (term, origin, tag, base) stands once
//! in `sync_term` and `sync_group`, found by the run's first seq. The view `sync_log` puts it together again, with
//! the columns that a person looks for.

use sea_orm_migration::prelude::*;

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "tidelog_1_sync_tables"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for statement in TABLES {
            manager.get_connection().execute_unprepared(statement).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in ["sync_log"] {
            manager.get_connection().execute_unprepared(&format!("DROP VIEW IF EXISTS {name}")).await?;
        }
        for name in NAMES {
            manager.get_connection().execute_unprepared(&format!("DROP TABLE IF EXISTS {name}")).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

const NAMES: &[&str] = &[
    "sync_ctl",
    "sync_shape",
    "sync_outbox",
    "sync_pending",
    "sync_replica",
    "sync_term",
    "sync_origin",
    "sync_group",
    "sync_entry",
    "sync_conflict",
    "sync_dead_letter",
    "sync_model",
    "sync_layout",
    "sync_device",
    "sync_incoming",
    "sync_pushed",
    "sync_attempt",
    "sync_quarantine",
    "sync_adoption",
];

const TABLES: &[&str] = &[
    // Read by every capture trigger, so it is kept to what a trigger needs.
    // mode: 0 capture, 1 off, 2 derived. clock: ms since 1970 instead of the machine's, for tests.
    "CREATE TABLE sync_ctl (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        mode INTEGER NOT NULL DEFAULT 0,
        mark TEXT,
        actor TEXT,
        clock INTEGER
    )",
    "INSERT INTO sync_ctl (id) VALUES (1)",
    // What the value columns of an outbox row mean: the synced columns of one model at one time, as JSON arrays.
    // recorder: 'trigger' or 'hooks'. current: 1 for the shape that is recorded now. suspect: writes may have
    // gone uncaptured, as while a migration ran: the table is compared with the log when the library is next opened.
    "CREATE TABLE sync_shape (
        id INTEGER PRIMARY KEY,
        model TEXT NOT NULL,
        table_name TEXT NOT NULL,
        fields TEXT NOT NULL,
        key TEXT NOT NULL,
        recorder TEXT NOT NULL,
        current INTEGER NOT NULL,
        suspect INTEGER NOT NULL DEFAULT 0
    )",
    // kind: 0 cut (all rows before it are whole transactions), 1 insert, 2 update, 3 delete, 4 force,
    // 5 saved by a hook, 6 deleted by a hook, 7 adopted. vN: new value of field N, oN: old value; stored as they are, with no
    // affinity. Models with more fields than there are value columns have more added when they are opened.
    "CREATE TABLE sync_outbox (
        id INTEGER PRIMARY KEY,
        shape INTEGER,
        kind INTEGER NOT NULL,
        mode INTEGER,
        at INTEGER,
        mark TEXT,
        actor TEXT,
        v0, o0, v1, o1, v2, o2, v3, o3, v4, o4, v5, o5, v6, o6, v7, o7,
        v8, o8, v9, o9, v10, o10, v11, o11, v12, o12, v13, o13, v14, o14, v15, o15
    )",
    // Sealed changes of this device that the log does not show yet, in order. state: 'waiting' or 'blocked': its row had to
    // leave its table. rank: as in sync_entry, where it has been in a log before. group_last: number of the last change of its
    // group, where it is the first. prev, was: as in sync_group. id: the stamp, which rises and is never used twice, so that what is pushed is found by it; of
    // what comes back from a log that was unwound, a lower number before all others. kind, record: as in sync_entry; of a
    // member, which is no record, model is 0.
    "CREATE TABLE sync_pending (
        id INTEGER PRIMARY KEY,
        origin INTEGER NOT NULL,
        n INTEGER NOT NULL,
        tag INTEGER NOT NULL,
        prev INTEGER NOT NULL,
        was TEXT,
        base_term TEXT NOT NULL,
        base_seq INTEGER NOT NULL,
        seen TEXT NOT NULL,
        group_last INTEGER NOT NULL,
        stamp INTEGER NOT NULL,
        rank INTEGER,
        at INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        model INTEGER NOT NULL,
        record BLOB NOT NULL,
        existed INTEGER NOT NULL,
        layout INTEGER NOT NULL,
        fields TEXT,
        data TEXT,
        before TEXT,
        mark TEXT,
        actor TEXT,
        decides TEXT,
        priority INTEGER NOT NULL DEFAULT 1,
        state TEXT NOT NULL DEFAULT 'waiting',
        attempts INTEGER NOT NULL DEFAULT 0,
        next_try INTEGER,
        last_error TEXT
    )",
    "CREATE INDEX sync_pending_record ON sync_pending (model, record)",
    "CREATE INDEX sync_pending_blocked ON sync_pending (id) WHERE state = 'blocked'",
    "CREATE INDEX sync_pending_origin ON sync_pending (origin, n)",
    "CREATE INDEX sync_pending_decides ON sync_pending (decides) WHERE decides IS NOT NULL",
    // The replica itself. Terms as text: number/leader/counter/nonce. founder: the library was created here.
    // rolled_back: the last entry with a change of this device that the database did not know, or 0.
    // clock: the hybrid logical clock, where the newest group's is not higher. withheld: changes that should_sync kept here.
    "CREATE TABLE sync_replica (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        library TEXT NOT NULL,
        device TEXT,
        founder INTEGER NOT NULL DEFAULT 0,
        max_seen TEXT NOT NULL,
        lead TEXT,
        granted TEXT,
        floor INTEGER NOT NULL DEFAULT 0,
        gc_horizon INTEGER NOT NULL DEFAULT 0,
        clock INTEGER NOT NULL DEFAULT 0,
        rolled_back INTEGER NOT NULL DEFAULT 0,
        withheld INTEGER NOT NULL DEFAULT 0
    )",
    // Leadership history: the runs of the log that have one term.
    "CREATE TABLE sync_term (
        first INTEGER PRIMARY KEY,
        number INTEGER NOT NULL,
        leader TEXT NOT NULL,
        counter INTEGER NOT NULL,
        nonce INTEGER NOT NULL
    )",
    // Origins. floor_n: the highest number at or below the floor.
    "CREATE TABLE sync_origin (
        id INTEGER PRIMARY KEY,
        origin TEXT NOT NULL UNIQUE,
        device TEXT NOT NULL,
        floor_n INTEGER NOT NULL DEFAULT 0
    )",
    // What the entries of one sealed group share. last: seq of its last entry. last_n: number of its last change; the
    // highest of an origin is the vector that makes every change take effect once. prev: tag of the change before its
    // first. was: origin and number as which its first was sealed, where it goes by another. seen: origin, number and tag of
    // what was pending at the author, by what it was sealed as. clock: this device's when it was
    // appended here.
    "CREATE TABLE sync_group (
        first INTEGER PRIMARY KEY,
        last INTEGER NOT NULL,
        origin INTEGER NOT NULL,
        first_n INTEGER NOT NULL,
        last_n INTEGER NOT NULL,
        tag INTEGER NOT NULL,
        prev INTEGER NOT NULL,
        was TEXT,
        base_term TEXT NOT NULL,
        base_seq INTEGER NOT NULL,
        seen TEXT NOT NULL,
        clock INTEGER NOT NULL
    )",
    "CREATE INDEX sync_group_origin ON sync_group (origin, last_n)",
    // The log. rank: what the change competes by, where that is not its stamp. kind: 0 noop, 1 upsert, 2 delete, 3 term start, 4 member. record: 16 bytes for a UUID, else text. data:
    // the row as it is after the entry (of a deletion or a noop, the key), a JSON array in the order of its layout, null for
    // a key that record says; the view sync_log names the fields. fields: the changed columns, NULL for all. before: the row before it, where no earlier entry has it.
    // change: what its author made of the record, where the entry came to something else: an object with kind, fields,
    // row, old values, what was dropped, why it was refused. decides: what its author, a person, decided with it: 'resolves'
    // a conflict, 'retries' or 'discards' a dead letter, and its id.
    "CREATE TABLE sync_entry (
        seq INTEGER PRIMARY KEY,
        kind INTEGER NOT NULL,
        n INTEGER,
        stamp INTEGER NOT NULL,
        rank INTEGER,
        at INTEGER NOT NULL,
        model INTEGER,
        record BLOB,
        existed INTEGER,
        layout INTEGER,
        fields TEXT,
        data TEXT,
        before TEXT,
        change TEXT,
        mark TEXT,
        actor TEXT,
        decides TEXT
    )",
    "CREATE INDEX sync_entry_member ON sync_entry (seq) WHERE kind = 4",
    "CREATE INDEX sync_entry_record ON sync_entry (model, record) WHERE record IS NOT NULL",
    // What did not stand, field by field: what sync_entry.change says of the entry at seq, for finding it. id: the losing
    // change's identity, the record and the field, hashed, so that it is the same wherever the entry comes to stand. field: '' where it is
    // about the record being there. loser: 'local' (what the log had), 'remote' (what the change brought), 'both'. open: a
    // person is to decide. decided: seq of the entry that ended it. superseded: by a newer one of the same author.
    "CREATE TABLE sync_conflict (
        seq INTEGER NOT NULL,
        field TEXT NOT NULL,
        id BLOB NOT NULL,
        loser TEXT NOT NULL,
        open INTEGER NOT NULL,
        decided INTEGER,
        superseded INTEGER,
        PRIMARY KEY (seq, field)
    ) WITHOUT ROWID",
    "CREATE INDEX sync_conflict_id ON sync_conflict (id)",
    "CREATE INDEX sync_conflict_open ON sync_conflict (seq) WHERE open AND decided IS NULL AND superseded IS NULL",
    // Changes that were refused, with all they hold in the entry at seq. decided: seq of the entry that ended it.
    "CREATE TABLE sync_dead_letter (seq INTEGER PRIMARY KEY, id BLOB NOT NULL, decided INTEGER)",
    "CREATE INDEX sync_dead_letter_id ON sync_dead_letter (id)",
    "CREATE INDEX sync_dead_letter_open ON sync_dead_letter (seq) WHERE decided IS NULL",
    "CREATE TABLE sync_model (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    // What the arrays in sync_entry.data mean: field names as a JSON array, the key's and the UUIDs' indices.
    "CREATE TABLE sync_layout (
        id INTEGER PRIMARY KEY,
        model TEXT NOT NULL,
        fields TEXT NOT NULL,
        key TEXT NOT NULL,
        uuids TEXT NOT NULL,
        UNIQUE (model, fields, key, uuids)
    )",
    // Devices of the library. role: its precedence, as the log last said it. member: seq of the entry that made it one.
    // position: what it confirmed last.
    "CREATE TABLE sync_device (
        device TEXT PRIMARY KEY,
        name TEXT,
        role INTEGER NOT NULL DEFAULT 0,
        member INTEGER,
        position_term TEXT,
        position_seq INTEGER NOT NULL DEFAULT 0,
        last_contact INTEGER
    )",
    // Parts of a group that is larger than a batch, until it is whole; as they came, packed.
    "CREATE TABLE sync_incoming (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, message BLOB NOT NULL)",
    // The same of groups that followers push, by the device that does.
    "CREATE TABLE sync_pushed (
        device TEXT NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        origin TEXT NOT NULL,
        tag INTEGER NOT NULL,
        first_n INTEGER NOT NULL,
        last_n INTEGER NOT NULL,
        message BLOB NOT NULL,
        PRIMARY KEY (device, first)
    )",
    // What a leader is about to take of a device's push, and for which time: left behind by a failure or a crash.
    "CREATE TABLE sync_attempt (device TEXT PRIMARY KEY, groups INTEGER NOT NULL, attempts INTEGER NOT NULL)",
    // Captured rows that cannot be sent, with the reason: never dropped silently.
    "CREATE TABLE sync_quarantine (
        id INTEGER PRIMARY KEY,
        model TEXT NOT NULL,
        record TEXT NOT NULL,
        at INTEGER NOT NULL,
        reason TEXT NOT NULL,
        data TEXT
    )",
    // Models that were opened here with something to settle first: total rows that no recorder saw, of which those up to the
    // key after (a JSON array) are captured; logged: the log held records of the model before. Empty once all is settled.
    "CREATE TABLE sync_adoption (
        model TEXT PRIMARY KEY,
        after TEXT,
        total INTEGER NOT NULL,
        done INTEGER NOT NULL DEFAULT 0,
        adopted INTEGER NOT NULL,
        logged INTEGER NOT NULL
    )",
    "CREATE VIEW sync_log AS SELECT
        (SELECT library FROM sync_replica) AS library,
        e.seq,
        (SELECT t.number FROM sync_term t WHERE t.first <= e.seq ORDER BY t.first DESC LIMIT 1) AS term,
        strftime('%Y-%m-%dT%H:%M:%fZ', e.at / 1000.0, 'unixepoch') AS time,
        (SELECT o.device FROM sync_group g JOIN sync_origin o ON o.id = g.origin
            WHERE g.first <= e.seq AND e.n IS NOT NULL ORDER BY g.first DESC LIMIT 1) AS device,
        (SELECT m.name FROM sync_model m WHERE m.id = e.model) AS model,
        e.id AS record,
        CASE e.kind WHEN 0 THEN 'noop' WHEN 1 THEN iif(e.existed, 'update', 'insert') WHEN 2 THEN 'delete'
            WHEN 3 THEN 'term start' WHEN 4 THEN 'member' ELSE 'other' END AS kind,
        e.fields AS changed_fields,
        CASE WHEN e.layout IS NULL THEN e.data ELSE (
            SELECT json_group_object(
                name.value,
                CASE
                    WHEN cell.type IN ('object', 'array') THEN json(cell.value)
                    WHEN cell.type = 'null' AND typeof(e.record) = 'blob' AND l.key = '[' || name.key || ']' THEN e.id
                    ELSE cell.value
                END)
            FROM sync_layout l, json_each(e.data) cell, json_each(l.fields) name
            WHERE l.id = e.layout AND name.key = CASE e.kind WHEN 1 THEN cell.key ELSE l.key ->> cell.key END
        ) END AS data,
        e.actor
    FROM (
        SELECT *, CASE typeof(record) WHEN 'blob' THEN lower(
            substr(hex(record), 1, 8) || '-' || substr(hex(record), 9, 4) || '-' ||
            substr(hex(record), 13, 4) || '-' || substr(hex(record), 17, 4) || '-' ||
            substr(hex(record), 21)) ELSE record END AS id
        FROM sync_entry
    ) e",
];

//! What a device's database says, read by plain SQL and not by the code that wrote it: log, pending, tables.
//!
//! The log is read as it grows; what was read before is compared with the tables' fold again and again, and read anew now
//! and then.

use std::{collections::BTreeMap, hash::Hasher};

use rusqlite::{Connection, Row as SqlRow, params, types::ValueRef};
use serde_json::Value as Json;

use super::{
    verdict::{Letter, Verdict},
    workload::{TABLES, Table},
};

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cell {
    /// NULL.
    Null,
    /// INTEGER.
    Int(i64),
    /// TEXT.
    Text(String),
}

/// A row, in the order of its table's columns.
pub type Row = Vec<Cell>;

/// A record: index of its table, id.
pub type Record = (usize, String);

/// Rows by record.
pub type Rows = BTreeMap<Record, Row>;

impl Cell {
    fn of_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Number(number) => Self::Int(number.as_i64().unwrap_or(i64::MIN)),
            Json::String(text) => Self::Text(text.clone()),
            other => Self::Text(format!("unexpected {other}")),
        }
    }

    fn of_sql(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Int(number),
            ValueRef::Text(text) => Self::Text(String::from_utf8_lossy(text).into_owned()),
            other => Self::Text(format!("unexpected {other:?}")),
        }
    }

    /// The number that it is, or 0.
    pub fn int(&self) -> i64 {
        if let Self::Int(number) = self { *number } else { 0 }
    }
}

/// What an author made of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authored {
    /// The row, `None` for a deletion.
    pub row: Option<Row>,
    /// Indices of the columns that it changed; `None` for all.
    pub fields: Option<Vec<usize>>,
    /// It only decides about a conflict or a dead letter.
    pub is_nothing: bool,
}

/// An entry of the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its place.
    pub seq: u64,
    /// Its term, as text.
    pub term: String,
    /// Of all that must be the same wherever this entry is.
    pub digest: u64,
    /// As in `sync_entry`.
    pub kind: i64,
    /// Number of its change within its origin.
    pub n: Option<u64>,
    /// The record that it is about.
    pub record: Option<Record>,
    /// What the record is after it, where it had an effect: `Some(None)` for a deletion.
    pub effect: Option<Option<Row>>,
    /// Columns that the effect wrote; `None` for all.
    pub wrote: Option<Vec<usize>>,
    /// What its author made of the record.
    pub authored: Authored,
    /// The transaction that it comes from.
    pub actor: Option<String>,
    /// What it is known by: that, or of a decision, which has none, the tag of its group. Where several dead letters are tried again
    /// together, their databases may do something to the record of one along with another: then also which one it tries.
    pub name: Option<String>,
    /// Its atomic mark.
    pub mark: Option<String>,
    /// Who sealed it.
    pub device: Option<String>,
    /// Seq at which its group begins.
    pub group: u64,
    /// It decides about another.
    pub decides: Option<String>,
    /// Why it was refused.
    pub refused: Option<String>,
    /// It came to something else than its author made of the record.
    pub has_outcome: bool,
    /// Its conflict records.
    pub conflicts: Vec<Lost>,
    /// The id of its dead letter.
    pub letter: Option<String>,
    /// It goes by another origin than the one in which it was sealed.
    pub is_otherwise: bool,
}

impl Entry {
    /// Whether it is a dead letter.
    pub fn is_dead(&self) -> bool {
        self.letter.is_some()
    }
}

/// A conflict record, by the entry that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The column, empty where it is about the record being there.
    pub field: String,
    /// Its id.
    pub id: String,
    /// A person is to decide.
    pub open: bool,
}

/// A change that waits for the log.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The record.
    pub record: Record,
    /// What its author made of it.
    pub authored: Authored,
    /// The row before.
    pub before: Option<Row>,
    /// Whether there was one.
    pub existed: bool,
    /// See [`Entry::name`].
    pub name: Option<String>,
    /// Whether its row had to leave the table.
    pub is_blocked: bool,
    /// It decides about another.
    pub decides: Option<String>,
    /// Where it was sealed, and its number there.
    pub identity: (String, u64),
}

fn json_cells(text: &str) -> Row {
    match serde_json::from_str::<Json>(text) {
        Ok(Json::Array(cells)) => cells.iter().map(Cell::of_json).collect(),
        _ => vec![Cell::Text(format!("unreadable: {text}"))],
    }
}

fn columns_of(table: &Table, names: Option<String>) -> Option<Vec<usize>> {
    let names: Vec<String> = serde_json::from_str(&names?).unwrap_or_default();
    let place = |name: &String| table.columns.iter().position(|c| c == name).unwrap_or(usize::MAX);
    let mut columns: Vec<usize> = names.iter().map(place).collect();
    columns.sort_unstable();
    Some(columns)
}

fn text_of(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
        _ => String::new(),
    }
}

fn digest(row: &SqlRow<'_>, columns: std::ops::Range<usize>, term: &str) -> rusqlite::Result<u64> {
    let mut hash = Fnv::default();
    hash.write(term.as_bytes());
    for column in columns {
        match row.get_ref(column)? {
            ValueRef::Null => hash.write_u8(0),
            ValueRef::Integer(number) => hash.write_i64(number),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                hash.write(bytes);
                hash.write_u8(255);
            }
            ValueRef::Real(number) => hash.write_u64(number.to_bits()),
        }
    }
    Ok(hash.finish())
}

/// A hash that is the same in every run (FNV-1a).
#[derive(Clone, Copy, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

const ENTRIES: &str = "SELECT e.seq, e.kind, e.n, e.stamp, e.rank, e.at, m.name, e.record, e.existed, l.fields, e.fields,
        e.data, e.change, e.mark, e.actor, e.decides, o.origin, o.device, g.first, g.last, g.tag, g.base_term, g.base_seq, g.seen, g.prev, g.was,
        (SELECT t.number || '/' || t.leader || '/' || t.counter || '/' || t.nonce FROM sync_term t
            WHERE t.first <= e.seq ORDER BY t.first DESC LIMIT 1)
    FROM sync_entry e LEFT JOIN sync_model m ON m.id = e.model LEFT JOIN sync_layout l ON l.id = e.layout
    LEFT JOIN sync_group g ON g.first = (SELECT max(h.first) FROM sync_group h WHERE h.first <= e.seq AND h.last >= e.seq)
    LEFT JOIN sync_origin o ON o.id = g.origin
    WHERE e.seq > ?1 ORDER BY e.seq";

/// The entries after a seq.
pub fn entries(conn: &Connection, after: u64) -> rusqlite::Result<Vec<Entry>> {
    let mut statement = conn.prepare_cached(ENTRIES)?;
    let mut rows = statement.query([after])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        entries.push(read_entry(row)?);
    }
    if entries.is_empty() {
        return Ok(entries);
    }
    let first = entries[0].seq;
    let mut statement = conn.prepare_cached(
        "SELECT seq, field, id, open FROM sync_conflict WHERE seq > ?1 ORDER BY seq, field",
    )?;
    let mut rows = statement.query([after])?;
    while let Some(row) = rows.next()? {
        let seq: u64 = row.get(0)?;
        if let Some(entry) = entries.get_mut((seq - first) as usize) {
            entry.conflicts.push(Lost { field: row.get(1)?, id: id_at(row, 2)?, open: row.get(3)? });
        }
    }
    let mut statement = conn.prepare_cached("SELECT seq, id FROM sync_dead_letter WHERE seq > ?1")?;
    let mut rows = statement.query([after])?;
    while let Some(row) = rows.next()? {
        let seq: u64 = row.get(0)?;
        if let Some(entry) = entries.get_mut((seq - first) as usize) {
            entry.letter = Some(id_at(row, 1)?);
        }
    }
    Ok(entries)
}

/// All conflicts and dead letters, in the order of the log.
pub fn verdicts(conn: &Connection) -> rusqlite::Result<(Vec<Verdict>, Vec<Letter>)> {
    let mut statement = conn.prepare_cached(
        "SELECT seq, field, id, decided, superseded FROM sync_conflict ORDER BY seq, field",
    )?;
    let verdict = |row: &SqlRow<'_>| {
        let (decided, superseded) = (row.get(3)?, row.get(4)?);
        Ok(Verdict { seq: row.get(0)?, field: row.get(1)?, id: id_at(row, 2)?, decided, superseded })
    };
    let verdicts = statement.query_map([], verdict)?.collect::<rusqlite::Result<_>>()?;
    let mut statement = conn.prepare_cached("SELECT seq, id, decided FROM sync_dead_letter ORDER BY seq")?;
    let letter = |row: &SqlRow<'_>| Ok(Letter { seq: row.get(0)?, id: id_at(row, 1)?, decided: row.get(2)? });
    let letters = statement.query_map([], letter)?.collect::<rusqlite::Result<_>>()?;
    Ok((verdicts, letters))
}

fn id_at(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(uuid::Uuid::from_bytes(row.get(column)?).to_string())
}

/// See [`Entry::name`].
fn name_of(actor: Option<&String>, tag: Option<i64>, decides: Option<&String>) -> Option<String> {
    let retries = decides.filter(|decides| decides.starts_with("retries"));
    let by_tag = |tag| retries.map_or_else(|| format!("tag {tag}"), |retries| format!("tag {tag} {retries}"));
    actor.cloned().or_else(|| tag.map(by_tag))
}

fn read_entry(row: &SqlRow<'_>) -> rusqlite::Result<Entry> {
    let term = row.get::<_, Option<String>>(26)?.unwrap_or_default();
    let kind: i64 = row.get(1)?;
    let model: Option<String> = row.get(6)?;
    let table = model.and_then(|name| Table::index(&name));
    let record =
        table.map(|table| Ok::<_, rusqlite::Error>((table, text_of(row.get_ref(7)?)))).transpose()?;
    let (data, actor): (Option<String>, Option<String>) = (row.get(11)?, row.get(14)?);
    let decides: Option<String> = row.get(15)?;
    let names: Option<String> = row.get(10)?;
    let authored: Option<String> = row.get(12)?;
    let mut entry = Entry {
        seq: row.get(0)?,
        digest: digest(row, 1..26, &term)?,
        term,
        kind,
        n: row.get(2)?,
        record,
        effect: None,
        wrote: None,
        authored: Authored { row: None, fields: None, is_nothing: true },
        name: name_of(actor.as_ref(), row.get(20)?, decides.as_ref()),
        actor,
        mark: row.get(13)?,
        device: row.get(17)?,
        group: row.get::<_, Option<u64>>(18)?.unwrap_or(0),
        decides,
        refused: None,
        has_outcome: authored.is_some(),
        conflicts: Vec::new(),
        letter: None,
        is_otherwise: row.get::<_, Option<String>>(25)?.is_some(),
    };
    let Some(table) = table.map(|table| &TABLES[table]) else { return Ok(entry) };
    let cells = data.as_deref().map(json_cells);
    entry.wrote = columns_of(table, names);
    entry.effect = match kind {
        1 => Some(cells.clone()),
        2 => Some(None),
        _ => None,
    };
    entry.authored = match authored.and_then(|text| serde_json::from_str::<Json>(&text).ok()) {
        None => Authored {
            row: cells.filter(|_| kind == 1),
            fields: entry.wrote.clone(),
            is_nothing: !(1..=2).contains(&kind),
        },
        Some(authored) => {
            entry.refused = authored.get("refused").and_then(Json::as_str).map(str::to_owned);
            let is = authored.get("kind").and_then(Json::as_str).unwrap_or_default();
            let row = authored.get("row").map(|row| json_cells(&row.to_string()));
            Authored {
                row: row.filter(|_| is == "upsert"),
                fields: columns_of(table, authored.get("fields").map(Json::to_string)),
                is_nothing: is == "none",
            }
        }
    };
    Ok(entry)
}

/// The seq and the digest of the last entry up to a seq.
pub fn term_at(conn: &Connection, seq: u64) -> rusqlite::Result<Option<String>> {
    let mut statement = conn.prepare_cached(
        "SELECT (SELECT t.number || '/' || t.leader || '/' || t.counter || '/' || t.nonce FROM sync_term t
            WHERE t.first <= e.seq ORDER BY t.first DESC LIMIT 1) FROM sync_entry e WHERE e.seq = ?1",
    )?;
    let mut rows = statement.query(params![seq])?;
    rows.next()?.map(|row| row.get(0)).transpose()
}

/// The row before a pending change, of which an update keeps what it changed.
fn before(text: &str, authored: &Authored) -> Row {
    let old = serde_json::from_str::<Json>(text).ok();
    let Some(Json::Array(old)) = old.as_ref().and_then(|old| old.get("old")) else { return json_cells(text) };
    let mut row = authored.row.clone().unwrap_or_default();
    for (&column, value) in authored.fields.iter().flatten().zip(old) {
        row[column] = Cell::of_json(value);
    }
    row
}

/// What is pending, in order.
pub fn pending(conn: &Connection) -> rusqlite::Result<Vec<Pending>> {
    let mut statement = conn.prepare_cached(
        "SELECT m.name, p.record, p.kind, p.fields, p.data, p.before, p.existed, p.actor, p.state = 'blocked', p.decides,
            o.origin, p.n, p.tag
         FROM sync_pending p JOIN sync_model m ON m.id = p.model JOIN sync_origin o ON o.id = p.origin ORDER BY p.id",
    )?;
    let mut rows = statement.query([])?;
    let mut pending = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let table = Table::index(&name).unwrap_or(usize::MAX);
        let kind: i64 = row.get(2)?;
        let data: Option<String> = row.get(4)?;
        let authored = Authored {
            row: data.as_deref().map(json_cells).filter(|_| kind == 1),
            fields: columns_of(&TABLES[table], row.get(3)?),
            is_nothing: kind == 0,
        };
        let decides: Option<String> = row.get(9)?;
        pending.push(Pending {
            record: (table, text_of(row.get_ref(1)?)),
            before: row.get::<_, Option<String>>(5)?.as_deref().map(|text| before(text, &authored)),
            existed: row.get(6)?,
            name: name_of(row.get::<_, Option<String>>(7)?.as_ref(), row.get(12)?, decides.as_ref()),
            is_blocked: row.get(8)?,
            decides,
            identity: (row.get(10)?, row.get(11)?),
            authored,
        });
    }
    Ok(pending)
}

/// All rows of all tables, as the application sees them.
pub fn tables(conn: &Connection) -> rusqlite::Result<Rows> {
    let mut all = Rows::new();
    for (index, table) in TABLES.iter().enumerate() {
        let sql = format!("SELECT {} FROM {}", table.columns.join(", "), table.name);
        let mut statement = conn.prepare_cached(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let cells: Row = (0..table.columns.len())
                .map(|i| Ok(Cell::of_sql(row.get_ref(i)?)))
                .collect::<rusqlite::Result<_>>()?;
            let id = match &cells[0] {
                Cell::Text(id) => id.clone(),
                other => format!("{other:?}"),
            };
            all.insert((index, id), cells);
        }
    }
    Ok(all)
}

/// What the local column holds, by record.
pub fn local(conn: &Connection) -> rusqlite::Result<BTreeMap<String, Option<i64>>> {
    let mut statement = conn.prepare_cached("SELECT id, opened FROM docs")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Who has captured rows that are not sealed: actors, in order.
pub fn outbox(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement =
        conn.prepare_cached("SELECT coalesce(actor, '') FROM sync_outbox WHERE kind > 0 ORDER BY id")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// The rows that these entries come to.
pub fn fold<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> Rows {
    let mut rows = Rows::new();
    for entry in entries {
        lay(&mut rows, entry);
    }
    rows
}

/// Makes the rows what an entry leaves of them.
pub fn lay(rows: &mut Rows, entry: &Entry) {
    match (&entry.record, &entry.effect) {
        (Some(record), Some(Some(row))) => drop(rows.insert(record.clone(), row.clone())),
        (Some(record), Some(None)) => drop(rows.remove(record)),
        _ => {}
    }
}

/// What a record shows with pending changes laid over the log's row, in their order; without those that are blocked.
pub fn overlaid(table: &Table, logged: Option<&Row>, pending: &[&Pending]) -> Option<Row> {
    let mut shown = logged.cloned();
    for change in pending.iter().filter(|change| !change.authored.is_nothing) {
        let Some(row) = &change.authored.row else {
            shown = None;
            continue;
        };
        let Some(below) = &mut shown else {
            shown = Some(row.clone());
            continue;
        };
        for (column, value) in row.iter().enumerate() {
            if change.authored.fields.as_ref().is_some_and(|fields| !fields.contains(&column)) {
                continue;
            }
            // Where nobody else has written it, it is what its author made of it.
            let is_met = change.before.as_ref().is_none_or(|before| before[column] != below[column]);
            let reduced = table.is_reduced(column) && change.existed && is_met;
            below[column] = match (&change.before, reduced) {
                (Some(before), true) if table.sum == Some(column) => {
                    Cell::Int(below[column].int() + value.int() - before[column].int())
                }
                (_, true) => Cell::Int(below[column].int().max(value.int())),
                _ => value.clone(),
            };
        }
    }
    shown
}

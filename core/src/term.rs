//! Terms: who appends (rules O and T, as far as one leader and its followers need them).
//!
//! A leader that starts raises its incarnation and opens the term with a `TermStart`; the device that created the
//! library opens term 1. A copy of a leader's database under another key follows, and says so.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use crate::{
    adopt, announce,
    entry::{Body, Entry, Group},
    error::Error,
    id::{DeviceId, Incarnation, LibraryId, OriginSeq, Position, Seq, Term},
    leadership::KnownDevice,
    log::{self, Appender},
    reassign,
    store::{Minted, Replica, Tx, replica, top},
    world::tick,
};

/// How a database comes into a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// Found the library here.
    Create(LibraryId),
    /// Follow one that another device leads.
    Join(LibraryId),
    /// Go on with the one that the database is in.
    Existing,
}

/// Puts the database into its library, if it is not in it yet.
pub(crate) fn enter(tx: &mut Tx<'_>, entrance: Entrance) -> Result<LibraryId, Error> {
    let found = replica(tx.conn)?;
    let (wanted, founder) = match (entrance, found) {
        (Entrance::Existing, Some(found)) => return Ok(found.library),
        (Entrance::Existing, None) => return Err(Error::NoLibrary),
        (Entrance::Create(wanted) | Entrance::Join(wanted), Some(found)) if found.library != wanted => {
            return Err(Error::OtherLibrary { found: found.library, wanted });
        }
        (Entrance::Create(library), Some(found)) if !found.founder => return Err(Error::Joined { library }),
        (Entrance::Create(_) | Entrance::Join(_), Some(found)) => return Ok(found.library),
        (Entrance::Create(wanted), None) => (wanted, true),
        (Entrance::Join(wanted), None) => {
            let tables = tx.models.iter().map(|m| m.descriptor.table.as_str());
            refuse_unrelated_rows(tx.conn, tables, wanted)?;
            (wanted, false)
        }
    };
    tx.conn.execute(
        "INSERT INTO sync_replica (id, library, founder, max_seen) VALUES (1, ?1, ?2, ?3)",
        params![wanted.to_string(), founder, Term::ZERO.to_text()],
    )?;
    Ok(wanted)
}

/// A device that joins brings no rows of its own: nobody could tell them from the library's.
pub(crate) fn refuse_unrelated_rows<'t>(
    conn: &rusqlite::Connection,
    tables: impl IntoIterator<Item = &'t str>,
    library: LibraryId,
) -> Result<(), Error> {
    for table in tables {
        let exists = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
        if !conn.prepare(exists)?.exists([table])? {
            // That it is missing is told when the triggers are installed.
            continue;
        }
        let rows: u64 =
            conn.query_row(&format!("SELECT count(*) FROM {}", crate::capture::quote(table)), [], |r| {
                r.get(0)
            })?;
        if rows > 0 {
            return Err(Error::NotEmpty { table: table.to_owned(), rows, library });
        }
    }
    Ok(())
}

/// What starting a replica came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// It leads, in this term.
    Leading(Term),
    /// It follows.
    Following,
    /// Its database was led by another device key: it is a copy, and follows.
    Copied {
        /// The key under which it was used before.
        before: DeviceId,
    },
}

/// Starts the replica as `device`: a leader opens its term anew, everybody else follows.
pub(crate) fn start(
    tx: &mut Tx<'_>,
    device: DeviceId,
    precedence: &BTreeMap<DeviceId, u8>,
) -> Result<Started, Error> {
    let replica = tx.replica()?;
    let before = replica.device.filter(|before| *before != device);
    tx.conn.execute("UPDATE sync_replica SET device = ?1 WHERE id = 1", [device.to_string()])?;
    if let Some(before) = before {
        // Leadership belongs to the key that was granted it (rule T).
        tx.conn
            .execute("UPDATE sync_replica SET lead = NULL, granted = NULL, founder = 0 WHERE id = 1", [])?;
        settle_tables(tx)?;
        return Ok(Started::Copied { before });
    }
    let (number, counter) = match replica.lead {
        Some(lead) if lead == replica.max_seen && lead.leader == device => {
            (lead.number, lead.incarnation.counter + 1)
        }
        None if replica.founder && replica.max_seen == Term::ZERO => (1, 1),
        // It granted the lead, and nobody has taken it as far as it knows.
        None if let Some(grant) = reassign::unanswered(&replica) => (grant.number + 1, 1),
        _ => {
            settle_tables(tx)?;
            return Ok(Started::Following);
        }
    };
    let incarnation = Incarnation { counter, nonce: tx.world.random() };
    let term = Term { number, leader: device, incarnation };
    open_term(tx, term)?;
    admit(tx, &[device], precedence)?;
    settle_tables(tx)?;
    Ok(Started::Leading(term))
}

/// What happened to the tables while nobody looked is settled before anything else is sealed, applied or accepted.
fn settle_tables(tx: &mut Tx<'_>) -> Result<(), Error> {
    announce::announce_suspects(tx)?;
    adopt::meet_log(tx)
}

/// Opens a term: from here on this device appends, and nobody else in this term.
pub(crate) fn open_term(tx: &mut Tx<'_>, term: Term) -> Result<(), Error> {
    let replica = tx.replica()?;
    let top = replica.top;
    let now = tx.world.now();
    let stamp = tick(replica.clock, now);
    let body = Body::TermStart { stamp, at: now };
    Appender::new(tx, top)?.push(&Entry { seq: top.seq.next(), term, n: None, body })?;
    tx.set_terms(term, Some(term))?;
    tx.set_granted(None)?;
    tx.set_clock(stamp)
}

/// Makes devices members, those that are not yet, with the role that `precedence` says, or the lowest; and gives members
/// the role that it says, where the log says another. A leader step: elsewhere nothing happens, nor while something is
/// pending, which has lower numbers.
pub(crate) fn admit(
    tx: &mut Tx<'_>,
    devices: &[DeviceId],
    precedence: &BTreeMap<DeviceId, u8>,
) -> Result<(), Error> {
    let replica = tx.replica()?;
    let (true, false, Some(device)) = (replica.is_leader(), replica.has_pending, replica.device) else {
        return Ok(());
    };
    for member in devices {
        let role = match (role_of(tx.conn, *member)?, precedence.get(member)) {
            (None, said) => said.copied().unwrap_or_default(),
            (Some(role), Some(said)) if *said != role => *said,
            (Some(_), _) => continue,
        };
        let Replica { top: base, clock, .. } = tx.replica()?;
        let minted = tx.origin(device)?;
        let now = tx.world.now();
        let (stamp, tag) = (tick(clock, now), tx.world.random());
        let entry = Entry {
            seq: base.seq.next(),
            term: replica.max_seen,
            n: Some(minted.next),
            body: Body::Member { device: *member, role, stamp, at: now },
        };
        Appender::new(tx, base)?.push(&entry)?;
        let group = Group {
            origin: minted.origin,
            device,
            tag,
            base,
            prev: minted.tag,
            was: None,
            seen: Vec::new(),
            first_n: minted.next,
            last_n: minted.next,
            first: entry.seq,
            last: entry.seq,
        };
        log::push_group(tx.conn, &group, minted.row, stamp)?;
        *tx.minted = Some(Minted { next: OriginSeq(minted.next.0 + 1), tag, ..minted });
    }
    Ok(())
}

/// Gives members the roles that `precedence` says. Who is none is not made one by that. A leader step, as [`admit`].
pub(crate) fn set_roles(tx: &mut Tx<'_>, precedence: &BTreeMap<DeviceId, u8>) -> Result<(), Error> {
    for device in precedence.keys() {
        if is_member(tx.conn, *device)? {
            admit(tx, &[*device], precedence)?;
        }
    }
    Ok(())
}

/// Whether the log names the device a member.
pub(crate) fn is_member(conn: &rusqlite::Connection, device: DeviceId) -> Result<bool, Error> {
    Ok(role_of(conn, device)?.is_some())
}

/// The precedence of a member's role as the log last said it; `None` for who is no member.
pub(crate) fn role_of(conn: &rusqlite::Connection, device: DeviceId) -> Result<Option<u8>, Error> {
    Ok(conn
        .prepare_cached("SELECT role FROM sync_device WHERE device = ?1 AND member IS NOT NULL")?
        .query_row([device.to_string()], |row| row.get(0))
        .optional()?)
}

/// The devices that the log names as members.
pub(crate) fn members(conn: &rusqlite::Connection) -> Result<Vec<DeviceId>, Error> {
    let mut statement = conn.prepare_cached("SELECT device FROM sync_device WHERE member IS NOT NULL")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|text| {
        let text = text?;
        DeviceId::parse(&text).ok_or_else(|| Error::Damaged(format!("`{text}` is no device id")))
    })
    .collect()
}

/// Devices that the log names as members, or that were heard of.
pub(crate) fn known_devices(conn: &rusqlite::Connection) -> Result<Vec<KnownDevice>, Error> {
    let rows: Vec<(String, Option<String>, u64, Option<i64>)> = conn
        .prepare_cached(
            "SELECT device, position_term, position_seq, last_contact FROM sync_device ORDER BY device",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    rows.into_iter()
        .map(|(device, term, seq, last_contact)| {
            let damaged = |what: &str, text: &str| Error::Damaged(format!("`{text}` is no {what}"));
            let device = DeviceId::parse(&device).ok_or_else(|| damaged("device id", &device))?;
            let position = match term {
                Some(text) => {
                    let term = Term::from_text(&text).ok_or_else(|| damaged("term", &text))?;
                    Some(Position { term, seq: Seq(seq) })
                }
                None => None,
            };
            Ok(KnownDevice { device, answers: false, leads: false, position, last_contact })
        })
        .collect()
}

/// Adopts a higher term that a message carried (rule T). A leader that hears of one stops leading.
pub(crate) fn adopt(tx: &mut Tx<'_>, seen: Term) -> Result<(), Error> {
    let replica = tx.replica()?;
    if seen > replica.max_seen {
        tx.set_terms(seen, None)?;
        if replica.granted.is_some_and(|grant| seen.number >= grant.number) {
            tx.set_granted(None)?;
        }
    }
    Ok(())
}

/// Notes what a member confirmed, for people and for the next start.
pub(crate) fn note_position(
    tx: &mut Tx<'_>,
    device: DeviceId,
    position: Position,
    now: i64,
) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO sync_device (device, position_term, position_seq, last_contact) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (device) DO UPDATE SET position_term = excluded.position_term,
                position_seq = excluded.position_seq, last_contact = excluded.last_contact",
        )?
        .execute(params![device.to_string(), position.term.to_text(), position.seq.0, now])?;
    Ok(())
}

/// Whether `position` is in the log.
pub(crate) fn holds(conn: &rusqlite::Connection, position: Position) -> Result<bool, Error> {
    if position.seq == Seq(0) {
        return Ok(true);
    }
    Ok(position.seq <= top(conn)?.seq && log::term_at(conn, position.seq)? == position.term)
}

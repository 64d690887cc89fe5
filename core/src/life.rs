//! Lives: of which changes the log holds those before them, where numbers alone do not say it.
//!
//! An origin numbers its changes on and on, and each group names the tag of the one before it. An origin has two lives where a
//! machine was set back with all that it had in memory: both number on from there, with other tags. The log holds one of them,
//! the one that came first. Each group of the other goes by an origin of its own, whose name follows from what the group was
//! sealed as (rule Q). So it is the same whoever carries the group and however often, and it takes effect once.
//!
//! What an author had seen is named by what it was sealed as, and its tag says by which name the log has it.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use crate::{
    entry::{Group, Seen},
    error::Error,
    id::{Origin, OriginSeq},
    log::{self, Newest},
    store::{Tx, origin_of},
};

const NAMESPACE: Uuid = Uuid::from_u128(0x0199_7a11_0000_7000_8000_0000_0000_0004);

/// The origin by which a group goes, numbered from 1, where the log has another life of the one in which it was sealed.
pub(crate) fn other_origin(sealed_in: Origin, tag: u64) -> Origin {
    let mut name = [0; 24];
    name[..16].copy_from_slice(sealed_in.0.as_bytes());
    name[16..].copy_from_slice(&tag.to_be_bytes());
    Origin(Uuid::new_v5(&NAMESPACE, &name))
}

/// The name by which the log may have a group if not by this one, and the number of its last change there.
pub(crate) fn other_name(group: &Group) -> (Origin, OriginSeq) {
    match group.was {
        Some((origin, first)) => (origin, OriginSeq(first.0 + group.count() - 1)),
        None => (other_origin(group.origin, group.tag), OriginSeq(group.count())),
    }
}

/// [`Group::was`], in the form in which the database keeps it.
pub(crate) fn was_text(was: Option<(Origin, OriginSeq)>) -> Option<String> {
    was.map(|(origin, n)| format!("{origin} {n}"))
}

/// Reads [`was_text`].
pub(crate) fn read_was(text: Option<&str>) -> Result<Option<(Origin, OriginSeq)>, Error> {
    let Some(text) = text else { return Ok(None) };
    let read = |(origin, n): (&str, &str)| Some((Origin(origin.parse().ok()?), OriginSeq(n.parse().ok()?)));
    let was = text.split_once(' ').and_then(read);
    was.map(Some).ok_or_else(|| Error::Damaged(format!("`{text}` names no change")))
}

/// A change by what it was sealed as, and what was before its group there; of one that goes by what it was sealed as, nothing
/// is asked before it. `prev` is its group's.
pub(crate) fn sealed_as(
    origin: Origin,
    n: OriginSeq,
    tag: u64,
    was: Option<&str>,
    prev: u64,
) -> Result<(Seen, Option<Seen>), Error> {
    let Some((origin, OriginSeq(first))) = read_was(was)? else { return Ok((Seen { origin, n, tag }, None)) };
    let before = (first > 1).then(|| Seen { origin, n: OriginSeq(first - 1), tag: prev });
    Ok((Seen { origin, n: OriginSeq(first + n.0.saturating_sub(1)), tag }, before))
}

/// Where the log has a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// By what it was sealed as, and so all before it.
    AsSealed,
    /// In a group that goes by another origin.
    Otherwise {
        /// That one.
        origin: Origin,
        /// The group's last number there.
        last_n: OriginSeq,
        /// What was before it where it was sealed.
        before: Option<Seen>,
    },
    /// Nowhere: where it was sealed, this number would come next.
    Nowhere(OriginSeq),
}

/// Where the log has a change.
pub(crate) fn place(conn: &Connection, change: Seen) -> Result<Place, Error> {
    let newest = match origin_of(conn, change.origin)? {
        Some(row) => {
            let newest = log::newest(conn, row)?;
            if is_as_sealed(conn, row, newest, change)? {
                return Ok(Place::AsSealed);
            }
            newest.n
        }
        None => OriginSeq(0),
    };
    let origin = other_origin(change.origin, change.tag);
    let Some(row) = origin_of(conn, origin)? else { return Ok(nowhere(newest, change)) };
    let group: Option<(u64, Option<String>, i64)> = conn
        .prepare_cached(
            "SELECT last_n, was, prev FROM sync_group WHERE origin = ?1 ORDER BY last_n DESC LIMIT 1",
        )?
        .query_row([row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((last_n, was, prev)) = group else { return Ok(nowhere(newest, change)) };
    let first = read_was(was.as_deref())?.map_or(0, |(_, first)| first.0);
    // Numbers fall from one to the one before, whatever somebody has sent.
    let before = (first > 1 && first <= change.n.0).then(|| Seen {
        origin: change.origin,
        n: OriginSeq(first - 1),
        tag: prev as u64,
    });
    Ok(Place::Otherwise { origin, last_n: OriginSeq(last_n), before })
}

fn nowhere(newest: OriginSeq, change: Seen) -> Place {
    Place::Nowhere(OriginSeq(newest.0 + 1).min(change.n))
}

/// Whether the log has a change by what it was sealed as, where the row of its origin and what the log holds last of it
/// are known.
pub(crate) fn is_as_sealed(conn: &Connection, row: i64, newest: Newest, change: Seen) -> Result<bool, Error> {
    if change.n > newest.n {
        return Ok(false);
    }
    let tag = if change.n == newest.n { newest.tag } else { log::tag_at(conn, row, change.n)? };
    // What is compacted is the same for all.
    Ok(tag.is_none_or(|tag| tag == change.tag))
}

/// Whether the log has a group by the other of its names.
pub(crate) fn has_otherwise(conn: &Connection, group: &Group) -> Result<bool, Error> {
    let (origin, n) = other_name(group);
    let Some(row) = origin_of(conn, origin)? else { return Ok(false) };
    Ok(log::tag_at(conn, row, n)? == Some(group.tag))
}

/// What the author of a group had seen beside its base, in terms of this log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight(Vec<(Origin, OriginSeq)>);

impl Sight {
    /// Looks up what a group lists. Where the log lacks something of it, the origin and the number that would come next.
    pub(crate) fn of(tx: &Tx<'_>, group: &Group) -> Result<Result<Self, (Origin, OriginSeq)>, Error> {
        let mut sight = Self::default();
        // By its own origin it follows on nothing, if that is not the one in which it was sealed.
        let before = group.was.and(group.before());
        for seen in group.seen.iter().copied().chain(before) {
            if let Some(lacks) = sight.add(tx.conn, seen)? {
                return Ok(Err(lacks));
            }
        }
        Ok(Ok(sight))
    }

    fn add(&mut self, conn: &Connection, mut at: Seen) -> Result<Option<(Origin, OriginSeq)>, Error> {
        loop {
            match place(conn, at)? {
                Place::AsSealed => {
                    self.0.push((at.origin, at.n));
                    return Ok(None);
                }
                Place::Otherwise { origin, last_n, before } => {
                    self.0.push((origin, last_n));
                    let Some(before) = before else { return Ok(None) };
                    at = before;
                }
                Place::Nowhere(expected) => return Ok(Some((at.origin, expected))),
            }
        }
    }

    /// Whether a change of the log is among it.
    pub(crate) fn covers(&self, origin: Origin, n: OriginSeq) -> bool {
        self.0.iter().any(|(seen, upto)| *seen == origin && n <= *upto)
    }
}

/// Gives a pending change, and what follows on it in its origin, the origins by which they go where the log has another
/// life of that one. How many changes there were.
pub(crate) fn rename(tx: &mut Tx<'_>, change: Seen) -> Result<u64, Error> {
    let Some(row) = origin_of(tx.conn, change.origin)? else { return Ok(0) };
    let mut renamed = 0;
    for PendingGroup { first, last, tag, device } in life(tx.conn, row, change)? {
        let origin = other_origin(change.origin, tag);
        tx.conn
            .prepare_cached("INSERT OR IGNORE INTO sync_origin (origin, device) VALUES (?1, ?2)")?
            .execute(params![origin.to_string(), device])?;
        renamed += tx
            .conn
            .prepare_cached(
                "UPDATE sync_pending SET origin = (SELECT id FROM sync_origin WHERE origin = ?4), n = n - ?3 + 1,
                    group_last = iif(group_last > 0, group_last - ?3 + 1, 0), was = ?5
                 WHERE origin = ?1 AND n BETWEEN ?3 AND ?6 AND tag = ?2",
            )?
            .execute(params![
                row,
                tag as i64,
                first.0,
                origin.to_string(),
                was_text(Some((change.origin, first))),
                last.0
            ])? as u64;
    }
    // What is sealed from now on follows on nothing that goes by another name.
    if tx.minted.is_some_and(|minted| minted.origin == change.origin) {
        *tx.minted = None;
    }
    Ok(renamed)
}

/// What is pending of a group.
struct PendingGroup {
    first: OriginSeq,
    last: OriginSeq,
    tag: u64,
    device: String,
}

/// The groups that are pending of an origin from a change on, each of which follows on the one before.
fn life(conn: &Connection, row: i64, change: Seen) -> Result<Vec<PendingGroup>, Error> {
    let mut statement = conn.prepare(
        "SELECT min(p.n), max(p.n), p.tag, p.prev, o.device FROM sync_pending p JOIN sync_origin o ON o.id = p.origin
         WHERE p.origin = ?1 AND p.was IS NULL GROUP BY p.tag ORDER BY min(p.n)",
    )?;
    let mut rows = statement.query([row])?;
    let mut life: Vec<PendingGroup> = Vec::new();
    while let Some(row) = rows.next()? {
        let (first, last) = (OriginSeq(row.get(0)?), OriginSeq(row.get(1)?));
        let (tag, prev) = (row.get::<_, i64>(2)? as u64, row.get::<_, i64>(3)? as u64);
        let follows = match life.last() {
            Some(before) => first.0 == before.last.0 + 1 && prev == before.tag,
            None => tag == change.tag && first <= change.n && change.n <= last,
        };
        if follows {
            life.push(PendingGroup { first, last, tag, device: row.get(4)? });
        }
    }
    Ok(life)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

    use super::*;

    #[test]
    fn another_name_follows_from_what_a_group_was_sealed_as_and_reads_back() {
        let sealed_in = Origin(Uuid::from_u128(5));
        let other = other_origin(sealed_in, 7);
        // Part of the protocol: all devices must come to the same.
        assert_eq!(other.to_string(), "8fb517da-ff20-55ff-8738-c18d6100b1c9");
        assert_ne!(other, other_origin(sealed_in, 8));
        assert_ne!(other, other_origin(Origin(Uuid::from_u128(6)), 7));
        let was = Some((sealed_in, OriginSeq(9)));
        assert_eq!(read_was(was_text(was).as_deref()).unwrap(), was);
        assert_eq!(read_was(None).unwrap(), None);
        for bad in ["", "5 9", &sealed_in.to_string(), &format!("{sealed_in} nine")] {
            let error = read_was(Some(bad)).unwrap_err().to_string();
            assert!(error.contains("names no change"), "{error}");
        }
        let (first, before) = sealed_as(other, OriginSeq(2), 7, was_text(was).as_deref(), 3).unwrap();
        assert_eq!(first, Seen { origin: sealed_in, n: OriginSeq(10), tag: 7 });
        assert_eq!(before, Some(Seen { origin: sealed_in, n: OriginSeq(8), tag: 3 }));
    }
}

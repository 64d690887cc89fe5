//! The numbers and names of the protocol, each a type of its own.
//!
//! Everything here is plain data with a short `Display` for traces: a position prints as `105@3`
//! (sequence number 105 in the term with number 3). What the words mean is in `docs/glossary.md`.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The unit of sync: one leader, one log, one set of member devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LibraryId(pub Uuid);

impl LibraryId {
    /// A fresh random id for a library that is about to be created.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for LibraryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A member device: the SHA-256 of its public key (of the SPKI, as the transport presents it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceId(pub [u8; 32]);

impl DeviceId {
    /// Parses the 64 hexadecimal digits that [`DeviceId`] displays as; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0u8; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// The first eight hexadecimal digits: enough to tell devices apart in a trace.
    pub fn short(&self) -> String {
        self.0[..4].iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({})", self.short())
    }
}

/// Position of an entry in the log, from 1, contiguous. Zero is "before the first entry".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How often a leader has opened its term: raised at each restart of the leader.
///
/// The nonce keeps apart two openings that count alike, as after a restored backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Counts the openings of one term number by one leader, from 1.
    pub counter: u64,
    /// 64 random bits drawn when the term is opened.
    pub nonce: u64,
}

/// One device appends in one term. Compared by number, then leader, then incarnation.
///
/// Only a reassignment of leadership raises `number`; a leader that restarts raises `incarnation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term {
    /// Raised by each reassignment of leadership, from 1. Zero: no term seen yet.
    pub number: u64,
    /// The device that appends in this term.
    pub leader: DeviceId,
    /// Which opening of the term this is.
    pub incarnation: Incarnation,
}

impl Term {
    /// Lower than every term that a leader opens: what a device that joins has seen.
    pub const ZERO: Self =
        Self { number: 0, leader: DeviceId([0; 32]), incarnation: Incarnation { counter: 0, nonce: 0 } };
}

impl Term {
    /// The form in which the database keeps a term: `number/leader/counter/nonce`.
    pub(crate) fn to_text(self) -> String {
        format!("{}/{}/{}/{}", self.number, self.leader, self.incarnation.counter, self.incarnation.nonce)
    }

    /// Reads [`Term::to_text`] back.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let term = Self {
            number: parts.next()?.parse().ok()?,
            leader: DeviceId::parse(parts.next()?)?,
            incarnation: Incarnation {
                counter: parts.next()?.parse().ok()?,
                nonce: parts.next()?.parse().ok()?,
            },
        };
        parts.next().is_none().then_some(term)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}/{}", self.number, self.incarnation.counter, self.leader.short())
    }
}

/// A place in one history: a bare sequence number is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Term of the entry at `seq`; [`Term::ZERO`] for the empty log.
    pub term: Term,
    /// Sequence number of the entry; zero for the empty log.
    pub seq: Seq,
}

impl Position {
    /// The top of an empty log. It is in every log.
    pub const EMPTY: Self = Self { term: Term::ZERO, seq: Seq(0) };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.seq, self.term.number)
    }
}

/// Where a change was sealed: minted at the first seal after each opening of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin(pub Uuid);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Contiguous number of a change within its origin, from 1; never reused, never renumbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OriginSeq(pub u64);

impl fmt::Display for OriginSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_compare_by_number_then_leader_then_incarnation() {
        let term = |number, leader, counter| Term {
            number,
            leader: DeviceId([leader; 32]),
            incarnation: Incarnation { counter, nonce: 9 },
        };
        assert!(term(2, 0, 0) > term(1, 9, 9), "a reassignment outranks every restart");
        assert!(term(1, 2, 0) > term(1, 1, 9));
        assert!(term(1, 1, 2) > term(1, 1, 1), "a restart outranks the opening before it");
        assert!(Term::ZERO < term(1, 0, 0));
    }

    #[test]
    fn a_term_reads_back_what_the_database_keeps() {
        let term = Term {
            number: 7,
            leader: DeviceId([0xab; 32]),
            incarnation: Incarnation { counter: 2, nonce: u64::MAX },
        };
        assert_eq!(Term::from_text(&term.to_text()), Some(term));
        for bad in ["", "1", "1/2/3/4", &format!("{}/5", term.to_text())] {
            assert_eq!(Term::from_text(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_device_id_reads_back_what_it_prints() {
        let id = DeviceId(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(DeviceId::parse(&id.to_string()), Some(id));
        for bad in ["", "12", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(DeviceId::parse(bad), None, "{bad:?}");
        }
    }
}

//! The first exchange on a stream: which library, which protocol version, and whether the peer agrees.
//!
//! The opener sends `TIDE`, the lowest and highest protocol version that it speaks (u16 each, big endian)
//! and the library's 16 bytes. Bytes after these are left to later versions and ignored. The answer is the
//! chosen version, or a reason in words. Who may speak about a library is not decided here but by the node.

use std::fmt;

use tidelog::id::LibraryId;
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"TIDE";
const LENGTH: usize = 24;
/// Characters of a peer's reason that are shown.
const REASON_MAX: usize = 400;

/// The protocol versions that one side speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest one.
    pub min: u16,
    /// The newest one.
    pub max: u16,
}

impl Versions {
    /// What this build speaks.
    pub const OURS: Self = Self { min: 1, max: 1 };

    /// The newest version that both speak.
    pub(crate) fn common(self, other: Self) -> Option<u16> {
        let version = self.max.min(other.max);
        (version >= self.min && version >= other.min).then_some(version)
    }

    pub(crate) fn contain(self, version: u16) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// What the opener of a stream wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preface {
    pub(crate) versions: Versions,
    pub(crate) library: LibraryId,
}

impl Preface {
    pub(crate) fn encode(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.versions.min.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.versions.max.to_be_bytes());
        bytes[8..].copy_from_slice(self.library.0.as_bytes());
        bytes
    }

    /// `None` if these bytes are no preface.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, _later_versions) = bytes.split_first_chunk::<LENGTH>()?;
        let (magic, head) = head.split_first_chunk::<4>()?;
        let (&min, head) = head.split_first_chunk::<2>()?;
        let (&max, library) = head.split_first_chunk::<2>()?;
        let versions = Versions { min: u16::from_be_bytes(min), max: u16::from_be_bytes(max) };
        if *magic != MAGIC || versions.min > versions.max {
            return None;
        }
        Some(Self { versions, library: LibraryId(Uuid::from_slice(library).ok()?) })
    }
}

/// The words of a peer, made fit for a log line: one line, no control characters, not endless.
pub(crate) fn readable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    text.chars().take(REASON_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(min: u16, max: u16) -> Versions {
        Versions { min, max }
    }

    #[test]
    fn a_preface_reads_back_also_with_what_later_versions_add() {
        let preface = Preface { versions: versions(1, 3), library: LibraryId::random() };
        let bytes = preface.encode();
        assert_eq!(Preface::parse(&bytes), Some(preface));
        assert_eq!(Preface::parse(&[&bytes[..], b"later"].concat()), Some(preface));
    }

    #[test]
    fn what_is_no_preface_is_not_read_as_one() {
        let good = Preface { versions: versions(1, 1), library: LibraryId::random() }.encode();
        for length in 0..good.len() {
            assert_eq!(Preface::parse(&good[..length]), None, "{length} bytes");
        }
        let mut magic = good;
        magic[0] = b't';
        assert_eq!(Preface::parse(&magic), None);
        let backwards = Preface { versions: versions(2, 1), library: LibraryId::random() }.encode();
        assert_eq!(Preface::parse(&backwards), None);
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        for (ours, theirs, common) in [
            (versions(1, 1), versions(1, 1), Some(1)),
            (versions(1, 3), versions(2, 9), Some(3)),
            (versions(2, 9), versions(1, 3), Some(3)),
            (versions(1, 1), versions(2, 2), None),
            (versions(3, 4), versions(1, 2), None),
        ] {
            assert_eq!(ours.common(theirs), common, "{ours} and {theirs}");
        }
    }

    #[test]
    fn the_words_of_a_peer_cannot_forge_a_log_line() {
        assert_eq!(readable(b"no\nWARN all is well\x1b[2J"), "no\u{fffd}WARN all is well\u{fffd}[2J");
        assert_eq!(readable(&[b'a'; 9000]).len(), REASON_MAX);
        assert_eq!(readable(b"\xff"), "\u{fffd}");
    }
}

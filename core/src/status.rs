//! What a library tells the people who use it: its status, and events of what it applied.

use crate::{
    entry::{EntryKind, Shape},
    id::{DeviceId, LibraryId, Position, Seq, Term},
    record::RecordId,
};

/// How things stand with a library on this device. Watched: [`Library::status`](crate::Library::status).
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The library.
    pub library: LibraryId,
    /// This device, once the library is started.
    pub device: Option<DeviceId>,
    /// The way to the leader.
    pub link: Link,
    /// What this device is to the library.
    pub role: Role,
    /// The term of the log's last entry; [`Term::ZERO`] while the log is empty.
    pub term: Term,
    /// Who leads, as far as this device knows.
    pub leader: Option<DeviceId>,
    /// Top of this device's log. Its tables are as of here.
    pub position: Position,
    /// Entries that the leader has and this device has not; `None` while the leader was not heard of.
    pub behind: Option<u64>,
    /// Captured rows that wait to be sealed, as of the last seal.
    pub outbox: u64,
    /// Sealed changes of this device that the log does not show yet.
    pub pending: u64,
    /// Captured rows that cannot be sent; the table `sync_quarantine` says which and why.
    pub quarantined: u64,
    /// Changes that `should_sync` kept on this device.
    pub withheld: u64,
    /// Conflicts that wait for a person: [`Library::conflicts`](crate::Library::conflicts).
    pub conflicts: u64,
    /// Refused changes that wait for a person: [`Library::dead_letters`](crate::Library::dead_letters).
    pub dead_letters: u64,
    /// Pending changes whose row had to leave its table, since what the leader has was in its way.
    pub blocked: u64,
    /// The last entry with a change that this device made and its database did not know: it was restored from an older state,
    /// or is a copy of one that goes on elsewhere. Nothing is lost by that; but two copies are better two devices.
    pub rolled_back: Option<Seq>,
    /// The device as which this database was used before, where that was another one: it is a copy, or was given to this device
    /// for good. Noticed at the first start as this device, and told until the library is closed. Nothing of it is lost.
    pub copy_of: Option<DeviceId>,
    /// The leader whose log and this device's have both been compacted behind the point at which they part: syncing has stopped
    /// until a person decides which of the two is to stand, as the link's reason says.
    pub split: Option<DeviceId>,
    /// Rows from before their model was synced that no other device gets yet, as counted when the library was opened:
    /// call [`Library::adopt`](crate::Library::adopt).
    pub unadopted: u64,
    /// All members have everything up to here on their disks, as the leader last told: no change of leader takes it back. 0 as
    /// long as one of them has not been heard of since this device was started.
    pub stable: Seq,
    /// Devices that follow this one now.
    pub followers: Vec<Follower>,
    /// When an entry was last applied or confirmed, ms since 1970.
    pub last_success: Option<i64>,
    /// When the leader is tried again, ms since 1970; `None` while nothing waits.
    pub next_retry: Option<i64>,
    /// What went wrong last, for a person to read; `None` after a success.
    pub last_error: Option<String>,
}

/// The way to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// The library is not started.
    Idle,
    /// This device leads: others come to it.
    Leading,
    /// Looking for the leader.
    Connecting,
    /// The log here is another one than the leader's from some entry on: what it holds from there on is being put back among
    /// the pending changes, to be pushed like all others.
    Rejoining,
    /// The subscription stands.
    Online,
    /// The leader cannot be reached; it is tried again at [`Status::next_retry`].
    Offline,
    /// Waiting does not help: a person has to act on the reason.
    Stopped {
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// What this device is to the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It sequences.
    Leader,
    /// It pulls.
    Follower,
}

/// A device that follows this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Who.
    pub device: DeviceId,
    /// What it holds durably, as it confirmed in this term.
    pub confirmed: Position,
}

/// What became of a record that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was inserted or updated.
    Upsert,
    /// It was deleted.
    Delete,
}

/// A change that came from another device and is in this device's tables now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedChange {
    /// Sync id of the model.
    pub model: String,
    /// Canonical id of the record.
    pub record: String,
    /// What became of it.
    pub kind: ChangeKind,
}

impl AppliedChange {
    /// What is told of a record whose entry comes to `kind`, if anything.
    pub(crate) fn of(shape: &Shape, record: &RecordId, kind: EntryKind) -> Option<Self> {
        let kind = match kind {
            EntryKind::Upsert => ChangeKind::Upsert,
            EntryKind::Delete => ChangeKind::Delete,
            _ => return None,
        };
        Some(Self { model: shape.model.clone(), record: record.to_string(), kind })
    }
}

//! The messages of the protocol and their bytes.
//!
//! One enum is the whole contract; every variant says who sends it and why. A message is one byte of form, then
//! postcard, packed with zstd above [`PACK_ABOVE`]. Entries travel column by column ([`columns`]): what is the same
//! for a run (term, origin, base) once for the run, field names once for each model, so that a receiver can keep
//! fields that it does not know. Numbers that a peer sent are checked before they are used or memory is taken.

use serde::{Deserialize, Serialize};

use crate::{
    entry::{Batch, Run, Seen},
    error::Error,
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    leadership::NotHandedOver,
    log::Excerpt,
    transport::MESSAGE_MAX,
};

mod columns;
mod follows;
mod outcomes;

pub(crate) use columns::Columns;

/// Messages longer than this are packed, in bytes.
pub(crate) const PACK_ABOVE: usize = 1024;
/// Largest unpacked message, in bytes: a change of the largest row, beside it what it replaced and what stands instead,
/// which are no larger.
pub(crate) const UNPACKED_MAX: usize = 4 << 20;
/// How much longer a message may become by unpacking; one that would is sent as it is.
pub(crate) const UNPACK_RATIO_MAX: usize = 100;
/// Most runs of the leadership history in one message.
pub(crate) const HISTORY_MAX: usize = 1024;

/// What two nodes say to each other about one library.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Follower, first message of its subscription: where it stands. `history` holds the newest runs of its log,
    /// ascending; `complete` says that they reach back to seq 1.
    Subscribe { max_seen: Term, top: Position, history: Vec<Run>, complete: bool },
    /// Follower, asked by `MoreHistory`: the runs before those it sent last.
    History { runs: Vec<Run>, complete: bool },
    /// Follower: it holds everything up to here durably and will not lose it by a crash.
    Confirm { max_seen: Term, position: Position },
    /// Follower: what is your top now? Answered by `Top` with this number, from 1, on the same channel.
    Ask { number: u64 },
    /// Follower: pending changes, in order. `position` is the top of its log. The seqs in the batch count from 1 and only
    /// say what belongs to which group. Answered by `Pushed` or `PushStopped`, in the order of the pushes.
    Push { max_seen: Term, position: Position, batch: columns::Columns },
    /// Leader: the oldest push not answered yet is in its log, which reaches to `top`.
    Pushed { lead: Term, top: Position },
    /// Leader: of the oldest push not answered yet, nothing from some change on was taken.
    PushStopped { lead: Term, why: PushStop },
    /// Leader: entries after the follower's position, sent as they are appended. `top` is its log's.
    Entries { lead: Term, floor: Seq, top: Position, batch: columns::Columns },
    /// Leader: its top and clock (ms since 1970), and up to where all members have confirmed its log. The answer to the `Ask` of this number and those before it; with
    /// zero the heartbeat, which may have left before a question came.
    Top { lead: Term, position: Position, stable: Seq, clock: i64, answers: u64 },
    /// Leader: no run of the follower's history is in its log yet, and there is more.
    MoreHistory,
    /// Leader: the follower's log parts from it after `common`. `floor` is what it has compacted up to.
    Diverged { lead: Term, common: Seq, top: Position, floor: Seq },
    /// Leader: what the follower needs is compacted; `floor` is the lowest seq it could have served.
    BelowFloor { lead: Term, common: Seq, floor: Seq },
    /// Leader, to the follower that is to lead next and has all of its log: the term of this number may be opened by it,
    /// behind this position. The leader appends nothing any more.
    Grant { lead: Term, number: u64, position: Position },
    /// Anybody, first message of a channel: the highest term that it has seen, which tells of a new leader, and a question:
    /// where do you stand? Answered by `Standing`.
    Inquire { max_seen: Term },
    /// The answer to `Inquire`: where it stands, whether it leads (or has granted its lead and not been answered yet), for how long it has not heard of a leader (ms; `None` if it
    /// never has since it was started), and the priority with which it takes over by itself, if it and its role do.
    Standing { max_seen: Term, top: Position, leads: bool, unheard: Option<u64>, priority: Option<u8> },
    /// Member, first message of a channel: let this device lead. Answered by `Reassigned` when it is known whether it does, or
    /// by `NotLeader`. Whoever asks may be gone by then: the leader goes on with it.
    Reassign { max_seen: Term, to: DeviceId },
    /// The answer to `Reassign`: the highest term by now, in which the device leads, unless it says why not.
    Reassigned { max_seen: Term, failed: Option<NotHandedOver> },
    /// Anybody who is not the leader: who is, as far as it knows.
    NotLeader { max_seen: Term, leader: Option<DeviceId> },
    /// Anybody, before ending the channel: why it will not talk. For a person to read.
    Refused { reason: String },
}

/// Why a push was not taken, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum PushStop {
    /// The change before is not in the log: this number would come next.
    Gap { origin: Origin, expected: OriginSeq },
    /// The pusher's position is not in the log.
    Diverged,
    /// The log has another life of the change's origin: it and what follows on it go by other names.
    Forked { change: Seen },
}

/// A message that cannot be read. Nothing was done with any of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message cannot be read: {0}; nothing of it was used")]
pub(crate) struct Unreadable(pub(crate) String);

const PLAIN: u8 = 0;
const PACKED: u8 = 1;

impl Message {
    /// The message of a batch.
    pub(crate) fn entries(lead: Term, floor: Seq, top: Position, batch: &Batch) -> Self {
        Self::Entries { lead, floor, top, batch: columns::Columns::of(batch) }
    }

    /// The message of what the log has.
    ///
    /// # Errors
    /// [`Error::Damaged`], where a row holds what its field cannot hold.
    pub(crate) fn excerpt(lead: Term, floor: Seq, top: Position, excerpt: &Excerpt) -> Result<Self, Error> {
        Ok(Self::Entries { lead, floor, top, batch: columns::Columns::of_excerpt(excerpt)? })
    }

    /// The message of pending changes.
    pub(crate) fn push(max_seen: Term, position: Position, batch: &Batch) -> Self {
        Self::Push { max_seen, position, batch: columns::Columns::of_push(batch) }
    }

    /// The bytes to send.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let plain = postcard::to_extend(self, vec![PLAIN])
            .expect("serialising our own types into memory cannot fail");
        if plain.len() <= PACK_ABOVE {
            return plain;
        }
        let raw = &plain[1..];
        let mut packed = Vec::with_capacity(raw.len() / 2 + 64);
        packed.push(PACKED);
        packed.extend_from_slice(&u32::try_from(raw.len()).unwrap_or(u32::MAX).to_be_bytes());
        match zstd::bulk::compress(raw, 1) {
            Ok(body) if body.len() + 5 < plain.len() && raw.len() <= body.len() * UNPACK_RATIO_MAX => {
                packed.extend_from_slice(&body);
                packed
            }
            _ => plain,
        }
    }

    /// Reads what [`Message::encode`] wrote.
    ///
    /// # Errors
    /// [`Unreadable`], for anything else: unknown form, lengths over the limits, bytes left over.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let bad = |what: &str| Unreadable(what.to_owned());
        if bytes.len() > MESSAGE_MAX {
            return Err(Unreadable(format!("{} bytes are over the limit of {MESSAGE_MAX}", bytes.len())));
        }
        let (form, body) = bytes.split_first().ok_or_else(|| bad("it is empty"))?;
        match *form {
            PLAIN => Self::read(body),
            PACKED => {
                let (length, packed) =
                    body.split_first_chunk::<4>().ok_or_else(|| bad("it ends in its header"))?;
                let length = u32::from_be_bytes(*length) as usize;
                if length > UNPACKED_MAX {
                    return Err(Unreadable(format!(
                        "{length} bytes unpacked are over the limit of {UNPACKED_MAX}"
                    )));
                }
                if length > packed.len().saturating_mul(UNPACK_RATIO_MAX) {
                    return Err(Unreadable(format!(
                        "{} bytes that unpack to {length} are over the ratio of {UNPACK_RATIO_MAX}",
                        packed.len()
                    )));
                }
                let raw =
                    zstd::bulk::decompress(packed, length).map_err(|e| Unreadable(format!("zstd: {e}")))?;
                if raw.len() != length {
                    return Err(bad("it unpacks to another length than it says"));
                }
                Self::read(&raw)
            }
            other => Err(Unreadable(format!("form {other} is unknown"))),
        }
    }

    fn read(raw: &[u8]) -> Result<Self, Unreadable> {
        match postcard::take_from_bytes::<Self>(raw) {
            Ok((message, [])) => Ok(message),
            Ok((_, rest)) => Err(Unreadable(format!("{} bytes are left over", rest.len()))),
            Err(e) => Err(Unreadable(format!("postcard: {e}"))),
        }
    }
}

//! Who leads: what a person asks for, is told of beforehand, and may leave to the devices.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    id::{DeviceId, LibraryId, Position, Term},
};

/// How long a leader waits for the device that it is to hand over to, until that is nearly level.
pub(crate) const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// Requests to hand over that a leader works on at once, fewer than the channels that one device may have open. One more is
/// refused.
pub(crate) const REASSIGNMENTS_MAX: usize = 4;

/// How a library is taken over: [`Library::take_over`](crate::Library::take_over).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakeOver {
    /// Whatever stands against it. What other devices have beyond this one comes back when they do.
    pub force: bool,
}

impl TakeOver {
    /// Takes over only where nothing stands against it.
    pub const UNLESS_REFUSED: Self = Self { force: false };
    /// Takes over in any case.
    pub const FORCED: Self = Self { force: true };
}

/// When a device takes over by itself: see [`LibraryBuilder::failover`](crate::LibraryBuilder::failover).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failover {
    /// How long nothing was heard of a leader before this device looks who is to be the next.
    pub after: Duration,
    /// Of devices with logs of one length, the one with the highest takes over.
    pub priority: u8,
    /// The least precedence of the device's role with which it takes over.
    pub least_precedence: u8,
}

impl Failover {
    /// After so long without a leader, at the lowest priority, in whatever role.
    pub const fn after(after: Duration) -> Self {
        Self { after, priority: 0, least_precedence: 0 }
    }

    /// With this priority.
    #[must_use]
    pub const fn priority(self, priority: u8) -> Self {
        Self { priority, ..self }
    }

    /// Only as long as the log says that this device's role has at least this
    /// [precedence](crate::LibraryBuilder::precedence). So all devices of an application may be given one setting, and who
    /// is to lead is said where it is known, on the leader.
    #[must_use]
    pub const fn for_roles(self, least_precedence: u8) -> Self {
        Self { least_precedence, ..self }
    }

    /// The priority with which a device takes over by itself whose role has this precedence, `None` where it does not. Who
    /// has no role is no member, and does not.
    pub(crate) fn standing_of(self, role: Option<u8>) -> Option<u8> {
        role.filter(|role| *role >= self.least_precedence).map(|_| self.priority)
    }

    /// Whether a device that has not heard of a leader for so long still leaves the lead to one that has more and does not take
    /// over by itself: for as long again, in which a person may have it lead, or the old leader come back.
    pub(crate) fn defers(self, unheard: Duration) -> bool {
        unheard < self.after.saturating_mul(2)
    }
}

/// What would be left behind if this device took over now: [`Library::promotion_report`](crate::Library::promotion_report).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromotionReport {
    /// This device.
    pub device: DeviceId,
    /// The top of its log.
    pub position: Position,
    /// Changes that it would bring into the log.
    pub pending: u64,
    /// The highest term that it has seen, with who leads it.
    pub max_seen: Term,
    /// The other devices of the library that this one knows of.
    pub devices: Vec<KnownDevice>,
    /// Entries that some other device is known to have and this one has not. What is in them is not lost: it comes back, as
    /// changes, when that device does.
    pub left_behind: u64,
    /// Why a takeover that is not forced is refused; empty where it is not.
    pub obstacles: Vec<Obstacle>,
}

/// Another device, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownDevice {
    /// Which one.
    pub device: DeviceId,
    /// Whether it has just answered.
    pub answers: bool,
    /// Whether it leads, as it says itself.
    pub leads: bool,
    /// How far its log reaches: as it says, or as was heard last.
    pub position: Option<Position>,
    /// When it was last heard of, ms since 1970, where this device keeps that: a leader does.
    pub last_contact: Option<i64>,
}

/// What stands against a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its log is empty: it holds nothing of the library.
    Empty,
    /// The log does not name it a member.
    NoMember,
    /// Its database is an older state of itself, or a copy, and has not caught up since.
    RolledBack,
    /// Another device, which answers, has more of the log.
    Behind {
        /// Which one.
        device: DeviceId,
        /// How far its log reaches.
        position: Position,
    },
    /// The leader is there.
    LeaderAnswers {
        /// Who leads.
        leader: DeviceId,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("its log is empty: it holds nothing of the library"),
            Self::NoMember => f.write_str("it is no member of the library"),
            Self::RolledBack => f.write_str(
                "its database is an older state of itself, or a copy, and has not caught up with a leader since",
            ),
            Self::Behind { device, position } => {
                write!(f, "device {device} can be reached and its log reaches further, to {position}")
            }
            Self::LeaderAnswers { leader } => write!(f, "device {leader} leads and can be reached"),
        }
    }
}

impl Obstacle {
    /// What a person can do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Empty | Self::RolledBack => "Let it follow a device that has the library first",
            Self::NoMember => "Let a device that is a member take over",
            Self::Behind { .. } => "Let that device take over, or follow it first",
            Self::LeaderAnswers { .. } => "Let that device hand over instead, as `reassign_leader` does",
        }
    }
}

/// What stands against a takeover by a device, of what is known of it and of the others.
pub(crate) fn obstacles(
    own: Position,
    is_member: bool,
    is_behind_itself: bool,
    others: &[KnownDevice],
) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    if own.seq.0 == 0 {
        obstacles.push(Obstacle::Empty);
    }
    if !is_member {
        obstacles.push(Obstacle::NoMember);
    }
    if is_behind_itself {
        obstacles.push(Obstacle::RolledBack);
    }
    let answering = || others.iter().filter(|other| other.answers);
    obstacles.extend(
        answering().filter(|other| other.leads).map(|other| Obstacle::LeaderAnswers { leader: other.device }),
    );
    let furthest = answering().filter_map(|other| Some((other.position?, other.device))).max();
    if let Some((position, device)) = furthest.filter(|(position, _)| *position > own) {
        obstacles.push(Obstacle::Behind { device, position });
    }
    obstacles
}

/// Why a leader has not handed its lead over to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NotHandedOver {
    /// The device does not follow the leader, or has ceased to.
    NotFollowing,
    /// It has not come near the top of the log in time.
    Behind,
    /// It was granted the lead, and has not taken it in time.
    NotTaken,
    /// The leader was deposed, or handed over to another device, before it came to this.
    Overtaken,
    /// The leader works on as many requests as it takes.
    Busy,
}

impl NotHandedOver {
    /// What a person is told who wanted `to` to lead instead of `leader`, where `now` does.
    pub(crate) fn error(self, library: LibraryId, leader: DeviceId, to: DeviceId, now: DeviceId) -> Error {
        const CONNECT: &str = "Let it connect and catch up, or hand the lead over to another device";
        let (reason, remedy) = match self {
            Self::NotFollowing => (format!("it does not follow device {leader}, which leads"), CONNECT),
            Self::Behind => (
                format!(
                    "it did not catch up with device {leader}, which leads, within {} s",
                    CATCH_UP_MAX.as_secs()
                ),
                CONNECT,
            ),
            Self::NotTaken => (
                format!("it did not take it in time, and device {now} leads now"),
                "See whether it can be reached, and try again",
            ),
            Self::Overtaken => (
                format!("device {leader} does not lead as it did when it was asked: device {now} leads now"),
                "Ask again, if it is still to lead",
            ),
            Self::Busy => (
                format!("device {leader}, which leads, works on {REASSIGNMENTS_MAX} such requests already"),
                "Try again when they are done",
            ),
        };
        Error::NotLed { device: to, library, reason, remedy: remedy.to_owned() }
    }
}

/// A device that could be the next leader, as it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) device: DeviceId,
    pub(crate) position: Position,
    /// `None`: it does not take over by itself.
    pub(crate) priority: Option<u8>,
    /// It leads, or hears somebody who does.
    pub(crate) has_leader: bool,
}

/// What a device that misses its leader does, having asked all that it can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It takes over.
    TakeOver,
    /// Somebody leads, or hears the leader: that it cannot be heard here is no reason to depose it. Two devices that each hear
    /// only one side of a partition would depose each other for ever.
    HasLeader(DeviceId),
    /// Another is to take over: its log is longer, or as long and its priority higher.
    Leave(DeviceId),
    /// Its own log is empty, or it does not take over by itself: it is no member, or its role does not.
    Unfit,
}

/// Who is to lead next, as `own` sees it. Whoever asks the same devices comes to the same, where all of them have ceased to defer
/// to those that have more and never take over by themselves. What those have alone comes back when they follow, as changes.
pub(crate) fn judge(own: Candidate, others: &[Candidate], defers: bool) -> Verdict {
    if let Some(other) = others.iter().find(|other| other.has_leader) {
        return Verdict::HasLeader(other.device);
    }
    let Some(priority) = own.priority.filter(|_| own.position.seq.0 > 0) else { return Verdict::Unfit };
    let rank = |c: &Candidate, priority: u8| (c.position, priority, c.device);
    let ahead = others
        .iter()
        .filter(|other| match other.priority {
            Some(theirs) => rank(other, theirs) > rank(&own, priority),
            None => defers && other.position > own.position,
        })
        .max_by_key(|other| rank(other, other.priority.unwrap_or(0)));
    ahead.map_or(Verdict::TakeOver, |other| Verdict::Leave(other.device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Incarnation, Seq};

    fn position(number: u64, seq: u64) -> Position {
        let incarnation = Incarnation { counter: 1, nonce: 0 };
        Position { term: Term { number, leader: DeviceId([1; 32]), incarnation }, seq: Seq(seq) }
    }

    fn candidate(device: u8, seq: u64, priority: Option<u8>) -> Candidate {
        Candidate { device: DeviceId([device; 32]), position: position(1, seq), priority, has_leader: false }
    }

    #[test]
    fn the_longest_log_leads_next_then_the_priority_and_exactly_one_of_those_who_ask() {
        let all = [
            candidate(2, 10, Some(0)),
            candidate(3, 10, Some(7)),
            candidate(4, 12, Some(0)),
            candidate(5, 12, Some(1)),
            candidate(6, 12, Some(1)),
        ];
        for count in 1..=all.len() {
            let among = &all[..count];
            let taking: Vec<DeviceId> = among
                .iter()
                .filter(|own| {
                    let others: Vec<_> = among.iter().filter(|o| o.device != own.device).copied().collect();
                    judge(**own, &others, true) == Verdict::TakeOver
                })
                .map(|own| own.device)
                .collect();
            assert_eq!(taking, [DeviceId([[2, 3, 4, 5, 6][count - 1]; 32])], "of the first {count}");
        }
        let newer = Candidate { position: position(2, 3), ..candidate(9, 3, Some(0)) };
        assert_eq!(judge(newer, &all, true), Verdict::TakeOver, "the log of a later term is the further one");
    }

    #[test]
    fn nobody_is_deposed_while_somebody_hears_him() {
        let hears = Candidate { has_leader: true, ..candidate(3, 4, None) };
        let own = candidate(2, 90, Some(200));
        for defers in [true, false] {
            assert_eq!(judge(own, &[hears], defers), Verdict::HasLeader(hears.device));
            assert_eq!(judge(own, &[], defers), Verdict::TakeOver);
        }
    }

    #[test]
    fn who_does_not_take_over_by_itself_holds_up_those_with_less_and_not_for_ever() {
        let quiet = candidate(9, 10, None);
        assert_eq!(judge(candidate(2, 10, Some(0)), &[quiet], true), Verdict::TakeOver);
        assert_eq!(judge(candidate(2, 9, Some(0)), &[quiet], true), Verdict::Leave(quiet.device));
        assert_eq!(judge(candidate(2, 9, Some(0)), &[quiet], false), Verdict::TakeOver);
        let empty = Candidate { position: Position::EMPTY, ..candidate(2, 0, Some(0)) };
        for defers in [true, false] {
            assert_eq!(judge(quiet, &[], defers), Verdict::Unfit);
            assert_eq!(judge(empty, &[], defers), Verdict::Unfit);
        }
        // Of those who do, the longest log leads all the same, and one of them.
        let (longer, shorter) = (candidate(3, 8, Some(0)), candidate(4, 7, Some(9)));
        assert_eq!(judge(longer, &[quiet, shorter], false), Verdict::TakeOver);
        for defers in [true, false] {
            let left = judge(shorter, &[quiet, longer], defers);
            assert_eq!(left, Verdict::Leave(if defers { quiet } else { longer }.device));
        }
        let failover = Failover::after(Duration::from_secs(5));
        let defers = [5, 9, 10, 11].map(|unheard| failover.defers(Duration::from_secs(unheard)));
        assert_eq!(defers, [true, true, false, false]);
        assert!(Failover::after(Duration::MAX).defers(Duration::from_secs(1)));
    }

    #[test]
    fn only_roles_that_may_take_over_by_themselves_and_those_who_may_do_not_wait_for_others() {
        let desk = Failover::after(Duration::ZERO).for_roles(5);
        let phone = desk.priority(200);
        // Each by its role, as it judges itself and as it says to others.
        let of = |device, seq, setting: Failover, role| candidate(device, seq, setting.standing_of(role));
        for (roles, verdicts) in [
            ((Some(5), Some(4)), (Verdict::TakeOver, Verdict::Unfit)),
            ((Some(4), Some(5)), (Verdict::Unfit, Verdict::TakeOver)),
            ((Some(9), Some(5)), (Verdict::Leave(DeviceId([3; 32])), Verdict::TakeOver)),
            ((Some(255), None), (Verdict::TakeOver, Verdict::Unfit)),
            ((Some(0), None), (Verdict::Unfit, Verdict::Unfit)),
        ] {
            let (desk, phone) = (of(2, 10, desk, roles.0), of(3, 10, phone, roles.1));
            assert_eq!((judge(desk, &[phone], true), judge(phone, &[desk], true)), verdicts, "{roles:?}");
        }
        // Unless it says so, any member's may.
        assert_eq!(Failover::after(Duration::ZERO).priority(3).standing_of(Some(0)), Some(3));
        assert_eq!(Failover::after(Duration::ZERO).standing_of(None), None);
    }

    #[test]
    fn what_stands_against_a_takeover_is_told_with_what_to_do() {
        let other = |answers, leads, seq| KnownDevice {
            device: DeviceId([4; 32]),
            answers,
            leads,
            position: Some(position(1, seq)),
            last_contact: None,
        };
        let own = position(1, 5);
        assert_eq!(obstacles(own, true, false, &[]), []);
        assert_eq!(obstacles(own, true, false, &[other(true, false, 5)]), []);
        assert_eq!(obstacles(own, true, false, &[other(false, true, 9)]), [], "nobody answers");
        assert_eq!(obstacles(Position::EMPTY, false, false, &[]), [Obstacle::Empty, Obstacle::NoMember]);
        assert_eq!(obstacles(own, true, true, &[]), [Obstacle::RolledBack]);
        let found = obstacles(own, true, false, &[other(true, true, 9)]);
        let told: Vec<String> = found.iter().map(|o| format!("{o}. {}", o.remedy())).collect();
        assert!(told[0].contains("leads and can be reached. Let that device hand over"), "{told:?}");
        assert!(told[1].contains("reaches further, to 9@1. Let that device take over"), "{told:?}");
    }
}

//! The two things a step may not make up by itself: the time and randomness. Passed in, so that a simulation
//! can decide both.

use std::time::{SystemTime, UNIX_EPOCH};

/// Where time and randomness come from.
pub trait World: Send + Sync + 'static {
    /// Milliseconds since 1970, UTC.
    fn now(&self) -> i64;
    /// 64 random bits.
    fn random(&self) -> u64;
    /// A random UUID (version 4).
    fn uuid(&self) -> uuid::Uuid {
        uuid::Builder::from_u128(u128::from(self.random()) << 64 | u128::from(self.random()))
            .with_variant(uuid::Variant::RFC4122)
            .with_version(uuid::Version::Random)
            .into_uuid()
    }
}

/// The machine's clock and the operating system's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl World for Machine {
    fn now(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn random(&self) -> u64 {
        uuid::Uuid::new_v4().as_u64_pair().1.rotate_left(32) ^ uuid::Uuid::new_v4().as_u64_pair().0
    }
}

/// The next stamp of the hybrid logical clock (Kulkarni et al., 2014): milliseconds in the upper 48 bits, a counter
/// in the lower 16. Never lower than one handed out or seen before, and as near to the wall clock as that allows.
pub(crate) fn tick(clock: u64, now_ms: i64) -> u64 {
    (clock + 1).max(u64::try_from(now_ms).unwrap_or(0) << 16)
}

/// How far ahead of the leader's wall clock a change may rank, in ms. Whoever's clock is further ahead ranks as of then, so
/// that it neither wins for ever nor takes the clocks of others with it.
const AHEAD_MAX: i64 = 5 * 60 * 1000;

/// What a change with this stamp ranks by, where it is sequenced first and the wall clock says `now_ms`.
pub(crate) fn clamp(stamp: u64, now_ms: i64) -> u64 {
    let latest = u64::try_from(now_ms.saturating_add(AHEAD_MAX)).unwrap_or(0);
    // By the millisecond: what the leader counts on from a clamped change is not ahead again.
    if stamp >> 16 > latest { latest << 16 } else { stamp }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_rise_even_when_the_wall_clock_does_not() {
        let first = tick(0, 1_000);
        assert_eq!(first, 1_000 << 16);
        assert_eq!(tick(first, 1_000), first + 1, "the same millisecond");
        assert_eq!(tick(first, 3), first + 1, "the clock was set back");
        assert_eq!(tick(first, 1_001), 1_001 << 16, "and catches up with real time");
        assert_eq!(tick(5, -1), 6, "before 1970");
    }

    #[test]
    fn only_stamps_far_ahead_are_clamped() {
        let at = |ms: u64| ms << 16;
        let now = 1_000_000;
        let latest = at(1_300_000);
        assert_eq!(clamp(at(5), now), at(5), "however old");
        assert_eq!(clamp(latest + 7, now), latest + 7, "five minutes ahead");
        assert_eq!(clamp(at(1_300_001), now), latest);
        assert_eq!(clamp(u64::MAX, now), latest);
        assert_eq!(clamp(at(9), -AHEAD_MAX - 1), 0, "the leader's clock says before 1970");
        assert_eq!(clamp(u64::MAX, i64::MAX), u64::MAX, "no clock is later");
        let behind_clamped = tick(latest, now);
        assert_eq!(
            clamp(behind_clamped, now),
            behind_clamped,
            "what comes after a clamped one ranks after it"
        );
    }

    #[test]
    fn random_bits_differ() {
        assert_ne!(Machine.random(), Machine.random());
        assert_eq!(Machine.uuid().get_version_num(), 4);
    }
}

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
    fn random_bits_differ() {
        assert_ne!(Machine.random(), Machine.random());
        assert_eq!(Machine.uuid().get_version_num(), 4);
    }
}

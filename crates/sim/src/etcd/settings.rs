//! What a model of etcd is like, and the dice that it throws.
//!
//! In the wheel it is where the seed comes in: nothing of the model is random but by these dice.

use std::time::Duration;

use rand_chacha::{ChaCha8Rng, rand_core::Rng};

/// Which of etcd's ways to follow, where its versions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3.4: a sign of life is given at once, even before what the watch still owes; a compaction forgets the deletions of its revision.
    V3_4,
    /// 3.5: a sign of life is given only by a watch that owes nothing and has begun; a compaction keeps the deletions of its revision.
    V3_5,
}

/// A model of etcd.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many members.
    pub members: usize,
    /// Whose ways to follow.
    pub version: Version,
    /// The shortest and the longest time that a message usually takes in one direction.
    pub latency: (Duration, Duration),
    /// One message in so many takes longer; zero: none does.
    pub slow_one_in: u64,
    /// The longest time that such a message takes.
    pub slow: Duration,
    /// How late an expired lease is revoked, at most: etcd looks twice a second, and then asks its members.
    pub lateness: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            members: 3,
            version: Version::V3_5,
            latency: (Duration::from_micros(200), Duration::from_millis(2)),
            slow_one_in: 500,
            slow: Duration::from_millis(300),
            lateness: Duration::from_secs(1),
        }
    }
}

/// A seeded source of chance.
#[derive(Debug)]
pub(super) struct Dice(pub(super) ChaCha8Rng);

impl Dice {
    /// A number less than `end`, which must not be zero.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// True once in so many times; never for zero.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        times != 0 && self.below(times) == 0
    }

    /// A time, to the microsecond.
    pub(super) fn between(&mut self, shortest: Duration, longest: Duration) -> Duration {
        let span = u64::try_from(longest.saturating_sub(shortest).as_micros()).unwrap_or(u64::MAX - 1);
        shortest + Duration::from_micros(self.below(span + 1))
    }
}

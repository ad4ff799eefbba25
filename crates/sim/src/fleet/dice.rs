//! Chance, from the seed and nothing else.
//!
//! Each user has dice of its own, named after it, so that what one of them throws does not depend on how often another does.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use rustc_hash::FxHasher;

/// See the module. Clones throw from the same sequence.
#[derive(Clone, Debug)]
pub struct Dice(Arc<Mutex<ChaCha8Rng>>);

impl Dice {
    /// The dice of this name in the run of this seed.
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        Self(Arc::new(Mutex::new(generator(seed, name))))
    }

    /// Less than `bound`, which is not zero.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64() % bound.max(1)
    }

    /// True so many times in a thousand.
    #[must_use]
    pub fn per_mille(&self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    /// From `from` on, and less than `to`, in microseconds.
    #[must_use]
    pub fn span(&self, from: Duration, to: Duration) -> Duration {
        let width = u64::try_from(to.saturating_sub(from).as_micros()).unwrap_or(u64::MAX);
        from + Duration::from_micros(self.below(width))
    }

    /// One of them.
    ///
    /// # Panics
    /// Of none there is none to pick.
    #[must_use]
    pub fn pick<'a, T>(&self, of: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(of.len() as u64)).unwrap_or(0);
        &of[at]
    }
}

/// The generator of this name in the run of this seed.
#[must_use]
pub fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    use std::hash::Hasher;
    let mut hasher = FxHasher::default();
    hasher.write(name.as_bytes());
    ChaCha8Rng::seed_from_u64(seed ^ hasher.finish())
}

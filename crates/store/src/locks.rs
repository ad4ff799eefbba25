//! PURE: which writes may be under way at the same time, key by key.
//!
//! In the wheel it is the part of store::commit that keeps the order of writes to a key. A write takes a key alone, a condition shares
//! it with other conditions, and whoever comes later waits for whoever came earlier. The cost of each step depends on the keys of the
//! write in hand and not on how many others wait.

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::FxHashMap;

/// What a write wants of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To compare it.
    Shared,
    /// To put or delete it.
    Alone,
}

/// One key that a write takes.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) key: Arc<[u8]>,
    pub(crate) mode: Mode,
}

/// The queue of one key: those who have it, and behind them in order those who wait.
#[derive(Default)]
struct Queue {
    /// How many conditions share the key at the moment.
    shared: usize,
    /// Whether one write has it alone.
    alone: bool,
    waiting: VecDeque<(u64, Mode)>,
}

impl Queue {
    fn admits(&self, mode: Mode) -> bool {
        !self.alone && (mode == Mode::Shared || self.shared == 0)
    }

    fn admit(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => self.shared += 1,
            Mode::Alone => self.alone = true,
        }
    }
}

/// The queues of all keys in use.
#[derive(Default)]
pub(crate) struct KeyLocks {
    queues: FxHashMap<Arc<[u8]>, Queue>,
}

impl KeyLocks {
    /// Queues the write at each of its keys, and returns at how many of them it has to wait.
    pub(crate) fn queue(&mut self, write: u64, keys: &[Taken]) -> usize {
        let mut waits = 0;
        for Taken { key, mode } in keys {
            let queue = self.queues.entry(key.clone()).or_default();
            if queue.waiting.is_empty() && queue.admits(*mode) {
                queue.admit(*mode);
            } else {
                queue.waiting.push_back((write, *mode));
                waits += 1;
            }
        }
        waits
    }

    /// Gives back the keys of a write that had all of them. `admitted` is called for each write and key whose turn it is now.
    pub(crate) fn give_back(&mut self, keys: &[Taken], mut admitted: impl FnMut(u64)) {
        for Taken { key, mode } in keys {
            let Some(queue) = self.queues.get_mut(key) else { continue };
            match mode {
                Mode::Shared => queue.shared -= 1,
                Mode::Alone => queue.alone = false,
            }
            while let Some((write, mode)) = queue.waiting.front().copied().filter(|(_, mode)| queue.admits(*mode)) {
                queue.waiting.pop_front();
                queue.admit(mode);
                admitted(write);
            }
            if queue.shared == 0 && !queue.alone {
                self.queues.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(keys: &[(&str, Mode)]) -> Vec<Taken> {
        keys.iter().map(|(key, mode)| Taken { key: key.as_bytes().into(), mode: *mode }).collect()
    }

    fn give_back(locks: &mut KeyLocks, keys: &[Taken]) -> Vec<u64> {
        let mut admitted = Vec::new();
        locks.give_back(keys, |write| admitted.push(write));
        admitted
    }

    #[test]
    fn conditions_share_a_key_and_a_write_has_it_alone() {
        let mut locks = KeyLocks::default();
        let (shared, alone) = (takes(&[("k", Mode::Shared)]), takes(&[("k", Mode::Alone)]));
        assert_eq!(locks.queue(1, &shared), 0);
        assert_eq!(locks.queue(2, &shared), 0);
        assert_eq!(locks.queue(3, &alone), 1);
        assert_eq!(locks.queue(4, &shared), 1, "whoever comes later does not overtake a write that waits");
        assert_eq!(give_back(&mut locks, &shared), Vec::<u64>::new());
        assert_eq!(give_back(&mut locks, &shared), [3]);
        assert_eq!(give_back(&mut locks, &alone), [4]);
        assert_eq!(give_back(&mut locks, &shared), Vec::<u64>::new());
        assert!(locks.queues.is_empty());
    }

    #[test]
    fn a_write_waits_at_each_key_that_is_taken() {
        let mut locks = KeyLocks::default();
        let (a, b) = (takes(&[("a", Mode::Alone)]), takes(&[("b", Mode::Alone)]));
        let both = takes(&[("a", Mode::Alone), ("b", Mode::Shared)]);
        assert_eq!((locks.queue(1, &a), locks.queue(2, &b), locks.queue(3, &both)), (0, 0, 2));
        assert_eq!(give_back(&mut locks, &b), [3]);
        assert_eq!(give_back(&mut locks, &a), [3]);
        assert_eq!(locks.queue(4, &b), 1);
        assert_eq!(give_back(&mut locks, &both), [4]);
    }
}

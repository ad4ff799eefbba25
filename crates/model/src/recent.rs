//! When things happened lately, by the observer's own clock: a bounded memory. It is observed and not cached: no list can restore it, and
//! nothing that must hold rests on it.

use std::collections::{BTreeMap, VecDeque};

use crate::Moment;

/// How many occurrences are remembered.
const BOUND: usize = 65_536;
/// How many occurrences of one key are remembered.
pub const REMEMBERED: usize = 16;

/// See the module.
#[derive(Clone, Debug)]
pub struct Recent<K> {
    in_order: VecDeque<(Moment, K)>,
    by_key: BTreeMap<K, VecDeque<Moment>>,
}

impl<K> Default for Recent<K> {
    fn default() -> Self {
        Self { in_order: VecDeque::new(), by_key: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Recent<K> {
    /// It happened now. Moments never go back.
    pub fn note(&mut self, key: K, now: Moment) {
        if self.in_order.len() == BOUND
            && let Some((at, oldest)) = self.in_order.pop_front()
            && let Some(times) = self.by_key.get_mut(&oldest)
        {
            times.pop_front_if(|first| *first == at);
            if times.is_empty() {
                self.by_key.remove(&oldest);
            }
        }
        let times = self.by_key.entry(key.clone()).or_default();
        if times.len() == REMEMBERED {
            times.pop_front();
        }
        times.push_back(now);
        self.in_order.push_back((now, key));
    }

    /// When it happened to this one, the last time first, as far as is remembered.
    pub fn times(&self, key: &K) -> impl Iterator<Item = Moment> {
        self.by_key.get(key).into_iter().flat_map(|times| times.iter().rev().copied())
    }

    /// When it happened last to this one, as far as is remembered.
    #[must_use]
    pub fn last(&self, key: &K) -> Option<Moment> {
        self.times(key).next()
    }

    /// What happened at a moment or after it, the newest first.
    pub fn since(&self, moment: Moment) -> impl Iterator<Item = (Moment, &K)> {
        self.in_order.iter().rev().take_while(move |(at, _)| *at >= moment).map(|(at, key)| (*at, key))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(n: u64) -> Moment {
        Moment(Duration::from_secs(n))
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::default();
        recent.note(7, at(0));
        for n in 0..u64::try_from(BOUND).expect("small") {
            recent.note(8, at(1 + n));
        }
        assert_eq!(recent.last(&7), None);
        assert_eq!(recent.since(at(0)).count(), BOUND);
        let last = at(u64::try_from(BOUND).expect("small"));
        assert_eq!(recent.last(&8), Some(last));
        recent.note(7, last);
        assert_eq!(recent.since(at(2)).next(), Some((last, &7)));
        assert_eq!(recent.times(&8).take(2).collect::<Vec<_>>(), [last, at(last.0.as_secs() - 1)]);
    }
}

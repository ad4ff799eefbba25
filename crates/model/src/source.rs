//! What one answer of a source may delete: the guard between an inventory that lacks something and work that ends.
//!
//! The wheel: before it, with [`crate::diff`], which says what is missing. It reads nothing, deletes nothing and knows no clock.
//!
//! An answer that is not complete (a file that cannot be read, or is wrong) deletes nothing. A complete one deletes what it lacks when the
//! source has said the same for a while, and only within a limit. What is beyond the limit is held until a person has seen it and releases
//! exactly that.

use std::{fmt, num::ParseIntError, str::FromStr, time::Duration};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::{Moment, ResourceName};

/// How much one answer may delete by itself: no more than the larger of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteLimit {
    /// Of the resources of the source, in percent.
    pub percent: usize,
    /// So many in any case, unless the answer is empty.
    pub at_least: usize,
}

/// Those that design and surface promise for a source that says nothing: 10%, and at least 5.
impl Default for DeleteLimit {
    fn default() -> Self {
        Self { percent: 10, at_least: 5 }
    }
}

/// All that an answer said: two answers with the same content are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content(u64);

impl Content {
    /// Of the bytes of a file or of a reply.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxh3_64(bytes))
    }
}

/// Names exactly one set of deletes that is held, as a person is shown it: sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldDigest(u64);

impl HeldDigest {
    fn of(names: &[ResourceName]) -> Self {
        let mut hasher = Xxh3::new();
        for name in names {
            hasher.update(name.as_str().as_bytes());
            hasher.update(&[0]);
        }
        Self(hasher.digest())
    }
}

impl fmt::Display for HeldDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for HeldDigest {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A complete answer, beside the resources of the source.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// What it said.
    pub content: Content,
    /// When it was read.
    pub at: Moment,
    /// How many records it has.
    pub records: usize,
    /// How many resources of the source there are.
    pub present: usize,
    /// Those of them that it lacks, in order.
    pub missing: &'a [ResourceName],
}

/// What may be done with what an answer lacks.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    /// It lacks nothing.
    Nothing,
    /// The source has not said so for long enough: a later answer decides.
    Unconfirmed,
    /// It is more than the limit: a person decides.
    Held(HeldDigest),
    /// They may be deleted.
    Allowed,
}

/// Judges one answer after the other. A new leader begins with a new one, which only delays.
#[derive(Clone, Debug, Default)]
pub struct DeleteGuard {
    limit: DeleteLimit,
    /// For how long a source must have said the same before anything is deleted by it.
    settles: Duration,
    /// What the answer before said, if it was complete, and when it was first said.
    last: Option<(Content, Moment)>,
    /// The set that a person has released, until it is deleted.
    released: Option<HeldDigest>,
}

impl DeleteGuard {
    /// One that has seen no answer.
    #[must_use]
    pub fn new(limit: DeleteLimit, settles: Duration) -> Self {
        Self { limit, settles, ..Self::default() }
    }

    /// The answer was not complete: it deletes nothing, and the next complete one is the first again. What was released is held again.
    pub fn incomplete(&mut self) {
        (self.last, self.released) = (None, None);
    }

    /// A person allows this set to be deleted, once.
    pub fn release(&mut self, held: HeldDigest) {
        self.released = Some(held);
    }

    /// Nothing is released any more.
    pub fn withdraw(&mut self) {
        self.released = None;
    }

    /// A release waits for the answer that confirms it.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.released.is_some()
    }

    /// Judges a complete answer.
    pub fn judge(&mut self, answer: Answer<'_>) -> Deletes {
        let since = self.last.filter(|(content, _)| *content == answer.content).map_or(answer.at, |(_, since)| since);
        self.last = Some((answer.content, since));
        let is_confirmed = answer.at >= since.after(self.settles) && answer.at > since;
        if answer.missing.is_empty() {
            self.released = None;
            return Deletes::Nothing;
        }
        if !self.exceeds(answer) {
            return if is_confirmed { Deletes::Allowed } else { Deletes::Unconfirmed };
        }
        let held = HeldDigest::of(answer.missing);
        if self.released != Some(held) {
            // Another set needs another look.
            self.released = None;
            return Deletes::Held(held);
        }
        if is_confirmed {
            self.released = None;
            return Deletes::Allowed;
        }
        Deletes::Unconfirmed
    }

    fn exceeds(&self, answer: Answer<'_>) -> bool {
        let count = answer.missing.len();
        answer.records == 0 || (count > self.limit.at_least && count * 100 > answer.present * self.limit.percent)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn names(numbers: impl IntoIterator<Item = usize>) -> Vec<ResourceName> {
        numbers.into_iter().map(|n| ResourceName::new(&format!("r{n:03}")).expect("a name")).collect()
    }

    const SETTLES: Duration = Duration::from_secs(2);

    fn guard() -> DeleteGuard {
        DeleteGuard::new(DeleteLimit::default(), SETTLES)
    }

    fn second(n: u64) -> Moment {
        Moment(Duration::from_secs(n))
    }

    fn judged(guard: &mut DeleteGuard, at: u64, content: u64, (records, present): (usize, usize), missing: &[ResourceName]) -> Deletes {
        guard.judge(Answer { content: Content(content), at: second(at), records, present, missing })
    }

    #[test]
    fn what_is_missing_twice_goes_within_the_limit_and_is_held_beyond_it() {
        // present, missing, records, whether it is held
        let cases = [
            (20, 5, 15, false),
            (20, 6, 14, true),
            (100, 10, 90, false),
            (100, 11, 89, true),
            (109, 11, 98, true),
            (110, 11, 99, false),
            (3, 3, 1, false),
            // Empty is held, however little there is.
            (1, 1, 0, true),
            (20, 20, 0, true),
        ];
        for (present, count, records, is_held) in cases {
            let missing = names(0..count);
            let mut guard = guard();
            let first = judged(&mut guard, 1, 1, (records, present), &missing);
            let second = judged(&mut guard, 3, 1, (records, present), &missing);
            let held = Deletes::Held(HeldDigest::of(&missing));
            let expected = if is_held { (held, held) } else { (Deletes::Unconfirmed, Deletes::Allowed) };
            assert_eq!((first, second), expected, "{count} of {present}");
        }
    }

    #[test]
    fn only_what_is_said_for_a_while_deletes() {
        let missing = names(0..2);
        let mut guard = guard();
        assert_eq!(judged(&mut guard, 1, 1, (8, 10), &missing), Deletes::Unconfirmed);
        // A file that is being copied says something else each time.
        assert_eq!(judged(&mut guard, 3, 2, (9, 10), &missing), Deletes::Unconfirmed);
        guard.incomplete();
        assert_eq!(judged(&mut guard, 5, 2, (9, 10), &missing), Deletes::Unconfirmed);
        // Read again at once, by a person who asks for it, it confirms nothing.
        assert_eq!(judged(&mut guard, 5, 2, (9, 10), &missing), Deletes::Unconfirmed);
        assert_eq!(judged(&mut guard, 6, 2, (9, 10), &missing), Deletes::Unconfirmed);
        assert_eq!(judged(&mut guard, 7, 2, (9, 10), &missing), Deletes::Allowed);
    }

    #[test]
    fn a_release_is_for_one_set_and_one_time() {
        let (missing, other) = (names(0..9), names(1..10));
        let held = HeldDigest::of(&missing);
        let mut guard = guard();
        assert_eq!(judged(&mut guard, 1, 1, (1, 10), &missing), Deletes::Held(held));
        guard.release(held);
        assert_eq!(judged(&mut guard, 3, 1, (1, 10), &missing), Deletes::Allowed);
        assert_eq!(judged(&mut guard, 5, 1, (1, 10), &missing), Deletes::Held(held));
        guard.release(held);
        assert_eq!(judged(&mut guard, 7, 2, (1, 10), &other), Deletes::Held(HeldDigest::of(&other)));
        assert_eq!(judged(&mut guard, 9, 1, (1, 10), &missing), Deletes::Held(held));
        // Who was told that the source is failing has released nothing.
        guard.release(held);
        guard.incomplete();
        assert_eq!(judged(&mut guard, 11, 1, (1, 10), &missing), Deletes::Held(held));
        assert_eq!(judged(&mut guard, 13, 1, (1, 10), &missing), Deletes::Held(held));
        assert_eq!(held.to_string().parse(), Ok(held));
    }

    /// What comes from a source, turn by turn.
    #[derive(Clone, Debug)]
    enum Turn {
        Complete(BTreeSet<usize>),
        Incomplete,
        NewLeader,
        /// A person releases whatever is held.
        Release,
    }

    fn any_turn() -> impl Strategy<Value = Turn> {
        prop_oneof![
            6 => proptest::collection::btree_set(0..12_usize, 0..12).prop_map(Turn::Complete),
            2 => Just(Turn::Complete((0..12).collect())),
            2 => Just(Turn::Complete(BTreeSet::new())),
            1 => Just(Turn::Incomplete),
            1 => Just(Turn::NewLeader),
            1 => Just(Turn::Release),
        ]
    }

    /// The turns, with each answer coming once or twice.
    fn any_course() -> impl Strategy<Value = Vec<Turn>> {
        proptest::collection::vec((any_turn(), 1..3_usize), 1..40)
            .prop_map(|turns| turns.into_iter().flat_map(|(turn, times)| std::iter::repeat_n(turn, times)).collect())
    }

    proptest! {
        #[test]
        fn nothing_goes_that_either_of_the_last_two_complete_answers_has(course in any_course()) {
            let limit = DeleteLimit { percent: 10, at_least: 2 };
            let mut guard = DeleteGuard::new(limit, SETTLES);
            let mut at = 0;
            let mut stands: BTreeSet<usize> = (0..12).collect();
            let mut before: Option<BTreeSet<usize>> = None;
            let (mut held, mut is_released) = (None, false);
            for turn in course {
                match turn {
                    Turn::Incomplete => {
                        guard.incomplete();
                        is_released = false;
                    }
                    Turn::NewLeader => (guard, held, is_released) = (DeleteGuard::new(limit, SETTLES), None, false),
                    Turn::Release => {
                        if let Some(held) = held {
                            guard.release(held);
                            is_released = true;
                        }
                    }
                    Turn::Complete(records) => {
                        let gone: Vec<usize> = stands.difference(&records).copied().collect();
                        let missing = names(gone.iter().copied());
                        let content = Content::of(format!("{records:?}").as_bytes());
                        at += 2;
                        let answer = Answer { content, at: second(at), records: records.len(), present: stands.len(), missing: &missing };
                        match guard.judge(answer) {
                            Deletes::Allowed => {
                                prop_assert!(before.as_ref().is_some_and(|before| gone.iter().all(|n| !before.contains(n))));
                                let is_much = records.is_empty() || (gone.len() > 2 && gone.len() * 100 > stands.len() * 10);
                                prop_assert!(!is_much || is_released, "{gone:?} went without a release");
                                stands = stands.intersection(&records).copied().collect();
                                (held, is_released) = (None, false);
                            }
                            Deletes::Held(digest) => held = Some(digest),
                            Deletes::Nothing => (held, is_released) = (None, false),
                            Deletes::Unconfirmed => {}
                        }
                        stands.extend(&records);
                        before = Some(records);
                    }
                }
            }
        }
    }
}

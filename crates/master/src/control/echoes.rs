//! What the leader has committed and its watch has not brought yet. A commit is applied to the state when it is answered, with its true revision;
//! its echo in the watch, and whatever older change of the same keys comes before that, must not be applied over it.
//!
//! Under master::control. It also says by how much the watch lags, and has what a list may lack that was begun before.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use evenkeel_model::{Moment, Revision, Write};
use rustc_hash::FxHashMap;
use tokio::time::Instant;

/// See the module. Keys are as etcd spells them.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    /// Keys whose state is ahead of the watch, with the revision that it is of.
    ahead: FxHashMap<Vec<u8>, Revision>,
    /// The commits of which no echo has come.
    commits: BTreeMap<Revision, Commit>,
    /// The keys that were only found to be as they were at a revision.
    found: BTreeMap<Revision, Vec<Vec<u8>>>,
    marks: Marks,
}

#[derive(Debug)]
struct Commit {
    keys: Vec<Vec<u8>>,
    writes: Vec<Write>,
    at: Moment,
}

impl Echoes {
    /// These keys were found to be as they were at this revision, by the answer to a transaction.
    pub(super) fn found(&mut self, keys: Vec<Vec<u8>>, revision: Revision) {
        self.advance(&keys, revision);
        self.found.entry(revision).or_default().extend(keys);
    }

    /// These keys were written at this revision, which is beyond what the watch has brought.
    pub(super) fn committed(&mut self, keys: Vec<Vec<u8>>, writes: Vec<Write>, revision: Revision, now: Moment) {
        self.advance(&keys, revision);
        let commit = self.commits.entry(revision).or_insert_with(|| Commit { keys: Vec::new(), writes: Vec::new(), at: now });
        commit.keys.extend(keys);
        commit.writes.extend(writes);
    }

    fn advance(&mut self, keys: &[Vec<u8>], revision: Revision) {
        for key in keys {
            let ahead = self.ahead.entry(key.clone()).or_default();
            *ahead = revision.max(*ahead);
        }
    }

    fn fall_back(&mut self, keys: &[Vec<u8>], revision: Revision) {
        for key in keys {
            if self.ahead.get(key) == Some(&revision) {
                self.ahead.remove(key);
            }
        }
    }

    /// The state is ahead of this change, or has it already.
    pub(super) fn has(&self, key: &[u8], revision: Revision) -> bool {
        self.ahead.get(key).is_some_and(|ahead| revision <= *ahead)
    }

    /// The watch has brought everything up to this revision.
    pub(super) fn followed(&mut self, revision: Revision) {
        let next = Revision(revision.0 + 1);
        let commits = self.commits.split_off(&next);
        for (at, commit) in std::mem::replace(&mut self.commits, commits) {
            self.fall_back(&commit.keys, at);
        }
        let found = self.found.split_off(&next);
        for (at, keys) in std::mem::replace(&mut self.found, found) {
            self.fall_back(&keys, at);
        }
    }

    /// The state is a list of this revision: what was committed after it is to be applied again, oldest first. What was only found is found again, or
    /// comes with the watch.
    pub(super) fn beyond(&mut self, revision: Revision) -> impl Iterator<Item = (Revision, &Write)> {
        self.followed(revision);
        self.found.clear();
        self.ahead.clear();
        for (at, commit) in &self.commits {
            self.ahead.extend(commit.keys.iter().map(|key| (key.clone(), *at)));
        }
        self.commits.iter().flat_map(|(revision, commit)| commit.writes.iter().map(|write| (*revision, write)))
    }

    /// Since when the oldest commit waits for its echo; none: none does.
    pub(super) fn waits_since(&self) -> Option<Moment> {
        // What was committed first was answered first, but for what was in flight beside it.
        self.commits.first_key_value().map(|(_, commit)| commit.at)
    }

    /// How many commits have no echo yet.
    pub(super) fn len(&self) -> usize {
        self.commits.len()
    }

    /// Notes that etcd has come to this revision.
    pub(super) fn mark(&mut self, revision: Revision, now: Instant) {
        self.marks.note(revision, now);
    }

    /// A list that was begun then and has this revision is of an earlier history: etcd was restored from a backup.
    pub(super) fn went_back(&self, revision: Revision, begun: Instant) -> bool {
        self.marks.least_at(begun).is_some_and(|least| revision < least)
    }
}

/// Which revision etcd had come to at which time, at the least.
#[derive(Debug, Default)]
struct Marks(VecDeque<(Instant, Revision)>);

/// The resolution of the marks, and how many there are: they reach back beyond the longest list.
const MARK_EVERY: Duration = Duration::from_millis(100);
const MARKS: usize = 600;

impl Marks {
    fn note(&mut self, revision: Revision, now: Instant) {
        if self.0.back().is_none_or(|(last, _)| now.duration_since(*last) >= MARK_EVERY) {
            if self.0.len() == MARKS {
                self.0.pop_front();
            }
            let highest = self.0.back().map_or(revision, |(_, highest)| revision.max(*highest));
            self.0.push_back((now, highest));
        }
    }

    fn least_at(&self, time: Instant) -> Option<Revision> {
        let after = self.0.partition_point(|(at, _)| *at < time);
        after.checked_sub(1).and_then(|last| self.0.get(last)).map(|(_, revision)| *revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"/resources/a";
    const OTHER: &[u8] = b"/resources/b";

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn ahead_at(revision: i64) -> Echoes {
        let mut echoes = Echoes::default();
        echoes.committed(vec![KEY.to_vec()], Vec::new(), Revision(revision), at(1));
        echoes
    }

    #[test]
    fn neither_an_echo_nor_an_older_change_is_applied_over_a_commit() {
        let mut echoes = ahead_at(9);
        assert!(echoes.has(KEY, Revision(7)) && echoes.has(KEY, Revision(9)));
        assert!(!echoes.has(KEY, Revision(10)) && !echoes.has(OTHER, Revision(7)));
        // The watch may bring other keys of that time first.
        echoes.followed(Revision(8));
        assert!(echoes.has(KEY, Revision(9)));
        echoes.followed(Revision(9));
        assert!(!echoes.has(KEY, Revision(9)));
    }

    #[test]
    fn of_two_commits_of_a_key_the_later_one_counts_until_its_own_echo() {
        let mut echoes = ahead_at(9);
        echoes.committed(vec![KEY.to_vec()], Vec::new(), Revision(12), at(2));
        echoes.followed(Revision(9));
        assert!(echoes.has(KEY, Revision(12)));
        echoes.found(vec![KEY.to_vec()], Revision(10));
        assert!(echoes.has(KEY, Revision(12)), "what was found before is no news");
        echoes.followed(Revision(12));
        assert!(echoes.ahead.is_empty() && echoes.found.is_empty() && echoes.commits.is_empty());
    }

    #[test]
    fn the_lag_is_that_of_the_oldest_commit_without_its_echo() {
        let mut echoes = ahead_at(9);
        echoes.committed(vec![OTHER.to_vec()], Vec::new(), Revision(12), at(5));
        echoes.found(vec![b"/workers/w".to_vec()], Revision(20));
        assert_eq!(echoes.waits_since(), Some(at(1)));
        echoes.followed(Revision(11));
        assert_eq!(echoes.waits_since(), Some(at(5)));
        echoes.followed(Revision(12));
        assert_eq!(echoes.waits_since(), None, "what was only found has no echo");
    }

    #[test]
    fn a_list_lacks_what_was_committed_after_it() {
        let mut echoes = Echoes::default();
        let write = |name: &str| Write::delete(evenkeel_model::Key::Resource(evenkeel_model::ResourceName::new(name).expect("name")));
        echoes.committed(vec![KEY.to_vec()], vec![write("a")], Revision(9), at(1));
        echoes.committed(vec![OTHER.to_vec()], vec![write("b")], Revision(12), at(1));
        let lacks: Vec<(Revision, Write)> = echoes.beyond(Revision(9)).map(|(at, write)| (at, write.clone())).collect();
        assert_eq!(lacks, [(Revision(12), write("b"))]);
        // A key that was found gone after the list was read is there in it: the watch has to bring its end.
        echoes.found(vec![b"/workers/w".to_vec()], Revision(20));
        assert_eq!(echoes.beyond(Revision(15)).count(), 0);
        assert!(!echoes.has(b"/workers/w", Revision(18)));
    }

    #[test]
    fn a_list_that_was_begun_after_a_commit_holds_it_or_is_of_another_history() {
        let start = Instant::now();
        let mut echoes = Echoes::default();
        let later = |millis| start + Duration::from_millis(millis);
        echoes.mark(Revision(9), start);
        echoes.mark(Revision(20), later(200));
        assert!(echoes.went_back(Revision(8), later(100)) && !echoes.went_back(Revision(9), later(100)));
        assert!(!echoes.went_back(Revision(8), start), "it may have been read before the commit");
        assert!(echoes.went_back(Revision(19), later(300)));
    }
}

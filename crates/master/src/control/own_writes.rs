//! Which keys the leader has written and not yet seen come back. The leader's Cluster is ahead of the watch by its own writes; an event
//! that is older than the leader's own write to the same key must not undo it.

use std::cmp::Ordering;

use evenkeel_model::Revision;
use rustc_hash::FxHashMap;

/// See the module. Keys are as etcd spells them.
#[derive(Debug, Default)]
pub(super) struct OwnWrites {
    /// Decided, and not yet known to be written.
    pending: FxHashMap<Vec<u8>, Latest>,
    /// Written, and not yet seen in the watch.
    written: FxHashMap<Vec<u8>, Revision>,
}

/// The latest write to a key that is under way.
#[derive(Debug)]
struct Latest {
    token: u64,
    /// The highest revision of the key that the watch has shown in the meantime.
    seen: Revision,
}

/// What an event of the watch is to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// It tells something new.
    News,
    /// It is the leader's own write, or something older than it; or it is not known yet whether it is.
    State,
}

/// What it means for the Cluster that a write is known to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is what stands.
    Latest,
    /// A later write to the same key is under way, and the Cluster shows that one.
    Superseded,
    /// Somebody else has written the key after it, and the watch has shown that already, when it was not known to be news.
    Overtaken,
}

impl OwnWrites {
    /// A write to this key has been decided.
    pub(super) fn decided(&mut self, key: &[u8], token: u64) {
        let latest = self.pending.entry(key.to_vec()).or_insert(Latest { token, seen: Revision::default() });
        latest.token = token;
    }

    /// The write with this token is written.
    pub(super) fn written(&mut self, key: &[u8], token: u64, revision: Revision) -> Written {
        let Some(latest) = self.pending.get(key).filter(|latest| latest.token == token) else { return Written::Superseded };
        let seen = latest.seen;
        self.pending.remove(key);
        match seen.cmp(&revision) {
            Ordering::Less => {
                self.written.insert(key.to_vec(), revision);
                Written::Latest
            }
            Ordering::Equal => Written::Latest,
            Ordering::Greater => Written::Overtaken,
        }
    }

    /// An event has come by the watch.
    pub(super) fn seen(&mut self, key: &[u8], revision: Revision) -> Sight {
        if let Some(latest) = self.pending.get_mut(key) {
            latest.seen = latest.seen.max(revision);
            return Sight::State;
        }
        let own = self.written.get(key).copied();
        if own.is_some_and(|own| own <= revision) {
            self.written.remove(key);
        }
        if own.is_some_and(|own| revision <= own) { Sight::State } else { Sight::News }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"/resources/a";

    #[test]
    fn an_older_event_does_not_undo_an_own_write() {
        let mut own = OwnWrites::default();
        own.decided(KEY, 1);
        assert_eq!(own.seen(KEY, Revision(5)), Sight::State);
        assert_eq!(own.written(KEY, 1, Revision(9)), Written::Latest);
        assert_eq!(own.seen(KEY, Revision(7)), Sight::State);
        assert_eq!(own.seen(KEY, Revision(9)), Sight::State);
        assert_eq!(own.seen(KEY, Revision(10)), Sight::News);
        assert_eq!(own.seen(b"/resources/b", Revision(3)), Sight::News);
    }

    #[test]
    fn a_write_by_another_hand_after_the_own_one_is_news() {
        let mut own = OwnWrites::default();
        own.decided(KEY, 1);
        assert_eq!(own.written(KEY, 1, Revision(9)), Written::Latest);
        assert_eq!(own.seen(KEY, Revision(12)), Sight::News);
        assert_eq!(own.seen(KEY, Revision(13)), Sight::News);
    }

    #[test]
    fn of_two_writes_to_a_key_the_later_one_counts() {
        let mut own = OwnWrites::default();
        own.decided(KEY, 1);
        own.decided(KEY, 2);
        assert_eq!(own.written(KEY, 1, Revision(9)), Written::Superseded);
        assert_eq!(own.seen(KEY, Revision(9)), Sight::State);
        assert_eq!(own.written(KEY, 2, Revision(11)), Written::Latest);
        assert_eq!(own.seen(KEY, Revision(11)), Sight::State);
        assert_eq!(own.seen(KEY, Revision(12)), Sight::News);
    }

    #[test]
    fn a_write_by_another_hand_that_is_seen_before_the_own_one_is_known_to_be_written_is_not_lost() {
        let mut own = OwnWrites::default();
        own.decided(KEY, 1);
        assert_eq!(own.seen(KEY, Revision(9)), Sight::State);
        assert_eq!(own.seen(KEY, Revision(10)), Sight::State);
        assert_eq!(own.written(KEY, 1, Revision(9)), Written::Overtaken);
        assert_eq!(own.seen(KEY, Revision(11)), Sight::News);
    }

    #[test]
    fn nothing_is_kept_of_what_has_come_back() {
        let mut own = OwnWrites::default();
        own.decided(KEY, 1);
        assert_eq!(own.seen(KEY, Revision(9)), Sight::State);
        assert_eq!(own.written(KEY, 1, Revision(9)), Written::Latest);
        own.decided(b"/resources/b", 2);
        assert_eq!(own.written(b"/resources/b", 2, Revision(10)), Written::Latest);
        assert_eq!(own.seen(b"/resources/b", Revision(10)), Sight::State);
        assert!(own.pending.is_empty() && own.written.is_empty());
    }
}

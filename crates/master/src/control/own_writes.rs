//! Which keys the leader has written and not yet seen come back. The leader's Cluster is ahead of the watch by its own writes; an event
//! that is older than the leader's own write to the same key must not undo it.

use evenkeel_model::Revision;
use rustc_hash::FxHashMap;

/// See the module. Keys are as etcd spells them.
#[derive(Debug, Default)]
pub(super) struct OwnWrites {
    /// Decided, and not yet known to be written: the token of the latest write to the key.
    pending: FxHashMap<Vec<u8>, u64>,
    /// Written, and not yet seen in the watch.
    written: FxHashMap<Vec<u8>, Revision>,
}

/// What an event of the watch is to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// It tells something new.
    News,
    /// It is the leader's own write, which the Cluster has taken in already, or something older than it.
    Known,
}

impl OwnWrites {
    /// A write to this key has been decided.
    pub(super) fn decided(&mut self, key: &[u8], token: u64) {
        self.pending.insert(key.to_vec(), token);
    }

    /// The write with this token is written. False: a later write to the same key is under way, and the Cluster shows that one.
    pub(super) fn written(&mut self, key: &[u8], token: u64, revision: Revision) -> bool {
        if self.pending.get(key) != Some(&token) {
            return false;
        }
        self.pending.remove(key);
        self.written.insert(key.to_vec(), revision);
        true
    }

    /// An event has come by the watch.
    pub(super) fn seen(&mut self, key: &[u8], revision: Revision) -> Sight {
        let own = self.written.get(key).copied();
        if own.is_some_and(|own| own <= revision) {
            self.written.remove(key);
        }
        let is_known = self.pending.contains_key(key) || own.is_some_and(|own| revision <= own);
        if is_known { Sight::Known } else { Sight::News }
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
        assert_eq!(own.seen(KEY, Revision(5)), Sight::Known);
        assert!(own.written(KEY, 1, Revision(9)));
        assert_eq!(own.seen(KEY, Revision(7)), Sight::Known);
        assert_eq!(own.seen(KEY, Revision(9)), Sight::Known);
        assert_eq!(own.seen(KEY, Revision(10)), Sight::News);
        assert_eq!(own.seen(b"/resources/b", Revision(3)), Sight::News);
    }

    #[test]
    fn a_write_by_another_hand_after_the_own_one_is_news() {
        let mut own = OwnWrites::default();
        own.decided(KEY, 1);
        assert!(own.written(KEY, 1, Revision(9)));
        assert_eq!(own.seen(KEY, Revision(12)), Sight::News);
        assert_eq!(own.seen(KEY, Revision(13)), Sight::News);
    }

    #[test]
    fn of_two_writes_to_a_key_the_later_one_counts() {
        let mut own = OwnWrites::default();
        own.decided(KEY, 1);
        own.decided(KEY, 2);
        assert!(!own.written(KEY, 1, Revision(9)));
        assert_eq!(own.seen(KEY, Revision(9)), Sight::Known);
        assert!(own.written(KEY, 2, Revision(11)));
        assert_eq!(own.seen(KEY, Revision(11)), Sight::Known);
        assert_eq!(own.seen(KEY, Revision(12)), Sight::News);
    }
}

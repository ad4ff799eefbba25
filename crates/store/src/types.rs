//! Plain values that stand for what etcd stores and does: keys, ranges, transactions and their answers.
//!
//! In the wheel they are what watch and commit exchange with the rest. Nothing here may do IO or mention the etcd client, so that a
//! simulator can put a model of etcd behind the same types.

use evenkeel_model::Revision;

/// A key with its value, as etcd stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that created the key; a key that is deleted and put again gets a new one.
    pub created: Revision,
    /// The revision that last wrote the key.
    pub modified: Revision,
    /// The lease that the key is bound to; zero: none.
    pub lease: i64,
}

/// A range of keys, in etcd's own convention.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Vec<u8>,
    /// The first key after the range. Empty: the range is the one key `start`. A single zero byte: the range has no upper end.
    pub end: Vec<u8>,
}

impl KeyRange {
    /// All keys that begin with `prefix`; an empty prefix means all keys.
    #[must_use]
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start: Vec<u8> = prefix.into();
        let mut end = start.clone();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end = vec![0],
        }
        Self { start: if start.is_empty() { vec![0] } else { start }, end }
    }

    /// One key.
    #[must_use]
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self { start: key.into(), end: Vec::new() }
    }

    /// All keys from `start` on that are less than `end`.
    #[must_use]
    pub fn between(start: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self { start: start.into(), end: end.into() }
    }

    /// Whether the range has this key.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end.as_slice() {
            [] => key == self.start,
            [0] => key >= self.start.as_slice(),
            end => key >= self.start.as_slice() && key < end,
        }
    }
}

/// A condition of a [`Txn`]. A key that does not exist has the create and the mod revision zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    /// The key's create revision is this one.
    CreateRevision {
        /// The key.
        key: Vec<u8>,
        /// The revision that it must have.
        equals: Revision,
    },
    /// The key's mod revision is this one.
    ModRevision {
        /// The key.
        key: Vec<u8>,
        /// The revision that it must have.
        equals: Revision,
    },
}

impl Compare {
    /// The key does not exist.
    #[must_use]
    pub fn absent(key: impl Into<Vec<u8>>) -> Self {
        Self::CreateRevision { key: key.into(), equals: Revision(0) }
    }

    /// The key that is compared.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::CreateRevision { key, .. } | Self::ModRevision { key, .. } => key,
        }
    }

    /// The revision that the key must have.
    #[must_use]
    pub fn equals(&self) -> Revision {
        match self {
            Self::CreateRevision { equals, .. } | Self::ModRevision { equals, .. } => *equals,
        }
    }

    /// Whether the condition holds for what stands under the key.
    #[must_use]
    pub fn holds(&self, found: Option<&Kv>) -> bool {
        match self {
            Self::CreateRevision { equals, .. } => found.map_or(Revision(0), |kv| kv.created) == *equals,
            Self::ModRevision { equals, .. } => found.map_or(Revision(0), |kv| kv.modified) == *equals,
        }
    }
}

/// One operation of a [`Txn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
        /// The lease that the key is bound to from now on; zero: none.
        lease: i64,
    },
    /// Deletes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// Deletes every key of a range.
    DeleteRange {
        /// The range.
        range: KeyRange,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: Vec<u8>,
    },
    /// Reads every key of a range, in order.
    Range {
        /// The range.
        range: KeyRange,
    },
}

impl Op {
    /// Writes a key that is bound to no lease.
    #[must_use]
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: 0 }
    }

    /// The one key that it writes or reads; of a range its first.
    #[must_use]
    pub fn first_key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Get { key } => key,
            Self::DeleteRange { range } | Self::Range { range } => &range.start,
        }
    }

    /// Whether it may change something.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. } | Self::DeleteRange { .. })
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Reads a key.
    #[must_use]
    pub fn get(key: impl Into<Vec<u8>>) -> Self {
        Self::Get { key: key.into() }
    }
}

/// A transaction: if all compares hold, `then` is done, else `otherwise`. etcd takes at most 128 compares, 128 operations in each
/// branch and 1.5 MiB, and no key that a branch puts twice, or puts and deletes. Without space it refuses a transaction that has a put in
/// either branch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; none: they hold.
    pub compares: Vec<Compare>,
    /// What is done when all conditions hold.
    pub then: Vec<Op>,
    /// What is done when one of them does not.
    pub otherwise: Vec<Op>,
}

/// The answer to a [`Txn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnReply {
    /// Whether all compares held.
    pub succeeded: bool,
    /// The store's revision after the transaction; if it wrote something, the revision of its writes.
    pub revision: Revision,
    /// What each [`Op::Get`] and [`Op::Range`] of the branch that was done has found, in their order.
    pub reads: Vec<Vec<Kv>>,
}

/// One key as it stands at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// What stands under the key; none: the key does not exist.
    pub kv: Option<Kv>,
    /// The store's revision when it was read.
    pub revision: Revision,
}

/// A whole range as it stands at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The keys, in order.
    pub kvs: Vec<Kv>,
    /// The one revision at which all of them were read.
    pub revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_becomes_a_range() {
        let cases: [(&[u8], &[u8], &[u8]); 5] = [
            (b"/a/", b"/a/", b"/a0"),
            (b"", b"\0", b"\0"),
            (b"a\xff", b"a\xff", b"b"),
            (b"\xff\xff", b"\xff\xff", b"\0"),
            (b"a\xff\xff", b"a\xff\xff", b"b"),
        ];
        for (prefix, start, end) in cases {
            assert_eq!(KeyRange::prefix(prefix), KeyRange { start: start.into(), end: end.into() }, "{prefix:?}");
        }
    }

    #[test]
    fn a_range_knows_its_keys() {
        let prefix = KeyRange::prefix("/a/");
        assert!(prefix.contains(b"/a/") && prefix.contains(b"/a/\xff") && !prefix.contains(b"/a0") && !prefix.contains(b"/a"));
        assert!(KeyRange::prefix("").contains(b"x") && KeyRange::prefix([0xff]).contains(b"\xff\xff"));
        let one = KeyRange::key("/a");
        assert!(one.contains(b"/a") && !one.contains(b"/a/"));
        let some = KeyRange::between("b", "d");
        assert!(some.contains(b"b") && some.contains(b"c") && !some.contains(b"d") && !some.contains(b"a"));
    }

    #[test]
    fn a_compare_sees_a_missing_key_as_revision_zero() {
        let kv = Kv { key: b"k".to_vec(), value: vec![], created: Revision(3), modified: Revision(5), lease: 0 };
        let created = |equals| Compare::CreateRevision { key: b"k".to_vec(), equals: Revision(equals) };
        let modified = |equals| Compare::ModRevision { key: b"k".to_vec(), equals: Revision(equals) };
        assert!(Compare::absent("k").holds(None) && !Compare::absent("k").holds(Some(&kv)));
        assert!(created(3).holds(Some(&kv)) && !created(3).holds(None) && !created(5).holds(Some(&kv)));
        assert!(modified(5).holds(Some(&kv)) && modified(0).holds(None) && !modified(3).holds(Some(&kv)));
    }
}

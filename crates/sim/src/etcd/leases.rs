//! PURE: leases, what is attached to them, and when they end. Time is an argument: how long the world has existed.
//!
//! In the wheel it is a part of the model of etcd: what keeps sessions and candidacies. Nothing here waits; who revokes an expired lease,
//! and when, is decided elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{refusal::Refusal, store::Store};

/// The shortest time to live, with etcd's default election timeout.
const MIN_TTL: i64 = 2;
const MAX_TTL: i64 = 9_000_000_000;

/// All leases, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    leases: BTreeMap<i64, Lease>,
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    expires: Duration,
    keys: BTreeSet<Vec<u8>>,
}

/// What came of extending a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It was extended to its full time to live.
    Extended,
    /// It has expired but is not revoked yet: etcd answers when it is.
    Expired,
    /// There is no such lease.
    NotFound,
}

impl Leases {
    pub(super) fn ids(&self) -> impl Iterator<Item = i64> {
        self.leases.keys().copied()
    }

    pub(super) fn exists(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }

    pub(super) fn attach(&mut self, lease: i64, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.insert(key.to_vec());
        }
    }

    pub(super) fn detach(&mut self, lease: i64, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }

    pub(super) fn remove(&mut self, lease: i64) -> Option<BTreeSet<Vec<u8>>> {
        self.leases.remove(&lease).map(|lease| lease.keys)
    }
}

impl Store {
    /// Grants a lease under an id that is not in use, and returns its time to live.
    ///
    /// # Errors
    /// etcd has no space, or the time is longer than it takes.
    pub fn grant(&mut self, lease: i64, seconds: i64, now: Duration) -> Result<Duration, Refusal> {
        if self.has_no_space() {
            return Err(Refusal::NoSpace);
        }
        if seconds > MAX_TTL {
            return Err(Refusal::TtlTooLarge);
        }
        let ttl = Duration::from_secs(seconds.max(MIN_TTL).unsigned_abs());
        self.leases.leases.insert(lease, Lease { ttl, expires: now + ttl, keys: BTreeSet::new() });
        Ok(ttl)
    }

    /// Extends a lease.
    pub fn renew(&mut self, lease: i64, now: Duration) -> Renewal {
        match self.leases.leases.get_mut(&lease) {
            None => Renewal::NotFound,
            Some(lease) if lease.expires <= now => Renewal::Expired,
            Some(lease) => {
                lease.expires = now + lease.ttl;
                Renewal::Extended
            }
        }
    }

    /// When a lease expires, if it is not extended.
    #[must_use]
    pub fn expires(&self, lease: i64) -> Option<Duration> {
        self.leases.leases.get(&lease).map(|lease| lease.expires)
    }

    /// How long a lease lasts, as etcd tells it: in whole seconds, rounded towards zero. None: there is none, or it expired a second ago.
    #[must_use]
    pub fn time_to_live(&self, lease: i64, now: Duration) -> Option<Duration> {
        let expires = self.expires(lease)?;
        let left = expires.saturating_sub(now).as_secs();
        (now < expires + Duration::from_secs(1)).then_some(Duration::from_secs(left))
    }

    /// The keys that are attached to a lease, in order.
    pub fn attached(&self, lease: i64) -> impl Iterator<Item = &[u8]> {
        self.leases.leases.get(&lease).into_iter().flat_map(|lease| &lease.keys).map(Vec::as_slice)
    }

    /// A member has become etcd's leader: every lease starts anew, and has its election timeout on top.
    pub fn extend_all(&mut self, extra: Duration, now: Duration) {
        for lease in self.leases.leases.values_mut() {
            lease.expires = now + lease.ttl + extra;
        }
    }
}

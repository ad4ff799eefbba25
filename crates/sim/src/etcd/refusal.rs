//! Why etcd refuses a request, and what that looks like to a caller.
//!
//! In the wheel it is the part of the model of etcd that faces `store::Error`. The texts are etcd's own.

use evenkeel_store::{Error, Revision};

/// What etcd has understood and will not do; nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The revision was compacted away.
    Compacted,
    /// The revision is still to come.
    FutureRevision,
    /// The database is full.
    NoSpace,
    /// More requests are under way than the members can work off; this one was not taken on.
    TooManyRequests,
    /// There is no such lease.
    LeaseNotFound,
    /// A lease for longer than etcd keeps any.
    TtlTooLarge,
    /// More operations or compares than a transaction takes.
    TooManyOperations,
    /// More bytes than a request takes.
    TooLarge,
    /// A key without a byte.
    EmptyKey,
    /// A key is put twice in a transaction, or put and deleted.
    DuplicateKey,
}

impl Refusal {
    /// As the store sorts what a member answers.
    #[must_use]
    pub fn error(self, endpoint: &str) -> Error {
        let (code, message) = match self {
            Self::Compacted => return Error::Compacted { revision: Revision(0) },
            Self::NoSpace => return Error::NoSpace { endpoint: endpoint.into() },
            Self::TooManyRequests => return Error::Overloaded { endpoint: endpoint.into() },
            Self::LeaseNotFound => return Error::LeaseNotFound,
            Self::FutureRevision => ("OutOfRange", "etcdserver: mvcc: required revision is a future revision"),
            Self::TtlTooLarge => ("OutOfRange", "etcdserver: too large lease TTL"),
            Self::TooManyOperations => ("InvalidArgument", "etcdserver: too many operations in txn request"),
            Self::TooLarge => ("InvalidArgument", "etcdserver: request is too large"),
            Self::EmptyKey => ("InvalidArgument", "etcdserver: key is not provided"),
            Self::DuplicateKey => ("InvalidArgument", "etcdserver: duplicate key given in txn request"),
        };
        Error::Refused { endpoint: endpoint.into(), code: code.into(), message: message.into() }
    }
}

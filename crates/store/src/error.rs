//! What can go wrong between us and etcd, sorted by what a caller can do about it.
//!
//! In the wheel this is the boundary's one error type. Nothing outside of this file may look at a gRPC status or at its text.

use std::{error::Error as StdError, time::Duration};

use evenkeel_model::Revision;
use tonic::{Code, Status};

/// A call that failed. [`Error::outcome_unknown`] says whether it may have had its effect all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The member could not be reached, the connection broke, or the member has no leader at the moment.
    #[error("etcd at {endpoint} is not available: {reason}; is it running, and does --etcd name it?")]
    Unavailable {
        /// The member's URL.
        endpoint: String,
        /// What the transport or etcd said.
        reason: String,
        /// Whether the request may have left: false only if no connection was made.
        sent: bool,
        /// The cause.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// No answer came in time.
    #[error("etcd at {endpoint} did not answer within {} ms", after.as_millis())]
    Deadline {
        /// The member's URL.
        endpoint: String,
        /// How long the caller was ready to wait.
        after: Duration,
    },
    /// The revision that was asked for has been compacted away: list again.
    #[error("etcd has compacted its history past revision {revision}; list again")]
    Compacted {
        /// The revision that is gone.
        revision: Revision,
    },
    /// etcd's database has reached its quota: it takes no puts and grants no leases until it was compacted, defragmented and disarmed.
    #[error("etcd at {endpoint} has no space left (NOSPACE): compact and defragment it, then run etcdctl alarm disarm")]
    NoSpace {
        /// The member's URL.
        endpoint: String,
    },
    /// etcd has more requests than it can work off, and has not taken this one on: ask again, and more slowly.
    #[error("etcd at {endpoint} has too many requests to work off, and did not take this one on; ask again later")]
    Overloaded {
        /// The member's URL.
        endpoint: String,
    },
    /// etcd asks who we are: its authentication was switched on.
    #[error(
        "etcd at {endpoint} asks for authentication ({message}), and evenkeel has no credentials to give; switch it off with `etcdctl auth disable`, \
         or name another etcd with --etcd"
    )]
    Unauthenticated {
        /// The member's URL.
        endpoint: String,
        /// etcd's own words.
        message: String,
    },
    /// The lease does not exist: it has expired or was revoked.
    #[error("the lease is gone: it has expired or was revoked")]
    LeaseNotFound,
    /// etcd has understood the request and will not do it.
    #[error("etcd at {endpoint} refused the request ({code}): {message}")]
    Refused {
        /// The member's URL.
        endpoint: String,
        /// The status code's name.
        code: String,
        /// etcd's own words.
        message: String,
    },
    /// An endpoint is no URL of an etcd member.
    #[error("{given:?} is no etcd endpoint: {reason}")]
    InvalidEndpoint {
        /// What was given.
        given: String,
        /// What is wrong with it, and what is right.
        reason: String,
    },
    /// The member's version is not supported.
    #[error("etcd at {endpoint} has version {version}, which is too old: {needed} or newer is needed")]
    TooOld {
        /// The member's URL.
        endpoint: String,
        /// Its version.
        version: String,
        /// The oldest version that will do.
        needed: String,
    },
    /// etcd did not answer while the caller was ready to wait for it.
    #[error("etcd did not become ready within {} s: {last}", waited.as_secs())]
    NotReady {
        /// How long the caller was ready to wait.
        waited: Duration,
        /// The last failure.
        #[source]
        last: Box<Error>,
    },
}

impl Error {
    /// Whether the request may have been carried out, or may still be, although it failed. After such a failure of a transaction read
    /// back before deciding; and mind that a request which waits in a frozen member can take effect later.
    ///
    /// [`Error::NoSpace`] is among them: when the quota is passed while a write is being applied, etcd applies it and then answers so.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Unavailable { sent, .. } => *sent,
            Self::Deadline { .. } | Self::NoSpace { .. } => true,
            Self::Compacted { .. }
            | Self::Overloaded { .. }
            | Self::Unauthenticated { .. }
            | Self::LeaseNotFound
            | Self::Refused { .. }
            | Self::InvalidEndpoint { .. }
            | Self::TooOld { .. }
            | Self::NotReady { .. } => false,
        }
    }

    /// Whether the fault lies with the member or the way to it, so that another member may do better.
    #[must_use]
    pub fn blames_member(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Deadline { .. })
    }

    /// Whether the same request may be taken later, with nothing changed but etcd's own state.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::Deadline { .. }
            | Self::Compacted { .. }
            | Self::NoSpace { .. }
            | Self::Overloaded { .. }
            | Self::LeaseNotFound
            | Self::NotReady { .. } => true,
            Self::Unauthenticated { .. } | Self::Refused { .. } | Self::InvalidEndpoint { .. } | Self::TooOld { .. } => false,
        }
    }

    /// The failure of a stream that its member has ended.
    pub(crate) fn ended(endpoint: &str, reason: &str) -> Self {
        let reason = if reason.is_empty() { "it has ended the stream" } else { reason };
        Self::Unavailable { endpoint: endpoint.into(), reason: reason.into(), sent: true, source: None }
    }

    /// Sorts a failure of the etcd client.
    pub(crate) fn of(error: etcd_client::Error, endpoint: &str) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => Self::of_status(status, endpoint),
            etcd_client::Error::TransportError(source) => {
                let sent = !never_connected(&source);
                Self::Unavailable { endpoint: endpoint.into(), reason: deepest(&source), sent, source: Some(Box::new(source)) }
            }
            // The client says so, and only so, when the first answer of a keep-alive stream has the time to live zero.
            etcd_client::Error::LeaseKeepAliveError(_) => Self::LeaseNotFound,
            etcd_client::Error::InvalidArgs(message) => {
                Self::Refused { endpoint: endpoint.into(), code: "InvalidArgument".into(), message }
            }
            other => Self::Unavailable { endpoint: endpoint.into(), reason: other.to_string(), sent: true, source: Some(Box::new(other)) },
        }
    }

    fn of_status(status: Status, endpoint: &str) -> Self {
        if let Some(known) = known_refusal(&status, endpoint) {
            return known;
        }
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented => {
                Self::Refused { endpoint: endpoint.into(), code: format!("{:?}", status.code()), message: status.message().into() }
            }
            _ => {
                let sent = !never_connected(&status);
                Self::Unavailable { endpoint: endpoint.into(), reason: deepest(&status), sent, source: Some(Box::new(status)) }
            }
        }
    }
}

/// The refusals of etcd that mean something to us. Its codes are coarse (a full database and too many requests share one, and so do a
/// compacted and a future revision), and the status carries nothing else to tell them apart, so this one function reads the text. The
/// texts are part of etcd's client interface (`rpctypes`), the same from 3.4 to 3.6.
fn known_refusal(status: &Status, endpoint: &str) -> Option<Error> {
    match (status.code(), status.message()) {
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded") => Some(Error::NoSpace { endpoint: endpoint.into() }),
        (Code::ResourceExhausted, "etcdserver: too many requests") => Some(Error::Overloaded { endpoint: endpoint.into() }),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted") => Some(Error::Compacted { revision: Revision(0) }),
        (Code::NotFound, "etcdserver: requested lease not found") => Some(Error::LeaseNotFound),
        (Code::Unauthenticated | Code::PermissionDenied, message)
        | (
            Code::InvalidArgument,
            message @ ("etcdserver: user name is empty" | "etcdserver: authentication failed, invalid user ID or password"),
        ) => Some(Error::Unauthenticated { endpoint: endpoint.into(), message: message.into() }),
        _ => None,
    }
}

/// Whether the failure is that of making the connection, so that the request certainly was not sent.
fn never_connected(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|e| e.downcast_ref::<tonic::ConnectError>().is_some())
}

/// The innermost cause, which is the one that tells a person something ("connection refused", not "transport error").
fn deepest(error: &(dyn StdError + 'static)) -> String {
    match error.downcast_ref::<Status>() {
        Some(status) if status.source().is_none() => status.message().to_owned(),
        _ => chain(error).last().map_or_else(String::new, ToString::to_string),
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        next = this.source();
        Some(this)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> Error {
        Error::of(etcd_client::Error::GRpcStatus(Status::new(code, message)), "http://a:1")
    }

    #[test]
    fn statuses_are_sorted_by_what_a_caller_can_do() {
        assert!(matches!(of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"), Error::NoSpace { .. }));
        assert!(matches!(of(Code::ResourceExhausted, "etcdserver: too many requests"), Error::Overloaded { .. }));
        assert!(matches!(of(Code::ResourceExhausted, "grpc: received message larger than max"), Error::Refused { .. }));
        assert!(matches!(of(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"), Error::Compacted { .. }));
        assert!(matches!(of(Code::OutOfRange, "etcdserver: too large lease TTL"), Error::Refused { .. }));
        assert!(matches!(of(Code::NotFound, "etcdserver: requested lease not found"), Error::LeaseNotFound));
        assert!(matches!(of(Code::InvalidArgument, "etcdserver: user name is empty"), Error::Unauthenticated { .. }));
        assert!(matches!(of(Code::Unauthenticated, "etcdserver: invalid auth token"), Error::Unauthenticated { .. }));
        assert!(matches!(of(Code::PermissionDenied, "etcdserver: permission denied"), Error::Unauthenticated { .. }));
        assert!(matches!(of(Code::InvalidArgument, "etcdserver: key is not provided"), Error::Refused { .. }));
        assert!(matches!(of(Code::Unavailable, "etcdserver: no leader"), Error::Unavailable { sent: true, .. }));
        assert!(matches!(of(Code::Unknown, "whatever"), Error::Unavailable { sent: true, .. }));
    }

    #[test]
    fn what_etcd_will_take_later_may_pass() {
        let passing = [
            of(Code::ResourceExhausted, "etcdserver: too many requests"),
            of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            of(Code::Unavailable, "etcdserver: no leader"),
            of(Code::NotFound, "etcdserver: requested lease not found"),
            of(Code::Unknown, "whatever"),
        ];
        for error in passing {
            assert!(error.may_pass(), "{error:?}");
        }
        let lasting = [
            of(Code::InvalidArgument, "etcdserver: user name is empty"),
            of(Code::InvalidArgument, "etcdserver: key is not provided"),
            of(Code::Unimplemented, "unknown service"),
            Error::TooOld { endpoint: String::new(), version: String::new(), needed: String::new() },
        ];
        for error in lasting {
            assert!(!error.may_pass(), "{error:?}");
        }
    }

    #[test]
    fn only_what_was_surely_not_done_is_known_not_to_be_done() {
        assert!(!of(Code::InvalidArgument, "etcdserver: duplicate key given in txn request").outcome_unknown());
        let overloaded = of(Code::ResourceExhausted, "etcdserver: too many requests");
        assert!(!overloaded.outcome_unknown() && !overloaded.blames_member());
        assert!(of(Code::Unavailable, "etcdserver: leader changed").outcome_unknown());
        assert!(of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded").outcome_unknown());
        assert!(Error::Deadline { endpoint: "e".into(), after: Duration::from_secs(1) }.outcome_unknown());
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(tonic::ConnectError(Box::new(refused))));
        let error = Error::of(etcd_client::Error::GRpcStatus(status), "http://a:1");
        assert!(!error.outcome_unknown() && error.blames_member(), "{error:?}");
        assert!(error.to_string().contains("connection refused"), "{error}");
    }
}

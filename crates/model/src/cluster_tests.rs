//! What a Cluster carries over when a whole list replaces what a watch had built.

use std::time::Duration;

use super::*;
use crate::{Admission, Entry, Origin, Registration, Revision, Session};

fn id() -> WorkerId {
    WorkerId::new("w").expect("id")
}

fn at(seconds: u64) -> Moment {
    Moment(Duration::from_secs(seconds))
}

/// Session `admitted` of a worker was admitted and has been gone since then.
fn lost(admitted: i64, since: Moment) -> Cluster {
    let mut cluster = Cluster::default();
    let mut see = |revision, entry, now| cluster.apply(Change::at(Revision(revision), entry), now);
    see(admitted, Entry::Worker(id(), Some(Registration::bare(id(), "w:1".to_owned()))), Moment::default());
    let admission = Admission { session: Session(admitted), origin: Origin::default(), authority_ms: None };
    see(admitted + 1, Entry::Admission(id(), Some(admission)), Moment::default());
    see(0, Entry::Worker(id(), None), since);
    cluster
}

/// Since when the leader waits, once a list that was made at 30 has replaced `old`.
fn waits_since(old: &Cluster, admitted: i64) -> Option<Moment> {
    let mut fresh = lost(admitted, at(30));
    fresh.keep_waits_of(old);
    fresh.worker("w").and_then(|worker| worker.gone_since)
}

#[test]
fn a_wait_that_has_begun_goes_on_for_the_same_session_alone() {
    let old = lost(3, at(10));
    assert_eq!(waits_since(&old, 3), Some(at(10)), "a list restarts no wait");
    assert_eq!(waits_since(&old, 9), Some(at(30)), "another session was admitted and has gone since: it is waited for anew");
    assert_eq!(waits_since(&Cluster::default(), 3), Some(at(30)));
}

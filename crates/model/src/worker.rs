//! Workers as they register, and the leader's admission of one session.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Cluster, DriverTraits, Read, ResourceName, Seen, Session, Stored, Versioned, WorkerId, check_labels,
    limits::{MAX_ADDRESS, MAX_AUTHORITY, MAX_KINDS, MAX_WORD},
    shown::shown,
};

/// The longest authority that a leader waits for.
const LONGEST_AUTHORITY: Duration = Duration::from_secs(MAX_AUTHORITY);

/// rho: by how much the clocks of two machines may differ in rate, in percent.
pub const RATE_PERCENT: u64 = 1;

/// G: how long a leader waits, by its own clock, until an authority of this span has ended by its worker's: D(1+rho)/(1-rho).
/// DESIGN.md section 5, rule 3.
#[must_use]
pub fn wait_for(authority: Duration) -> Duration {
    let rate = u128::from(RATE_PERCENT);
    let nanoseconds = authority.as_nanos().saturating_mul(100 + rate).div_ceil(100 - rate);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// Labels of a worker or a resource.
pub type Labels = BTreeMap<String, String>;

/// The value of `/workers/<id>`: what a worker says of itself. The key is bound to the worker's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    /// The same as in the key.
    #[serde(rename = "ID")]
    pub id: WorkerId,
    /// `host:port` of its gRPC server, as others reach it.
    pub address: String,
    /// `host:port` of its HTTP server.
    #[serde(rename = "HTTP", default, skip_serializing_if = "String::is_empty")]
    pub http: String,
    /// What `require` selects on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// The largest payload that it takes; none: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// The drivers that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// How their work is held and changed, of those for which it is not strictly and by a restart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drivers: BTreeMap<String, DriverTraits>,
    /// The version of its binary.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// By which means it holds the processes of its work: `cgroup` or `processes`. Empty: it does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub containment: String,
    /// D: for how long one proof gives it authority, in milliseconds; none: for no longer than every leader waits at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_ms: Option<u64>,
    /// The guard that speaks for it.
    #[serde(flatten)]
    pub origin: Origin,
    /// The earlier session of which, as the guard attests, nothing runs any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attests: Option<Session>,
    /// It takes tasks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tasks: bool,
    /// All resources were stopped and this session runs none any more; scripts of tasks may still run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Everything was stopped and this session runs nothing more: its last write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// Why nothing is placed on this worker, whatever else is said here: it cannot be read, or it is beyond a limit. Never written.
    #[serde(skip)]
    pub refused: Option<Box<str>>,
}

impl Registration {
    /// A worker of this id at this address, of which nothing more is known.
    #[must_use]
    pub fn bare(id: WorkerId, address: String) -> Self {
        Self {
            id,
            address,
            http: String::new(),
            labels: Labels::new(),
            capacity: None,
            kinds: Vec::new(),
            drivers: BTreeMap::new(),
            version: String::new(),
            containment: String::new(),
            authority_ms: None,
            origin: Origin::default(),
            attests: None,
            tasks: false,
            leaving: false,
            released: false,
            refused: None,
        }
    }

    /// A worker of which nothing can be used but that it lives: it takes nothing.
    #[must_use]
    pub fn unusable(id: WorkerId, reason: impl Into<Box<str>>) -> Self {
        Self { capacity: Some(0), refused: Some(reason.into()), ..Self::bare(id, String::new()) }
    }

    /// What a leader acts on of what a worker says of itself: all of it within the limits. Beyond one, the worker can take nothing; its
    /// authority and that it has stopped everything still count, since to forget them would be to forget what may run.
    #[must_use]
    pub fn judged(self, id: &WorkerId) -> Self {
        let Err(reason) = self.check(id) else { return self };
        let http = if self.http.len() > MAX_ADDRESS { String::new() } else { self.http };
        let address = if self.address.len() > MAX_ADDRESS { String::new() } else { self.address };
        let (authority_ms, leaving, released) = (self.authority_ms, self.leaving, self.released);
        Self { address, http, authority_ms, leaving, released, ..Self::unusable(id.clone(), reason) }
    }

    fn check(&self, id: &WorkerId) -> Result<(), String> {
        if self.id != *id {
            return Err(format!("it is the registration of {}", self.id));
        }
        for (field, text, most) in [
            ("Address", &self.address, MAX_ADDRESS),
            ("HTTP", &self.http, MAX_ADDRESS),
            ("Version", &self.version, MAX_WORD),
            ("Containment", &self.containment, MAX_WORD),
            ("BootID", &self.origin.boot_id, MAX_WORD),
            ("Guard", &self.origin.guard, MAX_WORD),
        ] {
            if text.len() > most {
                return Err(format!("{field}: {} characters are more than {most}", text.len()));
            }
        }
        check_labels("Labels", &self.labels).map_err(|e| e.to_string())?;
        if self.kinds.len() > MAX_KINDS {
            return Err(format!("Kinds: {} kinds are more than {MAX_KINDS}", self.kinds.len()));
        }
        for kind in &self.kinds {
            ResourceName::new(kind).map_err(|e| format!("Kinds: {} {e}", shown(kind)))?;
        }
        if self.drivers.len() > MAX_KINDS {
            return Err(format!("Drivers: {} kinds are more than {MAX_KINDS}", self.drivers.len()));
        }
        if let Some(kind) = self.drivers.keys().find(|kind| !self.kinds.contains(kind)) {
            return Err(format!("Drivers: {} is not among the kinds", shown(kind)));
        }
        match self.authority_ms {
            Some(ms) if Duration::from_millis(ms) > LONGEST_AUTHORITY => Err(format!(
                "AuthorityMs: {ms} are more than {MAX_AUTHORITY} seconds, and its end is waited for no longer than that asks for"
            )),
            _ => Ok(()),
        }
    }

    /// What it says of the driver of a kind.
    #[must_use]
    pub fn driver(&self, kind: &str) -> DriverTraits {
        self.drivers.get(kind).copied().unwrap_or_default()
    }

    /// Whether this, the registration of `session`, attests that nothing of the admitted session runs any more: it comes from the same
    /// guard, which has reaped everything of all its sessions before this one.
    #[must_use]
    pub fn attests_end_of(&self, admission: &Admission, session: Session) -> bool {
        let attested = self.attests.is_some_and(|attested| attested <= admission.session);
        attested && self.origin == admission.origin && admission.session < session
    }
}

impl Stored for Registration {
    type Ids = WorkerId;

    /// The session lives as long as its key exists, whatever the key says.
    fn read(id: &WorkerId, json: &[u8]) -> Read<Self> {
        let read = Read::or(json, || Some(Self::unusable(id.clone(), "it cannot be read")));
        match read.error {
            None => Read { value: read.value.map(|registration: Self| registration.judged(id)), error: None },
            Some(_) => read,
        }
    }

    fn apply(cluster: &mut Cluster, id: WorkerId, registration: Option<Self>, seen: Seen) {
        let registered = registration.map(|registration| Box::new((Session(seen.created.0), registration)));
        cluster.with_worker(&id, seen.now, |worker| worker.registered = registered);
    }
}

/// Which guard, on which boot of which machine. Two sessions of one origin share their reaper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Origin {
    /// The kernel's boot id; another one means that the machine was started again.
    #[serde(rename = "BootID", default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// Random, drawn once when the guard starts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub guard: String,
}

/// The value of `/admissions/<worker>`: the session that may run the worker's assignments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Admission {
    /// The admitted session.
    pub session: Session,
    /// What its registration said, so that the span outlives it: whoever leads then waits for as long as this asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_ms: Option<u64>,
    /// Whose word counts when the next session attests.
    #[serde(flatten)]
    pub origin: Origin,
}

impl Admission {
    /// The authority that a leader waits for, and whether the session said that it is longer than that.
    #[must_use]
    pub fn authority(&self) -> Option<(Duration, bool)> {
        let said = Duration::from_millis(self.authority_ms?);
        Some((said.min(LONGEST_AUTHORITY), said > LONGEST_AUTHORITY))
    }
}

impl Stored for Admission {
    type Ids = WorkerId;

    /// An admission that cannot be read admits nobody, and may have admitted somebody: the session zero is always gone.
    fn read(_: &WorkerId, json: &[u8]) -> Read<Self> {
        Read::or(json, || Some(Self { session: Session(0), authority_ms: None, origin: Origin::default() }))
    }

    fn apply(cluster: &mut Cluster, worker: WorkerId, admission: Option<Self>, seen: Seen) {
        let admission = admission.map(|value| Box::new(Versioned { revision: seen.modified, value }));
        cluster.with_worker(&worker, seen.now, |w| w.admission = admission);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_beyond_a_limit_takes_nothing_and_its_reason_says_why() {
        let id = WorkerId::new("w").expect("id");
        let good = Registration {
            labels: (0..64).map(|n| (format!("l{n}"), "v".repeat(253))).collect(),
            kinds: (0..64).map(|n| format!("k{n}")).collect(),
            drivers: (0..64).map(|n| (format!("k{n}"), DriverTraits::default())).collect(),
            http: "h".repeat(320),
            version: "v".repeat(128),
            containment: "c".repeat(128),
            authority_ms: Some(3_600_000),
            origin: Origin { boot_id: "b".repeat(128), guard: "g".repeat(128) },
            ..Registration::bare(id.clone(), "a".repeat(320))
        };
        assert_eq!(good.clone().judged(&id), good);
        type Change = fn(&mut Registration);
        let cases: [(Change, &str); 14] = [
            (|r| r.id = WorkerId::new("x").expect("id"), "it is the registration of x"),
            (|r| r.address.push('a'), "Address: 321 characters are more than 320"),
            (|r| r.http.push('a'), "HTTP: 321 characters are more than 320"),
            (|r| r.version.push('a'), "Version: 129 characters are more than 128"),
            (|r| r.containment.push('a'), "Containment: 129 characters are more than 128"),
            (|r| r.origin.boot_id = "x".repeat(1_000_000), "BootID: 1000000 characters are more than 128"),
            (|r| r.origin.guard.push('a'), "Guard: 129 characters are more than 128"),
            (|r| drop(r.labels.insert("one".into(), String::new())), "Labels: 65 labels are more than 64; leave some out"),
            (|r| drop(r.labels.insert("l0".into(), "a b".into())), "Labels: invalid value \"a b\" of l0: at most 253"),
            (|r| r.kinds.push("k".into()), "Kinds: 65 kinds are more than 64"),
            (|r| r.drivers.extend([("k64".into(), DriverTraits::default())]), "Drivers: 65 kinds are more than 64"),
            (|r| drop(r.kinds.pop()), "Drivers: \"k63\" is not among the kinds"),
            (|r| r.kinds[0] = "a b".into(), "Kinds: \"a b\" has ' ' at position 2"),
            (|r| r.authority_ms = Some(3_600_001), "AuthorityMs: 3600001 are more than 3600 seconds"),
        ];
        for (change, says) in cases {
            let mut bad = Registration { released: true, ..good.clone() };
            change(&mut bad);
            let judged = bad.clone().judged(&id);
            let reason = judged.refused.as_deref().expect(says);
            assert!(reason.starts_with(says), "{reason}");
            assert_eq!((judged.capacity, judged.kinds.len(), judged.labels.len(), &judged.origin), (Some(0), 0, 0, &Origin::default()));
            assert!(judged.drivers.is_empty());
            assert_eq!((judged.released, judged.authority_ms), (true, bad.authority_ms), "{says}");
            assert!(judged.address.len() <= 320 && judged.http.len() <= 320);
        }
    }

    #[test]
    fn no_session_is_waited_for_longer_than_an_hour_asks_for() {
        let admission = |ms| Admission { session: Session(1), authority_ms: ms, origin: Origin::default() };
        assert_eq!(admission(None).authority(), None);
        assert_eq!(admission(Some(3_600_000)).authority(), Some((Duration::from_secs(3600), false)));
        assert_eq!(admission(Some(u64::MAX)).authority(), Some((Duration::from_secs(3600), true)));
        let least = Duration::from_secs(5);
        let wait = |ms| {
            let value = admission(ms);
            let admission = Some(Box::new(crate::Versioned { revision: crate::Revision(1), value }));
            let worker = crate::Worker { admission, ..crate::Worker::default() };
            (worker.wait(least), worker.claims_too_much())
        };
        assert_eq!(wait(None), (least, false));
        assert_eq!(wait(Some(10_000)), (wait_for(Duration::from_secs(10)), false));
        assert_eq!(wait(Some(u64::MAX)), (wait_for(Duration::from_secs(3600)), true));
    }
}

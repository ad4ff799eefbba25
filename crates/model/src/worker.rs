//! Workers as they register, and the leader's admission of one session.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Session, WorkerId};

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
    /// The version of its binary.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// D: for how long one proof gives it authority, in milliseconds; none: for no longer than every leader waits at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_ms: Option<u64>,
    /// The guard that speaks for it.
    #[serde(flatten)]
    pub origin: Origin,
    /// The earlier session of which, as the guard attests, nothing runs any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attests: Option<Session>,
    /// Everything was stopped and this session runs nothing more: its last write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
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
            version: String::new(),
            authority_ms: None,
            origin: Origin::default(),
            attests: None,
            released: false,
        }
    }

    /// Whether this, the registration of `session`, attests that nothing of the admitted session runs any more: it comes from the same
    /// guard, which has reaped everything of all its sessions before this one.
    #[must_use]
    pub fn attests_end_of(&self, admission: &Admission, session: Session) -> bool {
        let attested = self.attests.is_some_and(|attested| attested <= admission.session);
        attested && self.origin == admission.origin && admission.session < session
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

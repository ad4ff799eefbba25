//! What a person wants of a worker: that nothing more comes to it, or that all of it goes. It outlives the worker's sessions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Cluster, Read, Seen, Stored, WorkerId};

/// The value of `/intents/workers/<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Intent {
    /// What is wanted.
    #[serde(flatten)]
    pub kind: IntentKind,
    /// Since when, for people: nanoseconds since the Unix epoch.
    #[serde(default)]
    pub since: i64,
}

impl Stored for Intent {
    type Ids = WorkerId;

    /// Somebody wants something of the worker; until it is known what, nothing more comes to it.
    fn read(_: &WorkerId, json: &[u8]) -> Read<Self> {
        Read::or(json, || Some(Self { kind: IntentKind::Cordon, since: 0 }))
    }

    fn apply(cluster: &mut Cluster, worker: WorkerId, intent: Option<Self>, seen: Seen) {
        cluster.with_worker(&worker, seen.now, |w| w.intent = intent);
    }
}

/// What is wanted of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "Wish", rename_all = "lowercase")]
pub enum IntentKind {
    /// Nothing more is placed on it; what it has stays.
    Cordon,
    /// The same, and what it has goes elsewhere.
    #[serde(rename_all = "PascalCase")]
    Drain {
        /// After so long, what fits nowhere else is stopped; none: it stays until it fits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
}

impl IntentKind {
    /// Everything is to leave the worker.
    #[must_use]
    pub fn is_drain(self) -> bool {
        matches!(self, Self::Drain { .. })
    }

    /// How long after it was first seen a drain stops what fits nowhere else.
    #[must_use]
    pub fn deadline(self) -> Option<Duration> {
        match self {
            Self::Drain { deadline_ms } => deadline_ms.map(Duration::from_millis),
            Self::Cordon => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_like_this() {
        let cases = [
            (IntentKind::Cordon, r#"{"Wish":"cordon","Since":7}"#),
            (IntentKind::Drain { deadline_ms: None }, r#"{"Wish":"drain","Since":7}"#),
            (IntentKind::Drain { deadline_ms: Some(60_000) }, r#"{"Wish":"drain","DeadlineMs":60000,"Since":7}"#),
        ];
        for (kind, text) in cases {
            let intent = Intent { kind, since: 7 };
            assert_eq!(serde_json::to_string(&intent).expect("json"), text);
            assert_eq!(serde_json::from_str::<Intent>(text).expect("read"), intent);
        }
    }
}

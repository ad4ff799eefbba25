//! The value of `/intents/brake`: the lost sessions that a person waits for no longer, by worker.

use std::collections::BTreeMap;

use crate::{Cluster, Read, Seen, Session, Stored, WorkerId};

impl Stored for BTreeMap<WorkerId, Session> {
    type Ids = ();

    /// What cannot be read writes no session off: the brake holds.
    fn read((): &(), json: &[u8]) -> Read<Self> {
        Read::or(json, || None)
    }

    fn apply(cluster: &mut Cluster, (): (), sessions: Option<Self>, _: Seen) {
        cluster.written_off = sessions.unwrap_or_default();
    }
}

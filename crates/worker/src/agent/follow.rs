//! Follows this worker's assignments: statuses and assignments listed whole, then what changes.
//!
//! The wheel: store::watch -> **worker** -> worker::desired. It is begun after the admission was seen, so that every list in it is at a
//! revision not before the admission's. It decides nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use evenkeel_model::{Epoch, ResourceName, Revision, Status, WorkerId};
use evenkeel_store::{Client, KeyChange, KeyRange, Kv, Update, keys::Key, keys::Keys, mirror, task::of_this_process};
use tokio::{sync::mpsc, task::AbortHandle, time::sleep};

use crate::protocol::desired::DesiredAssignment;

/// The pause before etcd is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Own statuses as they stand, with their modification revisions. None where the value cannot be read.
pub(crate) type Statuses = BTreeMap<ResourceName, (Option<Status>, Revision)>;

/// What following the assignments brings.
#[derive(Debug)]
pub(crate) enum Followed {
    /// Everything, as it stands at this revision or later.
    Whole { revision: Revision, assignments: BTreeMap<ResourceName, DesiredAssignment>, statuses: Statuses },
    /// All assignments again: etcd could not be followed for a while.
    Again { revision: Revision, assignments: BTreeMap<ResourceName, DesiredAssignment> },
    /// What has changed.
    Changes(Vec<(ResourceName, Option<DesiredAssignment>)>),
}

/// Follows until it is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) followed: mpsc::Receiver<Followed>,
    task: AbortHandle,
}

impl Follower {
    pub(crate) fn begin(client: Client, keys: Keys, worker: WorkerId) -> Self {
        let (sender, followed) = mpsc::channel(64);
        let task = tokio::spawn(of_this_process(async move {
            // It ends when nobody listens.
            let _ = follow(&client, &keys, &worker, &sender).await;
        }));
        Self { followed, task: task.abort_handle() }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    client: &Client,
    keys: &Keys,
    worker: &WorkerId,
    sender: &mpsc::Sender<Followed>,
) -> Result<(), mpsc::error::SendError<Followed>> {
    let listed = loop {
        match client.list(&KeyRange::prefix(keys.statuses_of(worker))).await {
            Ok(listed) => break listed,
            Err(error) => tracing::debug!(%error, "the statuses cannot be listed"),
        }
        sleep(PAUSE).await;
    };
    let mut first = Some((listed.revision, statuses(keys, &listed.kvs)));
    let mut updates = mirror(client, KeyRange::prefix(keys.assignments_of(worker)));
    while let Some(update) = updates.recv().await {
        let followed = match update {
            Update::Reset { kvs, revision, .. } => {
                let assignments = kvs.iter().filter_map(|kv| Some((name_of(keys, &kv.key)?, assigned(kv)))).collect();
                match first.take() {
                    Some((listed, statuses)) => Followed::Whole { revision: revision.min(listed), assignments, statuses },
                    None => Followed::Again { revision, assignments },
                }
            }
            Update::Changes { changes, .. } => Followed::Changes(changes.iter().filter_map(|change| changed(keys, change)).collect()),
            Update::Lost { .. } | Update::Recovered => continue,
        };
        sender.send(followed).await?;
    }
    Ok(())
}

fn name_of(keys: &Keys, key: &[u8]) -> Option<ResourceName> {
    match keys.parse(key)? {
        Key::Assignment(_, name) | Key::Status(_, name) => Some(name),
        _ => None,
    }
}

fn changed(keys: &Keys, change: &KeyChange) -> Option<(ResourceName, Option<DesiredAssignment>)> {
    let name = name_of(keys, change.key())?;
    Some(match change {
        KeyChange::Put(kv) => (name, Some(assigned(kv))),
        KeyChange::Delete { .. } => (name, None),
    })
}

fn assigned(kv: &Kv) -> DesiredAssignment {
    let assignment = serde_json::from_slice(&kv.value).map(Arc::new).map_err(|error| error.to_string().into());
    DesiredAssignment { epoch: Epoch(kv.created.0), assignment, modified: kv.modified }
}

fn statuses(keys: &Keys, kvs: &[Kv]) -> Statuses {
    kvs.iter().filter_map(|kv| Some((name_of(keys, &kv.key)?, (serde_json::from_slice(&kv.value).ok(), kv.modified)))).collect()
}

//! A task as it goes on: first all of it, then, at each change, the hosts that have changed. Under api::tasks. A wake-up only says that something is
//! new; what it is, is read again.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_model::{Revision, TaskId, WorkerId, task::HostState};
use evenkeel_proto::v1;
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::Status;

use super::{shown, task_id};
use crate::{
    api::{
        room::{Room, Step},
        service::{Answers, Service},
    },
    state::Leadership,
};

/// How long changes are gathered before they are told: many hosts change at once.
const GATHER: Duration = Duration::from_millis(50);

/// By what it is seen that a host has changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    order: Revision,
    result: Revision,
    state: HostState,
    is_registered: bool,
}

struct Watcher {
    service: Service,
    id: TaskId,
    seen: BTreeMap<WorkerId, Seen>,
    /// What was told last of the task itself.
    told: Option<v1::TaskState>,
    changed: watch::Receiver<u64>,
    leadership: watch::Receiver<Leadership>,
    _place: OwnedSemaphorePermit,
}

/// Follows a task until it is done.
///
/// # Errors
/// NOT_FOUND; RESOURCE_EXHAUSTED when too many watch.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(in crate::api) fn watch(service: &Service, id: u32) -> Result<Answers<v1::WatchTaskResponse>, Status> {
    let id = task_id(id)?;
    shown::find(&service.shared().read(), id)?;
    let watcher = Watcher {
        changed: service.shared().tasks.subscribe(),
        leadership: service.shared().leadership.subscribe(),
        _place: service.turns.watch()?,
        service: service.clone(),
        id,
        seen: BTreeMap::new(),
        told: None,
    };
    let answers = stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(task) => {
                let goes_on = task.state != "done";
                Some((Ok(v1::WatchTaskResponse { task: Some(task) }), goes_on.then_some(watcher)))
            }
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(answers.boxed())
}

impl Watcher {
    /// The next that there is to tell.
    async fn next(&mut self) -> Result<v1::TaskState, Status> {
        loop {
            self.changed.mark_unchanged();
            self.leadership.mark_unchanged();
            if !self.service.shared().leads() {
                return Err(Status::unavailable("this master is no longer the leader; watch again"));
            }
            let task = self.look().await?;
            let mut bare = task.clone();
            bare.hosts.clear();
            if !task.hosts.is_empty() || self.told.as_ref() != Some(&bare) {
                self.told = Some(bare);
                return Ok(task);
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                _ = self.leadership.changed() => continue,
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// The task with the hosts that have changed since the last look.
    async fn look(&mut self) -> Result<v1::TaskState, Status> {
        let (mut hosts, mut room, mut place) = (Vec::new(), Room::of_a_page(), 0);
        loop {
            {
                let state = self.service.shared().read();
                let entry = shown::find(&state, self.id)?;
                let step = Step::begin();
                while let Some(worker) = entry.order().get(place) {
                    place += 1;
                    let known = entry.host(worker);
                    let seen = Seen {
                        order: known.and_then(|host| host.order.as_deref()).map_or(Revision::default(), |order| order.revision),
                        result: known.map_or(Revision::default(), evenkeel_model::task::TaskHost::result_revision),
                        state: entry.state_of(worker).unwrap_or(HostState::Waiting),
                        is_registered: state.cluster.worker(worker.as_str()).is_some_and(|worker| worker.registration().is_some()),
                    };
                    if self.seen.get(worker) != Some(&seen) {
                        self.seen.insert(worker.clone(), seen);
                        hosts.push(shown::within(&mut room, shown::host(&state, entry, worker)));
                    }
                    if step.is_over() {
                        break;
                    }
                }
                if place >= entry.order().len() {
                    return Ok(v1::TaskState { hosts, ..shown::task(self.id, entry) });
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

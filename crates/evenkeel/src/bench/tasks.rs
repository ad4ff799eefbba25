//! P18: a task on as many hosts as there are agents, from the post until every host is at an end, beside the raw transactions that it takes, by as
//! many callers, on the same etcd. Nothing runs on either side: what is measured is what Evenkeel adds to what it writes.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use evenkeel_model::{
    Cluster, Key, NextTask, Order, Revision, Task, TaskId, TaskIntent, TaskResult, TaskScript, TaskTail, WorkerId,
    task::{Outcome, TaskDraft},
};
use evenkeel_proto::v1::{self, CreateTaskRequest, TaskHost, TaskTargets, WatchTaskRequest};
use evenkeel_store::{Client, Compare, Op, Txn, TxnReply, codec, keys::Keys};
use serde::Serialize;
use tokio::task::JoinSet;

use super::stage::Stage;

/// Orders in one transaction: with the intent and the fence, which are compared too, they are as many compares as etcd takes.
const ORDERS: usize = 125;
/// How long one transaction, and how long a whole task may take.
const DEADLINE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(600);

/// What was measured with one number of hosts.
#[derive(Debug, Serialize)]
pub(super) struct TaskRun {
    pub(super) id: &'static str,
    pub(super) hosts: usize,
    /// Seconds from the post until every host is at an end; none: these agents take no tasks.
    pub(super) ours: Option<f64>,
    /// Seconds that the same transactions take.
    pub(super) theirs: f64,
    pub(super) ratio: Option<f64>,
}

/// Both sides in turn, several times; of each the median.
pub(super) async fn measure(stage: &Stage, agents: &[WorkerId], rounds: u32) -> Result<TaskRun, String> {
    let takes_tasks = stage.takes_tasks().await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        theirs.push(raw(stage, agents).await?);
        if takes_tasks {
            ours.push(through_evenkeel(stage, agents).await?);
        }
    }
    let (ours, theirs) = (median(ours), median(theirs).unwrap_or_default());
    Ok(TaskRun { id: "P18", hosts: agents.len(), ratio: ours.map(|ours| ours / theirs), ours, theirs })
}

fn median(mut took: Vec<Duration>) -> Option<f64> {
    took.sort();
    took.get(took.len() / 2).map(Duration::as_secs_f64)
}

/// A task by the API.
async fn through_evenkeel(stage: &Stage, agents: &[WorkerId]) -> Result<Duration, String> {
    let mut client = stage.connect().await?;
    let on = TaskTargets { hosts: agents.iter().map(ToString::to_string).collect(), ..TaskTargets::default() };
    let task =
        v1::Task { script: "true".to_owned(), on: Some(on), batch: "all".to_owned(), tolerance: "all".to_owned(), ..v1::Task::default() };
    let began = Instant::now();
    let request = CreateTaskRequest { task: Some(task), key: stage.fresh_name() };
    let id = client.create_task(request).await.map_err(|e| e.to_string())?.into_inner().task.unwrap_or_default().id;
    let ended = async {
        let mut stream = client.watch_task(WatchTaskRequest { id }).await.map_err(|e| e.to_string())?.into_inner();
        let mut left: BTreeSet<String> = agents.iter().map(ToString::to_string).collect();
        while !left.is_empty() {
            let said = stream.message().await.map_err(|e| e.to_string())?.ok_or("the master ended the stream")?;
            for host in said.task.unwrap_or_default().hosts {
                if is_at_end(&host)? {
                    left.remove(&host.worker);
                }
            }
        }
        Ok(began.elapsed())
    };
    tokio::time::timeout(PATIENCE, ended).await.map_err(|_| format!("task {id} did not end"))?
}

fn is_at_end(host: &TaskHost) -> Result<bool, String> {
    match host.state.as_str() {
        "waiting" | "pending" | "running" => Ok(false),
        "succeeded" => Ok(true),
        other => Err(format!("{}: {other}: {}", host.worker, host.message)),
    }
}

/// The transactions of one task, and what they write: the same bytes.
#[derive(Clone)]
struct Raw {
    client: Client,
    keys: Keys,
    task: Task,
    script: TaskScript,
}

/// Posts, orders batch by batch, and lets each host begin and end as soon as it is ordered.
async fn raw(stage: &Stage, agents: &[WorkerId]) -> Result<Duration, String> {
    let draft = TaskDraft {
        script: "true".to_owned(),
        hosts: agents.iter().map(ToString::to_string).collect(),
        batch: "all".to_owned(),
        tolerance: "all".to_owned(),
        ..TaskDraft::default()
    };
    let new = draft.check().map_err(|e| e.to_string())?;
    let task = new.with_workers(TaskId(1), 1, agents.to_vec(), &Cluster::default()).map_err(|e| e.to_string())?;
    // Keys of its own, which no master minds.
    let raw = Raw { client: stage.raw()?, keys: Keys::new(format!("/raw/{}", stage.fresh_name())), task, script: new.script };
    let began = Instant::now();
    let posted = raw.post().await?;
    let mut hosts = JoinSet::new();
    for workers in agents.chunks(ORDERS) {
        let order = raw.order(posted, workers).await?;
        for worker in workers {
            let (raw, worker) = (raw.clone(), worker.clone());
            hosts.spawn(async move { raw.host(&worker, order).await });
        }
    }
    while let Some(ended) = hosts.join_next().await {
        ended.map_err(|e| e.to_string())??;
    }
    Ok(began.elapsed())
}

impl Raw {
    fn key(&self, key: &Key) -> Vec<u8> {
        self.keys.spell(key).into_bytes()
    }

    fn put<T: Serialize>(&self, key: &Key, value: &T) -> Op {
        Op::put(self.key(key), codec::json(value))
    }

    fn is(&self, key: &Key, equals: Revision) -> Compare {
        Compare::ModRevision { key: self.key(key), equals }
    }

    async fn write(&self, compares: Vec<Compare>, then: Vec<Op>) -> Result<Revision, String> {
        let txn = Txn { compares, then, otherwise: Vec::new() };
        let TxnReply { succeeded, revision, .. } = self.client.txn(txn, DEADLINE).await.map_err(|e| e.to_string())?;
        if succeeded { Ok(revision) } else { Err("a condition did not hold".to_owned()) }
    }

    async fn post(&self) -> Result<Revision, String> {
        let id = self.task.id;
        let keys = [Key::NextTask(), Key::Task(id), Key::TaskIntent(id)];
        let puts = vec![
            self.put(&Key::Task(id), &self.task),
            self.put(&Key::TaskScript(id), &self.script),
            self.put(&Key::TaskIntent(id), &TaskIntent::default()),
            self.put(&Key::NextTask(), &NextTask::after(id)),
        ];
        self.write(keys.iter().map(|key| self.is(key, Revision::default())).collect(), puts).await
    }

    /// Gives the revision that names the attempts.
    async fn order(&self, posted: Revision, workers: &[WorkerId]) -> Result<Revision, String> {
        let id = self.task.id;
        let keys: Vec<Key> = workers.iter().map(|worker| Key::Order(worker.clone(), id)).collect();
        let mut compares = vec![self.is(&Key::TaskIntent(id), posted)];
        compares.extend(keys.iter().map(|key| self.is(key, Revision::default())));
        self.write(compares, keys.iter().map(|key| self.put(key, &Order::run(1, 1))).collect()).await
    }

    /// What one worker writes: that it begins, and how it ended.
    async fn host(&self, worker: &WorkerId, order: Revision) -> Result<(), String> {
        let id = self.task.id;
        let (ordered, result) = (Key::Order(worker.clone(), id), Key::TaskResult(worker.clone(), id));
        let session = Compare::absent(self.keys.worker(worker));
        let admission = self.is(&Key::Admission(worker.clone()), Revision::default());
        let running = TaskResult::running(1, order, 1);
        let compares = vec![self.is(&ordered, order), session, admission, self.is(&result, Revision::default())];
        let begun = self.write(compares, vec![self.put(&result, &running)]).await?;
        let ended = TaskResult { exit: Some(0), ..running.with_end(Outcome::Succeeded, 2, "") };
        let tail = TaskTail { attempt: 1, out: Vec::new(), err: Vec::new() };
        let puts = vec![self.put(&result, &ended), self.put(&Key::TaskTail(worker.clone(), id), &tail)];
        self.write(vec![self.is(&result, begun)], puts).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_one_of_what_was_measured() {
        let of = |seconds: &[u64]| median(seconds.iter().copied().map(Duration::from_secs).collect());
        assert_eq!([of(&[]), of(&[3]), of(&[3, 1, 2])], [None, Some(3.0), Some(2.0)]);
    }

    #[test]
    fn a_host_that_did_not_succeed_spoils_the_measurement() {
        let host = |state: &str| is_at_end(&TaskHost { state: state.to_owned(), ..TaskHost::default() });
        assert_eq!([host("pending"), host("succeeded")], [Ok(false), Ok(true)]);
        assert!(host("rejected").is_err());
    }
}

//! Follows the orders and the results of this worker, and reads what an order is about.
//!
//! The wheel: store::watch -> **worker::task** -> worker::task::rules. It goes on from one session to the next. That what it brings may be old does no
//! harm: every write that follows from it compares what it was made from. It decides nothing.

use std::collections::BTreeMap;

use evenkeel_model::{
    Key, TaskId, WorkerId,
    task::{Order, OrderIntent, Outcome, Task, TaskResult, TaskScript},
};
use evenkeel_store::{Client, Error, KeyChange, KeyRange, Kv, Update, keys::Keys, mirror};
use tokio::sync::mpsc;

use super::rules::{SeenOrder, SeenResult};

/// What is followed, by task.
#[derive(Debug)]
pub(crate) struct Followed<T> {
    updates: mpsc::Receiver<Update>,
    /// None: it was not listed yet.
    pub(crate) all: Option<BTreeMap<TaskId, T>>,
    keys: Keys,
    read: fn(&Kv) -> T,
}

impl Followed<SeenOrder> {
    pub(crate) fn orders(client: &Client, keys: &Keys, worker: &WorkerId) -> Self {
        Self::begin(client, keys, keys.orders_of(worker), order)
    }
}

impl Followed<SeenResult> {
    pub(crate) fn results(client: &Client, keys: &Keys, worker: &WorkerId) -> Self {
        Self::begin(client, keys, keys.results_of(worker), result)
    }
}

impl<T> Followed<T> {
    fn begin(client: &Client, keys: &Keys, prefix: String, read: fn(&Kv) -> T) -> Self {
        Self { updates: mirror(client, KeyRange::prefix(prefix)), all: None, keys: keys.clone(), read }
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<&T> {
        self.all.as_ref()?.get(&id)
    }

    /// Waits for the next update, and takes it in: the tasks that it is about. It loses nothing if it is dropped before it is ready.
    pub(crate) async fn next(&mut self) -> Vec<TaskId> {
        match self.updates.recv().await {
            Some(Update::Reset { kvs, .. }) => {
                let before = self.all.take().unwrap_or_default();
                let all: BTreeMap<TaskId, T> = kvs.iter().filter_map(|kv| Some((self.id(&kv.key)?, (self.read)(kv)))).collect();
                let ids = before.into_keys().chain(all.keys().copied()).collect();
                self.all = Some(all);
                ids
            }
            Some(Update::Changes { changes, .. }) => changes.iter().filter_map(|change| self.change(change)).collect(),
            Some(Update::Lost { .. } | Update::Recovered) => Vec::new(),
            // The client is gone, and with it this process.
            None => std::future::pending().await,
        }
    }

    fn change(&mut self, change: &KeyChange) -> Option<TaskId> {
        let id = self.id(change.key())?;
        let all = self.all.get_or_insert_default();
        match change {
            KeyChange::Put(kv) => all.insert(id, (self.read)(kv)),
            KeyChange::Delete { .. } => all.remove(&id),
        };
        Some(id)
    }

    fn id(&self, key: &[u8]) -> Option<TaskId> {
        match self.keys.parse(key)? {
            Key::Order(_, id) | Key::TaskResult(_, id) => Some(id),
            _ => None,
        }
    }
}

impl Followed<SeenResult> {
    /// This was written by this worker: it counts until something newer is seen.
    pub(crate) fn wrote(&mut self, id: TaskId, written: SeenResult) {
        let all = self.all.get_or_insert_default();
        if all.get(&id).is_none_or(|seen| seen.modified < written.modified) {
            all.insert(id, written);
        }
    }
}

/// One that cannot be read begins nothing, and stops nothing.
pub(crate) fn order(kv: &Kv) -> SeenOrder {
    let unreadable = || Order { attempt: 0, intent: OrderIntent::Cancelled, why: Box::default(), since: 0 };
    SeenOrder { order: serde_json::from_slice(&kv.value).unwrap_or_else(|_| unreadable()), modified: kv.modified }
}

/// One that cannot be read is of an attempt after all others: nothing begins beside it.
pub(crate) fn result(kv: &Kv) -> SeenResult {
    let unreadable = || TaskResult::running(u32::MAX, kv.modified, 0).with_end(Outcome::Lost, 0, "");
    SeenResult { result: serde_json::from_slice(&kv.value).unwrap_or_else(|_| unreadable()), modified: kv.modified }
}

/// What an order is about; none: it is gone.
///
/// # Errors
/// etcd does not say, or what it says cannot be read: then the text says so.
pub(crate) async fn definition(client: &Client, keys: &Keys, id: TaskId) -> Result<Option<Result<(Task, TaskScript), String>>, Error> {
    let task = client.get(keys.spell(&Key::Task(id)).as_bytes()).await?.kv;
    let script = client.get(keys.spell(&Key::TaskScript(id)).as_bytes()).await?.kv;
    let (Some(task), Some(script)) = (task, script) else { return Ok(None) };
    let unreadable = |error: serde_json::Error| format!("its definition cannot be read: {error}");
    let task = serde_json::from_slice(&task.value).map_err(unreadable);
    Ok(Some(task.and_then(|task| Ok((task, serde_json::from_slice(&script.value).map_err(unreadable)?)))))
}

//! Follows the orders and the results of this worker, and reads what an order is about.
//!
//! The wheel: store::watch -> **worker::task** -> worker::task::rules. It goes on from one session to the next. That what it brings may be old does no
//! harm: every write that follows from it compares what it was made from. It decides nothing.

use std::collections::BTreeMap;

use evenkeel_model::{
    Key, Revision, TaskId, WorkerId,
    task::{Order, OrderIntent, Outcome, Task, TaskResult, TaskScript},
};
use evenkeel_store::{Client, Error, KeyChange, KeyRange, Kv, Op, Txn, Update, keys::Keys, mirror};
use tokio::sync::mpsc;

use super::{
    attempt::DEADLINE,
    rules::{SeenOrder, SeenResult},
};

/// What is followed, by task.
#[derive(Debug)]
pub(crate) struct Followed<T> {
    updates: mpsc::Receiver<Update>,
    /// None: it was not listed yet.
    pub(crate) all: Option<BTreeMap<TaskId, T>>,
    /// The revision up to which the updates go.
    reached: Revision,
    keys: Keys,
    read: fn(&Kv) -> T,
    modified: fn(&T) -> Revision,
}

impl Followed<SeenOrder> {
    pub(crate) fn orders(client: &Client, keys: &Keys, worker: &WorkerId) -> Self {
        Self::begin(client, keys, keys.orders_of(worker), order, |seen| seen.modified)
    }
}

impl Followed<SeenResult> {
    pub(crate) fn results(client: &Client, keys: &Keys, worker: &WorkerId) -> Self {
        Self::begin(client, keys, keys.results_of(worker), result, |seen| seen.modified)
    }
}

impl<T> Followed<T> {
    fn begin(client: &Client, keys: &Keys, prefix: String, read: fn(&Kv) -> T, modified: fn(&T) -> Revision) -> Self {
        let updates = mirror(client, KeyRange::prefix(prefix));
        Self { updates, all: None, reached: Revision::default(), keys: keys.clone(), read, modified }
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<&T> {
        self.all.as_ref()?.get(&id)
    }

    /// Waits for the next update, and takes it in: the tasks that it is about. It loses nothing if it is dropped before it is ready.
    pub(crate) async fn next(&mut self) -> Vec<TaskId> {
        match self.updates.recv().await {
            Some(Update::Reset { kvs, revision, .. }) => {
                let before = self.all.take().unwrap_or_default();
                let mut all: BTreeMap<TaskId, T> = kvs.iter().filter_map(|kv| Some((self.id(&kv.key)?, (self.read)(kv)))).collect();
                let ids = before.keys().chain(all.keys()).copied().collect();
                // What was written here after that was listed. An etcd that has gone back, from a backup, has the last word.
                let since = self.reached.max(revision);
                if revision >= self.reached {
                    all.extend(before.into_iter().filter(|(_, seen)| (self.modified)(seen) > since));
                }
                (self.all, self.reached) = (Some(all), revision);
                ids
            }
            Some(Update::Changes { changes, revision }) => {
                self.reached = self.reached.max(revision);
                changes.iter().filter_map(|change| self.change(change)).collect()
            }
            Some(Update::Lost { .. } | Update::Recovered) => Vec::new(),
            // The client is gone, and with it this process.
            None => std::future::pending().await,
        }
    }

    fn change(&mut self, change: &KeyChange) -> Option<TaskId> {
        let id = self.id(change.key())?;
        let all = self.all.get_or_insert_default();
        // What was written here since is newer.
        if all.get(&id).is_none_or(|seen| (self.modified)(seen) <= change.revision()) {
            match change {
                KeyChange::Put(kv) => all.insert(id, (self.read)(kv)),
                KeyChange::Delete { .. } => all.remove(&id),
            };
        }
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
    /// This was written by this worker: it counts until something newer is seen. Where the updates have come as far, they have told of it, and of what
    /// became of it.
    pub(crate) fn wrote(&mut self, id: TaskId, written: SeenResult) {
        if written.modified <= self.reached {
            return;
        }
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
    // Both in one request: thousands of workers ask at the same time.
    let then = [Key::Task(id), Key::TaskScript(id)].map(|key| Op::get(keys.spell(&key))).into();
    let reads = client.txn(Txn { then, ..Txn::default() }, DEADLINE).await?.reads;
    let mut found = reads.into_iter().map(|kvs| kvs.into_iter().next());
    let (Some(task), Some(script)) = (found.next().flatten(), found.next().flatten()) else { return Ok(None) };
    let unreadable = |error: serde_json::Error| format!("its definition cannot be read: {error}");
    let task = serde_json::from_slice(&task.value).map_err(unreadable);
    Ok(Some(task.and_then(|task| Ok((task, serde_json::from_slice(&script.value).map_err(unreadable)?)))))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn seen(revision: i64) -> SeenResult {
        SeenResult { result: TaskResult::running(1, Revision(revision), 0), modified: Revision(revision) }
    }

    fn kv(keys: &Keys, revision: i64) -> Kv {
        let key = keys.spell(&Key::TaskResult(WorkerId::new("w").expect("id"), TaskId(7))).into_bytes();
        let value = serde_json::to_vec(&seen(revision).result).expect("json");
        Kv { key, value, created: Revision(1), modified: Revision(revision), lease: 0 }
    }

    #[tokio::test]
    async fn what_was_written_here_counts_until_something_newer_is_seen() {
        let keys = Keys::new("/p");
        let put = |revision| Update::Changes { changes: vec![KeyChange::Put(kv(&keys, revision))], revision: Revision(revision) };
        let delete = |revision| {
            let revision = Revision(revision);
            Update::Changes { changes: vec![KeyChange::Delete { key: kv(&keys, 1).key, revision }], revision }
        };
        let list = |revision, kvs: &[i64]| {
            let kvs = kvs.iter().map(|revision| kv(&keys, *revision)).collect();
            Update::Reset { kvs, revision: Revision(revision), begun: Instant::now() }
        };
        // What is seen; what was written here before that; the revision that counts then
        let cases = [
            (list(3, &[]), None, None),
            (put(5), Some(9), Some(9)),
            (delete(7), None, Some(9)),
            (list(8, &[5]), None, Some(9)),
            (put(9), None, Some(9)),
            (put(11), Some(10), Some(11)),
            (delete(13), None, None),
            // It is told late, and was deleted since.
            (put(20), Some(12), Some(20)),
            (delete(21), None, None),
            (list(22, &[]), Some(19), None),
            (list(24, &[23]), Some(26), Some(26)),
            (list(30, &[]), None, None),
            (put(31), None, Some(31)),
            // From a backup.
            (list(4, &[2]), Some(40), Some(2)),
        ];
        let (sender, updates) = mpsc::channel(1);
        let mut followed = Followed {
            updates,
            all: None,
            reached: Revision::default(),
            keys: keys.clone(),
            read: result,
            modified: |seen: &SeenResult| seen.modified,
        };
        for (at, (update, written, expected)) in cases.into_iter().enumerate() {
            if let Some(written) = written {
                followed.wrote(TaskId(7), seen(written));
            }
            sender.send(update).await.expect("heard");
            followed.next().await;
            assert_eq!(followed.get(TaskId(7)), expected.map(seen).as_ref(), "{at}");
        }
    }
}

//! Tasks as a leader carries them out, over the model of etcd on virtual time: they are created once, ordered once whoever leads, pause and go on, and
//! come to their end. The workers are made up: a test writes what they would.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use evenkeel_master::{
    MasterConfig,
    engine::{Clock, Created, Engine, Handle, Leadership, Redone, Refusal, Request, TaskVerb},
};
use evenkeel_model::{
    HistoryEntry, Key, MasterId, MasterRecord, Order, Registration, Revision, TaskId, TaskIntent, TaskResult, WorkerId,
    task::{OrderIntent, Outcome, TaskDraft, TaskGoal},
};
use evenkeel_sim::{
    etcd::{Direction, Etcd, Link, Settings},
    fleet::{clock::MachineClock, dice::generator},
};
use evenkeel_store::{KeyRange, keys::Keys};
use serde::de::DeserializeOwned;
use tokio::{sync::oneshot, time::sleep};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(5);

fn id(n: usize) -> WorkerId {
    WorkerId::new(&format!("w{n:03}")).unwrap()
}

fn draft(hosts: usize) -> TaskDraft {
    let hosts = (0..hosts).map(|n| id(n).to_string()).collect();
    TaskDraft { script: "echo secret".to_owned(), account: "root".to_owned(), hosts, creator: "ada".to_owned(), ..TaskDraft::default() }
}

/// A master, which runs until this is dropped.
struct Master {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Master {
    fn start(name: &str, link: &Link) -> Self {
        let id = MasterId::new(name).unwrap();
        let config = MasterConfig::new(id.clone(), Vec::new());
        let record = MasterRecord { id, address: format!("{name}:1"), http: String::new(), version: String::new(), leads_since: 0 };
        let clock: Arc<dyn Clock> = Arc::new(MachineClock::boot(0));
        let engine = Engine::new(Arc::new(config), link.client(SECOND), record, clock);
        let handle = engine.handle();
        let (stop, stops) = oneshot::channel();
        tokio::spawn(engine.run(stops));
        Self { handle, _stop: stop }
    }

    async fn leads(&self) {
        while self.handle.leadership() != Leadership::Mine {
            sleep(TICK).await;
        }
    }

    fn create(&self, draft: TaskDraft) -> oneshot::Receiver<Result<Created, Refusal>> {
        let (reply, answer) = oneshot::channel();
        self.handle.ask(Request::create_task(Box::new(draft.check().unwrap()), reply.into())).unwrap();
        answer
    }

    async fn want(&self, verb: TaskVerb) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.handle.ask(Request::task_intent(TaskId(1), verb, "10.0.0.9".into(), reply.into())).unwrap();
        answer.await.unwrap()
    }

    async fn redo(&self, hosts: Redone) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.handle.ask(Request::redo_task(TaskId(1), hosts, "".into(), reply.into())).unwrap();
        answer.await.unwrap()
    }
}

struct Testbed {
    etcd: Etcd,
    workers: evenkeel_store::Client,
}

impl Testbed {
    fn new(members: usize, seed: u64) -> Self {
        let etcd = Etcd::start(Settings { members, slow_one_in: 0, ..Settings::default() }, generator(seed, "etcd"));
        let workers = etcd.link("workers").client(SECOND);
        Self { etcd, workers }
    }

    async fn led() -> (Self, Master) {
        let testbed = Self::new(1, 1);
        let master = Master::start("master-1", &testbed.etcd.link("master"));
        master.leads().await;
        (testbed, master)
    }

    fn under<T: DeserializeOwned>(&self, prefix: &str) -> Vec<T> {
        self.etcd.peek(|store| store.iter(&KeyRange::prefix(prefix)).map(|kv| serde_json::from_slice(&kv.value).unwrap()).collect())
    }

    fn key<T: DeserializeOwned>(&self, key: &Key) -> Option<T> {
        self.under(&Keys::new("").spell(key)).pop()
    }

    fn history(&self) -> Vec<String> {
        let batches: Vec<Vec<HistoryEntry>> = self.under("/events/");
        let entries = batches.into_iter().flatten().filter(|entry| entry.task != TaskId::default());
        entries.map(|entry| format!("{}{}{}", entry.kind.as_str(), if entry.worker.is_empty() { "" } else { " " }, entry.worker)).collect()
    }

    /// The hosts whose orders are to run.
    fn ordered(&self) -> usize {
        self.under::<Order>("/orders/").iter().filter(|order| order.intent == OrderIntent::Run).count()
    }

    fn intent(&self) -> TaskIntent {
        self.key(&Key::TaskIntent(TaskId(1))).unwrap()
    }

    async fn register(&self, n: usize) {
        let registration = Registration { tasks: true, ..Registration::bare(id(n), "h:1".to_owned()) };
        self.workers.put(Keys::new("").worker(&id(n)), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    }

    /// What its worker says of the attempt that is ordered.
    async fn report(&self, n: usize, outcome: Option<Outcome>) {
        let order: Order = self.key(&Key::Order(id(n), TaskId(1))).unwrap();
        let running = TaskResult::running(order.attempt, Revision(1), 1);
        let result = outcome.map_or(running.clone(), |outcome| running.with_end(outcome, 2, ""));
        let key = Keys::new("").spell(&Key::TaskResult(id(n), TaskId(1)));
        self.workers.put(key, serde_json::to_vec(&result).unwrap()).await.unwrap();
        sleep(SECOND / 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_equal_posts_with_one_key_are_one_task() {
    let (testbed, master) = Testbed::led().await;
    let keyed = || TaskDraft { key: "deploy-42".to_owned(), ..draft(3) };
    let asked: Vec<_> = (0..1000).map(|_| master.create(keyed())).collect();
    let mut created = 0;
    for answer in asked {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.id, TaskId(1));
        created += usize::from(answer.is_new);
    }
    assert_eq!((created, testbed.under::<serde_json::Value>("/tasks/").len()), (1, 1));
    let other = master.create(TaskDraft { title: "other".to_owned(), ..keyed() }).await.unwrap();
    assert!(matches!(other, Err(Refusal::KeyTaken(_, TaskId(1)))), "{other:?}");
    // Nothing of the script is in what people read of it.
    let history: Vec<Vec<HistoryEntry>> = testbed.under("/events/");
    let told = history.into_iter().flatten().find(|entry| entry.task == TaskId(1)).unwrap();
    assert_eq!(told.reason.split("SHA-256").next().unwrap(), "3 hosts, account root, ");
    assert!(told.reason.ends_with(", by ada") && !told.reason.contains("echo"), "{}", told.reason);
}

#[tokio::test(start_paused = true)]
async fn posts_without_a_key_are_a_task_each_until_no_more_are_kept() {
    let (testbed, master) = Testbed::led().await;
    let asked: Vec<_> = (0..1010).map(|_| master.create(draft(1))).collect();
    let mut ids = BTreeSet::new();
    let mut refused = 0;
    for answer in asked {
        match answer.await.unwrap() {
            Ok(created) => assert!(created.is_new && ids.insert(created.id)),
            Err(refusal) => {
                assert!(matches!(refusal, Refusal::TooManyTasks { .. }), "{refusal}");
                refused += 1;
            }
        }
    }
    assert_eq!((ids.len(), refused, ids.last()), (1000, 10, Some(&TaskId(1000))));
    assert_eq!(testbed.under::<serde_json::Value>("/x/scripts/").len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_from_batch_to_batch_and_is_done() {
    let (testbed, master) = Testbed::led().await;
    for n in 0..3 {
        testbed.register(n).await;
    }
    master.create(TaskDraft { batch: "2".to_owned(), ..draft(3) }).await.unwrap().unwrap();
    sleep(SECOND / 10).await;
    assert_eq!(testbed.ordered(), 2);
    testbed.report(0, None).await;
    testbed.report(0, Some(Outcome::Succeeded)).await;
    assert_eq!(testbed.ordered(), 3);
    testbed.report(1, Some(Outcome::Succeeded)).await;
    assert_eq!(testbed.intent().done_at, 0, "the last one runs");
    testbed.report(2, Some(Outcome::Rejected)).await;
    assert_ne!(testbed.intent().done_at, 0);
    sleep(SECOND).await;
    assert_eq!(testbed.history(), ["task-created", "task-done"]);
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_pause_and_a_person_goes_on() {
    let (testbed, master) = Testbed::led().await;
    master.create(TaskDraft { batch: "1".to_owned(), ..draft(3) }).await.unwrap().unwrap();
    sleep(SECOND / 10).await;
    testbed.report(0, Some(Outcome::Failed)).await;
    let intent = testbed.intent();
    assert_eq!((intent.goal, &*intent.why, testbed.ordered()), (TaskGoal::Pause, "tolerance: 1 failed, and 0 may", 1));
    master.want(TaskVerb::Resume).await.unwrap();
    sleep(SECOND / 10).await;
    assert_eq!((testbed.intent().accepted, testbed.ordered()), (1, 2));
    testbed.report(1, Some(Outcome::Succeeded)).await;
    testbed.report(2, Some(Outcome::Succeeded)).await;
    assert_ne!(testbed.intent().done_at, 0);
    // The one that failed runs once more, by a new attempt under the same key.
    master.redo(Redone::Failed).await.unwrap();
    sleep(SECOND / 10).await;
    let order: Order = testbed.key(&Key::Order(id(0), TaskId(1))).unwrap();
    assert_eq!((order.attempt, order.intent, testbed.intent().done_at), (2, OrderIntent::Run, 0));
    testbed.report(0, Some(Outcome::Succeeded)).await;
    assert_ne!(testbed.intent().done_at, 0);
    let refused = master.want(TaskVerb::Resume).await.unwrap_err();
    assert_eq!(refused.to_string(), "task 1 is done; redo hosts of it, or create it again");
    sleep(SECOND).await;
    let expected = ["task-created", "task-paused", "task-resumed", "task-done", "task-redone w000", "task-done"];
    assert_eq!(testbed.history(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_nobody_is_ends_when_its_delivery_does() {
    let (testbed, master) = Testbed::led().await;
    master.create(TaskDraft { deliver_ms: 60_000, ..draft(2) }).await.unwrap().unwrap();
    sleep(59 * SECOND).await;
    assert_eq!(testbed.ordered(), 2);
    // Nothing happens meanwhile: the loop wakes by itself.
    sleep(2 * SECOND).await;
    assert_eq!(testbed.ordered(), 0);
    assert_ne!(testbed.intent().done_at, 0);
    sleep(SECOND).await;
    // What is said of hosts is gathered for a second.
    assert_eq!(testbed.history(), ["task-created", "task-done", "task-undelivered w000"]);
}

#[tokio::test(start_paused = true)]
async fn to_kill_stops_what_runs_and_closes_what_has_not_begun() {
    let (testbed, master) = Testbed::led().await;
    master.create(draft(2)).await.unwrap().unwrap();
    sleep(SECOND / 10).await;
    testbed.report(0, None).await;
    master.want(TaskVerb::Kill).await.unwrap();
    sleep(SECOND / 10).await;
    let orders: Vec<Order> = testbed.under("/orders/");
    assert_eq!(orders.iter().map(|order| order.intent).collect::<Vec<_>>(), [OrderIntent::Stop, OrderIntent::Cancelled]);
    assert_eq!(&*orders[0].why, "killed by a person, from 10.0.0.9");
    testbed.report(0, Some(Outcome::Killed)).await;
    assert_ne!(testbed.intent().done_at, 0);
    assert!(matches!(master.redo(Redone::Failed).await, Err(Refusal::TaskState(_))));
}

/// A worker begins with what the leader closes at the same moment. One of them wins, and the other goes by that.
#[tokio::test(start_paused = true)]
async fn a_worker_that_begins_first_is_not_closed_as_never_begun() {
    let testbed = Testbed::new(1, 1);
    let link = testbed.etcd.link("master");
    let master = Master::start("master-1", &link);
    master.leads().await;
    master.create(draft(1)).await.unwrap().unwrap();
    sleep(SECOND / 10).await;
    // The close is on its way when the worker begins, and the leader hears of that later.
    link.delay(SECOND / 20);
    let result = serde_json::to_vec(&TaskResult::running(1, Revision(1), 1)).unwrap();
    let key = Keys::new("").spell(&Key::TaskResult(id(0), TaskId(1)));
    let begins = async {
        sleep(SECOND / 8).await;
        testbed.workers.put(key, result).await
    };
    let (begun, cancelled) = tokio::join!(begins, master.want(TaskVerb::Cancel));
    begun.unwrap();
    cancelled.unwrap();
    sleep(SECOND).await;
    let order: Order = testbed.key(&Key::Order(id(0), TaskId(1))).unwrap();
    let result: TaskResult = testbed.key(&Key::TaskResult(id(0), TaskId(1))).unwrap();
    assert_eq!(result.end(), None);
    assert_eq!(order.intent, OrderIntent::Run, "what was begun is not closed as what never was");
    assert_eq!(testbed.intent().done_at, 0, "it runs");
}

/// Two leaders and one tick: the old one still has orders on their way when the next has begun. Each host is ordered once.
#[tokio::test(start_paused = true)]
async fn each_host_is_ordered_once_whoever_leads() {
    let mut cut_between = 0;
    for round in 0..12_u32 {
        let testbed = Testbed::new(3, u64::from(round));
        let (old_link, new_link) = (testbed.etcd.link("old"), testbed.etcd.link("new"));
        let old = Master::start("old", &old_link);
        old.leads().await;
        let new = Master::start("new", &new_link);
        sleep(5 * SECOND).await;
        old_link.delay(SECOND / 100);
        let created = old.create(TaskDraft { batch: "all".to_owned(), ..draft(400) });
        // The cut falls anywhere between the creation and the last order, in each direction.
        sleep(Duration::from_millis(20 + 5 * u64::from(round))).await;
        old_link.cut([Direction::Both, Direction::ToEtcd, Direction::FromEtcd][round as usize % 3]);
        cut_between += usize::from((1..400).contains(&testbed.ordered()));
        new.leads().await;
        old_link.heal();
        sleep(10 * SECOND).await;
        let tasks = testbed.under::<serde_json::Value>("/tasks/").len();
        drop(created);
        let orders: Vec<(Order, bool)> = testbed.etcd.peek(|store| {
            let range = KeyRange::prefix("/orders/");
            store.iter(&range).map(|kv| (serde_json::from_slice(&kv.value).unwrap(), kv.created == kv.modified)).collect()
        });
        assert_eq!(orders.len(), tasks * 400, "round {round}");
        assert!(orders.iter().all(|(order, is_once)| *is_once && order.attempt == 1), "round {round}: {orders:?}");
    }
    assert!(cut_between > 0, "some were cut between two orders");
}

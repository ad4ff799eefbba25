//! Many callers of one leader, over the model of etcd on virtual time: what they ask for together is answered together, who has gone is
//! forgotten, and an operator does not wait behind them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use evenkeel_master::{
    MasterConfig,
    engine::{Effect, Engine, Handle, Leadership, PutAnswer, PutMode, Refusal, Request},
};
use evenkeel_model::{
    Assignment, Definition, Draft, DriverTraits, EntryKind, HistoryEntry, Holds, IntentKind, MasterId, MasterRecord, Observed, Phase,
    Record, Registration, ResourceName, Status, StopReason, WorkerId,
};
use evenkeel_sim::{
    etcd::{Etcd, Settings},
    fleet::{clock::MachineClock, dice::generator},
};
use evenkeel_store::{KeyRange, keys::Keys};
use tokio::{sync::oneshot, time::sleep};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(5);

struct Testbed {
    etcd: Etcd,
    handle: Handle,
    /// The master runs until this is dropped.
    _stop: oneshot::Sender<()>,
}

type Answer<T> = oneshot::Receiver<Result<T, Refusal>>;

impl Testbed {
    /// A master that leads.
    async fn start() -> Self {
        let etcd = Etcd::start(Settings { members: 1, slow_one_in: 0, ..Settings::default() }, generator(1, "etcd"));
        let id = MasterId::new("master-1").unwrap();
        let config = MasterConfig::new(id.clone(), Vec::new());
        let record = MasterRecord { id, address: String::new(), http: String::new(), version: String::new(), leads_since: 0 };
        let engine = Engine::new(Arc::new(config), etcd.link("master").client(SECOND), record, Arc::new(MachineClock::boot(0)));
        let handle = engine.handle();
        let (stop, stops) = oneshot::channel();
        tokio::spawn(engine.run(stops));
        while handle.leadership() != Leadership::Mine {
            sleep(TICK).await;
        }
        Self { etcd, handle, _stop: stop }
    }

    fn put(&self, definition: Definition, mode: PutMode) -> Answer<PutAnswer> {
        let (reply, answer) = oneshot::channel();
        self.handle.ask(Request::put(Box::new(definition), mode, "".into(), reply.into())).unwrap();
        answer
    }

    fn delete(&self, name: &str) -> Answer<()> {
        self.delete_only(name, None)
    }

    fn delete_only(&self, name: &str, id: Option<u64>) -> Answer<()> {
        let (reply, answer) = oneshot::channel();
        let name = ResourceName::new(name).unwrap();
        self.handle.ask(Request::delete(name, "".into(), id, reply.into())).unwrap();
        answer
    }

    /// How many transactions etcd has carried out.
    fn revision(&self) -> i64 {
        self.etcd.peek(|store| store.revision().0)
    }
}

fn resource(name: &str, weight: u64) -> Definition {
    Draft { name: name.to_owned(), kind: "sim".to_owned(), weight: Some(weight), ..Draft::default() }.check().unwrap()
}

/// Each answer from memory waits for a transaction that shows it true. Two thousand of them waited for two thousand, one after the other.
#[tokio::test(start_paused = true)]
async fn one_commit_answers_all_that_wait_for_the_same_thing() {
    let testbed = Testbed::start().await;
    let before = testbed.revision();
    let same: Vec<_> = (0..2000).map(|_| testbed.put(resource("a", 1), PutMode::Add)).collect();
    let others: Vec<_> = (0..1000).map(|_| testbed.put(resource("a", 2), PutMode::Add)).collect();
    let mut created = 0;
    for answer in same {
        created += usize::from(answer.await.unwrap().unwrap().effect == Effect::Created);
    }
    for answer in others {
        assert!(matches!(answer.await.unwrap(), Err(Refusal::AlreadyExists(_))));
    }
    assert_eq!(created, 1);
    // The creation, what answers all the others, and a batch or two of the history.
    assert!(testbed.revision() - before <= 6, "{} transactions", testbed.revision() - before);
}

/// What waits behind a write is decided in the order in which it was asked, and each answer is true of what is written by then.
#[tokio::test(start_paused = true)]
async fn what_waits_for_one_resource_is_answered_in_order() {
    let testbed = Testbed::start().await;
    testbed.etcd.freeze_all();
    let created = testbed.put(resource("a", 1), PutMode::Add);
    sleep(TICK).await;
    let again = testbed.put(resource("a", 1), PutMode::Add);
    let deleted = testbed.delete("a");
    let gone = testbed.delete("a");
    let missing = testbed.put(resource("a", 1), PutMode::Update);
    let anew = testbed.put(resource("a", 3), PutMode::Add);
    let changed = testbed.put(resource("a", 4), PutMode::Apply);
    let unchanged = testbed.put(resource("a", 4), PutMode::Update);
    sleep(TICK).await;
    testbed.etcd.thaw(0);
    assert_eq!(created.await.unwrap().unwrap().effect, Effect::Created);
    assert_eq!(again.await.unwrap().unwrap().effect, Effect::Unchanged);
    assert_eq!(deleted.await.unwrap(), Ok(()));
    assert!(matches!(gone.await.unwrap(), Err(Refusal::NotFound(_))));
    assert!(matches!(missing.await.unwrap(), Err(Refusal::NotFound(_))));
    assert_eq!(anew.await.unwrap().unwrap().effect, Effect::Created);
    assert_eq!(changed.await.unwrap().unwrap().effect, Effect::Changed);
    let last = unchanged.await.unwrap().unwrap();
    assert_eq!((last.effect, last.record.definition.weight), (Effect::Unchanged, 4));
}

fn process(weight: u64, spec: serde_json::Value) -> Definition {
    let (name, kind) = ("a".to_owned(), "process".to_owned());
    Draft { name, kind, weight: Some(weight), spec: Some(spec), ..Draft::default() }.check().unwrap()
}

/// It restarted the work, and was refused as another definition.
#[tokio::test(start_paused = true)]
async fn a_spec_that_spells_out_its_defaults_is_the_same_again() {
    let testbed = Testbed::start().await;
    let id = WorkerId::new("worker-1").unwrap();
    let registration = Registration { kinds: vec!["process".into()], ..Registration::bare(id.clone(), "worker-1:1".to_owned()) };
    testbed.etcd.link("worker").client(SECOND).put(Keys::new("").worker(&id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    sleep(SECOND).await;
    let plain = serde_json::json!({"command": ["./a"], "stop_grace": "3s"});
    let spelled = serde_json::json!({"command": ["./a"], "stop_grace": "3000ms", "restart": "always", "env": {}, "stop_signal": "SIGTERM"});
    let created = testbed.put(process(1, plain), PutMode::Add).await.unwrap().unwrap();
    assert_eq!((created.effect, created.node.is_some()), (Effect::Created, true));
    for mode in [PutMode::Add, PutMode::Update, PutMode::Apply] {
        let again = testbed.put(process(1, spelled.clone()), mode).await.unwrap().unwrap();
        assert_eq!((again.effect, again.record), (Effect::Unchanged, created.record.clone()), "{mode:?}");
    }
    // What only concerns its place is written, with the spec as it is spelled now, and the assignment goes on.
    let heavier = testbed.put(process(2, spelled), PutMode::Update).await.unwrap().unwrap();
    assert_eq!((heavier.effect, heavier.epoch), (Effect::Changed, created.epoch));
    sleep(SECOND).await;
    let other = serde_json::json!({"command": ["./a"], "stop_grace": "3001ms"});
    assert!(matches!(testbed.put(process(2, other.clone()), PutMode::Add).await.unwrap(), Err(Refusal::AlreadyExists(_))));
    let epoch = |answer: PutAnswer| (answer.effect, answer.node.is_some(), answer.epoch);
    assert_eq!(
        epoch(
            testbed.put(process(2, serde_json::json!({"command": ["./a"], "stop_grace": "3s"})), PutMode::Update).await.unwrap().unwrap()
        ),
        (Effect::Unchanged, true, created.epoch),
        "it still runs"
    );
    assert_eq!(testbed.put(process(2, other), PutMode::Update).await.unwrap().unwrap().effect, Effect::Changed);
    sleep(SECOND).await;
    let stopping =
        testbed.put(process(2, serde_json::json!({"command": ["./a"], "stop_grace": "3001ms"})), PutMode::Add).await.unwrap().unwrap();
    assert_eq!((stopping.effect, stopping.node), (Effect::Unchanged, None), "it is told to stop");
}

/// What a driver can take while the work runs is given to it together with the change, under the same epoch; what has ended is run anew.
#[tokio::test(start_paused = true)]
async fn a_change_that_is_taken_in_place_is_one_transaction_and_keeps_its_epoch() {
    let testbed = Testbed::start().await;
    let (keys, hand, name) = (Keys::new(""), testbed.etcd.link("worker").client(SECOND), ResourceName::new("a").unwrap());
    let id = WorkerId::new("worker-1").unwrap();
    let drivers = [("process".to_owned(), DriverTraits { holds: Holds::Fenced, updates: true })].into();
    let registration = Registration { kinds: vec!["process".into()], drivers, ..Registration::bare(id.clone(), "worker-1:1".to_owned()) };
    hand.put(keys.worker(&id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    sleep(SECOND).await;
    let spec = |restart: &str| process(1, serde_json::json!({"command": ["./a"], "restart": restart}));
    let created = testbed.put(spec("always"), PutMode::Add).await.unwrap().unwrap();
    assert_eq!((created.node.is_some(), created.holds), (true, Holds::Fenced));
    sleep(SECOND).await;
    let stored = || {
        testbed.etcd.peek(|store| {
            let [record, assignment] = [keys.resource(&name), keys.assignment(&id, &name)].map(|key| store.get(key.as_bytes()).unwrap());
            let read: Assignment = serde_json::from_slice(&assignment.value).unwrap();
            ((record.modified, assignment.modified, assignment.created), read)
        })
    };
    let changed = testbed.put(spec("never"), PutMode::Update).await.unwrap().unwrap();
    assert_eq!((changed.effect, changed.epoch), (Effect::Changed, created.epoch));
    let ((record, written, epoch), assignment) = stored();
    assert_eq!((record, epoch.0), (written, created.epoch.0), "one transaction, and the same epoch");
    assert_eq!((assignment.hash, assignment.holds, assignment.phase), (spec("never").hash(), Holds::Fenced, Phase::Run));
    sleep(SECOND).await;
    let told = testbed.etcd.peek(|store| {
        let range = KeyRange::prefix(keys.events());
        store.iter(&range).flat_map(|kv| serde_json::from_slice::<Vec<HistoryEntry>>(&kv.value).unwrap()).collect::<Vec<_>>()
    });
    let updated: Vec<&HistoryEntry> = told.iter().filter(|entry| entry.kind == EntryKind::Updated).collect();
    assert!(matches!(updated.as_slice(), [entry] if entry.worker == "worker-1" && entry.epoch == created.epoch), "{told:?}");

    // It ends by itself, and rests: nothing of it could take a change.
    let status = Status { hash: spec("never").hash(), ..Status::new(Observed::Failed, created.epoch, 0) };
    hand.put(keys.status(&id, &name), serde_json::to_vec(&status).unwrap()).await.unwrap();
    sleep(SECOND).await;
    testbed.put(spec("on-failure"), PutMode::Update).await.unwrap().unwrap();
    sleep(SECOND).await;
    let (_, assignment) = stored();
    assert!(matches!(assignment.phase, Phase::Stop { reason: StopReason::Changed, .. }), "{assignment:?}");
    assert_eq!((assignment.hash, assignment.holds), (spec("never").hash(), Holds::Fenced));
    // A stop is final.
    testbed.put(spec("always"), PutMode::Update).await.unwrap().unwrap();
    sleep(SECOND).await;
    assert_eq!(stored().1, assignment);
}

/// A delete that was asked twice, and came late the second time, deleted what had been added meanwhile.
#[tokio::test(start_paused = true)]
async fn a_delete_that_comes_late_deletes_no_later_resource() {
    let testbed = Testbed::start().await;
    let first = testbed.put(resource("a", 1), PutMode::Add).await.unwrap().unwrap().record.id;
    assert_eq!(testbed.delete_only("a", Some(first)).await.unwrap(), Ok(()));
    let second = testbed.put(resource("a", 1), PutMode::Add).await.unwrap().unwrap();
    assert!(matches!(testbed.delete_only("a", Some(first)).await.unwrap(), Err(Refusal::NotFound(_))));
    assert_eq!(testbed.put(resource("a", 1), PutMode::Add).await.unwrap().unwrap().record, second.record);
    assert_eq!(testbed.delete_only("a", Some(second.record.id)).await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_has_gone_is_not_carried_out() {
    let testbed = Testbed::start().await;
    testbed.etcd.freeze_all();
    let created = testbed.put(resource("a", 1), PutMode::Add);
    sleep(TICK).await;
    // They wait behind the creation, some in the queue and some behind the resource, and then nobody waits for them.
    let changes: Vec<_> = (2..500).map(|weight| testbed.put(resource("a", weight), PutMode::Apply)).collect();
    let deleted = testbed.delete("a");
    sleep(TICK).await;
    drop((changes, deleted));
    for weight in 500..1000 {
        drop(testbed.put(resource("a", weight), PutMode::Apply));
    }
    sleep(TICK).await;
    let before = testbed.revision();
    testbed.etcd.thaw(0);
    assert_eq!(created.await.unwrap().unwrap().effect, Effect::Created);
    let after = testbed.put(resource("a", 1), PutMode::Add).await.unwrap().unwrap();
    assert_eq!(after.effect, Effect::Unchanged);
    assert!(testbed.revision() - before <= 6, "{} transactions", testbed.revision() - before);
}

#[tokio::test(start_paused = true)]
async fn an_operator_does_not_wait_behind_callers() {
    let testbed = Testbed::start().await;
    let id = WorkerId::new("worker-1").unwrap();
    let registration = Registration { kinds: vec!["sim".into()], ..Registration::bare(id.clone(), "worker-1:1".to_owned()) };
    let key = Keys::new("").worker(&id);
    testbed.etcd.link("worker").client(SECOND).put(key, serde_json::to_vec(&registration).unwrap()).await.unwrap();
    sleep(SECOND).await;
    testbed.etcd.freeze_all();
    let mut adds: Vec<_> = (0..8000).map(|n| testbed.put(resource(&format!("r{n}"), 1), PutMode::Add)).collect();
    sleep(TICK).await;
    // More wait than are taken on at once; the operator's request came last.
    let (reply, cordoned) = oneshot::channel();
    testbed.handle.ask(Request::intent(id, Some(IntentKind::Cordon), reply.into())).unwrap();
    sleep(TICK).await;
    testbed.etcd.thaw(0);
    assert_eq!(cordoned.await.unwrap(), Ok(()));
    let waiting = adds.iter_mut().map(|answer| usize::from(answer.try_recv().is_err())).sum::<usize>();
    assert!(waiting > 2000, "only {waiting} of 8000 wait when the operator has its answer");
}

/// What was added is other work than what was deleted, though that had ended by itself before its worker heard of the end.
#[tokio::test(start_paused = true)]
async fn an_end_from_before_a_delete_says_nothing_of_what_was_added_since() {
    let testbed = Testbed::start().await;
    let (keys, hand, name) = (Keys::new(""), testbed.etcd.link("worker").client(SECOND), ResourceName::new("a").unwrap());
    let ids = ["worker-1", "worker-2"].map(|id| WorkerId::new(id).unwrap());
    for id in &ids {
        let registration = Registration { kinds: vec!["sim".into()], ..Registration::bare(id.clone(), format!("{id}:1")) };
        hand.put(keys.worker(id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    }
    sleep(SECOND).await;
    let epoch = testbed.put(resource("a", 1), PutMode::Add).await.unwrap().unwrap().epoch;
    let (reply, drains) = oneshot::channel();
    testbed.handle.ask(Request::intent(ids[0].clone(), Some(IntentKind::Drain { deadline_ms: None }), reply.into())).unwrap();
    drains.await.unwrap().unwrap();
    sleep(SECOND).await;
    // It is on its way to the other worker by now.
    testbed.delete("a").await.unwrap().unwrap();
    testbed.put(resource("a", 1), PutMode::Add).await.unwrap().unwrap();
    for phase in [Observed::Stopping, Observed::Stopped] {
        let status = Status { failures: 1, finished: true, message: "exit status 0".to_owned(), ..Status::new(phase, epoch, 0) };
        hand.put(keys.status(&ids[0], &name), serde_json::to_vec(&status).unwrap()).await.unwrap();
        sleep(SECOND).await;
        let record = |store: &evenkeel_sim::etcd::Store| {
            serde_json::from_slice::<Record>(&store.get(keys.resource(&name).as_bytes()).unwrap().value).unwrap()
        };
        assert_eq!(testbed.etcd.peek(record).finish(), None);
    }
    let runs = testbed.etcd.peek(|store| store.get(keys.assignment(&ids[1], &name).as_bytes()).is_some());
    assert!(runs, "the old run has ended, and the new one may begin");
}

/// Its status says it for a moment only: the worker that comes back knows nothing of it.
#[tokio::test(start_paused = true)]
async fn who_made_a_worker_end_its_process_is_told_once_in_the_history() {
    let testbed = Testbed::start().await;
    let (keys, hand, name) = (Keys::new(""), testbed.etcd.link("worker").client(SECOND), ResourceName::new("a").unwrap());
    let id = WorkerId::new("worker-1").unwrap();
    let registration = Registration { kinds: vec!["sim".into()], ..Registration::bare(id.clone(), "worker-1:1".to_owned()) };
    hand.put(keys.worker(&id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    sleep(SECOND).await;
    let epoch = testbed.put(resource("a", 1), PutMode::Add).await.unwrap().unwrap().epoch;
    for restarts in [0, 1] {
        let message = "it blocks its thread".to_owned();
        let status = Status { overran: true, restarts, message, ..Status::new(Observed::Stopping, epoch, 0) };
        hand.put(keys.status(&id, &name), serde_json::to_vec(&status).unwrap()).await.unwrap();
        sleep(SECOND).await;
    }
    let told: Vec<(String, String, String)> = testbed.etcd.peek(|store| {
        let range = KeyRange::prefix(keys.events());
        let entries = store.iter(&range).flat_map(|kv| serde_json::from_slice::<Vec<HistoryEntry>>(&kv.value).unwrap());
        entries.filter(|entry| entry.kind == EntryKind::Overran).map(|entry| (entry.resource, entry.worker, entry.reason)).collect()
    });
    assert_eq!(told, [("a".to_owned(), "worker-1".to_owned(), "it blocks its thread".to_owned())]);
}

//! A master whose watch is silent, or late: the real control loop over the model of etcd, on virtual time, with a gate before its watch. What was
//! answered is what the next call finds, whatever the watch has not brought yet; and a refused write concerns its own caller.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use evenkeel_master::{
    MasterConfig,
    engine::{Effect, Engine, Handle, Leadership, PutMode, Refusal, Request},
};
use evenkeel_model::{Draft, MasterId, MasterRecord, Registration, ResourceName, WorkerId};
use evenkeel_sim::{
    etcd::{Etcd, Settings},
    fleet::{clock::MachineClock, dice::generator},
};
use evenkeel_store::{
    Client, Error, Granted, KeepAlive, KeyRange, MemberStatus, Op, RangeReply, RangeRequest, Revision, Transport, Txn, TxnReply, Watch,
    WatchMessage, keys::Keys,
};
use futures::{FutureExt, future::BoxFuture, future::join_all};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(20);
/// Many round trips to this etcd, and less than any pause of somebody who waits for a list or for better times.
const AT_ONCE: Duration = Duration::from_millis(40);

/// What stands between a master and its watch, and counts what it asks of etcd.
#[derive(Debug, Default)]
struct Gate {
    /// How many revisions more may pass; none: all.
    left: Mutex<Option<usize>>,
    changed: Notify,
    /// How many are held.
    held: AtomicUsize,
    /// How often it has read a range.
    lists: AtomicUsize,
    /// How many of its transactions have failed a compare.
    failed: AtomicUsize,
}

impl Gate {
    fn hold(&self) {
        *self.left.lock().unwrap() = Some(0);
    }

    fn open(&self) {
        *self.left.lock().unwrap() = None;
        self.changed.notify_one();
    }

    /// Lets one revision pass, if one is held.
    fn pass_one(&self) -> bool {
        if self.held.load(Relaxed) == 0 {
            return false;
        }
        *self.left.lock().unwrap() = Some(1);
        self.changed.notify_one();
        true
    }

    fn lets_pass(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        match left.as_mut() {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// How often it has listed, and been refused.
    fn troubles(&self) -> (usize, usize) {
        (self.lists.load(Relaxed), self.failed.load(Relaxed))
    }
}

/// A member behind the gate.
#[derive(Debug)]
struct Gated {
    member: Arc<dyn Transport>,
    gate: Arc<Gate>,
}

impl Transport for Gated {
    fn endpoint(&self) -> &str {
        self.member.endpoint()
    }

    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeReply, Error>> {
        // After a refusal for space the leader reads the mark of that batch, which is one key.
        self.gate.lists.fetch_add(usize::from(!request.range.end.is_empty()), Relaxed);
        self.member.range(request)
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        async move {
            let reply = self.member.txn(txn).await;
            self.gate.failed.fetch_add(usize::from(reply.as_ref().is_ok_and(|reply| !reply.succeeded)), Relaxed);
            reply
        }
        .boxed()
    }

    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> BoxFuture<'_, Result<Revision, Error>> {
        self.member.put(key, value)
    }

    fn grant(&self, seconds: i64) -> BoxFuture<'_, Result<Granted, Error>> {
        self.member.grant(seconds)
    }

    fn revoke(&self, lease: i64) -> BoxFuture<'_, Result<(), Error>> {
        self.member.revoke(lease)
    }

    fn time_to_live(&self, lease: i64) -> BoxFuture<'_, Result<Option<Duration>, Error>> {
        self.member.time_to_live(lease)
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>> {
        self.member.compact(revision)
    }

    fn status(&self) -> BoxFuture<'_, Result<MemberStatus, Error>> {
        self.member.status()
    }

    fn watch(&self, range: KeyRange, start: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        async move {
            let watch = self.member.watch(range, start).await?;
            Ok(Box::new(GatedWatch { watch, gate: Arc::clone(&self.gate), held: VecDeque::new() }) as Box<dyn Watch>)
        }
        .boxed()
    }

    fn keep_alive(&self, lease: i64) -> BoxFuture<'_, Result<Box<dyn KeepAlive>, Error>> {
        self.member.keep_alive(lease)
    }

    fn forget(&self) {
        self.member.forget();
    }
}

struct GatedWatch {
    watch: Box<dyn Watch>,
    gate: Arc<Gate>,
    /// One revision each.
    held: VecDeque<WatchMessage>,
}

impl Watch for GatedWatch {
    fn created_at(&self) -> Revision {
        self.watch.created_at()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<WatchMessage, Error>> {
        async {
            loop {
                if !self.held.is_empty() && self.gate.lets_pass() {
                    self.gate.held.fetch_sub(1, Relaxed);
                    return Ok(self.held.pop_front().unwrap());
                }
                let gate = Arc::clone(&self.gate);
                tokio::select! {
                    biased;
                    () = gate.changed.notified() => {}
                    message = self.watch.next() => match message? {
                        WatchMessage::Changes(changes) => {
                            let revisions = changes.chunk_by(|one, next| one.revision() == next.revision());
                            let before = self.held.len();
                            self.held.extend(revisions.map(|changes| WatchMessage::Changes(changes.to_vec())));
                            gate.held.fetch_add(self.held.len() - before, Relaxed);
                        }
                        // The member lives, whatever it still owes.
                        WatchMessage::Alive(_) => return Ok(WatchMessage::Alive(None)),
                        compacted @ WatchMessage::Compacted(_) => return Ok(compacted),
                    }
                }
            }
        }
        .boxed()
    }

    fn ask(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        self.watch.ask()
    }
}

/// A master that leads, with two workers, and a hand that writes to etcd.
struct Stage {
    etcd: Etcd,
    hand: Client,
    handle: Handle,
    gate: Arc<Gate>,
    /// It runs until this is dropped.
    _stop: oneshot::Sender<()>,
}

impl Stage {
    async fn start() -> Self {
        let etcd = Etcd::start(Settings { members: 1, slow_one_in: 0, ..Settings::default() }, generator(1, "etcd"));
        let (link, hand) = (etcd.link("master"), etcd.link("hand").client(SECOND));
        let gate = Arc::new(Gate::default());
        let gated = |member| Arc::new(Gated { member, gate: Arc::clone(&gate) }) as Arc<dyn Transport>;
        let client = Client::over(link.transports().into_iter().map(gated).collect(), SECOND);
        let id = MasterId::new("master-1").unwrap();
        let config = MasterConfig::new(id.clone(), Vec::new());
        let record = MasterRecord { id, address: String::new(), http: String::new(), version: String::new(), leads_since: 0 };
        let engine = Engine::new(Arc::new(config), client, record, Arc::new(MachineClock::boot(0)));
        let handle = engine.handle();
        let (stop, stops) = oneshot::channel();
        tokio::spawn(engine.run(stops));
        let stage = Self { etcd, hand, handle, gate, _stop: stop };
        stage.until("it leads", |stage| stage.handle.leadership() == Leadership::Mine).await;
        for worker in ["worker-1", "worker-2"] {
            let id = WorkerId::new(worker).unwrap();
            let registration = Registration { kinds: vec!["sim".into()], ..Registration::bare(id.clone(), format!("{worker}:1")) };
            stage.hand.put(Keys::new("").worker(&id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
        }
        stage.until("they are admitted", |stage| stage.count("/admissions/") == 2).await;
        // What was written until now has come by the watch, the history too.
        sleep(SECOND).await;
        stage
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < 30 * SECOND, "it does not come to be that {what}");
            sleep(TICK).await;
        }
    }

    fn count(&self, prefix: &str) -> usize {
        self.etcd.peek(|store| store.iter(&KeyRange::prefix(prefix)).count())
    }

    async fn put(&self, name: &str, content: u64, mode: PutMode) -> Result<Effect, Refusal> {
        put(&self.handle, name, content, mode).await
    }

    async fn delete(&self, name: &str) -> Result<(), Refusal> {
        delete(&self.handle, name).await
    }

    /// Somebody else writes this record.
    async fn write(&self, name: &str) {
        let record = serde_json::json!({"ID": "7", "Name": name, "AssignedNode": "", "CreationTime": 1, "Kind": "sim"});
        self.hand.put(format!("/resources/{name}"), record.to_string()).await.unwrap();
    }

    /// Somebody else deletes it.
    async fn remove(&self, name: &str) {
        let delete = vec![Op::delete(format!("/resources/{name}"))];
        self.hand.txn(Txn { then: delete, ..Txn::default() }, SECOND).await.unwrap();
    }
}

/// What is answered, which must be soon.
async fn answered<T>(answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
    timeout(AT_ONCE, answer).await.expect("an answer at once").expect("an answer")
}

async fn put(handle: &Handle, name: &str, content: u64, mode: PutMode) -> Result<Effect, Refusal> {
    // One that no worker has the kind for stays pending.
    let kind = if name.starts_with("pending") { "none" } else { "sim" };
    let spec = Some(serde_json::json!({ "content": content }));
    let draft = Draft { name: name.to_owned(), kind: kind.to_owned(), spec, ..Draft::default() };
    let (reply, answer) = oneshot::channel();
    let definition = Box::new(draft.check().unwrap());
    handle.ask(Request::put(definition, mode, "".into(), reply.into())).unwrap();
    answered(answer).await.map(|answer| answer.effect)
}

async fn delete(handle: &Handle, name: &str) -> Result<(), Refusal> {
    let (reply, answer) = oneshot::channel();
    let name = ResourceName::new(name).unwrap();
    handle.ask(Request::delete(name, "".into(), None, reply.into())).unwrap();
    answered(answer).await
}

fn no_such(name: &str) -> Refusal {
    Refusal::NotFound(ResourceName::new(name).unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_is_found_by_the_next_call_while_the_watch_is_silent() {
    let stage = Stage::start().await;
    let before = stage.gate.troubles();
    stage.gate.hold();
    for name in ["a", "pending"] {
        assert_eq!(stage.put(name, 1, PutMode::Add).await, Ok(Effect::Created));
        assert_eq!(stage.put(name, 1, PutMode::Add).await, Ok(Effect::Unchanged));
        assert_eq!(stage.put(name, 2, PutMode::Add).await, Err(Refusal::AlreadyExists(ResourceName::new(name).unwrap())));
        assert_eq!(stage.put(name, 2, PutMode::Update).await, Ok(Effect::Changed));
        assert_eq!(stage.put(name, 2, PutMode::Apply).await, Ok(Effect::Unchanged));
        assert_eq!(stage.delete(name).await, Ok(()));
        assert_eq!(stage.delete(name).await, Err(no_such(name)));
        assert_eq!(stage.put(name, 3, PutMode::Update).await, Err(no_such(name)));
        assert_eq!(stage.put(name, 3, PutMode::Apply).await, Ok(Effect::Created));
    }
    assert!(stage.gate.held.load(Relaxed) >= 8, "the watch has brought nothing of it");
    assert_eq!(stage.gate.troubles(), before, "lists, and writes that were refused");
    stage.gate.open();
    stage.until("the watch has brought all of it", |stage| stage.gate.held.load(Relaxed) == 0).await;
    for name in ["a", "pending"] {
        assert_eq!(stage.put(name, 3, PutMode::Add).await, Ok(Effect::Unchanged));
    }
}

/// The echo of an add comes when the delete was answered already, and that of the delete when the name was added again.
#[tokio::test(start_paused = true)]
async fn an_echo_that_comes_late_undoes_nothing() {
    for (name, ends_with_it) in [("a", true), ("a", false), ("pending", true), ("pending", false)] {
        let stage = Stage::start().await;
        stage.gate.hold();
        assert_eq!(stage.put(name, 1, PutMode::Add).await, Ok(Effect::Created));
        assert_eq!(stage.put(name, 2, PutMode::Update).await, Ok(Effect::Changed));
        assert_eq!(stage.delete(name).await, Ok(()));
        if ends_with_it {
            assert_eq!(stage.put(name, 3, PutMode::Add).await, Ok(Effect::Created));
        }
        let before = stage.gate.troubles();
        let mut echoes = 0;
        while stage.gate.pass_one() {
            echoes += 1;
            sleep(TICK).await;
            if ends_with_it {
                assert_eq!(stage.put(name, 3, PutMode::Add).await, Ok(Effect::Unchanged), "{name}: after {echoes} echoes");
            } else {
                assert_eq!(stage.delete(name).await, Err(no_such(name)), "{name}: after {echoes} echoes");
                assert_eq!(stage.put(name, 4, PutMode::Update).await, Err(no_such(name)), "{name}: after {echoes} echoes");
            }
        }
        assert!(echoes >= 3, "{name}: {echoes} echoes");
        assert_eq!(stage.gate.troubles(), before, "{name}: nothing was decided on what is over: lists, and writes that were refused");
    }
}

/// Somebody else had the name before; the watch tells of it when the leader has written it.
#[tokio::test(start_paused = true)]
async fn an_older_change_by_somebody_else_undoes_nothing_and_a_later_one_counts() {
    let stage = Stage::start().await;
    stage.gate.hold();
    stage.write("a").await;
    stage.remove("a").await;
    assert_eq!(stage.put("a", 1, PutMode::Add).await, Ok(Effect::Created));
    let before = stage.gate.troubles();
    let mut changes = 0;
    while stage.gate.pass_one() {
        changes += 1;
        sleep(TICK).await;
        assert_eq!(stage.put("a", 1, PutMode::Add).await, Ok(Effect::Unchanged), "after {changes} changes");
    }
    assert!(changes >= 3, "{changes}");
    assert_eq!(stage.gate.troubles(), before, "lists, and writes that were refused");
    stage.remove("a").await;
    stage.gate.open();
    sleep(TICK).await;
    assert_eq!(stage.put("a", 1, PutMode::Update).await, Err(no_such("a")));
    assert_eq!(stage.gate.troubles().0, before.0, "it lists nothing");
}

/// Adds names of its own for a while; each must be answered at once.
async fn add_many(handle: Handle, caller: usize, span: Duration) -> usize {
    let end = Instant::now() + span;
    let mut added = 0;
    while Instant::now() < end {
        assert_eq!(put(&handle, &format!("{caller}-{added}"), 1, PutMode::Add).await, Ok(Effect::Created));
        added += 1;
    }
    added
}

#[tokio::test(start_paused = true)]
async fn a_conflict_concerns_its_own_caller_alone() {
    let stage = Stage::start().await;
    let callers: Vec<_> = (0..8).map(|caller| tokio::spawn(add_many(stage.handle.clone(), caller, 3 * SECOND))).collect();
    sleep(TICK).await;
    let lists = stage.gate.troubles().0;
    for round in 0..10 {
        // Nobody has told the leader of it.
        stage.gate.hold();
        let name = format!("x{round}");
        stage.write(&name).await;
        let answer = stage.put(&name, 1, PutMode::Add).await;
        let (conflict, exists) = (matches!(answer, Err(Refusal::Conflict(_))), matches!(answer, Err(Refusal::AlreadyExists(_))));
        assert!(conflict || exists, "{answer:?}");
        stage.gate.open();
        sleep(TICK).await;
        assert_eq!(stage.put(&name, 1, PutMode::Update).await, Ok(Effect::Changed));
    }
    assert!(stage.gate.troubles().1 > 0, "there were conflicts");
    let added: usize = join_all(callers).await.into_iter().map(|added| added.expect("nobody else is refused or delayed")).sum();
    assert!(added > 400, "{added}");
    assert_eq!(stage.gate.troubles().0, lists, "it lists nothing");
}

#[tokio::test(start_paused = true)]
async fn without_space_only_what_needs_some_is_refused() {
    let stage = Stage::start().await;
    for name in ["a", "b", "pending-1", "pending-2"] {
        assert_eq!(stage.put(name, 1, PutMode::Add).await, Ok(Effect::Created));
    }
    stage.until("two are assigned", |stage| stage.count("/assignments/") == 2).await;
    sleep(SECOND).await;
    let lists = stage.gate.troubles().0;
    stage.etcd.no_space(true);
    for round in 0..3 {
        assert_eq!(stage.put("c", 1, PutMode::Add).await, Err(Refusal::NoSpace), "round {round}");
        assert_eq!(stage.put("a", 1, PutMode::Add).await, Ok(Effect::Unchanged), "round {round}");
        assert_eq!(stage.put("a", 2, PutMode::Add).await, Err(Refusal::AlreadyExists(ResourceName::new("a").unwrap())));
        assert_eq!(stage.put("pending-1", 1, PutMode::Update).await, Ok(Effect::Unchanged), "round {round}");
        assert_eq!(stage.put("a", 2, PutMode::Update).await, Err(Refusal::NoSpace), "round {round}");
        assert_eq!(stage.delete("none").await, Err(no_such("none")), "round {round}");
        assert_eq!(stage.delete("b").await, Err(Refusal::NoSpace), "its work must be told to stop: round {round}");
    }
    assert_eq!(stage.delete("pending-2").await, Ok(()), "it takes no space");
    assert_eq!(stage.delete("pending-2").await, Err(no_such("pending-2")));
    // Together with one that needs space.
    let (add, delete) = tokio::join!(stage.put("c", 1, PutMode::Add), stage.delete("pending-1"));
    assert_eq!((add, delete), (Err(Refusal::NoSpace), Ok(())));
    assert_eq!(stage.count("/resources/"), 2);
    stage.etcd.no_space(false);
    assert_eq!(stage.put("c", 1, PutMode::Add).await, Ok(Effect::Created));
    assert_eq!(stage.delete("b").await, Ok(()));
    assert_eq!(stage.gate.troubles().0, lists, "it lists nothing");
}

//! A master whose watch is silent, or late: the real control loop over the model of etcd, on virtual time, with a gate before its watch. What was
//! answered is what the next call finds, whatever the watch has not brought yet; and a refused write concerns its own caller.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
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
    /// What it has read of a range is held back.
    holds_lists: AtomicBool,
    list_held: Notify,
    lists_go: Notify,
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
        let is_list = !request.range.end.is_empty();
        async move {
            let read = self.member.range(request).await;
            if is_list && self.gate.holds_lists.load(Relaxed) {
                self.gate.list_held.notify_one();
                self.gate.lists_go.notified().await;
            }
            read
        }
        .boxed()
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
    /// It leads, and there is nothing else yet.
    async fn leading() -> Self {
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
        stage
    }

    async fn start() -> Self {
        let stage = Self::leading().await;
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
        // Nobody has told the leader of it; what etcd has comes with the refusal.
        stage.gate.hold();
        let name = format!("x{round}");
        stage.write(&name).await;
        let answer = stage.put(&name, 1, PutMode::Add).await;
        assert_eq!(answer, Err(Refusal::AlreadyExists(ResourceName::new(&name).unwrap())));
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

/// Those who only wait to be told that it is so go on when what they waited with is refused.
#[tokio::test(start_paused = true)]
async fn who_is_confirmed_by_a_refused_write_is_confirmed_by_another() {
    let stage = Stage::start().await;
    assert_eq!(stage.put("a", 1, PutMode::Add).await, Ok(Effect::Created));
    stage.etcd.no_space(true);
    // The first is under way when the others come; they wait for it, and then go together.
    let first = stage.put("a", 2, PutMode::Update);
    let (is_so, wants, is_so_too) =
        (stage.put("a", 1, PutMode::Add), stage.put("a", 3, PutMode::Update), stage.put("a", 1, PutMode::Apply));
    let answers = tokio::join!(first, is_so, wants, is_so_too);
    let refused = Err(Refusal::NoSpace);
    assert_eq!(answers, (refused.clone(), Ok(Effect::Unchanged), refused, Ok(Effect::Unchanged)));
}

/// Memory proves nothing about now: etcd has to say that what is so already is so.
#[tokio::test(start_paused = true)]
async fn what_is_so_already_is_answered_when_etcd_says_so() {
    let stage = Stage::start().await;
    assert_eq!(stage.put("a", 1, PutMode::Add).await, Ok(Effect::Created));
    stage.etcd.freeze_all();
    let mut asked = Box::pin(stage.put("a", 1, PutMode::Add));
    assert!(timeout(AT_ONCE / 2, &mut asked).await.is_err(), "etcd says nothing");
    stage.etcd.thaw_all();
    assert_eq!(asked.await, Ok(Effect::Unchanged));
}

/// What is decided and not committed yet counts for the next choice.
#[tokio::test(start_paused = true)]
async fn two_that_are_added_at_once_go_to_two_workers() {
    let stage = Stage::start().await;
    let (one, two) = tokio::join!(stage.put("a", 1, PutMode::Add), stage.put("b", 1, PutMode::Add));
    assert_eq!((one, two), (Ok(Effect::Created), Ok(Effect::Created)));
    assert_eq!((stage.count("/assignments/worker-1/"), stage.count("/assignments/worker-2/")), (1, 1));
}

/// A list is made when the watch lags; what is committed after it was read is no part of it.
#[tokio::test(start_paused = true)]
async fn a_list_takes_nothing_away_that_was_committed_after_it_was_read() {
    let stage = Stage::start().await;
    let (lists, failed) = stage.gate.troubles();
    stage.gate.hold();
    stage.gate.holds_lists.store(true, Relaxed);
    assert_eq!(stage.put("a", 1, PutMode::Add).await, Ok(Effect::Created));
    timeout(10 * SECOND, stage.gate.list_held.notified()).await.expect("the watch lags, and everything is listed anew");
    assert_eq!(stage.put("b", 1, PutMode::Add).await, Ok(Effect::Created), "it goes on deciding");
    assert_eq!(stage.delete("a").await, Ok(()));
    stage.gate.holds_lists.store(false, Relaxed);
    stage.gate.lists_go.notify_one();
    sleep(SECOND).await;
    assert_eq!(stage.put("b", 1, PutMode::Add).await, Ok(Effect::Unchanged));
    assert_eq!(stage.delete("a").await, Err(no_such("a")));
    // The watch goes on lagging, and is given up for a list more and more seldom.
    let listed = |stage: &Stage| stage.gate.troubles().0 - lists;
    assert_eq!((listed(&stage), stage.gate.troubles().1), (1, failed), "nothing had to be found out by a refusal");
    for (seconds, most) in [(30, 4), (120, 7)] {
        sleep(seconds * SECOND).await;
        assert_eq!(stage.put(&format!("c{seconds}"), 1, PutMode::Add).await, Ok(Effect::Created));
        assert!(listed(&stage) <= most, "{} lists after {seconds} s more", listed(&stage));
    }
    stage.gate.open();
    assert_eq!(stage.put("b", 1, PutMode::Add).await, Ok(Effect::Unchanged));
}

/// A commit that changes nothing which is watched has no echo to wait for.
#[tokio::test(start_paused = true)]
async fn what_changes_nothing_is_not_taken_for_a_watch_that_lags() {
    let stage = Stage::start().await;
    let lists = stage.gate.troubles().0;
    let (reply, answer) = oneshot::channel();
    stage.handle.ask(Request::intent(WorkerId::new("worker-1").unwrap(), None, reply.into())).unwrap();
    assert_eq!(answered(answer).await, Ok(()));
    let (reply, answer) = oneshot::channel();
    stage.handle.ask(Request::release_brake(reply.into())).unwrap();
    assert!(answered(answer).await.unwrap().is_empty());
    sleep(20 * SECOND).await;
    assert_eq!(stage.gate.troubles().0, lists, "it lists nothing");
}

/// The ends of all that a worker has rest on its admission, which goes with the worker.
#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_costs_no_conflict_and_no_rest() {
    let stage = Stage::start().await;
    for n in 0..40 {
        assert_eq!(stage.put(&format!("r{n}"), 1, PutMode::Add).await, Ok(Effect::Created));
    }
    let failed = stage.gate.troubles().1;
    let id = WorkerId::new("worker-1").unwrap();
    let registration =
        Registration { kinds: vec!["sim".into()], released: true, ..Registration::bare(id.clone(), "worker-1:1".to_owned()) };
    let begun = Instant::now();
    stage.hand.put(Keys::new("").worker(&id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    stage.until("all is on the other", |stage| stage.count("/assignments/worker-2/") == 40 && stage.count("/admissions/") == 1).await;
    assert!(begun.elapsed() < SECOND / 4, "{:?}", begun.elapsed());
    assert_eq!(stage.gate.troubles().1, failed, "writes that were refused");
}

/// The history says who leads before it says what that one did.
#[tokio::test(start_paused = true)]
async fn the_first_entry_of_a_leader_is_that_it_leads() {
    let stage = Stage::leading().await;
    assert_eq!(stage.put("pending", 1, PutMode::Add).await, Ok(Effect::Created));
    sleep(SECOND).await;
    let read = |kv: &evenkeel_store::Kv| (kv.created, serde_json::from_slice::<serde_json::Value>(&kv.value).unwrap());
    let mut keys: Vec<_> = stage.etcd.peek(|store| store.iter(&KeyRange::prefix("/events/")).map(read).collect());
    keys.sort_by_key(|(created, _)| *created);
    let types: Vec<&serde_json::Value> =
        keys.iter().flat_map(|(_, entries)| entries.as_array().unwrap()).map(|entry| &entry["Type"]).collect();
    assert_eq!(types, ["leading", "added"]);
}

//! One agent under a glass: the real agent over the model of etcd, on virtual time, with a driver that writes down what it is told and a
//! guard that only listens. The test plays everybody else: the leader, other workers, somebody with etcdctl. Each test is a rule of the
//! ownership protocol that runs from seeds reach only in rare orders.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use evenkeel_model::{
    Admission, Assignment, DriverTraits, Epoch, Hash, Holds, Observed, Origin, Phase, Registration, ResourceName, Session, Spec, Status,
    StopReason, WorkerId,
};
use evenkeel_sim::{
    etcd::{Direction, Etcd, Link, Settings},
    fleet::clock::MachineClock,
};
use evenkeel_store::{Client, KeyName, KeyRange, LeasedKey, NewLeasedKey, Op, Txn, codec::json, keys::Keys};
use evenkeel_worker::{
    WorkerError,
    agent::{self, Parts},
    driver::catalog::Catalog,
    driver::{Answer, Change, Driver, Handle, Lives, Observation, Observer, Registry, SpecError, StopOrder, Survivor, Work},
    guard::{LinkSender, ToGuard},
    protocol::authority::{BootTime, Clock, Gate, Timing},
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const KIND: &str = "probe";

/// What the driver was told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Start(Epoch),
    Stop,
}

/// A driver that runs nothing: what it was told to stop ends when the test says so.
#[derive(Clone, Default)]
struct Probe {
    told: Arc<Mutex<Vec<Told>>>,
    running: Arc<Mutex<Option<Observer>>>,
}

struct ProbeHandle(Probe);

impl Handle for ProbeHandle {
    fn stop(&self, _: StopOrder) {
        self.0.told.lock().unwrap().push(Told::Stop);
    }

    fn update(&self, _: Change) {}
}

impl Driver for Probe {
    fn kind(&self) -> &str {
        KIND
    }

    fn traits(&self) -> DriverTraits {
        DriverTraits::default()
    }

    fn grace(&self, _: &Spec) -> Result<Duration, SpecError> {
        Ok(Timing::default().grace)
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        self.told.lock().unwrap().push(Told::Start(work.epoch));
        *self.running.lock().unwrap() = Some(observer);
        Ok(Box::new(ProbeHandle(self.clone())))
    }

    /// Nothing of it outlives its guard.
    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn end<'a>(&'a self, _: &'a Survivor) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

impl Probe {
    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// It has ended by itself, and is not to be started again.
    fn exits(&self, message: &str) {
        let message = message.to_owned();
        let seen = Observation { lives: Lives::Nothing, failures: 1, message, ..Observation::of(Observed::Exited) };
        self.running.lock().unwrap().as_ref().unwrap().observed(seen);
    }

    /// Nothing of it runs any more.
    fn end(&self) {
        self.running.lock().unwrap().take().unwrap().ended();
    }
}

/// The end of authority that the guard was told of, by the agent's clock, and when it was told.
#[derive(Clone, Copy, Debug)]
struct Armed {
    at: BootTime,
    kill_at: BootTime,
}

/// An agent, and what surrounds it.
struct Glass {
    etcd: Etcd,
    /// The agent's network.
    link: Link,
    /// Everybody else's hand.
    hand: Client,
    keys: Keys,
    id: WorkerId,
    name: ResourceName,
    probe: Probe,
    gate: Gate,
    armed: Arc<Mutex<Vec<Armed>>>,
    /// The guard does not hear what it is told of authority.
    deaf: Arc<AtomicBool>,
    leave: watch::Sender<bool>,
    agent: JoinHandle<Result<(), WorkerError>>,
}

fn origin(guard: &str) -> Origin {
    Origin { boot_id: "boot".to_owned(), guard: guard.to_owned() }
}

fn etcd() -> (Etcd, Client) {
    let settings = Settings { members: 1, slow_one_in: 0, ..Settings::default() };
    let etcd = Etcd::start(settings, ChaCha8Rng::seed_from_u64(1));
    let hand = etcd.link("hand").client(SECOND);
    (etcd, hand)
}

impl Glass {
    fn start() -> Self {
        let (etcd, hand) = etcd();
        Self::start_on(etcd, hand)
    }

    /// Starts the agent; what stands in etcd by then is what it finds.
    fn start_on(etcd: Etcd, hand: Client) -> Self {
        let id = WorkerId::new("worker-1").unwrap();
        let clock: Arc<dyn Clock> = Arc::new(MachineClock::boot(0));
        let gate = Gate::shut(Arc::clone(&clock));
        let (probe, link) = (Probe::default(), etcd.link("agent"));
        let registry = Registry::default().with(Arc::new(probe.clone())).expect("one driver");
        let (armed, deaf): (Arc<Mutex<Vec<Armed>>>, Arc<AtomicBool>) = Default::default();
        let (leave, leaves) = watch::channel(false);
        let (heard, is_deaf, time) = (Arc::clone(&armed), Arc::clone(&deaf), Arc::clone(&clock));
        let guard = LinkSender::new(move |message| {
            if let ToGuard::Authority(kill_at) = message {
                heard.lock().unwrap().extend(kill_at.map(|kill_at| Armed { at: time.now(), kill_at }));
                return !is_deaf.load(SeqCst);
            }
            true
        });
        let registration =
            Registration { kinds: registry.kinds(), origin: origin("own"), ..Registration::bare(id.clone(), "worker-1:1".to_owned()) };
        let parts = Parts {
            client: link.client(SECOND),
            keys: Keys::new(""),
            registration,
            find_host: None,
            timing: Timing::default(),
            clock,
            gate: gate.clone(),
            link: guard,
            leave: leaves,
            previous: None,
            registry,
            catalog: Catalog::default(),
            patience: Duration::MAX,
        };
        let agent = tokio::spawn(agent::live(parts));
        let (keys, name) = (Keys::new(""), ResourceName::new("a").unwrap());
        Self { etcd, link, hand, keys, id, name, probe, gate, armed, deaf, leave, agent }
    }

    /// Waits for something, which must come within the time.
    async fn within<T>(&self, span: Duration, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let step = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(waited < span, "not within {span:?}: {what}");
            sleep(step).await;
            waited += step;
        }
    }

    fn registration(&self) -> Option<(Session, Registration, i64)> {
        self.etcd.peek(|store| {
            let kv = store.get(self.keys.worker(&self.id).as_bytes())?;
            Some((Session(kv.created.0), serde_json::from_slice(&kv.value).unwrap(), kv.lease))
        })
    }

    /// The leader admits the session that stands.
    async fn admit(&self) -> Session {
        let (session, registration, _) = self.within(5 * SECOND, "registered", Self::registration).await;
        let admission = Admission { session, authority_ms: None, origin: registration.origin };
        self.hand.put(self.keys.admission(&self.id), json(&admission)).await.unwrap();
        session
    }

    /// The leader assigns the resource, or says something else of its assignment.
    async fn assign(&self, phase: Phase) {
        let assignment = Assignment {
            kind: KIND.to_owned(),
            spec: Spec::default(),
            require: Default::default(),
            hash: Hash::default(),
            holds: Holds::Strict,
            phase,
        };
        self.hand.put(self.keys.assignment(&self.id, &self.name), json(&assignment)).await.unwrap();
    }

    fn stop() -> Phase {
        Phase::Stop { reason: StopReason::Deleted, to: None }
    }

    async fn started(&self) {
        self.within(5 * SECOND, "started", |glass| matches!(glass.probe.told().last(), Some(Told::Start(_))).then_some(())).await;
    }

    async fn told_to_stop(&self) {
        self.within(5 * SECOND, "told to stop", |glass| (glass.probe.told().last() == Some(&Told::Stop)).then_some(())).await;
    }

    fn status(&self) -> Option<Status> {
        let key = self.keys.status(&self.id, &self.name);
        self.etcd.peek(|store| serde_json::from_slice(&store.get(key.as_bytes())?.value).ok())
    }

    /// What is said of the resource when it is in this phase.
    async fn status_of(&self, phase: Observed) -> Status {
        self.within(5 * SECOND, "reported", |glass| glass.status().filter(|status| status.phase == phase)).await
    }

    /// An agent that is admitted and runs the resource.
    async fn running() -> Self {
        let glass = Self::start();
        glass.admit().await;
        glass.assign(Phase::Run).await;
        glass.started().await;
        glass
    }
}

#[tokio::test(start_paused = true)]
async fn authority_counts_from_the_send_however_late_the_answer_comes() {
    let glass = Glass::running().await;
    let late = Duration::from_millis(300);
    glass.link.delay(late);
    // Whatever was under way when the network became slow has come.
    sleep(2 * SECOND).await;
    glass.armed.lock().unwrap().clear();
    sleep(10 * SECOND).await;
    let armed = glass.armed.lock().unwrap().clone();
    assert!(armed.len() > 5, "proofs come through: {armed:?}");
    for Armed { at, kill_at } in armed {
        let left = kill_at.since(at);
        assert!(left <= Timing::default().until_kill() - 2 * late, "{left:?} is left of a proof that was under way for {:?}", 2 * late);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_while_the_guard_does_not_hear_of_its_end() {
    let glass = Glass::start();
    glass.deaf.store(true, SeqCst);
    glass.admit().await;
    glass.assign(Phase::Run).await;
    sleep(10 * SECOND).await;
    assert!(!glass.armed.lock().unwrap().is_empty(), "the agent has tried");
    assert_eq!(glass.probe.told(), []);
    glass.deaf.store(false, SeqCst);
    glass.started().await;
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_was_reported_stopped_never_starts_again() {
    let glass = Glass::running().await;
    let before = glass.probe.told();
    glass.assign(Glass::stop()).await;
    glass.told_to_stop().await;
    glass.probe.end();
    let status = glass.keys.status(&glass.id, &glass.name);
    let stopped = |glass: &Glass| {
        glass.etcd.peek(|store| String::from_utf8_lossy(&store.get(status.as_bytes())?.value).contains("stopped").then_some(()))
    };
    glass.within(5 * SECOND, "reported", stopped).await;
    // No leader takes a stop back; somebody else's hand may.
    glass.assign(Phase::Run).await;
    sleep(10 * SECOND).await;
    assert_eq!(glass.probe.told(), [before, vec![Told::Stop]].concat());
}

#[tokio::test(start_paused = true)]
async fn the_gate_is_shut_for_whoever_is_not_admitted() {
    let glass = Glass::start();
    glass.within(5 * SECOND, "registered", Glass::registration).await;
    sleep(2 * SECOND).await;
    assert!(!glass.gate.is_open(), "nobody has admitted it");
    glass.admit().await;
    glass.within(SECOND, "open", |glass| glass.gate.is_open().then_some(())).await;
    let gone = Txn { then: vec![Op::delete(glass.keys.admission(&glass.id))], ..Txn::default() };
    glass.hand.txn(gone, SECOND).await.unwrap();
    glass.within(SECOND, "shut", |glass| (!glass.gate.is_open()).then_some(())).await;
    sleep(2 * SECOND).await;
    assert!(!glass.gate.is_open(), "and proofs do not open it");
}

#[tokio::test(start_paused = true)]
async fn the_gate_is_shut_for_whoever_leaves() {
    let glass = Glass::running().await;
    glass.leave.send_replace(true);
    glass.told_to_stop().await;
    sleep(2 * SECOND).await;
    assert!(!glass.gate.is_open());
    assert!(!glass.registration().unwrap().1.released, "it has not left while its work lives");
    glass.probe.end();
    timeout(60 * SECOND, glass.agent).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_session_follows_on_another_whose_work_lives() {
    let glass = Glass::running().await;
    let (session, _, lease) = glass.registration().unwrap();
    glass.etcd.revoke_early(lease).unwrap();
    glass.told_to_stop().await;
    sleep(10 * SECOND).await;
    assert_eq!(glass.registration(), None, "nobody attests what still runs");
    glass.probe.end();
    let (next, registration, _) = glass.within(5 * SECOND, "registered again", Glass::registration).await;
    assert!(next > session);
    assert_eq!(registration.attests, Some(session), "it has ended, and the admission is this guard's");
}

#[tokio::test(start_paused = true)]
async fn a_live_worker_of_another_guard_keeps_its_id() {
    let (etcd, hand) = etcd();
    let (keys, id) = (Keys::new(""), WorkerId::new("worker-1").unwrap());
    let other = Registration { origin: origin("other"), ..Registration::bare(id.clone(), "elsewhere:1".to_owned()) };
    let key = KeyName::Exact(keys.worker(&id).into_bytes());
    let new = NewLeasedKey { key, value: json(&other), ttl: 4 * SECOND, replaces: None };
    let held = LeasedKey::create(&hand, new, SECOND).await.unwrap();
    let glass = Glass::start_on(etcd, hand);
    let error = timeout(60 * SECOND, glass.agent).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&error, WorkerError::IdTaken { address, .. } if address == "elsewhere:1"), "{error}");
    let stands = glass.etcd.peek(|store| store.iter(&KeyRange::prefix("/workers/")).map(|kv| kv.created).collect::<Vec<_>>());
    assert_eq!(stands, [held.created()]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_etcd_refuses_registers_when_it_is_taken() {
    // At its first start, and when its session is lost.
    let (etcd, hand) = etcd();
    etcd.overload(true);
    let glass = Glass::start_on(etcd, hand);
    sleep(60 * SECOND).await;
    assert!(glass.registration().is_none() && !glass.agent.is_finished(), "it waits");
    glass.etcd.overload(false);
    let (session, _, lease) = glass.within(10 * SECOND, "registered", Glass::registration).await;
    glass.etcd.overload(true);
    glass.etcd.revoke_early(lease).unwrap();
    sleep(60 * SECOND).await;
    assert!(glass.registration().is_none() && !glass.agent.is_finished(), "it waits again");
    glass.etcd.overload(false);
    let (next, _, _) = glass.within(10 * SECOND, "registered again", Glass::registration).await;
    assert!(next > session);
}

#[tokio::test(start_paused = true)]
async fn a_session_attests_for_its_own_guard_alone() {
    let (etcd, hand) = etcd();
    let (keys, id) = (Keys::new(""), WorkerId::new("worker-1").unwrap());
    let admission = Admission { session: Session(1), authority_ms: None, origin: origin("other") };
    hand.put(keys.admission(&id), json(&admission)).await.unwrap();
    let glass = Glass::start_on(etcd, hand);
    let (_, registration, _) = glass.within(5 * SECOND, "registered", Glass::registration).await;
    assert_eq!(registration.attests, None);
}

#[tokio::test(start_paused = true)]
async fn work_of_a_session_that_is_lost_is_stopped() {
    let glass = Glass::running().await;
    let (_, _, lease) = glass.registration().unwrap();
    // The admission stays, and so does the assignment; and there would be authority for longer.
    glass.etcd.revoke_early(lease).unwrap();
    glass.within(SECOND, "told to stop", |glass| (glass.probe.told().last() == Some(&Told::Stop)).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn what_ended_before_it_was_told_to_stop_says_so() {
    for told_first in [false, true] {
        let glass = Glass::running().await;
        if told_first {
            glass.assign(Glass::stop()).await;
            glass.told_to_stop().await;
            glass.probe.exits("exit status 3");
        } else {
            glass.probe.exits("exit status 3");
            assert!(glass.status_of(Observed::Exited).await.finished);
            glass.assign(Glass::stop()).await;
            glass.told_to_stop().await;
        }
        glass.probe.end();
        let status = glass.status_of(Observed::Stopped).await;
        assert_eq!((status.finished, status.message.as_str()), (true, "exit status 3"), "told first: {told_first}");
    }
    // What was interrupted has not finished.
    let glass = Glass::running().await;
    glass.assign(Glass::stop()).await;
    glass.told_to_stop().await;
    glass.probe.end();
    assert!(!glass.status_of(Observed::Stopped).await.finished);
}

#[tokio::test(start_paused = true)]
async fn an_end_is_reported_before_the_worker_leaves() {
    let glass = Glass::running().await;
    glass.status_of(Observed::Starting).await;
    // What it sends first is lost.
    glass.link.cut(Direction::Both);
    glass.probe.exits("exit status 0");
    glass.leave.send_replace(true);
    glass.told_to_stop().await;
    glass.probe.end();
    sleep(Duration::from_millis(300)).await;
    glass.link.heal();
    let status = glass.status_of(Observed::Exited).await;
    assert!(status.finished, "whoever runs it next is to know that nobody is to");
    let Glass { agent, etcd, keys, id, .. } = glass;
    timeout(60 * SECOND, agent).await.unwrap().unwrap().unwrap();
    let released = etcd.peek(|store| {
        let kv = store.get(keys.worker(&id).as_bytes()).unwrap();
        serde_json::from_slice::<Registration>(&kv.value).unwrap().released
    });
    assert!(released);
}

#[tokio::test(start_paused = true)]
async fn what_the_guard_may_have_killed_has_not_ended_by_itself() {
    let glass = Glass::running().await;
    let before = glass.probe.told().len();
    glass.link.cut(Direction::Both);
    glass.told_to_stop().await;
    // The guard has killed it by now, and its end looks like any other.
    sleep(6 * SECOND).await;
    glass.probe.exits("killed by signal 9 (SIGKILL)");
    glass.probe.end();
    glass.link.heal();
    glass.admit().await;
    glass.within(10 * SECOND, "started again", |glass| (glass.probe.told().len() > before + 1).then_some(())).await;
    assert!(!glass.status_of(Observed::Starting).await.finished);
}

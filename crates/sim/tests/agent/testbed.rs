//! The surroundings of one agent: the model of etcd, a driver that writes down what it is told and does what the test says, and a guard that
//! only listens.

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
    etcd::{Etcd, Link, Settings},
    fleet::clock::MachineClock,
};
use evenkeel_store::{Client, Op, Txn, codec::json, keys::Keys};
use evenkeel_worker::{
    WorkerError,
    agent::{self, Parts},
    driver::catalog::Catalog,
    driver::{Answer, Change, Driver, Handle, Lives, Observation, Observer, Registry, SpecError, StopOrder, Survivor, Work},
    guard::{LinkSender, ToGuard},
    protocol::authority::{BootTime, Clock, Gate, Timing},
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
const KIND: &str = "probe";

/// What the driver was told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Start(Epoch),
    Stop,
    /// Take this content while it runs.
    Change(Hash),
    /// End what an earlier session has left of this epoch.
    End(Epoch),
}

/// A driver that runs nothing: what it was told to stop ends when the test says so.
#[derive(Clone, Default)]
pub(crate) struct Probe {
    pub(crate) told: Arc<Mutex<Vec<Told>>>,
    pub(crate) running: Arc<Mutex<Option<Observer>>>,
    pub(crate) traits: Arc<Mutex<DriverTraits>>,
    /// What of earlier sessions lives.
    pub(crate) survivors: Arc<Mutex<Vec<Survivor>>>,
    /// It answers no question about survivors.
    pub(crate) is_silent: Arc<AtomicBool>,
}

pub(crate) struct ProbeHandle(Probe);

impl Handle for ProbeHandle {
    fn stop(&self, _: StopOrder) {
        self.0.told.lock().unwrap().push(Told::Stop);
    }

    fn update(&self, change: Change) {
        self.0.told.lock().unwrap().push(Told::Change(change.hash));
    }
}

impl Driver for Probe {
    fn kind(&self) -> &str {
        KIND
    }

    fn traits(&self) -> DriverTraits {
        *self.traits.lock().unwrap()
    }

    fn grace(&self, _: &Spec) -> Result<Duration, SpecError> {
        Ok(Timing::default().grace)
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        self.told.lock().unwrap().push(Told::Start(work.epoch));
        *self.running.lock().unwrap() = Some(observer);
        Ok(Box::new(ProbeHandle(self.clone())))
    }

    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async {
            if self.is_silent.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            Ok(self.survivors.lock().unwrap().clone())
        })
    }

    fn end<'a>(&'a self, survivor: &'a Survivor) -> Answer<'a, ()> {
        Box::pin(async move {
            self.told.lock().unwrap().push(Told::End(survivor.epoch));
            self.survivors.lock().unwrap().retain(|lives| lives != survivor);
            Ok(())
        })
    }
}

impl Probe {
    pub(crate) fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// It has ended by itself, and is not to be started again.
    pub(crate) fn exits(&self, message: &str) {
        let message = message.to_owned();
        let seen = Observation { lives: Lives::Nothing, failures: 1, message, ..Observation::of(Observed::Exited) };
        self.running.lock().unwrap().as_ref().unwrap().observed(seen);
    }

    /// It runs.
    pub(crate) fn runs(&self) {
        self.running.lock().unwrap().as_ref().unwrap().observed(Observation::of(Observed::Running));
    }

    /// It has taken a change.
    pub(crate) fn updated(&self, hash: Hash) {
        self.running.lock().unwrap().as_ref().unwrap().updated(hash);
    }

    /// It cannot take a change.
    pub(crate) fn needs_restart(&self, hash: Hash) {
        self.running.lock().unwrap().as_ref().unwrap().needs_restart(hash, "its port is another");
    }

    /// Nothing of it runs any more.
    pub(crate) fn end(&self) {
        self.running.lock().unwrap().take().unwrap().ended();
    }
}

/// The end of authority that the guard was told of, by the agent's clock, and when it was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Armed {
    pub(crate) at: BootTime,
    pub(crate) kill_at: BootTime,
}

/// An agent, and what surrounds it.
pub(crate) struct Testbed {
    pub(crate) etcd: Etcd,
    /// The agent's network.
    pub(crate) link: Link,
    /// Everybody else's hand.
    pub(crate) hand: Client,
    pub(crate) keys: Keys,
    pub(crate) id: WorkerId,
    pub(crate) name: ResourceName,
    pub(crate) probe: Probe,
    pub(crate) gate: Gate,
    pub(crate) armed: Arc<Mutex<Vec<Armed>>>,
    /// The guard does not hear what it is told of authority.
    pub(crate) deaf: Arc<AtomicBool>,
    pub(crate) leave: watch::Sender<bool>,
    pub(crate) agent: JoinHandle<Result<(), WorkerError>>,
}

pub(crate) fn origin(guard: &str) -> Origin {
    Origin { boot_id: "boot".to_owned(), guard: guard.to_owned() }
}

pub(crate) fn etcd() -> (Etcd, Client) {
    let settings = Settings { members: 1, slow_one_in: 0, ..Settings::default() };
    let etcd = Etcd::start(settings, ChaCha8Rng::seed_from_u64(1));
    let hand = etcd.link("hand").client(SECOND);
    (etcd, hand)
}

impl Testbed {
    pub(crate) fn start() -> Self {
        let (etcd, hand) = etcd();
        Self::start_on(etcd, hand)
    }

    /// Starts the agent; what stands in etcd by then is what it finds.
    pub(crate) fn start_on(etcd: Etcd, hand: Client) -> Self {
        Self::start_with(etcd, hand, Probe::default())
    }

    /// The same, with a driver that was told how to be.
    pub(crate) fn start_with(etcd: Etcd, hand: Client, probe: Probe) -> Self {
        let id = WorkerId::new("worker-1").unwrap();
        let clock: Arc<dyn Clock> = Arc::new(MachineClock::boot(0));
        let gate = Gate::shut(Arc::clone(&clock));
        let link = etcd.link("agent");
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
            tasks: None,
        };
        let agent = tokio::spawn(agent::live(parts));
        let (keys, name) = (Keys::new(""), ResourceName::new("a").unwrap());
        Self { etcd, link, hand, keys, id, name, probe, gate, armed, deaf, leave, agent }
    }

    /// Waits for something, which must come within the time.
    pub(crate) async fn within<T>(&self, span: Duration, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
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

    pub(crate) fn registration(&self) -> Option<(Session, Registration, i64)> {
        self.etcd.peek(|store| {
            let kv = store.get(self.keys.worker(&self.id).as_bytes())?;
            Some((Session(kv.created.0), serde_json::from_slice(&kv.value).unwrap(), kv.lease))
        })
    }

    /// The leader admits the session that stands.
    pub(crate) async fn admit(&self) -> Session {
        let (session, registration, _) = self.within(5 * SECOND, "registered", Self::registration).await;
        let admission = Admission { session, authority_ms: None, origin: registration.origin };
        self.hand.put(self.keys.admission(&self.id), json(&admission)).await.unwrap();
        session
    }

    /// The leader assigns the resource, or says something else of its assignment.
    pub(crate) async fn assign(&self, phase: Phase) {
        self.assign_content(0, phase).await;
    }

    /// The same, with another content.
    pub(crate) async fn assign_content(&self, n: u64, phase: Phase) {
        let spec = Spec::stored(serde_json::json!({"n": n})).unwrap();
        let hash = Hash::of(KIND, &spec);
        let kind = KIND.to_owned();
        let assignment = Assignment { kind, spec, require: Default::default(), hash, holds: Holds::Strict, phase };
        self.hand.put(self.keys.assignment(&self.id, &self.name), json(&assignment)).await.unwrap();
    }

    /// The leader ends the assignment, with its status.
    pub(crate) async fn unassign(&self) {
        let keys = [self.keys.assignment(&self.id, &self.name), self.keys.status(&self.id, &self.name)];
        let gone = Txn { then: keys.into_iter().map(Op::delete).collect(), ..Txn::default() };
        self.hand.txn(gone, SECOND).await.unwrap();
    }

    /// Names a content.
    pub(crate) fn content(n: u64) -> Hash {
        Hash::of(KIND, &Spec::stored(serde_json::json!({"n": n})).unwrap())
    }

    /// The epoch of the assignment.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.etcd.peek(|store| store.get(self.keys.assignment(&self.id, &self.name).as_bytes()).unwrap().created.0))
    }

    /// Waits until the driver was told this last.
    pub(crate) async fn told_last(&self, last: Told) {
        self.within(5 * SECOND, "told", |testbed| (testbed.probe.told().last() == Some(&last)).then_some(())).await;
    }

    /// What is reported once it is like this.
    pub(crate) async fn status_where(&self, is_it: impl Fn(&Status) -> bool) -> Status {
        self.within(20 * SECOND, "reported", |testbed| testbed.status().filter(|status| is_it(status))).await
    }

    pub(crate) fn stop() -> Phase {
        Phase::Stop { reason: StopReason::Deleted, to: None }
    }

    pub(crate) async fn started(&self) {
        self.within(5 * SECOND, "started", |testbed| matches!(testbed.probe.told().last(), Some(Told::Start(_))).then_some(())).await;
    }

    pub(crate) async fn told_to_stop(&self) {
        self.within(5 * SECOND, "told to stop", |testbed| (testbed.probe.told().last() == Some(&Told::Stop)).then_some(())).await;
    }

    pub(crate) fn status(&self) -> Option<Status> {
        let key = self.keys.status(&self.id, &self.name);
        self.etcd.peek(|store| serde_json::from_slice(&store.get(key.as_bytes())?.value).ok())
    }

    /// What is said of the resource when it is in this phase.
    pub(crate) async fn status_of(&self, phase: Observed) -> Status {
        self.within(5 * SECOND, "reported", |testbed| testbed.status().filter(|status| status.phase == phase)).await
    }

    /// An agent that is admitted and runs the resource.
    pub(crate) async fn running() -> Self {
        let testbed = Self::start();
        testbed.admit().await;
        testbed.assign(Phase::Run).await;
        testbed.started().await;
        testbed
    }
}

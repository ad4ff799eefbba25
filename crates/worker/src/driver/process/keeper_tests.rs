//! The keeper over cells that do what the test says, with paused time: changes in place, orders, and a shim that says nothing.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use evenkeel_model::{Epoch, Hash, Observed, ResourceName};
use nix::libc::{SIGINT, SIGTERM};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, advance, sleep, sleep_until},
};

use super::{
    cells::{Cell, FromShim, Start, ToAgent},
    *,
};
use crate::{
    driver::{Change, Event, EventKind, Log, StopOrder},
    protocol::authority::{BootTime, Clock, Gate},
};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
const GRACE: Duration = Duration::from_millis(500);

/// What was called of the cells.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Start(Vec<String>),
    Signal(i32),
    Kill,
    Cleared,
}

/// What a shim does about what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Its process runs until it is killed.
    Stays,
    /// Its process ends at once with this status.
    Exits(i32),
    /// Its process ends three hours after the test began, and is silent until then.
    ExitsLate,
    /// It says nothing, whatever happens.
    Silent,
}

#[derive(Debug)]
struct Script {
    begun: Instant,
    /// Each with the time since `begun`.
    calls: Mutex<Vec<(Duration, Call)>>,
    /// How the runs go, one after another; the last for all that follow.
    manners: Mutex<VecDeque<Manner>>,
    places: Arc<Semaphore>,
}

struct ScriptedCell {
    script: Arc<Script>,
    manner: Manner,
    says: VecDeque<ToAgent>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    fn note(&self, call: Call) {
        lock(&self.calls).push((self.begun.elapsed(), call));
    }
}

impl Cells for Script {
    type Cell = ScriptedCell;

    fn mark(&self) -> &str {
        "mark"
    }

    fn ends_any_user(&self) -> bool {
        false
    }

    async fn place_to_start(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    fn cell(self: &Arc<Self>, _: &str) -> io::Result<ScriptedCell> {
        let mut manners = lock(&self.manners);
        let manner = if manners.len() > 1 { manners.pop_front() } else { manners.front().copied() };
        Ok(ScriptedCell { script: Arc::clone(self), manner: manner.expect("a manner"), says: VecDeque::new() })
    }

    fn is_ending(&self) -> bool {
        false
    }

    fn check_cgroup(&self) {}

    async fn check_spawner(&self) {}
}

impl Cell for ScriptedCell {
    fn start(&mut self, start: Start) {
        let command = start.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        self.script.note(Call::Start(command));
        match self.manner {
            Manner::Stays => self.says.extend([ToAgent::Ready(1), ToAgent::Forked(2), ToAgent::Started]),
            Manner::Exits(status) => self.says.extend([ToAgent::Ready(1), ToAgent::Started, ToAgent::Exited(status), ToAgent::Empty]),
            Manner::Silent | Manner::ExitsLate => self.says.extend([ToAgent::Ready(1), ToAgent::Started]),
        }
    }

    fn signal(&mut self, number: i32) {
        self.script.note(Call::Signal(number));
    }

    fn kill(&mut self) {
        self.script.note(Call::Kill);
        if self.manner == Manner::Stays {
            self.says.extend([ToAgent::Exited(9), ToAgent::Empty]);
        }
    }

    async fn next(&mut self) -> FromShim {
        match self.says.pop_front() {
            Some(said) => FromShim::Said(said),
            None if self.manner == Manner::ExitsLate => {
                sleep_until(self.script.begun + 3 * HOUR).await;
                self.says.push_back(ToAgent::Empty);
                FromShim::Said(ToAgent::Exited(0))
            }
            None => std::future::pending().await,
        }
    }

    async fn clear(self) {
        self.script.note(Call::Cleared);
    }
}

/// A clock that shows tokio's time.
#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now(&self) -> BootTime {
        BootTime::default() + self.0.elapsed()
    }
}

struct Testbed {
    script: Arc<Script>,
    handle: Box<dyn Handle>,
    events: mpsc::UnboundedReceiver<Event>,
}

fn spec(changes: &Value) -> Spec {
    let mut spec = json!({"command": ["work", "on"]});
    for (field, value) in changes.as_object().expect("fields") {
        spec[field] = value.clone();
    }
    Spec::from_value(spec).expect("a spec")
}

fn hash(changes: &Value) -> Hash {
    Hash::of("process", &spec(changes))
}

impl Testbed {
    /// Starts work whose spec has these fields, and whose runs go like this.
    fn start(fields: &Value, manners: &[Manner]) -> Self {
        let begun = Instant::now();
        let places = Arc::new(Semaphore::new(1));
        let manners = Mutex::new(manners.iter().copied().collect());
        let script = Arc::new(Script { begun, calls: Mutex::default(), manners, places });
        let config = ProcessConfig { worker: WorkerId::new("worker-1").expect("id"), grace: GRACE, env_pass: EnvPass::default() };
        let driver = ProcessDriver::new(config, Arc::clone(&script));
        let gate = Gate::shut(Arc::new(PausedClock(begun)));
        gate.open_until(Some(BootTime(u64::MAX)));
        let (sender, events) = mpsc::unbounded_channel();
        let name = ResourceName::new("a").expect("name");
        let observer = Observer::new(name.clone(), Epoch(7), sender);
        let work = Work { name, epoch: Epoch(7), spec: spec(fields), gate, log: Log::nowhere() };
        let handle = driver.start(work, observer).unwrap_or_else(|(error, _)| panic!("{error}"));
        Self { script, handle, events }
    }

    fn change(&self, changes: &Value) {
        self.handle.update(Change { hash: hash(changes), spec: spec(changes) });
    }

    fn calls(&self) -> Vec<Call> {
        lock(&self.script.calls).iter().map(|(_, call)| call.clone()).collect()
    }

    fn when(&self, what: &Call) -> Duration {
        lock(&self.script.calls).iter().find(|(_, call)| call == what).unwrap_or_else(|| panic!("{what:?} was not called")).0
    }

    fn starts(&self) -> usize {
        self.calls().iter().filter(|call| matches!(call, Call::Start(_))).count()
    }

    /// All that was said of changes and of the end so far, and the last phase.
    fn said(&mut self) -> (Vec<EventKind>, Option<Observed>) {
        let (mut said, mut phase) = (Vec::new(), None);
        while let Ok(event) = self.events.try_recv() {
            match event.kind {
                EventKind::Observed(seen) => phase = Some(seen.phase),
                other => said.push(other),
            }
        }
        (said, phase)
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_taken_while_it_runs_and_counts_from_then_on() {
    let mut testbed = Testbed::start(&json!({}), &[Manner::Stays]);
    sleep(MS).await;
    let changes = json!({"stop_signal": "INT", "stop_grace": "2s", "restart": "never"});
    testbed.change(&changes);
    testbed.change(&changes);
    sleep(MS).await;
    assert_eq!(testbed.said(), (vec![EventKind::Updated(hash(&changes))], Some(Observed::Running)), "one answer for one change");
    assert_eq!(testbed.calls(), [Call::Start(vec!["work".to_owned(), "on".to_owned()])], "the process knows nothing of it");
    testbed.handle.stop(StopOrder::default());
    sleep(5000 * MS).await;
    assert_eq!(testbed.calls()[1..], [Call::Signal(SIGINT), Call::Kill, Call::Cleared]);
    assert_eq!(testbed.when(&Call::Kill) - testbed.when(&Call::Signal(SIGINT)), 2000 * MS);
    assert_eq!(testbed.said().0, [EventKind::Ended]);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_taken_in_backoff_and_says_whether_it_is_started_again() {
    let mut testbed = Testbed::start(&json!({}), &[Manner::Exits(0)]);
    // After the first run it waits for 100 ms, and then for twice as long.
    sleep(150 * MS).await;
    assert_eq!((testbed.starts(), testbed.said().1), (2, Some(Observed::Backoff)));
    let changes = json!({"restart": "never"});
    testbed.change(&changes);
    sleep(MS).await;
    assert_eq!(testbed.said().0, [EventKind::Updated(hash(&changes))], "at once");
    assert_eq!(testbed.starts(), 2, "a change ends no pause");
    sleep(60_000 * MS).await;
    assert_eq!((testbed.starts(), testbed.said().1), (3, Some(Observed::Exited)), "the run that follows goes by it");
}

#[tokio::test(start_paused = true)]
async fn a_change_after_a_stop_has_no_effect() {
    let mut testbed = Testbed::start(&json!({}), &[Manner::Stays]);
    sleep(MS).await;
    testbed.handle.stop(StopOrder::default());
    sleep(MS).await;
    testbed.change(&json!({"stop_grace": "9s", "stop_signal": "INT"}));
    sleep(20_000 * MS).await;
    assert_eq!(testbed.calls()[1..], [Call::Signal(SIGTERM), Call::Kill, Call::Cleared]);
    assert_eq!(testbed.when(&Call::Kill) - testbed.when(&Call::Signal(SIGTERM)), GRACE);
    assert_eq!(testbed.said().0, [EventKind::Ended]);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_comes_while_it_waits_for_its_place_is_taken() {
    let mut testbed = Testbed::start(&json!({}), &[Manner::Stays]);
    let taken = Arc::clone(&testbed.script.places).acquire_owned().await;
    sleep(MS).await;
    let changes = json!({"stop_signal": "INT"});
    testbed.change(&changes);
    sleep(MS).await;
    assert_eq!(testbed.calls(), []);
    drop(taken);
    sleep(MS).await;
    assert_eq!(testbed.said().0, [EventKind::Updated(hash(&changes))]);
    testbed.handle.stop(StopOrder::default());
    sleep(MS).await;
    assert_eq!(testbed.calls()[1..], [Call::Signal(SIGINT)]);
}

#[tokio::test(start_paused = true)]
async fn what_a_process_was_started_with_is_not_changed_while_it_runs() {
    let mut testbed = Testbed::start(&json!({}), &[Manner::Stays, Manner::Exits(1)]);
    sleep(MS).await;
    let (other, broken) = (json!({"command": ["other"]}), json!({"restart": "sometimes"}));
    testbed.change(&other);
    sleep(MS).await;
    testbed.change(&broken);
    sleep(MS).await;
    // Back to what runs, which is a change like any other.
    testbed.change(&json!({}));
    sleep(MS).await;
    let (said, _) = testbed.said();
    let [EventKind::NeedsRestart(first, _), EventKind::NeedsRestart(second, why), EventKind::Updated(third)] = &said[..] else {
        panic!("{said:?}")
    };
    assert_eq!([*first, *second, *third], [hash(&other), hash(&broken), hash(&json!({}))]);
    assert!(why.contains("restart"), "{why}");
    assert_eq!(testbed.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_comes_again_is_answered_again() {
    let mut testbed = Testbed::start(&json!({}), &[Manner::Stays]);
    sleep(MS).await;
    let other = json!({"command": ["other"]});
    for time in ["first", "second"] {
        testbed.change(&other);
        sleep(MS).await;
        let (said, _) = testbed.said();
        assert!(matches!(said[..], [EventKind::NeedsRestart(answered, _)] if answered == hash(&other)), "the {time} time: {said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_work_that_was_silent_for_hours_is_noticed() {
    let mut testbed = Testbed::start(&json!({"restart": "never"}), &[Manner::ExitsLate]);
    sleep(MS).await;
    // Time is moved by hand: it would not go on by itself beside a keeper that never rests.
    for _ in 0..4 {
        advance(HOUR).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(testbed.said().1, Some(Observed::Exited));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_what_rests_needs_a_restart() {
    let mut testbed = Testbed::start(&json!({"restart": "never"}), &[Manner::Exits(0)]);
    sleep(MS).await;
    assert_eq!(testbed.said().1, Some(Observed::Exited));
    let changes = json!({"restart": "always"});
    testbed.change(&changes);
    sleep(60_000 * MS).await;
    let (said, _) = testbed.said();
    assert!(matches!(said[..], [EventKind::NeedsRestart(answered, _)] if answered == hash(&changes)), "{said:?}");
    assert_eq!(testbed.starts(), 1, "one epoch is not started with two specs");
    testbed.handle.stop(StopOrder::default());
    sleep(MS).await;
    assert_eq!(testbed.said().0, [EventKind::Ended]);
}

/// A shim that was stopped or killed says nothing: the run is cleared by force, and only then does it count as ended.
#[tokio::test(start_paused = true)]
async fn a_shim_that_says_nothing_after_a_kill_is_cleared() {
    let mut testbed = Testbed::start(&json!({"stop_grace": "1s"}), &[Manner::Silent]);
    sleep(MS).await;
    testbed.handle.stop(StopOrder::default());
    sleep(1100 * MS).await;
    assert_eq!(testbed.calls()[1..], [Call::Signal(SIGTERM), Call::Kill]);
    assert_eq!(testbed.said().0, []);
    sleep(60_000 * MS).await;
    assert_eq!(testbed.when(&Call::Cleared) - testbed.when(&Call::Kill), cells::STUCK_EVERY * 5 / 2);
    assert_eq!(testbed.said().0, [EventKind::Ended]);
}

#[tokio::test(start_paused = true)]
async fn an_order_brings_the_kill_forward_and_never_back() {
    let testbed = Testbed::start(&json!({"stop_grace": "9s"}), &[Manner::Stays]);
    sleep(MS).await;
    let by = |ms: u64| StopOrder { kill_by: Some(BootTime(0) + MS * u32::try_from(ms).expect("short")), ..StopOrder::default() };
    for order in [StopOrder::default(), by(3000), by(2000), by(4000), StopOrder::default()] {
        testbed.handle.stop(order);
        sleep(MS).await;
    }
    sleep(20_000 * MS).await;
    assert_eq!(testbed.when(&Call::Kill), 2000 * MS);
}

#[tokio::test(start_paused = true)]
async fn how_it_ended_is_known_from_its_first_end() {
    let mut testbed = Testbed::start(&json!({"restart": "on-failure"}), &[Manner::Exits(3 << 8), Manner::Exits(0)]);
    sleep(60_000 * MS).await;
    assert_eq!((testbed.starts(), testbed.said().1), (2, Some(Observed::Exited)));
}

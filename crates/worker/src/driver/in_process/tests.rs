//! Pieces on paused time, and one that blocks a real thread.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
    mpsc as blocking,
};

use evenkeel_model::{Epoch, Hash, Observed, ResourceName};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::*;
use crate::{
    driver::{Change, Event, EventKind, Lives, Log, Observation, StopOrder, conformance},
    protocol::{
        authority::{BootTime, Clock, Gate},
        reconcile::StopWhy,
    },
};

const MS: Duration = Duration::from_millis(1);

/// What a piece does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Does {
    /// Returns when it is told to stop.
    Wait,
    /// Goes on for ever, and gives its thread back.
    Ignore,
    /// Returns, or fails, after so many milliseconds.
    Return(u64),
    Fail(u64),
    Panic(u64),
    /// Fails with an error that cannot be put into words.
    FailUnsaid,
    /// Fails for want of authority, once the gate is shut.
    Check,
    /// Keeps its thread until the test lets it go.
    Block,
    Report(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeSpec {
    does: Does,
    #[serde(default)]
    update: Option<String>,
    #[serde(default)]
    even: u64,
    /// Where its kind panics.
    #[serde(default, deserialize_with = "panics_itself")]
    panics: Option<Panics>,
    #[serde(default)]
    grace_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Panics {
    Read,
    Check,
    Grace,
    /// Only after the first time.
    GraceLater,
}

fn panics_itself<'de, D: serde::Deserializer<'de>>(json: D) -> Result<Option<Panics>, D::Error> {
    let panics = Panics::deserialize(json)?;
    assert_ne!(panics, Panics::Read, "reading");
    Ok(Some(panics))
}

#[derive(Default)]
struct Probe {
    /// How many lived at the same time, and how many do.
    alive: Arc<AtomicUsize>,
    /// When and why the one that waits was told to stop.
    told: Arc<Mutex<Option<Stopping>>>,
    /// What the one that blocks waits for, and where it says that it does.
    blocks: Mutex<Option<(blocking::Receiver<()>, blocking::Sender<()>)>>,
    /// Where the one that reports says that it has.
    reported: Mutex<Option<blocking::Sender<()>>>,
    graces: AtomicUsize,
}

#[derive(Debug)]
struct Unsaid;

impl fmt::Display for Unsaid {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Unsaid {}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Kind for Probe {
    type Spec = ProbeSpec;

    fn check(&self, spec: &ProbeSpec) -> Result<(), SpecError> {
        assert_ne!(spec.panics, Some(Panics::Check), "checking");
        let is_even = spec.even.is_multiple_of(2);
        if is_even { Ok(()) } else { Err(SpecError(format!("spec.even: {} is odd; give an even number", spec.even))) }
    }

    fn grace(&self, spec: &ProbeSpec) -> Duration {
        let is_first = self.graces.fetch_add(1, Ordering::SeqCst) == 0;
        assert!(spec.panics != Some(Panics::Grace), "{}", format!("grace of {:?}", spec.does));
        assert!(is_first || spec.panics != Some(Panics::GraceLater), "once is enough");
        spec.grace_ms.map_or(GRACE, Duration::from_millis)
    }

    fn updates(&self) -> bool {
        true
    }

    async fn run(&self, piece: Piece<ProbeSpec>) -> Result<(), Failure> {
        assert_eq!(self.alive.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
        let _alive = Alive(Arc::clone(&self.alive));
        let spec = piece.spec();
        match &spec.does {
            Does::Wait => *self.told.lock().expect("one") = Some(piece.stopping().await),
            Does::Ignore => std::future::pending().await,
            Does::Return(ms) => sleep(MS * u32::try_from(*ms)?).await,
            Does::Fail(ms) => {
                sleep(MS * u32::try_from(*ms)?).await;
                Err("it went wrong")?;
            }
            Does::Panic(ms) => {
                sleep(MS * u32::try_from(*ms)?).await;
                panic!("a panic of number {}", piece.epoch());
            }
            Does::FailUnsaid => Err(Unsaid)?,
            Does::Check => loop {
                piece.check()?;
                sleep(MS).await;
            },
            Does::Block => {
                let blocks = self.blocks.lock().expect("once").take();
                if let Some((go, begun)) = blocks {
                    begun.send(()).expect("received");
                    let _ = go.recv();
                }
            }
            Does::Report(words) => {
                for word in words {
                    piece.report(word);
                    if let Some(reported) = self.reported.lock().expect("one").take() {
                        reported.send(()).expect("received");
                    }
                    sleep(400 * MS).await;
                }
                piece.stopping().await;
            }
        }
        Ok(())
    }

    async fn update(&self, _: &Piece<ProbeSpec>, new: &ProbeSpec) -> Update {
        sleep(100 * MS).await;
        match new.update.as_deref() {
            None => Update::Taken,
            Some("panic") => panic!("no change"),
            Some(why) => Update::NeedsRestart(why.to_owned()),
        }
    }
}

/// The clock of paused time.
#[derive(Debug)]
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> BootTime {
        BootTime(1) + self.0.elapsed()
    }
}

struct Testbed {
    driver: InProcess<Probe>,
    alive: Arc<AtomicUsize>,
    told: Arc<Mutex<Option<Stopping>>>,
    gate: Gate,
    begun: Instant,
}

struct Started {
    handle: Option<Box<dyn Handle>>,
    events: mpsc::UnboundedReceiver<Event>,
    begun: Instant,
}

fn name() -> ResourceName {
    ResourceName::new("a").expect("name")
}

fn spec(value: Value) -> Spec {
    Spec::from_value(value).expect("spec")
}

fn change(value: Value) -> Change {
    let spec = spec(value);
    Change { hash: Hash::of("probe", &spec), spec }
}

impl Testbed {
    fn new() -> Self {
        let begun = Instant::now();
        let gate = Gate::shut(Arc::new(Paused(begun)));
        gate.open_until(Some(BootTime(u64::MAX)));
        let probe = Probe::default();
        let (alive, told) = (Arc::clone(&probe.alive), Arc::clone(&probe.told));
        Self { driver: InProcess::on("probe", probe, Runtime::current()), alive, told, gate, begun }
    }

    fn start(&self, value: Value) -> Started {
        let (sender, events) = mpsc::unbounded_channel();
        let work = Work { name: name(), epoch: Epoch(7), spec: spec(value), gate: self.gate.clone(), log: Log::nowhere() };
        let handle = self.driver.start(work, Observer::new(name(), Epoch(7), sender));
        let handle = handle.unwrap_or_else(|(error, observer)| {
            observer.unused();
            panic!("{error}")
        });
        Started { handle: Some(handle), events, begun: self.begun }
    }

    fn lives(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    fn boot(&self, after: Duration) -> BootTime {
        self.gate.clock().now() + after
    }
}

impl Started {
    /// The next event, and when it came, in milliseconds since the test began.
    async fn next(&mut self) -> (u128, EventKind) {
        let kind = self.events.recv().await.expect("an event").kind;
        (self.begun.elapsed().as_millis(), kind)
    }

    async fn seen(&mut self) -> (u128, Observation) {
        match self.next().await {
            (at, EventKind::Observed(seen)) => (at, seen),
            (at, other) => panic!("{other:?} at {at}"),
        }
    }

    /// Phase, message and failures of the next observation, and when it came.
    async fn words(&mut self) -> (u128, &'static str, String, u32) {
        let (at, seen) = self.seen().await;
        (at, seen.phase.as_str(), seen.message, seen.failures)
    }

    fn stop(&self, order: StopOrder) {
        self.handle.as_ref().expect("a handle").stop(order);
    }

    fn update(&self, value: Value) -> Hash {
        let change = change(value);
        let hash = change.hash;
        self.handle.as_ref().expect("a handle").update(change);
        hash
    }

    async fn ended(&mut self) -> u128 {
        let (at, kind) = self.next().await;
        assert_eq!(kind, EventKind::Ended);
        at
    }
}

#[tokio::test(start_paused = true)]
async fn a_piece_runs_until_it_is_told_to_stop() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": "wait"}));
    assert_eq!(run.words().await, (0, "running", String::new(), 0));
    sleep(30_000 * MS).await;
    let why = Some(StopWhy::Leaving);
    run.stop(StopOrder { kill_by: None, why });
    assert_eq!((run.ended().await, testbed.lives()), (30_000, 0));
    let deadline = testbed.begun + 30_500 * MS;
    assert_eq!(*testbed.told.lock().expect("one"), Some(Stopping { deadline, why }));
    assert!(run.events.recv().await.is_none(), "that was all");
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_return_is_aborted_at_the_end_of_its_grace_or_at_the_orders_time() {
    for (kill_by, expected) in [(None, 500), (Some(200), 200), (Some(9000), 500)] {
        let testbed = Testbed::new();
        let mut run = testbed.start(json!({"does": "ignore"}));
        run.seen().await;
        run.stop(StopOrder { kill_by: kill_by.map(|ms| testbed.boot(ms * MS)), why: None });
        assert_eq!((run.ended().await, testbed.lives()), (expected, 0));
    }
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": "ignore"}));
    run.seen().await;
    run.stop(StopOrder::default());
    sleep(100 * MS).await;
    run.stop(StopOrder { kill_by: Some(testbed.boot(100 * MS)), why: None });
    assert_eq!(run.ended().await, 200, "said again, the earlier time counts");
    let mut run = testbed.start(json!({"does": "ignore"}));
    run.seen().await;
    drop(run.handle.take());
    assert_eq!(run.ended().await, 200, "nobody is left who could say anything");
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_or_panics_is_started_again_with_the_pauses_of_a_process() {
    for (does, message) in [("fail", "it went wrong"), ("panic", "it panicked: a panic of number 7")] {
        let testbed = Testbed::new();
        let mut run = testbed.start(json!({"does": {does: 10}}));
        for (at, failures) in [(0, 0), (110, 1), (320, 2), (730, 3)] {
            assert_eq!(run.words().await, (at, "running", String::new(), failures));
            let (ended, phase, why, failed) = run.words().await;
            assert_eq!((ended, phase, why.as_str(), failed), (at + 10, "backoff", message, failures + 1));
        }
        run.stop(StopOrder::default());
        assert_eq!(run.ended().await, 740, "a pause does not hold up a stop");
    }
    let mut run = Testbed::new().start(json!({"does": "fail_unsaid"}));
    run.seen().await;
    assert_eq!(run.words().await, (0, "backoff", "it panicked: no words".to_owned(), 1));
    // One that ran well begins anew, and what it failed before is forgotten while it runs.
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": {"fail": 10_001}}));
    let mut seen = Vec::new();
    for _ in 0..4 {
        let (at, phase, _, failures) = run.words().await;
        seen.push((at, phase, failures));
    }
    assert_eq!(seen, [(0, "running", 0), (10_001, "backoff", 0), (10_101, "running", 0), (20_102, "backoff", 0)]);
}

#[tokio::test(start_paused = true)]
async fn one_that_returns_has_finished() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": {"return": 10}}));
    run.seen().await;
    let (at, seen) = run.seen().await;
    assert_eq!((at, seen.phase, seen.lives), (10, Observed::Exited, Lives::Nothing));
    sleep(60_000 * MS).await;
    run.stop(StopOrder::default());
    assert_eq!(run.ended().await, 60_010);
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_and_nothing_is_done_while_the_gate_is_shut() {
    let testbed = Testbed::new();
    testbed.gate.open_until(Some(testbed.boot(1000 * MS)));
    let mut run = testbed.start(json!({"does": "check"}));
    run.seen().await;
    let (at, phase, why, failures) = run.words().await;
    assert!((1000..1003).contains(&at), "{at}");
    assert_eq!((phase, why.as_str(), failures), ("backoff", "waits for authority", 0), "that is no failure");
    sleep(100 * MS).await;
    assert_eq!(testbed.lives(), 0);
    testbed.gate.open_until(Some(BootTime(u64::MAX)));
    let again = loop {
        let (_, seen) = run.seen().await;
        if seen.phase == Observed::Running {
            break seen;
        }
    };
    assert_eq!((again.restarts, again.failures), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_taken_or_refused_while_the_piece_runs_on() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": "wait"}));
    run.seen().await;
    let taken = run.update(json!({"does": "wait", "even": 2}));
    assert_eq!(run.next().await, (100, EventKind::Updated(taken)));
    let refused = run.update(json!({"does": "wait", "update": "not that"}));
    assert_eq!(run.next().await, (200, EventKind::NeedsRestart(refused, "not that".to_owned())));
    let wrong = run.update(json!({"does": "wait", "even": 3}));
    assert_eq!(run.next().await, (200, EventKind::NeedsRestart(wrong, "spec.even: 3 is odd; give an even number".to_owned())));
    let panics = run.update(json!({"does": "wait", "update": "panic"}));
    let why = "the change could not be taken: it panicked: no change".to_owned();
    assert_eq!(run.next().await, (300, EventKind::NeedsRestart(panics, why)));
    // The second comes while the first is asked about: both are answered, in their order.
    let first = run.update(json!({"does": "wait", "even": 4}));
    sleep(50 * MS).await;
    let second = run.update(json!({"does": "wait", "even": 6}));
    assert_eq!(run.next().await, (400, EventKind::Updated(first)));
    assert_eq!(run.next().await, (500, EventKind::Updated(second)));
    assert_eq!(testbed.lives(), 1, "the same piece, all the while");
    run.update(json!({"does": "wait", "even": 8}));
    sleep(50 * MS).await;
    run.stop(StopOrder::default());
    run.update(json!({"does": "wait", "even": 10}));
    assert_eq!(run.ended().await, 550, "a stop is final, and nobody waits for an answer any more");
}

#[tokio::test(start_paused = true)]
async fn an_epoch_is_not_started_again_with_another_spec() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": {"fail": 10}}));
    run.seen().await;
    // Its run ends before the answer.
    let cut_off = run.update(json!({"does": "wait"}));
    let mut told = [run.next().await.1, run.next().await.1];
    told.sort_by_key(|kind| matches!(kind, EventKind::Observed(_)));
    assert!(matches!(&told[0], EventKind::NeedsRestart(hash, _) if *hash == cut_off), "{told:?}");
    let waiting = run.update(json!({"does": "wait", "even": 2}));
    assert!(matches!(run.next().await.1, EventKind::NeedsRestart(hash, _) if hash == waiting));
    run.seen().await;
    assert_eq!(run.words().await.2, "it went wrong", "it is what it was");
}

#[tokio::test(start_paused = true)]
async fn what_a_piece_reports_is_its_message_and_is_told_once_a_second_at_most() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": {"report": ["a", "b", "c", "d"]}}));
    let mut told = Vec::new();
    for _ in 0..4 {
        let (at, phase, message, _) = run.words().await;
        told.push((at, phase, message));
    }
    let running = |at, message: &str| (at, "running", message.to_owned());
    assert_eq!(told, [running(0, ""), running(0, "a"), running(1000, "c"), running(2000, "d")]);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_spec_is_refused_with_the_field() {
    let testbed = Testbed::new();
    for (value, expected) in [
        (json!({"does": "wait", "even": "x"}), "spec.even: invalid type: string \"x\", expected u64"),
        (json!({"does": {"return": -1}}), "spec.does.return: invalid value: integer `-1`, expected u64"),
        (
            json!({"does": "wait", "odd": 1}),
            "spec.odd: unknown field `odd`, expected one of `does`, `update`, `even`, `panics`, `grace_ms`",
        ),
        (json!({}), "spec: missing field `does`"),
        (json!({"does": "wait", "even": 1}), "spec.even: 1 is odd; give an even number"),
    ] {
        assert_eq!(testbed.driver.grace(&spec(value)).expect_err(expected).to_string(), expected);
    }
    assert_eq!(testbed.driver.grace(&spec(json!({"does": "wait"}))), Ok(GRACE));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_panics_over_a_spec_refuses_it() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": "wait"}));
    run.seen().await;
    for (panics, text) in [("read", "assertion `left != right` failed: reading"), ("check", "checking"), ("grace", "grace of Wait")] {
        let value = json!({"does": "wait", "panics": panics});
        let refused = |error: &SpecError| {
            let said = error.to_string();
            said.starts_with("its kind panicked over the spec: ") && said.contains(text)
        };
        let asked = testbed.driver.grace(&spec(value.clone()));
        assert!(asked.as_ref().is_err_and(refused), "{asked:?}");
        let work = Work { name: name(), epoch: Epoch(8), spec: spec(value.clone()), gate: testbed.gate.clone(), log: Log::nowhere() };
        let (error, observer) =
            testbed.driver.start(work, Observer::new(name(), Epoch(8), mpsc::unbounded_channel().0)).err().expect("refused");
        observer.unused();
        assert!(refused(&error), "{error}");
        let change = run.update(value);
        let (_, answer) = run.next().await;
        assert!(matches!(&answer, EventKind::NeedsRestart(hash, why) if *hash == change && refused(&SpecError(why.clone()))), "{answer:?}");
    }
    assert_eq!(testbed.lives(), 1, "the piece runs on, all the while");
}

#[tokio::test(start_paused = true)]
async fn the_grace_is_that_of_the_spec_as_it_was_taken() {
    let testbed = Testbed::new();
    // At its stop its kind is not asked again.
    let mut run = testbed.start(json!({"does": "ignore", "grace_ms": 300, "panics": "grace_later"}));
    run.seen().await;
    run.stop(StopOrder::default());
    assert_eq!(run.ended().await, 300);
    let mut run = testbed.start(json!({"does": "ignore", "grace_ms": 300}));
    run.seen().await;
    let taken = run.update(json!({"does": "ignore", "grace_ms": 700}));
    assert_eq!(run.next().await, (400, EventKind::Updated(taken)));
    run.stop(StopOrder::default());
    assert_eq!(run.ended().await, 1100, "a change that was taken counts");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_comes_again_is_answered_again() {
    let testbed = Testbed::new();
    let mut run = testbed.start(json!({"does": "wait"}));
    run.seen().await;
    for at in [100, 200] {
        let refused = run.update(json!({"does": "wait", "update": "not that"}));
        let answer = tokio::time::timeout(60_000 * MS, run.next()).await.expect("an answer");
        assert_eq!(answer, (at, EventKind::NeedsRestart(refused, "not that".to_owned())));
    }
}

/// The piece is on a real thread, and has reported before its keeper goes on from its start: the keeper's log holds it up.
#[tokio::test(start_paused = true)]
async fn what_is_reported_at_once_is_not_lost() {
    let (reports, reported) = blocking::channel();
    let probe = Probe { reported: Mutex::new(Some(reports)), ..Probe::default() };
    let testbed = Testbed { driver: InProcess::new("probe", probe), ..Testbed::new() };
    let reported = Mutex::new(reported);
    let held_up = tracing_subscriber::fmt().with_writer(move || {
        reported.lock().expect("one").recv_timeout(Duration::from_secs(20)).expect("it has reported");
        std::io::sink()
    });
    let _log = tracing::subscriber::set_default(held_up.finish());
    let mut run = testbed.start(json!({"does": {"report": ["early"]}}));
    assert_eq!(run.words().await.2, "");
    let next = tokio::time::timeout(60_000 * MS, run.words()).await.expect("a report");
    assert_eq!(next, (0, "running", "early".to_owned(), 0));
}

/// The piece is on a real thread; the time of its keeper is paused, and runs on while the piece keeps its thread.
#[tokio::test(start_paused = true)]
async fn one_that_blocks_its_thread_is_named_and_the_agent_is_told_that_it_cannot_go_on() {
    let testbed = Testbed::new();
    let (go, waits) = blocking::channel();
    let (begins, begun) = blocking::channel();
    let probe = Probe { blocks: Mutex::new(Some((waits, begins))), ..Probe::default() };
    let testbed = Testbed { driver: InProcess::new("probe", probe), ..testbed };
    let mut run = testbed.start(json!({"does": "block"}));
    assert_eq!(run.seen().await.1.phase, Observed::Running);
    begun.recv_timeout(Duration::from_secs(20)).expect("it has begun");
    run.stop(StopOrder::default());
    let (at, seen) = run.seen().await;
    let message =
        "it blocks its thread and ignores its stop; unless it ends within 1 s, the worker's process is ended, and all that runs inside it";
    assert_eq!((at, seen.phase, seen.overran, seen.message.as_str()), (1500, Observed::Stopping, true, message));
    assert_eq!(run.next().await, (2500, EventKind::Broken), "never that it has ended");
    go.send(()).expect("it waits");
}

#[tokio::test(start_paused = true)]
async fn it_keeps_the_promises_of_a_driver() {
    let trial = conformance::Trial {
        good: json!({"does": "ignore"}),
        bad: json!({"does": "ignore", "even": 1}),
        change: Some(json!({"does": "ignore", "even": 2})),
        starts_within: Duration::from_secs(1),
    };
    assert_eq!(conformance::check(Arc::new(Testbed::new().driver), trial).await, Ok(()));
}

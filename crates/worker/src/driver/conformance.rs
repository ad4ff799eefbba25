//! Asks a driver to keep its promises: what the author of a kind calls in a test. docs/drivers.md says what each promise is for.
//!
//! The wheel: beside worker::driver, for tests. It plays the agent: it starts, changes and stops real runs, and believes nothing that it does not see.
//! With paused time it takes no time where the driver asks nobody outside; else some seconds.

use std::{sync::Arc, time::Duration};

use evenkeel_model::{Epoch, Hash, Observed, ResourceName, Spec};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::{Change, Driver, Event, EventKind, Handle, Log, Observer, StopOrder, Work};
use crate::protocol::authority::{BootTime, Gate, SystemClock};

/// What must not wait has this long: more than a busy machine takes for what is at hand, less than the agent may be held up.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Beyond a grace or an order's time, for what is killed to be seen dead.
const SEEN: Duration = Duration::from_secs(2);
/// For so long a gate that is shut is watched, and a run that has ended.
const WATCHED: Duration = Duration::from_millis(300);
/// An order's time that is earlier than most graces.
const EARLY: Duration = Duration::from_millis(100);

/// What a driver is tried with.
#[derive(Clone, Debug)]
pub struct Trial {
    /// A spec by which work runs until it is told to stop.
    pub good: Value,
    /// A spec that is to be refused.
    pub bad: Value,
    /// A change of `good` that is taken while the work runs; none: the driver takes no changes.
    pub change: Option<Value>,
    /// How long work may take until it runs.
    pub starts_within: Duration,
}

/// A promise that the driver has not kept: which, and what was seen instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{promise}: {seen}")]
pub struct Broken {
    /// The promise.
    pub promise: &'static str,
    /// What was seen.
    pub seen: String,
}

fn broken<T>(promise: &'static str, seen: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { promise, seen: seen.into() })
}

/// Tries all of it. Call it within a runtime; the work is called `conformance-<kind>`.
///
/// # Errors
/// The first promise that is not kept.
pub async fn check(driver: Arc<dyn Driver>, trial: Trial) -> Result<(), Broken> {
    let kind = driver.kind().to_owned();
    let name = ResourceName::new(&format!("conformance-{kind}"));
    let name = match (name, ResourceName::new(&kind)) {
        (Ok(name), Ok(_)) => name,
        (Err(error), _) | (_, Err(error)) => return broken("a kind is a name as those of resources are", format!("{kind:?} {error}")),
    };
    let tested = Tested { driver, name, gate: Gate::shut(Arc::new(SystemClock)), trial };
    tested.specs()?;
    tested.gate().await?;
    tested.run().await?;
    tested.kill_by().await?;
    tested.survivors().await
}

struct Tested {
    driver: Arc<dyn Driver>,
    name: ResourceName,
    gate: Gate,
    trial: Trial,
}

/// A run under test.
struct Run {
    handle: Box<dyn Handle>,
    events: mpsc::UnboundedReceiver<Event>,
    epoch: Epoch,
}

impl Run {
    /// The next event; none: none came by then.
    async fn next(&mut self, by: Instant) -> Result<Option<EventKind>, Broken> {
        let Ok(Some(event)) = timeout_at(by, self.events.recv()).await else { return Ok(None) };
        match event.kind {
            EventKind::Broken => broken("an observer is dropped only by `ended`", "it was dropped, as of a driver that has failed"),
            _ if event.epoch != self.epoch => {
                broken("each run tells of its own epoch", format!("{} was told of, and not {}", event.epoch, self.epoch))
            }
            kind => Ok(Some(kind)),
        }
    }

    /// Nothing that lives is observed until then.
    async fn quiet(&mut self, promise: &'static str) -> Result<(), Broken> {
        let by = Instant::now() + WATCHED;
        while let Some(kind) = self.next(by).await? {
            if !matches!(&kind, EventKind::Observed(seen) if seen.phase != Observed::Running) {
                return broken(promise, format!("{kind:?}"));
            }
        }
        Ok(())
    }

    /// Stops it, and waits for its end.
    async fn stop(&mut self, order: StopOrder, within: Duration) -> Result<(), Broken> {
        const ENDS: &str = "a run that is told to stop ends within its grace, or by the order's time, and says so once nothing of it lives";
        at_once("stop", || self.handle.stop(order))?;
        at_once("a second stop", || self.handle.stop(order))?;
        let begun = Instant::now();
        loop {
            match self.next(begun + within + SEEN).await? {
                Some(EventKind::Ended) => break,
                Some(_) => {}
                None => return broken(ENDS, format!("it has not after {:?}", begun.elapsed())),
            }
        }
        match timeout(WATCHED, self.events.recv()).await {
            Ok(Some(event)) => broken("after its end nothing is told of a run", format!("{:?}", event.kind)),
            _ => Ok(()),
        }
    }
}

fn at_once<T>(what: &str, call: impl FnOnce() -> T) -> Result<T, Broken> {
    // Of the real clock: what blocks does not let paused time go on.
    let begun = std::time::Instant::now();
    let done = call();
    let took = begun.elapsed();
    if took > AT_ONCE { broken("start, stop and update never wait", format!("{what} took {took:?}")) } else { Ok(done) }
}

impl Tested {
    fn spec(value: &Value) -> Result<Spec, Broken> {
        Spec::from_value(value.clone()).or_else(|error| broken("the trial has specs that a resource can have", error.to_string()))
    }

    /// A wrong spec is refused, both when it is checked and when it is started.
    fn specs(&self) -> Result<(), Broken> {
        const CHECKED: &str = "`grace` checks the whole spec, and `start` refuses what `grace` refuses";
        let (good, bad) = (Self::spec(&self.trial.good)?, Self::spec(&self.trial.bad)?);
        if let Err(error) = self.driver.grace(&good) {
            return broken(CHECKED, format!("the good spec is refused: {error}"));
        }
        match self.driver.grace(&bad) {
            Ok(_) => return broken(CHECKED, "the bad spec is taken by `grace`"),
            Err(error) if error.0.is_empty() => return broken("an error names the field and the rule", "it is empty"),
            Err(_) => {}
        }
        let (events, _received) = mpsc::unbounded_channel();
        match self.driver.start(self.work(Epoch(1), bad), Observer::new(self.name.clone(), Epoch(1), events)) {
            Ok(_) => broken(CHECKED, "the bad spec is started"),
            Err((_, observer)) => {
                observer.unused();
                Ok(())
            }
        }
    }

    fn work(&self, epoch: Epoch, spec: Spec) -> Work {
        Work { name: self.name.clone(), epoch, spec, gate: self.gate.clone(), log: Log::nowhere() }
    }

    fn start(&self, epoch: i64) -> Result<Run, Broken> {
        let epoch = Epoch(epoch);
        let (sender, events) = mpsc::unbounded_channel();
        let (work, observer) = (self.work(epoch, Self::spec(&self.trial.good)?), Observer::new(self.name.clone(), epoch, sender));
        match at_once("start", || self.driver.start(work, observer))? {
            Ok(handle) => Ok(Run { handle, events, epoch }),
            Err((error, observer)) => {
                observer.unused();
                broken("a good spec starts", error.to_string())
            }
        }
    }

    async fn started(&self, epoch: i64) -> Result<Run, Broken> {
        let mut run = self.start(epoch)?;
        let (by, mut last) = (Instant::now() + self.trial.starts_within, "nothing was observed".to_owned());
        loop {
            match run.next(by).await? {
                Some(EventKind::Observed(seen)) if seen.phase == Observed::Running => return Ok(run),
                Some(kind) => last = format!("{kind:?}"),
                None => return broken("work that runs is observed to run", last),
            }
        }
    }

    fn grace(&self) -> Result<Duration, Broken> {
        let grace = self.driver.grace(&Self::spec(&self.trial.good)?);
        grace.or_else(|error| broken("`grace` gives the same answer each time", error.to_string()))
    }

    async fn gate(&self) -> Result<(), Broken> {
        self.gate.open_until(None);
        let mut run = self.start(2)?;
        run.quiet("nothing is started while the gate is shut").await?;
        run.stop(StopOrder::default(), self.grace()?).await
    }

    async fn run(&self) -> Result<(), Broken> {
        self.gate.open_until(Some(BootTime(u64::MAX)));
        let mut run = self.started(3).await?;
        match (&self.trial.change, self.driver.traits().updates) {
            (Some(change), true) => self.change(&mut run, Self::spec(change)?).await?,
            (None, false) => {}
            (Some(_), false) => {
                return broken("a driver that takes changes says so in its traits", "`updates` is false, and the trial has a change");
            }
            (None, true) => return broken("a driver that says that it takes changes takes one", "the trial has none; give it one"),
        }
        run.stop(StopOrder::default(), self.grace()?).await
    }

    async fn change(&self, run: &mut Run, spec: Spec) -> Result<(), Broken> {
        const ANSWERED: &str = "a change is answered by `updated` or `needs_restart`, with its hash";
        let hash = Hash::of(self.driver.kind(), &spec);
        at_once("update", || run.handle.update(Change { hash, spec }))?;
        let by = Instant::now() + self.trial.starts_within;
        loop {
            match run.next(by).await? {
                Some(EventKind::Updated(answered)) if answered == hash => return Ok(()),
                Some(EventKind::NeedsRestart(_, why)) => return broken("the change of the trial is taken", why),
                Some(EventKind::Observed(_)) => {}
                Some(kind) => return broken(ANSWERED, format!("{kind:?}")),
                None => return broken(ANSWERED, "there was no answer"),
            }
        }
    }

    async fn kill_by(&self) -> Result<(), Broken> {
        let mut run = self.started(4).await?;
        let kill_by = self.gate.clock().now() + EARLY;
        run.stop(StopOrder { kill_by: Some(kill_by), why: None }, EARLY).await
    }

    async fn survivors(&self) -> Result<(), Broken> {
        const GONE: &str = "once `end` has answered for each survivor, `survivors` knows of none";
        let failed = |error: super::DriverError| Broken { promise: "`survivors` and `end` answer", seen: error.to_string() };
        let first = self.driver.survivors().await.map_err(failed)?;
        if let Some(own) = first.iter().find(|survivor| survivor.name == self.name) {
            return broken("what has ended does not survive", format!("epoch {} does", own.epoch));
        }
        for survivor in first {
            self.driver.end(&survivor).await.map_err(failed)?;
        }
        let left = self.driver.survivors().await.map_err(failed)?;
        if left.is_empty() { Ok(()) } else { broken(GONE, format!("{left:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::driver::{Answer, Noop, Observation, SpecError, Survivor};
    use evenkeel_model::DriverTraits;

    /// Which promise is broken.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Breaks {
        Nothing,
        Check,
        Gate,
        Wait,
        End,
        Last,
        Update,
        Dropped,
        Survives,
    }

    struct Bad(Breaks);

    struct BadRun(Breaks, std::sync::Mutex<Option<Observer>>);

    impl Driver for Bad {
        fn kind(&self) -> &str {
            "bad"
        }
        fn traits(&self) -> DriverTraits {
            DriverTraits { updates: true, ..DriverTraits::default() }
        }
        fn grace(&self, spec: &Spec) -> Result<Duration, SpecError> {
            let is_wrong = spec.as_str().contains("wrong") && self.0 != Breaks::Check;
            if is_wrong { Err(SpecError("spec.wrong: unknown field".to_owned())) } else { Ok(Duration::ZERO) }
        }
        fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
            if let Err(error) = self.grace(&work.spec) {
                return Err((error, observer));
            }
            if self.0 == Breaks::Wait {
                std::thread::sleep(2 * AT_ONCE);
            }
            let runs = work.gate.is_open() || self.0 == Breaks::Gate;
            observer.observed(Observation::of(if runs { Observed::Running } else { Observed::Starting }));
            Ok(Box::new(BadRun(self.0, std::sync::Mutex::new(Some(observer)))))
        }
        fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
            let survivor = Survivor { name: ResourceName::new("x").expect("name"), epoch: Epoch(1), id: String::new() };
            Box::pin(async move { Ok(if self.0 == Breaks::Survives { vec![survivor] } else { Vec::new() }) })
        }
        fn end<'a>(&'a self, _: &'a Survivor) -> Answer<'a, ()> {
            Box::pin(async { Ok(()) })
        }
    }

    impl Handle for BadRun {
        fn stop(&self, _: StopOrder) {
            let Some(observer) = self.1.lock().expect("one").take_if(|_| self.0 != Breaks::End) else { return };
            match self.0 {
                Breaks::Dropped => drop(observer),
                Breaks::Last => {
                    observer.observed(Observation::of(Observed::Stopping));
                    let late = Observer::new(ResourceName::new("x").expect("name"), Epoch(9), observer.events.clone());
                    observer.ended();
                    late.observed(Observation::of(Observed::Running));
                    late.unused();
                }
                _ => observer.ended(),
            }
        }
        fn update(&self, change: Change) {
            if let Some(observer) = self.1.lock().expect("one").as_ref().filter(|_| self.0 != Breaks::Update) {
                observer.updated(change.hash);
            }
        }
    }

    fn trial() -> Trial {
        Trial { good: json!({}), bad: json!({"wrong": 1}), change: Some(json!({"more": 1})), starts_within: Duration::from_secs(1) }
    }

    #[tokio::test(start_paused = true)]
    async fn each_promise_that_is_broken_is_named() {
        let cases = [
            (Breaks::Nothing, ""),
            (Breaks::Check, "`grace` checks the whole spec"),
            (Breaks::Gate, "nothing is started while the gate is shut"),
            (Breaks::Wait, "start, stop and update never wait: start took"),
            (Breaks::End, "a run that is told to stop ends within its grace"),
            (Breaks::Last, "after its end nothing is told of a run"),
            (Breaks::Update, "a change is answered by `updated` or `needs_restart`, with its hash: there was no answer"),
            (Breaks::Dropped, "an observer is dropped only by `ended`"),
            (Breaks::Survives, "once `end` has answered for each survivor"),
        ];
        for (breaks, expected) in cases {
            let said = check(Arc::new(Bad(breaks)), trial()).await.map_or_else(|broken| broken.to_string(), |()| String::new());
            assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{breaks:?}: {said}");
        }
        let said = check(Arc::new(Noop), trial()).await.expect_err("noop takes any spec").to_string();
        assert!(said.starts_with("`grace` checks the whole spec"), "{said}");
    }
}

//! Work on a simulated machine: the driver that starts and stops it, and its processes, which outlive the agent until the guard kills them.
//!
//! The wheel: worker::reconcile -> **worker::driver** -> worker::report. The driver is the one part of a worker that is not the real one.

use std::{sync::Arc, time::Duration};

use evenkeel_model::{DriverTraits, Observed, ResourceName, Spec};
use evenkeel_store::task::of_this_process;
use evenkeel_worker::driver::{Answer, Change, Driver, Handle, Lives, Observation, Observer, SpecError, StopOrder, Survivor, Work};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    dice::Dice,
    ledger::{Ledger, LiveRun, RunId},
    sharer::is_shared,
    sign::Sign,
};

/// What the driver is called.
pub const KIND: &str = "sim";
/// The longest from the order to start to the process.
const LONGEST_START: Duration = Duration::from_millis(40);
/// The longest from a SIGKILL to the end of the last process: a little less than the protocol grants.
pub(super) const LONGEST_KILL: Duration = Duration::from_millis(480);
/// How long an exited process stays down, and how long a shut gate is left alone.
const PAUSE: Duration = Duration::from_millis(300);
/// Of names in a row so many fail on a machine each, of which a fleet has three to five: about one in two.
const FAILS_ON: u64 = 7;
/// One content in so many is work that comes to its end and is not to be started again.
const ENDS: u64 = 7;
/// A run of this length went well.
const WELL: Duration = Duration::from_secs(10);
/// What a kernel counts its kills as when it loses its power.
const POWER_LOST: u64 = u64::MAX;

/// The processes of one machine's work.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) machine: Arc<str>,
    pub(super) ledger: Ledger,
    pub(super) dice: Dice,
    /// Counts the kills that went to every process. Those of an earlier kill are dead, or dying.
    kills: Sign<u64>,
    /// How many processes live.
    living: Sign<usize>,
}

/// One process with all its children.
#[derive(Debug)]
struct Running {
    dead: watch::Receiver<bool>,
    signal: watch::Sender<Signal>,
}

/// How long a process lives unless somebody ends it, and whether that is an end for good.
#[derive(Clone, Copy, Debug)]
struct Life {
    lives: Duration,
    for_good: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    None,
    Term,
    Kill,
}

impl Kernel {
    pub(super) fn new(machine: &str, ledger: Ledger, dice: Dice) -> Self {
        Self { machine: machine.into(), ledger, dice, kills: Sign::new(0), living: Sign::new(0) }
    }

    /// The machine loses its power.
    pub(super) fn power_off(&self) {
        self.kills.change(|kills| *kills = POWER_LOST);
    }

    /// SIGKILL to all of it; done when all of it is dead.
    pub(super) async fn kill_all(&self) {
        self.kills.change(|kills| *kills = kills.saturating_add(1));
        self.living.shows(|living| living == 0).await;
    }

    /// Whether work of this name ends here as soon as it has begun: what it needs is on the other machines.
    fn fails(&self, name: &ResourceName) -> bool {
        fails_on(name, &self.machine) && !self.ledger.is_quiet()
    }

    /// Whether work comes to its end by itself, and is not to be started again.
    fn ends(&self, work: &Work) -> bool {
        let ends = content_of(work).is_some_and(|content| content % ENDS == 0);
        ends && !is_shared(&work.name) && !self.ledger.is_quiet()
    }

    fn run(&self, work: &Work) -> Running {
        let run = LiveRun { machine: self.machine.to_string(), name: work.name.clone(), epoch: work.epoch, content: content_of(work) };
        let lives = if self.fails(&work.name) {
            self.dice.span(Duration::ZERO, PAUSE)
        } else if self.dice.per_mille(if self.ends(work) { 300 } else { 20 }) {
            self.dice.span(PAUSE, PAUSE * 200)
        } else {
            // Most live on.
            Duration::from_secs(86_400)
        };
        let id = self.ledger.start(run);
        self.living.change(|living| *living += 1);
        let (signal, signals) = watch::channel(Signal::None);
        let (died, dead) = watch::channel(false);
        let for_good = self.ends(work) && !self.fails(&work.name);
        tokio::spawn(self.clone().process(id, Life { lives, for_good }, signals, self.kills.get(), died));
        Running { dead, signal }
    }

    /// One process, from its start to its death.
    async fn process(self, id: RunId, life: Life, mut signals: watch::Receiver<Signal>, kills_before: u64, died: watch::Sender<bool>) {
        let mut end = Instant::now() + life.lives;
        let mut made_to = true;
        loop {
            tokio::select! {
                biased;
                kills = self.kills.shows(|kills| kills != kills_before) => {
                    if kills != POWER_LOST {
                        sleep(self.dice.span(Duration::ZERO, LONGEST_KILL)).await;
                    }
                    break;
                }
                Ok(()) = signals.changed() => {
                    let signal = *signals.borrow_and_update();
                    let takes = match signal {
                        Signal::Kill => self.dice.span(Duration::ZERO, LONGEST_KILL),
                        // Some take longer than they are given, or do not listen.
                        _ => self.dice.span(Duration::ZERO, PAUSE * 3),
                    };
                    end = end.min(Instant::now() + takes);
                }
                () = sleep_until(end) => {
                    made_to = *signals.borrow() != Signal::None;
                    if made_to || !life.for_good || !self.ledger.holds_ends() {
                        break;
                    }
                    end += WELL;
                }
            }
        }
        self.ledger.count(|counts| counts.stops += u64::from(made_to));
        self.ledger.end(id);
        self.living.change(|living| *living -= 1);
        died.send_replace(true);
    }
}

/// Whether work of this name fails on this machine, in a fleet where that is so.
pub(super) fn fails_on(name: &ResourceName, machine: &str) -> bool {
    let sum: u64 = name.as_str().bytes().map(u64::from).sum();
    machine == format!("worker-{}", sum % FAILS_ON)
}

/// What is wanted of it, which no two calls about a resource with one caller have in common.
fn content_of(work: &Work) -> Option<u64> {
    work.spec.to_value().get("content").and_then(serde_json::Value::as_u64)
}

/// Runs work of kind [`KIND`].
pub(super) struct SimDriver {
    pub(super) kernel: Kernel,
    pub(super) grace: Duration,
}

struct Orders(watch::Sender<Option<StopOrder>>);

impl Handle for Orders {
    fn stop(&self, order: StopOrder) {
        self.0.send_modify(|told| {
            let earlier = told.and_then(|before| before.kill_by).into_iter().chain(order.kill_by).min();
            *told = Some(StopOrder { kill_by: earlier, ..order });
        });
    }

    /// It says that it takes no change.
    fn update(&self, _: Change) {}
}

impl Driver for SimDriver {
    fn kind(&self) -> &str {
        KIND
    }

    fn traits(&self) -> DriverTraits {
        DriverTraits::default()
    }

    fn grace(&self, _: &Spec) -> Result<Duration, SpecError> {
        Ok(self.grace)
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        let (orders, told) = watch::channel(None);
        let keeper = Keeper { kernel: self.kernel.clone(), grace: self.grace, work, observer, told, starts: 0, failures: 0 };
        tokio::spawn(of_this_process(keeper.keep()));
        Ok(Box::new(Orders(orders)))
    }

    /// Nothing of it outlives its guard.
    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn end<'a>(&'a self, _: &'a Survivor) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Keeps one resource running until it is told to stop.
struct Keeper {
    kernel: Kernel,
    grace: Duration,
    work: Work,
    observer: Observer,
    told: watch::Receiver<Option<StopOrder>>,
    starts: u32,
    failures: u32,
}

impl Keeper {
    async fn keep(mut self) {
        while self.told.borrow().is_none() {
            sleep(self.kernel.dice.span(Duration::ZERO, LONGEST_START)).await;
            // The one check that counts is the last one before the effect.
            if self.told.borrow().is_none() && self.work.gate.is_open() {
                self.starts += 1;
                let running = self.kernel.run(&self.work);
                self.observe(Observed::Running);
                let begun = Instant::now();
                self.stay_with(running).await;
                self.failures = if begun.elapsed() < WELL { self.failures + 1 } else { 0 };
                if self.told.borrow().is_none() && self.kernel.ends(&self.work) && !self.kernel.fails(&self.work.name) {
                    self.observe(Observed::Exited);
                    let _ = self.told.wait_for(Option::is_some).await;
                }
            }
            if self.told.borrow().is_none() {
                self.observe(Observed::Backoff);
                tokio::select! {
                    biased;
                    _ = self.told.wait_for(Option::is_some) => {}
                    () = sleep(PAUSE) => {}
                }
            }
        }
        self.observer.ended();
    }

    /// Returns when the process is dead.
    async fn stay_with(&mut self, mut running: Running) {
        tokio::select! {
            biased;
            _ = running.dead.wait_for(|dead| *dead) => return,
            _ = self.told.wait_for(Option::is_some) => {}
        }
        running.signal.send_replace(Signal::Term);
        let grace_ends = self.work.gate.clock().instant(self.work.gate.clock().now() + self.grace);
        loop {
            let order = *self.told.borrow_and_update();
            let kill_by = order.and_then(|order| order.kill_by).map(|at| self.work.gate.clock().instant(at));
            tokio::select! {
                biased;
                _ = running.dead.wait_for(|dead| *dead) => return,
                Ok(()) = self.told.changed() => {}
                () = sleep_until(kill_by.map_or(grace_ends, |at| at.min(grace_ends))) => break,
            }
        }
        running.signal.send_replace(Signal::Kill);
        let _ = running.dead.wait_for(|dead| *dead).await;
    }

    fn observe(&self, phase: Observed) {
        let lives = if phase == Observed::Exited { Lives::Nothing } else { Lives::Maybe };
        let restarts = self.starts.saturating_sub(1);
        self.observer.observed(Observation { lives, pid: 1, restarts, failures: self.failures, ..Observation::of(phase) });
    }
}

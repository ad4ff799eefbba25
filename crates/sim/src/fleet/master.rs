//! A machine that runs a master: the real control loop, without its servers.
//!
//! The wheel: **store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit** -> etcd.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_master::{
    MasterConfig,
    engine::{Engine, Handle, Leadership},
};
use evenkeel_model::{MasterId, MasterRecord};
use evenkeel_planner::{Flapping, PlannerConfig};
use evenkeel_store::Client;
use tokio::{sync::oneshot, time::sleep};

use super::{
    clock::MachineClock,
    dice::Dice,
    ledger::Ledger,
    process::{Life, SimProcess},
};

/// How soon a master that has ended is started again.
const RESTART: Duration = Duration::from_secs(4);

/// What stays the same for a master.
pub(super) struct Seat {
    pub(super) id: MasterId,
    /// By how many microseconds its clock gains each second.
    pub(super) gain: i32,
    /// The machine's own way to etcd.
    pub(super) connect: Box<dyn Fn() -> Client + Send + Sync>,
    pub(super) ledger: Ledger,
    pub(super) dice: Dice,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Master {
    seat: Arc<Seat>,
    running: Arc<Mutex<Option<Running>>>,
}

struct Running {
    process: SimProcess,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
}

impl Master {
    pub(super) fn new(seat: Seat) -> Self {
        Self { seat: Arc::new(seat), running: Arc::default() }
    }

    pub(super) fn id(&self) -> &MasterId {
        &self.seat.id
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, what: &str) {
        self.seat.ledger.note(format_args!("{}: {what}", self.seat.id));
    }

    /// Starts it, if it does not run.
    pub(super) fn start(&self) {
        let running = self.running();
        if running.is_some() {
            return;
        }
        // What it runs over is handed to its engine.
        let config = MasterConfig { planner: planner(), ..MasterConfig::new(self.seat.id.clone(), Vec::new()) };
        let record = MasterRecord {
            id: self.seat.id.clone(),
            address: format!("{}:1", self.seat.id),
            http: String::new(),
            version: String::new(),
            leads_since: 0,
        };
        let clock = Arc::new(MachineClock::boot_at(self.seat.ledger.elapsed(), self.seat.gain));
        let (stop, stops) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let (seat, master) = (Arc::clone(&self.seat), self.clone());
        // What the engine starts belongs to its process, so it is made there.
        let process = SimProcess::start(async move {
            let engine = Engine::new(Arc::new(config), (seat.connect)(), record, clock);
            let _ = tell.send(engine.handle());
            match engine.run(stops).await {
                Ok(()) => master.note("has handed over and ended"),
                Err(taken) => master.note(&taken.to_string()),
            }
            master.start_again();
        });
        drop(running);
        let master = self.clone();
        tokio::spawn(async move {
            if let Ok(handle) = told.await {
                *master.running() = Some(Running { process, handle, stop: Some(stop) });
            }
        });
    }

    /// The service manager starts it again after a while.
    fn start_again(&self) {
        *self.running() = None;
        let master = self.clone();
        tokio::spawn(async move {
            sleep(master.seat.dice.span(RESTART / 8, RESTART)).await;
            master.start();
        });
    }

    /// SIGKILL.
    pub(super) fn kill(&self) {
        let process = self.running().as_ref().map(|running| running.process.clone());
        if let Some(process) = process {
            process.kill();
            self.start_again();
        }
    }

    /// SIGSTOP. What is returned resumes that one.
    pub(super) fn stop(&self) -> SimProcess {
        let process = self.running().as_ref().map(|running| running.process.clone()).unwrap_or_default();
        process.stop();
        process
    }

    /// SIGTERM: it hands over, ends, and is started again.
    pub(super) fn end(&self) {
        if let Some(running) = self.running().as_mut()
            && let Some(stop) = running.stop.take()
        {
            let _ = stop.send(());
        }
    }

    /// The way to ask it, as a caller has it: a process that was stopped takes a request and does not answer.
    pub(super) fn handle(&self) -> Option<Handle> {
        self.running().as_ref().filter(|running| running.process.life() != Life::Dead).map(|running| running.handle.clone())
    }

    /// Whether it believes that it leads.
    pub(super) fn leads(&self) -> bool {
        self.handle().is_some_and(|handle| handle.leadership() == Leadership::Mine)
    }
}

/// The planner's start values, but for the span for which a worker that was lost too often is set aside, and for when work is moved that fails:
/// faults come so fast here that all are, and what is settled in the end is not to wait for the longest of its spans.
pub(super) fn planner() -> PlannerConfig {
    let start = PlannerConfig::default();
    PlannerConfig { flapping: Flapping { within: ASIDE, aside: ASIDE, ..start.flapping }, move_failing_after: FAILURES, ..start }
}

/// With the pauses of the keeper so many failures take a second, and ten of them half a minute, on each of the machines on which work fails.
const FAILURES: u32 = 3;

const ASIDE: Duration = Duration::from_secs(15);

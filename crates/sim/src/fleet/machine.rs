//! A machine that runs a worker: the guard's real rules, the real agent, and a kernel that holds the work.
//!
//! The wheel: etcd -> **worker::desired -> worker::reconcile -> worker::driver -> worker::report** -> etcd. A service manager starts the
//! worker again whenever it has ended. Nothing is decided here but what a kernel and a service manager decide.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_model::{Origin, Registration, WorkerId};
use evenkeel_store::{Client, keys::Keys};
use evenkeel_worker::{
    agent::{self, Parts},
    driver::Registry,
    driver::catalog::Catalog,
    guard::{
        LinkSender,
        rules::{Ended, Next, Rules, Start},
    },
    protocol::authority::{Clock, Gate, Timing},
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, sleep_until},
};

use super::{
    clock::MachineClock,
    dice::Dice,
    ledger::Ledger,
    process::{Life, SimProcess},
    work::{Kernel, SimDriver},
};

/// By how much the guard's timer may be late: a little less than the slack that the protocol grants.
const LONGEST_DELAY: Duration = Duration::from_millis(240);
/// How soon an agent, or the kernel, sees that the guard is dead and has killed the work.
const AFTER_GUARD: Duration = Duration::from_millis(60);
/// How soon the service manager starts a worker again.
const RESTART: Duration = Duration::from_secs(2);
const SIGTERM: i32 = 15;

/// What stays the same for a machine.
pub(super) struct Site {
    pub(super) id: WorkerId,
    pub(super) timing: Timing,
    /// By how many microseconds its clock gains each second.
    pub(super) gain: i32,
    /// The machine's own way to etcd.
    pub(super) connect: Box<dyn Fn() -> Client + Send + Sync>,
    pub(super) ledger: Ledger,
    pub(super) dice: Dice,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Machine {
    site: Arc<Site>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    boots: u64,
    /// None: the machine is off.
    system: Option<System>,
}

/// A machine that is on.
#[derive(Clone)]
struct System {
    boot: u64,
    clock: MachineClock,
    kernel: Kernel,
    guards: u64,
    guard: Option<Arc<Guard>>,
}

/// A guard process and the agent that it has started.
struct Guard {
    id: String,
    process: Mutex<SimProcess>,
    agent: Mutex<SimProcess>,
    rules: Mutex<Rules>,
    changed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    pub(super) fn new(site: Site) -> Self {
        Self { site: Arc::new(site), state: Arc::default() }
    }

    pub(super) fn id(&self) -> &WorkerId {
        &self.site.id
    }

    fn note(&self, what: &str) {
        self.site.ledger.note(format_args!("{}: {what}", self.site.id));
    }

    /// Switches it on. The worker starts with it.
    pub(super) fn boot(&self) {
        let mut state = lock(&self.state);
        state.boots += 1;
        let kernel = Kernel::new(self.site.id.as_str(), self.site.ledger.clone(), self.site.dice.clone());
        state.system = Some(System { boot: state.boots, clock: MachineClock::boot(self.site.gain), kernel, guards: 0, guard: None });
        drop(state);
        self.note("booted");
        self.start_worker();
    }

    /// The service manager starts the worker, if it does not run.
    pub(super) fn start_worker(&self) {
        let mut state = lock(&self.state);
        let Some(system) = state.system.as_mut().filter(|system| system.guard.is_none()) else { return };
        system.guards += 1;
        let guard = Arc::new(Guard {
            id: format!("{}.{}", system.boot, system.guards),
            process: Mutex::default(),
            agent: Mutex::default(),
            rules: Mutex::default(),
            changed: Notify::new(),
        });
        system.guard = Some(Arc::clone(&guard));
        let (machine, system) = (self.clone(), system.clone());
        let process = SimProcess::start(machine.guard(Arc::clone(&guard), system));
        *lock(&guard.process) = process;
    }

    /// The guard's loop: carries out what its rules say.
    async fn guard(self, guard: Arc<Guard>, system: System) {
        let (leave, _) = watch::channel(false);
        loop {
            let next = lock(&guard.rules).next(system.clock.now());
            match next {
                Next::Wait(until) => {
                    let time = async {
                        match until {
                            Some(at) => sleep_until(system.clock.instant(at)).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        biased;
                        () = guard.changed.notified() => {}
                        () = time => sleep(self.site.dice.span(Duration::ZERO, LONGEST_DELAY)).await,
                    }
                }
                Next::AskToLeave => drop(leave.send_replace(true)),
                Next::Kill(why) => {
                    self.note(&format!("the guard kills everything: {why:?}"));
                    lock(&guard.agent).kill();
                    system.kernel.kill_all().await;
                    lock(&guard.rules).killed();
                }
                Next::Start(start) => {
                    leave.send_replace(false);
                    self.start_agent(&guard, &system, start, leave.subscribe());
                    lock(&guard.rules).started(system.clock.now());
                }
                Next::Exit(status) => {
                    system.kernel.kill_all().await;
                    self.note(&format!("the worker has ended with status {status}"));
                    self.worker_has_ended(&guard);
                    return;
                }
            }
        }
    }

    fn start_agent(&self, guard: &Arc<Guard>, system: &System, start: Start, leave: watch::Receiver<bool>) {
        let site = &self.site;
        let clock: Arc<dyn Clock> = Arc::new(system.clock);
        let gate = Gate::shut(Arc::clone(&clock));
        let driver = SimDriver { kernel: system.kernel.clone(), grace: site.timing.grace };
        let registry = Registry::default().with(Arc::new(driver)).expect("one driver");
        let origin = Origin { boot_id: system.boot.to_string(), guard: guard.id.clone() };
        let registration = Registration {
            kinds: registry.kinds(),
            origin,
            authority_ms: Some(site.timing.authority_ms()),
            ..Registration::bare(site.id.clone(), format!("{}:1", site.id))
        };
        let told = Arc::clone(guard);
        let link = LinkSender::new(move |message| {
            lock(&told.rules).heard(start.generation, message);
            told.changed.notify_one();
            lock(&told.process).life() != Life::Dead
        });
        let parts = Parts {
            client: (site.connect)(),
            keys: Keys::new(""),
            registration,
            find_host: None,
            timing: site.timing,
            clock,
            gate,
            link,
            leave,
            previous: start.previous,
            registry,
            catalog: Catalog::default(),
            patience: Duration::MAX,
        };
        let guard_of_it = Arc::clone(guard);
        let machine = self.clone();
        *lock(&guard.agent) = SimProcess::start(async move {
            let status = match agent::live(parts).await {
                Ok(()) => 0,
                Err(error) => {
                    machine.note(&format!("the agent ends: {error}"));
                    error.exit_status(start.previous.is_some())
                }
            };
            lock(&guard_of_it.rules).ended(start.generation, Ended::Exited(i32::from(status)));
            guard_of_it.changed.notify_one();
        });
    }

    fn worker_has_ended(&self, guard: &Arc<Guard>) {
        let mut state = lock(&self.state);
        let Some(system) = state.system.as_mut() else { return };
        if system.guard.as_ref().is_none_or(|current| !Arc::ptr_eq(current, guard)) {
            return;
        }
        system.guard = None;
        let (machine, boot) = (self.clone(), system.boot);
        tokio::spawn(async move {
            sleep(machine.site.dice.span(RESTART / 8, RESTART)).await;
            if lock(&machine.state).system.as_ref().is_some_and(|system| system.boot == boot) {
                machine.start_worker();
            }
        });
    }

    fn current(&self) -> Option<(System, Arc<Guard>)> {
        let system = lock(&self.state).system.clone()?;
        let guard = system.guard.clone()?;
        Some((system, guard))
    }

    /// SIGKILL to the agent.
    pub(super) fn kill_agent(&self) {
        if let Some((_, guard)) = self.current() {
            lock(&guard.agent).kill();
            let mut rules = lock(&guard.rules);
            let generation = rules.generation();
            rules.ended(generation, Ended::Signaled);
            drop(rules);
            guard.changed.notify_one();
        }
    }

    /// SIGSTOP to the agent. What is returned resumes that one.
    pub(super) fn stop_agent(&self) -> SimProcess {
        let agent = self.current().map(|(_, guard)| lock(&guard.agent).clone()).unwrap_or_default();
        agent.stop();
        agent
    }

    /// SIGKILL to the guard. The agent sees the end of its link, or the kernel kills it for its parent's death: all work dies.
    pub(super) fn kill_guard(&self) {
        let Some((system, guard)) = self.current() else { return };
        lock(&guard.process).kill();
        let machine = self.clone();
        tokio::spawn(async move {
            sleep(machine.site.dice.span(Duration::ZERO, AFTER_GUARD)).await;
            lock(&guard.agent).kill();
            system.kernel.kill_all().await;
            machine.worker_has_ended(&guard);
        });
    }

    /// SIGTERM to the guard: the worker leaves. The service manager starts it again.
    pub(super) fn leave(&self) {
        if let Some((system, guard)) = self.current() {
            lock(&guard.rules).asked_to_end(system.clock.now(), SIGTERM);
            guard.changed.notify_one();
        }
    }

    /// The machine loses its power.
    pub(super) fn power_off(&self) {
        let Some(system) = lock(&self.state).system.take() else { return };
        self.note("lost its power");
        if let Some(guard) = &system.guard {
            lock(&guard.process).kill();
            lock(&guard.agent).kill();
        }
        system.kernel.power_off();
    }

    /// Whether it is on.
    pub(super) fn is_on(&self) -> bool {
        lock(&self.state).system.is_some()
    }
}

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
    driver::{Driver, EnvPass, ProcessConfig, ProcessDriver, Registry, catalog::Catalog},
    guard::{
        LinkSender,
        rules::{Ended, Next, Rules, Start, Why},
    },
    protocol::authority::{Clock, Gate, Timing},
    task::{self, Ground, TaskConfig},
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, sleep_until},
};

use super::{
    clock::MachineClock,
    dice::Dice,
    ledger::Ledger,
    link::Line,
    process::{Life, SimProcess},
    sign::Sign,
    work::{ErringDriver, KNOWS_HOLDS, Kernel, Outside, OutsideDriver, SimCells, SimJournal, SimScripts},
};

/// By how much the guard's timer may be late: a little less than the slack that the protocol grants.
const LONGEST_DELAY: Duration = Duration::from_millis(240);
/// How soon an agent, or the kernel, sees that the guard is dead and has killed the work.
const AFTER_GUARD: Duration = Duration::from_millis(60);
/// How soon the service manager starts a worker again.
const RESTART: Duration = Duration::from_secs(2);
const SIGTERM: i32 = 15;
/// How many scripts a worker runs at once, and for how long they run on when it leaves.
const MOST_SCRIPTS: usize = 3;
const SCRIPTS_GRACE: Duration = Duration::from_secs(4);

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
    /// Where work is that is no process.
    pub(super) outsides: [Outside; 2],
    /// What it records of tasks; none: it takes none.
    pub(super) journal: Option<SimJournal>,
    /// The value of its label `zone`, where it takes tasks.
    pub(super) zone: &'static str,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Machine {
    site: Arc<Site>,
    state: Arc<Mutex<State>>,
    /// What its agents say to their guards goes over this.
    line: Line,
    /// Its drivers of what is no process do not say what survives.
    is_mute: Sign<bool>,
    /// For how many reasons its guard cannot be relied on, and its agent.
    without_guard: Sign<u32>,
    without_agent: Sign<u32>,
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
        let line = Line::new(site.ledger.clone(), site.dice.clone());
        let [without_guard, without_agent] = [0, 0].map(Sign::new);
        Self { site: Arc::new(site), state: Arc::default(), line, is_mute: Sign::new(false), without_guard, without_agent }
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
        let (site, clock) = (&self.site, MachineClock::boot_at(self.site.ledger.elapsed(), self.site.gain));
        let kernel = Kernel::new(site.id.as_str(), clock, site.ledger.clone(), site.dice.clone(), self.without_guard.clone());
        state.system = Some(System { boot: state.boots, clock, kernel, guards: 0, guard: None });
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
                    let uninformed = why == Why::Authority && self.line.is_bad();
                    self.site.ledger.count(|counts| counts.guards_uninformed += u64::from(uninformed));
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
        let cells = Arc::new(SimCells::new(system.kernel.clone()));
        let registry = self.drivers(Arc::clone(&cells));
        let origin = Origin { boot_id: system.boot.to_string(), guard: guard.id.clone() };
        let takes_tasks = site.journal.is_some();
        let labels = if takes_tasks { [("zone".to_owned(), site.zone.to_owned())].into() } else { Default::default() };
        let registration = Registration {
            labels,
            tasks: takes_tasks,
            kinds: registry.kinds(),
            drivers: registry.traits(),
            origin,
            authority_ms: Some(site.timing.authority_ms()),
            ..Registration::bare(site.id.clone(), format!("{}:1", site.id))
        };
        let (told, line) = (Arc::clone(guard), self.line.clone());
        let link = LinkSender::new(move |message| {
            let lives = lock(&told.process).life() != Life::Dead;
            let told = Arc::clone(&told);
            let arrives = move || {
                lock(&told.rules).heard(start.generation, message);
                told.changed.notify_one();
            };
            lives && line.carry(arrives)
        });
        let client = (site.connect)();
        let tasks = self.ground(cells, &client, &gate, &registration.origin, &link);
        let mut parts = Parts {
            client,
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
            tasks: None,
        };
        let guard_of_it = Arc::clone(guard);
        let machine = self.clone();
        *lock(&guard.agent) = SimProcess::start(async move {
            // What they start belongs to the agent's process.
            let config = TaskConfig { is_on: true, accounts: Vec::new(), most: MOST_SCRIPTS, grace: SCRIPTS_GRACE };
            parts.tasks = tasks.map(|ground| task::start(&config, ground, Arc::default()));
            let status = match agent::live(parts).await {
                Ok(()) => 0,
                Err(error) => {
                    machine.note(&format!("the agent ends: {error}"));
                    error.exit_status(start.previous.is_some())
                }
            };
            lock(&guard_of_it.rules).ended(start.generation, Ended::Exited(i32::from(status)));
            guard_of_it.changed.notify_one();
            // Of a process that has exited no task goes on.
            lock(&guard_of_it.agent).kill();
        });
    }

    /// What the tasks of an agent run on, if it takes any.
    fn ground(
        &self,
        cells: Arc<SimCells>,
        client: &Client,
        gate: &Gate,
        origin: &Origin,
        link: &LinkSender,
    ) -> Option<Ground<SimCells, SimJournal, SimScripts>> {
        let site = &self.site;
        site.journal.clone().map(|journal| Ground {
            worker: site.id.clone(),
            client: client.clone(),
            keys: Keys::new(""),
            cells,
            journal,
            scripts: SimScripts { ledger: site.ledger.clone(), dice: site.dice.clone() },
            clock: Arc::clone(gate.clock()),
            gate: gate.clone(),
            origin: origin.clone(),
            link: link.clone(),
        })
    }

    /// The drivers of an agent: the real one of processes, over the machine's kernel, and those of what is no process.
    fn drivers(&self, cells: Arc<SimCells>) -> Registry {
        let site = &self.site;
        let machine: Arc<str> = site.id.as_str().into();
        let config = ProcessConfig { worker: site.id.clone(), grace: site.timing.grace, env_pass: EnvPass::default() };
        let mut drivers = vec![self.erring(ProcessDriver::new(config, cells), Sign::new(false))];
        if KNOWS_HOLDS {
            drivers.extend(site.outsides.iter().map(|outside| {
                let (ledger, dice) = (site.ledger.clone(), site.dice.clone());
                let driver = OutsideDriver { outside: outside.clone(), machine: Arc::clone(&machine), ledger, dice };
                self.erring(driver, self.is_mute.clone())
            }));
        }
        drivers.into_iter().fold(Registry::default(), |registry, driver| registry.with(driver).expect("each kind once"))
    }

    fn erring(&self, inner: impl Driver + 'static, is_mute: Sign<bool>) -> Arc<dyn Driver> {
        let Site { id, ledger, dice, .. } = &*self.site;
        Arc::new(ErringDriver { inner, machine: id.as_str().into(), ledger: ledger.clone(), dice: dice.clone(), is_mute })
    }

    fn worker_has_ended(&self, guard: &Arc<Guard>) {
        let mut state = lock(&self.state);
        let Some(system) = state.system.as_mut() else { return };
        if system.guard.as_ref().is_none_or(|current| !Arc::ptr_eq(current, guard)) {
            return;
        }
        system.guard = None;
        self.site.ledger.machine_lost(self.site.id.as_str());
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

    /// For as long as this lives its agent cannot be relied on. None: its guard cannot, and nothing is promised of a machine of which both cannot.
    pub(super) fn without_agent(&self) -> Option<Without> {
        Without::begin(&self.without_agent, &self.without_guard)
    }

    /// For as long as this lives its guard cannot be relied on. None: its agent cannot.
    pub(super) fn without_guard(&self) -> Option<Without> {
        Without::begin(&self.without_guard, &self.without_agent)
    }

    /// What its agents say to their guards goes over this.
    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    /// Its drivers of what is no process say what survives, or do not.
    pub(super) fn be_mute(&self, is_mute: bool) {
        self.is_mute.change(|mute| *mute = is_mute);
    }

    /// SIGSTOP to the agent. What is returned resumes that one.
    pub(super) fn stop_agent(&self) -> SimProcess {
        let agent = self.current().map(|(_, guard)| lock(&guard.agent).clone()).unwrap_or_default();
        agent.stop();
        agent
    }

    /// SIGSTOP to the guard. What is returned resumes that one.
    pub(super) fn stop_guard(&self) -> SimProcess {
        let guard = self.current().map(|(_, guard)| lock(&guard.process).clone()).unwrap_or_default();
        guard.stop();
        self.site.ledger.count(|counts| counts.guards_stopped += 1);
        guard
    }

    /// SIGKILL to the guard. The agent sees the end of its link, or the kernel kills it for its parent's death: all work dies.
    pub(super) fn kill_guard(&self) {
        let Some((system, guard)) = self.current() else { return };
        lock(&guard.process).kill();
        self.site.ledger.machine_lost(self.site.id.as_str());
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
        self.site.ledger.machine_lost(self.site.id.as_str());
        if let Some(guard) = &system.guard {
            lock(&guard.process).kill();
            lock(&guard.agent).kill();
        }
        system.kernel.power_off();
    }

    /// Its disk is lost, or its data.
    pub(super) fn wipe(&self) {
        let Some(journal) = &self.site.journal else { return };
        self.note("lost its data");
        journal.wipe();
        self.site.ledger.machine_lost(self.site.id.as_str());
        self.site.ledger.count(|counts| counts.disks_wiped += 1);
    }

    /// Whether it is on.
    pub(super) fn is_on(&self) -> bool {
        lock(&self.state).system.is_some()
    }
}

/// Something cannot be relied on as long as this lives.
pub(super) struct Without(Sign<u32>);

impl Without {
    fn begin(one: &Sign<u32>, other: &Sign<u32>) -> Option<Self> {
        if other.get() > 0 {
            return None;
        }
        one.change(|reasons| *reasons += 1);
        Some(Self(one.clone()))
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        self.0.change(|reasons| *reasons -= 1);
    }
}

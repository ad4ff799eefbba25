//! The kernel of a simulated machine, as far as work goes: processes, the shims that are their parents, and what kills them. The real keeper runs
//! over it.
//!
//! The wheel: under **worker::driver**, where worker::hold is on a real machine. Shims and processes outlive their agent: a shim that finds its
//! agent gone ends its run, and the guard ends everything.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use evenkeel_model::{Epoch, ResourceName, TaskId};
use evenkeel_worker::{
    driver::process::cells::{Cell, Cells, FromShim, STUCK_EVERY, Start, ToAgent},
    protocol::authority::Clock,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until},
};

use super::may_end;
use crate::fleet::{
    clock::MachineClock,
    dice::Dice,
    ledger::{Counts, Ledger, RunId},
    sharer::is_shared,
    sign::Sign,
    task_book::{Attempt, ScriptId},
};

/// The longest from the order to start to the shim.
const LONGEST_START: Duration = Duration::from_millis(40);
/// The longest from a SIGKILL to the end of the last process: a little less than the protocol grants.
const LONGEST_KILL: Duration = Duration::from_millis(480);
/// What a process takes to end by itself at the least, if it lives at all; and a third of what it takes at most when it is asked to.
const SHORT: Duration = Duration::from_millis(300);
/// A shim that is late is later than the keeper waits for it without asking.
const LATE: Duration = Duration::from_millis(5_500);
/// How long what does not die takes beyond what the protocol grants.
const STUCK: [Duration; 2] = [Duration::from_millis(1_200), Duration::from_secs(5)];
/// Of names in a row so many fail on a machine each, of which a fleet has three to five: about one in two.
const FAILS_ON: u64 = 7;
/// By how much an end is put off that must not come now.
const LATER: Duration = Duration::from_secs(10);
/// What a script takes at the most that is not a long one, and one that is: longer than most tasks allow.
const SCRIPT: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(6)];
/// Most processes live on.
const EVER: Duration = Duration::from_secs(86_400);
/// What a kernel counts its kills as when it loses its power.
const POWER_LOST: u64 = u64::MAX;

/// What holds one machine's work.
#[derive(Clone, Debug)]
pub(in crate::fleet) struct Kernel {
    machine: Arc<str>,
    clock: MachineClock,
    ledger: Ledger,
    dice: Dice,
    /// Counts the kills that went to every process. Those of an earlier kill are dead, or dying.
    kills: Sign<u64>,
    /// How many shims live, and runs that have none any more.
    living: Sign<usize>,
    /// For how many reasons all must go as the protocol asks for: one of the two that end work cannot.
    tame: Sign<u32>,
}

/// What is unusual about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Plain,
    /// Its shim comes late.
    Late,
    /// The kernel makes no process.
    Refused,
    /// Its program is executed late.
    HeldUp,
    /// Some of it does not die when it should.
    Stuck,
    /// Its shim is stopped at some time.
    Silent,
    /// Its shim is killed at some time.
    Orphaned,
}

impl Kernel {
    pub(in crate::fleet) fn new(machine: &str, clock: MachineClock, ledger: Ledger, dice: Dice, tame: Sign<u32>) -> Self {
        Self { machine: machine.into(), clock, ledger, dice, kills: Sign::new(0), living: Sign::new(0), tame }
    }

    /// The machine loses its power.
    pub(in crate::fleet) fn power_off(&self) {
        self.kills.change(|kills| *kills = POWER_LOST);
    }

    /// SIGKILL to all of it; done when all of it is dead.
    pub(in crate::fleet) async fn kill_all(&self) {
        self.kills.change(|kills| *kills = kills.saturating_add(1));
        self.living.shows(|living| living == 0).await;
    }

    /// Whether anything unusual may happen to a run now.
    fn is_rough(&self) -> bool {
        self.ledger.is_rough() && self.tame.get() == 0
    }

    fn manner(&self) -> Manner {
        if !self.is_rough() {
            return Manner::Plain;
        }
        match self.dice.below(1000) {
            0..12 => Manner::Late,
            12..24 => Manner::Refused,
            24..40 => Manner::HeldUp,
            40..100 => Manner::Stuck,
            100..140 => Manner::Silent,
            140..180 => Manner::Orphaned,
            _ => Manner::Plain,
        }
    }

    /// The same of a script, of which all end by themselves but those that hang.
    fn life_of_script(&self) -> (Duration, ExitStatus) {
        let status = ExitStatus::from_raw(if self.dice.per_mille(750) { 0 } else { 1 << 8 });
        let lives = match self.dice.below(10) {
            0..6 => self.dice.span(Duration::ZERO, SCRIPT[0]),
            6..9 => self.dice.span(SCRIPT[0] / 2, SCRIPT[1]),
            _ => EVER,
        };
        (lives, status)
    }

    /// How long a process lives unless somebody ends it, and how it ends then.
    fn life(&self, name: &ResourceName, started_with: u64) -> (Duration, ExitStatus) {
        let [done, failed] = [0, 1 << 8].map(ExitStatus::from_raw);
        if fails_on(name, &self.machine) && !self.ledger.is_quiet() {
            return (self.dice.span(Duration::ZERO, SHORT), failed);
        }
        let ends = may_end(started_with) && !is_shared(name) && !self.ledger.is_quiet();
        let status = if ends || self.dice.per_mille(500) { done } else { failed };
        let is_short = self.dice.per_mille(if ends { 500 } else { 20 });
        (if is_short { self.dice.span(SHORT, SHORT * 200) } else { EVER }, status)
    }

    fn count(&self, add: impl FnOnce(&mut Counts)) {
        self.ledger.count(add);
    }
}

/// Whether work of this name fails on this machine, in a fleet where that is so: what it needs is on the other machines.
pub(in crate::fleet) fn fails_on(name: &ResourceName, machine: &str) -> bool {
    machine == format!("worker-{}", sum(name) % FAILS_ON)
}

/// Whether this machine's drivers refuse work of this name. It fails on none then.
pub(in crate::fleet) fn refuses_on(name: &ResourceName, machine: &str) -> bool {
    sum(name) % FAILS_ON == FAILS_ON - 1 && machine == "worker-0"
}

fn sum(name: &ResourceName) -> u64 {
    name.as_str().bytes().map(u64::from).sum()
}

/// The cells of one agent.
#[derive(Debug)]
pub(in crate::fleet) struct SimCells {
    kernel: Kernel,
    places: Arc<Semaphore>,
    pids: AtomicI32,
}

/// What an agent says to a shim.
enum Order {
    Start(Start),
    Signal,
    Kill,
}

/// The agent's end of a run.
pub(in crate::fleet) struct SimCell {
    orders: mpsc::UnboundedSender<Order>,
    said: mpsc::UnboundedReceiver<ToAgent>,
    /// The spawner is to end it.
    ends: Sign<bool>,
    /// Nothing of it is left.
    over: Sign<bool>,
    /// Its shim has said so.
    is_empty: bool,
}

impl SimCells {
    pub(in crate::fleet) fn new(kernel: Kernel) -> Self {
        Self { kernel, places: Arc::new(Semaphore::new(4)), pids: AtomicI32::new(0) }
    }
}

impl Cells for SimCells {
    type Cell = SimCell;

    fn mark(&self) -> &str {
        "sim"
    }

    fn ends_any_user(&self) -> bool {
        true
    }

    async fn place_to_start(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    fn cell(self: &Arc<Self>, _: &str) -> io::Result<SimCell> {
        let kernel = &self.kernel;
        if kernel.is_rough() && kernel.dice.per_mille(12) {
            kernel.count(|counts| counts.no_cell += 1);
            return Err(io::Error::other("too many open files"));
        }
        let ((orders, received), (says, said)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (ends, over) = (Sign::new(false), Sign::new(false));
        kernel.living.change(|living| *living += 1);
        let shim = Shim {
            pid: self.pids.fetch_add(2, Ordering::Relaxed) + 1,
            kills: kernel.kills.get(),
            kernel: kernel.clone(),
            orders: received,
            says: Some(says),
            ends: ends.clone(),
            over: over.clone(),
        };
        // No part of the agent's process.
        tokio::spawn(shim.serve());
        Ok(SimCell { orders, said, ends, over, is_empty: false })
    }

    fn is_ending(&self) -> bool {
        false
    }

    fn check_cgroup(&self) {}

    async fn check_spawner(&self) {
        self.kernel.count(|counts| counts.spawner_checked += 1);
    }
}

impl Cell for SimCell {
    fn start(&mut self, start: Start) {
        let _ = self.orders.send(Order::Start(start));
    }

    fn signal(&mut self, _: i32) {
        let _ = self.orders.send(Order::Signal);
    }

    fn kill(&mut self) {
        let _ = self.orders.send(Order::Kill);
    }

    async fn next(&mut self) -> FromShim {
        match self.said.recv().await {
            Some(said) => {
                self.is_empty |= said == ToAgent::Empty;
                FromShim::Said(said)
            }
            None => FromShim::Gone,
        }
    }

    async fn clear(self) {
        if !self.is_empty {
            self.ends.change(|ends| *ends = true);
            self.over.shows(|over| over).await;
        }
    }
}

/// The shim of one run, and what it holds.
struct Shim {
    kernel: Kernel,
    pid: i32,
    /// How often all had been killed when it was asked for.
    kills: u64,
    orders: mpsc::UnboundedReceiver<Order>,
    /// None: it was killed.
    says: Option<mpsc::UnboundedSender<ToAgent>>,
    ends: Sign<bool>,
    over: Sign<bool>,
}

/// What a process is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Work(RunId),
    Script(ScriptId),
}

/// The processes of a run.
struct Processes {
    id: Of,
    manner: Manner,
    /// When the main process ends, and how; none: it has.
    main: Option<(Instant, ExitStatus)>,
    /// When the last of the others ends; none: while the main process lives they do as well.
    rest: Option<Instant>,
    /// Somebody wants its end.
    made_to: bool,
    /// All of it is killed, and dead by then.
    killed_by: Option<Instant>,
    /// When its shim is stopped or killed.
    shim_fails: Option<Instant>,
    is_silent: bool,
    /// When its program is executed; none: it is.
    begins: Option<Instant>,
    complain_at: Instant,
}

/// What happens next to a run.
enum Wake {
    /// All processes of the machine are killed.
    KilledAll,
    /// The spawner ends this one.
    Ended,
    /// All must go as the protocol asks for.
    Tamed,
    /// None: the agent is gone.
    Order(Option<Order>),
    Time,
}

impl Shim {
    /// One run, from the request for a shim to the death of its last process.
    async fn serve(mut self) {
        let manner = self.kernel.manner();
        let way = if manner == Manner::Late {
            self.kernel.count(|counts| counts.late_shims += 1);
            self.kernel.dice.span(LATE, LATE * 3 / 2)
        } else {
            self.kernel.dice.span(Duration::ZERO, LONGEST_START)
        };
        tokio::select! {
            biased;
            () = self.is_ended() => {}
            () = sleep(way) => self.live(manner).await,
        }
        self.kernel.living.change(|living| *living -= 1);
        self.over.change(|over| *over = true);
    }

    /// Returns when the shim was killed before it had anything to hold.
    async fn is_ended(&self) {
        tokio::select! {
            biased;
            _ = self.kernel.kills.shows(|kills| kills != self.kills) => {}
            _ = self.ends.shows(|ends| ends) => {}
        }
    }

    fn say(&self, said: ToAgent) {
        if let Some(says) = &self.says {
            let _ = says.send(said);
        }
    }

    async fn live(&mut self, manner: Manner) {
        self.say(ToAgent::Ready(self.pid));
        let order = {
            let (kills, ends) = (self.kernel.kills.clone(), self.ends.clone());
            tokio::select! {
                biased;
                _ = kills.shows(|kills| kills != self.kills) => return,
                _ = ends.shows(|ends| ends) => return,
                order = self.orders.recv() => order,
            }
        };
        let Some(Order::Start(start)) = order else { return self.say(ToAgent::Empty) };
        // Between this look and the process there is nothing.
        if self.kernel.clock.now() >= start.not_after {
            self.kernel.count(|counts| counts.too_late += 1);
            self.say(ToAgent::TooLate);
        } else if manner == Manner::Refused {
            self.kernel.count(|counts| counts.no_process += 1);
            self.say(ToAgent::Refused("no process can be made: a limit of processes is reached".to_owned()));
        } else {
            let processes = self.fork(&start, manner);
            self.stay_with(processes).await;
        }
        self.say(ToAgent::Empty);
    }

    fn fork(&self, start: &Start, manner: Manner) -> Processes {
        let kernel = &self.kernel;
        let ((lives, status), id) = match whose(start) {
            Whose::Work(name, epoch) => {
                let started_with = start.command.get(1).and_then(|word| word.to_str().ok()?.parse().ok()).unwrap_or_default();
                let life = kernel.life(&name, started_with);
                (life, Of::Work(kernel.ledger.start_process(&kernel.machine, name, epoch, started_with)))
            }
            Whose::Script(task, number) => {
                let attempt = Attempt { machine: kernel.machine.to_string(), task, number };
                (kernel.life_of_script(), Of::Script(kernel.ledger.script_begins(attempt)))
            }
        };
        self.say(ToAgent::Forked(self.pid + 1));
        let now = Instant::now();
        let fails = matches!(manner, Manner::Silent | Manner::Orphaned);
        let wait = if manner == Manner::HeldUp { kernel.dice.span(SHORT, LATER) } else { Duration::ZERO };
        Processes {
            id,
            manner,
            main: Some((now + lives, status)),
            rest: None,
            made_to: false,
            killed_by: None,
            shim_fails: fails.then(|| now + kernel.dice.span(Duration::ZERO, LATER * 3)),
            is_silent: false,
            begins: Some(now + wait),
            complain_at: now,
        }
    }

    /// Returns when all of it is dead.
    async fn stay_with(&mut self, mut run: Processes) {
        if run.manner == Manner::HeldUp {
            self.kernel.count(|counts| counts.held_up += 1);
            self.say(ToAgent::HeldUp("it waits for a file system".to_owned()));
        }
        let mut forced = false;
        loop {
            match self.wait(&run, forced).await {
                Wake::KilledAll => {
                    (run.made_to, self.says) = (true, None);
                    if self.kernel.kills.get() != POWER_LOST {
                        sleep(self.kernel.dice.span(Duration::ZERO, LONGEST_KILL)).await;
                    }
                    break;
                }
                Wake::Ended => {
                    (forced, run.made_to) = (true, true);
                    self.kernel.count(|counts| counts.ended_by_spawner += 1);
                    self.kill(&mut run);
                }
                Wake::Tamed => {
                    // What was stopped is continued, and what does not die has a kernel that is done with it.
                    run.is_silent = false;
                    if let Some(rest) = &mut run.rest {
                        *rest = (*rest).min(Instant::now() + self.kernel.dice.span(Duration::ZERO, LONGEST_KILL));
                    }
                    (run.manner, run.shim_fails) = (Manner::Plain, None);
                }
                Wake::Order(Some(Order::Signal)) => {
                    run.made_to = true;
                    // Some take longer than they are given, or do not listen.
                    let end = Instant::now() + self.kernel.dice.span(Duration::ZERO, SHORT * 3);
                    if let Some((at, status)) = &mut run.main
                        && end < *at
                    {
                        (*at, *status) = (end, ExitStatus::from_raw(15));
                    }
                }
                Wake::Order(Some(Order::Kill | Order::Start(_)) | None) => {
                    run.made_to = true;
                    self.kill(&mut run);
                }
                Wake::Time => {
                    if self.time_has_come(&mut run) {
                        break;
                    }
                }
            }
        }
        match run.id {
            Of::Work(id) => {
                self.kernel.count(|counts| counts.stops += u64::from(run.made_to));
                self.kernel.ledger.end(id);
            }
            Of::Script(id) => self.kernel.ledger.script_ends(id),
        }
    }

    async fn wait(&mut self, run: &Processes, forced: bool) -> Wake {
        let (kills, before, ends, tame) = (self.kernel.kills.clone(), self.kills, self.ends.clone(), self.kernel.tame.clone());
        let hears = !run.is_silent && self.says.is_some() && run.killed_by.is_none();
        let at = run.next().unwrap_or_else(|| Instant::now() + EVER);
        tokio::select! {
            biased;
            _ = kills.shows(|kills| kills != before) => Wake::KilledAll,
            _ = ends.shows(|ends| ends), if !forced => Wake::Ended,
            _ = tame.shows(|tame| tame > 0), if run.manner != Manner::Plain => Wake::Tamed,
            order = self.orders.recv(), if hears => Wake::Order(order),
            () = sleep_until(at) => Wake::Time,
        }
    }

    /// SIGKILL to all of it.
    fn kill(&self, run: &mut Processes) {
        let by = Instant::now() + self.kernel.dice.span(Duration::ZERO, LONGEST_KILL);
        run.killed_by = Some(run.killed_by.map_or(by, |before| before.min(by)));
        if let Some((at, status)) = run.main.as_mut().filter(|(at, _)| by < *at) {
            (*at, *status) = (by, ExitStatus::from_raw(9));
        }
        if let Some(rest) = &mut run.rest {
            *rest = (*rest).min(by);
        }
    }

    /// True: all of it is dead.
    fn time_has_come(&mut self, run: &mut Processes) -> bool {
        let now = Instant::now();
        if run.begins.is_some_and(|at| at <= now) {
            run.begins = None;
            self.say(ToAgent::Started);
        }
        if run.shim_fails.is_some_and(|at| at <= now) {
            self.shim_fails(run);
        }
        if let Some((_, status)) = run.main.filter(|(at, _)| *at <= now) {
            let is_work = matches!(run.id, Of::Work(_));
            let puts_off = is_work && !run.made_to && status.success() && self.kernel.ledger.holds_ends();
            run.main = puts_off.then_some((now + LATER, status));
            if !puts_off {
                self.main_has_ended(run, status);
            }
        }
        if run.rest.is_some_and(|at| at > now) && run.manner == Manner::Stuck && run.complain_at <= now {
            run.complain_at = now + STUCK_EVERY;
            self.say(ToAgent::Stuck("a process does not die".to_owned()));
        }
        run.main.is_none() && run.rest.is_some_and(|at| at <= now)
    }

    /// The shim ends what is left, if there still is one.
    fn main_has_ended(&self, run: &mut Processes, status: ExitStatus) {
        self.say(ToAgent::Exited(status.into_raw()));
        let now = Instant::now();
        let kernel = &self.kernel;
        let by = run.killed_by.unwrap_or_else(|| {
            now + if kernel.dice.per_mille(300) { kernel.dice.span(Duration::ZERO, LONGEST_KILL) } else { Duration::ZERO }
        });
        let mut rest = by.max(now);
        if run.manner == Manner::Stuck && kernel.is_rough() {
            kernel.count(|counts| counts.stuck += 1);
            rest += kernel.dice.span(STUCK[0], STUCK[1]);
            run.complain_at = now;
        }
        run.rest = Some(rest);
    }

    fn shim_fails(&mut self, run: &mut Processes) {
        run.shim_fails = None;
        if !self.kernel.is_rough() || run.rest.is_some() {
            return;
        }
        if run.manner == Manner::Silent {
            // One that is about to fail would be held as running for good.
            let fails_soon = |(at, status): (Instant, ExitStatus)| !status.success() && at < Instant::now() + SHORT;
            if matches!(run.id, Of::Work(_)) && run.main.is_some_and(fails_soon) {
                return;
            }
            self.kernel.count(|counts| counts.shims_stopped += 1);
            run.is_silent = true;
            return;
        }
        self.kernel.count(|counts| counts.shims_killed += 1);
        if let Of::Script(id) = run.id {
            self.kernel.ledger.script_unseen(id);
        }
        self.says = None;
        // The kernel ends the main process, and the others live until the spawner ends them.
        run.main = None;
        run.rest = Some(if self.kernel.dice.per_mille(500) { Instant::now() } else { Instant::now() + EVER });
    }
}

impl Processes {
    /// When something happens to it by itself.
    fn next(&self) -> Option<Instant> {
        if self.is_silent && self.killed_by.is_none() {
            return None;
        }
        let main = self.main.map(|(at, _)| at);
        let complains = self.rest.filter(|_| self.manner == Manner::Stuck).map(|rest| self.complain_at.min(rest));
        main.into_iter().chain(self.rest).chain(complains).chain(self.shim_fails).chain(self.begins).min()
    }
}

/// Whose process it is to be.
enum Whose {
    Work(ResourceName, Epoch),
    Script(TaskId, u32),
}

/// What each finds in its environment.
fn whose(start: &Start) -> Whose {
    let value = |name: &str| {
        let entries = start.environment.iter().filter_map(|entry| entry.to_str().ok()?.split_once('='));
        entries.filter(|(key, _)| *key == name).map(|(_, value)| value).next_back().unwrap_or_default().to_owned()
    };
    if let Ok(task) = value("EVENKEEL_TASK").parse() {
        return Whose::Script(TaskId(task), value("EVENKEEL_ATTEMPT").parse().expect("a script knows its attempt"));
    }
    let name = ResourceName::new(&value("EVENKEEL_RESOURCE")).expect("a process knows its resource");
    Whose::Work(name, Epoch(value("EVENKEEL_EPOCH").parse().expect("a process knows its epoch")))
}

//! A fleet: machines with masters and workers, an etcd of several members, and callers; and the faults that are done to them.
//!
//! Everything here is the world around the real code. What must hold is looked at by [`judge`](super::judge) at every change, by the
//! [`Ledger`] at every start, and by [`settle`](super::settle) when the faults have ended.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use evenkeel_model::{Holds, MasterId, MasterRecord, ResourceName, WorkerId, wait_for};
use evenkeel_store::{
    Kv,
    keys::{Key, Keys},
};
use evenkeel_worker::protocol::authority::Timing;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    caller::Caller,
    dice::{Dice, generator},
    fault::{Fault, Host, Planned, Size},
    history::History,
    judge::{Judge, content_of},
    ledger::Ledger,
    machine::{Machine, Site},
    master::{Master, Seat},
    process::SimProcess,
    sharer::{Histories, SHARERS, shared_name},
    sign::Sign,
    tasker::Tasker,
    work::{Outside, SimJournal, name_of},
};
use crate::etcd::{Direction, Etcd, Link, Settings, Store};

/// The deadline of calls to etcd for which none is given: the same as in production.
const DEADLINE: Duration = Duration::from_secs(1);
/// The authority of the workers that have more than the usual.
const LONGEST_AUTHORITY: Duration = Duration::from_secs(8);
/// By how much a clock may be off, in microseconds a second: a little less than rho.
const GAIN: u64 = 9_900;

/// See the module.
pub(super) struct World {
    pub(super) size: Size,
    pub(super) seed: u64,
    pub(super) etcd: Etcd,
    pub(super) keys: Keys,
    pub(super) ledger: Ledger,
    pub(super) history: History,
    /// Of the names that callers share.
    pub(super) histories: Histories,
    pub(super) machines: Vec<Machine>,
    pub(super) masters: Vec<Master>,
    /// The ways to etcd: of the workers, then of the masters.
    links: Vec<Link>,
    /// Whether callers are to rest.
    rest: Sign<bool>,
    busy: Sign<usize>,
    dice: Dice,
    /// Processes that are to be resumed.
    stopped: Mutex<Vec<SimProcess>>,
}

/// Some workers have more authority than the leaders' own wait is made for, and say so.
fn timing(seed: u64, machine: &str) -> Timing {
    let usual = Timing::default();
    let authority = LONGEST_AUTHORITY;
    if Dice::new(seed, machine).below(4) > 0 { usual } else { Timing { authority, wait: wait_for(authority), ..usual } }
}

impl World {
    /// Builds it and switches it on.
    pub(super) fn start(seed: u64, size: Size) -> Arc<Self> {
        let ledger = Ledger::begin();
        let history = History::default();
        let settings = Settings { members: size.members, ..Settings::default() };
        let etcd = Etcd::start(settings, generator(seed, "etcd"));
        let mut judge = Judge::new(ledger.clone(), history.clone());
        etcd.on_applied(move |_, revision, changes| judge.see(revision, changes));
        let links: Vec<Link> = (0..size.workers)
            .map(|n| etcd.link(&format!("worker-{n}")))
            .chain((0..size.masters).map(|n| etcd.link(&format!("master-{n}"))))
            .collect();
        let gain = |name: &str| i32::try_from(Dice::new(seed, name).below(2 * GAIN)).unwrap_or(0) - i32::try_from(GAIN).unwrap_or(0);
        let connect = |link: &Link| {
            let link = link.clone();
            Box::new(move || link.client(DEADLINE))
        };
        let outsides = [Holds::Fenced, Holds::Loose].map(|holds| Outside::new(holds, ledger.clone()));
        let machine = |n: usize| {
            let id = WorkerId::new(&format!("worker-{n}")).ok()?;
            Some(Machine::new(Site {
                timing: timing(seed, id.as_str()),
                gain: gain(id.as_str()),
                connect: connect(&links[n]),
                ledger: ledger.clone(),
                dice: Dice::new(seed, id.as_str()),
                outsides: outsides.clone(),
                // Its dice are its own, so that fleets without tasks are as they were.
                journal: (size.tasks > 0).then(|| SimJournal::new(ledger.clone(), Dice::new(seed, &format!("disk of {id}")))),
                zone: ["a", "b"][n % 2],
                id,
            }))
        };
        let master = |n: usize| {
            let id = MasterId::new(&format!("master-{n}")).ok()?;
            Some(Master::new(Seat {
                gain: gain(id.as_str()),
                connect: connect(&links[size.workers + n]),
                ledger: ledger.clone(),
                dice: Dice::new(seed, id.as_str()),
                id,
            }))
        };
        let world = Arc::new(Self {
            machines: (0..size.workers).filter_map(machine).collect(),
            masters: (0..size.masters).filter_map(master).collect(),
            size,
            seed,
            etcd,
            keys: Keys::new(""),
            ledger,
            history,
            histories: Histories::default(),
            links,
            rest: Sign::new(false),
            busy: Sign::new(0),
            dice: Dice::new(seed, "world"),
            stopped: Mutex::default(),
        });
        world.masters.iter().for_each(Master::start);
        world.machines.iter().for_each(Machine::boot);
        world.start_callers();
        world
    }

    fn start_callers(self: &Arc<Self>) {
        for n in 0..self.size.resources {
            let text = name_of(n, self.seed);
            let Ok(name) = ResourceName::new(&text) else { continue };
            tokio::spawn(self.caller(name, &text).run());
        }
        for n in 0..self.size.shared {
            let Ok(name) = ResourceName::new(&shared_name(n)) else { continue };
            for sharer in 0..SHARERS {
                let caller = self.caller(name.clone(), &format!("{name} {sharer}"));
                tokio::spawn(caller.run_beside_others(self.histories.clone()));
            }
        }
        for number in 0..self.size.tasks {
            tokio::spawn(self.tasker(number).run());
        }
    }

    /// A caller who creates tasks.
    fn tasker(&self, number: usize) -> Tasker {
        let (etcd, keys) = (self.etcd.clone(), self.keys.clone());
        Tasker {
            number,
            masters: self.masters.clone(),
            ledger: self.ledger.clone(),
            dice: Dice::new(self.seed, &format!("tasker {number}")),
            seed: self.seed,
            workers: self.size.workers,
            stands: Arc::new(move |id| etcd.peek(|store| store.get(keys.spell(&Key::Task(id)).as_bytes()).is_some())),
            rest: self.rest.clone(),
            busy: self.busy.clone(),
            known: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// A caller of this name, with dice of its own.
    fn caller(&self, name: ResourceName, dice: &str) -> Caller {
        let (etcd, keys) = (self.etcd.clone(), self.keys.clone());
        Caller {
            masters: self.masters.clone(),
            history: self.history.clone(),
            ledger: self.ledger.clone(),
            dice: Dice::new(self.seed, dice),
            look: Arc::new(move |name: &ResourceName| etcd.peek(|store| store.get(keys.resource(name).as_bytes()).and_then(content_of))),
            rest: self.rest.clone(),
            busy: self.busy.clone(),
            next: 0,
            name,
        }
    }

    fn link(&self, host: Host) -> &Link {
        match host {
            Host::Worker(n) => &self.links[n],
            Host::Master(n) => &self.links[self.size.workers + n],
        }
    }

    /// Lets callers go on, or finish what they have under way and rest.
    pub(super) fn let_callers_rest(&self, rest: bool) {
        self.rest.change(|rests| *rests = rest);
    }

    /// Whether a caller has something under way.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.get() > 0
    }

    /// Does one round's faults at their times; returns at the end of the round, or when something is found.
    pub(super) async fn round(self: &Arc<Self>, faults: &[Planned], length: Duration) {
        let begun = Instant::now();
        for planned in faults {
            sleep_until(begun + planned.at).await;
            if self.ledger.violation().is_some() {
                return;
            }
            self.ledger.note(format_args!("FAULT {planned}"));
            self.ledger.count(|counts| counts.faults += 1);
            let world = Arc::clone(self);
            let fault = planned.fault;
            tokio::spawn(async move { world.suffer(fault).await });
        }
        sleep_until(begun + length).await;
    }

    /// Does a fault, and undoes it at its end.
    async fn suffer(&self, fault: Fault) {
        match fault {
            Fault::KillAgent(n) => self.machines[n].kill_agent(),
            Fault::StopAgent(n, span) => {
                // Of a machine whose guard and agent both fail nothing is promised.
                if let Some(_without) = self.machines[n].without_agent() {
                    self.resume_after(self.machines[n].stop_agent(), span).await;
                }
            }
            Fault::StopGuard(..) | Fault::LoseLink(..) | Fault::DelayLink(..) => self.suffer_without_guard(fault).await,
            Fault::MuteDrivers(n, span) => {
                self.machines[n].be_mute(true);
                self.machines[n].kill_agent();
                sleep(span).await;
                self.machines[n].be_mute(false);
            }
            Fault::KillGuard(n) => self.machines[n].kill_guard(),
            Fault::Leave(n) => self.machines[n].leave(),
            Fault::PowerOff(n, span) => {
                self.machines[n].power_off();
                sleep(span).await;
                self.switch_on(n);
            }
            Fault::WipeDisk(n, span) => {
                self.machines[n].power_off();
                self.machines[n].wipe();
                sleep(span).await;
                self.switch_on(n);
            }
            Fault::WipeData(n) => {
                self.machines[n].kill_agent();
                self.machines[n].wipe();
            }
            Fault::KillMaster(n) => self.masters[n].kill(),
            Fault::StopMaster(n, span) => self.resume_after(self.masters[n].stop(), span).await,
            Fault::EndMaster(n) => self.masters[n].end(),
            Fault::Cut(host, direction, span) => {
                self.link(host).cut(direction);
                sleep(span).await;
                self.link(host).heal();
            }
            Fault::Slow(host, delay, span) => {
                self.link(host).delay(delay);
                sleep(span).await;
                self.link(host).delay(Duration::ZERO);
            }
            Fault::Ambush(n, delay, span) => {
                let link = self.link(Host::Worker(n));
                link.delay(delay);
                // Until what was sent before has come; then at any moment of a proof.
                sleep(delay * 4 + self.dice.span(Duration::ZERO, delay * 2)).await;
                self.revoke(Host::Worker(n));
                sleep(self.dice.span(Duration::ZERO, delay * 2)).await;
                link.cut(Direction::Both);
                sleep(span).await;
                link.heal();
                link.delay(Duration::ZERO);
            }
            Fault::LoseAnswer(host) => self.link(host).lose_next_answer(),
            Fault::Revoke(host) => self.revoke(host),
            _ => self.suffer_in_etcd(fault).await,
        }
    }

    /// A guard does not end work in time, or does not know until when it may live: it rests on the agent, and on what the kernel and the shims do.
    async fn suffer_without_guard(&self, fault: Fault) {
        let (Fault::StopGuard(n, span) | Fault::LoseLink(n, span) | Fault::DelayLink(n, _, span)) = fault else { return };
        let machine = &self.machines[n];
        let Some(_without) = machine.without_guard() else { return };
        match fault {
            Fault::StopGuard(..) => self.resume_after(machine.stop_guard(), span).await,
            Fault::DelayLink(_, delay, _) => {
                machine.line().delay(delay);
                sleep(span).await;
                machine.line().delay(Duration::ZERO);
                sleep(delay).await;
            }
            _ => {
                machine.line().lose(true);
                sleep(span).await;
                machine.line().lose(false);
                // Until what was lost counts for nothing any more.
                sleep(LONGEST_AUTHORITY).await;
            }
        }
    }

    async fn suffer_in_etcd(&self, fault: Fault) {
        match fault {
            Fault::FreezeMember(n, span) => {
                self.etcd.freeze(n);
                sleep(span).await;
                self.etcd.thaw(n);
            }
            Fault::KillMember(n, span) => {
                self.etcd.kill(n);
                sleep(span).await;
                self.etcd.restart(n);
            }
            Fault::LagMember(n, span) => {
                self.etcd.lag(n, span / 2);
                sleep(span).await;
                self.etcd.lag(n, Duration::ZERO);
            }
            Fault::IsolateMember(n, span) => {
                self.etcd.isolate(n);
                sleep(span).await;
                self.etcd.rejoin(n);
            }
            Fault::FreezeAll(span) => {
                self.etcd.freeze_all();
                sleep(span).await;
                self.etcd.thaw_all();
            }
            Fault::Compact => {
                let revision = self.etcd.peek(Store::revision);
                // One that was compacted to this very revision already needs no more.
                let _ = self.etcd.compact(revision);
            }
            Fault::NoSpace(span) => {
                self.etcd.no_space(true);
                sleep(span).await;
                self.etcd.no_space(false);
            }
            _ => {}
        }
    }

    async fn resume_after(&self, process: SimProcess, span: Duration) {
        self.stopped().push(process.clone());
        sleep(span).await;
        process.resume();
    }

    fn stopped(&self) -> std::sync::MutexGuard<'_, Vec<SimProcess>> {
        self.stopped.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn switch_on(&self, n: usize) {
        if !self.machines[n].is_on() {
            self.machines[n].boot();
        }
    }

    /// The lease of a live session or candidacy ends before its time.
    fn revoke(&self, host: Host) {
        let found = self.etcd.peek(|store| store.iter(&self.keys.everything()).filter(|kv| self.is_of(kv, host)).map(|kv| kv.lease).next());
        if let Some(lease) = found.filter(|lease| *lease != 0) {
            // It may have expired by now.
            let _ = self.etcd.revoke_early(lease);
        }
    }

    fn is_of(&self, kv: &Kv, host: Host) -> bool {
        match (self.keys.parse(&kv.key), host) {
            (Some(Key::Worker(id)), Host::Worker(n)) => id == *self.machines[n].id(),
            (Some(Key::Election(_)), Host::Master(n)) => {
                let value: Option<MasterRecord> = serde_json::from_slice(&kv.value).ok();
                value.is_some_and(|record| record.id == *self.masters[n].id())
            }
            _ => false,
        }
    }

    /// Ends every fault that is left.
    pub(super) fn heal(&self) {
        for link in &self.links {
            link.heal();
            link.delay(Duration::ZERO);
        }
        for n in 0..self.size.members {
            self.etcd.thaw(n);
            self.etcd.restart(n);
            self.etcd.rejoin(n);
            self.etcd.lag(n, Duration::ZERO);
        }
        self.etcd.no_space(false);
        self.stopped().drain(..).for_each(|process| process.resume());
        for machine in &self.machines {
            machine.line().lose(false);
            machine.line().delay(Duration::ZERO);
            machine.be_mute(false);
        }
        (0..self.machines.len()).for_each(|n| self.switch_on(n));
    }
}

//! One plan, phase by phase: workers that come and go, ends that are known, what is not as wanted, what is to leave its worker, what fails there,
//! what is placed nowhere, balance. This file has the order, and what all phases share; each phase has its own.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{
    Action, Brake, ClassId, Cluster, Definition, Holder, Holds, Labels, Moment, Pending, Plan, ResourceName, Shaped, Status, StopReason,
    Subject, Undone, Unit, WorkerId,
};

use crate::{
    PlannerConfig, attend, brake,
    choose::{self, Choice},
    failing, leave,
    loads::{Assumed, Loads},
    rebalance,
    workers::{self, LISTED},
};

/// A plan in the making.
pub(crate) struct Turn<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) now: Moment,
    pub(crate) config: &'a PlannerConfig,
    pub(crate) loads: Loads<'a>,
    pub(crate) plan: Plan,
    /// Workers of which the plan admits a session: what is assigned to them may run again.
    pub(crate) admitted: BTreeSet<WorkerId>,
    /// Resources that the plan has dealt with.
    pub(crate) seen: BTreeSet<ResourceName>,
    /// How many resources are on their way because they may not stay, those of this plan included.
    pub(crate) recovering: usize,
    /// How many are on their way because they ask for other work, those of this plan included.
    restarting: usize,
    /// Workers that are lost for good, and still hold what only they could end.
    pub(crate) holding: BTreeSet<WorkerId>,
    /// Why a class of resources that looks the same to the planner fits nowhere, so that each class is tried once.
    hopeless: BTreeMap<FitClass<'a>, Pending>,
    /// By kind, the workers that are not fenced; and what looks like this has found no other in this plan.
    unfenced: BTreeMap<&'a str, Vec<&'a WorkerId>>,
    hopeless_fenced: BTreeSet<FitClass<'a>>,
    /// How many were told of that only a fence ends.
    kept_by_fence: usize,
}

/// What distinguishes resources when a worker is chosen: their class, and their labels where others may want to be apart from them.
pub(crate) type FitClass<'a> = (Option<ClassId>, Option<&'a Labels>);

pub(crate) fn fit_class<'a>(cluster: &'a Cluster, definition: &'a Definition) -> FitClass<'a> {
    let class = cluster.unit(definition.name.as_str()).and_then(|unit| unit.class);
    (class, cluster.relations().is_some().then_some(&definition.labels))
}

/// The reasons for which a resource is on its way because it may not stay.
const RECOVERY: [StopReason; 4] = [StopReason::Unfit, StopReason::Drain, StopReason::Capacity, StopReason::Failing];

impl<'a> Turn<'a> {
    pub(crate) fn new(cluster: &'a Cluster, now: Moment, config: &'a PlannerConfig) -> Self {
        let stopping = &cluster.agenda().stopping_for;
        Self {
            cluster,
            now,
            config,
            loads: Loads::new(cluster, now, config),
            plan: Plan { brake: brake::judge(cluster, config), ..Plan::default() },
            admitted: BTreeSet::new(),
            seen: BTreeSet::new(),
            recovering: RECOVERY.iter().filter_map(|reason| stopping.get(reason)).sum(),
            restarting: stopping.get(&StopReason::Changed).copied().unwrap_or_default(),
            holding: BTreeSet::new(),
            hopeless: BTreeMap::new(),
            unfenced: BTreeMap::new(),
            hopeless_fenced: BTreeSet::new(),
            kept_by_fence: 0,
        }
    }

    /// The plan, with these workers drained or gone as well.
    pub(crate) fn run(mut self, assumed: &'a [(WorkerId, Assumed)]) -> Plan {
        for (id, assumption) in assumed {
            self.loads.assume(id, *assumption);
        }
        workers::turn(&mut self, assumed);
        attend::turn(&mut self);
        leave::turn(&mut self, assumed);
        failing::turn(&mut self);
        attend::place_all(&mut self);
        if self.recovery_is_done() {
            rebalance::turn(&mut self);
        }
        self.wake_for_the_set_aside();
        self.plan
    }

    pub(crate) fn is_full(&self) -> bool {
        self.plan.actions.len() >= self.config.max_actions
    }

    /// Recovery goes first: as long as anything of a worker that is gone waits for its end, or something more is sent on its way, a balance
    /// would be struck too early. What is on its way already counts where it goes.
    fn recovery_is_done(&self) -> bool {
        let waits = |id: &WorkerId| self.cluster.worker(id.as_str()).is_some_and(|w| !w.names.is_empty() && !self.holding.contains(id));
        let sends = self.plan.actions.iter().any(|action| matches!(action, Action::Stop { reason, .. } if RECOVERY.contains(reason)));
        !self.is_full() && !sends && !self.recovers_enough() && !self.cluster.agenda().workers.iter().any(waits)
    }

    pub(crate) fn undone(&mut self, subject: Subject, reason: Pending) {
        self.plan.undone.push(Undone { subject, reason });
    }

    pub(crate) fn wake_at(&mut self, moment: Moment) {
        self.plan.wake = Some(self.plan.wake.map_or(moment, |wake| wake.min(moment)));
    }

    /// A worker that is set aside takes its share when that is over.
    fn wake_for_the_set_aside(&mut self) {
        let flapping = self.config.flapping;
        if flapping.losses == 0 {
            return;
        }
        let recent = self.cluster.losses().since(self.now.before(flapping.aside));
        let ready = recent.filter(|(_, id)| self.loads.place(id).is_some());
        let soonest = ready.filter_map(|(_, id)| self.loads.aside_until(id)).min();
        if let Some(until) = soonest {
            self.wake_at(until);
        }
    }

    /// The brake, if it holds what this worker ran.
    pub(crate) fn held_at(&self, id: &WorkerId) -> Option<Brake> {
        self.plan.brake.filter(|_| !brake::is_written_off(self.cluster, id))
    }

    /// Chooses a worker, unless one that looks the same has found none in this plan.
    pub(crate) fn choose(&mut self, definition: &'a Definition, except: &[&WorkerId]) -> Result<Choice, Pending> {
        // Without a rule a resource fits anywhere but for its weight, and the memory is not worth its keys.
        if !self.hopeless.is_empty()
            && let Some(reason) = self.hopeless.get(&fit_class(self.cluster, definition))
        {
            return Err(reason.clone());
        }
        let choice = choose::choose(&self.loads, definition, except);
        if let Err(reason) = &choice {
            self.hopeless.insert(fit_class(self.cluster, definition), reason.clone());
        }
        choice
    }

    /// Chooses a worker that shows the epoch to the fence by which the kind is held.
    pub(crate) fn choose_fenced(&mut self, definition: &'a Definition) -> Option<WorkerId> {
        let class = fit_class(self.cluster, definition);
        if self.hopeless_fenced.contains(&class) {
            return None;
        }
        let cluster = self.cluster;
        let unfenced = self.unfenced.entry(&definition.kind).or_insert_with_key(|kind| {
            let is_fenced = |shaped: &Shaped| shaped.shape.drivers.get(*kind).is_some_and(|driver| driver.holds == Holds::Fenced);
            let others = cluster.rankings().shapes().filter(|(_, shaped)| !is_fenced(shaped));
            others.flat_map(|(_, shaped)| shaped.ranks.iter().map(|rank| &rank.worker)).collect()
        });
        let chosen = choose::choose(&self.loads, definition, unfenced).ok();
        if chosen.is_none() {
            self.hopeless_fenced.insert(class);
        }
        chosen.map(|choice| choice.worker)
    }

    /// Only the fence ends what a lost worker ran, and nobody who is fenced takes it. They stay for as long as that is so: each plan lists some.
    pub(crate) fn kept_by_fence(&mut self, name: &ResourceName, worker: WorkerId) {
        self.kept_by_fence += 1;
        if self.kept_by_fence <= LISTED {
            self.undone(Subject::Resource(name.clone()), Pending::Fenced(worker));
        }
    }

    pub(crate) fn stop(&mut self, name: &ResourceName, holder: &Holder, reason: StopReason, to: Option<WorkerId>) {
        self.seen.insert(name.clone());
        self.recovering += usize::from(RECOVERY.contains(&reason));
        self.restarting += usize::from(reason == StopReason::Changed);
        self.plan.actions.push(Action::Stop {
            resource: name.clone(),
            worker: holder.worker.clone(),
            epoch: holder.held.epoch,
            reason,
            to,
        });
    }

    /// Gives a worker what is wanted now of what it runs.
    pub(crate) fn update(&mut self, name: &ResourceName, holder: &Holder) {
        self.seen.insert(name.clone());
        let (resource, worker) = (name.clone(), holder.worker.clone());
        self.plan.actions.push(Action::Update { resource, worker, epoch: holder.held.epoch });
    }

    /// Writes down that a resource has finished. It counts nowhere from then on.
    pub(crate) fn finish(&mut self, name: &ResourceName, unit: &'a Unit, holder: &Holder, status: &Status) {
        self.seen.insert(name.clone());
        if let (Some(definition), Some(home)) = (unit.definition(), unit.home()) {
            self.loads.leave(definition, home, *home != holder.worker);
        }
        self.plan.actions.push(Action::Finish {
            resource: name.clone(),
            worker: holder.worker.clone(),
            epoch: holder.held.epoch,
            message: status.message.as_str().into(),
        });
    }

    /// Stops a resource that is to go on elsewhere, or nowhere, and counts it there.
    pub(crate) fn send(&mut self, on: Settled<'a>, reason: StopReason, to: Option<WorkerId>) {
        self.loads.leave(on.definition, &on.holder.worker, false);
        if let Some(to) = &to {
            self.loads.come(on.definition, to);
        }
        self.stop(on.name, on.holder, reason, to);
    }

    /// Sends a resource to the worker that is chosen for it when it does not stand in its own way.
    ///
    /// # Errors
    /// Why no other worker takes it: then nothing is done.
    pub(crate) fn relocate(&mut self, on: Settled<'a>, reason: StopReason) -> Result<(), Pending> {
        self.loads.leave(on.definition, &on.holder.worker, false);
        let choice = self.choose(on.definition, &[&on.holder.worker]);
        self.loads.come_back(on.definition, &on.holder.worker);
        self.send(on, reason, Some(choice?.worker));
        Ok(())
    }

    /// As many as may be are on their way because they may not stay.
    pub(crate) fn recovers_enough(&self) -> bool {
        self.recovering >= self.config.recovery_in_flight
    }

    /// As many as may be are on their way, those included that were changed.
    pub(crate) fn restarts_enough(&self) -> bool {
        self.recovering + self.restarting >= self.config.recovery_in_flight
    }

    /// The plan has done something with it, or something that was decided before is under way.
    pub(crate) fn is_dealt_with(&self, name: &ResourceName) -> bool {
        self.seen.contains(name) || self.cluster.is_reserved(name)
    }

    /// A resource of this name that runs as wanted on this worker, and that the plan has not dealt with.
    pub(crate) fn settled(&self, name: &'a ResourceName, id: &WorkerId) -> Option<Settled<'a>> {
        let unit: &'a Unit = self.cluster.unit(name.as_str())?;
        let ([holder], Some(definition)) = (unit.holders.as_slice(), unit.definition()) else { return None };
        let is_settled = holder.worker == *id && holder.held.runs() && !holder.is_stopped();
        (is_settled && !self.is_dealt_with(name)).then_some(Settled { name, holder, definition })
    }
}

/// A resource that runs.
#[derive(Clone, Copy)]
pub(crate) struct Settled<'a> {
    pub(crate) name: &'a ResourceName,
    pub(crate) holder: &'a Holder,
    pub(crate) definition: &'a Definition,
}

//! Work that is no process of its machine: an effect somewhere else, which goes on without agent and guard.
//!
//! The wheel: worker::reconcile -> **worker::driver** -> worker::report. A fenced effect stands where all machines see it, and what has seen an epoch
//! refuses smaller ones; a loose one stands on its machine, as a file does, and nobody refuses anything.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_model::{DriverTraits, Epoch, Holds, Observed, ResourceName, Spec};
use evenkeel_store::task::of_this_process;
use evenkeel_worker::{
    driver::{Answer, Change, Driver, Handle, Observation, Observer, SpecError, StopOrder, Survivor, Work},
    protocol::authority::Gate,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{FENCED, LOOSE, content_of, needs_restart};
use crate::fleet::{
    dice::Dice,
    ledger::{Ledger, LiveRun, RunId},
};

/// The longest that the outside takes to answer.
const LONGEST_ANSWER: Duration = Duration::from_millis(300);
/// The longest that one takes that is slow: beyond the authority of the worker that asked.
const SLOWEST_ANSWER: Duration = Duration::from_secs(14);
/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(300);

/// Where the effects of all work of one kind are. Clones are the same.
#[derive(Clone, Debug)]
pub(in crate::fleet) struct Outside {
    holds: Holds,
    ledger: Ledger,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the place that they are at, and the resource.
    effects: BTreeMap<(String, ResourceName), Effect>,
    /// The largest epoch that has been seen of each resource.
    highest: BTreeMap<ResourceName, Epoch>,
    /// How often each machine has asked what it has here.
    asked: BTreeMap<String, u64>,
}

/// Whose effect it is to be.
#[derive(Clone, Debug)]
struct Claim {
    machine: Arc<str>,
    name: ResourceName,
    epoch: Epoch,
    content: u64,
    /// How often its machine had asked what it has here.
    asked: u64,
}

/// Why the outside does not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// It has seen this epoch, which is larger.
    Seen(Epoch),
    /// The machine has asked what it has here since, and was told that this was not among it.
    Late,
}

#[derive(Clone, Debug)]
struct Effect {
    id: RunId,
    machine: String,
    epoch: Epoch,
}

impl Outside {
    pub(in crate::fleet) fn new(holds: Holds, ledger: Ledger) -> Self {
        Self { holds, ledger, inner: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, machine: &str, name: &ResourceName) -> (String, ResourceName) {
        let at = if self.holds == Holds::Fenced { "" } else { machine };
        (at.to_owned(), name.clone())
    }

    /// Takes effect, in place of whatever was there.
    ///
    /// # Errors
    /// What stands against it.
    fn put(&self, claim: &Claim) -> Result<(), Refused> {
        let Claim { machine, name, epoch, content, asked } = claim;
        let epoch = *epoch;
        let mut inner = self.inner();
        if inner.asked.get(&**machine).copied().unwrap_or_default() != *asked {
            return Err(Refused::Late);
        }
        let highest = inner.highest.get(name).copied().unwrap_or_default();
        if self.holds == Holds::Fenced && epoch < highest {
            self.ledger.count(|counts| counts.claims_refused += 1);
            return Err(Refused::Seen(highest));
        }
        inner.highest.insert(name.clone(), highest.max(epoch));
        let place = self.place(machine, name);
        if let Some(before) = inner.effects.remove(&place) {
            self.ledger.count(|counts| counts.taken_over += u64::from(before.epoch != epoch));
            self.ledger.end(before.id);
        }
        let run = LiveRun { machine: machine.to_string(), name: name.clone(), epoch, content: Some(*content) };
        let id = self.ledger.start(run);
        inner.effects.insert(place, Effect { id, machine: machine.to_string(), epoch });
        Ok(())
    }

    /// Ends what has taken effect under this epoch.
    fn remove(&self, machine: &str, name: &ResourceName, epoch: Epoch) -> bool {
        let mut inner = self.inner();
        let place = self.place(machine, name);
        if inner.effects.get(&place).is_none_or(|effect| effect.epoch != epoch || effect.machine != machine) {
            return false;
        }
        if let Some(effect) = inner.effects.remove(&place) {
            self.ledger.end(effect.id);
        }
        true
    }

    fn asked(&self, machine: &str) -> u64 {
        self.inner().asked.get(machine).copied().unwrap_or_default()
    }

    /// Whether it has taken effect and still has.
    fn has(&self, machine: &str, name: &ResourceName, epoch: Epoch) -> bool {
        self.inner().effects.get(&self.place(machine, name)).is_some_and(|effect| effect.epoch == epoch && effect.machine == machine)
    }

    /// What a machine has put here. What it has under way is not taken any more.
    fn of(&self, machine: &str) -> Vec<(ResourceName, Epoch)> {
        let mut inner = self.inner();
        *inner.asked.entry(machine.to_owned()).or_default() += 1;
        let own = inner.effects.iter().filter(|(_, effect)| effect.machine == machine);
        own.map(|((_, name), effect)| (name.clone(), effect.epoch)).collect()
    }
}

/// Runs such work on one machine.
pub(in crate::fleet) struct OutsideDriver {
    pub(in crate::fleet) outside: Outside,
    pub(in crate::fleet) machine: Arc<str>,
    pub(in crate::fleet) ledger: Ledger,
    pub(in crate::fleet) dice: Dice,
}

enum Order {
    Stop,
    Change(Change),
}

struct Orders(mpsc::UnboundedSender<Order>);

impl Handle for Orders {
    fn stop(&self, _: StopOrder) {
        let _ = self.0.send(Order::Stop);
    }

    fn update(&self, change: Change) {
        let _ = self.0.send(Order::Change(change));
    }
}

impl Driver for OutsideDriver {
    fn kind(&self) -> &str {
        if self.outside.holds == Holds::Fenced { FENCED } else { LOOSE }
    }

    fn traits(&self) -> DriverTraits {
        DriverTraits { holds: self.outside.holds, updates: true }
    }

    fn grace(&self, spec: &Spec) -> Result<Duration, SpecError> {
        content_of(&spec.to_value()).map(|_| LONGEST_ANSWER).ok_or_else(|| SpecError("spec.content: must be a number".to_owned()))
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        let Some(content) = content_of(&work.spec.to_value()) else {
            return Err((SpecError("spec.content: must be a number".to_owned()), observer));
        };
        let (orders, ordered) = mpsc::unbounded_channel();
        let (outside, machine, dice) = (self.outside.clone(), Arc::clone(&self.machine), self.dice.clone());
        let asked = outside.asked(&machine);
        let claim = Claim { machine, name: work.name, epoch: work.epoch, content, asked };
        let keeper = Keeper { outside, dice, gate: work.gate, claim, observer, ordered };
        tokio::spawn(of_this_process(keeper.keep()));
        Ok(Box::new(Orders(orders)))
    }

    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async {
            sleep(self.dice.span(Duration::ZERO, LONGEST_ANSWER)).await;
            let survivor = |(name, epoch)| Survivor { name, epoch, id: String::new() };
            Ok(self.outside.of(&self.machine).into_iter().map(survivor).collect())
        })
    }

    fn end<'a>(&'a self, survivor: &'a Survivor) -> Answer<'a, ()> {
        Box::pin(async {
            sleep(self.dice.span(Duration::ZERO, LONGEST_ANSWER)).await;
            let ended = self.outside.remove(&self.machine, &survivor.name, survivor.epoch);
            self.ledger.count(|counts| counts.survivors_ended += u64::from(ended));
            Ok(())
        })
    }
}

/// Keeps one piece of work in effect until it is told to stop.
struct Keeper {
    outside: Outside,
    dice: Dice,
    gate: Gate,
    claim: Claim,
    observer: Observer,
    ordered: mpsc::UnboundedReceiver<Order>,
}

impl Keeper {
    async fn keep(mut self) {
        let mut pause = self.dice.span(Duration::ZERO, PAUSE / 8);
        loop {
            match timeout(pause, self.ordered.recv()).await {
                Ok(Some(Order::Stop)) => break,
                Ok(Some(Order::Change(change))) => self.change(&change),
                // Its agent has ended, and it goes on by itself.
                Ok(None) => return,
                Err(_) => pause = self.look().await,
            }
        }
        sleep(self.dice.span(Duration::ZERO, LONGEST_ANSWER)).await;
        let Claim { machine, name, epoch, .. } = &self.claim;
        self.outside.remove(machine, name, *epoch);
        self.observer.ended();
    }

    /// Takes effect if it has not yet, and may. Returns when to look again.
    async fn look(&self) -> Duration {
        /// For as long as a run of a fleet.
        const NEVER: Duration = Duration::from_secs(86_400);
        if !self.gate.is_open() {
            self.observe(Observed::Backoff, "waits for authority");
            return PAUSE;
        }
        match self.put().await {
            Ok(()) => {
                self.observe(Observed::Running, "");
                NEVER
            }
            Err(refused) => {
                self.observe(Observed::Backoff, &format!("refused: {refused:?}"));
                PAUSE * 3
            }
        }
    }

    /// What refuses smaller epochs may take its time, and what was said to it arrives when nobody waits for it any more.
    async fn put(&self) -> Result<(), Refused> {
        let Self { outside, dice, claim, .. } = self;
        if outside.holds == Holds::Loose {
            return outside.put(claim);
        }
        let is_slow = outside.ledger.is_rough() && dice.per_mille(250);
        let takes = dice.span(Duration::ZERO, if is_slow { SLOWEST_ANSWER } else { LONGEST_ANSWER });
        let (answers, answer) = oneshot::channel();
        let (outside, claim) = (outside.clone(), claim.clone());
        // No part of the agent's process.
        tokio::spawn(async move {
            sleep(takes).await;
            let _ = answers.send(outside.put(&claim));
        });
        answer.await.unwrap_or(Err(Refused::Late))
    }

    fn change(&mut self, change: &Change) {
        let Claim { machine, name, epoch, .. } = &self.claim;
        let Some(content) = content_of(&change.spec.to_value()).filter(|content| !needs_restart(*content)) else {
            return self.observer.needs_restart(change.hash, "the outside takes it only with a new owner");
        };
        let changed = Claim { content, ..self.claim.clone() };
        let is_there = self.outside.has(machine, name, *epoch);
        if is_there && !(self.gate.is_open() && self.outside.put(&changed).is_ok()) {
            return self.observer.needs_restart(change.hash, "the outside does not take it");
        }
        self.claim = changed;
        self.observer.updated(change.hash);
    }

    fn observe(&self, phase: Observed, message: &str) {
        self.observer.observed(Observation { message: message.to_owned(), ..Observation::of(phase) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(outside: &Outside, machine: &str, epoch: i64) -> Claim {
        let name = ResourceName::new(if outside.holds == Holds::Fenced { "fenced-1" } else { "loose-1" }).expect("name");
        Claim { machine: machine.into(), name, epoch: Epoch(epoch), content: 1, asked: outside.asked(machine) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_refuses_smaller_epochs_has_one_at_most_and_what_does_not_has_one_for_each_machine() {
        let held = |holds| {
            let ledger = Ledger::begin();
            let outside = Outside::new(holds, ledger.clone());
            for (machine, epoch) in [("worker-1", 5), ("worker-2", 7), ("worker-1", 6)] {
                let _ = outside.put(&claim(&outside, machine, epoch));
            }
            ledger.live().into_iter().map(|run| (run.machine, run.epoch.0)).collect::<Vec<_>>()
        };
        assert_eq!(held(Holds::Fenced), [("worker-2".to_owned(), 7)]);
        assert_eq!(held(Holds::Loose), [("worker-2".to_owned(), 7), ("worker-1".to_owned(), 6)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_when_a_machine_asked_is_not_taken() {
        let outside = Outside::new(Holds::Fenced, Ledger::begin());
        let late = claim(&outside, "worker-1", 5);
        assert_eq!(outside.put(&late), Ok(()));
        assert_eq!(outside.of("worker-1"), [(late.name.clone(), late.epoch)]);
        assert!(outside.remove("worker-1", &late.name, late.epoch));
        assert_eq!(outside.put(&late), Err(Refused::Late));
        assert_eq!(outside.put(&claim(&outside, "worker-1", 5)), Ok(()));
    }
}

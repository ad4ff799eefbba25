//! A driver that errs, around another: it refuses to start, fails in the middle, needs a restart for a change that others take, answers a change
//! never, or does not say what survives. It tells the ledger what is started and changed, which no part of the system knows whole.
//!
//! The wheel: worker::reconcile -> **worker::driver** -> worker::report.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use evenkeel_model::{DriverTraits, Epoch, Hash, ResourceName, Spec};
use evenkeel_store::task::of_this_process;
use evenkeel_worker::driver::{
    Answer, Change, Driver, DriverError, Event, EventKind, Handle, Lives, Observer, SpecError, StopOrder, Survivor, Work,
};
use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};

use super::{content_of, refuses_on};
use crate::fleet::{dice::Dice, ledger::Ledger, sign::Sign};

/// The longest that a driver that will fail works.
const LONGEST: Duration = Duration::from_secs(30);
/// How long a driver that does not say what survives keeps silent before it says that it cannot.
const SILENCE: Duration = Duration::from_secs(3);

/// See the module.
pub(in crate::fleet) struct ErringDriver<D> {
    pub(in crate::fleet) inner: D,
    pub(in crate::fleet) machine: Arc<str>,
    pub(in crate::fleet) ledger: Ledger,
    pub(in crate::fleet) dice: Dice,
    /// It does not say what survives.
    pub(in crate::fleet) is_mute: Sign<bool>,
}

/// What is known of one run by all who deal with it.
#[derive(Clone)]
struct Run {
    name: ResourceName,
    epoch: Epoch,
    machine: Arc<str>,
    ledger: Ledger,
    dice: Dice,
    /// The contents of the changes that were asked for.
    asked: Arc<Mutex<BTreeMap<Hash, u64>>>,
    events: mpsc::UnboundedSender<Event>,
}

struct ErringHandle {
    run: Run,
    inner: Box<dyn Handle>,
}

impl<D: Driver> Driver for ErringDriver<D> {
    fn kind(&self) -> &str {
        self.inner.kind()
    }

    fn traits(&self) -> DriverTraits {
        self.inner.traits()
    }

    fn grace(&self, spec: &Spec) -> Result<Duration, SpecError> {
        self.inner.grace(spec)
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        let (name, epoch) = (work.name.clone(), work.epoch);
        if refuses_on(&name, &self.machine) && !self.ledger.is_quiet() {
            self.ledger.count(|counts| counts.starts_refused += 1);
            return Err((SpecError("spec: it needs what this machine does not have".to_owned()), observer));
        }
        let Some(content) = content_of(&work.spec.to_value()) else {
            return Err((SpecError("spec: it has no content".to_owned()), observer));
        };
        let (events, told) = mpsc::unbounded_channel();
        let inner = match self.inner.start(work, Observer::new(name.clone(), epoch, events.clone())) {
            Ok(inner) => inner,
            Err((error, _)) => return Err((error, observer)),
        };
        self.ledger.driver_starts(&self.machine, &name, epoch, content);
        let (machine, ledger, dice) = (Arc::clone(&self.machine), self.ledger.clone(), self.dice.clone());
        let run = Run { name, epoch, machine, ledger, dice, asked: Arc::default(), events };
        let fails_after = (self.ledger.is_rough() && self.dice.per_mille(20)).then(|| self.dice.span(Duration::ZERO, LONGEST));
        tokio::spawn(of_this_process(run.clone().tell(told, observer, fails_after)));
        Ok(Box::new(ErringHandle { run, inner }))
    }

    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async {
            if self.is_mute.get() {
                self.ledger.count(|counts| counts.survivors_unsaid += 1);
                // Sometimes it says so, and sometimes nothing.
                sleep(if self.dice.per_mille(500) { SILENCE } else { SILENCE * 20 }).await;
                if self.is_mute.get() {
                    return Err(DriverError("what it works on does not answer".to_owned()));
                }
            }
            self.inner.survivors().await
        })
    }

    fn end<'a>(&'a self, survivor: &'a Survivor) -> Answer<'a, ()> {
        self.inner.end(survivor)
    }
}

impl Run {
    /// Passes on what the driver tells.
    async fn tell(self, mut told: mpsc::UnboundedReceiver<Event>, observer: Observer, fails_after: Option<Duration>) {
        let fails_at = tokio::time::Instant::now() + fails_after.unwrap_or(LONGEST);
        let mut observer = Some(observer);
        loop {
            let kind = tokio::select! {
                biased;
                event = told.recv() => event.map(|event| event.kind),
                () = sleep_until(fails_at), if observer.is_some() && fails_after.is_some() => {
                    if self.ledger.is_rough() {
                        self.ledger.note(format_args!("{}: the driver of {} fails", self.machine, self.name));
                        self.ledger.count(|counts| counts.drivers_broken += 1);
                        // Nobody knows what runs.
                        observer = None;
                    } else {
                        return self.tell_to_the_end(told, observer).await;
                    }
                    continue;
                }
            };
            let Some(kind) = kind else { return };
            observer = self.pass_on(kind, observer);
        }
    }

    async fn tell_to_the_end(self, mut told: mpsc::UnboundedReceiver<Event>, mut observer: Option<Observer>) {
        while let Some(event) = told.recv().await {
            observer = self.pass_on(event.kind, observer);
        }
    }

    fn pass_on(&self, kind: EventKind, observer: Option<Observer>) -> Option<Observer> {
        match &kind {
            EventKind::Observed(seen) if seen.lives == Lives::Nothing => self.ledger.rests(&self.machine, &self.name, self.epoch),
            EventKind::Updated(hash) => {
                let content = self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(hash).copied();
                if let Some(content) = content {
                    self.ledger.updated(&self.machine, &self.name, self.epoch, content);
                }
            }
            _ => {}
        }
        let observer = observer?;
        match kind {
            EventKind::Observed(seen) => observer.observed(seen),
            EventKind::Updated(hash) => observer.updated(hash),
            EventKind::NeedsRestart(hash, why) => observer.needs_restart(hash, why),
            EventKind::Ended => {
                observer.ended();
                return None;
            }
            EventKind::Broken => return None,
        }
        Some(observer)
    }
}

impl Handle for ErringHandle {
    fn stop(&self, order: StopOrder) {
        self.inner.stop(order);
    }

    fn update(&self, change: Change) {
        let Run { ledger, dice, name, epoch, .. } = &self.run;
        let content = content_of(&change.spec.to_value());
        ledger.count(|counts| counts.changes_asked += 1);
        if let Some(content) = content {
            self.run.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(change.hash, content);
        }
        match if ledger.is_rough() { dice.below(10) } else { 9 } {
            0 => {
                ledger.count(|counts| counts.changes_unanswered += 1);
            }
            1 => {
                ledger.count(|counts| counts.changes_refused += 1);
                let kind = EventKind::NeedsRestart(change.hash, "as it happens".to_owned());
                let _ = self.run.events.send(Event { name: name.clone(), epoch: *epoch, kind });
            }
            _ => self.inner.update(change),
        }
    }
}

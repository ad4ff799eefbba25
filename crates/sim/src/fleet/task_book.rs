//! The oracle of tasks: which attempts were executed, and which scripts live, as the kernel would know it, held against what etcd says of them.
//!
//! It is the part of the [`Ledger`](super::ledger) that knows tasks. It decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{TaskId, task::Outcome};
use tokio::time::Instant;

use super::ledger::{Inner, Ledger};

/// Names a script that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScriptId(u64);

/// An attempt of a task on a machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// The machine.
    pub machine: String,
    /// The task.
    pub task: TaskId,
    /// Which attempt.
    pub number: u32,
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "attempt {} of task {} on {}", self.number, self.task, self.machine)
    }
}

/// What is known of tasks.
#[derive(Debug, Default)]
pub(super) struct TaskBook {
    next: u64,
    live: BTreeMap<ScriptId, Attempt>,
    begun: BTreeSet<Attempt>,
    /// What etcd was told to begin, and when.
    told: BTreeMap<Attempt, Instant>,
    /// What etcd says has ended, or was never begun, and how it says so.
    closed: BTreeMap<Attempt, &'static str>,
    /// Nobody saw how it ended, or whether.
    unseen: BTreeSet<Attempt>,
    /// When a guard, the power or the disk of a machine was lost the last time.
    losses: BTreeMap<String, Instant>,
    /// Which task a caller was told that its key has.
    keys: BTreeMap<String, TaskId>,
    /// Keys under which a task was said to be new.
    created: BTreeSet<String>,
}

impl Ledger {
    fn book<T>(&self, with: impl FnOnce(&mut Inner) -> T) -> T {
        with(&mut self.inner())
    }

    /// A script is executed.
    pub fn script_begins(&self, attempt: Attempt) -> ScriptId {
        self.book(|inner| {
            inner.note(&format_args!("{attempt} is executed"));
            inner.counts.scripts_begun += 1;
            if !inner.tasks.told.contains_key(&attempt) {
                inner.violate(&format_args!("{attempt} is executed, and etcd was not told that it begins"));
            }
            if let Some(how) = inner.tasks.closed.get(&attempt).copied() {
                inner.violate(&format_args!("{attempt} is executed, and etcd says that it {how}"));
            }
            let beside = inner.tasks.live.values().find(|other| (&other.machine, other.task) == (&attempt.machine, attempt.task)).cloned();
            if let Some(beside) = beside {
                inner.violate(&format_args!("{attempt} is executed while {beside} lives"));
            }
            if !inner.tasks.begun.insert(attempt.clone()) {
                inner.violate(&format_args!("{attempt} is begun twice"));
            }
            let id = ScriptId(inner.tasks.next);
            inner.tasks.next += 1;
            inner.tasks.live.insert(id, attempt);
            id
        })
    }

    /// Every process of it is dead.
    pub fn script_ends(&self, id: ScriptId) {
        self.book(|inner| {
            if let Some(attempt) = inner.tasks.live.remove(&id) {
                inner.note(&format_args!("{attempt} is dead"));
            }
        });
    }

    /// Its shim is no more, and nobody sees how it ends.
    pub fn script_unseen(&self, id: ScriptId) {
        self.book(|inner| {
            if let Some(attempt) = inner.tasks.live.get(&id).cloned() {
                inner.note(&format_args!("the shim of {attempt} is killed"));
                inner.tasks.unseen.insert(attempt);
            }
        });
    }

    /// A machine has lost its guard, its power or its disk.
    pub fn machine_lost(&self, machine: &str) {
        self.inner().tasks.losses.insert(machine.to_owned(), Instant::now());
    }

    /// Etcd says that it goes on.
    pub fn told_running(&self, attempt: Attempt) {
        self.book(|inner| {
            if let Some(how) = inner.tasks.closed.get(&attempt).copied() {
                inner.violate(&format_args!("{attempt} is said to run, and was said that it {how}"));
            }
            if inner.tasks.told.insert(attempt.clone(), Instant::now()).is_some() {
                inner.violate(&format_args!("{attempt} is said to begin a second time"));
            }
        });
    }

    /// Etcd says that it was never begun.
    pub fn told_never(&self, attempt: Attempt, how: &'static str) {
        self.book(|inner| {
            if inner.tasks.begun.contains(&attempt) {
                inner.violate(&format_args!("{attempt}: etcd says that it {how}, and it was executed"));
            }
            inner.counts.tasks_never_begun += 1;
            inner.tasks.closed.insert(attempt, how);
        });
    }

    /// Etcd says that it has ended.
    pub fn told_ended(&self, attempt: Attempt, outcome: Outcome) {
        self.book(|inner| {
            if inner.tasks.live.values().any(|live| *live == attempt) {
                inner.violate(&format_args!("{attempt} is said to have ended ({outcome:?}), and it lives"));
            }
            let counts = &mut inner.counts;
            match outcome {
                Outcome::Succeeded | Outcome::Failed => counts.scripts_ended += 1,
                Outcome::TimedOut => counts.scripts_timed_out += 1,
                Outcome::Killed => counts.scripts_killed += 1,
                Outcome::Lost => counts.scripts_lost += 1,
                Outcome::Rejected => {}
            }
            let was_executed = inner.tasks.begun.contains(&attempt);
            // A time may be over before a late shim has executed anything.
            if matches!(outcome, Outcome::Succeeded | Outcome::Failed) && !was_executed {
                inner.violate(&format_args!("{attempt} is said to have ended ({outcome:?}), and it was never executed"));
            }
            let told_at = inner.tasks.told.get(&attempt).copied();
            let is_lost = told_at.is_some_and(|told| inner.tasks.losses.get(&attempt.machine).is_some_and(|at| *at >= told));
            if outcome == Outcome::Lost && !is_lost && !inner.tasks.unseen.contains(&attempt) {
                inner.violate(&format_args!("{attempt} is said to be lost, and nothing was lost on its machine since it began"));
            }
            inner.tasks.closed.insert(attempt, "has ended");
        });
    }

    /// A leader gives its worker up: by then it has ended, whoever knows how.
    pub fn told_given_up(&self, attempt: &Attempt) {
        self.book(|inner| {
            inner.counts.scripts_given_up += 1;
            if inner.tasks.live.values().any(|live| live == attempt) {
                inner.violate(&format_args!("{attempt} is given up as lost, and it lives"));
            }
        });
    }

    /// A caller is told that the task of its key is this one.
    pub fn answered_key(&self, key: &str, id: TaskId, is_new: bool) {
        self.book(|inner| {
            let before = *inner.tasks.keys.entry(key.to_owned()).or_insert(id);
            if before != id {
                inner.violate(&format_args!("the key {key} is answered with task {id}, and was with task {before}"));
            }
            if is_new && !inner.tasks.created.insert(key.to_owned()) {
                inner.violate(&format_args!("the task of the key {key} is said to be new a second time"));
            }
        });
    }

    /// The task that somebody was told this key has.
    #[must_use]
    pub fn task_of_key(&self, key: &str) -> Option<TaskId> {
        self.inner().tasks.keys.get(key).copied()
    }

    /// A script that lives, if any does.
    #[must_use]
    pub fn live_script(&self) -> Option<Attempt> {
        self.inner().tasks.live.values().next().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens, or is said, of an attempt of a task on the machine `m`.
    #[derive(Clone, Copy)]
    enum It {
        IsToldToRun(u32),
        IsExecuted(u32),
        Dies,
        IsSaidToEnd(u32, Outcome),
        WasCancelled(u32),
        IsGivenUp(u32),
        HasMachineThatLoses(&'static str),
        HasKey(u32, bool),
    }

    fn found(steps: &[It]) -> Option<String> {
        let ledger = Ledger::begin();
        let attempt = |number| Attempt { machine: "m".to_owned(), task: TaskId(7), number };
        let mut last = None;
        for step in steps {
            match *step {
                It::IsToldToRun(number) => ledger.told_running(attempt(number)),
                It::IsExecuted(number) => last = Some(ledger.script_begins(attempt(number))),
                It::Dies => last.into_iter().for_each(|id| ledger.script_ends(id)),
                It::IsSaidToEnd(number, outcome) => ledger.told_ended(attempt(number), outcome),
                It::WasCancelled(number) => ledger.told_never(attempt(number), "was cancelled"),
                It::IsGivenUp(number) => ledger.told_given_up(&attempt(number)),
                It::HasMachineThatLoses(machine) => ledger.machine_lost(machine),
                It::HasKey(id, is_new) => ledger.answered_key("k", TaskId(id), is_new),
            }
        }
        ledger.violation()
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_not_be_is_found() {
        use It::{Dies, HasKey, HasMachineThatLoses, IsExecuted, IsGivenUp, IsSaidToEnd, IsToldToRun, WasCancelled};
        let run = [IsToldToRun(1), IsExecuted(1), Dies];
        let twice = [run.as_slice(), &[IsSaidToEnd(1, Outcome::Failed), IsToldToRun(2), IsExecuted(2), Dies]].concat();
        // what happens; what is found
        let cases: [(&[It], Option<&str>); 11] = [
            (&twice, None),
            (&[IsToldToRun(1), IsExecuted(1), Dies, IsExecuted(1)], Some("is begun twice")),
            (&[IsToldToRun(1), IsToldToRun(1)], Some("a second time")),
            (&[IsExecuted(1)], Some("was not told that it begins")),
            (&[WasCancelled(1), IsExecuted(1)], Some("and etcd")),
            (&[IsToldToRun(1), IsExecuted(1), WasCancelled(1)], Some("was cancelled, and it was executed")),
            (&[IsToldToRun(1), IsExecuted(1), IsSaidToEnd(1, Outcome::Killed)], Some("and it lives")),
            (&[IsToldToRun(1), IsExecuted(1), IsGivenUp(1)], Some("and it lives")),
            (&[HasMachineThatLoses("n"), IsToldToRun(1), IsSaidToEnd(1, Outcome::Lost)], Some("nothing was lost")),
            (&[IsToldToRun(1), HasMachineThatLoses("m"), IsSaidToEnd(1, Outcome::Lost)], None),
            (&[HasKey(1, true), HasKey(2, false)], Some("was with task 1")),
        ];
        for (at, (steps, expected)) in cases.into_iter().enumerate() {
            let violation = found(steps);
            let is_as_expected = match (&violation, expected) {
                (None, None) => true,
                (Some(found), Some(expected)) => found.contains(expected),
                _ => false,
            };
            assert!(is_as_expected, "case {at}: {violation:?}");
        }
    }
}

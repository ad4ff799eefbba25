//! What runs on this worker, with the handles that stop it.
//!
//! The wheel: between worker::reconcile, which decides about it, and worker::driver, which makes it true. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use evenkeel_model::{Epoch, Hash, Observed, ResourceName, Status, Work};

use super::act::answers_of;
use crate::{
    driver::{Handle, Lives, Observation, StopOrder},
    protocol::{
        authority::BootTime,
        desired::Content,
        reconcile::{Change, Run, RunState},
    },
};

/// One run.
pub(crate) struct Row {
    pub(crate) run: Run,
    pub(crate) kind: String,
    /// What it runs, for comparison.
    pub(crate) work: Work,
    /// A change that its driver was given and has not answered.
    pub(crate) offered: Option<Offered>,
    pub(crate) status: Status,
    pub(crate) pid: u32,
    pub(crate) root: u32,
    /// None: there is nothing to stop.
    pub(crate) handle: Option<Box<dyn Handle>>,
    /// Why it was not started, where that is looked at again.
    pub(crate) held_back: Option<HeldBack>,
    /// Until a moment ago nobody vouched for it: it may have been killed, whatever its end looks like.
    pub(crate) lapsed: bool,
}

/// Why something is not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldBack {
    /// This worker may not run it, by the rules that it was given.
    Infeasible,
    /// Its epoch ran another content.
    Changed,
}

/// A change that a driver was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered {
    pub(crate) content: Content,
    pub(crate) work: Work,
    /// What the work will need to stop.
    pub(crate) grace: Duration,
    /// When an answer is not waited for any more.
    pub(crate) until: BootTime,
}

/// All runs.
#[derive(Default)]
pub(crate) struct Table {
    rows: BTreeMap<ResourceName, Row>,
    /// The graces of the live ones, with how often each occurs.
    live: BTreeMap<Duration, usize>,
    stopping: BTreeSet<ResourceName>,
    /// Whose drivers were given a change, and until when their answer is waited for.
    answers: BTreeMap<ResourceName, BootTime>,
}

impl Table {
    pub(crate) fn get(&self, name: &ResourceName) -> Option<&Row> {
        self.rows.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &ResourceName) -> Option<&mut Row> {
        self.rows.get_mut(name)
    }

    pub(crate) fn run(&self, name: &ResourceName) -> Option<Run> {
        self.rows.get(name).map(|row| row.run)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &ResourceName> {
        self.rows.keys()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Something runs, or may run. What rests has no process.
    pub(crate) fn is_busy(&self) -> bool {
        !(self.live.is_empty() && self.stopping.is_empty())
    }

    pub(crate) fn has_stopping(&self) -> bool {
        !self.stopping.is_empty()
    }

    /// The longest grace of what is live: that one has to be told first when authority ends.
    pub(crate) fn longest_grace(&self) -> Option<Duration> {
        self.live.last_key_value().map(|(grace, _)| *grace)
    }

    /// The live ones that need at least this grace.
    pub(crate) fn live_with_grace(&self, at_least: Duration) -> Vec<ResourceName> {
        let is_due = |row: &Row| row.run.state == RunState::Live && row.run.grace >= at_least;
        self.rows.iter().filter(|(_, row)| is_due(row)).map(|(name, _)| name.clone()).collect()
    }

    /// Its driver is given a change.
    pub(crate) fn offer(&mut self, name: &ResourceName, offered: Offered) {
        // Until the driver answers either content may be what runs: the longer grace counts.
        self.change_run(name, |run| (run.change, run.grace) = (Change::Offered(offered.content.hash), run.grace.max(offered.grace)));
        if let Some(row) = self.rows.get_mut(name) {
            row.offered = Some(offered);
            self.answers.insert(name.clone(), offered.until);
        }
    }

    /// Its change needs a restart. A driver that has not answered may take it all the same.
    pub(crate) fn needs_restart(&mut self, name: &ResourceName, hash: Hash, is_answered: bool) {
        self.answers.remove(name);
        self.change_run(name, |run| run.change = Change::NeedsRestart(hash));
        if let Some(row) = self.rows.get_mut(name) {
            row.offered = row.offered.filter(|_| !is_answered);
            row.status.restart_for = hash;
        }
    }

    /// It runs this from now on.
    pub(crate) fn changed(&mut self, name: &ResourceName, now: Offered) {
        let Offered { content, work, grace, .. } = now;
        self.answers.remove(name);
        self.change_run(name, |run| (run.content, run.change, run.grace) = (content, Change::Settled, grace));
        if let Some(row) = self.rows.get_mut(name) {
            (row.work, row.offered) = (work, None);
            (row.status.hash, row.status.restart_for) = (content.hash, Hash::default());
            row.status.answers = answers_of(row.status.epoch, content.answers);
        }
    }

    /// Those whose drivers should have answered a change by now.
    pub(crate) fn overdue(&self, now: BootTime) -> Vec<ResourceName> {
        self.answers.iter().filter(|(_, until)| **until <= now).map(|(name, _)| name.clone()).collect()
    }

    /// When the first of the answers is due that are waited for.
    pub(crate) fn next_answer(&self) -> Option<BootTime> {
        self.answers.values().min().copied()
    }

    pub(crate) fn insert(&mut self, name: ResourceName, row: Row) {
        self.remove(&name);
        self.count(&name, row.run, true);
        self.rows.insert(name, row);
    }

    pub(crate) fn remove(&mut self, name: &ResourceName) -> Option<Row> {
        let row = self.rows.remove(name)?;
        self.answers.remove(name);
        self.count(name, row.run, false);
        Some(row)
    }

    /// Nobody vouches for what lives now: the guard may be killing it.
    pub(crate) fn lapse(&mut self) {
        self.rows.values_mut().filter(|row| row.run.state != RunState::Resting).for_each(|row| row.lapsed = true);
    }

    /// Tells a run to stop. True if there is nothing to wait for.
    pub(crate) fn stop(&mut self, name: &ResourceName, order: StopOrder, now_ns: i64) -> bool {
        self.set_state(name, RunState::Stopping);
        let Some(row) = self.rows.get_mut(name) else { return true };
        row.enter(Observed::Stopping, now_ns);
        match &row.handle {
            Some(handle) => {
                handle.stop(order);
                false
            }
            None => true,
        }
    }

    /// Gives everything that is stopping another order.
    pub(crate) fn hurry(&self, order: StopOrder) {
        let handles = self.stopping.iter().filter_map(|name| self.rows.get(name)?.handle.as_ref());
        handles.for_each(|handle| handle.stop(order));
    }

    /// Takes in what a driver observed; the status that follows, if the run is still of this epoch. Of one that was told to stop two things count: an
    /// end of its own, which it came to before it heard of that, and what keeps it from ending.
    pub(crate) fn observe(&mut self, name: &ResourceName, epoch: Epoch, seen: Observation, now_ns: i64) -> Option<&Status> {
        let run = self.run(name).filter(|run| run.epoch == epoch)?;
        let rests = seen.lives == Lives::Nothing;
        if run.state == RunState::Stopping {
            let row = self.rows.get_mut(name)?;
            if rests && !row.lapsed {
                row.status.finished = true;
            } else if seen.phase != Observed::Stopping {
                return None;
            }
            (row.status.overran, row.status.message) = (seen.overran, seen.message);
            return Some(&row.status);
        }
        if rests != (run.state == RunState::Resting) {
            self.set_state(name, if rests { RunState::Resting } else { RunState::Live });
        }
        let row = self.rows.get_mut(name)?;
        row.enter(seen.phase, now_ns);
        (row.pid, row.root) = (seen.pid, seen.root);
        (row.status.restarts, row.status.failures, row.status.message) = (seen.restarts, seen.failures, seen.message);
        (row.status.finished, row.status.overran) = (rests, seen.overran);
        // Its driver has seen the end of what may have been killed, and starts another run.
        row.lapsed &= seen.phase != Observed::Backoff;
        Some(&row.status)
    }

    fn set_state(&mut self, name: &ResourceName, state: RunState) {
        self.change_run(name, |run| run.state = state);
    }

    /// Changes what decisions go by, and what is counted of it.
    pub(crate) fn change_run(&mut self, name: &ResourceName, change: impl FnOnce(&mut Run)) {
        let Some(row) = self.rows.get_mut(name) else { return };
        let before = row.run;
        change(&mut row.run);
        let after = row.run;
        self.count(name, before, false);
        self.count(name, after, true);
    }

    fn count(&mut self, name: &ResourceName, run: Run, add: bool) {
        match (run.state, add) {
            (RunState::Live, true) => *self.live.entry(run.grace).or_default() += 1,
            (RunState::Live, false) => {
                let left = self.live.get(&run.grace).map_or(0, |n| n - 1);
                if left == 0 {
                    self.live.remove(&run.grace);
                } else {
                    self.live.insert(run.grace, left);
                }
            }
            (RunState::Stopping, true) => {
                self.stopping.insert(name.clone());
            }
            (RunState::Stopping, false) => {
                self.stopping.remove(name);
            }
            (RunState::Resting, _) => {}
        }
    }
}

impl Row {
    /// A run of which nothing is known yet but its status.
    pub(crate) fn new(run: Run, kind: String, status: Status) -> Self {
        let work = Work::unknown();
        Self { run, kind, work, offered: None, status, pid: 0, root: 0, handle: None, held_back: None, lapsed: false }
    }

    /// What of an epoch is shown and reported while nothing of it runs.
    pub(crate) fn resting(content: Content, kind: String, status: Status) -> Self {
        let run = Run { epoch: status.epoch, state: RunState::Resting, grace: Duration::ZERO, content, change: Change::Settled };
        Self::new(run, kind, status)
    }

    fn enter(&mut self, phase: Observed, now_ns: i64) {
        if self.status.phase != phase {
            (self.status.phase, self.status.since) = (phase, now_ns);
            // How it ended is to be known of what has finished, also while it is let go.
            if !self.status.finished {
                self.status.message = String::new();
            }
        }
        if phase != Observed::Running && phase != Observed::Stopping {
            self.pid = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ResourceName {
        ResourceName::new(text).expect("name")
    }

    fn row(epoch: i64, grace_ms: u64) -> Row {
        let epoch = Epoch(epoch);
        let status = Status::new(Observed::Starting, epoch, 1);
        let grace = Duration::from_millis(grace_ms);
        let run = Run { epoch, state: RunState::Live, grace, content: Content::default(), change: Change::Settled };
        Row::new(run, String::new(), status)
    }

    fn seen(phase: Observed) -> Observation {
        let lives = if matches!(phase, Observed::Exited | Observed::Failed) { Lives::Nothing } else { Lives::Maybe };
        Observation { lives, pid: 9, root: 8, ..Observation::of(phase) }
    }

    #[test]
    fn it_knows_whether_something_runs_and_who_needs_longest_to_stop() {
        let mut table = Table::default();
        table.insert(name("a"), row(1, 500));
        table.insert(name("b"), row(2, 2000));
        assert_eq!((table.is_busy(), table.longest_grace()), (true, Some(Duration::from_secs(2))));
        assert_eq!(table.live_with_grace(Duration::from_secs(1)), [name("b")]);
        assert!(table.stop(&name("b"), StopOrder::default(), 5));
        assert_eq!((table.has_stopping(), table.longest_grace()), (true, Some(Duration::from_millis(500))));
        table.remove(&name("b"));
        assert!(table.observe(&name("a"), Epoch(1), seen(Observed::Exited), 6).is_some());
        assert_eq!((table.is_busy(), table.longest_grace(), table.is_empty()), (false, None, false));
        table.remove(&name("a"));
        assert!(table.is_empty());
    }

    #[test]
    fn only_the_run_of_that_epoch_is_observed() {
        let mut table = Table::default();
        table.insert(name("a"), row(1, 500));
        assert_eq!(table.observe(&name("a"), Epoch(2), seen(Observed::Running), 5), None);
        let status = table.observe(&name("a"), Epoch(1), seen(Observed::Running), 5).expect("status");
        assert_eq!((status.phase, status.since), (Observed::Running, 5));
        let status = table.observe(&name("a"), Epoch(1), seen(Observed::Running), 6).expect("status");
        assert_eq!(status.since, 5, "since it runs");
        table.stop(&name("a"), StopOrder::default(), 7);
        assert_eq!(table.observe(&name("a"), Epoch(1), seen(Observed::Running), 8), None, "it was told to stop");
        let stuck = Observation { message: "7 does not die".to_owned(), ..seen(Observed::Stopping) };
        let status = table.observe(&name("a"), Epoch(1), stuck, 9).expect("what keeps it from ending");
        assert_eq!((status.phase, status.since, status.message.as_str()), (Observed::Stopping, 7, "7 does not die"));
    }

    #[test]
    fn an_end_of_its_own_is_remembered_also_of_what_is_told_to_stop() {
        let ended = || Observation { message: "exit status 3".to_owned(), ..seen(Observed::Exited) };
        let mut table = Table::default();
        for (text, epoch) in [("before", 1), ("after", 2), ("killed", 3)] {
            table.insert(name(text), row(epoch, 500));
        }
        table.observe(&name("before"), Epoch(1), ended(), 5);
        table.stop(&name("before"), StopOrder::default(), 6);
        table.stop(&name("after"), StopOrder::default(), 6);
        let status = table.observe(&name("after"), Epoch(2), ended(), 7).expect("it ended before it heard of that");
        assert_eq!(status.phase, Observed::Stopping);
        for text in ["before", "after"] {
            let status = &table.get(&name(text)).expect("a row").status;
            assert_eq!((status.finished, status.message.as_str()), (true, "exit status 3"), "{text}");
        }
        table.lapse();
        table.stop(&name("killed"), StopOrder::default(), 8);
        assert_eq!(table.observe(&name("killed"), Epoch(3), ended(), 9), None, "the guard may have killed it");
    }
}

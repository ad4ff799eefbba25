//! A change of work that runs: the driver takes it, or the leader is told that it needs a restart.
//!
//! The wheel: worker::reconcile -> **worker::agent** -> worker::driver -> worker::report. Whether a change is taken in place is decided by
//! [`model::Work::is_in_place`], which the leader asks as well. What runs goes on until the leader says stop.

use std::time::Duration;

use evenkeel_model::{self as model, Epoch, Hash, Observed, ResourceName};

use super::{
    serve::Serving,
    table::{HeldBack, Offered, Row},
};
use crate::{
    driver,
    protocol::{
        authority::BootTime,
        desired::DesiredAssignment,
        reconcile::{Change, RunState},
    },
};

/// For how long the answer of a driver to a change is waited for. A restart costs no more than this wait, and drivers that ask others (an engine,
/// an API server) have deadlines of seconds.
const ANSWER: Duration = Duration::from_secs(10);

impl Serving<'_> {
    /// Takes what an assignment says by now.
    pub(super) fn change(&mut self, name: &ResourceName, epoch: Epoch, assigned: &DesiredAssignment, now: BootTime) {
        let Ok(assignment) = &assigned.assignment else { return };
        let Some(row) = self.state.table.get(name) else { return };
        let (kind, spec) = self.agent.catalog.resolve(name, assignment);
        let work = model::Work::of(&kind, &spec);
        let (content, hash) = (assigned.content(), assignment.hash);
        let is_same = hash == row.run.content.hash || work == row.work && kind == row.kind;
        if is_same && row.offered.is_none() {
            return self.taken(name, epoch, Offered { content, work, grace: row.run.grace, until: now });
        }
        let (driver, grace) = match self.prepare(&kind, &spec) {
            Ok(prepared) => prepared,
            Err(why) => return self.restart(name, hash, true, &why),
        };
        if row.run.state != RunState::Live || kind != row.kind || !row.work.is_in_place(work, driver.traits()) {
            return self.restart(name, hash, true, "it cannot be taken while it runs");
        }
        self.state.table.offer(name, Offered { content, work, grace, until: now + ANSWER });
        self.state.desired.runs(name, epoch, None);
        if let Some(handle) = self.state.table.get(name).and_then(|row| row.handle.as_ref()) {
            handle.update(driver::Change { hash, spec });
        }
    }

    /// A driver has taken a change.
    pub(super) fn updated(&mut self, name: &ResourceName, epoch: Epoch, hash: Hash) {
        if let Some(offered) = self.offered(name, epoch, hash) {
            self.taken(name, epoch, offered);
        }
    }

    /// A driver cannot take a change.
    pub(super) fn needs_restart(&mut self, name: &ResourceName, epoch: Epoch, hash: Hash, why: &str) {
        if self.offered(name, epoch, hash).is_some() {
            let runs = self.state.table.run(name).map(|run| run.content);
            self.state.desired.runs(name, epoch, runs);
            self.restart(name, hash, true, why);
        }
    }

    fn offered(&self, name: &ResourceName, epoch: Epoch, hash: Hash) -> Option<Offered> {
        self.state.table.get(name).filter(|row| row.run.epoch == epoch)?.offered.filter(|offered| offered.content.hash == hash)
    }

    /// Answers that did not come in time: the driver is asked nothing more, and the leader is.
    pub(super) fn watch_answers(&mut self, now: BootTime) {
        for name in self.state.table.overdue(now) {
            let Some(offered) = self.state.table.get(&name).and_then(|row| row.offered) else { continue };
            let why = format!("its driver has not answered the change for {} s", ANSWER.as_secs());
            self.restart(&name, offered.content.hash, false, &why);
        }
    }

    fn taken(&mut self, name: &ResourceName, epoch: Epoch, now: Offered) {
        tracing::info!(resource = %name, %epoch, hash = %now.content.hash, "goes by what its assignment says now");
        self.state.desired.runs(name, epoch, Some(now.content));
        self.state.table.changed(name, now);
        self.report_row(name);
    }

    /// The leader is told that this content needs another epoch.
    fn restart(&mut self, name: &ResourceName, hash: Hash, is_answered: bool, why: &str) {
        tracing::info!(resource = %name, %hash, why, "the change needs a restart");
        self.state.table.needs_restart(name, hash, is_answered);
        if let Some(row) = self.state.table.get_mut(name) {
            row.status.message = format!("the change needs a restart: {why}");
        }
        self.report_row(name);
    }

    fn report_row(&mut self, name: &ResourceName) {
        if let Some(row) = self.state.table.get(name) {
            self.state.reporter.set(name, row.status.clone());
        }
        self.agent.board.show(name, self.state.table.get(name));
        self.dirty.insert(name.clone());
    }

    /// An epoch is not started that may have run something else than what its assignment says by now.
    pub(super) fn ask_restart(&mut self, name: &ResourceName, epoch: Epoch) {
        let Some(assigned) = self.state.desired.assignment(name) else { return };
        let (hash, kind) = (assigned.hash(), assigned.kind());
        tracing::info!(resource = %name, %epoch, %hash, "its assignment was changed while it did not run: it waits for another epoch");
        // Where that is not known for certain the status says so: it would be believed.
        let content = self.last_run(name);
        let why = "it was changed while it did not run, and waits to be started with another epoch";
        let mut status = self.status(epoch, content, Observed::Starting, why.to_owned());
        status.restart_for = hash;
        let mut row = Row { held_back: Some(HeldBack::Changed), ..Row::resting(content, kind, status) };
        row.run.change = Change::NeedsRestart(hash);
        self.put(name, row);
    }
}

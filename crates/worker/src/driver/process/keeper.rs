//! Keeps one process running until it is told to stop: start, observe, clear what is left, wait, start again.
//!
//! The wheel: under worker::driver. Whether the resource runs here at all is not its question. It starts nothing before every process
//! of the run before is dead, and it reports the end only then.

use std::{ffi::CString, os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc, time::Duration};

use evenkeel_model::{
    Observed, Work as Content,
    process::{self, ProcessSpec, Restart, StopSignal},
};
use evenkeel_store::task::of_this_process;
use nix::sys::signal::Signal;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};

use super::{
    OrderReceiver, TRAITS, Tools,
    backoff::{Backoff, GATE_PERIOD, WELL},
    cells::{Cell, Cells, FromShim, NO_SHIM, SILENCE, Start, Terms, ToAgent},
    log::Log,
};
use crate::{
    driver::{Change, Lives, Observation, Observer, Work},
    hold::{GUARD_MARK, child::in_words},
    protocol::authority::BootTime,
};

pub(super) struct Keeper<C: Cells> {
    pub(super) work: Work,
    pub(super) spec: ProcessSpec,
    pub(super) tools: Arc<Tools<C>>,
    pub(super) log: Log,
    pub(super) observer: Observer,
    pub(super) orders: OrderReceiver,
    /// How often the process was started.
    pub(super) starts: u32,
    /// Runs in a row that ended, or could not be started, before they ran well.
    pub(super) failures: u32,
    pub(super) backoff: Backoff,
}

/// How one run of the process came to its end.
enum Outcome {
    /// It was told to stop.
    Stopped,
    /// It ended by itself; without a status if its shim was killed.
    Exited { status: Option<ExitStatus>, ran: Duration },
    /// It could not be started.
    NotStarted { message: String },
    /// The gate is shut.
    NoAuthority,
}

/// What follows.
enum Next {
    /// It is started again after this pause.
    Again { after: Duration, message: String },
    /// It has come to its end, and rests until it is told to stop.
    Rest { phase: Observed, message: String },
    /// That was all.
    Over,
}

/// What is known of a run that goes on.
struct Running {
    /// Its place among those whose shims are on their way, as long as its own is.
    place: Option<OwnedSemaphorePermit>,
    /// Its shim; 0: it has not said anything yet.
    shim: u32,
    /// Its main process; 0: there is none yet.
    main: u32,
    begun: Option<Instant>,
    /// It has run for so long that it runs well.
    well: bool,
    /// How it ended, before all of it was dead.
    ended: Option<Outcome>,
    /// It ended before it was told to stop: that was its own end.
    ended_first: bool,
    /// It was told to stop, and is killed then.
    grace_ends: Option<Instant>,
    killed: bool,
    /// Nobody is left who could give an order.
    orphaned: bool,
    /// Since when its shim could have said something: its last message, the kill, or the last look for a shim that is not there yet.
    message_at: Instant,
    /// What did not die when it was last told of.
    stuck: String,
}

/// What is to be done at some time if nothing happens before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// The grace has ended.
    Kill,
    /// It has run well for long enough.
    RunsWell,
    /// There is no shim yet.
    NoShim,
    /// The shim should have said something.
    Silence,
    Nothing,
}

impl Running {
    fn new() -> Self {
        Self {
            place: None,
            shim: 0,
            main: 0,
            begun: None,
            well: false,
            ended: None,
            ended_first: false,
            grace_ends: None,
            killed: false,
            orphaned: false,
            message_at: Instant::now(),
            stuck: String::new(),
        }
    }

    /// What is due next, and when; `kill_by` is an order's time.
    fn due(&self, kill_by: Option<Instant>) -> (Due, Instant) {
        if self.killed || self.ended.is_some() {
            return (Due::Silence, self.message_at + SILENCE);
        }
        match (self.grace_ends, self.begun) {
            (Some(end), _) => (Due::Kill, kill_by.map_or(end, |at| at.min(end))),
            (None, Some(begun)) if !self.well => (Due::RunsWell, begun + WELL),
            (None, None) if self.shim == 0 => (Due::NoShim, self.message_at + NO_SHIM),
            // A shim that starts its child or watches over it has nothing to say. From now on: a time that has passed would be due without end.
            (None, _) => (Due::Nothing, Instant::now() + Duration::from_secs(3600)),
        }
    }

    fn ran(&self) -> Duration {
        self.begun.map_or(Duration::ZERO, |begun| begun.elapsed())
    }

    /// How it ended, now that all of it has.
    fn outcome(self) -> Outcome {
        let ran = self.ran();
        match self.ended {
            _ if self.grace_ends.is_some() && !self.ended_first => Outcome::Stopped,
            Some(outcome) => outcome,
            None => Outcome::Exited { status: None, ran },
        }
    }
}

impl<C: Cells> Keeper<C> {
    pub(super) async fn keep(mut self) {
        loop {
            let outcome = if self.orders.is_told_to_stop() { Outcome::Stopped } else { self.run_once().await };
            if self.tools.cells.is_ending() {
                // No end of its own, nor a start that failed by itself. This process ends, and nobody is to be told anything.
                std::future::pending::<()>().await;
            }
            match self.after(&outcome) {
                Next::Again { after, message } => {
                    self.observe(Observed::Backoff, &Running::new(), message);
                    self.pause(after).await;
                }
                Next::Rest { phase, message } => {
                    let seen = self.seen(phase, &Running::new(), message);
                    self.observer.observed(Observation { lives: Lives::Nothing, ..seen });
                    while let Some(change) = self.orders.change_before(None).await {
                        self.observer.needs_restart(change.hash, "it has come to its end, and one epoch is not started with two specs");
                    }
                }
                Next::Over => break,
            }
        }
        tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "stopped");
        self.observer.ended();
    }

    /// What follows from the end of a run: its restart policy says.
    fn after(&mut self, outcome: &Outcome) -> Next {
        match outcome {
            Outcome::Stopped => Next::Over,
            Outcome::NoAuthority => {
                self.starts = self.starts.saturating_sub(1);
                Next::Again { after: GATE_PERIOD, message: "waits for authority".to_owned() }
            }
            Outcome::NotStarted { message } => {
                self.tools.cells.check_cgroup();
                self.failures = self.failures.saturating_add(1);
                if self.spec.restart == Restart::Never {
                    return Next::Rest { phase: Observed::Failed, message: message.clone() };
                }
                Next::Again { after: self.backoff.after(Duration::ZERO), message: message.clone() }
            }
            Outcome::Exited { status, ran } => {
                let message = status.map_or_else(|| "how it ended is not known: its shim was killed".to_owned(), describe);
                let rests = match self.spec.restart {
                    Restart::Always => false,
                    Restart::OnFailure => status.is_some_and(|status| status.success()),
                    Restart::Never => true,
                };
                if rests {
                    return Next::Rest { phase: Observed::Exited, message };
                }
                // What ends with status 0 has done what it was to do, however short that is.
                let went_well = *ran >= WELL || status.is_some_and(|status| status.success());
                self.failures = if went_well { 0 } else { self.failures.saturating_add(1) };
                Next::Again { after: self.backoff.after(*ran), message }
            }
        }
    }

    /// Starts the process and stays with it until all of it is dead.
    async fn run_once(&mut self) -> Outcome {
        // One that fails before it runs is an attempt as well, and people count attempts.
        self.starts = self.starts.saturating_add(1);
        let tools = Arc::clone(&self.tools);
        let place = tokio::select! {
            biased;
            () = self.orders.told_to_stop() => return Outcome::Stopped,
            place = tools.cells.place_to_start() => place,
        };
        // What was ordered while it waited shows no more as something new.
        self.take_new_change();
        let Some(not_after) = self.work.gate.opens_until() else { return Outcome::NoAuthority };
        let mut cell = match tools.cells.cell(self.work.name.as_str()) {
            Ok(cell) => cell,
            Err(error) => return Outcome::NotStarted { message: format!("cannot hold its processes: {}", in_words(&error)) },
        };
        cell.start(self.what_to_start(not_after));
        let run = self.stay_with(&mut cell, place).await;
        // Whatever the process has left behind must be dead before it is started anew, here or elsewhere.
        cell.clear().await;
        self.log.finish().await;
        run.outcome()
    }

    /// Stays with a run until its shim says that nothing of it is left, or says nothing where it should.
    async fn stay_with(&mut self, cell: &mut C::Cell, place: Option<OwnedSemaphorePermit>) -> Running {
        let mut run = Running { place, ..Running::new() };
        loop {
            let (due, at) = run.due(self.kill_by());
            let is_silence = due == Due::Silence;
            // Output without end keeps no order and no time waiting. What was said counts before silence does.
            tokio::select! {
                biased;
                ordered = self.orders.changed(), if !run.orphaned => {
                    run.orphaned = ordered.is_err();
                    self.take_new_change();
                    if run.orphaned || self.orders.is_told_to_stop() {
                        self.stop(&mut run, cell);
                    }
                }
                () = sleep_until(at), if !is_silence => self.act(due, &mut run, cell),
                message = next_message(&self.log, cell) => match message {
                    FromShim::Said(ToAgent::Empty) | FromShim::Gone => return run,
                    FromShim::Said(said) => self.take_in(&mut run, said),
                },
                () = sleep_until(at), if is_silence => return run,
            }
        }
    }

    /// The time has come for this.
    fn act(&mut self, due: Due, run: &mut Running, cell: &mut C::Cell) {
        match due {
            Due::Kill => {
                (run.killed, run.message_at) = (true, Instant::now());
                cell.kill();
            }
            Due::RunsWell => {
                (self.failures, run.well) = (0, true);
                self.observe(Observed::Running, run, String::new());
            }
            Due::NoShim => {
                self.observe(Observed::Starting, run, "waits for the process that is to hold it".to_owned());
                run.message_at = Instant::now();
                let cells = Arc::clone(&self.tools.cells);
                tokio::spawn(of_this_process(async move { cells.check_spawner().await }));
            }
            Due::Silence | Due::Nothing => {}
        }
    }

    fn take_in(&mut self, run: &mut Running, said: ToAgent) {
        run.message_at = Instant::now();
        match said {
            ToAgent::Ready(pid) => (run.shim, run.place) = (pid.unsigned_abs(), None),
            ToAgent::Forked(pid) => run.main = pid.unsigned_abs(),
            ToAgent::Started => {
                run.begun = Some(Instant::now());
                self.observe(Observed::Running, run, String::new());
                tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, pid = run.main, "started");
            }
            ToAgent::HeldUp(what) => self.observe(Observed::Starting, run, what),
            ToAgent::Refused(message) => run.ended = Some(Outcome::NotStarted { message }),
            ToAgent::TooLate => run.ended = Some(Outcome::NoAuthority),
            ToAgent::Exited(status) => {
                let outcome = Outcome::Exited { status: Some(ExitStatus::from_raw(status)), ran: run.ran() };
                run.ended_first |= run.ended.is_none() && run.grace_ends.is_none();
                run.ended.get_or_insert(outcome);
            }
            ToAgent::Output(bytes) | ToAgent::Errors(bytes) => self.log.append(&bytes),
            ToAgent::Stuck(what) if run.stuck != what => {
                let phase = if run.grace_ends.is_some() { Observed::Stopping } else { Observed::Backoff };
                self.observe(phase, run, what.clone());
                run.stuck = what;
            }
            ToAgent::Left(_) | ToAgent::Stuck(_) | ToAgent::Empty => {}
        }
    }

    /// Asks the process to end, the first time. A further order may bring the time of the kill forward.
    fn stop(&mut self, run: &mut Running, cell: &mut C::Cell) {
        if run.grace_ends.is_none() {
            let grace = if run.orphaned { Duration::ZERO } else { self.spec.stop_grace.unwrap_or(self.tools.grace) };
            run.grace_ends = Some(self.in_a(grace));
            cell.signal(signal_of(self.spec.stop_signal) as i32);
        }
    }

    /// When the order says that everything must be killed.
    fn kill_by(&self) -> Option<Instant> {
        let kill_by = self.orders.stop()?.kill_by?;
        Some(self.work.gate.clock().instant(kill_by))
    }

    /// When the worker's clock has gone on by this span.
    fn in_a(&self, span: Duration) -> Instant {
        let clock = self.work.gate.clock();
        clock.instant(clock.now() + span)
    }

    /// Waits until it is time, or until it is told to stop.
    async fn pause(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while let Some(change) = self.orders.change_before(Some(end)).await {
            self.take_change(change);
        }
    }

    fn take_new_change(&mut self) {
        if let Some(change) = self.orders.new_change() {
            self.take_change(change);
        }
    }

    /// Goes by another spec from now on, if it may: how it is watched and stopped. The process has what it was started with.
    fn take_change(&mut self, change: Change) {
        let Change { hash, spec } = change;
        let [old, new] = [&self.work.spec, &spec].map(|spec| Content::of(process::KIND, spec));
        match ProcessSpec::stored(&spec) {
            Ok(parsed) if old.is_in_place(new, TRAITS) => {
                tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "changed in place");
                (self.spec, self.work.spec) = (parsed, spec);
                self.observer.updated(hash);
            }
            Ok(_) => self.observer.needs_restart(hash, "it changes what the process was started with"),
            Err(error) => self.observer.needs_restart(hash, error.to_string()),
        }
    }

    fn what_to_start(&self, not_after: BootTime) -> Start {
        let own = [
            ("EVENKEEL_RESOURCE", self.work.name.to_string()),
            ("EVENKEEL_EPOCH", self.work.epoch.to_string()),
            ("EVENKEEL_WORKER", self.tools.worker.to_string()),
            (GUARD_MARK, self.tools.cells.mark().to_owned()),
        ];
        // The spec was checked: no text has a NUL.
        let text = |text: &str| CString::new(text).unwrap_or_default();
        Start {
            not_after,
            may_gain_privileges: self.spec.allow_privilege_escalation,
            cgroup: CString::default(),
            cwd: text(self.spec.cwd.as_deref().unwrap_or("/")),
            stdin: CString::default(),
            errors_apart: false,
            leaves_children: false,
            terms: Terms::Spec,
            account: None,
            command: self.spec.command.iter().map(|argument| text(argument)).collect(),
            environment: self.tools.inherited.of_work(&self.spec, own),
        }
    }

    fn observe(&self, phase: Observed, run: &Running, message: String) {
        self.observer.observed(self.seen(phase, run, message));
    }

    /// How it is now. What is said of it goes into the log, too.
    fn seen(&self, phase: Observed, run: &Running, message: String) -> Observation {
        if !message.is_empty() {
            tracing::warn!(resource = %self.work.name, epoch = %self.work.epoch, phase = phase.as_str(), message);
        }
        let pid = if phase == Observed::Running { run.main } else { 0 };
        let (restarts, failures) = (self.starts.saturating_sub(1), self.failures);
        Observation { pid, root: run.shim, restarts, failures, message, ..Observation::of(phase) }
    }
}

/// What a run says next, once its log has room for what it may be.
async fn next_message(log: &Log, cell: &mut impl Cell) -> FromShim {
    log.room().await;
    cell.next().await
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => {
            let name = Signal::try_from(number).map_or("unknown", Signal::as_str);
            format!("killed by signal {number} ({name})")
        }
        (None, None) => "ended".to_owned(),
    }
}

fn signal_of(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::SIGTERM,
        StopSignal::Int => Signal::SIGINT,
        StopSignal::Quit => Signal::SIGQUIT,
        StopSignal::Hup => Signal::SIGHUP,
        StopSignal::Usr1 => Signal::SIGUSR1,
        StopSignal::Usr2 => Signal::SIGUSR2,
        StopSignal::Kill => Signal::SIGKILL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exit status 3");
        assert_eq!(describe(ExitStatus::from_raw(9)), "killed by signal 9 (SIGKILL)");
    }
}

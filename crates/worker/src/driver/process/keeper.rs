//! Keeps one process running until it is told to stop: start, observe, clear what is left, wait, start again.
//!
//! The wheel: under worker::driver. Whether the resource runs here at all is not its question. It starts nothing before every process
//! of the run before is dead, and it reports the end only then.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use evenkeel_model::{
    Observed,
    process::{ProcessSpec, Restart, StopSignal},
};
use nix::{errno::Errno, sys::signal::Signal};
use tokio::{
    process::Child,
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{Tools, backoff::Backoff, log::Log, output::Output, spawner::SpawnError};
use crate::{
    containment::{Cell, GUARD_MARK},
    driver::{Observation, Observer, StopOrder, Work},
    sys,
};

/// How often a gate that is shut is asked again.
const GATE_PERIOD: Duration = Duration::from_millis(50);

pub(super) struct Keeper {
    pub(super) work: Work,
    pub(super) spec: ProcessSpec,
    pub(super) tools: Arc<Tools>,
    pub(super) log: Log,
    pub(super) observer: Observer,
    pub(super) orders: watch::Receiver<Option<StopOrder>>,
    pub(super) starts: u32,
    pub(super) backoff: Backoff,
}

/// How one run of the process came to its end.
enum Outcome {
    /// It was told to stop.
    Stopped,
    /// It ended by itself.
    Exited { status: ExitStatus, ran: Duration },
    /// It could not be started.
    NotStarted { message: String },
    /// The gate is shut.
    NoAuthority,
}

/// What follows.
enum Next {
    /// It is started again after this pause.
    Again { after: Duration, message: String },
    /// It rests until it is told to stop.
    Rest { phase: Observed, message: String },
    /// That was all.
    Over,
}

/// Whether a variable of the environment is meant for the worker: its settings, and the ear of its service manager, which would take work's
/// word for the worker's.
fn is_the_workers(name: &[u8]) -> bool {
    name.starts_with(b"EVENKEEL_") || matches!(name, b"NOTIFY_SOCKET" | b"WATCHDOG_USEC" | b"WATCHDOG_PID")
}

impl Keeper {
    pub(super) async fn keep(mut self) {
        loop {
            let outcome = if self.is_told_to_stop() { Outcome::Stopped } else { self.run_once().await };
            match self.after(&outcome) {
                Next::Again { after, message } => {
                    self.observe(Observed::Backoff, 0, message);
                    tokio::select! {
                        () = sleep(after) => {}
                        () = told_to_stop(&mut self.orders) => {}
                    }
                }
                Next::Rest { phase, message } => {
                    self.observe(phase, 0, message);
                    told_to_stop(&mut self.orders).await;
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
                self.starts -= 1;
                Next::Again { after: GATE_PERIOD, message: "waits for authority".to_owned() }
            }
            Outcome::NotStarted { message } if self.spec.restart == Restart::Never => {
                Next::Rest { phase: Observed::Failed, message: message.clone() }
            }
            Outcome::NotStarted { message } => Next::Again { after: self.backoff.after(Duration::ZERO), message: message.clone() },
            Outcome::Exited { status, ran } => {
                let message = describe(*status);
                let rests = match self.spec.restart {
                    Restart::Always => false,
                    Restart::OnFailure => status.success(),
                    Restart::Never => true,
                };
                if rests {
                    Next::Rest { phase: Observed::Exited, message }
                } else {
                    Next::Again { after: self.backoff.after(*ran), message }
                }
            }
        }
    }

    /// Starts the process and stays with it until all of it is dead.
    async fn run_once(&mut self) -> Outcome {
        // One that fails before it runs is an attempt as well, and people count attempts.
        self.starts += 1;
        let mut cell = match self.tools.containment.cell(&self.work.name, self.work.epoch) {
            Ok(cell) => cell,
            Err(error) => return Outcome::NotStarted { message: format!("cannot hold its processes: {error}") },
        };
        let begun = Instant::now();
        let (mut child, output) = match self.start(&cell).await {
            Ok(started) => started,
            Err(outcome) => return outcome,
        };
        let pid = child.id().unwrap_or_default();
        cell.started(i32::try_from(pid).unwrap_or_default());
        self.observe(Observed::Running, pid, String::new());
        tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, pid, "started");
        let ended = tokio::select! {
            status = child.wait() => status.ok(),
            () = told_to_stop(&mut self.orders) => None,
        };
        let outcome = match ended {
            Some(status) => {
                cell.reaped();
                Outcome::Exited { status, ran: begun.elapsed() }
            }
            None => {
                self.stop(&mut cell, &mut child).await;
                Outcome::Stopped
            }
        };
        // Whatever the process has left behind must be dead before it is started anew, here or elsewhere.
        cell.clear().await;
        output.finish().await;
        outcome
    }

    /// Asks the process to end, then makes it.
    async fn stop(&mut self, cell: &mut Cell, child: &mut Child) {
        let grace_ends = Instant::now() + self.spec.stop_grace.unwrap_or(self.tools.grace);
        cell.signal(signal_of(self.spec.stop_signal));
        // One that was stopped could not hear it.
        cell.signal(Signal::SIGCONT);
        loop {
            let end = self.kill_by().map_or(grace_ends, |at| at.min(grace_ends));
            tokio::select! {
                _ = child.wait() => break,
                () = sleep_until(end) => {
                    cell.signal(Signal::SIGKILL);
                    cell.kill().await;
                    let _ = child.wait().await;
                    break;
                }
                Ok(()) = self.orders.changed() => {}
            }
        }
        cell.reaped();
    }

    /// When the order says that everything must be killed.
    fn kill_by(&self) -> Option<Instant> {
        let order = (*self.orders.borrow())?;
        Some(Instant::now() + order.kill_by?.since(self.tools.gate.clock().now()))
    }

    fn is_told_to_stop(&self) -> bool {
        self.orders.borrow().is_some() || self.orders.has_changed().is_err()
    }

    async fn start(&self, cell: &Cell) -> Result<(Child, Output), Outcome> {
        let program = &self.spec.command[0];
        if let Some(cwd) = &self.spec.cwd
            && !std::path::Path::new(cwd).is_dir()
        {
            return Err(Outcome::NotStarted { message: format!("cannot start {program:?}: cwd {cwd:?} is no folder") });
        }
        let system = |error: std::io::Error| Outcome::NotStarted { message: format!("cannot start {program:?}: {}", in_words(&error)) };
        let (reader, writer) = std::io::pipe().map_err(system)?;
        let command = self.command(cell, writer).map_err(system)?;
        let output = Output::copy(reader, self.log.clone()).map_err(system)?;
        match self.tools.spawner.spawn(command).await {
            Ok(child) => Ok((child, output)),
            Err(SpawnError::NoAuthority) => Err(Outcome::NoAuthority),
            Err(SpawnError::System(error)) => Err(system(error)),
        }
    }

    fn command(&self, cell: &Cell, output: std::io::PipeWriter) -> std::io::Result<Command> {
        let mut command = Command::new(&self.spec.command[0]);
        command.args(&self.spec.command[1..]).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_the_workers(name.as_encoded_bytes())) {
            command.env_remove(name);
        }
        command
            .envs(&self.spec.env)
            .env("EVENKEEL_RESOURCE", self.work.name.as_str())
            .env("EVENKEEL_EPOCH", self.work.epoch.to_string())
            .env("EVENKEEL_WORKER", self.tools.worker.as_str())
            .env(GUARD_MARK, self.tools.containment.mark());
        if let Some(cwd) = &self.spec.cwd {
            command.current_dir(cwd);
        }
        let mut setup = cell.setup()?;
        setup.open_files = self.tools.open_files;
        sys::set_up(&mut command, setup);
        Ok(command)
    }

    fn observe(&self, phase: Observed, pid: u32, message: String) {
        if !message.is_empty() {
            tracing::warn!(resource = %self.work.name, epoch = %self.work.epoch, phase = phase.as_str(), message);
        }
        self.observer.is(Observation { phase, pid, restarts: self.starts.saturating_sub(1), failures: 0, message });
    }
}

/// Returns once there is an order to stop, or nobody left to give one.
async fn told_to_stop(orders: &mut watch::Receiver<Option<StopOrder>>) {
    let _ = orders.wait_for(Option::is_some).await;
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

/// An error of the system as people say it.
fn in_words(error: &std::io::Error) -> String {
    let text = error.raw_os_error().map_or_else(|| error.to_string(), |code| Errno::from_raw(code).desc().to_owned());
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
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
    fn ends_and_errors_are_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exit status 3");
        assert_eq!(describe(ExitStatus::from_raw(9)), "killed by signal 9 (SIGKILL)");
        assert_eq!(in_words(&std::io::Error::from_raw_os_error(nix::libc::ENOENT)), "no such file or directory");
        assert_eq!(in_words(&std::io::Error::other("Odd")), "odd");
    }
}

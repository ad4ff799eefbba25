//! Stays with one script from its start to the death of all that it has started.
//!
//! The wheel: under worker::task, over the cells of worker::driver. Whether it may start, and what its end means for others, is not its question. It
//! runs through a simulator's cells and clock as it is.

use std::{future::pending, os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc, time::Duration};

use evenkeel_store::task::of_this_process;
use nix::sys::signal::Signal;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::sleep_until,
};

use super::output::{Output, Stream};
use crate::{
    driver::process::cells::{Cell, Cells, FromShim, NO_SHIM, SILENCE, Start, ToAgent},
    protocol::authority::{BootTime, Clock},
};

/// What an attempt is told while it goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// It is to stop, for this reason.
    pub(crate) stop: Option<String>,
    /// It is to be killed at once.
    pub(crate) kill: bool,
    /// The worker leaves: what was not executed is not any more.
    pub(crate) leaving: bool,
}

/// How long a script may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans {
    /// From its start to the stop signal.
    pub(crate) timeout: Duration,
    /// From the stop signal to the kill.
    pub(crate) grace: Duration,
}

/// Why a script was made to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its time was over.
    Timeout,
    /// It was told to.
    Told(String),
}

/// What came of one start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// It was executed.
    Ended {
        /// None: nobody saw how.
        status: Option<ExitStatus>,
        /// Why it was made to end; none: it ended by itself.
        cause: Option<Cause>,
        /// How many processes it left.
        left: u32,
    },
    /// It was not executed: why.
    Refused(String),
    /// It was not executed, because authority had ended.
    TooLate,
}

/// What is known of a run that goes on.
#[derive(Debug)]
struct Run {
    place: Option<OwnedSemaphorePermit>,
    has_shim: bool,
    begun: BootTime,
    cause: Option<Cause>,
    killed: bool,
    /// When it is killed, once it was made to end.
    kill_at: BootTime,
    refused: Option<Ran>,
    ended: Option<ExitStatus>,
    left: u32,
    /// When its shim could last have said something.
    message_at: BootTime,
}

/// What is to be done at some time if nothing happens before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Timeout,
    Kill,
    NoShim,
    Silence,
}

impl Run {
    fn new(place: Option<OwnedSemaphorePermit>, now: BootTime) -> Self {
        Self {
            place,
            has_shim: false,
            begun: now,
            cause: None,
            killed: false,
            kill_at: now,
            refused: None,
            ended: None,
            left: 0,
            message_at: now,
        }
    }

    fn due(&self, spans: Spans) -> (Due, BootTime) {
        if self.killed || self.ended.is_some() || self.refused.is_some() {
            (Due::Silence, self.message_at + SILENCE)
        } else if self.cause.is_some() {
            (Due::Kill, self.kill_at)
        } else if !self.has_shim && self.message_at + NO_SHIM < self.begun + spans.timeout {
            (Due::NoShim, self.message_at + NO_SHIM)
        } else {
            (Due::Timeout, self.begun + spans.timeout)
        }
    }

    fn ran(self) -> Ran {
        match self.refused {
            Some(refused) => refused,
            // Whatever its shim has not said is not known: it may have been executed.
            None => Ran::Ended { status: self.ended, cause: self.cause, left: self.left },
        }
    }
}

/// Runs scripts in such cells.
pub(crate) struct Keeper<'a, C: Cells> {
    pub(crate) cells: &'a Arc<C>,
    pub(crate) clock: &'a Arc<dyn Clock>,
    pub(crate) told: &'a mut watch::Receiver<Told>,
    pub(crate) output: &'a Output,
    pub(crate) spans: Spans,
    /// Called when its shim has the order to kill it, which it carries out by itself.
    pub(crate) kill_ordered: &'a (dyn Fn() + Sync),
}

impl<C: Cells> Keeper<'_, C> {
    /// Starts it, and returns when all of it is dead; where what it leaves is to live on, when its main process is.
    pub(crate) async fn run(mut self, label: &str, start: Start) -> Ran {
        let leaves_children = start.leaves_children;
        let place = self.cells.place_to_start().await;
        let mut cell = match self.cells.cell(label) {
            Ok(cell) => cell,
            Err(error) => return Ran::Refused(format!("its processes cannot be held: {error}")),
        };
        cell.start(start);
        let (run, is_over) = self.stay_with(&mut cell, place, leaves_children).await;
        if is_over {
            cell.clear().await;
        } else {
            tokio::spawn(of_this_process(stay_with_what_is_left(cell)));
        }
        if self.cells.is_ending() {
            // No end of its own. This process ends, and nobody is to be told anything.
            pending::<()>().await;
        }
        run.ran()
    }

    /// Stays with it until its shim says that nothing is left, or says nothing where it should. True: nothing is left, or must not be.
    async fn stay_with(&mut self, cell: &mut C::Cell, place: Option<OwnedSemaphorePermit>, leaves_children: bool) -> (Run, bool) {
        let mut run = Run::new(place, self.clock.now());
        let mut is_orphaned = false;
        self.obey(&mut run, cell);
        loop {
            let (due, at) = run.due(self.spans);
            let at = self.clock.instant(at);
            let is_silence = due == Due::Silence;
            tokio::select! {
                biased;
                told = self.told.changed(), if !is_orphaned => {
                    is_orphaned = told.is_err();
                    self.obey(&mut run, cell);
                }
                () = sleep_until(at), if !is_silence => self.act(due, &mut run, cell),
                said = cell.next() => match said {
                    FromShim::Said(ToAgent::Empty) | FromShim::Gone => return (run, true),
                    FromShim::Said(said) => self.take_in(&mut run, said),
                },
                () = sleep_until(at), if is_silence => return (run, true),
            }
            // What the main process wrote was told before its end.
            if leaves_children && run.ended.is_some() && !run.killed {
                if run.cause.is_none() {
                    return (run, false);
                }
                // What is made to end leaves nothing.
                self.act(Due::Kill, &mut run, cell);
            }
        }
    }

    fn obey(&self, run: &mut Run, cell: &mut C::Cell) {
        let Told { stop, kill, .. } = self.told.borrow().clone();
        let Some(why) = stop else { return };
        self.stop(run, cell, Cause::Told(why));
        if kill {
            run.kill_at = self.clock.now();
        }
    }

    /// Asks it to end, the first time.
    fn stop(&self, run: &mut Run, cell: &mut C::Cell, cause: Cause) {
        if run.cause.is_none() && run.ended.is_none() {
            (run.cause, run.kill_at) = (Some(cause), self.clock.now() + self.spans.grace);
            cell.signal(Signal::SIGTERM as i32);
        }
    }

    fn act(&self, due: Due, run: &mut Run, cell: &mut C::Cell) {
        match due {
            Due::Timeout => self.stop(run, cell, Cause::Timeout),
            Due::Kill => {
                (run.killed, run.message_at) = (true, self.clock.now());
                cell.kill();
                (self.kill_ordered)();
            }
            Due::NoShim => {
                run.message_at = self.clock.now();
                let cells = Arc::clone(self.cells);
                tokio::spawn(of_this_process(async move { cells.check_spawner().await }));
            }
            Due::Silence => {}
        }
    }

    fn take_in(&self, run: &mut Run, said: ToAgent) {
        run.message_at = self.clock.now();
        match said {
            ToAgent::Ready(_) => (run.has_shim, run.place) = (true, None),
            ToAgent::Refused(why) => run.refused = Some(Ran::Refused(why)),
            ToAgent::TooLate => run.refused = Some(Ran::TooLate),
            ToAgent::Exited(status) => {
                // What it left is killed by its shim.
                (self.kill_ordered)();
                run.ended.get_or_insert(ExitStatus::from_raw(status));
            }
            ToAgent::Left(number) => run.left = number,
            ToAgent::Output(bytes) => self.output.add(Stream::Out, &bytes),
            ToAgent::Errors(bytes) => self.output.add(Stream::Err, &bytes),
            ToAgent::Stuck(what) => tracing::warn!(what, "a script does not end"),
            ToAgent::HeldUp(_) | ToAgent::Forked(_) | ToAgent::Started | ToAgent::Empty => {}
        }
    }
}

/// What it left lives on until it ends, or until this process does: its shim kills it then. What it writes is nobody's.
async fn stay_with_what_is_left(mut cell: impl Cell) {
    while let FromShim::Said(said) = cell.next().await {
        if said == ToAgent::Empty {
            break;
        }
    }
    cell.clear().await;
}

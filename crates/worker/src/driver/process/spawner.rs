//! The one thread that starts processes.
//!
//! The wheel: under worker::driver. The kernel kills a child when the *thread* that started it ends, so this thread lives as long as the
//! agent does. Right before each start it asks the authority's gate.

use std::{io, process::Command, sync::mpsc};

use tokio::{process::Child, runtime::Handle, sync::oneshot};

use crate::authority::Gate;

/// Why nothing was started.
#[derive(Debug)]
pub(super) enum SpawnError {
    /// The gate is shut.
    NoAuthority,
    /// The system refused.
    System(io::Error),
}

struct Job {
    command: Command,
    started: oneshot::Sender<Result<Child, SpawnError>>,
}

/// A handle on the thread.
#[derive(Clone, Debug)]
pub(super) struct Spawner(mpsc::Sender<Job>);

impl Spawner {
    /// Starts the thread. It must be called within a tokio runtime, which then observes the children.
    pub(super) fn start(gate: Gate) -> io::Result<Self> {
        let (jobs, received) = mpsc::channel::<Job>();
        let runtime = Handle::current();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            let _entered = runtime.enter();
            for job in received {
                let result = if gate.is_open() {
                    // The command is dropped with its ends of the pipes, so that the reader sees the end of the output.
                    tokio::process::Command::from(job.command).spawn().map_err(SpawnError::System)
                } else {
                    Err(SpawnError::NoAuthority)
                };
                let _ = job.started.send(result);
            }
        })?;
        Ok(Self(jobs))
    }

    /// Starts a process.
    pub(super) async fn spawn(&self, command: Command) -> Result<Child, SpawnError> {
        let (started, answer) = oneshot::channel();
        let gone = || SpawnError::System(io::Error::other("the thread that starts processes has ended"));
        self.0.send(Job { command, started }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

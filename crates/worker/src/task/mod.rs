//! Tasks: scripts that run once, by an order of the leader.
//!
//! The wheel: beside worker::driver, whose cells hold them. They are bound to their host and not to a session: losing etcd ends none.
//!
//! | file | |
//! |---|---|
//! | `rules.rs` | PURE: what follows from order, record and result |
//! | `runner.rs`, `follow.rs` | looks at each task that has changed; orders and results as they come from etcd |
//! | `ends.rs` | by when the guard ends what this process has not |
//! | `attempt.rs`, `keeper.rs` | the steps of one attempt; its script from the start to the death of all that it started |
//! | `journal.rs` | what is recorded of each attempt, and outlives the agent |
//! | `script.rs`, `accounts.rs`, `output.rs` | its file, environment and secrets; whom it runs as; what it writes |

mod accounts;
mod attempt;
mod ends;
mod follow;
mod journal;
mod keeper;
mod output;
mod rules;
mod runner;
mod script;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use evenkeel_metrics::{counter, gauge};
use evenkeel_model::{Origin, TaskId, WorkerId, task::Outcome};
use evenkeel_store::{Client, keys::Keys, task::of_this_process};
use prometheus_client::{encoding::DescriptorEncoder, metrics::MetricType};
use tokio::sync::{Notify, Semaphore, watch};

pub(crate) use self::{accounts::Accounts, journal::DiskJournal, output::Stream, script::DiskScripts};
pub use self::{
    attempt::Admitted,
    journal::{End, Journal, Record, Stage},
    output::{Output, Stretch},
    runner::{Standing, Tasks},
    script::{Kept, Prepared, Scripts},
};
use self::{attempt::Shared, ends::Ends, runner::Runner};
use crate::{
    driver::process::cells::Cells,
    guard::LinkSender,
    protocol::authority::{Clock, Gate},
};

/// How many scripts a worker runs at once where it is not told otherwise: scripts of people are heavier than they look.
pub const MOST_AT_ONCE: usize = 8;
/// For how long a worker that leaves lets scripts run on.
pub const GRACE: Duration = Duration::from_secs(30);

/// Which scripts a worker runs, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskConfig {
    /// It takes tasks; if not, it rejects each.
    pub is_on: bool,
    /// The accounts that scripts may run as.
    pub accounts: Vec<String>,
    /// How many run at once.
    pub most: usize,
    /// From the request to leave to the kill.
    pub grace: Duration,
}

impl Default for TaskConfig {
    fn default() -> Self {
        Self { is_on: false, accounts: Vec::new(), most: MOST_AT_ONCE, grace: GRACE }
    }
}

/// What tasks run on: of a machine, or of a simulator.
pub struct Ground<C, J, S> {
    /// Which worker it is.
    pub worker: WorkerId,
    /// The connection to etcd.
    pub client: Client,
    /// How its keys are spelled.
    pub keys: Keys,
    /// What holds its scripts.
    pub cells: Arc<C>,
    /// What it records.
    pub journal: J,
    /// How scripts are prepared.
    pub scripts: S,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// What is asked before each start.
    pub gate: Gate,
    /// Of its guard.
    pub origin: Origin,
    /// Where the guard is told by when scripts have to have ended.
    pub link: LinkSender,
}

/// Runs tasks from now on, until the process ends. It must be called within a tokio runtime.
pub fn start<C: Cells, J: Journal, S: Scripts>(config: &TaskConfig, ground: Ground<C, J, S>, counts: Arc<Counts>) -> Tasks {
    let Ground { worker, client, keys, cells, journal, scripts, clock, gate, origin, link } = ground;
    let ends = Ends::new(link);
    let shared = Shared { worker, client, keys, cells, journal, scripts, clock, gate, origin, is_on: config.is_on, counts, ends };
    let (standing, stands) = watch::channel(Standing::default());
    let (busy, is_busy) = watch::channel(false);
    let places = Arc::new(Semaphore::new(config.most));
    let runner = Runner { shared: Arc::new(shared), standing: stands, is_busy: busy, grace: config.grace, places };
    tokio::spawn(of_this_process(runner.run()));
    Tasks { standing: Arc::new(standing), is_busy, grace: config.grace, leave_by: Arc::default() }
}

/// What is counted of tasks.
#[derive(Debug, Default)]
pub struct Counts {
    running: AtomicI64,
    begun: AtomicU64,
    ended: [AtomicU64; 6],
    /// A place is free.
    freed: Notify,
}

impl Counts {
    /// A script is executed, or is no more.
    fn begun(&self, more: i64) {
        self.running.fetch_add(more, Ordering::Relaxed);
        self.begun.fetch_add(u64::from(more > 0), Ordering::Relaxed);
    }

    /// How many scripts are being executed.
    fn running(&self) -> i64 {
        self.running.load(Ordering::Relaxed)
    }

    fn ended(&self, outcome: Outcome) {
        for (count, (of, _)) in self.ended.iter().zip(runner::OUTCOMES) {
            count.fetch_add(u64::from(of == outcome), Ordering::Relaxed);
        }
    }

    /// Writes them out.
    pub(crate) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let running = u64::try_from(self.running.load(Ordering::Relaxed)).unwrap_or_default();
        gauge(encoder, "evenkeel_worker_tasks_running", "Scripts of tasks that run.", running)?;
        let begun = self.begun.load(Ordering::Relaxed);
        counter(encoder, "evenkeel_worker_tasks_begun", "Scripts of tasks that were begun.", begun)?;
        let help = "Scripts of tasks that have ended, by outcome.";
        let mut family = encoder.encode_descriptor("evenkeel_worker_tasks_ended", help, None, MetricType::Counter)?;
        for (count, (_, name)) in self.ended.iter().zip(runner::OUTCOMES) {
            family
                .encode_family(&[("outcome", name)])?
                .encode_counter::<[(&str, &str); 0], _, u64>(&count.load(Ordering::Relaxed), None)?;
        }
        Ok(())
    }
}

/// The output of scripts, for those who ask.
#[derive(Clone, Debug)]
pub(crate) struct Outputs(pub(crate) DiskJournal);

impl Outputs {
    /// What is kept of a stream of an attempt; of the last one, if none is named. None: nothing is kept of it.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) async fn read(&self, id: TaskId, attempt: u32, stream: Stream, tail: Option<usize>) -> io::Result<Option<Vec<u8>>> {
        let journal = self.0.clone();
        let read = tokio::task::spawn_blocking(move || {
            let attempts = journal.attempts(id)?;
            let found = if attempt == 0 { attempts.last().copied() } else { attempts.into_iter().find(|one| *one == attempt) };
            found.map(|attempt| output::read(&journal.folder(id, attempt), stream, tail)).transpose()
        });
        read.await.map_err(io::Error::other)?
    }
}

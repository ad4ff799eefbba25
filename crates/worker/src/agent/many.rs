//! Many workers in one process, which share a client: for tests and measurements.
//!
//! The wheel: whole workers, but for what is a process of its own: the guard, the servers, the data. So nothing but the end of this process ends the work
//! of an agent that hangs, and kinds that have effects outside of it do not belong here.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use evenkeel_model::{Registration, WorkerId};
use evenkeel_store::{Client, keys::Keys};
use tokio::{sync::watch, task::JoinSet};

use super::{Parts, instant::Instant, live, register};
use crate::{
    config::WorkerError,
    driver::{Registry, catalog::Catalog},
    guard::LinkSender,
    protocol::authority::{Clock, Gate, SystemClock, Timing},
    task::{self, Ground, TaskConfig},
};

/// What the workers have in common.
#[derive(Clone, Debug)]
pub struct AgentsConfig {
    /// The connection to etcd, which they share.
    pub client: Client,
    /// Stands before every key.
    pub prefix: String,
    /// Their drivers, which they share.
    pub registry: Registry,
    /// The spans of the ownership protocol. A thousand proofs each half second are two thousand transactions a second.
    pub timing: Timing,
    /// They take tasks, whose scripts end as soon as they begin: nothing is executed.
    pub takes_tasks: bool,
}

/// Workers that live in this process, until this is dropped.
#[derive(Debug)]
pub struct Agents {
    leave: watch::Sender<bool>,
    agents: JoinSet<Result<(), WorkerError>>,
}

impl Agents {
    /// Starts a worker for each id.
    #[must_use]
    pub fn start(config: &AgentsConfig, ids: impl IntoIterator<Item = WorkerId>) -> Self {
        let (leave, leaves) = watch::channel(false);
        let mut agents = JoinSet::new();
        for id in ids {
            agents.spawn(live(config.parts(id, leaves.clone())));
        }
        Self { leave, agents }
    }

    /// Waits until one of them has ended, which none does by itself; never, if there is none.
    ///
    /// # Errors
    /// Why it has ended.
    pub async fn ended(&mut self) -> Result<(), WorkerError> {
        match self.agents.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(WorkerError::Panicked),
            None => std::future::pending().await,
        }
    }

    /// Lets all of them leave: what they run stops, and their ids are given up.
    ///
    /// # Errors
    /// The first that did not leave.
    pub async fn leave(mut self) -> Result<(), WorkerError> {
        self.leave.send_replace(true);
        while !self.agents.is_empty() {
            self.ended().await?;
        }
        Ok(())
    }
}

impl AgentsConfig {
    fn parts(&self, id: WorkerId, leave: watch::Receiver<bool>) -> Parts {
        let Self { client, prefix, registry, timing, takes_tasks } = self.clone();
        let keys = Keys::new(prefix);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        // Nobody can reach it: it serves nothing.
        let address = "127.0.0.1:1".to_owned();
        let registration = Registration {
            kinds: registry.kinds(),
            drivers: registry.traits(),
            authority_ms: Some(timing.authority_ms()),
            origin: register::origin(format!("{:016x}", RandomState::new().hash_one(&id))),
            tasks: takes_tasks,
            ..Registration::bare(id, address)
        };
        let gate = Gate::shut(Arc::clone(&clock));
        let tasks = takes_tasks.then(|| {
            let ground = Ground {
                worker: registration.id.clone(),
                client: client.clone(),
                keys: keys.clone(),
                cells: Arc::new(Instant::new()),
                journal: Instant::new(),
                scripts: Instant::new(),
                clock: Arc::clone(&clock),
                gate: gate.clone(),
                origin: registration.origin.clone(),
                link: LinkSender::new(|_| true),
            };
            task::start(&TaskConfig { is_on: true, ..TaskConfig::default() }, ground, Arc::default())
        });
        Parts {
            client,
            keys,
            registration,
            find_host: None,
            timing,
            gate,
            clock,
            link: LinkSender::new(|_| true),
            leave,
            previous: None,
            registry,
            catalog: Catalog::default(),
            patience: std::time::Duration::MAX,
            tasks,
        }
    }
}

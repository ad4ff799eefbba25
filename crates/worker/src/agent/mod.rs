//! The agent: registers, follows its assignments, does what follows from them, reports, and leaves.
//!
//! The wheel: it joins worker::desired, worker::reconcile, worker::driver and worker::report. It decides nothing that those have not
//! decided: it asks, and carries out. Its guard kills it, and all of its work, if it does not keep proving its session.

mod act;
pub(crate) mod board;
mod change;
mod follow;
mod instant;
pub mod many;
mod proof;
mod register;
mod serve;
mod survivors;
pub(crate) mod table;

use std::{
    process::exit,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use evenkeel_model::{Origin, Registration, Session, WorkerId};
use evenkeel_net::Ports;
use evenkeel_store::{Client, keys::Keys};
use tokio::sync::{mpsc, watch};

use self::{
    board::Board,
    register::{Begun, Registrar},
    serve::{Ended, Serving},
    table::Table,
};
use crate::{
    config::{FindHost, WorkerConfig, WorkerError},
    data_dir::{Cluster, DataDir},
    driver::catalog::Catalog,
    driver::{Event, Noop, ProcessConfig, ProcessDriver, Registry, log},
    guard::{GuardLink, LinkSender, Registered, STATUS_AGAIN},
    hold::{Containment, means_name, spawner::Spawned},
    log_writer,
    protocol::authority::{BootTime, Clock, Gate, SystemClock, Timing},
    protocol::desired::Desired,
    protocol::report::Reporter,
    server::{self, Listeners},
    task::{self, Accounts, Counts, DiskJournal, DiskScripts, Ground, Outputs, Tasks},
};

/// Logs of resources that this worker has not run for so long are removed at its start.
const KEEP_LOGS: Duration = Duration::from_secs(7 * 86_400);

/// What stays the same as long as the agent lives.
struct Agent {
    id: WorkerId,
    keys: Keys,
    client: Client,
    timing: Timing,
    clock: Arc<dyn Clock>,
    gate: Gate,
    link: LinkSender,
    registry: Registry,
    catalog: Catalog,
    board: Arc<Board>,
    events: mpsc::UnboundedSender<Event>,
}

/// What changes, and outlives a session.
struct State {
    table: Table,
    desired: Desired,
    reporter: Reporter,
    events: mpsc::UnboundedReceiver<Event>,
    /// None: it has none.
    tasks: Option<Tasks>,
    leave: watch::Receiver<bool>,
    /// The end that the guard was last told of; none: it was told that nothing runs, or nothing yet.
    guard_told: Option<BootTime>,
}

/// Runs until the worker has left. All work has ended then; after an error the guard ends it.
///
/// # Errors
/// Why it cannot begin or go on: [`WorkerError::exit_status`] tells the guard what to do.
pub async fn run(config: WorkerConfig, mut link: GuardLink) -> Result<(), WorkerError> {
    config.timing.check()?;
    let cluster = Cluster::new(&config.prefix, config.client.endpoints().map(str::to_owned));
    // It is held until this process ends: nobody else writes there.
    let data_dir = DataDir::take(&config.data_dir, config.data_dir_is_given, &cluster).await?;
    let logs = log::Logs::start(data_dir.logs.clone(), config.max_log_bytes, KEEP_LOGS)
        .map_err(|source| WorkerError::System { what: "start the threads of the logs", source })?;
    let spawned = link.take_spawner()?;
    let containment = contain(&config, &link, spawned)?;
    // Each run is a file of this process. The spawner was forked before, so that work has the limit that the worker was given.
    evenkeel_net::raise_descriptors();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let gate = Gate::shut(clock.clone());
    let registry = drivers(&config, &containment)?;
    let catalog = config.catalog.as_deref().map_or_else(|| Ok(Catalog::default()), |path| Catalog::read(path, &registry))?;
    let listeners = Listeners::bind(config.grpc_listen, config.http_listen)?;
    let hello = link.hello;
    let origin = register::origin(link.guard_id());
    let link_sender = link.sender();
    let leave = listen_to_guard(link, Arc::clone(&containment))?;

    let means = means_name(hello.by_cgroup);
    let counts = Arc::<Counts>::default();
    let board = Board::new(config.id.clone(), gate.clone(), clock.clone()).held_by(means).with_logs(logs.clone());
    let board = Arc::new(board.with_tasks(Arc::clone(&counts)));
    let registration = Registration {
        id: config.id.clone(),
        address: register::address(&config.advertise_host, listeners.grpc_port),
        http: register::address(&config.advertise_host, listeners.http_port),
        labels: config.labels.clone(),
        capacity: config.capacity,
        kinds: registry.kinds(),
        drivers: registry.traits(),
        version: config.version.clone(),
        containment: means.to_owned(),
        authority_ms: Some(config.timing.authority_ms()),
        origin,
        attests: None,
        tasks: config.tasks.is_on,
        leaving: false,
        released: false,
        refused: None,
    };
    let journal = DiskJournal::new(data_dir.tasks.clone());
    let outputs = Outputs(journal.clone());
    let tasks = start_tasks(&config, containment, journal, &gate, (registration.origin.clone(), link_sender.clone(), counts));
    let names = config.http_names.with(&config.advertise_host);
    let ports = Ports { grpc: registration.address.clone(), http: registration.http.clone() };
    let served = server::Served { board: Arc::clone(&board), logs, outputs, registry: registry.clone() };
    let _servers = server::serve(listeners, names, ports, served, &config.version);

    let parts = Parts {
        tasks: Some(tasks),
        client: config.client,
        keys: Keys::new(config.prefix),
        registration,
        find_host: config.find_host,
        timing: config.timing,
        clock,
        gate,
        link: link_sender,
        leave,
        previous: hello.previous,
        registry,
        catalog,
        // An agent that follows on one with work must come back whenever etcd does.
        patience: if hello.generation > 1 { Duration::MAX } else { config.etcd_wait },
    };
    live_shown_on(parts, board).await
}

/// What an agent is made of, beside what it shows to others.
pub struct Parts {
    /// The connection to etcd.
    pub client: Client,
    /// How its keys are spelled.
    pub keys: Keys,
    /// What this worker says of itself; what it attests is filled in.
    pub registration: Registration,
    /// Finds the host of its addresses anew for each session; none: they stay as they are.
    pub find_host: Option<FindHost>,
    /// The spans of the ownership protocol.
    pub timing: Timing,
    /// Its clock, which is the guard's too.
    pub clock: Arc<dyn Clock>,
    /// What the drivers ask before each effect.
    pub gate: Gate,
    /// Where it tells the guard what the guard must know.
    pub link: LinkSender,
    /// Turns true when the worker is to leave; its end is the guard's.
    pub leave: watch::Receiver<bool>,
    /// The last session that an agent of the same guard registered.
    pub previous: Option<Registered>,
    /// Its drivers.
    pub registry: Registry,
    /// What names without a kind mean.
    pub catalog: Catalog,
    /// How long it waits for etcd at its start.
    pub patience: Duration,
    /// Its tasks, which run already; none: it has none.
    pub tasks: Option<Tasks>,
}

/// Lives without servers until the worker has left: for whoever runs an agent in another place than a process of its own.
///
/// # Errors
/// Those of [`run`].
pub async fn live(parts: Parts) -> Result<(), WorkerError> {
    let board = Board::new(parts.registration.id.clone(), parts.gate.clone(), parts.clock.clone());
    let board = Arc::new(board.held_by(&parts.registration.containment));
    live_shown_on(parts, board).await
}

async fn live_shown_on(parts: Parts, board: Arc<Board>) -> Result<(), WorkerError> {
    let Parts { client, keys, registration, find_host, timing, clock, gate, link, leave, previous, registry, catalog, patience, tasks } =
        parts;
    let (events, observed) = mpsc::unbounded_channel();
    let id = registration.id.clone();
    let registrar = Registrar {
        client: client.clone(),
        keys: keys.clone(),
        link: link.clone(),
        timing,
        registration,
        find_host,
        registry: registry.clone(),
    };
    let agent = Agent { id, keys, client, timing, clock, gate, link, registry, catalog, board, events };
    let state = State {
        table: Table::default(),
        desired: Desired::default(),
        reporter: Reporter::default(),
        events: observed,
        tasks: tasks.clone(),
        leave,
        guard_told: None,
    };
    agent.live(state, registrar, previous, patience).await?;
    if let Some(mut tasks) = tasks {
        // It may have left without a session.
        tasks.leave().await;
    }
    Ok(())
}

/// Tasks run from now on, whatever session there is.
fn start_tasks(
    config: &WorkerConfig,
    cells: Arc<Containment>,
    journal: DiskJournal,
    gate: &Gate,
    (origin, link, counts): (Origin, LinkSender, Arc<Counts>),
) -> Tasks {
    let scripts = DiskScripts {
        worker: config.id.clone(),
        journal: journal.clone(),
        accounts: Arc::new(Accounts::new(config.tasks.accounts.iter().cloned())),
        mark: cells.mark().to_owned(),
        ends_any_user: cells.ends_any_user(),
        env_pass: config.env_pass.clone(),
    };
    let (worker, client, keys) = (config.id.clone(), config.client.clone(), Keys::new(config.prefix.clone()));
    let (clock, gate) = (Arc::clone(gate.clock()), gate.clone());
    task::start(&config.tasks, Ground { worker, client, keys, cells, journal, scripts, clock, gate, origin, link }, counts)
}

/// Finds out how work is held.
fn contain(config: &WorkerConfig, link: &GuardLink, spawned: Spawned) -> Result<Arc<Containment>, WorkerError> {
    Containment::find(&config.id, link.hello, link.mark(), spawned)
        .map(Arc::new)
        .map_err(|source| WorkerError::System { what: "hold processes", source })
}

fn drivers(config: &WorkerConfig, containment: &Arc<Containment>) -> Result<Registry, WorkerError> {
    let process = ProcessConfig { worker: config.id.clone(), grace: config.timing.grace, env_pass: config.env_pass.clone() };
    let process = ProcessDriver::new(process, Arc::clone(containment));
    Ok(config.more_drivers.clone().with(Arc::new(Noop))?.with(Arc::new(process))?.limited_to(&config.drivers)?)
}

/// Hears a request to leave, and the guard's death: then nobody would end the work but this process.
fn listen_to_guard(link: GuardLink, containment: Arc<Containment>) -> Result<watch::Receiver<bool>, WorkerError> {
    link.listen(move || {
        containment.kill_all();
        tracing::error!("the guard has ended: all work was killed");
        log_writer::flush();
        exit(i32::from(STATUS_AGAIN));
    })
    .map_err(|source| WorkerError::System { what: "listen to the guard", source })
}

impl Agent {
    /// One session after another, until the worker leaves.
    async fn live(
        &self,
        mut state: State,
        registrar: Registrar,
        mut previous: Option<Registered>,
        patience: Duration,
    ) -> Result<(), WorkerError> {
        let mut leave = state.leave.clone();
        let mut asked = async move || {
            // The guard's death ends this process by itself.
            if leave.wait_for(|leave| *leave).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            ready = self.client.wait_ready_noting(patience, |error| self.board.set_waits_for(Some(error.to_string()))) => ready?,
            () = asked() => return Ok(()),
        };
        self.board.set_waits_for(Some("it has not registered yet".to_owned()));
        loop {
            let begun = tokio::select! {
                biased;
                begun = registrar.register(previous, |what| self.board.set_waits_for(Some(what))) => begun?,
                () = asked() => return Ok(()),
            };
            self.board.set_waits_for(None);
            let registered = Registered { session: Session(begun.key.created().0), lease: begun.key.lease() };
            tracing::info!(id = %self.id, session = %registered.session, address = begun.registration.address, "registered");
            self.board.sessions.fetch_add(1, Ordering::Relaxed);
            match self.serve(&mut state, begun).await? {
                Ended::Left => return Ok(()),
                Ended::Lost => previous = Some(registered),
            }
        }
    }

    async fn serve(&self, state: &mut State, begun: Begun) -> Result<Ended, WorkerError> {
        let ended = Serving::begin(self, state, begun).run().await;
        self.gate.open_until(None);
        if let Some(tasks) = &state.tasks {
            tasks.stand(None, false);
        }
        self.board.waits();
        state.desired.begin(None);
        ended
    }

    /// Tells the guard that nothing runs.
    fn disarm_guard(&self, state: &mut State) {
        if state.guard_told.is_some() && self.link.authority(None) {
            state.guard_told = None;
        }
    }
}

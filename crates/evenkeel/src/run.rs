//! From settings to a running master or worker. Nothing is decided here.

use std::{
    ffi::OsString,
    time::{Duration, Instant},
};

use evenkeel_master::MasterConfig;
use evenkeel_store::{Client, Config};
use evenkeel_worker::{
    WorkerConfig, WorkerError, agent,
    guard::{self, GuardConfig, GuardLink, LinkError},
    log_writer,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    listen::found_host,
    service_manager::Manager,
    settings::{MasterSettings, WorkerSettings},
};

/// See the guard's constant of this name.
const ECHO: Duration = Duration::from_millis(300);

/// Runs a master until it is told to end.
pub(crate) fn master(settings: MasterSettings, manager: Option<Manager>) -> Result<u8, Failed> {
    let http = settings.common.http.listen;
    let config = MasterConfig {
        id: settings.id,
        etcd: settings.common.etcd,
        prefix: settings.common.prefix,
        grpc_listen: settings.common.grpc.listen,
        http_listen: settings.common.http.listen,
        grpc_host: settings.common.grpc.host,
        http_host: settings.common.http.host,
        http_names: settings.common.http_names,
        resources: settings.resources,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        lease: settings.spans.master_lease,
        tasks: settings.common.is_closed_or_meant,
        planner: settings.planner,
    };
    // Each connection is a file. Never a worker's limit: its work would inherit it.
    evenkeel_net::raise_descriptors();
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        if let Some(manager) = manager {
            tokio::spawn(manager.tell_of(http));
        }
        reap_as_process_one().map_err(|e| Failed::new(format!("cannot listen for signals: {e}")))?;
        let stop = told_to_end().map_err(|e| Failed::new(format!("cannot listen for signals: {e}")))?;
        evenkeel_master::run(config, stop).await.map_err(|e| Failed::new(e.to_string()))
    });
    // What still serves a caller that does not go is left behind.
    runtime.shutdown_background();
    ended.map(|()| 0)
}

/// Completes at the first SIGINT or SIGTERM; a second one ends the process at once.
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        let mut told = async move || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        told().await;
        tokio::spawn(async move {
            // A second one that comes at once is an echo: some programs signal a process and then its whole group.
            let first = Instant::now();
            while first.elapsed() < ECHO {
                told().await;
            }
            log_writer::flush();
            std::process::exit(130);
        });
    })
}

/// The first process of a container has those for children who have lost their parents there, and no others: a master starts none. A worker's
/// guard reaps whatever comes to it anyway.
fn reap_as_process_one() -> std::io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let mut ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
        }
    });
    Ok(())
}

/// Runs a worker's guard, which starts `evenkeel worker-agent` with the same arguments. No runtime exists yet when this is called.
pub(crate) fn worker(settings: WorkerSettings, arguments: &[OsString]) -> Result<u8, Failed> {
    let program = guard::this_program().map_err(|e| Failed::new(format!("cannot find the own program: {e}")))?;
    let mut args: Vec<OsString> = arguments.iter().skip(1).cloned().collect();
    if let Some(subcommand) = args.iter_mut().find(|a| *a == "worker") {
        *subcommand = "worker-agent".into();
    }
    let arg0 = arguments.first().cloned().unwrap_or_default();
    let config = GuardConfig { program, arg0, args, worker: settings.id, containment: settings.containment.into() };
    guard::run(config).map_err(|e| Failed::new(e.to_string()))
}

/// The exit status of an agent that was called wrongly: once the guard has had a session, what is wrong (a file that is half written) may
/// be right in a moment.
pub(crate) fn status_of_agent(status: u8, link: &Result<GuardLink, LinkError>) -> u8 {
    let has_registered = status != 0 && link.as_ref().is_ok_and(GuardLink::has_registered);
    if has_registered { guard::STATUS_AGAIN } else { status }
}

/// Runs a worker's agent, as the guard's child.
pub(crate) fn worker_agent(settings: WorkerSettings, link: Result<GuardLink, LinkError>, manager: Option<Manager>) -> Result<u8, Failed> {
    let http = settings.common.http.listen;
    let link = link.map_err(|e| Failed::new(e.to_string()))?;
    let has_registered = link.has_registered();
    let failed = |e: WorkerError| Failed { status: e.exit_status(has_registered), line: e.to_string() };
    let client = Client::new(Config::new(settings.common.etcd)).map_err(|e| failed(e.into()))?;
    let mut config = WorkerConfig::new(settings.id, client, settings.data_dir);
    config.data_dir_is_given = settings.data_dir_is_given;
    config.prefix = settings.common.prefix;
    config.grpc_listen = settings.common.grpc.listen;
    config.http_listen = settings.common.http.listen;
    config.find_host = settings.common.grpc.is_found.then_some(found_host as _);
    config.advertise_host = settings.common.grpc.host;
    config.http_names = settings.common.http_names;
    config.labels = settings.labels;
    config.capacity = settings.capacity;
    config.catalog = settings.catalog;
    config.drivers = settings.drivers;
    config.env_pass = settings.env_pass;
    config.tasks = settings.tasks;
    config.timing = settings.spans.timing;
    config.version = env!("CARGO_PKG_VERSION").to_owned();
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        if let Some(manager) = manager {
            tokio::spawn(manager.tell_of(http));
        }
        agent::run(config, link).await.map_err(failed)
    });
    runtime.shutdown_background();
    ended.map(|()| 0)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| Failed::new(format!("cannot start: {e}")))
}

/// Why it ended: one line that names the thing and the way out, and the exit status.
pub(crate) struct Failed {
    pub(crate) status: u8,
    pub(crate) line: String,
}

impl Failed {
    fn new(line: String) -> Self {
        Self { status: 1, line }
    }
}

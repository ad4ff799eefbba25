//! A worker in a few lines, and what the tests of real processes run: `worker '{"etcd": ["http://127.0.0.1:2379"], "id": "worker-1", "data_dir": "/tmp/w"}'`.
//!
//! The wheel: all of worker::guard and worker::agent in two processes. It checks nothing of what it is told: `evenkeel worker` does.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use evenkeel_model::{Labels, WorkerId};
use evenkeel_store::{Client, Config};
use evenkeel_worker::{
    ContainmentMode, WorkerConfig, agent,
    driver::in_process::{Failure, InProcess, Kind, Piece, Update},
    guard::{self, GuardConfig, GuardLink},
    log_writer,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    etcd: Vec<String>,
    id: WorkerId,
    data_dir: PathBuf,
    /// Empty: auto.
    #[serde(default)]
    containment: String,
    #[serde(default)]
    grpc_port: u16,
    #[serde(default)]
    drivers: Vec<String>,
    catalog: Option<PathBuf>,
    #[serde(default)]
    labels: Labels,
    /// Whether it has the kind `piece`.
    #[serde(default)]
    in_process: bool,
    /// The accounts that scripts may run as; none: it takes no tasks.
    task_accounts: Option<Vec<String>>,
    task_max: Option<usize>,
    task_grace_ms: Option<u64>,
}

/// A kind that runs inside the worker: it says what it is told to say, and ends when it is told to.
struct Pieces;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PieceSpec {
    says: String,
    /// It keeps its thread, and ends only with its process.
    #[serde(default)]
    blocks: bool,
}

impl Kind for Pieces {
    type Spec = PieceSpec;

    fn updates(&self) -> bool {
        true
    }

    async fn run(&self, piece: Piece<PieceSpec>) -> Result<(), Failure> {
        let mut spec = piece.spec();
        piece.log().line(&spec.says);
        if spec.blocks {
            loop {
                std::thread::park();
            }
        }
        loop {
            tokio::select! {
                _ = piece.stopping() => return Ok(()),
                new = piece.changed(&spec) => spec = new,
            }
            piece.log().line(&spec.says);
        }
    }

    async fn update(&self, _: &Piece<PieceSpec>, _: &PieceSpec) -> Update {
        Update::Taken
    }
}

fn main() -> ExitCode {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info,evenkeel_worker=debug".to_owned());
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_agent = args.len() == 2;
    // First of all: it forks, and the log has a thread.
    let link = is_agent.then(|| GuardLink::open().expect("the guard's link"));
    if !is_agent {
        guard::prepare();
    }
    let writer = log_writer::stderr().expect("the log's thread");
    tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).with_env_filter(filter).init();
    let text = args.last().and_then(|arg| arg.to_str()).expect("usage: worker JSON");
    let given: Given = serde_json::from_str(text).expect("what is given");
    let status = match link {
        Some(link) => run_agent(given, link),
        None => run_guard(&given, args),
    };
    log_writer::flush();
    ExitCode::from(status)
}

fn run_guard(given: &Given, mut args: Vec<OsString>) -> u8 {
    args.insert(0, "agent".into());
    let containment = match given.containment.as_str() {
        "" => ContainmentMode::Auto,
        "cgroup" => ContainmentMode::Cgroup,
        "processes" => ContainmentMode::Processes,
        other => panic!("unknown containment {other:?}; use one of cgroup, processes"),
    };
    let program = guard::this_program().expect("this program");
    let arg0 = std::env::args_os().next().unwrap_or_default();
    guard::run(GuardConfig { program, arg0, args, worker: given.id.clone(), containment }).unwrap_or_else(|error| {
        tracing::error!(%error);
        1
    })
}

fn run_agent(given: Given, link: GuardLink) -> u8 {
    let has_registered = link.has_registered();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let result = runtime.block_on(async {
        let client = Client::new(Config::new(given.etcd)).expect("endpoints");
        let mut config = WorkerConfig::new(given.id, client, given.data_dir);
        config.grpc_listen.set_port(given.grpc_port);
        (config.drivers, config.catalog, config.labels) = (given.drivers, given.catalog, given.labels);
        config.tasks.is_on = given.task_accounts.is_some();
        config.tasks.accounts = given.task_accounts.unwrap_or_default();
        config.tasks.most = given.task_max.unwrap_or(config.tasks.most);
        config.tasks.grace = given.task_grace_ms.map_or(config.tasks.grace, Duration::from_millis);
        if given.in_process {
            config = config.with_driver(Arc::new(InProcess::new("piece", Pieces)))?;
        }
        agent::run(config, link).await
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error);
            error.exit_status(has_registered)
        }
    }
}

//! The client commands: each asks any master and prints the answer. They decide nothing about the cluster.

mod add;
mod apply;
mod brake;
mod convert;
mod delete;
mod drain;
mod error;
mod events;
mod explain;
mod get;
mod grpc_only;
mod logs;
mod nodes;
mod plan;
pub(crate) mod session;
mod source;
mod task;
mod usage;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use evenkeel_model::Selector;
use serde_json::Value;

pub(crate) use self::error::ClientError;
use self::session::Session;
use crate::output::{self, Format};

/// The masters of one machine: `evenkeel dev` and docker-compose.yml run two of them.
const USUAL_MASTERS: [&str; 2] = ["http://127.0.0.1:9091", "http://127.0.0.1:9092"];

/// Which master is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct MasterArg {
    /// Masters' gRPC addresses; any of them takes any command, and the next is asked where one does not answer
    #[arg(long, value_name = "URL", env = "EVENKEEL_MASTER", value_delimiter = ',', default_values = USUAL_MASTERS, value_parser = crate::settings::url, hide_env = true)]
    master: Vec<String>,
}

/// How the answer is printed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArg {
    /// How the answer is printed
    #[arg(short, long, value_name = "FORMAT", env = "EVENKEEL_OUTPUT", value_enum, default_value = "table", hide_env = true)]
    output: Format,
}

/// What most commands have.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    master: MasterArg,
    #[command(flatten)]
    output: OutputArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add one resource
    Add(Box<add::AddArgs>),
    /// Bring the cluster to what files say: adds, changes and, with --prune, deletes
    Apply(apply::ApplyArgs),
    /// Delete resources: their work is told to stop
    Delete(delete::DeleteArgs),
    /// Show resources, where they run and how they are
    Get(get::GetArgs),
    /// Print what a resource's process wrote
    Logs(logs::LogsArgs),
    /// Show the workers
    Workers(nodes::ListArgs),
    /// Show the masters, and which of them leads
    Masters(nodes::ListArgs),
    /// Say why a resource is where it is, or why it is nowhere
    Explain(explain::ExplainArgs),
    /// Show what happened: who moved what, when and why
    Events(events::EventsArgs),
    /// Show what the leader does next, or would do if something were so
    Plan(plan::PlanArgs),
    /// Place nothing more on a worker
    Cordon(nodes::WorkerArgs),
    /// Place on a worker again
    Uncordon(nodes::WorkerArgs),
    /// Cordon a worker and move what it runs
    Drain(drain::DrainArgs),
    /// Show whether too many workers are gone for their work to be moved, or release it all the same
    Brake(brake::BrakeArgs),
    /// Show the inventories that the leader follows, and release what they hold
    Source(source::SourceArgs),
    /// Run a script once on each of the chosen workers, and see what came of it
    Task(task::TaskArgs),
}

/// Runs one command to its exit status.
pub(crate) fn run(command: Command) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return ClientError::Failed(format!("no threads can be started: {e}")).report(),
    };
    match runtime.block_on(dispatch(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

async fn dispatch(command: Command) -> Result<(), ClientError> {
    match command {
        Command::Add(args) => add::run(*args).await,
        Command::Apply(args) => apply::run(args).await,
        Command::Delete(args) => delete::run(args).await,
        Command::Get(args) => get::run(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Workers(args) => nodes::workers(args).await,
        Command::Masters(args) => nodes::masters(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Events(args) => events::run(args).await,
        Command::Plan(args) => plan::run(args).await,
        Command::Cordon(args) => nodes::cordon(args).await,
        Command::Uncordon(args) => nodes::uncordon(args).await,
        Command::Drain(args) => drain::run(args).await,
        Command::Brake(args) => brake::run(args).await,
        Command::Source(args) => source::run(args).await,
        Command::Task(args) => task::run(args).await,
    }
}

impl MasterArg {
    fn session(self) -> Session {
        Session::new(self.master)
    }
}

/// A selector as the flag takes it: checked here, and sent as it was written.
fn selector(text: &str) -> Result<Selector, String> {
    text.parse().map_err(|e: evenkeel_model::SelectorError| e.to_string())
}

/// What a list is printed as, apart from the table.
struct Listing<'a> {
    values: Vec<Value>,
    names: Vec<&'a str>,
}

/// Prints a list in the chosen form; the table is only made when it is wanted.
fn print_list(format: Format, listing: Listing<'_>, table: impl FnOnce() -> String) -> Result<(), ClientError> {
    let text = match format {
        Format::Table | Format::Wide => table(),
        Format::Json => output::json(&listing.values),
        Format::Yaml => output::yaml(&listing.values),
        Format::Name => listing.names.iter().map(|name| format!("{name}\n")).collect(),
    };
    Ok(output::write(text.as_bytes())?)
}

/// Prints one thing in the chosen form.
fn print_one(format: Format, value: &Value, name: &str, text: impl FnOnce() -> String) -> Result<(), ClientError> {
    let text = match format {
        Format::Table | Format::Wide => text(),
        Format::Json => output::json(value),
        Format::Yaml => output::yaml(value),
        Format::Name => format!("{name}\n"),
    };
    Ok(output::write(text.as_bytes())?)
}

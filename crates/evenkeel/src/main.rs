//! The binary: master, worker, dev and the client commands.
//!
//! The wheel: store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report. This crate starts its parts and speaks to it from outside;
//! it holds no rule of the cluster.
//!
//! `main` stays synchronous: a worker's guard must run before any thread of a runtime exists. The log's writer alone is one of its own.

mod bench;
mod cli;
mod client;
mod config_file;
mod dev;
mod files;
mod health;
mod listen;
mod log;
mod output;
mod placement;
mod run;
mod service_manager;
mod settings;
mod tied;
mod timing;

use std::{ffi::OsString, io::Write, path::PathBuf, process::ExitCode};

use cli::{Command, WRONG_USAGE};
use evenkeel_worker::{
    guard::{self, GuardLink},
    log_writer,
};
use service_manager::Manager;
use settings::{CommonArgs, Surroundings};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let command = match cli::parse(&arguments) {
        Ok(cli) => cli.command,
        Err(error) => {
            // The caller may have gone; there is nobody to tell that to.
            let _ = error.print();
            let status = u8::try_from(error.exit_code()).unwrap_or(WRONG_USAGE);
            let is_agent = arguments.get(1).is_some_and(|subcommand| subcommand == "worker-agent");
            return ExitCode::from(if is_agent { run::status_of_agent(status, &GuardLink::open()) } else { status });
        }
    };
    match command {
        Command::Master(args) => logged(&args.common.clone(), WRONG_USAGE, args.settle(&surroundings()), |settings| {
            log::tell(&settings.common.notes);
            run::master(settings, Manager::from_environment())
        }),
        Command::Worker(args) => {
            guard::prepare();
            logged(&args.common.clone(), WRONG_USAGE, args.settle(&surroundings()), |settings| run::worker(settings, &arguments))
        }
        Command::WorkerAgent(args) => {
            // First of all: it forks, and the log has a thread.
            let link = GuardLink::open();
            let wrong_usage = run::status_of_agent(WRONG_USAGE, &link);
            logged(&args.common.clone(), wrong_usage, args.settle(&surroundings()), |settings| {
                log::tell(&settings.common.notes);
                run::worker_agent(settings, link, Manager::from_environment())
            })
        }
        Command::Dev(args) => dev::run(&args),
        Command::Health(args) => match health::run(&args) {
            Ok(ready) => print(ready.as_bytes()),
            Err(why) => failed(&why, 1),
        },
        Command::Bench(args) => bench::run(&args),
        Command::Tied(args) => failed(&tied::run(args), 1),
        Command::Client(command) => client::run(command),
        Command::Completions { shell } => completions(shell),
        Command::Version => print(concat!("evenkeel ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()),
    }
}

/// Runs what has a log. Settings that are wrong are wrong usage; what fails later is not.
fn logged<S>(args: &CommonArgs, wrong_usage: u8, settings: Result<S, String>, run: impl FnOnce(S) -> Result<u8, run::Failed>) -> ExitCode {
    if let Err(error) = log::start(args) {
        return failed(&format!("cannot start the log: {error}"), 1);
    }
    let ended = settings.map(run);
    log_writer::flush();
    match ended {
        Err(wrong) => failed(&wrong, wrong_usage),
        Ok(Err(error)) => failed(&error.line, error.status),
        Ok(Ok(status)) => ExitCode::from(status),
    }
}

fn failed(line: &str, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {line}");
    ExitCode::from(status)
}

/// A reader that has gone needs no error.
fn print(bytes: &[u8]) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut <cli::Cli as clap::CommandFactory>::command(), "evenkeel", &mut script);
    print(&script)
}

/// The only place that asks the environment for more than flags.
fn surroundings() -> Surroundings<'static> {
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    Surroundings { hostname, state_dir: state_dir(), host: &listen::ThisHost }
}

/// As the XDG rules have it, and `/var/lib` for root.
fn state_dir() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/evenkeel".into();
    }
    let base = of("XDG_STATE_HOME").or_else(|| of("HOME").map(|home| home.join(".local/state"))).unwrap_or_else(std::env::temp_dir);
    base.join("evenkeel")
}

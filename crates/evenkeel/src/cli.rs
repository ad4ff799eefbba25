//! The command line as a whole: the subcommands, and how flags, environment, file and defaults come together.
//!
//! It decides what was asked for. It must not do any of it.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use crate::{
    bench::BenchArgs,
    client, config_file,
    health::HealthArgs,
    settings::{DevArgs, MasterArgs, WorkerArgs},
    tied::TiedArgs,
};

/// The largest exit status of all that is wrong with how the command was called: nothing was done.
pub(crate) const WRONG_USAGE: u8 = 2;

/// Keeps many long-lived pieces of work running on a pool of workers: each on exactly one, evenly, and moved when a worker is lost.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, arg_required_else_help = true, infer_long_args = false)]
#[command(after_help = "A flag beats EVENKEEL_<FLAG> in the environment, which beats the file of --config.\n\
    Exit status: 0 done, 1 refused or failed, 2 wrong usage (nothing was sent).")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a master: elects a leader with the others, places resources, answers the API
    Master(MasterArgs),
    /// Run a worker: runs the resources that the leader gives it
    Worker(WorkerArgs),
    /// The process inside a worker that talks to etcd; its guard starts it
    #[command(hide = true)]
    WorkerAgent(WorkerArgs),
    /// Try it: etcd, masters and workers on this machine, until Ctrl+C
    Dev(DevArgs),
    /// Ask the master or worker on this machine whether it is ready
    Health(HealthArgs),
    /// Measure Evenkeel beside what etcd does by itself
    Bench(BenchArgs),
    /// Become a program that ends when the given parent does
    #[command(hide = true)]
    Tied(TiedArgs),
    #[command(flatten)]
    Client(client::Command),
    /// Print a script that completes commands and flags: source it in your shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// Reads the command line, the environment, and the file that one of them names.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(arguments).map_err(|e| name_environment(e, arguments))?;
    let matches = match config_path(&matches) {
        None => matches,
        Some(path) => {
            let values = config_file::read(&path, &command).map_err(|e| wrong(&command, &e.to_string()))?;
            let command = config_file::with_defaults(command, &values);
            command.try_get_matches_from(arguments).map_err(|e| name_environment(e, arguments))?
        }
    };
    Cli::from_arg_matches(&matches)
}

fn wrong(command: &clap::Command, text: &str) -> clap::Error {
    command.clone().error(ErrorKind::ValueValidation, text)
}

fn config_path(matches: &clap::ArgMatches) -> Option<std::path::PathBuf> {
    let (_, of_subcommand) = matches.subcommand()?;
    match of_subcommand.try_contains_id("config") {
        Ok(true) => of_subcommand.get_one::<std::path::PathBuf>("config").cloned(),
        _ => None,
    }
}

/// A value that is wrong may come from the environment, which clap does not say.
fn name_environment(mut error: clap::Error, arguments: &[OsString]) -> clap::Error {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return error };
    let Some(flag) = argument.strip_prefix("--").and_then(|a| a.split([' ', '=']).next()) else { return error };
    let given =
        arguments.iter().filter_map(|a| a.to_str()).any(|a| a.strip_prefix("--").is_some_and(|a| a.split('=').next() == Some(flag)));
    let variable = format!("EVENKEEL_{}", flag.to_uppercase().replace('-', "_"));
    if !given && std::env::var_os(&variable).is_some() {
        let named = format!("{argument}, from {variable}");
        error.insert(ContextKind::InvalidArg, ContextValue::String(named));
    }
    error
}

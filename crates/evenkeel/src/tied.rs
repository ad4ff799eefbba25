//! `evenkeel tied`: becomes another program after having asked the kernel to end it when its parent ends.
//!
//! `dev` starts its children through it, so that none outlives a `dev` that was killed. Where the kernel has no such wish the program
//! just runs.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct TiedArgs {
    /// The process id that must still be the parent
    #[arg(long)]
    parent: u32,
    /// How it is to end
    #[arg(long, value_enum)]
    signal: EndSignal,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// The signal that a child gets when its parent is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EndSignal {
    /// It has something to put in order.
    Term,
    /// It has not.
    Kill,
}

impl EndSignal {
    /// As the command line has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Term => "term",
            Self::Kill => "kill",
        }
    }
}

/// Returns only when the program cannot be started, with the reason.
pub(crate) fn run(args: TiedArgs) -> String {
    if let Err(problem) = tie(&args) {
        return problem;
    }
    let mut program = args.program.into_iter();
    let Some(path) = program.next() else { return "no program was named".to_owned() };
    let error = Command::new(&path).args(program).exec();
    format!("{}: cannot be started: {error}", path.display())
}

#[cfg(target_os = "linux")]
fn tie(args: &TiedArgs) -> Result<(), String> {
    use nix::sys::{prctl, signal::Signal};
    let signal = match args.signal {
        EndSignal::Term => Signal::SIGTERM,
        EndSignal::Kill => Signal::SIGKILL,
    };
    prctl::set_pdeathsig(signal).map_err(|e| format!("cannot be tied to its parent: {e}"))?;
    // The parent may have gone before the wish was known.
    if std::os::unix::process::parent_id() == args.parent { Ok(()) } else { Err("the parent is gone already".to_owned()) }
}

#[cfg(not(target_os = "linux"))]
fn tie(_args: &TiedArgs) -> Result<(), String> {
    Ok(())
}

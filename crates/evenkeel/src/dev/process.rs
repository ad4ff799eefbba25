//! The child processes of `dev`: started so that they end with it, logging into files, ended in order.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use crate::tied::EndSignal;

/// What is to be started.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// As people call it: master-1.
    pub(super) id: String,
    /// The subcommand and its flags.
    pub(super) arguments: Vec<OsString>,
    /// How it ends when `dev` is killed.
    pub(super) when_orphaned: EndSignal,
}

/// A child that was started.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: String,
    pub(super) pid: u32,
    pub(super) log: PathBuf,
    arguments: Vec<OsString>,
    child: Option<Child>,
}

/// Starts one. It has a process group of its own, so that Ctrl+C at a terminal reaches `dev` alone, which then ends all in order.
pub(super) fn start(binary: &Path, recipe: Recipe, logs: &Path) -> io::Result<Process> {
    let log = logs.join(format!("{}.log", recipe.id));
    let out = File::create(&log)?;
    let err = out.try_clone()?;
    let mut command = Command::new(binary);
    command.arg("tied").arg("--parent").arg(std::process::id().to_string()).arg("--signal").arg(recipe.when_orphaned.as_str());
    command.arg("--").arg(binary).args(&recipe.arguments);
    command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0).kill_on_drop(true);
    // What is meant for `dev` is passed on as flags; anything else would change its children behind its back.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVENKEEL_") {
            command.env_remove(name);
        }
    }
    let child = command.spawn()?;
    let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
    Ok(Process { id: recipe.id, pid, log, arguments: recipe.arguments, child: Some(child) })
}

impl Process {
    /// Its exit status, told once.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }

    pub(super) fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The command line that starts it again, as it can be pasted into a shell.
    pub(super) fn command_line(&self, program: &str) -> String {
        let words = self.arguments.iter().map(|word| quoted(&word.to_string_lossy()));
        std::iter::once(quoted(program)).chain(words).collect::<Vec<_>>().join(" ")
    }

    /// The last lines of its log.
    pub(super) fn tail(&self, lines: usize) -> Vec<String> {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| crate::output::printable(line)).collect()
    }

    fn signal(&self, signal: Signal) {
        if let (true, Ok(pid)) = (self.runs(), i32::try_from(self.pid)) {
            // While it is not waited for, its id is its own; should it have ended, there is nobody to tell.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Ends some: asks all of them, waits, and kills those that are left.
pub(super) async fn end(processes: &mut [Process], bound: Duration) {
    processes.iter().for_each(|process| process.signal(Signal::SIGTERM));
    let all = async {
        for process in processes.iter_mut() {
            if let Some(child) = &mut process.child {
                let _ = child.wait().await;
                process.child = None;
            }
        }
    };
    if tokio::time::timeout(bound, all).await.is_err() {
        kill_all(processes).await;
    }
}

/// Kills those that are left and waits for their end.
pub(super) async fn kill_all(processes: &mut [Process]) {
    for process in processes {
        if let Some(mut child) = process.child.take() {
            let _ = child.kill().await;
        }
    }
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '=' | ',' | '@' | '+' | '%');
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for (word, expected) in
            [("--id", "--id"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$HOME", "'$HOME'"), ("/tmp/x-1", "/tmp/x-1")]
        {
            assert_eq!(quoted(word), expected);
        }
    }
}

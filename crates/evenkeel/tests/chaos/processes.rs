//! Processes of a scenario, found by what they have in their environment: all of it, those of one host, those of the work.
//!
//! Beside the wheel. It signals only what bears the mark of its own scenario.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{oracle::Alive, support::NAME_MARK};

/// The variable whose value is the folder of the scenario.
pub(crate) const STAGE_MARK: &str = "CHAOS_STAGE";

/// One process that bears the mark.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) pid: Pid,
    /// What it belongs to: a master, or a worker with all of its work.
    pub(crate) name: String,
    /// For work: its resource and epoch.
    pub(crate) work: Option<(String, u64)>,
    /// Its command line.
    pub(crate) line: String,
}

impl Found {
    /// Whether it is a resource's own process, as against what that has started.
    pub(crate) fn is_main(&self) -> bool {
        self.work.is_some() && self.line.ends_with(" work ")
    }
}

/// Every process of a scenario. One that waits to be reaped is none.
pub(crate) fn all(folder: &Path) -> Vec<Found> {
    let mark = format!("{STAGE_MARK}={}", folder.display());
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| found(entry.file_name().to_str()?.parse().ok()?, &mark)).collect()
}

fn found(pid: i32, mark: &str) -> Option<Found> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let words: Vec<&str> = environment.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    words.contains(&mark).then_some(())?;
    let work = value("EVENKEEL_RESOURCE").and_then(|name| Some((name.to_owned(), value("EVENKEEL_EPOCH")?.parse().ok()?)));
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    Some(Found { pid: Pid::from_raw(pid), name: value(NAME_MARK).unwrap_or_default().to_owned(), work, line })
}

/// The work that is alive, as the oracle wants it.
pub(crate) fn alive(found: &[Found]) -> Vec<Alive> {
    let alive = |one: &Found| {
        let (resource, epoch) = one.work.clone()?;
        Some(Alive { resource, epoch, pid: one.pid.as_raw() })
    };
    found.iter().filter(|one| one.is_main()).filter_map(alive).collect()
}

/// Sends a signal to each. One that has ended in between needs none.
pub(crate) fn signal_all(found: &[Found], signal: Signal) {
    for one in found {
        let _ = signal::kill(one.pid, signal);
    }
}

/// Kills whatever is meant until nothing of it is left.
pub(crate) fn end(folder: &Path, is_meant: impl Fn(&Found) -> bool) {
    loop {
        let found: Vec<Found> = all(folder).into_iter().filter(|one| is_meant(one)).collect();
        if found.is_empty() {
            return;
        }
        signal_all(&found, Signal::SIGKILL);
        std::thread::yield_now();
    }
}

/// Ends all of a scenario should this process end without doing so: a shell that waits at a pipe which only we hold open.
pub(crate) fn watchdog(folder: &Path) -> Child {
    let mark = format!("{STAGE_MARK}={}", folder.display());
    let script = format!(
        "read -r _; for round in 1 2 3 4 5; do for p in /proc/[0-9]*; do \
         grep -qzxF '{mark}' $p/environ && kill -9 ${{p#/proc/}}; done; sleep 0.2; done; rm -rf '{}'",
        folder.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().expect("a shell")
}

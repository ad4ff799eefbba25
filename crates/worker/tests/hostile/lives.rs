//! Who lives of a test's work, whatever it did to hide: each run bears a limit that no other has, which is inherited by every child,
//! cannot be raised again without rights, and can be read by everybody.
//!
//! Beside the wheel. It knows nothing of workers, so that it can judge them; it ends only what bears a limit of its own test.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::is_dead;

/// How many runs a test may have.
const RUNS: u64 = 128;
/// How many tests have a room of their own below the usual limit of 819,200.
const ROOMS: u64 = 6_000;

/// A process that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Living {
    pub(crate) pid: i32,
    /// Its name and command line, for people.
    pub(crate) line: String,
}

/// The limits of one test: the largest size of a message queue, which nothing here has.
#[derive(Debug)]
pub(crate) struct Lives {
    base: u64,
    watchdog: Child,
}

impl Lives {
    /// Rooms that nobody uses. `script` is `work.py`, which ends the work should this process end without doing so.
    pub(crate) fn new(script: &Path) -> Self {
        static TESTS: AtomicU64 = AtomicU64::new(0);
        let drawn = u64::from(std::process::id()).wrapping_mul(7) + TESTS.fetch_add(1, Ordering::Relaxed);
        let rooms = (0..ROOMS).map(|next| RUNS * (1 + (drawn + next) % ROOMS));
        let taken: Vec<u64> = limits().into_iter().map(|(_, limit)| limit / RUNS).collect();
        let base = rooms.into_iter().find(|base| !taken.contains(&(base / RUNS))).expect("a room");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).args(["watch", &base.to_string(), &(base + RUNS - 1).to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut watchdog = command.spawn().expect("python3");
        // It is there before anything is.
        watchdog.stdin.as_mut().expect("a pipe").write_all(b" ").expect("written");
        Self { base, watchdog }
    }

    /// A command line that has the limit of this run and then is the program.
    pub(crate) fn command(&self, run: usize, program: &[&str]) -> Vec<String> {
        let limit = self.base + u64::try_from(run).expect("a number");
        assert!(limit < self.base + RUNS, "a test has at most {RUNS} runs");
        let first = ["/usr/bin/prlimit".to_owned(), format!("--msgqueue={limit}:{limit}"), "--".to_owned()];
        first.into_iter().chain(program.iter().map(|word| (*word).to_owned())).collect()
    }

    /// Everything that lives, by run. A list is read process by process, so that one that hops could slip through a single one.
    pub(crate) fn all(&self) -> BTreeMap<usize, Vec<Living>> {
        let mut found: BTreeMap<usize, Vec<Living>> = BTreeMap::new();
        for (pid, limit) in limits() {
            if (self.base..self.base + RUNS).contains(&limit) && !is_dead(pid) {
                let text = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let line = String::from_utf8_lossy(&text("cmdline")).replace('\0', " ");
                let name = String::from_utf8_lossy(&text("comm")).trim_end().to_owned();
                let run = usize::try_from(limit - self.base).expect("a number");
                found.entry(run).or_default().push(Living { pid, line: format!("{name:?}: {line}") });
            }
        }
        found
    }

    /// Whether a process is work of this test; none if it has ended.
    pub(crate) fn is_work(&self, pid: i32) -> Option<bool> {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        (!is_dead(pid)).then(|| limit_of(&limits).is_some_and(|limit| (self.base..self.base + RUNS).contains(&limit)))
    }

    /// What lives of one run.
    pub(crate) fn of(&self, run: usize) -> Vec<Living> {
        self.all().remove(&run).unwrap_or_default()
    }

    /// Several lists, and nobody in any of them.
    pub(crate) fn nothing_lives(&self) {
        for _ in 0..5 {
            assert_eq!(self.all(), BTreeMap::new());
        }
    }

    /// Several lists, and nobody of this run in any of them.
    pub(crate) fn nothing_lives_of(&self, run: usize, what: &str) {
        for _ in 0..2 {
            assert_eq!(self.of(run), Vec::new(), "{what}");
        }
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        // Stopped first: what forks faster than it is killed stands still.
        let begun = Instant::now();
        loop {
            let found: Vec<Living> = self.all().into_values().flatten().collect();
            if found.is_empty() {
                break;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                eprintln!("this test leaves behind {found:?}");
                break;
            }
            for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
                for living in &found {
                    let _ = kill(Pid::from_raw(living.pid), signal);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.watchdog.kill().and_then(|()| self.watchdog.wait());
    }
}

/// The limit of each process whose limit is a number.
fn limits() -> Vec<(i32, u64)> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, limit_of(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)?))).collect()
}

fn limit_of(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max msgqueue size"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The oracle is tried itself.
pub(crate) fn a_limit_is_read() {
    let text = "Max pending signals       96551                96551                signals   \n\
                Max msgqueue size         17                   4711                 bytes     \n";
    assert_eq!((limit_of(text), limit_of("")), (Some(4711), None));
}

/// Whatever a process does to hide, it is found: an orphan without environment, session and files.
pub(crate) fn what_hides_is_found(folder: &Path) {
    let script = folder.join("work.py");
    fs::write(&script, crate::kinds::WORK).expect("written");
    let lives = Lives::new(&script);
    lives.nothing_lives();
    for (run, kind) in ["closed", "hidden", "headless"].into_iter().enumerate() {
        let line = lives.command(run, &["/usr/bin/python3", script.to_str().expect("utf-8"), kind]);
        let mut child = Command::new(&line[0]).args(&line[1..]).env("DIR", folder).env("NAME", kind).spawn().expect("started");
        let begun = Instant::now();
        while !folder.join(format!("{kind}.ready")).exists() {
            assert!(begun.elapsed() < crate::support::DEADLINE, "{kind}");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().and_then(|()| child.wait()).expect("killed");
        assert_eq!(lives.of(run).len(), 1, "{kind}: {:?}", lives.all());
    }
    assert_eq!(lives.all().len(), 3);
}

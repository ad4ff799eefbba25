//! An etcd of our own: one member or several, as child processes on this machine.
//!
//! Beside the wheel: `evenkeel dev`, the benchmark and the tests run on it. It starts, breaks and ends only processes of its own, and
//! nothing of production depends on it.
//!
//! # That nothing is left behind
//!
//! Members are killed when this is dropped. In case the process dies before it can, each member has a watchdog: a shell that waits at a
//! pipe which only we hold open, and kills the member when the pipe ends. That works on every Unix and whichever thread of ours started
//! the member. Members are in process groups of their own, so that Ctrl+C at a terminal reaches us and not them.

use std::{
    fs, io,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use evenkeel_store::{Client, Config, Error};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};
use tracing::debug;

/// How long a member may take to answer after its start.
const START_BOUND: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// How often other ports are tried when somebody else was faster.
const PORT_TRIES: usize = 10;
/// Where free ports are looked for: below what systems hand out for outgoing connections. A port from there could be taken by any
/// client while its member is down, even by a client of that member that connects to itself.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// How much of a member's log an error shows. The beginning is there for wrong flags, after which etcd prints its whole usage.
const HEAD_LINES: usize = 3;
const TAIL_LINES: usize = 12;
/// `--unsafe-no-fsync` is there from this version on.
const NO_FSYNC_SINCE: (u32, u32) = (3, 5);

/// Which ports the members listen on, at 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Any that are free.
    Free,
    /// These if they are free, else any. Only the first member gets them.
    Prefer {
        /// For clients.
        client: u16,
        /// For other members.
        peer: u16,
    },
    /// Exactly these, one entry for each member.
    Given(Vec<MemberPorts>),
}

/// Where one member listens, and where the others look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberPorts {
    /// For clients.
    pub client: u16,
    /// For other members.
    pub peer: u16,
    /// What the other members are told to dial: `peer`, or the port of something that stands before it.
    pub peer_front: u16,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The etcd binary; none: the one in PATH.
    pub binary: Option<PathBuf>,
    /// A folder for data and logs. It is not removed.
    pub dir: PathBuf,
    /// How many members; with given ports, as many as those.
    pub members: usize,
    /// Where they listen.
    pub ports: Ports,
    /// Trade durability for speed, where etcd has the option (from 3.5 on).
    pub no_fsync: bool,
    /// Further flags for every member.
    pub flags: Vec<String>,
}

impl LocalOptions {
    /// One member with its data in `dir`, the binary from PATH, any free ports, durable.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { binary: None, dir: dir.into(), members: 1, ports: Ports::Free, no_fsync: false, flags: Vec::new() }
    }
}

/// Why the etcd of our own does not run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// There is no such program.
    #[error("{} cannot be run: {source}; install etcd (package etcd-server on Debian and Ubuntu, etcd elsewhere) or name its binary", binary.display())]
    Binary {
        /// What was to be run.
        binary: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file or folder could not be made.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No two free ports were found.
    #[error("no free ports on 127.0.0.1")]
    NoPorts,
    /// It has ended, or does not answer.
    #[error("etcd did not come up: {reason}; from {}:\n{lines}", log.display())]
    DidNotStart {
        /// What was seen of it.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The log's first and last lines.
        lines: String,
    },
    /// A member could not be signalled or waited for.
    #[error("etcd member {member}: {source}")]
    Process {
        /// Which.
        member: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Members of an etcd cluster that run until this is dropped.
#[derive(Debug)]
pub struct LocalCluster {
    options: LocalOptions,
    binary: PathBuf,
    version: String,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    peer_front: u16,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    etcd: Child,
    /// Ends the member should we end without doing so.
    watchdog: Child,
}

impl LocalCluster {
    /// Starts the members and waits until they serve a linearizable read.
    ///
    /// # Errors
    /// [`LocalError`]; nothing keeps running then.
    pub async fn start(options: LocalOptions) -> Result<Self, LocalError> {
        let binary = options.binary.clone().unwrap_or_else(|| PathBuf::from("etcd"));
        let version = version_of(&binary)?;
        fs::create_dir_all(&options.dir).map_err(|source| LocalError::File { path: options.dir.clone(), source })?;
        let mut tries = 0;
        loop {
            tries += 1;
            let members = choose_ports(&options, tries == 1)?;
            let mut cluster = Self { options: options.clone(), binary: binary.clone(), version: version.clone(), members };
            let started = cluster.start_all().await;
            match started {
                Ok(()) => return Ok(cluster),
                Err(_) if tries < PORT_TRIES && !matches!(options.ports, Ports::Given(_)) && cluster.lost_a_port() => {
                    debug!("another process took a port of etcd's: taking others")
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The members' URLs for clients.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|member| self.endpoint(member)).collect()
    }

    /// One member's URL for clients.
    #[must_use]
    pub fn endpoint(&self, member: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[member].client_port)
    }

    /// The version that the binary says it has.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A member's process id, if it runs.
    #[must_use]
    pub fn pid(&self, member: usize) -> Option<u32> {
        self.members[member].process.as_ref().map(|process| process.etcd.id())
    }

    /// A member's log.
    #[must_use]
    pub fn log(&self, member: usize) -> PathBuf {
        self.options.dir.join(format!("{}.log", self.members[member].name))
    }

    /// Kills a member (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// [`LocalError::Process`].
    pub fn kill(&mut self, member: usize) -> Result<(), LocalError> {
        match self.members[member].process.take() {
            Some(process) => process.end().map_err(|source| LocalError::Process { member, source }),
            None => Ok(()),
        }
    }

    /// Freezes a member (SIGSTOP).
    ///
    /// # Errors
    /// [`LocalError::Process`].
    pub fn stop(&self, member: usize) -> Result<(), LocalError> {
        self.signal(member, Signal::SIGSTOP)
    }

    /// Lets a frozen member go on (SIGCONT).
    ///
    /// # Errors
    /// [`LocalError::Process`].
    pub fn cont(&self, member: usize) -> Result<(), LocalError> {
        self.signal(member, Signal::SIGCONT)
    }

    /// Starts a member that was killed, on the same ports and with its data, and does not wait until it answers.
    ///
    /// # Errors
    /// [`LocalError::Binary`] and [`LocalError::File`].
    pub fn revive(&mut self, member: usize) -> Result<(), LocalError> {
        if self.members[member].process.is_none() {
            let process = self.spawn(member)?;
            self.members[member].process = Some(process);
        }
        Ok(())
    }

    /// Starts a member that was killed, on the same ports and with its data, and waits until it answers for itself.
    ///
    /// # Errors
    /// [`LocalError`].
    pub async fn restart(&mut self, member: usize) -> Result<(), LocalError> {
        self.revive(member)?;
        let client = self.client(vec![self.endpoint(member)], member)?;
        self.wait(member, async || client.status().await.map(drop)).await
    }

    async fn start_all(&mut self) -> Result<(), LocalError> {
        for member in 0..self.members.len() {
            let process = self.spawn(member)?;
            self.members[member].process = Some(process);
        }
        for member in 0..self.members.len() {
            let client = self.client(vec![self.endpoint(member)], member)?;
            self.wait(member, async || client.get(&[0]).await.map(drop)).await?;
        }
        Ok(())
    }

    fn client(&self, endpoints: Vec<String>, member: usize) -> Result<Client, LocalError> {
        Client::new(Config::new(endpoints)).map_err(|error| self.did_not_start(member, error.to_string()))
    }

    /// Waits until the member answers, as long as its process lives.
    async fn wait(&mut self, member: usize, answers: impl AsyncFn() -> Result<(), Error>) -> Result<(), LocalError> {
        let end = Instant::now() + START_BOUND;
        loop {
            let Err(error) = answers().await else { return Ok(()) };
            let process = self.members[member].process.as_mut();
            if let Some(Ok(Some(status))) = process.map(|process| process.etcd.try_wait()) {
                return Err(self.did_not_start(member, format!("it has ended with {status}")));
            }
            if Instant::now() >= end {
                return Err(self.did_not_start(member, format!("no answer within {} s: {error}", START_BOUND.as_secs())));
            }
            sleep(POLL).await;
        }
    }

    fn did_not_start(&self, member: usize, reason: String) -> LocalError {
        let log = self.log(member);
        let text = fs::read_to_string(&log).unwrap_or_default();
        LocalError::DidNotStart { reason, log, lines: ends_of(&text) }
    }

    /// Whether one of our members has ended while somebody else listens on one of its ports.
    fn lost_a_port(&mut self) -> bool {
        self.members.iter_mut().any(|member| {
            let ended = member.process.as_mut().is_some_and(|process| matches!(process.etcd.try_wait(), Ok(Some(_))));
            ended && [member.client_port, member.peer_port].into_iter().any(|port| listen(port).is_none())
        })
    }

    fn signal(&self, member: usize, signal: Signal) -> Result<(), LocalError> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "it does not run");
        let pid = self.pid(member).and_then(|pid| i32::try_from(pid).ok()).ok_or_else(gone);
        let sent = pid.and_then(|pid| kill(Pid::from_raw(pid), signal).map_err(io::Error::from));
        sent.map_err(|source| LocalError::Process { member, source })
    }

    fn spawn(&self, member: usize) -> Result<Process, LocalError> {
        let log = self.log(member);
        let file = fs::OpenOptions::new().create(true).append(true).open(&log);
        let output = file.and_then(|file| Ok((file.try_clone()?, file))).map_err(|source| LocalError::File { path: log, source })?;
        let mut command = Command::new(&self.binary);
        command.args(self.arguments(member)).stdin(Stdio::null()).stdout(output.0).stderr(output.1).process_group(0);
        // Every flag of etcd can come from the environment, and what the caller has there is not meant for this one. The exception is
        // the variable without which etcd does not start on some machines.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD_") && name != "ETCD_UNSUPPORTED_ARCH" {
                command.env_remove(name);
            }
        }
        let mut etcd = command.spawn().map_err(|source| LocalError::Binary { binary: self.binary.clone(), source })?;
        match watchdog(etcd.id()) {
            Ok(watchdog) => Ok(Process { etcd, watchdog }),
            Err(source) => {
                let _ = etcd.kill().and_then(|()| etcd.wait());
                Err(LocalError::Binary { binary: PathBuf::from("sh"), source })
            }
        }
    }

    fn arguments(&self, member: usize) -> Vec<String> {
        let Member { name, client_port, peer_port, peer_front, .. } = &self.members[member];
        let client = format!("http://127.0.0.1:{client_port}");
        let all: Vec<String> = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer_front)).collect();
        let mut arguments = vec![
            format!("--name={name}"),
            format!("--data-dir={}", self.options.dir.join(name).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_front}"),
            format!("--initial-cluster={}", all.join(",")),
            "--initial-cluster-state=new".to_owned(),
            // Its JSON is for any page in a browser: it asks neither for Origin nor for Host nor for a type of content.
            "--enable-grpc-gateway=false".to_owned(),
            "--logger=zap".to_owned(),
            "--log-outputs=stderr".to_owned(),
        ];
        if self.options.no_fsync && has_no_fsync(&self.version) {
            arguments.push("--unsafe-no-fsync".to_owned());
        }
        arguments.extend(self.options.flags.iter().cloned());
        arguments
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            if let Err(error) = self.kill(member) {
                debug!(%error, "a member of our own etcd could not be ended");
            }
        }
    }
}

impl Process {
    fn end(mut self) -> io::Result<()> {
        // The watchdog first: while the member is not waited for, nobody else can get its process id.
        let watchdog = self.watchdog.kill().and_then(|()| self.watchdog.wait());
        let etcd = self.etcd.kill().and_then(|()| self.etcd.wait());
        watchdog.and(etcd).map(drop)
    }
}

/// Starts a shell that kills the process when the pipe to it ends, which it does with us at the latest.
fn watchdog(pid: u32) -> io::Result<Child> {
    let script = format!("read -r _; kill -9 {pid}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn()
}

/// The first and the last lines of a text.
fn ends_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() <= HEAD_LINES + TAIL_LINES {
        return lines.join("\n");
    }
    [&lines[..HEAD_LINES], &["..."], &lines[lines.len() - TAIL_LINES..]].concat().join("\n")
}

fn version_of(binary: &Path) -> Result<String, LocalError> {
    let failed = |source| LocalError::Binary { binary: binary.to_owned(), source };
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version:"));
    let not_etcd = || failed(io::Error::new(io::ErrorKind::InvalidData, "it does not answer --version as etcd does"));
    version.map(|version| version.trim().to_owned()).ok_or_else(not_etcd)
}

/// Whether a version such as `3.5.16` has `--unsafe-no-fsync`.
fn has_no_fsync(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= NO_FSYNC_SINCE)
}

fn choose_ports(options: &LocalOptions, first_try: bool) -> Result<Vec<Member>, LocalError> {
    let name = |member: usize| format!("etcd-{}", member + 1);
    if let Ports::Given(ports) = &options.ports {
        let member = |(at, ports): (usize, &MemberPorts)| Member {
            name: name(at),
            client_port: ports.client,
            peer_port: ports.peer,
            peer_front: ports.peer_front,
            process: None,
        };
        return Ok(ports.iter().enumerate().map(member).collect());
    }
    // The listeners are held until all ports are chosen, so that none is chosen twice.
    let mut held = Vec::new();
    let mut members = Vec::new();
    for member in 0..options.members.max(1) {
        let preferred = match options.ports {
            Ports::Prefer { client, peer } if member == 0 && first_try => (Some(client), Some(peer)),
            _ => (None, None),
        };
        let mut choose = |preferred: Option<u16>| {
            let (port, listener) = preferred.and_then(|port| Some((port, listen(port)?))).or_else(free_port).ok_or(LocalError::NoPorts)?;
            held.push(listener);
            Ok(port)
        };
        let (client_port, peer_port) = (choose(preferred.0)?, choose(preferred.1)?);
        members.push(Member { name: name(member), client_port, peer_port, peer_front: peer_port, process: None });
    }
    Ok(members)
}

/// A port of 127.0.0.1 on which nobody listens, for a process that is about to be started. No outgoing connection is given it meanwhile.
#[must_use]
pub fn unused_port() -> Option<u16> {
    free_port().map(|(port, _)| port)
}

fn free_port() -> Option<(u16, TcpListener)> {
    use std::hash::{BuildHasher, RandomState};
    let seeds = RandomState::new();
    (0..1_000u64).find_map(|n| {
        let offset = seeds.hash_one(n) % u64::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(offset).ok()?;
        Some((port, listen(port)?))
    })
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind(("127.0.0.1", port)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, has) in [("3.4.23", false), ("3.5.0", true), ("3.10.1", true), ("2.9.9", false), ("?", false)] {
            assert_eq!(has_no_fsync(version), has, "{version}");
        }
    }
}

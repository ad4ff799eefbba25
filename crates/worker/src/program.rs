//! A worker of one's own, as a program: what its `main` calls. docs/drivers.md has an example.
//!
//! The wheel: around worker::guard and worker::agent, as `evenkeel worker` is. The one place of this crate that reads the environment. It holds no
//! rule of the cluster.

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
};

use evenkeel_model::{WorkerId, shown::shown};
use evenkeel_store::{Client, Config};
use tracing_subscriber::EnvFilter;

use crate::{
    ContainmentMode, WorkerConfig, WorkerError, agent, default_data_dir,
    guard::{self, GuardConfig, GuardLink, LinkError, STATUS_AGAIN},
    log_writer,
};

/// The first argument of the process that the guard starts.
const AGENT: &str = "worker-agent";
/// Wrong settings: the guard does not start the agent again.
const WRONG_USAGE: u8 = 2;
/// As for [`WorkerError::exit_status`].
const FAILED: u8 = 1;

/// What a worker's settings are refused with: any error.
pub type Refused = Box<dyn std::error::Error + Send + Sync>;

/// Runs a worker until it has left: first as its guard, which starts this program again as its agent. Call it first of all in `main`, with no thread
/// of a runtime yet: both fork. `configure` is called in the agent alone, within its runtime, and adds the drivers: [`WorkerConfig::with_driver`].
///
/// | variable | what | default |
/// |---|---|---|
/// | `EVENKEEL_ID` | the worker's id, such as `worker-1` | none: it must be given |
/// | `EVENKEEL_ETCD` | etcd's members, `http://HOST:PORT`, with commas between them | `http://127.0.0.1:2379` |
/// | `EVENKEEL_HTTP` | `[HOST]:PORT` of probes and metrics; a port alone is of the loopback | `:8080` |
/// | `EVENKEEL_GRPC` | `[HOST]:PORT` for masters, as above | `:9090` |
/// | `EVENKEEL_ADVERTISE` | the host under which masters reach it | that of `EVENKEEL_GRPC` |
/// | `EVENKEEL_DATA_DIR` | where it keeps logs | below `$XDG_STATE_HOME`, or the folder for temporary files |
/// | `EVENKEEL_TASKS` | `on`: it runs scripts of tasks | `off` |
/// | `EVENKEEL_TASK_ACCOUNTS` | the accounts that scripts may run as, with commas between them | none: every script is rejected |
/// | `EVENKEEL_LOG_LEVEL` | as `evenkeel worker --log-level` has it | `info` |
pub fn main_with(configure: impl FnOnce(WorkerConfig) -> Result<WorkerConfig, Refused>) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let is_agent = arguments.get(1).is_some_and(|first| first == AGENT);
    // First of all: these fork, and the log has a thread.
    let link = is_agent.then(GuardLink::open);
    if !is_agent {
        guard::prepare();
    }
    let settings = Settings::read(&|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    let level = std::env::var("EVENKEEL_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
    if let Err(error) = start_log(&level) {
        return ended(Err((FAILED, format!("cannot start the log: {error}"))));
    }
    let status = match link {
        Some(link) => run_agent(settings, link, configure),
        None => settings.map_err(|wrong| (WRONG_USAGE, wrong)).and_then(|settings| run_guard(settings, &arguments)),
    };
    log_writer::flush();
    ended(status)
}

fn start_log(level: &str) -> std::io::Result<()> {
    let writer = log_writer::stderr()?;
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(level)).with_writer(move || writer.clone());
    // Who has a log already keeps it.
    let _ = log.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init();
    // A piece that panics is not to wait for whoever reads stderr: the log waits for nobody.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

fn ended(status: Result<u8, (u8, String)>) -> ExitCode {
    match status {
        Ok(status) => ExitCode::from(status),
        Err((status, line)) => {
            let _ = writeln!(std::io::stderr(), "error: {line}");
            ExitCode::from(status)
        }
    }
}

fn run_guard(settings: Settings, arguments: &[OsString]) -> Result<u8, (u8, String)> {
    let program = guard::this_program().map_err(|error| (FAILED, format!("cannot find the own program: {error}")))?;
    let arg0 = arguments.first().cloned().unwrap_or_default();
    let args = [AGENT.into()].into_iter().chain(arguments.iter().skip(1).cloned()).collect();
    let config = GuardConfig { program, arg0, args, worker: settings.id, containment: ContainmentMode::Auto };
    guard::run(config).map_err(|error| (FAILED, error.to_string()))
}

fn run_agent(
    settings: Result<Settings, String>,
    link: Result<GuardLink, LinkError>,
    configure: impl FnOnce(WorkerConfig) -> Result<WorkerConfig, Refused>,
) -> Result<u8, (u8, String)> {
    let link = link.map_err(|error| (FAILED, error.to_string()))?;
    let has_registered = link.has_registered();
    // Once there was a session, what is wrong may be right in a moment, and work waits for it.
    let wrong = |line: String| (if has_registered { STATUS_AGAIN } else { WRONG_USAGE }, line);
    let failed = |error: WorkerError| (error.exit_status(has_registered), error.to_string());
    let settings = settings.map_err(wrong)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| (STATUS_AGAIN, format!("cannot start: {error}")))?;
    let ended = runtime.block_on(async {
        let config = settings.config().map_err(failed)?;
        let config = configure(config).map_err(|error| wrong(error.to_string()))?;
        agent::run(config, link).await.map_err(failed)
    });
    // A piece that does not end is not waited for: the guard ends it.
    runtime.shutdown_background();
    ended.map(|()| 0)
}

/// What the environment says.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    id: WorkerId,
    etcd: Vec<String>,
    http: SocketAddr,
    grpc: SocketAddr,
    advertise: String,
    data_dir: PathBuf,
    data_dir_is_given: bool,
    tasks: bool,
    task_accounts: Vec<String>,
}

impl Settings {
    /// Reads them by this look into the environment.
    fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let text = |name: &str, default: &str| match variable(name).map(OsString::into_string) {
            None => Ok(default.to_owned()),
            Some(Ok(text)) => Ok(text),
            Some(Err(text)) => Err(format!("{name}: invalid value {}: must be UTF-8", shown(&text.to_string_lossy()))),
        };
        let id = text("EVENKEEL_ID", "")?;
        if id.is_empty() {
            return Err("EVENKEEL_ID: is missing; give this worker an id of its own, such as worker-1".to_owned());
        }
        let id = WorkerId::new(&id).map_err(|error| format!("EVENKEEL_ID: {} {error}", shown(&id)))?;
        let etcd: Vec<String> = text("EVENKEEL_ETCD", "http://127.0.0.1:2379")?.split(',').map(|url| url.trim().to_owned()).collect();
        if let Some(wrong) = etcd.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return Err(format!("EVENKEEL_ETCD: invalid URL {}; write http://HOST:PORT, with commas between several", shown(wrong)));
        }
        let http = address("EVENKEEL_HTTP", &text("EVENKEEL_HTTP", ":8080")?)?;
        let grpc = address("EVENKEEL_GRPC", &text("EVENKEEL_GRPC", ":9090")?)?;
        let advertise = text("EVENKEEL_ADVERTISE", "")?;
        if advertise.is_empty() && grpc.ip().is_unspecified() {
            return Err(format!(
                "EVENKEEL_GRPC: {grpc} is every address of this machine; say in EVENKEEL_ADVERTISE by which host masters reach it"
            ));
        }
        let advertise = if advertise.is_empty() { grpc.ip().to_string() } else { advertise };
        let given = variable("EVENKEEL_DATA_DIR").map(PathBuf::from);
        let data_dir_is_given = given.is_some();
        let data_dir = given.unwrap_or_else(|| default_data_dir(&id, variable("XDG_STATE_HOME").as_deref()));
        let tasks = match text("EVENKEEL_TASKS", "off")?.as_str() {
            "on" => true,
            "off" => false,
            other => return Err(format!("EVENKEEL_TASKS: unknown value {}; use one of on, off", shown(other))),
        };
        let accounts = text("EVENKEEL_TASK_ACCOUNTS", "")?;
        let task_accounts = accounts.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Ok(Self { id, etcd, http, grpc, advertise, data_dir, data_dir_is_given, tasks, task_accounts })
    }

    fn config(self) -> Result<WorkerConfig, WorkerError> {
        let client = Client::new(Config::new(self.etcd))?;
        let mut config = WorkerConfig::new(self.id, client, self.data_dir);
        config.data_dir_is_given = self.data_dir_is_given;
        (config.tasks.is_on, config.tasks.accounts) = (self.tasks, self.task_accounts);
        (config.http_listen, config.grpc_listen, config.advertise_host) = (self.http, self.grpc, self.advertise);
        config.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(config)
    }
}

/// `:PORT`, which is of the loopback, or `HOST:PORT`.
fn address(name: &str, text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: &str| format!("{name}: {}: {why}; write :PORT or HOST:PORT, with port 0 for any that is free", shown(text));
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("it has no colon before its port"))?;
    let port: u16 = port.parse().map_err(|_| wrong("invalid port"))?;
    if host.is_empty() {
        return Ok((IpAddr::V4(Ipv4Addr::LOCALHOST), port).into());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = (host, port).to_socket_addrs().map_err(|_| wrong("its host has no address here"))?.next();
    found.ok_or_else(|| wrong("its host has no address here"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::ffi::OsStringExt};

    use super::*;

    fn read(given: &[(&str, &str)]) -> Result<Settings, String> {
        let given: BTreeMap<&str, &str> = given.iter().copied().collect();
        Settings::read(&|name| given.get(name).map(OsString::from))
    }

    #[test]
    fn what_is_left_out_is_a_worker_of_this_machine() {
        let settings = read(&[("EVENKEEL_ID", "w"), ("XDG_STATE_HOME", "/state")]).expect("settings");
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!((settings.http, settings.grpc, settings.advertise.as_str()), (loopback(8080), loopback(9090), "127.0.0.1"));
        assert_eq!((settings.etcd, settings.data_dir), (vec!["http://127.0.0.1:2379".to_owned()], "/state/evenkeel/w".into()));
        assert!(!settings.data_dir_is_given);
    }

    #[test]
    fn what_is_given_counts() {
        let given = [
            ("EVENKEEL_ID", "w"),
            ("EVENKEEL_ETCD", "http://a:1, http://b:2"),
            ("EVENKEEL_HTTP", "127.0.0.2:1"),
            ("EVENKEEL_GRPC", "0.0.0.0:2"),
            ("EVENKEEL_ADVERTISE", "box"),
            ("EVENKEEL_DATA_DIR", "/data"),
            ("EVENKEEL_TASKS", "on"),
            ("EVENKEEL_TASK_ACCOUNTS", "a, b"),
        ];
        let settings = read(&given).expect("settings");
        assert_eq!(settings.etcd, ["http://a:1", "http://b:2"]);
        assert_eq!((settings.http.to_string(), settings.grpc.to_string()), ("127.0.0.2:1".to_owned(), "0.0.0.0:2".to_owned()));
        assert_eq!((settings.tasks, settings.task_accounts), (true, vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((settings.advertise.as_str(), settings.data_dir.to_str(), settings.data_dir_is_given), ("box", Some("/data"), true));
    }

    #[test]
    fn a_value_that_is_not_utf8_is_shown() {
        let given = |name: &str| (name == "EVENKEEL_ID").then(|| OsString::from_vec(b"w\xff".to_vec()));
        assert_eq!(Settings::read(&given), Err("EVENKEEL_ID: invalid value \"w\u{fffd}\": must be UTF-8".to_owned()));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[("EVENKEEL_ID", "w"), ("EVENKEEL_TASKS", "yes")], "EVENKEEL_TASKS: unknown value \"yes\"; use one of on, off"),
            (&[], "EVENKEEL_ID: is missing; give this worker an id of its own, such as worker-1"),
            (&[("EVENKEEL_ID", "a b")], "EVENKEEL_ID: \"a b\" has ' ' at position 2"),
            (
                &[("EVENKEEL_ID", "w"), ("EVENKEEL_ETCD", "localhost:2379")],
                "EVENKEEL_ETCD: invalid URL \"localhost:2379\"; write http://HOST:PORT",
            ),
            (&[("EVENKEEL_ID", "w"), ("EVENKEEL_HTTP", "8080")], "EVENKEEL_HTTP: \"8080\": it has no colon before its port; write :PORT"),
            (&[("EVENKEEL_ID", "w"), ("EVENKEEL_GRPC", ":x")], "EVENKEEL_GRPC: \":x\": invalid port"),
            (&[("EVENKEEL_ID", "w"), ("EVENKEEL_GRPC", "0.0.0.0:1")], "say in EVENKEEL_ADVERTISE by which host masters reach it"),
        ];
        for (given, expected) in cases {
            let said = read(given).expect_err(expected);
            assert!(said.contains(expected), "{said}");
        }
    }
}

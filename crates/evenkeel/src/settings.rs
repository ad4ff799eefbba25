//! The flags of `master`, `worker` and `dev`, and the settings that they come to: parsed and checked once, then handed down.
//!
//! Below this nothing reads flags, files or the environment. It must not start anything.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use evenkeel_model::{Labels, MAX_NAME, MasterId, ResourceName, WorkerId, check_labels};
use evenkeel_net::{InvalidHost, Names};
use evenkeel_planner::PlannerConfig;
use evenkeel_worker::{ContainmentMode, EnvPass, TaskConfig};

use crate::{
    listen::{Endpoint, Host, Listen, Note, Wish, check_host, resolve},
    placement::PlacementArgs,
    timing::{Spans, TimingArgs, span},
};

/// The drivers that the worker has.
const DRIVERS: [&str; 2] = evenkeel_worker::driver::BUILT_IN;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    /// It is
    On,
    /// It is not
    #[default]
    Off,
}

/// By which means a worker holds the processes of its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Containment {
    /// By a cgroup where it can be had, else as `processes`
    #[default]
    Auto,
    /// By a cgroup; it does not start where none can be had
    Cgroup,
    /// By descent and the list of processes: for tests, and where cgroups misbehave
    Processes,
}

impl From<Containment> for ContainmentMode {
    fn from(containment: Containment) -> Self {
        match containment {
            Containment::Auto => Self::Auto,
            Containment::Cgroup => Self::Cgroup,
            Containment::Processes => Self::Processes,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CommonArgs {
    /// What all keys in etcd begin with: /NAME, or nothing
    #[arg(long, value_name = "P", env = "EVENKEEL_PREFIX", default_value = "", value_parser = prefix, hide_env = true)]
    pub(crate) prefix: String,
    /// A YAML or JSON file of settings; its keys are the names of these flags
    #[arg(long, value_name = "FILE", env = "EVENKEEL_CONFIG", hide_env = true)]
    pub(crate) config: Option<PathBuf>,
    /// The name or address that others reach this host by
    #[arg(long, value_name = "HOST", env = "EVENKEEL_ADVERTISE", value_parser = check_host, hide_env = true)]
    pub(crate) advertise: Option<String>,
    /// A further name that the HTTP port answers to; many times, or with commas
    #[arg(long, value_name = "NAME", env = "EVENKEEL_HTTP_HOST", value_delimiter = ',', value_parser = http_host, hide_env = true)]
    pub(crate) http_host: Vec<String>,
    /// How the log is written, to stderr
    #[arg(long, value_name = "FORMAT", env = "EVENKEEL_LOG_FORMAT", value_enum, default_value = "text", hide_env = true)]
    pub(crate) log_format: LogFormat,
    /// What the log tells: off, error, warn, info, debug or trace; of a part another by TARGET=LEVEL, as in info,evenkeel_store=debug
    #[arg(long, value_name = "LEVEL", env = "EVENKEEL_LOG_LEVEL", default_value = "info", value_parser = crate::log::level, hide_env = true)]
    pub(crate) log_level: String,
    /// Listen on every interface although there is no authentication
    #[arg(long, env = "EVENKEEL_INSECURE", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub(crate) insecure: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct EtcdArgs {
    /// etcd's client URLs
    #[arg(long, value_name = "URL", env = "EVENKEEL_ETCD", value_delimiter = ',', default_value = "http://127.0.0.1:2379", value_parser = url, hide_env = true)]
    pub(crate) etcd: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct MasterArgs {
    /// Its id: a number N makes master-N; without it the host's name
    #[arg(long, env = "EVENKEEL_ID", hide_env = true)]
    pub(crate) id: Option<String>,
    /// Where HTTP is served
    #[arg(long, value_name = "[HOST]:PORT", env = "EVENKEEL_HTTP", default_value = ":8081", hide_env = true)]
    pub(crate) http: Listen,
    /// Where gRPC is served
    #[arg(long, value_name = "[HOST]:PORT", env = "EVENKEEL_GRPC", default_value = ":9091", hide_env = true)]
    pub(crate) grpc: Listen,
    /// Resources that are kept as this file has them
    #[arg(long, value_name = "FILE", env = "EVENKEEL_RESOURCES", hide_env = true)]
    pub(crate) resources: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
    #[command(flatten)]
    pub(crate) timing: TimingArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Its id: a number N makes worker-N; without it the host's name
    #[arg(long, env = "EVENKEEL_ID", hide_env = true)]
    pub(crate) id: Option<String>,
    /// Where HTTP is served
    #[arg(long, value_name = "[HOST]:PORT", env = "EVENKEEL_HTTP", default_value = ":8080", hide_env = true)]
    pub(crate) http: Listen,
    /// Where gRPC is served
    #[arg(long, value_name = "[HOST]:PORT", env = "EVENKEEL_GRPC", default_value = ":9090", hide_env = true)]
    pub(crate) grpc: Listen,
    /// A label that resources can require; many times, or with commas
    #[arg(long, value_name = "K=V", env = "EVENKEEL_LABEL", value_delimiter = ',', value_parser = label, hide_env = true)]
    pub(crate) label: Vec<(String, String)>,
    /// The largest sum of weights that it takes; without it there is no bound
    #[arg(long, value_name = "N", env = "EVENKEEL_CAPACITY", value_parser = clap::value_parser!(u64).range(1..), hide_env = true)]
    pub(crate) capacity: Option<u64>,
    /// A file that says what the names of resources without a kind mean
    #[arg(long, value_name = "FILE", env = "EVENKEEL_CATALOG", hide_env = true)]
    pub(crate) catalog: Option<PathBuf>,
    /// The drivers that it offers
    #[arg(long, value_name = "A,B", env = "EVENKEEL_DRIVERS", value_delimiter = ',', default_values = DRIVERS, value_parser = driver, hide_env = true)]
    pub(crate) drivers: Vec<String>,
    /// A variable of its own environment that work may ask for by env_pass; many times, or with commas; '*' gives all to work that asks for none
    #[arg(long, value_name = "NAME", env = "EVENKEEL_ENV_PASS", value_delimiter = ',', value_parser = variable, hide_env = true)]
    pub(crate) env_pass: Vec<String>,
    /// Whether it runs scripts of tasks
    #[arg(long, value_name = "ON|OFF", env = "EVENKEEL_TASKS", value_enum, default_value = "off", hide_env = true)]
    pub(crate) tasks: OnOff,
    /// An account that scripts may run as, its own among them; many times, or with commas
    #[arg(long, value_name = "A,B", env = "EVENKEEL_TASK_ACCOUNTS", value_delimiter = ',', value_parser = account, hide_env = true)]
    pub(crate) task_accounts: Vec<String>,
    /// How many scripts it runs at once
    #[arg(long, value_name = "N", env = "EVENKEEL_TASK_MAX", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000), hide_env = true)]
    pub(crate) task_max: u16,
    /// For how long it lets scripts run on when it leaves
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_TASK_GRACE", default_value = "30s", value_parser = span, hide_env = true)]
    pub(crate) task_grace: Duration,
    /// Where logs and notes of its work are kept
    #[arg(long, value_name = "DIR", env = "EVENKEEL_DATA_DIR", hide_env = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// How it holds the processes of its work
    #[arg(long, value_name = "MEANS", env = "EVENKEEL_CONTAINMENT", value_enum, default_value = "auto", hide_env = true)]
    pub(crate) containment: Containment,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) timing: TimingArgs,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DevArgs {
    /// How many masters
    #[arg(long, value_name = "N", env = "EVENKEEL_MASTERS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=9), hide_env = true)]
    pub(crate) masters: u16,
    /// How many workers
    #[arg(long, value_name = "N", env = "EVENKEEL_WORKERS", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50), hide_env = true)]
    pub(crate) workers: u16,
    /// The resources to run; without it, five examples
    #[arg(long, value_name = "FILE", env = "EVENKEEL_RESOURCES", hide_env = true)]
    pub(crate) resources: Option<PathBuf>,
    /// Use this etcd instead of starting one; what is written there stays
    #[arg(long, value_name = "URL", env = "EVENKEEL_ETCD", value_delimiter = ',', value_parser = url, hide_env = true)]
    pub(crate) etcd: Vec<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What every long-running process has.
#[derive(Clone, Debug)]
pub(crate) struct CommonSettings {
    /// etcd's client URLs, each with its scheme; never empty.
    pub(crate) etcd: Vec<String>,
    /// Empty, or begins with `/` and does not end with one.
    pub(crate) prefix: String,
    /// Where HTTP is served, and what others are told.
    pub(crate) http: Endpoint,
    /// Where gRPC is served, and what others are told.
    pub(crate) grpc: Endpoint,
    /// Further names that the HTTP port answers to.
    pub(crate) http_names: Names,
    /// Nobody but this machine reaches its ports, or `--insecure` says that this is meant.
    pub(crate) is_closed_or_meant: bool,
    /// What the log is to say once it is there.
    pub(crate) notes: Vec<Note>,
}

/// What `evenkeel master` needs.
#[derive(Clone, Debug)]
pub(crate) struct MasterSettings {
    pub(crate) id: MasterId,
    pub(crate) common: CommonSettings,
    /// The first source; it can be read and was right when the process started.
    pub(crate) resources: Option<PathBuf>,
    pub(crate) spans: Spans,
    pub(crate) planner: PlannerConfig,
}

/// What `evenkeel worker` needs.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSettings {
    pub(crate) id: WorkerId,
    pub(crate) common: CommonSettings,
    pub(crate) labels: Labels,
    pub(crate) capacity: Option<u64>,
    /// Exists and can be read; what stands in it is the worker's to check.
    pub(crate) catalog: Option<PathBuf>,
    /// Kinds that the worker has; never empty.
    pub(crate) drivers: Vec<String>,
    /// What of its environment work may have.
    pub(crate) env_pass: EnvPass,
    /// Which scripts of tasks it runs.
    pub(crate) tasks: TaskConfig,
    pub(crate) data_dir: PathBuf,
    pub(crate) containment: Containment,
    /// A person has named it.
    pub(crate) data_dir_is_given: bool,
    pub(crate) spans: Spans,
}

/// What is asked of the machine, so that the rest is a function of its arguments.
pub(crate) struct Surroundings<'a> {
    pub(crate) hostname: String,
    /// Where data is kept without `--data-dir`.
    pub(crate) state_dir: PathBuf,
    pub(crate) host: &'a dyn Host,
}

impl MasterArgs {
    /// The settings, or one line that says which flag is wrong and why.
    pub(crate) fn settle(self, around: &Surroundings<'_>) -> Result<MasterSettings, String> {
        let id = id(self.id.as_deref(), "master", &around.hostname);
        let id = MasterId::new(&id).map_err(|e| format!("--id: {id:?} {e}"))?;
        let spans = self.timing.settle()?;
        if let Some(path) = &self.resources {
            crate::files::read_source(path).map_err(|e| format!("--resources {e}"))?;
        }
        let planner = self.placement.settle(spans.timing.wait);
        let mut common = settle_common(&self.common, self.etcd.etcd, &self.http, &self.grpc, around)?;
        common.notes.push(Note { warning: false, text: format!("placing by {}", planner.policy) });
        Ok(MasterSettings { id, common, resources: self.resources, spans, planner })
    }
}

impl WorkerArgs {
    /// The settings, or one line that says which flag is wrong and why.
    pub(crate) fn settle(mut self, around: &Surroundings<'_>) -> Result<WorkerSettings, String> {
        let id = id(self.id.as_deref(), "worker", &around.hostname);
        let id = WorkerId::new(&id).map_err(|e| format!("--id: {id:?} {e}"))?;
        let spans = self.timing.settle()?;
        let labels = labels(&self.label)?;
        if let Some(path) = &self.catalog {
            std::fs::File::open(path).map_err(|e| format!("--catalog {}: {e}; name a file that exists and can be read", path.display()))?;
        }
        let data_dir_is_given = self.data_dir.is_some();
        let data_dir = self.data_dir.unwrap_or_else(|| around.state_dir.join(id.as_str()));
        let env_pass = env_pass(std::mem::take(&mut self.env_pass))?;
        let mut common = settle_common(&self.common, self.etcd.etcd, &self.http, &self.grpc, around)?;
        common.notes.push(Note { warning: env_pass == EnvPass::All, text: told_env_pass(&env_pass) });
        let (is_on, accounts) = (self.tasks == OnOff::On, self.task_accounts);
        common.notes.extend(told_tasks(is_on, &accounts));
        let tasks = TaskConfig { is_on, accounts, most: usize::from(self.task_max), grace: self.task_grace };
        let Self { capacity, catalog, drivers, containment, .. } = self;
        Ok(WorkerSettings {
            id,
            common,
            labels,
            capacity,
            catalog,
            drivers,
            env_pass,
            tasks,
            data_dir,
            data_dir_is_given,
            containment,
            spans,
        })
    }
}

/// What the log says of the scripts that a worker takes.
fn told_tasks(is_on: bool, accounts: &[String]) -> Option<Note> {
    is_on.then(|| match accounts {
        [] => Note { warning: true, text: "every script of a task is rejected, as no account is allowed (--task-accounts)".to_owned() },
        accounts => Note { warning: false, text: format!("scripts of tasks may run as {}", accounts.join(", ")) },
    })
}

/// What work gets of the worker's environment; one star stands for all of it.
fn env_pass(names: Vec<String>) -> Result<EnvPass, String> {
    match names.as_slice() {
        [star] if star == "*" => Ok(EnvPass::All),
        names if names.iter().any(|name| name == "*") => Err("--env-pass: '*' is everything; give it alone, or names alone".to_owned()),
        _ => Ok(EnvPass::Names(names.into_iter().collect())),
    }
}

fn told_env_pass(env_pass: &EnvPass) -> String {
    match env_pass {
        EnvPass::All => "work gets the whole environment of this worker, unless its spec has env_pass (--env-pass '*')".to_owned(),
        EnvPass::Names(names) if names.is_empty() => "work gets PATH, HOME, USER and LANG of this worker's environment".to_owned(),
        EnvPass::Names(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!(
                "work gets PATH, HOME, USER and LANG of this worker's environment, and what its spec's env_pass asks for of {}",
                names.join(", ")
            )
        }
    }
}

fn settle_common(
    common: &CommonArgs,
    etcd: Vec<String>,
    http: &Listen,
    grpc: &Listen,
    around: &Surroundings<'_>,
) -> Result<CommonSettings, String> {
    if http.collides(grpc) {
        return Err(format!("--http and --grpc are both {http}; give each its own port"));
    }
    let wish = |flag, listen| Wish { flag, listen, insecure: common.insecure, advertise: common.advertise.as_deref() };
    let (http, mut notes) = resolve(wish("--http", http), around.host)?;
    let (grpc, more) = resolve(wish("--grpc", grpc), around.host)?;
    notes.extend(more);
    let http_names = Names::of(&common.http_host).map_err(|e| format!("--http-host: {e}"))?;
    let is_closed = [&http, &grpc].iter().all(|endpoint| endpoint.listen.ip().is_loopback());
    let is_closed_or_meant = is_closed || common.insecure;
    Ok(CommonSettings { etcd, prefix: common.prefix.clone(), http, grpc, http_names, is_closed_or_meant, notes })
}

/// A number makes `master-1`; without an id it is the host's name, made to fit the rule for names.
fn id(given: Option<&str>, role: &str, hostname: &str) -> String {
    match given {
        Some(number) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => format!("{role}-{number}"),
        Some(name) => name.to_owned(),
        None => {
            let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
            let name: String = hostname.chars().map(fits).skip_while(|c| !c.is_ascii_alphanumeric()).take(MAX_NAME).collect();
            if name.is_empty() { role.to_owned() } else { name }
        }
    }
}

/// The labels that were given, each key once.
pub(crate) fn labels(pairs: &[(String, String)]) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for (key, value) in pairs {
        if labels.insert(key.clone(), value.clone()).is_some() {
            return Err(format!("--label: {key} is given twice"));
        }
    }
    check_labels("--label", &labels).map_err(|e| e.to_string())?;
    Ok(labels)
}

/// `key=value`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("write {text}=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A URL of etcd or of a master; `host:port` alone means http.
pub(crate) fn url(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    match scheme {
        "http" => {}
        "https" => return Err("TLS is not built in; write http://".to_owned()),
        _ => return Err(format!("scheme {scheme:?} is not http")),
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':').ok_or("the port is missing; write http://HOST:PORT")?;
    check_host(host)?;
    match port.parse::<u16>() {
        Ok(1..) => Ok(format!("{scheme}://{host}:{port}")),
        _ => Err(format!("invalid port {port:?}: a number from 1 to 65535")),
    }
}

/// The first parts of the keys below a prefix: a cluster whose prefix ended in one would read the keys of another as its own.
const ROOMS: [&str; 11] =
    ["admissions", "assignments", "election", "events", "intents", "resources", "results", "status", "tasks", "workers", "writers"];

fn prefix(text: &str) -> Result<String, String> {
    let printable = |c: char| c.is_ascii_graphic();
    match text {
        "" => Ok(String::new()),
        text if !text.starts_with('/') => Err(format!("does not begin with /; write /{text}")),
        text if text.ends_with('/') => Err("ends with /; leave the last one out".to_owned()),
        text if text.contains("//") => Err("has // in it; write one".to_owned()),
        text if !text.chars().all(printable) => Err("has a space, or a character that is not printable ASCII".to_owned()),
        text if text.split('/').any(|part| ROOMS.contains(&part)) => {
            Err(format!("has one of {} as a part, which are names of keys under another prefix", ROOMS.join(", ")))
        }
        text if text.len() > MAX_NAME => Err(format!("has {} characters; it may have {MAX_NAME}", text.len())),
        text => Ok(text.to_owned()),
    }
}

fn http_host(text: &str) -> Result<String, InvalidHost> {
    Names::of([text]).map(|_| text.to_owned())
}

fn variable(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['=', '\0']) {
        return Err("a variable has a name of one or more characters, no = and no NUL".to_owned());
    }
    if text.starts_with("EVENKEEL_") {
        return Err("names that begin with EVENKEEL_ are the worker's settings and are passed to no work".to_owned());
    }
    Ok(text.to_owned())
}

fn account(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains([':', '/', '\0']) || text.contains(char::is_whitespace) {
        return Err("an account has a name of one or more characters, as the system knows it".to_owned());
    }
    Ok(text.to_owned())
}

fn driver(text: &str) -> Result<String, String> {
    ResourceName::new(text).map_err(|e| e.to_string())?;
    if DRIVERS.contains(&text) { Ok(text.to_owned()) } else { Err(format!("unknown driver {text:?}; use one of {}", DRIVERS.join(", "))) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    struct Nowhere;

    impl Host for Nowhere {
        fn lookup(&self, _: &str) -> std::io::Result<std::net::IpAddr> {
            Err(std::io::Error::other("unknown name"))
        }
        fn primary(&self) -> Option<std::net::IpAddr> {
            Some(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5)))
        }
        fn has(&self, loopback: std::net::IpAddr) -> bool {
            loopback.is_ipv4()
        }
    }

    fn around() -> Surroundings<'static> {
        Surroundings { hostname: "box_1.example".to_owned(), state_dir: "/state".into(), host: &Nowhere }
    }

    fn master(line: &str) -> Result<MasterSettings, String> {
        match Cli::try_parse_from(["evenkeel", "master"].into_iter().chain(line.split_whitespace())).map_err(|e| e.to_string())?.command {
            Command::Master(args) => args.settle(&around()),
            other => panic!("{other:?}"),
        }
    }

    fn worker(line: &str) -> Result<WorkerSettings, String> {
        match Cli::try_parse_from(["evenkeel", "worker"].into_iter().chain(line.split_whitespace())).map_err(|e| e.to_string())?.command {
            Command::Worker(args) => args.settle(&around()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_commands_of_the_classic_run() {
        let settings = master("--id 2 --http :8081 --grpc :9091").expect("valid");
        assert_eq!(settings.id.as_str(), "master-2");
        assert_eq!(settings.common.http.host, "127.0.0.1");
        assert_eq!(settings.common.etcd, ["http://127.0.0.1:2379"]);
        assert_eq!(settings.common.prefix, "");
        assert_eq!(settings.common.notes.len(), 3);
        assert_eq!(settings.common.notes[2].text, "placing by least-payload");

        let settings = worker("--id 1 --http :8080 --grpc :9090").expect("valid");
        assert_eq!(settings.id.as_str(), "worker-1");
        assert_eq!(settings.common.grpc.listen.to_string(), "127.0.0.1:9090");
        assert_eq!(settings.data_dir, PathBuf::from("/state/worker-1"));
        assert_eq!(settings.drivers, DRIVERS);
        assert_eq!((settings.capacity, settings.containment), (None, Containment::Auto));
        assert_eq!(settings.tasks, TaskConfig::default());
    }

    #[test]
    fn scripts_are_taken_where_that_is_said_and_an_account_is_allowed() {
        let given = "--tasks on --task-accounts deploy,root --task-max 2 --task-grace 5m";
        let accounts = vec!["deploy".to_owned(), "root".to_owned()];
        let settings = worker(given).expect("valid");
        assert_eq!(settings.tasks, TaskConfig { is_on: true, accounts, most: 2, grace: Duration::from_secs(300) });
        let told = |given| worker(given).expect("valid").common.notes.last().map(|note| (note.warning, note.text.clone())).expect("a note");
        assert_eq!(told(given), (false, "scripts of tasks may run as deploy, root".to_owned()));
        assert_eq!(told("--tasks on"), (true, "every script of a task is rejected, as no account is allowed (--task-accounts)".to_owned()));
        for bad in ["", "a:b", "a b", "../x"] {
            assert!(account(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_work_gets_of_the_environment_is_a_list_or_everything() {
        let names = |names: &[&str]| Ok(EnvPass::Names(names.iter().map(|name| (*name).to_owned()).collect()));
        let both = Err("--env-pass: '*' is everything; give it alone, or names alone".to_owned());
        for (given, expected) in
            [(&[][..], names(&[])), (&["TZ", "A", "TZ"], names(&["A", "TZ"])), (&["*"], Ok(EnvPass::All)), (&["A", "*"], both)]
        {
            assert_eq!(env_pass(given.iter().map(|name| (*name).to_owned()).collect()), expected, "{given:?}");
        }
        assert_eq!(told_env_pass(&EnvPass::default()), "work gets PATH, HOME, USER and LANG of this worker's environment");
        for bad in ["", "A=B", "EVENKEEL_ETCD"] {
            assert!(variable(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ports_without_flags_are_the_usual() {
        let settings = master("").expect("valid").common;
        assert_eq!((settings.http.listen.port(), settings.grpc.listen.port()), (8081, 9091));
        let settings = worker("").expect("valid").common;
        assert_eq!((settings.http.listen.port(), settings.grpc.listen.port()), (8080, 9090));
    }

    #[test]
    fn ids_follow_the_rule() {
        let cases = [
            (Some("1"), "box", "worker-1"),
            (Some("007"), "box", "worker-007"),
            (Some("blue"), "box", "blue"),
            (Some("1a"), "box", "1a"),
            (None, "box-1.example", "box-1.example"),
            (None, "_büx 1", "b-x-1"),
            (None, "---", "worker"),
            (None, "", "worker"),
        ];
        for (given, hostname, expected) in cases {
            assert_eq!(id(given, "worker", hostname), expected, "{given:?} {hostname:?}");
        }
    }

    #[test]
    fn every_flag_of_a_worker_arrives() {
        let line = "--id blue --etcd a:1,http://b:2 --prefix /x/y --label zone=a --label gpu=true,disk=ssd --http-host w.example,[::1] --http-host W2.example --capacity 7 --drivers noop --data-dir /d --containment cgroup --insecure --advertise box";
        let settings = worker(line).expect("valid");
        assert_eq!(settings.common.etcd, ["http://a:1", "http://b:2"]);
        assert_eq!(settings.common.prefix, "/x/y");
        assert_eq!(settings.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["disk=ssd", "gpu=true", "zone=a"]);
        assert_eq!((settings.capacity, settings.drivers), (Some(7), vec!["noop".to_owned()]));
        assert_eq!(settings.containment, Containment::Cgroup);
        assert_eq!(settings.common.http.host, "box");
        assert_eq!(settings.common.http_names, Names::of(["w.example", "[::1]", "w2.example"]).expect("hosts"));
        assert_eq!(settings.common.http.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(settings.common.notes.len(), 1, "what work gets of the environment");
    }

    #[test]
    fn urls_are_made_whole() {
        let cases = [
            ("http://127.0.0.1:2379", Ok("http://127.0.0.1:2379")),
            ("127.0.0.1:2379", Ok("http://127.0.0.1:2379")),
            ("http://etcd-1.example:2379/", Ok("http://etcd-1.example:2379")),
            ("https://etcd-1.example:2379", Err("TLS is not built in")),
            ("[::1]:2379", Ok("http://[::1]:2379")),
            ("localhost", Err("the port is missing")),
            ("ftp://a:1", Err("scheme \"ftp\" is not http")),
            ("http://a:b", Err("invalid port \"b\": a number")),
            ("http://a:0", Err("invalid port \"0\": a number")),
            ("http://a b:1", Err("\"a b\" is no host name")),
            ("http://a:1/x", Err("invalid port \"1/x\": a number")),
            ("", Err("the port is missing")),
        ];
        for (text, expected) in cases {
            match (url(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(said), Err(expected)) => assert!(said.starts_with(expected), "{text:?}: {said}"),
                (found, expected) => panic!("{text:?}: {found:?}, expected {expected:?}"),
            }
        }
    }
}

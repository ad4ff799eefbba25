//! The processes of `dev` as a whole: started one after the other, looked after, and ended in the order in which nothing is lost.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use evenkeel_local_etcd::{LocalCluster, LocalOptions};
use evenkeel_model::{
    Definition, ResourceName,
    manifest::{self, File},
};
use evenkeel_proto::v1::{ListMastersRequest, ListResourcesRequest, ListWorkersRequest};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

use super::{
    DevError,
    ports::{self, Ports},
    process::{self, Process, Recipe},
    view::{Expected, View},
};
use crate::{
    client::session::{Client, Session},
    settings::{DevArgs, LogFormat},
    tied::EndSignal,
};

/// What runs without `--resources`.
const EXAMPLES: &str = include_str!("../../../../examples/classic.yaml");
/// How long workers may take to hand their work over.
const WORKERS_END: Duration = Duration::from_secs(12);
/// How long masters may take.
const MASTERS_END: Duration = Duration::from_secs(5);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(300);
/// How long one look may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two looks at etcd.
const ETCD_LOOK: Duration = Duration::from_secs(1);
/// Lines of a log that are shown.
const TAIL: usize = 8;

/// Everything that was started.
pub(super) struct Cluster {
    // In the order in which they are dropped: processes before the folder that they write to.
    pub(super) workers: Vec<Process>,
    pub(super) masters: Vec<Process>,
    pub(super) master_ports: Vec<Ports>,
    etcd: Option<LocalCluster>,
    pub(super) etcd_urls: Vec<String>,
    etcd_is_down: bool,
    etcd_seen: Instant,
    folder: TempDir,
    /// As the person called it.
    pub(super) program: String,
    pub(super) prefix: String,
    pub(super) expected: Expected,
}

/// A child that has ended, as a person is told of it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) tail: Vec<String>,
    /// How it is started again.
    pub(super) again: String,
}

impl Cluster {
    pub(super) async fn start(args: &DevArgs, resources: usize) -> Result<Self, DevError> {
        let folder = tempfile::Builder::new().prefix("evenkeel-dev-").tempdir().map_err(DevError::io("no temporary folder can be made"))?;
        let logs = folder.path().join("logs");
        std::fs::create_dir(&logs).map_err(DevError::io(logs.display().to_string()))?;
        let file = resources_file(args, folder.path())?;
        let etcd = if args.etcd.is_empty() { Some(start_etcd(folder.path()).await?) } else { None };
        let etcd_urls = etcd.as_ref().map_or_else(|| args.etcd.clone(), LocalCluster::endpoints);
        let chosen = ports::choose(args.masters, args.workers, ports::is_free).ok_or(DevError::Ports)?;
        let binary = std::env::current_exe().map_err(DevError::io("this program's own file cannot be found"))?;
        let mut cluster = Self {
            workers: Vec::new(),
            masters: Vec::new(),
            master_ports: chosen.masters.clone(),
            etcd,
            etcd_urls,
            etcd_is_down: false,
            etcd_seen: Instant::now(),
            folder,
            program: program(),
            prefix: args.common.prefix.clone(),
            expected: Expected { workers: usize::from(args.workers), resources },
        };
        let flags = Flags { args, etcd: cluster.etcd_urls.join(",") };
        let launch = |recipe: Recipe| {
            let id = recipe.id.clone();
            process::start(&binary, recipe, &logs).map_err(DevError::io(format!("{id} cannot be started")))
        };
        for (index, ports) in chosen.masters.iter().enumerate() {
            cluster.masters.push(launch(flags.master(index + 1, *ports, &file))?);
        }
        for (index, ports) in chosen.workers.iter().enumerate() {
            let data = cluster.folder.path().join(format!("worker-{}", index + 1));
            cluster.workers.push(launch(flags.worker(index + 1, *ports, &data))?);
        }
        Ok(cluster)
    }

    pub(super) fn master_urls(&self) -> Vec<String> {
        self.master_ports.iter().map(|ports| format!("http://127.0.0.1:{}", ports.grpc)).collect()
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// The process id and the version of an etcd that was started here.
    pub(super) fn etcd(&self) -> Option<(u32, &str)> {
        self.etcd.as_ref().and_then(|etcd| Some((etcd.pid(0)?, etcd.version())))
    }

    /// The ids and process ids of the children that run.
    pub(super) fn pids(&self) -> BTreeMap<String, u32> {
        self.workers.iter().chain(&self.masters).filter(|p| p.runs()).map(|p| (p.id.clone(), p.pid)).collect()
    }

    /// Those that have ended since the last time.
    pub(super) fn ended(&mut self) -> Vec<Ended> {
        let program = self.program.clone();
        let children = self.masters.iter_mut().chain(&mut self.workers).filter_map(|process| {
            let status = process.ended()?;
            // The log of what a person killed tells nothing about it.
            let tail = if status.code().is_some_and(|code| code != 0) { process.tail(TAIL) } else { Vec::new() };
            Some(Ended { id: process.id.clone(), status: described(status), tail, again: process.command_line(&program) })
        });
        let mut ended: Vec<Ended> = children.collect();
        ended.extend(self.etcd_ended());
        ended
    }

    /// An etcd of our own that refuses connections has ended; one that is frozen does not refuse.
    fn etcd_ended(&mut self) -> Option<Ended> {
        if self.etcd_seen.elapsed() < ETCD_LOOK {
            return None;
        }
        self.etcd_seen = Instant::now();
        let url = self.etcd.as_ref()?.endpoint(0);
        let address = url.strip_prefix("http://")?.parse().ok()?;
        let down = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100))
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
        if !std::mem::replace(&mut self.etcd_is_down, down) && down {
            let data = self.folder.path().join("etcd").join("etcd-1");
            let again = format!(
                "etcd --data-dir={} --listen-client-urls={url} --advertise-client-urls={url} --listen-peer-urls=http://127.0.0.1:0 --enable-grpc-gateway=false",
                process::quoted(&data.to_string_lossy())
            );
            return Some(Ended { id: "etcd".to_owned(), status: "it refuses connections".to_owned(), tail: Vec::new(), again });
        }
        None
    }

    /// Workers first, while there is a leader that takes their work back; etcd last.
    pub(super) async fn end(&mut self) {
        process::end(&mut self.workers, WORKERS_END).await;
        process::end(&mut self.masters, MASTERS_END).await;
        self.etcd = None;
    }

    /// Without waiting for anything.
    pub(super) async fn kill(&mut self) {
        process::kill_all(&mut self.workers).await;
        process::kill_all(&mut self.masters).await;
        self.etcd = None;
    }
}

/// The resources that run without `--resources`.
pub(super) fn examples() -> Result<BTreeMap<ResourceName, Definition>, DevError> {
    let file = File { label: "examples/classic.yaml", bytes: EXAMPLES.as_bytes() };
    manifest::read([file]).map_err(|e| DevError::Usage(e.to_string()))
}

async fn start_etcd(folder: &Path) -> Result<LocalCluster, DevError> {
    let mut options = LocalOptions::new(folder.join("etcd"));
    options.ports = evenkeel_local_etcd::Ports::Prefer { client: 2379, peer: 2380 };
    Ok(LocalCluster::start(options).await?)
}

/// The file that the masters keep in sync.
fn resources_file(args: &DevArgs, folder: &Path) -> Result<PathBuf, DevError> {
    match &args.resources {
        Some(path) => std::fs::canonicalize(path).map_err(DevError::io(path.display().to_string())),
        None => {
            let path = folder.join("classic.yaml");
            std::fs::write(&path, EXAMPLES).map_err(DevError::io(path.display().to_string()))?;
            Ok(path)
        }
    }
}

/// What all children are given.
struct Flags<'a> {
    args: &'a DevArgs,
    etcd: String,
}

impl Flags<'_> {
    fn master(&self, number: usize, ports: Ports, resources: &Path) -> Recipe {
        let mut arguments = self.common("master", number, ports);
        arguments.extend(["--resources".into(), resources.into()]);
        // Nothing is lost with a master.
        Recipe { id: format!("master-{number}"), arguments, when_orphaned: EndSignal::Kill }
    }

    fn worker(&self, number: usize, ports: Ports, data: &Path) -> Recipe {
        let mut arguments = self.common("worker", number, ports);
        arguments.extend(["--data-dir".into(), data.into()]);
        // Its guard is to end the work.
        Recipe { id: format!("worker-{number}"), arguments, when_orphaned: EndSignal::Term }
    }

    fn common(&self, role: &str, number: usize, ports: Ports) -> Vec<OsString> {
        let common = &self.args.common;
        let host = if common.insecure { "" } else { "127.0.0.1" };
        let format = match common.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let mut words: Vec<String> = vec![role.to_owned(), "--id".to_owned(), number.to_string(), "--etcd".to_owned(), self.etcd.clone()];
        words.extend(["--http".to_owned(), format!("{host}:{}", ports.http), "--grpc".to_owned(), format!("{host}:{}", ports.grpc)]);
        let or_usual = |flag: &str, value: &str, usual: &str| if value == usual { vec![] } else { vec![flag.to_owned(), value.to_owned()] };
        words.extend(or_usual("--prefix", &common.prefix, ""));
        words.extend(or_usual("--log-format", format, "text"));
        words.extend(or_usual("--log-level", &common.log_level, "info"));
        words.extend(or_usual("--advertise", common.advertise.as_deref().unwrap_or_default(), ""));
        words.extend(common.http_host.iter().flat_map(|name| ["--http-host".to_owned(), name.clone()]));
        words.extend(common.insecure.then(|| "--insecure".to_owned()));
        words.into_iter().map(OsString::from).collect()
    }
}

/// `evenkeel`, or the path by which the person called it.
fn program() -> String {
    std::env::args().next().filter(|name| name.contains('/')).unwrap_or_else(|| "evenkeel".to_owned())
}

fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "as it was asked to".to_owned(),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |s| s.as_str().to_owned());
            format!("killed by {name}")
        }
        (None, None) => "for an unknown reason".to_owned(),
    }
}

/// Looks at the cluster through any master that answers, for as long as somebody wants to know.
pub(super) async fn observe(masters: Vec<String>, views: watch::Sender<View>) {
    let session = Session::new(masters);
    while !views.is_closed() {
        match timeout(ANSWER, look(&session)).await {
            Ok(Some(view)) => {
                views.send_if_modified(|old| {
                    let differs = *old != view;
                    *old = view;
                    differs
                });
            }
            // The masters may not be there yet, or not any more: the last view stands.
            Ok(None) | Err(_) => session.give_up(true).await,
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(session: &Session) -> Option<View> {
    let mut client = session.client().await.ok()?;
    let workers = client.list_workers(ListWorkersRequest::default()).await.ok()?.into_inner().workers;
    let masters = client.list_masters(ListMastersRequest {}).await.ok()?.into_inner().masters;
    Some(View { workers, masters, resources: resources(&mut client).await? })
}

async fn resources(client: &mut Client) -> Option<Vec<evenkeel_proto::v1::ResourceState>> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListResourcesRequest { selector: String::new(), page_size: 1000, page_token };
        let page = client.list_resources(request).await.ok()?.into_inner();
        found.extend(page.resources);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Some(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_those_of_the_classic_run() {
        let names: Vec<String> = examples().expect("valid").into_keys().map(|name| name.to_string()).collect();
        assert_eq!(names, ["douban_book_list", "task-test-1", "task-test-2", "task-test-3", "xxx"]);
    }

    #[test]
    fn the_larger_set_is_right() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/many.yaml");
        let set = crate::files::read_resources(&path).expect("valid");
        assert_eq!(set.len(), 300);
        assert_eq!(set.values().filter(|d| &*d.kind == "process").count(), 100);
    }
}

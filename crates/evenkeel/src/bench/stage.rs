//! What the measurements run on: an etcd of their own in a temporary folder, a master as a child process, and workers, which only register, or are
//! real agents in this process that hold what they are given and report it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use evenkeel_local_etcd::{LocalCluster, LocalOptions};
use evenkeel_model::{Registration, WorkerId};
use evenkeel_proto::v1::{ListMastersRequest, ListWorkersRequest, master_client::MasterClient};
use evenkeel_store::{Client, Config, KeyName, KeyRange, Kv, LeasedKey, NewLeasedKey, codec, keys::Keys};
use evenkeel_worker::{
    agent::many::{Agents, AgentsConfig},
    driver::{Noop, Registry},
    protocol::authority::Timing,
};
use tonic::transport::{Channel, Endpoint};

/// How many workers there are that only register.
const WORKERS: usize = 10;
/// How long all may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module. Dropping it ends everything.
pub(super) struct Stage {
    etcd: LocalCluster,
    master: Child,
    address: String,
    numbers: AtomicU64,
    /// How many there are.
    count: usize,
    _workers: Workers,
    _folder: tempfile::TempDir,
}

/// They last as long as this.
enum Workers {
    Registered { _keys: Vec<LeasedKey> },
    Agents { _agents: Agents },
}

impl Drop for Stage {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

impl Stage {
    /// With so many real agents; none: with workers that only register.
    pub(super) async fn start(binary: Option<PathBuf>, agents: Option<u32>) -> Result<Self, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let folder = tempfile::tempdir().map_err(|e| text(&e))?;
        let options = LocalOptions { binary, ..LocalOptions::new(folder.path()) };
        let etcd = LocalCluster::start(options).await.map_err(|e| text(&e))?;
        let endpoint = etcd.endpoint(0);
        let client = Client::new(Config::new([endpoint.clone()])).map_err(|e| text(&e))?;
        let (count, workers) = match agents {
            Some(count) => (count as usize, Workers::Agents { _agents: start_agents(&client, count)? }),
            None => {
                let mut keys = Vec::new();
                for number in 0..WORKERS {
                    keys.push(register(&client, number).await?);
                }
                (WORKERS, Workers::Registered { _keys: keys })
            }
        };
        let grpc = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| text(&e))?;
        let master = Command::new(std::env::current_exe().map_err(|e| text(&e))?)
            .args(["master", "--id", "bench", "--http", "127.0.0.1:0", "--etcd", &endpoint, "--grpc", &grpc.to_string()])
            .env("EVENKEEL_LOG_LEVEL", "error")
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| text(&e))?;
        let stage = Self { etcd, master, address: grpc.to_string(), numbers: AtomicU64::new(0), count, _workers: workers, _folder: folder };
        tokio::time::timeout(PATIENCE, stage.ready()).await.map_err(|_| "the master did not come up".to_owned())?;
        Ok(stage)
    }

    pub(super) fn etcd_version(&self) -> &str {
        self.etcd.version()
    }

    /// A client of etcd alone.
    pub(super) fn raw(&self) -> Result<Client, String> {
        Client::new(Config::new([self.etcd.endpoint(0)])).map_err(|e| e.to_string())
    }

    /// A connection to the master.
    pub(super) async fn connect(&self) -> Result<MasterClient<Channel>, String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).map_err(|e| e.to_string())?;
        Ok(MasterClient::new(endpoint.tcp_nodelay(true).connect().await.map_err(|e| e.to_string())?))
    }

    /// A name that no call has used yet.
    pub(super) fn fresh_name(&self) -> String {
        format!("bench-{:09}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether every worker says that it takes tasks.
    pub(super) async fn takes_tasks(&self) -> Result<bool, String> {
        let workers = self.raw()?.list(&KeyRange::prefix("/workers/")).await.map_err(|e| e.to_string())?;
        let says_so = |kv: &Kv| serde_json::from_slice::<Registration>(&kv.value).is_ok_and(|registration| registration.tasks);
        Ok(workers.kvs.iter().all(says_so))
    }

    async fn ready(&self) {
        loop {
            if self.is_ready().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut client) = self.connect().await else { return false };
        let leads = client.list_masters(ListMastersRequest {}).await.is_ok_and(|m| m.into_inner().masters.iter().any(|m| m.leader));
        let workers = client.list_workers(ListWorkersRequest::default()).await.map(|w| w.into_inner().workers).unwrap_or_default();
        leads && workers.iter().filter(|w| w.phase == "ready").count() == self.count
    }
}

/// Workers that hold what they are given, and share a client.
fn start_agents(client: &Client, count: u32) -> Result<Agents, String> {
    let registry = Registry::default().with(Arc::new(Noop)).map_err(|e| e.to_string())?;
    let config = AgentsConfig { client: client.clone(), prefix: String::new(), registry, timing: timing(count), takes_tasks: true };
    Ok(Agents::start(&config, agents(count)?))
}

/// The usual spans, as long as all agents together prove no more than two hundred sessions a second: beyond that, proofs are what is measured.
fn timing(agents: u32) -> Timing {
    let usual = Timing::default();
    let proof_period = (Duration::from_millis(5) * agents).max(usual.proof_period);
    match proof_period > usual.proof_period {
        true => Timing { proof_period, authority: proof_period * 4, lease: Duration::from_secs(30), ..usual }.nearest(),
        false => usual,
    }
}

/// The ids of so many agents.
pub(super) fn agents(count: u32) -> Result<Vec<WorkerId>, String> {
    (0..count).map(|number| WorkerId::new(&format!("agent-{number}")).map_err(|e| e.to_string())).collect()
}

/// A worker that registers and runs nothing.
async fn register(client: &Client, number: usize) -> Result<LeasedKey, String> {
    let id = WorkerId::new(&format!("bench-{number}")).map_err(|e| e.to_string())?;
    let address = format!("127.0.0.1:{}", 10_000 + number);
    let registration = Registration { kinds: vec!["noop".to_owned()], ..Registration::bare(id.clone(), address) };
    let new = NewLeasedKey {
        key: KeyName::Exact(Keys::new("").worker(&id).into_bytes()),
        value: codec::json(&registration),
        ttl: Duration::from_secs(30),
        replaces: None,
    };
    LeasedKey::create(client, new, Duration::from_secs(5)).await.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_agents_prove_seldom() {
        assert_eq!(timing(10), Timing::default());
        for agents in [101, 1000, 10_000] {
            assert_eq!(timing(agents).check(), Ok(()), "{agents}");
        }
        assert_eq!(timing(1000).proof_period, Duration::from_secs(5));
    }
}

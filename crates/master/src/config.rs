//! What a master is told when it starts.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use evenkeel_model::MasterId;
use evenkeel_net::Names;
use evenkeel_planner::PlannerConfig;

/// The configuration of a master, parsed and checked.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Its id.
    pub id: MasterId,
    /// The members of etcd.
    pub etcd: Vec<String>,
    /// The prefix of all keys; empty, or beginning with a slash and not ending with one.
    pub prefix: String,
    /// Where gRPC is served; port 0: any that is free.
    pub grpc_listen: SocketAddr,
    /// Where HTTP is served; port 0: any that is free.
    pub http_listen: SocketAddr,
    /// The host under which others reach its gRPC server; an IPv6 address in brackets.
    pub grpc_host: String,
    /// The host under which others reach its HTTP server.
    pub http_host: String,
    /// Further names that its HTTP port answers to.
    pub http_names: Names,
    /// A file of resources that is kept in sync, as the first source.
    pub resources: Option<PathBuf>,
    /// The version of the binary.
    pub version: String,
    /// How long this master's candidacy outlives it.
    pub lease: Duration,
    /// Tasks are served. They are not where others reach a port of it, unless that is meant: whoever may create a task runs what he likes on all workers.
    pub tasks: bool,
    /// What steers placement.
    pub planner: PlannerConfig,
}

impl MasterConfig {
    /// A master of this id with what can be left out left out: servers on free ports of the loopback, no file of resources.
    #[must_use]
    pub fn new(id: MasterId, etcd: Vec<String>) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            id,
            etcd,
            prefix: String::new(),
            grpc_listen: loopback,
            http_listen: loopback,
            grpc_host: "127.0.0.1".to_owned(),
            http_host: "127.0.0.1".to_owned(),
            http_names: Names::default(),
            resources: None,
            version: String::new(),
            lease: MASTER_LEASE,
            tasks: true,
            planner: PlannerConfig::default(),
        }
    }
}

/// Start value of [`MasterConfig::lease`].
pub const MASTER_LEASE: Duration = Duration::from_secs(3);

/// Why a master cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// An address cannot be listened on.
    #[error("{flag} {address}: {source}; choose another address or end what uses this one")]
    Listen {
        /// The flag that sets it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// etcd cannot be used.
    #[error(transparent)]
    Store(#[from] evenkeel_store::Error),
    /// The file of resources is wrong.
    #[error("--resources: {0}")]
    Resources(String),
    /// Another master holds the id.
    #[error(transparent)]
    IdTaken(#[from] crate::engine::IdTaken),
    /// A server ended by itself.
    #[error("the {0} server ended: {1}")]
    Server(&'static str, String),
}

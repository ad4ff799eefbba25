//! What a worker is told at its start, and why it cannot begin or go on.
//!
//! The wheel: around all of worker. Parsed and checked once; nothing below reads flags or the environment.

use std::{
    ffi::OsStr,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use evenkeel_model::{Labels, WorkerId};
use evenkeel_net::Names;
use evenkeel_store as store;

use crate::{
    driver::catalog::CatalogError,
    driver::{Driver, EnvPass, Registry, RegistryError},
    guard::{LinkError, STATUS_AGAIN},
    protocol::authority::{Timing, TimingError},
    task::TaskConfig,
};

/// Each of the two generations of a log.
pub const MAX_LOG_BYTES: u64 = 4 << 20;
/// How long the first agent waits for etcd at its start.
pub const ETCD_WAIT: Duration = Duration::from_secs(30);

/// Finds the host under which others reach this machine now; none: it cannot be found.
pub type FindHost = fn() -> Option<String>;

/// What a worker is told at its start.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its id.
    pub id: WorkerId,
    /// The connection to etcd.
    pub client: store::Client,
    /// Stands before every key: empty, or a path that begins with a slash and does not end with one.
    pub prefix: String,
    /// Where its gRPC server listens; port 0: any free one.
    pub grpc_listen: SocketAddr,
    /// Where its HTTP server listens; port 0: any free one.
    pub http_listen: SocketAddr,
    /// The host under which others reach it.
    pub advertise_host: String,
    /// Further names that its HTTP port answers to.
    pub http_names: Names,
    /// Finds that host anew for each session, as a machine's address may change while it is cut off; none: it stays what it is.
    pub find_host: Option<FindHost>,
    /// What `require` selects on.
    pub labels: Labels,
    /// The largest payload that it takes; none: no bound.
    pub capacity: Option<u64>,
    /// What names without a kind mean.
    pub catalog: Option<PathBuf>,
    /// The drivers that it offers; empty: all.
    pub drivers: Vec<String>,
    /// Drivers beside those that each worker has: see [`WorkerConfig::with_driver`].
    pub more_drivers: Registry,
    /// What work may have of its environment, beside PATH, HOME, USER and LANG.
    pub env_pass: EnvPass,
    /// Which scripts of tasks it runs, and how many.
    pub tasks: TaskConfig,
    /// Where it keeps logs: a folder of its own.
    pub data_dir: PathBuf,
    /// A person has named that folder. If nobody has, and a worker of the same id in another cluster uses it, one beside it is taken.
    pub data_dir_is_given: bool,
    /// The bound of each of the two generations of a log, in bytes.
    pub max_log_bytes: u64,
    /// The spans of the ownership protocol.
    pub timing: Timing,
    /// How long the first agent waits for etcd at its start. A later one, which follows on one that had work, waits without end.
    pub etcd_wait: Duration,
    /// The version of the binary.
    pub version: String,
}

impl WorkerConfig {
    /// A worker of this id with what can be left out left out: servers on free ports of the loopback, data in `data_dir`.
    #[must_use]
    pub fn new(id: WorkerId, client: store::Client, data_dir: PathBuf) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            id,
            client,
            prefix: String::new(),
            grpc_listen: loopback,
            http_listen: loopback,
            advertise_host: "127.0.0.1".to_owned(),
            http_names: Names::default(),
            find_host: None,
            labels: Labels::new(),
            capacity: None,
            catalog: None,
            drivers: Vec::new(),
            more_drivers: Registry::default(),
            env_pass: EnvPass::default(),
            tasks: TaskConfig::default(),
            data_dir,
            data_dir_is_given: true,
            max_log_bytes: MAX_LOG_BYTES,
            timing: Timing::default(),
            etcd_wait: ETCD_WAIT,
            version: String::new(),
        }
    }

    /// With another driver beside those that each worker has. Its kind is offered unless `drivers` leaves it out.
    ///
    /// # Errors
    /// Its kind cannot be one, or a driver that was added before has it. That a worker has one of its own by that name is found out when it runs.
    pub fn with_driver(mut self, driver: Arc<dyn Driver>) -> Result<Self, RegistryError> {
        self.more_drivers = self.more_drivers.with(driver)?;
        Ok(self)
    }
}

/// The folder of a worker's data where none is given: below `$XDG_STATE_HOME` if that is set, else below the system's folder for
/// temporary files.
#[must_use]
pub fn default_data_dir(id: &WorkerId, xdg_state_home: Option<&OsStr>) -> PathBuf {
    let base = xdg_state_home.filter(|home| Path::new(home).is_absolute()).map_or_else(std::env::temp_dir, PathBuf::from);
    base.join("evenkeel").join(id.as_str())
}

/// Why a worker cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// There is no guard.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The spans break the promise.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// A driver that there is not, or one too many.
    #[error(transparent)]
    Drivers(#[from] RegistryError),
    /// The catalog cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A port that cannot be had.
    #[error("{flag} {address}: {source}; choose another, or port 0 for any that is free")]
    Listen {
        /// The flag that names it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The folder for data cannot be used.
    #[error("--data-dir {}: {source}; name a folder that this user may write to", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another worker has the folder for data.
    #[error("--data-dir {}: another worker{holder} has it; give each worker of this machine a folder of its own", path.display())]
    DataDirInUse {
        /// The folder.
        path: PathBuf,
        /// Its process, in brackets, if that is known.
        holder: String,
    },
    /// Another worker holds the id.
    #[error(
        "the id {id} is taken by a live worker at {address}; stop that one, or give this one another --id \
         (one that was killed a moment ago loses its id within {} s)", within.as_secs()
    )]
    IdTaken {
        /// The id.
        id: WorkerId,
        /// Where the other is reached.
        address: String,
        /// How long an id outlives its worker.
        within: Duration,
    },
    /// etcd cannot be reached, is too old, or refuses.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A driver has lost track of what runs.
    #[error("the driver of {0} has failed, and nobody knows what runs: the guard is to end all work")]
    Broken(evenkeel_model::ResourceName),
    /// It has panicked, and nobody knows what it ran.
    #[error("a worker in this process has panicked, and nobody knows what it ran")]
    Panicked,
    /// The guard cannot be told what it must know.
    #[error("the guard does not hear: nothing may be run")]
    GuardDeaf,
}

impl WorkerError {
    /// PURE: the exit status of the agent: whether the guard is to start it again. See [`crate::guard::FINAL_STATUSES`]. Once the guard has
    /// had a session (`has_registered`) only a taken id is final: what was right before may be wrong for a moment, and work waits for it.
    #[must_use]
    pub fn exit_status(&self, has_registered: bool) -> u8 {
        match self {
            Self::IdTaken { .. } => 1,
            _ if has_registered => STATUS_AGAIN,
            Self::Broken(_) | Self::Panicked | Self::GuardDeaf | Self::System { .. } => STATUS_AGAIN,
            Self::Drivers(_) | Self::Timing(_) => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_first_registration_only_a_taken_id_is_final() {
        let io = || io::Error::from(io::ErrorKind::AddrInUse);
        let id = WorkerId::new("worker-1").expect("id");
        let listen = WorkerError::Listen { flag: "--grpc", address: SocketAddr::from(([127, 0, 0, 1], 1)), source: io() };
        let catalog = WorkerError::Catalog(CatalogError::Content { path: PathBuf::new(), reason: String::new() });
        let store = WorkerError::Store(store::Error::Overloaded { endpoint: String::new() });
        // what ends the agent; its status before the first registration, and after
        let cases = [
            (WorkerError::IdTaken { id, address: String::new(), within: Duration::ZERO }, 1, 1),
            (catalog, 1, STATUS_AGAIN),
            (listen, 1, STATUS_AGAIN),
            (WorkerError::DataDir { path: PathBuf::new(), source: io() }, 1, STATUS_AGAIN),
            (WorkerError::DataDirInUse { path: PathBuf::new(), holder: String::new() }, 1, STATUS_AGAIN),
            (store, 1, STATUS_AGAIN),
            (WorkerError::Link(LinkError::NoGuard), 1, STATUS_AGAIN),
            (WorkerError::System { what: "hold processes", source: io() }, STATUS_AGAIN, STATUS_AGAIN),
            (WorkerError::GuardDeaf, STATUS_AGAIN, STATUS_AGAIN),
        ];
        for (error, before, after) in cases {
            assert_eq!((error.exit_status(false), error.exit_status(true)), (before, after), "{error}");
        }
    }

    #[test]
    fn data_has_a_folder_per_worker() {
        let id = WorkerId::new("worker-1").expect("id");
        assert_eq!(default_data_dir(&id, Some(OsStr::new("/state"))), Path::new("/state/evenkeel/worker-1"));
        assert!(default_data_dir(&id, None).ends_with("evenkeel/worker-1"));
        assert_eq!(default_data_dir(&id, Some(OsStr::new("relative"))), default_data_dir(&id, None));
    }
}

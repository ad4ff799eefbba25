//! The folder in which a worker keeps its logs: its own, by a lock, and of one cluster.
//!
//! The wheel: before worker::agent, which holds it for its life. Two workers never write into one folder; what another cluster's resource of
//! the same name has written is never shown as this one's.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::xxh3_64;

use crate::{config::WorkerError, driver::log::log_folder};

/// Is locked by the agent that has the folder, and says which process that is.
const LOCK: &str = "lock";
/// Says which cluster the logs in the folder are of.
const CLUSTER: &str = "cluster.json";
const TASKS: &str = "tasks";
/// How long a folder that is in use is waited for: an agent whose guard was killed ends its work within a few seconds.
const HELD_WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// A cluster, as a worker knows it before etcd answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    prefix: String,
    etcd: Vec<String>,
}

/// A folder that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    /// Where the logs are.
    pub(crate) logs: PathBuf,
    /// Where what is recorded of tasks is: numbers of another cluster's are no numbers of this one's.
    pub(crate) tasks: PathBuf,
    /// None: the file system knows no locks.
    _lock: Option<File>,
}

/// What follows from what a folder says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It is taken, and its logs are this cluster's.
    Own,
    /// It is taken; its logs are another cluster's, and stand beside.
    Beside,
    /// A folder of this cluster's own is taken in its place.
    Another,
    /// It is in use: it may be free in a moment, or never.
    Wait,
}

impl Cluster {
    pub(crate) fn new(prefix: &str, etcd: impl IntoIterator<Item = String>) -> Self {
        let mut etcd: Vec<String> = etcd.into_iter().collect();
        etcd.sort();
        Self { prefix: prefix.to_owned(), etcd }
    }

    /// Members come and go: one that both name is enough.
    fn is(&self, other: &Self) -> bool {
        self.prefix == other.prefix && self.etcd.iter().any(|member| other.etcd.contains(member))
    }

    /// Tells it from others in a name.
    fn digest(&self) -> String {
        let text = format!("{}\n{}", self.prefix, self.etcd.join("\n"));
        format!("{:08x}", xxh3_64(text.as_bytes()) >> 32)
    }

    /// PURE: how a folder is used that somebody else has, or not, and whose logs are a cluster's, as far as it says. `is_given`: a person
    /// has named it.
    fn use_of(&self, is_held: bool, logs_of: Option<&Self>, is_given: bool) -> Use {
        let is_other = logs_of.is_some_and(|cluster| !self.is(cluster));
        match (is_held, is_other, is_given) {
            (_, true, false) => Use::Another,
            (true, _, _) => Use::Wait,
            (false, true, true) => Use::Beside,
            (false, false, _) => Use::Own,
        }
    }
}

impl DataDir {
    /// Takes a folder, or, if nobody has named it and it is another cluster's, one of a name of its own.
    ///
    /// # Errors
    /// It cannot be used, or somebody else has it.
    pub(crate) async fn take(path: &Path, is_given: bool, cluster: &Cluster) -> Result<Self, WorkerError> {
        let own = match Self::try_to_take(path, is_given, cluster).await? {
            Some(taken) => return Ok(taken),
            None => beside(path, &cluster.digest()),
        };
        tracing::warn!(
            folder = %own.display(),
            "{} is of a worker of the same id in another cluster: this one keeps its logs in a folder of its own",
            path.display()
        );
        let taken = Self::try_to_take(&own, true, cluster).await?;
        taken.ok_or_else(|| WorkerError::DataDirInUse { path: own, holder: String::new() })
    }

    /// None: another one is to be taken.
    async fn try_to_take(path: &Path, is_given: bool, cluster: &Cluster) -> Result<Option<Self>, WorkerError> {
        let wrong = |source| WorkerError::DataDir { path: path.to_owned(), source };
        let mut until = None;
        loop {
            let Attempt { lock, holder } = lock(path).map_err(wrong)?;
            let logs_of = read_cluster(path);
            let (logs, tasks) = (log_folder(path), path.join(TASKS));
            let (logs, tasks) = match cluster.use_of(holder.is_some(), logs_of.as_ref(), is_given) {
                Use::Own => (logs, tasks),
                // A record of a task says whose it is, and what is not found is lost: etcd may only be spelled in another way.
                Use::Beside => (beside(&logs, &cluster.digest()), tasks),
                Use::Another => return Ok(None),
                Use::Wait => {
                    let holder = holder.unwrap_or_default();
                    if Instant::now() >= *until.get_or_insert(Instant::now() + HELD_WAIT) {
                        return Err(WorkerError::DataDirInUse { path: path.to_owned(), holder });
                    }
                    sleep(PAUSE).await;
                    continue;
                }
            };
            // Where it cannot be written now, because the disk is full, the next start does.
            if logs_of.is_none_or(|known| cluster.is(&known) && known != *cluster)
                && let Err(error) = write_cluster(path, cluster)
            {
                tracing::warn!(%error, "{} cannot be written", path.join(CLUSTER).display());
            }
            return Ok(Some(Self { logs, tasks, _lock: lock }));
        }
    }
}

/// The same name with something more at its end.
fn beside(path: &Path, digest: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{digest}"));
    path.with_file_name(name)
}

/// What came of a try to lock a folder.
struct Attempt {
    lock: Option<File>,
    /// Somebody else has it: who, as far as that is told.
    holder: Option<String>,
}

fn lock(folder: &Path) -> io::Result<Attempt> {
    fs::create_dir_all(folder)?;
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).custom_flags(nix::libc::O_NOFOLLOW).open(folder.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => {
            // For people only.
            let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
            Ok(Attempt { lock: Some(file), holder: None })
        }
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let _ = file.take(32).read_to_string(&mut process);
            let number = process.trim().parse::<u32>();
            Ok(Attempt { lock: None, holder: Some(number.map_or_else(|_| String::new(), |number| format!(" (process {number})"))) })
        }
        Err(TryLockError::Error(error))
            if error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(nix::libc::ENOLCK) =>
        {
            tracing::warn!(%error, "{} cannot be locked: nothing keeps another worker from writing there", folder.display());
            Ok(Attempt { lock: None, holder: None })
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whose logs there are; none: it does not say.
fn read_cluster(folder: &Path) -> Option<Cluster> {
    serde_json::from_slice(&fs::read(folder.join(CLUSTER)).ok()?).ok()
}

fn write_cluster(folder: &Path, cluster: &Cluster) -> io::Result<()> {
    let new = folder.join(format!("{CLUSTER}.new"));
    fs::write(&new, serde_json::to_vec(cluster)?)?;
    fs::rename(new, folder.join(CLUSTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(prefix: &str, etcd: &[&str]) -> Cluster {
        Cluster::new(prefix, etcd.iter().map(|member| (*member).to_owned()))
    }

    #[test]
    fn a_folder_is_one_workers_and_one_clusters() {
        let own = cluster("", &["http://a:1", "http://b:1"]);
        let (same, grown) = (cluster("", &["http://b:1", "http://a:1"]), cluster("", &["http://b:1", "http://c:1"]));
        let (prefixed, elsewhere) = (cluster("/p", &["http://a:1"]), cluster("", &["http://d:1"]));
        // held by another process, whose logs there are, named by a person
        let cases = [
            (false, None, false, Use::Own),
            (false, None, true, Use::Own),
            (false, Some(&same), false, Use::Own),
            (false, Some(&grown), true, Use::Own),
            (false, Some(&prefixed), false, Use::Another),
            (false, Some(&elsewhere), false, Use::Another),
            (false, Some(&elsewhere), true, Use::Beside),
            (true, None, false, Use::Wait),
            (true, Some(&same), false, Use::Wait),
            (true, Some(&elsewhere), false, Use::Another),
            (true, Some(&same), true, Use::Wait),
            (true, Some(&elsewhere), true, Use::Wait),
        ];
        for (is_held, logs_of, is_given, expected) in cases {
            assert_eq!(own.use_of(is_held, logs_of, is_given), expected, "{is_held} {logs_of:?} {is_given}");
        }
        assert_eq!(own.digest(), same.digest());
        assert_ne!(own.digest(), prefixed.digest());
    }

    async fn take(path: &Path, is_given: bool, cluster: &Cluster) -> Result<DataDir, String> {
        DataDir::take(path, is_given, cluster).await.map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn workers_of_two_clusters_write_into_two_folders_and_find_them_again() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("worker-1");
        let (one, two) = (cluster("", &["http://a:1"]), cluster("/p", &["http://a:1"]));
        let first = take(&path, false, &one).await.expect("free");
        let second = take(&path, false, &two).await.expect("another");
        assert_eq!((&first.logs, &second.logs), (&path.join("logs"), &beside(&path, &two.digest()).join("logs")));
        // The same worker twice.
        let refused = take(&path, false, &one).await.expect_err("in use");
        let here = std::process::id();
        assert_eq!(
            refused,
            format!(
                "--data-dir {}: another worker (process {here}) has it; give each worker of this machine a folder of its own",
                path.display()
            )
        );
        assert!(take(&path, false, &two).await.expect_err("in use").contains(&two.digest()));
        // Both end; each finds its own again, whoever comes first.
        drop((first, second));
        assert_eq!(take(&path, false, &two).await.expect("free").logs, beside(&path, &two.digest()).join("logs"));
        assert_eq!(take(&path, false, &one).await.expect("free").logs, path.join("logs"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_that_a_person_names_is_used_or_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let (one, two) = (cluster("", &["http://a:1"]), cluster("", &["http://b:1"]));
        let first = take(folder.path(), true, &one).await.expect("free");
        take(folder.path(), true, &two).await.expect_err("in use");
        drop(first);
        let second = take(folder.path(), true, &two).await.expect("free");
        assert_eq!(second.logs, folder.path().join(format!("logs-{}", two.digest())), "what the first has written is not shown");
        assert_eq!(second.tasks, folder.path().join("tasks"), "a record says of which task it is");
        drop(second);
        assert_eq!(take(folder.path(), true, &one).await.expect("free").logs, folder.path().join("logs"));
        // Held until its holder is gone: an agent that dies a little later than its guard.
        let held = take(folder.path(), true, &one).await.expect("free");
        let waiting = take(folder.path(), true, &one);
        let frees = async {
            sleep(HELD_WAIT / 2).await;
            drop(held);
        };
        let (waited, ()) = tokio::join!(waiting, frees);
        waited.expect("taken");
        let wrong = take(Path::new("/proc/none"), true, &one).await.expect_err("no folder can be made there");
        assert!(wrong.starts_with("--data-dir /proc/none: "), "{wrong}");
    }
}

//! The threads that wait for the disk on behalf of those who read logs.
//!
//! The wheel: under worker::server. They are made at the start: where no thread can be had later, or the disk hangs, readers are told so,
//! and nothing else is held up.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::PlaceError;

/// Enough that one reader of a large log does not hold up the others; the disk is one.
const THREADS: usize = 2;
/// More than there are connections.
const WAITING: usize = 4096;
/// Longer than a disk that is busy takes, shorter than a person waits.
const PATIENCE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(super) struct Disk(SyncSender<Job>);

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// What stands there is no log, or the system refuses it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// No answer.
    #[error("the disk of the logs does not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// Too many wait.
    #[error("{WAITING} readers of logs wait for the disk; ask again later")]
    Busy,
}

impl Disk {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, jobs) = sync_channel::<Job>(WAITING);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..THREADS {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new().name("log-reader".to_owned()).spawn(move || while next(&jobs).is_some_and(done) {})?;
        }
        Ok(Self(sender))
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let (answer, answered) = oneshot::channel();
        let job = move || {
            // Nobody may wait any more.
            let _ = answer.send(job());
        };
        match self.0.try_send(Box::new(job)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(DiskError::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(DiskError::Silent),
        }
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) | Err(_) => Err(DiskError::Silent),
        }
    }
}

fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn done(job: Job) -> bool {
    job();
    true
}

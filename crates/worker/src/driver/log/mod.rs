//! The output of work: one file a resource, bounded, with one older generation.
//!
//! The wheel: under worker::driver, which writes it by the log of each piece of work, and worker::server, which reads it. It holds bytes, not lines: a line of any length
//! costs no more than its bytes. Work is never held up or ended by its log.
//!
//! [`pending`] decides what is kept while the disk does not take it, [`writer`] is the one thread that writes, [`place`] is what stands on
//! the disk, [`reader`] reads it, and [`disk`] has the threads that readers wait on.

mod disk;
mod pending;
mod place;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use evenkeel_model::{Epoch, ResourceName};

use self::{disk::Disk, place::Place, writer::Writer};

pub(crate) use disk::DiskError;
pub(crate) use place::PlaceError;
pub(crate) use reader::{From, Reader};

/// How long the last output of a run may take to be written before its end is told all the same.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// How long output is left in its pipe, where more of it is kept already than the disk has taken.
const ROOM: Duration = Duration::from_secs(1);

/// The logs of one worker. Its copies share their threads, which end with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Logs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Place,
    writer: Writer,
    disk: Disk,
}

/// The log of one piece of work, for writing. What it costs while nothing is written is its name.
#[derive(Clone, Debug)]
pub struct Log(Option<Arc<Output>>);

#[derive(Debug)]
struct Output {
    name: ResourceName,
    /// Whose output it is; none: nobody has said.
    epoch: Option<Epoch>,
    /// Something was written.
    begun: AtomicBool,
    logs: Logs,
}

/// What is measured of logs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Yet to be written.
    pub(crate) pending: u64,
    /// Lost since the start.
    pub(crate) lost: u64,
}

impl Logs {
    /// Logs below this folder; each generation of a log has at most so many bytes. Logs that nothing was written to for `keep` are removed.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start(folder: PathBuf, max_bytes: u64, keep: Duration) -> io::Result<Self> {
        let place = Place::new(folder, max_bytes);
        let writer = Writer::start(place.clone(), keep)?;
        Ok(Self(Arc::new(Shared { place, writer, disk: Disk::start()? })))
    }

    /// The log of a resource. Nothing is made before the first byte.
    pub(crate) fn writer(&self, name: &ResourceName) -> Log {
        Log(Some(Arc::new(Output { name: name.clone(), epoch: None, begun: AtomicBool::new(false), logs: self.clone() })))
    }

    /// What is kept of a resource, from a point on, and what is written later.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) async fn read(&self, name: &ResourceName, from: From) -> Result<Reader, DiskError> {
        let (place, name) = (self.0.place.clone(), name.clone());
        self.0.disk.run(move || Reader::begin(place, name, from)).await
    }

    /// Up to 64 KiB of what comes next; empty if there is nothing at the moment.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) async fn more(&self, mut reader: Reader) -> Result<(Reader, Vec<u8>), DiskError> {
        self.0.disk.run(move || reader.more().map(|bytes| (reader, bytes))).await
    }

    pub(crate) fn measured(&self) -> Measured {
        self.0.writer.measured()
    }
}

impl Log {
    /// A log that keeps nothing: of a worker without files.
    #[must_use]
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// The same log; what is written to it is the output of this epoch, so that who follows the resource from worker to worker is shown
    /// nothing that an earlier owner wrote here.
    pub(crate) fn of(self, epoch: Epoch) -> Self {
        let of = |output: &Arc<Output>| {
            let Output { name, logs, .. } = &**output;
            Arc::new(Output { name: name.clone(), epoch: Some(epoch), begun: AtomicBool::new(false), logs: logs.clone() })
        };
        Self(self.0.as_ref().map(of))
    }

    /// Appends a line.
    pub fn line(&self, text: impl std::fmt::Display) {
        self.append(format!("{text}\n").as_bytes());
    }

    /// Appends. It never blocks and never fails: where the disk does not keep up the oldest is lost, which is counted, and told in the log.
    pub fn append(&self, bytes: &[u8]) {
        let Some(output) = self.0.as_ref().filter(|_| !bytes.is_empty()) else { return };
        let Output { name, epoch, begun, logs } = &**output;
        let begins = epoch.filter(|_| !begun.load(Ordering::Relaxed) && !begun.swap(true, Ordering::Relaxed));
        logs.0.writer.append(name, begins, bytes);
    }

    /// Returns when more should be appended: at once, or, where much is pending, when the disk has taken it. It waits for a second at the
    /// most, and not at all for a disk that is full or hangs.
    pub async fn room(&self) {
        let Some(output) = &self.0 else { return };
        let Output { name, logs, .. } = &**output;
        let Some(waits) = logs.0.writer.pending().wait_for_room(name) else { return };
        if tokio::time::timeout(ROOM, waits).await.is_err() {
            logs.0.writer.pending().stall();
        }
    }

    /// Returns when what was appended is in its file, or after two seconds.
    pub async fn finish(&self) {
        let Some(output) = &self.0 else { return };
        let Output { name, logs, .. } = &**output;
        let waits = logs.0.writer.pending().wait_until_done(name);
        if let Some(waits) = waits
            && tokio::time::timeout(LAST_WRITE, waits).await.is_err()
        {
            tracing::debug!(resource = %name, "the last output of a run is still being written");
        }
    }
}

/// The folder of logs within a worker's data.
pub(crate) fn log_folder(data: &Path) -> PathBuf {
    data.join("logs")
}

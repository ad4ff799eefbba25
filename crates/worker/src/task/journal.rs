//! What this worker has recorded of each attempt: that it was ordered, that it was begun, how it ended. It outlives agents and their machines.
//!
//! The wheel: under worker::task. worker::task::rules decides by it, worker::task::runner writes it. Each step is on the disk when its call returns: a
//! file beside, synced, renamed, and the folder synced. A simulator puts its own in its place. It decides nothing.
//!
//! `<data>/tasks/<id>.<attempt>/` has the files `order`, `begun` and `ended`, beside the script and what it wrote.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use evenkeel_model::{
    Origin, Revision, TaskId,
    task::{TaskResult, TaskTail},
};
use serde::{Deserialize, Serialize};

use super::script::remove_secrets;

const ORDER: &str = "order";
const BEGUN: &str = "begun";
const ENDED: &str = "ended";
/// The name of a folder that is being removed ends like this, and is no attempt's.
const REMOVED: &str = ".removed";
/// Others pass through on their way to their script, and see nothing.
const PASSED: u32 = 0o711;
/// Records of attempts that ended so long ago are removed.
const KEPT: Duration = Duration::from_secs(7 * 86_400);
/// All records may take so much of the disk, with the output that is kept beside them: a gibibyte is a thousand attempts that wrote all they could.
const KEPT_BYTES: u64 = 1 << 30;

/// The record of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of which task.
    pub id: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// When its task was created, by the leader's time of day: another task may have had this id, in an etcd that was restored from a backup. 0: it is not known.
    pub created: i64,
    /// The revision of its order.
    pub order: Revision,
    /// The guard and the boot under which it was begun.
    pub origin: Origin,
    /// When, by the worker's time of day, in nanoseconds.
    pub began: i64,
    /// Of each stream so many bytes are told to etcd.
    pub tail: usize,
    /// How far it has come.
    pub stage: Stage,
}

/// How far an attempt has come, as far as is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Etcd may have been told; it was not executed.
    Ordered,
    /// It may have been executed.
    Begun,
    /// It has ended.
    Ended(Box<End>),
    /// What was recorded cannot be read: it may have been executed.
    Unreadable,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct End {
    /// What came of it.
    pub result: TaskResult,
    /// The last of what it wrote.
    pub tail: TaskTail,
}

/// The file `order`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ordered {
    #[serde(default)]
    created: i64,
    order: Revision,
    origin: Origin,
    began: i64,
    tail: usize,
}

/// Keeps records.
pub trait Journal: Send + Sync + 'static {
    /// All of them.
    ///
    /// # Errors
    /// They cannot be read: nothing may begin then.
    fn load(&self) -> impl Future<Output = io::Result<Vec<Record>>> + Send;

    /// Records an attempt at the stage [`Stage::Ordered`], in place of whatever was recorded of it at that stage.
    ///
    /// # Errors
    /// It could not be recorded. It may be there all the same.
    fn order(&self, record: &Record) -> impl Future<Output = io::Result<()>> + Send;

    /// Records that it may be executed from now on.
    ///
    /// # Errors
    /// It could not be recorded. It may be there all the same.
    fn begun(&self, record: &Record) -> impl Future<Output = io::Result<()>> + Send;

    /// Records its end.
    ///
    /// # Errors
    /// It could not be recorded. It may be there all the same.
    fn ended(&self, record: &Record, end: &End) -> impl Future<Output = io::Result<()>> + Send;

    /// Removes a record, and all that is kept beside it.
    fn remove(&self, id: TaskId, attempt: u32) -> impl Future<Output = ()> + Send;

    /// Removes what is too old or too much, of attempts that have ended; never of those that are kept. Which were removed.
    fn prune(&self, kept: Vec<(TaskId, u32)>) -> impl Future<Output = Vec<(TaskId, u32)>> + Send;
}

/// Records on the disk.
#[derive(Clone, Debug)]
pub(crate) struct DiskJournal {
    folder: PathBuf,
}

impl DiskJournal {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder of an attempt.
    pub(crate) fn folder(&self, id: TaskId, attempt: u32) -> PathBuf {
        self.folder.join(format!("{id}.{attempt}"))
    }

    /// The attempts of a task that have a folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn attempts(&self, id: TaskId) -> io::Result<Vec<u32>> {
        let mut found: Vec<u32> = self.all()?.into_iter().filter(|(of, _)| *of == id).map(|(_, attempt)| attempt).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Every attempt that has a folder.
    fn all(&self) -> io::Result<Vec<(TaskId, u32)>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let parts = name.to_str().and_then(|name| name.split_once('.'));
            found.extend(parts.and_then(|(id, attempt)| Some((TaskId(id.parse().ok()?), attempt.parse().ok()?))));
        }
        Ok(found)
    }

    /// The record of an attempt; none: it has none, as it was not ordered to the end.
    fn read(&self, id: TaskId, attempt: u32) -> io::Result<Option<Record>> {
        let folder = self.folder(id, attempt);
        let Some(ordered) = read_file(&folder.join(ORDER))? else { return Ok(None) };
        let Ordered { created, order, origin, began, tail } = serde_json::from_slice(&ordered)?;
        let stage = match read_file(&folder.join(ENDED))? {
            Some(ended) => Stage::Ended(serde_json::from_slice(&ended)?),
            None if folder.join(BEGUN).try_exists()? => Stage::Begun,
            None => Stage::Ordered,
        };
        Ok(Some(Record { id, attempt, created, order, origin, began, tail, stage }))
    }

    fn read_all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for (id, attempt) in self.all()? {
            // Of whoever died with it.
            remove_secrets(&self.folder(id, attempt));
            match self.read(id, attempt) {
                Ok(Some(record)) => records.push(record),
                // It was not ordered to the end.
                Ok(None) => self.remove_now(id, attempt),
                // It says nothing, and stands in the way of its own attempt alone.
                Err(error) if error.kind() == io::ErrorKind::InvalidData || error.kind() == io::ErrorKind::UnexpectedEof => {
                    tracing::error!(task = %id, attempt, %error, "the record of an attempt cannot be read: the attempt is not begun again");
                    let none = Origin { boot_id: String::new(), guard: String::new() };
                    let (created, order, began, tail) = (0, Revision::default(), 0, 0);
                    records.push(Record { id, attempt, created, order, origin: none, began, tail, stage: Stage::Unreadable });
                }
                Err(error) => return Err(io::Error::other(format!("{}: {error}", self.folder(id, attempt).display()))),
            }
        }
        Ok(records)
    }

    fn write_order(&self, record: &Record) -> io::Result<()> {
        crate::fault::at("task.order")?;
        let folder = self.folder(record.id, record.attempt);
        // What another order of the same attempt has left: it was not executed.
        remove_folder(&folder)?;
        DirBuilder::new().recursive(true).mode(PASSED).create(&self.folder)?;
        DirBuilder::new().mode(PASSED).create(&folder)?;
        sync_folder(&self.folder)?;
        let Record { created, order, origin, began, tail, .. } = record.clone();
        write_synced(&folder, ORDER, &serde_json::to_vec(&Ordered { created, order, origin, began, tail })?)
    }

    fn remove_now(&self, id: TaskId, attempt: u32) {
        if let Err(error) = remove_folder(&self.folder(id, attempt)) {
            tracing::warn!(task = %id, attempt, %error, "what is kept of an attempt cannot be removed");
        }
    }

    /// What is too old or too much of what has ended, the oldest first.
    fn prune_now(&self, kept: &[(TaskId, u32)], mut room: u64) -> io::Result<Vec<(TaskId, u32)>> {
        let mut ended = Vec::new();
        for (id, attempt) in self.all()? {
            let folder = self.folder(id, attempt);
            if let Ok(metadata) = fs::metadata(folder.join(ENDED)) {
                ended.push((metadata.modified()?, (id, attempt), size_of(&folder)));
            }
        }
        ended.sort_unstable();
        let mut removed = Vec::new();
        for (at, key, size) in ended.into_iter().rev() {
            let is_old = SystemTime::now().duration_since(at).is_ok_and(|age| age > KEPT);
            let fits = room.checked_sub(size);
            room = fits.unwrap_or(0);
            if (is_old || fits.is_none()) && !kept.contains(&key) {
                self.remove_now(key.0, key.1);
                removed.push(key);
            }
        }
        Ok(removed)
    }

    /// On a thread that may wait for the disk.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(io::Error::other)?
    }
}

impl Journal for DiskJournal {
    async fn load(&self) -> io::Result<Vec<Record>> {
        self.blocking(Self::read_all).await
    }

    async fn order(&self, record: &Record) -> io::Result<()> {
        let record = record.clone();
        self.blocking(move |this| this.write_order(&record)).await
    }

    async fn begun(&self, record: &Record) -> io::Result<()> {
        let folder = self.folder(record.id, record.attempt);
        self.blocking(move |_| {
            crate::fault::at("task.begun")?;
            write_synced(&folder, BEGUN, b"")
        })
        .await
    }

    async fn ended(&self, record: &Record, end: &End) -> io::Result<()> {
        let folder = self.folder(record.id, record.attempt);
        let text = serde_json::to_vec(end)?;
        self.blocking(move |_| {
            crate::fault::at("task.ended")?;
            write_synced(&folder, ENDED, &text)
        })
        .await
    }

    async fn remove(&self, id: TaskId, attempt: u32) {
        let remove = move |this: &Self| {
            this.remove_now(id, attempt);
            Ok(())
        };
        let _ = self.blocking(remove).await;
    }

    async fn prune(&self, kept: Vec<(TaskId, u32)>) -> Vec<(TaskId, u32)> {
        match self.blocking(move |this| this.prune_now(&kept, KEPT_BYTES)).await {
            Ok(removed) => removed,
            Err(error) => {
                tracing::warn!(%error, "what is kept of tasks cannot be looked through");
                Vec::new()
            }
        }
    }
}

fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file that is there whole or not at all, whatever happens.
fn write_synced(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(new, folder.join(name))?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a record at once, and then what is kept beside it: half a record would tell of another stage.
fn remove_folder(folder: &Path) -> io::Result<()> {
    remove_secrets(folder);
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(REMOVED);
    let removed = folder.with_file_name(name);
    absent_is_fine(fs::remove_dir_all(&removed))?;
    absent_is_fine(fs::rename(folder, &removed))?;
    absent_is_fine(fs::remove_dir_all(&removed))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How much of the disk is taken. How long files are says nothing: a script that makes its own file long, with nothing in it, would cost others theirs.
fn size_of(folder: &Path) -> u64 {
    const BLOCK: u64 = 512;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * BLOCK).sum()
}

#[cfg(test)]
mod tests {
    use evenkeel_model::task::Outcome;

    use super::*;

    fn record(attempt: u32) -> Record {
        let origin = Origin { boot_id: "b".to_owned(), guard: "g".to_owned() };
        Record { id: TaskId(7), attempt, created: 3, order: Revision(4711), origin, began: 5, tail: 9, stage: Stage::Ordered }
    }

    fn end() -> End {
        let result = TaskResult::running(1, Revision(4711), 5).with_end(Outcome::Failed, 6, "");
        End { result, tail: TaskTail { attempt: 1, out: b"\xff".to_vec(), err: vec![] } }
    }

    #[tokio::test]
    async fn what_is_recorded_is_found_again_at_each_stage() {
        let folder = tempfile::tempdir().expect("folder");
        let journal = DiskJournal::new(folder.path().join("tasks"));
        assert_eq!(journal.load().await.expect("loaded"), []);
        let record = record(1);
        let at = |stage| vec![Record { stage, ..record.clone() }];
        journal.order(&record).await.expect("recorded");
        assert_eq!(journal.load().await.expect("loaded"), at(Stage::Ordered));
        fs::write(journal.folder(record.id, 1).join("begun.new"), "").expect("written");
        assert_eq!(journal.load().await.expect("loaded"), at(Stage::Ordered), "what was not renamed does not count");
        journal.begun(&record).await.expect("recorded");
        assert_eq!(journal.load().await.expect("loaded"), at(Stage::Begun));
        journal.ended(&record, &end()).await.expect("recorded");
        assert_eq!(journal.load().await.expect("loaded"), at(Stage::Ended(Box::new(end()))));
        assert_eq!(journal.attempts(TaskId(7)).expect("listed"), [1]);
        assert_eq!(journal.attempts(TaskId(8)).expect("listed"), [0; 0]);
        journal.remove(record.id, 1).await;
        assert_eq!(journal.load().await.expect("loaded"), []);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_stands_in_the_way_of_its_own_attempt_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let journal = DiskJournal::new(folder.path().to_owned());
        for attempt in 1..=3 {
            journal.order(&record(attempt)).await.expect("recorded");
        }
        fs::write(journal.folder(TaskId(7), 1).join(ORDER), "{").expect("written");
        fs::write(journal.folder(TaskId(7), 2).join(ORDER), "").expect("written");
        let mut stages: Vec<_> = journal.load().await.expect("loaded").into_iter().map(|record| (record.attempt, record.stage)).collect();
        stages.sort_by_key(|(attempt, _)| *attempt);
        assert_eq!(stages, [(1, Stage::Unreadable), (2, Stage::Unreadable), (3, Stage::Ordered)]);
    }

    #[tokio::test]
    async fn only_what_has_ended_and_is_not_kept_is_pruned() {
        let folder = tempfile::tempdir().expect("folder");
        let journal = DiskJournal::new(folder.path().to_owned());
        for attempt in 1..=4 {
            journal.order(&record(attempt)).await.expect("recorded");
            if attempt > 1 {
                journal.ended(&record(attempt), &end()).await.expect("recorded");
            }
        }
        let old = SystemTime::now() - KEPT - Duration::from_secs(9);
        for attempt in [2, 3] {
            File::open(journal.folder(TaskId(7), attempt).join(ENDED)).and_then(|file| file.set_modified(old)).expect("set");
        }
        assert_eq!(journal.prune(vec![(TaskId(7), 3)]).await, [(TaskId(7), 2)]);
        File::open(journal.folder(TaskId(7), 3).join(ENDED)).and_then(|file| file.set_modified(SystemTime::now())).expect("set");
        // One whose script is long, and takes nothing.
        let long = File::create(journal.folder(TaskId(7), 4).join("script")).expect("made");
        long.set_len(2 << 40).expect("set");
        assert_eq!(journal.prune(vec![]).await, []);
        // One that takes more than all that may be kept.
        let large = vec![b'x'; 1 << 20];
        fs::write(journal.folder(TaskId(7), 4).join("out-0"), &large).expect("written");
        let removed = journal.prune_now(&[(TaskId(7), 3)], large.len() as u64).expect("pruned");
        assert_eq!(removed, [(TaskId(7), 4)]);
        assert_eq!(journal.attempts(TaskId(7)).expect("listed"), [1, 3]);
    }
}

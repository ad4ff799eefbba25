//! Where logs stand on the disk: a folder for each resource, `out.log`, `out.log.1`, and `epoch`, which says where the output of the
//! present owner begins.
//!
//! The wheel: under the writer and the readers of logs. Every look opens anew what it needs, by names that are no links: whatever somebody
//! removes, moves or replaces is noticed with the next batch. It holds nothing open, and decides nothing about what is lost.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use evenkeel_model::{Epoch, ResourceName};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, unlinkat},
    io::Errno,
};

use super::pending::Batch;

pub(super) const CURRENT: &str = "out.log";
pub(super) const OLDER: &str = "out.log.1";
const EPOCH: &str = "epoch";
const EPOCH_NEW: &str = "epoch.new";

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A pipe that somebody puts there must not hold up who opens it.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
/// What the umask leaves of these.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o777);
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);

/// The folder of all logs of a worker.
#[derive(Clone, Debug)]
pub(super) struct Place {
    folder: PathBuf,
    max_bytes: u64,
}

/// One file, as long as it exists: a number may be another's later, but not with the same time of birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    number: u64,
    /// Nanoseconds since the Unix epoch; 0: the file system does not tell.
    born: u64,
}

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(super) generation: Generation,
    pub(super) offset: u64,
}

/// A log that cannot be written or read: the path, and what is wrong there.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub(crate) struct PlaceError {
    path: PathBuf,
    fault: Fault,
}

#[derive(Debug)]
enum Fault {
    Link,
    NoFolder,
    NoFile,
    System(Errno),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("a symbolic link is not followed here; remove it, or mount a file system in its place"),
            Self::NoFolder => f.write_str("it must be a folder; remove what is in its place"),
            Self::NoFile => f.write_str("it must be a file; remove what is in its place"),
            Self::System(errno) if is_full(*errno) => write!(f, "{}; make room", words(*errno)),
            Self::System(errno) if matches!(*errno, Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
                write!(f, "{}; the worker's user must be allowed to write there", words(*errno))
            }
            Self::System(errno) => f.write_str(&words(*errno)),
        }
    }
}

fn words(errno: Errno) -> String {
    nix::errno::Errno::from_raw(errno.raw_os_error()).desc().to_lowercase()
}

fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

impl PlaceError {
    pub(super) fn reading(path: PathBuf, error: &std::io::Error) -> Self {
        Self { path, fault: system(error) }
    }

    /// No room on the disk.
    pub(super) fn is_full(&self) -> bool {
        matches!(self.fault, Fault::System(errno) if is_full(errno))
    }

    /// What is wrong concerns this resource alone: something else is in its log's place.
    pub(super) fn is_of_one(&self) -> bool {
        !matches!(self.fault, Fault::System(errno) if is_full(errno) || matches!(errno, Errno::IO | Errno::ROFS | Errno::STALE))
    }

    /// Why, without the path: for the log itself.
    pub(super) fn why(&self) -> String {
        match &self.fault {
            Fault::System(errno) => words(*errno),
            fault => fault.to_string(),
        }
    }
}

impl Place {
    pub(super) fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes }
    }

    pub(super) fn of(&self, name: &ResourceName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    /// Opens the folder of a resource; none: there is none.
    fn open(&self, name: &ResourceName) -> Result<Option<OwnedFd>, PlaceError> {
        let Some(all) = open_folder(CWD, &self.folder, &self.folder)? else { return Ok(None) };
        open_folder(&all, Path::new(name.as_str()), &self.of(name))
    }

    /// Opens the folder of a resource, and makes it if there is none.
    fn make(&self, name: &ResourceName) -> Result<OwnedFd, PlaceError> {
        let all = match open_folder(CWD, &self.folder, &self.folder)? {
            Some(all) => all,
            None => {
                let fault = |error: std::io::Error| Fault::System(Errno::from_io_error(&error).unwrap_or(Errno::IO));
                let parent = self.folder.parent().unwrap_or(Path::new("/"));
                fs::create_dir_all(parent).map_err(|error| PlaceError { path: parent.to_owned(), fault: fault(error) })?;
                make_folder(CWD, &self.folder, &self.folder)?
            }
        };
        make_folder(&all, Path::new(name.as_str()), &self.of(name))
    }

    /// Writes a batch. What is written is taken out of it, also where the rest fails. `too_slow`: why something was lost before it, where no
    /// try has failed.
    pub(super) fn write(&self, batch: &mut Batch, too_slow: &str) -> Result<(), PlaceError> {
        loop {
            match self.try_to_write(batch, too_slow) {
                // The newest output is worth more than the oldest.
                Err(error) if error.is_full() && self.give_up_older(&batch.name) => {}
                done => return done,
            }
        }
    }

    fn try_to_write(&self, batch: &mut Batch, too_slow: &str) -> Result<(), PlaceError> {
        let folder = self.make(&batch.name)?;
        let mut file = Writing { folder: &folder, path: self.of(&batch.name), max_bytes: self.max_bytes, open: None };
        if let Some(mark) = batch.mark {
            let (mut before, after) = (batch.bytes.drain(..mark.at).collect::<VecDeque<u8>>(), std::mem::take(&mut batch.bytes));
            let written = file.append(&mut before);
            batch.mark = Some(super::pending::Mark { at: before.len(), ..mark });
            batch.bytes = before;
            batch.bytes.extend(after);
            written?;
            file.mark(mark.epoch)?;
            batch.mark = None;
        }
        if batch.lost > 0 {
            let line = format!("[evenkeel: {} bytes of output were lost here: {}]\n", batch.lost, batch.why.as_deref().unwrap_or(too_slow));
            let cut = if file.ends_with_a_line()? { "" } else { "\n" };
            file.append(&mut format!("{cut}{line}").bytes().collect())?;
            batch.lost = 0;
        }
        file.append(&mut batch.bytes)
    }

    /// Removes the older generation. False if there is none.
    fn give_up_older(&self, name: &ResourceName) -> bool {
        self.open(name).is_ok_and(|folder| folder.is_some_and(|folder| unlinkat(&folder, OLDER, AtFlags::empty()).is_ok()))
    }

    /// The files that are kept, the oldest first.
    pub(super) fn kept(&self, name: &ResourceName) -> Result<Vec<(File, Generation)>, PlaceError> {
        let Some(folder) = self.open(name)? else { return Ok(Vec::new()) };
        // The newer file is opened first. If it has become the older one meanwhile, it is found there again, and taken once.
        let mut kept = Vec::new();
        for file in [CURRENT, OLDER] {
            let path = self.of(name).join(file);
            let Some(opened) = open_file(&folder, file, OFlags::RDONLY, &path)? else { continue };
            let generation = Generation::of(&opened, &path)?;
            if kept.iter().all(|(_, other)| *other != generation) {
                kept.insert(0, (opened, generation));
            }
        }
        Ok(kept)
    }

    /// Where the output of the last owner that wrote anything begins; none: nobody knows.
    pub(super) fn mark(&self, name: &ResourceName) -> Result<Option<(Epoch, Position)>, PlaceError> {
        let Some(folder) = self.open(name)? else { return Ok(None) };
        read_mark(&folder, &self.of(name))
    }

    /// Removes the logs that nothing was written to for so long.
    pub(super) fn prune(&self, older_than: Duration, now: SystemTime) -> std::io::Result<()> {
        if !fs::symlink_metadata(&self.folder).is_ok_and(|folder| folder.is_dir()) {
            return Ok(());
        }
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && now.duration_since(last_written(&entry.path())?).is_ok_and(|age| age > older_than) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn last_written(folder: &Path) -> std::io::Result<SystemTime> {
    let mut last = None;
    for entry in fs::read_dir(folder)? {
        last = last.max(Some(entry?.metadata()?.modified()?));
    }
    last.map_or_else(|| fs::metadata(folder)?.modified(), Ok)
}

/// What is wrong with a name that cannot be opened.
fn fault(at: impl AsFd, name: &Path, errno: Errno, wrong: Fault) -> Fault {
    let kind = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    match (errno, kind) {
        (Errno::LOOP | Errno::NOTDIR, Ok(rustix::fs::FileType::Symlink)) => Fault::Link,
        (Errno::NOTDIR | Errno::ISDIR | Errno::NXIO, Ok(_)) => wrong,
        _ => Fault::System(errno),
    }
}

fn open_folder(at: impl AsFd, name: &Path, path: &Path) -> Result<Option<OwnedFd>, PlaceError> {
    match openat(&at, name, FOLDER, Mode::empty()) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(PlaceError { path: path.to_owned(), fault: fault(at, name, errno, Fault::NoFolder) }),
    }
}

fn make_folder(at: impl AsFd, name: &Path, path: &Path) -> Result<OwnedFd, PlaceError> {
    if let Some(folder) = open_folder(&at, name, path)? {
        return Ok(folder);
    }
    match mkdirat(&at, name, FOLDER_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(PlaceError { path: path.to_owned(), fault: Fault::System(errno) }),
    }
    open_folder(at, name, path)?.ok_or_else(|| PlaceError { path: path.to_owned(), fault: Fault::System(Errno::NOENT) })
}

fn open_file(folder: &OwnedFd, name: &str, how: OFlags, path: &Path) -> Result<Option<File>, PlaceError> {
    let wrong = |fault| PlaceError { path: path.to_owned(), fault };
    let file = match openat(folder, name, FILE | how, FILE_MODE) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(wrong(fault(folder, Path::new(name), errno, Fault::NoFile))),
    };
    let is_file = file.metadata().map_err(|error| wrong(system(&error)))?.is_file();
    if is_file { Ok(Some(file)) } else { Err(wrong(Fault::NoFile)) }
}

fn system(error: &std::io::Error) -> Fault {
    Fault::System(Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// The log of a resource while a batch is written.
struct Writing<'a> {
    folder: &'a OwnedFd,
    path: PathBuf,
    max_bytes: u64,
    open: Option<(File, u64)>,
}

impl Writing<'_> {
    fn failed(&self, error: &std::io::Error) -> PlaceError {
        PlaceError { path: self.path.join(CURRENT), fault: system(error) }
    }

    /// Opens the file if it is not; its size.
    fn size(&mut self) -> Result<u64, PlaceError> {
        if let Some((_, size)) = &self.open {
            return Ok(*size);
        }
        let path = self.path.join(CURRENT);
        let how = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE;
        let file = open_file(self.folder, CURRENT, how, &path)?.ok_or(PlaceError { path, fault: Fault::System(Errno::NOENT) })?;
        let size = file.metadata().map_err(|error| self.failed(&error))?.len();
        self.open = Some((file, size));
        Ok(size)
    }

    /// Appends, and takes out of the bytes what is written.
    fn append(&mut self, bytes: &mut VecDeque<u8>) -> Result<(), PlaceError> {
        while !bytes.is_empty() {
            let size = self.size()?;
            let room = usize::try_from(self.max_bytes.saturating_sub(size)).unwrap_or(usize::MAX);
            if bytes.len() <= room {
                return self.write(bytes, bytes.len());
            }
            // A generation ends with a line where it can.
            let cut = bytes.range(..room).rposition(|b| *b == b'\n').map_or(if size == 0 { room } else { 0 }, |at| at + 1);
            self.write(bytes, cut)?;
            self.rotate()?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &mut VecDeque<u8>, mut count: usize) -> Result<(), PlaceError> {
        while count > 0 {
            let Some((file, size)) = &mut self.open else { return Ok(()) };
            let front = bytes.as_slices().0;
            match file.write(&front[..front.len().min(count)]) {
                Ok(0) => return Err(PlaceError { path: self.path.join(CURRENT), fault: Fault::System(Errno::IO) }),
                Ok(written) => {
                    bytes.drain(..written);
                    count -= written;
                    *size += written as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), PlaceError> {
        self.open = None;
        match renameat(self.folder, CURRENT, self.folder, OLDER) {
            // Somebody has removed it: that makes room, too.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(PlaceError { path: self.path.join(OLDER), fault: Fault::System(errno) }),
        }
    }

    fn ends_with_a_line(&mut self) -> Result<bool, PlaceError> {
        let size = self.size()?;
        let Some((file, _)) = self.open.as_ref().filter(|_| size > 0) else { return Ok(true) };
        let mut last = [0];
        file.read_exact_at(&mut last, size - 1).map_err(|error| self.failed(&error))?;
        Ok(last[0] == b'\n')
    }

    /// Notes that the output of an epoch begins here, unless it has begun before.
    fn mark(&mut self, epoch: Epoch) -> Result<(), PlaceError> {
        if read_mark(self.folder, &self.path)?.is_some_and(|(marked, _)| marked == epoch) {
            return Ok(());
        }
        let offset = self.size()?;
        let Some((file, _)) = &self.open else { return Ok(()) };
        let generation = Generation::of(file, &self.path)?;
        let text = format!("{epoch} {}\n", Position { generation, offset });
        let path = self.path.join(EPOCH_NEW);
        let failed = |fault| PlaceError { path: path.clone(), fault };
        let how = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let mut new = open_file(self.folder, EPOCH_NEW, how, &path)?.ok_or_else(|| failed(Fault::System(Errno::NOENT)))?;
        new.write_all(text.as_bytes()).map_err(|error| failed(system(&error)))?;
        renameat(self.folder, EPOCH_NEW, self.folder, EPOCH).map_err(|errno| failed(Fault::System(errno)))
    }
}

fn read_mark(folder: &OwnedFd, path: &Path) -> Result<Option<(Epoch, Position)>, PlaceError> {
    let path = path.join(EPOCH);
    let Some(file) = open_file(folder, EPOCH, OFlags::RDONLY, &path)? else { return Ok(None) };
    let mut text = String::new();
    if let Err(error) = file.take(256).read_to_string(&mut text) {
        return Err(PlaceError { path, fault: system(&error) });
    }
    let parsed = text.trim().split_once(' ').and_then(|(epoch, at)| Some((Epoch(epoch.parse().ok()?), at.parse().ok()?)));
    Ok(parsed)
}

impl Generation {
    fn of(file: &File, path: &Path) -> Result<Self, PlaceError> {
        let meta = file.metadata().map_err(|error| PlaceError { path: path.to_owned(), fault: system(&error) })?;
        let born = meta.created().ok().and_then(|at| u64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok());
        Ok(Self { number: meta.ino(), born: born.unwrap_or_default() })
    }

    /// Whether it came into being after that one, as far as the file system tells.
    pub(super) fn is_after(self, other: Self) -> bool {
        self != other && (self.born == 0 || self.born >= other.born)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.generation.number, self.generation.born, self.offset)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers: Vec<u64> = text.split('.').map(|part| part.parse().map_err(|_| ())).collect::<Result<_, ()>>()?;
        let [number, born, offset] = numbers[..] else { return Err(()) };
        Ok(Self { generation: Generation { number, born }, offset })
    }
}

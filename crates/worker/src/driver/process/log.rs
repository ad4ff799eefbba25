//! The output of work: one file a resource, bounded, with one older generation.
//!
//! The wheel: under worker::driver, which writes it, and worker::server, which reads it. It holds bytes, not lines: a line of any length
//! costs no more than its bytes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use evenkeel_model::ResourceName;

const CURRENT: &str = "out.log";
const OLDER: &str = "out.log.1";

/// The logs of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    folder: PathBuf,
    max_bytes: u64,
}

/// The log of one resource, open for writing.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Mutex<Writer>>);

#[derive(Debug)]
struct Writer {
    folder: PathBuf,
    max_bytes: u64,
    file: Option<File>,
    size: u64,
}

impl Logs {
    /// Logs below this folder; each generation of a log has at most so many bytes.
    pub(crate) fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes }
    }

    fn folder_of(&self, name: &ResourceName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    /// The log of a resource. Nothing is made before the first byte.
    pub(crate) fn writer(&self, name: &ResourceName) -> Log {
        Log(Arc::new(Mutex::new(Writer { folder: self.folder_of(name), max_bytes: self.max_bytes, file: None, size: 0 })))
    }

    /// All that is kept, and a reader that goes on where it ends; none if there is no log.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn read(&self, name: &ResourceName) -> io::Result<Option<(Vec<u8>, Follower)>> {
        let folder = self.folder_of(name);
        // The newer file is opened first. If it has become the older one meanwhile, it is found there again, and read once.
        let mut current = match File::open(folder.join(CURRENT)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut kept = Vec::new();
        if let Ok(mut older) = File::open(folder.join(OLDER))
            && older.metadata()?.ino() != current.metadata()?.ino()
        {
            older.read_to_end(&mut kept)?;
        }
        current.read_to_end(&mut kept)?;
        Ok(Some((kept, Follower { folder, current })))
    }

    /// Removes the logs that nothing was written to for so long.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn prune(&self, older_than: Duration, now: SystemTime) -> io::Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.folder)? {
            let folder = entry?.path();
            let written = fs::metadata(folder.join(CURRENT)).and_then(|meta| meta.modified());
            if written.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > older_than)) {
                fs::remove_dir_all(&folder)?;
            }
        }
        Ok(())
    }
}

/// Reads what is written to a log after a point, across generations.
#[derive(Debug)]
pub(crate) struct Follower {
    folder: PathBuf,
    current: File,
}

impl Follower {
    /// What has come since; empty if nothing has. At most one MiB or so at a time.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        Read::by_ref(&mut self.current).take(1 << 20).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            let newer = File::open(self.folder.join(CURRENT))?;
            if newer.metadata()?.ino() != self.current.metadata()?.ino() {
                // Something may have come between the last read and the change.
                self.current.read_to_end(&mut bytes)?;
                self.current = newer;
                Read::by_ref(&mut self.current).take(1 << 20).read_to_end(&mut bytes)?;
            }
        }
        Ok(bytes)
    }
}

/// The last lines of a text; all of it for zero.
pub(crate) fn tail(text: &[u8], lines: usize) -> &[u8] {
    if lines == 0 {
        return text;
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let start = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').nth(lines - 1).map_or(0, |(at, _)| at + 1);
    &text[start..]
}

impl Log {
    /// Appends. Blocks on the disk.
    pub(crate) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(bytes)
    }
}

impl Writer {
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = usize::try_from(self.max_bytes.saturating_sub(self.open()?)).unwrap_or(usize::MAX);
            if bytes.len() <= room {
                return self.write(bytes);
            }
            // A generation ends with a line where it can.
            let fits = &bytes[..room];
            let cut = fits.iter().rposition(|b| *b == b'\n').map_or(if self.size == 0 { room } else { 0 }, |at| at + 1);
            self.write(&bytes[..cut])?;
            bytes = &bytes[cut..];
            self.rotate()?;
        }
        Ok(())
    }

    /// Opens the file if it is not; its size.
    fn open(&mut self) -> io::Result<u64> {
        if self.file.is_none() {
            fs::create_dir_all(&self.folder)?;
            let file = OpenOptions::new().create(true).append(true).open(self.folder.join(CURRENT))?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        Ok(self.size)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
            self.size += bytes.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        fs::rename(self.folder.join(CURRENT), self.folder.join(OLDER))
    }
}

/// The folder of logs within a worker's data.
pub(crate) fn log_folder(data: &Path) -> PathBuf {
    data.join("logs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ResourceName {
        ResourceName::new(&"n".repeat(253)).expect("name")
    }

    fn logs(max_bytes: u64) -> (tempfile::TempDir, Logs) {
        let folder = tempfile::tempdir().expect("folder");
        let logs = Logs::new(folder.path().join("logs"), max_bytes);
        (folder, logs)
    }

    fn kept(logs: &Logs) -> String {
        let (bytes, _) = logs.read(&name()).expect("readable").expect("there");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_log_keeps_the_newest_within_its_bound() {
        let (_folder, logs) = logs(100);
        assert!(logs.read(&name()).expect("readable").is_none());
        let log = logs.writer(&name());
        for n in 0..100 {
            log.append(format!("line {n}\n").as_bytes()).expect("write");
        }
        let text = kept(&logs);
        assert!(text.len() <= 200 && text.len() > 100, "{}", text.len());
        assert!(text.ends_with("line 98\nline 99\n") && text.starts_with("line "), "{text}");
        // The next writer goes on in the same file.
        logs.writer(&name()).append(b"later\n").expect("write");
        assert!(kept(&logs).ends_with("line 99\nlater\n"));
    }

    #[test]
    fn a_line_of_any_length_is_bounded_too() {
        let (folder, logs) = logs(100);
        let log = logs.writer(&name());
        for _ in 0..50 {
            log.append(&[b'x'; 77]).expect("write");
        }
        for file in [CURRENT, OLDER] {
            let size = fs::metadata(folder.path().join("logs").join(name().as_str()).join(file)).expect("file").len();
            assert!(size <= 100, "{size}");
        }
    }

    #[test]
    fn a_follower_crosses_generations_and_loses_nothing() {
        let (_folder, logs) = logs(64);
        let log = logs.writer(&name());
        log.append(b"begin\n").expect("write");
        let (mut seen, mut follower) = logs.read(&name()).expect("readable").expect("there");
        let mut expected = b"begin\n".to_vec();
        for n in 0..40 {
            let line = format!("line {n}\n");
            expected.extend(line.bytes());
            log.append(line.as_bytes()).expect("write");
            seen.extend(follower.more().expect("more"));
        }
        assert_eq!(String::from_utf8(seen), String::from_utf8(expected));
        assert_eq!(follower.more().expect("nothing"), b"");
    }

    #[test]
    fn the_tail_counts_lines() {
        let cases: [(&str, usize, &str); 6] = [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\nb\n", 0, "a\nb\n"),
            ("", 3, ""),
            ("\n\n\n", 1, "\n"),
        ];
        for (text, lines, expected) in cases {
            assert_eq!(tail(text.as_bytes(), lines), expected.as_bytes(), "{text:?} {lines}");
        }
    }

    #[test]
    fn logs_that_are_long_untouched_are_removed() {
        let (_folder, logs) = logs(64);
        logs.writer(&name()).append(b"x").expect("write");
        let day = Duration::from_secs(86_400);
        logs.prune(day, SystemTime::now()).expect("prune");
        assert!(logs.read(&name()).expect("readable").is_some());
        logs.prune(day, SystemTime::now() + 2 * day).expect("prune");
        assert!(logs.read(&name()).expect("readable").is_none());
    }
}

//! What a script writes: the first and the last 512 KiB of each stream, on the disk as they come.
//!
//! The wheel: under worker::task, whose keeper adds and whose server reads. A script is never held up by its output: what the disk does not take in
//! time is left out between the two. It decides nothing.
//!
//! A stream is a few files: `out-0` has the first bytes, and `out-<offset>` those from that offset on. So whoever comes after a crash knows from their
//! names and sizes what there is, and how much is left out.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_store::task::of_this_process;
use tokio::{sync::Notify, time::timeout};

use crate::hold::child::in_words;

/// Of the beginning so much is kept, and as much of the end: a megabyte is more than anybody reads, and a thousand runs of it fit a disk.
const PART: usize = 512 << 10;
/// For how long an end waits for a disk that hangs.
const DISK: Duration = Duration::from_secs(10);
/// A shorter value occurs by chance in what is no secret.
const SHORTEST_SECRET: usize = 6;
const BLOT: &[u8] = b"[secret]";
/// The writer may remove what was just listed: then it is listed again, so often at the most. One that removes faster than that writes gigabytes a second.
const LISTED: usize = 10;

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Stdout.
    Out,
    /// Stderr.
    Err,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
        }
    }
}

/// What of one stream is yet to be written. PURE.
#[derive(Debug, Default)]
struct Pending {
    /// All that has come.
    total: u64,
    /// What belongs to the first bytes; it ends at the least of `total` and [`PART`].
    head: Vec<u8>,
    /// What belongs to the end; it ends at `total`.
    tail: Vec<u8>,
}

impl Pending {
    fn add(&mut self, bytes: &[u8]) {
        let room = PART.saturating_sub(usize::try_from(self.total).unwrap_or(PART));
        let (head, tail) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(tail);
        self.total += bytes.len() as u64;
        // Not at each byte: what is left out is moved over.
        if self.tail.len() >= 2 * PART {
            self.tail.drain(..self.tail.len() - PART);
        }
    }

    /// What is to be written now.
    fn take(&mut self) -> Batch {
        let (head, tail) = (std::mem::take(&mut self.head), std::mem::take(&mut self.tail));
        let tail_at = self.total - tail.len() as u64;
        Batch { head, tail_at, tail }
    }

    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.tail.is_empty()
    }
}

/// What is written together.
#[derive(Debug)]
struct Batch {
    head: Vec<u8>,
    /// The offset of `tail`.
    tail_at: u64,
    tail: Vec<u8>,
}

/// The files of one stream.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    stream: Stream,
    head: Option<File>,
    /// The one that is appended to: its offset, the size that it has, and itself.
    last: Option<(u64, u64, File)>,
}

impl Files {
    fn new(folder: &Path, stream: Stream) -> Self {
        Self { folder: folder.to_owned(), stream, head: None, last: None }
    }

    fn create(&self, at: u64) -> io::Result<File> {
        File::options().create(true).append(true).mode(0o600).open(path(&self.folder, self.stream, at))
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        if !batch.head.is_empty() {
            let file = match self.head.take() {
                Some(file) => file,
                None => self.create(0)?,
            };
            self.head.insert(file).write_all(&batch.head)?;
        }
        let (mut at, mut rest) = (batch.tail_at, batch.tail.as_slice());
        while !rest.is_empty() {
            // One that fails half way is not gone on with.
            let (from, size, mut file) = match self.last.take() {
                Some(last) if last.0 + last.1 == at && last.1 < PART as u64 => last,
                _ => (at, 0, self.create(at)?),
            };
            let room = PART - usize::try_from(size).unwrap_or(PART);
            let (now, later) = rest.split_at(room.min(rest.len()));
            file.write_all(now)?;
            self.last = Some((from, size + now.len() as u64, file));
            (at, rest) = (at + now.len() as u64, later);
        }
        self.remove_old(at)
    }

    /// Removes what is not of the last bytes any more.
    fn remove_old(&self, end: u64) -> io::Result<()> {
        for piece in pieces(&self.folder, self.stream)? {
            if piece.at > 0 && piece.at + piece.size + PART as u64 <= end {
                fs::remove_file(path(&self.folder, self.stream, piece.at))?;
            }
        }
        Ok(())
    }
}

fn path(folder: &Path, stream: Stream, at: u64) -> PathBuf {
    folder.join(format!("{}-{at}", stream.name()))
}

/// A file of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    at: u64,
    size: u64,
}

/// The files of a stream, in order.
fn pieces(folder: &Path, stream: Stream) -> io::Result<Vec<Piece>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let at = name.to_str().and_then(|name| name.strip_prefix(stream.name())?.strip_prefix('-')?.parse().ok());
        if let Some(at) = at {
            match entry.metadata() {
                Ok(metadata) => found.push(Piece { at, size: metadata.len() }),
                // Its writer has removed it since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// How many bytes a stream has had, as far as its files say.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn written(folder: &Path, stream: Stream) -> io::Result<u64> {
    Ok(pieces(folder, stream)?.last().map_or(0, |piece| piece.at + piece.size))
}

/// What a script wrote at one stretch, as far as it is kept: nothing is left out within it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// What says how much is left out before it; empty: nothing, or nobody is to be told.
    pub(crate) mark: Vec<u8>,
    /// Something came before it that is not here.
    pub(crate) is_cut: bool,
    /// What was written.
    pub(crate) bytes: Vec<u8>,
}

/// What is kept of a stream: the beginning, a mark that says how much is left out, and the end; or the last lines of that.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(folder: &Path, stream: Stream, tail: Option<usize>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    for Stretch { mark, bytes, .. } in stretches(folder, stream)? {
        all.extend_from_slice(&mark);
        all.extend_from_slice(&bytes);
    }
    if let Some(lines) = tail {
        let length = last_lines(&all, lines).len();
        all.drain(..all.len() - length);
    }
    Ok(all)
}

/// What is kept of a stream, from its last bytes, at the most so many.
///
/// # Errors
/// It cannot be read.
pub(crate) fn last(folder: &Path, stream: Stream, most: usize) -> io::Result<Vec<Stretch>> {
    let mut found = stretches(folder, stream)?;
    let mut room = most;
    let mut first = found.len();
    while room > 0 && first > 0 {
        first -= 1;
        let Stretch { mark, is_cut, bytes } = &mut found[first];
        let too_much = bytes.len().saturating_sub(room);
        room = room.saturating_sub(bytes.len());
        if too_much > 0 {
            bytes.drain(..too_much);
            (*is_cut, *mark) = (true, Vec::new());
        }
    }
    found.drain(..first);
    Ok(found)
}

/// What is kept of a stream.
fn stretches(folder: &Path, stream: Stream) -> io::Result<Vec<Stretch>> {
    let mut listed = 1;
    loop {
        match read_listed(folder, stream, &pieces(folder, stream)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && listed < LISTED => listed += 1,
            read => return read,
        }
    }
}

/// What is kept of a stream that has these files.
fn read_listed(folder: &Path, stream: Stream, pieces: &[Piece]) -> io::Result<Vec<Stretch>> {
    let Some(end) = pieces.last().map(|piece| piece.at + piece.size) else { return Ok(Vec::new()) };
    let mut found = vec![Stretch::default()];
    let is_of_end = |piece: &&Piece| piece.at > 0;
    let mut begins = end;
    for piece in pieces.iter().rev().filter(is_of_end) {
        if piece.at + piece.size != begins {
            break;
        }
        begins = piece.at;
    }
    // At most the last bytes: the oldest file may have more.
    begins = begins.max(end.saturating_sub(PART as u64));
    let head = &mut found[0].bytes;
    if let Some(first) = pieces.first().filter(|piece| piece.at == 0) {
        File::open(path(folder, stream, 0))?.take(first.size).read_to_end(head)?;
    }
    let left_out = begins.saturating_sub(head.len() as u64);
    if left_out > 0 && !pieces.iter().all(|piece| piece.at == 0) {
        let mark = format!("\n[... {left_out} bytes left out ...]\n").into_bytes();
        found.push(Stretch { mark, is_cut: true, bytes: Vec::new() });
    }
    let last = found.len() - 1;
    for piece in pieces.iter().filter(is_of_end).filter(|piece| piece.at + piece.size > begins) {
        let mut file = File::open(path(folder, stream, piece.at))?;
        let skipped = begins.saturating_sub(piece.at);
        file.seek(SeekFrom::Start(skipped))?;
        file.take(piece.size - skipped).read_to_end(&mut found[last].bytes)?;
    }
    Ok(found)
}

/// The last lines of a text; a last one that does not end counts as well.
fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    if lines == 0 {
        return &[];
    }
    let begins = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(lines - 1);
    &text[begins.map_or(0, |(at, _)| at + 1)..]
}

/// Where the output of one attempt goes.
#[derive(Clone, Debug)]
pub struct Output(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something has come, or has been written.
    changed: Notify,
    written: Notify,
}

#[derive(Debug, Default)]
struct State {
    out: Pending,
    err: Pending,
    /// A batch is on its way to the disk.
    is_writing: bool,
    /// Nothing more comes.
    is_over: bool,
    /// Nothing is kept.
    is_nowhere: bool,
    /// What the disk said when it did not take something, the first time.
    failed: Option<String>,
}

impl State {
    fn stream(&mut self, stream: Stream) -> &mut Pending {
        match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        }
    }

    fn is_written(&self) -> bool {
        !self.is_writing && self.out.is_empty() && self.err.is_empty()
    }
}

impl Output {
    /// Begins to write into this folder, which exists. It must be called within a tokio runtime.
    #[must_use]
    pub fn begin(folder: &Path) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Notify::new(), written: Notify::new() });
        let files = [Stream::Out, Stream::Err].map(|stream| Files::new(folder, stream));
        tokio::spawn(of_this_process(write_on(Arc::clone(&shared), files)));
        Self(shared)
    }

    /// Counts what comes, and keeps none of it.
    #[must_use]
    pub fn nowhere() -> Self {
        let state = Mutex::new(State { is_nowhere: true, ..State::default() });
        Self(Arc::new(Shared { state, changed: Notify::new(), written: Notify::new() }))
    }

    /// The script has written this. It never waits.
    pub(crate) fn add(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.0.lock();
        let is_nowhere = state.is_nowhere;
        let pending = state.stream(stream);
        if is_nowhere {
            pending.total += bytes.len() as u64;
        } else {
            pending.add(bytes);
            drop(state);
            self.0.changed.notify_one();
        }
    }

    /// How much has come on both.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.out.total, state.err.total)
    }

    /// Nothing more comes: waits until the disk has what there is, but not for a disk that hangs. Why something is not there, if so.
    pub(crate) async fn finish(&self) -> Option<String> {
        self.0.lock().is_over = true;
        self.0.changed.notify_one();
        let written = async {
            loop {
                let told = self.0.written.notified();
                if self.0.lock().is_written() {
                    return;
                }
                told.await;
            }
        };
        match timeout(DISK, written).await {
            Ok(()) => self.0.lock().failed.clone(),
            Err(_) => Some("the disk does not take it".to_owned()),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what comes until nothing more does.
async fn write_on(shared: Arc<Shared>, mut files: [Files; 2]) {
    loop {
        let batches = {
            let mut state = shared.lock();
            if state.is_written() && state.is_over {
                break;
            }
            state.is_writing = !state.is_written();
            state.is_writing.then(|| [state.out.take(), state.err.take()])
        };
        let Some(batches) = batches else {
            shared.changed.notified().await;
            continue;
        };
        let writing = tokio::task::spawn_blocking(move || {
            let done = files.iter_mut().zip(&batches).try_for_each(|(files, batch)| files.write(batch));
            (files, done)
        });
        let Ok((back, done)) = writing.await else { break };
        files = back;
        let mut state = shared.lock();
        state.is_writing = false;
        if let Err(error) = done {
            state.failed.get_or_insert(in_words(&error));
        }
        drop(state);
        shared.written.notify_waiters();
    }
    shared.written.notify_waiters();
}

/// Blots values out that must not be shown.
#[derive(Clone, Default)]
pub(crate) struct Blotter(Vec<Vec<u8>>);

impl std::fmt::Debug for Blotter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Blotter({} values)", self.0.len())
    }
}

impl Blotter {
    /// Of these values, as they are and without the end of line that files have. One that is too short to be told from chance is left alone.
    pub(crate) fn of(values: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut all: Vec<Vec<u8>> = values.into_iter().map(|value| value.trim_ascii_end().to_vec()).collect();
        all.retain(|value| value.len() >= SHORTEST_SECRET);
        // The longest first, so that none is hidden by a part of it.
        all.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self(all)
    }

    /// The last bytes of a text, at most so many, with no value in them, nor a part of one that was cut.
    pub(crate) fn tail(&self, text: &[Stretch], most: usize) -> Vec<u8> {
        let mut blotted = Vec::new();
        for (at, stretch) in text.iter().enumerate() {
            blotted.extend_from_slice(&stretch.mark);
            let is_cut_after = at + 1 < text.len();
            self.blot(&stretch.bytes, (stretch.is_cut, is_cut_after), &mut blotted);
        }
        // Only now: what is blotted out is shorter than it was, so that the last bytes are of more than so many.
        blotted.drain(..blotted.len().saturating_sub(most));
        blotted
    }

    /// Appends a text without the values. Where it was cut, a part of a value may be all that is left of it: what is as near to the cut as the longest
    /// value is long is not shown.
    fn blot(&self, text: &[u8], (is_cut, is_cut_after): (bool, bool), blotted: &mut Vec<u8>) {
        let longest = self.0.first().map_or(0, Vec::len);
        let begin = if is_cut { longest } else { 0 };
        let end = if is_cut_after { text.len().saturating_sub(longest) } else { text.len() };
        // Values may overlap: what is of any of them is hidden up to here.
        let mut hidden = 0;
        for at in 0..end {
            let is_hidden = at < hidden;
            if let Some(value) = self.0.iter().find(|value| text[at..].starts_with(value)) {
                hidden = hidden.max(at + value.len());
                if !is_hidden && at >= begin {
                    blotted.extend_from_slice(BLOT);
                }
            } else if !is_hidden && at >= begin {
                blotted.push(text[at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes by whose value their place is known.
    fn bytes(from: u64, count: usize) -> Vec<u8> {
        (from..).take(count).map(|at| u8::try_from(at % 251).expect("small")).collect()
    }

    fn mark(count: u64) -> Vec<u8> {
        format!("\n[... {count} bytes left out ...]\n").into_bytes()
    }

    async fn wrote(folder: &Path, total: u64, chunk: usize) {
        let output = Output::begin(folder);
        let mut at = 0;
        while at < total {
            let now = chunk.min(usize::try_from(total - at).expect("small"));
            output.add(Stream::Out, &bytes(at, now));
            at += now as u64;
            if at % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        output.add(Stream::Err, b"e\xff\x00\n");
        assert_eq!(output.finish().await, None);
        assert_eq!(output.totals(), (total, 4));
    }

    #[tokio::test]
    async fn head_and_tail_are_kept_with_a_mark_between() {
        let part = PART as u64;
        for total in [0, 1, part, part + 1, 2 * part, 2 * part + 1, 3 * part - 1, 7 * part + 12_345] {
            for chunk in [1000, 64 << 10, 3 << 20] {
                let folder = tempfile::tempdir().expect("folder");
                wrote(folder.path(), total, chunk).await;
                let expected = if total <= 2 * part {
                    bytes(0, usize::try_from(total).expect("small"))
                } else {
                    [bytes(0, PART), mark(total - 2 * part), bytes(total - part, PART)].concat()
                };
                assert!(read(folder.path(), Stream::Out, None).expect("read") == expected, "{total} by {chunk}");
                assert_eq!(written(folder.path(), Stream::Out).expect("read"), total);
                assert_eq!(read(folder.path(), Stream::Err, None).expect("read"), b"e\xff\x00\n");
            }
        }
    }

    #[tokio::test]
    async fn a_hundred_megabytes_take_a_megabyte_and_a_half() {
        let folder = tempfile::tempdir().expect("folder");
        let total = 100 << 20;
        wrote(folder.path(), total, 256 << 10).await;
        let kept: u64 = pieces(folder.path(), Stream::Out).expect("listed").iter().map(|piece| piece.size).sum();
        assert!(kept <= 3 * PART as u64 + 1, "{kept}");
        let text = read(folder.path(), Stream::Out, None).expect("read");
        assert!(text.ends_with(&bytes(total - PART as u64, PART)));
    }

    #[test]
    fn what_a_dead_agent_had_written_is_read_with_its_gaps() {
        let folder = tempfile::tempdir().expect("folder");
        for (at, text) in [(0, "first"), (600_000, "old"), (900_000, "new"), (900_003, "er")] {
            fs::write(path(folder.path(), Stream::Out, at), text).expect("written");
        }
        let text = read(folder.path(), Stream::Out, None).expect("read");
        assert_eq!(String::from_utf8_lossy(&text), "first\n[... 899995 bytes left out ...]\nnewer");
        fs::remove_file(path(folder.path(), Stream::Out, 0)).expect("removed");
        assert!(read(folder.path(), Stream::Out, None).expect("read").starts_with(&mark(900_000)));
    }

    #[test]
    fn a_tail_is_of_lines() {
        let cases: [(&str, usize, &str); 7] = [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 9, "a\nb\n"),
            ("\n\n\n", 2, "\n\n"),
            ("a", 1, "a"),
            ("a\n", 0, ""),
            ("", 3, ""),
        ];
        for (text, lines, expected) in cases {
            assert_eq!(last_lines(text.as_bytes(), lines), expected.as_bytes(), "{text:?} {lines}");
        }
    }

    #[test]
    fn secrets_are_blotted_also_where_a_tail_begins() {
        let blotter = Blotter::of([b"hunter22\n".to_vec(), b"short".to_vec(), b"hunter22-long".to_vec()]);
        let whole = |text: &str| vec![Stretch { bytes: text.into(), ..Stretch::default() }];
        let tail = |text: &str, most| String::from_utf8(blotter.tail(&whole(text), most)).expect("text");
        assert_eq!(tail("a hunter22 b hunter22-long c short", 99), "a [secret] b [secret] c short");
        assert_eq!(tail("xxxxxxxxxxxxxxxxxxxxhunter22yy", 5), "et]yy");
        assert_eq!(tail("abc", 2), "bc");
        assert!(!format!("{blotter:?}").contains("hunter"));
    }

    #[test]
    fn what_is_left_of_a_value_where_a_text_was_cut_is_not_shown() {
        // No two bytes of it are the same, so that any part of it shows.
        let value: Vec<u8> = (b'0'..).take(65).collect();
        let blotter = Blotter::of([value.clone(), b"\x01\x02\x03\x04\x05\x06".to_vec()]);
        let text = value.repeat(300);
        for at in 0..2 * value.len() {
            let cut = Stretch { is_cut: true, bytes: text[at..].to_vec(), mark: mark(7) };
            let before = Stretch { bytes: text[..text.len() - at].to_vec(), ..Stretch::default() };
            for text in [vec![cut.clone()], vec![before, cut]] {
                for most in [62, 4096] {
                    let tail = String::from_utf8(blotter.tail(&text, most)).expect("text");
                    let shown = tail.replace("[secret]", "").replace(&*String::from_utf8_lossy(&mark(7)), "");
                    assert!("[secret]".ends_with(&shown), "{at} {most}: {tail}");
                }
            }
        }
        let overlapping = Blotter::of([b"abab12abab".to_vec(), b"ab34567".to_vec()]);
        let text = Stretch { bytes: b"x abab12abab12abab34567 y".to_vec(), ..Stretch::default() };
        assert_eq!(overlapping.tail(&[text], 99), b"x [secret] y");
    }

    #[test]
    fn what_was_kept_is_cut_where_nobody_looks_any_further() {
        let folder = tempfile::tempdir().expect("folder");
        for (at, text) in [(0, "first"), (900_000, "newer")] {
            fs::write(path(folder.path(), Stream::Out, at), text).expect("written");
        }
        let stretch = |mark, is_cut, bytes: &str| Stretch { mark, is_cut, bytes: bytes.into() };
        let cases = [
            (0, vec![]),
            (4, vec![stretch(vec![], true, "ewer")]),
            (5, vec![stretch(mark(899_995), true, "newer")]),
            (7, vec![stretch(vec![], true, "st"), stretch(mark(899_995), true, "newer")]),
            (10, vec![stretch(vec![], false, "first"), stretch(mark(899_995), true, "newer")]),
        ];
        for (most, expected) in cases {
            assert_eq!(last(folder.path(), Stream::Out, most).expect("read"), expected, "{most}");
        }
    }

    #[test]
    fn what_its_writer_removes_meanwhile_is_read_all_the_same() {
        let folder = tempfile::tempdir().expect("folder");
        let mut files = Files::new(folder.path(), Stream::Out);
        let writing = std::thread::spawn(move || {
            for piece in 0..400 {
                let batch = Batch { head: vec![], tail_at: (piece + 1) * PART as u64, tail: vec![b'x'; PART] };
                files.write(&batch).expect("written");
            }
        });
        while !writing.is_finished() {
            read(folder.path(), Stream::Out, Some(1)).expect("read");
        }
        writing.join().expect("written");
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_told_of_and_holds_up_nobody() {
        let folder = tempfile::tempdir().expect("folder");
        let gone = folder.path().join("gone");
        let output = Output::begin(&gone);
        output.add(Stream::Out, b"x");
        assert_eq!(output.finish().await, Some("no such file or directory".to_owned()));
    }
}

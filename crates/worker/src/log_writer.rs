//! Where the log of a process goes: to a buffer that nobody ever waits for, and from there to stderr by a thread of its own.
//!
//! Beside the wheel: guard, agent and masters all write here. A pipe that nobody reads, or a file on a disk that hangs, holds up that thread
//! and nobody else; what finds no room is lost, counted, and the loss is said once there is room again. The guard has this one thread beside
//! its own, so it is a quiet one: it starts with every signal blocked (the guard's come by a descriptor, and would hit it otherwise), its
//! stack is small and its buffers are made at the start (the guard is locked into memory), and nothing that kills waits for it.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::ThreadId,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigSet, SigmaskHow},
};

/// What waits to be written, in bytes: some two thousand lines. A reader that is away for a few seconds costs nothing.
const ROOM: usize = 256 << 10;
/// What is left for the line that says how much was lost.
const RESERVE: usize = 4 << 10;
/// The thread writes, and formats one line now and then.
const STACK: usize = 128 << 10;
/// How long the end of a process waits for its last lines.
const FLUSH: Duration = Duration::from_millis(500);

static STDERR: OnceLock<LogWriter> = OnceLock::new();

/// Takes lines and never waits. Clones write to the same place.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    room: usize,
}

#[derive(Debug)]
struct State {
    queued: Vec<u8>,
    /// What was taken from the queue and is not written yet.
    writing: bool,
    /// Lines that found no room, or that could not be written, since the start; and how many of those were said.
    lost: u64,
    said: u64,
    thread: Option<ThreadId>,
}

/// The writer to stderr. The first call starts its thread.
///
/// # Errors
/// No thread, or no further descriptor, can be had.
pub fn stderr() -> io::Result<LogWriter> {
    if let Some(writer) = STDERR.get() {
        return Ok(writer.clone());
    }
    // A descriptor of its own: a thread that panics writes to stderr under a lock.
    let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let writer = LogWriter::start(Stream(file), ROOM)?;
    Ok(STDERR.get_or_init(|| writer).clone())
}

/// Waits until what was logged to [`stderr`] so far is written, for half a second at most: before this process ends.
pub fn flush() {
    if let Some(writer) = STDERR.get() {
        writer.flush(FLUSH);
    }
}

impl LogWriter {
    /// Starts a thread that writes to `out`, with room for so many bytes.
    fn start(out: impl Write + Send + 'static, room: usize) -> io::Result<Self> {
        let state = State { queued: Vec::with_capacity(room + RESERVE), writing: false, lost: 0, said: 0, thread: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), room });
        let of_thread = Arc::clone(&shared);
        let buffer = Vec::with_capacity(room + RESERVE);
        // A thread begins with the mask of the one that starts it.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let started =
            std::thread::Builder::new().name("log".to_owned()).stack_size(STACK).spawn(move || of_thread.write_all_of_it(out, buffer));
        before.thread_set_mask()?;
        lock(&shared.state).thread = Some(started?.thread().id());
        Ok(Self(shared))
    }

    /// How many lines were lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        lock(&self.0.state).lost
    }

    /// Waits until everything is written, but no longer than this; whether it is.
    pub fn flush(&self, at_most: Duration) -> bool {
        let end = Instant::now() + at_most;
        let mut state = lock(&self.0.state);
        while state.writing || !state.queued.is_empty() {
            let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else { return false };
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// One call is one event of the log: it is taken or lost as one.
impl Write for LogWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.take(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn take(&self, event: &[u8]) {
        let mut state = lock(&self.state);
        // The reserve is for the line that says what was lost.
        let own = state.thread == Some(std::thread::current().id());
        let room = if own { self.room + RESERVE } else { self.room };
        if state.queued.len() + event.len() > room {
            state.lost += lines(event);
        } else {
            state.queued.extend_from_slice(event);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What the thread does. It ends with the process.
    fn write_all_of_it(&self, mut out: impl Write, mut taken: Vec<u8>) {
        loop {
            let mut state = lock(&self.state);
            state.writing = false;
            self.changed.notify_all();
            while state.queued.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.writing = true;
            taken.clear();
            std::mem::swap(&mut state.queued, &mut taken);
            drop(state);
            let unwritten = write_out(&mut out, &taken);
            let mut state = lock(&self.state);
            state.lost += lines(&taken[taken.len() - unwritten..]);
            let more = state.lost - state.said;
            // To a reader that has gone nothing can be said.
            if unwritten > 0 || more == 0 {
                continue;
            }
            state.said = state.lost;
            drop(state);
            tracing::error!(lines = more, "lines of this log were lost here: nobody read it for a while");
        }
    }
}

/// Writes, and waits as long as nobody reads. How many bytes were not written, as there is nobody to read them, ever.
fn write_out(out: &mut impl Write, bytes: &[u8]) -> usize {
    match out.write_all(bytes) {
        Ok(()) => 0,
        Err(_) => bytes.len(),
    }
}

fn lines(text: &[u8]) -> u64 {
    text.iter().filter(|b| **b == b'\n').count() as u64
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that may be one that does not wait by itself: whoever shares it may have made it so.
#[derive(Debug)]
struct Stream(File);

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, pipe},
        os::fd::OwnedFd,
    };

    use super::*;

    /// Lines of 100 bytes.
    fn line(number: usize) -> Vec<u8> {
        format!("{number:<99}\n").into_bytes()
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up_and_what_is_lost_is_counted_and_said() {
        const LINES: usize = 4_000;
        const SIZE: usize = 10_000;
        let (mut reader, out) = pipe().expect("pipe");
        // Less than the room: what waits when the thread begins late does not fit in either.
        #[cfg(target_os = "linux")]
        nix::fcntl::fcntl(&out, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
        let writer = LogWriter::start(Stream(File::from(OwnedFd::from(out))), SIZE).expect("thread");
        // The line of the loss comes by the same way as any other.
        let again = writer.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || again.clone()).finish();
        tracing::subscriber::set_global_default(subscriber).expect("the only test here that sets one");

        // More than pipe and buffer hold together; it is over although nobody reads.
        for number in 0..LINES {
            writer.clone().write_all(&line(number)).expect("taken or lost");
        }
        let lost = writer.lost();
        // A pipe holds 64 KiB at the most; what the thread has taken, and what waits, is at most the room each.
        let most = (65_536 + 2 * SIZE) / 100;
        assert!(usize::try_from(lost).expect("number") >= LINES - most && lost < LINES as u64, "{lost}");
        assert!(!writer.flush(Duration::from_millis(1)), "nobody reads");

        // What is said of it, in one line or in several, is all of it: else this reads for ever.
        let said = |text: &str| -> u64 { text.lines().filter_map(|line| line.split_once(" lines=")?.1.parse::<u64>().ok()).sum() };
        let mut text = String::new();
        let mut part = [0; 4096];
        while !text.ends_with('\n') || said(&text) < lost {
            let count = reader.read(&mut part).expect("read");
            assert!(count > 0, "{text}");
            text.push_str(std::str::from_utf8(&part[..count]).expect("text"));
        }
        assert_eq!(said(&text), lost, "{text}");
        let whole = text.lines().filter(|line| line.len() == 99 && line.trim_end().parse::<usize>().is_ok()).count();
        assert_eq!(whole as u64 + lost, LINES as u64, "what is not lost is there, whole");
        assert!(writer.flush(Duration::from_secs(20)), "and then everything is written");
    }

    /// A signal for this process goes to any thread that lets it through: the guard's must reach its descriptor.
    #[test]
    fn the_thread_lets_no_signal_through() {
        struct Mask(std::sync::mpsc::Sender<SigSet>);
        impl Write for Mask {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.send(SigSet::thread_get_mask().expect("mask")).expect("heard");
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let before = SigSet::thread_get_mask().expect("mask");
        let (sender, masks) = std::sync::mpsc::channel();
        let mut writer = LogWriter::start(Mask(sender), 100).expect("thread");
        assert_eq!(SigSet::thread_get_mask().expect("mask"), before, "of the one that starts it nothing changes");
        writer.write_all(b"x\n").expect("taken");
        let mask = masks.recv_timeout(Duration::from_secs(20)).expect("written");
        for signal in crate::guard::REQUESTS {
            assert!(mask.contains(signal), "{signal}");
        }
        assert!(mask.contains(nix::sys::signal::Signal::SIGCHLD));
    }

    #[test]
    fn a_reader_that_has_gone_costs_its_lines_and_no_more() {
        let (reader, out) = pipe().expect("pipe");
        drop(reader);
        let mut writer = LogWriter::start(Stream(File::from(OwnedFd::from(out))), 10_000).expect("thread");
        for number in 1..=3 {
            writer.write_all(&line(number)).expect("taken");
            assert!(writer.flush(Duration::from_secs(20)));
            assert_eq!(writer.lost(), number as u64);
        }
    }
}

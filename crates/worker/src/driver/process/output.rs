//! From a process's output to its log, without losing the last of it and without waiting for a pipe that somebody still holds.
//!
//! The wheel: under worker::driver. It reads and hands on; it decides nothing.

use std::{
    io::{self, PipeReader},
    os::fd::OwnedFd,
};

use tokio::{net::unix::pipe::Receiver, sync::oneshot, task::JoinHandle};

use super::log::Log;

/// One read. A pipe holds 64 KiB unless it was told otherwise.
const CHUNK: usize = 64 * 1024;
/// What is read at most after the end, should somebody write on all the same.
const LAST_CHUNKS: usize = 32;

/// Copies one process's output.
#[derive(Debug)]
pub(super) struct Output {
    over: oneshot::Sender<()>,
    copying: JoinHandle<()>,
    log: Log,
}

impl Output {
    /// Begins to copy. It must be called within a tokio runtime.
    pub(super) fn copy(pipe: PipeReader, log: Log) -> io::Result<Self> {
        let pipe = Receiver::from_owned_fd(OwnedFd::from(pipe))?;
        let (over, ended) = oneshot::channel();
        Ok(Self { over, copying: tokio::spawn(copy(pipe, log.clone(), ended)), log })
    }

    /// Every writer is dead: what they wrote is in the pipe or in the log. Returns when all of it is in the log.
    pub(super) async fn finish(self) {
        let _ = self.over.send(());
        let _ = self.copying.await;
        self.log.finish().await;
    }
}

async fn copy(pipe: Receiver, log: Log, mut ended: oneshot::Receiver<()>) {
    let mut left = None;
    while left != Some(0) {
        if left.is_none() {
            tokio::select! {
                biased;
                _ = &mut ended => left = Some(LAST_CHUNKS),
                ready = pipe.readable() => if ready.is_err() { return },
            }
        }
        left = left.map(|n| n - 1);
        log.room().await;
        // The buffer exists only while there is something to read: most work is silent most of the time.
        let mut chunk = vec![0; CHUNK];
        let read = match left {
            None => pipe.try_read(&mut chunk),
            // The runtime may not have heard yet of what the last writer left. The pipe itself knows.
            Some(_) => nix::unistd::read(&pipe, &mut chunk).map_err(io::Error::from),
        };
        match read {
            Ok(0) => return,
            Ok(count) => log.append(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if left.is_some() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::mpsc, time::Duration};

    use evenkeel_model::ResourceName;

    use super::*;
    use crate::driver::process::log::Logs;

    /// A pool that has no thread to give stands for a limit of processes, at which it panics.
    #[test]
    fn output_needs_no_thread_but_the_one_that_writes() {
        let folder = tempfile::tempdir().expect("folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().expect("runtime");
        runtime.block_on(async {
            let logs = Logs::start(folder.path().join("logs"), 1 << 20, Duration::MAX).expect("threads");
            let (release, released) = mpsc::channel::<()>();
            let taken = tokio::task::spawn_blocking(move || {
                let _ = released.recv();
            });
            let (reader, mut writer) = io::pipe().expect("pipe");
            let output = Output::copy(reader, logs.writer(&ResourceName::new("a").expect("name"))).expect("copied");
            writer.write_all(b"said\n").expect("write");
            drop(writer);
            output.finish().await;
            assert_eq!(std::fs::read_to_string(folder.path().join("logs/a/out.log")).expect("log"), "said\n");
            drop(release);
            taken.await.expect("ended");
        });
    }
}

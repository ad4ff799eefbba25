//! Scripts that end as soon as they begin, without a process and without a record: for measurements of what tasks cost beside what they run.
//!
//! The wheel: in the place of worker::hold, and of what worker::task keeps on the disk, for many workers in one process. Nothing is executed, so nothing
//! can be executed twice; an agent that ends forgets what it has begun.

use std::{collections::VecDeque, future::pending, io, sync::Arc};

use evenkeel_model::{Task, TaskId, TaskScript};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    driver::process::cells::{Cell, Cells, FromShim, Start, Terms, ToAgent},
    protocol::authority::BootTime,
    task::{End, Journal, Kept, Output, Prepared, Record, Scripts},
};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Instant(Arc<Semaphore>);

impl Instant {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)))
    }
}

impl Cells for Instant {
    type Cell = Ended;

    fn mark(&self) -> &'static str {
        ""
    }

    fn ends_any_user(&self) -> bool {
        true
    }

    async fn place_to_start(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }

    fn cell(self: &Arc<Self>, _: &str) -> io::Result<Ended> {
        Ok(Ended(VecDeque::new()))
    }

    fn is_ending(&self) -> bool {
        false
    }

    fn check_cgroup(&self) {}

    async fn check_spawner(&self) {}
}

/// A run that has ended well: what is yet to be said of it.
#[derive(Debug)]
pub(super) struct Ended(VecDeque<ToAgent>);

impl Cell for Ended {
    fn start(&mut self, _: Start) {
        self.0.extend([ToAgent::Ready(1), ToAgent::Forked(1), ToAgent::Started, ToAgent::Exited(0), ToAgent::Empty]);
    }

    fn signal(&mut self, _: i32) {}

    fn kill(&mut self) {}

    async fn next(&mut self) -> FromShim {
        match self.0.pop_front() {
            Some(said) => FromShim::Said(said),
            None => pending().await,
        }
    }

    async fn clear(self) {}
}

impl Journal for Instant {
    async fn load(&self) -> io::Result<Vec<Record>> {
        Ok(Vec::new())
    }

    async fn order(&self, _: &Record) -> io::Result<()> {
        Ok(())
    }

    async fn begun(&self, _: &Record) -> io::Result<()> {
        Ok(())
    }

    async fn ended(&self, _: &Record, _: &End) -> io::Result<()> {
        Ok(())
    }

    async fn remove(&self, _: TaskId, _: u32) {}

    async fn prune(&self, _: Vec<(TaskId, u32)>) -> Vec<(TaskId, u32)> {
        Vec::new()
    }
}

impl Scripts for Instant {
    async fn prepare(&self, _: &Record, _: &Task, _: &TaskScript) -> Result<Prepared, String> {
        let nothing = Start {
            not_after: BootTime(0),
            may_gain_privileges: false,
            cgroup: std::ffi::CString::default(),
            cwd: c"/".to_owned(),
            stdin: std::ffi::CString::default(),
            errors_apart: true,
            leaves_children: false,
            terms: Terms::Task,
            account: None,
            command: vec![c"true".to_owned()],
            environment: Vec::new(),
        };
        Ok(Prepared::new(nothing, Output::nowhere()))
    }

    async fn kept(&self, _: TaskId, _: u32) -> Kept {
        Kept::default()
    }

    async fn clear(&self, _: TaskId, _: u32) {}
}

//! The threads that pieces run on, and who of them keeps one to itself.
//!
//! The wheel: under worker::driver::in_process. A piece that does not give its thread back cannot be ended alone; which one that is can be found out
//! here. Nobody is ended here.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use evenkeel_model::ResourceName;
use tokio::runtime::{Handle, Runtime};

/// On a machine of one processor, too, one piece that blocks leaves room for others. It may take three.
const FEWEST: usize = 4;

/// Where pieces run.
#[derive(Clone, Debug)]
pub(super) enum Threads {
    /// On the threads of this process that all kinds share.
    Shared,
    /// On a runtime of the caller's.
    Given(Handle),
}

static SHARED: Mutex<Option<Runtime>> = Mutex::new(None);
static POLLS: Mutex<BTreeMap<(ResourceName, u64), Polls>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Threads {
    /// What spawns there. The shared threads are made when they are first asked for: a worker's guard and its agent fork before they have any.
    pub(super) fn handle(&self) -> io::Result<Handle> {
        if let Self::Given(handle) = self {
            return Ok(handle.clone());
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*shared {
            return Ok(runtime.handle().clone());
        }
        let threads = std::thread::available_parallelism().map_or(FEWEST, |count| count.get().max(FEWEST));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name("pieces").enable_all().build()?;
        Ok(shared.insert(runtime).handle().clone())
    }
}

/// Counts how often a piece got a thread and gave it back: odd while it has one.
#[derive(Clone, Debug, Default)]
struct Polls(Arc<AtomicU64>);

impl Polls {
    fn toggle(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn has_thread(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|count| count % 2 == 1)
    }
}

/// A piece's place among those that run.
pub(super) struct Place {
    key: (ResourceName, u64),
    polls: Polls,
}

/// Who had a thread at some moment, and since which of its polls.
#[derive(Debug, Default)]
pub(super) struct Look(BTreeMap<(ResourceName, u64), u64>);

fn all() -> MutexGuard<'static, BTreeMap<(ResourceName, u64), Polls>> {
    POLLS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    pub(super) fn take(name: &ResourceName) -> Self {
        let key = (name.clone(), NEXT.fetch_add(1, Ordering::Relaxed));
        let polls = Polls::default();
        all().insert(key.clone(), polls.clone());
        Self { key, polls }
    }

    /// The same future, whose polls are counted.
    pub(super) fn watch<F: Future>(&self, future: F) -> Watched<F> {
        Watched { future: Some(Box::pin(future)), polls: self.polls.clone() }
    }

    /// Who has a thread now.
    pub(super) fn look() -> Look {
        Look(all().iter().filter_map(|(key, polls)| Some((key.clone(), polls.has_thread()?))).collect())
    }

    /// Whether this one has kept its thread since, and which others have.
    pub(super) fn blockers(&self, since: &Look) -> (bool, Vec<ResourceName>) {
        let now = Self::look();
        let (own, others): (Vec<_>, Vec<_>) =
            since.0.iter().filter(|(key, count)| now.0.get(key) == Some(count)).partition(|(key, _)| **key == self.key);
        (!own.is_empty(), others.into_iter().map(|((name, _), _)| name.clone()).collect())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        all().remove(&self.key);
    }
}

/// A future whose polls are counted, and its drop as one more.
pub(super) struct Watched<F> {
    future: Option<Pin<Box<F>>>,
    polls: Polls,
}

/// Has a thread until it is dropped, by a panic as well.
struct PollGuard<'a>(&'a Polls);

impl<'a> PollGuard<'a> {
    fn new(polls: &'a Polls) -> Self {
        polls.toggle();
        Self(polls)
    }
}

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        self.0.toggle();
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let Some(future) = &mut this.future else { return Poll::Pending };
        let _guard = PollGuard::new(&this.polls);
        future.as_mut().poll(context)
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        let _guard = PollGuard::new(&self.polls);
        self.future = None;
    }
}

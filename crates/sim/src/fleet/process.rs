//! A process: tasks that are stopped, resumed and killed together.
//!
//! The wheel: around the real code of a master or an agent. It does what the kernel does: one that is stopped gets no processor, and finds
//! on resuming all that has happened meanwhile; of one that is killed nothing runs on, not even its destructors' tasks.

use std::{
    any::Any,
    cell::RefCell,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use evenkeel_store::task::{Process, of_process};
use futures::future::BoxFuture;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct SimProcess(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    life: Life,
    tasks: BTreeMap<u64, Option<Waker>>,
    next: u64,
}

/// How a process fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    #[default]
    Running,
    /// It was stopped by a signal.
    Stopped,
    /// It is no more.
    Dead,
}

impl SimProcess {
    /// Starts a process with this as its first task.
    #[must_use]
    pub fn start(main: impl Future<Output = ()> + Send + 'static) -> Self {
        let process = Self::default();
        tokio::spawn(of_process(Arc::new(process.clone()), main));
        process
    }

    /// SIGSTOP.
    pub fn stop(&self) {
        let mut inner = self.inner();
        if inner.life == Life::Running {
            inner.life = Life::Stopped;
        }
    }

    /// SIGCONT.
    pub fn resume(&self) {
        if self.inner().life == Life::Stopped {
            self.enter(Life::Running);
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.enter(Life::Dead);
    }

    /// How it fares.
    #[must_use]
    pub fn life(&self) -> Life {
        self.inner().life
    }

    fn enter(&self, life: Life) {
        let mut inner = self.inner();
        inner.life = life;
        let wakers: Vec<Waker> = inner.tasks.values().flatten().cloned().collect();
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process for SimProcess {
    fn adopt(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        let mut inner = self.inner();
        let number = inner.next;
        inner.next += 1;
        inner.tasks.insert(number, None);
        drop(inner);
        Box::pin(Owned { process: self.clone(), number, task: Some(task) })
    }
}

thread_local! {
    /// A run has a thread, so this is the run's.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Takes what a process of a run on this thread has panicked with, since it was last asked.
#[must_use]
pub fn take_panic() -> Option<String> {
    PANIC.with_borrow_mut(Option::take)
}

fn message(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    text.unwrap_or("of no text").to_owned()
}

/// A task of a process.
struct Owned {
    process: SimProcess,
    number: u64,
    task: Option<BoxFuture<'static, ()>>,
}

impl Future for Owned {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let life = {
            let mut inner = self.process.inner();
            let life = inner.life;
            if let Some(slot) = inner.tasks.get_mut(&self.number) {
                match slot {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *slot = Some(cx.waker().clone()),
                }
            }
            life
        };
        match (life, self.task.as_mut()) {
            (Life::Running, Some(task)) => match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
                Ok(polled) => polled,
                Err(cause) => {
                    PANIC.with_borrow_mut(|panic| *panic = Some(message(&*cause)));
                    self.task = None;
                    Poll::Ready(())
                }
            },
            (Life::Stopped, _) => Poll::Pending,
            (Life::Dead, _) | (Life::Running, None) => {
                self.task = None;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.process.inner().tasks.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };

    use evenkeel_store::task::of_this_process;
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_process_is_stopped_resumed_and_killed_with_all_its_tasks() {
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let counting = |which: usize| {
            let counts = counts.clone();
            async move {
                loop {
                    sleep(SECOND).await;
                    counts[which].fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let seen = || [counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed)];
        let (first, second) = (counting(0), counting(1));
        let process = SimProcess::start(async move {
            tokio::spawn(of_this_process(second));
            first.await;
        });
        sleep(SECOND * 5 / 2).await;
        assert_eq!(seen(), [2, 2]);
        process.stop();
        sleep(SECOND * 10).await;
        assert_eq!(seen(), [2, 2]);
        process.resume();
        sleep(SECOND / 4).await;
        assert_eq!(seen(), [3, 3], "a timer that has run out meanwhile wakes at once, and only once");
        process.kill();
        sleep(SECOND * 10).await;
        assert_eq!((seen(), process.life()), ([3, 3], Life::Dead));
        assert_eq!(Arc::strong_count(&counts), 1, "nothing of it is left");
        process.resume();
        assert_eq!(process.life(), Life::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_not_overlooked() {
        let process = SimProcess::start(async { panic!("as a test") });
        sleep(SECOND).await;
        assert_eq!((take_panic().as_deref(), take_panic(), process.life()), (Some("as a test"), None, Life::Running));
    }
}

//! Tasks that belong to the process that starts them.
//!
//! The wheel: beside everything that runs on in the background: mirrors, lease keepers, commits, an agent's proofs. In production this
//! does nothing. A simulator runs many processes as tasks of one runtime, and has to stop, resume and kill each of them as a whole, with
//! all that it has started; so whatever is handed to `spawn` goes through here. Nothing is decided, and nothing is spawned, here.

use std::{future::Future, sync::Arc};

use futures::{FutureExt, future::BoxFuture};

/// A process as its tasks see it.
pub trait Process: Send + Sync {
    /// Makes the future one of this process: it makes progress only while the process does.
    fn adopt(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()>;
}

tokio::task_local! {
    static PROCESS: Arc<dyn Process>;
}

/// To be spawned: what the process does that runs this. The same future, unless a simulated process runs it.
pub fn of_this_process(task: impl Future<Output = ()> + Send + 'static) -> BoxFuture<'static, ()> {
    match PROCESS.try_with(Arc::clone) {
        Ok(process) => of_process(process, task),
        Err(_) => task.boxed(),
    }
}

/// A task of this process, and so are all tasks that it hands to [`of_this_process`].
pub fn of_process(process: Arc<dyn Process>, task: impl Future<Output = ()> + Send + 'static) -> BoxFuture<'static, ()> {
    let scoped = PROCESS.scope(Arc::clone(&process), task).boxed();
    process.adopt(scoped)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Process for Counting {
        fn adopt(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            task
        }
    }

    #[tokio::test]
    async fn what_a_task_of_a_process_starts_is_of_that_process() {
        let process = Arc::new(Counting::default());
        let grandchild = async {};
        let child = async { tokio::spawn(of_this_process(grandchild)).await.expect("grandchild") };
        let first = async { tokio::spawn(of_this_process(child)).await.expect("child") };
        tokio::spawn(of_process(process.clone(), first)).await.expect("first");
        assert_eq!(process.0.load(Ordering::Relaxed), 3);
        tokio::spawn(of_this_process(async {})).await.expect("nobody's");
        assert_eq!(process.0.load(Ordering::Relaxed), 3, "outside of a process nothing is adopted");
    }
}

//! A value that many wait for, and are woken for in the order in which they began to wait.
//!
//! In the wheel it is nowhere: it stands in for tokio's watch channel, which wakes its receivers in an order that it draws by itself, and
//! so would make two runs of one seed differ.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// See the module. Clones show the same.
#[derive(Clone, Debug)]
pub(super) struct Sign<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Sign<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new(Inner { value: Mutex::new(value), changed: Notify::new() }))
    }

    fn value(&self) -> MutexGuard<'_, T> {
        self.0.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it shows now.
    pub(super) fn get(&self) -> T {
        *self.value()
    }

    /// Changes it, and wakes who waits.
    pub(super) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.value());
        self.0.changed.notify_waiters();
    }

    /// Waits until it shows something of which this holds. It may be dropped before it is done.
    pub(super) async fn shows(&self, holds: impl Fn(T) -> bool) -> T {
        loop {
            let changed = self.0.changed.notified();
            let value = self.get();
            if holds(value) {
                return value;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_in_turn() {
        let (sign, woken) = (Sign::new(0), Arc::new(Mutex::new(Vec::new())));
        for number in 0..50 {
            let (sign, woken) = (sign.clone(), Arc::clone(&woken));
            tokio::spawn(async move {
                sign.shows(|value| value > 0).await;
                woken.lock().expect("not poisoned").push(number);
            });
        }
        tokio::task::yield_now().await;
        sign.change(|value| *value = 1);
        tokio::task::yield_now().await;
        assert_eq!(*woken.lock().expect("not poisoned"), (0..50).collect::<Vec<_>>());
        assert_eq!(sign.shows(|value| value == 1).await, 1, "what it shows already is not waited for");
    }
}

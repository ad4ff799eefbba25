//! Which of the members is in use, and who is told when that changes.
//!
//! In the wheel it stands between the calls, which leave a member that fails, and the streams, which then doubt theirs. Waiters are woken
//! in the order in which they wait, so that a simulation repeats exactly; tokio's watch channel wakes them at random.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// The member in use: members are taken in turn.
#[derive(Debug, Default)]
pub(crate) struct InUse {
    /// How often a member was left.
    left: AtomicUsize,
    moved: Notify,
}

impl InUse {
    /// The index of the member in use, of so many.
    pub(crate) fn current(&self, members: usize) -> usize {
        self.left.load(SeqCst) % members
    }

    /// Goes on to the next member if this one is in use and there is another. Returns the next one.
    pub(crate) fn leave(&self, at: usize, members: usize) -> Option<usize> {
        let left = self.left.load(SeqCst);
        if members < 2 || left % members != at || self.left.compare_exchange(left, left + 1, SeqCst, SeqCst).is_err() {
            return None;
        }
        self.moved.notify_waiters();
        Some((left + 1) % members)
    }
}

/// Tells of every change of the member in use.
pub(crate) struct Moves {
    in_use: Arc<InUse>,
    seen: usize,
}

impl Moves {
    pub(crate) fn of(in_use: &Arc<InUse>) -> Self {
        Self { in_use: in_use.clone(), seen: in_use.left.load(SeqCst) }
    }

    /// From here on only later changes count.
    pub(crate) fn forget(&mut self) {
        self.seen = self.in_use.left.load(SeqCst);
    }

    /// Waits until there was a change that is not yet known. It may be dropped before it is done.
    pub(crate) async fn next(&mut self) {
        loop {
            let moved = self.in_use.moved.notified();
            let left = self.in_use.left.load(SeqCst);
            if left != self.seen {
                self.seen = left;
                return;
            }
            moved.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_move_is_told_once_to_each_who_did_not_know_of_it() {
        let in_use = Arc::new(InUse::default());
        let (mut one, mut other) = (Moves::of(&in_use), Moves::of(&in_use));
        assert_eq!(one.next().now_or_never(), None);
        let mut waits = Box::pin(one.next());
        assert_eq!(waits.as_mut().now_or_never(), None);
        assert_eq!((in_use.leave(0, 3), in_use.leave(0, 3), in_use.current(3)), (Some(1), None, 1));
        waits.await;
        assert_eq!(one.next().now_or_never(), None);
        other.forget();
        assert_eq!(other.next().now_or_never(), None);
        assert_eq!((in_use.leave(1, 3), in_use.leave(2, 3), in_use.current(3)), (Some(2), Some(0), 0));
        other.next().await;
        assert_eq!(InUse::default().leave(0, 1), None, "there is no other");
    }
}

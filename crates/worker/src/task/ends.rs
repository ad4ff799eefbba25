//! By when scripts have to have been killed: told to the guard, which does it where this process does not, because it hangs or is stopped.
//!
//! The wheel: between worker::task and worker::guard. A script is not executed before the guard knows of its end, and its end is taken back when the kill
//! was ordered: the shim sees to that by itself. It decides nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use evenkeel_model::TaskId;

use crate::{guard::LinkSender, protocol::authority::BootTime};

/// What this process may be late. A script is executed 1.25 s before the end of authority at the latest (its usual kill, slack and grace), and the guard needs
/// half a second: so it is dead before a leader that waits for timeout, grace and G gives it up.
pub(super) const SLACK: Duration = Duration::from_millis(750);

/// The ends of what is executed.
pub(crate) struct Ends {
    link: LinkSender,
    all: Mutex<BTreeMap<(TaskId, u32), BootTime>>,
}

impl Ends {
    pub(super) fn new(link: LinkSender) -> Self {
        Self { link, all: Mutex::default() }
    }

    /// An attempt is to be killed by then. False: the guard cannot be told.
    pub(super) fn begin(&self, key: (TaskId, u32), end: BootTime) -> bool {
        self.change(|all| {
            all.insert(key, end);
        })
    }

    /// It was killed, or has ended.
    pub(super) fn end(&self, key: (TaskId, u32)) {
        let is_told = self.change(|all| {
            all.remove(&key);
        });
        if !is_told {
            tracing::warn!(task = %key.0, "the guard does not hear that a script has ended");
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<(TaskId, u32), BootTime>)) -> bool {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let first = |all: &BTreeMap<_, BootTime>| all.values().min().copied();
        let before = first(&all);
        change(&mut all);
        let after = first(&all);
        // Said under the lock, so that what is said last is what counts.
        before == after || self.link.scripts(after)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::guard::ToGuard;

    #[test]
    fn the_guard_knows_the_first_end_and_is_told_of_nothing_else() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let ends = Ends::new(LinkSender::new(move |message| {
            heard.lock().expect("a lock").push(message);
            true
        }));
        let key = |task| (TaskId(task), 1);
        assert!(ends.begin(key(1), BootTime(50)) && ends.begin(key(2), BootTime(70)) && ends.begin(key(3), BootTime(30)));
        [key(2), key(3), key(1)].into_iter().for_each(|key| ends.end(key));
        let expected = [Some(50), Some(30), Some(50), None].map(|end| ToGuard::Scripts(end.map(BootTime)));
        assert_eq!(*said.lock().expect("a lock"), expected);
    }
}

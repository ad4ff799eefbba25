//! The one thread that writes all logs of a worker.
//!
//! The wheel: under worker::driver. It carries out what [`Pending`] decides, and says once what is wrong.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use evenkeel_model::{Epoch, ResourceName};

use super::{
    Measured,
    pending::{Batch, Failure, Pending},
    place::{Place, PlaceError},
};

/// Why output is lost where the disk refuses nothing.
const TOO_SLOW: &str = "the disk did not keep up";

#[derive(Debug)]
pub(super) struct Writer(Arc<Desk>);

/// What the thread shares with those who append.
#[derive(Debug, Default)]
struct Desk {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Pending,
    /// Nobody appends any more.
    over: bool,
    trouble: Option<Trouble>,
}

/// A span in which the disk does not take what is written.
#[derive(Debug)]
struct Trouble {
    /// What was lost before, in bytes.
    lost_before: u64,
    /// The disk has refused something, and did not only take too long.
    refused: bool,
}

/// Access to what is pending; whoever has it keeps the thread waiting.
pub(super) struct Access<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Access<'_> {
    type Target = Pending;

    fn deref(&self) -> &Pending {
        &self.0.pending
    }
}

impl std::ops::DerefMut for Access<'_> {
    fn deref_mut(&mut self) -> &mut Pending {
        &mut self.0.pending
    }
}

impl Writer {
    pub(super) fn start(place: Place, keep: Duration) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let its = Arc::clone(&desk);
        std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || {
            if let Err(error) = place.prune(keep, SystemTime::now()) {
                tracing::warn!(%error, "old logs cannot be removed");
            }
            its.write_on(&place);
        })?;
        Ok(Self(desk))
    }

    pub(super) fn pending(&self) -> Access<'_> {
        Access(self.0.state())
    }

    pub(super) fn append(&self, name: &ResourceName, begins: Option<Epoch>, bytes: &[u8]) {
        let mut state = self.0.state();
        let lost = state.pending.push(name, begins, bytes);
        // Of a log that could not be written that is known already.
        let begins = lost > 0 && state.trouble.is_none() && !state.pending.has_failed(name);
        if begins {
            state.trouble = Some(Trouble { lost_before: state.pending.lost() - lost, refused: false });
        }
        drop(state);
        self.0.wake.notify_one();
        if begins {
            tracing::warn!(resource = %name, "{TOO_SLOW}: output of work is lost; the newest of it is kept, and work goes on");
        }
    }

    pub(super) fn measured(&self) -> Measured {
        let state = self.0.state();
        Measured { pending: state.pending.bytes() as u64, lost: state.pending.lost() }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.wake.notify_one();
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_on(&self, place: &Place) {
        while let Some(mut batch) = self.next() {
            match place.write(&mut batch, TOO_SLOW) {
                Ok(()) => self.written(&batch.name),
                Err(error) => self.failed(batch, &error),
            }
        }
    }

    /// Waits for the next batch. None: there will be none.
    fn next(&self) -> Option<Batch> {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            state.pending.wake(now);
            if let Some(batch) = state.pending.take() {
                return Some(batch);
            }
            if state.over {
                return None;
            }
            state = match state.pending.next_wake() {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => self.wake.wait_timeout(state, at.saturating_duration_since(now)).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn written(&self, name: &ResourceName) {
        let mut state = self.state();
        state.pending.written(name);
        if state.trouble.is_none() || state.pending.is_in_trouble() {
            return;
        }
        let Some(trouble) = state.trouble.take() else { return };
        let lost = state.pending.lost() - trouble.lost_before;
        drop(state);
        tracing::warn!(bytes_lost = lost, "the output of work is written again");
    }

    fn failed(&self, batch: Batch, error: &PlaceError) {
        let name = batch.name.clone();
        let mut state = self.state();
        let is_of_one = error.is_of_one();
        let lost_before = state.pending.lost();
        let news = state.pending.failed(batch, Failure { why: error.why(), is_of_one }, Instant::now());
        // A disk that is full is so for every resource: that is said once.
        let is_said = if is_of_one {
            news
        } else {
            let trouble = state.trouble.get_or_insert(Trouble { lost_before, refused: false });
            !std::mem::replace(&mut trouble.refused, true)
        };
        drop(state);
        if is_said {
            tracing::warn!(resource = %name, %error, "output cannot be written to its log: the newest of it is kept, and work goes on");
        }
    }
}

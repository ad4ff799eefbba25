//! What one connection is about at the moment, and when it has been at it for too long.
//!
//! Under net::serve: net::io says what arrives, net::request which requests begin and end. It closes nothing itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{sync::watch, time::Instant};

use crate::{keeper::Seat, limits::Limits};

/// What one connection is about.
#[derive(Debug)]
pub(crate) struct Activity {
    seat: Seat,
    state: Mutex<State>,
    /// Enough has come to know what the stream speaks.
    speaks: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    /// Requests that have begun and whose answers have not ended.
    in_flight: usize,
    /// Those of them that wait for their caller: for the rest of a body, or for the next question.
    waiting: usize,
    /// When a request last began or ended.
    since: Instant,
    /// The first byte of a request whose headers are not whole. HTTP/1 only: on HTTP/2 other things come in, too.
    header_begun: Option<Instant>,
    is_http2: bool,
    /// Since when nothing that was written has gone out: its peer does not read.
    stalled: Option<Instant>,
    /// A request ended although not all of its body was read.
    is_unread: bool,
}

/// What is too long about a connection, or when that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is to be looked at again then.
    LookAgain(Instant),
    /// A request's headers do not end.
    SlowHeader,
    /// Nothing has been asked.
    Idle,
}

impl Activity {
    pub(crate) fn new(seat: Seat) -> Self {
        let state =
            State { in_flight: 0, waiting: 0, since: Instant::now(), header_begun: None, is_http2: false, stalled: None, is_unread: false };
        Self { seat, state: Mutex::new(state), speaks: watch::Sender::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when this connection must make room for another.
    pub(crate) async fn closed(&self) {
        self.seat.closed().await;
    }

    /// Something was read from the stream.
    pub(crate) fn arrived(&self) {
        let mut state = self.state();
        if state.in_flight == 0 && !state.is_http2 && state.header_begun.is_none() {
            state.header_begun = Some(Instant::now());
        }
    }

    /// It is known what the stream speaks: HTTP/2, or another one.
    pub(crate) fn is_known(&self, is_http2: bool) {
        if is_http2 {
            let mut state = self.state();
            state.is_http2 = true;
            state.header_begun = None;
        }
        self.speaks.send_replace(true);
    }

    /// Completes once it is known what the stream speaks.
    pub(crate) async fn speaks(&self) {
        let _ = self.speaks.subscribe().wait_for(|known| *known).await;
    }

    /// Nothing more that is written goes out, or something does again.
    pub(crate) fn stalled(&self, is_stalled: bool) {
        let mut state = self.state();
        state.stalled = is_stalled.then(Instant::now);
        if !is_stalled {
            self.changed(&mut state);
        }
    }

    /// Whether something may still come that was not read: the rest of a request's body, or, by HTTP/2, a frame that crosses the last word of this side.
    /// A socket that is closed over it is reset, and the caller loses what it was told last.
    pub(crate) fn is_owed_the_end(&self) -> bool {
        let state = self.state();
        state.is_unread || state.is_http2
    }

    /// A request's headers are there. It waits for its caller until what is returned second says otherwise or is dropped; one that
    /// always waits does so until its answer has ended.
    pub(crate) fn begin(self: &Arc<Self>, waits: bool, always_waits: bool) -> (InFlight, Arriving) {
        let mut state = self.state();
        state.in_flight += 1;
        state.waiting += usize::from(waits) + usize::from(always_waits);
        state.header_begun = None;
        self.changed(&mut state);
        let in_flight = InFlight { activity: Arc::clone(self), always_waits };
        (in_flight, Arriving { activity: Arc::clone(self), is_counted: waits })
    }

    /// Who only sends waits as one who does not: a connection is busy while a request that has arrived is being answered.
    fn changed(&self, state: &mut State) {
        state.since = Instant::now();
        self.seat.waits((state.in_flight == state.waiting).then_some(state.since));
    }

    /// What is too long about it now.
    pub(crate) fn judge(&self, limits: &Limits) -> Verdict {
        let (state, now) = (self.state(), Instant::now());
        if state.in_flight > 0 {
            // Who does not read its answer may go on, as long as nobody else needs the place.
            if let Some(since) = state.stalled.filter(|since| *since + limits.idle <= now) {
                self.seat.waits(Some(since));
            }
            // What begins once this request has ended is seen in time.
            return Verdict::LookAgain(now + limits.header_read.min(limits.idle));
        }
        let idle = state.since + limits.idle;
        let header = state.header_begun.map(|begun| begun + limits.header_read);
        match header {
            Some(end) if end <= now => Verdict::SlowHeader,
            _ if idle <= now => Verdict::Idle,
            Some(end) => Verdict::LookAgain(idle.min(end)),
            // The first byte of a header may come at any time.
            None => Verdict::LookAgain(idle.min(now + limits.header_read)),
        }
    }
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    activity: Arc<Activity>,
    always_waits: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.in_flight -= 1;
        state.waiting -= usize::from(self.always_waits);
        self.activity.changed(&mut state);
    }
}

/// A body that comes, until enough of it is there or it is dropped.
#[derive(Debug)]
pub(crate) struct Arriving {
    activity: Arc<Activity>,
    is_counted: bool,
}

impl Arriving {
    /// The request waits for no more of it.
    pub(crate) fn ended(&mut self) {
        if std::mem::take(&mut self.is_counted) {
            let mut state = self.activity.state();
            state.waiting -= 1;
            self.activity.changed(&mut state);
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.is_counted {
            self.activity.state().is_unread = true;
        }
        self.ended();
    }
}

//! Keeps one piece running until it is told to stop: start, observe, wait, start again; and ends it.
//!
//! The wheel: under worker::driver::in_process. Whether the resource runs here at all is not its question. It says that the piece has ended only when
//! none of its tasks is left. Where one keeps its thread, so that it cannot be ended, the keeper says who that is and gives up: then the agent ends,
//! and with it everything that runs in it.

use std::{error::Error, sync::Arc, time::Duration};

use evenkeel_model::{Hash, Observed};
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Checked, Failure, Kind, NoAuthority, Piece, Stopping, Update, panic_text,
    threads::{Look, Place, Threads},
};
use crate::driver::{
    Change, Lives, Observation, Observer, Work,
    backoff::{Backoff, GATE_PERIOD, WELL},
    orders::OrderReceiver,
};

/// What a piece reports is written so often at most: each report is a write to etcd.
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// A task that is aborted ends when it next gives its thread back, which takes microseconds. One that has not ended for so long is looked at.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// From that look to the verdict: who has kept its thread all the while blocks it.
const VERDICT_AFTER: Duration = Duration::from_millis(500);
/// From the verdict to the end of the process: for its words to reach etcd, which takes some 50 ms.
const TELL: Duration = Duration::from_secs(1);

pub(super) struct Keeper<K: Kind> {
    kind: Arc<K>,
    work: Work,
    spec: Checked<K::Spec>,
    observer: Observer,
    orders: OrderReceiver,
    threads: Threads,
    /// How often the piece was started.
    starts: u32,
    /// Runs in a row that failed before they ran well.
    failures: u32,
    backoff: Backoff,
    /// What the piece last reported.
    reported: String,
}

/// How one run of the piece came to its end.
enum Ended {
    /// It was told to stop.
    Stopped,
    /// It has done what it was to do.
    Finished,
    /// It returned an error, panicked, or could not be started.
    Failed { why: String, ran: Duration },
    /// The gate is shut.
    NoAuthority,
    /// It does not end.
    Stuck,
}

/// What a task of a piece says at its end.
enum Said {
    Run(Result<(), Failed>),
    Update(Update),
}

/// The [`Failure`] that a piece returned, put into words by the piece's own task: that calls code of its kind, which may panic.
enum Failed {
    NoAuthority,
    Because(String),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        if failure.is::<NoAuthority>() { Self::NoAuthority } else { Self::Because(in_words(&*failure)) }
    }
}

/// A change that a task looks at.
struct Asked<S> {
    task: Id,
    change: Change,
    spec: Checked<S>,
}

/// A run that goes on.
struct Running<S> {
    piece: Piece<S>,
    place: Place,
    tasks: JoinSet<Said>,
    main: Id,
    asked: Option<Asked<S>>,
    begun: Instant,
    /// It has run for so long that it runs well.
    well: bool,
    /// How the piece ended, while others of its tasks have not.
    ended: Option<Ended>,
    /// When it is aborted; none: it was not told to stop.
    abort_at: Option<Instant>,
    aborted: Option<Aborted>,
    reports: watch::Receiver<String>,
    report_at: Instant,
    /// Nobody is left who could give an order.
    orphaned: bool,
}

/// Its tasks were aborted, and have not all ended.
struct Aborted {
    at: Instant,
    /// Who had a thread some time later.
    look: Option<Look>,
    /// Who keeps one was named; what is left is the time for people to be told.
    named: bool,
}

/// What is to be done at some time if nothing happens before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Abort,
    RunsWell,
    Report,
    Look,
    Verdict,
    GiveUp,
    Nothing,
}

impl<S> Running<S> {
    /// What is due next, and when.
    fn due(&self, has_report: bool) -> (Due, Instant) {
        if let Some(Aborted { at, look, named }) = &self.aborted {
            return match (look, named) {
                (None, _) => (Due::Look, *at + LOOK_AFTER),
                (Some(_), false) => (Due::Verdict, *at + LOOK_AFTER + VERDICT_AFTER),
                (Some(_), true) => (Due::GiveUp, *at + LOOK_AFTER + VERDICT_AFTER + TELL),
            };
        }
        if let Some(at) = self.abort_at {
            return (Due::Abort, at);
        }
        let well = (!self.well).then_some((Due::RunsWell, self.begun + WELL));
        let report = has_report.then_some((Due::Report, self.report_at));
        // From now on: a time that has passed would be due without end.
        let nothing = (Due::Nothing, Instant::now() + Duration::from_secs(3600));
        well.into_iter().chain(report).min_by_key(|(_, at)| *at).unwrap_or(nothing)
    }

    fn abort(&mut self) {
        if self.aborted.is_none() {
            self.tasks.abort_all();
            self.aborted = Some(Aborted { at: Instant::now(), look: None, named: false });
        }
    }
}

impl<K: Kind> Keeper<K> {
    pub(super) fn new(
        kind: Arc<K>,
        spec: Checked<K::Spec>,
        work: Work,
        observer: Observer,
        orders: OrderReceiver,
        threads: Threads,
    ) -> Self {
        let (starts, failures, backoff) = (0, 0, Backoff::default());
        Self { kind, work, spec, observer, orders, threads, starts, failures, backoff, reported: String::new() }
    }

    pub(super) async fn keep(mut self) {
        loop {
            let ended = if self.orders.is_told_to_stop() { Ended::Stopped } else { self.run_once().await };
            match ended {
                Ended::Stopped => break,
                // The observer says so by its end.
                Ended::Stuck => return,
                Ended::Finished => {
                    self.failures = 0;
                    let seen = self.seen(Observed::Exited, "it has returned".to_owned());
                    self.observer.observed(Observation { lives: Lives::Nothing, ..seen });
                    self.pause(None).await;
                }
                Ended::NoAuthority => {
                    self.observer.observed(self.seen(Observed::Backoff, "waits for authority".to_owned()));
                    self.pause(Some(GATE_PERIOD)).await;
                }
                Ended::Failed { why, ran } => {
                    self.failures = if ran >= WELL { 0 } else { self.failures.saturating_add(1) };
                    tracing::warn!(resource = %self.work.name, epoch = %self.work.epoch, why, "a piece has failed");
                    self.observer.observed(self.seen(Observed::Backoff, why));
                    let pause = self.backoff.after(ran);
                    self.pause(Some(pause)).await;
                }
            }
        }
        tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "stopped");
        self.observer.ended();
    }

    /// Starts the piece and stays with it until none of its tasks is left.
    async fn run_once(&mut self) -> Ended {
        if !self.work.gate.is_open() {
            return Ended::NoAuthority;
        }
        self.starts = self.starts.saturating_add(1);
        let threads = match self.threads.handle() {
            Ok(threads) => threads,
            Err(error) => return Ended::Failed { why: format!("there are no threads for it: {error}"), ran: Duration::ZERO },
        };
        let (piece, place) = (Piece::new(&self.work, Arc::clone(&self.spec.spec)), Place::take(&self.work.name));
        // Before the piece has a thread, or what it reports first would count as seen.
        let reports = piece.reports();
        let (kind, its) = (Arc::clone(&self.kind), piece.clone());
        let mut tasks = JoinSet::new();
        let run = async move { Said::Run(kind.run(its).await.map_err(Failed::from)) };
        let main = tasks.spawn_on(place.watch(run), &threads).id();
        self.reported.clear();
        self.observer.observed(self.seen(Observed::Running, String::new()));
        tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "started");
        let now = Instant::now();
        let ended = self
            .stay_with(Running {
                reports,
                piece,
                place,
                tasks,
                main,
                asked: None,
                begun: now,
                well: false,
                ended: None,
                abort_at: None,
                aborted: None,
                report_at: now,
                orphaned: false,
            })
            .await;
        if !matches!(ended, Ended::Stuck) {
            self.work.log.finish().await;
        }
        ended
    }

    async fn stay_with(&mut self, mut run: Running<K::Spec>) -> Ended {
        loop {
            let has_report = run.reports.has_changed().unwrap_or(false);
            let (due, at) = run.due(has_report);
            tokio::select! {
                biased;
                ended = run.tasks.join_next_with_id() => match ended {
                    Some(ended) => self.take_in(&mut run, ended),
                    None => return run.ended.unwrap_or(Ended::Stopped),
                },
                ordered = self.orders.changed(), if !run.orphaned => {
                    run.orphaned = ordered.is_err();
                    self.take_order(&mut run);
                }
                _ = run.reports.changed(), if !has_report && run.abort_at.is_none() => run.reports.mark_changed(),
                () = sleep_until(at) => {
                    if due == Due::GiveUp {
                        return Ended::Stuck;
                    }
                    self.act(due, &mut run);
                }
            }
        }
    }

    fn take_in(&mut self, run: &mut Running<K::Spec>, ended: Result<(Id, Said), JoinError>) {
        let (id, said) = match ended {
            Ok((id, said)) => (id, Ok(said)),
            Err(error) => (error.id(), Err(error)),
        };
        if let Some(asked) = run.asked.take_if(|asked| asked.task == id) {
            if run.abort_at.is_some() {
                return;
            }
            let answer = match said {
                Ok(Said::Update(answer)) => answer,
                Ok(Said::Run(_)) => return,
                // Its run has ended, and it will be asked again, or not at all.
                Err(error) if error.is_cancelled() => return self.refuse(asked.change.hash),
                Err(error) => Update::NeedsRestart(format!("the change could not be taken: {}", panicked(error))),
            };
            self.answer(run, asked, answer);
        } else if id == run.main {
            let ran = run.begun.elapsed();
            run.ended = Some(match said {
                _ if run.abort_at.is_some() => Ended::Stopped,
                Ok(Said::Run(Err(Failed::NoAuthority))) => Ended::NoAuthority,
                Ok(Said::Run(Err(Failed::Because(why)))) => Ended::Failed { why, ran },
                Ok(_) => Ended::Finished,
                Err(error) => Ended::Failed { why: panicked(error), ran },
            });
            // Nothing of a piece outlives it.
            run.abort();
        }
    }

    fn take_order(&mut self, run: &mut Running<K::Spec>) {
        let Some(stop) = self.orders.stop().filter(|_| !run.orphaned).or(run.orphaned.then(Default::default)) else {
            return self.take_change(run);
        };
        let now = Instant::now();
        let grace = if run.orphaned { Duration::ZERO } else { self.spec.grace };
        let at = run.abort_at.unwrap_or(now + grace);
        let at = stop.kill_by.map_or(at, |by| self.work.gate.clock().instant(by).min(at));
        run.abort_at = Some(at);
        run.piece.stop(Stopping { deadline: at, why: stop.why });
    }

    /// Asks the kind about the last change, if nothing asks it already.
    fn take_change(&mut self, run: &mut Running<K::Spec>) {
        if run.asked.is_some() || run.abort_at.is_some() {
            return;
        }
        let Some(change) = self.orders.new_change() else { return };
        if run.ended.is_some() {
            return self.refuse(change.hash);
        }
        let spec = match Checked::read(&*self.kind, &change.spec) {
            Ok(spec) => spec,
            Err(error) => return self.observer.needs_restart(change.hash, error.to_string()),
        };
        let Ok(threads) = self.threads.handle() else { return self.refuse(change.hash) };
        let (kind, piece, new) = (Arc::clone(&self.kind), run.piece.clone(), Arc::clone(&spec.spec));
        let update = async move { Said::Update(kind.update(&piece, &new).await) };
        let task = run.tasks.spawn_on(run.place.watch(update), &threads).id();
        run.asked = Some(Asked { task, change, spec });
    }

    fn answer(&mut self, run: &mut Running<K::Spec>, asked: Asked<K::Spec>, answer: Update) {
        let Asked { change, spec, .. } = asked;
        match answer {
            Update::Taken => {
                tracing::info!(resource = %self.work.name, epoch = %self.work.epoch, "changed in place");
                self.work.spec = change.spec;
                run.piece.set_spec(Arc::clone(&spec.spec));
                self.spec = spec;
                self.observer.updated(change.hash);
            }
            Update::NeedsRestart(why) => self.observer.needs_restart(change.hash, why),
        }
        // Another one may have come meanwhile.
        self.take_change(run);
    }

    fn refuse(&self, hash: Hash) {
        self.observer.needs_restart(hash, "it does not run at the moment, and one epoch is not started with two specs");
    }

    /// The time has come for this.
    fn act(&mut self, due: Due, run: &mut Running<K::Spec>) {
        match due {
            Due::Abort => run.abort(),
            Due::RunsWell => {
                run.well = true;
                if std::mem::take(&mut self.failures) > 0 {
                    self.observer.observed(self.seen(Observed::Running, self.reported.clone()));
                }
            }
            Due::Report => {
                self.reported.clone_from(&run.reports.borrow_and_update());
                run.report_at = Instant::now() + REPORT_PERIOD;
                self.observer.observed(self.seen(Observed::Running, self.reported.clone()));
            }
            Due::Look => run.aborted.iter_mut().for_each(|aborted| aborted.look = Some(Place::look())),
            Due::Verdict => self.judge(run),
            Due::GiveUp | Due::Nothing => {}
        }
    }

    /// Says who keeps a thread, so that this piece does not end.
    fn judge(&self, run: &mut Running<K::Spec>) {
        let Some(aborted) = &mut run.aborted else { return };
        let (is_own, others) = aborted.look.as_ref().map(|look| run.place.blockers(look)).unwrap_or_default();
        aborted.named = true;
        let names: Vec<&str> = others.iter().map(|name| name.as_str()).collect();
        let why = match (is_own, names.as_slice()) {
            (true, _) => "it blocks its thread and ignores its stop".to_owned(),
            (false, []) => "it does not end, though it has no thread".to_owned(),
            (false, names) => format!("no thread is free to end it: they are blocked by {}", names.join(", ")),
        };
        let message =
            format!("{why}; unless it ends within {} s, the worker's process is ended, and all that runs inside it", TELL.as_secs());
        tracing::error!(resource = %self.work.name, epoch = %self.work.epoch, message);
        self.observer.observed(Observation { overran: is_own, ..self.seen(Observed::Stopping, message) });
    }

    /// Waits for so long, or without end, or until it is told to stop. Meanwhile no change is taken.
    async fn pause(&mut self, span: Option<Duration>) {
        let end = span.map(|span| Instant::now() + span);
        while let Some(change) = self.orders.change_before(end).await {
            self.refuse(change.hash);
        }
    }

    /// How it is now.
    fn seen(&self, phase: Observed, message: String) -> Observation {
        let (restarts, failures) = (self.starts.saturating_sub(1), self.failures);
        Observation { restarts, failures, message, ..Observation::of(phase) }
    }
}

/// An error with what caused it.
fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn panicked(error: JoinError) -> String {
    error.try_into_panic().map_or_else(|_| "it was cancelled".to_owned(), |panic| format!("it panicked: {}", panic_text(&*panic)))
}

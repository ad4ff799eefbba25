//! `evenkeel dev`: a whole cluster on this machine, for as long as a person looks at it. etcd, masters and workers are real and are
//! child processes; nothing of them is left when it ends.
//!
//! What a person kills stays dead: that is the show.

mod cluster;
mod ports;
mod process;
mod text;
mod view;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::MissedTickBehavior,
};

use self::{
    cluster::{Cluster, observe},
    view::{Placement, View},
};
use crate::{cli::WRONG_USAGE, files, output, settings::DevArgs};

/// How long the beginning may take before the table is shown as it is.
const SETTLE: Duration = Duration::from_secs(30);
/// A placement is shown when it has stood for so long, so that one move is one table.
const CALM: Duration = Duration::from_millis(600);
/// And at the latest so long after it changed.
const RESTLESS: Duration = Duration::from_secs(4);
/// How often children are looked after.
const TICK: Duration = Duration::from_millis(200);

/// Why it could not begin.
#[derive(Debug, thiserror::Error)]
enum DevError {
    #[error("{0}")]
    Usage(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Etcd(#[from] evenkeel_local_etcd::LocalError),
    #[error("no free ports near 8081, 8181, 9091 and 9191; end what uses them")]
    Ports,
    /// Nobody reads what it shows.
    #[error("stdout: {0}")]
    Output(#[from] io::Error),
    #[error("{id} has ended ({status}) before the cluster stood; its log ends with:\n{tail}")]
    Ended { id: String, status: String, tail: String },
}

impl DevError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Runs until Ctrl+C.
pub(crate) fn run(args: &DevArgs) -> ExitCode {
    // One thread: the kernel ties a child to the thread that started it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&DevError::io("no runtime")(e)),
    };
    match runtime.block_on(dev(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &DevError) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(if matches!(error, DevError::Usage(_)) { WRONG_USAGE } else { 1 })
}

/// The signals that end it.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    fn listen() -> Result<Self, DevError> {
        let on = |kind| signal(kind).map_err(DevError::io("signals cannot be received"));
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())?, hangup: on(SignalKind::hangup())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn dev(args: &DevArgs) -> Result<(), DevError> {
    let resources = match &args.resources {
        Some(path) => files::read_source(path).map_err(|e| DevError::Usage(format!("--resources {e}")))?.len(),
        None => cluster::examples()?.len(),
    };
    let mut ends = Ends::listen()?;
    let started = tokio::select! {
        started = Cluster::start(args, resources) => started,
        () = ends.next() => return Ok(()),
    };
    let mut cluster = started?;
    let result = show(&mut cluster, &mut ends).await;
    // Whether or not anybody reads it, everything is to end.
    if result.is_ok() {
        let _ = output::write(b"\nending everything ...\n");
    }
    tokio::select! {
        () = cluster.end() => {}
        () = ends.next() => cluster.kill().await,
    }
    drop(cluster);
    match result {
        Ok(()) => {
            let _ = output::write(b"all has ended, and nothing is left behind\n");
            Ok(())
        }
        Err(DevError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error),
    }
}

/// Shows the cluster until a signal comes.
async fn show(cluster: &mut Cluster, ends: &mut Ends) -> Result<(), DevError> {
    let (sender, mut views) = watch::channel(View::default());
    let observer = tokio::spawn(observe(cluster.master_urls(), sender));
    let result = tokio::select! {
        result = follow(cluster, &mut views) => result,
        () = ends.next() => Ok(()),
    };
    observer.abort();
    result
}

/// What was shown last, and since when something else has been seen.
struct Shown {
    placement: Placement,
    changed: Option<Change>,
}

struct Change {
    placement: Placement,
    first: Instant,
    last: Instant,
}

async fn follow(cluster: &mut Cluster, views: &mut watch::Receiver<View>) -> Result<(), DevError> {
    let begun = Instant::now();
    let mut shown: Option<Shown> = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let view = views.borrow_and_update().clone();
        for ended in cluster.ended() {
            if shown.is_none() {
                return Err(DevError::Ended { id: ended.id, status: ended.status, tail: ended.tail.join("\n") });
            }
            output::write(text::ended(&ended).as_bytes())?;
        }
        let told = match &mut shown {
            None if view.is_settled(cluster.expected) || begun.elapsed() > SETTLE => {
                shown = Some(Shown { placement: view.placement(), changed: None });
                Some(text::welcome(cluster, &view, output::colour()))
            }
            None => None,
            Some(shown) => shown.see(view.placement()).then(|| text::again(cluster, &view, output::colour())),
        };
        if let Some(told) = told {
            output::write(told.as_bytes())?;
        }
    }
}

impl Shown {
    /// Takes a placement in; true: it is time to show it.
    fn see(&mut self, placement: Placement) -> bool {
        if placement == self.placement {
            self.changed = None;
            return false;
        }
        let now = Instant::now();
        match &mut self.changed {
            Some(change) if change.placement == placement => {}
            Some(change) => (change.placement, change.last) = (placement, now),
            none => *none = Some(Change { placement, first: now, last: now }),
        }
        let Some(change) = &self.changed else { return false };
        let ripe = now.duration_since(change.last) >= CALM || now.duration_since(change.first) >= RESTLESS;
        if ripe && let Some(change) = self.changed.take() {
            self.placement = change.placement;
        }
        ripe
    }
}

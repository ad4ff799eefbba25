//! The first source: a file of resources that the leader keeps the cluster in sync with. What is new in it is added, what has changed is
//! changed, what it lacks is deleted as far as the guard allows (`evenkeel_model::source`); what came by the API stays.
//!
//! The wheel: before it, beside the API. It only asks; the control loop decides. It must not act on anything but a file that this master has
//! itself read to its end in this very turn.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use evenkeel_model::{
    Definition, ResourceName,
    diff::{self, Counts, Diff},
    limits::MAX_FILE,
    manifest::{self, File},
    source::{Answer, Content, DeleteGuard, DeleteLimit, Deletes, HeldDigest},
};
use futures::{StreamExt, stream};
use tokio::{
    io::AsyncReadExt,
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    api::{room::Step, service::Service},
    config::MasterError,
    control::resources::PutMode,
};

/// The name of this source, with which the records of its resources are marked.
pub(crate) const NAME: &str = "file";
/// How often the file is read.
const PERIOD: Duration = Duration::from_secs(2);
/// For how long the file must have said the same before what it lacks is deleted: the next reading in its turn comes later than that, one that
/// somebody asks for may come sooner.
const SETTLES: Duration = Duration::from_millis(1500);
/// How many requests are under way at a time.
const WINDOW: usize = 256;
/// How many callers may wait for a turn.
const ORDERS: usize = 16;

/// Reads and checks the file.
///
/// # Errors
/// What is wrong with it, one line each.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<ResourceName, Definition>, MasterError> {
    let bytes = std::fs::read(path).map_err(|e| MasterError::Resources(format!("{}: {e}", path.display())))?;
    parse(path, &bytes).map_err(MasterError::Resources)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<ResourceName, Definition>, String> {
    let label = path.display().to_string();
    manifest::read([File { label: &label, bytes }]).map_err(|errors| errors.to_string())
}

/// What a person asks of the source. Answered when the turn has ended; a caller who is gone needs no answer.
#[derive(Debug)]
pub(crate) enum Order {
    /// Run a turn now.
    Sync(oneshot::Sender<State>),
    /// Delete what is held under this digest.
    Release(HeldDigest, oneshot::Sender<Result<State, NotReleased>>),
}

/// Why nothing was released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReleased {
    #[error("digest: the source holds nothing")]
    Nothing,
    #[error("digest: the file says something else at each reading; release it when that has ended")]
    Unsettled,
    #[error("digest: other deletes are held now: {0} of them, under {1}; look at them, then release those")]
    Other(usize, HeldDigest),
    #[error("the source is failing, so it deletes nothing: {0}")]
    Failing(String),
}

/// How the last turn of this master went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// It has run one since it leads.
    pub(crate) has_turned: bool,
    /// Why the answer was not complete.
    pub(crate) failure: Option<String>,
    pub(crate) records: usize,
    pub(crate) present: usize,
    /// Of the last turn that found anything to do.
    pub(crate) wanted: Counts,
    pub(crate) done: Counts,
    /// How many deletes are held, and the digest that names them.
    pub(crate) held: Option<(usize, HeldDigest)>,
    pub(crate) conflict: usize,
    /// Nanoseconds since the Unix epoch; 0: never.
    pub(crate) last_success: i64,
}

/// A source as the API sees it.
#[derive(Clone, Debug)]
pub(crate) struct SourceHandle {
    pub(crate) path: Arc<Path>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) orders: mpsc::Sender<Order>,
}

type Parsed = Result<BTreeMap<ResourceName, Definition>, String>;

/// The task that follows the file.
pub(crate) struct FileSource {
    path: Arc<Path>,
    guard: DeleteGuard,
    /// The last content that was read, and what it means or what is wrong with it.
    read: Option<(Content, Parsed)>,
    /// The changes of the cluster up to which it is as the file says; none: it may not be.
    settled: Option<u64>,
    state: watch::Sender<State>,
    orders: mpsc::Receiver<Order>,
}

impl FileSource {
    pub(crate) fn new(path: PathBuf) -> (Self, SourceHandle) {
        let (state, shown) = watch::channel(State::default());
        let (sender, orders) = mpsc::channel(ORDERS);
        let path: Arc<Path> = path.into();
        let source = Self { path: path.clone(), guard: guard(), read: None, settled: None, state, orders };
        (source, SourceHandle { path, state: shown, orders: sender })
    }

    /// Keeps the cluster in sync with the file for as long as this master leads, and waits while it does not.
    pub(crate) async fn run(mut self, service: Service) {
        let mut leadership = service.shared().leadership.subscribe();
        loop {
            if !service.shared().leads() {
                self.forget();
                if leadership.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let next = Instant::now() + PERIOD;
            self.turn(&service).await;
            if leadership.has_changed().unwrap_or(true) {
                // Perhaps another has led in between.
                leadership.mark_unchanged();
                self.forget();
                continue;
            }
            let order = tokio::select! {
                order = self.orders.recv() => order,
                () = sleep_until(next) => None,
                _ = leadership.changed() => None,
            };
            match order {
                Some(order) if service.shared().leads() => self.obey(&service, order).await,
                // The caller is answered by the closed channel: this master does not lead.
                Some(_) | None => {}
            }
        }
    }

    /// What was read before no longer counts: another leader may have gone by another file since.
    fn forget(&mut self) {
        self.guard = guard();
        (self.read, self.settled) = (None, None);
        self.state.send_replace(State::default());
        while self.orders.try_recv().is_ok() {}
    }

    async fn obey(&mut self, service: &Service, order: Order) {
        match order {
            Order::Sync(reply) => {
                self.settled = None;
                self.turn(service).await;
                // Who asked may have gone.
                let _ = reply.send(self.state.borrow().clone());
            }
            Order::Release(digest, reply) => {
                let released = self.release(service, digest).await;
                let _ = reply.send(released);
            }
        }
    }

    /// Deletes what is held, if the file still lacks just that when it is read once more.
    async fn release(&mut self, service: &Service, digest: HeldDigest) -> Result<State, NotReleased> {
        let held = self.state.borrow().held;
        match held {
            Some((_, held)) if held == digest => {}
            Some((count, held)) => return Err(NotReleased::Other(count, held)),
            None => return Err(self.state.borrow().failure.clone().map_or(NotReleased::Nothing, NotReleased::Failing)),
        }
        self.guard.release(digest);
        self.settled = None;
        self.turn(service).await;
        if self.guard.is_released() {
            // The file says it in other words by now, or has been read a moment ago for the first time.
            sleep(PERIOD).await;
            self.turn(service).await;
        }
        let is_unsettled = self.guard.is_released();
        // Whatever came of it, what is not deleted by now is not released any more.
        self.guard.withdraw();
        let state = self.state.borrow().clone();
        match (&state.failure, state.held) {
            (Some(failure), _) => Err(NotReleased::Failing(failure.clone())),
            (None, Some((count, held))) => Err(NotReleased::Other(count, held)),
            (None, None) if is_unsettled => Err(NotReleased::Unsettled),
            (None, None) => Ok(state),
        }
    }

    /// Reads the file, and brings the cluster to what it says as far as that may be.
    async fn turn(&mut self, service: &Service) {
        match self.look().await {
            Ok(content) => self.sync(service, content).await,
            Err(failure) => {
                self.guard.incomplete();
                self.settled = None;
                if self.state.borrow().failure.as_ref() != Some(&failure) {
                    tracing::error!(source = NAME, error = %failure, "the file of resources cannot be used: nothing of it is added, changed or deleted");
                }
                self.state.send_modify(|state| {
                    (state.has_turned, state.failure, state.held) = (true, Some(failure), None);
                });
            }
        }
    }

    /// Reads the file to its end. What it says is kept as long as its content stays the same.
    async fn look(&mut self) -> Result<Content, String> {
        let bytes = read_file(&self.path).await.map_err(|e| format!("{}: {e}", self.path.display()))?;
        let content = Content::of(&bytes);
        if self.read.as_ref().is_none_or(|(state, _)| *state != content) {
            let path = self.path.clone();
            // A large file takes seconds.
            let parsed = spawn_blocking(move || parse(&path, &bytes)).await.map_err(|e| e.to_string())?;
            self.read = Some((content, parsed));
            self.settled = None;
        }
        match &self.read {
            Some((_, Err(wrong))) => Err(wrong.clone()),
            _ => Ok(content),
        }
    }

    async fn sync(&mut self, service: &Service, content: Content) {
        let Some((_, Ok(wanted))) = &self.read else { return };
        let began = Instant::now();
        let changes = service.shared().read().next_change();
        if self.settled == Some(changes) {
            return;
        }
        let standing = definitions_of(service, NAME).await;
        let diff = diff::diff(&standing, wanted);
        let missing: Vec<ResourceName> = diff.delete.iter().map(|definition| definition.name.clone()).collect();
        let at = service.shared().now();
        let answer = Answer { content, at, records: wanted.len(), present: standing.len(), missing: &missing };
        let verdict = self.guard.judge(answer);
        let (requests, conflict) = requests(service, &diff, if verdict == Deletes::Allowed { missing } else { Vec::new() }).await;
        let held = if let Deletes::Held(digest) = verdict { Some((diff.delete.len(), digest)) } else { None };
        let tally = requests.tally(diff.unchanged);
        let (wanted_before, done_before) = (self.state.borrow().wanted, self.state.borrow().done);
        let finds_nothing = tally.add + tally.change + diff.delete.len() == 0;
        let (found, nothing) = (Counts { delete: diff.delete.len(), ..tally }, Counts { unchanged: diff.unchanged, ..Counts::default() });
        let state = State {
            has_turned: true,
            failure: None,
            records: wanted.len(),
            present: standing.len(),
            wanted: if finds_nothing { wanted_before } else { found },
            done: if finds_nothing { done_before } else { nothing },
            held,
            conflict,
            last_success: service.shared().clock().unix_ns(),
        };
        self.say(&state);
        self.state.send_replace(state.clone());
        if tally.add + tally.change + tally.delete > 0 {
            let done = Counts { unchanged: diff.unchanged, ..requests.carry_out(service).await };
            log_turn(&state, tally, done, began.elapsed());
            let present = standing.len() + done.add - done.delete;
            self.state.send_replace(State { done, present, ..state });
            return self.settled = None;
        }
        // What is missing for the first time is looked at again.
        self.settled = (verdict != Deletes::Unconfirmed).then_some(changes);
    }

    /// What a person should know, once.
    fn say(&self, state: &State) {
        let before = self.state.borrow();
        if let Some((count, digest)) = state.held
            && before.held != state.held
        {
            tracing::warn!(
                source = NAME, missing = count, of = state.present, records = state.records, %digest,
                "the file of resources lacks so many that nothing is deleted: `evenkeel source get {NAME}` shows it, `evenkeel source release {NAME} {digest}` deletes them"
            );
        }
        if state.conflict > 0 && before.conflict != state.conflict {
            tracing::warn!(
                source = NAME,
                names = state.conflict,
                "names of the file belong to the API or another source: those stay as they are"
            );
        }
    }
}

fn guard() -> DeleteGuard {
    DeleteGuard::new(DeleteLimit::default(), SETTLES)
}

/// One line, with the keys that the inventory sync before Evenkeel wrote: what the answer had, what there was, what was wanted and what was
/// done.
fn log_turn(state: &State, wanted: Counts, done: Counts, took: Duration) {
    tracing::info!(
        source = NAME,
        public.cloud.num = state.records,
        db.num = state.present,
        toAddNum = wanted.add,
        toModNum = wanted.change,
        toDelNum = wanted.delete,
        suAddNum = done.add,
        suModNum = done.change,
        suDelNum = done.delete,
        timeTook = ?took,
        "synced the file of resources"
    );
}

/// The content of a file; what has no end, and what has more than is taken, is refused.
async fn read_file(path: &Path) -> Result<Vec<u8>, std::io::Error> {
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(std::io::Error::other("is not a regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more shows that it is too much, and `manifest` says so.
    tokio::fs::File::open(path).await?.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What a turn asks of the control loop.
struct Requests {
    puts: Vec<(Definition, PutMode)>,
    deletes: Vec<ResourceName>,
}

/// The requests that a diff comes to, and how many names of it belong to somebody else.
async fn requests(service: &Service, diff: &Diff<'_>, deletes: Vec<ResourceName>) -> (Requests, usize) {
    let mut puts = Vec::with_capacity(diff.add.len() + diff.change.len());
    let mut adds = diff.add.iter();
    while adds.len() > 0 {
        let free: Vec<&Definition> = {
            let (state, step) = (service.shared().read(), Step::begin());
            let is_free = |name: &ResourceName| state.cluster.unit(name.as_str()).is_none_or(|u| u.record.is_none());
            let mut free = Vec::new();
            for definition in adds.by_ref() {
                free.extend(Some(*definition).filter(|definition| is_free(&definition.name)));
                if step.is_over() {
                    break;
                }
            }
            free
        };
        puts.extend(free.into_iter().map(|definition| (definition.clone(), PutMode::Add)));
        tokio::task::yield_now().await;
    }
    let conflict = diff.add.len() - puts.len();
    puts.extend(diff.change.iter().map(|change| (change.new.clone(), PutMode::Apply)));
    (Requests { puts, deletes }, conflict)
}

impl Requests {
    fn tally(&self, unchanged: usize) -> Counts {
        let add = self.puts.iter().filter(|(_, mode)| *mode == PutMode::Add).count();
        Counts { add, change: self.puts.len() - add, delete: self.deletes.len(), unchanged }
    }

    /// Asks for all of it, many at a time, and counts what was done.
    async fn carry_out(self, service: &Service) -> Counts {
        let put = async |(definition, mode): (Definition, PutMode)| {
            let name = definition.name.clone();
            let done = is_done(service.put_of_source(definition, mode, NAME).await.map(drop), &name);
            if mode == PutMode::Add { Counts { add: done, ..Counts::default() } } else { Counts { change: done, ..Counts::default() } }
        };
        let mut done = Counts::default();
        let mut puts = stream::iter(self.puts).map(put).buffer_unordered(WINDOW);
        while let Some(one) = puts.next().await {
            (done.add, done.change) = (done.add + one.add, done.change + one.change);
        }
        let delete = async |name: ResourceName| is_done(service.delete_of_source(name.clone(), NAME).await, &name);
        let mut deletes = stream::iter(self.deletes).map(delete).buffer_unordered(WINDOW);
        while let Some(one) = deletes.next().await {
            done.delete += one;
        }
        done
    }
}

/// The resources of a source, by name, for a diff.
async fn definitions_of(service: &Service, source: &str) -> BTreeMap<ResourceName, Definition> {
    let mut found = BTreeMap::new();
    let mut after: Option<ResourceName> = None;
    loop {
        let is_over = {
            let (state, step) = (service.shared().read(), Step::begin());
            let from = after.clone();
            let mut is_over = false;
            for (name, unit) in state.cluster.units_after(from.as_ref().map(ResourceName::as_str)) {
                if let Some(record) = unit.record.as_deref().filter(|r| *r.value.source == *source) {
                    found.insert(name.clone(), record.value.definition.clone());
                }
                is_over = step.is_over();
                if is_over {
                    after = Some(name.clone());
                    break;
                }
            }
            is_over
        };
        if !is_over {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

/// One, if it was done.
fn is_done(result: Result<(), tonic::Status>, name: &ResourceName) -> usize {
    match result {
        Ok(()) => 1,
        Err(status) => {
            tracing::warn!(source = NAME, resource = %name, reason = status.message(), "could not be synced");
            0
        }
    }
}

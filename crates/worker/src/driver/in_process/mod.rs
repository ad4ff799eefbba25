//! Work inside this process: a kind is an async function, which runs once for each piece.
//!
//! The wheel: one way to write a driver of worker::driver. A [`Kind`] says what a piece does; [`InProcess`] makes a driver of it, which starts a
//! piece, starts it again when it fails, and ends it. Nothing of a piece outlives this process, and the guard ends that: so work is held strictly
//! unless a kind says otherwise. Whether a resource runs here at all is not decided here.
//!
//! [`keeper`] stays with one piece from its start to its end, and [`threads`] has the threads that pieces run on.

mod keeper;
mod piece;
mod threads;

#[cfg(test)]
mod tests;

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use evenkeel_model::{DriverTraits, Holds, Spec};
use evenkeel_store::task::of_this_process;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle as Runtime;

use self::{keeper::Keeper, threads::Threads};
use super::{Answer, Driver, Handle, Observer, SpecError, Survivor, Work, orders::Run};

pub use piece::{NoAuthority, Piece, Stopping};

/// What a piece gets from its stop to its kill, unless its kind says otherwise: as much as a process does, which has it from
/// [`Timing::grace`](crate::protocol::authority::Timing), and would follow that. It is for work that only has to let go: what is to finish something says so.
pub const GRACE: Duration = Duration::from_millis(500);

/// Why a piece has failed: any error.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What became of a change to a piece that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The piece goes by the new spec from now on.
    Taken,
    /// It goes on by the old one until it is started anew; why, for people.
    NeedsRestart(String),
}

/// Work that runs inside this process.
pub trait Kind: Send + Sync + 'static {
    /// What a resource of this kind says in its spec. With `#[serde(deny_unknown_fields)]` a field that is misspelled is refused.
    type Spec: DeserializeOwned + Send + Sync + 'static;

    /// Runs one piece to its end. It returns soon after [`Piece::stopping`], and asks [`Piece::check`] before each effect. Whatever it spawns has ended
    /// when it returns. `Ok` before it was told to stop: it has finished, and is not started again. An error or a panic: it is started again after a pause.
    fn run(&self, piece: Piece<Self::Spec>) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Checks what the type of the spec does not.
    ///
    /// # Errors
    /// The field, the rule that it breaks, and what would be taken.
    fn check(&self, spec: &Self::Spec) -> Result<(), SpecError> {
        let _ = spec;
        Ok(())
    }

    /// How long a piece of this spec needs to stop; without an answer [`GRACE`], half a second. All of it is granted where the leader says stop. When authority
    /// ends, at most [`Timing::longest_grace`](crate::protocol::authority::Timing::longest_grace) is, which is 2.75 s unless the timing is changed.
    fn grace(&self, spec: &Self::Spec) -> Duration {
        let _ = spec;
        GRACE
    }

    /// How the work is held. Strictly, if all that it does ends with this process.
    fn holds(&self) -> Holds {
        Holds::Strict
    }

    /// Whether [`Kind::update`] takes changes. The same for as long as the process lives.
    fn updates(&self) -> bool {
        false
    }

    /// Takes a change while the piece runs. Once it has answered [`Update::Taken`], [`Piece::spec`] is the new spec.
    fn update(&self, piece: &Piece<Self::Spec>, new: &Self::Spec) -> impl Future<Output = Update> + Send {
        let _ = (piece, new);
        async { Update::NeedsRestart("this kind takes no changes while it runs".to_owned()) }
    }
}

/// The driver of a kind that runs inside this process.
pub struct InProcess<K> {
    name: String,
    kind: Arc<K>,
    threads: Threads,
}

impl<K: Kind> InProcess<K> {
    /// The driver of this kind, by this name in a resource. Its pieces run on threads which all such kinds of this process share, and which are not
    /// those of the agent: one that blocks its thread holds up other pieces, and not the worker. They are made with the first piece.
    #[must_use]
    pub fn new(name: &str, kind: K) -> Self {
        Self { name: name.to_owned(), kind: Arc::new(kind), threads: Threads::Shared }
    }

    /// The same, on a runtime of the caller's: for tests with paused time.
    #[must_use]
    pub fn on(name: &str, kind: K, runtime: Runtime) -> Self {
        Self { name: name.to_owned(), kind: Arc::new(kind), threads: Threads::Given(runtime) }
    }
}

impl<K> fmt::Debug for InProcess<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K: Kind> Driver for InProcess<K> {
    fn kind(&self) -> &str {
        &self.name
    }

    fn traits(&self) -> DriverTraits {
        DriverTraits { holds: self.kind.holds(), updates: self.kind.updates() }
    }

    fn grace(&self, spec: &Spec) -> Result<Duration, SpecError> {
        Ok(Checked::read(&*self.kind, spec)?.grace)
    }

    fn start(&self, work: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
        let spec = match Checked::read(&*self.kind, &work.spec) {
            Ok(spec) => spec,
            Err(error) => return Err((error, observer)),
        };
        let (run, orders) = Run::new();
        let keeper = Keeper::new(Arc::clone(&self.kind), spec, work, observer, orders, self.threads.clone());
        tokio::spawn(of_this_process(keeper.keep()));
        Ok(Box::new(run))
    }

    /// Nothing of it outlives this process.
    fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn end<'a>(&'a self, _: &'a Survivor) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// A spec that its kind takes.
struct Checked<S> {
    spec: Arc<S>,
    /// What a piece of this spec gets from its stop to its kill.
    grace: Duration,
}

impl<S: DeserializeOwned> Checked<S> {
    /// Reads a spec as its kind does, and asks the kind all that there is to ask about it. The error names the field.
    fn read<K: Kind<Spec = S>>(kind: &K, spec: &Spec) -> Result<Self, SpecError> {
        guarded(|| {
            let spec = parse(spec)?;
            kind.check(&spec)?;
            Ok(Self { grace: kind.grace(&spec), spec: Arc::new(spec) })
        })
    }
}

/// Calls a kind, which may panic. The caller is the agent or a keeper, and neither may end by one resource's spec.
fn guarded<T>(call: impl FnOnce() -> Result<T, SpecError>) -> Result<T, SpecError> {
    // What the call leaves half done is the kind's own; nothing here looks at it again.
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(SpecError(format!("its kind panicked over the spec: {}", panic_text(&*panic)))))
}

/// What a panic says.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("with what is no text")
}

fn parse<S: DeserializeOwned>(spec: &Spec) -> Result<S, SpecError> {
    let text = if spec.as_str().is_empty() { "{}" } else { spec.as_str() };
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "spec".to_owned() } else { format!("spec.{path}") };
        let rule = error.into_inner().to_string();
        // A place in the canonical text means nothing to who wrote the spec.
        let rule = rule.rsplit_once(" at line ").map_or(rule.as_str(), |(rule, _)| rule);
        SpecError(format!("{field}: {rule}"))
    })
}

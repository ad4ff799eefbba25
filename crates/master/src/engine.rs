//! A master without its servers and sources: the control loop, what it knows, and the way to ask it for something.
//!
//! The wheel: **store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit**. [`run`](crate::run()) puts the API around
//! it; a simulator runs it as it is. Nothing is decided here.

use std::sync::Arc;

use evenkeel_model::{MasterRecord, limits::MAX_WAITING};
use evenkeel_store::{Client, keys::Keys};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    config::MasterConfig,
    control::{Control, OPERATIONS, Queues, candidacy::Candidacy, intake::Intake, request::Queue},
    state::Shared,
};
pub use crate::{
    control::candidacy::IdTaken,
    control::request::{Refusal, Reply, Request},
    control::resources::{Effect, PutAnswer, PutMode},
    control::subjects::Subject,
    control::task::{Created, Redone, TaskVerb},
    state::Leadership,
    time::Clock,
};

/// A control loop that is ready to run.
pub struct Engine {
    control: Control,
    handle: Handle,
}

/// What is asked of a control loop, and what it shows.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) intake: Intake,
    operations: mpsc::Sender<Request>,
    requests: mpsc::Sender<Request>,
}

impl Engine {
    /// A loop that campaigns with this record, over this connection. It must be made within a tokio runtime.
    #[must_use]
    pub fn new(config: Arc<MasterConfig>, client: Client, record: MasterRecord, clock: Arc<dyn Clock>) -> Self {
        let keys = Keys::new(config.prefix.clone());
        let shared = Arc::new(Shared::new(Arc::clone(&clock)));
        let candidacy = Candidacy::new(client.clone(), &keys, record, config.lease, clock, Arc::clone(&shared.lease));
        let (handle, queues) = Handle::new(Arc::clone(&shared));
        Self { control: Control::new(config, client, shared, queues, candidacy), handle }
    }

    /// The way to ask it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until it is told to stop (or `stop` is dropped); then hands leadership over.
    ///
    /// # Errors
    /// When another master that lives has this one's id.
    pub async fn run(self, stop: oneshot::Receiver<()>) -> Result<(), IdTaken> {
        let Self { control, handle: _ } = self;
        control.run(stop).await
    }
}

impl Handle {
    /// The way to ask, and where what is asked comes out.
    pub(crate) fn new(shared: Arc<Shared>) -> (Self, Queues) {
        let (operations, operations_asked) = mpsc::channel(OPERATIONS);
        let (requests, requests_asked) = mpsc::channel(MAX_WAITING);
        let handle = Self { shared, intake: Intake::default(), operations, requests };
        (handle, Queues { operations: Queue::of(operations_asked), requests: Queue::of(requests_asked) })
    }

    /// Asks for something. It is answered by the request's own channel, after the commit.
    ///
    /// # Errors
    /// [`Refusal::Busy`] with more requests waiting than can be written; [`Refusal::NotLeader`] when the loop has ended.
    pub fn ask(&self, request: Request) -> Result<(), Refusal> {
        let queue = if request.is_operators() { &self.operations } else { &self.requests };
        queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy,
            TrySendError::Closed(_) => Refusal::NotLeader,
        })
    }

    /// Who leads, as far as this master knows: itself only while another cannot.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.shared.leader()
    }
}

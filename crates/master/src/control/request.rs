//! What the API and the sources ask of the control loop, and what it answers.

use std::collections::BTreeMap;

use evenkeel_model::{Definition, Epoch, IntentKind, Pending, PlaceReason, Record, ResourceName, Session, WorkerId};
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use super::intake::Ticket;

/// The way back to who asked, with the place that the request takes up until it is answered.
#[derive(Debug)]
pub struct Reply<T> {
    sender: oneshot::Sender<Result<T, Refusal>>,
    _ticket: Ticket,
}

impl<T> Reply<T> {
    pub(crate) fn new(ticket: Ticket) -> (Self, oneshot::Receiver<Result<T, Refusal>>) {
        let (sender, answer) = oneshot::channel();
        (Self { sender, _ticket: ticket }, answer)
    }

    /// Who asked has gone: nothing has to be done for it that has not been begun.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Answers. Who asked may have gone.
    pub(crate) fn give(self, answer: Result<T, Refusal>) {
        drop(self.sender.send(answer));
    }
}

/// For who takes no place: a simulator.
impl<T> From<oneshot::Sender<Result<T, Refusal>>> for Reply<T> {
    fn from(sender: oneshot::Sender<Result<T, Refusal>>) -> Self {
        Self { sender, _ticket: Ticket::default() }
    }
}

/// Asks to change what is wanted. It is answered after the commit.
#[derive(Debug)]
pub enum Request {
    /// Add a resource, or replace its definition where that is allowed.
    Put {
        /// What is wanted.
        definition: Box<Definition>,
        /// What may stand already.
        mode: PutMode,
        /// The inventory that asks, which keeps what it adds and changes only what it keeps; empty: the API. It is the door's to say, never
        /// the caller's.
        source: Box<str>,
        /// For the answer.
        reply: Reply<PutAnswer>,
    },
    /// Want a cordon or a drain of a worker, or neither any more.
    Intent {
        /// The worker.
        worker: WorkerId,
        /// What is wanted; none: nothing.
        intent: Option<IntentKind>,
        /// For the answer.
        reply: Reply<()>,
    },
    /// Wait no longer for the workers that are gone, so that what they ran moves though the brake holds.
    ReleaseBrake {
        /// For the answer: whose sessions are waited for no longer.
        reply: Reply<BTreeMap<WorkerId, Session>>,
    },
    /// Delete a resource.
    Delete {
        /// Which.
        name: ResourceName,
        /// The inventory that asks, which deletes only what it keeps; empty: the API, which deletes anything.
        source: Box<str>,
        /// Only the one with this id; none: whichever has the name.
        id: Option<u64>,
        /// For the answer.
        reply: Reply<()>,
    },
}

/// What may stand already when a resource is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Nothing with a different definition.
    Add,
    /// It must stand.
    Update,
    /// Anything.
    Apply,
}

/// What was done with a resource, and where it is.
#[derive(Clone, Debug)]
pub struct PutAnswer {
    /// What was done.
    pub effect: Effect,
    /// What stands now.
    pub record: Record,
    /// Where it is assigned to run, with that worker's address.
    pub node: Option<(WorkerId, String)>,
    /// Why there, if that was chosen just now.
    pub reason: Option<PlaceReason>,
    /// The epoch of that assignment.
    pub epoch: Epoch,
    /// Why it is assigned nowhere.
    pub pending: Option<Pending>,
}

/// The effect of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is new.
    Created,
    /// It existed with a different definition.
    Changed,
    /// It existed like this.
    Unchanged,
}

/// Why a request has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to update or to delete.
    #[error("no such resource")]
    NotFound(ResourceName),
    /// Nothing is known of this worker.
    #[error("no such worker")]
    NoWorker(WorkerId),
    /// It is there, and differs.
    #[error("resource {0} already exists with a different definition; update it, or delete it first")]
    AlreadyExists(ResourceName),
    /// A source asks for what it does not keep.
    #[error("resource {0} belongs to {1}, and stays as it is")]
    OfAnother(ResourceName, Box<str>),
    /// It does not lead, and has written nothing of it: the next leader may be asked.
    #[error("this master is no longer the leader, and nothing was written; try again")]
    NotLeader,
    /// A guard of the write failed.
    #[error("another writer changed {0} at the same moment, and nothing was written; try again")]
    Conflict(ResourceName),
    /// etcd takes no more data.
    #[error("etcd has no space left, and nothing was written; compact and defragment it, disarm its alarm, or raise its quota")]
    NoSpace,
    /// etcd takes it for wrong.
    #[error("etcd refused the write, and nothing was written: {0}")]
    Rejected(String),
    /// It is more than one transaction of etcd takes.
    #[error("it is larger than etcd takes in one transaction, and nothing was written: {0}")]
    TooLarge(String),
    /// The term ended before the commit was known.
    #[error("it is not known whether {0} was written; trying again is safe")]
    Unknown(ResourceName),
    /// The same, of what was wanted of a worker.
    #[error("it is not known whether what is wanted of {0} was written; trying again is safe")]
    UnknownOf(WorkerId),
    /// The same, of what has no name.
    #[error("it is not known whether this was done, since the leader changed; trying again is safe")]
    UnknownOutcome,
    /// Too much waits already.
    #[error("too many requests are waiting; try again in a moment")]
    Busy,
}

/// Requests that wait to be taken on. Those that are left when it goes have not been begun, and are told so.
pub(crate) struct Queue(mpsc::Receiver<Request>);

impl Queue {
    pub(crate) fn of(requests: mpsc::Receiver<Request>) -> Self {
        Self(requests)
    }

    pub(crate) async fn recv(&mut self) -> Option<Request> {
        self.0.recv().await
    }

    pub(crate) fn try_recv(&mut self) -> Result<Request, TryRecvError> {
        self.0.try_recv()
    }

    /// Takes no more, and refuses those that wait: nothing was done for them.
    pub(crate) fn close(&mut self) {
        self.0.close();
        while let Ok(request) = self.0.try_recv() {
            request.refuse(Refusal::NotLeader);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

impl Request {
    /// The resource that it is about, if it is about one.
    pub(crate) fn name(&self) -> Option<&ResourceName> {
        match self {
            Self::Put { definition, .. } => Some(&definition.name),
            Self::Delete { name, .. } => Some(name),
            Self::Intent { .. } | Self::ReleaseBrake { .. } => None,
        }
    }

    /// It is an operator's: about workers, and rare. It does not wait behind what callers ask about resources.
    pub(crate) fn is_operators(&self) -> bool {
        self.name().is_none()
    }

    /// See [`Reply::is_abandoned`].
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Put { reply, .. } => reply.is_abandoned(),
            Self::Delete { reply, .. } | Self::Intent { reply, .. } => reply.is_abandoned(),
            Self::ReleaseBrake { reply } => reply.is_abandoned(),
        }
    }

    /// Answers that nothing was done.
    pub(crate) fn refuse(self, refusal: Refusal) {
        match self {
            Self::Put { reply, .. } => reply.give(Err(refusal)),
            Self::Delete { reply, .. } | Self::Intent { reply, .. } => reply.give(Err(refusal)),
            Self::ReleaseBrake { reply } => reply.give(Err(refusal)),
        }
    }
}

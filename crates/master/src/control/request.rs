//! What the API and the sources ask of the control loop, and what it answers. A verb is a [`Command`], in a file of its own; the loop knows a
//! [`Request`] only, which judges itself and completes itself, whatever it is about.

use std::fmt;

use evenkeel_model::{
    Decision, Guard, HistoryEntry, ResourceName, Revision, TaskId, WorkerId,
    limits::{MAX_RESULTS, MAX_TASKS},
    task::TaskError,
};
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use super::{intake::Ticket, judge::Judge, subjects::Subject};

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

/// A verb: what is asked for, how it is judged, and what it is answered with.
pub(crate) trait Command: fmt::Debug + Send + 'static {
    /// What it is answered with when it is certain.
    type Answer: Answer;

    /// What it is about: of one subject one thing at a time is under way.
    fn subject(&self) -> Subject;

    /// What is to be done for it, by the committed state. Nothing of the subject is under way.
    fn judge(&self, by: &mut Judge<'_>) -> Ruling<Self::Answer>;
}

/// What a command is answered with.
pub(crate) trait Answer: fmt::Debug + Send + 'static {
    /// The write that it speaks of has this revision.
    fn written_at(&mut self, _revision: Revision) {}
}

impl Answer for () {}

/// What is to be done for a command. None of it is done yet.
pub(crate) enum Ruling<A> {
    /// Nothing, whatever else happens.
    Refuse(Refusal),
    /// Nothing is to be written, provided that this still holds in etcd.
    Stands(Vec<Guard>, Result<A, Refusal>),
    /// Something is to be written.
    Write(Box<Decision>, Option<HistoryEntry>, A),
}

/// One command with the way back to who gave it.
pub struct Request {
    asked: Box<dyn Ask>,
    /// How often it was judged by a state that etcd then did not confirm.
    pub(super) tries: u32,
}

/// A [`Ruling`] whose answer the request keeps until it is certain.
pub(super) enum Verdict {
    Refuse(Refusal),
    Stands(Vec<Guard>),
    Write(Box<Decision>, Option<HistoryEntry>),
}

/// A command of any kind.
trait Ask: fmt::Debug + Send {
    fn subject(&self) -> Subject;
    fn is_abandoned(&self) -> bool;
    fn judge(&mut self, by: &mut Judge<'_>) -> Verdict;
    fn complete(self: Box<Self>, outcome: Result<Revision, Refusal>);
}

#[derive(Debug)]
struct Asked<C: Command> {
    command: C,
    reply: Reply<C::Answer>,
    /// What is answered when it is certain.
    answer: Option<Result<C::Answer, Refusal>>,
}

impl<C: Command> Ask for Asked<C> {
    fn subject(&self) -> Subject {
        self.command.subject()
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_abandoned()
    }

    fn judge(&mut self, by: &mut Judge<'_>) -> Verdict {
        match self.command.judge(by) {
            Ruling::Refuse(refusal) => Verdict::Refuse(refusal),
            Ruling::Stands(guards, answer) => {
                self.answer = Some(answer);
                Verdict::Stands(guards)
            }
            Ruling::Write(decision, entry, answer) => {
                self.answer = Some(Ok(answer));
                Verdict::Write(decision, entry)
            }
        }
    }

    fn complete(self: Box<Self>, outcome: Result<Revision, Refusal>) {
        let unjudged = || Err(Refusal::Unknown(self.command.subject()));
        let answer = match outcome {
            Ok(revision) => self.answer.unwrap_or_else(unjudged).map(|mut answer| {
                answer.written_at(revision);
                answer
            }),
            Err(refusal) => Err(refusal),
        };
        self.reply.give(answer);
    }
}

impl Request {
    pub(super) fn new<C: Command>(command: C, reply: Reply<C::Answer>) -> Self {
        Self { asked: Box::new(Asked { command, reply, answer: None }), tries: 0 }
    }

    /// What it is about.
    pub(super) fn subject(&self) -> Subject {
        self.asked.subject()
    }

    /// It is an operator's: about workers, or about what runs already, and rare. It does not wait behind what callers ask for anew.
    pub(crate) fn is_operators(&self) -> bool {
        !matches!(self.subject(), Subject::Resource(_) | Subject::Tasks)
    }

    /// See [`Reply::is_abandoned`].
    pub(super) fn is_abandoned(&self) -> bool {
        self.asked.is_abandoned()
    }

    /// Judges it by the state; it keeps the answer.
    pub(super) fn judge(&mut self, by: &mut Judge<'_>) -> Verdict {
        self.asked.judge(by)
    }

    /// What it was judged by is confirmed, or what it wants is written, at this revision; or it is refused.
    pub(super) fn complete(self, outcome: Result<Revision, Refusal>) {
        self.asked.complete(outcome);
    }

    /// Answers that nothing was done.
    pub(crate) fn refuse(self, refusal: Refusal) {
        self.complete(Err(refusal));
    }
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

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.asked.fmt(f)
    }
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
    /// Nothing is known of this task, or it is being deleted.
    #[error("task {0}: there is none; those that are done are kept for a while only")]
    NoTask(TaskId),
    /// It is none of the task's hosts.
    #[error("{1} is none of the hosts of task {0}")]
    NoHost(TaskId, WorkerId),
    /// What is asked for cannot be, by what is known of the workers.
    #[error("{0}")]
    WrongTask(TaskError),
    /// Another content was asked for under this key.
    #[error("key {0:?} already exists with task {1}, which asks for something else; use another key")]
    KeyTaken(Box<str>, TaskId),
    /// What the task, or the host, has come to does not allow it.
    #[error("{0}")]
    TaskState(String),
    /// No more tasks can be kept, and none that is done makes room.
    #[error(
        "{tasks} tasks with {hosts} hosts are kept, and too few of them are done; at most {MAX_TASKS} and {MAX_RESULTS} are: cancel some, or wait"
    )]
    TooManyTasks {
        /// How many there are.
        tasks: usize,
        /// How many hosts they have.
        hosts: usize,
    },
    /// The counter of tasks has come to its end, or somebody has put it there.
    #[error("no ids of tasks are left; delete /intents/next-task in etcd, and the ids go on after the tasks that are kept")]
    NoTaskIds,
    /// It does not lead, and has written nothing of it: the next leader may be asked.
    #[error("this master is not the leader, and nothing was written; try again")]
    NotLeader,
    /// A guard of the write failed, again and again.
    #[error("another writer changed {0} at the same moment, and nothing was written; try again")]
    Conflict(Subject),
    /// etcd takes no more data.
    #[error("etcd has no space left, and nothing was written; compact and defragment it, disarm its alarm, or raise its quota")]
    NoSpace,
    /// etcd takes it for wrong.
    #[error("etcd refused the write, and nothing was written: {0}")]
    Rejected(String),
    /// It is more than one transaction of etcd takes.
    #[error("it is larger than etcd takes in one transaction, and nothing was written: {0}")]
    TooLarge(String),
    /// The term ended, or the caller's patience, before the commit was known.
    #[error("it is not known whether {0} was written; {again}", again = .0.again())]
    Unknown(Subject),
    /// The same, of what is no subject of the control loop.
    #[error("it is not known whether this was done, since the leader changed; trying again is safe")]
    UnknownOutcome,
    /// Too much waits already.
    #[error("too many requests are waiting; try again in a moment")]
    Busy,
}

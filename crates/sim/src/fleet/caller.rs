//! Callers of the API: one for each name, who adds, updates and deletes through whatever master leads, and tries again as a client does.

use std::{sync::Arc, time::Duration};

use evenkeel_master::engine::{PutMode, Refusal, Request};
use evenkeel_model::{Definition, ResourceName};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    dice::Dice,
    history::{Answer, History},
    ledger::Ledger,
    master::Master,
    sign::Sign,
    work::draft,
};
use crate::linearizability::Content;

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(250);
/// The longest from one change to the next.
const LEISURE: Duration = Duration::from_secs(12);

/// One caller.
pub(super) struct Caller {
    pub(super) name: ResourceName,
    pub(super) masters: Vec<Master>,
    pub(super) history: History,
    pub(super) ledger: Ledger,
    pub(super) dice: Dice,
    /// What stands in etcd under a name.
    pub(super) look: Arc<dyn Fn(&ResourceName) -> Content + Send + Sync>,
    /// True: finish what is under way, and rest.
    pub(super) rest: Sign<bool>,
    /// How many callers have something under way.
    pub(super) busy: Sign<usize>,
    pub(super) next: u64,
}

/// What a caller wants.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Put(u64, PutMode),
    Delete,
}

impl Call {
    fn wants(self) -> Content {
        match self {
            Self::Put(content, _) => Some(content),
            Self::Delete => None,
        }
    }
}

/// What came back.
pub(super) enum Reply {
    Certain(Answer),
    /// It may have been done.
    Unknown,
}

impl Caller {
    pub(super) async fn run(mut self) {
        loop {
            self.rest.shows(|rests| !rests).await;
            sleep(self.dice.span(PAUSE, LEISURE)).await;
            if self.rest.get() {
                continue;
            }
            self.busy.change(|busy| *busy += 1);
            let call = self.choose();
            self.see_through(call).await;
            self.busy.change(|busy| *busy -= 1);
        }
    }

    fn choose(&mut self) -> Call {
        let before = self.next;
        self.next += 1;
        match (self.history.certain(&self.name), self.dice.below(8)) {
            (Some(None), 0) => Call::Delete,
            (Some(None), 1..) => Call::Put(self.next, PutMode::Add),
            (Some(Some(content)), 0) => Call::Put(content, PutMode::Add),
            (_, 1) => Call::Put(self.next, PutMode::Add),
            (_, 2 | 3) => Call::Delete,
            (None, 4) if before > 0 => Call::Put(before, PutMode::Apply),
            (_, 5) => Call::Put(self.next, PutMode::Apply),
            _ => Call::Put(self.next, PutMode::Update),
        }
    }

    /// Calls, and tries again, until the answer is certain; now and then it gives up before.
    async fn see_through(&mut self, call: Call) {
        loop {
            self.history.ask(&self.name, call.wants());
            match self.call(call).await {
                Some(Reply::Certain(answer)) => {
                    self.ledger.note(format_args!("caller of {}: {call:?}: {answer:?}", self.name));
                    if let Err(wrong) = self.history.answered(&self.name, answer, (self.look)(&self.name)) {
                        self.ledger.violate(wrong);
                    }
                    if answer != Answer::Refused {
                        self.ledger.count(|counts| counts.acknowledged += 1);
                        return;
                    }
                }
                Some(Reply::Unknown) => {
                    self.ledger.note(format_args!("caller of {}: {call:?}: unknown", self.name));
                    self.ledger.count(|counts| counts.unknown += 1);
                    self.history.unknown(&self.name);
                    if self.dice.per_mille(150) && !self.rest.get() {
                        return;
                    }
                }
                // Nobody leads.
                None => {
                    if let Err(wrong) = self.history.answered(&self.name, Answer::Refused, (self.look)(&self.name)) {
                        self.ledger.violate(wrong);
                    }
                }
            }
            sleep(self.dice.span(PAUSE / 5, PAUSE)).await;
        }
    }

    /// None: nobody leads, and nobody was asked.
    pub(super) async fn call(&self, call: Call) -> Option<Reply> {
        let leaders: Vec<&Master> = self.masters.iter().filter(|master| master.leads()).collect();
        let handle = if leaders.is_empty() { None } else { self.dice.pick(&leaders).handle() }?;
        match call {
            Call::Put(content, mode) => {
                let (reply, answer) = oneshot::channel();
                let definition = Box::new(self.definition(content)?);
                handle.ask(Request::put(definition, mode, "".into(), reply.into())).ok()?;
                Some(match timeout(PATIENCE, answer).await {
                    Ok(Ok(Ok(answer))) => Reply::Certain(Answer::Done(answer.effect)),
                    Ok(Ok(Err(refusal))) => of_refusal(&refusal),
                    Ok(Err(_)) | Err(_) => Reply::Unknown,
                })
            }
            Call::Delete => {
                let (reply, answer) = oneshot::channel();
                handle.ask(Request::delete(self.name.clone(), "".into(), None, reply.into())).ok()?;
                Some(match timeout(PATIENCE, answer).await {
                    Ok(Ok(Ok(()))) => Reply::Certain(Answer::Deleted),
                    Ok(Ok(Err(refusal))) => of_refusal(&refusal),
                    Ok(Err(_)) | Err(_) => Reply::Unknown,
                })
            }
        }
    }

    fn definition(&self, content: u64) -> Option<Definition> {
        let checked = draft(&self.name, content).check();
        if let Err(error) = &checked {
            self.ledger.violate(format_args!("a definition of the simulator's own is refused: {error}"));
        }
        checked.ok()
    }
}

fn of_refusal(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::NotFound(_) | Refusal::NoWorker(_) | Refusal::NoTask(_) | Refusal::NoHost(..) => Reply::Certain(Answer::NotFound),
        Refusal::AlreadyExists(_) | Refusal::KeyTaken(..) => Reply::Certain(Answer::AlreadyExists),
        Refusal::Conflict(_)
        | Refusal::NoSpace
        | Refusal::Rejected(_)
        | Refusal::TooLarge(_)
        | Refusal::OfAnother(..)
        | Refusal::WrongTask(_)
        | Refusal::TaskState(_)
        | Refusal::TooManyTasks { .. }
        | Refusal::NoTaskIds
        | Refusal::Busy
        | Refusal::NotLeader => Reply::Certain(Answer::Refused),
        Refusal::Unknown(_) | Refusal::UnknownOutcome => Reply::Unknown,
    }
}

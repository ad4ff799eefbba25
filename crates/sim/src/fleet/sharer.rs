//! Callers who share a name: each adds, updates and deletes it through whatever master leads, at the same time as the others, and what all of
//! them were told is judged together when the faults have ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_master::engine::{Effect, PutMode};
use evenkeel_model::ResourceName;
use tokio::time::sleep;

use super::{
    caller::{Call, Caller, Reply},
    history::Answer,
};
use crate::linearizability::{self, Content, History, Outcome, Verdict};

/// Names that begin with this are shared.
const SHARED: &str = "shared-";
/// How many callers a name has.
pub(super) const SHARERS: usize = 3;
/// The longest from one call to the next: short, so that calls meet.
const LEISURE: Duration = Duration::from_secs(2);

/// The name with this number.
pub(super) fn shared_name(number: usize) -> String {
    format!("{SHARED}{number}")
}

/// Whether callers share this name.
pub(super) fn is_shared(name: &ResourceName) -> bool {
    name.as_str().starts_with(SHARED)
}

/// What the callers of all shared names were told since the last time that everything was settled. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Histories(Arc<Mutex<BTreeMap<ResourceName, Page>>>);

#[derive(Debug, Default)]
struct Page {
    history: History,
    /// The contents that were asked for, each once.
    contents: Vec<u64>,
}

impl Histories {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<ResourceName, Page>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every name that was asked for.
    pub(super) fn names(&self) -> Vec<ResourceName> {
        self.pages().keys().cloned().collect()
    }

    /// A content that nobody has asked for, or one of the last that somebody has.
    fn content(&self, name: &ResourceName, back: Option<u64>) -> u64 {
        let mut pages = self.pages();
        let contents = &mut pages.entry(name.clone()).or_default().contents;
        let known = back.and_then(|back| contents.len().checked_sub(1 + usize::try_from(back).ok()?)).map(|at| contents[at]);
        known.unwrap_or_else(|| {
            let new = contents.len() as u64 + 1;
            contents.push(new);
            new
        })
    }

    /// Nothing of what was asked for is under way any more, and this exists. Judges what was told, and begins anew.
    ///
    /// # Errors
    /// What no order explains.
    pub(super) fn settled(&self, name: &ResourceName, exists: Content) -> Result<(), String> {
        let mut pages = self.pages();
        let page = pages.entry(name.clone()).or_default();
        page.history.observe(exists);
        match std::mem::replace(&mut page.history, History::from(exists)).judge() {
            Verdict::Linearizable => Ok(()),
            Verdict::Impossible(why) => Err(format!("{name}: {why}")),
            Verdict::Undecided => Err(format!("{name}: what its callers were told has too many orders to be judged")),
        }
    }
}

impl Caller {
    /// Calls until the run ends, beside others who do the same with this name.
    pub(super) async fn run_beside_others(self, histories: Histories) {
        loop {
            self.rest.shows(|rests| !rests).await;
            sleep(self.dice.span(Duration::ZERO, LEISURE)).await;
            if self.rest.get() {
                continue;
            }
            self.busy.change(|busy| *busy += 1);
            self.call_once(&histories).await;
            self.busy.change(|busy| *busy -= 1);
        }
    }

    fn choose_beside_others(&self, histories: &Histories) -> Call {
        let name = &self.name;
        match self.dice.below(8) {
            0 | 1 => Call::Put(histories.content(name, None), PutMode::Add),
            // What one of the others has added, perhaps.
            2 => Call::Put(histories.content(name, Some(self.dice.below(3))), PutMode::Add),
            3 => Call::Put(histories.content(name, None), PutMode::Apply),
            4 => Call::Put(histories.content(name, None), PutMode::Update),
            5 => Call::Put(histories.content(name, Some(self.dice.below(3))), PutMode::Update),
            _ => Call::Delete,
        }
    }

    async fn call_once(&self, histories: &Histories) {
        let call = self.choose_beside_others(histories);
        let id = histories.pages().entry(self.name.clone()).or_default().history.invoke(of_call(call));
        let outcome = match self.call(call).await {
            Some(Reply::Certain(answer)) => of_answer(answer),
            Some(Reply::Unknown) => Outcome::Unknown,
            // Nobody leads.
            None => Outcome::Refused,
        };
        self.ledger.note(format_args!("a caller of {}: {call:?}: {outcome:?}", self.name));
        self.ledger.count(|counts| match outcome {
            Outcome::Answered(_) => counts.acknowledged += 1,
            Outcome::Unknown => counts.unknown += 1,
            Outcome::Refused => {}
        });
        histories.pages().entry(self.name.clone()).or_default().history.returned(id, outcome);
    }
}

fn of_call(call: Call) -> linearizability::Call {
    match call {
        Call::Put(content, PutMode::Add) => linearizability::Call::Add(content),
        Call::Put(content, PutMode::Update) => linearizability::Call::Update(content),
        Call::Put(content, PutMode::Apply) => linearizability::Call::Apply(content),
        Call::Delete => linearizability::Call::Delete,
    }
}

fn of_answer(answer: Answer) -> Outcome {
    Outcome::Answered(match answer {
        Answer::Done(Effect::Created) => linearizability::Answer::Created,
        Answer::Done(Effect::Changed) => linearizability::Answer::Changed,
        Answer::Done(Effect::Unchanged) => linearizability::Answer::Unchanged,
        Answer::Deleted => linearizability::Answer::Deleted,
        Answer::NotFound => linearizability::Answer::NotFound,
        Answer::AlreadyExists => linearizability::Answer::AlreadyExists,
        Answer::Refused => return Outcome::Refused,
    })
}

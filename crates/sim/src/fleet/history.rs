//! What callers were told, held against what stands in etcd: nothing acknowledged is lost, a retry has one effect, and nothing stands that
//! nobody wanted.
//!
//! Each name has one caller, who does one thing after another, so what may stand is a small set: one content after an answer that is
//! certain, more after calls whose outcome nobody knows. Contents are numbers, each used for one call and its retries.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use evenkeel_master::engine::Effect;
use evenkeel_model::ResourceName;

use crate::linearizability::Content;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<BTreeMap<ResourceName, Page>>>);

#[derive(Clone, Debug)]
struct Page {
    /// What may stand, as far as its caller can know.
    possible: Vec<Content>,
    /// What the call that is under way wants to stand.
    wanted: Option<Content>,
}

impl Default for Page {
    fn default() -> Self {
        Self { possible: vec![None], wanted: None }
    }
}

impl Page {
    fn add(&mut self, content: Content) {
        if !self.possible.contains(&content) {
            self.possible.push(content);
        }
    }
}

/// A certain answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It stands as wanted.
    Done(Effect),
    /// It is gone.
    Deleted,
    /// There was nothing to update or to delete.
    NotFound,
    /// Something else stands.
    AlreadyExists,
    /// It had no effect.
    Refused,
}

impl History {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<ResourceName, Page>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller asks for a content, or for nothing.
    pub fn ask(&self, name: &ResourceName, wanted: Content) {
        self.pages().entry(name.clone()).or_default().wanted = Some(wanted);
    }

    /// Nobody knows what became of it.
    pub fn unknown(&self, name: &ResourceName) {
        let mut pages = self.pages();
        let page = pages.entry(name.clone()).or_default();
        if let Some(wanted) = page.wanted.take() {
            page.add(wanted);
        }
    }

    /// It is answered, while this stands in etcd.
    ///
    /// # Errors
    /// What the answer contradicts.
    pub fn answered(&self, name: &ResourceName, answer: Answer, stands: Content) -> Result<(), String> {
        let mut pages = self.pages();
        let page = pages.entry(name.clone()).or_default();
        let Some(wanted) = page.wanted.take() else { return Err(format!("{name}: an answer to nothing")) };
        let could = |fits: &dyn Fn(Content) -> bool| page.possible.iter().any(|content| fits(*content));
        let (fits, after): (bool, Vec<Content>) = match answer {
            Answer::Done(Effect::Created) => (could(&|c| c.is_none()), vec![wanted]),
            Answer::Done(Effect::Changed) => (could(&|c| c.is_some() && c != wanted), vec![wanted]),
            Answer::Done(Effect::Unchanged) => (could(&|c| c == wanted), vec![wanted]),
            Answer::Deleted => (could(&|c| c.is_some()), vec![None]),
            Answer::NotFound => (could(&|c| c.is_none()), vec![None]),
            Answer::AlreadyExists => {
                let others: Vec<Content> = page.possible.iter().copied().filter(|c| c.is_some() && *c != wanted).collect();
                (!others.is_empty(), others)
            }
            Answer::Refused => (true, page.possible.clone()),
        };
        if !fits {
            return Err(format!("{name}: the answer {answer:?} (wanted {wanted:?}) does not fit what could stand: {:?}", page.possible));
        }
        page.possible = after;
        if !page.possible.contains(&stands) {
            return Err(format!("{name}: after the answer {answer:?} {stands:?} stands; it could only be {:?}", page.possible));
        }
        Ok(())
    }

    /// This stands in etcd now.
    ///
    /// # Errors
    /// Nobody has asked for it, or it was acknowledged to be otherwise.
    pub fn stands(&self, name: &ResourceName, content: Content) -> Result<(), String> {
        let pages = self.pages();
        let fits = pages.get(name).is_some_and(|page| page.possible.contains(&content) || page.wanted == Some(content));
        if fits {
            return Ok(());
        }
        Err(format!("{name}: {content:?} stands, and its caller knows of {:?}", pages.get(name)))
    }

    /// What may stand under a name, if that is certain.
    #[must_use]
    pub fn certain(&self, name: &ResourceName) -> Option<Content> {
        match self.pages().get(name) {
            None => Some(None),
            Some(page) if page.wanted.is_none() && page.possible.len() == 1 => page.possible.first().copied(),
            Some(_) => None,
        }
    }

    /// Every name that was ever asked for.
    #[must_use]
    pub fn names(&self) -> Vec<ResourceName> {
        self.pages().keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ResourceName {
        ResourceName::new("a").expect("name")
    }

    fn after_one_add() -> History {
        let history = History::default();
        history.ask(&name(), Some(1));
        assert_eq!(history.stands(&name(), Some(1)), Ok(()));
        assert_eq!(history.answered(&name(), Answer::Done(Effect::Created), Some(1)), Ok(()));
        history
    }

    #[test]
    fn what_was_acknowledged_must_stand() {
        let history = after_one_add();
        assert!(history.stands(&name(), None).is_err(), "lost");
        assert!(history.stands(&name(), Some(2)).is_err(), "nobody wanted it");
        history.ask(&name(), Some(2));
        assert!(history.answered(&name(), Answer::Done(Effect::Changed), Some(1)).is_err(), "acknowledged, and not done");
    }

    #[test]
    fn what_is_unknown_may_be_either() {
        let history = after_one_add();
        history.ask(&name(), None);
        history.unknown(&name());
        assert_eq!((history.stands(&name(), None), history.stands(&name(), Some(1)), history.certain(&name())), (Ok(()), Ok(()), None));
        history.ask(&name(), None);
        assert_eq!(history.answered(&name(), Answer::NotFound, None), Ok(()));
        assert_eq!(history.certain(&name()), Some(None));
        assert!(history.stands(&name(), Some(1)).is_err(), "what was deleted is back");
    }

    #[test]
    fn an_answer_that_cannot_be_is_seen() {
        let history = after_one_add();
        history.ask(&name(), Some(1));
        assert!(history.answered(&name(), Answer::Done(Effect::Created), Some(1)).is_err(), "a second effect");
        history.ask(&name(), Some(2));
        assert!(history.answered(&name(), Answer::NotFound, Some(1)).is_err(), "it stands");
    }
}

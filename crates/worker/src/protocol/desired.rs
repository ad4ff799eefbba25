//! PURE: what this worker is told to do, and whether it may act on that.
//!
//! The wheel: etcd -> **worker::desired** -> worker::reconcile. It holds the admission that was seen, one whole view of the assignments
//! and what is known to have ended. No etcd, no clock; it starts and stops nothing.
//!
//! An older view may hold an assignment that has since gone to another worker. So a view counts only if it was listed at a revision not
//! before that of the admission, and everything is forgotten that an earlier session saw.

use std::{collections::BTreeMap, sync::Arc};

use evenkeel_model::{Admission, Assignment, Epoch, Hash, Observed, ResourceName, Revision, Session, Status};

/// One assignment as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredAssignment {
    /// The create revision of its key.
    pub epoch: Epoch,
    /// Its value, or why that cannot be read.
    pub assignment: Result<Arc<Assignment>, Arc<str>>,
    /// The revision at which it was written.
    pub modified: Revision,
}

impl DesiredAssignment {
    /// Names the content; empty: it cannot be read.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.assignment.as_ref().map(|assignment| assignment.hash).unwrap_or_default()
    }

    /// What it asks for.
    #[must_use]
    pub fn content(&self) -> Content {
        Content { hash: self.hash(), answers: self.modified }
    }

    /// What this epoch last ran, as far as that is known for certain. Of an assignment that was never rewritten it can only be what that says. Of one
    /// that was, an earlier agent may have taken a content between two that it has reported: its word counts only if it answers the very assignment
    /// that is there now.
    #[must_use]
    pub fn last_run(&self, ran: Option<Ran>) -> Option<Content> {
        if !self.is_rewritten() {
            return Some(self.content());
        }
        let ran = ran.filter(|ran| ran.epoch == self.epoch)?;
        ran.content.filter(|content| ran.is_of_this_agent || content.answers == self.modified)
    }

    /// It has been written since it was created: its spec may be another than its first one.
    #[must_use]
    pub fn is_rewritten(&self) -> bool {
        self.modified.0 != self.epoch.0
    }

    /// The leader wants it to stop.
    #[must_use]
    pub fn is_to_stop(&self) -> bool {
        matches!(self.assignment.as_deref().map(|assignment| &assignment.phase), Ok(evenkeel_model::Phase::Stop { .. }))
    }

    /// The kind that it names; empty: none, or it cannot be read.
    #[must_use]
    pub fn kind(&self) -> String {
        self.assignment.as_ref().map(|assignment| assignment.kind.clone()).unwrap_or_default()
    }
}

/// What is run, by whose word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Names it.
    pub hash: Hash,
    /// The revision at which the assignment was written that this answers.
    pub answers: Revision,
}

/// What was run under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// With which epoch.
    pub epoch: Epoch,
    /// What; none: it may be this or that, since the driver has not answered a change.
    pub content: Option<Content>,
    /// This agent has run it, and so knows its end.
    pub is_of_this_agent: bool,
}

/// The end of an epoch that this worker, in this session or an earlier one, has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Reported stopped: never started again.
    Stopped(Epoch),
    /// Ended by itself, and its restart policy leaves it so: not started again, and it may still be reported stopped.
    Exited(Epoch),
}

/// The admission of this worker as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Admitted {
    session: Session,
    revision: Revision,
}

/// What this worker is told to do.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    session: Option<Session>,
    admission: Option<Admitted>,
    view: Option<BTreeMap<ResourceName, DesiredAssignment>>,
    past: BTreeMap<ResourceName, Past>,
    ran: BTreeMap<ResourceName, Ran>,
}

impl Desired {
    /// A session begins, or (none) has ended. What was seen before counts no more; what is known to have ended stays known.
    pub fn begin(&mut self, session: Option<Session>) {
        self.session = session;
        self.admission = None;
        self.view = None;
    }

    /// The admission as it stands now, with its modification revision. Another one than before makes the view too old.
    pub fn see_admission(&mut self, seen: Option<(&Admission, Revision)>) {
        let seen = seen.map(|(admission, revision)| Admitted { session: admission.session, revision });
        if seen != self.admission {
            self.admission = seen;
            self.view = None;
        }
    }

    /// The session is admitted: the revision of the admission that says so.
    #[must_use]
    pub fn admitted(&self) -> Option<Revision> {
        self.admission.filter(|admission| Some(admission.session) == self.session).map(|admission| admission.revision)
    }

    /// Admitted, and without a view to act on: assignments and statuses are to be listed now.
    #[must_use]
    pub fn needs_list(&self) -> bool {
        self.admitted().is_some() && self.view.is_none()
    }

    /// A whole list of assignments and of own statuses, both read at `revision` or later. Refused if it is older than the admission.
    pub fn list(
        &mut self,
        revision: Revision,
        assigned: BTreeMap<ResourceName, DesiredAssignment>,
        statuses: &BTreeMap<ResourceName, Status>,
    ) -> bool {
        if self.admitted().is_none_or(|admission| revision < admission) {
            return false;
        }
        for (name, status) in statuses {
            match status.phase {
                Observed::Stopped => self.stopped(name, status.epoch),
                _ if status.finished || status.phase == Observed::Exited => self.exited(name, status.epoch),
                _ => {}
            }
            // An earlier version does not say what it ran.
            if status.hash != Hash::default() && self.ran.get(name).is_none_or(|ran| ran.epoch < status.epoch) {
                let answers = if status.answers == Revision::default() { Revision(status.epoch.0) } else { status.answers };
                let content = Some(Content { hash: status.hash, answers });
                self.ran.insert(name.clone(), Ran { epoch: status.epoch, content, is_of_this_agent: false });
            }
        }
        self.past.retain(|name, past| assigned.get(name).is_some_and(|t| t.epoch <= past.epoch()));
        self.ran.retain(|name, ran| assigned.get(name).is_some_and(|t| t.epoch <= ran.epoch));
        self.view = Some(assigned);
        true
    }

    /// One assignment was written after the list.
    pub fn put(&mut self, name: ResourceName, assigned: DesiredAssignment) {
        if let Some(view) = &mut self.view {
            view.insert(name, assigned);
        }
    }

    /// One assignment was deleted after the list.
    pub fn delete(&mut self, name: &ResourceName) {
        if let Some(view) = &mut self.view {
            view.remove(name);
            self.past.remove(name);
            self.ran.remove(name);
        }
    }

    /// The view is too old to act on: authority was lost in between.
    pub fn forget_view(&mut self) {
        self.view = None;
    }

    /// There is a view to act on.
    #[must_use]
    pub fn has_view(&self) -> bool {
        self.view.is_some()
    }

    /// What the view says of one name. None also without a view: ask [`Desired::has_view`] first.
    #[must_use]
    pub fn assignment(&self, name: &ResourceName) -> Option<&DesiredAssignment> {
        self.view.as_ref()?.get(name)
    }

    /// The names in the view.
    pub fn names(&self) -> impl Iterator<Item = &ResourceName> {
        self.view.iter().flat_map(BTreeMap::keys)
    }

    /// This epoch is reported as stopped from now on.
    pub fn stopped(&mut self, name: &ResourceName, epoch: Epoch) {
        if self.past.get(name).is_none_or(|past| past.epoch() <= epoch) {
            self.past.insert(name.clone(), Past::Stopped(epoch));
        }
    }

    /// This epoch has ended by itself, and is not to be started again.
    pub fn exited(&mut self, name: &ResourceName, epoch: Epoch) {
        if self.past.get(name).is_none_or(|past| past.epoch() < epoch) {
            self.past.insert(name.clone(), Past::Exited(epoch));
        }
    }

    /// This epoch runs this from now on; none: nobody knows what, until the driver answers.
    pub fn runs(&mut self, name: &ResourceName, epoch: Epoch, content: Option<Content>) {
        self.ran.insert(name.clone(), Ran { epoch, content, is_of_this_agent: true });
    }

    /// What was last run under a name, as far as is known.
    #[must_use]
    pub fn ran(&self, name: &ResourceName) -> Option<Ran> {
        self.ran.get(name).copied()
    }

    /// The end that is known of the latest epoch of a name.
    #[must_use]
    pub fn past(&self, name: &ResourceName) -> Option<Past> {
        self.past.get(name).copied()
    }
}

impl Past {
    /// Whose end it is.
    #[must_use]
    pub fn epoch(self) -> Epoch {
        match self {
            Self::Stopped(epoch) | Self::Exited(epoch) => epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{Hash, Origin, Phase, Spec};

    use super::*;

    fn name(text: &str) -> ResourceName {
        ResourceName::new(text).expect("name")
    }

    fn assigned(epoch: i64) -> DesiredAssignment {
        let assignment = Assignment {
            kind: String::new(),
            spec: Spec::default(),
            require: evenkeel_model::Selector::EMPTY,
            hash: Hash::default(),
            holds: evenkeel_model::Holds::Strict,
            phase: Phase::Run,
        };
        DesiredAssignment { epoch: Epoch(epoch), assignment: Ok(Arc::new(assignment)), modified: Revision(epoch) }
    }

    fn status(epoch: i64, phase: Observed) -> Status {
        Status::new(phase, Epoch(epoch), 0)
    }

    fn admission(session: i64) -> Admission {
        Admission { session: Session(session), authority_ms: None, origin: Origin::default() }
    }

    fn admitted() -> Desired {
        let mut desired = Desired::default();
        desired.begin(Some(Session(7)));
        desired.see_admission(Some((&admission(7), Revision(9))));
        desired
    }

    #[test]
    fn only_the_own_session_is_admitted() {
        let mut desired = Desired::default();
        desired.see_admission(Some((&admission(7), Revision(9))));
        assert_eq!(desired.admitted(), None, "no session");
        desired.begin(Some(Session(8)));
        desired.see_admission(Some((&admission(7), Revision(9))));
        assert_eq!(desired.admitted(), None, "another session's");
        assert!(!desired.list(Revision(20), BTreeMap::new(), &BTreeMap::new()));
        desired.see_admission(Some((&admission(8), Revision(12))));
        assert_eq!(desired.admitted(), Some(Revision(12)));
    }

    #[test]
    fn a_view_older_than_the_admission_is_refused() {
        let mut desired = admitted();
        assert!(!desired.list(Revision(8), BTreeMap::from([(name("a"), assigned(3))]), &BTreeMap::new()));
        assert!(desired.needs_list() && desired.assignment(&name("a")).is_none());
        assert!(desired.list(Revision(9), BTreeMap::from([(name("a"), assigned(3))]), &BTreeMap::new()));
        assert!(!desired.needs_list() && desired.assignment(&name("a")).is_some());
    }

    #[test]
    fn another_admission_makes_the_view_too_old() {
        let mut desired = admitted();
        assert!(desired.list(Revision(9), BTreeMap::from([(name("a"), assigned(3))]), &BTreeMap::new()));
        desired.see_admission(Some((&admission(7), Revision(9))));
        assert!(desired.has_view(), "the same one changes nothing");
        desired.see_admission(Some((&admission(7), Revision(11))));
        assert!(!desired.has_view() && desired.needs_list());
        desired.see_admission(None);
        assert!(!desired.needs_list() && desired.admitted().is_none());
    }

    #[test]
    fn changes_before_the_first_list_are_dropped() {
        let mut desired = admitted();
        desired.put(name("a"), assigned(3));
        assert_eq!(desired.assignment(&name("a")), None);
    }

    #[test]
    fn what_was_run_is_known_from_this_agent_or_from_its_status_and_forgotten_with_its_assignment() {
        let ran = |desired: &Desired, text: &str| {
            let ran = desired.ran(&name(text))?;
            ran.content.map(|content| (content.answers.0, content.hash, ran.is_of_this_agent))
        };
        let (old, new) = (Hash::of("old", &Spec::default()), Hash::of("new", &Spec::default()));
        let mut desired = admitted();
        desired.runs(&name("own"), Epoch(3), Some(Content { hash: new, answers: Revision(3) }));
        let with = |epoch, hash| Status { hash, ..status(epoch, Observed::Running) };
        let statuses = BTreeMap::from([
            (name("own"), with(3, old)),
            (name("other"), Status { answers: Revision(8), ..with(4, old) }),
            // An earlier version does not say what it runs.
            (name("silent"), status(5, Observed::Running)),
        ]);
        let all = || ["own", "other", "silent"].into_iter().zip(3..).map(|(text, epoch)| (name(text), assigned(epoch))).collect();
        assert!(desired.list(Revision(9), all(), &statuses));
        assert_eq!(ran(&desired, "own"), Some((3, new, true)), "it knows better than what it once wrote");
        assert_eq!((ran(&desired, "other"), ran(&desired, "silent")), (Some((8, old, false)), None));
        desired.delete(&name("own"));
        assert!(desired.list(Revision(10), BTreeMap::from([(name("other"), assigned(9))]), &BTreeMap::new()));
        assert_eq!((ran(&desired, "own"), ran(&desired, "other")), (None, None), "of another epoch it says nothing");
    }

    #[test]
    fn a_list_swaps_the_whole_view() {
        let mut desired = admitted();
        assert!(desired.list(Revision(9), BTreeMap::from([(name("a"), assigned(3)), (name("b"), assigned(4))]), &BTreeMap::new()));
        assert!(desired.list(Revision(30), BTreeMap::from([(name("b"), assigned(25))]), &BTreeMap::new()));
        assert_eq!((desired.assignment(&name("a")), desired.assignment(&name("b"))), (None, Some(&assigned(25))));
        assert_eq!(desired.names().count(), 1);
    }

    #[test]
    fn ends_that_stand_in_etcd_count_and_are_forgotten_with_their_assignment() {
        let mut desired = admitted();
        let statuses = BTreeMap::from([
            (name("a"), status(3, Observed::Stopped)),
            (name("b"), status(4, Observed::Exited)),
            (name("c"), status(5, Observed::Running)),
            (name("d"), Status { finished: true, ..status(6, Observed::Failed) }),
            (name("e"), status(7, Observed::Failed)),
            (name("gone"), status(1, Observed::Stopped)),
        ]);
        let all = BTreeMap::from([
            (name("a"), assigned(3)),
            (name("b"), assigned(4)),
            (name("c"), assigned(5)),
            (name("d"), assigned(6)),
            (name("e"), assigned(7)),
        ]);
        assert!(desired.list(Revision(9), all.clone(), &statuses));
        assert_eq!(desired.past(&name("a")), Some(Past::Stopped(Epoch(3))));
        assert_eq!(desired.past(&name("b")), Some(Past::Exited(Epoch(4))));
        assert_eq!((desired.past(&name("c")), desired.past(&name("gone"))), (None, None));
        assert_eq!(desired.past(&name("d")), Some(Past::Exited(Epoch(6))), "it could not be started, and is not to be");
        assert_eq!(desired.past(&name("e")), None, "what this worker lacks it may have after a restart");
        desired.stopped(&name("b"), Epoch(4));
        assert!(desired.list(Revision(10), all, &statuses), "the status in etcd is older than what is known here");
        assert_eq!(desired.past(&name("b")), Some(Past::Stopped(Epoch(4))));
        desired.delete(&name("a"));
        assert_eq!(desired.past(&name("a")), None);
    }

    #[test]
    fn what_ended_stays_known_in_the_next_session() {
        let mut desired = admitted();
        assert!(desired.list(Revision(9), BTreeMap::from([(name("a"), assigned(3))]), &BTreeMap::new()));
        desired.stopped(&name("a"), Epoch(3));
        desired.begin(None);
        desired.begin(Some(Session(20)));
        desired.see_admission(Some((&admission(20), Revision(21))));
        assert!(desired.list(Revision(21), BTreeMap::from([(name("a"), assigned(3))]), &BTreeMap::new()));
        assert_eq!(desired.past(&name("a")), Some(Past::Stopped(Epoch(3))));
    }
}

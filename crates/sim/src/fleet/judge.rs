//! Looks at every change in etcd as it is applied, and holds it against the invariants of DESIGN.md, section 4.
//!
//! It knows what no part of the system knows: which work really lives ([`Ledger`]) and what callers were told ([`History`]).

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{Admission, Assignment, Epoch, Hash, Holds, Record, ResourceName, Revision, Status, WorkerId};
use evenkeel_store::{
    KeyChange, Kv,
    keys::{Key, Keys},
};
use serde_json::Value;

use super::{
    history::History,
    ledger::{Ledger, is_exclusive},
    sharer::is_shared,
    task_judge::TaskJudge,
    work,
};
use crate::linearizability::Content;

/// See the module.
pub(super) struct Judge {
    keys: Keys,
    ledger: Ledger,
    history: History,
    /// The assignments of each resource.
    assignments: BTreeMap<ResourceName, BTreeMap<WorkerId, Epoch>>,
    /// What was told to stop, which is final.
    stopping: BTreeSet<(ResourceName, Epoch)>,
    /// The content of each hash.
    contents: BTreeMap<Hash, u64>,
    /// The create revisions of the registrations, and the sessions that are admitted.
    sessions: BTreeMap<WorkerId, i64>,
    admitted: BTreeMap<WorkerId, i64>,
    tasks: TaskJudge,
}

/// How the value of an assignment that is to stop says so.
const STOP: &[u8] = b"\"Phase\":\"stop\"";

/// How it says that this is for failures.
const FAILING: &[u8] = b"\"Reason\":\"failing\"";

impl Judge {
    pub(super) fn new(ledger: Ledger, history: History) -> Self {
        Self {
            keys: Keys::new(""),
            tasks: TaskJudge::new(ledger.clone()),
            ledger,
            history,
            assignments: BTreeMap::new(),
            stopping: BTreeSet::new(),
            contents: BTreeMap::new(),
            sessions: BTreeMap::new(),
            admitted: BTreeMap::new(),
        }
    }

    /// One transaction was applied.
    pub(super) fn see(&mut self, revision: Revision, changes: &[KeyChange]) {
        self.ledger.count(|counts| counts.revisions += 1);
        for change in changes {
            match (self.keys.parse(change.key()), change) {
                (Some(Key::Resource(name)), _) => self.resource(&name, change),
                (Some(Key::Assignment(worker, name)), KeyChange::Delete { .. }) => self.ended(&worker, &name),
                (Some(Key::Assignment(worker, name)), KeyChange::Put(kv)) => {
                    let stops = kv.value.windows(STOP.len()).any(|part| part == STOP);
                    let verb = match (kv.created == kv.modified, stops) {
                        (true, _) => "is assigned to",
                        (false, true) => "is to stop on",
                        (false, false) => "is changed on",
                    };
                    self.ledger.note(format_args!("etcd {revision}: {name} {verb} {worker}"));
                    let epoch = Epoch(kv.created.0);
                    let content = self.learn(kv);
                    if kv.created != kv.modified && !stops {
                        self.ledger.note(format_args!("etcd {revision}: {name} (epoch {epoch}) is to go on with content {content:?}"));
                        self.ledger.count(|counts| counts.changed += 1);
                    }
                    if stops {
                        let is_failing = kv.value.windows(FAILING.len()).any(|part| part == FAILING);
                        self.ledger.count(|counts| counts.failing += u64::from(is_failing));
                        self.stopping.insert((name.clone(), epoch));
                    } else if self.stopping.contains(&(name.clone(), epoch)) {
                        self.ledger.violate(format_args!("the stop of {name} on {worker} (epoch {epoch}) is taken back"));
                    }
                    self.assignments.entry(name).or_default().insert(worker, epoch);
                }
                (Some(Key::Status(_, name)), KeyChange::Put(kv)) => self.status(&name, kv),
                (Some(key @ (Key::Worker(_) | Key::Admission(_) | Key::Election(_))), _) => {
                    self.session(&key, change);
                    let verb = if matches!(change, KeyChange::Put(_)) { "put" } else { "deleted" };
                    self.ledger.note(format_args!("etcd {revision}: {key:?} {verb}"));
                }
                (Some(key), _) => self.tasks.see(key, change),
                _ => {}
            }
        }
        for change in changes {
            if let Some(Key::Assignment(_, name)) = self.keys.parse(change.key()) {
                self.one_assignment(&name);
            }
        }
    }

    fn resource(&self, name: &ResourceName, change: &KeyChange) {
        let content = match change {
            KeyChange::Put(kv) => content_of(kv),
            KeyChange::Delete { .. } => None,
        };
        self.ledger.note(format_args!("etcd {}: {name} is {content:?}", change.revision()));
        if let (KeyChange::Put(kv), Some(content)) = (change, content)
            && is_finished(kv)
        {
            self.ledger.finish(name, content);
        }
        // What may stand of a shared one is judged when everything is settled.
        if !is_shared(name)
            && let Err(wrong) = self.history.stands(name, content)
        {
            self.ledger.violate(wrong);
        }
    }

    /// The end of an assignment says that nothing of it runs, and nothing of it will.
    fn ended(&mut self, worker: &WorkerId, name: &ResourceName) {
        let Some(epoch) = self.assignments.get_mut(name).and_then(|of| of.remove(worker)) else { return };
        self.ledger.note(format_args!("etcd: {name} on {worker} (epoch {epoch}) has ended"));
        if is_exclusive(name) {
            self.ledger.close(name, epoch);
        }
        let lives = self.ledger.lives(name, epoch);
        if lives && is_exclusive(name) && work::holds_of(name) == Holds::Strict {
            self.ledger.violate(format_args!("the assignment of {name} to {worker} (epoch {epoch}) is deleted while it runs"));
        }
        // What goes on without its owner is let go only once the session is gone that it was given to.
        let session = self.sessions.get(worker);
        if lives && session.is_some() && session == self.admitted.get(worker) {
            self.ledger.violate(format_args!(
                "the assignment of {name} to {worker} (epoch {epoch}) is deleted while its session lives and it runs"
            ));
        }
    }

    fn session(&mut self, key: &Key, change: &KeyChange) {
        match (key, change) {
            (Key::Worker(id), KeyChange::Put(kv)) => drop(self.sessions.insert(id.clone(), kv.created.0)),
            (Key::Worker(id), KeyChange::Delete { .. }) => drop(self.sessions.remove(id)),
            (Key::Admission(id), KeyChange::Put(kv)) => {
                let admission: Option<Admission> = serde_json::from_slice(&kv.value).ok();
                let _ = admission.map(|admission| self.admitted.insert(id.clone(), admission.session.0));
            }
            (Key::Admission(id), KeyChange::Delete { .. }) => drop(self.admitted.remove(id)),
            _ => {}
        }
    }

    /// Which content the hash of an assignment names.
    fn learn(&mut self, kv: &Kv) -> Content {
        let assignment: Assignment = serde_json::from_slice(&kv.value).ok()?;
        let content = work::content_of(&assignment.spec.to_value())?;
        self.contents.insert(assignment.hash, content);
        Some(content)
    }

    fn status(&self, name: &ResourceName, kv: &Kv) {
        let status: Option<Status> = serde_json::from_slice(&kv.value).ok();
        if let Some(status) = status
            && let Some(content) = self.contents.get(&status.hash)
        {
            self.ledger.reported(name, status.epoch, *content);
        }
    }

    fn one_assignment(&self, name: &ResourceName) {
        let of = self.assignments.get(name);
        if of.is_some_and(|of| of.len() > 1) {
            self.ledger.violate(format_args!("{name} has several assignments: {of:?}"));
        }
    }
}

/// The content that a record has.
pub(super) fn content_of(kv: &Kv) -> Content {
    let record: Value = serde_json::from_slice(&kv.value).ok()?;
    work::content_of(record.get("Spec")?)
}

/// The record says that its work has finished.
pub(super) fn is_finished(kv: &Kv) -> bool {
    serde_json::from_slice::<Record>(&kv.value).is_ok_and(|record| record.finish().is_some())
}

//! Looks at every change in etcd as it is applied, and holds it against the invariants of DESIGN.md, section 4.
//!
//! It knows what no part of the system knows: which work really lives ([`Ledger`]) and what callers were told ([`History`]).

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{Epoch, Record, ResourceName, Revision, WorkerId};
use evenkeel_store::{
    KeyChange, Kv,
    keys::{Key, Keys},
};
use serde_json::Value;

use super::{
    history::History,
    ledger::{Ledger, is_exclusive},
    sharer::is_shared,
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
}

/// How the value of an assignment that is to stop says so.
const STOP: &[u8] = b"\"Phase\":\"stop\"";

/// How it says that this is for failures.
const FAILING: &[u8] = b"\"Reason\":\"failing\"";

impl Judge {
    pub(super) fn new(ledger: Ledger, history: History) -> Self {
        Self { keys: Keys::new(""), ledger, history, assignments: BTreeMap::new(), stopping: BTreeSet::new() }
    }

    /// One transaction was applied.
    pub(super) fn see(&mut self, revision: Revision, changes: &[KeyChange]) {
        self.ledger.count(|counts| counts.revisions += 1);
        for change in changes {
            match (self.keys.parse(change.key()), change) {
                (Some(Key::Resource(name)), _) => self.resource(&name, change),
                (Some(Key::Assignment(worker, name)), KeyChange::Delete { .. }) => self.ended(&worker, &name),
                (Some(Key::Assignment(worker, name)), KeyChange::Put(kv)) => {
                    let verb = if kv.created == kv.modified { "is assigned to" } else { "is to stop on" };
                    self.ledger.note(format_args!("etcd {revision}: {name} {verb} {worker}"));
                    let epoch = Epoch(kv.created.0);
                    let stops = kv.value.windows(STOP.len()).any(|part| part == STOP);
                    if stops {
                        let is_failing = kv.value.windows(FAILING.len()).any(|part| part == FAILING);
                        self.ledger.count(|counts| counts.failing += u64::from(is_failing));
                        self.stopping.insert((name.clone(), epoch));
                    } else if self.stopping.contains(&(name.clone(), epoch)) {
                        self.ledger.violate(format_args!("the stop of {name} on {worker} (epoch {epoch}) is taken back"));
                    }
                    self.assignments.entry(name).or_default().insert(worker, epoch);
                }
                (Some(key @ (Key::Worker(_) | Key::Admission(_) | Key::Election(_))), _) => self
                    .ledger
                    .note(format_args!("etcd {revision}: {key:?} {}", if matches!(change, KeyChange::Put(_)) { "put" } else { "deleted" })),
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
        if self.ledger.lives(name, epoch) && is_exclusive(name) {
            self.ledger.violate(format_args!("the assignment of {name} to {worker} (epoch {epoch}) is deleted while it runs"));
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
    record.get("Spec")?.get("content")?.as_u64()
}

/// The record says that its work has finished.
pub(super) fn is_finished(kv: &Kv) -> bool {
    serde_json::from_slice::<Record>(&kv.value).is_ok_and(|record| record.finish().is_some())
}

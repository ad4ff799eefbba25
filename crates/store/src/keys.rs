//! The key schema: how the keys of each kind are spelled. The only place that knows that. No IO.
//!
//! A new kind of key has a line in the table of rooms here; `crates/model/src/kinds.rs` says what else it needs.

use std::fmt::Write;

pub use evenkeel_model::Key;
use evenkeel_model::{Kind, ResourceName, WorkerId};

use crate::KeyRange;

/// The keys under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// The table of rooms: what the keys of each kind begin with, after the prefix and a slash. The ids of the key follow, each after a slash.
const fn room(kind: Kind) -> &'static str {
    match kind {
        Kind::Assignment => "assignments",
        Kind::Status => "status",
        Kind::Resource => "resources",
        Kind::Worker => "workers",
        Kind::Admission => "admissions",
        Kind::Event => "events",
        Kind::Election => "election",
        Kind::Intent => "intents/workers",
        Kind::WrittenOff => "intents/brake",
        Kind::Task => "tasks",
        Kind::TaskIntent => "intents/tasks",
        Kind::NextTask => "intents/next-task",
        Kind::Order => "orders",
        Kind::TaskResult => "results",
        // Behind what masters watch.
        Kind::TaskScript => "x/scripts",
        Kind::TaskTail => "x/tails",
    }
}

impl Keys {
    /// The keys under a prefix, which is empty or begins with a slash and does not end with one.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// Everything that a master watches: one range, so that a transaction arrives whole and in order.
    #[must_use]
    pub fn everything(&self) -> KeyRange {
        KeyRange::between(format!("{}/admissions/", self.prefix), format!("{}/workers0", self.prefix))
    }

    /// How a key is spelled.
    #[must_use]
    pub fn spell(&self, key: &Key) -> String {
        let mut text = self.room(key.kind());
        key.each_id(|id| {
            // Writing to a String does not fail.
            let _ = write!(text, "/{id}");
        });
        text
    }

    /// What a key stands for; none: it belongs to somebody else.
    #[must_use]
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let path = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        Kind::ALL.iter().find_map(|kind| parse(*kind, path.strip_prefix(room(*kind))?))
    }

    fn room(&self, kind: Kind) -> String {
        format!("{}/{}", self.prefix, room(kind))
    }

    /// `/resources/<name>`
    #[must_use]
    pub fn resource(&self, name: &ResourceName) -> String {
        self.spell(&Key::Resource(name.clone()))
    }

    /// `/workers/<id>`
    #[must_use]
    pub fn worker(&self, id: &WorkerId) -> String {
        self.spell(&Key::Worker(id.clone()))
    }

    /// `/admissions/<worker>`
    #[must_use]
    pub fn admission(&self, id: &WorkerId) -> String {
        self.spell(&Key::Admission(id.clone()))
    }

    /// `/assignments/<worker>/<name>`
    #[must_use]
    pub fn assignment(&self, id: &WorkerId, name: &ResourceName) -> String {
        self.spell(&Key::Assignment(id.clone(), name.clone()))
    }

    /// The prefix of one worker's assignments.
    #[must_use]
    pub fn assignments_of(&self, id: &WorkerId) -> String {
        format!("{}/{id}/", self.room(Kind::Assignment))
    }

    /// `/status/<worker>/<name>`
    #[must_use]
    pub fn status(&self, id: &WorkerId, name: &ResourceName) -> String {
        self.spell(&Key::Status(id.clone(), name.clone()))
    }

    /// The prefix of one worker's statuses.
    #[must_use]
    pub fn statuses_of(&self, id: &WorkerId) -> String {
        format!("{}/{id}/", self.room(Kind::Status))
    }

    /// The prefix of one worker's orders.
    #[must_use]
    pub fn orders_of(&self, id: &WorkerId) -> String {
        format!("{}/{id}/", self.room(Kind::Order))
    }

    /// The prefix of one worker's results.
    #[must_use]
    pub fn results_of(&self, id: &WorkerId) -> String {
        format!("{}/{id}/", self.room(Kind::TaskResult))
    }

    /// The prefix of the masters' candidacies; the lease's id in hexadecimal follows.
    #[must_use]
    pub fn election(&self) -> String {
        format!("{}/", self.room(Kind::Election))
    }

    /// The prefix of the history's keys.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}/", self.room(Kind::Event))
    }

    /// The prefix of what a leader's commit pipeline needs for itself; it lies outside of what masters watch.
    #[must_use]
    pub fn writers(&self) -> String {
        format!("{}/writers/", self.prefix)
    }
}

/// The key of a kind, from what follows on its room: the ids, of which the last one takes all that is left.
fn parse(kind: Kind, rest: &str) -> Option<Key> {
    match kind.ids().len() {
        0 if rest.is_empty() => kind.key(std::iter::empty()),
        0 => None,
        ids => kind.key(rest.strip_prefix('/')?.splitn(ids, '/')),
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::TaskId;

    use super::*;

    #[test]
    fn what_is_spelled_is_read_and_lies_within_the_range() {
        let worker = WorkerId::new("worker-1").expect("id");
        let name = ResourceName::new("task-test-1").expect("name");
        for prefix in ["", "/evenkeel", "/a/b"] {
            let keys = Keys::new(prefix);
            let ids = |id: &&str| match *id {
                "worker" => "worker-1",
                "name" => "task-test-1",
                "task" => "7",
                _ => "7c0de",
            };
            for kind in Kind::ALL {
                let key = kind.key(kind.ids().iter().map(ids)).expect("a key");
                let text = keys.spell(&key);
                assert_eq!(keys.parse(text.as_bytes()), Some(key.clone()), "{text}");
                assert_eq!(key.kind(), *kind, "{text}");
                assert_eq!(keys.everything().contains(text.as_bytes()), kind.is_watched(), "{text}");
            }
            let spelled = [
                (keys.resource(&name), "/resources/task-test-1"),
                (keys.worker(&worker), "/workers/worker-1"),
                (keys.admission(&worker), "/admissions/worker-1"),
                (keys.assignment(&worker, &name), "/assignments/worker-1/task-test-1"),
                (keys.status(&worker, &name), "/status/worker-1/task-test-1"),
                (keys.spell(&Key::Intent(worker.clone())), "/intents/workers/worker-1"),
                (keys.spell(&Key::WrittenOff()), "/intents/brake"),
                (keys.spell(&Key::Event("a/b".parse().expect("not empty"))), "/events/a/b"),
                (keys.spell(&Key::Election("7c0de".to_owned())), "/election/7c0de"),
                (keys.assignments_of(&worker), "/assignments/worker-1/"),
                (keys.statuses_of(&worker), "/status/worker-1/"),
                (keys.election(), "/election/"),
                (keys.events(), "/events/"),
                (keys.spell(&Key::Task(TaskId(7))), "/tasks/7"),
                (keys.spell(&Key::TaskIntent(TaskId(7))), "/intents/tasks/7"),
                (keys.spell(&Key::NextTask()), "/intents/next-task"),
                (keys.spell(&Key::Order(worker.clone(), TaskId(7))), "/orders/worker-1/7"),
                (keys.spell(&Key::TaskResult(worker.clone(), TaskId(7))), "/results/worker-1/7"),
                (keys.spell(&Key::TaskScript(TaskId(7))), "/x/scripts/7"),
                (keys.spell(&Key::TaskTail(worker.clone(), TaskId(7))), "/x/tails/worker-1/7"),
                (keys.orders_of(&worker), "/orders/worker-1/"),
                (keys.results_of(&worker), "/results/worker-1/"),
            ];
            for (text, path) in spelled {
                assert_eq!(text, format!("{prefix}{path}"));
            }
        }
        assert!(!Keys::new("").everything().contains(Keys::new("").writers().as_bytes()));
    }

    #[test]
    fn what_is_not_ours_is_foreign() {
        let keys = Keys::new("/p");
        for text in [
            "/resources/a",
            "/p/resources/",
            "/p/resources/a/b",
            "/p/registry/x",
            "/p/status/a",
            "/p/intents/a",
            "/p/intents/workers/",
            "/p/intents/brake/",
            "/p/intents/brakes",
            "/p/resourcesa",
            "/p/tasks/0",
            "/p/tasks/07",
            "/p/orders/w",
            "/p/x/scripts/",
            "/p/events",
            "/p/events/",
            "/p",
            "",
        ] {
            assert_eq!(keys.parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(keys.parse(b"/p/resources/\xff"), None);
    }
}

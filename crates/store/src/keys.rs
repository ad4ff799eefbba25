//! The key schema: which key stands for what. The only place that knows how a key is spelled. No IO.

use evenkeel_model::{ResourceName, WorkerId};

use crate::KeyRange;

/// The keys under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `/resources/<name>`
    Resource(ResourceName),
    /// `/workers/<id>`
    Worker(WorkerId),
    /// `/admissions/<worker>`
    Admission(WorkerId),
    /// `/assignments/<worker>/<name>`
    Assignment(WorkerId, ResourceName),
    /// `/status/<worker>/<name>`
    Status(WorkerId, ResourceName),
    /// `/intents/workers/<id>`
    Intent(WorkerId),
    /// `/intents/brake`
    WrittenOff,
    /// `/election/<lease>`
    Election(String),
    /// `/events/<number>`
    Event(Box<str>),
    /// Anything else in the range, which belongs to somebody else.
    Foreign,
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

    /// `/resources/<name>`
    #[must_use]
    pub fn resource(&self, name: &ResourceName) -> String {
        format!("{}/resources/{name}", self.prefix)
    }

    /// `/workers/<id>`
    #[must_use]
    pub fn worker(&self, id: &WorkerId) -> String {
        format!("{}/workers/{id}", self.prefix)
    }

    /// `/admissions/<worker>`
    #[must_use]
    pub fn admission(&self, id: &WorkerId) -> String {
        format!("{}/admissions/{id}", self.prefix)
    }

    /// `/assignments/<worker>/<name>`
    #[must_use]
    pub fn assignment(&self, id: &WorkerId, name: &ResourceName) -> String {
        format!("{}/assignments/{id}/{name}", self.prefix)
    }

    /// The prefix of one worker's assignments.
    #[must_use]
    pub fn assignments_of(&self, id: &WorkerId) -> String {
        format!("{}/assignments/{id}/", self.prefix)
    }

    /// `/status/<worker>/<name>`
    #[must_use]
    pub fn status(&self, id: &WorkerId, name: &ResourceName) -> String {
        format!("{}/status/{id}/{name}", self.prefix)
    }

    /// The prefix of one worker's statuses.
    #[must_use]
    pub fn statuses_of(&self, id: &WorkerId) -> String {
        format!("{}/status/{id}/", self.prefix)
    }

    /// `/intents/workers/<id>`
    #[must_use]
    pub fn intent(&self, id: &WorkerId) -> String {
        format!("{}/intents/workers/{id}", self.prefix)
    }

    /// `/intents/brake`
    #[must_use]
    pub fn written_off(&self) -> String {
        format!("{}/intents/brake", self.prefix)
    }

    /// The prefix of the masters' candidacies; the lease's id in hexadecimal follows.
    #[must_use]
    pub fn election(&self) -> String {
        format!("{}/election/", self.prefix)
    }

    /// The prefix of what a leader's commit pipeline needs for itself; it lies outside of what masters watch.
    #[must_use]
    pub fn writers(&self) -> String {
        format!("{}/writers/", self.prefix)
    }

    /// `/events/`, under which the history is.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}/events/", self.prefix)
    }

    /// What a key stands for.
    #[must_use]
    pub fn parse(&self, key: &[u8]) -> Key {
        self.parse_ours(key).unwrap_or(Key::Foreign)
    }

    fn parse_ours(&self, key: &[u8]) -> Option<Key> {
        let path = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let (room, rest) = path.split_once('/')?;
        let pair = || {
            let (worker, name) = rest.split_once('/')?;
            Some((WorkerId::new(worker).ok()?, ResourceName::new(name).ok()?))
        };
        Some(match room {
            "resources" => Key::Resource(ResourceName::new(rest).ok()?),
            "workers" => Key::Worker(WorkerId::new(rest).ok()?),
            "admissions" => Key::Admission(WorkerId::new(rest).ok()?),
            "assignments" => pair().map(|(worker, name)| Key::Assignment(worker, name))?,
            "status" => pair().map(|(worker, name)| Key::Status(worker, name))?,
            "intents" if rest == "brake" => Key::WrittenOff,
            "intents" => Key::Intent(WorkerId::new(rest.strip_prefix("workers/")?).ok()?),
            "election" => Key::Election(rest.to_owned()),
            "events" => Key::Event(rest.into()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spelled_is_read_and_lies_within_the_range() {
        let worker = WorkerId::new("worker-1").expect("id");
        let name = ResourceName::new("task-test-1").expect("name");
        for prefix in ["", "/evenkeel", "/a/b"] {
            let keys = Keys::new(prefix);
            let cases = [
                (keys.resource(&name), Key::Resource(name.clone())),
                (keys.worker(&worker), Key::Worker(worker.clone())),
                (keys.admission(&worker), Key::Admission(worker.clone())),
                (keys.assignment(&worker, &name), Key::Assignment(worker.clone(), name.clone())),
                (keys.status(&worker, &name), Key::Status(worker.clone(), name.clone())),
                (keys.intent(&worker), Key::Intent(worker.clone())),
                (keys.written_off(), Key::WrittenOff),
                (format!("{}7", keys.events()), Key::Event("7".into())),
                (format!("{}7c0de", keys.election()), Key::Election("7c0de".to_owned())),
            ];
            for (text, key) in cases {
                assert_eq!(keys.parse(text.as_bytes()), key, "{text}");
                assert!(keys.everything().contains(text.as_bytes()), "{text}");
            }
        }
        assert_eq!(Keys::new("").resource(&name), "/resources/task-test-1");
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
            "/p/events/x",
            "/p",
            "",
        ] {
            assert_eq!(keys.parse(text.as_bytes()), Key::Foreign, "{text}");
        }
        assert_eq!(keys.parse(b"/p/resources/\xff"), Key::Foreign);
    }
}

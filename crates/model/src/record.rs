//! The value of `/resources/<name>`: a definition with what the cluster adds to it. Its first four fields are the public ones.

use serde::{Deserialize, Serialize};

use serde_json::Value;

use crate::{
    Cluster, Definition, Draft, FailedOn, Finish, Hash, Labels, Ownership, Read, ResourceName, Seen, Spec, Stored, Versioned, WorkerId,
    kinds::json, limits::MAX_RECORD, work,
};

/// By how much a record may grow when a leader writes it: the view of where it runs and its hash (a kilobyte), how it finished (a message, six
/// times as long where each byte is escaped: four), or the names of the workers on which it has failed (sixteen: five).
const RECORD_ROOM: usize = 10 << 10;
/// A record grows by less than this factor when it is written as this process writes it: `9e15` has sixteen digits then.
const GROWTH: usize = 16;

/// A resource as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Record {
    /// A snowflake, given once when the resource is added.
    pub id: u64,
    /// When it was added: nanoseconds since the Unix epoch.
    pub creation_time: i64,
    /// `worker|address` for people, "" while pending. Not the truth of ownership: the assignment is.
    pub assigned_node: Box<str>,
    /// The inventory that keeps it; empty: the API.
    pub source: Box<str>,
    /// How its work came to its end, if it has; of other work than what is wanted now it says nothing: see [`Record::finish`].
    pub finished: Option<Box<Finish>>,
    /// Where its work has failed, if it has: see [`Record::failed_on`].
    pub failed: Option<Box<FailedOn>>,
    /// What its owner wrote.
    pub definition: Definition,
}

impl Record {
    /// How what is wanted now came to its end; none: it has not.
    #[must_use]
    pub fn finish(&self) -> Option<&Finish> {
        self.finished.as_deref().filter(|finish| finish.hash == self.definition.hash())
    }

    /// The workers on which what is wanted now has failed again and again, the latest last.
    #[must_use]
    pub fn failed_on(&self) -> &[WorkerId] {
        let failed = self.failed.as_deref().filter(|failed| failed.hash == self.definition.hash());
        failed.map_or(&[], |failed| &failed.workers)
    }

    /// The same resource with another definition. What is known of other work is forgotten.
    #[must_use]
    pub fn with_definition(&self, definition: Definition) -> Self {
        let is_same = self.definition.kind == definition.kind && work::is_same(&definition.kind, &self.definition.spec, &definition.spec);
        // The same work may be spelled in another way, and has another hash then.
        let hash = definition.hash();
        let finished = self.finish().filter(|_| is_same).map(|finish| Box::new(Finish { hash, ..finish.clone() }));
        let failed = self.failed.as_deref().filter(|_| is_same && !self.failed_on().is_empty());
        let failed = failed.map(|failed| Box::new(FailedOn { hash, ..failed.clone() }));
        Self { definition, finished, failed, ..self.clone() }
    }

    /// The worker that the view for people names: where the resource is, or last was.
    #[must_use]
    pub fn assigned_worker(&self) -> Option<&str> {
        self.assigned_node.split_once('|').map(|(worker, _)| worker)
    }

    /// Whether this is the view for people of a worker at an address.
    #[must_use]
    pub fn is_node(text: &str, worker: &WorkerId, address: &str) -> bool {
        text.strip_prefix(worker.as_str()).and_then(|rest| rest.strip_prefix('|')) == Some(address)
    }

    /// The view for people of a worker at an address.
    #[must_use]
    pub fn node(worker: &WorkerId, address: &str) -> Box<str> {
        format!("{worker}|{address}").into()
    }
}

impl Stored for Record {
    type Ids = ResourceName;

    /// A resource whose record cannot be used is left alone: neither run nor stopped. One that can be used is this resource's, and can be
    /// written together with its assignment.
    fn read(name: &ResourceName, text: &[u8]) -> Read<Self> {
        let too_long = |length: usize| {
            Read::unusable(format!("its record has {length} bytes, more than {MAX_RECORD}; delete it, or write a shorter one"), None)
        };
        let length = text.len();
        if length > MAX_RECORD {
            return too_long(length);
        }
        let read = Read::<Self>::or(text, || None);
        let Some(record) = &read.value else { return read };
        if record.definition.name != *name {
            return Read::unusable(format!("it is the record of {}", record.definition.name), None);
        }
        // Most are so short that there is no need to write them first.
        if length > MAX_RECORD / GROWTH {
            // What leaders have added has its room.
            let bare = Self { assigned_node: "".into(), finished: None, failed: None, ..record.clone() };
            let written = json(&bare).len() + RECORD_ROOM;
            if written > MAX_RECORD {
                return too_long(written);
            }
        }
        read
    }

    fn apply(cluster: &mut Cluster, name: ResourceName, record: Option<Self>, seen: Seen) {
        let record = record.map(|value| Box::new(Versioned { revision: seen.modified, value }));
        cluster.apply_record(&name, record, seen.error);
    }
}

/// The JSON, field for field and in order.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wire {
    #[serde(rename = "ID", default)]
    id: String,
    name: String,
    #[serde(default)]
    assigned_node: Box<str>,
    #[serde(default)]
    creation_time: i64,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    kind: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u64>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    require: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pin: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    prefer: Vec<Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    spread: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    together: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    apart: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    policy: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    rebalance: String,
    #[serde(default, skip_serializing_if = "is_exclusive")]
    ownership: Ownership,
    #[serde(default, skip_serializing_if = "Spec::is_empty")]
    spec: Spec,
    /// Written for people; computed anew when it is read.
    #[serde(default, skip_serializing_if = "Hash::is_empty", skip_deserializing)]
    hash: Hash,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    source: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished: Option<Box<Finish>>,
    #[serde(rename = "FailedOn", default, skip_serializing_if = "Option::is_none")]
    failed: Option<Box<FailedOn>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_exclusive(ownership: &Ownership) -> bool {
    *ownership == Ownership::Exclusive
}

impl From<Record> for Wire {
    fn from(record: Record) -> Self {
        let hash = record.definition.hash();
        let ownership = record.definition.ownership;
        // One place knows which fields have their default; here they only get other names.
        let draft = record.definition.to_draft();
        let Definition { kind, spec, .. } = record.definition;
        Self {
            id: record.id.to_string(),
            name: draft.name,
            assigned_node: record.assigned_node,
            creation_time: record.creation_time,
            kind,
            weight: draft.weight,
            labels: draft.labels,
            require: draft.require,
            pin: draft.pin,
            prefer: draft.prefer,
            spread: draft.spread,
            together: draft.together,
            apart: draft.apart,
            policy: draft.policy,
            rebalance: draft.rebalance,
            ownership,
            spec,
            hash,
            source: record.source,
            finished: record.finished,
            failed: record.failed,
        }
    }
}

impl TryFrom<Wire> for Record {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        let draft = Draft {
            name: wire.name,
            weight: wire.weight,
            labels: wire.labels,
            require: wire.require,
            pin: wire.pin,
            prefer: wire.prefer,
            spread: wire.spread,
            together: wire.together,
            apart: wire.apart,
            policy: wire.policy,
            rebalance: wire.rebalance,
            ..Draft::default()
        };
        let rest = draft.stored().map_err(|e| e.to_string())?;
        let definition = Definition { kind: wire.kind, ownership: wire.ownership, spec: wire.spec, ..rest };
        Ok(Self {
            // An id that a person wrote by hand may be anything; it identifies nothing, so it is no reason to refuse the record.
            id: wire.id.parse().unwrap_or(0),
            creation_time: wire.creation_time,
            assigned_node: wire.assigned_node,
            source: wire.source,
            finished: wire.finished,
            failed: wire.failed,
            definition,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_ADDRESS;

    #[test]
    fn a_record_that_could_not_be_written_with_its_assignment_is_left_alone() {
        let name = ResourceName::new("a").expect("name");
        let read = |text: &str| {
            let read = Record::read(&name, text.as_bytes());
            assert_eq!(read.value.is_none(), read.error.is_some());
            read.value
        };
        let record_of = |spec: String| read(&format!(r#"{{"Name":"a","Spec":{spec}}}"#));
        let text = |letters: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(letters));
        let written = |record: &Record| json(record).len();
        let room = MAX_RECORD - RECORD_ROOM - written(&record_of(text(40_000)).expect("short")) + 40_000;
        let mut longest = record_of(text(room)).expect("as long as may be");
        assert_eq!(written(&longest), MAX_RECORD - RECORD_ROOM);
        assert_eq!(record_of(text(room + 1)), None);
        // Where it runs is added to it: with the longest names of all, it is still what is read.
        let worker = WorkerId::new(&"w".repeat(253)).expect("id");
        longest.assigned_node = Record::node(&worker, &"a".repeat(MAX_ADDRESS));
        let echo = String::from_utf8(json(&longest)).expect("text");
        assert_eq!(read(&echo).as_ref(), Some(&longest));
        // And so is how it ended, or where it failed.
        let phase = crate::Observed::Exited;
        let message = "\u{1}".repeat(1024);
        let status =
            crate::Status { restarts: u32::MAX, finished: true, message, ..crate::Status::new(phase, crate::Epoch(i64::MAX), i64::MAX) };
        let finish = Finish::of(longest.definition.hash(), &worker, &status);
        let finished = Record { finished: Some(Box::new(finish)), ..longest.clone() };
        assert_eq!(read(&String::from_utf8(json(&finished)).expect("text")), Some(finished));
        let names = (0..crate::MAX_FAILED_ON).map(|n| WorkerId::new(&format!("{}{n:02}", "w".repeat(251))).expect("id"));
        let failed = names.fold(None, |before: Option<FailedOn>, id| Some(FailedOn::with(before.as_ref(), longest.definition.hash(), &id)));
        let failed = Record { failed: failed.map(Box::new), ..longest };
        assert_eq!(read(&String::from_utf8(json(&failed)).expect("text")), Some(failed));
        // What is short as a person writes it is judged as it is written back.
        let numbers = |count: usize| format!(r#"{{"a":[{}]}}"#, vec!["9e15"; count].join(","));
        assert!(record_of(numbers(20_000)).is_some_and(|record| written(&record) > 17 * 20_000));
        assert_eq!(record_of(numbers(90_000)), None, "470 kB that become 1.5 MB");
    }

    #[test]
    fn the_four_public_fields_stand_first_and_defaults_are_left_out() {
        let record = Record {
            id: 1_604_066_677_018_857_472,
            creation_time: 1_671_274_272_579_882_000,
            assigned_node: "worker-1|192.168.0.107:9090".into(),
            source: "".into(),
            finished: None,
            failed: None,
            definition: Definition::named(ResourceName::new("task-test-1").expect("name")),
        };
        let text = serde_json::to_string(&record).expect("json");
        assert_eq!(
            text,
            r#"{"ID":"1604066677018857472","Name":"task-test-1","AssignedNode":"worker-1|192.168.0.107:9090","CreationTime":1671274272579882000}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&text).expect("record"), record);
        assert_eq!(record.assigned_worker(), Some("worker-1"));
    }

    #[test]
    fn every_field_survives() {
        let text = r#"{"ID":"7","Name":"a","AssignedNode":"","CreationTime":1,"Kind":"process","Weight":2,"Labels":{"team":"books"},"Require":"gpu=true","Pin":"worker-1","Prefer":[{"selector":"disk=ssd","weight":10}],"Spread":"zone","Together":"app=db","Apart":"app=web","Policy":"pack","Rebalance":"never","Ownership":"available","Spec":{"command":["x"]},"Hash":"HASH","Source":"file","Finished":{"Hash":"HASH","Phase":"exited","Message":"exit status 0","Since":5,"Worker":"worker-1","Epoch":7,"Restarts":2},"FailedOn":{"Hash":"HASH","Workers":["worker-2"]}}"#;
        let hash = Hash::of("process", &Spec::from_value(serde_json::json!({"command": ["x"]})).expect("spec")).to_string();
        let text = text.replace("HASH", &hash);
        let record: Record = serde_json::from_str(&text).expect("record");
        assert_eq!(serde_json::to_string(&record).expect("json"), text);
        assert_eq!(record.assigned_worker(), None);
        assert_eq!((record.finish().map(|finish| finish.epoch), record.failed_on().len()), (Some(crate::Epoch(7)), 1));
        // Rules may change; another spec is other work.
        let same = record.with_definition(Definition { weight: 3, ..record.definition.clone() });
        assert_eq!((&same.finished, &same.failed), (&record.finished, &record.failed));
        let other = record.with_definition(Definition { kind: "noop".into(), ..record.definition.clone() });
        assert_eq!((other.finished, other.failed), (None, None));
        // What somebody else's hand has left beside another spec says nothing of that.
        let edited = Record { definition: Definition { kind: "noop".into(), ..record.definition.clone() }, ..record };
        assert_eq!((edited.finish(), edited.failed_on()), (None, &[] as &[WorkerId]));
    }

    #[test]
    fn what_was_stored_is_read_as_itself_whatever_the_limits() {
        let terms = (0..10_000).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        let labels: Labels = (0..100).map(|i| (format!("l {i}"), "v".repeat(300))).collect();
        let prefer: Vec<Value> = (0..100).map(|i| serde_json::json!({"selector": "a,!a", "weight": i})).collect();
        let deep = (0..100).fold(serde_json::json!(u64::MAX), |inner, _| serde_json::json!([inner]));
        let record = serde_json::json!({"ID": "7", "Name": "a", "AssignedNode": "", "CreationTime": 1, "Kind": "not a name",
            "Weight": u32::MAX, "Labels": labels, "Require": terms, "Prefer": prefer, "Spread": "not a key", "Together": "a=b", "Apart": "a=b",
            "Spec": {"command": deep, "text": "x".repeat(100_000)}});
        let read: Record = serde_json::from_value(record.clone()).expect("read");
        let mut written = serde_json::to_value(&read).expect("json");
        written.as_object_mut().expect("object").remove("Hash");
        assert_eq!(written, record);
        assert_eq!(read.definition.rules().prefer.len(), 100);
        assert!(read.definition.to_draft().check().is_err(), "it would not be taken in today");
    }

    #[test]
    fn what_does_not_parse_is_not_a_record() {
        for (field, value) in [
            ("Require", r#""a in b""#),
            ("Pin", r#""a b""#),
            ("Weight", "0"),
            ("Weight", "4294967296"),
            ("Policy", r#""fair""#),
            ("Spec", "[]"),
            ("Prefer", "[7]"),
        ] {
            let text = format!(r#"{{"ID":"7","Name":"a","{field}":{value}}}"#);
            assert!(serde_json::from_str::<Record>(&text).is_err(), "{text}");
        }
    }
}

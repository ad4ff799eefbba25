//! Between what stands in etcd and what the model speaks of: keys and JSON to changes, decisions to transactions. No IO. What is peculiar to
//! one kind of key stands with the kind, in the model; only what is peculiar to etcd stands here.

pub use evenkeel_model::json;
use evenkeel_model::{Change, Decision, Entry, Guard, HistoryEntry, Key, MasterRecord, Revision, Versioned, Write};

use crate::{Compare, KeyChange, Kv, Op, keys::Keys};

/// What one key of the watched range means.
#[allow(clippy::large_enum_variant, reason = "nearly all are changes, and none is kept: a box would be one allocation more a key")]
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// Something of the cluster.
    Cluster(Change),
    /// A master campaigns, or has ceased to; the key's create revision orders them.
    Candidate {
        /// The lease's id, as the key spells it.
        lease: String,
        /// Who it is.
        value: Option<Box<Versioned<MasterRecord>>>,
    },
    /// A part of the history, or its end.
    History {
        /// The key, after the prefix of the history's keys.
        suffix: String,
        /// The revision that created the key: it orders the parts of the history. Zero: the key was deleted.
        revision: Revision,
        /// What happened, oldest first; empty when the key was deleted or cannot be read.
        entries: Vec<HistoryEntry>,
    },
    /// It belongs to somebody else.
    Foreign,
}

impl Meaning {
    fn of(change: Change) -> Self {
        let revision = change.created;
        match change.entry {
            Entry::Election(lease, value) => Self::Candidate { lease, value: value.map(|value| Box::new(Versioned { revision, value })) },
            Entry::Event(suffix, entries) => {
                let entries = entries.unwrap_or_default().into_iter().map(|entry| entry.written_at(revision)).collect();
                Self::History { suffix: suffix.to_string(), revision, entries }
            }
            entry => Self::Cluster(Change { entry, ..change }),
        }
    }
}

/// What a key that exists means. What cannot be read is reported, and read in the way that is safe.
#[must_use]
pub fn meaning(keys: &Keys, kv: &Kv) -> Meaning {
    let Some(key) = keys.parse(&kv.key) else { return Meaning::Foreign };
    let (entry, error) = key.read(&kv.value);
    if let Some(error) = &error {
        tracing::warn!(key = %String::from_utf8_lossy(&kv.key), revision = kv.modified.0, %error, "a value in etcd cannot be used");
    }
    Meaning::of(Change { entry, created: kv.created, modified: kv.modified, error })
}

/// What the absence of a key means.
#[must_use]
pub fn meaning_of_absence(keys: &Keys, key: &[u8]) -> Meaning {
    keys.parse(key).map_or(Meaning::Foreign, |key| Meaning::of(Change::gone(key)))
}

/// What a change means.
#[must_use]
pub fn meaning_of_change(keys: &Keys, change: &KeyChange) -> Meaning {
    match change {
        KeyChange::Put(kv) => meaning(keys, kv),
        KeyChange::Delete { key, .. } => meaning_of_absence(keys, key),
    }
}

/// The conditions and operations of a decision. The first operation of each write is the one on its own key.
#[must_use]
pub fn encode(keys: &Keys, decision: &Decision) -> (Vec<Compare>, Vec<Op>) {
    let compares = decision.guards.iter().map(|guard| compare(keys, guard)).collect();
    let mut ops = Vec::with_capacity(decision.writes.len() + 1);
    for write in &decision.writes {
        encode_write(keys, write, &mut ops);
    }
    (compares, ops)
}

fn compare(keys: &Keys, guard: &Guard) -> Compare {
    match guard {
        Guard::Created(key, revision) => Compare::CreateRevision { key: keys.spell(key).into(), equals: *revision },
        Guard::Modified(key, revision) => Compare::ModRevision { key: keys.spell(key).into(), equals: *revision },
    }
}

fn encode_write(keys: &Keys, write: &Write, ops: &mut Vec<Op>) {
    let key = write.entry.key();
    let spelled = keys.spell(&key);
    let Some(json) = write.entry.json() else {
        ops.push(Op::delete(spelled));
        return ops.extend(deleted_with(key).map(|key| Op::delete(keys.spell(&key))));
    };
    ops.push(Op::put(spelled, json));
}

/// The key that has no meaning without this one.
fn deleted_with(key: Key) -> Option<Key> {
    match key {
        Key::Assignment(worker, name) => Some(Key::Status(worker, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{
        Admission, Assignment, EntryKind, Epoch, Hash, Intent, IntentKind, Kind, MasterId, Order, Origin, Phase, Registration,
        ResourceName, Selector, Session, Spec, TaskId, TaskIntent, TaskResult, WorkerId, task::TaskGoal,
    };

    use super::*;

    const CREATED: Revision = Revision(5);
    const MODIFIED: Revision = Revision(7);

    fn kv(key: &str, value: &str) -> Kv {
        Kv { key: key.into(), value: value.into(), created: CREATED, modified: MODIFIED, lease: 0 }
    }

    fn id() -> WorkerId {
        WorkerId::new("w").expect("id")
    }

    fn name() -> ResourceName {
        ResourceName::new("a").expect("name")
    }

    /// The example of a kind.
    struct Example {
        /// Its key in etcd.
        key: &'static str,
        /// A value in etcd with all that one can say, in the form in which it is written.
        json: &'static str,
        /// What counts where the value cannot be read.
        unreadable: Entry,
    }

    fn example(kind: Kind) -> Example {
        let of = |key, json, unreadable| Example { key, json, unreadable };
        match kind {
            Kind::Assignment => {
                let (kind, spec, require) = (String::new(), Spec::default(), Selector::EMPTY);
                let may_run =
                    Assignment { kind, spec, require, hash: Hash::unknown(), holds: evenkeel_model::Holds::Strict, phase: Phase::Run };
                let json = r#"{"Kind":"process","Spec":{"command":["x"]},"Require":"gpu=true","Hash":"20d64501cacfb010","Phase":"stop","Reason":"drain","To":"v"}"#;
                of("/assignments/w/a", json, Entry::Assignment(id(), name(), Some(may_run)))
            }
            Kind::Status => of(
                "/status/w/a",
                r#"{"Phase":"backoff","Epoch":9,"Since":1,"Restarts":2,"Message":"exit status 1"}"#,
                Entry::Status(id(), name(), None),
            ),
            Kind::Resource => of(
                "/resources/a",
                r#"{"ID":"7","Name":"a","AssignedNode":"w|h:1","CreationTime":1,"Kind":"process","Require":"gpu=true","Source":"file"}"#,
                Entry::Resource(name(), None),
            ),
            Kind::Worker => of(
                "/workers/w",
                r#"{"ID":"w","Address":"h:1","HTTP":"h:2","Labels":{"gpu":"true"},"Capacity":7,"Kinds":["noop"],"Version":"1","AuthorityMs":9000,"BootID":"b","Guard":"g","Attests":3,"Released":true}"#,
                Entry::Worker(id(), Some(Registration::unusable(id(), "it cannot be read"))),
            ),
            Kind::Admission => {
                let nobody = Admission { session: Session(0), authority_ms: None, origin: Origin::default() };
                let json = r#"{"Session":7,"AuthorityMs":9000,"BootID":"b","Guard":"g"}"#;
                of("/admissions/w", json, Entry::Admission(id(), Some(nobody)))
            }
            Kind::Event => of(
                "/events/0000000000000005",
                r#"[{"Time":1,"Type":"moved","Resource":"a","Worker":"w","From":"v","Reason":"drained","Master":"m","Epoch":4}]"#,
                Entry::Event("0000000000000005".parse().expect("a suffix"), Some(Vec::new())),
            ),
            Kind::Election => {
                let id = MasterId::new("unknown").expect("id");
                let unknown = MasterRecord { id, address: String::new(), http: String::new(), version: String::new(), leads_since: 0 };
                let json = r#"{"ID":"m","Address":"h:1","HTTP":"h:2","Version":"1","LeadsSince":1}"#;
                of("/election/7c0de", json, Entry::Election("7c0de".to_owned(), Some(unknown)))
            }
            Kind::Intent => of(
                "/intents/workers/w",
                r#"{"Wish":"drain","DeadlineMs":60000,"Since":7}"#,
                Entry::Intent(id(), Some(Intent { kind: IntentKind::Cordon, since: 0 })),
            ),
            Kind::WrittenOff => of("/intents/brake", r#"{"w":2}"#, Entry::WrittenOff(None)),
            Kind::Task => of(
                "/tasks/7",
                r#"{"ID":7,"Title":"t","Creator":"ada","From":"10.0.0.9","Created":1,"SHA256":"00","Account":"root","Args":["-x"],"Env":{"A":"b"},"Secrets":{"PW":"file:/run/pw"},"On":{"Workers":["w"]},"Timeout":"5s","Grace":"1500ms","Deliver":"2h","Batch":"10%","Tolerance":"0","OnLost":"retry","Key":"k"}"#,
                Entry::Task(TaskId(7), None),
            ),
            Kind::TaskIntent => {
                let paused = TaskIntent { goal: TaskGoal::Pause, why: "its intent in etcd cannot be read".into(), ..TaskIntent::default() };
                let json = r#"{"Intent":"run","Ignored":["w"],"Attempts":{"w":2},"Killed":["w"],"Passed":["w"],"Accepted":1,"DoneAt":9}"#;
                of("/intents/tasks/7", json, Entry::TaskIntent(TaskId(7), Some(paused)))
            }
            Kind::NextTask => of("/intents/next-task", r#"{"Next":8}"#, Entry::NextTask(None)),
            Kind::Order => of(
                "/orders/w/7",
                r#"{"Attempt":1,"Intent":"stop","Why":"killed by a person","Since":7}"#,
                Entry::Order(id(), TaskId(7), Some(Order::run(1, 0))),
            ),
            Kind::TaskResult => of(
                "/results/w/7",
                r#"{"Attempt":1,"Order":4711,"Phase":"ended","Outcome":"timed-out","Signal":9,"Began":7,"Ended":9,"Out":12,"Err":1,"Leftover":3,"Message":"m","Kept":"disk"}"#,
                Entry::TaskResult(id(), TaskId(7), Some(TaskResult::running(0, Revision(0), 0))),
            ),
            Kind::TaskScript => of("/x/scripts/7", r##"{"Script":"#!/bin/sh\nid","Stdin":"x"}"##, Entry::TaskScript(TaskId(7), None)),
            Kind::TaskTail => of("/x/tails/w/7", r#"{"Attempt":1,"Out":"text","Err":"hex:ff"}"#, Entry::TaskTail(id(), TaskId(7), None)),
        }
    }

    fn read(example: &Example, value: &[u8]) -> (Entry, bool) {
        let key = Keys::new("").parse(example.key.as_bytes()).expect("ours");
        let (entry, error) = key.read(value);
        (entry, error.is_some())
    }

    #[test]
    fn what_is_written_is_read_as_the_change_that_the_leader_expected() {
        let keys = Keys::new("");
        for example in Kind::ALL.iter().map(|kind| example(*kind)) {
            let (entry, is_unusable) = read(&example, example.json.as_bytes());
            assert!(!is_unusable && !entry.is_absent(), "{}", example.key);
            let write = Write::new(entry);
            let (_, ops) = encode(&keys, &Decision { guards: Vec::new(), writes: vec![write.clone()] });
            let [Op::Put { key, value, .. }] = ops.as_slice() else { panic!("one put: {ops:?}") };
            assert_eq!(std::str::from_utf8(key), Ok(example.key));
            let written: serde_json::Value = serde_json::from_slice(value).expect("json");
            match serde_json::from_str(example.json).expect("json") {
                // What is not said in it is what the cluster adds.
                serde_json::Value::Object(fields) => {
                    fields.iter().for_each(|(field, is)| assert_eq!(written.get(field), Some(is), "{field} of {}", example.key));
                }
                other => assert_eq!(written, other, "{}", example.key),
            }
            let stands = Kv { key: key.clone(), value: value.clone(), created: Revision(9), modified: Revision(9), lease: 0 };
            assert_eq!(meaning(&keys, &stands), Meaning::of(write.change(Revision(9))), "{}", example.key);
            // Written again, the key stays the one that it was.
            let again = Write { created: Revision(9), ..write };
            let stands = Kv { modified: Revision(11), ..stands };
            assert_eq!(meaning(&keys, &stands), Meaning::of(again.change(Revision(11))), "{}", example.key);
        }
    }

    #[test]
    fn what_is_deleted_is_read_as_the_change_that_the_leader_expected() {
        let keys = Keys::new("");
        for example in Kind::ALL.iter().map(|kind| example(*kind)) {
            let write = Write::delete(keys.parse(example.key.as_bytes()).expect("ours"));
            let (_, ops) = encode(&keys, &Decision { guards: Vec::new(), writes: vec![write.clone()] });
            let Some(Op::Delete { key }) = ops.first() else { panic!("a delete: {ops:?}") };
            assert_eq!(std::str::from_utf8(key), Ok(example.key));
            let delete = KeyChange::Delete { key: key.clone(), revision: Revision(9) };
            assert_eq!(meaning_of_change(&keys, &delete), Meaning::of(write.change(Revision(9))), "{}", example.key);
        }
    }

    #[test]
    fn what_cannot_be_read_is_read_in_the_way_that_is_safe() {
        for example in Kind::ALL.iter().map(|kind| example(*kind)) {
            for garbage in ["", "{", "7", "\u{0}", r#"{"Session":"x"}"#, r#"[{"Time":"x"}]"#] {
                assert_eq!(read(&example, garbage.as_bytes()), (example.unreadable.clone(), true), "{}: {garbage}", example.key);
            }
        }
    }

    #[test]
    fn an_assignment_takes_its_status_along() {
        let write = Write::delete(Key::Assignment(id(), name()));
        let (_, ops) = encode(&Keys::new(""), &Decision { guards: Vec::new(), writes: vec![write] });
        assert_eq!(ops, [Op::delete("/assignments/w/a"), Op::delete("/status/w/a")]);
    }

    #[test]
    fn an_entry_that_was_written_with_its_assignment_has_the_epoch_of_that_transaction() {
        let keys = Keys::new("");
        let entries = |json: &str| match meaning(&keys, &kv("/events/000000000000001f-00000000000000aa", json)) {
            Meaning::History { suffix, revision, entries } => {
                assert_eq!((suffix.as_str(), revision), ("000000000000001f-00000000000000aa", CREATED));
                entries
            }
            other => panic!("{other:?}"),
        };
        let many = entries(r#"[{"Time":1,"Type":"leading"},{"Time":2,"Type":"added","Worker":"w"}]"#);
        assert_eq!(
            many.iter().map(|e| (e.kind, e.epoch)).collect::<Vec<_>>(),
            [(EntryKind::Leading, Epoch(0)), (EntryKind::Added, Epoch(5))]
        );
    }
}

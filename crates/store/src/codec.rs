//! Between what stands in etcd and what the model speaks of: keys and JSON to events, decisions to transactions. No IO.

use std::collections::BTreeMap;

use evenkeel_model::{
    Admission, Assignment, Change, Decision, Epoch, Guard, Hash, Held, HistoryEntry, Intent, IntentKind, MasterId, MasterRecord, Origin,
    Phase, Record, Registration, ResourceName, Revision, Session, Versioned, Write, limits::MAX_RECORD, shown::sentence,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Compare, KeyChange, Kv, Op, keys::Key, keys::Keys};

/// What one key of the watched range means.
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
        /// What its key ends in.
        suffix: Box<str>,
        /// Its create revision.
        created: Revision,
        /// What happened, oldest first; empty when it was deleted or cannot be read.
        entries: Vec<HistoryEntry>,
    },
    /// It belongs to somebody else.
    Foreign,
}

/// What a key that stands means. What cannot be read is reported, and read in the way that is safe.
#[must_use]
pub fn meaning(keys: &Keys, kv: &Kv) -> Meaning {
    let event = match keys.parse(&kv.key) {
        Key::Foreign => return Meaning::Foreign,
        Key::Election(lease) => {
            // Whoever holds the key, and whatever it says: its place in the order counts.
            let value = read::<MasterRecord>(kv).unwrap_or_else(|_| unknown_master());
            return Meaning::Candidate { lease, value: Some(Box::new(Versioned { revision: kv.created, value })) };
        }
        Key::Event(suffix) => return Meaning::History { suffix, created: kv.created, entries: read(kv).unwrap_or_default() },
        Key::Resource(name) => match record(kv, &name) {
            Ok(value) => Change::Resource { name, value: versioned(kv, value) },
            Err(error) => Change::Unreadable { name, error: error.into() },
        },
        // The session lives as long as its key stands, whatever the key says.
        Key::Worker(id) => {
            let registration = match read::<Registration>(kv) {
                Ok(registration) => registration.judged(&id),
                Err(_) => Registration::unusable(id.clone(), "it cannot be read"),
            };
            Change::Worker { id, value: Some(Box::new((Session(kv.created.0), registration))) }
        }
        // An admission that cannot be read admits nobody, and may have admitted somebody: the session zero is always gone.
        Key::Admission(worker) => {
            let nobody = Admission { session: Session(0), authority_ms: None, origin: Origin::default() };
            Change::Admission { worker, value: versioned(kv, read(kv).unwrap_or(nobody)) }
        }
        Key::Assignment(worker, name) => Change::Assignment { worker, name, value: Some(held(kv)) },
        Key::Status(worker, name) => Change::Status { worker, name, value: read(kv).ok().map(Box::new) },
        // Somebody wants something of the worker; until it is known what, nothing more comes to it.
        Key::Intent(worker) => Change::Intent { worker, value: Some(read(kv).unwrap_or(Intent { kind: IntentKind::Cordon, since: 0 })) },
        // What cannot be read lets nobody go: the brake holds.
        Key::WrittenOff => Change::WrittenOff { sessions: read(kv).unwrap_or_default() },
    };
    Meaning::Cluster(event)
}

/// What the absence of a key means.
#[must_use]
pub fn meaning_of_absence(keys: &Keys, key: &[u8]) -> Meaning {
    Meaning::Cluster(match keys.parse(key) {
        Key::Foreign => return Meaning::Foreign,
        Key::Election(lease) => return Meaning::Candidate { lease, value: None },
        Key::Event(suffix) => return Meaning::History { suffix, created: Revision(0), entries: Vec::new() },
        Key::Resource(name) => Change::Resource { name, value: None },
        Key::Worker(id) => Change::Worker { id, value: None },
        Key::Admission(worker) => Change::Admission { worker, value: None },
        Key::Assignment(worker, name) => Change::Assignment { worker, name, value: None },
        Key::Status(worker, name) => Change::Status { worker, name, value: None },
        Key::Intent(worker) => Change::Intent { worker, value: None },
        Key::WrittenOff => Change::WrittenOff { sessions: BTreeMap::new() },
    })
}

/// What a change means.
#[must_use]
pub fn meaning_of_change(keys: &Keys, change: &KeyChange) -> Meaning {
    match change {
        KeyChange::Put(kv) => meaning(keys, kv),
        KeyChange::Delete { key, .. } => meaning_of_absence(keys, key),
    }
}

/// A master of which nothing is known but that it campaigns.
fn unknown_master() -> MasterRecord {
    let id = MasterId::new("unknown").unwrap_or_else(|_| unreachable!("it is a name"));
    MasterRecord { id, address: String::new(), http: String::new(), version: String::new(), leads_since: 0 }
}

/// An assignment that cannot be read may run, and has a hash that no resource has: it is stopped and made anew.
fn held(kv: &Kv) -> Held {
    let epoch = Epoch(kv.created.0);
    match read::<Assignment>(kv) {
        Ok(assignment) => Held::of(epoch, &assignment),
        Err(_) => Held { epoch, hash: Hash::unknown(), phase: Phase::Run },
    }
}

/// By how much a record may grow when a leader writes it: the view of where it runs, and its hash.
const RECORD_ROOM: usize = 1024;
/// A record grows by less than this factor when it is written as this process writes it: `9e15` has sixteen digits then.
const GROWTH: usize = 16;

/// A record that can be acted on: it is this resource's, and can be written together with its assignment.
fn record(kv: &Kv, name: &ResourceName) -> Result<Record, String> {
    let unusable = |error: String| {
        tracing::warn!(resource = %name, %error, "a record in etcd cannot be used");
        Err(error)
    };
    let too_long = |length: usize| format!("its record has {length} bytes, more than {MAX_RECORD}; delete it, or write a shorter one");
    let length = kv.value.len();
    if length > MAX_RECORD {
        return unusable(too_long(length));
    }
    let record: Record = read(kv)?;
    if record.definition.name != *name {
        return unusable(format!("it is the record of {}", record.definition.name));
    }
    // Most are so short that there is no need to write them first.
    if length > MAX_RECORD / GROWTH {
        let written = json(&record).len().saturating_sub(record.assigned_node.len()) + RECORD_ROOM;
        if written > MAX_RECORD {
            return unusable(too_long(written));
        }
    }
    Ok(record)
}

fn versioned<T>(kv: &Kv, value: T) -> Option<Box<Versioned<T>>> {
    Some(Box::new(Versioned { revision: kv.modified, value }))
}

fn read<T: DeserializeOwned>(kv: &Kv) -> Result<T, String> {
    serde_json::from_slice(&kv.value).map_err(|error| {
        let error = sentence(&error);
        tracing::warn!(key = %String::from_utf8_lossy(&kv.key), revision = kv.modified.0, %error, "a value in etcd cannot be read");
        error
    })
}

/// The JSON of a value that is written.
#[must_use]
pub fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // The types of the model have string keys and finite numbers only, which JSON can always hold.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The conditions and operations of a decision.
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
    let created = |key: String, equals: i64| Compare::CreateRevision { key: key.into(), equals: Revision(equals) };
    let modified = |key: String, equals: Revision| Compare::ModRevision { key: key.into(), equals };
    match guard {
        Guard::Resource(name, revision) => modified(keys.resource(name), *revision),
        Guard::Assignment(worker, name, epoch) => created(keys.assignment(worker, name), epoch.0),
        Guard::Admission(worker, revision) => modified(keys.admission(worker), *revision),
        Guard::Registration(worker, session) => created(keys.worker(worker), session.0),
    }
}

fn encode_write(keys: &Keys, write: &Write, ops: &mut Vec<Op>) {
    match write {
        Write::Resource(record) => ops.push(Op::put(keys.resource(&record.definition.name), json(record))),
        Write::NoResource(name) => ops.push(Op::delete(keys.resource(name))),
        Write::Assignment(worker, name, assignment, _) => ops.push(Op::put(keys.assignment(worker, name), json(assignment))),
        Write::NoAssignment(worker, name) => {
            ops.push(Op::delete(keys.assignment(worker, name)));
            ops.push(Op::delete(keys.status(worker, name)));
        }
        Write::Admission(worker, admission) => ops.push(Op::put(keys.admission(worker), json(admission))),
        Write::NoAdmission(worker) => ops.push(Op::delete(keys.admission(worker))),
        Write::NoRegistration(id) => ops.push(Op::delete(keys.worker(id))),
        Write::Intent(id, Some(intent)) => ops.push(Op::put(keys.intent(id), json(intent))),
        Write::Intent(id, None) => ops.push(Op::delete(keys.intent(id))),
        Write::WrittenOff(sessions) if sessions.is_empty() => ops.push(Op::delete(keys.written_off())),
        Write::WrittenOff(sessions) => ops.push(Op::put(keys.written_off(), json(sessions))),
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{Definition, WorkerId};

    use super::*;

    fn kv(key: &str, value: &str) -> Kv {
        Kv { key: key.into(), value: value.into(), created: Revision(5), modified: Revision(7), lease: 0 }
    }

    #[test]
    fn what_is_written_is_read_as_the_event_that_the_leader_expected() {
        let keys = Keys::new("");
        let (name, worker) = (ResourceName::new("a").expect("name"), WorkerId::new("w").expect("id"));
        let record = Record {
            id: 3,
            creation_time: 4,
            assigned_node: "w|h:1".into(),
            source: "".into(),
            definition: Definition::named(name.clone()),
        };
        let assignment = Assignment {
            kind: String::new(),
            spec: record.definition.spec.clone(),
            require: record.definition.require.clone(),
            hash: record.definition.hash(),
            phase: Phase::Run,
        };
        let writes = vec![
            Write::Resource(Box::new(record)),
            Write::Assignment(worker.clone(), name.clone(), Box::new(assignment), Epoch::default()),
            Write::Admission(worker.clone(), Box::new(Admission { session: Session(2), authority_ms: None, origin: Origin::default() })),
            Write::Intent(worker.clone(), Some(Intent { kind: IntentKind::Drain { deadline_ms: Some(5) }, since: 7 })),
            Write::WrittenOff(BTreeMap::from([(worker, Session(2))])),
        ];
        let (_, ops) = encode(&keys, &Decision { guards: Vec::new(), writes: writes.clone() });
        for (op, write) in ops.into_iter().zip(&writes) {
            let Op::Put { key, value, .. } = op else { panic!("a put") };
            let stands = Kv { key, value, created: Revision(9), modified: Revision(9), lease: 0 };
            assert_eq!(meaning(&keys, &stands), Meaning::Cluster(write.change(Revision(9))));
        }
    }

    #[test]
    fn a_record_that_could_not_be_written_with_its_assignment_is_left_alone() {
        let keys = Keys::new("");
        let record_of = |spec: String| match meaning(&keys, &kv("/resources/a", &format!(r#"{{"Name":"a","Spec":{spec}}}"#))) {
            Meaning::Cluster(Change::Resource { value: Some(record), .. }) => Some(record.value),
            Meaning::Cluster(Change::Unreadable { .. }) => None,
            other => panic!("{other:?}"),
        };
        let text = |letters: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(letters));
        let written = |record: &Record| json(record).len();
        let room = MAX_RECORD - RECORD_ROOM - written(&record_of(text(40_000)).expect("short")) + 40_000;
        let mut longest = record_of(text(room)).expect("as long as may be");
        assert_eq!(written(&longest), MAX_RECORD - RECORD_ROOM);
        assert_eq!(record_of(text(room + 1)), None);
        // Where it runs is added to it: with the longest names of all, it is still what is read.
        let worker = WorkerId::new(&"w".repeat(253)).expect("id");
        longest.assigned_node = Record::node(&worker, &"a".repeat(evenkeel_model::limits::MAX_ADDRESS));
        let echo = String::from_utf8(json(&longest)).expect("text");
        let Meaning::Cluster(Change::Resource { value: Some(read), .. }) = meaning(&keys, &kv("/resources/a", &echo)) else {
            panic!("unreadable by its own echo")
        };
        assert_eq!(read.value, longest);
        // What is short as a person writes it is judged as it is written back.
        let numbers = |count: usize| format!(r#"{{"a":[{}]}}"#, vec!["9e15"; count].join(","));
        assert!(record_of(numbers(20_000)).is_some_and(|record| written(&record) > 17 * 20_000));
        assert_eq!(record_of(numbers(90_000)), None, "470 kB that become 1.5 MB");
    }

    #[test]
    fn an_assignment_takes_its_status_along() {
        let keys = Keys::new("");
        let (name, worker) = (ResourceName::new("a").expect("name"), WorkerId::new("w").expect("id"));
        let (_, ops) = encode(&keys, &Decision { guards: Vec::new(), writes: vec![Write::NoAssignment(worker, name)] });
        assert_eq!(ops, [Op::delete("/assignments/w/a"), Op::delete("/status/w/a")]);
    }

    #[test]
    fn what_cannot_be_read_is_read_in_the_way_that_is_safe() {
        let keys = Keys::new("");
        assert!(matches!(meaning(&keys, &kv("/resources/a", "{")), Meaning::Cluster(Change::Unreadable { .. })));
        let Meaning::Cluster(Change::Assignment { value: Some(held), .. }) = meaning(&keys, &kv("/assignments/w/a", "")) else {
            panic!("held")
        };
        assert!(held.runs() && held.epoch == Epoch(5) && held.hash == Hash::unknown());
        let Meaning::Cluster(Change::Admission { value: Some(admission), .. }) = meaning(&keys, &kv("/admissions/w", "[]")) else {
            panic!("some")
        };
        assert_eq!(admission.value.session, Session(0));
        let Meaning::Cluster(Change::Worker { value: Some(worker), .. }) = meaning(&keys, &kv("/workers/w", "[]")) else { panic!("lives") };
        assert_eq!((worker.0, worker.1.capacity, worker.1.kinds.len()), (Session(5), Some(0), 0));
        assert_eq!(worker.1.refused.as_deref(), Some("it cannot be read"));
        let other = r#"{"ID":"x","Address":"h:1","Kinds":["noop"]}"#;
        let Meaning::Cluster(Change::Worker { value: Some(worker), .. }) = meaning(&keys, &kv("/workers/w", other)) else {
            panic!("lives")
        };
        assert_eq!((worker.1.refused.as_deref(), worker.1.kinds.len()), (Some("it is the registration of x"), 0));
        let Meaning::Candidate { value: Some(master), .. } = meaning(&keys, &kv("/election/1", "[]")) else { panic!("campaigns") };
        assert_eq!((master.revision, master.value.leads_since), (Revision(5), 0));
        let cordoned = Meaning::Cluster(Change::Intent {
            worker: WorkerId::new("w").expect("id"),
            value: Some(Intent { kind: IntentKind::Cordon, since: 0 }),
        });
        assert_eq!(meaning(&keys, &kv("/intents/workers/w", "[]")), cordoned);
        assert_eq!(meaning(&keys, &kv("/intents/brake", "[]")), Meaning::Cluster(Change::WrittenOff { sessions: BTreeMap::new() }));
        let record = r#"{"ID":"1","Name":"b","AssignedNode":"","CreationTime":1}"#;
        assert!(matches!(meaning(&keys, &kv("/resources/b", record)), Meaning::Cluster(Change::Resource { .. })));
        assert!(matches!(meaning(&keys, &kv("/resources/a", record)), Meaning::Cluster(Change::Unreadable { .. })));
    }
}

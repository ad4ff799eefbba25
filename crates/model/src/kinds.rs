//! The kinds of keys in etcd, as one table: which ids tell the keys of a kind apart, and which value a key has. [`Key`] and [`Entry`] have a
//! variant for each line. How a key is spelled is not known here: `keys.rs` in the store knows that.
//!
//! To add a kind of key:
//! 1. write a file with the type of its value, and implement [`Stored`] for it: how it is read, also where it cannot be read, and what the
//!    Cluster does with it. How it is written follows from its `Serialize`;
//! 2. add a line to the table at the end of this file;
//! 3. add a line to the table of rooms in `crates/store/src/keys.rs`. The tests of `crates/store/src/codec.rs` do not compile until they
//!    have an example of it.

use std::{collections::BTreeMap, fmt};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Admission, Assignment, Cluster, HistoryEntry, Intent, MasterRecord, Moment, NextTask, Order, Record, Registration, ResourceName,
    Revision, Session, Status, Suffix, Task, TaskId, TaskIntent, TaskResult, TaskScript, TaskTail, WorkerId, shown::sentence,
};

/// One part of a key that tells it apart from others of its kind. Its text is read back by its `FromStr`.
pub trait Id: fmt::Display {
    /// The resource, where it names one.
    fn resource(&self) -> Option<&ResourceName> {
        None
    }

    /// The worker, where it names one.
    fn worker(&self) -> Option<&WorkerId> {
        None
    }
}

/// The value of one kind of key. It is written as the JSON that its `Serialize` gives.
pub trait Stored: Serialize + Sized {
    /// The ids of its key: of one id itself, of several a tuple, of none `()`.
    type Ids;

    /// Reads a value. What cannot be read is read in the way that is safe.
    fn read(ids: &Self::Ids, json: &[u8]) -> Read<Self>;

    /// Takes a change of this kind into the Cluster; `None`: the key does not exist. Without this, the Cluster does not know the kind.
    #[allow(unused_variables, reason = "the default does nothing")]
    fn apply(cluster: &mut Cluster, ids: Self::Ids, value: Option<Self>, seen: Seen) {}
}

/// A value as it was read.
#[derive(Debug)]
pub struct Read<T> {
    /// What counts; none: as if the key did not exist.
    pub value: Option<T>,
    /// Why the value cannot be used; then `value` is what is safe in its place.
    pub error: Option<Box<str>>,
}

impl<T> Read<T> {
    /// What counts in place of a value that cannot be used.
    pub(crate) fn unusable(error: impl Into<Box<str>>, safe: Option<T>) -> Self {
        Self { value: safe, error: Some(error.into()) }
    }
}

impl<T: DeserializeOwned> Read<T> {
    /// Reads JSON. `safe` says what counts where that is not possible.
    pub(crate) fn or(json: &[u8], safe: impl FnOnce() -> Option<T>) -> Self {
        match serde_json::from_slice(json) {
            Ok(value) => Self { value: Some(value), error: None },
            Err(error) => Self::unusable(sentence(&error), safe()),
        }
    }
}

/// What a change says beside the value.
#[derive(Debug)]
pub struct Seen {
    /// The revision that created the key; zero: it does not exist.
    pub created: Revision,
    /// The revision that wrote the value; zero: the key does not exist.
    pub modified: Revision,
    /// Why the value cannot be used.
    pub error: Option<Box<str>>,
    /// When this observer saw it.
    pub now: Moment,
}

/// The JSON of a value that is written.
#[must_use]
pub fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // The types of the model have string keys and finite numbers only, which JSON can always hold.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Makes the three enums of the table, with a variant a line, and the functions that only lead to the line of a kind.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident($($id:ident: $Id:ty),*) = $Value:ty;)*) => {
        /// A kind of key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        /// A key: its kind, and its ids.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Key { $($(#[$doc])* $kind($($Id),*),)* }

        /// A key with its value; `None`: the key does not exist.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Entry { $($(#[$doc])* $kind($($Id,)* Option<$Value>),)* }

        impl Kind {
            /// Masters watch keys of this kind. The others are large, and read on demand.
            #[must_use]
            pub const fn is_watched(self) -> bool {
                !matches!(self, Self::TaskScript | Self::TaskTail)
            }

            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// What the ids of its keys are called, in their order.
            #[must_use]
            pub const fn ids(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$(stringify!($id)),*],)* }
            }

            /// The key with these ids; none: one is missing or invalid.
            pub fn key<'a>(self, mut ids: impl Iterator<Item = &'a str>) -> Option<Key> {
                Some(match self { $(Self::$kind => Key::$kind($(ids.next()?.parse::<$Id>().ok()?),*),)* })
            }
        }

        #[allow(unused_parens, clippy::let_unit_value, reason = "the ids of a kind may be one, or none")]
        impl Key {
            /// Its kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(..) => Kind::$kind,)* }
            }

            /// Shows its ids, in their order.
            pub fn each_id(&self, mut see: impl FnMut(&dyn Id)) {
                match self { $(Self::$kind($($id),*) => { $(see($id);)* })* }
            }

            /// The entry of a key that does not exist.
            #[must_use]
            pub fn absent(self) -> Entry {
                match self { $(Self::$kind($($id),*) => Entry::$kind($($id,)* None),)* }
            }

            /// The entry of a key that has this value, and why the value cannot be used, if so.
            #[must_use]
            pub fn read(self, json: &[u8]) -> (Entry, Option<Box<str>>) {
                match self { $(Self::$kind($($id),*) => {
                    let ids = ($($id),*);
                    let read = <$Value as Stored>::read(&ids, json);
                    let ($($id),*) = ids;
                    (Entry::$kind($($id,)* read.value), read.error)
                })* }
            }
        }

        #[allow(unused_parens, unused_variables, reason = "the ids of a kind may be one, or none")]
        impl Entry {
            /// Its key.
            #[must_use]
            pub fn key(&self) -> Key {
                match self { $(Self::$kind($($id,)* _) => Key::$kind($($id.clone()),*),)* }
            }

            /// The key does not exist.
            #[must_use]
            pub fn is_absent(&self) -> bool {
                match self { $(Self::$kind($($id,)* value) => value.is_none(),)* }
            }

            /// The value as it is written; none: the key does not exist.
            #[must_use]
            pub fn json(&self) -> Option<Vec<u8>> {
                match self { $(Self::$kind($($id,)* value) => value.as_ref().map(json),)* }
            }

            /// The resource that the key names.
            #[must_use]
            pub fn resource(&self) -> Option<&ResourceName> {
                match self { $(Self::$kind($($id,)* _) => None$(.or_else(|| $id.resource()))*,)* }
            }

            /// The worker that the key names.
            #[must_use]
            pub fn worker(&self) -> Option<&WorkerId> {
                match self { $(Self::$kind($($id,)* _) => None$(.or_else(|| $id.worker()))*,)* }
            }

            /// Takes it into the Cluster.
            pub(crate) fn apply(self, cluster: &mut Cluster, seen: Seen) {
                match self { $(Self::$kind($($id,)* value) => <$Value as Stored>::apply(cluster, ($($id),*), value, seen),)* }
            }
        }
    };
}

// The table: a kind of key, its ids, its value. A key is looked for in this order, so the kinds with the most keys come first.
kinds! {
    /// `/assignments/<worker>/<name>`
    Assignment(worker: WorkerId, name: ResourceName) = Assignment;
    /// `/status/<worker>/<name>`
    Status(worker: WorkerId, name: ResourceName) = Status;
    /// `/resources/<name>`
    Resource(name: ResourceName) = Record;
    /// `/workers/<id>`
    Worker(worker: WorkerId) = Registration;
    /// `/admissions/<worker>`
    Admission(worker: WorkerId) = Admission;
    /// `/events/<suffix>`
    Event(suffix: Suffix) = Vec<HistoryEntry>;
    /// `/election/<lease>`
    Election(lease: String) = MasterRecord;
    /// `/intents/workers/<id>`
    Intent(worker: WorkerId) = Intent;
    /// `/intents/brake`
    WrittenOff() = BTreeMap<WorkerId, Session>;
    /// `/results/<worker>/<task>`
    TaskResult(worker: WorkerId, task: TaskId) = TaskResult;
    /// `/orders/<worker>/<task>`
    Order(worker: WorkerId, task: TaskId) = Order;
    /// `/intents/tasks/<task>`
    TaskIntent(task: TaskId) = TaskIntent;
    /// `/tasks/<task>`
    Task(task: TaskId) = Task;
    /// `/intents/next-task`
    NextTask() = NextTask;
    /// `/x/scripts/<task>`
    TaskScript(task: TaskId) = TaskScript;
    /// `/x/tails/<worker>/<task>`
    TaskTail(worker: WorkerId, task: TaskId) = TaskTail;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Epoch, Hash, Origin, Versioned};

    const CREATED: Revision = Revision(5);
    const MODIFIED: Revision = Revision(7);

    fn worker() -> Key {
        Key::Worker(WorkerId::new("w").expect("id"))
    }

    fn resource(name: &str) -> Key {
        Key::Resource(ResourceName::new(name).expect("name"))
    }

    #[test]
    fn a_session_and_an_epoch_are_create_revisions_and_a_guard_goes_by_what_wrote_last() {
        let (id, name) = (WorkerId::new("w").expect("id"), ResourceName::new("a").expect("name"));
        let mut cluster = Cluster::default();
        let mut see = |key: Key, json: &str| {
            let (entry, error) = key.read(json.as_bytes());
            cluster.apply(Change { error, ..Change::over(CREATED, MODIFIED, entry) }, Moment::default());
        };
        see(resource("a"), r#"{"Name":"a"}"#);
        see(resource("b"), "{");
        see(worker(), "[]");
        see(Key::Admission(id.clone()), "[]");
        see(Key::Assignment(id, name), "");
        let worker = cluster.worker("w").expect("a worker");
        let (session, registration) = worker.registered.as_deref().expect("it lives");
        assert_eq!((*session, registration.capacity, registration.refused.as_deref()), (Session(5), Some(0), Some("it cannot be read")));
        let nobody = Admission { session: Session(0), authority_ms: None, origin: Origin::default() };
        assert_eq!(worker.admission.as_deref(), Some(&Versioned { revision: MODIFIED, value: nobody }));
        let unit = cluster.unit("a").expect("a resource");
        assert_eq!(unit.record.as_deref().map(|record| record.revision), Some(MODIFIED));
        let held = &unit.holders[0].held;
        assert!(held.runs() && held.epoch == Epoch(5) && held.hash == Hash::unknown());
        let plain = &unit.record.as_deref().expect("a record").value.definition;
        assert!(!held.has_work_of(plain), "what cannot be read is no work that anything asks for");
        let broken = cluster.unit("b").expect("it is known of");
        assert!(broken.record.is_none() && broken.unreadable.is_some());
    }

    #[test]
    fn what_belongs_to_another_key_is_not_used() {
        let (entry, error) = worker().read(br#"{"ID":"x","Address":"h:1","Kinds":["noop"]}"#);
        let Entry::Worker(_, Some(registration)) = entry else { panic!("it lives") };
        assert_eq!((registration.refused.as_deref(), registration.kinds.len()), (Some("it is the registration of x"), 0));
        assert_eq!(error, None);
        let record = br#"{"ID":"1","Name":"b","AssignedNode":"","CreationTime":1}"#;
        let (entry, error) = resource("b").read(record);
        assert!(!entry.is_absent() && error.is_none());
        let (entry, error) = resource("a").read(record);
        assert!(entry.is_absent());
        assert_eq!(error.as_deref(), Some("it is the record of b"));
    }

    #[test]
    fn an_entry_of_the_history_that_was_written_with_its_assignment_has_the_epoch_of_that_transaction() {
        let epoch = |rest: &str| {
            let entry: HistoryEntry = serde_json::from_str(&format!(r#"{{"Time":1,{rest}}}"#)).expect("an entry");
            entry.written_at(CREATED).epoch
        };
        for kind in ["added", "assigned", "moved"] {
            assert_eq!(epoch(&format!(r#""Type":"{kind}","Worker":"w""#)), Epoch(5), "{kind}");
            assert_eq!(epoch(&format!(r#""Type":"{kind}","Worker":"w","Epoch":3"#)), Epoch(3), "{kind}: it names another");
            assert_eq!(epoch(&format!(r#""Type":"{kind}""#)), Epoch(0), "{kind}: to no worker");
        }
        assert_eq!(epoch(r#""Type":"admitted","Worker":"w""#), Epoch(0), "no assignment is made");
    }
}

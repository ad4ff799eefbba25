//! PURE: the cluster as plain values. Ids, resources, workers, assignments, the [`Cluster`] that events build, and what must hold of it.
//!
//! The wheel: store::watch -> **model::Cluster** -> planner::plan -> **model::check** -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! No IO, no clock, no tokio and no etcd here: time and revisions come in as arguments.

mod agenda;
mod assignment;
pub mod builtin;
mod change;
pub mod check;
mod classes;
mod cluster;
mod decision;
pub mod diff;
mod ending;
pub mod ends;
pub mod fit;
mod history;
mod holds;
mod ids;
mod intent;
mod kinds;
pub mod limits;
pub mod manifest;
mod plan;
pub mod process;
mod rankings;
mod recent;
mod record;
mod relations;
mod reservation;
mod resource;
mod rules;
mod selector;
pub mod shown;
pub mod source;
mod spec;
mod standing;
pub mod task;
pub mod work;
mod worker;
mod written_off;

pub use agenda::Agenda;
pub use assignment::{Assignment, FAILING, Observed, Phase, Status, StopReason};
pub use change::{Change, Held, Moment, Versioned};
pub use check::{Flaw, Violation};
pub use classes::{ClassId, Classes};
pub use cluster::Cluster;
pub use decision::{Decision, Guard, NotYet, Write};
pub use ending::{FailedOn, Finish, MAX_FAILED_ON};
pub use ends::End;
pub use fit::{Misfit, Place};
pub use history::{EntryKind, HistoryEntry, MasterRecord};
pub use holds::{DriverTraits, Holds};
pub use ids::{Epoch, MasterId, NameError, NoTaskId, ResourceName, Revision, Session, Suffix, TaskId, WorkerId};
pub use intent::{Intent, IntentKind};
pub use kinds::{Entry, Id, Key, Kind, Read, Seen, Stored, json};
pub use limits::{MAX_LABEL, MAX_LABELS, MAX_NAME, MAX_SPEC, MAX_WEIGHT};
pub use plan::{Action, AdmitReason, Brake, EndReason, Failed, NotElsewhere, Pending, PlaceReason, Plan, Subject, Undone};
pub use rankings::{Load, Rank, Rankings, Shape, ShapeId, Shaped};
pub use recent::{REMEMBERED, Recent};
pub use record::Record;
pub use relations::{Count, Related, Relations};
pub use resource::{Definition, DefinitionError, Draft, Needs, Ownership, check_labels};
pub use rules::{PolicyName, Preference, Rebalance, Rules, UnknownPolicy};
pub use selector::{Selector, SelectorError};
pub use spec::{Hash, Spec};
pub use standing::{Holder, Standing, Unit, Worker};
pub use task::{NextTask, Order, Task, TaskIntent, TaskResult, TaskScript, TaskTail};
pub use work::Work;
pub use worker::{Admission, Labels, Origin, RATE_PERCENT, Registration, wait_for};

//! PURE: the cluster as plain values. Ids, resources, workers, assignments, the [`Cluster`] that events build, and what must hold of it.
//!
//! The wheel: store::watch -> **model::Cluster** -> planner::plan -> **model::check** -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! No IO, no clock, no tokio and no etcd here: time and revisions come in as arguments.

mod assignment;
pub mod check;
mod cluster;
mod decision;
pub mod diff;
pub mod ends;
mod event;
pub mod fit;
mod history;
mod ids;
pub mod manifest;
mod plan;
pub mod process;
mod record;
mod resource;
mod selector;
mod worker;

pub use assignment::{Assignment, Observed, Phase, Status, StopReason};
pub use check::Violation;
pub use cluster::{Agenda, Cluster, Holder, Rank, Standing, Unit, Worker};
pub use decision::{Decision, Guard, NotYet, Write};
pub use ends::End;
pub use event::{Event, Held, Moment, Versioned};
pub use fit::Misfit;
pub use history::{Happening, HappeningKind, MasterRecord};
pub use ids::{Epoch, MAX_NAME, MasterId, NameError, ResourceName, Revision, Session, WorkerId};
pub use plan::{Action, AdmitReason, EndReason, Pending, PlaceReason, Plan, Subject, Undone};
pub use record::Record;
pub use resource::{Definition, DefinitionError, Draft, Hash, MAX_LABEL, MAX_LABELS, MAX_SPEC, MAX_WEIGHT, Ownership, Spec, check_labels};
pub use selector::{Selector, SelectorError};
pub use worker::{Admission, Labels, Origin, RATE_PERCENT, Registration, wait_for};

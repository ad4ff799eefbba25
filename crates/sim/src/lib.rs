//! Where the wheel runs without processes and on no clock but a virtual one: a world for the planner, scripts, a model of
//! etcd, and whole fleets of masters and workers over that.
//!
//! The wheel: store::watch -> **model::Cluster -> planner::plan -> model::check** -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! Nothing depends on this crate.

pub mod attempts;
pub mod etcd;
pub mod fleet;
pub mod linearizability;
pub mod protocol;
pub mod script;
pub mod world;

//! Where the pure parts of the wheel run without etcd, without processes and without a clock: a world for the planner, and scripts.
//!
//! The wheel: store::watch -> **model::Cluster -> planner::plan -> model::check** -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! Nothing depends on this crate.

pub mod script;
pub mod world;

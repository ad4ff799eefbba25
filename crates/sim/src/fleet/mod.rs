//! Seeded simulation of whole fleets: the real master, agent, guard rules, planner, pipeline, mirrors and leases, on virtual time, against
//! the model of etcd, with faults that are drawn from the seed.
//!
//! The wheel: all of it, store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report. Only the kernel, the network and etcd are models.
//!
//! A seed stands for a run: the same seed gives the same run, to the event. A run consists of rounds: faults, then healing, then a look at
//! whether everything is as it should be. A run that finds something is [shrunk](shrink) to few faults, and can be repeated with these.

mod caller;
pub mod clock;
pub mod dice;
pub mod fault;
pub mod history;
mod judge;
pub mod ledger;
mod link;
mod machine;
mod master;
pub mod process;
mod run;
mod settle;
mod sharer;
pub mod shrink;
mod sign;
pub mod task_book;
mod task_judge;
mod tasker;
mod work;
mod world;

pub use run::{Plan, Report, run};

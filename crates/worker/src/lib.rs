//! Everything of a worker: what it is told, what follows from that, the drivers that do it, the report of what they see, and the guard.
//!
//! The wheel: store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit -> etcd, and back by
//! **worker::desired -> worker::reconcile -> worker::driver -> worker::report**.
//!
//! `evenkeel worker` is two processes. [`guard::run`] is the outer one. It starts the agent, which is [`agent::run`].
//! Decisions stand in [`protocol`], which is pure; everything else carries them out.

pub mod agent;
pub mod config;
mod data_dir;
pub mod driver;
mod fault;
pub mod guard;
mod hold;
pub mod log_writer;
mod program;
pub mod protocol;
mod server;
mod sys;
pub mod task;
mod usage;

pub use config::{FindHost, WorkerConfig, WorkerError, default_data_dir};
pub use driver::EnvPass;
pub use hold::{ContainmentMode, means_name};
pub use program::{Refused, main_with};
pub use task::TaskConfig;

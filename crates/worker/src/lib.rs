//! Everything of a worker: what it is told, what follows from that, the drivers that do it, the report of what they see, and the guard.
//!
//! The wheel: store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit -> etcd, and back by
//! **worker::desired -> worker::reconcile -> worker::driver -> worker::report**.
//!
//! `evenkeel worker` is two processes. [`guard::run`] is the outer one. It starts the agent, which is [`agent::run`].
//! Decisions stand in [`authority`], [`desired`], [`reconcile`] and [`report`], which are pure; everything else carries them out.

pub mod agent;
pub mod authority;
pub mod catalog;
pub mod config;
mod containment;
mod data_dir;
pub mod desired;
pub mod driver;
mod fault;
pub mod guard;
pub mod log_writer;
pub mod reconcile;
pub mod report;
mod server;
mod sys;
mod usage;

pub use config::{FindHost, WorkerConfig, WorkerError, default_data_dir};
pub use containment::{ContainmentMode, means_name};
pub use driver::EnvPass;

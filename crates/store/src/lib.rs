//! The only crate that knows etcd: connection, list and watch, leased keys and fenced commit.
//!
//! The wheel: **store::watch** -> model::Cluster -> planner::plan -> model::check -> **store::commit** -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report.
//!
//! Nothing is decided here about resources or workers, and no type of the etcd client leaves this crate: callers and simulators see
//! plain types, such as [`Kv`], [`Txn`] and [`Batch`].

mod batch;
mod client;
pub mod codec;
mod commit;
mod error;
mod in_use;
pub mod keys;
mod leased;
mod locks;
mod member;
mod mirror;
mod packing;
mod pipeline;
mod ready;
mod streams;
pub mod task;
mod transport;
mod types;
mod wire;
mod wire_streams;

pub use batch::{Batch, BatchId, Outcome, Resolution};
pub use client::{Client, Config};
pub use commit::{Executor, Finished};
pub use error::Error;
pub use evenkeel_model::Revision;
pub use leased::{CreateError, Holder, KeyName, LeaseState, LeasedKey, LostReason, NewLeasedKey};
pub use member::connect;
pub use mirror::{KeyChange, Update, mirror};
pub use pipeline::{Done, Found, MAX_BYTES, MAX_OPS, Pipeline, PipelineConfig, SubmitError, Write, WriteResult};
pub use ready::MemberStatus;
pub use transport::{Granted, KeepAlive, RangeReply, RangeRequest, Transport, Watch, WatchMessage};
pub use types::{Compare, KeyRange, Kv, Op, Read, Snapshot, Txn, TxnReply};

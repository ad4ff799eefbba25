//! Generated types and descriptors of the gRPC services; nothing else.
//!
//! The wheel: store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report. This crate is how people and programs speak to it.

/// The services and messages of package `evenkeel.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::too_many_lines)]
pub mod v1 {
    tonic::include_proto!("evenkeel.v1");
}

/// The services and messages of `crawler.proto`, which has no package.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::too_many_lines)]
pub mod crawler {
    tonic::include_proto!("_");
}

/// The encoded `FileDescriptorSet` of all services, HTTP options included: for reflection and for HTTP transcoding.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

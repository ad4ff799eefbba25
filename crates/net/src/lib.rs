//! How masters and workers listen: one accept loop for every port, the limits that it holds, and what stands before the services.
//!
//! Before the wheel store::watch -> model::Cluster -> planner::plan -> model::check -> store::commit -> etcd, and back by
//! worker::desired -> worker::reconcile -> worker::driver -> worker::report: what people and programs ask comes in here. It knows HTTP and
//! nothing of masters and workers, and it decides nothing about resources. TLS and identity will come in between [`Accept`], which gives a
//! stream and its peer, and [`serve`].

mod activity;
mod answer;
mod bind;
mod descriptors;
mod door;
mod front;
mod io;
mod keeper;
mod limits;
mod ports;
mod request;
mod serve;

pub use self::{
    answer::{Body, BodyError, boxed, error_json, refusal},
    bind::bind,
    descriptors::{descriptors, raise_descriptors},
    door::{InvalidHost, Names, is_loopback},
    front::Front,
    keeper::Keeper,
    limits::Limits,
    ports::{OpenEnded, Ports, is_grpc},
    request::Peer,
    serve::{Accept, serve},
};

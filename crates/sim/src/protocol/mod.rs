//! A model of the ownership protocol, for all interleavings of small instances: leaders, workers, leases, proofs, admissions and moves,
//! with what can go wrong. It is beside the wheel: its rules are written anew here, and of the real code it uses only [`evenkeel_model::Holds`].
//!
//! `docs/verification.md` says what is modelled, what is left out, and what was found.

mod change;
mod etcd;
pub mod instances;
mod leader;
pub mod model;
pub mod mutants;
pub mod rules;
pub mod seen;
mod settle;
pub mod state;
pub mod step;
mod worker;

//! The worker's half of the ownership protocol, PURE: until when work may run, what is to run, what follows from that, and what is reported.
//! DESIGN.md section 5.
//!
//! [`authority`] is the span that a proof gives, and the gate that drivers ask. [`desired`] is what the worker is told, as far as it may act on
//! it. [`reconcile`] decides about one name. [`report`] is what of the statuses is to be written, and what became of that.

pub mod authority;
pub mod desired;
pub mod reconcile;
pub mod report;

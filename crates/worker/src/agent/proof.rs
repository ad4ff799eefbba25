//! Proves the session, again and again.
//!
//! The wheel: beside worker::agent, which counts authority from the send of each proof that held. It decides nothing.

use std::sync::Arc;

use evenkeel_store::LeasedKey;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::protocol::authority::{BootTime, Clock, Timing};

/// The outcome of one proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The session stood at a time after this.
    Held { sent: BootTime },
    /// The session is gone, for certain.
    Lost,
    /// etcd did not say.
    Failed {
        /// Why not.
        why: String,
        /// etcd was there, and refused.
        refused: bool,
    },
}

/// After a failure the next proof comes sooner: etcd may be back at any moment.
const SOONER: u32 = 5;

/// Sends proofs until the session is lost or nobody listens.
pub(crate) async fn prove_on(key: Arc<LeasedKey>, timing: Timing, clock: Arc<dyn Clock>, proofs: mpsc::Sender<Proof>) {
    loop {
        let begun = Instant::now();
        // Read before the request leaves: an answer says nothing about the time at which it comes.
        let sent = clock.now();
        let proof = match key.prove(timing.proof_deadline).await {
            Ok(true) => Proof::Held { sent },
            Ok(false) => Proof::Lost,
            Err(error) => {
                tracing::debug!(%error, "a proof of the session did not come through");
                Proof::Failed { why: error.to_string(), refused: !error.blames_member() }
            }
        };
        let period = if matches!(proof, Proof::Failed { .. }) { timing.proof_period / SOONER } else { timing.proof_period };
        let is_over = proof == Proof::Lost;
        if proofs.send(proof).await.is_err() || is_over {
            return;
        }
        sleep_until(begun + period).await;
    }
}

//! What of earlier sessions still lives: every driver is asked, and ends it, before anything is attested or offered.
//!
//! The wheel: before worker::desired. A driver that does not answer leaves its kind out of the registration, and nothing is attested: nobody knows what
//! it would have to end. It is asked again until it does.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use evenkeel_model::Registration;
use evenkeel_store::{LeasedKey, task::of_this_process};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::driver::{Driver, DriverError, Registry};

/// For how long an answer is waited for: a session that begins is held up by no more than this. An engine that lives answers within a second.
const ANSWER: Duration = Duration::from_secs(5);
/// The pause before a driver is asked again: who waits for its kind waits no longer than this, and an engine that starts is not asked without end.
const AGAIN: Duration = Duration::from_secs(5);
/// For one write of the registration, as for one of statuses.
const WRITE: Duration = Duration::from_secs(2);

/// The kinds whose drivers have not answered, and why not.
pub(crate) type Unanswered = BTreeMap<String, String>;

/// Asks these drivers, all at the same time.
pub(crate) async fn ask(drivers: impl Iterator<Item = Arc<dyn Driver>>) -> Unanswered {
    let (sender, mut answers) = mpsc::unbounded_channel();
    let mut unanswered = Unanswered::new();
    // Who is not waited for any more ends nothing: another session may have begun.
    let mut tasks = JoinSet::new();
    for driver in drivers {
        // One that panics has not answered.
        unanswered.insert(driver.kind().to_owned(), "it failed when it was asked".to_owned());
        let sender = sender.clone();
        tasks.spawn(of_this_process(async move {
            let answer = timeout(ANSWER, end_all(&*driver)).await;
            let _ = sender.send((driver.kind().to_owned(), answer));
        }));
    }
    drop(sender);
    while let Some((kind, answer)) = answers.recv().await {
        match answer {
            Ok(Ok(())) => unanswered.remove(&kind),
            Ok(Err(error)) => unanswered.insert(kind, error.to_string()),
            Err(_) => unanswered.insert(kind, format!("no answer within {} s", ANSWER.as_secs())),
        };
    }
    for (kind, why) in &unanswered {
        tracing::warn!(kind, why, "a driver does not say what of an earlier session still lives: its kind is not offered");
    }
    unanswered
}

/// Ends what lives until nothing does.
async fn end_all(driver: &dyn Driver) -> Result<(), DriverError> {
    loop {
        let survivors = driver.survivors().await?;
        if survivors.is_empty() {
            return Ok(());
        }
        for survivor in survivors {
            tracing::warn!(kind = driver.kind(), resource = %survivor.name, epoch = %survivor.epoch, id = survivor.id, "ending what an earlier session has left");
            driver.end(&survivor).await?;
        }
    }
}

/// Asks those that are not registered again until all have answered; registers and tells of each that has.
pub(super) async fn ask_on(
    registry: Registry,
    key: Arc<LeasedKey>,
    mut registration: Registration,
    sender: mpsc::Sender<Box<Registration>>,
) {
    loop {
        sleep(AGAIN).await;
        let waiting = registry.drivers().filter(|driver| !registration.kinds.iter().any(|kind| kind == driver.kind()));
        let unanswered = ask(waiting.cloned()).await;
        let offered = offer(&registry, &unanswered);
        if offered.0 != registration.kinds {
            (registration.kinds, registration.drivers) = offered;
            // What is registered is what the leader goes by: it is told only once it stands.
            while let Err(error) = key.update(serde_json::to_vec(&registration).unwrap_or_default(), WRITE).await {
                tracing::debug!(%error, "the kinds that are offered by now could not be registered");
                sleep(AGAIN).await;
            }
            if sender.send(Box::new(registration.clone())).await.is_err() {
                return;
            }
        }
        if unanswered.is_empty() {
            return;
        }
    }
}

/// The kinds that are offered, and what is said of their drivers.
pub(crate) fn offer(registry: &Registry, unanswered: &Unanswered) -> (Vec<String>, BTreeMap<String, evenkeel_model::DriverTraits>) {
    let mut offered = (registry.kinds(), registry.traits());
    offered.0.retain(|kind| !unanswered.contains_key(kind));
    offered.1.retain(|kind, _| !unanswered.contains_key(kind));
    offered
}

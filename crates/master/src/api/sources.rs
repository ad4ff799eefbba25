//! What people and programs are shown of sources, and what they may ask of one. The source itself decides.

use std::time::Duration;

use evenkeel_model::source::HeldDigest;
use evenkeel_proto::v1;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::Status;

use super::service::Service;
use crate::{
    control::request::Refusal,
    source::{self, NotReleased, Order, SourceHandle, State},
};

/// How long a source that has just begun may take to its first turn, before a caller gets UNAVAILABLE.
const FIRST_TURN: Duration = Duration::from_secs(5);

/// All sources: the one that the leader follows, if it follows one.
pub(super) async fn list(service: &Service) -> Result<Vec<v1::SourceState>, Status> {
    match &service.source {
        Some(handle) => Ok(vec![shown(handle, &turned(handle).await?)]),
        None => Ok(Vec::new()),
    }
}

pub(super) async fn get(service: &Service, name: &str) -> Result<v1::SourceState, Status> {
    let handle = find(service, name)?;
    Ok(shown(handle, &turned(handle).await?))
}

/// One turn, now.
pub(super) async fn sync(service: &Service, name: &str) -> Result<v1::SourceState, Status> {
    let handle = find(service, name)?;
    let (reply, answer) = oneshot::channel();
    order(handle, Order::Sync(reply))?;
    Ok(shown(handle, &answer.await.map_err(|_| Refusal::UnknownOutcome)?))
}

/// The deletes that are held under a digest are done, and no others.
pub(super) async fn release(service: &Service, name: &str, digest: &str) -> Result<v1::SourceState, Status> {
    let handle = find(service, name)?;
    let digest: HeldDigest = digest.parse().map_err(|_| {
        let shown: String = digest.chars().take(40).collect();
        Status::invalid_argument(format!("digest: invalid {shown:?}: sixteen hexadecimal digits, as the source shows them"))
    })?;
    let (reply, answer) = oneshot::channel();
    order(handle, Order::Release(digest, reply))?;
    let released = answer.await.map_err(|_| Refusal::UnknownOutcome)?;
    let state = released.map_err(|refusal: NotReleased| Status::failed_precondition(refusal.to_string()))?;
    Ok(shown(handle, &state))
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn find<'a>(service: &'a Service, name: &str) -> Result<&'a SourceHandle, Status> {
    let found = service.source.as_ref().filter(|_| name == source::NAME);
    found.ok_or_else(|| {
        let why = match (name, &service.source) {
            (source::NAME, None) => format!("; {}, which leads, was started without --resources", service.config.id),
            _ => String::new(),
        };
        Status::not_found(format!("no such source{why}"))
    })
}

/// The state after the first turn of this leader.
async fn turned(handle: &SourceHandle) -> Result<State, Status> {
    let mut state = handle.state.clone();
    match timeout(FIRST_TURN, state.wait_for(|state| state.has_turned)).await {
        Ok(Ok(state)) => Ok(state.clone()),
        Ok(Err(_)) | Err(_) => Err(Status::unavailable("the source has not been read yet since this master leads; try again")),
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn order(handle: &SourceHandle, order: Order) -> Result<(), Status> {
    handle.orders.try_send(order).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Status::from(Refusal::Busy),
        mpsc::error::TrySendError::Closed(_) => Status::from(Refusal::NotLeader),
    })
}

fn shown(handle: &SourceHandle, state: &State) -> v1::SourceState {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let count = |wanted: usize, done: usize| Some(v1::SourceCount { wanted: number(wanted), done: number(done) });
    let (word, reason) = match (&state.failure, state.held) {
        (Some(failure), _) => ("failing", failure.clone()),
        (None, Some((count, _))) => {
            let (present, records) = (state.present, state.records);
            (
                "held",
                format!(
                    "it has {records} records and lacks {count} of the {present} resources that came by it; release them by their digest, or mend it"
                ),
            )
        }
        (None, None) => ("ok", String::new()),
    };
    v1::SourceState {
        name: source::NAME.to_owned(),
        r#type: "file".to_owned(),
        path: handle.path.display().to_string(),
        state: word.to_owned(),
        reason,
        records: number(state.records),
        present: number(state.present),
        add: count(state.wanted.add, state.done.add),
        change: count(state.wanted.change, state.done.change),
        delete: count(state.wanted.delete, state.done.delete),
        held: state.held.map_or(0, |(count, _)| number(count)),
        invalid: 0,
        conflict: number(state.conflict),
        digest: state.held.map(|(_, digest)| digest.to_string()).unwrap_or_default(),
        last_success: state.last_success,
    }
}

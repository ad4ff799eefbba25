//! `evenkeel drain`: cordons a worker and moves what it runs; with `--wait` it ends when the last stop is confirmed, or names what cannot move.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use evenkeel_model::WorkerId;
use evenkeel_proto::v1::{DrainWorkerRequest, ListWorkersResponse, PlanRequest, WorkerState};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    ClientArgs, ClientError,
    nodes::{list_workers, told},
    session::Session,
};
use crate::{output, timing::span};

/// Between two looks at the worker.
const LOOK: Duration = Duration::from_millis(700);
/// After so many looks in which nothing but what cannot move is left, it is told that this is so.
const STUCK: u32 = 3;
/// How many of those are named.
const NAMED: usize = 10;

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The worker
    #[arg(value_name = "WORKER")]
    id: WorkerId,
    /// End only when it runs nothing more; exit status 1 when what is left cannot move
    #[arg(long)]
    wait: bool,
    /// After so long, what fits nowhere else is stopped; without it, that stays where it is
    #[arg(long, value_name = "SPAN", value_parser = span)]
    deadline: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: DrainArgs) -> Result<(), ClientError> {
    let id = args.id.as_str();
    let deadline_ms = args.deadline.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let request = DrainWorkerRequest { id: id.to_owned(), deadline_ms };
    let session = args.client.master.clone().session();
    let response = session.call(id, request, async |client, request| client.drain_worker(request).await).await?;
    if !args.wait {
        return told(&args.client, id, "draining", response.worker);
    }
    let bar = bar();
    let ended = tokio::select! {
        ended = wait(&session, id, args.deadline.is_some(), &bar) => ended,
        _ = tokio::signal::ctrl_c() => Err(ClientError::Failed(format!("{id}: the drain goes on; `evenkeel uncordon {id}` ends it"))),
    };
    bar.finish_and_clear();
    told(&args.client, id, "drained", ended?)
}

fn bar() -> ProgressBar {
    if !output::progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} moved  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// Until the worker runs nothing more; gives its last state, if it is still there.
async fn wait(session: &Session, id: &str, has_deadline: bool, bar: &ProgressBar) -> Result<Option<WorkerState>, ClientError> {
    let (mut most, mut stuck) = (0, 0);
    loop {
        let ListWorkersResponse { workers, brake, .. } = list_workers(session).await?;
        let Some(worker) = workers.into_iter().find(|w| w.id == id) else { return Ok(None) };
        if worker.resources == 0 {
            return Ok(Some(worker));
        }
        if !worker.draining {
            return Err(ClientError::Failed(format!("{id}: it is not being drained any more, and runs {}", worker.resources)));
        }
        if worker.phase == "lost" && !brake.is_empty() {
            let text = format!("{id}: it is gone, and the brake holds what it ran: {brake} (evenkeel brake release)");
            return Err(ClientError::Failed(text));
        }
        most = most.max(worker.resources);
        bar.set_length(most);
        bar.set_position(most - worker.resources);
        let left = left(session, id).await?;
        bar.set_message(if left.is_empty() { String::new() } else { format!("{} cannot move", left.len()) });
        stuck = if left.len() as u64 == worker.resources && !has_deadline { stuck + 1 } else { 0 };
        if stuck == STUCK {
            return Err(ClientError::Failed(stuck_text(id, &left)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What no other worker takes, and why.
async fn left(session: &Session, id: &str) -> Result<BTreeMap<String, String>, ClientError> {
    let plan = session.call("plan", PlanRequest::default(), async |client, request| client.plan(request).await).await?;
    let left = plan.undone.into_iter().filter(|undone| undone.worker == id && !undone.resource.is_empty());
    Ok(left.map(|undone| (undone.resource, undone.reason)).collect())
}

fn stuck_text(id: &str, left: &BTreeMap<String, String>) -> String {
    let mut text = format!("{id}: {} cannot move, and stay there:", left.len());
    for (resource, reason) in left.iter().take(NAMED) {
        text.push_str(&format!("\n  {}: {}", output::printable(resource), output::printable(reason)));
    }
    if left.len() > NAMED {
        text.push_str(&format!("\n  and {} more: `evenkeel plan` has all", left.len() - NAMED));
    }
    text.push_str(&format!(
        "\nthe drain goes on: make room for them, give a --deadline after which they are stopped, or end it by `evenkeel uncordon {id}`"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stuck_is_named() {
        let left = (0..12).map(|n| (format!("r{n:02}"), "no worker is ready".to_owned())).collect();
        let text = stuck_text("worker-1", &left);
        assert!(text.starts_with("worker-1: 12 cannot move, and stay there:\n  r00: no worker is ready\n"), "{text}");
        assert!(text.contains("\n  and 2 more: `evenkeel plan` has all\nthe drain goes on:"), "{text}");
    }
}

//! `evenkeel explain`: why a resource is where it is, or why it is nowhere.

use std::fmt::Write;

use clap::Args;
use evenkeel_model::ResourceName;
use evenkeel_proto::v1::{ExplainRequest, ExplainResponse};

use super::{ClientArgs, ClientError, convert, events, print_one};
use crate::output::{self, Row, Tone, age, or_dash};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The resource
    name: ResourceName,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: ExplainArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let name = args.name.to_string();
    let request = ExplainRequest { name: name.clone() };
    let response = session.call(&name, request, async |client, request| client.explain(request).await).await?;
    let value = convert::to_json("ExplainResponse", &response)?;
    print_one(format, &value, &name, || text(&name, &response, output::now_ns(), output::colour()))
}

fn text(name: &str, response: &ExplainResponse, now_ns: i64, colour: bool) -> String {
    let state = response.resource.clone().unwrap_or_default();
    let mut text = String::new();
    let since = if state.since == 0 { String::new() } else { format!(" for {}", age(state.since, now_ns)) };
    let phase = match state.worker.as_str() {
        // The summary says that it is nowhere, and why.
        "" if !response.summary.is_empty() => String::new(),
        "" => format!("{name} is {}{since}.", state.phase),
        worker => format!("{name} is {} on {worker}{since}.", state.phase),
    };
    for sentence in [&phase, &response.summary, &state.message] {
        if !sentence.is_empty() {
            let _ = writeln!(text, "{}", output::printable(sentence));
        }
    }
    if !response.failed.is_empty() {
        let rows: Vec<Row> = response.failed.iter().map(|f| Row::from([f.rule.clone(), f.workers.to_string(), f.reason.clone()])).collect();
        let _ = write!(text, "\nRules that workers break:\n{}", output::table(&["RULE", "WORKERS", "FOR EXAMPLE"], &rows, colour));
    }
    if !response.candidates.is_empty() {
        let rows: Vec<Row> = response.candidates.iter().map(candidate).collect();
        let _ =
            write!(text, "\nWorkers:\n{}", output::table(&["WORKER", "ELIGIBLE", "PLACE", "PAYLOAD", "WORTH", "REASON"], &rows, colour));
    }
    if !response.events.is_empty() {
        let _ = write!(text, "\nWhat happened:\n{}", events::table(&response.events));
    }
    text
}

fn candidate(candidate: &evenkeel_proto::v1::Candidate) -> Row {
    let eligible = if candidate.eligible { "yes" } else { "no" };
    let number = |n: u64| if n == 0 { "-".to_owned() } else { n.to_string() };
    let cells = vec![
        candidate.worker.clone(),
        eligible.to_owned(),
        number(candidate.place.into()),
        candidate.payload.to_string(),
        number(candidate.preference),
        or_dash(&candidate.reason),
    ];
    Row { cells, tone: if candidate.eligible { Tone::Plain } else { Tone::Waiting } }
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::{Candidate, Event, FailedRule, ResourceState};

    use super::*;

    #[test]
    fn it_reads_like_this() {
        let candidate = |worker: &str, reason: &str, payload| Candidate {
            worker: worker.to_owned(),
            eligible: reason.is_empty(),
            reason: reason.to_owned(),
            payload,
            place: u32::from(reason.is_empty()),
            preference: 0,
        };
        let event = Event {
            sequence: 1,
            time: 1_671_274_272_579_882_000,
            r#type: "added".to_owned(),
            resource: "a".to_owned(),
            ..Event::default()
        };
        let response = ExplainResponse {
            resource: Some(ResourceState { phase: "pending".to_owned(), ..ResourceState::default() }),
            summary: "No worker may run it.".to_owned(),
            candidates: vec![candidate("worker-1", "require gpu=true does not hold", 3), candidate("worker-2", "", 12)],
            events: vec![event],
            policy: "least-payload".to_owned(),
            failed: vec![FailedRule { rule: "require".to_owned(), reason: "require: gpu=true does not hold".to_owned(), workers: 1 }],
        };
        let expected = "\
No worker may run it.

Rules that workers break:
RULE      WORKERS   FOR EXAMPLE
require   1         require: gpu=true does not hold

Workers:
WORKER     ELIGIBLE   PLACE   PAYLOAD   WORTH   REASON
worker-1   no         -             3   -       require gpu=true does not hold
worker-2   yes        1            12   -       -

What happened:
TIME                       TYPE    RESOURCE   WORKER   REASON
2022-12-17T10:51:12.579Z   added   a          -
";
        assert_eq!(text("a", &response, 0, false), expected);
        let running =
            ResourceState { phase: "running".to_owned(), worker: "worker-1".to_owned(), since: 1_000_000_000, ..ResourceState::default() };
        let response =
            ExplainResponse { resource: Some(running), summary: "It stays where it is.".to_owned(), ..ExplainResponse::default() };
        assert_eq!(text("a", &response, 6_000_000_000, false), "a is running on worker-1 for 5s.\nIt stays where it is.\n");
    }
}

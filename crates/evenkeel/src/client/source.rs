//! `evenkeel source`: the inventories that the leader keeps the cluster in sync with, and the release of deletes that it holds.

use std::time::Duration;

use clap::{Args, Subcommand};
use evenkeel_proto::v1::{
    GetSourceRequest, ListSourcesRequest, ReleaseSourceRequest, ReleaseSourceResponse, SourceCount, SourceState, SyncSourceRequest,
};
use serde_json::{Value, json};
use tonic::Code;

use super::{
    ClientArgs, ClientError, Listing, print_list, print_one,
    session::{Answer, Session},
};
use crate::output::{self, Row, Tone, or_dash};

/// How long a turn may take that deletes or adds very many.
const TURN: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all sources
    Ls {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one source: what it has, what was done, and what is held
    Get {
        /// The source; --resources FILE of a master is the source `file`
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Run one turn now; exit status 1 if it failed
    Sync {
        /// The source
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Do the deletes that are held under a digest, once
    Release {
        /// The source
        name: String,
        /// What `source get` shows; another set of deletes has another digest
        digest: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(crate) async fn run(args: SourceArgs) -> Result<(), ClientError> {
    match args.action {
        Action::Ls { client } => ls(client).await,
        Action::Get { name, client } => {
            let session = client.master.clone().session();
            let request = GetSourceRequest { name: name.clone() };
            let answer = session.call(&name, request, async |client, request| client.get_source(request).await).await?;
            show(&client, answer.source)
        }
        Action::Sync { name, client } => {
            let session = client.master.clone().session();
            let request = SyncSourceRequest { name: name.clone() };
            let answer = session.ask_within(TURN, &name, request, async |client, request| client.sync_source(request).await).await;
            let source = answer.result?.source.unwrap_or_default();
            let failure = (source.state == "failing").then(|| source.reason.clone());
            show(&client, Some(source))?;
            failure.map_or(Ok(()), |reason| Err(ClientError::Failed(format!("{name}: {reason}"))))
        }
        Action::Release { name, digest, client } => {
            let session = client.master.clone().session();
            let request = ReleaseSourceRequest { name: name.clone(), digest };
            let answer = session.ask_within(TURN, &name, request, async |client, request| client.release_source(request).await).await;
            show(&client, released(&session, &name, answer).await?)
        }
    }
}

/// When a try was lost on the way and the next finds nothing held, the lost one did it.
async fn released(session: &Session, name: &str, answer: Answer<ReleaseSourceResponse>) -> Result<Option<SourceState>, ClientError> {
    match answer.result {
        Ok(answer) => Ok(answer.source),
        Err(error) if answer.retried && error.is(Code::FailedPrecondition) => {
            let request = GetSourceRequest { name: name.to_owned() };
            let source = session.call(name, request, async |client, request| client.get_source(request).await).await?.source;
            if source.as_ref().is_some_and(|source| source.state == "ok") { Ok(source) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

async fn ls(client: ClientArgs) -> Result<(), ClientError> {
    let session = client.master.session();
    let request = ListSourcesRequest {};
    let sources = session.call("sources", request, async |client, request| client.list_sources(request).await).await?.sources;
    let listing = Listing { values: sources.iter().map(value).collect(), names: sources.iter().map(|s| s.name.as_str()).collect() };
    print_list(client.output.output, listing, || table(&sources))
}

fn show(client: &ClientArgs, source: Option<SourceState>) -> Result<(), ClientError> {
    let source = source.unwrap_or_default();
    print_one(client.output.output, &value(&source), &source.name, || {
        let mut text = table(std::slice::from_ref(&source));
        if !source.reason.is_empty() {
            text.push_str(&format!("\n{}: {}\n", source.state, output::printable(&source.reason)));
        }
        if !source.digest.is_empty() {
            text.push_str(&format!("to delete what is held: evenkeel source release {} {}\n", source.name, source.digest));
        }
        text
    })
}

/// Every field, also those that are 0: a program asks for `held` whether anything is held or not.
fn value(source: &SourceState) -> Value {
    let count = |count: Option<SourceCount>| {
        let SourceCount { wanted, done } = count.unwrap_or_default();
        json!({"wanted": wanted, "done": done})
    };
    json!({
        "name": source.name, "type": source.r#type, "path": source.path, "state": source.state, "reason": source.reason,
        "records": source.records, "present": source.present, "add": count(source.add), "change": count(source.change),
        "delete": count(source.delete), "held": source.held, "invalid": source.invalid, "conflict": source.conflict, "digest": source.digest,
        "lastSuccess": source.last_success.to_string(),
    })
}

fn table(sources: &[SourceState]) -> String {
    let headers = ["NAME", "TYPE", "STATE", "RECORDS", "PRESENT", "ADD", "CHANGE", "DELETE", "HELD", "CONFLICT", "DIGEST"];
    output::table(&headers, &sources.iter().map(row).collect::<Vec<_>>(), output::colour())
}

fn row(source: &SourceState) -> Row {
    let count = |count: Option<SourceCount>| {
        let SourceCount { wanted, done } = count.unwrap_or_default();
        format!("{done}/{wanted}")
    };
    let tone = match source.state.as_str() {
        "ok" => Tone::Plain,
        "held" => Tone::Waiting,
        _ => Tone::Trouble,
    };
    let cells = vec![
        source.name.clone(),
        source.r#type.clone(),
        source.state.clone(),
        source.records.to_string(),
        source.present.to_string(),
        count(source.add),
        count(source.change),
        count(source.delete),
        source.held.to_string(),
        source.conflict.to_string(),
        or_dash(&source.digest),
    ];
    Row { cells, tone }
}

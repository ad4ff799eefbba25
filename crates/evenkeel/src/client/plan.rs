//! `evenkeel plan`: what the leader would do now, and what it leaves undone and why.

use clap::Args;
use evenkeel_proto::v1::{PlanRequest, PlanResponse, PlannedAction, Undone};

use super::{ClientArgs, ClientError, convert, print_one};
use crate::output::{self, Format, Row, Tone, or_dash};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: PlanArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let response = session.call("plan", PlanRequest {}, async |client, request| client.plan(request).await).await?;
    if format == Format::Name {
        let names = response.actions.iter().map(|a| a.resource.as_str()).filter(|name| !name.is_empty());
        let names: String = names.map(|name| format!("{name}\n")).collect();
        return Ok(output::write(names.as_bytes())?);
    }
    let mut value = convert::to_json("PlanResponse", &response)?;
    // Both lists stand there even when they are empty, so that a script can count them.
    if let Some(fields) = value.as_object_mut() {
        for list in ["actions", "undone"] {
            fields.entry(list).or_insert_with(|| serde_json::json!([]));
        }
    }
    print_one(format, &value, "", || text(&response, output::colour()))
}

fn text(response: &PlanResponse, colour: bool) -> String {
    if response.actions.is_empty() && response.undone.is_empty() {
        return "nothing is to be done\n".to_owned();
    }
    let mut text = String::new();
    if !response.actions.is_empty() {
        let rows: Vec<Row> = response.actions.iter().map(action).collect();
        text.push_str(&output::table(&["ACTION", "RESOURCE", "WORKER", "TO", "REASON"], &rows, colour));
    }
    if !response.undone.is_empty() {
        let rows: Vec<Row> = response.undone.iter().map(undone).collect();
        let gap = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!("{gap}Left undone:\n{}", output::table(&["RESOURCE", "WORKER", "REASON"], &rows, colour)));
    }
    text
}

fn action(action: &PlannedAction) -> Row {
    Row::from([action.action.clone(), or_dash(&action.resource), or_dash(&action.worker), or_dash(&action.to), action.reason.clone()])
}

fn undone(undone: &Undone) -> Row {
    Row { cells: vec![or_dash(&undone.resource), or_dash(&undone.worker), undone.reason.clone()], tone: Tone::Waiting }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_like_this() {
        assert_eq!(text(&PlanResponse::default(), false), "nothing is to be done\n");
        let action = PlannedAction {
            action: "move".to_owned(),
            resource: "a".to_owned(),
            worker: "worker-1".to_owned(),
            to: "worker-2".to_owned(),
            reason: "rebalance".to_owned(),
        };
        let undone = Undone { resource: "b".to_owned(), worker: String::new(), reason: "no worker has gpu=true".to_owned() };
        let expected = "\
ACTION   RESOURCE   WORKER     TO         REASON
move     a          worker-1   worker-2   rebalance

Left undone:
RESOURCE   WORKER   REASON
b          -        no worker has gpu=true
";
        assert_eq!(text(&PlanResponse { actions: vec![action], undone: vec![undone] }, false), expected);
    }
}

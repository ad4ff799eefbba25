//! `evenkeel plan`: what the leader does next and what it leaves undone, or what it would do if something were so; each with its reason.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use evenkeel_model::{Definition, ResourceName, WorkerId};
use evenkeel_proto::v1::{PlanRequest, PlanResponse, PlannedAction, PlannedTaskAction, Undone, plan_request::Suppose};

use super::{ClientArgs, ClientError, add, convert, print_one};
use crate::files;
use crate::output::{self, Format, Row, Tone, or_dash};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    suppose: Option<SupposeArgs>,
    #[command(flatten)]
    client: ClientArgs,
}

/// What is taken to be so. Nothing is changed.
#[derive(Debug, Subcommand)]
enum SupposeArgs {
    /// If this resource were added
    Add {
        #[command(flatten)]
        resource: Box<add::ResourceArgs>,
        /// The resource of this name in this file, instead of flags
        #[arg(short, long, value_name = "FILE", conflicts_with_all = ["kind", "weight", "label", "require", "pin", "spec", "prefer", "spread", "together", "apart", "policy", "rebalance", "ownership", "command"])]
        file: Option<PathBuf>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// If the worker were cordoned
    Cordon(SupposedWorker),
    /// If the worker were uncordoned
    Uncordon(SupposedWorker),
    /// If the worker were drained
    Drain(SupposedWorker),
    /// If the worker were gone for good
    Lose(SupposedWorker),
    /// If balance waited for nothing
    Rebalance {
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Args)]
struct SupposedWorker {
    /// The worker
    #[arg(value_name = "WORKER")]
    id: WorkerId,
    #[command(flatten)]
    client: ClientArgs,
}

impl PlanArgs {
    fn request(self) -> Result<(Option<Suppose>, ClientArgs), ClientError> {
        let of = |supposed: SupposedWorker, suppose: fn(String) -> Suppose| (Some(suppose(supposed.id.to_string())), supposed.client);
        Ok(match self.suppose {
            None => (None, self.client),
            Some(SupposeArgs::Add { resource, file, client }) => {
                resource.warn_of_own_flags(&["plan", "add"]);
                let definition = match file {
                    None => resource.definition()?,
                    Some(file) => named_in(&file, resource.name())?,
                };
                (Some(Suppose::Add(convert::to_resource(&definition)?)), client)
            }
            Some(SupposeArgs::Cordon(worker)) => of(worker, Suppose::Cordon),
            Some(SupposeArgs::Uncordon(worker)) => of(worker, Suppose::Uncordon),
            Some(SupposeArgs::Drain(worker)) => of(worker, Suppose::Drain),
            Some(SupposeArgs::Lose(worker)) => of(worker, Suppose::Lose),
            Some(SupposeArgs::Rebalance { client }) => (Some(Suppose::Rebalance(true)), client),
        })
    }
}

fn named_in(file: &std::path::Path, name: &ResourceName) -> Result<Definition, ClientError> {
    let mut definitions = files::read_resources(file)?;
    let found = definitions.remove(name);
    found.ok_or_else(|| ClientError::Usage(format!("{}: has no resource {name}; give a name that stands in it", file.display())))
}

pub(crate) async fn run(args: PlanArgs) -> Result<(), ClientError> {
    let (suppose, client) = args.request()?;
    let format = client.output.output;
    let session = client.master.session();
    let response = session.call("plan", PlanRequest { suppose }, async |client, request| client.plan(request).await).await?;
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
    let (actions, tasks, undone) = (&response.actions, &response.task_actions, &response.undone);
    if actions.is_empty() && tasks.is_empty() && undone.is_empty() && response.brake.is_empty() {
        return "nothing is to be done\n".to_owned();
    }
    let mut parts = Vec::new();
    if !response.brake.is_empty() {
        parts.push(format!("The brake holds: {}\n", response.brake));
    }
    if !actions.is_empty() {
        let rows: Vec<Row> = actions.iter().map(action).collect();
        parts.push(output::table(&["ACTION", "RESOURCE", "WORKER", "TO", "REASON"], &rows, colour));
    }
    if !tasks.is_empty() {
        let rows: Vec<Row> = tasks.iter().map(task_action).collect();
        parts.push(output::table(&["ACTION", "TASK", "WORKER", "ATTEMPT", "REASON"], &rows, colour));
    }
    if !undone.is_empty() {
        let rows: Vec<Row> = undone.iter().map(left_undone).collect();
        parts.push(format!("Left undone:\n{}", output::table(&["RESOURCE", "WORKER", "REASON"], &rows, colour)));
    }
    if response.more_actions + response.more_undone > 0 {
        parts.push(format!(
            "and {} actions and {} undone more
",
            response.more_actions, response.more_undone
        ));
    }
    parts.join(
        "
",
    )
}

fn action(action: &PlannedAction) -> Row {
    Row::from([action.action.clone(), or_dash(&action.resource), or_dash(&action.worker), or_dash(&action.to), action.reason.clone()])
}

fn task_action(action: &PlannedTaskAction) -> Row {
    let attempt = if action.attempt == 0 { "-".to_owned() } else { action.attempt.to_string() };
    Row::from([action.action.clone(), action.task.to_string(), or_dash(&action.worker), attempt, action.reason.clone()])
}

fn left_undone(undone: &Undone) -> Row {
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
        let mut response = PlanResponse { actions: vec![action], undone: vec![undone], ..PlanResponse::default() };
        assert_eq!(text(&response, false), expected);
        response.brake = "2 of 3 workers are gone".to_owned();
        assert_eq!(text(&response, false), format!("The brake holds: 2 of 3 workers are gone\n\n{expected}"));
        response.actions.clear();
        let (_, undone) = expected.split_once("\n\n").expect("two parts");
        assert_eq!(text(&response, false), format!("The brake holds: 2 of 3 workers are gone\n\n{undone}"));
        response.undone.clear();
        assert_eq!(text(&response, false), "The brake holds: 2 of 3 workers are gone\n");
        let order = PlannedTaskAction {
            action: "order".to_owned(),
            task: 7,
            worker: "worker-1".to_owned(),
            attempt: 1,
            reason: "its turn has come".to_owned(),
        };
        let done = PlannedTaskAction { action: "done".to_owned(), task: 6, ..PlannedTaskAction::default() };
        let response = PlanResponse { task_actions: vec![order, done], ..PlanResponse::default() };
        let expected = "\
ACTION   TASK   WORKER     ATTEMPT   REASON
order    7      worker-1   1         its turn has come
done     6      -          -
";
        assert_eq!(text(&response, false), expected);
    }
}

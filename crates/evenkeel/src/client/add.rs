//! `evenkeel add`: one resource from flags.

use clap::{Args, CommandFactory};
use evenkeel_model::{Definition, Draft, ResourceName, Selector, WorkerId, process::KIND as PROCESS};
use evenkeel_proto::v1::{AddResourceRequest, ResourceState};
use serde_json::{Map, Value, json};

use super::{ClientArgs, ClientError, convert, print_one, selector};
use crate::{cli::Cli, output::printable, settings};

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    resource: ResourceArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// One resource.
#[derive(Debug, Args)]
pub(crate) struct ResourceArgs {
    /// Its name: 1 to 253 of A-Z a-z 0-9 . _ -, beginning with a letter or digit
    name: ResourceName,
    /// The driver's kind; without it the workers' catalog says what the name means
    #[arg(long, value_name = "K")]
    kind: Option<ResourceName>,
    /// Its share of a worker
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    weight: Option<u64>,
    /// A label of the resource; many times, or with commas
    #[arg(long, value_name = "K=V", value_delimiter = ',', value_parser = settings::label)]
    label: Vec<(String, String)>,
    /// The labels that a worker must have
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    require: Option<Selector>,
    /// The only worker that may run it
    #[arg(long, value_name = "WORKER")]
    pin: Option<WorkerId>,
    /// What the driver is given, as a JSON object
    #[arg(long, value_name = "JSON", value_parser = spec)]
    spec: Option<Map<String, Value>>,
    /// Labels that a worker should have, and what that is worth in payload: SELECTOR=>N; many times
    #[arg(long, value_name = "SELECTOR[=>N]", value_parser = preference)]
    prefer: Vec<(Selector, u64)>,
    /// The label of workers over whose values it is spread with those that have the same labels
    #[arg(long, value_name = "LABEL")]
    spread: Option<String>,
    /// Only where another resource is that has these labels
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    together: Option<Selector>,
    /// Nowhere where another resource is that has these labels
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    apart: Option<Selector>,
    /// How a worker is chosen for it; without it, by the cluster's policy
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Whether balance may move it: auto or never
    #[arg(long, value_name = "WHETHER")]
    rebalance: Option<String>,
    /// exclusive, or available: moved as soon as its worker's lease is gone, accepting an overlap
    #[arg(long, value_name = "HOW")]
    ownership: Option<String>,
    /// The command that is to run; it implies the kind process
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn spec(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("is JSON, but no object; write {\"KEY\": VALUE}".to_owned()),
        Err(e) => Err(format!("is no JSON: {e}")),
    }
}

pub(crate) async fn run(args: AddArgs) -> Result<(), ClientError> {
    args.resource.warn_of_own_flags(&["add"]);
    let format = args.client.output.output;
    let session = args.client.master.clone().session();
    let definition = args.resource.definition()?;
    let name = definition.name.to_string();
    let request = AddResourceRequest { resource: Some(convert::to_resource(&definition)?) };
    let answer = session.ask(&name, request, async |client, request| client.add_resource(request).await).await;
    let response = answer.result?;
    let state = response.resource.unwrap_or_default();
    // After a second try nobody can say which of the two it was that added it.
    let added = response.created || answer.retried;
    let value = convert::to_json("ResourceState", &state)?;
    print_one(format, &value, &name, || sentence(&name, added, &state))
}

/// `disk=ssd=>10`; without a worth it is 1.
fn preference(text: &str) -> Result<(Selector, u64), String> {
    let (labels, worth) = text.rsplit_once("=>").unwrap_or((text, "1"));
    let worth = worth.trim().parse().map_err(|_| format!("{worth:?} is no whole number; write SELECTOR=>10"))?;
    Ok((selector(labels)?, worth))
}

impl ResourceArgs {
    pub(crate) fn name(&self) -> &ResourceName {
        &self.name
    }

    /// Says so where the COMMAND has flags of the subcommand itself, which were perhaps meant for it. What was asked for is done.
    pub(super) fn warn_of_own_flags(&self, subcommand: &[&str]) {
        let whole = Cli::command();
        let subcommand = subcommand.iter().try_fold(&whole, |command, name| command.find_subcommand(name));
        let flags: Vec<&str> =
            subcommand.map(|command| command.get_arguments().filter_map(clap::Arg::get_long).collect()).unwrap_or_default();
        if let Some(warning) = own_flags(&self.command, &flags) {
            eprintln!("warning: {}", printable(&warning));
        }
    }

    /// The definition that the flags make.
    ///
    /// # Errors
    /// The field and the rule that it breaks.
    pub(crate) fn definition(&self) -> Result<Definition, ClientError> {
        draft(self)?.check().map_err(|e| ClientError::Usage(e.to_string()))
    }
}

/// What is said of a command that has some of these long flags, alone or with a value.
fn own_flags(command: &[String], flags: &[&str]) -> Option<String> {
    let own = |word: &&String| word.strip_prefix("--").is_some_and(|flag| flags.contains(&flag.split('=').next().unwrap_or_default()));
    let found: Vec<&str> = command.iter().filter(own).map(String::as_str).collect();
    let passed = if found.len() == 1 { "stands after -- and is" } else { "stand after -- and are" };
    let them = if found.len() == 1 { "it" } else { "them" };
    (!found.is_empty())
        .then(|| format!("{} {passed} passed to the command; put {them} before -- to give {them} to evenkeel", found.join(", ")))
}

fn draft(args: &ResourceArgs) -> Result<Draft, ClientError> {
    let kind = args.kind.as_ref().map(ToString::to_string);
    let mut spec = args.spec.clone();
    if !args.command.is_empty() {
        if kind.as_deref().is_some_and(|kind| kind != PROCESS) {
            return Err(ClientError::Usage(format!("a COMMAND is for --kind {PROCESS}; leave --kind out")));
        }
        let command = Value::from(args.command.clone());
        if spec.get_or_insert_default().insert("command".to_owned(), command).is_some() {
            return Err(ClientError::Usage("--spec has a command already, and another stands after --; give one of them".to_owned()));
        }
    }
    let kind = kind.or_else(|| (!args.command.is_empty()).then(|| PROCESS.to_owned()));
    Ok(Draft {
        name: args.name.to_string(),
        kind: kind.unwrap_or_default(),
        weight: args.weight,
        labels: settings::labels(&args.label).map_err(ClientError::Usage)?,
        require: args.require.as_ref().map(ToString::to_string).unwrap_or_default(),
        pin: args.pin.as_ref().map(ToString::to_string).unwrap_or_default(),
        spec: spec.map(Value::Object),
        prefer: args.prefer.iter().map(|(selector, weight)| json!({ "selector": selector.to_string(), "weight": weight })).collect(),
        spread: args.spread.clone().unwrap_or_default(),
        together: args.together.as_ref().map(ToString::to_string).unwrap_or_default(),
        apart: args.apart.as_ref().map(ToString::to_string).unwrap_or_default(),
        policy: args.policy.clone().unwrap_or_default(),
        rebalance: args.rebalance.clone().unwrap_or_default(),
        ownership: args.ownership.clone().unwrap_or_default(),
    })
}

/// `task-test-4 added on worker-2 (127.0.0.1:9090)`, or why it is nowhere yet.
fn sentence(name: &str, added: bool, state: &ResourceState) -> String {
    let done = if added { "added" } else { "already exists, unchanged," };
    if !added && matches!(state.phase.as_str(), "exited" | "failed") {
        let (phase, worker, message) = (&state.phase, &state.worker, &state.message);
        return format!(
            "{name} {done} and has finished: it {phase} on {worker} ({message}); another spec, or to delete it first, runs it again\n"
        );
    }
    let place = match (state.worker.as_str(), state.reason.as_str()) {
        ("", "") => "pending: no worker was chosen yet".to_owned(),
        ("", reason) => format!("pending: {reason}"),
        (worker, _) => return format!("{name} {done} on {worker} ({})\n", state.address),
    };
    format!("{name} {} {place}\n", if added { "added," } else { done })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{cli::Command, client};

    fn parsed(line: &[&str]) -> Result<Value, String> {
        let line = ["evenkeel", "add"].iter().chain(line);
        match Cli::try_parse_from(line).map_err(|e| e.to_string())?.command {
            Command::Client(client::Command::Add(args)) => {
                let draft = args.resource.definition().map_err(|e| e.to_string())?.to_draft();
                serde_json::to_value(draft).map_err(|e| e.to_string())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_definition() {
        let line = [
            "a",
            "--weight",
            "2",
            "--label",
            "x=y,z=1",
            "--require",
            "gpu = true",
            "--pin",
            "w-1",
            "--spec",
            r#"{"cwd":"/"}"#,
            "--",
            "sleep",
            "-x",
        ];
        let expected = json!({"name": "a", "kind": "process", "weight": 2, "labels": {"x": "y", "z": "1"}, "require": "gpu=true", "pin": "w-1",
            "spec": {"command": ["sleep", "-x"], "cwd": "/"}});
        assert_eq!(parsed(&line), Ok(expected));
        let line = ["a", "--prefer", "disk=ssd=>10", "--prefer", "gpu", "--spread", "zone", "--together", "app=db", "--apart", "app=web"];
        let expected = json!({"name": "a", "prefer": [{"selector": "disk=ssd", "weight": 10}, {"selector": "gpu", "weight": 1}],
            "spread": "zone", "together": "app=db", "apart": "app=web", "policy": "pack"});
        assert_eq!(parsed(&[&line[..], &["--policy", "pack"]].concat()), Ok(expected));
        assert_eq!(parsed(&["a"]), Ok(json!({"name": "a"})));
        assert_eq!(parsed(&["a", "--kind", "noop"]), Ok(json!({"name": "a", "kind": "noop"})));
    }

    #[test]
    fn flags_after_the_dashes_are_warned_of() {
        let warned = |words: &[&str]| own_flags(&words.iter().map(ToString::to_string).collect::<Vec<_>>(), &["weight", "pin"]);
        let one = "--weight stands after -- and is passed to the command; put it before -- to give it to evenkeel";
        assert_eq!(warned(&["crawl", "--weight", "3"]).as_deref(), Some(one));
        let two = "--weight=3, --pin stand after -- and are passed to the command; put them before -- to give them to evenkeel";
        assert_eq!(warned(&["crawl", "--weight=3", "--pin", "w"]).as_deref(), Some(two));
        for harmless in [&["crawl", "--weights", "-weight", "weight", "--", "--we"][..], &["--"], &[]] {
            assert_eq!(warned(harmless), None, "{harmless:?}");
        }
    }

    #[test]
    fn the_sentence_tells_where_it_runs() {
        let on = ResourceState { worker: "worker-2".to_owned(), address: "127.0.0.1:9090".to_owned(), ..ResourceState::default() };
        let nowhere = ResourceState { reason: "no worker is ready".to_owned(), ..ResourceState::default() };
        assert_eq!(sentence("a", true, &on), "a added on worker-2 (127.0.0.1:9090)\n");
        assert_eq!(sentence("a", false, &on), "a already exists, unchanged, on worker-2 (127.0.0.1:9090)\n");
        assert_eq!(sentence("a", true, &nowhere), "a added, pending: no worker is ready\n");
        assert_eq!(sentence("a", false, &nowhere), "a already exists, unchanged, pending: no worker is ready\n");
        let message = "exit status 0".to_owned();
        let finished = ResourceState { phase: "exited".to_owned(), worker: "w".to_owned(), message, ..ResourceState::default() };
        assert_eq!(
            sentence("a", false, &finished),
            "a already exists, unchanged, and has finished: it exited on w (exit status 0); another spec, or to delete it first, runs it again\n"
        );
    }
}

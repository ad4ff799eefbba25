//! `evenkeel apply`: brings the cluster to what files say. Everything is read and checked before anything is sent.
//!
//! The diff is the one that every source shares. Adds and changes go as one stream, deletes side by side.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use evenkeel_model::{
    Definition, DriverTraits, Ownership, ResourceName, Selector, builtin,
    diff::{Change, Counts, Diff, diff},
};
use evenkeel_proto::v1::{AddResourcesRequest, AddResourcesResponse, ResourceState, WorkerState};
use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{
    ClientArgs, ClientError, convert,
    delete::delete,
    error, get, nodes, selector,
    session::{Ended, Session},
};
use crate::{
    files,
    output::{self, Format},
};

/// Deletes under way at once.
const DELETES_AT_ONCE: usize = 64;
/// From this many on a progress bar is worth its place.
const MANY: usize = 50;
/// Without any answer for so long a stream is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// Of each kind, so many names are listed by --dry-run.
const REFUSED_SHOWN: usize = 50;

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A file of resources, a folder with *.yaml, *.yml and *.json, or - for stdin
    #[arg(short, long, value_name = "FILE|DIR|-")]
    filename: PathBuf,
    /// Delete what matches -l and is not in the files
    #[arg(long, requires = "selector")]
    prune: bool,
    /// Which resources --prune may delete
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector, requires = "prune")]
    selector: Option<Selector>,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// What came of it.
#[derive(Default)]
struct Done {
    counts: Counts,
    /// Name and reason.
    refused: Vec<(String, String)>,
}

pub(crate) async fn run(args: ApplyArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let wanted = files::read_resources(&args.filename)?;
    if args.prune && args.selector.as_ref().is_none_or(|s| s.to_string().is_empty()) {
        return Err(ClientError::Usage(
            "--prune with an empty -l would delete every resource that is not in the files; name a label".to_owned(),
        ));
    }
    let states = get::list(&session, "").await?;
    let stands = standing(&states)?;
    let mut diff = diff(&stands, &wanted);
    let prune = args.selector.filter(|_| args.prune);
    diff.delete.retain(|definition| prune.as_ref().is_some_and(|selector| selector.matches(&definition.labels)));
    if format.is_table() {
        println_flushed(&diff.counts().to_string())?;
    }
    if args.dry_run {
        let changes_work = diff.change.iter().any(Change::changes_work);
        let workers = if changes_work { nodes::list_workers(&session).await?.workers } else { Vec::new() };
        return show(&diff, &Runs::of(&states, &workers), format);
    }
    let started = Instant::now();
    let done = carry_out(&session, &diff).await?;
    report(&diff, &done, format, started.elapsed())
}

fn println_flushed(line: &str) -> Result<(), ClientError> {
    Ok(output::write(format!("{line}\n").as_bytes())?)
}

fn standing(states: &[ResourceState]) -> Result<BTreeMap<ResourceName, Definition>, ClientError> {
    let definitions = states.iter().filter_map(|state| state.resource.as_ref()).map(convert::to_definition);
    definitions.map(|definition| definition.map(|d| (d.name.clone(), d))).collect::<Result<_, _>>().map_err(ClientError::from)
}

/// What runs, and on which worker: that says what a change does to it.
struct Runs<'a> {
    states: HashMap<&'a str, &'a ResourceState>,
    workers: HashMap<&'a str, &'a WorkerState>,
}

impl<'a> Runs<'a> {
    fn of(states: &'a [ResourceState], workers: &'a [WorkerState]) -> Self {
        let states = states.iter().filter_map(|state| Some((state.resource.as_ref()?.name.as_str(), state))).collect();
        Self { states, workers: workers.iter().map(|worker| (worker.id.as_str(), worker)).collect() }
    }

    /// Its worker takes the change while the work runs, by what is known now. The leader decides when it is asked to.
    fn takes_in_place(&self, change: &Change<'_>) -> bool {
        let is_held_well = |state: &&&ResourceState| state.holds != "loose" || change.new.ownership == Ownership::Available;
        let state = self
            .states
            .get(change.new.name.as_str())
            .filter(|state| !matches!(state.phase.as_str(), "exited" | "failed" | "stopping"))
            .filter(is_held_well);
        let worker = state.and_then(|state| self.workers.get(state.worker.as_str())).filter(|worker| worker.phase == "ready");
        let driver = worker.and_then(|worker| worker.drivers.get(&*change.new.kind));
        driver.is_some_and(|driver| change.is_in_place(DriverTraits { updates: driver.updates, ..DriverTraits::default() }))
    }

    fn restarts(&self, change: &Change<'_>) -> bool {
        change.changes_work() && !self.takes_in_place(change)
    }
}

/// `--dry-run`: each name with what would be done.
fn show(diff: &Diff<'_>, runs: &Runs<'_>, format: Format) -> Result<(), ClientError> {
    let names = |definitions: &[&Definition]| definitions.iter().map(|d| d.name.to_string()).collect::<Vec<_>>();
    let change = |change: &Change<'_>| {
        let in_place = change.changes_work() && runs.takes_in_place(change);
        json!({"name": change.new.name.as_str(), "fields": change.fields(), "restarts": runs.restarts(change), "in_place": in_place})
    };
    let value = json!({
        "add": names(&diff.add), "change": diff.change.iter().map(change).collect::<Vec<_>>(), "delete": names(&diff.delete), "unchanged": diff.unchanged,
    });
    let text = match format {
        Format::Json => output::json(&value),
        Format::Yaml => output::yaml(&value),
        Format::Table | Format::Wide => plan_text(diff, runs),
        Format::Name => touched(diff).map(|name| format!("{name}\n")).collect(),
    };
    Ok(output::write(text.as_bytes())?)
}

fn touched<'a>(diff: &'a Diff<'_>) -> impl Iterator<Item = &'a ResourceName> {
    let changed = diff.change.iter().map(|change| &change.new.name);
    diff.add.iter().map(|d| &d.name).chain(changed).chain(diff.delete.iter().map(|d| &d.name))
}

fn plan_text(diff: &Diff<'_>, runs: &Runs<'_>) -> String {
    let added = diff.add.iter().map(|d| format!("+ {}\n", d.name));
    let effect = |change: &Change<'_>| match (change.changes_work(), runs.takes_in_place(change)) {
        (false, _) => "",
        // What a change of other kinds does only their drivers know.
        (true, true) if builtin::of(&change.new.kind).is_none() => "; its driver takes it in place, or restarts it",
        (true, true) => "; taken in place",
        (true, false) => "; restarts it",
    };
    let changed = diff.change.iter().map(|c| format!("~ {} ({}{})\n", c.new.name, c.fields().join(", "), effect(c)));
    let deleted = diff.delete.iter().map(|d| format!("- {}\n", d.name));
    added.chain(changed).chain(deleted).collect()
}

async fn carry_out(session: &Session, diff: &Diff<'_>) -> Result<Done, ClientError> {
    let total = diff.add.len() + diff.change.len() + diff.delete.len();
    let bar = bar(total);
    let mut done = Done { counts: Counts { unchanged: diff.unchanged, ..Counts::default() }, ..Done::default() };
    let sent = send(session, diff, &mut done, &bar).await;
    if sent.is_ok() {
        remove(session, diff, &mut done, &bar).await;
    }
    bar.finish_and_clear();
    sent.map(|()| done)
}

fn bar(total: usize) -> ProgressBar {
    if total < MANY || !output::progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style)
}

/// Adds and changes, as one stream. When it breaks, what has no answer yet is sent once more: the same content again has no effect.
async fn send(session: &Session, diff: &Diff<'_>, done: &mut Done, bar: &ProgressBar) -> Result<(), ClientError> {
    let request = |definition: &Definition, replace| -> Result<_, ClientError> {
        Ok(AddResourcesRequest { resource: Some(convert::to_resource(definition)?), replace, ..AddResourcesRequest::default() })
    };
    let added = diff.add.iter().map(|definition| request(definition, false));
    let changed = diff.change.iter().map(|change| request(change.new, true));
    let requests: Vec<AddResourcesRequest> = added.chain(changed).collect::<Result<_, _>>()?;
    let mut answered = 0;
    let mut failures = 0;
    while answered < requests.len() {
        let before = answered;
        let result = stream_some(session, &requests[answered..], |answer| {
            count(answer, requests[answered].replace, failures > 0, done);
            answered += 1;
            bar.inc(1);
        });
        let Err(ended) = result.await else { break };
        let (error, silent) = match ended {
            Ended::Passing { error, silent } => (error, silent),
            Ended::For(error) => (error, false),
        };
        failures = if answered > before { 1 } else { failures + 1 };
        if failures > 3 {
            let total = requests.len();
            bar.finish_and_clear();
            return Err(ClientError::Failed(format!("{answered} of {total} were sent, then: {error}; apply again, it goes on from there")));
        }
        session.give_up(silent).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn stream_some(
    session: &Session,
    requests: &[AddResourcesRequest],
    mut on_answer: impl FnMut(AddResourcesResponse),
) -> Result<(), Ended> {
    let fail = |status: &tonic::Status| Ended::by("apply", status);
    let silent = |_| {
        let error = ClientError::Failed(format!("apply: the master has not answered for {} s", SILENCE.as_secs()));
        Ended::Passing { error, silent: true }
    };
    let mut client = session.client().await.map_err(Ended::passing)?;
    let outgoing = stream::iter(requests.to_vec());
    let opened = tokio::time::timeout(SILENCE, client.add_resources(outgoing)).await.map_err(silent)?;
    let mut incoming = opened.map_err(|s| fail(&s))?.into_inner();
    let mut expected = requests.len();
    while expected > 0 {
        let answer = tokio::time::timeout(SILENCE, incoming.message()).await.map_err(silent)?.map_err(|s| fail(&s))?;
        let Some(answer) = answer else {
            return Err(Ended::passing(ClientError::Failed("apply: the master ended the stream early".to_owned())));
        };
        expected -= 1;
        on_answer(answer);
    }
    Ok(())
}

/// After a break an "unchanged" may be the work of the try whose answer was lost.
fn count(answer: AddResourcesResponse, replace: bool, after_break: bool, done: &mut Done) {
    match (answer.code, answer.outcome.as_str()) {
        (0, "created") => done.counts.add += 1,
        (0, "changed") => done.counts.change += 1,
        (0, _) if after_break && replace => done.counts.change += 1,
        (0, _) if after_break => done.counts.add += 1,
        (0, _) => done.counts.unchanged += 1,
        (code, _) => {
            let reason = error::advice(&answer.name, tonic::Code::from_i32(code), &answer.message);
            done.refused.push((answer.name, reason));
        }
    }
}

async fn remove(session: &Session, diff: &Diff<'_>, done: &mut Done, bar: &ProgressBar) {
    let names: Vec<ResourceName> = diff.delete.iter().map(|d| d.name.clone()).collect();
    let mut results = stream::iter(names).map(|name| delete(session, name)).buffered(DELETES_AT_ONCE);
    while let Some((name, result)) = results.next().await {
        bar.inc(1);
        match result {
            Ok(()) => done.counts.delete += 1,
            // Somebody else was faster.
            Err(error) if error.is(tonic::Code::NotFound) => {}
            Err(error) => done.refused.push((name.to_string(), error.to_string())),
        }
    }
}

fn report(diff: &Diff<'_>, done: &Done, format: Format, took: Duration) -> Result<(), ClientError> {
    let Counts { add, change, delete, unchanged } = done.counts;
    let wanted = diff.counts();
    let text = match format {
        Format::Table | Format::Wide => format!("added {add}, changed {change}, deleted {delete} in {:.1} s\n", took.as_secs_f64()),
        Format::Name => touched(diff).map(|name| format!("{name}\n")).collect(),
        Format::Json | Format::Yaml => {
            let refused: Vec<_> = done.refused.iter().map(|(name, reason)| json!({"name": name, "reason": reason})).collect();
            let value = json!({
                "wanted": {"add": wanted.add, "change": wanted.change, "delete": wanted.delete, "unchanged": wanted.unchanged},
                "done": {"add": add, "change": change, "delete": delete, "unchanged": unchanged}, "refused": refused,
            });
            if format == Format::Json { output::json(&value) } else { output::yaml(&value) }
        }
    };
    output::write(text.as_bytes())?;
    if done.refused.is_empty() {
        return Ok(());
    }
    for (name, reason) in done.refused.iter().take(REFUSED_SHOWN) {
        error::say(&format!("{name}: {reason}"));
    }
    Err(ClientError::Failed(format!("{} were refused", done.refused.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, u32)]) -> BTreeMap<ResourceName, Definition> {
        let definition = |(name, weight): &(&str, u32)| {
            let name: ResourceName = name.parse().expect("name");
            (name.clone(), Definition { weight: *weight, ..Definition::named(name) })
        };
        pairs.iter().map(definition).collect()
    }

    /// The resource of this JSON.
    fn defined(draft: &str) -> BTreeMap<ResourceName, Definition> {
        let definition = serde_json::from_str::<evenkeel_model::Draft>(draft).expect("a draft").check().expect("a definition");
        BTreeMap::from([(definition.name.clone(), definition)])
    }

    #[test]
    fn a_dry_run_lists_each_name() {
        let (old, new) = (set(&[("a", 1), ("b", 1), ("c", 1)]), set(&[("b", 2), ("c", 1), ("d", 1)]));
        assert_eq!(plan_text(&diff(&old, &new), &Runs::of(&[], &[])), "+ d\n~ b (weight)\n- a\n");
    }

    #[test]
    fn a_dry_run_says_what_restarts() {
        let set = |spec: &str| defined(&format!(r#"{{"name":"a","kind":"process","spec":{spec}}}"#));
        let old = set(r#"{"command":["./a"]}"#);
        let none = Runs::of(&[], &[]);
        assert_eq!(plan_text(&diff(&old, &set(r#"{"command":["./a"],"restart":"never"}"#)), &none), "~ a (spec; restarts it)\n");
        assert_eq!(plan_text(&diff(&old, &set(r#"{"command":["./a"],"restart":"always"}"#)), &none), "");
        // phase of the resource, phase of its worker, what its driver says; what is said
        let cases = [
            ("running", "ready", true, "; taken in place"),
            ("backoff", "ready", true, "; taken in place"),
            ("running", "ready", false, "; restarts it"),
            ("exited", "ready", true, "; restarts it"),
            ("failed", "ready", true, "; restarts it"),
            ("stopping", "ready", true, "; restarts it"),
            ("unknown", "lost", true, "; restarts it"),
        ];
        for (phase, standing, updates, said) in cases {
            let resource = Some(convert::to_resource(old.values().next().expect("one")).expect("a resource"));
            let state = ResourceState { resource, worker: "w".to_owned(), phase: phase.to_owned(), ..ResourceState::default() };
            let traits = evenkeel_proto::v1::DriverTraits { holds: "strict".to_owned(), updates };
            let drivers = [("process".to_owned(), traits)].into();
            let worker = WorkerState { id: "w".to_owned(), phase: standing.to_owned(), drivers, ..WorkerState::default() };
            let (states, workers) = ([state], [worker]);
            let runs = Runs::of(&states, &workers);
            let text = |spec: &str| plan_text(&diff(&old, &set(spec)), &runs);
            assert_eq!(
                text(r#"{"command":["./a"],"restart":"never"}"#),
                format!("~ a (spec{said})\n"),
                "{phase} on a worker that is {standing}"
            );
            assert_eq!(text(r#"{"command":["./b"]}"#), "~ a (spec; restarts it)\n", "it is another program");
        }
        // Of other kinds only their drivers know; and what is held loosely is not made exclusive in place.
        let old = defined(r#"{"name":"s","kind":"shop","spec":{"n":1},"ownership":"available"}"#);
        let traits = evenkeel_proto::v1::DriverTraits { holds: "loose".to_owned(), updates: true };
        let resource = Some(convert::to_resource(old.values().next().expect("one")).expect("a resource"));
        let (worker, phase, holds) = ("w".to_owned(), "running".to_owned(), "loose".to_owned());
        let states = [ResourceState { resource, worker, phase, holds, ..ResourceState::default() }];
        let drivers = [("shop".to_owned(), traits)].into();
        let workers = [WorkerState { id: "w".to_owned(), phase: "ready".to_owned(), drivers, ..WorkerState::default() }];
        let runs = Runs::of(&states, &workers);
        let text = |draft: &str| plan_text(&diff(&old, &defined(draft)), &runs);
        let changed = text(r#"{"name":"s","kind":"shop","spec":{"n":2},"ownership":"available"}"#);
        assert_eq!(changed, "~ s (spec; its driver takes it in place, or restarts it)\n");
        assert_eq!(text(r#"{"name":"s","kind":"shop","spec":{"n":2}}"#), "~ s (ownership, spec; restarts it)\n");
    }

    #[test]
    fn answers_are_counted_by_what_was_done() {
        let answer = |outcome: &str, code| AddResourcesResponse {
            name: "a".to_owned(),
            outcome: outcome.to_owned(),
            code,
            ..AddResourcesResponse::default()
        };
        let mut done = Done::default();
        // outcome, code, replace, after a break
        let cases = [
            ("created", 0, false, false),
            ("changed", 0, true, false),
            ("unchanged", 0, false, false),
            ("unchanged", 0, false, true),
            ("unchanged", 0, true, true),
            ("", 6, false, false),
        ];
        for (outcome, code, replace, after_break) in cases {
            count(answer(outcome, code), replace, after_break, &mut done);
        }
        assert_eq!(done.counts, Counts { add: 2, change: 2, delete: 0, unchanged: 1 });
        assert_eq!(done.refused.len(), 1);
        assert!(done.refused[0].1.contains("already exists"), "{:?}", done.refused);
    }
}

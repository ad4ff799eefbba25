//! Scripts that read like a story: what happens to a cluster, and under each plan what the leader does and why. A script holds commands,
//! lines that begin with `$`, and under each what it prints; running it gives the same text with the answers that really come.
//!
//! Commands: `join W [label=value...] [capacity=N] [refused=WHY] [updates=KIND,...] [fenced=KIND,...] [loose=KIND,...]`, `return W` (a new session that attests), `crash W`, `leave W`,
//! `put R [field=value...]`, `delete R`, `fail R [times=N]` (it has failed so often in a row where it runs, and waits), `refuse R` (it cannot be
//! started there), `exit R [status=N]` (it has ended, and is not to be started again), `acknowledge`, `pass SECONDS`, `turn`, `settle` (turns until nothing is left to do, told as where
//! everything is then), `take R` (its worker takes the change in place), `refuse-change R` (it cannot without a restart), `term`, `cordon W`, `drain W [deadline=SECONDS]`, `uncordon W`, `release`, `set SETTING=VALUE...`,
//! `suppose drain|cordon|uncordon|lose W`, `suppose rebalance`, `suppose add R [field=value...]`, `explain R`. Everything else is prose.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use evenkeel_model::{Action, Draft, DriverTraits, Holds, IntentKind, Labels, Observed, Origin, Plan, Registration, Subject, WorkerId};
use evenkeel_planner::{Penalty, Supposition, Verdict, explain, suppose};

use crate::world::World;

/// Runs a script and gives it back with the answers that came.
///
/// # Errors
/// The first line that is no command.
pub fn run(script: &str) -> Result<String, String> {
    let mut world = World::default();
    let mut out = String::new();
    for (number, line) in script.lines().enumerate() {
        match line.strip_prefix("$ ") {
            Some(command) => {
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{line}");
                out.push_str(&answer(&mut world, command).map_err(|e| format!("line {}: {e}", number + 1))?);
            }
            None if line.starts_with("  ") => {}
            None => out.push_str(&format!("{line}\n")),
        }
    }
    Ok(out)
}

fn answer(world: &mut World, command: &str) -> Result<String, String> {
    let mut words = command.split_whitespace();
    let verb = words.next().unwrap_or_default();
    if verb == "suppose" {
        return Ok(tell_plan(&suppose(&world.cluster, world.now, &world.config, &supposition(world, words)?), world));
    }
    if verb == "set" {
        return words.try_for_each(|word| set(world, word)).map(|()| String::new());
    }
    let subject = words.next().unwrap_or_default();
    let fields = fields(words)?;
    match verb {
        "cordon" => world.want(subject, Some(IntentKind::Cordon)),
        "drain" => {
            let deadline =
                fields.get("deadline").map(|n| n.parse::<u64>().map_err(|_| format!("{n} is no number of seconds"))).transpose()?;
            world.want(subject, Some(IntentKind::Drain { deadline_ms: deadline.map(|n| n * 1000) }));
        }
        "uncordon" => world.want(subject, None),
        "release" => world.release_brake(),
        "settle" => {
            drop(world.settle());
            return Ok(where_all_is(world));
        }
        "explain" => return tell_explanation(world, subject),
        "join" => world.join(registration(world, subject, fields, false)?),
        "return" => world.join(registration(world, subject, fields, true)?),
        "crash" => world.crash(subject),
        "leave" => world.leave(subject),
        "put" => world.put(draft(subject, fields)?.check().map_err(|e| e.to_string())?),
        "delete" => world.delete(subject),
        "fail" => {
            let times = fields.get("times").map_or(Ok(12), |n| n.parse().map_err(|_| format!("{n} is no number of times")))?;
            world.observe(subject, Observed::Backoff, times, "exit status 1");
        }
        "refuse" => world.observe(subject, Observed::Failed, 1, "spec.command: is missing"),
        "take" => world.take(subject),
        "refuse-change" => world.refuse_change(subject),
        "exit" => world.exit(subject, &format!("exit status {}", fields.get("status").map_or("0", String::as_str))),
        "acknowledge" => world.acknowledge(),
        "pass" => world.pass(Duration::from_secs_f64(subject.parse().map_err(|_| format!("{subject} is no number of seconds"))?)),
        "term" => world.cluster.begin_term(world.now),
        "turn" => return Ok(show(world)),
        _ => return Err(format!("{verb}: no such command")),
    }
    Ok(String::new())
}

fn registration(world: &World, id: &str, mut fields: Labels, attests: bool) -> Result<Registration, String> {
    let capacity = fields.remove("capacity").map(|n| n.parse().map_err(|_| format!("{n} is no capacity"))).transpose()?;
    if let Some(why) = fields.remove("refused") {
        return Ok(Registration::unusable(WorkerId::new(id).map_err(|e| e.to_string())?, why));
    }
    let mut kinds = vec!["noop".to_owned(), "process".to_owned()];
    let mut drivers = BTreeMap::<String, DriverTraits>::new();
    let mut said = |field: &str, say: fn(&mut DriverTraits)| {
        for kind in fields.remove(field).iter().flat_map(|kinds| kinds.split(',')) {
            say(drivers.entry(kind.to_owned()).or_default());
            if !kinds.iter().any(|known| known == kind) {
                kinds.push(kind.to_owned());
            }
        }
    };
    said("updates", |driver| driver.updates = true);
    said("fenced", |driver| driver.holds = Holds::Fenced);
    said("loose", |driver| driver.holds = Holds::Loose);
    let admitted = world.cluster.worker(id).and_then(|w| w.admission.as_ref()).map(|a| a.value.session);
    Ok(Registration {
        id: WorkerId::new(id).map_err(|e| e.to_string())?,
        address: format!("{id}:9090"),
        http: String::new(),
        labels: fields,
        capacity,
        kinds,
        version: String::new(),
        drivers,
        containment: String::new(),
        authority_ms: None,
        origin: Origin { boot_id: "boot".to_owned(), guard: id.to_owned() },
        attests: admitted.filter(|_| attests),
        tasks: false,
        leaving: false,
        released: false,
        refused: None,
    })
}

fn draft(name: &str, mut fields: Labels) -> Result<Draft, String> {
    let mut text = |field: &str| fields.remove(field).unwrap_or_default();
    let weight = text("weight");
    let spec = text("spec");
    Ok(Draft {
        name: name.to_owned(),
        kind: text("kind"),
        weight: if weight.is_empty() { None } else { Some(weight.parse().map_err(|_| format!("{weight} is no weight"))?) },
        labels: labels(&text("labels"))?,
        require: text("require"),
        pin: text("pin"),
        prefer: preferences(&text("prefer"))?,
        spread: text("spread"),
        together: text("together"),
        apart: text("apart"),
        policy: text("policy"),
        rebalance: text("rebalance"),
        ownership: text("ownership"),
        spec: spec_of(&spec)?,
    })
}

/// `2`, or JSON without a space.
fn spec_of(text: &str) -> Result<Option<serde_json::Value>, String> {
    if text.starts_with('{') {
        return serde_json::from_str(text).map(Some).map_err(|e| format!("{text}: {e}"));
    }
    Ok((!text.is_empty()).then(|| serde_json::json!({ "version": text })))
}

fn fields<'w>(mut words: impl Iterator<Item = &'w str>) -> Result<Labels, String> {
    words.try_fold(Labels::new(), |mut fields, word| {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word} is no FIELD=VALUE"))?;
        fields.insert(key.to_owned(), value.to_owned());
        Ok(fields)
    })
}

fn labels(text: &str) -> Result<Labels, String> {
    fields(text.split(',').filter(|pair| !pair.is_empty()))
}

/// `disk=ssd:10`
fn preferences(text: &str) -> Result<Vec<serde_json::Value>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let (selector, weight) = text.rsplit_once(':').ok_or_else(|| format!("{text} is no SELECTOR:WEIGHT"))?;
    let weight: u64 = weight.parse().map_err(|_| format!("{weight} is no weight"))?;
    Ok(vec![serde_json::json!({ "selector": selector, "weight": weight })])
}

fn set(world: &mut World, word: &str) -> Result<(), String> {
    let (key, value) = word.split_once('=').ok_or_else(|| format!("{word} is no SETTING=VALUE"))?;
    let number = || value.parse::<u32>().map_err(|_| format!("{value} is no number"));
    let config = &mut world.config;
    match key {
        "policy" => config.policy = value.parse().map_err(|e: evenkeel_model::UnknownPolicy| e.to_string())?,
        "tolerance" => config.tolerance = number()?.into(),
        "move-failing-after" => config.move_failing_after = number()?,
        "in-flight" => config.moves_in_flight = number()? as usize,
        "brake-percent" => config.brake.percent = number()?,
        "recovery-in-flight" => config.recovery_in_flight = number()? as usize,
        "brake-least" => config.brake.least = number()? as usize,
        _ => return Err(format!("{key}: no such setting")),
    }
    Ok(())
}

fn supposition<'w>(world: &World, mut words: impl Iterator<Item = &'w str>) -> Result<Supposition, String> {
    let (what, subject) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let worker = || WorkerId::new(subject).map_err(|e| e.to_string());
    Ok(match what {
        "drain" => Supposition::Intent(worker()?, Some(IntentKind::Drain { deadline_ms: None })),
        "cordon" => Supposition::Intent(worker()?, Some(IntentKind::Cordon)),
        "uncordon" => Supposition::Intent(worker()?, None),
        "lose" => Supposition::Lost(worker()?),
        "rebalance" => Supposition::Rebalance,
        "add" => Supposition::Add(Box::new(draft(subject, fields(words)?)?.check().map_err(|e| e.to_string())?)),
        _ => return Err(format!("{what}: nothing that can be supposed of {} workers", world.cluster.ready())),
    })
}

/// Each worker with what is at home there.
fn where_all_is(world: &World) -> String {
    let mut out = String::new();
    for (id, worker) in world.cluster.workers() {
        let names: Vec<&str> = worker.names.iter().map(|name| name.as_str()).collect();
        let _ = writeln!(out, "  {id} ({}): {}", worker.payload, if names.is_empty() { "-".to_owned() } else { names.join(" ") });
    }
    out
}

fn tell_explanation(world: &World, name: &str) -> Result<String, String> {
    let definition = world.cluster.unit(name).and_then(|unit| unit.definition()).ok_or_else(|| format!("{name}: no such resource"))?;
    let explanation = explain(&world.cluster, definition, world.now, &world.config);
    let mut out = format!("  by {}\n", explanation.policy);
    for considered in &explanation.considered {
        let verdict = match &considered.verdict {
            Verdict::Eligible { place, preference: 0, penalty } => format!(
                "number {place}{}",
                match penalty {
                    None => "",
                    Some(Penalty::Aside) => ", set aside",
                    Some(Penalty::Failed) => ", it has failed there",
                }
            ),
            Verdict::Eligible { place, preference, .. } => format!("number {place}, worth {preference}"),
            Verdict::Misfit(misfit) => misfit.to_string(),
            Verdict::NotReady(standing) => format!("{standing:?}").to_lowercase(),
        };
        let _ = writeln!(out, "  {} ({}): {verdict}", considered.worker, considered.payload);
    }
    for failed in &explanation.failed {
        let _ = writeln!(out, "  {}: {}", failed.misfit.rule(), failed.count);
    }
    Ok(out)
}

/// Carries a plan out and tells it.
fn show(world: &mut World) -> String {
    let plan = world.turn();
    tell_plan(&plan, world)
}

fn tell_plan(plan: &Plan, world: &World) -> String {
    let now = world.now;
    let mut out = String::new();
    for action in &plan.actions {
        let _ = writeln!(out, "  {}", tell(action));
    }
    let Plan { undone, wake, .. } = plan;
    for undone in undone {
        let subject = match &undone.subject {
            Subject::Resource(name) => name.to_string(),
            Subject::Worker(id) => id.to_string(),
            Subject::More(count) => format!("{count} more"),
        };
        let _ = writeln!(out, "  undone: {subject}: {}", undone.reason);
    }
    if let Some(wake) = wake {
        let _ = writeln!(out, "  again in {:.1} s", wake.0.saturating_sub(now.0).as_secs_f64());
    }
    if out.is_empty() { "  nothing to do\n".to_owned() } else { out }
}

fn tell(action: &Action) -> String {
    match action {
        Action::Admit { worker, reason, .. } => format!("admit {worker}: {}", reason.as_str()),
        Action::Forget { worker, reason } => format!("forget {worker}: {}", reason.as_str()),
        Action::Place { resource, worker, reason } => format!("assign {resource} to {worker}: {}", reason.as_str()),
        Action::Stop { resource, worker, reason, to, .. } => {
            let to = to.as_ref().map(|to| format!(", to go on on {to}")).unwrap_or_default();
            format!("stop {resource} on {worker}: {}{to}", reason.as_str())
        }
        Action::Update { resource, worker, .. } => format!("change {resource} on {worker} in place"),
        Action::Move { resource, from, to, reason, .. } => format!("move {resource} from {from} to {to}: {}", reason.as_str()),
        Action::End { resource, worker, reason, .. } => format!("end {resource} on {worker}: {}", reason.as_str()),
        Action::Finish { resource, worker, message, .. } => format!("finish {resource} on {worker}: {message}"),
        Action::View { resource, worker } => {
            format!("show {resource} on {}", worker.as_ref().map_or("no worker", |w| w.as_str()))
        }
    }
}

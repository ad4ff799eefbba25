//! Scripts that read like a story: what happens to a cluster, and under each plan what the leader does and why. A script holds commands,
//! lines that begin with `$`, and under each what it prints; running it gives the same text with the answers that really come.
//!
//! Commands: `join W [zone=Z] [capacity=N]`, `return W` (a new session that attests), `crash W`, `leave W`, `put R [field=value...]`,
//! `delete R`, `acknowledge`, `pass SECONDS`, `turn`, `term`. Everything else is prose.

use std::{fmt::Write, time::Duration};

use evenkeel_model::{Action, Draft, Labels, Origin, Plan, Registration, Subject, WorkerId};

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
    let subject = words.next().unwrap_or_default();
    let fields: Labels =
        words.map(|word| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or(word)).collect::<Result<_, _>>()?;
    match verb {
        "join" => world.join(registration(world, subject, fields, false)?),
        "return" => world.join(registration(world, subject, fields, true)?),
        "crash" => world.crash(subject),
        "leave" => world.leave(subject),
        "put" => world.put(draft(subject, fields)?.check().map_err(|e| e.to_string())?),
        "delete" => world.delete(subject),
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
    let admitted = world.cluster.worker(id).and_then(|w| w.admission.as_ref()).map(|a| a.value.session);
    Ok(Registration {
        id: WorkerId::new(id).map_err(|e| e.to_string())?,
        address: format!("{id}:9090"),
        http: String::new(),
        labels: fields,
        capacity,
        kinds: vec!["noop".to_owned(), "process".to_owned()],
        version: String::new(),
        authority_ms: None,
        origin: Origin { boot_id: "boot".to_owned(), guard: id.to_owned() },
        attests: admitted.filter(|_| attests),
        released: false,
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
        require: text("require"),
        pin: text("pin"),
        ownership: text("ownership"),
        spec: (!spec.is_empty()).then(|| serde_json::json!({ "version": spec })),
        ..Draft::default()
    })
}

/// Carries a plan out and tells it.
fn show(world: &mut World) -> String {
    let now = world.now;
    let plan = world.turn();
    let mut out = String::new();
    for action in &plan.actions {
        let _ = writeln!(out, "  {}", tell(action));
    }
    let Plan { undone, wake, .. } = &plan;
    for undone in undone {
        let subject = match &undone.subject {
            Subject::Resource(name) => name.to_string(),
            Subject::Worker(id) => id.to_string(),
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
        Action::Move { resource, from, to, reason, .. } => format!("move {resource} from {from} to {to}: {}", reason.as_str()),
        Action::End { resource, worker, reason, .. } => format!("end {resource} on {worker}: {}", reason.as_str()),
        Action::View { resource, worker } => {
            format!("show {resource} on {}", worker.as_ref().map_or("no worker", |w| w.as_str()))
        }
    }
}

//! What a person asks for, and the only way from there to a task: each field checked, with the rule that it breaks. Under model::task.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Children, OnLost, Share, Task, TaskScript, TaskTargets, is_default};
use crate::{
    Cluster, Selector, TaskId, WorkerId,
    limits::{
        MAX_ACCOUNT, MAX_CREATOR, MAX_HOSTS, MAX_SCRIPT, MAX_STDIN, MAX_TASK_ARGS, MAX_TASK_ENV, MAX_TASK_KEY, MAX_TASK_SECRETS,
        MAX_TASK_SPAN, MAX_TITLE,
    },
    shown::shown,
};

/// What a person asks for, as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "each is the field of `Task` with its name; empty and 0 stand for what is left out")]
pub struct TaskDraft {
    #[serde(skip_serializing_if = "is_default")]
    pub title: String,
    #[serde(skip_serializing_if = "is_default")]
    pub script: String,
    #[serde(skip_serializing_if = "is_default")]
    pub stdin: String,
    #[serde(skip_serializing_if = "is_default")]
    pub account: String,
    #[serde(skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    pub secrets: BTreeMap<String, String>,
    /// Workers by id, by their label `ip` or `host`, or by the host of their address.
    #[serde(skip_serializing_if = "is_default")]
    pub hosts: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub selector: String,
    #[serde(skip_serializing_if = "is_default")]
    pub any: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub late: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub timeout_ms: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub grace_ms: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub deliver_ms: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub batch: String,
    #[serde(skip_serializing_if = "is_default")]
    pub tolerance: String,
    #[serde(skip_serializing_if = "is_default")]
    pub on_lost: String,
    #[serde(skip_serializing_if = "is_default")]
    pub children: String,
    #[serde(skip_serializing_if = "is_default")]
    pub pause_after: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub count_undelivered: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub creator: String,
    #[serde(skip_serializing_if = "is_default")]
    pub hosts_as_sent: String,
    #[serde(skip_serializing_if = "is_default")]
    pub key: String,
    /// The address of who asks.
    #[serde(skip_serializing_if = "is_default")]
    pub from: String,
}

/// The field that cannot be, the rule that it breaks, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct TaskError {
    /// The field.
    pub field: &'static str,
    /// The rule, with the value.
    pub rule: String,
}

fn wrong<T>(field: &'static str, rule: impl Into<String>) -> Result<T, TaskError> {
    Err(TaskError { field, rule: rule.into() })
}

/// What was asked for, checked, before it is known which workers it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// All but the id, the time and the hosts.
    pub task: Task,
    /// What runs.
    pub script: TaskScript,
    hosts: Vec<String>,
    selector: Option<Selector>,
    pause_after: Vec<String>,
}

impl TaskDraft {
    /// Checks all of it.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(self) -> Result<NewTask, TaskError> {
        at_most("title", &self.title, MAX_TITLE)?;
        at_most("creator", &self.creator, MAX_CREATOR)?;
        at_most("account", &self.account, MAX_ACCOUNT)?;
        at_most("key", &self.key, MAX_TASK_KEY)?;
        if self.account.contains(['\0', '\n', ':', '/']) {
            return wrong("account", format!("{} is no name of a user", shown(&self.account)));
        }
        self.check_script()?;
        self.check_environment()?;
        let selector = self.check_targets()?;
        let content = if self.key.is_empty() { String::new() } else { self.content() };
        let task = Task {
            id: TaskId(0),
            title: self.title.into(),
            creator: self.creator.into(),
            from: self.from.into(),
            created: 0,
            sha256: sha256(self.script.as_bytes()).into(),
            account: self.account.into(),
            args: self.args,
            env: self.env,
            secrets: self.secrets,
            on: TaskTargets { workers: Vec::new(), select: self.selector.into(), any: self.any, late: self.late },
            timeout: span("timeout", self.timeout_ms)?,
            grace: self.grace_ms.map(|grace| span("grace", grace)).transpose()?.map(Option::unwrap_or_default),
            deliver: span("deliver", self.deliver_ms)?,
            batch: batch(&self.batch)?,
            tolerance: share("tolerance", &self.tolerance, Task::TOLERANCE)?,
            on_lost: match self.on_lost.as_str() {
                "" | "report" => OnLost::Report,
                "retry" => OnLost::Retry,
                other => return wrong("on_lost", format!("unknown value {}; use report or retry", shown(other))),
            },
            children: match self.children.as_str() {
                "" | "kill" => Children::Kill,
                "leave" => Children::Leave,
                other => return wrong("children", format!("unknown value {}; use kill or leave", shown(other))),
            },
            pause_after: Vec::new(),
            count_undelivered: self.count_undelivered,
            key: self.key.into(),
            content: content.into(),
            hosts_as_sent: self.hosts_as_sent.into(),
        };
        let script = TaskScript { script: self.script, stdin: self.stdin };
        Ok(NewTask { task, script, hosts: self.hosts, selector, pause_after: self.pause_after })
    }

    fn check_script(&self) -> Result<(), TaskError> {
        if self.script.trim().is_empty() {
            return wrong("script", "is empty; say what to run");
        }
        for (field, text, most) in [("script", &self.script, MAX_SCRIPT), ("stdin", &self.stdin, MAX_STDIN)] {
            if text.len() > most {
                return wrong(
                    field,
                    format!("has {} bytes; at most {most} are taken, and what is larger is better fetched by the script", text.len()),
                );
            }
        }
        if self.script.contains('\0') {
            return wrong("script", "has a NUL character; it is to be text, and what is binary is better fetched by it");
        }
        Ok(())
    }

    fn check_environment(&self) -> Result<(), TaskError> {
        let args: usize = self.args.iter().map(|arg| arg.len() + 1).sum();
        if args > MAX_TASK_ARGS {
            return wrong("args", format!("have {args} bytes; at most {MAX_TASK_ARGS} are taken"));
        }
        let env: usize = self.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if env > MAX_TASK_ENV {
            return wrong("env", format!("has {env} bytes; at most {MAX_TASK_ENV} are taken"));
        }
        if self.args.iter().any(|arg| arg.contains('\0')) {
            return wrong("args", "have a NUL character");
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return wrong("env", format!("{} is no variable: a name has no =, and neither has a NUL character", shown(name)));
            }
            if name.starts_with("EVENKEEL_") {
                return wrong("env", format!("{} is set by the worker; use another name", shown(name)));
            }
        }
        if self.secrets.len() > MAX_TASK_SECRETS {
            return wrong("secrets", format!("are {}; at most {MAX_TASK_SECRETS} are taken", self.secrets.len()));
        }
        for (name, reference) in &self.secrets {
            if crate::ResourceName::new(name).is_err() {
                return wrong("secrets", format!("invalid name {}: it becomes a file; use A-Z a-z 0-9 . _ -", shown(name)));
            }
            let is_reference = reference.strip_prefix("file:/").or(reference.strip_prefix("env:")).is_some_and(|rest| !rest.is_empty());
            if !is_reference || reference.len() > crate::limits::MAX_PATH {
                // It is not shown: a person may have put the secret itself there.
                return wrong("secrets", format!("{}: must be file: with a full path, or env: with a variable of the worker", shown(name)));
            }
        }
        Ok(())
    }

    fn check_targets(&self) -> Result<Option<Selector>, TaskError> {
        if self.hosts.len() > MAX_HOSTS {
            return wrong("hosts", format!("are {}; at most {MAX_HOSTS} are taken", self.hosts.len()));
        }
        let hosts: usize = self.hosts.iter().map(|host| host.len() + 3).sum::<usize>() + self.hosts_as_sent.len();
        if hosts > crate::limits::MAX_HOSTS_BYTES {
            return wrong("hosts", format!("have {hosts} bytes; at most {} are taken", crate::limits::MAX_HOSTS_BYTES));
        }
        match (self.hosts.is_empty(), self.selector.is_empty()) {
            (true, true) => return wrong("hosts", "are missing; name workers, or give a selector"),
            (false, false) => return wrong("selector", "cannot be given beside hosts; use one of them"),
            (false, true) if self.any > 0 || self.late => return wrong("any", "and late need a selector; the hosts are named"),
            _ => {}
        }
        if self.any > 0 && self.late {
            return wrong("late", "cannot be given beside any; use one of them");
        }
        if self.selector.is_empty() {
            return Ok(None);
        }
        self.selector.parse().map(Some).or_else(|error: crate::SelectorError| wrong("selector", error.to_string()))
    }

    /// A digest of all that is asked for, but not of who asks and from where. What is left out counts for nothing, so that a field of a later version
    /// changes no digest.
    fn content(&self) -> String {
        let asked = Self { key: String::new(), from: String::new(), creator: String::new(), ..self.clone() };
        sha256(&crate::json(&asked))
    }
}

impl NewTask {
    /// The workers that it means, in their order, each once; those that match a selector in the order of their ids.
    ///
    /// # Errors
    /// A host that is no worker's and cannot become one's; none match; too many do.
    pub fn resolve(&self, cluster: &Cluster) -> Result<Vec<WorkerId>, TaskError> {
        let workers = match &self.selector {
            Some(selector) => {
                let registered = cluster.workers().filter_map(|(id, worker)| Some((id, worker.registration()?)));
                registered.filter(|(_, registration)| selector.matches(&registration.labels)).map(|(id, _)| id.clone()).collect()
            }
            None => find_all("hosts", &self.hosts, cluster)?,
        };
        if workers.len() > MAX_HOSTS {
            return wrong("selector", format!("matches {} workers; a task has at most {MAX_HOSTS} hosts", workers.len()));
        }
        if workers.is_empty() && !self.task.on.late {
            return wrong("selector", format!("{} matches none of the workers that are registered", shown(&self.task.on.select)));
        }
        Ok(workers)
    }

    /// The task for these workers.
    ///
    /// # Errors
    /// `pause_after` names what is none of them.
    pub fn with_workers(&self, id: TaskId, created: i64, workers: Vec<WorkerId>, cluster: &Cluster) -> Result<Task, TaskError> {
        let mut task = self.task.clone();
        task.pause_after = find_all("pause_after", &self.pause_after, cluster)?;
        let known: BTreeSet<&WorkerId> = workers.iter().collect();
        if let Some(other) = task.pause_after.iter().find(|worker| !known.contains(worker)) {
            return wrong("pause_after", format!("{other} is none of the hosts"));
        }
        (task.id, task.created, task.on.workers) = (id, created, workers);
        Ok(task)
    }
}

/// The workers that these texts mean, each once.
fn find_all(field: &'static str, hosts: &[String], cluster: &Cluster) -> Result<Vec<WorkerId>, TaskError> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::with_capacity(hosts.len()));
    let mut by_host: Option<BTreeMap<String, WorkerId>> = None;
    for host in hosts {
        let worker = match WorkerId::new(host) {
            Ok(id) if cluster.worker(host).is_some_and(|worker| worker.registration().is_some()) => id,
            named => {
                let by_host = by_host.get_or_insert_with(|| workers_by_host(cluster));
                match (by_host.get(host), named) {
                    (Some(worker), _) => worker.clone(),
                    // One of this id may come; until its delivery ends it is waited for.
                    (None, Ok(id)) => id,
                    (None, Err(error)) => {
                        return wrong(
                            field,
                            format!("{} is known of no worker, and is no id of one that may come: it {error}", shown(host)),
                        );
                    }
                }
            }
        };
        if seen.insert(worker.clone()) {
            found.push(worker);
        }
    }
    Ok(found)
}

/// Of several workers on one machine the one with the least id stands for it.
fn workers_by_host(cluster: &Cluster) -> BTreeMap<String, WorkerId> {
    let mut found = BTreeMap::new();
    let registered = || cluster.workers().filter_map(|(id, worker)| Some((id, worker.registration()?)));
    // A label says more than an address.
    for (id, registration) in registered() {
        for label in ["ip", "host"].iter().filter_map(|name| registration.labels.get(*name)) {
            found.entry(label.clone()).or_insert_with(|| id.clone());
        }
    }
    for (id, registration) in registered() {
        let host = registration.address.rsplit_once(':').map_or(registration.address.as_str(), |(host, _)| host);
        found.entry(host.trim_start_matches('[').trim_end_matches(']').to_owned()).or_insert_with(|| id.clone());
    }
    found
}

fn at_most(field: &'static str, text: &str, most: usize) -> Result<(), TaskError> {
    let length = text.chars().count();
    if length > most { wrong(field, format!("has {length} characters; at most {most} are taken")) } else { Ok(()) }
}

/// None: left out.
fn span(field: &'static str, ms: u64) -> Result<Option<Duration>, TaskError> {
    if ms > MAX_TASK_SPAN * 1000 {
        return wrong(field, format!("{ms} ms are more than {MAX_TASK_SPAN} seconds"));
    }
    Ok((ms > 0).then(|| Duration::from_millis(ms)))
}

fn share(field: &'static str, text: &str, usual: Share) -> Result<Share, TaskError> {
    if text.is_empty() {
        return Ok(usual);
    }
    text.parse().or_else(|error| wrong(field, format!("{} {error}", shown(text).replacen('"', "invalid value \"", 1))))
}

fn batch(text: &str) -> Result<Share, TaskError> {
    match share("batch", text, Task::BATCH)? {
        Share::Count(0) | Share::Percent(0) => wrong("batch", format!("invalid value {}: at least one host at a time", shown(text))),
        batch => Ok(batch),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;

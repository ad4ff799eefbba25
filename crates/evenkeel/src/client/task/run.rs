//! `evenkeel task run`: a task from flags and a script. Under client::task.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    path::Path,
    time::Duration,
};

use clap::{ArgGroup, Args};
use evenkeel_model::{
    Selector,
    limits::{MAX_CREATOR, MAX_TITLE},
    task::{Share, TaskDraft},
};
use evenkeel_proto::v1::{CreateTaskRequest, Task, TaskState, TaskTargets};

use super::{script, state, watch};
use crate::{
    client::{ClientArgs, ClientError, print_one, selector},
    settings,
    timing::span,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("hosts").required(true).args(["on", "selector"]))]
#[command(
    after_help = "What stands after FILE goes to the script; where that begins with a dash, put -- before it. Without FILE, what stands after -- is the command.\n\
    With --wait the exit status is 0 if every host succeeded or is ignored, otherwise 1."
)]
pub(super) struct RunArgs {
    /// The workers by their ids, or by their labels ip or host, or by the host of their addresses; in this order
    #[arg(long, value_name = "W,W", value_delimiter = ',', value_parser = host)]
    on: Vec<String>,
    /// The workers whose labels match
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<Selector>,
    /// Only so many of those that match, the least loaded
    #[arg(long, value_name = "N", conflicts_with_all = ["on", "late"], value_parser = clap::value_parser!(u32).range(1..))]
    any: Option<u32>,
    /// Also workers that register later, until the delivery ends
    #[arg(long, conflicts_with = "on")]
    late: bool,
    /// The user that the script runs as; without it, that of the worker
    #[arg(long, value_name = "USER")]
    account: Option<String>,
    /// From the beginning of the script to the stop signal
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = positive)]
    timeout: Duration,
    /// From the stop signal to the kill
    #[arg(long, value_name = "SPAN", default_value = "5s", value_parser = span)]
    grace: Duration,
    /// For how long a host's order waits for its worker
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = positive)]
    deliver: Duration,
    /// How many hosts may be pending or running at a time: a number, a share such as 10%, or all
    #[arg(long, value_name = "SHARE", default_value = "50", value_parser = share)]
    batch: Share,
    /// How many hosts may fail before the task pauses: a number, a share, or all
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    tolerance: Share,
    /// For people; without it, the name of the script
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// A variable of the script's environment; many times
    #[arg(long, value_name = "K=V", value_parser = settings::label)]
    env: Vec<(String, String)>,
    /// A secret that each worker resolves, as file:PATH or env:NAME; the script finds it in the folder $EVENKEEL_SECRETS; many times
    #[arg(long, value_name = "NAME=REF", value_parser = settings::label)]
    secret: Vec<(String, String)>,
    /// The task pauses when these hosts are at an end
    #[arg(long, value_name = "W,W", value_delimiter = ',')]
    pause_after: Vec<String>,
    /// What follows when the end of a script is not known; with retry it may run twice
    #[arg(long, value_name = "WHAT", value_parser = ["report", "retry"], default_value = "report")]
    on_lost: String,
    /// What becomes of the processes that the script leaves behind; what is left lives until the worker's agent ends, so for a daemon that outlives it use systemd-run
    #[arg(long, value_name = "WHAT", value_parser = ["kill", "leave"], default_value = "kill")]
    children: String,
    /// Hosts that are not reached in time count as failed
    #[arg(long)]
    count_undelivered: bool,
    /// The same key with the same content again is the same task; without it, one that nobody else has
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Who asks; without it, the user's name
    #[arg(long, value_name = "NAME")]
    creator: Option<String>,
    /// What the script reads from its standard input; - is this command's
    #[arg(long, value_name = "FILE")]
    stdin: Option<String>,
    /// End when every host is at an end, and show how it goes
    #[arg(long)]
    wait: bool,
    /// The script, and what it is called with; - is stdin
    #[arg(value_name = "FILE", required_unless_present = "command")]
    file: Option<String>,
    /// What the script is called with
    #[arg(value_name = "ARG")]
    args: Vec<String>,
    /// Without FILE: the command that is to run; with FILE: more that the script is called with
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

/// The masters find what it names; what can name nothing is not sent.
fn host(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_name { Ok(text.to_owned()) } else { Err("write ids, addresses or hosts with commas between them, without spaces".to_owned()) }
}

fn share(text: &str) -> Result<Share, String> {
    text.parse::<Share>().map_err(|e| format!("it {e}"))
}

/// 0 stands for what is left out, so it cannot be asked for.
fn positive(text: &str) -> Result<Duration, String> {
    match span(text)? {
        Duration::ZERO => Err("it is to be more than 0".to_owned()),
        span => Ok(span),
    }
}

pub(super) async fn run(args: RunArgs) -> Result<(), ClientError> {
    let draft = args.draft()?;
    let (wait, format) = (args.wait, args.client.output.output);
    let session = args.client.master.session();
    let request = CreateTaskRequest { key: draft.key.clone(), task: Some(message(draft)) };
    let answer = session.call("task", request, async |client, request| client.create_task(request).await).await?;
    let task = answer.task.unwrap_or_default();
    if !wait {
        return created(format, &task);
    }
    if format.is_table() {
        created(format, &task)?;
    }
    let ended = watch::wait(&session, task.id, &mut watch::Steps::to_stderr()).await?;
    if !format.is_table() {
        created(format, &ended)?;
    }
    state::verdict(&ended)
}

fn created(format: crate::output::Format, task: &TaskState) -> Result<(), ClientError> {
    let id = task.id.to_string();
    print_one(format, &state::value(task)?, &id, || format!("{id}\n"))
}

impl RunArgs {
    /// What is asked for, checked.
    ///
    /// # Errors
    /// The field and the rule that it breaks.
    fn draft(&self) -> Result<TaskDraft, ClientError> {
        if self.file.as_deref() == Some(script::STDIN) && self.stdin.as_deref() == Some(script::STDIN) {
            return Err(ClientError::Usage("the script and its input cannot both be stdin; give one of them as a file".to_owned()));
        }
        let (script, args) = match &self.file {
            Some(file) => (script::read(file)?, self.args.iter().chain(&self.command).cloned().collect()),
            None => (script::of_command(&self.command), Vec::new()),
        };
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let draft = TaskDraft {
            title: self.title.clone().unwrap_or_else(|| self.name()),
            script,
            stdin: self.stdin.as_deref().map(script::read_input).transpose()?.unwrap_or_default(),
            account: self.account.clone().unwrap_or_default(),
            args,
            env: map("--env", &self.env)?,
            secrets: map("--secret", &self.secret)?,
            hosts: self.on.clone(),
            selector: self.selector.as_ref().map(ToString::to_string).unwrap_or_default(),
            any: self.any.unwrap_or_default(),
            late: self.late,
            timeout_ms: ms(self.timeout),
            grace_ms: Some(ms(self.grace)),
            deliver_ms: ms(self.deliver),
            batch: self.batch.to_string(),
            tolerance: self.tolerance.to_string(),
            on_lost: self.on_lost.clone(),
            children: self.children.clone(),
            pause_after: self.pause_after.clone(),
            count_undelivered: self.count_undelivered,
            creator: self.creator.clone().unwrap_or_else(user),
            hosts_as_sent: String::new(),
            key: self.key.clone().unwrap_or_else(fresh_key),
            from: String::new(),
        };
        draft.clone().check().map_err(|e| ClientError::Usage(e.to_string()))?;
        Ok(draft)
    }

    /// The name of what runs, for people: without its arguments, which a list of tasks is not to show.
    fn name(&self) -> String {
        let program = self.file.as_ref().or(self.command.first()).map(String::as_str).unwrap_or_default();
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        if name == script::STDIN { String::new() } else { name.chars().take(MAX_TITLE).collect() }
    }
}

fn map(flag: &str, pairs: &[(String, String)]) -> Result<BTreeMap<String, String>, ClientError> {
    let mut map = BTreeMap::new();
    for (name, value) in pairs {
        if map.insert(name.clone(), value.clone()).is_some() {
            return Err(ClientError::Usage(format!("{flag}: {name} is given twice")));
        }
    }
    Ok(map)
}

/// The name of who calls; empty where the system knows none.
fn user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    user.map(|user| user.name.chars().take(MAX_CREATOR).collect()).unwrap_or_default()
}

/// A key that nobody else has: when an answer is lost and the request is sent again, it makes no second task.
fn fresh_key() -> String {
    let part = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", part(), part())
}

fn message(draft: TaskDraft) -> Task {
    Task {
        title: draft.title,
        script: draft.script,
        stdin: draft.stdin,
        account: draft.account,
        args: draft.args,
        env: draft.env.into_iter().collect(),
        secrets: draft.secrets.into_iter().collect(),
        on: Some(TaskTargets { hosts: draft.hosts, selector: draft.selector, any: draft.any, late: draft.late }),
        timeout_ms: draft.timeout_ms,
        grace_ms: draft.grace_ms,
        deliver_ms: draft.deliver_ms,
        batch: draft.batch,
        tolerance: draft.tolerance,
        on_lost: draft.on_lost,
        children: draft.children,
        pause_after: draft.pause_after,
        count_undelivered: draft.count_undelivered,
        creator: draft.creator,
        hosts_as_sent: draft.hosts_as_sent,
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

//! `evenkeel task`: scripts that run once on each of the chosen workers: asked for, followed, steered.
//!
//! | file | |
//! |---|---|
//! | `run.rs`, `script.rs` | a task from flags and a script |
//! | `watch.rs` | a task followed to its end |
//! | `written.rs` | what scripts wrote |
//! | `state.rs` | what is known of tasks, as JSON, tables and sentences |

mod run;
mod script;
mod state;
mod watch;
mod written;

use clap::{ArgGroup, Args, Subcommand};
use evenkeel_model::WorkerId;
use evenkeel_proto::v1::{
    CancelTaskRequest, GetTaskRequest, IgnoreTaskHostRequest, KillTaskHostRequest, KillTaskRequest, ListTasksRequest, PauseTaskRequest,
    RedoTaskRequest, ResumeTaskRequest, TaskState,
};
use tonic::Code;

use super::{
    ClientArgs, ClientError, Listing, print_list, print_one,
    session::{Answer, Session},
};
use crate::output;

/// Tasks in one page.
const PAGE: i32 = 200;

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a script once on each of the chosen workers; prints the task's id
    Run(Box<run::RunArgs>),
    /// Show the tasks, the newest first
    Ls {
        /// Only those in these states: running, paused, done
        #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = ["running", "paused", "done"])]
        state: Vec<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one task: what came of each of its hosts
    Get {
        /// Show what it runs, and what that reads, too
        #[arg(long)]
        script: bool,
        #[command(flatten)]
        task: OneTask,
    },
    /// Follow a task to its end; exit status 1 unless every host succeeded or is ignored
    Watch(OneTask),
    /// Print what the scripts wrote
    Output(written::OutputArgs),
    /// Order nothing more for now; what is pending or runs goes on
    Pause(OneTask),
    /// Go on with a task that is paused
    Resume(OneTask),
    /// Begin nothing more, for good; what runs goes on
    Cancel(OneTask),
    /// Begin nothing more, for good, and stop what runs; with WORKER on that one only
    Kill {
        #[command(flatten)]
        task: OneTask,
        /// Only on this worker
        worker: Option<WorkerId>,
    },
    /// Run it once more on hosts that are at an end
    #[command(group = ArgGroup::new("which").required(true).args(["workers", "failed"]))]
    Redo {
        #[command(flatten)]
        task: OneTask,
        /// On these workers
        #[arg(value_name = "WORKER")]
        workers: Vec<WorkerId>,
        /// Wherever it failed, timed out, was killed, rejected, lost, or not delivered
        #[arg(long)]
        failed: bool,
    },
    /// Let what came of one host count no more
    Ignore {
        #[command(flatten)]
        task: OneTask,
        /// The worker
        worker: WorkerId,
    },
}

/// One task.
#[derive(Debug, Args)]
struct OneTask {
    /// The task
    id: u32,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: TaskArgs) -> Result<(), ClientError> {
    match args.action {
        Action::Run(args) => run::run(*args).await,
        Action::Ls { state, client } => ls(state, client).await,
        Action::Get { script, task: OneTask { id, client } } => {
            let task = get(&client.master.clone().session(), id, script).await?;
            let text = || state::whole(&task, output::now_ns(), output::colour());
            print_one(client.output.output, &state::value(&task)?, &id.to_string(), text)
        }
        Action::Watch(OneTask { id, client }) => {
            let mut steps = watch::Steps::to_stdout(id, client.output.output);
            let task = watch::wait(&client.master.session(), id, &mut steps).await?;
            state::verdict(&task)
        }
        Action::Output(args) => written::run(args).await,
        Action::Pause(task) => {
            let request = PauseTaskRequest { id: task.id };
            let answer = task.session().ask(&task.subject(), request, async |client, request| client.pause_task(request).await).await;
            task.show(answer, |answer| answer.task)
        }
        Action::Resume(task) => {
            let request = ResumeTaskRequest { id: task.id };
            let answer = task.session().ask(&task.subject(), request, async |client, request| client.resume_task(request).await).await;
            task.show(answer, |answer| answer.task)
        }
        Action::Cancel(task) => {
            let request = CancelTaskRequest { id: task.id };
            let answer = task.session().ask(&task.subject(), request, async |client, request| client.cancel_task(request).await).await;
            task.show(answer, |answer| answer.task)
        }
        Action::Kill { task, worker: None } => {
            let request = KillTaskRequest { id: task.id };
            let answer = task.session().ask(&task.subject(), request, async |client, request| client.kill_task(request).await).await;
            task.show(answer, |answer| answer.task)
        }
        Action::Kill { task, worker: Some(worker) } => {
            let request = KillTaskHostRequest { id: task.id, worker: worker.to_string() };
            let answer = task.session().ask(&task.subject(), request, async |client, request| client.kill_task_host(request).await).await;
            task.show(answer, |answer| answer.task)
        }
        Action::Redo { task, workers, failed } => {
            let request = RedoTaskRequest { id: task.id, workers: workers.iter().map(ToString::to_string).collect(), failed };
            let answer = task.session().ask(&task.subject(), request, async |client, request| client.redo_task(request).await).await;
            task.show(answer, |answer| answer.task)
        }
        Action::Ignore { task, worker } => {
            let request = IgnoreTaskHostRequest { id: task.id, worker: worker.to_string() };
            let answer = task.session().ask(&task.subject(), request, async |client, request| client.ignore_task_host(request).await).await;
            task.show(answer, |answer| answer.task)
        }
    }
}

impl OneTask {
    fn session(&self) -> Session {
        self.client.master.clone().session()
    }

    fn subject(&self) -> String {
        subject(self.id)
    }

    /// The task as a request has left it. When a try was lost on the way and the next is refused, the lost one may have done it.
    fn show<A>(&self, answer: Answer<A>, task: impl FnOnce(A) -> Option<TaskState>) -> Result<(), ClientError> {
        let task = match answer.result {
            Ok(answer) => task(answer).unwrap_or_default(),
            Err(ClientError::Status { subject, code: code @ Code::FailedPrecondition, text }) if answer.retried => {
                let text = format!("{text}; an earlier try may have done what was asked: see `evenkeel task get {}`", self.id);
                return Err(ClientError::Status { subject, code, text });
            }
            Err(error) => return Err(error),
        };
        print_one(self.client.output.output, &state::value(&task)?, &self.id.to_string(), || state::headline(&task))
    }
}

/// What errors name.
fn subject(id: u32) -> String {
    format!("task {id}")
}

async fn get(session: &Session, id: u32, with_script: bool) -> Result<TaskState, ClientError> {
    let request = GetTaskRequest { id, with_script };
    let answer = session.call(&subject(id), request, async |client, request| client.get_task(request).await).await?;
    Ok(answer.task.unwrap_or_default())
}

async fn ls(states: Vec<String>, client: ClientArgs) -> Result<(), ClientError> {
    let format = client.output.output;
    let session = client.master.session();
    let (mut tasks, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListTasksRequest { states: states.clone(), page_size: PAGE, page_token };
        let answer = session.call("tasks", request, async |client, request| client.list_tasks(request).await).await?;
        tasks.extend(answer.tasks);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if tasks.is_empty() && format.is_table() {
        eprintln!("no tasks{}", if states.is_empty() { "" } else { " match" });
        return Ok(());
    }
    let values = tasks.iter().map(state::value_of_list).collect::<Result<_, _>>()?;
    let ids: Vec<String> = tasks.iter().map(|task| task.id.to_string()).collect();
    let names = ids.iter().map(String::as_str).collect();
    print_list(format, Listing { values, names }, || state::table(&tasks, output::now_ns(), output::colour()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::Cli;

    #[test]
    fn lines_that_are_wrong_usage_are_refused() {
        let fine = ["ls --state paused,done", "get 7", "get 7 --script -o json", "watch 7", "output 7", "output 7 w-1 --stderr --tail 5"];
        let fine = fine.into_iter().chain(["pause 7", "resume 7", "cancel 7", "kill 7", "kill 7 w-1", "redo 7 w-1 w-2", "redo 7 --failed"]);
        for line in fine.chain(["ignore 7 w-1"]) {
            let words = ["evenkeel", "task"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        let wrong = ["", "get", "get x", "get -1", "ls --state ill", "redo 7", "redo 7 w-1 --failed", "ignore 7", "kill", "output"];
        for line in wrong {
            let words = ["evenkeel", "task"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}

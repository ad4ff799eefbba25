//! `evenkeel task watch` and `run --wait`: follows a task to its end, over the end of the master that is asked. Under client::task.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_proto::v1::{TaskHost, TaskState, WatchTaskRequest};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::state;
use crate::{
    client::{
        ClientError,
        session::{Breaks, Ended, Session},
    },
    output::{self, Format, Growing},
};

/// How long no master may answer: longer than an election, since the task goes on whether anybody watches it or not.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of a task that is watched.
#[derive(Debug, Default)]
struct Watched {
    task: TaskState,
    hosts: BTreeMap<String, TaskHost>,
    /// In the order of the task.
    order: Vec<String>,
}

impl Watched {
    /// Takes in what a master says, all of it or what has changed; gives the hosts of which it says something new.
    fn take(&mut self, said: TaskState) -> Vec<TaskHost> {
        let TaskState { hosts, .. } = said.clone();
        self.task = TaskState { hosts: Vec::new(), ..said };
        let mut changed = Vec::new();
        for host in hosts {
            let before = self.hosts.insert(host.worker.clone(), host.clone());
            if before.is_none() {
                self.order.push(host.worker.clone());
            }
            if before.as_ref() != Some(&host) {
                changed.push(host);
            }
        }
        changed
    }

    fn whole(self) -> TaskState {
        let Self { task, mut hosts, order } = self;
        TaskState { hosts: order.iter().filter_map(|worker| hosts.remove(worker)).collect(), ..task }
    }

    fn count(&self, wanted: fn(&str) -> bool) -> u64 {
        self.hosts.values().filter(|host| wanted(&host.state)).count() as u64
    }
}

/// Where the steps of a task are shown.
pub(super) enum Steps {
    /// To a person, as bars.
    Bars(Bars),
    /// A line a change, to stderr.
    Lines,
    /// A row or a value a change, to stdout.
    Rows { id: u32, format: Format, table: Growing },
}

/// One for the hosts that are at an end, one for those that run, one for those that failed.
pub(super) struct Bars {
    all: MultiProgress,
    ended: ProgressBar,
    running: ProgressBar,
    failed: ProgressBar,
}

impl Steps {
    /// Beside an answer that goes to stdout.
    pub(super) fn to_stderr() -> Self {
        if output::progress() { Self::Bars(Bars::new()) } else { Self::Lines }
    }

    /// They are the answer.
    pub(super) fn to_stdout(id: u32, format: Format) -> Self {
        Self::Rows { id, format, table: Growing::default() }
    }

    fn show(&mut self, watched: &Watched, changed: &[TaskHost]) -> Result<(), ClientError> {
        match self {
            Self::Bars(bars) => bars.show(watched),
            // That a host's turn has not come says nothing.
            Self::Lines => changed.iter().filter(|host| host.state != "waiting").for_each(|host| eprintln!("{}", state::change(host))),
            Self::Rows { id, format, table } => output::write(rows(*id, *format, table, changed)?.as_bytes())?,
        }
        Ok(())
    }

    fn say(&self, line: &str) {
        match self {
            // Where a bar is drawn, a line goes above it.
            Self::Bars(bars) => bars.all.suspend(|| eprintln!("{line}")),
            _ => eprintln!("{line}"),
        }
    }

    fn end(&self) {
        if let Self::Bars(bars) = self {
            [&bars.ended, &bars.running, &bars.failed].into_iter().for_each(ProgressBar::finish_and_clear);
        }
    }
}

fn rows(id: u32, format: Format, table: &mut Growing, changed: &[TaskHost]) -> Result<String, ClientError> {
    if changed.is_empty() {
        return Ok(String::new());
    }
    Ok(match format {
        Format::Table | Format::Wide => state::table_of_hosts(table, changed, output::now_ns(), output::colour()),
        Format::Name => changed.iter().map(|host| format!("{}\n", host.worker)).collect(),
        Format::Json | Format::Yaml => {
            let values = changed.iter().map(|host| state::value_of_host(id, host)).collect::<Result<Vec<_>, _>>()?;
            let text = |value| if format == Format::Json { format!("{value}\n") } else { format!("---\n{}", output::yaml(value)) };
            values.iter().map(text).collect()
        }
    })
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let bar = |name: &'static str| {
            let style = ProgressStyle::with_template("{prefix:8}{bar:40} {pos}/{len}").unwrap_or_else(|_| ProgressStyle::default_bar());
            all.add(ProgressBar::new(0).with_style(style).with_prefix(name))
        };
        let (ended, running, failed) = (bar("ended"), bar("running"), bar("failed"));
        Self { all, ended, running, failed }
    }

    fn show(&self, watched: &Watched) {
        let counts = [
            (&self.ended, watched.count(state::is_at_end)),
            (&self.running, watched.count(|state| state == "running")),
            (&self.failed, watched.count(state::has_failed)),
        ];
        for (bar, count) in counts {
            bar.set_length(watched.hosts.len() as u64);
            bar.set_position(count);
        }
    }
}

/// Until every host is at an end. Gives the task with all of its hosts, of which a summary was told.
pub(super) async fn wait(session: &Session, id: u32, steps: &mut Steps) -> Result<TaskState, ClientError> {
    let ended = tokio::select! {
        ended = follow(session, id, steps) => ended,
        _ = tokio::signal::ctrl_c() => Err(ClientError::Failed(goes_on(id))),
    };
    steps.end();
    let task = ended?;
    eprint!("{}", state::summary(&task));
    Ok(task)
}

fn goes_on(id: u32) -> String {
    format!("task {id}: it goes on; `evenkeel task watch {id}` shows it again, `evenkeel task kill {id}` ends it")
}

async fn follow(session: &Session, id: u32, steps: &mut Steps) -> Result<TaskState, ClientError> {
    // That nobody answers at all is said at once; later it may pass.
    session.client().await?;
    let (mut watched, mut paused) = (Watched::default(), None);
    let mut breaks = Breaks::of(PATIENCE);
    loop {
        let before = watched.hosts.is_empty() && watched.task.id == 0;
        let broken = match once(session, id, steps, &mut watched, &mut paused, &mut breaks).await {
            Ok(()) => return Ok(watched.whole()),
            Err(broken) => broken,
        };
        match breaks.wait(session, broken).await {
            Err(error) if before => return Err(error),
            Err(error) => return Err(ClientError::Failed(format!("{error}\n{}", goes_on(id)))),
            Ok(()) => {}
        }
    }
}

/// One stream. It tells of a pause when there is another one.
async fn once(
    session: &Session,
    id: u32,
    steps: &mut Steps,
    watched: &mut Watched,
    paused: &mut Option<String>,
    breaks: &mut Breaks,
) -> Result<(), Ended> {
    let subject = super::subject(id);
    let ended = |status: &tonic::Status| Ended::by(&subject, status);
    let mut client = session.client().await.map_err(Ended::passing)?;
    let mut stream = client.watch_task(WatchTaskRequest { id }).await.map_err(|s| ended(&s))?.into_inner();
    loop {
        let Some(answer) = stream.message().await.map_err(|s| ended(&s))? else {
            // It ends with the task; what ends before that is the master.
            let error = ClientError::Failed(format!("{subject}: the master ended the stream"));
            return if watched.task.state == "done" { Ok(()) } else { Err(Ended::passing(error)) };
        };
        *breaks = Breaks::of(PATIENCE);
        let changed = watched.take(answer.task.unwrap_or_default());
        steps.show(watched, &changed).map_err(Ended::For)?;
        let now = (watched.task.state == "paused").then(|| state::paused(&watched.task));
        if *paused != now {
            now.as_deref().map_or_else(|| steps.say(&format!("{subject} goes on")), |why| steps.say(&format!("{subject} is {why}")));
            *paused = now;
        }
        if watched.task.state == "done" {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(worker: &str, state: &str) -> TaskHost {
        TaskHost { worker: worker.to_owned(), state: state.to_owned(), ..TaskHost::default() }
    }

    fn said(state: &str, hosts: &[TaskHost]) -> TaskState {
        TaskState { id: 7, state: state.to_owned(), hosts: hosts.to_vec(), ..TaskState::default() }
    }

    #[test]
    fn what_is_said_again_is_shown_once() {
        let mut watched = Watched::default();
        let all = [host("w-2", "running"), host("w-1", "waiting")];
        assert_eq!(watched.take(said("running", &all)), all);
        assert_eq!(watched.take(said("running", &[host("w-1", "running")])), [host("w-1", "running")]);
        // Another master begins with all of it.
        let again = [host("w-2", "failed"), host("w-1", "running")];
        assert_eq!(watched.take(said("paused", &again)), [host("w-2", "failed")]);
        assert_eq!((watched.count(state::is_at_end), watched.count(state::has_failed)), (1, 1));
        assert_eq!(watched.take(said("done", &[host("w-1", "succeeded")])), [host("w-1", "succeeded")]);
        assert_eq!(watched.whole(), said("done", &[host("w-2", "failed"), host("w-1", "succeeded")]));
    }

    #[test]
    fn rows_have_one_header_and_values_a_line_each() {
        let mut table = Growing::default();
        let first = rows(7, Format::Table, &mut table, &[host("w-1", "pending")]).expect("text");
        let second = rows(7, Format::Table, &mut table, &[host("w-1", "running")]).expect("text");
        assert_eq!((first.matches("WORKER").count(), second.matches("WORKER").count()), (1, 0));
        assert_eq!(rows(7, Format::Table, &mut table, &[]).expect("text"), "");
        let text = rows(7, Format::Json, &mut table, &[host("w-1", "running"), host("w-2", "running")]).expect("text");
        let values: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("a value")).collect();
        assert_eq!((values.len(), &values[1]["worker"], &values[1]["task"]), (2, &"w-2".into(), &7.into()));
    }
}

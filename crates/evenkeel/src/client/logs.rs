//! `evenkeel logs`: what a resource's process wrote, byte by byte.

use std::time::Duration;

use clap::Args;
use evenkeel_model::ResourceName;
use evenkeel_proto::v1::{GetResourceRequest, ReadLogsRequest, ResourceState};
use tonic::Code;

use super::{
    ClientError, MasterArg,
    session::{Ended, Session},
};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The resource
    name: ResourceName,
    /// Go on, and print what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    tail: u32,
    #[command(flatten)]
    master: MasterArg,
}

/// The pause before the output is asked for again, when it has broken off.
const PAUSE: Duration = Duration::from_millis(300);

/// How far one that follows has come.
#[derive(Debug, Default)]
struct Course {
    /// The output was asked for before, so what an earlier owner wrote is not shown.
    begun: bool,
    /// Where it goes on, if it is still on the same worker.
    position: String,
    /// Whose output was asked for last.
    epoch: i64,
    /// What was said last to the person who waits.
    said: String,
}

impl Course {
    /// Says what is waited for, once.
    fn say(&mut self, what: &str) {
        let what = output::printable(what);
        if self.said != what {
            eprintln!("{what}; waiting");
            self.said = what;
        }
    }
}

pub(crate) async fn run(args: LogsArgs) -> Result<(), ClientError> {
    let session = args.master.session();
    let subject = args.name.to_string();
    let mut course = Course::default();
    loop {
        let get = GetResourceRequest { name: subject.clone() };
        let found = session.call(&subject, get, async |client, request| client.get_resource(request).await).await;
        let state = match found {
            // What was followed has gone: that is the end of its output.
            Err(error) if error.is(Code::NotFound) && course.begun => return Ok(()),
            found => found?.resource.unwrap_or_default(),
        };
        if args.follow && state.worker.is_empty() {
            course.say(&format!("{subject} is pending: {}", state.reason));
            course.begun = true;
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        // Nothing more comes of what has finished: its last word is fetched, and that is the end.
        let is_over = is_over(&state);
        let follow = args.follow && !is_over;
        if !is_over {
            course.epoch = state.epoch;
        }
        // With neither a place to go on from nor an epoch it is all that is kept on that worker.
        let (tail, since_epoch) = if course.begun { (0, course.epoch) } else { (args.tail, 0) };
        let request = ReadLogsRequest { name: subject.clone(), follow, tail, position: course.position.clone(), since_epoch };
        let before = course.position.clone();
        let ended = read(&session, &subject, &request, &mut course).await;
        match ended {
            _ if is_over && has_nothing(&ended) => return if course.position.is_empty() { Err(silent_end(&state)) } else { Ok(()) },
            Err(error) if is_over && error.is(Code::FailedPrecondition) => return Err(error),
            Ok(()) if !follow => return Ok(()),
            // Its run has ended: where it goes, or that it has gone, is to be seen at once.
            Ok(()) if course.position != before => continue,
            Ok(()) => {}
            Err(ClientError::Status { code, text, .. }) if args.follow && may_come(code, course.begun) => course.say(&text),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// PURE: whether it has finished, and its worker has let go of it.
fn is_over(state: &ResourceState) -> bool {
    state.epoch == 0 && !state.worker.is_empty() && matches!(state.phase.as_str(), "exited" | "failed")
}

/// PURE: whether all that there is has been read.
fn has_nothing(ended: &Result<(), ClientError>) -> bool {
    ended.as_ref().map_or_else(|error| error.is(Code::NotFound), |()| true)
}

/// PURE: what is said of work that has finished without a word.
fn silent_end(state: &ResourceState) -> ClientError {
    let how = if state.message.is_empty() { String::new() } else { format!(" ({})", output::printable(&state.message)) };
    let text = format!("wrote nothing; it {} on {}{how}", output::printable(&state.phase), output::printable(&state.worker));
    let subject = state.resource.as_ref().map(|resource| resource.name.clone()).unwrap_or_default();
    ClientError::Status { subject, code: Code::NotFound, text }
}

/// PURE: whether output may come later although a master or worker has said this. Before the first answer a refusal is told at once.
fn may_come(code: Code, begun: bool) -> bool {
    match code {
        // The worker has not started it yet, cannot be reached, or the connection broke.
        Code::NotFound | Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded => true,
        Code::FailedPrecondition | Code::ResourceExhausted | Code::Aborted => begun,
        _ => false,
    }
}

/// Prints one stream to its end.
async fn read(session: &Session, subject: &str, request: &ReadLogsRequest, course: &mut Course) -> Result<(), ClientError> {
    let mut stream = session.call(subject, request.clone(), async |client, request| client.read_logs(request).await).await?;
    loop {
        match stream.message().await {
            Ok(Some(part)) => {
                course.begun = true;
                if !part.note.is_empty() {
                    course.say(&part.note);
                }
                if !part.chunk.is_empty() {
                    output::write(&part.chunk)?;
                    course.position = part.position;
                    course.said.clear();
                }
            }
            Ok(None) => return Ok(()),
            Err(status) => {
                if let Ended::Passing { silent: true, .. } = Ended::by(subject, &status) {
                    session.give_up(true).await;
                }
                return Err(ClientError::status(subject, &status));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::Resource;

    use super::*;

    #[test]
    fn of_what_has_finished_nothing_more_comes() {
        let state = |phase: &str, epoch: i64, message: &str| ResourceState {
            resource: Some(Resource { name: "job".to_owned(), ..Resource::default() }),
            worker: "worker-3".to_owned(),
            phase: phase.to_owned(),
            epoch,
            message: message.to_owned(),
            ..ResourceState::default()
        };
        let cases = [("exited", 0, true), ("failed", 0, true), ("exited", 7, false), ("failed", 7, false), ("pending", 0, false)];
        for (phase, epoch, over) in cases {
            assert_eq!(is_over(&state(phase, epoch, "")), over, "{phase} {epoch}");
        }
        let said = |phase, message| silent_end(&state(phase, 0, message)).to_string();
        assert_eq!(said("exited", "exit status 0"), "job: wrote nothing; it exited on worker-3 (exit status 0)");
        assert_eq!(said("failed", ""), "job: wrote nothing; it failed on worker-3");
    }
}

//! What can go wrong in a client command: each is one line that names the thing and the way out, and an exit status.

use std::{io, process::ExitCode};

use tonic::{Code, Status};

use super::convert::ConvertError;
use crate::{cli::WRONG_USAGE, files::FilesError, output::printable};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// What was asked for is wrong in itself; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// As [`ClientError::Usage`], for files: one line for each thing.
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("no master can be reached at {0}; name one with --master URL or EVENKEEL_MASTER, or start one with `evenkeel master --id 1`")]
    Unreachable(String),
    /// It may have been done all the same.
    #[error("{subject}: no master answers: {reasons}; try again, or name another master with --master")]
    Silent { subject: String, reasons: String },
    #[error("{subject}: {text}")]
    Status { subject: String, code: Code, text: String },
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// Said already, line by line.
    #[error("{0}")]
    Failed(String),
    #[error("stdout: {0}")]
    Output(#[from] io::Error),
}

impl ClientError {
    /// What a master said, with the way out where there is one.
    pub(crate) fn status(subject: &str, status: &Status) -> Self {
        Self::Status {
            subject: subject.to_owned(),
            code: status.code(),
            text: match std::error::Error::source(status) {
                Some(error) => format!("the connection to the master broke ({}); try again", printable(&root_cause(error))),
                None => advice(subject, status.code(), &printable(status.message())),
            },
        }
    }

    /// Whether a master said this.
    pub(crate) fn is(&self, wanted: Code) -> bool {
        matches!(self, Self::Status { code, .. } if *code == wanted)
    }

    /// Tells it, and gives the exit status. A reader of stdout that has gone is no error: `| head` ends like this.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Files(files) => {
                const SHOWN: usize = 20;
                let lines = files.lines();
                lines.iter().take(SHOWN).for_each(|line| say(line));
                if lines.len() > SHOWN {
                    say(&format!("and {} more like these", lines.len() - SHOWN));
                }
            }
            other => say(&other.to_string()),
        }
        match self {
            Self::Usage(_) | Self::Files(_) => ExitCode::from(WRONG_USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}

/// One line to stderr.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "error: {}", printable(line));
}

/// The innermost error says what happened; those around it say only that something did.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What a code means to the person at the terminal. What a master says has its way out with it.
pub(crate) fn advice(subject: &str, code: Code, message: &str) -> String {
    // The subject stands before it already.
    let rest = message.strip_prefix(subject).filter(|rest| rest.starts_with([':', ' ']));
    let message = rest.map_or(message, |rest| rest.trim_start_matches([':', ' ']));
    let or = |fallback: &str| if message.is_empty() { fallback.to_owned() } else { message.to_owned() };
    match code {
        Code::NotFound => or("not found"),
        // What a master says has its own way out.
        Code::AlreadyExists if message.contains("; ") => message.to_owned(),
        Code::AlreadyExists => format!(
            "already exists with a different definition; change it with `evenkeel apply -f FILE`, or delete it first with `evenkeel delete {subject}`"
        ),
        Code::Unavailable => or("there is no leader now; try again in a moment"),
        Code::Unimplemented => or("the master does not have this call; is it of an older version, or is this not its gRPC port?"),
        Code::ResourceExhausted => or("too much at once; try again with less at once"),
        Code::DeadlineExceeded => or("no answer in time; try again"),
        Code::Unknown | Code::Internal => or("the master failed; its log says why"),
        _ => or("refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_says_what_to_do() {
        let cases = [
            (Status::not_found("no such resource"), "a: no such resource"),
            (Status::not_found("a: no such resource"), "a: no such resource"),
            (
                Status::already_exists("resource a already exists with a different definition"),
                "a: already exists with a different definition; change it with `evenkeel apply -f FILE`, or delete it first with `evenkeel delete a`",
            ),
            (
                Status::already_exists(
                    "add: resource a already exists with a different definition; by `evenkeel apply` this restarts it on w",
                ),
                "a: add: resource a already exists with a different definition; by `evenkeel apply` this restarts it on w",
            ),
            (Status::unavailable(""), "a: there is no leader now; try again in a moment"),
            (Status::unavailable("no master leads at the moment; try again"), "a: no master leads at the moment; try again"),
            (Status::unimplemented("DrainWorker is not in this version"), "a: DrainWorker is not in this version"),
            (Status::unimplemented(""), "a: the master does not have this call; is it of an older version, or is this not its gRPC port?"),
            (Status::invalid_argument("weight: 0 is not within 1 to 1000000"), "a: weight: 0 is not within 1 to 1000000"),
            (Status::resource_exhausted(""), "a: too much at once; try again with less at once"),
            (Status::internal("evil\u{1b}[2J\nline"), "a: evil [2J line"),
        ];
        for (status, expected) in cases {
            assert_eq!(ClientError::status("a", &status).to_string(), expected);
        }
        let said = "task 7: there is none; those that are done are kept for a while only";
        assert_eq!(ClientError::status("task 7", &Status::not_found(said)).to_string(), said);
    }
}

//! What the agent and the shim of a run say to each other over their socket: frames, in one file for both sides.
//!
//! The wheel: between worker::driver and worker::hold. A frame is a tag of one byte, the length of the rest as four bytes, the least
//! first, and the rest. Numbers are little-endian; a text in a list ends with a NUL, which no text has in it.
//!
//! | tag | from | rest |
//! |---|---|---|
//! | 1 start | agent | boot time in ns after which nothing may be started (8), flags (1): 1 privileges may be gained, 2 stderr apart, 4 what is left lives on, 16 its fields are a task's, 8 an account follows: uid (4), gid (4), number of groups (4), groups; number of arguments (4), cgroup, cwd, stdin, arguments, environment |
//! | 2 signal | agent | number (4) |
//! | 3 kill | agent | |
//! | 16 ready | shim | its process number (4) |
//! | 17 forked | shim | the main process's number (4) |
//! | 18 started | shim | |
//! | 19 refused | shim | why nothing was started, for people |
//! | 20 too late | shim | |
//! | 21 held up | shim | what the child waits for, for people |
//! | 22 exited | shim | the status of the main process, as the kernel has it (4) |
//! | 23 output | shim | bytes; of stdout alone where stderr is apart |
//! | 24 stuck | shim | what does not die, for people |
//! | 25 empty | shim | |
//! | 26 errors | shim | bytes of stderr, where it is apart |
//! | 27 left | shim | how many processes lived when the main process had ended, 1000 at the most (4); only where stderr is apart, and left out where none did |

use std::{
    ffi::{CStr, CString},
    time::Duration,
};

use crate::protocol::authority::BootTime;

/// How often a shim that ends a run says so as long as something of it does not die. An agent that hears nothing for longer takes the shim for
/// stopped or gone.
pub const STUCK_EVERY: Duration = Duration::from_secs(1);

/// The longest rest of a frame: the largest spec and environment fit well. What claims more is no frame of ours.
const LONGEST: usize = 64 << 20;
const HEADER: usize = 5;

/// What to start, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Nothing is started from this time on.
    pub not_after: BootTime,
    /// Programs may gain privileges by being executed (setuid).
    pub may_gain_privileges: bool,
    /// The folder of the cgroup that holds it; empty: none.
    pub cgroup: CString,
    /// The folder that it starts in.
    pub cwd: CString,
    /// The file that is its stdin, opened before it changes its account; empty: `/dev/null`.
    pub stdin: CString,
    /// Stderr has a pipe of its own, and is told by [`ToAgent::Errors`]; and what is left is counted, and told by [`ToAgent::Left`].
    pub errors_apart: bool,
    /// What lives when the main process has ended lives on, until it ends by itself, or the run is killed.
    pub leaves_children: bool,
    /// Whom it runs as; none: as its shim.
    pub account: Option<Account>,
    /// What its fields are called where people are told of them.
    pub terms: Terms,
    /// The program and its arguments; never empty.
    pub command: Vec<CString>,
    /// All of its environment, as NAME=VALUE.
    pub environment: Vec<CString>,
}

/// What the fields of what is started are called: people know them by what they wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// They are a spec's.
    Spec,
    /// They are a task's.
    Task,
}

impl Terms {
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Spec => "spec.command[0]:",
            Self::Task => "the program",
        }
    }

    pub(super) fn cwd(self) -> &'static str {
        match self {
            Self::Spec => "spec.cwd:",
            Self::Task => "the folder",
        }
    }

    /// Its arguments and its environment.
    pub(super) fn texts(self) -> &'static str {
        match self {
            Self::Spec => "spec.command and spec.env:",
            Self::Task => "args and env:",
        }
    }
}

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// All of its groups.
    pub groups: Vec<u32>,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToShim {
    /// Start this. Said once, first.
    Start(Start),
    /// Send this signal to the main process and its group.
    Signal(i32),
    /// Kill everything.
    Kill,
}

/// What the shim says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// It is there, and has this number.
    Ready(i32),
    /// There is a main process, which does not execute its program yet.
    Forked(i32),
    /// The main process executes its program.
    Started,
    /// Nothing was started.
    Refused(String),
    /// Nothing was started, because authority had ended.
    TooLate,
    /// The program is not executed yet: this is what the child waits for.
    HeldUp(String),
    /// The main process has ended.
    Exited(i32),
    /// Output of any process of the run: what it wrote to stdout, and to stderr where that is not apart.
    Output(Vec<u8>),
    /// This does not die.
    Stuck(String),
    /// Nothing of the run is left. The last word.
    Empty,
    /// What any process of the run wrote to stderr, where that is apart.
    Errors(Vec<u8>),
    /// So many processes lived when the main process had ended, where stderr is apart: at least one; more than 1000 are told as 1000.
    Left(u32),
}

fn frame(tag: u8, rest: &[&[u8]]) -> Vec<u8> {
    let length: usize = rest.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEADER + length);
    frame.push(tag);
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    rest.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

impl ToShim {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Start(start) => {
                let mut texts = Vec::new();
                let all = [&start.cgroup, &start.cwd, &start.stdin].into_iter().chain(&start.command).chain(&start.environment);
                all.for_each(|text| texts.extend_from_slice(text.as_bytes_with_nul()));
                let account = start.account.as_ref().map(encode_account).unwrap_or_default();
                let flags = [
                    start.may_gain_privileges,
                    start.errors_apart,
                    start.leaves_children,
                    start.account.is_some(),
                    start.terms == Terms::Task,
                ];
                let flags = flags.iter().rev().fold(0_u8, |all, flag| all << 1 | u8::from(*flag));
                frame(1, &[&start.not_after.0.to_le_bytes(), &[flags], &account, &count(&start.command), &texts])
            }
            Self::Signal(number) => frame(2, &[&number.to_le_bytes()]),
            Self::Kill => frame(3, &[]),
        }
    }

    /// None for what is no message.
    pub(crate) fn decode(frame: &Frame) -> Option<Self> {
        match frame.tag {
            1 => start(&frame.rest).map(Self::Start),
            2 => number(&frame.rest).map(Self::Signal),
            3 => Some(Self::Kill),
            _ => None,
        }
    }
}

/// How many, in four bytes.
fn count<T>(list: &[T]) -> [u8; 4] {
    u32::try_from(list.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn encode_account(account: &Account) -> Vec<u8> {
    let numbers = [account.uid, account.gid].map(u32::to_le_bytes);
    let groups = account.groups.iter().map(|group| group.to_le_bytes());
    numbers.into_iter().chain([count(&account.groups)]).chain(groups).flatten().collect()
}

/// The next number, and what follows it.
fn next_number(rest: &[u8]) -> Option<(u32, &[u8])> {
    let (bytes, rest) = rest.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*bytes), rest))
}

/// The account, and what follows it.
fn account(rest: &[u8]) -> Option<(Account, &[u8])> {
    let (uid, rest) = next_number(rest)?;
    let (gid, rest) = next_number(rest)?;
    let (number, mut rest) = next_number(rest)?;
    let mut groups = Vec::new();
    for _ in 0..number {
        let (group, after) = next_number(rest)?;
        groups.push(group);
        rest = after;
    }
    Some((Account { uid, gid, groups }, rest))
}

fn start(rest: &[u8]) -> Option<Start> {
    let (not_after, rest) = rest.split_first_chunk::<8>()?;
    let (&[flags], rest) = rest.split_first_chunk::<1>()?;
    let has = |flag: u8| flags & flag != 0;
    let (account, rest) = if has(8) { account(rest).map(|(account, rest)| (Some(account), rest))? } else { (None, rest) };
    let (arguments, mut rest) = rest.split_first_chunk::<4>()?;
    let mut texts = Vec::new();
    while !rest.is_empty() {
        let text = CStr::from_bytes_until_nul(rest).ok()?;
        rest = &rest[text.to_bytes_with_nul().len()..];
        texts.push(text.to_owned());
    }
    let mut texts = texts.into_iter();
    let (cgroup, cwd, stdin) = (texts.next()?, texts.next()?, texts.next()?);
    let arguments = usize::try_from(u32::from_le_bytes(*arguments)).ok()?;
    let command: Vec<CString> = texts.by_ref().take(arguments).collect();
    if command.is_empty() || command.len() != arguments {
        return None;
    }
    Some(Start {
        not_after: BootTime(u64::from_le_bytes(*not_after)),
        may_gain_privileges: has(1),
        errors_apart: has(2),
        leaves_children: has(4),
        terms: if has(16) { Terms::Task } else { Terms::Spec },
        account,
        cgroup,
        cwd,
        stdin,
        command,
        environment: texts.collect(),
    })
}

fn number(rest: &[u8]) -> Option<i32> {
    rest.first_chunk::<4>().map(|bytes| i32::from_le_bytes(*bytes))
}

impl ToAgent {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready(pid) => frame(16, &[&pid.to_le_bytes()]),
            Self::Forked(pid) => frame(17, &[&pid.to_le_bytes()]),
            Self::Started => frame(18, &[]),
            Self::Refused(why) => frame(19, &[why.as_bytes()]),
            Self::TooLate => frame(20, &[]),
            Self::HeldUp(what) => frame(21, &[what.as_bytes()]),
            Self::Exited(status) => frame(22, &[&status.to_le_bytes()]),
            Self::Output(bytes) => frame(23, &[bytes]),
            Self::Stuck(what) => frame(24, &[what.as_bytes()]),
            Self::Empty => frame(25, &[]),
            Self::Errors(bytes) => frame(26, &[bytes]),
            Self::Left(number) => frame(27, &[&number.to_le_bytes()]),
        }
    }

    /// None for what is no message.
    pub(crate) fn decode(frame: Frame) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(match frame.tag {
            16 => Self::Ready(number(&frame.rest)?),
            17 => Self::Forked(number(&frame.rest)?),
            18 => Self::Started,
            19 => Self::Refused(text(&frame.rest)),
            20 => Self::TooLate,
            21 => Self::HeldUp(text(&frame.rest)),
            22 => Self::Exited(number(&frame.rest)?),
            23 => Self::Output(frame.rest),
            24 => Self::Stuck(text(&frame.rest)),
            25 => Self::Empty,
            26 => Self::Errors(frame.rest),
            27 => Self::Left(next_number(&frame.rest)?.0),
            _ => return None,
        })
    }
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    tag: u8,
    rest: Vec<u8>,
}

/// Puts frames together from what reads yield. It takes no memory while nothing is under way.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Vec<u8>);

/// What came is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came over the socket of a run is no frame")]
pub(crate) struct NoFrame;

impl Inbox {
    /// These bytes were read.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// The bytes cannot be the beginning of a frame.
    pub(crate) fn take(&mut self) -> Result<Option<Frame>, NoFrame> {
        let Some((&[tag, a, b, c, d], rest)) = self.0.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).map_err(|_| NoFrame)?;
        if length > LONGEST {
            return Err(NoFrame);
        }
        let Some(rest) = rest.get(..length) else { return Ok(None) };
        let frame = Frame { tag, rest: rest.to_vec() };
        self.0.drain(..HEADER + length);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> CString {
        CString::new(text).expect("no NUL")
    }

    fn start_of(cgroup: &str, command: &[&str], environment: &[&str]) -> ToShim {
        let list = |texts: &[&str]| texts.iter().map(|t| text(t)).collect();
        let (command, environment): (Vec<_>, Vec<_>) = (list(command), list(environment));
        let (cgroup, cwd, stdin) = (text(cgroup), text("/"), text("in"));
        let account = (!cgroup.is_empty()).then(|| Account { uid: 1, gid: u32::MAX, groups: vec![0, 7] });
        let (may_gain_privileges, errors_apart, leaves_children) = (account.is_none(), account.is_some(), environment.is_empty());
        let terms = if leaves_children { Terms::Task } else { Terms::Spec };
        let not_after = BootTime(u64::MAX - 1);
        ToShim::Start(Start {
            not_after,
            may_gain_privileges,
            errors_apart,
            leaves_children,
            terms,
            account,
            cgroup,
            cwd,
            stdin,
            command,
            environment,
        })
    }

    fn frames(bytes: &[u8], chunk: usize) -> Vec<Frame> {
        let (mut inbox, mut found) = (Inbox::default(), Vec::new());
        for piece in bytes.chunks(chunk) {
            inbox.add(piece);
            while let Some(frame) = inbox.take().expect("frames") {
                found.push(frame);
            }
        }
        assert_eq!(inbox.0.capacity(), 0, "an idle inbox takes no memory");
        found
    }

    #[test]
    fn every_message_comes_back_however_it_is_cut() {
        let to_shim = [
            start_of("", &["sleep", "", "1"], &[]),
            start_of("/sys/fs/cgroup/x", &["a"], &["A=b", "EMPTY=", "", "A=c"]),
            ToShim::Signal(-1),
            ToShim::Kill,
        ];
        let bytes: Vec<u8> = to_shim.iter().flat_map(ToShim::encode).collect();
        let to_agent = [
            ToAgent::Ready(3),
            ToAgent::Forked(7),
            ToAgent::Started,
            ToAgent::Refused("no".into()),
            ToAgent::TooLate,
            ToAgent::HeldUp("cwd".into()),
            ToAgent::Exited(256),
            ToAgent::Output(vec![0, 255, 10]),
            ToAgent::Output(Vec::new()),
            ToAgent::Stuck("12".into()),
            ToAgent::Empty,
            ToAgent::Errors(vec![255]),
            ToAgent::Left(3),
        ];
        let back: Vec<u8> = to_agent.iter().flat_map(ToAgent::encode).collect();
        for chunk in [1, 3, 7, 4096] {
            let found: Vec<_> = frames(&bytes, chunk).iter().map(|frame| ToShim::decode(frame).expect("known")).collect();
            assert_eq!(found, to_shim);
            let found: Vec<_> = frames(&back, chunk).into_iter().map(|frame| ToAgent::decode(frame).expect("known")).collect();
            assert_eq!(found, to_agent);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut inbox = Inbox::default();
        inbox.add(&[1, 255, 255, 255, 255]);
        assert_eq!(inbox.take(), Err(NoFrame));
        for (tag, rest) in [
            (9, vec![]),
            (2, vec![1]),
            (1, vec![0; 12]),
            (1, vec![0; 14]),
            (1, [vec![0; 9], vec![9, 0, 0, 0], vec![0; 4]].concat()),
            (1, [vec![0; 8], vec![8], vec![255; 16]].concat()),
        ] {
            let frame = Frame { tag, rest };
            assert_eq!(ToShim::decode(&frame), None, "{frame:?}");
        }
    }
}

//! The value of `/results/<worker>/<id>`: what came of a task on one host, as its worker says. Under model::task. A worker writes it when it begins
//! and when it knows the end; it is bound to no session.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::is_default;
use crate::{Cluster, Read, Revision, Seen, Stored, TaskId, WorkerId};

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskResult {
    /// Which attempt; 0: it cannot be read.
    pub attempt: u32,
    /// The revision of the order that it carries out.
    pub order: Revision,
    /// Whether it goes on.
    pub phase: ResultPhase,
    /// What came of it, where it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The exit status of the script, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The signal that ended it; 0: none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub signal: i32,
    /// When it began, and when it ended: nanoseconds since the Unix epoch, by the worker's time of day; 0: it did not.
    #[serde(default, skip_serializing_if = "is_default")]
    pub began: i64,
    #[serde(default, skip_serializing_if = "is_default")]
    #[allow(missing_docs, reason = "see above")]
    pub ended: i64,
    /// How many bytes it wrote to its output, and to its errors.
    #[serde(default, skip_serializing_if = "is_default")]
    pub out: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    #[allow(missing_docs, reason = "see above")]
    pub err: u64,
    /// How many processes it left behind that were killed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub leftover: u32,
    /// For people.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub message: Box<str>,
    /// Where more of its output is; empty: nowhere.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub kept: Box<str>,
}

/// Whether an attempt goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultPhase {
    /// It was begun, or is about to be.
    Running,
    /// It goes on no more.
    Ended,
}

/// What came of an attempt that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It ended with exit status 0.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// It was stopped at its timeout.
    TimedOut,
    /// It was stopped before that.
    Killed,
    /// It was never begun: the worker does not take it.
    Rejected,
    /// It was begun, and how it ended is not known.
    Lost,
}

impl TaskResult {
    /// An attempt that is begun by this order.
    #[must_use]
    pub fn running(attempt: u32, order: Revision, began: i64) -> Self {
        Self {
            attempt,
            order,
            phase: ResultPhase::Running,
            outcome: None,
            exit: None,
            signal: 0,
            began,
            ended: 0,
            out: 0,
            err: 0,
            leftover: 0,
            message: Box::default(),
            kept: Box::default(),
        }
    }

    /// The same attempt, which has ended like this.
    #[must_use]
    pub fn with_end(self, outcome: Outcome, ended: i64, message: impl Into<Box<str>>) -> Self {
        Self { phase: ResultPhase::Ended, outcome: Some(outcome), ended, message: message.into(), ..self }
    }

    /// What came of it; none: it goes on.
    #[must_use]
    pub fn end(&self) -> Option<Outcome> {
        // An end that is not said is not known.
        (self.phase == ResultPhase::Ended).then(|| self.outcome.unwrap_or(Outcome::Lost))
    }

    /// It speaks of this attempt, as far as that can be known.
    #[must_use]
    pub fn is_of(&self, attempt: u32) -> bool {
        self.attempt == attempt || self.attempt == 0
    }
}

impl Stored for TaskResult {
    type Ids = (WorkerId, TaskId);

    /// Something was begun, and may go on.
    fn read(_: &Self::Ids, json: &[u8]) -> Read<Self> {
        Read::or(json, || Some(Self::running(0, Revision::default(), 0)))
    }

    fn apply(cluster: &mut Cluster, (worker, id): Self::Ids, value: Option<Self>, seen: Seen) {
        cluster.with_task_host(id, &worker, seen.now, |host| host.set_result(value, seen.modified));
    }
}

/// The value of `/x/tails/<worker>/<id>`: the last bytes of what an attempt wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskTail {
    /// Which attempt.
    pub attempt: u32,
    /// Of its output. Text where it is text, else hexadecimal digits after `hex:`.
    #[serde(default, with = "bytes_text", skip_serializing_if = "Vec::is_empty")]
    pub out: Vec<u8>,
    /// Of its errors.
    #[serde(default, with = "bytes_text", skip_serializing_if = "Vec::is_empty")]
    pub err: Vec<u8>,
}

impl Stored for TaskTail {
    type Ids = (WorkerId, TaskId);

    fn read(_: &Self::Ids, json: &[u8]) -> Read<Self> {
        Read::or(json, || None)
    }
}

/// Bytes as JSON: text stays readable, and what is none survives.
mod bytes_text {
    use super::*;

    const HEX: &str = "hex:";

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.starts_with(HEX) => serializer.serialize_str(text),
            _ => serializer.serialize_str(&bytes.iter().fold(HEX.to_owned(), |text, byte| format!("{text}{byte:02x}"))),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let Some(digits) = text.strip_prefix(HEX) else { return Ok(text.into_bytes()) };
        let pairs = digits.as_bytes().chunks(2);
        let bytes = pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or_default(), 16));
        bytes.collect::<Result<_, _>>().map_err(|_| de::Error::custom("invalid hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_like_this() {
        let running = TaskResult::running(1, Revision(4711), 7);
        let failed = TaskResult { exit: Some(3), out: 12, ..running.clone().with_end(Outcome::Failed, 9, "") };
        let cases = [
            (running, r#"{"Attempt":1,"Order":4711,"Phase":"running","Began":7}"#),
            (failed, r#"{"Attempt":1,"Order":4711,"Phase":"ended","Outcome":"failed","Exit":3,"Began":7,"Ended":9,"Out":12}"#),
        ];
        for (result, text) in cases {
            assert_eq!(serde_json::to_string(&result).expect("json"), text);
            assert_eq!(serde_json::from_str::<TaskResult>(text).expect("read"), result);
        }
    }

    #[test]
    fn a_tail_keeps_every_byte() {
        for bytes in [&b"text"[..], b"", b"\xff\x00", b"hex:ff", "\u{e9}".as_bytes()] {
            let tail = TaskTail { attempt: 1, out: bytes.to_vec(), err: Vec::new() };
            let text = serde_json::to_string(&tail).expect("json");
            assert_eq!(serde_json::from_str::<TaskTail>(&text).expect("read"), tail, "{text}");
        }
    }
}

//! What a resource of kind `process` says, read by one function, so that whoever takes it in and the worker that runs it cannot disagree.
//! Limits are judged where it is taken in, and never again. Each error names the field and the rule.

use std::{collections::BTreeMap, hash::Hash as _, time::Duration};

use serde_json::Value;

use crate::{
    DefinitionError, Spec,
    builtin::{Digest, Specs},
    limits::{MAX_ARGUMENTS, MAX_ENV, MAX_GRACE, MAX_PATH},
    shown::{bare, cut, shown},
};

/// The kind of these specs.
pub const KIND: &str = "process";

/// The fields of which a change is taken while a process runs: they say how it is watched and stopped, and nothing of what it is.
pub const IN_PLACE: &[&str] = &["restart", "stop_signal", "stop_grace"];

/// How these specs are read, for the table of kinds.
pub(crate) const SPECS: Specs = Specs {
    check: |spec| ProcessSpec::parse(spec).map(drop),
    check_types: crate::manifest::check_process,
    is_same: |old, new| ProcessSpec::stored(old).is_ok_and(|old| ProcessSpec::stored(new).is_ok_and(|new| new == old)),
    feed,
};

/// What a spec may have, for people.
const FIELDS: &str = "command, env, env_pass, cwd, restart, stop_signal, stop_grace, allow_privilege_escalation";

/// A checked spec, with its defaults filled in. Two that are equal ask for the same: see [`crate::work`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessSpec {
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// What its environment has beside the usual.
    pub env: BTreeMap<String, String>,
    /// What its environment has of the worker's own, beside PATH, HOME, USER and LANG; none: what the worker gives to all.
    pub env_pass: Option<Vec<String>>,
    /// The folder that it starts in; none: `/`.
    pub cwd: Option<String>,
    /// Its programs may gain privileges by being executed, as those with the setuid bit do. A worker that could not end what has become another
    /// user refuses that.
    pub allow_privilege_escalation: bool,
    /// When it is started again.
    pub restart: Restart,
    /// What asks it to end.
    pub stop_signal: StopSignal,
    /// How long it may take to end; none: the worker's usual grace.
    pub stop_grace: Option<Duration>,
}

/// When a process that ended by itself is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Restart {
    /// Whenever it ended.
    #[default]
    Always,
    /// When it ended with another status than 0.
    OnFailure,
    /// Never.
    Never,
}

/// What asks a process to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are those of the signals")]
pub enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Kill,
}

type Checked<T> = Result<T, DefinitionError>;

fn wrong<T>(field: &str, rule: impl std::fmt::Display) -> Checked<T> {
    Err(DefinitionError::Spec { field: field.to_owned(), rule: rule.to_string() })
}

/// A value of any type, as it is shown.
fn value_shown(value: &Value) -> String {
    value.as_str().map_or_else(|| cut(value.to_string()), shown)
}

impl ProcessSpec {
    /// Checks every field of what is taken in.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn parse(spec: &Spec) -> Checked<Self> {
        let parsed = Self::stored(spec)?;
        parsed.check_limits().map(|()| parsed)
    }

    /// Reads what was taken in before: it has to parse, and is judged by no limit of today but that of a span, which a clock has to hold.
    ///
    /// # Errors
    /// The first field that does not parse.
    pub fn stored(spec: &Spec) -> Checked<Self> {
        let mut parsed = Self {
            command: Vec::new(),
            env: BTreeMap::new(),
            env_pass: None,
            cwd: None,
            allow_privilege_escalation: false,
            restart: Restart::default(),
            stop_signal: StopSignal::Term,
            stop_grace: None,
        };
        let value = spec.to_value();
        for (field, value) in value.as_object().into_iter().flatten() {
            match field.as_str() {
                "command" => parsed.command = command(value)?,
                "env" => parsed.env = env(value)?,
                "env_pass" => parsed.env_pass = Some(env_pass(value)?),
                "allow_privilege_escalation" => parsed.allow_privilege_escalation = flag("allow_privilege_escalation", value)?,
                "cwd" => parsed.cwd = Some(cwd(value)?).filter(|cwd| cwd != "/"),
                "restart" => parsed.restart = restart(value)?,
                "stop_signal" => parsed.stop_signal = stop_signal(value)?,
                "stop_grace" => parsed.stop_grace = Some(stop_grace(value)?),
                _ => return wrong(&bare(field), format!("unknown field; use one of {FIELDS}")),
            }
        }
        if parsed.command.is_empty() {
            return wrong("command", "is missing; give the program and its arguments as a list of strings");
        }
        Ok(parsed)
    }

    /// The same with the fields of [`IN_PLACE`] as if they were left out.
    fn without_in_place(self) -> Self {
        Self { restart: Restart::default(), stop_signal: StopSignal::default(), stop_grace: None, ..self }
    }

    fn check_limits(&self) -> Checked<()> {
        if self.command.len() > MAX_ARGUMENTS {
            return wrong("command", format!("{} arguments are more than {MAX_ARGUMENTS}; put them in a file", self.command.len()));
        }
        for (field, count) in [("env", self.env.len()), ("env_pass", self.env_pass.as_ref().map_or(0, Vec::len))] {
            if count > MAX_ENV {
                return wrong(field, format!("{count} variables are more than {MAX_ENV}; put them in a file"));
            }
        }
        let program = self.command.first().map(|program| ("command[0]", program));
        for (field, path) in program.into_iter().chain(self.cwd.as_ref().map(|cwd| ("cwd", cwd))) {
            if path.len() > MAX_PATH {
                return wrong(field, format!("{} has {} bytes; a path has at most {MAX_PATH}", shown(path), path.len()));
            }
        }
        Ok(())
    }
}

fn feed(spec: &Spec, digest: &mut Digest) -> bool {
    let Ok(process) = ProcessSpec::stored(spec) else { return false };
    process.hash(&mut digest.all);
    process.without_in_place().hash(&mut digest.fixed);
    true
}

fn command(value: &Value) -> Checked<Vec<String>> {
    const RULE: &str = "must be a list of strings that begins with the program";
    let Some(items) = value.as_array().filter(|items| !items.is_empty()) else { return wrong("command", RULE) };
    let mut words = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        match item.as_str() {
            Some("") if index == 0 => return wrong("command", RULE),
            Some(word) => words.push(without_nul(&format!("command[{index}]"), word)?),
            None => return wrong(&format!("command[{index}]"), "must be a string; put it in quotes"),
        }
    }
    Ok(words)
}

fn env(value: &Value) -> Checked<BTreeMap<String, String>> {
    let Some(fields) = value.as_object() else { return wrong("env", "must be a map from names to strings") };
    let mut env = BTreeMap::new();
    for (name, value) in fields {
        let field = format!("env.{}", bare(name));
        variable(&field, name)?;
        let Some(text) = value.as_str() else { return wrong(&field, "must be a string; put it in quotes") };
        env.insert(name.clone(), without_nul(&field, text)?);
    }
    Ok(env)
}

fn variable(field: &str, name: &str) -> Checked<()> {
    if name.is_empty() || name.contains('=') || name.contains('\0') {
        return wrong(field, "invalid name of a variable: one or more characters, no = and no NUL");
    }
    if name.starts_with("EVENKEEL_") {
        return wrong(field, "names that begin with EVENKEEL_ are set by the worker");
    }
    Ok(())
}

fn env_pass(value: &Value) -> Checked<Vec<String>> {
    let Some(items) = value.as_array() else { return wrong("env_pass", "must be a list of names of variables") };
    let mut names = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let field = format!("env_pass[{index}]");
        let Some(name) = item.as_str() else { return wrong(&field, "must be a string; put it in quotes") };
        if name == "*" {
            return wrong(&field, "\"*\" is no name; leave env_pass out and start the worker with --env-pass '*'");
        }
        variable(&field, name)?;
        names.push(name.to_owned());
    }
    Ok(names)
}

fn flag(field: &str, value: &Value) -> Checked<bool> {
    value.as_bool().map_or_else(|| wrong(field, format!("must be true or false, not {}", value_shown(value))), Ok)
}

fn cwd(value: &Value) -> Checked<String> {
    match value.as_str() {
        Some(text) if !text.is_empty() => without_nul("cwd", text),
        _ => wrong("cwd", "must be the path of a folder"),
    }
}

fn restart(value: &Value) -> Checked<Restart> {
    match value.as_str() {
        Some("always") => Ok(Restart::Always),
        Some("on-failure") => Ok(Restart::OnFailure),
        Some("never") => Ok(Restart::Never),
        _ => wrong("restart", format!("must be always, on-failure or never, not {}", value_shown(value))),
    }
}

fn stop_signal(value: &Value) -> Checked<StopSignal> {
    let name = value.as_str().unwrap_or_default();
    Ok(match name.strip_prefix("SIG").unwrap_or(name) {
        "TERM" => StopSignal::Term,
        "INT" => StopSignal::Int,
        "QUIT" => StopSignal::Quit,
        "HUP" => StopSignal::Hup,
        "USR1" => StopSignal::Usr1,
        "USR2" => StopSignal::Usr2,
        "KILL" => StopSignal::Kill,
        _ => {
            let rule = format!("unknown signal {}; use one of TERM, INT, QUIT, HUP, USR1, USR2, KILL", value_shown(value));
            return wrong("stop_signal", rule);
        }
    })
}

fn stop_grace(value: &Value) -> Checked<Duration> {
    match value.as_str().and_then(duration) {
        Some(grace) if grace <= Duration::from_secs(MAX_GRACE) => Ok(grace),
        _ => {
            let given = value_shown(value);
            let rule =
                format!("invalid span {given}: a number with a unit, such as \"500ms\", \"2s\" or \"1m\", up to {MAX_GRACE} seconds");
            wrong("stop_grace", rule)
        }
    }
}

/// Reads a span as people write it, a whole number with a unit: `500ms`, `5s`, `2m`, `1h`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

/// A span as people write it; what has no whole number of milliseconds is cut to one.
#[must_use]
pub fn in_units(span: Duration) -> String {
    let ms = span.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if !ms.is_multiple_of(1000) => format!("{ms}ms"),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ => format!("{}s", ms / 1000),
    }
}

/// A span in a record, as people write it.
pub(crate) mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    #[allow(clippy::ref_option, reason = "serde passes a reference")]
    pub(crate) fn serialize<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => serializer.serialize_str(&super::in_units(*span)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let read = |text: String| super::duration(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is no span such as 5s")));
        text.map(read).transpose()
    }
}

fn without_nul(field: &str, text: &str) -> Checked<String> {
    if text.contains('\0') { wrong(field, "has a NUL character") } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_stored_is_read_beyond_the_limits() {
        let long = json!({"command": vec!["a".repeat(5000); 5000], "cwd": "/".repeat(5000),
            "env": (0..2000).map(|i| (format!("V{i}"), json!(""))).collect::<Value>()});
        let spec = ProcessSpec::stored(&Spec::stored(long).expect("an object")).expect("it parses");
        assert_eq!((spec.command.len(), spec.env.len(), spec.cwd.map(|cwd| cwd.len())), (5000, 2000, Some(5000)));
        let wrong = ProcessSpec::stored(&Spec::stored(json!({"command": ["a\0"]})).expect("an object")).expect_err("a NUL");
        assert_eq!(wrong.to_string(), "spec.command[0]: has a NUL character");
    }

    fn parse(value: Value) -> Result<ProcessSpec, String> {
        ProcessSpec::parse(&Spec::from_value(value).expect("spec")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_full_spec_is_read() {
        let spec = parse(json!({"command": ["./crawl", ""], "env": {"A": "b"}, "cwd": "/srv", "restart": "on-failure",
            "env_pass": ["TZ"], "allow_privilege_escalation": true, "stop_signal": "INT", "stop_grace": "2s"}));
        let expected = ProcessSpec {
            command: vec!["./crawl".into(), String::new()],
            env: BTreeMap::from([("A".into(), "b".into())]),
            env_pass: Some(vec!["TZ".into()]),
            cwd: Some("/srv".into()),
            allow_privilege_escalation: true,
            restart: Restart::OnFailure,
            stop_signal: StopSignal::Int,
            stop_grace: Some(Duration::from_secs(2)),
        };
        assert_eq!(spec, Ok(expected));
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let spec = parse(json!({"command": ["a"]})).expect("spec");
        assert_eq!((spec.restart, spec.stop_signal, spec.stop_grace), (Restart::Always, StopSignal::Term, None));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_rule() {
        let with = |field: &str, value: Value| {
            let mut spec = json!({"command": ["a"]});
            spec[field] = value;
            spec
        };
        let cases = [
            (json!({}), "spec.command: is missing; give the program and its arguments as a list of strings"),
            (with("command", json!([])), "spec.command: must be a list of strings that begins with the program"),
            (with("command", json!("a b")), "spec.command: must be a list of strings that begins with the program"),
            (with("command", json!([""])), "spec.command: must be a list of strings that begins with the program"),
            (with("command", json!(["a", 1])), "spec.command[1]: must be a string; put it in quotes"),
            (with("command", json!(["a\0"])), "spec.command[0]: has a NUL character"),
            (with("comand", json!(["a"])), &format!("spec.comand: unknown field; use one of {FIELDS}")),
            (with("env_pass", json!("TZ")), "spec.env_pass: must be a list of names of variables"),
            (with("env_pass", json!(["A", 1])), "spec.env_pass[1]: must be a string; put it in quotes"),
            (with("env_pass", json!(["A=B"])), "spec.env_pass[0]: invalid name of a variable: one or more characters, no = and no NUL"),
            (
                with("env_pass", json!(["*"])),
                "spec.env_pass[0]: \"*\" is no name; leave env_pass out and start the worker with --env-pass '*'",
            ),
            (with("env_pass", json!(["EVENKEEL_ID"])), "spec.env_pass[0]: names that begin with EVENKEEL_ are set by the worker"),
            (with("env_pass", json!(vec!["A"; 1025])), "spec.env_pass: 1025 variables are more than 1024; put them in a file"),
            (with("allow_privilege_escalation", json!("yes")), "spec.allow_privilege_escalation: must be true or false, not \"yes\""),
            (with("env", json!(["a"])), "spec.env: must be a map from names to strings"),
            (with("env", json!({"A": 1})), "spec.env.A: must be a string; put it in quotes"),
            (with("env", json!({"A=B": "1"})), "spec.env.A=B: invalid name of a variable: one or more characters, no = and no NUL"),
            (with("env", json!({"EVENKEEL_EPOCH": "9"})), "spec.env.EVENKEEL_EPOCH: names that begin with EVENKEEL_ are set by the worker"),
            (with("cwd", json!("")), "spec.cwd: must be the path of a folder"),
            (with("cwd", json!("/".repeat(4096))), &format!("spec.cwd: \"{}\"... has 4096 bytes; a path has at most 4095", "/".repeat(80))),
            (with("command", json!(vec!["a"; 4097])), "spec.command: 4097 arguments are more than 4096; put them in a file"),
            (
                with("env", (0..1025).map(|i| (format!("V{i}"), json!(""))).collect()),
                "spec.env: 1025 variables are more than 1024; put them in a file",
            ),
            (with("restart", json!("sometimes")), "spec.restart: must be always, on-failure or never, not \"sometimes\""),
            (
                with("stop_signal", json!("STOP")),
                "spec.stop_signal: unknown signal \"STOP\"; use one of TERM, INT, QUIT, HUP, USR1, USR2, KILL",
            ),
            (
                with("stop_grace", json!(2)),
                "spec.stop_grace: invalid span 2: a number with a unit, such as \"500ms\", \"2s\" or \"1m\", up to 3600 seconds",
            ),
            (
                with("stop_grace", json!("2h")),
                "spec.stop_grace: invalid span \"2h\": a number with a unit, such as \"500ms\", \"2s\" or \"1m\", up to 3600 seconds",
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(parse(spec.clone()), Err(expected.to_owned()), "{spec}");
        }
    }

    #[test]
    fn spans_have_units() {
        let cases = [
            ("500ms", Some(500)),
            ("2s", Some(2000)),
            ("1m", Some(60_000)),
            ("1h", Some(3_600_000)),
            ("2", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("", None),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
            let span = duration(text).unwrap_or_default();
            assert_eq!(duration(&in_units(span)), Some(span), "{text}");
        }
    }
}

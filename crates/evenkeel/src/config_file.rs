//! The file that `--config` names: its values become the defaults of the flags, so that a flag and the environment beat them.
//!
//! Its keys are the flags' names, with `-` or `_`. One file may serve master, worker and dev: each takes the keys that it knows.
//! A value is parsed by the flag that it stands for, so that the same rule and the same words hold for both.

use std::{collections::BTreeMap, path::Path};

use clap::{Arg, ArgAction, Command};
use evenkeel_model::manifest::{self, File};
use serde_json::Value;

/// The subcommands that read the file.
const READERS: [&str; 4] = ["master", "worker", "worker-agent", "dev"];

/// The values of the file by the long name of the flag that they stand for.
pub(crate) type Values = BTreeMap<String, Vec<String>>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("--config {path}: {source}; name a file that exists and can be read")]
    Read { path: String, source: std::io::Error },
    #[error("--config {0}")]
    Parse(#[from] Box<manifest::ManifestError>),
    #[error("--config {path}: {problem}")]
    Shape { path: String, problem: String },
    #[error("--config {path}: {key}: {problem}")]
    Key { path: String, key: String, problem: String },
}

/// Reads and checks the file against the flags of all subcommands that take one.
pub(crate) fn read(path: &Path, command: &Command) -> Result<Values, ConfigError> {
    let label = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Read { path: label.clone(), source })?;
    parse(&label, &bytes, command)
}

/// Sets the values as defaults wherever a subcommand has the flag.
pub(crate) fn with_defaults(command: Command, values: &Values) -> Command {
    READERS.iter().fold(command, |command, reader| {
        command.mut_subcommand(reader, |subcommand| {
            subcommand.mut_args(|arg| match arg.get_long().and_then(|long| values.get(long)) {
                Some(values) => arg.default_values(values.clone()),
                None => arg,
            })
        })
    })
}

fn parse(label: &str, bytes: &[u8], command: &Command) -> Result<Values, ConfigError> {
    let documents = manifest::documents(File { label, bytes }).map_err(Box::new)?;
    let fields = match <[Value; 1]>::try_from(documents) {
        Ok([Value::Object(fields)]) => fields,
        Err(documents) if documents.is_empty() => return Ok(Values::new()),
        _ => {
            let problem = "is not one map of settings; write lines such as `etcd: http://127.0.0.1:2379`".to_owned();
            return Err(ConfigError::Shape { path: label.to_owned(), problem });
        }
    };
    let mut values = Values::new();
    for (key, value) in fields {
        let fail = |problem: String| ConfigError::Key { path: label.to_owned(), key: key.clone(), problem };
        let flag = key.replace('_', "-");
        let Some((reader, arg)) = find(command, &flag) else {
            return Err(fail(format!("is no setting; there are {}", known(command).join(", "))));
        };
        let texts = texts(arg, &value).map_err(fail)?;
        check(command, reader, &flag, arg, &texts).map_err(fail)?;
        if values.insert(flag, texts).is_some() {
            return Err(fail("stands there twice, with - and with _".to_owned()));
        }
    }
    Ok(values)
}

fn readers(command: &Command) -> impl Iterator<Item = &Command> {
    READERS.iter().filter_map(|name| command.find_subcommand(name))
}

/// `config` itself cannot be set by the file that it names.
fn may_set(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| !matches!(long, "config" | "help" | "version"))
}

fn find<'a>(command: &'a Command, flag: &str) -> Option<(&'a str, &'a Arg)> {
    readers(command).find_map(|reader| {
        let arg = reader.get_arguments().find(|arg| may_set(arg) && arg.get_long() == Some(flag))?;
        Some((reader.get_name(), arg))
    })
}

fn known(command: &Command) -> Vec<&str> {
    let longs = readers(command).flat_map(|reader| reader.get_arguments().filter(|a| may_set(a)).filter_map(Arg::get_long));
    longs.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// A value as the flag would be given it, once for each time.
fn texts(arg: &Arg, value: &Value) -> Result<Vec<String>, String> {
    let is_switch = !arg.get_action().takes_values();
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    match value {
        Value::Bool(on) if is_switch => Ok(vec![on.to_string()]),
        other if is_switch => Err(format!("{other} is neither true nor false")),
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Number(number) => Ok(vec![number.to_string()]),
        Value::Array(items) if is_list => items.iter().map(text).collect(),
        Value::Object(pairs) if arg.get_long() == Some("label") => {
            pairs.iter().map(|(key, value)| text(value).map(|value| format!("{key}={value}"))).collect()
        }
        other => Err(format!("{other} is no {}", if is_list { "text, number or list of them" } else { "text or number" })),
    }
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("{other} is no text; put it in quotes")),
    }
}

/// Lets the flag itself parse the values.
fn check(command: &Command, reader: &str, flag: &str, arg: &Arg, texts: &[String]) -> Result<(), String> {
    if !arg.get_action().takes_values() {
        return Ok(());
    }
    let mut line = vec!["evenkeel".to_owned(), reader.to_owned()];
    line.extend(texts.iter().map(|text| format!("--{flag}={text}")));
    let Err(error) = command.clone().try_get_matches_from(line) else { return Ok(()) };
    let said = error.to_string();
    let first = said.lines().next().unwrap_or_default();
    Err(first.strip_prefix("error: ").unwrap_or(first).to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn values(text: &str) -> Result<Values, String> {
        parse("f.yaml", text.as_bytes(), &Cli::command()).map_err(|e| e.to_string())
    }

    #[test]
    fn each_kind_of_value_becomes_what_the_flag_takes() {
        let text = "etcd: [http://a:1, http://b:2]\nlog_format: json\ncapacity: 5\ninsecure: true\nlabel: {zone: a, gpu: 'true'}\ndrivers: noop,process\n";
        let found = values(text).expect("valid");
        let expected = [
            ("capacity", vec!["5"]),
            ("drivers", vec!["noop,process"]),
            ("etcd", vec!["http://a:1", "http://b:2"]),
            ("insecure", vec!["true"]),
            ("label", vec!["gpu=true", "zone=a"]),
            ("log-format", vec!["json"]),
        ];
        let expected: Values = expected.into_iter().map(|(k, v)| (k.to_owned(), v.into_iter().map(ToOwned::to_owned).collect())).collect();
        assert_eq!(found, expected);
        assert_eq!(values(r#"{"log-format": "text"}"#).map(|v| v.len()), Ok(1));
        assert_eq!(values("# nothing yet\n"), Ok(Values::new()));
    }

    #[test]
    fn what_is_wrong_names_file_and_key() {
        let cases = [
            ("wrong: 1", "--config f.yaml: wrong: is no setting; there are advertise, authority, balance-in-flight, brake-least"),
            ("config: a.yaml", "--config f.yaml: config: is no setting"),
            ("help: true", "--config f.yaml: help: is no setting"),
            ("capacity: many", "--config f.yaml: capacity: invalid value 'many' for '--capacity <N>'"),
            ("capacity: [1, 2]", "--config f.yaml: capacity: [1,2] is no text or number"),
            ("insecure: 1", "--config f.yaml: insecure: 1 is neither true nor false"),
            ("insecure: yes", "--config f.yaml: document 1: insecure: one reader of YAML takes this for \"yes\""),
            ("prefix:", "--config f.yaml: prefix: null is no text or number"),
            ("label: {a: true}", "--config f.yaml: label: true is no text; put it in quotes"),
            ("label: {a: {b: c}}", "--config f.yaml: label: {\"b\":\"c\"} is no text"),
            ("log-format: xml", "--config f.yaml: log-format: invalid value 'xml' for '--log-format <FORMAT>'"),
            ("log-format: json\nlog_format: json", "--config f.yaml: log_format: stands there twice"),
            ("http: 99999999", "--config f.yaml: http: invalid value '99999999'"),
            ("- etcd", "--config f.yaml: is not one map of settings"),
            ("etcd: [", "--config f.yaml: line 1, column 7: unclosed bracket '['"),
            ("a: 1\na: 2", "--config f.yaml: line 2, column 1: duplicate mapping key: a"),
        ];
        for (text, expected) in cases {
            let said = values(text).expect_err(text);
            assert!(said.starts_with(expected), "{text:?}: {said}");
        }
    }
}

//! The bytes of a file to its documents: UTF-8, YAML or JSON, within bounds. It knows nothing of resources.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use serde_saphyr::{DuplicateKeyPolicy, Error, Options, UserMessageFormatter};

use super::{ManifestError, Place, shown};
use crate::{
    limits::{MAX_DEPTH, MAX_FILE, MAX_NODES},
    shown::{bare, sentence},
};

/// The text of a file.
pub(super) fn decode<'a>(file: &Arc<str>, bytes: &'a [u8]) -> Result<&'a str, ManifestError> {
    if bytes.len() > MAX_FILE {
        return Err(ManifestError::TooLarge { file: file.clone(), bytes: bytes.len() });
    }
    let no_text = |problem: String| ManifestError::NoText { file: file.clone(), problem };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(no_text("is UTF-16; save it as UTF-8".to_owned()));
    }
    let line = |position: usize| bytes[..position].iter().filter(|b| **b == b'\n').count() + 1;
    let text =
        std::str::from_utf8(bytes).map_err(|e| no_text(format!("line {} is not UTF-8; save the file as UTF-8", line(e.valid_up_to()))))?;
    if let Some(position) = text.find('\0') {
        return Err(no_text(format!("line {} has a NUL character; is it a text file?", line(position))));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A value as YAML. A text that any reader would take for something else is put in quotes.
pub(super) fn to_yaml<T: Serialize>(value: &T) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).unwrap_or_else(|e| format!("# cannot be written as YAML: {e}\n"))
}

/// The documents of a text, the empty ones left out.
pub(super) fn documents(file: &Arc<str>, text: &str) -> Result<Vec<Value>, ManifestError> {
    let syntax = |e: Error| syntax_error(file, &e);
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options(Reader::Now)).map_err(syntax)?;
    if !has_ambiguous_words(text) {
        return Ok(documents);
    }
    let older: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options(Reader::Older)).map_err(syntax)?;
    for (index, (now, older)) in documents.iter().zip(&older).enumerate() {
        if let Some(difference) = difference(now, older) {
            return Err(ambiguous(file, index + 1, &difference));
        }
    }
    Ok(documents)
}

/// Whether the text has a word that the older rules of YAML read otherwise: `yes`, `off`, `007`. It may be in quotes or in a comment,
/// so a reading by both rules decides.
fn has_ambiguous_words(text: &str) -> bool {
    const WORDS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
        let octal = word.len() > 1 && word.starts_with('0') && word.bytes().all(|b| b.is_ascii_digit());
        octal || (word.len() <= 3 && WORDS.iter().any(|w| w.eq_ignore_ascii_case(word)))
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// YAML 1.2.
    Now,
    /// YAML 1.1.
    Older,
}

fn options(reader: Reader) -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_documents: MAX_NODES,
            max_total_scalar_bytes: MAX_FILE,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: reader == Reader::Now,
        legacy_octal_numbers: reader == Reader::Older,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn syntax_error(file: &Arc<str>, error: &Error) -> ManifestError {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    let problem = match error {
        Error::Budget { .. } => {
            format!("is nested deeper than {MAX_DEPTH}, or has too many nodes or repetitions; make it simpler or split it")
        }
        other => {
            let text = other.render_with_formatter(&UserMessageFormatter);
            let first = text.lines().next().unwrap_or_default();
            sentence(&first.strip_suffix(&format!(" at line {line}, column {column}")).unwrap_or(first))
        }
    };
    ManifestError::Syntax { file: file.clone(), line, column, problem }
}

/// Where two readers of YAML differ: the path, and what each reads.
struct Difference<'a> {
    path: Vec<String>,
    now: &'a Value,
    older: &'a Value,
}

fn difference<'a>(now: &'a Value, older: &'a Value) -> Option<Difference<'a>> {
    let within = |step: String, found: Option<Difference<'a>>| {
        found.map(|mut difference| {
            difference.path.push(step);
            difference
        })
    };
    match (now, older) {
        (Value::Array(now), Value::Array(older)) if now.len() == older.len() => {
            now.iter().zip(older).enumerate().find_map(|(index, (now, older))| within((index + 1).to_string(), difference(now, older)))
        }
        (Value::Object(now), Value::Object(older)) if same_keys(now, older) => {
            now.iter().zip(older.values()).find_map(|((key, now), older)| within(key.clone(), difference(now, older)))
        }
        (now, older) => (now != older).then(|| Difference { path: Vec::new(), now, older }),
    }
}

fn same_keys(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    a.len() == b.len() && a.keys().eq(b.keys())
}

fn ambiguous(file: &Arc<str>, document: usize, difference: &Difference<'_>) -> ManifestError {
    let mut path = difference.path.iter().rev().map(String::as_str).skip_while(|step| *step == "resources").peekable();
    let entry = path.peek().and_then(|step| step.parse().ok());
    if entry.is_some() {
        path.next();
    }
    let field = bare(&path.collect::<Vec<_>>().join("."));
    let (now, older) = (shown(difference.now), shown(difference.older));
    let problem = format!(
        "{field}: one reader of YAML takes this for {now}, another for {older}; put a text in quotes, and write true, false or a plain number otherwise"
    );
    ManifestError::Shape { place: Place { file: file.clone(), document, entry, name: None }, problem }
}

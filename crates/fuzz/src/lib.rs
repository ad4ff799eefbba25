//! What must hold of anything that comes from outside, as plain functions over bytes: whatever they are, nothing panics, work and refusals
//! are bounded, and what is accepted reads back as itself. Each function panics where that does not hold: it is for tests alone.
//!
//! In the wheel it stands before every entry. `fuzz/` gives each function to cargo-fuzz, `tests/corpus.rs` runs them over the kept corpus
//! and over variants of it. Nothing imports this crate.

mod stored;

use evenkeel_model::{
    Definition, Draft, Labels, Record, Selector, Spec,
    manifest::{self, File},
    process::ProcessSpec,
};
use serde_json::Value;

pub use evenkeel_master::fuzzing::http_request;
pub use evenkeel_worker::guard::fuzzing::guard_messages;
pub use stored::stored_values;

/// A function over bytes, by the name of its folder in the corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("selector", selector),
    ("manifest", manifest),
    ("process_spec", process_spec),
    ("stored_values", stored_values),
    ("guard_messages", guard_messages),
    ("http_request", http_request),
];

/// The most characters of one refusal.
const REFUSAL: usize = 1000;

/// A refusal is one line that a terminal can show.
fn check_refusal(text: &str) {
    assert!(
        text.chars().count() <= REFUSAL,
        "a refusal of {} characters: {}",
        text.chars().count(),
        text.chars().take(200).collect::<String>()
    );
    assert!(!text.chars().any(char::is_control), "a refusal with a control character: {text:?}");
}

/// A selector, as a flag, a file or the API has it.
///
/// # Panics
/// When what must hold does not.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let stored = Selector::stored(text);
    let selector: Selector = match text.parse() {
        Ok(selector) => selector,
        Err(error) => return check_refusal(&format!("{error}")),
    };
    assert_eq!(stored.as_ref(), Ok(&selector), "what is taken in is read when it is stored");
    assert_eq!(selector.to_string().parse(), Ok(selector.clone()), "what is printed parses to the same");
    let labels: Labels = [("a", "b"), ("zone", ""), ("gpu", "true")].iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(selector.matches(&labels), selector.first_miss(&labels).is_none());
    if let Some((one, other)) = selector.contradiction() {
        check_refusal(&format!("{one} {other}"));
        assert!(!selector.matches(&labels), "what can never hold does not hold");
    }
}

/// A file of resources.
///
/// # Panics
/// When what must hold does not.
pub fn manifest(data: &[u8]) {
    let entries = match manifest::parse(File { label: "f", bytes: data }) {
        Ok(entries) => entries,
        Err(errors) => return errors.0.iter().for_each(|error| check_refusal(&error.to_string())),
    };
    for entry in &entries {
        reads_back(&entry.definition);
    }
    let definitions = entries.iter().map(|entry| &entry.definition);
    let text = manifest::to_yaml(definitions.clone());
    let again = manifest::parse(File { label: "f", bytes: text.as_bytes() });
    let again = again.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert!(definitions.eq(again.iter().map(|entry| &entry.definition)), "a file that is written reads back as itself:\n{text}");
}

/// The spec of a resource of kind `process`, as JSON.
///
/// # Panics
/// When what must hold does not.
pub fn process_spec(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let spec = match Spec::from_value(value.clone()) {
        Ok(spec) => spec,
        Err(error) => return check_refusal(&error.to_string()),
    };
    assert_eq!(Spec::from_value(spec.to_value()), Ok(spec.clone()), "canonical text is canonical");
    assert_eq!(Spec::stored(spec.to_value()), Some(spec.clone()), "what is taken in is read when it is stored");
    match ProcessSpec::parse(&spec) {
        Ok(parsed) => assert_eq!(ProcessSpec::stored(&spec), Ok(parsed), "what is taken in is read when it is stored"),
        Err(error) => check_refusal(&error.to_string()),
    }
    let draft = Draft { name: "a".to_owned(), kind: "process".to_owned(), spec: Some(value), ..Draft::default() };
    match draft.check() {
        Ok(definition) => reads_back(&definition),
        Err(error) => check_refusal(&error.to_string()),
    }
}

/// A definition is the same after each of its ways: as a file, as a record in etcd, and through the API.
fn reads_back(definition: &Definition) {
    assert_eq!(definition.to_draft().check().as_ref(), Ok(definition), "as a draft");
    let record = Record {
        id: 1,
        creation_time: 2,
        assigned_node: "".into(),
        source: "".into(),
        finished: None,
        failed: None,
        definition: definition.clone(),
    };
    let text = serde_json::to_vec(&record).expect("a record is JSON");
    assert_eq!(serde_json::from_slice::<Record>(&text).expect("it is read"), record, "as a record");
    assert_eq!(evenkeel_master::fuzzing::by_api(definition).as_ref(), Ok(definition), "through the API");
}

//! Resource files: the text of YAML or JSON files becomes definitions, or errors that name file, document, entry, field and rule.
//!
//! The wheel: it stands before it, with [`crate::diff`]. It opens no file: text and file names come in as arguments.
//!
//! YAML reads some plain words as something else than text, and its readers do not agree on which. Where a text is wanted and
//! something else was read, or where two readers would differ, that is an error that says to use quotes: a guess would be wrong one day.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::{Map, Value};

use crate::{
    Definition, DefinitionError, Draft, ResourceName, builtin,
    limits::MAX_FILE,
    shown::{bare, sentence, shown as text_shown},
};

mod text;

/// The most errors that are collected.
const MAX_ERRORS: usize = 100;

/// One file: the name that errors give it, and what stands in it.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// As people know it.
    pub label: &'a str,
    /// Its content.
    pub bytes: &'a [u8],
}

/// Where in which file something stands; counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: Arc<str>,
    document: usize,
    entry: Option<usize>,
    name: Option<String>,
}

/// A definition, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub place: Place,
    /// What.
    pub definition: Definition,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_FILE`].
    #[error("{file}: {bytes} bytes are more than {MAX_FILE}; split the file")]
    TooLarge {
        /// The file.
        file: Arc<str>,
        /// Its size.
        bytes: usize,
    },
    /// Bytes that are no text.
    #[error("{file}: {problem}")]
    NoText {
        /// The file.
        file: Arc<str>,
        /// What is not text, and where.
        problem: String,
    },
    /// Text that is neither YAML nor JSON.
    #[error("{file}: line {line}, column {column}: {problem}")]
    Syntax {
        /// The file.
        file: Arc<str>,
        /// Counted from 1; 0 when unknown.
        line: u64,
        /// Counted from 1; 0 when unknown.
        column: u64,
        /// What the parser says.
        problem: String,
    },
    /// Nothing is in it, which is rather a mistake than intended.
    #[error("{file}: has no document; write `resources: []` if no resource is meant")]
    Empty {
        /// The file.
        file: Arc<str>,
    },
    /// YAML or JSON of another shape.
    #[error("{place}: {problem}")]
    Shape {
        /// Where.
        place: Place,
        /// The field and the rule.
        problem: String,
    },
    /// A resource that breaks a rule.
    #[error("{place}: {source}")]
    Definition {
        /// Where.
        place: Place,
        /// The field and the rule.
        source: Box<DefinitionError>,
    },
    /// Two resources with one name.
    #[error("{second}: name: already exists in {first}; leave one of them out")]
    Duplicate {
        /// The place that came first.
        first: Box<Place>,
        /// The place that came second.
        second: Box<Place>,
    },
}

/// All that is wrong; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestErrors(pub Vec<ManifestError>);

impl std::error::Error for ManifestErrors {}

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("no error"),
            [only] => only.fmt(f),
            [first, others @ ..] => write!(f, "{first} (and {} more)", others.len()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {}", self.file, self.document)?;
        if let Some(entry) = self.entry {
            write!(f, ", entry {entry}")?;
        }
        match &self.name {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

/// Reads files into one set of definitions by name.
///
/// # Errors
/// Everything that is wrong with any of them, a name that stands twice included.
pub fn read<'a>(files: impl IntoIterator<Item = File<'a>>) -> Result<BTreeMap<ResourceName, Definition>, ManifestErrors> {
    let mut errors = Vec::new();
    let mut entries = Vec::new();
    for file in files {
        match parse(file) {
            Ok(found) => entries.extend(found),
            Err(ManifestErrors(found)) => errors.extend(found),
        }
    }
    match (merge(entries), errors.is_empty()) {
        (Ok(definitions), true) => Ok(definitions),
        (Ok(_), false) => Err(ManifestErrors(errors)),
        (Err(ManifestErrors(more)), _) => {
            errors.extend(more);
            Err(ManifestErrors(errors))
        }
    }
}

/// The documents of a YAML or JSON file of any shape, the empty ones left out: for other files that people write.
///
/// # Errors
/// What keeps it from being read, or what two readers of YAML would read differently.
pub fn documents(file: File<'_>) -> Result<Vec<Value>, ManifestError> {
    let label: Arc<str> = file.label.into();
    let text = text::decode(&label, file.bytes)?;
    text::documents(&label, text)
}

/// Reads one file.
///
/// # Errors
/// Everything that is wrong with it, up to a bound; a name that stands twice is left to [`read`].
pub fn parse(file: File<'_>) -> Result<Vec<Entry>, ManifestErrors> {
    let label: Arc<str> = file.label.into();
    let one = |error| ManifestErrors(vec![error]);
    let documents = documents(file).map_err(one)?;
    if documents.is_empty() {
        return Err(one(ManifestError::Empty { file: label }));
    }
    let mut entries = Vec::new();
    let mut errors = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let place = Place { file: label.clone(), document: index + 1, entry: None, name: None };
        for (place, value) in items(place, document) {
            match value.and_then(|value| definition(&place, value)) {
                Ok(definition) => entries.push(Entry { place, definition }),
                Err(error) if errors.len() < MAX_ERRORS => errors.push(error),
                Err(_) => {}
            }
        }
    }
    if errors.is_empty() { Ok(entries) } else { Err(ManifestErrors(errors)) }
}

/// The YAML text that [`read`] makes the same definitions of.
#[must_use]
pub fn to_yaml<'a>(definitions: impl IntoIterator<Item = &'a Definition>) -> String {
    let drafts: Vec<Draft> = definitions.into_iter().map(Definition::to_draft).collect();
    text::to_yaml(&BTreeMap::from([("resources", drafts)]))
}

fn merge(entries: Vec<Entry>) -> Result<BTreeMap<ResourceName, Definition>, ManifestErrors> {
    let mut places = BTreeMap::<ResourceName, Place>::new();
    let mut definitions = BTreeMap::new();
    let mut errors = Vec::new();
    for Entry { place, definition } in entries {
        let name = definition.name.clone();
        if let Some(first) = places.get(&name) {
            errors.push(ManifestError::Duplicate { first: Box::new(first.clone()), second: Box::new(place) });
            continue;
        }
        places.insert(name.clone(), place);
        definitions.insert(name, definition);
    }
    if errors.is_empty() { Ok(definitions) } else { Err(ManifestErrors(errors)) }
}

type Item = (Place, Result<Value, ManifestError>);

/// A document is `resources:` with a list, a bare list, or one resource.
fn items(place: Place, document: Value) -> Vec<Item> {
    let shape = |place: &Place, problem: &str| ManifestError::Shape { place: place.clone(), problem: problem.to_owned() };
    match document {
        Value::Array(list) => numbered(&place, list),
        Value::Object(mut fields) if fields.contains_key("resources") => {
            let list = fields.remove("resources");
            if let Some(other) = fields.keys().next() {
                let error = shape(&place, &format!("unknown field {} beside `resources`; move it into an entry", text_shown(other)));
                return vec![(place, Err(error))];
            }
            match list {
                Some(Value::Array(list)) => numbered(&place, list),
                _ => {
                    let error = shape(&place, "resources: must be a list; begin each resource with `- name: ...`");
                    vec![(place, Err(error))]
                }
            }
        }
        Value::Object(fields) => vec![(named(place, None, &fields), Ok(Value::Object(fields)))],
        _ => {
            let error = shape(&place, "must be a resource or a list of resources; begin with `resources:` and a list");
            vec![(place, Err(error))]
        }
    }
}

fn numbered(place: &Place, list: Vec<Value>) -> Vec<Item> {
    let item = |(index, value): (usize, Value)| {
        let entry = Some(index + 1);
        match value {
            Value::Object(fields) => (named(place.clone(), entry, &fields), Ok(Value::Object(fields))),
            other => {
                let place = Place { entry, ..place.clone() };
                let problem = format!("must be a resource, a map that has a name, not {}", kind_of(&other));
                (place.clone(), Err(ManifestError::Shape { place, problem }))
            }
        }
    };
    list.into_iter().enumerate().map(item).collect()
}

fn named(place: Place, entry: Option<usize>, fields: &Map<String, Value>) -> Place {
    let name = fields.get("name").and_then(Value::as_str).filter(|name| ResourceName::new(name).is_ok()).map(ToOwned::to_owned);
    Place { entry, name, ..place }
}

fn definition(place: &Place, value: Value) -> Result<Definition, ManifestError> {
    let shape = |problem: String| ManifestError::Shape { place: place.clone(), problem };
    if let Value::Object(fields) = &value {
        check_types(fields).map_err(shape)?;
    }
    let draft: Draft = serde_json::from_value(value).map_err(|e| shape(sentence(&e)))?;
    draft.check().map_err(|source| ManifestError::Definition { place: place.clone(), source: Box::new(source) })
}

const TEXTS: [&str; 10] = ["name", "kind", "require", "pin", "spread", "together", "apart", "policy", "rebalance", "ownership"];
const OTHERS: [&str; 4] = ["weight", "labels", "prefer", "spec"];

/// The types of the fields, with better words than a general deserializer has.
fn check_types(fields: &Map<String, Value>) -> Result<(), String> {
    for (field, value) in fields {
        match (field.as_str(), value) {
            (field, value) if TEXTS.contains(&field) => want_text(field, value)?,
            ("weight", Value::Number(n)) if n.is_u64() => {}
            ("weight", value) => return Err(format!("weight: must be a whole number, 1 or more, not {}", shown(value))),
            ("labels", Value::Object(labels)) => want_texts("labels", labels)?,
            ("labels", value) => return Err(format!("labels: must be a map of keys to texts, not {}", kind_of(value))),
            ("prefer", Value::Array(_)) => {}
            ("prefer", value) => return Err(format!("prefer: must be a list, not {}", kind_of(value))),
            ("spec", Value::Object(_)) => {}
            ("spec", value) => return Err(format!("spec: must be a map, not {}", kind_of(value))),
            (other, _) => {
                let known = TEXTS.iter().chain(&OTHERS).copied().collect::<Vec<_>>().join(", ");
                return Err(format!("unknown field {}; use one of {known}", text_shown(other)));
            }
        }
    }
    if !fields.contains_key("name") {
        return Err("name: is missing".to_owned());
    }
    let spec = fields.get("spec").and_then(Value::as_object);
    match (fields.get("kind").and_then(Value::as_str).and_then(builtin::specs_of), spec) {
        (Some(specs), Some(spec)) => (specs.check_types)(spec),
        _ => Ok(()),
    }
}

/// What a process is given is text: an argument that YAML reads as a number would be refused by the worker much later.
pub(crate) fn check_process(spec: &Map<String, Value>) -> Result<(), String> {
    if let Some(Value::Object(env)) = spec.get("env") {
        want_texts("spec.env", env)?;
    }
    if let Some(Value::Array(command)) = spec.get("command") {
        for (index, argument) in command.iter().enumerate() {
            want_text(&format!("spec.command[{index}]"), argument)?;
        }
    }
    Ok(())
}

fn want_texts(field: &str, values: &Map<String, Value>) -> Result<(), String> {
    values.iter().try_for_each(|(key, value)| want_text(&format!("{field}.{}", bare(key)), value))
}

fn want_text(field: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::String(_) => Ok(()),
        Value::Bool(_) | Value::Number(_) => {
            Err(format!("{field}: must be text, not {}; put it in quotes: \"{}\"", kind_of(value), shown(value)))
        }
        Value::Null => Err(format!("{field}: has no value; leave the field out, or write \"\" for an empty text")),
        _ => Err(format!("{field}: must be text, not {}", kind_of(value))),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// A value as an error shows it: bounded, and without what a terminal would obey.
fn shown(value: &Value) -> String {
    value.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).take(60).collect()
}

#[cfg(test)]
mod tests;

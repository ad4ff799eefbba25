//! Resources: the definition that a person wrote, checked, and the record that stands in etcd.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, value::RawValue};

use crate::{
    Labels, NameError, ResourceName, Selector, SelectorError, WorkerId,
    process::{self, ProcessSpec},
};

/// The largest spec, in bytes of canonical JSON.
pub const MAX_SPEC: usize = 64 * 1024;
/// The largest weight.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// The most labels that one resource or worker has.
pub const MAX_LABELS: usize = 64;
/// The longest key or value of a label, in bytes.
pub const MAX_LABEL: usize = 253;

/// What a driver is given: a JSON object as canonical text (keys in order, no spaces), empty for none.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Spec(Box<str>);

/// Covers every field that matters to the worker: kind and spec. Zero, written as "", where both are empty.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(u64);

/// Whether a resource may ever run twice for a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ownership {
    /// Never on two workers: it moves only when the end of the old run is known.
    #[default]
    Exclusive,
    /// Placed again as soon as its worker's lease is gone, accepting an overlap.
    Available,
}

/// A resource as its owner wrote it, checked. Two definitions that are equal mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name and uid.
    pub name: ResourceName,
    /// The driver's kind; empty: the worker's catalog decides.
    pub kind: Box<str>,
    /// Its share of a worker; at least 1.
    pub weight: u32,
    /// Its own labels.
    pub labels: Labels,
    /// Which workers may run it.
    pub require: Selector,
    /// The only worker that may run it.
    pub pin: Option<WorkerId>,
    /// Whether it may overlap.
    pub ownership: Ownership,
    /// What its driver is given.
    pub spec: Spec,
}

/// The shape of a resource in files and in the API, before it is checked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// See [`Definition::name`].
    pub name: String,
    /// See [`Definition::kind`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// None: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// See [`Definition::labels`].
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// See [`Definition::require`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub require: String,
    /// Softer than `require`; not honoured yet, and therefore refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<Value>,
    /// See [`Definition::pin`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pin: String,
    /// Not honoured yet, and therefore refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spread: String,
    /// Not honoured yet, and therefore refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub together: String,
    /// Not honoured yet, and therefore refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub apart: String,
    /// Only `least-payload` yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Empty: exclusive.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ownership: String,
    /// See [`Definition::spec`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Value>,
}

/// What is wrong with a definition: the field and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// A name that is none.
    #[error("{field}: {value:?} {source}")]
    Name {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// The rule.
        source: NameError,
    },
    /// A selector that does not parse.
    #[error("{field}: {source}")]
    Selector {
        /// The field.
        field: &'static str,
        /// Where it is wrong.
        source: SelectorError,
    },
    /// A field of the spec that breaks the rule of its kind.
    #[error("spec.{field}: {rule}")]
    Spec {
        /// The field within the spec.
        field: String,
        /// The rule, as a sentence that says what to do.
        rule: String,
    },
    /// Any other field that breaks its rule.
    #[error("{field}: {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// The rule, as a sentence that says what to do.
        rule: String,
    },
}

fn field_error(field: &'static str, rule: impl Into<String>) -> DefinitionError {
    DefinitionError::Field { field, rule: rule.into() }
}

impl Definition {
    /// A definition with nothing but a name.
    #[must_use]
    pub fn named(name: ResourceName) -> Self {
        Self {
            name,
            kind: Box::default(),
            weight: 1,
            labels: Labels::new(),
            require: Selector::default(),
            pin: None,
            ownership: Ownership::default(),
            spec: Spec::default(),
        }
    }

    /// Covers what matters to the worker.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of(&self.kind, &self.spec)
    }

    /// The shape that people write and read.
    #[must_use]
    pub fn to_draft(&self) -> Draft {
        Draft {
            name: self.name.to_string(),
            kind: self.kind.to_string(),
            weight: (self.weight != 1).then_some(u64::from(self.weight)),
            labels: self.labels.clone(),
            require: self.require.to_string(),
            pin: self.pin.as_ref().map(ToString::to_string).unwrap_or_default(),
            ownership: match self.ownership {
                Ownership::Exclusive => String::new(),
                Ownership::Available => "available".to_owned(),
            },
            spec: (!self.spec.is_empty()).then(|| self.spec.to_value()),
            ..Draft::default()
        }
    }
}

impl Draft {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn check(self) -> Result<Definition, DefinitionError> {
        self.refuse_what_is_not_honoured()?;
        let name = parse_name("name", &self.name, ResourceName::new)?;
        let pin = match self.pin.as_str() {
            "" => None,
            pin => Some(parse_name("pin", pin, WorkerId::new)?),
        };
        if !self.kind.is_empty() {
            parse_name("kind", &self.kind, ResourceName::new)?;
        }
        let weight = match self.weight.unwrap_or(1) {
            n @ 1..=1_000_000 => u32::try_from(n).unwrap_or(MAX_WEIGHT),
            n => return Err(field_error("weight", format!("{n} is not within 1 to {MAX_WEIGHT}"))),
        };
        check_labels("labels", &self.labels)?;
        let require = self.require.parse().map_err(|source| DefinitionError::Selector { field: "require", source })?;
        let ownership = match self.ownership.as_str() {
            "" | "exclusive" => Ownership::Exclusive,
            "available" => Ownership::Available,
            other => return Err(field_error("ownership", format!("{other:?} is neither exclusive nor available"))),
        };
        let spec = self.spec.map(Spec::from_value).transpose()?.unwrap_or_default();
        if self.kind == process::KIND {
            ProcessSpec::parse(&spec)?;
        }
        Ok(Definition { name, kind: self.kind.into(), weight, labels: self.labels, require, pin, ownership, spec })
    }

    /// A rule that is accepted and then not kept would be worse than one that is refused.
    fn refuse_what_is_not_honoured(&self) -> Result<(), DefinitionError> {
        let later = "is not supported by this version; leave it out";
        for (field, given) in [
            ("prefer", !self.prefer.is_empty()),
            ("spread", !self.spread.is_empty()),
            ("together", !self.together.is_empty()),
            ("apart", !self.apart.is_empty()),
        ] {
            if given {
                return Err(field_error(field, later));
            }
        }
        match self.policy.as_str() {
            "" | "least-payload" => Ok(()),
            other => Err(field_error("policy", format!("{other:?} is not supported by this version; it has least-payload"))),
        }
    }
}

fn parse_name<T>(field: &'static str, value: &str, parse: fn(&str) -> Result<T, NameError>) -> Result<T, DefinitionError> {
    parse(value).map_err(|source| DefinitionError::Name { field, value: value.chars().take(80).collect(), source })
}

/// Checks the labels of a resource or a worker: their number, and that a selector can name each.
///
/// # Errors
/// The first label that breaks a rule.
pub fn check_labels(field: &'static str, labels: &Labels) -> Result<(), DefinitionError> {
    if labels.len() > MAX_LABELS {
        return Err(field_error(field, format!("{} labels are more than {MAX_LABELS}", labels.len())));
    }
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'));
    for (key, value) in labels {
        let begins_well = key.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins_well || !is_word(key) || key.len() > MAX_LABEL {
            return Err(field_error(
                field,
                format!("key {key:?} is not 1 to {MAX_LABEL} of A-Z a-z 0-9 . _ - / beginning with a letter or digit"),
            ));
        }
        if !is_word(value) || value.len() > MAX_LABEL {
            return Err(field_error(field, format!("value {value:?} of {key} is not at most {MAX_LABEL} of A-Z a-z 0-9 . _ - /")));
        }
    }
    Ok(())
}

impl Spec {
    /// Makes the canonical text of a JSON object. Whole numbers are written without a fraction, so that a spec means the same
    /// whether it came through JSON, YAML or a protobuf struct (whose numbers are all doubles).
    ///
    /// # Errors
    /// When it is no object, is too large, or holds an integer that a double cannot hold exactly.
    pub fn from_value(mut value: Value) -> Result<Self, DefinitionError> {
        match &value {
            Value::Null => return Ok(Self::default()),
            Value::Object(fields) if fields.is_empty() => return Ok(Self::default()),
            Value::Object(_) => {}
            _ => return Err(field_error("spec", "is not an object")),
        }
        make_canonical(&mut value)?;
        let text = value.to_string();
        if text.len() > MAX_SPEC {
            return Err(field_error("spec", format!("{} bytes are more than {MAX_SPEC}", text.len())));
        }
        Ok(Self(text.into()))
    }

    /// The canonical JSON text; empty for none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// No spec was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The spec as a JSON object; an empty one for none.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_else(|_| Value::Object(serde_json::Map::new()))
    }
}

fn make_canonical(value: &mut Value) -> Result<(), DefinitionError> {
    match value {
        Value::Number(n) => {
            if let Some(canonical) = canonical_number(n)? {
                *value = canonical;
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(make_canonical),
        Value::Object(fields) => fields.values_mut().try_for_each(make_canonical),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

/// The largest integer that no other integer is rounded to when both become doubles.
const EXACT: i64 = (1 << 53) - 1;

/// None: it is canonical already.
fn canonical_number(n: &serde_json::Number) -> Result<Option<Value>, DefinitionError> {
    let inexact = || field_error("spec", format!("{n} cannot be held exactly by every client; write it as a string"));
    if n.is_i64() || n.is_u64() {
        let exact = n.as_i64().is_some_and(|i| (-EXACT..=EXACT).contains(&i));
        return if exact { Ok(None) } else { Err(inexact()) };
    }
    match n.as_f64().filter(|f| f.fract() == 0.0) {
        // What came as a double may have been another integer before.
        Some(whole) if whole.abs() > EXACT as f64 => Err(inexact()),
        #[allow(clippy::cast_possible_truncation, reason = "the value is whole and within 2^53")]
        Some(whole) => Ok(Some(Value::from(whole as i64))),
        None => Ok(None),
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Spec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_empty() {
            return serializer.serialize_none();
        }
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_value(Value::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Hash {
    /// The hash of a kind and a spec.
    #[must_use]
    pub fn of(kind: &str, spec: &Spec) -> Self {
        if kind.is_empty() && spec.is_empty() {
            return Self::default();
        }
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(kind.as_bytes());
        hasher.update(&[0]);
        hasher.update(spec.as_str().as_bytes());
        Self(hasher.digest().clamp(1, u64::MAX - 1))
    }

    /// The hash of what could not be read; no definition has it.
    #[must_use]
    pub fn unknown() -> Self {
        Self(u64::MAX)
    }

    /// Neither kind nor spec were given.
    #[must_use]
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { Ok(()) } else { write!(f, "{:016x}", self.0) }
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self::default());
        }
        u64::from_str_radix(&text, 16).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn draft(fields: Value) -> Result<Definition, String> {
        let mut object = json!({"name": "a"});
        object.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
        serde_json::from_value::<Draft>(object).map_err(|e| e.to_string())?.check().map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_wrong_is_named_with_its_rule() {
        let too_large = "x".repeat(MAX_SPEC);
        let cases = [
            (json!({"name": ""}), "name: \"\" is empty; a name has 1 to 253 characters"),
            (json!({"name": "a b"}), "name: \"a b\" has ' ' at position 2; a name is made of A-Z a-z 0-9 . _ -"),
            (json!({"weight": 0}), "weight: 0 is not within 1 to 1000000"),
            (json!({"weight": 1_000_001}), "weight: 1000001 is not within 1 to 1000000"),
            (json!({"kind": "a/b"}), "kind: \"a/b\" has '/' at position 2; a name is made of A-Z a-z 0-9 . _ -"),
            (json!({"pin": "-"}), "pin: \"-\" begins with '-'; a name begins with a letter or digit"),
            (json!({"require": "a in b"}), "require: selector \"a in b\": at character 6: expected '('"),
            (json!({"ownership": "mine"}), "ownership: \"mine\" is neither exclusive nor available"),
            (json!({"spec": 3}), "spec: is not an object"),
            (json!({"spec": {"a": too_large}}), "spec: 65544 bytes are more than 65536"),
            (
                json!({"spec": {"a": 9_007_199_254_740_993_i64}}),
                "spec: 9007199254740993 cannot be held exactly by every client; write it as a string",
            ),
            (json!({"kind": "process"}), "spec.command: is missing; give the program and its arguments as a list of strings"),
            (
                json!({"kind": "process", "spec": {"command": ["a"], "stop_grace": 2}}),
                "spec.stop_grace: 2 is no span such as \"2s\", \"500ms\" or \"1m\" up to 1h",
            ),
            (json!({"labels": {"": "b"}}), "labels: key \"\" is not 1 to 253 of A-Z a-z 0-9 . _ - / beginning with a letter or digit"),
            (json!({"labels": {"a": "b c"}}), "labels: value \"b c\" of a is not at most 253 of A-Z a-z 0-9 . _ - /"),
            (json!({"spread": "zone"}), "spread: is not supported by this version; leave it out"),
            (json!({"policy": "pack"}), "policy: \"pack\" is not supported by this version; it has least-payload"),
        ];
        for (fields, expected) in cases {
            assert_eq!(draft(fields.clone()).map(|d| d.name), Err(expected.to_owned()), "{fields}");
        }
        assert!(draft(json!({"wieght": 3})).expect_err("unknown field").contains("unknown field `wieght`"));
    }

    #[test]
    fn the_hash_covers_kind_and_spec_and_nothing_else() {
        let plain = draft(json!({})).expect("plain");
        assert!(plain.hash().is_empty());
        let base = draft(json!({"kind": "crawler", "spec": {"command": ["a"], "n": 1}})).expect("base");
        let same =
            draft(json!({"kind": "crawler", "spec": {"n": 1.0, "command": ["a"]}, "weight": 3, "labels": {"a": "b"}})).expect("same");
        assert_eq!(base.hash(), same.hash());
        for other in
            [json!({"kind": "noop", "spec": {"command": ["a"], "n": 1}}), json!({"kind": "crawler", "spec": {"command": ["a"], "n": 2}})]
        {
            assert_ne!(draft(other).expect("other").hash(), base.hash());
        }
        let text = serde_json::to_string(&base.hash()).expect("text");
        assert_eq!(serde_json::from_str::<Hash>(&text).expect("parsed"), base.hash());
    }

    #[test]
    fn a_definition_survives_its_draft() {
        let full = json!({"kind": "process", "weight": 2, "labels": {"team": "books"}, "require": "gpu=true,zone in (a,b)",
            "pin": "worker-1", "ownership": "available", "spec": {"command": ["./crawl"], "env": {"A": "b"}}});
        let definition = draft(full).expect("valid");
        assert_eq!(definition.to_draft().check(), Ok(definition));
    }
}

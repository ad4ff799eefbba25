//! What a driver is given, as canonical text, and the hash of what matters to a worker.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, value::RawValue};

use crate::{
    DefinitionError,
    limits::{MAX_SPEC, MAX_SPEC_DEPTH},
    resource::field_error,
    shown::cut,
};

/// What a driver is given: a JSON object as canonical text (keys in order, no spaces), empty for none. All clones are one text.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Spec(Arc<str>);

/// Covers every field that matters to the worker: kind and spec. Zero, written as "", where both are empty.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(u64);

impl Spec {
    /// Makes the canonical text of a JSON object. Whole numbers are written without a fraction, so that a spec means the same
    /// whether it came through JSON, YAML or a protobuf struct (whose numbers are all doubles).
    ///
    /// # Errors
    /// When it is no object, is too large or too deep, or holds an integer that a double cannot hold exactly.
    pub fn from_value(mut value: Value) -> Result<Self, DefinitionError> {
        match &value {
            Value::Null => return Ok(Self::default()),
            Value::Object(fields) if fields.is_empty() => return Ok(Self::default()),
            Value::Object(_) => {}
            _ => return Err(field_error("spec", "must be an object, {...}")),
        }
        make_canonical(&mut value, 1)?;
        let text = value.to_string();
        if text.len() > MAX_SPEC {
            let rule = format!("{} bytes are more than {MAX_SPEC}; keep what is large elsewhere, and say here where", text.len());
            return Err(field_error("spec", rule));
        }
        Ok(Self(text.into()))
    }

    /// What was stored, whatever is asked of a spec today. None: it is no object.
    #[must_use]
    pub fn stored(mut value: Value) -> Option<Self> {
        match &value {
            Value::Null => return Some(Self::default()),
            Value::Object(fields) if fields.is_empty() => return Some(Self::default()),
            Value::Object(_) => {}
            _ => return None,
        }
        make_plain(&mut value);
        Some(Self(value.to_string().into()))
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

/// The level counts lists and maps within each other, the spec itself being the first.
fn make_canonical(value: &mut Value, level: usize) -> Result<(), DefinitionError> {
    if level > MAX_SPEC_DEPTH && (value.is_array() || value.is_object()) {
        return Err(field_error(
            "spec",
            format!("is nested deeper than {MAX_SPEC_DEPTH} levels; make it flatter, or write a part of it as text"),
        ));
    }
    match value {
        Value::Number(n) => match canonical(n) {
            Canonical::Already => Ok(()),
            Canonical::As(whole) => {
                *value = whole.into();
                Ok(())
            }
            Canonical::Inexact => {
                Err(field_error("spec", format!("{} cannot be held exactly by every client; write it as a string", cut(n.to_string()))))
            }
        },
        Value::Array(items) => items.iter_mut().try_for_each(|item| make_canonical(item, level + 1)),
        Value::Object(fields) => fields.values_mut().try_for_each(|field| make_canonical(field, level + 1)),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

/// The same without a judgement. It goes as deep as the reader of JSON has gone, which has a limit of its own.
fn make_plain(value: &mut Value) {
    match value {
        Value::Number(n) => {
            if let Canonical::As(whole) = canonical(n) {
                *value = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(make_plain),
        Value::Object(fields) => fields.values_mut().for_each(make_plain),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The largest integer that no other integer is rounded to when both become doubles.
const EXACT: i64 = (1 << 53) - 1;

/// How a number is written in canonical text.
enum Canonical {
    Already,
    /// As this whole number.
    As(i64),
    /// Not every client can hold it.
    Inexact,
}

fn canonical(n: &serde_json::Number) -> Canonical {
    if n.is_i64() || n.is_u64() {
        let exact = n.as_i64().is_some_and(|i| (-EXACT..=EXACT).contains(&i));
        return if exact { Canonical::Already } else { Canonical::Inexact };
    }
    match n.as_f64().filter(|f| f.fract() == 0.0) {
        // What came as a double may have been another integer before.
        Some(whole) if whole.abs() > EXACT as f64 => Canonical::Inexact,
        #[allow(clippy::cast_possible_truncation, reason = "the value is whole and within 2^53")]
        Some(whole) => Canonical::As(whole as i64),
        None => Canonical::Already,
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
        Self::stored(Value::deserialize(deserializer)?).ok_or_else(|| de::Error::custom("the spec is not an object"))
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

//! Resources: the definition that a person wrote, checked, and the record that stands in etcd.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Hash, Holds, Labels, NameError, ResourceName, Selector, SelectorError, Spec, WorkerId, builtin,
    limits::{MAX_LABEL, MAX_LABELS, MAX_WEIGHT},
    rules::{self, Rules},
    shown::shown,
    work::{self, Work},
};

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

/// A resource as its owner wrote it, checked. Two definitions that are equal mean the same; [`Definition::is_same_as`] also sees that two
/// spellings do.
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
    /// What else it says of its placement; none: nothing. See [`Definition::rules`].
    pub more: Option<Box<Rules>>,
}

/// What of a resource a worker checks for itself before it runs it.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// See [`Definition::kind`].
    pub kind: &'a str,
    /// See [`Definition::require`].
    pub require: &'a Selector,
    /// See [`Definition::pin`].
    pub pin: Option<&'a WorkerId>,
    /// See [`Definition::ownership`].
    pub ownership: Ownership,
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
    /// See [`Rules::prefer`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<Value>,
    /// See [`Definition::pin`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pin: String,
    /// See [`Rules::spread`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spread: String,
    /// See [`Rules::together`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub together: String,
    /// See [`Rules::apart`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub apart: String,
    /// A [`crate::PolicyName`]; empty: the cluster's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// `never`, or empty for `auto`: see [`crate::Rebalance`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rebalance: String,
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
    #[error("{field}: {value} {source}")]
    Name {
        /// The field.
        field: &'static str,
        /// What was given, as it is shown.
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

pub(crate) fn field_error(field: &'static str, rule: impl Into<String>) -> DefinitionError {
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
            more: None,
        }
    }

    /// What else it says of its placement.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        self.more.as_deref().unwrap_or(Rules::none())
    }

    /// What a worker checks for itself.
    #[must_use]
    pub fn needs(&self) -> Needs<'_> {
        Needs { kind: &self.kind, require: &self.require, pin: self.pin.as_ref(), ownership: self.ownership }
    }

    /// Covers what matters to the worker, as it is spelled.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of(&self.kind, &self.spec)
    }

    /// What it asks of a worker, however it is spelled.
    #[must_use]
    pub fn work(&self) -> Work {
        Work::of(&self.kind, &self.spec)
    }

    /// Both ask the same of a worker, however they are spelled.
    #[must_use]
    pub fn is_same_work(&self, other: &Self) -> bool {
        self.kind == other.kind && work::is_same(&self.kind, &self.spec, &other.spec)
    }

    /// Both say the same, however they are spelled.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        // Taken apart, so that a field that is added cannot be forgotten here.
        let Self { name, kind: _, weight, labels, require, pin, ownership, spec: _, more: _ } = self;
        let placement = (name, weight, labels, require, pin, ownership, self.rules());
        placement == (&other.name, &other.weight, &other.labels, &other.require, &other.pin, &other.ownership, other.rules())
            && self.is_same_work(other)
    }

    /// The shape that people write and read.
    #[must_use]
    pub fn to_draft(&self) -> Draft {
        let more = self.rules();
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
            prefer: rules::preference_drafts(&more.prefer),
            spread: more.spread.as_deref().unwrap_or_default().to_owned(),
            together: more.together.to_string(),
            apart: more.apart.to_string(),
            policy: more.policy.map(|p| p.as_str().to_owned()).unwrap_or_default(),
            rebalance: match more.rebalance {
                rules::Rebalance::Auto => String::new(),
                rules::Rebalance::Never => "never".to_owned(),
            },
        }
    }
}

impl Draft {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn check(mut self) -> Result<Definition, DefinitionError> {
        let (name, pin) = (parse_name("name", &self.name, ResourceName::new)?, pin(&self.pin)?);
        if !self.kind.is_empty() {
            parse_name("kind", &self.kind, ResourceName::new)?;
        }
        let weight = match self.weight.unwrap_or(1) {
            n if (1..=u64::from(MAX_WEIGHT)).contains(&n) => u32::try_from(n).unwrap_or(MAX_WEIGHT),
            n => return Err(field_error("weight", format!("{n} is not within 1 to {MAX_WEIGHT}"))),
        };
        check_labels("labels", &self.labels)?;
        let require = rules::selector("require", &self.require)?;
        let more = self.rules().check()?.boxed();
        let ownership = ownership(&self.ownership)?;
        let spec = self.spec.map(Spec::from_value).transpose()?.unwrap_or_default();
        if let Some(builtin) = builtin::of(&self.kind) {
            if builtin.holds == Holds::Loose && ownership == Ownership::Exclusive {
                let rule = format!("kind {} cannot be held exclusively; say ownership: available", self.kind);
                return Err(field_error("ownership", rule));
            }
            builtin.specs.as_ref().map_or(Ok(()), |specs| (specs.check)(&spec))?;
        }
        Ok(Definition { name, kind: self.kind.into(), weight, labels: self.labels, require, pin, ownership, spec, more })
    }

    /// Reads what was taken in before, from etcd or from a master: it has to parse, and is judged by nothing else. What stands stays what it
    /// is, whatever is asked of a definition today.
    ///
    /// # Errors
    /// The first field that does not parse.
    pub fn stored(mut self) -> Result<Definition, DefinitionError> {
        let weight = self.weight.unwrap_or(1);
        let cannot_be_held = || field_error("weight", format!("{weight} cannot be held"));
        let spec = self.spec.take().map_or_else(|| Some(Spec::default()), Spec::stored);
        Ok(Definition {
            name: parse_name("name", &self.name, ResourceName::new)?,
            weight: u32::try_from(weight).ok().filter(|w| *w > 0).ok_or_else(cannot_be_held)?,
            require: rules::stored_selector("require", &self.require)?,
            pin: pin(&self.pin)?,
            ownership: ownership(&self.ownership)?,
            spec: spec.ok_or_else(|| field_error("spec", "must be an object, {...}"))?,
            more: self.rules().stored()?.boxed(),
            kind: self.kind.into(),
            labels: self.labels,
        })
    }

    /// The texts of its rules; the preferences are taken out.
    fn rules(&mut self) -> rules::Texts<'_> {
        rules::Texts {
            prefer: std::mem::take(&mut self.prefer),
            spread: &self.spread,
            together: &self.together,
            apart: &self.apart,
            policy: &self.policy,
            rebalance: &self.rebalance,
        }
    }
}

fn pin(text: &str) -> Result<Option<WorkerId>, DefinitionError> {
    if text.is_empty() { Ok(None) } else { parse_name("pin", text, WorkerId::new).map(Some) }
}

fn ownership(word: &str) -> Result<Ownership, DefinitionError> {
    match word {
        "" | "exclusive" => Ok(Ownership::Exclusive),
        "available" => Ok(Ownership::Available),
        other => Err(field_error("ownership", format!("must be exclusive or available, not {}", shown(other)))),
    }
}

fn parse_name<T>(field: &'static str, value: &str, parse: fn(&str) -> Result<T, NameError>) -> Result<T, DefinitionError> {
    parse(value).map_err(|source| DefinitionError::Name { field, value: shown(value), source })
}

/// Checks the labels of a resource or a worker: their number, and that a selector can name each.
///
/// # Errors
/// The first label that breaks a rule.
pub fn check_labels(field: &'static str, labels: &Labels) -> Result<(), DefinitionError> {
    if labels.len() > MAX_LABELS {
        return Err(field_error(field, format!("{} labels are more than {MAX_LABELS}; leave some out", labels.len())));
    }
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'));
    for (key, value) in labels {
        let begins_well = key.starts_with(|c: char| c.is_ascii_alphanumeric());
        if key.len() > MAX_LABEL || !begins_well || !is_word(key) {
            let rule = format!("invalid key {}: 1 to {MAX_LABEL} of A-Z a-z 0-9 . _ - /, beginning with a letter or digit", shown(key));
            return Err(field_error(field, rule));
        }
        if value.len() > MAX_LABEL || !is_word(value) {
            return Err(field_error(field, format!("invalid value {} of {key}: at most {MAX_LABEL} of A-Z a-z 0-9 . _ - /", shown(value))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::limits::{MAX_SPEC, MAX_SPEC_DEPTH};

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
            (json!({"ownership": "mine"}), "ownership: must be exclusive or available, not \"mine\""),
            (json!({"spec": 3}), "spec: must be an object, {...}"),
            (json!({"spec": {"a": too_large}}), "spec: 65544 bytes are more than 65536; keep what is large elsewhere, and say here where"),
            (
                json!({"spec": {"a": 9_007_199_254_740_993_i64}}),
                "spec: 9007199254740993 cannot be held exactly by every client; write it as a string",
            ),
            (json!({"kind": "scrape"}), "ownership: kind scrape cannot be held exclusively; say ownership: available"),
            (json!({"kind": "process"}), "spec.command: is missing; give the program and its arguments as a list of strings"),
            (
                json!({"kind": "process", "spec": {"command": ["a"], "stop_grace": 2}}),
                "spec.stop_grace: invalid span 2: a number with a unit, such as \"500ms\", \"2s\" or \"1m\", up to 3600 seconds",
            ),
            (json!({"labels": {"": "b"}}), "labels: invalid key \"\": 1 to 253 of A-Z a-z 0-9 . _ - /, beginning with a letter or digit"),
            (json!({"labels": {"a": "b c"}}), "labels: invalid value \"b c\" of a: at most 253 of A-Z a-z 0-9 . _ - /"),
            (json!({"require": "a=b,a=c"}), "require: a=b and a=c can never hold together; leave one out"),
            (json!({"together": "a in b"}), "together: selector \"a in b\": at character 6: expected '('"),
            (
                json!({"together": "a=b", "apart": "a = b"}),
                "apart: a=b is what together asks for as well, and both cannot be; leave one out",
            ),
            (
                json!({"spread": "a zone"}),
                "spread: invalid key \"a zone\": 1 to 253 of A-Z a-z 0-9 . _ - /, beginning with a letter or digit",
            ),
            (
                json!({"prefer": [{"selector": "", "weight": 1}]}),
                "prefer: selector: is empty, so it prefers nothing; name labels of workers",
            ),
            (json!({"prefer": [{"selector": "a=b", "weight": 0}]}), "prefer: weight: 0 is not within 1 to 1000000"),
            (json!({"rebalance": "often"}), "rebalance: must be auto or never, not \"often\""),
            (
                json!({"policy": "fair"}),
                "policy: unknown policy \"fair\"; use one of least-payload, round-robin, weighted-round-robin, random, spread, pack, consistent-hash",
            ),
        ];
        for (fields, expected) in cases {
            assert_eq!(draft(fields.clone()).map(|d| d.name), Err(expected.to_owned()), "{fields}");
        }
        assert!(draft(json!({"wieght": 3})).expect_err("unknown field").contains("unknown field `wieght`"));
        let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({"a": [], "b": inner}));
        assert!(draft(json!({"spec": nested(MAX_SPEC_DEPTH)})).is_ok());
        assert!(draft(json!({"spec": nested(MAX_SPEC_DEPTH + 1)})).is_err_and(|e| e.contains("nested deeper than 32 levels")));
    }

    #[test]
    fn a_refusal_shows_no_more_of_a_value_than_a_line_takes() {
        let long = format!("\u{1b}{}", "x".repeat(100_000));
        let cases = [
            json!({"name": long}),
            json!({"kind": long}),
            json!({"pin": long}),
            json!({"labels": {(&long): "a"}}),
            json!({"labels": {"a": long}}),
            json!({"require": long}),
            json!({"spread": long}),
            json!({"policy": long}),
            json!({"ownership": long}),
            json!({"rebalance": long}),
            json!({"prefer": [{"selector": long, "weight": 1}]}),
            json!({"prefer": [{(&long): 1}]}),
            json!({"prefer": [long]}),
            json!({"kind": "process", "spec": {(&long[..60_000]): 1}}),
            json!({"kind": "process", "spec": {"command": ["a"], "env": {(&long[..60_000]): 1}}}),
            json!({"kind": "process", "spec": {"command": ["a"], "restart": long[..60_000]}}),
            json!({"kind": "process", "spec": {"command": ["a"], "stop_signal": long[..60_000]}}),
            json!({"kind": "process", "spec": {"command": ["a"], "stop_grace": long[..60_000]}}),
            json!({"kind": "process", "spec": {"command": ["a"], "cwd": long[..60_000]}}),
        ];
        for fields in cases {
            let error = draft(fields).expect_err("refused");
            assert!(error.len() < 400 && !error.contains('\u{1b}'), "{} characters: {}", error.len(), &error[..200]);
        }
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
        // A number of many digits is the same when it is read back.
        let digits: Value = serde_json::from_str("{\"a\":9007777777775.70496,\"b\":1e-221}").expect("JSON");
        let digits = Spec::from_value(digits).expect("spec");
        assert_eq!(Hash::of("", &Spec::from_value(digits.to_value()).expect("spec")), Hash::of("", &digits));
        let text = serde_json::to_string(&base.hash()).expect("text");
        assert_eq!(serde_json::from_str::<Hash>(&text).expect("parsed"), base.hash());
    }

    #[test]
    fn a_definition_survives_its_draft() {
        let full = json!({"kind": "process", "weight": 2, "labels": {"team": "books"}, "require": "gpu=true,zone in (a,b)",
            "pin": "worker-1", "ownership": "available", "spec": {"command": ["./crawl"], "env": {"A": "b"}},
            "prefer": [{"selector": "disk=ssd", "weight": 10}], "spread": "zone", "together": "app=db", "apart": "app=web",
            "policy": "pack", "rebalance": "never"});
        let definition = draft(full).expect("valid");
        assert_eq!(definition.to_draft().check(), Ok(definition));
    }
}

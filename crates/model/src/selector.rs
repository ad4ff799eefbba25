//! Kubernetes' selector grammar over labels: `a=b, c!=d, e in (x,y), f notin (z), g, !h`. All terms must hold.
//!
//! Rule: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>. As there, `!=` and `notin` also
//! hold where the label is missing.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Labels;

/// A parsed selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Term {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Test {
    Exists,
    Missing,
    In(Vec<String>),
    NotIn(Vec<String>),
}

/// Where a selector is wrong, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector {text:?}: at character {position}: expected {expected}")]
pub struct SelectorError {
    text: String,
    position: usize,
    expected: &'static str,
}

impl Selector {
    /// The one that matches everything.
    pub const EMPTY: Self = Self { terms: Vec::new() };

    /// It has no term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Two terms that no labels satisfy together, as text; none: some labels satisfy all of it.
    #[must_use]
    pub fn contradiction(&self) -> Option<(String, String)> {
        let pairs = self.terms.iter().enumerate().flat_map(|(i, a)| self.terms[..i].iter().map(move |b| (b, a)));
        let excluded = pairs.into_iter().find(|(a, b)| a.key == b.key && a.test.excludes(&b.test));
        excluded.map(|(a, b)| (a.to_string(), b.to_string())).or_else(|| self.exhausted())
    }

    /// A term whose values are all excluded by others, no one of which excludes all of them.
    fn exhausted(&self) -> Option<(String, String)> {
        self.terms.iter().find_map(|term| {
            let Test::In(values) = &term.test else { return None };
            let others = self.terms.iter().filter(|other| other.key == term.key);
            let left = others.fold(values.iter().collect::<BTreeSet<_>>(), |mut left, other| {
                left.retain(|value| other.test.holds(Some(value)));
                left
            });
            let rest = Self { terms: self.terms.iter().filter(|other| other.key == term.key && *other != term).cloned().collect() };
            left.is_empty().then(|| (term.to_string(), rest.to_string()))
        })
    }

    /// Whether every term holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.terms.iter().all(|term| term.matches(labels))
    }

    /// The first term that does not hold, as text: for an explanation.
    #[must_use]
    pub fn first_miss(&self, labels: &Labels) -> Option<String> {
        self.terms.iter().find(|term| !term.matches(labels)).map(ToString::to_string)
    }
}

impl Term {
    fn matches(&self, labels: &Labels) -> bool {
        self.test.holds(labels.get(&self.key))
    }
}

impl Test {
    /// Whether it holds for the value of its label; none: the label is missing.
    fn holds(&self, value: Option<&String>) -> bool {
        match self {
            Self::Exists => value.is_some(),
            Self::Missing => value.is_none(),
            Self::In(values) => value.is_some_and(|v| values.contains(v)),
            Self::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
        }
    }

    /// No value, nor its absence, satisfies both.
    fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Missing, Self::Exists | Self::In(_)) | (Self::Exists | Self::In(_), Self::Missing) => true,
            (Self::In(values), test) | (test, Self::In(values)) => !values.iter().any(|value| test.holds(Some(value))),
            _ => false,
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.test {
            Test::Exists => write!(f, "{key}"),
            Test::Missing => write!(f, "!{key}"),
            Test::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Test::In(values) => write!(f, "{key} in ({})", values.join(",")),
            Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(",")),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            write!(f, "{}{term}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, rest: text };
        let mut terms = Vec::new();
        parser.skip_space();
        if parser.rest.is_empty() {
            return Ok(Self { terms });
        }
        loop {
            terms.push(parser.term()?);
            if parser.rest.is_empty() {
                return Ok(Self { terms });
            }
            parser.expect(',', "',' or the end")?;
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn fail<T>(&self, expected: &'static str) -> Result<T, SelectorError> {
        let done = self.text.len() - self.rest.len();
        let position = self.text[..done].chars().count() + 1;
        Err(SelectorError { text: self.text.to_owned(), position, expected })
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                self.skip_space();
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: char, expected: &'static str) -> Result<(), SelectorError> {
        if self.take(token.encode_utf8(&mut [0; 4])) { Ok(()) } else { self.fail(expected) }
    }

    fn word(&mut self) -> &'a str {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.skip_space();
        word
    }

    fn term(&mut self) -> Result<Term, SelectorError> {
        let negated = self.take("!");
        let before = self.rest;
        let key = self.word();
        if !key.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            self.rest = before;
            return self.fail("a label's key");
        }
        let test = if negated { Test::Missing } else { self.test()? };
        Ok(Term { key: key.to_owned(), test })
    }

    fn test(&mut self) -> Result<Test, SelectorError> {
        if self.take("!=") {
            return Ok(Test::NotIn(vec![self.word().to_owned()]));
        }
        if self.take("==") || self.take("=") {
            return Ok(Test::In(vec![self.word().to_owned()]));
        }
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Test::Exists);
        }
        let before = self.rest;
        match self.word() {
            "in" => Ok(Test::In(self.values()?)),
            "notin" => Ok(Test::NotIn(self.values()?)),
            _ => {
                self.rest = before;
                self.fail("'=', '!=', 'in', 'notin', ',' or the end")
            }
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.expect('(', "'('")?;
        let mut values = Vec::new();
        loop {
            let value = self.word();
            if value.is_empty() {
                return self.fail("a value");
            }
            values.push(value.to_owned());
            if self.take(")") {
                return Ok(values);
            }
            self.expect(',', "',' or ')'")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn each_operator_selects() {
        let gpu_in_a = labels(&[("gpu", "true"), ("zone", "a")]);
        let cases = [
            ("", true),
            ("  ", true),
            ("gpu=true", true),
            ("gpu==true", true),
            ("gpu=false", false),
            ("gpu!=true", false),
            ("disk!=ssd", true),
            ("gpu", true),
            ("disk", false),
            ("!disk", true),
            ("!gpu", false),
            ("zone in (a,b)", true),
            ("zone in ( b , c )", false),
            ("zone notin (b)", true),
            ("zone notin (a)", false),
            ("disk notin (ssd)", true),
            ("gpu=true,zone in (a,b)", true),
            ("gpu=true, zone=b", false),
            ("example.com/team=", false),
        ];
        for (text, expected) in cases {
            let selector: Selector = text.parse().expect(text);
            assert_eq!(selector.matches(&gpu_in_a), expected, "{text:?}");
            assert_eq!(selector.first_miss(&gpu_in_a).is_none(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_error_points_at_the_character() {
        let cases = [
            (",", 1, "a label's key"),
            ("a=b,", 5, "a label's key"),
            ("a b", 3, "'=', '!=', 'in', 'notin', ',' or the end"),
            ("a in b", 6, "'('"),
            ("a in ()", 7, "a value"),
            ("a in (b", 8, "',' or ')'"),
            ("a=b c", 5, "',' or the end"),
            ("=b", 1, "a label's key"),
            ("!=b", 2, "a label's key"),
            ("é=b", 1, "a label's key"),
            ("a>b", 2, "'=', '!=', 'in', 'notin', ',' or the end"),
        ];
        for (text, position, expected) in cases {
            let error = text.parse::<Selector>().expect_err(text);
            assert_eq!((error.position, error.expected), (position, expected), "{text:?}");
        }
    }

    #[test]
    fn what_can_never_hold_is_seen() {
        let cases = [
            ("a=b,a=c", Some(("a=b", "a=c"))),
            ("a=b,c=d,a!=b", Some(("a=b", "a!=b"))),
            ("a,!a", Some(("a", "!a"))),
            ("!a,a in (b,c)", Some(("!a", "a in (b,c)"))),
            ("a in (b,c),a notin (b,c)", Some(("a in (b,c)", "a notin (b,c)"))),
            ("a in (b,c),a!=b,a!=c", Some(("a in (b,c)", "a!=b,a!=c"))),
            ("a in (b,c),a!=b", None),
            ("a in (b,c),a in (c,d)", None),
            ("!a,a!=b", None),
            ("a=b,b=a", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let found = text.parse::<Selector>().expect(text).contradiction();
            assert_eq!(found.as_ref().map(|(a, b)| (a.as_str(), b.as_str())), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for text in ["a=b", "a!=b", "a", "!a", "a in (b,c)", "a notin (b,c)", "a=b,!c,d in (e,f)"] {
            let selector: Selector = text.parse().expect(text);
            assert_eq!(selector.to_string(), text);
            assert_eq!(selector.to_string().parse(), Ok(selector));
        }
    }
}

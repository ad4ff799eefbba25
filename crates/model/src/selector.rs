//! Kubernetes' selector grammar over labels: `a=b, c!=d, e in (x,y), f notin (z), g, !h`. All terms must hold.
//!
//! Rule: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>. As there, `!=` and `notin` also
//! hold where the label is missing.
//!
//! What people write comes in by `parse` and is judged by the limits. What was stored comes in by [`Selector::stored`] or serde: it must
//! parse, and is judged by nothing else. Nothing here costs more than n log n of a selector's length.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    Labels,
    limits::{MAX_LABEL, MAX_SELECTOR, MAX_TERMS, MAX_VALUES},
    shown::{cut, shown, shown_around},
};

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

/// What is wrong with a selector, with as much of its text as a line takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It does not follow the grammar.
    #[error("selector {text}: at character {position}: expected {expected}")]
    Syntax {
        /// The text around the fault, in quotes.
        text: String,
        /// Counted from 1.
        position: usize,
        /// What was expected there.
        expected: &'static str,
    },
    /// More than [`MAX_SELECTOR`].
    #[error("selector {text}: {characters} characters are more than {MAX_SELECTOR}; use fewer terms or shorter values")]
    TooLong {
        /// How it begins, in quotes.
        text: String,
        /// How many it has.
        characters: usize,
    },
    /// More than [`MAX_TERMS`].
    #[error("selector {text}: {terms} terms are more than {MAX_TERMS}; leave some out")]
    TooManyTerms {
        /// How it begins, in quotes.
        text: String,
        /// How many it has.
        terms: usize,
    },
    /// More than [`MAX_VALUES`] in all terms together.
    #[error("selector {text}: {values} values are more than {MAX_VALUES}; leave some out, or give the workers a label in common")]
    TooManyValues {
        /// How it begins, in quotes.
        text: String,
        /// How many it has.
        values: usize,
    },
    /// A key or a value that no label can have.
    #[error("selector: {text} has {characters} characters; a label's key or value has at most {MAX_LABEL}")]
    LongWord {
        /// How the key or value begins, in quotes.
        text: String,
        /// How many it has.
        characters: usize,
    },
}

impl Selector {
    /// The one that matches everything.
    pub const EMPTY: Self = Self { terms: Vec::new() };

    /// Reads what was stored: it must follow the grammar, and no limit is asked.
    ///
    /// # Errors
    /// Where it does not.
    pub fn stored(text: &str) -> Result<Self, SelectorError> {
        Parser { text, rest: text }.selector()
    }

    /// It has no term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Terms that no labels satisfy together, as text for an error: one, and the one or those that it excludes. None: some labels satisfy
    /// all of it.
    #[must_use]
    pub fn contradiction(&self) -> Option<(String, String)> {
        let mut by_key: BTreeMap<&str, Allowed<'_>> = BTreeMap::new();
        for term in &self.terms {
            let allowed = by_key.entry(&term.key).or_default();
            allowed.terms.push(term);
            if allowed.narrow(&term.test) {
                return Some(allowed.culprits());
            }
        }
        None
    }

    /// Whether every term holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.terms.iter().all(|term| term.matches(labels))
    }

    /// The first term that does not hold, as text: for an explanation, so a long one is cut.
    #[must_use]
    pub fn first_miss(&self, labels: &Labels) -> Option<String> {
        self.terms.iter().find(|term| !term.matches(labels)).map(|term| cut(term.to_string()))
    }

    /// As text for an explanation, which is cut where it is long.
    #[must_use]
    pub fn summary(&self) -> String {
        cut(self.to_string())
    }

    /// Judges it by the limits. It is as long as it is written and as it is printed: what is taken is taken again as it reads back.
    fn check(&self, text: &str) -> Result<(), SelectorError> {
        let text = || shown(text);
        if self.terms.len() > MAX_TERMS {
            return Err(SelectorError::TooManyTerms { text: text(), terms: self.terms.len() });
        }
        let values: usize = self.terms.iter().map(|term| term.values().len()).sum();
        if values > MAX_VALUES {
            return Err(SelectorError::TooManyValues { text: text(), values });
        }
        let mut words = self.terms.iter().flat_map(|term| term.values().iter().chain([&term.key]));
        if let Some(word) = words.find(|word| word.len() > MAX_LABEL) {
            return Err(SelectorError::LongWord { text: shown(word), characters: word.len() });
        }
        let characters = self.to_string().len();
        if characters > MAX_SELECTOR {
            return Err(SelectorError::TooLong { text: text(), characters });
        }
        Ok(())
    }
}

/// What terms of one key have left for its value.
#[derive(Default)]
struct Allowed<'a> {
    terms: Vec<&'a Term>,
    present: bool,
    missing: bool,
    /// None: any but the excluded.
    values: Option<BTreeSet<&'a str>>,
    excluded: BTreeSet<&'a str>,
}

impl<'a> Allowed<'a> {
    /// Takes a term in; true: nothing is left.
    fn narrow(&mut self, test: &'a Test) -> bool {
        match test {
            Test::Exists => self.present = true,
            Test::Missing => self.missing = true,
            Test::In(values) => {
                self.present = true;
                let is_left = |v: &&str| self.values.as_ref().is_none_or(|left| left.contains(v)) && !self.excluded.contains(v);
                self.values = Some(values.iter().map(String::as_str).filter(is_left).collect());
            }
            Test::NotIn(values) => {
                for value in values {
                    self.excluded.insert(value);
                    if let Some(left) = &mut self.values {
                        left.remove(value.as_str());
                    }
                }
            }
        }
        (self.present && self.missing) || self.values.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// The last term leaves nothing: the first one that it excludes, and itself; or, where no two exclude each other, the first term with
    /// values, and all others.
    fn culprits(&self) -> (String, String) {
        let Some((last, before)) = self.terms.split_last() else { return (String::new(), String::new()) };
        let values: BTreeSet<&str> = last.values().iter().map(String::as_str).collect();
        if let Some(other) = before.iter().find(|other| other.test.excludes(&last.test, &values)) {
            return (cut(other.to_string()), cut(last.to_string()));
        }
        let chosen = self.terms.iter().position(|term| matches!(term.test, Test::In(_))).unwrap_or_default();
        let rest = self.terms.iter().enumerate().filter(|(at, _)| *at != chosen).map(|(_, term)| (*term).clone());
        (cut(self.terms[chosen].to_string()), Selector { terms: rest.collect() }.summary())
    }
}

impl Term {
    fn matches(&self, labels: &Labels) -> bool {
        self.test.holds(labels.get(&self.key))
    }

    fn values(&self) -> &[String] {
        match &self.test {
            Test::In(values) | Test::NotIn(values) => values,
            Test::Exists | Test::Missing => &[],
        }
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

    /// No value, nor its absence, satisfies both. The values of the other are given as a set as well.
    fn excludes(&self, other: &Self, of_other: &BTreeSet<&str>) -> bool {
        let within = |values: &[String]| values.iter().all(|value| of_other.contains(value.as_str()));
        match (self, other) {
            (Self::Missing, Self::Exists | Self::In(_)) | (Self::Exists | Self::In(_), Self::Missing) => true,
            (Self::In(values), Self::In(_)) => !values.iter().any(|value| of_other.contains(value.as_str())),
            (Self::In(values), Self::NotIn(_)) => within(values),
            (Self::NotIn(values), Self::In(_)) => {
                let values: BTreeSet<&str> = values.iter().map(String::as_str).collect();
                of_other.is_subset(&values)
            }
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
        Self::stored(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// Reads what people write.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        // Before anything is parsed. What is longer in bytes alone has a character that no selector has.
        if text.len() > MAX_SELECTOR {
            let characters = text.chars().count();
            if characters > MAX_SELECTOR {
                return Err(SelectorError::TooLong { text: shown(text), characters });
            }
        }
        let selector = Self::stored(text)?;
        selector.check(text)?;
        Ok(selector)
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn fail<T>(&self, expected: &'static str) -> Result<T, SelectorError> {
        let done = self.text.len() - self.rest.len();
        let position = self.text[..done].chars().count();
        Err(SelectorError::Syntax { text: shown_around(self.text, position), position: position + 1, expected })
    }

    fn selector(mut self) -> Result<Selector, SelectorError> {
        let mut terms = Vec::new();
        self.skip_space();
        if self.rest.is_empty() {
            return Ok(Selector { terms });
        }
        loop {
            terms.push(self.term()?);
            if self.rest.is_empty() {
                return Ok(Selector { terms });
            }
            self.expect(',', "',' or the end")?;
        }
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
            assert_eq!(error, SelectorError::Syntax { text: format!("{text:?}"), position, expected });
        }
    }

    #[test]
    fn an_error_shows_the_text_around_the_fault_and_no_more() {
        let text = format!("a in ({})>", vec!["b"; 200].join(","));
        let error = text.parse::<Selector>().expect_err("refused").to_string();
        assert!(error.starts_with("selector ...\"b,b,") && error.ends_with(",b)>\": at character 407: expected ',' or the end"), "{error}");
        let megabyte = "a,".repeat(1 << 19);
        let error = megabyte.parse::<Selector>().expect_err("refused").to_string();
        let begin = "a,".repeat(40);
        assert_eq!(error, format!("selector \"{begin}\"...: 1048576 characters are more than 8192; use fewer terms or shorter values"));
    }

    #[test]
    fn each_limit_is_taken_and_one_more_is_refused() {
        let terms = |n: usize| (0..n).map(|i| format!("k{i}")).collect::<Vec<_>>().join(",");
        let values = |n: usize| format!("a in ({})", (0..n).map(|i| format!("v{i}")).collect::<Vec<_>>().join(","));
        // 32 terms of 254 characters with a comma each, and one that fills the rest.
        let whole = |more: usize| {
            let terms: String = (0..32).map(|i| format!("k{i:02}={},", "v".repeat(250))).collect();
            format!("{terms}z={}", "v".repeat(30 + more))
        };
        assert_eq!(whole(0).len(), MAX_SELECTOR);
        let word = |n: usize| "w".repeat(n);
        let cases = [
            (terms(MAX_TERMS), terms(MAX_TERMS + 1), "65 terms are more than 64; leave some out"),
            (values(MAX_VALUES), values(MAX_VALUES + 1), "257 values are more than 256; leave some out"),
            (whole(0), whole(1), "8193 characters are more than 8192; use fewer terms or shorter values"),
            (word(MAX_LABEL), word(MAX_LABEL + 1), "has 254 characters; a label's key or value has at most 253"),
            (format!("a={}", word(MAX_LABEL)), format!("a={}", word(MAX_LABEL + 1)), "has 254 characters"),
        ];
        for (taken, refused, says) in cases {
            let selector: Selector = taken.parse().expect(says);
            assert_eq!(selector.to_string().parse(), Ok(selector));
            let error = refused.parse::<Selector>().expect_err(says).to_string();
            assert!(error.contains(says) && error.len() < 250, "{error}");
            // What was stored under other limits is read all the same.
            assert_eq!(Selector::stored(&refused).expect("stored").to_string(), refused);
        }
    }

    #[test]
    fn what_reads_back_longer_than_it_was_written_is_judged_by_that() {
        // Printed, each has a space more.
        let term = |n: usize| format!("k{n:03} in({},{})", "a".repeat(62), "b".repeat(61));
        let text = (0..61).map(term).collect::<Vec<_>>().join(",");
        assert!(text.len() <= MAX_SELECTOR && text.len() + 61 > MAX_SELECTOR, "{}", text.len());
        assert!(matches!(text.parse::<Selector>(), Err(SelectorError::TooLong { .. })));
    }

    #[test]
    fn a_contradiction_among_many_terms_is_found() {
        let many = (0..100_000).map(|i| format!("a!=v{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(Selector::stored(&many).expect("stored").contradiction(), None);
        let exhausted = Selector::stored(&format!("a in (v7,v99999),{many}")).expect("stored");
        let (one, others) = exhausted.contradiction().expect("found");
        assert!(one == "a in (v7,v99999)" && others.starts_with("a!=v0,a!=v1,") && others.ends_with("..."), "{one} {others}");
        let same = Selector::stored(&vec!["a"; 100_000].join(",")).expect("stored");
        assert_eq!(same.contradiction(), None);
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

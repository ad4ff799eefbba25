//! What a resource says of its placement beyond kind, `require` and pin: preferences, rules relative to other resources, and how it is
//! chosen for and moved. Most resources say nothing of this, so all of it is one box.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    DefinitionError, Labels, Selector, check_labels,
    limits::{MAX_PREFERENCE, MAX_PREFERENCES},
    resource::field_error,
    shown::{sentence, shown},
};

macro_rules! policies {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $reason:literal;)+) => {
        /// How a worker is chosen among those that can run a resource. The planner has one file for each.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum PolicyName {
            $($(#[$doc])* $variant,)+
        }

        impl PolicyName {
            /// All that there are, the default first.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word in files, flags and the API.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// Why a worker was chosen by it, for people.
            #[must_use]
            pub fn reason(self) -> &'static str {
                match self { $(Self::$variant => $reason),+ }
            }
        }
    };
}

policies! {
    /// The lowest payload, or the lowest payload for its capacity where every worker gives one.
    #[default]
    LeastPayload = "least-payload", "least payload";
    /// The worker after the one that was chosen last, in the order of ids.
    RoundRobin = "round-robin", "its turn";
    /// As many resources on each worker as its capacity is to those of the others.
    WeightedRoundRobin = "weighted-round-robin", "its turn by capacity";
    /// Any, drawn by the name and a seed.
    Random = "random", "drawn at random";
    /// The value of a label whose workers have the lowest payload together; there, the worker with the lowest.
    Spread = "spread", "spread over a label";
    /// The fullest worker that has room.
    Pack = "pack", "the fullest with room";
    /// Rendezvous hashing by name, weighted by capacity, with a bound on the payload.
    ConsistentHash = "consistent-hash", "first by hash within its bound";
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// No policy has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy {0}; use one of {list}", list = PolicyName::ALL.iter().map(|p| p.as_str()).collect::<Vec<_>>().join(", "))]
pub struct UnknownPolicy(String);

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.iter().copied().find(|p| p.as_str() == text).ok_or_else(|| UnknownPolicy(shown(text)))
    }
}

/// A preference for a kind of worker, and what it is worth in payload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preference {
    /// Over the labels of workers.
    pub selector: Selector,
    /// How much more payload a worker may have and still be chosen before one that does not match.
    pub weight: u32,
}

/// Whether balance may move a resource that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rebalance {
    /// It may.
    #[default]
    Auto,
    /// It stays where it is for as long as it may.
    Never,
}

/// See the module. The default is to say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rules {
    /// Soft: matching workers are chosen first.
    pub prefer: Vec<Preference>,
    /// Soft: few on each value of this label of workers, of the resources that have the same labels and the same rule.
    pub spread: Option<Box<str>>,
    /// Hard: only on a worker that another resource whose labels match is on; empty: anywhere.
    pub together: Selector,
    /// Hard: on no worker that another resource whose labels match is on; empty: anywhere.
    pub apart: Selector,
    /// None: the cluster's.
    pub policy: Option<PolicyName>,
    /// Whether balance may move it.
    pub rebalance: Rebalance,
}

static NONE: Rules =
    Rules { prefer: Vec::new(), spread: None, together: Selector::EMPTY, apart: Selector::EMPTY, policy: None, rebalance: Rebalance::Auto };

impl Rules {
    /// Those of a resource that says nothing.
    #[must_use]
    pub fn none() -> &'static Self {
        &NONE
    }

    /// Something in them depends on where other resources are.
    #[must_use]
    pub fn is_relative(&self) -> bool {
        self.spread.is_some() || !self.together.is_empty() || !self.apart.is_empty()
    }

    /// What a worker with these labels is worth.
    #[must_use]
    pub fn preference(&self, labels: &Labels) -> u64 {
        self.prefer.iter().filter(|p| p.selector.matches(labels)).map(|p| u64::from(p.weight)).sum()
    }

    pub(crate) fn boxed(self) -> Option<Box<Self>> {
        (self != NONE).then(|| Box::new(self))
    }
}

/// The texts of the fields as a person wrote them.
pub(crate) struct Texts<'a> {
    pub(crate) prefer: Vec<Value>,
    pub(crate) spread: &'a str,
    pub(crate) together: &'a str,
    pub(crate) apart: &'a str,
    pub(crate) policy: &'a str,
    pub(crate) rebalance: &'a str,
}

impl Texts<'_> {
    /// Judges what people write.
    pub(crate) fn check(self) -> Result<Rules, DefinitionError> {
        let together = selector("together", self.together)?;
        let apart = selector("apart", self.apart)?;
        if !together.is_empty() && together == apart {
            let rule = format!("{} is what together asks for as well, and both cannot be; leave one out", apart.summary());
            return Err(field_error("apart", rule));
        }
        let (policy, rebalance) = (policy(self.policy)?, rebalance(self.rebalance)?);
        Ok(Rules { prefer: preferences(self.prefer)?, spread: spread(self.spread)?, together, apart, policy, rebalance })
    }

    /// Reads what was stored: it has to parse, and nothing else is asked.
    pub(crate) fn stored(self) -> Result<Rules, DefinitionError> {
        let preference = |draft| {
            let (selector, weight) = parts(draft)?;
            let weight = u32::try_from(weight).map_err(|_| field_error("prefer", format!("weight: {weight} cannot be held")))?;
            Ok(Preference { selector: stored_selector("prefer", &selector)?, weight })
        };
        Ok(Rules {
            prefer: self.prefer.into_iter().map(preference).collect::<Result<_, DefinitionError>>()?,
            spread: (!self.spread.is_empty()).then(|| self.spread.into()),
            together: stored_selector("together", self.together)?,
            apart: stored_selector("apart", self.apart)?,
            policy: policy(self.policy)?,
            rebalance: rebalance(self.rebalance)?,
        })
    }
}

/// A selector that some labels can satisfy.
pub(crate) fn selector(field: &'static str, text: &str) -> Result<Selector, DefinitionError> {
    let selector: Selector = text.parse().map_err(|source| DefinitionError::Selector { field, source })?;
    match selector.contradiction() {
        None => Ok(selector),
        Some((a, b)) => Err(field_error(field, format!("{a} and {b} can never hold together; leave one out"))),
    }
}

/// A selector that was stored.
pub(crate) fn stored_selector(field: &'static str, text: &str) -> Result<Selector, DefinitionError> {
    Selector::stored(text).map_err(|source| DefinitionError::Selector { field, source })
}

fn policy(word: &str) -> Result<Option<PolicyName>, DefinitionError> {
    if word.is_empty() {
        return Ok(None);
    }
    word.parse().map(Some).map_err(|e: UnknownPolicy| field_error("policy", e.to_string()))
}

fn rebalance(word: &str) -> Result<Rebalance, DefinitionError> {
    match word {
        "" | "auto" => Ok(Rebalance::Auto),
        "never" => Ok(Rebalance::Never),
        other => Err(field_error("rebalance", format!("must be auto or never, not {}", shown(other)))),
    }
}

fn spread(key: &str) -> Result<Option<Box<str>>, DefinitionError> {
    if key.is_empty() {
        return Ok(None);
    }
    check_labels("spread", &Labels::from([(key.to_owned(), String::new())]))?;
    Ok(Some(key.into()))
}

/// The shape of a preference in files.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PreferenceDraft {
    selector: String,
    #[serde(default = "one")]
    weight: u64,
}

fn one() -> u64 {
    1
}

fn preferences(drafts: Vec<Value>) -> Result<Vec<Preference>, DefinitionError> {
    if drafts.len() > MAX_PREFERENCES {
        return Err(field_error("prefer", format!("{} preferences are more than {MAX_PREFERENCES}; leave some out", drafts.len())));
    }
    drafts.into_iter().map(preference).collect()
}

fn preference(draft: Value) -> Result<Preference, DefinitionError> {
    let (text, weight) = parts(draft)?;
    let selector = selector("prefer", &text)?;
    if selector.is_empty() {
        return Err(field_error("prefer", "selector: is empty, so it prefers nothing; name labels of workers"));
    }
    let valid = u32::try_from(weight).ok().filter(|w| (1..=MAX_PREFERENCE).contains(w));
    let weight = valid.ok_or_else(|| field_error("prefer", format!("weight: {weight} is not within 1 to {MAX_PREFERENCE}")))?;
    Ok(Preference { selector, weight })
}

/// The selector's text and the weight.
fn parts(draft: Value) -> Result<(String, u64), DefinitionError> {
    let wrong = |e: serde_json::Error| field_error("prefer", format!("{}; write {{selector: \"disk=ssd\", weight: 10}}", sentence(&e)));
    serde_json::from_value(draft).map_err(wrong).map(|PreferenceDraft { selector, weight }| (selector, weight))
}

/// Preferences in the shape that people write.
pub(crate) fn preference_drafts(preferences: &[Preference]) -> Vec<Value> {
    let draft = |p: &Preference| {
        let draft = PreferenceDraft { selector: p.selector.to_string(), weight: u64::from(p.weight) };
        serde_json::to_value(draft).unwrap_or_default()
    };
    preferences.iter().map(draft).collect()
}

//! The kinds that Evenkeel knows itself, as one table: how each is held wherever it runs, and how its specs are read. Whoever takes a definition in
//! and the worker that runs it ask here, so that no other list of kinds exists.
//!
//! A kind that is not in the table may have a driver all the same: then its worker says how it holds it ([`crate::Registration::driver`]), and only
//! that driver knows what a spec means.

use serde_json::{Map, Value};
use xxhash_rust::xxh3::Xxh3;

use crate::{DefinitionError, Holds, Spec, process};

/// A kind that Evenkeel knows itself.
#[derive(Debug)]
pub struct Builtin {
    /// What it is called in a resource.
    pub kind: &'static str,
    /// The best way in which any worker holds it.
    pub holds: Holds,
    /// How its specs are read; none: only its driver knows what they mean.
    pub(crate) specs: Option<Specs>,
}

/// How the specs of a kind are read. All of it is pure.
#[derive(Debug)]
pub(crate) struct Specs {
    /// Checks a spec that is taken in.
    pub(crate) check: fn(&Spec) -> Result<(), DefinitionError>,
    /// Looks at the types of the fields as a file gives them, where that has better words than `check`: the error is a sentence.
    pub(crate) check_types: fn(&Map<String, Value>) -> Result<(), String>,
    /// Both ask for the same, with their defaults filled in.
    pub(crate) is_same: fn(&Spec, &Spec) -> bool,
    /// Feeds what a spec asks for, and the part of it that no driver changes while the work runs; false: it cannot be read, and nothing was fed.
    pub(crate) feed: fn(&Spec, &mut Digest) -> bool,
}

/// What [`crate::Work`] is made of.
pub(crate) struct Digest {
    /// All that a spec asks for.
    pub(crate) all: Xxh3,
    /// The part of it that no driver changes while the work runs.
    pub(crate) fixed: Xxh3,
}

/// The table.
pub static ALL: &[Builtin] = &[
    Builtin { kind: process::KIND, holds: Holds::Strict, specs: Some(process::SPECS) },
    // It does nothing, so nothing of it outlives anything.
    Builtin { kind: "noop", holds: Holds::Strict, specs: None },
    // A file that names targets stays where it is when its worker and the guard are gone.
    Builtin { kind: "scrape", holds: Holds::Loose, specs: None },
];

/// The kind of this name; none: Evenkeel does not know it.
#[must_use]
pub fn of(kind: &str) -> Option<&'static Builtin> {
    ALL.iter().find(|builtin| builtin.kind == kind)
}

/// How the specs of a kind are read; none: only its driver knows.
pub(crate) fn specs_of(kind: &str) -> Option<&'static Specs> {
    of(kind)?.specs.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_in_the_table_once_and_has_a_name_that_a_definition_may_have() {
        for builtin in ALL {
            assert!(std::ptr::eq(of(builtin.kind).expect("it is found"), builtin), "{}", builtin.kind);
            assert!(crate::ResourceName::new(builtin.kind).is_ok());
        }
        assert!(of("").is_none() && of("crawler").is_none());
        assert_eq!(
            ["process", "noop", "scrape"].map(|kind| of(kind).map(|b| b.holds)),
            [Holds::Strict, Holds::Strict, Holds::Loose].map(Some)
        );
    }
}

//! The second oracle: judges what callers were told against what stands at the end. PURE.
//!
//! Beside the wheel. Each name belongs to one caller, who does one thing after the other and tries each until it is acknowledged; so the
//! last thing that was acknowledged, or something later that was not, must be what stands.

use std::collections::BTreeMap;

/// What a caller wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To stand with this content: an add or an update.
    Put(String),
    /// To be gone.
    Delete,
}

/// One operation on one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) asked: Asked,
    /// Whether the cluster said that it was done.
    pub(crate) acknowledged: bool,
}

/// What one caller did, in order, and the answers that cannot be right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) operations: Vec<Operation>,
    pub(crate) surprises: Vec<String>,
}

impl History {
    /// How many operations were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.operations.iter().filter(|operation| operation.acknowledged).count()
    }
}

/// Everything that was lost or had an effect twice, given the content of each name that stands.
pub(crate) fn judge(histories: &[History], stands: &BTreeMap<String, String>) -> Vec<String> {
    let mut faults: Vec<String> = histories.iter().flat_map(|history| history.surprises.clone()).collect();
    let mut by_name: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in histories.iter().flat_map(|history| &history.operations) {
        by_name.entry(&operation.name).or_default().push(operation);
    }
    for (name, operations) in by_name {
        let last = operations.iter().rposition(|operation| operation.acknowledged);
        let mut allowed: Vec<Option<&str>> = operations[last.unwrap_or(0)..].iter().map(|operation| content(&operation.asked)).collect();
        if last.is_none() {
            allowed.push(None);
        }
        let found = stands.get(name).map(String::as_str);
        if !allowed.contains(&found) {
            faults.push(format!("{name}: {found:?} stands, and it may be one of {allowed:?}"));
        }
    }
    faults
}

fn content(asked: &Asked) -> Option<&str> {
    match asked {
        Asked::Put(content) => Some(content),
        Asked::Delete => None,
    }
}

/// The oracle is tried on histories that were made up.
pub(crate) mod tests {
    use super::*;

    fn history(operations: &[(&str, Option<&str>, bool)]) -> Vec<History> {
        let operation = |(name, content, acknowledged): &(&str, Option<&str>, bool)| Operation {
            name: (*name).to_owned(),
            asked: content.map_or(Asked::Delete, |content| Asked::Put(content.to_owned())),
            acknowledged: *acknowledged,
        };
        vec![History { operations: operations.iter().map(operation).collect(), surprises: Vec::new() }]
    }

    fn stands(contents: &[(&str, &str)]) -> BTreeMap<String, String> {
        contents.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
    }

    /// What a caller may find is found good.
    pub(crate) fn good_is_good() {
        let course = history(&[("a", Some("1"), true), ("a", Some("2"), true), ("b", Some("1"), true), ("b", None, true)]);
        assert_eq!(judge(&course, &stands(&[("a", "2")])), Vec::<String>::new());
        let unknown = history(&[("a", Some("1"), true), ("a", Some("2"), false), ("b", Some("1"), false)]);
        for end in [vec![("a", "1")], vec![("a", "2")], vec![("a", "1"), ("b", "1")]] {
            assert_eq!(judge(&unknown, &stands(&end)), Vec::<String>::new(), "{end:?}");
        }
    }

    /// What a caller may not find is found bad.
    pub(crate) fn losses_are_bad() {
        let add = history(&[("a", Some("1"), true)]);
        assert_eq!(judge(&add, &stands(&[])).len(), 1, "an add is lost");
        let update = history(&[("a", Some("1"), true), ("a", Some("2"), true)]);
        assert_eq!(judge(&update, &stands(&[("a", "1")])).len(), 1, "an update is lost");
        let delete = history(&[("a", Some("1"), true), ("a", None, true)]);
        assert_eq!(judge(&delete, &stands(&[("a", "1")])).len(), 1, "a delete is lost, or an add had its effect twice");
        let late = history(&[("a", Some("1"), false), ("a", Some("2"), true)]);
        assert_eq!(judge(&late, &stands(&[("a", "1")])).len(), 1, "what came before the last that was acknowledged");
        let mut surprised = history(&[]);
        surprised[0].surprises.push("gone".to_owned());
        assert_eq!(judge(&surprised, &stands(&[])).len(), 1);
    }
}

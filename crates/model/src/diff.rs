//! The one diff that `apply`, `--resources` and every source share: what is to be added, changed and deleted to come from an old
//! set of definitions to a new one.
//!
//! The wheel: it stands before it, and says which desired state is to change. It reads nothing and sends nothing.

use std::{borrow::Borrow, collections::BTreeMap, fmt};

use crate::{Definition, DriverTraits, ResourceName, Rules, work};

/// What leads from the old set to the new one, each part in the order of the names.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff<'a> {
    /// In the new set only.
    pub add: Vec<&'a Definition>,
    /// In both, and they do not say the same, however they are spelled.
    pub change: Vec<Change<'a>>,
    /// In the old set only.
    pub delete: Vec<&'a Definition>,
    /// How many are the same in both.
    pub unchanged: usize,
}

/// A definition that is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// What stands.
    pub old: &'a Definition,
    /// What is wanted.
    pub new: &'a Definition,
}

/// How many of each, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To add, or added.
    pub add: usize,
    /// To change, or changed.
    pub change: usize,
    /// To delete, or deleted.
    pub delete: usize,
    /// The same before and after.
    pub unchanged: usize,
}

/// Compares two sets by name and content.
pub fn diff<'a, O, N>(old: &'a BTreeMap<ResourceName, O>, new: &'a BTreeMap<ResourceName, N>) -> Diff<'a>
where
    O: Borrow<Definition>,
    N: Borrow<Definition>,
{
    let mut diff = Diff { add: Vec::new(), change: Vec::new(), delete: Vec::new(), unchanged: 0 };
    for (name, wanted) in new {
        let wanted = wanted.borrow();
        match old.get(name).map(Borrow::borrow) {
            None => diff.add.push(wanted),
            Some(stands) if stands.is_same_as(wanted) => diff.unchanged += 1,
            Some(stands) => diff.change.push(Change { old: stands, new: wanted }),
        }
    }
    diff.delete.extend(old.iter().filter(|(name, _)| !new.contains_key(*name)).map(|(_, stands)| stands.borrow()));
    diff
}

impl Diff<'_> {
    /// Nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.change.is_empty() && self.delete.is_empty()
    }

    /// How many of each.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { add: self.add.len(), change: self.change.len(), delete: self.delete.len(), unchanged: self.unchanged }
    }
}

impl Change<'_> {
    /// It asks for other work: it is stopped and started again, unless it is taken in place. Another field would at most move it.
    #[must_use]
    pub fn changes_work(&self) -> bool {
        !self.old.is_same_work(self.new)
    }

    /// A worker whose driver has these traits takes it while the work runs.
    #[must_use]
    pub fn is_in_place(&self, driver: DriverTraits) -> bool {
        self.old.work().is_in_place(self.new.work(), driver)
    }

    /// The names of the fields that differ.
    #[must_use]
    pub fn fields(&self) -> Vec<&'static str> {
        let old = self.old;
        // Taken apart, so that a field that is added to a definition cannot be forgotten here.
        let Definition { name: _, kind, weight, labels, require, pin, ownership, spec, more: _ } = self.new;
        let (rules, old_rules) = (self.new.rules(), old.rules());
        let Rules { prefer, spread, together, apart, policy, rebalance } = rules;
        let differs = [
            ("kind", old.kind != *kind),
            ("weight", old.weight != *weight),
            ("labels", old.labels != *labels),
            ("require", old.require != *require),
            ("pin", old.pin != *pin),
            ("prefer", old_rules.prefer != *prefer),
            ("spread", old_rules.spread != *spread),
            ("together", old_rules.together != *together),
            ("apart", old_rules.apart != *apart),
            ("policy", old_rules.policy != *policy),
            ("rebalance", old_rules.rebalance != *rebalance),
            ("ownership", old.ownership != *ownership),
            ("spec", !work::is_same(kind, &old.spec, spec)),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(field, _)| field).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { add, change, delete, unchanged } = self;
        write!(f, "to add {add}, to change {change}, to delete {delete}, unchanged {unchanged}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(pairs: &BTreeMap<u8, u32>) -> BTreeMap<ResourceName, Definition> {
        let definition = |n: &u8, weight: &u32| {
            let name = ResourceName::new(&format!("r{n}")).expect("a name");
            (name.clone(), Definition { weight: *weight, ..Definition::named(name) })
        };
        pairs.iter().map(|(n, weight)| definition(n, weight)).collect()
    }

    fn any_set() -> impl Strategy<Value = BTreeMap<ResourceName, Definition>> {
        proptest::collection::btree_map(0..40_u8, 1..4_u32, 0..30).prop_map(|pairs| set(&pairs))
    }

    proptest! {
        #[test]
        fn what_it_says_leads_from_old_to_new(old in any_set(), new in any_set()) {
            let diff = diff(&old, &new);
            let mut result = old.clone();
            for gone in &diff.delete {
                prop_assert!(result.remove(&gone.name).is_some());
            }
            for change in &diff.change {
                prop_assert_ne!(change.old, change.new);
                prop_assert!(!change.fields().is_empty());
                let before = result.insert(change.new.name.clone(), change.new.clone());
                prop_assert_eq!(before.as_ref(), Some(change.old));
            }
            for added in &diff.add {
                prop_assert!(result.insert(added.name.clone(), (*added).clone()).is_none());
            }
            prop_assert_eq!(&result, &new);
            let counts = diff.counts();
            prop_assert_eq!(counts.add + counts.change + counts.unchanged, new.len());
            prop_assert_eq!(counts.delete + counts.change + counts.unchanged, old.len());
        }

        #[test]
        fn nothing_is_to_be_done_twice(set in any_set()) {
            let again = diff(&set, &set);
            prop_assert!(again.is_empty());
            prop_assert_eq!(again.unchanged, set.len());
        }
    }

    #[test]
    fn only_what_asks_for_other_work_restarts() {
        let read = |fields: serde_json::Value| -> BTreeMap<ResourceName, Definition> {
            let mut draft = serde_json::json!({"name": "a", "kind": "process", "spec": {"command": ["a"], "stop_grace": "3s"}});
            draft.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
            let draft: crate::Draft = serde_json::from_value(draft).expect("a draft");
            let definition = draft.check().expect("a definition");
            BTreeMap::from([(definition.name.clone(), definition)])
        };
        let old = read(serde_json::json!({}));
        let spelled =
            serde_json::json!({"command": ["a"], "stop_grace": "3000ms", "restart": "always", "env": {}, "stop_signal": "SIGTERM"});
        let defaults = serde_json::json!({"weight": 1, "labels": {}, "require": "", "pin": "", "prefer": [], "spread": "", "together": "",
            "apart": "", "policy": "", "rebalance": "auto", "ownership": "exclusive", "spec": spelled.clone()});
        let same = read(defaults);
        assert_eq!(diff(&old, &same), Diff { add: vec![], change: vec![], delete: vec![], unchanged: 1 });
        let cases = [
            (serde_json::json!({"weight": 2, "require": "a=b", "spec": spelled}), vec!["weight", "require"], false),
            (serde_json::json!({"spec": {"command": ["a"], "stop_grace": "4s"}}), vec!["spec"], true),
            (serde_json::json!({"kind": "noop", "weight": 2}), vec!["kind", "weight"], true),
        ];
        for (fields, expected, restarts) in cases {
            let new = read(fields.clone());
            let diff = diff(&old, &new);
            assert_eq!((diff.change[0].fields(), diff.change[0].changes_work()), (expected, restarts), "{fields}");
        }
    }

    #[test]
    fn counts_read_well() {
        let (old, new) = (set(&BTreeMap::from([(1, 1), (2, 1), (3, 1)])), set(&BTreeMap::from([(2, 2), (3, 1), (4, 1), (5, 1)])));
        let diff = diff(&old, &new);
        assert_eq!(diff.counts().to_string(), "to add 2, to change 1, to delete 1, unchanged 1");
        assert_eq!(diff.change[0].fields(), ["weight"]);
    }
}

//! Classes of resources that look the same when a worker is chosen: the same kind, weight and rules. There are few of them, however many
//! resources there are, so what is found out of one need not be found out of each.

use std::collections::BTreeMap;

use crate::{Definition, Labels, Ownership, Rules, Selector, Spec, WorkerId};

/// Identifies a class for as long as a resource is of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u32);

/// What the resources of a class have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    kind: Box<str>,
    weight: u32,
    require: Selector,
    pin: Option<WorkerId>,
    ownership: Ownership,
    more: Option<Box<Rules>>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// One that looks like all of them, without labels and spec.
    pattern: Definition,
    resources: usize,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    ids: BTreeMap<Key, ClassId>,
    entries: BTreeMap<ClassId, Entry>,
    next: u32,
}

impl Key {
    fn of(definition: &Definition) -> Self {
        Self {
            kind: definition.kind.clone(),
            weight: definition.weight,
            require: definition.require.clone(),
            pin: definition.pin.clone(),
            ownership: definition.ownership,
            more: definition.more.clone(),
        }
    }
}

impl Classes {
    /// What makes two definitions look the same.
    pub(crate) fn key_of(definition: &Definition) -> Key {
        Key::of(definition)
    }

    /// One more resource looks like this.
    pub(crate) fn enter(&mut self, definition: &Definition) -> ClassId {
        let id = *self.ids.entry(Key::of(definition)).or_insert_with(|| {
            self.next += 1;
            ClassId(self.next)
        });
        let pattern = || Definition { name: definition.name.clone(), labels: Labels::new(), spec: Spec::default(), ..definition.clone() };
        self.entries.entry(id).or_insert_with(|| Entry { pattern: pattern(), resources: 0 }).resources += 1;
        id
    }

    /// One resource less looks like this.
    pub(crate) fn leave(&mut self, id: ClassId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.resources -= 1;
        if entry.resources == 0
            && let Some(entry) = self.entries.remove(&id)
        {
            self.ids.remove(&Key::of(&entry.pattern));
        }
    }

    /// What the resources of a class look like; its name, labels and spec say nothing.
    #[must_use]
    pub fn pattern(&self, id: ClassId) -> Option<&Definition> {
        self.entries.get(&id).map(|entry| &entry.pattern)
    }

    /// All classes, with what their resources look like.
    pub fn patterns(&self) -> impl Iterator<Item = (ClassId, &Definition)> {
        self.entries.iter().map(|(id, entry)| (*id, &entry.pattern))
    }

    /// How many resources are of a class.
    #[must_use]
    pub fn resources(&self, id: ClassId) -> usize {
        self.entries.get(&id).map_or(0, |entry| entry.resources)
    }

    /// How many classes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are no resources.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, ResourceName};

    fn definition(name: &str, weight: u64, require: &str) -> Definition {
        Draft { name: name.to_owned(), weight: Some(weight), require: require.to_owned(), ..Draft::default() }.check().expect("valid")
    }

    #[test]
    fn who_looks_the_same_is_of_one_class_until_nobody_is() {
        let mut classes = Classes::default();
        let (a, b, c) = (definition("a", 1, "gpu=true"), definition("b", 1, "gpu = true"), definition("c", 2, "gpu=true"));
        let first = classes.enter(&a);
        assert_eq!(classes.enter(&b), first);
        assert_ne!(classes.enter(&c), first);
        assert_eq!((classes.len(), classes.resources(first)), (2, 2));
        assert_eq!(classes.pattern(first).map(|p| (p.weight, p.require.to_string())), Some((1, "gpu=true".to_owned())));
        classes.leave(first);
        classes.leave(first);
        assert_eq!((classes.len(), classes.resources(first)), (1, 0));
        assert_ne!(classes.enter(&a), first);
        let name: ResourceName = "x".parse().expect("a name");
        let available = classes.enter(&Definition { ownership: Ownership::Available, ..a.clone() });
        assert_ne!(classes.enter(&a), available, "where a kind is loose only one of them may run");
        classes.leave(available);
        classes.leave(classes.ids[&Key::of(&a)]);
        assert_eq!(classes.resources(classes.ids[&Key::of(&Definition { name, ..a })]), 1);
    }
}

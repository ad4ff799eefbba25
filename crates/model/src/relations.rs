//! Where resources stand to each other: who is on which worker with which labels, and who wants to be near whom. Kept by the Cluster while
//! any resource has a rule that is relative to others, and laid over it by a plan; it decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Definition, Labels, Misfit, Selector, WorkerId};

/// How many resources: those that are at home on a worker, and those that are there in any way, also to leave or to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// At home.
    pub home: i64,
    /// There in any way.
    pub present: i64,
}

/// What resources with a relative rule want. Those that want the same for the same reason are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Want {
    labels: Labels,
    together: Selector,
    apart: Selector,
    spread: Option<Box<str>>,
}

/// What is on one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Here {
    labels: BTreeMap<Labels, Count>,
    wants: BTreeMap<Want, Count>,
}

/// Resources that are spread together: the same labels, over the same label of workers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    labels: Labels,
    key: Box<str>,
}

/// See the module. A plan has one of its own, whose counts are differences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relations {
    at: BTreeMap<WorkerId, Here>,
    /// Label sets, and who of them is at home where.
    homes: BTreeMap<Labels, BTreeMap<WorkerId, i64>>,
    /// How many of a group are at home on the workers of one value; none: on workers without that label.
    groups: BTreeMap<Group, BTreeMap<Option<String>, i64>>,
    /// Where somebody's rule does not hold.
    broken: BTreeSet<WorkerId>,
}

impl Want {
    fn of(definition: &Definition) -> Option<Self> {
        let rules = definition.rules();
        rules.is_relative().then(|| Self {
            labels: definition.labels.clone(),
            together: rules.together.clone(),
            apart: rules.apart.clone(),
            spread: rules.spread.clone(),
        })
    }
}

fn add<K: Ord + Clone>(counts: &mut BTreeMap<K, Count>, key: &K, by: Count) {
    let count = counts.entry(key.clone()).or_default();
    (count.home, count.present) = (count.home + by.home, count.present + by.present);
    if *count == Count::default() {
        counts.remove(key);
    }
}

fn add_number<K: Ord + Clone>(numbers: &mut BTreeMap<K, i64>, key: &K, by: i64) {
    let number = numbers.entry(key.clone()).or_default();
    *number += by;
    if *number == 0 {
        numbers.remove(key);
    }
}

impl Relations {
    /// Counts a resource at a worker whose labels are given; negative counts take it away.
    pub fn add(&mut self, definition: &Definition, worker: &WorkerId, labels: Option<&Labels>, by: Count) {
        let here = self.at.entry(worker.clone()).or_default();
        add(&mut here.labels, &definition.labels, by);
        let want = Want::of(definition);
        if let Some(want) = want {
            if let Some(key) = want.spread.clone() {
                let value = labels.and_then(|labels| labels.get(&*key)).cloned();
                let group = Group { labels: want.labels.clone(), key };
                let values = self.groups.entry(group.clone()).or_default();
                add_number(values, &value, by.home);
                if values.is_empty() {
                    self.groups.remove(&group);
                }
            }
            add(&mut here.wants, &want, by);
        }
        if by.home != 0 {
            let workers = self.homes.entry(definition.labels.clone()).or_default();
            add_number(workers, worker, by.home);
            if workers.is_empty() {
                self.homes.remove(&definition.labels);
            }
        }
        self.judge(worker);
    }

    /// The labels of a worker have changed: what is on it belongs to other values now.
    pub(crate) fn relabel(&mut self, worker: &WorkerId, old: Option<&Labels>, new: Option<&Labels>) {
        let Some(here) = self.at.get(worker) else { return };
        for (want, count) in &here.wants {
            let Some(key) = &want.spread else { continue };
            let value = |labels: Option<&Labels>| labels.and_then(|labels| labels.get(&**key)).cloned();
            let group = Group { labels: want.labels.clone(), key: key.clone() };
            let values = self.groups.entry(group.clone()).or_default();
            add_number(values, &value(old), -count.home);
            add_number(values, &value(new), count.home);
            if values.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    fn judge(&mut self, worker: &WorkerId) {
        let Some(here) = self.at.get(worker) else { return };
        if here.labels.is_empty() && here.wants.is_empty() {
            self.at.remove(worker);
            self.broken.remove(worker);
        } else if here.is_broken() {
            self.broken.insert(worker.clone());
        } else {
            self.broken.remove(worker);
        }
    }

    /// Workers where a rule of somebody who is at home there does not hold.
    #[must_use]
    pub fn broken(&self) -> &BTreeSet<WorkerId> {
        &self.broken
    }
}

impl Here {
    fn is_broken(&self) -> bool {
        self.wants.iter().filter(|(_, count)| count.home > 0).any(|(want, _)| {
            let others = |selector: &Selector| {
                let all: i64 = self.labels.iter().filter(|(labels, _)| selector.matches(labels)).map(|(_, count)| count.home).sum();
                all - i64::from(selector.matches(&want.labels))
            };
            (!want.apart.is_empty() && others(&want.apart) > 0) || (!want.together.is_empty() && others(&want.together) <= 0)
        })
    }
}

/// From where a resource looks at a worker: what it counts there, and whether it is counted itself.
#[derive(Clone, Copy)]
struct Sight {
    of: fn(&Count) -> i64,
    own: i64,
}

/// Relations with the differences that a plan makes to them.
#[derive(Clone, Copy, Debug)]
pub struct Related<'a> {
    /// As they stand; none: nobody has a relative rule.
    pub base: Option<&'a Relations>,
    /// What the plan adds.
    pub plan: &'a Relations,
}

impl<'a> Related<'a> {
    fn parts(&self) -> impl Iterator<Item = &'a Relations> + use<'a> {
        self.base.into_iter().chain([self.plan])
    }

    /// Nobody has a relative rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts().all(|part| part.at.is_empty())
    }

    /// How many on a worker have labels that match.
    fn matching(&self, worker: &WorkerId, selector: &Selector, of: fn(&Count) -> i64) -> i64 {
        let here = self.parts().filter_map(|part| part.at.get(worker));
        here.flat_map(|here| &here.labels).filter(|(labels, _)| selector.matches(labels)).map(|(_, count)| of(count)).sum()
    }

    /// The relative rule that a worker breaks for a resource that is to come to it. Who is there in any way counts, also who is leaving.
    /// `is_first` is [`Related::is_first`], which is the same for all workers.
    ///
    /// # Errors
    /// That rule.
    pub fn allow(&self, definition: &Definition, worker: &WorkerId, is_first: &dyn Fn() -> bool) -> Result<(), Misfit> {
        if self.is_empty() && definition.rules().together.is_empty() {
            return Ok(());
        }
        self.misfit(definition, worker, Sight { of: |count| count.present, own: 0 }, is_first).map_or(Ok(()), Err)
    }

    /// Nobody that the resource wants to be with is at home anywhere, and it is one of those itself: it may be the first.
    #[must_use]
    pub fn is_first(&self, definition: &Definition) -> bool {
        self.founds(definition, 0)
    }

    /// The relative rule that a worker breaks for a resource that is at home there.
    #[must_use]
    pub fn broken(&self, definition: &Definition, worker: &WorkerId) -> Option<Misfit> {
        self.misfit(definition, worker, Sight { of: |count| count.home, own: 1 }, &|| self.founds(definition, 1))
    }

    fn misfit(&self, definition: &Definition, worker: &WorkerId, sight: Sight, is_first: &dyn Fn() -> bool) -> Option<Misfit> {
        let rules = definition.rules();
        let others =
            |selector: &Selector, of| self.matching(worker, selector, of) - sight.own * i64::from(selector.matches(&definition.labels));
        if !rules.apart.is_empty() && others(&rules.apart, sight.of) > 0 {
            return Some(Misfit::Apart(rules.apart.summary()));
        }
        if let Some(selector) = self.kept_apart(definition, worker, sight) {
            return Some(Misfit::KeptApart(selector.summary()));
        }
        if rules.together.is_empty() || others(&rules.together, |count| count.home) > 0 || is_first() {
            return None;
        }
        Some(Misfit::Together(rules.together.summary()))
    }

    /// The `apart` of another on this worker that selects the resource.
    fn kept_apart(&self, definition: &Definition, worker: &WorkerId, sight: Sight) -> Option<&'a Selector> {
        let mut counts: BTreeMap<&Selector, i64> = BTreeMap::new();
        for (want, count) in self.parts().filter_map(|part| part.at.get(worker)).flat_map(|here| &here.wants) {
            if !want.apart.is_empty() && want.apart.matches(&definition.labels) {
                *counts.entry(&want.apart).or_default() += (sight.of)(count);
            }
        }
        let own = |selector: &Selector| sight.own * i64::from(*selector == definition.rules().apart);
        counts.into_iter().find(|(selector, count)| *count - own(selector) > 0).map(|(selector, _)| selector)
    }

    /// Nobody that it wants to be with is anywhere, and it is one of those itself: it is the first.
    fn founds(&self, definition: &Definition, own: i64) -> bool {
        let rules = definition.rules();
        rules.together.matches(&definition.labels) && self.number_of(&rules.together) <= own
    }

    /// How many are at home anywhere whose labels match.
    fn number_of(&self, selector: &Selector) -> i64 {
        let homes = self.parts().flat_map(|part| &part.homes).filter(|(labels, _)| selector.matches(labels));
        homes.flat_map(|(_, workers)| workers.values()).sum()
    }

    /// The workers on which somebody is at home whose labels match.
    #[must_use]
    pub fn homes_of(&self, selector: &Selector) -> BTreeSet<&'a WorkerId> {
        let mut counts: BTreeMap<&WorkerId, i64> = BTreeMap::new();
        for (_, workers) in self.parts().flat_map(|part| &part.homes).filter(|(labels, _)| selector.matches(labels)) {
            for (worker, count) in workers {
                *counts.entry(worker).or_default() += count;
            }
        }
        counts.into_iter().filter(|(_, count)| *count > 0).map(|(worker, _)| worker).collect()
    }

    /// How many of the resource's group are at home on workers that have the same value of its label as these labels.
    #[must_use]
    pub fn crowd(&self, definition: &Definition, key: &str, labels: &Labels) -> i64 {
        let group = Group { labels: definition.labels.clone(), key: key.into() };
        let value = labels.get(key).cloned();
        self.parts().filter_map(|part| part.groups.get(&group)?.get(&value)).sum()
    }

    /// Somebody on this worker would lose the last of its companions if the resource went.
    #[must_use]
    pub fn is_needed(&self, definition: &Definition, worker: &WorkerId) -> bool {
        let wants = self.parts().filter_map(|part| part.at.get(worker)).flat_map(|here| &here.wants);
        let together: BTreeSet<(&Labels, &Selector)> = wants
            .filter(|(want, count)| !want.together.is_empty() && count.home > 0)
            .map(|(want, _)| (&want.labels, &want.together))
            .collect();
        together.into_iter().any(|(labels, selector)| {
            let own = i64::from(selector.matches(labels));
            selector.matches(&definition.labels) && self.matching(worker, selector, |count| count.home) - own <= 1
        })
    }
}

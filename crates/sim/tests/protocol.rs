//! Holds the model of the ownership protocol: the small instances to their end, what must have been seen on the way, and every mutant.
//! It is beside the wheel. What takes minutes is run by `make model`.

use std::collections::BTreeMap;

use evenkeel_sim::protocol::{
    instances::{Instance, SMALL},
    model::{Found, PROPERTIES, Until, check},
    mutants::MUTANTS,
    rules::RULES,
    seen::Seen,
};

fn exhaust(instance: &Instance) -> Found {
    let found = check(instance.protocol(&[], PROPERTIES), Until::Exhausted, 2);
    assert!(found.broken.is_empty(), "{}: these do not hold after these steps: {:#?}", instance.name, found.broken);
    found
}

#[test]
fn the_protocol_holds_in_every_order_of_steps_and_everything_noteworthy_happens() {
    let mut seen: BTreeMap<Seen, u64> = BTreeMap::new();
    for instance in SMALL {
        for (kind, times) in exhaust(instance).seen {
            *seen.entry(kind).or_default() += times;
        }
    }
    let never: Vec<_> = seen.iter().filter(|(_, times)| **times == 0).collect();
    assert!(never.is_empty() && seen.len() == Seen::COUNT, "never seen: {never:?}");
}

#[test]
fn every_mutant_is_caught_unless_another_rule_makes_up_for_it() {
    for mutant in MUTANTS {
        let found = mutant.run(2);
        let broken: Vec<_> = found.broken.iter().map(|(property, _)| *property).collect();
        assert!(mutant.is_as_expected(&found), "{} ({:?}) breaks {broken:?}, expected {:?}", mutant.words, mutant.weakened, mutant.breaks);
    }
}

#[test]
fn every_rule_is_weakened_and_most_weakenings_are_caught() {
    let caught = MUTANTS.iter().filter(|mutant| mutant.breaks.is_some());
    let free: Vec<_> = RULES.iter().filter(|(rule, _)| !caught.clone().any(|mutant| mutant.rule == *rule)).collect();
    assert!(free.is_empty(), "no mutant of the rules {free:?} is caught");
    let strange: Vec<_> = MUTANTS.iter().filter(|mutant| !RULES.iter().any(|(rule, _)| *rule == mutant.rule)).collect();
    assert!(strange.is_empty(), "there is no such rule: {strange:?}");
    assert!(caught.count() >= 45);
}

//! Goes through the instances of the protocol model to their end, and prints what was found. `make model` runs it.

use evenkeel_sim::protocol::{instances::INSTANCES, mutants::MUTANTS, model::{Until, check}};

fn main() {
    for instance in INSTANCES {
        let found = check(instance.protocol(&[]), Until::Exhausted, 2);
        println!("{} states {} unique {} depth {} took {:?} broken {:?}", instance.name, found.states, found.unique, found.depth, found.took, found.broken);
        println!("   {:?}", found.seen.iter().filter(|s| s.1 > 0).collect::<Vec<_>>());
    }
    for mutant in MUTANTS {
        let mut line = String::new();
        for instance in INSTANCES {
            let found = check(instance.protocol(mutant.weakened), Until::Broken, 2);
            for (name, steps) in found.broken { line += &format!(" {}:{}@{}/{}", instance.name, &name[..3], steps.len(), found.unique); }
        }
        println!("{:?} {line}", mutant.weakened);
    }
}

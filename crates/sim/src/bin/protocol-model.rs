//! Goes through the instances of the protocol model to their end, then through its mutants, and prints a table of each. `make model` runs
//! it. It is beside the wheel, and judges only the model.

use std::process::ExitCode;

use evenkeel_sim::protocol::{
    instances::{Instance, LARGE, SMALL},
    model::{Found, PROPERTIES, Until, check},
    mutants::{MUTANTS, Mutant},
};

const THREADS: usize = 2;

fn main() -> ExitCode {
    let small_only = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--small") => true,
        Some(other) => {
            eprintln!("protocol-model: {other} is not known; there is --small, which leaves out what takes minutes");
            return ExitCode::from(2);
        }
    };
    let mut sound = true;
    println!("{:<18} {:>10} {:>10} {:>5} {:>9}  found", "instance", "states", "unique", "depth", "time");
    for instance in SMALL.iter().chain(LARGE.iter().filter(|_| !small_only)) {
        let found = check(instance.protocol(&[], PROPERTIES), Until::Exhausted, THREADS);
        sound &= found.broken.is_empty();
        show_instance(instance, &found);
    }
    println!("\n{:<4} {:<82} {:<13} {:<32} {:>5} {:>8}", "rule", "mutant", "instance", "caught by", "steps", "unique");
    for mutant in MUTANTS {
        let found = mutant.run(THREADS);
        sound &= mutant.is_as_expected(&found);
        show_mutant(mutant, &found);
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show_instance(instance: &Instance, found: &Found) {
    let time = format!("{:.2} s", found.took.as_secs_f64());
    let broken = if found.broken.is_empty() { "nothing" } else { "BROKEN" };
    println!("{:<18} {:>10} {:>10} {:>5} {time:>9}  {broken}", instance.name, found.states, found.unique, found.depth);
    for (property, steps) in &found.broken {
        println!("  not so: {property}");
        steps.iter().for_each(|step| println!("    {step:?}"));
    }
}

fn show_mutant(mutant: &Mutant, found: &Found) {
    let (caught, steps) = match found.broken.first() {
        Some((property, steps)) => (*property, steps.len().to_string()),
        None if mutant.breaks.is_none() => ("nothing: another rule holds", "-".to_owned()),
        None => ("NOTHING", "-".to_owned()),
    };
    println!("{:<4} {:<82} {:<13} {caught:<32} {steps:>5} {:>8}", mutant.rule, mutant.words, mutant.instance, found.unique);
}

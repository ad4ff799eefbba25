//! The model of etcd against the real one: the same operations on both, and every answer and every watch compared.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/ops.rs"]
mod ops;
#[path = "conformance/sides.rs"]
mod sides;

use ops::{Operation, Player, Step, random, step};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use sides::{Model, Real};

/// How many sequences, unless the environment asks for more, and how long each.
const SEEDS: u64 = 20;
const OPERATIONS: usize = 60;

/// Plays the operations on both. The first difference, if there is one.
fn differ(real: &Real, operations: &[Operation], seed: u64) -> Option<String> {
    let at = real.clean();
    let model = Model::start(at, real.version, seed);
    let (mut one, mut other) = (Player::new(&real.side), Player::new(&model.side));
    let mut difference = None;
    for (n, operation) in operations.iter().enumerate() {
        let step = model.etcd.peek(|store| step(store, operation));
        if matches!(step, Step::Compact(_)) {
            model.settle();
        }
        let (said, modelled) = (one.play(&step), other.play(&step));
        if said != modelled {
            difference = Some(format!("operation {n}, {step:?}\n  etcd:  {said}\n  model: {modelled}"));
            break;
        }
    }
    if difference.is_none() {
        let (said, modelled) = (one.watched(), other.watched());
        difference = said
            .iter()
            .zip(&modelled)
            .find(|(said, modelled)| said != modelled)
            .map(|(said, modelled)| format!("a watch\n  etcd:  {said}\n  model: {modelled}"));
    }
    one.clean();
    difference
}

/// Takes out of a sequence what is not needed for a difference.
fn shrink(real: &Real, mut operations: Vec<Operation>, seed: u64) -> Vec<Operation> {
    let mut size = operations.len() / 2;
    while size > 0 {
        let mut from = 0;
        while from < operations.len() {
            let mut fewer = operations.clone();
            fewer.drain(from..(from + size).min(operations.len()));
            if differ(real, &fewer, seed).is_some() {
                operations = fewer;
            } else {
                from += size;
            }
        }
        size /= 2;
    }
    operations
}

#[test]
fn the_model_says_what_etcd_says() {
    let real = Real::start(&[]);
    let seeds = std::env::var("EVENKEEL_TEST_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let operations = random(&mut ChaCha8Rng::seed_from_u64(seed), OPERATIONS);
        if differ(&real, &operations, seed).is_some() {
            let fewest = shrink(&real, operations, seed);
            let difference = differ(&real, &fewest, seed);
            panic!("seed {seed}; the fewest operations that show it:\n{fewest:#?}\n{}", difference.unwrap_or_default());
        }
    }
}

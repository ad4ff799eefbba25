//! Every function over its kept corpus, seeds and regressions, and over variants of it. `make fuzz` goes on where this ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use evenkeel_fuzz::TARGETS;
use proptest::{prelude::*, test_runner::TestRunner};

/// How many variants each function is given. All of them take seconds.
const VARIANTS: u32 = 2000;
/// How long a variant may become: fuzzers without a limit of their own go no further.
const LONGEST: usize = 8192;

/// How large an input of much of the same is.
const LARGE: usize = 256 << 10;
/// How many bytes may be allocated at a time for each byte of a large input: a value of JSON takes dozens for a digit and a comma.
const BYTES_A_BYTE: u64 = 256;

/// A file of the corpus: its name, and what is in it.
type Seed = (String, Vec<u8>);

fn corpus(target: &str) -> Vec<Seed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut seeds: Vec<Seed> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())
        })
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "{} is empty", folder.display());
    seeds
}

/// One change to the bytes of a seed; positions count modulo what is there.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize, usize),
    Splice(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let words =
        [",", "=", "!", "(", ")", "{", "}", "[", "]", "\"", ":", "\n", " ", "-", "/", "%00", "null", "1e999", "-0.0", "\u{e9}", "a"];
    let word = prop_oneof![
        proptest::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 1..9)
    ];
    let at = any::<usize>();
    prop_oneof![
        (at, any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at, word).prop_map(|(at, word)| Change::Insert(at, word)),
        (at, 1..40_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (at, 1..40_usize, 1..60_usize).prop_map(|(at, count, times)| Change::Repeat(at, count, times)),
        (at, at).prop_map(|(at, from)| Change::Splice(at, from)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change], other: &[u8]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len();
        let place = |at: usize| at % (length + 1);
        let range = |at: usize, count: usize| place(at)..(place(at) + count).min(length);
        match change {
            Change::Set(at, byte) if length > 0 => bytes[at % length] = *byte,
            Change::Set(..) => {}
            Change::Insert(at, word) => drop(bytes.splice(place(*at)..place(*at), word.iter().copied())),
            Change::Remove(at, count) => drop(bytes.drain(range(*at, *count))),
            Change::Repeat(at, count, times) => {
                let piece = bytes[range(*at, *count)].repeat(*times);
                let end = range(*at, *count).end;
                drop(bytes.splice(end..end, piece));
            }
            Change::Splice(at, from) => {
                bytes.truncate(place(*at));
                bytes.extend(&other[from % (other.len() + 1)..]);
            }
        }
        bytes.truncate(LONGEST);
    }
    bytes
}

fn holds_for(target: &str) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).unwrap().1;
    let seeds = corpus(target);
    for (name, bytes) in &seeds {
        let found = std::panic::catch_unwind(|| run(bytes));
        assert!(found.is_ok(), "fuzz/corpus/{target}/{name}: see above");
    }
    let seed = proptest::sample::select(seeds);
    let variant = (seed.clone(), seed, proptest::collection::vec(change(), 1..6));
    let config = ProptestConfig { cases: VARIANTS, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&variant, |((_, bytes), (_, other), changes)| {
        let bytes = changed(bytes, &changes, &other);
        let found = std::panic::catch_unwind(|| run(&bytes));
        prop_assert!(found.is_ok(), "keep this in fuzz/corpus/{}: {:?}", target, String::from_utf8_lossy(&bytes));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Each seed with its second half again and again. What costs the square of its length does not end, and what keeps too much of it is seen.
#[test]
fn large_inputs_end_in_bounded_memory() {
    for (target, run) in TARGETS {
        for (name, bytes) in corpus(target) {
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            let mut large = head.to_vec();
            while !tail.is_empty() && large.len() < LARGE {
                large.extend_from_slice(tail);
            }
            let counted = allocation_counter::measure(|| run(&large));
            let most = large.len().max(1024) as u64 * BYTES_A_BYTE + (1 << 20);
            assert!(counted.bytes_max <= most, "{target}/{name}: {} bytes for {} of input", counted.bytes_max, large.len());
        }
    }
}

#[test]
fn every_function_has_a_corpus_and_a_target_of_cargo_fuzz() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let mut folders: Vec<String> =
        fs::read_dir(root.join("corpus")).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let mut names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    folders.sort();
    names.sort_unstable();
    assert_eq!(folders, names);
    for name in names {
        assert!(root.join(format!("fuzz_targets/{name}.rs")).is_file(), "fuzz/fuzz_targets/{name}.rs");
    }
}

#[test]
fn selectors() {
    holds_for("selector");
}

#[test]
fn manifests() {
    holds_for("manifest");
}

#[test]
fn process_specs() {
    holds_for("process_spec");
}

#[test]
fn stored_values() {
    holds_for("stored_values");
}

#[test]
fn guard_messages() {
    holds_for("guard_messages");
}

#[test]
fn http_requests() {
    holds_for("http_request");
}

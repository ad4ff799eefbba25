//! Random operations, and what each side says to them.
//!
//! An operation names revisions and leases by their relation to what there is, so that a sequence keeps its sense when operations are
//! taken out of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;

use evenkeel_sim::etcd::Store;
use evenkeel_store::{Compare, Error, KeyChange, KeyRange, Kv, Op, RangeRequest, Revision, Txn, Watch, WatchMessage};
use rand_chacha::{ChaCha8Rng, rand_core::Rng};

use super::sides::{Side, kind};

const KEYS: [&[u8]; 8] = [b"a", b"b", b"b\0", b"c", b"d/1", b"d/2", b"d/\xff", b""];

/// A revision by its relation to what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Zero,
    /// So many before the present one, or after it.
    Present(i64),
    /// So many after the last compaction, or before it.
    Compaction(i64),
    /// That at which the key was created, or modified; zero if it does not exist.
    Created(usize),
    Modified(usize),
}

/// A lease: one of those that were granted, or one that nobody has granted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lease {
    None,
    Unknown,
    Granted(usize),
}

#[derive(Clone, Debug)]
pub(crate) enum Part {
    Put(usize, u8, Lease),
    Delete(usize),
    DeleteRange(KeyRange),
    Get(usize),
    Range(KeyRange),
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Put(usize, u8),
    Txn { compares: Vec<(bool, usize, At)>, then: Vec<Part>, otherwise: Vec<Part> },
    Range { range: KeyRange, at: At, limit: i64, keys_only: bool },
    Grant(i64),
    Revoke(Lease),
    Renew(Lease),
    TimeToLive(Lease),
    Compact(At),
    Watch { range: KeyRange, start: At },
}

/// So many operations, after two leases that they can use.
pub(crate) fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<Operation> {
    let leases = [60, 75].map(Operation::Grant);
    leases.into_iter().chain((0..count).map(|_| operation(rng))).collect()
}

fn below(rng: &mut ChaCha8Rng, end: u64) -> usize {
    usize::try_from(rng.next_u64() % end).unwrap()
}

fn small(rng: &mut ChaCha8Rng, from: i64, to: i64) -> i64 {
    from + i64::try_from(below(rng, u64::try_from(to - from + 1).unwrap())).unwrap()
}

/// The empty key, which etcd refuses, is rare.
fn key(rng: &mut ChaCha8Rng) -> usize {
    if below(rng, 60) == 0 { KEYS.len() - 1 } else { below(rng, KEYS.len() as u64 - 1) }
}

fn range(rng: &mut ChaCha8Rng) -> KeyRange {
    let (one, other) = (KEYS[key(rng)], KEYS[key(rng)]);
    match below(rng, 6) {
        0 => KeyRange::prefix(""),
        1 => KeyRange::prefix("d/"),
        2 => KeyRange::key(one),
        3 => KeyRange::between(one, [0]),
        // The ends may be the wrong way round.
        4 => KeyRange::between(one, other),
        _ => KeyRange::between(one.min(other), one.max(other)),
    }
}

fn lease(rng: &mut ChaCha8Rng) -> Lease {
    match below(rng, 12) {
        0 => Lease::Unknown,
        _ => Lease::Granted(below(rng, 3)),
    }
}

fn part(rng: &mut ChaCha8Rng) -> Part {
    match below(rng, 8) {
        0..3 => {
            let bound = if below(rng, 2) == 0 { lease(rng) } else { Lease::None };
            Part::Put(key(rng), rng.next_u32() as u8, bound)
        }
        3 => Part::Delete(key(rng)),
        4 => Part::DeleteRange(range(rng)),
        5 | 6 => Part::Get(key(rng)),
        _ => Part::Range(range(rng)),
    }
}

/// A put beside a deletion without an upper end is left out, since etcd dies of it: its check overlooks that both may write one key, and
/// when the history is compacted to the revision of such a transaction, the next read at that revision ends a member of 3.5.30 with
/// "range failed to find revision pair".
fn parts(rng: &mut ChaCha8Rng) -> Vec<Part> {
    let mut parts: Vec<Part> = (0..below(rng, 5)).map(|_| part(rng)).collect();
    if parts.iter().any(|part| matches!(part, Part::Put(..))) {
        parts.retain(|part| !matches!(part, Part::DeleteRange(range) if range.end == [0]));
    }
    parts
}

fn compare(rng: &mut ChaCha8Rng) -> (bool, usize, At) {
    let key = key(rng);
    let at = match below(rng, 6) {
        0 => At::Zero,
        1 => At::Present(small(rng, -2, 0)),
        2 | 3 => At::Created(key),
        _ => At::Modified(key),
    };
    (below(rng, 2) == 0, key, at)
}

fn operation(rng: &mut ChaCha8Rng) -> Operation {
    match below(rng, 20) {
        0..4 => Operation::Put(key(rng), rng.next_u32() as u8),
        4..10 => {
            let compares = (0..below(rng, 3)).map(|_| compare(rng)).collect();
            Operation::Txn { compares, then: parts(rng), otherwise: parts(rng) }
        }
        10..13 => {
            let at = match below(rng, 3) {
                0 => At::Zero,
                1 => At::Present(small(rng, -8, 2)),
                _ => At::Compaction(small(rng, -1, 3)),
            };
            Operation::Range { range: range(rng), at, limit: small(rng, -1, 4), keys_only: below(rng, 3) == 0 }
        }
        13 => Operation::Grant(if below(rng, 12) == 0 { 9_000_000_001 } else { small(rng, 60, 90) }),
        14 | 15 => Operation::Revoke(lease(rng)),
        16 if below(rng, 2) == 0 => Operation::Renew(lease(rng)),
        16 => Operation::TimeToLive(lease(rng)),
        17 => Operation::Compact(if below(rng, 3) == 0 { At::Compaction(small(rng, -1, 2)) } else { At::Present(small(rng, -6, 1)) }),
        _ => {
            let start = if below(rng, 3) == 0 { At::Compaction(small(rng, -1, 2)) } else { At::Present(small(rng, -6, 3)) };
            Operation::Watch { range: range(rng), start }
        }
    }
}

/// What a revision is at the moment, by the model's store.
pub(crate) fn resolve(store: &Store, at: At) -> Revision {
    let standing = |key: usize| store.get(KEYS[key]);
    match at {
        At::Zero => Revision(0),
        At::Present(by) => Revision(store.revision().0 + by),
        At::Compaction(by) => Revision(store.compacted().0 + by),
        At::Created(key) => standing(key).map_or(Revision(0), |kv| kv.created),
        At::Modified(key) => standing(key).map_or(Revision(0), |kv| kv.modified),
    }
}

/// An operation in which every revision is known.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Txn(Vec<Compare>, Vec<Part>, Vec<Part>),
    Range(RangeRequest),
    Watch { range: KeyRange, start: Revision, whole: bool },
    Compact(Revision),
    Other(Operation),
}

pub(crate) fn step(store: &Store, operation: &Operation) -> Step {
    match operation.clone() {
        Operation::Txn { compares, then, otherwise } => {
            let compare = |(created, key, at): (bool, usize, At)| {
                let (key, equals) = (KEYS[key].to_vec(), resolve(store, at));
                if created { Compare::CreateRevision { key, equals } } else { Compare::ModRevision { key, equals } }
            };
            Step::Txn(compares.into_iter().map(compare).collect(), then, otherwise)
        }
        Operation::Range { range, at, limit, keys_only } => {
            Step::Range(RangeRequest { range, revision: resolve(store, at), limit, keys_only })
        }
        Operation::Watch { range, start } => {
            let start = resolve(store, start).max(Revision(1));
            Step::Watch { range, start, whole: start != store.compacted() }
        }
        Operation::Compact(at) => Step::Compact(resolve(store, at)),
        other => Step::Other(other),
    }
}

/// A side, with its own names for the leases and its own watches.
pub(crate) struct Player<'a> {
    pub(crate) side: &'a Side,
    leases: Vec<i64>,
    watches: Vec<Seen>,
}

/// A watch, and all that it has said.
struct Seen {
    watch: Box<dyn Watch>,
    range: KeyRange,
    start: Revision,
    /// Whether it must tell of the deletions of its first revision. Of a revision that was just compacted, etcd may or may not.
    whole: bool,
    changes: Vec<KeyChange>,
    end: Option<String>,
}

impl<'a> Player<'a> {
    pub(crate) fn new(side: &'a Side) -> Self {
        Self { side, leases: Vec::new(), watches: Vec::new() }
    }

    /// Does one thing, and says what came of it.
    pub(crate) fn play(&mut self, step: &Step) -> String {
        let side = self.side;
        match step {
            Step::Txn(compares, then, otherwise) => {
                let txn = Txn { compares: compares.clone(), then: self.ops(then), otherwise: self.ops(otherwise) };
                let done = side.run(side.member.txn(txn));
                self.say(done, |player, reply| {
                    let reads: Vec<_> = reply.reads.into_iter().map(|kvs| player.named(kvs)).collect();
                    format!("{} {} {reads:?}", reply.succeeded, reply.revision)
                })
            }
            Step::Range(request) => {
                let done = side.run(side.member.range(request.clone()));
                self.say(done, |player, reply| format!("{:?} {} {}", player.named(reply.kvs), reply.more, reply.revision))
            }
            Step::Compact(revision) => {
                let done = side.run(side.member.compact(*revision));
                self.say(done, |_, ()| "done".to_owned())
            }
            Step::Watch { range, start, whole } => self.watch(range, *start, *whole),
            Step::Other(operation) => self.other(operation),
        }
    }

    fn other(&mut self, operation: &Operation) -> String {
        let side = self.side;
        match operation {
            Operation::Put(key, value) => {
                let done = side.run(side.member.put(KEYS[*key].to_vec(), vec![*value]));
                self.say(done, |_, revision| revision.to_string())
            }
            Operation::Grant(seconds) => {
                let done = side.run(side.member.grant(*seconds));
                self.say(done, |player, granted| {
                    player.leases.push(granted.lease);
                    format!("{:?}", granted.ttl)
                })
            }
            Operation::Revoke(lease) => {
                let done = side.run(side.member.revoke(self.lease(*lease)));
                self.say(done, |_, ()| "done".to_owned())
            }
            Operation::Renew(lease) => {
                let done = side.run(side.member.keep_alive(self.lease(*lease)));
                self.say(done, |_, _| "extended".to_owned())
            }
            Operation::TimeToLive(lease) => {
                let done = side.run(side.member.time_to_live(self.lease(*lease)));
                // The two clocks are not the same; that the time is right is tested by itself.
                self.say(done, |_, left| format!("{}", left.is_some()))
            }
            _ => unreachable!("the others are steps of their own"),
        }
    }

    fn watch(&mut self, range: &KeyRange, start: Revision, whole: bool) -> String {
        let side = self.side;
        let opened = side.run(side.member.watch(range.clone(), start));
        let range = range.clone();
        self.say(opened, |player, watch| {
            let said = watch.created_at().to_string();
            player.watches.push(Seen { watch, range, start, whole, changes: Vec::new(), end: None });
            // Until it has caught up, what a compaction does to it is a matter of luck.
            player.catch_up(player.watches.len() - 1);
            said
        })
    }

    /// Puts the first key of the watch's range, and reads until it comes.
    fn catch_up(&mut self, at: usize) {
        let side = self.side;
        let seen = &mut self.watches[at];
        // The empty key stands for the first one there is, as a watch takes it.
        let key = if seen.range.start.is_empty() { vec![0] } else { seen.range.start.clone() };
        let mark = side.run(side.member.put(key, b"mark".to_vec())).unwrap().unwrap();
        while seen.end.is_none() && seen.start <= mark && seen.changes.last().is_none_or(|change| change.revision() < mark) {
            match side.run(seen.watch.next()) {
                Some(Ok(WatchMessage::Changes(changes))) => {
                    let last = seen.changes.last().map_or(Revision(0), KeyChange::revision);
                    assert!(changes[0].revision() > last, "{}: no transaction is split: {changes:?} after {last}", side.name);
                    seen.changes.extend(changes);
                }
                Some(Ok(WatchMessage::Alive(_))) => {}
                Some(Ok(WatchMessage::Compacted(revision))) => seen.end = Some(format!("compacted {revision}")),
                Some(Err(error)) => seen.end = Some(kind(&error)),
                None => seen.end = Some("hangs".to_owned()),
            }
        }
    }

    /// All that the watches have said.
    pub(crate) fn watched(&mut self) -> Vec<String> {
        (0..self.watches.len()).for_each(|at| self.catch_up(at));
        let watches = std::mem::take(&mut self.watches);
        let told = |seen: &Seen| {
            let first = |change: &&KeyChange| seen.whole || change.revision() != seen.start || matches!(change, KeyChange::Put(_));
            let changes = seen.changes.iter().filter(first).map(|change| match change {
                KeyChange::Put(kv) => format!("{:?}", self.named(vec![kv.clone()])),
                KeyChange::Delete { key, revision } => format!("{:?} deleted at {revision}", String::from_utf8_lossy(key)),
            });
            format!("{:?} from {}: {:?} {:?}", seen.range, seen.start, changes.collect::<Vec<_>>(), seen.end)
        };
        watches.iter().map(told).collect()
    }

    /// Leaves no lease behind.
    pub(crate) fn clean(&self) {
        for lease in &self.leases {
            let _ = self.side.run(self.side.member.revoke(*lease)).unwrap();
        }
    }

    fn say<T>(&mut self, done: Option<Result<T, Error>>, what: impl FnOnce(&mut Self, T) -> String) -> String {
        match done {
            Some(Ok(done)) => what(self, done),
            Some(Err(error)) => kind(&error),
            None => "hangs".to_owned(),
        }
    }

    fn lease(&self, lease: Lease) -> i64 {
        match lease {
            Lease::None => 0,
            Lease::Granted(n) if !self.leases.is_empty() => self.leases[n % self.leases.len()],
            Lease::Unknown | Lease::Granted(_) => 4_711,
        }
    }

    fn ops(&self, parts: &[Part]) -> Vec<Op> {
        let op = |part: &Part| match part {
            Part::Put(key, value, lease) => Op::Put { key: KEYS[*key].to_vec(), value: vec![*value], lease: self.lease(*lease) },
            Part::Delete(key) => Op::delete(KEYS[*key]),
            Part::DeleteRange(range) => Op::DeleteRange { range: range.clone() },
            Part::Get(key) => Op::get(KEYS[*key]),
            Part::Range(range) => Op::Range { range: range.clone() },
        };
        parts.iter().map(op).collect()
    }

    /// Keys with the leases under names that both sides have.
    fn named(&self, kvs: Vec<Kv>) -> Vec<impl Debug + use<>> {
        let name = |kv: Kv| {
            let lease = self.leases.iter().position(|lease| *lease == kv.lease);
            (String::from_utf8_lossy(&kv.key).into_owned(), kv.value, kv.created, kv.modified, lease)
        };
        kvs.into_iter().map(name).collect()
    }
}

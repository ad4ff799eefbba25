//! The commit pipeline against a small model of etcd that loses answers, loses requests, carries some out much later, and has no space at
//! times.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cases;
mod model;
mod no_space;

use std::collections::{BTreeSet, HashMap};

use evenkeel_store::{Batch, Compare, Done, Op, Outcome, Pipeline, Resolution, Revision, SubmitError, Txn, Write, WriteResult};
use model::{Logged, Model, Touches, check, pipeline};
use proptest::prelude::*;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        puts: BTreeSet<u8>,
        deletes: BTreeSet<u8>,
        compares: BTreeSet<u8>,
    },
    /// A write that puts nothing.
    Delete {
        others: BTreeSet<u8>,
        compares: BTreeSet<u8>,
        own: Own,
    },
    Check {
        compares: BTreeSet<u8>,
    },
    /// All batches that there are go out.
    Send,
    /// Something happens to one of the batches under way.
    Batch(usize, Fate),
    /// A request of old reaches etcd.
    Late(usize),
    /// Somebody else writes a key that is compared, or deletes it.
    Meddle(u8, bool),
    /// Somebody else deletes what a write is to delete, or puts it anew.
    Forestall(u64, bool),
    Space(bool),
    Withdraw,
    LoseFence,
}

/// How a write compares the key that it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Created,
    Modified,
    NotAtAll,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    AnswerLost,
    RequestLost,
    /// The request waits somewhere, and may be carried out at a [`Step::Late`].
    Delayed,
    NoSpace,
    Overloaded,
    Rejected,
}

fn step() -> impl Strategy<Value = Step> {
    let keys = |most| prop::collection::btree_set(0u8..6, 0..most);
    let fate = prop_oneof![
        6 => Just(Fate::Answered), 2 => Just(Fate::AnswerLost), 2 => Just(Fate::RequestLost), 3 => Just(Fate::Delayed),
        1 => Just(Fate::NoSpace), 1 => Just(Fate::Overloaded), 1 => Just(Fate::Rejected),
    ];
    let own = prop_oneof![3 => Just(Own::Created), 3 => Just(Own::Modified), 1 => Just(Own::NotAtAll)];
    prop_oneof![
        6 => (keys(3), keys(2), keys(3)).prop_map(|(puts, deletes, compares)| Step::Submit { puts, deletes, compares }),
        4 => (keys(2), keys(2), own).prop_map(|(others, compares, own)| Step::Delete { others, compares, own }),
        1 => keys(3).prop_map(|compares| Step::Check { compares }),
        5 => Just(Step::Send),
        10 => (0usize..3, fate).prop_map(|(at, fate)| Step::Batch(at, fate)),
        3 => (0usize..4).prop_map(Step::Late),
        2 => (0u8..6, any::<bool>()).prop_map(|(key, deletes)| Step::Meddle(key, deletes)),
        2 => (0u64..20, any::<bool>()).prop_map(|(token, puts)| Step::Forestall(token, puts)),
        2 => any::<bool>().prop_map(Step::Space),
        1 => Just(Step::Withdraw),
    ]
}

/// A batch under way.
struct Flight {
    batch: Batch,
    /// Its answer is lost: it is being resolved, or sent again.
    lost: bool,
    touches: Touches,
}

/// What a write consists of, as far as it matters for its result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Puts,
    Deletes,
    Checks,
}

struct World {
    model: Model,
    pipeline: Pipeline,
    flights: Vec<Flight>,
    late: Vec<Txn>,
    submitted: Vec<Shape>,
    /// Those whose key somebody else has deleted or put anew.
    forestalled: BTreeSet<u64>,
    withdrawn: BTreeSet<u64>,
    /// Those that can be done without space.
    spaceless: BTreeSet<u64>,
    done: HashMap<u64, (WriteResult, bool)>,
}

impl World {
    fn new() -> Self {
        Self {
            model: Model::new(),
            pipeline: pipeline(),
            flights: vec![],
            late: vec![],
            submitted: vec![],
            forestalled: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            spaceless: BTreeSet::new(),
            done: HashMap::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit { puts, deletes, compares } => self.submit_puts(&puts, &deletes, &compares),
            Step::Delete { others, compares, own } => self.submit_deletes(&others, &compares, own),
            Step::Check { compares } => {
                self.spaceless.insert(self.next_token());
                self.submit(Shape::Checks, compares_of(&compares), vec![], None);
            }
            Step::Send => self.send(),
            Step::Batch(at, fate) if !self.flights.is_empty() => self.batch(at % self.flights.len(), fate),
            Step::Late(at) if !self.late.is_empty() => {
                let txn = self.late.swap_remove(at % self.late.len());
                self.model.ask(&txn);
            }
            Step::Meddle(key, true) => drop(self.model.kvs.remove(format!("/compared/{key}").as_bytes())),
            Step::Meddle(key, false) => self.model.put(&format!("/compared/{key}")),
            Step::Forestall(token, puts) if self.submitted.get(usize::try_from(token).unwrap()) == Some(&Shape::Deletes) => {
                self.forestalled.insert(token);
                self.model.kvs.remove(own_key(token).as_bytes());
                if puts {
                    self.model.put(&own_key(token));
                }
            }
            Step::Space(space) => self.model.no_space = !space,
            Step::Withdraw => self.withdrawn.extend(self.pipeline.withdraw_unsent()),
            Step::LoseFence => self.model.lose_fence(),
            Step::Batch(..) | Step::Late(_) | Step::Forestall(..) => {}
        }
    }

    fn next_token(&self) -> u64 {
        self.submitted.len() as u64
    }

    fn submit_puts(&mut self, puts: &BTreeSet<u8>, deletes: &BTreeSet<u8>, compares: &BTreeSet<u8>) {
        let token = self.next_token();
        // Every write has a key of its own, so that the log tells whether it was applied.
        let mut ops = vec![Op::put(own_key(token), token.to_string())];
        ops.extend(puts.iter().map(|key| Op::put(format!("/k/{key}"), token.to_string())));
        ops.extend(deletes.difference(puts).map(|key| Op::delete(format!("/k/{key}"))));
        let entry = token.is_multiple_of(3).then(|| token.to_string().into_bytes());
        self.submit(Shape::Puts, compares_of(compares), ops, entry);
    }

    fn submit_deletes(&mut self, others: &BTreeSet<u8>, compares: &BTreeSet<u8>, own: Own) {
        let key = own_key(self.next_token());
        self.model.put(&key);
        let equals = self.model.kvs[key.as_bytes()].created;
        let mut all: Vec<Compare> = compares.iter().map(|key| self.as_it_is(&format!("/compared/{key}"))).collect();
        match own {
            Own::Created => all.push(Compare::CreateRevision { key: key.clone().into(), equals }),
            Own::Modified => all.push(Compare::ModRevision { key: key.clone().into(), equals }),
            Own::NotAtAll => {}
        }
        let mut ops = vec![Op::delete(key)];
        ops.extend(others.iter().map(|key| Op::delete(format!("/k/{key}"))));
        let token = self.next_token();
        if own != Own::NotAtAll && all.iter().all(|compare| compare.equals() > Revision(0)) {
            self.spaceless.insert(token);
        }
        let entry = token.is_multiple_of(3).then(|| token.to_string().into_bytes());
        self.submit(Shape::Deletes, all, ops, entry);
    }

    /// The condition that a key, which may not exist, does not change.
    fn as_it_is(&self, key: &str) -> Compare {
        let equals = self.model.kvs.get(key.as_bytes()).map_or(Revision(0), |kv| kv.modified);
        Compare::ModRevision { key: key.into(), equals }
    }

    fn submit(&mut self, shape: Shape, compares: Vec<Compare>, ops: Vec<Op>, entry: Option<Vec<u8>>) {
        let token = self.next_token();
        self.submitted.push(shape);
        if let Err(error) = self.pipeline.submit(Write { token, compares, ops, entry }) {
            assert_eq!(error, SubmitError::FenceLost);
            self.done.insert(token, (WriteResult::FenceLost, false));
        }
    }

    fn send(&mut self) {
        while let Some(batch) = self.pipeline.next_batch() {
            let touches = check(&batch.txn);
            for other in &self.flights {
                let disjoint = |a: &BTreeSet<_>, b: &BTreeSet<_>| assert!(a.is_disjoint(b), "two batches in flight share a key");
                disjoint(&touches.written, &other.touches.written);
                disjoint(&touches.written, &other.touches.compared);
                disjoint(&touches.compared, &other.touches.written);
            }
            self.flights.push(Flight { batch, lost: false, touches });
            let marked = self.flights.iter().filter(|flight| flight.batch.resolution.is_some()).count();
            assert!(marked <= 3 && self.flights.len() - marked <= 3 && self.pipeline.in_flight() == self.flights.len());
        }
    }

    fn batch(&mut self, at: usize, fate: Fate) {
        let flight = &mut self.flights[at];
        let resolving = flight.batch.resolution.as_ref().filter(|_| flight.lost);
        let request = resolving.map_or_else(|| flight.batch.txn.clone(), Resolution::txn);
        let reply = match fate {
            Fate::Answered | Fate::AnswerLost => self.model.ask(&request),
            // etcd may say so of a transaction that it has applied: it is the slot that counts.
            Fate::NoSpace if flight.batch.resolution.is_some() => {
                if self.submitted.len().is_multiple_of(2) {
                    self.model.apply(&request);
                }
                None
            }
            Fate::Delayed => {
                self.late.push(request);
                None
            }
            Fate::RequestLost | Fate::NoSpace | Fate::Overloaded | Fate::Rejected => None,
        };
        let outcome = match (fate, &flight.batch.resolution, reply) {
            (Fate::Answered, Some(resolution), Some(reply)) if flight.lost => Some(resolution.judge(&reply)),
            (Fate::Answered, _, Some(reply)) => Some(Batch::judge(reply, flight.lost)),
            (Fate::Answered | Fate::NoSpace, Some(resolution), None) => {
                let slot = resolution.judge_slot(self.model.kvs.get(resolution.slot_key()));
                if flight.lost { slot } else { Some(slot.unwrap_or(Outcome::NoSpace)) }
            }
            (Fate::Answered, None, None) => panic!("a batch without a mark needs no space"),
            (Fate::Rejected, ..) => (!flight.lost).then(|| Outcome::Rejected { reason: "no".into() }),
            (Fate::Overloaded, ..) => None,
            _ => {
                flight.lost = true;
                None
            }
        };
        if let Some(outcome) = outcome {
            let flight = self.flights.swap_remove(at);
            for Done { token, result, journaled } in self.pipeline.finished(flight.batch.id, outcome) {
                assert_eq!(self.done.insert(token, (result, journaled)), None, "{token} is done twice");
            }
        }
    }

    /// The network heals: everything is sent and answered, for a while without space if there is none, and at last all that was delayed
    /// arrives.
    fn settle(&mut self) {
        for round in 0..10_000 {
            self.model.no_space &= round < 1_000;
            self.send();
            if self.flights.is_empty() {
                break;
            }
            self.batch(round % self.flights.len(), Fate::Answered);
        }
        self.model.no_space = false;
        for txn in std::mem::take(&mut self.late) {
            self.model.ask(&txn);
        }
        assert!(self.pipeline.is_empty(), "everything is done with");
    }

    fn judge(&self) {
        let mut applied: HashMap<u64, Vec<Revision>> = HashMap::new();
        let mut order: HashMap<&[u8], Vec<u64>> = HashMap::new();
        let mut journal: HashMap<u64, Revision> = HashMap::new();
        for Logged { revision, key, value } in &self.model.log {
            let text = |bytes| std::str::from_utf8(bytes).unwrap();
            let token = || text(value.as_deref().unwrap()).parse::<u64>().unwrap();
            if let Some(token) = text(key).strip_prefix("/own/") {
                applied.entry(token.parse().unwrap()).or_default().push(*revision);
            } else if key.starts_with(b"/k/") && value.is_some() {
                order.entry(key).or_default().push(token());
            } else if key.starts_with(b"/events/") {
                for token in text(value.as_deref().unwrap()).trim_matches(['[', ']']).split(',') {
                    assert_eq!(journal.insert(token.parse().unwrap(), *revision), None, "{token} has two entries");
                }
            }
        }
        for (at, shape) in self.submitted.iter().enumerate() {
            let token = at as u64;
            let applied = applied.get(&token).map_or(&[][..], Vec::as_slice);
            let Some((result, journaled)) = self.done.get(&token) else {
                assert!(self.withdrawn.contains(&token) && applied.is_empty(), "{token} was taken back, and is not written");
                continue;
            };
            assert!(!self.withdrawn.contains(&token), "{token} was taken back, and is done");
            match (result, shape) {
                (WriteResult::Committed { revision }, Shape::Puts) => assert_eq!(applied, [*revision], "{token} is committed once"),
                // Where an answer was lost it is the revision at which the key was seen to be gone.
                (WriteResult::Committed { revision }, Shape::Deletes) => match applied {
                    [] => assert!(self.forestalled.contains(&token), "{token}: somebody else has done it"),
                    applied => assert!(applied.len() == 1 && applied[0] <= *revision, "{token} is committed once, at {applied:?}"),
                },
                (WriteResult::Unknown, _) => assert!(applied.len() <= 1, "{token} is unknown, and applied at most once"),
                (result, _) => assert_eq!(applied, [], "{token} is {result:?}"),
            }
            assert!(*result != WriteResult::NoSpace || !self.spaceless.contains(&token), "{token} needs no space");
            if *result != WriteResult::Unknown {
                assert_eq!(journal.get(&token), applied.first().filter(|_| *journaled), "{token} has its entry, if it says so");
            }
            let is_committed = matches!(result, WriteResult::Committed { .. });
            assert!(*shape != Shape::Puts || *journaled == (is_committed && token.is_multiple_of(3)), "{token} has its entry");
        }
        for (key, tokens) in order {
            assert!(tokens.is_sorted(), "{}: written in the order {tokens:?}", String::from_utf8_lossy(key));
        }
    }
}

fn own_key(token: u64) -> String {
    format!("/own/{token}")
}

/// Some compare what only others write, some what the pipeline itself writes.
fn compares_of(keys: &BTreeSet<u8>) -> Vec<Compare> {
    let compare = |key: &u8| match key {
        0..3 => Compare::absent(format!("/compared/{key}")),
        _ => Compare::absent(format!("/k/{key}")),
    };
    keys.iter().map(compare).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_write_is_done_once_and_its_result_is_true(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
        world.judge();
    }

    #[test]
    fn the_loss_of_the_fence_ends_everything_and_no_result_is_false(
        before in prop::collection::vec(step(), 1..40),
        after in prop::collection::vec(step(), 1..20),
    ) {
        let mut world = World::new();
        before.into_iter().for_each(|step| world.step(step));
        world.step(Step::LoseFence);
        let lost_at = Revision(world.model.revision);
        after.into_iter().for_each(|step| world.step(step));
        world.settle();
        world.judge();
        let late = |logged: &&Logged| logged.revision > lost_at;
        prop_assert!(world.model.log.iter().find(late).is_none(), "nothing is written without the fence");
    }
}

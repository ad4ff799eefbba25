//! What follows from which facts; and that no interleaving of steps, deaths and changes of mind executes an attempt twice.

use evenkeel_model::{TaskId, task::TaskTail};
use proptest::prelude::*;

use super::*;
use crate::task::journal::End;

fn origin(boot_id: &str, guard: &str) -> Origin {
    Origin { boot_id: boot_id.to_owned(), guard: guard.to_owned() }
}

fn order(attempt: u32, intent: OrderIntent, why: &str, modified: i64) -> SeenOrder {
    SeenOrder { order: Order::run(attempt, 0).with(intent, why), modified: Revision(modified) }
}

fn run(attempt: u32, modified: i64) -> SeenOrder {
    order(attempt, OrderIntent::Run, "", modified)
}

fn running(attempt: u32, order: i64) -> SeenResult {
    SeenResult { result: TaskResult::running(attempt, Revision(order), 1), modified: Revision(99) }
}

fn ended(attempt: u32, order: i64) -> SeenResult {
    let SeenResult { result, modified } = running(attempt, order);
    SeenResult { result: result.with_end(Outcome::Failed, 2, ""), modified }
}

fn end(attempt: u32, order: i64) -> Stage {
    let tail = TaskTail { attempt, out: Vec::new(), err: Vec::new() };
    Stage::Ended(Box::new(End { result: ended(attempt, order).result, tail }))
}

fn record(attempt: u32, order: i64, stage: Stage) -> Record {
    Record { id: TaskId(7), attempt, created: 3, order: Revision(order), origin: origin("b", "g"), began: 1, tail: 9, stage }
}

fn begin(attempt: u32, order: i64) -> Step {
    Step::Begin { attempt, order: Revision(order) }
}

fn step(order: Option<&SeenOrder>, result: Option<&SeenResult>, record: Option<&Record>, permit: Permit) -> Step {
    decide(&Facts { order, result, record, activity: Activity::None, origin: &origin("b", "g"), permit })
}

#[test]
fn an_order_is_begun_where_it_may_be() {
    use Permit::{Full, Granted, Leaving, NoAuthority};
    let (first, second) = (run(1, 10), run(2, 20));
    let closed = |intent| order(1, intent, "", 11);
    let cases: Vec<(Option<SeenOrder>, Option<SeenResult>, Permit, Step)> = vec![
        (None, None, Granted, Step::Nothing),
        (Some(first.clone()), None, Granted, begin(1, 10)),
        (Some(first.clone()), None, NoAuthority, Step::Wait(NoAuthority)),
        (Some(first.clone()), None, Full, Step::Wait(Full)),
        (Some(first.clone()), None, Leaving, Step::Wait(Leaving)),
        (Some(first.clone()), Some(ended(1, 10)), Granted, Step::Nothing),
        (Some(first.clone()), Some(ended(2, 10)), Granted, Step::Nothing),
        (Some(second), Some(ended(1, 10)), Granted, begin(2, 20)),
        (Some(closed(OrderIntent::Stop)), None, Granted, Step::Nothing),
        (Some(closed(OrderIntent::Cancelled)), None, Granted, Step::Nothing),
        (Some(closed(OrderIntent::Undelivered)), None, Granted, Step::Nothing),
        (Some(closed(OrderIntent::Lost)), None, Granted, Step::Nothing),
        (Some(first), Some(running(1, 10)), Granted, Step::SayLost("its data folder has no record of it".to_owned())),
        (None, Some(running(1, 10)), Full, Step::SayLost("its data folder has no record of it".to_owned())),
        // Another may have the id, and run it.
        (None, Some(running(1, 10)), NoAuthority, Step::Wait(NoAuthority)),
        (None, Some(running(1, 10)), Leaving, Step::Wait(Leaving)),
        (None, Some(ended(1, 10)), Granted, Step::Nothing),
    ];
    for (order, result, permit, expected) in cases {
        assert_eq!(step(order.as_ref(), result.as_ref(), None, permit), expected, "{order:?} {result:?} {permit:?}");
    }
}

#[test]
fn what_is_recorded_decides_after_a_death() {
    use Permit::{Granted, Leaving, NoAuthority};
    let first = run(1, 10);
    let close = |outcome, why: &str| Step::Close(outcome, why.to_owned());
    let stopped = order(1, OrderIntent::Stop, "by a person", 11);
    let given_up = order(1, OrderIntent::Lost, "", 11);
    // order, result, how far the record of the first attempt has come, permit
    type Case = (Option<SeenOrder>, Option<SeenResult>, Stage, Permit, Step);
    let cases: Vec<Case> = vec![
        // It certainly was not executed, and nobody was told.
        (Some(first.clone()), None, Stage::Ordered, Granted, begin(1, 10)),
        (Some(run(1, 12)), None, Stage::Ordered, Granted, begin(1, 12)),
        (Some(stopped.clone()), None, Stage::Ordered, Granted, Step::Nothing),
        (Some(run(1, 12)), Some(running(1, 12)), Stage::Ordered, Granted, Step::SayLost("its data folder has no record of it".to_owned())),
        // It certainly was not executed, and etcd was told.
        (Some(first.clone()), Some(running(1, 10)), Stage::Ordered, Granted, Step::Execute),
        (Some(first.clone()), Some(running(1, 10)), Stage::Ordered, NoAuthority, Step::Wait(NoAuthority)),
        (
            Some(first.clone()),
            Some(running(1, 10)),
            Stage::Ordered,
            Leaving,
            close(Outcome::Killed, "the worker left before it was executed"),
        ),
        (Some(stopped), Some(running(1, 10)), Stage::Ordered, Granted, close(Outcome::Killed, "by a person, before it was executed")),
        (
            Some(given_up),
            Some(running(1, 10)),
            Stage::Ordered,
            Granted,
            close(Outcome::Killed, "its worker was given up, before it was executed"),
        ),
        (
            Some(run(2, 20)),
            Some(running(1, 10)),
            Stage::Ordered,
            Granted,
            close(Outcome::Killed, "attempt 2 was ordered, before it was executed"),
        ),
        // It may have been executed.
        (Some(first.clone()), Some(running(1, 10)), Stage::Begun, Granted, close(Outcome::Killed, "the agent died")),
        (Some(first.clone()), None, Stage::Begun, NoAuthority, close(Outcome::Killed, "the agent died")),
        // It has ended.
        (Some(first.clone()), Some(running(1, 10)), end(1, 10), NoAuthority, Step::Say),
        (Some(first.clone()), Some(ended(1, 10)), end(1, 10), Granted, Step::Nothing),
        // Its result was deleted, or etcd was restored.
        (Some(first.clone()), None, end(1, 10), Granted, Step::SayAgain),
        (Some(first.clone()), None, end(1, 10), NoAuthority, Step::Wait(NoAuthority)),
        (Some(run(1, 12)), None, end(1, 10), Granted, Step::Compare { attempt: 1, order: Revision(12) }),
        (Some(run(1, 12)), None, Stage::Unreadable, Granted, Step::Compare { attempt: 1, order: Revision(12) }),
        (Some(first.clone()), Some(running(1, 10)), Stage::Unreadable, Granted, Step::SayLost("its record cannot be read".to_owned())),
        (Some(run(2, 20)), Some(ended(1, 10)), Stage::Unreadable, Granted, begin(2, 20)),
        (Some(run(2, 20)), Some(ended(1, 10)), end(1, 10), Granted, begin(2, 20)),
        // The task is gone.
        (None, None, end(1, 10), Granted, Step::Forget),
        (None, None, Stage::Begun, NoAuthority, Step::Forget),
    ];
    for (order, result, stage, permit, expected) in cases {
        let record = record(1, 10, stage);
        assert_eq!(step(order.as_ref(), result.as_ref(), Some(&record), permit), expected, "{order:?} {result:?} {record:?} {permit:?}");
    }
}

#[test]
fn a_death_is_known_by_the_guard_and_the_boot() {
    let cases = [
        (origin("b", "g"), Outcome::Killed, "the agent died"),
        (origin("b", "h"), Outcome::Lost, "the guard and the agent died"),
        (origin("c", "g"), Outcome::Lost, "the machine was rebooted"),
        (origin("c", "h"), Outcome::Lost, "the machine was rebooted"),
    ];
    for (now, outcome, why) in cases {
        assert_eq!(after_death(&origin("b", "g"), &now), (outcome, why));
    }
}

#[test]
fn what_goes_on_is_stopped_for_a_reason_alone() {
    let cases = [
        (Some(run(1, 10)), None),
        (Some(order(1, OrderIntent::Stop, "by a person", 11)), Some("by a person")),
        (Some(order(1, OrderIntent::Stop, "", 11)), Some("its order says so")),
        (Some(order(1, OrderIntent::Lost, "", 11)), None),
        (Some(order(1, OrderIntent::Cancelled, "", 11)), None),
        (Some(run(2, 20)), Some("attempt 2 was ordered")),
        (None, Some("the task was deleted")),
    ];
    for (order, why) in cases {
        let order = order.as_ref();
        let here = origin("b", "g");
        let facts = |activity| Facts { order, result: None, record: None, activity, origin: &here, permit: Permit::Granted };
        let expected = why.map_or(Step::Nothing, |why| Step::Stop(why.to_owned()));
        assert_eq!(decide(&facts(Activity::Attempt(1))), expected, "{order:?}");
        assert_eq!(decide(&facts(Activity::Busy)), Step::Nothing, "{order:?}");
    }
}

/// A worker, its disk, and etcd; the worker carries out what follows in small steps, between which anything may happen.
#[derive(Debug, Default)]
struct World {
    revision: i64,
    order: Option<SeenOrder>,
    result: Option<SeenResult>,
    /// What the worker sees of both: it may be old.
    seen: (Option<SeenOrder>, Option<SeenResult>),
    /// What the disk has.
    record: Option<Record>,
    was_wiped: bool,
    guard: u32,
    boot: u32,
    /// The steps that the agent is yet to carry out, the next one last.
    plan: Vec<Small>,
    /// The attempts that were executed, with the revisions of their orders.
    executed: Vec<(u32, Revision)>,
    /// The attempts whose ends are known.
    said: Vec<(u32, Outcome)>,
}

/// What may not be cut in two.
#[derive(Clone, Debug)]
enum Small {
    Record(Record),
    /// Put *running*, if the order and the result are as they were read.
    Tell(TaskResult, Revision, Revision),
    Execute(u32, Revision),
    /// Put an end, if the result is as it was read; none: as this agent wrote it.
    Say(TaskResult, Option<Revision>),
    Forget,
}

impl World {
    fn write(&mut self, result: TaskResult) {
        self.revision += 1;
        self.result = Some(SeenResult { result, modified: Revision(self.revision) });
    }

    fn modified(&self) -> Revision {
        self.result.as_ref().map(|seen| seen.modified).unwrap_or_default()
    }

    fn origin(&self) -> Origin {
        origin(&self.boot.to_string(), &self.guard.to_string())
    }

    fn after_execution(&self, record: &Record) -> Vec<Small> {
        let begun = Record { stage: Stage::Begun, ..record.clone() };
        let ended = Record { stage: end(record.attempt, record.order.0), ..record.clone() };
        let Stage::Ended(end) = &ended.stage else { unreachable!() };
        let said = Small::Say(end.result.clone(), None);
        vec![said, Small::Record(ended), Small::Execute(record.attempt, record.order), Small::Record(begun)]
    }

    /// The agent looks, if it has nothing to do.
    fn look(&mut self) {
        if !self.plan.is_empty() {
            return;
        }
        let (order, result) = (self.seen.0.clone(), self.seen.1.clone());
        let facts = Facts {
            order: order.as_ref(),
            result: result.as_ref(),
            record: self.record.as_ref(),
            activity: Activity::None,
            origin: &self.origin(),
            permit: Permit::Granted,
        };
        let record = self.record.clone();
        self.plan = match (decide(&facts), record) {
            (Step::Begin { attempt, order }, _) => {
                let record = Record { origin: self.origin(), ..record_of(attempt, order) };
                let before = result.map(|seen| seen.modified).unwrap_or_default();
                let mut plan = self.after_execution(&record);
                plan.extend([Small::Tell(TaskResult::running(attempt, order, 1), order, before), Small::Record(record)]);
                plan
            }
            (Step::Execute, Some(record)) => self.after_execution(&record),
            (Step::Close(outcome, why), Some(record)) => {
                let result = TaskResult::running(record.attempt, record.order, 1).with_end(outcome, 2, why);
                let tail = TaskTail { attempt: record.attempt, out: Vec::new(), err: Vec::new() };
                vec![Small::Record(Record { stage: Stage::Ended(Box::new(End { result, tail })), ..record })]
            }
            (Step::Say, Some(Record { stage: Stage::Ended(end), .. })) => {
                vec![Small::Say(end.result, result.map(|seen| seen.modified))]
            }
            (Step::SayLost(why), _) => {
                let seen = result.expect("a result");
                vec![Small::Say(seen.result.with_end(Outcome::Lost, 2, why), Some(seen.modified))]
            }
            (Step::Forget, _) => vec![Small::Forget],
            (Step::SayAgain, Some(Record { stage: Stage::Ended(end), order, .. })) => {
                vec![Small::Tell(end.result, order, result.map(|seen| seen.modified).unwrap_or_default())]
            }
            (Step::Compare { attempt, order }, _) => {
                let lost = TaskResult::running(attempt, order, 1).with_end(Outcome::Lost, 2, "");
                vec![Small::Tell(lost, order, result.map(|seen| seen.modified).unwrap_or_default())]
            }
            _ => Vec::new(),
        };
    }

    fn do_next(&mut self) {
        match self.plan.pop() {
            None => self.look(),
            Some(Small::Record(record)) => self.record = Some(record),
            Some(Small::Tell(result, order, before)) => {
                let is_so = self.order.as_ref().is_some_and(|seen| seen.modified == order) && self.modified() == before;
                if is_so {
                    self.said.extend(result.end().map(|outcome| (result.attempt, outcome)));
                    self.write(result);
                } else {
                    self.plan.clear();
                }
            }
            Some(Small::Execute(attempt, order)) => {
                // What is to stop is not executed, as the attempt looks right before.
                self.executed.push((attempt, order));
            }
            Some(Small::Say(result, before)) => {
                let is_own = |seen: &SeenResult| seen.result.attempt == result.attempt && seen.result.order == result.order;
                let is_so = before.map_or_else(|| self.result.as_ref().is_some_and(is_own), |before| self.modified() == before);
                if is_so {
                    self.said.extend(result.end().map(|outcome| (result.attempt, outcome)));
                    self.write(result);
                }
            }
            Some(Small::Forget) => self.record = None,
        }
    }

    fn happens(&mut self, what: u8) {
        match what {
            // The agent goes on.
            0..=11 => self.do_next(),
            12 | 13 => self.seen = (self.order.clone(), self.result.clone()),
            14 => self.seen.0 = self.order.clone(),
            // The agent dies, alone, with its guard, or with its machine.
            15 => self.dies(false, false),
            16 => self.dies(true, false),
            17 => self.dies(true, true),
            // The leader orders, redoes, and changes its mind.
            18 | 19 => self.leader_orders(),
            20 => self.leader_rewrites(OrderIntent::Stop),
            21 => self.leader_rewrites(OrderIntent::Lost),
            22 if self
                .result
                .as_ref()
                .is_none_or(|seen| self.order.as_ref().is_some_and(|order| seen.result.attempt < order.order.attempt)) =>
            {
                self.leader_rewrites(OrderIntent::Cancelled);
            }
            // Somebody deletes the result. With the record it was all that anybody knew.
            24 if !self.was_wiped => self.result = None,
            // The data folder is wiped.
            23 if self.result.is_some() || self.executed.is_empty() => {
                self.dies(true, false);
                (self.record, self.was_wiped) = (None, true);
            }
            _ => {}
        }
    }

    fn dies(&mut self, guard: bool, boot: bool) {
        self.plan.clear();
        (self.guard, self.boot) = (self.guard + u32::from(guard), self.boot + u32::from(boot));
        self.seen = (self.order.clone(), self.result.clone());
    }

    fn leader_orders(&mut self) {
        let attempt = match &self.order {
            None => 1,
            Some(seen) => {
                let is_over = seen.order.intent != OrderIntent::Run
                    || self.result.as_ref().is_some_and(|found| found.result.attempt == seen.order.attempt && found.result.end().is_some());
                if !is_over {
                    return;
                }
                seen.order.attempt + 1
            }
        };
        self.revision += 1;
        self.order = Some(run(attempt, self.revision));
    }

    fn leader_rewrites(&mut self, intent: OrderIntent) {
        if let Some(seen) = &mut self.order {
            self.revision += 1;
            *seen = SeenOrder { order: seen.order.with(intent, ""), modified: Revision(self.revision) };
        }
    }
}

fn record_of(attempt: u32, order: Revision) -> Record {
    record(attempt, order.0, Stage::Ordered)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn no_attempt_is_executed_twice_and_what_was_begun_is_said(whats in proptest::collection::vec(0..25_u8, 0..120)) {
        let mut world = World::default();
        for what in whats {
            world.happens(what);
            let mut attempts: Vec<u32> = world.executed.iter().map(|(attempt, _)| *attempt).collect();
            let all = attempts.len();
            attempts.sort_unstable();
            attempts.dedup();
            prop_assert_eq!(attempts.len(), all, "{:?}", world.executed);
        }
        // Left alone, whatever was begun comes to an end that is said.
        for _ in 0..60 {
            world.seen = (world.order.clone(), world.result.clone());
            world.do_next();
        }
        prop_assert!(world.result.as_ref().is_none_or(|seen| seen.result.end().is_some()), "{:?}", world);
        for (attempt, _) in &world.executed {
            prop_assert!(world.said.iter().all(|(said, outcome)| said != attempt || *outcome != Outcome::Rejected));
        }
    }
}

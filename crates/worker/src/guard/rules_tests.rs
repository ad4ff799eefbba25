//! Tables and properties of worker::guard::rules.

use evenkeel_model::Session;
use proptest::prelude::*;

use super::*;
use crate::guard::STATUS_AGAIN;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

fn at(millis: u64) -> BootTime {
    BootTime(millis * 1_000_000)
}

fn session(number: i64) -> Registered {
    Registered { session: Session(number), lease: number * 10 }
}

fn until(millis: u64) -> ToGuard {
    ToGuard::Authority(Some(at(millis)))
}

const NOTHING_RUNS: ToGuard = ToGuard::Authority(None);

/// A guard whose first agent was started at this time.
fn begun(millis: u64) -> Rules {
    let mut rules = Rules::default();
    assert_eq!(rules.next(at(millis)), Next::Start(Start { generation: 1, previous: None }));
    rules.started(at(millis));
    rules
}

/// Lets the agent end, and everything be killed.
fn end(rules: &mut Rules, millis: u64, how: Ended) {
    rules.ended(rules.generation(), how);
    assert_eq!(rules.next(at(millis)), Next::Kill(Why::Agent));
    rules.killed();
}

#[test]
fn an_agent_that_runs_nothing_has_no_end() {
    let mut rules = begun(0);
    assert_eq!(rules.next(at(u64::from(u32::MAX))), Next::Wait(None));
    rules.heard(1, until(500));
    rules.heard(1, NOTHING_RUNS);
    assert_eq!(rules.next(at(1000)), Next::Wait(None));
}

#[test]
fn everything_is_killed_at_the_end_of_authority_and_not_before() {
    let mut rules = begun(0);
    rules.heard(1, until(500));
    rules.heard(1, until(900));
    assert_eq!(rules.next(at(899)), Next::Wait(Some(at(900))));
    assert_eq!(rules.next(at(900)), Next::Kill(Why::Authority));
}

#[test]
fn an_extension_that_has_arrived_counts_however_late_it_is_read() {
    let mut rules = begun(0);
    rules.heard(1, until(500));
    // The guard itself did not run from 400 to 700, and the extension was in the link.
    rules.heard(1, until(900));
    assert_eq!(rules.next(at(700)), Next::Wait(Some(at(900))));
}

#[test]
fn a_kill_that_was_decided_is_not_taken_back() {
    for said in [until(5000), NOTHING_RUNS] {
        let mut rules = begun(0);
        rules.heard(1, until(500));
        assert_eq!(rules.next(at(500)), Next::Kill(Why::Authority));
        rules.heard(1, said);
        assert_eq!(rules.next(at(501)), Next::Kill(Why::Authority));
    }
}

#[test]
fn a_dead_agent_says_nothing_for_the_one_that_lives() {
    let mut rules = begun(0);
    rules.heard(1, until(500));
    end(&mut rules, 100, Ended::Signaled);
    // Of the dead one, while none lives.
    rules.heard(1, until(9000));
    assert_eq!(rules.next(at(100)), Next::Start(Start { generation: 2, previous: None }));
    rules.started(at(100));
    assert_eq!(rules.next(at(200)), Next::Wait(None), "the end of the dead one is no end of this one");
    rules.heard(2, until(700));
    for late in [until(9000), NOTHING_RUNS] {
        rules.heard(1, late);
        assert_eq!(rules.next(at(200)), Next::Wait(Some(at(700))));
    }
    rules.closed(1);
    rules.ended(1, Ended::Exited(0));
    assert_eq!(rules.next(at(200)), Next::Wait(Some(at(700))), "nor does its end count twice");
    // Nor does anybody speak for one that is to come.
    rules.heard(3, until(9000));
    assert_eq!(rules.next(at(700)), Next::Kill(Why::Authority));
}

#[test]
fn the_next_agent_is_told_of_the_last_session_that_was_registered() {
    let mut rules = begun(0);
    rules.heard(1, ToGuard::Registered(session(4)));
    rules.heard(1, ToGuard::Registered(session(7)));
    rules.heard(1, ToGuard::Registered(session(4)));
    rules.closed(1);
    assert_eq!(rules.next(at(10)), Next::Kill(Why::Agent));
    // Read while it is being killed.
    rules.heard(1, ToGuard::Registered(session(9)));
    rules.killed();
    assert_eq!(rules.next(at(10)), Next::Start(Start { generation: 2, previous: Some(session(9)) }));
    rules.started(at(10));
    rules.heard(1, ToGuard::Registered(session(12)));
    end(&mut rules, 20_000, Ended::Signaled);
    assert_eq!(rules.next(at(20_000)), Next::Start(Start { generation: 3, previous: Some(session(9)) }));
}

#[test]
fn only_the_agents_own_word_is_final() {
    let cases = [
        (Ended::Exited(0), Some(0)),
        (Ended::Exited(1), Some(1)),
        (Ended::Exited(2), Some(2)),
        (Ended::Exited(3), None),
        (Ended::Exited(101), None),
        (Ended::Exited(i32::from(STATUS_AGAIN)), None),
        (Ended::Exited(-1), None),
        (Ended::Signaled, None),
    ];
    for (how, status) in cases {
        let mut rules = begun(0);
        end(&mut rules, 20_000, how);
        let expected = status.map_or(Next::Start(Start { generation: 2, previous: None }), Next::Exit);
        assert_eq!((rules.next(at(20_000)), rules.is_over()), (expected, status.is_some()), "{how:?}");
    }
    // How it ended is known only after the kill, where its link was closed first.
    let mut rules = begun(0);
    rules.closed(1);
    assert_eq!(rules.next(at(1)), Next::Kill(Why::Agent));
    rules.ended(1, Ended::Exited(2));
    rules.killed();
    assert_eq!(rules.next(at(1)), Next::Exit(2));
}

#[test]
fn agents_that_die_young_are_started_slower_and_slower() {
    let mut rules = begun(0);
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        end(&mut rules, now + 9_999, Ended::Signaled);
        now += 9_999;
        if let Next::Wait(Some(start)) = rules.next(at(now)) {
            pauses.push(start.since(at(now)).as_millis());
            now = start.0 / 1_000_000;
        } else {
            pauses.push(0);
        }
        assert!(matches!(rules.next(at(now)), Next::Start(_)));
        rules.started(at(now));
    }
    assert_eq!(pauses, [0, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
    end(&mut rules, now + 10_000, Ended::Signaled);
    assert!(matches!(rules.next(at(now + 10_000)), Next::Start(_)), "one that lived for long is replaced at once");
    assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
}

#[test]
fn an_agent_that_cannot_be_started_is_not_tried_without_a_pause() {
    let mut rules = begun(0);
    end(&mut rules, 0, Ended::Signaled);
    let mut waits = 0;
    for _ in 0..5 {
        match rules.next(at(0)) {
            Next::Start(start) => {
                assert_eq!(start.generation, 2);
                rules.not_started(at(0));
            }
            Next::Wait(Some(start)) => {
                assert_eq!(start, at(500));
                waits += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(waits, 4);
}

#[test]
fn a_request_to_end_is_passed_on_once_and_a_second_one_kills() {
    let mut rules = begun(0);
    rules.heard(1, until(5000));
    rules.asked_to_end(at(100), SIGTERM);
    assert_eq!(rules.next(at(100)), Next::AskToLeave);
    rules.asked_to_end(at(399), SIGTERM);
    assert_eq!(rules.next(at(399)), Next::Wait(Some(at(5000))), "an echo");
    rules.asked_to_end(at(400), SIGINT);
    assert_eq!(rules.next(at(400)), Next::Kill(Why::Insisted));
    rules.ended(1, Ended::Exited(0));
    rules.killed();
    assert_eq!(rules.next(at(401)), Next::Exit(130));
}

#[test]
fn an_agent_that_was_asked_to_leave_is_not_followed_by_another() {
    type End = fn(&mut Rules);
    let cases: [(End, Next, u8); 4] = [
        (|rules| rules.ended(1, Ended::Exited(0)), Next::Kill(Why::Agent), 0),
        (|rules| rules.ended(1, Ended::Signaled), Next::Kill(Why::Agent), 1),
        (|rules| rules.closed(1), Next::Kill(Why::Agent), 1),
        (|rules| rules.heard(1, until(200)), Next::Kill(Why::Authority), 1),
    ];
    for (happens, follows, status) in cases {
        let mut rules = begun(0);
        rules.asked_to_end(at(100), SIGTERM);
        assert_eq!(rules.next(at(100)), Next::AskToLeave);
        happens(&mut rules);
        assert_eq!(rules.next(at(200)), follows);
        rules.killed();
        assert_eq!(rules.next(at(200)), Next::Exit(status));
    }
}

#[test]
fn a_guard_without_an_agent_ends_at_the_first_request() {
    let mut rules = begun(0);
    end(&mut rules, 1, Ended::Signaled);
    rules.asked_to_end(at(1), SIGTERM);
    assert_eq!(rules.next(at(1)), Next::Exit(143));
    assert_eq!(rules.next(at(10_000)), Next::Exit(143));
}

/// One thing that happens, or the next thing being done.
#[derive(Clone, Debug)]
enum Step {
    /// What `next` says is done.
    Do,
    /// A kill takes that long; this happens meanwhile.
    Passes(u64),
    /// Heard of the agent that is so many generations older than the last.
    Authority {
        older: u64,
        ahead: Option<u64>,
    },
    Registered {
        older: u64,
    },
    Closed {
        older: u64,
    },
    Ended {
        older: u64,
        code: Option<i32>,
    },
    Asked,
    NotStarted,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let older = prop_oneof![4 => Just(0_u64), 1 => 1..3_u64];
    let ahead = prop_oneof![3 => (0..6000_u64).prop_map(Some), 1 => Just(None)];
    let code = prop_oneof![Just(None), (0..4_i32).prop_map(Some), Just(Some(70))];
    let step = prop_oneof![
        8 => Just(Step::Do),
        4 => (0..4000_u64).prop_map(Step::Passes),
        6 => (older.clone(), ahead).prop_map(|(older, ahead)| Step::Authority { older, ahead }),
        1 => older.clone().prop_map(|older| Step::Registered { older }),
        1 => older.clone().prop_map(|older| Step::Closed { older }),
        1 => (older, code).prop_map(|(older, code)| Step::Ended { older, code }),
        1 => Just(Step::Asked),
        1 => Just(Step::NotStarted),
    ];
    prop::collection::vec(step, 0..120)
}

/// What a bystander knows who sees all that happens.
#[derive(Debug, Default)]
struct Bystander {
    now: u64,
    /// Of the agents, how many were started, and whether the last one may still run.
    started: u64,
    runs: bool,
    /// What the agent that runs has said last.
    end: Option<u64>,
    /// It has ended or closed its link.
    gone: bool,
    /// A kill was decided and is not done.
    killing: bool,
    /// The last session of the last agent.
    registered: Option<i64>,
    next_session: i64,
    asked: bool,
    exit: Option<u8>,
}

impl Bystander {
    fn judge(&mut self, next: Next) {
        match next {
            Next::Kill(why) => {
                assert!(self.runs, "nobody is killed twice");
                let over = self.end.is_some_and(|end| end <= self.now);
                assert!(self.killing || over || self.gone || self.asked, "{why:?} without a reason");
                self.killing = true;
            }
            _ if self.killing => panic!("{next:?} while a kill is under way"),
            Next::Start(start) => {
                assert!(!self.runs, "two agents");
                assert_eq!(start.generation, self.started + 1);
                assert_eq!(start.previous.map(|p| p.session.0), self.registered);
            }
            Next::Exit(status) => {
                assert!(!self.runs && self.exit.is_none_or(|before| before == status));
                self.exit = Some(status);
            }
            Next::Wait(end) if self.runs => {
                assert!(!self.gone, "the end of the agent is not overlooked");
                assert_eq!(end, self.end.map(at), "the end is the one that this agent has said");
                assert!(self.end.is_none_or(|end| self.now < end), "authority has ended");
            }
            Next::Wait(start) => assert!(start.is_some_and(|start| at(self.now) < start), "there will be another agent"),
            Next::AskToLeave => assert!(self.runs && self.asked && !self.gone),
        }
        assert!(self.exit.is_none() || matches!(next, Next::Exit(_)), "{next:?} after the end");
    }

    /// Does what was said.
    fn carry_out(&mut self, rules: &mut Rules, next: Next) {
        match next {
            Next::Kill(_) => {
                rules.killed();
                (self.runs, self.killing, self.gone, self.end) = (false, false, false, None);
            }
            Next::Start(_) => {
                rules.started(at(self.now));
                self.started += 1;
                self.runs = true;
            }
            Next::Wait(Some(time)) => self.now = self.now.max(time.0 / 1_000_000),
            Next::Wait(None) | Next::AskToLeave | Next::Exit(_) => {}
        }
    }

    fn happens(&mut self, rules: &mut Rules, step: &Step) {
        let by = |older: u64| self.started.saturating_sub(older);
        match *step {
            Step::Do | Step::NotStarted => {}
            Step::Passes(millis) => self.now += millis,
            Step::Authority { older, ahead } => {
                let end = ahead.map(|ahead| self.now + ahead);
                rules.heard(by(older), ToGuard::Authority(end.map(at)));
                if by(older) == self.started && self.runs && !self.killing {
                    self.end = end;
                }
            }
            Step::Registered { older } => {
                self.next_session += 1;
                rules.heard(by(older), ToGuard::Registered(session(self.next_session)));
                if by(older) == self.started && self.started > 0 {
                    self.registered = Some(self.next_session);
                }
            }
            Step::Closed { older } => {
                rules.closed(by(older));
                self.gone |= by(older) == self.started && self.runs;
            }
            Step::Ended { older, code } => {
                rules.ended(by(older), code.map_or(Ended::Signaled, Ended::Exited));
                self.gone |= by(older) == self.started && self.runs;
            }
            Step::Asked => {
                rules.asked_to_end(at(self.now), SIGTERM);
                self.asked = true;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever came before: when the authority that the living agent has told has ended, the next word is kill; after an agent's end
    /// there is nothing but the kill, and then a start or the exit; there are never two agents; nobody speaks for another.
    #[test]
    fn every_course_is_safe(steps in steps()) {
        let mut rules = Rules::default();
        let mut seen = Bystander::default();
        for step in steps {
            seen.happens(&mut rules, &step);
            let next = rules.next(at(seen.now));
            seen.judge(next);
            match step {
                Step::Do => seen.carry_out(&mut rules, next),
                Step::NotStarted if matches!(next, Next::Start(_)) => rules.not_started(at(seen.now)),
                _ => {}
            }
        }
        prop_assert!(seen.exit.is_none() || rules.is_over());
    }
}

#[test]
fn a_script_that_outlives_its_time_ends_the_agent_whatever_authority_says() {
    let scripts = |millis: Option<u64>| ToGuard::Scripts(millis.map(at));
    let mut rules = begun(0);
    rules.heard(1, scripts(Some(700)));
    assert_eq!(rules.next(at(699)), Next::Wait(Some(at(700))), "without a resource, too");
    rules.heard(1, until(500));
    assert_eq!(rules.next(at(499)), Next::Wait(Some(at(500))));
    rules.heard(1, until(900));
    assert_eq!(rules.next(at(600)), Next::Wait(Some(at(700))));
    rules.heard(1, scripts(None));
    assert_eq!(rules.next(at(750)), Next::Wait(Some(at(900))), "it was killed in time");
    rules.heard(1, scripts(Some(800)));
    assert_eq!(rules.next(at(800)), Next::Kill(Why::Scripts));
    rules.killed();
    assert_eq!(rules.next(at(800)), Next::Start(Start { generation: 2, previous: None }));
    rules.started(at(800));
    assert_eq!(rules.next(at(5000)), Next::Wait(None), "the next agent has told of none");
}

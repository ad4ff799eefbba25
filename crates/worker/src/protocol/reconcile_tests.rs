//! Tables and properties of worker::reconcile.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use evenkeel_model::{Assignment, Hash, Holds, Revision, Spec};
use proptest::prelude::*;

use super::*;
use crate::protocol::authority::Timing;

const GRACE: Duration = Duration::from_millis(500);

fn assigned(epoch: i64, phase: Phase) -> DesiredAssignment {
    DesiredAssignment {
        epoch: Epoch(epoch),
        assignment: Ok(Arc::new(Assignment {
            kind: String::new(),
            spec: Spec::default(),
            require: evenkeel_model::Selector::EMPTY,
            hash: Hash::default(),
            holds: Holds::Strict,
            phase,
        })),
        modified: Revision(epoch),
    }
}

fn stop() -> Phase {
    Phase::Stop { reason: StopReason::Rebalance, to: None }
}

fn run(epoch: i64, state: RunState) -> Option<Run> {
    Some(Run {
        epoch: Epoch(epoch),
        state,
        grace: GRACE,
        content: Content { hash: Hash::default(), answers: Revision(epoch) },
        change: Change::Settled,
    })
}

fn millis(n: u64) -> BootTime {
    BootTime(n * 1_000_000)
}

/// A proof was sent at 0: authority reaches until 3750 ms for work with the usual grace.
fn proved() -> Authority {
    let mut authority = Authority::none(Timing::default());
    authority.proved(BootTime(0));
    authority
}

struct Case {
    name: &'static str,
    assignment: Option<DesiredAssignment>,
    run: Option<Run>,
    past: Option<Past>,
    admission: AdmissionState,
    ran: Option<Ran>,
    all_answered: bool,
    now: u64,
    expected: Option<Action>,
}

const BASE: Case = Case {
    name: "",
    assignment: None,
    run: None,
    past: None,
    admission: AdmissionState::Current,
    ran: None,
    all_answered: true,
    now: 0,
    expected: None,
};

fn check(cases: Vec<Case>) {
    let authority = proved();
    for case in cases {
        let facts = Facts {
            assignment: case.assignment.as_ref(),
            run: case.run,
            past: case.past,
            admission: case.admission,
            authority: &authority,
            grace: GRACE,
            ran: case.ran,
            all_answered: case.all_answered,
        };
        assert_eq!(decide(&facts, millis(case.now)), case.expected, "{}", case.name);
    }
}

#[test]
fn what_is_told_is_started_where_that_is_allowed() {
    use AdmissionState::{Leaving, Stale, Unadmitted};
    let start = || Case { assignment: Some(assigned(3, Phase::Run)), ..BASE };
    check(vec![
        Case { name: "start", expected: Some(Action::Start(Epoch(3))), ..start() },
        Case { name: "without a fresh view", admission: Stale, ..start() },
        Case { name: "without admission", admission: Unadmitted, ..start() },
        Case { name: "while leaving", admission: Leaving, ..start() },
        Case { name: "at the end of authority", now: 3750, ..start() },
        Case { name: "just before it", now: 3749, expected: Some(Action::Start(Epoch(3))), ..start() },
        Case { name: "reported stopped", past: Some(Past::Stopped(Epoch(3))), ..start() },
        Case { name: "a later epoch was reported stopped", past: Some(Past::Stopped(Epoch(4))), ..start() },
        Case { name: "an earlier one was", past: Some(Past::Stopped(Epoch(2))), expected: Some(Action::Start(Epoch(3))), ..start() },
        Case { name: "it ran to its end", past: Some(Past::Exited(Epoch(3))), expected: Some(Action::Rest(Epoch(3))), ..start() },
        Case { name: "it runs", run: run(3, RunState::Live), ..start() },
        Case { name: "it rests", run: run(3, RunState::Resting), ..start() },
        Case { name: "the old one is not stopped yet", run: run(2, RunState::Stopping), ..start() },
    ]);
}

#[test]
fn what_runs_is_stopped_for_a_reason() {
    use AdmissionState::{Leaving, Stale, Unadmitted};
    let stopped = |why| Some(Action::Stop(Epoch(3), why));
    let live = || Case { assignment: Some(assigned(3, Phase::Run)), run: run(3, RunState::Live), ..BASE };
    check(vec![
        Case { name: "told", assignment: Some(assigned(3, stop())), expected: stopped(StopWhy::Told(StopReason::Rebalance)), ..live() },
        Case { name: "gone", assignment: None, expected: stopped(StopWhy::Gone), ..live() },
        Case { name: "replaced", assignment: Some(assigned(9, Phase::Run)), expected: stopped(StopWhy::Replaced), ..live() },
        Case {
            name: "replaced, and that is to stop",
            assignment: Some(assigned(9, stop())),
            expected: stopped(StopWhy::Replaced),
            ..live()
        },
        Case { name: "no view says nothing", assignment: None, admission: Stale, ..live() },
        Case { name: "authority", now: 3750, expected: stopped(StopWhy::Authority), ..live() },
        Case { name: "authority without a view", now: 3750, admission: Stale, expected: stopped(StopWhy::Authority), ..live() },
        Case { name: "unadmitted", admission: Unadmitted, expected: stopped(StopWhy::Unadmitted), ..live() },
        Case { name: "leaving", admission: Leaving, expected: stopped(StopWhy::Leaving), ..live() },
        Case { name: "told once", assignment: Some(assigned(3, stop())), run: run(3, RunState::Stopping), ..live() },
        Case { name: "what rests survives the authority", run: run(3, RunState::Resting), now: 9000, ..live() },
        Case { name: "and the admission", run: run(3, RunState::Resting), admission: Unadmitted, ..live() },
        Case {
            name: "but not its assignment",
            run: run(3, RunState::Resting),
            assignment: None,
            expected: stopped(StopWhy::Gone),
            ..live()
        },
    ]);
}

#[test]
fn an_end_is_reported_once_and_only_when_nothing_runs() {
    let end = || Case { assignment: Some(assigned(3, stop())), ..BASE };
    check(vec![
        Case { name: "nothing runs", expected: Some(Action::ReportStopped(Epoch(3))), ..end() },
        Case { name: "also without authority: it starts nothing", now: 9000, expected: Some(Action::ReportStopped(Epoch(3))), ..end() },
        Case { name: "it exited before", past: Some(Past::Exited(Epoch(3))), expected: Some(Action::ReportStopped(Epoch(3))), ..end() },
        Case { name: "reported", past: Some(Past::Stopped(Epoch(3))), ..end() },
        Case { name: "still stopping", run: run(3, RunState::Stopping), ..end() },
        Case { name: "an older one still stopping", run: run(2, RunState::Stopping), ..end() },
        Case { name: "not admitted: it cannot know what its predecessor runs", admission: AdmissionState::Unadmitted, ..end() },
    ]);
}

#[test]
fn an_assignment_that_cannot_be_read_is_handed_to_the_driver_as_it_is() {
    let broken = DesiredAssignment { epoch: Epoch(3), assignment: Err("no JSON".into()), modified: Revision(9) };
    check(vec![
        Case { name: "start", assignment: Some(broken.clone()), expected: Some(Action::Start(Epoch(3))), ..BASE },
        Case { name: "keep", assignment: Some(broken), run: run(3, RunState::Live), ..BASE },
    ]);
}

/// Contents, by number.
fn content(n: usize) -> Hash {
    Hash::of("content", &Spec::stored(serde_json::json!({"n": n})).expect("an object"))
}

/// An assignment of this content, written at this revision; one that was written after its epoch may have had another.
fn with_content(epoch: i64, n: usize, modified: i64) -> DesiredAssignment {
    let DesiredAssignment { epoch, assignment, .. } = assigned(epoch, Phase::Run);
    let assignment = Assignment { hash: content(n), ..Arc::unwrap_or_clone(assignment.expect("readable")) };
    DesiredAssignment { epoch, assignment: Ok(Arc::new(assignment)), modified: Revision(modified) }
}

/// What an earlier agent has reported of its run.
fn reported(epoch: i64, n: usize, answers: i64) -> Option<Ran> {
    let content = Some(Content { hash: content(n), answers: Revision(answers) });
    Some(Ran { epoch: Epoch(epoch), content, is_of_this_agent: false })
}

/// What this agent knows of its own run.
fn ran(epoch: i64, n: usize, answers: i64) -> Option<Ran> {
    reported(epoch, n, answers).map(|ran| Ran { is_of_this_agent: true, ..ran })
}

#[test]
fn an_epoch_is_started_only_with_what_it_ran_before() {
    let ask = Some(Action::AskRestart(Epoch(3)));
    let start = Some(Action::Start(Epoch(3)));
    let rewritten = || Case { assignment: Some(with_content(3, 1, 9)), ..BASE };
    check(vec![
        Case { name: "never rewritten", assignment: Some(with_content(3, 1, 3)), expected: start, ..BASE },
        Case { name: "nothing is known of it", expected: ask, ..rewritten() },
        Case { name: "it ran something else", ran: ran(3, 0, 9), expected: ask, ..rewritten() },
        Case { name: "another epoch ran this", ran: ran(2, 1, 9), expected: ask, ..rewritten() },
        Case { name: "it ran this", ran: ran(3, 1, 3), expected: start, ..rewritten() },
        Case {
            name: "its driver has not answered",
            ran: ran(3, 1, 3).map(|ran| Ran { content: None, ..ran }),
            expected: ask,
            ..rewritten()
        },
        Case { name: "an earlier agent ran this, as it was last told", ran: reported(3, 1, 9), expected: start, ..rewritten() },
        Case { name: "and may have run something else in between", ran: reported(3, 1, 3), expected: ask, ..rewritten() },
        Case { name: "it has finished", past: Some(Past::Exited(Epoch(3))), expected: Some(Action::Rest(Epoch(3))), ..rewritten() },
        Case { name: "without authority nothing is started, and it is asked", now: 3750, expected: ask, ..rewritten() },
        Case { name: "without a view", admission: AdmissionState::Stale, ..rewritten() },
    ]);
}

#[test]
fn a_change_is_looked_at_once_and_one_after_the_other() {
    let changed = Some(Action::Change(Epoch(3)));
    let runs = |change| {
        let content = Content { hash: content(0), answers: Revision(9) };
        Some(Run { content, change, ..run(3, RunState::Live).expect("a run") })
    };
    let live = || Case { assignment: Some(with_content(3, 1, 9)), run: runs(Change::Settled), ..BASE };
    let back = || Case { assignment: Some(with_content(3, 0, 9)), ..live() };
    check(vec![
        Case { name: "another content", expected: changed, ..live() },
        Case { name: "the same", ..back() },
        Case { name: "the same, written anew", assignment: Some(with_content(3, 0, 10)), expected: changed, ..live() },
        Case { name: "the driver has not answered", run: runs(Change::Offered(content(1))), ..live() },
        Case { name: "nor to another one", run: runs(Change::Offered(content(2))), ..live() },
        Case { name: "it needs a restart", run: runs(Change::NeedsRestart(content(1))), ..live() },
        Case { name: "another one needed a restart", run: runs(Change::NeedsRestart(content(2))), expected: changed, ..live() },
        Case { name: "back to what runs", run: runs(Change::NeedsRestart(content(1))), expected: changed, ..back() },
        Case {
            name: "what rests, too",
            run: Some(Run { state: RunState::Resting, ..runs(Change::Settled).expect("a run") }),
            expected: changed,
            ..live()
        },
        Case {
            name: "not while it stops",
            run: Some(Run { state: RunState::Stopping, ..runs(Change::Settled).expect("a run") }),
            ..live()
        },
        Case { name: "not without a view", admission: AdmissionState::Stale, ..live() },
        Case { name: "authority comes first", now: 3750, expected: Some(Action::Stop(Epoch(3), StopWhy::Authority)), ..live() },
        Case {
            name: "of another epoch it is no change",
            assignment: Some(with_content(4, 1, 4)),
            expected: Some(Action::Stop(Epoch(3), StopWhy::Replaced)),
            ..live()
        },
    ]);
}

#[test]
fn an_end_that_a_driver_may_contradict_is_not_reported() {
    let end = || Case { assignment: Some(assigned(3, stop())), all_answered: false, ..BASE };
    let is_reported = Some(Action::ReportStopped(Epoch(3)));
    check(vec![
        Case { name: "a driver has not answered", ..end() },
        Case { name: "an earlier agent ran it", ran: reported(3, 0, 3), ..end() },
        Case { name: "this agent ran it, and saw its end", ran: ran(3, 0, 3), expected: is_reported, ..end() },
        Case { name: "this agent ran another epoch", ran: ran(2, 0, 2), ..end() },
        Case { name: "all have answered", all_answered: true, expected: is_reported, ..end() },
    ]);
}

/// One thing that happens to a worker.
#[derive(Clone, Debug)]
enum Event {
    Assign(usize),
    TellStop(usize),
    Unassign(usize),
    Proof,
    Pass(u64),
    EndStops,
    Exit(usize),
    Admission(u8),
    /// The leader gives a running assignment another content.
    Rewrite(usize, usize),
    /// A driver answers a change.
    Answer(usize, bool),
    /// The driver takes a change, and nobody hears of it yet.
    Take(usize),
    /// What runs is reported.
    Report(usize),
    /// The agent dies with all that runs; the next one knows what was reported.
    NextAgent,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3usize).prop_map(Event::Assign),
        (0..3usize).prop_map(Event::TellStop),
        (0..3usize).prop_map(Event::Unassign),
        Just(Event::Proof),
        (0..4000u64).prop_map(Event::Pass),
        Just(Event::EndStops),
        (0..3usize).prop_map(Event::Exit),
        (0..4u8).prop_map(Event::Admission),
        (0..3usize, 0..3usize).prop_map(|(name, content)| Event::Rewrite(name, content)),
        (0..3usize, any::<bool>()).prop_map(|(name, taken)| Event::Answer(name, taken)),
        (0..3usize).prop_map(Event::Take),
        (0..3usize).prop_map(Event::Report),
        Just(Event::NextAgent),
    ]
}

struct World {
    now: u64,
    next_epoch: i64,
    authority: Authority,
    admission: AdmissionState,
    assigned: BTreeMap<usize, DesiredAssignment>,
    runs: BTreeMap<usize, Run>,
    past: BTreeMap<usize, Past>,
    /// What the agent knows of what was run.
    ran: BTreeMap<usize, Ran>,
    /// What each epoch last ran.
    truth: BTreeMap<Epoch, Hash>,
    /// What drivers were offered.
    offered: BTreeMap<usize, Content>,
    /// What was reported.
    statuses: BTreeMap<usize, Ran>,
    revision: i64,
}

impl World {
    fn new() -> Self {
        Self {
            now: 0,
            next_epoch: 0,
            authority: proved(),
            admission: AdmissionState::Current,
            assigned: BTreeMap::new(),
            runs: BTreeMap::new(),
            past: BTreeMap::new(),
            ran: BTreeMap::new(),
            truth: BTreeMap::new(),
            offered: BTreeMap::new(),
            statuses: BTreeMap::new(),
            revision: 1_000_000,
        }
    }

    /// This epoch runs this content from now on.
    fn note_run(&mut self, name: usize, epoch: Epoch, content: Content) {
        self.truth.insert(epoch, content.hash);
        self.ran.insert(name, Ran { epoch, content: Some(content), is_of_this_agent: true });
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Assign(name) if !self.assigned.contains_key(&name) => {
                self.next_epoch += 1;
                self.assigned.insert(name, with_content(self.next_epoch, 0, self.next_epoch));
            }
            Event::Rewrite(name, n) => {
                if let Some(assigned) = self.assigned.get(&name).filter(|assigned| stop_reason(assigned).is_none()) {
                    self.revision += 1;
                    let rewritten = with_content(assigned.epoch.0, n, self.revision);
                    self.assigned.insert(name, rewritten);
                }
            }
            Event::Answer(name, taken) => {
                let Some(run) = self.runs.get_mut(&name) else { return };
                let Change::Offered(hash) = run.change else { return };
                let offered = self.offered[&name];
                if taken {
                    (run.change, run.content) = (Change::Settled, offered);
                } else {
                    run.change = Change::NeedsRestart(hash);
                }
                let (epoch, content) = (run.epoch, run.content);
                // A driver that has taken a change does not deny it.
                if taken || self.truth.get(&epoch) == Some(&content.hash) {
                    self.note_run(name, epoch, content);
                }
            }
            Event::Take(name) => {
                let is_offered = |run: &&Run| matches!(run.change, Change::Offered(_));
                if let Some(run) = self.runs.get(&name).filter(is_offered) {
                    self.truth.insert(run.epoch, self.offered[&name].hash);
                }
            }
            Event::Report(name) => {
                if let Some(run) = self.runs.get(&name) {
                    let (epoch, content) = (run.epoch, Some(run.content));
                    self.statuses.insert(name, Ran { epoch, content, is_of_this_agent: false });
                }
            }
            Event::NextAgent => {
                self.runs.clear();
                self.ran = self.statuses.clone();
            }
            Event::TellStop(name) if self.assigned.contains_key(&name) => {
                let epoch = self.assigned[&name].epoch.0;
                self.assigned.insert(name, assigned(epoch, stop()));
            }
            Event::Unassign(name) => {
                self.assigned.remove(&name);
            }
            Event::Assign(_) | Event::TellStop(_) => {}
            Event::Proof => self.authority.proved(millis(self.now)),
            Event::Pass(by) => self.now += by,
            Event::EndStops => self.runs.retain(|_, run| run.state != RunState::Stopping),
            Event::Exit(name) => {
                if let Some(run) = self.runs.get_mut(&name).filter(|run| run.state == RunState::Live) {
                    run.state = RunState::Resting;
                }
            }
            Event::Admission(n) => {
                self.admission =
                    [AdmissionState::Current, AdmissionState::Stale, AdmissionState::Unadmitted, AdmissionState::Leaving][usize::from(n)]
            }
        }
    }

    fn decide(&self, name: usize) -> Option<Action> {
        let facts = Facts {
            assignment: self.assigned.get(&name),
            run: self.runs.get(&name).copied(),
            past: self.past.get(&name).copied(),
            admission: self.admission,
            authority: &self.authority,
            grace: GRACE,
            ran: self.ran.get(&name).copied(),
            all_answered: true,
        };
        decide(&facts, millis(self.now))
    }

    /// Carries out what is decided, and checks that it may be.
    fn turn(&mut self, name: usize) -> Result<(), TestCaseError> {
        for _ in 0..4 {
            let Some(action) = self.decide(name) else { return Ok(()) };
            match action {
                Action::Start(epoch) => {
                    prop_assert!(!self.runs.contains_key(&name), "two runs of one name");
                    prop_assert_eq!(self.admission, AdmissionState::Current, "a start without admission and view");
                    prop_assert!(self.authority.reaches(millis(self.now), GRACE), "a start without authority");
                    prop_assert!(self.past.get(&name).is_none_or(|past| past.epoch() < epoch), "an ended epoch is started again");
                    let hash = self.assigned[&name].hash();
                    prop_assert!(self.truth.get(&epoch).is_none_or(|before| *before == hash), "an epoch is started with another content");
                    let content = self.assigned[&name].content();
                    self.note_run(name, epoch, content);
                    self.runs.insert(name, Run { epoch, state: RunState::Live, grace: GRACE, content, change: Change::Settled });
                }
                Action::Rest(epoch) => {
                    prop_assert!(!self.runs.contains_key(&name));
                    let content = self.assigned[&name].last_run(self.ran.get(&name).copied()).unwrap_or_default();
                    self.runs.insert(name, Run { epoch, state: RunState::Resting, grace: GRACE, content, change: Change::Settled });
                }
                Action::Change(epoch) => {
                    let run = self.runs.get_mut(&name).expect("only what runs is changed");
                    prop_assert_eq!(run.epoch, epoch);
                    prop_assert_ne!(run.state, RunState::Stopping, "a stop is final");
                    let content = self.assigned[&name].content();
                    if content.hash == run.content.hash {
                        (run.content, run.change) = (content, Change::Settled);
                    } else if run.state == RunState::Live {
                        run.change = Change::Offered(content.hash);
                        self.offered.insert(name, content);
                        self.ran.insert(name, Ran { epoch, content: None, is_of_this_agent: true });
                    } else {
                        run.change = Change::NeedsRestart(content.hash);
                    }
                }
                Action::AskRestart(epoch) => {
                    prop_assert!(!self.runs.contains_key(&name));
                    let content = self.assigned[&name].last_run(self.ran.get(&name).copied()).unwrap_or_default();
                    let change = Change::NeedsRestart(self.assigned[&name].hash());
                    self.runs.insert(name, Run { epoch, state: RunState::Resting, grace: GRACE, content, change });
                }
                Action::Stop(epoch, _) => {
                    let run = self.runs.get_mut(&name).expect("only what runs is stopped");
                    prop_assert_eq!(run.epoch, epoch);
                    prop_assert_ne!(run.state, RunState::Stopping, "stopped twice");
                    run.state = RunState::Stopping;
                }
                Action::ReportStopped(epoch) => {
                    prop_assert!(!self.runs.contains_key(&name), "reported as stopped while something runs");
                    prop_assert_eq!(self.assigned.get(&name).map(|t| t.epoch), Some(epoch));
                    self.past.insert(name, Past::Stopped(epoch));
                }
            }
        }
        Err(TestCaseError::fail("it does not come to rest"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: one run of a name, starts only on good ground, and a decision that was carried out is not made again.
    #[test]
    fn every_course_of_events_is_safe(events in proptest::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in &events {
            world.apply(event);
            for name in 0..3 {
                world.turn(name)?;
                prop_assert_eq!(world.decide(name), None, "idempotent");
                if world.admission == AdmissionState::Unadmitted || !world.authority.reaches(millis(world.now), GRACE) {
                    prop_assert!(world.runs.get(&name).is_none_or(|run| run.state != RunState::Live), "it runs without authority");
                }
            }
        }
    }

    /// With authority, admission and a view that stay, everything told to run runs, and nothing else does.
    #[test]
    fn it_settles(events in proptest::collection::vec(event(), 1..60)) {
        let mut world = World::new();
        for event in &events {
            world.apply(event);
            for name in 0..3 {
                world.turn(name)?;
            }
        }
        world.admission = AdmissionState::Current;
        for _ in 0..3 {
            world.apply(&Event::Proof);
            world.apply(&Event::EndStops);
            for name in 0..3 {
                world.turn(name)?;
            }
        }
        for name in 0..3 {
            let wanted = world.assigned.get(&name).filter(|t| stop_reason(t).is_none()).map(|t| t.epoch);
            prop_assert_eq!(world.runs.get(&name).map(|run| run.epoch), wanted);
        }
    }
}

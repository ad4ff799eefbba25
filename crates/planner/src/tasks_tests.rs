//! Tasks that are planned, carried out and reported on by made-up workers: what is ordered when, and that it comes to an end whoever leads.

use evenkeel_model::{
    Change, Entry, Registration, Revision, TaskIntent, TaskResult,
    task::{Outcome, TaskDraft},
};
use proptest::prelude::*;

use super::*;

const ID: TaskId = TaskId(1);
const G: Duration = Duration::from_secs(5);

fn id(n: usize) -> WorkerId {
    WorkerId::new(&format!("w{n:02}")).expect("id")
}

fn seconds(n: u64) -> Moment {
    Moment(Duration::from_secs(n))
}

/// A cluster with one task, a clock, and workers that do as the test says.
struct Bed {
    cluster: Cluster,
    revision: i64,
    now: Moment,
}

impl Bed {
    fn new(hosts: usize, change: impl FnOnce(&mut TaskDraft)) -> Self {
        let mut bed = Self { cluster: Cluster::default(), revision: 1, now: Moment::default() };
        for n in 0..hosts {
            bed.register(n, true);
        }
        let named = (0..hosts).map(|n| id(n).to_string()).collect();
        let mut draft = TaskDraft {
            script: "id".to_owned(),
            hosts: named,
            batch: "all".to_owned(),
            tolerance: "all".to_owned(),
            ..TaskDraft::default()
        };
        change(&mut draft);
        let new = draft.check().expect("a task");
        let workers = new.resolve(&bed.cluster).expect("hosts");
        let task = new.with_workers(ID, 1, workers, &bed.cluster).expect("a task");
        bed.put(Entry::Task(ID, Some(task)));
        bed.put(Entry::TaskIntent(ID, Some(TaskIntent::default())));
        bed
    }

    fn put(&mut self, entry: Entry) {
        self.revision += 1;
        let revision = Revision(self.revision);
        let created = if let Entry::Worker(..) = entry { Revision(1) } else { revision };
        self.cluster.apply(Change::over(created, revision, entry), self.now);
        assert!(self.cluster.tasks().is_true());
    }

    fn register(&mut self, n: usize, lives: bool) {
        let registration =
            Registration { labels: [("zone".to_owned(), "a".to_owned())].into(), ..Registration::bare(id(n), "h:1".to_owned()) };
        self.put(Entry::Worker(id(n), lives.then_some(registration)));
    }

    fn entry(&self) -> &TaskEntry {
        self.cluster.tasks().get(ID).expect("the task")
    }

    fn plan(&self) -> TaskPlan {
        // The clock of the leader began at 1, which is when the task was created.
        let unix_ns = i64::try_from(self.now.0.as_nanos()).expect("in time") + 1;
        plan(&self.cluster, self.now, unix_ns, G, usize::MAX)
    }

    /// Plans and carries all of it out; what was done, in words.
    fn turn(&mut self) -> Vec<String> {
        let planned = self.plan();
        let mut reserved = Vec::new();
        for action in &planned.actions {
            let decision = action.decide(&self.cluster).unwrap_or_else(|_| panic!("{action} does not fit"));
            self.cluster.reserve(&decision.writes, self.now);
            reserved.push(decision);
        }
        assert_eq!(self.plan().actions, [], "planning what is under way yields nothing");
        for decision in reserved {
            self.cluster.release(&decision.writes, self.now);
            decision.writes.into_iter().for_each(|write| self.put(write.entry));
        }
        planned.actions.iter().map(ToString::to_string).collect()
    }

    fn intent(&mut self, change: impl FnOnce(&mut TaskIntent)) {
        let mut intent = self.entry().intent().expect("an intent").value.clone();
        change(&mut intent);
        self.put(Entry::TaskIntent(ID, Some(intent)));
    }

    /// The worker begins what it is ordered.
    fn begin(&mut self, n: usize) {
        let host = self.entry().host(&id(n)).and_then(|host| host.order.as_deref()).expect("an order");
        let result = TaskResult::running(host.value.attempt, host.revision, 1);
        self.put(Entry::TaskResult(id(n), ID, Some(result)));
    }

    /// It begins, and that is what comes of it.
    fn end(&mut self, n: usize, outcome: Outcome) {
        self.begin(n);
        let result = self.entry().host(&id(n)).and_then(|host| host.current()).expect("a result").clone();
        self.put(Entry::TaskResult(id(n), ID, Some(result.with_end(outcome, 2, ""))));
    }

    fn state(&self, n: usize) -> HostState {
        self.entry().state_of(&id(n)).expect("a host")
    }
}

#[test]
fn a_batch_is_ordered_in_order_and_filled_up() {
    let mut bed = Bed::new(5, |draft| draft.batch = "2".to_owned());
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w00", "order attempt 1 of task 1 on w01"]);
    bed.begin(0);
    assert_eq!(bed.turn(), [""; 0], "who runs keeps its place");
    bed.end(1, Outcome::Failed);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w02"]);
    bed.end(0, Outcome::Succeeded);
    bed.end(2, Outcome::Rejected);
    assert_eq!(bed.turn().len(), 2);
    bed.end(3, Outcome::Succeeded);
    bed.end(4, Outcome::Killed);
    assert_eq!(bed.turn(), ["task 1 is done"]);
    assert_eq!(bed.turn(), [""; 0]);
    assert_eq!(bed.entry().outcome(), Some(HostState::Failed), "the worst of all");
}

#[test]
fn a_batch_of_a_share_is_one_host_at_least() {
    let mut bed = Bed::new(3, |draft| draft.batch = "1%".to_owned());
    assert_eq!(bed.turn().len(), 1);
}

#[test]
fn more_failures_than_are_tolerated_pause_it_and_who_resumes_it_accepts_them() {
    let mut bed = Bed::new(6, |draft| (draft.batch, draft.tolerance) = ("1".to_owned(), "1".to_owned()));
    for (n, outcome) in [(0, Outcome::Failed), (1, Outcome::TimedOut)] {
        assert_eq!(bed.turn().len(), 1);
        bed.end(n, outcome);
    }
    assert_eq!(bed.turn(), ["pause task 1: tolerance: 2 failed, and 1 may"]);
    assert_eq!((bed.turn(), bed.entry().state()), (Vec::new(), TaskState::Paused));
    bed.intent(|intent| (intent.goal, intent.accepted) = (TaskGoal::Run, 2));
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w02"]);
    bed.end(2, Outcome::Killed);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w03"], "what was killed has not failed");
    bed.end(3, Outcome::Lost);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w04"], "one more is tolerated");
    bed.end(4, Outcome::Failed);
    assert_eq!(bed.turn(), ["pause task 1: tolerance: 2 more failed than were accepted, and 1 may"]);
}

#[test]
fn failures_of_the_last_hosts_end_it() {
    let mut bed = Bed::new(1, |draft| draft.tolerance = "0".to_owned());
    bed.turn();
    bed.end(0, Outcome::Failed);
    assert_eq!(bed.turn(), ["task 1 is done"], "there is nothing to keep from beginning");
}

#[test]
fn it_pauses_after_a_canary_once() {
    let mut bed = Bed::new(4, |draft| draft.pause_after = vec![id(1).to_string()]);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w00", "order attempt 1 of task 1 on w01"]);
    bed.end(1, Outcome::Succeeded);
    assert_eq!(bed.turn(), ["pause task 1: after w01, as it was asked for"]);
    bed.intent(|intent| intent.goal = TaskGoal::Run);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w02", "order attempt 1 of task 1 on w03"]);
}

#[test]
fn who_does_not_begin_in_time_is_undelivered_and_keeps_the_others_waiting_no_longer() {
    let mut bed = Bed::new(2, |draft| (draft.batch, draft.deliver_ms) = ("1".to_owned(), 10_000));
    bed.turn();
    assert_eq!(bed.plan().wake, Some(seconds(10)));
    bed.now = seconds(10);
    assert_eq!(bed.turn(), ["close task 1 on w00 as Undelivered: its worker did not begin it within 10s"]);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w01"]);
    assert_eq!(bed.plan().wake, Some(seconds(20)), "each from its own order");
}

#[test]
fn a_host_whose_worker_is_gone_is_lost_after_timeout_grace_and_the_wait() {
    let mut bed = Bed::new(1, |draft| (draft.timeout_ms, draft.grace_ms) = (60_000, Some(2_000)));
    bed.turn();
    bed.begin(0);
    assert_eq!(bed.plan().wake, None, "who is there is not waited for");
    bed.now = seconds(100);
    bed.register(0, false);
    assert_eq!((bed.turn(), bed.plan().wake), (Vec::new(), Some(seconds(167))));
    bed.now = seconds(166);
    bed.cluster.begin_term(bed.now);
    bed.now = seconds(167);
    assert_eq!(bed.turn(), [""; 0], "a new leader has seen less");
    bed.now = seconds(166 + 67);
    assert_eq!(bed.turn(), ["close task 1 on w00 as Lost: its worker is gone, and how the script ended is not known"]);
    assert_eq!(bed.turn(), ["task 1 is done"]);
}

#[test]
fn a_pending_host_whose_worker_is_gone_waits_for_its_delivery() {
    let mut bed = Bed::new(1, |draft| draft.deliver_ms = 3_600_000);
    bed.turn();
    bed.register(0, false);
    bed.now = seconds(3599);
    assert_eq!(bed.turn(), [""; 0]);
}

#[test]
fn a_cancelled_task_begins_nothing_and_a_killed_one_stops_what_runs() {
    for (goal, stops) in [(TaskGoal::Cancel, false), (TaskGoal::Kill, true)] {
        let mut bed = Bed::new(3, |draft| draft.batch = "2".to_owned());
        bed.turn();
        bed.begin(0);
        bed.intent(|intent| (intent.goal, intent.why) = (goal, "by ada".into()));
        let mut done = bed.turn();
        done.sort();
        let stop = stops.then_some("stop task 1 on w00: by ada".to_owned());
        assert_eq!(done, ["close task 1 on w01 as Cancelled: by ada".to_owned()].into_iter().chain(stop).collect::<Vec<_>>());
        assert_eq!((bed.turn(), bed.state(2)), (Vec::new(), HostState::Cancelled), "it waits for who runs");
        bed.end(0, Outcome::Succeeded);
        assert_eq!(bed.turn(), ["task 1 is done"]);
    }
}

#[test]
fn one_host_is_killed_alone() {
    let mut bed = Bed::new(4, |draft| draft.batch = "2".to_owned());
    bed.turn();
    bed.begin(0);
    bed.intent(|intent| intent.killed.extend([id(0), id(1), id(2)]));
    let done = bed.turn();
    assert!(done.contains(&"stop task 1 on w00: killed by a person".to_owned()), "{done:?}");
    assert!(done.contains(&"close task 1 on w01 as Cancelled: cancelled by a person".to_owned()), "{done:?}");
    assert_eq!(bed.state(2), HostState::Cancelled);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w03"]);
}

#[test]
fn who_comes_late_and_matches_is_ordered_too_until_the_delivery_ends() {
    let late = |draft: &mut TaskDraft| {
        (draft.hosts, draft.selector, draft.late, draft.deliver_ms) = (Vec::new(), "zone=a".to_owned(), true, 60_000);
    };
    let mut bed = Bed::new(1, late);
    bed.turn();
    bed.end(0, Outcome::Succeeded);
    assert_eq!((bed.turn(), bed.plan().wake), (Vec::new(), Some(seconds(60))));
    bed.now = seconds(59);
    bed.register(1, true);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w01"]);
    bed.end(1, Outcome::Succeeded);
    bed.now = seconds(60);
    bed.register(2, true);
    assert_eq!(bed.turn(), ["task 1 is done"], "nobody comes any more");
}

#[test]
fn who_comes_late_keeps_to_the_batch_and_waits_for_a_canary() {
    let late = |draft: &mut TaskDraft| {
        (draft.hosts, draft.selector, draft.late, draft.batch) = (Vec::new(), "zone=a".to_owned(), true, "1".to_owned());
    };
    let mut bed = Bed::new(0, late);
    (0..3).for_each(|n| bed.register(n, true));
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w00"]);
    assert_eq!(bed.turn(), [""; 0], "there is no room for another");
    let canary = |draft: &mut TaskDraft| {
        (draft.hosts, draft.selector, draft.late) = (Vec::new(), "zone=a".to_owned(), true);
        draft.pause_after = vec!["w00".to_owned()];
    };
    let mut bed = Bed::new(2, canary);
    bed.register(2, true);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w00"]);
    assert_eq!(bed.turn(), [""; 0], "who goes ahead has not come to its end");
    bed.end(0, Outcome::Succeeded);
    assert_eq!(bed.turn(), ["pause task 1: after w00, as it was asked for"]);
    bed.intent(|intent| intent.goal = TaskGoal::Run);
    assert_eq!(bed.turn(), ["order attempt 1 of task 1 on w01", "order attempt 1 of task 1 on w02"]);
}

#[test]
fn what_a_worker_says_and_nobody_can_read_is_lost_in_time_or_when_it_is_killed() {
    for is_killed in [false, true] {
        let mut bed = Bed::new(1, |draft| (draft.timeout_ms, draft.grace_ms) = (60_000, Some(0)));
        bed.turn();
        bed.put(Entry::TaskResult(id(0), ID, Some(TaskResult::running(0, Revision(0), 0))));
        assert_eq!((bed.turn(), bed.plan().wake), (Vec::new(), Some(seconds(65))));
        if is_killed {
            bed.intent(|intent| intent.goal = TaskGoal::Kill);
        } else {
            bed.now = seconds(65);
        }
        assert_eq!(bed.turn(), ["close task 1 on w00 as Lost: what its worker said of it cannot be read"]);
        assert_eq!(bed.turn(), ["task 1 is done"]);
    }
}

#[test]
fn a_task_whose_definition_cannot_be_read_ends_when_it_is_killed() {
    let mut bed = Bed::new(3, |_| {});
    bed.turn();
    bed.begin(0);
    let (entry, error) = evenkeel_model::Key::Task(ID).read(b"{");
    let change = Change { error, ..Change::over(Revision(99), Revision(99), entry) };
    bed.cluster.apply(change, bed.now);
    assert_eq!(bed.turn(), [""; 0], "nothing more begins");
    bed.intent(|intent| intent.goal = TaskGoal::Kill);
    assert_eq!(bed.turn().len(), 3);
    assert_eq!(bed.turn(), [""; 0], "it waits for who runs");
    let running = bed.entry().host(&id(0)).and_then(|host| host.current()).expect("a result").clone();
    bed.put(Entry::TaskResult(id(0), ID, Some(running.with_end(Outcome::Killed, 2, ""))));
    assert_eq!(bed.turn(), ["task 1 is done"]);
}

#[test]
fn what_is_redone_is_ordered_by_the_batch_like_the_others() {
    let mut bed = Bed::new(3, |draft| draft.batch = "1".to_owned());
    for n in 0..3 {
        bed.turn();
        bed.end(n, Outcome::Failed);
    }
    bed.turn();
    bed.intent(|intent| {
        intent.done_at = 0;
        intent.attempts.extend([(id(0), 2), (id(2), 2)]);
    });
    assert_eq!(bed.turn(), ["order attempt 2 of task 1 on w00"]);
    bed.end(0, Outcome::Succeeded);
    assert_eq!(bed.turn(), ["order attempt 2 of task 1 on w02"]);
    bed.end(2, Outcome::Succeeded);
    assert_eq!(bed.turn(), ["task 1 is done"]);
}

#[test]
fn what_is_lost_runs_again_only_where_that_was_asked_for() {
    for (on_lost, expected) in [("report", "task 1 is done"), ("retry", "order attempt 2 of task 1 on w00")] {
        let mut bed = Bed::new(1, |draft| draft.on_lost = on_lost.to_owned());
        bed.turn();
        bed.end(0, Outcome::Lost);
        assert_eq!(bed.turn(), [expected]);
    }
}

#[test]
fn a_task_whose_intent_was_deleted_by_hand_waits_and_what_is_left_of_one_goes() {
    let mut bed = Bed::new(2, |_| {});
    bed.turn();
    bed.put(Entry::TaskIntent(ID, None));
    assert_eq!((bed.turn(), bed.entry().state()), (Vec::new(), TaskState::Paused));
    bed.put(Entry::Task(ID, None));
    assert_eq!(bed.turn(), ["delete of task 1"]);
    assert_eq!(bed.turn(), ["delete of task 1"]);
    assert!(bed.cluster.tasks().is_empty());
}

#[test]
fn what_is_old_is_kept_no_longer() {
    let mut bed = Bed::new(1, |_| {});
    bed.turn();
    bed.end(0, Outcome::Succeeded);
    bed.now = seconds(1);
    bed.turn();
    bed.now = seconds(KEEP_TASKS_S);
    assert_eq!((bed.turn(), bed.plan().wake), (Vec::new(), Some(seconds(KEEP_TASKS_S + 1))));
    bed.now = seconds(KEEP_TASKS_S + 1);
    assert_eq!(bed.turn(), ["keep task 1 no longer"]);
    while !bed.cluster.tasks().is_empty() {
        assert_eq!(bed.turn(), ["delete of task 1"]);
    }
}

#[test]
fn the_least_loaded_are_chosen_and_an_id_decides_between_equals() {
    let bed = Bed::new(3, |_| {});
    let all: Vec<WorkerId> = (0..3).rev().map(id).collect();
    assert_eq!(least_loaded(&bed.cluster, &all, 2), [id(0), id(1)]);
}

/// What may happen to one host.
#[derive(Clone, Copy, Debug)]
enum Step {
    Plan,
    Begin(usize),
    End(usize, Outcome),
    Gone(usize),
    Back(usize),
    Resume,
    Wait,
    /// Another leads, and builds its view from a list.
    NewLeader,
}

fn any_step() -> impl Strategy<Value = Step> {
    let outcomes = vec![Outcome::Succeeded, Outcome::Failed, Outcome::Killed, Outcome::Rejected, Outcome::Lost];
    prop_oneof![
        4 => Just(Step::Plan),
        4 => (0..6_usize).prop_map(Step::Begin),
        4 => (0..6_usize, proptest::sample::select(outcomes)).prop_map(|(n, outcome)| Step::End(n, outcome)),
        1 => (0..6_usize).prop_map(Step::Gone),
        1 => (0..6_usize).prop_map(Step::Back),
        1 => Just(Step::Resume),
        1 => Just(Step::Wait),
        1 => Just(Step::NewLeader),
    ]
}

impl Bed {
    fn step(&mut self, step: Step) {
        match step {
            Step::Plan => drop(self.turn()),
            Step::Begin(n) if self.state(n) == HostState::Pending => self.begin(n),
            Step::End(n, outcome) if self.state(n) == HostState::Running => {
                let result = self.entry().host(&id(n)).and_then(|host| host.current()).expect("a result").clone();
                self.put(Entry::TaskResult(id(n), ID, Some(result.with_end(outcome, 2, ""))));
            }
            Step::Gone(n) => self.register(n, false),
            Step::Back(n) => self.register(n, true),
            Step::Resume if self.entry().state() == TaskState::Paused => {
                let failed = u32::try_from(self.entry().failed()).expect("few");
                self.intent(|intent| (intent.goal, intent.accepted) = (TaskGoal::Run, failed));
            }
            Step::Wait => self.now = self.now.after(Duration::from_secs(1800)),
            Step::NewLeader => self.cluster.begin_term(self.now),
            _ => {}
        }
    }
}

proptest! {
    /// Whatever workers do and whoever leads: the batch is kept, no attempt is ordered twice, and once nothing gets in the way, every host comes to an end.
    #[test]
    fn it_comes_to_an_end_within_its_batch(steps in proptest::collection::vec(any_step(), 0..60), batch in 1..4_usize, tolerance in 0..3_usize) {
        let mut bed = Bed::new(6, |draft| {
            (draft.batch, draft.tolerance, draft.timeout_ms, draft.deliver_ms) = (batch.to_string(), tolerance.to_string(), 60_000, 3_600_000);
        });
        let mut ordered = std::collections::BTreeSet::new();
        for step in steps {
            for action in bed.plan().actions {
                if let (TaskAction::Order { worker, attempt, .. }, Step::Plan) = (action, step) {
                    prop_assert!(ordered.insert((worker, attempt)), "an attempt is ordered once");
                }
            }
            bed.step(step);
            prop_assert!(bed.entry().batch() <= batch);
        }
        for _ in 0..100 {
            bed.step(Step::Resume);
            bed.turn();
            for n in 0..6 {
                bed.step(Step::Begin(n));
                bed.step(Step::End(n, Outcome::Succeeded));
            }
            bed.now = bed.now.after(Duration::from_secs(3600));
        }
        prop_assert_eq!(bed.entry().state(), TaskState::Done);
        prop_assert!(bed.entry().counts().each().all(|(state, _)| state.is_end()));
    }
}

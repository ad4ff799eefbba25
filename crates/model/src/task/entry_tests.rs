//! What is concluded of hosts, and that the totals stay true whatever comes in which order.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    Change, Cluster, Entry, Order, Registration, TaskId, Write,
    task::{TaskAction, TaskDraft, Tasks},
};

const ID: TaskId = TaskId(7);

fn id(n: usize) -> WorkerId {
    WorkerId::new(&format!("w{n}")).expect("id")
}

fn task(hosts: usize, change: impl FnOnce(&mut TaskDraft)) -> Task {
    let mut draft = TaskDraft { script: "id".to_owned(), hosts: (0..hosts).map(|n| format!("w{n}")).collect(), ..TaskDraft::default() };
    change(&mut draft);
    let new = draft.check().expect("a task");
    let workers = new.resolve(&Cluster::default()).expect("hosts");
    new.with_workers(ID, 1, workers, &Cluster::default()).expect("a task")
}

struct Bed {
    cluster: Cluster,
    revision: i64,
    now: Moment,
}

impl Bed {
    fn new(task: Task) -> Self {
        let mut bed = Self { cluster: Cluster::default(), revision: 10, now: Moment::default() };
        bed.put(Entry::Task(ID, Some(task)));
        bed.put(Entry::TaskIntent(ID, Some(TaskIntent::default())));
        bed
    }

    fn put(&mut self, entry: Entry) {
        self.revision += 1;
        let revision = Revision(self.revision);
        self.cluster.apply(Change::over(revision, revision, entry), self.now);
        assert!(self.cluster.tasks().is_true());
    }

    fn entry(&self) -> &TaskEntry {
        self.cluster.tasks().get(ID).expect("the task")
    }

    fn order(&mut self, n: usize, order: Order) {
        self.put(Entry::Order(id(n), ID, Some(order)));
    }

    fn result(&mut self, n: usize, result: TaskResult) {
        self.put(Entry::TaskResult(id(n), ID, Some(result)));
    }

    fn intent(&mut self, change: impl FnOnce(&mut TaskIntent)) {
        let mut intent = self.entry().intent().expect("an intent").value.clone();
        change(&mut intent);
        self.put(Entry::TaskIntent(ID, Some(intent)));
    }

    fn state(&self, n: usize) -> HostState {
        self.entry().state_of(&id(n)).expect("a host")
    }
}

fn running(attempt: u32) -> TaskResult {
    TaskResult::running(attempt, Revision(12), 5)
}

#[test]
fn a_host_is_what_its_order_and_its_result_say() {
    let run = || Order::run(1, 0);
    let ended = |outcome| running(1).with_end(outcome, 9, "");
    let cases = [
        (None, None, HostState::Waiting),
        (Some(run()), None, HostState::Pending),
        (Some(run()), Some(running(1)), HostState::Running),
        // Nobody knows which attempt an unreadable result speaks of: it may be this one.
        (Some(run()), Some(running(0)), HostState::Running),
        (Some(Order::run(2, 0)), Some(ended(Outcome::Failed)), HostState::Pending),
        (Some(run()), Some(ended(Outcome::Succeeded)), HostState::Succeeded),
        (Some(run()), Some(ended(Outcome::Failed)), HostState::Failed),
        (Some(run()), Some(ended(Outcome::TimedOut)), HostState::TimedOut),
        (Some(run()), Some(ended(Outcome::Killed)), HostState::Killed),
        (Some(run()), Some(ended(Outcome::Rejected)), HostState::Rejected),
        (Some(run()), Some(ended(Outcome::Lost)), HostState::Lost),
        (Some(run().with(OrderIntent::Stop, "")), Some(running(1)), HostState::Running),
        (Some(run().with(OrderIntent::Cancelled, "")), None, HostState::Cancelled),
        (Some(run().with(OrderIntent::Undelivered, "")), None, HostState::Undelivered),
        (Some(run().with(OrderIntent::Lost, "")), Some(running(1)), HostState::Lost),
        // Its worker came back and knew the end.
        (Some(run().with(OrderIntent::Lost, "")), Some(ended(Outcome::Succeeded)), HostState::Succeeded),
    ];
    for (order, result, expected) in cases {
        let mut bed = Bed::new(task(1, |_| {}));
        let shown = format!("{order:?} {result:?}");
        order.into_iter().for_each(|order| bed.order(0, order));
        result.into_iter().for_each(|result| bed.result(0, result));
        assert_eq!(bed.state(0), expected, "{shown}");
    }
}

#[test]
fn what_is_wanted_counts_beside_what_is_known() {
    let mut bed = Bed::new(task(3, |_| {}));
    bed.order(0, Order::run(1, 0));
    bed.result(0, running(1).with_end(Outcome::Failed, 9, ""));
    bed.intent(|intent| {
        let _ = intent.attempts.insert(id(0), 2);
    });
    assert_eq!((bed.state(0), bed.entry().next_attempt(&id(0))), (HostState::Waiting, 2), "it is to run once more");
    bed.intent(|intent| {
        let _ = intent.ignored.insert(id(0));
    });
    assert_eq!(bed.state(0), HostState::Ignored);
    bed.intent(|intent| {
        let _ = intent.killed.insert(id(1));
    });
    assert_eq!((bed.state(1), bed.state(2)), (HostState::Cancelled, HostState::Waiting));
    bed.intent(|intent| intent.goal = TaskGoal::Cancel);
    assert_eq!(bed.state(2), HostState::Cancelled);
    let mut bed = Bed::new(task(1, |draft| draft.on_lost = "retry".to_owned()));
    for attempt in 1..=Task::MOST_ATTEMPTS {
        assert_eq!((bed.state(0), bed.entry().next_attempt(&id(0))), (HostState::Waiting, attempt));
        bed.order(0, Order::run(attempt, 0));
        bed.result(0, running(attempt).with_end(Outcome::Lost, 9, ""));
    }
    assert_eq!(bed.state(0), HostState::Lost, "it is not begun for ever");
}

#[test]
fn what_is_under_way_takes_its_place_in_the_batch() {
    let mut bed = Bed::new(task(2, |_| {}));
    let action = TaskAction::Order { task: ID, worker: id(0), attempt: 1, since: 0 };
    let decision = action.decide(&bed.cluster).expect("it fits");
    bed.cluster.reserve(&decision.writes, bed.now);
    assert!(bed.cluster.tasks().is_true());
    assert_eq!((bed.entry().batch(), bed.entry().waiting().count()), (1, 1));
    bed.cluster.release(&decision.writes, bed.now);
    assert_eq!((bed.entry().batch(), bed.entry().waiting().count()), (0, 2), "it was not written");
}

#[test]
fn a_host_that_came_late_takes_its_place_from_the_moment_that_its_order_is_decided() {
    let mut bed = Bed::new(task(1, |_| {}));
    let action = TaskAction::Order { task: ID, worker: id(9), attempt: 1, since: 0 };
    let decision = action.decide(&bed.cluster).expect("it fits");
    bed.cluster.reserve(&decision.writes, bed.now);
    assert!(bed.cluster.tasks().is_true());
    assert_eq!((bed.entry().batch(), bed.entry().has(&id(9))), (1, true));
    bed.cluster.release(&decision.writes, bed.now);
    assert!(bed.cluster.tasks().is_true());
    assert_eq!((bed.entry().batch(), bed.entry().has(&id(9))), (0, false), "it was not written");
}

#[test]
fn a_worker_that_is_gone_is_seen_from_then_on() {
    let mut bed = Bed::new(task(1, |_| {}));
    let registration = Registration::bare(id(0), String::new());
    bed.put(Entry::Worker(id(0), Some(registration.clone())));
    bed.order(0, Order::run(1, 0));
    bed.result(0, running(1));
    let gone = |bed: &Bed| bed.entry().host(&id(0)).and_then(|host| host.gone_since);
    assert_eq!(gone(&bed), None);
    bed.now = Moment(Duration::from_secs(5));
    bed.put(Entry::Worker(id(0), None));
    assert_eq!(gone(&bed), Some(bed.now));
    bed.cluster.begin_term(Moment(Duration::from_secs(9)));
    assert_eq!(gone(&bed), Some(Moment(Duration::from_secs(9))), "a new leader has not seen it");
    bed.put(Entry::Worker(id(0), Some(registration)));
    assert_eq!(gone(&bed), None);
}

#[test]
fn a_kept_task_is_found_by_its_key_and_the_counter_never_goes_back() {
    let mut bed = Bed::new(task(1, |draft| draft.key = "deploy-42".to_owned()));
    let tasks = |bed: &Bed| -> Tasks { bed.cluster.tasks().clone() };
    assert_eq!((tasks(&bed).of_key("deploy-42"), tasks(&bed).next().1), (Some(ID), Some(TaskId(8))));
    bed.put(Entry::NextTask(Some(crate::NextTask { next: 20 })));
    bed.put(Entry::NextTask(Some(crate::NextTask { next: 9 })));
    assert_eq!(tasks(&bed).next().1, Some(TaskId(20)));
    bed.put(Entry::NextTask(None));
    assert_eq!(tasks(&bed).next().1, Some(TaskId(8)), "it was deleted by hand");
    bed.put(Entry::NextTask(Some(crate::NextTask { next: u32::MAX })));
    assert_eq!(tasks(&bed).next().1, None, "no ids are left");
    bed.put(Entry::Task(ID, None));
    bed.put(Entry::TaskIntent(ID, None));
    assert_eq!((tasks(&bed).of_key("deploy-42"), tasks(&bed).len()), (None, 0));
}

#[test]
fn a_task_that_is_kept_no_longer_goes_in_pages_and_last_of_all_itself() {
    let mut bed = Bed::new(task(100, |_| {}));
    for n in 0..100 {
        bed.order(n, Order::run(1, 0));
    }
    assert_eq!(TaskAction::Delete { task: ID }.decide(&bed.cluster), Err(crate::NotYet), "it is still wanted");
    bed.intent(|intent| intent.goal = TaskGoal::Remove);
    let mut pages = 0;
    while bed.cluster.tasks().get(ID).is_some() {
        let decision = TaskAction::Delete { task: ID }.decide(&bed.cluster).expect("it fits");
        assert!(decision.writes.len() <= 121);
        decision.writes.into_iter().for_each(|write| bed.put(write.entry));
        pages += 1;
        assert!(pages <= 4, "it comes to an end");
    }
    assert_eq!(pages, 4);
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let host = (0..5_usize).prop_map(id);
    let intents = [OrderIntent::Run, OrderIntent::Stop, OrderIntent::Cancelled, OrderIntent::Undelivered, OrderIntent::Lost];
    let order = (host.clone(), 1..3_u32, proptest::sample::select(intents.to_vec()))
        .prop_map(|(worker, attempt, intent)| Entry::Order(worker, ID, Some(Order::run(attempt, 0).with(intent, ""))));
    let outcomes = [Outcome::Succeeded, Outcome::Failed, Outcome::Lost];
    let result = (host.clone(), 0..3_u32, proptest::option::of(proptest::sample::select(outcomes.to_vec()))).prop_map(
        |(worker, attempt, outcome)| {
            let result = TaskResult { out: 9000, ..running(attempt) };
            Entry::TaskResult(worker, ID, Some(outcome.map_or(result.clone(), |outcome| result.with_end(outcome, 9, ""))))
        },
    );
    let goals = [TaskGoal::Run, TaskGoal::Pause, TaskGoal::Cancel, TaskGoal::Remove];
    let intent =
        (proptest::sample::select(goals.to_vec()), host.clone(), 0..2_i64, 0..3_u32).prop_map(|(goal, worker, done_at, tails_deleted)| {
            let ignored = [worker].into();
            Entry::TaskIntent(ID, Some(TaskIntent { goal, ignored, done_at, tails_deleted, ..TaskIntent::default() }))
        });
    let gone = host.clone().prop_map(|worker| Entry::Order(worker, ID, None));
    let task = (1..4_usize).prop_map(|hosts| Entry::Task(ID, Some(task(hosts, |_| {}))));
    let absent = proptest::sample::select(vec![Entry::Task(ID, None), Entry::TaskIntent(ID, None)]);
    prop_oneof![4 => order, 4 => result, 2 => intent, 1 => gone, 1 => task, 1 => absent]
}

proptest! {
    /// Totals are those of a count from the beginning, whatever was seen before, and whatever is reserved meanwhile.
    #[test]
    fn totals_stay_true(entries in proptest::collection::vec((any_entry(), any::<bool>()), 1..40)) {
        let mut bed = Bed::new(task(3, |_| {}));
        for (entry, is_reserved) in entries {
            let writes = [Write::new(entry.clone())];
            if is_reserved {
                bed.cluster.reserve(&writes, bed.now);
                prop_assert!(bed.cluster.tasks().is_true());
            }
            bed.put(entry);
            if is_reserved {
                bed.cluster.release(&writes, bed.now);
            }
            prop_assert!(bed.cluster.tasks().is_true());
        }
    }
}

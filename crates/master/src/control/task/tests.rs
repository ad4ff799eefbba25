//! Commands about tasks, judged by a state without a control loop: what each refuses, and what each leaves as it is.

use evenkeel_model::{
    Change, Cluster, Entry, EntryKind, Moment, Order, Registration, Revision, TaskResult,
    task::{HostState, NextTask, Outcome, TaskDraft},
};
use evenkeel_planner::PlannerConfig;

use super::*;
use crate::control::{request::Command, snowflake::Snowflakes};

const ID: TaskId = TaskId(1);

fn id(n: usize) -> WorkerId {
    WorkerId::new(&format!("w{n}")).expect("id")
}

fn draft() -> TaskDraft {
    TaskDraft { script: "id".to_owned(), hosts: (0..4).map(|n| format!("w{n}")).collect(), ..TaskDraft::default() }
}

/// A state that nobody else changes.
#[derive(Default)]
struct Bed {
    cluster: Cluster,
    revision: i64,
    planner: PlannerConfig,
}

impl Bed {
    fn put(&mut self, entry: Entry) {
        self.revision += 1;
        self.cluster.apply(Change::over(Revision(self.revision), Revision(self.revision), entry), Moment::default());
    }

    /// Judges a command and writes what it wants: what is written of the history, or the refusal.
    fn ask<C: Command>(&mut self, command: &C) -> Result<(C::Answer, Option<EntryKind>), Refusal> {
        let mut by = Judge {
            cluster: &self.cluster,
            planner: &self.planner,
            now: Moment::default(),
            time: 7,
            master: "m",
            snowflakes: &mut Snowflakes::new(1),
            unchanged: None,
        };
        match command.judge(&mut by) {
            Ruling::Refuse(refusal) => Err(refusal),
            Ruling::Stands(guards, answer) => {
                assert!(!guards.is_empty(), "an answer from memory has a condition under which it is true");
                answer.map(|answer| (answer, None))
            }
            Ruling::Write(decision, entry, answer) => {
                assert!(!decision.guards.is_empty(), "no write is blind");
                decision.writes.into_iter().for_each(|write| self.put(write.entry));
                Ok((answer, entry.map(|entry| entry.kind)))
            }
        }
    }

    fn create(&mut self, draft: TaskDraft) -> Result<Created, Refusal> {
        let task = Box::new(draft.check().expect("a task"));
        self.ask(&create::Create { task }).map(|(created, _)| created)
    }

    fn want(&mut self, verb: TaskVerb) -> Result<Option<EntryKind>, String> {
        let asked = self.ask(&intents::SetIntent { id: ID, verb, from: "10.0.0.9".into() });
        asked.map(|((), entry)| entry).map_err(|refusal| refusal.to_string())
    }

    fn redo(&mut self, hosts: Redone) -> Result<(), String> {
        self.ask(&intents::Redo { id: ID, hosts, from: "".into() }).map(|_| ()).map_err(|refusal| refusal.to_string())
    }

    fn order(&mut self, n: usize) {
        self.put(Entry::Order(id(n), ID, Some(Order::run(1, 1))));
    }

    fn end(&mut self, n: usize, outcome: Outcome) {
        self.order(n);
        self.put(Entry::TaskResult(id(n), ID, Some(TaskResult::running(1, Revision(1), 1).with_end(outcome, 2, ""))));
    }

    fn intent(&self) -> TaskIntent {
        self.cluster.tasks().get(ID).and_then(TaskEntry::intent).expect("an intent").value.clone()
    }

    fn done(&mut self) {
        let intent = TaskIntent { done_at: 9, ..self.intent() };
        self.put(Entry::TaskIntent(ID, Some(intent)));
    }
}

#[test]
fn ids_are_counted_and_never_given_again() {
    let mut bed = Bed::default();
    assert_eq!(bed.create(draft()), Ok(Created { id: TaskId(1), is_new: true }));
    assert_eq!(bed.create(draft()), Ok(Created { id: TaskId(2), is_new: true }));
    for key in [Key::Task(TaskId(2)), Key::TaskIntent(TaskId(2))] {
        bed.put(key.absent());
    }
    assert_eq!(bed.create(draft()).map(|created| created.id), Ok(TaskId(3)));
    assert_eq!(bed.cluster.tasks().next().1, Some(TaskId(4)));
    bed.put(Entry::NextTask(Some(NextTask { next: 2 })));
    assert_eq!(bed.create(draft()).map(|created| created.id), Ok(TaskId(4)), "a counter that was restored from a backup does not count");
}

#[test]
fn a_key_is_one_task() {
    let mut bed = Bed::default();
    let keyed = |from: &str| TaskDraft { key: "deploy-42".to_owned(), from: from.to_owned(), ..draft() };
    assert_eq!(bed.create(keyed("10.0.0.1")), Ok(Created { id: ID, is_new: true }));
    assert_eq!(bed.create(keyed("10.0.0.2")), Ok(Created { id: ID, is_new: false }), "wherever it comes from");
    let other = bed.create(TaskDraft { title: "other".to_owned(), ..keyed("") }).expect_err("another content");
    assert_eq!(other.to_string(), "key \"deploy-42\" already exists with task 1, which asks for something else; use another key");
    bed.put(Entry::TaskIntent(ID, Some(TaskIntent { goal: TaskGoal::Remove, ..TaskIntent::default() })));
    assert_eq!(bed.create(keyed("")), Ok(Created { id: TaskId(2), is_new: true }), "what is being deleted is no task any more");
}

#[test]
fn more_tasks_than_are_kept_are_refused_while_none_is_done() {
    let mut bed = Bed::default();
    for _ in 0..evenkeel_model::limits::MAX_TASKS {
        bed.create(draft()).expect("a task");
    }
    let full = bed.create(draft()).expect_err("full");
    assert_eq!(
        full.to_string(),
        "1000 tasks with 4000 hosts are kept, and too few of them are done; at most 1000 and 200000 are: cancel some, or wait"
    );
    bed.done();
    assert_eq!(bed.create(draft()).map(|created| created.id), Ok(TaskId(1001)), "one that is done makes room");
}

#[test]
fn any_takes_so_many_of_those_that_take_tasks() {
    let mut bed = Bed::default();
    let selected = |any| TaskDraft { hosts: Vec::new(), selector: "zone=a".to_owned(), any, ..draft() };
    for n in 0..4 {
        let registration = Registration {
            tasks: n >= 2,
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            ..Registration::bare(id(n), "h:1".to_owned())
        };
        bed.put(Entry::Worker(id(n), Some(registration)));
    }
    bed.create(selected(1)).expect("a task");
    assert_eq!(bed.cluster.tasks().get(ID).expect("a task").order(), [id(2)]);
    let few = bed.create(selected(3)).expect_err("too few");
    assert_eq!(few.to_string(), "any: 3 hosts are asked for, and 2 match that take tasks");
}

#[test]
fn what_is_final_stays_and_what_would_do_is_said() {
    let mut bed = Bed::default();
    assert_eq!(bed.want(TaskVerb::Kill), Err("task 1: there is none; those that are done are kept for a while only".to_owned()));
    bed.create(draft()).expect("a task");
    assert_eq!(bed.want(TaskVerb::Resume), Ok(None), "it goes on already");
    assert_eq!(bed.want(TaskVerb::Pause), Ok(Some(EntryKind::TaskPaused)));
    assert_eq!(&*bed.intent().why, "paused by a person, from 10.0.0.9");
    assert_eq!(bed.want(TaskVerb::Pause), Ok(None));
    assert_eq!(bed.want(TaskVerb::Resume), Ok(Some(EntryKind::TaskResumed)));
    assert_eq!(&*bed.intent().why, "");
    assert_eq!(bed.want(TaskVerb::Cancel), Ok(Some(EntryKind::TaskCancelled)));
    assert_eq!(bed.want(TaskVerb::Cancel), Ok(None));
    let refused = Err("task 1 was cancelled, and that is final; create it again".to_owned());
    assert_eq!(bed.want(TaskVerb::Resume), refused);
    assert_eq!(bed.want(TaskVerb::Pause), refused);
    assert_eq!(bed.redo(Redone::Failed).map(|()| None), refused);
    assert_eq!(bed.want(TaskVerb::Kill), Ok(Some(EntryKind::TaskKilled)), "what runs is stopped after all");
    assert_eq!(bed.want(TaskVerb::Cancel), Ok(None), "it is not taken back");
    assert_eq!(bed.intent().goal, TaskGoal::Kill);
    let mut bed = Bed::default();
    bed.create(draft()).expect("a task");
    bed.done();
    let refused = Err("task 1 is done; redo hosts of it, or create it again".to_owned());
    assert_eq!((bed.want(TaskVerb::Resume), bed.want(TaskVerb::Pause)), (refused.clone(), refused));
    assert_eq!((bed.want(TaskVerb::Cancel), bed.want(TaskVerb::Kill), bed.intent().goal), (Ok(None), Ok(None), TaskGoal::Run));
}

#[test]
fn to_resume_accepts_what_has_failed_and_passes_canaries() {
    let mut bed = Bed::default();
    bed.create(TaskDraft { pause_after: vec!["w0".to_owned(), "w3".to_owned()], count_undelivered: true, ..draft() }).expect("a task");
    bed.end(0, Outcome::Failed);
    bed.end(1, Outcome::TimedOut);
    bed.end(2, Outcome::Killed);
    bed.put(Entry::TaskIntent(ID, Some(TaskIntent { goal: TaskGoal::Pause, why: "tolerance".into(), ..TaskIntent::default() })));
    bed.want(TaskVerb::Resume).expect("resumed");
    let intent = bed.intent();
    assert_eq!((intent.goal, intent.accepted, intent.passed), (TaskGoal::Run, 2, [id(0)].into()));
}

#[test]
fn only_a_host_at_its_end_is_done_again() {
    let mut bed = Bed::default();
    bed.create(draft()).expect("a task");
    bed.end(0, Outcome::Failed);
    bed.end(1, Outcome::Succeeded);
    bed.order(2);
    assert_eq!(bed.redo(Redone::Hosts(vec![id(9)])), Err("w9 is none of the hosts of task 1".to_owned()));
    let busy = "w2 is pending; it can be done again when it is at an end, and to kill it ends it";
    assert_eq!(bed.redo(Redone::Hosts(vec![id(0), id(2)])), Err(busy.to_owned()));
    assert_eq!(bed.intent().attempts.len(), 0, "all or none");
    bed.done();
    assert_eq!(bed.redo(Redone::Failed), Ok(()));
    let intent = bed.intent();
    assert_eq!((intent.attempts, intent.done_at), ([(id(0), 2)].into(), 0));
    let entry = bed.cluster.tasks().get(ID).expect("a task");
    assert_eq!((entry.state_of(&id(0)), entry.state_of(&id(1))), (Some(HostState::Waiting), Some(HostState::Succeeded)));
}

#[test]
fn one_host_is_killed_or_ignored() {
    let mut bed = Bed::default();
    bed.create(draft()).expect("a task");
    bed.order(0);
    bed.end(1, Outcome::Failed);
    let kill = |bed: &mut Bed, n| bed.ask(&intents::KillHost { id: ID, worker: id(n), from: "".into() }).map(|(_, entry)| entry);
    let ignore = |bed: &mut Bed, n| bed.ask(&intents::IgnoreHost { id: ID, worker: id(n), from: "".into() }).map(|(_, entry)| entry);
    assert_eq!(ignore(&mut bed, 0), Err(Refusal::TaskState("w0 is pending; kill it first".to_owned())));
    assert_eq!(kill(&mut bed, 0), Ok(Some(EntryKind::TaskKilled)));
    assert_eq!(kill(&mut bed, 0), Ok(None));
    assert_eq!(kill(&mut bed, 1), Ok(None), "nothing runs there");
    assert_eq!(ignore(&mut bed, 1), Ok(Some(EntryKind::TaskIgnored)));
    assert_eq!(ignore(&mut bed, 1), Ok(None));
    assert_eq!(ignore(&mut bed, 3), Ok(Some(EntryKind::TaskIgnored)), "its turn has not come");
    assert_eq!((kill(&mut bed, 9), ignore(&mut bed, 9)), (Err(Refusal::NoHost(ID, id(9))), Err(Refusal::NoHost(ID, id(9)))));
    // An order on its way is one that may be begun.
    bed.cluster.reserve(&[Write::new(Entry::Order(id(2), ID, Some(Order::run(1, 1))))], Moment::default());
    assert_eq!(ignore(&mut bed, 2), Err(Refusal::TaskState("w2 is pending; kill it first".to_owned())));
    bed.redo(Redone::Hosts(vec![id(1), id(3)])).expect("both are at an end");
    assert_eq!((bed.intent().ignored.len(), bed.intent().attempts), (0, [(id(1), 2), (id(3), 1)].into()));
}

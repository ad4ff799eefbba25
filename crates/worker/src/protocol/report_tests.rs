//! Worker::report against a small table that carries out its transactions as etcd would.

use evenkeel_model::Epoch;

use super::*;

const GROUND: StatusGuard = StatusGuard { session: Session(5), admission: Revision(7) };

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("name")
}

fn worker() -> WorkerId {
    WorkerId::new("w").expect("id")
}

fn status(epoch: i64, phase: Observed) -> Status {
    Status::new(phase, Epoch(epoch), 1)
}

/// Keys with create and modification revisions.
struct Etcd {
    keys: Keys,
    kvs: BTreeMap<Vec<u8>, Kv>,
    revision: i64,
}

impl Etcd {
    /// With the session, the admission, and an assignment for each of these names and epochs.
    fn new(assignments: &[(&str, i64)]) -> Self {
        let keys = Keys::new("");
        let mut etcd = Self { keys: keys.clone(), kvs: BTreeMap::new(), revision: 100 };
        etcd.insert(keys.worker(&worker()), 5, 5);
        etcd.insert(keys.admission(&worker()), 3, 7);
        for (text, epoch) in assignments {
            etcd.insert(keys.assignment(&worker(), &name(text)), *epoch, *epoch);
        }
        etcd
    }

    fn insert(&mut self, key: String, created: i64, modified: i64) {
        let kv = Kv { key: key.into_bytes(), value: Vec::new(), created: Revision(created), modified: Revision(modified), lease: 0 };
        self.kvs.insert(kv.key.clone(), kv);
    }

    fn apply(&mut self, txn: &Txn) -> Outcome {
        assert!(txn.compares.len() <= 128 && txn.then.len() <= 128 && txn.otherwise.len() <= 128);
        if txn.compares.iter().all(|compare| compare.holds(self.kvs.get(compare.key()))) {
            self.revision += 1;
            for op in &txn.then {
                let Op::Put { key, value, .. } = op else { panic!("{op:?}") };
                let created = self.kvs.get(key).map_or(Revision(self.revision), |kv| kv.created);
                let kv = Kv { key: key.clone(), value: value.clone(), created, modified: Revision(self.revision), lease: 0 };
                self.kvs.insert(key.clone(), kv);
            }
            return Outcome::Written(Revision(self.revision));
        }
        let read = |op: &Op| {
            let Op::Get { key } = op else { panic!("{op:?}") };
            self.kvs.get(key).cloned().into_iter().collect()
        };
        Outcome::Refused(txn.otherwise.iter().map(read).collect())
    }

    fn phase(&self, text: &str) -> Option<Observed> {
        let kv = self.kvs.get(self.keys.status(&worker(), &name(text)).as_bytes())?;
        Some(serde_json::from_slice::<Status>(&kv.value).expect("status").phase)
    }

    /// Writes until nothing is due; how many transactions that took.
    fn drain(&mut self, reporter: &mut Reporter) -> usize {
        for round in 0..20 {
            let Some(batch) = reporter.next(GROUND) else { return round };
            let outcome = self.apply(&batch.txn(&self.keys, &worker()));
            assert_eq!(reporter.done(&batch, outcome), Verdict::Fine);
        }
        panic!("it does not come to rest");
    }
}

#[test]
fn a_status_is_written_when_it_has_changed() {
    let mut etcd = Etcd::new(&[("a", 20)]);
    let mut reporter = Reporter::default();
    reporter.set(&name("a"), status(20, Observed::Starting));
    reporter.set(&name("a"), status(20, Observed::Running));
    assert_eq!((etcd.drain(&mut reporter), etcd.phase("a")), (1, Some(Observed::Running)));
    reporter.set(&name("a"), status(20, Observed::Running));
    assert!(!reporter.is_due());
    reporter.set(&name("a"), status(20, Observed::Stopped));
    assert!(reporter.is_due() && reporter.is_urgent());
    assert_eq!((etcd.drain(&mut reporter), etcd.phase("a")), (1, Some(Observed::Stopped)));
}

#[test]
fn one_stale_assignment_does_not_hold_up_the_others() {
    let mut etcd = Etcd::new(&[("a", 20), ("c", 22)]);
    let mut reporter = Reporter::default();
    for (text, epoch) in [("a", 20), ("b", 21), ("c", 9)] {
        reporter.set(&name(text), status(epoch, Observed::Running));
    }
    assert_eq!(etcd.drain(&mut reporter), 2);
    assert_eq!((etcd.phase("a"), etcd.phase("b"), etcd.phase("c")), (Some(Observed::Running), None, None));
}

#[test]
fn batches_are_bounded_and_what_is_waited_for_goes_first() {
    let names: Vec<String> = (0..150).map(|n| format!("r{n:03}")).collect();
    let assignments: Vec<(&str, i64)> = names.iter().map(|n| (n.as_str(), 20)).collect();
    let mut etcd = Etcd::new(&assignments);
    let mut reporter = Reporter::default();
    for text in &names {
        reporter.set(&name(text), status(20, Observed::Running));
    }
    reporter.set(&name("r149"), status(20, Observed::Stopped));
    let first = reporter.next(GROUND).expect("batch");
    assert_eq!(first.items[0].name, name("r149"));
    assert!(reporter.next(GROUND).is_none(), "one at a time");
    let outcome = etcd.apply(&first.txn(&etcd.keys, &worker()));
    assert_eq!(reporter.done(&first, outcome), Verdict::Fine);
    assert_eq!(etcd.drain(&mut reporter), 2);
    assert!(names.iter().all(|text| etcd.phase(text).is_some()));
}

#[test]
fn a_write_that_takes_effect_late_does_not_undo_a_newer_one() {
    let mut etcd = Etcd::new(&[("a", 20)]);
    let mut reporter = Reporter::default();
    reporter.set(&name("a"), status(20, Observed::Running));
    let late = reporter.next(GROUND).expect("batch");
    assert_eq!(reporter.done(&late, Outcome::Unknown), Verdict::Fine);
    reporter.set(&name("a"), status(20, Observed::Stopped));
    etcd.drain(&mut reporter);
    assert!(matches!(etcd.apply(&late.txn(&etcd.keys, &worker())), Outcome::Refused(_)));
    assert_eq!(etcd.phase("a"), Some(Observed::Stopped));
}

#[test]
fn a_write_whose_answer_was_lost_is_found_again() {
    let mut etcd = Etcd::new(&[("a", 20)]);
    let mut reporter = Reporter::default();
    reporter.set(&name("a"), status(20, Observed::Stopped));
    let lost = reporter.next(GROUND).expect("batch");
    etcd.apply(&lost.txn(&etcd.keys, &worker()));
    assert_eq!(reporter.done(&lost, Outcome::Unknown), Verdict::Fine);
    assert!(reporter.is_due(), "it is retried until it is known to stand");
    let before = etcd.revision;
    etcd.drain(&mut reporter);
    assert_eq!(etcd.revision, before, "it stood already");
}

#[test]
fn nothing_is_written_for_another_session_or_admission() {
    let mut etcd = Etcd::new(&[("a", 20)]);
    let mut reporter = Reporter::default();
    reporter.set(&name("a"), status(20, Observed::Stopped));
    let unadmitted = reporter.next(StatusGuard { admission: Revision(6), ..GROUND }).expect("batch");
    let outcome = etcd.apply(&unadmitted.txn(&etcd.keys, &worker()));
    assert_eq!((reporter.done(&unadmitted, outcome), etcd.phase("a")), (Verdict::Fine, None));
    assert!(reporter.is_due(), "it waits for an admission");
    let lost = reporter.next(StatusGuard { session: Session(4), ..GROUND }).expect("batch");
    let outcome = etcd.apply(&lost.txn(&etcd.keys, &worker()));
    assert_eq!((reporter.done(&lost, outcome), etcd.phase("a")), (Verdict::SessionLost, None));
}

#[test]
fn a_list_shows_what_is_still_to_be_written() {
    let mut reporter = Reporter::default();
    for text in ["a", "b", "gone"] {
        reporter.set(&name(text), status(20, Observed::Running));
    }
    let stands = |phase| (Some(status(20, phase)), Revision(30));
    let listed = BTreeMap::from([(name("a"), stands(Observed::Running)), (name("b"), stands(Observed::Starting))]);
    reporter.list(listed, |n| *n != name("gone"));
    let batch = reporter.next(GROUND).expect("batch");
    assert_eq!(batch.items.iter().map(|item| (&item.name, item.modified)).collect::<Vec<_>>(), [(&name("b"), Revision(30))]);
    assert_eq!(reporter.written(&name("a")).map(|s| s.phase), Some(Observed::Running));
}

#[test]
fn a_long_message_is_cut_at_a_character() {
    let mut reporter = Reporter::default();
    reporter.set(&name("a"), Status { message: "ä".repeat(2000), ..status(20, Observed::Failed) });
    let batch = reporter.next(GROUND).expect("batch");
    assert_eq!((batch.len(), batch.items[0].status.message.len()), (1, MAX_MESSAGE));
}

/// Whoever ends an assignment is to know first that its work is not to be run again.
#[test]
fn an_end_is_as_urgent_as_a_stop() {
    let mut reporter = Reporter::default();
    reporter.set(&name("a"), status(3, Observed::Running));
    assert!(!reporter.is_urgent());
    reporter.set(&name("b"), Status { finished: true, ..status(4, Observed::Exited) });
    assert!(reporter.is_urgent());
    assert_eq!(reporter.last(&name("b")).map(|status| status.finished), Some(true));
}

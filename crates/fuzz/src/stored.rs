//! Whatever stands in etcd under the keys of the schema, one change after the other: it is read, taken in, planned, decided and written
//! again. A leader has no way round a value that it cannot cope with.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_model::{Cluster, Decision, Entry, Key, Moment, Revision, Violation, check, limits::MAX_RECORD};
use evenkeel_planner::PlannerConfig;
use evenkeel_store::{
    KeyChange, Kv, MAX_BYTES, Op,
    codec::{self, Meaning},
    keys::Keys,
};

/// How many plans follow on the last change: the first is due at once, others when waits have ended.
const PLANS: usize = 4;

struct World {
    keys: Keys,
    kvs: BTreeMap<Vec<u8>, Kv>,
    cluster: Cluster,
    revision: i64,
    now: Moment,
}

/// Each line is a change: a key, a space, a value. Without a value the key is deleted.
///
/// # Panics
/// When what must hold does not.
pub fn stored_values(data: &[u8]) {
    let keys = Keys::new("");
    let mut world = World { keys, kvs: BTreeMap::new(), cluster: Cluster::default(), revision: 1, now: Moment::default() };
    let config = PlannerConfig::default();
    for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (key, value) = match line.iter().position(|byte| *byte == b' ') {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        world.write(key, value);
    }
    for _ in 0..PLANS {
        world.turn(&config);
        world.now = world.now.after(Duration::from_secs(3600));
    }
    world.read_anew();
}

impl World {
    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.revision += 1;
        let modified = Revision(self.revision);
        let change = match value {
            Some(value) => {
                let created = self.kvs.get(key).map_or(modified, |kv| kv.created);
                let kv = Kv { key: key.to_vec(), value: value.to_vec(), created, modified, lease: 0 };
                self.kvs.insert(key.to_vec(), kv.clone());
                KeyChange::Put(kv)
            }
            None => {
                self.kvs.remove(key);
                KeyChange::Delete { key: key.to_vec(), revision: modified }
            }
        };
        let meaning = codec::meaning_of_change(&self.keys, &change);
        if let (Some(key), KeyChange::Put(kv)) = (self.keys.parse(key), &change) {
            is_read_as_itself(key, &kv.value);
        }
        if let Meaning::Cluster(change) = meaning {
            self.cluster.apply(change, self.now);
            check_totals(&self.cluster);
        }
    }

    /// One turn of the wheel: what is planned is carried out, whatever hands have written.
    fn turn(&mut self, config: &PlannerConfig) {
        let plan = evenkeel_planner::plan(&self.cluster, self.now, config);
        assert_eq!(
            check::check_plan(&self.cluster, &plan, self.now, config.wait),
            [],
            "a plan that violates anything is never carried out"
        );
        let reasons = plan.undone.iter().map(|undone| undone.reason.to_string());
        reasons.for_each(|reason| assert!(reason.len() < 10_000, "a reason of {} characters", reason.len()));
        let names: Vec<String> = self.cluster.units_after(None).map(|(name, _)| name.to_string()).collect();
        for name in names {
            let _ = evenkeel_planner::why_pending(&self.cluster, &name, self.now, config).map(|pending| pending.to_string());
            if let Some(definition) = self.cluster.unit(&name).and_then(|unit| unit.definition()) {
                let _ = evenkeel_planner::explain(&self.cluster, definition, self.now, config);
            }
        }
        for action in &plan.actions {
            // What builds on a write of this plan that is not known yet is planned again.
            let Ok(decision) = Decision::of(action, &self.cluster) else { continue };
            self.carry_out(&decision, action);
        }
        let unix_ns = i64::try_from(self.now.0.as_nanos()).unwrap_or(i64::MAX);
        let plan = evenkeel_planner::tasks::plan(&self.cluster, self.now, unix_ns, config.wait, config.max_actions);
        for action in &plan.actions {
            let Ok(decision) = action.decide(&self.cluster) else { continue };
            self.carry_out(&decision, action);
        }
    }

    fn carry_out(&mut self, decision: &Decision, action: &impl std::fmt::Debug) {
        let (_, ops) = codec::encode(&self.keys, decision);
        let bytes: usize = ops.iter().map(size).sum();
        assert!(bytes < MAX_BYTES, "{action:?} takes {bytes} bytes, more than a transaction");
        for op in ops {
            match op {
                Op::Put { key, value, .. } => self.write(&key, Some(&value)),
                Op::Delete { key } => self.write(&key, None),
                Op::DeleteRange { .. } | Op::Get { .. } | Op::Range { .. } => panic!("a decision only puts and deletes"),
            }
        }
    }

    /// A list gives the same cluster as the watch did, but for what was seen of the past.
    fn read_anew(&self) {
        let meanings = self.kvs.values().map(|kv| codec::meaning(&self.keys, kv));
        let events = meanings.filter_map(|meaning| if let Meaning::Cluster(event) = meaning { Some(event) } else { None });
        let listed = Cluster::from_list(events, self.now);
        check_totals(&listed);
        for (name, unit) in self.cluster.units_after(None) {
            assert_eq!(listed.unit(name.as_str()).map(|u| &u.record), Some(&unit.record), "{name}");
        }
    }
}

/// What was read of a value, of whichever kind, is what is read when it is written again.
fn is_read_as_itself(key: Key, value: &[u8]) {
    let (entry, error) = key.clone().read(value);
    // What is safe in the place of a value is not what anybody writes.
    let is_in_place = matches!(&entry, Entry::Worker(_, Some(registration)) if registration.refused.is_some());
    // A record may be too long as it is written again, which the leader does without the view of where it ran.
    let written = entry.json().filter(|json| json.len() <= MAX_RECORD);
    if let Some(json) = written.filter(|_| error.is_none() && !is_in_place) {
        assert_eq!(key.read(&json), (entry, None), "a value is read as itself");
    }
}

/// Two owners may stand there, if hands have written them; the totals are right all the same.
fn check_totals(cluster: &Cluster) {
    let found: Vec<_> = check::check_cluster(cluster).into_iter().filter(|v| !matches!(v, Violation::TwoOwners(..))).collect();
    assert_eq!(found, []);
}

fn size(op: &Op) -> usize {
    match op {
        Op::Put { key, value, .. } => key.len() + value.len() + 64,
        other => other.first_key().len() + 64,
    }
}

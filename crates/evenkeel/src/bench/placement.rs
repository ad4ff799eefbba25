//! How long it takes to place one resource, without etcd: the choice and the change of the Cluster, beside a scan of all workers.

use std::time::Instant;

use evenkeel_model::{
    Admission, Change, Cluster, Decision, Definition, Entry, Moment, Origin, Record, Registration, ResourceName, Revision, Session,
    WorkerId,
};
use evenkeel_planner::PlannerConfig;
use serde::Serialize;

/// How many choices the linear scan makes; it is slow.
const SCANS: u32 = 2_000;

/// What was measured with one number of workers.
#[derive(Debug, Serialize)]
pub(super) struct Placement {
    pub(super) workers: u32,
    pub(super) resources: u32,
    pub(super) ns_per_placement: f64,
    pub(super) ns_linear_scan: f64,
    pub(super) ratio: f64,
    /// The highest payload less the lowest, when all are placed.
    pub(super) spread: u64,
}

/// Places unit weights on so many workers.
pub(super) fn measure(workers: u32, resources: u32) -> Placement {
    let mut cluster = cluster_of(workers);
    let definitions: Vec<Definition> =
        (0..resources).filter_map(|n| ResourceName::new(&format!("resource-{n:07}")).ok()).map(Definition::named).collect();
    let began = Instant::now();
    let mut revision = i64::from(workers) * 2;
    for definition in definitions {
        revision += 1;
        place(&mut cluster, definition, Revision(revision));
    }
    let ns_per_placement = began.elapsed().as_nanos() as f64 / f64::from(resources);
    let payloads: Vec<u64> = cluster.workers().map(|(_, w)| w.payload).collect();
    let spread = payloads.iter().max().unwrap_or(&0) - payloads.iter().min().unwrap_or(&0);
    let ns_linear_scan = linear_scan(&cluster);
    Placement { workers, resources, ns_per_placement, ns_linear_scan, ratio: ns_linear_scan / ns_per_placement, spread }
}

fn cluster_of(workers: u32) -> Cluster {
    let mut cluster = Cluster::default();
    for n in 0..workers {
        let Ok(id) = WorkerId::new(&format!("worker-{n:05}")) else { continue };
        let address = format!("10.0.{}.{}:9090", n / 256, n % 256);
        let registration = Registration { kinds: vec!["noop".to_owned()], ..Registration::bare(id.clone(), address) };
        let session = Session(i64::from(n) + 1);
        let admission = Admission { session, authority_ms: None, origin: Origin::default() };
        let registered = Change::at(Revision(session.0), Entry::Worker(id.clone(), Some(registration)));
        cluster.apply(registered, Moment::default());
        cluster.apply(Change::at(Revision(session.0 + 1), Entry::Admission(id, Some(admission))), Moment::default());
    }
    cluster
}

fn place(cluster: &mut Cluster, definition: Definition, revision: Revision) {
    let Ok((worker, _)) = evenkeel_planner::choose(cluster, &definition, Moment::default(), &PlannerConfig::default()) else { return };
    let name = definition.name.clone();
    let mut decision = Decision::default();
    decision.assign(&definition, &worker, evenkeel_model::Holds::Strict);
    let address = cluster.worker(worker.as_str()).and_then(|w| w.registration()).map(|r| r.address.clone()).unwrap_or_default();
    let value = Record {
        id: 1,
        creation_time: 1,
        assigned_node: Record::node(&worker, &address),
        source: Box::default(),
        finished: None,
        failed: None,
        definition,
    };
    cluster.apply(Change::at(revision, Entry::Resource(name, Some(value))), Moment::default());
    for write in decision.writes {
        cluster.apply(write.change(revision), Moment::default());
    }
}

/// What one placement costs when every worker is looked at, as the plainest scheduler does.
fn linear_scan(cluster: &Cluster) -> f64 {
    let began = Instant::now();
    for _ in 0..SCANS {
        let least = cluster.workers().min_by_key(|(id, worker)| (worker.payload, *id));
        std::hint::black_box(least);
    }
    began.elapsed().as_nanos() as f64 / f64::from(SCANS)
}

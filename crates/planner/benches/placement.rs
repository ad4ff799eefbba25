//! What placement costs: 10,000 workers and a million resources, placed, lost, joined and asked about, with rules and without; beside a
//! linear scan and the classic sort; and how many moves it makes beside the fewest. `cargo bench -p evenkeel-planner`.
//!
//! Every time is told as a ratio of two that were measured in this run. `--workers N --resources N` make it smaller.

use std::{collections::BTreeMap, hint::black_box, time::Duration, time::Instant};

use evenkeel_model::{
    Action, Admission, Change, Cluster, Decision, Definition, Draft, Entry, Key, Moment, Observed, Origin, Phase, Plan, Record,
    Registration, ResourceName, Revision, Session, Standing, Status, WorkerId,
};
use evenkeel_planner::{PlannerConfig, Supposition, choose, explain, plan, suppose};

/// How often the slow comparisons are made.
const SCANS: u32 = 1_000;
const SORTS: u32 = 100;
const ZONES: u32 = 10;

/// A cluster with what carries out its plans, as the leader and its workers would.
struct Stage {
    cluster: Cluster,
    config: PlannerConfig,
    now: Moment,
    revision: i64,
}

/// What a settling took.
#[derive(Default)]
struct Settled {
    planning: Duration,
    plans: u32,
    moves: usize,
    /// The longest of the plans.
    longest: Duration,
}

impl Stage {
    fn new(workers: u32) -> Self {
        let mut stage = Self { cluster: Cluster::default(), config: PlannerConfig::default(), now: Moment::default(), revision: 0 };
        for n in 0..workers {
            stage.join(n);
        }
        stage
    }

    fn next(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }

    fn join(&mut self, n: u32) {
        let id = id(n);
        let mut labels = BTreeMap::from([("zone".to_owned(), format!("z{}", n % ZONES))]);
        if n.is_multiple_of(50) {
            labels.insert("gpu".to_owned(), "true".to_owned());
        }
        let kinds = vec!["noop".to_owned(), "process".to_owned()];
        let registration = Registration { labels, kinds, ..Registration::bare(id.clone(), format!("10.0.{}.{}:9090", n / 256, n % 256)) };
        let revision = self.next();
        let admission = Admission { session: Session(revision.0), authority_ms: None, origin: Origin::default() };
        self.cluster.apply(Change::at(revision, Entry::Worker(id.clone(), Some(registration))), self.now);
        let revision = self.next();
        self.cluster.apply(Change::at(revision, Entry::Admission(id, Some(admission))), self.now);
    }

    fn lose(&mut self, n: u32) {
        self.cluster.apply(Change::gone(Key::Worker(id(n))), self.now);
    }

    /// As an AddResource call: a choice, and its effect on the Cluster.
    fn add(&mut self, definition: Definition) {
        let chosen = choose(&self.cluster, &definition, self.now, &self.config);
        let revision = self.next();
        let mut decision = Decision::default();
        let mut node: Box<str> = Box::default();
        if let Ok((worker, _)) = &chosen {
            decision.assign(&definition, worker, evenkeel_model::Holds::Strict);
            let address = self.cluster.worker(worker.as_str()).and_then(|w| w.registration()).map(|r| r.address.clone());
            node = Record::node(worker, &address.unwrap_or_default());
        }
        let record =
            Record { id: 1, creation_time: 1, assigned_node: node, source: Box::default(), finished: None, failed: None, definition };
        self.cluster.apply(Change::at(revision, Entry::Resource(record.definition.name.clone(), Some(record))), self.now);
        for write in decision.writes {
            self.cluster.apply(write.change(revision), self.now);
        }
    }

    fn carry_out(&mut self, plan: &Plan) -> usize {
        let mut moves = 0;
        for action in &plan.actions {
            let Ok(decision) = Decision::of(action, &self.cluster) else { continue };
            let revision = self.next();
            moves += usize::from(matches!(action, Action::Move { .. }));
            for write in &decision.writes {
                self.cluster.apply(write.change(revision), self.now);
            }
        }
        moves
    }

    /// Every live worker stops what it was told to stop.
    fn acknowledge(&mut self) {
        let stopping: Vec<ResourceName> = self.cluster.agenda().stopping.keys().cloned().collect();
        for name in stopping {
            let Some(holder) = self.cluster.unit(name.as_str()).and_then(|u| u.holders.first()).cloned() else { continue };
            if matches!(holder.held.phase, Phase::Stop { .. }) {
                let epoch = holder.held.epoch;
                let status = Status::new(Observed::Stopped, epoch, 0);
                let revision = self.next();
                self.cluster.apply(Change::at(revision, Entry::Status(holder.worker, name, Some(status))), self.now);
            }
        }
    }

    /// Plans until nothing is left to do.
    fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        loop {
            let began = Instant::now();
            let plan = plan(&self.cluster, self.now, &self.config);
            let took = began.elapsed();
            settled.planning += took;
            settled.longest = settled.longest.max(took);
            settled.plans += 1;
            settled.moves += self.carry_out(&plan);
            self.acknowledge();
            if plan.actions.is_empty() && self.cluster.agenda().stopping.is_empty() {
                match plan.wake {
                    Some(wake) => self.now = wake,
                    None => return settled,
                }
            }
        }
    }

    fn payloads(&self) -> Vec<u64> {
        self.cluster.workers().filter(|(_, w)| w.standing() == Standing::Ready).map(|(_, w)| w.payload).collect()
    }
}

fn id(n: u32) -> WorkerId {
    WorkerId::new(&format!("worker-{n:05}")).expect("an id")
}

fn named(n: u32) -> Definition {
    Definition::named(ResourceName::new(&format!("resource-{n:07}")).expect("a name"))
}

/// One in three asks for two zones, one in fifty for a GPU, one in five prefers a zone, and all have a kind.
fn ruled(n: u32) -> Definition {
    let require = match n {
        n if n.is_multiple_of(50) => "gpu=true".to_owned(),
        n if n.is_multiple_of(3) => format!("zone in (z{},z{})", n % ZONES, (n + 1) % ZONES),
        _ => String::new(),
    };
    let prefer =
        if n.is_multiple_of(5) { vec![serde_json::json!({ "selector": format!("zone=z{}", n % ZONES), "weight": 3 })] } else { Vec::new() };
    let draft = Draft { kind: "noop".to_owned(), require, prefer, ..named(n).to_draft() };
    draft.check().expect("valid")
}

fn per(span: Duration, count: u32) -> f64 {
    span.as_nanos() as f64 / f64::from(count.max(1))
}

/// A million that are wanted and nowhere, placed by plans: what planning alone takes.
fn plan_all(workers: u32, resources: u32, make: fn(u32) -> Definition) -> f64 {
    let mut stage = Stage::new(workers);
    for n in 0..resources {
        let definition = make(n);
        let revision = stage.next();
        let record = Record {
            id: 1,
            creation_time: 1,
            assigned_node: Box::default(),
            source: Box::default(),
            finished: None,
            failed: None,
            definition,
        };
        stage.cluster.apply(Change::at(revision, Entry::Resource(record.definition.name.clone(), Some(record))), stage.now);
    }
    let settled = stage.settle();
    assert!(stage.cluster.agenda().unplaced.is_empty(), "all are placed");
    per(settled.planning, resources)
}

/// The choice alone, as an AddResource call makes it, of a cluster that is full.
fn choice(stage: &Stage, make: fn(u32) -> Definition) -> f64 {
    let definitions: Vec<Definition> = (0..100_000).map(make).collect();
    let began = Instant::now();
    for definition in &definitions {
        let _ = black_box(choose(&stage.cluster, definition, stage.now, &stage.config));
    }
    per(began.elapsed(), 100_000)
}

/// What one placement costs when every worker is looked at.
fn linear_scan(cluster: &Cluster) -> f64 {
    let began = Instant::now();
    for _ in 0..SCANS {
        black_box(cluster.workers().min_by_key(|(id, worker)| (worker.payload, *id)));
    }
    per(began.elapsed(), SCANS)
}

/// What one placement costs when all workers are sorted for it, as the classic scheduler does.
fn classic_sort(cluster: &Cluster) -> f64 {
    let began = Instant::now();
    for _ in 0..SORTS {
        let mut workers: Vec<(u64, &WorkerId)> = cluster.workers().map(|(id, worker)| (worker.payload, id)).collect();
        workers.sort();
        black_box(workers.first());
    }
    per(began.elapsed(), SORTS)
}

fn place_all(workers: u32, resources: u32, make: fn(u32) -> Definition) -> (Stage, f64) {
    let mut stage = Stage::new(workers);
    let mut took = Duration::ZERO;
    // Made in portions, so that making them is not measured and their memory does not count twice.
    let mut n = 0;
    while n < resources {
        let portion: Vec<Definition> = (n..resources.min(n + 10_000)).map(make).collect();
        n += u32::try_from(portion.len()).expect("a portion");
        let began = Instant::now();
        for definition in portion {
            stage.add(definition);
        }
        took += began.elapsed();
    }
    (stage, per(took, resources))
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |flag: &str, otherwise: u32| {
        let at = arguments.iter().position(|a| a == flag);
        at.and_then(|at| arguments.get(at + 1)).map_or(otherwise, |n| n.parse().expect("a number"))
    };
    let (workers, resources) = (number("--workers", 10_000), number("--resources", 1_000_000));
    println!("{workers} workers, {resources} resources\n");
    if arguments.iter().any(|a| a == "--plans") {
        return println!("{:.0} ns", plan_all(workers, resources, named));
    }
    if arguments.iter().any(|a| a == "--rules") {
        return with_rules(workers, resources);
    }
    let (mut stage, plain_ns) = place_all(workers, resources, named);
    placing(&stage, plain_ns, resources);
    if arguments.iter().any(|a| a == "--placing") {
        return;
    }
    memory(workers, resources / 10);
    movement(&mut stage, workers, "without rules");
    asking(&stage);
    drop(stage);
    with_rules(workers, resources);
    println!();
    fewest();
}

fn with_rules(workers: u32, resources: u32) {
    let (mut stage, ruled_ns) = place_all(workers, resources, ruled);
    let scan = linear_scan(&stage.cluster);
    let (planned, chosen) = (plan_all(workers, resources / 10, ruled), choice(&stage, ruled));
    println!("\nwith rules: planning {planned:.0} ns, choosing {chosen:.0} ns, adding {ruled_ns:.0} ns a placement");
    println!(
        "with rules: a linear scan that looks at no rule takes {:.0}, {:.0} and {:.0} times as long",
        scan / planned,
        scan / chosen,
        scan / ruled_ns
    );
    movement(&mut stage, workers, "with rules");
}

fn placing(stage: &Stage, plain_ns: f64, resources: u32) {
    let (scan, sort) = (linear_scan(&stage.cluster), classic_sort(&stage.cluster));
    let workers = u32::try_from(stage.payloads().len()).expect("few");
    let (planned, chosen) = (plan_all(workers, resources, named), choice(stage, named));
    println!(
        "P6 planning all of them: {planned:.0} ns a placement; a linear scan takes {:.0} times as long, the classic sort {:.0} times",
        scan / planned,
        sort / planned
    );
    println!("P6 the choice of one: {chosen:.0} ns; a linear scan takes {:.0} times as long", scan / chosen);
    println!(
        "P6 adding one after the other, with all that the Cluster keeps of each: {plain_ns:.0} ns; a linear scan that keeps nothing takes {:.0} times as long \
         ({:.1} us), the classic sort {:.0} times ({:.1} us)",
        scan / plain_ns,
        scan / 1e3,
        sort / plain_ns,
        sort / 1e3
    );
    let payloads = stage.payloads();
    let (most, least) = (payloads.iter().max().expect("some"), payloads.iter().min().expect("some"));
    let mean = f64::from(resources) / payloads.len() as f64;
    println!("P7 max / mean payload: {:.4}; max - min: {}", *most as f64 / mean, most - least);
}

/// Counting takes time, so it has a run of its own.
fn memory(workers: u32, resources: u32) {
    let mut empty = None;
    let without = allocation_counter::measure(|| empty = Some(Stage::new(workers)));
    let mut full = None;
    let with = allocation_counter::measure(|| full = Some(place_all(workers, resources, named)));
    println!("memory per resource in the Cluster: {} bytes", (with.bytes_current - without.bytes_current) / i64::from(resources));
}

fn movement(stage: &mut Stage, workers: u32, what: &str) {
    let idle = stage.settle();
    println!("{what}: {} moves to even out after placing; then an empty plan takes {:.1} us", idle.moves, empty_plan(stage));
    let orphans = stage.cluster.worker(id(0).as_str()).map_or(0, |w| w.names.len());
    stage.lose(0);
    told(&format!("{what}: one lost"), &stage.settle(), orphans);
    let before = stage.payloads();
    stage.join(0);
    // A worker that was lost before counts as new: its part is what the others have too much of.
    let total: u64 = before.iter().sum();
    let part = usize::try_from(total).expect("small") / (before.len() + 1);
    told(&format!("{what}: one joins"), &stage.settle(), part);
    let tenth: Vec<u32> = (0..workers / 10).map(|n| n * 10 + 1).collect();
    let orphans = tenth.iter().filter_map(|n| stage.cluster.worker(id(*n).as_str())).map(|w| w.names.len()).sum();
    for n in &tenth {
        stage.lose(*n);
    }
    told(&format!("{what}: a tenth lost"), &stage.settle(), orphans);
}

fn empty_plan(stage: &Stage) -> f64 {
    let began = Instant::now();
    for _ in 0..100 {
        assert!(black_box(plan(&stage.cluster, stage.now, &stage.config)).actions.is_empty());
    }
    per(began.elapsed(), 100) / 1e3
}

/// `least` moves there must be: what was orphaned, or what a newcomer's part is. Rules may make more of them needed.
fn told(what: &str, settled: &Settled, least: usize) {
    let per_move = settled.planning.as_micros() as f64 / settled.moves.max(1) as f64;
    println!(
        "{what}: {} moves in {} plans, {:.1} ms of planning ({per_move:.1} us a move, the longest plan {:.1} ms); P8 moves / those that there must be {:.3}",
        settled.moves,
        settled.plans,
        settled.planning.as_secs_f64() * 1e3,
        settled.longest.as_secs_f64() * 1e3,
        settled.moves as f64 / least.max(1) as f64
    );
}

fn asking(stage: &Stage) {
    let began = Instant::now();
    black_box(explain(&stage.cluster, &named(7), stage.now, &stage.config));
    let explained = began.elapsed();
    let began = Instant::now();
    let plan = suppose(&stage.cluster, stage.now, &stage.config, &Supposition::Lost(id(2)));
    println!(
        "explain: {:.1} ms; plan lose: {:.1} ms for {} moves",
        explained.as_secs_f64() * 1e3,
        began.elapsed().as_secs_f64() * 1e3,
        plan.actions.len()
    );
}

/// Weights from 1 to 5 on a few workers, one joins: the planner's moves beside the fewest that bring as small a spread, by trying all.
fn fewest() {
    let mut dice = fastrand::Rng::with_seed(1);
    let (mut made, mut least, mut cases) = (0, 0, 0);
    for _ in 0..300 {
        let (workers, count) = (dice.u32(2..4), dice.u32(3..10));
        let mut stage = Stage::new(workers);
        let weights: Vec<u64> = (0..count).map(|_| dice.u64(1..6)).collect();
        for (n, weight) in weights.iter().enumerate() {
            let n = u32::try_from(n).expect("few");
            stage.add(Draft { weight: Some(*weight), ..named(n).to_draft() }.check().expect("valid"));
        }
        let _ = stage.settle();
        let homes = |stage: &Stage| -> Vec<u32> {
            let home = |n: u32| {
                stage.cluster.unit(named(n).name.as_str()).and_then(|u| u.home()).map(|h| h.as_str()[7..].parse().expect("a number"))
            };
            (0..count).map(|n| home(n).expect("placed")).collect()
        };
        let before = homes(&stage);
        stage.join(workers);
        let _ = stage.settle();
        let after = homes(&stage);
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        let payloads = stage.payloads();
        let spread = payloads.iter().max().expect("some") - payloads.iter().min().expect("some");
        let mut best = usize::MAX;
        search(&weights, &before, &mut vec![0; workers as usize + 1], 0, spread, &mut best);
        made += moved;
        least += best;
        cases += 1;
    }
    println!(
        "P8 weights 1 to 5, {cases} joins of small clusters, by trying all: {made} moves, the fewest are {least}: {:.3}",
        made as f64 / least as f64
    );
}

fn search(weights: &[u64], homes: &[u32], payloads: &mut Vec<u64>, moved: usize, spread: u64, best: &mut usize) {
    if moved >= *best {
        return;
    }
    let (Some((weight, weights)), Some((home, homes))) = (weights.split_first(), homes.split_first()) else {
        if payloads.iter().max().expect("some") - payloads.iter().min().expect("some") <= spread {
            *best = moved;
        }
        return;
    };
    for worker in 0..payloads.len() {
        payloads[worker] += weight;
        search(weights, homes, payloads, moved + usize::from(worker != *home as usize), spread, best);
        payloads[worker] -= weight;
    }
}

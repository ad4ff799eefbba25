//! What must hold of placement: for every policy and every rule, whatever happens to the cluster.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_model::{
    Cluster, Definition, Draft, IntentKind, Misfit, Origin, Pending, PolicyName, Registration, Related, Relations, Standing, Subject,
    Undone, WorkerId, fit,
};
use evenkeel_planner::{Explainer, Looked, Supposition, Verdict, explain, plan, suppose};
use evenkeel_sim::world::World;
use proptest::{prelude::*, strategy::ValueTree};

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Put(Wanted),
    Delete(u8),
    Join { worker: u8, zone: u8, capacity: Option<u64>, attests: bool },
    Leave(u8),
    Crash(u8),
    Want(u8, Option<IntentKind>),
    Release,
    Acknowledge,
    Pass(u16),
    Turn,
    Term,
}

/// A resource, by numbers.
#[derive(Clone, Debug)]
struct Wanted {
    name: u8,
    weight: u64,
    app: u8,
    zone: Option<u8>,
    relation: u8,
    prefer: bool,
    policy: Option<PolicyName>,
    never: bool,
}

fn any_policy() -> impl Strategy<Value = PolicyName> {
    prop::sample::select(PolicyName::ALL.to_vec())
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let policy = prop::option::weighted(0.3, any_policy());
    (0..30_u8, 1..6_u64, 0..3_u8, prop::option::weighted(0.2, 0..3_u8), 0..12_u8, any::<bool>(), policy, prop::bool::weighted(0.1))
        .prop_map(|(name, weight, app, zone, relation, prefer, policy, never)| Wanted {
            name,
            weight,
            app,
            zone,
            relation,
            prefer,
            policy,
            never,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let intent = prop_oneof![
        Just(None),
        Just(Some(IntentKind::Cordon)),
        Just(Some(IntentKind::Drain { deadline_ms: None })),
        Just(Some(IntentKind::Drain { deadline_ms: Some(2000) })),
    ];
    let capacity = prop::option::weighted(0.5, 5..30_u64);
    prop_oneof![
        8 => wanted().prop_map(Step::Put),
        2 => (0..30_u8).prop_map(Step::Delete),
        4 => (0..5_u8, 0..3_u8, capacity, any::<bool>()).prop_map(|(worker, zone, capacity, attests)| Step::Join { worker, zone, capacity, attests }),
        1 => (0..5_u8).prop_map(Step::Leave),
        1 => (0..5_u8).prop_map(Step::Crash),
        2 => (0..5_u8, intent).prop_map(|(worker, intent)| Step::Want(worker, intent)),
        1 => Just(Step::Release),
        3 => Just(Step::Acknowledge),
        2 => (0..3000_u16).prop_map(Step::Pass),
        5 => Just(Step::Turn),
        1 => Just(Step::Term),
    ]
}

fn definition(wanted: &Wanted) -> Definition {
    let text = |is: bool, text: String| if is { text } else { String::new() };
    let other = (wanted.app + 1) % 3;
    let draft = Draft {
        name: format!("r{}", wanted.name),
        weight: Some(wanted.weight),
        labels: BTreeMap::from([("app".to_owned(), format!("a{}", wanted.app))]),
        require: wanted.zone.map(|z| format!("zone=z{z}")).unwrap_or_default(),
        apart: text(wanted.relation == 0, format!("app=a{other}")) + &text(wanted.relation == 1, format!("app=a{}", wanted.app)),
        together: text(wanted.relation == 2, format!("app=a{other}")) + &text(wanted.relation == 3, format!("app=a{}", wanted.app)),
        spread: text(wanted.relation == 4, "zone".to_owned()),
        prefer: if wanted.prefer { vec![serde_json::json!({ "selector": "zone=z0", "weight": 3 })] } else { Vec::new() },
        policy: wanted.policy.map(|p| p.as_str().to_owned()).unwrap_or_default(),
        rebalance: text(wanted.never, "never".to_owned()),
        ..Draft::default()
    };
    draft.check().expect("a valid definition")
}

fn registration(id: u8, zone: u8, capacity: Option<u64>) -> Registration {
    Registration {
        labels: BTreeMap::from([("zone".to_owned(), format!("z{zone}"))]),
        capacity,
        kinds: vec!["noop".to_owned()],
        origin: Origin { boot_id: "boot".to_owned(), guard: "guard".to_owned() },
        ..Registration::bare(WorkerId::new(&format!("w{id}")).expect("an id"), format!("127.0.0.1:{}", 9000 + u32::from(id)))
    }
}

fn happen(world: &mut World, step: &Step) {
    match step {
        Step::Put(wanted) => world.put(definition(wanted)),
        Step::Delete(name) => world.delete(&format!("r{name}")),
        Step::Join { worker, zone, capacity, attests } => {
            let mut registration = registration(*worker, *zone, *capacity);
            let known = world.cluster.worker(registration.id.as_str());
            registration.attests = known.and_then(|w| w.admission.as_ref()).map(|a| a.value.session).filter(|_| *attests);
            world.join(registration);
        }
        Step::Leave(id) => world.leave(&format!("w{id}")),
        Step::Crash(id) => world.crash(&format!("w{id}")),
        Step::Want(id, intent) => world.want(&format!("w{id}"), *intent),
        Step::Release => world.release_brake(),
        Step::Acknowledge => world.acknowledge(),
        Step::Pass(ms) => world.pass(std::time::Duration::from_millis(u64::from(*ms))),
        Step::Turn => drop(world.turn()),
        Step::Term => world.cluster.begin_term(world.now),
    }
}

/// The rule that holds for no resource of a settled cluster but for those of which the plan says so.
fn broken(cluster: &Cluster, name: &str) -> Option<Misfit> {
    let unit = cluster.unit(name)?;
    let (definition, holder) = (unit.definition()?, unit.holders.first()?);
    let worker = cluster.worker(holder.worker.as_str())?;
    if let Err(misfit) = fit::may_run(definition.needs(), &holder.worker, worker.registration()?) {
        return Some(misfit);
    }
    let relations = cluster.relations_anew();
    Related { base: Some(&relations), plan: &Relations::default() }.broken(definition, &holder.worker)
}

fn everything_is_as_ruled_or_explained(world: &World, undone: &[Undone]) {
    let of = |name: &evenkeel_model::ResourceName| {
        let subject = Subject::Resource(name.clone());
        undone.iter().filter(move |u| u.subject == subject).map(|u| &u.reason)
    };
    for (name, unit) in world.cluster.units_after(None) {
        let [holder] = unit.holders.as_slice() else {
            assert!(of(name).next().is_some(), "{name} is nowhere, without a reason");
            continue;
        };
        if let Some(misfit) = broken(&world.cluster, name.as_str()) {
            let told = of(name).any(|reason| matches!(reason, Pending::Stays { .. } | Pending::Drain { .. }));
            assert!(told, "{name} on {}: {misfit}", holder.worker);
        }
        if world.cluster.worker(holder.worker.as_str()).is_some_and(|w| w.is_draining()) {
            assert!(of(name).any(|reason| matches!(reason, Pending::Drain { .. })), "{name} is left on {}", holder.worker);
        }
    }
    for (id, worker) in world.cluster.workers().filter(|(_, w)| w.is_over_capacity()) {
        let told = undone.iter().any(|u| u.subject == Subject::Worker(id.clone()) && matches!(u.reason, Pending::Over { .. }));
        assert!(told, "{id} has {} without a word", worker.payload);
    }
}

fn ready_workers(count: u8, capacity: impl Fn(u8) -> Option<u64>) -> World {
    let mut world = World::default();
    for id in 0..count {
        world.join(registration(id, id % 3, capacity(id)));
    }
    drop(world.settle());
    world
}

fn plain(name: usize, weight: u64) -> Definition {
    let draft = Draft { name: format!("r{name:03}"), weight: Some(weight), ..Draft::default() };
    draft.check().expect("a valid definition")
}

/// How many resources each worker has.
fn numbers(world: &World) -> Vec<usize> {
    world.cluster.workers().map(|(_, w)| w.names.len()).collect()
}

/// Where each resource is at home.
fn homes(world: &World) -> BTreeMap<String, String> {
    world.cluster.units_after(None).filter_map(|(name, unit)| Some((name.to_string(), unit.home()?.to_string()))).collect()
}

fn differ(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> usize {
    before.iter().filter(|(name, home)| after.get(*name) != Some(home)).count()
}

/// The fewest resources that must change their worker so that payloads differ by no more than so much: by trying everything.
fn fewest(resources: &[(u64, usize, Option<usize>)], workers: usize, spread: u64) -> usize {
    fn go(rest: &[(u64, usize, Option<usize>)], payloads: &mut Vec<u64>, moved: usize, spread: u64, best: &mut usize) {
        if moved >= *best {
            return;
        }
        let Some(((weight, home, only), rest)) = rest.split_first() else {
            if payloads.iter().max().expect("some") - payloads.iter().min().expect("some") <= spread {
                *best = moved;
            }
            return;
        };
        for worker in 0..payloads.len() {
            if only.is_none_or(|only| only == worker % 3) {
                payloads[worker] += weight;
                go(rest, payloads, moved + usize::from(worker != *home), spread, best);
                payloads[worker] -= weight;
            }
        }
    }
    let mut best = resources.len() + 1;
    go(resources, &mut vec![0; workers], 0, spread, &mut best);
    best
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_whatever_happens_or_it_is_said_why_not(policy in any_policy(), steps in prop::collection::vec(step(), 1..100)) {
        let mut world = World::default();
        world.config.policy = policy;
        for step in &steps {
            happen(&mut world, step);
        }
        let last = world.settle();
        everything_is_as_ruled_or_explained(&world, &last.undone);
        prop_assert!(plan(&world.cluster, world.now, &world.config).actions.is_empty());
        // Asking changes nothing, and says of each what the planner says.
        for (name, unit) in world.cluster.units_after(None) {
            let Some(definition) = unit.definition() else { continue };
            let explained = explain(&world.cluster, definition, world.now, &world.config);
            let mut explainer = Explainer::new(definition.clone(), &world.config);
            while explainer.look(&world.cluster, world.now, 2) == Looked::AtSome {}
            assert_eq!(explainer.explain(), explained, "it is the same when it is made two workers at a time");
            if unit.holders.is_empty() {
                let eligible = explained.considered.iter().find(|c| matches!(c.verdict, Verdict::Eligible { .. }));
                prop_assert!(eligible.is_none(), "{name} is pending, and {eligible:?} could take it");
            }
        }
    }

    #[test]
    fn the_same_list_in_any_order_gives_the_same_plan(seed in any::<u64>(), policy in any_policy(), puts in prop::collection::vec(wanted(), 1..25)) {
        let mut dice = fastrand::Rng::with_seed(seed);
        let plan_of = |order: &[usize]| {
            let mut world = ready_workers(4, |id| Some(20 + u64::from(id)));
            world.config.policy = policy;
            for n in order {
                world.put(definition(&puts[*n]));
            }
            plan(&world.cluster, world.now, &world.config)
        };
        let mut last_of: BTreeMap<u8, usize> = BTreeMap::new();
        for (n, wanted) in puts.iter().enumerate() {
            last_of.insert(wanted.name, n);
        }
        let mut order: Vec<usize> = last_of.into_values().collect();
        let first = plan_of(&order);
        dice.shuffle(&mut order);
        prop_assert_eq!(first, plan_of(&order));
    }

    #[test]
    fn a_join_and_a_loss_move_the_fewest(workers in 2..4_u8, zones in prop::collection::vec(prop::option::weighted(0.3, 0..3_usize), 1..9)) {
        let mut world = ready_workers(workers, |_| None);
        for (n, zone) in zones.iter().enumerate() {
            let require = zone.filter(|z| *z < usize::from(workers)).map(|z| format!("zone=z{z}")).unwrap_or_default();
            world.put(Draft { require, ..plain(n, 1).to_draft() }.check().expect("valid"));
        }
        drop(world.settle());
        let before = homes(&world);
        world.join(registration(workers, workers % 3, None));
        drop(world.settle());
        let after = homes(&world);
        let index = |home: &str| home[1..].parse::<usize>().expect("a number");
        let resources: Vec<(u64, usize, Option<usize>)> = zones
            .iter()
            .enumerate()
            .map(|(n, zone)| (1, index(&before[&format!("r{n:03}")]), zone.filter(|z| *z < usize::from(workers))))
            .collect();
        let payloads = world.payloads();
        let spread = payloads.iter().max().expect("some") - payloads.iter().min().expect("some");
        prop_assert_eq!(differ(&before, &after), fewest(&resources, usize::from(workers) + 1, spread), "{:?} to {:?}", before, after);
        // And a loss moves the orphans alone, where rules do not make others give way to them.
        if zones.iter().all(Option::is_none) {
            let orphans = world.cluster.worker("w0").map_or(0, |w| w.names.len());
            let before = homes(&world);
            world.crash("w0");
            drop(world.settle());
            prop_assert_eq!(differ(&before, &homes(&world)), orphans);
        }
    }

    #[test]
    fn a_drained_worker_is_empty_or_says_why(weights in prop::collection::vec(1..5_u64, 1..20), pinned in 0..3_usize, capacity in 4..20_u64) {
        let mut world = ready_workers(3, |_| Some(capacity));
        for (n, weight) in weights.iter().enumerate() {
            let pin = if n < pinned { "w1".to_owned() } else { String::new() };
            world.put(Draft { pin, ..plain(n, *weight).to_draft() }.check().expect("valid"));
        }
        drop(world.settle());
        let before = homes(&world);
        let id = WorkerId::new("w1").expect("an id");
        let supposed = Supposition::Intent(id, Some(IntentKind::Drain { deadline_ms: None }));
        let foreseen = suppose(&world.cluster, world.now, &world.config, &supposed);
        world.want("w1", Some(IntentKind::Drain { deadline_ms: None }));
        let last = world.settle();
        let left = world.cluster.worker("w1").map_or(0, |w| w.names.len());
        let named = last.undone.iter().filter(|u| matches!(u.reason, Pending::Drain { .. })).count();
        prop_assert_eq!(left, named);
        let is_pinned = |name: &str| name[1..].parse::<usize>().expect("a number") < pinned;
        let of_w1 = |is: &dyn Fn(&str) -> bool| before.iter().filter(|(name, home)| *home == "w1" && is(name)).count();
        prop_assert!(left >= of_w1(&is_pinned));
        // What was foreseen is what came; what balance then did with the rest is another plan's.
        let homes_now = homes(&world);
        for action in &foreseen.actions {
            let evenkeel_model::Action::Stop { resource, worker, .. } = action else { panic!("{action:?}") };
            prop_assert_eq!((worker.as_str(), before[resource.as_str()].as_str()), ("w1", "w1"));
            prop_assert_ne!(homes_now.get(resource.as_str()).map(String::as_str), Some("w1"));
        }
        prop_assert!(foreseen.actions.len() + left <= of_w1(&|_| true));
        world.want("w1", None);
        drop(world.settle());
        prop_assert_eq!(world.cluster.agenda().draining.len(), 0);
    }

    #[test]
    fn turns_are_even_and_by_capacity(count in 0..40_usize, capacities in prop::collection::vec(1..5_u64, 2..5)) {
        let workers = u8::try_from(capacities.len()).expect("few");
        let mut world = ready_workers(workers, |_| None);
        world.config.policy = PolicyName::RoundRobin;
        world.config.moves_in_flight = 0;
        for n in 0..count {
            world.put(plain(n, 1 + n as u64 % 3));
            drop(world.turn());
        }
        let numbers_by_turn = numbers(&world);
        prop_assert!(numbers_by_turn.iter().max().expect("some") - numbers_by_turn.iter().min().expect("some") <= 1, "{:?}", numbers_by_turn);

        let mut world = ready_workers(workers, |id| Some(1000 * capacities[usize::from(id)]));
        world.config.policy = PolicyName::WeightedRoundRobin;
        world.config.moves_in_flight = 0;
        for n in 0..count {
            world.put(plain(n, 1 + n as u64 % 3));
            drop(world.turn());
        }
        // Everybody has its part, but for one.
        let all: u64 = capacities.iter().sum();
        for (number, capacity) in numbers(&world).into_iter().zip(&capacities) {
            let (number, part) = (number as u64 * all, count as u64 * capacity);
            prop_assert!(number.abs_diff(part) <= all, "{:?} of {:?}", numbers(&world), capacities);
        }
    }

    #[test]
    fn what_is_packed_leaves_one_worker_half_full(count in 0..40_usize) {
        let mut world = ready_workers(4, |_| Some(10));
        world.config.policy = PolicyName::Pack;
        for n in 0..count {
            world.put(plain(n, 1));
        }
        drop(world.settle());
        let half_full = world.payloads().into_iter().filter(|payload| *payload > 0 && *payload < 10).count();
        prop_assert!(half_full <= 1, "{:?}", world.payloads());
    }

    #[test]
    fn hashing_keeps_its_bound_and_its_places(weights in prop::collection::vec(1..4_u64, 1..60), lost in 0..5_u8) {
        let mut world = ready_workers(5, |_| None);
        world.config.policy = PolicyName::ConsistentHash;
        for (n, weight) in weights.iter().enumerate() {
            world.put(plain(n, *weight));
            drop(world.turn());
        }
        drop(world.settle());
        let (total, most) = (weights.iter().sum::<u64>(), *weights.iter().max().expect("some"));
        for payload in world.payloads() {
            prop_assert!(payload <= (total * 125).div_ceil(500) + most, "{:?}", world.payloads());
        }
        let before = homes(&world);
        // Long after all have joined.
        world.pass(std::time::Duration::from_secs(4000));
        let id = format!("w{lost}");
        world.crash(&id);
        drop(world.settle());
        let orphans = before.values().filter(|home| **home == id).count();
        prop_assert_eq!(differ(&before, &homes(&world)), orphans);
    }

    #[test]
    fn zones_are_even_whatever_they_have(count in 0..30_usize, more in 0..4_u8) {
        let mut world = World::default();
        // Two zones: one with one worker, one with several.
        world.join(registration(0, 0, None));
        for id in 1..=more + 1 {
            world.join(registration(id, 1, None));
        }
        drop(world.settle());
        for n in 0..count {
            world.put(Draft { spread: "zone".to_owned(), ..plain(n, 1).to_draft() }.check().expect("valid"));
        }
        drop(world.turn());
        drop(world.settle());
        let in_one = world.cluster.worker("w0").map_or(0, |w| w.names.len());
        prop_assert!(in_one.abs_diff(count - in_one) <= 1, "{in_one} of {count}");
        // The policy does the same with all that there is, and balance does not undo it.
        let mut world = World::default();
        world.config.policy = PolicyName::Spread;
        for id in 0..=more + 1 {
            world.join(registration(id, u8::from(id > 0), None));
        }
        drop(world.settle());
        for n in 0..count {
            world.put(plain(n, 1));
            if n % 3 == 0 {
                drop(world.settle());
            }
        }
        drop(world.settle());
        let in_one = world.cluster.worker("w0").map_or(0, |w| w.names.len());
        prop_assert!(in_one.abs_diff(count - in_one) <= 1, "{in_one} of {count}");
    }

    #[test]
    fn who_wants_its_own_kind_can_be_drained(count in 1..5_usize) {
        let mut world = ready_workers(2, |_| None);
        for n in 0..count {
            let labels = BTreeMap::from([("app".to_owned(), "pod".to_owned())]);
            world.put(Draft { labels, together: "app=pod".to_owned(), ..plain(n, 1).to_draft() }.check().expect("valid"));
        }
        drop(world.settle());
        let home = world.home("r000").expect("placed");
        world.want(&home, Some(IntentKind::Drain { deadline_ms: None }));
        let last = world.settle();
        prop_assert_eq!(last.undone, []);
        prop_assert!(homes(&world).values().all(|now| *now != home));
    }
}

/// Thousands of joins, losses, adds and deletes, with every total and every plan checked after each.
#[test]
fn a_long_churn_stays_sound() {
    for seed in 0..3 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut runner = proptest::test_runner::TestRunner::new_with_rng(
            ProptestConfig::default(),
            proptest::test_runner::TestRng::from_seed(
                proptest::test_runner::RngAlgorithm::ChaCha,
                &[u8::try_from(seed).expect("small"); 32],
            ),
        );
        let mut world = World::default();
        world.config.policy = PolicyName::ALL[dice.usize(..PolicyName::ALL.len())];
        for n in 0..3000 {
            let step = step().new_tree(&mut runner).expect("a step").current();
            happen(&mut world, &step);
            if n % 500 == 499 {
                let last = world.settle();
                everything_is_as_ruled_or_explained(&world, &last.undone);
            }
        }
    }
}

/// The readers of a plan: each is ready, open, and was not asked to leave.
#[test]
fn nothing_comes_to_a_cordoned_worker() {
    let mut world = ready_workers(3, |_| None);
    world.want("w1", Some(IntentKind::Cordon));
    for n in 0..9 {
        world.put(plain(n, 1));
    }
    drop(world.settle());
    assert_eq!(numbers(&world), [5, 0, 4]);
    world.want("w1", None);
    drop(world.settle());
    assert_eq!(numbers(&world), [3, 3, 3]);
    let standing: BTreeSet<Standing> = world.cluster.workers().map(|(_, w)| w.standing()).collect();
    assert_eq!(standing, BTreeSet::from([Standing::Ready]));
}

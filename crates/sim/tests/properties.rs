//! What must hold of every plan, whatever happens to the cluster.

use std::{collections::BTreeMap, time::Duration};

use evenkeel_model::{
    Action, Change, Definition, Draft, DriverTraits, Entry, FailedOn, Holder, Holds, IntentKind, Moment, Observed, Origin, Ownership,
    Pending, Record, Registration, Revision, Standing, StopReason, Subject, Undone, Unit, WorkerId, fit,
};
use evenkeel_planner::plan;
use evenkeel_sim::world::World;
use proptest::prelude::*;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Put {
        name: u8,
        weight: u64,
        zone: Option<u8>,
        pin: Option<u8>,
        version: u8,
        /// Of which of [`KINDS`], and whether it accepts an overlap.
        kind: u8,
        available: bool,
    },
    Delete(u8),
    Garble(u8),
    Join {
        worker: u8,
        zone: u8,
        guard: u8,
        capacity: Option<u64>,
        attests: bool,
        /// Which of [`drivers`] it has.
        drivers: u8,
    },
    Leave(u8),
    Crash(u8),
    Acknowledge,
    Pass(u16),
    Turn,
    Term,
    /// It fails where it runs, so often in a row; or (none) it cannot be started there.
    Fail(u8, Option<u8>),
    /// It ends by itself, and is not to be started again.
    Exit(u8),
    /// Its worker takes what was changed in place, or (false) cannot without a restart.
    Take(u8, bool),
    /// What is planned is reserved, and written or refused later.
    Decide,
    Ask(u8, Option<bool>),
    Finish(u8, bool),
}

/// What may be asked for; the first two have drivers everywhere.
const KINDS: [&str; 4] = ["", "noop", "object", "file"];

/// How a worker may hold these kinds: none does all of it well.
fn drivers(which: u8) -> BTreeMap<String, DriverTraits> {
    let of = |holds, updates| DriverTraits { holds, updates };
    let (object, file) = match which % 4 {
        0 => (of(Holds::Fenced, true), of(Holds::Loose, true)),
        1 => (of(Holds::Fenced, false), of(Holds::Loose, false)),
        2 => (of(Holds::Loose, true), of(Holds::Strict, true)),
        _ => (of(Holds::Strict, false), of(Holds::Fenced, false)),
    };
    [("noop", of(Holds::Strict, which % 4 != 1)), ("object", object), ("file", file)].map(|(kind, traits)| (kind.to_owned(), traits)).into()
}

fn step(plain: bool) -> impl Strategy<Value = Step> {
    let zone = if plain { Just(None).boxed() } else { prop::option::weighted(0.2, 0..3_u8).boxed() };
    let pin = if plain { Just(None).boxed() } else { prop::option::weighted(0.1, 0..5_u8).boxed() };
    let weight = if plain { Just(1).boxed() } else { (1..6_u64).boxed() };
    let capacity = if plain { Just(None).boxed() } else { prop::option::weighted(0.3, 0..30_u64).boxed() };
    // What has failed somewhere is kept from there, however uneven that leaves the rest.
    let times = prop::option::weighted(0.8, 0..20_u8);
    let fail = (0..40_u8, times).prop_map(|(name, times)| Step::Fail(name, times));
    let fail = if plain { Just(Step::Turn).boxed() } else { fail.boxed() };
    let kind = if plain { 0..2_u8 } else { 0..4_u8 };
    let put = (0..40_u8, weight, zone, pin, 0..3_u8, kind, prop::bool::weighted(0.3));
    let join = (0..5_u8, 0..3_u8, 0..2_u8, capacity, any::<bool>(), 0..4_u8);
    prop_oneof![
        6 => put.prop_map(|(name, weight, zone, pin, version, kind, available)| Step::Put { name, weight, zone, pin, version, kind, available }),
        2 => (0..40_u8).prop_map(Step::Delete),
        1 => (0..40_u8).prop_map(Step::Garble),
        3 => join.prop_map(|(worker, zone, guard, capacity, attests, drivers)| Step::Join { worker, zone, guard, capacity, attests, drivers }),
        1 => (0..5_u8).prop_map(Step::Leave),
        1 => (0..5_u8).prop_map(Step::Crash),
        3 => Just(Step::Acknowledge),
        2 => (0..3000_u16).prop_map(Step::Pass),
        5 => Just(Step::Turn),
        1 => Just(Step::Term),
        2 => (0..40_u8).prop_map(Step::Exit),
        3 => (0..40_u8, prop::bool::weighted(0.6)).prop_map(|(name, takes)| Step::Take(name, takes)),
        3 => fail,
    ]
}

/// The same, with decisions that take their time.
fn slow_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => step(false).prop_map(|step| if matches!(step, Step::Turn) { Step::Decide } else { step }),
        1 => (0..5_u8, any::<Option<bool>>()).prop_map(|(id, intent)| Step::Ask(id, intent)),
        4 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(which, is_taken)| Step::Finish(which, is_taken)),
    ]
}

fn definition(name: u8, weight: u64, zone: Option<u8>, pin: Option<u8>, version: u8) -> Definition {
    let draft = Draft {
        name: format!("r{name}"),
        weight: Some(weight),
        require: zone.map(|z| format!("zone=z{z}")).unwrap_or_default(),
        pin: pin.map(|p| format!("w{p}")).unwrap_or_default(),
        spec: Some(serde_json::json!({ "version": version })),
        ..Draft::default()
    };
    draft.check().expect("a valid definition")
}

fn registration(id: u8, zone: u8, guard: u8, capacity: Option<u64>) -> Registration {
    Registration {
        id: WorkerId::new(&format!("w{id}")).expect("an id"),
        address: format!("127.0.0.1:{}", 9000 + u32::from(id) + 10 * u32::from(guard)),
        http: String::new(),
        labels: BTreeMap::from([("zone".to_owned(), format!("z{zone}"))]),
        capacity,
        kinds: vec!["noop".to_owned()],
        version: String::new(),
        drivers: std::collections::BTreeMap::new(),
        containment: String::new(),
        authority_ms: None,
        origin: Origin { boot_id: "boot".to_owned(), guard: guard.to_string() },
        attests: None,
        tasks: false,
        leaving: false,
        released: false,
        refused: None,
    }
}

fn happen(world: &mut World, step: &Step) {
    match *step {
        Step::Put { name, weight, zone, pin, version, kind, available } => {
            let ownership = if available { Ownership::Available } else { Ownership::Exclusive };
            let kind = KINDS[usize::from(kind)].into();
            world.put(Definition { kind, ownership, ..definition(name, weight, zone, pin, version) });
        }
        Step::Delete(name) => world.delete(&format!("r{name}")),
        Step::Garble(name) => world.garble(&format!("r{name}")),
        Step::Join { worker, zone, guard, capacity, attests, drivers: which } => {
            let kinds = KINDS[1..].iter().map(ToString::to_string).collect();
            let mut registration = Registration { kinds, drivers: drivers(which), ..registration(worker, zone, guard, capacity) };
            let known = world.cluster.worker(registration.id.as_str());
            registration.attests = known.and_then(|w| w.admission.as_ref()).map(|a| a.value.session).filter(|_| attests);
            world.join(registration);
        }
        Step::Leave(id) => world.leave(&format!("w{id}")),
        Step::Crash(id) => world.crash(&format!("w{id}")),
        Step::Acknowledge => world.acknowledge(),
        Step::Pass(ms) => world.pass(Duration::from_millis(u64::from(ms))),
        Step::Turn => drop(world.turn()),
        Step::Term => world.cluster.begin_term(world.now),
        Step::Fail(name, Some(times)) => world.observe(&format!("r{name}"), Observed::Backoff, times.into(), "exit status 1"),
        Step::Fail(name, None) => world.observe(&format!("r{name}"), Observed::Failed, 1, "unknown here"),
        Step::Take(name, true) => world.take(&format!("r{name}")),
        Step::Take(name, false) => world.refuse_change(&format!("r{name}")),
        Step::Exit(name) => world.exit(&format!("r{name}"), "exit status 0"),
        Step::Decide => world.decide(),
        Step::Ask(id, intent) => {
            let drain = IntentKind::Drain { deadline_ms: None };
            world.ask(&format!("w{id}"), intent.map(|drains| if drains { drain } else { IntentKind::Cordon }));
        }
        Step::Finish(which, is_taken) => world.finish(usize::from(which), is_taken),
    }
}

/// Its worker is gone and held it loosely, so that only that worker could say that it has ended.
fn is_left_open(world: &World, unit: &Unit, holder: &Holder) -> bool {
    let is_gone = world.cluster.worker(holder.worker.as_str()).is_some_and(|w| w.standing() != Standing::Ready);
    let is_exclusive = unit.definition().is_none_or(|definition| definition.ownership == Ownership::Exclusive);
    is_gone && is_exclusive && holder.held.holds == Holds::Loose
}

/// Every resource is on a ready worker that may run it, or the plan says why not.
fn everything_is_placed_or_explained(world: &World, undone: &[Undone]) {
    for (name, unit) in world.cluster.units_after(None) {
        if let [holder] = unit.holders.as_slice()
            && is_left_open(world, unit, holder)
        {
            let told = |u: &Undone| matches!(&u.reason, Pending::Loose(worker) if *worker == holder.worker);
            assert!(undone.iter().any(told), "nobody says that {name} may still run on {}", holder.worker);
            continue;
        }
        let kept = |worker: &WorkerId| undone.iter().any(|u| matches!(&u.reason, Pending::Fenced(by) if by == worker));
        if let [holder] = unit.holders.as_slice()
            && holder.held.holds == Holds::Fenced
            && kept(&holder.worker)
        {
            let shapes = || world.cluster.rankings().shapes().map(|(_, shaped)| &shaped.shape);
            let kind = unit.definition().map(|definition| definition.kind.to_string()).unwrap_or_default();
            let is_fenced = |shape: &evenkeel_model::Shape| shape.drivers.get(&kind).is_some_and(|driver| driver.holds == Holds::Fenced);
            assert!(world.cluster.worker(holder.worker.as_str()).is_some_and(|w| w.standing() != Standing::Ready), "{name}");
            let takes = |shape: &evenkeel_model::Shape| {
                let needs = unit.definition().expect("wanted").needs();
                is_fenced(shape) && fit::suits(needs, &shape.kinds, &shape.drivers, &shape.labels).is_ok() && shape.capacity.is_none()
            };
            let is_free = unit.definition().is_some_and(|d| d.pin.is_none() && !d.rules().is_relative());
            assert!(!is_free || !shapes().any(takes), "{name} waits for a fenced worker, and there is one");
            continue;
        }
        let Some(record) = &unit.record else {
            assert!(unit.unreadable.is_some(), "{name}: what is settled is wanted, or cannot be read");
            continue;
        };
        let definition = &record.value.definition;
        match unit.holders.as_slice() {
            [] if unit.is_finished() => {}
            _ if unit.is_finished() => panic!("{name} has finished, and is assigned all the same"),
            [] => assert!(undone.iter().any(|u| u.subject == Subject::Resource(name.clone())), "{name} is nowhere, without a reason"),
            [holder] => {
                let at = world.cluster.worker(holder.worker.as_str()).expect("its worker is known");
                assert_eq!(at.standing(), Standing::Ready, "{name}");
                assert_eq!(fit::may_run(definition.needs(), &holder.worker, at.registration().expect("registered")), Ok(()), "{name}");
                assert!(holder.held.has_work_of(definition), "{name}");
                assert!(!holder.is_changing() && !holder.needs_restart(), "{name} does not run what is wanted");
                assert!(definition.ownership == Ownership::Available || holder.held.holds != Holds::Loose, "{name} is not held well");
            }
            _ => panic!("{name} has two owners"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_converges_and_then_is_calm(steps in prop::collection::vec(step(false), 1..120)) {
        let mut world = World::default();
        for step in &steps {
            happen(&mut world, step);
        }
        let last = world.settle();
        everything_is_placed_or_explained(&world, &last.undone);
        prop_assert!(plan(&world.cluster, world.now, &world.config).actions.is_empty());
    }

    /// Decisions are reserved, come to their ends in any order, fail at random or because somebody else was faster, and leave nothing behind. No plan
    /// touches what is under way, no total is wrong in between, and what comes of it all is as if each had been written at once.
    #[test]
    fn what_is_reserved_is_counted_once_and_leaves_nothing_behind(steps in prop::collection::vec(slow_step(), 1..150)) {
        let mut world = World::default();
        for step in &steps {
            happen(&mut world, step);
        }
        world.finish_all();
        for id in 0..5 {
            world.want(&format!("w{id}"), None);
        }
        let last = world.settle();
        everything_is_placed_or_explained(&world, &last.undone);
        prop_assert!(plan(&world.cluster, world.now, &world.config).actions.is_empty());
    }

    #[test]
    fn unit_weights_end_even(steps in prop::collection::vec(step(true), 1..120)) {
        let mut world = World::default();
        for step in &steps {
            happen(&mut world, step);
        }
        drop(world.settle());
        let payloads = world.payloads();
        if let (Some(most), Some(least)) = (payloads.iter().max(), payloads.iter().min()) {
            prop_assert!(most - least <= 1, "{payloads:?}");
        }
    }

    #[test]
    fn the_same_cluster_gives_the_same_plan(steps in prop::collection::vec(step(false), 1..60)) {
        let mut world = World::default();
        for step in &steps {
            happen(&mut world, step);
        }
        let copy = world.cluster.clone();
        prop_assert_eq!(plan(&world.cluster, world.now, &world.config), plan(&copy, world.now, &world.config));
    }

    #[test]
    fn loss_moves_orphans_only_and_join_moves_the_fewest(workers in 2..6_u8, resources in 0..40_u8, lost in 0..6_u8) {
        let mut world = World::default();
        for id in 0..workers {
            world.join(registration(id, 0, 0, None));
        }
        drop(world.settle());
        for name in 0..resources {
            world.put(definition(name, 1, None, None, 0));
        }
        drop(world.settle());
        let lost = lost % workers;
        let orphans = world.cluster.worker(&format!("w{lost}")).map_or(0, |w| w.names.len());
        world.moves = 0;
        world.crash(&format!("w{lost}"));
        drop(world.settle());
        prop_assert_eq!(world.moves, orphans);
        world.moves = 0;
        world.join(registration(lost, 0, 1, None));
        drop(world.settle());
        prop_assert_eq!(world.moves, usize::from(resources / workers));
    }

    #[test]
    fn heavy_ones_are_spread_by_weight(weights in prop::collection::vec(1..9_u64, 1..30)) {
        let mut world = World::default();
        for id in 0..3 {
            world.join(registration(id, 0, 0, None));
        }
        drop(world.settle());
        for (name, weight) in weights.iter().enumerate() {
            world.put(definition(u8::try_from(name).expect("few"), *weight, None, None, 0));
            drop(world.settle());
        }
        let payloads: Vec<u64> = world.cluster.workers().map(|(_, w)| w.payload).collect();
        let spread = payloads.iter().max().expect("three") - payloads.iter().min().expect("three");
        // The least loaded worker always takes the next one, so the spread never exceeds the heaviest.
        prop_assert!(spread <= *weights.iter().max().expect("some"), "{payloads:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each of them fails wherever it runs. It is on each worker once at the most, and then stays, and all is calm.
    #[test]
    fn what_fails_everywhere_comes_to_rest(workers in 1..6_u8, resources in 1..30_u8, terms in any::<bool>()) {
        let mut world = World::default();
        for id in 0..workers {
            world.join(registration(id, 0, 0, None));
        }
        drop(world.settle());
        for name in 0..resources {
            world.put(definition(name, 1, None, None, 0));
        }
        drop(world.settle());
        // Balance has its own reasons.
        world.config.moves_in_flight = 0;
        let mut been: BTreeMap<u8, Vec<String>> = (0..resources).map(|name| (name, vec![world.home(&format!("r{name}")).expect("placed")])).collect();
        let mut still = 0;
        while still < 4 {
            prop_assert!(world.now.0 < Duration::from_secs(3600), "it goes on and on");
            let before = world.moves;
            for name in 0..resources {
                world.observe(&format!("r{name}"), Observed::Backoff, 12, "exit status 1");
            }
            let plan = world.turn();
            let sent = plan.actions.iter().filter(|action| matches!(action, Action::Stop { reason: StopReason::Failing, .. })).count();
            prop_assert!(sent <= 16, "{sent} are sent at once");
            world.acknowledge();
            drop(world.turn());
            for (name, been) in &mut been {
                let home = world.home(&format!("r{name}")).expect("placed");
                if been.last() != Some(&home) {
                    prop_assert!(!been.contains(&home), "r{name} has failed on {home} before: {been:?}");
                    been.push(home);
                }
            }
            if terms {
                world.cluster.begin_term(world.now);
            }
            still = if world.moves == before { still + 1 } else { 0 };
            world.pass(Duration::from_secs(5));
        }
        for (name, been) in been {
            prop_assert_eq!(been.len(), usize::from(workers), "r{} has not been everywhere", name);
        }
    }

    /// What has finished is never run again, whatever happens to workers and leaders, and weighs nothing.
    #[test]
    fn what_has_finished_stays_finished(steps in prop::collection::vec(step(true), 1..120)) {
        let mut world = World::default();
        world.join(registration(0, 0, 0, None));
        world.join(registration(1, 0, 0, None));
        drop(world.settle());
        let job = definition(77, 1, None, None, 0);
        world.put(job.clone());
        drop(world.turn());
        world.exit("r77", "exit status 0");
        drop(world.turn());
        for step in &steps {
            happen(&mut world, step);
            let unit = world.cluster.unit("r77").expect("it is wanted");
            prop_assert!(unit.is_finished() && unit.home().is_none(), "{step:?}");
            prop_assert!(unit.holders.iter().all(|holder| !holder.held.runs()), "{step:?}");
        }
        world.put(job);
        drop(world.settle());
        prop_assert!(world.cluster.unit("r77").is_some_and(|unit| unit.is_finished() && unit.holders.is_empty()));
    }
}

#[test]
fn a_lost_worker_keeps_its_resources_until_its_authority_has_ended() {
    let mut world = World::default();
    world.join(registration(0, 0, 0, None));
    world.join(registration(1, 0, 0, None));
    drop(world.settle());
    world.put(definition(0, 1, None, None, 0));
    drop(world.settle());
    let owner = world.home("r0").expect("placed");
    world.crash(&owner);
    let lost_at = world.now;
    world.pass(world.config.wait - Duration::from_millis(1));
    let waiting = world.turn();
    assert_eq!(waiting.actions, []);
    assert_eq!(waiting.wake, Some(lost_at.after(world.config.wait)));
    assert!(waiting.undone.iter().any(|u| matches!(u.reason, Pending::Authority { .. })));
    // Another leader has not seen how long the session has been gone.
    world.cluster.begin_term(world.now);
    world.pass(world.config.wait - Duration::from_millis(1));
    assert_eq!(world.turn().actions, []);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.turn().actions.len(), 1);
    assert_ne!(world.home("r0"), Some(owner));
}

/// Where a resource has failed stands in etcd, and when it last moved for that does not.
#[test]
fn a_leader_that_has_seen_no_move_counts_from_when_it_began_to_lead() {
    let mut world = World::default();
    world.join(registration(0, 0, 0, None));
    world.join(registration(1, 0, 0, None));
    drop(world.settle());
    world.put(definition(0, 1, None, None, 0));
    drop(world.settle());
    let record = world.cluster.unit("r0").and_then(|unit| unit.record.as_deref()).expect("it is wanted").value.clone();
    let failed = FailedOn::with(None, record.definition.hash(), &WorkerId::new("w1").expect("id"));
    let record = Record { failed: Some(Box::new(failed)), ..record };
    world.apply(Change::at(Revision(1000), Entry::Resource(record.definition.name.clone(), Some(record))));
    world.pass(Duration::from_secs(7200));
    world.cluster.begin_term(world.now);
    world.observe("r0", Observed::Backoff, 12, "exit status 1");
    assert_eq!(world.turn().actions, []);
    world.pass(Duration::from_secs(3599));
    assert_eq!(world.turn().actions, []);
    world.pass(Duration::from_secs(1));
    assert!(matches!(world.turn().actions.as_slice(), [Action::Stop { reason: StopReason::Failing, .. }]));
}

#[test]
fn a_session_that_attests_keeps_everything() {
    let mut world = World::default();
    world.join(registration(0, 0, 0, None));
    world.join(registration(1, 0, 0, None));
    drop(world.settle());
    for name in 0..4 {
        world.put(definition(name, 1, None, None, 0));
    }
    drop(world.settle());
    let session = world.cluster.worker("w0").and_then(|w| w.admission.as_ref()).map(|a| a.value.session);
    let again = Registration { attests: session, ..registration(0, 0, 0, None) };
    world.join(again.clone());
    assert_eq!(world.turn().actions.len(), 1, "admitted, and nothing else");
    assert_eq!(world.payloads(), [2, 2]);
    // Another guard's word says nothing of what the admitted session left behind.
    let session = world.cluster.worker("w0").and_then(|w| w.admission.as_ref()).map(|a| a.value.session);
    let origin = Origin { guard: "another".to_owned(), ..again.origin.clone() };
    world.join(Registration { attests: session, origin, ..again });
    assert_eq!(world.turn().actions, []);
}

/// Readers see what is committed; the planner counts what is decided, and plans nothing for it.
#[test]
fn what_is_decided_counts_for_the_planner_alone() {
    let mut world = World::default();
    world.join(registration(0, 0, 0, None));
    world.join(registration(1, 0, 0, None));
    drop(world.settle());
    world.put(definition(0, 4, None, None, 0));
    world.decide();
    let at = |world: &World| world.cluster.workers().map(|(_, w)| (w.payload, w.load)).collect::<Vec<_>>();
    assert_eq!(at(&world), [(0, 4), (0, 0)]);
    assert_eq!(world.home("r0"), None, "it is nowhere yet");
    assert_eq!(plan(&world.cluster, world.now, &world.config).actions, [], "it is under way");
    // The next one goes to the other worker.
    world.put(definition(1, 1, None, None, 0));
    world.decide();
    assert_eq!(at(&world), [(0, 4), (0, 1)]);
    world.finish(0, false);
    assert_eq!(at(&world), [(0, 0), (0, 1)], "nothing has come of it, and nothing is left of it");
    world.finish(0, true);
    assert_eq!(at(&world), [(0, 0), (1, 1)]);
    // From the moment on that a worker is cordoned nothing is placed there, and nobody sees a cordon before there is one.
    world.ask("w0", Some(IntentKind::Cordon));
    assert_eq!(world.cluster.worker("w0").and_then(|w| w.intent), None);
    world.decide();
    assert_eq!(at(&world), [(0, 0), (1, 5)]);
    world.finish_all();
    assert_eq!(at(&world), [(0, 0), (5, 5)]);
}

#[test]
fn an_available_resource_moves_at_once() {
    let mut world = World::default();
    world.join(registration(0, 0, 0, None));
    world.join(registration(1, 0, 0, None));
    drop(world.settle());
    let draft = Draft { name: "r0".to_owned(), ownership: "available".to_owned(), ..Draft::default() };
    world.put(draft.check().expect("valid"));
    drop(world.settle());
    let owner = world.home("r0").expect("placed");
    world.crash(&owner);
    drop(world.turn());
    assert_ne!(world.home("r0").expect("placed"), owner);
    assert_eq!(world.now, Moment::default());
}

#[test]
fn a_worker_is_waited_for_as_long_as_its_own_authority_asks_for_whoever_leads() {
    let mut world = World::default();
    world.join(Registration { authority_ms: Some(10_000), ..registration(0, 0, 0, None) });
    drop(world.settle());
    world.put(definition(0, 1, None, None, 0));
    drop(world.settle());
    world.join(registration(1, 0, 0, None));
    let owner = world.home("r0").expect("placed");
    world.crash(&owner);
    // The registration is gone. A leader that is told a shorter wait reads the span from the admission.
    world.cluster.begin_term(world.now);
    let until = world.now.after(Duration::from_micros(10_202_021));
    world.pass(Duration::from_millis(10_202));
    let waiting = world.turn();
    let moves = |plan: &evenkeel_model::Plan| {
        plan.actions.iter().any(|action| matches!(action, evenkeel_model::Action::Move { .. } | evenkeel_model::Action::End { .. }))
    };
    assert!(!moves(&waiting), "{:?}", waiting.actions);
    assert!(waiting.wake.is_some_and(|wake| wake <= until), "{:?}", waiting.wake);
    world.pass(Duration::from_millis(1));
    assert!(moves(&world.turn()));
}

/// Two workers that take changes, and `resources` of kind noop on them.
fn taking(resources: u8) -> World {
    let mut world = World::default();
    for id in 0..2 {
        let kinds = vec!["noop".to_owned()];
        world.join(Registration {
            kinds,
            drivers: BTreeMap::from([("noop".to_owned(), drivers(0)["noop"])]),
            ..registration(id, 0, 0, None)
        });
    }
    drop(world.settle());
    for name in 0..resources {
        world.put(noop(name, 0));
    }
    drop(world.settle());
    world
}

fn noop(name: u8, version: u8) -> Definition {
    Definition { kind: "noop".into(), ..definition(name, 1, None, None, version) }
}

#[test]
fn a_change_in_place_is_planned_once_and_keeps_its_epoch() {
    let mut world = taking(1);
    let epoch = |world: &World| world.cluster.unit("r0").map(|unit| unit.holders[0].held.epoch);
    let before = epoch(&world);
    world.put(noop(0, 1));
    assert!(matches!(world.turn().actions.as_slice(), [Action::Update { .. }]));
    assert_eq!(world.turn().actions, [], "it is not taken yet, and nothing is left to say");
    assert!(!world.cluster.unit("r0").expect("it is there").holders[0].is_changing(), "its worker has said nothing of it");
    world.observe("r0", Observed::Running, 0, "");
    assert!(world.cluster.unit("r0").expect("it is there").holders[0].is_changing());
    assert_eq!(world.turn().actions, []);
    world.take("r0");
    assert!(!world.cluster.unit("r0").expect("it is there").holders[0].is_changing());
    assert_eq!(world.turn().actions, []);
    assert_eq!(epoch(&world), before);
}

/// How a run under the spec of before has ended says nothing of the work that is wanted now.
#[test]
fn what_ends_before_it_has_taken_a_change_has_not_finished_and_is_run_anew() {
    let mut world = taking(1);
    world.put(noop(0, 1));
    drop(world.turn());
    world.exit("r0", "exit status 0");
    assert_eq!(world.turn().actions, [], "its worker has not said yet what becomes of the change");
    world.take("r0");
    let is_stop =
        |action: &Action| matches!(action, Action::Stop { reason: StopReason::Changed, worker, to: Some(to), .. } if worker == to);
    assert!(matches!(world.turn().actions.as_slice(), [action] if is_stop(action)));
    drop(world.settle());
    let unit = world.cluster.unit("r0").expect("it is wanted");
    assert!(!unit.is_finished() && unit.holders[0].held.runs(), "{unit:?}");
    // One that ends with what is wanted now has finished.
    world.exit("r0", "exit status 0");
    drop(world.settle());
    assert!(world.cluster.unit("r0").is_some_and(|unit| unit.is_finished()));
}

/// What fails under the spec of before may be just what the change mends.
#[test]
fn what_fails_before_it_has_taken_a_change_is_not_moved_for_it() {
    let mut world = taking(1);
    world.put(noop(0, 1));
    drop(world.turn());
    world.observe("r0", Observed::Backoff, 12, "exit status 1");
    assert_eq!(world.turn().actions, []);
    world.take("r0");
    assert!(matches!(world.turn().actions.as_slice(), [Action::Stop { reason: StopReason::Failing, .. }]));
}

/// Who asks for a restart waits for its turn, whatever else is on its way for a change.
#[test]
fn no_more_are_restarted_at_a_time_than_may_recover() {
    let mut world = taking(40);
    world.config.recovery_in_flight = 4;
    for name in 0..40 {
        world.put(noop(name, 1));
    }
    drop(world.turn());
    for name in 0..40 {
        world.refuse_change(&format!("r{name}"));
    }
    let mut rounds = 0;
    while !world.cluster.agenda().attention.is_empty() || !world.cluster.agenda().stopping.is_empty() {
        let plan = world.turn();
        let stopping = world.cluster.agenda().stopping.len();
        assert!(stopping <= 4, "{stopping} are on their way");
        if !world.cluster.agenda().attention.is_empty() {
            assert!(plan.undone.iter().any(|u| u.reason == Pending::InFlight(4)), "it is said why the others wait");
        }
        world.acknowledge();
        rounds += 1;
        assert!(rounds < 100, "it does not end");
    }
    let last = world.settle();
    everything_is_placed_or_explained(&world, &last.undone);
}

/// What only a lost worker could end keeps nobody from anything else.
#[test]
fn what_was_held_loosely_stays_and_all_else_goes_on() {
    let mut world = World::default();
    let with = |id: u8| Registration {
        kinds: KINDS[1..].iter().map(ToString::to_string).collect(),
        drivers: drivers(0),
        ..registration(id, 0, 0, None)
    };
    for id in 0..3 {
        world.join(with(id));
    }
    drop(world.settle());
    let file = |ownership| Definition {
        kind: "file".into(),
        ownership,
        pin: Some(WorkerId::new("w0").expect("id")),
        ..definition(0, 1, None, None, 0)
    };
    world.put(file(Ownership::Available));
    for name in 1..7 {
        world.put(definition(name, 1, None, None, 0));
    }
    drop(world.settle());
    world.crash("w0");
    // Now nobody but w0 can say that it has ended.
    world.put(Definition { pin: None, ..file(Ownership::Exclusive) });
    let last = world.settle();
    everything_is_placed_or_explained(&world, &last.undone);
    assert_eq!(world.home("r0").as_deref(), Some("w0"));
    let pending = evenkeel_planner::why_pending(&world.cluster, "r0", world.now, &world.config);
    assert_eq!(pending, Some(Pending::Loose(WorkerId::new("w0").expect("id"))));
    world.join(with(3));
    drop(world.settle());
    assert_eq!(world.payloads(), [2, 2, 2], "balance is struck all the same");
    assert_eq!(world.cluster.worker("w0").map(|w| w.standing()), Some(Standing::Lost), "it is not forgotten");
    // It may overlap after all.
    world.put(Definition { pin: None, ..file(Ownership::Available) });
    drop(world.settle());
    assert_ne!(world.home("r0").as_deref(), Some("w0"));
    assert!(world.cluster.worker("w0").is_none());
}

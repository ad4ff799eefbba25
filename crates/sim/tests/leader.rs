//! One master under a glass: the real control loop over the model of etcd, on virtual time. The test plays everybody else: callers,
//! workers, somebody with etcdctl. Each test is a rule of leadership that runs from seeds reach only in rare orders.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use evenkeel_master::{
    MasterConfig,
    engine::{Engine, Handle, IdTaken, Leadership, PutMode, Request},
};
use evenkeel_model::{Draft, MasterId, MasterRecord, Registration, WorkerId};
use evenkeel_sim::{
    etcd::{Direction, Etcd, Link, Settings},
    fleet::{clock::MachineClock, dice::generator},
};
use evenkeel_store::{Client, KeyRange, Op, Revision, Txn, keys::Keys};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(5);

/// A master, and what surrounds it.
struct Glass {
    etcd: Etcd,
    /// The master's network.
    link: Link,
    /// Everybody else's hand.
    hand: Client,
    handle: Handle,
    /// It runs until this is dropped.
    _stop: oneshot::Sender<()>,
}

impl Glass {
    fn start(seed: u64) -> Self {
        let etcd = Etcd::start(Settings { members: 1, slow_one_in: 0, ..Settings::default() }, generator(seed, "etcd"));
        let (link, hand) = (etcd.link("master"), etcd.link("hand").client(SECOND));
        let id = MasterId::new("master-1").unwrap();
        let config = MasterConfig::new(id.clone(), Vec::new());
        let record = MasterRecord { id, address: String::new(), http: String::new(), version: String::new(), leads_since: 0 };
        let engine = Engine::new(Arc::new(config), link.client(SECOND), record, Arc::new(MachineClock::boot(0)));
        let handle = engine.handle();
        let (stop, stops) = oneshot::channel();
        tokio::spawn(engine.run(stops));
        Self { etcd, link, hand, handle, _stop: stop }
    }

    fn leads(&self) -> bool {
        self.handle.leadership() == Leadership::Mine
    }

    /// Waits for something, which must come within the time.
    async fn within<T>(&self, span: Duration, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(waited < span, "not within {span:?}: {what}");
            sleep(TICK).await;
            waited += TICK;
        }
    }

    /// The keys of those who lead or would.
    fn candidacies(&self) -> Vec<(Vec<u8>, Revision)> {
        self.etcd.peek(|store| store.iter(&KeyRange::prefix("/election/")).map(|kv| (kv.key.clone(), kv.created)).collect())
    }

    async fn delete(&self, key: Vec<u8>) {
        self.hand.txn(Txn { then: vec![Op::delete(key)], ..Txn::default() }, SECOND).await.unwrap();
    }

    async fn add(&self, name: &str) -> bool {
        add(&self.handle, name).await
    }

    async fn register(&self, worker: &str) {
        let id = WorkerId::new(worker).unwrap();
        let registration = Registration { kinds: vec!["sim".into()], ..Registration::bare(id.clone(), format!("{worker}:1")) };
        self.hand.put(Keys::new("").worker(&id), serde_json::to_vec(&registration).unwrap()).await.unwrap();
    }
}

/// Whether an add of this name was acknowledged.
async fn add(handle: &Handle, name: &str) -> bool {
    let definition = Box::new(Draft { name: name.to_owned(), kind: "sim".to_owned(), ..Draft::default() }.check().unwrap());
    let (reply, answer) = oneshot::channel();
    handle.ask(Request::put(definition, PutMode::Add, "".into(), reply.into())).unwrap();
    matches!(answer.await, Ok(Ok(_)))
}

/// The lease lives on, so that only a write, or a look at the key, can tell.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_key_was_taken_away_steps_down_and_may_lead_again() {
    let glass = Glass::start(1);
    glass.within(10 * SECOND, "leads", |glass| glass.leads().then_some(())).await;
    assert!(glass.add("a").await);
    let [(key, fence)] = glass.candidacies().try_into().unwrap();
    glass.delete(key).await;
    assert!(!glass.add("b").await, "nothing is written without the fence");
    let leads_anew = |glass: &Glass| (glass.leads() && glass.candidacies().iter().any(|(_, created)| *created > fence)).then_some(());
    glass.within(5 * SECOND, "leads again, by another key", leads_anew).await;
    assert!(glass.add("b").await);
}

#[tokio::test(start_paused = true)]
async fn who_loses_the_candidacy_while_taking_office_does_not_take_it() {
    let glass = Glass::start(1);
    // Every message is so slow that the candidacy is gone before the transaction that would take office comes to etcd.
    glass.link.delay(SECOND / 5);
    let deleted = glass.within(10 * SECOND, "campaigns", |glass| glass.candidacies().pop()).await;
    glass.delete(deleted.0).await;
    for _ in 0..2_000 {
        let is_known = glass.candidacies().iter().any(|(_, created)| *created > deleted.1);
        assert!(!glass.leads() || is_known, "it believes that it leads by a key that is gone");
        sleep(TICK).await;
    }
    assert!(glass.leads(), "by the next key");
}

/// Adds resources one after the other for a while, and returns those that were acknowledged.
async fn add_for(handle: Handle, caller: usize, span: Duration) -> Vec<String> {
    let end = Instant::now() + span;
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if Instant::now() >= end {
            break;
        }
        let name = format!("{caller}-{number}");
        if add(&handle, &name).await {
            acknowledged.push(name);
        }
    }
    acknowledged
}

/// The watch begins anew while many writes are under way, and the list that it begins with lacks some of them. A Cluster that believes it
/// does not learn of these any more: their events count as known.
#[tokio::test(start_paused = true)]
async fn a_list_that_lacks_own_writes_is_not_believed() {
    let mut lists = 0;
    for seed in 0..4 {
        let glass = Glass::start(seed);
        glass.within(10 * SECOND, "leads", |glass| glass.leads().then_some(())).await;
        glass.register("worker-1").await;
        glass.register("worker-2").await;
        glass.link.delay(Duration::from_millis(10 + seed));
        let callers: Vec<_> = (0..16).map(|caller| tokio::spawn(add_for(glass.handle.clone(), caller, 20 * SECOND))).collect();
        for _ in 0..8 {
            sleep(Duration::from_millis(700 + 13 * seed)).await;
            // Connections break, and what came meanwhile is forgotten before the watch can ask for it. One write comes from elsewhere, so that
            // there is something to forget.
            glass.link.cut(Direction::Both);
            glass.hand.put("/elsewhere", "").await.unwrap();
            sleep(Duration::from_millis(1_300)).await;
            let now = glass.etcd.peek(|store| store.revision());
            lists += usize::from(glass.etcd.compact(now).is_ok());
            glass.link.heal();
        }
        let mut acknowledged = Vec::new();
        for caller in callers {
            acknowledged.extend(caller.await.unwrap());
        }
        assert!(acknowledged.len() > 100, "seed {seed}: {}", acknowledged.len());
        sleep(30 * SECOND).await;
        let assigned = glass.etcd.peek(|store| {
            let range = KeyRange::prefix("/assignments/");
            let keys = store.iter(&range).map(|kv| String::from_utf8_lossy(&kv.key).into_owned());
            keys.map(|key| key.rsplit('/').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        });
        let times = |name: &String| assigned.iter().filter(|assigned| *assigned == name).count();
        let wrong: Vec<&String> = acknowledged.iter().filter(|name| times(name) != 1).collect();
        assert_eq!(wrong, Vec::<&String>::new(), "seed {seed}: acknowledged, and not assigned once");
    }
    assert!(lists > 16, "watches began anew: {lists}");
}

/// One more master on an etcd: how it ends, if it does, and the way to ask it.
fn one_more(etcd: &Etcd, link: &str, address: &str) -> (tokio::task::JoinHandle<Result<(), IdTaken>>, Handle, oneshot::Sender<()>) {
    master("master-1", &etcd.link(link), address)
}

fn master(id: &str, link: &Link, address: &str) -> (tokio::task::JoinHandle<Result<(), IdTaken>>, Handle, oneshot::Sender<()>) {
    let id = MasterId::new(id).unwrap();
    let config = MasterConfig::new(id.clone(), Vec::new());
    let record = MasterRecord { id, address: address.to_owned(), http: String::new(), version: String::new(), leads_since: 0 };
    let engine = Engine::new(Arc::new(config), link.client(SECOND), record, Arc::new(MachineClock::boot(0)));
    let handle = engine.handle();
    let (stop, stops) = oneshot::channel();
    (tokio::spawn(engine.run(stops)), handle, stop)
}

/// Two masters of one id were taken in silence, and looked like one.
#[tokio::test(start_paused = true)]
async fn a_second_master_of_the_same_id_is_refused() {
    let etcd = Etcd::start(Settings { members: 1, slow_one_in: 0, ..Settings::default() }, generator(1, "etcd"));
    let (first, handle, _stop) = one_more(&etcd, "first", "one:1");
    while handle.leadership() != Leadership::Mine {
        sleep(TICK).await;
    }
    let (second, _, _stop_second) = one_more(&etcd, "second", "two:1");
    let taken = timeout(60 * SECOND, second).await.expect("it ends").unwrap().unwrap_err();
    assert_eq!((taken.id.as_str(), taken.address.as_str()), ("master-1", "one:1"));
    assert!(!first.is_finished() && handle.leadership() == Leadership::Mine, "the first goes on");
    assert!(add(&handle, "a").await);
    let candidates = etcd.peek(|store| store.iter(&KeyRange::prefix("/election/")).count());
    assert_eq!(candidates, 1, "the second has left nothing behind");
}

#[tokio::test(start_paused = true)]
async fn of_two_masters_of_one_id_that_start_together_one_stays() {
    for seed in 1..6 {
        let etcd = Etcd::start(Settings { members: 1, ..Settings::default() }, generator(seed, "etcd"));
        let (one, one_handle, _stop_one) = one_more(&etcd, "one", "one:1");
        let (two, two_handle, _stop_two) = one_more(&etcd, "two", "two:1");
        let mut waited = Duration::ZERO;
        while !one.is_finished() && !two.is_finished() {
            assert!(waited < 60 * SECOND, "seed {seed}: both stay");
            sleep(TICK).await;
            waited += TICK;
        }
        sleep(20 * SECOND).await;
        assert_ne!(one.is_finished(), two.is_finished(), "seed {seed}");
        let stays = if one.is_finished() { two_handle } else { one_handle };
        assert_eq!(stays.leadership(), Leadership::Mine, "seed {seed}");
    }
}

/// One that was killed keeps its id until its lease ends, and no longer.
#[tokio::test(start_paused = true)]
async fn a_master_that_was_killed_is_followed_by_one_of_the_same_id() {
    let etcd = Etcd::start(Settings { members: 1, slow_one_in: 0, ..Settings::default() }, generator(1, "etcd"));
    let (killed, handle, _stop) = one_more(&etcd, "first", "one:1");
    while handle.leadership() != Leadership::Mine {
        sleep(TICK).await;
    }
    killed.abort();
    let (next, handle, _stop_next) = one_more(&etcd, "next", "one:1");
    let mut waited = Duration::ZERO;
    while handle.leadership() != Leadership::Mine {
        assert!(waited < 6 * SECOND && !next.is_finished(), "it leads when the lease of the one before has ended");
        sleep(TICK).await;
        waited += TICK;
    }
}

/// One that was killed with a longer lease than that of the next was taken for one that lives.
#[tokio::test(start_paused = true)]
async fn a_longer_lease_of_the_one_before_is_waited_for() {
    let etcd = Etcd::start(Settings { members: 1, slow_one_in: 0, ..Settings::default() }, generator(1, "etcd"));
    let id = MasterId::new("master-1").unwrap();
    let config = MasterConfig { lease: 60 * SECOND, ..MasterConfig::new(id.clone(), Vec::new()) };
    let record = MasterRecord { id, address: "one:1".to_owned(), http: String::new(), version: String::new(), leads_since: 0 };
    let engine = Engine::new(Arc::new(config), etcd.link("first").client(SECOND), record, Arc::new(MachineClock::boot(0)));
    let (handle, (_stop, stops)) = (engine.handle(), oneshot::channel());
    let killed = tokio::spawn(engine.run(stops));
    while handle.leadership() != Leadership::Mine {
        sleep(TICK).await;
    }
    killed.abort();
    let (next, handle, _stop_next) = one_more(&etcd, "next", "one:1");
    timeout(90 * SECOND, async {
        while handle.leadership() != Leadership::Mine {
            assert!(!next.is_finished(), "it waits until the lease has ended");
            sleep(TICK).await;
        }
    })
    .await
    .expect("it leads when the lease of the one before has ended");
}

/// For some seconds it took itself for the leader although another one led, and answered reads.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_alone_ceases_to_lead_before_another_begins() {
    let mut seen_between = 0;
    // The cut falls at any time between two keep-alives, in each direction.
    for round in 0..24 {
        let etcd = Etcd::start(Settings { members: 3, ..Settings::default() }, generator(round, "etcd"));
        let (old_link, new_link) = (etcd.link("old"), etcd.link("new"));
        let (_old, old, _stop_old) = master("old", &old_link, "old:1");
        while old.leadership() != Leadership::Mine {
            sleep(TICK).await;
        }
        let (_new, new, _stop_new) = master("new", &new_link, "new:1");
        sleep(5 * SECOND + SECOND / 24 * u32::try_from(round).unwrap()).await;
        old_link.cut([Direction::Both, Direction::ToEtcd, Direction::FromEtcd][usize::try_from(round).unwrap() % 3]);
        let begun = Instant::now();
        while begun.elapsed() < 12 * SECOND {
            let both = (old.leadership(), new.leadership());
            assert_ne!(both, (Leadership::Mine, Leadership::Mine), "round {round}, {:?} after the cut", begun.elapsed());
            seen_between += usize::from(both.0 == Leadership::Nobody && both.1 != Leadership::Mine);
            sleep(TICK).await;
        }
        old_link.heal();
        sleep(10 * SECOND).await;
        let other = |id: &str| Leadership::Other { id: id.to_owned(), address: format!("{id}:1") };
        let settled = (old.leadership(), new.leadership());
        assert!(settled == (Leadership::Mine, other("old")) || settled == (other("new"), Leadership::Mine), "round {round}: {settled:?}");
    }
    assert!(seen_between > 0, "it ceases to lead before it hears of another");
}

/// The lease may be extended by etcd as long as the master does not hear of it; when it does, it leads again, and nobody else has.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_is_confirmed_again_in_time_leads_on() {
    let glass = Glass::start(1);
    glass.within(10 * SECOND, "leads", |glass| glass.leads().then_some(())).await;
    let [(_, fence)] = glass.candidacies().try_into().unwrap();
    // Its keep-alives arrive, and their answers do not.
    glass.link.cut(Direction::FromEtcd);
    glass.within(5 * SECOND, "does not answer", |glass| (!glass.leads()).then_some(())).await;
    glass.link.heal();
    glass.within(5 * SECOND, "leads again", |glass| glass.leads().then_some(())).await;
    let [(_, now)] = glass.candidacies().try_into().unwrap();
    assert_eq!(fence, now, "by the same candidacy");
    assert!(glass.add("a").await);
}

/// A master that was told to end left a key to expire that it was just creating, or with which it was about to lead: nobody led for 3 s.
#[tokio::test(start_paused = true)]
async fn who_ends_leaves_no_candidacy_behind_whatever_it_is() {
    let mut ended_as = std::collections::BTreeMap::<&str, usize>::new();
    for step in 0..80 {
        let etcd = Etcd::start(Settings { members: 1, slow_one_in: 0, ..Settings::default() }, generator(step, "etcd"));
        let link = etcd.link("master");
        // Each step of the campaign takes a tenth of a second.
        link.delay(SECOND / 20);
        let (ends, handle, stop) = master("master-1", &link, "one:1");
        sleep(SECOND / 80 * u32::try_from(step).unwrap()).await;
        let keys = || etcd.peek(|store| store.iter(&KeyRange::prefix("/election/")).map(|kv| kv.value.clone()).collect::<Vec<_>>());
        let role = match keys().pop() {
            None => "without a key",
            Some(_) if handle.leadership() == Leadership::Mine => "leader",
            Some(value) if serde_json::from_slice::<MasterRecord>(&value).unwrap().leads_since != 0 => "about to lead",
            Some(_) => "candidate",
        };
        *ended_as.entry(role).or_default() += 1;
        stop.send(()).unwrap();
        timeout(5 * SECOND, ends).await.expect("it ends").unwrap().unwrap();
        // What it had sent may still be under way.
        sleep(SECOND / 5).await;
        assert_eq!(keys(), Vec::<Vec<u8>>::new(), "step {step}, {role}: a key is left");
    }
    assert_eq!(ended_as.len(), 4, "{ended_as:?}");
}

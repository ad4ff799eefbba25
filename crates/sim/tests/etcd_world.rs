//! The model of etcd on virtual time, under the real client, mirror and leased keys: faults do what they do to the real one, and the
//! same seed gives the same run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use evenkeel_sim::etcd::{Direction, Etcd, Link, Settings, Version};
use evenkeel_store::{
    Client, Compare, Error, Executor, Finished, KeyChange, KeyName, KeyRange, LeaseState, LeasedKey, NewLeasedKey, Op, Pipeline,
    PipelineConfig, RangeRequest, Revision, Txn, Update, WatchMessage, Write, WriteResult, mirror,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(4);

fn etcd(seed: u64, members: usize) -> Etcd {
    let settings = Settings { members, slow_one_in: 0, ..Settings::default() };
    Etcd::start(settings, ChaCha8Rng::seed_from_u64(seed))
}

fn client(link: &Link) -> Client {
    link.client(SECOND)
}

async fn leased(client: &Client, key: &str) -> LeasedKey {
    let new = NewLeasedKey { key: KeyName::Exact(key.into()), value: vec![], ttl: TTL, replaces: None };
    LeasedKey::create(client, new, 30 * SECOND).await.unwrap()
}

fn stands(etcd: &Etcd, key: &str) -> bool {
    etcd.peek(|store| store.get(key.as_bytes()).is_some())
}

/// A copy that a mirror keeps, and what it went through.
struct Copy {
    updates: mpsc::Receiver<Update>,
    kvs: BTreeMap<Vec<u8>, Vec<u8>>,
    resets: usize,
    lost: usize,
}

impl Copy {
    fn of(client: &Client) -> Self {
        Self { updates: mirror(client, KeyRange::prefix("/m/")), kvs: BTreeMap::new(), resets: 0, lost: 0 }
    }

    /// Takes in all that comes within a time.
    async fn follow(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while let Ok(update) = tokio::time::timeout_at(end, self.updates.recv()).await {
            match update.unwrap() {
                Update::Reset { kvs, .. } => {
                    self.resets += 1;
                    self.kvs = kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
                }
                Update::Changes { changes, .. } => changes.into_iter().for_each(|change| match change {
                    KeyChange::Put(kv) => drop(self.kvs.insert(kv.key, kv.value)),
                    KeyChange::Delete { key, .. } => drop(self.kvs.remove(&key)),
                }),
                Update::Lost { .. } => self.lost += 1,
                Update::Recovered => {}
            }
        }
    }

    fn is_true(&self, etcd: &Etcd) -> bool {
        etcd.peek(|store| store.iter(&KeyRange::prefix("/m/")).map(|kv| (kv.key.clone(), kv.value.clone())).eq(self.kvs.clone()))
    }
}

#[tokio::test(start_paused = true)]
async fn calls_mirrors_and_leased_keys_work_as_on_the_real_one() {
    let etcd = etcd(1, 3);
    let link = etcd.link("caller");
    let client = client(&link);
    client.wait_ready(SECOND).await.unwrap();
    client.put("/m/1", "one").await.unwrap();
    let mut copy = Copy::of(&client);
    copy.follow(SECOND).await;
    let key = leased(&client, "/session").await;
    client.put("/m/2", "two").await.unwrap();
    // Long enough for signs of life, extensions and a progress notice.
    copy.follow(1_000 * SECOND).await;
    assert!(copy.is_true(&etcd) && copy.kvs.len() == 2);
    assert_eq!((copy.resets, copy.lost), (1, 0));
    assert_eq!(*key.state().borrow(), LeaseState::Alive);
    assert!(key.prove(SECOND).await.unwrap());
    key.end(SECOND).await.unwrap();
    assert!(!stands(&etcd, "/session"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_extends_expires_late_and_never_early() {
    let mut latest = Duration::ZERO;
    for seed in 0..20 {
        let etcd = etcd(seed, 3);
        let client = client(&etcd.link("caller"));
        let key = leased(&client, "/session").await;
        let start = Instant::now();
        drop(key);
        while stands(&etcd, "/session") {
            sleep(Duration::from_millis(10)).await;
        }
        let lived = start.elapsed();
        assert!(lived > TTL - Duration::from_millis(100) && lived <= TTL + SECOND + Duration::from_millis(20), "{lived:?}");
        latest = latest.max(lived);
    }
    assert!(latest > TTL + SECOND / 2, "it is late at times: {latest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_no_lost_effect() {
    let etcd = etcd(2, 1);
    let link = etcd.link("caller");
    let client = client(&link);
    client.put("/m/1", "").await.unwrap();
    link.lose_next_answer();
    let error = client.put("/m/2", "").await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert!(stands(&etcd, "/m/2"));
    client.put("/m/3", "").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_frozen_member_was_sent_may_take_effect_when_it_thaws_and_may_not() {
    let mut late = 0;
    for seed in 0..32 {
        let etcd = etcd(seed, 1);
        let client = client(&etcd.link("caller"));
        client.put("/m/1", "").await.unwrap();
        etcd.freeze(0);
        let error = client.put("/m/late", "").await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
        assert!(!stands(&etcd, "/m/late"));
        etcd.thaw(0);
        sleep(SECOND).await;
        late += usize::from(stands(&etcd, "/m/late"));
        client.put("/m/2", "").await.unwrap();
    }
    assert!((4..28).contains(&late), "{late} of 32 came late");
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_any_member_is_ridden_out() {
    for seed in 0..30 {
        let etcd = etcd(seed, 3);
        let client = client(&etcd.link("caller"));
        let idle = client_of_its_own(&etcd);
        let key = leased(&client, "/session").await;
        let (mut copy, mut idle_copy) = (Copy::of(&client), Copy::of(&idle));
        copy.follow(SECOND).await;
        idle_copy.follow(SECOND).await;
        // The first member leads, and both clients use it.
        match seed % 3 {
            0 => etcd.freeze(0),
            1 => etcd.kill(0),
            _ => etcd.isolate(0),
        }
        let start = Instant::now();
        while client.put("/m/during", "").await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
        assert!(start.elapsed() < 5 * SECOND, "an election takes two seconds at most");
        copy.follow(8 * SECOND).await;
        idle_copy.follow(2 * SECOND).await;
        assert!(copy.is_true(&etcd) && idle_copy.is_true(&etcd), "seed {seed}");
        assert_eq!((copy.resets, idle_copy.resets), (1, 1), "seed {seed}: nothing had to be listed again");
        assert_ne!(etcd.leader(), Some(0));
        assert!(key.prove(SECOND).await.unwrap(), "the lease is not lost");
        match seed % 3 {
            0 => etcd.thaw(0),
            1 => etcd.restart(0),
            _ => etcd.rejoin(0),
        }
        sleep(SECOND).await;
        assert!(key.prove(SECOND).await.unwrap());
        let old = Client::over(etcd.link("old").transports()[..1].to_vec(), SECOND);
        old.put("/m/after", "").await.unwrap();
        copy.follow(SECOND).await;
        assert!(copy.is_true(&etcd));
    }
}

fn client_of_its_own(etcd: &Etcd) -> Client {
    client(&etcd.link("idle"))
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_calls_fail_in_time_and_watches_end() {
    let etcd = etcd(3, 3);
    let client = client(&etcd.link("caller"));
    client.put("/m/before", "").await.unwrap();
    let key = leased(&client, "/session").await;
    let mut copy = Copy::of(&client);
    copy.follow(SECOND).await;
    etcd.kill(1);
    etcd.freeze(2);
    let start = Instant::now();
    for _ in 0..4 {
        assert!(client.put("/m/never", "").await.is_err());
        assert!(client.get(b"/m/before").await.is_err(), "a linearizable read needs the quorum");
    }
    assert!(start.elapsed() <= 9 * SECOND, "{:?}", start.elapsed());
    copy.follow(6 * SECOND).await;
    assert_eq!((copy.lost, copy.resets), (1, 1));
    // Far beyond its time, but nobody can revoke the lease; and whoever leads next extends it.
    sleep(20 * SECOND).await;
    assert!(stands(&etcd, "/session"));
    etcd.thaw(2);
    copy.follow(5 * SECOND).await;
    client.put("/m/after", "").await.unwrap();
    copy.follow(SECOND).await;
    assert!(copy.is_true(&etcd) && copy.kvs.contains_key(b"/m/after".as_slice()));
    assert!(key.prove(SECOND).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_cut_holds_up_one_direction_only() {
    let etcd = etcd(4, 1);
    let (link, other) = (etcd.link("caller"), etcd.link("other"));
    let (client, other) = (client(&link), client(&other));
    client.put("/m/1", "").await.unwrap();
    let mut copy = Copy::of(&client);
    copy.follow(SECOND).await;
    link.cut(Direction::FromEtcd);
    assert!(matches!(client.put("/m/2", "").await, Err(Error::Deadline { .. })));
    assert!(stands(&etcd, "/m/2"), "the request has arrived");
    // The answer's connection was given up, and no other can be made.
    assert!(matches!(client.put("/m/3", "").await, Err(Error::Deadline { .. })));
    assert!(!stands(&etcd, "/m/3"));
    other.put("/m/4", "").await.unwrap();
    link.heal();
    copy.follow(5 * SECOND).await;
    assert!(copy.is_true(&etcd) && copy.resets == 1);

    client.put("/m/5", "").await.unwrap();
    link.cut(Direction::ToEtcd);
    let transports = link.transports();
    let put = tokio::spawn(async move { transports[0].put(b"/m/6".to_vec(), vec![]).await });
    sleep(SECOND).await;
    assert!(!stands(&etcd, "/m/6"));
    link.heal();
    put.await.unwrap().unwrap();
    assert!(stands(&etcd, "/m/6"), "what was held up goes on");
    link.cut(Direction::Both);
    let member = link.transports()[0].clone();
    let error = timeout(20 * SECOND, member.range(RangeRequest::all(KeyRange::key("/m/6")))).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unavailable { sent: true, .. }), "the connection breaks: {error:?}");
    let error = member.range(RangeRequest::all(KeyRange::key("/m/6"))).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { sent: false, .. }), "and no other is made: {error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_held_up_while_its_history_is_compacted_lists_again_at_times() {
    let mut listed = 0;
    for seed in 0..16 {
        let etcd = etcd(seed, 1);
        let link = etcd.link("caller");
        let (client, other) = (client(&link), client(&etcd.link("other")));
        let mut copy = Copy::of(&client);
        copy.follow(SECOND).await;
        link.cut(Direction::FromEtcd);
        for n in 0..50 {
            other.put(format!("/m/{}", n % 7), n.to_string()).await.unwrap();
        }
        etcd.compact(etcd.peek(|store| store.revision())).unwrap();
        other.put("/m/last", "").await.unwrap();
        link.heal();
        copy.follow(5 * SECOND).await;
        assert!(copy.is_true(&etcd), "seed {seed}");
        listed += copy.resets - 1;
    }
    assert!((2..15).contains(&listed), "{listed} of 16 were listed again");
}

#[tokio::test(start_paused = true)]
async fn a_lagging_member_tells_late_and_its_watch_begins_in_its_past() {
    let etcd = etcd(5, 3);
    let link = etcd.link("caller");
    let (slow, fast) = (link.transports()[2].clone(), Client::over(link.transports()[..1].to_vec(), SECOND));
    etcd.lag(2, 5 * SECOND);
    let revision = fast.put("/m/1", "").await.unwrap();
    let mut watch = slow.watch(KeyRange::prefix("/m/"), revision).await.unwrap();
    assert!(watch.created_at() < revision);
    let start = Instant::now();
    assert!(matches!(watch.next().await.unwrap(), WatchMessage::Changes(changes) if changes.len() == 1));
    assert!(start.elapsed() > 4 * SECOND, "{:?}", start.elapsed());
    let start = Instant::now();
    let read = slow.range(RangeRequest::all(KeyRange::key("/m/1"))).await.unwrap();
    assert!(read.kvs.len() == 1 && start.elapsed() >= 5 * SECOND, "a linearizable read waits until the member has caught up");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_revoked_under_its_holder_is_lost_to_it() {
    let etcd = etcd(6, 3);
    let client = client(&etcd.link("caller"));
    let key = leased(&client, "/session").await;
    etcd.revoke_early(key.lease()).unwrap();
    assert!(etcd.revoke_early(key.lease()).is_err());
    assert!(!key.prove(SECOND).await.unwrap());
    assert!(matches!(*key.state().borrow(), LeaseState::Lost { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_sign_of_life_comes_after_what_is_owed_and_not_before_a_watch_begins() {
    for (version, signs) in [(Version::V3_4, 1), (Version::V3_5, 0)] {
        let settings = Settings { members: 1, version, ..Settings::default() };
        let etcd = Etcd::start(settings, ChaCha8Rng::seed_from_u64(7));
        let member = etcd.link("caller").transports()[0].clone();
        let revision = member.put(b"/m/1".to_vec(), vec![]).await.unwrap();
        let mut watch = member.watch(KeyRange::prefix("/m/"), Revision(revision.0 + 5)).await.unwrap();
        watch.ask().await.unwrap();
        let sign = timeout(SECOND, watch.next()).await;
        assert_eq!(usize::from(sign.is_ok()), signs, "{version:?}: {sign:?}");
        let mut watch = member.watch(KeyRange::prefix("/m/"), revision).await.unwrap();
        assert!(matches!(watch.next().await.unwrap(), WatchMessage::Changes(_)));
        watch.ask().await.unwrap();
        assert_eq!(timeout(SECOND, watch.next()).await.unwrap().unwrap(), WatchMessage::Alive(None));
        // By itself it tells of its progress after ten minutes in which it had nothing to say.
        let progress = timeout(2_000 * SECOND, watch.next()).await.unwrap().unwrap();
        assert_eq!(progress, WatchMessage::Alive(Some(revision)));
    }
}

/// One fault, or the end of all faults.
fn break_something(etcd: &Etcd, links: &[Link], rng: &mut ChaCha8Rng) {
    let (fault, member, link) = (rng.next_u64() % 11, rng.next_u64() as usize % 3, &links[rng.next_u64() as usize % 3]);
    match fault {
        0 => etcd.freeze(member),
        1 => etcd.kill(member),
        2 => etcd.isolate(member),
        3 => link.cut(Direction::Both),
        4 => link.cut(Direction::FromEtcd),
        5 => link.lose_next_answer(),
        6 => drop(etcd.compact(etcd.peek(|store| store.revision()))),
        7 => etcd.lag(member, SECOND),
        _ => mend(etcd, links),
    }
}

fn mend(etcd: &Etcd, links: &[Link]) {
    for member in 0..3 {
        etcd.thaw(member);
        etcd.restart(member);
        etcd.rejoin(member);
        etcd.lag(member, Duration::ZERO);
    }
    links.iter().for_each(Link::heal);
}

/// A wild run: clients, mirrors, leased keys and faults, all from one seed. Returns everything that was seen, with its time.
async fn wild(seed: u64) -> Vec<String> {
    let start = Instant::now();
    let etcd = Etcd::start(Settings::default(), ChaCha8Rng::seed_from_u64(seed));
    let trace = Arc::new(Mutex::new(Vec::new()));
    let note = {
        let trace = trace.clone();
        move |what: String| trace.lock().unwrap().push(format!("{:?} {what}", start.elapsed()))
    };
    let applied = note.clone();
    etcd.on_applied(move |store, revision, changes| {
        assert_eq!(store.revision(), revision);
        applied(format!("{revision} {}", changes.len()));
    });
    let links: Vec<Link> = (0..3).map(|n| etcd.link(&format!("caller {n}"))).collect();
    let clients: Vec<Client> = links.iter().map(client).collect();
    let (mut tasks, mut copies) = (Vec::new(), Vec::new());
    for (n, client) in clients.iter().cloned().enumerate() {
        let (noted, writer) = (note.clone(), client.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0.. {
                let then = vec![Op::put(format!("/m/{n}/{}", round % 5), round.to_string()), Op::put("/m/all", n.to_string())];
                let done = writer.txn(Txn { then, ..Txn::default() }, SECOND).await;
                noted(format!("{n} wrote {round}: {done:?}"));
                sleep(Duration::from_millis(300)).await;
            }
        }));
        copies.push(Copy::of(&client));
        let noted = note.clone();
        tasks.push(tokio::spawn(async move {
            loop {
                let key = leased(&client, &format!("/session/{n}")).await;
                while key.prove(SECOND).await.unwrap_or(true) {
                    sleep(SECOND / 2).await;
                }
                noted(format!("{n} lost its session"));
            }
        }));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed + 1);
    for _ in 0..60 {
        break_something(&etcd, &links, &mut rng);
        for (n, copy) in copies.iter_mut().enumerate() {
            copy.follow(Duration::from_millis(rng.next_u64() % 1_500)).await;
            note(format!("{n} saw {} resets, {} times lost, {:?}", copy.resets, copy.lost, copy.kvs));
        }
    }
    mend(&etcd, &links);
    sleep(15 * SECOND).await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    for copy in &mut copies {
        copy.follow(10 * SECOND).await;
        assert!(copy.is_true(&etcd), "seed {seed}: what a mirror shows when all is mended is the truth");
    }
    drop(etcd);
    let trace = trace.lock().unwrap();
    trace.clone()
}

fn run<T>(world: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(world)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..4 {
        let (once, again) = (run(wild(seed)), run(wild(seed)));
        let differ = once.iter().zip(&again).position(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}: {:?} and {:?}", differ.map(|at| &once[at]), differ.map(|at| &again[at]));
        assert_eq!(once.len(), again.len(), "seed {seed}");
        assert!(once.len() > 200, "something happens: {}", once.len());
        assert_ne!(once, run(wild(seed + 1_000)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_world_ends_with_its_last_handle() {
    let etcd = etcd(8, 3);
    let link = etcd.link("caller");
    drop(etcd);
    client(&link).put("/m/1", "").await.unwrap();
    let tasks = tokio::runtime::Handle::current();
    assert_eq!(tasks.metrics().num_alive_tasks(), 1);
    drop(link);
    sleep(SECOND).await;
    assert_eq!(tasks.metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_was_held_up_goes_on_and_leaves_nothing_out() {
    for seed in 0..8 {
        let etcd = etcd(seed, 3);
        let (link, other) = (etcd.link("caller"), client(&etcd.link("other")));
        let first = other.put("/m/0", "").await.unwrap();
        let mut watch = link.transports()[2].watch(KeyRange::prefix("/m/"), first).await.unwrap();
        if seed % 2 == 0 {
            etcd.freeze(2)
        } else {
            link.cut(Direction::FromEtcd)
        }
        for n in 0..40 {
            other.put("/m/0", n.to_string()).await.unwrap();
        }
        if seed % 2 == 0 {
            etcd.thaw(2)
        } else {
            link.heal()
        }
        let mut revisions = Vec::new();
        while revisions.len() < 41 {
            match timeout(SECOND, watch.next()).await.expect("it goes on").unwrap() {
                WatchMessage::Changes(changes) => revisions.extend(changes.iter().map(|change| change.revision().0)),
                message => panic!("{message:?}"),
            }
        }
        assert!(revisions.into_iter().eq(first.0..=first.0 + 40), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leased_key_is_confirmed_by_requests_that_were_answered_as_of_their_sending() {
    let etcd = etcd(31, 3);
    let link = etcd.link("caller");
    let client = client(&link);
    // A message takes 300 ms, so that sending and answer are told apart.
    link.delay(SECOND * 3 / 10);
    let asked = Instant::now();
    let key = leased(&client, "/session").await;
    assert_eq!(key.confirmed(), asked, "the grant, when it was asked for");
    let created = Instant::now();
    sleep(SECOND / 2).await;
    assert_eq!(key.confirmed(), asked, "the first extension is not answered yet");
    sleep(SECOND / 5).await;
    assert_eq!(key.confirmed(), created, "it is, and counts from when it was sent");

    // The lease is extended all the same, but nobody here knows.
    link.cut(Direction::FromEtcd);
    let last = key.confirmed();
    sleep(3 * SECOND).await;
    assert_eq!(key.confirmed(), last);
    link.heal();
    let healed = Instant::now();
    sleep(3 * SECOND).await;
    assert!(key.confirmed() >= healed && *key.state().borrow() == LeaseState::Alive);
}

/// A leader as far as committing is concerned. What keeps its key alive has a network of its own.
struct Leader {
    _key: LeasedKey,
    pipeline: Pipeline,
    executor: Executor,
    finished: mpsc::UnboundedReceiver<Finished>,
}

impl Leader {
    async fn elect(etcd: &Etcd, link: &Link) -> Self {
        let key = leased(&client(&etcd.link("keeper")), "/election").await;
        let pipeline = Pipeline::new(PipelineConfig {
            fence_key: key.key().to_vec(),
            fence: key.created(),
            lease: key.lease(),
            slot_prefix: b"/commit/".to_vec(),
            journal_prefix: b"/events/".to_vec(),
            in_flight: 3,
        });
        let (executor, finished) = Executor::new(client(link), SECOND);
        Self { _key: key, pipeline, executor, finished }
    }

    fn submit(&mut self, token: u64, compares: Vec<Compare>, op: Op) {
        self.pipeline.submit(Write { token, compares, ops: vec![op], entry: None }).unwrap();
    }

    /// Until everything is done; in the order of the tokens.
    async fn carried_out(&mut self) -> Vec<WriteResult> {
        let mut done = Vec::new();
        loop {
            while let Some(batch) = self.pipeline.next_batch() {
                self.executor.execute(batch);
            }
            if self.pipeline.is_empty() {
                done.sort_by_key(|(token, _)| *token);
                return done.into_iter().map(|(_, result)| result).collect();
            }
            let Finished { batch, outcome, .. } = self.finished.recv().await.unwrap();
            done.extend(self.pipeline.finished(batch, outcome).into_iter().map(|done| (done.token, done.result)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_overload_delays_writes_and_repeats_none() {
    let etcd = etcd(32, 3);
    let mut leader = Leader::elect(&etcd, &etcd.link("leader")).await;
    (0..300).for_each(|n| leader.submit(n, vec![], Op::put(format!("/k/{n}"), "")));
    etcd.overload(true);
    let before = etcd.peek(|store| store.revision());
    let waits = timeout(10 * SECOND, leader.carried_out()).await;
    assert!(waits.is_err() && etcd.peek(|store| store.revision()) == before);
    etcd.overload(false);
    let results = leader.carried_out().await;
    assert_eq!(results.len(), 300);
    for (n, result) in results.into_iter().enumerate() {
        let kv = etcd.peek(|store| store.get(format!("/k/{n}").as_bytes()).cloned()).unwrap();
        assert_eq!((result, kv.created), (WriteResult::Committed { revision: kv.modified }, kv.modified), "written once");
    }
}

#[tokio::test(start_paused = true)]
async fn without_space_deletions_are_done_once_whatever_answers_are_lost() {
    let etcd = etcd(33, 3);
    let link = etcd.link("leader");
    let mut leader = Leader::elect(&etcd, &link).await;
    let other = client(&etcd.link("other"));
    let kept = other.put("/k/1", "").await.unwrap();
    etcd.no_space(true);
    leader.submit(0, vec![], Op::put("/k/0", ""));
    assert_eq!(leader.carried_out().await, [WriteResult::NoSpace]);

    let changes = Arc::new(Mutex::new(0));
    let counted = changes.clone();
    etcd.on_applied(move |_, _, _| *counted.lock().unwrap() += 1);
    let as_it_was = || vec![Compare::ModRevision { key: b"/k/1".to_vec(), equals: kept }];
    link.lose_next_answer();
    leader.submit(1, as_it_was(), Op::delete("/k/1"));
    let revision = etcd.peek(|store| Revision(store.revision().0 + 1));
    assert_eq!(leader.carried_out().await, [WriteResult::Committed { revision }]);
    assert!(!stands(&etcd, "/k/1") && *changes.lock().unwrap() == 1);

    leader.submit(2, as_it_was(), Op::delete("/k/1"));
    assert!(matches!(leader.carried_out().await[..], [WriteResult::Conflict { at, .. }] if at == revision));
    etcd.no_space(false);
    leader.submit(3, vec![], Op::put("/k/3", ""));
    assert!(matches!(leader.carried_out().await[..], [WriteResult::Committed { .. }]));
    assert_eq!(etcd.peek(|store| store.iter(&KeyRange::prefix("/commit/")).count()), 1, "with a mark again");
}

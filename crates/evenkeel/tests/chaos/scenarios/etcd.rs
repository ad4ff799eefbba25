//! etcd itself: members killed and frozen, all of it away, compacted, out of space; and what somebody does to its keys by hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use evenkeel_model::WorkerId;
use evenkeel_store::{Client, Compare, Config, Op, Txn};
use nix::sys::signal::{self, Signal};

use super::{BEYOND_AUTHORITY, Shared, scenarios};
use crate::{
    field::{Field, MEMBERS, Setup},
    support,
};

scenarios! {
    quick etcd_leader_killed,
    long etcd_follower_killed,
    long etcd_leader_frozen,
    long etcd_follower_frozen,
    long etcd_frozen_for_a_second,
    long etcd_killed_for_a_second,
    long etcd_away_for_10_s,
    long etcd_away_for_60_s,
    long etcd_members_restarted_in_turn,
    long etcd_leader_and_leader_killed_at_once,
    quick lease_revoked_under_a_live_worker,
    long registration_deleted_by_hand,
    long admission_deleted_by_hand,
    long lease_of_the_leader_revoked,
    long compaction_while_an_agent_is_frozen,
    long compaction_while_the_leader_is_frozen,
    long out_of_space,
}

const SECOND: Duration = Duration::from_secs(1);

async fn usual(row: &Shared) -> Field {
    Field::open(Setup::default(), row).await
}

/// Asks etcd all the time, and remembers the longest span without an answer.
pub(super) struct Probe {
    longest_ms: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Probe {
    pub(super) fn start(field: &Field) -> Self {
        let probe = Self { longest_ms: Arc::default(), ended: Arc::default() };
        let (longest, ended, endpoints) = (Arc::clone(&probe.longest_ms), Arc::clone(&probe.ended), field.stage.etcd.endpoints());
        tokio::spawn(async move {
            let config = Config { deadline: Duration::from_millis(200), ..Config::new(endpoints) };
            let client = Client::new(config).expect("a client");
            let mut last = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                if client.get(b"/").await.is_ok() {
                    last = Instant::now();
                }
                longest.fetch_max(u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        probe
    }

    /// The longest span without an answer.
    fn end(self) -> Duration {
        self.ended.store(true, Ordering::Relaxed);
        Duration::from_millis(self.longest_ms.load(Ordering::Relaxed))
    }
}

/// Waits until etcd answers again, and holds that a hiccup restarts nothing: one that is shorter than three seconds, as seen from outside.
pub(super) async fn judged_as_a_hiccup(field: Field, probe: Probe) {
    judged_with(field, probe, 0).await;
}

async fn judged_with(mut field: Field, probe: Probe, restarts: usize) {
    field.etcd_leader().await;
    field.healed();
    let away = probe.end();
    field.note(format!("etcd did not answer for {:.1} s", away.as_secs_f64()));
    if away < 3 * SECOND {
        field.may_restart(0..=restarts);
    }
    field.judged().await;
}

async fn member_killed(row: Shared, leader: bool) {
    let mut field = usual(&row).await;
    let member = (field.etcd_leader().await + usize::from(!leader)) % MEMBERS.len();
    field.did(format!("SIGKILL to {} of etcd; started again {SECOND:?} later", if leader { "the leader" } else { "a follower" }));
    let probe = Probe::start(&field);
    field.stage.etcd.kill(member).expect("killed");
    field.span(SECOND).await;
    field.stage.etcd.restart(member).await.expect("back");
    judged_as_a_hiccup(field, probe).await;
}

async fn etcd_leader_killed(row: Shared) {
    member_killed(row, true).await;
}

async fn etcd_follower_killed(row: Shared) {
    member_killed(row, false).await;
}

async fn member_frozen(member: usize, who: &str, field: Field) -> (Field, Probe) {
    field.did(format!("SIGSTOP to {who} of etcd, SIGCONT after {BEYOND_AUTHORITY:?}"));
    let probe = Probe::start(&field);
    field.stage.etcd.stop(member).expect("stopped");
    field.span(BEYOND_AUTHORITY).await;
    assert_eq!(field.restarts(), 0, "while it is frozen the others serve");
    field.stage.etcd.cont(member).expect("continued");
    (field, probe)
}

async fn etcd_leader_frozen(row: Shared) {
    let field = usual(&row).await;
    let member = field.etcd_leader().await;
    let all = field.before.len();
    let (field, probe) = member_frozen(member, "the leader", field).await;
    // A leader of etcd that goes on revokes the leases that it has not seen extended, although another leads and has extended them: the
    // worker's session is then lost, and its work starts anew where it is.
    judged_with(field, probe, all).await;
}

async fn etcd_follower_frozen(row: Shared) {
    let field = usual(&row).await;
    let member = (field.etcd_leader().await + 1) % MEMBERS.len();
    let (field, probe) = member_frozen(member, "a follower", field).await;
    judged_as_a_hiccup(field, probe).await;
}

async fn etcd_frozen_for_a_second(row: Shared) {
    let field = usual(&row).await;
    field.did("SIGSTOP to all members of etcd, SIGCONT after 1 s");
    let probe = Probe::start(&field);
    for member in 0..MEMBERS.len() {
        field.stage.etcd.stop(member).expect("stopped");
    }
    field.span(SECOND).await;
    for member in 0..MEMBERS.len() {
        field.stage.etcd.cont(member).expect("continued");
    }
    judged_as_a_hiccup(field, probe).await;
}

/// Kills all of etcd and starts it again after this span.
async fn away(row: Shared, span: Duration) {
    let mut field = usual(&row).await;
    field.did(format!("SIGKILL to all members of etcd; started again after {span:?}"));
    let probe = Probe::start(&field);
    for member in 0..MEMBERS.len() {
        field.stage.etcd.kill(member).expect("killed");
    }
    field.span(span).await;
    for member in 0..MEMBERS.len() {
        field.stage.etcd.revive(member).expect("back");
    }
    judged_as_a_hiccup(field, probe).await;
}

async fn etcd_killed_for_a_second(row: Shared) {
    away(row, SECOND).await;
}

async fn etcd_away_for_10_s(row: Shared) {
    away(row, 10 * SECOND).await;
}

async fn etcd_away_for_60_s(row: Shared) {
    away(row, 60 * SECOND).await;
}

async fn etcd_members_restarted_in_turn(row: Shared) {
    let mut field = usual(&row).await;
    field.did("SIGKILL to each member of etcd in turn, each back before the next");
    let probe = Probe::start(&field);
    for member in 0..MEMBERS.len() {
        field.stage.etcd.kill(member).expect("killed");
        field.stage.etcd.restart(member).await.expect("back");
        field.etcd_leader().await;
    }
    judged_as_a_hiccup(field, probe).await;
}

async fn etcd_leader_and_leader_killed_at_once(row: Shared) {
    let mut field = usual(&row).await;
    let (member, leader) = (field.etcd_leader().await, field.stage.leader().await);
    field.did("SIGKILL to the leader of etcd and to that of Evenkeel; both started again");
    let probe = Probe::start(&field);
    field.stage.signal(&leader, Signal::SIGKILL);
    field.stage.etcd.kill(member).expect("killed");
    field.stage.ended(&leader).await;
    field.stage.spawn(&leader, &[]);
    field.stage.etcd.restart(member).await.expect("back");
    judged_as_a_hiccup(field, probe).await;
}

/// The key and the lease of a worker's registration.
pub(super) async fn registration(field: &Field, worker: &str) -> (Vec<u8>, i64) {
    let key = field.stage.keys.worker(&WorkerId::new(worker).expect("an id")).into_bytes();
    let kv = field.stage.client.get(&key).await.expect("read").kv.expect("registered");
    (key, kv.lease)
}

async fn delete(field: &Field, key: Vec<u8>) {
    let txn = Txn { compares: Vec::<Compare>::new(), then: vec![Op::Delete { key }], otherwise: Vec::new() };
    field.stage.client.txn(txn, SECOND).await.expect("deleted");
}

async fn lease_revoked_under_a_live_worker(row: Shared) {
    let mut field = usual(&row).await;
    let (_, lease) = registration(&field, "worker-1").await;
    field.did("the lease of worker-1 is revoked by hand while it lives");
    field.stage.client.revoke(lease, SECOND).await.expect("revoked");
    field.healed();
    field.judged().await;
}

async fn registration_deleted_by_hand(row: Shared) {
    let mut field = usual(&row).await;
    let (key, _) = registration(&field, "worker-1").await;
    field.did("/workers/worker-1 is deleted by hand while it lives");
    delete(&field, key).await;
    field.healed();
    field.judged().await;
}

async fn admission_deleted_by_hand(row: Shared) {
    let mut field = usual(&row).await;
    field.did("/admissions/worker-1 is deleted by hand");
    delete(&field, field.stage.keys.admission(&WorkerId::new("worker-1").expect("an id")).into_bytes()).await;
    field.healed();
    field.judged().await;
}

async fn lease_of_the_leader_revoked(row: Shared) {
    let mut field = usual(&row).await;
    field.did("the lease of the leader's candidacy is revoked by hand");
    let list = field.stage.client.list(&evenkeel_store::KeyRange::prefix("/election/")).await.expect("listed");
    let first = list.kvs.into_iter().min_by_key(|kv| kv.created).expect("a leader");
    field.stage.client.revoke(first.lease, SECOND).await.expect("revoked");
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

/// Writes, and makes etcd forget all that it has written before.
async fn compact(field: &Field) {
    for n in 0..5 {
        field.stage.client.put("/elsewhere", n.to_string()).await.expect("written");
    }
    let now = field.stage.client.get(b"/elsewhere").await.expect("read").revision;
    field.stage.client.compact(now).await.expect("compacted");
}

async fn compaction_while_an_agent_is_frozen(row: Shared) {
    let mut field = usual(&row).await;
    let agent = field.stage.agent("worker-1").await;
    field.did("SIGSTOP to the agent of worker-1 for half a second; meanwhile etcd is compacted");
    signal::kill(agent, Signal::SIGSTOP).expect("stopped");
    field.span(SECOND / 2).await;
    compact(&field).await;
    signal::kill(agent, Signal::SIGCONT).expect("continued");
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn compaction_while_the_leader_is_frozen(row: Shared) {
    let mut field = usual(&row).await;
    let leader = field.stage.leader().await;
    field.did(format!("SIGSTOP to the leader for {BEYOND_AUTHORITY:?}; meanwhile etcd is compacted"));
    field.stage.signal(&leader, Signal::SIGSTOP);
    field.span(BEYOND_AUTHORITY).await;
    compact(&field).await;
    field.stage.signal(&leader, Signal::SIGCONT);
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn out_of_space(row: Shared) {
    const QUOTA: usize = 32 << 20;
    let setup = Setup { etcd_flags: vec![format!("--quota-backend-bytes={QUOTA}")], ..Setup::default() };
    let mut field = Field::open(setup, &row).await;
    field.did(format!("etcd is filled up to its quota (NOSPACE) for {BEYOND_AUTHORITY:?}, then emptied and its alarm disarmed"));
    let block = vec![b'x'; 1 << 20];
    let mut written = 0_u32;
    while field.stage.client.put(format!("/filler/{written}"), block.clone()).await.is_ok() {
        written += 1;
        assert!(written < 200, "the quota does not hold");
    }
    field.span(BEYOND_AUTHORITY).await;
    assert_eq!(field.restarts(), 0, "running work goes on while etcd refuses writes");
    for n in 0..written {
        delete(&field, format!("/filler/{n}").into_bytes()).await;
    }
    let now = field.stage.client.get(b"/").await.expect("read").revision;
    field.stage.client.compact(now).await.expect("compacted");
    for endpoint in field.stage.etcd.endpoints() {
        etcdctl(&["--endpoints", &endpoint, "defrag"]);
    }
    etcdctl(&["--endpoints", &field.stage.etcd.endpoints().join(","), "alarm", "disarm"]);
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

fn etcdctl(arguments: &[&str]) -> String {
    support::run(std::process::Command::new("etcdctl").env("ETCDCTL_API", "3").args(["--command-timeout", "20s"]).args(arguments))
}

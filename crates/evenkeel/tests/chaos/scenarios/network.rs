//! The network: workers, masters and members of etcd cut off, in one direction or both, for a moment or for long; slow and flapping links.

use std::time::Duration;

use super::{
    BEYOND_AUTHORITY, Shared, WITHIN_AUTHORITY,
    etcd::{Probe, judged_as_a_hiccup},
    scenarios,
};
use crate::{
    field::{Field, MEMBERS, Setup},
    links::Weather,
};

scenarios! {
    long worker_cut_off_briefly,
    quick worker_cut_off_until_its_work_is_elsewhere,
    long worker_that_hears_no_answers,
    long worker_that_is_not_heard,
    long leader_cut_off,
    long leader_that_hears_no_answers,
    long leader_that_is_not_heard,
    long standby_cut_off,
    long everybody_cut_off_briefly,
    long flapping_link_of_a_worker,
    long flapping_link_of_the_leader,
    long slow_etcd,
    long etcd_leader_cut_off_from_its_peers,
    long worker_at_a_member_in_the_minority,
    long available_work_overlaps_and_the_oracle_sees_it,
}

async fn usual(row: &Shared) -> Field {
    Field::open(Setup::default(), row).await
}

async fn worker_cut_off_briefly(row: Shared) {
    let mut field = usual(&row).await;
    field.did(format!("nothing passes between worker-1 and etcd for {:?}", WITHIN_AUTHORITY));
    field.weather("worker-1", Weather::CUT);
    field.span(WITHIN_AUTHORITY).await;
    field.links.clear();
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

/// A worker whose work must end, and run elsewhere, while this lasts.
async fn worker_lost_to(row: Shared, weather: Weather, what: &str) {
    let mut field = usual(&row).await;
    field.did(format!("{what}, until others have its work"));
    field.weather("worker-1", weather);
    field.until_settled(Some("worker-1")).await;
    field.links.clear();
    field.healed();
    field.judged().await;
}

async fn worker_cut_off_until_its_work_is_elsewhere(row: Shared) {
    worker_lost_to(row, Weather::CUT, "nothing passes between worker-1 and etcd").await;
}

async fn worker_that_hears_no_answers(row: Shared) {
    let mut field = usual(&row).await;
    // Its keep-alives arrive, so its lease may live on; its work stops with its authority all the same.
    let work: Vec<_> = field.host("worker-1").into_iter().filter(|found| found.work.is_some()).collect();
    field.did("requests of worker-1 to etcd arrive and answers do not, until its work is dead");
    field.weather("worker-1", Weather::DEAF);
    field.until_dead(&work).await;
    field.links.clear();
    field.healed();
    field.judged().await;
}

async fn worker_that_is_not_heard(row: Shared) {
    worker_lost_to(row, Weather::MUTE, "requests of worker-1 to etcd do not arrive, what etcd sends does").await;
}

async fn leader_lost_to(row: Shared, weather: Weather, what: &str) {
    let mut field = usual(&row).await;
    let leader = field.stage.leader().await;
    field.did(format!("{what} for {BEYOND_AUTHORITY:?}"));
    field.weather(&leader, weather);
    field.span(BEYOND_AUTHORITY).await;
    field.links.clear();
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn leader_cut_off(row: Shared) {
    leader_lost_to(row, Weather::CUT, "nothing passes between the leader and etcd").await;
}

async fn leader_that_hears_no_answers(row: Shared) {
    leader_lost_to(row, Weather::DEAF, "requests of the leader to etcd arrive, late answers do not,").await;
}

async fn leader_that_is_not_heard(row: Shared) {
    leader_lost_to(row, Weather::MUTE, "requests of the leader to etcd do not arrive, what etcd sends does,").await;
}

async fn standby_cut_off(row: Shared) {
    let mut field = usual(&row).await;
    let standby = if field.stage.leader().await == "master-1" { "master-2" } else { "master-1" };
    field.did(format!("nothing passes between the standby and etcd for {BEYOND_AUTHORITY:?}"));
    field.weather(standby, Weather::CUT);
    field.span(BEYOND_AUTHORITY).await;
    field.links.clear();
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn everybody_cut_off_briefly(row: Shared) {
    let mut field = usual(&row).await;
    let span = WITHIN_AUTHORITY;
    field.did(format!("nothing passes between etcd and all masters and workers for {span:?}"));
    for name in ["master-1", "master-2", "worker-1", "worker-2", "worker-3"] {
        field.weather(name, Weather::CUT);
    }
    field.span(span).await;
    field.links.clear();
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

async fn flapping(row: Shared, worker: bool) {
    let mut field = usual(&row).await;
    let leader = field.stage.leader().await;
    let name = if worker { "worker-1" } else { leader.as_str() };
    field.did(format!("the link between {} and etcd is cut and mended forty times", if worker { "worker-1" } else { "the leader" }));
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..40 {
        let weather = [Weather::CUT, Weather::DEAF, Weather::MUTE][random.usize(..3)];
        field.weather(name, weather);
        field.span(Duration::from_millis(random.u64(50..700))).await;
        field.weather(name, Weather::FAIR);
        field.span(Duration::from_millis(random.u64(50..400))).await;
    }
    field.healed();
    field.judged().await;
}

async fn flapping_link_of_a_worker(row: Shared) {
    flapping(row, true).await;
}

async fn flapping_link_of_the_leader(row: Shared) {
    flapping(row, false).await;
}

async fn slow_etcd(row: Shared) {
    let mut field = usual(&row).await;
    let (delay, span) = (Duration::from_millis(150), 2 * BEYOND_AUTHORITY);
    field.did(format!("etcd answers everybody {:?} late for {span:?}", 2 * delay));
    for name in ["master-1", "master-2", "worker-1", "worker-2", "worker-3"] {
        field.weather(name, Weather::slow(delay));
    }
    field.span(span).await;
    field.links.clear();
    field.healed();
    field.may_restart(0..=0);
    field.judged().await;
}

/// Cuts a member of etcd off from the other two.
fn isolate(field: &Field, member: usize) {
    let others: Vec<usize> = (0..MEMBERS.len()).filter(|other| *other != member).collect();
    for other in others {
        // What is cut below must be what they talk by.
        assert!(
            field.links.connected(&field.member_ids[member], MEMBERS[other]) > 0,
            "a member goes by another id: {:?}",
            field.member_ids
        );
        field.links.set(&[&field.member_ids[member]], &[MEMBERS[other]], Weather::CUT);
        field.links.set(&[&field.member_ids[other]], &[MEMBERS[member]], Weather::CUT);
    }
}

async fn etcd_leader_cut_off_from_its_peers(row: Shared) {
    let field = usual(&row).await;
    let member = field.etcd_leader().await;
    field.did(format!("the leader of etcd is cut off from its peers, and not from its clients, for {BEYOND_AUTHORITY:?}"));
    let probe = Probe::start(&field);
    isolate(&field, member);
    field.stage.eventually("the others choose another", async || (field.etcd_leader().await != member).then_some(())).await;
    field.span(BEYOND_AUTHORITY).await;
    // One that comes back with a later term makes the others choose again, where etcd asks for no vote before (3.4): that may take long.
    field.links.clear();
    judged_as_a_hiccup(field, probe).await;
}

async fn worker_at_a_member_in_the_minority(row: Shared) {
    let setup = Setup { tied_to_first: vec!["worker-1"], ..Setup::default() };
    let mut field = Field::open(setup, &row).await;
    field.did("worker-1 knows the first member of etcd only, and that one is cut off from its peers until others have the work");
    isolate(&field, 0);
    field.until_settled(Some("worker-1")).await;
    field.links.clear();
    field.healed();
    field.judged().await;
}

async fn available_work_overlaps_and_the_oracle_sees_it(row: Shared) {
    let setup = Setup { available: true, callers: 0, ..Setup::default() };
    let mut field = Field::open(setup, &row).await;
    field.row().meant_to_overlap = true;
    let (_, lease) = super::etcd::registration(&field, "worker-1").await;
    field.did("ownership: available; worker-1 is cut off, and its lease is revoked by hand while its work still runs");
    field.weather("worker-1", Weather::CUT);
    field.stage.client.revoke(lease, Duration::from_secs(1)).await.expect("revoked");
    field.until_overlap().await;
    field.links.clear();
    field.healed();
    field.judged().await;
}

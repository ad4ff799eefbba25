//! Changes of work that runs: what the driver is told, what is reported, and that an epoch never stands for two contents.

use evenkeel_model::{DriverTraits, Observed, Phase, Status};
use tokio::time::sleep;

use super::testbed::{Probe, SECOND, Testbed, Told, etcd};

const UPDATES: DriverTraits = DriverTraits { holds: evenkeel_model::Holds::Strict, updates: true };

/// An agent that runs the resource with its first content, by a driver of these traits.
async fn running(traits: DriverTraits) -> Testbed {
    let (etcd, hand) = etcd();
    let probe = Probe::default();
    *probe.traits.lock().unwrap() = traits;
    let testbed = Testbed::start_with(etcd, hand, probe);
    testbed.admit().await;
    testbed.assign(Phase::Run).await;
    testbed.started().await;
    testbed.probe.runs();
    let status = testbed.status_of(Observed::Running).await;
    assert_eq!((status.hash, status.restart_for), (Testbed::content(0), Default::default()));
    testbed
}

#[tokio::test(start_paused = true)]
async fn a_change_is_taken_with_the_epoch_that_runs_and_its_status_says_so() {
    let testbed = running(UPDATES).await;
    let epoch = testbed.epoch();
    testbed.assign_content(1, Phase::Run).await;
    testbed.told_last(Told::Change(Testbed::content(1))).await;
    sleep(5 * SECOND).await;
    assert_eq!(testbed.status().unwrap().hash, Testbed::content(0), "it was not answered yet");
    // A further one waits for the answer.
    testbed.assign_content(2, Phase::Run).await;
    sleep(SECOND).await;
    testbed.probe.updated(Testbed::content(1));
    testbed.told_last(Told::Change(Testbed::content(2))).await;
    testbed.probe.updated(Testbed::content(2));
    let status = testbed.status_where(|status| status.hash == Testbed::content(2)).await;
    assert_eq!((status.phase, status.epoch, status.restart_for), (Observed::Running, epoch, Default::default()));
    let starts = testbed.probe.told().iter().filter(|told| matches!(told, Told::Start(_))).count();
    assert_eq!(starts, 1);
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_restart_goes_on_until_the_leader_says_stop() {
    let asks = |status: &Status| status.restart_for == Testbed::content(1);
    for (traits, answers) in [(DriverTraits::default(), false), (UPDATES, true), (UPDATES, false)] {
        let testbed = running(traits).await;
        testbed.assign_content(1, Phase::Run).await;
        if traits.updates {
            testbed.told_last(Told::Change(Testbed::content(1))).await;
        }
        if answers {
            testbed.probe.needs_restart(Testbed::content(1));
        }
        let status = testbed.status_where(asks).await;
        assert_eq!((status.phase, status.hash), (Observed::Running, Testbed::content(0)), "{}", status.message);
        let why = match (traits.updates, answers) {
            (false, _) => "the change needs a restart: it cannot be taken while it runs",
            (true, true) => "the change needs a restart: its port is another",
            (true, false) => "the change needs a restart: its driver has not answered the change for 10 s",
        };
        assert_eq!(status.message, why);
        sleep(20 * SECOND).await;
        assert_ne!(testbed.probe.told().last(), Some(&Told::Stop), "it is the leader who stops it");
        testbed.assign_content(1, Testbed::stop()).await;
        testbed.told_to_stop().await;
        testbed.probe.end();
        testbed.status_of(Observed::Stopped).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_answers_too_late_is_believed_all_the_same() {
    let testbed = running(UPDATES).await;
    testbed.assign_content(1, Phase::Run).await;
    testbed.status_where(|status| status.restart_for == Testbed::content(1)).await;
    // Back to what runs, as far as anybody knows: the driver is asked for that, since it may have taken the other by now.
    testbed.assign_content(0, Phase::Run).await;
    testbed.told_last(Told::Change(Testbed::content(0))).await;
    testbed.probe.updated(Testbed::content(0));
    let status = testbed.status_where(|status| status.restart_for != Testbed::content(1)).await;
    assert_eq!(status.hash, Testbed::content(0));

    let testbed = running(UPDATES).await;
    testbed.assign_content(1, Phase::Run).await;
    testbed.status_where(|status| status.restart_for == Testbed::content(1)).await;
    testbed.probe.updated(Testbed::content(1));
    let status = testbed.status_where(|status| status.hash == Testbed::content(1)).await;
    assert_eq!(status.restart_for, Default::default());
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_final_and_no_change_comes_after_it() {
    let testbed = running(UPDATES).await;
    testbed.assign_content(1, Testbed::stop()).await;
    testbed.told_to_stop().await;
    // No leader does that; an external writer may.
    testbed.assign_content(1, Phase::Run).await;
    sleep(10 * SECOND).await;
    assert_eq!(testbed.probe.told().last(), Some(&Told::Stop));
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_while_it_did_not_run_waits_for_another_epoch() {
    let testbed = running(UPDATES).await;
    let epoch = testbed.epoch();
    // It is killed with its authority; meanwhile the leader changes it.
    testbed.link.cut(evenkeel_sim::etcd::Direction::Both);
    testbed.told_to_stop().await;
    testbed.probe.end();
    testbed.assign_content(1, Phase::Run).await;
    sleep(10 * SECOND).await;
    testbed.link.heal();
    testbed.admit().await;
    let status = testbed.status_where(|status| status.restart_for == Testbed::content(1)).await;
    assert_eq!((status.phase, status.epoch, status.hash), (Observed::Starting, epoch, Testbed::content(0)));
    assert_eq!(testbed.probe.told().last(), Some(&Told::Stop), "it is not started");
    // Back to what it ran: it may go on.
    testbed.assign_content(0, Phase::Run).await;
    testbed.told_last(Told::Start(epoch)).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_taken_outlives_the_session() {
    let testbed = running(UPDATES).await;
    let epoch = testbed.epoch();
    testbed.assign_content(1, Phase::Run).await;
    testbed.told_last(Told::Change(Testbed::content(1))).await;
    testbed.probe.updated(Testbed::content(1));
    testbed.status_where(|status| status.hash == Testbed::content(1)).await;
    testbed.link.cut(evenkeel_sim::etcd::Direction::Both);
    testbed.told_to_stop().await;
    testbed.probe.end();
    sleep(10 * SECOND).await;
    testbed.link.heal();
    testbed.admit().await;
    testbed.told_last(Told::Start(epoch)).await;
    assert_eq!(testbed.status_of(Observed::Starting).await.hash, Testbed::content(1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_run_of_which_the_leader_would_conclude_more_than_is_kept() {
    let testbed = running(DriverTraits::default()).await;
    testbed.assign(Testbed::stop()).await;
    testbed.told_to_stop().await;
    testbed.probe.end();
    testbed.status_of(Observed::Stopped).await;
    // Its driver turns out to hold work loosely: by another engine, say.
    *testbed.probe.traits.lock().unwrap() = DriverTraits { holds: evenkeel_model::Holds::Loose, updates: false };
    testbed.unassign().await;
    testbed.assign(Phase::Run).await;
    let status = testbed.status_of(Observed::Failed).await;
    let why =
        "this worker may not run it: kind probe is loose here, and the assignment was made for strict work; name the kind in the resource";
    assert_eq!(status.message, why);
    assert_eq!(testbed.probe.told().last(), Some(&Told::Stop));
}

//! Work that turns against what holds it: it stops or kills its parent, or its parent's parent. And what is outside of all of it and holds its
//! output.
//!
//! Beside the wheel. A lock that the first start leaves behind tells the second one whether two ran at once.

use std::{fs, time::Duration};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::{
    bed::{Bed, Case, GRACE},
    kinds::{self, Kind},
    support::{dead, eventually, is_dead},
    trials,
};

pub(crate) fn all() -> Vec<Trial> {
    [
        trials("work_that_kills_its_parent", &["processes_nobody"], kills_its_parent),
        trials("work_that_stops_its_parent", &["processes_nobody"], stops_its_parent),
        trials("work_that_kills_its_parents_parent", &["processes_root"], kills_its_parents_parent),
        trials("work_that_stops_its_parents_parent", &[], stops_its_parents_parent),
        trials("a_process_outside_holds_the_output", &["processes_root"], output_is_held_outside),
        trials("work_that_left_its_cgroup_does_not_survive_its_agent", &["cgroup_root"], left_its_cgroup),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const QUIET: Kind = ("quiet", "touch $DIR/$NAME.ready; exec sleep 300");

/// The work that strikes, and a quiet neighbour; both begin.
async fn strike(test: &str, case: Case, strikes: Kind) -> Bed {
    let mut bed = Bed::with(test, case, &[QUIET]).await;
    bed.assign("strikes", strikes).await;
    bed.ready(1).await;
    bed
}

impl Bed {
    fn nothing_overlapped(&self) {
        assert!(!self.path("strikes.overlap").exists(), "what was started again found the first one alive; log:\n{}", self.worker.log());
    }

    /// Waits until the work that strikes was started again.
    async fn started_again(&self, first: i32) -> i32 {
        eventually("it is started again", async || self.again(first)).await
    }

    fn again(&self, first: i32) -> Option<i32> {
        fs::read_to_string(self.path("strikes.pid")).ok()?.trim().parse().ok().filter(|pid| *pid != first && !is_dead(*pid))
    }
}

/// What holds one run is gone: that run has ended and is started again, and nobody else notices.
async fn kills_its_parent(case: Case) {
    let bed = strike("h-kill-p", case, ("strikes", "exec python3 $DIR/work.py strikes SIGKILL 0")).await;
    let first = bed.main_pid(1).await;
    bed.started_again(first).await;
    dead(first).await;
    bed.nothing_overlapped();
    assert!(!is_dead(bed.main_pid(0).await), "the neighbour lives on; log:\n{}", bed.worker.log());
    bed.stop(1).await;
    bed.lives.nothing_lives_of(1, "what killed its parent");
    bed.nothing_overlapped();
}

/// What holds one run does not answer: that run can still be stopped.
async fn stops_its_parent(case: Case) {
    let bed = strike("h-stop-p", case, ("strikes", "exec python3 $DIR/work.py strikes SIGSTOP 0")).await;
    bed.stop(1).await;
    bed.lives.nothing_lives_of(1, "what stopped its parent");
    bed.nothing_overlapped();
    assert!(!is_dead(bed.main_pid(0).await), "the neighbour lives on; log:\n{}", bed.worker.log());
}

/// What all runs have in common is gone: they may end, all of them, and are started again one after the other's end.
async fn kills_its_parents_parent(case: Case) {
    let bed = strike("h-kill-pp", case, ("strikes", "exec python3 $DIR/work.py strikes SIGKILL 1")).await;
    let first = bed.main_pid(1).await;
    dead(first).await;
    bed.admitted_until(async || {
        // While one session follows on another, neither may be registered.
        let (session, registration) = bed.testbed.registration().await?;
        if session != bed.session {
            assert_eq!(registration.attests, Some(bed.session));
        }
        bed.again(first).map(drop)
    })
    .await;
    bed.nothing_overlapped();
}

async fn stops_its_parents_parent(case: Case) {
    let bed = strike("h-stop-pp", case, ("strikes", "exec python3 $DIR/work.py strikes SIGSTOP 1")).await;
    // It is stopped as it is told to, or dies with its agent, whose next one finds the order.
    bed.tell_stop(1).await;
    let gone = async || bed.lives.of(1).is_empty().then_some(());
    bed.admitted_until(gone).await;
    bed.lives.nothing_lives_of(1, "what stopped its parent's parent");
    bed.nothing_overlapped();
}

/// The pipe's other end stays open when all of the work is dead.
async fn output_is_held_outside(case: Case) {
    let bed = Bed::with("h-pipe", case, &[QUIET]).await;
    let pid = bed.main_pid(0).await;
    let held = [1, 2].map(|stream| fs::File::options().write(true).open(format!("/proc/{pid}/fd/{stream}")).expect("its output"));
    let took = bed.stop(0).await;
    bed.lives.nothing_lives();
    assert!(took < GRACE + Duration::from_secs(1), "{took:?}");
    drop(held);
}

/// A program with the rights to do so can leave its cgroup. It is still found.
async fn left_its_cgroup(case: Case) {
    let leaves = (
        "leaves",
        "root=/sys/fs/cgroup; [ -e $root/unified/cgroup.procs ] && root=$root/unified
         (setsid sh -c \"trap '' TERM HUP; echo \\$\\$ > $root/cgroup.procs || touch $DIR/refused; touch $DIR/$NAME.ready; exec sleep 300\" &)
         exec sleep 300",
    );
    let bed = Bed::with("h-left", case, &[leaves, kinds::kind("deaf")]).await;
    println!("{}: it could leave its cgroup: {}", case.as_str(), !bed.path("refused").exists());
    bed.signal_agent(Signal::SIGKILL).await;
    eventually("the end of all work", async || bed.lives.all().is_empty().then_some(())).await;
    let (_, registration) = bed.testbed.registered_after(bed.session).await;
    assert_eq!(registration.attests, Some(bed.session));
    bed.lives.nothing_lives();
}

//! A stop is exact and prompt, whoever is beside it: exactly the processes of that run are dead, in its time, and all others live.
//!
//! Beside the wheel. Orders are drawn from a seed that is printed; `EVENKEEL_SEED` gives another.

use std::{collections::BTreeSet, time::Duration};

use libtest_mimic::Trial;

use crate::{
    bed::{Bed, Case, GRACE},
    kinds::{self, Kind},
    support::is_dead,
    trials,
};

pub(crate) fn all() -> Vec<Trial> {
    [
        trials("a_neighbour_that_forks_twice_all_day_delays_no_stop", &["processes_root"], forks_all_day),
        trials("a_neighbour_that_hides_its_environment_survives_a_stop", &["processes_nobody"], hides_its_environment),
        trials("fifty_runs_are_stopped_one_by_one_and_exactly", &["processes_nobody"], fifty_runs),
        trials("a_bomb_delays_no_stop_and_no_proof", &[], bomb_beside),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What work that is good takes to end may be anything below; what is not is killed after its grace, and then there is this long.
const AFTER_GRACE: Duration = Duration::from_secs(1);

/// It ends when it is asked to.
const GOOD: Kind = ("good", "touch $DIR/$NAME.ready; exec sleep 300");

/// An orphan is made and ends some hundred times a second: whoever waits for a moment without one waits for ever.
const FORKS_ALL_DAY: Kind = ("forks-all-day", "touch $DIR/$NAME.ready; while :; do (true &); done");

impl Bed {
    /// The processes of the main program of a run live, and what it has left elsewhere as well.
    fn lives_on(&self, run: usize, before: &BTreeSet<i32>) {
        for pid in before {
            assert!(!is_dead(*pid), "{}: process {pid} was ended for a neighbour's stop; log:\n{}", self.runs[run].name, self.worker.log());
        }
    }

    fn pids(&self, run: usize) -> BTreeSet<i32> {
        self.lives.of(run).into_iter().map(|living| living.pid).collect()
    }
}

async fn forks_all_day(case: Case) {
    let kinds = [FORKS_ALL_DAY, GOOD, kinds::kind("deaf"), kinds::kind("forked-twice"), kinds::kind("unmarked")];
    let bed = Bed::with("h-beside", case, &kinds).await;
    let main = BTreeSet::from([bed.main_pid(0).await]);
    for run in 1..bed.runs.len() {
        let took = bed.stop(run).await;
        println!("{}: {} was reported stopped {took:?} later", case.as_str(), bed.runs[run].name);
        assert!(took < GRACE + AFTER_GRACE, "{}: {took:?}; log:\n{}", bed.runs[run].name, bed.worker.log());
        bed.lives.nothing_lives_of(run, &bed.runs[run].name);
        bed.lives_on(0, &main);
    }
}

async fn hides_its_environment(case: Case) {
    let kinds = [kinds::kind("hidden"), kinds::kind("unmarked"), kinds::kind("closed"), GOOD, kinds::kind("forked-twice")];
    let bed = Bed::with("h-hidden", case, &kinds).await;
    // The shell's sleeps come and go; what hides does not.
    let (hidden, closed) = (bed.pids(0), bed.pids(2));
    let unmarked = BTreeSet::from([bed.main_pid(1).await]);
    assert_eq!((hidden.len(), closed.len()), (2, 2), "main process and orphan");
    for run in [3, 4] {
        let took = bed.stop(run).await;
        assert!(took < GRACE + AFTER_GRACE, "{}: {took:?}", bed.runs[run].name);
        bed.lives.nothing_lives_of(run, &bed.runs[run].name);
        bed.lives_on(0, &hidden);
        bed.lives_on(1, &unmarked);
        assert!(bed.pids(1).len() >= 2, "the orphan without environment lives on: {:?}", bed.lives.of(1));
        bed.lives_on(2, &closed);
    }
    // And whoever hides is stopped itself.
    for run in 0..3 {
        bed.stop(run).await;
        bed.lives.nothing_lives_of(run, &bed.runs[run].name);
    }
    bed.lives.nothing_lives();
}

/// Work of mixed kinds on one worker, stopped in an order that is drawn: after each report exactly that run is dead.
async fn fifty_runs(case: Case) {
    const RUNS: usize = 50;
    let seed = std::env::var("EVENKEEL_SEED").ok().map_or_else(|| fastrand::u64(..), |text| text.parse().expect("a number"));
    println!("{}: EVENKEEL_SEED={seed}", case.as_str());
    let mut random = fastrand::Rng::with_seed(seed);
    // The bomb takes what others of its user would fork; it is beside others in another trial.
    let kinds: Vec<Kind> = kinds::ALL.into_iter().filter(|kind| *kind != kinds::BOMB).chain([GOOD]).collect();
    let mut bed = Bed::open("h-fifty", case).await;
    for number in 0..RUNS {
        let kind = kinds[random.usize(..kinds.len())];
        bed.assign(&format!("{}-{number}", kind.0), kind).await;
    }
    let mut mains = Vec::new();
    for run in 0..RUNS {
        bed.ready(run).await;
        mains.push(bed.main_pid(run).await);
    }
    bed.is_held_as_the_case_says().await;
    let mut left: Vec<usize> = (0..RUNS).collect();
    while !left.is_empty() {
        let run = left.swap_remove(random.usize(..left.len()));
        let took = bed.stop(run).await;
        let all = bed.lives.all();
        let name = &bed.runs[run].name;
        println!("{}: {name} was reported stopped {took:?} later", case.as_str());
        assert_eq!(all.get(&run), None, "{name} was reported stopped; log:\n{}", bed.worker.log());
        for other in &left {
            assert!(!is_dead(mains[*other]), "{} was ended for the stop of {name}; log:\n{}", bed.runs[*other].name, bed.worker.log());
        }
        assert_eq!(all.keys().copied().collect::<BTreeSet<_>>(), left.iter().copied().collect(), "after the stop of {name}");
    }
    bed.lives.nothing_lives();
}

/// A bomb takes processors and process numbers. The worker goes on: nobody's stop is late, and it proves its authority.
async fn bomb_beside(case: Case) {
    let bed = Bed::with("h-bomb", case, &[kinds::BOMB, kinds::kind("deaf"), GOOD, kinds::kind("forked-twice")]).await;
    for run in 1..bed.runs.len() {
        let took = bed.stop(run).await;
        println!("{}: {} was reported stopped {took:?} later", case.as_str(), bed.runs[run].name);
        bed.lives.nothing_lives_of(run, &bed.runs[run].name);
    }
    let took = bed.stop(0).await;
    println!("{}: the bomb was reported stopped {took:?} later", case.as_str());
    bed.lives.nothing_lives();
    let (session, _) = bed.testbed.registration().await.expect("a registration");
    assert_eq!(session, bed.session, "its authority never ended");
}

//! The kernel's refusals, at each place where work is started or ended: nothing is half started, and nothing is believed to be stopped that
//! lives. Injected ones by `worker::fault`, and real ones: a process that may open no more files.
//!
//! Beside the wheel. A fault stands as long as its file does.

use std::{collections::BTreeSet, fs, process::Command, time::Instant};

use evenkeel_model::Observed;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::{
    bed::{Bed, Case, Means, User},
    kinds::{self, Kind},
    support::{self, dead, eventually, is_dead},
    trials,
};

pub(crate) fn all() -> Vec<Trial> {
    [
        trials("a_refusal_starts_nothing_by_halves", &["cgroup_root", "processes_nobody"], refusals_at_the_start),
        trials("a_refusal_at_the_end_is_not_believed_to_be_the_end", &["cgroup_root", "processes_nobody"], refusals_at_the_end),
        trials("whoever_dies_on_the_way_to_a_start_leaves_nothing", &[], deaths_at_the_start),
        trials("a_holder_that_may_open_no_file_does_not_say_that_all_is_over", &["processes_nobody"], holder_without_files),
        trials("a_guard_dies_beside_an_agent_that_may_open_no_file", &["processes_root"], guard_dies_beside_agent_without_files),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What every start goes through, and an error that the kernel may have there.
const START: [(&str, &str); 6] = [
    ("agent.socket", "EMFILE"),
    ("agent.epoll", "ENOSPC"),
    ("spawner.fork", "EAGAIN"),
    ("shim.pipe", "EMFILE"),
    ("shim.fork", "ENOMEM"),
    ("child.exec", "ENOMEM"),
];
/// The same where the work is held by a cgroup.
const START_IN_CGROUP: [(&str, &str); 2] = [("shim.cgroup", "ENOSPC"), ("child.join", "EPERM")];
/// What an end goes through.
const END: [(&str, &str); 2] = [("procfs.open", "EMFILE"), ("shim.cgroup.kill", "EPERM")];

const QUIET: Kind = ("quiet", "touch $DIR/$NAME.ready; exec sleep 300");

fn of_start(case: Case) -> Vec<(&'static str, &'static str)> {
    let in_cgroup: &[_] = if case.means == Means::Cgroup { &START_IN_CGROUP } else { &[] };
    [&START[..], in_cgroup].concat()
}

impl Bed {
    fn begin_fault(&self, place: &str) {
        fs::write(self.fault(place), "").expect("written");
    }

    fn end_fault(&self, place: &str) {
        fs::remove_file(self.fault(place)).expect("removed");
    }

    async fn is_in(&self, run: usize, phase: Observed) -> String {
        let run = &self.runs[run];
        let what = format!("{} {}", run.name, phase.as_str());
        let found = async || self.testbed.status(&run.name).await.filter(|status| status.phase == phase && status.epoch == run.epoch);
        eventually(&what, found).await.message
    }
}

async fn refusals_at_the_start(case: Case) {
    let faults = of_start(case);
    let mut bed = Bed::open_with_faults("h-start", case, &faults).await;
    let neighbour = bed.assign("quiet", QUIET).await;
    bed.ready(neighbour).await;
    bed.is_held_as_the_case_says().await;
    let quiet = bed.main_pid(neighbour).await;
    for (place, error) in faults {
        bed.begin_fault(place);
        let run = bed.assign(&place.replace('.', "-"), kinds::kind("forked-twice")).await;
        let message = bed.is_in(run, Observed::Backoff).await;
        println!("{}: {place} fails with {error}: {message:?}", case.as_str());
        let says = ["cannot hold its processes", "cannot make", "no process can be made", "cannot join", "spec.command[0]: "];
        assert!(says.iter().any(|says| message.contains(says)), "{place}: {message:?}");
        bed.lives.nothing_lives_of(run, place);
        assert!(!is_dead(quiet), "{place}: its neighbour goes on");
        bed.end_fault(place);
        bed.ready(run).await;
        bed.stop(run).await;
        bed.lives.nothing_lives_of(run, place);
    }
    assert!(!is_dead(quiet), "nobody else has noticed");
    let (session, _) = bed.testbed.registration().await.expect("a registration");
    assert_eq!(session, bed.session);
}

async fn refusals_at_the_end(case: Case) {
    let mut bed = Bed::open_with_faults("h-stopping", case, &END).await;
    let neighbour = bed.assign("quiet", QUIET).await;
    bed.ready(neighbour).await;
    bed.is_held_as_the_case_says().await;
    let quiet = bed.main_pid(neighbour).await;
    for (place, error) in END {
        for kind in ["forked-twice", "hopping", "headless"].map(kinds::kind) {
            let run = bed.assign(&format!("{}-{}", kind.0, place.replace('.', "-")), kind).await;
            bed.ready(run).await;
            bed.begin_fault(place);
            bed.tell_stop(run).await;
            // Whether it can be stopped meanwhile or not: what is reported is true.
            let reported = async || {
                let status = bed.testbed.status(&bed.runs[run].name).await?;
                (status.phase == Observed::Stopped || !status.message.is_empty()).then_some(status)
            };
            let status = eventually("it is stopped, or says why not", reported).await;
            println!("{}: {place} fails with {error}: {} {:?}", case.as_str(), status.phase.as_str(), status.message);
            if status.phase != Observed::Stopped {
                bed.end_fault(place);
                bed.reported_stopped(run).await;
            }
            bed.lives.nothing_lives_of(run, place);
            let _ = fs::remove_file(bed.fault(place));
        }
    }
    assert!(!is_dead(quiet), "nobody else has noticed");
}

/// The process that a start has come to is killed there. It is started again when that is over, after whatever there was is dead.
async fn deaths_at_the_start(case: Case) {
    let faults: Vec<(&str, &str)> = of_start(case).into_iter().map(|(place, _)| (place, "KILL")).collect();
    for fault in faults {
        let (place, _) = fault;
        let mut bed = Bed::open_with_faults(&format!("h-dies-{}", place.replace('.', "-")), case, &[fault]).await;
        let quiet = bed.assign("quiet", QUIET).await;
        bed.ready(quiet).await;
        bed.is_held_as_the_case_says().await;
        let session = bed.session;
        bed.begin_fault(place);
        let run = bed.assign("strikes", ("strikes", "exec python3 $DIR/work.py strikes SIGCONT 0")).await;
        // Either the agent lives and tells, or another one has come.
        let struck = async || {
            let told = bed.testbed.status("strikes").await.is_some_and(|status| status.phase == Observed::Backoff);
            let another = bed.testbed.registration().await.is_some_and(|(now, _)| now != session);
            (told || another).then_some(())
        };
        eventually(&format!("the death at {place}"), struck).await;
        bed.lives.nothing_lives_of(run, place);
        bed.end_fault(place);
        let ready = bed.path("strikes.ready");
        bed.admitted_until(async || ready.exists().then_some(())).await;
        assert!(!bed.path("strikes.overlap").exists(), "{place}: two ran at once");
        bed.stop(run).await;
        bed.lives.nothing_lives_of(run, place);
        println!("{}: a death at {place} left nothing", case.as_str());
    }
}

/// Lets a process open no further file, or as many as before. The hard limit stays: raising it takes a right that root may lack.
fn limit_files(case: Case, pid: i32, limit: &str) {
    let user = if case.user == User::Nobody { "65534" } else { "0" };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--", "prlimit", "--pid", &pid.to_string()]);
    let status = command.arg(format!("--nofile={limit}")).status().expect("setpriv");
    assert!(status.success(), "prlimit --pid {pid}");
}

fn files_of(pid: i32) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    format!("{}:", line.split_whitespace().next().expect("a soft limit"))
}

/// The parents of all work cannot read the list of processes, and so cannot know of what they have to end.
async fn holder_without_files(case: Case) {
    let bed = Bed::with("h-files", case, &["forked-twice", "hopping", "adopts"].map(kinds::kind)).await;
    let spared = BTreeSet::from([bed.worker.guard_pid(), bed.worker.agent_pid().await]);
    let holders: Vec<(i32, String)> =
        bed.holders().into_iter().filter(|pid| !spared.contains(pid)).map(|pid| (pid, files_of(pid))).collect();
    for (pid, _) in &holders {
        limit_files(case, *pid, "0:");
    }
    for run in 0..bed.runs.len() {
        bed.tell_stop(run).await;
        let reported = async || {
            let status = bed.testbed.status(&bed.runs[run].name).await?;
            (status.phase == Observed::Stopped || !status.message.is_empty()).then_some(status)
        };
        let status = eventually("it is stopped, or says why not", reported).await;
        println!("{}: {} {:?}", case.as_str(), status.phase.as_str(), status.message);
        if status.phase == Observed::Stopped {
            bed.lives.nothing_lives_of(run, &bed.runs[run].name);
        }
    }
    for (pid, limit) in &holders {
        if !is_dead(*pid) {
            limit_files(case, *pid, limit);
        }
    }
    for run in 0..bed.runs.len() {
        bed.reported_stopped(run).await;
        bed.lives.nothing_lives_of(run, &bed.runs[run].name);
    }
}

async fn guard_dies_beside_agent_without_files(case: Case) {
    let bed = Bed::with("h-orphan", case, &kinds::ALL).await;
    let agent = bed.worker.agent_pid().await;
    limit_files(case, agent, "0:");
    let killed = Instant::now();
    support::signal(bed.worker.guard_pid(), Signal::SIGKILL);
    bed.all_dead(killed, "SIGKILL to the guard beside an agent that may open no file").await;
    dead(agent).await;
}

//! Simulates fleets from seeds: many for as long as one likes, or one again with the faults that matter.
//!
//! The wheel: all of it, on virtual time; see the crate's module `fleet`. Exit status 1: something was found.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use evenkeel_sim::fleet::{Plan, Report, ledger::Counts, run, shrink::shrink};

/// Simulates fleets of masters and workers with faults, from seeds.
#[derive(Debug, Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many seeds; without --hours, 100.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Go on until so many hours of fleets have been simulated.
    #[arg(long, value_parser = hours)]
    hours: Option<f64>,
    /// How many runs side by side; each has a thread.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Make the run of this seed alone, and show what happens in it.
    #[arg(long, conflicts_with_all = ["first", "seeds", "hours"])]
    seed: Option<u64>,
    /// With --seed: only these faults, by their numbers.
    #[arg(long, value_delimiter = ',', requires = "seed", conflicts_with_all = ["first", "seeds", "hours"])]
    only: Option<Vec<usize>>,
    /// With --seed: only so many rounds.
    #[arg(long, requires = "seed", conflicts_with_all = ["first", "seeds", "hours"])]
    rounds: Option<usize>,
    /// With --seed: show what the processes log as well, by a filter such as "debug".
    #[arg(long, requires = "seed", conflicts_with_all = ["first", "seeds", "hours"])]
    log: Option<String>,
    /// With some names that several callers share.
    #[arg(long)]
    shared: bool,
    /// With tasks, and disks that are wiped.
    #[arg(long, conflicts_with = "shared")]
    tasks: bool,
    /// How many runs may be spent on shrinking what was found.
    #[arg(long, default_value_t = 150)]
    shrink: usize,
}

impl Args {
    fn plan(&self, seed: u64) -> Plan {
        match (self.tasks, self.shared) {
            (true, _) => Plan::of_tasks(seed),
            (false, true) => Plan::of_shared_names(seed),
            (false, false) => Plan::of(seed),
        }
    }
}

/// How much was simulated, by all threads together.
#[derive(Default)]
struct Totals {
    runs: u64,
    lasted: Duration,
    counts: Counts,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.lasted += report.lasted;
        self.counts = self.counts.and(report.counts);
    }

    fn hours(&self) -> f64 {
        self.lasted.as_secs_f64() / 3600.0
    }

    fn show(&self, took: Duration) {
        let seconds = took.as_secs_f64().max(0.001);
        println!("{} runs, {:.1} simulated cluster-hours", self.runs, self.hours());
        let counts: Vec<String> = self.counts.each().map(|(name, count)| format!("{count} {}", name.replace('_', " "))).collect();
        println!("{}", counts.join(", "));
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let rate = self.runs as f64 / seconds;
        println!("{seconds:.1} s: {rate:.1} seeds a second, {:.0} simulated hours an hour", self.hours() * 3600.0 / seconds);
    }
}

fn hours(text: &str) -> Result<f64, String> {
    let hours: Option<f64> = text.parse().ok().filter(|hours: &f64| hours.is_finite() && *hours > 0.0);
    hours.ok_or_else(|| "write a number of hours, more than 0".to_owned())
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => one(seed, &args),
        None => many(&args),
    }
}

/// One run, with all that happens in it.
fn one(seed: u64, args: &Args) -> ExitCode {
    let mut plan = args.plan(seed);
    if let Some(rounds) = args.rounds {
        plan = plan.up_to_round(rounds);
    }
    if let Some(only) = &args.only {
        plan = plan.with_only(&only.iter().copied().collect::<BTreeSet<usize>>());
    }
    println!("seed {seed}: {:?}", plan.size);
    if let Some(filter) = &args.log {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let report = run(&plan);
    if args.log.is_none() {
        report.trace.iter().for_each(|line| println!("{line}"));
    }
    println!("{:.1} s of virtual time, digest {:016x}, {:?}", report.lasted.as_secs_f64(), report.digest, report.counts);
    verdict(report.violation.as_deref())
}

fn verdict(violation: Option<&str>) -> ExitCode {
    match violation {
        Some(violation) => {
            println!("VIOLATION: {violation}");
            ExitCode::FAILURE
        }
        None => {
            println!("no violation");
            ExitCode::SUCCESS
        }
    }
}

/// Many runs, until enough, or until one finds something.
fn many(args: &Args) -> ExitCode {
    let began = Instant::now();
    let last = match (args.seeds, args.hours) {
        (None, Some(_)) => u64::MAX,
        (seeds, _) => args.first.saturating_add(seeds.unwrap_or(100)),
    };
    let (totals, next, stop) = (Mutex::new(Totals::default()), AtomicU64::new(args.first), AtomicBool::new(false));
    let so_far = || totals.lock().unwrap_or_else(PoisonError::into_inner);
    let found = thread::scope(|scope| {
        let work = || {
            loop {
                let enough = args.hours.is_some_and(|hours| so_far().hours() >= hours);
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if enough || seed >= last || stop.load(Ordering::Relaxed) {
                    return None;
                }
                let plan = args.plan(seed);
                let report = run(&plan);
                so_far().add(&report);
                if report.violation.is_some() {
                    stop.store(true, Ordering::Relaxed);
                    return Some((plan, report));
                }
            }
        };
        let threads: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        // A panic outside of a run is no finding, and must not pass for the want of one.
        let ends = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ends.collect::<Vec<_>>().into_iter().flatten().next()
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    totals.show(began.elapsed());
    if totals.runs == 0 {
        println!("nothing was run: no seed is left from {}", args.first);
        return ExitCode::FAILURE;
    }
    if let Some((plan, report)) = found {
        tell(&plan, &report, args.shrink);
        return verdict(report.violation.as_deref());
    }
    verdict(None)
}

/// Shrinks what was found, and says how to see it again.
fn tell(plan: &Plan, report: &Report, most: usize) {
    println!("seed {} finds: {}", plan.seed, report.violation.as_deref().unwrap_or_default());
    let Some(shrunk) = shrink(plan, most) else {
        return println!("a second run of the same seed does not find it: the simulation does not repeat itself");
    };
    println!("after {} runs, {} of {} faults are left:", shrunk.runs, shrunk.plan.faults().count(), plan.faults().count());
    shrunk.plan.faults().for_each(|planned| println!("  {planned}"));
    let lines = &shrunk.report.trace;
    lines[lines.len().saturating_sub(60)..].iter().for_each(|line| println!("{line}"));
    let numbers: Vec<String> = shrunk.plan.faults().map(|planned| planned.number.to_string()).collect();
    let only = if numbers.is_empty() { String::new() } else { format!(" --only {}", numbers.join(",")) };
    let shared = if plan.size.tasks > 0 {
        " --tasks"
    } else if plan.size.shared > 0 {
        " --shared"
    } else {
        ""
    };
    println!("to see it again: fleet{shared} --seed {} --rounds {}{only}", plan.seed, shrunk.plan.rounds.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_would_run_nothing_or_for_ever_or_be_ignored_are_refused() {
        let parse = |line: &str| Args::try_parse_from(["fleet"].into_iter().chain(line.split_whitespace()));
        for line in [
            "--hours inf",
            "--hours nan",
            "--hours 0",
            "--hours=-5",
            "--seeds 0",
            "--seeds 1 --log debug",
            "--hours 1 --only 2",
            "--seed 1 --first 2",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in
            ["", "--hours 0.5 --seeds 3", "--first 7 --jobs 2 --shared", "--seed 3 --shared", "--seed 1 --log debug --only 1,2 --rounds 1"]
        {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
    }

    #[test]
    fn no_run_is_no_success() {
        let args = Args::try_parse_from(["fleet", "--first", "18446744073709551615", "--seeds", "2"]).expect("arguments");
        assert_eq!(many(&args), ExitCode::FAILURE);
    }
}

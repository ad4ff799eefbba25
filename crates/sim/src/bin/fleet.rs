//! Simulates fleets from seeds: many for as long as one likes, or one again with the faults that matter.
//!
//! The wheel: all of it, on virtual time; see the crate's module `fleet`. Exit status 1: something was found.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
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
    #[arg(long)]
    seeds: Option<u64>,
    /// Go on until so many hours of fleets have been simulated.
    #[arg(long)]
    hours: Option<f64>,
    /// How many runs side by side; each has a thread.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Make the run of this seed alone, and show what happens in it.
    #[arg(long, conflicts_with_all = ["first", "seeds", "hours"])]
    seed: Option<u64>,
    /// With --seed: only these faults, by their numbers.
    #[arg(long, value_delimiter = ',', requires = "seed")]
    only: Option<Vec<usize>>,
    /// With --seed: only so many rounds.
    #[arg(long, requires = "seed")]
    rounds: Option<usize>,
    /// With --seed: show what the processes log as well, by a filter such as "debug".
    #[arg(long, requires = "seed")]
    log: Option<String>,
    /// How many runs may be spent on shrinking what was found.
    #[arg(long, default_value_t = 150)]
    shrink: usize,
}

/// How much was simulated, by all threads together.
#[derive(Default)]
struct Totals {
    runs: AtomicU64,
    milliseconds: AtomicU64,
    starts: AtomicU64,
    faults: AtomicU64,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
    revisions: AtomicU64,
}

impl Totals {
    fn add(&self, report: &Report) {
        let Counts { starts, faults, acknowledged, unknown, revisions, .. } = report.counts;
        let lasted = u64::try_from(report.lasted.as_millis()).unwrap_or(0);
        for (total, one) in [
            (&self.runs, 1),
            (&self.milliseconds, lasted),
            (&self.starts, starts),
            (&self.faults, faults),
            (&self.acknowledged, acknowledged),
            (&self.unknown, unknown),
            (&self.revisions, revisions),
        ] {
            total.fetch_add(one, Ordering::Relaxed);
        }
    }

    fn hours(&self) -> f64 {
        Duration::from_millis(self.milliseconds.load(Ordering::Relaxed)).as_secs_f64() / 3600.0
    }

    fn show(&self, took: Duration) {
        let of = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let seconds = took.as_secs_f64().max(0.001);
        println!(
            "{} runs, {:.1} simulated cluster-hours, {} faults, {} starts of work, {} revisions of etcd, {} calls acknowledged, {} unknown",
            of(&self.runs),
            self.hours(),
            of(&self.faults),
            of(&self.starts),
            of(&self.revisions),
            of(&self.acknowledged),
            of(&self.unknown),
        );
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let rate = of(&self.runs) as f64 / seconds;
        println!("{seconds:.1} s: {rate:.1} seeds a second, {:.0} simulated hours an hour", self.hours() * 3600.0 / seconds);
    }
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
    let mut plan = Plan::of(seed);
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
    let (totals, next, stop) = (Totals::default(), AtomicU64::new(args.first), AtomicBool::new(false));
    let found = thread::scope(|scope| {
        let work = || {
            loop {
                let enough = args.hours.is_some_and(|hours| totals.hours() >= hours);
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if enough || seed >= last || stop.load(Ordering::Relaxed) {
                    return None;
                }
                let plan = Plan::of(seed);
                let report = run(&plan);
                totals.add(&report);
                if report.violation.is_some() {
                    stop.store(true, Ordering::Relaxed);
                    return Some((plan, report));
                }
            }
        };
        let threads: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).next()
    });
    totals.show(began.elapsed());
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
    println!("to see it again: fleet --seed {} --rounds {}{only}", plan.seed, shrunk.plan.rounds.len());
}

//! `evenkeel bench`: what Evenkeel does beside what etcd does by itself, in one run on one machine. It prints figures and ratios with
//! the versions and flags that they depend on; it judges nothing.

mod calls;
mod placement;
mod stage;
mod tasks;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use self::{calls::Sample, placement::Placement, stage::Stage, tasks::TaskRun};

/// What is to be measured.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// How many callers at once, one figure for each
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,64,256", value_parser = clap::value_parser!(u32).range(1..=4096))]
    callers: Vec<u32>,
    /// How long each measurement takes
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// How often each measurement is repeated; the median is shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// How many workers the placement is measured with, one figure for each
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1000,10000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    workers: Vec<u32>,
    /// How many resources are placed on them
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    resources: u32,
    /// Real agents in this process, of kind noop, which hold what is added and report it, instead of workers that only register; then a task on all
    /// of them is measured as well
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    agents: Option<u32>,
    /// Only the placement, which needs no etcd
    #[arg(long)]
    placement_only: bool,
    /// The etcd to measure beside; the one in PATH if left out
    #[arg(long, value_name = "FILE")]
    etcd_binary: Option<std::path::PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    evenkeel: &'static str,
    optimized: bool,
    etcd: Option<String>,
    etcd_flags: &'static str,
    cores: usize,
    /// Real agents that report; none: workers that only register.
    agents: Option<u32>,
    calls: Vec<Comparison>,
    placement: Vec<Placement>,
    /// None: there are no agents.
    task: Option<TaskRun>,
}

/// The same load on etcd alone and on Evenkeel.
#[derive(Debug, Serialize)]
struct Comparison {
    callers: u32,
    raw_put: Sample,
    add_resource: Sample,
    add_resources_stream: Sample,
    /// Rates: more is better.
    add_to_raw_rate: f64,
    stream_to_raw_rate: f64,
    /// Latencies: less is better.
    add_to_raw_p50: f64,
    add_to_raw_p99: f64,
}

/// Measures and prints.
pub(crate) fn run(args: &BenchArgs) -> ExitCode {
    match measure(args) {
        Ok(report) => {
            print(args, &report);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &BenchArgs) -> Result<Report, String> {
    let mut report = Report {
        evenkeel: env!("CARGO_PKG_VERSION"),
        optimized: !cfg!(debug_assertions),
        etcd: None,
        etcd_flags: "defaults, one member, fsync on",
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        agents: args.agents,
        calls: Vec::new(),
        placement: Vec::new(),
        task: None,
    };
    for workers in &args.workers {
        report.placement.push(placement::measure(*workers, args.resources));
    }
    if args.placement_only {
        return Ok(report);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(async {
        let stage = Stage::start(args.etcd_binary.clone(), args.agents).await?;
        report.etcd = Some(stage.etcd_version().to_owned());
        for callers in &args.callers {
            report.calls.push(compare(&stage, args, *callers).await?);
        }
        if let Some(agents) = args.agents {
            report.task = Some(tasks::measure(&stage, &stage::agents(agents)?, args.rounds).await?);
        }
        Ok(report)
    })
}

/// The three loads in turn, several times, so that a drift of the machine meets all of them; of each the median by rate.
async fn compare(stage: &Stage, args: &BenchArgs, callers: u32) -> Result<Comparison, String> {
    let (mut raw, mut add, mut stream) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        raw.push(calls::raw_put(stage, callers, args.seconds).await?);
        add.push(calls::add_resource(stage, callers, args.seconds).await?);
        stream.push(calls::add_resources(stage, args.seconds).await?);
    }
    let (raw_put, add_resource, add_resources_stream) = (median(raw), median(add), median(stream));
    Ok(Comparison {
        callers,
        add_to_raw_rate: add_resource.per_second / raw_put.per_second,
        stream_to_raw_rate: add_resources_stream.per_second / raw_put.per_second,
        add_to_raw_p50: add_resource.p50_us / raw_put.p50_us,
        add_to_raw_p99: add_resource.p99_us / raw_put.p99_us,
        raw_put,
        add_resource,
        add_resources_stream,
    })
}

fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    samples.swap_remove(samples.len() / 2)
}

fn print(args: &BenchArgs, report: &Report) {
    if args.json {
        println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
        return;
    }
    let build = if report.optimized { "release build" } else { "NOT AN OPTIMIZED BUILD: use --release" };
    println!("evenkeel {} ({build}), {} cores", report.evenkeel, report.cores);
    println!("\nplacement: one resource chosen and applied, {} resources", args.resources);
    println!("{:>9} {:>14} {:>18} {:>9} {:>10}", "workers", "ns/placement", "linear scan ns", "ratio", "max-min");
    for p in &report.placement {
        println!("{:>9} {:>14.0} {:>18.0} {:>9.0} {:>10}", p.workers, p.ns_per_placement, p.ns_linear_scan, p.ratio, p.spread);
    }
    let Some(etcd) = &report.etcd else { return };
    let workers = report.agents.map_or_else(|| "workers only register".to_owned(), |count| format!("{count} agents run and report"));
    println!("\netcd {etcd} ({}); {} s a measurement, median of {}; {workers}", report.etcd_flags, args.seconds, args.rounds);
    println!("{:>8} {:<22} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9}", "callers", "what", "per s", "p50 us", "p99 us", "rate", "p50", "p99");
    for c in &report.calls {
        let line = |what: &str, s: &Sample, ratios: [String; 3]| {
            let [rate, p50, p99] = ratios;
            println!(
                "{:>8} {what:<22} {:>10.0} {:>10.0} {:>10.0} {rate:>9} {p50:>9} {p99:>9}",
                c.callers, s.per_second, s.p50_us, s.p99_us
            );
        };
        let ratio = |x: f64| format!("{x:.2}");
        line("raw put", &c.raw_put, [ratio(1.0), ratio(1.0), ratio(1.0)]);
        line("AddResource", &c.add_resource, [ratio(c.add_to_raw_rate), ratio(c.add_to_raw_p50), ratio(c.add_to_raw_p99)]);
        line("AddResources (stream)", &c.add_resources_stream, [ratio(c.stream_to_raw_rate), "-".to_owned(), "-".to_owned()]);
    }
    println!("\nrate: per second beside raw put, more is better. p50, p99: latency beside raw put, less is better.");
    if let Some(task) = &report.task {
        println!("\n{}: a task on {} workers, from the post until every host is at an end", task.id, task.hosts);
        match (task.ours, task.ratio) {
            (Some(ours), Some(ratio)) => println!("{ours:.2} s; the raw transactions: {:.2} s; {ratio:.2} times as long", task.theirs),
            _ => println!("these agents take no tasks; the raw transactions: {:.2} s", task.theirs),
        }
    }
}

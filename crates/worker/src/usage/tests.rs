//! Sums over lists that are made up, and one pass over the real list.

use std::sync::{
    Mutex as StdMutex,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any pass is kept.
const WHILE: Duration = Duration::from_secs(3600);

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).expect("a name")
}

/// A process with one second of its own, ten that it reaped, and a hundred bytes.
fn process(pid: i32, parent: i32) -> Process {
    Process { pid, parent, began: 1, own: SECOND, reaped: 10 * SECOND, memory: 100, is_dead: false }
}

fn used(seconds: u64, memory: u64, processes: u32) -> Used {
    Used { cpu: Duration::from_secs(seconds), memory, processes }
}

fn of(roots: &[(i32, bool)], processes: &[Process]) -> Vec<Option<Used>> {
    let roots: Vec<_> = roots.iter().map(|(pid, is_work)| (name(&format!("r{pid}")), Root { pid: *pid, is_work: *is_work })).collect();
    sums(&roots, processes).into_iter().map(|sum| sum.map(|sum| sum.used)).collect()
}

#[test]
fn what_descends_from_a_root_is_its_own_however_deep() {
    // A child may stand before its parent: pids begin anew.
    let list = [process(9, 30), process(1, 0), process(20, 1), process(30, 20), process(40, 9), process(50, 1)];
    assert_eq!(of(&[(20, true)], &list), [Some(used(44, 400, 4))]);
    assert_eq!(of(&[(20, false)], &list), [Some(used(43, 300, 3))], "of who only looks after it, what it reaped counts");
    assert_eq!(of(&[(60, true), (50, false)], &list), [None, Some(used(10, 0, 0))], "one is gone, one has nothing left");
    assert_eq!(of(&[(20, false), (9, false)], &list), [Some(used(21, 100, 1)), Some(used(21, 100, 1))], "the nearer root counts");
}

#[test]
fn one_that_has_ended_has_used_time_and_nothing_else() {
    let list = [process(2, 1), Process { is_dead: true, ..process(3, 2) }];
    assert_eq!(of(&[(2, true)], &list), [Some(used(22, 100, 1))]);
}

#[test]
fn a_list_that_leads_in_a_circle_ends() {
    let list = [process(2, 3), process(3, 4), process(4, 2), process(5, 4), process(7, 7), process(8, 1)];
    assert_eq!(of(&[(8, true)], &list), [Some(used(11, 100, 1))]);
    assert_eq!(of(&[(3, true)], &list), [Some(used(44, 400, 4))]);
}

proptest! {
    /// The quick way up is the plain one, for any list.
    #[test]
    fn each_process_belongs_to_the_first_root_on_its_way_up(
        parents in prop::collection::btree_map(1..30_i32, 0..30_i32, 0..25),
        roots in prop::collection::btree_set(1..30_i32, 0..6),
    ) {
        let list: Vec<Process> = parents.iter().map(|(pid, parent)| process(*pid, *parent)).collect();
        let roots: Vec<_> = roots.into_iter().map(|pid| (name(&format!("r{pid}")), Root { pid, is_work: true })).collect();
        let plain = |pid: i32| {
            let (mut at, mut steps) = (pid, 0);
            loop {
                if let Some(index) = roots.iter().position(|(_, root)| root.pid == at) {
                    return Some(index);
                }
                at = *parents.get(&at)?;
                steps += 1;
                if steps > parents.len() || !parents.contains_key(&at) {
                    return None;
                }
            }
        };
        let expected: Vec<Option<usize>> = list.iter().map(|process| plain(process.pid)).collect();
        prop_assert_eq!(owners(&roots, &list), expected);
    }
}

#[test]
fn processor_time_never_goes_back_and_the_total_keeps_what_ended() {
    let mut ledger = Ledger::default();
    let with = |pid: i32, seconds: u64| Process { own: Duration::from_secs(seconds), reaped: Duration::ZERO, ..process(pid, 1) };
    let roots =
        |pids: &[i32]| pids.iter().map(|pid| (name(&format!("r{}", pid % 10)), Root { pid: *pid, is_work: true })).collect::<Vec<_>>();
    let mut enter = |pids: &[i32], list: &[Process]| {
        let reading = ledger.enter(&roots(pids), list);
        (reading.runs.values().map(|used| used.cpu.as_secs()).collect::<Vec<_>>(), reading.total.cpu.as_secs())
    };
    assert_eq!(enter(&[2, 3], &[with(2, 5), with(3, 7)]), (vec![5, 7], 12));
    assert_eq!(enter(&[2, 3], &[with(2, 4), with(3, 8)]), (vec![5, 8], 13), "a child of it was reaped by somebody else");
    assert_eq!(enter(&[3], &[with(3, 9)]), (vec![9], 14), "one has ended");
    assert_eq!(enter(&[13], &[with(13, 1)]), (vec![1], 15), "it runs anew");
    let later = Process { began: 2, ..with(13, 3) };
    assert_eq!(enter(&[13], &[later]), (vec![3], 18), "the same pid, and another process");
}

#[test]
fn a_pass_is_kept_for_a_while_and_longer_if_it_took_long() {
    for (took, rest) in [(0, 2000), (100, 2000), (400, 8000)] {
        assert_eq!(rest_after(Duration::from_millis(took)), Duration::from_millis(rest), "{took} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn many_callers_cost_one_pass() {
    let passes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&passes);
    let list = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(vec![process(2, 1)])
    };
    let usage = Usage::over(|| vec![(name("a"), Root { pid: 2, is_work: true })], list);
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let usage = usage.clone();
            tokio::spawn(async move { usage.read().await })
        })
        .collect();
    // Some do not wait for their answer.
    callers.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
    for caller in callers.into_iter().skip(1).step_by(2) {
        let reading = caller.await.expect("it waited").expect("read");
        assert_eq!(reading.runs[&name("a")], used(11, 100, 1));
    }
    assert_eq!(passes.load(Ordering::SeqCst), 1);
    tokio::time::advance(WHILE).await;
    usage.read().await.expect("read");
    assert_eq!(passes.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_cannot_be_read_is_said_and_nothing_is_shown() {
    let results =
        Arc::new(StdMutex::new(vec![Ok(vec![process(2, 1)]), Err(io::Error::other("too many open files")), Ok(vec![process(2, 1)])]));
    let list = move || results.lock().expect("no panic").pop().expect("three passes");
    let usage = Usage::over(|| vec![(name("a"), Root { pid: 2, is_work: true })], list);
    let page = || {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(usage.clone()));
        evenkeel_metrics::page(&registry)
    };
    usage.read().await.expect("read");
    let shown = page();
    for line in [
        "evenkeel_worker_resource_cpu_seconds_total{resource=\"a\"} 11.0\n",
        "evenkeel_worker_resource_memory_bytes{resource=\"a\"} 100\n",
        "evenkeel_worker_resource_processes{resource=\"a\"} 1\n",
        "evenkeel_worker_work_cpu_seconds_total 11.0\n",
        "evenkeel_worker_work_memory_bytes 100\n",
        "evenkeel_worker_work_processes 1\n",
    ] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
    tokio::time::advance(WHILE).await;
    assert_eq!(usage.read().await.expect_err("not read").as_ref(), "the list of processes cannot be read: too many open files");
    assert!(!page().contains("evenkeel_worker_work_processes"), "{}", page());
    tokio::time::advance(WHILE).await;
    assert_eq!(usage.read().await.expect("read").total, used(11, 100, 1), "nothing is counted twice");
}

/// A shell that has used some time and reaped a child that has, too, and waits beside a second child.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_processes_of_a_real_run_are_found_and_measured() {
    use std::{io::BufRead, process::Stdio};

    let script = "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'; sleep 300 & echo ready; read line; kill $!; wait";
    let mut command = std::process::Command::new("sh");
    let mut shell = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
    let mut line = String::new();
    std::io::BufReader::new(shell.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let pid = i32::try_from(shell.id()).expect("a pid");
    let read = async |is_work| Usage::new(move || vec![(name("a"), Root { pid, is_work })]).read().await.expect("read").total;
    let begun = std::time::Instant::now();
    // The second child may still be on the way to its program.
    let (all, below) = loop {
        let (all, below) = (read(true).await, read(false).await);
        if below.memory > 0 && all.memory > below.memory {
            break (all, below);
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{all:?} {below:?}");
    };
    drop(shell.stdin.take());
    shell.wait().expect("it ends");
    assert_eq!(line, "ready\n");
    assert_eq!((all.processes, below.processes), (2, 1));
    assert!(below.cpu >= Duration::from_millis(10), "the child that was reaped has used time: {below:?}");
    assert!(all.cpu >= below.cpu, "{all:?} {below:?}");
    let gone = Usage::new(move || vec![(name("a"), Root { pid, is_work: true })]).read().await.expect("read");
    assert_eq!(gone.runs, BTreeMap::new());
}

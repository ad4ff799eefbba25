//! Cells with a real spawner, real shims and real processes.

use std::{
    ffi::CString,
    fs,
    io::Write,
    net::Shutdown,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::timeout;

use super::{
    wire::{Account, Terms},
    *,
};
use crate::protocol::authority::{BootTime, boot_time};
use crate::sys;

const DEADLINE: Duration = Duration::from_secs(20);

fn containment() -> Arc<Containment> {
    let worker = WorkerId::new("cells").expect("id");
    Arc::new(Containment::find(&worker, hello(false), mark(), spawner::fork().expect("a spawner")).expect("containment"))
}

fn mark() -> Mark {
    Mark::of_this_process().expect("mark")
}

fn hello(by_cgroup: bool) -> Hello {
    let Mark { pid_namespace, started, .. } = mark();
    Hello { guard: 7, generation: 1, previous: None, by_cgroup, pid_namespace, started }
}

fn cell(containment: &Arc<Containment>) -> Cell {
    containment.cell("a").expect("a cell")
}

fn start(script: &str) -> Start {
    let text = |text: &str| CString::new(text).expect("no NUL");
    Start {
        not_after: boot_time() + DEADLINE,
        may_gain_privileges: false,
        cgroup: CString::default(),
        cwd: text("/"),
        stdin: CString::default(),
        errors_apart: false,
        terms: Terms::Spec,
        leaves_children: false,
        account: None,
        command: ["sh", "-c", script].map(text).to_vec(),
        environment: vec![text("PATH=/usr/bin:/bin")],
    }
}

async fn next(cell: &mut Cell) -> Option<ToAgent> {
    match timeout(DEADLINE, cell.next()).await.expect("in time") {
        FromShim::Said(said) => Some(said),
        FromShim::Gone => None,
    }
}

/// The numbers of the shim and of the main process, once that runs.
async fn started(cell: &mut Cell) -> (i32, i32) {
    let (mut shim, mut main) = (0, 0);
    loop {
        match next(cell).await.expect("a shim") {
            ToAgent::Ready(pid) => shim = pid,
            ToAgent::Forked(pid) => main = pid,
            ToAgent::Started => return (shim, main),
            other => panic!("{other:?}"),
        }
    }
}

/// What it says until nothing is left of it, but for output.
async fn rest(cell: &mut Cell) -> Vec<ToAgent> {
    let mut all = Vec::new();
    while let Some(said) = next(cell).await {
        if !matches!(said, ToAgent::Output(_)) {
            all.push(said);
        }
    }
    all
}

fn is_dead(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < DEADLINE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn number(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn nothing_is_started_once_authority_has_ended() {
    let containment = containment();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("ran");
    let mut cell = cell(&containment);
    cell.start(Start { not_after: BootTime(1), ..start(&format!("touch {}", file.display())) });
    let said = rest(&mut cell).await;
    assert!(matches!(said.as_slice(), [ToAgent::Ready(_), ToAgent::TooLate, ToAgent::Empty]), "{said:?}");
    cell.clear().await;
    assert!(!file.exists());
}

#[tokio::test]
async fn a_refusal_is_heard_that_comes_after_the_order_was_refused() {
    let containment = containment();
    let (own, mut shims) = StdStream::pair().expect("pair");
    own.set_nonblocking(true).expect("set");
    let mut cell = Cell { stream: UnixStream::from_std(own).expect("watched"), ..cell(&containment) };
    shims.shutdown(Shutdown::Read).expect("shut");
    cell.stream.ready(Interest::WRITABLE).await.expect("watched");
    cell.start(start("true"));
    assert!(cell.deaf, "the order was refused");
    let mut waits = Box::pin(cell.next());
    let pending = std::future::poll_fn(|context| std::task::Poll::Ready(waits.as_mut().poll(context).is_pending())).await;
    assert!(pending, "nothing was said yet");
    let said = [ToAgent::Refused("no process".to_owned()), ToAgent::Empty];
    shims.write_all(&said.clone().map(|said| said.encode()).concat()).expect("written");
    drop(shims);
    assert!(matches!(waits.await, FromShim::Said(first) if first == said[0]));
    assert_eq!(rest(&mut cell).await, said[1..]);
}

#[tokio::test]
async fn an_end_is_told_and_what_is_left_is_killed_before_the_last_word() {
    let containment = containment();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("left");
    let mut cell = cell(&containment);
    let left = format!("(setsid sh -c 'echo $$ > {0}; exec sleep 300' &); while [ ! -s {0} ]; do sleep 0.01; done; exit 3", file.display());
    cell.start(Start { errors_apart: true, ..start(&left) });
    started(&mut cell).await;
    assert_eq!(rest(&mut cell).await, [ToAgent::Exited(3 << 8), ToAgent::Left(1), ToAgent::Empty]);
    assert!(is_dead(number(&file).expect("what was left")));
    cell.clear().await;
}

#[tokio::test]
async fn a_second_start_is_a_second_owner_and_ends_the_run() {
    let containment = containment();
    let mut cell = cell(&containment);
    cell.start(start("sleep 300"));
    let (_, main) = started(&mut cell).await;
    cell.start(start("sleep 300"));
    assert_eq!(rest(&mut cell).await, [ToAgent::Exited(Signal::SIGKILL as i32), ToAgent::Empty]);
    assert!(is_dead(main));
}

#[tokio::test]
async fn a_run_whose_agent_has_gone_ends() {
    let containment = containment();
    let mut cell = cell(&containment);
    cell.start(start("trap '' TERM HUP; sleep 300"));
    let (shim, main) = started(&mut cell).await;
    drop(cell);
    until("the end of both", || is_dead(shim) && is_dead(main)).await;
}

#[tokio::test]
async fn what_a_killed_shim_leaves_is_ended_and_its_neighbours_live_on() {
    let containment = containment();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("left");
    let (mut killed, mut neighbour) = (cell(&containment), cell(&containment));
    killed.start(start(&format!(
        "setsid sh -c 'echo $$ > {}; trap \"\" TERM HUP; while :; do sleep 0.05; done' & sleep 300",
        file.display()
    )));
    neighbour.start(start("(setsid sleep 300 &); sleep 300"));
    let (shim, main) = started(&mut killed).await;
    let (other_shim, other_main) = started(&mut neighbour).await;
    until("what it has started", || number(&file).is_some()).await;
    let left = number(&file).expect("what was left");
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("killed");
    assert_eq!(rest(&mut killed).await, []);
    killed.clear().await;
    assert!([shim, main, left].into_iter().all(is_dead));
    // The spawner is not asked twice: what it does for one run is done when it says so.
    containment.check_spawner().await;
    assert!(!is_dead(other_shim) && !is_dead(other_main));
    neighbour.kill();
    assert_eq!(rest(&mut neighbour).await, [ToAgent::Exited(Signal::SIGKILL as i32), ToAgent::Empty]);
}

#[tokio::test]
async fn everything_ends_when_the_guard_has_ended() {
    let containment = containment();
    let mut cells = [cell(&containment), cell(&containment)];
    let mut all = Vec::new();
    for cell in &mut cells {
        cell.start(start("(setsid sh -c 'trap \"\" TERM HUP; sleep 300' &); sleep 300"));
        let (shim, main) = started(cell).await;
        all.extend([shim, main]);
    }
    containment.kill_all();
    assert!(all.into_iter().all(is_dead));
    let refused = containment.cell("b").expect_err("nothing is started any more");
    assert_eq!(refused.to_string(), "the guard has ended");
}

#[tokio::test]
async fn output_beyond_what_an_agent_reads_waits_and_is_whole() {
    let containment = containment();
    let mut cell = cell(&containment);
    cell.start(start("head -c 3000000 /dev/zero"));
    started(&mut cell).await;
    let mut bytes = 0;
    let mut last = None;
    while let Some(said) = next(&mut cell).await {
        match said {
            ToAgent::Output(part) => bytes += part.len(),
            said => last = Some(said),
        }
    }
    assert_eq!((bytes, last), (3_000_000, Some(ToAgent::Empty)));
}

/// What is killed anyhow is not looked through first, where nobody asks how many there are.
#[tokio::test]
async fn what_is_left_is_not_counted_where_nobody_asks() {
    let containment = containment();
    let mut cell = cell(&containment);
    cell.start(start("sleep 300 & exit 3"));
    started(&mut cell).await;
    assert_eq!(rest(&mut cell).await, [ToAgent::Exited(3 << 8), ToAgent::Empty]);
}

/// Each stream as it was written, and how many processes were left.
async fn streams(cell: &mut Cell) -> (String, String, u32) {
    let (mut output, mut errors, mut left) = (Vec::new(), Vec::new(), 0);
    while let Some(said) = next(cell).await {
        match said {
            ToAgent::Output(bytes) => output.extend(bytes),
            ToAgent::Errors(bytes) => errors.extend(bytes),
            ToAgent::Left(number) => left = number,
            ToAgent::Refused(why) => panic!("{why}"),
            _ => {}
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (text(output), text(errors), left)
}

#[tokio::test]
async fn stderr_apart_is_told_apart_and_stdin_is_a_file() {
    let containment = containment();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("in");
    fs::write(&file, "given").expect("written");
    let stdin = CString::new(file.into_os_string().into_encoded_bytes()).expect("no NUL");
    let mut cell = cell(&containment);
    cell.start(Start {
        stdin,
        errors_apart: true,
        ..start("cat; echo out; echo err >&2; echo more >&2; echo out; sleep 300 & sleep 300 &")
    });
    assert_eq!(streams(&mut cell).await, ("givenout\nout\n".to_owned(), "err\nmore\n".to_owned(), 2));
}

#[tokio::test]
async fn what_is_left_lives_on_where_it_is_to_until_the_run_is_killed() {
    let containment = containment();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("left");
    let mut cell = cell(&containment);
    let left = format!("(setsid sh -c 'echo $$ > {0}; exec sleep 300' &); while [ ! -s {0} ]; do sleep 0.01; done; exit 3", file.display());
    cell.start(Start { leaves_children: true, errors_apart: true, ..start(&left) });
    started(&mut cell).await;
    assert_eq!(next(&mut cell).await, Some(ToAgent::Exited(3 << 8)));
    assert_eq!(next(&mut cell).await, Some(ToAgent::Left(1)));
    let left = number(&file).expect("what was left");
    assert!(!is_dead(left));
    cell.kill();
    assert_eq!(rest(&mut cell).await, [ToAgent::Empty]);
    assert!(is_dead(left));
}

/// Root alone can become another.
#[tokio::test]
async fn a_process_of_another_account_is_that_account_and_dies_with_its_run() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let containment = containment();
    let account = Account { uid: 65_534, gid: 65_533, groups: vec![65_533, 12] };
    let mut first = cell(&containment);
    first.start(Start {
        account: Some(account.clone()),
        errors_apart: true,
        ..start("id -u; id -G; cat /proc/self/status | grep ^NoNewPrivs")
    });
    assert_eq!(streams(&mut first).await.0, "65534\n65533 12\nNoNewPrivs:\t1\n");
    let mut second = cell(&containment);
    second.start(Start { account: Some(account), ..start("trap '' TERM HUP; sleep 300 & sleep 300") });
    let (shim, main) = started(&mut second).await;
    kill(Pid::from_raw(shim), Signal::SIGKILL).expect("killed");
    rest(&mut second).await;
    second.clear().await;
    assert!(is_dead(shim) && is_dead(main), "the tie to its shim was made after its account");
}

/// Runs one test of this file in a process of its own, where these faults are injected.
fn with_faults(test: &str, faults: &str) -> bool {
    const ALONE: &str = "EVENKEEL_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let this = std::env::current_exe().expect("this program");
    let (_, here) = module_path!().split_once("::").expect("a module of this crate");
    let name = format!("{here}::{test}");
    let output = Command::new(this).args(["--exact", &name, "--nocapture"]).env(ALONE, "1").env("EVENKEEL_FAULTS", faults).output();
    let output = output.expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    // A name that is no test's runs nothing, and nothing fails.
    assert!(output.status.success() && said.contains("1 passed"), "{test} with {faults}: {output:?}");
    false
}

#[test]
fn a_process_that_cannot_be_looked_at_is_not_gone() {
    if with_faults("a_process_that_cannot_be_looked_at_is_not_gone", "procfs.open=EMFILE") {
        let error = procfs::Processes::open().expect("opened").each(|_| {}).expect_err("nothing is known");
        assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32));
    }
}

/// Whatever the kernel refuses on the way to a process, nothing has begun, and nothing is left.
#[tokio::test]
async fn what_the_kernel_refuses_is_told_and_starts_nothing() {
    const TEST: &str = "what_the_kernel_refuses_is_told_and_starts_nothing";
    let way_out = "; a limit of processes is reached (pids.max of a cgroup, TasksMax=, pids_limit, or RLIMIT_NPROC of the user)";
    let faults = [
        ("spawner.fork=EAGAIN", format!("no process can be made: resource temporarily unavailable{way_out}")),
        ("shim.fork=ENOMEM", "no process can be made: cannot allocate memory; memory is short".to_owned()),
        ("shim.pipe=EMFILE", "cannot make a pipe: too many open files".to_owned()),
    ];
    for (fault, expected) in &faults {
        if std::env::var("EVENKEEL_FAULTS").is_ok_and(|set| set != *fault) || !with_faults(TEST, fault) {
            continue;
        }
        let containment = containment();
        let mut cell = cell(&containment);
        cell.start(start("sleep 300"));
        let said = rest(&mut cell).await;
        let refused = ToAgent::Refused(expected.clone());
        assert!(said.ends_with(&[refused, ToAgent::Empty]), "{said:?}");
        assert!(!said.iter().any(|said| matches!(said, ToAgent::Forked(_) | ToAgent::Started)), "{said:?}");
        cell.clear().await;
    }
}

/// The runtime cannot watch the socket of a run: no shim was asked for, so that there is none to forget.
#[tokio::test]
async fn a_socket_that_cannot_be_watched_begins_nothing() {
    const TEST: &str = "a_socket_that_cannot_be_watched_begins_nothing";
    for fault in ["agent.epoll=ENOSPC", "agent.socket=EMFILE"] {
        if std::env::var("EVENKEEL_FAULTS").is_ok_and(|set| set != fault) || !with_faults(TEST, fault) {
            continue;
        }
        let containment = containment();
        containment.cell("a").expect_err("refused");
        containment.check_spawner().await;
        let spawners: Vec<i32> = sweep::children(std::process::id().cast_signed()).expect("children");
        assert_eq!(spawners.len(), 1, "the spawner alone");
        assert!(sweep::children(spawners[0]).expect("children").is_empty(), "and it has no shim");
    }
}

/// A shim that dies right where it hurts most: its child is there and nobody was told.
#[tokio::test]
async fn a_shim_that_is_killed_after_its_fork_leaves_nothing() {
    const TEST: &str = "a_shim_that_is_killed_after_its_fork_leaves_nothing";
    if !with_faults(TEST, "shim.forked=KILL") {
        return;
    }
    let containment = containment();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("ran");
    let mut cell = cell(&containment);
    cell.start(start(&format!("trap '' HUP TERM; echo $$ > {}; sleep 300", file.display())));
    let said = rest(&mut cell).await;
    assert!(!said.contains(&ToAgent::Empty), "{said:?}");
    cell.clear().await;
    let spawner = sweep::children(std::process::id().cast_signed()).expect("children");
    assert!(sweep::children(spawner[0]).expect("children").is_empty());
    assert!(number(&file).is_none_or(is_dead));
}

/// The cgroup of a run fails where it can: it is not made, not joined, or not killed by. Nothing runs outside of it, and nothing is left.
#[tokio::test]
async fn a_run_whose_cgroup_fails_does_not_run_beside_it() {
    const TEST: &str = "a_run_whose_cgroup_fails_does_not_run_beside_it";
    let faults = [
        ("shim.cgroup=ENOSPC", "cannot make the cgroup of the run: no space left on device"),
        ("child.join=EPERM", "cannot join its cgroup: operation not permitted"),
        ("shim.cgroup.kill=EPERM", ""),
    ];
    for (fault, refused) in faults {
        if std::env::var("EVENKEEL_FAULTS").is_ok_and(|set| set != fault) || !with_faults(TEST, fault) {
            continue;
        }
        let own = cgroup::own().expect("these tests run where a cgroup can be made");
        let worker = WorkerId::new("cells-cgroup").expect("id");
        let folder = cgroup::work_folder(&own, &worker, hello(true).guard);
        let work = Cgroup::create(folder.clone()).expect("a cgroup");
        let spawned = spawner::fork().expect("a spawner");
        let containment = Arc::new(Containment::find(&worker, hello(true), mark(), spawned).expect("containment"));
        let mut cell = cell(&containment);
        cell.start(start("trap '' TERM; (setsid sleep 300 &); sleep 300"));
        if refused.is_empty() {
            started(&mut cell).await;
            until("both in the cgroup", || !work.is_empty().expect("asked")).await;
            cell.kill();
        }
        let said = rest(&mut cell).await;
        assert!(refused.is_empty() || said.contains(&ToAgent::Refused(refused.to_owned())), "{said:?}");
        assert!(!said.contains(&ToAgent::Started) && said.last() == Some(&ToAgent::Empty), "{said:?}");
        cell.clear().await;
        assert!(work.is_empty().expect("asked"));
        let below = fs::read_dir(&folder).expect("listed").flatten().filter(|entry| entry.path().is_dir()).count();
        assert_eq!(below, 0, "the cgroup of the run is removed");
        work.remove();
    }
}

/// What its own user could do with the files of its shim it could do with the shim's word. What this process is kept from is handed on to the
/// spawner and the shims, which are forks of it, and not to work.
#[test]
fn nobody_looks_into_what_holds_work() {
    assert!(nix::sys::prctl::get_dumpable().expect("asked"), "as any other program");
    sys::keep_out().expect("kept out");
    assert!(!nix::sys::prctl::get_dumpable().expect("asked"));
    nix::sys::prctl::set_dumpable(true).expect("let in");
}

#[tokio::test]
async fn a_run_that_the_spawner_has_to_end_is_over_when_it_says_so() {
    let containment = containment();
    for _ in 0..20 {
        let mut cell = cell(&containment);
        cell.start(start("trap '' TERM; sleep 300 & wait"));
        let (shim, main) = started(&mut cell).await;
        kill(Pid::from_raw(shim), Signal::SIGSTOP).expect("stopped");
        cell.kill();
        timeout(DEADLINE, cell.clear()).await.expect("its end is known");
        assert!(is_dead(shim) && is_dead(main), "neither lives, and both are reaped");
    }
}

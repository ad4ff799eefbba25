//! Logs on a real disk, with the thread that writes them.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    time::{Duration, Instant, SystemTime},
};

use super::{
    pending::{ALL, ONE, Pending},
    place::{CURRENT, OLDER, Place},
    *,
};

const KEEP: Duration = Duration::from_secs(86_400);

/// What somebody does to a log, and what somebody puts in its place.
type Change = fn(&Testbed);
type Put = fn(&Testbed, &Path);

struct Testbed {
    folder: tempfile::TempDir,
    logs: Logs,
}

fn name() -> ResourceName {
    ResourceName::new(&"n".repeat(253)).expect("name")
}

impl Testbed {
    fn new(max_bytes: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let logs = Logs::start(folder.path().join("logs"), max_bytes, KEEP).expect("threads");
        Self { folder, logs }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join("logs").join(name().as_str()).join(file)
    }

    fn log(&self, epoch: i64) -> Log {
        self.logs.writer(&name()).of(Epoch(epoch))
    }

    async fn reader(&self, from: From) -> Reader {
        self.logs.read(&name(), from).await.expect("readable")
    }

    async fn rest(&self, mut reader: Reader) -> (String, Reader) {
        let mut text = Vec::new();
        loop {
            let (next, bytes) = self.logs.more(reader).await.expect("readable");
            reader = next;
            if bytes.is_empty() {
                return (String::from_utf8(text).expect("text"), reader);
            }
            text.extend(bytes);
        }
    }

    async fn kept(&self, from: From) -> String {
        self.rest(self.reader(from).await).await.0
    }
}

/// Appends, and waits until it is written.
async fn say(log: &Log, text: &str) {
    log.append(text.as_bytes());
    log.finish().await;
}

#[tokio::test]
async fn a_log_keeps_the_newest_within_its_bound() {
    let bed = Testbed::new(100);
    assert!(!bed.reader(From::Start).await.has_file());
    let log = bed.log(1);
    for n in 0..100 {
        say(&log, &format!("line {n}\n")).await;
    }
    let text = bed.kept(From::Start).await;
    assert!(text.len() <= 200 && text.len() > 100, "{}", text.len());
    assert!(text.ends_with("line 98\nline 99\n") && text.starts_with("line "), "{text}");
    // The next writer goes on in the same file.
    say(&bed.log(2), "later\n").await;
    assert!(bed.kept(From::Start).await.ends_with("line 99\nlater\n"));
}

#[tokio::test]
async fn a_line_of_any_length_is_bounded_too() {
    let bed = Testbed::new(100);
    for _ in 0..50 {
        say(&bed.log(1), &"x".repeat(77)).await;
    }
    for file in [CURRENT, OLDER] {
        let size = fs::metadata(bed.path(file)).expect("file").len();
        assert!(size <= 100, "{size}");
    }
}

#[tokio::test]
async fn a_follower_crosses_generations_and_loses_nothing() {
    let bed = Testbed::new(64);
    let log = bed.log(1);
    say(&log, "begin\n").await;
    let (mut seen, mut reader) = bed.rest(bed.reader(From::Start).await).await;
    let mut expected = "begin\n".to_owned();
    for n in 0..80 {
        let line = format!("line {n}\n");
        say(&log, &line).await;
        expected += &line;
        // Now and then two generations begin between two looks: the follower still has the oldest open.
        if n % 10 == 0 {
            let (more, next) = bed.rest(reader).await;
            seen += &more;
            reader = next;
        }
    }
    let (more, reader) = bed.rest(reader).await;
    assert_eq!(seen + &more, expected);
    // One that comes back goes on where it was, over a generation as well.
    let position = reader.position().expect("a place");
    assert_eq!(position.to_string().parse(), Ok(position));
    for n in 0..9 {
        say(&log, &format!("later {n}\n")).await;
    }
    let later: String = (0..9).map(|n| format!("later {n}\n")).collect();
    assert_eq!(bed.kept(From::Position(position)).await, later);
}

#[tokio::test]
async fn the_tail_counts_lines() {
    let cases =
        [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 2, "b\nc"), ("a\nb\n", 9, "a\nb\n"), ("", 3, ""), ("\n\n\n", 1, "\n"), ("a\n", 1, "a\n")];
    for (text, lines, expected) in cases {
        let bed = Testbed::new(4);
        let log = bed.log(1);
        for line in text.split_inclusive('\n') {
            say(&log, line).await;
        }
        assert_eq!(bed.kept(From::Tail(lines)).await, expected, "{text:?} {lines}");
    }
    // More than is read at a time.
    let bed = Testbed::new(1 << 20);
    say(&bed.log(1), &format!("first\n{}\nlast\n", "x".repeat(150_000))).await;
    assert_eq!(bed.kept(From::Tail(2)).await.len(), 150_001 + 5);
    assert_eq!(bed.kept(From::Tail(1)).await, "last\n");
}

#[tokio::test]
async fn output_of_an_earlier_owner_is_not_taken_for_a_later_ones() {
    let bed = Testbed::new(1 << 20);
    say(&bed.log(10), "of ten\n").await;
    assert_eq!(bed.kept(From::Epoch(Epoch(10))).await, "of ten\n");
    // Epoch 20 has written nothing yet: what comes is its own.
    let reader = bed.reader(From::Epoch(Epoch(20))).await;
    let (text, reader) = bed.rest(reader).await;
    assert_eq!(text, "");
    let log = bed.log(20);
    say(&log, "of twenty\n").await;
    assert_eq!(bed.rest(reader).await.0, "of twenty\n");
    // An agent that is started again has the same epoch, and its output goes on.
    say(&bed.log(20), "still\n").await;
    assert_eq!(bed.kept(From::Epoch(Epoch(20))).await, "of twenty\nstill\n");
    assert_eq!(bed.kept(From::Epoch(Epoch(15))).await, "of twenty\nstill\n", "who asked late is shown what is later");
    assert_eq!(bed.kept(From::Start).await, "of ten\nof twenty\nstill\n");
}

#[tokio::test]
async fn a_file_that_was_removed_moved_or_replaced_is_noticed_at_once() {
    let bed = Testbed::new(1 << 20);
    let log = bed.log(1);
    say(&log, "one\n").await;
    let (_, reader) = bed.rest(bed.reader(From::Start).await).await;
    let changes: [(&str, Change); 4] = [
        ("removed", |bed| fs::remove_file(bed.path(CURRENT)).expect("removed")),
        ("moved", |bed| fs::rename(bed.path(CURRENT), bed.path("kept")).expect("moved")),
        ("emptied", |bed| fs::write(bed.path(CURRENT), "").expect("emptied")),
        ("folder removed", |bed| fs::remove_dir_all(bed.path("")).expect("removed")),
    ];
    let mut reader = reader;
    for (change, make) in changes {
        make(&bed);
        let line = format!("after it was {change}\n");
        let (nothing, next) = bed.rest(reader).await;
        assert_eq!(nothing, "", "{change}");
        say(&log, &line).await;
        assert_eq!(bed.kept(From::Start).await, line);
        let (text, next) = bed.rest(next).await;
        assert_eq!(text, line, "a follower goes on");
        reader = next;
    }
}

#[tokio::test]
async fn what_stands_in_a_logs_place_is_neither_followed_nor_written() {
    let elsewhere = tempfile::tempdir().expect("folder");
    let target = elsewhere.path().join("target");
    fs::write(&target, "theirs\n").expect("write");
    let cases: [(&str, Put); 4] = [
        ("a symbolic link is not followed here", |bed, target| symlink(target, bed.path(CURRENT)).expect("link")),
        ("a symbolic link is not followed here", |bed, target| {
            fs::remove_dir_all(bed.path("")).expect("removed");
            symlink(target.parent().expect("folder"), bed.folder.path().join("logs").join(name().as_str())).expect("link");
        }),
        ("it must be a file", |bed, _| fs::create_dir(bed.path(CURRENT)).expect("folder")),
        ("it must be a file", |bed, _| {
            nix::unistd::mkfifo(&bed.path(CURRENT), nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("pipe");
        }),
    ];
    for (expected, put) in cases {
        let bed = Testbed::new(1 << 20);
        fs::create_dir_all(bed.path("")).expect("folder");
        put(&bed, &target);
        let place = Place::new(bed.folder.path().join("logs"), 1 << 20);
        let mut pending = Pending::default();
        pending.push(&name(), None, b"ours\n");
        let mut batch = pending.take().expect("a batch");
        let error = place.write(&mut batch, "").expect_err(expected).to_string();
        assert!(error.contains(expected) && error.starts_with(bed.folder.path().to_str().expect("utf-8")), "{error}");
        assert_eq!(batch.bytes.len(), 5, "nothing of it is taken for written");
        let error = bed.logs.read(&name(), From::Start).await.expect_err("not read either").to_string();
        assert!(error.contains(expected), "{error}");
        // Its log is written again once the place is free, and nothing is lost meanwhile.
        bed.log(1).append(b"first\n");
        let logs = bed.folder.path().join("logs").join(name().as_str());
        let obstacle = if logs.is_symlink() { logs } else { bed.path(CURRENT) };
        fs::remove_file(&obstacle).or_else(|_| fs::remove_dir(&obstacle)).expect("free");
        say(&bed.log(1), "second\n").await;
        assert_eq!(bed.kept(From::Start).await, "first\nsecond\n");
    }
    assert_eq!(fs::read_to_string(&target).expect("read"), "theirs\n");
    assert_eq!(fs::read_dir(elsewhere.path()).expect("folder").count(), 1);
}

/// A file system of its own that is full in no time. It needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, kib: u32) -> Self {
        assert_eq!(fs::metadata("/proc/self").expect("proc").uid(), 0, "this test mounts a file system: run it as root");
        fs::create_dir_all(&at).expect("folder");
        let options = format!("size={kib}k");
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&at).status().expect("mount");
        assert!(mounted.success(), "this test mounts a file system: it needs CAP_SYS_ADMIN");
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_the_newest_is_kept_and_what_was_lost_is_told() {
    let folder = tempfile::tempdir().expect("folder");
    let disk = SmallDisk::mount(folder.path().join("logs"), 256);
    let logs = Logs::start(disk.0.clone(), 96 << 10, KEEP).expect("threads");
    let file = |file: &str| disk.0.join("r").join(file);
    let log = logs.writer(&ResourceName::new("r").expect("name")).of(Epoch(1));
    let line = format!("{}\n", "x".repeat(1023));
    for _ in 0..150 {
        say(&log, &line).await;
    }
    assert!(file(OLDER).exists());
    // Somebody else takes what is left: the older generation is given up for what comes.
    fs::write(disk.0.join("ballast"), vec![0; 1 << 20]).expect_err("full");
    say(&log, &line.repeat(8)).await;
    assert!(!file(OLDER).exists() && logs.measured().lost == 0);
    // Once more, and there is nothing left to be given up.
    fs::write(disk.0.join("ballast-2"), vec![0; 1 << 20]).expect_err("full");
    for n in 0..1000 {
        log.append(format!("{n} {line}").as_bytes());
    }
    let begun = Instant::now();
    log.room().await;
    assert!(begun.elapsed() < ROOM, "work is not held up by a full disk");
    let lost = logs.measured().lost;
    assert!(lost > 500 << 10 && logs.measured().pending <= ONE as u64, "{:?}", logs.measured());
    fs::remove_file(disk.0.join("ballast")).expect("room");
    fs::remove_file(disk.0.join("ballast-2")).expect("room");
    say(&log, "last\n").await;
    let lost = logs.measured().lost;
    let kept: String = [OLDER, CURRENT].iter().filter_map(|name| fs::read_to_string(file(name)).ok()).collect();
    assert!(kept.ends_with(&format!("999 {line}last\n")), "the newest is there");
    let told = kept.lines().find(|line| line.starts_with("[evenkeel: "));
    let whole = format!("[evenkeel: {lost} bytes of output were lost here: no space left on device]");
    assert!(told.is_none_or(|told| told == whole), "{told:?}, {whole:?}");
    assert_eq!(logs.measured(), Measured { pending: 0, lost });
}

#[tokio::test]
async fn the_log_tells_what_was_lost_on_a_line_of_its_own() {
    let bed = Testbed::new(4 << 20);
    let log = bed.log(1);
    say(&log, "half a line").await;
    let place = Place::new(bed.folder.path().join("logs"), 4 << 20);
    let mut pending = Pending::default();
    let line = format!("{}\n", "x".repeat(1023));
    for _ in 0..300 {
        pending.push(&name(), None, line.as_bytes());
    }
    let mut batch = pending.take().expect("a batch");
    assert_eq!(batch.lost, pending.lost());
    place.write(&mut batch, "the disk did not keep up").expect("written");
    let text = bed.kept(From::Start).await;
    let told = format!("half a line\n[evenkeel: {} bytes of output were lost here: the disk did not keep up]\n{line}", 44 * 1024);
    assert!(text.starts_with(&told) && text.len() == told.len() + 255 * 1024, "{:?}", &text[..120]);
}

#[tokio::test]
async fn ten_thousand_silent_resources_cost_their_names() {
    let bed = Testbed::new(1 << 20);
    let mut logs = Vec::with_capacity(10_000);
    let names: Vec<_> = (0..10_000).map(|n| ResourceName::new(&format!("resource-{n}")).expect("name")).collect();
    let counted = allocation_counter::measure(|| logs.extend(names.iter().map(|name| bed.logs.writer(name).of(Epoch(1)))));
    let each = counted.bytes_current / 10_000;
    eprintln!("{each} bytes a silent resource");
    assert!(each < 200, "{each} bytes a silent resource");
    assert_eq!(fs::read_dir(bed.folder.path()).expect("folder").count(), 0, "nothing is on the disk");
    // And what all of them say at once is bounded: 10,000 times a whole pipe, of which the disk takes nothing.
    let mut pending = Pending::default();
    let counted = allocation_counter::measure(|| {
        let pipe = vec![b'x'; 65_536];
        for name in &names {
            pending.push(name, None, &pipe);
        }
    });
    eprintln!("{} bytes of 10,000 loud resources", counted.bytes_current);
    assert!(pending.bytes() <= ALL && counted.bytes_max < 2 * ALL as u64 + (8 << 20), "{counted:?}");
}

#[test]
fn logs_that_are_long_untouched_are_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let elsewhere = tempfile::tempdir().expect("folder");
    fs::create_dir_all(folder.path().join("old")).expect("folder");
    fs::write(folder.path().join("old").join(OLDER), "x").expect("write");
    symlink(elsewhere.path(), folder.path().join("link")).expect("link");
    let place = Place::new(folder.path().to_owned(), 64);
    let left = || fs::read_dir(folder.path()).expect("folder").count();
    place.prune(KEEP, SystemTime::now()).expect("prune");
    assert_eq!(left(), 2);
    place.prune(KEEP, SystemTime::now() + 2 * KEEP).expect("prune");
    assert_eq!(left(), 1);
    assert!(elsewhere.path().exists(), "a link is let be");
}

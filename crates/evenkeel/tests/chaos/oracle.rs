//! The first oracle: judges what the work has written down. PURE.
//!
//! Beside the wheel. A line is `start|stop|overlap|refused STAMP RESOURCE EPOCH WORKER PID CONTENT`, written while the lock on the
//! resource's name is held, except for `overlap`, which says that somebody else held it.

use std::collections::BTreeMap;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) what: What,
    pub(crate) stamp: u64,
    pub(crate) resource: String,
    pub(crate) epoch: u64,
    pub(crate) worker: String,
    pub(crate) pid: i32,
    pub(crate) content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Start,
    Stop,
    Overlap,
    Refused,
}

/// A process of a resource that is alive now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alive {
    pub(crate) resource: String,
    pub(crate) epoch: u64,
    pub(crate) pid: i32,
}

/// What must be true at the end: the epoch of each wanted resource's assignment, and its content.
pub(crate) type Wanted = BTreeMap<String, (u64, String)>;

/// Everything that is wrong, sorted by what it breaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// Two owners at once.
    pub(crate) overlaps: Vec<String>,
    /// Anything else.
    pub(crate) faults: Vec<String>,
}

/// The lines of a log; the last one may be half written.
pub(crate) fn parse(log: &str) -> Vec<Line> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole.lines().map(|line| parse_line(line).unwrap_or_else(|| panic!("no line of a log: {line:?}"))).collect()
}

fn parse_line(line: &str) -> Option<Line> {
    let mut words = line.splitn(7, ' ');
    let what = match words.next()? {
        "start" => What::Start,
        "stop" => What::Stop,
        "overlap" => What::Overlap,
        "refused" => What::Refused,
        _ => return None,
    };
    Some(Line {
        what,
        stamp: words.next()?.parse().ok()?,
        resource: words.next()?.to_owned(),
        epoch: words.next()?.parse().ok()?,
        worker: words.next()?.to_owned(),
        pid: words.next()?.parse().ok()?,
        content: words.next()?.to_owned(),
    })
}

/// Judges the log so far, at any time: nobody ran while another did, and epochs grow.
pub(crate) fn judge_course(lines: &[Line]) -> Judgement {
    let mut judgement = Judgement::default();
    let mut by_resource: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        by_resource.entry(&line.resource).or_default().push(line);
    }
    for (name, mut lines) in by_resource {
        lines.sort_by_key(|line| line.stamp);
        let mut owner: Option<&Line> = None;
        let mut largest = (0, "");
        for line in lines {
            match line.what {
                What::Overlap => judgement.overlaps.push(format!("{name}: {} was started while another held the lock", show(line))),
                What::Start => {
                    // One epoch is one assignment, so it belongs to one worker. A restart in place keeps it.
                    if (line.epoch, line.worker.as_str()) < largest || (line.epoch == largest.0 && line.worker != largest.1) {
                        judgement.faults.push(format!("{name}: {} began after epoch {} on {}", show(line), largest.0, largest.1));
                    }
                    largest = largest.max((line.epoch, line.worker.as_str()));
                    owner = Some(line);
                }
                What::Stop => match owner {
                    Some(start) if (start.pid, start.epoch) == (line.pid, line.epoch) => owner = None,
                    Some(start) => judgement.overlaps.push(format!("{name}: {} ended while {} ran", show(line), show(start))),
                    None => judgement.faults.push(format!("{name}: {} ended without having begun", show(line))),
                },
                What::Refused => {}
            }
        }
    }
    judgement
}

/// Judges the end: each wanted resource has exactly one process, that of its assignment and its content; nothing else runs, and every
/// start has an end or is alive.
pub(crate) fn judge_end(lines: &[Line], alive: &[Alive], wanted: &Wanted) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, (epoch, content)) in wanted {
        let running: Vec<&Alive> = alive.iter().filter(|alive| alive.resource == *name).collect();
        match running[..] {
            [] => faults.push(format!("{name}: wanted, and nothing runs")),
            [one] if one.epoch != *epoch => faults.push(format!("{name}: epoch {} runs, and {epoch} is assigned", one.epoch)),
            [one] => {
                let start = lines.iter().rev().find(|line| line.what == What::Start && line.resource == *name);
                match start {
                    Some(start) if (start.pid, start.epoch) != (one.pid, one.epoch) => {
                        faults.push(format!("{name}: pid {} runs, and the last to begin was {}", one.pid, show(start)));
                    }
                    Some(start) if start.content != *content => {
                        faults.push(format!("{name}: {:?} runs, and {content:?} is wanted", start.content));
                    }
                    Some(_) => {}
                    None => faults.push(format!("{name}: runs without having begun")),
                }
            }
            _ => faults.push(format!("{name}: {} processes run: {running:?}", running.len())),
        }
    }
    let strays = alive.iter().filter(|alive| !wanted.contains_key(&alive.resource));
    faults.extend(strays.map(|alive| format!("{}: not wanted, and runs as {}", alive.resource, alive.pid)));
    faults
}

/// How often something was started after this time, of the resources that are named so.
pub(crate) fn starts_since(lines: &[Line], stamp: u64, is_meant: impl Fn(&str) -> bool) -> usize {
    lines.iter().filter(|line| line.what == What::Start && line.stamp > stamp && is_meant(&line.resource)).count()
}

fn show(line: &Line) -> String {
    format!("epoch {} on {} (pid {})", line.epoch, line.worker, line.pid)
}

/// The oracle is tried on logs that were made up, of which all but one are bad.
pub(crate) mod tests {
    use super::*;

    const GOOD: &str =
        "start 10 a 5 worker-1 100 v1\nstop 20 a 5 worker-1 100 v1\nstart 30 a 9 worker-2 101 v1\nstart 31 b 9 worker-2 102 v1\n";

    fn alive(resource: &str, epoch: u64, pid: i32) -> Alive {
        Alive { resource: resource.to_owned(), epoch, pid }
    }

    fn wanted() -> Wanted {
        [("a", 9, "v1"), ("b", 9, "v1")].into_iter().map(|(name, epoch, content)| (name.to_owned(), (epoch, content.to_owned()))).collect()
    }

    /// A good course and a good end are found good.
    pub(crate) fn good_is_good() {
        let lines = parse(GOOD);
        assert_eq!(judge_course(&lines), Judgement::default());
        assert_eq!(judge_end(&lines, &[alive("a", 9, 101), alive("b", 9, 102)], &wanted()), Vec::<String>::new());
        // One that was killed has no end of its own: that another could take the lock is its end.
        let killed = GOOD.replace("stop 20 a 5 worker-1 100 v1\n", "");
        assert_eq!(judge_course(&parse(&killed)), Judgement::default());
        // A restart in place keeps its epoch; half a line is not judged yet.
        let again = format!("{GOOD}stop 40 b 9 worker-2 102 v1\nstart 41 b 9 worker-2 103 v1\nstart 50 a 1");
        assert_eq!(judge_course(&parse(&again)), Judgement::default());
        assert_eq!(starts_since(&parse(&again), 30, |_| true), 2);
    }

    /// Each kind of bad course is found bad.
    pub(crate) fn bad_courses_are_bad() {
        let overlap = format!("{GOOD}overlap 40 a 12 worker-3 104 v1\n");
        assert_eq!(judge_course(&parse(&overlap)).overlaps.len(), 1);
        let late_stop = "start 10 a 5 worker-1 100 v1\nstart 15 a 9 worker-2 101 v1\nstop 20 a 5 worker-1 100 v1\n";
        assert_eq!(judge_course(&parse(late_stop)).overlaps.len(), 1);
        let back = format!("{GOOD}start 40 a 7 worker-1 105 v1\n");
        assert_eq!(judge_course(&parse(&back)).faults.len(), 1, "an epoch that shrinks");
        let shared = format!("{GOOD}start 40 a 9 worker-1 105 v1\n");
        assert_eq!(judge_course(&parse(&shared)).faults.len(), 1, "one epoch on two workers");
        let unbegun = "stop 20 a 5 worker-1 100 v1\n";
        assert_eq!(judge_course(&parse(unbegun)).faults.len(), 1);
    }

    /// Each kind of bad end is found bad.
    pub(crate) fn bad_ends_are_bad() {
        let lines = parse(GOOD);
        let (a, b) = (alive("a", 9, 101), alive("b", 9, 102));
        let bad: [(&str, Vec<Alive>); 6] = [
            ("nothing runs", vec![a.clone()]),
            ("2 processes", vec![a.clone(), alive("a", 9, 107), b.clone()]),
            ("not wanted", vec![a.clone(), b.clone(), alive("c", 3, 108)]),
            ("is assigned", vec![alive("a", 5, 100), b.clone()]),
            ("the last to begin", vec![alive("a", 9, 109), b.clone()]),
            ("without having begun", vec![a.clone(), b.clone(), alive("d", 1, 1)]),
        ];
        for (why, alive) in bad {
            let mut wanted = wanted();
            if why == "without having begun" {
                wanted.insert("d".to_owned(), (1, "v1".to_owned()));
            }
            let faults = judge_end(&lines, &alive, &wanted);
            assert!(matches!(&faults[..], [one] if one.contains(why)), "{why}: {faults:?}");
        }
        let mut changed = wanted();
        changed.insert("b".to_owned(), (9, "v2".to_owned()));
        assert_eq!(judge_end(&lines, &[a, b], &changed).len(), 1, "the content of before");
    }
}

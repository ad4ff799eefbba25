//! The processes of this machine, with what each of them uses.
//!
//! The wheel: under worker::usage. It sums nothing up.

use std::{io, time::Duration};

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    /// When it began, in a unit of the system's: with the pid it names one process for good.
    pub(super) began: u64,
    /// Processor time of its own threads.
    pub(super) own: Duration,
    /// Processor time of those of its children that it has waited for, and of theirs.
    pub(super) reaped: Duration,
    /// Bytes in RAM.
    pub(super) memory: u64,
    /// It has ended, and waits to be reaped.
    pub(super) is_dead: bool,
}

/// Every process once. One that comes or goes meanwhile may be missed.
///
/// # Errors
/// The list, or the entry of a process that is still there, cannot be read.
#[cfg(target_os = "linux")]
pub(super) fn processes() -> io::Result<Vec<Process>> {
    processes_in(std::path::Path::new("/proc"))
}

#[cfg(target_os = "linux")]
fn processes_in(folder: &std::path::Path) -> io::Result<Vec<Process>> {
    use std::io::Read;

    use crate::hold::procfs::is_gone;

    let units = Units::of_this_system();
    let mut processes = Vec::new();
    // A line has some 350 bytes; the name in it at most 64.
    let mut text = [0_u8; 1024];
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let read = std::fs::File::open(entry.path().join("stat")).and_then(|mut file| file.read(&mut text));
        match read {
            Ok(length) => processes.extend(parse(&text[..length], units)),
            // It has ended meanwhile.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("process {pid}: {error}"))),
        }
    }
    Ok(processes)
}

/// What the numbers of the kernel count.
#[cfg(any(target_os = "linux", test))]
#[derive(Clone, Copy, Debug)]
struct Units {
    ticks_a_second: u64,
    page: u64,
}

#[cfg(any(target_os = "linux", test))]
impl Units {
    #[cfg(target_os = "linux")]
    fn of_this_system() -> Self {
        Self { ticks_a_second: rustix::param::clock_ticks_per_second().max(1), page: rustix::param::page_size() as u64 }
    }

    fn time(self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_a_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Reads a line of `/proc/<pid>/stat` (proc_pid_stat(5)). The command's name, in brackets, may itself hold brackets and spaces.
#[cfg(any(target_os = "linux", test))]
fn parse(line: &[u8], units: Units) -> Option<Process> {
    let open = line.iter().position(|b| *b == b'(')?;
    let close = line.iter().rposition(|b| *b == b')')?;
    let pid = std::str::from_utf8(line.get(..open)?.trim_ascii()).ok()?.parse().ok()?;
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(22).collect();
    // As the manual numbers them, beginning with the state, which is the third.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |index: usize| field(index)?.parse::<u64>().ok();
    // The kernel counts children's time as signed, and it is never less than nothing.
    let (own, reaped) = (number(14)? + number(15)?, number(16)? + number(17)?);
    let threads = number(20)?;
    // One whose first thread has ended is shown as a zombie while others of its threads still run.
    let is_dead = match field(3)? {
        "X" | "x" => true,
        state => state == "Z" && threads <= 1,
    };
    Some(Process {
        pid,
        parent: field(4)?.parse().ok()?,
        began: number(22)?,
        own: units.time(own),
        reaped: units.time(reaped),
        memory: number(24)?.saturating_mul(units.page),
        is_dead,
    })
}

/// Every process once, as `ps` lists them. What it does not say is 0: what children used before they were reaped.
///
/// # Errors
/// `ps` cannot be run.
#[cfg(not(target_os = "linux"))]
pub(super) fn processes() -> io::Result<Vec<Process>> {
    let output = std::process::Command::new("ps").args(["-A", "-o", "pid=,ppid=,rss=,state=,time="]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse_ps).collect())
}

#[cfg(any(not(target_os = "linux"), test))]
fn parse_ps(line: &str) -> Option<Process> {
    let mut fields = line.split_whitespace();
    let (pid, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let kilobytes: u64 = fields.next()?.parse().ok()?;
    let is_dead = fields.next()?.starts_with('Z');
    // [[days-]hours:]minutes:seconds[.hundredths]
    let (days, clock) = match fields.next()? {
        text if text.contains('-') => text.split_once('-')?,
        text => ("0", text),
    };
    let seconds = clock.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
    let own = Duration::try_from_secs_f64(days.parse::<f64>().ok()? * 86_400.0 + seconds).ok()?;
    Some(Process { pid, parent, began: 0, own, reaped: Duration::ZERO, memory: kilobytes * 1024, is_dead })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: Units = Units { ticks_a_second: 100, page: 4096 };

    #[test]
    fn a_line_of_the_kernel_is_read_whatever_the_command_is_called() {
        let tail = "7 42 42 0 -1 4194560 100 900 0 3 11 22 33 44 20 0 1 0 12345 8192000 250 18446744073709551615 1 1 0";
        let expected = Process {
            pid: 42,
            parent: 7,
            began: 12345,
            own: Duration::from_millis(330),
            reaped: Duration::from_millis(770),
            memory: 250 * 4096,
            is_dead: false,
        };
        for name in ["sh", "a) R (b c", "(", ")", "x y"] {
            assert_eq!(parse(format!("42 ({name}) S {tail}").as_bytes(), UNITS), Some(expected), "{name}");
        }
        let zombie =
            |threads: &str| parse(format!("42 (a) Z {}", tail.replace("20 0 1 0", &format!("20 0 {threads} 0"))).as_bytes(), UNITS);
        assert_eq!(zombie("1"), Some(Process { is_dead: true, ..expected }));
        assert_eq!(zombie("4"), Some(expected), "other threads still run");
        assert_eq!(parse(b"42 (a", UNITS), None);
        assert_eq!(parse(b"42 (a) S 7 42 42 0", UNITS), None);
    }

    /// A process that cannot be looked at is not one that has ended: the sums would lack it, and nobody would know.
    #[cfg(target_os = "linux")]
    #[test]
    fn one_that_has_ended_is_left_out_and_one_that_cannot_be_read_fails_the_round() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["1", "2", "self", "3x"] {
            std::fs::create_dir(path(name)).expect("a folder");
        }
        let line = "1 (init) S 0 1 1 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 7 0 5 0";
        std::fs::write(path("1/stat"), line).expect("a file");
        let list = processes_in(folder.path()).expect("a list");
        assert_eq!(list.iter().map(|process| (process.pid, process.began)).collect::<Vec<_>>(), [(1, 7)]);
        // Reading a folder fails with another error than "it is not there".
        std::fs::create_dir(path("2/stat")).expect("a folder");
        let error = processes_in(folder.path()).expect_err("one cannot be read").to_string();
        assert!(error.starts_with("process 2: "), "{error}");
        assert!(processes_in(&path("none")).is_err());
    }

    #[test]
    fn a_line_of_ps_is_read() {
        let line = |time: &str| parse_ps(&format!("  42     7   1000 S    {time}")).map(|p| (p.pid, p.parent, p.memory, p.own.as_millis()));
        for (time, millis) in [("0:01.50", 1500), ("00:00:01", 1000), ("1:00:00", 3_600_000), ("2-00:00:01", 172_801_000)] {
            assert_eq!(line(time), Some((42, 7, 1_024_000, millis)), "{time}");
        }
        assert_eq!(line("soon"), None);
    }
}

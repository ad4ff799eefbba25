//! What goes to stdout: tables for people, JSON, YAML and names for programs.
//!
//! It knows how things look and nothing of what they are. Colour is for terminals only, and `NO_COLOR` turns it off.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, Table, Width, presets};
use serde::Serialize;

/// What a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// As a table; `get` and `workers` add what work uses.
    Wide,
    /// One value: an array for a list.
    Json,
    /// As JSON; resources in the shape that `apply -f` takes.
    Yaml,
    /// One name a line.
    Name,
}

impl Format {
    /// It is for people.
    pub(crate) fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// How a row is to strike the eye.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// All is well.
    #[default]
    Plain,
    /// It waits for something.
    Waiting,
    /// Somebody should look.
    Trouble,
}

/// One line of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    pub(crate) tone: Tone,
}

impl<const N: usize> From<[String; N]> for Row {
    fn from(cells: [String; N]) -> Self {
        Self { cells: cells.into(), tone: Tone::Plain }
    }
}

/// Columns that hold numbers stand right.
const NUMBERS: [&str; 8] = ["WEIGHT", "RESTARTS", "RESOURCES", "PAYLOAD", "CAPACITY", "CPU", "MEMORY", "PROCESSES"];

/// Between two columns.
const GAP: u16 = 3;

/// A table without borders; the last column is not padded.
pub(crate) fn table(headers: &[&str], rows: &[Row], colour: bool) -> String {
    Growing::default().more(headers, rows, colour)
}

/// A table that grows while it is watched: its columns keep their width, and its header is printed once.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    widths: Vec<u16>,
}

impl Growing {
    /// The text of further rows.
    pub(crate) fn more(&mut self, headers: &[&str], rows: &[Row], colour: bool) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(headers.iter().map(Cell::new).collect::<Vec<_>>());
        for row in rows {
            table.add_row(row.cells.iter().map(|cell| Cell::new(printable(cell))).collect::<Vec<_>>());
        }
        let begun = !self.widths.is_empty();
        self.widths.resize(headers.len(), 0);
        let widths = table.column_max_content_widths();
        self.widths.iter_mut().zip(widths).for_each(|(width, now)| *width = now.max(*width));
        for ((column, header), width) in table.column_iter_mut().zip(headers).zip(&self.widths) {
            column.set_padding((0, GAP)).set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + GAP)));
            if NUMBERS.contains(header) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        styled(&table, rows, colour, begun)
    }
}

fn styled(table: &Table, rows: &[Row], colour: bool, without_header: bool) -> String {
    let mut text = String::new();
    for (index, line) in table.lines().enumerate().skip(usize::from(without_header)) {
        let tone = index.checked_sub(1).and_then(|row| rows.get(row)).map(|row| row.tone);
        let style = match tone {
            _ if !colour => "",
            None => "\u{1b}[1m",
            Some(Tone::Plain) => "",
            Some(Tone::Waiting) => "\u{1b}[33m",
            Some(Tone::Trouble) => "\u{1b}[31m",
        };
        text.push_str(style);
        text.push_str(line.trim_end());
        text.push_str(if style.is_empty() { "\n" } else { "\u{1b}[0m\n" });
    }
    text
}

/// A text without what a terminal would obey; it may come from a worker.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A column that has nothing to show.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// A span in the unit that people would say: 5s, 3m12s, 7h, 5d.
pub(crate) fn span(span: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let both =
        |large: u64, unit, rest: u64, small| if rest == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{rest}{small}") };
    match span.as_secs() {
        s @ ..MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => both(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 2 * HOUR => format!("{}m", s / MINUTE),
        s if s < 10 * HOUR => both(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 10 * DAY => both(s / DAY, "d", s % DAY / HOUR, "h"),
        s => format!("{}d", s / DAY),
    }
}

/// Processor time: below a minute to the tenth of a second.
pub(crate) fn processor_time(time: Duration) -> String {
    if time < Duration::from_secs(60) { format!("{}.{}s", time.as_secs(), time.subsec_millis() / 100) } else { span(time) }
}

/// A number of bytes in the largest unit that it fills: 812B, 1.5MiB.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (0..UNITS.len()).rev().find(|power| count >> (10 * power) > 0).unwrap_or(0);
    match power {
        0 => format!("{count}B"),
        // Tenths, rounded down, without a float that would lose digits.
        power => {
            let tenths = (u128::from(count) * 10) >> (10 * power);
            format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[power])
        }
    }
}

/// The span from a time in nanoseconds since 1970 until now; a dash where the time is not known.
pub(crate) fn age(then_ns: i64, now_ns: i64) -> String {
    match then_ns {
        0 => "-".to_owned(),
        then => span(Duration::from_nanos(u64::try_from(now_ns.saturating_sub(then)).unwrap_or(0))),
    }
}

/// Now, in nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A time in nanoseconds since 1970 as RFC 3339 with milliseconds, in UTC.
pub(crate) fn time(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| ns.to_string(), |t| format!("{t:.3}"))
}

/// Whether stdout may have colour.
pub(crate) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Whether a person watches stderr, so that progress may be shown there.
pub(crate) fn progress() -> bool {
    io::stderr().is_terminal()
}

/// Writes all of it, at once.
pub(crate) fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// A value as JSON that people can read, too.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).map_or_else(|e| format!("\"{e}\"\n"), |text| text + "\n")
}

/// A value as YAML.
pub(crate) fn yaml<T: Serialize>(value: &T) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let text = serde_saphyr::to_string_with_options(value, options).unwrap_or_else(|e| format!("# {e}\n"));
    if text.ends_with('\n') { text } else { text + "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: [&str; 4], tone: Tone) -> Row {
        Row { cells: cells.map(ToOwned::to_owned).into(), tone }
    }

    #[test]
    fn what_is_used_reads_like_this() {
        for (count, text) in
            [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (1_572_864, "1.5MiB"), (5 << 30, "5.0GiB"), (3 << 50, "3072.0TiB")]
        {
            assert_eq!(bytes(count), text);
        }
        for (millis, text) in [(0, "0.0s"), (1590, "1.5s"), (59_999, "59.9s"), (60_000, "1m"), (3_600_000, "60m")] {
            assert_eq!(processor_time(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn a_table_reads_like_this() {
        let rows = [
            row(["task-test-1", "2", "worker-1", "5s"], Tone::Plain),
            row(["x", "10", "", "3m12s"], Tone::Trouble),
            row(["evil\u{1b}[2J\nname", "1", "-", "1h"], Tone::Plain),
        ];
        let headers = ["NAME", "WEIGHT", "WORKER", "AGE"];
        let expected = "\
NAME            WEIGHT   WORKER     AGE
task-test-1          2   worker-1   5s
x                   10              3m12s
evil [2J name        1   -          1h
";
        assert_eq!(table(&headers, &rows, false), expected);
        assert_eq!(table(&headers, &[], false), "NAME   WEIGHT   WORKER   AGE\n");
        let coloured = table(&headers, &rows[1..2], true);
        assert_eq!(coloured, "\u{1b}[1mNAME   WEIGHT   WORKER   AGE\u{1b}[0m\n\u{1b}[31mx          10            3m12s\u{1b}[0m\n");
    }

    #[test]
    fn a_table_that_grows_keeps_its_columns() {
        let headers = ["NAME", "WEIGHT", "WORKER", "AGE"];
        let mut growing = Growing::default();
        let first = growing.more(&headers, &[row(["task-test-1", "2", "worker-1", "5s"], Tone::Plain)], false);
        let second = growing.more(&headers, &[row(["x", "2", "worker-12", "5s"], Tone::Plain)], false);
        let third = growing.more(&headers, &[row(["x", "2", "-", "5s"], Tone::Plain)], false);
        let expected = "\
NAME          WEIGHT   WORKER     AGE
task-test-1        2   worker-1   5s
x                  2   worker-12   5s
x                  2   -           5s
";
        assert_eq!(format!("{first}{second}{third}"), expected);
    }

    #[test]
    fn spans_are_told_as_people_would() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (192, "3m12s"),
            (600, "10m"),
            (7199, "119m"),
            (7200, "2h"),
            (7260, "2h1m"),
            (36_000, "10h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), expected, "{seconds}");
        }
        assert_eq!(age(0, 5), "-");
        assert_eq!(age(7, 5), "0s");
        assert_eq!(age(1_000_000_000, 6_000_000_000), "5s");
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(time(1_671_274_272_579_882_000), "2022-12-17T10:51:12.579Z");
        assert_eq!(time(i64::MAX), "2262-04-11T23:47:16.854Z");
    }

    #[test]
    fn yaml_keeps_texts_texts() {
        assert_eq!(yaml(&serde_json::json!([{"a": "yes", "b": "007", "c": "x"}])), "- a: \"yes\"\n  b: \"007\"\n  c: x\n");
    }
}

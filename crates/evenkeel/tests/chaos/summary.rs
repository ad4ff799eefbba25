//! What a person reads at the end: one row for each scenario, on the terminal and in a file.
//!
//! Beside the wheel. It decides nothing.

use std::{path::PathBuf, time::Duration};

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};

/// What a cell has of a failure; all of it is printed above the table.
const LONGEST_FAILURE: usize = 160;

/// How the work of a scenario is held, and by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Held {
    /// By cgroups.
    #[default]
    ByCgroups,
    /// By the list of processes: the workers see no cgroups.
    WithoutCgroups,
    /// By the list of processes: the workers are nobody's.
    Unprivileged,
}

/// What became of one scenario.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) held: Held,
    /// What was done, in the order in which it was done.
    pub(crate) done: Vec<String>,
    /// From the end of the fault, or its beginning where it does not end, until all ran again as wanted.
    pub(crate) settled: Option<Duration>,
    /// How often work was started again, of the resources that nobody changed.
    pub(crate) restarts: usize,
    pub(crate) overlaps: usize,
    /// Operations that were acknowledged, and how many of them were lost.
    pub(crate) acknowledged: usize,
    pub(crate) lost: usize,
    /// What else there is to tell.
    pub(crate) notes: Vec<String>,
    /// Why it failed; none: it held.
    pub(crate) failure: Option<String>,
    /// Whether work is meant to overlap here: outside of the promise, or to show that the oracle sees it.
    pub(crate) meant_to_overlap: bool,
}

/// Where the table is written, too.
pub(crate) fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder").join("chaos.txt")
}

/// The table, and a line that says it all.
pub(crate) fn table(rows: &[Row], etcd: &str) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["scenario", "what was done", "settled", "restarts", "overlaps", "lost", "verdict"]);
    for row in rows {
        let settled = row.settled.map_or("-".to_owned(), |span| format!("{:.1} s", span.as_secs_f64()));
        let lost = format!("{}/{}", row.lost, row.acknowledged);
        let overlaps = format!("{}{}", row.overlaps, if row.meant_to_overlap { " (meant)" } else { "" });
        let done = row.done.iter().chain(&row.notes).cloned().collect::<Vec<_>>().join("; ");
        table.add_row([row.scenario.to_owned(), wrapped(&done, 64), settled, row.restarts.to_string(), overlaps, lost, verdict(row)]);
    }
    for column in 2..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let held = rows.iter().filter(|row| row.failure.is_none()).count();
    let promised = rows.iter().filter(|row| !row.meant_to_overlap);
    let (overlaps, lost) = promised.fold((0, 0), |sum, row| (sum.0 + row.overlaps, sum.1 + row.lost));
    let acknowledged: usize = rows.iter().map(|row| row.acknowledged).sum();
    format!(
        "{table}\nsettled: from the end of the fault (from its beginning, where it stays) until all runs as wanted and callers are answered\n\
         restarts: starts of work that nobody had changed; lost: of so many acknowledged operations\n\
         {etcd}\n{held} of {} scenarios held; overlaps {overlaps}; acknowledged operations lost {lost} of {acknowledged}\n",
        rows.len()
    )
}

fn verdict(row: &Row) -> String {
    match &row.failure {
        None => "holds".to_owned(),
        Some(why) => {
            let line: String = why.lines().next().unwrap_or_default().chars().take(LONGEST_FAILURE).collect();
            wrapped(&format!("FAILS: {line}"), 40)
        }
    }
}

fn wrapped(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("one at least");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

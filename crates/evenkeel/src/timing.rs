//! The spans of the ownership protocol as flags, checked together: what breaks an inequality is refused before anything starts.
//!
//! Masters and workers take the same flags, so that one file of settings serves all of them. It decides nothing else.

use std::time::Duration;

use clap::Args;
use evenkeel_model::process::duration;
use evenkeel_worker::protocol::authority::{LONGEST_SPAN, SHORTEST_LEASE, Timing};

/// The spans, as flags.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Timing (leave it unless you know why; the same for all masters and workers)")]
pub(crate) struct TimingArgs {
    /// From one proof of a worker's session to the next
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_PROOF_PERIOD", default_value = "500ms", value_parser = span, hide_env = true)]
    proof_period: Duration,
    /// After this long a proof without an answer is sent again
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_PROOF_DEADLINE", default_value = "1s", value_parser = span, hide_env = true)]
    proof_deadline: Duration,
    /// For how long a proof lets a worker run things
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_AUTHORITY", default_value = "5s", value_parser = span, hide_env = true)]
    authority: Duration,
    /// What the system may take to end a killed process
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_KILL", default_value = "500ms", value_parser = span, hide_env = true)]
    kill: Duration,
    /// What work gets from the stop signal to the kill, unless its spec has a `stop_grace`
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_GRACE", default_value = "500ms", value_parser = span, hide_env = true)]
    grace: Duration,
    /// What scheduling may delay
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_SLACK", default_value = "250ms", value_parser = span, hide_env = true)]
    slack: Duration,
    /// How long a leader waits at least before it gives on what a lost worker ran
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_WAIT", default_value = "5110ms", value_parser = span, hide_env = true)]
    wait: Duration,
    /// How long a worker's registration outlives it, in whole seconds
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_WORKER_LEASE", default_value = "4s", value_parser = span, hide_env = true)]
    worker_lease: Duration,
    /// How long a master's candidacy outlives it, in whole seconds
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_MASTER_LEASE", default_value = "3s", value_parser = span, hide_env = true)]
    master_lease: Duration,
}

/// Spans that keep every inequality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spans {
    pub(crate) timing: Timing,
    pub(crate) master_lease: Duration,
}

impl TimingArgs {
    /// The spans, or one line with the inequality that they break and spans that would do.
    pub(crate) fn settle(&self) -> Result<Spans, String> {
        let timing = Timing {
            proof_period: self.proof_period,
            proof_deadline: self.proof_deadline,
            authority: self.authority,
            kill: self.kill,
            grace: self.grace,
            slack: self.slack,
            wait: self.wait,
            lease: self.worker_lease,
        };
        let lease = self.master_lease;
        let near = near_lease(lease);
        match timing.check() {
            Ok(()) if lease == near => {}
            Ok(()) => {
                return Err(format!(
                    "timing: 2s <= master lease <= 1h in whole seconds does not hold: {lease:?}; \
                     with what else is given, this would do: master-lease {near:?}"
                ));
            }
            Err(error) if lease == near => return Err(error.to_string()),
            // What would do is the last that the error says.
            Err(error) => return Err(format!("{error}, master-lease {near:?}")),
        }
        Ok(Spans { timing, master_lease: lease })
    }
}

/// The nearest lease that a master may have: this one, if it may.
fn near_lease(lease: Duration) -> Duration {
    let within = lease.clamp(SHORTEST_LEASE, LONGEST_SPAN);
    Duration::from_secs(within.as_secs() + u64::from(within.subsec_nanos() != 0))
}

pub(crate) fn span(text: &str) -> Result<Duration, String> {
    duration(text).or_else(|| seconds(text)).ok_or_else(|| "write a number and a unit: 500ms, 1.5s, 2m or 1h".to_owned())
}

/// Seconds with up to three decimals, which is how spans are told.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, decimals) = text.strip_suffix('s')?.split_once('.')?;
    let digits = decimals.bytes().all(|b| b.is_ascii_digit()) && (1..=3).contains(&decimals.len());
    let millis: u64 = format!("{decimals:0<3}").parse().ok().filter(|_| digits)?;
    Some(duration(&format!("{whole}s"))? + Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        timing: TimingArgs,
    }

    fn spans(line: &str) -> Result<Spans, String> {
        let parsed = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).map_err(|e| e.to_string())?;
        parsed.timing.settle()
    }

    #[test]
    fn the_flags_start_from_the_start_values() {
        let usual = Spans { timing: Timing::default(), master_lease: evenkeel_master::MASTER_LEASE };
        assert_eq!(spans(""), Ok(usual));
        assert_eq!(evenkeel_planner::PlannerConfig::default().wait, usual.timing.wait);
    }

    #[test]
    fn what_is_said_to_do_can_be_given() {
        let lines = [
            "--authority 10s",
            "--grace 1m",
            "--kill 0s",
            "--worker-lease 2500ms",
            "--wait 1h --authority 1h",
            "--authority 1s",
            "--proof-period 449s --proof-deadline 449s --kill 449s --slack 449s --grace 449s",
            "--authority 10s --master-lease 1s",
            "--slack 7s --master-lease 18446744073709551615.999s",
            "--master-lease 3600.001s",
        ];
        for line in lines {
            let said = spans(line).expect_err(line);
            let flags: String = said.rsplit_once("would do: ").expect("advice").1.split(", ").map(|pair| format!("--{pair} ")).collect();
            // The last one of a flag counts.
            let given: Vec<&str> = line.split_whitespace().collect();
            let kept = given.chunks(2).filter(|pair| !flags.contains(&format!("{} ", pair[0]))).flatten();
            let fixed: String = kept.map(|word| format!("{word} ")).collect::<String>() + &flags;
            assert!(spans(&fixed).is_ok(), "{line}: {said}: {fixed}: {:?}", spans(&fixed));
        }
    }
}

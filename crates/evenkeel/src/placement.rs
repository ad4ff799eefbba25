//! What steers placement, as flags of `master`: parsed and checked once, then handed down as the planner's configuration.
//!
//! The leader's settings count, so all masters should have the same. It decides nothing else.

use std::time::Duration;

use clap::Args;
use evenkeel_model::{FAILING, Labels, PolicyName, UnknownPolicy, check_labels};
use evenkeel_planner::{BrakeConfig, Flapping, PlannerConfig};

use crate::timing::span;

/// What steers placement, as flags.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Placement (the same for all masters: those of the leader count)")]
pub(crate) struct PlacementArgs {
    /// How a worker is chosen: least-payload, round-robin, weighted-round-robin, random, spread, pack or consistent-hash
    #[arg(long, value_name = "NAME", env = "EVENKEEL_POLICY", default_value = "least-payload", value_parser = policy, hide_env = true)]
    policy: PolicyName,
    /// The label of workers that the policy spread goes by where a resource names none
    #[arg(long, value_name = "LABEL", env = "EVENKEEL_SPREAD_LABEL", default_value = "zone", value_parser = label_key, hide_env = true)]
    spread_label: String,
    /// What the policy random draws by
    #[arg(long, value_name = "N", env = "EVENKEEL_SEED", default_value_t = 0, hide_env = true)]
    seed: u64,
    /// By how many percent the policy consistent-hash lets a payload exceed the mean
    #[arg(long, value_name = "PERCENT", env = "EVENKEEL_HASH_BOUND", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=10_000), hide_env = true)]
    hash_bound: u32,
    /// The spread of payloads, highest less lowest, that balance leaves alone
    #[arg(long, value_name = "N", env = "EVENKEEL_TOLERANCE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), hide_env = true)]
    tolerance: u64,
    /// How many resources may be on their way for balance at a time; 0: balance moves nothing
    #[arg(long, value_name = "N", env = "EVENKEEL_BALANCE_IN_FLIGHT", default_value_t = 256, hide_env = true)]
    balance_in_flight: usize,
    /// How many resources may be on their way at a time because they may not stay where they are: drains and broken rules
    #[arg(long, value_name = "N", env = "EVENKEEL_RECOVERY_IN_FLIGHT", default_value_t = 1024, value_parser = at_least_one, hide_env = true)]
    recovery_in_flight: usize,
    /// For how long a resource that was moved for balance is not moved for balance again
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_COOL_DOWN", default_value = "10s", value_parser = span, hide_env = true)]
    cool_down: Duration,
    /// After so many runs in a row that did not go well a resource is tried on another worker; 0: never
    #[arg(long, value_name = "N", env = "EVENKEEL_MOVE_FAILING_AFTER", default_value_t = 10, value_parser = failures, hide_env = true)]
    move_failing_after: u32,
    /// A worker that was lost so often within --flap-within is chosen after all others for a while; 0: never
    #[arg(long, value_name = "N", env = "EVENKEEL_FLAP_LOSSES", default_value_t = 3, value_parser = flap_losses, hide_env = true)]
    flap_losses: usize,
    /// See --flap-losses
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_FLAP_WITHIN", default_value = "1m", value_parser = span, hide_env = true)]
    flap_within: Duration,
    /// For how long after the last loss such a worker is set aside
    #[arg(long, value_name = "SPAN", env = "EVENKEEL_FLAP_ASIDE", default_value = "1m", value_parser = span, hide_env = true)]
    flap_aside: Duration,
    /// With more than so many percent of the workers gone at once, what they ran is held; 100: never
    #[arg(long, value_name = "PERCENT", env = "EVENKEEL_BRAKE_PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100), hide_env = true)]
    brake_percent: u32,
    /// Fewer gone workers than so many never hold anything
    #[arg(long, value_name = "N", env = "EVENKEEL_BRAKE_LEAST", default_value_t = 3, value_parser = at_least_one, hide_env = true)]
    brake_least: usize,
}

impl PlacementArgs {
    /// The planner's configuration; `wait` is G.
    pub(crate) fn settle(self, wait: Duration) -> PlannerConfig {
        PlannerConfig {
            wait,
            policy: self.policy,
            spread_label: self.spread_label,
            seed: self.seed,
            hash_bound_percent: self.hash_bound,
            tolerance: self.tolerance,
            moves_in_flight: self.balance_in_flight,
            recovery_in_flight: self.recovery_in_flight,
            cool_down: self.cool_down,
            move_failing_after: self.move_failing_after,
            flapping: Flapping { losses: self.flap_losses, within: self.flap_within, aside: self.flap_aside },
            brake: BrakeConfig { percent: self.brake_percent, least: self.brake_least },
            ..PlannerConfig::default()
        }
    }
}

fn policy(text: &str) -> Result<PolicyName, String> {
    text.parse().map_err(|e: UnknownPolicy| e.to_string())
}

fn label_key(text: &str) -> Result<String, String> {
    check_labels("label", &Labels::from([(text.to_owned(), String::new())])).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "write a whole number, 1 or more".to_owned())
}

/// Fewer in a row are a passing trouble.
fn failures(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|n| *n == 0 || *n >= FAILING).ok_or_else(|| format!("write 0 (never), or a whole number, {FAILING} or more"))
}

/// As many as are remembered of one worker.
fn flap_losses(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n <= evenkeel_model::REMEMBERED).ok_or_else(|| format!("write 0 to {}", evenkeel_model::REMEMBERED))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        placement: PlacementArgs,
    }

    fn planner(line: &str) -> Result<PlannerConfig, String> {
        let parsed = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).map_err(|e| e.to_string())?;
        Ok(parsed.placement.settle(PlannerConfig::default().wait))
    }

    #[test]
    fn the_flags_start_from_the_start_values() {
        assert_eq!(planner(""), Ok(PlannerConfig::default()));
    }

    #[test]
    fn each_flag_arrives() {
        let line = "--policy pack --spread-label rack --seed 7 --hash-bound 10 --tolerance 3 --balance-in-flight 0 --recovery-in-flight 5 \
                    --cool-down 1m --move-failing-after 4 --flap-losses 0 --flap-within 2s --flap-aside 3s --brake-percent 100 --brake-least 9";
        let expected = PlannerConfig {
            policy: PolicyName::Pack,
            spread_label: "rack".to_owned(),
            seed: 7,
            hash_bound_percent: 10,
            tolerance: 3,
            moves_in_flight: 0,
            recovery_in_flight: 5,
            cool_down: Duration::from_secs(60),
            move_failing_after: 4,
            flapping: Flapping { losses: 0, within: Duration::from_secs(2), aside: Duration::from_secs(3) },
            brake: BrakeConfig { percent: 100, least: 9 },
            ..PlannerConfig::default()
        };
        assert_eq!(planner(line), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_would_do() {
        let cases = [
            ("--policy fair", "unknown policy \"fair\"; use one of least-payload, round-robin"),
            ("--tolerance 0", "0 is not in 1.."),
            ("--brake-percent 101", "101 is not in 1..=100"),
            ("--brake-least 0", "write a whole number, 1 or more"),
            ("--move-failing-after 2", "write 0 (never), or a whole number, 3 or more"),
            ("--flap-losses 17", "write 0 to 16"),
            ("--cool-down soon", "write a number and a unit"),
            ("--spread-label -", "beginning with a letter or digit"),
        ];
        for (line, expected) in cases {
            let said = planner(line).expect_err(line);
            assert!(said.contains(expected), "{line}: {said}");
        }
    }
}

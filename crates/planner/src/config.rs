//! What steers plans. It is checked once, where settings are read, and handed down.

use std::time::Duration;

use evenkeel_model::PolicyName;

/// What steers a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannerConfig {
    /// G: how long after a session was seen to be gone its authority may last. At least D(1+rho)/(1-rho), where D is the authority that
    /// one proof gives and rho bounds how far clock rates differ: DESIGN.md section 5, rule 3. A worker that says a longer D is waited for
    /// as long as that asks for: `Worker::wait`.
    pub wait: Duration,
    /// How a worker is chosen for a resource that does not say it itself.
    pub policy: PolicyName,
    /// The label of workers that the policy `spread` goes by where a resource names none.
    pub spread_label: String,
    /// What the policy `random` draws by.
    pub seed: u64,
    /// By how much the policy `consistent-hash` lets a payload exceed the mean, in percent.
    pub hash_bound_percent: u32,
    /// The spread of payloads, highest less lowest, that is left alone.
    pub tolerance: u64,
    /// How many resources may be on their way from one live worker to another at a time, for balance alone.
    pub moves_in_flight: usize,
    /// The same for drains, and for what may not stay where it is.
    pub recovery_in_flight: usize,
    /// For how long a resource that was moved for balance is not moved for balance again.
    pub cool_down: Duration,
    /// After how many runs in a row that did not go well a resource is tried on another worker; 0: never.
    pub move_failing_after: u32,
    /// When a worker is set aside.
    pub flapping: Flapping,
    /// When what lost workers ran is held.
    pub brake: BrakeConfig,
    /// How many actions one plan has at most; the next one goes on.
    pub max_actions: usize,
    /// How many resources that are assigned nowhere one plan looks at.
    pub max_unplaced: usize,
}

/// By the pauses of a process (0.1 s, doubling up to 10 s) the tenth failure in a row comes after half a minute at the soonest: what fails because
/// a database changes over has mostly recovered by then, on its own worker.
const FAILURES: u32 = 10;

/// A worker whose sessions ended without a word so often within such a span is chosen only where no other can run a resource, for a while
/// after the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flapping {
    /// How often; 0: never set aside.
    pub losses: usize,
    /// Within which span.
    pub within: Duration,
    /// For how long.
    pub aside: Duration,
}

/// With more than this share of the workers gone at once, what they ran is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrakeConfig {
    /// Of the workers that are ready or gone with something to run, in percent; 100: never.
    pub percent: u32,
    /// Fewer gone workers than this never hold anything.
    pub least: usize,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self {
            wait: Duration::from_millis(5110),
            policy: PolicyName::default(),
            spread_label: "zone".to_owned(),
            seed: 0,
            hash_bound_percent: 25,
            tolerance: 1,
            moves_in_flight: 256,
            recovery_in_flight: 1024,
            cool_down: Duration::from_secs(10),
            move_failing_after: FAILURES,
            flapping: Flapping { losses: 3, within: Duration::from_secs(60), aside: Duration::from_secs(60) },
            brake: BrakeConfig { percent: 50, least: 3 },
            max_actions: 4096,
            max_unplaced: usize::MAX,
        }
    }
}

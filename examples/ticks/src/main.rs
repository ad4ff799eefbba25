//! A worker with a kind of its own, `ticks`: each resource of it says something every so often.

use std::{process::ExitCode, sync::Arc, time::Duration};

use evenkeel_worker::{
    driver::{
        SpecError,
        in_process::{Failure, InProcess, Kind, Piece, Update},
    },
    main_with,
};
use serde::Deserialize;
use tokio::time::sleep;

fn main() -> ExitCode {
    main_with(|config| Ok(config.with_driver(Arc::new(InProcess::new("ticks", Ticks)))?))
}

struct Ticks;

/// What a resource of this kind says in its spec.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TicksSpec {
    says: String,
    every_ms: u64,
}

impl Kind for Ticks {
    type Spec = TicksSpec;

    fn check(&self, spec: &TicksSpec) -> Result<(), SpecError> {
        match spec.every_ms {
            10..=60_000 => Ok(()),
            ms => Err(SpecError(format!("spec.every_ms: must be from 10 to 60000, not {ms}"))),
        }
    }

    /// Runs once for each resource that this worker has, until it is told to stop.
    async fn run(&self, piece: Piece<TicksSpec>) -> Result<(), Failure> {
        let mut spec = piece.spec();
        for tick in 1.. {
            piece.check()?;
            piece.log().line(format_args!("{} (tick {tick} of epoch {})", spec.says, piece.epoch()));
            tokio::select! {
                () = sleep(Duration::from_millis(spec.every_ms)) => {}
                new = piece.changed(&spec) => spec = new,
                _ = piece.stopping() => break,
            }
        }
        Ok(())
    }

    fn updates(&self) -> bool {
        true
    }

    /// Any change is taken while it runs: `run` sees the new spec.
    async fn update(&self, _: &Piece<TicksSpec>, _: &TicksSpec) -> Update {
        Update::Taken
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_worker::driver::conformance::{Trial, check};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn ticks_keeps_the_promises_of_a_driver() {
        let trial = Trial {
            good: json!({"says": "tick", "every_ms": 1000}),
            bad: json!({"says": "tick", "every_ms": 1}),
            change: Some(json!({"says": "tock", "every_ms": 1000})),
            starts_within: Duration::from_secs(5),
        };
        assert_eq!(check(Arc::new(InProcess::new("ticks", Ticks)), trial).await, Ok(()));
    }
}

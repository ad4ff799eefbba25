//! Clocks that go slower than they should, by libfaketime, where it is installed.
//!
//! Beside the wheel. libfaketime slows CLOCK_BOOTTIME and CLOCK_MONOTONIC as an agent reads them, and with them all of its waits. It does not
//! reach the timer of a guard, which the kernel keeps: so nothing is said of guards here.

use std::{path::Path, time::Duration};

use super::{Shared, scenarios};
use crate::{
    field::{Field, Setup},
    links::Weather,
};

scenarios! {
    long clock_of_a_worker_slow_by_1_percent,
    long clock_of_a_worker_slow_by_half,
}

const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// Where libfaketime is; none: it is not installed.
pub(super) fn library() -> Option<&'static str> {
    LIBRARIES.into_iter().find(|path| Path::new(path).exists())
}

/// Cuts a worker off whose clock has this rate, and has its lease revoked at once: the wait of the leader then begins as early as it can.
async fn cut_off_at_rate(row: &Shared, rate: &str) -> Field {
    let environment =
        vec![("LD_PRELOAD".to_owned(), library().expect("looked for").to_owned()), ("FAKETIME".to_owned(), format!("+0 x{rate}"))];
    let setup = Setup { environment: vec![("worker-1", environment)], callers: 0, ..Setup::default() };
    let field = Field::open(setup, row).await;
    field.did(format!("the clock of worker-1 goes at {rate} of its rate; it is cut off, and its lease is revoked by hand"));
    let (_, lease) = super::etcd::registration(&field, "worker-1").await;
    field.weather("worker-1", Weather::CUT);
    field.stage.client.revoke(lease, Duration::from_secs(1)).await.expect("revoked");
    field
}

async fn clock_of_a_worker_slow_by_1_percent(row: Shared) {
    let mut field = cut_off_at_rate(&row, "0.99").await;
    field.until_settled(Some("worker-1")).await;
    field.links.clear();
    field.healed();
    field.judged().await;
}

/// Far beyond what the promise allows: the oracle must see two owners.
async fn clock_of_a_worker_slow_by_half(row: Shared) {
    let mut field = cut_off_at_rate(&row, "0.5").await;
    field.row().meant_to_overlap = true;
    field.until_overlap().await;
    field.links.clear();
    field.healed();
    field.judged().await;
}

//! What a master measures of itself and the cluster, in Prometheus' text format.

use std::{fmt::Write, sync::Arc};

use axum::{extract::State, http::header, response::IntoResponse};
use evenkeel_model::{Standing, WorkerWish};

use crate::known::{Leadership, Shared};

/// Answers a scrape.
pub(super) async fn show(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let leads = *shared.leadership.borrow() == Leadership::Mine;
    let known = shared.read();
    let ready = known.cluster.workers().filter(|(_, w)| w.standing() == Standing::Ready).count();
    let lost = known.cluster.workers().filter(|(_, w)| matches!(w.standing(), Standing::Lost | Standing::Returning)).count();
    let agenda = known.cluster.agenda();
    let (mut cordoned, mut draining) = (0, 0);
    for (_, worker) in known.cluster.workers() {
        cordoned += usize::from(worker.wish().is_some());
        draining += usize::from(worker.wish().is_some_and(WorkerWish::is_drain));
    }
    let gauges = [
        ("evenkeel_leader", "1 if this master leads.", usize::from(leads)),
        ("evenkeel_masters", "Masters that lead or campaign.", known.masters.len()),
        ("evenkeel_resources", "Resources that are wanted or still assigned.", known.cluster.len()),
        ("evenkeel_resources_unplaced", "Resources that are assigned nowhere.", agenda.unplaced.len()),
        ("evenkeel_resources_stopping", "Assignments that were told to stop and have not ended.", agenda.stopping.len()),
        ("evenkeel_undone", "What the last plan of this leader left undone.", known.undone),
        ("evenkeel_brake_engaged", "1 if so many workers are gone that what they ran is held.", usize::from(known.brake.is_some())),
        ("evenkeel_workers_cordoned", "Workers on which nothing more is placed.", cordoned),
        ("evenkeel_workers_draining", "Workers that are being drained, or are drained.", draining),
        ("evenkeel_workers_ready", "Workers that are registered and admitted.", ready),
        ("evenkeel_workers_lost", "Workers whose admitted session is gone.", lost),
    ];
    drop(known);
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing to a String cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

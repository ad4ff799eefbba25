//! The first source: a file of resources that the leader keeps in sync. What is new in it is added, what has changed is changed, what has
//! gone from it is deleted; what came by the API stays. It only wishes; the control loop decides.

use std::{collections::BTreeMap, path::Path, time::Duration};

use evenkeel_model::{
    Definition, ResourceName,
    diff::{self, Counts},
    manifest::{self, File},
};
use futures::{StreamExt, stream};
use tokio::time::sleep;

use crate::{
    api::service::{Service, definitions_of, leads},
    config::MasterError,
    control::request::PutMode,
};

/// What the records of this source are marked with.
const SOURCE: &str = "file";
/// How often the file is looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// How many wishes are under way at a time.
const WINDOW: usize = 256;

/// Reads and checks the file.
///
/// # Errors
/// What is wrong with it, one line each.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<ResourceName, Definition>, MasterError> {
    let bytes = std::fs::read(path).map_err(|e| MasterError::Resources(format!("{}: {e}", path.display())))?;
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<ResourceName, Definition>, MasterError> {
    let label = path.display().to_string();
    manifest::read([File { label: &label, bytes }]).map_err(|errors| MasterError::Resources(errors.to_string()))
}

/// Keeps the cluster in sync with the file for as long as this master leads, and waits while it does not.
pub(crate) async fn run(service: Service, path: &Path) {
    let mut leadership = service.shared.leadership.subscribe();
    let mut seen: Option<Vec<u8>> = None;
    let mut wanted = BTreeMap::new();
    let mut synced_at = None;
    loop {
        if !leads(&service.shared) {
            synced_at = None;
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        }
        match tokio::fs::read(path).await {
            Ok(bytes) if seen.as_ref() != Some(&bytes) => {
                match parse(path, &bytes) {
                    Ok(definitions) => wanted = definitions,
                    // The last good state stays. The same mistake is not told twice.
                    Err(error) => tracing::error!(%error, "the file of resources is wrong, and nothing of it is applied"),
                }
                seen = Some(bytes);
                synced_at = None;
            }
            Ok(_) => {}
            Err(error) if seen.take().is_some() => {
                tracing::error!(path = %path.display(), %error, "the file of resources cannot be read; what it said last stays");
            }
            Err(_) => {}
        }
        let changes = service.shared.read().next_change();
        if synced_at != Some(changes) {
            sync(&service, &wanted).await;
            synced_at = Some(changes);
        }
        sleep(PERIOD).await;
    }
}

/// Carries out the difference between what the file wants and what stands of it, whatever has made it.
async fn sync(service: &Service, wanted: &BTreeMap<ResourceName, Definition>) {
    let (puts, deletes, counts) = {
        let known = service.shared.read();
        let stands = definitions_of(&known, SOURCE);
        let diff = diff::diff(&stands, wanted);
        // What came by the API stays, though the file has it too.
        let adds = diff.add.iter().copied().filter(|d| known.cluster.unit(d.name.as_str()).is_none_or(|u| u.record.is_none()));
        let adds: Vec<(Definition, PutMode)> = adds.map(|d| (d.clone(), PutMode::Add)).collect();
        let kept = diff.add.len() - adds.len();
        let counts = Counts { add: adds.len(), change: diff.change.len(), delete: diff.delete.len(), unchanged: diff.unchanged };
        let changes = diff.change.iter().map(|change| (change.new.clone(), PutMode::Apply));
        let puts: Vec<(Definition, PutMode)> = adds.into_iter().chain(changes).collect();
        let deletes: Vec<ResourceName> = diff.delete.iter().map(|definition| definition.name.clone()).collect();
        if kept > 0 && !(puts.is_empty() && deletes.is_empty()) {
            tracing::warn!(kept, "names of the file stand already and came by the API: those stay as they are");
        }
        (puts, deletes, counts)
    };
    if puts.is_empty() && deletes.is_empty() {
        return;
    }
    let put = async |(definition, mode): (Definition, PutMode)| {
        let change = usize::from(mode == PutMode::Apply);
        let done = is_done(service.put(definition.clone(), mode, SOURCE).await.map(drop), &definition.name);
        Counts { add: done * (1 - change), change: done * change, ..Counts::default() }
    };
    let delete = async |name: ResourceName| Counts { delete: is_done(service.delete(name.clone()).await, &name), ..Counts::default() };
    let mut done = Counts { unchanged: counts.unchanged, ..Counts::default() };
    let mut puts = stream::iter(puts).map(put).buffer_unordered(WINDOW);
    while let Some(one) = puts.next().await {
        (done.add, done.change) = (done.add + one.add, done.change + one.change);
    }
    let mut deletes = stream::iter(deletes).map(delete).buffer_unordered(WINDOW);
    while let Some(one) = deletes.next().await {
        done.delete += one.delete;
    }
    tracing::info!(wanted = %counts, done = %done, "synced the file of resources");
}

/// One, if it was done.
fn is_done(result: Result<(), tonic::Status>, name: &ResourceName) -> usize {
    match result {
        Ok(()) => 1,
        Err(status) => {
            tracing::warn!(resource = %name, reason = status.message(), "could not be synced");
            0
        }
    }
}

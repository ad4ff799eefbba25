//! The first source: a file of resources that the leader keeps in sync. What is new in it is added, what has changed is changed, what has
//! gone from it is deleted; what came by the API stays. It only wishes; the control loop decides.

use std::{collections::BTreeMap, path::Path, time::Duration};

use evenkeel_model::{
    Definition, ResourceName, diff,
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
    let label = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| MasterError::Resources(format!("{label}: {e}")))?;
    manifest::read([File { label: &label, bytes: &bytes }]).map_err(|errors| MasterError::Resources(errors.to_string()))
}

/// Keeps the cluster in sync with the file for as long as this master leads, and waits while it does not.
pub(crate) async fn run(service: Service, path: &Path) {
    let mut leadership = service.shared.leadership.subscribe();
    let mut seen: Option<Vec<u8>> = None;
    loop {
        if !leads(&service.shared) {
            seen = None;
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        }
        let bytes = tokio::fs::read(path).await.ok();
        if bytes.is_some() && bytes != seen {
            match read(path) {
                Ok(wanted) if sync(&service, &wanted).await => seen = bytes,
                Ok(_) => {}
                Err(error) => {
                    // The last good state stays. The same mistake is not told twice.
                    tracing::error!(%error, "the file of resources is wrong, and nothing of it is applied");
                    seen = bytes;
                }
            }
        }
        sleep(PERIOD).await;
    }
}

/// Carries out the difference. True: all of it was done, or was refused for good.
async fn sync(service: &Service, wanted: &BTreeMap<ResourceName, Definition>) -> bool {
    let stands = definitions_of(&service.shared.read(), SOURCE);
    let (puts, deletes, unchanged) = {
        let diff = diff::diff(&stands, wanted);
        let changes = diff.change.iter().map(|change| change.new);
        let puts: Vec<Definition> = diff.add.iter().copied().chain(changes).cloned().collect();
        let deletes: Vec<ResourceName> = diff.delete.iter().map(|definition| definition.name.clone()).collect();
        (puts, deletes, diff.unchanged)
    };
    if puts.is_empty() && deletes.is_empty() {
        return true;
    }
    let counts = (puts.len(), deletes.len());
    let put = |definition: Definition| {
        let mode = if stands.contains_key(&definition.name) { PutMode::Apply } else { PutMode::Add };
        async move { is_settled(service.put(definition.clone(), mode, SOURCE).await.map(drop), &definition.name) }
    };
    let delete = |name: ResourceName| async move { is_settled(service.delete(name.clone()).await, &name) };
    let puts = stream::iter(puts).map(put).buffer_unordered(WINDOW).fold(true, |all, one| async move { all && one }).await;
    let deletes = stream::iter(deletes).map(delete).buffer_unordered(WINDOW).fold(true, |all, one| async move { all && one }).await;
    tracing::info!(added_or_changed = counts.0, deleted = counts.1, unchanged, complete = puts && deletes, "synced the file of resources");
    puts && deletes
}

/// Whether there is nothing to try again.
fn is_settled(result: Result<(), tonic::Status>, name: &ResourceName) -> bool {
    let Err(status) = result else { return true };
    match status.code() {
        tonic::Code::NotFound => true,
        tonic::Code::AlreadyExists => {
            tracing::warn!(resource = %name, "is in the file, and stands with other content that came by the API; that one stays");
            true
        }
        _ => {
            tracing::warn!(resource = %name, %status, "could not be synced yet");
            false
        }
    }
}

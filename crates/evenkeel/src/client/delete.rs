//! `evenkeel delete`: some resources by name.

use clap::Args;
use evenkeel_model::ResourceName;
use evenkeel_proto::v1::{DeleteResourceRequest, GetResourceRequest};
use futures::{StreamExt, stream};
use tonic::Code;

use super::{ClientArgs, ClientError, error::say, session::Session};
use crate::output::{self, Format};

/// How many deletes are under way at once: enough for the leader to put them into few transactions.
const AT_ONCE: usize = 64;

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<ResourceName>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: DeleteArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let mut failed = 0;
    let total = args.names.len();
    let mut results = stream::iter(args.names).map(|name| delete(&session, name)).buffered(AT_ONCE);
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(()) => {
                let line = match format {
                    Format::Table | Format::Wide => format!("{name} deleted\n"),
                    Format::Name => format!("{name}\n"),
                    Format::Json => format!("{}\n", serde_json::json!({"name": name.as_str(), "deleted": true})),
                    Format::Yaml => output::yaml(&serde_json::json!([{"name": name.as_str(), "deleted": true}])),
                };
                output::write(line.as_bytes())?;
            }
            Err(error) if total == 1 => return Err(error),
            // Every other would say the same.
            Err(error @ ClientError::Unreachable(_)) => return Err(error),
            Err(error) => {
                failed += 1;
                say(&error.to_string());
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(ClientError::Failed(format!("{failed} of {total} were not deleted"))) }
}

/// Deletes one: the one that there is now. A request that was sent again may come late, when another has been added under the name.
pub(super) async fn delete(session: &Session, name: ResourceName) -> (ResourceName, Result<(), ClientError>) {
    let request = GetResourceRequest { name: name.to_string() };
    let found = session.call(name.as_str(), request, async |client, request| client.get_resource(request).await).await;
    let result = match found {
        Ok(found) => delete_id(session, &name, found.resource.unwrap_or_default().id).await,
        Err(error) => Err(error),
    };
    (name, result)
}

/// When a try was lost on the way and the next finds nothing, the lost one did it.
async fn delete_id(session: &Session, name: &ResourceName, id: String) -> Result<(), ClientError> {
    let request = DeleteResourceRequest { name: name.to_string(), id };
    let answer = session.ask(name.as_str(), request, async |client, request| client.delete_resource(request).await).await;
    match answer.result {
        Ok(_) => Ok(()),
        Err(error) if answer.retried && error.is(Code::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

//! `evenkeel logs`: what a resource's process wrote, byte by byte.

use clap::Args;
use evenkeel_model::ResourceName;
use evenkeel_proto::v1::ReadLogsRequest;

use super::{ClientError, MasterArg};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The resource
    name: ResourceName,
    /// Go on, and print what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    tail: u32,
    #[command(flatten)]
    master: MasterArg,
}

pub(crate) async fn run(args: LogsArgs) -> Result<(), ClientError> {
    let session = args.master.session();
    let subject = args.name.to_string();
    let request = ReadLogsRequest { name: subject.clone(), follow: args.follow, tail: args.tail };
    let mut stream = session.call(&subject, request, async |client, request| client.read_logs(request).await).await?;
    while let Some(part) = stream.message().await.map_err(|s| ClientError::status(&subject, &s))? {
        output::write(&part.chunk)?;
    }
    Ok(())
}

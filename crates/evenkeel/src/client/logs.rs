//! `evenkeel logs`: what a resource's process wrote, byte by byte.

use std::time::Duration;

use clap::Args;
use evenkeel_model::ResourceName;
use evenkeel_proto::v1::{GetResourceRequest, ReadLogsRequest};
use tonic::Code;

use super::{
    ClientError, MasterArg,
    session::{Ended, Session},
};
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

/// The pause before the output is asked for again, when it has broken off.
const PAUSE: Duration = Duration::from_millis(300);

pub(crate) async fn run(args: LogsArgs) -> Result<(), ClientError> {
    let session = args.master.session();
    let subject = args.name.to_string();
    let mut request = ReadLogsRequest { name: subject.clone(), follow: args.follow, tail: args.tail };
    let mut at = (String::new(), 0);
    loop {
        let get = GetResourceRequest { name: subject.clone() };
        let found = session.call(&subject, get, async |client, request| client.get_resource(request).await).await;
        let state = match found {
            // What was followed has gone: that is the end of its output.
            Err(error) if error.is(Code::NotFound) && at.1 != 0 => return Ok(()),
            found => found?.resource.unwrap_or_default(),
        };
        let now = (state.worker, state.epoch);
        if at.1 != 0 {
            // Elsewhere its output begins anew; on the same worker the last line is enough to see where it goes on.
            request.tail = u32::from(now == at);
        }
        match read(&session, &subject, &request).await {
            Ok(()) if !args.follow => return Ok(()),
            Err(error) if !args.follow || at.1 == 0 && now.1 == 0 => return Err(error),
            Ok(()) | Err(ClientError::Status { .. }) => {}
            Err(error) => return Err(error),
        }
        at = now;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Prints one stream to its end.
async fn read(session: &Session, subject: &str, request: &ReadLogsRequest) -> Result<(), ClientError> {
    let mut stream = session.call(subject, request.clone(), async |client, request| client.read_logs(request).await).await?;
    loop {
        match stream.message().await {
            Ok(Some(part)) => output::write(&part.chunk)?,
            Ok(None) => return Ok(()),
            Err(status) => {
                if let Ended::Passing { silent: true, .. } = Ended::by(subject, &status) {
                    session.give_up(true).await;
                }
                return Err(ClientError::status(subject, &status));
            }
        }
    }
}

//! `evenkeel brake`: whether so many workers are gone that what they ran is held, and the way to let it move all the same.

use clap::{Args, ValueEnum};
use evenkeel_proto::v1::{ListWorkersResponse, ReleaseBrakeRequest};
use serde_json::json;

use super::{ClientArgs, ClientError, nodes::list_workers, print_one};

#[derive(Debug, Args)]
pub(crate) struct BrakeArgs {
    /// What is to be done
    #[arg(value_enum, default_value = "show")]
    action: Action,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    /// Tell whether it holds anything
    Show,
    /// Wait no longer for the workers that are gone now: what they ran moves
    Release,
}

pub(crate) async fn run(args: BrakeArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    match args.action {
        Action::Show => {
            let ListWorkersResponse { brake, .. } = list_workers(&session).await?;
            let sentence = if brake.is_empty() { "it holds nothing" } else { brake.as_str() };
            print_one(format, &json!({ "holds": !brake.is_empty(), "reason": brake }), "brake", || format!("{sentence}\n"))
        }
        Action::Release => {
            let request = ReleaseBrakeRequest {};
            let answer = session.ask("brake", request, async |client, request| client.release_brake(request).await).await;
            let workers = answer.result?.workers;
            print_one(format, &json!({ "workers": workers }), "brake", || match workers.as_slice() {
                // The try before this one may have released them.
                [] if answer.retried => "no worker is waited for any more\n".to_owned(),
                [] => "no worker is gone, so there is nothing to release\n".to_owned(),
                some => format!("waited for no longer: {}\n", some.join(", ")),
            })
        }
    }
}

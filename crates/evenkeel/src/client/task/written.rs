//! `evenkeel task output`: what scripts wrote, byte by byte. Under client::task. Notes go to stderr, so that stdout has nothing else.

use clap::Args;
use evenkeel_model::WorkerId;
use evenkeel_proto::v1::{ReadTaskOutputRequest, TaskHost};
use futures::{StreamExt, stream};

use super::subject;
use crate::{
    client::{ClientError, MasterArg, error::say, session::Session},
    output,
};

/// How many workers are asked at once. Each answer is some MiB at the most.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// The task
    id: u32,
    /// Only of this worker; without it, of each with a line that names it
    worker: Option<WorkerId>,
    /// What was written to stderr, instead of stdout
    #[arg(long)]
    stderr: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    tail: u32,
    #[command(flatten)]
    master: MasterArg,
}

pub(super) async fn run(args: OutputArgs) -> Result<(), ClientError> {
    let session = args.master.session();
    let request = |worker: &str| ReadTaskOutputRequest {
        id: args.id,
        worker: worker.to_owned(),
        stream: if args.stderr { "stderr" } else { "stdout" }.to_owned(),
        tail: args.tail,
    };
    if let Some(worker) = &args.worker {
        return read(&session, request(worker.as_str()), &mut |part| Ok(output::write(part)?)).await;
    }
    let task = super::get(&session, args.id, false).await?;
    if let [host] = task.hosts.as_slice() {
        return read(&session, request(&host.worker), &mut |part| Ok(output::write(part)?)).await;
    }
    let (begun, others): (Vec<&TaskHost>, Vec<&TaskHost>) = task.hosts.iter().partition(|host| host.began != 0);
    for host in others {
        eprintln!("{}", output::printable(&format!("{}: {}; it has begun nothing", host.worker, host.state)));
    }
    let (count, mut failed, mut is_first) = (begun.len(), 0, true);
    let fetched = begun.into_iter().map(|host| {
        let (session, request) = (&session, request(&host.worker));
        async move {
            let mut all = Vec::new();
            let mut keep = |part: &[u8]| {
                all.extend_from_slice(part);
                Ok(())
            };
            let ended = read(session, request, &mut keep).await;
            (host, ended.map(|()| all))
        }
    });
    let mut fetched = stream::iter(fetched).buffered(AT_ONCE);
    while let Some((host, written)) = fetched.next().await {
        match written {
            Ok(written) => {
                output::write(&[heading(&host.worker, is_first).as_bytes(), &written].concat())?;
                is_first = false;
            }
            // Every other would say the same.
            Err(error @ ClientError::Unreachable(_)) => return Err(error),
            Err(error) => {
                failed += 1;
                say(&error.to_string());
            }
        }
    }
    let text = || format!("task {}: the output of {failed} of {count} hosts was not read", args.id);
    if failed == 0 { Ok(()) } else { Err(ClientError::Failed(text())) }
}

/// As `tail` has it, which knows that what was written before may end within a line.
fn heading(worker: &str, is_first: bool) -> String {
    format!("{}==> {} <==\n", if is_first { "" } else { "\n" }, output::printable(worker))
}

/// One stream of one host, part by part.
async fn read(
    session: &Session,
    request: ReadTaskOutputRequest,
    part: &mut impl FnMut(&[u8]) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let subject = format!("{} on {}", subject(request.id), request.worker);
    let worker = request.worker.clone();
    let mut stream = session.call(&subject, request, async |client, request| client.read_task_output(request).await).await?;
    while let Some(answer) = stream.message().await.map_err(|status| ClientError::status(&subject, &status))? {
        if !answer.note.is_empty() {
            eprintln!("{}", output::printable(&format!("{worker}: {}", answer.note)));
        }
        if !answer.chunk.is_empty() {
            part(&answer.chunk)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_stands_on_a_line_of_its_own() {
        assert_eq!(heading("worker-1", true), "==> worker-1 <==\n");
        assert_eq!(heading("worker-2", false), "\n==> worker-2 <==\n");
    }
}

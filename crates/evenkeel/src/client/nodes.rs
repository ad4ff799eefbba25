//! `evenkeel workers`, `masters`, `cordon` and `uncordon`: the processes of the cluster.

use clap::Args;
use evenkeel_model::WorkerId;
use evenkeel_proto::v1::{
    CordonWorkerRequest, ListMastersRequest, ListWorkersRequest, ListWorkersResponse, MasterState, UncordonWorkerRequest, WorkerState,
};

use super::{
    ClientArgs, ClientError, Listing, convert, print_list, print_one,
    session::Session,
    usage::{self, Usage},
};
use crate::output::{self, Format, Row, Tone, or_dash};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// The worker
    #[arg(value_name = "WORKER")]
    id: WorkerId,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn workers(args: ListArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let ListWorkersResponse { workers, brake, .. } = list_workers(&session).await?;
    if !brake.is_empty() {
        eprintln!("evenkeel: the brake holds: {brake} (evenkeel brake release)");
    }
    if workers.is_empty() && format.is_table() {
        eprintln!("no workers; start one with `evenkeel worker --id 1`");
        return Ok(());
    }
    let values = workers.iter().map(|w| convert::to_json("WorkerState", w)).collect::<Result<_, _>>()?;
    let names = workers.iter().map(|w| w.id.as_str()).collect();
    let used = if format == Format::Wide { Some(usage::of_workers(&session).await) } else { None };
    print_list(format, Listing { values, names }, || workers_table(&workers, used.as_ref(), output::colour()))
}

/// The workers as a master knows them, page by page.
pub(crate) async fn list_workers(session: &Session) -> Result<ListWorkersResponse, ClientError> {
    let mut all = ListWorkersResponse::default();
    loop {
        let request = ListWorkersRequest { page_token: all.next_page_token.clone(), ..ListWorkersRequest::default() };
        let page = session.call("workers", request, async |client, request| client.list_workers(request).await).await?;
        all.workers.extend(page.workers);
        (all.brake, all.next_page_token) = (page.brake, page.next_page_token);
        if all.next_page_token.is_empty() {
            return Ok(all);
        }
    }
}

pub(crate) async fn masters(args: ListArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let masters = session.call("masters", ListMastersRequest {}, async |client, request| client.list_masters(request).await).await?.masters;
    let values = masters.iter().map(|m| convert::to_json("MasterState", m)).collect::<Result<_, _>>()?;
    let names = masters.iter().map(|m| m.id.as_str()).collect();
    print_list(format, Listing { values, names }, || masters_table(&masters, output::colour()))
}

pub(crate) async fn cordon(args: WorkerArgs) -> Result<(), ClientError> {
    let request = CordonWorkerRequest { id: args.id.to_string() };
    let session = args.client.master.clone().session();
    let response = session.call(args.id.as_str(), request, async |client, request| client.cordon_worker(request).await).await?;
    told(&args.client, args.id.as_str(), "cordoned", response.worker)
}

pub(crate) async fn uncordon(args: WorkerArgs) -> Result<(), ClientError> {
    let request = UncordonWorkerRequest { id: args.id.to_string() };
    let session = args.client.master.clone().session();
    let response = session.call(args.id.as_str(), request, async |client, request| client.uncordon_worker(request).await).await?;
    told(&args.client, args.id.as_str(), "uncordoned", response.worker)
}

pub(super) fn told(client: &ClientArgs, id: &str, done: &str, worker: Option<WorkerState>) -> Result<(), ClientError> {
    let worker = worker.unwrap_or_else(|| WorkerState { id: id.to_owned(), ..WorkerState::default() });
    let value = convert::to_json("WorkerState", &worker)?;
    print_one(client.output.output, &value, id, || format!("{id} {done}\n"))
}

fn workers_table(workers: &[WorkerState], used: Option<&Usage>, colour: bool) -> String {
    let mut headers = vec!["ID", "ADDRESS", "PHASE", "RESOURCES", "PAYLOAD", "CAPACITY", "CONTAINMENT", "LABELS", "VERSION"];
    let mut rows: Vec<Row> = workers.iter().map(worker_row).collect();
    // Before the labels, which may be long.
    let at = headers.iter().position(|header| *header == "LABELS").unwrap_or_default();
    if let Some(used) = used {
        headers.splice(at..at, usage::HEADERS.into_iter().chain(["KINDS"]));
        for (row, worker) in rows.iter_mut().zip(workers) {
            row.cells.splice(at..at, used.of_worker(&worker.id).into_iter().chain([kinds(worker)]));
        }
    }
    output::table(&headers, &rows, colour)
}

fn worker_row(worker: &WorkerState) -> Row {
    let tone = match worker.phase.as_str() {
        "ready" if !worker.cordoned && !worker.draining => Tone::Plain,
        "left" => Tone::Plain,
        "lost" => Tone::Trouble,
        _ => Tone::Waiting,
    };
    let mut labels: Vec<String> = worker.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    labels.sort();
    let cells = vec![
        worker.id.clone(),
        or_dash(&worker.grpc_address),
        phase(worker),
        worker.resources.to_string(),
        worker.payload.to_string(),
        if worker.capacity == 0 { "-".to_owned() } else { worker.capacity.to_string() },
        or_dash(&worker.containment),
        or_dash(&labels.join(",")),
        or_dash(&worker.version),
    ];
    Row { cells, tone }
}

/// `file(loose),noop,process(updates)`: of each kind what is not the usual. A master of an earlier version says no more than the names.
fn kinds(worker: &WorkerState) -> String {
    let mut kinds: Vec<String> = worker
        .kinds
        .iter()
        .map(|kind| {
            let driver = worker.drivers.get(kind);
            let holds = driver.map(|driver| driver.holds.as_str()).filter(|holds| *holds != "strict");
            let said: Vec<&str> = holds.into_iter().chain(driver.filter(|driver| driver.updates).map(|_| "updates")).collect();
            if said.is_empty() { kind.clone() } else { format!("{kind}({})", said.join(" ")) }
        })
        .collect();
    kinds.sort();
    or_dash(&kinds.join(","))
}

/// `ready,cordoned`, as kubectl has it.
fn phase(worker: &WorkerState) -> String {
    let mut phase = or_dash(&worker.phase);
    match (worker.draining, worker.cordoned) {
        (true, _) => phase.push_str(",draining"),
        (false, true) => phase.push_str(",cordoned"),
        (false, false) => {}
    }
    if !worker.reason.is_empty() {
        phase.push_str(&format!(" ({})", worker.reason));
    }
    phase
}

fn masters_table(masters: &[MasterState], colour: bool) -> String {
    let row = |master: &MasterState| {
        let leader = if master.leader { "leader" } else { "-" };
        Row::from([
            master.id.clone(),
            or_dash(&master.grpc_address),
            leader.to_owned(),
            or_dash(&master.http_address),
            or_dash(&master.version),
        ])
    };
    output::table(&["ID", "ADDRESS", "LEADER", "HTTP", "VERSION"], &masters.iter().map(row).collect::<Vec<_>>(), colour)
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::DriverTraits;

    use super::*;

    #[test]
    fn the_tables_read_like_this() {
        let worker = WorkerState {
            id: "worker-1".to_owned(),
            grpc_address: "127.0.0.1:9090".to_owned(),
            labels: [("zone".to_owned(), "a".to_owned()), ("gpu".to_owned(), "true".to_owned())].into(),
            version: "0.1.0".to_owned(),
            phase: "ready".to_owned(),
            resources: 3,
            payload: 5,
            containment: "processes".to_owned(),
            ..WorkerState::default()
        };
        let lost = WorkerState {
            id: "worker-2".to_owned(),
            phase: "lost".to_owned(),
            reason: "waiting 5.1 s".to_owned(),
            cordoned: true,
            capacity: 10,
            ..WorkerState::default()
        };
        let expected = "\
ID         ADDRESS          PHASE                           RESOURCES   PAYLOAD   CAPACITY   CONTAINMENT   LABELS            VERSION
worker-1   127.0.0.1:9090   ready                                   3         5          -   processes     gpu=true,zone=a   0.1.0
worker-2   -                lost,cordoned (waiting 5.1 s)           0         0         10   -             -                 -
";
        assert_eq!(workers_table(&[worker, lost.clone()], None, false), expected);
        let expected = "\
ID         ADDRESS   PHASE                           RESOURCES   PAYLOAD   CAPACITY   CONTAINMENT   CPU   MEMORY   PROCESSES   KINDS   LABELS   VERSION
worker-2   -         lost,cordoned (waiting 5.1 s)           0         0         10   -               -        -           -   -       -        -
";
        assert_eq!(workers_table(&[lost], Some(&Usage::default()), false), expected);
        let driver = |holds: &str, updates| DriverTraits { holds: holds.to_owned(), updates };
        let drivers = [
            ("process", driver("strict", true)),
            ("file", driver("loose", true)),
            ("noop", driver("strict", false)),
            ("k8s", driver("fenced", false)),
        ];
        let drivers: std::collections::HashMap<String, DriverTraits> = drivers.map(|(kind, driver)| (kind.to_owned(), driver)).into();
        let of_kinds = |drivers| WorkerState {
            kinds: ["process", "noop", "k8s", "file"].map(str::to_owned).into(),
            drivers,
            ..WorkerState::default()
        };
        assert_eq!(kinds(&of_kinds(drivers)), "file(loose updates),k8s(fenced),noop,process(updates)");
        assert_eq!(kinds(&of_kinds(std::collections::HashMap::new())), "file,k8s,noop,process");
        let master = |id: &str, leader| MasterState {
            id: id.to_owned(),
            grpc_address: "h:9091".to_owned(),
            http_address: "h:8081".to_owned(),
            leader,
            version: "0.1.0".to_owned(),
        };
        let expected = "\
ID         ADDRESS   LEADER   HTTP     VERSION
master-1   h:9091    leader   h:8081   0.1.0
master-2   h:9091    -        h:8081   0.1.0
";
        assert_eq!(masters_table(&[master("master-1", true), master("master-2", false)], false), expected);
    }
}

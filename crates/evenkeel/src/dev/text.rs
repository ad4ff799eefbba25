//! What `dev` tells a person. It only words what it is given.

use std::fmt::Write;

use super::{
    cluster::{Cluster, Ended},
    process::Process,
    view::View,
};
use crate::output::{self, Row};

/// The usual place of a master, which commands need not name.
const USUAL_MASTER: u16 = 9091;

/// Who runs what, how to break it, and every address.
pub(super) fn welcome(cluster: &Cluster, view: &View, colour: bool) -> String {
    let mut text = String::new();
    let etcd = cluster.etcd().map_or_else(|| "an etcd that ran already".to_owned(), |(_, version)| format!("etcd {version}"));
    let (masters, workers, resources) = (cluster.masters.len(), cluster.workers.len(), view.resources.len());
    let counts = [counted(masters, "master"), counted(workers, "worker"), counted(resources, "resource")].join(", ");
    let _ = writeln!(text, "{etcd}, {counts}. Ctrl+C ends all of it.\n");
    text.push_str(&view.table(&cluster.pids(), colour));
    if !view.is_settled(cluster.expected) {
        text.push_str("It has not settled yet; the logs say why, and this table comes again when it changes.\n");
    }
    let _ = write!(text, "\n{}", output::table(&["PROCESS", "PID", "HTTP", "GRPC", "ROLE"], &processes(cluster, view), colour));
    text.push_str(&try_this(cluster, view));
    text
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The table again, after a change.
pub(super) fn again(cluster: &Cluster, view: &View, colour: bool) -> String {
    let leader = view.leader().map_or_else(|| "there is no leader".to_owned(), |leader| format!("{leader} leads"));
    format!("\n{} {leader}\n{}", output::time(output::now_ns()), view.table(&cluster.pids(), colour))
}

/// That a child has ended, and how it comes back.
pub(super) fn ended(ended: &Ended) -> String {
    let mut text = format!("\n{} has ended ({}). To start it again, in another terminal:\n  {}\n", ended.id, ended.status, ended.again);
    for line in &ended.tail {
        let _ = writeln!(text, "  | {line}");
    }
    text
}

fn processes(cluster: &Cluster, view: &View) -> Vec<Row> {
    let masters = cluster.masters.iter().zip(&cluster.master_ports).map(|(process, ports)| {
        let role = if view.leader() == Some(&process.id) { "leader" } else { "standby" };
        let http = format!("http://127.0.0.1:{}", ports.http);
        Row::from([process.id.clone(), process.pid.to_string(), http, format!("127.0.0.1:{}", ports.grpc), role.to_owned()])
    });
    let workers = cluster.workers.iter().map(|process| {
        let state = view.workers.iter().find(|w| w.id == process.id);
        let http = state.map(|w| format!("http://{}", w.http_address)).unwrap_or_default();
        let grpc = state.map(|w| w.grpc_address.clone()).unwrap_or_default();
        Row::from([process.id.clone(), process.pid.to_string(), http, grpc, "worker".to_owned()])
    });
    let pid = cluster.etcd().map_or_else(|| "-".to_owned(), |(pid, _)| pid.to_string());
    let etcd = Row::from(["etcd".to_owned(), pid, cluster.etcd_urls.join(","), String::new(), "store".to_owned()]);
    masters.chain(workers).chain([etcd]).collect()
}

fn try_this(cluster: &Cluster, view: &View) -> String {
    let mut text = String::new();
    let pid = |process: Option<&Process>| process.map(|p| (p.pid, p.id.clone())).unwrap_or_default();
    let (worker, worker_id) = pid(cluster.workers.iter().find(|p| p.runs()));
    let leader = cluster.masters.iter().find(|p| view.leader() == Some(&p.id)).or_else(|| cluster.masters.first());
    let (leader, leader_id) = pid(leader);
    let program = super::process::quoted(&cluster.program);
    let ports = cluster.master_ports.first().copied();
    let (http, grpc) = ports.map_or((8081, USUAL_MASTER), |ports| (ports.http, ports.grpc));
    let master = if grpc == USUAL_MASTER { String::new() } else { format!(" --master http://127.0.0.1:{grpc}") };
    // One that writes something.
    let resources = || view.resources.iter().filter_map(|r| r.resource.as_ref());
    let name =
        resources().find(|r| r.kind == evenkeel_model::process::KIND).or_else(|| resources().next()).map_or("NAME", |r| r.name.as_str());
    let etcd = cluster.etcd_urls.join(",");
    let prefix = &cluster.prefix;
    let lines = [
        (format!("kill {worker}"), format!("{worker_id} leaves: its work is elsewhere within a second")),
        (format!("kill -9 {worker}"), format!("{worker_id} is lost: its work dies with it, and is elsewhere some seconds later")),
        (
            format!("pkill -9 -P {worker} evenkeel-agent"),
            format!("{worker_id}'s agent dies, and its work with it; both are back within two seconds"),
        ),
        (format!("kill -9 {leader}"), format!("{leader_id} leads no more: another does, and nothing moves")),
    ];
    text.push_str("\nKill one, and look:\n");
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    for (command, what) in &lines {
        let _ = writeln!(text, "  {command:width$}   # {what}");
    }
    text.push_str("\nAsk and change:\n");
    for command in [
        format!("{program} get --watch{master}"),
        format!("{program} logs {name} --follow{master}"),
        format!("{program} explain {name}{master}"),
        format!(
            "curl -H 'content-type: application/json' -d '{{\"id\":\"zjx\",\"name\":\"task-test-4\"}}' http://127.0.0.1:{http}/crawler/resource"
        ),
        format!(
            "curl -X DELETE -H 'content-type: application/json' -d '{{\"name\":\"task-test-4\"}}' http://127.0.0.1:{http}/crawler/resource"
        ),
        format!("etcdctl --endpoints={etcd} get --prefix {prefix}/resources"),
    ] {
        let _ = writeln!(text, "  {command}");
    }
    let _ = writeln!(text, "\nLogs: {}/*.log", cluster.logs().display());
    text
}

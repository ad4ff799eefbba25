//! From nothing to a cluster that works: what a person does first, and what must then be so.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    Scenario,
    field::Field,
    stack::{self, ETCD, MASTERS, docker, inspect, run, try_docker},
    work::{Manner, boot_time},
};

pub(crate) const ALL: &[Scenario] = &[
    ("images_are_small_and_run_as_nobody", images),
    ("up_from_nothing", up_from_nothing),
    ("the_classic_run", classic_run),
    ("workers_scale", workers_scale),
    ("prometheus_scrapes_all", prometheus_scrapes_all),
    ("down_and_up_keeps_what_is_wanted", down_and_up),
    ("up_in_any_order", up_in_any_order),
];

/// What is added to the base may take so many bytes.
const LARGEST: u64 = 40_000_000;

fn images(field: &mut Field) {
    field.did("docker image inspect");
    let base: u64 = inspect("debian:bookworm-slim", "{{.Size}}").parse().expect("bytes");
    for role in ["master", "worker"] {
        let image = format!("evenkeel/{role}:0.1.0");
        let size: u64 = inspect(&image, "{{.Size}}").parse().expect("bytes");
        assert!(size - base < LARGEST, "{image}: {} bytes beyond the base", size - base);
        field.note(format!("{role}: {:.1} MB beyond the base", (size - base) as f64 / 1e6));
        assert_eq!(inspect(&image, "{{.Config.User}}"), "65532:65532");
        assert_eq!(inspect(&image, "{{index .Config.Labels \"org.opencontainers.image.title\"}}"), "Evenkeel");
        assert!(inspect(&image, "{{.Config.Healthcheck.Test}}").contains("health"));
        let version = docker(&["run", "--rm", &image, "version"]);
        assert_eq!(version.trim(), concat!("evenkeel ", env!("CARGO_PKG_VERSION")));
    }
}

fn up_from_nothing(field: &mut Field) {
    field.did("compose up, with nothing there but images; a resource is added as soon as a master takes it");
    let begun = boot_time();
    field.stack.compose(&["up", "--detach", "--no-build"]);
    field.add(&field.resource("first", Manner::Good));
    let first = field.eventually("it runs", |field| field.first_start_since(begun));
    field.note(format!("running after {:.1} s", first.as_secs_f64()));
    field.until_healthy();
    field.note(format!("all healthy after {:.1} s", Duration::from_nanos(boot_time() - begun).as_secs_f64()));
    for container in field.stack.all() {
        assert_eq!(inspect(&container.name, "{{.RestartCount}}"), "0", "{} comes up the first time", container.name);
    }
    field.delete("first");
}

fn curl(arguments: &[&str]) -> String {
    run(Command::new("curl").args(["--silent", "--show-error", "--max-time", "12"]).args(arguments))
}

/// A client that knows nothing but what the server tells of itself.
fn reflecting(port: u16, method: &str, message: &str) -> String {
    let buf = [stack::root().join("target/tools/bin/buf"), "buf".into()].into_iter().find(|buf| buf.exists() || buf.as_os_str() == "buf");
    let url = format!("http://localhost:{port}/{method}");
    let mut command = Command::new(buf.expect("a name"));
    run(command.args(["curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", message, &url]).stdin(Stdio::null()))
}

fn classic_run(field: &mut Field) {
    field.did("curl, a reflection client, and etcdctl in etcd's container");
    field.up(&[]);
    let workers: Vec<String> = field.stack.containers("worker").into_iter().map(|worker| worker.id).collect();
    let json = "content-type: application/json";
    // Both masters take calls: one of them passes them on.
    for (name, http, grpc) in [("task-test-4", MASTERS[0].1, MASTERS[1].2), ("task-test-5", MASTERS[1].1, MASTERS[0].2)] {
        let url = format!("http://localhost:{http}/crawler/resource");
        let added = curl(&["-H", json, "-d", &format!("{{\"id\":\"zjx\",\"name\":\"{name}\"}}"), &url]);
        let answer: serde_json::Value = serde_json::from_str(&added).expect("json");
        let worker = answer["id"].as_str().expect("an id");
        assert!(workers.iter().any(|id| id == worker), "{added}: its id is its container's host name");
        assert!(answer["Address"].as_str().expect("an address").ends_with(":9090"), "{added}");
        let record = Field::etcdctl(&["get", &format!("/resources/{name}"), "--print-value-only"]).expect("etcd answers");
        let record: serde_json::Value = serde_json::from_str(&record).expect("json");
        assert_eq!(record["Name"], name);
        assert!(record["AssignedNode"].as_str().expect("text").starts_with(&format!("{worker}|")), "{record}");
        let again = reflecting(grpc, "CrawlerMaster/AddResource", &format!("{{\"id\":\"zjx\",\"name\":\"{name}\"}}"));
        assert!(again.contains(worker), "the same again has the same answer: {again}");
        assert_eq!(curl(&["-X", "DELETE", "-H", json, "-d", &format!("{{\"name\":\"{name}\"}}"), &url]), "{}");
        assert_eq!(Field::etcdctl(&["get", &format!("/resources/{name}")]).as_deref(), Some(""));
    }
    for (_, http, _) in MASTERS {
        assert!(curl(&[&format!("http://localhost:{http}/readyz")]).starts_with("ready: "));
    }
    let host = curl(&["-o", "/dev/null", "-w", "%{http_code}", "http://localhost:2379/health"]);
    assert_eq!(host, "200", "etcd's port is published");
}

fn workers_scale(field: &mut Field) {
    field.did("--scale worker=5, then 3");
    field.under_load();
    field.stack.compose(&["up", "--detach", "--no-build", "--scale", "worker=5"]);
    field.until_healthy();
    assert_eq!(field.stack.containers("worker").len(), 5);
    let owners = |field: &Field| {
        let assigned = field.settled()?;
        let workers = assigned.values().map(|assigned| assigned.worker.clone()).collect::<std::collections::BTreeSet<_>>();
        (workers.len() == 5).then_some(())
    };
    field.eventually("all five have work", owners);
    field.stack.compose(&["up", "--detach", "--no-build", "--scale", "worker=3"]);
    field.healed();
    // Nine on three become two, two, two, two and one on five; what the two have that leave goes back.
    field.judge(4..=16);
    assert_eq!(field.stack.containers("worker").len(), 3);
}

fn prometheus_scrapes_all(field: &mut Field) {
    if try_docker(&["image", "inspect", &stack::image_of("prom/prometheus")]).is_none() {
        return field.note("left out: there is no image of Prometheus");
    }
    field.did("--profile metrics");
    field.up(&[]);
    field.stack.compose(&["--profile", "metrics", "up", "--detach", "--no-build", "prometheus"]);
    let all = 3 + MASTERS.len() + ETCD.len();
    let found = field.eventually("Prometheus has scraped all", |_| {
        let query = "http://localhost:9090/api/v1/query?query=sum(up{job=~%22evenkeel.*|etcd%22})";
        let answer = stack::output(Command::new("curl").args(["--silent", "--globoff", "--max-time", "2", query]));
        let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).ok()?;
        let count = answer["data"]["result"][0]["value"][1].as_str()?.to_owned();
        (count == all.to_string()).then_some(count)
    });
    let rules = curl(&["http://localhost:9090/api/v1/rules?type=alert"]);
    assert!(rules.contains("EvenkeelNoLeader"), "the alerts are there: {rules}");
    field.note(format!("{found} targets are up"));
    field.stack.compose(&["--profile", "metrics", "rm", "--force", "--stop", "prometheus"]);
}

fn down_and_up(field: &mut Field) {
    field.did("compose down, then up");
    field.under_load();
    let before: Vec<String> = Field::assignments().expect("etcd answers").into_keys().collect();
    assert!(!before.is_empty());
    field.stack.compose(&["down", "--timeout", "15"]);
    assert!(field.stack.all().is_empty());
    field.up(&[]);
    field.healed();
    // Workers go and come one after the other: what one leaves goes to others, and what the first to come gets is made even.
    field.judge(9..=36);
    let after = Field::assignments().expect("etcd answers");
    assert!(before.iter().filter(|name| name.starts_with("base-")).all(|name| after.contains_key(name)));
}

fn up_in_any_order(field: &mut Field) {
    field.did("workers first, 10 s later the masters, 10 s later etcd");
    field.under_load();
    field.stack.compose(&["down", "--timeout", "15"]);
    let up = |field: &Field, services: &[&str]| {
        field.stack.compose(&[&["up", "--detach", "--no-build", "--no-deps"], services].concat());
    };
    up(field, &["worker"]);
    std::thread::sleep(Duration::from_secs(10));
    up(field, &["master-1", "master-2"]);
    std::thread::sleep(Duration::from_secs(10));
    up(field, &ETCD);
    let begun = Instant::now();
    field.until_healthy();
    field.note(format!("healthy {:.1} s after etcd was started", begun.elapsed().as_secs_f64()));
    field.healed();
    // Workers go and come one after the other: what one leaves goes to others, and what the first to come gets is made even.
    field.judge(9..=36);
}

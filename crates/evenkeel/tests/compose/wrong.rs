//! Containers that are given something wrong: they say in one line what it is, are started again by the engine, and recover by themselves
//! once it is mended.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::{
    Scenario,
    field::Field,
    stack::{self, docker, inspect, logs, network, try_docker},
};

pub(crate) const ALL: &[Scenario] = &[
    ("wrong_endpoint", wrong_endpoint),
    ("id_taken", id_taken),
    ("wrong_setting", wrong_setting),
    ("other_architecture", other_architecture),
    ("etcd_without_space", etcd_without_space),
];

/// A container beside those of the compose file, which goes when this is dropped.
pub(crate) struct Extra(String);

impl Extra {
    pub(crate) fn run(name: &str, more: &[&str], image: &str, command: &[&str]) -> Self {
        let name = stack::extra_name(name);
        let extra = Self(name.clone());
        let network = network();
        let fixed = ["run", "--detach", "--restart", "unless-stopped", "--name", &name, "--network", &network];
        docker(&[&fixed, more, &[image], command].concat());
        extra
    }

    /// The errors that it has printed, each of which is a line.
    fn errors(&self) -> Vec<String> {
        logs(&self.0).lines().filter(|line| line.starts_with("error: ")).map(str::to_owned).collect()
    }

    fn restarts(&self) -> u32 {
        inspect(&self.0, "{{.RestartCount}}").parse().expect("a number")
    }

    fn health(&self) -> String {
        inspect(&self.0, "{{.State.Health.Status}}")
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        let _ = try_docker(&["rm", "--force", &self.0]);
    }
}

/// Waits for the error, and that the container was started again after it.
fn complains(field: &Field, extra: &Extra, part: &str) -> String {
    let error = field.eventually("it says what is wrong, and is started again", |_| {
        let error = extra.errors().into_iter().find(|line| line.contains(part))?;
        (extra.restarts() > 0).then_some(error)
    });
    error.trim_start_matches("error: ").to_owned()
}

fn recovers(field: &Field, extra: &Extra) {
    field.eventually("it recovers by itself", |_| (extra.health() == "healthy").then_some(()));
}

fn wrong_endpoint(field: &mut Field) {
    field.up(&[]);
    field.did("a master and a worker whose etcd has a name that nobody has; later somebody gets it");
    let etcd = ["--env", "EVENKEEL_ETCD=http://etcd-late:2379"];
    let worker = Extra::run("late-worker", &etcd, "evenkeel/worker:0.1.0", &[]);
    let master = Extra::run("late-master", &etcd, "evenkeel/master:0.1.0", &[]);
    for extra in [&worker, &master] {
        let error = complains(field, extra, "etcd-late");
        field.note(error);
    }
    let member = field.stack.one("etcd-3");
    stack::disconnect(&member);
    docker(&["network", "connect", "--alias", "etcd-3", "--alias", "etcd-late", &network(), &member.name]);
    recovers(field, &worker);
    recovers(field, &master);
    drop((worker, master));
    field.until_healthy();
}

fn id_taken(field: &mut Field) {
    field.under_load();
    let holder = field.stack.containers("worker").into_iter().next().expect("a worker");
    field.did("a second worker with the id of a live one, until that one is stopped");
    let etcd = ["--env", "EVENKEEL_ETCD=http://etcd-1:2379,http://etcd-2:2379", "--env", &format!("EVENKEEL_ID={}", holder.id)];
    let twin = Extra::run("twin", &etcd, "evenkeel/worker:0.1.0", &[]);
    let error = complains(field, &twin, "is taken");
    field.note(error);
    docker(&["stop", &holder.name]);
    recovers(field, &twin);
    docker(&["stop", &twin.0]);
    docker(&["start", &holder.name]);
    field.healed();
    field.until_healthy();
    // What the holder had goes elsewhere, some of it to the twin, whose work cannot run without the folder, and back.
    field.judge(1..=40);
}

fn wrong_setting(field: &mut Field) {
    field.up(&[]);
    field.did("a worker with a port that is none");
    let extra = Extra::run("wrong", &["--env", "EVENKEEL_GRPC=:http"], "evenkeel/worker:0.1.0", &[]);
    let error = complains(field, &extra, "EVENKEEL_GRPC");
    field.note(error);
}

/// The head of a program for a machine that this is not; nothing of it is ever run.
fn foreign_program() -> Vec<u8> {
    const MACHINE: usize = 18;
    let mut head = vec![0_u8; 64];
    head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    (head[16], head[20], head[52], head[54]) = (2, 1, 64, 56);
    // AArch64 on x86-64, and the other way round.
    head[MACHINE] = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    head
}

fn other_architecture(field: &mut Field) {
    field.did("an image whose program is of another architecture");
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("evenkeel"), foreign_program()).expect("written");
    let dockerfile = "FROM evenkeel/worker:0.1.0\nCOPY --chown=0:0 evenkeel /usr/local/bin/evenkeel\n";
    fs::write(folder.path().join("Dockerfile"), dockerfile).expect("written");
    let program = folder.path().join("evenkeel");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    let tag = format!("{}-foreign", stack::PROJECT);
    let mut build = std::process::Command::new("docker");
    stack::run(build.args(["build", "--quiet", "--tag", &tag]).arg(folder.path()));
    let output = stack::output(std::process::Command::new("docker").args(["run", "--rm", &tag]));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
    let _ = try_docker(&["image", "rm", "--force", &tag]);
    assert!(!output.status.success() && said.contains("exec format error") && said.lines().count() == 1, "{said}");
    field.note(said);
}

/// The quota of this stack is small; it is filled by hand, and mended as docs/operations.md says.
fn etcd_without_space(field: &mut Field) {
    field.clear();
    field.did("etcd's quota of 8 MiB is filled; then compact, defrag, alarm disarm");
    let over = field.folder().join("small.yml");
    let small = |member: &str| format!("  {member}: {{environment: {{ETCD_QUOTA_BACKEND_BYTES: \"8388608\"}}}}\n");
    fs::write(&over, format!("services:\n{}", stack::ETCD.map(small).concat())).expect("written");
    field.stack.add_file(over);
    field.under_load();
    let ballast = "x".repeat(100_000);
    field.eventually("etcd has no space", |_| Field::etcdctl(&["put", "/ballast", &ballast]).is_none().then_some(()));
    let (_, http, _) = stack::MASTERS[0];
    let refused = field.eventually("an add is refused", |_| {
        let url = format!("http://localhost:{http}/v1/resources");
        let mut curl = std::process::Command::new("curl");
        let body = "{\"name\":\"beyond\",\"kind\":\"noop\"}";
        let answer = stack::output(curl.args(["--silent", "--max-time", "5", "-H", "content-type: application/json", "-d", body, &url]));
        let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
        answer.contains("space").then_some(answer)
    });
    let said: serde_json::Value = serde_json::from_str(&refused).expect("json");
    field.note(said["message"].as_str().unwrap_or_default().to_owned());
    field.eventually("the work goes on", Field::settled);
    let revision = Field::etcdctl(&["get", "/ballast", "--write-out=fields", "--keys-only"]).expect("reads go on");
    let revision = revision.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).expect("a revision").to_owned();
    Field::etcdctl(&["compact", &revision]).expect("compacted");
    for member in stack::ETCD {
        let name = field.stack.one(member).name;
        docker(&["exec", &name, "/usr/local/bin/etcdctl", "defrag"]);
    }
    Field::etcdctl(&["alarm", "disarm"]).expect("disarmed");
    field.healed();
    field.judge(0..=0);
}

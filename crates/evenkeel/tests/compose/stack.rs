//! Docker and compose, as a person calls them: every command is one of their command lines.
//!
//! Beside the wheel. It touches only what belongs to its own project.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Containers, networks and volumes of the tests bear this name.
pub(crate) const PROJECT: &str = "evenkeel-test";

/// The members of etcd.
pub(crate) const ETCD: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
/// The masters, with the ports at which this machine reaches their HTTP and their gRPC.
pub(crate) const MASTERS: [(&str, u16, u16); 2] = [("master-1", 8081, 9091), ("master-2", 8082, 9092)];

/// A container of the project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its id, as long as a host name is: that of the worker in it.
    pub(crate) id: String,
    /// What the engine calls it.
    pub(crate) name: String,
    /// The service that it belongs to.
    pub(crate) service: String,
}

/// The shipped compose file, with the files that a scenario adds to it.
#[derive(Debug)]
pub(crate) struct Stack {
    files: Vec<PathBuf>,
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs a command that must succeed; what it has printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = output(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub(crate) fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// `docker` with these arguments, which must succeed.
pub(crate) fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}

/// The same, where it may fail: what it has printed, if it did not.
pub(crate) fn try_docker(arguments: &[&str]) -> Option<String> {
    let output = output(Command::new("docker").args(arguments));
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a container has printed, both streams.
pub(crate) fn logs(container: &str) -> String {
    let output = output(Command::new("docker").args(["logs", container]));
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Something of what the engine says of a container or an image, by a template.
pub(crate) fn inspect(what: &str, template: &str) -> String {
    docker(&["inspect", "--format", template, what]).trim().to_owned()
}

/// How many processes and threads a container has.
pub(crate) fn processes(container: &str) -> u64 {
    let text = docker(&["stats", "--no-stream", "--format", "{{.PIDs}}", container]);
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no number of processes"))
}

/// What all of it runs on.
pub(crate) fn versions() -> String {
    let engine = docker(&["version", "--format", "{{.Server.Version}}"]);
    let etcd = try_docker(&["run", "--rm", &image_of("etcd"), "/usr/local/bin/etcd", "--version"]).unwrap_or_default();
    let etcd = etcd.lines().next().unwrap_or_default().to_owned();
    format!("docker {}; {etcd}, three members as docker-compose.yml has them", engine.trim())
}

/// The image in the compose file whose name has this in it.
pub(crate) fn image_of(part: &str) -> String {
    let file = std::fs::read_to_string(root().join("docker-compose.yml")).expect("the compose file");
    let images = file.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    images.into_iter().find(|image| image.contains(part)).expect("an image").to_owned()
}

impl Stack {
    pub(crate) fn new(override_file: PathBuf) -> Self {
        Self { files: vec![root().join("docker-compose.yml"), override_file] }
    }

    /// Adds a file whose settings come over those of the others.
    pub(crate) fn add_file(&mut self, file: PathBuf) {
        self.files.push(file);
    }

    /// `docker compose` with these arguments, which must succeed.
    pub(crate) fn compose(&self, arguments: &[&str]) -> String {
        let is_plugin = output(Command::new("docker").args(["compose", "version"])).status.success();
        let mut command = Command::new(if is_plugin { "docker" } else { "docker-compose" });
        if is_plugin {
            command.arg("compose");
        }
        command.args(["--project-name", PROJECT]).arg("--project-directory").arg(root());
        for file in &self.files {
            command.arg("--file").arg(file);
        }
        run(command.args(arguments).current_dir(root()))
    }

    /// All containers of a service, running or not, by name.
    pub(crate) fn containers(&self, service: &str) -> Vec<Container> {
        let project = format!("label=com.docker.compose.project={PROJECT}");
        let of = format!("label=com.docker.compose.service={service}");
        let list = docker(&["ps", "--all", "--filter", &project, "--filter", &of, "--format", "{{.ID}} {{.Names}}"]);
        let container = |line: &str| {
            let (id, name) = line.split_once(' ').expect("two words");
            Container { id: id.to_owned(), name: name.to_owned(), service: service.to_owned() }
        };
        let mut all: Vec<Container> = list.lines().map(container).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The one container of a service.
    pub(crate) fn one(&self, service: &str) -> Container {
        self.containers(service).into_iter().next().unwrap_or_else(|| panic!("there is no {service}"))
    }

    /// All containers of the project.
    pub(crate) fn all(&self) -> Vec<Container> {
        let services = ETCD.into_iter().chain(MASTERS.map(|(name, ..)| name)).chain(["worker"]);
        services.flat_map(|service| self.containers(service)).collect()
    }

    /// Takes down whatever an earlier run, or an interrupted one, has left.
    pub(crate) fn sweep(&self) {
        // Compose 1 and 2 name their containers differently; the label is the same.
        let ours = docker(&["ps", "--all", "--filter", &format!("label=com.docker.compose.project={PROJECT}"), "--format", "{{.Names}}"]);
        for name in ours.lines() {
            // Nothing of a paused container can be ended.
            let _ = try_docker(&["unpause", name]);
        }
        let extra = docker(&["ps", "--all", "--filter", &format!("name=^{}", extra_name("")), "--format", "{{.Names}}"]);
        for name in extra.lines() {
            let _ = try_docker(&["rm", "--force", name]);
        }
        self.remove();
    }

    /// Ends all of it, with what it has kept.
    pub(crate) fn remove(&self) {
        self.compose(&["--profile", "metrics", "down", "--volumes", "--remove-orphans", "--timeout", "5"]);
    }
}

/// What a container beside those of the compose file is called.
pub(crate) fn extra_name(name: &str) -> String {
    format!("{PROJECT}_extra-{name}")
}

/// The network that all of it is on.
pub(crate) fn network() -> String {
    format!("{PROJECT}_default")
}

/// The address of a container.
pub(crate) fn address(container: &Container) -> String {
    inspect(&container.name, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
}

/// Cuts a container off from all others.
pub(crate) fn disconnect(container: &Container) {
    docker(&["network", "disconnect", &network(), &container.name]);
}

/// Connects it again, under the name by which the others know it.
pub(crate) fn connect(container: &Container) {
    docker(&["network", "connect", "--alias", &container.service, &network(), &container.name]);
}

//! Hosts with one family of addresses: a network namespace of each kind. It needs root.

mod support;

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);
const ONLY_V6: &str = "ip link set lo up && ip -4 addr del 127.0.0.1/8 dev lo && ip -6 addr add fd00::5/64 dev lo nodad";
const ONLY_V4: &str = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && ip -4 addr add 10.9.8.7/32 dev lo";

struct Master(Child);

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn in_namespace(host: &str, command: &str) -> Command {
    let mut shell = Command::new("unshare");
    shell.args(["--net", "--", "sh", "-c", &format!("{host} && {command}")]).stdin(Stdio::null());
    shell
}

/// Starts a master on such a host, and asks it there whether it is ready: it is not, for want of an etcd, but it says so.
fn serves(host: &str, more: &str, expected: &[&str], log: &Path) {
    let program = env!("CARGO_BIN_EXE_evenkeel");
    let command = format!(
        "( {program} master --id 1 --etcd 127.0.0.1:1 --http :18081 --grpc :19091 {more} & echo $! > {pid}; \
         until {program} health --http :18081 2>&1 | grep -q 'not ready'; do sleep 0.1; done; echo answered; wait )",
        pid = log.with_extension("pid").display(),
    );
    let file = File::create(log).expect("a log");
    let child = in_namespace(host, &format!("exec sh -c '{}'", command.replace('\'', "'\\''")))
        .stdout(file.try_clone().expect("a log"))
        .stderr(file)
        .spawn()
        .expect("unshare");
    let shell = Master(child);
    let begun = Instant::now();
    let said = || fs::read_to_string(log).expect("read");
    while !said().contains("answered") {
        assert!(begun.elapsed() < PATIENCE, "{host}: it does not answer (this test needs root):\n{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = fs::read_to_string(log.with_extension("pid")).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.trim().parse().expect("a pid")), nix::sys::signal::Signal::SIGKILL)
        .expect("killed");
    drop(shell);
    for expected in expected {
        assert!(said().contains(expected), "{expected} in:\n{}", said());
    }
}

#[test]
fn a_port_alone_is_had_on_hosts_of_one_family() {
    let folder = tempfile::tempdir().expect("folder");
    let log = folder.path().join("log");
    serves(ONLY_V6, "--insecure", &["grpc=[fd00::5]:19091"], &log);
    serves(ONLY_V6, "", &["listening on [::1] only", "grpc=[::1]:19091"], &log);
    serves(ONLY_V4, "--insecure", &["grpc=10.9.8.7:19091"], &log);
    serves(ONLY_V4, "", &["listening on 127.0.0.1 only", "grpc=127.0.0.1:19091"], &log);
}

//! What the binary says to wrong input, without a cluster: each case has an exit status and a text that names the thing.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Nobody listens there: port 1 is kept for a service that nobody has.
const NOBODY: &str = "http://127.0.0.1:1";
/// No command of these tables goes on for ever, connecting in vain included.
const BOUND: Duration = Duration::from_secs(60);

/// A command line, split at spaces; what follows `|` goes to stdin.
struct Case {
    line: &'static str,
    env: &'static [(&'static str, &'static str)],
    status: i32,
    says: &'static str,
}

const fn case(line: &'static str, status: i32, says: &'static str) -> Case {
    Case { line, env: &[], status, says }
}

const fn with_env(line: &'static str, env: &'static [(&'static str, &'static str)], status: i32, says: &'static str) -> Case {
    Case { line, env, status, says }
}

fn evenkeel(folder: &Path, line: &str, env: &[(&str, &str)]) -> Output {
    let (arguments, input) = line.split_once(" | ").unwrap_or((line, ""));
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EVENKEEL_") {
            command.env_remove(name);
        }
    }
    command
        .current_dir(folder)
        .args(arguments.split(' ').filter(|a| !a.is_empty()).map(|a| a.replace('\u{a0}', " ")))
        .envs(env.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads no stdin may have ended already.
        let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    }
    // Read while it runs: a pipe that nobody reads holds up who writes more than it takes.
    let (stdout, stderr) = (drained(child.stdout.take()), drained(child.stderr.take()));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("waited") {
            break status;
        }
        if started.elapsed() > BOUND {
            let _ = child.kill();
            panic!("{line:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().expect("read"), stderr: stderr.join().expect("read") }
}

fn drained(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.expect("a pipe").read_to_end(&mut bytes);
        bytes
    })
}

fn check(folder: &Path, cases: &[Case]) {
    let mut wrong = Vec::new();
    for Case { line, env, status, says } in cases {
        let output = evenkeel(folder, line, env);
        let said = String::from_utf8_lossy(&output.stderr);
        let one_line = said.lines().filter(|l| l.starts_with("error: ")).count() >= 1;
        if output.status.code() != Some(*status) || !said.contains(says) || !one_line || said.contains("panicked") {
            wrong.push(format!(
                "{line:?} {env:?}\n  status {:?}, expected {status}\n  said {said:?}\n  expected {says:?}",
                output.status.code()
            ));
        }
        assert!(output.stdout.is_empty(), "{line:?} wrote to stdout: {}", String::from_utf8_lossy(&output.stdout));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, content).expect("written");
    }
    folder
}

#[test]
fn wrong_flags() {
    let cases = [
        case("frobnicate", 2, "unrecognized subcommand 'frobnicate'"),
        case("master --nope", 2, "unexpected argument '--nope'"),
        case("master --id", 2, "a value is required for '--id <ID>'"),
        case("master --id a/b", 2, "--id: \"a/b\" has '/' at position 2"),
        case("master --id=", 2, "--id: \"\" is empty"),
        case("worker --id .x", 2, "--id: \".x\" begins with '.'"),
        case("master --http 8081", 2, "write :8081 or HOST:8081"),
        case("master --http :99999", 2, "invalid port \"99999\": a number from 1 to 65535"),
        case("master --grpc :x", 2, "invalid port \"x\": a number from 1 to 65535"),
        case("master --http :9 --grpc :9", 2, "--http and --grpc are both :9"),
        case("master --http no-such-host.invalid:80", 2, "--http no-such-host.invalid:80: no-such-host.invalid has no address here"),
        case("master --advertise http://a", 2, "\"http://a\" is no host name"),
        case("master --etcd localhost", 2, "the port is missing; write http://HOST:PORT"),
        case("master --etcd ftp://a:1", 2, "scheme \"ftp\" is not http"),
        case("master --prefix x", 2, "does not begin with /; write /x"),
        case("master --prefix /x/", 2, "ends with /"),
        case("master --prefix /x//y", 2, "has // in it"),
        case("master --prefix /x\u{a0}y", 2, "not printable ASCII"),
        case("master --policy fair", 2, "unknown policy \"fair\"; use one of least-payload, round-robin"),
        case("master --log-format xml", 2, "[possible values: text, json]"),
        case("master --log-level =,=", 2, "invalid value '=,=' for '--log-level"),
        case("master --log-level verbos", 2, "unknown log level \"verbos\"; use one of off, error, warn, info, debug, trace, or a list"),
        case("worker --log-level warning", 2, "unknown log level \"warning\""),
        case("dev --log-level=", 2, "unknown log level \"\""),
        case("worker --log-level evenkeel_store=debug", 2, "lacks the level of everything else"),
        case("master --resources none.yaml", 2, "--resources none.yaml: No such file"),
        case("worker --label gpu", 2, "write gpu=VALUE"),
        case("worker --label a=1 --label a=2", 2, "--label: a is given twice"),
        case("worker --label=-x=1", 2, "--label: invalid key \"-x\""),
        case("worker --label a=b\u{a0}c", 2, "--label: invalid value \"b c\" of a"),
        case("worker --capacity 0", 2, "0 is not in 1.."),
        case("worker --capacity many", 2, "invalid value 'many' for '--capacity <N>'"),
        case("worker --drivers docker", 2, "unknown driver \"docker\"; use one of noop, process"),
        case("worker --catalog none.yaml", 2, "--catalog none.yaml: No such file"),
        case("dev --masters 0", 2, "0 is not in 1..=9"),
        case("dev --workers 1000", 2, "1000 is not in 1..=50"),
        case("dev --resources none.yaml", 2, "--resources none.yaml: No such file"),
        case("completions klingon", 2, "invalid value 'klingon'"),
    ];
    check(folder(&[]).path(), &cases);
}

#[test]
fn wrong_timing() {
    let cases = [
        case(
            "worker --authority 10s",
            2,
            "wait >= authority * (1 + rho) / (1 - rho) does not hold: 5.11s >= 10s * 1.01 / 0.99; with what else is given, this would do: wait 10.21s",
        ),
        case("master --wait 5s", 2, "does not hold: 5s >= 5s * 1.01 / 0.99; with what else is given, this would do: wait 5.11s"),
        case("worker --authority 10s --wait 10200ms", 2, "this would do: wait 10.21s"),
        case(
            "worker --grace 5s",
            2,
            "proof period + proof deadline < authority - kill - slack - grace does not hold: 500ms + 1s < 5s - 500ms - 250ms - 5s; \
             with what else is given, this would do: authority 7.26s, wait 7.41s",
        ),
        case("worker --kill 0s", 2, "timing: kill > 0 does not hold; with what else is given, this would do: kill 500ms"),
        case("worker --slack 0ms", 2, "timing: slack > 0 does not hold"),
        case("worker --proof-period 0ms", 2, "timing: proof period > 0 does not hold"),
        case("worker --authority 9999h", 2, "timing: authority <= 1h does not hold"),
        case("worker --authority 18446744073709551615h", 2, "write a number and a unit: 500ms, 1.5s, 2m or 1h"),
        case("worker --authority 18446744073709551615s", 2, "timing: authority <= 1h does not hold"),
        case("worker --authority 5", 2, "invalid value '5' for '--authority <SPAN>': write a number and a unit"),
        case("worker --authority=-5s", 2, "invalid value '-5s'"),
        case("worker --authority 5parsecs", 2, "invalid value '5parsecs'"),
        case("worker --authority 1.2345s", 2, "invalid value '1.2345s'"),
        case(
            "worker --worker-lease 1s",
            2,
            "timing: worker lease >= 2s in whole seconds does not hold: 1s; with what else is given, this would do: worker-lease 2s",
        ),
        case("worker --worker-lease 2500ms", 2, "this would do: worker-lease 3s"),
        case(
            "master --master-lease 0s",
            2,
            "2s <= master lease <= 1h in whole seconds does not hold: 0ns; with what else is given, this would do: master-lease 2s",
        ),
        case("master --master-lease 2h", 2, "this would do: master-lease 3600s"),
        case("master --master-lease 18446744073709551615.5s", 2, "this would do: master-lease 3600s"),
        case("worker --authority 10s --master-lease 1s", 2, "this would do: wait 10.21s, master-lease 2s"),
    ];
    check(folder(&[]).path(), &cases);
}

#[test]
fn wrong_environment_and_files() {
    let folder = folder(&[
        ("unknown.yaml", b"etcdd: http://a:1\n"),
        ("type.yaml", b"capacity: [1]\n"),
        ("value.yaml", b"policy: fair\n"),
        ("level.yaml", b"log_level: verbos\n"),
        ("syntax.yaml", b"etcd: [\n"),
        ("twice.yaml", b"log-format: json\nlog_format: text\n"),
        ("latin1.yaml", b"prefix: /caf\xe9\n"),
        ("ambiguous.yaml", b"insecure: yes\n"),
        ("id.yaml", b"id: file/id\n"),
        ("timing.yaml", b"authority: 10s\n"),
        ("span.yaml", b"wait: 7\n"),
        ("bad.yaml", b"resources:\n- name: a\n- name: b c\n"),
    ]);
    let cases = [
        with_env("worker", &[("EVENKEEL_CAPACITY", "x")], 2, "'--capacity <N>, from EVENKEEL_CAPACITY'"),
        with_env("master", &[("EVENKEEL_LOG_FORMAT", "xml")], 2, "from EVENKEEL_LOG_FORMAT"),
        with_env("master", &[("EVENKEEL_LOG_LEVEL", "verbos")], 2, "from EVENKEEL_LOG_LEVEL': unknown log level \"verbos\""),
        with_env("worker", &[("EVENKEEL_LOG_LEVEL", "")], 2, "unknown log level \"\""),
        case("worker --config level.yaml", 2, "--config level.yaml: log_level: invalid value 'verbos'"),
        with_env("master", &[("EVENKEEL_INSECURE", "perhaps")], 2, "EVENKEEL_INSECURE"),
        with_env("master", &[("EVENKEEL_CONFIG", "none.yaml")], 2, "--config none.yaml: No such file"),
        with_env("get", &[("EVENKEEL_MASTER", "nowhere")], 2, "the port is missing"),
        case("master --config none.yaml", 2, "--config none.yaml: No such file"),
        case("master --config .", 2, "--config .: Is a directory"),
        case("master --config unknown.yaml", 2, "--config unknown.yaml: etcdd: is no setting; there are advertise"),
        case("worker --config type.yaml", 2, "--config type.yaml: capacity: [1] is no text or number"),
        case("master --config value.yaml", 2, "--config value.yaml: policy: invalid value 'fair'"),
        case("worker --config value.yaml", 2, "--config value.yaml: policy: invalid value 'fair'"),
        case("master --config syntax.yaml", 2, "--config syntax.yaml: line 1, column 7"),
        case("dev --config twice.yaml", 2, "--config twice.yaml: log_format: stands there twice"),
        case("master --config latin1.yaml", 2, "--config latin1.yaml: line 1 is not UTF-8"),
        case("master --config ambiguous.yaml", 2, "--config ambiguous.yaml: document 1: insecure: one reader of YAML takes this for"),
        case("master --resources bad.yaml", 2, "--resources bad.yaml: document 1, entry 2: name: \"b c\" has ' '"),
        case("dev --resources bad.yaml", 2, "--resources bad.yaml: document 1, entry 2: name: \"b c\" has ' '"),
        case("master --config timing.yaml", 2, "this would do: wait 10.21s"),
        case("worker --config span.yaml", 2, "--config span.yaml: wait: invalid value '7' for '--wait <SPAN>'"),
        with_env("worker", &[("EVENKEEL_AUTHORITY", "10s")], 2, "this would do: wait 10.21s"),
        with_env("worker --authority 10s --catalog none.yaml", &[("EVENKEEL_WAIT", "10210ms")], 2, "--catalog none.yaml"),
        // The precedence: what is refused in the end is the value that won.
        case("master --config id.yaml", 2, "--id: \"file/id\""),
        with_env("master --config id.yaml", &[("EVENKEEL_ID", "env/id")], 2, "--id: \"env/id\""),
        with_env("master --config id.yaml --id flag/id", &[("EVENKEEL_ID", "env/id")], 2, "--id: \"flag/id\""),
        with_env("master", &[("EVENKEEL_ID", "env/id")], 2, "--id: \"env/id\""),
        with_env("worker-agent", &[("EVENKEEL_ID", "env/id"), ("EVENKEEL_CONFIG", "id.yaml")], 2, "--id: \"env/id\""),
    ];
    check(folder.path(), &cases);
}

#[test]
fn wrong_client_commands() {
    let cases = [
        case("add", 2, "<NAME>"),
        case("add a/b", 2, "has '/' at position 2; a name is made of"),
        case("add -- sleep", 2, "<NAME>"),
        case("add a --weight 0", 2, "0 is not in 1.."),
        case("add a --weight 1000001", 2, "weight: 1000001 is not within 1 to 1000000"),
        case("add a --weight x", 2, "invalid value 'x' for '--weight <N>'"),
        case("add a --kind a/b", 2, "has '/' at position 2"),
        case("add a --label x", 2, "write x=VALUE"),
        case("add a --label x=y\u{a0}z", 2, "value \"y z\" of x"),
        case("add a --require x\u{a0}in\u{a0}y", 2, "at character 6: expected '('"),
        case("add a --pin=-x", 2, "begins with '-'; a name begins with a letter or digit"),
        case("add a --spec {", 2, "is no JSON"),
        case("add a --spec 3", 2, "is JSON, but no object"),
        case("add a --spec {\"n\":9007199254740993}", 2, "spec: 9007199254740993 cannot be held exactly"),
        case("add a --kind noop -- sleep 5", 2, "a COMMAND is for --kind process"),
        case("add a --spec {\"command\":[]} -- sleep 5", 2, "--spec has a command already"),
        case("delete", 2, "<NAME>"),
        case("delete a b/c", 2, "has '/' at position 2"),
        case("get a -l x=y", 2, "cannot be used with"),
        case("get -l x>y", 2, "selector \"x>y\": at character 2"),
        case("get -o xml", 2, "[possible values: table, wide, json, yaml, name]"),
        case("get --master ftp://a:1", 2, "scheme \"ftp\" is not http"),
        case("logs", 2, "<NAME>"),
        case("logs a --tail x", 2, "invalid value 'x' for '--tail <N>'"),
        case("events --limit 0", 2, "0 is not in 1..=5000"),
        case("cordon", 2, "<WORKER>"),
        case("drain w/1", 2, "has '/' at position 2"),
        case("explain", 2, "<NAME>"),
        case("apply", 2, "--filename"),
        case("apply -f x.yaml --prune", 2, "--selector <SELECTOR>"),
        case("apply -f x.yaml -l a=b", 2, "--prune"),
    ];
    check(folder(&[]).path(), &cases);
}

#[test]
fn wrong_resource_files_are_refused_before_anything_is_sent() {
    let folder = folder(&[
        ("empty.yaml", b"# nothing\n"),
        ("good.yaml", b"resources:\n- name: a\n"),
        ("number.yaml", b"name: a\nlabels: {level: 3}\n"),
        ("octal.yaml", b"name: 007\n"),
        ("tab.yaml", b"resources:\n\t- name: a\n"),
        ("nul.yaml", b"name: a\0\n"),
        ("latin1.yaml", b"name: caf\xe9\n"),
        ("field.yaml", b"name: a\nwieght: 3\n"),
        ("twice.yaml", b"name: a\nname: b\n"),
        ("json.json", b"{\"name\": \"a\", }}"),
        ("none/readme.txt", b"no resources here"),
        ("dup/a.yaml", b"- name: a\n- name: b\n"),
        ("dup/b.yml", b"name: b\n"),
        ("dup/c.txt", b"is not read"),
    ]);
    let cases = [
        case("apply -f none.yaml", 2, "none.yaml: No such file"),
        case("apply -f empty.yaml", 2, "empty.yaml: has no document; write `resources: []`"),
        case("apply -f number.yaml", 2, "number.yaml: document 1 (a): labels.level: must be text, not a number; put it in quotes"),
        case("apply -f octal.yaml", 2, "octal.yaml: document 1: name: one reader of YAML"),
        case("apply -f tab.yaml", 2, "tab.yaml: line 2"),
        case("apply -f nul.yaml", 2, "nul.yaml: line 1 has a NUL character"),
        case("apply -f latin1.yaml", 2, "latin1.yaml: line 1 is not UTF-8"),
        case("apply -f field.yaml", 2, "unknown field \"wieght\"; use one of name"),
        case("apply -f twice.yaml", 2, "twice.yaml: line 2, column 1: duplicate mapping key"),
        case("apply -f json.json", 2, "json.json: line 1"),
        case("apply -f none", 2, "none: has no file that ends in .yaml, .yml or .json"),
        case("apply -f dup", 2, "dup/b.yml: document 1 (b): name: already exists in dup/a.yaml: document 1, entry 2 (b)"),
        case("apply -f good.yaml --prune -l ", 2, "--selector"),
        case("apply -f - | name: a b", 2, "stdin: document 1: name: \"a b\" has ' '"),
    ];
    check(folder.path(), &cases);
}

#[test]
fn an_unreachable_master_is_named_with_the_way_out() {
    let folder = folder(&[("good.yaml", b"resources:\n- name: a\n")]);
    for command in [
        "get",
        "get a",
        "get --watch",
        "add a",
        "delete a b",
        "logs a",
        "workers",
        "masters",
        "explain a",
        "events",
        "events -f",
        "plan",
        "cordon w",
        "uncordon w",
        "drain w --wait",
        "apply -f good.yaml",
        "apply -f good.yaml --dry-run",
    ] {
        let output = evenkeel(folder.path(), &format!("{command} --master {NOBODY}"), &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.starts_with("error: no master can be reached at http://127.0.0.1:1 ("), "{command}: {said}");
        assert!(said.contains("--master URL") && said.contains("evenkeel master --id 1") && said.lines().count() == 1, "{command}: {said}");
    }
    let output = evenkeel(folder.path(), "get", &[("EVENKEEL_MASTER", "127.0.0.1:1,127.0.0.1:2")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("http://127.0.0.1:1 (") && said.contains("http://127.0.0.1:2 ("), "{said}");
}

#[test]
fn a_dev_without_etcd_says_how_to_install_it() {
    let folder = folder(&[]);
    let output = evenkeel(folder.path(), "dev", &[("PATH", "/nonexistent")]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: etcd cannot be run") && said.contains("install etcd"), "{said}");
}

#[test]
fn a_tied_program_needs_its_parent() {
    let folder = folder(&[]);
    let own = std::process::id();
    let good = evenkeel(folder.path(), &format!("tied --parent {own} --signal kill -- sh -c exit\u{a0}7"), &[]);
    assert_eq!(good.status.code(), Some(7), "{good:?}");
    let missing = evenkeel(folder.path(), &format!("tied --parent {own} --signal term -- ./nothing"), &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("./nothing: cannot be started"));
    #[cfg(target_os = "linux")]
    {
        let gone = evenkeel(folder.path(), "tied --parent 1 --signal kill -- true", &[]);
        assert_eq!(gone.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&gone.stderr).contains("the parent is gone already"));
    }
}

/// The child of a shell that is killed: it must not outlive it.
#[cfg(target_os = "linux")]
#[test]
fn a_tied_program_ends_with_its_parent() {
    use std::io::BufRead;
    let script = format!("{} tied --parent $$ --signal kill -- sleep 600 & echo $!; wait", env!("CARGO_BIN_EXE_evenkeel"));
    let mut shell = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("started");
    let mut line = String::new();
    std::io::BufReader::new(shell.stdout.take().expect("piped")).read_line(&mut line).expect("a process id");
    let comm = format!("/proc/{}/comm", line.trim());
    let is_sleep = || std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep");
    let runs = || std::fs::read_to_string(format!("/proc/{}/stat", line.trim())).is_ok_and(|stat| !stat.contains(") Z "));
    let until = |condition: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < BOUND, "it did not come to pass");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    until(&is_sleep);
    shell.kill().expect("killed");
    shell.wait().expect("waited");
    until(&|| !runs());
}

#[test]
fn help_version_and_completions_succeed() {
    let folder = folder(&[]);
    for (line, expected) in [
        ("--version", "evenkeel 0."),
        ("version", "evenkeel 0."),
        ("--help", "Usage: evenkeel"),
        ("apply --help", "--prune"),
        ("completions bash", "_evenkeel"),
        ("completions zsh", "#compdef evenkeel"),
        ("completions fish", "complete -c evenkeel"),
    ] {
        let output = evenkeel(folder.path(), line, &[]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(expected), "{line}: {said}");
        assert!(!said.contains("worker-agent") || line.starts_with("completions"), "{line} shows what is hidden");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

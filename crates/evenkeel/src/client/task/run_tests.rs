//! Tests of the flags of `evenkeel task run`.

use clap::Parser;

use super::*;
use crate::{
    cli::{Cli, Command},
    client,
};

/// A script in a folder that lasts as long as this.
struct File(tempfile::TempDir);

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("disk.sh"), "#!/bin/sh\ndf\n").expect("written");
        Self(folder)
    }

    fn path(&self) -> String {
        self.0.path().join("disk.sh").to_str().expect("a path").to_owned()
    }
}

fn parsed(words: &[&str]) -> Result<RunArgs, String> {
    let line = ["evenkeel", "task", "run"].into_iter().chain(words.iter().copied());
    match Cli::try_parse_from(line).map_err(|e| e.to_string())?.command {
        Command::Client(client::Command::Task(args)) => match args.action {
            super::super::Action::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn draft(words: &[&str]) -> Result<TaskDraft, String> {
    parsed(words)?.draft().map_err(|e| e.to_string())
}

#[test]
fn flags_become_a_task() {
    let file = File::new();
    let path = file.path();
    let words = "--on w-2,10.0.0.9 --account root --timeout 5m --grace 0s --deliver 90s --batch 10% --tolerance all --title T --env A=b=c --env E= \
        --secret DB=file:/run/db --pause-after w-2 --on-lost retry --children leave --count-undelivered --key K --creator ada";
    let mut words: Vec<&str> = words.split_whitespace().collect();
    words.extend([path.as_str(), "x", "--wait", "--", "-h", "y"]);
    let expected = TaskDraft {
        title: "T".to_owned(),
        script: "#!/bin/sh\ndf\n".to_owned(),
        account: "root".to_owned(),
        args: ["x", "-h", "y"].map(str::to_owned).into(),
        env: [("A", "b=c"), ("E", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        secrets: [("DB".to_owned(), "file:/run/db".to_owned())].into(),
        hosts: ["w-2", "10.0.0.9"].map(str::to_owned).into(),
        timeout_ms: 300_000,
        grace_ms: Some(0),
        deliver_ms: 90_000,
        batch: "10%".to_owned(),
        tolerance: "all".to_owned(),
        on_lost: "retry".to_owned(),
        children: "leave".to_owned(),
        pause_after: vec!["w-2".to_owned()],
        count_undelivered: true,
        creator: "ada".to_owned(),
        key: "K".to_owned(),
        ..TaskDraft::default()
    };
    assert_eq!(draft(&words), Ok(expected));
    assert!(parsed(&words).expect("flags").wait, "a flag after FILE is still one of evenkeel");
}

#[test]
fn what_is_left_out_has_its_default() {
    let made = draft(&["-l", "zone=a", "--any", "1", "--", "/usr/bin/df", "-h", "a b"]).expect("a task");
    let expected = TaskDraft {
        title: "df".to_owned(),
        script: "#!/bin/sh\nexec /usr/bin/df -h 'a b'\n".to_owned(),
        selector: "zone=a".to_owned(),
        any: 1,
        timeout_ms: 3_600_000,
        grace_ms: Some(5000),
        deliver_ms: 3_600_000,
        batch: "50".to_owned(),
        tolerance: "0".to_owned(),
        on_lost: "report".to_owned(),
        children: "kill".to_owned(),
        creator: user(),
        key: made.key.clone(),
        ..TaskDraft::default()
    };
    assert_eq!(made, expected);
    assert_eq!(made.key.len(), 32);
    assert_ne!(draft(&["--on", "w", "--", "true"]).expect("a task").key, made.key, "each has a key of its own");
    assert_eq!(message(made.clone()).on, Some(TaskTargets { selector: made.selector, any: 1, ..TaskTargets::default() }));
    let file = File::new();
    assert_eq!(draft(&["--on", "w", &file.path()]).expect("a task").title, "disk.sh");
    assert_eq!(draft(&["--on", "fd00::5,a_b", "--", "true"]).expect("a task").hosts, ["fd00::5", "a_b"]);
    assert!(draft(&["-l", "zone=a", "--late", "--", "true"]).expect("a task").late);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_sent() {
    let cases: [(&[&str], &str); 21] = [
        (&["--", "true"], "--on <W,W>|--selector <SELECTOR>"),
        (&["--on", "w", "-l", "a=b", "--", "true"], "cannot be used with"),
        (&["--on", "w"], "<FILE>"),
        (&["--on", "", "--", "true"], "with commas between them, without spaces"),
        (&["--on", "a b", "--", "true"], "with commas between them, without spaces"),
        (&["--on", "w,", "--", "true"], "with commas between them, without spaces"),
        (&["--on", "w", "--any", "1", "--", "true"], "cannot be used with"),
        (&["-l", "a", "--any", "0", "--", "true"], "'0' for '--any"),
        (&["-l", "a", "--any", "1", "--late", "--", "true"], "cannot be used with"),
        (&["--on", "w", "--late", "--", "true"], "cannot be used with"),
        (&["--on", "w", "--timeout", "5", "--", "true"], "write a number and a unit"),
        (&["--on", "w", "--timeout", "0s", "--", "true"], "it is to be more than 0"),
        (&["--on", "w", "--timeout", "8d", "--", "true"], "--timeout"),
        (&["--on", "w", "--batch", "some", "--", "true"], "it is a number of hosts, a share from 0% to 100%, or all"),
        (&["--on", "w", "--batch", "0", "--", "true"], "batch: invalid value \"0\": at least one host at a time"),
        (&["--on", "w", "--on-lost", "x", "--", "true"], "report, retry"),
        (&["--on", "w", "--env", "A", "--", "true"], "write A=VALUE"),
        (&["--on", "w", "--env", "A=1", "--env", "A=2", "--", "true"], "--env: A is given twice"),
        (&["--on", "w", "--secret", "P=hunter2", "--", "true"], "secrets: \"P\": must be file: with a full path, or env: with a variable"),
        (&["--on", "w", "--stdin", "-", "-"], "cannot both be stdin"),
        (&["--on", "w", "/no/such/file"], "/no/such/file: there is no such file; give the path of one, - for stdin, or a command after --"),
    ];
    for (words, expected) in cases {
        let error = draft(words).expect_err("refused");
        assert!(error.contains(expected), "{words:?}: {error}");
        assert!(!error.contains("hunter2"), "a secret is not shown: {error}");
    }
}

//! Every script says what really happens.

use std::{fs, path::Path};

#[test]
fn every_script_says_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("scripts") {
        let path = entry.expect("an entry").path();
        let script = fs::read_to_string(&path).expect("text");
        let happens = evenkeel_sim::script::run(&script).expect("a script");
        count += 1;
        if happens != script {
            wrong.push(format!("{} should read:\n\n{happens}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 3, "{count} scripts");
}

#[test]
fn a_line_that_is_no_command_is_named() {
    assert_eq!(evenkeel_sim::script::run("a story\n\n$ fly w1\n"), Err("line 3: fly: no such command".to_owned()));
}

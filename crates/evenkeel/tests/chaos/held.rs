//! How the work of a scenario is held: prepared before its workers start, and judged by what the kernel says of the work.
//!
//! Beside the wheel. No scenario is left out in silence where its means cannot be had: it fails.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use crate::{processes::Found, summary::Held, support::Stage, work::BECOME};

/// Says `processes` where no cgroup can be made: scenarios that are not about it then run without.
const HELD: &str = "EVENKEEL_TEST_HELD";
const NOBODY: u32 = 65_534;

/// What is claimed of the scenario: how it is held, by the kernel's word, and who its workers are.
fn claim(held: Held) -> (bool, bool) {
    let by_cgroup = held == Held::ByCgroups && std::env::var(HELD).as_deref() != Ok("processes");
    (by_cgroup, held == Held::Unprivileged)
}

/// Has the workers started like this.
pub(crate) fn prepare(stage: &mut Stage, held: Held) {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    if held != Held::ByCgroups {
        assert!(is_root(), "workers without cgroups, and unprivileged ones, are started by root: run this scenario as root");
    }
    match held {
        Held::ByCgroups => {}
        // In a place of their own, where no cgroup (v2) is mounted.
        Held::WithoutCgroups => {
            let script = "umount -l -a -t cgroup2 && exec \"$0\" \"$@\"";
            stage.worker_launcher = words(&["unshare", "--mount", "sh", "-c", script]);
        }
        Held::Unprivileged => {
            stage.worker_launcher = words(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
            let this = std::env::current_exe().expect("the own program");
            let closed = this.ancestors().skip(1).find(|folder| mode(folder) & 0o001 == 0);
            assert!(closed.is_none(), "nobody cannot run the tests' programs: {} is closed to others", closed.unwrap_or(&this).display());
        }
    }
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("opened");
    let work = stage.path().join("work");
    open(stage.path());
    open(&work);
    let helper = work.join(BECOME);
    fs::copy("/usr/bin/setpriv", &helper).expect("setpriv, of util-linux");
    if is_root() {
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o4755)).expect("setuid");
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("/proc").uid() == 0
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").mode()
}

/// How this work is held; an error if it is held otherwise than the scenario claims, or is another user's.
pub(crate) fn judge(held: Held, work: &[Found]) -> Result<String, String> {
    let (by_cgroup, is_nobodys) = claim(held);
    // One that has ended meanwhile says nothing.
    let is_in_one = |one: &Found| {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", one.pid)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(|path| path.contains("/evenkeel-"))
    };
    let found: BTreeSet<bool> = work.iter().filter_map(is_in_one).collect();
    let users: BTreeSet<u32> = work.iter().filter_map(|one| Some(fs::metadata(format!("/proc/{}", one.pid)).ok()?.uid())).collect();
    let by = |by_cgroup: bool| if by_cgroup { "by cgroups" } else { "without cgroups" };
    let how = format!("held {}, users {users:?}", found.iter().map(|one| by(*one)).collect::<Vec<_>>().join(" and "));
    if work.is_empty() || found != BTreeSet::from([by_cgroup]) || (is_nobodys && users != BTreeSet::from([NOBODY])) {
        let hint = if held == Held::ByCgroups { format!("; where no cgroup can be made, {HELD}=processes says so") } else { String::new() };
        return Err(format!("work is {how}, and this scenario is about work that is held {}{hint}", by(by_cgroup)));
    }
    Ok(how)
}

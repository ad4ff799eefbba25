//! Asks etcd all the time, and knows the longest span in which it did not answer.
//!
//! Beside the wheel. A hiccup of etcd is judged by how long etcd itself was away, which depends on its elections and not on Evenkeel.

use std::time::Duration;

use evenkeel_store::{Client, Config};
use tokio::{
    runtime::Runtime,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::stack::{self, Container};

/// One question may take so long.
const ANSWER: Duration = Duration::from_millis(250);
/// A hiccup that is shorter than this restarts nothing.
const SHORT: Duration = Duration::from_secs(3);

/// See the module.
pub(crate) struct Probe {
    end: watch::Sender<bool>,
    task: JoinHandle<Duration>,
}

impl Probe {
    /// Asks these members, whichever answers.
    pub(crate) fn start(runtime: &Runtime, members: &[Container]) -> Self {
        let urls: Vec<String> = members.iter().map(|member| format!("http://{}:2379", stack::address(member))).collect();
        let (end, mut ends) = watch::channel(false);
        let task = runtime.spawn(async move {
            let clients: Vec<Client> = urls.into_iter().map(|url| Client::new(Config::new([url])).expect("a URL")).collect();
            let (mut answered, mut longest) = (Instant::now(), Duration::ZERO);
            while !*ends.borrow_and_update() {
                for client in &clients {
                    if timeout(ANSWER, client.get(b"/")).await.is_ok_and(|read| read.is_ok()) {
                        longest = longest.max(answered.elapsed());
                        answered = Instant::now();
                    }
                }
                sleep(Duration::from_millis(20)).await;
            }
            longest
        });
        Self { end, task }
    }

    /// How long etcd was away at the most.
    pub(crate) fn end(self, runtime: &Runtime) -> Duration {
        self.end.send_replace(true);
        runtime.block_on(self.task).expect("a probe does not panic")
    }
}

/// How often more work may have started again after etcd was away for so long, where so many pieces run.
pub(crate) fn restarts(away: Duration, pieces: usize) -> usize {
    if away < SHORT { 0 } else { pieces }
}

//! What the kind promises, on free ports of the loopback.

use std::net::TcpListener as Taken;

use evenkeel_model::{Epoch, Hash, Observed, ResourceName, Spec};
use evenkeel_worker::{
    driver::{
        Change, Driver, Event, EventKind, Handle, Log, Observation, Observer, StopOrder, Work,
        conformance::{Trial, check},
    },
    protocol::authority::{BootTime, Gate, SystemClock},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    runtime,
    sync::mpsc,
    time::{Instant, pause, resume},
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);
const EPOCH: Epoch = Epoch(7);

/// On the test's own thread.
fn kind() -> InProcess<TcpPort> {
    InProcess::on("tcp-port", TcpPort, runtime::Handle::current())
}

/// An address that nobody listens on by now.
fn free() -> String {
    Taken::bind("127.0.0.1:0").and_then(|taken| taken.local_addr()).expect("a free port").to_string()
}

fn spec(value: Value) -> Spec {
    Spec::from_value(value).expect("spec")
}

async fn answer(address: &str) -> String {
    let mut said = String::new();
    TcpStream::connect(address).await.expect("connected").read_to_string(&mut said).await.expect("answered");
    said
}

/// One piece, of which the test is the agent.
struct Run {
    handle: Box<dyn Handle>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Run {
    fn start(address: &str) -> Self {
        let (name, gate) = (ResourceName::new("door").expect("name"), Gate::shut(Arc::new(SystemClock)));
        gate.open_until(Some(BootTime(u64::MAX)));
        let (sender, events) = mpsc::unbounded_channel();
        let spec = spec(json!({"address": address, "greeting": "hello from"}));
        let observer = Observer::new(name.clone(), EPOCH, sender);
        let handle = kind().start(Work { name, epoch: EPOCH, spec, gate, log: Log::nowhere() }, observer);
        Self { handle: handle.unwrap_or_else(|(error, _)| panic!("{error}")), events }
    }

    async fn next(&mut self) -> EventKind {
        timeout(DEADLINE, self.events.recv()).await.expect("an event in time").expect("an event").kind
    }

    /// Until this is what the piece does, with such a message; all else that it does before is skipped.
    async fn seen(&mut self, phase: Observed, says: &str) -> Observation {
        loop {
            if let EventKind::Observed(seen) = self.next().await
                && seen.phase == phase
                && seen.message.contains(says)
            {
                return seen;
            }
        }
    }

    fn change(&self, value: Value) -> Hash {
        let spec = spec(value);
        let hash = Hash::of("tcp-port", &spec);
        self.handle.update(Change { hash, spec });
        hash
    }
}

#[tokio::test]
async fn tcp_port_keeps_the_promises_of_a_driver() {
    let address = free();
    let trial = Trial {
        good: json!({"address": address, "greeting": "hello from"}),
        bad: json!({"address": "here", "greeting": "hello from"}),
        change: Some(json!({"address": address, "greeting": "welcome to"})),
        starts_within: DEADLINE,
    };
    assert_eq!(check(Arc::new(InProcess::new("tcp-port", TcpPort)), trial).await, Ok(()));
}

#[tokio::test]
async fn a_wrong_spec_is_refused_with_the_field() {
    let address = "spec.address: must be IP:PORT with a port from 1 to 65535, such as 127.0.0.1:7001, not";
    let greeting = "spec.greeting: must be one line of 1 to 200 bytes, not";
    for (wrong, expected) in [
        (json!({"address": "here", "greeting": "a"}), format!("{address} \"here\"")),
        (json!({"address": "localhost:7001", "greeting": "a"}), format!("{address} \"localhost:7001\"")),
        (json!({"address": "127.0.0.1:0", "greeting": "a"}), format!("{address} \"127.0.0.1:0\"")),
        (json!({"address": 7001, "greeting": "a"}), "spec.address: invalid type: integer `7001`, expected a string".to_owned()),
        (json!({"address": "127.0.0.1:1", "greeting": ""}), format!("{greeting} \"\"")),
        (json!({"address": "127.0.0.1:1", "greeting": "a\nb"}), format!("{greeting} \"a\\nb\"")),
        (json!({"address": "127.0.0.1:1"}), "spec: missing field `greeting`".to_owned()),
        (json!({"adress": "127.0.0.1:1"}), "spec.adress: unknown field `adress`, expected `address` or `greeting`".to_owned()),
    ] {
        assert_eq!(kind().grace(&spec(wrong)), Err(SpecError(expected)));
    }
}

#[tokio::test]
async fn the_port_is_free_once_the_piece_has_ended() {
    let now = StopOrder { kill_by: Some(BootTime(0)), why: None };
    for order in [StopOrder::default(), now] {
        let address = free();
        let mut run = Run::start(&address);
        run.seen(Observed::Running, "listens").await;
        assert_eq!(answer(&address).await, "hello from door 7\n");
        // Only a piece that waits for its abort lets time pass.
        pause();
        let told = Instant::now();
        run.handle.stop(order);
        while run.next().await != EventKind::Ended {}
        assert_eq!(told.elapsed(), Duration::ZERO, "{order:?}");
        resume();
        Taken::bind(&address).unwrap_or_else(|error| panic!("{order:?}: {error}"));
    }
}

#[tokio::test]
async fn a_greeting_is_taken_in_place_and_an_address_is_not() {
    let (address, other) = (free(), free());
    let mut run = Run::start(&address);
    run.seen(Observed::Running, "listens").await;

    let hash = run.change(json!({"address": address, "greeting": "welcome to"}));
    assert_eq!(run.next().await, EventKind::Updated(hash));
    assert_eq!(answer(&address).await, "welcome to door 7\n");

    let hash = run.change(json!({"address": other, "greeting": "hello from"}));
    assert_eq!(run.next().await, EventKind::NeedsRestart(hash, format!("spec.address: {other} instead of {address}")));
    assert_eq!(answer(&address).await, "welcome to door 7\n");
}

#[tokio::test]
async fn a_taken_port_is_said_and_tried_again() {
    let taken = Taken::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let mut run = Run::start(&address);
    let seen = run.seen(Observed::Backoff, "").await;
    assert_eq!(seen.message, format!("spec.address: {address} is taken by something else on this machine"));
    drop(taken);
    run.seen(Observed::Running, "listens").await;
    assert_eq!(answer(&address).await, "hello from door 7\n");
}

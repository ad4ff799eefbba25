//! The value of `/orders/<worker>/<id>`: what the leader wants of one host of a task. Under model::task. The key is created once and rewritten from
//! then on: the revision that wrote an attempt's order names that attempt, and no other ever has it.

use serde::{Deserialize, Serialize};

use crate::{Cluster, Read, Seen, Stored, TaskId, WorkerId};

/// What is wanted of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Order {
    /// Which attempt; from 1.
    pub attempt: u32,
    /// What is wanted of it.
    #[serde(default, skip_serializing_if = "OrderIntent::is_run")]
    pub intent: OrderIntent,
    /// Why, for people, where it is not to run.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub why: Box<str>,
    /// When the attempt was ordered: nanoseconds since the Unix epoch, by the leader's time of day. Its delivery counts from here.
    #[serde(default)]
    pub since: i64,
}

/// What is wanted of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderIntent {
    /// It is to run.
    #[default]
    Run,
    /// It is to stop.
    Stop,
    /// It was never begun, and will not be.
    Cancelled,
    /// The same, since its worker did not begin in time.
    Undelivered,
    /// It was begun, and its worker is gone: its end is not known.
    Lost,
}

impl OrderIntent {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_run(&self) -> bool {
        *self == Self::Run
    }
}

impl Order {
    /// An attempt that is to run.
    #[must_use]
    pub fn run(attempt: u32, since: i64) -> Self {
        Self { attempt, intent: OrderIntent::Run, why: Box::default(), since }
    }

    /// The same attempt, of which this is wanted from now on.
    #[must_use]
    pub fn with(&self, intent: OrderIntent, why: impl Into<Box<str>>) -> Self {
        Self { intent, why: why.into(), ..self.clone() }
    }
}

impl Stored for Order {
    type Ids = (WorkerId, TaskId);

    /// Its worker cannot read it either, and begins nothing: it is one that was not delivered in time.
    fn read(_: &Self::Ids, json: &[u8]) -> Read<Self> {
        Read::or(json, || Some(Self::run(1, 0)))
    }

    fn apply(cluster: &mut Cluster, (worker, id): Self::Ids, value: Option<Self>, seen: Seen) {
        cluster.with_task_host(id, &worker, seen.now, |host| host.set_order(value, seen.modified));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_like_this() {
        let order = Order::run(1, 7);
        let cases = [
            (order.clone(), r#"{"Attempt":1,"Since":7}"#),
            (order.with(OrderIntent::Stop, "killed by a person"), r#"{"Attempt":1,"Intent":"stop","Why":"killed by a person","Since":7}"#),
        ];
        for (order, text) in cases {
            assert_eq!(serde_json::to_string(&order).expect("json"), text);
            assert_eq!(serde_json::from_str::<Order>(text).expect("read"), order);
        }
    }
}

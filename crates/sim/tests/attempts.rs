//! Holds the model of attempts: small instances to their end, and every rule left out once. It is beside the wheel.

use evenkeel_sim::attempts::{Attempts, PROMISES, Rule, broken};

/// One machine whose agent dies and whose disk is wiped; two machines under one id that lose their session.
const INSTANCES: [Attempts; 2] = [
    Attempts { machines: 1, crashes: 2, losses: 1, wipes: 1, attempts: 2, without: None },
    Attempts { machines: 2, crashes: 1, losses: 1, wipes: 0, attempts: 2, without: None },
];

#[test]
fn an_attempt_is_begun_once_at_most_in_every_order_of_steps() {
    for instance in INSTANCES {
        assert_eq!(broken(instance, 2), Vec::<&str>::new(), "{instance:?}");
    }
}

#[test]
fn every_rule_is_needed() {
    let breaks = |rule: &Rule| {
        let without = INSTANCES.iter().map(|instance| Attempts { without: Some(*rule), ..*instance });
        without.flat_map(|model| broken(model, 2)).any(|name| PROMISES.contains(&name))
    };
    let not_needed: Vec<Rule> = Rule::ALL.into_iter().filter(|rule| !breaks(rule)).collect();
    assert_eq!(not_needed, []);
}

//! Commands about tasks, judged by a state without a control loop.

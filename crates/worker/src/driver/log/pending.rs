//! PURE: output that is yet to be written: how much of it is kept, what is lost when the disk does not keep up, and whose turn it is.
//!
//! The wheel: under worker::driver; the thread in `writer` carries out what is decided here. Nothing here opens a file or reads a clock.
//! A resource that is silent has no entry: it costs nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use evenkeel_model::{Epoch, ResourceName};
use tokio::sync::oneshot;

/// What is kept at most of one resource, in bytes: four times what a pipe holds, so that a burst is taken in whole.
pub(super) const ONE: usize = 256 << 10;
/// What is kept at most of all resources of a worker together, in bytes. One batch of [`ONE`] may be on its way to the disk besides.
pub(super) const ALL: usize = 16 << 20;
/// How soon a log that could not be written is tried again: a disk that is full stays so for longer than a person needs to look.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// What is lost ends with its line, if that ends within so many bytes.
const LINE: usize = 4096;

/// Where a new owner's output begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Before so many bytes.
    pub(super) at: usize,
    pub(super) epoch: Epoch,
}

/// All that is yet to be written.
#[derive(Debug, Default)]
pub(super) struct Pending {
    queues: BTreeMap<ResourceName, Queue>,
    /// Who is written next.
    turns: VecDeque<ResourceName>,
    /// Who is tried again, and when; the earliest first.
    held: VecDeque<(Instant, ResourceName)>,
    /// Whose bytes are the oldest.
    ages: BTreeMap<u64, ResourceName>,
    next_age: u64,
    bytes: usize,
    /// Somebody has waited for room in vain, and nothing was written since.
    stalled: bool,
    lost: u64,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    age: Option<u64>,
    /// How many bytes were lost before those, and not told in the log yet.
    lost: u64,
    mark: Option<Mark>,
    /// How the last try failed.
    failed: Option<Failure>,
    /// Who waits until there is room.
    room: Vec<oneshot::Sender<()>>,
    /// Who waits until all is written.
    done: Vec<oneshot::Sender<()>>,
}

/// How a try failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// For the log.
    pub(super) why: String,
    /// Other resources are not concerned.
    pub(super) is_of_one: bool,
}

/// What is written next. What was written of it is taken out.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) name: ResourceName,
    pub(super) bytes: VecDeque<u8>,
    pub(super) lost: u64,
    pub(super) mark: Option<Mark>,
    /// Why the try before failed; none: it did not.
    pub(super) why: Option<String>,
}

impl Pending {
    /// Takes output in. It begins an owner's output if an epoch is given. Returns how many bytes were lost to make room.
    pub(super) fn push(&mut self, name: &ResourceName, begins: Option<Epoch>, bytes: &[u8]) -> u64 {
        let before = self.lost;
        if !self.queues.contains_key(name) {
            self.queues.insert(name.clone(), Queue::default());
            self.turns.push_back(name.clone());
        }
        let Some(queue) = self.queues.get_mut(name) else { return 0 };
        if let Some(epoch) = begins {
            queue.mark = Some(Mark { at: queue.bytes.len(), epoch });
        }
        let (surplus, newest) = bytes.split_at(bytes.len().saturating_sub(ONE));
        let dropped = queue.drop_oldest((queue.bytes.len() + newest.len()).saturating_sub(ONE));
        queue.lost += surplus.len() as u64;
        queue.bytes.extend(newest);
        self.bytes = self.bytes + newest.len() - dropped;
        self.lost += (surplus.len() + dropped) as u64;
        if queue.age.is_none() {
            queue.age = Some(self.next_age);
            self.ages.insert(self.next_age, name.clone());
            self.next_age += 1;
        }
        while self.bytes > ALL {
            self.drop_oldest_of_all();
        }
        self.lost - before
    }

    fn drop_oldest_of_all(&mut self) {
        let surplus = self.bytes - ALL;
        let Some((age, name)) = self.ages.pop_first() else { return };
        let Some(queue) = self.queues.get_mut(&name) else { return };
        let dropped = queue.drop_oldest(surplus.min(queue.bytes.len()));
        self.bytes -= dropped;
        self.lost += dropped as u64;
        if queue.bytes.is_empty() {
            queue.age = None;
        } else {
            self.ages.insert(age, name);
        }
    }

    /// Those whose time has come are tried again.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.held.front().is_some_and(|(at, _)| *at <= now) {
            self.turns.extend(self.held.pop_front().map(|(_, name)| name));
        }
    }

    /// When somebody is tried again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.held.front().map(|(at, _)| *at)
    }

    /// What is to be written next. [`Pending::written`] or [`Pending::failed`] tells what became of it, before the next is taken.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let name = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&name)?;
        let bytes = std::mem::take(&mut queue.bytes);
        self.bytes -= bytes.len();
        if let Some(age) = queue.age.take() {
            self.ages.remove(&age);
        }
        tell(queue.room.drain(..));
        let why = queue.failed.as_ref().map(|failure| failure.why.clone());
        Some(Batch { name, bytes, lost: std::mem::take(&mut queue.lost), mark: queue.mark.take(), why })
    }

    /// All of it is in the log.
    pub(super) fn written(&mut self, name: &ResourceName) {
        self.stalled = false;
        let Some(queue) = self.queues.get_mut(name) else { return };
        queue.failed = None;
        if queue.bytes.is_empty() && queue.lost == 0 {
            let queue = self.queues.remove(name).unwrap_or_default();
            tell(queue.done);
        } else {
            self.turns.push_back(name.clone());
        }
    }

    /// What is left of it could not be written: it is tried again. Returns whether that is news: the try before did not fail.
    pub(super) fn failed(&mut self, batch: Batch, failure: Failure, now: Instant) -> bool {
        let Batch { name, mut bytes, lost, mark, .. } = batch;
        let Some(queue) = self.queues.get_mut(&name) else { return false };
        let newer = std::mem::take(&mut queue.bytes);
        // What is lost was lost before what is left: the newest is kept.
        queue.mark = queue.mark.map(|newer| Mark { at: newer.at + bytes.len(), ..newer }).or(mark);
        let left = bytes.len();
        bytes.extend(newer);
        queue.bytes = bytes;
        queue.lost += lost;
        self.bytes += left;
        let dropped = queue.drop_oldest(queue.bytes.len().saturating_sub(ONE));
        self.bytes -= dropped;
        self.lost += dropped as u64;
        if queue.age.is_none() && !queue.bytes.is_empty() {
            queue.age = Some(self.next_age);
            self.ages.insert(self.next_age, name.clone());
            self.next_age += 1;
        }
        let news = queue.failed.replace(failure).is_none();
        tell(queue.room.drain(..));
        self.held.push_back((now + AGAIN, name));
        while self.bytes > ALL {
            self.drop_oldest_of_all();
        }
        news
    }

    /// Who takes output in waits for this before it takes more; none: there is room, or waiting has not helped.
    pub(super) fn wait_for_room(&mut self, name: &ResourceName) -> Option<oneshot::Receiver<()>> {
        let stalled = self.stalled;
        let queue = self.queues.get_mut(name).filter(|queue| !stalled && queue.failed.is_none() && queue.bytes.len() > ONE / 2)?;
        let (room, waits) = oneshot::channel();
        queue.room.push(room);
        Some(waits)
    }

    /// Somebody has waited for room in vain.
    pub(super) fn stall(&mut self) {
        self.stalled = true;
    }

    /// What tells that all output of a resource is written; none: it is.
    pub(super) fn wait_until_done(&mut self, name: &ResourceName) -> Option<oneshot::Receiver<()>> {
        let queue = self.queues.get_mut(name)?;
        let (done, waits) = oneshot::channel();
        queue.done.push(done);
        Some(waits)
    }

    /// Whether the log of a resource could not be written the last time.
    pub(super) fn has_failed(&self, name: &ResourceName) -> bool {
        self.queues.get(name).is_some_and(|queue| queue.failed.is_some())
    }

    /// Whether the disk still refuses what is written, or something was lost that the log has yet to tell of.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.queues.values().any(|queue| queue.failed.as_ref().map_or(queue.lost > 0, |failure| !failure.is_of_one))
    }

    /// How much is yet to be written, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much was lost since the start, in bytes.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

/// Those who have given up waiting are told nothing.
fn tell(waiting: impl IntoIterator<Item = oneshot::Sender<()>>) {
    for waits in waiting {
        let _ = waits.send(());
    }
}

impl Queue {
    /// Drops the oldest bytes: so many, and the rest of the line that they end in. Returns how many.
    fn drop_oldest(&mut self, count: usize) -> usize {
        if count == 0 {
            return 0;
        }
        let count = count.min(self.bytes.len());
        let is_cut = count > 0 && self.bytes[count - 1] != b'\n';
        let rest = if is_cut { self.bytes.range(count..).take(LINE).position(|byte| *byte == b'\n').map_or(0, |at| at + 1) } else { 0 };
        let dropped = count + rest;
        self.bytes.drain(..dropped);
        // What was dropped to bound what is kept must not stay as room that nobody uses.
        if self.bytes.len() < self.bytes.capacity() / 4 {
            self.bytes.shrink_to_fit();
        }
        self.lost += dropped as u64;
        if let Some(mark) = &mut self.mark {
            mark.at = mark.at.saturating_sub(dropped);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn name(n: usize) -> ResourceName {
        ResourceName::new(&format!("r{n}")).expect("name")
    }

    fn text(batch: &Batch) -> String {
        String::from_utf8(batch.bytes.iter().copied().collect()).expect("text")
    }

    fn full() -> Failure {
        Failure { why: "full".to_owned(), is_of_one: false }
    }

    #[test]
    fn a_resource_keeps_its_newest_lines_and_counts_the_others() {
        let mut pending = Pending::default();
        let line = |n: u32| format!("{n:04}{}\n", "x".repeat(1019));
        let lost: u64 = (0..300).map(|n| pending.push(&name(1), None, line(n).as_bytes())).sum();
        assert_eq!(lost, 44 * 1024);
        pending.push(&name(1), None, b"last\n");
        let batch = pending.take().expect("a batch");
        assert_eq!((batch.lost, batch.bytes.len()), (45 * 1024, ONE - 1024 + 5), "a line is lost whole");
        assert!(text(&batch).starts_with(&line(45)) && text(&batch).ends_with(&format!("{}last\n", line(299))));
        // More than all of it at once: the newest of that.
        pending.written(&name(1));
        let mut long = vec![b'a'; 2 * ONE];
        long.extend(b"end");
        assert_eq!(pending.push(&name(1), None, &long), (ONE + 3) as u64);
        let batch = pending.take().expect("a batch");
        assert!(batch.bytes.len() == ONE && text(&batch).ends_with("end"));
    }

    #[test]
    fn what_could_not_be_written_comes_before_what_has_come_since() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.push(&name(1), Some(Epoch(7)), b"one\n");
        let batch = pending.take().expect("a batch");
        assert_eq!(batch.mark, Some(Mark { at: 0, epoch: Epoch(7) }));
        pending.push(&name(1), None, b"two\n");
        assert!(pending.failed(batch, full(), now), "news");
        pending.push(&name(1), Some(Epoch(9)), b"three\n");
        assert!(pending.take().is_none() && pending.is_in_trouble(), "not before its time");
        assert_eq!(pending.next_wake(), Some(now + AGAIN));
        pending.wake(now + AGAIN);
        let batch = pending.take().expect("a batch");
        assert_eq!((text(&batch).as_str(), batch.lost, batch.mark), ("one\ntwo\nthree\n", 0, Some(Mark { at: 8, epoch: Epoch(9) })));
        assert!(!pending.failed(batch, full(), now), "known by now");
        pending.wake(now + AGAIN);
        let batch = pending.take().expect("a batch");
        pending.written(&batch.name);
        assert!(pending.queues.is_empty() && !pending.is_in_trouble() && pending.bytes() == 0, "a silent resource costs nothing");
    }

    #[test]
    fn who_takes_output_in_waits_while_that_helps() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.push(&name(1), None, &vec![b'x'; ONE / 2]);
        assert!(pending.wait_for_room(&name(1)).is_none());
        pending.push(&name(1), None, b"x");
        let mut waits = pending.wait_for_room(&name(1)).expect("to be waited for");
        assert!(waits.try_recv().is_err());
        let batch = pending.take().expect("a batch");
        assert!(waits.try_recv().is_ok());
        pending.push(&name(1), None, &vec![b'x'; ONE]);
        let _waits = pending.wait_for_room(&name(1)).expect("the disk has work");
        pending.stall();
        assert!(pending.wait_for_room(&name(1)).is_none(), "work is not held up");
        pending.written(&batch.name);
        assert!(pending.wait_for_room(&name(1)).is_some(), "the disk is back");
        let batch = pending.take().expect("a batch");
        pending.push(&name(1), None, &vec![b'x'; ONE]);
        pending.failed(batch, full(), now);
        assert!(pending.wait_for_room(&name(1)).is_none(), "a disk that is full is not waited for");
    }

    proptest! {
        // A case moves some megabytes.
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// What is kept is bounded, and each byte is written or counted as lost, in order.
        #[test]
        fn every_byte_is_written_or_counted(steps in vec((0_usize..200, 0_usize..3 * ONE / 2, 0_u8..8), 1..120)) {
            let (mut pending, mut now) = (Pending::default(), Instant::now());
            let (mut pushed, mut written, mut told) = (0_u64, 0_u64, 0_u64);
            let mut settle = |pending: &mut Pending, batch: Batch| {
                written += batch.bytes.len() as u64;
                told += batch.lost;
                pending.written(&batch.name);
            };
            for (who, count, what) in steps {
                pending.push(&name(who), None, &vec![b'x'; count]);
                pushed += count as u64;
                match (what, pending.take()) {
                    (0, Some(batch)) => settle(&mut pending, batch),
                    (_, Some(mut batch)) => {
                        // A part of it was written.
                        let part = batch.bytes.len() / 3;
                        batch.bytes.drain(..part);
                        pending.failed(batch, full(), now);
                        pushed -= part as u64;
                    }
                    (_, None) => {}
                }
                now += AGAIN / 4;
                pending.wake(now);
                prop_assert!(pending.bytes() <= ALL);
                prop_assert_eq!(pending.bytes(), pending.queues.values().map(|queue| queue.bytes.len()).sum::<usize>());
                prop_assert!(pending.queues.values().all(|queue| queue.bytes.len() <= ONE && queue.age.is_some() != queue.bytes.is_empty()));
                prop_assert_eq!(pending.turns.len() + pending.held.len(), pending.queues.len());
            }
            pending.wake(now + AGAIN);
            while let Some(batch) = pending.take() {
                settle(&mut pending, batch);
            }
            prop_assert_eq!(written + told, pushed);
            prop_assert_eq!(told, pending.lost());
            prop_assert!(pending.queues.is_empty() && pending.ages.is_empty());
        }
    }
}
